//! Closed workspaces: all of theirs is gone within 30 days, unless they are opened again (P9).

use anyhow::{Context, Result, ensure};
use devstack::DeploymentOptions;
use schemas::WorkspaceId;
use schemas::control::WorkspaceState;
use schemas::deletion::Cause;
use schemas::http::{OperatorPatch, WorkspacePatch};
use schemas::plan::Plan;
use time::Duration;
use virtual_sdk::sdk::random_attempt;
use virtual_sdk::{Api, Seen, until};

use crate::harness::{LATER, NOTICE_VERSION, SOON, System, link_of, run};
use crate::load::{self, small_batch};
use crate::receipts::{open, quick};

/// Rows that are a workspace's, or tell of it, but receipts and tombstones.
const OF_WORKSPACE: [&str; 7] = [
    "select count(*) from workspace where id = $1",
    "select count(*) from api_key where workspace_id = $1",
    "select count(*) from link where workspace_id = $1",
    "select count(*) from decline_count where workspace_id = $1",
    "select count(*) from workspace_day where workspace_id = $1",
    "select count(*) from session_read where workspace_id = $1",
    "select count(*) from session_page where workspace_id = $1",
];

async fn wait_edge_refuses(system: &System<'_>, token: &str, code: Option<&str>) -> Result<()> {
    let sdk = system.sdk(1)?;
    until("the edge has heard of it", SOON, || async {
        match (sdk.accept(token, NOTICE_VERSION, &random_attempt()).await, code) {
            (Err(error), Some(code)) if error.code() == code => Seen::Done(()),
            (Ok(_), None) => Seen::Done(()),
            (Err(error), _) => Seen::not_yet(error),
            (Ok(_), _) => Seen::not_yet("it takes it"),
        }
    })
    .await?;
    Ok(())
}

/// Not the clock: no workspace goes by one that differs from the bucket's.
async fn move_end(system: &System<'_>, workspace: WorkspaceId, from_now: &str) -> Result<()> {
    sqlx::query("update workspace set terminates_at = clairvio.clock() + $2::interval where id = $1")
        .bind(workspace.0)
        .bind(from_now)
        .execute(system.index.pool())
        .await?;
    Ok(())
}

/// Goal (P9): a workspace that is closed records and reads nothing from then on, can be opened again, and is gone with all of its
/// sessions, keys, links and sums once its time is over, within 30 days; another workspace stays as it is (R9); the operator has the
/// receipts. Method: it is closed, opened, closed; its time is moved to an hour from now, and to an hour ago.
#[test]
fn p09_a_closed_workspace_is_gone_within_30_days() -> Result<()> {
    let options = DeploymentOptions { plan: Plan::Scale, ..quick("termination") };
    run(options, &[], async |system| {
        let (id, key) = system.another_workspace(Plan::Scale).await?;
        let api = system.api_at(1, &key)?;
        let operator = Api::new(&system.url("control-plane", 1)?, &system.deployment.endpoints().operator_key)?;
        let sdk = system.sdk(1)?;
        let link = link_of(&api, "closed@example.com").await?;
        sdk.decline(&link.token, NOTICE_VERSION).await?;
        let mut sessions = Vec::new();
        for _ in 0..3 {
            let session = sdk.accept(&link.token, NOTICE_VERSION, &random_attempt()).await?;
            let batch = small_batch(session.id, 0, 0, true, 500)?;
            let body = virtual_sdk::Body::of_batch(&batch, virtual_sdk::Form::Lines, virtual_sdk::Encoding::Zstd)?;
            sdk.send(&session, 0, 0, true, &body).await?;
            load::wait_stored(&api, session.id, schemas::http::StoredAs::Object, LATER).await?;
            sessions.push(session);
        }
        let kept = load::begin(system, &sdk, &system.link("stays").await?).await?;
        let batch = small_batch(kept.id, 0, 0, true, 500)?;
        load::send(system, &sdk, &kept, &batch, virtual_sdk::Form::Lines, virtual_sdk::Encoding::Zstd).await?;

        let closed = api.close_workspace().await?;
        let at = closed.terminates_at.context("it does not say when it goes")?;
        let in_days = (at - time::OffsetDateTime::now_utc()).whole_days();
        ensure!(closed.state == WorkspaceState::Terminated && (13..=14).contains(&in_days), "{closed:?}");
        ensure!(api.close_workspace().await?.terminates_at == Some(at), "closing it again moved the time");
        wait_edge_refuses(system, &link.token, Some("workspace_terminated")).await?;
        let refused = api.session(sessions[0].id).await.err().context("a closed workspace is read")?;
        ensure!(refused.code() == "workspace_terminated", "{refused}");
        let renamed = WorkspacePatch { name: Some("New".into()), ..WorkspacePatch::default() };
        let refused = api.change_workspace(&renamed).await.err().context("a closed workspace is changed")?;
        ensure!(refused.code() == "workspace_terminated", "{refused}");

        let opened = WorkspacePatch { state: Some(WorkspaceState::Active), ..WorkspacePatch::default() };
        let open_again = api.change_workspace(&opened).await?;
        ensure!((open_again.state, open_again.terminates_at) == (WorkspaceState::Active, None), "{open_again:?}");
        wait_edge_refuses(system, &link.token, None).await?;
        ensure!(api.session(sessions[0].id).await?.id == sessions[0].id, "a session went with the first closing");

        let patch = OperatorPatch { state: Some(WorkspaceState::Terminated), ..OperatorPatch::default() };
        operator.operate(id, &patch).await?;
        let refused = api.change_workspace(&opened).await.err().context("what an operator closed is opened")?;
        ensure!(refused.code() == "workspace_terminated", "{refused}");
        move_end(system, id, "1 hour").await?;
        // The pass has gone on when a session of the deployment's own workspace was found by it.
        let canary = load::begin(system, &sdk, &system.link("canary").await?).await?;
        system.ledger.forget(canary.id);
        load::wait_erased(&system.api, system.api.delete_session(canary.id).await?.deletion_id).await?;
        ensure!(operator.receipts_of_workspace(id).await?.items.is_empty(), "it went an hour early");

        move_end(system, id, "-1 hour").await?;
        until("the workspace is gone", LATER, || async {
            let mut left = Vec::new();
            for query in OF_WORKSPACE {
                match sqlx::query_scalar::<_, i64>(query).bind(id.0).fetch_one(system.index.pool()).await {
                    Ok(0) => {}
                    Ok(rows) => left.push(format!("{query}: {rows}")),
                    Err(error) => return Seen::not_yet(error),
                }
            }
            if left.is_empty() { Seen::Done(()) } else { Seen::not_yet(left.join("; ")) }
        })
        .await?;
        let keys: i64 =
            sqlx::query_scalar("select count(*) from session_key where workspace_id = $1 and wrapped is not null")
                .bind(id.0)
                .fetch_one(system.keystore.pool())
                .await?;
        ensure!(keys == 0, "{keys} keys are left, the references' maybe among them");
        let below = system.objects.list(&format!("sessions/{id}/")).await?;
        ensure!(below.is_empty(), "{} objects are left", below.len());
        let refused = api.workspace().await.err().context("its key is taken still")?;
        ensure!(refused.code() == "token_key_unknown", "{refused}");
        let refused = operator.operate(id, &OperatorPatch::default()).await.err().context("it can be changed still")?;
        ensure!(refused.status() == Some(404), "{refused}");
        // Its links open nothing, whatever their tokens say.
        wait_edge_refuses(system, &link.token, Some("workspace_terminated")).await?;

        let receipts = operator.receipts_of_workspace(id).await?.items;
        let receipts = receipts.iter().map(|item| open(system, &item.receipt)).collect::<Result<Vec<_>>>()?;
        for session in &sessions {
            let covers = receipts.iter().filter(|receipt| receipt.scope.covers(id, session.id) == Some(true)).count();
            ensure!(covers == 1, "R10: session {} stands in {covers} receipts", session.id);
        }
        ensure!(receipts.iter().all(|receipt| receipt.cause == Cause::Terminated), "{receipts:?}");
        ensure!(
            receipts.iter().all(|receipt| receipt.verified_at - receipt.requested_at < Duration::days(2)),
            "{receipts:?}"
        );
        load::compare_all(system, SOON).await.context("the other workspace").map(drop)
    })
}
