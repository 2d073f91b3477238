//! The index in Postgres: every query there is, one file per caller.
//!
//! Lock order, everywhere: links, then sessions, each in (workspace, id) order, then days of workspaces, workspaces, objects. A
//! transaction that waits for nothing but rows in this order cannot wait in a circle.

pub mod batches;
pub mod deletions;
pub mod exports;
mod first_sight;
pub mod journal;
pub mod keys;
pub mod links;
pub mod listing;
pub mod outbox;
pub mod quarantine;
pub mod reads;
pub mod receipts;
pub mod reconciling;
pub mod runs;
pub mod sessions;
pub mod termination;
pub mod workspaces;

use std::sync::Arc;

use schemas::paths::ObjectKey;
use schemas::{ExportId, ObjectId, SessionId, SessionKey, WorkspaceId};
use sealing::keyring::KeyVersion;
use service_kit::config::postgres::PostgresConfig;
use sqlx::Row as _;
use sqlx::postgres::PgPool;
use thiserror::Error;
use time::OffsetDateTime;
use tokio::sync::Notify;
use uuid::Uuid;

use crate::postgres::{self, Life};

/// Why the index did not do what was asked.
#[derive(Debug, Error)]
pub enum IndexError {
    /// Postgres did not answer, or refused.
    #[error("{what}")]
    Query {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: sqlx::Error,
    },
    /// Postgres is not there, or has not our schema yet.
    #[error("ask postgres at {address}")]
    Ask {
        /// Where.
        address: String,
        /// Why it failed.
        source: sqlx::Error,
    },
    /// The address cannot be used.
    #[error("parse {0}\n  hint: it looks like postgres://user:password@host:port/database")]
    Address(&'static str),
    /// A row holds what no release of this code writes.
    #[error("row of {0} is not understood\n  hint: a newer release wrote it; upgrade this service")]
    Row(&'static str),
    /// There are as many as there may be.
    #[error("there are as many {0} as there may be")]
    Full(&'static str),
    /// The schema could not be brought up to date.
    #[error("bring the index at {address} up to date")]
    Migrate {
        /// Where.
        address: String,
        /// Why it failed.
        source: sqlx::migrate::MigrateError,
    },
}

/// Attaches what was tried to a database error.
pub(crate) fn failed(what: &'static str) -> impl FnOnce(sqlx::Error) -> IndexError {
    move |source| IndexError::Query { what, source }
}

/// Connections to the index.
#[derive(Debug, Clone)]
pub struct Index {
    pool: PgPool,
    address: String,
    /// Told when rows were put into the outbox by this process.
    outbox: Arc<Notify>,
}

impl Index {
    /// A pool of connections; none is made yet.
    pub fn new(config: &PostgresConfig) -> Result<Self, IndexError> {
        Self::of(config, None)
    }

    /// The same, to a server only that is trusted.
    pub fn trusted(config: &PostgresConfig, life: &Arc<Life>) -> Result<Self, IndexError> {
        Self::of(config, Some(life))
    }

    fn of(config: &PostgresConfig, life: Option<&Arc<Life>>) -> Result<Self, IndexError> {
        let (pool, address) = postgres::pool(&config.url, "DATABASE_URL", config.connections_max, None, life)?;
        Ok(Self { pool, address, outbox: Arc::default() })
    }

    /// When the server was started.
    pub async fn started(&self) -> Result<String, IndexError> {
        let mut connection = self.pool.acquire().await.map_err(failed("connect to the index"))?;
        postgres::started(&mut connection).await.map_err(failed("ask when the server was started"))
    }

    /// Whether Postgres answers and has the schema.
    pub async fn check(&self) -> Result<(), IndexError> {
        sqlx::query("select 1 from workspace limit 1")
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(|source| IndexError::Ask { address: self.address.clone(), source })
    }

    /// Brings the schema up to date. Safe when several do it at once.
    pub async fn migrate(&self) -> Result<(), IndexError> {
        sqlx::migrate!("../../schemas/migrations")
            .run(&self.pool)
            .await
            .map_err(|source| IndexError::Migrate { address: self.address.clone(), source })
    }

    /// Begins to read pages of lists, by one snapshot. Statistics that are old or missing must not have Postgres read a whole
    /// table and sort it: the ways that do are closed, so that what is left goes along an index in the list's own order.
    async fn begin_listing(&self) -> Result<sqlx::Transaction<'static, sqlx::Postgres>, IndexError> {
        self.pool
            .begin_with(
                "begin isolation level repeatable read read only;
                 set local enable_seqscan = off; set local enable_bitmapscan = off; set local enable_sort = off;
                 set local enable_hashjoin = off; set local enable_mergejoin = off;
                 set local max_parallel_workers_per_gather = 0; set local jit = off",
            )
            .await
            .map_err(failed("begin listing"))
    }

    /// The pool, for tests that look at rows.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }
}

/// The state of a session's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(i16)]
pub enum SessionRowState {
    /// Readable.
    Live = 0,
    /// Deleted: no reader gets it.
    Unreadable = 1,
    /// Its keys are gone.
    Shredded = 2,
    /// Its bytes are gone.
    Erased = 3,
}

/// `kind` of an object's row.
pub(crate) const KIND_SHARED: i16 = 0;
/// `kind` of an object's row.
pub(crate) const KIND_SESSION: i16 = 1;
/// `kind` of an object's row.
pub(crate) const KIND_QUARANTINE: i16 = 2;

/// `kind` of an object's row.
pub(crate) const KIND_EXPORT: i16 = 3;

/// Where an object's footer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FooterAt {
    /// Its first byte.
    pub at: u64,
    /// Its length.
    pub len: u32,
}

/// An object that was uploaded, for its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uploaded {
    /// Its id.
    pub id: ObjectId,
    /// All its bytes.
    pub bytes: u64,
    /// Their hash.
    pub sha256: [u8; 32],
    /// Where its footer is.
    pub footer: FooterAt,
    /// Which version of the keyring opens the footer; none for session objects, which their session's key opens.
    pub key_version: Option<KeyVersion>,
    /// How many unreadable records lie in it.
    pub quarantined: usize,
}

/// An object that readers may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveObject {
    /// Its key.
    pub key: ObjectKey,
    /// All its bytes.
    pub bytes: u64,
    /// Where its footer is.
    pub footer: FooterAt,
    /// Which version of the keyring opens the footer; none for session objects.
    pub key_version: Option<KeyVersion>,
}

/// Columns that [`object_key`] and [`live_object`] read.
macro_rules! object_columns {
    () => {
        "object.id as object_id, object.kind, object.partition, object.workspace_id as object_workspace, \
         object.session_id as object_session, object.export_id as object_export, object.bytes, object.footer_at, object.footer_len, \
         object.key_version"
    };
}
pub(crate) use object_columns;

pub(crate) fn object_key(row: &sqlx::postgres::PgRow) -> Result<ObjectKey, IndexError> {
    let id = ObjectId(row.get::<Uuid, _>("object_id"));
    let partition: Option<i32> = row.get("partition");
    let workspace: Option<Uuid> = row.get("object_workspace");
    let session: Option<Uuid> = row.get("object_session");
    match (row.get::<i16, _>("kind"), partition, workspace, session) {
        (KIND_SHARED, Some(partition), ..) => Ok(ObjectKey::Shared { partition, id }),
        (KIND_QUARANTINE, Some(partition), ..) => Ok(ObjectKey::Quarantine { partition, id }),
        (KIND_SESSION, _, Some(workspace), Some(session)) => {
            let key = SessionKey { workspace: WorkspaceId(workspace), session: SessionId(session) };
            Ok(ObjectKey::Session { key, id })
        }
        (KIND_EXPORT, _, Some(workspace), _) => {
            let export: Option<Uuid> = row.get("object_export");
            let export = ExportId(export.ok_or(IndexError::Row("object"))?);
            Ok(ObjectKey::Export { workspace: WorkspaceId(workspace), export, id })
        }
        _ => Err(IndexError::Row("object")),
    }
}

pub(crate) fn live_object(row: &sqlx::postgres::PgRow) -> Result<LiveObject, IndexError> {
    let not_ours = || IndexError::Row("object");
    let bytes: Option<i64> = row.get("bytes");
    let footer_at: Option<i64> = row.get("footer_at");
    let footer_len: Option<i32> = row.get("footer_len");
    let key_version: Option<i32> = row.get("key_version");
    let (Some(bytes), Some(at), Some(len)) = (bytes, footer_at, footer_len) else { return Err(not_ours()) };
    Ok(LiveObject {
        key: object_key(row)?,
        bytes: u64::try_from(bytes).map_err(|_| not_ours())?,
        footer: FooterAt {
            at: u64::try_from(at).map_err(|_| not_ours())?,
            len: u32::try_from(len).map_err(|_| not_ours())?,
        },
        key_version: key_version
            .map(|version| u32::try_from(version).map(KeyVersion).map_err(|_| not_ours()))
            .transpose()?,
    })
}

/// Workspaces and ids of sessions as the two arrays that `unnest` takes.
pub(crate) fn key_arrays<'a>(keys: impl Iterator<Item = &'a SessionKey>) -> (Vec<Uuid>, Vec<Uuid>) {
    keys.map(|key| (key.workspace.0, key.session.0)).unzip()
}

/// Postgres' milliseconds: all our numbers fit its signed 64 bits, and what does not is a clock gone wild.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// A time in milliseconds since the epoch. One that is no time is a clock gone wild.
pub(crate) fn moment(ms: u64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

pub(crate) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

pub(crate) fn session_key(row: &sqlx::postgres::PgRow) -> SessionKey {
    SessionKey {
        workspace: WorkspaceId(row.get::<Uuid, _>("workspace_id")),
        session: SessionId(row.get::<Uuid, _>("session_id")),
    }
}
