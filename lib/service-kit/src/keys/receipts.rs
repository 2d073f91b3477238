//! The keys of receipts.
//!
//! The key that signs lies with retention workers. Its public half, and those of all keys before it, stand in a file that is for
//! everybody: receipts are checked with it for as long as anybody keeps them.

use ed25519_dalek::VerifyingKey;
use serde::{Deserialize, Serialize};

use super::KeysError;
use super::tokens::{PublicKey, SecretKey, tagged};

/// What a retention worker holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiptKeys {
    /// Signs receipts.
    pub signing: SecretKey,
}

/// What everybody may have.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiptPublic {
    /// Public halves of all keys that ever signed, oldest first.
    pub keys: Vec<PublicKey>,
}

impl ReceiptPublic {
    /// The key of this id; none when there is none, or it is no key.
    pub fn verifying(&self, kid: &str) -> Option<VerifyingKey> {
        let key = self.keys.iter().find(|key| key.kid == kid)?;
        VerifyingKey::from_bytes(&key.bytes()?).ok()
    }
}

/// Fresh keys.
pub fn make() -> Result<(ReceiptKeys, ReceiptPublic), KeysError> {
    let (signing, public) = tagged("receipt")?;
    Ok((ReceiptKeys { signing }, ReceiptPublic { keys: vec![public] }))
}

/// Has a new key sign. What the old one signed is valid still.
pub fn rotate(keys: &mut ReceiptKeys, public: &mut ReceiptPublic) -> Result<(), KeysError> {
    let (signing, fresh) = tagged("receipt")?;
    keys.signing = signing;
    public.keys.push(fresh);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotated_key_is_known_for_ever() {
        let (mut keys, mut public) = make().unwrap();
        let first = keys.signing.kid.clone();
        rotate(&mut keys, &mut public).unwrap();
        assert_ne!(keys.signing.kid, first);
        for kid in [&first, &keys.signing.kid] {
            assert!(public.verifying(kid).is_some(), "{kid}");
        }
        let signs = ed25519_dalek::SigningKey::from_bytes(&keys.signing.bytes().unwrap()).verifying_key();
        assert_eq!(public.verifying(&keys.signing.kid), Some(signs));
        assert!(public.verifying("nobody").is_none());
    }
}
