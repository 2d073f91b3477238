//! Services that are asked to stop, killed, or frozen, under load.

use anyhow::Result;
use devstack::DeploymentOptions;
use virtual_sdk::{Encoding, Form, Seen, until};

use crate::faults;
use crate::harness::{SOON, run, run_round};
use crate::load::{self, small_batch};

/// Goal: SIGTERM loses nothing that was acknowledged: an edge answers what it took in, a batcher publishes what it has read.
/// Method: edges and batchers are terminated again and again under load, and start again. Batchers flush by age only after
/// ten minutes, so that whatever becomes readable does so because a batcher that was asked to stop published it.
#[test]
fn sigterm_loses_nothing_acknowledged() -> Result<()> {
    run_round(&faults::SIGTERM)
}

/// Goal: any process can be killed at any time; nothing acknowledged is lost, nothing is there twice, and readers notice
/// nothing. Method: kill -9 edges, batchers and compactors in turn for 20 s of load, with short runs and leases so that kills
/// hit merges, while a reader reads all the time; then the ledger is compared, before and after the last compaction.
#[test]
fn kill_nine_loses_and_doubles_nothing() -> Result<()> {
    run_round(&faults::KILL_NINE)
}

/// Goal: a batcher that was frozen for longer than its group waits, and wakes up, changes nothing. Method: under load, each of
/// two batchers is stopped until the other one has published all its partitions, and goes on; the ledger is exact, and
/// progress and epochs of every partition only grow (B1).
#[test]
fn a_stopped_batcher_that_wakes_up_changes_nothing() -> Result<()> {
    run_round(&faults::ZOMBIES)
}

/// Goal: two batchers that both believe that they own all partitions do no harm: each record is published once, whoever wins
/// (B1, B2, B5). Method: a batcher of another group reads the same topic into the same index all the while, so that the two
/// publish against each other all the time.
#[test]
fn two_batchers_that_own_the_same_partitions_publish_each_record_once() -> Result<()> {
    run_round(&faults::RIVALS)
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
