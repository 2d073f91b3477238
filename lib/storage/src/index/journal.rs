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
            "select id, ceil(extract(epoch from begun_before) * 1000)::bigint as begun_before_ms from marked_link
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
                     select from marked_link
                     where deletion_id = $1 and ceil(extract(epoch from begun_before) * 1000)::bigint > $2)",
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

    /// Carries an entry out once more: its sessions, which `keys` are, are deleted unless they are, its links marked, its workspace closed,
    /// also where this index has never heard of them. Gives how many sessions were not deleted. Can be repeated, and several can do it at once.
    /// The sessions of its links are found by [`Index::find_deleted`], and then it is [known](Index::note_known).
    pub async fn replay(&self, entry: &Entry, keys: &[SessionKey]) -> Result<u64, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin replay"))?;
        if let Some(marks) = &entry.marks {
            mark_once_more(&mut tx, entry, marks).await?;
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
        tx.commit().await.map_err(failed("commit replay"))?;
        self.outbox.notify_one();
        Ok(standing.new.len() as u64)
    }

    /// Notes an entry as carried out.
    pub async fn note_known(&self, entry: &Entry) -> Result<(), IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin noting"))?;
        note_entry(&mut tx, entry).await?;
        tx.commit().await.map_err(failed("commit noting"))
    }

    /// An entry is not in the bucket any more although it has to be. What it said counts as unwritten, so that it is written anew: its
    /// sessions, and what else its deletion says. `false` when it is known no more.
    pub async fn unwrite(&self, entry: ObjectId) -> Result<bool, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin writing anew"))?;
        let deletion: Option<Uuid> = sqlx::query_scalar(
            "delete from journal_entry where id = $1 and condemned_at is null returning deletion_id",
        )
        .bind(entry.0)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed("forget an entry that is missing"))?;
        let Some(deletion) = deletion else { return Ok(false) };
        sqlx::query("update deletion_session set entry_id = null where deletion_id = $1 and entry_id = $2")
            .bind(deletion)
            .bind(entry.0)
            .execute(&mut *tx)
            .await
            .map_err(failed("note sessions to journal"))?;
        sqlx::query(
            "update deletion set begun_journalled = false where id = $1
                 and (cause = 'terminated' or exists (select from marked_link where deletion_id = $1))",
        )
        .bind(deletion)
        .execute(&mut *tx)
        .await
        .map_err(failed("note marks to journal"))?;
        tx.commit().await.map_err(failed("commit writing anew"))?;
        Ok(true)
    }

    /// These entries are going to be removed from the bucket. So are those that were noted before `old_s`, seconds since the epoch, and are not
    /// among these `young` ones: an index of a backup has rows of what was removed since.
    pub async fn condemn_entries(&self, old: &[ObjectId], young: &[ObjectId], old_s: i64) -> Result<(), IndexError> {
        sqlx::query(
            "update journal_entry set condemned_at = now()
             where condemned_at is null and (id = any($1) or (written_at < to_timestamp($3) and id <> all($2)))",
        )
        .bind(old.iter().map(|id| id.0).collect::<Vec<_>>())
        .bind(young.iter().map(|id| id.0).collect::<Vec<_>>())
        .bind(old_s as f64)
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("condemn journal entries"))
    }

    /// Condemned entries up to this one are no more, but for those that are left.
    pub async fn forget_entries(&self, last: ObjectId, left: &[ObjectId]) -> Result<(), IndexError> {
        sqlx::query("delete from journal_entry where id <= $1 and condemned_at is not null and id <> all($2)")
            .bind(last.0)
            .bind(left.iter().map(|id| id.0).collect::<Vec<_>>())
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

/// Marks links as an entry says, unless a later mark is there. Those without a row are newer than the backup that this index is.
async fn mark_once_more(tx: &mut PgConnection, entry: &Entry, marks: &Marks) -> Result<(), IndexError> {
    let links: Vec<Uuid> = marks.links.iter().map(|link| link.0).collect();
    for (statement, what) in [
        (
            "with locked as (
                 select workspace_id, id from link where workspace_id = $1 and id = any($2) order by id for no key update
             )
             update link set begun_before = $3, deletion_id = $4
             from locked where link.workspace_id = locked.workspace_id and link.id = locked.id
                 and (begun_before is null or begun_before < $3)",
            "mark links once more",
        ),
        (
            // Who sees a session of such a link first has a lock of the table that this waits for.
            "insert into link_mark (workspace_id, link_id, deletion_id, begun_before)
             select $1, id, $4, $3 from unnest($2::uuid[]) as marked (id)
             where not exists (select from link where workspace_id = $1 and link.id = marked.id) order by id
             on conflict (workspace_id, link_id) do update
                 set begun_before = excluded.begun_before, deletion_id = excluded.deletion_id
                 where link_mark.begun_before < excluded.begun_before",
            "mark links that are not known",
        ),
    ] {
        sqlx::query(statement)
            .bind(entry.workspace.0)
            .bind(&links)
            .bind(moment(marks.begun_before_ms))
            .bind(entry.deletion.0)
            .execute(&mut *tx)
            .await
            .map_err(failed(what))?;
    }
    Ok(())
}

/// Notes an entry as known, and its sessions as journalled. Those that stand in another deletion by now get that one's entry.
async fn note_entry(tx: &mut PgConnection, entry: &Entry) -> Result<(), IndexError> {
    sqlx::query("insert into journal_entry (id, deletion_id) values ($1, $2) on conflict do nothing")
        .bind(entry.object.0)
        .bind(entry.deletion.0)
        .execute(&mut *tx)
        .await
        .map_err(failed("note journal entry"))?;
    sqlx::query(
        "update deletion_session set entry_id = $1
         where deletion_id = $4 and workspace_id = $2 and session_id = any($3) and entry_id is null",
    )
    .bind(entry.object.0)
    .bind(entry.workspace.0)
    .bind(entry.sessions.iter().map(|session| session.0).collect::<Vec<_>>())
    .bind(entry.deletion.0)
    .execute(&mut *tx)
    .await
    .map(drop)
    .map_err(failed("note journalled sessions"))
}
