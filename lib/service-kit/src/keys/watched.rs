//! A key file that is read again when it changes.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use super::{KeysError, read_bytes};
use crate::shutdown::Shutdown;
use crate::telemetry::chain;

/// How often a watched file is looked at: new keys are in use this long after the file was replaced.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// What a key file holds, as of the last look.
#[derive(Debug)]
pub struct Watched<T> {
    path: PathBuf,
    value: RwLock<Arc<T>>,
}

impl<T: DeserializeOwned + Send + Sync + 'static> Watched<T> {
    /// Reads the file, and looks at it again until the shutdown. A file that cannot be read later on is told once and
    /// changes nothing: the keys that are known stay in use.
    pub fn start(path: PathBuf, shutdown: &Shutdown) -> Result<Arc<Self>, KeysError> {
        let text = read_bytes(&path)?;
        let first = serde_json::from_slice(&text).map_err(|_| KeysError::Parse(path.display().to_string()))?;
        let mut seen: [u8; 32] = Sha256::digest(&*text).into();
        let watched = Arc::new(Self { path, value: RwLock::new(Arc::new(first)) });
        let (looking, until) = (Arc::clone(&watched), shutdown.clone());
        tokio::spawn(async move {
            let mut told = String::new();
            while until.sleep(LOOK_INTERVAL).await {
                match looking.look(&mut seen) {
                    Ok(true) => {
                        tracing::info!(path = %looking.path.display(), "keys were read anew");
                        told.clear();
                    }
                    Ok(false) => {}
                    Err(error) => {
                        let reason = chain(&error);
                        if reason != told {
                            tracing::warn!("{reason}; the keys that are known stay in use");
                            told = reason;
                        }
                    }
                }
            }
        });
        Ok(watched)
    }

    /// The keys.
    pub fn get(&self) -> Arc<T> {
        Arc::clone(&self.value.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the file again; whether it held something else.
    fn look(&self, seen: &mut [u8; 32]) -> Result<bool, KeysError> {
        let text = read_bytes(&self.path)?;
        let hash: [u8; 32] = Sha256::digest(&*text).into();
        if hash == *seen {
            return Ok(false);
        }
        let value = serde_json::from_slice(&text).map_err(|_| KeysError::Parse(self.path.display().to_string()))?;
        *self.value.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
        *seen = hash;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys;

    #[tokio::test]
    async fn a_replaced_file_is_heard_of_and_a_broken_one_changes_nothing() {
        let path = std::env::temp_dir().join(format!("clairvio-watched-{}", uuid::Uuid::now_v7()));
        keys::write(&path, &1).unwrap();
        let over = Shutdown::new(Duration::ZERO);
        over.begin();
        let watched = Watched::<u8>::start(path.clone(), &over).unwrap();
        let mut seen = Sha256::digest(std::fs::read(&path).unwrap()).into();
        assert!(!watched.look(&mut seen).unwrap());
        keys::replace(&path, &2).unwrap();
        assert!(watched.look(&mut seen).unwrap());
        assert_eq!(*watched.get(), 2);
        std::fs::write(&path, "{").unwrap();
        assert!(watched.look(&mut seen).is_err());
        assert_eq!(*watched.get(), 2);
        keys::replace(&path, &3).unwrap();
        assert!(watched.look(&mut seen).unwrap());
        assert_eq!(*watched.get(), 3);
        std::fs::remove_file(&path).unwrap();
        assert!(Watched::<u8>::start(path, &over).is_err());
    }
}
