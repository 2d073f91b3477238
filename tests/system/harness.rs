//! One stack for all tests, and a deployment for each.

use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use bytes::Bytes;
use devstack::{
    Deployment, DeploymentOptions, Given, S3Kind, ServiceSpec, Stack, StackOptions, Supervisor, find_binary, free_port,
};
use futures::FutureExt as _;
use schemas::http::{LinkCreated, LinkRequest};
use schemas::object::ObjectKind;
use schemas::paths::ObjectKey;
use schemas::{SessionKey, WorkspaceId};
use service_kit::config::kafka::KafkaConfig;
use service_kit::config::keys::{KeyStoreConfig, KeyringSource};
use service_kit::config::postgres::PostgresConfig;
use service_kit::config::s3::S3Config;
use service_kit::kafka;
use service_kit::kafka::topics::{self, CompactedTopicSpec};
use service_kit::pool::Pool;
use service_kit::shutdown::Shutdown;
use storage::footers::{self, Footer, FooterError};
use storage::index::{FooterAt, Index, LiveObject};
use storage::keystore::KeyStore;
use storage::objects::Objects;
use storage::session_keys::{KeyError, SessionKeys};
use tokio::runtime::Runtime;
use virtual_sdk::{Api, Ledger, Sdk, SdkOptions, Seen, until};

use crate::check;
use crate::faults::Fault;

/// For a condition that depends on a few flushes or passes, on a machine that is busy with other tests.
pub(crate) const SOON: Duration = Duration::from_secs(60);
/// For a condition that depends on compaction, graces and several passes.
pub(crate) const LATER: Duration = Duration::from_secs(120);

pub(crate) const NOTICE_VERSION: &str = "test-1";

struct Shared {
    stack: Stack,
    // The stack's tasks run here, whichever test is over.
    _runtime: Runtime,
}

fn shared_stack() -> Result<&'static Stack> {
    static SHARED: OnceLock<Result<Shared, String>> = OnceLock::new();
    let start = || -> Result<Shared> {
        let runtime = runtime()?;
        let stack = runtime.block_on(start_stack())?;
        Ok(Shared { stack, _runtime: runtime })
    };
    match SHARED.get_or_init(|| start().map_err(|error| format!("{error:#}"))) {
        Ok(shared) => Ok(&shared.stack),
        Err(error) => Err(anyhow!("start the stack of all tests: {error}")),
    }
}

/// A stack in a folder that goes with it.
pub(crate) async fn start_stack() -> Result<Stack> {
    let home = tempfile::Builder::new().prefix("clairvio-").tempdir().context("make home of stack")?.keep();
    let options = StackOptions { home, s3: S3Kind::Folder, progress: false, remove_home: true };
    Stack::start_with(options, Given::default()).await
}

pub(crate) fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("start runtime")
}

/// Runs a round of a fault once, on the stack of all, and demands that nothing was lost or doubled.
pub(crate) fn run_round(fault: &Fault) -> Result<()> {
    let stack = shared_stack()?;
    let comparison = runtime()?.block_on((fault.round)(stack, fault.name))?;
    ensure!(comparison.expected > 0, "nothing was sent, so nothing was compared");
    ensure!(comparison.is_exact(), "{comparison}");
    Ok(())
}

/// Runs a test on the stack of all, in a deployment of its own. `expected` are texts of WARN and ERROR lines that belong to
/// what the test does to the system.
pub(crate) fn run(
    options: DeploymentOptions,
    expected: &[&str],
    test: impl AsyncFnOnce(&System<'_>) -> Result<()>,
) -> Result<()> {
    let stack = shared_stack()?;
    runtime()?.block_on(run_on(stack, options, expected, test))
}

/// The same with an S3 server of its own that keeps versions of objects.
pub(crate) fn run_with_versions(
    options: DeploymentOptions,
    expected: &[&str],
    test: impl AsyncFnOnce(&System<'_>) -> Result<()>,
) -> Result<()> {
    run_with_own_s3(S3Kind::Versitygw, options, expected, test)
}

/// The same with an S3 server of its own: one that lists all the time, or has very many objects, slows nobody down.
pub(crate) fn run_with_own_s3(
    s3: S3Kind,
    options: DeploymentOptions,
    expected: &[&str],
    test: impl AsyncFnOnce(&System<'_>) -> Result<()>,
) -> Result<()> {
    let shared = shared_stack()?.parts();
    let given = Given {
        kafka_brokers: Some(shared.kafka_brokers.clone()),
        database_url: Some(shared.database_url.clone()),
        s3: None,
    };
    runtime()?.block_on(async {
        let home = tempfile::Builder::new().prefix("clairvio-").tempdir().context("make home of stack")?.keep();
        let own = StackOptions { home, s3, progress: false, remove_home: true };
        let stack = Stack::start_with(own, given).await?;
        run_on(&stack, options, expected, test).await
    })
}

/// The same on a given stack; gives what the test gives.
pub(crate) async fn run_on<T>(
    stack: &Stack,
    options: DeploymentOptions,
    expected: &[&str],
    test: impl AsyncFnOnce(&System<'_>) -> Result<T>,
) -> Result<T> {
    let name = options.name.clone().context("a test's deployment has a name")?;
    let begun = Instant::now();
    let outcome = run_and_check(stack, &name, options, expected, test).await;
    eprintln!("{name}: {:.1} s", begun.elapsed().as_secs_f32());
    outcome.map_err(|error| match keep_logs(stack, &name) {
        Ok(kept) => error.context(format!("{name}: its logs are in {}", kept.display())),
        Err(kept) => error.context(format!("{name}: its logs are lost: {kept:#}")),
    })
}

async fn run_and_check<T>(
    stack: &Stack,
    name: &str,
    options: DeploymentOptions,
    expected: &[&str],
    test: impl AsyncFnOnce(&System<'_>) -> Result<T>,
) -> Result<T> {
    let system = System::start(stack, name, &options).await?;
    // What panicked was told by the panic's own message.
    let outcome = AssertUnwindSafe(test(&system)).catch_unwind().await.unwrap_or_else(|_| Err(anyhow!("it panicked")));
    let conserved = if outcome.is_ok() { check::conservation(&system).await } else { Ok(()) };
    let stopped = system.deployment.supervisor.stop_all().await;
    let outcome = outcome?;
    conserved?;
    stopped?;
    check::index(&system).await.context("look at the index afterwards")?;
    check::logs(&logs(stack, name)?, expected)?;
    Ok(outcome)
}

/// The logs of a deployment's services.
pub(crate) fn logs(stack: &Stack, name: &str) -> Result<Vec<PathBuf>> {
    let folder = stack.home().join("logs");
    let infix = format!("-{name}-");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(&folder).context("list logs")? {
        let path = entry.context("list logs")?.path();
        if path.file_name().is_some_and(|file| file.to_string_lossy().contains(&infix)) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// These, and those of the servers, which hold what all deployments did.
pub(crate) fn all_logs(stack: &Stack, name: &str) -> Result<Vec<PathBuf>> {
    let servers = ["kafka", "postgres", "s3"].map(|part| stack.log(part));
    Ok(logs(stack, name)?.into_iter().chain(servers).collect())
}

/// The stack's folder goes when this process ends; what a person wants to see is copied.
fn keep_logs(stack: &Stack, name: &str) -> Result<PathBuf> {
    // Cargo names a folder to tests alone.
    let folder = option_env!("CARGO_TARGET_TMPDIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let kept = folder.join(format!("system-{}", std::process::id())).join(name);
    std::fs::create_dir_all(&kept)?;
    for log in all_logs(stack, name)? {
        if let Some(file) = log.file_name() {
            std::fs::copy(&log, kept.join(file)).with_context(|| format!("copy {}", log.display()))?;
        }
    }
    Ok(kept)
}

/// A deployment, and all that a test looks at it with.
pub(crate) struct System<'s> {
    pub(crate) stack: &'s Stack,
    pub(crate) name: String,
    pub(crate) deployment: Deployment,
    pub(crate) workspace: WorkspaceId,
    pub(crate) api: Api,
    pub(crate) index: Index,
    pub(crate) objects: Objects,
    pub(crate) keystore: KeyStore,
    /// Keys of sessions, by the deployment's own keyring; none is kept for longer than a moment.
    pub(crate) keys: SessionKeys,
    pub(crate) pool: Pool,
    pub(crate) ledger: Ledger,
    /// Holes that the test made in the log: the index must note as many.
    pub(crate) gaps_made: AtomicU32,
}

impl<'s> System<'s> {
    async fn start(stack: &'s Stack, name: &str, options: &DeploymentOptions) -> Result<Self> {
        let deployment = Deployment::start(stack, options).await.context("start deployment")?;
        let endpoints = deployment.endpoints();
        let index = Index::new(&PostgresConfig { url: endpoints.database_url.clone(), connections_max: 4 })?;
        let objects = Objects::new(&S3Config {
            endpoint: Some(endpoints.s3.endpoint.clone()),
            region: endpoints.s3.region.clone(),
            bucket: endpoints.s3.bucket.clone(),
            prefix: deployment.prefix.clone(),
            access_key: endpoints.s3.access_key.clone(),
            secret_key: endpoints.s3.secret_key.clone(),
            request_timeout: Duration::from_secs(10),
            multipart_bytes: schemas::limits::S3_PART_BYTES,
        });
        let shutdown = Shutdown::new(Duration::ZERO);
        let keyring = KeyringSource::File(deployment.keys.join(service_kit::keys::KEYRING_FILE));
        let keyring = service_kit::keys::keyring::open(&keyring, &shutdown)?;
        let store = KeyStore::new(&KeyStoreConfig { url: endpoints.database_url.clone(), connections_max: 2 })?;
        Ok(Self {
            keys: SessionKeys::new(store.clone(), keyring, Duration::from_millis(1), &shutdown),
            keystore: store,
            pool: Pool::new("test", None)?,
            stack,
            name: name.to_owned(),
            workspace: endpoints.workspace_id.parse().context("parse workspace's id")?,
            api: Api::new(&endpoints.api_url, &endpoints.api_key)?,
            index,
            objects,
            ledger: Ledger::default(),
            gaps_made: AtomicU32::new(0),
            deployment,
        })
    }

    /// The name of a service, as the supervisor knows it.
    pub(crate) fn service(&self, kind: &str, number: usize) -> String {
        format!("{kind}-{}-{number}", self.name)
    }

    /// A variable of a running service's environment: where it listens, what it was told.
    pub(crate) fn variable(&self, service: &str, name: &str) -> Result<String> {
        let variables = self.environment(service)?;
        let found = variables.into_iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value).with_context(|| format!("find {name} in the environment of {service}"))
    }

    /// The settings of a running service, without what its process has from elsewhere.
    pub(crate) fn settings(&self, service: &str) -> Result<Vec<(String, String)>> {
        let mut env = self.environment(service)?;
        env.retain(|(name, _)| {
            ["KAFKA_", "DATABASE_", "S3_", "AWS_", "CLAIRVIO_"].iter().any(|prefix| name.starts_with(prefix))
        });
        Ok(env)
    }

    fn environment(&self, service: &str) -> Result<Vec<(String, String)>> {
        let pid = self.deployment.supervisor.pid(service).with_context(|| format!("{service} does not run"))?;
        let bytes = std::fs::read(format!("/proc/{pid}/environ")).context("read environment")?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let pairs = text.split('\0').filter_map(|pair| pair.split_once('='));
        Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// Where the admin interface of a service is.
    pub(crate) fn admin_url(&self, kind: &str, number: usize) -> Result<String> {
        Ok(format!("http://{}", self.variable(&self.service(kind, number), "CLAIRVIO_ADMIN_LISTEN")?))
    }

    /// Where the public interface of a service is.
    pub(crate) fn url(&self, kind: &str, number: usize) -> Result<String> {
        Ok(format!("http://{}", self.variable(&self.service(kind, number), "CLAIRVIO_LISTEN")?))
    }

    /// A client of an edge.
    pub(crate) fn sdk(&self, edge: usize) -> Result<Sdk> {
        Ok(Sdk::new(&self.url("ingest-edge", edge)?, SdkOptions::default())?)
    }

    /// A client of a control plane, as another workspace or at another instance.
    pub(crate) fn api_at(&self, control_plane: usize, api_key: &str) -> Result<Api> {
        Ok(Api::new(&self.url("control-plane", control_plane)?, api_key)?)
    }

    /// An edge beside the deployment's that follows another topic of news: it does not hear what the others hear. It may not be
    /// ready when this returns. Its supervisor ends it.
    pub(crate) async fn deaf_edge(&self, topic_control: &str) -> Result<DeafEdge> {
        let supervisor = self.stack.supervisor(|_| {})?;
        let mut env = self.settings(&self.service("ingest-edge", 1))?;
        let [listen, admin] = [free_port()?, free_port()?].map(|port| format!("127.0.0.1:{port}"));
        for (name, value) in &mut env {
            match name.as_str() {
                "CLAIRVIO_LISTEN" => value.clone_from(&listen),
                "CLAIRVIO_ADMIN_LISTEN" => value.clone_from(&admin),
                "KAFKA_TOPIC_CONTROL" => topic_control.clone_into(value),
                _ => {}
            }
        }
        let (name, admin_url) = (self.service("ingest-edge", 99), format!("http://{admin}"));
        let binary = find_binary("ingest-edge")?;
        let spec = ServiceSpec { name: name.clone(), binary, env, admin_url: admin_url.clone(), restart: false };
        supervisor.start(spec).await?;
        Ok(DeafEdge { sdk: Sdk::new(&format!("http://{listen}"), SdkOptions::default())?, supervisor, name, admin_url })
    }

    pub(crate) async fn link(&self, reference: &str) -> Result<LinkCreated> {
        link_of(&self.api, reference).await
    }

    pub(crate) fn key(&self, session: schemas::SessionId) -> SessionKey {
        SessionKey { workspace: self.workspace, session }
    }

    /// Another workspace in the same database: its id, and a key of its API.
    pub(crate) async fn another_workspace(&self, plan: schemas::plan::Plan) -> Result<(WorkspaceId, String)> {
        let (id, key) = (WorkspaceId(uuid::Uuid::now_v7()), service_kit::keys::tokens::make_api_key()?);
        self.index.create_workspace(id, "another", plan, &[]).await?;
        self.index.add_api_key(id, &key).await?;
        Ok((id, key))
    }

    /// Ends a service that stays down until [`System::bring_back`]. It lets go of what it holds.
    pub(crate) async fn take_down(&self, service: &str) -> Result<()> {
        self.deployment.supervisor.set_restart(service, false)?;
        self.deployment.supervisor.terminate(service).await
    }

    /// Starts a service that was taken down, and waits until it is ready.
    pub(crate) async fn bring_back(&self, service: &str) -> Result<()> {
        self.deployment.supervisor.set_restart(service, true)?;
        self.deployment.supervisor.restart(service).await?;
        self.deployment.supervisor.wait_ready(service, SOON).await
    }

    /// Where the bytes of an object lie on disk.
    pub(crate) fn file_of(&self, key: &ObjectKey) -> PathBuf {
        let bucket = self.stack.home().join("s3").join("data").join(&self.stack.parts().s3.bucket);
        bucket.join(format!("{}{key}", self.deployment.prefix))
    }

    /// The footer of an object whose bytes these are, as its trailer says where it is; `None` when its session's key was
    /// destroyed.
    pub(crate) async fn footer(&self, key: ObjectKey, body: &Bytes) -> Result<Option<Footer>> {
        let kind = ObjectKind::of(body)?;
        let trailer = body.last_chunk().context("an object ends with its trailer")?;
        let (at, len) = kind.footer_place(body.len() as u64, trailer)?;
        let region = body.slice(at as usize..at as usize + len as usize);
        let key_version = match kind {
            ObjectKind::Shared => Some(sealing::objects::shared_footer_version(&region)?),
            ObjectKind::Session | ObjectKind::Journal | ObjectKind::Export => None,
        };
        let object = LiveObject { key, bytes: body.len() as u64, footer: FooterAt { at, len }, key_version };
        match footers::open(&self.keys, &self.pool, &object, region).await {
            Ok(footer) => Ok(Some(footer)),
            Err(FooterError::Key(KeyError::Shredded(_))) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("open footer of {key}")),
        }
    }

    /// Waits until the index gives this number.
    pub(crate) async fn wait_count(
        &self,
        what: &str,
        query: &'static str,
        expected: i64,
        within: Duration,
    ) -> Result<()> {
        until(what, within, || async {
            match self.count(query).await {
                Ok(count) if count == expected => Seen::Done(()),
                Ok(count) => Seen::not_yet(format_args!("{count} of {expected}")),
                Err(error) => Seen::not_yet(error),
            }
        })
        .await?;
        Ok(())
    }

    /// One number from the index.
    pub(crate) async fn count(&self, query: &'static str) -> Result<i64> {
        sqlx::query_scalar(query).fetch_one(self.index.pool()).await.with_context(|| format!("ask: {query}"))
    }
}

/// An edge that does not hear what the others hear.
pub(crate) struct DeafEdge {
    pub(crate) supervisor: Supervisor,
    pub(crate) sdk: Sdk,
    pub(crate) name: String,
    pub(crate) admin_url: String,
}

pub(crate) async fn link_of(api: &Api, reference: &str) -> Result<LinkCreated> {
    let request = LinkRequest {
        reference: reference.to_owned(),
        expires_in: Some(3600),
        max_sessions: Some(10_000),
        redirect_url: None,
        masking: None,
    };
    Ok(api.create_link(&request).await?)
}

/// Makes a topic of news beside the deployment's, where none of this name is.
pub(crate) async fn make_control_topic(system: &System<'_>, name: &str) -> Result<()> {
    let config = KafkaConfig {
        brokers: system.deployment.endpoints().kafka_brokers,
        topic_events: system.deployment.topic.clone(),
        delivery_timeout: SOON,
    };
    let spec = CompactedTopicSpec { name: name.to_owned(), partitions: 1, replication: 1, min_insync: 1 };
    // One that was just removed is there for a moment still.
    until("the topic is made", SOON, || async {
        match topics::ensure_compacted(&kafka::client(&config, "test"), &spec).await {
            Ok(true) => Seen::Done(()),
            Ok(false) => Seen::not_yet("it is there already"),
            Err(error) => Seen::not_yet(error),
        }
    })
    .await?;
    Ok(())
}

/// A counter of a service, with its labels if it has some; 0 where there is none.
pub(crate) async fn metric(admin_url: &str, name: &str) -> u64 {
    let Ok(answer) = reqwest::get(format!("{admin_url}/metrics")).await else { return 0 };
    let text = answer.text().await.unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_default()
}

/// Waits until the first service of this kind shows this line among its metrics.
pub(crate) async fn wait_for_metric(system: &System<'_>, kind: &str, line: &str) -> Result<()> {
    let admin = system.admin_url(kind, 1)?;
    until(&format!("{kind} says {line}"), SOON, || async {
        let Ok(answer) = reqwest::get(format!("{admin}/metrics")).await else {
            return Seen::not_yet("no answer");
        };
        let text = answer.text().await.unwrap_or_default();
        if text.lines().any(|found| found == line) { Seen::Done(()) } else { Seen::not_yet("it does not yet") }
    })
    .await?;
    Ok(())
}
