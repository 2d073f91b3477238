//! The compactor's loop: hands the machine what happened, carries out what it wants.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use engine::batching::Published;
use engine::compaction::{
    Answer, Candidate, Config as MachineConfig, Effect, End, Found, Input, JobId, Machine, Merged, Name, Opened, Parts,
    SharedRow, TaskId, Work,
};
use futures::FutureExt as _;
use schemas::{ObjectId, SessionKey};
use service_kit::health::Part;
use service_kit::keys;
use service_kit::pool::Pool;
use service_kit::service::Surroundings;
use service_kit::shutdown::Shutdown;
use service_kit::time::Monotonic;
use storage::Schema;
use storage::index::runs::{SessionResult, SetAside, SwapOutcome};
use storage::index::{Index, LiveObject};
use storage::session_keys::SessionKeys;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::merge::{Lasting, Place};
use crate::work::{Outcome, Run, Worker, footers_bytes, parts_bytes};
use crate::{Config, metrics};

/// Merges at once: each reads and writes while others use the pool.
const MERGES_AT_ONCE: usize = 8;
/// Sessions that are finished at once.
const FINALS_AT_ONCE: usize = 4;
/// Sessions that are over, asked for by one look.
const FINALS_PER_LOOK: usize = 200;
/// Footers of parts that are merged into one object: opened they take some forty times as much. A session with more batches is read
/// from its parts.
const FOOTERS_BYTES_MAX: u64 = 2 * schemas::limits::MIB as u64;
const RETRY_MIN_MS: u64 = 100;
const RETRY_MAX_MS: u64 = 30_000;
/// Objects that are asked whether the keyring and the bucket are the right ones.
const OTHERS_ASKED: i64 = 4;
/// How long giving back claims may take once the grace is over. Those that are not given back run out.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// What work needs, shared with its tasks.
struct Outside {
    topic: String,
    lease: Duration,
    silence: Duration,
    index: Index,
    worker: Worker,
    postgres: Part,
    s3: Part,
}

/// What the driver holds of a job for the machine.
struct Job {
    /// Marks the job's claim.
    owner: Uuid,
    begun: Instant,
    /// Nothing of a session that is over.
    run: Vec<ObjectId>,
    /// The claimed run, or the session's parts.
    objects: Arc<Vec<LiveObject>>,
    opened: Option<Arc<Run>>,
    /// Sessions of the run that have parts already.
    divided: BTreeSet<SessionKey>,
    /// Chunks of sessions of the run that cannot be merged.
    aside: BTreeMap<SessionKey, Vec<Place>>,
    ids: BTreeMap<Name, ObjectId>,
    /// Of objects in quarantine beside the one that has a name: each session has its own.
    more_ids: Vec<ObjectId>,
    results: BTreeMap<Name, SessionResult>,
    quarantine: Option<Arc<Vec<SetAside>>>,
}

/// What work gives beside its answer.
enum Product {
    Nothing,
    Objects(Vec<LiveObject>),
    Opened(Run),
    Divided(Vec<SessionKey>),
    Merged { key: SessionKey, name: Name, result: Option<Box<SessionResult>>, aside: Vec<Place> },
    Quarantine(Vec<SetAside>),
}

/// What a task tells the loop.
struct Told {
    task: TaskId,
    job: Option<JobId>,
    answer: Answer,
    product: Product,
}

type Done = anyhow::Result<(Answer, Product)>;

struct Driver {
    outside: Arc<Outside>,
    machine: Machine,
    clock: Monotonic,
    tell: mpsc::UnboundedSender<Told>,
    tasks: JoinSet<()>,
    jobs: BTreeMap<JobId, Job>,
    stopped: bool,
}

/// Merges until the shutdown. Jobs under way are finished within the grace, then claims are given back; were the process
/// killed, its claims would run out.
pub async fn run(config: Config, surroundings: Surroundings) -> anyhow::Result<()> {
    let Surroundings { health, shutdown, .. } = surroundings;
    service_kit::telemetry::describe(metrics::ALL);
    let keyring = keys::keyring::open(&config.keys.keyring, &shutdown)?;
    let connecting =
        storage::connect(&config.postgres, &config.keystore, &config.s3, Schema::Await, &health, &shutdown);
    let Some(stores) = connecting.await? else { return Ok(()) };
    let pool = Pool::new("compactor", None).context("start pool")?;
    let keys = SessionKeys::new(stores.keystore, keyring, config.keys.cache, &shutdown);
    keys.follow_deletions(&config.control, "compactor", &shutdown).context("follow control entries")?;
    // Completions are bounded by the machine: a look, and what the jobs that it lets begin have under way.
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut driver = Driver {
        machine: Machine::new(machine_config(&config)),
        outside: Arc::new(Outside {
            topic: config.topic,
            lease: config.lease,
            silence: config.silence,
            index: stores.index,
            worker: Worker { objects: stores.objects, keys, pool },
            postgres: stores.postgres,
            s3: stores.s3,
        }),
        clock: Monotonic::start(),
        tell,
        tasks: JoinSet::new(),
        jobs: BTreeMap::new(),
        stopped: false,
    };
    driver.work(&mut told, &shutdown).await;
    Ok(())
}

fn machine_config(config: &Config) -> MachineConfig {
    MachineConfig {
        runs: config.runs,
        interval_ms: config.pass_interval.as_millis() as u64,
        lease_ms: config.lease.as_millis() as u64,
        runs_at_once: config.runs_at_once,
        finals_at_once: FINALS_AT_ONCE,
        merges_at_once: MERGES_AT_ONCE,
        bytes_max: config.merge_bytes_max,
        footers_bytes_max: FOOTERS_BYTES_MAX,
        finals_per_look: FINALS_PER_LOOK,
        retry_min_ms: RETRY_MIN_MS,
        retry_max_ms: RETRY_MAX_MS,
        spread_seed: Uuid::now_v7().as_u64_pair().1,
    }
}

async fn wait_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Driver {
    async fn work(&mut self, told: &mut mpsc::UnboundedReceiver<Told>, shutdown: &Shutdown) {
        let deadline = tokio::time::sleep(Duration::MAX);
        tokio::pin!(deadline);
        let (mut stopping, mut grace_over) = (false, false);
        self.input(Input::Tick);
        while !self.stopped {
            let wake = self.machine.poll_timeout().map(|at| self.clock.at(at));
            tokio::select! {
                biased;
                () = shutdown.begun(), if !stopping => {
                    stopping = true;
                    // Whoever started us waits for the grace: what is given back after it has to fit in as well.
                    let grace = shutdown.grace.saturating_sub(RELEASE_TIMEOUT);
                    deadline.as_mut().reset(tokio::time::Instant::now() + grace);
                    self.input(Input::Shutdown);
                }
                () = &mut deadline, if stopping => {
                    if grace_over {
                        return;
                    }
                    grace_over = true;
                    deadline.as_mut().reset(tokio::time::Instant::now() + RELEASE_TIMEOUT);
                    self.input(Input::GraceOver);
                }
                Some(told) = told.recv() => self.told(told),
                Some(_) = self.tasks.join_next() => {}
                () = wait_until(wake) => self.input(Input::Tick),
            }
        }
    }

    fn input(&mut self, input: Input) {
        self.machine.handle(self.clock.now_ms(), input);
        while let Some(effect) = self.machine.poll_effect() {
            match effect {
                Effect::Begin { task, work } => self.begin(task, work),
                Effect::Close { job, end } => self.close(job, end),
                Effect::Stopped => self.stopped = true,
            }
        }
    }

    /// What came of work is kept before the machine hears of it.
    fn told(&mut self, told: Told) {
        let Told { task, job, answer, product } = told;
        if let Some(job) = job.and_then(|job| self.jobs.get_mut(&job)) {
            match product {
                Product::Nothing => {}
                Product::Objects(objects) => job.objects = Arc::new(objects),
                Product::Opened(run) => job.opened = Some(Arc::new(run)),
                Product::Divided(sessions) => job.divided.extend(sessions),
                Product::Merged { key, name, result, aside } => {
                    job.results.extend(result.map(|result| (name, *result)));
                    job.aside.insert(key, aside);
                }
                Product::Quarantine(aside) => job.quarantine = Some(Arc::new(aside)),
            }
        }
        self.input(Input::Answer { task, answer });
    }

    fn close(&mut self, id: JobId, end: End) {
        let Some(job) = self.jobs.remove(&id) else { return };
        match end {
            End::Done if job.run.is_empty() => ::metrics::counter!(metrics::FINALS).increment(1),
            End::Done => {
                ::metrics::counter!(metrics::RUNS).increment(1);
                ::metrics::counter!(metrics::RUN_BYTES).increment(job.objects.iter().map(|object| object.bytes).sum());
                ::metrics::histogram!(metrics::RUN_SECONDS).record(job.begun.elapsed().as_secs_f64());
            }
            End::Lost => ::metrics::counter!(metrics::LOST).increment(1),
            End::Failed => ::metrics::counter!(metrics::FAILURES).increment(1),
            End::Nothing | End::GivenUp => {}
        }
    }

    /// Begins work, with what is held for it.
    fn begin(&mut self, task: TaskId, work: Work) {
        let outside = Arc::clone(&self.outside);
        match work {
            Work::Look { sessions_max } => self.spawn(task, None, async move { outside.look(sessions_max).await }),
            Work::Claim { job: id, run } => {
                let owner = self.open_job(id, run.clone());
                self.spawn(task, Some(id), async move { outside.claim(&run, owner).await });
            }
            Work::FindParts { job: id, key } => {
                self.open_job(id, Vec::new());
                self.spawn(task, Some(id), async move { outside.find_parts(key).await });
            }
            work => self.begin_step(task, outside, work),
        }
    }

    fn open_job(&mut self, id: JobId, run: Vec<ObjectId>) -> Uuid {
        let owner = Uuid::now_v7();
        let job = Job {
            owner,
            begun: Instant::now(),
            run,
            objects: Arc::default(),
            opened: None,
            divided: BTreeSet::new(),
            aside: BTreeMap::new(),
            ids: BTreeMap::new(),
            more_ids: Vec::new(),
            results: BTreeMap::new(),
            quarantine: None,
        };
        self.jobs.insert(id, job);
        owner
    }

    /// Work of a job that has begun.
    fn begin_step(&mut self, task: TaskId, outside: Arc<Outside>, work: Work) {
        let id = match &work {
            Work::Renew(job) | Work::Open(job) | Work::Release(job) => *job,
            Work::Claim { job, .. }
            | Work::Stage { job, .. }
            | Work::Merge { job, .. }
            | Work::Quarantine { job, .. }
            | Work::Publish { job, .. }
            | Work::LookUp { job, .. }
            | Work::FindParts { job, .. }
            | Work::MergeParts { job, .. }
            | Work::PublishFinal { job, .. }
            | Work::LookUpFinal { job, .. }
            | Work::MarkFinal { job, .. } => *job,
            Work::Look { .. } => return,
        };
        let Some(job) = self.jobs.get_mut(&id) else { return };
        let (owner, run) = (job.owner, job.run.clone());
        let is_run = !run.is_empty();
        let claimed: Vec<ObjectId> = job.objects.iter().map(|object| object.key.id()).collect();
        let (objects, opened) = (Arc::clone(&job.objects), job.opened.clone());
        let opened = move || opened.context("the run is not open");
        let mut ids = |name: Name| *job.ids.entry(name).or_insert_with(|| ObjectId(Uuid::now_v7()));
        match work {
            Work::Look { .. } | Work::Claim { .. } | Work::FindParts { .. } => {}
            Work::Renew(_) => {
                let staged: Vec<ObjectId> = job.ids.values().chain(&job.more_ids).copied().collect();
                self.spawn(task, Some(id), async move { outside.renew(&claimed, owner, &staged).await });
            }
            Work::Release(_) => self.spawn(task, Some(id), async move {
                outside.index.release_run(if is_run { &run } else { &claimed }, owner).await?;
                Ok((Answer::Done, Product::Nothing))
            }),
            Work::Open(_) => self.spawn(task, Some(id), async move { outside.open(&objects).await }),
            Work::Stage { objects: wanted, .. } => {
                let wanted: Vec<_> = wanted.into_iter().map(|(key, name)| (key, ids(name))).collect();
                self.spawn(task, Some(id), async move {
                    if is_run {
                        outside.stage_run(wanted).await
                    } else {
                        outside.stage_final(wanted, &claimed, owner).await
                    }
                });
            }
            Work::Merge { key, name, .. } => {
                let object = ids(name);
                let lasting = if job.divided.contains(&key) { Lasting::UntilTheEnd } else { Lasting::Kept };
                self.spawn(task, Some(id), async move {
                    let outcome = outside.worker.merge(&*opened()?, key, object, lasting).await;
                    outside.seen_bucket(outcome.map(|outcome| merged(key, name, outcome)))
                });
            }
            Work::MergeParts { key, name, .. } => {
                let object = ids(name);
                self.spawn(task, Some(id), async move {
                    let outcome = outside.worker.merge_parts(&objects, key, object).await;
                    outside.seen_bucket(outcome.map(|outcome| merged(key, name, outcome)))
                });
            }
            Work::Quarantine { name, sessions, .. } => {
                let object = ids(name);
                let chunks = sessions.into_iter().filter_map(|session| job.aside.get_key_value(&session));
                let chunks: Vec<_> =
                    chunks.map(|(session, places)| (*session, places.clone(), ObjectId(Uuid::now_v7()))).collect();
                job.more_ids.extend(chunks.iter().map(|(.., id)| *id));
                self.spawn(task, Some(id), async move {
                    let partition = objects.first().and_then(|object| object.key.partition());
                    let partition = partition.context("a run is of a partition")?;
                    outside.quarantine(&*opened()?, partition, object, &chunks).await
                });
            }
            Work::Publish { results, quarantine, .. } => {
                // What is missing would be lost with the run.
                let results: Option<Vec<_>> = results.iter().map(|(_, name)| job.results.get(name).cloned()).collect();
                let kept = job.quarantine.clone().filter(|_| quarantine.is_some());
                self.spawn(task, Some(id), async move {
                    let results = results.context("a session that was merged is not at hand")?;
                    anyhow::ensure!(kept.is_some() == quarantine.is_some(), "what goes into quarantine is not at hand");
                    let aside = kept.as_deref().map(Vec::as_slice).unwrap_or_default();
                    Ok(published(outside.index.publish_run(&run, owner, &results, aside).await))
                });
            }
            Work::LookUp { results, quarantine, .. } => {
                let aside = job.quarantine.as_deref().filter(|_| quarantine.is_some()).into_iter().flatten();
                let results = results.into_iter().map(|(_, name)| ids(name));
                let results: Vec<_> = results.chain(aside.map(|aside| aside.object.id)).collect();
                self.spawn(task, Some(id), async move {
                    let standing = outside.index.look_up_run(&run, owner, &results).await?;
                    Ok((Answer::LookedUp(standing), Product::Nothing))
                });
            }
            Work::PublishFinal { name, .. } => {
                let result = job.results.get(&name).cloned();
                self.spawn(task, Some(id), async move {
                    let result = result.context("the session is not merged")?;
                    Ok(published(outside.index.publish_final(&result).await))
                });
            }
            Work::LookUpFinal { key, name, parts, .. } => {
                let object = ids(name);
                self.spawn(task, Some(id), async move {
                    let standing = outside.index.look_up_final(&key, object, &parts).await?;
                    Ok((Answer::LookedUp(standing), Product::Nothing))
                });
            }
            Work::MarkFinal { key, parts, .. } => self.spawn(task, Some(id), async move {
                Ok((Answer::Marked(outside.index.mark_final(&key, &parts).await?), Product::Nothing))
            }),
        }
    }

    /// The answer comes whatever happens: without it the machine would wait for ever.
    fn spawn(&mut self, task: TaskId, job: Option<JobId>, work: impl Future<Output = Done> + Send + 'static) {
        let tell = self.tell.clone();
        self.tasks.spawn(async move {
            let done = AssertUnwindSafe(work).catch_unwind().await;
            let done = done.unwrap_or_else(|_| Err(anyhow::anyhow!("work for the compactor panicked; this is a bug")));
            let (answer, product) = done.unwrap_or_else(|error| {
                tracing::warn!("{error:#}; trying again");
                (Answer::Failed, Product::Nothing)
            });
            // Fails only while the process ends.
            drop(tell.send(Told { task, job, answer, product }));
        });
    }
}

fn merged(key: SessionKey, name: Name, outcome: Outcome) -> (Answer, Product) {
    let (merged, result, aside) = match outcome {
        Outcome::Merged(result, aside) if aside.is_empty() => (Merged::Stored, Some(result), aside),
        Outcome::Merged(result, aside) => (Merged::Partly, Some(result), aside),
        Outcome::Unreadable(aside) => (Merged::Unreadable, None, aside),
        Outcome::Deleted => (Merged::Deleted, None, Vec::new()),
    };
    (Answer::Merged(merged), Product::Merged { key, name, result, aside })
}

fn published(outcome: SwapOutcome) -> (Answer, Product) {
    let outcome = match outcome {
        SwapOutcome::Committed => Published::Committed,
        SwapOutcome::Lost => Published::Lost,
        SwapOutcome::Failed(error) => {
            tracing::warn!("{:#}; trying again", anyhow::Error::from(error));
            Published::Failed
        }
        SwapOutcome::Unknown(error) => {
            tracing::warn!("{:#}; looking it up", anyhow::Error::from(error));
            Published::Unknown
        }
    };
    (Answer::Published(outcome), Product::Nothing)
}

impl Outside {
    async fn look(&self, sessions_max: usize) -> Done {
        let looked = self.found(sessions_max).await;
        match &looked {
            Ok(_) => self.postgres.up(),
            Err(error) => {
                ::metrics::counter!(metrics::FAILURES).increment(1);
                self.postgres.down(format!("{error:#}"));
            }
        }
        Ok((Answer::Looked(looked?), Product::Nothing))
    }

    async fn found(&self, sessions_max: usize) -> anyhow::Result<Found> {
        let rows = self.index.shared_objects(&self.topic).await?;
        let oldest = rows.iter().map(|row| row.age).max().unwrap_or_default();
        ::metrics::gauge!(metrics::OLDEST).set(oldest.as_secs_f64());
        let shared = rows.iter().map(|row| SharedRow {
            partition: row.partition,
            candidate: Candidate { id: row.id, bytes: row.bytes, age_ms: row.age.as_millis() as u64 },
            leased: row.leased,
        });
        let sessions_max = i64::try_from(sessions_max).unwrap_or(i64::MAX);
        let over = self.index.sessions_over(self.silence, sessions_max).await?;
        Ok(Found { shared: shared.collect(), over })
    }

    async fn claim(&self, run: &[ObjectId], owner: Uuid) -> Done {
        Ok(match self.index.claim_run(run, owner, self.lease).await? {
            Some(objects) => (Answer::Claimed(true), Product::Objects(objects)),
            None => (Answer::Claimed(false), Product::Nothing),
        })
    }

    async fn renew(&self, claimed: &[ObjectId], owner: Uuid, staged: &[ObjectId]) -> Done {
        Ok((Answer::Claimed(self.index.extend_lease(claimed, owner, self.lease, staged).await?), Product::Nothing))
    }

    async fn open(&self, objects: &[LiveObject]) -> Done {
        let run = self.seen_bucket(self.worker.open_run(objects).await)?;
        if run.is_mostly_damaged() {
            // Others tell whether it is this run that is wrong, or the keyring, or the bucket.
            let ids: Vec<ObjectId> = objects.iter().map(|object| object.key.id()).collect();
            let others = self.index.newest_shared_but(&ids, OTHERS_ASKED).await?;
            self.worker.check_others(&others).await?;
        }
        run.tell_damage();
        let opened = Opened {
            sessions: run.sessions(&self.worker.objects),
            has_unreadable: run.has_unreadable(),
            footers_bytes: footers_bytes(objects),
        };
        Ok((Answer::Opened(opened), Product::Opened(run)))
    }

    async fn stage_run(&self, mut wanted: Vec<(SessionKey, ObjectId)>) -> Done {
        let keys: Vec<SessionKey> = wanted.iter().map(|(key, _)| *key).collect();
        let mut deleted = self.index.deleted_among(&keys).await?;
        deleted.sort_unstable();
        self.worker.keys.forget(&deleted);
        wanted.retain(|(key, _)| deleted.binary_search(key).is_err());
        let keys: Vec<SessionKey> = wanted.iter().map(|(key, _)| *key).collect();
        self.worker.check_keys(&keys).await?;
        self.stage(&wanted).await
    }

    /// Of a session that is over: another compactor that found it so too does not merge it as well.
    async fn stage_final(&self, wanted: Vec<(SessionKey, ObjectId)>, parts: &[ObjectId], owner: Uuid) -> Done {
        match self.index.claim_run(parts, owner, self.lease).await? {
            Some(_) => self.stage(&wanted).await,
            None => Ok((Answer::Staged(Vec::new()), Product::Nothing)),
        }
    }

    async fn stage(&self, wanted: &[(SessionKey, ObjectId)]) -> Done {
        let staged = self.index.stage_session_objects(wanted).await?;
        let divided = staged.iter().filter(|staged| staged.has_parts).map(|staged| staged.key).collect();
        Ok((Answer::Staged(staged.iter().map(|staged| staged.key).collect()), Product::Divided(divided)))
    }

    /// What is nobody's goes into the object of this name; chunks of each session into one of its own, which goes with the session.
    async fn quarantine(
        &self,
        run: &Run,
        partition: i32,
        id: ObjectId,
        chunks: &[(SessionKey, Vec<Place>, ObjectId)],
    ) -> Done {
        let mut aside = Vec::new();
        if run.has_unreadable() {
            self.index.stage_quarantine(id, &self.topic, partition, None).await?;
            let (object, whole) = self.seen_bucket(self.worker.set_records_aside(run, partition, id).await)?;
            aside.push(SetAside { object, session: None, whole });
        }
        for (session, places, id) in chunks {
            // One that was deleted meanwhile needs none.
            if self.index.stage_quarantine(*id, &self.topic, partition, Some(session)).await? {
                let object = self.seen_bucket(self.worker.set_chunks_aside(run, partition, *id, places).await)?;
                aside.push(SetAside { object, session: Some(*session), whole: Vec::new() });
            }
        }
        Ok((Answer::Done, Product::Quarantine(aside)))
    }

    async fn find_parts(&self, key: SessionKey) -> Done {
        // In this order: what a run brings in between is among the parts.
        let may_be_shared = self.index.may_be_shared(&key).await?;
        let objects = self.index.session_objects(&key).await?;
        let parts = objects.iter().map(|object| (object.key.id(), u64::from(object.footer.len))).collect();
        let raw_bytes = self.index.bytes_received(&key).await?;
        let merge_bytes = parts_bytes(&objects, raw_bytes, &self.worker.objects);
        Ok((Answer::Parts(Parts { may_be_shared, parts, merge_bytes }), Product::Objects(objects)))
    }

    /// Notes how the bucket is, by what came of its use.
    fn seen_bucket<T>(&self, done: anyhow::Result<T>) -> anyhow::Result<T> {
        match &done {
            Ok(_) => self.s3.up(),
            Err(error) => self.s3.down(format!("{error:#}")),
        }
        done
    }
}
