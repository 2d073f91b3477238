//! S3 and Postgres: the one home of objects and of index queries.
//!
//! [`objects`] puts, gets, lists and deletes; [`index`] has every query, one file per caller; [`keystore`] holds wrapped keys,
//! [`session_keys`] unwraps them; [`references`] seals whom links are for; [`footers`] opens footers, and [`reading`] puts all together into sessions;
//! [`quarantine`] has what could not be read, [`journal`] what was deleted, for indexes that are restored, and [`receipts`] signs that it is gone; [`reconciling`] compares bucket and index; [`exports`] makes archives of sessions. Services call these and decide nothing in SQL of their own.

pub mod exports;
pub mod footers;
pub mod index;
pub mod inspect;
pub mod journal;
pub mod keystore;
pub mod objects;
mod postgres;
pub mod quarantine;
pub mod reading;
pub mod receipts;
pub mod reconciling;
pub mod references;
pub mod session_keys;
pub mod stream_notes;
pub mod told;

use service_kit::config::keys::KeyStoreConfig;
use service_kit::config::postgres::PostgresConfig;
use service_kit::config::s3::S3Config;
use service_kit::health::{Health, Part};
use service_kit::retry;
use service_kit::shutdown::Shutdown;

use index::{Index, IndexError};
use keystore::KeyStore;
use objects::{ObjectError, Objects};

/// What a service stores in, and the parts of its health that go with it.
#[derive(Debug)]
pub struct Stores {
    /// The index.
    pub index: Index,
    /// The key store.
    pub keystore: KeyStore,
    /// The bucket.
    pub objects: Objects,
    /// How the index is.
    pub postgres: Part,
    /// How the key store is.
    pub keys: Part,
    /// How the bucket is.
    pub s3: Part,
}

/// Who brings the index's schema up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schema {
    /// This service does.
    Migrate,
    /// Another one does; this one waits for it.
    Await,
}

/// Why a service must not start.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The index cannot be used as configured.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The bucket is not the one that was promised (P5).
    #[error(transparent)]
    Bucket(ObjectError),
}

/// Waits until index, key store and bucket answer; `None` when the shutdown began before.
pub async fn connect(
    postgres_config: &PostgresConfig,
    keystore_config: &KeyStoreConfig,
    s3_config: &S3Config,
    schema: Schema,
    health: &Health,
    shutdown: &Shutdown,
) -> Result<Option<Stores>, ConnectError> {
    let (postgres, keys, s3) = (health.part("postgres"), health.part("keystore"), health.part("s3"));
    let index = Index::new(postgres_config)?;
    let keystore = KeyStore::new(keystore_config)?;
    let objects = Objects::new(s3_config);
    let ask_index = || async {
        if schema == Schema::Migrate {
            index.migrate().await?;
        }
        index.check().await
    };
    if retry::until_ok("postgres", &postgres, shutdown, ask_index).await.is_none() {
        return Ok(None);
    }
    let ask_keystore = || async {
        if schema == Schema::Migrate {
            keystore.migrate().await?;
        }
        keystore.check().await
    };
    if retry::until_ok("keystore", &keys, shutdown, ask_keystore).await.is_none() {
        return Ok(None);
    }
    let ask_bucket = || async {
        match objects.check().await {
            // It will not move by being asked again.
            Err(error @ ObjectError::Region { .. }) => Ok(Err(error)),
            other => other.map(Ok),
        }
    };
    match retry::until_ok("s3", &s3, shutdown, ask_bucket).await {
        None => Ok(None),
        Some(Err(error)) => Err(ConnectError::Bucket(error)),
        Some(Ok(())) => Ok(Some(Stores { index, keystore, objects, postgres, keys, s3 })),
    }
}
