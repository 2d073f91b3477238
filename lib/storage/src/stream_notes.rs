//! Where the notes of a session's streams lie, and which frames are opened to find the newest.
//!
//! A chunk has its stream's note behind the last frame that is no copy's, a session object those of its streams that go on behind
//! its last frame: footers tell where to look. [`Search`] says which frame is looked into next, and does no I/O. A note is always
//! one that can be missed: the stream is only masked more.

use std::collections::{BTreeMap, BTreeSet};

use schemas::codec::FormatError;
use schemas::stream_note::{self, StreamNote};
use schemas::{SessionKey, session_object, shared_object};
use sealing::Key;
use sealing::frames::FrameAt;
use sealing::objects::{OpenError, chunk_opener, frame_at, session_opener};

use crate::footers::Footer;

/// Frames that are opened for one stream, those apart that were opened for another. The newest note nearly always lies in the
/// first: behind the greatest seq.
const TRIES_MAX: usize = 4;

/// A frame that may have notes behind its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotedFrame {
    /// Where it begins in its object.
    pub at: u64,
    /// Its length.
    pub len: u32,
    /// Its chunk's number in the footer of a shared object; none in a session object, which is one chunk.
    chunk: Option<usize>,
    place: FrameAt,
    /// The streams that it may have notes of, each with the greatest seq that lies in the chunk.
    streams: BTreeMap<u32, u32>,
}

impl NotedFrame {
    /// That of a chunk, by its number in the footer.
    pub fn of_chunk(number: usize, chunk: &shared_object::Chunk) -> Option<Self> {
        let (frame, at) = chunk.noted_frame()?;
        let batch = chunk.batches.get(frame)?;
        let place = frame_at(frame, chunk.batches.len());
        Some(Self { at, len: batch.len, chunk: Some(number), place, streams: [(chunk.stream, batch.seq)].into() })
    }

    /// That of a session object. Streams whose last batch lies there have no note.
    pub fn of_session(footer: &session_object::Footer) -> Option<Self> {
        let last = footer.frames.last()?;
        let place = frame_at(footer.frames.len() - 1, footer.frames.len());
        let open = footer.streams.iter().filter(|stream| !stream.batches.iter().any(|batch| batch.end));
        let with_seq = |stream: &session_object::StreamInfo| {
            let seq = stream.batches.iter().map(|batch| batch.seq).max()?;
            Some((stream.stream, seq))
        };
        let streams = open.filter_map(with_seq).collect();
        Some(Self { at: last.at, len: last.len, chunk: None, place, streams })
    }

    /// All of a session in an object.
    fn all(footer: &Footer, key: &SessionKey) -> Vec<Self> {
        match footer {
            Footer::Shared(footer) => {
                let chunks = footer.chunks.iter().enumerate().filter(|(_, chunk)| chunk.key == *key);
                chunks.filter_map(|(number, chunk)| Self::of_chunk(number, chunk)).collect()
            }
            Footer::Session(footer) if footer.key == *key => Self::of_session(footer).into_iter().collect(),
            Footer::Session(_) => Vec::new(),
        }
    }

    /// Opens the frame and reads the notes that belong there. `footer` is the one that it was found in.
    pub fn open(&self, footer: &Footer, data_key: &Key, sealed: &[u8]) -> Result<Vec<StreamNote>, OpenError> {
        let opener = match (footer, self.chunk) {
            (Footer::Shared(footer), Some(number)) => {
                chunk_opener(data_key, footer.chunks.get(number).ok_or(FormatError::Field("chunk"))?)
            }
            (Footer::Session(footer), None) => session_opener(data_key, footer),
            (Footer::Shared(_) | Footer::Session(_), _) => return Err(FormatError::Field("kind").into()),
        };
        Ok(self.notes(&opener.open(self.place, sealed)?)?)
    }

    /// Reads the notes that belong there behind the events of the opened frame.
    pub(crate) fn notes(&self, opened: &[u8]) -> Result<Vec<StreamNote>, FormatError> {
        let mut notes = stream_note::read(opened)?;
        notes.retain(|note| self.streams.contains_key(&note.stream));
        Ok(notes)
    }
}

/// A search for the newest notes of some streams: gives frames to open, takes what was in them.
#[derive(Debug)]
pub(crate) struct Search {
    /// By the caller's numbering of objects.
    frames: Vec<(usize, NotedFrame)>,
    opened: BTreeSet<usize>,
    streams: BTreeMap<u32, Wanted>,
}

/// A stream whose note is searched for.
#[derive(Debug, Default)]
struct Wanted {
    /// Frames that may have one, by number; that with the greatest seq is the last.
    candidates: Vec<(u32, usize)>,
    tries: usize,
    newest: Option<StreamNote>,
}

impl Search {
    /// Among these footers, of which later ones are preferred where they have the same seq.
    pub(crate) fn new<'a>(
        key: &SessionKey,
        footers: impl IntoIterator<Item = (usize, &'a Footer)>,
        wanted: &[u32],
    ) -> Self {
        let mut streams: BTreeMap<u32, Wanted> = wanted.iter().map(|stream| (*stream, Wanted::default())).collect();
        let mut frames = Vec::new();
        for (object, footer) in footers {
            for frame in NotedFrame::all(footer, key) {
                for (stream, seq) in &frame.streams {
                    if let Some(wanted) = streams.get_mut(stream) {
                        wanted.candidates.push((*seq, frames.len()));
                    }
                }
                frames.push((object, frame));
            }
        }
        streams.values_mut().for_each(|wanted| wanted.candidates.sort_unstable());
        Self { frames, opened: BTreeSet::new(), streams }
    }

    /// The frame to open next, with its object's number. [`Search::found`] wants to hear what was in it, before the next call.
    pub(crate) fn next(&mut self) -> Option<(usize, &NotedFrame)> {
        for wanted in self.streams.values_mut() {
            while wanted.tries < TRIES_MAX
                && let Some((seq, number)) = wanted.candidates.pop()
            {
                // All before `next` was seen with this note: no frame that ends before it has a newer one.
                if wanted.newest.as_ref().is_some_and(|note| note.next > u64::from(seq)) {
                    wanted.candidates.clear();
                } else if self.opened.insert(number) {
                    wanted.tries += 1;
                    let (object, frame) = &self.frames[number];
                    return Some((*object, frame));
                }
            }
        }
        None
    }

    /// Takes the notes of a frame.
    pub(crate) fn found(&mut self, notes: Vec<StreamNote>) {
        for note in notes {
            if let Some(wanted) = self.streams.get_mut(&note.stream)
                && wanted.newest.as_ref().is_none_or(|newest| note.is_newer_than(newest))
            {
                wanted.newest = Some(note);
            }
        }
    }

    /// The newest notes that were found, by stream.
    pub(crate) fn finish(self) -> BTreeMap<u32, StreamNote> {
        self.streams.into_iter().filter_map(|(stream, wanted)| Some((stream, wanted.newest?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use schemas::session_object::{BatchInfo, Frame, Segment, StreamInfo};
    use schemas::shared_object::{BatchEntry, Chunk};
    use schemas::{BatchFacts, ObjectId, SessionId, WorkspaceId, codec};
    use sealing::frames::{ChunkContext, ChunkKind, seal_chunk};
    use uuid::Uuid;

    use super::*;

    fn session(n: u128) -> SessionKey {
        SessionKey { workspace: WorkspaceId(Uuid::from_u128(1)), session: SessionId(Uuid::from_u128(n)) }
    }

    fn note(stream: u32, next: u64) -> StreamNote {
        StreamNote { stream, next, state: vec![stream as u8; 3] }
    }

    fn data_key() -> Key {
        Key::new([7; 32])
    }

    /// An object in memory.
    struct Object {
        footer: Footer,
        body: Vec<u8>,
    }

    /// What is stored of one batch: its seq, and what it is.
    #[derive(Clone, Copy, PartialEq, Eq)]
    enum Stored {
        Events(u32),
        Empty(u32),
        Again(u32),
    }
    use Stored::{Again, Empty, Events};

    /// A shared object of chunks, each of a session's stream, with a note behind the last that is no copy.
    fn shared(chunks: &[(u128, u32, &[Stored], Option<u64>)]) -> Object {
        let (mut body, mut listed) = (Vec::new(), Vec::new());
        for (n, stream, batches, next) in chunks {
            let noted = batches.iter().rposition(|batch| !matches!(batch, Again(_)));
            let frame = |(number, batch): (usize, &Stored)| {
                let mut frame = if let Events(_) = batch { codec::compress(b"{}\n", 1) } else { Vec::new() };
                if let (Some(next), true) = (next, noted == Some(number)) {
                    stream_note::append(&mut frame, &[note(*stream, *next)]);
                }
                frame
            };
            let frames: Vec<Vec<u8>> = batches.iter().enumerate().map(frame).collect();
            let (at, context) = (body.len() as u64, ChunkContext { session: session(*n), kind: ChunkKind::Shared });
            let (id, lens) = seal_chunk(&data_key(), context, frames.iter().map(Vec::as_slice), &mut body).unwrap();
            let entry = |(batch, len): (&Stored, usize)| {
                let (Events(seq) | Empty(seq) | Again(seq)) = *batch;
                let raw_bytes = if let Empty(_) = batch { 0 } else { 3 };
                let facts = BatchFacts { raw_bytes, ..BatchFacts::default() };
                BatchEntry { seq, end: false, offset: 0, len: len as u32, facts }
            };
            let batches = batches.iter().zip(lens).map(entry).collect();
            listed.push(Chunk { key: session(*n), stream: *stream, id: *id.as_bytes(), at, batches });
        }
        let object = ObjectId(Uuid::nil());
        let footer = shared_object::Footer {
            object,
            partition: 0,
            offset_first: 0,
            offset_next: 1,
            chunks: listed,
            quarantined: Vec::new(),
        };
        Object { footer: Footer::Shared(Arc::new(footer)), body }
    }

    /// A session object of two frames and these streams: the greatest seq, whether it is the last, and the note.
    fn merged(streams: &[(u32, u32, bool, Option<u64>)]) -> Object {
        let notes: Vec<_> = streams.iter().filter_map(|(stream, .., next)| Some(note(*stream, (*next)?))).collect();
        let mut frames = vec![codec::compress(b"{}\n", 1); 2];
        stream_note::append(&mut frames[1], &notes);
        let (mut body, context) = (Vec::new(), ChunkContext { session: session(1), kind: ChunkKind::Session });
        let (id, lens) = seal_chunk(&data_key(), context, frames.iter().map(Vec::as_slice), &mut body).unwrap();
        let frame = |(number, len): (usize, &usize)| Frame {
            at: lens[..number].iter().sum::<usize>() as u64,
            len: *len as u32,
            raw_len: 3,
            ts_min: 0,
            ts_max: 0,
            full_snapshot: false,
            segments: vec![Segment { stream: 1, seq: 0, position: 0, events: 1, bytes: 3 }],
        };
        let info = |(stream, seq, end, _): &(u32, u32, bool, Option<u64>)| StreamInfo {
            stream: *stream,
            batches: vec![BatchInfo { seq: *seq, end: *end, facts: BatchFacts::default() }],
        };
        let footer = session_object::Footer {
            object: ObjectId(Uuid::nil()),
            key: session(1),
            chunk: *id.as_bytes(),
            frames: lens.iter().enumerate().map(frame).collect(),
            streams: streams.iter().map(info).collect(),
            duplicates: 0,
            conflicts: 0,
        };
        Object { footer: Footer::Session(Arc::new(footer)), body }
    }

    /// The streams and what comes next in them, as they are found, and how many frames were opened.
    #[track_caller]
    fn check(objects: &[Object], wanted: &[u32], expect: &[(u32, u64)], opened: usize) {
        let footers = objects.iter().map(|object| &object.footer).enumerate();
        let mut search = Search::new(&session(1), footers, wanted);
        let mut count = 0;
        while let Some((object, frame)) = search.next() {
            let Object { footer, body } = &objects[object];
            let sealed = &body[frame.at as usize..][..frame.len as usize];
            let notes = frame.open(footer, &data_key(), sealed).unwrap();
            search.found(notes);
            count += 1;
        }
        let expect = expect.iter().map(|(stream, next)| (*stream, note(*stream, *next))).collect();
        assert_eq!((search.finish(), count), (expect, opened));
    }

    #[test]
    fn the_newest_note_is_found_with_one_frame_wherever_it_lies() {
        // Alone behind a batch without events, before copies, of this session and stream.
        let objects = [
            merged(&[(5, 1, false, Some(2)), (6, 0, false, Some(1)), (7, 3, true, None)]),
            shared(&[(1, 5, &[Events(2), Empty(3), Again(1)], Some(4)), (1, 6, &[Again(0)], None)]),
            shared(&[(2, 5, &[Events(9)], Some(10)), (1, 8, &[Events(0)], None)]),
        ];
        check(&objects, &[5], &[(5, 4)], 1);
        check(&objects, &[6], &[(6, 1)], 1);
        // One frame for both.
        check(&objects[..1], &[5, 6], &[(5, 2), (6, 1)], 1);
        check(&objects, &[5, 6, 7, 8, 9], &[(5, 4), (6, 1)], 3);
        check(&objects, &[7, 9], &[], 0);
        check(&[], &[5], &[], 0);
    }

    #[test]
    fn an_older_frame_is_opened_only_where_it_may_have_a_newer_note() {
        // The batch with the greatest seq came before the one that was missing.
        let objects = [
            shared(&[(1, 5, &[Events(0)], Some(1))]),
            shared(&[(1, 5, &[Events(3)], Some(1))]),
            shared(&[(1, 5, &[Events(1), Events(2)], Some(3))]),
        ];
        check(&objects, &[5], &[(5, 3)], 2);
        // A release that knows nothing of notes wrote the last.
        let objects = [shared(&[(1, 5, &[Events(0)], Some(1))]), shared(&[(1, 5, &[Events(1)], None)])];
        check(&objects, &[5], &[(5, 1)], 2);
    }

    #[test]
    fn tries_are_bounded() {
        let objects: Vec<Object> =
            (0..9).map(|seq| shared(&[(1, 5, &[Events(seq)], (seq < 5).then_some(9))])).collect();
        check(&objects, &[5], &[], TRIES_MAX);
        check(&objects[..8], &[5], &[(5, 9)], TRIES_MAX);
    }

    #[test]
    fn a_note_of_a_stream_that_has_no_batch_in_the_chunk_is_none() {
        let mut object = shared(&[(1, 5, &[Events(0)], Some(1))]);
        let Footer::Shared(footer) = &object.footer else { unreachable!("it is a shared object") };
        let mut other = shared_object::Footer::clone(footer);
        other.chunks[0].stream = 6;
        object.footer = Footer::Shared(Arc::new(other));
        check(&[object], &[5, 6], &[], 1);
    }
}
