//! Times that more than one service goes by.

use std::time::Duration;

use super::{Env, Knob};

const SESSION_SILENCE_MS: Knob = Knob {
    name: "CLAIRVIO_SESSION_SILENCE_MS",
    doc: "Silence that ends a session. Alike in all services; its activity is noted three times as often.",
    unit: "milliseconds",
    default: Some("1800000"),
    secret: false,
};
const PASS_INTERVAL_MS: Knob = Knob {
    name: "CLAIRVIO_PASS_INTERVAL_MS",
    doc: "How often work is looked for when there was none.",
    unit: "milliseconds",
    default: Some("10000"),
    secret: false,
};

const BACKUP_DAYS: Knob = Knob {
    name: "CLAIRVIO_BACKUP_DAYS",
    doc: "How old a backup of the index may be that is still restored. Deletions stay in the journal for so long, and receipts name it. \
          Alike in all services.",
    unit: "days",
    default: Some("35"),
    secret: false,
};

/// How old a backup of the index may be that is still restored.
pub fn backups(env: &mut Env<'_>) -> Duration {
    Duration::from_secs(env.number(&BACKUP_DAYS, 1).saturating_mul(86_400))
}

/// Silence that ends a session.
pub fn session_silence(env: &mut Env<'_>) -> Duration {
    env.millis(&SESSION_SILENCE_MS)
}

/// How often a worker looks for work when there was none.
pub fn pass_interval(env: &mut Env<'_>) -> Duration {
    env.millis(&PASS_INTERVAL_MS)
}
