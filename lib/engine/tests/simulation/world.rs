//! One run: batchers, compactors, retention workers, exporters, clients, readers and an operator around the models, driven by a
//! queue of events in virtual time. Every choice comes from the seed.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use engine::batching::{
    Config, Effect, Fate, Flush, FlushId, Input, Machine, Published, QuestionId, RecordKind, RecordMeta, Staged,
};
use engine::compaction;
use fastrand::Rng;
use schemas::shared_object::QuarantineReason;
use schemas::{SessionId, SessionKey, StreamSeq, WorkspaceId};
use uuid::Uuid;

mod check;
mod compactor;
mod deletion;
mod export;
mod process;
mod reader;
mod retention;

use crate::faults::{Faults, Happened, Kind};
use crate::log::{Fetched, Log, Record};
use crate::mutants::Mutant;
use crate::store::{
    Bucket, Content, Entry, ExportNumber, Index, KeyRow, KeyStore, ObjectKind, ObjectNumber, ObjectState, Publishing,
    Stored, Violation,
};

/// Times in milliseconds.
const SAFETY_MS: u64 = 5_000;
/// After the healing all must be in order within this.
const LIVENESS_MS: u64 = 60_000;
const SESSION_TIMEOUT_MS: u64 = 400;
const LOCK_TIMEOUT_MS: u64 = 300;
const STAGED_GRACE_MS: u64 = 1_500;
const CONDEMNED_GRACE_MS: u64 = 500;
/// A reading takes less: what it began with is there until its end (C3).
const READING_MS_MAX: u64 = 400;
/// No attempt to put an object lands later than this after its staging: answers, freezes and uploads take less.
const PUT_HORIZON_MS: u64 = 7_500;
/// Of an upload that was given up.
const PUT_LATE_MS_MAX: u64 = 2_000;
/// Processes keep keys in memory for so long.
const KEYS_CACHED_MS: u64 = 2_000;
/// A session that is past its window is deleted within this in a healthy world (R11).
const DUE_LATE_MS: u64 = 2_000;
/// Silence that ends a session.
const SILENCE_MS: u64 = 700;
/// Beyond the age at which a shared object is merged, it is drained within this in a healthy world (C6).
const DRAINING_MS: u64 = 12_000;

/// Each run draws its own bounds; these stay.
const CONFIG: Config = Config {
    flush_age_ms: 120,
    flush_bytes: 1_000,
    buffer_bytes_max: 3_000,
    activity_interval_ms: 1_000,
    retry_min_ms: 10,
    retry_max_ms: 300,
    // Another one in each process.
    spread_seed: 0,
    sessions_known_max: 12,
    batches_known_max: 25,
};
const RECORD_BYTES_MAX: u64 = 400;

/// Each run draws its own bounds; these stay.
const COMPACTION: compaction::Config = compaction::Config {
    runs: compaction::RunConfig { run_bytes_min: 2_000, run_age_ms: 400, run_bytes_max: 6_000, run_objects_max: 6 },
    interval_ms: 100,
    lease_ms: 600,
    runs_at_once: 2,
    finals_at_once: 3,
    merges_at_once: 4,
    bytes_max: 10_000,
    footers_bytes_max: 20_000,
    finals_per_look: 5,
    retry_min_ms: 10,
    retry_max_ms: 300,
    // Another one in each process.
    spread_seed: 0,
};

/// A process: the number of a batcher, compactor, worker or exporter, and how often it was started.
type Process = (usize, u64);

/// Readers are one process that never ends.
const READER: Process = (usize::MAX, 0);

#[derive(Debug)]
struct Work {
    flush: Flush,
    /// The flush's records as the log has them: the checker's, which no mutant touches.
    truth: Vec<Record>,
    held: Vec<Record>,
    object: Option<ObjectNumber>,
    staged: Staged,
    content: Option<Rc<Content>>,
}

#[derive(Debug, Clone, Copy)]
struct Reading {
    position: u64,
    generation: usize,
}

#[derive(Debug)]
struct Node {
    incarnation: u64,
    is_alive: bool,
    is_stopping: bool,
    paused_until: Option<u64>,
    machine: Machine,
    /// How far its clock is ahead of the world's.
    skew_ms: u64,
    /// Partitions that it believes to own, with the topic's life that it was given.
    assigned: BTreeMap<i32, usize>,
    reading: BTreeMap<i32, Reading>,
    is_reading_paused: bool,
    held: BTreeMap<(i32, u64), Record>,
    /// The same, as the log had it: the checker's, which no mutant touches.
    truth: BTreeMap<(i32, u64), Record>,
    works: BTreeMap<FlushId, Work>,
    /// Records that the machine has taken in and not let go of.
    taken: BTreeMap<i32, u64>,
    /// The number of the tick that counts.
    tick: u64,
    /// Names by partition, for the mutant that keeps them.
    names: BTreeMap<i32, ObjectNumber>,
    /// Batches read, for the mutant that takes them for stored.
    read: BTreeSet<(SessionKey, StreamSeq)>,
}

impl Node {
    fn new(config: Config, number: usize, incarnation: u64) -> Self {
        let spread_seed = number as u64 * 1_000 + incarnation;
        Self {
            incarnation,
            is_alive: true,
            is_stopping: false,
            paused_until: None,
            machine: Machine::new(Config { spread_seed, ..config }),
            skew_ms: 0,
            assigned: BTreeMap::new(),
            reading: BTreeMap::new(),
            is_reading_paused: false,
            held: BTreeMap::new(),
            truth: BTreeMap::new(),
            works: BTreeMap::new(),
            taken: BTreeMap::new(),
            tick: 0,
            names: BTreeMap::new(),
            read: BTreeSet::new(),
        }
    }
}

/// What is under way between a process and its surroundings.
#[derive(Debug, Clone)]
enum Op {
    TakeEpoch(i32),
    AskLog { partition: i32, question: QuestionId },
    Keys { flush: Flush, object: Option<ObjectNumber> },
    Stage { flush: Flush, object: Option<ObjectNumber>, aside: Vec<SessionKey>, shredded: Vec<SessionKey> },
    Upload { flush: FlushId, object: ObjectNumber, attempt: u64, content: Rc<Content> },
    Publish { publishing: Box<Publishing>, truth: Vec<Record>, staged: Staged, waited_ms: u64 },
    LookUp { flush: FlushId, attempt: u32, partition: i32, next: u64, waited_ms: u64 },
}

#[derive(Debug, Clone)]
enum Event {
    Tick {
        process: Process,
        tick: u64,
    },
    Fetch(Process),
    /// An operation reaches its server. `given_up`: the process was told that it failed.
    Apply {
        process: Process,
        op: Op,
        given_up: bool,
    },
    Answer {
        process: Process,
        input: Input,
    },
    /// A publishing that was sent for commit ends one way or the other.
    EndPublish {
        publishing: Box<Publishing>,
        truth: Vec<Record>,
        staged: Staged,
        commits: bool,
    },
    /// A staging whose transaction stayed open ends one way or the other.
    EndStaging {
        process: Process,
        staging: Box<deletion::Staging>,
        commits: bool,
    },
    /// The second step of the mutant that inserts by NOT EXISTS.
    InsertUnlocked {
        partition: i32,
        sessions: Vec<SessionKey>,
    },
    /// The second step of the mutant that publishes in two transactions.
    MakeLive {
        process: Process,
        publishing: Box<Publishing>,
    },
    /// The second step of the mutant that collects by age.
    RemoveObjects(Vec<ObjectNumber>),
    /// A compactor's work reaches its server. `given_up`: the process was told that it failed.
    Compact {
        process: Process,
        task: compaction::TaskId,
        op: Box<compactor::Op>,
        given_up: bool,
        waited_ms: u64,
    },
    CompactorTick {
        process: Process,
        tick: u64,
    },
    CompactorGraceOver(Process),
    CompactorAnswer {
        process: Process,
        task: compaction::TaskId,
        answer: compaction::Answer,
    },
    /// A swap that was sent for commit ends one way or the other.
    EndSwap {
        swap: Box<compactor::Swap>,
        commits: bool,
    },
    /// The second step of the mutants that swap in two transactions.
    HalfSwap(Box<compactor::Swap>),
    /// A retention worker begins a pass.
    Pass(Process),
    /// A step of a worker's pass reaches its server. `given_up`: the worker was told that it failed. `life`: of the database.
    Retain {
        process: Process,
        op: retention::Op,
        given_up: bool,
        life: u64,
    },
    /// What follows; `None` when it failed, as far as the worker knows.
    RetentionAnswer {
        process: Process,
        then: Option<Vec<retention::Op>>,
    },
    Ask(deletion::Ask),
    /// An exporter looks for something to do.
    ExportOn(Process),
    /// Its work reaches its server. `given_up`: it was told that it failed. `life`: of the database.
    Export {
        process: Process,
        op: Box<export::Op>,
        given_up: bool,
        life: u64,
    },
    ExportAnswer {
        process: Process,
        answer: Box<export::Answer>,
    },
    /// A part's publishing that was sent for commit ends one way or the other.
    EndPart {
        part: Box<export::Part>,
        commits: bool,
        life: u64,
    },
    AskExport,
    EndExport(ExportNumber),
    /// Somebody fetches an archive,
    FetchExport(ExportNumber),
    /// and the next of its parts.
    FetchOn(Box<export::Fetching>),
    /// A backup is taken, or restored.
    Backup,
    /// A reader opens a session.
    Read,
    /// And fetches the next of its objects.
    ReadOn(Box<reader::Reading>),
    Produce,
    Rebalance,
    Revoke {
        process: Process,
        partition: i32,
    },
    Assign {
        process: Process,
        partition: i32,
    },
    /// A client that had found its topic away finds one under that name.
    TopicBack {
        process: Process,
        partition: i32,
    },
    SessionTimeout(Process),
    Fenced(Process),
    Crash,
    Restart(usize),
    Pause,
    Shutdown,
    ClockJump,
    DatabaseClockJump,
    Grow,
    Trim,
    Recreate,
    Check,
    Delete,
    CloseKey,
    OpenKey(SessionKey),
    Heal,
    Converge,
}

/// The clients' ledger.
#[derive(Debug, Default)]
struct Ledger {
    /// Acknowledged records of each batch, with their contents.
    batches: BTreeMap<(SessionKey, StreamSeq), Vec<(u64, u64)>>,
    /// Batches that are the last of their stream.
    ends: BTreeSet<(SessionKey, StreamSeq)>,
    /// Next seq by stream.
    next: BTreeMap<(SessionKey, u32), u32>,
    sessions: Vec<SessionKey>,
    /// When each began.
    began: BTreeMap<SessionKey, u64>,
    /// Records that Kafka lost before they were published.
    at_risk: BTreeSet<u64>,
}

/// A run.
pub(crate) struct World {
    rng: Rng,
    mutant: Option<Mutant>,
    faults: Faults,
    config: Config,
    now_ms: u64,
    /// Boxed, since what is in a tree is moved a lot.
    queue: BTreeMap<(u64, u64), Box<Event>>,
    next_event: u64,
    is_healed: bool,
    log: Log,
    index: Index,
    bucket: Bucket,
    keys: KeyStore,
    nodes: Vec<Node>,
    members: BTreeSet<Process>,
    target: BTreeMap<i32, Process>,
    owner: BTreeMap<i32, Process>,
    revoking: BTreeSet<i32>,
    ledger: Ledger,
    compactors: Vec<compactor::Node>,
    compaction: compaction::Config,
    workers: Vec<retention::Node>,
    exporters: Vec<export::Node>,
    /// Whoever makes an archive has it for so long, and after a failure waits for as long.
    export_lease_ms: u64,
    next_export: ExportNumber,
    exported: export::Truth,
    /// Until when processes have keys in memory.
    caches: BTreeMap<(SessionKey, Process), u64>,
    next_deletion: u64,
    backup: Option<deletion::Backup>,
    /// How often the database was restored.
    life: u64,
    truth: deletion::Truth,
    /// What readers have to find.
    visible: reader::Visible,
    /// Sessions whose bytes in an object are damaged.
    corrupt: BTreeSet<(ObjectNumber, SessionKey)>,
    healed_ms: u64,
    database_skew_ms: u64,
    /// The greatest that it was.
    database_skew_max_ms: u64,
    next_object: ObjectNumber,
    next_attempt: u64,
    /// Offsets noted at Kafka, which nothing depends on.
    noted: BTreeMap<i32, u64>,
    processed: BTreeSet<u64>,
    /// The life of which records were published, by partition.
    published_life: BTreeMap<i32, usize>,
    trimmed: BTreeSet<i32>,
    alarmed: BTreeSet<i32>,
    has_replayed: bool,
    has_discarded: bool,
    is_done: bool,
    pub(crate) happened: Happened,
    trace: u64,
}

impl Kind {
    fn event(self) -> Event {
        match self {
            Self::Crash => Event::Crash,
            Self::Pause => Event::Pause,
            Self::Shutdown => Event::Shutdown,
            Self::ClockJump => Event::ClockJump,
            Self::DatabaseClockJump => Event::DatabaseClockJump,
            Self::Grow => Event::Grow,
            Self::Trim => Event::Trim,
            Self::Recreate => Event::Recreate,
            Self::Delete => Event::Delete,
            Self::Backup => Event::Backup,
            Self::CloseKey => Event::CloseKey,
            Self::Export => Event::AskExport,
        }
    }
}

/// How a run ended.
pub(crate) struct Ended {
    pub(crate) violation: Option<Violation>,
    pub(crate) happened: Happened,
    /// The same for the same seed, always.
    pub(crate) trace: u64,
}

pub(crate) fn run(seed: u64, mutant: Option<Mutant>) -> Ended {
    let mut world = World::new(seed, mutant);
    let violation = world.run().err();
    Ended { violation, happened: world.happened, trace: world.trace }
}

impl World {
    fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let faults = Faults::draw(&mut rng);
        let (nodes, partitions) = (rng.usize(1..=3), rng.i32(1..=4));
        let config = Config {
            flush_age_ms: rng.u64(20..300),
            flush_bytes: rng.u64(300..3_000),
            buffer_bytes_max: rng.u64(2_000..20_000),
            sessions_known_max: rng.usize(2..40),
            batches_known_max: rng.usize(1..60),
            ..CONFIG
        };
        let mut log = Log::default();
        log.grow(partitions);
        let compaction = compactor::config(&mut rng);
        let mut of_nodes = compaction;
        if mutant == Some(Mutant::RunsBySizeAlone) {
            of_nodes.runs.run_age_ms = u64::MAX;
        }
        let (compactors, workers) = (rng.usize(1..=2), rng.usize(1..=3));
        let workspaces = deletion::workspaces(&mut rng);
        let bucket = Bucket::new(rng.bool());
        // Who asks for none needs nobody who makes them.
        let exporters = faults.export_ms.map_or(0, |_| rng.usize(2..=3));
        let mut world = Self {
            rng,
            mutant,
            faults,
            config,
            now_ms: 0,
            queue: BTreeMap::new(),
            next_event: 0,
            is_healed: false,
            log,
            index: Index { links: deletion::links(), workspaces, ..Index::default() },
            bucket,
            keys: KeyStore::default(),
            nodes: (0..nodes).map(|number| Node::new(config, number, 0)).collect(),
            members: (0..nodes).map(|number| (number, 0)).collect(),
            target: BTreeMap::new(),
            owner: BTreeMap::new(),
            revoking: BTreeSet::new(),
            ledger: Ledger::default(),
            compactors: (nodes..nodes + compactors).map(|number| compactor::Node::new(of_nodes, number, 0)).collect(),
            compaction,
            workers: (0..workers).map(|_| retention::Node::new(0)).collect(),
            exporters: (0..exporters).map(|_| export::Node::new(0)).collect(),
            export_lease_ms: 0,
            next_export: 0,
            exported: export::Truth::default(),
            caches: BTreeMap::new(),
            next_deletion: 0,
            backup: None,
            life: 0,
            truth: deletion::Truth::default(),
            visible: reader::Visible::default(),
            corrupt: BTreeSet::new(),
            healed_ms: 0,
            database_skew_ms: 0,
            database_skew_max_ms: 0,
            next_object: 0,
            next_attempt: 0,
            noted: BTreeMap::new(),
            processed: BTreeSet::new(),
            published_life: BTreeMap::new(),
            trimmed: BTreeSet::new(),
            alarmed: BTreeSet::new(),
            has_replayed: false,
            has_discarded: false,
            is_done: false,
            happened: Happened::default(),
            trace: 0,
        };
        world.export_lease_ms = world.rng.u64(200..700);
        for number in 0..nodes {
            world.after(1, Event::Fetch((number, 0)));
        }
        for number in nodes..nodes + compactors {
            world.after(1, Event::CompactorTick { process: (number, 0), tick: 0 });
        }
        for number in nodes + compactors..nodes + compactors + workers {
            world.after(1, Event::Pass((number, 0)));
        }
        for number in world.first_exporter()..world.processes() {
            world.after(1, Event::ExportOn((number, 0)));
        }
        world.after(0, Event::Rebalance);
        world.after(1, Event::Produce);
        world.after(100, Event::Read);
        world.after(200, Event::Check);
        for (rate_ms, event) in world.faults.schedule() {
            let first = world.rng.u64(1..=rate_ms * 2);
            world.after(first, event.event());
        }
        world.after(SAFETY_MS, Event::Heal);
        world
    }

    fn run(&mut self) -> Result<(), Violation> {
        while let Some(((at, number), event)) = self.queue.pop_first() {
            self.now_ms = at;
            self.trace = self.trace.rotate_left(5).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ at ^ (number << 32);
            if at > SAFETY_MS + LIVENESS_MS {
                let left = [self.unfinished(), self.undeleted()].join("; ");
                return Err(format!("liveness: {left}, {LIVENESS_MS} ms after the healing"));
            }
            self.happen(*event)?;
            if self.is_done {
                return self.check_everything();
            }
        }
        Err("liveness: nothing happens any more".into())
    }

    fn after(&mut self, ms: u64, event: Event) {
        self.next_event += 1;
        self.queue.insert((self.now_ms + ms, self.next_event), Box::new(event));
    }

    fn chance(&mut self, per_mille: u32) -> bool {
        !self.is_healed && self.rng.u32(0..1_000) < per_mille
    }

    fn latency(&mut self) -> u64 {
        if self.chance(self.faults.slow) {
            self.happened.slow += 1;
            self.rng.u64(50..1_500)
        } else {
            self.rng.u64(1..8)
        }
    }

    /// What time it is by the database's clock.
    fn database_ms(&self) -> u64 {
        self.now_ms + self.database_skew_ms
    }

    fn is_current(&self, process: Process) -> bool {
        match self.nodes.get(process.0) {
            Some(node) => node.is_alive && node.incarnation == process.1,
            None => {
                self.compactor(process).is_some() || self.worker(process).is_some() || self.exporter(process).is_some()
            }
        }
    }

    fn first_worker(&self) -> usize {
        self.nodes.len() + self.compactors.len()
    }

    fn first_exporter(&self) -> usize {
        self.first_worker() + self.workers.len()
    }

    fn processes(&self) -> usize {
        self.first_exporter() + self.exporters.len()
    }

    fn paused_until(&self, number: usize) -> Option<u64> {
        let paused_until = match self.nodes.get(number) {
            Some(node) => node.paused_until,
            None if number >= self.first_exporter() => self.exporters[number - self.first_exporter()].paused_until,
            None if number >= self.first_worker() => self.workers[number - self.first_worker()].paused_until,
            None => self.compactors[number - self.nodes.len()].paused_until,
        };
        paused_until.filter(|until| *until > self.now_ms)
    }

    /// A frozen process does nothing until it wakes up.
    fn put_off(&mut self, process: Process, event: &Event) -> bool {
        let Some(until) = self.paused_until(process.0) else { return false };
        let wait = until - self.now_ms + self.rng.u64(0..20);
        self.after(wait, event.clone());
        true
    }

    fn happen(&mut self, event: Event) -> Result<(), Violation> {
        match &event {
            Event::Tick { process, .. }
            | Event::Fetch(process)
            | Event::Answer { process, .. }
            | Event::CompactorTick { process, .. }
            | Event::CompactorAnswer { process, .. }
            | Event::CompactorGraceOver(process)
            | Event::Pass(process)
            | Event::RetentionAnswer { process, .. }
            | Event::ExportOn(process)
            | Event::ExportAnswer { process, .. }
            | Event::Revoke { process, .. }
            | Event::Assign { process, .. }
            | Event::TopicBack { process, .. }
            | Event::Fenced(process)
                if !self.is_current(*process) || self.put_off(*process, &event) =>
            {
                return Ok(());
            }
            Event::Crash
            | Event::Pause
            | Event::Shutdown
            | Event::ClockJump
            | Event::DatabaseClockJump
            | Event::Grow
            | Event::Trim
            | Event::Recreate
            | Event::Delete
            | Event::Backup
            | Event::CloseKey
            | Event::AskExport
                if self.is_healed =>
            {
                return Ok(());
            }
            _ => {}
        }
        match event {
            Event::Tick { process, tick } => {
                if self.nodes[process.0].tick == tick {
                    self.input(process, Input::Tick)?;
                }
            }
            Event::Fetch(process) => self.fetch(process)?,
            Event::Apply { process, op, given_up } => self.apply(process, op, given_up)?,
            Event::Answer { process, input } => self.input(process, input)?,
            Event::EndPublish { publishing, truth, staged, commits } => {
                self.index.locked.remove(&publishing.flush.partition);
                self.index
                    .locked_objects
                    .retain(|number| publishing.object.as_ref().is_none_or(|(own, _)| own != number));
                if commits {
                    self.commit(&publishing, &truth, &staged)?;
                }
            }
            Event::Compact { process, task, op, given_up, waited_ms } => {
                self.compact(process, task, op, given_up, waited_ms)?;
            }
            Event::CompactorTick { process, tick } => {
                if self.compactor(process).is_some_and(|node| node.tick == tick) {
                    self.compactor_input(process, compaction::Input::Tick)?;
                }
            }
            Event::CompactorAnswer { process, task, answer } => {
                self.compactor_input(process, compaction::Input::Answer { task, answer })?;
            }
            Event::CompactorGraceOver(process) => self.compactor_input(process, compaction::Input::GraceOver)?,
            Event::EndSwap { swap, commits } => self.end_swap(&swap, commits)?,
            Event::HalfSwap(swap) => self.half_swap(&swap)?,
            Event::Pass(process) => self.pass(process),
            Event::Retain { process, op, given_up, life } => self.retain(process, op, given_up, life)?,
            Event::RetentionAnswer { process, then } => self.retention_answer(process, then),
            Event::Ask(ask) => self.ask(ask)?,
            Event::ExportOn(process) => self.export_on(process),
            Event::Export { process, op, given_up, life } => self.export(process, op, given_up, life)?,
            Event::ExportAnswer { process, answer } => self.export_answer(process, *answer)?,
            Event::EndPart { part, commits, life } => self.end_part(&part, commits, life)?,
            Event::AskExport => {
                self.ask_export();
                self.again(self.faults.export_ms, Event::AskExport);
            }
            Event::EndExport(export) => self.end_by_hand(export),
            Event::FetchExport(export) => self.fetch_export(export)?,
            Event::FetchOn(fetching) => self.fetch_on(fetching)?,
            Event::Backup => {
                self.back_up_or_restore()?;
                self.again(self.faults.backup_ms, Event::Backup);
            }
            Event::EndStaging { process, staging, commits } => self.end_staging(process, *staging, commits)?,
            Event::Read => self.read()?,
            Event::ReadOn(reading) => self.read_on(reading)?,
            Event::InsertUnlocked { partition, sessions } => {
                for key in sessions {
                    self.first_row(key, partition);
                    if self.index.is_deleted(&key) {
                        return Err("B8: a first row brought a tombstoned session back".into());
                    }
                }
            }
            Event::MakeLive { process, publishing } => {
                if self.is_current(process)
                    && let Some((number, content)) = &publishing.object
                {
                    let times = (self.database_ms(), self.now_ms);
                    self.index.turn_live(*number, content, times);
                }
            }
            Event::RemoveObjects(numbers) => {
                for number in numbers {
                    self.bucket.delete(number);
                    self.index.objects.entry(number).and_modify(|row| {
                        if row.state == ObjectState::Staged {
                            row.state = ObjectState::Condemned;
                        }
                    });
                }
                self.check_live_objects()?;
            }
            Event::Produce => self.produce(),
            Event::Rebalance => {
                self.rebalance();
                self.again(self.faults.rebalance_ms, Event::Rebalance);
            }
            Event::Revoke { process, partition } => self.revoke(process, partition)?,
            Event::Assign { process, partition } => self.assign(process, partition)?,
            Event::TopicBack { process, partition } => {
                let generation = self.log.generation(partition);
                if let Some(known) = self.nodes[process.0].assigned.get_mut(&partition) {
                    *known = generation;
                    self.input(process, Input::LogDoubted)?;
                }
            }
            Event::SessionTimeout(process) => {
                let is_away = !self.is_current(process)
                    || self.nodes[process.0].paused_until.is_some_and(|until| until > self.now_ms);
                if is_away {
                    self.leave(process);
                }
            }
            Event::Fenced(process) => self.fenced(process)?,
            Event::Crash => {
                self.crash();
                self.again(self.faults.crash_ms, Event::Crash);
            }
            Event::Restart(number) => self.restart(number),
            Event::Pause => {
                self.pause();
                self.again(self.faults.pause_ms, Event::Pause);
            }
            Event::Shutdown => {
                self.shut_down()?;
                self.again(self.faults.shutdown_ms, Event::Shutdown);
            }
            Event::ClockJump => {
                let number = self.rng.usize(0..self.first_worker());
                let jump_ms = self.rng.u64(100..4_000_000);
                self.happened.clock_jumps += 1;
                if let Some(node) = self.nodes.get_mut(number) {
                    node.skew_ms += jump_ms;
                    let process = (number, node.incarnation);
                    if self.is_current(process) && self.nodes[number].paused_until.is_none() {
                        self.input(process, Input::Tick)?;
                    }
                } else {
                    self.jump_compactor(number, jump_ms)?;
                }
                self.again(self.faults.clock_ms, Event::ClockJump);
            }
            Event::DatabaseClockJump => {
                // Forward, and back again.
                let jump_ms = self.rng.u64(100..10_000);
                let is_forward = self.rng.bool();
                let jumped = if is_forward { self.database_skew_ms + jump_ms } else { self.database_skew_ms / 2 };
                self.database_skew_ms = jumped;
                self.database_skew_max_ms = self.database_skew_max_ms.max(jumped);
                self.happened.database_clock_jumps += 1;
                self.again(self.faults.database_clock_ms, Event::DatabaseClockJump);
            }
            Event::Grow => {
                let partitions = self.log.partitions().len() as i32;
                if partitions < 7 {
                    self.log.grow(partitions + self.rng.i32(1..=2));
                    self.happened.growths += 1;
                    self.rebalance();
                }
                self.again(self.faults.grow_ms, Event::Grow);
            }
            Event::Trim => {
                self.trim();
                self.again(self.faults.trim_ms, Event::Trim);
            }
            Event::Recreate => self.recreate(),
            Event::Check => {
                self.after(200, Event::Check);
                self.check_live_objects()?;
                self.check_draining()?;
                self.check_gone()?;
                self.check_exports()?;
            }
            Event::Delete => {
                self.ask_deletion();
                self.again(self.faults.delete_ms, Event::Delete);
            }
            Event::CloseKey => {
                if let Some(key) = self.ledger.sessions.last().copied() {
                    self.keys.closed.insert(key);
                    self.keys.were_closed.insert(key);
                    let wait = self.rng.u64(50..2_000);
                    self.after(wait, Event::OpenKey(key));
                }
                self.again(self.faults.close_key_ms, Event::CloseKey);
            }
            Event::OpenKey(key) => drop(self.keys.closed.remove(&key)),
            Event::Heal => self.heal(),
            Event::Converge => self.converge()?,
        }
        Ok(())
    }

    /// A fault comes again, until the healing.
    fn again(&mut self, rate_ms: Option<u64>, event: Event) {
        if let Some(rate_ms) = rate_ms
            && !self.is_healed
        {
            let wait = self.rng.u64(1..=rate_ms * 2);
            self.after(wait, event);
        }
    }

    // The group.

    fn rebalance(&mut self) {
        let members: Vec<Process> = self.members.iter().copied().collect();
        if members.is_empty() {
            return;
        }
        self.happened.rebalances += 1;
        for partition in self.log.partitions() {
            let to = members[self.rng.usize(0..members.len())];
            self.target.insert(partition, to);
            self.hand_over(partition);
        }
    }

    /// Moves a partition towards the member that it is meant for.
    fn hand_over(&mut self, partition: i32) {
        let Some(to) = self.target.get(&partition).copied() else { return };
        let wait = self.rng.u64(1..30);
        match self.owner.get(&partition).copied() {
            Some(owner) if owner == to && !self.revoking.contains(&partition) => {}
            Some(owner) => {
                if self.revoking.insert(partition) {
                    self.after(wait, Event::Revoke { process: owner, partition });
                }
            }
            None => self.after(wait, Event::Assign { process: to, partition }),
        }
    }

    fn revoke(&mut self, process: Process, partition: i32) -> Result<(), Violation> {
        if self.owner.get(&partition) == Some(&process) {
            self.owner.remove(&partition);
            self.revoking.remove(&partition);
            self.hand_over(partition);
        }
        self.take_away(process, partition)
    }

    /// B6: the buffers of all others stay as they were.
    fn take_away(&mut self, process: Process, partition: i32) -> Result<(), Violation> {
        let node = &mut self.nodes[process.0];
        if node.assigned.remove(&partition).is_none() {
            return Ok(());
        }
        node.reading.remove(&partition);
        let before = node.machine.conservation().buffered;
        let own = node.taken.get(&partition).copied().unwrap_or_default();
        self.input(process, Input::Revoked(partition))?;
        let after = self.nodes[process.0].machine.conservation().buffered;
        if after != before - own {
            return Err(format!("B6: revoking a partition of {own} records left {after} of {before} buffered"));
        }
        Ok(())
    }

    fn assign(&mut self, process: Process, partition: i32) -> Result<(), Violation> {
        let is_wanted = self.target.get(&partition) == Some(&process)
            && !self.owner.contains_key(&partition)
            && self.members.contains(&process);
        let node = &mut self.nodes[process.0];
        if !is_wanted || node.is_stopping {
            return Ok(());
        }
        self.owner.insert(partition, process);
        node.assigned.insert(partition, self.log.generation(partition));
        if self.mutant == Some(Mutant::ClearsAllBuffersOnAssign) {
            node.held.clear();
        }
        self.input(process, Input::Assigned(partition))
    }

    fn leave(&mut self, process: Process) {
        if self.members.remove(&process) {
            let left: Vec<i32> =
                self.owner.iter().filter(|(_, owner)| **owner == process).map(|(partition, _)| *partition).collect();
            for partition in left {
                self.owner.remove(&partition);
                self.revoking.remove(&partition);
            }
            self.rebalance();
        }
    }

    /// It hears that the group went on without it, gives up what it had, and joins anew.
    fn fenced(&mut self, process: Process) -> Result<(), Violation> {
        if self.members.contains(&process) {
            return Ok(());
        }
        let had: Vec<i32> = self.nodes[process.0].assigned.keys().copied().collect();
        for partition in had {
            self.take_away(process, partition)?;
        }
        // It may have been about to stop, with nothing left to do by now.
        if self.is_current(process) {
            self.members.insert(process);
            self.rebalance();
        }
        Ok(())
    }

    // Processes come and go.

    fn crash(&mut self) {
        let number = self.rng.usize(0..self.processes());
        if number >= self.first_exporter() {
            return self.crash_exporter(number);
        }
        if number >= self.first_worker() {
            return self.crash_worker(number);
        }
        let Some(node) = self.nodes.get_mut(number) else { return self.crash_compactor(number) };
        if !node.is_alive {
            return;
        }
        node.is_alive = false;
        self.happened.crashes += 1;
        let process = (number, node.incarnation);
        self.after(SESSION_TIMEOUT_MS, Event::SessionTimeout(process));
        let wait = self.rng.u64(1..1_000);
        self.after(wait, Event::Restart(number));
    }

    fn restart(&mut self, number: usize) {
        if number >= self.first_exporter() {
            return self.restart_exporter(number);
        }
        if number >= self.first_worker() {
            return self.restart_worker(number);
        }
        if number >= self.nodes.len() {
            return self.restart_compactor(number);
        }
        if self.nodes[number].is_alive {
            return;
        }
        let incarnation = self.nodes[number].incarnation + 1;
        self.nodes[number] = Node::new(self.config, number, incarnation);
        let process = (number, incarnation);
        self.members.insert(process);
        self.rebalance();
        self.after(1, Event::Fetch(process));
    }

    fn pause(&mut self) {
        let number = self.rng.usize(0..self.processes());
        let ms = self.rng.u64(10..1_500);
        if number >= self.first_exporter() {
            return self.pause_exporter(number, ms);
        }
        if number >= self.first_worker() {
            return self.pause_worker(number, ms);
        }
        let Some(node) = self.nodes.get_mut(number) else { return self.pause_compactor(number, ms) };
        if !node.is_alive || node.paused_until.is_some_and(|until| until > self.now_ms) {
            return;
        }
        node.paused_until = Some(self.now_ms + ms);
        let process = (number, node.incarnation);
        if ms > SESSION_TIMEOUT_MS {
            self.happened.zombies += 1;
            self.after(SESSION_TIMEOUT_MS, Event::SessionTimeout(process));
            // It may do a lot before it hears of it.
            let wait = ms + self.rng.u64(0..600);
            self.after(wait, Event::Fenced(process));
        }
    }

    fn shut_down(&mut self) -> Result<(), Violation> {
        let number = self.rng.usize(0..self.first_worker());
        let Some(node) = self.nodes.get_mut(number) else { return self.shut_down_compactor(number) };
        if !node.is_alive || node.is_stopping || node.paused_until.is_some_and(|until| until > self.now_ms) {
            return Ok(());
        }
        node.is_stopping = true;
        let process = (number, node.incarnation);
        self.input(process, Input::Shutdown)
    }

    fn stopped(&mut self, process: Process) {
        self.happened.shutdowns += 1;
        self.nodes[process.0].is_alive = false;
        self.leave(process);
        let wait = self.rng.u64(1..300);
        self.after(wait, Event::Restart(process.0));
    }

    // The log.

    fn produce(&mut self) {
        if self.is_healed {
            return;
        }
        let wait = self.rng.u64(3..=self.faults.produce_ms);
        self.after(wait, Event::Produce);
        for _ in 0..self.rng.u32(1..4) {
            let bytes = self.rng.u64(20..RECORD_BYTES_MAX);
            match self.rng.u32(0..100) {
                0..8 => self.begin_session(),
                8..10 => {
                    let partition = self.any_partition();
                    self.log.append(partition, bytes, RecordKind::Declines);
                }
                10..12 => {
                    let partition = self.any_partition();
                    self.happened.unreadable += 1;
                    self.log.append(partition, bytes, RecordKind::Unreadable(QuarantineReason::Header));
                }
                12..22 => self.retry_batch(bytes),
                _ => self.next_batch(bytes),
            }
        }
    }

    fn any_partition(&mut self) -> i32 {
        let partitions = self.log.partitions();
        partitions[self.rng.usize(0..partitions.len())]
    }

    /// By the session's id and the number of partitions, as producers choose.
    fn partition_of(&self, key: SessionKey) -> i32 {
        let partitions = self.log.partitions().len() as u128;
        (key.session.0.as_u128() * 31 % partitions) as i32
    }

    fn begin_session(&mut self) {
        let key = deletion::key_of(self.ledger.sessions.len() + 1);
        self.ledger.sessions.push(key);
        self.ledger.began.insert(key, self.now_ms);
        let partition = self.partition_of(key);
        self.log.append(partition, 40, RecordKind::Acceptance(key));
    }

    fn next_batch(&mut self, bytes: u64) {
        // The latest sessions are those that go on.
        let len = self.ledger.sessions.len();
        if len == 0 {
            return;
        }
        let key = self.ledger.sessions[self.rng.usize(len.saturating_sub(5)..len)];
        let stream = self.rng.u32(0..2);
        let seq = self.ledger.next.entry((key, stream)).or_default();
        let place = StreamSeq::new(stream, *seq).expect("a small stream");
        *seq += 1;
        let content = self.rng.u64(..);
        if self.rng.u32(0..100) < 4 {
            self.ledger.ends.insert((key, place));
        }
        self.append_batch(key, place, content, bytes);
    }

    /// A client that did not hear the answer sends the same bytes again; a broken one sends others.
    fn retry_batch(&mut self, bytes: u64) {
        let latest = self.ledger.batches.iter().rev().nth(self.rng.usize(0..12));
        if let Some(((key, place), sent)) = latest {
            let (key, place) = (*key, *place);
            let mut content = sent.first().map_or(0, |(_, content)| *content);
            self.happened.retries += 1;
            if self.rng.u32(0..1_000) < self.faults.conflicting {
                self.happened.conflicting += 1;
                content = self.rng.u64(..);
            }
            self.append_batch(key, place, content, bytes);
        }
    }

    fn append_batch(&mut self, key: SessionKey, place: StreamSeq, content: u64, bytes: u64) {
        let partition = self.partition_of(key);
        let record = self.log.append(partition, bytes, RecordKind::Batch { key, place, content });
        self.ledger.batches.entry((key, place)).or_default().push((record.uid, content));
    }

    /// Retention runs past what is published.
    fn trim(&mut self) {
        let partition = self.any_partition();
        if self.log.generation(partition) > 0 {
            return;
        }
        let span = self.log.span(partition);
        let to = self.rng.u64(span.first..=span.next);
        let published = self.index.progress.get(&partition).map_or(0, |row| row.next);
        for offset in published.max(span.first)..to {
            if let Some(record) = self.log.ever(partition, 0, offset) {
                self.ledger.at_risk.insert(record.uid);
                self.happened.lost_to_retention += 1;
            }
        }
        self.trimmed.insert(partition);
        self.log.trim(partition, to);
    }

    /// The topic of a partition is deleted and made anew under its name.
    fn recreate(&mut self) {
        let partition = self.any_partition();
        if self.trimmed.contains(&partition) || self.log.generation(partition) > 0 {
            return;
        }
        let published = self.index.progress.get(&partition).map_or(0, |row| row.next);
        for offset in published..self.log.span(partition).next {
            if let Some(record) = self.log.ever(partition, 0, offset) {
                self.ledger.at_risk.insert(record.uid);
            }
        }
        self.happened.recreations += 1;
        self.log.recreate(partition);
        let Some(owner) = self.owner.get(&partition).copied() else { return };
        if self.rng.bool() {
            // The group knows topics by their ids: what was assigned of the old one is revoked.
            if self.revoking.insert(partition) {
                self.after(1, Event::Revoke { process: owner, partition });
            }
        } else {
            // It tells its members names, which are the same as before; but the client finds the topic away for a moment.
            let wait = self.rng.u64(1..1_500);
            self.after(wait, Event::TopicBack { process: owner, partition });
        }
    }

    /// B3.
    fn check_live_objects(&self) -> Result<(), Violation> {
        for (number, row) in &self.index.objects {
            // What a restored index has again of an export may have gone before.
            let is_restored = self.exported.gone_before.contains(number);
            if row.state == ObjectState::Live && !is_restored && self.bucket.get(*number) != Some(&row.content) {
                return Err(format!("B3: the bytes of live object {number} are gone"));
            }
        }
        Ok(())
    }
}
