//! Bodies of events: what the edge takes in is stored in one form, and the batcher can read its record.
#![no_main]

use engine::events::shallow;
use fuzz::{BODY, consent, plant, session};
use libfuzzer_sys::fuzz_target;
use masking::pages::origin_and_path;
use masking::{Batch, Rules};
use schemas::limits::{BATCH_EVENTS_MAX, BATCH_URLS_MAX};
use schemas::record::{Header, decode, encode};
use schemas::{BatchFacts, StreamSeq};

fn seeds() -> impl Iterator<Item = Vec<u8>> {
    let lines = "{\"type\":3,\"timestamp\":1}\r\n\n {\"timestamp\":0,\"type\":99,\"data\":\"a\\nb\"}";
    [BODY, lines, "[]", "[[3,1]]", r#"{"type":6,"timestamp":1e3,"data":{"plugin":"x","payload":7}}"#]
        .into_iter()
        .map(|body| body.as_bytes().to_vec())
}

/// A body, as the edge reads it.
fn read(body: &[u8]) -> Option<Batch> {
    masking::read(body, &Rules::default()).ok()
}

/// What is stored of a batch, whether masking made it so or it came so.
fn stored(batch: Option<Batch>) -> Option<(Vec<u8>, BatchFacts)> {
    let Batch { payload, facts, .. } = batch?;
    Some((payload, BatchFacts { masked: 0, dropped: 0, ..facts }))
}

fuzz_target!(init: plant(seeds()), |data: &[u8]| {
    let Some(batch) = read(data) else { return };
    let facts = &batch.facts;
    let text = std::str::from_utf8(&batch.payload).expect("a payload is text");
    assert!(text.is_empty() || text.ends_with('\n'), "the last event has no newline");
    assert!(!text.contains('\r'), "a line break was kept");
    assert!(text.len() <= 6 * data.len() + 128, "a payload outgrew its body");

    let lines: Vec<&str> = text.lines().collect();
    let events: Vec<_> = lines.iter().map(|line| shallow(line.as_bytes()).expect("a stored event reads")).collect();
    assert!(events.len() <= BATCH_EVENTS_MAX);
    assert_eq!(facts.events as usize, events.len());
    assert_eq!(facts.kinds.iter().sum::<u32>(), facts.events);
    assert_eq!(events.iter().map(|event| event.timestamp).min().unwrap_or(0), facts.ts_min);
    assert_eq!(events.iter().map(|event| event.timestamp).max().unwrap_or(0), facts.ts_max);
    assert_eq!(facts.raw_bytes as usize, text.len());
    assert_eq!(facts.content_hash, BatchFacts::hash(text.as_bytes()));

    assert!(facts.clicks <= facts.kinds[3] && facts.keypresses <= facts.kinds[3] - facts.clicks);
    assert!(facts.errors + facts.console.iter().sum::<u32>() <= facts.kinds[6]);
    assert!(facts.urls.len() <= BATCH_URLS_MAX.min(facts.pages as usize));
    assert!(facts.urls.iter().all(|url| origin_and_path(url).as_deref() == Some(url)), "more than a page is kept");
    let interactions = facts.interacted.map_or(facts.ts_min..=facts.ts_max, |(first, last)| first.min(last)..=first.max(last));
    assert!(facts.ts_min <= *interactions.start() && *interactions.end() <= facts.ts_max);
    assert!(facts.interacted.is_some() || facts.active_ms == 0);

    let again = stored(read(text.as_bytes()));
    assert_eq!(again, stored(read(format!("[{}]", lines.join(",")).as_bytes())), "an array is read as another");
    assert!(again.is_some_and(|(payload, facts)| {
        payload == batch.payload && facts == BatchFacts { masked: 0, dropped: 0, ..batch.facts.clone() }
    }), "a stored batch is read as another");

    let place = StreamSeq::new(0, 0).expect("a stream of 31 bits");
    let header = Header::Batch { key: session(), consent: consent(), place, end: false, masking: None, facts: batch.facts.clone() };
    assert_eq!(decode(&encode(&header)).map(|(read, _)| read), Ok(header));
});
