//! What stands in the files of what masking brought within version 1: notes of streams behind frames, and what facts tell of it.
//! It is read by the generator alone.

use schemas::BatchFacts;
use schemas::object::ObjectKind;
use schemas::paths::ObjectKey;
use schemas::shared_object::{BatchEntry, Chunk};
use schemas::stream_note::{self, StreamNote};
use serde_json::json;

use super::super::reader::Keys;
use super::super::samples::{self, Run};
use super::v1::{Made, START, click, full_snapshot, one};
use crate::frames::{ChunkContext, ChunkKind, seal_chunk};
use crate::keyring::KeyVersion;
use crate::objects::StorageKey;

/// The folder of these files.
pub(super) const FOLDER: &str = "v1-notes";

/// The format of the file that has a frame with notes as it is before sealing.
pub(super) const FRAME: &str = "frame with notes";

const SHARED_ID: u128 = 0x0199_0000_0011_7000_8000_0000_0000_0041;
const SESSION_ID: u128 = 0x0199_0000_0013_7000_8000_0000_0000_0043;

fn input(at: u64, text: &str) -> String {
    format!(r#"{{"type":3,"timestamp":{at},"data":{{"source":5,"text":"{text}","isChecked":false,"id":4}}}}"#)
}

fn note(stream: u32, next: u64, state: &[u8]) -> StreamNote {
    StreamNote { stream, next, state: state.to_vec() }
}

/// The facts of these events, of which one had another text when it was sent, and one was more than there is of it.
fn masked(stored: &[String], sent: &[String]) -> BatchFacts {
    let facts = samples::facts(stored);
    BatchFacts {
        content_hash: BatchFacts::hash(&samples::raw(sent)),
        stored_hash: Some(facts.content_hash),
        masked: 1,
        dropped: 1,
        ..facts
    }
}

fn frame(events: &[String], notes: &[StreamNote]) -> Vec<u8> {
    let mut frame = samples::compressed(&samples::raw(events));
    stream_note::append(&mut frame, notes);
    frame
}

/// All files.
pub(super) fn files(keys: &Keys) -> Vec<Made> {
    let (key, data_key) = (one(), &keys.sessions[&one()]);
    let dropped = format!(r#"{{"type":3,"timestamp":{},"data":{{}}}}"#, START + 60);
    let stored = [full_snapshot(START), input(START + 50, "***"), dropped];
    let sent = [full_snapshot(START), input(START + 50, "Ada"), click(START + 60, 4)];
    let facts = masked(&stored, &sent);
    let later = [click(START + 900, 4)];

    // Of the first stream the note is behind events, of the second it is all that is stored of a batch without events; behind
    // it comes a copy of a batch that lies in an object before this one.
    let (first, second) = (note(3, 2, b"\x01of stream 3\0"), note(2_147_483_647, 8, b""));
    let entry = |seq, offset, facts: &BatchFacts| BatchEntry { seq, end: false, offset, len: 0, facts: facts.clone() };
    let chunks = [
        (
            3,
            vec![
                (entry(0, 95_000, &facts), frame(&stored, &[])),
                (entry(1, 95_001, &samples::facts(&later)), frame(&later, std::slice::from_ref(&first))),
            ],
        ),
        (
            2_147_483_647,
            vec![
                (entry(6, 95_002, &samples::facts(&[])), frame(&[], std::slice::from_ref(&second))),
                (entry(7, 95_003, &samples::facts(&later)), Vec::new()),
            ],
        ),
    ];
    let mut body = ObjectKind::Shared.preamble().to_vec();
    let mut listed = Vec::new();
    for (stream, batches) in chunks {
        let at = body.len() as u64;
        let context = ChunkContext { session: key, kind: ChunkKind::Shared };
        let frames = batches.iter().map(|(_, frame)| frame.as_slice());
        let (id, lens) = seal_chunk(data_key, context, frames, &mut body).unwrap();
        let sealed = |((entry, _), len): ((BatchEntry, _), usize)| BatchEntry { len: len as u32, ..entry };
        let batches = batches.into_iter().zip(lens).map(sealed).collect();
        listed.push(Chunk { key, stream, id: *id.as_bytes(), at, batches });
    }
    let version = KeyVersion(2);
    let storage = StorageKey { version, key: keys.storage(version).unwrap() };
    let (shared_id, partition) = (samples::object_id(SHARED_ID), 3);
    let shared = samples::with_records(shared_id, partition, &storage, (body, listed), &[]);
    let shared_key = ObjectKey::Shared { partition, id: shared_id };

    let run = |seq, position, events: &[String]| -> Run { (3, seq, position, events.to_vec()) };
    let frames = [vec![run(0, 0, &stored[..1])], vec![run(0, 1, &stored[1..]), run(1, 0, &later)]];
    let mut info = samples::stream_info(3, &[(0, false, &stored), (1, false, &later)]);
    info.batches[0].facts = facts;
    let infos = vec![info, samples::stream_info(2_147_483_647, &[(6, false, &[])])];
    let notes = [first, second];
    let session_id = samples::object_id(SESSION_ID);
    let session = samples::session_with_notes(session_id, key, data_key, &frames, infos, &notes);
    let session_key = ObjectKey::Session { key, id: session_id };
    vec![
        ("frame.zst", json!({ "format": FRAME }), frame(&later, &notes)),
        ("shared.bin", json!({ "format": "shared", "object_key": shared_key.to_string() }), shared.bytes),
        ("session.bin", json!({ "format": "session", "object_key": session_key.to_string() }), session.bytes),
    ]
}
