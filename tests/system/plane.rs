//! The control plane's own business: links, keys, workspaces, and what it tells edges of them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use devstack::DeploymentOptions;
use schemas::LinkId;
use schemas::control::{Entry, News, Terms, WorkspaceRules, WorkspaceState};
use schemas::http::{KeyRequest, LinkRequest, OperatorPatch, Scope, WorkspacePatch, WorkspaceRequest};
use schemas::limits::{API_KEYS_MAX, CONTROL_DELETION_KEPT_S, MASKING_BYTES_MAX};
use schemas::plan::Plan;
use serde_json::{Value, json};
use service_kit::config::kafka::ControlConfig;
use service_kit::shutdown::Shutdown;
use uuid::Uuid;
use virtual_sdk::{Api, CallError, Seen, until};

use crate::harness::{SOON, System, run};

/// What is told on the topic, as it comes.
#[derive(Default)]
struct Told(Arc<Mutex<Vec<Entry>>>);

impl Told {
    fn follow(system: &System<'_>, shutdown: &Shutdown) -> Result<Self> {
        let config = ControlConfig {
            brokers: system.deployment.endpoints().kafka_brokers,
            topic: system.deployment.topic_control.clone(),
        };
        let told = Self::default();
        let entries = Arc::clone(&told.0);
        service_kit::kafka::control::follow(&config, "test", shutdown.clone(), move |entry| {
            entries.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        })?;
        Ok(told)
    }

    /// Waits until an entry is told of which `pick` makes something.
    async fn wait<T>(&self, what: &str, pick: impl Fn(&Entry) -> Option<T>) -> Result<T> {
        Ok(until(what, SOON, || async {
            let found = self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().find_map(&pick);
            found.map_or_else(|| Seen::not_yet("it was not told"), Seen::Done)
        })
        .await?)
    }

    /// The rules of a workspace in this version.
    async fn rules(&self, workspace: schemas::WorkspaceId, version: u64) -> Result<WorkspaceRules> {
        self.wait(&format!("version {version} of the rules is told"), |entry| match &entry.news {
            News::Workspace(id, rules) if *id == workspace && entry.version == version => Some((**rules).clone()),
            _ => None,
        })
        .await
    }
}

fn refused<T>(what: &str, answer: Result<T, CallError>, code: &str) -> Result<()> {
    let found = answer.as_ref().err().map(CallError::code);
    ensure!(found == Some(code), "{what}: answered with {found:?} instead of {code}");
    Ok(())
}

fn link_request(masking: Option<Value>, redirect_url: Option<&str>) -> LinkRequest {
    LinkRequest {
        reference: "ticket-7".into(),
        expires_in: Some(3600),
        max_sessions: None,
        redirect_url: redirect_url.map(str::to_owned),
        masking,
    }
}

/// Goal: a link goes to allowed origins with normal rules, is found by its reference, and is revoked once and for all, which is
/// told in the same transaction. Method: links of all kinds are made, listed and revoked; the test follows the topic.
#[test]
fn links_are_made_found_and_revoked() -> Result<()> {
    run(DeploymentOptions::named("links"), &[], async |system| {
        let shutdown = Shutdown::new(Duration::ZERO);
        let told = Told::follow(system, &shutdown)?;
        let api = &system.api;
        let patch = WorkspacePatch { origins: Some(vec!["https://app.example".into()]), ..WorkspacePatch::default() };
        api.change_workspace(&patch).await?;
        let rules = json!({ "text": "all", "inputs": "all", "mask_selectors": [".card"] });
        let link = api.create_link(&link_request(Some(rules), Some("https://app.example/help?a=b"))).await?;
        let url = link.url.as_deref().context("the link has an address")?;
        ensure!(url == format!("https://app.example/help?a=b#clairvio={}", link.token), "the address is {url}");
        let claims = claims(&link.token)?;
        let normal = json!({ "text": "all", "mask_selectors": [".card"] });
        ensure!(claims["msk"] == normal, "the token has the rules {}", claims["msk"]);
        ensure!(claims["org"] == json!(["https://app.example"]), "the token has the origins {}", claims["org"]);

        for (masking, redirect, field) in [
            (Some(json!({ "images": true })), None, "masking"),
            (Some(json!({ "mask_selectors": ["x".repeat(MASKING_BYTES_MAX)] })), None, "masking"),
            (Some(json!([])), None, "masking"),
            (Some(json!({ "mask_selectors": ["p {"] })), None, "masking"),
            (Some(json!({ "block_selectors": ["p::before"] })), None, "masking"),
            (None, Some("https://other.example/"), "redirect_url"),
        ] {
            let answer = api.create_link(&link_request(masking, redirect)).await;
            refused(field, answer, "field_invalid")?;
        }

        let second = system.link("ticket-8").await?;
        let found = api.links_of("ticket-7").await?;
        ensure!(found.len() == 1 && found[0].id == link.id, "found by the reference: {found:?}");
        ensure!(found[0].reference == "ticket-7" && found[0].revoked_at.is_none(), "it is {:?}", found[0]);
        ensure!(found[0].masking == Some(normal), "its rules are {:?}", found[0].masking);
        ensure!(found[0].redirect_url.as_deref() == Some("https://app.example/help?a=b"), "it goes elsewhere");
        ensure!(api.links_of("ticket").await?.is_empty(), "a part of a reference finds links");

        api.revoke_link(link.id).await?;
        let revoked_at = api.links_of("ticket-7").await?[0].revoked_at.context("it is not revoked")?;
        let entry = told
            .wait("the revocation is told", |entry| {
                (entry.news == News::Revocation(system.workspace, link.id)).then(|| entry.clone())
            })
            .await?;
        let counts_for = entry.not_after - link.expires_at;
        ensure!(
            counts_for.whole_seconds().abs_diff(CONTROL_DELETION_KEPT_S) <= 1,
            "it counts until {}",
            entry.not_after
        );
        api.revoke_link(link.id).await.context("revoke it again")?;
        ensure!(api.links_of("ticket-7").await?[0].revoked_at == Some(revoked_at), "it was revoked anew");
        refused("an unknown link", api.revoke_link(LinkId(Uuid::now_v7())).await, "not_found")?;
        ensure!(api.links_of("ticket-8").await?[0].revoked_at.is_none(), "{} was revoked too", second.id);
        let looked_up = system.api_at(1, &system.deployment.endpoints().operator_key)?.link_of_anyone(link.id).await?;
        ensure!(looked_up.workspace_id == system.workspace && looked_up.revoked_at.is_some(), "{looked_up:?}");
        shutdown.begin();
        Ok(())
    })
}

fn claims(token: &str) -> Result<Value> {
    use base64::Engine as _;
    let part = token.split('.').nth(1).context("a token has claims")?;
    Ok(serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part)?)?)
}

/// Goal: keys are shown once, bounded in number, give no more than they have, are known to have been used, and end at once.
/// Method: keys are made by several at once until there are no more, used, and revoked; no row holds one.
#[test]
fn keys_are_made_used_and_revoked() -> Result<()> {
    run(DeploymentOptions { control_planes: 2, ..DeploymentOptions::named("keys") }, &[], async |system| {
        let api = &system.api;
        let request = |scopes: &[Scope]| KeyRequest { name: "key".into(), scopes: scopes.to_vec() };
        let reading = api.create_key(&request(&[Scope::Read, Scope::Read])).await?;
        ensure!(reading.scopes == [Scope::Read], "it has the scopes {:?}", reading.scopes);
        let listed = api.list_keys().await?.items;
        let item = listed.iter().find(|item| item.id == reading.id).context("find key in list")?;
        ensure!(item.last_used_at.is_none() && reading.key.ends_with(&item.ending), "it is listed as {item:?}");
        ensure!(item.ending.len() == 4, "more of the key is shown than its end");
        let rows: String =
            sqlx::query_scalar("select string_agg(t::text, ' ') from api_key t").fetch_one(system.index.pool()).await?;
        ensure!(rows.contains(&reading.id.to_string()) && !rows.contains(&reading.key), "the key lies in its row");

        let as_reader = system.api_at(2, &reading.key)?;
        as_reader.list_links(None).await?;
        until("its use is noted", SOON, || async {
            match api.list_keys().await {
                Ok(page) if page.items.iter().any(|item| item.id == reading.id && item.last_used_at.is_some()) => {
                    Seen::Done(())
                }
                Ok(_) => Seen::not_yet("it is not"),
                Err(error) => Seen::not_yet(error),
            }
        })
        .await?;
        let admin = api.create_key(&request(&[Scope::Admin, Scope::Links])).await?;
        let as_admin = system.api_at(1, &admin.key)?;
        refused("a scope that the key lacks", as_admin.create_key(&request(&[Scope::Read])).await, "scope_missing")?;
        as_admin.create_key(&request(&[Scope::Links])).await.context("give a scope that it has")?;
        refused("no scope", api.create_key(&request(&[])).await, "field_invalid")?;
        let nameless = KeyRequest { name: " ".into(), scopes: vec![Scope::Read] };
        refused("no name", api.create_key(&nameless).await, "field_invalid")?;

        api.revoke_key(reading.id).await?;
        for plane in [1, 2] {
            let answer = system.api_at(plane, &reading.key)?.list_links(None).await;
            refused("a revoked key", answer, "token_key_revoked")?;
        }
        api.revoke_key(reading.id).await.context("revoke it again")?;

        // At two control planes at once, more than there may be.
        let planes = [1, 2].map(|plane| system.api_at(plane, &system.deployment.endpoints().api_key));
        let [one, other] = planes;
        let (one, other) = (one?, other?);
        let many = (0..API_KEYS_MAX).map(|n| {
            let api = if n % 2 == 0 { one.clone() } else { other.clone() };
            async move { api.create_key(&KeyRequest { name: "many".into(), scopes: vec![Scope::Read] }).await }
        });
        let answers = futures::future::join_all(many).await;
        let made = answers.iter().filter(|answer| answer.is_ok()).count();
        for answer in answers {
            if answer.is_err() {
                refused("too many keys", answer, "keys_too_many")?;
            }
        }
        let valid = system.count("select count(*) from api_key where revoked_at is null").await?;
        ensure!(valid == i64::from(API_KEYS_MAX), "{made} were made, and there are {valid}");
        Ok(())
    })
}

/// Goal: what edges have to know of a workspace is told with its change, in versions that only go up. Method: a workspace is
/// made by an operator, changed by itself and by the operator, from two control planes at once, and closed; the test follows
/// the topic.
#[test]
fn workspaces_are_made_changed_and_closed_and_edges_are_told() -> Result<()> {
    run(DeploymentOptions { control_planes: 2, ..DeploymentOptions::named("workspaces") }, &[], async |system| {
        let shutdown = Shutdown::new(Duration::ZERO);
        let told = Told::follow(system, &shutdown)?;
        let operator = system.api_at(1, &system.deployment.endpoints().operator_key)?;
        ensure!(told.rules(system.workspace, 1).await?.limits == Plan::Scale.limits(), "devstack's workspace");
        let request =
            WorkspaceRequest { name: " Shop ".into(), plan: Plan::Free, origins: vec!["HTTPS://Shop.Example/".into()] };
        let made = operator.create_workspace(&request).await?;
        let (id, api) = (made.workspace.id, system.api_at(2, &made.api_key)?);
        ensure!(made.workspace == api.workspace().await?, "it is {:?}", made.workspace);
        ensure!(made.workspace.name == "Shop" && made.workspace.origins == ["https://shop.example"], "not normal");
        let first = told.rules(id, 1).await?;
        let expect = WorkspaceRules {
            state: WorkspaceState::Active,
            limits: Plan::Free.limits(),
            full_until: None,
            origins: vec!["https://shop.example".into()],
            notice_versions: Vec::new(),
            terms: Some(Terms { plan: Plan::Free, kept: None, terminates_at: None, closed_by_operator: false }),
        };
        ensure!(first == expect, "told was {first:?}");

        let versions = |versions: &[&str]| WorkspacePatch {
            notice_versions: Some(versions.iter().map(|version| (*version).to_owned()).collect()),
            ..WorkspacePatch::default()
        };
        let renamed = WorkspacePatch { name: Some("Store".into()), ..WorkspacePatch::default() };
        ensure!(api.change_workspace(&renamed).await?.name == "Store", "it has its old name");
        api.change_workspace(&WorkspacePatch::default()).await.context("change nothing")?;
        // As if the day's sessions were used up.
        sqlx::query("update workspace set full_until = now() + interval '1 hour' where id = $1")
            .bind(id.0)
            .execute(system.index.pool())
            .await?;
        ensure!(api.change_workspace(&versions(&["2026-03"])).await?.notice_versions == ["2026-03"], "not changed");
        // A name is for people, and nothing is nothing: neither counts a version up.
        let second = told.rules(id, 2).await?;
        ensure!(second.notice_versions == ["2026-03"] && second.full_until.is_some(), "version 2 is {second:?}");
        let growth = OperatorPatch { plan: Some(Plan::Growth), state: None };
        ensure!(operator.operate(id, &growth).await?.limits == Plan::Growth.limits(), "the plan is as it was");
        let third = told.rules(id, 3).await?;
        ensure!(third.limits == Plan::Growth.limits() && third.full_until.is_none(), "version 3 is {third:?}");
        bounds(&api).await?;

        // At two control planes at once: each version is what the row was under it, and the last is what it is.
        let apis = [system.api_at(1, &made.api_key)?, system.api_at(2, &made.api_key)?];
        let changes = (0..20).map(|n| {
            let (api, patch) = (apis[n % 2].clone(), versions(&[&n.to_string()]));
            async move { api.change_workspace(&patch).await }
        });
        futures::future::try_join_all(changes).await?;
        let last = told.rules(id, 23).await?;
        ensure!(last.notice_versions == api.workspace().await?.notice_versions, "the last version is not the last");
        let mut seen: Vec<u64> = Vec::new();
        for entry in told.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if entry.news.key() == format!("workspace/{id}/{id}") && !seen.contains(&entry.version) {
                seen.push(entry.version);
            }
        }
        seen.sort_unstable();
        ensure!(seen == (1..=23).collect::<Vec<_>>(), "versions were left out: {seen:?}");

        let state = |state| OperatorPatch { plan: None, state: Some(state) };
        operator.operate(id, &state(WorkspaceState::Suspended)).await?;
        ensure!(told.rules(id, 24).await?.state == WorkspaceState::Suspended, "it is not told to be suspended");
        refused("a link", api.create_link(&link_request(None, None)).await, "workspace_suspended")?;
        api.list_links(None).await.context("read while suspended")?;
        operator.operate(id, &state(WorkspaceState::Active)).await?;
        api.create_link(&link_request(None, None)).await.context("make a link again")?;
        operator.operate(id, &state(WorkspaceState::Terminated)).await?;
        ensure!(told.rules(id, 26).await?.state == WorkspaceState::Terminated, "it is not told to be closed");
        refused("a link", api.create_link(&link_request(None, None)).await, "workspace_terminated")?;
        refused("reading", api.list_links(None).await, "workspace_terminated")?;
        ensure!(api.workspace().await?.state == WorkspaceState::Terminated, "it is not closed");
        operator.operate(id, &state(WorkspaceState::Terminated)).await.context("close it again")?;
        operator.operate(id, &state(WorkspaceState::Active)).await.context("open it again")?;
        ensure!(told.rules(id, 27).await?.state == WorkspaceState::Active, "it is not told to be open");
        let listed = operator.list_workspaces(None).await?.items;
        ensure!(listed.len() == 2 && listed[0].id == id && listed[1].id == system.workspace, "listed are {listed:?}");
        shutdown.begin();
        Ok(())
    })
}

async fn bounds(api: &Api) -> Result<()> {
    let before = api.workspace().await?;
    let many = |count: usize| (0..count).map(|n| format!("https://{n}.example")).collect::<Vec<_>>();
    for (what, patch) in [
        ("no name", WorkspacePatch { name: Some(String::new()), ..WorkspacePatch::default() }),
        ("too many origins", WorkspacePatch { origins: Some(many(9)), ..WorkspacePatch::default() }),
        ("a page", WorkspacePatch { origins: Some(vec!["https://a.example/b".into()]), ..WorkspacePatch::default() }),
        ("any origin", WorkspacePatch { origins: Some(vec!["*".into()]), ..WorkspacePatch::default() }),
        ("no version", WorkspacePatch { notice_versions: Some(vec![String::new()]), ..WorkspacePatch::default() }),
        ("too many versions", WorkspacePatch { notice_versions: Some(many(17)), ..WorkspacePatch::default() }),
    ] {
        refused(what, api.change_workspace(&patch).await, "field_invalid")?;
    }
    ensure!(api.workspace().await? == before, "what was refused has changed something");
    Ok(())
}

/// Goal: days are counted and shown as the index has them. Method: rows of several days are there.
#[test]
fn usage_is_what_the_index_counts() -> Result<()> {
    run(DeploymentOptions::named("usage"), &[], async |system| {
        sqlx::query(
            "insert into workspace_day (workspace_id, day, sessions)
             select $1, (now() at time zone 'utc')::date - back, 10 + back from unnest(array[0, 29, 30]) as back",
        )
        .bind(system.workspace.0)
        .execute(system.index.pool())
        .await?;
        let usage = system.api.usage().await?;
        let sessions: Vec<u64> = usage.items.iter().map(|item| item.sessions).collect();
        ensure!(sessions == [39, 10], "usage is {usage:?}");
        Ok(())
    })
}
