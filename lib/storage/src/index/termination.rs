//! Closed workspaces: after a time in which they can be opened again, all of theirs goes (P9).
//!
//! First their sessions, by a deletion like any other; once that has its receipt, what else is theirs: links, keys, sums, who read
//! what, the key of their references, their row. Receipts stay, and tombstones as long as anybody's do.

use schemas::deletion::Cause;
use schemas::{DeletionId, SessionKey, WorkspaceId};
use sqlx::{PgConnection, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::deletions::{Deletion, begin_deletions, end_finding, insert_deletion, join_deletion, workspace_due};
use super::workspaces::tell_rules;
use super::{Index, IndexError, failed, session_key};

/// A closed workspace whose time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terminated {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// What deletes its sessions.
    pub deletion: DeletionId,
    /// Whether all its deletions have their receipts.
    pub is_receipted: bool,
    /// When its time was over.
    pub terminates_at: OffsetDateTime,
}

impl Index {
    /// Begins to delete all of closed workspaces whose time is over, `limit` at most. From then on nothing opens them again. The time is no
    /// later than `now_s`, when [`Index::due`] was asked: a clock that jumps behind a comparison deletes nothing. Nor does a server that is not
    /// compared with what was told.
    pub async fn begin_terminations(
        &self,
        now_s: i64,
        limit: i64,
        is_compared: impl Fn() -> bool + Send + Sync,
    ) -> Result<(), IndexError> {
        let due: Vec<Uuid> = sqlx::query_scalar(concat!(
            "select id from workspace where ",
            workspace_due!("least(clairvio.clock(), to_timestamp($2))"),
            " order by terminates_at limit $1"
        ))
        .bind(limit)
        .bind(now_s as f64)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("find closed workspaces"))?;
        for workspace in due {
            self.begin_termination(WorkspaceId(workspace), &is_compared).await?;
        }
        Ok(())
    }

    /// Closed workspaces of which something is being deleted, in the order in which their time was over and behind the one given, `limit` at
    /// most.
    pub async fn terminated(&self, after: Option<Terminated>, limit: i64) -> Result<Vec<Terminated>, IndexError> {
        let rows = sqlx::query(
            "select id, terminated_by, terminates_at, not exists (
                 select from deletion d where d.workspace_id = w.id and d.receipted_at is null) as is_receipted
             from workspace w where terminated_by is not null
                 and ($2::timestamptz is null or (terminates_at, id) > ($2, $3))
             order by terminates_at, id limit $1",
        )
        .bind(limit)
        .bind(after.map(|after| after.terminates_at))
        .bind(after.map(|after| after.workspace.0))
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list closed workspaces"))?;
        let terminated = |row: &sqlx::postgres::PgRow| Terminated {
            workspace: WorkspaceId(row.get("id")),
            deletion: DeletionId(row.get("terminated_by")),
            is_receipted: row.get("is_receipted"),
            terminates_at: row.get("terminates_at"),
        };
        Ok(rows.iter().map(terminated).collect())
    }

    async fn begin_termination(
        &self,
        workspace: WorkspaceId,
        is_compared: &(impl Fn() -> bool + Sync),
    ) -> Result<(), IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin termination"))?;
        if !is_compared() {
            return Ok(());
        }
        let deletion = DeletionId(Uuid::now_v7());
        // Whoever opens it again, or does this too, has the row or comes too late. What is told of it is no more than that it is closed.
        let begun = sqlx::query(concat!(
            "update workspace set terminated_by = $2, name = '', origins = '{}', notice_versions = '{}' where id = $1 and ",
            workspace_due!("clairvio.clock()")
        ))
        .bind(workspace.0)
        .bind(deletion.0)
        .execute(&mut *tx)
        .await
        .map_err(failed("close workspace for good"))?;
        if begun.rows_affected() == 0 {
            return Ok(());
        }
        tell_rules(&mut tx, workspace).await?;
        insert_deletion(&mut tx, Deletion { id: deletion, workspace, cause: Cause::Terminated }, true).await?;
        sqlx::query("update deletion set begun_journalled = false where id = $1")
            .bind(deletion.0)
            .execute(&mut *tx)
            .await
            .map_err(failed("note termination to journal"))?;
        tx.commit().await.map_err(failed("commit termination"))?;
        self.outbox.notify_one();
        Ok(())
    }

    /// Deletes sessions of a closed workspace whose time is over, `limit` at most, those too that come late; how many.
    pub async fn delete_of_terminated(&self, terminated: &Terminated, limit: i64) -> Result<u64, IndexError> {
        let Terminated { workspace, deletion, .. } = *terminated;
        let mut tx = self.pool.begin().await.map_err(failed("begin deletion"))?;
        let rows = sqlx::query(
            "with some_of as (
                 select workspace_id, id from session where workspace_id = $1 and state = 0 order by started_at desc, id desc limit $2
             ) select s.workspace_id, s.id as session_id from session s join some_of using (workspace_id, id)
             where s.state = 0 order by s.workspace_id, s.id for update of s",
        )
        .bind(workspace.0)
        .bind(limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("find sessions of a closed workspace"))?;
        let keys: Vec<SessionKey> = rows.iter().map(session_key).collect();
        if keys.is_empty() {
            end_finding(&mut tx, deletion).await?;
        } else {
            join_deletion(&mut tx, deletion, workspace, &keys).await?;
        }
        tx.commit().await.map_err(failed("commit deletion"))?;
        self.outbox.notify_one();
        Ok(keys.len() as u64)
    }

    /// Removes what else is a workspace's, `limit` rows of each kind at most; whether all of it is gone, its row with it.
    pub async fn forget_workspace(&self, workspace: WorkspaceId, limit: i64) -> Result<bool, IndexError> {
        let mut left = 0;
        for statement in [
            // What is not gone yet is over, see `expire_exports`, and stays until it is.
            "delete from export where id in (
                 select id from export where workspace_id = $1 and gone_at is not null and shredded_at is not null limit $2)",
            "delete from link where workspace_id = $1 and id in (select id from link where workspace_id = $1 limit $2)",
            "delete from api_key where id in (select id from api_key where workspace_id = $1 limit $2)",
            "delete from decline_count where workspace_id = $1 and hour in
                 (select hour from decline_count where workspace_id = $1 limit $2)",
            "delete from workspace_day where workspace_id = $1 and day in
                 (select day from workspace_day where workspace_id = $1 limit $2)",
        ] {
            let gone = sqlx::query(statement)
                .bind(workspace.0)
                .bind(limit)
                .execute(&self.pool)
                .await
                .map_err(failed("remove what is a closed workspace's"))?;
            left += u64::from(gone.rows_affected() == limit.unsigned_abs());
        }
        if left > 0 {
            return Ok(false);
        }
        let mut tx = self.pool.begin().await.map_err(failed("begin forgetting"))?;
        sqlx::query("delete from workspace where id = $1 and terminated_by is not null")
            .bind(workspace.0)
            .execute(&mut *tx)
            .await
            .map_err(failed("remove closed workspace"))?;
        note_gone(&mut tx, workspace).await?;
        tx.commit().await.map_err(failed("commit forgetting"))?;
        Ok(true)
    }

    /// Workspaces that are gone.
    pub async fn gone_workspaces(&self) -> Result<Vec<WorkspaceId>, IndexError> {
        let gone: Vec<Uuid> = sqlx::query_scalar("select id from workspace_gone")
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list workspaces that are gone"))?;
        Ok(gone.into_iter().map(WorkspaceId).collect())
    }

    /// Deletes live sessions of workspaces that are gone, `limit` at most: their records lay in the log for long. Gives how many.
    pub async fn delete_of_gone(&self, limit: i64) -> Result<u64, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin deletion"))?;
        let rows = sqlx::query(
            "with some_of as (
                 select s.workspace_id, s.id from workspace_gone g join session s on s.workspace_id = g.id
                 where s.state = 0 limit $1
             ) select s.workspace_id, s.id as session_id from session s join some_of using (workspace_id, id)
             where s.state = 0 order by s.workspace_id, s.id for update of s",
        )
        .bind(limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("find sessions of workspaces that are gone"))?;
        let keys: Vec<SessionKey> = rows.iter().map(session_key).collect();
        begin_deletions(&mut tx, Cause::Terminated, &keys).await?;
        tx.commit().await.map_err(failed("commit deletion"))?;
        self.outbox.notify_one();
        Ok(keys.len() as u64)
    }

    /// Removes entries of the audit of workspaces that are gone, `limit` at most; how many.
    pub async fn forget_reads_of_gone(&self, limit: i64) -> Result<u64, IndexError> {
        let workspace: Option<Uuid> = sqlx::query_scalar("select id from workspace_gone where has_reads limit 1")
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("find workspaces that are gone"))?;
        let Some(workspace) = workspace else { return Ok(0) };
        let gone = sqlx::query(
            "delete from session_read where workspace_id = $1 and (read_at, id) in
                 (select read_at, id from session_read where workspace_id = $1 limit $2)",
        )
        .bind(workspace)
        .bind(limit)
        .execute(&self.pool)
        .await
        .map_err(failed("remove audit of a workspace that is gone"))?;
        if gone.rows_affected() == 0 {
            sqlx::query("update workspace_gone set has_reads = false where id = $1")
                .bind(workspace)
                .execute(&self.pool)
                .await
                .map_err(failed("note audit as gone"))?;
        }
        Ok(gone.rows_affected().max(1))
    }
}

/// An index that was restored from a backup learns that a workspace is closed, and that its time is over. One that it has no row of is gone.
pub(super) async fn close_once_more(tx: &mut PgConnection, workspace: WorkspaceId) -> Result<(), IndexError> {
    let closed = sqlx::query(
        "update workspace set state = 'terminated', terminates_at = coalesce(least(terminates_at, clairvio.clock()), clairvio.clock())
         where id = $1 and terminated_by is null",
    )
    .bind(workspace.0)
    .execute(&mut *tx)
    .await
    .map_err(failed("close workspace once more"))?;
    if closed.rows_affected() > 0 {
        return tell_rules(tx, workspace).await;
    }
    let is_known: bool = sqlx::query_scalar("select exists (select from workspace where id = $1)")
        .bind(workspace.0)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed("ask for a closed workspace"))?;
    if is_known { Ok(()) } else { note_gone(tx, workspace).await }
}

/// Notes that a workspace is gone: what comes of it late is deleted, and entries of the audit, which can go only once it is, are found by
/// this.
async fn note_gone(tx: &mut PgConnection, workspace: WorkspaceId) -> Result<(), IndexError> {
    sqlx::query("insert into workspace_gone (id) values ($1) on conflict do nothing")
        .bind(workspace.0)
        .execute(tx)
        .await
        .map(drop)
        .map_err(failed("note workspace as gone"))
}
