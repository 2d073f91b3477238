//! Receipts: what is known of deletions that are over, and what was signed of them.

use engine::receipt::{Evidence, SessionEvidence};
use engine::retention::DeletionFacts;
use schemas::http::ReceiptItem;
use schemas::{DeletionId, SessionId, WorkspaceId};
use sqlx::Row as _;
use time::OffsetDateTime;
use uuid::Uuid;

use super::deletions::cause_of;
use super::links::Before;
use super::{Index, IndexError, SessionRowState, failed, signed, unsigned};

/// A deletion that is over and has no receipt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WithoutReceipt {
    /// The deletion.
    pub id: DeletionId,
    /// When all of it was erased.
    pub erased_at: OffsetDateTime,
}

/// A receipt that was signed: one of a deletion's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedPart {
    /// Which, from 1.
    pub number: u32,
    /// How many sessions are in it.
    pub sessions: u64,
    /// A compact JWS.
    pub body: String,
}

impl Index {
    /// Deletions that are over and have no receipt, oldest first, that the journal has, and of which no process can have a key in memory;
    /// behind the one given.
    pub async fn without_receipt(
        &self,
        keys_cached_ms: u64,
        after: Option<WithoutReceipt>,
        limit: i64,
    ) -> Result<Vec<WithoutReceipt>, IndexError> {
        let rows = sqlx::query(
            "select id, erased_at from deletion d where erased_at is not null and receipted_at is null and not exists (
                 select from deletion_session s where s.deletion_id = d.id
                     and (s.entry_id is null
                         or s.shredded_at > now() - make_interval(secs => $1::double precision / 1000)))
                 and ($3::timestamptz is null or (erased_at, id) > ($3, $4))
             order by erased_at, id limit $2",
        )
        .bind(signed(keys_cached_ms))
        .bind(limit)
        .bind(after.map(|after| after.erased_at))
        .bind(after.map(|after| after.id.0))
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list deletions without receipt"))?;
        let found = |row: &sqlx::postgres::PgRow| WithoutReceipt {
            id: DeletionId(row.get("id")),
            erased_at: row.get("erased_at"),
        };
        Ok(rows.iter().map(found).collect())
    }

    /// What is known of a deletion as a whole, for the first of its receipts, each of `limit` sessions at most: none of these is in it yet.
    pub async fn evidence(&self, id: DeletionId, limit: usize) -> Result<Option<Evidence>, IndexError> {
        let row = sqlx::query(
            "select workspace_id, cause, requested_at, finding, receipted_at is not null as receipted, now() as now, s.*
             from deletion cross join lateral (
                 select count(*) as sessions, count(*) filter (where erased_at is null) as sessions_left,
                     -- Of a session that has no time its key is there.
                     (extract(epoch from now() - max(coalesce(shredded_at, now()))) * 1000)::bigint as shredded_for_ms
                 from deletion_session where deletion_id = $1
             ) s where id = $1",
        )
        .bind(id.0)
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("find deletion to receipt"))?;
        let Some(row) = row else { return Ok(None) };
        let parts = unsigned(row.get("sessions")).div_ceil(limit as u64).max(1);
        let shredded_for_ms: Option<i64> = row.get("shredded_for_ms");
        Ok(Some(Evidence {
            deletion: id,
            workspace: WorkspaceId(row.get("workspace_id")),
            cause: cause_of(&row)?,
            requested_at: row.get("requested_at"),
            facts: DeletionFacts {
                finding: row.get("finding"),
                sessions_left: unsigned(row.get("sessions_left")),
                // Of no session no key was ever there.
                shredded_for_ms: shredded_for_ms.map_or(u64::MAX, unsigned),
                receipted: row.get("receipted"),
            },
            part: 1,
            parts: u32::try_from(parts).map_err(|_| IndexError::Full("receipts of a deletion"))?,
            sessions: Vec::new(),
            now: row.get("now"),
        }))
    }

    /// What is known of a deletion's sessions behind the one given, `limit` at most; but of their keys, which another store has.
    pub async fn session_evidence(
        &self,
        id: DeletionId,
        after: Option<SessionId>,
        limit: usize,
    ) -> Result<Vec<SessionEvidence>, IndexError> {
        let sessions = sqlx::query(
            "select d.session_id, d.entry_id is not null as is_journalled, d.unreadable_at, d.shredded_at, d.erased_at, d.objects, d.bytes,
                 d.shared_objects, coalesce(s.state = $4 and s.urls = '{}', false) as is_erased,
                 (select count(*) from object o
                     where o.kind = 1 and o.workspace_id = d.workspace_id and o.session_id = d.session_id)
                 + (select count(*) from object o where o.kind = 2 and o.session_id is not null
                     and o.workspace_id = d.workspace_id and o.session_id = d.session_id)
                 -- An archive that has some of it is as much.
                 + (select count(*) from export_session e
                     where e.workspace_id = d.workspace_id and e.session_id = d.session_id) as rows_left
             from deletion_session d left join session s on s.workspace_id = d.workspace_id and s.id = d.session_id
             where d.deletion_id = $1 and ($2::uuid is null or d.session_id > $2) order by d.session_id limit $3",
        )
        .bind(id.0)
        .bind(after.map(|session| session.0))
        .bind(signed(limit as u64))
        .bind(SessionRowState::Erased as i16)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("find sessions to receipt"))?;
        let count = |row: &sqlx::postgres::PgRow, column| {
            row.get::<Option<i32>, _>(column).map(|count| unsigned(i64::from(count)))
        };
        Ok(sessions
            .iter()
            .map(|row| SessionEvidence {
                session: SessionId(row.get("session_id")),
                is_journalled: row.get("is_journalled"),
                key_is_gone: false,
                is_erased: row.get("is_erased"),
                rows_left: unsigned(row.get("rows_left")),
                unreadable_at: row.get("unreadable_at"),
                shredded_at: row.get("shredded_at"),
                erased_at: row.get("erased_at"),
                objects: count(row, "objects"),
                bytes: row.get::<Option<i64>, _>("bytes").map(unsigned),
                shared_objects: count(row, "shared_objects"),
            })
            .collect())
    }

    /// Puts a part aside, until the last one is there.
    pub async fn draft_receipt(&self, draft: Uuid, deletion: DeletionId, part: &SignedPart) -> Result<(), IndexError> {
        sqlx::query("insert into receipt_draft (draft, deletion_id, part, sessions, body) values ($1, $2, $3, $4, $5)")
            .bind(draft)
            .bind(deletion.0)
            .bind(part.number.cast_signed())
            .bind(signed(part.sessions))
            .bind(&part.body)
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("put a receipt aside"))
    }

    /// Removes parts that were put aside as this draft, and once the deletion has its receipts all others too: whoever put them aside comes
    /// too late, or is no more.
    pub async fn forget_draft(&self, draft: Uuid, deletion: DeletionId) -> Result<(), IndexError> {
        sqlx::query(
            "delete from receipt_draft where deletion_id = $1
                 and (draft = $2 or exists (select from deletion where id = $1 and receipted_at is not null))",
        )
        .bind(deletion.0)
        .bind(draft)
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("remove a draft of receipts"))
    }

    /// Keeps a deletion's receipts: those that were put aside as this draft, and the last. Of several that sign the same at once one wins;
    /// `false` for the others.
    pub async fn keep_receipts(
        &self,
        draft: Uuid,
        deletion: DeletionId,
        workspace: WorkspaceId,
        last: &SignedPart,
    ) -> Result<bool, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin receipts"))?;
        let marked = sqlx::query(
            "update deletion set receipted_at = now() where id = $1 and erased_at is not null and receipted_at is null",
        )
        .bind(deletion.0)
        .execute(&mut *tx)
        .await
        .map_err(failed("mark deletion receipted"))?;
        if marked.rows_affected() == 0 {
            return Ok(false);
        }
        let kept = sqlx::query(
            "insert into receipt (deletion_id, part, workspace_id, sessions, body)
             select deletion_id, part, $3, sessions, body from receipt_draft where deletion_id = $2 and draft = $1
             union all values ($2, $4, $3, $5, $6)",
        )
        .bind(draft)
        .bind(deletion.0)
        .bind(workspace.0)
        .bind(last.number.cast_signed())
        .bind(signed(last.sessions))
        .bind(&last.body)
        .execute(&mut *tx)
        .await
        .map_err(failed("insert receipts"))?;
        if kept.rows_affected() != u64::from(last.number) {
            return Err(IndexError::Row("receipt_draft"));
        }
        tx.commit().await.map_err(failed("commit receipts"))?;
        Ok(true)
    }

    /// Receipts of a deletion of this workspace, behind `after`, `limit` at most.
    pub async fn receipts_of(
        &self,
        workspace: WorkspaceId,
        deletion: DeletionId,
        after: u32,
        limit: u32,
    ) -> Result<Vec<ReceiptItem>, IndexError> {
        let rows = sqlx::query(
            "select deletion_id, part, sessions, signed_at, body from receipt
             where workspace_id = $1 and deletion_id = $2 and part > $3 order by part limit $4",
        )
        .bind(workspace.0)
        .bind(deletion.0)
        .bind(i32::try_from(after).unwrap_or(i32::MAX))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list receipts"))?;
        Ok(rows.iter().map(receipt_item).collect())
    }

    /// First receipts of a workspace's deletions, newest first; also of one that is gone.
    pub async fn receipts(
        &self,
        workspace: WorkspaceId,
        before: Option<Before>,
        limit: u32,
    ) -> Result<Vec<ReceiptItem>, IndexError> {
        let rows = sqlx::query(
            "select deletion_id, part, sessions, signed_at, body from receipt
             where workspace_id = $1 and part = 1
                 and ($2::timestamptz is null or (signed_at, deletion_id) < ($2, $3))
             order by signed_at desc, deletion_id desc limit $4",
        )
        .bind(workspace.0)
        .bind(before.map(|before| before.at))
        .bind(before.map(|before| before.id))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list receipts"))?;
        Ok(rows.iter().map(receipt_item).collect())
    }
}

pub(super) fn receipt_item(row: &sqlx::postgres::PgRow) -> ReceiptItem {
    ReceiptItem {
        deletion_id: DeletionId(row.get("deletion_id")),
        part: row.get::<i32, _>("part").unsigned_abs(),
        sessions: unsigned(row.get("sessions")),
        signed_at: row.get("signed_at"),
        receipt: row.get("body"),
    }
}
