//! The bytes of jobs: opens runs and parts, merges sessions into objects, sets aside what cannot be merged. Decides nothing.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use schemas::limits::{DECODED_BYTES_MAX, MIB};
use schemas::paths::ObjectKey;
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

use crate::merge::{self, Lasting, MergeError, Merging, Place, Unreadable};
use crate::metrics;

/// Objects that are fetched at once.
const TRANSFERS: usize = 8;
/// Of a merge, however small: zstd's tables, and a frame before it is compressed and after.
const MERGE_BYTES_MIN: u64 = 3 * MIB as u64;
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
    pub(crate) fn sessions(&self, uploads: &Objects) -> Vec<(SessionKey, u64)> {
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
            // Batches that are held, the one that is taken in, and the event of it that is on its way into a frame.
            let held = largest.values().sum::<u64>().min(HELD_BYTES_MAX as u64);
            let taken_in = largest.values().max().copied().unwrap_or_default() * 2;
            MERGE_BYTES_MIN + held + taken_in + uploads.upload_held(stored)
        };
        self.places.iter().map(|(key, places)| (*key, bytes(places))).collect()
    }

    fn damaged(&self) -> impl Iterator<Item = &Source> {
        self.sources.iter().filter(|source| merge::is_wholly_corrupt(source))
    }

    /// Whether most of its objects are gone, or have no footer that opens.
    pub(crate) fn is_mostly_damaged(&self) -> bool {
        self.damaged().count() * 2 > self.sources.len()
    }

    /// Says which of its objects are lost.
    pub(crate) fn tell_damage(&self) {
        for source in self.damaged() {
            let is_gone = source.body.as_ref().is_none_or(Bytes::is_empty);
            let what =
                if is_gone { "is gone; without a byte it is listed" } else { "has a corrupt footer; it goes whole" };
            tracing::error!(object = %source.key, "object {what} in quarantine");
        }
    }

    /// Whether there are records in it that nobody can read.
    pub(crate) fn has_unreadable(&self) -> bool {
        self.sources.iter().any(|source| match &source.footer {
            Footer::Shared(footer) => !footer.quarantined.is_empty(),
            Footer::Session(_) => false,
        })
    }
}

/// The bytes that footers of objects take once they are open, about.
pub(crate) fn footers_bytes(objects: &[LiveObject]) -> u64 {
    objects.iter().map(|object| u64::from(object.footer.len)).sum::<u64>() * FOOTER_OPENED
}

/// The bytes that merging parts takes, about, of so many bytes of events.
pub(crate) fn parts_bytes(parts: &[LiveObject], raw_bytes: u64, uploads: &Objects) -> u64 {
    let stored: u64 = parts.iter().map(|part| part.bytes).sum();
    let held = raw_bytes.min(HELD_BYTES_MAX as u64);
    // How large its batches are is known once the footers are open.
    let taken_in = raw_bytes.min(DECODED_BYTES_MAX as u64) * 2;
    MERGE_BYTES_MIN + held + taken_in + uploads.upload_held(stored) + footers_bytes(parts)
}

/// What became of a session.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// It is one object, uploaded and seen in the bucket, but for these chunks, which are corrupt.
    Merged(Box<SessionResult>, Vec<Place>),
    /// All that is stored of it is corrupt, or its key is missing: these chunks.
    Unreadable(Vec<Place>),
    /// Its key was destroyed.
    Deleted,
}

/// What came of one try to merge a session.
enum Attempt {
    Merged(Box<SessionResult>),
    /// This chunk is corrupt, or something that is no chunk.
    Corrupt(Option<Place>),
    /// Its key does not open.
    Closed,
    Deleted,
}

impl Worker {
    /// Fetches the objects of a run, each once, and reads their footers. One whose footer is corrupt is taken for one unreadable
    /// piece, and one that is gone for an empty one, or it would hold up its partition for ever.
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
        let body = match self.objects.get(&key).await {
            Ok(body) => body,
            Err(error) if error.is_damage() => Bytes::new(),
            Err(error) => return Err(error).with_context(|| format!("fetch {key}")),
        };
        let (at, len) = (object.footer.at as usize, object.footer.len as usize);
        // A body that was cut short has no footer where the row says.
        if body.len() >= at + len {
            match footers::open(&self.keys, &self.pool, &object, body.slice(at..at + len)).await {
                Ok(footer) => return Ok(Source { key, footer, body: Some(body) }),
                Err(FooterError::Corrupt(_)) => {}
                Err(error) => return Err(error).with_context(|| format!("open footer of {key}")),
            }
        }
        merge::wholly_corrupt(key, body).with_context(|| format!("{key} is of another format"))
    }

    /// Whether one of these objects opens. Where none does it is the keyring or the bucket that is wrong, not the objects of the run: it
    /// waits, and says so, for what it is swapped for nobody takes back.
    pub(crate) async fn check_others(&self, others: &[LiveObject]) -> anyhow::Result<()> {
        for object in others {
            if footers::fetch(&self.objects, &self.keys, &self.pool, object).await.is_ok() {
                return Ok(());
            }
        }
        anyhow::bail!(
            "most objects of a run are not in the bucket, or have no footer that opens, and none of {} others does\n  hint: are \
             these the bucket and prefix that they were written to, and the keyring that they were written with?",
            others.len()
        )
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

    /// Merges what a run has of a session into an object of this name: all that can be read.
    pub(crate) async fn merge(
        &self,
        run: &Run,
        key: SessionKey,
        id: ObjectId,
        lasting: Lasting,
    ) -> anyhow::Result<Outcome> {
        let mut places = run.places.get(&key).cloned().unwrap_or_default();
        let mut aside = Vec::new();
        loop {
            // A try that failed has put nothing under the name: an upload is ended last.
            match self.write(key, id, &run.sources, &places, lasting).await? {
                Attempt::Merged(result) => return Ok(Outcome::Merged(result, aside)),
                Attempt::Deleted => return Ok(Outcome::Deleted),
                Attempt::Corrupt(Some(corrupt)) if places.len() > 1 && places.contains(&corrupt) => {
                    places.retain(|place| *place != corrupt);
                    aside.push(corrupt);
                }
                Attempt::Corrupt(_) | Attempt::Closed => {
                    aside.append(&mut places);
                    return Ok(Outcome::Unreadable(aside));
                }
            }
        }
    }

    /// Opens a session's parts. `None` when the footer of one is corrupt or gone.
    async fn open_parts(&self, parts: &[LiveObject]) -> anyhow::Result<Option<Arc<[Source]>>> {
        let mut sources = Vec::with_capacity(parts.len());
        for object in parts {
            let key = object.key;
            match footers::fetch(&self.objects, &self.keys, &self.pool, object).await {
                Ok(footer) => sources.push(Source { key, footer, body: None }),
                Err(FooterError::Corrupt(error)) => return Ok(left(&key, &error)),
                Err(FooterError::Object(error)) if error.is_damage() => return Ok(left(&key, &error)),
                Err(error) => return Err(error).with_context(|| format!("open footer of {key}")),
            }
        }
        Ok(Some(sources.into()))
    }

    /// Merges a session's parts into an object of this name.
    pub(crate) async fn merge_parts(
        &self,
        parts: &[LiveObject],
        key: SessionKey,
        id: ObjectId,
    ) -> anyhow::Result<Outcome> {
        // Their footers are under the same key.
        let attempt = match self.key(&key).await? {
            Err(attempt) => attempt,
            Ok(_) => match self.open_parts(parts).await? {
                Some(sources) => self.write(key, id, &sources, &[], Lasting::Kept).await?,
                None => Attempt::Corrupt(None),
            },
        };
        Ok(match attempt {
            Attempt::Merged(mut result) => {
                result.replaces = parts.iter().map(|part| part.key.id()).collect();
                Outcome::Merged(result, Vec::new())
            }
            Attempt::Deleted => Outcome::Deleted,
            Attempt::Corrupt(_) | Attempt::Closed => Outcome::Unreadable(Vec::new()),
        })
    }

    /// The key of a session that is to be merged.
    async fn key(&self, key: &SessionKey) -> anyhow::Result<Result<Key, Attempt>> {
        match self.keys.key(key).await {
            Ok(data_key) => Ok(Ok(data_key)),
            // It is on its way out.
            Err(KeyError::Shredded(_)) => Ok(Err(Attempt::Deleted)),
            Err(
                error
                @ (KeyError::Missing(_) | KeyError::NotUnwrapped(_) | KeyError::Keyring(KeyringError::Missing(_))),
            ) => {
                tracing::error!(session = %key.session, %error, "session's key does not open; it cannot be merged");
                Ok(Err(Attempt::Closed))
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
        lasting: Lasting,
    ) -> anyhow::Result<Attempt> {
        let data_key = match self.key(&key).await? {
            Ok(data_key) => data_key,
            Err(attempt) => return Ok(attempt),
        };
        let mut merging = Some(Merging::new(id, key, &data_key, sources, places, lasting)?);
        drop(data_key);
        let mut upload = self.objects.upload(ObjectKey::Session { key, id });
        let written = self.copy(key, &mut merging, &mut upload).await;
        if let Err(error) = written {
            upload.give_up().await;
            return stopped(&key, error);
        }
        let merging = merging.context("the work of a merge is gone")?;
        let written = self.end(upload).await?;
        let object = row(id, written, merging.footer(), None, 0);
        let (totals, ended) = (merging.plan().totals(), merging.plan().completeness().ended);
        Ok(Attempt::Merged(Box::new(SessionResult { key, object, replaces: Vec::new(), totals, ended })))
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

    /// Puts a session's chunks that cannot be merged into an object, byte for byte, and reads it back.
    pub(crate) async fn set_chunks_aside(
        &self,
        run: &Run,
        partition: i32,
        id: ObjectId,
        chunks: &[Place],
    ) -> anyhow::Result<Uploaded> {
        let mut unreadable = Unreadable::default();
        unreadable.add_chunks(chunks, &run.sources);
        self.set_aside(unreadable, partition, id).await
    }

    /// The same for what is nobody's: records that nobody can read, and objects whose footers are corrupt, which it gives.
    pub(crate) async fn set_records_aside(
        &self,
        run: &Run,
        partition: i32,
        id: ObjectId,
    ) -> anyhow::Result<(Uploaded, Vec<ObjectId>)> {
        let whole = run.sources.iter().filter(|source| merge::is_wholly_corrupt(source));
        let whole = whole.map(|source| source.key.id()).collect();
        Ok((self.set_aside(Unreadable::records_of(&run.sources), partition, id).await?, whole))
    }

    async fn set_aside(&self, unreadable: Unreadable, partition: i32, id: ObjectId) -> anyhow::Result<Uploaded> {
        anyhow::ensure!(!unreadable.is_empty(), "nothing of the run goes into quarantine");
        let storage = self.keys.storage().await?;
        let object = unreadable.object(id, partition, &storage)?;
        let mut upload = self.objects.upload(ObjectKey::Quarantine { partition, id });
        for piece in &object.pieces {
            upload.write(piece).await.context("put quarantine object")?;
        }
        let put = self.end(upload).await?;
        ::metrics::counter!(metrics::QUARANTINED).increment(unreadable.len() as u64);
        Ok(row(id, put, object.footer, Some(storage.version), object.quarantined))
    }
}

/// Says that parts are not merged, since this one cannot be.
fn left<T>(part: &ObjectKey, error: &impl std::fmt::Display) -> Option<T> {
    tracing::error!(object = %part, %error, "footer is corrupt or gone; the session's parts stay as they are");
    None
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

fn stopped(key: &SessionKey, stopped: Stopped) -> anyhow::Result<Attempt> {
    match stopped {
        Stopped::Work(FetchError::Key(KeyError::Shredded(_))) => Ok(Attempt::Deleted),
        Stopped::Work(FetchError::Work(error @ (MergeError::Corrupt(_) | MergeError::TooLarge(_)))) => {
            let chunk = if let MergeError::Corrupt(corrupt) = &error { corrupt.chunk } else { None };
            let error = service_kit::telemetry::chain(&error);
            let session = key.session;
            match chunk {
                Some(_) => tracing::error!(%session, %error, "session's chunk is corrupt; it goes into quarantine"),
                None => tracing::error!(%session, %error, "session cannot be merged"),
            }
            Ok(Attempt::Corrupt(chunk))
        }
        Stopped::Work(FetchError::Work(error)) => Err(error.into()),
        Stopped::Work(FetchError::Object { key: object, source }) if source.is_damage() => {
            tracing::error!(session = %key.session, %object, error = %source, "session cannot be merged; its parts stay as they are");
            Ok(Attempt::Corrupt(None))
        }
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
