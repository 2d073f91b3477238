//! Deletion of all that there is of a reference.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use devstack::DeploymentOptions;
use schemas::deletion::Cause;
use schemas::http::{DeletionItem, DeletionState, LinkCreated, StoredAs};
use schemas::paths::ObjectKey;
use schemas::plan::Plan;
use schemas::{DeletionId, ObjectId, SessionId};
use storage::index::links::ReferenceFilter;
use storage::objects::sha256;
use uuid::Uuid;
use virtual_sdk::sdk::random_attempt;
use virtual_sdk::{Encoding, Form, Sdk, Seen, Session, SessionQuery, until};

use crate::deletion::{is_absent, is_deleted};
use crate::harness::{LATER, NOTICE_VERSION, SOON, System, link_of, run};
use crate::load::{self, small_batch, wait_erased};
use crate::receipts::{open, quick, wait_receipt};

const REFERENCE: &str = "goes@example.com";

async fn send(system: &System<'_>, sdk: &Sdk, session: &Session, end: bool) -> Result<()> {
    let batch = small_batch(session.id, 0, 0, end, 500)?;
    load::send(system, sdk, session, &batch, Form::Lines, Encoding::Zstd).await
}

/// The deletion that a session stands in: one, and for the reference.
async fn deletion_of(system: &System<'_>, session: SessionId) -> Result<DeletionId> {
    let found: Vec<(Uuid, String)> = sqlx::query_as(
        "select d.id, d.cause from deletion_session s join deletion d on d.id = s.deletion_id where s.session_id = $1",
    )
    .bind(session.0)
    .fetch_all(system.index.pool())
    .await?;
    match &found[..] {
        [(deletion, cause)] if cause == "by_reference" => Ok(DeletionId(*deletion)),
        other => anyhow::bail!("session {session} stands in {other:?}"),
    }
}

async fn wait_sessions(system: &System<'_>, deletion: DeletionId, sessions: u64) -> Result<DeletionItem> {
    until("the deletion has its sessions", SOON, || async {
        match system.api.deletion(deletion).await {
            Ok(item) if item.sessions == sessions => Seen::Done(Ok(item)),
            Ok(item) => Seen::not_yet(item.sessions),
            Err(error) => Seen::Done(Err(error.into())),
        }
    })
    .await?
}

/// Goal (R7): once the deletion of a reference is answered, all sessions of its links are unreadable that began by then, wherever
/// they are: in objects of their own, in shared ones, still sending, still in the log; and nothing else is touched (R9), sessions
/// that begin later included. Method: one session of each kind, over two links, beside another reference and another workspace's
/// same one. The batcher is down while the deletion is asked for, and the worker until what was in the log has come; a second
/// deletion is over before what was in the log comes.
#[test]
fn r07_all_sessions_of_a_reference_go_with_those_on_their_way() -> Result<()> {
    let options = DeploymentOptions { control_planes: 2, ..quick("byreference") };
    run(options, &["part is down"], async |system| {
        let sdk = system.sdk(1)?;
        let second = system.api_at(2, &system.deployment.endpoints().api_key)?;
        let links = [system.link(REFERENCE).await?, system.link(REFERENCE).await?];
        let (_, key) = system.another_workspace(Plan::Scale).await?;
        let other = system.api_at(1, &key)?;
        let others = sdk.accept(&link_of(&other, REFERENCE).await?.token, NOTICE_VERSION, &random_attempt()).await?;
        let kept = load::begin(system, &sdk, &system.link("stays@example.com").await?).await?;
        let stored = load::begin(system, &sdk, &links[0]).await?;
        for session in [&kept, &stored] {
            send(system, &sdk, session, true).await?;
        }
        load::wait_stored(&system.api, stored.id, StoredAs::Object, LATER).await?;
        let running = load::begin(system, &sdk, &links[1]).await?;
        send(system, &sdk, &running, false).await?;
        load::compare_all(system, SOON).await?;
        let (batcher, worker) = (system.service("batcher", 1), system.service("retention-worker", 1));
        system.take_down(&batcher).await?;
        system.take_down(&worker).await?;
        let coming = load::begin(system, &sdk, &links[0]).await?;
        send(system, &sdk, &coming, true).await?;

        let deletion = system.api.delete_reference(REFERENCE).await?.deletion_id;
        for session in [&stored, &running] {
            is_deleted(&system.api, session.id).await?;
            is_deleted(&second, session.id).await?;
        }
        let of_reference = SessionQuery { reference: Some(REFERENCE.into()), ..SessionQuery::default() };
        ensure!(second.all_sessions(&of_reference).await?.is_empty(), "sessions of the reference are listed");
        until("the edge takes nothing more of what runs", SOON, || async {
            match sdk.session_info(&running).await {
                Err(error) if error.code() == "session_deleted" => Seen::Done(()),
                Err(error) => Seen::not_yet(error),
                Ok(_) => Seen::not_yet("it does"),
            }
        })
        .await?;
        let after = load::begin(system, &sdk, &links[1]).await?;
        send(system, &sdk, &after, true).await?;
        for session in [&stored, &running, &coming] {
            system.ledger.forget(session.id);
        }
        system.bring_back(&batcher).await?;
        // Of one link, so of one lock: what came before it was seen before.
        load::compare_all(system, SOON).await.context("what began later, and what is another's")?;
        wait_sessions(system, deletion, 3).await?;
        is_deleted(&second, coming.id).await?;
        ensure!(other.session(others.id).await?.id == others.id, "R9: another workspace's session went");

        system.bring_back(&worker).await?;
        wait_erased(&system.api, deletion).await?;
        let item = system.api.deletion(deletion).await?;
        ensure!(
            (item.cause, item.sessions, item.sessions_shredded, item.sessions_erased) == (Cause::ByReference, 3, 3, 3),
            "{item:?}"
        );
        for session in [&stored, &running, &coming] {
            ensure!(deletion_of(system, session.id).await? == deletion, "a session stands in another deletion");
            is_absent(system, &system.key(session.id)).await?;
        }

        late_for_one_that_is_over(system, &sdk, &links[1], &after).await?;
        nobody(system).await?;
        load::compare_all(system, SOON).await.map(drop)
    })
}

/// A session that was on its way while its reference's deletion was erased gets a deletion of its own: what was said of that one stays.
async fn late_for_one_that_is_over(system: &System<'_>, sdk: &Sdk, link: &LinkCreated, after: &Session) -> Result<()> {
    let batcher = system.service("batcher", 1);
    system.take_down(&batcher).await?;
    let late = load::begin(system, sdk, link).await?;
    send(system, sdk, &late, true).await?;
    system.ledger.forget(late.id);
    let over = system.api.delete_reference(REFERENCE).await?.deletion_id;
    system.ledger.forget(after.id);
    wait_erased(&system.api, over).await?;
    system.bring_back(&batcher).await?;
    until("the late session is deleted", SOON, || async {
        match deletion_of(system, late.id).await {
            Ok(own) if own != over => Seen::Done(Ok(())),
            Ok(_) => Seen::Done(Err(anyhow::anyhow!("a deletion that was over has one session more"))),
            Err(error) => Seen::not_yet(error),
        }
    })
    .await??;
    is_deleted(&system.api, late.id).await?;
    wait_erased(&system.api, deletion_of(system, late.id).await?).await?;
    is_absent(system, &system.key(late.id)).await?;
    let item = system.api.deletion(over).await?;
    ensure!((item.state, item.sessions) == (DeletionState::Erased, 1), "{item:?}");
    Ok(())
}

/// R8: what nobody has can be deleted, and is erased at once. What is no reference is refused.
async fn nobody(system: &System<'_>) -> Result<()> {
    let deletion = system.api.delete_reference("nobody@example.com").await?.deletion_id;
    let item = system.api.deletion(deletion).await?;
    ensure!((item.state, item.sessions) == (DeletionState::Erased, 0), "{item:?}");
    for reference in ["", "\0", &"x".repeat(257)] {
        let refused = system.api.delete_reference(reference).await.err().context("no reference, and it is deleted")?;
        ensure!(refused.status() == Some(422), "{refused}");
    }
    Ok(())
}

/// Sessions of one link, more than are deleted at once.
const MANY: i64 = 2_500;

/// Goal: a deletion whose sessions are many is finished whoever begins it, and each session stands in it once. Method: links are marked
/// and nothing more, as when the control plane dies; then two find its sessions at the same time, beside the worker. Then one comes to be as a batcher of an earlier release makes it.
#[test]
fn sessions_of_a_reference_are_found_by_several_at_once() -> Result<()> {
    let options = DeploymentOptions::named("finding").with("retention-worker", "CLAIRVIO_PASS_INTERVAL_MS", 100);
    run(options, &[], async |system| {
        let links = [system.link(REFERENCE).await?, system.link("stays@example.com").await?];
        for link in &links {
            sqlx::query(
                "insert into session (workspace_id, id, link_id, notice_version, consented_at, receipt_id, started_at,
                     last_activity_at)
                 select $1, gen_random_uuid(), $2, '1', now(), gen_random_uuid(), now(), now() from generate_series(1, $3)",
            )
            .bind(system.workspace.0)
            .bind(link.id.0)
            .bind(MANY)
            .execute(system.index.pool())
            .await?;
        }
        let hash: Vec<u8> = sqlx::query_scalar("select reference_hash from link where id = $1")
            .bind(links[0].id.0)
            .fetch_one(system.index.pool())
            .await?;
        let hash = hash.try_into().ok().context("a hash has 32 bytes")?;
        let filter = ReferenceFilter { hash: Some(hash), clear: String::new() };
        let deletion = system.index.delete_reference(system.workspace, &filter, Cause::ByReference).await?;
        let find = async || {
            let mut found = 0;
            while let Some(some) = system.index.find_deleted(deletion, 100).await? {
                found += some.len() as u64;
            }
            anyhow::Ok(found)
        };
        let (one, other) = tokio::try_join!(find(), find())?;
        ensure!(one + other <= MANY as u64, "{one} and {other} of {MANY} sessions were found");
        wait_erased(&system.api, deletion).await?;
        let item = system.api.deletion(deletion).await?;
        ensure!(item.sessions == MANY as u64, "{} of {MANY} sessions are in the deletion", item.sessions);
        let doubled = "select count(*) from (select from deletion_session group by session_id having count(*) > 1) d";
        ensure!(system.count(doubled).await? == 0, "R10: a session stands in two deletions");
        let left = system.count("select count(*) from session where state = 0").await?;
        ensure!(left == MANY, "R9: {left} of {MANY} others are left");

        // As a batcher of the release before lets one in that was on its way: it knows of no mark.
        let overlooked = SessionId(Uuid::now_v7());
        sqlx::query(
            "insert into session (workspace_id, id, link_id, notice_version, consented_at, receipt_id, started_at,
                 last_activity_at)
             select $1, $2, $3, '1', begun_before, gen_random_uuid(), now(), now() from link where id = $3",
        )
        .bind(system.workspace.0)
        .bind(overlooked.0)
        .bind(links[0].id.0)
        .execute(system.index.pool())
        .await?;
        system.index.delete_overlooked(10).await?;
        is_deleted(&system.api, overlooked).await?;
        let own = deletion_of(system, overlooked).await?;
        ensure!(own != deletion, "a deletion that was over has one session more");
        wait_erased(&system.api, own).await
    })
}

/// More sessions than one receipt has.
const VERY_MANY: i64 = 10_500;
/// Those of them that have an object and a key.
const WITH_OBJECTS: i64 = 300;
/// So often workers die before all is erased.
const DEATHS_MIN: usize = 4;

/// Goal: a large deletion is over, once, however often its workers die, and several at once work on it: nothing of it is left, and its
/// receipts have each session once (R3, R10); nothing else goes (R9). Method: sessions of one reference, some with objects; of two
/// workers one after the other is killed in the middle of it, until the deletion is erased.
#[test]
fn r10_killed_workers_end_a_large_deletion_once() -> Result<()> {
    let options = DeploymentOptions { workers: 2, ..quick("killedworkers") };
    // Slow enough that they die in the middle of it.
    let options = options.with("retention-worker", "CLAIRVIO_DELETED_OBJECTS_PER_S_MAX", 30);
    run(options, &[], async |system| {
        let kept = load::begin(system, &system.sdk(1)?, &system.link("stays@example.com").await?).await?;
        send(system, &system.sdk(1)?, &kept, true).await?;
        load::compare_all(system, SOON).await?;
        let link = system.link(REFERENCE).await?;
        let sessions = many_with_objects(system, &link).await?;

        let deletion = system.api.delete_reference(REFERENCE).await?.deletion_id;
        let mut deaths = 0;
        for number in [1, 2].into_iter().cycle() {
            if system.api.deletion(deletion).await?.state == DeletionState::Erased {
                break;
            }
            let worker = system.service("retention-worker", number);
            system.deployment.supervisor.kill(&worker).await?;
            deaths += 1;
            system.deployment.supervisor.wait_ready(&worker, SOON).await?;
        }
        ensure!(deaths >= DEATHS_MIN, "it was erased after {deaths} deaths of workers");
        let first = wait_receipt(system, &system.api, deletion).await?;
        ensure!((first.cause, first.parts) == (Cause::ByReference, 2), "{first:?}");
        let receipts = system.api.receipts(deletion).await?.items;
        let receipts = receipts.iter().map(|item| open(system, &item.receipt)).collect::<Result<Vec<_>>>()?;
        let named: u64 = receipts.iter().map(|receipt| receipt.sessions).sum();
        ensure!(named == VERY_MANY as u64, "its receipts are of {named} sessions");
        for session in sessions.iter().step_by(100) {
            let covers = receipts.iter().filter(|part| part.scope.covers(system.workspace, *session) == Some(true));
            ensure!(covers.count() == 1, "R10: session {session} does not stand in one receipt");
        }
        let objects: Option<u64> = receipts.iter().map(|receipt| receipt.objects).sum();
        ensure!(objects == Some(WITH_OBJECTS as u64), "its receipts are of {objects:?} objects");
        let left = system.objects.list(&format!("sessions/{}/", system.workspace)).await?;
        let is_other = |key: &Result<ObjectKey, String>| matches!(key, Ok(ObjectKey::Session { key, .. }) if key.session == kept.id);
        ensure!(left.iter().all(is_other), "{} objects are left", left.len());
        let keys: i64 =
            sqlx::query_scalar("select count(*) from session_key where wrapped is not null and session_id = any($1)")
                .bind(sessions.iter().map(|session| session.0).collect::<Vec<_>>())
                .fetch_one(system.keystore.pool())
                .await?;
        ensure!(keys == 0, "{keys} keys are left");
        load::compare_all(system, SOON).await.context("another reference's session").map(drop)
    })
}

/// Sessions of a link, as compactors left them: some in an object of their own.
async fn many_with_objects(system: &System<'_>, link: &LinkCreated) -> Result<Vec<SessionId>> {
    let sessions: Vec<Uuid> = sqlx::query_scalar(
        "insert into session (workspace_id, id, link_id, notice_version, consented_at, receipt_id, started_at, last_activity_at, partitions,
             end_seen, final)
         select $1, gen_random_uuid(), $2, '1', now(), gen_random_uuid(), now(), now(), '{0}', true, true from generate_series(1, $3)
         returning id",
    )
    .bind(system.workspace.0)
    .bind(link.id.0)
    .bind(VERY_MANY)
    .fetch_all(system.index.pool())
    .await?;
    let stored = &sessions[..WITH_OBJECTS as usize];
    sqlx::query(
        "insert into session_key (workspace_id, session_id, version, wrapped)
         select $1, id, 1, sha512(id::text::bytea) from unnest($2::uuid[]) as s (id)",
    )
    .bind(system.workspace.0)
    .bind(stored)
    .execute(system.keystore.pool())
    .await?;
    let body = Bytes::from_static(b"what nobody opens");
    let objects: Vec<Uuid> = stored.iter().map(|_| Uuid::now_v7()).collect();
    // Before their rows are live, or the reconciler would miss them.
    for (session, id) in stored.iter().zip(&objects) {
        let key = ObjectKey::Session { key: system.key(SessionId(*session)), id: ObjectId(*id) };
        system.objects.put(&key, body.clone(), &sha256(&body)).await?;
    }
    sqlx::query(
        "insert into object (id, kind, state, workspace_id, session_id, bytes, sha256, footer_at, footer_len, live_at)
         select o, 1, 1, $1, s, $4, $5, 0, 1, now() from unnest($2::uuid[], $3::uuid[]) as made (s, o)",
    )
    .bind(system.workspace.0)
    .bind(stored)
    .bind(&objects)
    .bind(body.len() as i64)
    .bind(sha256(&body).to_vec())
    .execute(system.index.pool())
    .await?;
    Ok(sessions.into_iter().map(SessionId).collect())
}
