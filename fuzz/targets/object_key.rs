//! Object keys: each has one text, and no other text is a key.
#![no_main]

use fuzz::{plant, session};
use libfuzzer_sys::fuzz_target;
use schemas::paths::{ObjectKey, session_prefix};
use schemas::{ExportId, ObjectId, SessionId, SessionKey, WorkspaceId};
use uuid::Uuid;

fn seeds() -> impl Iterator<Item = Vec<u8>> {
    let id = ObjectId(Uuid::from_u128(5));
    [
        ObjectKey::Shared { partition: 7, id },
        ObjectKey::Session { key: session(), id },
        ObjectKey::Quarantine { partition: 123_456, id },
        ObjectKey::Export { workspace: session().workspace, export: ExportId(Uuid::from_u128(6)), id },
    ]
    .into_iter()
    .map(|key| key.to_string().into_bytes())
}

/// Keys of each kind, with these numbers in them.
fn keys(bytes: &[u8; 52]) -> [ObjectKey; 4] {
    let uuid = |at| Uuid::from_slice(&bytes[at..at + 16]).expect("sixteen bytes");
    let partition = i32::from_le_bytes([bytes[48], bytes[49], bytes[50], bytes[51]]);
    let (id, key) = (ObjectId(uuid(0)), SessionKey { workspace: WorkspaceId(uuid(16)), session: SessionId(uuid(32)) });
    let export = ExportId(key.session.0);
    [
        ObjectKey::Shared { partition, id },
        ObjectKey::Session { key, id },
        ObjectKey::Quarantine { partition, id },
        ObjectKey::Export { workspace: key.workspace, export, id },
    ]
}

fuzz_target!(init: plant(seeds()), |data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(key) = ObjectKey::parse(text)
    {
        assert_eq!(key.to_string(), text);
        if let ObjectKey::Session { key, .. } = key {
            assert!(text.starts_with(&session_prefix(&key)), "a session's object lies outside of its prefix");
        }
    }
    for key in data.first_chunk().map(keys).into_iter().flatten() {
        assert_eq!(ObjectKey::parse(&key.to_string()), Some(key));
    }
});
