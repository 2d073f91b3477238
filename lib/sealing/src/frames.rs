//! A session's frames in objects: AES-256-GCM in the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár, 2015).
//!
//! A **chunk** is a sequence of frames under one key, which HKDF derives from the session's data key and the chunk's id.
//! The id is random and drawn by [`Sealer::new`]: nobody can seal under an id that was used before, so the counter of
//! frames is nonce enough. The last frame is marked in its nonce, so a chunk that was cut short does not open as whole.

use aead_stream::{NewStream as _, StreamBE32, StreamPrimitive as _};
use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{Buffer, Payload};
use schemas::SessionKey;

use crate::{Key, NotOpened, Random, SealError, TAG_BYTES};

/// Bytes of a chunk's id.
pub const CHUNK_ID_BYTES: usize = 16;

/// Frames of one chunk at most: the counter of the STREAM construction has 32 bits, and stays well within them.
pub const CHUNK_FRAMES_MAX: u32 = 1 << 24;

/// Names a chunk's key. Random, and never sealed under twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkId([u8; CHUNK_ID_BYTES]);

impl ChunkId {
    /// The id with these bytes, for opening.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes, for the footer.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// What a chunk holds. Bound into each frame, so that a footer never opens as a frame of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum ChunkKind {
    /// Events in a shared object.
    Shared = 1,
    /// Events in a session object.
    Session = 2,
    /// A session object's footer.
    SessionFooter = 3,
    /// A shared object's footer, under a storage key.
    SharedFooter = 4,
    /// An entry of the journal of deletions.
    Journal = 5,
    /// A link's reference: the link's id stands where a session's would.
    Reference = 6,
    /// A part of an export's archive: the export's id stands where a session's would.
    Export = 7,
}

/// Whose a chunk is, and what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChunkContext {
    /// The session and its workspace; nil ids for what belongs to no session.
    pub session: SessionKey,
    /// What it holds.
    pub kind: ChunkKind,
}

impl ChunkContext {
    /// What is bound into every frame beside its number.
    fn associated_data(&self, chunk: ChunkId) -> [u8; 49] {
        let mut data = [0; 49];
        data[..16].copy_from_slice(self.session.workspace.as_bytes());
        data[16..32].copy_from_slice(self.session.session.as_bytes());
        data[32..48].copy_from_slice(chunk.as_bytes());
        data[48] = self.kind as u8;
        data
    }

    fn stream(&self, key: &Key, chunk: ChunkId) -> StreamBE32<Aes256Gcm> {
        let subkey = key.derive(chunk.as_bytes(), &[b"clairvio chunk v1", &[self.kind as u8]]);
        // The key is the chunk's alone, so the constant part of the nonce need not tell chunks apart.
        StreamBE32::new(subkey.expose().into(), &[0; 7].into())
    }
}

/// Seals the frames of one chunk, in order. It ends with [`Sealer::seal_last`], which takes it: what was ended cannot
/// grow.
pub struct Sealer {
    stream: StreamBE32<Aes256Gcm>,
    associated_data: [u8; 49],
    chunk: ChunkId,
    next: u32,
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("chunk", &self.chunk).field("next", &self.next).finish_non_exhaustive()
    }
}

impl Sealer {
    /// A new chunk under a fresh id.
    pub fn new(key: &Key, context: ChunkContext) -> Result<Self, SealError> {
        let chunk = ChunkId(Random::draw()?);
        Ok(Self { stream: context.stream(key, chunk), associated_data: context.associated_data(chunk), chunk, next: 0 })
    }

    /// The chunk's id.
    pub fn chunk(&self) -> ChunkId {
        self.chunk
    }

    /// Seals the next frame and appends it to `body`; gives its length there.
    pub fn seal(&mut self, frame: &[u8], body: &mut Vec<u8>) -> Result<usize, SealError> {
        if self.next == CHUNK_FRAMES_MAX - 1 {
            return Err(SealError::Exhausted(CHUNK_FRAMES_MAX));
        }
        let len = self.append(frame, false, body)?;
        self.next += 1;
        Ok(len)
    }

    /// Seals the last frame and appends it to `body`; gives its length there.
    pub fn seal_last(self, frame: &[u8], body: &mut Vec<u8>) -> Result<usize, SealError> {
        self.append(frame, true, body)
    }

    fn append(&self, frame: &[u8], is_last: bool, body: &mut Vec<u8>) -> Result<usize, SealError> {
        let start = body.len();
        body.reserve(frame.len() + TAG_BYTES);
        body.extend_from_slice(frame);
        let mut tail = Tail { whole: body, start };
        self.stream
            .encrypt_in_place(self.next, is_last, &self.associated_data, &mut tail)
            .map_err(|_| SealError::TooLarge)?;
        Ok(body.len() - start)
    }
}

/// Seals all frames of a chunk at the end of `body`; gives the chunk's id, and the length of each sealed frame.
pub fn seal_chunk<'a>(
    key: &Key,
    context: ChunkContext,
    frames: impl IntoIterator<Item = &'a [u8]>,
    body: &mut Vec<u8>,
) -> Result<(ChunkId, Vec<usize>), SealError> {
    let mut sealer = Sealer::new(key, context)?;
    let (chunk, mut lens) = (sealer.chunk(), Vec::new());
    let mut frames = frames.into_iter();
    if let Some(mut last) = frames.next() {
        for next in frames {
            lens.push(sealer.seal(last, body)?);
            last = next;
        }
        lens.push(sealer.seal_last(last, body)?);
    }
    Ok((chunk, lens))
}

/// Seals bytes that are a chunk by themselves: the chunk's id, then its one frame.
pub fn seal_alone(key: &Key, context: ChunkContext, bytes: &[u8]) -> Result<Vec<u8>, SealError> {
    let sealer = Sealer::new(key, context)?;
    let mut sealed = Vec::with_capacity(CHUNK_ID_BYTES + bytes.len() + TAG_BYTES);
    sealed.extend_from_slice(sealer.chunk().as_bytes());
    sealer.seal_last(bytes, &mut sealed)?;
    Ok(sealed)
}

/// Opens what [`seal_alone`] made.
pub fn open_alone(key: &Key, context: ChunkContext, sealed: &[u8]) -> Result<Vec<u8>, NotOpened> {
    let (chunk, frame) = sealed.split_first_chunk().ok_or(NotOpened)?;
    Opener::new(key, context, ChunkId::from_bytes(*chunk)).open(FrameAt { number: 0, is_last: true }, frame)
}

/// The end of a buffer from `start` on, as the cipher wants it: sealing in place, behind what is there already.
struct Tail<'a> {
    whole: &'a mut Vec<u8>,
    start: usize,
}

impl AsRef<[u8]> for Tail<'_> {
    fn as_ref(&self) -> &[u8] {
        &self.whole[self.start..]
    }
}

impl AsMut<[u8]> for Tail<'_> {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.whole[self.start..]
    }
}

impl Buffer for Tail<'_> {
    fn extend_from_slice(&mut self, other: &[u8]) -> aes_gcm::aead::Result<()> {
        self.whole.extend_from_slice(other);
        Ok(())
    }

    fn truncate(&mut self, len: usize) {
        self.whole.truncate(self.start + len);
    }
}

/// Where a frame stands in its chunk, as the footer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameAt {
    /// Its number, from 0.
    pub number: u32,
    /// Whether it is the chunk's last.
    pub is_last: bool,
}

/// Opens frames of one chunk, in any order: a reader seeks.
pub struct Opener {
    stream: StreamBE32<Aes256Gcm>,
    associated_data: [u8; 49],
}

impl std::fmt::Debug for Opener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Opener").finish_non_exhaustive()
    }
}

impl Opener {
    /// Opens frames of this chunk.
    pub fn new(key: &Key, context: ChunkContext, chunk: ChunkId) -> Self {
        Self { stream: context.stream(key, chunk), associated_data: context.associated_data(chunk) }
    }

    /// Opens a frame. It opens only at its own place.
    pub fn open(&self, at: FrameAt, sealed: &[u8]) -> Result<Vec<u8>, NotOpened> {
        let payload = Payload { msg: sealed, aad: &self.associated_data };
        self.stream.decrypt(at.number, at.is_last, payload).map_err(|_| NotOpened)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schemas::{SessionId, WorkspaceId};
    use uuid::Uuid;

    use super::*;

    fn context(workspace: u128, session: u128, kind: ChunkKind) -> ChunkContext {
        let session = SessionKey {
            workspace: WorkspaceId(Uuid::from_u128(workspace)),
            session: SessionId(Uuid::from_u128(session)),
        };
        ChunkContext { session, kind }
    }

    const KIND: ChunkKind = ChunkKind::Session;

    fn seal_all(key: &Key, context: ChunkContext, frames: &[Vec<u8>]) -> (ChunkId, Vec<Vec<u8>>) {
        let mut body = b"whatever lies before".to_vec();
        let mut at = body.len();
        let (chunk, lens) = seal_chunk(key, context, frames.iter().map(Vec::as_slice), &mut body).unwrap();
        assert!(body.starts_with(b"whatever lies before"));
        let take = |len: usize| {
            at += len;
            body[at - len..at].to_vec()
        };
        let sealed: Vec<Vec<u8>> = lens.into_iter().map(take).collect();
        assert_eq!(at, body.len());
        (chunk, sealed)
    }

    /// Opens a whole chunk as a reader does: by the footer's count of frames.
    fn open_all(opener: &Opener, sealed: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, NotOpened> {
        let last = sealed.len().saturating_sub(1);
        sealed
            .iter()
            .enumerate()
            .map(|(number, frame)| opener.open(FrameAt { number: number as u32, is_last: number == last }, frame))
            .collect()
    }

    #[test]
    fn c05_every_single_bit_flip_and_every_truncation_is_found() {
        let key = Key::random().unwrap();
        let frames = vec![b"first frame".to_vec(), Vec::new(), b"last".to_vec()];
        let (chunk, sealed) = seal_all(&key, context(1, 2, KIND), &frames);
        let opener = Opener::new(&key, context(1, 2, KIND), chunk);
        assert_eq!(open_all(&opener, &sealed), Ok(frames));
        let mut cases = 0;
        for frame in 0..sealed.len() {
            for bit in 0..sealed[frame].len() * 8 {
                let mut changed = sealed.clone();
                changed[frame][bit / 8] ^= 1 << (bit % 8);
                assert_eq!(open_all(&opener, &changed), Err(NotOpened), "frame {frame}, bit {bit}");
                cases += 1;
            }
            for len in 0..sealed[frame].len() {
                let mut changed = sealed.clone();
                changed[frame].truncate(len);
                assert_eq!(open_all(&opener, &changed), Err(NotOpened), "frame {frame}, {len} bytes");
                cases += 1;
            }
        }
        let bytes: usize = sealed.iter().map(Vec::len).sum();
        assert_eq!(cases, bytes * 9);
    }

    #[test]
    fn c05_every_dropped_repeated_or_swapped_frame_is_found() {
        let key = Key::random().unwrap();
        let frames: Vec<Vec<u8>> = (0..4u8).map(|n| vec![n; 20]).collect();
        let (chunk, sealed) = seal_all(&key, context(1, 2, KIND), &frames);
        let opener = Opener::new(&key, context(1, 2, KIND), chunk);
        for one in 0..sealed.len() {
            let mut dropped = sealed.clone();
            dropped.remove(one);
            assert_eq!(open_all(&opener, &dropped), Err(NotOpened), "dropped {one}");
            for other in 0..=sealed.len() {
                let mut repeated = sealed.clone();
                repeated.insert(other, sealed[one].clone());
                assert_eq!(open_all(&opener, &repeated), Err(NotOpened), "repeated {one} at {other}");
            }
            for other in 0..one {
                let mut swapped = sealed.clone();
                swapped.swap(one, other);
                assert_eq!(open_all(&opener, &swapped), Err(NotOpened), "swapped {one} and {other}");
            }
        }
    }

    #[test]
    fn c05_frames_open_for_their_own_chunk_session_workspace_kind_and_key_only() {
        let (key, other_key) = (Key::random().unwrap(), Key::random().unwrap());
        let frames = vec![b"a".to_vec(), b"b".to_vec()];
        let (chunk, sealed) = seal_all(&key, context(1, 2, KIND), &frames);
        let (other_chunk, _) = seal_all(&key, context(1, 2, KIND), &frames);
        let strangers = [
            Opener::new(&other_key, context(1, 2, KIND), chunk),
            Opener::new(&key, context(9, 2, KIND), chunk),
            Opener::new(&key, context(1, 9, KIND), chunk),
            Opener::new(&key, context(1, 2, ChunkKind::Shared), chunk),
            Opener::new(&key, context(1, 2, KIND), other_chunk),
        ];
        for (number, stranger) in strangers.iter().enumerate() {
            for (at, frame) in sealed.iter().enumerate() {
                let at = FrameAt { number: at as u32, is_last: at == 1 };
                assert_eq!(stranger.open(at, frame), Err(NotOpened), "stranger {number}");
            }
        }
    }

    #[test]
    fn c04_the_same_content_never_seals_to_the_same_bytes() {
        let key = Key::random().unwrap();
        // The last frame differs from all others by its mark: two others show whether the number counts.
        let frames = vec![b"same".to_vec(); 3];
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..100 {
            let (chunk, sealed) = seal_all(&key, context(1, 2, KIND), &frames);
            assert!(seen.insert(chunk.as_bytes().to_vec()));
            for frame in sealed {
                assert_eq!(frame.len(), 4 + TAG_BYTES);
                assert!(seen.insert(frame));
            }
        }
    }

    proptest! {
        #[test]
        fn frames_open_in_any_order(frames in prop::collection::vec(any::<Vec<u8>>(), 1..20), start: usize) {
            let key = Key::random().unwrap();
            let (chunk, sealed) = seal_all(&key, context(3, 4, KIND), &frames);
            let opener = Opener::new(&key, context(3, 4, KIND), chunk);
            for step in 0..frames.len() {
                let number = (start.wrapping_add(step * 7)) % frames.len();
                let at = FrameAt { number: number as u32, is_last: number + 1 == frames.len() };
                prop_assert_eq!(opener.open(at, &sealed[number]), Ok(frames[number].clone()));
                let wrong_end = FrameAt { is_last: !at.is_last, ..at };
                prop_assert_eq!(opener.open(wrong_end, &sealed[number]), Err(NotOpened));
            }
        }

        #[test]
        fn any_bytes_are_opened_without_panic(bytes: Vec<u8>, number: u32, is_last: bool) {
            let opener = Opener::new(&Key::new([1; 32]), context(1, 2, KIND), ChunkId::from_bytes([2; 16]));
            prop_assert_eq!(opener.open(FrameAt { number, is_last }, &bytes), Err(NotOpened));
        }
    }
}
