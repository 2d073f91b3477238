//! Comparing bucket and index: rows in the order of keys, what is past its window, and whose turn it is.

use std::time::Duration;

use engine::reconciling::Row;
use schemas::paths::{ObjectKey, Section};
use schemas::{ObjectId, SessionKey};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Index, IndexError, failed, object_columns, object_key, session_key, signed, unsigned};

/// How far a round has come, and what it found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// The place from which it goes on, as [`crate::reconciling::Walk::position`] gives it; none at its beginning.
    pub position: Option<String>,
    /// Keys of the bucket that were compared.
    pub objects: u64,
    /// Objects that no row names.
    pub orphans: u64,
    /// Rows whose object is missing.
    pub missing: u64,
    /// Some keys of either.
    pub examples: Vec<String>,
}

/// A session that is past its window and readable still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PastWindow {
    /// The session.
    pub key: SessionKey,
    /// Bytes of its live objects. What it has in shared objects is not known by session.
    pub bytes: u64,
}

/// What is known of rounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reconciled {
    /// When the last one ended.
    pub ended_at: Option<OffsetDateTime>,
    /// Objects that no row names: those that it found, or the one under way when those are more already.
    pub orphans: u64,
    /// Rows whose object is missing, likewise.
    pub missing: u64,
    /// Sessions past their window.
    pub past_window_sessions: u64,
    /// Bytes of them.
    pub past_window_bytes: u64,
}

/// A page of rows in the order of keys, behind a place.
macro_rules! rows_page {
    ($kind:literal, $order:literal, $behind:literal) => {
        concat!(
            "select object.state = 1 as is_live, ",
            object_columns!(),
            " from object where kind = ",
            $kind,
            " and (",
            $order,
            ") > ",
            $behind,
            " order by ",
            $order,
            " limit $1"
        )
    };
}

impl Index {
    /// Rows of a part of the bucket in the order of their keys, behind the one given, `limit` at most.
    pub async fn rows_behind(
        &self,
        section: Section,
        after: Option<&ObjectKey>,
        limit: i64,
    ) -> Result<Vec<Row<ObjectKey>>, IndexError> {
        let (partition, id) = after.map_or((-1, Uuid::nil()), |key| (key.partition().unwrap_or(-1), key.id().0));
        let query = match section {
            Section::Exports => {
                let (workspace, export) = match after {
                    Some(ObjectKey::Export { workspace, export, .. }) => (workspace.0, export.0),
                    _ => (Uuid::nil(), Uuid::nil()),
                };
                sqlx::query(rows_page!("3", "workspace_id, export_id, id", "($2, $3, $4)"))
                    .bind(limit)
                    .bind(workspace)
                    .bind(export)
                    .bind(id)
            }
            Section::Journal => return self.entries_behind(id, limit).await,
            Section::Quarantine => {
                sqlx::query(rows_page!("2", "partition, id", "($2, $3)")).bind(limit).bind(partition).bind(id)
            }
            Section::Shared => {
                sqlx::query(rows_page!("0", "partition, id", "($2, $3)")).bind(limit).bind(partition).bind(id)
            }
            Section::Sessions => {
                let (workspace, session) = match after {
                    Some(ObjectKey::Session { key, .. }) => (key.workspace.0, key.session.0),
                    _ => (Uuid::nil(), Uuid::nil()),
                };
                sqlx::query(rows_page!("1", "workspace_id, session_id, id", "($2, $3, $4)"))
                    .bind(limit)
                    .bind(workspace)
                    .bind(session)
                    .bind(id)
            }
        };
        // Statistics that are old must not have Postgres read the whole table for a page of it.
        let mut tx = self
            .pool
            .begin_with("begin read only; set local enable_seqscan = off; set local enable_bitmapscan = off; set local enable_sort = off; set local jit = off")
            .await
            .map_err(failed("begin reading objects"))?;
        let rows = query.fetch_all(&mut *tx).await.map_err(failed("read objects in the order of their keys"))?;
        tx.commit().await.map_err(failed("end reading objects"))?;
        rows.iter().map(row_of).collect()
    }

    async fn entries_behind(&self, after: Uuid, limit: i64) -> Result<Vec<Row<ObjectKey>>, IndexError> {
        let rows = sqlx::query(
            "select id, condemned_at is null as is_live from journal_entry where id > $1 order by id limit $2",
        )
        .bind(after)
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("read journal entries in order"))?;
        Ok(rows.iter().map(entry_of).collect())
    }

    /// The rows of these objects, of those that have one.
    pub async fn rows_among(&self, ids: &[ObjectId]) -> Result<Vec<Row<ObjectKey>>, IndexError> {
        let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
        let rows = sqlx::query(concat!(
            "select object.state = 1 as is_live, ",
            object_columns!(),
            " from object where id = any($1)"
        ))
        .bind(&ids)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("ask for objects"))?;
        let entries = sqlx::query("select id, condemned_at is null as is_live from journal_entry where id = any($1)")
            .bind(&ids)
            .fetch_all(&self.pool)
            .await
            .map_err(failed("ask for journal entries"))?;
        let rows = rows.iter().map(row_of);
        rows.chain(entries.iter().map(|row| Ok(entry_of(row)))).collect()
    }

    /// Live sessions that are past their window by more than `tolerance`, by the clock and the windows by which they expire; of each
    /// workspace the oldest ones, `limit` at most. What is not past its window is not looked at.
    pub async fn past_window(&self, tolerance: Duration, limit: i64) -> Result<Vec<PastWindow>, IndexError> {
        let rows = sqlx::query(
            "select past.workspace_id, past.id as session_id,
                 ((select coalesce(sum(o.bytes), 0) from object o where o.kind = 1 and o.state = 1
                     and o.workspace_id = past.workspace_id and o.session_id = past.id)
                 + (select coalesce(sum(o.bytes), 0) from object o where o.kind = 2 and o.state = 1
                     and o.session_id is not null and o.workspace_id = past.workspace_id and o.session_id = past.id)
                 )::bigint as bytes
             from workspace w cross join lateral (
                 select s.workspace_id, s.id from session s
                 where s.workspace_id = w.id and s.state = 0
                     and s.started_at < clairvio.clock() - clairvio.kept_for(w) - make_interval(secs => $1)
                 order by s.started_at, s.id limit $2
             ) past limit $2",
        )
        .bind(tolerance.as_secs_f64())
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("find what is past its window"))?;
        Ok(rows.iter().map(|row| PastWindow { key: session_key(row), bytes: unsigned(row.get("bytes")) }).collect())
    }

    /// Takes the round for `lease`: one that nobody goes on with, or a new one when the last ended longer ago than `interval`. Gives how
    /// far it has come; none when another worker has it or none is due.
    pub async fn take_round(
        &self,
        owner: Uuid,
        lease: Duration,
        interval: Duration,
    ) -> Result<Option<Progress>, IndexError> {
        let row = sqlx::query(
            "update reconciliation set lease_owner = $1, lease_until = now() + make_interval(secs => $2),
                 began_at = coalesce(began_at, now())
             where (lease_owner is null or lease_owner = $1 or lease_until < now())
                 and (began_at is not null or ended_at is null or ended_at < now() - make_interval(secs => $3))
             returning position, objects, orphans, missing, examples",
        )
        .bind(owner)
        .bind(lease.as_secs_f64())
        .bind(interval.as_secs_f64())
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("take round"))?;
        Ok(row.map(|row| Progress {
            position: row.get("position"),
            objects: unsigned(row.get("objects")),
            orphans: unsigned(row.get("orphans")),
            missing: unsigned(row.get("missing")),
            examples: row.get("examples"),
        }))
    }

    /// Notes how far the round has come, and keeps it for `lease` from now; `false` when another worker has taken it meanwhile.
    pub async fn keep_round(&self, owner: Uuid, lease: Duration, progress: &Progress) -> Result<bool, IndexError> {
        let kept = sqlx::query(
            "update reconciliation set lease_until = now() + make_interval(secs => $2), position = $3, objects = $4,
                 orphans = $5, missing = $6, examples = $7
             where lease_owner = $1 and began_at is not null",
        )
        .bind(owner)
        .bind(lease.as_secs_f64())
        .bind(&progress.position)
        .bind(signed(progress.objects))
        .bind(signed(progress.orphans))
        .bind(signed(progress.missing))
        .bind(&progress.examples)
        .execute(&self.pool)
        .await
        .map_err(failed("keep round"))?;
        Ok(kept.rows_affected() == 1)
    }

    /// Lets go of the round, so that another worker goes on with it at once.
    pub async fn leave_round(&self, owner: Uuid) -> Result<(), IndexError> {
        sqlx::query("update reconciliation set lease_owner = null, lease_until = null where lease_owner = $1")
            .bind(owner)
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("leave round"))
    }

    /// Ends the round, with what it found; `false` when another worker has taken it meanwhile.
    pub async fn end_round(
        &self,
        owner: Uuid,
        progress: &Progress,
        past_window: &[PastWindow],
    ) -> Result<bool, IndexError> {
        let ended = sqlx::query(
            "update reconciliation set lease_owner = null, lease_until = null, began_at = null, position = null,
                 objects = 0, orphans = 0, missing = 0, examples = '{}', ended_at = now(), ended_orphans = $2,
                 ended_missing = $3, ended_past_window_sessions = $4, ended_past_window_bytes = $5
             where lease_owner = $1 and began_at is not null",
        )
        .bind(owner)
        .bind(signed(progress.orphans))
        .bind(signed(progress.missing))
        .bind(signed(past_window.len() as u64))
        .bind(signed(past_window.iter().map(|past| past.bytes).sum()))
        .execute(&self.pool)
        .await
        .map_err(failed("end round"))?;
        Ok(ended.rows_affected() == 1)
    }

    /// What rounds found, whoever went on with them.
    pub async fn reconciled(&self) -> Result<Reconciled, IndexError> {
        let row = sqlx::query(
            "select ended_at, greatest(orphans, ended_orphans) as orphans, greatest(missing, ended_missing) as missing,
                 ended_past_window_sessions, ended_past_window_bytes from reconciliation",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(failed("ask what rounds found"))?;
        Ok(Reconciled {
            ended_at: row.get("ended_at"),
            orphans: unsigned(row.get("orphans")),
            missing: unsigned(row.get("missing")),
            past_window_sessions: unsigned(row.get("ended_past_window_sessions")),
            past_window_bytes: unsigned(row.get("ended_past_window_bytes")),
        })
    }
}

fn row_of(row: &PgRow) -> Result<Row<ObjectKey>, IndexError> {
    Ok(Row { key: object_key(row)?, is_live: row.get("is_live") })
}

/// The row of an entry of the journal. It has to be there until its row is condemned.
fn entry_of(row: &PgRow) -> Row<ObjectKey> {
    Row { key: ObjectKey::Journal { id: ObjectId(row.get("id")) }, is_live: row.get("is_live") }
}
