//! Postgres: the index.

use super::{Env, Knob};

/// Settings of the index's connections.
#[derive(Clone)]
pub struct PostgresConfig {
    /// `postgres://user:password@host:port/database`.
    pub url: String,
    /// Connections of this process.
    pub connections_max: u32,
}

impl std::fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The address holds a password.
        f.debug_struct("PostgresConfig").field("connections_max", &self.connections_max).finish_non_exhaustive()
    }
}

const URL: Knob = Knob {
    name: "DATABASE_URL",
    doc: "The index.",
    unit: "postgres://user:password@host:port/database",
    default: None,
    secret: true,
};
const CONNECTIONS_MAX: Knob = Knob {
    name: "DATABASE_CONNECTIONS_MAX",
    doc: "Connections of this process to the index.",
    unit: "a number",
    default: Some("8"),
    secret: false,
};

impl PostgresConfig {
    /// Reads the settings.
    pub fn load(env: &mut Env<'_>) -> Self {
        Self { url: env.text(&URL), connections_max: env.number(&CONNECTIONS_MAX, 2).try_into().unwrap_or(u32::MAX) }
    }
}
