//! The keys of tokens as their file has them by now, and tokens that were verified already.

use std::sync::{Arc, PoisonError, RwLock};

use anyhow::Context as _;
use engine::token::{Signing, Verifiers};
use quick_cache::sync::Cache;
use schemas::ErrorCode;
use schemas::token::{LinkClaims, SessionClaims};
use service_kit::keys::Watched;
use service_kit::keys::tokens::{EdgeKeys, RetiredKey};
use service_kit::telemetry::chain;
use sha2::{Digest as _, Sha256};

use crate::metrics;

/// Verified tokens that are kept: about 40 MB with the largest masking rules, 20 MB without.
const VERIFIED_MAX: usize = 32_768;

/// What follows from one state of the key file. Tokens that were verified go with the keys that verified them.
struct Ring {
    links: Verifiers,
    sessions: Verifiers,
    signing: Signing,
    /// By the SHA-256 of the token. That a token was verified says nothing of its expiry, and nothing of what was heard since.
    verified: Cache<[u8; 32], Arc<SessionClaims>>,
}

/// Verifies and signs tokens, with the keys that their file has by now.
pub struct Tokens {
    keys: Arc<Watched<EdgeKeys>>,
    /// The ring, and the keys that it was made from or that no ring could be made from.
    ring: RwLock<(Arc<EdgeKeys>, Arc<Ring>)>,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokens").finish_non_exhaustive()
    }
}

impl Tokens {
    /// The tokens of this key file, as it is and as it will be. Keys that cannot be used are an error now, and later on told once:
    /// those before stay in use then.
    pub fn new(keys: Arc<Watched<EdgeKeys>>) -> anyhow::Result<Self> {
        let known = keys.get();
        let ring = ring(&known)?;
        Ok(Self { keys, ring: RwLock::new((known, Arc::new(ring))) })
    }

    /// Verifies a link's token at `now_s`, seconds since the epoch.
    pub fn link(&self, text: &str, now_s: u64) -> Result<LinkClaims, ErrorCode> {
        self.current().links.link(text, now_s)
    }

    /// Verifies a session's token at `now_s`, seconds since the epoch, or finds it verified.
    pub fn session(&self, text: &str, now_s: u64) -> Result<Arc<SessionClaims>, ErrorCode> {
        if text.len() > schemas::limits::TOKEN_BYTES_MAX {
            return Err(ErrorCode::TokenMalformed);
        }
        let ring = self.current();
        let hash: [u8; 32] = Sha256::digest(text).into();
        if let Some(claims) = ring.verified.get(&hash) {
            if claims.exp <= now_s {
                ring.verified.remove(&hash);
                return Err(ErrorCode::TokenExpired);
            }
            ::metrics::counter!(metrics::TOKENS, "how" => "cached").increment(1);
            return Ok(claims);
        }
        let claims = Arc::new(ring.sessions.session(text, now_s)?);
        ::metrics::counter!(metrics::TOKENS, "how" => "verified").increment(1);
        ring.verified.insert(hash, Arc::clone(&claims));
        Ok(claims)
    }

    /// Verifies the token of somebody who takes consent back.
    pub fn withdrawal(&self, text: &str) -> Result<SessionClaims, ErrorCode> {
        self.current().sessions.withdrawal(text)
    }

    /// Signs a session's token.
    pub fn sign(&self, claims: &SessionClaims) -> String {
        self.current().signing.session(claims)
    }

    fn current(&self) -> Arc<Ring> {
        let keys = self.keys.get();
        {
            let known = self.ring.read().unwrap_or_else(PoisonError::into_inner);
            if Arc::ptr_eq(&known.0, &keys) {
                return Arc::clone(&known.1);
            }
        }
        let mut place = self.ring.write().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have been faster.
        if !Arc::ptr_eq(&place.0, &keys) {
            let made = ring(&keys);
            place.0 = keys;
            match made {
                Ok(ring) => place.1 = Arc::new(ring),
                Err(error) => {
                    tracing::error!(error = %chain(&*error), "keys of tokens cannot be used; those before stay in use");
                }
            }
        }
        Arc::clone(&place.1)
    }
}

fn ring(keys: &EdgeKeys) -> anyhow::Result<Ring> {
    let (mut links, mut sessions) = (Verifiers::default(), Verifiers::default());
    for key in &keys.link_keys {
        links.add(&key.kid, &key.bytes().context("link key is not 32 bytes in base64")?).context("take link key")?;
    }
    let secret = keys.session_signing.bytes().context("session key is not 32 bytes in base64")?;
    let signing = Signing::new(keys.session_signing.kid.clone(), &secret);
    sessions.add(&keys.session_signing.kid, &signing.public()).context("take session key")?;
    if let Some(next) = &keys.session_next {
        let public = next.public().and_then(|key| key.bytes()).context("session key is not 32 bytes in base64")?;
        sessions.add(&next.kid, &public).context("take session key")?;
    }
    for key in &keys.session_keys {
        let public = key.bytes().context("session key is not 32 bytes in base64")?;
        sessions.add(&key.kid, &public).context("take session key")?;
    }
    for retired in &keys.retired {
        let public = match retired {
            RetiredKey::Id(_) => None,
            RetiredKey::Session(key) => Some(key.bytes().context("retired key is not 32 bytes in base64")?),
        };
        links.retire(retired.kid(), None).context("retire key")?;
        sessions.retire(retired.kid(), public.as_ref()).context("retire key")?;
    }
    Ok(Ring { links, sessions, signing, verified: Cache::new(VERIFIED_MAX) })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use schemas::token::AUDIENCE;
    use schemas::{LinkId, ReceiptId, SessionId, WorkspaceId};
    use service_kit::keys::{self, tokens};
    use service_kit::shutdown::Shutdown;
    use uuid::Uuid;

    use super::*;

    const NOW_S: u64 = 1_790_000_000;

    fn claims() -> SessionClaims {
        SessionClaims {
            aud: AUDIENCE.into(),
            ws: WorkspaceId(Uuid::from_u128(1)),
            ses: SessionId(Uuid::from_u128(2)),
            lnk: LinkId(Uuid::from_u128(3)),
            rcp: ReceiptId(Uuid::from_u128(4)),
            cst: NOW_S * 1000,
            ntc: "v1".into(),
            iat: NOW_S,
            exp: NOW_S + 60,
            org: None,
            lim: [1; 6],
            msk: None,
        }
    }

    fn file() -> std::path::PathBuf {
        std::env::temp_dir().join(format!("clairvio-tokens-{}", Uuid::now_v7()))
    }

    #[tokio::test]
    async fn a_kept_token_expires_and_only_what_was_verified_is_kept() {
        let (path, shutdown) = (file(), Shutdown::new(Duration::ZERO));
        keys::write(&path, &tokens::make().unwrap().0).unwrap();
        let tokens = Tokens::new(Watched::start(path.clone(), &shutdown).unwrap()).unwrap();
        let token = tokens.sign(&claims());
        for _ in 0..2 {
            assert_eq!(*tokens.session(&token, NOW_S).unwrap(), claims());
        }
        let mut forged = token.clone();
        // One in so many signatures ends like this by itself.
        forged.truncate(token.len() - 2);
        forged.push_str(if token.ends_with("AA") { "BA" } else { "AA" });
        for _ in 0..2 {
            assert!(tokens.session(&forged, NOW_S).is_err());
        }
        assert_eq!(tokens.current().verified.len(), 1);
        assert_eq!(tokens.session(&token, NOW_S + 60), Err(ErrorCode::TokenExpired));
        assert_eq!(tokens.current().verified.len(), 0);
        shutdown.begin();
        std::fs::remove_file(&path).unwrap();
    }

    /// Goal: a key is retired and another signs, without a restart; what was verified by the retired one is forgotten.
    #[tokio::test]
    async fn keys_are_rotated_while_tokens_are_in_use() {
        let (path, shutdown) = (file(), Shutdown::new(Duration::ZERO));
        let (old, new) = (tokens::make().unwrap().0, tokens::make().unwrap().0);
        let both = EdgeKeys { session_keys: vec![new.session_signing.public().unwrap()], ..old.clone() };
        let retired = EdgeKeys { retired: vec![RetiredKey::Session(old.session_signing.public().unwrap())], ..new };
        keys::write(&path, &both).unwrap();
        let tokens = Tokens::new(Watched::start(path.clone(), &shutdown).unwrap()).unwrap();
        let token = tokens.sign(&claims());
        assert!(tokens.session(&token, NOW_S).is_ok());
        keys::replace(&path, &retired).unwrap();
        let begun = Instant::now();
        while tokens.session(&token, NOW_S).is_ok() {
            assert!(begun.elapsed() < keys::LOOK_INTERVAL * 20, "the new file is passed by");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(tokens.session(&token, NOW_S), Err(ErrorCode::TokenKeyRevoked));
        assert!(tokens.withdrawal(&token).is_ok(), "consent can always be taken back");
        assert!(tokens.session(&tokens.sign(&claims()), NOW_S).is_ok());
        shutdown.begin();
        std::fs::remove_file(&path).unwrap();
    }
}
