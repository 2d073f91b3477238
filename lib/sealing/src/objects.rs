//! Seals and formats together: what lies in the bucket, from keys to bytes and back.
//!
//! Frames of chunks are sealed one by one, see [`crate::frames`]; here are the parts that are sealed whole: footers and
//! entries of the journal. Compressed first, sealed then.

use schemas::codec::FormatError;
use schemas::journal::Entry;
use schemas::object::{ObjectKind, PREAMBLE_BYTES};
use schemas::{ObjectId, SessionId, SessionKey, WorkspaceId, session_object, shared_object};
use uuid::Uuid;

use crate::frames::{ChunkContext, ChunkId, ChunkKind, FrameAt, Opener, open_alone, seal_alone};
use crate::keyring::KeyVersion;
use crate::{Key, NotOpened, SealError};

/// Why something in the bucket cannot be read. Both mean that it is not what was put there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The bytes are not of this format.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The seal does not open.
    #[error(transparent)]
    NotOpened(#[from] NotOpened),
}

/// The storage's key, and which version of the keyring it is of.
#[derive(Debug, Clone)]
pub struct StorageKey {
    /// The version.
    pub version: KeyVersion,
    /// The key.
    pub key: Key,
}

/// What belongs to no session.
const fn of_storage(kind: ChunkKind) -> ChunkContext {
    let nobody = SessionKey { workspace: WorkspaceId(Uuid::nil()), session: SessionId(Uuid::nil()) };
    ChunkContext { session: nobody, kind }
}

fn versioned(storage: &StorageKey, kind: ChunkKind, bytes: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut region = storage.version.0.to_le_bytes().to_vec();
    region.extend_from_slice(&seal_alone(&storage.key, of_storage(kind), bytes)?);
    Ok(region)
}

fn version_of(region: &[u8]) -> Result<(KeyVersion, &[u8]), FormatError> {
    let (version, sealed) = region.split_first_chunk().ok_or(FormatError::Truncated)?;
    Ok((KeyVersion(u32::from_le_bytes(*version)), sealed))
}

/// The region of a shared object's footer.
pub fn seal_shared_footer(storage: &StorageKey, footer: &shared_object::Footer) -> Result<Vec<u8>, SealError> {
    versioned(storage, ChunkKind::SharedFooter, &footer.encode())
}

/// Which version of the keyring opens the footer in this region.
pub fn shared_footer_version(region: &[u8]) -> Result<KeyVersion, FormatError> {
    version_of(region).map(|(version, _)| version)
}

/// Opens the footer of a shared or quarantine object. It must be that object's, and name nothing behind `body_len`, where
/// its region begins.
pub fn open_shared_footer(
    key: &Key,
    object: ObjectId,
    region: &[u8],
    body_len: u64,
) -> Result<shared_object::Footer, OpenError> {
    let (_, sealed) = version_of(region)?;
    let opened = open_alone(key, of_storage(ChunkKind::SharedFooter), sealed)?;
    let footer = shared_object::Footer::decode(&opened, body_len)?;
    if footer.object == object { Ok(footer) } else { Err(FormatError::Field("object").into()) }
}

/// The region of a session object's footer.
pub fn seal_session_footer(key: &Key, footer: &session_object::Footer) -> Result<Vec<u8>, SealError> {
    seal_alone(key, ChunkContext { session: footer.key, kind: ChunkKind::SessionFooter }, &footer.encode())
}

/// Opens a session object's footer. It must be that object's, and name nothing behind `body_len`, where its region begins.
pub fn open_session_footer(
    key: &Key,
    session: SessionKey,
    object: ObjectId,
    region: &[u8],
    body_len: u64,
) -> Result<session_object::Footer, OpenError> {
    let opened = open_alone(key, ChunkContext { session, kind: ChunkKind::SessionFooter }, region)?;
    let footer = session_object::Footer::decode(&opened, body_len)?;
    if footer.object != object {
        return Err(FormatError::Field("object").into());
    }
    if footer.key != session {
        return Err(FormatError::Field("session").into());
    }
    Ok(footer)
}

/// Opens frames of a chunk in a shared object: payloads of batches.
pub fn chunk_opener(key: &Key, chunk: &shared_object::Chunk) -> Opener {
    let context = ChunkContext { session: chunk.key, kind: ChunkKind::Shared };
    Opener::new(key, context, ChunkId::from_bytes(chunk.id))
}

/// Opens frames of a session object.
pub fn session_opener(key: &Key, footer: &session_object::Footer) -> Opener {
    let context = ChunkContext { session: footer.key, kind: ChunkKind::Session };
    Opener::new(key, context, ChunkId::from_bytes(footer.chunk))
}

/// The place of a frame among `count`.
pub fn frame_at(number: usize, count: usize) -> FrameAt {
    // Chunks have fewer frames than 2^32: a number beyond opens nothing.
    FrameAt { number: u32::try_from(number).unwrap_or(u32::MAX), is_last: number + 1 == count }
}

/// An object of the journal.
pub fn seal_journal(storage: &StorageKey, entry: &Entry) -> Result<Vec<u8>, SealError> {
    let mut object = ObjectKind::Journal.preamble().to_vec();
    object.extend_from_slice(&versioned(storage, ChunkKind::Journal, &entry.encode())?);
    Ok(object)
}

/// Which version of the keyring opens this object of the journal.
pub fn journal_version(object: &[u8]) -> Result<KeyVersion, FormatError> {
    if ObjectKind::of(object)? != ObjectKind::Journal {
        return Err(FormatError::Magic);
    }
    version_of(&object[PREAMBLE_BYTES..]).map(|(version, _)| version)
}

/// Opens an object of the journal. The entry must be that of this object.
pub fn open_journal(key: &Key, id: ObjectId, object: &[u8]) -> Result<Entry, OpenError> {
    journal_version(object)?;
    let (_, sealed) = version_of(&object[PREAMBLE_BYTES..])?;
    let entry = Entry::decode(&open_alone(key, of_storage(ChunkKind::Journal), sealed)?)?;
    if entry.object == id { Ok(entry) } else { Err(FormatError::Field("object").into()) }
}
