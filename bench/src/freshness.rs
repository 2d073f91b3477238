//! How long until what was acknowledged can be read, measured while the load runs.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use schemas::SessionId;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use virtual_sdk::verify::look_for_batches;
use virtual_sdk::{Api, until};

use crate::figures::{Figures, micros};

const EVERY: Duration = Duration::from_secs(1);
/// Samples that are waited for at once; while so many wait, no new one is taken.
const SAMPLES_MAX: usize = 64;

/// The batch that was acknowledged last, whoever sent it.
#[derive(Default)]
pub(crate) struct Latest(Mutex<Option<Sample>>);

struct Sample {
    session: SessionId,
    /// Batches of the session that are acknowledged, this one included.
    batches: u64,
    at: Instant,
}

impl Latest {
    pub(crate) fn note(&self, session: SessionId, batches: u64) {
        let sample = Sample { session, batches, at: Instant::now() };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(sample);
    }

    fn take(&self) -> Option<Sample> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Takes a sample each second until the load is over, and ends when all samples are readable.
pub(crate) async fn sample(
    api: &Api,
    latest: &Latest,
    figures: &Figures,
    within: Duration,
    mut is_over: watch::Receiver<bool>,
) {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut waiting: JoinSet<Option<Duration>> = JoinSet::new();
    let note = |readable: Option<Duration>| {
        figures.with(|figures| match readable {
            Some(after) => figures.readable.saturating_record(micros(after)),
            None => figures.never_readable += 1,
        });
    };
    loop {
        tokio::select! {
            _ = is_over.changed() => break,
            Some(sampled) = waiting.join_next() => note(sampled.unwrap_or(None)),
            _ = ticks.tick() => {
                if waiting.len() < SAMPLES_MAX && let Some(sample) = latest.take() {
                    waiting.spawn(wait(api.clone(), sample, within));
                }
            }
        }
    }
    while let Some(sampled) = waiting.join_next().await {
        note(sampled.unwrap_or(None));
    }
}

async fn wait(api: Api, sample: Sample, within: Duration) -> Option<Duration> {
    let look = || look_for_batches(&api, sample.session, sample.batches);
    until("a sampled batch is readable", within, look).await.ok()?;
    Some(sample.at.elapsed())
}
