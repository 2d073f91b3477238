//! Readers that open a session and then do not read.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use devstack::DeploymentOptions;
use futures::future::try_join_all;
use schemas::SessionId;
use schemas::http::StoredAs;
use schemas::limits::MIB;
use tokio::time::Instant;
use virtual_sdk::api::EventStream;
use virtual_sdk::{Encoding, EventsFormat, Form, Sdk, Seen, until};

use crate::harness::{LATER, SOON, System, metric, run};
use crate::load::{self, dense_batch, small_batch};

/// Readers that stall: half of them on a session that is an object of its own, half on one in shared objects.
const READERS: usize = 200;
/// Readers of the session that is deleted meanwhile.
const READERS_DELETED: usize = 4;
/// And those that fetch an archive of it, made while it is sent.
const EXPORTS_DELETED: usize = 2;
/// How many of those that stalled read to the end; the others hang up.
const READERS_ON: usize = 40;
/// Readings that are begun at once: what a busy machine answers in time is not what is tested.
const OPENED_AT_ONCE: usize = 16;
const BATCHES: u32 = 64;
const BATCH_BYTES: usize = 128 << 10;
/// What one reading may hold: the pieces that wait for its connection, the frames and batches that it is at.
const HELD_BYTES_MAX: u64 = 4 * MIB as u64;
/// What an archive that is made may hold: a file of events as it was read, as it is written, and compressed.
const ARCHIVE_BYTES_MAX: u64 = 16 * MIB as u64;
/// For how long they do not read, once nothing moves any more.
const STALLED: Duration = Duration::from_secs(4);
/// For a deletion to be noticed by a reading that goes on: it asks each second.
const NOTICED_WITHIN: Duration = Duration::from_secs(3);
/// What a workspace may have at once: these, and one beside them.
const READINGS: usize = READERS + READERS_DELETED + EXPORTS_DELETED + 1;
const SERVED: &str = "control_read_bytes_total";
const UNDER_WAY: &str = "control_readings";

/// Goal: a reader that stalls holds no memory beyond a bound, no connection and no lock of the index, and nobody else up; a
/// deletion still ends its reading, and otherwise it gets everything when it reads on. Method: 200 readings of sessions of 8 MiB
/// are begun and left alone, as many as the workspace may have, a few of them of archives; memory, the index's transactions and
/// locks, and other readings are watched meanwhile.
#[test]
fn stalled_readers_hold_little_and_nobody_up() -> Result<()> {
    let name = "stalled";
    let options = DeploymentOptions::named(name)
        .with("control-plane", "CLAIRVIO_READINGS_MAX", 4 * READINGS as u64)
        .with("batcher", "CLAIRVIO_FLUSH_AGE_MS", 200)
        .with("compactor", "CLAIRVIO_RUN_AGE_MS", 500)
        .with("compactor", "CLAIRVIO_PASS_INTERVAL_MS", 200);
    run(options, &[], async |system| {
        let sdk = system.sdk(1)?;
        let in_object = send_session(system, &sdk).await?;
        load::wait_stored(&system.api, in_object, StoredAs::Object, LATER).await?;
        system.wait_count("it is final", "select count(*) from session where not final", 0, LATER).await?;
        system.take_down(&system.service("compactor", 1)).await?;
        let (in_shared, deleted) = (send_session(system, &sdk).await?, send_session(system, &sdk).await?);
        let small = load::begin(system, &sdk, &system.link(name).await?).await?;
        load::send(system, &sdk, &small, &small_batch(small.id, 0, 0, true, 100)?, Form::Lines, Encoding::Zstd).await?;
        // Warm: footers are in memory, and so is what the allocator keeps of any reading.
        load::compare_all(system, SOON).await?;
        let known = [known(system, in_object).await?, known(system, in_shared).await?];

        let pid = system.deployment.supervisor.pid(&system.service("control-plane", 1)).context("it runs")?;
        let before = resident_bytes(pid)?;
        let (numbers, mut stalled) = ((0..READERS).collect::<Vec<usize>>(), Vec::with_capacity(READERS));
        for some in numbers.chunks(OPENED_AT_ONCE) {
            let opening = some.iter().map(|number| stall(system, if *number % 2 == 0 { in_object } else { in_shared }));
            stalled.extend(try_join_all(opening).await?);
        }
        let of_deleted = try_join_all((0..READERS_DELETED).map(|_| stall(system, deleted))).await?;
        let archives = try_join_all((0..EXPORTS_DELETED).map(|_| stall_export(system, deleted))).await?;
        let most = watch(system, small.id, pid).await?;
        let grown = most.saturating_sub(before);
        let bound = HELD_BYTES_MAX * (READERS + READERS_DELETED) as u64 + ARCHIVE_BYTES_MAX * EXPORTS_DELETED as u64;
        eprintln!(
            "{name}: {READERS} readers hold {} KiB each, {} MiB of {} MiB",
            grown / 1024 / (READERS + READERS_DELETED) as u64,
            grown / MIB as u64,
            bound / MIB as u64
        );
        ensure!(grown <= bound, "{READERS} stalled readers hold {} MiB, {} are allowed", grown >> 20, bound >> 20);

        let last = stall(system, in_object).await?;
        let under_way = metric(&system.admin_url("control-plane", 1)?, UNDER_WAY).await;
        ensure!(under_way == READINGS as u64, "{under_way} of {READINGS} readings are under way");
        let refused = stall(system, in_object).await.err().context("one reading too many was begun")?;
        ensure!(refused.to_string().contains("rate_limited"), "one reading too many: {refused:#}");
        drop(last);

        system.api.delete_session(deleted).await?;
        system.ledger.forget(deleted);
        // Though they stall: nobody takes anything.
        let admin = system.admin_url("control-plane", 1)?;
        until("readings of the deleted session end", NOTICED_WITHIN, || async {
            let under_way = metric(&admin, UNDER_WAY).await;
            if under_way == READERS as u64 { Seen::Done(()) } else { Seen::not_yet(under_way) }
        })
        .await?;
        try_join_all(of_deleted.into_iter().map(ends_early)).await.context("readings of a deleted session")?;
        try_join_all(archives.into_iter().map(is_cut_off)).await.context("archives of a deleted session")?;

        // Those that hang up in the middle leave nothing behind either.
        let reading_on = stalled.drain(..READERS_ON).enumerate().map(|(number, events)| {
            let known = &known[number % 2];
            async move { gets_all(events, known).await.with_context(|| format!("reader {number}")) }
        });
        try_join_all(reading_on.collect::<Vec<_>>()).await?;
        drop(stalled);
        load::compare_all(system, SOON).await?;
        Ok(())
    })
}

async fn send_session(system: &System<'_>, sdk: &Sdk) -> Result<SessionId> {
    let session = load::begin(system, sdk, &system.link("stalled").await?).await?;
    for seq in 0..BATCHES {
        let batch = dense_batch(session.id, seq, seq + 1 == BATCHES, BATCH_BYTES)?;
        load::send(system, sdk, &session, &batch, Form::Lines, Encoding::Identity).await?;
    }
    load::compare(system, session.id, SOON).await?;
    Ok(session.id)
}

/// What there is to be read of a session that was compared with the ledger.
async fn known(system: &System<'_>, session: SessionId) -> Result<Vec<Bytes>> {
    let mut events = system.api.events(session, EventsFormat::Lines).await?;
    let mut known = Vec::new();
    while let Some(event) = events.next_event().await? {
        known.push(event);
    }
    ensure!(known.len() == BATCHES as usize, "{} events are known", known.len());
    Ok(known)
}

/// Begins a reading and takes nothing of it: its socket's own buffer is all that fills. A connection of its own: the buffer of one that
/// was read from has grown, and may take all of the session.
async fn stall(system: &System<'_>, session: SessionId) -> Result<EventStream> {
    let api = system.api_at(1, &system.deployment.endpoints().api_key)?;
    Ok(api.events(session, EventsFormat::Lines).await?)
}

/// The same of an archive that is made while it is sent.
async fn stall_export(system: &System<'_>, session: SessionId) -> Result<reqwest::Response> {
    let endpoints = system.deployment.endpoints();
    let url = format!("{}/v1/sessions/{session}/export", endpoints.api_url);
    let answer = reqwest::Client::new().get(url).bearer_auth(&endpoints.api_key).send().await.context("export")?;
    answer.error_for_status().context("export")
}

/// An archive of a deleted session never ends as if it were whole.
async fn is_cut_off(mut archive: reqwest::Response) -> Result<()> {
    while let Ok(piece) = archive.chunk().await {
        ensure!(piece.is_some(), "it ended as if it were whole");
    }
    Ok(())
}

/// Waits until nothing is served any more, and then looks on for a while: others are served, no transaction that began before
/// is open, and no lock that was taken before is held. Gives the most memory that the control plane had.
async fn watch(system: &System<'_>, other: SessionId, pid: u32) -> Result<u64> {
    let admin = system.admin_url("control-plane", 1)?;
    let (served, since, most) = (Cell::new(0), Cell::new(Instant::now()), Cell::new(0));
    let look_at_memory = || resident_bytes(pid).map(|bytes| most.set(most.get().max(bytes)));
    until("all readings stall", SOON, || async {
        let now = metric(&admin, SERVED).await;
        if let Err(error) = look_at_memory() {
            return Seen::not_yet(format_args!("{error:#}"));
        }
        if now != served.replace(now) {
            since.set(Instant::now());
        }
        if since.get().elapsed() > Duration::from_secs(1) { Seen::Done(()) } else { Seen::not_yet(now) }
    })
    .await?;
    let begun: time::OffsetDateTime = sqlx::query_scalar("select now()").fetch_one(system.index.pool()).await?;
    let (mut looks, stalled_since) = (tokio::time::interval(Duration::from_millis(250)), Instant::now());
    while stalled_since.elapsed() < STALLED {
        looks.tick().await;
        load::compare(system, other, SOON).await.context("another session, meanwhile")?;
        look_at_memory()?;
    }
    // Of all that run against this database: the control plane's among them.
    let transactions: i64 = sqlx::query_scalar(
        "select count(*) from pg_stat_activity where datname = current_database() and xact_start < $1",
    )
    .bind(begun)
    .fetch_one(system.index.pool())
    .await?;
    ensure!(transactions == 0, "{transactions} transactions are open since the readings stalled");
    let locks: i64 = sqlx::query_scalar(
        "select count(*) from pg_locks l join pg_stat_activity a using (pid)
         where a.datname = current_database() and l.granted and coalesce(a.xact_start, a.state_change) < $1",
    )
    .bind(begun)
    .fetch_one(system.index.pool())
    .await?;
    ensure!(locks == 0, "{locks} locks are held since the readings stalled");
    Ok(most.get())
}

/// Memory that a process has in use.
fn resident_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("read status of process")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("its status says VmRSS")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().context("read VmRSS")?;
    Ok(kib * 1024)
}

/// A reading of a deleted session that goes on ends soon, and not as if it were whole.
async fn ends_early(mut events: EventStream) -> Result<()> {
    let begun = Instant::now();
    loop {
        match events.next_event().await {
            Ok(Some(_)) => {}
            Ok(None) => bail!("it ended as if it were whole"),
            Err(error) => {
                ensure!(error.code() == "connection_broken", "it ended with {error}");
                ensure!(begun.elapsed() < NOTICED_WITHIN, "it ended after {:?}", begun.elapsed());
                return Ok(());
            }
        }
    }
}

async fn gets_all(mut events: EventStream, known: &[Bytes]) -> Result<()> {
    for (number, known) in known.iter().enumerate() {
        let event = events.next_event().await.with_context(|| format!("read on at event {number}"))?;
        ensure!(event.as_ref() == Some(known), "event {number} is another one, or missing");
    }
    ensure!(events.next_event().await?.is_none(), "there are more events than were sent");
    Ok(())
}
