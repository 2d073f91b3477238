//! Goal: what an old, odd or hostile SDK writes hides nothing from the pass. Method: batches of a stream, each through the edge and,
//! where that says so, through the batcher; of what is stored nothing may hold the secret.

use crate::{Rules, StreamState, mask, read};

const SECRET: &str = "S3CRET";

/// 4 is a masked element with text 5, 6 an open one with text 7, 8 a password's field, 9 a blocked element with image 10.
const SNAPSHOT: &str = r#"{"type":2,"data":{"node":{"type":0,"childNodes":[{"type":2,"tagName":"html","attributes":{},"childNodes":[{"type":2,"tagName":"body","attributes":{},"childNodes":[{"type":2,"tagName":"div","attributes":{"data-clairvio-mask":""},"childNodes":[{"type":3,"textContent":"x","id":5}],"id":4},{"type":2,"tagName":"div","attributes":{},"childNodes":[{"type":3,"textContent":"open","id":7}],"id":6},{"type":2,"tagName":"input","attributes":{"type":"password"},"childNodes":[],"id":8},{"type":2,"tagName":"div","attributes":{"data-clairvio-block":""},"childNodes":[{"type":2,"tagName":"img","attributes":{"src":"/a"},"childNodes":[],"id":10}],"id":9},{"type":2,"tagName":"input","attributes":{"type":"text","name":"city"},"childNodes":[],"id":11}],"id":3}],"id":2}],"id":1},"initialOffset":{"left":0,"top":0}},"timestamp":1}"#;

fn incremental(data: &str) -> String {
    format!(r#"{{"type":3,"data":{data},"timestamp":2}}"#)
}

fn mutation(texts: &str, attributes: &str, adds: &str) -> String {
    incremental(&format!(
        r#"{{"source":0,"texts":[{texts}],"attributes":[{attributes}],"removes":[],"adds":[{adds}]}}"#
    ))
}

fn snapshot_of(node: &str) -> String {
    format!(
        r#"{{"type":2,"data":{{"node":{{"type":0,"childNodes":[{{"type":2,"tagName":"body","attributes":{{}},"childNodes":[{node}],"id":2}}],"id":1}}}},"timestamp":1}}"#
    )
}

/// What is stored of a stream's batches.
fn stored(rules: &str, batches: &[&[&str]]) -> String {
    let rules = Rules::of_json(rules);
    let mut state = StreamState::new();
    let mut stored = String::new();
    for events in batches {
        let body = events.iter().map(|event| format!("{event}\n")).collect::<String>();
        let batch = read(body.as_bytes(), &rules).unwrap_or_else(|refusal| panic!("{refusal:?}: {body}"));
        let kept = if batch.needs_state { mask(&batch.payload, &rules, &mut state).payload } else { None };
        let kept = String::from_utf8(kept.unwrap_or(batch.payload)).unwrap();
        for line in kept.lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        }
        assert_eq!(kept.lines().count(), events.len(), "an event went or came");
        let again = mask(kept.as_bytes(), &rules, &mut StreamState::missed()).payload;
        let again = again.map_or(kept.clone(), |again| String::from_utf8(again).unwrap());
        assert_eq!(
            read(again.as_bytes(), &rules).unwrap().payload,
            again.as_bytes(),
            "what is stored is not masked yet"
        );
        stored += &kept;
    }
    stored
}

fn check(rules: &str, batches: &[&[&str]]) {
    let stored = stored(rules, batches);
    assert!(!stored.contains(SECRET), "rules {rules}\nsent {batches:#?}\nstored {stored}");
}

const SENSITIVE: &str = r#"{"inputs":"sensitive"}"#;

#[test]
fn e05_the_source_of_an_event_is_told_once_and_as_a_number() {
    for data in [
        r#"{"source":1,"source":5,"text":"S3CRET","id":8}"#,
        r#"{"source":"x","source":5,"text":"S3CRET","id":8}"#,
        r#"{"source":5,"text":"S3CRET","id":8,"source":1}"#,
        r#"{"\u0073ource":5,"text":"S3CRET","id":8}"#,
        r#"{"source":1,"\u0073ource":5,"text":"S3CRET","id":8}"#,
        r#"{"source":5.0,"text":"S3CRET","id":8}"#,
        r#"{"source":5e0,"text":"S3CRET","id":8}"#,
        r#"{"source":-0,"texts":[{"id":5,"value":"S3CRET"}]}"#,
        r#"{"source":0e0,"adds":[{"parentId":4,"nextId":null,"node":{"type":3,"textContent":"S3CRET","id":12}}]}"#,
        r#"{"source":99,"text":"S3CRET","id":8}"#,
        r#"{"source":99,"deep":{"text":["S3CRET"]},"id":8}"#,
        r#"{"source":1,"text":"S3CRET","id":8}"#,
        r#"{"source":7,"src":"S3CRET","id":8}"#,
        r#"{"source":5,"text":"","isChecked":"S3CRET","id":8}"#,
        r#"{"source":5,"text":["S3CRET"],"id":8}"#,
    ] {
        check(SENSITIVE, &[&[SNAPSHOT], &[&incremental(data)]]);
        check(SENSITIVE, &[&[SNAPSHOT, &incremental(data)]]);
    }
}

#[test]
fn e05_what_an_edge_could_not_read_leaves_nothing_open() {
    // It sets the masking attribute, and is nothing that rrweb writes.
    let late = mutation(
        "",
        r#"{"id":6,"attributes":{"data-clairvio-mask":""}}"#,
        r#"{"parentId":6,"node":{"type":3,"id":-2}}"#,
    );
    check(SENSITIVE, &[&[SNAPSHOT], &[&late], &[&mutation(r#"{"id":7,"value":"S3CRET"}"#, "", "")]]);
    let no_snapshot = r#"{"type":2,"data":{"node":{"childNodes":[]}},"timestamp":3}"#;
    check(SENSITIVE, &[&[SNAPSHOT], &[no_snapshot], &[&mutation(r#"{"id":7,"value":"S3CRET"}"#, "", "")]]);
    // Keys that are said twice, written with escapes, or in another order than rrweb has them.
    for node in [
        r#"{"type":2,"tagName":"p","childNodes":[{"type":3,"textContent":"S3CRET","id":4}],"attributes":{"data-clairvio-mask":""},"id":3}"#,
        r#"{"type":2,"tagName":"p","attributes":{},"attributes":{"data-clairvio-mask":""},"childNodes":[{"type":3,"textContent":"S3CRET","id":4}],"id":3}"#,
        r#"{"type":2,"tagName":"p","attributes":{},"\u0061ttributes":{"data-clairvio-mask":""},"childNodes":[{"type":3,"textContent":"S3CRET","id":4}],"id":3}"#,
        r#"{"textContent":"S3CRET","type":5,"id":3}"#,
        r#"{"type":2,"tagName":"p","attributes":{"DATA-Clairvio-Mask":"","title":"S3CRET"},"childNodes":[],"id":3}"#,
    ] {
        check(r#"{"inputs":"sensitive","text":"all"}"#, &[&[&snapshot_of(node)]]);
    }
}

#[test]
fn e05_more_rules_reveal_nothing() {
    let fields = [
        (r#"{"type":"password"}"#, "type"),
        (r#"{"type":"text","autocomplete":"cc-number"}"#, "autocomplete"),
        (r#"{"type":"text","name":"card_cvv"}"#, "name"),
        (r#"{"type":"text","id":"password"}"#, "id"),
    ];
    for (attributes, masked) in fields {
        let field = format!(r#"{{"type":2,"tagName":"input","attributes":{attributes},"childNodes":[],"id":3}}"#);
        let typed = incremental(r#"{"source":5,"text":"S3CRET","isChecked":false,"id":3}"#);
        for rules in [SENSITIVE.to_owned(), format!(r#"{{"inputs":"sensitive","attributes":["{masked}"]}}"#)] {
            check(&rules, &[&[&snapshot_of(&field)], &[&typed]]);
        }
    }
    let text = mutation(r#"{"id":7,"value":"S3CRET"}"#, "", "");
    for (rules, late) in [
        (r#"{"mask_selectors":[".private"],"attributes":["class"]}"#, r#"{"class":"private"}"#),
        (r##"{"mask_selectors":["#private"],"attributes":["id"]}"##, r#"{"id":"private"}"#),
        (r#"{"mask_selectors":["[data-x=one]"],"attributes":["data-x"]}"#, r#"{"data-x":"one"}"#),
        (r#"{"mask_selectors":["[href$='?private=1']"]}"#, r#"{"href":"https://a.example/x?private=1"}"#),
    ] {
        let change = mutation("", &format!(r#"{{"id":6,"attributes":{late}}}"#), "");
        check(rules, &[&[SNAPSHOT], &[&change], &[&text]]);
    }
}

#[test]
fn e05_selectors_match_what_rrweb_writes() {
    for (selector, node) in [
        (
            r#"a[href^='/patients/']"#,
            r#"{"type":2,"tagName":"a","attributes":{"href":"https://a.example/patients/7"},"childNodes":[{"type":3,"textContent":"S3CRET","id":4}],"id":3}"#,
        ),
        (
            r#"a[href^='patients']"#,
            r#"{"type":2,"tagName":"a","attributes":{"href":"https://a.example/x/patients/7"},"childNodes":[{"type":3,"textContent":"S3CRET","id":4}],"id":3}"#,
        ),
        (
            r#"p:nth-child(2)"#,
            r#"{"type":2,"tagName":"p","attributes":{},"childNodes":[{"type":3,"textContent":"S3CRET","id":4}],"id":3}"#,
        ),
        (
            r#"my\\.el"#,
            r#"{"type":2,"tagName":"div","attributes":{},"childNodes":[{"type":3,"textContent":"S3CRET","id":4}],"id":3}"#,
        ),
    ] {
        check(&format!(r#"{{"mask_selectors":["{selector}"]}}"#), &[&[&snapshot_of(node)]]);
    }
}

#[test]
fn e05_values_of_every_kind_are_masked_where_texts_are() {
    for (rules, attributes) in [
        (SENSITIVE, r#"{"type":"password","value":["S3CRET"]}"#),
        (SENSITIVE, r#"{"type":"password","value":{"x":"S3CRET"}}"#),
        (SENSITIVE, r#"{"srcdoc":["S3CRET"]}"#),
        (r#"{"text":"all"}"#, r#"{"title":["S3CRET"]}"#),
        (SENSITIVE, r#"{"style":{"background-image":"url(https://a.example/x?token=S3CRET)"}}"#),
    ] {
        let node = format!(r#"{{"type":2,"tagName":"input","attributes":{attributes},"childNodes":[],"id":3}}"#);
        check(rules, &[&[&snapshot_of(&node)]]);
        check(rules, &[&[SNAPSHOT], &[&mutation("", &format!(r#"{{"id":11,"attributes":{attributes}}}"#), "")]]);
    }
    let custom =
        r#"{"type":2,"tagName":"sl-input","attributes":{"type":"password","value":"S3CRET"},"childNodes":[],"id":3}"#;
    check("{}", &[&[&snapshot_of(custom)]]);
}

#[test]
fn e05_nodes_that_move_take_their_mask_along_and_find_it() {
    let moved = mutation(
        r#"{"id":7,"value":"S3CRET"}"#,
        "",
        r#"{"parentId":4,"nextId":null,"node":{"type":2,"tagName":"div","attributes":{},"childNodes":[],"id":6}}"#,
    );
    check(SENSITIVE, &[&[SNAPSHOT], &[&moved]]);
    let child_first = mutation(
        "",
        "",
        r#"{"parentId":6,"nextId":null,"node":{"type":3,"textContent":"S3CRET","id":7}},{"parentId":4,"nextId":null,"node":{"type":2,"tagName":"div","attributes":{},"childNodes":[],"id":6}}"#,
    );
    check(SENSITIVE, &[&[SNAPSHOT], &[&child_first]]);
    check(SENSITIVE, &[&[SNAPSHOT, &child_first]]);
    let out = mutation("", "", r#"{"parentId":6,"nextId":null,"node":{"type":3,"textContent":"S3CRET","id":5}}"#);
    check(SENSITIVE, &[&[SNAPSHOT], &[&out]]);
}

#[test]
fn e05_of_what_is_blocked_nothing_is_told() {
    let change = mutation(
        "",
        r#"{"id":9,"attributes":{"style":"background:url(/S3CRET)","class":"S3CRET","src":"/S3CRET"}}"#,
        "",
    );
    check(SENSITIVE, &[&[SNAPSHOT], &[&change]]);
    let below = mutation(
        "",
        "",
        r#"{"parentId":9,"nextId":null,"node":{"type":2,"tagName":"img","attributes":{"src":"https://a.example/S3CRET.png"},"childNodes":[],"id":12}}"#,
    );
    check(SENSITIVE, &[&[SNAPSHOT], &[&below]]);
    check(SENSITIVE, &[&[SNAPSHOT, &below, &change]]);
    // Deep inside, of nodes that only the snapshot told of; whichever of the two looked at it.
    let inside = mutation(
        r#"{"id":13,"value":"S3CRET"}"#,
        r#"{"id":10,"attributes":{"src":"/S3CRET"}}"#,
        r#"{"parentId":10,"nextId":null,"node":{"type":2,"tagName":"S3CRET","attributes":{"src":"/S3CRET"},"childNodes":[],"id":14}}"#,
    );
    for batches in [
        &[[SNAPSHOT].as_slice(), &[&below], &[&inside]].as_slice(),
        &[[SNAPSHOT, &below, &inside].as_slice()].as_slice(),
    ] {
        check(SENSITIVE, batches);
        let stored = stored(SENSITIVE, batches);
        assert!(
            stored.contains(r#""texts":[],"attributes":[],"removes":[],"adds":[]"#),
            "more than a box is left: {stored}"
        );
    }
}

#[test]
fn e05_that_a_choice_was_made_is_not_told() {
    let option = |attributes: &str| {
        format!(r#"{{"type":2,"tagName":"option","attributes":{attributes},"childNodes":[],"id":3}}"#)
    };
    for (attributes, kept) in [
        (r#"{"value":"a","selected":true}"#, r#""attributes":{"value":"***"}"#),
        (r#"{"selected":true,"value":"a"}"#, r#""attributes":{"value":"***"}"#),
        (r#"{"class":"c","selected":true,"value":"a"}"#, r#""attributes":{"class":"c","value":"***"}"#),
    ] {
        let stored = stored("{}", &[&[&snapshot_of(&option(attributes))]]);
        assert!(stored.contains(kept), "{attributes}: {stored}");
    }
    let stored = stored(
        "{}",
        &[&[
            SNAPSHOT,
            &mutation(
                "",
                "",
                &format!(r#"{{"parentId":4,"nextId":null,"node":{}}}"#, option(r#"{"checked":true,"class":"c"}"#)),
            ),
        ]],
    );
    assert!(stored.contains(r#""attributes":{"class":"c"}"#), "{stored}");
}

#[test]
fn e05_headers_and_bodies_are_masked_however_they_are_listed() {
    for requests in [
        r#"[{"requestHeaders":{"set-cookie":["sid=S3CRET"],"authorization":["S3CRET"]}}]"#,
        r#"[{"requestHeaders":[{"name":"Authorization","value":"S3CRET"}]}]"#,
        r#"[{"responseHeaders":[["authorization","S3CRET"]]}]"#,
        r#"[{"requestBody":{"a":"S3CRET"},"responseBody":["S3CRET"],"response":"S3CRET"}]"#,
    ] {
        for plugin in ["rrweb/network@1", "rrweb/network@2", "clairvio/network@1"] {
            let event = format!(
                r#"{{"type":6,"data":{{"plugin":"{plugin}","payload":{{"requests":{requests}}}}},"timestamp":1}}"#
            );
            check("{}", &[&[&event]]);
        }
    }
    let twice = r#"{"type":6,"data":{"plugin":"x","plugin":"rrweb/network@1","payload":{"requests":[{"requestBody":"S3CRET"}]}},"timestamp":1}"#;
    check("{}", &[&[twice]]);
}

/// A state cannot be made to cost more than its size, nor a selector more than its steps: by outcome, for the time is the machine's.
#[test]
fn odd_ids_and_large_classes_end_in_what_is_masked() {
    let nodes: Vec<String> =
        (0..60_000).rev().map(|id| format!(r#"{{"type":3,"textContent":"a","id":{}}}"#, 10 + id * 2)).collect();
    let rules = Rules::of_json(SENSITIVE);
    let mut state = StreamState::new();
    let snapshot = snapshot_of(&nodes.join(",")) + "\n";
    assert!(mask(snapshot.as_bytes(), &rules, &mut state).payload.is_none(), "nothing of it has to be masked");
    assert!(state.encode().len() <= schemas::limits::STREAM_STATE_BYTES_MAX);
    let classes = "c ".repeat(40_000);
    let inner = r#"{"type":2,"tagName":"b","attributes":{"class":"n"},"childNodes":[{"type":3,"textContent":"S3CRET","id":5}],"id":4}"#;
    let card =
        format!(r#"{{"type":2,"tagName":"p","attributes":{{"class":"{classes}card"}},"childNodes":[{inner}],"id":3}}"#);
    check(r#"{"mask_selectors":[".card .n"]}"#, &[&[&snapshot_of(&card)]]);
}
