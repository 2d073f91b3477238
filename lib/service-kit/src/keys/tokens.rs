//! The keys of tokens.
//!
//! The key that signs links lies with the control plane only; edges hold the public halves of it, and the session key.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use super::{KeysError, bytes32};

/// A secret key.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretKey {
    /// Its id.
    pub kid: String,
    /// 32 bytes, base64.
    secret: String,
}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SecretKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// A public key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicKey {
    /// Its id.
    pub kid: String,
    /// 32 bytes, base64.
    public: String,
}

/// What an edge holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeKeys {
    /// Links signed by these are taken.
    pub link_keys: Vec<PublicKey>,
    /// Signs session tokens.
    pub session_signing: SecretKey,
    /// Session tokens signed by these are taken too.
    #[serde(default)]
    pub session_keys: Vec<PublicKey>,
    /// Keys that are not taken any more, but to take consent back.
    #[serde(default)]
    pub retired: Vec<RetiredKey>,
}

/// A key whose tokens are not taken any more.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(untagged)]
pub enum RetiredKey {
    /// With its public half: whoever has an old token can still take consent back.
    Key(PublicKey),
    /// By its id alone.
    Id(String),
}

/// What the control plane holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlKeys {
    /// Signs links.
    pub link_signing: SecretKey,
}

impl SecretKey {
    /// The secret bytes.
    pub fn bytes(&self) -> Option<[u8; 32]> {
        bytes32(&self.secret)
    }

    fn random(kid: String) -> Result<(Self, PublicKey), KeysError> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|_| KeysError::Random)?;
        let key = Self { kid: kid.clone(), secret: STANDARD.encode(secret) };
        Ok((key, PublicKey { kid, public: public_text(&secret) }))
    }

    /// Its public half; `None` when the secret is not 32 bytes.
    pub fn public(&self) -> Option<PublicKey> {
        Some(PublicKey { kid: self.kid.clone(), public: public_text(&self.bytes()?) })
    }
}

fn public_text(secret: &[u8; 32]) -> String {
    STANDARD.encode(ed25519_dalek::SigningKey::from_bytes(secret).verifying_key().to_bytes())
}

impl PublicKey {
    /// The public bytes.
    pub fn bytes(&self) -> Option<[u8; 32]> {
        bytes32(&self.public)
    }
}

/// Fresh keys of a deployment: what its edges hold, and what its control plane holds.
pub fn make() -> Result<(EdgeKeys, ControlKeys), KeysError> {
    let mut tag = [0; 4];
    getrandom::fill(&mut tag).map_err(|_| KeysError::Random)?;
    let tag = u32::from_le_bytes(tag);
    let (link_signing, link_public) = SecretKey::random(format!("link-{tag:08x}"))?;
    let (session_signing, _) = SecretKey::random(format!("session-{tag:08x}"))?;
    let edge =
        EdgeKeys { link_keys: vec![link_public], session_signing, session_keys: Vec::new(), retired: Vec::new() };
    Ok((edge, ControlKeys { link_signing }))
}

/// A new API key: a prefix by which leaked ones are found, and 256 random bits.
pub fn make_api_key() -> Result<String, KeysError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|_| KeysError::Random)?;
    Ok(format!("clv_{}", URL_SAFE_NO_PAD.encode(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_never_shown() {
        let (edge, control) = make().unwrap();
        let text = serde_json::to_string(&control).unwrap();
        let read_back: ControlKeys = serde_json::from_str(&text).unwrap();
        assert_eq!(read_back.link_signing.bytes(), control.link_signing.bytes());
        assert!(text.contains(&control.link_signing.secret));
        assert!(!format!("{edge:?}{control:?}").contains(&control.link_signing.secret));
    }
}
