//! Claims of link and session tokens, and the shape of the compact form (JWS, RFC 7515) that they and receipts have.
//!
//! No cryptography here: signing and verifying is the `engine`'s. The claims hold no personal data: the reference of
//! a link stays in Postgres.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::ids::{LinkId, ReceiptId, SessionId, WorkspaceId};
use crate::limits;

/// The only algorithm there is.
pub const ALGORITHM: &str = "EdDSA";
/// The audience of all tokens that an edge takes.
pub const AUDIENCE: &str = "clairvio-edge";

/// What a token is for. Bound into its header, so that one can never stand for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenType {
    /// A link's token: opens consent.
    Link,
    /// A session's token: sends events.
    Session,
    /// No token: the receipt of a deletion.
    Receipt,
}

impl TokenType {
    /// The word in the header's `typ`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Link => "clairvio-link",
            Self::Session => "clairvio-session",
            Self::Receipt => "clairvio-receipt",
        }
    }
}

/// The protected header. Anything beside these three is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JoseHeader {
    /// Always [`ALGORITHM`].
    pub alg: String,
    /// A [`TokenType`].
    pub typ: String,
    /// Which key signed.
    pub kid: String,
}

/// What a link's token says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkClaims {
    /// Always [`AUDIENCE`].
    pub aud: String,
    /// The workspace.
    pub ws: WorkspaceId,
    /// The link.
    pub lnk: LinkId,
    /// When it was made, seconds.
    pub iat: u64,
    /// When it expires, seconds.
    pub exp: u64,
    /// Origins that may record; empty for any.
    pub org: Vec<String>,
    /// Sessions that it may begin.
    pub max: u32,
    /// What the workspace and its sessions are held to, as [`Limits::to_array`](crate::plan::Limits::to_array) has it, unless
    /// the edge has heard of other limits since.
    pub lim: [u64; 6],
    /// Masking rules, as the link's maker gave them.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub msk: Option<Value>,
}

/// What a session's token says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionClaims {
    /// Always [`AUDIENCE`].
    pub aud: String,
    /// The workspace.
    pub ws: WorkspaceId,
    /// The session.
    pub ses: SessionId,
    /// The link that began it.
    pub lnk: LinkId,
    /// The receipt of the consent.
    pub rcp: ReceiptId,
    /// When the end user accepted, milliseconds.
    pub cst: u64,
    /// The notice that was shown.
    pub ntc: String,
    /// When it was made, seconds.
    pub iat: u64,
    /// When it expires, seconds.
    pub exp: u64,
    /// The origin that consent was given on; absent where the client has none.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub org: Option<String>,
    /// What the workspace and its sessions are held to, as [`Limits::to_array`](crate::plan::Limits::to_array) has it, unless
    /// the edge has heard of other limits since.
    pub lim: [u64; 6],
    /// Masking rules.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub msk: Option<Value>,
}

/// Why a text is not a token. All are the same refusal for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("token is malformed")]
pub struct Malformed;

/// A token taken apart, nothing of it verified.
#[derive(Debug)]
pub struct Parts<'a> {
    /// The header.
    pub header: JoseHeader,
    /// What was signed: header, dot and claims, as they came.
    pub signed: &'a str,
    /// The claims' bytes.
    pub claims: Vec<u8>,
    /// The signature, of whatever length it came in.
    pub signature: Vec<u8>,
}

/// Takes a compact token apart. Base64 must be canonical, JSON without doubled keys.
pub fn split(token: &str) -> Result<Parts<'_>, Malformed> {
    split_within(token, limits::TOKEN_BYTES_MAX)
}

/// The same of what may have so many bytes.
pub fn split_within(token: &str, bytes_max: usize) -> Result<Parts<'_>, Malformed> {
    if token.len() > bytes_max {
        return Err(Malformed);
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(Malformed)?;
    let (header, claims) = signed.split_once('.').ok_or(Malformed)?;
    if claims.contains('.') {
        return Err(Malformed);
    }
    let header = URL_SAFE_NO_PAD.decode(header).map_err(|_| Malformed)?;
    let claims = URL_SAFE_NO_PAD.decode(claims).map_err(|_| Malformed)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Malformed)?;
    Ok(Parts { header: parse(&header)?, signed, claims, signature })
}

/// Reads a JSON object into a struct. Serde refuses doubled and unknown fields of a struct.
pub fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, Malformed> {
    serde_json::from_slice(json).map_err(|_| Malformed)
}

/// The text that is to be signed for this header and these claims.
pub fn signing_input(token_type: TokenType, kid: &str, claims: &impl Serialize) -> String {
    let header = JoseHeader { alg: ALGORITHM.into(), typ: token_type.as_str().into(), kid: kid.into() };
    let encode = |json: Result<Vec<u8>, serde_json::Error>| {
        URL_SAFE_NO_PAD.encode(json.expect("claims are plain structs, which always serialize"))
    };
    format!("{}.{}", encode(serde_json::to_vec(&header)), encode(serde_json::to_vec(claims)))
}

/// The compact token of what was signed.
pub fn join(signed: String, signature: &[u8; 64]) -> String {
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn doubled_and_unknown_fields_are_malformed() {
        for json in [
            r#"{"alg":"EdDSA","alg":"EdDSA","typ":"t","kid":"k"}"#,
            r#"{"alg":"EdDSA","typ":"t","kid":"k","jku":"u"}"#,
            r#"{"alg":"EdDSA","typ":"t"}"#,
        ] {
            assert!(parse::<JoseHeader>(json.as_bytes()).is_err(), "{json}");
        }
    }

    #[test]
    fn a_token_comes_apart_as_it_was_joined() {
        let signed = signing_input(TokenType::Link, "k1", &serde_json::json!({"a": 1}));
        let token = join(signed.clone(), &[9; 64]);
        let parts = split(&token).expect("own token");
        assert_eq!((parts.header.kid.as_str(), parts.signed), ("k1", signed.as_str()));
        assert_eq!((parts.claims.as_slice(), parts.signature), (br#"{"a":1}"#.as_slice(), vec![9; 64]));
        for text in [&format!("{token}="), &token[1..], "", "..", "a.b", "a.b.c.d"] {
            assert!(split(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_split_without_panic(text: String) {
            let _ = split(&text);
        }
    }
}
