//! Brings what a reading wants: keys and ranges of objects, the next ones while the last are worked on. All work on bytes is done on
//! the pool.

use std::collections::BTreeMap;

use bytes::Bytes;
use schemas::SessionKey;
use schemas::paths::ObjectKey;
use sealing::Key;
use service_kit::pool::{Panicked, Pool};
use thiserror::Error;
use tokio_util::task::AbortOnDropHandle;

use super::walk::Source;
use super::windows::{Ask, Windows};
use crate::objects::{ObjectError, Objects};
use crate::session_keys::{KeyError, SessionKeys};

/// Why work on bytes stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Halt {
    /// It waits for this window.
    Fetch(usize),
    /// There is something to take.
    Full,
    /// It is through.
    Done,
}

/// Work on a session's sealed bytes.
pub trait Work: Send + 'static {
    /// Why it fails.
    type Error: Send + 'static;

    /// Goes on until it halts. `key` opens the session's frames; it is not to be kept.
    fn go(&mut self, key: &Key) -> Result<Halt, Self::Error>;

    /// The windows that it waits for.
    fn windows(&mut self) -> &mut Windows;

    /// A source, by its number.
    fn source(&self, object: usize) -> Option<&Source>;
}

/// Why work on a session's bytes cannot go on.
#[derive(Debug, Error)]
pub enum FetchError<E> {
    /// The bucket.
    #[error("fetch {key}")]
    Object {
        /// Which object.
        key: ObjectKey,
        /// Why.
        source: ObjectError,
    },
    /// The session's key cannot be had.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The pool.
    #[error(transparent)]
    Pool(#[from] Panicked),
    /// The work itself failed.
    #[error(transparent)]
    Work(E),
}

/// A window on its way, or why it does not come.
type Task = AbortOnDropHandle<Result<Bytes, (ObjectKey, ObjectError)>>;

/// Drives the work of one reading.
#[derive(Debug)]
pub struct Fetching {
    objects: Objects,
    keys: SessionKeys,
    pool: Pool,
    session: SessionKey,
    /// Windows under way or here, by number. They end with this.
    tasks: BTreeMap<usize, Task>,
}

impl Fetching {
    /// For a reading of this session.
    pub fn new(objects: Objects, keys: SessionKeys, pool: Pool, session: SessionKey) -> Self {
        Self { objects, keys, pool, session, tasks: BTreeMap::new() }
    }

    /// Lets work go on until there is something to take, or it is through. The key is asked for each time: what goes on for long
    /// ends once it was destroyed (R2). Once a fetch failed it is of no more use; the work is still there, for what it has to give.
    pub async fn advance<W: Work>(&mut self, work: &mut Option<W>) -> Result<Halt, FetchError<W::Error>> {
        loop {
            let key = self.keys.key(&self.session).await?;
            let Some(mut going) = work.take() else { return Ok(Halt::Done) };
            let (going, halt) = self
                .pool
                .run(move || {
                    let halt = going.go(&key);
                    (going, halt)
                })
                .await?;
            let going = work.insert(going);
            match halt.map_err(FetchError::Work)? {
                Halt::Fetch(window) => self.fetch(going, window).await?,
                halt => return Ok(halt),
            }
        }
    }

    async fn fetch<W: Work>(&mut self, work: &mut W, window: usize) -> Result<(), FetchError<W::Error>> {
        for Ask { window, object, at, len } in work.windows().ask(window) {
            let Some(source) = work.source(object) else { continue };
            let (objects, key) = (self.objects.clone(), source.key);
            let task =
                tokio::spawn(async move { objects.get_range(&key, at, len).await.map_err(|error| (key, error)) });
            self.tasks.insert(window, AbortOnDropHandle::new(task));
        }
        if let Some(task) = self.tasks.remove(&window) {
            let fetched = task.await.map_err(|_| Panicked)?;
            let bytes = fetched.map_err(|(key, source)| FetchError::Object { key, source })?;
            work.windows().supply(window, bytes);
        }
        Ok(())
    }
}
