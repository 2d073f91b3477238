//! Sessions that are deleted by hand, one after the other: how soon others cannot read them, their keys are destroyed, their bytes gone.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use devstack::Endpoints;
use hdrhistogram::Histogram;
use schemas::http::DeletionItem;
use schemas::{DeletionId, SessionId};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use virtual_sdk::sdk::random_attempt;
use virtual_sdk::{Api, Body, Encoding, Form, Sdk, SdkOptions, recordings};

use super::Bench;
use crate::figures::micros;
use crate::progress::Line;
use crate::report::Quantiles;
use crate::stored::{self, Stored};

const LOOK_EVERY: Duration = Duration::from_millis(5);
const NOTICE_VERSION: &str = "bench-1";
const WITHIN: Duration = Duration::from_secs(120);

/// From when the call was sent, in milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct ByHand {
    /// Until it was answered.
    pub(super) answered_ms: Quantiles,
    /// Until a reading at another control plane was answered with 410.
    pub(super) unreadable_ms: Quantiles,
    /// Until its deletion said that the key was destroyed,
    pub(super) shredded_ms: Quantiles,
    /// and that nothing of it is in the bucket.
    pub(super) erased_ms: Quantiles,
}

pub(super) async fn run(bench: &Bench<'_>, count: u32) -> anyhow::Result<ByHand> {
    let endpoints = bench.deployment.endpoints();
    let line = Line::new();
    line.show(&format!("{count} sessions are recorded"));
    let sessions = record(bench, &endpoints, count).await?;
    stored::wait_until_drained(bench.deployment, WITHIN).await?;
    // Each lies in an object of its own then, and waits for no compactor.
    Stored::of(bench.deployment)?.wait_until_merged(bench.deployment, &[], WITHIN).await?;
    // Not the one that is asked to delete.
    let other = bench.deployment.api_urls.get(1).context("find the second control plane")?;
    let other = Api::new(other, &endpoints.api_key)?;
    let histogram = || Histogram::<u64>::new_with_bounds(1, 600_000_000, 3);
    let (mut answered, mut unreadable, mut shredded, mut erased) =
        (histogram()?, histogram()?, histogram()?, histogram()?);
    let mut erasing = JoinSet::new();
    for (number, session) in sessions.into_iter().enumerate() {
        ensure!(other.session(session).await.is_ok(), "session {session} cannot be read before it is deleted");
        let begun = Instant::now();
        let deletion = bench.api.delete_session(session).await.context("delete session")?.deletion_id;
        answered.saturating_record(micros(begun.elapsed()));
        wait(begun, async || Ok(other.session(session).await.err().and_then(|error| error.status()) == Some(410)))
            .await
            .context("wait for a reading to be refused")?;
        unreadable.saturating_record(micros(begun.elapsed()));
        wait(begun, async || Ok(item(&bench.api, deletion).await?.sessions_shredded == 1))
            .await
            .context("wait for its key")?;
        shredded.saturating_record(micros(begun.elapsed()));
        let api = bench.api.clone();
        erasing.spawn(async move { erased_after(&api, deletion, begun).await });
        line.show(&format!("{} of {count} deleted by hand", number + 1));
    }
    while let Some(took) = erasing.join_next().await {
        erased.saturating_record(micros(took??));
    }
    line.end();
    Ok(ByHand {
        answered_ms: Quantiles::of(&answered, 1.0),
        unreadable_ms: Quantiles::of(&unreadable, 1.0),
        shredded_ms: Quantiles::of(&shredded, 1.0),
        erased_ms: Quantiles::of(&erased, 1.0),
    })
}

async fn item(api: &Api, deletion: DeletionId) -> anyhow::Result<DeletionItem> {
    api.deletion(deletion).await.context("ask for deletion")
}

async fn wait(begun: Instant, look: impl AsyncFn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    while !look().await? {
        if begun.elapsed() > WITHIN {
            bail!("not within {} s", WITHIN.as_secs());
        }
        sleep(LOOK_EVERY).await;
    }
    Ok(())
}

async fn erased_after(api: &Api, deletion: DeletionId, begun: Instant) -> anyhow::Result<Duration> {
    while item(api, deletion).await?.erased_at.is_none() {
        ensure!(begun.elapsed() <= WITHIN, "wait for a session's bytes: not within {} s", WITHIN.as_secs());
        // There are many that wait.
        sleep(LOOK_EVERY * 10).await;
    }
    Ok(begun.elapsed())
}

/// Sessions of a batch each.
async fn record(bench: &Bench<'_>, endpoints: &Endpoints, count: u32) -> anyhow::Result<Vec<SessionId>> {
    let recordings = recordings::load()?;
    let batch = recordings.first().and_then(|recording| recording.batches().first()).context("find a recording")?;
    let body = Body::of_batch(batch, Form::Lines, Encoding::Zstd).context("encode batch")?;
    let sdk = Sdk::new(&endpoints.edge_url, SdkOptions::default())?;
    let link = schemas::http::LinkRequest {
        reference: "bench-deletion".into(),
        expires_in: None,
        max_sessions: Some(10_000),
        redirect_url: None,
        masking: None,
    };
    let (mut links, mut sessions) = (Vec::new(), Vec::new());
    for number in 0..count as usize {
        if number.is_multiple_of(10_000) {
            links.push(bench.api.create_link(&link).await.context("make link")?.token);
        }
        let give_up = || Instant::now() + WITHIN;
        let link = links.last().context("find link")?;
        let session = sdk.accept_until_answered(link, NOTICE_VERSION, &random_attempt(), give_up()).await?.answer;
        sdk.send_until_acknowledged(&session, 0, 0, true, &body, give_up()).await.context("send batch")?;
        sessions.push(session.id);
    }
    Ok(sessions)
}
