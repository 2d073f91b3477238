//! Keys: 32 bytes that are wiped when they go, and never shown.

use std::fmt;

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::SealError;

/// A secret of 256 bits.
#[derive(Clone)]
pub struct Key(Zeroizing<[u8; 32]>);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(secret)")
    }
}

impl Key {
    /// The key with these bytes. The caller wipes its own copy.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// A fresh key.
    pub fn random() -> Result<Self, SealError> {
        Random::draw().map(Self::new)
    }

    /// The bytes, for wrapping and for key files.
    pub fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key for one purpose: HKDF-SHA256 (RFC 5869), `salt` fresh and random, `info` naming purpose and owner.
    pub(crate) fn derive(&self, salt: &[u8], info: &[&[u8]]) -> Self {
        let mut derived = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(salt), self.0.as_slice())
            .expand_multi_info(info, derived.as_mut_slice())
            .expect("32 bytes are fewer than HKDF's bound of 255 hashes");
        Self(derived)
    }
}

/// Randomness of the system.
#[derive(Debug, Clone, Copy)]
pub struct Random;

impl Random {
    /// Fresh random bytes.
    pub fn draw<const N: usize>() -> Result<[u8; N], SealError> {
        let mut bytes = [0; N];
        getrandom::fill(&mut bytes).map_err(|_| SealError::Random)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_fresh_and_never_shown() {
        let (one, other) = (Key::random().unwrap(), Key::random().unwrap());
        assert_ne!(one.expose(), other.expose());
        assert_eq!(format!("{one:?}"), "Key(secret)");
    }

    #[test]
    fn derived_keys_differ_by_salt_and_by_purpose() {
        let key = Key::new([7; 32]);
        let derived = |salt: &[u8], info: &[&[u8]]| *key.derive(salt, info).expose();
        assert_eq!(derived(b"s", &[b"a"]), derived(b"s", &[b"a"]));
        assert_ne!(derived(b"s", &[b"a"]), derived(b"t", &[b"a"]));
        assert_ne!(derived(b"s", &[b"a"]), derived(b"s", &[b"b"]));
    }
}
