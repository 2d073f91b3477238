//! The bytes of a shared object. CPU work, done on the pool.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use engine::batching::{Fate, RecordKind, RecordMeta, Staged};
use masking::RuleBook;
use schemas::object::ObjectKind;
use schemas::record::Header;
use schemas::shared_object::{BatchEntry, Chunk, Footer, QuarantineReason, Quarantined, SessionFilter};
use schemas::{ObjectId, SessionId, SessionKey};
use sealing::frames::{ChunkContext, ChunkKind, seal_chunk};
use sealing::objects::{StorageKey, seal_shared_footer};
use sealing::transport::{LogPlace, RecordSealer};
use sealing::{Key, SealError, TAG_BYTES};
use service_kit::keys::transport::TransportKeys;
use storage::index::Uploaded;
use storage::objects;
use thiserror::Error;

use crate::streams::{self, Done, Known, StreamKey, ToMask};

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
    /// Bytes of the events in its chunks, before compression.
    pub(crate) raw_bytes: u64,
    /// What is known of its streams once it is published.
    pub(crate) streams: BTreeMap<StreamKey, Known>,
    /// What masking did.
    pub(crate) masking: Done,
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

/// A batch and the offset of its record.
type Batch<'a> = (u64, ToMask<'a>);

/// How one flush is masked.
pub(crate) struct FlushMasking {
    pub(crate) rules: Arc<RuleBook>,
    /// What is known of its streams before it; of one that is not there nothing is known.
    pub(crate) streams: BTreeMap<StreamKey, Known>,
}

/// The keys of one flush.
pub(crate) struct FlushKeys {
    pub(crate) sessions: BTreeMap<SessionKey, Key>,
    pub(crate) storage: StorageKey,
    pub(crate) transport: Arc<TransportKeys>,
}

/// Where a flush comes from, and what becomes of it.
pub(crate) struct FlushPlace {
    pub(crate) object: ObjectId,
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) offsets: (u64, u64),
}

/// Lays the records of one flush into an object, each as [`Staged::fate`] says. Batches are masked by what is known of their
/// stream (E5). Frames of which nothing has to change are laid down as they came and sealed with their session's key (B11): what
/// the edge compressed is not compressed again. A copy is a frame of nothing.
pub(crate) fn assemble(
    flush: &FlushPlace,
    records: &[(RecordMeta, Held)],
    staged: &Staged,
    keys: &FlushKeys,
    masking: &FlushMasking,
) -> Result<Assembled, AssembleError> {
    let (id, partition, offsets) = (flush.object, flush.partition, flush.offsets);
    let mut by_stream: BTreeMap<StreamKey, Vec<Batch<'_>>> = BTreeMap::new();
    let mut unreadable = Vec::new();
    let preamble = ObjectKind::Shared.preamble();
    let mut body_len = preamble.len();
    for (record, held) in records {
        match (staged.fate(&record.kind), &held.content) {
            (fate @ (Fate::Chunked | Fate::Copy), Content::Read(header, payload)) => {
                let Header::Batch { key, place, end, masking, facts, .. } = header else { continue };
                let is_copy = fate == Fate::Copy;
                let frame = Cow::Borrowed(if is_copy { [].as_slice() } else { payload });
                body_len += frame.len() + TAG_BYTES;
                let (seq, facts) = (place.seq(), facts.clone());
                let batch = ToMask { seq, end: *end, masking: masking.as_ref(), frame, facts, is_copy };
                by_stream.entry((*key, place.stream())).or_default().push((record.offset, batch));
            }
            (Fate::Quarantined(reason), content) => {
                let (record_key, value) = under_seal(content, &flush.topic, &keys.transport)?;
                body_len += value.len();
                unreadable.push((record.offset, reason, record_key, value));
            }
            (Fate::Indexed | Fate::Deleted | Fate::Chunked | Fate::Copy, _) => {}
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
    // Also those of which records are set aside: who deletes a session has to find the object.
    let mut aside: Vec<SessionKey> = Vec::new();
    let (mut known_after, mut done) = (BTreeMap::new(), Done::default());
    for ((key, stream), mut batches) in by_stream {
        batches.sort_by_key(|(offset, batch)| (batch.seq, *offset));
        let mut known = masking.streams.get(&(key, stream)).cloned().unwrap_or_else(Known::nothing);
        let next = known.next;
        let mut unmasked = Vec::new();
        for (offset, batch) in batches.iter_mut().filter(|(_, batch)| !batch.is_copy) {
            if streams::mask(&mut known, batch, &masking.rules, &mut done).is_err() {
                unmasked.push(*offset);
            }
        }
        // What does not decompress cannot be masked: it stays under a record's seal.
        batches.retain(|(offset, _)| !unmasked.contains(offset));
        for (record, held) in records.iter().filter(|(record, _)| unmasked.contains(&record.offset)) {
            tracing::error!(partition, offset = record.offset, "record cannot be read; it is quarantined");
            let (record_key, value) = under_seal(&held.content, &flush.topic, &keys.transport)?;
            unreadable.push((record.offset, QuarantineReason::Payload, record_key, value));
            aside.push(key);
        }
        if known.next > next {
            let mut frames: Vec<&mut ToMask<'_>> = batches.iter_mut().map(|(_, batch)| batch).collect();
            streams::append_note(&known, stream, &mut frames);
            known_after.insert((key, stream), known);
        }
        let data_key = keys.sessions.get(&key).ok_or(AssembleError::KeyMissing(key.session))?;
        if !batches.is_empty() {
            footer.chunks.push(chunk_of(data_key, key, stream, batches, &mut body)?);
        }
    }
    for (offset, reason, record_key, value) in unreadable {
        let (at, len) = (body.len() as u64, value.len() as u32);
        footer.quarantined.push(Quarantined { offset, record_key: record_key.to_vec(), at, len, reason });
        body.extend_from_slice(&value);
    }
    aside.extend(records.iter().filter_map(|(record, _)| match (staged.fate(&record.kind), record.kind) {
        (Fate::Quarantined(_), RecordKind::Batch { key, .. } | RecordKind::Copy(key)) => Some(key),
        _ => None,
    }));
    let mut sessions: Vec<SessionKey> = footer.chunks.iter().map(|chunk| chunk.key).chain(aside).collect();
    sessions.sort_unstable();
    sessions.dedup();
    let region = seal_shared_footer(&keys.storage, &footer)?;
    let quarantined = footer.quarantined.len();
    let (body, row) = objects::finish(id, ObjectKind::Shared, body, &region, Some(keys.storage.version), quarantined);
    let batches = footer.chunks.iter().flat_map(|chunk| &chunk.batches).filter(|batch| !batch.is_copy());
    let raw_bytes = batches.map(|batch| u64::from(batch.facts.raw_bytes)).sum();
    let filter = SessionFilter::build(sessions.iter());
    Ok(Assembled { body, row, filter, raw_bytes, streams: known_after, masking: done })
}

/// A record as it lies in quarantine: its key in the log, and its value under a seal of records. One that was opened is
/// sealed again, under the epoch that is current: it can be replayed for as long as that one's key is kept.
fn under_seal(content: &Content, topic: &str, transport: &TransportKeys) -> Result<(Bytes, Bytes), SealError> {
    let (header, payload) = match content {
        Content::Unreadable(record) => return Ok((record.record_key.clone(), record.value.clone())),
        Content::Read(header, payload) => (header, payload),
    };
    let record_key = match header {
        Header::Acceptance { key, .. } | Header::Batch { key, .. } => key.session.as_bytes().as_slice(),
        Header::Declines { .. } => &[],
    };
    let (epoch, key) = transport.current();
    let place = LogPlace { topic, key: record_key };
    let value = RecordSealer::new(key, epoch)?.seal(&place, header, payload)?;
    Ok((Bytes::copy_from_slice(record_key), value.into()))
}

/// Seals one stream's frames at the end of `body`.
fn chunk_of(
    data_key: &Key,
    key: SessionKey,
    stream: u32,
    batches: Vec<Batch<'_>>,
    body: &mut Vec<u8>,
) -> Result<Chunk, SealError> {
    let (context, at) = (ChunkContext { session: key, kind: ChunkKind::Shared }, body.len() as u64);
    let (id, lens) = seal_chunk(data_key, context, batches.iter().map(|(_, batch)| &*batch.frame), body)?;
    let sealed = |((offset, batch), len): (Batch<'_>, usize)| {
        let ToMask { seq, end, facts, .. } = batch;
        BatchEntry { seq, end, offset, len: len as u32, facts }
    };
    let batches = batches.into_iter().zip(lens).map(sealed).collect();
    Ok(Chunk { key, stream, id: *id.as_bytes(), at, batches })
}

#[cfg(test)]
mod tests {
    use schemas::object::TRAILER_BYTES;
    use schemas::record::{Consent, Masking};
    use schemas::{BatchFacts, LinkId, ReceiptId, SessionId, StreamSeq, WorkspaceId};
    use schemas::{codec, stream_note};
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
            masking: Some(Masking::default()),
            facts: BatchFacts { raw_bytes: 9, ..BatchFacts::default() },
        };
        Held { content: Content::Read(header, Bytes::from_static(payload)), appended_ms: 0 }
    }

    fn keys(sessions: impl IntoIterator<Item = u128>) -> FlushKeys {
        let sessions = sessions.into_iter().map(|n| (key(n), Key::new([n as u8; 32]))).collect();
        let storage = StorageKey { version: KeyVersion(3), key: Key::new([99; 32]) };
        FlushKeys { sessions, storage, transport: Arc::new(TransportKeys::make().unwrap()) }
    }

    /// Records as the machine has them, without what it does not look at here.
    fn with_meta(records: Vec<(u64, Held)>) -> Vec<(RecordMeta, Held)> {
        let kind = |held: &Held| match &held.content {
            Content::Read(Header::Batch { key, place, .. }, _) => {
                RecordKind::Batch { key: *key, place: *place, content: 0 }
            }
            Content::Read(..) => RecordKind::Declines,
            Content::Unreadable(record) => RecordKind::Unreadable(record.reason),
        };
        let meta =
            |(offset, held): (u64, Held)| (RecordMeta { offset, bytes: 0, fingerprint: 0, kind: kind(&held) }, held);
        records.into_iter().map(meta).collect()
    }

    /// Of no stream anything is known.
    fn unknown() -> FlushMasking {
        FlushMasking { rules: Arc::default(), streams: BTreeMap::new() }
    }

    /// A frame without the note that may stand behind it.
    fn events_of(mut frame: Vec<u8>) -> String {
        let note = frame.windows(4).position(|bytes| bytes == [0x5c, 0x2a, 0x4d, 0x18]);
        frame.truncate(note.unwrap_or(frame.len()));
        String::from_utf8(frame).unwrap()
    }

    fn flush(id: u128, offsets: (u64, u64)) -> FlushPlace {
        FlushPlace { object: ObjectId(Uuid::from_u128(id)), topic: "events".into(), partition: 4, offsets }
    }

    fn footer_of(object: &Assembled, keys: &FlushKeys) -> Footer {
        let (at, len) = (object.row.footer.at as usize, object.row.footer.len as usize);
        let region = &object.body[at..at + len];
        assert_eq!(shared_footer_version(region), Ok(KeyVersion(3)));
        open_shared_footer(&keys.storage.key, object.row.id, region, at as u64).unwrap()
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
        let records = with_meta(vec![
            (5, batch(2, 1, 1, b"two-b")),
            (6, batch(1, 9, 0, b"one")),
            (7, batch(3, 1, 0, b"gone")),
            (8, unreadable),
            (9, batch(2, 1, 0, b"two-a")),
        ]);
        let keys = keys([1, 2]);
        let staged = Staged { refused: vec![key(3)], ..Staged::default() };
        let object = assemble(&flush(7, (5, 10)), &records, &staged, &keys, &unknown()).unwrap();
        let (at, footer) = (object.row.footer.at as usize, footer_of(&object, &keys));
        let mut found = Vec::new();
        for chunk in &footer.chunks {
            let opener = chunk_opener(&keys.sessions[&chunk.key], chunk);
            let mut at = chunk.at as usize;
            for (number, batch) in chunk.batches.iter().enumerate() {
                let frame = &object.body[at..at + batch.len as usize];
                at += frame.len();
                let opened = opener.open(frame_at(number, chunk.batches.len()), frame).unwrap();
                found.push((chunk.key, batch.offset, events_of(opened)));
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
        assert_eq!(object.row.quarantined, 1, "the index finds the object by it");
        assert!(object.filter.may_contain(&key(2)));
    }

    #[test]
    fn b11_a_missing_key_is_an_error_and_nothing_is_written_in_clear() {
        let records = with_meta(vec![(5, batch(2, 1, 0, b"secret"))]);
        let made = assemble(&flush(7, (5, 6)), &records, &Staged::default(), &keys([1]), &unknown());
        assert!(matches!(made, Err(AssembleError::KeyMissing(session)) if session == key(2).session));
    }

    /// Goal: nothing is stored that was not masked. Method: batches that their edge left to the batcher: one that reads, one that
    /// does not, one of a release that masked nothing.
    #[test]
    fn e05_batches_are_masked_or_stay_under_a_record_s_seal() {
        let event = r#"{"type":3,"data":{"source":5,"text":"secret","isChecked":false,"id":4},"timestamp":1}"#;
        let frame: &'static [u8] = codec::compress(format!("{event}\n").as_bytes(), 1).leak();
        let with = |held: Held, masking: Option<Masking>| {
            let Content::Read(Header::Batch { key, consent, place, end, facts, .. }, frame) = held.content else {
                panic!("it is a batch")
            };
            let header = Header::Batch { key, consent, place, end, masking, facts };
            Held { content: Content::Read(header, frame), appended_ms: 0 }
        };
        let unsure = Some(Masking { rules: None, needs_state: true });
        let records = with_meta(vec![
            (5, with(batch(1, 1, 0, frame), unsure.clone())),
            (6, with(batch(2, 1, 0, b"secret"), unsure)),
            (7, with(batch(3, 1, 4, frame), None)),
        ]);
        let keys = keys([1, 2, 3]);
        let object = assemble(&flush(7, (5, 8)), &records, &Staged::default(), &keys, &unknown()).unwrap();
        let footer = footer_of(&object, &keys);
        let quarantined = footer.quarantined.iter().map(|record| (record.offset, record.reason));
        assert_eq!(quarantined.collect::<Vec<_>>(), [(6, QuarantineReason::Payload)]);
        assert!(object.filter.may_contain(&key(2)), "who deletes the session finds the object");
        assert_eq!(footer.chunks.iter().map(|chunk| chunk.key).collect::<Vec<_>>(), [key(1), key(3)]);
        for chunk in &footer.chunks {
            let sealed = &object.body[chunk.at as usize..][..chunk.len() as usize];
            let opened = chunk_opener(&keys.sessions[&chunk.key], chunk).open(frame_at(0, 1), sealed).unwrap();
            let events = codec::decompress(&opened, 1 << 10).unwrap();
            let facts = &chunk.batches[0].facts;
            assert_eq!(
                events,
                event.replace("secret", "***").into_bytes().into_iter().chain([b'\n']).collect::<Vec<_>>()
            );
            assert_eq!((facts.raw_bytes as usize, facts.masked), (events.len(), 1));
            assert_eq!(facts.stored_hash, Some(BatchFacts::hash(&events)));
            let notes = stream_note::read(&opened).unwrap();
            assert_eq!(notes.iter().map(|note| note.next).collect::<Vec<_>>(), [u64::from(chunk.batches[0].seq) + 1]);
        }
        assert_eq!(object.masking, Done { masked: 2, opened: 2, changed: 2, missed: 1, dropped: 0 });
        assert_eq!(object.streams.keys().copied().collect::<Vec<_>>(), [(key(1), 1), (key(2), 1), (key(3), 1)]);
    }

    #[test]
    fn a_copy_has_an_entry_and_no_bytes() {
        let mut records = with_meta(vec![(5, batch(1, 1, 0, b"events")), (6, batch(1, 1, 0, b"events"))]);
        records[1].0.kind = RecordKind::Copy(key(1));
        let keys = keys([1]);
        let object = assemble(&flush(7, (5, 7)), &records, &Staged::default(), &keys, &unknown()).unwrap();
        let footer = footer_of(&object, &keys);
        let [chunk] = footer.chunks.as_slice() else { panic!("{footer:?}") };
        let copies = chunk.batches.iter().map(|entry| (entry.offset, entry.is_copy()));
        assert_eq!(copies.collect::<Vec<_>>(), [(5, false), (6, true)]);
        let sealed = &object.body[(chunk.at + u64::from(chunk.batches[0].len)) as usize..][..TAG_BYTES];
        assert_eq!(chunk_opener(&keys.sessions[&key(1)], chunk).open(frame_at(1, 2), sealed).unwrap(), b"");
    }

    #[test]
    fn a_batch_of_a_session_set_aside_lies_under_a_record_s_seal_and_can_be_replayed() {
        let records = with_meta(vec![(5, batch(2, 1, 0, b"two")), (6, batch(1, 1, 0, b"one"))]);
        let keys = keys([1]);
        let staged = Staged { aside: vec![key(2)], ..Staged::default() };
        let object = assemble(&flush(7, (5, 7)), &records, &staged, &keys, &unknown()).unwrap();
        let footer = footer_of(&object, &keys);
        assert_eq!(footer.chunks.iter().map(|chunk| chunk.key).collect::<Vec<_>>(), [key(1)]);
        let [record] = footer.quarantined.as_slice() else { panic!("{footer:?}") };
        assert_eq!((record.offset, record.reason), (5, QuarantineReason::SessionKey));
        assert!(object.filter.may_contain(&key(2)), "who deletes the session finds the object");
        let value = &object.body[record.at as usize..][..record.len as usize];
        let opened = keys.transport.keys().open(&LogPlace { topic: "events", key: &record.record_key }, value).unwrap();
        let Content::Read(header, _) = &records[0].1.content else { panic!("it was read") };
        assert_eq!((&opened.header, &opened.bytes[opened.payload_at..]), (header, b"two".as_slice()));
    }
}
