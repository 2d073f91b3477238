//! Signing and verifying link and session tokens: compact JWS (RFC 7515) with Ed25519 (RFC 8032), and nothing else.
//!
//! The algorithm is chosen by the key and only compared with the header. Signatures are verified strictly: weak keys
//! and non-canonical signatures are refused, so that each token has one form.

use std::collections::BTreeMap;

use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use schemas::ErrorCode;
use schemas::limits::TOKEN_LEEWAY_S;
use schemas::token::{self, ALGORITHM, AUDIENCE, LinkClaims, SessionClaims, TokenType};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// A key that signs tokens of one type.
pub struct Signing {
    kid: String,
    key: SigningKey,
}

impl std::fmt::Debug for Signing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signing").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl Signing {
    /// The key with this id and these 32 secret bytes.
    pub fn new(kid: String, secret: &[u8; 32]) -> Self {
        Self { kid, key: SigningKey::from_bytes(secret) }
    }

    /// The public half.
    pub fn public(&self) -> [u8; 32] {
        self.key.verifying_key().to_bytes()
    }

    /// A signed token of these claims.
    pub fn link(&self, claims: &LinkClaims) -> String {
        self.sign(TokenType::Link, claims)
    }

    /// A signed token of these claims.
    pub fn session(&self, claims: &SessionClaims) -> String {
        self.sign(TokenType::Session, claims)
    }

    pub(crate) fn sign(&self, token_type: TokenType, claims: &impl Serialize) -> String {
        let input = token::signing_input(token_type, &self.kid, claims);
        let signature = self.key.sign(input.as_bytes());
        token::join(input, &signature.to_bytes())
    }
}

/// A public key, or the memory of one.
#[derive(Debug, Clone)]
enum Verifying {
    Active(VerifyingKey),
    /// Its tokens are not taken any more, and still take consent back where the key itself is known.
    Retired(Option<VerifyingKey>),
}

/// Why a public key was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The bytes are no point of the curve.
    #[error("public key is not an Ed25519 key")]
    Invalid,
    /// A key of small order verifies signatures that nobody made.
    #[error("public key is weak")]
    Weak,
    /// Two keys under one id.
    #[error("key id is used twice")]
    Doubled,
}

/// The public keys for tokens of one type.
#[derive(Debug, Clone, Default)]
pub struct Verifiers(BTreeMap<String, Verifying>);

impl Verifiers {
    /// Adds a key.
    pub fn add(&mut self, kid: &str, public: &[u8; 32]) -> Result<(), KeyError> {
        let key = strong(public)?;
        match self.0.insert(kid.to_owned(), Verifying::Active(key)) {
            None => Ok(()),
            Some(_) => Err(KeyError::Doubled),
        }
    }

    /// Remembers a key as retired: its tokens get an answer of their own, also when it was added before. With its public half
    /// they still take consent back.
    pub fn retire(&mut self, kid: &str, public: Option<&[u8; 32]>) -> Result<(), KeyError> {
        let named = public.map(strong).transpose()?;
        let known = match self.0.remove(kid) {
            Some(Verifying::Active(key)) => Some(key),
            Some(Verifying::Retired(key)) => key,
            None => None,
        };
        self.0.insert(kid.to_owned(), Verifying::Retired(named.or(known)));
        Ok(())
    }

    /// Verifies a link token at `now_s`, seconds since the epoch. An expired link has a code of its own.
    pub fn link(&self, text: &str, now_s: u64) -> Result<LinkClaims, ErrorCode> {
        let claims: LinkClaims = self.verify(TokenType::Link, text, Purpose::Capture)?;
        check_times(&claims.aud, claims.iat, claims.exp, now_s).map_err(|code| match code {
            ErrorCode::TokenExpired => ErrorCode::LinkExpired,
            other => other,
        })?;
        Ok(claims)
    }

    /// Verifies a session token at `now_s`, seconds since the epoch.
    pub fn session(&self, text: &str, now_s: u64) -> Result<SessionClaims, ErrorCode> {
        let claims: SessionClaims = self.verify(TokenType::Session, text, Purpose::Capture)?;
        check_times(&claims.aud, claims.iat, claims.exp, now_s)?;
        Ok(claims)
    }

    /// Verifies the session token of somebody who takes consent back, whatever its age: that must always be possible.
    pub fn withdrawal(&self, text: &str) -> Result<SessionClaims, ErrorCode> {
        let claims: SessionClaims = self.verify(TokenType::Session, text, Purpose::Withdrawal)?;
        if claims.aud == AUDIENCE { Ok(claims) } else { Err(ErrorCode::TokenAudienceInvalid) }
    }

    fn verify<T: DeserializeOwned>(&self, token_type: TokenType, text: &str, purpose: Purpose) -> Result<T, ErrorCode> {
        let parts = token::split(text).map_err(|_| ErrorCode::TokenMalformed)?;
        if parts.header.alg != ALGORITHM {
            return Err(ErrorCode::TokenAlgRejected);
        }
        if parts.header.typ != token_type.as_str() {
            return Err(ErrorCode::TokenAudienceInvalid);
        }
        let key = match self.0.get(&parts.header.kid) {
            None => return Err(ErrorCode::TokenKeyUnknown),
            Some(Verifying::Active(key)) => key,
            Some(Verifying::Retired(Some(key))) if purpose == Purpose::Withdrawal => key,
            Some(Verifying::Retired(_)) => return Err(ErrorCode::TokenKeyRevoked),
        };
        let signature: [u8; 64] = parts.signature.try_into().map_err(|_| ErrorCode::TokenMalformed)?;
        key.verify_strict(parts.signed.as_bytes(), &Signature::from_bytes(&signature))
            .map_err(|_| ErrorCode::TokenSignatureInvalid)?;
        token::parse(&parts.claims).map_err(|_| ErrorCode::TokenMalformed)
    }
}

/// What a token is shown for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Purpose {
    Capture,
    Withdrawal,
}

fn strong(public: &[u8; 32]) -> Result<VerifyingKey, KeyError> {
    let key = VerifyingKey::from_bytes(public).map_err(|_| KeyError::Invalid)?;
    if key.is_weak() { Err(KeyError::Weak) } else { Ok(key) }
}

fn check_times(aud: &str, iat: u64, exp: u64, now_s: u64) -> Result<(), ErrorCode> {
    if aud != AUDIENCE {
        return Err(ErrorCode::TokenAudienceInvalid);
    }
    if iat > now_s.saturating_add(TOKEN_LEEWAY_S) {
        return Err(ErrorCode::TokenNotYetValid);
    }
    // No leeway at the end: the maker of an expiry means it.
    if exp <= now_s {
        return Err(ErrorCode::TokenExpired);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use schemas::{LinkId, ReceiptId, SessionId, WorkspaceId};
    use uuid::Uuid;

    use super::*;

    const NOW: u64 = 1_790_000_000;

    fn claims() -> SessionClaims {
        SessionClaims {
            aud: AUDIENCE.into(),
            ws: WorkspaceId(Uuid::from_u128(1)),
            ses: SessionId(Uuid::from_u128(2)),
            lnk: LinkId(Uuid::from_u128(3)),
            rcp: ReceiptId(Uuid::from_u128(4)),
            cst: NOW * 1000,
            ntc: "2026-03".into(),
            iat: NOW,
            exp: NOW + 60,
            org: Some("https://app.example".into()),
            lim: [1; 6],
            msk: None,
        }
    }

    fn signing() -> Signing {
        Signing::new("s1".into(), &[7; 32])
    }

    fn verifiers() -> Verifiers {
        let mut verifiers = Verifiers::default();
        verifiers.add("s1", &signing().public()).unwrap();
        verifiers.retire("s0", None).unwrap();
        verifiers
    }

    fn check(token: &str, expect: ErrorCode) {
        assert_eq!(verifiers().session(token, NOW), Err(expect), "{token}");
    }

    /// A token with any header, signed by the right key.
    fn forged(header: &str) -> String {
        let input = format!(
            "{}.{}",
            URL_SAFE_NO_PAD.encode(header),
            URL_SAFE_NO_PAD.encode(serde_json::to_vec(&claims()).unwrap())
        );
        let signature = signing().key.sign(input.as_bytes()).to_bytes();
        token::join(input, &signature)
    }

    #[test]
    fn a_signed_token_verifies_until_it_expires() {
        let token = signing().session(&claims());
        assert_eq!(verifiers().session(&token, NOW), Ok(claims()));
        assert_eq!(verifiers().session(&token, NOW - TOKEN_LEEWAY_S), Ok(claims()));
        assert_eq!(verifiers().session(&token, NOW - TOKEN_LEEWAY_S - 1), Err(ErrorCode::TokenNotYetValid));
        assert_eq!(verifiers().session(&token, NOW + 59), Ok(claims()));
        assert_eq!(verifiers().session(&token, NOW + 60), Err(ErrorCode::TokenExpired));
    }

    #[test]
    fn every_kind_of_wrong_token_has_its_code() {
        use ErrorCode::*;
        let good = signing().session(&claims());
        check("", TokenMalformed);
        check("a.b.c", TokenMalformed);
        check(&"a".repeat(schemas::limits::TOKEN_BYTES_MAX + 1), TokenMalformed);
        check(&good[..good.len() - 2], TokenMalformed);
        check(&forged(r#"{"alg":"none","typ":"clairvio-session","kid":"s1"}"#), TokenAlgRejected);
        check(&forged(r#"{"alg":"HS256","typ":"clairvio-session","kid":"s1"}"#), TokenAlgRejected);
        check(&forged(r#"{"alg":"EdDSA","typ":"clairvio-link","kid":"s1"}"#), TokenAudienceInvalid);
        check(&forged(r#"{"alg":"EdDSA","typ":"clairvio-session","kid":"s9"}"#), TokenKeyUnknown);
        check(&forged(r#"{"alg":"EdDSA","typ":"clairvio-session","kid":"s0"}"#), TokenKeyRevoked);
        check(&forged(r#"{"alg":"EdDSA","typ":"clairvio-session","kid":"s1","kid":"s1"}"#), TokenMalformed);
        check(&Signing::new("s1".into(), &[8; 32]).session(&claims()), TokenSignatureInvalid);
        check(&signing().session(&SessionClaims { aud: "other".into(), ..claims() }), TokenAudienceInvalid);
        let unsigned =
            format!("{}.", forged(r#"{"alg":"none","typ":"clairvio-session","kid":"s1"}"#).rsplit_once('.').unwrap().0);
        check(&unsigned, TokenAlgRejected);
    }

    #[test]
    fn consent_can_be_taken_back_with_an_old_token_and_with_no_other() {
        let mut verifiers = verifiers();
        let token = signing().session(&SessionClaims { exp: NOW - 1, iat: NOW + 9_999, ..claims() });
        assert!(verifiers.withdrawal(&token).is_ok());
        verifiers.retire("s1", None).unwrap();
        assert!(verifiers.withdrawal(&token).is_ok(), "its key was known when it was retired");
        assert_eq!(verifiers.session(&token, NOW), Err(ErrorCode::TokenKeyRevoked));
        let unknown = Signing::new("s0".into(), &[9; 32]);
        assert_eq!(verifiers.withdrawal(&unknown.session(&claims())), Err(ErrorCode::TokenKeyRevoked));
        verifiers.retire("s0", Some(&unknown.public())).unwrap();
        assert!(verifiers.withdrawal(&unknown.session(&claims())).is_ok());
        let forged = Signing::new("s0".into(), &[8; 32]).session(&claims());
        assert_eq!(verifiers.withdrawal(&forged), Err(ErrorCode::TokenSignatureInvalid));
        let elsewhere = unknown.session(&SessionClaims { aud: "other".into(), ..claims() });
        assert_eq!(verifiers.withdrawal(&elsewhere), Err(ErrorCode::TokenAudienceInvalid));
    }

    #[test]
    fn no_flipped_bit_passes() {
        let token = signing().session(&claims());
        for bit in 0..token.len() * 8 {
            let mut bytes = token.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            if let Ok(text) = String::from_utf8(bytes) {
                assert!(verifiers().session(&text, NOW).is_err(), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_signature_that_is_not_canonical_is_refused() {
        // S + L is the same scalar in another form; RFC 8032 wants the least one.
        const L: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let token = signing().session(&claims());
        let (signed, signature) = token.rsplit_once('.').unwrap();
        let mut signature: [u8; 64] = URL_SAFE_NO_PAD.decode(signature).unwrap().try_into().unwrap();
        let mut carry = 0u16;
        for (byte, add) in signature[32..].iter_mut().zip(L) {
            carry += u16::from(*byte) + u16::from(add);
            *byte = carry as u8;
            carry >>= 8;
        }
        check(&token::join(signed.to_owned(), &signature), ErrorCode::TokenSignatureInvalid);
    }

    #[test]
    fn weak_and_doubled_keys_are_refused() {
        let mut verifiers = verifiers();
        let mut identity = [0; 32];
        identity[0] = 1;
        assert_eq!(verifiers.add("w", &identity), Err(KeyError::Weak));
        assert_eq!(verifiers.add("s1", &signing().public()), Err(KeyError::Doubled));
    }
}
