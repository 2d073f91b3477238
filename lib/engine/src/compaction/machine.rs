//! What a compactor does next, and what happens when that fails.
//!
//! One machine per compactor process. A driver tells it what happened ([`Input`]) and carries out what it wants
//! ([`Effect`]); it never waits, and sees ids and sizes only. What is to be done outside is a [`Work`] under a number;
//! its answer names the number, and one that comes twice is none the second time.
//!
//! A look at the index says what there is to do. A *job* is the run of one partition, or a session that is over.
//!
//! - A run is **claimed, opened, staged, merged, published**. Objects are staged under names that are never used twice
//!   (B10, C4) and only for sessions that are not deleted (B8); what cannot be merged goes into quarantine, so that
//!   nothing pins a run. Publishing swaps the run for its results in one transaction (C2), which looks at the claim
//!   itself: renewing it while the job goes on only saves work, and keeps what is staged from being given up.
//! - Of each partition one run is merged at a time, and always what comes first in the log: what was merged stays what
//!   readers see, so a later copy of a batch must not be merged before an earlier one (C1).
//! - A session that is over is finished when no shared object holds any of it: its parts, claimed as they are staged for, become
//!   one object. Parts that cannot be merged, or that are too large for it, stay as they are.
//! - What fails is tried again, an upload under another name. What fails again and again is given back, and its partition or session
//!   waits; that holds up nothing else.
//! - A commit whose answer was lost is looked up, then decided.
//! - Memory has a budget: a run is held while its job lasts, each merge has an estimate. Beyond the budget nothing
//!   begins unless nothing else goes on, and what has waited longest goes first (C6). Merges of runs go before those of sessions
//!   that are over, which can wait; no new run is claimed while one of these waits for room.
//!
//! After every [`Machine::handle`], call [`Machine::poll_effect`] until it gives `None`, then wait until
//! [`Machine::poll_timeout`] at the longest and hand over [`Input::Tick`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use schemas::{ObjectId, SessionKey};

use super::{Candidate, RunConfig, choose_run};
use crate::backoff;
use crate::batching::Published;

/// A job that failed so often is given up; its partition or session waits.
const FAILURES_MAX: u32 = 3;
/// Sessions whose waits are remembered.
const SESSIONS_WAITING_MAX: usize = 10_000;

/// Bounds of one compactor. Times in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// What a run is.
    pub runs: RunConfig,
    /// How often the index is looked at when nothing is done.
    pub interval_ms: u64,
    /// How long a claim lasts. It is renewed when a third of it is over.
    pub lease_ms: u64,
    /// Runs at once.
    pub runs_at_once: usize,
    /// Sessions that are finished at once.
    pub finals_at_once: usize,
    /// Merges at once, over all jobs.
    pub merges_at_once: usize,
    /// Bytes of runs that are held and of merges under way. A quarter of them no run takes: merges need room too.
    pub bytes_max: u64,
    /// A session whose parts' footers have more bytes keeps them.
    pub footers_bytes_max: u64,
    /// Sessions that are over, asked for by one look beside those that wait.
    pub finals_per_look: usize,
    /// The first wait after a failure; it doubles up to `retry_max_ms`.
    pub retry_min_ms: u64,
    /// The longest wait after a failure.
    pub retry_max_ms: u64,
    /// Any number, another one in each process: spreads the waits of those that want the same.
    pub spread_seed: u64,
}

/// The number of a job within its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobId(pub u64);

/// The number of what is done outside, within its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskId(pub u64);

/// The number of an object's name, within its process. The driver makes the name; no two attempts have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(pub u64);

/// A live shared object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedRow {
    /// Its partition.
    pub partition: i32,
    /// What a run is chosen by.
    pub candidate: Candidate,
    /// Whether a compactor has it.
    pub leased: bool,
}

/// What a look found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// Live shared objects, by partition and offset.
    pub shared: Vec<SharedRow>,
    /// Sessions that are over, by end mark or silence, and not final. Oldest activity first.
    pub over: Vec<SessionKey>,
}

/// What is in a run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Opened {
    /// Its sessions, with the bytes that merging each of them takes, about.
    pub sessions: Vec<(SessionKey, u64)>,
    /// Whether there are records in it that nobody can read.
    pub has_unreadable: bool,
    /// The bytes that its footers take while it is held, opened; those of its objects are known.
    pub footers_bytes: u64,
}

/// The parts of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// Whether a shared object, staged or live, may hold some of the session. Asked before the parts were.
    pub may_be_shared: bool,
    /// Its live objects with the bytes of their footers, in the order in which they were made.
    pub parts: Vec<(ObjectId, u64)>,
    /// The bytes that merging them takes, about.
    pub merge_bytes: u64,
}

/// What became of one session's merge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merged {
    /// The object lies in the bucket and was read back.
    Stored,
    /// So it does, without what of the session is corrupt in the run.
    Partly,
    /// What is stored of the session is corrupt, or its key does not open.
    Unreadable,
    /// The session's key was destroyed.
    Deleted,
}

/// What a look-up found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The commit took place.
    Committed,
    /// It did not, and can be tried again.
    Open,
    /// It did not, and what was to be replaced is not there any more.
    Lost,
}

/// What is to be done outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// List live shared objects, and so many sessions that are over.
    Look {
        /// At most.
        sessions_max: usize,
    },
    /// Claim a run.
    Claim {
        /// For this job; the claim bears its name.
        job: JobId,
        /// The objects, in order.
        run: Vec<ObjectId>,
    },
    /// Have the claim, and what is staged, last longer.
    Renew(JobId),
    /// Fetch the claimed objects and open their footers.
    Open(JobId),
    /// Write the rows of session objects, but for sessions that are deleted, and for one that is over whose parts somebody else has
    /// claimed.
    Stage {
        /// The job.
        job: JobId,
        /// Sessions with the names that their objects are to have.
        objects: Vec<(SessionKey, Name)>,
    },
    /// Merge what the run holds of a session, upload it, read it back.
    Merge {
        /// The job.
        job: JobId,
        /// The session.
        key: SessionKey,
        /// Its object.
        name: Name,
    },
    /// Stage an object for what cannot be read, upload it, read it back.
    Quarantine {
        /// The job.
        job: JobId,
        /// The object.
        name: Name,
        /// Sessions whose chunks go into it, beside the run's unreadable records: all of a session that was not merged, those that
        /// are corrupt of one that was merged partly.
        sessions: Vec<SessionKey>,
    },
    /// Swap the run for its results.
    Publish {
        /// The job.
        job: JobId,
        /// Sessions with their objects, in id order.
        results: Vec<(SessionKey, Name)>,
        /// The quarantine object.
        quarantine: Option<Name>,
    },
    /// Find out whether a swap whose answer was lost took place.
    LookUp {
        /// The job.
        job: JobId,
        /// What it would have made live.
        results: Vec<(SessionKey, Name)>,
        /// And this.
        quarantine: Option<Name>,
    },
    /// Give the claim back.
    Release(JobId),
    /// Ask whether a session is in shared objects still, then for its parts.
    FindParts {
        /// The job.
        job: JobId,
        /// The session.
        key: SessionKey,
    },
    /// Merge the session's parts, upload the object, read it back.
    MergeParts {
        /// The job.
        job: JobId,
        /// The session.
        key: SessionKey,
        /// Its object.
        name: Name,
        /// The parts, in order.
        parts: Vec<ObjectId>,
    },
    /// Swap the parts for the one object, unless the session has others by now.
    PublishFinal {
        /// The job.
        job: JobId,
        /// The session.
        key: SessionKey,
        /// Its object.
        name: Name,
        /// The parts.
        parts: Vec<ObjectId>,
    },
    /// Find out whether that swap took place.
    LookUpFinal {
        /// The job.
        job: JobId,
        /// The session.
        key: SessionKey,
        /// Its object.
        name: Name,
        /// The parts.
        parts: Vec<ObjectId>,
    },
    /// Note that the session's parts stay as they are, unless it has others by now.
    MarkFinal {
        /// The job.
        job: JobId,
        /// The session.
        key: SessionKey,
        /// The parts.
        parts: Vec<ObjectId>,
    },
}

/// How work went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Of [`Work::Look`].
    Looked(Found),
    /// Of [`Work::Claim`] and [`Work::Renew`]: whether the run is ours.
    Claimed(bool),
    /// Of [`Work::Open`].
    Opened(Opened),
    /// Of [`Work::Stage`]: sessions that have a row, in any order.
    Staged(Vec<SessionKey>),
    /// Of [`Work::Merge`] and [`Work::MergeParts`].
    Merged(Merged),
    /// Of [`Work::Publish`] and [`Work::PublishFinal`].
    Published(Published),
    /// Of [`Work::LookUp`] and [`Work::LookUpFinal`].
    LookedUp(Standing),
    /// Of [`Work::FindParts`].
    Parts(Parts),
    /// Of [`Work::MarkFinal`]: whether the parts were these.
    Marked(bool),
    /// Of [`Work::Quarantine`] and [`Work::Release`].
    Done,
    /// It failed, or its answer was lost: whether it was done is not known.
    Failed,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Work ended.
    Answer {
        /// Which.
        task: TaskId,
        /// How.
        answer: Answer,
    },
    /// Nothing but time passed.
    Tick,
    /// Begin nothing any more, finish what is under way.
    Shutdown,
    /// Finish nothing any more, give back what is claimed.
    GraceOver,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// It is done.
    Done,
    /// Nothing was to be done, or somebody else does it.
    Nothing,
    /// The claim, or what was to be replaced, is not what it was: nothing was changed.
    Lost,
    /// It failed again and again.
    Failed,
    /// The process stops.
    GivenUp,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Begin work; its answer names the number.
    Begin {
        /// The number.
        task: TaskId,
        /// The work.
        work: Work,
    },
    /// A job is over, and nothing of it is under way: forget its objects.
    Close {
        /// Which.
        job: JobId,
        /// How it ended.
        end: End,
    },
    /// All is ended after [`Input::Shutdown`] or [`Input::GraceOver`].
    Stopped,
}

#[derive(Debug)]
enum Target {
    Run { partition: i32, run: Vec<ObjectId> },
    Session(SessionKey),
}

/// A step that can be tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Claim,
    Open,
    Stage,
    Quarantine,
    Publish,
    LookUp,
    FindParts,
    MarkFinal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Doing(Step),
    /// Merges are begun and ended.
    Merging,
    Waiting {
        until_ms: u64,
        next: Step,
    },
    /// It ends when nothing of it is under way any more.
    Ended(End),
}

/// A merge that is staged.
#[derive(Debug, Clone, Copy)]
struct Staged {
    key: SessionKey,
    name: Name,
    bytes: u64,
}

#[derive(Debug)]
struct Job {
    target: Target,
    phase: Phase,
    failures: u32,
    renews_at_ms: u64,
    is_renewing: bool,
    /// What of it is under way.
    tasks: usize,
    /// Bytes that it holds.
    bytes: u64,
    has_unreadable: bool,
    /// Sessions to be staged, with the names that were given out for it.
    wanted: Vec<Staged>,
    /// Merges that are to begin.
    ready: VecDeque<Staged>,
    merging: usize,
    results: Vec<(SessionKey, Name)>,
    unreadable: Vec<SessionKey>,
    quarantine: Option<Name>,
    /// Of a session that is over.
    parts: Vec<ObjectId>,
}

impl Job {
    fn new(target: Target, bytes: u64, now_ms: u64) -> Self {
        Self {
            target,
            phase: Phase::Merging,
            failures: 0,
            renews_at_ms: now_ms,
            is_renewing: false,
            tasks: 0,
            bytes,
            has_unreadable: false,
            wanted: Vec::new(),
            ready: VecDeque::new(),
            merging: 0,
            results: Vec::new(),
            unreadable: Vec::new(),
            quarantine: None,
            parts: Vec::new(),
        }
    }

    fn is_run(&self) -> bool {
        matches!(self.target, Target::Run { .. })
    }

    /// Whether its claim is worth renewing: once publishing was sent, that decides. A session's parts are claimed when its merge is
    /// staged, each time.
    fn renews(&self) -> bool {
        let is_past = |step| matches!(step, Step::Claim | Step::Publish | Step::LookUp);
        match self.phase {
            Phase::Doing(step) | Phase::Waiting { next: step, .. } => self.is_run() && !is_past(step),
            Phase::Merging => true,
            Phase::Ended(_) => false,
        }
    }
}

#[derive(Debug)]
enum TaskKind {
    Look,
    Step(JobId),
    Merge { job: JobId, merge: Staged },
    Renew { job: JobId, sent_ms: u64 },
    Release,
}

/// How long a partition or session is left alone.
#[derive(Debug, Clone, Copy)]
struct Wait {
    until_ms: u64,
    failures: u32,
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    config: Config,
    jobs: BTreeMap<JobId, Job>,
    tasks: BTreeMap<TaskId, TaskKind>,
    effects: VecDeque<Effect>,
    partitions: BTreeMap<i32, Wait>,
    sessions: BTreeMap<SessionKey, Wait>,
    look_at_ms: u64,
    is_looking: bool,
    /// Something was done since the look under way began: what it finds is old.
    looks_again: bool,
    /// Sessions that the last look found over, and that wait for their turn.
    over: VecDeque<SessionKey>,
    /// Those that were finished since the last look began.
    finished: BTreeSet<SessionKey>,
    /// A run waits for room: until the next look, no merge begins that is not a run's.
    run_waits: bool,
    /// Bytes of merges under way, and how many these are.
    merging_bytes: u64,
    merging: usize,
    next_number: u64,
    stopping: bool,
    stopped: bool,
}

impl Machine {
    /// A machine that looks at once.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            jobs: BTreeMap::new(),
            tasks: BTreeMap::new(),
            effects: VecDeque::new(),
            partitions: BTreeMap::new(),
            sessions: BTreeMap::new(),
            look_at_ms: 0,
            is_looking: false,
            looks_again: false,
            over: VecDeque::new(),
            finished: BTreeSet::new(),
            run_waits: false,
            merging_bytes: 0,
            merging: 0,
            next_number: 0,
            stopping: false,
            stopped: false,
        }
    }

    /// Takes in what happened at `now_ms`, by a clock that never goes back.
    pub fn handle(&mut self, now_ms: u64, input: Input) {
        match input {
            Input::Answer { task, answer } => self.answered(now_ms, task, answer),
            Input::Tick => {}
            Input::Shutdown => self.stopping = true,
            Input::GraceOver => self.give_up(),
        }
        self.advance(now_ms);
    }

    /// The next thing to do.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When [`Input::Tick`] is due, in the time of [`Machine::handle`].
    pub fn poll_timeout(&self) -> Option<u64> {
        let look = (!self.is_looking && !self.stopping).then_some(self.look_at_ms);
        let of_jobs = self.jobs.values().flat_map(|job| {
            let waits = match job.phase {
                Phase::Waiting { until_ms, .. } => Some(until_ms),
                _ => None,
            };
            let renews = (job.renews() && !job.is_renewing).then_some(job.renews_at_ms);
            [waits, renews].into_iter().flatten()
        });
        of_jobs.chain(look).min()
    }

    /// Bytes of runs that are held and of merges under way, as far as they were known before.
    pub fn bytes(&self) -> u64 {
        self.jobs.values().map(|job| job.bytes).sum::<u64>() + self.merging_bytes
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn begin(&mut self, kind: TaskKind, work: Work) {
        let task = TaskId(self.number());
        if let TaskKind::Step(job) | TaskKind::Merge { job, .. } | TaskKind::Renew { job, .. } = &kind
            && let Some(job) = self.jobs.get_mut(job)
        {
            job.tasks += 1;
        }
        self.tasks.insert(task, kind);
        self.effects.push_back(Effect::Begin { task, work });
    }

    fn answered(&mut self, now_ms: u64, task: TaskId, answer: Answer) {
        let Some(kind) = self.tasks.remove(&task) else { return };
        if let TaskKind::Step(job) | TaskKind::Merge { job, .. } | TaskKind::Renew { job, .. } = &kind
            && let Some(job) = self.jobs.get_mut(job)
        {
            job.tasks -= 1;
        }
        match kind {
            TaskKind::Look => self.looked(now_ms, answer),
            TaskKind::Step(job) => self.stepped(now_ms, job, answer),
            TaskKind::Merge { job, merge } => self.merged(job, merge, &answer),
            TaskKind::Renew { job, sent_ms } => self.renewed(now_ms, job, sent_ms, &answer),
            TaskKind::Release => {}
        }
    }

    fn looked(&mut self, now_ms: u64, answer: Answer) {
        self.is_looking = false;
        self.look_at_ms = now_ms + if self.looks_again { 0 } else { self.config.interval_ms };
        let Answer::Looked(found) = answer else {
            self.look_at_ms = now_ms + self.config.interval_ms;
            return;
        };
        if self.stopping {
            return;
        }
        // Long after their time, waits are forgotten with their failures.
        let kept_ms = self.config.retry_max_ms.saturating_mul(4);
        self.partitions.retain(|_, wait| wait.until_ms + kept_ms > now_ms);
        self.sessions.retain(|_, wait| wait.until_ms + kept_ms > now_ms);
        self.claim_runs(now_ms, &found.shared);
        self.over = found.over.into_iter().filter(|key| !self.finished.contains(key)).collect();
        // Compactors that find the same sessions over begin with different ones.
        let seed = self.config.spread_seed;
        self.over.make_contiguous().sort_by_key(|key| backoff::spread(seed, key.session.0.as_fields().0, 0));
    }

    /// What is oldest goes first, and is waited for: with smaller ones let in before it, it might never find room (C6).
    fn claim_runs(&mut self, now_ms: u64, rows: &[SharedRow]) {
        // One that waits until nothing is held might wait for ever beside new runs; but not one that waits for a run.
        let run_waited = std::mem::take(&mut self.run_waits);
        if !run_waited && self.jobs.values().any(|job| !job.is_run() && !job.ready.is_empty()) {
            return;
        }
        let runs_bytes_max = self.config.bytes_max - self.config.bytes_max / 4;
        let mut runs = Vec::new();
        for rows in rows.chunk_by(|one, other| one.partition == other.partition) {
            let Some(partition) = rows.first().map(|row| row.partition) else { continue };
            let is_busy = self
                .jobs
                .values()
                .any(|job| matches!(job.target, Target::Run { partition: other, .. } if other == partition));
            if is_busy || self.partitions.get(&partition).is_some_and(|wait| wait.until_ms > now_ms) {
                continue;
            }
            // What is behind a claimed object waits (C1).
            let candidates: Vec<Candidate> =
                rows.iter().take_while(|row| !row.leased).map(|row| row.candidate).collect();
            let Some(run) = choose_run(&self.config.runs, &candidates) else { continue };
            let bytes = candidates.iter().take(run.len()).map(|candidate| candidate.bytes).sum::<u64>();
            let age_ms = candidates.iter().map(|candidate| candidate.age_ms).max().unwrap_or_default();
            runs.push((Reverse(age_ms), partition, run, bytes));
        }
        runs.sort_by_key(|(age_ms, partition, ..)| (*age_ms, *partition));
        for (_, partition, run, bytes) in runs {
            let at_once = self.jobs.values().filter(|job| job.is_run()).count();
            let held = self.bytes();
            self.run_waits = held > 0 && held + bytes > runs_bytes_max;
            if at_once >= self.config.runs_at_once || self.run_waits {
                return;
            }
            self.begin_job(now_ms, Job::new(Target::Run { partition, run }, bytes, now_ms), Step::Claim);
        }
    }

    fn begin_finals(&mut self, now_ms: u64) {
        while self.jobs.values().filter(|job| !job.is_run()).count() < self.config.finals_at_once {
            let Some(key) = self.over.pop_front() else { return };
            let is_busy = self.jobs.values().any(|job| matches!(job.target, Target::Session(other) if other == key));
            if !is_busy && self.sessions.get(&key).is_none_or(|wait| wait.until_ms <= now_ms) {
                self.begin_job(now_ms, Job::new(Target::Session(key), 0, now_ms), Step::FindParts);
            }
        }
    }

    fn begin_job(&mut self, now_ms: u64, job: Job, step: Step) {
        let id = JobId(self.number());
        self.jobs.insert(id, job);
        self.take_step(now_ms, id, step);
    }

    /// Begins a step of a job.
    fn take_step(&mut self, now_ms: u64, id: JobId, step: Step) {
        let (lease_ms, mut numbers) = (self.config.lease_ms, self.next_number);
        let mut name = || {
            numbers += 1;
            Name(numbers)
        };
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.phase = Phase::Doing(step);
        let work = match (step, &job.target) {
            (Step::Claim, Target::Run { run, .. }) => {
                job.renews_at_ms = now_ms + lease_ms / 3;
                Work::Claim { job: id, run: run.clone() }
            }
            (Step::Stage, _) => {
                // Whether what was staged or put under the last names arrived is not known: they are burnt (B10).
                for wanted in &mut job.wanted {
                    wanted.name = name();
                }
                Work::Stage { job: id, objects: job.wanted.iter().map(|wanted| (wanted.key, wanted.name)).collect() }
            }
            (Step::Quarantine, _) => {
                let name = name();
                job.quarantine = Some(name);
                Work::Quarantine { job: id, name, sessions: job.unreadable.clone() }
            }
            (Step::Publish, Target::Run { .. }) => {
                Work::Publish { job: id, results: job.results.clone(), quarantine: job.quarantine }
            }
            (Step::LookUp, Target::Run { .. }) => {
                Work::LookUp { job: id, results: job.results.clone(), quarantine: job.quarantine }
            }
            (Step::FindParts, Target::Session(key)) => Work::FindParts { job: id, key: *key },
            (Step::MarkFinal, Target::Session(key)) => Work::MarkFinal { job: id, key: *key, parts: job.parts.clone() },
            (Step::Publish | Step::LookUp, Target::Session(key)) => {
                let (key, parts) = (*key, job.parts.clone());
                match job.results.first() {
                    Some((_, name)) if step == Step::Publish => Work::PublishFinal { job: id, key, name: *name, parts },
                    Some((_, name)) => Work::LookUpFinal { job: id, key, name: *name, parts },
                    None => return self.end(id, End::Nothing),
                }
            }
            (Step::Open, Target::Run { .. }) => Work::Open(id),
            // No step of such a job.
            (Step::Claim | Step::Open, Target::Session(_))
            | (Step::FindParts | Step::MarkFinal, Target::Run { .. }) => {
                return self.end(id, End::Nothing);
            }
        };
        self.next_number = numbers;
        self.begin(TaskKind::Step(id), work);
    }

    fn stepped(&mut self, now_ms: u64, id: JobId, answer: Answer) {
        let lease_ms = self.config.lease_ms;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Phase::Doing(step) = job.phase else { return };
        match (step, answer) {
            (Step::Claim, Answer::Claimed(true)) if !self.stopping => self.take_step(now_ms, id, Step::Open),
            (Step::Claim, Answer::Claimed(true)) => self.end(id, End::GivenUp),
            (Step::Claim, Answer::Claimed(false)) => self.end(id, End::Nothing),
            // It may be claimed by now; trying again would find it so.
            (Step::Claim, _) => self.end(id, End::Failed),
            (Step::Open, Answer::Opened(opened)) => {
                job.has_unreadable = opened.has_unreadable;
                job.bytes += opened.footers_bytes;
                let wanted = |(key, bytes)| Staged { key, name: Name(0), bytes };
                job.wanted = opened.sessions.into_iter().map(wanted).collect();
                self.stage(now_ms, id);
            }
            (Step::Stage, Answer::Staged(mut live)) => {
                live.sort_unstable();
                let wanted = std::mem::take(&mut job.wanted);
                job.ready = wanted.into_iter().filter(|wanted| live.binary_search(&wanted.key).is_ok()).collect();
                job.phase = Phase::Merging;
                if !job.is_run() {
                    job.renews_at_ms = now_ms + lease_ms / 3;
                }
            }
            (Step::Quarantine, Answer::Done) => self.take_step(now_ms, id, Step::Publish),
            (Step::Publish, Answer::Published(outcome)) => match outcome {
                Published::Committed => self.end(id, End::Done),
                Published::Lost => self.end(id, End::Lost),
                Published::Failed => self.retry(now_ms, id, Step::Publish),
                Published::Unknown => self.take_step(now_ms, id, Step::LookUp),
            },
            // Nobody said that it did not commit.
            (Step::Publish, _) => self.take_step(now_ms, id, Step::LookUp),
            (Step::LookUp, Answer::LookedUp(standing)) => match standing {
                Standing::Committed => self.end(id, End::Done),
                Standing::Open => self.retry(now_ms, id, Step::Publish),
                Standing::Lost => self.end(id, End::Lost),
            },
            (Step::FindParts, Answer::Parts(found)) => self.found_parts(now_ms, id, found),
            (Step::MarkFinal, Answer::Marked(is_marked)) => {
                self.end(id, if is_marked { End::Done } else { End::Lost });
            }
            (step, _) => self.retry(now_ms, id, step),
        }
    }

    fn found_parts(&mut self, now_ms: u64, id: JobId, found: Parts) {
        let footers_bytes_max = self.config.footers_bytes_max;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let Target::Session(key) = job.target else { return };
        // A run brings the rest of it.
        if found.may_be_shared || found.parts.is_empty() {
            return self.end(id, End::Nothing);
        }
        let footers: u64 = found.parts.iter().map(|(_, bytes)| bytes).sum();
        job.parts = found.parts.iter().map(|(part, _)| *part).collect();
        if found.parts.len() == 1 || footers > footers_bytes_max {
            return self.take_step(now_ms, id, Step::MarkFinal);
        }
        job.wanted = vec![Staged { key, name: Name(0), bytes: found.merge_bytes }];
        self.take_step(now_ms, id, Step::Stage);
    }

    fn stage(&mut self, now_ms: u64, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if job.wanted.is_empty() {
            job.phase = Phase::Merging;
        } else {
            self.take_step(now_ms, id, Step::Stage);
        }
    }

    fn merged(&mut self, id: JobId, merge: Staged, answer: &Answer) {
        self.merging -= 1;
        self.merging_bytes -= merge.bytes;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.merging -= 1;
        match answer {
            Answer::Merged(Merged::Stored) => job.results.push((merge.key, merge.name)),
            Answer::Merged(Merged::Partly) => {
                job.results.push((merge.key, merge.name));
                job.unreadable.push(merge.key);
            }
            Answer::Merged(Merged::Unreadable) => job.unreadable.push(merge.key),
            Answer::Merged(Merged::Deleted) => {}
            // Staged anew with all others that failed.
            _ => job.wanted.push(merge),
        }
    }

    fn renewed(&mut self, now_ms: u64, id: JobId, sent_ms: u64, answer: &Answer) {
        let Config { lease_ms, retry_min_ms, .. } = self.config;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.is_renewing = false;
        match answer {
            Answer::Claimed(true) => job.renews_at_ms = sent_ms + lease_ms / 3,
            // A swap on its way ends the claim as well.
            Answer::Claimed(false) if job.renews() => self.end(id, End::Lost),
            _ => job.renews_at_ms = now_ms + retry_min_ms.max(lease_ms / 9),
        }
    }

    /// Tries a step again after a wait, unless it failed too often.
    fn retry(&mut self, now_ms: u64, id: JobId, next: Step) {
        let config = self.config;
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.failures += 1;
        if job.failures >= FAILURES_MAX {
            return self.end(id, End::Failed);
        }
        if self.stopping {
            return self.end(id, End::GivenUp);
        }
        let wait = backoff::wait_ms(config.retry_min_ms, config.retry_max_ms, job.failures - 1);
        job.phase = Phase::Waiting { until_ms: now_ms + wait, next };
    }

    fn end(&mut self, id: JobId, end: End) {
        if let Some(job) = self.jobs.get_mut(&id) {
            // What was not begun has no claim on memory.
            job.ready.clear();
            job.phase = Phase::Ended(end);
        }
    }

    fn give_up(&mut self) {
        self.stopping = true;
        self.tasks.clear();
        (self.merging, self.merging_bytes, self.is_looking) = (0, 0, false);
        for job in self.jobs.values_mut() {
            (job.tasks, job.merging) = (0, 0);
            job.phase = Phase::Ended(End::GivenUp);
        }
    }

    /// Everything that follows from time and from what was just taken in.
    fn advance(&mut self, now_ms: u64) {
        let jobs: Vec<JobId> = self.jobs.keys().copied().collect();
        for id in jobs {
            self.advance_job(now_ms, id);
        }
        if !self.stopping {
            self.begin_finals(now_ms);
        }
        self.begin_merges();
        if !self.is_looking && !self.stopping && self.look_at_ms <= now_ms {
            self.is_looking = true;
            self.looks_again = false;
            self.finished.clear();
            let waiting = self.sessions.len().min(SESSIONS_WAITING_MAX);
            let sessions_max = self.config.finals_per_look + waiting;
            self.begin(TaskKind::Look, Work::Look { sessions_max });
        }
        if self.stopping && !self.stopped && self.jobs.is_empty() && self.tasks.is_empty() {
            self.stopped = true;
            self.effects.push_back(Effect::Stopped);
        }
    }

    fn advance_job(&mut self, now_ms: u64, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        match job.phase {
            Phase::Waiting { .. } if self.stopping => self.end(id, End::GivenUp),
            Phase::Waiting { until_ms, next } if until_ms <= now_ms => self.take_step(now_ms, id, next),
            Phase::Merging if job.ready.is_empty() && job.merging == 0 => self.merged_all(now_ms, id),
            _ => {}
        }
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if let Phase::Ended(end) = job.phase {
            if job.tasks == 0 {
                self.close(now_ms, id, end);
            }
            return;
        }
        if job.renews() && !job.is_renewing && job.renews_at_ms <= now_ms {
            job.is_renewing = true;
            self.begin(TaskKind::Renew { job: id, sent_ms: now_ms }, Work::Renew(id));
        }
    }

    /// No merge of the job is to begin or under way.
    fn merged_all(&mut self, now_ms: u64, id: JobId) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        if !job.wanted.is_empty() {
            return self.retry(now_ms, id, Step::Stage);
        }
        // Sessions are locked in id order.
        job.results.sort_unstable();
        job.unreadable.sort_unstable();
        match &job.target {
            Target::Run { .. } if job.has_unreadable || !job.unreadable.is_empty() => {
                self.take_step(now_ms, id, Step::Quarantine);
            }
            Target::Run { .. } => self.take_step(now_ms, id, Step::Publish),
            Target::Session(_) if !job.results.is_empty() => self.take_step(now_ms, id, Step::Publish),
            // Trying again would change nothing.
            Target::Session(_) if !job.unreadable.is_empty() => self.take_step(now_ms, id, Step::MarkFinal),
            // Deleted.
            Target::Session(_) => self.end(id, End::Nothing),
        }
    }

    /// Those of runs first, in the order of the jobs, and none before one that waits for room: it would wait for ever.
    fn begin_merges(&mut self) {
        let mut jobs: Vec<JobId> = self.jobs.keys().copied().collect();
        jobs.sort_by_key(|id| self.jobs.get(id).is_some_and(|job| !job.is_run()));
        for id in jobs {
            loop {
                let (held, at_once) = (self.bytes(), self.merging);
                let Some(job) = self.jobs.get_mut(&id) else { break };
                let Some(merge) = job.ready.front().copied() else { break };
                if self.run_waits && !job.is_run() {
                    break;
                }
                // A run that is held gets on somehow; what else is beyond the budget is alone.
                let is_first = at_once == 0 && (job.is_run() || held == 0);
                let has_room = is_first || held + merge.bytes <= self.config.bytes_max;
                if at_once >= self.config.merges_at_once || !has_room {
                    return;
                }
                job.ready.pop_front();
                job.merging += 1;
                let (key, name) = (merge.key, merge.name);
                let work = match &job.target {
                    Target::Run { .. } => Work::Merge { job: id, key, name },
                    Target::Session(_) => Work::MergeParts { job: id, key, name, parts: job.parts.clone() },
                };
                self.merging += 1;
                self.merging_bytes += merge.bytes;
                self.begin(TaskKind::Merge { job: id, merge }, work);
            }
        }
    }

    fn close(&mut self, now_ms: u64, id: JobId, end: End) {
        let Some(job) = self.jobs.remove(&id) else { return };
        match &job.target {
            Target::Run { partition, .. } => {
                if end == End::Nothing {
                    // Somebody else was faster. By the next look it is seen, and another partition's turn.
                    let soon = self.wait(now_ms, 0, partition.unsigned_abs()).until_ms;
                    self.look_at_ms = self.look_at_ms.min(soon);
                }
                if end == End::Done {
                    self.look_again(now_ms);
                    self.partitions.remove(partition);
                    // They waited for what this run brought.
                    for (key, _) in &job.results {
                        self.sessions.remove(key);
                    }
                } else if end != End::Nothing {
                    let failures = self.partitions.get(partition).map_or(0, |wait| wait.failures);
                    let wait = self.wait(now_ms, failures, partition.unsigned_abs());
                    self.partitions.insert(*partition, wait);
                }
            }
            Target::Session(key) => match end {
                End::Done => {
                    self.sessions.remove(key);
                    self.finished.insert(*key);
                    if self.over.is_empty() {
                        self.look_again(now_ms);
                    }
                }
                End::Nothing => {
                    let until_ms = now_ms + self.config.interval_ms;
                    self.sessions.insert(*key, Wait { until_ms, failures: 0 });
                }
                _ => {
                    let failures = self.sessions.get(key).map_or(0, |wait| wait.failures);
                    let wait = self.wait(now_ms, failures, key.session.0.as_fields().0);
                    self.sessions.insert(*key, wait);
                }
            },
        }
        if !matches!(end, End::Done | End::Nothing) {
            self.begin(TaskKind::Release, Work::Release(id));
        }
        self.effects.push_back(Effect::Close { job: id, end });
    }

    fn look_again(&mut self, now_ms: u64) {
        self.look_at_ms = now_ms;
        self.looks_again = true;
    }

    /// The waits double until something was done, and are spread: two compactors that want the same must not do so in step.
    fn wait(&self, now_ms: u64, failures: u32, what: u32) -> Wait {
        let Config { retry_min_ms, retry_max_ms, spread_seed, .. } = self.config;
        let wait = backoff::wait_ms(retry_min_ms, retry_max_ms, failures);
        let spread = backoff::spread(spread_seed, what, failures) % (wait + 1);
        Wait { until_ms: now_ms + wait + spread, failures: failures.saturating_add(1) }
    }
}

#[cfg(test)]
mod tests;
