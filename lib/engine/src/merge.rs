//! The one order in which a session is read, wherever its batches lie.
//!
//! [`Plan::build`] takes the footers of a session's objects and says which copy of each batch counts: what is merged
//! already stays, else the first by (partition, offset). [`Merger`] then walks the plan: within a stream by (seq,
//! position), and across streams by the running maximum of the timestamps, stream, seq, position (C1). It asks for
//! batches when their turn comes, so a reader holds one batch per stream that is being read, and no more; where these are
//! too many bytes, it lets go of those that are needed last, and asks for them again.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use schemas::BatchFacts;
use schemas::facts::{Urls, active_between_ms};
use schemas::http::{Completeness, ConsoleCounts, EventCounts, MissingRange};
use schemas::limits::{MISSING_RANGES_MAX, SESSION_URLS_MAX};
use schemas::{session_object, shared_object};

use crate::events;

/// Where a batch's events lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A frame of a shared object.
    Shared {
        /// The object, by the reader's own numbering.
        object: usize,
        /// The chunk's number in the object's footer.
        chunk: usize,
        /// The frame's number in the chunk.
        frame: usize,
        /// Where the frame begins.
        at: u64,
        /// Its length.
        len: u32,
    },
    /// Pieces of frames of a session object.
    Session {
        /// The object, by the reader's own numbering.
        object: usize,
        /// In order of position.
        pieces: Vec<Piece>,
    },
}

/// Neighbouring events in a frame of a session object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The frame's number in the object's footer.
    pub frame: usize,
    /// Where the events begin in the decompressed frame.
    pub at: u32,
    /// Their bytes.
    pub len: u32,
}

/// A batch that counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Its number.
    pub seq: u32,
    /// Whether it is the last of its stream.
    pub end: bool,
    /// What the edge found in it.
    pub facts: BatchFacts,
    /// Where it lies.
    pub location: Location,
}

/// A stream's batches that count, by seq.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// The stream.
    pub stream: u32,
    /// Its batches.
    pub batches: Vec<Batch>,
}

impl Stream {
    /// Time in which the user was active in this stream, in milliseconds: however it was cut into batches, it is the same.
    fn active_ms(&self) -> u64 {
        let mut last = None;
        let mut active_ms = 0;
        for facts in self.batches.iter().map(|batch| &batch.facts) {
            active_ms += u64::from(facts.active_ms);
            if let Some((first, until)) = facts.interacted {
                active_ms += last.map_or(0, |last| active_between_ms(last, first));
                last = Some(until);
            }
        }
        active_ms
    }
}

/// The first visit of a page.
struct Visit<'a> {
    stream: u32,
    seq: u32,
    url: &'a str,
}

/// A session object's footer, by the reader's own numbering.
pub type SessionSource<'a> = (usize, &'a session_object::Footer);

/// A chunk of a shared object.
#[derive(Debug, Clone, Copy)]
pub struct SharedSource<'a> {
    /// The object, by the reader's own numbering.
    pub object: usize,
    /// The partition that it came from.
    pub partition: i32,
    /// The chunk's number in the object's footer.
    pub number: usize,
    /// The chunk.
    pub chunk: &'a shared_object::Chunk,
}

/// The batches that were to be read are not all there any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("batch {seq} of stream {stream} is in no object any more")]
pub struct Lost {
    /// The stream.
    pub stream: u32,
    /// The batch.
    pub seq: u32,
}

/// What a session consists of.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Streams by number.
    pub streams: Vec<Stream>,
    /// Copies that do not count.
    pub duplicates: u64,
    /// Copies that differ from the one that counts.
    pub conflicts: u64,
}

/// Sums over a plan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Totals {
    /// Events.
    pub events: u64,
    /// Bytes of the events, newlines included.
    pub raw_bytes: u64,
    /// Events by kind.
    pub counts: EventCounts,
    /// Pages opened.
    pub pages: u64,
    /// Console errors.
    pub errors: u64,
    /// The least and greatest timestamp, when there is any event.
    pub span: Option<(i64, i64)>,
    /// Time in which the user was active, in milliseconds: within batches, and between neighbouring batches of a stream.
    /// It is a sum over streams: what was done in two tabs at the same time counts twice.
    pub active_ms: u64,
    /// Clicks.
    pub clicks: u64,
    /// Inputs into form fields.
    pub keypresses: u64,
    /// Console messages by level.
    pub console: ConsoleCounts,
    /// Requests of the page that failed.
    pub failed_requests: u64,
    /// Pages by origin and path, each once, in the order of the first visits; the first [`SESSION_URLS_MAX`].
    pub urls: Vec<String>,
}

/// Whether two copies of a batch are stored alike.
fn is_same_content(one: &BatchFacts, other: &BatchFacts) -> bool {
    let stored = |facts: &BatchFacts| (facts.stored_hash.unwrap_or(facts.content_hash), facts.events, facts.raw_bytes);
    stored(one) == stored(other)
}

impl Plan {
    /// The plan of these sources. Sources of session objects are taken in the order given, older ones first.
    pub fn build(merged: &[SessionSource<'_>], shared: &[SharedSource<'_>]) -> Self {
        let mut plan = Builder::default();
        for &(object, footer) in merged {
            plan.add_session_object(object, footer);
        }
        let mut copies: Vec<(i32, u64, u32, Batch)> = Vec::new();
        for source in shared {
            let mut at = source.chunk.at;
            for (frame, entry) in source.chunk.batches.iter().enumerate() {
                let location =
                    Location::Shared { object: source.object, chunk: source.number, frame, at, len: entry.len };
                at += u64::from(entry.len);
                if entry.is_copy() {
                    plan.duplicates += 1;
                    continue;
                }
                let batch = Batch { seq: entry.seq, end: entry.end, facts: entry.facts.clone(), location };
                copies.push((source.partition, entry.offset, source.chunk.stream, batch));
            }
        }
        copies.sort_by_key(|(partition, offset, ..)| (*partition, *offset));
        for (_, _, stream, batch) in copies {
            plan.add(stream, batch);
        }
        plan.finish()
    }

    /// Batches with events in this range, by indices of stream and batch, in the order in which a [`Merger`] asks for them.
    pub fn needs(&self, range: Range) -> Vec<(usize, usize)> {
        let mut needs = Vec::new();
        for (number, stream) in self.streams.iter().enumerate() {
            let mut high = i64::MIN;
            for (batch, facts) in stream.batches.iter().map(|batch| &batch.facts).enumerate() {
                if range.touches(facts) {
                    needs.push((high.max(facts.ts_min), number, batch));
                }
                if facts.events > 0 {
                    high = high.max(facts.ts_max);
                }
            }
        }
        needs.sort_unstable();
        needs.into_iter().map(|(_, stream, batch)| (stream, batch)).collect()
    }

    /// Keeps the batches of an earlier plan of the same session, wherever they lie by now: a reading goes on with what was there
    /// when it began. A batch of which another copy counts by now, with other content, is lost to it.
    pub fn restrict(&mut self, to: &Self) -> Result<(), Lost> {
        let mut streams = Vec::with_capacity(to.streams.len());
        for wanted in &to.streams {
            let place = self.streams.binary_search_by_key(&wanted.stream, |stream| stream.stream);
            let mut found = place.map(|place| std::mem::take(&mut self.streams[place].batches)).unwrap_or_default();
            let before: BTreeMap<u32, &BatchFacts> =
                wanted.batches.iter().map(|batch| (batch.seq, &batch.facts)).collect();
            found.retain(|batch| before.get(&batch.seq).is_some_and(|facts| is_same_content(facts, &batch.facts)));
            let is_lost = |seq: &&u32| found.binary_search_by_key(*seq, |batch| batch.seq).is_err();
            if let Some(seq) = before.keys().find(is_lost) {
                return Err(Lost { stream: wanted.stream, seq: *seq });
            }
            streams.push(Stream { stream: wanted.stream, batches: found });
        }
        self.streams = streams;
        Ok(())
    }

    /// What of the session is there.
    pub fn completeness(&self) -> Completeness {
        let mut missing = Vec::new();
        for stream in &self.streams {
            let mut expected = 0;
            for batch in &stream.batches {
                if batch.seq > expected {
                    missing.push(MissingRange { stream: stream.stream, from: expected, to: batch.seq - 1 });
                }
                expected = batch.seq.saturating_add(1);
            }
        }
        missing.truncate(MISSING_RANGES_MAX);
        let batches = || self.streams.iter().flat_map(|stream| &stream.batches);
        Completeness {
            batches: batches().count() as u64,
            missing,
            ended: !self.streams.is_empty()
                && self.streams.iter().all(|stream| stream.batches.last().is_some_and(|last| last.end)),
            has_full_snapshot: batches().any(|batch| batch.facts.full_snapshot),
            duplicates_dropped: self.duplicates,
            conflicts: self.conflicts,
        }
    }

    /// Streams that go on, for no batch is their last: those with the latest events first.
    pub fn open_streams(&self) -> Vec<u32> {
        let latest = |stream: &Stream| {
            let with_events = stream.batches.iter().filter(|batch| batch.facts.events > 0);
            with_events.map(|batch| batch.facts.ts_max).max()
        };
        let open = self.streams.iter().filter(|stream| !stream.batches.iter().any(|batch| batch.end));
        let mut open: Vec<_> = open.map(|stream| (Reverse(latest(stream)), stream.stream)).collect();
        open.sort_unstable();
        open.into_iter().map(|(_, stream)| stream).collect()
    }

    /// Sums over all batches.
    pub fn totals(&self) -> Totals {
        let mut totals = Totals {
            active_ms: self.streams.iter().map(Stream::active_ms).sum(),
            urls: self.visits().into_iter().map(|visit| visit.url.to_owned()).collect(),
            ..Totals::default()
        };
        for facts in self.streams.iter().flat_map(|stream| &stream.batches).map(|batch| &batch.facts) {
            totals.events += u64::from(facts.events);
            totals.raw_bytes += u64::from(facts.raw_bytes);
            totals.counts.add(&facts.kinds);
            totals.pages += u64::from(facts.pages);
            totals.errors += u64::from(facts.errors);
            totals.clicks += u64::from(facts.clicks);
            totals.keypresses += u64::from(facts.keypresses);
            totals.console.add(facts);
            totals.failed_requests += u64::from(facts.failed_requests);
            if facts.events > 0 {
                let (min, max) = totals.span.unwrap_or((facts.ts_min, facts.ts_max));
                totals.span = Some((min.min(facts.ts_min), max.max(facts.ts_max)));
            }
        }
        totals
    }

    /// The first visits of pages, in order, [`SESSION_URLS_MAX`] at most. A batch's place in the order is told by itself
    /// alone, so that a part of the session keeps what the whole will ask for, however it is merged (C1).
    fn visits(&self) -> Vec<Visit<'_>> {
        let batches = self.streams.iter().flat_map(|stream| stream.batches.iter().map(move |batch| (stream, batch)));
        let mut visited: Vec<_> = batches.filter(|(_, batch)| !batch.facts.urls.is_empty()).collect();
        visited.sort_by_key(|(stream, batch)| (batch.facts.ts_min, stream.stream, batch.seq));
        let mut seen = BTreeSet::new();
        let all = visited.into_iter().flat_map(|(stream, batch)| {
            batch.facts.urls.iter().map(|url| Visit { stream: stream.stream, seq: batch.seq, url })
        });
        all.filter(|visit| seen.insert(visit.url)).take(SESSION_URLS_MAX).collect()
    }

    /// Streams as a session object's footer lists them. A page stands with its first visit alone: how large a footer is
    /// does not depend on how often a client says where it is.
    pub fn stream_infos(&self) -> Vec<session_object::StreamInfo> {
        let mut visits: BTreeMap<(u32, u32), Vec<&str>> = BTreeMap::new();
        for visit in self.visits() {
            visits.entry((visit.stream, visit.seq)).or_default().push(visit.url);
        }
        let mut info = |stream: u32, batch: &Batch| {
            let urls = Urls::new(visits.remove(&(stream, batch.seq)).unwrap_or_default());
            let facts = BatchFacts { urls, ..batch.facts.clone() };
            session_object::BatchInfo { seq: batch.seq, end: batch.end, facts }
        };
        self.streams
            .iter()
            .map(|stream| session_object::StreamInfo {
                stream: stream.stream,
                batches: stream.batches.iter().map(|batch| info(stream.stream, batch)).collect(),
            })
            .collect()
    }
}

#[derive(Default)]
struct Builder {
    streams: BTreeMap<u32, BTreeMap<u32, Batch>>,
    duplicates: u64,
    conflicts: u64,
}

impl Builder {
    fn add(&mut self, stream: u32, batch: Batch) {
        let batches = self.streams.entry(stream).or_default();
        match batches.get(&batch.seq) {
            None => {
                batches.insert(batch.seq, batch);
            }
            Some(first) => {
                self.duplicates += 1;
                // As they were sent: of two copies one may be masked more than the other.
                self.conflicts += u64::from(first.facts.content_hash != batch.facts.content_hash);
            }
        }
    }

    fn add_session_object(&mut self, object: usize, footer: &session_object::Footer) {
        self.duplicates += footer.duplicates;
        self.conflicts += footer.conflicts;
        let mut pieces: BTreeMap<(u32, u32), Vec<(u32, Piece)>> = BTreeMap::new();
        for (frame, entry) in footer.frames.iter().enumerate() {
            let mut at = 0;
            for segment in &entry.segments {
                let piece = Piece { frame, at, len: segment.bytes };
                pieces.entry((segment.stream, segment.seq)).or_default().push((segment.position, piece));
                at += segment.bytes;
            }
        }
        for stream in &footer.streams {
            for info in &stream.batches {
                let mut found = pieces.remove(&(stream.stream, info.seq)).unwrap_or_default();
                found.sort_by_key(|(position, _)| *position);
                let pieces = found.into_iter().map(|(_, piece)| piece).collect();
                let location = Location::Session { object, pieces };
                self.add(stream.stream, Batch { seq: info.seq, end: info.end, facts: info.facts.clone(), location });
            }
        }
    }

    fn finish(self) -> Plan {
        let streams = self
            .streams
            .into_iter()
            .map(|(stream, batches)| Stream { stream, batches: batches.into_values().collect() })
            .collect();
        Plan { streams, duplicates: self.duplicates, conflicts: self.conflicts }
    }
}

/// What a [`Merger`] wants or has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Give the events of this batch with [`Merger::supply`].
    Need {
        /// Index of the stream in the plan.
        stream: usize,
        /// Index of the batch in the stream.
        batch: usize,
    },
    /// The next event; its bytes are at [`Merger::bytes`].
    Event(Event),
    /// All events were given.
    Done,
}

/// One event in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Index of the stream in the plan.
    pub stream: usize,
    /// Index of the batch in the stream.
    pub batch: usize,
    /// Place within the batch.
    pub position: u32,
    /// Milliseconds by the client's clock, as the event has it.
    pub timestamp: i64,
    /// Whether a player can start at it.
    pub full_snapshot: bool,
    start: usize,
    end: usize,
}

/// A stored batch does not hold what its facts say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("stored batch does not match its facts")]
pub struct Mismatch {
    /// Index of the stream in the plan.
    pub stream: usize,
    /// Index of the batch in the stream.
    pub batch: usize,
}

#[derive(Debug, Default)]
struct Cursor {
    /// The batch that is read, or that comes next.
    batch: usize,
    loaded: Option<Loaded>,
    /// Where a batch is read on that had to make room.
    put_back: Option<PutBack>,
    /// The running maximum of the timestamps so far.
    high: Option<i64>,
}

impl Cursor {
    fn rise(&mut self, timestamp: i64) {
        self.high = Some(self.high.map_or(timestamp, |high| high.max(timestamp)));
    }
}

/// Events of a batch: all of them, or as many as there was room for.
#[derive(Debug)]
struct Loaded {
    payload: Vec<u8>,
    /// Where in the batch the payload begins.
    begins: usize,
    /// Where in the payload the event behind the next one begins.
    at: usize,
    position: u32,
    next: Option<Event>,
}

/// The first event of a batch that was not given yet.
#[derive(Debug, Clone, Copy)]
struct PutBack {
    /// Where it begins in the batch.
    at: usize,
    position: u32,
    /// Its timestamp, or one that is not greater.
    timestamp: i64,
}

/// Timestamps of the events that are wanted, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The least wanted timestamp, milliseconds.
    pub from: i64,
    /// The greatest.
    pub to: i64,
}

impl Range {
    /// All events.
    pub const ALL: Self = Self { from: i64::MIN, to: i64::MAX };

    /// Whether an event of this time is wanted.
    pub fn contains(&self, timestamp: i64) -> bool {
        (self.from..=self.to).contains(&timestamp)
    }

    /// Whether something between these times may be wanted.
    pub fn overlaps(&self, ts_min: i64, ts_max: i64) -> bool {
        ts_min <= self.to && ts_max >= self.from
    }

    /// Whether everything between these times is wanted.
    pub fn covers(&self, ts_min: i64, ts_max: i64) -> bool {
        self.from <= ts_min && ts_max <= self.to
    }

    fn touches(&self, facts: &BatchFacts) -> bool {
        facts.events > 0 && self.overlaps(facts.ts_min, facts.ts_max)
    }
}

/// Walks a plan in the order of reading.
#[derive(Debug)]
pub struct Merger {
    plan: Arc<Plan>,
    range: Range,
    cursors: Vec<Cursor>,
    /// Streams that are not through, by where they are in the order: a session may have many thousands of them.
    order: BinaryHeap<Reverse<(i64, usize)>>,
    /// Bytes of the batches that are loaded.
    held: usize,
    held_max: usize,
}

impl Merger {
    /// The events of `range`. A batch without any of them is not asked for; it still counts for the order, so that a
    /// part reads in the same order as the whole.
    ///
    /// No more than `held_max` bytes of batches are held, but always one event. When the batches of streams that go on at once are
    /// more, each stream keeps its share of them, and its batch is asked for again behind that: of k streams a batch of n bytes is
    /// asked for about n × k / `held_max` times, however their events alternate.
    pub fn new(plan: Arc<Plan>, range: Range, held_max: usize) -> Self {
        let cursors: Vec<Cursor> = plan.streams.iter().map(|_| Cursor::default()).collect();
        let mut merger = Self { plan, range, cursors, order: BinaryHeap::new(), held: 0, held_max };
        for index in 0..merger.cursors.len() {
            merger.order.extend(merger.bound(index).map(|bound| Reverse((bound, index))));
        }
        merger
    }

    /// Bytes of batches that are held.
    pub fn held(&self) -> usize {
        self.held
    }

    /// The next step: a wanted batch, an event, or the end. An event has to be used before the next call.
    pub fn step(&mut self) -> Result<Step, Mismatch> {
        loop {
            if let Some(step) = self.advance()? {
                return Ok(step);
            }
        }
    }

    fn advance(&mut self) -> Result<Option<Step>, Mismatch> {
        let Some(&Reverse((_, index))) = self.order.peek() else { return Ok(Some(Step::Done)) };
        let cursor = &mut self.cursors[index];
        let Some(loaded) = cursor.loaded.as_mut() else {
            let facts = &self.plan.streams[index].batches[cursor.batch].facts;
            if self.range.touches(facts) {
                return Ok(Some(Step::Need { stream: index, batch: cursor.batch }));
            }
            if facts.events > 0 {
                cursor.rise(facts.ts_max);
            }
            cursor.batch += 1;
            self.reorder(index);
            return Ok(None);
        };
        let Some(event) = loaded.next.take() else {
            self.held -= loaded.payload.len();
            let (at, position) = (loaded.begins + loaded.at, loaded.position);
            cursor.loaded = None;
            let facts = &self.plan.streams[index].batches[cursor.batch].facts;
            if at < facts.raw_bytes as usize {
                cursor.put_back = Some(PutBack { at, position, timestamp: facts.ts_min });
            } else {
                cursor.batch += 1;
            }
            self.reorder(index);
            return Ok(None);
        };
        loaded.advance(index, cursor.batch)?;
        cursor.rise(event.timestamp);
        self.reorder(index);
        Ok(self.range.contains(event.timestamp).then_some(Step::Event(event)))
    }

    /// Puts the first stream of the order, which is this one, where it is by now. No other stream has moved.
    fn reorder(&mut self, index: usize) {
        self.order.pop();
        self.order.extend(self.bound(index).map(|bound| Reverse((bound, index))));
    }

    /// Where a stream's next event is in the order, or a lower bound of it; `None` at its end.
    fn bound(&self, index: usize) -> Option<i64> {
        let cursor = &self.cursors[index];
        let batches = &self.plan.streams[index].batches;
        let next = match &cursor.loaded {
            Some(Loaded { next: Some(event), .. }) => Some(event.timestamp),
            Some(Loaded { next: None, .. }) => None,
            None if cursor.put_back.is_some() => cursor.put_back.map(|put_back| put_back.timestamp),
            None => {
                let facts = &batches.get(cursor.batch)?.facts;
                (facts.events > 0).then_some(facts.ts_min)
            }
        };
        match (cursor.high, next) {
            (Some(high), Some(next)) => Some(high.max(next)),
            (high, next) => Some(high.or(next).unwrap_or(i64::MIN)),
        }
    }

    /// Gives the events of the batch that [`Step::Need`] asked for.
    pub fn supply(&mut self, stream: usize, payload: Vec<u8>) -> Result<(), Mismatch> {
        let cursor = &mut self.cursors[stream];
        let facts = &self.plan.streams[stream].batches[cursor.batch].facts;
        if payload.len() != facts.raw_bytes as usize {
            return Err(Mismatch { stream, batch: cursor.batch });
        }
        let (at, position) = cursor.put_back.take().map_or((0, 0), |put_back| (put_back.at, put_back.position));
        let mut loaded = Loaded { payload, begins: 0, at, position, next: None };
        loaded.advance(stream, cursor.batch)?;
        self.held += loaded.payload.len();
        cursor.loaded = Some(loaded);
        self.reorder(stream);
        self.make_room(stream);
        Ok(())
    }

    /// Lets go of what is beyond each stream's share, once too much is held; then of events that are needed last, and not of this
    /// stream's.
    fn make_room(&mut self, but: usize) {
        if self.held > self.held_max {
            let loaded = || self.cursors.iter().filter(|cursor| cursor.loaded.is_some()).count();
            let share = self.held_max / loaded().max(1);
            for loaded in self.cursors.iter_mut().filter_map(|cursor| cursor.loaded.as_mut()) {
                self.held -= loaded.shorten(share);
            }
        }
        while self.held > self.held_max {
            let others = self.cursors.iter().enumerate().filter(|(index, _)| *index != but);
            let held = others.filter_map(|(index, cursor)| Some((cursor.loaded.as_ref()?.next?, index)));
            let Some((next, _, last)) = held
                .map(|(next, index)| (next, self.bound(index), index))
                .max_by_key(|(_, bound, index)| (*bound, *index))
            else {
                return;
            };
            let cursor = &mut self.cursors[last];
            if let Some(loaded) = cursor.loaded.take() {
                self.held -= loaded.payload.len();
                let at = loaded.begins + next.start;
                cursor.put_back = Some(PutBack { at, position: next.position, timestamp: next.timestamp });
            }
        }
    }

    /// The bytes of an event that [`Merger::step`] just gave, with its newline.
    pub fn bytes(&self, event: &Event) -> &[u8] {
        let loaded = self.cursors[event.stream].loaded.as_ref();
        loaded.and_then(|loaded| loaded.payload.get(event.start..event.end)).unwrap_or_default()
    }
}

impl Loaded {
    /// Keeps whole events from the next one on, of `share` bytes at most, but that one always; gives how many bytes went.
    fn shorten(&mut self, share: usize) -> usize {
        let Some(next) = self.next.as_mut().filter(|_| self.payload.len() > share) else { return 0 };
        let (start, end) = (next.start, next.end);
        let within = &self.payload[..self.payload.len().min(start + share)];
        let end = within.iter().rposition(|byte| *byte == b'\n').map_or(end, |last| end.max(last + 1));
        let before = self.payload.len();
        self.payload = self.payload[start..end].to_vec();
        self.begins += start;
        self.at -= start;
        (next.start, next.end) = (0, next.end - start);
        before - self.payload.len()
    }

    fn advance(&mut self, stream: usize, batch: usize) -> Result<(), Mismatch> {
        let mismatch = Mismatch { stream, batch };
        let rest = self.payload.get(self.at..).ok_or(mismatch)?;
        if rest.is_empty() {
            self.next = None;
            return Ok(());
        }
        let len = rest.iter().position(|byte| *byte == b'\n').ok_or(mismatch)? + 1;
        let shallow = events::shallow(&rest[..len - 1]).ok_or(mismatch)?;
        self.next = Some(Event {
            stream,
            batch,
            position: self.position,
            timestamp: shallow.timestamp,
            full_snapshot: events::is_full_snapshot(&shallow),
            start: self.at,
            end: self.at + len,
        });
        self.at += len;
        self.position += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
