//! The topic `control`, as an edge takes part in it: it follows all news, and tells withdrawals, sessions that it let begin, and
//! that it is alive.
//!
//! What is told goes through one task, which takes all that waits and sends it as one: an edge has one producer for news, however
//! many end users withdraw at once. A withdrawal that Kafka did not take is told again until it does, or the edge ends; who
//! asked for it is told that the outcome is unknown, and asks again.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use engine::standing::Standing;
use schemas::codes::Refusal;
use schemas::control::{Entry, News};
use schemas::limits::{CONTROL_EDGE_INTERVAL_S, NEWS_SPREAD_MS};
use schemas::{ErrorCode, LinkId, SessionKey};
use service_kit::config::kafka::ControlConfig;
use service_kit::health::Part;
use service_kit::kafka::KafkaError;
use service_kit::kafka::control::{self, Following, Publisher};
use service_kit::retry::Reasons;
use service_kit::shutdown::Shutdown;
use service_kit::telemetry::chain;
use service_kit::time::{now_ms, now_s};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::metrics;

/// News that are older are acted upon, or nothing is taken.
const NEWS_SPREAD: Duration = Duration::from_millis(NEWS_SPREAD_MS);
/// Entries that wait to be told, withdrawals apart. Beyond it a begun session is told by the index alone.
const WAITING_MAX: usize = 10_000;
/// Sessions whose withdrawal waits to be told, about 3 MB. Beyond it a withdrawal is answered with 503, and this edge forgets to
/// tell it; it takes nothing of the session all the same.
const WITHDRAWING_MAX: usize = 10_000;
/// Entries that are told as one.
const TOLD_AT_ONCE_MAX: usize = 500;
/// How long to wait after Kafka did not take all.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How often what does not count any more is looked for, and how much of it at once: a million entries in 100 s.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);
const SWEEP_ENTRIES: usize = 5_000;
const CLIENT_ID: &str = "ingest-edge";

/// What an edge has heard, and how it tells.
pub(crate) struct Board {
    standing: Arc<RwLock<Standing>>,
    following: Following,
    telling: mpsc::Sender<Entry>,
    withdrawing: Arc<Withdrawing>,
}

/// Withdrawals that Kafka does not have yet, each once, however often it is asked for.
#[derive(Default)]
struct Withdrawing {
    sessions: Mutex<BTreeMap<SessionKey, Asked>>,
    came: Notify,
}

struct Asked {
    entry: Entry,
    /// Who wants to know whether Kafka has it.
    waiting: Vec<oneshot::Sender<bool>>,
}

impl Withdrawing {
    fn sessions(&self) -> MutexGuard<'_, BTreeMap<SessionKey, Asked>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kafka has this one, or it is unknown whether it does.
    fn told(&self, key: &SessionKey, is_told: bool) {
        let mut sessions = self.sessions();
        let waiting = if is_told {
            sessions.remove(key).map(|asked| asked.waiting)
        } else {
            sessions.get_mut(key).map(|asked| std::mem::take(&mut asked.waiting))
        };
        for waiting in waiting.into_iter().flatten() {
            // Who hung up asks again.
            let _ = waiting.send(is_told);
        }
    }
}

impl Board {
    /// Follows, and tells until `last` begins; then what waits is told once more, and the handle's task ends. Both go on while
    /// requests are drained: they need the news to the end. The part is up while all is known that Kafka had acknowledged
    /// [`NEWS_SPREAD_MS`] ago.
    pub(crate) fn start(
        config: &ControlConfig,
        part: Part,
        last: &Shutdown,
    ) -> Result<(Self, JoinHandle<()>), KafkaError> {
        let standing = Arc::new(RwLock::new(Standing::default()));
        let hearing = Arc::clone(&standing);
        let following = control::follow_closely(config, CLIENT_ID, last.clone(), move |entry| {
            hearing.write().unwrap_or_else(PoisonError::into_inner).apply(entry, now_s());
        })?;
        let (telling, waiting) = mpsc::channel(WAITING_MAX);
        let withdrawing = Arc::<Withdrawing>::default();
        let publisher = Publisher::new(config, CLIENT_ID)?;
        let teller = Teller { publisher, waiting, withdrawing: Arc::clone(&withdrawing), reasons: Reasons::default() };
        let told = tokio::spawn(teller.run(last.clone()));
        let board = Self { standing, following, telling, withdrawing };
        tokio::spawn(board.following.clone().report(part, NEWS_SPREAD, last.clone()));
        tokio::spawn(board.keep(last.clone()));
        Ok((board, told))
    }

    /// Says that this edge is alive, and drops what does not count any more.
    fn keep(&self, last: Shutdown) -> impl Future<Output = ()> + use<> {
        let (standing, telling) = (Arc::clone(&self.standing), self.telling.clone());
        async move {
            let instance = Uuid::now_v7();
            let mut alive_at = None;
            loop {
                let now = tokio::time::Instant::now();
                let is_due = alive_at.is_none_or(|at| now - at >= Duration::from_secs(CONTROL_EDGE_INTERVAL_S));
                if is_due && telling.try_send(Entry::edge(instance, now_ms())).is_ok() {
                    alive_at = Some(now);
                }
                let (sessions, edges) = {
                    let mut standing = standing.write().unwrap_or_else(PoisonError::into_inner);
                    standing.sweep(now_s(), SWEEP_ENTRIES);
                    (standing.sessions(), standing.edges(now_s()))
                };
                ::metrics::gauge!(metrics::ENDED_SESSIONS).set(sessions as f64);
                ::metrics::gauge!(metrics::EDGES).set(edges as f64);
                if !last.sleep(SWEEP_INTERVAL).await {
                    return;
                }
            }
        }
    }

    /// Refuses unless all news of [`NEWS_SPREAD_MS`] ago are known: who cannot hear that consent was taken back takes nothing.
    pub(crate) fn check_news(&self) -> Result<(), Refusal> {
        if self.following.knows_as_of(NEWS_SPREAD) { Ok(()) } else { Err(ErrorCode::KeysUnavailable.into()) }
    }

    /// What has been heard.
    pub(crate) fn read<T>(&self, ask: impl FnOnce(&Standing) -> T) -> T {
        ask(&self.standing.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What has been heard, to be added to.
    pub(crate) fn write<T>(&self, change: impl FnOnce(&mut Standing) -> T) -> T {
        change(&mut self.standing.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Tells the other edges that this session has begun. That it cannot be told delays what they know until the index tells.
    pub(crate) fn tell_begun(&self, key: SessionKey, link: LinkId, now_ms: u64) {
        if self.telling.try_send(Entry::begun(key, link, now_ms)).is_err() {
            ::metrics::counter!(metrics::UNTOLD).increment(1);
        }
    }

    /// Takes consent back: this edge takes nothing of the session any more, whatever comes of the rest; then everybody is told.
    /// `Ok` only when Kafka has it.
    pub(crate) async fn withdraw(&self, key: SessionKey) -> Result<(), Refusal> {
        if !self.write(|standing| standing.withdraw(&key, now_s())) {
            return Ok(());
        }
        let hears = {
            let mut sessions = self.withdrawing.sessions();
            if sessions.len() >= WITHDRAWING_MAX && !sessions.contains_key(&key) {
                return Err(ErrorCode::Backpressure.into());
            }
            let (told, hears) = oneshot::channel();
            let entry = Entry::withdrawal(key, now_ms());
            sessions.entry(key).or_insert_with(|| Asked { entry, waiting: Vec::new() }).waiting.push(told);
            hears
        };
        self.withdrawing.came.notify_one();
        match hears.await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(ErrorCode::DeliveryUnknown.into()),
        }
    }
}

/// Tells what waits.
struct Teller {
    publisher: Publisher,
    waiting: mpsc::Receiver<Entry>,
    withdrawing: Arc<Withdrawing>,
    /// While Kafka is away each new reason is told once.
    reasons: Reasons,
}

impl Teller {
    async fn run(mut self, last: Shutdown) {
        let mut is_all_told = true;
        loop {
            let mut entries = Vec::new();
            let is_last = tokio::select! {
                () = last.begun() => true,
                _ = self.waiting.recv_many(&mut entries, TOLD_AT_ONCE_MAX) => false,
                () = self.withdrawing.came.notified() => false,
                () = tokio::time::sleep(AGAIN_AFTER), if !is_all_told => false,
            };
            while entries.len() < TOLD_AT_ONCE_MAX
                && let Ok(entry) = self.waiting.try_recv()
            {
                entries.push(entry);
            }
            {
                let sessions = self.withdrawing.sessions();
                entries.extend(sessions.values().take(TOLD_AT_ONCE_MAX).map(|asked| asked.entry.clone()));
            }
            is_all_told = self.tell(entries).await;
            if is_last {
                return;
            }
            if !self.withdrawing.sessions().is_empty() && is_all_told {
                // There were more than are told at once.
                self.withdrawing.came.notify_one();
            }
        }
    }

    /// Whether Kafka has all of it.
    async fn tell(&mut self, entries: Vec<Entry>) -> bool {
        let records: Vec<_> = entries.iter().map(|entry| (entry.key(), Some(entry.value()))).collect();
        let outcomes = match self.publisher.publish_each(&records).await {
            Ok(outcomes) => outcomes.into_iter().map(|outcome| outcome.map_err(|error| chain(&error))).collect(),
            Err(error) => vec![Err(chain(&error)); entries.len()],
        };
        let mut reason = None;
        for (entry, outcome) in entries.iter().zip(outcomes) {
            if let News::Withdrawal(key) = &entry.news {
                self.withdrawing.told(key, outcome.is_ok());
            }
            if let Err(error) = outcome {
                ::metrics::counter!(metrics::UNTOLD).increment(1);
                reason = Some(error);
            }
        }
        let is_all_told = reason.is_none();
        match reason {
            Some(reason) => self.reasons.warn(format!("write control entries: {reason}")),
            None => self.reasons.clear(),
        }
        is_all_told
    }
}
