//! Keys: the keyring, the key store, the epochs of the transport.

use std::path::PathBuf;
use std::time::Duration;

use super::{Env, Knob};

/// Where the keyring is.
#[derive(Clone, PartialEq, Eq)]
pub enum KeyringSource {
    /// In a file, read again when it changes.
    File(PathBuf),
    /// In the environment, as the same text.
    Inline(String),
    /// Behind a program that this process starts and asks.
    Program(PathBuf),
}

impl std::fmt::Debug for KeyringSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Inline(_) => f.write_str("Inline(secret)"),
            Self::Program(path) => f.debug_tuple("Program").field(path).finish(),
        }
    }
}

/// Settings of the key store's connections.
#[derive(Clone)]
pub struct KeyStoreConfig {
    /// `postgres://user:password@host:port/database`; the index's database where none is given.
    pub url: String,
    /// Connections of this process.
    pub connections_max: u32,
}

impl std::fmt::Debug for KeyStoreConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The address holds a password.
        f.debug_struct("KeyStoreConfig").field("connections_max", &self.connections_max).finish_non_exhaustive()
    }
}

/// Settings of whoever opens or seals sessions.
#[derive(Debug, Clone)]
pub struct SessionKeysConfig {
    /// The keyring.
    pub keyring: KeyringSource,
    /// How long an unwrapped key is kept after it was fetched.
    pub cache: Duration,
}

const KEYSTORE_URL: Knob = Knob {
    name: "KEYSTORE_DATABASE_URL",
    doc: "The key store. In production a database of its own; the index's database when it is not given.",
    unit: "postgres://user:password@host:port/database",
    default: None,
    secret: true,
};
const KEYSTORE_CONNECTIONS_MAX: Knob = Knob {
    name: "KEYSTORE_CONNECTIONS_MAX",
    doc: "Connections of this process to the key store.",
    unit: "a number",
    default: Some("4"),
    secret: false,
};
const KEYRING_FILE: Knob = Knob {
    name: "CLAIRVIO_KEYRING_FILE",
    doc: "The keyring, made by `clairvio keys make`. Read again when it changes. Exactly one of this, CLAIRVIO_KEYRING and \
          CLAIRVIO_KEYRING_PROGRAM is given.",
    unit: "a path",
    default: None,
    secret: false,
};
const KEYRING: Knob = Knob {
    name: "CLAIRVIO_KEYRING",
    doc: "The keyring itself: the text of such a file. Exactly one of this, CLAIRVIO_KEYRING_FILE and \
          CLAIRVIO_KEYRING_PROGRAM is given.",
    unit: "JSON",
    default: None,
    secret: true,
};
const KEYRING_PROGRAM: Knob = Knob {
    name: "CLAIRVIO_KEYRING_PROGRAM",
    doc: "The program that has the keyring, `keyring-kms` for one (docs/keyring-program.md). It is started without arguments, \
          with this process's environment. Exactly one of this, CLAIRVIO_KEYRING_FILE and CLAIRVIO_KEYRING is given.",
    unit: "a path",
    default: None,
    secret: false,
};
const KEY_CACHE_MS: Knob = Knob {
    name: "CLAIRVIO_KEY_CACHE_MS",
    doc: "How long a session's unwrapped key is kept after it was fetched, used or not. A deleted session's bytes cannot be \
          opened any more this long after its key was destroyed. Alike in all services.",
    unit: "milliseconds",
    default: Some("60000"),
    secret: false,
};
const TRANSPORT_KEYS_FILE: Knob = Knob {
    name: "CLAIRVIO_TRANSPORT_KEYS_FILE",
    doc: "The keys of records in the log, made by `clairvio keys make`. Read again when it changes.",
    unit: "a path",
    default: None,
    secret: false,
};

const RECEIPT_KEYS_FILE: Knob = Knob {
    name: "CLAIRVIO_RECEIPT_KEYS_FILE",
    doc: "The key that signs receipts of deletions, made by `clairvio keys make`. Read again when it changes.",
    unit: "a path",
    default: None,
    secret: false,
};

impl KeyStoreConfig {
    /// Reads the settings. `index_url` is where the key store is unless it has a database of its own.
    pub fn load(env: &mut Env<'_>, index_url: &str) -> Self {
        Self {
            url: env.optional_text(&KEYSTORE_URL).unwrap_or_else(|| index_url.to_owned()),
            connections_max: env.number(&KEYSTORE_CONNECTIONS_MAX, 1).try_into().unwrap_or(u32::MAX),
        }
    }
}

impl SessionKeysConfig {
    /// Reads the settings.
    pub fn load(env: &mut Env<'_>) -> Self {
        Self { keyring: keyring_source(env), cache: key_cache(env) }
    }
}

/// Where the keyring is: exactly one of its settings is given.
pub fn keyring_source(env: &mut Env<'_>) -> KeyringSource {
    let file = env.optional_text(&KEYRING_FILE).map(|path| KeyringSource::File(path.into()));
    let inline = env.optional_text(&KEYRING).map(KeyringSource::Inline);
    let program = env.optional_text(&KEYRING_PROGRAM).map(|path| KeyringSource::Program(path.into()));
    match (file, inline, program) {
        (Some(source), None, None) | (None, Some(source), None) | (None, None, Some(source)) => source,
        _ => {
            let names = [KEYRING_FILE.name, KEYRING.name, KEYRING_PROGRAM.name].join(", ");
            env.error(format!("give exactly one of {names}: where the keyring is"));
            KeyringSource::Inline(String::new())
        }
    }
}

/// How long an unwrapped key is kept, in any process.
pub fn key_cache(env: &mut Env<'_>) -> Duration {
    env.millis(&KEY_CACHE_MS)
}

/// The file with the key of receipts.
pub fn receipt_keys_file(env: &mut Env<'_>) -> PathBuf {
    env.path(&RECEIPT_KEYS_FILE)
}

/// The file with the keys of the transport.
pub fn transport_keys_file(env: &mut Env<'_>) -> PathBuf {
    env.path(&TRANSPORT_KEYS_FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keyring_is_in_exactly_one_place() {
        let given = |names: &[&str]| {
            let lookup = |name: &str| names.contains(&name).then(|| "there".to_owned());
            let mut env = Env::new(&lookup);
            let source = keyring_source(&mut env);
            env.errors().is_empty().then_some(source)
        };
        let (file, inline, program) = ("CLAIRVIO_KEYRING_FILE", "CLAIRVIO_KEYRING", "CLAIRVIO_KEYRING_PROGRAM");
        assert_eq!(given(&[file]), Some(KeyringSource::File("there".into())));
        assert_eq!(given(&[inline]), Some(KeyringSource::Inline("there".into())));
        assert_eq!(given(&[program]), Some(KeyringSource::Program("there".into())));
        for wrong in [[].as_slice(), &[file, inline], &[file, program], &[inline, program], &[file, inline, program]] {
            assert_eq!(given(wrong), None, "{wrong:?}");
        }
    }
}
