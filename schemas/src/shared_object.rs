//! Shared objects (level 0): many sessions' chunks, in order of arrival.
//!
//! Layout, version 1: the preamble (magic `CLVS`, version); the chunks; the footer's region; the trailer, see
//! [`crate::object`]. A chunk is one stream's frames, each sealed with the session's data key. Notes of the stream stand behind the
//! last of them that is no copy's, see [`crate::stream_note`]. Records
//! that could not be read lie between the chunks byte for byte and are listed in the footer with their reason. A batch that
//! came again shortly after has an entry and a frame that holds nothing, see [`BatchEntry::is_copy`].
//!
//! The footer's region: the keyring's version (4 bytes), the id of the footer's own chunk (16 bytes), and the footer, one zstd
//! frame with a checksum, sealed with the storage key. An object of kind quarantine has the same layout; its chunks are those
//! that could not be merged, moved byte for byte.

use crate::codec::{self, FormatError, Reader, Writer};
use crate::facts::BatchFacts;
use crate::ids::{ObjectId, SessionId, SessionKey, WorkspaceId};
use crate::limits;

/// One batch in a chunk: one zstd frame, sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchEntry {
    /// The batch's number in its stream.
    pub seq: u32,
    /// Whether it is the last of its stream.
    pub end: bool,
    /// Offset of its record in the partition.
    pub offset: u64,
    /// Length of the sealed frame in bytes.
    pub len: u32,
    /// What the edge found in it.
    pub facts: BatchFacts,
}

/// Bytes of a sealed frame that holds nothing: its tag alone.
pub const EMPTY_FRAME_BYTES: u32 = 16;

impl BatchEntry {
    /// Whether only that the batch came again is noted: its frame holds nothing, an earlier one of the same partition has the
    /// events. A batch without events is stored as no bytes, or as notes alone, and is no copy of anything. A copy has no notes.
    pub fn is_copy(&self) -> bool {
        self.len == EMPTY_FRAME_BYTES && self.facts.raw_bytes > 0
    }
}

/// One stream's frames in this object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// The session.
    pub key: SessionKey,
    /// The stream.
    pub stream: u32,
    /// Names the chunk's own key.
    pub id: [u8; 16],
    /// Where the first frame begins.
    pub at: u64,
    /// The frames, in the order in which they lie.
    pub batches: Vec<BatchEntry>,
}

impl Chunk {
    /// Bytes of all frames.
    pub fn len(&self) -> u64 {
        self.batches.iter().map(|batch| u64::from(batch.len)).sum()
    }

    /// The frame that may have notes behind its events: the last that is no copy's. Its number, and where it begins.
    pub fn noted_frame(&self) -> Option<(usize, u64)> {
        let number = self.batches.iter().rposition(|batch| !batch.is_copy())?;
        let before: u64 = self.batches[..number].iter().map(|batch| u64::from(batch.len)).sum();
        Some((number, self.at.saturating_add(before)))
    }

    /// Whether the chunk has no frames; no writer makes such a chunk.
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }
}

/// Why a record lies in quarantine. Its number stands in the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum QuarantineReason {
    /// The header does not decode.
    Header = 1,
    /// The format's version is newer than the reader.
    Version = 2,
    /// The payload does not fit what the header says of it.
    Payload = 3,
    /// There is no key of its epoch.
    Key = 4,
    /// It was sealed as another record, or changed since.
    Seal = 5,
    /// The key of its session does not open. It was opened and is kept under the seal of a record again.
    SessionKey = 6,
}

impl QuarantineReason {
    /// All of them.
    pub const ALL: &[Self] = &[Self::Header, Self::Version, Self::Payload, Self::Key, Self::Seal, Self::SessionKey];

    fn from_u8(value: u8) -> Result<Self, FormatError> {
        match value {
            1 => Ok(Self::Header),
            2 => Ok(Self::Version),
            3 => Ok(Self::Payload),
            4 => Ok(Self::Key),
            5 => Ok(Self::Seal),
            6 => Ok(Self::SessionKey),
            _ => Err(FormatError::Field("reason")),
        }
    }

    /// The word for metrics and lists.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Version => "version",
            Self::Payload => "payload",
            Self::Key => "key",
            Self::Seal => "seal",
            Self::SessionKey => "session_key",
        }
    }

    /// The reason with this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == word)
    }
}

/// A record that could not be read, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Offset of the record in the partition.
    pub offset: u64,
    /// The record's key in the log: without it nobody could open the record later. A longer one than any of ours is cut.
    pub record_key: Vec<u8>,
    /// Where its bytes begin.
    pub at: u64,
    /// How many.
    pub len: u32,
    /// Why.
    pub reason: QuarantineReason,
}

impl Quarantined {
    /// An object of which no footer could be read, kept whole: its first `len` bytes, to be moved as they are. It is no record:
    /// one whose payload is at fault has opened, and so has its session's id as its key.
    pub fn damaged_object(len: u32) -> Self {
        Self { offset: 0, record_key: Vec::new(), at: 0, len, reason: QuarantineReason::Payload }
    }

    /// Whether this is a damaged object, and no record.
    pub fn is_damaged_object(&self) -> bool {
        self.reason == QuarantineReason::Payload && self.record_key.is_empty()
    }
}

/// The footer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// The object that it is of: footers of other objects are found.
    pub object: ObjectId,
    /// The partition that the records came from.
    pub partition: i32,
    /// The first offset that the object covers.
    pub offset_first: u64,
    /// The offset behind the last that it covers.
    pub offset_next: u64,
    /// Chunks, ordered by session and stream.
    pub chunks: Vec<Chunk>,
    /// Unreadable records.
    pub quarantined: Vec<Quarantined>,
}

impl Footer {
    /// The footer with the chunks of one session alone; `None` when it has none. What is not read any more is not in it.
    pub fn of_session(&self, key: &SessionKey) -> Option<Self> {
        let chunks: Vec<Chunk> = self.chunks.iter().filter(|chunk| chunk.key == *key).cloned().collect();
        (!chunks.is_empty()).then(|| Self { chunks, quarantined: Vec::new(), ..*self })
    }

    /// The footer's bytes, compressed.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.raw(self.object.as_bytes());
        writer.int(i64::from(self.partition));
        writer.uint(self.offset_first);
        writer.uint(self.offset_next);
        writer.uint(self.chunks.len() as u64);
        for chunk in &self.chunks {
            writer.raw(chunk.key.workspace.as_bytes());
            writer.raw(chunk.key.session.as_bytes());
            writer.uint(u64::from(chunk.stream));
            writer.raw(&chunk.id);
            writer.uint(chunk.at);
            writer.uint(chunk.batches.len() as u64);
            for batch in &chunk.batches {
                writer.uint(u64::from(batch.seq));
                writer.u8(u8::from(batch.end));
                writer.uint(batch.offset);
                writer.uint(u64::from(batch.len));
                batch.facts.write(&mut writer);
            }
        }
        writer.uint(self.quarantined.len() as u64);
        for record in &self.quarantined {
            writer.uint(record.offset);
            writer.bytes(&record.record_key);
            writer.uint(record.at);
            writer.uint(u64::from(record.len));
            writer.u8(record.reason as u8);
        }
        codec::compress_footer(&writer.into_bytes())
    }

    /// Reads a footer. The ranges that it names are checked against `body_len`, the place where the footer begins.
    pub fn decode(bytes: &[u8], body_len: u64) -> Result<Self, FormatError> {
        let raw = codec::decompress(bytes, limits::FOOTER_RAW_BYTES_MAX)?;
        let mut reader = Reader::new(&raw);
        let object = ObjectId::from_bytes(reader.array()?);
        let partition = i32::try_from(reader.int()?).map_err(|_| FormatError::Field("partition"))?;
        let offset_first = reader.uint()?;
        let offset_next = reader.uint()?;
        let chunk_count = reader.count(51, "chunks")?;
        let mut chunks = Vec::with_capacity(chunk_count);
        for _ in 0..chunk_count {
            let key = SessionKey {
                workspace: WorkspaceId::from_bytes(reader.array()?),
                session: SessionId::from_bytes(reader.array()?),
            };
            let stream = reader.uint32("stream")?;
            let id = reader.array()?;
            let at = reader.uint()?;
            let batch_count = reader.count(20, "batches")?;
            let mut batches = Vec::with_capacity(batch_count);
            for _ in 0..batch_count {
                batches.push(BatchEntry {
                    seq: reader.uint32("seq")?,
                    end: reader.flag("end")?,
                    offset: reader.uint()?,
                    len: reader.uint32("len")?,
                    facts: BatchFacts::read(&mut reader)?,
                });
            }
            let chunk = Chunk { key, stream, id, at, batches };
            // No writer makes such a chunk; millions of them would be cheap to write and dear to hold.
            if chunk.is_empty() {
                return Err(FormatError::Field("batches"));
            }
            if at.checked_add(chunk.len()).is_none_or(|end| end > body_len) {
                return Err(FormatError::Field("chunk range"));
            }
            chunks.push(chunk);
        }
        let quarantined_count = reader.count(5, "quarantined")?;
        let mut quarantined = Vec::with_capacity(quarantined_count);
        for _ in 0..quarantined_count {
            let record = Quarantined {
                offset: reader.uint()?,
                record_key: reader.bytes(limits::RECORD_KEY_BYTES_MAX, "record_key")?.to_vec(),
                at: reader.uint()?,
                len: reader.uint32("len")?,
                reason: QuarantineReason::from_u8(reader.u8()?)?,
            };
            if record.at.checked_add(u64::from(record.len)).is_none_or(|end| end > body_len) {
                return Err(FormatError::Field("quarantine range"));
            }
            quarantined.push(record);
        }
        reader.finish()?;
        Ok(Self { object, partition, offset_first, offset_next, chunks, quarantined })
    }
}

/// A small Bloom filter of the sessions in an object: it stands in the object's row, so that reading one session
/// does not open every footer. Ten bits and five probes per session: 1 % false positives (Bloom, 1970).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionFilter(Vec<u8>);

const FILTER_BITS_PER_SESSION: usize = 10;
const FILTER_PROBES: u64 = 5;
/// Probes of few bits often fall together: one session in 16 bits would be taken for one in sixty others.
const FILTER_BYTES_MIN: usize = 16;

impl SessionFilter {
    /// The filter of these sessions.
    pub fn build<'a>(keys: impl ExactSizeIterator<Item = &'a SessionKey>) -> Self {
        let mut bits = vec![0; (keys.len() * FILTER_BITS_PER_SESSION).div_ceil(8).max(FILTER_BYTES_MIN)];
        for key in keys {
            for bit in Self::probes(key, bits.len()) {
                bits[bit / 8] |= 1 << (bit % 8);
            }
        }
        Self(bits)
    }

    /// The filter with these bytes, as they stand in the index.
    pub fn from_bytes(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes for the index.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// `false` only when the session is not in the object.
    pub fn may_contain(&self, key: &SessionKey) -> bool {
        // An empty filter says nothing: it must not hide a session.
        self.0.is_empty() || Self::probes(key, self.0.len()).all(|bit| self.0[bit / 8] & (1 << (bit % 8)) != 0)
    }

    fn probes(key: &SessionKey, bytes: usize) -> impl Iterator<Item = usize> {
        // Double hashing (Kirsch and Mitzenmacher, 2006): two hashes give all probes.
        let mut whole = [0; 32];
        whole[..16].copy_from_slice(key.workspace.as_bytes());
        whole[16..].copy_from_slice(key.session.as_bytes());
        let hash = xxhash_rust::xxh3::xxh3_128(&whole);
        let (first, second) = (hash as u64, (hash >> 64) as u64 | 1);
        let bits = bytes as u64 * 8;
        (0..FILTER_PROBES).map(move |probe| (first.wrapping_add(probe.wrapping_mul(second)) % bits) as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn key(n: u128) -> SessionKey {
        SessionKey { workspace: WorkspaceId(Uuid::from_u128(1)), session: SessionId(Uuid::from_u128(n)) }
    }

    fn sample() -> Footer {
        Footer {
            object: ObjectId(Uuid::from_u128(8)),
            partition: 3,
            offset_first: 10,
            offset_next: 14,
            chunks: vec![Chunk {
                key: key(2),
                stream: 9,
                id: [6; 16],
                at: 5,
                batches: vec![BatchEntry { seq: 0, end: true, offset: 11, len: 40, facts: BatchFacts::default() }],
            }],
            quarantined: vec![Quarantined {
                offset: 12,
                record_key: vec![9; 16],
                at: 45,
                len: 5,
                reason: QuarantineReason::Header,
            }],
        }
    }

    #[test]
    fn notes_are_looked_for_behind_the_last_frame_that_is_no_copy_s() {
        let batch = |len, raw_bytes| {
            let facts = BatchFacts { raw_bytes, ..BatchFacts::default() };
            BatchEntry { seq: 0, end: false, offset: 11, len, facts }
        };
        let (events, copy, empty) = (batch(40, 20), batch(16, 20), batch(16, 0));
        let check = |batches: &[&BatchEntry], expect: Option<(usize, u64)>| {
            let batches = batches.iter().map(|batch| (*batch).clone()).collect();
            assert_eq!(Chunk { batches, ..sample().chunks[0].clone() }.noted_frame(), expect);
        };
        check(&[&events, &events], Some((1, 45)));
        check(&[&events, &copy, &events, &copy, &copy], Some((2, 61)));
        check(&[&events, &empty], Some((1, 45)));
        check(&[&copy, &copy], None);
    }

    #[test]
    fn footers_read_back_and_ranges_outside_the_body_are_refused() {
        let bytes = sample().encode();
        assert_eq!(Footer::decode(&bytes, 50), Ok(sample()));
        assert_eq!(Footer::decode(&bytes, 49), Err(FormatError::Field("quarantine range")));
        assert_eq!(Footer::decode(&bytes, 44), Err(FormatError::Field("chunk range")));
        for len in 0..bytes.len() {
            assert!(Footer::decode(&bytes[..len], 50).is_err(), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn a_filter_never_hides_a_session(ids in prop::collection::vec(any::<u128>(), 0..200)) {
            let keys: Vec<_> = ids.into_iter().map(key).collect();
            let filter = SessionFilter::build(keys.iter());
            let stored = SessionFilter::from_bytes(filter.as_bytes().to_vec());
            prop_assert!(keys.iter().all(|key| stored.may_contain(key)));
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(raw: Vec<u8>) {
            let _ = Footer::decode(&codec::compress_footer(&raw), 1000);
            let _ = Footer::decode(&raw, 1000);
        }
    }

    #[test]
    fn every_reason_has_its_number_and_its_word() {
        let numbered: Vec<_> = (0..=u8::MAX).filter_map(|number| QuarantineReason::from_u8(number).ok()).collect();
        assert_eq!(numbered, QuarantineReason::ALL);
        for reason in QuarantineReason::ALL {
            assert_eq!(QuarantineReason::from_u8(*reason as u8), Ok(*reason));
            assert_eq!(QuarantineReason::parse(reason.as_str()), Some(*reason));
        }
        assert_eq!(QuarantineReason::parse("Key"), None);
    }

    #[test]
    fn a_filter_lets_few_strangers_through() {
        let keys: Vec<_> = (0..1000).map(key).collect();
        let filter = SessionFilter::build(keys.iter());
        let strangers = (10_000..20_000).filter(|n| filter.may_contain(&key(*n))).count();
        assert!(strangers < 300, "{strangers} of 10,000");
    }
}
