//! Workspaces beside each other.

use anyhow::{Context, Result, ensure};
use devstack::DeploymentOptions;
use schemas::plan::Plan;
use virtual_sdk::{CallError, EventsFormat, SessionQuery};

use crate::harness::{SOON, link_of, run};
use crate::load;

fn is_unknown<T>(what: &str, answer: Result<T, CallError>) -> Result<()> {
    let status = answer.as_ref().err().and_then(CallError::status);
    ensure!(status == Some(404), "{what} of another workspace was answered with {status:?}");
    Ok(())
}

/// Goal: a workspace sees, counts and deletes nothing of another's. Method: every call with B's key and A's ids; whatever B
/// does, A reads its session exactly as before.
#[test]
fn a_workspace_never_sees_anothers() -> Result<()> {
    run(DeploymentOptions::named("tenancy"), &[], async |system| {
        let link = system.link("of-a").await?;
        let sent = load::send_recording(system, &[system.sdk(1)?], &link, &load::recording("login-short")?, 0).await?;
        let session = sent.session.id;
        let other = load::send_recording(system, &[system.sdk(1)?], &link, &load::recording("idle-long")?, 1).await?;
        load::compare_all(system, SOON).await?;
        let deletion = system.api.delete_session(other.session.id).await?.deletion_id;
        system.ledger.forget(other.session.id);

        let (_, key) = system.another_workspace(Plan::Scale).await?;
        let stranger = system.api_at(1, &key)?;
        is_unknown("a session", stranger.session(session).await)?;
        is_unknown("events", stranger.events(session, EventsFormat::Lines).await)?;
        is_unknown("a deleted session", stranger.session(other.session.id).await)?;
        is_unknown("a deletion", stranger.deletion(deletion).await)?;
        ensure!(stranger.all_links().await?.is_empty(), "B lists links of A");
        ensure!(stranger.all_sessions(&SessionQuery::default()).await?.is_empty(), "B lists sessions of A");
        let query = SessionQuery { reference: Some("of-a".into()), ..SessionQuery::default() };
        ensure!(stranger.all_sessions(&query).await?.is_empty(), "B finds sessions by A's reference");

        // To B the session is unknown: it gets a tombstone of its own, and A's stays as it is.
        let theirs = stranger.delete_session(session).await?.deletion_id;
        is_unknown("B's deletion", system.api.deletion(theirs).await)?;
        load::compare_all(system, SOON).await?;
        ensure!(system.api.session(session).await?.id == session, "A's session is gone");
        let listed = system.api.all_sessions(&SessionQuery::default()).await?;
        ensure!(listed.iter().any(|item| item.id == session), "A's session is not listed any more");

        // B records too, and neither sees the other's.
        let link = link_of(&stranger, "of-b").await?;
        let theirs = system.sdk(1)?.accept(&link.token, "b-1", "attempt-of-b").await?;
        let listed = virtual_sdk::until("B's session is listed", SOON, || async {
            match stranger.all_sessions(&SessionQuery::default()).await {
                Ok(items) if !items.is_empty() => virtual_sdk::Seen::Done(items),
                Ok(_) => virtual_sdk::Seen::not_yet("nothing is listed"),
                Err(error) => virtual_sdk::Seen::not_yet(error),
            }
        })
        .await?;
        ensure!(listed.len() == 1 && listed[0].id == theirs.id, "B lists more than its own session");
        is_unknown("B's session", system.api.session(theirs.id).await)?;
        let links = system.api.all_links().await?;
        ensure!(links.iter().all(|item| item.id != link.id), "A lists B's link");
        let of_a = links.first().context("A has a link")?;
        ensure!(of_a.sessions == 2, "A's link counts {} sessions", of_a.sessions);
        Ok(())
    })
}
