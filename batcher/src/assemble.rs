//! The bytes of a shared object. CPU work, done on the pool.

use std::collections::BTreeMap;

use bytes::Bytes;
use schemas::object::ObjectKind;
use schemas::record::Header;
use schemas::shared_object::{BatchEntry, Chunk, Footer, QuarantineReason, Quarantined, SessionFilter};
use schemas::{ObjectId, SessionId, SessionKey};
use sealing::frames::{ChunkContext, ChunkKind, seal_chunk};
use sealing::objects::{StorageKey, seal_shared_footer};
use sealing::{Key, SealError, TAG_BYTES};
use storage::index::Uploaded;
use storage::objects;
use thiserror::Error;

/// A record in memory.
#[derive(Debug, Clone)]
pub(crate) struct Held {
    pub(crate) content: Content,
    /// Append time, milliseconds since the epoch.
    pub(crate) appended_ms: u64,
}

/// What a record holds.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every record is read: a box for each would cost more than it saves"
)]
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// A record of ours, opened: its header, and its payload as it came.
    Read(Header, Bytes),
    /// A record that cannot be read, whole, under whatever seal it has.
    Unreadable(Unreadable),
}

/// What is kept of a record that cannot be read.
#[derive(Debug, Clone)]
pub(crate) struct Unreadable {
    pub(crate) reason: QuarantineReason,
    /// The record's key in the log.
    pub(crate) record_key: Bytes,
    pub(crate) value: Bytes,
}

/// An object that is ready for upload.
#[derive(Debug)]
pub(crate) struct Assembled {
    pub(crate) body: Bytes,
    pub(crate) row: Uploaded,
    pub(crate) filter: SessionFilter,
}

/// Why an object cannot be made.
#[derive(Debug, Error)]
pub(crate) enum AssembleError {
    /// A session has no key by now.
    #[error("no key of session {0}")]
    KeyMissing(SessionId),
    /// Sealing failed.
    #[error("seal object")]
    Seal(#[from] SealError),
}

/// The keys of one flush.
pub(crate) struct FlushKeys {
    pub(crate) sessions: BTreeMap<SessionKey, Key>,
    pub(crate) storage: StorageKey,
}

/// Lays the records of one flush into an object, without those of refused sessions. Frames are laid down as they came and
/// sealed with their session's key (B11): what the edge compressed is not compressed again. `refused` comes in id order.
pub(crate) fn assemble(
    id: ObjectId,
    partition: i32,
    offsets: (u64, u64),
    records: &[(u64, Held)],
    refused: &[SessionKey],
    keys: &FlushKeys,
) -> Result<Assembled, AssembleError> {
    let mut by_stream: BTreeMap<(SessionKey, u32), Vec<(BatchEntry, &Bytes)>> = BTreeMap::new();
    let mut unreadable = Vec::new();
    let preamble = ObjectKind::Shared.preamble();
    let mut body_len = preamble.len();
    for (offset, held) in records {
        match &held.content {
            Content::Read(Header::Batch { key, place, end, facts, .. }, payload)
                if refused.binary_search(key).is_err() =>
            {
                let entry = BatchEntry { seq: place.seq(), end: *end, offset: *offset, len: 0, facts: facts.clone() };
                by_stream.entry((*key, place.stream())).or_default().push((entry, payload));
                body_len += payload.len() + TAG_BYTES;
            }
            Content::Read(..) => {}
            Content::Unreadable(record) => {
                unreadable.push((*offset, record));
                body_len += record.value.len();
            }
        }
    }
    let mut body = Vec::with_capacity(body_len);
    body.extend_from_slice(&preamble);
    let mut footer = Footer {
        object: id,
        partition,
        offset_first: offsets.0,
        offset_next: offsets.1,
        chunks: Vec::with_capacity(by_stream.len()),
        quarantined: Vec::with_capacity(unreadable.len()),
    };
    for ((key, stream), mut batches) in by_stream {
        batches.sort_by_key(|(entry, _)| (entry.seq, entry.offset));
        let data_key = keys.sessions.get(&key).ok_or(AssembleError::KeyMissing(key.session))?;
        footer.chunks.push(chunk_of(data_key, key, stream, batches, &mut body)?);
    }
    for (offset, record) in unreadable {
        footer.quarantined.push(Quarantined {
            offset,
            record_key: record.record_key.to_vec(),
            at: body.len() as u64,
            len: record.value.len() as u32,
            reason: record.reason,
        });
        body.extend_from_slice(&record.value);
    }
    let mut sessions: Vec<SessionKey> = footer.chunks.iter().map(|chunk| chunk.key).collect();
    sessions.dedup();
    let region = seal_shared_footer(&keys.storage, &footer)?;
    let (body, row) = objects::finish(id, ObjectKind::Shared, body, &region, Some(keys.storage.version));
    Ok(Assembled { body, row, filter: SessionFilter::build(sessions.iter()) })
}

/// Seals one stream's frames at the end of `body`.
fn chunk_of(
    data_key: &Key,
    key: SessionKey,
    stream: u32,
    batches: Vec<(BatchEntry, &Bytes)>,
    body: &mut Vec<u8>,
) -> Result<Chunk, SealError> {
    let (context, at) = (ChunkContext { session: key, kind: ChunkKind::Shared }, body.len() as u64);
    let (id, lens) = seal_chunk(data_key, context, batches.iter().map(|(_, payload)| payload.as_ref()), body)?;
    let sealed = |((entry, _), len): ((BatchEntry, _), usize)| BatchEntry { len: len as u32, ..entry };
    let batches = batches.into_iter().zip(lens).map(sealed).collect();
    Ok(Chunk { key, stream, id: *id.as_bytes(), at, batches })
}

#[cfg(test)]
mod tests {
    use schemas::object::TRAILER_BYTES;
    use schemas::record::Consent;
    use schemas::{BatchFacts, LinkId, ReceiptId, SessionId, StreamSeq, WorkspaceId};
    use sealing::keyring::KeyVersion;
    use sealing::objects::{chunk_opener, frame_at, open_shared_footer, shared_footer_version};
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

    fn keys(sessions: impl IntoIterator<Item = u128>) -> FlushKeys {
        let sessions = sessions.into_iter().map(|n| (key(n), Key::new([n as u8; 32]))).collect();
        FlushKeys { sessions, storage: StorageKey { version: KeyVersion(3), key: Key::new([99; 32]) } }
    }

    #[test]
    fn b11_chunks_hold_frames_by_seq_under_their_own_sessions_key_and_refused_sessions_are_left_out() {
        let unreadable = Held {
            content: Content::Unreadable(Unreadable {
                reason: QuarantineReason::Header,
                record_key: Bytes::from_static(b"key"),
                value: Bytes::from_static(b"junk"),
            }),
            appended_ms: 0,
        };
        let records = [
            (5, batch(2, 1, 1, b"two-b")),
            (6, batch(1, 9, 0, b"one")),
            (7, batch(3, 1, 0, b"gone")),
            (8, unreadable),
            (9, batch(2, 1, 0, b"two-a")),
        ];
        let (id, keys) = (ObjectId(Uuid::from_u128(7)), keys([1, 2]));
        let object = assemble(id, 4, (5, 10), &records, &[key(3)], &keys).unwrap();
        let (at, len) = (object.row.footer.at as usize, object.row.footer.len as usize);
        let region = &object.body[at..at + len];
        assert_eq!(shared_footer_version(region), Ok(KeyVersion(3)));
        let footer = open_shared_footer(&keys.storage.key, id, region, at as u64).unwrap();
        let mut found = Vec::new();
        for chunk in &footer.chunks {
            let opener = chunk_opener(&keys.sessions[&chunk.key], chunk);
            let mut at = chunk.at as usize;
            for (number, batch) in chunk.batches.iter().enumerate() {
                let frame = &object.body[at..at + batch.len as usize];
                at += frame.len();
                let opened = opener.open(frame_at(number, chunk.batches.len()), frame).unwrap();
                found.push((chunk.key, batch.offset, String::from_utf8(opened).unwrap()));
            }
        }
        let expected = [(key(1), 6, "one"), (key(2), 9, "two-a"), (key(2), 5, "two-b")];
        assert_eq!(found, expected.map(|(key, offset, text)| (key, offset, text.to_owned())));
        let quarantined = &footer.quarantined[0];
        assert_eq!((quarantined.offset, quarantined.record_key.as_slice()), (8, b"key".as_slice()));
        assert_eq!(&object.body[quarantined.at as usize..at], b"junk");
        let tail: &[u8; TRAILER_BYTES] = object.body.last_chunk().unwrap();
        let place = ObjectKind::Shared.footer_place(object.body.len() as u64, tail);
        assert_eq!(place, Ok((object.row.footer.at, object.row.footer.len)));
        assert_eq!(object.row.sha256, objects::sha256(&object.body));
        assert!(object.filter.may_contain(&key(2)));
    }

    #[test]
    fn b11_a_missing_key_is_an_error_and_nothing_is_written_in_clear() {
        let records = [(5, batch(2, 1, 0, b"secret"))];
        let made = assemble(ObjectId(Uuid::nil()), 4, (5, 6), &records, &[], &keys([1]));
        assert!(matches!(made, Err(AssembleError::KeyMissing(session)) if session == key(2).session));
    }
}
