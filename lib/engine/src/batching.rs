//! When a partition's records become an object, and what happens when that fails.
//!
//! One machine per batcher process. A driver tells it what happened ([`Input`]) and carries out what it wants
//! ([`Effect`]); it never waits. It sees ids, sizes and offsets; the driver holds the bytes.
//!
//! A partition's life: `Assigned` → take an epoch → read from the index's next offset → collect → flush, again and
//! again → `Revoked`. A flush is **stage, upload, publish**, one at a time per partition: staging writes the object's
//! row under a name that is never used twice (B10) and tells which sessions are deleted; publishing moves the progress
//! by compare-and-swap on (next offset, epoch) and makes the object live, in one transaction (B1, B2, B5).
//!
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
    /// Sessions remembered per partition; one that was forgotten is upserted again, which changes nothing.
    pub sessions_known_max: usize,
}

/// What a record is, as far as deciding goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// A session begins.
    Acceptance(SessionKey),
    /// A batch of events.
    Batch(SessionKey, StreamSeq),
    /// A sum of declines.
    Declines,
    /// It cannot be read: it goes into quarantine as it is.
    Unreadable(QuarantineReason),
}

impl RecordKind {
    fn session(&self) -> Option<SessionKey> {
        match self {
            Self::Acceptance(key) | Self::Batch(key, _) => Some(*key),
            Self::Declines | Self::Unreadable(_) => None,
        }
    }

    fn is_stored(&self) -> bool {
        matches!(self, Self::Batch(..) | Self::Unreadable(_))
    }
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordMeta {
    /// Its offset in the partition.
    pub offset: u64,
    /// Bytes that it holds in memory.
    pub bytes: u64,
    /// What it is.
    pub kind: RecordKind,
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
    },
    /// The index did not answer.
    EpochFailed(i32),
    /// A record came.
    Record {
        /// The partition.
        partition: i32,
        /// The record.
        record: RecordMeta,
    },
    /// The log begins only here: what was before is gone.
    LogBegins {
        /// The partition.
        partition: i32,
        /// Its first offset.
        offset: u64,
    },
    /// The log ends before the offset that we are at: it is not the log that we knew.
    LogForeign(i32),
    /// Kafka's client stopped reading the partition, or could not begin to, and nothing says that its log is another
    /// one: it is read anew from the index's offset.
    ReadingStopped(i32),
    /// Staging ended; on success with the sessions that are deleted.
    Staged {
        /// The flush.
        flush: FlushId,
        /// Deleted sessions among the flush's, or `None` on failure.
        refused: Option<Vec<SessionKey>>,
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
        /// How.
        outcome: Published,
    },
    /// The look-up of a lost answer ended: whether it had committed, or `None` when it failed.
    LookedUp {
        /// The flush.
        flush: FlushId,
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
    /// Read the partition from this offset on.
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
    /// Assemble without the refused sessions and upload.
    Upload {
        /// The flush.
        flush: FlushId,
        /// Sessions that are deleted, in id order.
        refused: Vec<SessionKey>,
    },
    /// Publish.
    Publish {
        /// The flush.
        flush: FlushId,
        /// Whether an object was uploaded for it.
        with_object: bool,
        /// Sessions whose activity is to be noted.
        activity: Vec<SessionKey>,
    },
    /// Find out whether a publishing whose answer was lost had committed.
    LookUp(FlushId),
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
    /// Given back to the log: lost swaps, revoked partitions.
    pub returned: u64,
    /// In memory.
    pub buffered: u64,
}

impl Conservation {
    /// Zero, or something was lost or made up.
    pub fn imbalance(&self) -> i64 {
        let out = self.chunked + self.quarantined + self.indexed + self.dropped_deleted + self.returned + self.buffered;
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
    /// Deleted sessions, in id order.
    refused: Vec<SessionKey>,
    /// Sessions whose activity the publishing notes.
    activity: Vec<SessionKey>,
    phase: Phase,
    failures: u32,
}

#[derive(Debug)]
enum State {
    /// An epoch was asked for.
    TakingEpoch,
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
    /// The next offset to come from the log.
    expected: u64,
    buffer: Vec<RecordMeta>,
    buffer_bytes: u64,
    /// When the first record in the buffer came.
    since_ms: u64,
    gaps: Vec<Gap>,
    in_flight: Option<InFlight>,
    known: KnownSessions,
}

/// Sessions that have a row, and when their activity was noted: bounded, the longest known go first.
#[derive(Debug, Default)]
struct KnownSessions {
    noted_ms: BTreeMap<SessionKey, u64>,
    order: VecDeque<SessionKey>,
}

impl KnownSessions {
    fn insert(&mut self, key: SessionKey, now_ms: u64, max: usize) {
        if self.noted_ms.insert(key, now_ms).is_none() {
            self.order.push_back(key);
            while self.order.len() > max {
                if let Some(oldest) = self.order.pop_front() {
                    self.noted_ms.remove(&oldest);
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
            stopping: false,
            stopped: false,
        }
    }

    /// Takes in what happened at `now_ms`, by a clock that never goes back.
    pub fn handle(&mut self, now_ms: u64, input: Input) {
        match input {
            Input::Assigned(partition) => self.assigned(partition),
            Input::Revoked(partition) => self.revoked(partition),
            Input::EpochTaken { partition, epoch, next_offset } => self.epoch_taken(partition, epoch, next_offset),
            Input::EpochFailed(partition) => self.epoch_failed(now_ms, partition),
            Input::Record { partition, record } => self.record(now_ms, partition, record),
            Input::LogBegins { partition, offset } => self.log_begins(now_ms, partition, offset),
            Input::LogForeign(partition) => self.log_foreign(partition),
            Input::ReadingStopped(partition) => self.reading_stopped(now_ms, partition),
            Input::Staged { flush, refused } => self.staged(now_ms, flush, refused),
            Input::Uploaded { flush, ok } => self.uploaded(now_ms, flush, ok),
            Input::Published { flush, outcome } => self.published(now_ms, flush, outcome),
            Input::LookedUp { flush, committed } => self.looked_up(now_ms, flush, committed),
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
                State::TakingEpoch | State::Halted => None,
            })
            .min()
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

    fn epoch_taken(&mut self, partition: i32, epoch: u64, next_offset: u64) {
        let Some(entry) = self.partitions.get_mut(&partition) else { return };
        if !matches!(entry.state, State::TakingEpoch) {
            return;
        }
        entry.failures = 0;
        entry.state = State::Active(Box::new(Active {
            epoch,
            published: next_offset,
            expected: next_offset,
            buffer: Vec::new(),
            buffer_bytes: 0,
            since_ms: 0,
            gaps: Vec::new(),
            in_flight: None,
            known: KnownSessions::default(),
        }));
        self.effects.push_back(Effect::Assign { partition, offset: next_offset });
    }

    fn epoch_failed(&mut self, now_ms: u64, partition: i32) {
        // The answer to a question of an assignment before this one must not throw away what this one holds.
        if matches!(self.partitions.get(&partition), Some(Partition { state: State::TakingEpoch, .. })) {
            self.back_off(now_ms, partition);
        }
    }

    /// A new epoch is taken later. Doubling waits, spread by the partition's number: two batchers that fight over one
    /// partition must not do so in step.
    fn back_off(&mut self, now_ms: u64, partition: i32) {
        let config = self.config;
        let Some(entry) = self.partitions.get_mut(&partition) else { return };
        let wait = backoff_ms(&config, entry.failures);
        entry.failures = entry.failures.saturating_add(1);
        entry.state = State::Backoff { until_ms: now_ms + wait + wait * (partition.unsigned_abs() as u64 % 8) / 8 };
    }

    fn record(&mut self, now_ms: u64, partition: i32, record: RecordMeta) {
        let Some(active) = self.active(partition) else { return };
        if record.offset < active.expected {
            // Fetched before a seek: the index already covers it, or it will come again.
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

    fn log_begins(&mut self, now_ms: u64, partition: i32, offset: u64) {
        let Some(active) = self.active(partition) else { return };
        if offset <= active.expected {
            return;
        }
        let gap = Gap { first: active.expected, next: offset };
        if !active.has_work() {
            active.since_ms = now_ms;
        }
        active.expected = offset;
        active.gaps.push(gap);
        self.effects.push_back(Effect::AlarmGap { partition, gap });
        self.effects.push_back(Effect::Assign { partition, offset });
    }

    fn log_foreign(&mut self, partition: i32) {
        let Some(entry) = self.partitions.get_mut(&partition) else { return };
        if let State::Active(active) = std::mem::replace(&mut entry.state, State::Halted) {
            self.give_back(&active);
        }
        self.effects.push_back(Effect::Drop(partition));
        self.effects.push_back(Effect::AlarmForeign(partition));
    }

    fn reading_stopped(&mut self, now_ms: u64, partition: i32) {
        if self.active(partition).is_some() {
            self.begin_anew(now_ms, partition);
        }
    }

    fn staged(&mut self, now_ms: u64, flush: FlushId, refused: Option<Vec<SessionKey>>) {
        let config = self.config;
        let Some(flight) = self.in_flight(flush) else { return };
        if !matches!(flight.phase, Phase::Staging) {
            return;
        }
        let Some(mut refused) = refused else {
            flight.wait(&config, now_ms, Retry::Stage);
            return;
        };
        // Looked up once per record.
        refused.sort_unstable();
        flight.failures = 0;
        flight.refused = refused.clone();
        if flight.stores_something() {
            flight.phase = Phase::Uploading;
            self.effects.push_back(Effect::Upload { flush, refused });
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
        let due = |key: &&SessionKey| active.known.noted_ms.get(key).is_none_or(|noted| now_ms >= noted + interval_ms);
        let activity: Vec<SessionKey> = flight.flush.sessions.iter().filter(due).copied().collect();
        flight.activity.clone_from(&activity);
        self.effects.push_back(Effect::Publish { flush, with_object, activity });
    }

    fn published(&mut self, now_ms: u64, flush: FlushId, outcome: Published) {
        let config = self.config;
        let Some(flight) = self.in_flight(flush) else { return };
        let Phase::Publishing { with_object } = flight.phase else { return };
        match outcome {
            Published::Committed => self.committed(now_ms, flush),
            Published::Lost => {
                if let Some(partition) = self.partition_of(flush) {
                    self.begin_anew(now_ms, partition);
                }
            }
            Published::Failed => flight.wait(&config, now_ms, Retry::Publish { with_object }),
            Published::Unknown => {
                flight.phase = Phase::LookingUp { with_object };
                self.effects.push_back(Effect::LookUp(flush));
            }
        }
    }

    fn looked_up(&mut self, now_ms: u64, flush: FlushId, committed: Option<bool>) {
        let config = self.config;
        let Some(flight) = self.in_flight(flush) else { return };
        let Phase::LookingUp { with_object } = flight.phase else { return };
        match committed {
            Some(true) => self.committed(now_ms, flush),
            Some(false) => self.publish(now_ms, flush, with_object),
            None => flight.wait(&config, now_ms, Retry::LookUp { with_object }),
        }
    }

    fn committed(&mut self, now_ms: u64, flush: FlushId) {
        let known_max = self.config.sessions_known_max;
        let Some(active) = self.active_of(flush) else { return };
        let Some(flight) = active.in_flight.take() else { return };
        debug_assert!(flight.flush.next >= active.published, "B1");
        active.published = flight.flush.next;
        // Those that were noted, which are not those that would be due by now.
        for key in &flight.activity {
            active.known.insert(*key, now_ms, known_max);
        }
        let count = &mut self.conservation;
        for record in &flight.flush.records {
            count.buffered -= 1;
            match record.kind {
                RecordKind::Unreadable(_) => count.quarantined += 1,
                RecordKind::Declines => count.indexed += 1,
                RecordKind::Acceptance(key) | RecordKind::Batch(key, _)
                    if flight.refused.binary_search(&key).is_ok() =>
                {
                    count.dropped_deleted += 1;
                }
                RecordKind::Acceptance(_) => count.indexed += 1,
                RecordKind::Batch(..) => count.chunked += 1,
            }
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
        let partitions: Vec<i32> = self.partitions.keys().copied().collect();
        for partition in partitions {
            self.advance_partition(now_ms, partition);
        }
        self.balance_memory();
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
            Retry::LookUp { with_object } => {
                let Some(flight) = self.in_flight(flush) else { return };
                flight.phase = Phase::LookingUp { with_object };
                self.effects.push_back(Effect::LookUp(flush));
            }
        }
    }

    fn begin_flush(&mut self, partition: i32) {
        let id = FlushId(self.next_flush);
        let flush_bytes = self.config.flush_bytes;
        let Some(active) = self.active(partition) else { return };
        let Cut { records, gaps, next } = active.cut(flush_bytes);
        let mut sessions: Vec<SessionKey> = records.iter().filter_map(|record| record.kind.session()).collect();
        sessions.sort_unstable();
        sessions.dedup();
        let first_seen = sessions.iter().filter(|key| !active.known.noted_ms.contains_key(key)).copied().collect();
        let flush = Flush {
            id,
            partition,
            epoch: active.epoch,
            first: active.published,
            next,
            records,
            gaps,
            sessions,
            first_seen,
        };
        active.in_flight = Some(InFlight {
            flush: flush.clone(),
            refused: Vec::new(),
            activity: Vec::new(),
            phase: Phase::Staging,
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
        self.flush.records.iter().any(|record| match record.kind {
            RecordKind::Batch(key, _) => self.refused.binary_search(&key).is_err(),
            RecordKind::Unreadable(_) => true,
            RecordKind::Acceptance(_) | RecordKind::Declines => false,
        })
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
            State::TakingEpoch | State::Backoff { .. } | State::Halted => true,
        }
    }
}

fn backoff_ms(config: &Config, failures: u32) -> u64 {
    config.retry_min_ms.saturating_mul(1 << failures.min(16)).min(config.retry_max_ms)
}

#[cfg(test)]
mod tests;
