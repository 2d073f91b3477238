//! Receipts: what is signed was verified, and can be checked by whoever has it.

use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use devstack::{DeploymentOptions, find_binary};
use engine::receipt::{TOMBSTONES_KEPT_MIN, read};
use schemas::deletion::{Cause, Receipt, RemainsIn};
use schemas::http::{DeletionItem, OperatorDeletion, StoredAs};
use schemas::{DeletionId, SessionId};
use service_kit::keys::receipts::ReceiptPublic;
use service_kit::keys::{self, RECEIPT_PUBLIC_FILE};
use time::Duration;
use uuid::Uuid;
use virtual_sdk::{Api, Encoding, Form, Seen, until};

use crate::harness::{LATER, System, run, wait_for_metric};
use crate::load::{self, small_batch};

/// How long any process of a deployment keeps an unwrapped key.
const KEYS_CACHED: Duration = Duration::seconds(5);

/// Settings of the tests that wait for receipts: passes without pauses, short graces.
pub(crate) fn quick(name: &str) -> DeploymentOptions {
    DeploymentOptions::named(name)
        .with("batcher", "CLAIRVIO_FLUSH_AGE_MS", 200)
        .with("compactor", "CLAIRVIO_RUN_AGE_MS", 1_000)
        .with("compactor", "CLAIRVIO_PASS_INTERVAL_MS", 200)
        .with("retention-worker", "CLAIRVIO_PASS_INTERVAL_MS", 200)
        .with("retention-worker", "CLAIRVIO_CONDEMNED_GRACE_MS", 500)
        // Objects that were staged and never live are there until no upload of them can land any more.
        .with("retention-worker", "CLAIRVIO_STAGED_STALE_MS", 3_000)
        .with("retention-worker", "S3_REQUEST_TIMEOUT_MS", 2_000)
}

/// Waits until a deletion has its receipt, and reads it.
pub(crate) async fn wait_receipt(system: &System<'_>, api: &Api, deletion: DeletionId) -> Result<Receipt> {
    let item = until("the deletion has its receipt", LATER, || async {
        match api.deletion(deletion).await {
            Ok(DeletionItem { receipt: Some(receipt), .. }) => Seen::Done(receipt),
            Ok(item) => Seen::not_yet(format_args!("it is {:?}", item.state)),
            Err(error) => Seen::not_yet(error),
        }
    })
    .await?;
    open(system, &item)
}

fn public_file(system: &System<'_>) -> PathBuf {
    system.deployment.keys.join(RECEIPT_PUBLIC_FILE)
}

pub(crate) fn open(system: &System<'_>, receipt: &str) -> Result<Receipt> {
    let public: ReceiptPublic = keys::read(&public_file(system))?;
    Ok(read(receipt, |kid| public.verifying(kid))?)
}

/// The operator's tool, with nothing but two files: no service, no network.
fn verify(system: &System<'_>, answer: &str, more: &[&str]) -> Result<Output> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), answer)?;
    let mut command = Command::new(find_binary("clairvio")?);
    command.env_clear().args(["receipt", "verify"]).arg(file.path()).arg("--keys").arg(public_file(system)).args(more);
    command.output().context("run clairvio")
}

/// Goal (R3, R10): a deletion gets one receipt, not before all is gone and no process can have its keys; it says what was deleted and
/// what remains until when, holds no id of a session, and whoever has it and the public key can check it. Method: sessions are deleted
/// in four ways; each is in its own deletion's receipt and in no other; the tool checks the answer of the API by itself, and refuses it
/// with one character changed.
#[test]
fn r10_each_deleted_session_stands_in_one_receipt_that_anybody_can_check() -> Result<()> {
    run(quick("receipts"), &[], async |system| {
        let operator = Api::new(&system.url("control-plane", 1)?, &system.deployment.endpoints().operator_key)?;
        let sdk = system.sdk(1)?;
        let mut sessions = Vec::new();
        for reference in ["hand", "reference", "operator", "withdrawn"] {
            let session = load::begin(system, &sdk, &system.link(reference).await?).await?;
            let batch = small_batch(session.id, 0, 0, true, 500)?;
            load::send(system, &sdk, &session, &batch, Form::Lines, Encoding::Zstd).await?;
            load::wait_stored(&system.api, session.id, StoredAs::Object, LATER).await?;
            sessions.push(session);
        }
        let of_operator =
            OperatorDeletion { workspace_id: system.workspace, session_id: Some(sessions[2].id), reference: None };
        sdk.withdraw(&sessions[3]).await?;
        let mut deletions = vec![
            (Cause::ByHand, system.api.delete_session(sessions[0].id).await?.deletion_id),
            (Cause::ByReference, system.api.delete_reference("reference").await?.deletion_id),
            (Cause::Operator, operator.operator_delete(&of_operator).await?.deletion_id),
        ];
        deletions.push((Cause::Withdrawn, wait_deletion_of(system, sessions[3].id).await?));
        for session in &sessions {
            system.ledger.forget(session.id);
        }
        for (number, (cause, deletion)) in deletions.iter().enumerate() {
            let receipt = wait_receipt(system, &system.api, *deletion).await?;
            ensure!((receipt.cause, receipt.sessions, receipt.parts) == (*cause, 1, 1), "{receipt:?}");
            ensure!(receipt.objects >= Some(1) && receipt.bytes > Some(0), "it tells of no bytes: {receipt:?}");
            for (other, session) in sessions.iter().enumerate() {
                let is_in = receipt.scope.covers(system.workspace, session.id).context("a scope has its key")?;
                ensure!(is_in == (other == number), "session {other} is in the receipt of {cause:?}: {is_in}");
            }
            let times = [
                Some(receipt.requested_at),
                receipt.unreadable_at,
                Some(receipt.shredded_at),
                receipt.erased_at,
                Some(receipt.verified_at),
            ];
            ensure!(times.iter().all(Option::is_some) && times.is_sorted(), "its times are {times:?}");
            ensure!(
                receipt.verified_at - receipt.shredded_at > KEYS_CACHED,
                "a process may have the key still: {times:?}"
            );
            let until = |what| receipt.remains.iter().find(|remains| remains.what == what).map(|remains| remains.until);
            ensure!(until(RemainsIn::Log) == Some(receipt.shredded_at + Duration::hours(76)), "{receipt:?}");
            ensure!(until(RemainsIn::KeyStoreBackups) == Some(receipt.shredded_at + Duration::days(7)), "{receipt:?}");
            ensure!(receipt.remains.iter().all(|remains| remains.until <= receipt.residual_until), "{receipt:?}");
            ensure!(operator.deletion_of_anyone(*deletion).await?.receipts == 1, "it has another number of receipts");
        }
        let listed = operator.receipts_of_workspace(system.workspace).await?;
        ensure!(
            listed.items.len() == deletions.len() && listed.next_cursor.is_none(),
            "{} are listed",
            listed.items.len()
        );

        let item = system.api.deletion(deletions[0].1).await?;
        let text = item.receipt.clone().context("it has a receipt")?;
        ensure!(
            system.api.receipts(item.id).await?.items.iter().map(|item| &item.receipt).eq([&text]),
            "it is another"
        );
        let answer = serde_json::to_string(&item)?;
        let (own, others) = (sessions[0].id.to_string(), sessions[1].id.to_string());
        let said = verify(system, &answer, &["--session", &own])?;
        let shown = String::from_utf8_lossy(&said.stdout).into_owned();
        ensure!(said.status.success() && shown.contains("the signature verifies"), "{said:?}");
        ensure!(!verify(system, &text, &["--session", &others])?.status.success(), "another's session is in it");
        let place = text.len() / 2;
        let changed = if text[place..].starts_with('A') { "B" } else { "A" };
        let changed = format!("{}{changed}{}", &text[..place], &text[place + 1..]);
        let refused = verify(system, &changed, &[])?;
        ensure!(!refused.status.success() && !refused.stderr.is_empty(), "a changed receipt verifies: {refused:?}");
        Ok(())
    })
}

/// The deletion that a session stands in, once it does.
pub(crate) async fn wait_deletion_of(system: &System<'_>, session: SessionId) -> Result<DeletionId> {
    until("the session stands in a deletion", LATER, || async {
        let found: Result<Option<Uuid>, _> =
            sqlx::query_scalar("select deletion_id from deletion_session where session_id = $1")
                .bind(session.0)
                .fetch_optional(system.index.pool())
                .await;
        match found {
            Ok(Some(deletion)) => Seen::Done(DeletionId(deletion)),
            Ok(None) => Seen::not_yet("it does not"),
            Err(error) => Seen::not_yet(error),
        }
    })
    .await
    .map_err(Into::into)
}

/// Goal (R3): while anything of a deletion is there that should be gone, it has no receipt and an operator is told. Method: a key comes
/// back behind the worker's back, as from a key store of a backup; it gets its receipt once that is put right. Others that a pass takes
/// are put before it that never will: neither it nor a later one stands behind them.
#[test]
fn r03_what_is_not_gone_has_no_receipt() -> Result<()> {
    /// What a pass takes.
    const BATCH: i32 = 500;
    run(quick("unverified"), &["verify deletion", "could not be verified"], async |system| {
        let worker = system.service("retention-worker", 1);
        let sdk = system.sdk(1)?;
        let session = load::begin(system, &sdk, &system.link("comes back").await?).await?;
        let batch = small_batch(session.id, 0, 0, true, 500)?;
        load::send(system, &sdk, &session, &batch, Form::Lines, Encoding::Zstd).await?;
        load::wait_stored(&system.api, session.id, StoredAs::Object, LATER).await?;
        let wrapped: (i32, Vec<u8>) = sqlx::query_as("select version, wrapped from session_key where session_id = $1")
            .bind(session.id.0)
            .fetch_one(system.keystore.pool())
            .await?;
        system.ledger.forget(session.id);
        let deletion = system.api.delete_session(session.id).await?.deletion_id;
        load::wait_erased(&system.api, deletion).await?;
        system.take_down(&worker).await?;
        ensure!(system.api.deletion(deletion).await?.receipt.is_none(), "it had a receipt at once");
        sqlx::query("update session_key set version = $2, wrapped = $3, shredded_at = null where session_id = $1")
            .bind(session.id.0)
            .bind(wrapped.0)
            .bind(&wrapped.1)
            .execute(system.keystore.pool())
            .await?;
        system.bring_back(&worker).await?;
        crate::harness::wait_for_metric(system, "retention-worker", "retention_unverified_deletions 1").await?;
        ensure!(system.api.deletion(deletion).await?.receipt.is_none(), "its key is there, and it has a receipt");
        sqlx::query(
            "with stuck as (
                 insert into deletion (id, workspace_id, cause, requested_at, erased_at)
                 select gen_random_uuid(), $1, 'by_hand', now(), now() - interval '1 hour' from generate_series(1, $2)
                 returning id, workspace_id
             )
             insert into deletion_session (deletion_id, workspace_id, session_id, entry_id, shredded_at, erased_at)
             select id, workspace_id, gen_random_uuid(), gen_random_uuid(), now() - interval '1 hour', now() from stuck",
        )
        .bind(system.key(session.id).workspace.0)
        .bind(BATCH)
        .execute(system.index.pool())
        .await?;
        system.keystore.shred(&[system.key(session.id)]).await?;
        wait_receipt(system, &system.api, deletion).await?;
        let later = system.api.delete_session(SessionId(Uuid::now_v7())).await?.deletion_id;
        wait_receipt(system, &system.api, later).await?;
        let stuck = format!("retention_unverified_deletions {BATCH}");
        crate::harness::wait_for_metric(system, "retention-worker", &stuck).await
    })
}

/// Rows that a deleted session has in index and key store.
async fn tombstone_rows(system: &System<'_>, session: SessionId) -> Result<i64> {
    let rows: i64 = sqlx::query_scalar(
        "select (select count(*) from session where id = $1) + (select count(*) from deletion_session where session_id = $1)",
    )
    .bind(session.0)
    .fetch_one(system.index.pool())
    .await?;
    let keys: i64 = sqlx::query_scalar("select count(*) from session_key where session_id = $1")
        .bind(session.0)
        .fetch_one(system.keystore.pool())
        .await?;
    Ok(rows + keys)
}

/// Goal: a tombstone goes once nothing can bring its session back, from index and key store, and not before; its deletion and receipts
/// say what they said. Method: the receipts of some deletions become as old as tombstones get, those of others nearly so.
#[test]
fn tombstones_go_once_nothing_can_bring_their_sessions_back() -> Result<()> {
    run(quick("tombstones"), &[], async |system| {
        let sdk = system.sdk(1)?;
        let (mut sessions, mut deletions) = (Vec::new(), Vec::new());
        for reference in ["goes", "goes", "goes", "stays"] {
            let session = load::begin(system, &sdk, &system.link(reference).await?).await?;
            let batch = small_batch(session.id, 0, 0, true, 500)?;
            load::send(system, &sdk, &session, &batch, Form::Lines, Encoding::Zstd).await?;
            load::wait_stored(&system.api, session.id, StoredAs::Object, LATER).await?;
            system.ledger.forget(session.id);
            sessions.push(session.id);
        }
        let unseen = SessionId(Uuid::now_v7());
        sessions.push(unseen);
        deletions.push(system.api.delete_reference("goes").await?.deletion_id);
        deletions.push(system.api.delete_reference("nobody has it").await?.deletion_id);
        deletions.push(system.api.delete_session(unseen).await?.deletion_id);
        deletions.push(system.api.delete_session(sessions[3]).await?.deletion_id);
        let mut before = Vec::new();
        for deletion in &deletions {
            wait_receipt(system, &system.api, *deletion).await?;
            before.push(system.api.deletion(*deletion).await?);
        }
        // Links for 90 days, the last token for 9 hours, the log for 3 days, and two days for clocks.
        for (deletion, days) in deletions.iter().zip([96, 96, 96, 95]) {
            sqlx::query("update deletion set receipted_at = receipted_at - make_interval(days => $2) where id = $1")
                .bind(deletion.0)
                .bind(days)
                .execute(system.index.pool())
                .await?;
        }
        sqlx::query(
            "insert into link_mark (workspace_id, link_id, deletion_id, begun_before)
             select $1, gen_random_uuid(), $2, now() - make_interval(days => days) from unnest(array[95, 96]) as old (days)",
        )
        .bind(system.workspace.0)
        .bind(deletions[0].0)
        .execute(system.index.pool())
        .await?;
        let aged = "update link set begun_before = now() - make_interval(days => case
                 when id = (select id from link where deletion_id is not null order by id limit 1) then 95 else 96 end)
             where deletion_id is not null";
        let aged = sqlx::query(aged).execute(system.index.pool()).await?;
        ensure!(aged.rows_affected() == 3, "{} links are marked", aged.rows_affected());
        let worker = system.service("retention-worker", 1);
        system.take_down(&worker).await?;
        system.bring_back(&worker).await?;
        wait_for_metric(system, "retention-worker", "retention_forgotten_tombstones_total 4").await?;
        system.wait_count("marks go as well", "select count(*) from marked_link", 2, LATER).await?;
        for (number, session) in sessions.iter().enumerate() {
            let rows = tombstone_rows(system, *session).await?;
            ensure!(rows == if number == 3 { 3 } else { 0 }, "session {number} has {rows} rows");
            let status = system.api.session(*session).await.err().and_then(|error| error.status());
            ensure!(
                status == Some(if number == 3 { 410 } else { 404 }),
                "session {number} is answered with {status:?}"
            );
        }
        // Old records of them in quarantine are not replayed any more.
        let (now, kept) = (time::OffsetDateTime::now_utc(), TOMBSTONES_KEPT_MIN);
        for (session, age, is_refused) in
            [(0, kept + Duration::HOUR, true), (0, kept - Duration::HOUR, false), (3, kept + Duration::HOUR, false)]
        {
            let found = system.index.may_be_forgotten(&system.key(sessions[session]), now - age, kept).await?;
            ensure!(found == is_refused, "a record of session {session} of {age} ago: {found}");
        }
        let open = "select count(*) from deletion where has_tombstones";
        system.wait_count("deletions are looked at no more", open, 1, LATER).await?;
        for (deletion, before) in deletions.iter().zip(before) {
            let after = system.api.deletion(*deletion).await?;
            ensure!(after == before, "{before:?} became {after:?}");
        }
        // What nobody knows any more can be asked for again, as whatever nobody ever knew.
        let again = system.api.delete_session(unseen).await?.deletion_id;
        ensure!(!deletions.contains(&again), "it is the same deletion");
        wait_receipt(system, &system.api, again).await.map(drop)
    })
}
