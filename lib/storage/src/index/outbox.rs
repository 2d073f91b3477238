//! The outbox: what has to be told on the topic `control`, from the transaction that decided it until Kafka has it.
//!
//! A committed change cannot fail to reach Kafka: its row stays until Kafka has acknowledged the entry. Any number of relays
//! work at once, whichever is faster; an entry may be told twice.
//!
//! Two things are told in order, whichever relay has them. Rows of one key: whoever changes what a key says holds the lock of
//! its subject while it puts the row here, so that their ids are in the order of the changes. And a removal after all that was
//! to be told before it: a withdrawal is taken off the topic only when the deletion that was made of it is on it.

use std::time::Duration;

use schemas::control::Entry;
use schemas::limits::OUTBOX_ROWS_MAX;
use service_kit::kafka::control::{PublishError, Publisher};
use service_kit::retry::Reasons;
use service_kit::shutdown::Shutdown;
use service_kit::telemetry::Described::{self, Counter, Gauge};
use service_kit::telemetry::chain;
use sqlx::{PgConnection, Row as _};
use thiserror::Error;

use super::{Index, IndexError, failed};
use crate::told::Told;

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

/// Puts records into the outbox, each a key and a value, in this order. One without a value removes the entry of its key.
pub(super) async fn insert(tx: &mut PgConnection, records: &[(String, Option<Vec<u8>>)]) -> Result<(), IndexError> {
    let (keys, values): (Vec<&str>, Vec<Option<&[u8]>>) =
        records.iter().map(|(key, value)| (key.as_str(), value.as_deref())).unzip();
    sqlx::query(
        "insert into outbox (topic_key, value)
         select key, value from unnest($1::text[], $2::bytea[]) with ordinality as r (key, value, place) order by place",
    )
    .bind(&keys)
    .bind(&values)
    .execute(&mut *tx)
    .await
    .map(drop)
    .map_err(failed("insert into outbox"))
}

/// The record that tells an entry.
pub(super) fn telling(entry: &Entry) -> (String, Option<Vec<u8>>) {
    (entry.key(), Some(entry.value()))
}

/// Tells what is in the outbox, as soon as it is there, until the shutdown. What there is of workspaces waits until it is known that the
/// index is not one of a backup, which would tell what was: the topic keeps the last entry of each, whatever its version.
pub async fn relay(index: Index, mut publisher: Publisher, told: Told, shutdown: Shutdown) {
    // While Kafka or Postgres is away, each new reason is told once.
    let mut reasons = Reasons::default();
    while !shutdown.has_begun() {
        match index.relay_some(&mut publisher, &told).await {
            Ok(relayed) => {
                reasons.clear();
                if relayed > 0 {
                    continue;
                }
            }
            Err(error) => {
                ::metrics::counter!(FAILURES).increment(1);
                reasons.warn(format!("relay outbox: {}", chain(&error)));
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
    /// Tells the oldest entries that no other relay has taken, those of workspaces only where the server is compared; how many.
    async fn relay_some(&self, publisher: &mut Publisher, told: &Told) -> Result<usize, RelayError> {
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
        // Asked on a connection: it may be one to another server than a moment ago.
        let rows = take(&mut tx, told.is_compared()).await?;
        if rows.is_empty() {
            return Ok(0);
        }
        let (ids, records): (Vec<i64>, Vec<_>) = rows.into_iter().map(|row| (row.id, (row.key, row.value))).unzip();
        publisher.publish(&records).await?;
        sqlx::query("delete from outbox where id = any($1)")
            .bind(&ids)
            .execute(&mut *tx)
            .await
            .map_err(failed("remove from outbox"))?;
        tx.commit().await.map_err(failed("commit relay"))?;
        Ok(ids.len())
    }
}

/// A row that a relay has taken.
struct Taken {
    id: i64,
    key: String,
    value: Option<Vec<u8>>,
}

/// Locks the oldest rows that may be told now and that no other relay has. A row that another relay is telling is still here
/// for this statement, and all that has to come after it waits.
async fn take(tx: &mut PgConnection, with_rules: bool) -> Result<Vec<Taken>, IndexError> {
    let rows = sqlx::query(
        "select id, topic_key, value from outbox
         where not exists (select from outbox older where older.topic_key = outbox.topic_key and older.id < outbox.id)
             and (value is not null
                 or id < coalesce((select min(id) from outbox entry where entry.value is not null), id + 1))
             and ($2 or not starts_with(topic_key, 'workspace/'))
         order by id limit $1 for update skip locked",
    )
    .bind(OUTBOX_ROWS_MAX as i64)
    .bind(with_rules)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed("take from outbox"))?;
    let taken =
        |row: &sqlx::postgres::PgRow| Taken { id: row.get("id"), key: row.get("topic_key"), value: row.get("value") };
    Ok(rows.iter().map(taken).collect())
}
