//! The compactor's loop: finds runs and sessions that are over, merges them, swaps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context as _;
use engine::compaction::{Candidate, choose_run};
use engine::merge::Plan;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use schemas::paths::ObjectKey;
use schemas::{ObjectId, SessionKey};
use sealing::Key;
use sealing::keyring::KeyringError;
use service_kit::keys;
use service_kit::passes;
use service_kit::pool::Pool;
use service_kit::service::Surroundings;
use storage::Schema;
use storage::footers::{self, Footer, FooterError};
use storage::index::runs::{OpenSession, SessionResult, SharedRow};
use storage::index::{Index, LiveObject};
use storage::objects::{Objects, sha256};
use storage::session_keys::{DataKey, KeyError, SessionKeys};
use uuid::Uuid;

use crate::merge::{self, Loaded, MergeError, Merged, Place, Unreadable};
use crate::{Config, metrics};

/// Uploads and downloads at once.
const TRANSFERS: usize = 8;
/// Sessions that are made final in one pass.
const FINALS_PER_PASS: i64 = 200;

struct Compactor {
    config: Config,
    index: Index,
    objects: Objects,
    keys: SessionKeys,
    pool: Pool,
    /// Marks this process's claims.
    owner: Uuid,
}

/// Merges until the shutdown. A run in progress is finished; were the process killed, its lease would run out.
pub async fn run(config: Config, surroundings: Surroundings) -> anyhow::Result<()> {
    let Surroundings { health, shutdown, .. } = surroundings;
    service_kit::telemetry::describe(metrics::ALL);
    let keyring = keys::keyring::open(&config.keys.keyring, &shutdown)?;
    let connecting =
        storage::connect(&config.postgres, &config.keystore, &config.s3, Schema::Await, &health, &shutdown);
    let Some(stores) = connecting.await? else { return Ok(()) };
    let pool = Pool::new("compactor", None).context("start pool")?;
    let interval = config.pass_interval;
    let session_keys = SessionKeys::new(stores.keystore, keyring, config.keys.cache, &shutdown);
    session_keys.follow_deletions(&config.control, "compactor", &shutdown).context("follow control entries")?;
    let (index, objects) = (stores.index, stores.objects);
    let compactor = Compactor { config, index, objects, keys: session_keys, pool, owner: Uuid::now_v7() };
    passes::run(&shutdown, interval, &stores.postgres, metrics::FAILURES, async || compactor.pass().await).await;
    Ok(())
}

impl Compactor {
    /// One look at all there is to do; whether anything was done.
    async fn pass(&self) -> anyhow::Result<bool> {
        let rows = self.index.shared_objects(&self.config.topic).await?;
        let oldest = rows.iter().map(|row| row.age).max().unwrap_or_default();
        ::metrics::gauge!(metrics::OLDEST).set(oldest.as_secs_f64());
        let mut worked = false;
        let mut failed = None;
        // What fails for one partition or session must not hold up the others.
        for partition in rows.chunk_by(|one, other| one.partition == other.partition) {
            match self.compact_partition(partition).await {
                Ok(done) => worked |= done,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        for session in self.index.sessions_over(self.config.silence, FINALS_PER_PASS).await? {
            match self.finish_session(&session).await {
                Ok(done) => worked |= done,
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(worked), Err)
    }

    async fn compact_partition(&self, rows: &[SharedRow]) -> anyhow::Result<bool> {
        let Some(first) = rows.first() else { return Ok(false) };
        // Neighbours only: what is behind a claimed object waits.
        let candidates: Vec<Candidate> = rows
            .iter()
            .take_while(|row| !row.leased)
            .map(|row| Candidate { id: row.id, bytes: row.bytes, age_ms: row.age.as_millis() as u64 })
            .collect();
        let Some(run) = choose_run(&self.config.runs, &candidates) else { return Ok(false) };
        let Some(objects) = self.index.claim_run(&run, self.owner, self.config.lease).await? else {
            return Ok(false);
        };
        let begun = Instant::now();
        let merged = self.merge_run(first.partition, &run, &objects).await;
        if merged.is_err() {
            self.index.release_run(&run, self.owner).await?;
        }
        let swapped = merged?;
        if swapped {
            ::metrics::counter!(metrics::RUNS).increment(1);
            ::metrics::counter!(metrics::RUN_BYTES).increment(objects.iter().map(|object| object.bytes).sum());
            ::metrics::histogram!(metrics::RUN_SECONDS).record(begun.elapsed().as_secs_f64());
        } else {
            ::metrics::counter!(metrics::LOST).increment(1);
            self.index.release_run(&run, self.owner).await?;
        }
        Ok(swapped)
    }

    async fn merge_run(&self, partition: i32, run: &[ObjectId], objects: &[LiveObject]) -> anyhow::Result<bool> {
        let loaded = match self.load(objects).await? {
            Ok(loaded) => Arc::new(loaded),
            Err(_) => Arc::new(self.load_corrupt(objects).await?),
        };
        let places = places_in(&loaded);
        let keys: Vec<SessionKey> = places.keys().copied().collect();
        let mut deleted = self.index.deleted_among(&keys).await?;
        deleted.sort_unstable();
        let is_wanted = |key: &SessionKey| deleted.binary_search(key).is_err();
        let wanted: Vec<(SessionKey, ObjectId)> =
            keys.into_iter().filter(is_wanted).map(|key| (key, ObjectId(Uuid::now_v7()))).collect();
        self.keys.forget(&deleted);
        self.check_keys(&wanted).await?;
        let live = self.index.stage_session_objects(&wanted).await?;
        let wanted = wanted.into_iter().filter(|(key, _)| live.binary_search(key).is_ok());
        let outcomes: Vec<Outcome> = stream::iter(wanted)
            .map(|(key, id)| {
                let places = places.get(&key).cloned().unwrap_or_default();
                self.merge_session(key, id, places, Arc::clone(&loaded))
            })
            .buffer_unordered(TRANSFERS)
            .try_collect()
            .await?;
        let mut results = Vec::new();
        let mut unreadable = Unreadable::records_of(&loaded);
        for outcome in outcomes {
            match outcome {
                Outcome::Merged(result) => results.push(*result),
                Outcome::Unreadable(key) => unreadable.add_session(key, &loaded),
                Outcome::Deleted => {}
            }
        }
        // Sessions are locked in id order.
        results.sort_by_key(|result| result.key);
        let filter = unreadable.filter();
        let quarantine = if unreadable.is_empty() {
            None
        } else {
            ::metrics::counter!(metrics::QUARANTINED).increment(unreadable.len() as u64);
            let id = ObjectId(Uuid::now_v7());
            self.index.stage_quarantine(id, &self.config.topic, partition).await?;
            let storage = self.keys.storage().await?;
            let object = self.pool.run(move || unreadable.object(id, partition, &storage)).await??;
            self.put(ObjectKey::Quarantine { partition, id }, &object).await?;
            Some(object.row)
        };
        let quarantine = quarantine.as_ref().map(|row| (row, filter.as_ref()));
        Ok(self.index.publish_run(run, self.owner, &results, quarantine).await?)
    }

    /// Asks for all keys of a run at once; each merge asks again, and finds them kept. A session that has none goes into
    /// quarantine, alone. Where most of a run's have none, it is not the keys that are wrong: the run waits, and says so, for
    /// what is in quarantine nobody reads.
    async fn check_keys(&self, wanted: &[(SessionKey, ObjectId)]) -> anyhow::Result<()> {
        let sessions: Vec<SessionKey> = wanted.iter().map(|(key, _)| *key).collect();
        let found = self.keys.find(&sessions).await?;
        let is_usable = |found: &DataKey| !matches!(found, DataKey::Closed(_));
        let without = sessions.len() - found.values().filter(|found| is_usable(found)).count();
        anyhow::ensure!(
            without < 2 || without * 2 <= sessions.len(),
            "{without} of {} sessions of a run have no key that opens\n  hint: is this the key store that they were written \
             with, and the keyring that wrapped their keys?",
            sessions.len()
        );
        Ok(())
    }

    /// The key of a session that is to be merged.
    async fn key(&self, key: &SessionKey) -> anyhow::Result<Result<Key, Outcome>> {
        match self.keys.key(key).await {
            Ok(data_key) => Ok(Ok(data_key)),
            // It is on its way out.
            Err(KeyError::Shredded(_)) => Ok(Err(Outcome::Deleted)),
            Err(
                error
                @ (KeyError::Missing(_) | KeyError::NotUnwrapped(_) | KeyError::Keyring(KeyringError::Missing(_))),
            ) => {
                tracing::error!(session = %key.session, %error, "session's chunks cannot be opened; they go into quarantine");
                Ok(Err(Outcome::Unreadable(*key)))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn merge_session(
        &self,
        key: SessionKey,
        id: ObjectId,
        places: Vec<Place>,
        loaded: Arc<Vec<Loaded>>,
    ) -> anyhow::Result<Outcome> {
        let data_key = match self.key(&key).await? {
            Ok(data_key) => data_key,
            Err(outcome) => return Ok(outcome),
        };
        let merging = move || {
            let plan = merge::plan_of(&places, &loaded);
            let merged = merge::merge(id, key, &data_key, &plan, &loaded, &places);
            (plan, merged)
        };
        let (plan, merged) = self.pool.run(merging).await?;
        let merged = match merged {
            Ok(merged) => merged,
            Err(MergeError::Corrupt(error)) => {
                tracing::error!(session = %key.session, %error, "session's chunks are corrupt; they go into quarantine");
                return Ok(Outcome::Unreadable(key));
            }
            Err(error @ MergeError::Seal(_)) => return Err(error.into()),
        };
        self.put(ObjectKey::Session { key, id }, &merged).await?;
        Ok(Outcome::Merged(Box::new(result_of(key, &plan, merged, Vec::new()))))
    }

    /// A session that is over becomes one object, once nothing of it is left in shared ones.
    async fn finish_session(&self, session: &OpenSession) -> anyhow::Result<bool> {
        let key = session.key;
        if self.index.may_be_shared(&key, &session.partitions).await? {
            return Ok(false);
        }
        let parts = self.index.session_objects(&key).await?;
        // All parts are held in memory. A session that is too large for it is read from its parts as well.
        let bytes: u64 = parts.iter().map(|part| part.bytes).sum();
        if parts.len() == 1 || bytes > self.config.runs.run_bytes_max {
            return self.leave_parts(&key, &parts).await;
        }
        let data_key = match self.key(&key).await? {
            Ok(data_key) => data_key,
            Err(Outcome::Unreadable(_)) => return self.leave_parts(&key, &parts).await,
            Err(_) => return Ok(false),
        };
        let loaded = match self.load(&parts).await? {
            Ok(loaded) => Arc::new(loaded),
            Err(corrupt) => {
                tracing::error!(session = %key.session, object = %corrupt, "footer is corrupt; the parts stay as they are");
                return self.leave_parts(&key, &parts).await;
            }
        };
        let id = ObjectId(Uuid::now_v7());
        if self.index.stage_session_objects(&[(key, id)]).await?.is_empty() {
            return Ok(false);
        }
        let merging = move || {
            let plan = merge::plan_of(&[], &loaded);
            merge::merge(id, key, &data_key, &plan, &loaded, &[]).map(|merged| (plan, merged))
        };
        let (plan, merged) = match self.pool.run(merging).await? {
            Ok(merged) => merged,
            Err(error @ MergeError::Seal(_)) => return Err(error.into()),
            Err(MergeError::Corrupt(error)) => {
                tracing::error!(session = %key.session, %error, "parts are corrupt; they stay as they are");
                return self.leave_parts(&key, &parts).await;
            }
        };
        self.put(ObjectKey::Session { key, id }, &merged).await?;
        let replaces = parts.iter().map(|part| part.key.id()).collect();
        let swapped = self.index.publish_final(&result_of(key, &plan, merged, replaces)).await?;
        let counter = if swapped { metrics::FINALS } else { metrics::LOST };
        ::metrics::counter!(counter).increment(1);
        Ok(swapped)
    }

    /// Parts that stay what they are: trying again would change nothing.
    async fn leave_parts(&self, key: &SessionKey, parts: &[LiveObject]) -> anyhow::Result<bool> {
        let ids: Vec<ObjectId> = parts.iter().map(|part| part.key.id()).collect();
        let marked = self.index.mark_final(key, &ids).await?;
        ::metrics::counter!(metrics::FINALS).increment(u64::from(marked));
        Ok(marked)
    }

    /// Fetches whole objects and reads their footers; the key of one whose footer is corrupt, if any is.
    async fn load(&self, objects: &[LiveObject]) -> anyhow::Result<Result<Vec<Loaded>, ObjectKey>> {
        let loaded: Vec<Result<Loaded, ObjectKey>> = stream::iter(objects)
            .map(|object| async move {
                let key = object.key;
                let body = self.objects.get(&key).await.with_context(|| format!("fetch {key}"))?;
                let (at, len) = (object.footer.at as usize, object.footer.len as usize);
                // A body that was cut short has no footer where the row says.
                if body.len() < at + len {
                    return Ok(Err(key));
                }
                match footers::open(&self.keys, &self.pool, object, body.slice(at..at + len)).await {
                    Ok(footer) => Ok::<_, anyhow::Error>(Ok(Loaded { body, footer })),
                    Err(FooterError::Corrupt(_)) => Ok(Err(key)),
                    Err(error) => Err(error).with_context(|| format!("open footer of {key}")),
                }
            })
            .buffered(TRANSFERS)
            .try_collect()
            .await?;
        Ok(loaded.into_iter().collect())
    }

    /// A run of which some footer is corrupt: such an object goes into quarantine as a whole, or it would hold up its
    /// partition for ever.
    async fn load_corrupt(&self, objects: &[LiveObject]) -> anyhow::Result<Vec<Loaded>> {
        let mut all = Vec::with_capacity(objects.len());
        for object in objects {
            match self.load(std::slice::from_ref(object)).await? {
                Ok(loaded) => all.extend(loaded),
                Err(key) => {
                    let body = self.objects.get(&key).await.with_context(|| format!("fetch {key}"))?;
                    all.push(
                        merge::wholly_corrupt(key.id(), body).with_context(|| format!("{key} is of another format"))?,
                    );
                    tracing::error!(object = %key, "footer is corrupt; the object goes into quarantine");
                }
            }
        }
        Ok(all)
    }

    /// Uploads an object and reads it back: what is published was seen in the bucket.
    async fn put(&self, key: ObjectKey, object: &Merged) -> anyhow::Result<()> {
        self.objects.put(&key, object.body.clone(), &object.row.sha256).await.with_context(|| format!("put {key}"))?;
        let stored = self.objects.get(&key).await.with_context(|| format!("read back {key}"))?;
        anyhow::ensure!(sha256(&stored) == object.row.sha256, "{key} reads back otherwise than it was put");
        ::metrics::counter!(metrics::OBJECTS).increment(1);
        ::metrics::counter!(metrics::OBJECT_BYTES).increment(object.row.bytes);
        Ok(())
    }
}

enum Outcome {
    Merged(Box<SessionResult>),
    /// Its chunks are corrupt, or its key is missing.
    Unreadable(SessionKey),
    /// Its key was destroyed.
    Deleted,
}

fn result_of(key: SessionKey, plan: &Plan, merged: Merged, replaces: Vec<ObjectId>) -> SessionResult {
    SessionResult { key, object: merged.row, replaces, totals: plan.totals(), ended: plan.completeness().ended }
}

/// Where each session's chunks are in these objects, by id. Found once: to look through all chunks for each session
/// would cost their product.
fn places_in(loaded: &[Loaded]) -> BTreeMap<SessionKey, Vec<Place>> {
    let mut places: BTreeMap<SessionKey, Vec<Place>> = BTreeMap::new();
    for (object, source) in loaded.iter().enumerate() {
        if let Footer::Shared(footer) = &source.footer {
            for (number, chunk) in footer.chunks.iter().enumerate() {
                places.entry(chunk.key).or_default().push((object, number));
            }
        }
    }
    places
}
