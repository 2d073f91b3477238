//! Connections to Postgres, alike for the index and the key store.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};

use crate::index::IndexError;

/// A pool of connections, and the address for errors; no connection is made yet. Every statement is bounded in time: a
/// transaction that hangs would hold back deletions, which wait for older transactions to end. A process that froze within
/// one loses its locks before those who wait for them give up.
pub(crate) fn pool(
    url: &str,
    variable: &'static str,
    connections_max: u32,
    search_path: Option<&str>,
) -> Result<(PgPool, String), IndexError> {
    let options: PgConnectOptions = url.parse().map_err(|_| IndexError::Address(variable))?;
    let mut options = options.options([
        ("statement_timeout", "30s"),
        ("idle_in_transaction_session_timeout", "8s"),
        ("lock_timeout", "10s"),
    ]);
    if let Some(path) = search_path {
        options = options.options([("search_path", path)]);
    }
    let address = format!("{}:{}", options.get_host(), options.get_port());
    let pool = PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(Duration::from_secs(5))
        .connect_lazy_with(options);
    Ok((pool, address))
}
