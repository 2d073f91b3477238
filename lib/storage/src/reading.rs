//! Reading a session: its own objects, then the shared ones that may hold some of it, as one [`Plan`].
//!
//! Footers never change, so they are cached by object. Bytes are fetched in windows when their turn comes, see [`windows`], and
//! opened, decompressed and merged on the pool, see [`walk`]; a session that is one object has nothing to be merged, see
//! [`straight`]. The session's key is asked for again with every window: a reading that goes on for long ends once the key was
//! destroyed (R2).
//!
//! A reading is of the batches that were there when it began. Objects beneath it are swapped for others, and gone after a grace:
//! a reading that comes too late for one looks anew where its batches lie, and goes on behind the last event that it gave (C2).
//!
//! While it goes on it is asked each second whether the session still may be read, also while its reader takes nothing.

mod fetching;
mod output;
mod straight;
pub mod walk;
pub mod windows;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use engine::merge::{Batch, Location, Lost, Plan, Range, SharedSource, Totals};
use futures::future::BoxFuture;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use schemas::codec;
use schemas::http::Completeness;
use schemas::limits::KIB;
use schemas::paths::ObjectKey;
use schemas::stream_note::StreamNote;
use schemas::{ObjectId, SessionKey, session_object, shared_object};
use sealing::Key;
use sealing::objects::OpenError;
use service_kit::pool::{Panicked, Pool};
use thiserror::Error;
use tokio::time::{Instant, sleep_until};

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
/// How often a reading asks whether its session still may be read.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// A reader that takes nothing for so long has hung up.
const STALLED_MAX: Duration = Duration::from_secs(300);

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
    move |error| ReadError::Corrupt(Corrupt { key, chunk: None, source: error.into() })
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
    /// Bytes of the session's frames in S3.
    pub bytes_stored: u64,
    /// Which batches there are, and where.
    plan: Arc<Plan>,
    /// What holds some of it.
    sources: Arc<[Source]>,
}

impl Session {
    /// Whether some of it lies in shared objects.
    pub fn has_shared(&self) -> bool {
        self.sources.iter().any(|source| matches!(source.footer, Footer::Shared(_)))
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
        self.locate(key, silence, None).await
    }

    /// Sums over a session's batches, and what of it is there.
    pub async fn sums(&self, session: &Session) -> Result<(Totals, Completeness), ReadError> {
        let plan = Arc::clone(&session.plan);
        Ok(self.pool.run(move || (plan.totals(), plan.completeness())).await?)
    }

    /// Where a session lies, of which an object may be known to be gone. An object that is absent and not named any more was
    /// swapped for others while we looked, or deleted.
    async fn locate(
        &self,
        key: &SessionKey,
        silence: Duration,
        mut gone: Option<ObjectKey>,
    ) -> Result<Opened, ReadError> {
        loop {
            let snapshot = match self.index.find_session(key, silence).await? {
                Found::Never => return Ok(Opened::Never),
                Found::Deleted => return Ok(Opened::Deleted),
                Found::Live(snapshot) => *snapshot,
            };
            if let Some(key) = gone
                && snapshot.own.iter().chain(&snapshot.shared).any(|object| object.key == key)
            {
                return Err(ReadError::Object { key, source: ObjectError::Absent });
            }
            // Every session got its key before its row. What cannot be opened is said now, not in the middle of an answer.
            match self.keys.key(key).await {
                Err(KeyError::Shredded(_)) => return Ok(Opened::Deleted),
                other => drop(other?),
            }
            let sources: Arc<[Source]> = match self.sources(key, &snapshot).await {
                Err(ReadError::Object { key, source: ObjectError::Absent }) => {
                    gone = Some(key);
                    continue;
                }
                sources => sources?.into(),
            };
            let (key, all) = (*key, Arc::clone(&sources));
            let (plan, bytes_stored) = self.pool.run(move || plan(&key, &all)).await?;
            return Ok(Opened::Session(Box::new(Session { snapshot, bytes_stored, plan: Arc::new(plan), sources })));
        }
    }

    /// The objects that hold some of a session. Of the footers of shared ones only what is the session's own: a reading may last for
    /// hours, and they name thousands of others.
    async fn sources(&self, key: &SessionKey, snapshot: &Snapshot) -> Result<Vec<Source>, ReadError> {
        // Boxed, since the compiler does not see that closures which borrow give futures that can be sent.
        let mut sources: Vec<BoxFuture<'_, Result<Option<Source>, ReadError>>> = Vec::new();
        for object in snapshot.own.iter().chain(&snapshot.shared) {
            sources.push(Box::pin(async move {
                let footer = match self.footer(object).await? {
                    Footer::Shared(footer) => footer.of_session(key).map(|footer| Footer::Shared(Arc::new(footer))),
                    footer @ Footer::Session(_) => Some(footer),
                };
                Ok(footer.map(|footer| Source { key: object.key, footer, body: None }))
            }));
        }
        let sources: Vec<Option<Source>> = stream::iter(sources).buffered(FOOTERS_AT_ONCE).try_collect().await?;
        Ok(sources.into_iter().flatten().collect())
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
        let footer = match footers::fetch(&self.objects, &self.keys, &self.pool, object).await {
            Ok(footer) => footer,
            Err(FooterError::Object(source)) => return Err(ReadError::Object { key, source }),
            Err(FooterError::Corrupt(error)) => return Err(corrupt(key)(error)),
            Err(FooterError::Key(error)) => return Err(error.into()),
            Err(FooterError::Pool(error)) => return Err(error.into()),
        };
        self.footers.insert(key.id(), footer.clone());
        Ok(footer)
    }

    /// Writes a session's events in order through `give`, in pieces of 64 KiB at most, which need not end where an event does. Asks
    /// each second whether the session still may be read.
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
        while let Err(ReadError::Object { key, source: ObjectError::Absent }) = &reading {
            let (sources, plan) = self.find_again(session, *key).await?;
            reading = self.write(&sources, &plan, session, range, form, &mut given, &mut give).await;
        }
        reading
    }

    /// Where the batches of a session lie by now of which an object is gone.
    async fn find_again(&self, session: &Session, gone: ObjectKey) -> Result<(Arc<[Source]>, Arc<Plan>), ReadError> {
        let key = &session.snapshot.row.key;
        let Opened::Session(found) = self.locate(key, Duration::ZERO, Some(gone)).await? else {
            return Err(ReadError::Deleted);
        };
        let (mut plan, before) = (Arc::unwrap_or_clone(found.plan), Arc::clone(&session.plan));
        let plan = self.pool.run(move || plan.restrict(&before).map(|()| plan)).await??;
        Ok((found.sources, Arc::new(plan)))
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
        let (sources, plan, skip) = (Arc::clone(sources), Arc::clone(plan), *given);
        let course = self.pool.run(move || Course::new(&sources, &plan, range, skip)).await?;
        let mut reading = Some(Reading { course, out: Output::new(form) });
        let mut fetching = Fetching::new(self.objects.clone(), self.keys.clone(), self.pool.clone(), key);
        let mut checked = Instant::now();
        loop {
            let halt = fetching.advance(&mut reading).await?;
            if let Some((bytes, events)) = reading.as_mut().map(|reading| reading.out.take()) {
                for piece in pieces(&bytes) {
                    self.give_while_live(&key, &mut checked, give(piece)).await?;
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

    /// The same for what of a reading was given and waits still.
    pub async fn while_live(
        &self,
        session: &Session,
        taking: impl Future<Output = Result<(), ReadError>>,
    ) -> Result<(), ReadError> {
        self.give_while_live(&session.snapshot.row.key, &mut Instant::now(), taking).await
    }

    async fn give_while_live(
        &self,
        key: &SessionKey,
        checked: &mut Instant,
        giving: impl Future<Output = Result<(), ReadError>>,
    ) -> Result<(), ReadError> {
        give_while(|| self.index.is_live(key), checked, giving).await
    }
}

/// Waits until a piece is taken, and asks each second whether it still may be. Ends the reading of what may not be read any more, and
/// one whose reader takes nothing.
pub(crate) async fn give_while<Asked>(
    may_be_read: impl Fn() -> Asked,
    checked: &mut Instant,
    giving: impl Future<Output = Result<(), ReadError>>,
) -> Result<(), ReadError>
where
    Asked: Future<Output = Result<bool, IndexError>>,
{
    let begun = Instant::now();
    tokio::pin!(giving);
    loop {
        tokio::select! {
            // A slow reader can spend hours on what is at hand.
            biased;
            () = sleep_until(*checked + CHECK_INTERVAL) => {
                if !may_be_read().await? {
                    return Err(ReadError::Deleted);
                }
                *checked = Instant::now();
                if begun.elapsed() > STALLED_MAX {
                    return Err(ReadError::HungUp);
                }
            }
            given = &mut giving => return given,
        }
    }
}

/// What is given out at once. Copies: pieces that wait for a slow reader must not keep all that they were cut from.
fn pieces(bytes: &[u8]) -> impl Iterator<Item = Bytes> {
    bytes.chunks(PIECE_BYTES).map(Bytes::copy_from_slice)
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
pub(crate) fn plan(key: &SessionKey, sources: &[Source]) -> (Plan, u64) {
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
