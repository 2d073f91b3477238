//! The bytes of session objects: work on the pool, over bytes that are fetched when their turn comes.

use std::sync::Arc;

use bytes::Bytes;
use engine::compaction::{Cut, FrameCutter};
use engine::merge::{Plan, Range, SharedSource};
use schemas::codec::{Compressor, FormatError};
use schemas::object::ObjectKind;
use schemas::paths::ObjectKey;
use schemas::session_object::{Footer as SessionFooter, Frame};
use schemas::shared_object::{Chunk, Footer as SharedFooter, Quarantined};
use schemas::stream_note::{self, StreamNote};
use schemas::{ObjectId, SessionKey, limits};
use sealing::frames::{ChunkContext, ChunkKind, Sealer};
use sealing::objects::{StorageKey, seal_session_footer, seal_shared_footer};
use sealing::{Key, SealError};
use storage::footers::Footer;
use storage::index::FooterAt;
use storage::reading::walk::{Corrupt, Source, Turn, Walk};
use storage::reading::windows::Windows;
use storage::reading::{Halt, Work};
use storage::stream_notes::NotedFrame;
use thiserror::Error;

/// The level for what is merged once more when its session is over. Of the low levels it gives the fewest bytes here and takes the
/// least time; `bench sizes` has the table.
const PART_ZSTD_LEVEL: i32 = 1;
/// Bytes of an object that are handed on at once.
const OUTPUT_BYTES: usize = limits::MIB;

/// A chunk: the number of its object among the sources, and its own in that object's footer.
pub(crate) type Place = (usize, usize);

/// Why a session cannot be merged.
#[derive(Debug, Error)]
pub(crate) enum MergeError {
    /// What is stored of it is not what was put there.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// Its footer would be larger than what any reader takes.
    #[error("the footer of {0} bytes is too large")]
    TooLarge(usize),
    /// Sealing failed; trying again may help.
    #[error("seal object")]
    Seal(#[from] SealError),
}

/// The plan of one session: all session objects among the sources, and the chunks at these places.
pub(crate) fn plan_of(places: &[Place], sources: &[Source]) -> Plan {
    let mut merged = Vec::new();
    for (object, source) in sources.iter().enumerate() {
        if let Footer::Session(footer) = &source.footer {
            merged.push((object, footer.as_ref()));
        }
    }
    let shared: Vec<SharedSource<'_>> = places
        .iter()
        .filter_map(|&(object, number)| match &sources.get(object)?.footer {
            Footer::Shared(footer) => {
                Some(SharedSource { object, partition: footer.partition, number, chunk: footer.chunks.get(number)? })
            }
            Footer::Session(_) => None,
        })
        .collect();
    Plan::build(&merged, &shared)
}

/// The frames that notes may stand in.
fn noted_frames(places: &[Place], sources: &[Source]) -> Vec<(usize, NotedFrame)> {
    let in_chunks = places.iter().filter_map(|&(object, number)| match &sources.get(object)?.footer {
        Footer::Shared(footer) => Some((object, NotedFrame::of_chunk(number, footer.chunks.get(number)?)?)),
        Footer::Session(_) => None,
    });
    let in_session_objects = sources.iter().enumerate().filter_map(|(object, source)| match &source.footer {
        Footer::Session(footer) => Some((object, NotedFrame::of_session(footer)?)),
        Footer::Shared(_) => None,
    });
    in_chunks.chain(in_session_objects).collect()
}

/// How long an object lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lasting {
    /// It may be the session's only one, and is not written again then.
    Kept,
    /// Its session has parts already, so all of them become one object at its end.
    UntilTheEnd,
}

impl Lasting {
    fn zstd_level(self) -> i32 {
        match self {
            Self::Kept => limits::SESSION_ZSTD_LEVEL,
            Self::UntilTheEnd => PART_ZSTD_LEVEL,
        }
    }
}

/// Merges a session's batches into one object, sealed with the session's key.
#[derive(Debug)]
pub(crate) struct Merging {
    walk: Walk,
    cutter: FrameCutter,
    writer: ObjectWriter,
    is_ended: bool,
}

impl Merging {
    /// Of the session objects among these sources, and the chunks at these places.
    pub(crate) fn new(
        id: ObjectId,
        key: SessionKey,
        data_key: &Key,
        sources: &Arc<[Source]>,
        places: &[Place],
        lasting: Lasting,
    ) -> Result<Self, SealError> {
        let plan = Arc::new(plan_of(places, sources));
        let writer = ObjectWriter::new(id, key, data_key, &plan, lasting)?;
        let mut walk = Walk::new(Arc::clone(sources), plan, Range::ALL);
        walk.collect_notes(noted_frames(places, sources));
        Ok(Self { walk, cutter: FrameCutter::new(limits::FRAME_RAW_BYTES), writer, is_ended: false })
    }

    /// What it merges.
    pub(crate) fn plan(&self) -> &Plan {
        self.walk.plan()
    }

    /// The next bytes of the object.
    pub(crate) fn take(&mut self) -> Bytes {
        self.writer.take()
    }

    /// Where the footer's region is, at the end.
    pub(crate) fn footer(&self) -> FooterAt {
        self.writer.footer_at
    }
}

impl Work for Merging {
    type Error = MergeError;

    fn go(&mut self, key: &Key) -> Result<Halt, MergeError> {
        while self.writer.body.len() < OUTPUT_BYTES && !self.is_ended {
            match self.walk.turn(key)? {
                Turn::Event(event) => {
                    if let Some(cut) = self.cutter.push(self.walk.plan(), &event, self.walk.bytes(&event)) {
                        self.writer.frame(cut)?;
                    }
                }
                Turn::Fetch(window) => return Ok(Halt::Fetch(window)),
                Turn::Done => {
                    if let Some(cut) = self.cutter.finish() {
                        self.writer.frame(cut)?;
                    }
                    let notes = self.walk.take_notes(key);
                    self.writer.finish(key, &notes)?;
                    self.is_ended = true;
                }
            }
        }
        Ok(if self.is_ended { Halt::Done } else { Halt::Full })
    }

    fn windows(&mut self) -> &mut Windows {
        self.walk.windows()
    }

    fn source(&self, object: usize) -> Option<&Source> {
        self.walk.sources().get(object)
    }
}

struct ObjectWriter {
    /// What was not taken yet.
    body: Vec<u8>,
    /// Bytes of the object before it.
    taken: u64,
    footer: SessionFooter,
    footer_at: FooterAt,
    compressor: Compressor,
    /// None once the last frame was sealed.
    sealer: Option<Sealer>,
    /// The latest frame, compressed, and its entry but for its place. Whether it is the last is known when the next one comes, or
    /// none.
    held_back: Option<(Frame, Vec<u8>)>,
}

impl std::fmt::Debug for ObjectWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectWriter").field("object", &self.footer.object).finish_non_exhaustive()
    }
}

impl ObjectWriter {
    fn new(id: ObjectId, key: SessionKey, data_key: &Key, plan: &Plan, lasting: Lasting) -> Result<Self, SealError> {
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
        Ok(Self {
            body: ObjectKind::Session.preamble().to_vec(),
            taken: 0,
            footer,
            footer_at: FooterAt { at: 0, len: 0 },
            compressor: Compressor::new(lasting.zstd_level()),
            sealer: Some(sealer),
            held_back: None,
        })
    }

    fn at(&self) -> u64 {
        self.taken + self.body.len() as u64
    }

    fn take(&mut self) -> Bytes {
        let body = std::mem::take(&mut self.body);
        self.taken += body.len() as u64;
        body.into()
    }

    fn frame(&mut self, cut: Cut) -> Result<(), SealError> {
        let compressed = self.compressor.compress(&cut.raw);
        if let Some((entry, frame)) = self.held_back.replace((cut.frame(0, 0), compressed))
            && let Some(sealer) = &mut self.sealer
        {
            let at = self.taken + self.body.len() as u64;
            let len = sealer.seal(&frame, &mut self.body)? as u32;
            self.footer.frames.push(Frame { at, len, ..entry });
        }
        Ok(())
    }

    /// `notes` go behind the last frame's events. An object without events has no frame, and no place for them.
    fn finish(&mut self, data_key: &Key, notes: &[StreamNote]) -> Result<(), MergeError> {
        if let Some((entry, mut frame)) = self.held_back.take()
            && let Some(sealer) = self.sealer.take()
        {
            stream_note::append(&mut frame, notes);
            let at = self.at();
            let len = sealer.seal_last(&frame, &mut self.body)? as u32;
            self.footer.frames.push(Frame { at, len, ..entry });
        }
        let raw_len = self.footer.raw_len();
        if raw_len > limits::FOOTER_RAW_BYTES_MAX {
            return Err(MergeError::TooLarge(raw_len));
        }
        let region = seal_session_footer(data_key, &self.footer)?;
        self.footer_at = FooterAt { at: self.at(), len: region.len() as u32 };
        self.body.extend_from_slice(&region);
        self.body.extend_from_slice(&ObjectKind::Session.trailer(self.footer_at.len));
        Ok(())
    }
}

fn slice(source: &Source, at: u64, len: u64) -> Bytes {
    let range = at as usize..(at + len) as usize;
    source.body.as_ref().filter(|body| body.len() >= range.end).map(|body| body.slice(range)).unwrap_or_default()
}

/// What goes into a quarantine object: nobody can read it, and none of it is changed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Unreadable {
    /// Records, under whatever seal they have.
    records: Vec<(Quarantined, Bytes)>,
    /// Chunks of sessions that could not be merged, under their session's seal.
    chunks: Vec<(Chunk, Bytes)>,
}

impl Unreadable {
    /// The unreadable records of these shared objects: they go into quarantine whatever happens.
    pub(crate) fn records_of(objects: &[Source]) -> Self {
        let mut found = Self::default();
        for source in objects {
            let Footer::Shared(footer) = &source.footer else { continue };
            for record in &footer.quarantined {
                found.records.push((record.clone(), slice(source, record.at, u64::from(record.len))));
            }
        }
        found
    }

    /// Adds chunks that could not be merged.
    pub(crate) fn add_chunks(&mut self, places: &[Place], objects: &[Source]) {
        for (object, number) in places {
            let Some(source @ Source { footer: Footer::Shared(footer), .. }) = objects.get(*object) else { continue };
            if let Some(chunk) = footer.chunks.get(*number) {
                self.chunks.push((chunk.clone(), slice(source, chunk.at, chunk.len())));
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

    /// A quarantine object of it.
    pub(crate) fn object(&self, id: ObjectId, partition: i32, storage: &StorageKey) -> Result<SetAside, SealError> {
        let preamble = Bytes::copy_from_slice(&ObjectKind::Shared.preamble());
        let mut at = preamble.len() as u64;
        let mut pieces = vec![preamble];
        let mut append = |bytes: &Bytes| {
            let begins = at;
            at += bytes.len() as u64;
            pieces.push(bytes.clone());
            begins
        };
        let chunks = self.chunks.iter().map(|(chunk, bytes)| Chunk { at: append(bytes), ..chunk.clone() }).collect();
        let records = self.records.iter();
        let quarantined = records.map(|(record, bytes)| Quarantined { at: append(bytes), ..record.clone() }).collect();
        let batches = self.chunks.iter().flat_map(|(chunk, _)| &chunk.batches).map(|batch| batch.offset);
        let offsets: Vec<u64> = self.records.iter().map(|(record, _)| record.offset).chain(batches).collect();
        let footer = SharedFooter {
            object: id,
            partition,
            offset_first: offsets.iter().min().copied().unwrap_or(0),
            offset_next: offsets.iter().max().map_or(0, |last| last.saturating_add(1)),
            chunks,
            quarantined,
        };
        let region = seal_shared_footer(storage, &footer)?;
        let len = region.len() as u32;
        pieces.extend([region.into(), Bytes::copy_from_slice(&ObjectKind::Shared.trailer(len))]);
        Ok(SetAside { pieces, footer: FooterAt { at, len }, quarantined: footer.quarantined.len() })
    }
}

/// A quarantine object that is ready for upload.
#[derive(Debug)]
pub(crate) struct SetAside {
    /// Its bytes, most of them where they lay before.
    pub(crate) pieces: Vec<Bytes>,
    /// Where the footer's region is.
    pub(crate) footer: FooterAt,
    /// Unreadable records that the footer lists.
    pub(crate) quarantined: usize,
}

/// A shared object whose footer cannot be read: nobody knows what lies where in it, so all of it is one unreadable piece. An empty
/// one where the object is gone.
/// `None` when it is of another version: a newer release may read it.
pub(crate) fn wholly_corrupt(key: ObjectKey, body: Bytes) -> Option<Source> {
    // Only a version tells of a newer release: a beginning that is zeroed or cut off is damage like any other.
    let is_newer = matches!(ObjectKind::of(&body), Err(FormatError::Version(_)));
    let len = u32::try_from(body.len()).ok().filter(|_| !is_newer)?;
    let whole = Quarantined::damaged_object(len);
    let footer = SharedFooter {
        object: key.id(),
        partition: 0,
        offset_first: 0,
        offset_next: 0,
        chunks: Vec::new(),
        quarantined: vec![whole],
    };
    Some(Source { key, footer: Footer::Shared(Arc::new(footer)), body: Some(body) })
}

/// Whether a source is one of those. A piece that begins before the preamble's end is no record.
pub(crate) fn is_wholly_corrupt(source: &Source) -> bool {
    matches!(&source.footer, Footer::Shared(footer) if footer.quarantined.iter().any(|record| record.is_damaged_object() && record.at == 0))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use schemas::codec;
    use schemas::shared_object::BatchEntry;
    use schemas::{BatchFacts, SessionId, WorkspaceId};
    use sealing::frames::seal_chunk;
    use sealing::keyring::KeyVersion;
    use sealing::objects::{chunk_opener, frame_at, open_session_footer, open_shared_footer, session_opener};
    use uuid::Uuid;

    use super::*;

    fn storage() -> StorageKey {
        StorageKey { version: KeyVersion(1), key: Key::new([9; 32]) }
    }

    fn set_aside(found: &Unreadable, id: ObjectId) -> (SharedFooter, Bytes) {
        let object = found.object(id, 3, &storage()).unwrap();
        let body = Bytes::from(object.pieces.concat());
        let (at, len) = (object.footer.at, object.footer.len as usize);
        let footer = open_shared_footer(&storage().key, id, &body[at as usize..at as usize + len], at).unwrap();
        assert_eq!(footer.quarantined.len(), object.quarantined);
        (footer, body)
    }

    fn shared_key(id: u128) -> ObjectKey {
        ObjectKey::Shared { partition: 3, id: ObjectId(Uuid::from_u128(id)) }
    }

    #[test]
    fn an_object_without_a_readable_footer_is_kept_byte_for_byte() {
        let key = shared_key(4);
        let body = Bytes::from_static(b"CLVS\x01whatever was there");
        let found = Unreadable::records_of(&[wholly_corrupt(key, body.clone()).unwrap()]);
        let (footer, object) = set_aside(&found, key.id());
        let place = &footer.quarantined[0];
        assert!(place.is_damaged_object(), "nobody takes it for a record");
        assert_eq!(footer.quarantined.len(), 1);
        assert_eq!(object.slice(place.at as usize..place.at as usize + place.len as usize), body);
        assert!(wholly_corrupt(key, Bytes::from_static(b"CLVS\x02newer")).is_none());
        let gone = Unreadable::records_of(&[wholly_corrupt(key, Bytes::new()).unwrap()]);
        assert_eq!(set_aside(&gone, key.id()).0.quarantined[0].len, 0, "it is listed all the same");
        for damaged in [b"".as_slice(), b"CLV", b"\0\0\0\0\0\0\0"] {
            assert!(
                wholly_corrupt(key, Bytes::from_static(damaged)).is_some(),
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
        let footer = Footer::Shared(Arc::new(footer));
        let sources = [Source { key: shared_key(5), footer, body: Some(body.into()) }];
        let mut found = Unreadable::default();
        found.add_chunks(&[(0, 0)], &sources);
        assert_eq!(found.len(), 2);
        let (footer, object) = set_aside(&found, ObjectId(Uuid::from_u128(8)));
        assert_eq!((footer.offset_first, footer.offset_next), (7, 9));
        let moved = &footer.chunks[0];
        let last = moved.at as usize + lens[0]..moved.at as usize + lens[0] + lens[1];
        let opened = chunk_opener(&data_key, moved).open(frame_at(1, 2), &object[last]);
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
    fn shared(offset: u64, stream: u32, batches: &[Batch], note: Option<&StreamNote>) -> Source {
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
        let footer = Footer::Shared(Arc::new(footer));
        Source { key: shared_key(u128::from(offset)), footer, body: Some(body.into()) }
    }

    /// Merges objects as a run or as parts, and reads what was made.
    fn merged(objects: &[Source]) -> Source {
        let shared = objects.iter().enumerate().filter(|(_, source)| matches!(source.footer, Footer::Shared(_)));
        let places: Vec<Place> = shared.map(|(object, _)| (object, 0)).collect();
        let id = ObjectId(Uuid::from_u128(9));
        let mut merging = Merging::new(id, session(), &data_key(), &objects.into(), &places, Lasting::Kept).unwrap();
        let mut body = Vec::new();
        while merging.go(&data_key()).unwrap() != Halt::Done {
            body.extend(merging.take());
        }
        body.extend(merging.take());
        let (at, len) = (merging.footer().at, merging.footer().len as usize);
        let region = &body[at as usize..at as usize + len];
        let footer = open_session_footer(&data_key(), session(), id, region, at).unwrap();
        let key = ObjectKey::Session { key: session(), id };
        Source { key, footer: Footer::Session(Arc::new(footer)), body: Some(body.into()) }
    }

    /// The notes of a session object, as they lie behind its last frame, and all its events.
    fn read(source: &Source) -> (Vec<StreamNote>, String) {
        let Footer::Session(footer) = &source.footer else { panic!("it is a session object") };
        let (opener, mut notes, mut events) = (session_opener(&data_key(), footer), Vec::new(), Vec::new());
        for (number, frame) in footer.frames.iter().enumerate() {
            let sealed = slice(source, frame.at, u64::from(frame.len));
            let opened = opener.open(frame_at(number, footer.frames.len()), &sealed).unwrap();
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
            let mut by_run: Vec<Vec<Source>> = vec![Vec::new(); runs];
            for (place, number) in order.iter().filter(|number| **number < objects.len()).enumerate() {
                by_run[place % runs].push(objects[*number].clone());
            }
            // One that the list of a dozen numbers does not reach.
            by_run[0].extend(objects.get(12).cloned());
            let mut parts: Vec<Source> = by_run.iter().filter(|run| !run.is_empty()).map(|run| merged(run)).collect();
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
            let objects: Vec<Source> = (0..count).map(chunk).collect();
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
        let mut body = damaged.body.unwrap().to_vec();
        *body.last_mut().unwrap() ^= 1;
        damaged.body = Some(body.into());
        let (notes, events) = read(&merged(&[first, damaged]));
        assert_eq!((notes, events.lines().count()), (vec![one], 2));
        let nothing = shared(1, 1, &[Batch { seq: 0, at: None, end: false }], Some(&two));
        assert_eq!(read(&merged(&[nothing])), (Vec::new(), String::new()), "there is no frame to put it behind");
    }
}
