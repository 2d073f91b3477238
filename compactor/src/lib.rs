//! The compactor: runs of shared objects in, session objects out.
//!
//! A run is claimed under a lease, read once, regrouped by session, and swapped for its results in one transaction;
//! sessions that are over become one object. [`engine::compaction::Machine`] decides, `driver` carries out, `work` moves the
//! bytes, `merge` makes them on the pool. Killed anywhere, it leaves a lease that runs out and staged objects that the collector
//! removes.

mod driver;
mod merge;
mod metrics;
mod work;

use std::time::Duration;

use engine::compaction::RunConfig;
use service_kit::config::kafka::ControlConfig;
use service_kit::config::keys::{KeyStoreConfig, SessionKeysConfig};
use service_kit::config::postgres::PostgresConfig;
use service_kit::config::s3::S3Config;
use service_kit::config::{Env, Knob, ages, kafka};
use service_kit::service::Definition;

pub use driver::run;

/// The compactor's settings.
#[derive(Debug)]
pub struct Config {
    /// The topic whose objects are merged.
    pub topic: String,
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
    /// How often work is looked for when there is none.
    pub pass_interval: Duration,
    /// What a run is.
    pub runs: RunConfig,
    /// Runs that are merged at once.
    pub runs_at_once: usize,
    /// Bytes of runs that are held and of merges under way.
    pub merge_bytes_max: u64,
    /// How long a claim lasts.
    pub lease: Duration,
    /// Silence that ends a session.
    pub silence: Duration,
}

const RUN_AGE_MS: Knob = Knob {
    name: "CLAIRVIO_RUN_AGE_MS",
    doc: "A shared object is merged at the latest at this age: a deleted session's bytes leave within this and the grace.",
    unit: "milliseconds",
    default: Some("600000"),
    secret: false,
};
const RUN_BYTES_MIN: Knob = Knob {
    name: "CLAIRVIO_RUN_BYTES_MIN",
    doc: "A run is merged once it has this much.",
    unit: "bytes",
    default: Some("33554432"),
    secret: false,
};
const RUN_BYTES_MAX: Knob = Knob {
    name: "CLAIRVIO_RUN_BYTES_MAX",
    doc: "A run has at most this much; it is held in memory.",
    unit: "bytes",
    default: Some("67108864"),
    secret: false,
};
const RUN_OBJECTS_MAX: Knob = Knob {
    name: "CLAIRVIO_RUN_OBJECTS_MAX",
    doc: "A run has at most this many objects.",
    unit: "a number",
    default: Some("64"),
    secret: false,
};
const RUNS_AT_ONCE: Knob = Knob {
    name: "CLAIRVIO_RUNS_AT_ONCE",
    doc: "So many runs are merged at once, of different partitions.",
    unit: "a number",
    default: Some("2"),
    secret: false,
};
const MERGE_BYTES_MAX: Knob = Knob {
    name: "CLAIRVIO_MERGE_BYTES_MAX",
    doc: "Bytes of runs that are held and of merges under way; beyond it nothing begins unless nothing else goes on.",
    unit: "bytes",
    default: Some("134217728"),
    secret: false,
};
const LEASE_MS: Knob = Knob {
    name: "CLAIRVIO_LEASE_MS",
    doc: "How long a claim on a run lasts. It is renewed while the run is merged; that of a dead process runs out.",
    unit: "milliseconds",
    default: Some("120000"),
    secret: false,
};

/// What the compactor is.
pub const DEFINITION: Definition<Config> = Definition {
    name: "compactor",
    about: "merges shared objects into session objects",
    listen: None,
    admin_listen: "127.0.0.1:7101",
    load: Config::load,
};

impl Config {
    fn load(env: &mut Env<'_>) -> Self {
        let topic = kafka::topic_events(env);
        let control = ControlConfig::load(env);
        let postgres = PostgresConfig::load(env);
        Self {
            topic,
            control,
            keystore: KeyStoreConfig::load(env, &postgres.url),
            keys: SessionKeysConfig::load(env),
            postgres,
            s3: S3Config::load(env),
            pass_interval: ages::pass_interval(env),
            runs: RunConfig {
                run_bytes_min: env.number(&RUN_BYTES_MIN, 1),
                run_age_ms: env.number(&RUN_AGE_MS, 1),
                run_bytes_max: env.number(&RUN_BYTES_MAX, 1),
                run_objects_max: usize::try_from(env.number(&RUN_OBJECTS_MAX, 1)).unwrap_or(usize::MAX),
            },
            runs_at_once: usize::try_from(env.number(&RUNS_AT_ONCE, 1)).unwrap_or(usize::MAX),
            merge_bytes_max: env.number(&MERGE_BYTES_MAX, 1),
            lease: env.millis(&LEASE_MS),
            silence: ages::session_silence(env),
        }
    }
}
