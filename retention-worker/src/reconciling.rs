//! Compares bucket and index all the time, beside the passes, and tells what does not agree. It only tells, but of the journal: what a
//! missing entry said is written anew, and what an unknown one says is carried out.
//!
//! One round goes on at a time, whoever goes on with it: a row of the index has how far it has come and who has it, and is taken by
//! compare-and-swap for a time that each page renews. So several workers share one round's cost, a dead one's round is gone on with by
//! another where it was, and all of them show what was found. A held lock would need a connection and a transaction for hours; a round
//! of each worker's own would cost as many times as there are workers, and begin anew with each start.

use std::time::Duration;

use schemas::paths::ObjectKey;
use service_kit::config::{Env, Knob};
use service_kit::shutdown::Shutdown;
use service_kit::telemetry::chain;
use storage::index::Index;
use storage::index::reconciling::{PastWindow, Progress};
use storage::journal::{Journal, JournalError};
use storage::reconciling::{Finding, PAST_WINDOW_TOLERANCE, Reconciler};
use uuid::Uuid;

use crate::metrics;

/// Requests to the bucket that a page takes at most, when something on it is suspicious. A round whose worker has said nothing for longer
/// than they may take, and its pause, is another's.
const PAGE_REQUESTS: u32 = 4;

/// Keys that are told of a round.
const EXAMPLES_MAX: usize = 5;

/// How it is paced.
#[derive(Debug, Clone, Copy)]
pub struct ReconcilingConfig {
    /// How long after the end of a round the next one begins.
    pub interval: Duration,
    /// The pause after each page.
    pub page_pause: Duration,
}

const INTERVAL_MS: Knob = Knob {
    name: "CLAIRVIO_RECONCILE_INTERVAL_MS",
    doc: "How long after a comparison of bucket and index the next one begins, by one of all workers.",
    unit: "milliseconds",
    default: Some("3600000"),
    secret: false,
};
const PAGE_PAUSE_MS: Knob = Knob {
    name: "CLAIRVIO_RECONCILE_PAGE_PAUSE_MS",
    doc: "The pause after each page of such a comparison. A million objects are 1,000 pages of the bucket's list, each a paid request, \
          and 1,000 of the index.",
    unit: "milliseconds",
    default: Some("250"),
    secret: false,
};

impl ReconcilingConfig {
    pub(crate) fn load(env: &mut Env<'_>) -> Self {
        Self { interval: env.millis(&INTERVAL_MS), page_pause: env.millis(&PAGE_PAUSE_MS) }
    }
}

/// One worker's part in the rounds.
pub(crate) struct Reconciling {
    config: ReconcilingConfig,
    index: Index,
    reconciler: Reconciler,
    journal: Journal,
    /// This process, among those that take rounds.
    owner: Uuid,
    /// How long it has one after each page.
    lease: Duration,
}

impl Reconciling {
    /// A request to the bucket may take `request_timeout`.
    pub(crate) fn new(
        config: ReconcilingConfig,
        request_timeout: Duration,
        index: Index,
        reconciler: Reconciler,
        journal: Journal,
    ) -> Self {
        let lease = PAGE_REQUESTS * request_timeout + config.page_pause;
        Self { config, index, reconciler, journal, owner: Uuid::now_v7(), lease }
    }

    /// Goes on with the round when nobody else does, and tells what is known. What fails is taken up again where it was, each `interval`.
    pub(crate) async fn run(self, interval: Duration, shutdown: Shutdown) {
        loop {
            if let Err(error) = self.pass(&shutdown).await {
                ::metrics::counter!(metrics::FAILURES).increment(1);
                tracing::warn!("compare bucket and index: {error:#}; trying again");
            }
            if !shutdown.sleep(interval).await {
                return;
            }
        }
    }

    async fn pass(&self, shutdown: &Shutdown) -> anyhow::Result<()> {
        if let Some(progress) = self.index.take_round(self.owner, self.lease, self.config.interval).await? {
            self.go_on(progress, shutdown).await?;
        }
        self.show().await
    }

    /// Goes on to the end of the round, or until another worker has it.
    async fn go_on(&self, mut progress: Progress, shutdown: &Shutdown) -> anyhow::Result<()> {
        let mut walk = self.reconciler.walk(progress.position.as_deref()).await?;
        let mut counted = 0;
        let objects_before = progress.objects;
        while let Some(findings) = self.reconciler.step(&mut walk).await? {
            ::metrics::counter!(metrics::RECONCILED).increment(walk.objects() - counted);
            counted = walk.objects();
            progress.objects = objects_before + counted;
            progress.position = Some(walk.position());
            note(&mut progress, &findings);
            if !self.index.keep_round(self.owner, self.lease, &progress).await? {
                return Ok(());
            }
            if !findings.is_empty() {
                self.show().await?;
                self.mend_journal(&findings).await;
            }
            if !shutdown.sleep(self.config.page_pause).await {
                return Ok(self.index.leave_round(self.owner).await?);
            }
        }
        let past_window = self.reconciler.past_window().await?;
        if self.index.end_round(self.owner, &progress, &past_window).await? {
            tell(&progress, &past_window);
        }
        Ok(())
    }

    /// What cannot be mended is told, and the round goes on: the next one finds it again.
    async fn mend_journal(&self, findings: &[Finding]) {
        let mended = async {
            let mut missing = 0;
            for finding in findings {
                if let Finding::Missing(ObjectKey::Journal { id }) = finding {
                    missing += u64::from(self.index.unwrite(*id).await?);
                }
            }
            if missing > 0 {
                tracing::warn!(
                    missing,
                    "somebody removed entries of the journal of deletions; what they said is written anew"
                );
            }
            if findings.iter().any(|finding| matches!(finding, Finding::Unknown(_))) {
                self.journal.replay().await?.tell();
            }
            Ok::<_, JournalError>(())
        };
        if let Err(error) = mended.await {
            ::metrics::counter!(metrics::FAILURES).increment(1);
            tracing::error!("mend the journal of deletions: {}; trying again", chain(&error));
        }
    }

    /// Every worker shows what was found, whoever found it: so no gauge stays as it was when the round went to another.
    async fn show(&self) -> anyhow::Result<()> {
        let known = self.index.reconciled().await?;
        ::metrics::gauge!(metrics::ORPHANS).set(known.orphans as f64);
        ::metrics::gauge!(metrics::MISSING).set(known.missing as f64);
        ::metrics::gauge!(metrics::PAST_WINDOW_SESSIONS).set(known.past_window_sessions as f64);
        ::metrics::gauge!(metrics::PAST_WINDOW_BYTES).set(known.past_window_bytes as f64);
        let ended_s = known.ended_at.map_or(0, |at| at.unix_timestamp());
        ::metrics::gauge!(metrics::RECONCILED_AT).set(ended_s as f64);
        Ok(())
    }
}

fn note(progress: &mut Progress, findings: &[Finding]) {
    for finding in findings {
        match finding {
            Finding::Orphan(_) | Finding::Stranger(_) => progress.orphans += 1,
            Finding::Missing(_) => progress.missing += 1,
            // Who carries it out says so, if it was of any use.
            Finding::Unknown(_) => {}
        }
    }
    let room = EXAMPLES_MAX.saturating_sub(progress.examples.len());
    let told = findings.iter().filter(|finding| !matches!(finding, Finding::Unknown(_)));
    progress.examples.extend(told.filter_map(Finding::key).take(room).map(ToString::to_string));
}

fn tell(progress: &Progress, past_window: &[PastWindow]) {
    if progress.orphans + progress.missing > 0 {
        tracing::warn!(
            objects = progress.objects,
            orphans = progress.orphans,
            missing = progress.missing,
            examples = progress.examples.join(" "),
            "bucket and index do not agree; `clairvio reconcile` lists all of it"
        );
    }
    if !past_window.is_empty() {
        tracing::warn!(
            sessions = past_window.len(),
            bytes = past_window.iter().map(|past| past.bytes).sum::<u64>(),
            tolerance_s = PAST_WINDOW_TOLERANCE.as_secs(),
            "sessions past their window are there still; `clairvio reconcile` lists them"
        );
    }
}
