//! Entries of the journal of deletions: a deletion outside Postgres, so that a restored backup cannot undo it.
//!
//! `journal/<id>`, written once. Layout, version 1: magic `CLVJ` and version (1 byte); the keyring's version (4 bytes); the
//! chunk's id (16 bytes); the entry, sealed with the storage key as the one frame of that chunk.

use crate::codec::{FormatError, Reader, Writer};
use crate::ids::{DeletionId, ObjectId, SessionId, WorkspaceId};

/// Sessions in one entry; a deletion of more has several.
pub const SESSIONS_MAX: usize = 10_000;

/// Why sessions go. Its number stands in the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// The operator's call.
    Operator = 6,
}

impl Cause {
    fn from_u8(value: u8) -> Result<Self, FormatError> {
        match value {
            1 => Ok(Self::ByHand),
            2 => Ok(Self::Expired),
            3 => Ok(Self::ByReference),
            4 => Ok(Self::Withdrawn),
            5 => Ok(Self::Terminated),
            6 => Ok(Self::Operator),
            _ => Err(FormatError::Field("cause")),
        }
    }
}

/// An entry: sessions of one workspace that are deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The object that the entry is.
    pub object: ObjectId,
    /// The deletion.
    pub deletion: DeletionId,
    /// Whose sessions.
    pub workspace: WorkspaceId,
    /// Why they go.
    pub cause: Cause,
    /// When it was asked for, milliseconds since the epoch.
    pub requested_at_ms: u64,
    /// The sessions, [`SESSIONS_MAX`] at most.
    pub sessions: Vec<SessionId>,
}

impl Entry {
    /// The entry's bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.raw(self.object.as_bytes());
        writer.raw(self.deletion.as_bytes());
        writer.raw(self.workspace.as_bytes());
        writer.u8(self.cause as u8);
        writer.uint(self.requested_at_ms);
        writer.uint(self.sessions.len() as u64);
        for session in &self.sessions {
            writer.raw(session.as_bytes());
        }
        writer.into_bytes()
    }

    /// Reads an entry.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let object = ObjectId::from_bytes(reader.array()?);
        let deletion = DeletionId::from_bytes(reader.array()?);
        let workspace = WorkspaceId::from_bytes(reader.array()?);
        let cause = Cause::from_u8(reader.u8()?)?;
        let requested_at_ms = reader.uint()?;
        let count = reader.count(16, "sessions")?;
        if count > SESSIONS_MAX {
            return Err(FormatError::Field("sessions"));
        }
        let sessions = (0..count).map(|_| reader.array().map(SessionId::from_bytes)).collect::<Result<_, _>>()?;
        reader.finish()?;
        Ok(Self { object, deletion, workspace, cause, requested_at_ms, sessions })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn entries_read_back_and_every_truncation_is_an_error() {
        let entry = Entry {
            object: ObjectId(Uuid::from_u128(9)),
            deletion: DeletionId(Uuid::from_u128(1)),
            workspace: WorkspaceId(Uuid::from_u128(2)),
            cause: Cause::Withdrawn,
            requested_at_ms: 1_790_000_000_000,
            sessions: vec![SessionId(Uuid::from_u128(3)), SessionId(Uuid::from_u128(4))],
        };
        let bytes = entry.encode();
        assert_eq!(Entry::decode(&bytes), Ok(entry));
        for len in 0..bytes.len() {
            assert!(Entry::decode(&bytes[..len]).is_err(), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_without_panic(bytes: Vec<u8>) {
            if let Ok(entry) = Entry::decode(&bytes) {
                prop_assert_eq!(Entry::decode(&entry.encode()), Ok(entry));
            }
        }
    }
}
