//! The batcher's loop: hands the machine what happened, carries out what it wants.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use engine::batching::{
    Config as MachineConfig, Effect, Fate, Flush, FlushId, Input, LastRecord, LogSpan, Machine, Published, QuestionId,
    RecordKind, RecordMeta, Staged,
};
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use masking::RuleBook;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use schemas::paths::ObjectKey;
use schemas::record::Header;
use schemas::{ObjectId, SessionKey};
use service_kit::health::Part;
use service_kit::keys::transport::TransportKeys;
use service_kit::keys::{self, Watched};
use service_kit::pool::Pool;
use service_kit::service::Surroundings;
use service_kit::shutdown::Shutdown;
use service_kit::telemetry::chain;
use service_kit::time::Monotonic;
use storage::Schema;
use storage::index::Index;
use storage::index::batches::{Declines, FirstSight, PublishOutcome, Publishing, Staging};
use storage::objects::Objects;
use storage::reading::{ReadError, Reader};
use storage::session_keys::{DataKey, KeyError, SessionKeys};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::assemble::{
    AssembleError, Assembled, Content, FlushKeys, FlushMasking, FlushPlace, Held, Unreadable, assemble,
};
use crate::kafka::{Consumer, Heard};
use crate::opening::{Opened, Opening};
use crate::streams::{Known, StreamKey, Streams};
use crate::{Config, metrics};

const RETRY_MIN_MS: u64 = 100;
const RETRY_MAX_MS: u64 = 5_000;
const SESSIONS_KNOWN_MAX: usize = 100_000;
/// Of each partition: some minutes of a busy one, in about 2 MiB.
const BATCHES_KNOWN_MAX: usize = 16_384;
/// What a record costs in memory beside its bytes: header, places in maps, copies of both while it is in flight. Without
/// it the bound of memory would not hold for small records.
const RECORD_COST_BYTES: u64 = 1_024;
/// Sessions whose notes are searched for at once, and memory for the footers that tell where they lie.
const NOTES_AT_ONCE: usize = 16;
const FOOTERS_BYTES_MAX: u64 = 32 * schemas::limits::MIB as u64;

/// What effects need, shared with their tasks.
struct Outside {
    index: Index,
    objects: Objects,
    keys: SessionKeys,
    transport: Arc<Watched<TransportKeys>>,
    pool: Pool,
    /// Finds what is noted of streams.
    reader: Reader,
    rules: Arc<RuleBook>,
    consumer: Consumer,
    topic: String,
    postgres: Part,
    keystore: Part,
    s3: Part,
}

/// A flush whose bytes the driver holds for the machine.
struct Work {
    flush: Flush,
    object: Option<ObjectId>,
    records: Arc<Vec<(RecordMeta, Held)>>,
    assembled: Option<Arc<Assembled>>,
    begun: Instant,
}

/// What a task tells the loop.
enum Told {
    Input(Input),
    Assembled(FlushId, Arc<Assembled>),
}

struct Driver {
    outside: Arc<Outside>,
    machine: Machine,
    clock: Monotonic,
    tell: mpsc::UnboundedSender<Told>,
    /// Records that are not opened yet.
    opening: Opening,
    /// Records by partition and offset, until the index covers them.
    held: BTreeMap<(i32, u64), Held>,
    works: BTreeMap<FlushId, Work>,
    /// What is known of streams, as published.
    streams: Streams,
    /// Partitions of the latest assignment that wait for the others' offsets: all are given in one call.
    wave: BTreeMap<i32, Option<u64>>,
    /// The next offset by the index, of partitions that are read.
    published: BTreeMap<i32, u64>,
    stopped: bool,
}

/// Reads and stores until the shutdown, then flushes what is buffered. What was not published stays in Kafka.
pub async fn run(config: Config, surroundings: Surroundings) -> anyhow::Result<()> {
    let Surroundings { health, shutdown, .. } = surroundings;
    service_kit::telemetry::describe(metrics::ALL);
    let kafka = health.part("kafka");
    let transport = Watched::start(config.transport_keys_file.clone(), &shutdown)?;
    let keyring = keys::keyring::open(&config.keys.keyring, &shutdown)?;
    let connecting =
        storage::connect(&config.postgres, &config.keystore, &config.s3, Schema::Await, &health, &shutdown);
    let Some(stores) = connecting.await? else { return Ok(()) };
    let pool = Pool::new("batcher", None).context("start pool")?;
    let (hear, mut heard) = mpsc::unbounded_channel();
    let consumer = Consumer::new(&config, hear).context("make consumer")?;
    // Completions are bounded by the machine: one per partition and watermark check.
    let (tell, mut told) = mpsc::unbounded_channel();
    let keys = SessionKeys::new(stores.keystore, keyring, config.keys.cache, &shutdown);
    let (index, objects) = (stores.index, stores.objects);
    let reader = Reader::new(index.clone(), objects.clone(), keys.clone(), pool.clone(), FOOTERS_BYTES_MAX);
    let outside = Arc::new(Outside {
        index,
        objects,
        keys,
        reader,
        rules: Arc::default(),
        transport: Arc::clone(&transport),
        pool: pool.clone(),
        consumer,
        topic: config.kafka.topic_events.clone(),
        postgres: stores.postgres,
        keystore: stores.keys,
        s3: stores.s3,
    });
    outside.keys.follow_deletions(&config.control, "batcher", &shutdown).context("follow control entries")?;
    let watching = Arc::clone(&outside);
    tokio::spawn(service_kit::kafka::watch(config.kafka.clone(), kafka, shutdown.clone(), move |topic, timeout| {
        watching.consumer.stream().fetch_metadata(Some(topic), timeout)
    }));
    let mut driver = Driver {
        outside: Arc::clone(&outside),
        machine: Machine::new(machine_config(&config)),
        clock: Monotonic::start(),
        tell,
        opening: Opening::new(transport, pool, &config.kafka.topic_events),
        held: BTreeMap::new(),
        works: BTreeMap::new(),
        streams: Streams::new(),
        wave: BTreeMap::new(),
        published: BTreeMap::new(),
        stopped: false,
    };
    let ended = read(&mut driver, &outside, &mut heard, &mut told, &shutdown).await;
    // Whichever way it ended: an assignment that nobody answers would hold up the process's end for ever.
    outside.consumer.close();
    ended
}

async fn read(
    driver: &mut Driver,
    outside: &Outside,
    heard: &mut mpsc::UnboundedReceiver<Heard>,
    told: &mut mpsc::UnboundedReceiver<Told>,
    shutdown: &Shutdown,
) -> anyhow::Result<()> {
    let grace = tokio::time::sleep(Duration::MAX);
    tokio::pin!(grace);
    let mut stopping = false;
    while !driver.stopped {
        let wake = driver.machine.poll_timeout().map(|at| driver.clock.at(at));
        tokio::select! {
            // In this order: a revocation that Kafka's client has told comes before an answer that would have the
            // partition read, and answers come before more records.
            biased;
            () = shutdown.begun(), if !stopping => {
                stopping = true;
                grace.as_mut().reset(tokio::time::Instant::now() + shutdown.grace);
                driver.opening.clear();
                driver.input(Input::Shutdown);
            }
            () = &mut grace, if stopping => {
                tracing::warn!("grace is over; what was not published stays in kafka");
                break;
            }
            Some(heard) = heard.recv() => driver.hear(heard),
            Some(told) = told.recv() => driver.told(told),
            () = wait_until(wake) => driver.input(Input::Tick),
            opened = driver.opening.next(), if !stopping => {
                driver.record(opened.context("open record; a new process can go on")?);
            }
            message = outside.consumer.stream().recv(), if !stopping && driver.opening.has_room() => match message {
                Ok(message) => driver.opening.begin(&message),
                Err(error @ KafkaError::MessageConsumptionFatal(_)) => {
                    return Err(error).context("read from kafka; the client cannot go on, a new process can");
                }
                Err(error) => driver.consume_error(&error),
            },
        }
    }
    Ok(())
}

fn machine_config(config: &Config) -> MachineConfig {
    MachineConfig {
        flush_age_ms: config.flush_age.as_millis() as u64,
        flush_bytes: config.flush_bytes,
        buffer_bytes_max: config.buffer_bytes_max,
        activity_interval_ms: config.activity_interval.as_millis() as u64,
        retry_min_ms: RETRY_MIN_MS,
        retry_max_ms: RETRY_MAX_MS,
        spread_seed: Uuid::now_v7().as_u64_pair().1,
        sessions_known_max: SESSIONS_KNOWN_MAX,
        batches_known_max: BATCHES_KNOWN_MAX,
    }
}

async fn wait_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Driver {
    fn input(&mut self, input: Input) {
        // Records come by the thousand; what became of them is seen when their flush is through.
        let is_shown = !matches!(input, Input::Record { .. });
        self.machine.handle(self.clock.now_ms(), input);
        while let Some(effect) = self.machine.poll_effect() {
            self.carry_out(effect);
        }
        if is_shown {
            self.show();
        }
    }

    fn show(&self) {
        let count = self.machine.conservation();
        for (what, records) in [
            ("in", count.records_in),
            ("chunked", count.chunked),
            ("quarantined", count.quarantined),
            ("indexed", count.indexed),
            ("dropped_deleted", count.dropped_deleted),
            ("dropped_copies", count.dropped_copies),
            ("returned", count.returned),
            ("buffered", count.buffered),
        ] {
            ::metrics::gauge!(metrics::RECORDS, "what" => what).set(records as f64);
        }
        ::metrics::gauge!(metrics::IMBALANCE).set(count.imbalance() as f64);
        ::metrics::gauge!(metrics::BUFFERED).set(self.machine.buffered_bytes() as f64);
        ::metrics::gauge!(metrics::HALTED).set(self.machine.halted() as f64);
    }

    fn hear(&mut self, heard: Heard) {
        match heard {
            Heard::Ends(ends) => {
                for (partition, end) in ends {
                    if let Some(published) = self.published.get(&partition) {
                        show_lag(partition, end.saturating_sub(*published));
                    }
                }
            }
            Heard::Assigned(partitions) => {
                tracing::info!(?partitions, "partitions assigned");
                // One that is held already gets no offset again, and must not be waited for.
                let fresh = partitions.iter().filter(|partition| !self.machine.holds(**partition));
                self.wave.extend(fresh.map(|partition| (*partition, None)));
                if partitions.is_empty() {
                    // The topic may be another one under the same name: the group tells its members names only.
                    self.input(Input::LogDoubted);
                }
                for partition in partitions {
                    self.input(Input::Assigned(partition));
                }
                // An assignment of nothing wants its answer too: without it the group waits for this member for ever.
                if self.wave.is_empty() {
                    self.answer_wave();
                }
            }
            Heard::Revoked(partitions) => {
                tracing::info!(?partitions, "partitions revoked");
                // All of them first: those that are left are answered once, and may have waited for these alone.
                let was_waiting = !self.wave.is_empty();
                for partition in partitions.iter().filter(|partition| self.published.remove(partition).is_some()) {
                    // Whoever owns it now shows it.
                    show_lag(*partition, 0);
                }
                self.wave.retain(|partition, _| !partitions.contains(partition));
                for partition in partitions {
                    self.input(Input::Revoked(partition));
                }
                if was_waiting {
                    self.answer_wave();
                }
            }
        }
    }

    fn told(&mut self, told: Told) {
        match told {
            Told::Input(input) => self.input(input),
            Told::Assembled(flush, assembled) => {
                if let Some(work) = self.works.get_mut(&flush) {
                    work.assembled = Some(assembled);
                }
                self.input(Input::Uploaded { flush, ok: true });
            }
        }
    }

    fn record(&mut self, opened: Opened) {
        let Opened { partition, offset, bytes, fingerprint, held } = opened;
        let kind = match &held.content {
            Content::Read(Header::Acceptance { key, .. }, _) => RecordKind::Acceptance(*key),
            Content::Read(Header::Batch { key, place, facts, .. }, _) => {
                RecordKind::Batch { key: *key, place: *place, content: facts.content_hash }
            }
            Content::Read(Header::Declines { .. }, _) => RecordKind::Declines,
            Content::Unreadable(Unreadable { reason, .. }) => {
                tracing::error!(
                    partition,
                    offset,
                    reason = reason.as_str(),
                    "record cannot be read; it is quarantined"
                );
                RecordKind::Unreadable(*reason)
            }
        };
        self.held.insert((partition, offset), held);
        let bytes = bytes + RECORD_COST_BYTES;
        self.input(Input::Record { partition, record: RecordMeta { offset, bytes, fingerprint, kind } });
    }

    fn consume_error(&mut self, error: &KafkaError) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::AutoOffsetReset) => tracing::error!(%error, "offset out of range"),
            // It was deleted; what comes under its name may be another one.
            Some(
                RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::UnknownTopicId,
            ) => tracing::warn!(%error, "the topic is away"),
            _ => {
                // The client tries again by itself; whether Kafka is there is watched elsewhere.
                tracing::debug!(%error, "read from kafka");
                return;
            }
        }
        self.input(Input::LogDoubted);
    }

    /// Does something outside of the loop, which then hears of it. What panics must not leave its partition waiting for ever:
    /// `lost` is told in its place.
    fn begin(&self, lost: Input, work: impl Future<Output = Told> + Send + 'static) {
        let tell = self.tell.clone();
        tokio::spawn(async move {
            let told = tokio::spawn(work).await.unwrap_or_else(|error| {
                tracing::error!(%error, "a step of a flush ended without an answer; it is tried again");
                Told::Input(lost)
            });
            // Nobody listens any more once the loop has ended.
            let _ = tell.send(told);
        });
    }

    fn ask_log(&self, partition: i32, question: QuestionId) {
        let outside = Arc::clone(&self.outside);
        self.begin(Input::LogAsked { question, span: None }, async move {
            let asking = Arc::clone(&outside);
            let span = match tokio::task::spawn_blocking(move || asking.consumer.watermarks(partition)).await {
                Ok(Ok((first, next))) => Some(LogSpan { first, next }),
                Ok(Err(error)) => {
                    ::metrics::counter!(metrics::FAILURES, "step" => "ask_log").increment(1);
                    tracing::warn!(partition, %error, "ask where the log begins and ends; it is tried again");
                    None
                }
                Err(error) => {
                    tracing::error!(partition, %error, "ask where the log begins and ends; it is tried again");
                    None
                }
            };
            Told::Input(Input::LogAsked { question, span })
        });
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::TakeEpoch(partition) => {
                self.streams.turn(partition);
                self.take_epoch(partition);
            }
            Effect::AskLog { partition, question } => self.ask_log(partition, question),
            Effect::Assign { partition, offset } => self.assign(partition, offset),
            Effect::Drop(partition) => self.drop_partition(partition),
            Effect::Stage(flush) => self.stage(flush),
            Effect::Upload { flush, staged } => self.upload(flush, staged),
            Effect::Publish { flush, attempt, with_object, activity } => {
                self.publish(flush, attempt, with_object, &activity);
            }
            Effect::LookUp { flush, attempt } => self.look_up(flush, attempt),
            Effect::Release { partition, next } => self.release(partition, next),
            Effect::Pause => {
                ::metrics::counter!(metrics::PAUSES).increment(1);
                self.warn(self.outside.consumer.pause(), "pause reading");
            }
            Effect::Resume => self.warn(self.outside.consumer.resume(), "resume reading"),
            Effect::AlarmGap { partition, gap } => {
                ::metrics::counter!(metrics::GAPS).increment(gap.next - gap.first);
                tracing::error!(
                    partition,
                    gap.first,
                    gap.next,
                    "offsets are gone from the log before they were stored"
                );
            }
            Effect::AlarmForeign(partition) => {
                tracing::error!(
                    partition,
                    "the log is not the one that was stored from: the topic was made anew; this partition is not read: a new \
                     topic needs a new name, set KAFKA_TOPIC_EVENTS of edges and batchers to it"
                );
            }
            Effect::Stopped => self.stopped = true,
        }
    }

    /// Stops reading a partition. The others of its assignment do not wait for it.
    fn drop_partition(&mut self, partition: i32) {
        self.streams.turn(partition);
        self.opening.turn(partition);
        self.forget(partition, u64::MAX);
        self.works.retain(|_, work| work.flush.partition != partition);
        if let Err(error) = self.outside.consumer.unassign([partition]) {
            tracing::warn!(%error, partition, "stop reading partition");
        }
        if self.wave.remove(&partition).is_some() {
            self.answer_wave();
        }
    }

    /// Forgets a partition's records below an offset.
    fn forget(&mut self, partition: i32, next: u64) {
        self.held.extract_if((partition, 0)..(partition, next), |_, _| true).for_each(drop);
    }

    fn warn(&self, outcome: Result<(), KafkaError>, what: &'static str) {
        if let Err(error) = outcome {
            tracing::warn!(%error, what);
        }
    }

    fn take_epoch(&self, partition: i32) {
        let outside = Arc::clone(&self.outside);
        self.begin(Input::EpochFailed(partition), async move {
            let input = match outside.index.take_epoch(&outside.topic, partition).await {
                Ok(owned) => {
                    outside.postgres.up();
                    let last = owned.last.map(|(offset, fingerprint)| LastRecord { offset, fingerprint });
                    Input::EpochTaken { partition, epoch: owned.epoch, next_offset: owned.next_offset, last }
                }
                Err(error) => {
                    failed("take_epoch", &outside.postgres, &error);
                    Input::EpochFailed(partition)
                }
            };
            Told::Input(input)
        });
    }

    /// Gives offsets to Kafka: those of one assignment together, later ones alone.
    fn assign(&mut self, partition: i32, offset: u64) {
        // As far as is known until the first flush is published.
        self.published.entry(partition).or_insert(offset);
        match self.wave.get_mut(&partition) {
            Some(place) => *place = Some(offset),
            None => return self.read_from(&[(partition, offset)]),
        }
        self.answer_wave();
    }

    /// Answers the latest assignment, once the offset of each of its partitions is known.
    fn answer_wave(&mut self) {
        let offsets: Option<Vec<(i32, u64)>> =
            self.wave.iter().map(|(partition, offset)| offset.map(|offset| (*partition, offset))).collect();
        if let Some(offsets) = offsets {
            self.wave.clear();
            self.read_from(&offsets);
        }
    }

    fn read_from(&mut self, offsets: &[(i32, u64)]) {
        for (partition, _) in offsets {
            self.opening.turn(*partition);
        }
        if let Err(error) = self.outside.consumer.assign(offsets) {
            tracing::warn!(%error, ?offsets, "read partitions; it is tried again");
            for (partition, _) in offsets {
                let _ = self.tell.send(Told::Input(Input::ReadingStopped(*partition)));
            }
        }
    }

    fn stage(&mut self, flush: Flush) {
        let held = |record: &RecordMeta| {
            let held = self.held.get(&(flush.partition, record.offset));
            (*record, held.expect("a record is forgotten only when the machine has let go of it").clone())
        };
        let records: Arc<Vec<(RecordMeta, Held)>> = Arc::new(flush.records.iter().map(held).collect());
        // The number of a flush that is staged anew changes; what its old number held is not wanted any more.
        self.works.retain(|_, work| work.flush.partition != flush.partition);
        let object = flush.has_object().then(|| ObjectId(Uuid::now_v7()));
        let first_seen = first_sights(&flush, &records);
        let id = flush.id;
        let (outside, staged) = (Arc::clone(&self.outside), flush.clone());
        self.works.insert(id, Work { flush, object, records, assembled: None, begun: Instant::now() });
        self.begin(Input::Staged { flush: id, staged: None }, async move {
            let staging = Staging {
                object,
                topic: &outside.topic,
                partition: staged.partition,
                offsets: (staged.first, staged.next),
                first_seen: &first_seen,
                sessions: &staged.sessions,
            };
            let staged = match outside.obtain_keys(&staged).await {
                Ok(mut found) => match outside.index.stage(&staging).await {
                    Ok(outcome) => {
                        outside.postgres.up();
                        count_rows("flush", u64::from(object.is_some()));
                        count_rows("first_sight", outcome.rows - u64::from(object.is_some()));
                        outside.keys.forget(&outcome.deleted);
                        found.refused.extend(outcome.deleted);
                        Some(found)
                    }
                    Err(error) => {
                        failed("stage", &outside.postgres, &error);
                        None
                    }
                },
                Err(error) => {
                    failed("keys", &outside.keystore, &error);
                    None
                }
            };
            Told::Input(Input::Staged { flush: id, staged })
        });
    }

    fn upload(&mut self, flush: FlushId, staged: Staged) {
        let Some(work) = self.works.get(&flush) else { return };
        let Some(object) = work.object else { return };
        let (partition, offsets) = (work.flush.partition, (work.flush.first, work.flush.next));
        let records = Arc::clone(&work.records);
        let before = known_before(&self.streams, partition, &records, &staged);
        let outside = Arc::clone(&self.outside);
        self.begin(Input::Uploaded { flush, ok: false }, async move {
            match outside.upload(object, partition, offsets, records, staged, before).await {
                Ok(assembled) => Told::Assembled(flush, Arc::new(assembled)),
                Err(NotUploaded { step, part, error }) => {
                    failed(step, part, error.as_ref());
                    Told::Input(Input::Uploaded { flush, ok: false })
                }
            }
        });
    }

    fn publish(&mut self, id: FlushId, attempt: u32, with_object: bool, activity: &[SessionKey]) {
        let Some(work) = self.works.get(&id) else { return };
        let flush = work.flush.clone();
        let assembled = work.assembled.clone().filter(|_| with_object);
        let activity = last_activity(activity, &work.records);
        let declines = declines(&work.records);
        let gaps: Vec<(u64, u64)> = flush.gaps.iter().map(|gap| (gap.first, gap.next)).collect();
        let outside = Arc::clone(&self.outside);
        self.begin(Input::Published { flush: id, attempt, outcome: Published::Unknown }, async move {
            let publishing = Publishing {
                topic: &outside.topic,
                partition: flush.partition,
                epoch: flush.epoch,
                offsets: (flush.first, flush.next),
                last: flush.last.map(|last| (last.offset, last.fingerprint)),
                gaps: &gaps,
                object: assembled.as_ref().map(|assembled| (&assembled.row, &assembled.filter)),
                activity: &activity,
                declines: &declines,
            };
            let outcome = match outside.index.publish(&publishing).await {
                PublishOutcome::Committed { rows, activity_rows } => {
                    outside.postgres.up();
                    count_rows("flush", rows);
                    count_rows("activity", activity_rows);
                    Published::Committed
                }
                PublishOutcome::Lost => {
                    ::metrics::counter!(metrics::LOST_SWAPS).increment(1);
                    Published::Lost
                }
                PublishOutcome::Failed(error) => {
                    failed("publish", &outside.postgres, &error);
                    Published::Failed
                }
                PublishOutcome::Unknown(error) => {
                    failed("publish", &outside.postgres, &error);
                    Published::Unknown
                }
            };
            Told::Input(Input::Published { flush: id, attempt, outcome })
        });
    }

    fn look_up(&self, id: FlushId, attempt: u32) {
        let Some(work) = self.works.get(&id) else { return };
        let (partition, next) = (work.flush.partition, work.flush.next);
        let outside = Arc::clone(&self.outside);
        self.begin(Input::LookedUp { flush: id, attempt, committed: None }, async move {
            let committed = match outside.index.is_published(&outside.topic, partition, next).await {
                Ok(committed) => Some(committed),
                Err(error) => {
                    failed("look_up", &outside.postgres, &error);
                    None
                }
            };
            Told::Input(Input::LookedUp { flush: id, attempt, committed })
        });
    }

    fn release(&mut self, partition: i32, next: u64) {
        self.forget(partition, next);
        if let Some((id, work)) = self.works.iter().find(|(_, work)| work.flush.partition == partition) {
            ::metrics::counter!(metrics::FLUSHES).increment(1);
            ::metrics::histogram!(metrics::FLUSH_SECONDS).record(work.begun.elapsed().as_secs_f64());
            let age_ms = self.clock.now_ms().saturating_sub(work.flush.since_ms);
            ::metrics::histogram!(metrics::FLUSH_AGE_SECONDS).record(Duration::from_millis(age_ms).as_secs_f64());
            if let Some(assembled) = &work.assembled {
                ::metrics::histogram!(metrics::FLUSH_SIZE_BYTES).record(assembled.row.bytes as f64);
                ::metrics::counter!(metrics::OBJECT_BYTES).increment(assembled.row.bytes);
                ::metrics::counter!(metrics::RAW_BYTES).increment(assembled.raw_bytes);
                ::metrics::counter!(metrics::MASKED).increment(assembled.masking.masked);
                ::metrics::counter!(metrics::DROPPED).increment(assembled.masking.dropped);
                ::metrics::counter!(metrics::LOOKED_THROUGH).increment(assembled.masking.opened);
                ::metrics::counter!(metrics::REMADE).increment(assembled.masking.changed);
                ::metrics::counter!(metrics::UNKNOWN).increment(assembled.masking.missed);
                self.streams.published(partition, &assembled.streams);
            }
            let id = *id;
            self.works.remove(&id);
        }
        self.published.insert(partition, next);
        self.outside.consumer.note_lag(partition, next);
    }
}

fn show_lag(partition: i32, records: u64) {
    ::metrics::gauge!(metrics::LAG, "partition" => partition.to_string()).set(records as f64);
}

fn count_rows(what: &'static str, rows: u64) {
    ::metrics::counter!(metrics::ROWS, "what" => what).increment(rows);
}

/// What stopped an upload, and whose fault it is.
struct NotUploaded<'a> {
    step: &'static str,
    part: &'a Part,
    error: Box<dyn std::error::Error + Send + Sync>,
}

impl Outside {
    /// Gives every session of a flush its key before anything of it is stored; those come back whose key is gone for ever,
    /// and those whose key does not open.
    async fn obtain_keys(&self, flush: &Flush) -> Result<Staged, KeyError> {
        let (found, absent) = self.keys.obtain(&flush.sessions).await?;
        self.keystore.up();
        for key in absent.iter().filter(|key| flush.first_seen.binary_search(key).is_err()) {
            ::metrics::counter!(metrics::KEYS_LOST).increment(1);
            tracing::error!(
                workspace = %key.workspace,
                session = %key.session,
                "the key store has lost the key of a session that is being written; what was stored of it before cannot be \
                 opened any more"
            );
        }
        // One key that does not open is the key's fault. Most of them are the keyring's: everything would go into quarantine.
        let closed = found.iter().filter(|(_, found)| matches!(found, DataKey::Closed(_)));
        let (closed, first) = (closed.clone().count(), closed.map(|(key, _)| key.session).next());
        if let Some(session) = first.filter(|_| closed > 1 && closed * 2 > found.len()) {
            return Err(KeyError::NotUnwrapped(session));
        }
        let mut staged = Staged::default();
        for (key, found) in found {
            match found {
                DataKey::Known(_) => {}
                DataKey::Shredded => staged.refused.push(key),
                DataKey::Closed(version) => {
                    ::metrics::counter!(metrics::KEYS_CLOSED).increment(1);
                    tracing::error!(
                        workspace = %key.workspace,
                        session = %key.session,
                        version = version.map(|version| version.0),
                        "the key of a session does not open; what comes of it is quarantined: give the keyring the version \
                         that it lacks, then run `clairvio quarantine replay`"
                    );
                    staged.aside.push(key);
                }
            }
        }
        Ok(staged)
    }

    async fn upload(
        &self,
        object: ObjectId,
        partition: i32,
        offsets: (u64, u64),
        records: Arc<Vec<(RecordMeta, Held)>>,
        staged: Staged,
        before: Before,
    ) -> Result<Assembled, NotUploaded<'_>> {
        let Before { mut known, sought } = before;
        known.extend(self.noted(sought).await.map_err(|error| {
            let part = match &error {
                ReadError::Index(_) => &self.postgres,
                ReadError::Key(_) => &self.keystore,
                _ => &self.s3,
            };
            NotUploaded { step: "notes", part, error: error.into() }
        })?);
        let masking = FlushMasking { rules: Arc::clone(&self.rules), streams: known };
        let keys = self.flush_keys(&records, &staged).await.map_err(|error| NotUploaded {
            step: "keys",
            part: &self.keystore,
            error: error.into(),
        })?;
        self.keystore.up();
        let at_s3 = |step, error| NotUploaded { step, part: &self.s3, error };
        let place = FlushPlace { object, topic: self.topic.clone(), partition, offsets };
        let assembling = move || assemble(&place, &records, &staged, &keys, &masking);
        let assembled = self.pool.run(assembling).await.map_err(|error| at_s3("assemble", error.into()))?;
        let mut assembled = assembled.map_err(|error| match error {
            // Its key went while it was on its way: the flush is staged anew, without it.
            AssembleError::KeyMissing(_) => NotUploaded { step: "assemble", part: &self.keystore, error: error.into() },
            AssembleError::Seal(_) => at_s3("assemble", error.into()),
        })?;
        let key = ObjectKey::Shared { partition, id: object };
        let put = self.objects.put(&key, assembled.body.clone(), &assembled.row.sha256).await;
        let requests = put.map_err(|error| at_s3("upload", error.into()))?;
        ::metrics::counter!(metrics::PUTS).increment(requests);
        self.s3.up();
        // The bucket has them: only row and filter are still wanted.
        assembled.body = Bytes::new();
        Ok(assembled)
    }

    /// What is noted of streams of which nothing is known here: somebody else had them, or they were forgotten.
    async fn noted(&self, sought: BTreeMap<SessionKey, Vec<u32>>) -> Result<Noted, ReadError> {
        // Boxed, since the compiler does not see that closures which borrow give futures that can be sent.
        let mut searching: Vec<BoxFuture<'_, Result<Noted, ReadError>>> = Vec::new();
        for (key, streams) in sought {
            ::metrics::counter!(metrics::NOTES).increment(streams.len() as u64);
            searching.push(Box::pin(async move {
                let notes = self.reader.stream_notes(&key, &streams).await?;
                Ok(notes.into_values().map(|note| ((key, note.stream), Known::of(&note))).collect())
            }));
        }
        let found: Vec<Vec<_>> = stream::iter(searching).buffer_unordered(NOTES_AT_ONCE).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// The keys that an object is sealed with, as they are now: an upload that is tried for long asks again.
    async fn flush_keys(&self, records: &[(RecordMeta, Held)], staged: &Staged) -> Result<FlushKeys, KeyError> {
        let sessions: BTreeSet<SessionKey> = records
            .iter()
            .filter_map(|(record, held)| match (staged.fate(&record.kind), &held.content) {
                (Fate::Chunked | Fate::Copy, Content::Read(Header::Batch { key, .. }, _)) => Some(*key),
                _ => None,
            })
            .collect();
        let sessions: Vec<SessionKey> = sessions.into_iter().collect();
        let known = |(key, found)| match found {
            DataKey::Known(data_key) => Some((key, data_key)),
            DataKey::Shredded | DataKey::Closed(_) => None,
        };
        let sessions = self.keys.find(&sessions).await?.into_iter().filter_map(known).collect();
        Ok(FlushKeys { sessions, storage: self.keys.storage().await?, transport: self.transport.get() })
    }
}

fn failed(step: &'static str, part: &Part, error: &(dyn std::error::Error + 'static)) {
    ::metrics::counter!(metrics::FAILURES, "step" => step).increment(1);
    part.down(format!("{step}: {}", chain(error)));
}

/// What was noted of streams.
type Noted = Vec<(StreamKey, Known)>;

/// What is known of the streams of a flush, and those of which it has to be found out.
struct Before {
    known: BTreeMap<StreamKey, Known>,
    sought: BTreeMap<SessionKey, Vec<u32>>,
}

fn known_before(streams: &Streams, partition: i32, records: &[(RecordMeta, Held)], staged: &Staged) -> Before {
    let mut first: BTreeMap<StreamKey, u32> = BTreeMap::new();
    for (record, held) in records {
        if let (Fate::Chunked, Content::Read(Header::Batch { key, place, .. }, _)) =
            (staged.fate(&record.kind), &held.content)
        {
            first.entry((*key, place.stream())).and_modify(|seq| *seq = place.seq().min(*seq)).or_insert(place.seq());
        }
    }
    let (mut known, mut sought) = (BTreeMap::new(), BTreeMap::<SessionKey, Vec<u32>>::new());
    for (stream, seq) in first {
        match streams.get(partition, stream) {
            Some(found) => drop(known.insert(stream, found)),
            // It begins here.
            None if seq == 0 => drop(known.insert(stream, Known::default())),
            None => sought.entry(stream.0).or_default().push(stream.1),
        }
    }
    Before { known, sought }
}

/// The first rows of sessions: the consent of any of their records, the append time of the first.
fn first_sights(flush: &Flush, records: &[(RecordMeta, Held)]) -> Vec<FirstSight> {
    let mut sights: BTreeMap<SessionKey, FirstSight> = BTreeMap::new();
    for (_, held) in records {
        let Content::Read(Header::Acceptance { key, consent } | Header::Batch { key, consent, .. }, _) = &held.content
        else {
            continue;
        };
        if flush.first_seen.binary_search(key).is_ok() {
            sights
                .entry(*key)
                .and_modify(|sight| sight.appended_ms = sight.appended_ms.min(held.appended_ms))
                .or_insert_with(|| FirstSight { key: *key, consent: consent.clone(), appended_ms: held.appended_ms });
        }
    }
    sights.into_values().collect()
}

fn last_activity(due: &[SessionKey], records: &[(RecordMeta, Held)]) -> Vec<(SessionKey, u64)> {
    let mut last: BTreeMap<SessionKey, u64> = due.iter().map(|key| (*key, 0)).collect();
    for (_, held) in records {
        if let Content::Read(Header::Acceptance { key, .. } | Header::Batch { key, .. }, _) = &held.content
            && let Some(at) = last.get_mut(key)
        {
            *at = (*at).max(held.appended_ms);
        }
    }
    last.into_iter().collect()
}

fn declines(records: &[(RecordMeta, Held)]) -> Vec<Declines> {
    let sum = |held: &Held| match held.content {
        Content::Read(Header::Declines { workspace, hour_ms, count }, _) => {
            Some(Declines { workspace, hour_ms, count })
        }
        _ => None,
    };
    records.iter().filter_map(|(_, held)| sum(held)).collect()
}
