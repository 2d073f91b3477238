//! Backups that are restored bring nobody back: the journal of deletions outlives the index.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use devstack::{DeploymentOptions, postgres_program};
use schemas::http::{ExportRequest, ExportState, StoredAs};
use schemas::plan::Plan;
use storage::keystore::KeyRow;
use virtual_sdk::{Encoding, Form, Sdk, Seen, Session, until};

use crate::deletion::{is_absent, is_deleted};
use crate::exports::{is_gone, wait_ready, wait_state};
use crate::harness::{LATER, SOON, System, run, wait_for_metric};
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
        until("the withdrawal is a deletion", SOON, || async {
            match is_deleted(&system.api, withdrawn.id).await {
                Ok(()) => Seen::Done(()),
                Err(error) => Seen::not_yet(error),
            }
        })
        .await?;
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
        until("what was on its way is deleted", SOON, || async {
            match is_deleted(&system.api, coming.id).await {
                Ok(()) => Seen::Done(()),
                Err(error) => Seen::not_yet(error),
            }
        })
        .await?;
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
