//! The bytes of session objects. CPU work over objects in memory, done on the pool.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use engine::compaction::{Cut, FrameCutter};
use engine::merge::{Location, Merger, Plan, Range, SharedSource, Step};
use schemas::codec::{self, FormatError};
use schemas::object::ObjectKind;
use schemas::session_object::Footer as SessionFooter;
use schemas::shared_object::{Chunk, Footer as SharedFooter, Quarantined, SessionFilter};
use schemas::stream_note::{self, StreamNote};
use schemas::{ObjectId, SessionKey, limits};
use sealing::frames::{ChunkContext, ChunkKind, Opener, Sealer};
use sealing::objects::{
    OpenError, StorageKey, chunk_opener, frame_at, seal_session_footer, seal_shared_footer, session_opener,
};
use sealing::{Key, SealError};
use storage::footers::Footer;
use storage::index::Uploaded;
use storage::objects;
use storage::stream_notes::NotedFrame;
use thiserror::Error;

/// zstd's level for session objects: written once, read for a year.
const SESSION_ZSTD_LEVEL: i32 = 9;

/// An object in memory, with what its footer says of frames.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub(crate) body: Bytes,
    pub(crate) footer: Footer,
}

/// A chunk: the number of its object among those loaded, and its own in that object's footer.
pub(crate) type Place = (usize, usize);

/// Why a session cannot be merged.
#[derive(Debug, Error)]
pub(crate) enum MergeError {
    /// What is stored of it is not what was put there.
    #[error(transparent)]
    Corrupt(#[from] OpenError),
    /// Sealing failed; trying again may help.
    #[error("seal object")]
    Seal(#[from] SealError),
}

impl From<FormatError> for MergeError {
    fn from(error: FormatError) -> Self {
        Self::Corrupt(error.into())
    }
}

/// A session object that is ready for upload.
#[derive(Debug)]
pub(crate) struct Merged {
    pub(crate) body: Bytes,
    pub(crate) row: Uploaded,
}

/// The plan of one session: all session objects among those loaded, and the chunks at these places.
pub(crate) fn plan_of(places: &[Place], loaded: &[Loaded]) -> Plan {
    let mut merged = Vec::new();
    for (object, source) in loaded.iter().enumerate() {
        if let Footer::Session(footer) = &source.footer {
            merged.push((object, footer.as_ref()));
        }
    }
    let shared: Vec<SharedSource<'_>> = places
        .iter()
        .filter_map(|&(object, number)| match &loaded.get(object)?.footer {
            Footer::Shared(footer) => {
                Some(SharedSource { object, partition: footer.partition, number, chunk: footer.chunks.get(number)? })
            }
            Footer::Session(_) => None,
        })
        .collect();
    Plan::build(&merged, &shared)
}

/// Merges a session's batches into one object, sealed with the session's key. `plan` is that of the session objects among those
/// loaded and of the chunks at these places.
pub(crate) fn merge(
    id: ObjectId,
    key: SessionKey,
    data_key: &Key,
    plan: &Plan,
    objects: &[Loaded],
    places: &[Place],
) -> Result<Merged, MergeError> {
    let mismatch = |_| FormatError::Field("facts");
    let mut writer = ObjectWriter::new(id, key, data_key, plan)?;
    let mut cutter = FrameCutter::new(limits::FRAME_RAW_BYTES);
    let mut source = Source { data_key, objects, openers: BTreeMap::new(), frames: Vec::new() };
    let mut merger = Merger::new(plan, Range::ALL);
    loop {
        match merger.step().map_err(mismatch)? {
            Step::Need { stream, batch } => {
                let batch = &plan.streams[stream].batches[batch];
                let payload = source.load(&batch.location, batch.facts.raw_bytes as usize)?;
                merger.supply(stream, payload).map_err(mismatch)?;
            }
            Step::Event(event) => {
                if let Some(cut) = cutter.push(plan, &event, merger.bytes(&event)) {
                    writer.frame(cut)?;
                }
            }
            Step::Done => break,
        }
    }
    if let Some(cut) = cutter.finish() {
        writer.frame(cut)?;
    }
    Ok(writer.finish(data_key, &newest_notes(data_key, plan, objects, places))?)
}

/// The newest note of each stream that goes on, those with the latest events first. A frame that does not open has none: what is
/// merged decides whether the session is corrupt.
fn newest_notes(data_key: &Key, plan: &Plan, objects: &[Loaded], places: &[Place]) -> Vec<StreamNote> {
    let ranks: BTreeMap<u32, usize> = plan.open_streams().into_iter().zip(0..).collect();
    let in_chunks = places.iter().filter_map(|&(object, number)| match &objects.get(object)?.footer {
        Footer::Shared(footer) => Some((object, NotedFrame::of_chunk(number, footer.chunks.get(number)?)?)),
        Footer::Session(_) => None,
    });
    let in_session_objects = objects.iter().enumerate().filter_map(|(object, loaded)| match &loaded.footer {
        Footer::Session(footer) => Some((object, NotedFrame::of_session(footer)?)),
        Footer::Shared(_) => None,
    });
    let mut newest: BTreeMap<usize, StreamNote> = BTreeMap::new();
    for (object, frame) in in_chunks.chain(in_session_objects) {
        let loaded = &objects[object];
        let sealed = slice(&loaded.body, frame.at, u64::from(frame.len)).map_err(OpenError::from);
        let notes = sealed.and_then(|sealed| frame.open(&loaded.footer, data_key, sealed)).unwrap_or_default();
        for note in notes {
            let Some(rank) = ranks.get(&note.stream) else { continue };
            if newest.get(rank).is_none_or(|other| note.is_newer_than(other)) {
                newest.insert(*rank, note);
            }
        }
        // No more are written; a session may have many thousands of streams.
        while newest.len() > limits::STREAM_NOTES_MAX {
            newest.pop_last();
        }
    }
    newest.into_values().collect()
}

struct ObjectWriter {
    body: Vec<u8>,
    footer: SessionFooter,
    sealer: Sealer,
    /// The latest frame, compressed. Whether it is the last is known when the next one comes, or none.
    held_back: Option<(Cut, Vec<u8>)>,
}

impl ObjectWriter {
    fn new(id: ObjectId, key: SessionKey, data_key: &Key, plan: &Plan) -> Result<Self, SealError> {
        let sealer = Sealer::new(data_key, ChunkContext { session: key, kind: ChunkKind::Session })?;
        let footer = SessionFooter {
            object: id,
            key,
            chunk: *sealer.chunk().as_bytes(),
            frames: Vec::new(),
            streams: plan.stream_infos(),
            duplicates: plan.duplicates,
            conflicts: plan.conflicts,
        };
        Ok(Self { body: ObjectKind::Session.preamble().to_vec(), footer, sealer, held_back: None })
    }

    fn frame(&mut self, cut: Cut) -> Result<(), SealError> {
        let compressed = codec::compress(&cut.raw, SESSION_ZSTD_LEVEL);
        if let Some((before, frame)) = self.held_back.replace((cut, compressed)) {
            let at = self.body.len() as u64;
            let len = self.sealer.seal(&frame, &mut self.body)?;
            self.footer.frames.push(before.frame(at, len as u32));
        }
        Ok(())
    }

    /// `notes` go behind the last frame's events. An object without events has no frame, and no place for them.
    fn finish(self, data_key: &Key, notes: &[StreamNote]) -> Result<Merged, SealError> {
        let Self { mut body, mut footer, sealer, held_back } = self;
        if let Some((last, mut frame)) = held_back {
            stream_note::append(&mut frame, notes);
            let at = body.len() as u64;
            let len = sealer.seal_last(&frame, &mut body)?;
            footer.frames.push(last.frame(at, len as u32));
        }
        let region = seal_session_footer(data_key, &footer)?;
        let (body, row) = objects::finish(footer.object, ObjectKind::Session, body, &region, None, 0);
        Ok(Merged { body, row })
    }
}

/// What a session's batches are read from.
struct Source<'a> {
    data_key: &'a Key,
    objects: &'a [Loaded],
    /// By object and chunk; a session object is one chunk.
    openers: BTreeMap<(usize, usize), Opener>,
    /// The last opened frame of each session object: neighbouring batches share it.
    frames: Vec<(usize, usize, Vec<u8>)>,
}

impl Source<'_> {
    fn load(&mut self, location: &Location, raw_bytes: usize) -> Result<Vec<u8>, OpenError> {
        match *location {
            Location::Shared { object, chunk: number, frame, at, len } => {
                let loaded = self.objects.get(object).ok_or(FormatError::Field("object"))?;
                let chunk = match &loaded.footer {
                    Footer::Shared(footer) => footer.chunks.get(number).ok_or(FormatError::Field("chunk"))?,
                    Footer::Session(_) => return Err(FormatError::Field("kind").into()),
                };
                let sealed = slice(&loaded.body, at, u64::from(len))?;
                let data_key = self.data_key;
                let opener = self.openers.entry((object, number)).or_insert_with(|| chunk_opener(data_key, chunk));
                let opened = opener.open(frame_at(frame, chunk.batches.len()), sealed)?;
                Ok(codec::decompress(&opened, raw_bytes)?)
            }
            Location::Session { object, ref pieces } => {
                let mut payload = Vec::with_capacity(raw_bytes);
                for piece in pieces {
                    let raw = self.frame(object, piece.frame)?;
                    let part = raw.get(piece.at as usize..(piece.at + piece.len) as usize);
                    payload.extend_from_slice(part.ok_or(FormatError::Truncated)?);
                }
                Ok(payload)
            }
        }
    }

    /// A frame of a session object, opened and decompressed.
    fn frame(&mut self, object: usize, number: usize) -> Result<&[u8], OpenError> {
        let place = match self.frames.iter().position(|(of, ..)| *of == object) {
            Some(place) if self.frames[place].1 == number => place,
            found => {
                let loaded = self.objects.get(object).ok_or(FormatError::Field("object"))?;
                let Footer::Session(footer) = &loaded.footer else { return Err(FormatError::Field("kind").into()) };
                let entry = footer.frames.get(number).ok_or(FormatError::Field("frame"))?;
                let sealed = slice(&loaded.body, entry.at, u64::from(entry.len))?;
                let data_key = self.data_key;
                let opener = self.openers.entry((object, 0)).or_insert_with(|| session_opener(data_key, footer));
                let opened = opener.open(frame_at(number, footer.frames.len()), sealed)?;
                let raw = codec::decompress(&opened, entry.raw_len as usize)?;
                if let Some(place) = found {
                    self.frames.swap_remove(place);
                }
                self.frames.push((object, number, raw));
                self.frames.len() - 1
            }
        };
        Ok(&self.frames[place].2)
    }
}

fn slice(body: &Bytes, at: u64, len: u64) -> Result<&[u8], FormatError> {
    body.get(at as usize..(at + len) as usize).ok_or(FormatError::Truncated)
}

/// What goes into a quarantine object: nobody can read it, and none of it is changed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unreadable {
    /// Records, under whatever seal they have.
    records: Vec<(Quarantined, Bytes)>,
    /// Chunks of sessions that could not be merged, under their session's seal.
    chunks: Vec<(Chunk, Bytes)>,
    /// Whether it holds an object without a readable footer: nobody knows whose frames that holds.
    of_anybody: bool,
}

impl Unreadable {
    /// The unreadable records of these shared objects: they go into quarantine whatever happens.
    pub(crate) fn records_of(objects: &[Loaded]) -> Self {
        let mut found = Self::default();
        for loaded in objects {
            let Footer::Shared(footer) = &loaded.footer else { continue };
            for record in &footer.quarantined {
                // A piece that begins before the preamble's end is no record, see `wholly_corrupt`.
                found.of_anybody |= record.at == 0;
                let bytes = loaded.body.slice(record.at as usize..(record.at + u64::from(record.len)) as usize);
                found.records.push((record.clone(), bytes));
            }
        }
        found
    }

    /// Adds the chunks of a session that could not be merged.
    pub(crate) fn add_session(&mut self, key: SessionKey, objects: &[Loaded]) {
        for loaded in objects {
            let Footer::Shared(footer) = &loaded.footer else { continue };
            for chunk in footer.chunks.iter().filter(|chunk| chunk.key == key) {
                let bytes = loaded.body.slice(chunk.at as usize..(chunk.at + chunk.len()) as usize);
                self.chunks.push((chunk.clone(), bytes));
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty() && self.chunks.is_empty()
    }

    /// Records and batches in it.
    pub(crate) fn len(&self) -> usize {
        self.records.len() + self.chunks.iter().map(|(chunk, _)| chunk.batches.len()).sum::<usize>()
    }

    /// The filter of the sessions that it holds chunks of; `None` when it may hold those of any.
    pub(crate) fn filter(&self) -> Option<SessionFilter> {
        let sessions: Vec<SessionKey> = self.chunks.iter().map(|(chunk, _)| chunk.key).collect();
        (!self.of_anybody).then(|| SessionFilter::build(sessions.iter()))
    }

    /// A quarantine object of it.
    pub(crate) fn object(&self, id: ObjectId, partition: i32, storage: &StorageKey) -> Result<Merged, SealError> {
        let mut body = ObjectKind::Shared.preamble().to_vec();
        let offsets = || {
            let batches = self.chunks.iter().flat_map(|(chunk, _)| &chunk.batches).map(|batch| batch.offset);
            self.records.iter().map(|(record, _)| record.offset).chain(batches)
        };
        let mut footer = SharedFooter {
            object: id,
            partition,
            offset_first: offsets().min().unwrap_or(0),
            offset_next: offsets().max().map_or(0, |last| last.saturating_add(1)),
            chunks: Vec::with_capacity(self.chunks.len()),
            quarantined: Vec::with_capacity(self.records.len()),
        };
        for (chunk, bytes) in &self.chunks {
            footer.chunks.push(Chunk { at: body.len() as u64, ..chunk.clone() });
            body.extend_from_slice(bytes);
        }
        for (record, bytes) in &self.records {
            footer.quarantined.push(Quarantined { at: body.len() as u64, ..record.clone() });
            body.extend_from_slice(bytes);
        }
        let region = seal_shared_footer(storage, &footer)?;
        let quarantined = footer.quarantined.len();
        let (body, row) = objects::finish(id, ObjectKind::Shared, body, &region, Some(storage.version), quarantined);
        Ok(Merged { body, row })
    }
}

/// A shared object whose footer cannot be read: nobody knows what lies where in it, so all of it is one unreadable piece.
/// `None` when it is of another version: a newer release may read it.
pub(crate) fn wholly_corrupt(id: ObjectId, body: Bytes) -> Option<Loaded> {
    // Only a version tells of a newer release: a beginning that is zeroed or cut off is damage like any other.
    let is_newer = matches!(ObjectKind::of(&body), Err(FormatError::Version(_)));
    let len = u32::try_from(body.len()).ok().filter(|_| !is_newer)?;
    let whole = Quarantined::damaged_object(len);
    let footer = SharedFooter {
        object: id,
        partition: 0,
        offset_first: 0,
        offset_next: 0,
        chunks: Vec::new(),
        quarantined: vec![whole],
    };
    Some(Loaded { body, footer: Footer::Shared(Arc::new(footer)) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schemas::shared_object::BatchEntry;
    use schemas::{BatchFacts, SessionId, WorkspaceId};
    use sealing::frames::seal_chunk;
    use sealing::keyring::KeyVersion;
    use sealing::objects::{open_session_footer, open_shared_footer};
    use uuid::Uuid;

    use super::*;

    fn storage() -> StorageKey {
        StorageKey { version: KeyVersion(1), key: Key::new([9; 32]) }
    }

    fn footer_of(object: &Merged) -> SharedFooter {
        let (at, len) = (object.row.footer.at, object.row.footer.len as usize);
        let region = &object.body[at as usize..at as usize + len];
        open_shared_footer(&storage().key, object.row.id, region, at).unwrap()
    }

    #[test]
    fn an_object_without_a_readable_footer_is_kept_byte_for_byte() {
        let id = ObjectId(Uuid::from_u128(4));
        let body = Bytes::from_static(b"CLVS\x01whatever was there");
        let found = Unreadable::records_of(&[wholly_corrupt(id, body.clone()).unwrap()]);
        assert!(found.filter().is_none(), "it may hold frames of any session");
        let object = found.object(id, 3, &storage()).unwrap();
        let place = &footer_of(&object).quarantined[0];
        assert!(place.is_damaged_object(), "nobody takes it for a record");
        assert_eq!(object.row.quarantined, 1);
        assert_eq!(object.body.slice(place.at as usize..place.at as usize + place.len as usize), body);
        assert!(wholly_corrupt(id, Bytes::from_static(b"CLVS\x02newer")).is_none());
        for damaged in [b"".as_slice(), b"CLV", b"\0\0\0\0\0\0\0"] {
            assert!(
                wholly_corrupt(id, Bytes::from_static(damaged)).is_some(),
                "it would hold up its partition for ever"
            );
        }
    }

    #[test]
    fn chunks_that_cannot_be_merged_are_moved_as_they_are_and_still_open() {
        let key = SessionKey { workspace: WorkspaceId(Uuid::from_u128(1)), session: SessionId(Uuid::from_u128(2)) };
        let data_key = Key::new([5; 32]);
        let mut body = ObjectKind::Shared.preamble().to_vec();
        let context = ChunkContext { session: key, kind: ChunkKind::Shared };
        let (chunk, lens) = seal_chunk(&data_key, context, [b"one".as_slice(), b"two"], &mut body).unwrap();
        let entry = |(seq, len): (usize, &usize)| BatchEntry {
            seq: seq as u32,
            end: false,
            offset: 7 + seq as u64,
            len: *len as u32,
            facts: BatchFacts::default(),
        };
        let batches = lens.iter().enumerate().map(entry).collect();
        let chunk = Chunk { key, stream: 1, id: *chunk.as_bytes(), at: 5, batches };
        let footer = SharedFooter {
            object: ObjectId(Uuid::nil()),
            partition: 3,
            offset_first: 7,
            offset_next: 9,
            chunks: vec![chunk],
            quarantined: Vec::new(),
        };
        let loaded = [Loaded { body: body.into(), footer: Footer::Shared(Arc::new(footer)) }];
        let mut found = Unreadable::default();
        found.add_session(key, &loaded);
        assert_eq!(found.len(), 2);
        assert!(found.filter().unwrap().may_contain(&key));
        let object = found.object(ObjectId(Uuid::from_u128(8)), 3, &storage()).unwrap();
        let footer = footer_of(&object);
        assert_eq!((footer.offset_first, footer.offset_next), (7, 9));
        let moved = &footer.chunks[0];
        let last = moved.at as usize + lens[0]..moved.at as usize + lens[0] + lens[1];
        let opened = chunk_opener(&data_key, moved).open(frame_at(1, 2), &object.body[last]);
        assert_eq!(opened.as_deref(), Ok(b"two".as_slice()));
    }

    fn session() -> SessionKey {
        SessionKey { workspace: WorkspaceId(Uuid::from_u128(1)), session: SessionId(Uuid::from_u128(2)) }
    }

    fn data_key() -> Key {
        Key::new([5; 32])
    }

    /// A batch on its way into a chunk: its seq, the time of its one event, whether it is the last.
    #[derive(Debug, Clone, Copy)]
    struct Batch {
        seq: u32,
        at: Option<i64>,
        end: bool,
    }

    /// A shared object of one chunk, with a note behind the last frame.
    fn shared(offset: u64, stream: u32, batches: &[Batch], note: Option<&StreamNote>) -> Loaded {
        let mut body = ObjectKind::Shared.preamble().to_vec();
        let at = body.len() as u64;
        let payload = |batch: &Batch| {
            let event = batch.at.map(|at| format!("{{\"type\":3,\"timestamp\":{at},\"data\":{{}}}}\n"));
            event.unwrap_or_default().into_bytes()
        };
        let compressed = |raw: &Vec<u8>| if raw.is_empty() { Vec::new() } else { codec::compress(raw, 1) };
        let payloads: Vec<Vec<u8>> = batches.iter().map(payload).collect();
        let mut frames: Vec<Vec<u8>> = payloads.iter().map(compressed).collect();
        stream_note::append(frames.last_mut().unwrap(), note);
        let context = ChunkContext { session: session(), kind: ChunkKind::Shared };
        let (id, lens) = seal_chunk(&data_key(), context, frames.iter().map(Vec::as_slice), &mut body).unwrap();
        let entry = |(number, batch): (usize, &Batch)| {
            let raw = &payloads[number];
            let facts = BatchFacts {
                events: u32::from(batch.at.is_some()),
                raw_bytes: raw.len() as u32,
                ts_min: batch.at.unwrap_or(0),
                ts_max: batch.at.unwrap_or(0),
                content_hash: BatchFacts::hash(raw),
                ..BatchFacts::default()
            };
            BatchEntry { seq: batch.seq, end: batch.end, offset, len: lens[number] as u32, facts }
        };
        let batches = batches.iter().enumerate().map(entry).collect();
        let footer = SharedFooter {
            object: ObjectId(Uuid::nil()),
            partition: 3,
            offset_first: offset,
            offset_next: offset + 1,
            chunks: vec![Chunk { key: session(), stream, id: *id.as_bytes(), at, batches }],
            quarantined: Vec::new(),
        };
        Loaded { body: body.into(), footer: Footer::Shared(Arc::new(footer)) }
    }

    /// Merges objects as a run or as parts, and reads what was made.
    fn merged(objects: &[Loaded]) -> Loaded {
        let shared = objects.iter().enumerate().filter(|(_, loaded)| matches!(loaded.footer, Footer::Shared(_)));
        let places: Vec<Place> = shared.map(|(object, _)| (object, 0)).collect();
        let (id, plan) = (ObjectId(Uuid::from_u128(9)), plan_of(&places, objects));
        let made = merge(id, session(), &data_key(), &plan, objects, &places).unwrap();
        let (at, len) = (made.row.footer.at, made.row.footer.len as usize);
        let region = &made.body[at as usize..at as usize + len];
        let footer = open_session_footer(&data_key(), session(), id, region, at).unwrap();
        Loaded { body: made.body, footer: Footer::Session(Arc::new(footer)) }
    }

    /// The notes of a session object, as they lie behind its last frame, and all its events.
    fn read(loaded: &Loaded) -> (Vec<StreamNote>, String) {
        let Footer::Session(footer) = &loaded.footer else { panic!("it is a session object") };
        let (opener, mut notes, mut events) = (session_opener(&data_key(), footer), Vec::new(), Vec::new());
        for (number, frame) in footer.frames.iter().enumerate() {
            let sealed = slice(&loaded.body, frame.at, u64::from(frame.len)).unwrap();
            let opened = opener.open(frame_at(number, footer.frames.len()), sealed).unwrap();
            events.extend(codec::decompress(&opened, frame.raw_len as usize).unwrap());
            assert!(notes.is_empty(), "notes come last");
            notes = stream_note::read(&opened).unwrap();
        }
        (notes, String::from_utf8(events).unwrap())
    }

    fn note(stream: u32, next: u64, state: &[u8]) -> StreamNote {
        StreamNote { stream, next, state: state.to_vec() }
    }

    const fn batch(seq: u32, at: i64) -> Batch {
        Batch { seq, at: Some(at), end: false }
    }

    proptest! {
        /// Goal: whoever takes a stream over finds its newest note, however the session was merged. Method: chunks with notes in
        /// any order are merged in runs, and the parts in any order, some of them twice; of batches without events too, of which
        /// the note alone is stored.
        #[test]
        fn the_note_that_is_found_last_is_the_greatest_of_all(
            chunks in prop::collection::vec((0..3_u32, 0..6_u64, any::<[u8; 2]>(), any::<bool>(), any::<bool>()), 1..12),
            order in Just((0..12).collect::<Vec<usize>>()).prop_shuffle(),
            runs in 1..5_usize,
            merged_before in 0..4_usize,
            ended in prop::option::of(0..3_u32),
        ) {
            let mut expected: BTreeMap<u32, StreamNote> = BTreeMap::new();
            let mut objects = Vec::new();
            for (number, (stream, next, state, has_note, is_empty)) in chunks.iter().enumerate() {
                let of = note(*stream, *next, state);
                let made = has_note.then_some(&of);
                let last = Batch { seq: number as u32 * 2 + 1, at: (!is_empty).then_some(number as i64), end: false };
                objects.push(shared(number as u64, *stream, &[batch(number as u32 * 2, number as i64), last], made));
                if made.is_some() && ended != Some(*stream) {
                    let newest = expected.entry(*stream).or_insert_with(|| of.clone());
                    if of.is_newer_than(newest) {
                        *newest = of;
                    }
                }
            }
            if let Some(stream) = ended {
                objects.push(shared(90, stream, &[Batch { end: true, ..batch(99, 99) }], None));
            }
            let all_events = read(&merged(&objects)).1;
            let mut by_run: Vec<Vec<Loaded>> = vec![Vec::new(); runs];
            for (place, number) in order.iter().filter(|number| **number < objects.len()).enumerate() {
                by_run[place % runs].push(objects[*number].clone());
            }
            // One that the list of a dozen numbers does not reach.
            by_run[0].extend(objects.get(12).cloned());
            let mut parts: Vec<Loaded> = by_run.iter().filter(|run| !run.is_empty()).map(|run| merged(run)).collect();
            for _ in 0..merged_before.min(parts.len() - 1) {
                let (one, other) = (parts.remove(0), parts.remove(0));
                parts.push(merged(&[one, other]));
            }
            let (notes, events) = read(&merged(&parts));
            prop_assert_eq!(&events, &all_events);
            let found: BTreeMap<u32, StreamNote> = notes.into_iter().map(|note| (note.stream, note)).collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn notes_of_the_latest_streams_are_carried_as_far_as_they_are_allowed() {
        let carried = |count: u32, state: usize| {
            let chunk = |stream| {
                let of = note(stream, 1, &vec![1; state]);
                shared(u64::from(stream), stream, &[batch(0, i64::from(stream))], Some(&of))
            };
            let objects: Vec<Loaded> = (0..count).map(chunk).collect();
            read(&merged(&objects)).0.iter().map(|note| note.stream).collect::<Vec<_>>()
        };
        assert_eq!(carried(70, 10), (6..70).rev().collect::<Vec<_>>());
        assert_eq!(carried(40, limits::STREAM_STATE_BYTES_MAX), (9..40).rev().collect::<Vec<_>>());
    }

    #[test]
    fn a_frame_of_notes_that_does_not_open_costs_its_note_and_nothing_else() {
        let (one, two) = (note(1, 1, b"one"), note(1, 3, b"two"));
        let first = shared(1, 1, &[batch(0, 5)], Some(&one));
        let mut damaged = shared(2, 1, &[batch(1, 6), Batch { seq: 2, at: None, end: false }], Some(&two));
        let mut body = damaged.body.to_vec();
        *body.last_mut().unwrap() ^= 1;
        damaged.body = body.into();
        let (notes, events) = read(&merged(&[first, damaged]));
        assert_eq!((notes, events.lines().count()), (vec![one], 2));
        let nothing = shared(1, 1, &[Batch { seq: 0, at: None, end: false }], Some(&two));
        assert_eq!(read(&merged(&[nothing])), (Vec::new(), String::new()), "there is no frame to put it behind");
    }
}
