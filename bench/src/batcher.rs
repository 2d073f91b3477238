//! What the batcher costs: processor time beside the bare compression of the same bytes, PUTs and index rows, and how fast
//! one and two of them drain a log.
//!
//! Flow, in each round, for one batcher and for two: a fresh deployment without batchers is filled through its edge
//! (`fill`), then its batchers start and are watched until the index has everything (`drain`), their own counts
//! (`counts`) are compared with what was acknowledged, and the same bytes go through zstd at level 1 on one thread.
//! Flushes are as in production; nothing compacts meanwhile.

mod counts;
mod drain;
pub(crate) mod fill;
mod report;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use clap::Args;
use devstack::{Deployment, DeploymentOptions, Stack};
use serde::Serialize;
use virtual_sdk::Ledger;

pub use report::Report;

use drain::Drain;
use fill::{Filled, Source, Step};

/// Production's defaults, which devstack shortens.
const FLUSH_AGE_MS: u64 = 10_000;
const FLUSH_BYTES: u64 = 16 << 20;
const BATCHERS: [usize; 2] = [1, 2];
const REFERENCE_LEVEL: i32 = 1;
/// How the programs were built.
pub(crate) const PROFILE: &str = if cfg!(debug_assertions) {
    "dev: opt-level 1, with 3 for engine, schemas, sealing and all dependencies"
} else {
    "without debug assertions"
};

/// What a run is asked to do.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Options {
    /// Events that each drain begins with, as JSON before compression, in MB.
    ///
    /// Throughput is measured until the last flushes, which wait for their age: a partition needs three flushes or more for a
    /// figure that says something. A flush of 16 MiB holds about 100 MB of the recordings' events.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub megabytes: u64,
    /// Sessions that they are of.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub sessions: u32,
    /// Partitions of the topic.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(i32).range(2..=64))]
    pub partitions: i32,
    /// How often all of it is repeated.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: u32,
}

/// The bare compression of the same bytes.
#[derive(Debug, Clone, Copy, Serialize)]
struct Reference {
    raw_bytes: u64,
    compressed_bytes: u64,
    seconds: f64,
    cpu_seconds: f64,
}

/// One drain.
#[derive(Debug, Clone, Serialize)]
struct Round {
    batchers: usize,
    filled: Filled,
    drain: Drain,
    reference: Reference,
}

/// Measures, on deployments of its own. An error means that it could not be carried out; what it found wrong with the
/// system is in the report's verdict.
pub async fn run(stack: &Stack, options: &Options) -> anyhow::Result<Report> {
    let source = Arc::new(Source::load()?);
    let plan = Arc::new(source.plan(options.megabytes * 1_000_000, options.sessions as usize)?);
    let mut rounds = Vec::new();
    for number in 1..=options.rounds {
        for batchers in BATCHERS {
            eprintln!("round {number} of {}: {batchers} of {} batchers", options.rounds, BATCHERS.len());
            let name = format!("drain-{number}-{batchers}");
            let round = round(stack, &name, batchers, options, &source, &plan).await;
            rounds.push(round.with_context(|| format!("round {number} with {batchers} batchers"))?);
        }
    }
    Ok(Report::new(options.clone(), rounds))
}

async fn round(
    stack: &Stack,
    name: &str,
    batchers: usize,
    options: &Options,
    source: &Arc<Source>,
    plan: &Arc<Vec<Vec<Step>>>,
) -> anyhow::Result<Round> {
    let deployment = DeploymentOptions {
        batchers,
        compactors: 0,
        workers: 0,
        partitions: options.partitions,
        // One that died and came again would have lost its counts.
        restart: false,
        held: Some("batcher".to_owned()),
        ..DeploymentOptions::named(name)
    };
    let deployment = deployment.with("batcher", "CLAIRVIO_FLUSH_AGE_MS", FLUSH_AGE_MS).with(
        "batcher",
        "CLAIRVIO_FLUSH_BYTES",
        FLUSH_BYTES,
    );
    let deployment = Deployment::start(stack, &deployment).await?;
    let filled = source.fill(&deployment.endpoints(), plan, &Ledger::default()).await?;
    let drain = drain::run(&deployment, &filled).await?;
    deployment.stop().await?;
    // After it, not beside it: on few cores each would slow the other down.
    let (source, plan) = (Arc::clone(source), Arc::clone(plan));
    let compressing = tokio::task::spawn_blocking(move || compress(&source, &plan));
    let reference = compressing.await.context("wait for the reference")??;
    Ok(Round { batchers, filled, drain, reference })
}

/// Every batch of the plan in its order, each a frame of its own as in a record.
fn compress(source: &Source, plan: &[Vec<Step>]) -> anyhow::Result<Reference> {
    let mut compressor = zstd::bulk::Compressor::new(REFERENCE_LEVEL).context("make compressor")?;
    let (mut frame, mut raw_bytes, mut compressed_bytes) = (Vec::new(), 0, 0);
    let cpu = || crate::machine::thread_cpu_seconds().context("read processor time of this thread from /proc");
    let (begun, cpu_before) = (Instant::now(), cpu()?);
    for step in plan.iter().flatten() {
        let raw = source.raw(*step);
        frame.clear();
        frame.reserve(zstd::zstd_safe::compress_bound(raw.len()));
        compressor.compress_to_buffer(raw, &mut frame).context("compress batch")?;
        raw_bytes += raw.len() as u64;
        compressed_bytes += black_box(&frame).len() as u64;
    }
    let (seconds, cpu_seconds) = (begun.elapsed().as_secs_f64(), cpu()? - cpu_before);
    Ok(Reference { raw_bytes, compressed_bytes, seconds, cpu_seconds })
}
