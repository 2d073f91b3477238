//! Bucket and index are compared all the time: what does not agree is told, by gauges and by the operator's tool, and nothing else is.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Output;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use devstack::{DeploymentOptions, S3Kind};
use schemas::paths::ObjectKey;
use schemas::plan::Plan;
use schemas::{ObjectId, SessionId, SessionKey};
use storage::index::reconciling::Progress;
use storage::objects::{Keeps, Lying, sha256};
use uuid::Uuid;
use virtual_sdk::{Encoding, Form, Seen, until};

use crate::deletion::{set_clock, wait_gone};
use crate::harness::{LATER, SOON, System, metric, run_with_own_s3, run_with_versions};
use crate::load::{self, small_batch};
use crate::quarantine::clairvio;
use crate::receipts::wait_receipt;
use crate::versions::leave_versions;

const WORKER: &str = "retention-worker";
const TOLD: &str = "bucket and index do not agree";
const KEEPS: Keeps = Keeps { versions: true, uploads: true };

/// Rounds follow each other at once, and what is five seconds old was put by nobody who is at it still.
fn options(name: &str) -> DeploymentOptions {
    DeploymentOptions::named(name)
        .with("batcher", "CLAIRVIO_FLUSH_AGE_MS", 200)
        .with("compactor", "CLAIRVIO_RUN_AGE_MS", 500)
        .with("compactor", "CLAIRVIO_PASS_INTERVAL_MS", 200)
        .with("", "CLAIRVIO_SESSION_SILENCE_MS", 3_000)
        .with(WORKER, "S3_REQUEST_TIMEOUT_MS", 4_000)
        .with(WORKER, "CLAIRVIO_STAGED_STALE_MS", 3_000)
        .with(WORKER, "CLAIRVIO_PASS_INTERVAL_MS", 100)
        .with(WORKER, "CLAIRVIO_CONDEMNED_GRACE_MS", 500)
        .with(WORKER, "CLAIRVIO_RECONCILE_INTERVAL_MS", 500)
        .with(WORKER, "CLAIRVIO_RECONCILE_PAGE_PAUSE_MS", 100)
}

/// The operator's round.
struct Round {
    /// What it found: a word and a key each.
    findings: BTreeSet<String>,
    said: String,
    is_clean: bool,
}

fn reconcile(system: &System<'_>, arguments: &[&str]) -> Result<Round> {
    let arguments = [&["reconcile", "--upload-age-max", "5"], arguments].concat();
    let output: Output = clairvio(system, Path::new("none"), &arguments)?;
    let lines = String::from_utf8(output.stdout).context("findings are text")?;
    Ok(Round {
        findings: lines.lines().map(str::to_owned).collect(),
        said: String::from_utf8(output.stderr).context("what it says is text")?,
        is_clean: output.status.success(),
    })
}

/// Waits until the operator's round finds exactly this.
async fn wait_found(system: &System<'_>, expected: &[String]) -> Result<()> {
    let expected: BTreeSet<String> = expected.iter().cloned().collect();
    until("a round finds what there is", SOON, || async {
        match reconcile(system, &[]) {
            Ok(round) if round.findings == expected && round.is_clean == expected.is_empty() => Seen::Done(()),
            Ok(round) => Seen::not_yet(format_args!("{:?}: {}", round.findings, round.said)),
            Err(error) => Seen::not_yet(format_args!("{error:#}")),
        }
    })
    .await?;
    Ok(())
}

async fn put(system: &System<'_>, key: ObjectKey) -> Result<ObjectKey> {
    let body = Bytes::from_static(b"nobody's");
    system.objects.put(&key, body.clone(), &sha256(&body)).await?;
    Ok(key)
}

fn nobodys(key: SessionKey) -> ObjectKey {
    ObjectKey::Session { key, id: ObjectId(Uuid::now_v7()) }
}

/// A session that was sent and merged, and its object.
async fn merged_session(system: &System<'_>) -> Result<(SessionId, ObjectKey)> {
    let (sdk, link) = (system.sdk(1)?, system.link("reconciling").await?);
    let session = load::begin(system, &sdk, &link).await?;
    let batch = small_batch(session.id, 0, 0, true, 500)?;
    load::send(system, &sdk, &session, &batch, Form::Lines, Encoding::Zstd).await?;
    load::wait_compacted(system, LATER).await?;
    let key = system.key(session.id);
    let id: Uuid = sqlx::query_scalar("select id from object where kind = 1 and state = 1 and session_id = $1")
        .bind(session.id.0)
        .fetch_one(system.index.pool())
        .await?;
    Ok((session.id, ObjectKey::Session { key, id: ObjectId(id) }))
}

/// So many keys of the bucket are compared while everything goes on.
const COMPARED_MIN: u64 = 1_000;

/// Goal: nothing that is on its way, in or out, is told of, whatever goes on; and several workers share one round. Method: two workers
/// compare all the time, with a pause between a page of the bucket and one of rows, while clients send, compactors merge, and sessions
/// are deleted as soon as they are readable; no line in any log says that anything does not agree, and no gauge.
#[test]
fn r11_what_comes_and_goes_is_never_told_of() -> Result<()> {
    let options = DeploymentOptions { workers: 2, ..options("quiet") };
    run_with_own_s3(S3Kind::Folder, options, &[], async |system| {
        let (sdk, link) = (system.sdk(1)?, system.link("quiet").await?);
        let stop = AtomicBool::new(false);
        let others = load::load(system, std::slice::from_ref(&sdk), &link, 3, 20, &stop);
        let deleting = async {
            until("enough is compared", LATER, || async {
                if let Err(error) = delete_ended(system).await {
                    return Seen::not_yet(format_args!("{error:#}"));
                }
                match compared(system).await {
                    Ok([one, other]) if one.min(other) > 0 && one + other >= COMPARED_MIN => Seen::Done(()),
                    Ok(compared) => Seen::not_yet(format_args!("{compared:?}")),
                    Err(error) => Seen::not_yet(format_args!("{error:#}")),
                }
            })
            .await?;
            Ok(())
        };
        load::load_during(others, &stop, deleting).await?;
        let deleted = system.count("select count(*) from session where state > 0").await?;
        ensure!(deleted > 5, "only {deleted} sessions were deleted");
        for gauge in ["orphan_objects", "missing_objects", "past_window_sessions", "past_window_bytes"] {
            for number in [1, 2] {
                wait_shown(system, number, gauge, 0).await?;
            }
        }
        Ok(())
    })
}

/// Clients that lag behind others are at some of the newest sessions still.
const SESSIONS_UNDER_WAY: usize = 20;

/// Deletes what is readable and over.
async fn delete_ended(system: &System<'_>) -> Result<()> {
    for session in system.ledger.sessions().into_iter().rev().skip(SESSIONS_UNDER_WAY) {
        // One that is not stored yet has its turn later.
        if system.api.session(session).await.is_ok_and(|item| item.ended_at.is_some()) {
            system.ledger.forget(session);
            system.api.delete_session(session).await?;
        }
    }
    Ok(())
}

async fn compared(system: &System<'_>) -> Result<[u64; 2]> {
    let mut compared = [0; 2];
    for (number, count) in (1..).zip(&mut compared) {
        *count = metric(&system.admin_url(WORKER, number)?, "retention_reconciled_objects_total").await;
    }
    Ok(compared)
}

async fn wait_shown(system: &System<'_>, worker: usize, gauge: &str, value: u64) -> Result<()> {
    let (admin, name) = (system.admin_url(WORKER, worker)?, format!("retention_{gauge}"));
    until(&format!("worker {worker} shows {name} {value}"), SOON, || async {
        match metric(&admin, &name).await {
            found if found == value => Seen::Done(()),
            found => Seen::not_yet(found),
        }
    })
    .await?;
    Ok(())
}

/// Goal: what does not agree is told, by every worker and by the operator's tool, by name; it stays until an operator removes it, who
/// has to know how much it is. Method: objects that no row names are put, in two parts of the bucket, one under a key that is none of
/// ours; a live object is taken away behind the index's back, and comes back.
#[test]
fn r11_what_does_not_agree_is_told_and_nothing_is_removed_unasked() -> Result<()> {
    let options = DeploymentOptions { workers: 2, ..options("loud") };
    run_with_own_s3(S3Kind::Folder, options, &[TOLD], async |system| {
        let (session, merged) = merged_session(system).await?;
        wait_found(system, &[]).await?;
        let orphans = [
            put(system, nobodys(system.key(session))).await?,
            put(system, ObjectKey::Shared { partition: 3, id: ObjectId(Uuid::now_v7()) }).await?,
            // The same id as a live one's, under another key.
            put(system, ObjectKey::Quarantine { partition: 3, id: merged.id() }).await?,
        ];
        let stranger = system.file_of(&orphans[1]).with_file_name("no key of ours");
        std::fs::write(&stranger, b"a stranger's").context("put a stranger")?;
        let body = system.objects.get(&merged).await?;
        ensure!(system.objects.erase(&[merged], Keeps { versions: false, ..KEEPS }).await?.is_empty(), "it stays");

        let mut expected: Vec<String> = orphans.iter().map(|key| format!("orphan {key}")).collect();
        expected.extend([format!("missing {merged}"), "stranger shared/00003/no key of ours".to_owned()]);
        wait_found(system, &expected).await?;
        for worker in [1, 2] {
            wait_shown(system, worker, "orphan_objects", 4).await?;
            wait_shown(system, worker, "missing_objects", 1).await?;
        }
        system.objects.put(&merged, body.clone(), &sha256(&body)).await?;
        for worker in [1, 2] {
            wait_shown(system, worker, "missing_objects", 0).await?;
        }
        let refused = reconcile(system, &["--remove-orphans", "--expect", "2"])?;
        ensure!(!refused.is_clean && refused.said.contains("nothing was removed"), "{}", refused.said);
        let unasked = reconcile(system, &["--remove-orphans"])?;
        ensure!(!unasked.is_clean && unasked.said.contains("--expect"), "{}", unasked.said);
        for key in &orphans {
            ensure!(!system.objects.list(&key.to_string()).await?.is_empty(), "{key} was removed unasked");
        }
        let removed = reconcile(system, &["--remove-orphans", "--expect", "3"])?;
        ensure!(removed.said.contains("removed 3, kept 0"), "{}", removed.said);
        ensure!(!removed.is_clean, "a stranger is there still");
        wait_found(system, &["stranger shared/00003/no key of ours".to_owned()]).await?;
        std::fs::remove_file(&stranger).context("remove the stranger")?;
        wait_found(system, &[]).await?;
        for worker in [1, 2] {
            wait_shown(system, worker, "orphan_objects", 0).await?;
        }
        load::compare_all(system, SOON).await.map(drop)
    })
}

/// Goal (R11): what is past its window and does not go is told of, with its bytes. Method: the clock is moved by more than the window
/// and the tolerance under so many sessions that nothing expires by it; then back.
#[test]
fn r11_what_stays_past_its_window_is_told_of() -> Result<()> {
    let options = DeploymentOptions { plan: Plan::Free, ..options("past") };
    run_with_own_s3(S3Kind::Folder, options, &["nothing expires", "sessions past their window"], async |system| {
        let (session, merged) = merged_session(system).await?;
        let bytes = system.objects.get(&merged).await?.len();
        sqlx::query(
            "insert into session (workspace_id, id, link_id, notice_version, consented_at, receipt_id, started_at,
                 last_activity_at, final)
             select $1, gen_random_uuid(), gen_random_uuid(), '1', now(), gen_random_uuid(), now(), now(), true
             from generate_series(1, 40)",
        )
        .bind(system.workspace.0)
        .execute(system.index.pool())
        .await?;
        set_clock(system, "7 days 30 minutes").await?;
        wait_found(system, &[]).await?;
        set_clock(system, "7 days 2 hours").await?;
        wait_shown(system, 1, "past_window_sessions", 41).await?;
        wait_shown(system, 1, "past_window_bytes", bytes as u64).await?;
        let round = reconcile(system, &[])?;
        let own = format!("past-window {}/{session} {bytes}", system.workspace);
        ensure!(!round.is_clean && round.findings.len() == 41 && round.findings.contains(&own), "{:?}", round.findings);
        set_clock(system, "0 seconds").await?;
        wait_shown(system, 1, "past_window_sessions", 0).await?;
        wait_shown(system, 1, "past_window_bytes", 0).await
    })
}

/// Goal: in a bucket that keeps versions what is left of an object that no row names is told of, and removed whole; and an object that
/// readers do not see is missing, whatever versions it has. Method: versions below a delete marker, with and without a row.
#[test]
fn r11_versions_and_markers_count_as_what_they_are() -> Result<()> {
    run_with_versions(options("reconciled-versions"), &[TOLD], async |system| {
        let (session, merged) = merged_session(system).await?;
        let stray = nobodys(system.key(session));
        leave_versions(system, stray).await?;
        let hidden = [Lying { key: Ok(merged), version: None }];
        ensure!(system.objects.remove(&hidden).await?.is_empty(), "the object was not hidden");
        let (orphan, missing) = (format!("orphan {stray}"), format!("missing {merged}"));
        wait_found(system, &[orphan.clone(), missing]).await?;
        wait_shown(system, 1, "orphan_objects", 1).await?;
        wait_shown(system, 1, "missing_objects", 1).await?;
        // Markers are listed behind versions. Without its own it is an object again.
        let lying = system.objects.lying(&merged.to_string(), KEEPS).await?;
        ensure!(lying.len() == 2, "a version and a marker are {lying:?}");
        ensure!(system.objects.remove(&lying[1..]).await?.is_empty(), "the marker was not removed");
        wait_found(system, &[orphan]).await?;
        let removed = reconcile(system, &["--remove-orphans", "--expect", "1"])?;
        ensure!(removed.is_clean && removed.said.contains("removed 1, kept 0"), "{}", removed.said);
        let left = system.objects.lying(&stray.to_string(), KEEPS).await?;
        ensure!(left.is_empty(), "{left:?} are left");
        wait_shown(system, 1, "orphan_objects", 0).await?;
        wait_shown(system, 1, "missing_objects", 0).await?;
        load::compare_all(system, SOON).await.map(drop)
    })
}

/// The entry of the journal that has a session.
async fn entry_of(system: &System<'_>, session: SessionId) -> Result<ObjectKey> {
    let entry: Option<Uuid> = sqlx::query_scalar("select entry_id from deletion_session where session_id = $1")
        .bind(session.0)
        .fetch_one(system.index.pool())
        .await?;
    Ok(ObjectKey::Journal { id: ObjectId(entry.context("the session stands in no entry")?) })
}

/// Goal: the journal is compared as well: an entry that somebody removed is told of and written anew, and one that the index does not
/// know is carried out, also where nothing was started anew. Method: the entry of a deleted session is taken away; then the index loses
/// all that it knows of the deletion, as it does where a dump is put back into a server that goes on.
#[test]
fn r11_what_the_journal_lost_is_written_anew_and_what_the_index_lost_is_deleted_again() -> Result<()> {
    let tolerated = [TOLD, "somebody removed entries", "is one of a backup"];
    run_with_own_s3(S3Kind::Folder, options("journalled"), &tolerated, async |system| {
        let (session, _) = merged_session(system).await?;
        system.ledger.forget(session);
        let deletion = system.api.delete_session(session).await?.deletion_id;
        load::wait_erased(&system.api, deletion).await?;
        wait_found(system, &[]).await?;
        let removed = entry_of(system, session).await?;
        std::fs::remove_file(system.file_of(&removed)).context("take the entry away")?;
        let anew = until("it is written anew", SOON, || async {
            match entry_of(system, session).await {
                Ok(entry) if entry != removed => Seen::Done(entry),
                Ok(_) => Seen::not_yet("it stands in the same entry"),
                Err(error) => Seen::not_yet(error),
            }
        })
        .await?;
        ensure!(system.file_of(&anew).is_file(), "the entry that it stands in is not there");
        wait_found(system, &[]).await?;

        wait_receipt(system, &system.api, deletion).await?;
        let mut tx = system.index.pool().begin().await?;
        for statement in [
            "delete from receipt where deletion_id = $1",
            "delete from deletion_session where deletion_id = $1",
            "delete from journal_entry where deletion_id = $1",
            "delete from deletion where id = $1",
        ] {
            sqlx::query(statement).bind(deletion.0).execute(&mut *tx).await?;
        }
        sqlx::query("update session set state = 0 where id = $1").bind(session.0).execute(&mut *tx).await?;
        tx.commit().await?;
        wait_gone(system, session).await.context("what the index lost")?;
        wait_receipt(system, &system.api, deletion).await?;
        wait_found(system, &[]).await?;

        // Only what is older than any backup goes, by the bucket's clock and not by its name.
        system.api.delete_session(SessionId(Uuid::now_v7())).await?;
        let entries = system.objects.list("journal/").await?;
        let entries: Vec<ObjectKey> = entries.into_iter().flatten().collect();
        let old = entry_of(system, session).await?;
        let day = Duration::from_secs(86_400);
        for (key, days) in entries.iter().map(|key| (key, if *key == old { 38 } else { 36 })) {
            let file = std::fs::File::options().append(true).open(system.file_of(key)).context("open an entry")?;
            file.set_modified(std::time::SystemTime::now() - days * day).context("make an entry old")?;
        }
        let worker = system.service(WORKER, 1);
        system.take_down(&worker).await?;
        system.bring_back(&worker).await?;
        until("the old entry is gone, and its row", SOON, || async {
            let row = system.index.unknown_entries(&[old.id()]).await.map(|unknown| !unknown.is_empty());
            match (system.file_of(&old).exists(), row) {
                (false, Ok(true)) => Seen::Done(()),
                found => Seen::not_yet(format_args!("{found:?}")),
            }
        })
        .await?;
        ensure!(entries.len() > 1, "there is one entry: the test shows nothing");
        for key in entries.iter().filter(|key| **key != old) {
            ensure!(system.file_of(key).is_file(), "{key} went early");
        }
        wait_found(system, &[]).await
    })
}

/// Objects of one part of the bucket.
const OBJECTS: usize = 2_500;

/// Goal: a round costs a list of the bucket and a page of rows for each 1,000 objects, and finds what lies between pages; one that is
/// left is gone on with from where it was, by one worker at a time. Method: objects and rows of three pages are made; at ends of pages
/// some are left out on one side; the operator's round says what it took. Then two owners take turns with a round.
#[test]
fn r11_a_round_costs_a_list_for_a_thousand_objects_and_has_one_owner() -> Result<()> {
    run_with_own_s3(S3Kind::Folder, options("priced"), &[TOLD], async |system| {
        merged_session(system).await?;
        wait_found(system, &[]).await?;
        // Nobody is to change anything while pages are counted.
        for kind in [WORKER, "compactor"] {
            system.take_down(&system.service(kind, 1)).await?;
        }
        let keys = make_many(system).await?;
        let before = reconcile(system, &[])?;
        ensure!(before.findings.is_empty(), "{:?}", before.findings);
        // Three pages of one part of the bucket, and one of each other.
        let told = "objects by 7 lists of the bucket and 7 pages of rows";
        ensure!(before.said.contains(told), "{} instead of {told}", before.said);
        let (mut expected, mut ids) = (BTreeSet::new(), Vec::new());
        for place in [0, 998, 999, 1_000, 1_001, 1_999, 2_000, 2_499] {
            if place % 2 == 0 {
                expected.insert(format!("orphan {}", keys[place]));
                ids.push(keys[place].id().0);
            } else {
                expected.insert(format!("missing {}", keys[place]));
                std::fs::remove_file(system.file_of(&keys[place])).context("take an object away")?;
            }
        }
        sqlx::query("delete from object where id = any($1)").bind(&ids).execute(system.index.pool()).await?;
        wait_found(system, &expected.into_iter().collect::<Vec<_>>()).await?;

        owners(system).await?;
        sqlx::query("delete from object where workspace_id = $1 and session_id = $2")
            .bind(system.workspace.0)
            .bind(MANY.0)
            .execute(system.index.pool())
            .await?;
        std::fs::remove_dir_all(system.file_of(&keys[0]).parent().context("keys have a folder")?)
            .context("remove what was made")?;
        wait_found(system, &[]).await
    })
}

/// The session whose objects are made.
const MANY: SessionId = SessionId(Uuid::from_u128(1));

/// Makes live objects, and rows for them.
async fn make_many(system: &System<'_>) -> Result<Vec<ObjectKey>> {
    let mut ids: Vec<Uuid> = (0..OBJECTS).map(|_| Uuid::now_v7()).collect();
    ids.sort_unstable();
    let keys: Vec<ObjectKey> =
        ids.iter().map(|id| ObjectKey::Session { key: system.key(MANY), id: ObjectId(*id) }).collect();
    let folder = system.file_of(&keys[0]).parent().map(Path::to_owned).context("keys have a folder")?;
    std::fs::create_dir_all(&folder).context("make a folder")?;
    for key in &keys {
        std::fs::write(system.file_of(key), b"made").context("make an object")?;
    }
    sqlx::query(
        "insert into object (id, kind, state, workspace_id, session_id, bytes, sha256, footer_at, footer_len, live_at)
         select id, 1, 1, $2, $3, 4, decode(repeat('00', 32), 'hex'), 0, 0, now() from unnest($1::uuid[]) as o (id)",
    )
    .bind(&ids)
    .bind(system.workspace.0)
    .bind(MANY.0)
    .execute(system.index.pool())
    .await?;
    Ok(keys)
}

/// A round has one owner at a time, who loses it when another takes it; that one goes on where it was.
async fn owners(system: &System<'_>) -> Result<()> {
    let (index, [one, other]) = (&system.index, [Uuid::now_v7(), Uuid::now_v7()]);
    let (long, none) = (Duration::from_secs(600), Duration::ZERO);
    // The worker may have left one, and ended before it let go of it: then its lease has to end.
    let left = until("a round is due", SOON, || async {
        match index.take_round(one, long, none).await {
            Ok(Some(left)) => Seen::Done(left),
            Ok(None) => Seen::not_yet("somebody has it"),
            Err(error) => Seen::not_yet(error),
        }
    })
    .await?;
    ensure!(index.end_round(one, &left, &[]).await?, "the owner could not end it");
    let begun = index.take_round(one, long, none).await?.context("a round is due")?;
    ensure!(begun == Progress::default(), "a round begins with {begun:?}");
    ensure!(index.take_round(other, long, none).await?.is_none(), "two have one round");
    let progress = Progress { position: Some("shared/".into()), objects: 7, orphans: 2, missing: 1, ..begun };
    // The lease ends at once.
    ensure!(index.keep_round(one, none, &progress).await?, "the owner lost the round");
    let shown = index.reconciled().await?;
    ensure!((shown.orphans, shown.missing) == (2, 1), "a round that goes on shows {shown:?}");
    let gone_on = index.take_round(other, long, none).await?.context("a round without an owner")?;
    ensure!(gone_on == progress, "it was gone on with from {gone_on:?}");
    ensure!(!index.keep_round(one, long, &progress).await?, "who lost it keeps it");
    ensure!(!index.end_round(one, &progress, &[]).await?, "who lost it ends it");
    index.leave_round(one).await?;
    ensure!(index.take_round(one, long, none).await?.is_none(), "who lost it left it");
    ensure!(index.end_round(other, &gone_on, &[]).await?, "the owner could not end it");
    let shown = index.reconciled().await?;
    ensure!(
        (shown.orphans, shown.missing) == (2, 1) && shown.ended_at.is_some(),
        "a round that is over shows {shown:?}"
    );
    ensure!(index.take_round(one, long, long).await?.is_none(), "a round began before it was due");
    let anew = index.take_round(one, long, none).await?.context("the next round is due")?;
    ensure!(anew == Progress::default(), "the next round begins with {anew:?}");
    index.leave_round(one).await?;
    Ok(())
}
