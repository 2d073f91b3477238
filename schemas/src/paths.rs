//! Object keys: the one place that builds them and reads them back. An object that the index does not name is garbage.

use std::fmt;

use uuid::Uuid;

use crate::ids::{ExportId, ObjectId, SessionId, SessionKey, WorkspaceId};

/// The key of an object, without the deployment's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ObjectKey {
    /// Level 0: `shared/<partition>/<id>`.
    Shared {
        /// The partition whose records it holds.
        partition: i32,
        /// The object.
        id: ObjectId,
    },
    /// Level 1: `sessions/<workspace>/<session>/<id>`.
    Session {
        /// The session that it holds.
        key: SessionKey,
        /// The object.
        id: ObjectId,
    },
    /// Unreadable records: `quarantine/<partition>/<id>`.
    Quarantine {
        /// The partition whose records it holds.
        partition: i32,
        /// The object.
        id: ObjectId,
    },
    /// An entry of the journal of deletions: `journal/<id>`.
    Journal {
        /// The entry.
        id: ObjectId,
    },
    /// A part of an export's archive: `exports/<workspace>/<export>/<id>`.
    Export {
        /// Whose.
        workspace: WorkspaceId,
        /// The export.
        export: ExportId,
        /// The object.
        id: ObjectId,
    },
}

impl ObjectKey {
    /// The object's id.
    pub fn id(&self) -> ObjectId {
        match *self {
            Self::Shared { id, .. }
            | Self::Session { id, .. }
            | Self::Quarantine { id, .. }
            | Self::Journal { id }
            | Self::Export { id, .. } => id,
        }
    }

    /// The partition that a shared or quarantine object is of.
    pub fn partition(&self) -> Option<i32> {
        match *self {
            Self::Shared { partition, .. } | Self::Quarantine { partition, .. } => Some(partition),
            Self::Session { .. } | Self::Journal { .. } | Self::Export { .. } => None,
        }
    }

    /// The session that an object of level 1 holds.
    pub fn session(&self) -> Option<SessionKey> {
        match *self {
            Self::Session { key, .. } => Some(key),
            _ => None,
        }
    }

    /// Reads a key; `None` for anything that [`fmt::Display`] would not have written.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let key = match parts.next()? {
            "shared" => Self::Shared { partition: parts.next()?.parse().ok()?, id: id(parts.next()?)? },
            "quarantine" => Self::Quarantine { partition: parts.next()?.parse().ok()?, id: id(parts.next()?)? },
            "sessions" => {
                let workspace = WorkspaceId(Uuid::parse_str(parts.next()?).ok()?);
                let session = SessionId(Uuid::parse_str(parts.next()?).ok()?);
                Self::Session { key: SessionKey { workspace, session }, id: id(parts.next()?)? }
            }
            "journal" => Self::Journal { id: id(parts.next()?)? },
            "exports" => {
                let workspace = WorkspaceId(Uuid::parse_str(parts.next()?).ok()?);
                let export = ExportId(Uuid::parse_str(parts.next()?).ok()?);
                Self::Export { workspace, export, id: id(parts.next()?)? }
            }
            _ => return None,
        };
        (key.to_string() == text).then_some(key)
    }
}

/// A part of the bucket whose objects rows of the index name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// `exports/`
    Exports,
    /// `journal/`
    Journal,
    /// `quarantine/`
    Quarantine,
    /// `sessions/`
    Sessions,
    /// `shared/`
    Shared,
}

impl Section {
    /// All of them, in the order of their keys. Within each, keys are in the order of what they name: of partitions, sessions and ids,
    /// for all partitions of up to five digits.
    pub const ALL: [Self; 5] = [Self::Exports, Self::Journal, Self::Quarantine, Self::Sessions, Self::Shared];

    /// What all its keys begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Exports => "exports/",
            Self::Journal => "journal/",
            Self::Quarantine => "quarantine/",
            Self::Sessions => "sessions/",
            Self::Shared => "shared/",
        }
    }

    /// The one that follows.
    pub fn next(self) -> Option<Self> {
        match self {
            Self::Exports => Some(Self::Journal),
            Self::Journal => Some(Self::Quarantine),
            Self::Quarantine => Some(Self::Sessions),
            Self::Sessions => Some(Self::Shared),
            Self::Shared => None,
        }
    }
}

fn id(text: &str) -> Option<ObjectId> {
    Uuid::parse_str(text).ok().map(ObjectId)
}

/// The prefix below which all objects of a workspace's sessions lie, with its slash.
pub fn workspace_prefix(workspace: WorkspaceId) -> String {
    format!("sessions/{workspace}/")
}

/// The prefix below which all objects of one session lie, with its slash.
pub fn session_prefix(key: &SessionKey) -> String {
    format!("{}{}/", workspace_prefix(key.workspace), key.session)
}

/// The prefix below which all parts of an export's archive lie, with its slash.
pub fn export_prefix(workspace: WorkspaceId, export: ExportId) -> String {
    format!("{}{workspace}/{export}/", Section::Exports.prefix())
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shared { partition, id } => write!(f, "shared/{partition:05}/{id}"),
            Self::Session { key, id } => write!(f, "{}{id}", session_prefix(key)),
            Self::Quarantine { partition, id } => write!(f, "quarantine/{partition:05}/{id}"),
            Self::Journal { id } => write!(f, "journal/{id}"),
            Self::Export { workspace, export, id } => write!(f, "{}{id}", export_prefix(*workspace, *export)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_and_strangers_do_not() {
        let id = ObjectId(Uuid::from_u128(5));
        let key = SessionKey { workspace: WorkspaceId(Uuid::from_u128(1)), session: SessionId(Uuid::from_u128(2)) };
        for object in [
            ObjectKey::Shared { partition: 7, id },
            ObjectKey::Session { key, id },
            ObjectKey::Quarantine { partition: 0, id },
            ObjectKey::Journal { id },
            ObjectKey::Export { workspace: key.workspace, export: ExportId(Uuid::from_u128(3)), id },
        ] {
            assert_eq!(ObjectKey::parse(&object.to_string()), Some(object));
        }
        for stranger in ["", "shared/7/x", "shared/7/00000000-0000-0000-0000-000000000005", "x/y", "sessions/a/b/c"] {
            assert_eq!(ObjectKey::parse(stranger), None, "{stranger}");
        }
        assert!(ObjectKey::Session { key, id }.to_string().starts_with(&session_prefix(&key)));
    }

    #[test]
    fn keys_and_sections_are_in_the_order_of_what_they_name() {
        let id = |number: u128| ObjectId(Uuid::from_u128(number));
        let session = |number: u128| SessionKey {
            workspace: WorkspaceId(Uuid::from_u128(number >> 64)),
            session: SessionId(Uuid::from_u128(number & 0xffff)),
        };
        let numbers = [0, 9, 10, 0xff, 0xa00, 1 << 64, (1 << 64) + 1, u128::MAX - 1, u128::MAX];
        let mut keys = Vec::new();
        for SessionKey { workspace, session } in [0, 9, 0xff, 1 << 64, 10 << 64].map(session) {
            let export = ExportId(session.0);
            keys.extend(numbers.map(|number| ObjectKey::Export { workspace, export, id: id(number) }));
        }
        keys.extend(numbers.map(|number| ObjectKey::Journal { id: id(number) }));
        for partition in [0, 9, 10, 99_999] {
            keys.extend(numbers.map(|number| ObjectKey::Quarantine { partition, id: id(number) }));
        }
        for key in [0, 9, 0xff, 1 << 64, 10 << 64].map(session) {
            keys.extend(numbers.map(|number| ObjectKey::Session { key, id: id(number) }));
        }
        for partition in [0, 9, 10, 99_999] {
            keys.extend(numbers.map(|number| ObjectKey::Shared { partition, id: id(number) }));
        }
        let texts: Vec<String> = keys.iter().map(ObjectKey::to_string).collect();
        assert!(texts.is_sorted(), "{texts:?}");
        let in_order: Vec<Section> = std::iter::successors(Some(Section::ALL[0]), |section| section.next()).collect();
        assert_eq!(in_order, Section::ALL);
        let of = |text: &String| Section::ALL.into_iter().position(|section| text.starts_with(section.prefix()));
        assert!(texts.iter().map(of).is_sorted() && texts.iter().all(|text| of(text).is_some()));
    }
}
