//! A bucket that keeps versions, and parts of uploads: what is deleted is gone from it for good.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use devstack::DeploymentOptions;
use schemas::limits::MIB;
use schemas::paths::{ObjectKey, session_prefix};
use schemas::{ObjectId, SessionKey};
use storage::objects::{Keeps, Lying, sha256};
use uuid::Uuid;
use virtual_sdk::{Encoding, Form, Seen, until};

use crate::harness::{LATER, SOON, System, run_with_versions};
use crate::load::{self, small_batch, wait_erased};

const KEEPS: Keeps = Keeps { versions: true, uploads: true };

/// Begins an upload, sends a part of it, and goes away.
async fn abandon(system: &System<'_>, key: ObjectKey) -> Result<()> {
    let mut upload = system.objects.upload(key);
    upload.write(&vec![7; 33 * MIB]).await.context("send parts")
}

/// Puts an object twice and deletes it as if there were no versions.
pub(crate) async fn leave_versions(system: &System<'_>, key: ObjectKey) -> Result<()> {
    for body in ["one", "another"] {
        let body = Bytes::from_static(body.as_bytes());
        system.objects.put(&key, body.clone(), &sha256(&body)).await?;
    }
    let deleted = [Lying { key: Ok(key), version: None }];
    ensure!(system.objects.remove(&deleted).await?.is_empty(), "the object was not deleted");
    let left = system.objects.lying(&key.to_string(), KEEPS).await?;
    ensure!(left.len() == 3, "two versions and a marker are {left:?}");
    ensure!(system.objects.list(&key.to_string()).await?.is_empty(), "readers see it still");
    Ok(())
}

fn stray(key: SessionKey) -> ObjectKey {
    ObjectKey::Session { key, id: ObjectId(Uuid::now_v7()) }
}

/// Goal (R3): in a bucket that keeps versions nothing is left of a deleted session, and nothing of objects that were replaced: no
/// version, no delete marker, no part of an upload. Method: sessions are merged several times over; below the prefix of one lie
/// versions behind a marker and an abandoned upload, and another upload where nobody looks for sessions. One session is deleted;
/// then the bucket is listed by versions and uploads.
#[test]
fn r03_nothing_is_left_in_a_bucket_that_keeps_versions() -> Result<()> {
    let options = DeploymentOptions::named("versions")
        .with("batcher", "CLAIRVIO_FLUSH_AGE_MS", 200)
        .with("compactor", "CLAIRVIO_RUN_AGE_MS", 500)
        .with("compactor", "CLAIRVIO_PASS_INTERVAL_MS", 200)
        .with("retention-worker", "S3_REQUEST_TIMEOUT_MS", 2_000)
        .with("retention-worker", "CLAIRVIO_STAGED_STALE_MS", 3_000)
        .with("retention-worker", "CLAIRVIO_PASS_INTERVAL_MS", 200)
        .with("retention-worker", "CLAIRVIO_CONDEMNED_GRACE_MS", 500);
    run_with_versions(options, &[], async |system| {
        ensure!(system.objects.keeps().await? == KEEPS, "the bucket keeps {:?}", system.objects.keeps().await?);
        let (sdk, link) = (system.sdk(1)?, system.link("versions").await?);
        let sessions = [load::begin(system, &sdk, &link).await?, load::begin(system, &sdk, &link).await?];
        for part in 0..3 {
            for session in &sessions {
                let batch = small_batch(session.id, 0, part, part == 2, 500)?;
                load::send(system, &sdk, session, &batch, Form::Lines, Encoding::Zstd).await?;
            }
            load::wait_compacted(system, LATER).await?;
        }
        system.wait_count("all are final", "select count(*) from session where not final", 0, LATER).await?;
        load::compare_all(system, SOON).await?;
        let victim = system.key(sessions[0].id);
        leave_versions(system, stray(victim)).await?;
        abandon(system, stray(victim)).await?;
        abandon(system, ObjectKey::Shared { partition: 0, id: ObjectId(Uuid::now_v7()) }).await?;

        let deletion = system.api.delete_session(sessions[0].id).await?.deletion_id;
        system.ledger.forget(sessions[0].id);
        wait_erased(&system.api, deletion).await?;
        let prefix = session_prefix(&victim);
        let lying = system.objects.lying(&prefix, KEEPS).await?;
        let uploads = system.objects.open_uploads(&prefix, KEEPS).await?;
        ensure!(lying.is_empty() && uploads.is_empty(), "of an erased session {lying:?} and {uploads:?} are left");
        until("the bucket has what rows name, each once, and no open upload", LATER, || async {
            match left_over(system).await {
                Ok(left) if left.is_empty() => Seen::Done(()),
                Ok(left) => Seen::not_yet(left.join(", ")),
                Err(error) => Seen::not_yet(format_args!("{error:#}")),
            }
        })
        .await?;
        load::compare_all(system, SOON).await.map(drop)
    })
}

/// What lies in the bucket beside one version of each object that a row names.
async fn left_over(system: &System<'_>) -> Result<Vec<String>> {
    let lying = system.objects.lying("", KEEPS).await?;
    let rows: Vec<Uuid> = sqlx::query_scalar("select id from object union all select id from journal_entry")
        .fetch_all(system.index.pool())
        .await?;
    let (rows, mut seen): (BTreeSet<Uuid>, _) = (rows.into_iter().collect(), BTreeSet::new());
    let mut left: Vec<String> = lying
        .into_iter()
        .filter(|lying| match &lying.key {
            Ok(key) => !rows.contains(&key.id().0) || !seen.insert(key.id()),
            Err(_) => true,
        })
        .map(|lying| format!("{lying:?}"))
        .collect();
    left.extend(system.objects.open_uploads("", KEEPS).await?.iter().map(|upload| format!("{upload:?}")));
    Ok(left)
}
