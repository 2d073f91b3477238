//! Footers of shared objects. An input is the body's length, then the footer before compression, or a whole footer.
#![no_main]

use fuzz::{facts, frame, plant, session};
use libfuzzer_sys::fuzz_target;
use schemas::ObjectId;
use schemas::codec::decompress;
use schemas::limits::FOOTER_RAW_BYTES_MAX;
use schemas::shared_object::{BatchEntry, Chunk, Footer, QuarantineReason, Quarantined, SessionFilter};
use uuid::Uuid;

fn seeds() -> impl Iterator<Item = Vec<u8>> {
    let batches = (0..2).map(|seq| BatchEntry { seq, end: seq == 1, offset: 11, len: 40, facts: facts() }).collect();
    let chunks = vec![Chunk { key: session(), stream: 9, id: [6; 16], at: 5, batches }];
    let quarantined =
        vec![Quarantined { offset: 12, record_key: vec![9; 16], at: 85, len: 5, reason: QuarantineReason::Header }];
    let footer = Footer {
        object: ObjectId(Uuid::from_u128(5)),
        partition: 3,
        offset_first: 10,
        offset_next: 14,
        chunks,
        quarantined,
    };
    // No writer makes these: their ranges end beyond 64 bits.
    let (mut far_chunk, mut far_record) = (footer.clone(), footer.clone());
    far_chunk.chunks[0].at = u64::MAX;
    far_record.quarantined[0].at = u64::MAX;
    let raw = |footer: &Footer| decompress(&footer.encode(), FOOTER_RAW_BYTES_MAX).expect("an own footer decompresses");
    [raw(&footer), raw(&far_chunk), raw(&far_record), footer.encode()]
        .into_iter()
        .map(|footer| [90u64.to_le_bytes().as_slice(), &footer].concat())
}

fn check(footer: &Footer, body_len: u64) {
    let ranges = footer.chunks.iter().map(|chunk| (chunk.at, chunk.len()));
    for (at, len) in ranges.chain(footer.quarantined.iter().map(|record| (record.at, u64::from(record.len)))) {
        assert!(at.checked_add(len).is_some_and(|end| end <= body_len), "a range beyond the body");
    }
    let written = footer.encode();
    assert_eq!(Footer::decode(&written, body_len).as_ref(), Ok(footer));
    let keys: Vec<_> = footer.chunks.iter().map(|chunk| chunk.key).collect();
    let filter = SessionFilter::build(keys.iter());
    assert!(keys.iter().all(|key| filter.may_contain(key)), "the filter hides a session");
}

fuzz_target!(init: plant(seeds()), |data: &[u8]| {
    let Some((body_len, rest)) = data.split_first_chunk() else { return };
    let body_len = u64::from_le_bytes(*body_len);
    if let Ok(footer) = Footer::decode(rest, body_len) {
        check(&footer, body_len);
    }
    if let Ok(footer) = Footer::decode(&frame(rest), body_len) {
        let items: usize = footer.chunks.iter().map(|chunk| 1 + chunk.batches.len()).sum();
        assert!(items + footer.quarantined.len() <= rest.len(), "more items than bytes");
        check(&footer, body_len);
        let longer = [rest, &[0]].concat();
        for other in [&rest[..rest.len() - 1], &longer] {
            assert!(Footer::decode(&frame(other), body_len).is_err(), "another length decodes too");
        }
    }
    // A row's filter, whatever is in it, answers.
    SessionFilter::from_bytes(rest.to_vec()).may_contain(&session());
});
