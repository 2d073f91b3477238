//! Identifiers. Each noun has its own type, so that a link can never stand where a session is meant.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// The sixteen bytes of the id, in network order.
            pub fn as_bytes(&self) -> &[u8; 16] {
                self.0.as_bytes()
            }

            /// The id with these sixteen bytes.
            pub fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(Uuid::from_bytes(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl std::str::FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, Self::Err> {
                Uuid::parse_str(text).map(Self)
            }
        }
    };
}

id!(
    /// A customer's workspace: the tenant.
    WorkspaceId
);
id!(
    /// A magic link.
    LinkId
);
id!(
    /// One consented recording. Version 8: derived from link and attempt, see [`SessionId::derive`].
    SessionId
);
id!(
    /// The receipt of one consent. Version 8, derived like its session.
    ReceiptId
);
id!(
    /// An object in S3. Version 7, minted for each attempt and never used twice (B10).
    ObjectId
);
id!(
    /// A request to delete. Version 7.
    DeletionId
);
id!(
    /// A key of the API. Version 7.
    ApiKeyId
);
id!(
    /// An export. Version 7: its time bounds how long anything of it may be there.
    ExportId
);

fn derive(domain: &[u8], link: LinkId, attempt: &str) -> Uuid {
    let mut hash = Sha256::new();
    hash.update(domain);
    hash.update(link.as_bytes());
    hash.update(attempt.as_bytes());
    let digest: [u8; 32] = hash.finalize().into();
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    Uuid::new_v8(bytes)
}

impl SessionId {
    /// The session that this attempt on this link begins. The same pair gives the same session, so that a consent
    /// whose answer was lost can be repeated.
    pub fn derive(link: LinkId, attempt: &str) -> Self {
        Self(derive(b"clairvio session v1", link, attempt))
    }
}

impl ReceiptId {
    /// The receipt of the consent that this attempt on this link gave.
    pub fn derive(link: LinkId, attempt: &str) -> Self {
        Self(derive(b"clairvio receipt v1", link, attempt))
    }
}

/// A session within its workspace: the key of everything that is kept about it. Ordered, since rows are locked in
/// this order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionKey {
    /// The tenant.
    pub workspace: WorkspaceId,
    /// The session.
    pub session: SessionId,
}

impl SessionKey {
    /// Under which the key store has the key of a workspace's references: where a session's id would stand, the nil id does.
    /// No session has it, since ids of sessions are derived, and so no deletion of a session destroys that key.
    pub fn references(workspace: WorkspaceId) -> Self {
        Self { workspace, session: SessionId(Uuid::nil()) }
    }

    /// Under which the key store has an export's own key: where a session's id would stand, the export's does. No session has it.
    pub fn of_export(workspace: WorkspaceId, export: ExportId) -> Self {
        Self { workspace, session: SessionId(export.0) }
    }

    /// Whether it names a session at all.
    pub fn is_session(&self) -> bool {
        !self.session.0.is_nil()
    }
}

/// The identity of a batch within its session: 31 bits of stream and 32 of sequence number, as one number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct StreamSeq(u64);

impl StreamSeq {
    /// `None` when `stream` has more than 31 bits.
    pub fn new(stream: u32, seq: u32) -> Option<Self> {
        (stream <= crate::limits::STREAM_MAX).then_some(Self((u64::from(stream) << 32) | u64::from(seq)))
    }

    /// The recorder's start that the batch belongs to.
    pub fn stream(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The number of the batch within its stream.
    pub fn seq(self) -> u32 {
        (self.0 & u64::from(u32::MAX)) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_attempt_gives_the_same_session_and_another_one_does_not() {
        let link = LinkId(Uuid::from_u128(7));
        let session = SessionId::derive(link, "a");
        assert_eq!(session, SessionId::derive(link, "a"));
        assert_ne!(session, SessionId::derive(link, "b"));
        assert_ne!(session, SessionId::derive(LinkId(Uuid::from_u128(8)), "a"));
        assert_ne!(session.0, ReceiptId::derive(link, "a").0);
        assert_eq!(session.0.get_version_num(), 8);
    }

    #[test]
    fn stream_and_seq_share_one_number_in_order() {
        let pair = StreamSeq::new(3, u32::MAX).expect("31 bits");
        assert_eq!((pair.stream(), pair.seq()), (3, u32::MAX));
        assert!(pair < StreamSeq::new(4, 0).expect("31 bits"));
        assert!(StreamSeq::new(1 << 31, 0).is_none());
    }
}
