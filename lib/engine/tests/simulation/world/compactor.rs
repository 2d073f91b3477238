//! A compactor's driver, without bytes: carries out what the machine wants against the models, and tells it what came of it.
//! The merge is the real plan over real footers.

use engine::batching::Published;
use engine::compaction::{
    Answer, Candidate, Config, Effect, Found, Input, JobId, Machine, Merged, Name, Opened, Parts, SharedRow, Standing,
    TaskId, Work,
};
use engine::merge::{Location, Plan, SharedSource};
use schemas::session_object::{Footer, Frame, Segment};
use schemas::shared_object::{BatchEntry, Chunk, EMPTY_FRAME_BYTES};
use schemas::{BatchFacts, ObjectId};

use super::*;
use crate::store::{ObjectRow, Owner};

/// Of a frame that holds something.
const FRAME_BYTES: u32 = 100;
/// Of an opened footer.
const FOOTER_BYTES: u64 = 50;
/// Of a batch in a session object.
const BATCH_BYTES: u64 = 100;

/// An object whose bytes are held, and the partition of a shared one.
pub(crate) type Source = (ObjectNumber, i32, Rc<Content>);

/// An object in quarantine: whose, unless nobody's.
pub(crate) type Aside = (Option<SessionKey>, ObjectNumber, Rc<Content>);

/// A merged object, before it is uploaded.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    key: SessionKey,
    number: ObjectNumber,
    content: Rc<Content>,
    ended: bool,
}

/// What a swap wants.
#[derive(Debug, Clone)]
pub(crate) struct Swap {
    owner: Owner,
    run: Vec<ObjectNumber>,
    results: Vec<Outcome>,
    quarantine: Vec<Aside>,
    /// Of a final swap: the parts, and when they were found.
    parts: Option<(Vec<ObjectNumber>, u64)>,
}

impl Swap {
    /// Sessions whose chunks go into quarantine.
    fn aside(&self) -> impl Iterator<Item = SessionKey> {
        self.quarantine.iter().filter_map(|(key, ..)| *key)
    }
}

/// What is under way between a compactor and its surroundings.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    Look {
        sessions_max: usize,
    },
    Claim {
        owner: Owner,
        run: Vec<ObjectNumber>,
    },
    Renew {
        owner: Owner,
        claimed: Vec<ObjectNumber>,
        staged: Vec<ObjectNumber>,
    },
    Release {
        owner: Owner,
        claimed: Vec<ObjectNumber>,
    },
    Open {
        job: JobId,
        run: Vec<ObjectNumber>,
    },
    Stage {
        objects: Vec<(SessionKey, ObjectNumber)>,
        /// Of a session that is over: its parts.
        claim: Option<(Owner, Vec<ObjectNumber>)>,
    },
    Put {
        number: ObjectNumber,
        attempt: u64,
        content: Rc<Content>,
        /// Something of the session is corrupt, and not in it.
        is_partly: bool,
    },
    PutAside {
        job: JobId,
        objects: Vec<(Aside, u64)>,
        partition: i32,
    },
    Swap(Box<Swap>),
    LookUp(Box<Swap>),
    FindParts {
        job: JobId,
        key: SessionKey,
    },
    MarkFinal {
        key: SessionKey,
        parts: Vec<ObjectNumber>,
        found_step: u64,
    },
    /// Nothing outside was asked.
    Computed(Answer),
}

/// What a process holds of a job.
#[derive(Debug, Default)]
struct Held {
    run: Vec<ObjectNumber>,
    /// Of a session that is over.
    parts: Vec<ObjectNumber>,
    staged: Vec<ObjectNumber>,
    /// What of a run is set aside: objects and whose chunks in them.
    aside: BTreeSet<(ObjectNumber, SessionKey)>,
    sources: Vec<Source>,
    outcomes: BTreeMap<ObjectNumber, Outcome>,
    quarantine: Vec<Aside>,
    /// The checker's.
    found_step: u64,
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) incarnation: u64,
    is_alive: bool,
    is_stopping: bool,
    pub(crate) paused_until: Option<u64>,
    config: Config,
    machine: Machine,
    skew_ms: u64,
    /// The number of the tick that counts.
    pub(crate) tick: u64,
    names: BTreeMap<Name, ObjectNumber>,
    jobs: BTreeMap<JobId, Held>,
    /// Names by session, for the mutant that keeps them.
    kept: BTreeMap<SessionKey, ObjectNumber>,
}

impl Node {
    pub(crate) fn new(config: Config, number: usize, incarnation: u64) -> Self {
        let spread_seed = number as u64 * 1_000 + incarnation;
        Self {
            incarnation,
            is_alive: true,
            is_stopping: false,
            paused_until: None,
            config,
            machine: Machine::new(Config { spread_seed, ..config }),
            skew_ms: 0,
            tick: 0,
            names: BTreeMap::new(),
            jobs: BTreeMap::new(),
            kept: BTreeMap::new(),
        }
    }
}

/// The bounds of a run's compactors.
pub(crate) fn config(rng: &mut Rng) -> Config {
    let runs = compaction::RunConfig {
        run_bytes_min: rng.u64(500..6_000),
        run_age_ms: rng.u64(150..800),
        run_bytes_max: rng.u64(3_000..10_000),
        run_objects_max: rng.usize(3..10),
    };
    Config {
        runs,
        interval_ms: rng.u64(60..250),
        lease_ms: rng.u64(100..1_500),
        runs_at_once: rng.usize(1..4),
        merges_at_once: rng.usize(1..6),
        bytes_max: rng.u64(500..20_000),
        footers_bytes_max: rng.u64(500..4_000),
        ..COMPACTION
    }
}

fn number_of(id: ObjectId) -> ObjectNumber {
    id.0.as_u128() as ObjectNumber
}

fn id_of(number: ObjectNumber) -> ObjectId {
    ObjectId(Uuid::from_u128(u128::from(number)))
}

/// The plan of a session over its own objects, in order, and shared ones.
pub(crate) fn plan_of(key: SessionKey, sources: &[Source]) -> Plan {
    let (mut merged, mut shared) = (Vec::new(), Vec::new());
    for (object, (_, partition, content)) in sources.iter().enumerate() {
        merged.extend(content.footer.as_ref().map(|footer| (object, footer)));
        for (number, chunk) in content.chunks.iter().enumerate().filter(|(_, chunk)| chunk.key == key) {
            shared.push(SharedSource { object, partition: *partition, number, chunk });
        }
    }
    Plan::build(&merged, &shared)
}

/// What a plan finds in these, in order.
pub(crate) fn entries_of(log: &Log, plan: &Plan, sources: &[Source]) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (stream, batch) in plan.streams.iter().flat_map(|stream| stream.batches.iter().map(move |b| (stream, b))) {
        let of_place = |entry: &&Entry| {
            let place = log.batch(entry.uid).map(|(_, place, _)| (place.stream(), place.seq()));
            place == Some((stream.stream, batch.seq))
        };
        let found = match &batch.location {
            Location::Shared { object, chunk, frame, .. } => {
                let (_, _, content) = &sources[*object];
                let uid = content.uids[*chunk][*frame];
                content.entries.iter().find(|entry| entry.uid == uid)
            }
            Location::Session { object, pieces } if !pieces.is_empty() => {
                sources[*object].2.entries.iter().find(of_place)
            }
            Location::Session { .. } => None,
        };
        entries.extend(found.map(|entry| Entry { stored: Stored::Chunked, ..*entry }));
    }
    entries
}

impl World {
    pub(super) fn compactor(&self, process: Process) -> Option<&Node> {
        let node = self.compactors.get(process.0.checked_sub(self.nodes.len())?)?;
        (node.is_alive && node.incarnation == process.1).then_some(node)
    }

    fn compactor_mut(&mut self, process: Process) -> Option<&mut Node> {
        let node = self.compactors.get_mut(process.0.checked_sub(self.nodes.len())?)?;
        (node.is_alive && node.incarnation == process.1).then_some(node)
    }

    fn job_mut(&mut self, process: Process, job: JobId) -> Option<&mut Held> {
        self.compactor_mut(process)?.jobs.get_mut(&job)
    }

    fn owns(&self, number: &ObjectNumber, owner: Owner) -> bool {
        let row = self.index.objects.get(number).filter(|row| row.state == ObjectState::Live);
        row.and_then(|row| row.lease).is_some_and(|(other, _)| other == owner)
    }

    // Processes come and go.

    pub(super) fn crash_compactor(&mut self, number: usize) {
        let place = number - self.nodes.len();
        if std::mem::replace(&mut self.compactors[place].is_alive, false) {
            self.happened.compactor_crashes += 1;
            let wait = self.rng.u64(1..1_000);
            self.after(wait, Event::Restart(number));
        }
    }

    pub(super) fn restart_compactor(&mut self, number: usize) {
        let place = number - self.nodes.len();
        let node = &mut self.compactors[place];
        if !node.is_alive {
            *node = Node::new(node.config, number, node.incarnation + 1);
            let process = (number, node.incarnation);
            self.after(1, Event::CompactorTick { process, tick: 0 });
        }
    }

    pub(super) fn pause_compactor(&mut self, number: usize, ms: u64) {
        let until = self.now_ms + ms;
        let place = number - self.nodes.len();
        let node = &mut self.compactors[place];
        if node.is_alive && node.paused_until.is_none_or(|before| before <= self.now_ms) {
            node.paused_until = Some(until);
        }
    }

    pub(super) fn jump_compactor(&mut self, number: usize, ms: u64) -> Result<(), Violation> {
        let is_paused = self.paused_until(number).is_some();
        let place = number - self.nodes.len();
        let node = &mut self.compactors[place];
        node.skew_ms += ms;
        let process = (number, node.incarnation);
        if node.is_alive && !is_paused { self.compactor_input(process, Input::Tick) } else { Ok(()) }
    }

    pub(super) fn shut_down_compactor(&mut self, number: usize) -> Result<(), Violation> {
        let is_paused = self.paused_until(number).is_some();
        let place = number - self.nodes.len();
        let node = &mut self.compactors[place];
        if !node.is_alive || node.is_stopping || is_paused {
            return Ok(());
        }
        node.is_stopping = true;
        let process = (number, node.incarnation);
        let grace = self.rng.u64(1..600);
        self.after(grace, Event::CompactorGraceOver(process));
        self.compactor_input(process, Input::Shutdown)
    }

    /// Hands over what happened, and carries out what follows.
    pub(super) fn compactor_input(&mut self, process: Process, input: Input) -> Result<(), Violation> {
        let world_ms = self.now_ms;
        let Some(node) = self.compactor_mut(process) else { return Ok(()) };
        let now_ms = world_ms + node.skew_ms;
        node.machine.handle(now_ms, input);
        while let Some(effect) = self.compactor_mut(process).and_then(|node| node.machine.poll_effect()) {
            match effect {
                Effect::Begin { task, work } => {
                    let op = Box::new(self.op_of(process, work)?);
                    let wait = self.latency();
                    self.after(wait, Event::Compact { process, task, op, given_up: false, waited_ms: 0 });
                }
                Effect::Close { job, .. } => {
                    if let Some(node) = self.compactor_mut(process) {
                        node.jobs.remove(&job);
                    }
                }
                Effect::Stopped => {
                    self.happened.compactor_shutdowns += 1;
                    if let Some(node) = self.compactor_mut(process) {
                        node.is_alive = false;
                    }
                    let wait = self.rng.u64(1..300);
                    self.after(wait, Event::Restart(process.0));
                }
            }
        }
        let Some(node) = self.compactor_mut(process) else { return Ok(()) };
        node.tick += 1;
        if let Some(at) = node.machine.poll_timeout() {
            let (wait, tick) = (at.saturating_sub(now_ms), node.tick);
            self.after(wait, Event::CompactorTick { process, tick });
        }
        Ok(())
    }

    /// What work comes to, with what the process holds for it.
    fn op_of(&mut self, process: Process, work: Work) -> Result<Op, Violation> {
        let nothing = Op::Computed(Answer::Failed);
        Ok(match work {
            Work::Look { sessions_max } => Op::Look { sessions_max },
            Work::Claim { job, run } => {
                let run: Vec<ObjectNumber> = run.into_iter().map(number_of).collect();
                if let Some(node) = self.compactor_mut(process) {
                    node.jobs.insert(job, Held { run: run.clone(), ..Held::default() });
                }
                Op::Claim { owner: (process, job), run }
            }
            Work::Renew(job) => match self.job_mut(process, job) {
                Some(held) => {
                    let claimed = held.run.iter().chain(&held.parts).copied().collect();
                    Op::Renew { owner: (process, job), claimed, staged: held.staged.clone() }
                }
                None => nothing,
            },
            Work::Release(job) => match self.job_mut(process, job) {
                Some(held) => Op::Release {
                    owner: (process, job),
                    claimed: held.run.iter().chain(&held.parts).copied().collect(),
                },
                None => nothing,
            },
            Work::Open(job) => match self.job_mut(process, job) {
                Some(held) => Op::Open { job, run: held.run.clone() },
                None => nothing,
            },
            Work::Stage { job, objects } => {
                let mut staged = Vec::new();
                for (key, name) in objects {
                    self.next_object += 1;
                    let (fresh, keeps_names) = (self.next_object, self.mutant == Some(Mutant::MergeNameReuse));
                    let Some(node) = self.compactor_mut(process) else { continue };
                    let number = if keeps_names { *node.kept.entry(key).or_insert(fresh) } else { fresh };
                    if node.names.insert(name, number).is_some() {
                        return Err("B10: a name was given out twice".into());
                    }
                    staged.push((key, number));
                }
                let Some(held) = self.job_mut(process, job) else { return Ok(nothing) };
                held.staged.extend(staged.iter().map(|(_, number)| *number));
                let claim = held.run.is_empty().then(|| ((process, job), held.parts.clone()));
                Op::Stage { objects: staged, claim }
            }
            Work::Merge { job, key, name } => {
                let sources = self.job_mut(process, job).map(|held| held.sources.clone()).unwrap_or_default();
                let own = |content: &Rc<Content>| content.chunks.iter().any(|chunk| chunk.key == key);
                let sources = sources.into_iter().filter(|(_, _, content)| own(content)).collect();
                self.merge(process, job, key, name, sources)?
            }
            Work::MergeParts { job, key, name, parts } => {
                if self.job_mut(process, job).is_none() {
                    return Ok(nothing);
                }
                let mut sources = Vec::new();
                for number in parts.into_iter().map(number_of) {
                    // Gone, since the session is finished or deleted by now.
                    let Some(content) = self.bucket.get(number) else { return Ok(nothing) };
                    sources.push((number, 0, Rc::clone(content)));
                }
                self.merge(process, job, key, name, sources)?
            }
            Work::Quarantine { job, sessions, .. } => {
                let drops = self.mutant == Some(Mutant::UnreadableDropped);
                let Some(held) = self.job_mut(process, job) else { return Ok(nothing) };
                let mut by_owner: BTreeMap<Option<SessionKey>, Vec<Entry>> = BTreeMap::new();
                for (source, _, content) in &held.sources {
                    for entry in &content.entries {
                        let is_aside =
                            |key| sessions.binary_search(&key).is_ok() && held.aside.contains(&(*source, key));
                        let owner = match entry.session {
                            _ if entry.stored == Stored::Quarantined => None,
                            Some(key) if is_aside(key) && !drops => Some(key),
                            _ => continue,
                        };
                        by_owner.entry(owner).or_default().push(Entry { stored: Stored::Quarantined, ..*entry });
                    }
                }
                let partition = held.sources.first().map_or(0, |(_, partition, _)| *partition);
                let mut objects = Vec::new();
                for (owner, entries) in by_owner {
                    self.next_object += 1;
                    self.next_attempt += 1;
                    let content = Rc::new(Content { entries, ..Content::default() });
                    objects.push(((owner, self.next_object, content), self.next_attempt));
                }
                if let Some(held) = self.job_mut(process, job) {
                    held.quarantine = objects.iter().map(|(aside, _)| aside.clone()).collect();
                }
                Op::PutAside { job, objects, partition }
            }
            Work::Publish { job, results, quarantine } => {
                Op::Swap(Box::new(self.swap(process, job, &results, quarantine, None)))
            }
            Work::LookUp { job, results, quarantine } => {
                Op::LookUp(Box::new(self.swap(process, job, &results, quarantine, None)))
            }
            Work::FindParts { job, key } => {
                if let Some(node) = self.compactor_mut(process) {
                    node.jobs.insert(job, Held::default());
                }
                Op::FindParts { job, key }
            }
            Work::PublishFinal { job, key, name, parts } => {
                Op::Swap(Box::new(self.swap(process, job, &[(key, name)], None, Some(&parts))))
            }
            Work::LookUpFinal { job, key, name, parts } => {
                Op::LookUp(Box::new(self.swap(process, job, &[(key, name)], None, Some(&parts))))
            }
            Work::MarkFinal { job, key, parts } => {
                let found_step = self.job_mut(process, job).map_or(0, |held| held.found_step);
                Op::MarkFinal { key, parts: parts.into_iter().map(number_of).collect(), found_step }
            }
        })
    }

    fn swap(
        &mut self,
        process: Process,
        job: JobId,
        results: &[(SessionKey, Name)],
        quarantine: Option<Name>,
        parts: Option<&[ObjectId]>,
    ) -> Swap {
        let mut swap =
            Swap { owner: (process, job), run: Vec::new(), results: Vec::new(), quarantine: Vec::new(), parts: None };
        let Some(node) = self.compactor_mut(process) else { return swap };
        let Some(held) = node.jobs.get(&job) else { return swap };
        swap.run.clone_from(&held.run);
        let number = |(_, name): &(SessionKey, Name)| node.names.get(name);
        let outcomes = results.iter().filter_map(|result| held.outcomes.get(number(result)?));
        swap.results = outcomes.cloned().collect();
        if quarantine.is_some() {
            swap.quarantine.clone_from(&held.quarantine);
        }
        let numbers = |parts: &[ObjectId]| parts.iter().copied().map(number_of).collect();
        swap.parts = parts.map(|parts| (numbers(parts), held.found_step));
        swap
    }

    /// The content of a shared object: chunks by session and stream.
    pub(super) fn shared_content(&self, entries: Vec<Entry>) -> Content {
        let mut by_stream: BTreeMap<(SessionKey, u32), (Vec<BatchEntry>, Vec<u64>)> = BTreeMap::new();
        for entry in entries.iter().filter(|entry| entry.stored != Stored::Quarantined) {
            let Some((key, place, content)) = self.log.batch(entry.uid) else { continue };
            let facts = BatchFacts { events: 1, raw_bytes: 1, content_hash: content, ..BatchFacts::default() };
            let len = if entry.stored == Stored::Copy { EMPTY_FRAME_BYTES } else { FRAME_BYTES };
            let end = self.ledger.ends.contains(&(key, place));
            let (batches, uids) = by_stream.entry((key, place.stream())).or_default();
            batches.push(BatchEntry { seq: place.seq(), end, offset: entry.offset, len, facts });
            uids.push(entry.uid);
        }
        let mut content = Content { entries, ..Content::default() };
        for ((key, stream), (batches, uids)) in by_stream {
            content.chunks.push(Chunk { key, stream, id: [0; 16], at: 0, batches });
            content.uids.push(uids);
        }
        content
    }

    fn merge(
        &mut self,
        process: Process,
        job: JobId,
        key: SessionKey,
        name: Name,
        mut sources: Vec<Source>,
    ) -> Result<Op, Violation> {
        if !self.opens(process, key)? {
            return Ok(Op::Computed(Answer::Merged(Merged::Deleted)));
        }
        let all: Vec<ObjectNumber> = sources.iter().map(|(number, ..)| *number).collect();
        let is_corrupt = |number: &ObjectNumber| self.corrupt.contains(&(*number, key));
        let sets_all_aside = self.mutant == Some(Mutant::GoodChunksSetAside) && all.iter().any(is_corrupt);
        let is_closed = self.keys.closed.contains(&key);
        let mut aside: Vec<ObjectNumber> =
            all.iter().copied().filter(|number| is_closed || sets_all_aside || is_corrupt(number)).collect();
        let is_run = self.job_mut(process, job).is_some_and(|held| !held.run.is_empty());
        // Parts stay as they are when one of them is corrupt.
        if aside.len() == all.len() || (!is_run && !aside.is_empty()) {
            if let Some(held) = self.job_mut(process, job) {
                held.aside.extend(aside.drain(..).map(|number| (number, key)));
            }
            return Ok(Op::Computed(Answer::Merged(Merged::Unreadable)));
        }
        sources.retain(|(number, ..)| !aside.contains(number));
        if self.mutant == Some(Mutant::MergeKeepsLastCopy) {
            for (_, _, content) in &mut sources {
                let batches = Rc::make_mut(content).chunks.iter_mut().flat_map(|chunk| &mut chunk.batches);
                batches.for_each(|batch| batch.offset = u64::MAX - batch.offset);
            }
        }
        self.next_attempt += 1;
        let attempt = self.next_attempt;
        let log = &self.log;
        let place = self.compactors.get_mut(process.0 - self.nodes.len());
        let Some(node) = place else { return Ok(Op::Computed(Answer::Failed)) };
        let (Some(number), Some(held)) = (node.names.get(&name).copied(), node.jobs.get_mut(&job)) else {
            return Ok(Op::Computed(Answer::Failed));
        };
        let plan = plan_of(key, &sources);
        let entries = entries_of(log, &plan, &sources);
        let places = plan.streams.iter().flat_map(|stream| stream.batches.iter().map(move |b| (stream.stream, b.seq)));
        let segments: Vec<Segment> =
            places.map(|(stream, seq)| Segment { stream, seq, position: 0, events: 1, bytes: 1 }).collect();
        let frame = Frame {
            at: 0,
            len: FRAME_BYTES,
            raw_len: segments.len() as u32,
            ts_min: 0,
            ts_max: 0,
            full_snapshot: false,
            segments,
        };
        let footer = Footer {
            object: id_of(number),
            key,
            chunk: [0; 16],
            frames: vec![frame],
            streams: plan.stream_infos(),
            duplicates: plan.duplicates,
            conflicts: plan.conflicts,
        };
        let content = Rc::new(Content { entries, footer: Some(footer), ..Content::default() });
        let ended = plan.completeness().ended;
        let is_partly = !aside.is_empty();
        held.aside.extend(aside.into_iter().map(|number| (number, key)));
        held.outcomes.insert(number, Outcome { key, number, content: Rc::clone(&content), ended });
        Ok(Op::Put { number, attempt, content, is_partly })
    }

    /// An answer on its way; now and then it comes twice.
    fn compactor_answer(&mut self, process: Process, task: TaskId, answer: Answer) {
        let wait = self.latency();
        if self.chance(self.faults.doubled) {
            self.happened.doubled += 1;
            let later = wait + self.rng.u64(1..400);
            self.after(later, Event::CompactorAnswer { process, task, answer: answer.clone() });
        }
        self.after(wait, Event::CompactorAnswer { process, task, answer });
    }

    fn compactor_failure(&self, op: &Op) -> Answer {
        match op {
            Op::Swap(_) => Answer::Published(Published::Failed),
            Op::Put { .. } if self.mutant == Some(Mutant::FailedMergeTakenAsStored) => Answer::Merged(Merged::Stored),
            _ => Answer::Failed,
        }
    }

    /// Whether an operation waits for a row that a swap has locked.
    fn is_locked(&self, op: &Op) -> bool {
        let index = &self.index;
        let is_object = |number: &ObjectNumber| index.locked_objects.contains(number);
        let is_session = |key: &SessionKey| index.locked_sessions.contains(key);
        match op {
            Op::Renew { claimed, .. } | Op::Release { claimed, .. } => claimed.iter().any(is_object),
            Op::Stage { objects, .. } => objects.iter().any(|(key, _)| is_session(key)),
            Op::PutAside { objects, .. } => {
                objects.iter().any(|((key, ..), _)| key.is_some_and(|key| is_session(&key)))
            }
            Op::MarkFinal { key, .. } => is_session(key),
            Op::Swap(swap) | Op::LookUp(swap) => {
                let parts = swap.parts.iter().flat_map(|(parts, _)| parts);
                let results = swap.results.iter();
                results.clone().any(|result| is_session(&result.key) || is_object(&result.number))
                    || swap.aside().any(|key| is_session(&key))
                    || swap.run.iter().chain(parts).any(is_object)
                    || swap.quarantine.iter().any(|(_, number, _)| is_object(number))
            }
            _ => false,
        }
    }

    /// Work reaches its server; which answers, fails, or does what it was asked for and loses its answer.
    pub(super) fn compact(
        &mut self,
        process: Process,
        task: TaskId,
        op: Box<Op>,
        given_up: bool,
        waited_ms: u64,
    ) -> Result<(), Violation> {
        if let Op::Computed(answer) = *op {
            self.compactor_answer(process, task, answer);
            return Ok(());
        }
        let mut is_lost = given_up;
        if !given_up && waited_ms == 0 {
            if self.chance(self.faults.failing) {
                self.happened.failed += 1;
                if let Op::Put { number, attempt, content, .. } = &*op {
                    match self.rng.u32(0..4) {
                        // Other bytes arrive, which reading back finds.
                        0 | 1 => self.bucket.put(*number, *attempt, Rc::default())?,
                        2 => self.leave_part(*number, Rc::clone(content)),
                        _ => {}
                    }
                }
                let failure = self.compactor_failure(&op);
                self.compactor_answer(process, task, failure);
                return Ok(());
            }
            // A swap has ends of its own.
            if !matches!(*op, Op::Swap(_)) && self.chance(self.faults.answer_lost) {
                let failure = self.compactor_failure(&op);
                self.compactor_answer(process, task, failure);
                if self.rng.bool() {
                    self.happened.done_late += 1;
                    let is_put = matches!(*op, Op::Put { .. } | Op::PutAside { .. });
                    let wait = self.rng.u64(1..if is_put { PUT_LATE_MS_MAX } else { 3_000 });
                    self.after(wait, Event::Compact { process, task, op, given_up: true, waited_ms });
                    return Ok(());
                }
                self.happened.answers_lost += 1;
                is_lost = true;
            }
        }
        if self.is_locked(&op) {
            if waited_ms > LOCK_TIMEOUT_MS {
                let failure = self.compactor_failure(&op);
                self.compactor_answer(process, task, failure);
            } else {
                self.after(5, Event::Compact { process, task, op, given_up: is_lost, waited_ms: waited_ms + 5 });
            }
            return Ok(());
        }
        // A question whose answer nobody hears changes nothing.
        if is_lost && matches!(*op, Op::Look { .. } | Op::Open { .. } | Op::FindParts { .. } | Op::LookUp(_)) {
            return Ok(());
        }
        let answer = self.carry_out_compaction(process, *op)?;
        if !is_lost {
            self.compactor_answer(process, task, answer);
        }
        Ok(())
    }

    fn carry_out_compaction(&mut self, process: Process, op: Op) -> Result<Answer, Violation> {
        Ok(match op {
            Op::Look { sessions_max } => Answer::Looked(self.look(sessions_max)),
            Op::Claim { owner, run } => Answer::Claimed(self.claim(owner, &run)),
            Op::Renew { owner, claimed, staged } => {
                let now_ms = self.database_ms();
                let until = now_ms + self.compaction.lease_ms;
                let is_ours = claimed.iter().all(|number| self.owns(number, owner));
                if is_ours {
                    self.lease(&claimed, Some((owner, until)));
                    for number in staged {
                        let row = self.index.objects.get_mut(&number);
                        if let Some(row) = row.filter(|row| row.state == ObjectState::Staged) {
                            row.staged_ms = now_ms;
                        }
                    }
                } else {
                    self.happened.leases_lost += 1;
                }
                Answer::Claimed(is_ours)
            }
            Op::Release { owner, claimed } => {
                let ours = claimed.into_iter().filter(|number| self.owns(number, owner));
                let ours: Vec<ObjectNumber> = ours.collect();
                self.lease(&ours, None);
                Answer::Done
            }
            Op::Open { job, run } => self.open(process, job, &run),
            Op::Stage { objects, claim } => {
                if claim.is_some_and(|(owner, parts)| !self.claim(owner, &parts)) {
                    return Ok(Answer::Staged(Vec::new()));
                }
                self.stage_merged(&objects)?
            }
            Op::Put { number, attempt, content, is_partly } => self.put_merged(number, attempt, content, is_partly)?,
            Op::PutAside { job, objects, partition } => self.put_aside(process, job, objects, partition)?,
            Op::Swap(swap) => Answer::Published(self.apply_swap(swap)?),
            Op::LookUp(swap) => Answer::LookedUp(self.look_up_swap(&swap)),
            Op::FindParts { job, key } => {
                let found_step = self.index.step;
                let is_shared = self.is_shared(key, u64::MAX) && self.mutant != Some(Mutant::FinishesWhileShared);
                let parts = self.index.parts(key).into_iter();
                let parts: Vec<(ObjectId, u64)> =
                    parts.map(|number| (id_of(number), self.index.objects[&number].bytes)).collect();
                if let Some(held) = self.job_mut(process, job) {
                    held.found_step = found_step;
                    held.parts = parts.iter().map(|(part, _)| number_of(*part)).collect();
                }
                let merge_bytes = parts.iter().map(|(_, bytes)| bytes).sum();
                Answer::Parts(Parts { may_be_shared: is_shared, parts, merge_bytes })
            }
            Op::MarkFinal { key, parts, found_step } => Answer::Marked(self.mark_final(key, &parts, found_step)?),
            Op::Computed(answer) => answer,
        })
    }

    fn lease(&mut self, run: &[ObjectNumber], lease: Option<(Owner, u64)>) {
        for number in run {
            self.index.objects.entry(*number).and_modify(|row| row.lease = lease);
        }
    }

    fn look(&self, sessions_max: usize) -> Found {
        let now_ms = self.database_ms();
        let live = self.index.objects.iter().filter(|(_, row)| row.is_live(ObjectKind::Shared));
        let is_leased = |row: &ObjectRow| row.lease.is_some_and(|(_, until)| until > now_ms);
        let live = live.filter(|(_, row)| self.mutant != Some(Mutant::RunSkipsLeased) || !is_leased(row));
        let mut rows: Vec<(u64, SharedRow)> = live
            .map(|(number, row)| {
                let age_ms = now_ms.saturating_sub(row.live_ms);
                let candidate = Candidate { id: id_of(*number), bytes: row.bytes, age_ms };
                (row.first, SharedRow { partition: row.partition, candidate, leased: is_leased(row) })
            })
            .collect();
        rows.sort_by_key(|(first, row)| (row.partition, *first));
        let live = self.index.objects.values().filter(|row| row.state == ObjectState::Live);
        let with_parts = live.filter_map(|row| match row.kind {
            ObjectKind::Session(key) => Some(key),
            _ => None,
        });
        let with_parts: BTreeSet<SessionKey> = with_parts.collect();
        let mut over: Vec<(u64, SessionKey)> = with_parts
            .into_iter()
            .filter_map(|key| {
                let row = self.index.sessions.get(&key)?;
                let is_over = row.end_seen || row.activity_ms + SILENCE_MS < now_ms;
                (is_over && !row.is_final && row.deleted_step.is_none()).then_some((row.activity_ms, key))
            })
            .collect();
        over.sort_unstable();
        let over = over.into_iter().take(sessions_max).map(|(_, key)| key).collect();
        Found { shared: rows.into_iter().map(|(_, row)| row).collect(), over }
    }

    fn claim(&mut self, owner: Owner, run: &[ObjectNumber]) -> bool {
        let now_ms = self.database_ms();
        let for_ever = self.mutant == Some(Mutant::LeasesLastForEver);
        let is_free = |number: &ObjectNumber| {
            let Some(row) = self.index.objects.get(number) else { return false };
            let is_leased = row.lease.is_some_and(|(other, until)| other != owner && (until > now_ms || for_ever));
            row.state == ObjectState::Live && !is_leased && !self.index.locked_objects.contains(number)
        };
        let is_claimed = run.iter().all(is_free);
        if is_claimed {
            self.happened.claims += 1;
            self.lease(run, Some((owner, now_ms + self.compaction.lease_ms)));
        } else {
            self.happened.claims_lost += 1;
        }
        is_claimed
    }

    fn open(&mut self, process: Process, job: JobId, run: &[ObjectNumber]) -> Answer {
        let mut sources = Vec::new();
        for number in run {
            // Gone: somebody else swapped the run long ago.
            let (Some(content), Some(row)) = (self.bucket.get(*number), self.index.objects.get(number)) else {
                return Answer::Failed;
            };
            sources.push((*number, row.partition, Rc::clone(content)));
        }
        let mut sessions: BTreeMap<SessionKey, u64> = BTreeMap::new();
        for chunk in sources.iter().flat_map(|(_, _, content)| &content.chunks) {
            *sessions.entry(chunk.key).or_default() += chunk.len();
        }
        let mut entries = sources.iter().flat_map(|(_, _, content)| &content.entries);
        let has_unreadable = entries.any(|entry| entry.stored == Stored::Quarantined);
        if let Some(held) = self.job_mut(process, job) {
            held.sources = sources;
        }
        let footers_bytes = run.len() as u64 * FOOTER_BYTES;
        Answer::Opened(Opened { sessions: sessions.into_iter().collect(), has_unreadable, footers_bytes })
    }

    fn stage_merged(&mut self, objects: &[(SessionKey, ObjectNumber)]) -> Result<Answer, Violation> {
        let closed = objects.iter().filter(|(key, _)| self.keys.closed.contains(key)).count();
        if closed >= 2 && closed * 2 > objects.len() {
            // It is not these keys that are wrong.
            return Ok(Answer::Failed);
        }
        self.index.step += 1;
        let now_ms = self.database_ms();
        let mut live = Vec::new();
        for (key, number) in objects {
            if self.index.is_deleted(key) && self.mutant != Some(Mutant::StagesDeleted) {
                continue;
            }
            // A name that the mutant keeps has its row already.
            if self.mutant != Some(Mutant::MergeNameReuse) || !self.index.objects.contains_key(number) {
                self.index.insert(*number, ObjectKind::Session(*key), 0, now_ms)?;
            }
            live.push(*key);
        }
        Ok(Answer::Staged(live))
    }

    fn put_merged(
        &mut self,
        number: ObjectNumber,
        attempt: u64,
        content: Rc<Content>,
        is_partly: bool,
    ) -> Result<Answer, Violation> {
        let staged_step = self.index.objects.get(&number).map_or(0, |row| row.staged_step);
        let owner = self.index.kinds.get(&number).and_then(|kind| kind.owner());
        let deleted_step = owner.and_then(|key| self.index.sessions.get(&key)?.deleted_step);
        if deleted_step.is_some_and(|deleted| deleted < staged_step) && !content.entries.is_empty() {
            return Err("B8: an object that was staged behind a tombstone holds some of its session".into());
        }
        self.put(number, attempt, content)?;
        let is_told = is_partly && self.mutant != Some(Mutant::PartlyTakenAsStored);
        Ok(Answer::Merged(if is_told { Merged::Partly } else { Merged::Stored }))
    }

    /// What is nobody's, and chunks of sessions: those that were deleted meanwhile need none.
    fn put_aside(
        &mut self,
        process: Process,
        job: JobId,
        objects: Vec<(Aside, u64)>,
        partition: i32,
    ) -> Result<Answer, Violation> {
        self.index.step += 1;
        let now_ms = self.database_ms();
        let mut none = BTreeSet::new();
        for ((owner, number, content), attempt) in objects {
            if owner.is_some_and(|key| self.index.is_deleted(&key))
                && self.mutant != Some(Mutant::QuarantineKeepsDeleted)
            {
                none.insert(number);
                continue;
            }
            self.index.insert(number, ObjectKind::Quarantine(owner), partition, now_ms)?;
            self.put(number, attempt, content)?;
        }
        if let Some(held) = self.job_mut(process, job) {
            held.quarantine.retain(|(_, number, _)| !none.contains(number));
        }
        Ok(Answer::Done)
    }

    /// Whether a shared object that became live, or was staged, before this step holds some of a session.
    fn is_shared(&self, key: SessionKey, before: u64) -> bool {
        let Some(session) = self.index.sessions.get(&key) else { return false };
        self.index.objects.values().any(|row| {
            let may_hold = match row.state {
                ObjectState::Staged => before == u64::MAX,
                ObjectState::Live => row.live_step < before && row.content.chunks.iter().any(|chunk| chunk.key == key),
                ObjectState::Condemned => false,
            };
            row.kind == ObjectKind::Shared && session.partitions.contains(&row.partition) && may_hold
        })
    }

    // Swaps.

    fn swap_fits(&self, swap: &Swap) -> bool {
        let objects = &self.index.objects;
        let is_staged = |number: &ObjectNumber| objects.get(number).is_some_and(|row| row.state == ObjectState::Staged);
        let mut results = swap.results.iter();
        let results_fit = results.all(|result| {
            let is_left_out = self.index.is_deleted(&result.key) && self.mutant != Some(Mutant::SwapIgnoresDeletion);
            is_left_out || is_staged(&result.number)
        });
        let keeps_deleted = self.mutant == Some(Mutant::QuarantineKeepsDeleted);
        let quarantine_fits = swap.quarantine.iter().all(|(_, number, _)| is_staged(number))
            && (keeps_deleted || !swap.aside().any(|key| self.index.is_deleted(&key)));
        let run_fits = self.mutant == Some(Mutant::SwapComparesNothing)
            || swap.run.iter().all(|number| self.owns(number, swap.owner));
        let parts_fit = swap.parts.iter().zip(&swap.results).all(|((parts, _), result)| {
            let live = self.index.parts(result.key);
            let knows_all =
                self.mutant == Some(Mutant::FinalIgnoresLateParts) || live.iter().all(|number| parts.contains(number));
            knows_all && parts.iter().all(|part| live.contains(part)) && !self.index.is_deleted(&result.key)
        });
        results_fit && quarantine_fits && run_fits && parts_fit && (swap.parts.is_none() || !swap.results.is_empty())
    }

    fn apply_swap(&mut self, swap: Box<Swap>) -> Result<Published, Violation> {
        if !self.swap_fits(&swap) {
            self.happened.swaps_lost += 1;
            return Ok(Published::Lost);
        }
        if self.chance(self.faults.answer_lost) {
            let commits = self.rng.bool();
            self.lock(&swap);
            let wait = self.rng.u64(1..400);
            self.after(wait, Event::EndSwap { swap, commits });
            return Ok(Published::Unknown);
        }
        match self.mutant {
            Some(Mutant::CondemnsBeforeResults) if swap.parts.is_none() => {
                self.check_swap(&swap)?;
                self.condemn(&swap.run);
                let wait = self.latency();
                self.after(wait, Event::HalfSwap(swap));
            }
            Some(Mutant::CondemnsAfterResults) if swap.parts.is_none() => {
                self.check_swap(&swap)?;
                self.turn_results_live(&swap)?;
                let wait = self.latency();
                self.after(wait, Event::HalfSwap(swap));
            }
            _ => self.commit_swap(&swap)?,
        }
        Ok(Published::Committed)
    }

    pub(super) fn half_swap(&mut self, swap: &Swap) -> Result<(), Violation> {
        if self.mutant == Some(Mutant::CondemnsAfterResults) {
            self.condemn(&swap.run);
            Ok(())
        } else {
            self.turn_results_live(swap)
        }
    }

    fn lock(&mut self, swap: &Swap) {
        let parts = swap.parts.iter().flat_map(|(parts, _)| parts);
        let results = swap.results.iter().map(|result| &result.number);
        let quarantine = swap.quarantine.iter().map(|(_, number, _)| number);
        self.index.locked_objects.extend(swap.run.iter().chain(parts).chain(results).chain(quarantine));
        self.index.locked_sessions.extend(swap.results.iter().map(|result| result.key).chain(swap.aside()));
    }

    pub(super) fn end_swap(&mut self, swap: &Swap, commits: bool) -> Result<(), Violation> {
        let parts = swap.parts.iter().flat_map(|(parts, _)| parts);
        let results = swap.results.iter().map(|result| &result.number);
        let quarantine = swap.quarantine.iter().map(|(_, number, _)| number);
        for number in swap.run.iter().chain(parts).chain(results).chain(quarantine) {
            self.index.locked_objects.remove(number);
        }
        for key in swap.results.iter().map(|result| result.key).chain(swap.aside()) {
            self.index.locked_sessions.remove(&key);
        }
        if commits {
            self.happened.swaps_committed += 1;
            self.commit_swap(swap)
        } else {
            self.happened.swaps_aborted += 1;
            Ok(())
        }
    }

    /// Under the locks, so that a swap on its way has ended.
    fn look_up_swap(&self, swap: &Swap) -> Standing {
        let objects = &self.index.objects;
        let was_live = |number: &ObjectNumber| objects.get(number).is_some_and(ObjectRow::was_live);
        let is_open = match &swap.parts {
            Some((parts, _)) => {
                parts.iter().all(|part| objects.get(part).is_some_and(|row| row.state == ObjectState::Live))
            }
            None => swap.run.iter().all(|number| self.owns(number, swap.owner)),
        };
        let mut results = swap.results.iter().map(|result| &result.number);
        if results.any(was_live) || swap.quarantine.iter().any(|(_, number, _)| was_live(number)) {
            Standing::Committed
        } else if is_open {
            Standing::Open
        } else {
            Standing::Lost
        }
    }

    pub(super) fn condemn(&mut self, objects: &[ObjectNumber]) {
        let now_ms = self.database_ms();
        for number in objects {
            self.index.objects.entry(*number).and_modify(|row| {
                (row.state, row.condemned_ms, row.lease) = (ObjectState::Condemned, now_ms, None);
            });
        }
    }

    fn commit_swap(&mut self, swap: &Swap) -> Result<(), Violation> {
        self.check_swap(swap)?;
        self.turn_results_live(swap)?;
        self.condemn(&swap.run);
        if let Some((parts, found_step)) = &swap.parts {
            self.condemn(parts);
            self.happened.finals += 1;
            for result in &swap.results {
                self.check_final(result.key, &[result.number], *found_step)?;
            }
        } else {
            self.happened.runs += 1;
        }
        Ok(())
    }

    fn turn_results_live(&mut self, swap: &Swap) -> Result<(), Violation> {
        self.visible.swaps += 1;
        let (now_ms, world_ms) = (self.database_ms(), self.now_ms);
        for result in &swap.results {
            if self.index.is_deleted(&result.key) {
                if self.mutant == Some(Mutant::SwapIgnoresDeletion) {
                    return Err("B8: an object of a deleted session became live".into());
                }
                self.happened.left_out += 1;
                continue;
            }
            let last = self.index.parts(result.key).last().map(|part| self.index.objects[part].live_ms);
            // What was merged first stays first, whatever the clock says.
            let by_clock = self.mutant == Some(Mutant::PartsByClock);
            let live_ms = last.filter(|_| !by_clock).map_or(now_ms, |last| now_ms.max(last + 1));
            if self.bucket.get(result.number) != Some(&result.content) {
                return Err(format!("B3: merged object {} became live without its bytes", result.number));
            }
            self.index.turn_live(result.number, &result.content, (live_ms, world_ms));
            if let Some(row) = self.index.objects.get_mut(&result.number) {
                row.bytes = result.content.entries.len() as u64 * BATCH_BYTES;
            }
            let row = self.index.sessions.entry(result.key).or_default();
            self.happened.parts_added += u64::from(row.is_final);
            (row.end_seen, row.is_final) = (result.ended, swap.parts.is_some());
        }
        for (_, number, content) in &swap.quarantine {
            if self.bucket.get(*number) != Some(content) {
                return Err(format!("B3: quarantine object {number} became live without its bytes"));
            }
            self.index.turn_live(*number, content, (now_ms, world_ms));
        }
        Ok(())
    }

    /// Whatever is condemned is in a result, in quarantine, a copy of what counts, or of a deleted session.
    fn check_swap(&mut self, swap: &Swap) -> Result<(), Violation> {
        let mut places: BTreeMap<SessionKey, BTreeSet<StreamSeq>> = BTreeMap::new();
        for result in &swap.results {
            let entries = result.content.entries.iter().filter_map(|entry| self.log.batch(entry.uid));
            places.entry(result.key).or_default().extend(entries.map(|(_, place, _)| place));
        }
        let set_aside = swap.quarantine.iter().flat_map(|(_, _, content)| &content.entries).map(|entry| entry.uid);
        let set_aside: BTreeSet<u64> = set_aside.collect();
        let parts = swap.parts.iter().flat_map(|(parts, _)| parts);
        for number in swap.run.iter().chain(parts) {
            let live = self.index.objects.get(number).filter(|row| row.state == ObjectState::Live);
            let row = live.ok_or_else(|| format!("C2: object {number} was swapped twice"))?;
            for entry in &row.content.entries {
                let is_moved = set_aside.contains(&entry.uid);
                let (Some((key, place, _)), false) = (self.log.batch(entry.uid), entry.stored == Stored::Quarantined)
                else {
                    if !is_moved {
                        return Err(format!("C1: an unreadable record of object {number} is in no quarantine"));
                    }
                    continue;
                };
                if is_moved {
                    if self.index.is_deleted(&key) {
                        return Err(format!("B8: a deleted session's batch of object {number} went into quarantine"));
                    }
                    if !self.corrupt.contains(&(*number, key)) && !self.keys.were_closed.contains(&key) {
                        return Err(format!("C1: a batch of object {number} that can be read went into quarantine"));
                    }
                    self.happened.corrupt_moved += 1;
                    self.visible.damaged.insert((key, place));
                    self.visible.moved.insert(entry.uid);
                    continue;
                }
                let is_gone = self.index.is_deleted(&key);
                let counts = places.get(&key).is_some_and(|places| places.contains(&place));
                // What a copy repeats was stored before, and is checked by reading.
                if !is_gone && !counts && entry.stored != Stored::Copy {
                    return Err(format!("C1: a batch of object {number} is in no result and no quarantine"));
                }
            }
        }
        Ok(())
    }

    /// A session that is final is one object, or what cannot be one; nothing of it was in shared objects by then.
    fn check_final(&self, key: SessionKey, expect: &[ObjectNumber], found_step: u64) -> Result<(), Violation> {
        let parts = self.index.parts(key);
        if parts != expect {
            return Err(format!("a session became final with {} objects and not {}", parts.len(), expect.len()));
        }
        if self.is_shared(key, found_step) {
            return Err("a session became final while shared objects held some of it".into());
        }
        Ok(())
    }

    fn mark_final(&mut self, key: SessionKey, parts: &[ObjectNumber], found_step: u64) -> Result<bool, Violation> {
        let mut live = self.index.parts(key);
        let mut wanted = parts.to_vec();
        live.sort_unstable();
        wanted.sort_unstable();
        if live != wanted || self.index.is_deleted(&key) {
            return Ok(false);
        }
        let bytes: u64 = parts.iter().map(|part| self.index.objects[part].bytes).sum();
        let cannot_be_merged = bytes > self.compaction.footers_bytes_max
            || self.keys.were_closed.contains(&key)
            || parts.iter().any(|part| self.corrupt.contains(&(*part, key)));
        if parts.len() != 1 && !cannot_be_merged {
            return Err(format!("a session became final with {} parts that can be merged", parts.len()));
        }
        self.check_final(key, &self.index.parts(key), found_step)?;
        if let Some(row) = self.index.sessions.get_mut(&key) {
            row.is_final = true;
        }
        self.happened.marked_final += 1;
        Ok(true)
    }

    /// C6: in a healthy world.
    pub(super) fn check_draining(&self) -> Result<(), Violation> {
        if !self.is_healed {
            return Ok(());
        }
        for (number, row) in self.index.objects.iter().filter(|(_, row)| row.is_live(ObjectKind::Shared)) {
            let age_ms = self.now_ms - row.live_world_ms.max(self.healed_ms);
            if age_ms > self.compaction.runs.run_age_ms + DRAINING_MS {
                return Err(format!("C6: shared object {number} is live for {age_ms} ms"));
            }
        }
        Ok(())
    }
}
