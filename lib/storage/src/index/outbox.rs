//! The outbox: what has to be told on the topic `control`, from the transaction that decided it until Kafka has it.
//!
//! A committed change cannot fail to reach Kafka: its row stays until Kafka has acknowledged the entry. Any number of relays
//! work at once, whichever is faster; an entry may be told twice.

use std::time::Duration;

use schemas::SessionKey;
use schemas::control::Entry;
use schemas::limits::OUTBOX_ROWS_MAX;
use service_kit::kafka::control::{PublishError, Publisher};
use service_kit::shutdown::Shutdown;
use service_kit::telemetry::Described::{self, Counter, Gauge};
use service_kit::telemetry::chain;
use service_kit::time::now_ms;
use sqlx::{PgConnection, Row as _};
use thiserror::Error;

use super::{Index, IndexError, failed};

const ROWS: &str = "outbox_rows";
const FAILURES: &str = "outbox_relay_failures_total";

/// Rows that wait, for the metrics of a service that relays.
pub const ROWS_DESCRIBED: Described = Gauge(ROWS, "Entries that wait to be told on `control`. 10,000 stands for more.");
/// Failures, for the metrics of a service that relays.
pub const FAILURES_DESCRIBED: Described =
    Counter(FAILURES, "Times that entries could not be told on `control`. They are tried again.");

/// How often the outbox is looked into when nothing was in it: other processes put rows there too.
const INTERVAL: Duration = Duration::from_millis(200);
/// Counting goes so far and no further.
const ROWS_COUNTED_MAX: i64 = 10_000;

/// Why entries were not told.
#[derive(Debug, Error)]
enum RelayError {
    /// The index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Kafka.
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// Puts the deletion of these sessions of one workspace into the outbox.
pub(super) async fn insert_deletions(tx: &mut PgConnection, keys: &[SessionKey]) -> Result<(), IndexError> {
    let now = now_ms();
    let entries = keys.iter().map(|key| Entry::deletion(*key, now));
    let (topic_keys, values): (Vec<String>, Vec<Vec<u8>>) = entries.map(|entry| (entry.key(), entry.value())).unzip();
    sqlx::query("insert into outbox (topic_key, value) select * from unnest($1::text[], $2::bytea[])")
        .bind(&topic_keys)
        .bind(&values)
        .execute(&mut *tx)
        .await
        .map(drop)
        .map_err(failed("insert into outbox"))
}

/// Tells what is in the outbox, as soon as it is there, until the shutdown.
pub async fn relay(index: Index, mut publisher: Publisher, shutdown: Shutdown) {
    // While Kafka or Postgres is away, each new reason is told once.
    let mut last_reason = String::new();
    while !shutdown.has_begun() {
        match index.relay_some(&mut publisher).await {
            Ok(relayed) => {
                last_reason.clear();
                if relayed > 0 {
                    continue;
                }
            }
            Err(error) => {
                ::metrics::counter!(FAILURES).increment(1);
                let reason = chain(&error);
                if reason != last_reason {
                    tracing::warn!("relay outbox: {reason}; trying again");
                    last_reason = reason;
                }
            }
        }
        tokio::select! {
            () = shutdown.begun() => {}
            () = index.outbox.notified() => {}
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
}

impl Index {
    /// Tells the oldest entries that no other relay has taken; how many.
    async fn relay_some(&self, publisher: &mut Publisher) -> Result<usize, RelayError> {
        // An empty outbox, as it nearly always is, costs one question.
        let waiting: i64 = sqlx::query_scalar("select count(*) from (select from outbox limit $1) as waiting")
            .bind(ROWS_COUNTED_MAX)
            .fetch_one(&self.pool)
            .await
            .map_err(failed("count outbox"))?;
        ::metrics::gauge!(ROWS).set(waiting as f64);
        if waiting == 0 {
            return Ok(0);
        }
        let mut tx = self.pool.begin().await.map_err(failed("begin relay"))?;
        let rows = sqlx::query("select id, topic_key, value from outbox order by id limit $1 for update skip locked")
            .bind(OUTBOX_ROWS_MAX as i64)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed("take from outbox"))?;
        if rows.is_empty() {
            return Ok(0);
        }
        let entries: Vec<(String, Vec<u8>)> = rows.iter().map(|row| (row.get("topic_key"), row.get("value"))).collect();
        publisher.publish(&entries).await?;
        sqlx::query("delete from outbox where id = any($1)")
            .bind(rows.iter().map(|row| row.get("id")).collect::<Vec<i64>>())
            .execute(&mut *tx)
            .await
            .map_err(failed("remove from outbox"))?;
        tx.commit().await.map_err(failed("commit relay"))?;
        Ok(rows.len())
    }
}
