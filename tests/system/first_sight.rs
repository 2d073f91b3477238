//! What links and plans allow, decided where sessions are first seen, whatever edges knew.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use devstack::DeploymentOptions;
use schemas::control::News;
use schemas::http::LinkRequest;
use schemas::plan::Plan;
use schemas::record::Consent;
use schemas::{LinkId, ReceiptId, SessionId, SessionKey, WorkspaceId};
use service_kit::time::now_ms;
use storage::index::batches::{FirstSight, StageOutcome, Staging};
use uuid::Uuid;
use virtual_sdk::sdk::random_attempt;
use virtual_sdk::{Api, Body, Encoding, Form, Seen, until};

use crate::harness::{LATER, NOTICE_VERSION, SOON, System, run, wait_for_metric};
use crate::load::small_batch;
use crate::withdrawn::{told, wait_told};

const MAX: u32 = 5;
const DAY_MS: u64 = 86_400_000;
const SECOND_MS: u64 = 1_000;

async fn link(api: &Api, reference: &str, max_sessions: u32) -> Result<LinkId> {
    let request = LinkRequest {
        reference: reference.to_owned(),
        expires_in: Some(3600),
        max_sessions: Some(max_sessions),
        redirect_url: None,
        masking: None,
    };
    Ok(api.create_link(&request).await?.id)
}

/// A session that comes at this time, with a consent of the same time.
fn arriving(workspace: WorkspaceId, link: LinkId, at_ms: u64) -> FirstSight {
    let attempt = Uuid::now_v7().to_string();
    let consent = Consent {
        link,
        consented_at_ms: at_ms,
        notice_version: NOTICE_VERSION.to_owned(),
        receipt: ReceiptId::derive(link, &attempt),
    };
    let key = SessionKey { workspace, session: SessionId::derive(link, &attempt) };
    FirstSight { key, consent, appended_ms: at_ms }
}

/// Stages a flush that holds nothing but these acceptances.
async fn stage(system: &System<'_>, partition: i32, first_seen: &[FirstSight]) -> Result<StageOutcome> {
    let sessions: Vec<SessionKey> = first_seen.iter().map(|sight| sight.key).collect();
    let staging =
        Staging { object: None, topic: "elsewhere", partition, offsets: (0, 1), first_seen, sessions: &sessions };
    system.index.stage(&staging).await.context("stage")
}

fn keys(sights: &[FirstSight]) -> BTreeSet<SessionKey> {
    sights.iter().map(|sight| sight.key).collect()
}

async fn sessions_of(system: &System<'_>, link: LinkId) -> Result<i32> {
    Ok(sqlx::query_scalar("select sessions from link where id = $1")
        .bind(link.0)
        .fetch_one(system.index.pool())
        .await?)
}

/// How many sessions of this link are readable.
async fn readable(system: &System<'_>, link: LinkId) -> Result<i64> {
    Ok(sqlx::query_scalar("select count(*) from session where link_id = $1 and state = 0")
        .bind(link.0)
        .fetch_one(system.index.pool())
        .await?)
}

/// Sessions that were deleted for this reason.
async fn deleted_for(system: &System<'_>, cause: &str) -> Result<i64> {
    Ok(sqlx::query_scalar(
        "select count(*) from deletion_session s join deletion d on d.id = s.deletion_id where d.cause = $1",
    )
    .bind(cause)
    .fetch_one(system.index.pool())
    .await?)
}

/// Goal: a link begins `max_sessions` sessions and no more, whatever edges let in; those that came first are the ones that stay;
/// what is over is deleted and purged, and everybody is told (P13). Method: the index is asked as batchers ask it: once with
/// sessions in the wrong order, then by two partitions at the same time, both of which had begun
/// before either could count.
#[test]
fn p13_a_link_begins_as_many_sessions_as_it_may_and_the_rest_is_purged() -> Result<()> {
    run(DeploymentOptions::named("exhausted"), &[], async |system| {
        let now = now_ms();
        let one = link(&system.api, "one-flush", MAX).await?;
        let mut sights: Vec<FirstSight> =
            (0..8).map(|age| arriving(system.workspace, one, now - age * SECOND_MS)).collect();
        let outcome = stage(system, 0, &sights).await?;
        let over = keys(&sights[..3]);
        ensure!(
            outcome.deleted.iter().copied().collect::<BTreeSet<_>>() == over,
            "the last three are over: {outcome:?}"
        );
        // Sessions, link, day, exhaustion; the deletion, and for each session a row of it, a tombstone, and an entry.
        ensure!(outcome.rows == 8 + 1 + 1 + 1 + (1 + 3 * 3), "{} rows", outcome.rows);
        // A flush whose answer was lost is staged anew.
        let again = stage(system, 0, &sights).await?;
        ensure!(again.rows == 0 && again.deleted.len() == 3, "staged anew: {again:?}");
        ensure!(sessions_of(system, one).await? == MAX.cast_signed(), "not counted once");
        ensure!(readable(system, one).await? == i64::from(MAX), "not as many as may be");

        let many = link(&system.api, "many-partitions", MAX).await?;
        let flushes = [0, 1]
            .map(|_| -> Vec<FirstSight> { (0..10).map(|_| arriving(system.workspace, many, now_ms())).collect() });
        // Both are on their way before either can go on.
        let mut holder = system.index.pool().begin().await?;
        sqlx::query("select from link where id = $1 for update").bind(many.0).execute(&mut *holder).await?;
        let released = async {
            let waiting = "select count(*) from pg_stat_activity
                 where datname = current_database() and wait_event_type = 'Lock'";
            system.wait_count("both partitions wait for the link", waiting, 2, SOON).await?;
            holder.rollback().await.context("let go of the link")
        };
        let (one_outcome, other_outcome, ()) =
            tokio::try_join!(stage(system, 1, &flushes[0]), stage(system, 2, &flushes[1]), released)?;
        let deleted = one_outcome.deleted.len() + other_outcome.deleted.len();
        ensure!(deleted == 20 - MAX as usize, "{deleted} of 20 are over");
        ensure!(sessions_of(system, many).await? == MAX.cast_signed(), "the link counts others than it admitted");
        ensure!(readable(system, many).await? == i64::from(MAX), "others are readable");
        ensure!(deleted_for(system, "exhausted").await? == 3 + deleted as i64, "they were deleted for another reason");

        let exhaustion = |entry: &News| match entry {
            News::Exhaustion(_, link, used) if *link == one => Some(used.clone()),
            _ => None,
        };
        let used = wait_told(system, |news| news.iter().find_map(exhaustion)).await?;
        sights.sort_unstable_by_key(|sight| std::cmp::Reverse(sight.appended_ms));
        let newest: Vec<SessionId> = sights[3..].iter().map(|sight| sight.key.session).collect();
        ensure!(used.sessions == MAX && used.newest == newest, "edges are told {used:?}");
        let gone = async || system.count("select count(*) from deletion_session where erased_at is null").await;
        until("all that is over is purged", LATER, || async {
            match gone().await {
                Ok(0) => Seen::Done(()),
                Ok(left) => Seen::not_yet(left),
                Err(error) => Seen::not_yet(error),
            }
        })
        .await?;
        let heard = told(system).await?;
        let deletions = heard.iter().filter(|(key, value)| key.starts_with("deletion/") && value.is_some()).count();
        ensure!(deletions >= 3 + deleted, "only {deletions} deletions were told");
        // Edges have forgotten what was deleted days ago: should it send again, they are told again.
        sqlx::query("update deletion set requested_at = requested_at - interval '2 days'")
            .execute(system.index.pool())
            .await?;
        let again = stage(system, 0, &sights).await?;
        ensure!(again.rows == 3 && again.deleted.len() == 3, "what edges have forgotten: {again:?}");
        until("edges are told again", SOON, || async {
            let Ok(heard) = told(system).await else { return Seen::not_yet("the topic cannot be read") };
            let times = |key: &SessionKey| {
                let name = News::Deletion(*key).key();
                heard.iter().filter(|(key, value)| *key == name && value.is_some()).count()
            };
            if over.iter().all(|key| times(key) > 1) { Seen::Done(()) } else { Seen::not_yet("not all") }
        })
        .await?;

        links_that_are_known_otherwise(system).await?;
        through_the_batcher(system).await
    })
}

/// Sessions of a link that was revoked, and of one that the index does not know.
async fn links_that_are_known_otherwise(system: &System<'_>) -> Result<()> {
    let (now, revoked) = (now_ms(), link(&system.api, "revoked", 100).await?);
    sqlx::query("update link set revoked_at = now() - interval '10 s' where id = $1")
        .bind(revoked.0)
        .execute(system.index.pool())
        .await?;
    let before = arriving(system.workspace, revoked, now - 20 * SECOND_MS);
    // The log was slow, or the edge's clock is: the earlier of both counts.
    let late = FirstSight { appended_ms: now, ..arriving(system.workspace, revoked, now - 20 * SECOND_MS) };
    let ahead = FirstSight {
        consent: Consent { consented_at_ms: now, ..before.consent.clone() },
        ..arriving(system.workspace, revoked, now - 20 * SECOND_MS)
    };
    let after = arriving(system.workspace, revoked, now);
    let sights = [before, late, ahead, after];
    let outcome = stage(system, 0, &sights).await?;
    ensure!(outcome.deleted == [sights[3].key], "only one session began after the revocation: {outcome:?}");
    ensure!(sessions_of(system, revoked).await? == 3, "it counts others than it admitted");
    ensure!(deleted_for(system, "revoked").await? == 1, "it was deleted for another reason");

    let unknown = arriving(system.workspace, LinkId(Uuid::now_v7()), now);
    let outcome = stage(system, 0, std::slice::from_ref(&unknown)).await?;
    ensure!(outcome.deleted.is_empty() && outcome.rows == 2, "a session without a link: {outcome:?}");
    Ok(())
}

/// A session that is over comes through edge and batcher: nothing of it is stored, and the flush goes on.
async fn through_the_batcher(system: &System<'_>) -> Result<()> {
    let (sdk, created) = (system.sdk(1)?, system.link("used-up").await?);
    // Edges do not know of it.
    sqlx::query("update link set sessions = max_sessions where id = $1")
        .bind(created.id.0)
        .execute(system.index.pool())
        .await?;
    let session = sdk.accept(&created.token, NOTICE_VERSION, &random_attempt()).await?;
    let batch = small_batch(session.id, 0, 0, true, 100)?;
    let body = Body::of_batch(&batch, Form::Lines, Encoding::Zstd)?;
    sdk.send(&session, 0, 0, true, &body).await?;
    wait_for_metric(system, "batcher", r#"batcher_records_total{what="dropped_deleted"} 2"#).await?;
    wait_for_metric(system, "batcher", r#"batcher_records_total{what="chunked"} 0"#).await?;
    let status = system.api.session(session.id).await.err().and_then(|error| error.status());
    ensure!(status == Some(410), "a session that is over is answered with {status:?}");
    ensure!(readable(system, created.id).await? == 0, "it is readable");
    Ok(())
}

/// Goal: with the last session that a plan allows in a day the workspace is closed until midnight, and told of once; another
/// workspace and another day are not (P13). Method: two partitions bring the last sessions at the same time.
#[test]
fn p13_a_workspace_is_closed_when_its_days_sessions_are_used_up() -> Result<()> {
    run(DeploymentOptions::named("daylimit"), &[], async |system| {
        let per_day = Plan::Free.limits().sessions_per_day;
        let (full, full_key) = system.another_workspace(Plan::Free).await?;
        let (yesterday, yesterday_key) = system.another_workspace(Plan::Free).await?;
        let (full_link, old_link) = (
            link(&system.api_at(1, &full_key)?, "full", 10_000).await?,
            link(&system.api_at(1, &yesterday_key)?, "yesterday", 10_000).await?,
        );
        let now = now_ms();
        let next = AtomicU32::new(0);
        let sessions = |workspace, link, count: u64, at_ms: u64| -> Vec<FirstSight> {
            (0..count)
                .map(|_| arriving(workspace, link, at_ms - u64::from(next.fetch_add(1, Ordering::Relaxed))))
                .collect()
        };
        let is_closed = async |workspace: WorkspaceId| -> Result<bool> {
            Ok(sqlx::query_scalar(
                "select full_until is not null and full_until > now() and full_until <= now() + interval '1 day'
                     and extract(epoch from full_until)::bigint % 86400 = 0 from workspace where id = $1",
            )
            .bind(workspace.0)
            .fetch_one(system.index.pool())
            .await?)
        };
        stage(system, 0, &sessions(yesterday, old_link, per_day + 1, now - DAY_MS)).await?;
        stage(system, 0, &sessions(full, full_link, per_day - 1, now)).await?;
        ensure!(!is_closed(full).await?, "it is closed before its sessions are used up");
        let (one, other) = (sessions(full, full_link, 2, now), sessions(full, full_link, 2, now));
        let (one, other) = tokio::try_join!(stage(system, 1, &one), stage(system, 2, &other))?;
        ensure!(one.deleted.is_empty() && other.deleted.is_empty(), "sessions over the day's limit were deleted");
        ensure!(is_closed(full).await?, "it is not closed until midnight");
        ensure!(!is_closed(yesterday).await?, "yesterday's sessions have closed a workspace");
        ensure!(!is_closed(system.workspace).await?, "another workspace is closed");
        stage(system, 1, &sessions(full, full_link, 2, now)).await?;
        let days = system.count("select coalesce(sum(sessions), 0)::bigint from workspace_day").await?;
        ensure!(days as u64 == (per_day + 1) + (per_day - 1) + 6, "{days} sessions stand in days");

        system.wait_count("the outbox is empty", "select count(*) from outbox", 0, SOON).await?;
        let rules_of = |news: &News| match news {
            News::Workspace(workspace, rules) if *workspace == full && rules.full_until.is_some() => {
                Some(rules.clone())
            }
            _ => None,
        };
        let told: Vec<_> = wait_told(system, |news| {
            let told: Vec<_> = news.iter().filter_map(rules_of).collect();
            (!told.is_empty()).then_some(told)
        })
        .await?;
        ensure!(told.len() == 1 && told[0].limits == Plan::Free.limits(), "edges are told {told:?}");
        Ok(())
    })
}
