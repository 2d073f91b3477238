//! What stands in the file of what batchers came to write within version 1: copies without their bytes, and records of sessions
//! whose key did not open. It is read by the generator alone.

use schemas::paths::ObjectKey;
use schemas::shared_object::QuarantineReason;
use serde_json::json;

use super::super::reader::Keys;
use super::super::samples::{self, Batch, Stream};
use super::v1::{Made, START, batch_header, click, full_snapshot, one, seal_record, two};
use crate::keyring::KeyVersion;
use crate::objects::StorageKey;

/// The folder of these files.
pub(super) const FOLDER: &str = "v1-copies";

const SHARED_ID: u128 = 0x0199_0000_0011_7000_8000_0000_0000_0031;

/// All files.
pub(super) fn files(keys: &Keys) -> Vec<Made> {
    let version = KeyVersion(2);
    let storage = StorageKey { version, key: keys.storage(version).unwrap() };
    let (first, second) = ([full_snapshot(START)], [click(START + 40, 6)]);
    let batch = |seq, offset, events: &[String], is_copy| Batch {
        seq,
        end: seq == 1,
        offset,
        events: events.to_vec(),
        is_copy,
    };
    let batches = vec![
        batch(0, 90_000, &first, false),
        batch(0, 90_002, &first, true),
        // The batch that it repeats lies in an object before this one.
        batch(1, 90_003, &second, true),
    ];
    let streams = [Stream { key: one(), data_key: &keys.sessions[&one()], stream: 3, batches }];
    let record_key = two().session.as_bytes().to_vec();
    let record = seal_record(keys, 7, &record_key, &batch_header(two(), 1, 0, false, &second), &second);
    let aside = [(90_001, QuarantineReason::SessionKey, record_key, record)];
    let (id, partition) = (samples::object_id(SHARED_ID), 3);
    let shared = samples::shared(id, partition, &storage, &streams, &aside);
    let key = ObjectKey::Shared { partition, id };
    vec![("shared.bin", json!({ "format": "shared", "object_key": key.to_string() }), shared.bytes)]
}
