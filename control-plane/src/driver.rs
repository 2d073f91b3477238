//! The control plane's loop: takes requests and hands them to their routes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::extract::{MatchedPath, Request};
use axum::middleware::{self, Next};
use axum::response::Response;
use engine::token::Signing;
use schemas::token::LinkClaims;
use schemas::{ErrorCode, WorkspaceId};
use service_kit::http_server;
use service_kit::kafka::control::Publisher;
use service_kit::keys::tokens::ControlKeys;
use service_kit::keys::{self, Watched};
use service_kit::pool::Pool;
use service_kit::retry;
use service_kit::service::Surroundings;
use service_kit::telemetry::chain;
use storage::Schema;
use storage::index::workspaces::{Changed, Graces, WorkspaceChange};
use storage::index::{Index, outbox};
use storage::journal::Journal;
use storage::objects::Objects;
use storage::reading::Reader;
use storage::references::{ReferenceError, References};
use storage::session_keys::SessionKeys;
use storage::told::Told;
use tokio::sync::Notify;

use crate::readings::Readings;
use crate::reply::Refused;
use crate::{Config, exporting, metrics, routes};

/// What handlers need.
#[derive(Clone)]
pub(crate) struct State {
    pub(crate) index: Index,
    pub(crate) keys: SessionKeys,
    pub(crate) reader: Reader,
    /// Readings of events under way.
    pub(crate) readings: Readings,
    pub(crate) references: References,
    /// Keys of tokens, as their file has them by now.
    pub(crate) token_keys: Arc<Watched<ControlKeys>>,
    pub(crate) silence: Duration,
    /// How long what a change of a workspace takes away stays.
    pub(crate) graces: Graces,
    /// Where deletions are written before they are said to be accepted.
    pub(crate) journal: Journal,
    /// What was told of workspaces: nothing of them changes before the index knows it.
    pub(crate) told: Told,
    pub(crate) objects: Objects,
    pub(crate) pool: Pool,
    /// How long an export is kept.
    pub(crate) exports_kept: Duration,
    /// Told when there is an export to make.
    pub(crate) exports_asked: Arc<Notify>,
    /// SHA-256 of the keys of operators.
    pub(crate) operators: Arc<[[u8; 32]]>,
}

/// A change of a workspace waits for so long until it is known that the index is not one of a backup.
const COMPARED_WITHIN: Duration = Duration::from_secs(5);
/// Memory for the footers of objects that were read lately.
const FOOTERS_BYTES_MAX: u64 = 128 * schemas::limits::MIB as u64;
/// Who makes archives leaves them within this at the shutdown, or they are gone on with from what stands, once a lease has run out.
const LEFT_WITHIN: Duration = Duration::from_secs(10);
/// How often references in clear are looked for: an instance of an earlier release may still make links.
const SEALING_INTERVAL: Duration = Duration::from_secs(60);

/// Serves until the shutdown. It brings the index's schema up to date first: it is the one service that does.
pub async fn run(config: Config, surroundings: Surroundings) -> anyhow::Result<()> {
    let Surroundings { listener, health, shutdown } = surroundings;
    let listener = listener.context("the control plane has a public address")?;
    service_kit::telemetry::describe(metrics::ALL);
    let token_keys = Watched::start(config.keys_file.clone(), &shutdown)?;
    signing(&token_keys.get()).context("link key is not 32 bytes in base64")?;
    let keyring = keys::keyring::open(&config.keys.keyring, &shutdown)?;
    // Not ready before references are sealed, and so known of before anything else is.
    let sealed = health.part("references");
    let connecting =
        storage::connect(&config.postgres, &config.keystore, &config.s3, Schema::Migrate, &health, &shutdown);
    let Some(stores) = connecting.await? else { return Ok(()) };
    let session_keys = SessionKeys::new(stores.keystore.clone(), keyring, config.keys.cache, &shutdown);
    let journal = Journal::new(
        stores.index.clone(),
        stores.keystore,
        stores.objects.clone(),
        session_keys.storage_keys(),
        config.backups,
    );
    let (told, control) = (Told::new(journal.clone()), &config.control);
    let heard = told.clone();
    let following = session_keys.follow_closely(control, "control-plane", &shutdown, move |entry| heard.add(entry));
    let following = following.context("follow control entries")?;
    // Nobody is served by an index that a backup took deletions from, nor by a server that took over until it was looked at.
    let guarded = journal.guard(&config.postgres, health.part("journal"), &shutdown).await?;
    let Some(index) = guarded else { return Ok(()) };
    let references = References::new(index.clone(), session_keys.clone());
    // Nobody is served while references lie in clear that could be sealed.
    if retry::until_ok("seal references", &sealed, &shutdown, || seal_references(&references)).await.is_none() {
        return Ok(());
    }
    let (sealing, until) = (references.clone(), shutdown.clone());
    tokio::spawn(async move {
        while until.sleep(SEALING_INTERVAL).await {
            if let Err(error) = seal_references(&sealing).await {
                tracing::warn!(error = %chain(&error), "seal references; trying again in a minute");
            }
        }
    });
    let publisher = Publisher::new(&config.control, "control-plane").context("make producer")?;
    tokio::spawn(outbox::relay(index.clone(), publisher, told.clone(), shutdown.clone()));
    tokio::spawn(told.clone().run(index.clone(), following, shutdown.clone()));
    let pool = Pool::new("control", None).context("start pool")?;
    let objects = stores.objects;
    let reader = Reader::new(index.clone(), objects.clone(), session_keys.clone(), pool.clone(), FOOTERS_BYTES_MAX);
    let state = State {
        index,
        keys: session_keys,
        reader,
        readings: Readings::new(config.readings_max),
        references,
        token_keys,
        silence: config.silence,
        graces: Graces { plan: config.plan_grace, termination: config.termination_grace },
        journal,
        told,
        objects,
        pool,
        exports_kept: config.exports_kept,
        exports_asked: Arc::new(Notify::new()),
        operators: config.operators.into(),
    };
    // An upload of a part, and what is read for it.
    let exporting = exporting::start(&state, config.exports_at_once, 3 * config.s3.request_timeout, &shutdown);
    let router = routes::router().with_state(state).layer(middleware::from_fn(measure));
    http_server::serve(listener, &shutdown, move |request| {
        let router = router.clone();
        async move {
            use tower_service::Service as _;
            let mut router = router;
            match router.call(request).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
    })
    .await;
    // What they have stands then, and others go on at once.
    if tokio::time::timeout(LEFT_WITHIN, exporting.join_all()).await.is_err() {
        tracing::info!("archives under way are left as they stand");
    }
    Ok(())
}

fn signing(keys: &ControlKeys) -> Option<Signing> {
    Some(Signing::new(keys.link_signing.kid.clone(), &keys.link_signing.bytes()?))
}

impl State {
    /// Changes a workspace: not before the index knows what was told of it, or what a backup has would be told as news.
    pub(crate) async fn change_workspace(&self, id: WorkspaceId, change: &WorkspaceChange) -> Result<Changed, Refused> {
        self.told.wait_compared(COMPARED_WITHIN).await;
        Ok(self.index.change_workspace(id, change, self.graces, || self.told.is_compared()).await?)
    }

    /// A token of a link, signed by the key that signs now.
    pub(crate) fn sign(&self, claims: &LinkClaims) -> Result<String, ErrorCode> {
        let signing = signing(&self.token_keys.get()).ok_or_else(|| {
            tracing::error!("sign link: the key is not 32 bytes in base64; put the file right");
            ErrorCode::Internal
        })?;
        Ok(signing.link(claims))
    }
}

/// Seals what an earlier release left in clear, and says so once.
async fn seal_references(references: &References) -> Result<(), ReferenceError> {
    let sealed = references.seal_clear().await?;
    if sealed.links > 0 {
        tracing::info!(links = sealed.links, "sealed references that an earlier release left in clear");
    }
    ::metrics::gauge!(metrics::REFERENCES_IN_CLEAR).set(sealed.left as f64);
    Ok(())
}

/// Counts by route template: a path or query can hold personal data.
async fn measure(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let begun = Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_str().to_owned();
    ::metrics::counter!(metrics::REQUESTS, "route" => route.clone(), "status" => status).increment(1);
    ::metrics::histogram!(metrics::REQUEST_SECONDS, "route" => route).record(begun.elapsed().as_secs_f64());
    response
}
