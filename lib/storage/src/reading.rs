//! Reading a session: its own objects, then the shared ones that may hold some of it, as one [`Plan`].
//!
//! Footers never change, so they are cached by object. Bytes are fetched in windows when their turn comes, see [`windows`], and
//! opened, decompressed and merged on the pool, see [`walk`]; a session that is one object has nothing to be merged, see
//! [`straight`]. The session's key is asked for again with every window: a reading that goes on for long ends once the key was
//! destroyed (R2).
//!
//! A reading is of the batches that were there when it began. Objects beneath it are swapped for others, and gone after a grace:
//! a reading that comes too late for one looks anew where its batches lie, and goes on behind the last event that it gave (C2).

mod fetching;
mod output;
mod straight;
pub mod walk;
pub mod windows;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::merge::{Batch, Location, Lost, Plan, Range, SharedSource};
use futures::future::BoxFuture;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use schemas::codec;
use schemas::limits::KIB;
use schemas::paths::ObjectKey;
use schemas::stream_note::StreamNote;
use schemas::{ObjectId, SessionKey, session_object, shared_object};
use sealing::Key;
use sealing::objects::OpenError;
use service_kit::pool::{Panicked, Pool};
use thiserror::Error;

pub use fetching::{FetchError, Fetching, Halt, Work};
pub use output::Form;
use output::Output;
use straight::Straight;
use walk::{Corrupt, Source, Turn, Walk};
use windows::Windows;

use crate::footers::{self, Footer, FooterError};
use crate::index::sessions::{Found, Snapshot};
use crate::index::{Index, IndexError, LiveObject};
use crate::objects::{ObjectError, Objects};
use crate::session_keys::{KeyError, SessionKeys};
use crate::stream_notes::Search;

/// Footers that are kept, as far as memory goes.
const FOOTERS_CACHED_MAX: usize = 4_096;
/// Bytes that are given out at once.
const PIECE_BYTES: usize = 64 * KIB;
/// Footers that are fetched at once.
const FOOTERS_AT_ONCE: usize = 8;

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
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// What was there when the reading began is nowhere any more.
    #[error(transparent)]
    Lost(#[from] Lost),
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
    move |error| ReadError::Corrupt(Corrupt { key, source: error.into() })
}

impl ReadError {
    /// Whether what lies in the bucket is at fault: it will be so for ever.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Corrupt(_) | Self::Lost(_) => true,
            Self::Object { source, .. } => source.is_damage(),
            _ => false,
        }
    }

    /// An object that the index named when it was asked is not there.
    fn is_absent(&self) -> bool {
        matches!(self, Self::Object { source: ObjectError::Absent, .. })
    }
}

impl From<FetchError<Corrupt>> for ReadError {
    fn from(error: FetchError<Corrupt>) -> Self {
        match error {
            FetchError::Object { key, source } => Self::Object { key, source },
            FetchError::Key(KeyError::Shredded(_)) => Self::Deleted,
            FetchError::Key(error) => error.into(),
            FetchError::Pool(error) => error.into(),
            FetchError::Work(error) => error.into(),
        }
    }
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

/// An opened session.
#[derive(Debug)]
pub struct Session {
    /// The row and the objects.
    pub snapshot: Snapshot,
    /// Which batches there are, and where.
    pub plan: Arc<Plan>,
    /// Bytes of the session's frames in S3.
    pub bytes_stored: u64,
    sources: Arc<[Source]>,
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
        let sources = self.sources(&snapshot).await?;
        let (plan, bytes_stored) = plan(key, &sources);
        Ok(Opened::Session(Box::new(Session { snapshot, plan: Arc::new(plan), bytes_stored, sources: sources.into() })))
    }

    async fn sources(&self, snapshot: &Snapshot) -> Result<Vec<Source>, ReadError> {
        // Boxed, since the compiler does not see that closures which borrow give futures that can be sent.
        let mut sources: Vec<BoxFuture<'_, Result<Source, ReadError>>> = Vec::new();
        for object in snapshot.own.iter().chain(&snapshot.shared) {
            sources.push(Box::pin(async move {
                Ok(Source { key: object.key, footer: self.footer(object).await?, body: None })
            }));
        }
        stream::iter(sources).buffered(FOOTERS_AT_ONCE).try_collect().await
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

    /// Writes a session's events in order through `give`, in pieces. Asks each second whether the session still may be read.
    pub async fn events<Fut>(
        &self,
        session: &Session,
        range: Range,
        form: Form,
        mut give: impl FnMut(Bytes) -> Fut,
    ) -> Result<(), ReadError>
    where
        Fut: Future<Output = Result<(), ReadError>>,
    {
        let mut given = 0;
        let mut reading =
            self.write(&session.sources, &session.plan, session, range, form, &mut given, &mut give).await;
        // Each time another object was swapped and gone beneath; what is gone and still named is no swap.
        while let Err(error) = &reading
            && error.is_absent()
        {
            let (sources, plan) = self.find_again(session, error).await?;
            reading = self.write(&sources, &plan, session, range, form, &mut given, &mut give).await;
        }
        reading
    }

    /// Where the batches of a session lie by now of which an object is gone.
    async fn find_again(&self, session: &Session, gone: &ReadError) -> Result<(Arc<[Source]>, Arc<Plan>), ReadError> {
        let key = &session.snapshot.row.key;
        let snapshot = match self.index.find_session(key, Duration::ZERO).await? {
            Found::Never | Found::Deleted => return Err(ReadError::Deleted),
            Found::Live(snapshot) => snapshot,
        };
        if let ReadError::Object { key, .. } = gone
            && snapshot.own.iter().chain(&snapshot.shared).any(|object| object.key == *key)
        {
            return Err(ReadError::Object { key: *key, source: ObjectError::Absent });
        }
        let sources = self.sources(&snapshot).await?;
        let (mut plan, _) = plan(key, &sources);
        plan.restrict(&session.plan)?;
        Ok((sources.into(), Arc::new(plan)))
    }

    /// Writes all events behind the first `given`, and counts those that it gave.
    #[expect(clippy::too_many_arguments, reason = "they are one reading, and of different lives")]
    async fn write<Fut>(
        &self,
        sources: &Arc<[Source]>,
        plan: &Arc<Plan>,
        session: &Session,
        range: Range,
        form: Form,
        given: &mut u64,
        give: &mut impl FnMut(Bytes) -> Fut,
    ) -> Result<(), ReadError>
    where
        Fut: Future<Output = Result<(), ReadError>>,
    {
        let key = session.snapshot.row.key;
        let course = Course::new(sources, plan, range, *given);
        let mut reading = Some(Reading { course, out: Output::new(form) });
        let mut fetching = Fetching::new(self.objects.clone(), self.keys.clone(), self.pool.clone(), key);
        let mut checked = tokio::time::Instant::now();
        loop {
            let halt = fetching.advance(&mut reading).await?;
            // A slow reader can spend hours on one window.
            self.check_live(&key, &mut checked).await?;
            if let Some((mut bytes, events)) = reading.as_mut().map(|reading| reading.out.take()) {
                // In small pieces, whatever a frame holds: so many of them wait for a slow reader.
                while !bytes.is_empty() {
                    give(bytes.split_to(piece_len(&bytes, form))).await?;
                }
                *given += events;
            }
            if halt == Halt::Done {
                // Not even nothing is no bytes in zstd.
                if form == Form::Zstd && *given == 0 {
                    give(codec::compress(&[], 1).into()).await?;
                }
                return Ok(());
            }
        }
    }

    /// Ends a reading of a deleted session; asks each second.
    async fn check_live(&self, key: &SessionKey, checked: &mut tokio::time::Instant) -> Result<(), ReadError> {
        if checked.elapsed() >= Duration::from_secs(1) {
            *checked = tokio::time::Instant::now();
            if !self.index.is_live(key).await? {
                return Err(ReadError::Deleted);
            }
        }
        Ok(())
    }
}

/// How much of these bytes is given out at once: of lines whole ones.
fn piece_len(bytes: &[u8], form: Form) -> usize {
    if bytes.len() <= PIECE_BYTES || form == Form::Zstd {
        return bytes.len().min(PIECE_BYTES);
    }
    let is_end = |byte: &u8| *byte == b'\n';
    let before = bytes[..PIECE_BYTES].iter().rposition(is_end);
    let end = before.or_else(|| bytes.iter().position(is_end));
    end.map_or(bytes.len(), |end| end + 1)
}

/// One reading at work.
#[derive(Debug)]
struct Reading {
    course: Course,
    out: Output,
}

/// How events are come by.
#[derive(Debug)]
enum Course {
    /// They lie in order.
    Straight(Box<Straight>),
    /// They have to be merged; so many were given before.
    Merge { walk: Box<Walk>, skip: u64 },
}

impl Course {
    /// The events of `range` but the first `skip`.
    fn new(sources: &Arc<[Source]>, plan: &Arc<Plan>, range: Range, skip: u64) -> Self {
        let straight = only_object(sources, plan).and_then(|source| Straight::new(source, range, skip));
        straight.map_or_else(
            || {
                let walk = Walk::new(Arc::clone(sources), Arc::clone(plan), range);
                Self::Merge { walk: Box::new(walk), skip }
            },
            |straight| Self::Straight(Box::new(straight)),
        )
    }
}

/// The one session object that holds all batches of the plan and no others: its frames are what merging would give.
fn only_object<'a>(sources: &'a [Source], plan: &Plan) -> Option<&'a Source> {
    let mut batches = plan.streams.iter().flat_map(|stream| &stream.batches);
    let Location::Session { object, .. } = batches.clone().next()?.location else { return None };
    let is_in_it = |batch: &Batch| matches!(batch.location, Location::Session { object: of, .. } if of == object);
    let source = sources.get(object)?;
    let Footer::Session(footer) = &source.footer else { return None };
    let in_footer: usize = footer.streams.iter().map(|stream| stream.batches.len()).sum();
    (batches.clone().count() == in_footer && batches.all(is_in_it)).then_some(source)
}

impl Work for Reading {
    type Error = Corrupt;

    fn go(&mut self, key: &Key) -> Result<Halt, Corrupt> {
        let (walk, skip) = match &mut self.course {
            Course::Straight(straight) => return straight.go(key, &mut self.out),
            Course::Merge { walk, skip } => (walk, skip),
        };
        while !self.out.is_full() {
            match walk.turn(key)? {
                Turn::Event(_) if *skip > 0 => *skip -= 1,
                Turn::Event(event) => self.out.push_lines(walk.bytes(&event), 1),
                Turn::Fetch(window) => return Ok(Halt::Fetch(window)),
                Turn::Done => return Ok(Halt::Done),
            }
        }
        Ok(Halt::Full)
    }

    fn windows(&mut self) -> &mut Windows {
        match &mut self.course {
            Course::Straight(straight) => straight.windows(),
            Course::Merge { walk, .. } => walk.windows(),
        }
    }

    fn source(&self, object: usize) -> Option<&Source> {
        match &self.course {
            Course::Straight(straight) => Some(straight.source()),
            Course::Merge { walk, .. } => walk.sources().get(object),
        }
    }
}

/// What was found, or nothing where that would be so for ever: it must not hold up who looks for notes.
fn missable<T>(session: &SessionKey, found: Result<T, ReadError>) -> Result<Option<T>, ReadError> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_damage() => {
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

#[cfg(test)]
mod tests;
