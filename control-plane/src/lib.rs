//! The control plane: links, sessions, reading, deletions.
//!
//! `routes` has one handler per call of `schemas/openapi.yaml`; `auth` finds the caller's workspace, and no handler sees
//! anything outside of it; `reply` makes answers and refusals.

mod auth;
mod driver;
mod metrics;
mod reply;
mod routes;

use std::path::PathBuf;
use std::time::Duration;

use service_kit::config::kafka::ControlConfig;
use service_kit::config::keys::{KeyStoreConfig, SessionKeysConfig};
use service_kit::config::postgres::PostgresConfig;
use service_kit::config::s3::S3Config;
use service_kit::config::{Env, Knob, ages};
use service_kit::service::Definition;

pub use driver::run;
pub use routes::CALLS;

/// The control plane's settings.
#[derive(Debug)]
pub struct Config {
    /// Where deletions are told.
    pub control: ControlConfig,
    /// The index.
    pub postgres: PostgresConfig,
    /// The key store.
    pub keystore: KeyStoreConfig,
    /// Keys of sessions.
    pub keys: SessionKeysConfig,
    /// The bucket.
    pub s3: S3Config,
    /// Where the key is that signs links.
    pub keys_file: PathBuf,
    /// Silence that ends a session.
    pub silence: Duration,
}

const KEYS_FILE: Knob = Knob {
    name: "CLAIRVIO_CONTROL_KEYS_FILE",
    doc: "The key that signs links, made by `clairvio keys make`.",
    unit: "a path",
    default: None,
    secret: false,
};

/// What the control plane is.
pub const DEFINITION: Definition<Config> = Definition {
    name: "control-plane",
    about: "makes links, lists and reads sessions, takes deletions",
    listen: Some("127.0.0.1:7080"),
    admin_listen: "127.0.0.1:7081",
    load: Config::load,
};

impl Config {
    fn load(env: &mut Env<'_>) -> Self {
        let control = ControlConfig::load(env);
        let postgres = PostgresConfig::load(env);
        Self {
            control,
            keystore: KeyStoreConfig::load(env, &postgres.url),
            keys: SessionKeysConfig::load(env),
            postgres,
            s3: S3Config::load(env),
            keys_file: env.path(&KEYS_FILE),
            silence: ages::session_silence(env),
        }
    }
}
