//! Why sessions are deleted, and the receipt for it.
//!
//! A receipt is a compact JWS (RFC 7515) with Ed25519, whose payload is [`Receipt`] as JSON. It holds no personal data: sessions stand
//! in it as keyed hashes, which tell whoever has a session's id that it was in scope, and nobody else anything.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use time::OffsetDateTime;

use crate::ids::{DeletionId, SessionId, WorkspaceId};

/// Why sessions go. Its number stands in the journal's format, its word in the index, the API and receipts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[repr(u8)]
pub enum Cause {
    /// A customer's call.
    ByHand = 1,
    /// The plan window is over.
    Expired = 2,
    /// A customer's call, for all sessions of a reference.
    ByReference = 3,
    /// The end user took consent back.
    Withdrawn = 4,
    /// The workspace was closed.
    Terminated = 5,
    /// An operator's call.
    Operator = 6,
    /// Its link had no session left.
    Exhausted = 7,
    /// Its link was revoked before it began.
    Revoked = 8,
}

impl Cause {
    /// Every cause.
    pub const ALL: [Self; 8] = [
        Self::ByHand,
        Self::Expired,
        Self::ByReference,
        Self::Withdrawn,
        Self::Terminated,
        Self::Operator,
        Self::Exhausted,
        Self::Revoked,
    ];

    /// The word in the index and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ByHand => "by_hand",
            Self::Expired => "expired",
            Self::ByReference => "by_reference",
            Self::Withdrawn => "withdrawn",
            Self::Terminated => "terminated",
            Self::Operator => "operator",
            Self::Exhausted => "exhausted",
            Self::Revoked => "revoked",
        }
    }

    /// The cause of this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| cause.as_str() == word)
    }

    /// The cause of this number.
    pub fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|cause| *cause as u8 == number)
    }
}

/// Version of [`Receipt`].
pub const RECEIPT_VERSION: u32 = 1;
/// Sessions in one receipt; a deletion of more has several.
pub const RECEIPT_SESSIONS_MAX: usize = 10_000;
/// A receipt's text: a line for each session, and what is said of all of them.
pub const RECEIPT_BYTES_MAX: usize = RECEIPT_SESSIONS_MAX * 40 + 16 * 1024;

/// What was deleted, and that it is gone. Its fields only ever grow: who reads one passes over names that it does not know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receipt {
    /// [`RECEIPT_VERSION`].
    pub version: u32,
    /// The deletion.
    pub deletion_id: DeletionId,
    /// Whose sessions.
    pub workspace_id: WorkspaceId,
    /// Why they went.
    pub cause: Cause,
    /// Which of the deletion's receipts this is, from 1,
    pub part: u32,
    /// of so many.
    pub parts: u32,
    /// When it was asked for.
    #[serde(with = "time::serde::rfc3339")]
    pub requested_at: OffsetDateTime,
    /// Since when nobody reads any of these sessions. Null for what an earlier release deleted.
    #[serde(with = "time::serde::rfc3339::option")]
    pub unreadable_at: Option<OffsetDateTime>,
    /// When the last of their keys was destroyed.
    #[serde(with = "time::serde::rfc3339")]
    pub shredded_at: OffsetDateTime,
    /// When the last of their bytes was deleted, and seen absent by a listing. Null where there were none to look for.
    #[serde(with = "time::serde::rfc3339::option")]
    pub erased_at: Option<OffsetDateTime>,
    /// When all of it was looked at once more: keys gone, no rows, nothing in memory any more.
    #[serde(with = "time::serde::rfc3339")]
    pub verified_at: OffsetDateTime,
    /// Sessions in this receipt.
    pub sessions: u64,
    /// Objects that held nothing but these sessions. Null, as the next two, where an earlier release deleted some and did not note it.
    pub objects: Option<u64>,
    /// Their bytes.
    pub bytes: Option<u64>,
    /// Objects that may have held some of a session beside others', summed over the sessions: rewritten without it, and deleted.
    pub shared_objects: Option<u64>,
    /// Which sessions.
    pub scope: Scope,
    /// What this deletion does not reach at once, and when it will be gone. Nobody opens any of it without a key that is not kept
    /// with it.
    pub remains: Vec<Remains>,
    /// When the last of that is gone.
    #[serde(with = "time::serde::rfc3339")]
    pub residual_until: OffsetDateTime,
}

/// Something that goes later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Remains {
    /// What.
    pub what: RemainsIn,
    /// When it is gone.
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
}

/// Where something remains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RemainsIn {
    /// Sealed records in the log, until its retention takes them.
    Log,
    /// Backups of the key store: wrapped keys of bytes that are gone.
    KeyStoreBackups,
    /// Backups of the index: when the sessions were, how long, and which pages by address.
    IndexBackups,
}

/// Sessions as keyed hashes, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// 32 random bytes of this receipt alone, base64url: hashes of two receipts tell nothing of each other.
    pub key: String,
    /// HMAC-SHA256 of workspace and session (16 bytes each) under the key, its first 16 bytes, base64url.
    pub sessions: Vec<String>,
}

impl Scope {
    /// The scope of these sessions, under fresh random bytes.
    pub fn new(key: &[u8; 32], workspace: WorkspaceId, sessions: &[SessionId]) -> Self {
        let mut hashes: Vec<String> = sessions.iter().map(|session| hash(key, workspace, *session)).collect();
        hashes.sort_unstable();
        Self { key: URL_SAFE_NO_PAD.encode(key), sessions: hashes }
    }

    /// Whether a session is in it; `None` when its key is none.
    pub fn covers(&self, workspace: WorkspaceId, session: SessionId) -> Option<bool> {
        let key: [u8; 32] = URL_SAFE_NO_PAD.decode(&self.key).ok()?.try_into().ok()?;
        Some(self.sessions.contains(&hash(&key, workspace, session)))
    }
}

fn hash(key: &[u8; 32], workspace: WorkspaceId, session: SessionId) -> String {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key of HMAC may have any length");
    mac.update(workspace.as_bytes());
    mac.update(session.as_bytes());
    URL_SAFE_NO_PAD.encode(&mac.finalize().into_bytes()[..16])
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn causes_are_known_by_word_and_number() {
        for (number, cause) in (1..).zip(Cause::ALL) {
            assert_eq!((Cause::from_u8(number), Cause::parse(cause.as_str())), (Some(cause), Some(cause)));
            assert_eq!(serde_json::to_value(cause).unwrap(), cause.as_str());
        }
        assert_eq!((Cause::from_u8(0), Cause::from_u8(9), Cause::parse("")), (None, None, None));
    }

    #[test]
    fn a_scope_tells_who_has_a_sessions_id_and_nobody_else() {
        let (one, other) = (WorkspaceId(Uuid::from_u128(1)), WorkspaceId(Uuid::from_u128(2)));
        let sessions = [SessionId(Uuid::from_u128(3)), SessionId(Uuid::from_u128(4))];
        let scope = Scope::new(&[7; 32], one, &sessions);
        assert!(sessions.iter().all(|session| scope.covers(one, *session) == Some(true)));
        assert_eq!(scope.covers(other, sessions[0]), Some(false));
        assert_eq!(scope.covers(one, SessionId(Uuid::from_u128(5))), Some(false));
        assert!(scope.sessions.is_sorted());
        assert_ne!(
            scope.sessions,
            Scope::new(&[8; 32], one, &sessions).sessions,
            "two receipts tell nothing of each other"
        );
        assert_eq!(Scope { key: "x".into(), ..scope }.covers(one, sessions[0]), None);
    }

    /// Goal: the hash is the HMAC that any library computes. Method: the value of another implementation (Python's `hmac`) for
    /// 32 bytes of 7, workspace 1 and session 3.
    #[test]
    fn the_hash_is_hmac() {
        let hash = hash(&[7; 32], WorkspaceId(Uuid::from_u128(1)), SessionId(Uuid::from_u128(3)));
        assert_eq!(hash, "rFD1IMIXyWM2-st7EJWL3A");
    }
}
