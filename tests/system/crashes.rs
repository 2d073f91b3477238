//! Services that are asked to stop, killed, or frozen, under load.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Result, ensure};
use devstack::{DeploymentOptions, ServiceSpec, find_binary, free_port};
use sqlx::Row as _;
use tokio::time::Instant;
use virtual_sdk::{Encoding, Form, Seen, until};

use crate::harness::{LATER, SOON, System, metric, run};
use crate::load::{self, small_batch};

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
    "testing the connection",
];

/// Goal: SIGTERM loses nothing that was acknowledged: an edge answers what it took in, a batcher publishes what it has read.
/// Method: edges and batchers are terminated again and again under load, and start again. Batchers flush by age only after
/// ten minutes, so that whatever becomes readable does so because a batcher that was asked to stop published it.
#[test]
fn sigterm_loses_nothing_acknowledged() -> Result<()> {
    let options = DeploymentOptions { edges: 2, batchers: 2, ..DeploymentOptions::named("sigterm") }.with(
        "batcher",
        "CLAIRVIO_FLUSH_AGE_MS",
        600_000,
    );
    run(options, LOST_PARTITIONS, async |system| {
        let link = system.link("sigterm").await?;
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
        load::compare_all(system, SOON).await?;
        Ok(())
    })
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

/// Goal: any process can be killed at any time; nothing acknowledged is lost, nothing is there twice, and readers notice
/// nothing. Method: kill -9 edges, batchers and compactors in turn for 20 s of load, with short runs and leases so that kills
/// hit merges, while a reader reads all the time; then the ledger is compared, before and after the last compaction.
#[test]
fn kill_nine_loses_and_doubles_nothing() -> Result<()> {
    let options = DeploymentOptions { edges: 2, batchers: 2, compactors: 2, ..DeploymentOptions::named("killnine") }
        .with("compactor", "CLAIRVIO_RUN_AGE_MS", 1_000)
        .with("compactor", "CLAIRVIO_PASS_INTERVAL_MS", 200)
        .with("compactor", "CLAIRVIO_LEASE_MS", 4_000)
        .with("", "CLAIRVIO_SESSION_SILENCE_MS", 4_000)
        .with("batcher", "CLAIRVIO_FLUSH_AGE_MS", 300);
    run(options, LOST_PARTITIONS, async |system| {
        let link = system.link("killnine").await?;
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
        load::compare_all(system, SOON).await?;
        load::wait_compacted(system, LATER).await?;
        load::compare_all(system, SOON).await?;
        Ok(())
    })
}

/// Goal: a batcher that was frozen for longer than its group waits, and wakes up, changes nothing. Method: under load, each of
/// two batchers is stopped until the other one has published all its partitions, and goes on; the ledger is exact, and
/// progress and epochs of every partition only grow (B1).
#[test]
fn a_stopped_batcher_that_wakes_up_changes_nothing() -> Result<()> {
    let options = DeploymentOptions { batchers: 2, ..DeploymentOptions::named("zombie") }.with(
        "batcher",
        "CLAIRVIO_FLUSH_AGE_MS",
        200,
    );
    run(options, STOPPED, async |system| {
        let link = system.link("zombie").await?;
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
        load::compare_all(system, SOON).await?;
        load::wait_compacted(system, LATER).await?;
        load::compare_all(system, SOON).await?;
        Ok(())
    })
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

/// Next offset and epoch by partition.
pub(crate) async fn progress(system: &System<'_>) -> Result<BTreeMap<i32, (i64, i64)>> {
    let rows = sqlx::query("select partition, next_offset, epoch from partition_progress")
        .fetch_all(system.index.pool())
        .await?;
    Ok(rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect())
}

/// Waits until every partition's progress has moved twice from here on: once could be what was under way.
async fn wait_for_progress(system: &System<'_>) -> Result<()> {
    const PARTITIONS: usize = 4;
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

/// Makes sure until `stop` that progress and epochs of no partition go back (B1).
pub(crate) async fn watch_progress(system: &System<'_>, stop: &AtomicBool) -> Result<()> {
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    let mut before = progress(system).await?;
    while !stop.load(std::sync::atomic::Ordering::Acquire) {
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

/// Goal: two batchers that both believe that they own all partitions do no harm: each record is published once, whoever wins
/// (B1, B2, B5). Method: a batcher of another group reads the same topic into the same index all the while, so that the two
/// publish against each other all the time.
#[test]
fn two_batchers_that_own_the_same_partitions_publish_each_record_once() -> Result<()> {
    let options = DeploymentOptions::named("rivals").with("batcher", "CLAIRVIO_FLUSH_AGE_MS", 100);
    run(options, LOST_PARTITIONS, async |system| {
        let (link, sdks) = (system.link("rivals").await?, [system.sdk(1)?]);
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
        load::compare_all(system, SOON).await?;
        // Nothing was sent twice and every record is published once, so there are no copies either.
        for session in system.ledger.sessions() {
            let completeness = system.api.session(session).await?.completeness;
            let copies = completeness.map_or(0, |completeness| completeness.duplicates_dropped);
            ensure!(copies == 0, "B2: {copies} batches of session {session} are stored twice");
        }
        load::wait_compacted(system, LATER).await?;
        load::compare_all(system, SOON).await?;
        rivals.stop_all().await
    })
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

/// Goal: a batcher's death between reading and publishing loses nothing, whichever step it dies in. Method: with nothing
/// flushed for long, one batcher alone is killed with records in its memory; the next one reads them again.
#[test]
fn records_in_a_killed_batchers_memory_are_read_again() -> Result<()> {
    let options = DeploymentOptions::named("memory").with("batcher", "CLAIRVIO_FLUSH_AGE_MS", 3_000);
    run(options, &[], async |system| {
        let (link, sdk, batcher) = (system.link("memory").await?, system.sdk(1)?, system.service("batcher", 1));
        let session = load::begin(system, &sdk, &link).await?;
        let count = 6;
        for seq in 0..count {
            let batch = small_batch(session.id, 0, seq, seq + 1 == count, 100)?;
            load::send(system, &sdk, &session, &batch, Form::Lines, Encoding::Identity).await?;
        }
        let admin = format!("http://{}/metrics", system.variable(&batcher, "CLAIRVIO_ADMIN_LISTEN")?);
        until("the batcher has read something", SOON, || async {
            let Ok(answer) = reqwest::get(&admin).await else { return Seen::not_yet("no answer") };
            let text = answer.text().await.unwrap_or_default();
            let is_read = |line: &str| line.starts_with("batcher_records_total{what=\"in\"}") && !line.ends_with(" 0");
            if text.lines().any(is_read) { Seen::Done(()) } else { Seen::not_yet("nothing was read") }
        })
        .await?;
        system.deployment.supervisor.kill(&batcher).await?;
        load::compare_all(system, SOON).await?;
        Ok(())
    })
}
