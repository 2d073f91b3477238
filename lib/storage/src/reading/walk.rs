//! A session's events in the one order, out of sealed bytes. No I/O: it says which ranges of which objects it wants.
//!
//! Whoever reads lives by its bounds: so many bytes of windows, of opened frames, of batches, however large the session is.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use engine::merge::{Event, Location, Merger, Mismatch, Piece, Plan, Range, Step};
use schemas::codec::{self, FormatError};
use schemas::limits::MIB;
use schemas::paths::ObjectKey;
use schemas::session_object;
use schemas::stream_note::StreamNote;
use sealing::Key;
use sealing::objects::{OpenError, chunk_opener, frame_at, session_opener};
use thiserror::Error;

use super::windows::Windows;
use crate::footers::Footer;
use crate::stream_notes::NotedFrame;

/// Bytes of windows that one reading holds or has asked for.
pub(super) const WINDOWS_BYTES_MAX: u64 = 2 * MIB as u64;
/// Bytes of batches, decompressed, beside the one that is read.
const BATCHES_BYTES_MAX: usize = 8 * MIB;
/// Bytes of frames of session objects, decompressed, beside the one that is read.
const FRAMES_BYTES_MAX: usize = 2 * MIB;

/// What a walk holds at most, but for the batch that it reads and the frame that this lies in: these can be as large as a client makes
/// one batch. Its windows can exceed their bound by one.
pub const HELD_BYTES_MAX: usize = WINDOWS_BYTES_MAX as usize + MIB + BATCHES_BYTES_MAX + FRAMES_BYTES_MAX;

/// An object that holds some of a session.
#[derive(Debug, Clone)]
pub struct Source {
    /// Which object.
    pub key: ObjectKey,
    /// Its footer.
    pub footer: Footer,
    /// The whole object, where it was fetched whole.
    pub body: Option<Bytes>,
}

/// An object is not what was put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("object {key} is corrupt")]
pub struct Corrupt {
    /// Which object.
    pub key: ObjectKey,
    /// The chunk of a shared object: the numbers of both, as the plan has them.
    pub chunk: Option<(usize, usize)>,
    /// What is wrong.
    pub source: OpenError,
}

/// What a [`Walk`] wants or has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// It waits for this window, see [`Windows`].
    Fetch(usize),
    /// The next event; its bytes are at [`Walk::bytes`].
    Event(Event),
    /// All events were given.
    Done,
}

/// A frame of a session object, opened.
#[derive(Debug)]
struct Frame {
    object: usize,
    number: usize,
    raw: Bytes,
}

/// A batch that lies in several pieces, as far as it was put together.
#[derive(Debug)]
struct Partial {
    stream: usize,
    pieces: usize,
    payload: Vec<u8>,
}

/// Walks a session's events.
#[derive(Debug)]
pub struct Walk {
    sources: Arc<[Source]>,
    plan: Arc<Plan>,
    merger: Merger,
    windows: Windows,
    frames: VecDeque<Frame>,
    partial: Option<Partial>,
    notes: Option<Notes>,
}

/// The newest notes of streams that go on, as far as their frames were opened.
#[derive(Debug, Default)]
struct Notes {
    /// Streams that go on, those with the latest events first.
    ranks: BTreeMap<u32, usize>,
    newest: BTreeMap<usize, StreamNote>,
    /// Frames that were not opened yet, by object and where they begin.
    unread: BTreeMap<(usize, u64), NotedFrame>,
}

impl Notes {
    fn add(&mut self, notes: Vec<StreamNote>) {
        for note in notes {
            let Some(rank) = self.ranks.get(&note.stream) else { continue };
            if self.newest.get(rank).is_none_or(|other| note.is_newer_than(other)) {
                self.newest.insert(*rank, note);
            }
        }
        // No more are written; a session may have many thousands of streams.
        while self.newest.len() > schemas::limits::STREAM_NOTES_MAX {
            self.newest.pop_last();
        }
    }
}

impl Walk {
    /// The events of `range` by this plan, whose objects are numbered as these sources.
    pub fn new(sources: Arc<[Source]>, plan: Arc<Plan>, range: Range) -> Self {
        let needs = plan.needs(range).into_iter();
        let frames =
            needs.flat_map(|(stream, batch)| frames_of(&sources, &plan.streams[stream].batches[batch].location));
        let in_bucket = frames.filter(|(object, ..)| sources.get(*object).is_some_and(|source| source.body.is_none()));
        let windows = Windows::new(in_bucket, WINDOWS_BYTES_MAX);
        let merger = Merger::new(Arc::clone(&plan), range, BATCHES_BYTES_MAX);
        Self { sources, plan, merger, windows, frames: VecDeque::new(), partial: None, notes: None }
    }

    /// Collects the newest notes of streams that go on, from these frames of its objects.
    pub fn collect_notes(&mut self, frames: impl IntoIterator<Item = (usize, NotedFrame)>) {
        let ranks = self.plan.open_streams().into_iter().zip(0..).collect();
        let unread = frames.into_iter().map(|(object, frame)| ((object, frame.at), frame)).collect();
        self.notes = Some(Notes { ranks, newest: BTreeMap::new(), unread });
    }

    /// The notes, at the end: those with the latest events first. Frames whose events were not wanted are looked into where their
    /// objects are at hand; what does not open has none, since a note can always be missed.
    pub fn take_notes(&mut self, key: &Key) -> Vec<StreamNote> {
        let Some(mut notes) = self.notes.take() else { return Vec::new() };
        for ((object, at), frame) in std::mem::take(&mut notes.unread) {
            let Some(source) = self.sources.get(object) else { continue };
            let sealed = source.body.as_ref().and_then(|body| slice(body, at, u64::from(frame.len)).ok());
            let found = sealed.and_then(|sealed| frame.open(&source.footer, key, &sealed).ok());
            notes.add(found.unwrap_or_default());
        }
        notes.newest.into_values().collect()
    }

    /// Bytes that it holds.
    pub fn held(&self) -> usize {
        let frames: usize = self.frames.iter().map(|frame| frame.raw.len()).sum();
        frames + self.merger.held() + usize::try_from(self.windows.held()).unwrap_or(usize::MAX)
    }

    /// The plan that it follows.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Its objects.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// The windows that its bytes come through.
    pub fn windows(&mut self) -> &mut Windows {
        &mut self.windows
    }

    /// The bytes of an event that [`Walk::turn`] just gave, with its newline.
    pub fn bytes(&self, event: &Event) -> &[u8] {
        self.merger.bytes(event)
    }

    /// The next turn. `key` opens the session's frames; it is not kept.
    pub fn turn(&mut self, key: &Key) -> Result<Turn, Corrupt> {
        loop {
            let step = self.merger.step().map_err(|mismatch| self.mismatch(mismatch))?;
            match step {
                Step::Need { stream, batch } => match self.load(key, stream, batch)? {
                    Ok(payload) => {
                        let supplied = self.merger.supply(stream, payload);
                        supplied.map_err(|_| self.corrupt_batch(stream, batch, FormatError::Field("facts").into()))?;
                    }
                    Err(window) => return Ok(Turn::Fetch(window)),
                },
                Step::Event(event) => return Ok(Turn::Event(event)),
                Step::Done => return Ok(Turn::Done),
            }
        }
    }

    /// The events of a batch, or the window that has to be fetched first.
    fn load(&mut self, key: &Key, stream: usize, batch: usize) -> Result<Result<Vec<u8>, usize>, Corrupt> {
        let plan = Arc::clone(&self.plan);
        let planned = &plan.streams[stream].batches[batch];
        let loaded = match &planned.location {
            Location::Shared { object, chunk, frame, at, len } => {
                self.shared_frame(key, *object, (*chunk, *frame), *at, *len, planned.facts.raw_bytes)
            }
            Location::Session { object, pieces } => {
                self.put_together(key, stream, *object, pieces, planned.facts.raw_bytes)
            }
        };
        loaded.map_err(|error| self.corrupt_batch(stream, batch, error))
    }

    fn shared_frame(
        &mut self,
        key: &Key,
        object: usize,
        (chunk, frame): (usize, usize),
        at: u64,
        len: u32,
        raw_bytes: u32,
    ) -> Result<Result<Vec<u8>, usize>, OpenError> {
        let sealed = match self.sealed(object, at, u64::from(len))? {
            Ok(sealed) => sealed,
            Err(window) => return Ok(Err(window)),
        };
        let Footer::Shared(footer) = &self.source(object)?.footer else {
            return Err(FormatError::Field("kind").into());
        };
        let chunk = footer.chunks.get(chunk).ok_or(FormatError::Field("chunk"))?;
        let opened = chunk_opener(key, chunk).open(frame_at(frame, chunk.batches.len()), &sealed)?;
        self.windows.used(object, at);
        self.note(object, at, &opened);
        Ok(Ok(codec::decompress(&opened, raw_bytes as usize)?))
    }

    /// A batch of a session object, from the pieces of frames that it lies in.
    fn put_together(
        &mut self,
        key: &Key,
        stream: usize,
        object: usize,
        pieces: &[Piece],
        raw_bytes: u32,
    ) -> Result<Result<Vec<u8>, usize>, OpenError> {
        let begun = self.partial.take().filter(|partial| partial.stream == stream);
        let mut partial = begun.unwrap_or_else(|| Partial {
            stream,
            pieces: 0,
            payload: Vec::with_capacity((raw_bytes as usize).min(schemas::limits::DECODED_BYTES_MAX)),
        });
        while let Some(piece) = pieces.get(partial.pieces) {
            let raw = match self.frame(key, object, piece.frame)? {
                Ok(raw) => raw,
                Err(window) => {
                    self.partial = Some(partial);
                    return Ok(Err(window));
                }
            };
            // The footer's decoder checked that the pieces of a frame fill it.
            let bytes = raw.get(piece.at as usize..piece.at.saturating_add(piece.len) as usize);
            partial.payload.extend_from_slice(bytes.ok_or(FormatError::Truncated)?);
            partial.pieces += 1;
        }
        Ok(Ok(partial.payload))
    }

    /// A frame of a session object, opened; kept for the next batches.
    fn frame(&mut self, key: &Key, object: usize, number: usize) -> Result<Result<Bytes, usize>, OpenError> {
        let source = self.source(object)?;
        let Footer::Session(footer) = &source.footer else { return Err(FormatError::Field("kind").into()) };
        let footer = Arc::clone(footer);
        let entry = footer.frames.get(number).ok_or(FormatError::Field("frame"))?;
        let (at, len) = (entry.at, u64::from(entry.len));
        if let Some(kept) = self.frames.iter().find(|kept| (kept.object, kept.number) == (object, number)) {
            let raw = kept.raw.clone();
            self.windows.used(object, at);
            return Ok(Ok(raw));
        }
        let sealed = match self.sealed(object, at, len)? {
            Ok(sealed) => sealed,
            Err(window) => return Ok(Err(window)),
        };
        let opened = open_frame(key, &footer, number, &sealed)?;
        self.windows.used(object, at);
        self.note(object, at, &opened);
        let raw = Bytes::from(decompress_frame(entry, &opened)?);
        self.frames.push_back(Frame { object, number, raw: raw.clone() });
        let mut kept: usize = self.frames.iter().map(|frame| frame.raw.len()).sum();
        while kept > FRAMES_BYTES_MAX
            && self.frames.len() > 1
            && let Some(oldest) = self.frames.pop_front()
        {
            kept -= oldest.raw.len();
        }
        Ok(Ok(raw))
    }

    fn note(&mut self, object: usize, at: u64, opened: &[u8]) {
        if let Some(notes) = &mut self.notes
            && let Some(frame) = notes.unread.remove(&(object, at))
        {
            notes.add(frame.notes(opened).unwrap_or_default());
        }
    }

    fn sealed(&self, object: usize, at: u64, len: u64) -> Result<Result<Bytes, usize>, OpenError> {
        match &self.source(object)?.body {
            Some(body) => Ok(Ok(slice(body, at, len)?)),
            None => Ok(self.windows.frame(object, at, len)?),
        }
    }

    fn source(&self, object: usize) -> Result<&Source, OpenError> {
        self.sources.get(object).ok_or(OpenError::Format(FormatError::Field("object")))
    }

    fn corrupt_batch(&self, stream: usize, batch: usize, source: OpenError) -> Corrupt {
        let (object, chunk) = match &self.plan.streams[stream].batches[batch].location {
            Location::Shared { object, chunk, .. } => (*object, Some((*object, *chunk))),
            Location::Session { object, .. } => (*object, None),
        };
        Corrupt { key: self.sources[object].key, chunk, source }
    }

    /// An event of a batch that was supplied cannot be told from the next.
    fn mismatch(&self, Mismatch { stream, batch }: Mismatch) -> Corrupt {
        self.corrupt_batch(stream, batch, FormatError::Field("facts").into())
    }
}

/// Opens the sealed frame of a session object; notes may stand behind its events.
pub(super) fn open_frame(
    key: &Key,
    footer: &session_object::Footer,
    number: usize,
    sealed: &[u8],
) -> Result<Vec<u8>, OpenError> {
    Ok(session_opener(key, footer).open(frame_at(number, footer.frames.len()), sealed)?)
}

/// The events of an opened frame.
pub(super) fn decompress_frame(entry: &session_object::Frame, opened: &[u8]) -> Result<Vec<u8>, FormatError> {
    let raw = codec::decompress(opened, entry.raw_len as usize)?;
    if raw.len() == entry.raw_len as usize { Ok(raw) } else { Err(FormatError::Truncated) }
}

fn slice(body: &Bytes, at: u64, len: u64) -> Result<Bytes, FormatError> {
    let (at, len) = (usize::try_from(at).unwrap_or(usize::MAX), usize::try_from(len).unwrap_or(usize::MAX));
    let end = at.checked_add(len).filter(|end| *end <= body.len()).ok_or(FormatError::Truncated)?;
    Ok(body.slice(at..end))
}

/// The frames that a batch lies in.
fn frames_of(sources: &[Source], location: &Location) -> Vec<(usize, u64, u64)> {
    match location {
        Location::Shared { object, at, len, .. } => vec![(*object, *at, u64::from(*len))],
        Location::Session { object, pieces } => {
            let Some(Source { footer: Footer::Session(footer), .. }) = sources.get(*object) else { return Vec::new() };
            let frames = pieces.iter().filter_map(|piece| footer.frames.get(piece.frame));
            frames.map(|frame| (*object, frame.at, u64::from(frame.len))).collect()
        }
    }
}
