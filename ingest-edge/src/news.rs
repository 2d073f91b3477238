//! The topic `control`, as an edge takes part in it: it follows all news, and tells withdrawals, sessions that it let begin, and
//! that it is alive.
//!
//! What is told goes through one task, which takes all that waits and sends it as one: an edge has one producer for news, however
//! many end users withdraw at once. A withdrawal that Kafka did not take is told again until it does, or the edge ends; who
//! asked for it is told that the outcome is unknown, and asks again.

use std::sync::{Arc, PoisonError, RwLock};
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
use service_kit::shutdown::Shutdown;
use service_kit::time::now_ms;
use tokio::sync::{mpsc, oneshot};
use uuid::Uuid;

use crate::metrics;

/// Entries that wait to be told. Beyond it a withdrawal is answered with 503 and a begun session is told by the index alone.
const WAITING_MAX: usize = 10_000;
/// Entries that are told as one.
const TOLD_AT_ONCE_MAX: usize = 500;
/// How long to wait after Kafka took nothing.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// How often what does not count any more is looked for, and how much of it at once: a million entries in 100 s.
const SWEEP_INTERVAL: Duration = Duration::from_millis(500);
const SWEEP_ENTRIES: usize = 5_000;
const CLIENT_ID: &str = "ingest-edge";

/// What an edge has heard, and how it tells.
pub(crate) struct Board {
    standing: Arc<RwLock<Standing>>,
    following: Following,
    telling: mpsc::Sender<Telling>,
}

struct Telling {
    entry: Entry,
    /// Who wants to know whether Kafka has it.
    told: Option<oneshot::Sender<bool>>,
}

fn now_s() -> i64 {
    (now_ms() / 1000).cast_signed()
}

impl Board {
    /// Follows and tells until the shutdown; what waits then is told within the grace. The part is up while all is known that
    /// Kafka had acknowledged [`NEWS_SPREAD_MS`] ago.
    pub(crate) fn start(config: &ControlConfig, part: Part, shutdown: &Shutdown) -> Result<Self, KafkaError> {
        let standing = Arc::new(RwLock::new(Standing::default()));
        let hearing = Arc::clone(&standing);
        let following = control::follow_closely(config, CLIENT_ID, shutdown.clone(), move |entry| {
            hearing.write().unwrap_or_else(PoisonError::into_inner).apply(entry, now_s());
        })?;
        let (telling, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(tell(Publisher::new(config, CLIENT_ID)?, waiting, shutdown.clone()));
        let board = Self { standing, following, telling };
        tokio::spawn(board.keep(part, shutdown.clone()));
        Ok(board)
    }

    /// Says that this edge is alive, drops what does not count any more, and reports how it goes.
    fn keep(&self, part: Part, shutdown: Shutdown) -> impl Future<Output = ()> + use<> {
        let (standing, following, telling) =
            (Arc::clone(&self.standing), self.following.clone(), self.telling.downgrade());
        async move {
            let instance = Uuid::now_v7();
            let mut alive_at = None;
            loop {
                let now = tokio::time::Instant::now();
                let is_due = alive_at.is_none_or(|at| now - at >= Duration::from_secs(CONTROL_EDGE_INTERVAL_S));
                let Some(telling) = telling.upgrade() else { return };
                if is_due && telling.try_send(Telling { entry: Entry::edge(instance, now_ms()), told: None }).is_ok() {
                    alive_at = Some(now);
                }
                drop(telling);
                let (sessions, edges) = {
                    let mut standing = standing.write().unwrap_or_else(PoisonError::into_inner);
                    standing.sweep(now_s(), SWEEP_ENTRIES);
                    (standing.sessions(), standing.edges(now_s()))
                };
                ::metrics::gauge!(metrics::ENDED_SESSIONS).set(sessions as f64);
                ::metrics::gauge!(metrics::EDGES).set(edges as f64);
                if following.knows_as_of(Duration::from_millis(NEWS_SPREAD_MS)) {
                    part.up();
                } else {
                    part.down("the topic control was not read to its end lately");
                }
                if !shutdown.sleep(SWEEP_INTERVAL).await {
                    return;
                }
            }
        }
    }

    /// Refuses unless all news of [`NEWS_SPREAD_MS`] ago are known: who cannot hear that consent was taken back takes nothing.
    pub(crate) fn check_news(&self) -> Result<(), Refusal> {
        let knows = self.following.knows_as_of(Duration::from_millis(NEWS_SPREAD_MS));
        if knows { Ok(()) } else { Err(ErrorCode::KeysUnavailable.into()) }
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
        let telling = Telling { entry: Entry::begun(key, link, now_ms), told: None };
        if self.telling.try_send(telling).is_err() {
            ::metrics::counter!(metrics::UNTOLD).increment(1);
        }
    }

    /// Takes consent back: this edge takes nothing of the session any more, whatever comes of the rest; then everybody is told.
    /// `Ok` only when Kafka has it.
    pub(crate) async fn withdraw(&self, key: SessionKey, now_ms: u64) -> Result<(), Refusal> {
        let entry = Entry::withdrawal(key, now_ms);
        self.write(|standing| standing.apply(entry.clone(), (now_ms / 1000).cast_signed()));
        let (told, hears) = oneshot::channel();
        let telling = Telling { entry, told: Some(told) };
        self.telling.try_send(telling).map_err(|_| Refusal::from(ErrorCode::Backpressure))?;
        match hears.await {
            Ok(true) => Ok(()),
            Ok(false) | Err(_) => Err(ErrorCode::DeliveryUnknown.into()),
        }
    }
}

/// Tells what waits, all at once, until nobody can add to it or the grace of the shutdown is over.
async fn tell(mut publisher: Publisher, mut waiting: mpsc::Receiver<Telling>, shutdown: Shutdown) {
    // Withdrawals that Kafka did not take, to be told again.
    let mut again: Vec<Entry> = Vec::new();
    let mut last_reason = String::new();
    let until = shutdown.clone();
    let over = async {
        until.begun().await;
        tokio::time::sleep(until.grace).await;
    };
    tokio::pin!(over);
    loop {
        let mut taken = Vec::new();
        tokio::select! {
            () = &mut over => return,
            count = waiting.recv_many(&mut taken, TOLD_AT_ONCE_MAX) => if count == 0 && again.is_empty() { return },
            () = tokio::time::sleep(AGAIN_AFTER), if !again.is_empty() => {}
        }
        let entries: Vec<(String, Option<Vec<u8>>)> = again
            .iter()
            .chain(taken.iter().map(|telling| &telling.entry))
            .map(|entry| (entry.key(), Some(entry.value())))
            .collect();
        let outcome = publisher.publish(&entries).await;
        let is_told = outcome.is_ok();
        match outcome {
            Ok(()) => {
                again.clear();
                last_reason.clear();
            }
            Err(error) => {
                ::metrics::counter!(metrics::UNTOLD).increment(entries.len() as u64);
                let reason = service_kit::telemetry::chain(&error);
                if reason != last_reason {
                    tracing::warn!("{reason}; trying again");
                    last_reason = reason;
                }
                let withdrawals = taken
                    .iter()
                    .map(|telling| &telling.entry)
                    .filter(|entry| matches!(entry.news, News::Withdrawal(_)));
                again.extend(withdrawals.take(WAITING_MAX.saturating_sub(again.len())).cloned());
            }
        }
        for telling in taken {
            if let Some(told) = telling.told {
                // Who hung up asks again.
                let _ = told.send(is_told);
            }
        }
        if !is_told && shutdown.has_begun() {
            // Kafka may be back before the grace is over.
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }
}
