//! Where the keys above sessions' keys come from.
//!
//! A [`Keyring`] has versions of a root, and gives for each owner and version one key: a workspace's, which wraps its
//! sessions' data keys, or the storage's, which seals what belongs to no session. [`Roots`] derives them from secrets that
//! a file or the environment holds; a key service does the same behind its walls, and may be out of reach at times: that is
//! an error of each question.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;

use schemas::WorkspaceId;
use uuid::Uuid;

use crate::Key;

/// A version of the keyring's root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyVersion(pub u32);

impl fmt::Display for KeyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Whose key is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// A workspace: its key wraps the data keys of its sessions.
    Workspace(WorkspaceId),
    /// The deployment: its key seals footers of shared objects and the journal.
    Storage,
}

impl Owner {
    /// What tells owners apart, for deriving their keys: one byte of kind, then the workspace's id or zeros.
    pub fn to_bytes(self) -> [u8; 17] {
        let mut bytes = [0; 17];
        match self {
            Self::Workspace(workspace) => {
                bytes[0] = 1;
                bytes[1..].copy_from_slice(workspace.as_bytes());
            }
            Self::Storage => bytes[0] = 2,
        }
        bytes
    }

    /// The owner with these bytes; `None` when nobody has them.
    pub fn from_bytes(bytes: [u8; 17]) -> Option<Self> {
        let [kind, id @ ..] = bytes;
        match kind {
            1 => Some(Self::Workspace(WorkspaceId(Uuid::from_bytes(id)))),
            2 if id == [0; 16] => Some(Self::Storage),
            _ => None,
        }
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Workspace(workspace) => write!(f, "workspace {workspace}"),
            Self::Storage => f.write_str("storage"),
        }
    }
}

/// Why a key cannot be had. A missing key is an error everywhere, never clear text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyringError {
    /// There is no such version.
    #[error("the keyring has no version {0}\n  hint: it was retired, or this is not the keyring that sealed")]
    Missing(KeyVersion),
    /// The keyring does not answer; trying again may help.
    #[error("ask the keyring: {0}")]
    Unavailable(String),
}

/// A key that is on its way.
pub type KeyFuture<'a> = Pin<Box<dyn Future<Output = Result<Key, KeyringError>> + Send + 'a>>;

/// Where workspaces' keys come from: a file, the environment, a key service.
pub trait Keyring: Send + Sync + fmt::Debug {
    /// The version under which new keys are wrapped. The greatest is not always the current one: a version is spread
    /// before it is used.
    fn current(&self) -> Result<KeyVersion, KeyringError>;

    /// All versions that can open.
    fn versions(&self) -> Result<Vec<KeyVersion>, KeyringError>;

    /// An owner's key of this version. The same question always has the same answer.
    fn key(&self, owner: Owner, version: KeyVersion) -> KeyFuture<'_>;
}

/// A keyring of root secrets: an owner's key is HKDF-SHA256 of the root, with the owner as info.
#[derive(Debug, Clone)]
pub struct Roots {
    current: KeyVersion,
    roots: BTreeMap<KeyVersion, Key>,
}

impl Roots {
    /// The keyring of these roots; `None` when the current version is not among them.
    pub fn new(current: KeyVersion, roots: BTreeMap<KeyVersion, Key>) -> Option<Self> {
        roots.contains_key(&current).then_some(Self { current, roots })
    }

    /// An owner's key of this version.
    pub fn derive(&self, owner: Owner, version: KeyVersion) -> Result<Key, KeyringError> {
        let root = self.roots.get(&version).ok_or(KeyringError::Missing(version))?;
        Ok(root.derive(&[], &[b"clairvio keyring v1", &owner.to_bytes()]))
    }
}

impl Keyring for Roots {
    fn current(&self) -> Result<KeyVersion, KeyringError> {
        Ok(self.current)
    }

    fn versions(&self) -> Result<Vec<KeyVersion>, KeyringError> {
        Ok(self.roots.keys().copied().collect())
    }

    fn key(&self, owner: Owner, version: KeyVersion) -> KeyFuture<'_> {
        let key = self.derive(owner, version);
        Box::pin(async move { key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_owner_and_version_has_its_own_key_and_a_missing_version_is_an_error() {
        let roots = [(KeyVersion(1), Key::new([1; 32])), (KeyVersion(2), Key::new([2; 32]))];
        let roots = Roots::new(KeyVersion(2), roots.into()).unwrap();
        let owners = [
            Owner::Storage,
            Owner::Workspace(WorkspaceId(Uuid::nil())),
            Owner::Workspace(WorkspaceId(Uuid::from_u128(1))),
        ];
        let mut seen = std::collections::BTreeSet::new();
        for owner in owners {
            for version in roots.versions().unwrap() {
                let key = *roots.derive(owner, version).unwrap().expose();
                assert_eq!(key, *roots.derive(owner, version).unwrap().expose());
                assert!(seen.insert(key), "{owner} {version}");
            }
            assert_eq!(roots.derive(owner, KeyVersion(3)).unwrap_err(), KeyringError::Missing(KeyVersion(3)));
        }
        assert!(Roots::new(KeyVersion(1), BTreeMap::new()).is_none());
    }

    #[test]
    fn an_owner_is_its_bytes_and_other_bytes_are_nobodys() {
        for owner in [Owner::Storage, Owner::Workspace(WorkspaceId(Uuid::from_u128(7)))] {
            assert_eq!(Owner::from_bytes(owner.to_bytes()), Some(owner));
        }
        let mut longer_storage = Owner::Storage.to_bytes();
        longer_storage[16] = 1;
        for bytes in [[0; 17], [3; 17], longer_storage] {
            assert_eq!(Owner::from_bytes(bytes), None, "{bytes:?}");
        }
    }
}
