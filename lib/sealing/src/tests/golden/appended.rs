//! What stands in the files of the fields that were appended to facts within version 1. It is read by the generator alone.

use schemas::paths::ObjectKey;
use serde_json::json;

use super::super::reader::Keys;
use super::super::samples::{self, Batch, Run, Stream};
use super::hex;
use super::v1::{Made, START, batch_header, click, console_error, full_snapshot, one, seal_record};
use crate::keyring::KeyVersion;
use crate::objects::StorageKey;

/// The folder of these files.
pub(super) const FOLDER: &str = "v1-facts";

const SHARED_ID: u128 = 0x0199_0000_0011_7000_8000_0000_0000_0021;
const SESSION_ID: u128 = 0x0199_0000_0013_7000_8000_0000_0000_0023;

fn meta(at: u64, path: &str) -> String {
    format!(r#"{{"type":4,"timestamp":{at},"data":{{"href":"https://shop.example{path}"}}}}"#)
}

fn input(at: u64, id: u32) -> String {
    format!(r#"{{"type":3,"timestamp":{at},"data":{{"source":5,"text":"***","isChecked":false,"id":{id}}}}}"#)
}

fn message(at: u64, level: &str) -> String {
    format!(
        r#"{{"type":6,"timestamp":{at},"data":{{"plugin":"rrweb/console@1","payload":{{"level":"{level}","payload":[]}}}}}}"#
    )
}

fn request(at: u64, status: u32) -> String {
    let requests = format!(r#"[{{"url":"https://shop.example/api","status":{status}}}]"#);
    format!(
        r#"{{"type":6,"timestamp":{at},"data":{{"plugin":"rrweb/network@1","payload":{{"requests":{requests}}}}}}}"#
    )
}

/// Events of which every field tells.
fn events() -> Vec<String> {
    vec![
        meta(START, "/cart?token=secret"),
        full_snapshot(START + 5),
        click(START + 100, 3),
        input(START + 1_300, 4),
        request(START + 1_400, 503),
        request(START + 1_500, 204),
        meta(START + 2_000, "/zahlung/ü#karte"),
        meta(START + 2_100, "/cart"),
        message(START + 2_200, "warn"),
        message(START + 2_300, "debug"),
        console_error(START + 2_400),
        // After a pause of more than 5 s.
        click(START + 9_000, 3),
    ]
}

/// All files.
pub(super) fn files(keys: &Keys) -> Vec<Made> {
    let key = one();
    let (events, later) = (events(), [click(START + 9_500, 4)]);
    let record_key = key.session.as_bytes().to_vec();
    let record = seal_record(keys, 7, &record_key, &batch_header(key, 3, 0, false, &events), &events);
    let record_known = json!({ "format": "record", "record_key": hex(&record_key) });

    let version = KeyVersion(2);
    let storage = StorageKey { version, key: keys.storage(version).unwrap() };
    let batch =
        |seq, offset, events: &[String]| Batch { seq, end: seq == 1, offset, events: events.to_vec(), is_copy: false };
    let batches = vec![batch(0, 80_000, &events), batch(1, 80_001, &later)];
    let streams = [Stream { key, data_key: &keys.sessions[&key], stream: 3, batches }];
    let (shared_id, partition) = (samples::object_id(SHARED_ID), 3);
    let shared = samples::shared(shared_id, partition, &storage, &streams, &[]);
    let shared_key = ObjectKey::Shared { partition, id: shared_id };

    let run = |seq, position, events: &[String]| -> Run { (3, seq, position, events.to_vec()) };
    let frames = [vec![run(0, 0, &events[..1])], vec![run(0, 1, &events[1..]), run(1, 0, &later)]];
    let infos = vec![samples::stream_info(3, &[(0, false, &events), (1, true, &later)])];
    let session_id = samples::object_id(SESSION_ID);
    let session = samples::session(session_id, key, &keys.sessions[&key], &frames, infos);
    let session_key = ObjectKey::Session { key, id: session_id };
    vec![
        ("record-batch.bin", record_known, record),
        ("shared.bin", json!({ "format": "shared", "object_key": shared_key.to_string() }), shared.bytes),
        ("session.bin", json!({ "format": "session", "object_key": session_key.to_string() }), session.bytes),
    ]
}
