//! The keyring in a file, in the environment, or behind a program.

use std::collections::BTreeMap;
use std::sync::Arc;

use sealing::Key;
use sealing::keyring::{KeyFuture, KeyVersion, Keyring, KeyringError, Owner, Roots};
use serde::{Deserialize, Serialize};

use super::program::ProgramKeyring;
use super::{KeysError, Watched, key_text};
use crate::config::keys::KeyringSource;
use crate::shutdown::Shutdown;

/// One version of the root.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Root {
    /// Its number, above all before it.
    pub version: u32,
    #[serde(with = "key_text")]
    secret: Key,
}

/// The file: versions of the root, of which one wraps new keys.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "File", into = "File")]
pub struct KeyringFile {
    current: u32,
    roots: Vec<Root>,
    derived: Roots,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    current: u32,
    roots: Vec<Root>,
}

impl From<KeyringFile> for File {
    fn from(file: KeyringFile) -> Self {
        Self { current: file.current, roots: file.roots }
    }
}

impl TryFrom<File> for KeyringFile {
    type Error = &'static str;

    fn try_from(file: File) -> Result<Self, Self::Error> {
        if !file.roots.is_sorted_by(|one, other| one.version < other.version) {
            return Err("versions stand in order, each once");
        }
        Self::of(file.current, file.roots).ok_or("no current version")
    }
}

impl KeyringFile {
    fn of(current: u32, roots: Vec<Root>) -> Option<Self> {
        let keys: BTreeMap<KeyVersion, Key> =
            roots.iter().map(|root| (KeyVersion(root.version), root.secret.clone())).collect();
        let derived = Roots::new(KeyVersion(current), keys)?;
        Some(Self { current, roots, derived })
    }

    /// A keyring of one version.
    pub fn make() -> Result<Self, KeysError> {
        Self::of(1, vec![new_root(1)?]).ok_or(KeysError::Random)
    }

    /// The version that wraps new keys.
    pub fn current(&self) -> KeyVersion {
        KeyVersion(self.current)
    }

    /// All versions, oldest first.
    pub fn versions(&self) -> Vec<KeyVersion> {
        self.roots.iter().map(|root| KeyVersion(root.version)).collect()
    }

    /// Adds a version. It is not used before [`KeyringFile::set_current`]: until all processes have it, none could open what
    /// it wraps.
    pub fn add(&mut self) -> Result<KeyVersion, KeysError> {
        let version = self.roots.last().map_or(1, |root| root.version + 1);
        let mut roots = self.roots.clone();
        roots.push(new_root(version)?);
        *self = Self::of(self.current, roots).ok_or(KeysError::Random)?;
        Ok(KeyVersion(version))
    }

    /// Wraps new keys under this version from now on; `false` when there is no such version.
    pub fn set_current(&mut self, version: KeyVersion) -> bool {
        Self::of(version.0, self.roots.clone()).map(|file| *self = file).is_some()
    }

    /// Removes a version for ever: what it wrapped is lost. `false` when it is the current one, or there is none.
    pub fn retire(&mut self, version: KeyVersion) -> bool {
        let before = self.roots.len();
        let roots: Vec<Root> = self.roots.iter().filter(|root| root.version != version.0).cloned().collect();
        let removed = roots.len() < before;
        removed && Self::of(self.current, roots).map(|file| *self = file).is_some()
    }
}

fn new_root(version: u32) -> Result<Root, KeysError> {
    Ok(Root { version, secret: Key::random().map_err(|_| KeysError::Random)? })
}

/// The keyring that the configuration names.
pub fn open(source: &KeyringSource, shutdown: &Shutdown) -> Result<Arc<dyn Keyring>, KeysError> {
    match source {
        KeyringSource::File(path) => Ok(Arc::new(InFile(Watched::start(path.clone(), shutdown)?))),
        KeyringSource::Inline(text) => {
            let file: KeyringFile =
                serde_json::from_str(text).map_err(|_| KeysError::Parse("in CLAIRVIO_KEYRING".into()))?;
            Ok(Arc::new(file.derived))
        }
        KeyringSource::Program(path) => Ok(Arc::new(ProgramKeyring::start(path)?)),
    }
}

/// A keyring in a file, as it is at each question.
#[derive(Debug)]
struct InFile(Arc<Watched<KeyringFile>>);

impl Keyring for InFile {
    fn current(&self) -> Result<KeyVersion, KeyringError> {
        Ok(self.0.get().current())
    }

    fn versions(&self) -> Result<Vec<KeyVersion>, KeyringError> {
        Ok(self.0.get().versions())
    }

    fn key(&self, owner: Owner, version: KeyVersion) -> KeyFuture<'_> {
        let key = self.0.get().derived.derive(owner, version);
        Box::pin(async move { key })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_spread_used_and_retired() {
        let mut file = KeyringFile::make().unwrap();
        let first = *file.derived.derive(Owner::Storage, KeyVersion(1)).unwrap().expose();
        assert_eq!(file.add().unwrap(), KeyVersion(2));
        assert_eq!(file.current(), KeyVersion(1), "a new version is spread before it is used");
        assert!(!file.set_current(KeyVersion(3)));
        assert!(file.set_current(KeyVersion(2)));
        let text = serde_json::to_string(&file).unwrap();
        let mut read: KeyringFile = serde_json::from_str(&text).unwrap();
        assert_eq!((read.current(), read.versions()), (KeyVersion(2), vec![KeyVersion(1), KeyVersion(2)]));
        assert_eq!(*read.derived.derive(Owner::Storage, KeyVersion(1)).unwrap().expose(), first);
        assert!(!read.retire(KeyVersion(2)), "the current version stays");
        assert!(read.retire(KeyVersion(1)));
        assert!(!read.retire(KeyVersion(1)));
        assert!(read.derived.derive(Owner::Storage, KeyVersion(1)).is_err());
        assert_eq!(read.add().unwrap(), KeyVersion(3), "a number is never given twice");
    }
}
