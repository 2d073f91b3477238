//! Goal: what is found in events is what a plain reading of them finds, whatever shape they have. Method: tables of the
//! shapes that recorders write and of odd ones; and random values, compared with a reading that builds trees of values.

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::pages::origin_and_path;
use crate::pass::NETWORK_PLUGINS;
use crate::{Batch, Rules};

use super::*;

fn read(body: &[u8]) -> Result<Batch, schemas::codes::Refusal> {
    crate::read(body, &Rules::default())
}

fn facts_of(events: &[Value]) -> BatchFacts {
    read(Value::from(events).to_string().as_bytes()).unwrap().facts
}

fn event(kind: u64, at: i64, data: Value) -> Value {
    json!({ "type": kind, "timestamp": at, "data": data })
}

fn interaction(at: i64) -> Value {
    event(3, at, json!({ "source": 1, "positions": [{ "x": 1, "y": 2, "id": 3, "timeOffset": -50 }] }))
}

#[test]
fn active_time_is_that_between_interactions_without_idling() {
    let check = |times: &[i64], active_ms, interacted| {
        let events: Vec<Value> = times.iter().map(|at| interaction(*at)).collect();
        let facts = facts_of(&events);
        assert_eq!((facts.active_ms, facts.interacted), (active_ms, interacted), "{times:?}");
    };
    check(&[], 0, None);
    check(&[7], 0, Some((7, 7)));
    check(&[0, 400, 5_400], 5_400, Some((0, 5_400)));
    check(&[0, 400, 5_401], 400, Some((0, 5_401)));
    // A clock that goes back: neighbours are those in the order of the batch.
    check(&[1_000, 400, 700, 60_000, 60_010], 310, Some((1_000, 60_010)));
    check(&[-9_007_199_254_740_992, 9_007_199_254_740_992], 0, Some((-9_007_199_254_740_992, 9_007_199_254_740_992)));
}

#[test]
fn sources_are_a_persons_doing_or_not() {
    for (source, is_one) in [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16].into_iter().zip([
        false, true, true, true, false, true, true, true, false, false, false, false, true, false, true, false, false,
    ]) {
        let facts = facts_of(&[event(3, 9, json!({ "source": source }))]);
        assert_eq!(facts.interacted.is_some(), is_one, "source {source}");
    }
}

#[test]
fn clicks_and_inputs_are_counted_and_odd_data_counts_as_nothing() {
    let check = |data: Value, clicks, keypresses, interacts: bool| {
        let facts = facts_of(&[event(3, 9, data.clone())]);
        assert_eq!(
            (facts.clicks, facts.keypresses, facts.interacted.is_some()),
            (clicks, keypresses, interacts),
            "{data}"
        );
    };
    check(json!({ "source": 2, "type": 2, "id": 5, "x": 1, "y": 2 }), 1, 0, true);
    check(json!({ "type": 2, "id": 5, "source": 2 }), 1, 0, true);
    // Mouse up and down, double click, focus: a person's doing, and no click.
    for kind in [0, 1, 3, 4, 5, 9] {
        check(json!({ "source": 2, "type": kind }), 0, 0, true);
    }
    check(json!({ "source": 5, "text": "x", "isChecked": false, "id": 5 }), 0, 1, true);
    check(json!({ "source": 0, "adds": [{ "source": 2, "type": 2 }] }), 0, 0, false);
    check(json!({ "source": 2 }), 0, 0, true);
    check(json!({ "source": 2, "type": "2" }), 0, 0, true);
    for odd in [
        json!(null),
        json!(7),
        json!("source"),
        json!([2, 2]),
        json!([{ "source": 2, "type": 2 }]),
        json!({}),
        json!({ "source": null, "type": 2 }),
        json!({ "source": "2", "type": 2 }),
        json!({ "source": 2.5, "type": 2 }),
        json!({ "source": -2, "type": 2 }),
        json!({ "source": { "source": 2 }, "type": 2 }),
        json!({ "Source": 2, "type": 2 }),
    ] {
        check(odd, 0, 0, false);
    }
    let facts = facts_of(&[json!({ "type": 3, "timestamp": 9 }), json!({ "type": 4, "timestamp": 9 })]);
    assert_eq!((facts.interacted, facts.pages, facts.urls.len()), (None, 1, 0));
}

#[test]
fn pages_are_kept_by_origin_and_path_each_once_in_order() {
    let meta = |href: Value| event(4, 1, json!({ "width": 1280, "href": href, "height": 720 }));
    let facts = facts_of(&[
        meta(json!("https://app.example/b?token=secret#frag")),
        meta(json!("https://app.example/a")),
        meta(json!("https://app.example/b?other")),
        meta(json!("https:\\/\\/app.example/no-page")),
        meta(json!("about:blank")),
        meta(json!(7)),
        event(4, 1, json!([])),
    ]);
    assert_eq!(facts.pages, 7, "each opened page counts, also one without a name");
    assert_eq!(facts.urls.iter().collect::<Vec<_>>(), ["https://app.example/b", "https://app.example/a"]);
    // As some serializers write a slash.
    let escaped = r#"{"type":4,"timestamp":1,"data":{"href":"https:\/\/app.example\/c\u003fq"}}"#;
    assert_eq!(read(escaped.as_bytes()).unwrap().facts.urls, Urls::new(["https://app.example/c"]));

    let many: Vec<Value> = (0..BATCH_URLS_MAX + 5).map(|n| meta(json!(format!("https://app.example/{n}")))).collect();
    let facts = facts_of(&many);
    assert_eq!((facts.pages as usize, facts.urls.len()), (BATCH_URLS_MAX + 5, BATCH_URLS_MAX));
    assert_eq!(facts.urls.iter().last(), Some(format!("https://app.example/{}", BATCH_URLS_MAX - 1).as_str()));
}

#[test]
fn console_messages_are_counted_by_level() {
    let message = |level: Value| {
        event(
            6,
            1,
            json!({ "plugin": "rrweb/console@1", "payload": { "level": level, "trace": [], "payload": ["x"] } }),
        )
    };
    let levels = ["error", "warn", "warn", "info", "log", "log", "log", "debug", "trace", "Error", ""];
    let facts = facts_of(&levels.map(|level| message(json!(level))));
    assert_eq!((facts.errors, facts.console), (1, [2, 1, 3, 4]));
    let odd = [
        message(json!(3)),
        message(json!({ "error": null })),
        event(6, 1, json!({ "plugin": "rrweb/console@2", "payload": { "level": "error" } })),
        event(6, 1, json!({ "plugin": 1, "payload": { "level": "error" } })),
        event(6, 1, json!({ "plugin": "rrweb/console@1", "payload": "error" })),
        event(6, 1, json!({ "plugin": "rrweb/console@1", "level": "error" })),
        event(5, 1, json!({ "plugin": "rrweb/console@1", "payload": { "level": "error" } })),
        event(6, 1, json!("rrweb/console@1")),
    ];
    let facts = facts_of(&odd);
    assert_eq!((facts.errors, facts.console, facts.kinds[6]), (0, [0; 4], 7));
    let turned = r#"{"type":6,"timestamp":1,"data":{"payload":{"level":"err\u006fr"},"plugin":"rrweb\/console@1"}}"#;
    assert_eq!(read(turned.as_bytes()).unwrap().facts.errors, 1);
}

#[test]
fn failed_requests_are_counted() {
    let check = |request: Value, failed| {
        for plugin in NETWORK_PLUGINS {
            let payload = json!({ "isInitial": false, "requests": [{ "status": 200 }, request] });
            let facts = facts_of(&[event(6, 1, json!({ "plugin": plugin, "payload": payload }))]);
            assert_eq!(facts.failed_requests, failed, "{request}");
        }
    };
    check(json!({ "kind": "fetch", "method": "GET", "url": "http://a/x", "status": 404, "duration_ms": 3 }), 1);
    check(json!({ "name": "http://a/x", "initiatorType": "fetch", "responseStatus": 500, "status": 500 }), 1);
    check(json!({ "name": "http://a/x", "responseStatus": 403 }), 1);
    check(json!({ "status": 0, "error": "network" }), 1);
    check(json!({ "status": 0 }), 1);
    check(json!({ "error": "abort" }), 1);
    check(json!({ "status": 200, "error": true }), 1);
    check(json!({ "status": 399 }), 0);
    check(json!({ "status": 200, "error": "" }), 0);
    check(json!({ "status": 204, "error": null }), 0);
    // Of another origin, which does not tell.
    check(json!({ "name": "http://a/x.png", "responseStatus": 0 }), 0);
    check(json!({ "status": "404" }), 0);
    check(json!({ "status": 404.5 }), 0);
    check(json!({ "status": [404] }), 0);
    check(json!({ "response": { "status": 404 } }), 0);
    check(json!([404]), 0);
    check(json!(404), 0);
    for payload in
        [json!(null), json!([{ "status": 404 }]), json!({ "requests": { "status": 404 } }), json!({ "status": 404 })]
    {
        let facts = facts_of(&[event(6, 1, json!({ "plugin": NETWORK_PLUGINS[0], "payload": payload }))]);
        assert_eq!(facts.failed_requests, 0, "{payload}");
    }
    let other = event(6, 1, json!({ "plugin": "other", "payload": { "requests": [{ "status": 404 }] } }));
    assert_eq!(facts_of(&[other]).failed_requests, 0);
}

/// The same by trees of values: a plain reading.
fn plainly(events: &[Value]) -> BatchFacts {
    let mut facts = BatchFacts::default();
    let mut last: Option<i64> = None;
    let mut urls = Vec::new();
    for event in events {
        let (at, data) = (event["timestamp"].as_i64().unwrap(), &event["data"]);
        match event["type"].as_u64().unwrap() {
            3 => {
                let source = data["source"].as_u64().unwrap_or(0);
                if ![1, 2, 3, 5, 6, 7, 12, 14].contains(&source) {
                    continue;
                }
                let gap = at - last.unwrap_or(at);
                facts.active_ms += if (0..=5_000).contains(&gap) { gap as u32 } else { 0 };
                facts.interacted = Some((facts.interacted.map_or(at, |(first, _)| first), at));
                last = Some(at);
                facts.clicks += u32::from(source == 2 && data["type"] == 2);
                facts.keypresses += u32::from(source == 5);
            }
            4 => urls.extend(data["href"].as_str().and_then(origin_and_path)),
            6 if data["plugin"] == "rrweb/console@1" => match data["payload"]["level"].as_str() {
                Some("error") => facts.errors += 1,
                Some("warn") => facts.console[0] += 1,
                Some("info") => facts.console[1] += 1,
                Some("log") => facts.console[2] += 1,
                Some(_) => facts.console[3] += 1,
                None => {}
            },
            6 if data["plugin"] == "rrweb/network@1" => {
                let failed = |request: &&Value| {
                    let status = request["status"].as_u64();
                    let said = &request["error"];
                    status.is_some_and(|status| status == 0 || status >= 400)
                        || request["responseStatus"].as_u64().is_some_and(|status| status >= 400)
                        || *said == true
                        || said.as_str().is_some_and(|error| !error.is_empty())
                };
                let requests = data["payload"]["requests"].as_array();
                facts.failed_requests += requests.map_or(0, |all| all.iter().filter(failed).count()) as u32;
            }
            _ => {}
        }
    }
    facts.urls = Urls::new(urls.iter().map(String::as_str));
    facts
}

/// What only this module finds.
fn found(facts: &BatchFacts) -> BatchFacts {
    BatchFacts {
        errors: facts.errors,
        active_ms: facts.active_ms,
        interacted: facts.interacted,
        clicks: facts.clicks,
        keypresses: facts.keypresses,
        console: facts.console,
        failed_requests: facts.failed_requests,
        urls: facts.urls.clone(),
        ..BatchFacts::default()
    }
}

/// Values of all shapes, with the names and texts that mean something in all places.
fn any_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (0u64..18).prop_map(Value::from),
        prop::sample::select(vec![200, 400, 404, -1]).prop_map(Value::from),
        prop::sample::select(vec![
            "error",
            "warn",
            "rrweb/console@1",
            "rrweb/network@1",
            "https://a.example/x?y",
            "https://a.example/\"\u{e9}",
            ""
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            fields().prop_flat_map(move |names| {
                prop::collection::vec(inner.clone(), names.len())
                    .prop_map(move |values| names.iter().copied().map(str::to_owned).zip(values).collect::<Value>())
            }),
        ]
    })
}

fn fields() -> impl Strategy<Value = Vec<&'static str>> {
    let names = vec![
        "source",
        "type",
        "href",
        "plugin",
        "payload",
        "level",
        "requests",
        "status",
        "responseStatus",
        "error",
        "x",
    ];
    prop::sample::subsequence(names, 0..6).prop_shuffle()
}

/// Events that mostly are what recorders write.
fn any_event() -> impl Strategy<Value = Value> {
    let request = prop_oneof![
        (0u64..600).prop_map(|status| json!({ "url": "x", "status": status })),
        (0u64..600).prop_map(|status| json!({ "responseStatus": status })),
        any_value(),
    ];
    let data = prop_oneof![
        (0u64..17, 0u64..6).prop_map(|(source, kind)| json!({ "source": source, "type": kind, "id": 1 })),
        "[a-z]{0,3}".prop_map(|path| json!({ "href": format!("https://a.example/{path}?q={path}") })),
        any_value().prop_map(|level| json!({ "plugin": "rrweb/console@1", "payload": { "level": level } })),
        prop::collection::vec(request, 0..4)
            .prop_map(|requests| json!({ "plugin": "rrweb/network@1", "payload": { "requests": requests } })),
        any_value(),
    ];
    (prop::sample::select(vec![3u64, 3, 4, 5, 6, 6]), 0i64..30_000, data)
        .prop_map(|(kind, at, data)| event(kind, at, data))
}

proptest! {
    #[test]
    fn what_is_found_is_what_a_plain_reading_finds(events in prop::collection::vec(any_event(), 0..30)) {
        prop_assert_eq!(found(&facts_of(&events)), plainly(&events));
    }

    /// Whatever `data` is: the event is kept, and counts as one of its type.
    #[test]
    fn odd_data_makes_no_event_invalid(kind in 0u64..8, data in any_value()) {
        let facts = facts_of(&[event(kind, 1, data)]);
        prop_assert_eq!((facts.events, facts.kinds[kind as usize]), (1, 1));
    }
}

/// The golden files' facts are what the edge finds in their events: a reader of the page and of those files learns the same.
#[test]
fn golden_files_tell_what_is_found() {
    let expected = include_str!("../../../../schemas/golden/v1-facts/expected.json");
    let expected: Value = serde_json::from_str(expected).unwrap();
    let batches = expected["files"]["shared.bin"]["chunks"][0]["batches"].as_array().unwrap();
    assert_eq!(batches.len(), 2);
    for batch in batches {
        let events: Vec<&str> =
            batch["events"].as_array().unwrap().iter().map(|event| event.as_str().unwrap()).collect();
        let (found, golden) = (read(events.join("\n").as_bytes()).unwrap().facts, &batch["facts"]);
        // The files are of a release that masked nothing.
        let unmasked = events.join("\n") + "\n";
        let found = json!({
            "events": found.events,
            "raw_bytes": unmasked.len(),
            "ts_min": found.ts_min,
            "ts_max": found.ts_max,
            "kinds": found.kinds,
            "pages": found.pages,
            "errors": found.errors,
            "full_snapshot": found.full_snapshot,
            "content_hash": format!("{:016x}", BatchFacts::hash(unmasked.as_bytes())),
            "active_ms": found.active_ms,
            "interacted": found.interacted,
            "clicks": found.clicks,
            "keypresses": found.keypresses,
            "console": found.console,
            "failed_requests": found.failed_requests,
            "urls": found.urls.iter().collect::<Vec<_>>(),
        });
        assert_eq!(found, *golden);
    }
}
