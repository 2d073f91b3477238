//! Looking into objects: what one is, whether all of it is what was put there, and the events in it.
//!
//! For operators and for tests. [`outline`] reads what lies in clear and says which key opens the rest; [`open`] opens the
//! footer; [`check()`] opens every frame; [`write_events`] writes one session's events. These take bytes and keys and do no I/O,
//! so they are tested with keys from a map. [`verify`] does all of it with the keys of a deployment.
//!
//! What is wrong is collected and not thrown: an object with a bad frame is looked through to its end, and who repairs sees
//! everything at once. No [`Fault`] carries content.

mod check;
mod events;
mod journal;
mod record;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use schemas::codec::FormatError;
use schemas::journal::Entry;
use schemas::object::{ObjectKind, TRAILER_BYTES};
use schemas::paths::ObjectKey;
use schemas::{SessionId, SessionKey, session_object, shared_object};
use sealing::Key;
use sealing::keyring::{KeyVersion, KeyringError};
use sealing::objects::{self, OpenError};
use service_kit::pool::{Panicked, Pool};
use thiserror::Error;

use crate::index::FooterAt;
use crate::session_keys::{DataKey, KeyError, SessionKeys};

pub use check::check;
pub use events::{EventsError, write_events};
pub use journal::{JournalError, journal_versions};
pub use record::{check_record, record_events};

/// Sessions whose keys are asked for at once.
const SESSIONS_ASKED_MAX: usize = 1_000;

/// Where in an object something is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// Its first bytes.
    Preamble,
    /// Its last bytes.
    Trailer,
    /// Its footer.
    Footer,
    /// The entry of the journal that it is.
    Entry,
    /// The part of an archive that it is.
    Part,
    /// Bytes of its body.
    Bytes {
        /// The first.
        from: u64,
        /// The one behind the last.
        to: u64,
    },
    /// A chunk of a shared object.
    Chunk {
        /// Its number.
        chunk: usize,
        /// Whose it is.
        session: SessionId,
        /// The stream.
        stream: u32,
    },
    /// A batch's frame in a shared object.
    SharedFrame {
        /// The chunk's number.
        chunk: usize,
        /// The frame's number in it.
        frame: usize,
        /// Its first byte.
        at: u64,
        /// Whose it is.
        session: SessionId,
        /// The stream.
        stream: u32,
        /// The batch.
        seq: u32,
    },
    /// A frame of a session object.
    Frame {
        /// Its number.
        frame: usize,
        /// Its first byte.
        at: u64,
    },
    /// A batch in a session object.
    Batch {
        /// The stream.
        stream: u32,
        /// The batch.
        seq: u32,
    },
    /// A record in quarantine.
    Quarantined {
        /// Its number in the footer.
        record: usize,
    },
    /// A record of the log.
    Record,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Preamble => f.write_str("preamble"),
            Self::Trailer => f.write_str("trailer"),
            Self::Footer => f.write_str("footer"),
            Self::Entry => f.write_str("journal entry"),
            Self::Part => f.write_str("part of an archive"),
            Self::Bytes { from, to } => write!(f, "bytes {from}..{to}"),
            Self::Chunk { chunk, session, stream } => write!(f, "chunk {chunk} (session {session}, stream {stream})"),
            Self::SharedFrame { chunk, frame, at, session, stream, seq } => {
                write!(f, "chunk {chunk}, frame {frame} at byte {at} (session {session}, stream {stream}, seq {seq})")
            }
            Self::Frame { frame, at } => write!(f, "frame {frame} at byte {at}"),
            Self::Batch { stream, seq } => write!(f, "batch {seq} of stream {stream}"),
            Self::Quarantined { record } => write!(f, "quarantined record {record}"),
            Self::Record => f.write_str("record"),
        }
    }
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Problem {
    /// The bytes are not of the format, or their seal does not open.
    #[error(transparent)]
    Unreadable(#[from] OpenError),
    /// The key is neither there nor known to be destroyed.
    #[error("{0}")]
    Key(String),
    /// Magic and key contradict each other.
    #[error("object is of another kind than its key says")]
    Kind,
    /// Bytes that belong to nothing.
    #[error("the footer names nothing here")]
    Gap,
    /// Bytes that belong to two things.
    #[error("the footer names these bytes twice")]
    Overlap,
    /// Too many or too few bytes.
    #[error("{found} bytes after decompression, {expected} expected")]
    Length {
        /// How many there are.
        found: u64,
        /// How many the facts or the footer say.
        expected: u64,
    },
    /// Too many or too few events.
    #[error("{found} events, {expected} expected")]
    Events {
        /// How many there are.
        found: u64,
        /// How many the facts or the footer say.
        expected: u64,
    },
    /// The hash that the facts hold is of something else.
    #[error("content is not what its facts were made of")]
    Content,
    /// Pieces of a batch that do not follow each other.
    #[error("a piece begins at event {found}, {expected} expected")]
    Position {
        /// Where it begins.
        found: u64,
        /// How many events came before.
        expected: u64,
    },
    /// The footer's time span is of something else: seeking would miss events.
    #[error("time span is not that of the events")]
    Span,
    /// The footer says wrongly whether a player can start here.
    #[error("full snapshot is marked where none begins, or not marked where one does")]
    Snapshot,
    /// A frame holds what is no event.
    #[error("an event cannot be read")]
    Event,
    /// A frame holds events of a batch that the footer does not list.
    #[error("a piece is of batch {seq} of stream {stream}, which the footer does not list")]
    Unlisted {
        /// The stream.
        stream: u32,
        /// The batch.
        seq: u32,
    },
    /// A note lies where it is never looked for.
    #[error("a note is of stream {0}, which has no batch here")]
    Stray(u32),
}

impl From<FormatError> for Problem {
    fn from(error: FormatError) -> Self {
        Self::Unreadable(error.into())
    }
}

/// A note of a stream, behind the events of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note {
    /// The frame.
    pub place: Place,
    /// The stream.
    pub stream: u32,
    /// The seq that comes next: all before it was seen.
    pub next: u64,
    /// Bytes of the state.
    pub state_bytes: usize,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, stream, next, state_bytes } = self;
        write!(f, "{place}: of stream {stream}, next {next}, {state_bytes} bytes of state")
    }
}

/// Something that is not as it was put there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where.
    pub place: Place,
    /// What.
    pub problem: Problem,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.problem)
    }
}

/// What an object's clear bytes tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// Its key, which says what it should be.
    pub key: ObjectKey,
    /// All its bytes.
    pub bytes: u64,
    /// What it says that it is.
    pub kind: Option<ObjectKind>,
    /// The version of its format.
    pub version: Option<u8>,
    /// Where its footer is; entries of the journal have none.
    pub footer: Option<FooterAt>,
    /// Which version of the keyring opens it; none for session objects.
    pub key_version: Option<KeyVersion>,
    /// What is wrong so far.
    pub faults: Vec<Fault>,
}

/// The key that an object's footer, or the entry that it is, opens with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needed {
    /// The storage's, of this version of the keyring.
    Storage(KeyVersion),
    /// This session's.
    Session(SessionKey),
}

/// Reads what lies in clear.
pub fn outline(key: ObjectKey, body: &[u8]) -> Outline {
    let wanted = match key {
        ObjectKey::Shared { .. } | ObjectKey::Quarantine { .. } => ObjectKind::Shared,
        ObjectKey::Session { .. } => ObjectKind::Session,
        ObjectKey::Journal { .. } => ObjectKind::Journal,
        ObjectKey::Export { .. } => ObjectKind::Export,
    };
    let kind = ObjectKind::of(body);
    let mut faults = Vec::new();
    match kind {
        Ok(kind) if kind == wanted => {}
        Ok(_) => faults.push(Fault { place: Place::Preamble, problem: Problem::Kind }),
        Err(error) => faults.push(Fault { place: Place::Preamble, problem: error.into() }),
    }
    let mut outline = Outline {
        key,
        bytes: body.len() as u64,
        kind: kind.ok(),
        version: body.get(wanted.magic().len()).copied(),
        footer: None,
        key_version: None,
        faults,
    };
    if wanted == ObjectKind::Export {
        return outline;
    }
    if wanted == ObjectKind::Journal {
        match objects::journal_version(body) {
            Ok(version) => outline.key_version = Some(version),
            // The preamble's faults are told already.
            Err(error) if outline.faults.is_empty() => outline.fault(Place::Entry, error),
            Err(_) => {}
        }
        return outline;
    }
    // The trailer has the magic too: where the preamble alone is damaged, the rest is still found.
    match footer_at(wanted, body) {
        Ok(footer) => {
            outline.footer = Some(footer);
            if wanted == ObjectKind::Shared {
                match objects::shared_footer_version(region(body, footer)) {
                    Ok(version) => outline.key_version = Some(version),
                    Err(error) => outline.fault(Place::Footer, error),
                }
            }
        }
        Err(error) => outline.fault(Place::Trailer, error),
    }
    outline
}

fn footer_at(kind: ObjectKind, body: &[u8]) -> Result<FooterAt, FormatError> {
    let trailer = body.last_chunk::<TRAILER_BYTES>().ok_or(FormatError::Truncated)?;
    kind.footer_place(body.len() as u64, trailer).map(|(at, len)| FooterAt { at, len })
}

/// The footer's region, which [`footer_at`] found within the body.
fn region(body: &[u8], footer: FooterAt) -> &[u8] {
    body.get(footer.at as usize..footer.at as usize + footer.len as usize).unwrap_or_default()
}

impl Outline {
    fn fault(&mut self, place: Place, problem: impl Into<Problem>) {
        self.faults.push(Fault { place, problem: problem.into() });
    }

    /// Which key opens it; none when nothing is left to open, or a newer release wrote it.
    pub fn needs(&self) -> Option<Needed> {
        let newer = Problem::from(FormatError::Version(self.version.unwrap_or_default()));
        if self.faults.iter().any(|fault| fault.place == Place::Preamble && fault.problem == newer) {
            return None;
        }
        match self.key {
            ObjectKey::Session { key, .. } => self.footer.map(|_| Needed::Session(key)),
            // All of it lies under the export's own key, which stands where a session's would.
            ObjectKey::Export { workspace, export, .. } => {
                Some(Needed::Session(SessionKey::of_export(workspace, export)))
            }
            ObjectKey::Shared { .. } | ObjectKey::Quarantine { .. } | ObjectKey::Journal { .. } => {
                self.key_version.map(Needed::Storage)
            }
        }
    }
}

/// What an object holds, as its sealed part says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// Of a shared or quarantine object.
    Shared(shared_object::Footer),
    /// Of a session object.
    Session(session_object::Footer),
    /// Of an object of the journal.
    Journal(Entry),
    /// A part of an archive: so many bytes of it, all of which open.
    Export(u64),
}

impl Content {
    /// Sessions that it holds frames of.
    pub fn sessions(&self) -> BTreeSet<SessionKey> {
        match self {
            Self::Shared(footer) => footer.chunks.iter().map(|chunk| chunk.key).collect(),
            Self::Session(footer) => [footer.key].into(),
            Self::Journal(_) | Self::Export(_) => BTreeSet::new(),
        }
    }
}

/// Opens an object's footer, or the entry that it is, with the key that [`Outline::needs`] names.
pub fn open(outline: &Outline, body: &[u8], key: &Key) -> Result<Content, OpenError> {
    let footer = || outline.footer.ok_or(FormatError::Truncated);
    match outline.key {
        ObjectKey::Session { key: session, id } => {
            let footer = footer()?;
            objects::open_session_footer(key, session, id, region(body, footer), footer.at).map(Content::Session)
        }
        ObjectKey::Shared { id, .. } | ObjectKey::Quarantine { id, .. } => {
            let footer = footer()?;
            objects::open_shared_footer(key, id, region(body, footer), footer.at).map(Content::Shared)
        }
        ObjectKey::Journal { id } => objects::open_journal(key, id, body).map(Content::Journal),
        ObjectKey::Export { workspace, export, id } => {
            let of = objects::PartOf { workspace, export, object: id };
            objects::open_export(key, &of, body).map(|part| Content::Export(part.len() as u64))
        }
    }
}

/// What there is of a key.
#[derive(Debug, Clone)]
pub enum Held {
    /// The key.
    Known(Key),
    /// It was destroyed.
    Shredded,
    /// It cannot be had, and why.
    Unavailable(String),
}

impl From<DataKey> for Held {
    fn from(key: DataKey) -> Self {
        match key {
            DataKey::Known(key) => Self::Known(key),
            DataKey::Shredded => Self::Shredded,
            DataKey::Closed(None) => {
                Self::Unavailable("the keyring is not the one that wrapped the session's key".into())
            }
            DataKey::Closed(Some(version)) => {
                Self::Unavailable(format!("the keyring has no version {version}, which wrapped the session's key"))
            }
        }
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verified {
    /// Frames that opened.
    pub frames: u64,
    /// Batches that are whole.
    pub batches: u64,
    /// Events in them.
    pub events: u64,
    /// Bytes of them.
    pub raw_bytes: u64,
    /// Records in quarantine. They are under the seal that they came with, and are not opened.
    pub quarantined: u64,
    /// Sessions whose key was destroyed: their bytes open for nobody, as it should be.
    pub shredded: u64,
    /// Notes of streams.
    pub notes: Vec<Note>,
    /// What is wrong.
    pub faults: Vec<Fault>,
}

impl Verified {
    fn fault(&mut self, place: Place, problem: impl Into<Problem>) {
        self.faults.push(Fault { place, problem: problem.into() });
    }
}

/// Why nothing can be said about an object. That its key is missing is no such reason, but a fault.
#[derive(Debug, Error)]
pub enum InspectError {
    /// The key store or the keyring does not answer.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The pool.
    #[error(transparent)]
    Pool(#[from] Panicked),
}

/// What there is of the key that opens an object.
pub async fn key_of(keys: &SessionKeys, needed: Needed) -> Result<Held, KeyError> {
    match needed {
        Needed::Storage(version) => keys.storage_of(version).await.map(Held::Known).or_else(unavailable),
        Needed::Session(session) => keys_of(keys, &[session]).await.map(|mut held| match held.remove(&session) {
            Some(held) => held,
            None => Held::Unavailable(KeyError::Missing(session.session).to_string()),
        }),
    }
}

/// What there is of the keys of these sessions.
pub async fn keys_of(keys: &SessionKeys, sessions: &[SessionKey]) -> Result<BTreeMap<SessionKey, Held>, KeyError> {
    let mut held = BTreeMap::new();
    for some in sessions.chunks(SESSIONS_ASKED_MAX) {
        match keys.find(some).await {
            Ok(mut found) => held.extend(some.iter().map(|key| {
                let missing = || Held::Unavailable(KeyError::Missing(key.session).to_string());
                (*key, found.remove(key).map_or_else(missing, Held::from))
            })),
            // One key that does not unwrap must not hide the others.
            Err(error) if is_fault(&error) => {
                for key in some {
                    held.insert(*key, keys.key(key).await.map(Held::Known).or_else(unavailable)?);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(held)
}

/// Whether asking again would give the same answer.
fn is_fault(error: &KeyError) -> bool {
    match error {
        KeyError::Keyring(KeyringError::Missing(_)) | KeyError::Missing(_) | KeyError::NotUnwrapped(_) => true,
        KeyError::Shredded(_) => true,
        KeyError::Keyring(KeyringError::Unavailable(_)) | KeyError::Store(_) | KeyError::Make(_) => false,
    }
}

fn unavailable(error: KeyError) -> Result<Held, KeyError> {
    match error {
        KeyError::Shredded(_) => Ok(Held::Shredded),
        error if is_fault(&error) => Ok(Held::Unavailable(error.to_string())),
        error => Err(error),
    }
}

/// Opens all of an object, with the keys of a deployment, and says what is wrong with it. The work is done on the pool.
pub async fn verify(keys: &SessionKeys, pool: &Pool, key: &ObjectKey, body: Bytes) -> Result<Verified, InspectError> {
    verify_with(keys, pool, key, body).await
}

/// Where [`verify_with`] has keys from: a deployment, or a map in tests.
trait Keys {
    async fn key_of(&self, needed: Needed) -> Result<Held, KeyError>;
    async fn keys_of(&self, sessions: &[SessionKey]) -> Result<BTreeMap<SessionKey, Held>, KeyError>;
}

impl Keys for SessionKeys {
    async fn key_of(&self, needed: Needed) -> Result<Held, KeyError> {
        key_of(self, needed).await
    }

    async fn keys_of(&self, sessions: &[SessionKey]) -> Result<BTreeMap<SessionKey, Held>, KeyError> {
        keys_of(self, sessions).await
    }
}

async fn verify_with(keys: &impl Keys, pool: &Pool, key: &ObjectKey, body: Bytes) -> Result<Verified, InspectError> {
    let mut outline = outline(*key, &body);
    let Some(needed) = outline.needs() else { return Ok(unopened(outline, None)) };
    let opening = match keys.key_of(needed).await? {
        Held::Known(key) => {
            let (clear, body) = (outline.clone(), body.clone());
            pool.run(move || open(&clear, &body, &key)).await?
        }
        held => return Ok(unopened(outline, Some(held))),
    };
    let content = match opening {
        Ok(content) => content,
        Err(error) => {
            outline.fault(sealed_place(&outline.key), error);
            return Ok(unopened(outline, None));
        }
    };
    let sessions: Vec<SessionKey> = content.sessions().into_iter().collect();
    let held = keys.keys_of(&sessions).await?;
    Ok(pool.run(move || check(&outline, &body, &content, &held)).await?)
}

/// The sealed part of an object that [`open`] opens.
fn sealed_place(key: &ObjectKey) -> Place {
    match key {
        ObjectKey::Journal { .. } => Place::Entry,
        ObjectKey::Export { .. } => Place::Part,
        ObjectKey::Shared { .. } | ObjectKey::Quarantine { .. } | ObjectKey::Session { .. } => Place::Footer,
    }
}

/// What can be said of an object whose sealed part stays closed.
fn unopened(outline: Outline, held: Option<Held>) -> Verified {
    let mut verified = Verified { faults: outline.faults, ..Verified::default() };
    match held {
        Some(Held::Shredded) => verified.shredded = 1,
        Some(Held::Unavailable(why)) => verified.fault(sealed_place(&outline.key), Problem::Key(why)),
        Some(Held::Known(_)) | None => {}
    }
    verified
}

#[cfg(test)]
mod tests;
