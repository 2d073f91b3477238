//! What must go, goes: past its window, or by hand; and nothing else does.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use devstack::{DeploymentOptions, find_binary};
use schemas::paths::session_prefix;
use schemas::plan::Plan;
use schemas::{SessionId, SessionKey, shared_object};
use storage::footers::Footer;
use storage::index::deletions::Round;
use storage::keystore::KeyRow;
use uuid::Uuid;
use virtual_sdk::sdk::random_attempt;
use virtual_sdk::{Api, Encoding, EventsFormat, Form, Sdk, Seen, Session, SessionQuery, until};

use crate::harness::{LATER, NOTICE_VERSION, SOON, System, link_of, make_control_topic, run};
use crate::load::{self, small_batch, wait_erased};
use crate::receipts::quick;

pub(crate) async fn is_deleted(api: &Api, session: SessionId) -> Result<()> {
    let events = api.events(session, EventsFormat::Lines).await.err().and_then(|error| error.status());
    ensure!(events == Some(410), "events of deleted session {session} were answered with {events:?}");
    let item = api.session(session).await.err().and_then(|error| error.status());
    ensure!(item == Some(410), "deleted session {session} was answered with {item:?}");
    Ok(())
}

/// No object of the bucket has the session: none below its prefix, and no chunk in any shared one.
pub(crate) async fn is_absent(system: &System<'_>, key: &SessionKey) -> Result<()> {
    let below = system.objects.list(&session_prefix(key)).await?;
    ensure!(below.is_empty(), "{} objects of erased session {} are left", below.len(), key.session);
    for object in shared_footers(system).await? {
        let holds = object.chunks.iter().any(|chunk| chunk.key == *key);
        ensure!(!holds, "a shared object has chunks of erased session {}", key.session);
    }
    Ok(())
}

/// The footers of all shared objects that lie in the bucket, whatever their rows say.
async fn shared_footers(system: &System<'_>) -> Result<Vec<Arc<shared_object::Footer>>> {
    let mut footers = Vec::new();
    for key in system.objects.list("shared/").await? {
        let key = key.map_err(|name| anyhow::anyhow!("{name} is none of our objects"))?;
        // One that was removed in this moment is absent too.
        let Ok(body) = system.objects.get(&key).await else { continue };
        if let Some(Footer::Shared(footer)) = system.footer(key, &body).await? {
            footers.push(footer);
        }
    }
    Ok(footers)
}

/// Goal: what is past its plan's window is unreadable and then erased, to the last row and object; what is not, stays (P7).
/// Method: the index's clock is moved to an hour before and an hour after the end of the free plan's seven days. A session
/// that began two days earlier tells when a pass has looked at the new clock; a workspace on a longer plan stays untouched.
#[test]
fn p07_sessions_past_their_plan_window_are_erased() -> Result<()> {
    let options = DeploymentOptions { plan: Plan::Free, ..DeploymentOptions::named("window") }
        .with("", "CLAIRVIO_SESSION_SILENCE_MS", 3_000)
        .with("compactor", "CLAIRVIO_RUN_AGE_MS", 1_000)
        .with("retention-worker", "CLAIRVIO_PASS_INTERVAL_MS", 500)
        .with("retention-worker", "CLAIRVIO_CONDEMNED_GRACE_MS", 3_000);
    run(options, &[], async |system| {
        let (sdk, link) = (system.sdk(1)?, system.link("window").await?);
        let recording = load::recording("login-short")?;
        let mut free = Vec::new();
        for variant in 0..3 {
            free.push(
                load::send_recording(system, std::slice::from_ref(&sdk), &link, &recording, variant).await?.session.id,
            );
        }
        load::wait_compacted(system, LATER).await?;
        let told = "select count(*) from session where urls <> '{}' and active_ms > 0 and clicks > 0 and keypresses > 0
             and console <> '{0,0,0,0}' and failed_requests > 0";
        ensure!(system.count(told).await? == 3, "the index does not tell of what was recorded");
        let canary = free[2];
        let (_, key) = system.another_workspace(Plan::Scale).await?;
        let other = system.api_at(1, &key)?;
        let kept = sdk.accept(&link_of(&other, "kept").await?.token, NOTICE_VERSION, &random_attempt()).await?;
        let batch = small_batch(kept.id, 0, 0, true, 100)?;
        let body = virtual_sdk::Body::of_batch(&batch, Form::Lines, Encoding::Zstd)?;
        sdk.send(&kept, 0, 0, true, &body).await?;
        load::wait_stored(&other, kept.id, schemas::http::StoredAs::Object, LATER).await?;

        sqlx::query("update session set started_at = started_at - interval '2 days' where id = $1")
            .bind(canary.0)
            .execute(system.index.pool())
            .await?;
        set_clock(system, "6 days 23 hours").await?;
        wait_gone(system, canary).await?;
        let pages = system.count("select count(*) from session where state > 0 and urls <> '{}'").await?;
        ensure!(pages == 0, "pages stand in a tombstone");
        system.ledger.forget(canary);
        load::compare_all(system, SOON).await.context("an hour before the end")?;
        let listed = system.api.all_sessions(&SessionQuery::default()).await?;
        ensure!(listed.len() == 2, "an hour before the end {} of 2 sessions are listed", listed.len());

        set_clock(system, "7 days 1 hour").await?;
        for session in &free[..2] {
            wait_gone(system, *session).await?;
            system.ledger.forget(*session);
        }
        ensure!(system.api.all_sessions(&SessionQuery::default()).await?.is_empty(), "expired sessions are listed");
        until("everything is erased", LATER, || async {
            let left = "select count(*) from session s join workspace w on w.id = s.workspace_id
                 where w.plan = 'free' and (s.state < 3 or s.events > 0 or s.bytes_stored > 0
                     or s.urls <> '{}' or s.active_ms > 0 or s.clicks > 0 or s.keypresses > 0
                     or s.console <> '{0,0,0,0}' or s.failed_requests > 0)";
            match system.count(left).await {
                Ok(0) => Seen::Done(()),
                Ok(left) => Seen::not_yet(left),
                Err(error) => Seen::not_yet(error),
            }
        })
        .await?;
        for session in free {
            is_deleted(&system.api, session).await?;
            is_absent(system, &system.key(session)).await?;
        }
        let of_workspace = system.objects.list(&format!("sessions/{}/", system.workspace)).await?;
        ensure!(of_workspace.is_empty(), "{} objects of the workspace are left", of_workspace.len());
        let rows: i64 = sqlx::query_scalar("select count(*) from object where workspace_id = $1")
            .bind(system.workspace.0)
            .fetch_one(system.index.pool())
            .await?;
        ensure!(rows == 0, "{rows} rows of erased objects are left");

        let mut ledger = virtual_sdk::SessionLedger::default();
        ledger.acknowledge(0, 0, virtual_sdk::Content::Own(batch));
        let read = virtual_sdk::verify::read_back(&other, kept.id, &ledger, EventsFormat::Lines).await?.comparison;
        ensure!(read.is_exact() && read.read == 4, "the other workspace's session: {read}");
        Ok(())
    })
}

/// Moves the clock of retention. A connection takes it when it is made, so the worker makes new ones.
pub(crate) async fn set_clock(system: &System<'_>, ahead: &str) -> Result<()> {
    let (database, at): (String, String) =
        sqlx::query_as("select current_database()::text, (now() + $1::text::interval)::text")
            .bind(ahead)
            .fetch_one(system.index.pool())
            .await?;
    sqlx::query(sqlx::AssertSqlSafe(format!("alter database {database} set clairvio.now = '{at}'")))
        .execute(system.index.pool())
        .await?;
    let worker = system.service("retention-worker", 1);
    system.deployment.supervisor.restart(&worker).await?;
    system.deployment.supervisor.wait_ready(&worker, SOON).await
}

/// Waits until the API says that the session is deleted.
pub(crate) async fn wait_gone(system: &System<'_>, session: SessionId) -> Result<()> {
    until("the session is deleted", SOON, || async {
        match is_deleted(&system.api, session).await {
            Ok(()) => Seen::Done(()),
            Err(error) => Seen::not_yet(error),
        }
    })
    .await?;
    Ok(())
}

/// Goal: a deleted session is unreadable at once everywhere, stays so whatever still arrives, and is erased to the last chunk;
/// no other session notices. Method: deletion while its recording goes on; two control planes; then the bucket itself is
/// searched. The same for a session that nobody has seen yet (R8), and for a deletion that is asked for twice.
#[test]
fn p08_a_deleted_session_is_unreadable_at_once_and_then_gone() -> Result<()> {
    let options = DeploymentOptions { control_planes: 2, ..DeploymentOptions::named("deletion") }
        .with("compactor", "CLAIRVIO_RUN_AGE_MS", 1_500)
        .with("", "CLAIRVIO_SESSION_SILENCE_MS", 3_000)
        .with("retention-worker", "CLAIRVIO_PASS_INTERVAL_MS", 500)
        .with("retention-worker", "CLAIRVIO_CONDEMNED_GRACE_MS", 3_000);
    run(options, &[], async |system| {
        let (sdk, link) = (system.sdk(1)?, system.link("deletion").await?);
        // What comes late must not become readable, however it came into the log: by an edge that did not hear of the deletion.
        let deaf_topic = format!("{}-deaf", system.deployment.topic_control);
        make_control_topic(system, &deaf_topic).await?;
        let deaf = system.deaf_edge(&deaf_topic).await?;
        deaf.supervisor.wait_ready(&deaf.name, SOON).await?;
        let second = system.api_at(2, &system.deployment.endpoints().api_key)?;
        let victim = sdk.accept(&link.token, NOTICE_VERSION, &random_attempt()).await?;
        let (deleted, over) = (AtomicBool::new(false), AtomicBool::new(false));
        let recording = async {
            let mut after = 0;
            for seq in 0.. {
                if over.load(Ordering::Acquire) {
                    break;
                }
                send_unnoted(&deaf.sdk, &victim, seq).await?;
                after += u32::from(deleted.load(Ordering::Acquire));
            }
            ensure!(after > 3, "only {after} batches came after the deletion");
            anyhow::Ok(())
        };
        let stop = AtomicBool::new(false);
        let others = load::load(system, std::slice::from_ref(&sdk), &link, 2, 30, &stop);
        let deleting = async {
            until("the session is readable", SOON, || async {
                match system.api.session(victim.id).await {
                    Ok(item) if item.events > 0 => Seen::Done(()),
                    Ok(_) => Seen::not_yet("no events yet"),
                    Err(error) => Seen::not_yet(error),
                }
            })
            .await?;
            let deletion = system.api.delete_session(victim.id).await?.deletion_id;
            deleted.store(true, Ordering::Release);
            is_deleted(&system.api, victim.id).await?;
            is_deleted(&second, victim.id).await?;
            // An edge that hears takes nothing any more.
            until("the edge knows of the deletion", SOON, || async {
                match sdk.session_info(&victim).await {
                    Err(error) if error.code() == "session_deleted" => Seen::Done(()),
                    Err(error) => Seen::not_yet(error),
                    Ok(_) => Seen::not_yet("it does not"),
                }
            })
            .await?;
            ensure!(second.delete_session(victim.id).await?.deletion_id == deletion, "R4: a second deletion began");
            let listed = system.api.all_sessions(&SessionQuery::default()).await?;
            ensure!(listed.iter().all(|item| item.id != victim.id), "a deleted session is listed");
            wait_erased(&system.api, deletion).await?;
            // The recording has gone on all the time.
            is_absent(system, &system.key(victim.id)).await?;
            let key_row = system.keystore.rows(&[system.key(victim.id)]).await?;
            ensure!(
                key_row == [(system.key(victim.id), KeyRow::Shredded)],
                "the key of an erased session is {key_row:?}"
            );
            over.store(true, Ordering::Release);
            Ok(())
        };
        let (_, ()) = tokio::try_join!(load::load_during(others, &stop, deleting), recording)?;
        load::compare_all(system, SOON).await?;
        unknown_session(system, &second, &deaf.sdk).await?;
        deaf.supervisor.stop_all().await?;

        // Everything that was written before is published by now, and merged: the deleted one still is nowhere.
        load::wait_compacted(system, LATER).await?;
        load::compare_all(system, SOON).await?;
        is_deleted(&second, victim.id).await?;
        is_absent(system, &system.key(victim.id)).await
    })
}

/// R8: deleting a session that was never seen leaves a tombstone, and what comes later never becomes readable.
async fn unknown_session(system: &System<'_>, second: &Api, deaf: &Sdk) -> Result<()> {
    let (sdk, link) = (system.sdk(1)?, system.link("unknown").await?);
    let attempt = random_attempt();
    let id = SessionId::derive(link.id, &attempt);
    let deletion = system.api.delete_session(id).await?.deletion_id;
    is_deleted(second, id).await?;
    let session = deaf.accept(&link.token, NOTICE_VERSION, &attempt).await?;
    ensure!(session.id == id, "the session has another id than its attempt gives");
    for seq in 0..5 {
        send_unnoted(deaf, &session, seq).await?;
    }
    // A session that began later shows that the batcher has come so far; records of one partition come in order, and with
    // several sessions every partition has one.
    let mut later = Vec::new();
    for _ in 0..12 {
        let session = load::begin(system, &sdk, &link).await?;
        let batch = small_batch(session.id, 0, 0, true, 100)?;
        load::send(system, &sdk, &session, &batch, Form::Array, Encoding::Gzip).await?;
        later.push(session.id);
    }
    for session in later {
        load::compare(system, session, SOON).await?;
        is_deleted(second, id).await?;
    }
    wait_erased(second, deletion).await?;
    is_absent(system, &system.key(id)).await
}

/// Sends a batch of a session that the ledger is not to know.
async fn send_unnoted(sdk: &Sdk, session: &Session, seq: u32) -> Result<()> {
    let batch = small_batch(session.id, 0, seq, false, 100)?;
    let body = virtual_sdk::Body::of_batch(&batch, Form::Lines, Encoding::Identity)?;
    sdk.send(session, 0, seq, false, &body).await?;
    tokio::task::yield_now().await;
    Ok(())
}

/// Goal: who wants to know what would go hears of that and of nothing else, with the reason, and nothing is changed. Method: of two sessions
/// one is past its window; no worker runs.
#[test]
fn a_dry_run_lists_what_would_go_and_changes_nothing() -> Result<()> {
    let options = DeploymentOptions { plan: Plan::Free, workers: 0, ..DeploymentOptions::named("dryrun") };
    run(options, &[], async |system| {
        let (sdk, link) = (system.sdk(1)?, system.link("dry").await?);
        let [old, young] = [load::begin(system, &sdk, &link).await?, load::begin(system, &sdk, &link).await?];
        system.wait_count("the sessions are seen", "select count(*) from session", 2, SOON).await?;
        sqlx::query("update session set started_at = started_at - interval '8 days' where id = $1")
            .bind(old.id.0)
            .execute(system.index.pool())
            .await?;
        let mut command = std::process::Command::new(find_binary("retention-worker")?);
        command.arg("--dry-run").envs(system.settings(&system.service("control-plane", 1))?);
        let output = command.output().context("run retention-worker")?;
        let (said, told) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{told}");
        let lines: Vec<&str> = said.lines().collect();
        let is_named = |id: SessionId| lines.iter().any(|line| line.contains(&id.to_string()));
        ensure!(lines.len() == 1 && is_named(old.id) && !is_named(young.id), "it lists {lines:?}");
        ensure!(lines[0].contains("the plan free keeps it for 7 days"), "{lines:?}");
        ensure!(told.contains("1 sessions of 1 workspaces are past their windows"), "{told}");
        ensure!(system.count("select count(*) from session where state = 0").await? == 2, "it changed something");
        Ok(())
    })
}

/// Goal: what somebody asked to have deleted does not stand behind all that is past its window (R11). Method: more sessions on their way
/// out than a pass takes, of an older deletion, and one that is deleted by hand; no worker takes any of them away.
#[test]
fn r11_what_was_asked_for_does_not_wait_for_what_expires() -> Result<()> {
    const BATCH: i64 = 1_000;
    let options = DeploymentOptions { workers: 0, ..DeploymentOptions::named("asked") };
    run(options, &[], async |system| {
        let unseen = SessionId(Uuid::now_v7());
        let workspace = system.key(unseen).workspace;
        let old = Uuid::now_v7();
        sqlx::query("insert into deletion (id, workspace_id, cause) values ($1, $2, 'expired')")
            .bind(old)
            .bind(workspace.0)
            .execute(system.index.pool())
            .await?;
        sqlx::query(
            "insert into deletion_session (deletion_id, workspace_id, session_id, entry_id)
             select $1, $2, gen_random_uuid(), gen_random_uuid() from generate_series(1, $3)",
        )
        .bind(old)
        .bind(workspace.0)
        .bind(BATCH + 1)
        .execute(system.index.pool())
        .await?;
        system.api.delete_session(unseen).await?;
        let rounds = [(Round::All, None, 2), (Round::Asked, Some(0), 0)];
        for (round, place, _) in rounds {
            let unshredded = system.index.unshredded(round, BATCH).await?;
            let found = unshredded.iter().position(|(_, key)| key.session == unseen);
            ensure!(found == place, "{round:?}: its key goes at {found:?} of {}", unshredded.len());
        }
        let ahead = system.index.leaving(Round::All, None, BATCH).await?;
        ensure!(ahead.is_empty(), "{} sessions are led on before their keys are destroyed", ahead.len());
        sqlx::query("update deletion_session set shredded_at = now()").execute(system.index.pool()).await?;
        for (round, place, behind) in rounds {
            let leaving = system.index.leaving(round, None, BATCH).await?;
            let found = leaving.iter().position(|leaving| leaving.key.session == unseen);
            ensure!(found == place, "{round:?}: it is led on at {found:?} of {}", leaving.len());
            let next = system.index.leaving(round, leaving.last(), BATCH).await?;
            ensure!(next.len() == behind, "{round:?}: {} are behind the first", next.len());
        }
        Ok(())
    })
}

/// Goal: how fast objects go holds up their going and nothing else. Method: a worker that removes one a second; sessions in objects of
/// their own are deleted at once, and the times that the index noted are compared.
#[test]
fn a_slow_pace_holds_up_bytes_and_no_keys() -> Result<()> {
    const SESSIONS: i64 = 6;
    let options = quick("pace").with("retention-worker", "CLAIRVIO_DELETED_OBJECTS_PER_S_MAX", 1);
    run(options, &[], async |system| {
        let (sdk, link) = (system.sdk(1)?, system.link("pace").await?);
        for _ in 0..SESSIONS {
            let session = load::begin(system, &sdk, &link).await?;
            let batch = small_batch(session.id, 0, 0, true, 100)?;
            load::send(system, &sdk, &session, &batch, Form::Lines, Encoding::Zstd).await?;
            load::wait_stored(&system.api, session.id, schemas::http::StoredAs::Object, LATER).await?;
            system.ledger.forget(session.id);
        }
        let condemned = "select count(*) from object where state = 2";
        system.wait_count("what was merged is gone", condemned, 0, LATER).await?;
        let deletion = system.api.delete_reference("pace").await?.deletion_id;
        wait_erased(&system.api, deletion).await?;
        let (bytes_s, keys_s): (f64, f64) = sqlx::query_as(
            "select extract(epoch from max(erased_at) - min(shredded_at))::float8,
                 extract(epoch from max(erased_at) - max(shredded_at))::float8 from deletion_session",
        )
        .fetch_one(system.index.pool())
        .await?;
        // No object goes before its key, and each but the first waits for the one before.
        ensure!(bytes_s >= (SESSIONS - 1) as f64, "all bytes were gone {bytes_s} s after the first key");
        ensure!(keys_s >= 2.0, "the last key was there until {keys_s} s before the last bytes were gone");
        Ok(())
    })
}
