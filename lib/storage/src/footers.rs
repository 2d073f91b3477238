//! Footers of objects, opened.

use std::sync::Arc;

use bytes::Bytes;
use schemas::codec::FormatError;
use schemas::paths::ObjectKey;
use schemas::{session_object, shared_object};
use sealing::objects::{self, OpenError};
use service_kit::pool::{Panicked, Pool};
use thiserror::Error;

use crate::index::LiveObject;
use crate::objects::{ObjectError, Objects};
use crate::session_keys::{KeyError, SessionKeys};

/// A footer of either kind.
#[derive(Debug, Clone)]
pub enum Footer {
    /// Of a shared or quarantine object.
    Shared(Arc<shared_object::Footer>),
    /// Of a session object.
    Session(Arc<session_object::Footer>),
}

/// Why a footer cannot be opened.
#[derive(Debug, Error)]
pub enum FooterError {
    /// The bucket did not give it.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// It is not what was put there.
    #[error(transparent)]
    Corrupt(#[from] OpenError),
    /// Its key cannot be had.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The pool.
    #[error(transparent)]
    Pool(#[from] Panicked),
}

/// Fetches the footer of an object, and opens it.
pub async fn fetch(
    objects: &Objects,
    keys: &SessionKeys,
    pool: &Pool,
    object: &LiveObject,
) -> Result<Footer, FooterError> {
    let region = objects.get_range(&object.key, object.footer.at, u64::from(object.footer.len)).await?;
    open(keys, pool, object, region).await
}

/// Opens the footer of an object, whose region these bytes are.
pub async fn open(keys: &SessionKeys, pool: &Pool, object: &LiveObject, region: Bytes) -> Result<Footer, FooterError> {
    let body_len = object.footer.at;
    match object.key {
        ObjectKey::Session { key: session, id } => {
            let data_key = keys.key(&session).await?;
            let opening = move || objects::open_session_footer(&data_key, session, id, &region, body_len);
            Ok(Footer::Session(Arc::new(pool.run(opening).await??)))
        }
        ObjectKey::Shared { id, .. } | ObjectKey::Quarantine { id, .. } => {
            let version = objects::shared_footer_version(&region).map_err(OpenError::from)?;
            // The row says it too: a flipped bit here is a corrupt object, and no missing key.
            if object.key_version != Some(version) {
                return Err(OpenError::from(FormatError::Field("key_version")).into());
            }
            let storage = keys.storage_of(version).await?;
            let opening = move || objects::open_shared_footer(&storage, id, &region, body_len);
            Ok(Footer::Shared(Arc::new(pool.run(opening).await??)))
        }
        ObjectKey::Journal { .. } | ObjectKey::Export { .. } => {
            Err(OpenError::from(FormatError::Field("footer")).into())
        }
    }
}
