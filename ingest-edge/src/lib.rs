//! The edge: HTTP in, Kafka out.
//!
//! Stateless: everything that it knows of a session stands in the session's token, and what has changed since on the topic
//! `control`. A request proves its right, then its
//! body is read, decoded and validated within bounds (E3), and becomes one record; the answer is 202 only when Kafka has
//! it on all in-sync replicas (E1). The edge never opens a connection to Postgres or S3.
//!
//! `driver` takes requests, `http` reads and answers them, `tokens` verifies, `news` follows and tells what everybody has to know
//! soon, `body` decodes, `seal` seals records, `kafka` produces, `declines` counts.

mod body;
mod declines;
mod driver;
mod http;
mod kafka;
mod metrics;
mod news;
mod seal;
mod tokens;

use std::path::PathBuf;
use std::time::Duration;

use service_kit::config::kafka::{ControlConfig, KafkaConfig};
use service_kit::config::{Env, Knob, keys};
use service_kit::service::Definition;

pub use driver::run;
pub use http::CALLS;
pub use tokens::Tokens;

/// The edge's settings.
#[derive(Debug)]
pub struct Config {
    /// Kafka.
    pub kafka: KafkaConfig,
    /// Where is told who may record.
    pub control: ControlConfig,
    /// Where the keys of tokens are.
    pub keys_file: PathBuf,
    /// Where the keys of records are.
    pub transport_keys_file: PathBuf,
    /// How often sums of declines are sent.
    pub declines_interval: Duration,
    /// Bytes of bodies that are held at once; what comes beyond is told to come again.
    pub bodies_bytes_max: u64,
}

const KEYS_FILE: Knob = Knob {
    name: "CLAIRVIO_EDGE_KEYS_FILE",
    doc: "The keys of tokens, made by `clairvio keys make`.",
    unit: "a path",
    default: None,
    secret: false,
};
const DECLINES_INTERVAL_MS: Knob = Knob {
    name: "CLAIRVIO_DECLINES_INTERVAL_MS",
    doc: "How often sums of declines are sent.",
    unit: "milliseconds",
    default: Some("60000"),
    secret: false,
};
const BODIES_BYTES_MAX: Knob = Knob {
    name: "CLAIRVIO_BODIES_BYTES_MAX",
    doc: "Bytes of request bodies held at once; what comes beyond is answered with 503.",
    unit: "bytes",
    default: Some("134217728"),
    secret: false,
};

/// What the edge is.
pub const DEFINITION: Definition<Config> = Definition {
    name: "ingest-edge",
    about: "takes consents and events, writes them to Kafka",
    listen: Some("127.0.0.1:7070"),
    admin_listen: "127.0.0.1:7071",
    load: Config::load,
};

impl Config {
    fn load(env: &mut Env<'_>) -> Self {
        let kafka = KafkaConfig::load(env);
        let control = ControlConfig::load_beside(&kafka, env);
        Self {
            kafka,
            control,
            keys_file: env.path(&KEYS_FILE),
            transport_keys_file: keys::transport_keys_file(env),
            declines_interval: env.millis(&DECLINES_INTERVAL_MS),
            bodies_bytes_max: env.number(&BODIES_BYTES_MAX, schemas::limits::BODY_BYTES_MAX as u64),
        }
    }
}
