//! A record on its way through the log.
//!
//! A process that produces draws a salt, and derives its key from the epoch's; its records are numbered, and the number is
//! the nonce. What the record is (topic, workspace, session, stream, seq, epoch) is bound in: a record cannot be passed
//! off as another's. When an epoch's key is destroyed, what the log still holds of that epoch is worth nothing.

use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use schemas::{SessionKey, StreamSeq};

use crate::{Key, NotOpened, Random, SealError};

/// Names an epoch's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EpochId(pub u32);

/// Names a producing process's key within its epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessSalt([u8; 16]);

impl ProcessSalt {
    /// The salt with these bytes, for opening.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// The bytes, for the record.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

/// What a record is.
#[derive(Debug, Clone, Copy)]
pub struct RecordContext<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The session and its workspace; nil ids for what belongs to no session.
    pub session: SessionKey,
    /// Its place in the session; the first for what has none.
    pub place: StreamSeq,
}

fn associated_data(context: &RecordContext<'_>, epoch: EpochId) -> Vec<u8> {
    let mut data = Vec::with_capacity(48 + context.topic.len());
    data.extend_from_slice(context.session.workspace.as_bytes());
    data.extend_from_slice(context.session.session.as_bytes());
    data.extend_from_slice(&context.place.stream().to_be_bytes());
    data.extend_from_slice(&context.place.seq().to_be_bytes());
    data.extend_from_slice(&epoch.0.to_be_bytes());
    // Last, since its length varies and all before it is fixed.
    data.extend_from_slice(context.topic.as_bytes());
    data
}

fn cipher(key: &Key, epoch: EpochId, salt: ProcessSalt) -> Aes256Gcm {
    let subkey = key.derive(salt.as_bytes(), &[b"clairvio transport v1", &epoch.0.to_be_bytes()]);
    Aes256Gcm::new(subkey.expose().into())
}

fn nonce(number: u64) -> Nonce<aes_gcm::aead::consts::U12> {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&number.to_be_bytes());
    nonce.into()
}

/// A sealed record, and what opening it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// The epoch.
    pub epoch: EpochId,
    /// The process.
    pub salt: ProcessSalt,
    /// The number of the record within its process.
    pub number: u64,
    /// The ciphertext.
    pub bytes: Vec<u8>,
}

/// Seals the records of one process in one epoch.
pub struct RecordSealer {
    cipher: Aes256Gcm,
    epoch: EpochId,
    salt: ProcessSalt,
    next: u64,
}

impl std::fmt::Debug for RecordSealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordSealer").field("epoch", &self.epoch).field("next", &self.next).finish_non_exhaustive()
    }
}

impl RecordSealer {
    /// A sealer under a fresh salt: a process that starts again never repeats a nonce.
    pub fn new(key: &Key, epoch: EpochId) -> Result<Self, SealError> {
        let salt = ProcessSalt(Random::draw()?);
        Ok(Self { cipher: cipher(key, epoch, salt), epoch, salt, next: 0 })
    }

    /// Seals a record.
    pub fn seal(&mut self, context: &RecordContext<'_>, record: &[u8]) -> Result<Sealed, SealError> {
        let number = self.next;
        // NIST SP 800-38D bounds a key's invocations at 2^32 only for random nonces; these are counted.
        self.next = number.checked_add(1).ok_or(SealError::Exhausted(u32::MAX))?;
        let payload = Payload { msg: record, aad: &associated_data(context, self.epoch) };
        let bytes = self.cipher.encrypt(&nonce(number), payload).map_err(|_| SealError::TooLarge)?;
        Ok(Sealed { epoch: self.epoch, salt: self.salt, number, bytes })
    }
}

/// Opens a record with its epoch's key.
pub fn open(key: &Key, context: &RecordContext<'_>, sealed: &Sealed) -> Result<Vec<u8>, NotOpened> {
    let payload = Payload { msg: &sealed.bytes, aad: &associated_data(context, sealed.epoch) };
    cipher(key, sealed.epoch, sealed.salt).decrypt(&nonce(sealed.number), payload).map_err(|_| NotOpened)
}

#[cfg(test)]
mod tests {
    use schemas::{SessionId, WorkspaceId};
    use uuid::Uuid;

    use super::*;

    fn context(topic: &str, workspace: u128, session: u128, seq: u32) -> RecordContext<'_> {
        let session = SessionKey {
            workspace: WorkspaceId(Uuid::from_u128(workspace)),
            session: SessionId(Uuid::from_u128(session)),
        };
        RecordContext { topic, session, place: StreamSeq::new(5, seq).unwrap() }
    }

    #[test]
    fn a_record_opens_as_what_it_was_sealed_as_and_as_nothing_else() {
        let (key, other) = (Key::random().unwrap(), Key::random().unwrap());
        let mut sealer = RecordSealer::new(&key, EpochId(3)).unwrap();
        let sealed = sealer.seal(&context("t", 1, 2, 7), b"record").unwrap();
        assert_eq!(open(&key, &context("t", 1, 2, 7), &sealed), Ok(b"record".to_vec()));
        for stranger in [context("u", 1, 2, 7), context("t", 9, 2, 7), context("t", 1, 9, 7), context("t", 1, 2, 8)] {
            assert_eq!(open(&key, &stranger, &sealed), Err(NotOpened));
        }
        assert_eq!(open(&other, &context("t", 1, 2, 7), &sealed), Err(NotOpened));
        let moved = [
            Sealed { epoch: EpochId(4), ..sealed.clone() },
            Sealed { number: sealed.number + 1, ..sealed.clone() },
            Sealed { salt: ProcessSalt::from_bytes([0; 16]), ..sealed.clone() },
        ];
        for changed in moved {
            assert_eq!(open(&key, &context("t", 1, 2, 7), &changed), Err(NotOpened));
        }
        for bit in 0..sealed.bytes.len() * 8 {
            let mut changed = sealed.clone();
            changed.bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(open(&key, &context("t", 1, 2, 7), &changed), Err(NotOpened), "bit {bit}");
        }
    }

    #[test]
    fn c04_processes_and_records_never_share_a_nonce_under_one_key() {
        let key = Key::random().unwrap();
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..20 {
            let mut sealer = RecordSealer::new(&key, EpochId(1)).unwrap();
            for _ in 0..20 {
                let sealed = sealer.seal(&context("t", 1, 2, 7), b"same").unwrap();
                assert!(seen.insert((*sealed.salt.as_bytes(), sealed.number)));
            }
        }
    }
}
