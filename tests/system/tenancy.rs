//! Workspaces beside each other, by every call that `schemas/openapi.yaml` knows.

use anyhow::{Context, Result, bail, ensure};
use devstack::DeploymentOptions;
use schemas::WorkspaceId;
use schemas::control::WorkspaceState;
use schemas::http::{ExportRequest, KeyRequest, OperatorPatch, Scope, WorkspaceRequest};
use schemas::plan::Plan;
use serde_json::{Value, json};
use uuid::Uuid;
use virtual_sdk::{Api, CallError, EventsFormat, Seen, SessionQuery, until};

use crate::exports;
use crate::harness::{LATER, SOON, System, link_of, run};
use crate::load;
use crate::openapi::{Answer, Call, Spec};

/// What a call is made with, and what comes of it.
struct Case {
    /// Which id its path has.
    id: Option<Id>,
    body: Option<Value>,
    /// What its owner is answered with.
    owner: u16,
    /// What a workspace is answered with that names what is another's.
    stranger: u16,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Id {
    Link,
    Session,
    Deletion,
    Export,
    Key,
    Workspace,
}

/// A call that is not here fails the tests: whoever adds one says here what it is made with.
fn case(call: &Call) -> Result<Case> {
    use Id::*;
    let case = |id: Option<Id>, body: Option<Value>, owner: u16| {
        // What names nothing acts on the caller's own workspace.
        let stranger = if id.is_some() { 404 } else { owner };
        Case { id, body, owner, stranger }
    };
    Ok(match (call.method.as_str(), call.path.as_str()) {
        ("post", "/v1/links") => {
            case(None, Some(json!({ "reference": "of-caller", "masking": { "text": "all" } })), 201)
        }
        ("get", "/v1/links" | "/v1/sessions" | "/v1/reads" | "/v1/keys" | "/v1/workspace" | "/v1/usage") => {
            case(None, None, 200)
        }
        ("delete", "/v1/links/{id}") => case(Some(Link), None, 204),
        ("get", "/v1/sessions/{id}" | "/v1/sessions/{id}/events") => case(Some(Session), None, 200),
        // An unknown session gets a tombstone in the caller's own workspace.
        ("delete", "/v1/sessions/{id}") => Case { stranger: 202, ..case(Some(Session), None, 202) },
        ("get", "/v1/sessions/{id}/export") => case(Some(Session), None, 200),
        ("post", "/v1/exports") => case(None, Some(json!({ "workspace": true })), 202),
        ("get", "/v1/exports") => case(None, None, 200),
        ("get", "/v1/exports/{id}" | "/v1/exports/{id}/archive") => case(Some(Export), None, 200),
        ("delete", "/v1/exports/{id}") => case(Some(Export), None, 204),
        ("post", "/v1/deletions") => case(None, Some(json!({ "reference": "of-nobody" })), 202),
        ("get", "/v1/deletions/{id}" | "/v1/deletions/{id}/receipts") => case(Some(Deletion), None, 200),
        ("delete", "/v1/workspace") => case(None, None, 202),
        ("patch", "/v1/workspace") => case(None, Some(json!({ "name": "renamed", "notice_versions": ["1"] })), 200),
        ("post", "/v1/keys") => case(None, Some(json!({ "name": "another", "scopes": ["admin"] })), 201),
        ("delete", "/v1/keys/{id}") => case(Some(Key), None, 204),
        ("post", "/v1/operator/workspaces") => case(None, Some(json!({ "name": "made", "plan": "free" })), 201),
        ("get", "/v1/operator/workspaces") => case(None, None, 200),
        ("get", "/v1/operator/workspaces/{id}") => case(Some(Workspace), None, 200),
        ("patch", "/v1/operator/workspaces/{id}") => case(Some(Workspace), Some(json!({ "plan": "growth" })), 200),
        // Of a workspace that is gone nobody knows whether it ever was.
        ("get", "/v1/operator/workspaces/{id}/receipts") => Case { stranger: 200, ..case(Some(Workspace), None, 200) },
        ("post", "/v1/operator/deletions") => {
            case(None, Some(json!({ "workspace_id": Uuid::nil(), "reference": "of-nobody" })), 404)
        }
        ("get", "/v1/operator/deletions/{id}") => case(Some(Deletion), None, 200),
        ("get", "/v1/operator/links/{id}") => case(Some(Link), None, 200),
        _ => bail!("this test knows nothing of {call}: say what it is made with"),
    })
}

/// A control plane, and the page that it is held to.
struct Plane {
    spec: Spec,
    url: String,
    operator: Api,
    operator_key: String,
}

impl Plane {
    fn of(system: &System<'_>) -> Result<Self> {
        let operator_key = system.deployment.endpoints().operator_key;
        let operator = system.api_at(1, &operator_key)?;
        Ok(Self { spec: Spec::read()?, url: system.url("control-plane", 1)?, operator, operator_key })
    }

    async fn make(&self, key: Option<&str>, call: &Call, case: &Case, id: &str) -> Result<Answer> {
        let id = case.id.map(|_| id);
        self.spec.make(&self.url, key, call, id, case.body.as_ref()).await
    }

    /// All calls; the one behind which nothing else works comes last.
    fn calls(&self) -> Result<Vec<Call>> {
        let mut calls = self.spec.calls()?;
        calls.sort_by_key(closes);
        Ok(calls)
    }

    async fn workspace(&self, name: &str) -> Result<(WorkspaceId, String)> {
        let request = WorkspaceRequest { name: name.to_owned(), plan: Plan::Scale, origins: Vec::new() };
        let made = self.operator.create_workspace(&request).await?;
        Ok((made.workspace.id, made.api_key))
    }
}

fn closes(call: &Call) -> bool {
    (call.method.as_str(), call.path.as_str()) == ("delete", "/v1/workspace")
}

/// All rows of a workspace but those of objects, which workers change in their own time.
async fn rows(system: &System<'_>, workspace: WorkspaceId) -> Result<Vec<String>> {
    let tables: Vec<String> = sqlx::query_scalar(
        "select format('%I.%I', table_schema, table_name) from information_schema.columns
         where column_name = 'workspace_id' and table_schema not in ('pg_catalog', 'information_schema')
             and table_name <> 'object' order by 1",
    )
    .fetch_all(system.index.pool())
    .await?;
    ensure!(tables.len() >= 6, "only {tables:?} have rows of workspaces");
    let mut found = Vec::new();
    for (table, column) in tables.iter().map(|table| (table.as_str(), "workspace_id")).chain([("workspace", "id")]) {
        let query = format!("select t::text from {table} t where {column} = $1 order by 1");
        let rows: Vec<String> =
            sqlx::query_scalar(sqlx::AssertSqlSafe(query)).bind(workspace.0).fetch_all(system.index.pool()).await?;
        found.extend(rows.into_iter().map(|row| format!("{table} {row}")));
    }
    Ok(found)
}

/// Goal: a workspace sees, counts and changes nothing of another's, whatever it calls. Method: every call of openapi.yaml with
/// B's key and A's ids; after each, A's rows are what they were, and nothing of A stands in the answer. Then A makes the same
/// calls, and each of them works. All answers are held to the page.
#[test]
fn a_workspace_never_sees_or_changes_anothers() -> Result<()> {
    run(DeploymentOptions::named("tenancy"), &[], async |system| {
        let plane = Plane::of(system)?;
        let link = system.link("of-a").await?;
        let sent = load::send_recording(system, &[system.sdk(1)?], &link, &load::recording("login-short")?, 0).await?;
        let session = sent.session.id;
        let other = load::send_recording(system, &[system.sdk(1)?], &link, &load::recording("idle-long")?, 1).await?;
        load::compare_all(system, SOON).await?;
        let deletion = system.api.delete_session(other.session.id).await?.deletion_id;
        system.ledger.forget(other.session.id);
        let request = KeyRequest { name: "a's second".into(), scopes: vec![Scope::Read] };
        let key = system.api.create_key(&request).await?;
        // What workers still do to A's rows is done before they are compared.
        load::wait_compacted(system, LATER).await?;
        until("the deletion is through", LATER, || async {
            match system.api.deletion(deletion).await {
                Ok(item) if item.receipt.is_some() => Seen::Done(()),
                Ok(item) => Seen::not_yet(format_args!("{:?}", item.state)),
                Err(error) => Seen::not_yet(error),
            }
        })
        .await?;

        let export =
            exports::wait_ready(&system.api, &ExportRequest { workspace: true, ..Default::default() }).await?.id;

        let ids = |id: Id| match id {
            Id::Link => link.id.to_string(),
            Id::Session => session.to_string(),
            Id::Deletion => deletion.to_string(),
            Id::Export => export.to_string(),
            Id::Key => key.id.to_string(),
            Id::Workspace => system.workspace.to_string(),
        };
        let traces = [
            ids(Id::Link),
            ids(Id::Session),
            ids(Id::Deletion),
            ids(Id::Export),
            ids(Id::Key),
            ids(Id::Workspace),
            "of-a".into(),
        ];
        let (_, b) = plane.workspace("b").await?;
        let calls = plane.calls()?;
        for path in ["/v1/sessions?reference=of-a", "/v1/links?reference=of-a"] {
            let listing =
                calls.iter().find(|call| call.method == "get" && path.starts_with(&format!("{}?", call.path)));
            let listing = Call { path: path.to_owned(), ..listing.context("a list")?.clone() };
            let found = plane.spec.make(&plane.url, Some(&b), &listing, None, None).await?;
            ensure!(found.body["items"] == json!([]), "B finds by A's reference: {}", found.body);
        }
        neither_sees_the_others_recording(system, &b).await?;
        let before = rows(system, system.workspace).await?;
        for table in [
            "link",
            "session",
            "session_page",
            "session_read",
            "api_key",
            "deletion",
            "workspace",
            "session_key",
            "export",
            "export_session",
        ] {
            ensure!(before.iter().any(|row| row.contains(table)), "A has no rows in {table}: {before:?}");
        }
        for call in calls.iter().filter(|call| !call.is_operators) {
            let case = case(call)?;
            let id = case.id.map(&ids).unwrap_or_default();
            let answer = plane.make(Some(&b), call, &case, &id).await?;
            ensure!(answer.status == case.stranger, "{call} by B was answered with {}", answer.status);
            let told = answer.body.to_string();
            let found = traces.iter().find(|trace| told.contains(trace.as_str()));
            ensure!(found.is_none(), "{call} by B tells of A: {told}");
            let after = rows(system, system.workspace).await?;
            ensure!(after == before, "{call} by B changed A: {before:#?} became {after:#?}");
        }
        for call in &calls {
            let case = case(call)?;
            let id = case.id.map(&ids).unwrap_or_default();
            let endpoints = system.deployment.endpoints();
            let own = if call.is_operators { &plane.operator_key } else { &endpoints.api_key };
            let answer = plane.make(Some(own), call, &case, &id).await?;
            ensure!(answer.status == case.owner, "{call} by A was answered with {}: {}", answer.status, answer.body);
            let unknown = Uuid::now_v7().to_string();
            let unknown = plane.make(Some(own), call, &case, &unknown).await?;
            ensure!(
                unknown.status == case.stranger,
                "{call} of what is not there was answered with {}",
                unknown.status
            );
        }
        system.ledger.forget(session);
        Ok(())
    })
}

fn is_unknown<T>(what: &str, answer: Result<T, CallError>) -> Result<()> {
    let status = answer.as_ref().err().and_then(CallError::status);
    ensure!(status == Some(404), "{what} of another workspace was answered with {status:?}");
    Ok(())
}

/// B records too.
async fn neither_sees_the_others_recording(system: &System<'_>, b: &str) -> Result<()> {
    let stranger = system.api_at(1, b)?;
    let link = link_of(&stranger, "of-b").await?;
    let theirs = system.sdk(1)?.accept(&link.token, "1", "attempt-of-b").await?;
    let listed = until("B's session is listed", SOON, || async {
        match stranger.all_sessions(&SessionQuery::default()).await {
            Ok(items) if !items.is_empty() => Seen::Done(items),
            Ok(_) => Seen::not_yet("nothing is listed"),
            Err(error) => Seen::not_yet(error),
        }
    })
    .await?;
    ensure!(listed.len() == 1 && listed[0].id == theirs.id, "B lists more than its own session");
    is_unknown("B's session", system.api.session(theirs.id).await)?;
    is_unknown("B's events", system.api.events(theirs.id, EventsFormat::Lines).await)?;
    is_unknown("B's link", system.api.revoke_link(link.id).await)?;
    let links = system.api.all_links().await?;
    ensure!(links.iter().all(|item| item.id != link.id), "A lists B's link");
    let of_a = links.first().context("A has a link")?;
    ensure!(of_a.sessions == 2, "A's link counts {} sessions", of_a.sessions);
    Ok(())
}

/// Goal: nobody gets past the key, on no call. Method: every call of openapi.yaml without a key, with an unknown one, a revoked
/// one, one without its scopes, one of a suspended and one of a closed workspace; each is refused with its code, and a key with
/// just one of the scopes that the page names is enough.
#[test]
fn every_call_needs_its_key() -> Result<()> {
    run(DeploymentOptions::named("doors"), &[], async |system| {
        let plane = Plane::of(system)?;
        let nothing = Uuid::now_v7().to_string();
        let (_, key) = plane.workspace("doors").await?;
        let api = system.api_at(1, &key)?;
        let mut by_scope = Vec::new();
        for scope in Scope::ALL {
            let request = KeyRequest { name: scope.as_str().into(), scopes: vec![scope] };
            by_scope.push((scope.as_str(), api.create_key(&request).await?.key));
        }
        let revoked = api.create_key(&KeyRequest { name: "revoked".into(), scopes: Scope::ALL.to_vec() }).await?;
        api.revoke_key(revoked.id).await?;
        let unknown = service_kit::keys::tokens::make_api_key()?;
        let (suspended_id, suspended) = plane.workspace("suspended").await?;
        let (closed_id, closed) = plane.workspace("closed").await?;
        for (id, state) in [(suspended_id, WorkspaceState::Suspended), (closed_id, WorkspaceState::Terminated)] {
            plane.operator.operate(id, &OperatorPatch { plan: None, state: Some(state) }).await?;
        }

        let mut refusals = 0;
        for call in &plane.calls()? {
            let case = case(call)?;
            let mut refused = async |key: Option<&str>, code: &str| {
                let answer = plane.make(key, call, &case, &nothing).await?;
                ensure!(answer.code() == code, "{call}: {} {:?} instead of {code}", answer.status, answer.code());
                refusals += 1;
                Ok::<_, anyhow::Error>(())
            };
            refused(None, "token_missing").await?;
            refused(Some(&unknown), "token_key_unknown").await?;
            refused(Some(&"x".repeat(300)), "token_malformed").await?;
            if call.is_operators {
                // A workspace's key is no operator's, whatever its scopes.
                refused(Some(&key), "token_key_unknown").await?;
                refused(Some(&revoked.key), "token_key_unknown").await?;
                continue;
            }
            refused(Some(&plane.operator_key), "token_key_unknown").await?;
            refused(Some(&revoked.key), "token_key_revoked").await?;
            for (_, key) in by_scope.iter().filter(|(scope, _)| !call.scopes.iter().any(|needed| needed == scope)) {
                refused(Some(key), "scope_missing").await?;
            }
            let is_for_closed = (call.method.as_str(), call.path.as_str()) == ("get", "/v1/workspace") || closes(call);
            if !is_for_closed {
                refused(Some(&closed), "workspace_terminated").await?;
            }
            let makes_links = (call.method.as_str(), call.path.as_str()) == ("post", "/v1/links");
            let needs_active = makes_links || closes(call);
            if needs_active {
                refused(Some(&suspended), "workspace_suspended").await?;
            }
            let enough = by_scope.iter().filter(|(scope, _)| call.scopes.iter().any(|needed| needed == scope));
            let mut admitted: Vec<&str> = enough.map(|(_, key)| key.as_str()).collect();
            ensure!(!admitted.is_empty(), "no scope is enough for {call}");
            if !needs_active {
                admitted.push(&suspended);
            }
            for key in admitted {
                let answer = plane.make(Some(key), call, &case, &nothing).await?;
                let expect = if case.id.is_some() { case.stranger } else { case.owner };
                ensure!(answer.status == expect, "{call} was answered with {} {}", answer.status, answer.code());
            }
        }
        ensure!(refusals > 90, "only {refusals} refusals were tried");
        eprintln!("doors: {refusals} refusals");
        Ok(())
    })
}
