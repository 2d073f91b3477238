//! Merging changes nothing that a reader sees, whenever it happens and whoever does it.

use anyhow::{Context, Result, ensure};
use devstack::DeploymentOptions;
use schemas::SessionId;
use schemas::http::StoredAs;
use uuid::Uuid;
use virtual_sdk::{Encoding, EventsFormat, Form, Seen, until};

use crate::faults;
use crate::harness::{LATER, SOON, System, metric, run, run_round};
use crate::load::{self, dense_batch};

/// Goal: a compactor can be killed, or frozen for longer than its lease, at any moment; no reader ever notices, and in the end
/// every session is one object and nothing lies around. Method: two compactors with short runs and leases are killed (SIGKILL)
/// and frozen (SIGSTOP) at seeded moments for 20 s under a load of everything that makes merging hard, while readers read in
/// all manners and each reading is compared with exactly what it may show.
#[test]
fn killed_compactors_are_noticed_by_no_reader() -> Result<()> {
    run_round(&faults::COMPACTORS)
}

/// Goal: a run that takes longer than staged objects may lie is published at its first try. Method: a compactor's uploads go on at a
/// crawl, one round of them after the other, while the retention worker gives up what is staged after less than all of them take.
#[test]
fn a_run_may_last_longer_than_what_is_staged_may_lie() -> Result<()> {
    run_round(&faults::SLOW_MERGES)
}

/// Of a session that a slow reader reads; much more than what connections hold.
const BATCHES: u32 = 256;
const BATCH_BYTES: usize = 128 << 10;
const SERVED: &str = "control_read_bytes_total";

/// Goal: a reading that takes longer than replaced objects are kept shows all that it began with, whole and in order. Method:
/// with a grace of half a second, one reader begins while a session lies in shared objects and one while it is an object of its
/// own, and each reads on only when every object that there was at its beginning is gone from the bucket: swapped with its run
/// for the one, and with a late part for the other.
#[test]
fn a_reading_outlasts_the_objects_that_it_began_on() -> Result<()> {
    let name = "outlasts";
    let options = DeploymentOptions { held: Some(format!("compactor-{name}")), ..DeploymentOptions::named(name) }
        .with("batcher", "CLAIRVIO_FLUSH_AGE_MS", 200)
        .with("compactor", "CLAIRVIO_RUN_AGE_MS", 500)
        .with("compactor", "CLAIRVIO_PASS_INTERVAL_MS", 200)
        .with("", "CLAIRVIO_SESSION_SILENCE_MS", 3_000)
        .with("retention-worker", "CLAIRVIO_PASS_INTERVAL_MS", 200)
        .with("retention-worker", "CLAIRVIO_CONDEMNED_GRACE_MS", 500);
    run(options, &[], async |system| {
        let (link, sdk) = (system.link(name).await?, system.sdk(1)?);
        let session = load::begin(system, &sdk, &link).await?;
        let send = async |seq: u32, end: bool| {
            let batch = dense_batch(session.id, seq, end, BATCH_BYTES)?;
            load::send(system, &sdk, &session, &batch, Form::Lines, Encoding::Identity).await
        };
        for seq in 0..BATCHES {
            send(seq, seq + 1 == BATCHES).await?;
        }
        load::compare_all(system, SOON).await?;
        let from_shared = async || {
            for compactor in system.deployment.release().await? {
                system.deployment.supervisor.wait_ready(&compactor, SOON).await?;
            }
            load::wait_stored(&system.api, session.id, StoredAs::Object, LATER).await.map(drop)
        };
        outlast(system, session.id, from_shared).await.context("begun on shared objects")?;
        wait_final(system).await?;
        // A late part makes another object of the session.
        let from_parts = async || send(BATCHES, true).await;
        outlast(system, session.id, from_parts).await.context("begun on an object of its own")?;
        load::compare_all(system, SOON).await?;
        Ok(())
    })
}

/// Begins a reading, has its objects replaced, waits until none of them is left, and reads on.
async fn outlast(system: &System<'_>, session: SessionId, replace: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    let ledger = system.ledger.session(session).context("find session in ledger")?;
    let mut comparer = ledger.comparer(session);
    let admin = system.admin_url("control-plane", 1)?;
    let served_before = metric(&admin, SERVED).await;
    let begun_on = live_objects(system).await?;
    ensure!(!begun_on.is_empty(), "the session has no object");
    // Over a connection of its own: the buffers of one that much was read over have grown to hold most of it.
    let slow = system.api_at(1, &system.deployment.endpoints().api_key)?;
    let mut events = slow.events(session, EventsFormat::Lines).await?;
    for _ in 0..2 {
        comparer.push(&events.next_event().await?.context("the session has events")?);
    }
    replace().await?;
    until("all objects that the reading began on are gone", LATER, || async {
        match left_of(system, &begun_on).await {
            Ok(0) => Seen::Done(()),
            Ok(left) => Seen::not_yet(left),
            Err(error) => Seen::not_yet(format_args!("{error:#}")),
        }
    })
    .await?;
    let (whole, served) = (ledger.events() * BATCH_BYTES as u64, metric(&admin, SERVED).await - served_before);
    ensure!(served < whole / 2, "{served} of {whole} bytes were served: the reading did not wait for its reader");
    while let Some(event) = events.next_event().await.context("read on")? {
        comparer.push(&event);
    }
    let comparison = comparer.finish();
    ensure!(comparison.is_exact(), "{comparison}");
    Ok(())
}

async fn live_objects(system: &System<'_>) -> Result<Vec<Uuid>> {
    let ids = sqlx::query_scalar("select id from object where state = 1").fetch_all(system.index.pool()).await;
    ids.context("ask for live objects")
}

/// How many of these objects lie in the bucket.
async fn left_of(system: &System<'_>, objects: &[Uuid]) -> Result<usize> {
    let listed = system.objects.list("").await?;
    Ok(listed.iter().flatten().filter(|key| objects.contains(&key.id().0)).count())
}

/// Waits until every session is final, which is when it is one object.
async fn wait_final(system: &System<'_>) -> Result<()> {
    let open = "select count(*) from session where not final";
    system.wait_count("every session is one object", open, 0, LATER).await
}
