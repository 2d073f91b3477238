//! Key files: where a process finds its keys, and how it hears of new ones.
//!
//! [`tokens`] sign and verify links and sessions, [`transport`] seals records on their way through the log, [`keyring`] is
//! above the data keys of sessions, or a [`program`] stands in for it, [`receipts`] sign what was deleted. A file is made by `clairvio keys`, readable by its owner only, and replaced as a whole;
//! a process that holds it [`Watched`] goes by the new one within seconds.

pub mod cache;
pub mod keyring;
pub mod program;
pub mod receipts;
pub mod tokens;
pub mod transport;
mod watched;

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use zeroize::Zeroizing;

pub use watched::{LOOK_INTERVAL, Watched};

/// Why keys cannot be had.
#[derive(Debug, Error)]
pub enum KeysError {
    /// The file cannot be read.
    #[error("read key file {path}\n  hint: make one with `clairvio keys make`")]
    Read {
        /// Where it was looked for.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be. Its content is not shown.
    #[error("parse key file {0}\n  hint: make a new one with `clairvio keys make`")]
    Parse(String),
    /// The file cannot be written.
    #[error("write key file {path}")]
    Write {
        /// Where.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The machine gives no randomness.
    #[error("draw random bytes")]
    Random,
    /// There is no such program, or nobody may start it.
    #[error(
        "find keyring program {path}\n  hint: CLAIRVIO_KEYRING_PROGRAM is the path of an executable file, without arguments"
    )]
    Program {
        /// Where it was looked for.
        path: String,
        /// Why.
        source: std::io::Error,
    },
}

/// What edges need to check links and to sign sessions.
pub const EDGE_FILE: &str = "edge-keys.json";
/// What the control plane needs to sign links.
pub const CONTROL_FILE: &str = "control-keys.json";
/// What edges seal records with, and batchers open.
pub const TRANSPORT_FILE: &str = "transport-keys.json";
/// What wraps the data keys of sessions.
pub const KEYRING_FILE: &str = "keyring.json";

/// What retention workers sign receipts with.
pub const RECEIPT_FILE: &str = "receipt-keys.json";
/// What anybody checks receipts with: no secret.
pub const RECEIPT_PUBLIC_FILE: &str = "receipt-public.json";

/// Makes fresh keys of a deployment, a file for each kind, in `folder`. Files that are there already are neither changed nor
/// overwritten: their names come second.
pub fn make(folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), KeysError> {
    let (mut made, mut kept) = (Vec::new(), Vec::new());
    if let Some(paths) = missing(folder, [EDGE_FILE, CONTROL_FILE], &mut kept) {
        let (edge, control) = tokens::make()?;
        write(&paths[0], &edge)?;
        write(&paths[1], &control)?;
        made.extend(paths);
    }
    if let Some([path]) = missing(folder, [TRANSPORT_FILE], &mut kept) {
        write(&path, &transport::TransportKeys::make()?)?;
        made.push(path);
    }
    if let Some([path]) = missing(folder, [KEYRING_FILE], &mut kept) {
        write(&path, &keyring::KeyringFile::make()?)?;
        made.push(path);
    }
    if let Some(paths) = missing(folder, [RECEIPT_FILE, RECEIPT_PUBLIC_FILE], &mut kept) {
        let (keys, public) = receipts::make()?;
        write(&paths[0], &keys)?;
        write(&paths[1], &public)?;
        made.extend(paths);
    }
    Ok((made, kept))
}

/// Files that are to be made, unless all of them are there. They belong together: some of them alone are of no use, and the others
/// cannot be made to fit.
fn missing<const N: usize>(folder: &Path, names: [&str; N], kept: &mut Vec<PathBuf>) -> Option<[PathBuf; N]> {
    let paths = names.map(|name| folder.join(name));
    if paths.iter().all(|path| path.exists()) {
        kept.extend(paths);
        return None;
    }
    Some(paths)
}

/// Reads a key file.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T, KeysError> {
    let text = read_bytes(path)?;
    // The parser's error could quote the file: only its path is told.
    serde_json::from_slice(&text).map_err(|_| KeysError::Parse(path.display().to_string()))
}

fn read_bytes(path: &Path) -> Result<Zeroizing<Vec<u8>>, KeysError> {
    let read = std::fs::read(path).map_err(|source| KeysError::Read { path: path.display().to_string(), source })?;
    Ok(Zeroizing::new(read))
}

/// Writes a new key file that only its owner can read. An existing one is never overwritten.
pub fn write(path: &Path, keys: &impl Serialize) -> Result<(), KeysError> {
    write_new(path, keys).map_err(|source| KeysError::Write { path: path.display().to_string(), source })
}

/// Replaces a key file: whoever reads it sees the old one or the new one, whole.
pub fn replace(path: &Path, keys: &impl Serialize) -> Result<(), KeysError> {
    let failed = |source| KeysError::Write { path: path.display().to_string(), source };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let beside = path.with_file_name(format!(".{name}.{}", uuid::Uuid::now_v7()));
    let written = write_new(&beside, keys).and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        // What could not be put in place must not stay; that it cannot be removed is no worse than why it is there.
        let _ = std::fs::remove_file(&beside);
    }
    written.and_then(|()| sync_folder(path)).map_err(failed)
}

fn write_new(path: &Path, keys: &impl Serialize) -> std::io::Result<()> {
    let text = Zeroizing::new(serde_json::to_vec_pretty(keys)?);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(&text)?;
    file.sync_all()
}

/// A rename is durable once its folder is.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    std::fs::File::open(folder)?.sync_all()
}

fn bytes32(text: &str) -> Option<[u8; 32]> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// A key of 256 bits as base64 in a file.
mod key_text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use sealing::Key;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};
    use zeroize::Zeroizing;

    pub(super) fn serialize<S: Serializer>(key: &Key, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(key.expose())))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Key, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        let bytes = Zeroizing::new(STANDARD.decode(text.as_str()).map_err(|_| D::Error::custom("a key is base64"))?);
        bytes.as_slice().try_into().map(Key::new).map_err(|_| D::Error::custom("a key has 32 bytes"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_a_deployment_are_made_once() {
        let folder = std::env::temp_dir().join(format!("clairvio-keys-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&folder).unwrap();
        let (made, kept) = make(&folder).unwrap();
        assert_eq!((made.len(), kept.len()), (6, 0));
        std::fs::remove_file(folder.join(KEYRING_FILE)).unwrap();
        let before = std::fs::read(folder.join(TRANSPORT_FILE)).unwrap();
        let (made, kept) = make(&folder).unwrap();
        assert_eq!((made, kept.len()), (vec![folder.join(KEYRING_FILE)], 5));
        assert_eq!(std::fs::read(folder.join(TRANSPORT_FILE)).unwrap(), before);
        std::fs::remove_file(folder.join(EDGE_FILE)).unwrap();
        assert!(matches!(make(&folder), Err(KeysError::Write { .. })), "the other half cannot be made to fit");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn files_are_private_and_never_overwritten_but_replaced_whole() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = std::env::temp_dir().join(format!("clairvio-keys-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&folder).unwrap();
        let path = folder.join("keys.json");
        write(&path, &7).unwrap();
        assert!(matches!(write(&path, &8), Err(KeysError::Write { .. })));
        assert_eq!(read::<u8>(&path).unwrap(), 7);
        replace(&path, &9).unwrap();
        assert_eq!(read::<u8>(&path).unwrap(), 9);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
        assert!(matches!(read::<String>(&path), Err(KeysError::Parse(_))));
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
