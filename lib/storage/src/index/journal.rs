//! What of deletions stands in the journal, and what of the journal this index does not know.

use std::time::Duration;

use schemas::deletion::Cause;
use schemas::journal::{Entry, LINKS_MAX, Marks};
use schemas::{DeletionId, LinkId, ObjectId, SessionId, SessionKey, WorkspaceId};
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use super::deletions::{cause_of, join_deletion, lock_deletion, lock_or_tombstone};
use super::termination::close_once_more;
use super::{Index, IndexError, failed, moment, session_key, signed, unsigned};

/// What of a deletion is not in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unwritten {
    /// The deletion.
    pub deletion: DeletionId,
    /// Whose.
    pub workspace: WorkspaceId,
    /// Why.
    pub cause: Cause,
    /// When it was asked for, milliseconds since the epoch.
    pub requested_at_ms: u64,
    /// The index's time, milliseconds since the epoch: entries are named by it.
    pub now_ms: u64,
    /// Some of its sessions.
    pub sessions: Vec<SessionId>,
    /// Links that it marked.
    pub marks: Vec<Marks>,
}

/// An entry that lies in the bucket.
#[derive(Debug, Clone)]
pub struct Written {
    /// The entry.
    pub entry: Entry,
    /// Whether the deletion's marks are all written with it, if there were any.
    pub is_last: bool,
    /// The marks that are: newer ones are not.
    pub begun_before_ms: Option<u64>,
}

impl Index {
    /// What of a deletion is not in the journal, `limit` sessions at most; `None` when all is.
    pub async fn unwritten(&self, deletion: DeletionId, limit: usize) -> Result<Option<Unwritten>, IndexError> {
        let of = sqlx::query(
            "select workspace_id, cause, begun_journalled, (extract(epoch from requested_at) * 1000)::bigint as requested_at_ms,
                 (extract(epoch from now()) * 1000)::bigint as now_ms from deletion where id = $1",
        )
        .bind(deletion.0)
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("find deletion to journal"))?;
        let Some(of) = of else { return Ok(None) };
        let sessions: Vec<Uuid> = sqlx::query_scalar(
            "select session_id from deletion_session where deletion_id = $1 and entry_id is null
             order by session_id limit $2",
        )
        .bind(deletion.0)
        .bind(signed(limit as u64))
        .fetch_all(&self.pool)
        .await
        .map_err(failed("find sessions to journal"))?;
        let begun_journalled: bool = of.get("begun_journalled");
        if begun_journalled && sessions.is_empty() {
            return Ok(None);
        }
        let marks = if begun_journalled { Vec::new() } else { self.marks(deletion).await? };
        Ok(Some(Unwritten {
            deletion,
            workspace: WorkspaceId(of.get("workspace_id")),
            cause: cause_of(&of)?,
            requested_at_ms: unsigned(of.get("requested_at_ms")),
            now_ms: unsigned(of.get("now_ms")),
            sessions: sessions.into_iter().map(SessionId).collect(),
            marks,
        }))
    }

    async fn marks(&self, deletion: DeletionId) -> Result<Vec<Marks>, IndexError> {
        let rows = sqlx::query(
            // A millisecond later rather than earlier: nothing that began before the mark may come alive.
            "select id, ceil(extract(epoch from begun_before) * 1000)::bigint as begun_before_ms from link
             where deletion_id = $1 order by id",
        )
        .bind(deletion.0)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("find links to journal"))?;
        let begun_before_ms = rows.iter().map(|row| unsigned(row.get("begun_before_ms"))).max().unwrap_or(0);
        let links: Vec<LinkId> = rows.iter().map(|row| LinkId(row.get("id"))).collect();
        Ok(links.chunks(LINKS_MAX).map(|links| Marks { links: links.to_vec(), begun_before_ms }).collect())
    }

    /// Deletions of which something is not in the journal, `limit` at most.
    pub async fn with_unwritten(&self, limit: usize) -> Result<Vec<DeletionId>, IndexError> {
        let found: Vec<Uuid> = sqlx::query_scalar(
            // Some rows of each index, however many there are of one deletion.
            "select deletion_id from (
                 (select deletion_id from deletion_session where entry_id is null order by deletion_id, session_id limit $2)
                 union all (select id from deletion where not begun_journalled limit $1)
             ) found group by deletion_id limit $1",
        )
        .bind(signed(limit as u64))
        .bind(signed(limit as u64).saturating_mul(10))
        .fetch_all(&self.pool)
        .await
        .map_err(failed("find deletions to journal"))?;
        Ok(found.into_iter().map(DeletionId).collect())
    }

    /// An entry lies in the bucket.
    pub async fn mark_written(&self, written: &Written) -> Result<(), IndexError> {
        let entry = &written.entry;
        let mut tx = self.pool.begin().await.map_err(failed("begin journalling"))?;
        note_entry(&mut tx, entry).await?;
        if written.is_last {
            lock_deletion(&mut tx, entry.deletion).await?;
            sqlx::query(
                // Whoever asks again meanwhile marks anew.
                "update deletion set begun_journalled = true where id = $1 and not begun_journalled and not exists (
                     select from link where deletion_id = $1 and ceil(extract(epoch from begun_before) * 1000)::bigint > $2)",
            )
            .bind(entry.deletion.0)
            .bind(written.begun_before_ms.map_or(i64::MAX, signed))
            .execute(&mut *tx)
            .await
            .map_err(failed("note journalled marks"))?;
        }
        tx.commit().await.map_err(failed("commit journalling"))
    }

    /// Which of these entries this index does not know.
    pub async fn unknown_entries(&self, ids: &[ObjectId]) -> Result<Vec<ObjectId>, IndexError> {
        let unknown: Vec<Uuid> = sqlx::query_scalar(
            "select id from unnest($1::uuid[]) as entry (id)
             where not exists (select from journal_entry known where known.id = entry.id) order by id",
        )
        .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
        .fetch_all(&self.pool)
        .await
        .map_err(failed("compare journal"))?;
        Ok(unknown.into_iter().map(ObjectId).collect())
    }

    /// Carries an entry out once more: its sessions, which `keys` are, are deleted unless they are, its links marked, its workspace closed. Gives how many
    /// sessions were not deleted. Can be repeated, and several can do it at once.
    pub async fn replay(&self, entry: &Entry, keys: &[SessionKey]) -> Result<u64, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin replay"))?;
        if let Some(marks) = &entry.marks {
            sqlx::query(
                "with locked as (
                     select workspace_id, id from link where workspace_id = $1 and id = any($2) order by id for no key update
                 )
                 update link set begun_before = greatest(begun_before, $3), deletion_id = coalesce(deletion_id, $4)
                 from locked where link.workspace_id = locked.workspace_id and link.id = locked.id",
            )
            .bind(entry.workspace.0)
            .bind(marks.links.iter().map(|link| link.0).collect::<Vec<_>>())
            .bind(moment(marks.begun_before_ms))
            .bind(entry.deletion.0)
            .execute(&mut *tx)
            .await
            .map_err(failed("mark links once more"))?;
        }
        let standing = lock_or_tombstone(&mut tx, keys).await?;
        if entry.cause == Cause::Terminated {
            close_once_more(&mut tx, entry.workspace).await?;
        }
        if !standing.new.is_empty() || entry.marks.is_some() {
            sqlx::query(
                "insert into deletion (id, workspace_id, cause, requested_at, finding) values ($1, $2, $3, $4, $5)
                 on conflict do nothing",
            )
            .bind(entry.deletion.0)
            .bind(entry.workspace.0)
            .bind(entry.cause.as_str())
            .bind(moment(entry.requested_at_ms))
            .bind(entry.marks.is_some())
            .execute(&mut *tx)
            .await
            .map_err(failed("insert deletion once more"))?;
            join_deletion(&mut tx, entry.deletion, entry.workspace, &standing.new).await?;
        }
        note_entry(&mut tx, entry).await?;
        tx.commit().await.map_err(failed("commit replay"))?;
        self.outbox.notify_one();
        Ok(standing.new.len() as u64)
    }

    /// Entries that are no more.
    pub async fn forget_entries(&self, ids: &[ObjectId]) -> Result<(), IndexError> {
        sqlx::query("delete from journal_entry where id = any($1)")
            .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("forget journal entries"))
    }

    /// How many destructions of keys the key store told of.
    pub async fn shreddings_seen(&self) -> Result<u64, IndexError> {
        let seen: i64 = sqlx::query_scalar("select shreddings from keystore_seen")
            .fetch_one(&self.pool)
            .await
            .map_err(failed("ask what the key store told"))?;
        Ok(unsigned(seen))
    }

    /// Sessions whose keys were destroyed within this time, behind the one given.
    pub async fn shredded(
        &self,
        within: Duration,
        after: Option<(DeletionId, SessionId)>,
        limit: usize,
    ) -> Result<Vec<(DeletionId, SessionKey)>, IndexError> {
        let rows = sqlx::query(
            "select deletion_id, workspace_id, session_id from deletion_session
             where shredded_at > now() - make_interval(secs => $1)
                 and ($2::uuid is null or (deletion_id, session_id) > ($2, $3))
             order by deletion_id, session_id limit $4",
        )
        .bind(within.as_secs_f64())
        .bind(after.map(|(deletion, _)| deletion.0))
        .bind(after.map(|(_, session)| session.0))
        .bind(signed(limit as u64))
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list destroyed keys"))?;
        Ok(rows.iter().map(|row| (DeletionId(row.get("deletion_id")), session_key(row))).collect())
    }
}

/// Notes an entry as known, and its sessions as journalled.
async fn note_entry(tx: &mut PgConnection, entry: &Entry) -> Result<(), IndexError> {
    sqlx::query("insert into journal_entry (id, deletion_id) values ($1, $2) on conflict do nothing")
        .bind(entry.object.0)
        .bind(entry.deletion.0)
        .execute(&mut *tx)
        .await
        .map_err(failed("note journal entry"))?;
    sqlx::query(
        "update deletion_session set entry_id = $1
         where workspace_id = $2 and session_id = any($3) and entry_id is null",
    )
    .bind(entry.object.0)
    .bind(entry.workspace.0)
    .bind(entry.sessions.iter().map(|session| session.0).collect::<Vec<_>>())
    .execute(&mut *tx)
    .await
    .map(drop)
    .map_err(failed("note journalled sessions"))
}
