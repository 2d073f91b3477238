//! Settings: the services' variables, of which a flag can take the place.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use service_kit::config::Env;
use service_kit::config::keys::{
    KeyStoreConfig, KeyringSource, SessionKeysConfig, keyring_source, transport_keys_file,
};
use service_kit::config::postgres::PostgresConfig;
use service_kit::keys;
use service_kit::shutdown::Shutdown;
use storage::index::Index;
use storage::keystore::KeyStore;
use storage::session_keys::SessionKeys;

/// The index.
pub(crate) const INDEX_URL: &str = "DATABASE_URL";
/// The key store; the index's database when it is not given.
pub(crate) const KEYSTORE_URL: &str = "KEYSTORE_DATABASE_URL";
/// The file of the transport's keys.
pub(crate) const TRANSPORT_FILE: &str = "CLAIRVIO_TRANSPORT_KEYS_FILE";
/// The file of the keyring.
pub(crate) const KEYRING_FILE: &str = "CLAIRVIO_KEYRING_FILE";
/// The keyring itself.
pub(crate) const KEYRING: &str = "CLAIRVIO_KEYRING";
/// A program that gives the keyring's keys.
pub(crate) const KEYRING_PROGRAM: &str = "CLAIRVIO_KEYRING_PROGRAM";
/// The file of an edge's keys of tokens.
pub(crate) const EDGE_FILE: &str = "CLAIRVIO_EDGE_KEYS_FILE";
/// The file of a control plane's keys of tokens.
pub(crate) const CONTROL_FILE: &str = "CLAIRVIO_CONTROL_KEYS_FILE";

/// The file of the key that signs receipts.
pub(crate) const RECEIPT_FILE: &str = "CLAIRVIO_RECEIPT_KEYS_FILE";
/// The file of the public keys of receipts.
pub(crate) const RECEIPT_PUBLIC_FILE: &str = "CLAIRVIO_RECEIPT_PUBLIC_FILE";

/// A variable; an empty one is as one that is not given.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Settings that a command needs, all errors at once.
pub(crate) fn load<T>(read: impl FnOnce(&mut Env<'_>) -> T) -> anyhow::Result<T> {
    let mut env = Env::new(&variable);
    let config = read(&mut env);
    if env.errors().is_empty() { Ok(config) } else { bail!(env.errors().join("\n")) }
}

/// The file of the transport's keys: the flag's, else the variable's.
pub(crate) fn transport_file(flag: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    flag.map_or_else(|| load(transport_keys_file), Ok)
}

/// The file of an edge's keys of tokens: the flag's, else the variable's.
pub(crate) fn edge_file(flag: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    named(flag, EDGE_FILE)
}

/// The file of a control plane's keys of tokens: the flag's, else the variable's.
pub(crate) fn control_file(flag: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    named(flag, CONTROL_FILE)
}

/// The files of the keys of receipts, secret and public: the flags', else the variables'.
pub(crate) fn receipt_files(keys: Option<PathBuf>, public: Option<PathBuf>) -> anyhow::Result<(PathBuf, PathBuf)> {
    Ok((named(keys, RECEIPT_FILE)?, named(public, RECEIPT_PUBLIC_FILE)?))
}

fn named(flag: Option<PathBuf>, name: &str) -> anyhow::Result<PathBuf> {
    flag.or_else(|| variable(name).map(PathBuf::from))
        .with_context(|| format!("find a key file: neither the flag nor {name} says where it is"))
}

/// Where the keyring is: the flag says, else the variables.
pub(crate) fn keyring(flag: Option<PathBuf>) -> anyhow::Result<KeyringSource> {
    flag.map_or_else(|| load(keyring_source), |path| Ok(KeyringSource::File(path)))
}

/// The file of the keyring, to be changed.
pub(crate) fn keyring_file(flag: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    match keyring(flag)? {
        KeyringSource::File(path) => Ok(path),
        _ => bail!(
            "change the keyring: it is not in a file\n  hint: where {KEYRING} holds it, write its text to a file, give that with \
             --file, and set the variable to what the file holds then"
        ),
    }
}

/// The index, when there is a setting for it.
pub(crate) fn index_if_given() -> anyhow::Result<Option<Index>> {
    if variable(INDEX_URL).is_none() {
        return Ok(None);
    }
    Ok(Some(Index::new(&load(PostgresConfig::load)?)?))
}

/// The key store, when there is a setting for it.
pub(crate) fn keystore_if_given() -> anyhow::Result<Option<KeyStore>> {
    let Some(url) = variable(KEYSTORE_URL).or_else(|| variable(INDEX_URL)) else { return Ok(None) };
    Ok(Some(KeyStore::new(&load(|env| KeyStoreConfig::load(env, &url))?)?))
}

/// The key store.
pub(crate) fn keystore() -> anyhow::Result<KeyStore> {
    match keystore_if_given()? {
        Some(keystore) => Ok(keystore),
        None => bail!("find the key store: neither {KEYSTORE_URL} nor {INDEX_URL} is set"),
    }
}

/// The data keys of sessions, of this keyring. They are dropped when the process ends; nobody shuts down before.
pub(crate) fn session_keys(keyring: &KeyringSource, store: KeyStore) -> anyhow::Result<SessionKeys> {
    let shutdown = Shutdown::new(Duration::ZERO);
    let kept = match load(SessionKeysConfig::load) {
        Ok(config) => config.cache,
        // A flag stands in for the keyring's variables, which are part of the same settings.
        Err(_) => Duration::from_secs(60),
    };
    Ok(SessionKeys::new(store, keys::keyring::open(keyring, &shutdown)?, kept, &shutdown))
}
