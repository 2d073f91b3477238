//! The load: an open loop. Sessions begin by the clock and each of their batches is due by the clock, however slow the
//! system is; a batch that could not be sent when it was due was late from that moment on.
//!
//! Within a session batches follow one another, as in a browser: one is sent when the one before is acknowledged.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::{StreamExt, TryStreamExt, stream};
use schemas::http::LinkRequest;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use virtual_sdk::sdk::random_attempt;
use virtual_sdk::{Api, Content, Ledger, Sdk, Session};

use crate::figures::{Acknowledged, Figures, micros};
use crate::freshness::Latest;
use crate::material::Material;
use crate::options::Options;

const NOTICE_VERSION: &str = "bench-1";
/// Sessions that are under way at most; beyond it new ones begin late, which their latencies show.
const SESSIONS_MAX: usize = 16_384;
const LINKS_AT_ONCE: usize = 8;

/// All that a session's task needs.
pub(crate) struct Load {
    pub(crate) sdk: Sdk,
    pub(crate) links: Vec<String>,
    pub(crate) material: Material,
    pub(crate) ledger: Arc<Ledger>,
    pub(crate) figures: Arc<Figures>,
    pub(crate) latest: Arc<Latest>,
    pub(crate) in_flight: Semaphore,
    pub(crate) options: Options,
    pub(crate) rate: f64,
    pub(crate) begun: Instant,
}

/// As many links as the run's sessions need; gives their tokens.
pub(crate) async fn make_links(api: &Api, options: &Options, rate: f64) -> anyhow::Result<Vec<String>> {
    // One to spare, should the last session's time be rounded down.
    let sessions = (options.seconds as f64 * rate).ceil() as u64 + 1;
    let links = sessions.div_ceil(u64::from(options.sessions_per_link));
    let run = random_attempt();
    let make = |index| {
        let reference = format!("bench-{}-{index}", &run[..8]);
        async move {
            let request = LinkRequest {
                reference,
                expires_in: None,
                max_sessions: Some(options.sessions_per_link),
                redirect_url: None,
                masking: None,
            };
            anyhow::Ok(api.create_link(&request).await.context("make links for the run")?.token)
        }
    };
    stream::iter(0..links).map(make).buffered(LINKS_AT_ONCE).try_collect().await
}

impl Load {
    /// Begins sessions for as long as was asked, and ends when each has sent what was due until then.
    pub(crate) async fn run(self: &Arc<Self>) -> anyhow::Result<()> {
        let mut sessions = JoinSet::new();
        for index in 0_u64.. {
            let due = self.begun + Duration::from_secs_f64(index as f64 / self.rate);
            if due >= self.end() {
                break;
            }
            sleep_until(due).await;
            while let Some(ended) = sessions.try_join_next() {
                ended??;
            }
            if sessions.len() >= SESSIONS_MAX
                && let Some(ended) = sessions.join_next().await
            {
                ended??;
            }
            let load = Arc::clone(self);
            sessions.spawn(async move { load.session(index, due).await });
        }
        while let Some(ended) = sessions.join_next().await {
            ended??;
        }
        Ok(())
    }

    fn end(&self) -> Instant {
        self.begun + Duration::from_secs(self.options.seconds)
    }

    fn give_up_at(&self) -> Instant {
        Instant::now() + Duration::from_secs(self.options.give_up_after_s)
    }

    async fn session(&self, index: u64, due: Instant) -> anyhow::Result<()> {
        self.figures.with(|figures| figures.sessions_begun += 1);
        let outcome = self.consent_and_send(index, due).await;
        self.figures.with(|figures| figures.sessions_ended += 1);
        outcome
    }

    async fn consent_and_send(&self, index: u64, due: Instant) -> anyhow::Result<()> {
        let link = (index / u64::from(self.options.sessions_per_link)) as usize;
        let link = self.links.get(link).context("find link of session")?;
        let attempt = random_attempt();
        let accepted = {
            let _permit = self.in_flight.acquire().await?;
            self.sdk.accept_until_answered(link, NOTICE_VERSION, &attempt, self.give_up_at()).await
        };
        let accepted = match accepted {
            Ok(accepted) => accepted,
            Err(given_up) => {
                self.figures.with(|figures| {
                    figures.failed(&given_up.failures);
                    figures.gave_up(given_up.last.code());
                });
                return Ok(());
            }
        };
        self.figures.with(|figures| {
            figures.failed(&accepted.failures);
            figures.consent.saturating_record(micros(due.elapsed()));
        });
        let recording = (index % self.material.recordings.len() as u64) as usize;
        for place in 0..self.material.recordings[recording].batches().len() {
            let offset_ms = self.material.recordings[recording].batches()[place].offset_ms;
            let batch_due = due + Duration::from_secs_f64(offset_ms as f64 / 1e3 / self.options.speedup);
            // What is due after the end is not sent: the session stays unfinished, as when a browser is closed.
            if batch_due >= self.end() {
                break;
            }
            sleep_until(batch_due).await;
            if !self.send(&accepted.answer, recording, place, batch_due).await? {
                break;
            }
        }
        Ok(())
    }

    /// Sends a batch; false when it was given up, and the session with it.
    async fn send(&self, session: &Session, recording: usize, place: usize, due: Instant) -> anyhow::Result<bool> {
        let source = &self.material.recordings[recording];
        let batch = &source.batches()[place];
        let (stream, seq) = (batch.stream, batch.seq);
        let (body, raw_bytes) = self.material.body(session, recording, place)?;
        let content = {
            let (recording, batch) = (Arc::clone(source), u32::try_from(place)?);
            if self.options.unique {
                Content::Marked { recording, batch }
            } else {
                Content::Recorded { recording, batch }
            }
        };
        let events = content.events();
        let outcome = {
            let _permit = self.in_flight.acquire().await?;
            self.figures.with(|figures| figures.in_flight += 1);
            let sending = self.sdk.send_until_acknowledged(session, stream, seq, batch.end, &body, self.give_up_at());
            let outcome = sending.await;
            self.figures.with(|figures| figures.in_flight -= 1);
            outcome
        };
        match outcome {
            Ok(delivered) => {
                let latency = due.elapsed();
                self.ledger.acknowledge(session.id, stream, seq, content);
                // In a session nothing is skipped, so what is acknowledged are the batches up to this place.
                self.latest.note(session.id, place as u64 + 1);
                let wire_bytes = body.bytes.len() as u64;
                self.figures.with(|figures| {
                    figures.failed(&delivered.failures);
                    figures.acknowledged(&Acknowledged { latency, events, raw_bytes, wire_bytes });
                });
                Ok(true)
            }
            Err(given_up) => {
                if given_up.fate_unknown {
                    self.ledger.doubt(session.id, stream, seq, content);
                }
                self.figures.with(|figures| {
                    figures.failed(&given_up.failures);
                    figures.gave_up(given_up.last.code());
                });
                Ok(false)
            }
        }
    }
}
