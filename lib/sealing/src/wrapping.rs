//! A session's data key at rest: wrapped by a workspace's key.
//!
//! Each wrapping derives a key of its own from the workspace's key and a random salt, so that wrapping the same session
//! twice, by whoever was first or by a rotation, never repeats a nonce.

use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use schemas::SessionKey;
use zeroize::Zeroizing;

use crate::keyring::KeyVersion;
use crate::{Key, NotOpened, Random, SealError, TAG_BYTES};

/// Bytes of a wrapped key: salt, ciphertext, tag.
pub const WRAPPED_BYTES: usize = 16 + 32 + TAG_BYTES;

/// A data key that only its workspace's key opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wrapped {
    /// Which version of the workspace's key opens it.
    pub version: KeyVersion,
    /// Salt and ciphertext.
    pub bytes: [u8; WRAPPED_BYTES],
}

fn cipher(key: &Key, session: &SessionKey, salt: &[u8]) -> Aes256Gcm {
    let info: [&[u8]; 3] =
        [b"clairvio wrapping v1", session.workspace.as_bytes().as_slice(), session.session.as_bytes().as_slice()];
    Aes256Gcm::new(key.derive(salt, &info).expose().into())
}

/// Wraps a session's data key.
pub fn wrap(version: KeyVersion, key: &Key, session: &SessionKey, data_key: &Key) -> Result<Wrapped, SealError> {
    let salt: [u8; 16] = Random::draw()?;
    let payload = Payload { msg: data_key.expose().as_slice(), aad: &version.0.to_be_bytes() };
    let sealed = cipher(key, session, &salt).encrypt(&Nonce::default(), payload).map_err(|_| SealError::TooLarge)?;
    let mut bytes = [0; WRAPPED_BYTES];
    bytes[..16].copy_from_slice(&salt);
    bytes[16..].copy_from_slice(&sealed);
    Ok(Wrapped { version, bytes })
}

/// Unwraps a session's data key.
pub fn unwrap(key: &Key, session: &SessionKey, wrapped: &Wrapped) -> Result<Key, NotOpened> {
    let (salt, sealed) = wrapped.bytes.split_at(16);
    let payload = Payload { msg: sealed, aad: &wrapped.version.0.to_be_bytes() };
    let opened = cipher(key, session, salt).decrypt(&Nonce::default(), payload).map_err(|_| NotOpened)?;
    let opened = Zeroizing::new(opened);
    opened.as_slice().try_into().map(Key::new).map_err(|_| NotOpened)
}

#[cfg(test)]
mod tests {
    use schemas::{SessionId, WorkspaceId};
    use uuid::Uuid;

    use super::*;

    fn session(workspace: u128, session: u128) -> SessionKey {
        SessionKey { workspace: WorkspaceId(Uuid::from_u128(workspace)), session: SessionId(Uuid::from_u128(session)) }
    }

    #[test]
    fn a_wrapped_key_opens_for_its_own_session_and_version_only() {
        let (key, other, data_key) = (Key::random().unwrap(), Key::random().unwrap(), Key::random().unwrap());
        let wrapped = wrap(KeyVersion(2), &key, &session(1, 2), &data_key).unwrap();
        assert_eq!(unwrap(&key, &session(1, 2), &wrapped).unwrap().expose(), data_key.expose());
        assert!(unwrap(&other, &session(1, 2), &wrapped).is_err());
        assert!(unwrap(&key, &session(9, 2), &wrapped).is_err());
        assert!(unwrap(&key, &session(1, 9), &wrapped).is_err());
        assert!(unwrap(&key, &session(1, 2), &Wrapped { version: KeyVersion(3), ..wrapped }).is_err());
        for bit in 0..WRAPPED_BYTES * 8 {
            let mut changed = wrapped;
            changed.bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(unwrap(&key, &session(1, 2), &changed).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn c04_wrapping_twice_gives_other_bytes() {
        let (key, data_key) = (Key::random().unwrap(), Key::random().unwrap());
        let wrap = || wrap(KeyVersion(1), &key, &session(1, 2), &data_key).unwrap();
        assert_ne!(wrap().bytes, wrap().bytes);
    }
}
