//! What was acknowledged, and whether what is read is exactly that.
//!
//! A [`Ledger`] notes each batch of each session by (stream, seq): as acknowledged, or as of unknown fate when its
//! sender gave up without an answer. It holds no events, only where in a recording they are. [`SessionLedger::compare`]
//! then demands of a read: every event of every acknowledged batch, once, unchanged, in the one order of reading:
//! streams merged by (running maximum of the timestamps within the stream, stream, seq, position). A batch of unknown
//! fate may be there or not, but whole, once, and in its place.
//!
//! What the server masks is masked in what is expected too: each stream's batches, in their order, as edge and batcher mask them.
//! An event of which more is masked is the same event, for a batch that came late or behind a gap is masked whole; how many such
//! there are is told. Two events are the same when they are equal as JSON values.

mod comparer;

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use masking::{Rules, StreamState};
use schemas::SessionId;

pub use comparer::Comparer;

use crate::recordings::{Batch, Recording};

/// The events of a batch, by reference.
#[derive(Debug, Clone)]
pub enum Content {
    /// A batch of a recording, by its place in [`Recording::batches`].
    Recorded {
        /// The recording.
        recording: Arc<Recording>,
        /// The batch.
        batch: u32,
    },
    /// The same, and after it the [`mark`] of the session, stream and seq that it was sent with.
    Marked {
        /// The recording.
        recording: Arc<Recording>,
        /// The batch.
        batch: u32,
    },
    /// Events of no recording.
    Own(Arc<Batch>),
}

impl Content {
    fn batch(&self) -> Option<&Batch> {
        match self {
            Self::Recorded { recording, batch } | Self::Marked { recording, batch } => {
                recording.batches().get(*batch as usize)
            }
            Self::Own(batch) => Some(batch),
        }
    }

    fn is_marked(&self) -> bool {
        matches!(self, Self::Marked { .. })
    }

    /// Events in it.
    pub fn events(&self) -> u64 {
        let recorded = self.batch().map_or(0, |batch| batch.events().len() as u64);
        recorded + u64::from(self.is_marked())
    }
}

/// The event that tells a batch from the same batch of another session: sent after a batch's own events, with the
/// timestamp of the last.
pub fn mark(session: SessionId, stream: u32, seq: u32, batch: &Batch) -> String {
    let timestamp = batch.timestamps().last().copied().unwrap_or_default();
    format!(
        r#"{{"type":5,"data":{{"tag":"virtual-sdk","payload":{{"session":"{session}","stream":{stream},"seq":{seq}}}}},"timestamp":{timestamp}}}"#
    )
}

/// What is known of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Acknowledged,
    Unknown,
}

#[derive(Debug, Clone)]
struct Entry {
    content: Content,
    fate: Fate,
}

/// What one session's batches are.
#[derive(Debug, Clone, Default)]
pub struct SessionLedger {
    entries: BTreeMap<(u32, u32), Entry>,
}

impl SessionLedger {
    /// The edge answered 202.
    pub fn acknowledge(&mut self, stream: u32, seq: u32, content: Content) {
        self.entries.insert((stream, seq), Entry { content, fate: Fate::Acknowledged });
    }

    /// The sender gave up, and the batch may be stored all the same. What was acknowledged stays so.
    pub fn doubt(&mut self, stream: u32, seq: u32, content: Content) {
        self.entries.entry((stream, seq)).or_insert(Entry { content, fate: Fate::Unknown });
    }

    /// Batches that were acknowledged.
    pub fn batches(&self) -> u64 {
        self.acknowledged().count() as u64
    }

    /// Events that were acknowledged.
    pub fn events(&self) -> u64 {
        self.acknowledged().map(|entry| entry.content.events()).sum()
    }

    /// Batches of unknown fate.
    pub fn doubts(&self) -> u64 {
        self.entries.len() as u64 - self.batches()
    }

    fn acknowledged(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values().filter(|entry| entry.fate == Fate::Acknowledged)
    }

    /// Begins a comparison with what is read of `session`.
    pub fn comparer(&self, session: SessionId) -> Comparer<'_> {
        Comparer::new(session, self)
    }

    /// Compares with the events that were read of `session`, in the order in which they came.
    pub fn compare<L: AsRef<[u8]>>(&self, session: SessionId, read: impl IntoIterator<Item = L>) -> Comparison {
        let mut comparer = self.comparer(session);
        for line in read {
            comparer.push(line.as_ref());
        }
        comparer.finish()
    }
}

/// What all sessions' batches are. Shared by tasks.
#[derive(Debug, Default)]
pub struct Ledger {
    sessions: Mutex<HashMap<SessionId, SessionLedger>>,
}

impl Ledger {
    /// Begins a session, so that it is known before its first batch.
    pub fn begin(&self, session: SessionId) {
        self.with(|sessions| {
            sessions.entry(session).or_default();
        });
    }

    /// The edge answered 202.
    pub fn acknowledge(&self, session: SessionId, stream: u32, seq: u32, content: Content) {
        self.with(|sessions| sessions.entry(session).or_default().acknowledge(stream, seq, content));
    }

    /// The sender gave up, and the batch may be stored all the same.
    pub fn doubt(&self, session: SessionId, stream: u32, seq: u32, content: Content) {
        self.with(|sessions| sessions.entry(session).or_default().doubt(stream, seq, content));
    }

    /// A session's batches as they are now.
    pub fn session(&self, session: SessionId) -> Option<SessionLedger> {
        self.with(|sessions| sessions.get(&session).cloned())
    }

    /// Forgets a session, for it was deleted.
    pub fn forget(&self, session: SessionId) -> Option<SessionLedger> {
        self.with(|sessions| sessions.remove(&session))
    }

    /// The sessions, ordered by id.
    pub fn sessions(&self) -> Vec<SessionId> {
        let mut sessions: Vec<SessionId> = self.with(|sessions| sessions.keys().copied().collect());
        sessions.sort_unstable();
        sessions
    }

    /// Batches and events that were acknowledged.
    pub fn totals(&self) -> (u64, u64) {
        self.with(|sessions| {
            sessions
                .values()
                .fold((0, 0), |(batches, events), session| (batches + session.batches(), events + session.events()))
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut HashMap<SessionId, SessionLedger>) -> T) -> T {
        // A panic elsewhere leaves a map whose entries are whole: each is one insertion.
        act(&mut self.sessions.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What a comparison found. All faults are zero exactly when the read is what was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Comparison {
    /// Events that had to be there.
    pub expected: u64,
    /// Events that were read.
    pub read: u64,
    /// Acknowledged events that are not there.
    pub lost: u64,
    /// Events that are there more often than they were sent.
    pub doubled: u64,
    /// Events with type and timestamp of one that is not there, and other content. They count as lost too.
    pub altered: u64,
    /// Events that nobody sent to this session.
    pub foreign: u64,
    /// Events that would have to be moved to have all in order.
    pub out_of_order: u64,
    /// Batches of unknown fate of which a part is there.
    pub torn: u64,
    /// Batches of unknown fate that are there, whole. Not a fault.
    pub doubts_there: u64,
    /// Events that are equal as JSON values and not as bytes. Not a fault.
    pub rewritten: u64,
    /// Events of which more was masked than where all came in order. Not a fault.
    pub masked_more: u64,
    /// The first fault that was found, and where; without content.
    pub first_fault: Option<String>,
}

impl Comparison {
    /// Whether the read is exactly what was acknowledged.
    pub fn is_exact(&self) -> bool {
        self.lost + self.doubled + self.altered + self.foreign + self.out_of_order + self.torn == 0
    }

    /// Adds another session's.
    pub fn add(&mut self, other: Self) {
        self.expected += other.expected;
        self.read += other.read;
        self.lost += other.lost;
        self.doubled += other.doubled;
        self.altered += other.altered;
        self.foreign += other.foreign;
        self.out_of_order += other.out_of_order;
        self.torn += other.torn;
        self.doubts_there += other.doubts_there;
        self.rewritten += other.rewritten;
        self.masked_more += other.masked_more;
        if self.first_fault.is_none() {
            self.first_fault = other.first_fault;
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { expected, read, lost, doubled, altered, foreign, out_of_order, torn, .. } = self;
        write!(
            f,
            "expected {expected}, read {read}: {lost} lost, {doubled} doubled, {altered} altered, {foreign} foreign, \
             {out_of_order} out of order, {torn} batches torn"
        )?;
        match &self.first_fault {
            Some(fault) => write!(f, "; first: {fault}"),
            None => Ok(()),
        }
    }
}

/// The events of an entry as they are stored, by position. `state` is what is known of their stream.
fn events_of<'a>(
    session: SessionId,
    (stream, seq): (u32, u32),
    entry: &'a Entry,
    rules: &Rules,
    state: &mut StreamState,
) -> Vec<(Cow<'a, [u8]>, i64)> {
    let Some(batch) = entry.content.batch() else { return Vec::new() };
    let recorded = batch.events().iter().zip(batch.timestamps());
    let mut events: Vec<(Cow<'a, [u8]>, i64)> =
        recorded.map(|(event, timestamp)| (Cow::Borrowed(event.get().as_bytes()), *timestamp)).collect();
    if entry.content.is_marked() {
        let timestamp = batch.timestamps().last().copied().unwrap_or_default();
        events.push((Cow::Owned(mark(session, stream, seq, batch).into_bytes()), timestamp));
    }
    let mut body = Vec::new();
    for (event, _) in &events {
        body.extend(event.iter().filter(|byte| !matches!(byte, b'\n' | b'\r')));
        body.push(b'\n');
    }
    // What no edge takes in is not read either; it is found to be lost.
    let Ok(read) = masking::read(&body, rules) else { return events };
    // Nobody opens a batch of which the edge says that all was done.
    let kept = if read.needs_state { masking::mask(&read.payload, rules, state).payload } else { None };
    let stored = kept.unwrap_or(read.payload);
    if stored != body {
        let stored = stored.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        for ((event, _), stored) in events.iter_mut().zip(stored) {
            if **event != *stored {
                *event = Cow::Owned(stored.to_vec());
            }
        }
    }
    events
}

#[cfg(test)]
mod tests;
