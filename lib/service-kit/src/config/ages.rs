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

/// Silence that ends a session.
pub fn session_silence(env: &mut Env<'_>) -> Duration {
    env.millis(&SESSION_SILENCE_MS)
}

/// How often a worker looks for work when there was none.
pub fn pass_interval(env: &mut Env<'_>) -> Duration {
    env.millis(&PASS_INTERVAL_MS)
}
