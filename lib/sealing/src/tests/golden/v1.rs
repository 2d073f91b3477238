//! What stands in the files of version 1. It is read by the generator alone: the files are made already.

use schemas::deletion::Cause;
use schemas::journal::Entry;
use schemas::paths::ObjectKey;
use schemas::record::{Consent, Header};
use schemas::shared_object::QuarantineReason;
use schemas::{DeletionId, LinkId, ReceiptId, SessionKey, StreamSeq};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::super::reader::Keys;
use super::super::samples::{self, Batch, Run, Stream};
use super::{WRAPPED, hex};
use crate::keyring::{KeyVersion, Owner};
use crate::objects::{StorageKey, seal_journal};
use crate::transport::{EpochId, LogPlace, RecordSealer};
use crate::wrapping;

const TOPIC: &str = "session-events";
const SHARED_ID: u128 = 0x0199_0000_0001_7000_8000_0000_0000_0011;
const QUARANTINE_ID: u128 = 0x0199_0000_0002_7000_8000_0000_0000_0012;
const SESSION_ID: u128 = 0x0199_0000_0003_7000_8000_0000_0000_0013;
const JOURNAL_ID: u128 = 0x0199_0000_0004_7000_8000_0000_0000_0014;
pub(super) const START: u64 = 1_790_000_000_000;

pub(super) fn one() -> SessionKey {
    samples::session_key(0x0190_0000_0000_7000_8000_0000_0000_000a, 0x1111_0000_0000_8000_8000_0000_0000_0001)
}

pub(super) fn two() -> SessionKey {
    samples::session_key(one().workspace.0.as_u128(), 0x1111_0000_0000_8000_8000_0000_0000_0002)
}

fn three() -> SessionKey {
    samples::session_key(0x0190_0000_0000_7000_8000_0000_0000_000b, 0x1111_0000_0000_8000_8000_0000_0000_0003)
}

/// The keys of version 1's files.
pub(super) fn keys() -> Value {
    let secret = |name: &str| hex(&Sha256::digest(format!("clairvio golden {name}")));
    let session = |key: SessionKey, name: &str| json!({ "workspace": key.workspace, "session": key.session, "data_key": secret(name) });
    json!({
        "topic": TOPIC,
        "keyring": {
            "current": 2,
            "roots": [
                { "version": 1, "secret": secret("root 1") },
                { "version": 2, "secret": secret("root 2") },
            ],
        },
        "sessions": [session(one(), "session 1"), session(two(), "session 2"), session(three(), "session 3")],
        "transport_epochs": [
            { "epoch": 7, "key": secret("epoch 7") },
            { "epoch": 8, "key": secret("epoch 8") },
        ],
    })
}

fn meta(at: u64) -> String {
    format!(r#"{{"type":4,"timestamp":{at},"data":{{"href":"https://shop.example/cart","width":1280,"height":720}}}}"#)
}

pub(super) fn full_snapshot(at: u64) -> String {
    let node = r#"{"type":0,"childNodes":[{"type":2,"tagName":"html","attributes":{"lang":"de"},"childNodes":[],"id":2}],"id":1}"#;
    format!(r#"{{"type":2,"timestamp":{at},"data":{{"node":{node},"initialOffset":{{"top":0,"left":0}}}}}}"#)
}

pub(super) fn click(at: u64, id: u32) -> String {
    format!(r#"{{"type":3,"timestamp":{at},"data":{{"source":2,"type":2,"id":{id},"x":40,"y":7}}}}"#)
}

pub(super) fn console_error(at: u64) -> String {
    format!(
        r#"{{"type":6,"timestamp":{at},"data":{{"plugin":"rrweb/console@1","payload":{{"level":"error","payload":["“Grüße”"]}}}}}}"#
    )
}

fn consent(receipt: u128) -> Consent {
    Consent {
        link: LinkId(Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0c01)),
        consented_at_ms: START,
        notice_version: "2026-03 Datenschutz für alle".into(),
        receipt: ReceiptId(Uuid::from_u128(receipt)),
    }
}

/// A file to be made: its name, what a reader knows beforehand, its bytes.
pub(super) type Made = (&'static str, Value, Vec<u8>);

/// All files.
pub(super) fn files(keys: &Keys) -> Vec<Made> {
    [records(keys), shared_objects(keys), vec![session_object(keys), journal(keys), wrapped(keys)]].concat()
}

pub(super) fn batch_header(key: SessionKey, stream: u32, seq: u32, end: bool, events: &[String]) -> Header {
    let place = StreamSeq::new(stream, seq).unwrap();
    Header::Batch { key, consent: consent(0xc2), place, end, masking: None, facts: samples::facts(events) }
}

pub(super) fn seal_record(keys: &Keys, epoch: u32, record_key: &[u8], header: &Header, events: &[String]) -> Vec<u8> {
    let epoch = EpochId(epoch);
    let sealer = RecordSealer::new(keys.epochs.get(epoch).unwrap(), epoch).unwrap();
    let place = LogPlace { topic: TOPIC, key: record_key };
    // Not the process's first record: its number shows where it stands.
    sealer.seal(&place, header, b"").unwrap();
    sealer.seal(&place, header, &samples::compressed(&samples::raw(events))).unwrap()
}

fn records(keys: &Keys) -> Vec<Made> {
    let events = [meta(START + 10), full_snapshot(START + 20), console_error(START + 3_000)];
    let of_session = one().session.as_bytes().to_vec();
    let of_nobody = vec![0xd0, 1, 2, 3, 4, 5, 0x86, 7, 0x88, 9, 10, 11, 12, 13, 14, 15];
    let acceptance = Header::Acceptance { key: one(), consent: consent(0xc1) };
    let declines = Header::Declines { workspace: one().workspace, hour_ms: 1_789_999_200_000, count: 300 };
    let batch = batch_header(one(), 2_000_000_001, 130, true, &events);
    let made = |name, header: &Header, record_key: Vec<u8>, events: &[String]| {
        let known = json!({ "format": "record", "record_key": hex(&record_key) });
        (name, known, seal_record(keys, 7, &record_key, header, events))
    };
    vec![
        made("record-acceptance.bin", &acceptance, of_session.clone(), &[]),
        made("record-batch.bin", &batch, of_session, &events),
        made("record-declines.bin", &declines, of_nobody, &[]),
    ]
}

fn shared_objects(keys: &Keys) -> Vec<Made> {
    let storage =
        |version| StorageKey { version: KeyVersion(version), key: keys.storage(KeyVersion(version)).unwrap() };
    let batch =
        |seq, offset, end, events: &[String]| Batch { seq, end, offset, events: events.to_vec(), is_copy: false };
    let stream = |key: SessionKey, stream, batches| Stream { key, data_key: &keys.sessions[&key], stream, batches };
    let streams = [
        stream(
            one(),
            0,
            vec![
                batch(0, 70_000, false, &[meta(START), full_snapshot(START + 5)]),
                // Without events: an end mark, or a sign of life.
                batch(1, 70_002, true, &[]),
            ],
        ),
        stream(one(), 9, vec![batch(4, 70_001, false, &[click(START + 900, 5)])]),
        stream(two(), 1, vec![batch(0, 70_004, false, &[click(START + 40, 6), console_error(START - 60_000)])]),
        stream(three(), 2_147_483_647, vec![batch(4_294_967_295, 70_006, false, &[click(START + 50, 7)])]),
    ];
    // Of an epoch that had not arrived at the batcher: it opens once the epoch's key is there.
    let early_events = [click(START + 70, 8)];
    let early_header = batch_header(two(), 1, 1, false, &early_events);
    let early = seal_record(keys, 8, two().session.as_bytes(), &early_header, &early_events);
    let unreadable = [(70_005, QuarantineReason::Key, two().session.as_bytes().to_vec(), early)];
    let (id, partition) = (samples::object_id(SHARED_ID), 3);
    let shared = samples::shared(id, partition, &storage(2), &streams, &unreadable);

    let chunk = shared.footer.chunks[2].clone();
    let range = chunk.at as usize..(chunk.at + chunk.len()) as usize;
    let moved = [(chunk, &shared.bytes[range])];
    let junk = [(70_008, QuarantineReason::Header, b"a stranger's".to_vec(), b"CLVX no record of ours".to_vec())];
    let quarantine_id = samples::object_id(QUARANTINE_ID);
    let quarantine = samples::quarantine(quarantine_id, partition, &storage(1), &moved, &junk);

    let known = |format: &str, object: ObjectKey| json!({ "format": format, "object_key": object.to_string() });
    let shared_known = known("shared", ObjectKey::Shared { partition, id });
    let quarantine_known = known("quarantine", ObjectKey::Quarantine { partition, id: quarantine_id });
    vec![("shared.bin", shared_known, shared.bytes), ("quarantine.bin", quarantine_known, quarantine.bytes)]
}

fn session_object(keys: &Keys) -> Made {
    let first = [meta(START), click(START + 700, 3), full_snapshot(START + 1_000), click(START + 1_500, 4)];
    let other = [full_snapshot(START + 600), click(START + 1_200, 5)];
    let last = [console_error(START + 9_000)];
    let run = |stream, seq, position, events: &[String]| -> Run { (stream, seq, position, events.to_vec()) };
    let frames = [
        vec![run(0, 0, 0, &first[..1])],
        vec![run(5, 0, 0, &other[..1]), run(0, 0, 1, &first[1..2])],
        vec![run(0, 0, 2, &first[2..3]), run(5, 0, 1, &other[1..]), run(0, 0, 3, &first[3..]), run(0, 2, 0, &last)],
    ];
    let streams = vec![
        // Batch 1 is missing: the session has a gap.
        samples::stream_info(0, &[(0, false, &first), (2, true, &last)]),
        samples::stream_info(5, &[(0, false, &other), (1, true, &[])]),
    ];
    let id = samples::object_id(SESSION_ID);
    let object = samples::session(id, one(), &keys.sessions[&one()], &frames, streams);
    let known = json!({ "format": "session", "object_key": ObjectKey::Session { key: one(), id }.to_string() });
    ("session.bin", known, object.bytes)
}

fn journal(keys: &Keys) -> Made {
    let id = samples::object_id(JOURNAL_ID);
    let entry = Entry {
        object: id,
        deletion: DeletionId(Uuid::from_u128(0x0199_0000_0005_7000_8000_0000_0000_0015)),
        workspace: one().workspace,
        cause: Cause::Withdrawn,
        requested_at_ms: START + 86_400_000,
        sessions: vec![one().session, two().session],
        marks: None,
    };
    let version = KeyVersion(2);
    let storage = StorageKey { version, key: keys.storage(version).unwrap() };
    let known = json!({ "format": "journal", "object_key": ObjectKey::Journal { id }.to_string() });
    ("journal.bin", known, seal_journal(&storage, &entry).unwrap())
}

fn wrapped(keys: &Keys) -> Made {
    let (session, version) = (one(), KeyVersion(2));
    let workspace_key = keys.roots.derive(Owner::Workspace(session.workspace), version).unwrap();
    let wrapped = wrapping::wrap(version, &workspace_key, &session, &keys.sessions[&session]).unwrap();
    let known = json!({
        "format": "wrapped key",
        "key_version": version.0,
        "workspace": session.workspace,
        "session": session.session,
    });
    (WRAPPED, known, wrapped.bytes.to_vec())
}
