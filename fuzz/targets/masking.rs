//! Masking: whatever bodies and states hold, nothing is masked twice, no event goes or comes, more rules reveal nothing, and what is known
//! of a stream stays small.
#![no_main]

use std::sync::LazyLock;

use fuzz::{BODY, plant};
use libfuzzer_sys::fuzz_target;
use masking::{Rules, StreamState, mask, read};
use schemas::limits::STREAM_STATE_BYTES_MAX;

static RULES: LazyLock<Vec<Rules>> = LazyLock::new(|| {
    [
        r#"{"inputs":"sensitive"}"#,
        r#"{}"#,
        r#"{"text":"all"}"#,
        r##"{"inputs":"sensitive","mask_selectors":[".a","p > b","p:not([title])"],"block_selectors":["#b"],"attributes":["title"]}"##,
        r#"{"network_bodies":true,"redact_keys":["status"]}"#,
    ]
    .map(Rules::of_json)
    .into()
});

const SNAPSHOT: &str = r#"{"type":2,"data":{"node":{"type":0,"childNodes":[{"type":2,"tagName":"p","attributes":{"class":"a","title":"t"},"childNodes":[{"type":3,"textContent":"x","id":3},{"type":2,"tagName":"input","attributes":{"type":"password","value":"v"},"childNodes":[],"id":4}],"id":2},{"type":2,"tagName":"div","attributes":{"data-clairvio-mask":""},"childNodes":[{"type":5,"textContent":"c","id":6}],"id":5}],"id":1},"initialOffset":{"left":0,"top":0}},"timestamp":1}"#;
const MUTATION: &str = r#"{"type":3,"data":{"source":0,"texts":[{"id":3,"value":"y"}],"attributes":[{"id":2,"attributes":{"class":"b","style":{"color":"red"}}}],"removes":[],"adds":[{"parentId":2,"nextId":null,"node":{"type":2,"tagName":"iframe","attributes":{"src":"/f?q=1"},"childNodes":[],"id":7}}]},"timestamp":2}"#;

fn seeds() -> impl Iterator<Item = Vec<u8>> {
    let both = format!("{SNAPSHOT}\n{MUTATION}\n");
    let odd = r#"[{"data":{"source":15,"id":5,"styles":[{"styleId":1,"rules":[{"rule":".a{content:\"x\"}","index":0}]}]},"type":3,"timestamp":1},{"type":3,"data":{"source":9,"id":5,"type":0,"commands":[{"property":"fillText","args":["x"]}]},"timestamp":1}]"#;
    [BODY.to_owned(), both, odd.to_owned()]
        .into_iter()
        .enumerate()
        .map(|(rules, body)| [&[rules as u8], body.as_bytes()].concat())
}

fuzz_target!(init: plant(seeds()), |data: &[u8]| {
    let Some((choice, body)) = data.split_first() else { return };
    let rules = &RULES[usize::from(*choice) % RULES.len()];
    let Ok(batch) = read(body, rules) else { return };
    let lines = |payload: &[u8]| payload.iter().filter(|byte| **byte == b'\n').count();
    assert_eq!(lines(&batch.payload), batch.facts.events as usize);
    let again = read(&batch.payload, rules).expect("what was taken in is taken in again");
    assert!(again.payload == batch.payload, "an edge masks what it masked");
    for mut state in [StreamState::new(), StreamState::missed()] {
        let stored = mask(&batch.payload, rules, &mut state);
        let kept = stored.payload.unwrap_or_else(|| batch.payload.clone());
        assert_eq!(lines(&kept), batch.facts.events as usize, "an event went or came");
        let encoded = state.encode();
        assert!(encoded.len() <= STREAM_STATE_BYTES_MAX);
        assert_eq!(StreamState::decode(&encoded).map(|state| state.encode()), Ok(encoded));
        let mut other = StreamState::missed();
        let more = mask(&kept, rules, &mut other).payload.unwrap_or_else(|| kept.clone());
        let most = mask(&more, rules, &mut StreamState::missed()).payload;
        assert!(most.is_none(), "a second look finds more");
        assert!(read(&kept, rules).is_ok_and(|read| read.payload == kept), "an edge finds more in what is stored");
    }
});
