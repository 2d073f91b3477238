//! The retention worker: what must go, goes.
//!
//! Each pass makes tombstones of sessions past their plan window, leads every deletion one step on (decided by
//! [`engine::retention`]), and removes objects that nobody needs: condemned ones after a grace, rows only when a listing
//! shows the object absent. Beside the passes it makes withdrawals, which it hears of on `control`, into deletions within
//! seconds, takes entries off that topic that nobody needs any more, and compares bucket and index. What is deleted is written into the
//! journal ([`storage::journal`]), and signed once it is gone ([`storage::receipts`]). Every step can be repeated, and several workers can
//! run at once.

mod cleaning;
mod driver;
pub mod dry_run;
mod exports;
mod lifecycle;
mod metrics;
mod reconciling;
mod removing;
mod withdrawals;

use std::path::PathBuf;
use std::time::Duration;

use service_kit::config::kafka::ControlConfig;
use service_kit::config::keys::{KeyStoreConfig, KeyringSource, key_cache, keyring_source, receipt_keys_file};
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
    /// The keyring, of which it has the storage's key alone: that of the journal.
    pub keyring: KeyringSource,
    /// Where the key is that signs receipts.
    pub receipt_keys_file: PathBuf,
    /// The bucket.
    pub s3: S3Config,
    /// How often a pass begins when there is nothing to do.
    pub pass_interval: Duration,
    /// How long a condemned object stays for readers that have begun.
    pub condemned_grace: Duration,
    /// A staged object of this age is given up.
    pub staged_stale: Duration,
    /// Objects that are removed a second at most; 0 for as many as S3 takes.
    pub deleted_per_s_max: u64,
    /// After how many days the bucket's own rules remove what workers did not; 0 for no rules of ours.
    pub lifecycle_days: u64,
    /// How long any process keeps an unwrapped key.
    pub key_cache: Duration,
    /// How long the log keeps records.
    pub log_retention: Duration,
    /// How old a backup of the index gets.
    pub backups: Duration,
    /// How old a backup of the key store gets.
    pub keystore_backups: Duration,
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
const DELETED_PER_S_MAX: Knob = Knob {
    name: "CLAIRVIO_DELETED_OBJECTS_PER_S_MAX",
    doc: "So many objects and versions one worker deletes from S3 at most, so that a large deletion does not take what others need: S3 \
          itself takes some 3,500 requests a second below one prefix, and each deleted key is one. Nothing else of a deletion waits for \
          it. 0 is no bound.",
    unit: "objects a second",
    default: Some("1000"),
    secret: false,
};
const LIFECYCLE_DAYS: Knob = Knob {
    name: "CLAIRVIO_LIFECYCLE_DAYS",
    doc: "After how many days lifecycle rules of the bucket, which the worker makes sure of, end uploads that nobody ended and remove old \
          versions and delete markers: below what it stores, and nothing that readers see. 0 leaves the bucket's rules alone.",
    unit: "days",
    default: Some("7"),
    secret: false,
};

const LOG_RETENTION_HOURS: Knob = Knob {
    name: "CLAIRVIO_LOG_RETENTION_HOURS",
    doc: "How long the topic of events keeps records, as `clairvio topics` made it: receipts name until when the log holds some.",
    unit: "hours",
    default: Some("72"),
    secret: false,
};
const KEYSTORE_BACKUP_DAYS: Knob = Knob {
    name: "CLAIRVIO_KEYSTORE_BACKUP_DAYS",
    doc: "How old a backup of the key store gets: receipts name until when one holds a destroyed key.",
    unit: "days",
    default: Some("7"),
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
            keyring: keyring_source(env),
            receipt_keys_file: receipt_keys_file(env),
            postgres,
            s3: S3Config::load(env),
            pass_interval: ages::pass_interval(env),
            condemned_grace: env.millis(&CONDEMNED_GRACE_MS),
            staged_stale: env.millis(&STAGED_STALE_MS),
            deleted_per_s_max: env.number(&DELETED_PER_S_MAX, 0),
            lifecycle_days: env.number(&LIFECYCLE_DAYS, 0),
            key_cache: key_cache(env),
            log_retention: Duration::from_secs(env.number(&LOG_RETENTION_HOURS, 1).saturating_mul(3_600)),
            backups: ages::backups(env),
            keystore_backups: Duration::from_secs(env.number(&KEYSTORE_BACKUP_DAYS, 1).saturating_mul(86_400)),
            reconciling: ReconcilingConfig::load(env),
        }
    }
}
