//! Faults by name, each a round that can be run once or again and again.
//!
//! A round makes its own deployment, inflicts its fault under load, makes sure that the fault really came, heals it, and
//! compares what is read with the ledger, before and after compaction. It gives what the comparison found: what was lost or
//! doubled is counted by the caller, anything else that is wrong is an error.

mod log;
mod partitions;
mod postgres;
mod s3;

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
use virtual_sdk::Comparison;

use crate::crashes::watch_progress;
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
pub(crate) const COMMITS: Fault =
    Fault { name: "commits", round: |stack, name| postgres::commits_go_wrong(stack, name).boxed_local() };
pub(crate) const GROWN: Fault =
    Fault { name: "grown", round: |stack, name| partitions::are_added(stack, name).boxed_local() };
pub(crate) const LOG_CUT: Fault = Fault { name: "logcut", round: |stack, name| log::is_cut(stack, name).boxed_local() };
pub(crate) const LOG_ANEW: Fault =
    Fault { name: "loganew", round: |stack, name| log::is_made_anew(stack, name).boxed_local() };

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

/// A client of the deployment's Kafka, as services have one.
fn kafka_client(system: &System<'_>) -> ClientConfig {
    let config = KafkaConfig {
        brokers: system.stack.parts().kafka_brokers.clone(),
        topic_events: system.deployment.topic.clone(),
        delivery_timeout: Duration::from_secs(5),
    };
    kafka::client(&config, "test")
}

fn kafka_admin(system: &System<'_>) -> Result<AdminClient<DefaultClientContext>> {
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
}
