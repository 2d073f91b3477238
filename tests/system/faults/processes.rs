//! Services that are asked to stop, killed, frozen, or doubled, under load.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Result, ensure};
use devstack::{DeploymentOptions, ServiceSpec, Stack, find_binary, free_port};
use tokio::time::Instant;
use virtual_sdk::{Comparison, Seen, until};

use super::{PARTITIONS, progress, watch_progress};
use crate::harness::{LATER, SOON, System, metric, run_on};
use crate::load;

/// The supervisor kills what has not ended by then; a service that drains is faster.
const DRAINED_WITHIN: Duration = Duration::from_secs(9);

/// What a batcher says when another one has its partitions by now.
const LOST_PARTITIONS: &[&str] = &["give back partitions", "stop reading partition", "read partition"];

/// One that was stopped within a transaction holds its locks until Postgres ends it: the other one waits, and says so, and
/// the one that wakes up finds its connection closed. One that was stopped within an upload or a question finds that its time
/// is over.
const STOPPED: &[&str] = &[
    "part is down",
    "give back partitions",
    "stop reading partition",
    "read partition",
    "lock timeout",
    "idle-in-transaction timeout",
    "ask where the log begins and ends",
    "testing the connection",
];

pub(super) async fn are_terminated(stack: &Stack, name: &str) -> Result<Comparison> {
    let options = DeploymentOptions { edges: 2, batchers: 2, ..DeploymentOptions::named(name) }.with(
        "batcher",
        "CLAIRVIO_FLUSH_AGE_MS",
        600_000,
    );
    run_on(stack, options, LOST_PARTITIONS, async |system| {
        let link = system.link(name).await?;
        let sdks = [system.sdk(1)?, system.sdk(2)?];
        let stop = AtomicBool::new(false);
        let names = [("ingest-edge", 1), ("batcher", 1), ("ingest-edge", 2), ("batcher", 2)];
        let faults = async {
            for _ in 0..2 {
                for (kind, number) in names {
                    terminate(system, &system.service(kind, number)).await?;
                }
            }
            Ok(())
        };
        let sent = load::load_during(load::load(system, &sdks, &link, 4, 40, &stop), &stop, faults).await?;
        ensure!(sent > 100, "a load of {sent} batches is none");
        // Whoever has read a record publishes it when asked to stop, and nobody does before.
        for session in system.ledger.sessions() {
            let batches = system.ledger.session(session).map_or(0, |ledger| ledger.batches());
            let deadline = Instant::now() + SOON;
            while system
                .api
                .session(session)
                .await
                .map_or(0, |item| item.completeness.map_or(0, |completeness| completeness.batches))
                < batches
            {
                ensure!(Instant::now() < deadline, "session {session}: not all of {batches} batches became readable");
                for number in 1..=2 {
                    terminate(system, &system.service("batcher", number)).await?;
                }
            }
        }
        load::count_all(system, SOON).await
    })
    .await
}

async fn terminate(system: &System<'_>, service: &str) -> Result<()> {
    let supervisor = &system.deployment.supervisor;
    let begun = Instant::now();
    supervisor.terminate(service).await?;
    ensure!(begun.elapsed() < DRAINED_WITHIN, "{service} did not end by itself within {} s", DRAINED_WITHIN.as_secs());
    until("it runs again", SOON, || async {
        if supervisor.pid(service).is_some() { Seen::Done(()) } else { Seen::not_yet("it is down") }
    })
    .await?;
    supervisor.wait_ready(service, SOON).await
}

pub(super) async fn are_killed(stack: &Stack, name: &str) -> Result<Comparison> {
    let options = DeploymentOptions { edges: 2, batchers: 2, compactors: 2, ..DeploymentOptions::named(name) }
        .with("compactor", "CLAIRVIO_RUN_AGE_MS", 1_000)
        .with("compactor", "CLAIRVIO_PASS_INTERVAL_MS", 200)
        .with("compactor", "CLAIRVIO_LEASE_MS", 4_000)
        .with("", "CLAIRVIO_SESSION_SILENCE_MS", 4_000)
        .with("batcher", "CLAIRVIO_FLUSH_AGE_MS", 300);
    run_on(stack, options, LOST_PARTITIONS, async |system| {
        let link = system.link(name).await?;
        let sdks = [system.sdk(1)?, system.sdk(2)?];
        let (stop, stop_reading) = (AtomicBool::new(false), AtomicBool::new(false));
        let faults = async {
            let supervisor = &system.deployment.supervisor;
            let begun = Instant::now();
            let mut killed = 0;
            while begun.elapsed() < Duration::from_secs(20) {
                for (kind, number) in [
                    ("compactor", 1),
                    ("ingest-edge", 1),
                    ("compactor", 2),
                    ("ingest-edge", 2),
                    ("batcher", 1 + killed / 5 % 2),
                ] {
                    let service = system.service(kind, number);
                    supervisor.wait_ready(&service, SOON).await?;
                    // A kill hits something only when there is work: some is done between any two.
                    wait_for_work(system, kind == "batcher").await?;
                    supervisor.kill(&service).await?;
                    killed += 1;
                }
            }
            ensure!(killed >= 10, "{killed} kills are too few to hit much");
            Ok(())
        };
        let sending = async {
            let sent = load::load_during(load::load(system, &sdks, &link, 4, 60, &stop), &stop, faults).await?;
            stop_reading.store(true, std::sync::atomic::Ordering::Release);
            anyhow::Ok(sent)
        };
        let (sent, readings) = tokio::try_join!(sending, load::read_all_the_time(system, &stop_reading))?;
        ensure!(sent > 200 && readings > 20, "{sent} batches and {readings} readings are too few");
        load::count_settled(system).await
    })
    .await
}

pub(super) async fn are_frozen(stack: &Stack, name: &str) -> Result<Comparison> {
    let options = DeploymentOptions { batchers: 2, ..DeploymentOptions::named(name) }.with(
        "batcher",
        "CLAIRVIO_FLUSH_AGE_MS",
        200,
    );
    run_on(stack, options, STOPPED, async |system| {
        let link = system.link(name).await?;
        let sdks = [system.sdk(1)?];
        let (stop, stop_watching) = (AtomicBool::new(false), AtomicBool::new(false));
        let faults = async {
            let supervisor = &system.deployment.supervisor;
            for number in [1, 2] {
                let service = system.service("batcher", number);
                wait_for_progress(system).await?;
                supervisor.pause(&service).await?;
                // Everything moves on only when the other one has taken the stopped one's partitions.
                wait_for_progress(system).await?;
                supervisor.resume(&service).await?;
                supervisor.wait_ready(&service, SOON).await?;
            }
            // The one that woke up last takes part again.
            wait_for_progress(system).await
        };
        let sending = async {
            let sent = load::load_during(load::load(system, &sdks, &link, 8, 20, &stop), &stop, faults).await?;
            stop_watching.store(true, std::sync::atomic::Ordering::Release);
            anyhow::Ok(sent)
        };
        let (sent, ()) = tokio::try_join!(sending, watch_progress(system, &stop_watching))?;
        ensure!(sent > 100, "a load of {sent} batches is none");
        load::count_settled(system).await
    })
    .await
}

/// Waits until more was acknowledged, and, if asked for, until some partition was published further.
async fn wait_for_work(system: &System<'_>, published: bool) -> Result<()> {
    const BATCHES: u64 = 4;
    let (before, progress_before) = (system.ledger.totals().0, progress(system).await?);
    until("the load goes on", SOON, || async {
        let more = system.ledger.totals().0 - before;
        match progress(system).await {
            Ok(now) if more >= BATCHES && (!published || now != progress_before) => Seen::Done(()),
            Ok(_) => Seen::not_yet(format_args!("{more} batches were acknowledged")),
            Err(error) => Seen::not_yet(error),
        }
    })
    .await?;
    Ok(())
}

/// Waits until every partition's progress has moved twice from here on: once could be what was under way.
async fn wait_for_progress(system: &System<'_>) -> Result<()> {
    for _ in 0..2 {
        let before = progress(system).await?;
        until("every partition moves on", SOON, || async {
            match progress(system).await {
                Ok(now) => {
                    let moved = now.iter().filter(|(partition, (next, _))| {
                        before.get(partition).map_or(*next > 0, |(next_before, _)| next > next_before)
                    });
                    let moved = moved.count();
                    if moved == PARTITIONS { Seen::Done(()) } else { Seen::not_yet(format_args!("{moved} moved")) }
                }
                Err(error) => Seen::not_yet(error),
            }
        })
        .await?;
    }
    Ok(())
}

pub(super) async fn are_rivals(stack: &Stack, name: &str) -> Result<Comparison> {
    let options = DeploymentOptions::named(name).with("batcher", "CLAIRVIO_FLUSH_AGE_MS", 100);
    run_on(stack, options, LOST_PARTITIONS, async |system| {
        let (link, sdks) = (system.link(name).await?, [system.sdk(1)?]);
        let rivals = system.stack.supervisor(|_| {})?;
        let spec = rival(system)?;
        let (name, admin_url) = (spec.name.clone(), spec.admin_url.clone());
        rivals.start(spec).await?;
        rivals.wait_ready(&name, SOON).await?;
        let (stop, stop_watching) = (AtomicBool::new(false), AtomicBool::new(false));
        let own_admin = format!("http://{}", system.variable(&system.service("batcher", 1), "CLAIRVIO_ADMIN_LISTEN")?);
        let fighting = async {
            until("both have lost against each other", SOON, || async {
                let lost = [metric(&own_admin, LOST_SWAPS).await, metric(&admin_url, LOST_SWAPS).await];
                if lost.iter().all(|lost| *lost >= 5) {
                    Seen::Done(())
                } else {
                    Seen::not_yet(format_args!("{lost:?}"))
                }
            })
            .await?;
            Ok(())
        };
        let sending = async {
            let sent = load::load_during(load::load(system, &sdks, &link, 4, 20, &stop), &stop, fighting).await?;
            stop_watching.store(true, std::sync::atomic::Ordering::Release);
            anyhow::Ok(sent)
        };
        let (sent, ()) = tokio::try_join!(sending, watch_progress(system, &stop_watching))?;
        ensure!(sent > 50, "a load of {sent} batches is none");
        let comparison = load::count_all(system, SOON).await?;
        // Nothing was sent twice and every record is published once, so there are no copies either.
        for session in system.ledger.sessions() {
            let completeness = system.api.session(session).await?.completeness;
            let copies = completeness.map_or(0, |completeness| completeness.duplicates_dropped);
            ensure!(copies == 0, "B2: {copies} batches of session {session} are stored twice");
        }
        if comparison.is_exact() {
            load::wait_compacted(system, LATER).await?;
            load::compare_all(system, SOON).await?;
        }
        rivals.stop_all().await?;
        Ok(comparison)
    })
    .await
}

const LOST_SWAPS: &str = "batcher_lost_swaps_total";

/// The deployment's batcher once more, in a group of its own.
fn rival(system: &System<'_>) -> Result<ServiceSpec> {
    let mut env = system.settings(&system.service("batcher", 1))?;
    let admin = format!("127.0.0.1:{}", free_port()?);
    for (name, value) in &mut env {
        match name.as_str() {
            "CLAIRVIO_ADMIN_LISTEN" => value.clone_from(&admin),
            "KAFKA_GROUP" => value.push_str("-rival"),
            _ => {}
        }
    }
    let (name, binary) = (system.service("batcher", 9), find_binary("batcher")?);
    Ok(ServiceSpec { name, binary, env, admin_url: format!("http://{admin}"), restart: false })
}
