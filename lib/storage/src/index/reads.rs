//! Who read which session when: the read-access audit.
//!
//! An entry is committed before the answer that it tells of begins. It holds ids and times only, and stays when its session goes;
//! the database refuses to change it, and to delete it before its time (`schemas/migrations/0008_reading.sql`).

use schemas::http::{ReadItem, ReadWhat, Reader};
use schemas::{ApiKeyId, SessionId, SessionKey, WorkspaceId};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use time::OffsetDateTime;
use uuid::Uuid;

use super::links::Before;
use super::{Index, IndexError, failed};

/// What is about to be read, and by whom.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// Whose key was shown.
    pub by: ApiKeyId,
    /// What of the session.
    pub what: ReadWhat,
    /// The least timestamp that is asked for, milliseconds.
    pub from: Option<i64>,
    /// The greatest timestamp that is asked for, milliseconds.
    pub to: Option<i64>,
}

/// Which entries are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct ReadsFilter {
    /// Of this session.
    pub session: Option<SessionId>,
    /// By this key.
    pub by: Option<ApiKeyId>,
    /// Read at or after.
    pub from: Option<OffsetDateTime>,
    /// Read before.
    pub to: Option<OffsetDateTime>,
}

impl Index {
    /// Removes entries that are older than they have to be kept, `limit` at most; gives how many.
    pub async fn forget_reads(&self, limit: i64) -> Result<u64, IndexError> {
        sqlx::query(
            "delete from session_read where (workspace_id, read_at, id) in (
                 select workspace_id, read_at, id from session_read where read_at < now() - interval '400 days' limit $1
             )",
        )
        .bind(limit)
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected())
        .map_err(failed("forget readings"))
    }

    /// Notes that a session is about to be read; `false` when it cannot be, for it is not live: then nothing is noted.
    pub async fn note_read(&self, key: &SessionKey, reading: &Reading) -> Result<bool, IndexError> {
        let noted = sqlx::query(
            "insert into session_read (workspace_id, id, session_id, api_key_id, what, ts_from, ts_to)
             select workspace_id, $3, id, $4, $5, $6, $7 from session
             where workspace_id = $1 and id = $2 and state = 0",
        )
        .bind(key.workspace.0)
        .bind(key.session.0)
        .bind(Uuid::now_v7())
        .bind(reading.by.0)
        .bind(reading.what.as_str())
        .bind(reading.from)
        .bind(reading.to)
        .execute(&self.pool)
        .await
        .map_err(failed("note a reading"))?;
        Ok(noted.rows_affected() == 1)
    }

    /// A page of what was read in a workspace, newest first.
    pub async fn reads(
        &self,
        workspace: WorkspaceId,
        filter: &ReadsFilter,
        before: Option<Before>,
        limit: u32,
    ) -> Result<Vec<ReadItem>, IndexError> {
        let mut wanted = String::new();
        for (is_wanted, condition) in [
            (filter.session.is_some(), " and r.session_id = $2"),
            (filter.by.is_some(), " and r.api_key_id = $3"),
            (filter.from.is_some(), " and r.read_at >= $4"),
            (filter.to.is_some(), " and r.read_at < $5"),
            (before.is_some(), " and (r.read_at, r.id) < ($6, $7)"),
        ] {
            if is_wanted {
                wanted += condition;
            }
        }
        let mut tx = self.begin_listing().await?;
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "select r.*, k.name, k.ending from (
                 select * from session_read r where workspace_id = $1{wanted} order by read_at desc, id desc limit $8
             ) r left join api_key k on k.id = r.api_key_id and k.workspace_id = r.workspace_id
             order by r.read_at desc, r.id desc"
        )))
        .persistent(false)
        .bind(workspace.0)
        .bind(filter.session.map(|session| session.0))
        .bind(filter.by.map(|by| by.0))
        .bind(filter.from)
        .bind(filter.to)
        .bind(before.map(|before| before.at))
        .bind(before.map(|before| before.id))
        .bind(i64::from(limit))
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("list readings"))?;
        tx.rollback().await.map_err(failed("end listing"))?;
        rows.iter().map(read_item).collect()
    }
}

fn read_item(row: &PgRow) -> Result<ReadItem, IndexError> {
    Ok(ReadItem {
        id: row.get("id"),
        session_id: SessionId(row.get("session_id")),
        read_at: row.get("read_at"),
        by: Reader {
            key_id: ApiKeyId(row.get("api_key_id")),
            key_name: row.get("name"),
            key_ending: row.get("ending"),
        },
        what: ReadWhat::parse(row.get("what")).ok_or(IndexError::Row("session_read"))?,
        from: row.get("ts_from"),
        to: row.get("ts_to"),
    })
}
