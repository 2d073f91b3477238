//! The batcher: Kafka in, shared objects and the index out, each event once.
//!
//! The decisions are [`engine::batching`]'s; `driver` carries them out with `kafka` (the consumer), `opening` (records out
//! of their seal) and `assemble` (bytes of an object, masked by what `streams` knows), both on the pool, and the storage crate. Kafka's committed offsets are
//! for lag monitoring alone: where to go on is what the index says.

mod assemble;
mod driver;
mod kafka;
mod metrics;
mod opening;
mod streams;

use std::path::PathBuf;
use std::time::Duration;

use service_kit::config::kafka::{ControlConfig, KafkaConfig};
use service_kit::config::keys::{self, KeyStoreConfig, SessionKeysConfig};
use service_kit::config::postgres::PostgresConfig;
use service_kit::config::s3::S3Config;
use service_kit::config::{Env, Knob, ages};
use service_kit::service::Definition;

pub use driver::run;

/// The batcher's settings.
#[derive(Debug)]
pub struct Config {
    /// Kafka.
    pub kafka: KafkaConfig,
    /// Where deletions are told.
    pub control: ControlConfig,
    /// The consumer group.
    pub group: String,
    /// The index.
    pub postgres: PostgresConfig,
    /// The key store.
    pub keystore: KeyStoreConfig,
    /// Keys of sessions.
    pub keys: SessionKeysConfig,
    /// Where the keys of records are.
    pub transport_keys_file: PathBuf,
    /// The bucket.
    pub s3: S3Config,
    /// A flush begins at the latest this long after its first record came.
    pub flush_age: Duration,
    /// A flush begins when this many bytes are buffered for one partition.
    pub flush_bytes: u64,
    /// Reading pauses at this many bytes over all partitions.
    pub buffer_bytes_max: u64,
    /// A session's activity is noted at most once in this time.
    pub activity_interval: Duration,
}

const GROUP: Knob = Knob {
    name: "KAFKA_GROUP",
    doc: "The consumer group of all batchers.",
    unit: "a group's name",
    default: Some("batcher"),
    secret: false,
};
const FLUSH_AGE_MS: Knob = Knob {
    name: "CLAIRVIO_FLUSH_AGE_MS",
    doc: "A flush begins at the latest this long after its first record came.",
    unit: "milliseconds",
    default: Some("10000"),
    secret: false,
};
const FLUSH_BYTES: Knob = Knob {
    name: "CLAIRVIO_FLUSH_BYTES",
    doc: "A flush begins when this much is buffered for one partition.",
    unit: "bytes",
    default: Some("16777216"),
    secret: false,
};
const BUFFER_BYTES_MAX: Knob = Knob {
    name: "CLAIRVIO_BUFFER_BYTES_MAX",
    doc: "Reading pauses when this much is buffered over all partitions.",
    unit: "bytes",
    default: Some("268435456"),
    secret: false,
};

/// Activity is noted at most this often, however long the silence is.
const ACTIVITY_INTERVAL_MAX: Duration = Duration::from_secs(30);

/// What the batcher is.
pub const DEFINITION: Definition<Config> = Definition {
    name: "batcher",
    about: "reads events from Kafka, writes shared objects to S3 and the index",
    listen: None,
    admin_listen: "127.0.0.1:7091",
    load: Config::load,
};

impl Config {
    fn load(env: &mut Env<'_>) -> Self {
        let kafka = KafkaConfig::load(env);
        let control = ControlConfig::load_beside(&kafka, env);
        let group = env.text(&GROUP);
        let postgres = PostgresConfig::load(env);
        Self {
            kafka,
            control,
            group,
            keystore: KeyStoreConfig::load(env, &postgres.url),
            keys: SessionKeysConfig::load(env),
            transport_keys_file: keys::transport_keys_file(env),
            postgres,
            s3: S3Config::load(env),
            flush_age: env.millis(&FLUSH_AGE_MS),
            flush_bytes: env.number(&FLUSH_BYTES, 1),
            buffer_bytes_max: env.number(&BUFFER_BYTES_MAX, schemas::limits::KAFKA_MESSAGE_BYTES_MAX as u64),
            activity_interval: (ages::session_silence(env) / 3).min(ACTIVITY_INTERVAL_MAX),
        }
    }
}
