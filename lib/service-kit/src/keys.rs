//! Key files: where a process finds the keys of tokens.
//!
//! The key that signs links lies with the control plane only; edges hold the public halves of it, and the session key.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use thiserror::Error;

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
    /// Ids of keys that are not taken any more.
    #[serde(default)]
    pub retired: Vec<String>,
}

/// What the control plane holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlKeys {
    /// Signs links.
    pub link_signing: SecretKey,
}

/// Why keys cannot be had.
#[derive(Debug, Error)]
pub enum KeysError {
    /// The file cannot be read.
    #[error("read key file {path}\n  hint: make one with `clairvio keys make`")]
    Read {
        /// Where it was looked for.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be. Its content is not shown.
    #[error("parse key file {0}\n  hint: make a new one with `clairvio keys make`")]
    Parse(String),
    /// The file cannot be written.
    #[error("write key file {path}")]
    Write {
        /// Where.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The machine gives no randomness.
    #[error("draw random bytes")]
    Random,
}

fn bytes32(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

impl SecretKey {
    /// The secret bytes.
    pub fn bytes(&self) -> Option<[u8; 32]> {
        bytes32(&self.secret)
    }

    fn random(kid: String) -> Result<(Self, PublicKey), KeysError> {
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(|_| KeysError::Random)?;
        let public = ed25519_dalek::SigningKey::from_bytes(&secret).verifying_key().to_bytes();
        let key = Self { kid: kid.clone(), secret: STANDARD.encode(secret) };
        Ok((key, PublicKey { kid, public: STANDARD.encode(public) }))
    }
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

/// Reads a key file.
pub fn read<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, KeysError> {
    let shown = || path.display().to_string();
    let text = std::fs::read(path).map_err(|source| KeysError::Read { path: shown(), source })?;
    // The parser's error could quote the file: only its path is told.
    serde_json::from_slice(&text).map_err(|_| KeysError::Parse(shown()))
}

/// Writes a new key file that only its owner can read. An existing one is never overwritten.
pub fn write(path: &Path, keys: &impl Serialize) -> Result<(), KeysError> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let failed = |source| KeysError::Write { path: path.display().to_string(), source };
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let text = serde_json::to_vec_pretty(keys).map_err(|error| failed(error.into()))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_and_are_never_overwritten_or_shown() {
        let (edge, control) = make().unwrap();
        let path = std::env::temp_dir().join(format!("clairvio-keys-{}", uuid::Uuid::now_v7()));
        write(&path, &edge).unwrap();
        assert!(matches!(write(&path, &edge), Err(KeysError::Write { .. })));
        let read_back: EdgeKeys = read(&path).unwrap();
        assert_eq!(read_back.session_signing.bytes(), edge.session_signing.bytes());
        assert!(!format!("{edge:?}{control:?}").contains(&control.link_signing.secret));
        std::fs::write(&path, "{\"link_keys\": 7}").unwrap();
        assert!(matches!(read::<EdgeKeys>(&path), Err(KeysError::Parse(_))));
        std::fs::remove_file(&path).unwrap();
    }
}
