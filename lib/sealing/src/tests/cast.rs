//! The sessions and keys of the tests of tampering. Sessions share a data key here, which they never do outside: so it shows
//! that what is bound in tells them apart, and not only that keys differ.

use schemas::SessionKey;

use super::reader::Keys;
use super::samples::session_key;
use crate::Key;
use crate::keyring::{KeyVersion, Roots};
use crate::objects::StorageKey;
use crate::transport::{EpochId, EpochKeys};

pub(super) const VERSION: KeyVersion = KeyVersion(3);
pub(super) const EPOCH: EpochId = EpochId(3);
pub(super) const TOPIC: &str = "session-events";

/// The session that is tampered with most.
pub(super) fn own() -> SessionKey {
    session_key(1, 1)
}

/// Another session of the workspace, under the same data key.
pub(super) fn twin() -> SessionKey {
    session_key(1, 2)
}

/// The same session's id in another workspace, under the same data key.
pub(super) fn foreign() -> SessionKey {
    session_key(2, 1)
}

/// Another session of the workspace, under its own data key.
pub(super) fn other() -> SessionKey {
    session_key(1, 3)
}

pub(super) fn keys() -> Keys {
    let (data_key, other_key) = (Key::new([41; 32]), Key::new([42; 32]));
    // A flip of one bit turns version 3, and epoch 3, into 1 and 2.
    let roots = [1, 2, 3].map(|version| (KeyVersion(version), Key::new([version as u8; 32])));
    let epochs = [1, 2, 3].map(|epoch| (EpochId(epoch), Key::new([10 + epoch as u8; 32])));
    let sessions = [own(), twin(), foreign()].map(|session| (session, data_key.clone()));
    Keys {
        roots: Roots::new(VERSION, roots.into()).unwrap(),
        sessions: sessions.into_iter().chain([(other(), other_key)]).collect(),
        epochs: EpochKeys::new(epochs.into()),
        topic: TOPIC.to_owned(),
    }
}

pub(super) fn storage(keys: &Keys) -> StorageKey {
    StorageKey { version: VERSION, key: keys.storage(VERSION).unwrap() }
}
