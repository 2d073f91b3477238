//! Connections to Postgres, alike for the index and the key store.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use tokio::sync::Notify;

use crate::index::IndexError;

/// A server as it was started: one that was restored from a backup, and one that took over from another and may lack what that
/// had committed last, were started anew. Who goes by this gives no connection to one that nobody has looked at.
#[derive(Debug, Default)]
pub struct Life {
    trusted: RwLock<Option<String>>,
    doubted: Notify,
}

impl Life {
    /// Trusts the server that was started then, and no other.
    pub fn trust(&self, started: String) {
        *self.trusted.write().unwrap_or_else(PoisonError::into_inner) = Some(started);
    }

    /// Returns when a connection was refused since the server is another.
    pub async fn doubted(&self) {
        self.doubted.notified().await;
    }

    async fn check(&self, connection: &mut PgConnection) -> Result<(), sqlx::Error> {
        let started = started(connection).await?;
        if self.trusted.read().unwrap_or_else(PoisonError::into_inner).as_ref() == Some(&started) {
            return Ok(());
        }
        self.doubted.notify_one();
        Err(sqlx::Error::Protocol(
            "the server was started anew, and its index is compared with the journal first".into(),
        ))
    }
}

/// When the server was started, as it says.
pub(crate) async fn started(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    sqlx::query_scalar("select extract(epoch from pg_postmaster_start_time())::text").fetch_one(connection).await
}

/// A pool of connections, and the address for errors; no connection is made yet. Every statement is bounded in time: a
/// transaction that hangs would hold back deletions, which wait for older transactions to end. A process that froze within
/// one loses its locks before those who wait for them give up.
pub(crate) fn pool(
    url: &str,
    variable: &'static str,
    connections_max: u32,
    search_path: Option<&str>,
    life: Option<&Arc<Life>>,
) -> Result<(PgPool, String), IndexError> {
    let options: PgConnectOptions = url.parse().map_err(|_| IndexError::Address(variable))?;
    let mut options = options.options([
        ("statement_timeout", "30s"),
        ("idle_in_transaction_session_timeout", "8s"),
        ("lock_timeout", "10s"),
        // A plan that was made while a table was small is used for as long as nobody analyzes it, and many of ours fill up within minutes.
        ("plan_cache_mode", "force_custom_plan"),
    ]);
    if let Some(path) = search_path {
        options = options.options([("search_path", path)]);
    }
    let address = format!("{}:{}", options.get_host(), options.get_port());
    let mut pool = PgPoolOptions::new().max_connections(connections_max).acquire_timeout(Duration::from_secs(5));
    if let Some(life) = life.cloned() {
        pool = pool.after_connect(move |connection, _| {
            let life = Arc::clone(&life);
            Box::pin(async move { life.check(connection).await })
        });
    }
    Ok((pool.connect_lazy_with(options), address))
}
