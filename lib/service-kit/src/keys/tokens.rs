//! The keys of tokens.
//!
//! The key that signs links lies with the control plane only; edges hold the public halves of it, and the session key. Beside
//! each key that signs another stands ready, and its tokens are taken already: by the time it signs, every edge knows it.

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
    /// Signs them after the next rotation. Its tokens are taken already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_next: Option<SecretKey>,
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
    /// A key of session tokens, with its public half: whoever has an old token can still take consent back.
    Session(PublicKey),
    /// By its id alone: a key of links, which never could, or one of session tokens that has leaked.
    Id(String),
}

/// What the control plane holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControlKeys {
    /// Signs links.
    pub link_signing: SecretKey,
    /// Signs them after the next rotation. Edges take its links already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_next: Option<SecretKey>,
}

impl RetiredKey {
    /// The key's id.
    pub fn kid(&self) -> &str {
        match self {
            Self::Session(key) => &key.kid,
            Self::Id(kid) => kid,
        }
    }
}

/// Why a key of tokens is not retired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RetireError {
    /// No key of this id is among those that are taken.
    #[error("retire key: there is none of this id\n  hint: `clairvio keys list` shows all")]
    Unknown,
    /// It signs, or will after the next rotation.
    #[error("retire key: it signs, or stands ready to\n  hint: run `clairvio keys rotate tokens` first")]
    InUse,
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
    let (session_next, link_next) = (None, None);
    let (session_keys, retired) = (Vec::new(), Vec::new());
    let mut edge = EdgeKeys { link_keys: vec![link_public], session_signing, session_next, session_keys, retired };
    let mut control = ControlKeys { link_signing, link_next };
    stand_ready(&mut edge, &mut control)?;
    Ok((edge, control))
}

/// A new key, whose id says what it is for.
pub(super) fn tagged(kind: &str) -> Result<(SecretKey, PublicKey), KeysError> {
    let mut tag = [0; 4];
    getrandom::fill(&mut tag).map_err(|_| KeysError::Random)?;
    SecretKey::random(format!("{kind}-{:08x}", u32::from_le_bytes(tag)))
}

/// Puts new keys beside those that sign.
fn stand_ready(edge: &mut EdgeKeys, control: &mut ControlKeys) -> Result<(), KeysError> {
    edge.session_next = Some(tagged("session")?.0);
    let (link_next, public) = tagged("link")?;
    control.link_next = Some(link_next);
    edge.link_keys.push(public);
    Ok(())
}

/// Has the keys sign that stand ready, and puts new ones beside them. What the old ones signed is taken still. Of files that an
/// earlier release made, where none stands ready, it only puts some there; `false` then.
pub fn rotate(edge: &mut EdgeKeys, control: &mut ControlKeys) -> Result<bool, KeysError> {
    let (Some(session_next), Some(link_next)) = (edge.session_next.take(), control.link_next.take()) else {
        stand_ready(edge, control)?;
        return Ok(false);
    };
    edge.session_keys.extend(edge.session_signing.public());
    edge.session_signing = session_next;
    control.link_signing = link_next;
    stand_ready(edge, control)?;
    Ok(true)
}

/// Whether somebody else may have a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaked {
    /// Nobody has.
    No,
    /// Somebody may: what it signed cannot even take consent back, or whoever has it could delete any session.
    Yes,
}

/// Ends a key: nothing that it signed is taken any more. Session tokens that it signed still take consent back, unless it has
/// leaked.
pub fn retire(edge: &mut EdgeKeys, control: &ControlKeys, kid: &str, leaked: Leaked) -> Result<(), RetireError> {
    let signs = [Some(&edge.session_signing), edge.session_next.as_ref(), Some(&control.link_signing)];
    let signs = signs.into_iter().chain([control.link_next.as_ref()]).flatten();
    if signs.into_iter().any(|key| key.kid == kid) {
        return Err(RetireError::InUse);
    }
    if let Some(place) = edge.session_keys.iter().position(|key| key.kid == kid) {
        let key = edge.session_keys.remove(place);
        edge.retired.push(match leaked {
            Leaked::No => RetiredKey::Session(key),
            Leaked::Yes => RetiredKey::Id(key.kid),
        });
    } else if let Some(place) = edge.link_keys.iter().position(|key| key.kid == kid) {
        edge.retired.push(RetiredKey::Id(edge.link_keys.remove(place).kid));
    } else if let Some(known) = edge.retired.iter_mut().find(|key| key.kid() == kid && leaked == Leaked::Yes) {
        // It was retired before anybody knew that it had leaked.
        *known = RetiredKey::Id(kid.to_owned());
    } else {
        return Err(RetireError::Unknown);
    }
    Ok(())
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
    fn a_key_is_known_before_it_signs_and_retired_after() {
        let (mut edge, mut control) = make().unwrap();
        let old = (edge.session_signing.kid.clone(), control.link_signing.kid.clone());
        let known = edge.clone();
        assert!(rotate(&mut edge, &mut control).unwrap());
        // Who has not the new file yet knows the keys that sign now.
        assert_eq!(known.session_next.unwrap().kid, edge.session_signing.kid);
        assert!(known.link_keys.iter().any(|key| key.kid == control.link_signing.kid));
        // What the old ones signed is taken still.
        assert!(edge.session_keys.iter().any(|key| key.kid == old.0));
        assert!(edge.link_keys.iter().any(|key| key.kid == old.1));
        for kid in [&edge.session_signing.kid.clone(), &control.link_next.as_ref().unwrap().kid.clone()] {
            assert_eq!(retire(&mut edge, &control, kid, Leaked::No), Err(RetireError::InUse));
        }
        assert_eq!(retire(&mut edge, &control, "nobody", Leaked::No), Err(RetireError::Unknown));
        for kid in [&old.0, &old.1] {
            retire(&mut edge, &control, kid, Leaked::No).unwrap();
            assert_eq!(retire(&mut edge, &control, kid, Leaked::No), Err(RetireError::Unknown));
        }
        // A key of links never could take consent back, and does not come to by being retired.
        assert!(matches!(edge.retired.as_slice(), [RetiredKey::Session(_), RetiredKey::Id(_)]));
        retire(&mut edge, &control, &old.0, Leaked::Yes).unwrap();
        assert!(matches!(edge.retired.as_slice(), [RetiredKey::Id(_), RetiredKey::Id(_)]));
        assert_eq!(edge.retired.iter().map(RetiredKey::kid).collect::<Vec<_>>(), [&old.0, &old.1]);
        assert!((edge.session_keys.len(), edge.link_keys.len()) == (0, 2));
    }

    #[test]
    fn files_of_an_earlier_release_are_read_and_get_a_next_key() {
        let (edge, control) = make().unwrap();
        let mut old = serde_json::to_value(&edge).unwrap();
        old.as_object_mut().unwrap().remove("session_next");
        old["retired"] = serde_json::json!(["session-old"]);
        let mut edge: EdgeKeys = serde_json::from_value(old).unwrap();
        let mut control = ControlKeys { link_next: None, ..control };
        let signing = edge.session_signing.kid.clone();
        assert!(!rotate(&mut edge, &mut control).unwrap());
        assert_eq!(edge.session_signing.kid, signing);
        assert!(rotate(&mut edge, &mut control).unwrap());
        assert_ne!(edge.session_signing.kid, signing);
        assert_eq!(edge.retired[0].kid(), "session-old");
    }

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
