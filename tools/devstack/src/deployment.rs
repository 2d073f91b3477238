//! The services on a stack: a database, a topic, a prefix in the bucket and keys of their own, so that many deployments share
//! one stack without seeing each other.
//!
//! The same programs and the same code paths as anywhere, with short ages, so that a person sees everything happen.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, ensure};
use schemas::WorkspaceId;
use schemas::plan::Plan;
use serde::{Deserialize, Serialize};
use service_kit::config::kafka::KafkaConfig;
use service_kit::config::keys::KeyStoreConfig;
use service_kit::config::postgres::PostgresConfig;
use service_kit::kafka::topics::{self, CompactedTopicSpec, TopicSpec};
use service_kit::{kafka, keys};
use sqlx::{Connection, PgConnection};
use storage::index::Index;
use storage::index::keys::operator_key_hash;
use storage::keystore::KeyStore;
use uuid::Uuid;

use crate::backlog::Backlog;
use crate::endpoints::write_private;
use crate::places::is_free;
use crate::{Endpoints, Part, ServiceSpec, Stack, StackOptions, Supervisor, find_binary, free_port};

/// For a service to say that it is ready.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// What runs on a stack, and as what.
#[derive(Clone, Debug)]
pub struct DeploymentOptions {
    /// What sets its database, topic and prefix apart; None for the one that `make up` starts.
    pub name: Option<String>,
    /// How many of each service.
    pub edges: usize,
    /// Batchers.
    pub batchers: usize,
    /// Compactors.
    pub compactors: usize,
    /// Retention workers.
    pub workers: usize,
    /// Control planes.
    pub control_planes: usize,
    /// Partitions of the topic.
    pub partitions: i32,
    /// Settings that differ from devstack's, for services whose name begins with the first text.
    pub settings: Vec<(String, String, String)>,
    /// Whether services that die are started again.
    pub restart: bool,
    /// The plan of its workspace.
    pub plan: Plan,
    /// Whether the first of each service listens on its default port, where that is free.
    pub default_ports: bool,
    /// Services whose name begins with this are prepared only, until [`Deployment::release`].
    pub held: Option<String>,
}

impl Default for DeploymentOptions {
    fn default() -> Self {
        DeploymentOptions {
            name: None,
            edges: 1,
            batchers: 1,
            compactors: 1,
            workers: 1,
            control_planes: 1,
            partitions: 4,
            settings: Vec::new(),
            restart: true,
            plan: Plan::Scale,
            default_ports: false,
            held: None,
        }
    }
}

impl DeploymentOptions {
    /// The same, under a name of its own.
    pub fn named(name: &str) -> Self {
        DeploymentOptions { name: Some(name.to_owned()), ..DeploymentOptions::default() }
    }

    /// The same, with a setting for services whose name begins with `services`.
    pub fn with(mut self, services: &str, variable: &str, value: impl ToString) -> Self {
        self.settings.push((services.to_owned(), variable.to_owned(), value.to_string()));
        self
    }
}

/// Services that run on a stack.
pub struct Deployment {
    /// Starts, kills and restarts them by name: `ingest-edge-1`, `batcher-1`, …
    pub supervisor: Supervisor,
    endpoints: Arc<Mutex<Endpoints>>,
    /// The topic of events.
    pub topic: String,
    /// The topic of control entries.
    pub topic_control: String,
    /// The prefix of all its keys in the bucket.
    pub prefix: String,
    /// Where its key files are.
    pub keys: PathBuf,
    /// Public interfaces of all edges.
    pub edge_urls: Vec<String>,
    /// Public interfaces of all control planes.
    pub api_urls: Vec<String>,
    held: Mutex<Vec<ServiceSpec>>,
}

impl std::fmt::Debug for Deployment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deployment").field("topic", &self.topic).field("supervisor", &self.supervisor).finish()
    }
}

/// What stays of a deployment from start to start.
#[derive(Serialize, Deserialize)]
struct Identity {
    workspace_id: WorkspaceId,
    api_key: String,
    operator_key: String,
}

impl Deployment {
    /// Makes what the services need and starts them; all are ready when this returns.
    pub async fn start(stack: &Stack, options: &DeploymentOptions) -> anyhow::Result<Deployment> {
        let suffix = options.name.as_ref().map_or_else(String::new, |name| format!("-{name}"));
        let folder = match &options.name {
            Some(name) => stack.home().join("deployments").join(name),
            None => stack.home().join("deployment"),
        };
        std::fs::create_dir_all(&folder).with_context(|| format!("make folder: {}", folder.display()))?;
        let topic = format!("session-events{suffix}");
        let topic_control = format!("control{suffix}");
        let prefix = options.name.as_ref().map_or_else(String::new, |name| format!("{name}/"));
        let database_url = make_database(stack, &format!("clairvio{}", suffix.replace('-', "_"))).await?;
        make_topics(stack, &topic, options.partitions, &topic_control).await?;
        keys::make(&folder)?;
        let identity = make_identity(&folder, &database_url, options.plan).await?;
        let parts = stack.parts();
        let endpoints = Endpoints {
            edge_url: String::new(),
            api_url: String::new(),
            kafka_brokers: parts.kafka_brokers.clone(),
            database_url,
            s3: parts.s3.clone(),
            workspace_id: identity.workspace_id.to_string(),
            api_key: identity.api_key,
            operator_key: identity.operator_key,
            services: Vec::new(),
        };
        let specs = specs(options, &endpoints, &folder, (&topic, &topic_control), &prefix, &suffix)?;
        let endpoints = Endpoints {
            edge_url: public_url(&specs, "ingest-edge")?,
            api_url: public_url(&specs, "control-plane")?,
            ..endpoints
        };
        let urls = |service: &str| {
            let found = specs.iter().filter(|(spec, _)| spec.name.starts_with(service));
            found.filter_map(|(_, url)| url.clone()).collect()
        };
        let (edge_urls, api_urls) = (urls("ingest-edge"), urls("control-plane"));
        let endpoints = Arc::new(Mutex::new(endpoints));
        let (told, home) = (Arc::clone(&endpoints), options.name.is_none().then(|| stack.home().to_path_buf()));
        let ready = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let is_ready = Arc::clone(&ready);
        let supervisor = stack.supervisor(move |services| {
            let mut endpoints = told.lock().unwrap_or_else(PoisonError::into_inner);
            endpoints.services = services.to_vec();
            // Whoever waits for the file may use the system at once, so it appears only when all is ready.
            if let Some(home) = home.as_ref().filter(|_| is_ready.load(std::sync::atomic::Ordering::Acquire))
                && let Err(error) = endpoints.write(home)
            {
                eprintln!("devstack: {error:#}");
            }
        })?;
        let is_held = |spec: &ServiceSpec| options.held.as_ref().is_some_and(|held| spec.name.starts_with(held));
        let (held, started): (Vec<_>, Vec<_>) = specs.into_iter().map(|(spec, _)| spec).partition(is_held);
        let names: Vec<String> = started.iter().map(|spec| spec.name.clone()).collect();
        for spec in started {
            supervisor.start(spec).await?;
        }
        let waits = names.iter().map(|name| supervisor.wait_ready(name, READY_WITHIN));
        futures::future::try_join_all(waits).await?;
        ready.store(true, std::sync::atomic::Ordering::Release);
        let held = Mutex::new(held);
        let deployment =
            Deployment { supervisor, endpoints, topic, topic_control, prefix, keys: folder, edge_urls, api_urls, held };
        if options.name.is_none() {
            deployment.endpoints().write(stack.home())?;
        }
        Ok(deployment)
    }

    /// Where everything is right now.
    pub fn endpoints(&self) -> Endpoints {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Starts the services that were held, at once, and gives their names; they may not be ready yet.
    pub async fn release(&self) -> anyhow::Result<Vec<String>> {
        let held = std::mem::take(&mut *self.held.lock().unwrap_or_else(PoisonError::into_inner));
        let names = held.iter().map(|spec| spec.name.clone()).collect();
        futures::future::try_join_all(held.into_iter().map(|spec| self.supervisor.start(spec))).await?;
        Ok(names)
    }

    /// What the topic of events holds by now, to be watched while batchers bring it into the index.
    pub async fn backlog(&self) -> anyhow::Result<Backlog> {
        let endpoints = self.endpoints();
        Backlog::of(&endpoints.kafka_brokers, &self.topic, &endpoints.database_url).await
    }

    /// Ends the services: they drain what they hold.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.supervisor.stop_all().await
    }
}

/// A stack in a temporary folder that goes with it.
#[derive(Debug)]
pub struct PrivateStack {
    stack: Stack,
    // The stack's guard removes the folder; this removes what a start that failed left of it.
    _folder: tempfile::TempDir,
}

impl PrivateStack {
    /// Starts it; `purpose` stands in the folder's name.
    pub async fn start(purpose: &str) -> anyhow::Result<PrivateStack> {
        let folder = tempfile::Builder::new().prefix(&format!("clairvio-{purpose}-")).tempdir();
        let folder = folder.context("make temporary folder")?;
        let options = StackOptions { progress: true, remove_home: true, ..StackOptions::new(folder.path())? };
        Ok(PrivateStack { stack: Stack::start(options).await?, _folder: folder })
    }

    /// For deployments on it.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// Takes it down.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.stack.stop().await
    }
}

/// A stack and its services in a temporary folder that goes with them: for the demo and the benchmark.
#[derive(Debug)]
pub struct Private {
    stack: PrivateStack,
    deployment: Deployment,
}

impl Private {
    /// Starts all of it; `purpose` stands in the folder's name.
    pub async fn start(purpose: &str) -> anyhow::Result<Private> {
        let stack = PrivateStack::start(purpose).await?;
        let deployment = Deployment::start(stack.stack(), &DeploymentOptions::default()).await?;
        Ok(Private { stack, deployment })
    }

    /// Where everything is.
    pub fn endpoints(&self) -> Endpoints {
        self.deployment.endpoints()
    }

    /// Ends the services, then the stack.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.deployment.stop().await?;
        self.stack.stop().await
    }
}

async fn make_database(stack: &Stack, name: &str) -> anyhow::Result<String> {
    let url = &stack.parts().database_url;
    let (server, _) = url.rsplit_once('/').context("DATABASE_URL ends with /<database>")?;
    if stack.is_given(Part::Postgres) && name == "clairvio" {
        // A database that somebody gave is the one to use.
        return Ok(url.clone());
    }
    let mut connection = PgConnection::connect(url).await.context("connect to postgres")?;
    let exists: bool = sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
        .bind(name)
        .fetch_one(&mut connection)
        .await
        .context("ask for databases")?;
    if !exists {
        ensure!(
            name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'),
            "a deployment's name has letters, digits and dashes only: {name}"
        );
        sqlx::query(sqlx::AssertSqlSafe(format!("create database {name}")))
            .execute(&mut connection)
            .await
            .with_context(|| format!("make database {name}"))?;
    }
    Ok(format!("{server}/{name}"))
}

async fn make_topics(stack: &Stack, topic: &str, partitions: i32, topic_control: &str) -> anyhow::Result<()> {
    let config = KafkaConfig {
        brokers: stack.parts().kafka_brokers.clone(),
        topic_events: topic.to_owned(),
        delivery_timeout: Duration::from_secs(5),
    };
    let spec = TopicSpec {
        name: topic.to_owned(),
        partitions,
        // One broker.
        replication: 1,
        min_insync: 1,
        retention: Duration::from_secs(72 * 3600),
    };
    let client = kafka::client(&config, "devstack");
    topics::ensure(&client, &spec).await?;
    let spec = CompactedTopicSpec { name: topic_control.to_owned(), partitions: 1, replication: 1, min_insync: 1 };
    topics::ensure_compacted(&client, &spec).await?;
    Ok(())
}

async fn make_identity(folder: &Path, database_url: &str, plan: Plan) -> anyhow::Result<Identity> {
    let path = folder.join("identity.json");
    let index = Index::new(&PostgresConfig { url: database_url.to_owned(), connections_max: 2 })?;
    index.migrate().await?;
    KeyStore::new(&KeyStoreConfig { url: database_url.to_owned(), connections_max: 2 })?.migrate().await?;
    if let Ok(text) = std::fs::read(&path) {
        return serde_json::from_slice(&text).with_context(|| format!("decode {}", path.display()));
    }
    let identity = Identity {
        workspace_id: WorkspaceId(Uuid::now_v7()),
        api_key: keys::tokens::make_api_key()?,
        operator_key: keys::tokens::make_api_key()?,
    };
    index.create_workspace(identity.workspace_id, "demo", plan, &[]).await?;
    index.add_api_key(identity.workspace_id, &identity.api_key).await?;
    write_private(&path, &serde_json::to_vec_pretty(&identity)?)?;
    Ok(identity)
}

/// A service, and the URL of its public interface if it has one.
type Spec = (ServiceSpec, Option<String>);

fn public_url(specs: &[Spec], service: &str) -> anyhow::Result<String> {
    let found = specs.iter().find(|(spec, _)| spec.name.starts_with(service));
    found.and_then(|(_, url)| url.clone()).with_context(|| format!("find {service}: a deployment needs one at least"))
}

fn specs(
    options: &DeploymentOptions,
    endpoints: &Endpoints,
    folder: &Path,
    (topic, topic_control): (&str, &str),
    prefix: &str,
    suffix: &str,
) -> anyhow::Result<Vec<Spec>> {
    let common = [
        ("KAFKA_BROKERS", endpoints.kafka_brokers.clone()),
        ("KAFKA_TOPIC_EVENTS", topic.to_owned()),
        ("KAFKA_TOPIC_CONTROL", topic_control.to_owned()),
        ("KAFKA_GROUP", format!("batcher{suffix}")),
        ("KAFKA_DELIVERY_TIMEOUT_MS", "5000".into()),
        ("DATABASE_URL", endpoints.database_url.clone()),
        ("S3_ENDPOINT", endpoints.s3.endpoint.clone()),
        ("S3_REGION", endpoints.s3.region.clone()),
        ("S3_BUCKET", endpoints.s3.bucket.clone()),
        ("S3_PREFIX", prefix.to_owned()),
        ("AWS_ACCESS_KEY_ID", endpoints.s3.access_key.clone()),
        ("AWS_SECRET_ACCESS_KEY", endpoints.s3.secret_key.clone()),
        ("S3_REQUEST_TIMEOUT_MS", "5000".into()),
        ("CLAIRVIO_EDGE_KEYS_FILE", folder.join(keys::EDGE_FILE).display().to_string()),
        ("CLAIRVIO_CONTROL_KEYS_FILE", folder.join(keys::CONTROL_FILE).display().to_string()),
        ("CLAIRVIO_TRANSPORT_KEYS_FILE", folder.join(keys::TRANSPORT_FILE).display().to_string()),
        ("CLAIRVIO_KEYRING_FILE", folder.join(keys::KEYRING_FILE).display().to_string()),
        ("CLAIRVIO_RECEIPT_KEYS_FILE", folder.join(keys::RECEIPT_FILE).display().to_string()),
        ("CLAIRVIO_OPERATOR_KEY_HASHES", operator_key_hash(&endpoints.operator_key)),
        // Short ages: flush 1 s, a session over after 10 s of silence, passes every 2 s, shared objects gone within 30 s;
        // unwrapped keys are forgotten after 5 s.
        ("CLAIRVIO_KEY_CACHE_MS", "5000".into()),
        ("CLAIRVIO_DECLINES_INTERVAL_MS", "1000".into()),
        ("CLAIRVIO_FLUSH_AGE_MS", "1000".into()),
        ("CLAIRVIO_SESSION_SILENCE_MS", "10000".into()),
        ("CLAIRVIO_PASS_INTERVAL_MS", "2000".into()),
        ("CLAIRVIO_RUN_AGE_MS", "5000".into()),
        ("CLAIRVIO_LEASE_MS", "20000".into()),
        ("CLAIRVIO_CONDEMNED_GRACE_MS", "10000".into()),
        ("CLAIRVIO_STAGED_STALE_MS", "20000".into()),
    ];
    // Default ports: of the admin interface, and of the public one of those that have it.
    let kinds = [
        ("control-plane", options.control_planes, 7081, Some(7080)),
        ("ingest-edge", options.edges, 7071, Some(7070)),
        ("batcher", options.batchers, 7091, None),
        ("compactor", options.compactors, 7101, None),
        ("retention-worker", options.workers, 7111, None),
    ];
    let mut specs = Vec::new();
    for (kind, count, admin_default, public_default) in kinds {
        for number in 1..=count {
            let wants_default = options.default_ports && number == 1;
            let port = |default| if wants_default && is_free(default) { Ok(default) } else { free_port() };
            let name = format!("{kind}{suffix}-{number}");
            let admin = format!("127.0.0.1:{}", port(admin_default)?);
            let mut env: Vec<(String, String)> =
                common.iter().map(|(variable, value)| ((*variable).to_owned(), value.clone())).collect();
            env.push(("CLAIRVIO_ADMIN_LISTEN".into(), admin.clone()));
            let mut url = None;
            if let Some(default) = public_default {
                let listen = format!("127.0.0.1:{}", port(default)?);
                url = Some(format!("http://{listen}"));
                env.push(("CLAIRVIO_LISTEN".into(), listen));
            }
            let own = options.settings.iter().filter(|(services, ..)| kind.starts_with(services.as_str()));
            for (_, variable, value) in own {
                env.retain(|(known, _)| known != variable);
                env.push((variable.clone(), value.clone()));
            }
            let spec = ServiceSpec {
                name,
                binary: find_binary(kind)?,
                env,
                admin_url: format!("http://{admin}"),
                restart: options.restart,
            };
            specs.push((spec, url));
        }
    }
    Ok(specs)
}
