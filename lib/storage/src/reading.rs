//! Reading a session: its own objects, then the shared ones that may hold some of it, as one [`Plan`].
//!
//! Footers never change, so they are cached by object. Bytes are fetched when their turn comes; a reader holds one batch
//! per stream that is being read, and a few pieces of objects. Opening and decompressing run on the pool. The session's key
//! is asked for again with every piece: a reading that goes on for long ends once the key was destroyed (R2).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::merge::{Location, Merger, Mismatch, Plan, Range, SharedSource, Step};
use futures::future::BoxFuture;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use schemas::codec::{self, FormatError};
use schemas::paths::ObjectKey;
use schemas::stream_note::StreamNote;
use schemas::{ObjectId, SessionKey, limits, session_object, shared_object};
use sealing::frames::{FrameAt, Opener};
use sealing::objects::{self as sealed, OpenError, frame_at};
use service_kit::pool::{Panicked, Pool};
use thiserror::Error;

use crate::footers::{self, Footer, FooterError};
use crate::index::sessions::{Found, Snapshot};
use crate::index::{Index, IndexError, LiveObject};
use crate::objects::{ObjectError, Objects};
use crate::session_keys::{KeyError, SessionKeys};
use crate::stream_notes::Search;

/// Footers that are kept, as far as memory goes.
const FOOTERS_CACHED_MAX: usize = 4_096;
/// Pieces of objects that one reader keeps: a chunk or a frame is used by neighbouring batches.
const PIECES_KEPT_MAX: usize = 8;
/// Footers that are fetched at once where notes are looked for.
const FOOTERS_AT_ONCE: usize = 8;
/// Bytes of events that are given out at once.
const OUTPUT_BYTES: usize = 64 * limits::KIB;

/// Why a session cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The index.
    #[error("ask the index")]
    Index(#[from] IndexError),
    /// The bucket.
    #[error("fetch {key}")]
    Object {
        /// Which object.
        key: ObjectKey,
        /// Why.
        source: ObjectError,
    },
    /// An object is not what it should be.
    #[error("object {key} is corrupt: {reason}")]
    Corrupt {
        /// Which object.
        key: ObjectKey,
        /// What is wrong.
        reason: String,
    },
    /// The session's key, or the storage's, cannot be had.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The pool.
    #[error(transparent)]
    Pool(#[from] Panicked),
    /// The session was deleted while it was read.
    #[error("session was deleted")]
    Deleted,
    /// Nobody takes the events any more.
    #[error("reader hung up")]
    HungUp,
}

fn corrupt<E: Into<OpenError>>(key: ObjectKey) -> impl FnOnce(E) -> ReadError {
    move |reason| ReadError::Corrupt { key, reason: reason.into().to_string() }
}

/// What a footer costs in memory: of thousands of batches it has more than a mebibyte.
#[derive(Debug, Clone)]
struct FooterCost;

impl Weighter<ObjectId, Footer> for FooterCost {
    fn weight(&self, _: &ObjectId, footer: &Footer) -> u64 {
        let parts = match footer {
            Footer::Shared(footer) => {
                let batches = footer.chunks.iter().flat_map(|chunk| &chunk.batches);
                let in_batches = batches.map(|batch| size_of_val(batch) + batch.facts.urls.heap_bytes());
                in_batches.sum::<usize>() + size_of_val(footer.chunks.as_slice())
            }
            Footer::Session(footer) => {
                let batches = footer.streams.iter().flat_map(|stream| &stream.batches);
                let in_batches = batches.map(|batch| size_of_val(batch) + batch.facts.urls.heap_bytes());
                let segments: usize = footer.frames.iter().map(|frame| frame.segments.len()).sum();
                in_batches.sum::<usize>()
                    + segments * size_of::<session_object::Segment>()
                    + size_of_val(footer.frames.as_slice())
            }
        };
        (parts + size_of::<shared_object::Footer>()) as u64
    }
}

/// An object that was looked for, and its footer unless that cannot be read.
type Looked = (ObjectKey, Option<Footer>);

/// Opens sessions.
#[derive(Debug, Clone)]
pub struct Reader {
    index: Index,
    objects: Objects,
    keys: SessionKeys,
    pool: Pool,
    footers: Arc<Cache<ObjectId, Footer, FooterCost>>,
}

/// What a session is to one workspace.
#[derive(Debug)]
pub enum Opened {
    /// The workspace never had it.
    Never,
    /// It was deleted.
    Deleted,
    /// It can be read.
    Session(Box<Session>),
}

/// An opened session: a snapshot that stays readable for as long as condemned objects are kept.
#[derive(Debug)]
pub struct Session {
    /// The row and the objects.
    pub snapshot: Snapshot,
    /// Which batches there are, and where.
    pub plan: Plan,
    /// Bytes of the session's frames in S3.
    pub bytes_stored: u64,
    sources: Vec<Source>,
}

#[derive(Debug)]
struct Source {
    key: ObjectKey,
    footer: Footer,
}

impl Session {
    /// Whether some of it lies in shared objects.
    pub fn has_shared(&self) -> bool {
        let key = &self.snapshot.row.key;
        self.sources.iter().any(|source| match &source.footer {
            Footer::Shared(footer) => footer.chunks.iter().any(|chunk| chunk.key == *key),
            Footer::Session(_) => false,
        })
    }
}

impl Reader {
    /// A reader over this index and bucket, that keeps this many bytes of footers.
    pub fn new(index: Index, objects: Objects, keys: SessionKeys, pool: Pool, footers_bytes_max: u64) -> Self {
        let footers = Cache::with_weighter(FOOTERS_CACHED_MAX, footers_bytes_max, FooterCost);
        Self { index, objects, keys, pool, footers: Arc::new(footers) }
    }

    /// Opens a session. `silence` is what ends one.
    pub async fn open(&self, key: &SessionKey, silence: Duration) -> Result<Opened, ReadError> {
        let snapshot = match self.index.find_session(key, silence).await? {
            Found::Never => return Ok(Opened::Never),
            Found::Deleted => return Ok(Opened::Deleted),
            Found::Live(snapshot) => *snapshot,
        };
        // Every session got its key before its row. What cannot be opened is said now, not in the middle of an answer.
        match self.keys.key(key).await {
            Err(KeyError::Shredded(_)) => return Ok(Opened::Deleted),
            other => drop(other?),
        }
        let mut sources = Vec::new();
        for object in snapshot.own.iter().chain(&snapshot.shared) {
            sources.push(Source { key: object.key, footer: self.footer(object).await? });
        }
        let (plan, bytes_stored) = plan(key, &sources);
        Ok(Opened::Session(Box::new(Session { snapshot, plan, bytes_stored, sources })))
    }

    /// The newest notes of these streams of a session, as far as it is found in a few tries where they lie; none when the session
    /// is unknown or deleted. What is absent or corrupt is passed over: a stream without a note is only masked more.
    pub async fn stream_notes(
        &self,
        key: &SessionKey,
        streams: &[u32],
    ) -> Result<BTreeMap<u32, StreamNote>, ReadError> {
        // Whether it is over does not matter here.
        let snapshot = match self.index.find_session(key, Duration::ZERO).await? {
            Found::Never | Found::Deleted => return Ok(BTreeMap::new()),
            Found::Live(snapshot) => snapshot,
        };
        let data_key = match self.keys.key(key).await {
            Err(KeyError::Shredded(_)) => return Ok(BTreeMap::new()),
            other => other?,
        };
        let objects = snapshot.own.iter().chain(&snapshot.shared);
        // Boxed, since the compiler does not see that closures which borrow give futures that can be sent.
        let mut footers: Vec<BoxFuture<'_, Result<Looked, ReadError>>> = Vec::new();
        for object in objects {
            footers.push(Box::pin(async move { Ok((object.key, missable(key, self.footer(object).await)?)) }));
        }
        let sources: Vec<Looked> = stream::iter(footers).buffered(FOOTERS_AT_ONCE).try_collect().await?;
        let footers = sources.iter().enumerate().filter_map(|(number, (_, footer))| Some((number, footer.as_ref()?)));
        let mut search = Search::new(key, footers, streams);
        while let Some((object, frame)) = search.next() {
            let (object, Some(footer)) = &sources[object] else { continue };
            let (object, frame, footer, data_key) = (*object, frame.clone(), footer.clone(), data_key.clone());
            let fetched = self.objects.get_range(&object, frame.at, u64::from(frame.len)).await;
            let opened = match fetched {
                Ok(sealed) => {
                    let opening = move || frame.open(&footer, &data_key, &sealed);
                    self.pool.run(opening).await?.map_err(corrupt(object))
                }
                Err(source) => Err(ReadError::Object { key: object, source }),
            };
            search.found(missable(key, opened)?.unwrap_or_default());
        }
        Ok(search.finish())
    }

    async fn footer(&self, object: &LiveObject) -> Result<Footer, ReadError> {
        let key = object.key;
        if let Some(footer) = self.footers.get(&key.id()) {
            return Ok(footer);
        }
        let bytes = self
            .objects
            .get_range(&key, object.footer.at, u64::from(object.footer.len))
            .await
            .map_err(|source| ReadError::Object { key, source })?;
        let footer = match footers::open(&self.keys, &self.pool, object, bytes).await {
            Ok(footer) => footer,
            Err(FooterError::Corrupt(error)) => return Err(corrupt(key)(error)),
            Err(FooterError::Key(error)) => return Err(error.into()),
            Err(FooterError::Pool(error)) => return Err(error.into()),
        };
        self.footers.insert(key.id(), footer.clone());
        Ok(footer)
    }

    /// Writes a session's events in order, a newline after each, through `give` in pieces of about 64 KiB. Asks each
    /// second whether the session still may be read.
    pub async fn events<Fut>(
        &self,
        session: &Session,
        range: Range,
        mut give: impl FnMut(Bytes) -> Fut,
    ) -> Result<(), ReadError>
    where
        Fut: Future<Output = Result<(), ReadError>>,
    {
        let mut merger = Merger::new(&session.plan, range);
        let mut loader = Loader { reader: self, session, pieces: VecDeque::new() };
        let mut out = Vec::with_capacity(OUTPUT_BYTES * 2);
        let mut checked = tokio::time::Instant::now();
        loop {
            match merger.step().map_err(|mismatch| loader.mismatch(mismatch))? {
                Step::Need { stream, batch } => {
                    self.check_live(session, &mut checked).await?;
                    let planned = &session.plan.streams[stream].batches[batch];
                    let payload = loader.load(&planned.location, planned.facts.raw_bytes).await?;
                    merger.supply(stream, payload).map_err(|mismatch| loader.mismatch(mismatch))?;
                }
                Step::Event(event) => {
                    out.extend_from_slice(merger.bytes(&event));
                    if out.len() >= OUTPUT_BYTES {
                        // A slow reader can spend hours on one batch.
                        self.check_live(session, &mut checked).await?;
                        give(Bytes::from(std::mem::take(&mut out))).await?;
                    }
                }
                Step::Done => {
                    if !out.is_empty() {
                        give(Bytes::from(out)).await?;
                    }
                    return Ok(());
                }
            }
        }
    }
}

impl Reader {
    /// Ends a reading of a deleted session; asks each second.
    async fn check_live(&self, session: &Session, checked: &mut tokio::time::Instant) -> Result<(), ReadError> {
        if checked.elapsed() >= Duration::from_secs(1) {
            *checked = tokio::time::Instant::now();
            if !self.index.is_live(&session.snapshot.row.key).await? {
                return Err(ReadError::Deleted);
            }
        }
        Ok(())
    }
}

/// What was found, or nothing where that would be so for ever: it must not hold up who looks for notes.
fn missable<T>(session: &SessionKey, found: Result<T, ReadError>) -> Result<Option<T>, ReadError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error @ (ReadError::Corrupt { .. } | ReadError::Object { source: ObjectError::Absent, .. })) => {
            tracing::warn!(session = %session.session, %error, "notes of streams cannot be read; what comes is masked more");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The plan of a session over these sources, and the bytes of its frames.
fn plan(key: &SessionKey, sources: &[Source]) -> (Plan, u64) {
    let (mut merged, mut shared) = (Vec::new(), Vec::new());
    let mut bytes_stored = 0;
    for (object, source) in sources.iter().enumerate() {
        match &source.footer {
            Footer::Session(footer) => {
                bytes_stored += footer.frames.iter().map(|frame| u64::from(frame.len)).sum::<u64>();
                merged.push((object, footer.as_ref()));
            }
            Footer::Shared(footer) => {
                for (number, chunk) in footer.chunks.iter().enumerate().filter(|(_, chunk)| chunk.key == *key) {
                    bytes_stored += chunk.len();
                    shared.push(SharedSource { object, partition: footer.partition, number, chunk });
                }
            }
        }
    }
    (Plan::build(&merged, &shared), bytes_stored)
}

/// A piece of an object that was fetched: a chunk as it lies, or a frame opened and decompressed.
struct Kept {
    object: usize,
    at: u64,
    bytes: Bytes,
}

struct Loader<'a> {
    reader: &'a Reader,
    session: &'a Session,
    pieces: VecDeque<Kept>,
}

impl Loader<'_> {
    /// The events of one batch.
    async fn load(&mut self, location: &Location, raw_bytes: u32) -> Result<Vec<u8>, ReadError> {
        let mismatch = || self.mismatch(Mismatch);
        match location {
            Location::Shared { object, chunk, frame, at, .. } => {
                let source = &self.session.sources[*object];
                let Footer::Shared(footer) = &source.footer else { return Err(mismatch()) };
                let (footer, key) = (Arc::clone(footer), source.key);
                let chunk = footer.chunks.get(*chunk).ok_or_else(mismatch)?;
                // The whole chunk: its neighbours are wanted next, and one request brings them all.
                let bytes = self.fetch(*object, chunk.at, chunk.len()).await?;
                let start = (at - chunk.at) as usize;
                let place = frame_at(*frame, chunk.batches.len());
                let len = chunk.batches.get(*frame).map_or(0, |batch| batch.len as usize);
                let frame = bytes.slice(start..start + len);
                let opener = sealed::chunk_opener(&self.key().await?, chunk);
                self.open(key, opener, place, frame, raw_bytes).await
            }
            Location::Session { object, pieces } => {
                let mut payload = Vec::with_capacity(raw_bytes as usize);
                for piece in pieces {
                    let raw = self.frame(*object, piece.frame).await?;
                    // The footer's decoder checked that the pieces of a frame fill it.
                    let bytes = raw.get(piece.at as usize..(piece.at + piece.len) as usize);
                    payload.extend_from_slice(bytes.ok_or_else(|| self.mismatch(Mismatch))?);
                }
                Ok(payload)
            }
        }
    }

    async fn key(&self) -> Result<sealing::Key, ReadError> {
        match self.reader.keys.key(&self.session.snapshot.row.key).await {
            Err(KeyError::Shredded(_)) => Err(ReadError::Deleted),
            other => Ok(other?),
        }
    }

    /// Opens a sealed frame on the pool, and decompresses it.
    async fn open(
        &self,
        key: ObjectKey,
        opener: Opener,
        place: FrameAt,
        frame: Bytes,
        raw_bytes: u32,
    ) -> Result<Vec<u8>, ReadError> {
        let opening = move || {
            let opened = opener.open(place, &frame)?;
            Ok::<_, OpenError>(codec::decompress(&opened, raw_bytes as usize)?)
        };
        self.reader.pool.run(opening).await?.map_err(corrupt(key))
    }

    /// A frame of a session object, opened; kept for the next batches.
    async fn frame(&mut self, object: usize, number: usize) -> Result<Bytes, ReadError> {
        let source = &self.session.sources[object];
        let Footer::Session(footer) = &source.footer else { return Err(self.mismatch(Mismatch)) };
        let (footer, key) = (Arc::clone(footer), source.key);
        let frame = footer.frames.get(number).ok_or_else(|| self.mismatch(Mismatch))?;
        if let Some(kept) = self.kept(object, frame.at) {
            return Ok(kept);
        }
        let sealed = self.get(object, frame.at, u64::from(frame.len)).await?;
        let opener = sealed::session_opener(&self.key().await?, &footer);
        let place = frame_at(number, footer.frames.len());
        let raw = Bytes::from(self.open(key, opener, place, sealed, frame.raw_len).await?);
        if raw.len() != frame.raw_len as usize {
            return Err(corrupt(key)(FormatError::Truncated));
        }
        self.keep(object, frame.at, raw.clone());
        Ok(raw)
    }

    /// A range of an object as it lies; kept for the next batches.
    async fn fetch(&mut self, object: usize, at: u64, len: u64) -> Result<Bytes, ReadError> {
        if let Some(kept) = self.kept(object, at) {
            return Ok(kept);
        }
        let bytes = self.get(object, at, len).await?;
        self.keep(object, at, bytes.clone());
        Ok(bytes)
    }

    async fn get(&self, object: usize, at: u64, len: u64) -> Result<Bytes, ReadError> {
        let key = self.session.sources[object].key;
        let fetched = self.reader.objects.get_range(&key, at, len).await;
        fetched.map_err(|source| ReadError::Object { key, source })
    }

    fn kept(&self, object: usize, at: u64) -> Option<Bytes> {
        let kept = self.pieces.iter().find(|kept| kept.object == object && kept.at == at);
        kept.map(|kept| kept.bytes.clone())
    }

    fn keep(&mut self, object: usize, at: u64, bytes: Bytes) {
        if self.pieces.len() == PIECES_KEPT_MAX {
            self.pieces.pop_front();
        }
        self.pieces.push_back(Kept { object, at, bytes });
    }

    fn mismatch(&self, mismatch: Mismatch) -> ReadError {
        // Which of the objects is meant is not known here; the first names the session, which is what helps.
        match self.session.sources.first() {
            Some(source) => ReadError::Corrupt { key: source.key, reason: mismatch.to_string() },
            None => ReadError::Deleted,
        }
    }
}
