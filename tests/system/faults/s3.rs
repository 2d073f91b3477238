//! S3 going wrong before the batcher, and before the retention worker.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use devstack::Stack;
use schemas::limits;
use schemas::paths::ObjectKey;
use uuid::Uuid;
use virtual_sdk::{Comparison, Encoding, Form, Seen, until};

use super::{PARTITIONS, log_of, progress, quick, under_load};
use crate::harness::{LATER, SOON, System, metric, run_on};
use crate::load;
use crate::proxy::s3::{DeletionFault, Plan, S3Proxy, UploadFault};

const EXPECTED: &[&str] = &["part is down"];

/// Objects that each fault must have hit.
const HITS_MIN: u64 = 3;
/// Uploads that may be under way when S3 is healed, one per partition: those succeed at last.
const UNDER_WAY_MAX: u64 = PARTITIONS as u64;

/// All faults of an upload, by turns.
pub(super) async fn uploads_go_wrong(stack: &Stack, name: &str) -> Result<Comparison> {
    let proxy = S3Proxy::start(&stack.parts().s3.endpoint).await?;
    let options = quick(name)
        .with("batcher", "S3_ENDPOINT", proxy.url())
        // An upload that is taken in at a crawl has the time; one without an answer is given up soon.
        .with("batcher", "S3_REQUEST_TIMEOUT_MS", 2_000);
    run_on(stack, options, EXPECTED, async |system| {
        let faults = async {
            proxy.set(Plan::InTurn);
            until("each fault has hit uploads", LATER, || async {
                let hits = UploadFault::ALL.map(|fault| proxy.hits(fault));
                if hits.iter().all(|hits| *hits >= HITS_MIN) {
                    Seen::Done(())
                } else {
                    Seen::not_yet(format_args!("{hits:?}"))
                }
            })
            .await?;
            proxy.set(Plan::Pass);
            Ok(())
        };
        let comparison = under_load(system, 4, 40, faults).await?;
        let failing = UploadFault::ALL.into_iter().filter(|fault| fault.fails());
        let hits: u64 = failing.map(|fault| proxy.hits(fault)).sum();
        let failed = metric(&system.admin_url("batcher", 1)?, r#"batcher_failures_total{step="upload"}"#).await;
        ensure!(failed + UNDER_WAY_MAX >= hits, "{hits} uploads were hit, and the batcher saw {failed} fail");
        Ok(comparison)
    })
    .await
}

/// The batcher's bound of memory in these tests; the least that can be configured.
const BUFFER_BYTES_MAX: u64 = limits::KAFKA_MESSAGE_BYTES_MAX as u64;
/// What may come on top of it: records that are being opened when reading pauses.
const OPENING_BYTES_MAX: u64 = 24 * limits::MIB as u64;
/// The stack's group forgets a member that it has not heard of for 6 s.
const GROUP_PATIENCE: Duration = Duration::from_secs(6);
const RECORDS_IN: &str = r#"batcher_records_total{what="in"}"#;
/// Together more than the bound.
const SESSIONS: usize = 12;
const BATCHES: u32 = 12;
const BATCH_BYTES: usize = 128 << 10;

/// Every upload is answered with 503, for longer than the group waits for a member.
pub(super) async fn refuses_for_long(stack: &Stack, name: &str) -> Result<Comparison> {
    let proxy = S3Proxy::start(&stack.parts().s3.endpoint).await?;
    let options = quick(name).with("batcher", "S3_ENDPOINT", proxy.url()).with(
        "batcher",
        "CLAIRVIO_BUFFER_BYTES_MAX",
        BUFFER_BYTES_MAX,
    );
    run_on(stack, options, EXPECTED, async |system| {
        let (batcher, admin) = (system.service("batcher", 1), system.admin_url("batcher", 1)?);
        until("the batcher has taken all partitions", SOON, || async {
            match progress(system).await {
                Ok(taken) if taken.len() == PARTITIONS => Seen::Done(()),
                other => Seen::not_yet(format_args!("{other:?}")),
            }
        })
        .await?;
        let (pid, rebalances) = (system.deployment.supervisor.pid(&batcher), rebalances(system)?);
        ensure!(rebalances > 0, "the batcher's log names no assignment, so it would name no other one either");
        proxy.set(Plan::Refuse);
        let since = Instant::now();
        send_sessions(system, SESSIONS).await?;
        until("reading has paused", SOON, || async {
            match metric(&admin, "batcher_pauses_total").await {
                0 => Seen::not_yet("it has not"),
                _ => Seen::Done(()),
            }
        })
        .await?;
        until("the group would have lost a member that is silent", SOON, || async {
            let (refused, elapsed) = (proxy.refused(), since.elapsed());
            let is_over = refused >= 10 && elapsed > GROUP_PATIENCE * 2;
            if is_over { Seen::Done(()) } else { Seen::not_yet(format_args!("{refused} refused, {elapsed:?}")) }
        })
        .await?;
        // What comes now stays in Kafka.
        let taken_in = metric(&admin, RECORDS_IN).await;
        send_sessions(system, 2).await?;
        let refused = proxy.refused();
        until("uploads go on being tried", SOON, || async {
            let more = proxy.refused() - refused;
            if more >= 10 { Seen::Done(()) } else { Seen::not_yet(more) }
        })
        .await?;
        let taken_in_then = metric(&admin, RECORDS_IN).await;
        ensure!(taken_in_then == taken_in, "B7: {taken_in} records grew to {taken_in_then} while reading was paused");
        let buffered = metric(&admin, "batcher_buffered_bytes").await;
        let bound = BUFFER_BYTES_MAX..BUFFER_BYTES_MAX + OPENING_BYTES_MAX;
        ensure!(bound.contains(&buffered), "B7: {buffered} bytes are buffered at a bound of {BUFFER_BYTES_MAX}");
        proxy.set(Plan::Pass);
        let comparison = load::count_settled(system).await?;
        ensure!(system.deployment.supervisor.pid(&batcher) == pid, "the batcher was started anew meanwhile");
        let rebalances_then = self::rebalances(system)?;
        ensure!(rebalances_then == rebalances, "the group gave partitions {rebalances_then} times, not {rebalances}");
        Ok(comparison)
    })
    .await
}

/// Sends sessions whose batches compress badly.
async fn send_sessions(system: &System<'_>, sessions: usize) -> Result<()> {
    let (link, sdk) = (system.link(&system.name).await?, system.sdk(1)?);
    let sending = (0..sessions).map(|_| async {
        let session = load::begin(system, &sdk, &link).await?;
        for seq in 0..BATCHES {
            let batch = load::dense_batch(session.id, seq, seq + 1 == BATCHES, BATCH_BYTES)?;
            load::send(system, &sdk, &session, &batch, Form::Lines, Encoding::Identity).await?;
        }
        anyhow::Ok(())
    });
    futures::future::try_join_all(sending).await?;
    Ok(())
}

/// How often the group gave the batcher partitions or took some.
fn rebalances(system: &System<'_>) -> Result<usize> {
    let text = log_of(system, &system.service("batcher", 1))?;
    Ok(text.lines().filter(|line| line.contains("partitions assigned") || line.contains("partitions revoked")).count())
}

/// Sessions that are deleted, each in an object of its own.
const DELETED: usize = 30;
/// What the worker says of requests without an answer.
const DELETION_FAILS: &[&str] = &["part is down", "pass failed", "trying again"];
/// Requests that each fault must have hit.
const DELETION_HITS_MIN: u64 = 2;

/// All faults of requests that delete, by turns: nothing is called erased that is there, whatever S3 answered, and all of it goes at last.
pub(super) async fn deletions_go_wrong(stack: &Stack, name: &str) -> Result<Comparison> {
    let proxy = S3Proxy::start(&stack.parts().s3.endpoint).await?;
    let options = quick(name)
        .with("retention-worker", "S3_ENDPOINT", proxy.url())
        .with("retention-worker", "CLAIRVIO_PASS_INTERVAL_MS", 200)
        .with("retention-worker", "CLAIRVIO_CONDEMNED_GRACE_MS", 500)
        // In many requests.
        .with("retention-worker", "CLAIRVIO_DELETED_OBJECTS_PER_S_MAX", 10);
    run_on(stack, options, DELETION_FAILS, async |system| {
        let (sdk, kept, link) = (system.sdk(1)?, system.link("stays").await?, system.link("goes").await?);
        let mut deleted = BTreeSet::new();
        for number in 0..=DELETED {
            let is_kept = number == 0;
            let session = load::begin(system, &sdk, if is_kept { &kept } else { &link }).await?;
            let batch = load::small_batch(session.id, 0, 0, true, 500)?;
            load::send(system, &sdk, &session, &batch, Form::Lines, Encoding::Zstd).await?;
            if !is_kept {
                deleted.insert(session.id);
            }
        }
        load::compare_all(system, SOON).await?;
        load::wait_compacted(system, LATER).await?;
        for session in &deleted {
            system.ledger.forget(*session);
        }
        proxy.set(Plan::Deletions);
        let deletion = system.api.delete_reference("goes").await?.deletion_id;
        until("each fault has hit deletions", LATER, || async {
            if let Err(error) = is_truly_erased(system).await {
                return Seen::Done(Err(error));
            }
            let hits = DeletionFault::ALL.map(|fault| proxy.deletion_hits(fault));
            if hits.iter().all(|hits| *hits >= DELETION_HITS_MIN) {
                Seen::Done(Ok(()))
            } else {
                Seen::not_yet(format_args!("{hits:?}"))
            }
        })
        .await??;
        proxy.set(Plan::Pass);
        load::wait_erased(&system.api, deletion).await?;
        is_truly_erased(system).await?;
        let there_again = metric(&system.admin_url("retention-worker", 1)?, "retention_returned_objects_total").await;
        ensure!(there_again > 0, "no listing showed that an answer was untrue");
        load::count_settled(system).await
    })
    .await
}

/// Of sessions that are called erased nothing is in the bucket.
async fn is_truly_erased(system: &System<'_>) -> Result<()> {
    let erased: Vec<Uuid> = sqlx::query_scalar("select session_id from deletion_session where erased_at is not null")
        .fetch_all(system.index.pool())
        .await?;
    for key in system.objects.list(&format!("sessions/{}/", system.workspace)).await? {
        if let Ok(ObjectKey::Session { key, .. }) = key {
            ensure!(!erased.contains(&key.session.0), "R3: {key:?} is called erased, and its object is there");
        }
    }
    Ok(())
}
