//! A record on its way through the log.
//!
//! A process that produces draws a salt, and derives its key from the epoch's; its records are numbered, and the number is
//! the nonce. Header and payload are sealed as one; the envelope, the topic and the record's key are bound in, and what the
//! record is (workspace, session, stream, seq) is part of what is sealed: a record cannot be passed off as another's, nor
//! come through another topic. When an epoch's key is destroyed, what the log still holds of that epoch is worth nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use aes_gcm::aead::{AeadInOut as _, KeyInit as _};
use aes_gcm::{Aes256Gcm, Nonce};
use schemas::codec::{self, FormatError};
use schemas::record::{self, ENVELOPE_BYTES, Envelope, Header};
use schemas::shared_object::QuarantineReason;

use crate::{Key, NotOpened, Random, SealError, TAG_BYTES};

/// Records that one process seals in one epoch at most. NIST SP 800-38D bounds invocations at 2^32 only where nonces are
/// random; these are counted, and what remains is the bound on blocks under one key: 2^48 records of 2^16 blocks (RFC 8446's
/// reasoning for 2^64 blocks).
pub const RECORDS_MAX: u64 = 1 << 48;

/// Names an epoch's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpochId(pub u32);

impl fmt::Display for EpochId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Where in the log a record stands. Bound in.
#[derive(Debug, Clone, Copy)]
pub struct LogPlace<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The record's key.
    pub key: &'a [u8],
}

fn associated_data(place: &LogPlace<'_>, envelope: &[u8; ENVELOPE_BYTES]) -> Vec<u8> {
    let mut data = Vec::with_capacity(ENVELOPE_BYTES + 8 + place.key.len() + place.topic.len());
    data.extend_from_slice(envelope);
    data.extend_from_slice(&(place.key.len() as u64).to_le_bytes());
    data.extend_from_slice(place.key);
    // Last, since its length varies and that of all before it is fixed or told.
    data.extend_from_slice(place.topic.as_bytes());
    data
}

fn cipher(key: &Key, epoch: EpochId, salt: &[u8; 16]) -> Aes256Gcm {
    let subkey = key.derive(salt, &[b"clairvio transport v1", &epoch.0.to_be_bytes()]);
    Aes256Gcm::new(subkey.expose().into())
}

fn nonce(number: u64) -> Nonce<aes_gcm::aead::consts::U12> {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    nonce.into()
}

/// Seals the records of one process in one epoch.
pub struct RecordSealer {
    cipher: Aes256Gcm,
    epoch: EpochId,
    salt: [u8; 16],
    next: AtomicU64,
}

impl fmt::Debug for RecordSealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordSealer").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

impl RecordSealer {
    /// A sealer under a fresh salt: a process that starts again never repeats a nonce.
    pub fn new(key: &Key, epoch: EpochId) -> Result<Self, SealError> {
        let salt = Random::draw()?;
        Ok(Self { cipher: cipher(key, epoch, &salt), epoch, salt, next: AtomicU64::new(0) })
    }

    /// The epoch.
    pub fn epoch(&self) -> EpochId {
        self.epoch
    }

    /// Seals a record: its value, ready for the log.
    pub fn seal(&self, place: &LogPlace<'_>, header: &Header, payload: &[u8]) -> Result<Vec<u8>, SealError> {
        // Relaxed: only the numbers' being different matters, not their order.
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number >= RECORDS_MAX {
            return Err(SealError::Worn);
        }
        let envelope = Envelope { epoch: self.epoch.0, salt: self.salt, number }.to_bytes();
        let header = record::encode(header);
        let mut value = Vec::with_capacity(ENVELOPE_BYTES + header.len() + payload.len() + TAG_BYTES);
        value.extend_from_slice(&envelope);
        value.extend_from_slice(&header);
        value.extend_from_slice(payload);
        let tag = self
            .cipher
            .encrypt_inout_detached(
                &nonce(number),
                &associated_data(place, &envelope),
                value[ENVELOPE_BYTES..].as_mut().into(),
            )
            .map_err(|_| SealError::TooLarge)?;
        value.extend_from_slice(&tag);
        Ok(value)
    }
}

/// Why a record does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The envelope or the header is not what it should be.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// There is no key of its epoch: it was destroyed, or has not arrived here yet.
    #[error("no key of transport epoch {0}")]
    KeyMissing(EpochId),
    /// It was sealed as another record, or changed since.
    #[error(transparent)]
    NotOpened(#[from] NotOpened),
}

/// A record that was opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// Its header.
    pub header: Header,
    /// Header and payload.
    pub bytes: Vec<u8>,
    /// Where the payload begins in `bytes`.
    pub payload_at: usize,
}

/// The keys of the epochs that can be opened.
#[derive(Debug, Clone, Default)]
pub struct EpochKeys(BTreeMap<EpochId, Key>);

impl EpochKeys {
    /// These epochs' keys.
    pub fn new(keys: BTreeMap<EpochId, Key>) -> Self {
        Self(keys)
    }

    /// An epoch's key.
    pub fn get(&self, epoch: EpochId) -> Option<&Key> {
        self.0.get(&epoch)
    }

    /// Opens a record's value.
    pub fn open(&self, place: &LogPlace<'_>, value: &[u8]) -> Result<Opened, RecordError> {
        let (envelope, sealed) = Envelope::read(value)?;
        // As it stands there, not as it would be written now: a record of an older version was sealed with its own.
        let (clear, _) = value.split_first_chunk::<ENVELOPE_BYTES>().ok_or(FormatError::Truncated)?;
        let epoch = EpochId(envelope.epoch);
        let key = self.get(epoch).ok_or(RecordError::KeyMissing(epoch))?;
        let (sealed, tag) = sealed.split_last_chunk::<TAG_BYTES>().ok_or(NotOpened)?;
        let mut bytes = sealed.to_vec();
        cipher(key, epoch, &envelope.salt)
            .decrypt_inout_detached(
                &nonce(envelope.number),
                &associated_data(place, clear),
                bytes.as_mut_slice().into(),
                tag.into(),
            )
            .map_err(|_| NotOpened)?;
        let (header, payload_at) = record::decode(&bytes)?;
        Ok(Opened { header, bytes, payload_at })
    }

    /// Opens a record as a batcher takes it: it must fit its key in the log, and its payload what the header says of it. Else
    /// this is why it goes into quarantine.
    pub fn read(&self, place: &LogPlace<'_>, value: &[u8]) -> Result<Opened, QuarantineReason> {
        let opened = self.open(place, value).map_err(|error| match error {
            RecordError::Format(FormatError::Version(_)) => QuarantineReason::Version,
            RecordError::Format(_) => QuarantineReason::Header,
            RecordError::KeyMissing(_) => QuarantineReason::Key,
            RecordError::NotOpened(_) => QuarantineReason::Seal,
        })?;
        fault(&opened.header, &opened.bytes[opened.payload_at..], place.key).map_or(Ok(opened), Err)
    }
}

/// What is wrong with a record that opens; the edge makes none with such a fault.
fn fault(header: &Header, payload: &[u8], record_key: &[u8]) -> Option<QuarantineReason> {
    let is_of = |session: &schemas::SessionKey| session.session.as_bytes() == record_key;
    match header {
        Header::Acceptance { key, .. } => (!is_of(key)).then_some(QuarantineReason::Header),
        Header::Batch { key, .. } if !is_of(key) => Some(QuarantineReason::Header),
        // Notes of streams are batchers', and come behind what is stored.
        Header::Batch { facts, .. } if facts.raw_bytes == 0 => {
            (!payload.is_empty()).then_some(QuarantineReason::Payload)
        }
        Header::Batch { facts, .. } => {
            (!codec::frame_holds(payload, facts.raw_bytes as usize)).then_some(QuarantineReason::Payload)
        }
        Header::Declines { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use schemas::WorkspaceId;
    use uuid::Uuid;

    use super::*;

    const PLACE: LogPlace<'_> = LogPlace { topic: "t", key: b"session" };

    fn header() -> Header {
        Header::Declines { workspace: WorkspaceId(Uuid::from_u128(1)), hour_ms: 2, count: 3 }
    }

    fn keys(key: &Key) -> EpochKeys {
        EpochKeys::new([(EpochId(3), key.clone())].into())
    }

    #[test]
    fn c05_a_record_opens_as_what_it_was_sealed_as_and_as_nothing_else() {
        let (key, other) = (Key::random().unwrap(), Key::random().unwrap());
        let sealer = RecordSealer::new(&key, EpochId(3)).unwrap();
        let sealed = sealer.seal(&PLACE, &header(), b"payload").unwrap();
        let opened = keys(&key).open(&PLACE, &sealed).unwrap();
        assert_eq!((&opened.header, &opened.bytes[opened.payload_at..]), (&header(), b"payload".as_slice()));

        let strangers = [
            LogPlace { topic: "u", ..PLACE },
            LogPlace { key: b"sessions", ..PLACE },
            // The same bytes, divided otherwise.
            LogPlace { topic: "nt", key: b"sessio" },
        ];
        for stranger in strangers {
            assert_eq!(keys(&key).open(&stranger, &sealed), Err(NotOpened.into()), "{stranger:?}");
        }
        assert_eq!(keys(&other).open(&PLACE, &sealed), Err(NotOpened.into()));
        assert_eq!(EpochKeys::default().open(&PLACE, &sealed), Err(RecordError::KeyMissing(EpochId(3))));
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(keys(&key).open(&PLACE, &changed).is_err(), "bit {bit}");
        }
        for len in 0..sealed.len() {
            assert!(keys(&key).open(&PLACE, &sealed[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn c04_processes_and_records_never_share_a_nonce_under_one_key() {
        let key = Key::random().unwrap();
        let (mut seen, mut sealed_parts) = (std::collections::BTreeSet::new(), std::collections::BTreeSet::new());
        for _ in 0..20 {
            let sealer = RecordSealer::new(&key, EpochId(1)).unwrap();
            for _ in 0..20 {
                let sealed = sealer.seal(&PLACE, &header(), b"same").unwrap();
                let (envelope, sealed) = Envelope::read(&sealed).unwrap();
                assert!(seen.insert((envelope.salt, envelope.number)));
                // The tag tells envelopes apart, whatever the nonce is: without it the same key stream would show.
                assert!(sealed_parts.insert(sealed[..sealed.len() - TAG_BYTES].to_vec()));
            }
        }
    }

    #[test]
    fn c04_a_worn_sealer_seals_no_more() {
        let sealer = RecordSealer::new(&Key::random().unwrap(), EpochId(1)).unwrap();
        sealer.next.store(RECORDS_MAX, Ordering::Relaxed);
        assert_eq!(sealer.seal(&PLACE, &header(), b""), Err(SealError::Worn));
    }
}
