//! References: those that an earlier release left in clear, and those whose key is lost.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use devstack::DeploymentOptions;
use schemas::{LinkId, SessionKey, WorkspaceId};
use service_kit::config::postgres::PostgresConfig;
use sqlx::{Connection as _, PgConnection};
use storage::index::Index;
use storage::references::References;
use uuid::Uuid;
use virtual_sdk::{Seen, SessionQuery, until};

use crate::harness::{SOON, System, run};
use crate::load;

/// A database of this test's own, as the release left it that had so many migrations; gives its address.
pub(crate) async fn database_of_release(system: &System<'_>, name: &str, migrations: usize) -> Result<String> {
    let url = system.deployment.endpoints().database_url;
    let (server, _) = url.rsplit_once('/').context("an address ends with its database")?;
    let mut connection = PgConnection::connect(&url).await?;
    sqlx::query(sqlx::AssertSqlSafe(format!("create database {name}"))).execute(&mut connection).await?;
    let url = format!("{server}/{name}");
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../schemas/migrations");
    let mut migrator = sqlx::migrate::Migrator::new(folder).await?;
    let before: Vec<_> = migrator.migrations.iter().take(migrations).cloned().collect();
    let newest = before.last().map(|migration| migration.version);
    ensure!(newest == i64::try_from(migrations).ok(), "migration {newest:?} is the last of {migrations}");
    migrator.migrations = before.into();
    migrator.run(&mut PgConnection::connect(&url).await?).await?;
    Ok(url)
}

/// As the release before wrote a link.
async fn insert_in_clear(index: &Index, workspace: WorkspaceId, reference: &str) -> Result<LinkId> {
    let id = LinkId(Uuid::now_v7());
    sqlx::query(
        "insert into link (workspace_id, id, reference, expires_at, max_sessions)
         values ($1, $2, $3, now() + interval '1 day', 5)",
    )
    .bind(workspace.0)
    .bind(id.0)
    .bind(reference)
    .execute(index.pool())
    .await?;
    Ok(id)
}

async fn in_clear(index: &Index) -> Result<i64> {
    Ok(sqlx::query_scalar("select count(*) from link where reference is not null").fetch_one(index.pool()).await?)
}

/// Goal: an index of the release before is brought up to date with all that is in it, and then holds no reference in clear; a
/// workspace whose key is lost keeps no other from it. Method: rows are inserted by the schema of the release before, more than
/// are sealed at once, then the schema is brought up to date, and several seal at the same time; afterwards each reference opens
/// as it was, and is found.
#[test]
fn references_of_the_release_before_are_sealed() -> Result<()> {
    const LINKS: usize = 1_200;
    run(DeploymentOptions::named("before"), &[], async |system| {
        let url = database_of_release(system, "release_before", 6).await?;
        let index = Index::new(&PostgresConfig { url, connections_max: 4 })?;
        let workspaces = [1, 2, 3].map(|n| WorkspaceId(Uuid::from_u128(n)));
        let mut links = Vec::new();
        for workspace in workspaces {
            sqlx::query("insert into workspace (id, name, plan) values ($1, 'before', 'free')")
                .bind(workspace.0)
                .execute(index.pool())
                .await?;
            sqlx::query("insert into api_key (id, workspace_id, hash) values ($1, $1, sha256($1::text::bytea))")
                .bind(workspace.0)
                .execute(index.pool())
                .await?;
        }
        for n in 0..LINKS {
            // The same reference in all workspaces, and twice in each.
            let (workspace, reference) = (workspaces[n % 3], format!("ä-{}@customer.example", n / 6));
            links.push((workspace, insert_in_clear(&index, workspace, &reference).await?, reference));
        }
        index.migrate().await.context("bring it up to date")?;
        ensure!(in_clear(&index).await? == LINKS as i64, "links were lost");
        let kept: i64 = sqlx::query_scalar(
            "select count(*) from api_key k join workspace w on w.id = k.workspace_id
             where k.scopes = '{links,read,delete,admin}' and w.state = 'active' and w.rules_version = 0",
        )
        .fetch_one(index.pool())
        .await?;
        ensure!(kept == 3, "{kept} keys and workspaces are what they were");

        // The third workspace's key was destroyed.
        system.keys.obtain(&[SessionKey::references(workspaces[2])]).await?;
        sqlx::query(
            "update session_key set version = null, wrapped = null, shredded_at = now() where workspace_id = $1",
        )
        .bind(workspaces[2].0)
        .execute(system.keystore.pool())
        .await?;
        let references = References::new(index.clone(), system.keys.clone());
        let sealing = (0..3).map(|_| {
            let references = Arc::new(references.clone());
            async move { references.seal_clear().await }
        });
        let sealed = futures::future::try_join_all(sealing).await?;
        let (third, others) = (LINKS as u64 / 3, LINKS as u64 * 2 / 3);
        ensure!(sealed.iter().map(|sealed| sealed.links).sum::<u64>() == others, "sealed were {sealed:?}");
        ensure!(sealed.iter().all(|sealed| sealed.left == third), "left were {sealed:?}");
        ensure!(references.seal_clear().await?.links == 0, "there was more to seal");
        ensure!(in_clear(&index).await? == third as i64, "clear text is left of others than the third");

        for (workspace, link, reference) in links.iter().filter(|(workspace, ..)| *workspace != workspaces[2]) {
            let filter = references.filter(*workspace, reference.clone()).await?;
            let found = index.links(*workspace, Some(&filter), None, 10).await?;
            ensure!(found.len() == 2 && found.iter().any(|row| row.id == *link), "{link} is not found");
            let stored = found.iter().map(|row| (row.id, row.reference.clone())).collect();
            let opened = references.open(*workspace, stored).await?;
            ensure!(opened.iter().all(|opened| opened == reference), "{link} opens as another");
        }
        let destroyed = references.filter(workspaces[2], "r".into()).await;
        ensure!(destroyed.is_err_and(|error| error.is_of_key()), "a destroyed key is no error");
        let hashes: i64 = sqlx::query_scalar("select count(distinct reference_hash) from link where id in ($1, $2)")
            .bind(links[0].1.0)
            .bind(links[1].1.0)
            .fetch_one(index.pool())
            .await?;
        ensure!(hashes == 2, "the same reference has the same hash in two workspaces");
        Ok(())
    })
}

/// Goal: while releases are mixed nothing is lost or hidden, and a lost key is an error and never clear text; no session's
/// deletion takes it away. Method: a link of an earlier release appears while the control plane runs, and is sealed when it
/// starts again; then the key of the references is taken away, and put back.
#[test]
fn references_are_sealed_at_start_and_their_key_is_missed() -> Result<()> {
    let options = DeploymentOptions::named("sealing").with("", "CLAIRVIO_KEY_CACHE_MS", 300);
    run(options, &["open references", "seal references"], async |system| {
        let api = &system.api;
        ensure!(api.links_of("nobody").await?.is_empty(), "a reference is found where there is none");
        let clear = insert_in_clear(&system.index, system.workspace, "earlier").await?;
        let is_shown = async || {
            let found = api.links_of("earlier").await?;
            ensure!(found.len() == 1 && found[0].id == clear && found[0].reference == "earlier", "found: {found:?}");
            ensure!(api.all_links().await?.iter().any(|link| link.reference == "earlier"), "it is not listed");
            Ok(())
        };
        is_shown().await.context("before it is sealed")?;
        let link = system.link("later").await?;
        let session = load::begin(system, &system.sdk(1)?, &link).await?;
        let plane = system.service("control-plane", 1);
        system.deployment.supervisor.restart(&plane).await?;
        system.deployment.supervisor.wait_ready(&plane, SOON).await?;
        ensure!(in_clear(&system.index).await? == 0, "it serves, and a reference lies in clear");
        is_shown().await.context("once it is sealed")?;
        until("the session is listed by its reference", SOON, || async {
            let query = SessionQuery { reference: Some("later".into()), ..SessionQuery::default() };
            match api.all_sessions(&query).await {
                Ok(found) if found.len() == 1 && found[0].reference == "later" => Seen::Done(()),
                Ok(found) => Seen::not_yet(format_args!("{} are", found.len())),
                Err(error) => Seen::not_yet(error),
            }
        })
        .await?;

        // Under the nil id no session's key lies: deleting it must not destroy this one.
        let nil = SessionKey::references(system.workspace);
        let answer = api.delete_session(nil.session).await;
        ensure!(answer.is_err_and(|error| error.code() == "not_found"), "the nil session can be deleted");
        system.keystore.shred(&[nil]).await?;
        tokio::time::sleep(Duration::from_millis(600)).await;
        is_shown().await.context("after a deletion of the nil session")?;

        let store = system.keystore.pool();
        sqlx::query("create table kept as select * from session_key where session_id = $1")
            .bind(nil.session.0)
            .execute(store)
            .await?;
        sqlx::query("delete from session_key where session_id = $1").bind(nil.session.0).execute(store).await?;
        until("references are missed", SOON, || async {
            match api.list_links(None).await {
                Err(error) if error.code() == "key_missing" => Seen::Done(()),
                Err(error) => Seen::not_yet(error),
                Ok(_) => Seen::not_yet("they are shown"),
            }
        })
        .await?;
        let missing = [
            api.links_of("later").await.err(),
            api.session(session.id).await.err(),
            api.all_sessions(&SessionQuery::default()).await.err(),
            // Another key must not be made in the place of the lost one.
            system.link("latest").await.err().and_then(|error| error.downcast().ok()),
        ];
        for error in missing {
            let code = error.as_ref().map(virtual_sdk::CallError::code);
            ensure!(code == Some("key_missing"), "answered with {code:?}");
        }
        let made: i64 = sqlx::query_scalar("select count(*) from session_key where session_id = $1")
            .bind(nil.session.0)
            .fetch_one(store)
            .await?;
        ensure!(made == 0, "a new key was made in the place of the lost one");
        sqlx::query("insert into session_key select * from kept").execute(store).await?;
        sqlx::query("drop table kept").execute(store).await?;
        is_shown().await.context("with its key again")?;
        Ok(())
    })
}
