//! The retention worker: what must go, goes.
//!
//! Each pass makes tombstones of sessions past their plan window, leads every deletion one step on (decided by
//! [`engine::retention`]), and removes objects that nobody needs: condemned ones after a grace, rows only when a listing
//! shows the object absent. Beside the passes it makes withdrawals, which it hears of on `control`, into deletions within
//! seconds, takes entries off that topic that nobody needs any more, and compares bucket and index. Every step can be repeated, and several workers can run at once.

mod cleaning;
mod driver;
mod metrics;
mod reconciling;
mod withdrawals;

use std::time::Duration;

use service_kit::config::kafka::ControlConfig;
use service_kit::config::keys::KeyStoreConfig;
use service_kit::config::postgres::PostgresConfig;
use service_kit::config::s3::S3Config;
use service_kit::config::{Env, Knob, ages};
use service_kit::service::Definition;

pub use driver::run;
pub use reconciling::ReconcilingConfig;

/// The worker's settings.
#[derive(Debug)]
pub struct Config {
    /// Where deletions are told, and withdrawals heard of.
    pub control: ControlConfig,
    /// The index.
    pub postgres: PostgresConfig,
    /// The key store.
    pub keystore: KeyStoreConfig,
    /// The bucket.
    pub s3: S3Config,
    /// How often a pass begins when there is nothing to do.
    pub pass_interval: Duration,
    /// How long a condemned object stays for readers that have begun.
    pub condemned_grace: Duration,
    /// A staged object of this age is given up.
    pub staged_stale: Duration,
    /// Comparing bucket and index.
    pub reconciling: ReconcilingConfig,
}

const CONDEMNED_GRACE_MS: Knob = Knob {
    name: "CLAIRVIO_CONDEMNED_GRACE_MS",
    doc: "How long a replaced object stays for readers that have begun: longer than the longest read.",
    unit: "milliseconds",
    default: Some("900000"),
    secret: false,
};
const STAGED_STALE_MS: Knob = Knob {
    name: "CLAIRVIO_STAGED_STALE_MS",
    doc: "A staged object of this age is given up: longer than the longest upload and its publishing.",
    unit: "milliseconds",
    default: Some("900000"),
    secret: false,
};

/// What the worker is.
pub const DEFINITION: Definition<Config> = Definition {
    name: "retention-worker",
    about: "deletes what is past its window or was asked to go, and proves it",
    listen: None,
    admin_listen: "127.0.0.1:7111",
    load: Config::load,
};

impl Config {
    fn load(env: &mut Env<'_>) -> Self {
        let control = ControlConfig::load(env);
        let postgres = PostgresConfig::load(env);
        Self {
            control,
            keystore: KeyStoreConfig::load(env, &postgres.url),
            postgres,
            s3: S3Config::load(env),
            pass_interval: ages::pass_interval(env),
            condemned_grace: env.millis(&CONDEMNED_GRACE_MS),
            staged_stale: env.millis(&STAGED_STALE_MS),
            reconciling: ReconcilingConfig::load(env),
        }
    }
}
