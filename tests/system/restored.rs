//! Backups that are restored bring nobody back: the journal of deletions outlives the index.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use devstack::{DeploymentOptions, postgres_program};
use schemas::WorkspaceId;
use schemas::control::WorkspaceState;
use schemas::http::{ExportRequest, ExportState, OperatorPatch, StoredAs};
use schemas::plan::Plan;
use storage::keystore::KeyRow;
use uuid::Uuid;
use virtual_sdk::sdk::random_attempt;
use virtual_sdk::{Body, Encoding, Form, Sdk, Seen, Session, until};

use crate::deletion::{is_absent, is_deleted, set_clock, wait_gone};
use crate::exports::{is_gone, wait_ready, wait_state};
use crate::harness::{LATER, NOTICE_VERSION, SOON, System, link_of, run, wait_for_metric};
use crate::load::{self, small_batch};
use crate::receipts::{quick, wait_deletion_of, wait_receipt};

/// What is said once a backup was found.
const RESTORED: &str = "is one of a backup";

fn pg(program: &str, system: &System<'_>, arguments: &[&str], file: &Path) -> Result<()> {
    let output = Command::new(postgres_program(program)?)
        .arg("--dbname")
        .arg(&system.deployment.endpoints().database_url)
        .args(arguments)
        .arg(file)
        .output()
        .with_context(|| format!("start {program}"))?;
    ensure!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

async fn stored(system: &System<'_>, sdk: &Sdk, reference: &str) -> Result<Session> {
    let session = load::begin(system, sdk, &system.link(reference).await?).await?;
    let batch = small_batch(session.id, 0, 0, true, 500)?;
    load::send(system, sdk, &session, &batch, Form::Lines, Encoding::Zstd).await?;
    load::wait_stored(&system.api, session.id, StoredAs::Object, LATER).await?;
    Ok(session)
}

/// Goal: an index and key store of a backup serve nothing that was deleted since, from the first request on, on every replica; what
/// was on its way then is deleted as it comes; all of it is deleted once more, key, objects and rows, with a receipt; what was not
/// deleted stays. Method: sessions are stored, all databases dumped, sessions deleted in three ways and erased; one more is in the log
/// only, since the batcher is down. Then the dump is put back under stopped services, and the control planes are started alone.
#[test]
fn a_restored_backup_brings_nobody_back() -> Result<()> {
    let options = DeploymentOptions { control_planes: 2, plan: Plan::Scale, ..quick("restored") };
    run(options, &[RESTORED, "part is down"], async |system| {
        let sdk = system.sdk(1)?;
        let kept = stored(system, &sdk, "stays").await?;
        let by_hand = stored(system, &sdk, "by hand").await?;
        let by_reference = stored(system, &sdk, "by reference").await?;
        let withdrawn = stored(system, &sdk, "withdrawn").await?;
        let link = system.link("on its way").await?;
        let dump = tempfile::NamedTempFile::new()?;
        pg("pg_dump", system, &["--format", "custom", "--file"], dump.path())?;

        let mut deletions = vec![
            system.api.delete_session(by_hand.id).await?.deletion_id,
            system.api.delete_reference("by reference").await?.deletion_id,
        ];
        sdk.withdraw(&withdrawn).await?;
        wait_gone(system, withdrawn.id).await.context("the withdrawal is a deletion")?;
        for session in [&by_hand, &by_reference, &withdrawn] {
            system.ledger.forget(session.id);
        }
        for deletion in &deletions {
            load::wait_erased(&system.api, *deletion).await?;
        }
        let batcher = system.service("batcher", 1);
        system.take_down(&batcher).await?;
        let coming = load::begin(system, &sdk, &link).await?;
        let batch = small_batch(coming.id, 0, 0, true, 500)?;
        load::send(system, &sdk, &coming, &batch, Form::Lines, Encoding::Zstd).await?;
        system.ledger.forget(coming.id);
        system.api.delete_reference("on its way").await?;

        for kind in ["control-plane", "compactor", "retention-worker"] {
            system.take_down(&system.service(kind, 1)).await?;
        }
        system.take_down(&system.service("control-plane", 2)).await?;
        pg("pg_restore", system, &["--clean", "--if-exists", "--single-transaction"], dump.path())?;
        let back = system.count("select count(*) from session where state = 0").await?;
        ensure!(back == 4, "{back} sessions came back with the backup: the test shows nothing");
        ensure!(is_known(system, &by_hand).await?, "no key came back with the backup");

        for number in [2, 1] {
            system.bring_back(&system.service("control-plane", number)).await?;
            let api = system.api_at(number, &system.deployment.endpoints().api_key)?;
            for session in [&by_hand, &by_reference, &withdrawn] {
                is_deleted(&api, session.id).await.context("right after the restore")?;
                ensure!(!is_known(system, session).await?, "its key is there");
            }
            ensure!(api.session(kept.id).await?.id == kept.id, "what was not deleted went");
        }
        for kind in ["batcher", "compactor", "retention-worker"] {
            system.bring_back(&system.service(kind, 1)).await?;
        }
        load::compare_all(system, SOON).await.context("what was not deleted")?;
        wait_gone(system, coming.id).await.context("what was on its way is deleted")?;
        // When all was verified before it came, it has a deletion of its own.
        deletions.push(wait_deletion_of(system, coming.id).await?);
        for deletion in deletions {
            let receipt = wait_receipt(system, &system.api, deletion).await?;
            ensure!(receipt.sessions == 1, "{receipt:?}");
        }
        for session in [&by_hand, &by_reference, &withdrawn, &coming] {
            is_deleted(&system.api, session.id).await?;
            is_absent(system, &system.key(session.id)).await?;
        }
        Ok(())
    })
}

async fn is_known(system: &System<'_>, session: &Session) -> Result<bool> {
    let rows = system.keystore.rows(&[system.key(session.id)]).await?;
    Ok(rows.iter().any(|(_, row)| matches!(row, KeyRow::Wrapped(_))))
}

/// Goal: a key store that alone is restored to before a deletion loses the keys again, while everything runs. Method: its schema is
/// dumped before and put back after. An export that was ended between loses its key again too.
#[test]
fn a_key_store_of_a_backup_loses_its_keys_again() -> Result<()> {
    let tolerated = [RESTORED, "part is down", "pass failed", "trying again"];
    run(quick("keysrestored"), &tolerated, async |system| {
        let sdk = system.sdk(1)?;
        let session = stored(system, &sdk, "goes").await?;
        let ended = wait_ready(&system.api, &ExportRequest { workspace: true, ..ExportRequest::default() }).await?.id;
        let dump = tempfile::NamedTempFile::new()?;
        pg("pg_dump", system, &["--schema", "keystore", "--format", "custom", "--file"], dump.path())?;
        system.ledger.forget(session.id);
        let deletion = system.api.delete_session(session.id).await?.deletion_id;
        load::wait_erased(&system.api, deletion).await?;
        ensure!(!is_known(system, &session).await?, "its key was not destroyed");
        wait_state(&system.api, ended, ExportState::Gone).await?;
        pg("pg_restore", system, &["--clean", "--if-exists", "--single-transaction"], dump.path())?;
        wait_for_metric(system, "retention-worker", "retention_shredded_again_total 1").await?;
        ensure!(!is_known(system, &session).await?, "its key is there again");
        until("the export's key is destroyed once more", SOON, || async {
            match is_gone(system, ended).await {
                Ok(()) => Seen::Done(()),
                Err(error) => Seen::not_yet(error),
            }
        })
        .await?;
        wait_receipt(system, &system.api, deletion).await.map(drop)
    })
}

/// Goal (R7): the deletion of a reference holds also where the backup is older than its links, for sessions whose records lie in the log alone:
/// when batchers let them in before anybody has read the journal they are unreadable from the first answer on. Others of a link that
/// the index does not know stay.
#[test]
fn r07_marks_of_links_that_the_backup_has_not_find_what_was_let_in() -> Result<()> {
    unknown_links("younglinks", ["batcher", "control-plane"])
}

/// Goal (R7): the same for sessions that come after it: they are deleted as they are first seen.
#[test]
fn r07_marks_of_links_that_the_backup_has_not_hold_what_comes_late() -> Result<()> {
    unknown_links("latelinks", ["control-plane", "batcher"])
}

/// Method: links are made behind the dump, sessions begin, and their records lie in the log alone; the reference is deleted, the dump put
/// back, and the services started in this order.
fn unknown_links(name: &str, order: [&str; 2]) -> Result<()> {
    run(quick(name), &[RESTORED, "part is down"], async |system| {
        let sdk = system.sdk(1)?;
        let dump = tempfile::NamedTempFile::new()?;
        pg("pg_dump", system, &["--format", "custom", "--file"], dump.path())?;
        let (link, kept_link) = (system.link("young").await?, system.link("stays").await?);
        system.take_down(&system.service("batcher", 1)).await?;
        let coming = load::begin(system, &sdk, &link).await?;
        let kept = load::begin(system, &sdk, &kept_link).await?;
        for session in [&coming, &kept] {
            let batch = small_batch(session.id, 0, 0, true, 500)?;
            load::send(system, &sdk, session, &batch, Form::Lines, Encoding::Zstd).await?;
        }
        system.ledger.forget(coming.id);
        system.api.delete_reference("young").await?;

        for kind in ["control-plane", "compactor", "retention-worker"] {
            system.take_down(&system.service(kind, 1)).await?;
        }
        pg("pg_restore", system, &["--clean", "--if-exists", "--single-transaction"], dump.path())?;
        let links = system.count("select count(*) from link").await?;
        ensure!(links == 0, "the backup has {links} links: the test shows nothing");
        for kind in order {
            system.bring_back(&system.service(kind, 1)).await?;
            if kind == "batcher" {
                system.wait_count("both came", "select count(*) from session", 2, SOON).await?;
            }
        }
        is_deleted(&system.api, coming.id).await.context("at once")?;
        for kind in ["compactor", "retention-worker"] {
            system.bring_back(&system.service(kind, 1)).await?;
        }
        load::compare_all(system, SOON).await.context("what was not deleted")?;
        let deletion = wait_deletion_of(system, coming.id).await?;
        wait_receipt(system, &system.api, deletion).await?;
        is_absent(system, &system.key(coming.id)).await
    })
}

/// Goal: an index of a backup learns again what was told of workspaces since: that they are there, closed, on another plan; and sessions of
/// a workspace that nobody knows end too. Method: a workspace is made behind the dump, and records a session that lies in the log
/// alone; one is closed, one opened again whose time would be over, two change their plans, so that a session of one would be past its window;
/// then the dump is put back, and a session of no workspace put beside it. The clock is moved behind the window of the new workspace's
/// plan.
#[test]
fn what_was_told_of_workspaces_since_the_backup_is_taken_back() -> Result<()> {
    let tolerated = [RESTORED, "part is down"];
    run(DeploymentOptions { plan: Plan::Scale, ..quick("youngworkspaces") }, &tolerated, async |system| {
        let operator = system.api_at(1, &system.deployment.endpoints().operator_key)?;
        let sdk = system.sdk(1)?;
        let (closed, closed_key) = system.another_workspace(Plan::Scale).await?;
        let (shrunk, _) = system.another_workspace(Plan::Scale).await?;
        let (grown, grown_key) = system.another_workspace(Plan::Free).await?;
        let (opened, opened_key) = system.another_workspace(Plan::Scale).await?;
        let mut staying = Vec::new();
        for (workspace, key) in [(grown, &grown_key), (opened, &opened_key)] {
            let link = link_of(&system.api_at(1, key)?, "stays").await?;
            let session = sdk.accept(&link.token, NOTICE_VERSION, &random_attempt()).await?;
            let body = Body::of_batch(&*small_batch(session.id, 0, 0, true, 500)?, Form::Lines, Encoding::Zstd)?;
            sdk.send(&session, 0, 0, true, &body).await?;
            load::wait_stored(&system.api_at(1, key)?, session.id, StoredAs::Object, LATER).await?;
            staying.push((workspace, session.id));
        }
        system.api_at(1, &opened_key)?.close_workspace().await?;
        let dump = tempfile::NamedTempFile::new()?;
        pg("pg_dump", system, &["--format", "custom", "--file"], dump.path())?;
        let (young, young_key) = system.another_workspace(Plan::Free).await?;
        operator.operate(grown, &OperatorPatch { plan: Some(Plan::Scale), state: None }).await?;
        let active = OperatorPatch { state: Some(WorkspaceState::Active), plan: None };
        operator.operate(opened, &active).await?;
        let link = link_of(&system.api_at(1, &young_key)?, "young").await?;
        let closed_until = system.api_at(1, &closed_key)?.close_workspace().await?.terminates_at;
        operator.operate(shrunk, &OperatorPatch { plan: Some(Plan::Free), state: None }).await?;
        let told = "select count(*) from outbox";
        system.wait_count("all of it is told", told, 0, SOON).await?;
        system.take_down(&system.service("batcher", 1)).await?;
        let session = sdk.accept(&link.token, NOTICE_VERSION, &random_attempt()).await?;
        let body = Body::of_batch(&*small_batch(session.id, 0, 0, true, 500)?, Form::Lines, Encoding::Zstd)?;
        sdk.send(&session, 0, 0, true, &body).await?;
        for kind in ["control-plane", "compactor", "retention-worker"] {
            system.take_down(&system.service(kind, 1)).await?;
        }
        pg("pg_restore", system, &["--clean", "--if-exists", "--single-transaction"], dump.path())?;
        // By the backup one is past its window, and the other's time is over.
        sqlx::query("update session set started_at = started_at - interval '20 days' where workspace_id = $1")
            .bind(grown.0)
            .execute(system.index.pool())
            .await?;
        let over = "update workspace set terminates_at = now() - interval '1 hour' where terminates_at is not null";
        let over = sqlx::query(over).execute(system.index.pool()).await?;
        ensure!(over.rows_affected() == 1, "the backup has other workspaces closed: the test shows nothing");
        let nobodys = WorkspaceId(Uuid::now_v7());
        sqlx::query(
            "insert into session (workspace_id, id, link_id, notice_version, consented_at, receipt_id, started_at,
                 last_activity_at, final)
             values ($1, gen_random_uuid(), gen_random_uuid(), '1', now(), gen_random_uuid(), now(), now(), true)",
        )
        .bind(nobodys.0)
        .execute(system.index.pool())
        .await?;
        let known: Vec<Uuid> = sqlx::query_scalar("select id from workspace where id = any($1)")
            .bind([closed.0, shrunk.0, young.0])
            .fetch_all(system.index.pool())
            .await?;
        ensure!(known == [closed.0, shrunk.0], "the backup has {known:?}: the test shows nothing");
        for kind in ["retention-worker", "batcher", "control-plane", "compactor"] {
            system.bring_back(&system.service(kind, 1)).await?;
        }

        until("the workspace that nobody knows is there", SOON, || async {
            match operator.operate(nobodys, &OperatorPatch::default()).await {
                Ok(found) if (found.plan, found.state) == (Plan::Scale, WorkspaceState::Suspended) => Seen::Done(()),
                found => Seen::not_yet(format_args!("{found:?}")),
            }
        })
        .await?;
        let found = operator.operate(young, &OperatorPatch::default()).await?;
        ensure!((found.plan, found.state) == (Plan::Free, WorkspaceState::Active), "{found:?}");
        let found = operator.operate(shrunk, &OperatorPatch::default()).await?;
        ensure!((found.plan, found.state) == (Plan::Free, WorkspaceState::Active), "{found:?}");
        let found = operator.operate(closed, &OperatorPatch::default()).await?;
        ensure!(found.state == WorkspaceState::Terminated && found.terminates_at.is_some(), "{found:?}");
        let differ = Option::zip(found.terminates_at, closed_until).map(|(found, told)| (found - told).abs());
        ensure!(differ.is_some_and(|differ| differ < time::Duration::SECOND), "it goes at another time: {found:?}");
        let graces = "select count(*) from workspace where kept_until > now() and kept_window = interval '365 days'";
        ensure!(system.count(graces).await? == 1, "sessions of the smaller plan go without their grace");
        // What is told from now on is told above what edges have heard.
        let suspended = OperatorPatch { state: Some(WorkspaceState::Suspended), plan: None };
        operator.operate(young, &suspended).await?;
        until("the edge has heard of it", SOON, || async {
            match sdk.accept(&link.token, NOTICE_VERSION, &random_attempt()).await {
                Err(error) if error.code() == "workspace_suspended" => Seen::Done(()),
                answer => Seen::not_yet(format_args!("{:?}", answer.err())),
            }
        })
        .await?;

        let live = "select count(*) from session where state = 0";
        system.wait_count("the session is there again", live, 4, SOON).await?;
        set_clock(system, "7 days 1 hour").await?;
        system.wait_count("it is past its window", live, 3, LATER).await?;
        let left = "select count(*) from session where state < 3";
        system.wait_count("it is erased", left, 3, LATER).await?;
        for (workspace, session) in staying {
            let is_live = "select state = 0 from session where workspace_id = $1 and id = $2";
            let is_live: bool =
                sqlx::query_scalar(is_live).bind(workspace.0).bind(session.0).fetch_one(system.index.pool()).await?;
            ensure!(is_live, "a session went by what the backup knew of its workspace");
        }
        Ok(())
    })
}
