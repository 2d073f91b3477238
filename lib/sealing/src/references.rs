//! References of links: sealed where they lie, and found by a keyed hash.
//!
//! A workspace has one key for all its references. Two keys come of it: one seals, and one makes the hash by which equal
//! references are found. Whoever has the index alone can neither read a reference nor try out whose it may be.

use hmac::{Hmac, KeyInit as _, Mac as _};
use schemas::{LinkId, SessionId, SessionKey, WorkspaceId};
use sha2::Sha256;

use crate::frames::{ChunkContext, ChunkKind, open_alone, seal_alone};
use crate::{Key, NotOpened, SealError};

/// What seals and finds a workspace's references.
#[derive(Debug, Clone)]
pub struct ReferenceKeys {
    workspace: WorkspaceId,
    sealing: Key,
    finding: Key,
}

impl ReferenceKeys {
    /// The keys that come of a workspace's key of references.
    pub fn new(workspace: WorkspaceId, key: &Key) -> Self {
        // No salt: both must come out the same for ever. Fresh randomness goes into each seal.
        let derive = |purpose: &[u8]| key.derive(&[], &[b"clairvio reference v1 ", purpose]);
        Self { workspace, sealing: derive(b"seal"), finding: derive(b"find") }
    }

    /// Seals the reference of this link. It opens as that of no other.
    pub fn seal(&self, link: LinkId, reference: &str) -> Result<Vec<u8>, SealError> {
        seal_alone(&self.sealing, self.context(link), reference.as_bytes())
    }

    /// Opens the reference of this link.
    pub fn open(&self, link: LinkId, sealed: &[u8]) -> Result<String, NotOpened> {
        String::from_utf8(open_alone(&self.sealing, self.context(link), sealed)?).map_err(|_| NotOpened)
    }

    /// What equal references of the workspace have in common: HMAC-SHA256 (RFC 2104).
    pub fn hash(&self, reference: &str) -> [u8; 32] {
        let mut hmac =
            Hmac::<Sha256>::new_from_slice(self.finding.expose()).expect("a key of HMAC may have any length");
        hmac.update(reference.as_bytes());
        hmac.finalize().into_bytes().into()
    }

    fn context(&self, link: LinkId) -> ChunkContext {
        let session = SessionKey { workspace: self.workspace, session: SessionId(link.0) };
        ChunkContext { session, kind: ChunkKind::Reference }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schemas::codec::hex;
    use uuid::Uuid;

    use super::*;

    fn keys(workspace: u128, byte: u8) -> ReferenceKeys {
        ReferenceKeys::new(WorkspaceId(Uuid::from_u128(workspace)), &Key::new([byte; 32]))
    }

    fn link(id: u128) -> LinkId {
        LinkId(Uuid::from_u128(id))
    }

    #[test]
    fn c05_a_reference_opens_as_that_of_its_link_and_workspace_only() {
        let sealed = keys(1, 7).seal(link(2), "ada@customer.example").unwrap();
        assert!(!sealed.windows(3).any(|window| window == b"ada"));
        assert_eq!(keys(1, 7).open(link(2), &sealed).unwrap(), "ada@customer.example");
        assert_eq!(keys(1, 7).open(link(3), &sealed), Err(NotOpened));
        assert_eq!(keys(2, 7).open(link(2), &sealed), Err(NotOpened));
        assert_eq!(keys(1, 8).open(link(2), &sealed), Err(NotOpened));
        for bit in 0..sealed.len() * 8 {
            let mut changed = sealed.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(keys(1, 7).open(link(2), &changed), Err(NotOpened), "bit {bit}");
        }
        assert_eq!(keys(1, 7).open(link(2), b""), Err(NotOpened));
    }

    #[test]
    fn equal_references_are_sealed_alike_never_and_hashed_alike_always() {
        let ours = keys(1, 7);
        assert_ne!(ours.seal(link(2), "r").unwrap(), ours.seal(link(2), "r").unwrap());
        assert_eq!(ours.hash("r"), keys(1, 7).hash("r"));
        assert_ne!(ours.hash("r"), ours.hash("R"));
        assert_ne!(ours.hash("r"), keys(1, 8).hash("r"));
    }

    /// Rows hold these hashes for ever.
    #[test]
    fn the_hash_is_the_one_that_lies_in_rows() {
        let hex = hex(&keys(1, 7).hash("ada@customer.example"));
        assert_eq!(hex, "42383e4e578764133619d1c9f37b381584e5a20782a33eaf24ffdcff5ac45caf");
    }

    proptest! {
        #[test]
        fn any_reference_opens_as_it_was(reference: String) {
            let sealed = keys(1, 7).seal(link(2), &reference).unwrap();
            prop_assert_eq!(keys(1, 7).open(link(2), &sealed).unwrap(), reference);
        }
    }
}
