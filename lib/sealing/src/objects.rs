//! Seals and formats together: what lies in the bucket, from keys to bytes and back.
//!
//! Frames of chunks are sealed one by one, see [`crate::frames`]; here are the parts that are sealed whole: footers and
//! entries of the journal. Compressed first, sealed then.

use schemas::codec::FormatError;
use schemas::journal::Entry;
use schemas::limits::KIB;
use schemas::object::{ObjectKind, PREAMBLE_BYTES};
use schemas::{ExportId, ObjectId, SessionId, SessionKey, WorkspaceId, session_object, shared_object};
use uuid::Uuid;

use crate::frames::{
    CHUNK_ID_BYTES, ChunkContext, ChunkId, ChunkKind, FrameAt, Opener, open_alone, seal_alone, seal_chunk,
};
use crate::keyring::KeyVersion;
use crate::{Key, NotOpened, SealError, TAG_BYTES};

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

/// Bytes of the archive in each frame of a part but its last, which may have fewer: whoever begins in the middle opens one frame
/// more than needed at most.
pub const EXPORT_FRAME_BYTES: usize = 64 * KIB;
/// Where the frames of a part begin.
pub const EXPORT_FRAMES_AT: usize = PREAMBLE_BYTES + CHUNK_ID_BYTES;
const SEALED_FRAME_BYTES: u64 = (EXPORT_FRAME_BYTES + TAG_BYTES) as u64;

/// Whose a part of an archive is, and which object: one does not open in another's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartOf {
    /// Whose.
    pub workspace: WorkspaceId,
    /// Of which export.
    pub export: ExportId,
    /// In which object.
    pub object: ObjectId,
}

impl PartOf {
    fn context(&self) -> ChunkContext {
        let session = SessionKey::of_export(self.workspace, self.export);
        ChunkContext { session, kind: ChunkKind::Export }
    }

    fn key(&self, key: &Key) -> Key {
        key.derive(self.object.as_bytes(), &[b"clairvio export v1"])
    }
}

/// An object with a part of an export's archive, which is not empty.
pub fn seal_export(key: &Key, of: &PartOf, part: &[u8]) -> Result<Vec<u8>, SealError> {
    let mut object = Vec::with_capacity(export_object_bytes(part.len() as u64) as usize);
    object.extend_from_slice(&ObjectKind::Export.preamble());
    object.extend_from_slice(&[0; CHUNK_ID_BYTES]);
    let (chunk, _) = seal_chunk(&of.key(key), of.context(), part.chunks(EXPORT_FRAME_BYTES), &mut object)?;
    object[PREAMBLE_BYTES..EXPORT_FRAMES_AT].copy_from_slice(chunk.as_bytes());
    Ok(object)
}

/// Bytes of the object with so many bytes of an archive.
fn export_object_bytes(part: u64) -> u64 {
    EXPORT_FRAMES_AT as u64 + part + part.div_ceil(EXPORT_FRAME_BYTES as u64) * TAG_BYTES as u64
}

/// What opens a part of an export's archive, frame by frame.
#[derive(Debug)]
pub struct ExportOpener {
    opener: Opener,
    object_bytes: u64,
}

impl ExportOpener {
    /// Of an object of so many bytes, by those before its frames.
    pub fn new(key: &Key, of: &PartOf, head: &[u8; EXPORT_FRAMES_AT], object_bytes: u64) -> Result<Self, FormatError> {
        if ObjectKind::of(head)? != ObjectKind::Export {
            return Err(FormatError::Magic);
        }
        let chunk = head.last_chunk().ok_or(FormatError::Truncated)?;
        let opener = Opener::new(&of.key(key), of.context(), ChunkId::from_bytes(*chunk));
        let opener = Self { opener, object_bytes };
        // The last frame is never empty, nor a tag alone.
        let is_whole = opener.frames() > 0
            && opener.frames() <= u64::from(u32::MAX)
            && (opener.sealed_bytes() - 1) % SEALED_FRAME_BYTES >= TAG_BYTES as u64;
        if is_whole { Ok(opener) } else { Err(FormatError::Truncated) }
    }

    fn sealed_bytes(&self) -> u64 {
        self.object_bytes.saturating_sub(EXPORT_FRAMES_AT as u64)
    }

    /// How many frames there are.
    pub fn frames(&self) -> u64 {
        self.sealed_bytes().div_ceil(SEALED_FRAME_BYTES)
    }

    /// Bytes of the archive in it.
    pub fn bytes(&self) -> u64 {
        self.sealed_bytes() - self.frames() * TAG_BYTES as u64
    }

    /// Where these frames lie in the object: first byte, and length.
    pub fn place(&self, frames: std::ops::Range<u64>) -> (u64, u64) {
        let end = (frames.end * SEALED_FRAME_BYTES).min(self.sealed_bytes());
        let at = (frames.start * SEALED_FRAME_BYTES).min(end);
        (EXPORT_FRAMES_AT as u64 + at, end - at)
    }

    /// Opens frames that lie one behind the other, of which `first` is the number of the first.
    pub fn open(&self, first: u64, sealed: &[u8]) -> Result<Vec<u8>, NotOpened> {
        let mut opened = Vec::with_capacity(sealed.len());
        for (frame, number) in sealed.chunks(SEALED_FRAME_BYTES as usize).zip(first..) {
            let at =
                FrameAt { number: u32::try_from(number).map_err(|_| NotOpened)?, is_last: number + 1 == self.frames() };
            opened.extend_from_slice(&self.opener.open(at, frame)?);
        }
        Ok(opened)
    }
}

/// Opens a whole object with a part of an export's archive.
pub fn open_export(key: &Key, of: &PartOf, object: &[u8]) -> Result<Vec<u8>, OpenError> {
    let (head, frames) = object.split_first_chunk().ok_or(FormatError::Truncated)?;
    let opener = ExportOpener::new(key, of, head, object.len() as u64)?;
    Ok(opener.open(0, frames)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a part opens whole and from any frame on, and only as what it is. Method: sizes around the borders of frames.
    #[test]
    fn a_part_of_an_archive_opens_from_any_frame_on_and_cut_short_it_does_not() {
        let key = Key::random().unwrap();
        let id = Uuid::from_u128;
        let of = PartOf { workspace: WorkspaceId(id(1)), export: ExportId(id(2)), object: ObjectId(id(3)) };
        for len in
            [1, 15, 16, EXPORT_FRAME_BYTES - 1, EXPORT_FRAME_BYTES, EXPORT_FRAME_BYTES + 1, 3 * EXPORT_FRAME_BYTES]
        {
            let part: Vec<u8> = (0..len).map(|at| (at / 7) as u8).collect();
            let object = seal_export(&key, &of, &part).unwrap();
            assert_eq!(object.len() as u64, export_object_bytes(len as u64), "{len}");
            assert_eq!(open_export(&key, &of, &object).unwrap(), part);
            let head = object.first_chunk().unwrap();
            let opener = ExportOpener::new(&key, &of, head, object.len() as u64).unwrap();
            assert_eq!(opener.bytes(), len as u64);
            for first in 0..opener.frames() {
                let (at, sealed) = opener.place(first..u64::MAX / SEALED_FRAME_BYTES);
                let opened = opener.open(first, &object[at as usize..(at + sealed) as usize]).unwrap();
                assert_eq!(opened, part[first as usize * EXPORT_FRAME_BYTES..], "{len} from {first}");
            }
            for other in [
                PartOf { workspace: WorkspaceId(id(9)), ..of },
                PartOf { export: ExportId(id(9)), ..of },
                PartOf { object: ObjectId(id(9)), ..of },
            ] {
                assert!(open_export(&key, &other, &object).is_err(), "{len} as {other:?}");
            }
            for short in [0, 4, 20, 21, 36, object.len() - 1, object.len() - 17] {
                let cut = &object[..short.min(object.len() - 1)];
                assert!(open_export(&key, &of, cut).is_err(), "{len} cut to {short}");
            }
            let mut more = object;
            more.push(0);
            assert!(open_export(&key, &of, &more).is_err());
        }
    }
}
