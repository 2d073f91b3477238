//! Entries of the journal, and the beginnings and ends of objects.
#![no_main]

use fuzz::{plant, session};
use libfuzzer_sys::fuzz_target;
use schemas::deletion::Cause;
use schemas::journal::{Entry, Marks, SESSIONS_MAX};
use schemas::object::{ObjectKind, PREAMBLE_BYTES, TRAILER_BYTES};
use schemas::{DeletionId, LinkId, ObjectId};
use uuid::Uuid;

fn seeds() -> impl Iterator<Item = Vec<u8>> {
    [0, 1, 3].into_iter().map(|sessions| {
        let entry = Entry {
            object: ObjectId(Uuid::from_u128(5)),
            deletion: DeletionId(Uuid::from_u128(6)),
            workspace: session().workspace,
            cause: Cause::Withdrawn,
            requested_at_ms: 1_790_000_000_000,
            sessions: vec![session().session; sessions],
            marks: (sessions == 1).then(|| Marks { links: vec![LinkId(Uuid::from_u128(7))], begun_before_ms: 9 }),
        };
        entry.encode()
    })
}

fuzz_target!(init: plant(seeds()), |data: &[u8]| {
    if let Ok(entry) = Entry::decode(data) {
        assert!(entry.sessions.len() <= SESSIONS_MAX && entry.sessions.len() * 16 <= data.len());
        assert_eq!(Entry::decode(&entry.encode()), Ok(entry));
    }
    let kind = ObjectKind::of(data);
    if let Ok(kind) = kind {
        assert!(data.starts_with(kind.magic()) && kind.read().contains(&data[4]));
    }
    if let Some(trailer) = data.last_chunk::<TRAILER_BYTES>() {
        for kind in ObjectKind::ALL {
            if let Ok((at, len)) = kind.footer_place(data.len() as u64, trailer) {
                assert!(at >= PREAMBLE_BYTES as u64);
                assert_eq!(at + u64::from(len) + TRAILER_BYTES as u64, data.len() as u64);
            }
        }
    }
});
