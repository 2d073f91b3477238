//! Opening every frame of an object, and comparing what is in it with what its footer says.

use std::collections::{BTreeMap, BTreeSet};

use engine::events;
use schemas::codec::{self, FormatError};
use schemas::object::PREAMBLE_BYTES;
use schemas::paths::ObjectKey;
use schemas::{BatchFacts, SessionKey, session_object, shared_object, stream_note};
use sealing::objects::{EXPORT_FRAME_BYTES, OpenError, chunk_opener, frame_at, session_opener};

use super::{Content, Held, Note, Outline, Place, Problem, Verified};

/// Opens every frame and compares. `keys` are those of the sessions in it; one that is not among them is a fault.
pub fn check(outline: &Outline, body: &[u8], content: &Content, keys: &BTreeMap<SessionKey, Held>) -> Verified {
    let mut verified = Verified { faults: outline.faults.clone(), ..Verified::default() };
    match content {
        Content::Shared(footer) => {
            check_ranges(outline, shared_ranges(footer), &mut verified);
            check_shared(outline, body, footer, keys, &mut verified);
        }
        Content::Session(footer) => {
            let ranges = footer.frames.iter().map(|frame| (frame.at, u64::from(frame.len))).collect();
            check_ranges(outline, ranges, &mut verified);
            match keys.get(&footer.key) {
                Some(Held::Known(key)) => SessionCheck::new(footer, &mut verified).run(body, key),
                Some(Held::Shredded) => verified.shredded = 1,
                Some(Held::Unavailable(why)) => verified.fault(Place::Footer, Problem::Key(why.clone())),
                None => verified.fault(Place::Footer, no_key()),
            }
        }
        // It is one frame, and opening it was all.
        Content::Journal(_) => verified.frames = 1,
        // They were opened to come by it.
        Content::Export(bytes) => verified.frames = bytes.div_ceil(EXPORT_FRAME_BYTES as u64),
    }
    verified
}

fn no_key() -> Problem {
    Problem::Key("its key was not asked for".into())
}

/// Chunks, frames and records fill the body: from the preamble to the footer, each byte belongs to one of them.
fn check_ranges(outline: &Outline, mut ranges: Vec<(u64, u64)>, verified: &mut Verified) {
    ranges.sort_unstable();
    let mut filled = PREAMBLE_BYTES as u64;
    let body_len = outline.footer.map_or(outline.bytes, |footer| footer.at);
    for (at, len) in ranges.into_iter().chain([(body_len, 0)]) {
        if at > filled {
            verified.fault(Place::Bytes { from: filled, to: at }, Problem::Gap);
        } else if at < filled {
            verified.fault(Place::Bytes { from: at, to: filled.min(at + len).max(at) }, Problem::Overlap);
        }
        filled = filled.max(at + len);
    }
}

fn shared_ranges(footer: &shared_object::Footer) -> Vec<(u64, u64)> {
    let chunks = footer.chunks.iter().map(|chunk| (chunk.at, chunk.len()));
    chunks.chain(footer.quarantined.iter().map(|record| (record.at, u64::from(record.len)))).collect()
}

fn check_shared(
    outline: &Outline,
    body: &[u8],
    footer: &shared_object::Footer,
    keys: &BTreeMap<SessionKey, Held>,
    verified: &mut Verified,
) {
    if let ObjectKey::Shared { partition, .. } | ObjectKey::Quarantine { partition, .. } = outline.key
        && partition != footer.partition
    {
        verified.fault(Place::Footer, FormatError::Field("partition"));
    }
    let offsets = footer.offset_first..footer.offset_next;
    let mut shredded = BTreeSet::new();
    for (number, chunk) in footer.chunks.iter().enumerate() {
        let place = Place::Chunk { chunk: number, session: chunk.key.session, stream: chunk.stream };
        if chunk.batches.iter().any(|batch| !offsets.contains(&batch.offset)) {
            verified.fault(place, FormatError::Field("offset"));
        }
        match keys.get(&chunk.key) {
            Some(Held::Known(key)) => check_chunk(body, number, chunk, key, verified),
            Some(Held::Shredded) => drop(shredded.insert(chunk.key)),
            Some(Held::Unavailable(why)) => verified.fault(place, Problem::Key(why.clone())),
            None => verified.fault(place, no_key()),
        }
    }
    for (number, record) in footer.quarantined.iter().enumerate() {
        if !offsets.contains(&record.offset) {
            verified.fault(Place::Quarantined { record: number }, FormatError::Field("offset"));
        }
    }
    verified.quarantined = footer.quarantined.len() as u64;
    verified.shredded = shredded.len() as u64;
}

fn check_chunk(body: &[u8], number: usize, chunk: &shared_object::Chunk, key: &sealing::Key, verified: &mut Verified) {
    let opener = chunk_opener(key, chunk);
    let mut at = chunk.at;
    for (frame, batch) in chunk.batches.iter().enumerate() {
        let (session, stream, seq) = (chunk.key.session, chunk.stream, batch.seq);
        let place = Place::SharedFrame { chunk: number, frame, at, session, stream, seq };
        let opened = slice(body, at, batch.len)
            .and_then(|sealed| Ok(opener.open(frame_at(frame, chunk.batches.len()), sealed)?));
        at += u64::from(batch.len);
        let compressed = match opened {
            Ok(compressed) => compressed,
            Err(error) => {
                verified.fault(place, error);
                continue;
            }
        };
        verified.frames += 1;
        // Its seal shows that it is empty; the events lie where they were first.
        if !batch.is_copy() && check_payload(place, &batch.facts, &compressed, verified) {
            check_notes(place, |of| of == stream, &compressed, verified);
        }
    }
}

/// A batch's payload as it lies in a record or a shared object: one zstd frame, of which the facts tell. Whether it is whole.
pub(super) fn check_payload(place: Place, facts: &BatchFacts, compressed: &[u8], verified: &mut Verified) -> bool {
    let problem = match decompress(facts, compressed) {
        Err(error) => Some(error.into()),
        Ok(payload) => {
            let events = payload.iter().filter(|byte| **byte == b'\n').count() as u64;
            difference(facts, payload.len() as u64, events, || BatchFacts::hash(&payload))
        }
    };
    let is_whole = problem.is_none();
    match problem {
        Some(problem) => verified.fault(place, problem),
        None => count(facts, verified),
    }
    is_whole
}

/// The notes behind a frame's events: each is of a stream whose batches lie here.
fn check_notes(place: Place, is_listed: impl Fn(u32) -> bool, compressed: &[u8], verified: &mut Verified) {
    match stream_note::read(compressed) {
        Err(error) => verified.fault(place, error),
        Ok(notes) => {
            for note in notes {
                if !is_listed(note.stream) {
                    verified.fault(place, Problem::Stray(note.stream));
                }
                let state_bytes = note.state.len();
                verified.notes.push(Note { place, stream: note.stream, next: note.next, state_bytes });
            }
        }
    }
}

/// A batch's events. One that has none is stored as no bytes, and not as a frame of none.
pub(super) fn decompress(facts: &BatchFacts, compressed: &[u8]) -> Result<Vec<u8>, FormatError> {
    if facts.raw_bytes == 0 && compressed.is_empty() {
        return Ok(Vec::new());
    }
    codec::decompress(compressed, facts.raw_bytes as usize)
}

fn count(facts: &BatchFacts, verified: &mut Verified) {
    verified.batches += 1;
    verified.events += u64::from(facts.events);
    verified.raw_bytes += u64::from(facts.raw_bytes);
}

/// How a batch differs from its facts.
fn difference(facts: &BatchFacts, bytes: u64, events: u64, hash: impl FnOnce() -> u64) -> Option<Problem> {
    if bytes != u64::from(facts.raw_bytes) {
        Some(Problem::Length { found: bytes, expected: facts.raw_bytes.into() })
    } else if events != u64::from(facts.events) {
        Some(Problem::Events { found: events, expected: facts.events.into() })
    } else if bytes > 0 && hash() != facts.hash_as_stored() {
        Some(Problem::Content)
    } else {
        None
    }
}

fn slice(body: &[u8], at: u64, len: u32) -> Result<&[u8], OpenError> {
    let (at, len) = (at as usize, len as usize);
    Ok(body.get(at..at.saturating_add(len)).ok_or(FormatError::Truncated)?)
}

/// A batch of a session object, put together again from its pieces.
#[derive(Default)]
struct Gathered {
    facts: BatchFacts,
    payload: Vec<u8>,
    bytes: u64,
    events: u64,
    hash: Option<u64>,
    /// Some of it lies in a frame that has a fault of its own: what is missing here is no further one.
    is_partial: bool,
}

/// Walks the frames once, in order. Of each stream about one batch is held at a time, since its events come in order.
struct SessionCheck<'a> {
    footer: &'a session_object::Footer,
    verified: &'a mut Verified,
    batches: BTreeMap<(u32, u32), Gathered>,
}

impl<'a> SessionCheck<'a> {
    fn new(footer: &'a session_object::Footer, verified: &'a mut Verified) -> Self {
        let mut batches = BTreeMap::new();
        for stream in &footer.streams {
            for info in &stream.batches {
                let gathered = Gathered { facts: info.facts.clone(), ..Gathered::default() };
                if batches.insert((stream.stream, info.seq), gathered).is_some() {
                    let place = Place::Batch { stream: stream.stream, seq: info.seq };
                    verified.fault(place, FormatError::Field("seq"));
                }
            }
        }
        Self { footer, verified, batches }
    }

    fn run(mut self, body: &[u8], key: &sealing::Key) {
        let footer = self.footer;
        let opener = session_opener(key, footer);
        for (number, frame) in footer.frames.iter().enumerate() {
            let place = Place::Frame { frame: number, at: frame.at };
            let opened = slice(body, frame.at, frame.len)
                .and_then(|sealed| Ok(opener.open(frame_at(number, footer.frames.len()), sealed)?));
            let read = opened.and_then(|compressed| {
                self.verified.frames += 1;
                Ok((codec::decompress(&compressed, frame.raw_len as usize)?, compressed))
            });
            let problem = match read {
                Ok((raw, compressed)) if raw.len() == frame.raw_len as usize => {
                    self.frame(place, frame, &raw);
                    let is_listed = |of| footer.streams.iter().any(|listed| listed.stream == of);
                    check_notes(place, is_listed, &compressed, self.verified);
                    continue;
                }
                Ok((raw, _)) => Problem::Length { found: raw.len() as u64, expected: frame.raw_len.into() },
                Err(error) => error.into(),
            };
            self.verified.fault(place, problem);
            for segment in &frame.segments {
                if let Some(batch) = self.batches.get_mut(&(segment.stream, segment.seq)) {
                    batch.is_partial = true;
                }
            }
        }
        self.finish();
    }

    fn frame(&mut self, place: Place, frame: &session_object::Frame, raw: &[u8]) {
        let mut rest = raw;
        for segment in &frame.segments {
            // The footer's decoder checked that segments fill their frame, and the frame has its length.
            let (part, behind) = rest.split_at(rest.len().min(segment.bytes as usize));
            rest = behind;
            let events = part.iter().filter(|byte| **byte == b'\n').count() as u64;
            if events != u64::from(segment.events) || part.last().is_some_and(|byte| *byte != b'\n') {
                self.verified.fault(place, Problem::Events { found: events, expected: segment.events.into() });
            }
            let (stream, seq) = (segment.stream, segment.seq);
            match self.batches.get_mut(&(stream, seq)) {
                None => self.verified.fault(place, Problem::Unlisted { stream, seq }),
                Some(batch) => {
                    let (found, expected) = (u64::from(segment.position), batch.events);
                    if found != expected && !batch.is_partial {
                        self.verified.fault(Place::Batch { stream, seq }, Problem::Position { found, expected });
                    }
                    batch.add(part, events);
                }
            }
        }
        self.seeking(place, frame, raw);
    }

    /// What a player seeks by: the frame's time span, and whether it can start here.
    fn seeking(&mut self, place: Place, frame: &session_object::Frame, raw: &[u8]) {
        let mut span: Option<(i64, i64)> = None;
        let mut full_snapshot = false;
        for event in raw.split_inclusive(|byte| *byte == b'\n') {
            let Some(shallow) = events::shallow(event.strip_suffix(b"\n").unwrap_or(event)) else {
                self.verified.fault(place, Problem::Event);
                return;
            };
            if span.is_none() {
                full_snapshot = events::is_full_snapshot(&shallow);
            }
            let (min, max) = span.unwrap_or((shallow.timestamp, shallow.timestamp));
            span = Some((min.min(shallow.timestamp), max.max(shallow.timestamp)));
        }
        if span != Some((frame.ts_min, frame.ts_max)) {
            self.verified.fault(place, Problem::Span);
        }
        if full_snapshot != frame.full_snapshot {
            self.verified.fault(place, Problem::Snapshot);
        }
    }

    fn finish(self) {
        for ((stream, seq), batch) in self.batches.into_iter().filter(|(_, batch)| !batch.is_partial) {
            let hash = || batch.hash.unwrap_or_else(|| BatchFacts::hash(&batch.payload));
            match difference(&batch.facts, batch.bytes, batch.events, hash) {
                Some(problem) => self.verified.fault(Place::Batch { stream, seq }, problem),
                None => count(&batch.facts, self.verified),
            }
        }
    }
}

impl Gathered {
    fn add(&mut self, part: &[u8], events: u64) {
        self.bytes += part.len() as u64;
        self.events += events;
        // Bytes beyond what the facts say are counted, not kept.
        if self.bytes <= u64::from(self.facts.raw_bytes) {
            self.payload.extend_from_slice(part);
        }
        if self.bytes == u64::from(self.facts.raw_bytes) && !self.is_partial {
            self.hash = Some(BatchFacts::hash(&std::mem::take(&mut self.payload)));
        }
    }
}
