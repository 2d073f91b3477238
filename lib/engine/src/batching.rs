//! When a partition's records become an object, and what happens when that fails.
//!
//! One machine per batcher process. A driver tells it what happened ([`Input`]) and carries out what it wants
//! ([`Effect`]); it never waits. It sees ids, sizes and offsets; the driver holds the bytes.
//!
//! A partition's life: `Assigned` → take an epoch → ask where the log begins and ends → read → collect → flush, again
//! and again → `Revoked`. A flush is **stage, upload, publish**, one at a time per partition: staging writes the
//! object's row under a name that is never used twice (B10) and tells which sessions are deleted; publishing moves the
//! progress by compare-and-swap on (next offset, epoch) and makes the object live, in one transaction (B1, B2, B5).
//!
//! - The log must be the one that the index knows. One that ends before the next offset, or whose record at the last
//!   published offset has another fingerprint, was made anew: the partition halts. One that begins behind the next
//!   offset has lost records: a gap, and an alarm. Nothing is ever passed over in silence.
//! - A batch that was published lately, or stands in the same flush already, is a copy: its place is noted, its bytes
//!   are not stored again. Copies that this bounded memory misses are found when a session is read or merged.
//! - A session whose key does not open is set aside: its batches go into quarantine, and hold up nobody.
//! - An upload that fails is staged anew under another name; the collector removes the old row.
//! - A swap that changed nothing means that somebody else owns the partition or did: the buffer is dropped (nothing is
//!   lost, the log has it) and, while still assigned, a new epoch is taken after a backoff.
//! - A commit whose answer was lost is looked up, then decided.
//!
//! After every [`Machine::handle`], call [`Machine::poll_effect`] until it gives `None`, then wait until
//! [`Machine::poll_timeout`] at the longest and hand over [`Input::Tick`].

use std::collections::{BTreeMap, VecDeque};

use schemas::shared_object::QuarantineReason;
use schemas::{SessionKey, StreamSeq};

use crate::backoff;

/// Bounds of one batcher. Times in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// A flush begins at the latest this long after its first record came.
    pub flush_age_ms: u64,
    /// A flush begins when this many bytes are buffered for one partition.
    pub flush_bytes: u64,
    /// Reading pauses at this many bytes, buffered or in flight, over all partitions (B7).
    pub buffer_bytes_max: u64,
    /// A session's activity is noted at most once in this time.
    pub activity_interval_ms: u64,
    /// The first wait after a failure; it doubles up to `retry_max_ms`.
    pub retry_min_ms: u64,
    /// The longest wait after a failure.
    pub retry_max_ms: u64,
    /// Any number, another one in each process: spreads the waits of those that fight over a partition.
    pub spread_seed: u64,
    /// Sessions remembered per partition; one that was forgotten is upserted again, which changes nothing.
    pub sessions_known_max: usize,
    /// Batches remembered per partition; a copy of one that was forgotten is stored, and dropped by readers.
    pub batches_known_max: usize,
}

/// What a record is, as far as deciding goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// A session begins.
    Acceptance(SessionKey),
    /// A batch of events.
    Batch {
        /// Its session.
        key: SessionKey,
        /// Its place there.
        place: StreamSeq,
        /// The hash of its events.
        content: u64,
    },
    /// A batch with the same content again: only that it came is stored. The machine makes it of a
    /// [`RecordKind::Batch`].
    Copy(SessionKey),
    /// A sum of declines.
    Declines,
    /// It cannot be read: it goes into quarantine as it is.
    Unreadable(QuarantineReason),
}

impl RecordKind {
    fn session(&self) -> Option<SessionKey> {
        match self {
            Self::Acceptance(key) | Self::Batch { key, .. } | Self::Copy(key) => Some(*key),
            Self::Declines | Self::Unreadable(_) => None,
        }
    }

    fn is_stored(&self) -> bool {
        matches!(self, Self::Batch { .. } | Self::Copy(_) | Self::Unreadable(_))
    }
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordMeta {
    /// Its offset in the partition.
    pub offset: u64,
    /// Bytes that it holds in memory.
    pub bytes: u64,
    /// Its fingerprint: records of one log that differ have different ones.
    pub fingerprint: u64,
    /// What it is.
    pub kind: RecordKind,
}

impl RecordMeta {
    fn as_last(&self) -> LastRecord {
        LastRecord { offset: self.offset, fingerprint: self.fingerprint }
    }
}

/// The last record that was published of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastRecord {
    /// Its offset.
    pub offset: u64,
    /// Its fingerprint.
    pub fingerprint: u64,
}

/// What a partition's log holds right now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogSpan {
    /// The first offset.
    pub first: u64,
    /// The offset behind the last.
    pub next: u64,
}

/// Offsets that hold no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The first of them.
    pub first: u64,
    /// The one behind the last.
    pub next: u64,
}

/// The number of a flush within its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlushId(pub u64);

/// The number of a question for what a log holds, within its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuestionId(pub u64);

/// What a flush covers. The driver keeps the bytes by offset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flush {
    /// Its number. A flush that is staged anew gets a new one.
    pub id: FlushId,
    /// The partition.
    pub partition: i32,
    /// The epoch under which it publishes.
    pub epoch: u64,
    /// The first offset, which is the index's next one.
    pub first: u64,
    /// The offset behind the last.
    pub next: u64,
    /// The last record that is published once this flush is.
    pub last: Option<LastRecord>,
    /// When the first of its records came.
    pub since_ms: u64,
    /// Its records, by offset.
    pub records: Vec<RecordMeta>,
    /// Holes among them.
    pub gaps: Vec<Gap>,
    /// All sessions in it, in id order.
    pub sessions: Vec<SessionKey>,
    /// Those of them that this partition's owner has not seen before.
    pub first_seen: Vec<SessionKey>,
}

impl Flush {
    /// Whether an object has to be made.
    pub fn has_object(&self) -> bool {
        self.records.iter().any(|record| record.kind.is_stored())
    }

    fn bytes(&self) -> u64 {
        self.records.iter().map(|record| record.bytes).sum()
    }
}

/// What staging found out about a flush's sessions. Both in any order, and apart from each other.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Staged {
    /// Deleted: nothing of them is stored.
    pub refused: Vec<SessionKey>,
    /// Their key does not open: their batches go into quarantine.
    pub aside: Vec<SessionKey>,
}

/// What becomes of a record, once staging has said what is known of its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Its frame is stored in a chunk.
    Chunked,
    /// It is noted in a chunk, without its bytes.
    Copy,
    /// It goes into quarantine.
    Quarantined(QuarantineReason),
    /// It becomes a row.
    Indexed,
    /// Its session is deleted: nothing of it stays.
    Deleted,
}

impl Staged {
    /// What becomes of a record of the flush. Both lists are in id order by now.
    pub fn fate(&self, kind: &RecordKind) -> Fate {
        if kind.session().is_some_and(|key| self.refused.binary_search(&key).is_ok()) {
            return Fate::Deleted;
        }
        match kind {
            RecordKind::Acceptance(_) | RecordKind::Declines => Fate::Indexed,
            RecordKind::Unreadable(reason) => Fate::Quarantined(*reason),
            // Also a copy: nobody knows whether the batch that it repeats can be read again.
            RecordKind::Batch { key, .. } | RecordKind::Copy(key) if self.aside.binary_search(key).is_ok() => {
                Fate::Quarantined(QuarantineReason::SessionKey)
            }
            RecordKind::Batch { .. } => Fate::Chunked,
            RecordKind::Copy(_) => Fate::Copy,
        }
    }
}

/// How a publishing transaction went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Published {
    /// It committed.
    Committed,
    /// It changed no row and was rolled back.
    Lost,
    /// It is certain that it did not commit; it can be tried again.
    Failed,
    /// The answer was lost.
    Unknown,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The group gave us a partition.
    Assigned(i32),
    /// The group took it away.
    Revoked(i32),
    /// The index gave us an epoch.
    EpochTaken {
        /// The partition.
        partition: i32,
        /// The new epoch.
        epoch: u64,
        /// Where to go on.
        next_offset: u64,
        /// The last record that was published, when one was.
        last: Option<LastRecord>,
    },
    /// The index did not answer.
    EpochFailed(i32),
    /// Kafka said what the log holds.
    LogAsked {
        /// Which question.
        question: QuestionId,
        /// The answer, or `None` when there was none.
        span: Option<LogSpan>,
    },
    /// A record came.
    Record {
        /// The partition.
        partition: i32,
        /// The record.
        record: RecordMeta,
    },
    /// Kafka's client met an offset that a log does not have, or the topic was away: any partition's log may be another one
    /// by now, and the client does not say which.
    LogDoubted,
    /// Kafka's client stopped reading the partition, or could not begin to: it is read anew from the index's offset.
    ReadingStopped(i32),
    /// Staging ended.
    Staged {
        /// The flush.
        flush: FlushId,
        /// What it found out, or `None` on failure.
        staged: Option<Staged>,
    },
    /// The upload ended.
    Uploaded {
        /// The flush.
        flush: FlushId,
        /// Whether the object lies in the bucket.
        ok: bool,
    },
    /// Publishing ended.
    Published {
        /// The flush.
        flush: FlushId,
        /// Which try.
        attempt: u32,
        /// How.
        outcome: Published,
    },
    /// The look-up of a lost answer ended: whether it had committed, or `None` when it failed.
    LookedUp {
        /// The flush.
        flush: FlushId,
        /// Which try.
        attempt: u32,
        /// The finding.
        committed: Option<bool>,
    },
    /// Nothing but time passed.
    Tick,
    /// Flush what is buffered and stop.
    Shutdown,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Take a new epoch of the partition and read its next offset.
    TakeEpoch(i32),
    /// Ask what the partition's log holds.
    AskLog {
        /// The partition.
        partition: i32,
        /// The question, which the answer names.
        question: QuestionId,
    },
    /// Read the partition from this offset on; when it is read already, from here on anew, and what is held stays.
    Assign {
        /// The partition.
        partition: i32,
        /// The next offset.
        offset: u64,
    },
    /// Stop reading the partition; drop the records held for it.
    Drop(i32),
    /// Write the object's row and the first rows of sessions.
    Stage(Flush),
    /// Assemble and upload.
    Upload {
        /// The flush.
        flush: FlushId,
        /// Sessions that are left out or set aside, in id order.
        staged: Staged,
    },
    /// Publish.
    Publish {
        /// The flush.
        flush: FlushId,
        /// Which try; the answer names it. One that comes twice is none to the next try.
        attempt: u32,
        /// Whether an object was uploaded for it.
        with_object: bool,
        /// Sessions whose activity is to be noted.
        activity: Vec<SessionKey>,
    },
    /// Find out whether a publishing whose answer was lost had committed.
    LookUp {
        /// The flush.
        flush: FlushId,
        /// Which try; the answer names it.
        attempt: u32,
    },
    /// Forget the bytes below this offset.
    Release {
        /// The partition.
        partition: i32,
        /// The first offset still needed.
        next: u64,
    },
    /// Stop reading all partitions, go on polling.
    Pause,
    /// Read again.
    Resume,
    /// Offsets were lost before they could be stored: tell the operator. The row comes with the publishing.
    AlarmGap {
        /// The partition.
        partition: i32,
        /// Which.
        gap: Gap,
    },
    /// The partition's log is not the one that we knew: it is not read until an operator looks.
    AlarmForeign(i32),
    /// All is flushed after [`Input::Shutdown`].
    Stopped,
}

/// Records by what became of them (B4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Conservation {
    /// Taken in.
    pub records_in: u64,
    /// Stored in chunks.
    pub chunked: u64,
    /// Stored in quarantine.
    pub quarantined: u64,
    /// Made into rows: acceptances and sums of declines.
    pub indexed: u64,
    /// Left out since their session is deleted.
    pub dropped_deleted: u64,
    /// Noted as copies: the batch was stored before.
    pub dropped_copies: u64,
    /// Given back to the log: lost swaps, revoked partitions.
    pub returned: u64,
    /// In memory.
    pub buffered: u64,
}

impl Conservation {
    /// Zero, or something was lost or made up.
    pub fn imbalance(&self) -> i64 {
        let out = self.chunked
            + self.quarantined
            + self.indexed
            + self.dropped_deleted
            + self.dropped_copies
            + self.returned
            + self.buffered;
        self.records_in as i64 - out as i64
    }
}

#[derive(Debug)]
enum Phase {
    Staging,
    Uploading,
    Publishing {
        with_object: bool,
    },
    LookingUp {
        with_object: bool,
    },
    /// Something failed; what comes next once the time has come.
    Waiting {
        until_ms: u64,
        next: Retry,
    },
}

#[derive(Debug, Clone, Copy)]
enum Retry {
    Stage,
    Publish { with_object: bool },
    LookUp { with_object: bool },
}

#[derive(Debug)]
struct InFlight {
    flush: Flush,
    /// Sessions that are left out or set aside, in id order.
    staged: Staged,
    /// Sessions whose activity the publishing notes.
    activity: Vec<SessionKey>,
    phase: Phase,
    /// Counts publishings and look-ups.
    attempt: u32,
    failures: u32,
}

#[derive(Debug)]
enum State {
    /// An epoch was asked for.
    TakingEpoch,
    /// Kafka was asked what the log holds.
    AskingLog {
        question: QuestionId,
        epoch: u64,
        next_offset: u64,
        last: Option<LastRecord>,
    },
    /// Asking failed, or a swap was lost.
    Backoff {
        until_ms: u64,
    },
    Active(Box<Active>),
    /// The log is foreign: nothing is read until the partition is assigned anew.
    Halted,
}

#[derive(Debug)]
struct Active {
    epoch: u64,
    /// The next offset by the index.
    published: u64,
    /// The last record that is published.
    last: Option<LastRecord>,
    /// A question for what the log holds, and what was expected when it was asked: records come while it is answered.
    asked: Option<(QuestionId, u64)>,
    /// The published record that has to come first, as a proof that the log is the same.
    proof: Option<LastRecord>,
    /// The next offset to come from the log.
    expected: u64,
    buffer: Vec<RecordMeta>,
    buffer_bytes: u64,
    /// When the first record in the buffer came.
    since_ms: u64,
    gaps: Vec<Gap>,
    in_flight: Option<InFlight>,
    known: KnownSessions,
    batches: KnownBatches,
}

/// What was learnt lately: bounded, the longest known go first.
#[derive(Debug)]
struct Recent<K, V> {
    known: BTreeMap<K, V>,
    order: VecDeque<K>,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Self { known: BTreeMap::new(), order: VecDeque::new() }
    }
}

impl<K: Ord + Copy, V> Recent<K, V> {
    fn get(&self, key: &K) -> Option<&V> {
        self.known.get(key)
    }

    fn insert(&mut self, key: K, value: V, max: usize) {
        if self.known.insert(key, value).is_none() {
            self.order.push_back(key);
            while self.order.len() > max {
                if let Some(oldest) = self.order.pop_front() {
                    self.known.remove(&oldest);
                }
            }
        }
    }
}

/// Sessions that have a row, and when their activity was noted.
type KnownSessions = Recent<SessionKey, u64>;

/// Batches that were published, with the hash of their content.
type KnownBatches = Recent<(SessionKey, StreamSeq), u64>;

impl KnownBatches {
    fn note(&mut self, kind: &RecordKind, max: usize) {
        let RecordKind::Batch { key, place, content } = *kind else { return };
        // The first stays, as it does for readers.
        if self.get(&(key, place)).is_none() {
            self.insert((key, place), content, max);
        }
    }

    /// Turns batches into copies that are known, or come a second time. One of another content is none: readers count it
    /// as a conflict.
    fn mark_copies(&self, records: &mut [RecordMeta]) {
        let mut here = BTreeMap::new();
        for record in records {
            let RecordKind::Batch { key, place, content } = record.kind else { continue };
            let first = self.get(&(key, place)).or_else(|| here.get(&(key, place)));
            match first {
                Some(first) if *first == content => record.kind = RecordKind::Copy(key),
                Some(_) => {}
                None => {
                    here.insert((key, place), content);
                }
            }
        }
    }
}

#[derive(Debug)]
struct Partition {
    state: State,
    failures: u32,
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    config: Config,
    partitions: BTreeMap<i32, Partition>,
    effects: VecDeque<Effect>,
    conservation: Conservation,
    buffered_bytes: u64,
    paused: bool,
    next_flush: u64,
    next_question: u64,
    stopping: bool,
    stopped: bool,
}

impl Machine {
    /// A machine that owns nothing yet.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            partitions: BTreeMap::new(),
            effects: VecDeque::new(),
            conservation: Conservation::default(),
            buffered_bytes: 0,
            paused: false,
            next_flush: 0,
            next_question: 0,
            stopping: false,
            stopped: false,
        }
    }

    /// Takes in what happened at `now_ms`, by a clock that never goes back.
    pub fn handle(&mut self, now_ms: u64, input: Input) {
        match input {
            Input::Assigned(partition) => self.assigned(partition),
            Input::Revoked(partition) => self.revoked(partition),
            Input::EpochTaken { partition, epoch, next_offset, last } => {
                self.epoch_taken(partition, epoch, next_offset, last);
            }
            Input::EpochFailed(partition) => self.epoch_failed(now_ms, partition),
            Input::LogAsked { question, span } => self.log_asked(now_ms, question, span),
            Input::Record { partition, record } => self.record(now_ms, partition, record),
            Input::LogDoubted => self.log_doubted(),
            Input::ReadingStopped(partition) => self.reading_stopped(now_ms, partition),
            Input::Staged { flush, staged } => self.staged(now_ms, flush, staged),
            Input::Uploaded { flush, ok } => self.uploaded(now_ms, flush, ok),
            Input::Published { flush, attempt, outcome } => self.published(now_ms, flush, attempt, outcome),
            Input::LookedUp { flush, attempt, committed } => self.looked_up(now_ms, flush, attempt, committed),
            Input::Tick => {}
            Input::Shutdown => self.stopping = true,
        }
        self.advance(now_ms);
        debug_assert_eq!(self.conservation.imbalance(), 0, "B4");
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Input::Tick`] is due, in the time of [`Machine::handle`].
    pub fn poll_timeout(&self) -> Option<u64> {
        self.partitions
            .values()
            .filter_map(|partition| match &partition.state {
                // Stopping, no new epoch is taken: a time that has passed would wake the driver again and again.
                State::Backoff { until_ms } => (!self.stopping).then_some(*until_ms),
                State::Active(active) => match &active.in_flight {
                    Some(InFlight { phase: Phase::Waiting { until_ms, .. }, .. }) => Some(*until_ms),
                    Some(_) => None,
                    None => active.has_work().then(|| active.since_ms + self.config.flush_age_ms),
                },
                State::TakingEpoch | State::AskingLog { .. } | State::Halted => None,
            })
            .min()
    }

    /// Whether a partition is ours, in whatever state.
    pub fn holds(&self, partition: i32) -> bool {
        self.partitions.contains_key(&partition)
    }

    /// Partitions that are not read since their log is another one.
    pub fn halted(&self) -> usize {
        self.partitions.values().filter(|entry| matches!(entry.state, State::Halted)).count()
    }

    /// What became of all records.
    pub fn conservation(&self) -> Conservation {
        self.conservation
    }

    /// Bytes buffered or in flight.
    pub fn buffered_bytes(&self) -> u64 {
        self.buffered_bytes
    }

    fn assigned(&mut self, partition: i32) {
        // An assignment that comes twice must not lose what is buffered.
        if self.stopping || self.partitions.contains_key(&partition) {
            return;
        }
        self.partitions.insert(partition, Partition { state: State::TakingEpoch, failures: 0 });
        self.effects.push_back(Effect::TakeEpoch(partition));
    }

    fn revoked(&mut self, partition: i32) {
        if let Some(Partition { state: State::Active(active), .. }) = self.partitions.remove(&partition) {
            self.give_back(&active);
        }
        self.effects.push_back(Effect::Drop(partition));
    }

    /// Everything that a partition holds goes back to the log, where it still is.
    fn give_back(&mut self, active: &Active) {
        let in_flight = active.in_flight.as_ref();
        let records = active.buffer.len() + in_flight.map_or(0, |flight| flight.flush.records.len());
        let bytes = active.buffer_bytes + in_flight.map_or(0, |flight| flight.flush.bytes());
        self.conservation.buffered -= records as u64;
        self.conservation.returned += records as u64;
        self.buffered_bytes -= bytes;
    }

    fn epoch_taken(&mut self, partition: i32, epoch: u64, next_offset: u64, last: Option<LastRecord>) {
        let question = QuestionId(self.next_question);
        let Some(entry) = self.partitions.get_mut(&partition) else { return };
        if matches!(entry.state, State::TakingEpoch) {
            self.next_question += 1;
            entry.state = State::AskingLog { question, epoch, next_offset, last };
            self.effects.push_back(Effect::AskLog { partition, question });
        }
    }

    fn epoch_failed(&mut self, now_ms: u64, partition: i32) {
        // The answer to a question of an assignment before this one must not throw away what this one holds.
        if matches!(self.partitions.get(&partition), Some(Partition { state: State::TakingEpoch, .. })) {
            self.begin_anew(now_ms, partition);
        }
    }

    fn log_asked(&mut self, now_ms: u64, question: QuestionId, span: Option<LogSpan>) {
        for (partition, entry) in &mut self.partitions {
            let partition = *partition;
            match &mut entry.state {
                State::AskingLog { question: asked, epoch, next_offset, last } if *asked == question => {
                    let Some(span) = span else { return self.begin_anew(now_ms, partition) };
                    let active = Active::new(*epoch, *next_offset, *last);
                    let next_offset = *next_offset;
                    entry.state = State::Active(Box::new(active));
                    return self.read_on(now_ms, partition, next_offset, span);
                }
                State::Active(active) if active.asked.is_some_and(|(asked, _)| asked == question) => {
                    let held = active.asked.take().map_or(active.expected, |(_, expected)| expected);
                    let Some(span) = span else { return self.begin_anew(now_ms, partition) };
                    return self.read_on(now_ms, partition, held, span);
                }
                // The answer to a question that nobody asks any more.
                _ => {}
            }
        }
    }

    /// Reads on as the log allows it: from where it begins when that is behind what is expected, and not at all when it
    /// ends before `held`, to which it was known to go when it was asked for its ends.
    fn read_on(&mut self, now_ms: u64, partition: i32, held: u64, span: LogSpan) {
        let Some(active) = self.active(partition) else { return };
        if span.next < held {
            return self.halt(partition);
        }
        let gap = (span.first > active.expected).then_some(Gap { first: active.expected, next: span.first });
        if let Some(gap) = gap {
            if !active.has_work() {
                active.since_ms = now_ms;
            }
            active.expected = gap.next;
            active.gaps.push(gap);
        }
        // Without it, what the log held before is gone, and there is nothing that could be compared.
        active.proof = active.last_known().filter(|last| last.offset >= span.first);
        let offset = active.proof.map_or(active.expected, |proof| proof.offset);
        self.effects.extend(gap.map(|gap| Effect::AlarmGap { partition, gap }));
        self.effects.push_back(Effect::Assign { partition, offset });
    }

    /// The log is another one: reading it would store strangers' records as ours, or ours a second time.
    fn halt(&mut self, partition: i32) {
        let Some(entry) = self.partitions.get_mut(&partition) else { return };
        if let State::Active(active) = std::mem::replace(&mut entry.state, State::Halted) {
            self.give_back(&active);
        }
        self.effects.push_back(Effect::Drop(partition));
        self.effects.push_back(Effect::AlarmForeign(partition));
    }

    /// Any partition may be the one. Those that are in order are read on from where they are.
    fn log_doubted(&mut self) {
        for (partition, entry) in &mut self.partitions {
            if let State::Active(active) = &mut entry.state {
                let question = QuestionId(self.next_question);
                self.next_question += 1;
                active.asked = Some((question, active.expected));
                self.effects.push_back(Effect::AskLog { partition: *partition, question });
            }
        }
    }

    /// A new epoch is taken later. The waits double until something was published, and are spread: two batchers that fight
    /// over one partition must not do so in step, or so quickly that neither comes to publish.
    fn back_off(&mut self, now_ms: u64, partition: i32) {
        let config = self.config;
        let Some(entry) = self.partitions.get_mut(&partition) else { return };
        let wait = backoff_ms(&config, entry.failures);
        let spread = backoff::spread(config.spread_seed, partition.unsigned_abs(), entry.failures) % (wait + 1);
        entry.failures = entry.failures.saturating_add(1);
        entry.state = State::Backoff { until_ms: now_ms + wait + spread };
    }

    fn record(&mut self, now_ms: u64, partition: i32, record: RecordMeta) {
        let Some(active) = self.active(partition) else { return };
        if let Some(proof) = active.proof
            && record.offset >= proof.offset
        {
            active.proof = None;
            if record.offset == proof.offset && record.fingerprint != proof.fingerprint {
                return self.halt(partition);
            }
        }
        if record.offset < active.expected {
            // The proof, or fetched before a seek: the index already covers it, or it will come again.
            return;
        }
        let hole = (record.offset > active.expected).then_some(Gap { first: active.expected, next: record.offset });
        if !active.has_work() {
            active.since_ms = now_ms;
        }
        active.expected = record.offset + 1;
        active.gaps.extend(hole);
        active.buffer.push(record);
        active.buffer_bytes += record.bytes;
        self.buffered_bytes += record.bytes;
        self.conservation.records_in += 1;
        self.conservation.buffered += 1;
        self.effects.extend(hole.map(|gap| Effect::AlarmGap { partition, gap }));
    }

    fn reading_stopped(&mut self, now_ms: u64, partition: i32) {
        if self.active(partition).is_some() {
            self.begin_anew(now_ms, partition);
        }
    }

    fn staged(&mut self, now_ms: u64, flush: FlushId, staged: Option<Staged>) {
        let config = self.config;
        let Some(flight) = self.in_flight(flush) else { return };
        if !matches!(flight.phase, Phase::Staging) {
            return;
        }
        let Some(mut staged) = staged else {
            flight.wait(&config, now_ms, Retry::Stage);
            return;
        };
        // Looked up once per record.
        staged.refused.sort_unstable();
        staged.aside.sort_unstable();
        flight.staged = staged.clone();
        if flight.stores_something() {
            flight.phase = Phase::Uploading;
            self.effects.push_back(Effect::Upload { flush, staged });
        } else {
            self.publish(now_ms, flush, false);
        }
    }

    fn uploaded(&mut self, now_ms: u64, flush: FlushId, ok: bool) {
        let config = self.config;
        let Some(flight) = self.in_flight(flush) else { return };
        if !matches!(flight.phase, Phase::Uploading) {
            return;
        }
        if ok {
            flight.failures = 0;
            self.publish(now_ms, flush, true);
        } else {
            // Whether the bytes arrived is not known, so the name is burnt (B10).
            flight.wait(&config, now_ms, Retry::Stage);
        }
    }

    fn publish(&mut self, now_ms: u64, flush: FlushId, with_object: bool) {
        let interval_ms = self.config.activity_interval_ms;
        let Some(active) = self.active_of(flush) else { return };
        let Some(flight) = active.in_flight.as_mut() else { return };
        flight.phase = Phase::Publishing { with_object };
        flight.attempt += 1;
        let attempt = flight.attempt;
        let due = |key: &&SessionKey| active.known.get(key).is_none_or(|noted| now_ms >= noted + interval_ms);
        let activity: Vec<SessionKey> = flight.flush.sessions.iter().filter(due).copied().collect();
        flight.activity.clone_from(&activity);
        self.effects.push_back(Effect::Publish { flush, attempt, with_object, activity });
    }

    fn published(&mut self, now_ms: u64, flush: FlushId, attempt: u32, outcome: Published) {
        let config = self.config;
        let Some(flight) = self.in_flight(flush).filter(|flight| flight.attempt == attempt) else { return };
        let Phase::Publishing { with_object } = flight.phase else { return };
        match outcome {
            Published::Committed => self.committed(now_ms, flush),
            Published::Lost => {
                if let Some(partition) = self.partition_of(flush) {
                    self.begin_anew(now_ms, partition);
                }
            }
            Published::Failed => flight.wait(&config, now_ms, Retry::Publish { with_object }),
            Published::Unknown => self.look_up(flush, with_object),
        }
    }

    fn look_up(&mut self, flush: FlushId, with_object: bool) {
        let Some(flight) = self.in_flight(flush) else { return };
        flight.phase = Phase::LookingUp { with_object };
        flight.attempt += 1;
        let attempt = flight.attempt;
        self.effects.push_back(Effect::LookUp { flush, attempt });
    }

    fn looked_up(&mut self, now_ms: u64, flush: FlushId, attempt: u32, committed: Option<bool>) {
        let config = self.config;
        let Some(flight) = self.in_flight(flush).filter(|flight| flight.attempt == attempt) else { return };
        let Phase::LookingUp { with_object } = flight.phase else { return };
        match committed {
            Some(true) => self.committed(now_ms, flush),
            Some(false) => self.publish(now_ms, flush, with_object),
            None => flight.wait(&config, now_ms, Retry::LookUp { with_object }),
        }
    }

    fn committed(&mut self, now_ms: u64, flush: FlushId) {
        let (known_max, batches_max) = (self.config.sessions_known_max, self.config.batches_known_max);
        let Some(partition) = self.partition_of(flush) else { return };
        let Some(Partition { state: State::Active(active), failures }) = self.partitions.get_mut(&partition) else {
            return;
        };
        let Some(flight) = active.in_flight.take() else { return };
        *failures = 0;
        debug_assert!(flight.flush.next >= active.published, "B1");
        active.published = flight.flush.next;
        active.last = flight.flush.last;
        // Those that were noted, which are not those that would be due by now.
        for key in &flight.activity {
            active.known.insert(*key, now_ms, known_max);
        }
        let count = &mut self.conservation;
        for record in &flight.flush.records {
            count.buffered -= 1;
            let counted = match flight.staged.fate(&record.kind) {
                Fate::Chunked => {
                    active.batches.note(&record.kind, batches_max);
                    &mut count.chunked
                }
                Fate::Copy => &mut count.dropped_copies,
                Fate::Quarantined(_) => &mut count.quarantined,
                Fate::Indexed => &mut count.indexed,
                Fate::Deleted => &mut count.dropped_deleted,
            };
            *counted += 1;
        }
        self.buffered_bytes -= flight.flush.bytes();
        self.effects.push_back(Effect::Release { partition: flight.flush.partition, next: flight.flush.next });
    }

    /// Drops what a partition holds; a new epoch is taken after a wait, and the log read from the index's offset.
    fn begin_anew(&mut self, now_ms: u64, partition: i32) {
        let Some(entry) = self.partitions.get_mut(&partition) else { return };
        if let State::Active(active) = std::mem::replace(&mut entry.state, State::TakingEpoch) {
            self.give_back(&active);
        }
        self.effects.push_back(Effect::Drop(partition));
        self.back_off(now_ms, partition);
    }

    /// Everything that follows from time and from what was just taken in.
    fn advance(&mut self, now_ms: u64) {
        self.balance_memory();
        let partitions: Vec<i32> = self.partitions.keys().copied().collect();
        for partition in partitions {
            self.advance_partition(now_ms, partition);
        }
        if self.stopping && !self.stopped && self.partitions.values().all(Partition::is_idle) {
            self.stopped = true;
            self.effects.push_back(Effect::Stopped);
        }
    }

    fn advance_partition(&mut self, now_ms: u64, partition: i32) {
        let (config, stopping, paused) = (self.config, self.stopping, self.paused);
        let Some(entry) = self.partitions.get_mut(&partition) else { return };
        match &mut entry.state {
            State::Backoff { until_ms } if *until_ms <= now_ms && !stopping => {
                entry.state = State::TakingEpoch;
                self.effects.push_back(Effect::TakeEpoch(partition));
            }
            State::Active(active) => match active.in_flight.as_mut() {
                Some(InFlight { phase: Phase::Waiting { until_ms, next }, flush, .. }) if *until_ms <= now_ms => {
                    let (id, next) = (flush.id, *next);
                    self.retry(now_ms, id, next);
                }
                Some(_) => {}
                None => {
                    let due = now_ms >= active.since_ms + config.flush_age_ms
                        || active.buffer_bytes >= config.flush_bytes
                        // Paused: nothing more comes, so what is here has to go.
                        || paused
                        || stopping;
                    if due && active.has_work() {
                        self.begin_flush(partition);
                    }
                }
            },
            _ => {}
        }
    }

    fn retry(&mut self, now_ms: u64, flush: FlushId, next: Retry) {
        match next {
            Retry::Stage => {
                let fresh = FlushId(self.next_flush);
                self.next_flush += 1;
                let Some(flight) = self.in_flight(flush) else { return };
                flight.flush.id = fresh;
                flight.phase = Phase::Staging;
                let again = flight.flush.clone();
                self.effects.push_back(Effect::Stage(again));
            }
            Retry::Publish { with_object } => self.publish(now_ms, flush, with_object),
            Retry::LookUp { with_object } => self.look_up(flush, with_object),
        }
    }

    fn begin_flush(&mut self, partition: i32) {
        let id = FlushId(self.next_flush);
        let flush_bytes = self.config.flush_bytes;
        let Some(active) = self.active(partition) else { return };
        let since_ms = active.since_ms;
        let Cut { mut records, gaps, next } = active.cut(flush_bytes);
        active.batches.mark_copies(&mut records);
        let last = records.last().map(RecordMeta::as_last);
        let mut sessions: Vec<SessionKey> = records.iter().filter_map(|record| record.kind.session()).collect();
        sessions.sort_unstable();
        sessions.dedup();
        let first_seen = sessions.iter().filter(|key| active.known.get(key).is_none()).copied().collect();
        let flush = Flush {
            id,
            partition,
            epoch: active.epoch,
            first: active.published,
            next,
            last: last.or(active.last),
            since_ms,
            records,
            gaps,
            sessions,
            first_seen,
        };
        active.in_flight = Some(InFlight {
            flush: flush.clone(),
            staged: Staged::default(),
            activity: Vec::new(),
            phase: Phase::Staging,
            attempt: 0,
            failures: 0,
        });
        self.next_flush += 1;
        self.effects.push_back(Effect::Stage(flush));
    }

    fn balance_memory(&mut self) {
        if !self.paused && self.buffered_bytes >= self.config.buffer_bytes_max {
            self.paused = true;
            self.effects.push_back(Effect::Pause);
        } else if self.paused && self.buffered_bytes <= self.config.buffer_bytes_max / 2 {
            self.paused = false;
            self.effects.push_back(Effect::Resume);
        }
    }

    fn active(&mut self, partition: i32) -> Option<&mut Active> {
        match self.partitions.get_mut(&partition) {
            Some(Partition { state: State::Active(active), .. }) => Some(active),
            _ => None,
        }
    }

    fn partition_of(&self, flush: FlushId) -> Option<i32> {
        self.partitions.iter().find_map(|(partition, entry)| match &entry.state {
            State::Active(active) if active.in_flight.as_ref().is_some_and(|flight| flight.flush.id == flush) => {
                Some(*partition)
            }
            _ => None,
        })
    }

    fn active_of(&mut self, flush: FlushId) -> Option<&mut Active> {
        let partition = self.partition_of(flush)?;
        self.active(partition)
    }

    fn in_flight(&mut self, flush: FlushId) -> Option<&mut InFlight> {
        self.active_of(flush)?.in_flight.as_mut()
    }
}

impl Active {
    fn new(epoch: u64, next_offset: u64, last: Option<LastRecord>) -> Self {
        Self {
            epoch,
            published: next_offset,
            last,
            asked: None,
            proof: None,
            expected: next_offset,
            buffer: Vec::new(),
            buffer_bytes: 0,
            since_ms: 0,
            gaps: Vec::new(),
            in_flight: None,
            known: KnownSessions::default(),
            batches: KnownBatches::default(),
        }
    }

    /// The last record that was read or published.
    fn last_known(&self) -> Option<LastRecord> {
        let in_flight = || self.in_flight.as_ref().and_then(|flight| flight.flush.last);
        self.buffer.last().map(RecordMeta::as_last).or_else(in_flight).or(self.last)
    }

    fn has_work(&self) -> bool {
        !self.buffer.is_empty() || !self.gaps.is_empty()
    }

    /// Takes the front of the buffer, of about `flush_bytes`: what gathered while flushes failed must not become one
    /// object that no reader has the memory for. The rest stays, with the time since when it waits.
    fn cut(&mut self, flush_bytes: u64) -> Cut {
        let mut bytes = 0;
        let len = self.buffer.iter().take_while(|record| {
            let taken = bytes < flush_bytes;
            bytes += record.bytes;
            taken
        });
        let len = len.count();
        let rest = self.buffer.split_off(len);
        let records = std::mem::replace(&mut self.buffer, rest);
        self.buffer_bytes -= records.iter().map(|record| record.bytes).sum::<u64>();
        // A gap before the first record that stays goes with that record.
        let next = match (self.buffer.is_empty(), records.last()) {
            (false, Some(last)) => last.offset + 1,
            _ => self.expected,
        };
        let (gaps, later) = std::mem::take(&mut self.gaps).into_iter().partition(|gap| gap.first < next);
        self.gaps = later;
        Cut { records, gaps, next }
    }
}

/// What a flush takes of a partition.
struct Cut {
    records: Vec<RecordMeta>,
    gaps: Vec<Gap>,
    next: u64,
}

impl InFlight {
    fn stores_something(&self) -> bool {
        self.flush
            .records
            .iter()
            .map(|record| self.staged.fate(&record.kind))
            .any(|fate| matches!(fate, Fate::Chunked | Fate::Copy | Fate::Quarantined(_)))
    }

    fn wait(&mut self, config: &Config, now_ms: u64, next: Retry) {
        self.phase = Phase::Waiting { until_ms: now_ms + backoff_ms(config, self.failures), next };
        self.failures = self.failures.saturating_add(1);
    }
}

impl Partition {
    fn is_idle(&self) -> bool {
        match &self.state {
            State::Active(active) => active.in_flight.is_none() && !active.has_work(),
            State::TakingEpoch | State::AskingLog { .. } | State::Backoff { .. } | State::Halted => true,
        }
    }
}

fn backoff_ms(config: &Config, failures: u32) -> u64 {
    backoff::wait_ms(config.retry_min_ms, config.retry_max_ms, failures)
}

#[cfg(test)]
mod tests;
