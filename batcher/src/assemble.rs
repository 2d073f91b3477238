//! The bytes of a shared object. CPU work, done on the pool.

use std::collections::BTreeMap;

use bytes::Bytes;
use schemas::record::Header;
use schemas::shared_object::{BatchEntry, Chunk, Footer, PREAMBLE, QuarantineReason, Quarantined, SessionFilter};
use schemas::{ObjectId, SessionKey};
use storage::index::Uploaded;
use storage::objects;

/// A record in memory.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) content: Content,
    /// Append time, milliseconds since the epoch.
    pub(crate) appended_ms: u64,
}

/// What a record holds.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// A record of ours: its header, and its payload as it came.
    Read(Header, Bytes),
    /// A record that cannot be read, whole.
    Unreadable(QuarantineReason, Bytes),
}

/// An object that is ready for upload.
#[derive(Debug)]
pub(crate) struct Assembled {
    pub(crate) body: Bytes,
    pub(crate) row: Uploaded,
    pub(crate) filter: SessionFilter,
}

/// Lays the records of one flush into an object, without those of refused sessions. Frames are laid down as they came:
/// what the edge compressed is not compressed again. `refused` comes in id order.
pub(crate) fn assemble(
    id: ObjectId,
    partition: i32,
    offsets: (u64, u64),
    records: &[(u64, Held)],
    refused: &[SessionKey],
) -> Assembled {
    let mut by_stream: BTreeMap<(SessionKey, u32), Vec<(BatchEntry, &Bytes)>> = BTreeMap::new();
    let mut unreadable = Vec::new();
    let mut body_len = PREAMBLE.len();
    for (offset, held) in records {
        match &held.content {
            Content::Read(Header::Batch { key, place, end, facts, .. }, payload)
                if refused.binary_search(key).is_err() =>
            {
                let len = payload.len() as u32;
                let entry = BatchEntry { seq: place.seq(), end: *end, offset: *offset, len, facts: *facts };
                by_stream.entry((*key, place.stream())).or_default().push((entry, payload));
                body_len += payload.len();
            }
            Content::Read(..) => {}
            Content::Unreadable(reason, bytes) => {
                unreadable.push((*offset, *reason, bytes));
                body_len += bytes.len();
            }
        }
    }
    let mut body = Vec::with_capacity(body_len);
    body.extend_from_slice(PREAMBLE);
    let mut footer = Footer {
        partition,
        offset_first: offsets.0,
        offset_next: offsets.1,
        chunks: Vec::with_capacity(by_stream.len()),
        quarantined: Vec::with_capacity(unreadable.len()),
    };
    for ((key, stream), mut batches) in by_stream {
        batches.sort_by_key(|(entry, _)| (entry.seq, entry.offset));
        let at = body.len() as u64;
        let mut entries = Vec::with_capacity(batches.len());
        for (entry, payload) in batches {
            body.extend_from_slice(payload);
            entries.push(entry);
        }
        footer.chunks.push(Chunk { key, stream, at, batches: entries });
    }
    for (offset, reason, bytes) in unreadable {
        footer.quarantined.push(Quarantined { offset, at: body.len() as u64, len: bytes.len() as u32, reason });
        body.extend_from_slice(bytes);
    }
    let mut sessions: Vec<SessionKey> = footer.chunks.iter().map(|chunk| chunk.key).collect();
    sessions.dedup();
    let (body, row) = objects::finish(id, body, &footer.encode());
    Assembled { body, row, filter: SessionFilter::build(sessions.iter()) }
}

#[cfg(test)]
mod tests {
    use schemas::record::Consent;
    use schemas::{BatchFacts, LinkId, ReceiptId, SessionId, StreamSeq, WorkspaceId};
    use uuid::Uuid;

    use super::*;

    fn key(n: u128) -> SessionKey {
        SessionKey { workspace: WorkspaceId(Uuid::from_u128(1)), session: SessionId(Uuid::from_u128(n)) }
    }

    fn batch(session: u128, stream: u32, seq: u32, payload: &'static [u8]) -> Held {
        let header = Header::Batch {
            key: key(session),
            consent: Consent {
                link: LinkId(Uuid::nil()),
                consented_at_ms: 0,
                notice_version: "v".into(),
                receipt: ReceiptId(Uuid::nil()),
            },
            place: StreamSeq::new(stream, seq).unwrap(),
            end: false,
            facts: BatchFacts::default(),
        };
        Held { content: Content::Read(header, Bytes::from_static(payload)), appended_ms: 0 }
    }

    #[test]
    fn chunks_hold_frames_by_seq_and_refused_sessions_are_left_out() {
        let unreadable = Held {
            content: Content::Unreadable(QuarantineReason::Header, Bytes::from_static(b"junk")),
            appended_ms: 0,
        };
        let records = [
            (5, batch(2, 1, 1, b"two-b")),
            (6, batch(1, 9, 0, b"one")),
            (7, batch(3, 1, 0, b"gone")),
            (8, unreadable),
            (9, batch(2, 1, 0, b"two-a")),
        ];
        let object = assemble(ObjectId(Uuid::nil()), 4, (5, 10), &records, &[key(3)]);
        let footer_at = object.row.footer.at as usize;
        let footer = Footer::decode(&object.body[footer_at..], object.row.footer.at).unwrap();
        assert_eq!(&object.body[..footer_at], b"CLVS\x01onetwo-atwo-bjunk");
        let chunks: Vec<_> = footer.chunks.iter().map(|chunk| (chunk.key, chunk.at, chunk.batches.len())).collect();
        assert_eq!(chunks, [(key(1), 5, 1), (key(2), 8, 2)]);
        assert_eq!(footer.chunks[1].batches.iter().map(|batch| batch.offset).collect::<Vec<_>>(), [9, 5]);
        assert_eq!((footer.quarantined[0].offset, footer.quarantined[0].at), (8, 18));
        assert_eq!(object.row.sha256, objects::sha256(&object.body));
        assert!(object.filter.may_contain(&key(2)));
    }
}
