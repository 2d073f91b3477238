//! The control plane: links, sessions, reading, deletions.
//!
//! `routes` has one handler per call of `schemas/openapi.yaml`; `auth` finds the caller's workspace, and no handler sees
//! anything outside of it; operators see workspaces and links, and nothing that was recorded; `exporting` makes archives beside them; `readings` bounds how many readings
//! go on at once, and `pieces` brings what is read to who answers; `reply` makes answers and refusals.

mod auth;
mod driver;
mod exporting;
mod metrics;
mod pieces;
mod readings;
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
    /// How long sessions of a workspace whose plan's window became shorter are kept as before.
    pub plan_grace: Duration,
    /// How long all of a closed workspace stays, and it can be opened again.
    pub termination_grace: Duration,
    /// How old a backup of the index may be that is restored.
    pub backups: Duration,
    /// Readings of events at once.
    pub readings_max: usize,
    /// How long an export is kept.
    pub exports_kept: Duration,
    /// Exports whose archives are made at once.
    pub exports_at_once: usize,
    /// SHA-256 of the keys of operators.
    pub operators: Vec<[u8; 32]>,
}

const OPERATOR_KEY_HASHES: Knob = Knob {
    name: "CLAIRVIO_OPERATOR_KEY_HASHES",
    doc: "Who may make the operator's calls: hashes of keys that `clairvio operator-key` makes. Without any nobody may.",
    unit: "SHA-256 in hexadecimal, comma separated",
    default: Some(""),
    secret: false,
};

/// Hashes in hexadecimal.
fn hashes(text: &str) -> Option<Vec<[u8; 32]>> {
    let hash = |text: &str| {
        let text = text.trim();
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut hash = [0; 32];
        for (byte, at) in hash.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
        }
        Some(hash)
    };
    text.split(',').filter(|text| !text.trim().is_empty()).map(hash).collect()
}

const PLAN_GRACE_MS: Knob = Knob {
    name: "CLAIRVIO_PLAN_GRACE_MS",
    doc: "When a workspace gets a plan with a shorter window, its sessions are kept as before for so long.",
    unit: "milliseconds",
    default: Some("86400000"),
    secret: false,
};
const TERMINATION_GRACE_DAYS: Knob = Knob {
    name: "CLAIRVIO_TERMINATION_GRACE_DAYS",
    doc: "How long a closed workspace can be opened again, before all of it is deleted. 25 at most: all is gone within 30.",
    unit: "days from 0 to 25",
    default: Some("14"),
    secret: false,
};
/// All of a closed workspace is gone within 30 days (P9), and deleting takes some.
const TERMINATION_GRACE_DAYS_MAX: u64 = 25;
const READINGS_MAX: Knob = Knob {
    name: "CLAIRVIO_READINGS_MAX",
    doc: "Readings of events at once; a quarter of them at most for one workspace. Each takes up to some 60 MiB while it goes on, most a few.",
    unit: "readings",
    default: Some("100"),
    secret: false,
};
const EXPORT_HOURS: Knob = Knob {
    name: "CLAIRVIO_EXPORT_HOURS",
    doc: "How long the archive of an export can be fetched. 71 at most: nothing of it is left after 72.",
    unit: "hours from 1 to 71",
    default: Some("48"),
    secret: false,
};
/// Nothing of an export is left 72 hours after it was asked for, and removing it takes some.
const EXPORT_HOURS_MAX: u64 = 71;
const EXPORTS_AT_ONCE: Knob = Knob {
    name: "CLAIRVIO_EXPORTS_AT_ONCE",
    doc: "Archives of exports that this process makes at once, with some 60 MiB each; 0 leaves it to others.",
    unit: "archives",
    default: Some("2"),
    secret: false,
};
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
            plan_grace: env.millis(&PLAN_GRACE_MS),
            termination_grace: Duration::from_secs(
                86_400
                    * env.parsed(&TERMINATION_GRACE_DAYS, 0, |text| {
                        text.parse().ok().filter(|days| *days <= TERMINATION_GRACE_DAYS_MAX)
                    }),
            ),
            backups: ages::backups(env),
            readings_max: env.number(&READINGS_MAX, 1) as usize,
            exports_kept: Duration::from_secs(
                3_600
                    * env.parsed(&EXPORT_HOURS, 1, |text| {
                        text.parse().ok().filter(|hours| (1..=EXPORT_HOURS_MAX).contains(hours))
                    }),
            ),
            exports_at_once: env.number(&EXPORTS_AT_ONCE, 0) as usize,
            operators: env.parsed(&OPERATOR_KEY_HASHES, Vec::new(), hashes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_of_operators_are_whole_or_refused() {
        let hex = "00ff".repeat(16);
        let hash: [u8; 32] = std::array::from_fn(|at| if at % 2 == 0 { 0 } else { 0xff });
        assert_eq!(hashes(""), Some(Vec::new()));
        assert_eq!(hashes(&hex.to_uppercase()), Some(vec![hash]));
        assert_eq!(hashes(&format!("{hex}, {hex},")), Some(vec![hash; 2]));
        for wrong in [&hex[1..], &format!("{hex}0"), &hex.replace('f', "g"), &format!("{}+f", &hex[2..]), "ä"] {
            assert_eq!(hashes(wrong), None, "{wrong}");
        }
    }
}
