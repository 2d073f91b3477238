//! Faults by name, each a round that can be run once or again and again.
//!
//! A round makes its own deployment, inflicts its fault under load, makes sure that the fault really came, heals it, and
//! compares what is read with the ledger, before and after compaction. It gives what the comparison found: what was lost or
//! doubled is counted by the caller, anything else that is wrong is an error.

mod compactors;
mod log;
mod outages;
mod partitions;
mod postgres;
mod processes;
mod s3;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use devstack::{DeploymentOptions, Stack};
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::client::DefaultClientContext;
use service_kit::config::kafka::KafkaConfig;
use service_kit::kafka;
use sqlx::Row as _;
use virtual_sdk::Comparison;

use log::Reaches;

use crate::harness::System;
use crate::load;

/// A fault that the system must live through.
pub(crate) struct Fault {
    /// Its name, and that of the deployment of its first round.
    pub(crate) name: &'static str,
    /// Runs a round on a stack, in a deployment of this name.
    pub(crate) round: for<'a> fn(&'a Stack, &'a str) -> LocalBoxFuture<'a, Result<Comparison>>,
}

pub(crate) const S3_UPLOADS: Fault =
    Fault { name: "s3uploads", round: |stack, name| s3::uploads_go_wrong(stack, name).boxed_local() };
pub(crate) const S3_REFUSES: Fault =
    Fault { name: "s3refuses", round: |stack, name| s3::refuses_for_long(stack, name).boxed_local() };
pub(crate) const S3_DELETES: Fault =
    Fault { name: "s3deletes", round: |stack, name| s3::deletions_go_wrong(stack, name).boxed_local() };
pub(crate) const COMMITS: Fault =
    Fault { name: "commits", round: |stack, name| postgres::commits_go_wrong(stack, name).boxed_local() };
pub(crate) const GROWN: Fault =
    Fault { name: "grown", round: |stack, name| partitions::are_added(stack, name).boxed_local() };
pub(crate) const LOG_CUT: Fault = Fault { name: "logcut", round: |stack, name| log::is_cut(stack, name).boxed_local() };
pub(crate) const LOG_ANEW: Fault =
    Fault { name: "loganew", round: |stack, name| log::is_made_anew(stack, name, Reaches::LessFar).boxed_local() };
pub(crate) const LOG_ANEW_LONGER: Fault =
    Fault { name: "loglonger", round: |stack, name| log::is_made_anew(stack, name, Reaches::Farther).boxed_local() };

pub(crate) const SIGTERM: Fault =
    Fault { name: "sigterm", round: |stack, name| processes::are_terminated(stack, name).boxed_local() };
pub(crate) const KILL_NINE: Fault =
    Fault { name: "killnine", round: |stack, name| processes::are_killed(stack, name).boxed_local() };
pub(crate) const ZOMBIES: Fault =
    Fault { name: "zombies", round: |stack, name| processes::are_frozen(stack, name).boxed_local() };
pub(crate) const RIVALS: Fault =
    Fault { name: "rivals", round: |stack, name| processes::are_rivals(stack, name).boxed_local() };
pub(crate) const COMPACTORS: Fault =
    Fault { name: "compactors", round: |stack, name| compactors::are_killed_and_frozen(stack, name).boxed_local() };
pub(crate) const SLOW_MERGES: Fault =
    Fault { name: "slowmerges", round: |stack, name| compactors::uploads_are_slow(stack, name).boxed_local() };
/// Its rounds have a stack of their own.
pub(crate) const OUTAGES: Fault = Fault { name: "outages", round: |_, name| outages::of_parts(name).boxed_local() };

/// All of them, for those who run them again and again.
#[cfg(not(test))]
pub(crate) static ALL: [Fault; 15] = [
    S3_UPLOADS,
    S3_REFUSES,
    S3_DELETES,
    COMMITS,
    GROWN,
    LOG_CUT,
    LOG_ANEW,
    LOG_ANEW_LONGER,
    SIGTERM,
    KILL_NINE,
    ZOMBIES,
    RIVALS,
    COMPACTORS,
    SLOW_MERGES,
    OUTAGES,
];

/// Partitions of a deployment's topic, where nothing else is said.
const PARTITIONS: usize = 4;

/// A deployment in which much happens soon: flushes, runs, ends of sessions.
fn quick(name: &str) -> DeploymentOptions {
    DeploymentOptions::named(name)
        .with("batcher", "CLAIRVIO_FLUSH_AGE_MS", 200)
        .with("compactor", "CLAIRVIO_RUN_AGE_MS", 1_000)
        .with("compactor", "CLAIRVIO_PASS_INTERVAL_MS", 200)
        .with("", "CLAIRVIO_SESSION_SILENCE_MS", 4_000)
}

/// Inflicts faults under a load, watches meanwhile that progress only grows (B1), and compares when both are over.
async fn under_load(
    system: &System<'_>,
    clients: usize,
    batches: u32,
    faults: impl Future<Output = Result<()>>,
) -> Result<Comparison> {
    let (link, sdks) = (system.link(&system.name).await?, [system.sdk(1)?]);
    let (stop, stop_watching) = (AtomicBool::new(false), AtomicBool::new(false));
    let sending = async {
        let sent = load::load_during(load::load(system, &sdks, &link, clients, batches, &stop), &stop, faults).await?;
        stop_watching.store(true, Ordering::Release);
        anyhow::Ok(sent)
    };
    let (sent, ()) = tokio::try_join!(sending, watch_progress(system, &stop_watching))?;
    ensure!(sent > 50, "a load of {sent} batches is none");
    load::count_settled(system).await
}

/// Next offset and epoch by partition.
async fn progress(system: &System<'_>) -> Result<BTreeMap<i32, (i64, i64)>> {
    let rows = sqlx::query("select partition, next_offset, epoch from partition_progress")
        .fetch_all(system.index.pool())
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect())
}

/// Makes sure until `stop` that progress and epochs of no partition go back (B1).
async fn watch_progress(system: &System<'_>, stop: &AtomicBool) -> Result<()> {
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    let mut before = progress(system).await?;
    while !stop.load(Ordering::Acquire) {
        looks.tick().await;
        let now = progress(system).await?;
        for (partition, (next, epoch)) in &before {
            let seen = now.get(partition);
            let grew = seen.is_some_and(|(next_now, epoch_now)| next_now >= next && epoch_now >= epoch);
            ensure!(grew, "B1: partition {partition} went from {next} under epoch {epoch} to {seen:?}");
        }
        before = now;
    }
    Ok(())
}

/// A client of the deployment's Kafka, as services have one.
fn kafka_client(system: &System<'_>) -> ClientConfig {
    let config = KafkaConfig {
        brokers: system.stack.parts().kafka_brokers.clone(),
        topic_events: system.deployment.topic.clone(),
        delivery_timeout: Duration::from_secs(5),
    };
    kafka::client(&config, "test")
}

pub(crate) fn kafka_admin(system: &System<'_>) -> Result<AdminClient<DefaultClientContext>> {
    kafka_client(system).create().context("make kafka's admin client")
}

/// The text of a service's log so far.
fn log_of(system: &System<'_>, service: &str) -> Result<String> {
    let log = system.deployment.supervisor.log(service);
    std::fs::read_to_string(&log).with_context(|| format!("read log {}", log.display()))
}

#[cfg(test)]
mod tests {
    use anyhow::Result;

    use super::*;
    use crate::harness::run_round;

    /// Goal: whatever S3 does to an upload, its records are published once. Method: uploads are answered with 500 and 503,
    /// taken in at a crawl, cut half-way, carried out without an answer, and carried out after the batcher gave up, by turns.
    #[test]
    fn uploads_that_go_wrong_lose_and_double_nothing() -> Result<()> {
        run_round(&S3_UPLOADS)
    }

    /// Goal: while S3 refuses, the batcher's memory stays within its bound, its consumer stays in the group, and all is
    /// published when S3 takes it again. Method: 503 to every upload while more is sent than the bound.
    #[test]
    fn partitions_pause_while_s3_refuses() -> Result<()> {
        run_round(&S3_REFUSES)
    }

    /// Goal (R3): whatever S3 answers to requests that delete, nothing is called erased that is there, and all of it goes at last; nothing else
    /// goes. Method: by turns such requests are answered as if all was deleted, with errors inside, with 503, or not at all.
    #[test]
    fn r03_no_answer_of_s3_is_taken_for_a_deletion() -> Result<()> {
        run_round(&S3_DELETES)
    }

    /// Goal: a publishing whose commit has no answer is looked up, then decided (B1, B2). Method: a proxy before Postgres
    /// drops commits, or their replies, or holds replies back, by turns.
    #[test]
    fn commits_without_an_answer_lose_and_double_nothing() -> Result<()> {
        run_round(&COMMITS)
    }

    /// Goal: partitions that are added under load change nothing for sessions, though their keys move. Method: 4 become 8
    /// while sessions run; rows then name old and new partitions, and everything is read complete and in order.
    #[test]
    fn partitions_are_added_while_sessions_run() -> Result<()> {
        run_round(&GROWN)
    }

    /// Goal: records that the log lost before they were stored are an alarm and a row, and cost nothing else. Method: while
    /// the batcher is down, records past the index's offset are deleted; the session's holes are exactly those.
    #[test]
    fn a_log_that_was_cut_leaves_a_gap_and_nothing_else() -> Result<()> {
        run_round(&LOG_CUT)
    }

    /// Goal: a topic that was deleted and made anew is not mistaken for the one that is stored. Method: that, while the
    /// batcher is down; the new one has fewer records than the index knows.
    #[test]
    fn a_topic_made_anew_halts_its_partitions() -> Result<()> {
        run_round(&LOG_ANEW)
    }

    /// The same, and the new topic has grown beyond the offset that is stored next: only the last record that was stored of
    /// the old one tells them apart.
    #[test]
    fn a_topic_made_anew_that_has_grown_longer_halts_its_partitions() -> Result<()> {
        run_round(&LOG_ANEW_LONGER)
    }
}
