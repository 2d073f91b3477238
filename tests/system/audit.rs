//! Who read which session when: noted before the answer, shown to the workspace, and never changed.

use anyhow::{Context, Result, ensure};
use devstack::DeploymentOptions;
use schemas::SessionId;
use schemas::http::{KeyRequest, ReadItem, ReadWhat, Scope};
use schemas::plan::Plan;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;
use virtual_sdk::{Api, CallError, EventsFormat, ReadsQuery};

use crate::harness::{LATER, SOON, System, run};
use crate::load;

async fn reads(api: &Api, query: ReadsQuery) -> Result<Vec<ReadItem>> {
    Ok(api.all_reads(&query).await?)
}

fn of_session(session: SessionId) -> ReadsQuery {
    ReadsQuery { session: Some(session), ..ReadsQuery::default() }
}

fn code<T>(answer: Result<T, CallError>) -> String {
    answer.err().map(|error| error.code().to_owned()).unwrap_or_default()
}

/// Reads events to their end, and gives how many.
async fn read_events(api: &Api, session: SessionId, from: Option<i64>, to: Option<i64>) -> Result<usize> {
    let mut events = api.events_between(session, EventsFormat::Lines, from, to).await?;
    let mut count = 0;
    while events.next_event().await?.is_some() {
        count += 1;
    }
    Ok(count)
}

/// Goal: each reading is noted with who, what and when, is found by all filters, page by page, by its own workspace alone, and stays
/// when the session goes; what is not answered is not noted. Method: two keys read two sessions in all ways, of the audit one
/// page at a time is asked for; then unknown and deleted sessions, revoked keys and other workspaces.
#[test]
fn readings_are_noted_and_shown_to_their_workspace() -> Result<()> {
    run(DeploymentOptions { control_planes: 2, ..DeploymentOptions::named("audit") }, &[], async |system| {
        let link = system.link("person-4711@customer.example").await?;
        let mut sessions = Vec::new();
        let (sdks, recording) = ([system.sdk(1)?], load::recording("login-short")?);
        for variant in 0..2 {
            sessions.push(load::send_recording(system, &sdks, &link, &recording, variant).await?.session.id);
        }
        load::compare_all(system, SOON).await?;
        let [one, other] = [sessions[0], sessions[1]];
        let make_key = async |name: &str, scopes: &[Scope]| {
            system.api.create_key(&KeyRequest { name: name.into(), scopes: scopes.to_vec() }).await
        };
        let (ann, bob) = (make_key("ann", &[Scope::Read]).await?, make_key("bob", &[Scope::Read]).await?);
        let (as_ann, as_bob) = (system.api_at(1, &ann.key)?, system.api_at(2, &bob.key)?);
        let begun: OffsetDateTime =
            sqlx::query_scalar("select clock_timestamp()").fetch_one(system.index.pool()).await?;
        as_ann.session(one).await?;
        ensure!(read_events(&as_ann, one, None, None).await? > 0, "nothing was read");
        read_events(&as_bob, one, Some(5), None).await?;
        read_events(&as_bob, other, Some(-7), Some(i64::MAX)).await?;
        let ended: OffsetDateTime =
            sqlx::query_scalar("select clock_timestamp()").fetch_one(system.index.pool()).await?;

        let by_ann = reads(&system.api, ReadsQuery { by: Some(ann.id), ..ReadsQuery::default() }).await?;
        let by_bob = reads(&system.api, ReadsQuery { by: Some(bob.id), ..ReadsQuery::default() }).await?;
        let told = |items: &[ReadItem]| -> Vec<_> {
            items.iter().map(|item| (item.session_id, item.what, item.from, item.to)).collect()
        };
        let expect = [(one, ReadWhat::Events, None, None), (one, ReadWhat::Metadata, None, None)];
        ensure!(told(&by_ann) == expect, "ann read {by_ann:?}");
        let expect = [(other, ReadWhat::Events, Some(-7), Some(i64::MAX)), (one, ReadWhat::Events, Some(5), None)];
        ensure!(told(&by_bob) == expect, "bob read {by_bob:?}");
        let all: Vec<ReadItem> = by_bob.into_iter().chain(by_ann).collect();
        for (item, key) in all.iter().zip([&bob, &bob, &ann, &ann]) {
            ensure!(item.by.key_id == key.id, "{item:?} is by another key");
            ensure!(item.by.key_name.as_deref() == Some(key.name.as_str()), "{item:?} has another name");
            let ending = item.by.key_ending.as_deref().context("it has an ending")?;
            ensure!(ending.len() == 4 && key.key.ends_with(ending), "{item:?} has another ending");
            ensure!((begun..=ended).contains(&item.read_at), "{item:?} was not read between {begun} and {ended}");
        }
        filters_find(system, &all, [one, other], [ann.id, bob.id]).await?;

        // What was not answered was not read.
        let count = reads(&system.api, ReadsQuery::default()).await?.len();
        let unknown = SessionId(Uuid::now_v7());
        ensure!(code(as_ann.session(unknown).await) == "not_found", "an unknown session is told of");
        ensure!(code(as_ann.events(unknown, EventsFormat::Lines).await) == "not_found", "an unknown session is read");
        let deletion_only = make_key("deletes", &[Scope::Delete, Scope::Admin]).await?;
        let as_deleter = system.api_at(1, &deletion_only.key)?;
        ensure!(code(as_deleter.session(one).await) == "scope_missing", "a key without the scope reads");
        system.api.revoke_key(ann.id).await?;
        ensure!(code(as_ann.session(one).await) == "token_key_revoked", "a revoked key reads");
        ensure!(code(as_ann.events(one, EventsFormat::Lines).await) == "token_key_revoked", "a revoked key reads");
        system.api.delete_session(other).await?;
        system.ledger.forget(other);
        ensure!(code(as_bob.session(other).await) == "session_deleted", "a deleted session is told of");
        ensure!(code(as_bob.events(other, EventsFormat::Lines).await) == "session_deleted", "a deleted one is read");
        // Nor does the audit note a session when the deletion comes in between.
        let reading = storage::index::reads::Reading { by: bob.id, what: ReadWhat::Export, from: None, to: None };
        ensure!(!system.index.note_read(&system.key(other), &reading).await?, "a deleted session is noted");
        ensure!(system.index.note_read(&system.key(one), &reading).await?, "a live session is not noted");

        let now = reads(&system.api, ReadsQuery::default()).await?;
        ensure!(
            now.len() == count + 1 && now[0].what == ReadWhat::Export,
            "it has {} entries, and had {count}",
            now.len()
        );
        let kept = reads(&system.api, of_session(other)).await?;
        ensure!(kept.iter().any(|item| item.id == all[0].id), "the entry went with its session: {kept:?}");
        ensure!(code(as_bob.list_reads(&ReadsQuery::default()).await) == "scope_missing", "a reader sees the audit");

        let (_, theirs) = system.another_workspace(Plan::Scale).await?;
        let stranger = system.api_at(2, &theirs)?;
        for query in [ReadsQuery::default(), of_session(one), ReadsQuery { by: Some(bob.id), ..ReadsQuery::default() }]
        {
            ensure!(reads(&stranger, query).await?.is_empty(), "another workspace sees it");
        }
        let rows: String = sqlx::query_scalar("select string_agg(r::text, ' ') from session_read r")
            .fetch_one(system.index.pool())
            .await?;
        ensure!(rows.contains(&one.to_string()) && !rows.contains("4711"), "the audit names a person");
        load::wait_compacted(system, LATER).await.map(drop)
    })
}

/// Every filter, and all of them, in pages of one.
async fn filters_find(
    system: &System<'_>,
    all: &[ReadItem],
    sessions: [SessionId; 2],
    keys: [schemas::ApiKeyId; 2],
) -> Result<()> {
    let moments: Vec<OffsetDateTime> = all.iter().map(|item| item.read_at).collect();
    let middle = moments[2];
    for session in [None, Some(sessions[0]), Some(sessions[1])] {
        for by in [Some(keys[0]), Some(keys[1])] {
            for (from, to) in [(None, None), (Some(middle), None), (None, Some(middle)), (Some(middle), Some(middle))] {
                let expect: Vec<&ReadItem> = all
                    .iter()
                    .filter(|item| {
                        session.is_none_or(|session| item.session_id == session)
                            && by.is_none_or(|by| item.by.key_id == by)
                            && from.is_none_or(|from| item.read_at >= from)
                            && to.is_none_or(|to| item.read_at < to)
                    })
                    .collect();
                let text = |at: Option<OffsetDateTime>| at.map(|at| at.format(&Rfc3339)).transpose();
                let query = ReadsQuery { session, by, from: text(from)?, to: text(to)?, limit: Some(1), cursor: None };
                let found = reads(&system.api, query.clone()).await?;
                ensure!(found.iter().eq(expect.iter().copied()), "{query:?} finds {found:?}");
            }
        }
    }
    for (query, field) in
        [("session=x", "session"), ("by=x", "by"), ("from=x", "from"), ("to=x", "to"), ("limit=0", "limit")]
    {
        let endpoints = system.deployment.endpoints();
        let answer = reqwest::Client::new()
            .get(format!("{}/v1/reads?{query}", endpoints.api_url))
            .bearer_auth(&endpoints.api_key)
            .send()
            .await?;
        let (status, body) = (answer.status().as_u16(), answer.text().await?);
        ensure!(status == 422 && body.contains(&format!("\"{field}\"")), "{query} was answered with {status}: {body}");
    }
    Ok(())
}

/// Goal: what cannot be noted is not read. Method: the table is taken away, and put back.
#[test]
fn a_reading_that_cannot_be_noted_is_refused() -> Result<()> {
    run(DeploymentOptions::named("unnoted"), &["ask the index"], async |system| {
        let link = system.link("unnoted").await?;
        let sent = load::send_recording(system, &[system.sdk(1)?], &link, &load::recording("login-short")?, 0).await?;
        let session = sent.session.id;
        load::compare_all(system, SOON).await?;
        let pool = system.index.pool();
        sqlx::query("alter table session_read rename to taken_away").execute(pool).await?;
        ensure!(code(system.api.session(session).await) == "unavailable", "a session is told of");
        ensure!(code(system.api.events(session, EventsFormat::Lines).await) == "unavailable", "a session is read");
        ensure!(code(system.api.session(SessionId(Uuid::now_v7())).await) == "not_found", "the unknown is another");
        sqlx::query("alter table taken_away rename to session_read").execute(pool).await?;
        let before = reads(&system.api, of_session(session)).await?.len();
        system.api.session(session).await?;
        ensure!(read_events(&system.api, session, None, None).await? > 0, "nothing was read");
        let after = reads(&system.api, of_session(session)).await?.len();
        ensure!(after == before + 2, "{} readings were noted instead of 2", after - before);
        Ok(())
    })
}

/// Goal: the database itself keeps the audit: nobody changes an entry, or removes it before its time. Method: every statement that
/// could, also as a replica, against entries of all ages, and of a workspace that is gone.
#[test]
fn the_database_keeps_the_audit() -> Result<()> {
    // No worker: it removes old entries in its own time.
    run(DeploymentOptions { workers: 0, ..DeploymentOptions::named("kept") }, &[], async |system| {
        let pool = system.index.pool();
        let insert = "insert into session_read (workspace_id, id, session_id, api_key_id, what, read_at)
            select $1, gen_random_uuid(), gen_random_uuid(), gen_random_uuid(), 'events', clock_timestamp() - age
            from unnest(array['0 days', '399 days', '401 days', '500 days']::interval[]) as a (age)";
        let gone = Uuid::now_v7();
        for workspace in [system.workspace.0, gone] {
            sqlx::query(insert).bind(workspace).execute(pool).await?;
        }
        for statement in [
            "update session_read set what = 'metadata'",
            "update session_read set read_at = read_at - interval '500 days' where read_at > now() - interval '1 day'",
            "delete from session_read",
            "delete from session_read where read_at > now() - interval '400 days'",
            "truncate session_read",
            "set local session_replication_role = replica; delete from session_read",
            "set local session_replication_role = replica; update session_read set what = 'metadata'",
            "set local clairvio.now = '2100-01-01'; delete from session_read",
            "create temp table workspace (id uuid) on commit drop; delete from session_read",
        ] {
            let mut tx = pool.begin().await?;
            let answer = sqlx::raw_sql(statement).execute(&mut *tx).await;
            let error = answer.err().and_then(|error| error.into_database_error().map(|error| error.to_string()));
            let error = error.unwrap_or_default();
            ensure!(error.contains("session_read is only appended to"), "{statement}: {error:?}");
            tx.rollback().await?;
        }
        ensure!(system.count("select count(*) from session_read").await? == 8, "entries went");
        sqlx::query("delete from session_read where read_at < now() - interval '400 days'").execute(pool).await?;
        ensure!(system.count("select count(*) from session_read").await? == 4, "old entries stay");
        sqlx::query("delete from session_read where workspace_id = $1").bind(gone).execute(pool).await?;
        ensure!(system.count("select count(*) from session_read").await? == 2, "those of no workspace stay");
        Ok(())
    })
}
