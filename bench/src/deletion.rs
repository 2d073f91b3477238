//! How fast what must go goes, and what that costs others: sessions past their window, a million of them; the index with many more
//! that stay; ingest meanwhile; sessions that are deleted by hand; and a receipt that verifies.
//!
//! Flow: on a deployment of its own sessions are recorded and deleted by hand, one after the other. Then the index and the bucket are filled:
//! rows that stay, sessions that will expire, of which the oldest have objects and keys, and some in the same workspace that are not
//! past their window ([`seed`]). What passes ask of the index is timed, load goes through the edge, and the same work is done bare, for
//! the bounds ([`bare`]). Then the workspace's plan becomes a shorter one, and from that moment on it is watched until all of it is gone
//! and receipted, with load once more ([`drain`]). At the end everything that had to go is looked for, and everything that had to stay
//! ([`faults`]).

mod bare;
mod by_hand;
mod drain;
mod faults;
mod ingest;
mod report;
mod seed;

use std::time::Duration;

use anyhow::Context;
use clap::Args;
use devstack::{Deployment, DeploymentOptions, Stack};
use serde::Serialize;
use service_kit::config::postgres::PostgresConfig;
use service_kit::config::s3::S3Config;
use sqlx::PgPool;
use storage::index::Index;
use storage::index::deletions::Round;
use storage::objects::Objects;
use tokio::time::Instant;
use virtual_sdk::Api;

pub use report::Report;

use crate::stored;
use ingest::Ingest;
use seed::Seeded;

/// Short, so that what is measured is work: production's are 10 s, 15 minutes and a minute.
const PASS_INTERVAL_MS: u64 = 500;
const CONDEMNED_GRACE_MS: u64 = 2_000;
const KEY_CACHE_MS: u64 = 5_000;
/// Longer than any run: the round of the reconciler that its start begins is the last.
const RECONCILE_INTERVAL_MS: u64 = 86_400_000;
/// Sessions of one pass, as the worker takes them.
const BATCH: i64 = 1_000;
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How often each question of a pass is asked.
const ASKED: usize = 20;
/// Batches that are expired to see what that takes.
const EXPIRED: usize = 5;

/// What a run is asked to do.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Options {
    /// Sessions that are past their window all at once.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1_000..=100_000_000))]
    pub sessions: u32,
    /// Those of them that have an object in the bucket and a key in the key store.
    #[arg(long, default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    pub objects: u32,
    /// Bytes of each of these objects.
    #[arg(long, default_value_t = 4_096, value_parser = clap::value_parser!(u32).range(1..=1_048_576))]
    pub object_bytes: u32,
    /// Sessions of others in the index, which stay.
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u32).range(0..=1_000_000_000))]
    pub rows: u32,
    /// Workspaces that these are of.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub workspaces: u32,
    /// Sessions that are deleted by hand, one after the other.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub by_hand: u32,
    /// Retention workers.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub workers: u8,
    /// What CLAIRVIO_DELETED_OBJECTS_PER_S_MAX is for each of them; 0 is no bound.
    #[arg(long, default_value_t = 0)]
    pub objects_per_second: u64,
    /// How long load goes through the edge, once while nothing is deleted and once from when the deletion begins, in seconds.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub load_seconds: u64,
    /// Its rate.
    #[arg(long, default_value_t = 300.0, value_parser = crate::options::positive)]
    pub events_per_second: f64,
}

/// Deletes on a deployment of its own. An error means that it could not be carried out; what it found wrong with the system is in the
/// report's verdict.
pub async fn run(stack: &Stack, options: &Options) -> anyhow::Result<Report> {
    let deployment = DeploymentOptions {
        workers: usize::from(options.workers),
        control_planes: 2,
        partitions: 2,
        held: Some("retention-worker".to_owned()),
        ..DeploymentOptions::named("deletion")
    }
    .with("", "CLAIRVIO_KEY_CACHE_MS", KEY_CACHE_MS)
    .with("", "CLAIRVIO_SESSION_SILENCE_MS", 3_000)
    .with("retention-worker", "CLAIRVIO_PASS_INTERVAL_MS", PASS_INTERVAL_MS)
    .with("retention-worker", "CLAIRVIO_CONDEMNED_GRACE_MS", CONDEMNED_GRACE_MS)
    .with("retention-worker", "CLAIRVIO_DELETED_OBJECTS_PER_S_MAX", options.objects_per_second)
    .with("retention-worker", "CLAIRVIO_RECONCILE_INTERVAL_MS", RECONCILE_INTERVAL_MS);
    let deployment = Deployment::start(stack, &deployment).await?;
    let bench = Bench::new(&deployment, options)?;
    let outcome = bench.run().await;
    deployment.stop().await?;
    outcome
}

struct Bench<'a> {
    deployment: &'a Deployment,
    options: &'a Options,
    api: Api,
    index: Index,
    pool: PgPool,
    objects: Objects,
}

/// How long questions of a pass take, in milliseconds each.
#[derive(Debug, Clone, Serialize)]
struct Passes {
    /// When this was: with how many live sessions.
    live: u64,
    due_ms: Vec<f64>,
    leaving_ms: Vec<f64>,
    removable_ms: Vec<f64>,
    /// Of a batch that is expired for it; none where there was nothing to expire.
    expire_ms: Vec<f64>,
}

/// Bytes that a table takes, and rows of it that are dead.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Size {
    table: &'static str,
    table_bytes: u64,
    index_bytes: u64,
    dead_rows: u64,
}

impl<'a> Bench<'a> {
    fn new(deployment: &'a Deployment, options: &'a Options) -> anyhow::Result<Self> {
        let endpoints = deployment.endpoints();
        let s3 = S3Config {
            endpoint: Some(endpoints.s3.endpoint.clone()),
            region: endpoints.s3.region.clone(),
            bucket: endpoints.s3.bucket.clone(),
            prefix: deployment.prefix.clone(),
            access_key: endpoints.s3.access_key.clone(),
            secret_key: endpoints.s3.secret_key.clone(),
            request_timeout: Duration::from_secs(60),
            multipart_bytes: u64::MAX,
        };
        Ok(Self {
            deployment,
            options,
            api: Api::new(&endpoints.api_url, &endpoints.api_key)?,
            index: Index::new(&PostgresConfig { url: endpoints.database_url.clone(), connections_max: 4 })?,
            pool: PgPool::connect_lazy(&endpoints.database_url).context("connect to the index")?,
            objects: Objects::new(&s3),
        })
    }

    async fn run(&self) -> anyhow::Result<Report> {
        let workers = self.deployment.release().await?;
        self.wait_ready(&workers).await?;
        let by_hand = by_hand::run(self, self.options.by_hand).await.context("delete by hand")?;

        // Who asks the index while it has no indexes would take longer than the filling.
        let away = self.take_down(&["retention-worker", "compactor"]).await?;
        let seeded = Seeded::fill(self).await.context("fill index and bucket")?;
        let filled = self.sizes().await?;
        seeded.make_some_due(self).await?;
        let before = self.passes(EXPIRED).await.context("time what passes ask")?;
        self.bring_back(&away).await?;
        drain::wait_gone(self, seeded.measured).await?;
        let mut ingest = Ingest::new(self)?;
        let calm = ingest.run("nothing is deleted").await?;
        let bare = bare::run(self).await.context("do the same bare")?;

        let requests_before = stored::requests(self.deployment, "retention-worker").await?;
        let (drained, busy) = tokio::try_join!(drain::run(self, &seeded), ingest.run("it is deleted"))?;
        let requests = stored::since(&requests_before, &stored::requests(self.deployment, "retention-worker").await?);
        let after = self.passes(0).await.context("time what passes ask")?;
        let emptied = self.sizes().await?;
        let begun = Instant::now();
        self.vacuum().await?;
        let vacuum_s = begun.elapsed().as_secs_f64();
        let vacuumed = self.sizes().await?;
        let faults = faults::find(self, &seeded, &ingest).await.context("look for what is left and what is missing")?;
        Ok(Report::new(report::Parts {
            parameters: self.options.clone(),
            by_hand,
            calm,
            busy,
            bare,
            drained,
            requests,
            passes: [before, after],
            sizes: [filled, emptied, vacuumed],
            vacuum_s,
            faults,
        }))
    }

    async fn wait_ready(&self, services: &[String]) -> anyhow::Result<()> {
        let ready = services.iter().map(|name| self.deployment.supervisor.wait_ready(name, READY_WITHIN));
        futures::future::try_join_all(ready).await.map(drop)
    }

    /// Ends services of these kinds for a while; gives their names.
    async fn take_down(&self, kinds: &[&str]) -> anyhow::Result<Vec<String>> {
        let supervisor = &self.deployment.supervisor;
        let running = supervisor.running().into_iter().map(|service| service.name);
        let names: Vec<String> = running.filter(|name| kinds.iter().any(|kind| name.starts_with(kind))).collect();
        for name in &names {
            supervisor.set_restart(name, false)?;
            supervisor.terminate(name).await?;
        }
        Ok(names)
    }

    async fn bring_back(&self, services: &[String]) -> anyhow::Result<()> {
        for name in services {
            self.deployment.supervisor.set_restart(name, true)?;
            self.deployment.supervisor.restart(name).await?;
        }
        self.wait_ready(services).await
    }

    /// What a pass asks of the index, as the worker asks it.
    async fn passes(&self, expired: usize) -> anyhow::Result<Passes> {
        let live: i64 = self.number("select count(*) from session where state = 0").await?;
        let mut passes = Passes {
            live: live.unsigned_abs(),
            due_ms: Vec::new(),
            leaving_ms: Vec::new(),
            removable_ms: Vec::new(),
            expire_ms: Vec::new(),
        };
        let grace = Duration::from_millis(CONDEMNED_GRACE_MS);
        for _ in 0..ASKED {
            let begun = Instant::now();
            self.index.due(BATCH + 1).await?;
            passes.due_ms.push(millis(begun));
            let begun = Instant::now();
            self.index.removable(grace, BATCH).await?;
            passes.removable_ms.push(millis(begun));
        }
        for _ in 0..expired {
            let now_s = self.index.due(BATCH + 1).await?.now_s;
            let begun = Instant::now();
            self.index.expire(now_s, BATCH, || true).await?;
            passes.expire_ms.push(millis(begun));
        }
        // With all that was expired to be led on.
        for _ in 0..ASKED {
            let begun = Instant::now();
            self.index.leaving(Round::All, None, BATCH).await?;
            passes.leaving_ms.push(millis(begun));
        }
        Ok(passes)
    }

    async fn sizes(&self) -> anyhow::Result<Vec<Size>> {
        let mut sizes = Vec::new();
        for table in ["session", "deletion_session", "deletion", "object", "outbox", "receipt", "keystore.session_key"]
        {
            let (table_bytes, index_bytes, dead): (i64, i64, i64) = sqlx::query_as(
                "select pg_table_size($1::regclass), pg_indexes_size($1::regclass),
                     pg_stat_get_dead_tuples($1::regclass)",
            )
            .bind(table)
            .fetch_one(&self.pool)
            .await
            .with_context(|| format!("measure table {table}"))?;
            let [table_bytes, index_bytes, dead_rows] = [table_bytes, index_bytes, dead].map(i64::unsigned_abs);
            sizes.push(Size { table, table_bytes, index_bytes, dead_rows });
        }
        Ok(sizes)
    }

    async fn vacuum(&self) -> anyhow::Result<()> {
        sqlx::query("vacuum (analyze)").execute(&self.pool).await.map(drop).context("vacuum")
    }

    async fn number(&self, query: &'static str) -> anyhow::Result<i64> {
        sqlx::query_scalar(query).fetch_one(&self.pool).await.with_context(|| format!("ask: {query}"))
    }
}

fn millis(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
