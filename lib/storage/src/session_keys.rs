//! Data keys of sessions, unwrapped: from the key store through the keyring, kept for a bounded time.
//!
//! A key is kept from before it was asked for until the bound is over, used or not (R2): once a key was shredded, no process
//! that goes by this module opens anything of its session after that time, and a process that hears of the deletion drops the
//! key at once. A missing key is an error, and so is a shredded one: there is no way on in clear.
//!
//! Keys of references (see [`SessionKey::references`]) are kept in the same way and for as long, and are not counted as
//! sessions'.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use schemas::control::{Entry, News};
use schemas::{SessionId, SessionKey};
use sealing::keyring::{KeyVersion, Keyring, KeyringError, Owner};
use sealing::objects::StorageKey;
use sealing::wrapping::{self, Wrapped};
use sealing::{Key, SealError};
use service_kit::config::kafka::ControlConfig;
use service_kit::kafka::control::Following;
use service_kit::kafka::{KafkaError, control};
use service_kit::keys::cache::KeyCache;
use service_kit::shutdown::Shutdown;
use service_kit::telemetry::Described;
use thiserror::Error;

use crate::index::IndexError;
use crate::keystore::{KeyRow, KeyStore};

/// Unwrapped keys in memory, about 10 MB of them: beyond it those go first that were fetched first.
const KEYS_CACHED_MAX: usize = 65_536;
/// Unwrapped keys of references in memory, one for each workspace.
const REFERENCE_KEYS_CACHED_MAX: usize = 4_096;

const CACHED: &str = "session_keys_cached";
/// Unwrapped keys in memory, for the metrics of a service that has any.
pub const CACHED_DESCRIBED: Described = Described::Gauge(CACHED, "Sessions whose unwrapped keys are in memory.");

/// Why a key cannot be had.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The key store.
    #[error("ask the key store")]
    Store(#[from] IndexError),
    /// The keyring.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// The session has none.
    #[error("session {0} has no key\n  hint: the key store is not the one that it was written with, or is older")]
    Missing(SessionId),
    /// The session's key was destroyed.
    #[error("the key of session {0} was destroyed")]
    Shredded(SessionId),
    /// The keyring's key does not open the session's.
    #[error("the key of session {0} does not unwrap\n  hint: the keyring is not the one that wrapped it")]
    NotUnwrapped(SessionId),
    /// A new key cannot be made.
    #[error("make a key")]
    Make(#[from] SealError),
}

/// What a session's key is.
#[derive(Debug, Clone)]
pub enum DataKey {
    /// There, and unwrapped.
    Known(Key),
    /// Gone for ever.
    Shredded,
    /// There, and the keyring does not open it: it lacks the version, or is not the one that wrapped.
    Closed(Option<KeyVersion>),
}

/// Data keys of sessions, and the storage's own key.
#[derive(Debug, Clone)]
pub struct SessionKeys {
    store: KeyStore,
    keyring: Arc<dyn Keyring>,
    cache: Arc<Mutex<Cache>>,
}

/// Keys of what belongs to no session, and no others: who has these opens footers and the journal, and nothing that was recorded.
#[derive(Debug, Clone)]
pub struct StorageKeys {
    keyring: Arc<dyn Keyring>,
}

impl StorageKeys {
    /// Those of this keyring.
    pub fn new(keyring: Arc<dyn Keyring>) -> Self {
        Self { keyring }
    }

    /// The key as it is used now.
    pub async fn current(&self) -> Result<StorageKey, KeyError> {
        let version = self.keyring.current()?;
        Ok(StorageKey { version, key: self.of(version).await? })
    }

    /// The key of this version.
    pub async fn of(&self, version: KeyVersion) -> Result<Key, KeyError> {
        Ok(self.keyring.key(Owner::Storage, version).await?)
    }
}

/// Unwrapped keys in memory.
#[derive(Debug)]
struct Cache {
    sessions: KeyCache<SessionKey>,
    references: KeyCache<SessionKey>,
}

impl Cache {
    fn of(&mut self, key: &SessionKey) -> &mut KeyCache<SessionKey> {
        if key.is_session() { &mut self.sessions } else { &mut self.references }
    }

    fn sweep(&mut self) {
        let now = Instant::now();
        self.sessions.sweep(now);
        self.references.sweep(now);
    }
}

impl SessionKeys {
    /// Keys of this store and keyring; unwrapped ones are kept for `kept` after they were fetched, and dropped then whether
    /// anybody asks or not, until the shutdown.
    pub fn new(store: KeyStore, keyring: Arc<dyn Keyring>, kept: Duration, shutdown: &Shutdown) -> Self {
        let [sessions, references] = [KEYS_CACHED_MAX, REFERENCE_KEYS_CACHED_MAX].map(|max| KeyCache::new(kept, max));
        let cache = Cache { sessions, references };
        show(&cache);
        let cache = Arc::new(Mutex::new(cache));
        let (sweeping, until) = (Arc::downgrade(&cache), shutdown.clone());
        // Looking says nothing of a key that is past its time; sweeping wipes it.
        let interval = (kept / 4).clamp(Duration::from_millis(50), Duration::from_secs(5));
        tokio::spawn(async move {
            while until.sleep(interval).await {
                let Some(cache) = sweeping.upgrade() else { return };
                let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
                cache.sweep();
                show(&cache);
            }
        });
        Self { store, keyring, cache }
    }

    fn cache(&self) -> std::sync::MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The keys of these sessions. Those that have none are not in the answer.
    pub async fn find(&self, keys: &[SessionKey]) -> Result<BTreeMap<SessionKey, DataKey>, KeyError> {
        // A key counts as fetched before it was asked for: it may have been shredded while the answer was on its way.
        let fetched = Instant::now();
        let mut found = BTreeMap::new();
        let mut wanted = Vec::new();
        {
            let mut cache = self.cache();
            for key in keys {
                match cache.of(key).get(key, fetched) {
                    Some(data_key) => drop(found.insert(*key, DataKey::Known(data_key))),
                    None => wanted.push(*key),
                }
            }
        }
        if wanted.is_empty() {
            return Ok(found);
        }
        for (key, row) in self.store.rows(&wanted).await? {
            let data_key = match row {
                KeyRow::Wrapped(wrapped) => {
                    // What is wrong with one key is said of that one: it must not hold up all others.
                    let data_key = match self.unwrap(&key, &wrapped).await {
                        Ok(data_key) => data_key,
                        Err(KeyError::NotUnwrapped(_)) => {
                            found.insert(key, DataKey::Closed(None));
                            continue;
                        }
                        Err(KeyError::Keyring(KeyringError::Missing(version))) => {
                            found.insert(key, DataKey::Closed(Some(version)));
                            continue;
                        }
                        Err(error) => return Err(error),
                    };
                    let mut cache = self.cache();
                    cache.of(&key).insert(key, data_key.clone(), fetched);
                    show(&cache);
                    DataKey::Known(data_key)
                }
                KeyRow::Shredded => DataKey::Shredded,
            };
            found.insert(key, data_key);
        }
        Ok(found)
    }

    /// The same; those that have none get one. Of several that make one at once, one wins, and all get its key. Gives those
    /// that had none as well: of a session that was written before, all that was is lost.
    pub async fn obtain(
        &self,
        keys: &[SessionKey],
    ) -> Result<(BTreeMap<SessionKey, DataKey>, Vec<SessionKey>), KeyError> {
        let mut found = self.find(keys).await?;
        let absent: Vec<SessionKey> = keys.iter().filter(|key| !found.contains_key(key)).copied().collect();
        if absent.is_empty() {
            return Ok((found, absent));
        }
        let version = self.keyring.current()?;
        let mut fresh = Vec::with_capacity(absent.len());
        for key in &absent {
            let above = self.keyring.key(Owner::Workspace(key.workspace), version).await?;
            fresh.push((*key, wrapping::wrap(version, &above, key, &Key::random()?)?));
        }
        self.store.insert_absent(&fresh).await?;
        // What counts is what the store has now, ours or another's.
        found.append(&mut self.find(&absent).await?);
        match absent.iter().find(|key| !found.contains_key(key)) {
            None => Ok((found, absent)),
            Some(key) => Err(KeyError::Missing(key.session)),
        }
    }

    /// One session's key.
    pub async fn key(&self, key: &SessionKey) -> Result<Key, KeyError> {
        match self.find(std::slice::from_ref(key)).await?.remove(key) {
            Some(DataKey::Known(data_key)) => Ok(data_key),
            Some(DataKey::Shredded) => Err(KeyError::Shredded(key.session)),
            Some(DataKey::Closed(closed)) => Err(closed_error(key, closed)),
            None => Err(KeyError::Missing(key.session)),
        }
    }

    /// Drops the keys of sessions that are deleted, at once.
    pub fn forget<'a>(&self, keys: impl IntoIterator<Item = &'a SessionKey>) {
        let mut cache = self.cache();
        for key in keys {
            cache.of(key).remove(key);
        }
        show(&cache);
    }

    /// Drops keys of sessions as their deletions are told on the topic `control`, until the shutdown. Only a configuration
    /// that cannot be used is an error.
    pub fn follow_deletions(
        &self,
        config: &ControlConfig,
        client_id: &str,
        shutdown: &Shutdown,
    ) -> Result<(), KafkaError> {
        let keys = self.clone();
        control::follow(config, client_id, shutdown.clone(), move |entry| {
            if let News::Deletion(key) = entry.news {
                keys.forget([&key]);
            }
        })
    }

    /// The same for whoever goes by other entries too, and by how many of them it has read.
    pub fn follow_closely(
        &self,
        config: &ControlConfig,
        client_id: &str,
        shutdown: &Shutdown,
        mut on_entry: impl FnMut(&Entry) + Send + 'static,
    ) -> Result<Following, KafkaError> {
        let keys = self.clone();
        control::follow_closely(config, client_id, shutdown.clone(), move |entry| {
            on_entry(&entry);
            if let News::Deletion(key) = entry.news {
                keys.forget([&key]);
            }
        })
    }

    /// The version under which keys are wrapped now.
    pub fn version(&self) -> Result<KeyVersion, KeyError> {
        Ok(self.keyring.current()?)
    }

    /// The storage's key as it is used now.
    pub async fn storage(&self) -> Result<StorageKey, KeyError> {
        self.storage_keys().current().await
    }

    /// The storage's key of this version.
    pub async fn storage_of(&self, version: KeyVersion) -> Result<Key, KeyError> {
        self.storage_keys().of(version).await
    }

    /// The storage's keys alone.
    pub fn storage_keys(&self) -> StorageKeys {
        StorageKeys::new(Arc::clone(&self.keyring))
    }

    async fn unwrap(&self, key: &SessionKey, wrapped: &Wrapped) -> Result<Key, KeyError> {
        let above = self.keyring.key(Owner::Workspace(key.workspace), wrapped.version).await?;
        wrapping::unwrap(&above, key, wrapped).map_err(|_| KeyError::NotUnwrapped(key.session))
    }

    /// Wraps keys of other versions under the current one, behind `after`, `limit` at most; `None` when there is nothing left.
    /// Nothing in S3 is touched, and a run that was cut short is gone on with by the next. A key that does not unwrap is passed
    /// over and named: it must not keep all others under a version that has to go.
    pub async fn rewrap(&self, after: Option<&SessionKey>, limit: i64) -> Result<Option<Rewrapped>, KeyError> {
        let version = self.keyring.current()?;
        let old = self.store.wrapped_otherwise(version, after, limit).await?;
        let Some((last, _)) = old.last().copied() else { return Ok(None) };
        let (mut changes, mut closed) = (Vec::with_capacity(old.len()), Vec::new());
        for (key, from) in old {
            let data_key = match self.unwrap(&key, &from).await {
                Ok(data_key) => data_key,
                Err(KeyError::NotUnwrapped(_) | KeyError::Keyring(KeyringError::Missing(_))) => {
                    closed.push(key);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let above = self.keyring.key(Owner::Workspace(key.workspace), version).await?;
            changes.push((key, from, wrapping::wrap(version, &above, &key, &data_key)?));
        }
        Ok(Some(Rewrapped { last, changed: self.store.rewrap(&changes).await?, closed }))
    }
}

/// Why a closed key cannot be had.
fn closed_error(key: &SessionKey, closed: Option<KeyVersion>) -> KeyError {
    match closed {
        None => KeyError::NotUnwrapped(key.session),
        Some(version) => KeyringError::Missing(version).into(),
    }
}

fn show(cache: &Cache) {
    ::metrics::gauge!(CACHED).set(cache.sessions.len() as f64);
}

/// What came of wrapping some keys anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rewrapped {
    /// The last that was looked at: the next call goes on behind it.
    pub last: SessionKey,
    /// How many are under the current version now.
    pub changed: u64,
    /// Those that do not unwrap, and stay as they are.
    pub closed: Vec<SessionKey>,
}
