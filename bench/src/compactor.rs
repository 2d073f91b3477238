//! What the compactor costs: processor time beside the bare compression of the same bytes, requests to S3, and memory in its two
//! large cases: a run of many sessions, and one session of any size.
//!
//! Flow, for each case: a fresh deployment without compactors is filled through its edges, its batchers bring all of it into
//! shared objects, then one compactor starts and is watched until nothing is left to merge. What it says it asked of S3, what `/proc`
//! says of it and what the index says of its results is noted; all that was acknowledged is read back and compared; and the same
//! bytes go through zstd on one thread, at the level and in frames of the size of session objects.

mod giant;
mod report;

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use devstack::{Deployment, DeploymentOptions, Stack};
use futures::{StreamExt as _, stream};
use schemas::SessionId;
use schemas::limits::{FRAME_RAW_BYTES, SESSION_ZSTD_LEVEL as LEVEL};
use serde::Serialize;
use virtual_sdk::verify::read_back;
use virtual_sdk::{Api, Comparison, EventsFormat, Ledger};

pub use report::Report;

use crate::batcher::fill::{Filled, Source};
use crate::machine;
use crate::stored::{self, Stored};
use giant::Giant;

/// Production's defaults, which devstack shortens.
const FLUSH_AGE_MS: u64 = 10_000;
const LEASE_MS: u64 = 120_000;
/// One session may send as fast as its plan allows at each edge.
const GIANT_EDGES: usize = 6;
const READERS: usize = 8;
/// Compressed between two looks at the clock, which ticks in hundredths of a second.
const MEASURED_BYTES: usize = 64 << 20;
/// A case of a gigabyte takes minutes, whatever is slow.
const DRAINED_WITHIN: Duration = Duration::from_secs(900);
const MERGED_WITHIN: Duration = Duration::from_secs(1_800);
/// The design's bound for a compactor's memory.
const MEMORY_MAX: u64 = 256 << 20;

/// What a run is asked to do.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Options {
    /// Events of the run of many sessions, as JSON before compression, in MB.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    pub megabytes: u64,
    /// Sessions that they are of, all in one partition.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub sessions: u32,
    /// Events of the one large session, in MB; 0 leaves it out.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(0..=100_000))]
    pub giant_megabytes: u64,
}

/// The bare compression of the same bytes.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Reference {
    raw_bytes: u64,
    compressed_bytes: u64,
    cpu_seconds: f64,
}

/// What one case showed.
#[derive(Debug, Clone, Serialize)]
struct Case {
    name: &'static str,
    filled: Filled,
    shared_objects: usize,
    /// From the compactor's start until nothing was left to merge; silence that ends sessions is in it.
    seconds: f64,
    /// User and system, its start included.
    cpu_seconds: f64,
    /// The most memory that the compactor had at any time.
    peak_bytes: u64,
    /// Session objects, footers and seals included.
    stored_bytes: u64,
    session_objects: usize,
    batcher_requests: BTreeMap<String, u64>,
    compactor_requests: BTreeMap<String, u64>,
    reference: Reference,
    events_read: u64,
    read_seconds: f64,
    faults: Vec<String>,
}

/// Measures, on deployments of its own. An error means that it could not be carried out; what it found wrong with the
/// system is in the report's verdict.
pub async fn run(stack: &Stack, options: &Options) -> anyhow::Result<Report> {
    let mut cases = vec![many(stack, options).await.context("merge a run of many sessions")?];
    if options.giant_megabytes > 0 {
        cases.push(one(stack, options.giant_megabytes * 1_000_000).await.context("merge one large session")?);
    }
    Ok(Report::new(options.clone(), cases))
}

fn deployment(name: &str, edges: usize) -> DeploymentOptions {
    let options = DeploymentOptions {
        edges,
        // Condemned objects are nobody's matter here.
        workers: 0,
        partitions: 1,
        // One that died and came again would have lost its counts.
        restart: false,
        held: Some("compactor".to_owned()),
        ..DeploymentOptions::named(name)
    };
    options.with("batcher", "CLAIRVIO_FLUSH_AGE_MS", FLUSH_AGE_MS).with("compactor", "CLAIRVIO_LEASE_MS", LEASE_MS)
}

async fn many(stack: &Stack, options: &Options) -> anyhow::Result<Case> {
    let source = Arc::new(Source::load()?);
    let plan = Arc::new(source.plan(options.megabytes * 1_000_000, options.sessions as usize)?);
    let deployment = Deployment::start(stack, &deployment("many", 1)).await?;
    let ledger = Ledger::default();
    let filled = source.fill(&deployment.endpoints(), &plan, &ledger).await?;
    let mut case = merge(&deployment, "many sessions", filled, &ledger.sessions()).await?;
    let begun = Instant::now();
    let comparison = read_all(&deployment, &ledger).await?;
    case.read_seconds = begun.elapsed().as_secs_f64();
    case.events_read = comparison.read;
    if !comparison.is_exact() || comparison.read != case.filled.events {
        case.faults.push(format!(
            "{} events were read, {} acknowledged; first fault: {:?}",
            comparison.read, case.filled.events, comparison.first_fault
        ));
    }
    deployment.stop().await?;
    // After it, not beside it: on few cores each would slow the other down.
    let compressing = tokio::task::spawn_blocking(move || {
        compress(plan.iter().map(|session| Ok(session.iter().flat_map(|step| source.raw(*step)).copied().collect())))
    });
    case.reference = compressing.await.context("wait for the reference")??;
    Ok(case)
}

async fn one(stack: &Stack, raw_bytes: u64) -> anyhow::Result<Case> {
    let giant = Giant::of(raw_bytes)?;
    let deployment = Deployment::start(stack, &deployment("one", GIANT_EDGES)).await?;
    let (session, filled) = giant.send(&deployment).await?;
    let mut case = merge(&deployment, "one session", filled, &[session]).await?;
    let endpoints = deployment.endpoints();
    let begun = Instant::now();
    let read = giant.read_back(&Api::new(&endpoints.api_url, &endpoints.api_key)?, session, &case.filled).await?;
    case.read_seconds = begun.elapsed().as_secs_f64();
    case.events_read = read.events;
    case.faults.extend(read.faults);
    deployment.stop().await?;
    case.reference =
        tokio::task::spawn_blocking(move || compress(giant.laps())).await.context("wait for the reference")??;
    Ok(case)
}

/// Lets the compactor merge what was filled.
async fn merge(
    deployment: &Deployment,
    name: &'static str,
    filled: Filled,
    sessions: &[SessionId],
) -> anyhow::Result<Case> {
    let stored = Stored::of(deployment)?;
    stored::wait_until_drained(deployment, DRAINED_WITHIN).await?;
    let shared_objects = stored.shared_objects().await?;
    let begun = Instant::now();
    let compactors = deployment.release().await?;
    stored.wait_until_merged(deployment, &compactors, MERGED_WITHIN).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let running = deployment.supervisor.running();
    let running: Vec<_> = running.into_iter().filter(|service| compactors.contains(&service.name)).collect();
    let peaks = running.iter().filter_map(|service| machine::peak_bytes(service.pid));
    let peak_bytes = peaks.max().context("read memory of the compactor from /proc")?;
    let cpu = machine::service_cpu(&running);
    ensure!(cpu.len() == compactors.len(), "read processor time of the compactor from /proc");
    let (mut session_objects, mut stored_bytes, mut divided) = (0, 0, 0_u64);
    for session in sessions {
        let objects = stored.own_objects(*session).await?;
        session_objects += objects.len();
        stored_bytes += objects.iter().sum::<u64>();
        divided += u64::from(objects.len() != 1);
    }
    let mut faults = Vec::new();
    if divided > 0 {
        faults.push(format!("{divided} of {} sessions are not in one object", sessions.len()));
    }
    if peak_bytes > MEMORY_MAX {
        faults.push(format!(
            "the compactor had {} MiB of memory, {} are the bound",
            peak_bytes >> 20,
            MEMORY_MAX >> 20
        ));
    }
    Ok(Case {
        name,
        filled,
        shared_objects,
        seconds,
        cpu_seconds: cpu.values().sum(),
        peak_bytes,
        stored_bytes,
        session_objects,
        batcher_requests: stored::requests(deployment, "batcher").await?,
        compactor_requests: stored::requests(deployment, "compactor").await?,
        reference: Reference::default(),
        events_read: 0,
        read_seconds: 0.0,
        faults,
    })
}

async fn read_all(deployment: &Deployment, ledger: &Ledger) -> anyhow::Result<Comparison> {
    let endpoints = deployment.endpoints();
    let api = Api::new(&endpoints.api_url, &endpoints.api_key)?;
    let sessions = ledger.sessions();
    let reading = sessions.iter().map(|session| {
        let (api, expected) = (&api, ledger.session(*session).unwrap_or_default());
        async move { read_back(api, *session, &expected, EventsFormat::Lines).await }
    });
    let mut reading = stream::iter(reading).buffer_unordered(READERS);
    let mut comparison = Comparison::default();
    while let Some(read) = reading.next().await {
        comparison.add(read.context("read a session back")?.comparison);
    }
    Ok(comparison)
}

/// Each text by itself, in frames of the size of session objects'.
fn compress(texts: impl Iterator<Item = anyhow::Result<Vec<u8>>>) -> anyhow::Result<Reference> {
    let mut compressor = zstd::bulk::Compressor::new(LEVEL).context("make compressor")?;
    compressor.include_checksum(true).context("ask for checksums")?;
    let cpu = || machine::thread_cpu_seconds().context("read processor time of this thread from /proc");
    let mut written = Vec::with_capacity(zstd::zstd_safe::compress_bound(FRAME_RAW_BYTES));
    let mut reference = Reference::default();
    let mut texts = texts.peekable();
    while texts.peek().is_some() {
        // Only the compression counts, and so much of it at once that the clock's ticks do not.
        let mut some = Vec::new();
        while some.iter().map(Vec::len).sum::<usize>() < MEASURED_BYTES
            && let Some(text) = texts.next()
        {
            some.push(text?);
        }
        let begun = cpu()?;
        for frame in some.iter().flat_map(|text| text.chunks(FRAME_RAW_BYTES)) {
            written.clear();
            compressor.compress_to_buffer(frame, &mut written).context("compress frame")?;
            reference.compressed_bytes += black_box(&written).len() as u64;
        }
        reference.cpu_seconds += cpu()? - begun;
        reference.raw_bytes += some.iter().map(|text| text.len() as u64).sum::<u64>();
    }
    Ok(reference)
}
