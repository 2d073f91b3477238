//! Footers of session objects. An input is the body's length, then the footer before compression, or a whole footer.
#![no_main]

use fuzz::{facts, frame, plant, session};
use libfuzzer_sys::fuzz_target;
use schemas::ObjectId;
use schemas::codec::decompress;
use schemas::limits::{FOOTER_RAW_BYTES_MAX, FRAME_RAW_BYTES_MAX};
use schemas::session_object::{BatchInfo, Footer, Frame, Segment, StreamInfo};
use uuid::Uuid;

fn seeds() -> impl Iterator<Item = Vec<u8>> {
    let segment = |position| Segment { stream: 1, seq: 0, position, events: 2, bytes: 32 };
    let event_frame = |at, full_snapshot| Frame {
        at,
        len: 20,
        raw_len: 64,
        ts_min: -1,
        ts_max: 9,
        full_snapshot,
        segments: vec![segment(0), segment(2)],
    };
    let batches = vec![BatchInfo { seq: 0, end: false, facts: facts() }];
    let footer = Footer {
        object: ObjectId(Uuid::from_u128(5)),
        key: session(),
        chunk: [6; 16],
        frames: vec![event_frame(5, true), event_frame(25, false)],
        streams: vec![StreamInfo { stream: 1, batches }],
        duplicates: 1,
        conflicts: 0,
    };
    // No writer makes this one: its sum fits only if it is taken in 32 bits.
    let mut wrapping = footer.clone();
    wrapping.frames[0].segments[0].bytes = u32::MAX;
    wrapping.frames[0].raw_len = 31;
    let raw = |footer: &Footer| decompress(&footer.encode(), FOOTER_RAW_BYTES_MAX).expect("an own footer decompresses");
    [raw(&footer), raw(&wrapping), footer.encode()]
        .into_iter()
        .map(|footer| [45u64.to_le_bytes().as_slice(), &footer].concat())
}

fn check(footer: &Footer, body_len: u64) {
    for frame in &footer.frames {
        assert!(
            frame.at.checked_add(u64::from(frame.len)).is_some_and(|end| end <= body_len),
            "a frame beyond the body"
        );
        let filled: u64 = frame.segments.iter().map(|segment| u64::from(segment.bytes)).sum();
        assert_eq!(filled, u64::from(frame.raw_len), "segments do not fill their frame");
        assert!(frame.raw_len as usize <= FRAME_RAW_BYTES_MAX, "a frame of more than any reader takes");
    }
    let written = footer.encode();
    assert_eq!(Footer::decode(&written, body_len).as_ref(), Ok(footer));
}

fuzz_target!(init: plant(seeds()), |data: &[u8]| {
    let Some((body_len, rest)) = data.split_first_chunk() else { return };
    let body_len = u64::from_le_bytes(*body_len);
    if let Ok(footer) = Footer::decode(rest, body_len) {
        check(&footer, body_len);
    }
    if let Ok(footer) = Footer::decode(&frame(rest), body_len) {
        let segments: usize = footer.frames.iter().map(|frame| 1 + frame.segments.len()).sum();
        let batches: usize = footer.streams.iter().map(|stream| 1 + stream.batches.len()).sum();
        assert!(segments + batches <= rest.len(), "more items than bytes");
        check(&footer, body_len);
        let longer = [rest, &[0]].concat();
        for other in [&rest[..rest.len() - 1], &longer] {
            assert!(Footer::decode(&frame(other), body_len).is_err(), "another length decodes too");
        }
    }
});
