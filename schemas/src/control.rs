//! Entries of the compacted topic `control`: what every process has to know soon, wherever it was decided.
//!
//! The key says what an entry is about, the value what holds of it. Kafka keeps the latest entry of each key, so a reader
//! that begins at the beginning knows all that still counts. An entry may come more than once and late: of two with the same
//! key the one with the higher version counts.

use std::fmt;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::ids::{SessionId, SessionKey, WorkspaceId};
use crate::limits::CONTROL_DELETION_KEPT_S;

/// What an entry is about; as text it is the entry's key, `kind/workspace/id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subject {
    /// The session is deleted: `deletion/<workspace>/<session>`.
    Deletion(SessionKey),
}

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// What it is about.
    pub subject: Subject,
    /// Milliseconds since the epoch when it was decided.
    pub version: u64,
    /// When nobody needs it any more.
    pub not_after: OffsetDateTime,
}

/// Why bytes are no entry. No variant carries content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EntryError {
    /// A newer release wrote it, and readers of this one do without.
    #[error("kind of entry is unknown")]
    Kind,
    /// The key is of a known kind, and otherwise than we write it.
    #[error("key of entry is not understood")]
    Key,
    /// The value is not what we write.
    #[error("value of entry is not understood")]
    Value,
}

#[derive(Serialize, Deserialize)]
struct Value {
    version: u64,
    #[serde(with = "time::serde::rfc3339")]
    not_after: OffsetDateTime,
}

/// The last second that RFC 3339 can name.
const FOR_EVER: &str = "9999-12-31T23:59:59Z";

impl Subject {
    fn parse(key: &[u8]) -> Result<Self, EntryError> {
        let text = std::str::from_utf8(key).map_err(|_| EntryError::Kind)?;
        let (kind, rest) = text.split_once('/').ok_or(EntryError::Kind)?;
        match kind {
            "deletion" => {
                let (workspace, session) = rest.split_once('/').ok_or(EntryError::Key)?;
                let id = |text| Uuid::parse_str(text).map_err(|_| EntryError::Key);
                let key = SessionKey { workspace: WorkspaceId(id(workspace)?), session: SessionId(id(session)?) };
                let subject = Self::Deletion(key);
                // Two keys for one subject would be two entries of it.
                if subject.to_string() == text { Ok(subject) } else { Err(EntryError::Key) }
            }
            _ => Err(EntryError::Kind),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deletion(key) => write!(f, "deletion/{}/{}", key.workspace, key.session),
        }
    }
}

impl Entry {
    /// The entry of a session that is deleted now.
    pub fn deletion(key: SessionKey, now_ms: u64) -> Self {
        // A clock that is as wrong as this can only keep the entry for longer.
        let now =
            i64::try_from(now_ms / 1000).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
        let not_after = now.and_then(|now| now.checked_add(Duration::seconds(CONTROL_DELETION_KEPT_S)));
        let not_after = not_after.unwrap_or(time::PrimitiveDateTime::MAX.assume_utc());
        Self { subject: Subject::Deletion(key), version: now_ms, not_after }
    }

    /// The value of its record.
    pub fn value(&self) -> Vec<u8> {
        let not_after = self.not_after.format(&Rfc3339).unwrap_or_else(|_| FOR_EVER.to_owned());
        serde_json::json!({ "version": self.version, "not_after": not_after }).to_string().into_bytes()
    }

    /// Reads a record. Fields that are unknown are a later release's.
    pub fn decode(key: &[u8], value: &[u8]) -> Result<Self, EntryError> {
        let subject = Subject::parse(key)?;
        let Value { version, not_after } = serde_json::from_slice(value).map_err(|_| EntryError::Value)?;
        Ok(Self { subject, version, not_after })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW_MS: u64 = 1_790_000_000_123;

    fn session(workspace: u128, session: u128) -> SessionKey {
        SessionKey { workspace: WorkspaceId(Uuid::from_u128(workspace)), session: SessionId(Uuid::from_u128(session)) }
    }

    #[test]
    fn an_entry_is_what_was_promised() {
        let entry = Entry::deletion(session(1, 2), NOW_MS);
        assert_eq!(
            entry.subject.to_string(),
            "deletion/00000000-0000-0000-0000-000000000001/00000000-0000-0000-0000-000000000002"
        );
        let value = String::from_utf8(entry.value()).unwrap();
        assert_eq!(value, r#"{"not_after":"2026-09-23T14:13:20Z","version":1790000000123}"#);
    }

    #[test]
    fn strangers_are_refused_by_what_is_wrong_with_them() {
        let ours = Entry::deletion(session(1, 2), NOW_MS);
        let (key, value) = (ours.subject.to_string(), ours.value());
        let later = br#"{"version":1,"not_after":"2026-09-23T14:13:20+02:00","cause":"expired"}"#;
        let cases: [(&str, &[u8], Option<EntryError>); 9] = [
            (&key, &value, None),
            (&key, later, None),
            ("", &value, Some(EntryError::Kind)),
            ("deletion", &value, Some(EntryError::Kind)),
            ("revocation/a/b", &value, Some(EntryError::Kind)),
            ("deletion/a/b", &value, Some(EntryError::Key)),
            (&key.replace('-', ""), &value, Some(EntryError::Key)),
            (&key, b"", Some(EntryError::Value)),
            (&key, br#"{"version":-1,"not_after":"2026-09-23T14:13:20Z"}"#, Some(EntryError::Value)),
        ];
        for (key, value, expected) in cases {
            assert_eq!(Entry::decode(key.as_bytes(), value).err(), expected, "{key}");
        }
    }

    proptest! {
        #[test]
        fn entries_read_back(workspace: u128, id: u128, now_ms: u64) {
            let entry = Entry::deletion(session(workspace, id), now_ms);
            let read = Entry::decode(entry.subject.to_string().as_bytes(), &entry.value()).unwrap();
            prop_assert_eq!(read, entry);
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(mut key: Vec<u8>, mut value: Vec<u8>, ours: bool) {
            if ours {
                let entry = Entry::deletion(session(1, 2), NOW_MS);
                let mut whole = [entry.subject.to_string().into_bytes(), entry.value()];
                for (whole, flips) in whole.iter_mut().zip([&key, &value]) {
                    for (at, byte) in flips.iter().enumerate() {
                        let len = whole.len();
                        whole[(at * 31 + usize::from(*byte)) % len] ^= byte;
                    }
                }
                [key, value] = whole;
            }
            if let Ok(entry) = Entry::decode(&key, &value) {
                prop_assert_eq!(entry.subject.to_string().into_bytes(), key);
            }
        }
    }
}
