//! The bytes of jobs: opens runs and parts, merges sessions into objects, sets aside what cannot be merged. Decides nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use schemas::limits::{MIB, S3_PART_BYTES};
use schemas::paths::ObjectKey;
use schemas::shared_object::SessionFilter;
use schemas::{ObjectId, SessionKey};
use sealing::Key;
use sealing::keyring::KeyringError;
use service_kit::pool::Pool;
use storage::footers::{self, Footer, FooterError};
use storage::index::runs::SessionResult;
use storage::index::{FooterAt, LiveObject, Uploaded};
use storage::objects::{Objects, Put, Upload};
use storage::reading::walk::{HELD_BYTES_MAX, Source};
use storage::reading::{FetchError, Fetching, Halt};
use storage::session_keys::{DataKey, KeyError, SessionKeys};

use crate::merge::{self, MergeError, Merging, Place, Unreadable};
use crate::metrics;

/// Objects that are fetched at once.
const TRANSFERS: usize = 8;
/// Of a merge, however small: zstd's tables, and two frames before they are compressed.
const MERGE_BYTES_MIN: u64 = 3 * MIB as u64;
/// Of an upload: what is gathered, and parts under way.
const UPLOAD_BYTES_MAX: u64 = 4 * S3_PART_BYTES;
/// How much larger a footer is in memory, plan included.
const FOOTER_OPENED: u64 = 40;

/// What jobs' bytes need.
#[derive(Debug)]
pub(crate) struct Worker {
    pub(crate) objects: Objects,
    pub(crate) keys: SessionKeys,
    pub(crate) pool: Pool,
}

/// The shared objects of a run, in memory.
#[derive(Debug)]
pub(crate) struct Run {
    sources: Arc<[Source]>,
    places: BTreeMap<SessionKey, Vec<Place>>,
}

impl Run {
    /// Its sessions, by id, with the bytes that merging each of them takes, about.
    pub(crate) fn sessions(&self) -> Vec<(SessionKey, u64)> {
        let chunk = |&(object, number): &Place| match &self.sources[object].footer {
            Footer::Shared(footer) => footer.chunks.get(number),
            Footer::Session(_) => None,
        };
        let bytes = |places: &Vec<Place>| {
            let (mut stored, mut largest) = (0, BTreeMap::<u32, u64>::new());
            for chunk in places.iter().filter_map(chunk) {
                stored += chunk.len();
                let batches = chunk.batches.iter().map(|batch| u64::from(batch.facts.raw_bytes));
                let of_stream = largest.entry(chunk.stream).or_default();
                *of_stream = batches.max().unwrap_or_default().max(*of_stream);
            }
            let loaded = largest.values().sum::<u64>().min(HELD_BYTES_MAX as u64);
            MERGE_BYTES_MIN + loaded + stored.min(UPLOAD_BYTES_MAX)
        };
        self.places.iter().map(|(key, places)| (*key, bytes(places))).collect()
    }

    /// Whether there are records in it that nobody can read.
    pub(crate) fn has_unreadable(&self) -> bool {
        self.sources.iter().any(|source| match &source.footer {
            Footer::Shared(footer) => !footer.quarantined.is_empty(),
            Footer::Session(_) => false,
        })
    }
}

/// The bytes that merging parts takes, about.
pub(crate) fn parts_bytes(parts: &[LiveObject]) -> u64 {
    let stored: u64 = parts.iter().map(|part| part.bytes).sum();
    let footers: u64 = parts.iter().map(|part| u64::from(part.footer.len)).sum();
    MERGE_BYTES_MIN + HELD_BYTES_MAX as u64 + stored.min(UPLOAD_BYTES_MAX) + footers * FOOTER_OPENED
}

/// The parts of a session; of their bytes only footers are in memory.
#[derive(Debug)]
pub(crate) struct Parts {
    sources: Arc<[Source]>,
}

/// What became of a session.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is one object, uploaded and seen in the bucket.
    Merged(Box<SessionResult>),
    /// What is stored of it is corrupt, or its key is missing.
    Unreadable,
    /// Its key was destroyed.
    Deleted,
}

impl Worker {
    /// Fetches the objects of a run, each once, and reads their footers. One whose footer is corrupt is taken for one unreadable
    /// piece, or it would hold up its partition for ever.
    pub(crate) async fn open_run(&self, objects: &[LiveObject]) -> anyhow::Result<Run> {
        // Owned, since the compiler does not see that closures which borrow give futures that can be sent.
        let opening = stream::iter(objects.to_vec()).map(|object| self.open_whole(object)).buffered(TRANSFERS);
        let sources: Vec<Source> = opening.try_collect().await?;
        // Found once: to look through all chunks for each session would cost their product.
        let mut places: BTreeMap<SessionKey, Vec<Place>> = BTreeMap::new();
        for (object, source) in sources.iter().enumerate() {
            if let Footer::Shared(footer) = &source.footer {
                for (number, chunk) in footer.chunks.iter().enumerate() {
                    places.entry(chunk.key).or_default().push((object, number));
                }
            }
        }
        Ok(Run { sources: sources.into(), places })
    }

    async fn open_whole(&self, object: LiveObject) -> anyhow::Result<Source> {
        let key = object.key;
        let body = self.objects.get(&key).await.with_context(|| format!("fetch {key}"))?;
        let (at, len) = (object.footer.at as usize, object.footer.len as usize);
        // A body that was cut short has no footer where the row says.
        if body.len() >= at + len {
            match footers::open(&self.keys, &self.pool, &object, body.slice(at..at + len)).await {
                Ok(footer) => return Ok(Source { key, footer, body: Some(body) }),
                Err(FooterError::Corrupt(_)) => {}
                Err(error) => return Err(error).with_context(|| format!("open footer of {key}")),
            }
        }
        let whole = merge::wholly_corrupt(key, body).with_context(|| format!("{key} is of another format"))?;
        tracing::error!(object = %key, "footer is corrupt; the object goes into quarantine");
        Ok(whole)
    }

    /// Asks for all keys of a run at once; each merge asks again, and finds them kept. A session that has none goes into
    /// quarantine, alone. Where most of a run's have none, it is not the keys that are wrong: the run waits, and says so, for
    /// what is in quarantine nobody reads.
    pub(crate) async fn check_keys(&self, sessions: &[SessionKey]) -> anyhow::Result<()> {
        let found = self.keys.find(sessions).await?;
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

    /// Merges what a run has of a session into an object of this name.
    pub(crate) async fn merge(&self, run: &Run, key: SessionKey, id: ObjectId) -> anyhow::Result<Outcome> {
        let places = run.places.get(&key).map(Vec::as_slice).unwrap_or_default();
        self.write(key, id, &run.sources, places).await
    }

    /// Opens a session's parts. `None` when the footer of one is corrupt.
    pub(crate) async fn open_parts(&self, parts: &[LiveObject]) -> anyhow::Result<Option<Parts>> {
        let mut sources = Vec::with_capacity(parts.len());
        for object in parts {
            let key = object.key;
            let region = self.objects.get_range(&key, object.footer.at, u64::from(object.footer.len)).await;
            let region = region.with_context(|| format!("fetch footer of {key}"))?;
            match footers::open(&self.keys, &self.pool, object, region).await {
                Ok(footer) => sources.push(Source { key, footer, body: None }),
                Err(FooterError::Corrupt(error)) => {
                    tracing::error!(object = %key, %error, "footer is corrupt; the session's parts stay as they are");
                    return Ok(None);
                }
                Err(error) => return Err(error).with_context(|| format!("open footer of {key}")),
            }
        }
        Ok(Some(Parts { sources: sources.into() }))
    }

    /// Merges a session's parts into an object of this name.
    pub(crate) async fn merge_parts(&self, parts: &Parts, key: SessionKey, id: ObjectId) -> anyhow::Result<Outcome> {
        let outcome = self.write(key, id, &parts.sources, &[]).await?;
        Ok(match outcome {
            Outcome::Merged(mut result) => {
                result.replaces = parts.sources.iter().map(|source| source.key.id()).collect();
                Outcome::Merged(result)
            }
            other => other,
        })
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
                tracing::error!(session = %key.session, %error, "session's key does not open; it cannot be merged");
                Ok(Err(Outcome::Unreadable))
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn write(
        &self,
        key: SessionKey,
        id: ObjectId,
        sources: &Arc<[Source]>,
        places: &[Place],
    ) -> anyhow::Result<Outcome> {
        let data_key = match self.key(&key).await? {
            Ok(data_key) => data_key,
            Err(outcome) => return Ok(outcome),
        };
        let mut merging = Some(Merging::new(id, key, &data_key, sources, places)?);
        drop(data_key);
        let mut upload = self.objects.upload(ObjectKey::Session { key, id });
        let written = self.copy(key, &mut merging, &mut upload).await;
        let (merging, written) = match (merging, written) {
            (Some(merging), Ok(())) => (merging, self.end(upload).await?),
            (_, written) => {
                upload.give_up().await;
                return written.map_or_else(|error| stopped(&key, error), |()| Ok(Outcome::Deleted));
            }
        };
        let object = row(id, written, merging.footer(), None, 0);
        let (totals, ended) = (merging.plan().totals(), merging.plan().completeness().ended);
        Ok(Outcome::Merged(Box::new(SessionResult { key, object, replaces: Vec::new(), totals, ended })))
    }

    /// Bytes go up while the next ones are made.
    async fn copy(
        &self,
        session: SessionKey,
        merging: &mut Option<Merging>,
        upload: &mut Upload,
    ) -> Result<(), Stopped> {
        let mut fetching = Fetching::new(self.objects.clone(), self.keys.clone(), self.pool.clone(), session);
        loop {
            let halt = fetching.advance(merging).await?;
            let bytes = merging.as_mut().map(Merging::take).unwrap_or_default();
            upload.write(&bytes).await.with_context(|| format!("put an object of session {}", session.session))?;
            if halt == Halt::Done {
                return Ok(());
            }
        }
    }

    /// Ends an upload and reads it back: what is published was seen in the bucket.
    async fn end(&self, upload: Upload) -> anyhow::Result<Put> {
        let key = upload.key();
        let put = upload.finish().await.with_context(|| format!("put {key}"))?;
        let found = self.objects.hash(&key).await.with_context(|| format!("read back {key}"))?;
        anyhow::ensure!(found == put.sha256, "{key} reads back otherwise than it was put");
        ::metrics::counter!(metrics::OBJECTS).increment(1);
        ::metrics::counter!(metrics::OBJECT_BYTES).increment(put.bytes);
        Ok(put)
    }

    /// Puts what of a run cannot be read into an object, byte for byte, and reads it back. The filter is that of the sessions that it
    /// holds chunks of; `None` when it may hold those of any.
    pub(crate) async fn quarantine(
        &self,
        run: &Run,
        partition: i32,
        id: ObjectId,
        sessions: &[SessionKey],
    ) -> anyhow::Result<(Uploaded, Option<SessionFilter>)> {
        let mut unreadable = Unreadable::records_of(&run.sources);
        for session in sessions {
            unreadable.add_session(run.places.get(session).map(Vec::as_slice).unwrap_or_default(), &run.sources);
        }
        anyhow::ensure!(!unreadable.is_empty(), "nothing of the run goes into quarantine");
        let storage = self.keys.storage().await?;
        let object = unreadable.object(id, partition, &storage)?;
        let mut upload = self.objects.upload(ObjectKey::Quarantine { partition, id });
        for piece in &object.pieces {
            upload.write(piece).await.context("put quarantine object")?;
        }
        let put = self.end(upload).await?;
        ::metrics::counter!(metrics::QUARANTINED).increment(unreadable.len() as u64);
        Ok((row(id, put, object.footer, Some(storage.version), object.quarantined), unreadable.filter()))
    }
}

/// Why a merge stopped.
enum Stopped {
    Work(FetchError<MergeError>),
    Other(anyhow::Error),
}

impl From<FetchError<MergeError>> for Stopped {
    fn from(error: FetchError<MergeError>) -> Self {
        Self::Work(error)
    }
}

impl From<anyhow::Error> for Stopped {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

fn stopped(key: &SessionKey, stopped: Stopped) -> anyhow::Result<Outcome> {
    match stopped {
        Stopped::Work(FetchError::Key(KeyError::Shredded(_))) => Ok(Outcome::Deleted),
        Stopped::Work(FetchError::Work(error @ (MergeError::Corrupt(_) | MergeError::TooLarge(_)))) => {
            let error = service_kit::telemetry::chain(&error);
            tracing::error!(session = %key.session, %error, "session cannot be merged; what is corrupt goes into quarantine");
            Ok(Outcome::Unreadable)
        }
        Stopped::Work(FetchError::Work(error)) => Err(error.into()),
        Stopped::Work(FetchError::Object { key, source }) => Err(source).with_context(|| format!("fetch {key}")),
        Stopped::Work(FetchError::Key(error)) => Err(error.into()),
        Stopped::Work(FetchError::Pool(error)) => Err(error.into()),
        Stopped::Other(error) => Err(error),
    }
}

fn row(
    id: ObjectId,
    put: Put,
    footer: FooterAt,
    key_version: Option<sealing::keyring::KeyVersion>,
    quarantined: usize,
) -> Uploaded {
    Uploaded { id, bytes: put.bytes, sha256: put.sha256, footer, key_version, quarantined }
}
