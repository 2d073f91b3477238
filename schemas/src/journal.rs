//! Entries of the journal of deletions: a deletion outside Postgres, so that a restored backup cannot undo it.
//!
//! `journal/<id>`, written once. Layout, version 1: magic `CLVJ` and version (1 byte); the keyring's version (4 bytes); the
//! chunk's id (16 bytes); the entry, sealed with the storage key as the one frame of that chunk. Marks of links stand behind the
//! sessions where there are any; an entry without them ends there.

use crate::codec::{FormatError, Reader, Writer};
use crate::deletion::Cause;
use crate::ids::{DeletionId, LinkId, ObjectId, SessionId, WorkspaceId};

/// Sessions in one entry; a deletion of more has several.
pub const SESSIONS_MAX: usize = 10_000;
/// Links in one entry.
pub const LINKS_MAX: usize = 10_000;

/// Links whose sessions are all deleted that began by some time, those too that nobody has seen yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marks {
    /// The links, [`LINKS_MAX`] at most, and at least one.
    pub links: Vec<LinkId>,
    /// By when a session began that is deleted, milliseconds since the epoch.
    pub begun_before_ms: u64,
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
    /// Links that the deletion marked.
    pub marks: Option<Marks>,
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
        if let Some(marks) = &self.marks {
            writer.uint(marks.begun_before_ms);
            writer.uint(marks.links.len() as u64);
            for link in &marks.links {
                writer.raw(link.as_bytes());
            }
        }
        writer.into_bytes()
    }

    /// Reads an entry.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let object = ObjectId::from_bytes(reader.array()?);
        let deletion = DeletionId::from_bytes(reader.array()?);
        let workspace = WorkspaceId::from_bytes(reader.array()?);
        let cause = Cause::from_u8(reader.u8()?).ok_or(FormatError::Field("cause"))?;
        let requested_at_ms = reader.uint()?;
        let count = reader.count(16, "sessions")?;
        if count > SESSIONS_MAX {
            return Err(FormatError::Field("sessions"));
        }
        let sessions = (0..count).map(|_| reader.array().map(SessionId::from_bytes)).collect::<Result<_, _>>()?;
        let marks = if reader.is_empty() { None } else { Some(Self::decode_marks(&mut reader)?) };
        reader.finish()?;
        Ok(Self { object, deletion, workspace, cause, requested_at_ms, sessions, marks })
    }

    fn decode_marks(reader: &mut Reader<'_>) -> Result<Marks, FormatError> {
        let begun_before_ms = reader.uint()?;
        let count = reader.count(16, "links")?;
        if !(1..=LINKS_MAX).contains(&count) {
            return Err(FormatError::Field("links"));
        }
        let links = (0..count).map(|_| reader.array().map(LinkId::from_bytes)).collect::<Result<_, _>>()?;
        Ok(Marks { links, begun_before_ms })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn entries_read_back_and_every_truncation_is_an_error() {
        let bare = Entry {
            object: ObjectId(Uuid::from_u128(9)),
            deletion: DeletionId(Uuid::from_u128(1)),
            workspace: WorkspaceId(Uuid::from_u128(2)),
            cause: Cause::Withdrawn,
            requested_at_ms: 1_790_000_000_000,
            sessions: vec![SessionId(Uuid::from_u128(3)), SessionId(Uuid::from_u128(4))],
            marks: None,
        };
        let marks = Marks { links: vec![LinkId(Uuid::from_u128(5))], begun_before_ms: 1_790_000_000_001 };
        let marked = Entry { marks: Some(marks), cause: Cause::ByReference, ..bare.clone() };
        let bare_len = bare.encode().len();
        for entry in [bare, marked] {
            let bytes = entry.encode();
            let has_marks = entry.marks.is_some();
            assert_eq!(Entry::decode(&bytes), Ok(entry));
            for len in (0..bytes.len()).filter(|len| !(has_marks && *len == bare_len)) {
                assert!(Entry::decode(&bytes[..len]).is_err(), "{len} bytes");
            }
        }
    }

    #[test]
    fn marks_of_no_link_are_none() {
        let mut bytes = Entry {
            object: ObjectId(Uuid::nil()),
            deletion: DeletionId(Uuid::nil()),
            workspace: WorkspaceId(Uuid::nil()),
            cause: Cause::Operator,
            requested_at_ms: 0,
            sessions: Vec::new(),
            marks: None,
        }
        .encode();
        bytes.extend([0, 0]);
        assert_eq!(Entry::decode(&bytes), Err(FormatError::Field("links")));
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
