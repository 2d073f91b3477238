//! Deletions, expiry, and the collector of objects that nobody needs.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use engine::retention::Facts;
use schemas::control::{Entry, News};
use schemas::deletion::Cause;
use schemas::http::{DeletionItem, DeletionState};
use schemas::paths::ObjectKey;
use schemas::shared_object::SessionFilter;
use schemas::{DeletionId, ObjectId, SessionId, SessionKey, WorkspaceId};
use service_kit::time::now_ms;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use super::exports::end_exports_of;
use super::links::{ReferenceFilter, links_of};
use super::sessions::{filter_may_contain, filter_of, lock_sessions};
use super::{Index, IndexError, failed, key_arrays, object_columns, object_key, outbox, session_key, signed, unsigned};
use crate::objects::Absent;

/// A session that is on its way out.
#[derive(Debug, Clone)]
pub struct Leaving {
    /// The deletion that it stands in.
    pub deletion: DeletionId,
    /// The session.
    pub key: SessionKey,
    /// What is known of it.
    pub facts: Facts,
}

/// Which sessions are led on, and in what order: oldest deletions first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// All that leave.
    All,
    /// Those that somebody asked to have deleted, and those that should not have begun: all but what is past its window, or a closed
    /// workspace's.
    Asked,
}

/// What is past its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Due {
    /// Sessions, as far as they were counted.
    pub sessions: u64,
    /// Whether they are more than a tenth of all live ones.
    pub is_most: bool,
    /// Whether the time of a closed workspace is over of which nothing was deleted yet.
    pub has_closed: bool,
    /// What the index's clock says, in seconds since the epoch.
    pub now_s: i64,
}

/// A session that is past its window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueSession {
    /// The session.
    pub key: SessionKey,
    /// When it began.
    pub started_at: time::OffsetDateTime,
    /// Its workspace's plan.
    pub plan: String,
    /// How long the workspace's sessions are kept right now.
    pub kept_for: time::Duration,
}

/// Tombstones that nobody needs any more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Forgettable {
    /// Deletions,
    pub deletions: Vec<DeletionId>,
    /// and sessions of them, each of which stands in one.
    pub sessions: Vec<SessionKey>,
}

/// What is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeavingNow {
    /// Sessions that are not erased.
    pub sessions: u64,
    /// Condemned objects.
    pub objects: u64,
}

/// An object to be removed.
#[derive(Debug, Clone, Copy)]
pub struct Removable {
    /// Its key.
    pub key: ObjectKey,
    /// Whether it was ever live: else its upload may not have ended.
    pub was_live: bool,
}

/// Live sessions past their window, `$1` at most: of each workspace the oldest ones, which an index has at its end, so that what is not
/// due is not looked at.
macro_rules! sessions_due {
    () => {
        // The clock once more is never taken for later than it was compared.
        "select oldest.workspace_id, oldest.id from workspace w cross join lateral (
             select s.workspace_id, s.id from session s
             where s.workspace_id = w.id and s.state = 0
                 and s.started_at < least(clairvio.clock(), to_timestamp($2)) - clairvio.kept_for(w)
             order by s.started_at, s.id limit $1
         ) oldest limit $1"
    };
}

/// Whether a workspace is closed, its time is over and nothing of it was deleted yet.
macro_rules! workspace_due {
    ($now:literal) => {
        concat!("(terminates_at <= ", $now, " and terminated_by is null)")
    };
}
pub(super) use workspace_due;

/// Whether a deletion is one of [`Round::Asked`], as the index `deletion_asked` has it.
macro_rules! asked_for {
    ($deletion:literal) => {
        concat!($deletion, ".cause not in ('expired', 'terminated')")
    };
}

/// What is known of a session that leaves.
macro_rules! leaving_facts {
    () => {
        "select d.deletion_id, d.workspace_id, d.session_id, d.shredded_at is not null as shredded,
             d.entry_id is not null as journalled,
             -- One that no transaction has come to is of the server that this index was restored from.
             coalesce(d.barrier < pg_snapshot_xmax(pg_current_snapshot()), false) as barrier_set,
             coalesce(d.barrier < pg_snapshot_xmin(pg_current_snapshot()), false) as barrier_passed,
             d.blockers is not null as blockers_noted,
             (select count(*) from object o where o.id = any(d.blockers)) as blockers_left,
             (select count(*) from object o where o.kind = 1 and o.workspace_id = d.workspace_id
                 and o.session_id = d.session_id)
             + (select count(*) from object o where o.kind = 2 and o.session_id is not null
                 and o.workspace_id = d.workspace_id and o.session_id = d.session_id) as objects_left,
             (select count(*) from export_session e where e.workspace_id = d.workspace_id
                 and e.session_id = d.session_id) as exports_left "
    };
}

/// The next `$1` of those whose keys are destroyed, behind the session `$3` of the deletion `$2`.
macro_rules! leaving_next {
    () => {
        "d.erased_at is null and d.shredded_at is not null and ($2::uuid is null or (d.deletion_id, d.session_id) > ($2, $3))
         order by d.deletion_id, d.session_id limit $1"
    };
}

/// Live sessions of links that such deletions marked, begun by then.
macro_rules! sessions_marked {
    ($by:literal) => {
        concat!(
            " from marked_link l join session s on s.workspace_id = l.workspace_id and s.link_id = l.id
             where l.deletion_id ",
            $by,
            " and s.state = 0 and least(s.consented_at, s.started_at) <= l.begun_before "
        )
    };
}

impl Index {
    /// Deletes a session. It is unreadable once this returns. An unknown one leaves a tombstone in the caller's
    /// workspace, and in no other (R8, R9); one that is deleted already gives the deletion that it stands in.
    pub async fn delete_session(&self, key: &SessionKey, cause: Cause) -> Result<DeletionId, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin deletion"))?;
        let standing = delete_unless_deleted(&mut tx, cause, &[*key]).await?;
        tx.commit().await.map_err(failed("commit deletion"))?;
        self.outbox.notify_one();
        standing.deletions.first().map(|(deletion, _)| *deletion).ok_or(IndexError::Row("deletion_session"))
    }

    /// Deletes sessions whose end users took consent back, those too that were never seen. Gives the deletions that they stand in,
    /// and how many were not deleted before. Can be repeated, and several can do it at once.
    pub async fn withdraw(&self, keys: &[SessionKey]) -> Result<(Vec<DeletionId>, u64), IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin withdrawal"))?;
        let standing = delete_unless_deleted(&mut tx, Cause::Withdrawn, keys).await?;
        tx.commit().await.map_err(failed("commit withdrawal"))?;
        self.outbox.notify_one();
        let deletions: BTreeSet<DeletionId> = standing.deletions.into_iter().map(|(deletion, _)| deletion).collect();
        Ok((deletions.into_iter().collect(), standing.new))
    }

    /// Has the entries removed from `control` that told of withdrawals, behind the deletions' own. Nothing but the journal and the index
    /// knows of them then.
    pub async fn forget_withdrawals(&self, keys: &[SessionKey]) -> Result<(), IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin forgetting"))?;
        let removals = keys.iter().map(|key| (News::Withdrawal(*key).key(), None));
        outbox::insert(&mut tx, &removals.collect::<Vec<_>>()).await?;
        tx.commit().await.map_err(failed("commit forgetting"))?;
        self.outbox.notify_one();
        Ok(())
    }

    /// Begins to delete all sessions of a reference that began by now, those too that are on their way: marks its links, under their
    /// locks, so that who sees such a session first deletes it. The sessions that are there follow by [`Index::find_deleted`].
    pub async fn delete_reference(
        &self,
        workspace: WorkspaceId,
        reference: &ReferenceFilter,
        cause: Cause,
    ) -> Result<DeletionId, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin deletion"))?;
        let links = links_of(&mut tx, workspace, reference, true).await?;
        // One that finds its sessions still would find none any more: it is this one.
        let finding: Option<Uuid> = sqlx::query_scalar(
            "select d.id from link l join deletion d on d.id = l.deletion_id
             where l.workspace_id = $1 and l.id = any($2) and d.finding order by d.requested_at limit 1 for update of d",
        )
        .bind(workspace.0)
        .bind(&links)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed("find a deletion of the reference"))?;
        let deletion = DeletionId(finding.unwrap_or_else(Uuid::now_v7));
        if finding.is_none() {
            insert_deletion(&mut tx, Deletion { id: deletion, workspace, cause }, true).await?;
        }
        // The time once all locks are held: a session that was let in meanwhile began before.
        sqlx::query(
            // Sessions that are here began before, whatever the clocks say that they go by; and no mark is taken back.
            "update link set deletion_id = $1, begun_before = greatest(begun_before, clock_timestamp(), (
                 select max(least(s.consented_at, s.started_at)) from session s
                 where s.workspace_id = link.workspace_id and s.link_id = link.id and s.state = 0))
             where workspace_id = $2 and id = any($3)",
        )
        .bind(deletion.0)
        .bind(workspace.0)
        .bind(&links)
        .execute(&mut *tx)
        .await
        .map_err(failed("mark links of a reference"))?;
        sqlx::query("update deletion set begun_journalled = false where id = $1 and $2 > 0")
            .bind(deletion.0)
            .bind(signed(links.len() as u64))
            .execute(&mut *tx)
            .await
            .map_err(failed("note marks to journal"))?;
        tx.commit().await.map_err(failed("commit deletion"))?;
        Ok(deletion)
    }

    /// Deletes sessions of the links that a deletion marked, `limit` at most; gives them, and `None` once it has all. Can be repeated,
    /// and several can do it at once.
    pub async fn find_deleted(&self, deletion: DeletionId, limit: i64) -> Result<Option<Vec<SessionKey>>, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin finding"))?;
        let rows = sqlx::query(concat!(
            "with some_of as (select s.workspace_id, s.id",
            sessions_marked!("= $1"),
            "limit $2) select s.workspace_id, s.id as session_id from session s join some_of using (workspace_id, id)
             where s.state = 0 order by s.workspace_id, s.id for update of s"
        ))
        .bind(deletion.0)
        .bind(limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("find sessions of a reference"))?;
        let found: Vec<SessionKey> = rows.iter().map(session_key).collect();
        if let Some(first) = found.first() {
            join_deletion(&mut tx, deletion, first.workspace, &found).await?;
        } else {
            // Those that were found may be another's by now who does this too, and there may be more behind them. Whoever asks for the
            // same deletion once more, or ends it, has its row.
            lock_deletion(&mut tx, deletion).await?;
            let is_more: bool = sqlx::query_scalar(concat!("select exists (select", sessions_marked!("= $1"), ")"))
                .bind(deletion.0)
                .fetch_one(&mut *tx)
                .await
                .map_err(failed("find sessions of a reference"))?;
            if !is_more {
                end_finding(&mut tx, deletion).await?;
                tx.commit().await.map_err(failed("commit the end of finding"))?;
                return Ok(None);
            }
        }
        tx.commit().await.map_err(failed("commit finding"))?;
        self.outbox.notify_one();
        Ok(Some(found))
    }

    /// Deletes live sessions, `limit` at most, that began before all of their link's were deleted and came to be without being held to
    /// that: by a batcher of an earlier release, which does not know of all such marks. Gives how many.
    pub async fn delete_overlooked(&self, limit: i64) -> Result<u64, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin deletion"))?;
        let rows = sqlx::query(concat!(
            "with some_of as (select s.workspace_id, s.id, l.deletion_id",
            sessions_marked!("is not null"),
            "limit $1) select s.workspace_id, s.id as session_id, some_of.deletion_id from session s
             join some_of using (workspace_id, id) where s.state = 0 order by s.workspace_id, s.id for update of s"
        ))
        .bind(limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("find sessions that were overlooked"))?;
        let found = rows.iter().map(|row| (DeletionId(row.get("deletion_id")), session_key(row))).collect();
        join_deletions(&mut tx, found).await?;
        tx.commit().await.map_err(failed("commit deletion"))?;
        self.outbox.notify_one();
        Ok(rows.len() as u64)
    }

    /// Which of these objects are staged: whoever puts them has not ended.
    pub async fn staged_among(&self, ids: &[ObjectId]) -> Result<Vec<ObjectId>, IndexError> {
        let staged: Vec<Uuid> = sqlx::query_scalar("select id from object where id = any($1) and state = 0")
            .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
            .fetch_all(&self.pool)
            .await
            .map_err(failed("ask for staged objects"))?;
        Ok(staged.into_iter().map(ObjectId).collect())
    }

    /// Deletions whose sessions are being found still, oldest first.
    pub async fn finding(&self, limit: i64) -> Result<Vec<DeletionId>, IndexError> {
        let found: Vec<Uuid> =
            // Those of closed workspaces find theirs in another way.
            sqlx::query_scalar(
                "select id from deletion where finding and cause <> 'terminated' order by requested_at limit $1",
            )
                .bind(limit)
                .fetch_all(&self.pool)
                .await
                .map_err(failed("list deletions that find their sessions"))?;
        Ok(found.into_iter().map(DeletionId).collect())
    }

    /// The index's time, in seconds since the epoch: a machine's clock may be days off.
    pub async fn now_s(&self) -> Result<i64, IndexError> {
        sqlx::query_scalar("select extract(epoch from now())::bigint")
            .fetch_one(&self.pool)
            .await
            .map_err(failed("ask for the time"))
    }

    /// How many sessions are past their plan window by the index's clock, as far as `limit`; whether these are more than a tenth of all
    /// that are live; whether a closed workspace is past its time; and what that clock says, in seconds since the epoch.
    pub async fn due(&self, limit: i64) -> Result<Due, IndexError> {
        let row = sqlx::query(concat!(
            "with due as materialized (select count(*) as sessions from (",
            sessions_due!(),
            ") found) select sessions, extract(epoch from clairvio.clock())::bigint as now_s,
                 not exists (select from session where state = 0 offset 10 * (select sessions from due)) as is_most,
                 exists (select from workspace where ",
            workspace_due!("clairvio.clock()"),
            ") as has_closed from due"
        ))
        .bind(limit)
        .bind(f64::INFINITY)
        .fetch_one(&self.pool)
        .await
        .map_err(failed("count expired sessions"))?;
        Ok(Due {
            sessions: unsigned(row.get("sessions")),
            is_most: row.get("is_most"),
            has_closed: row.get("has_closed"),
            now_s: row.get("now_s"),
        })
    }

    /// Workspaces in id order behind the one given, `limit` at most, of which a session is past its window.
    pub async fn workspaces_that_expire(
        &self,
        after: Option<WorkspaceId>,
        limit: i64,
    ) -> Result<Vec<WorkspaceId>, IndexError> {
        let found: Vec<Uuid> = sqlx::query_scalar(
            "select id from workspace w where ($1::uuid is null or id > $1) and exists (
                 select from session s where s.workspace_id = w.id and s.state = 0
                     and s.started_at < clairvio.clock() - clairvio.kept_for(w))
             order by id limit $2",
        )
        .bind(after.map(|workspace| workspace.0))
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("find workspaces with expired sessions"))?;
        Ok(found.into_iter().map(WorkspaceId).collect())
    }

    /// Sessions of a workspace that are past their window, oldest first, behind the one given.
    pub async fn due_sessions(
        &self,
        workspace: WorkspaceId,
        after: Option<(time::OffsetDateTime, SessionId)>,
        limit: i64,
    ) -> Result<Vec<DueSession>, IndexError> {
        let rows = sqlx::query(
            "select s.workspace_id, s.id as session_id, s.started_at, w.plan,
                 extract(epoch from clairvio.kept_for(w))::bigint as kept_for_s
             from workspace w join session s on s.workspace_id = w.id
             where w.id = $1 and s.state = 0 and s.started_at < clairvio.clock() - clairvio.kept_for(w)
                 and ($2::timestamptz is null or (s.started_at, s.id) > ($2, $3))
             order by s.started_at, s.id limit $4",
        )
        .bind(workspace.0)
        .bind(after.map(|(at, _)| at))
        .bind(after.map(|(_, session)| session.0))
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list expired sessions"))?;
        let due = |row: &PgRow| DueSession {
            key: session_key(row),
            started_at: row.get("started_at"),
            plan: row.get("plan"),
            kept_for: time::Duration::seconds(row.get("kept_for_s")),
        };
        Ok(rows.iter().map(due).collect())
    }

    /// Closed workspaces whose time is over and of which nothing was deleted yet: since when it is, and how many sessions they have.
    pub async fn due_workspaces(
        &self,
        limit: i64,
    ) -> Result<Vec<(WorkspaceId, time::OffsetDateTime, u64)>, IndexError> {
        let rows = sqlx::query(concat!(
            "select w.id, w.terminates_at, (
                 select count(*) from session s where s.workspace_id = w.id and s.state = 0) as sessions
             from workspace w where ",
            workspace_due!("clairvio.clock()"),
            " order by terminates_at limit $1"
        ))
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("find closed workspaces"))?;
        let due = |row: &PgRow| (WorkspaceId(row.get("id")), row.get("terminates_at"), unsigned(row.get("sessions")));
        Ok(rows.iter().map(due).collect())
    }

    /// How much is on its way out.
    pub async fn leaving_now(&self) -> Result<LeavingNow, IndexError> {
        let row = sqlx::query(
            "select (select count(*) from deletion_session where erased_at is null) as sessions,
                 (select count(*) from object where state = 2) as objects",
        )
        .fetch_one(&self.pool)
        .await
        .map_err(failed("count what leaves"))?;
        Ok(LeavingNow { sessions: unsigned(row.get("sessions")), objects: unsigned(row.get("objects")) })
    }

    /// Begins to delete sessions whose plan window is over by the index's clock, `limit` at most; gives how many. The
    /// window is that of the workspace's current plan, a longer one before it for a grace (R5, R6). It is not later than `now_s`,
    /// when [`Index::due`] was asked: a clock that jumps behind a comparison deletes nothing. Nor does a server that is not compared with what
    /// was told.
    pub async fn expire(
        &self,
        now_s: i64,
        limit: i64,
        is_compared: impl Fn() -> bool + Send,
    ) -> Result<u64, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin expiry"))?;
        // Asked on a connection: it may be one to another server than a moment ago.
        if !is_compared() {
            return Ok(0);
        }
        let rows = sqlx::query(concat!(
            "with due as (",
            sessions_due!(),
            ") select s.workspace_id, s.id as session_id from session s join due using (workspace_id, id)
             where s.state = 0 order by s.workspace_id, s.id for update of s skip locked"
        ))
        .bind(limit)
        .bind(now_s as f64)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("find expired sessions"))?;
        let keys: Vec<SessionKey> = rows.iter().map(session_key).collect();
        begin_deletions(&mut tx, Cause::Expired, &keys).await?;
        tx.commit().await.map_err(failed("commit expiry"))?;
        self.outbox.notify_one();
        Ok(keys.len() as u64)
    }

    /// A deletion of this workspace; of any when none is given.
    pub async fn deletion(
        &self,
        workspace: Option<WorkspaceId>,
        id: DeletionId,
    ) -> Result<Option<DeletionItem>, IndexError> {
        let row = sqlx::query(
            "select d.cause, d.requested_at, d.erased_at, d.finding, s.*, r.body, r.receipts
             from deletion d cross join lateral (
                 -- Those whose tombstones are gone were all of it.
                 select d.forgotten + count(*) as sessions, d.forgotten + count(shredded_at) as shredded,
                     d.forgotten + count(erased_at) as erased
                 from deletion_session where deletion_id = d.id
             ) s cross join lateral (
                 select count(*) as receipts, min(body) filter (where part = 1) as body
                 from receipt where deletion_id = d.id
             ) r where d.id = $1 and ($2::uuid is null or d.workspace_id = $2)",
        )
        .bind(id.0)
        .bind(workspace.map(|workspace| workspace.0))
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("find deletion"))?;
        let Some(row) = row else { return Ok(None) };
        let erased_at: Option<time::OffsetDateTime> = row.get("erased_at");
        let [sessions, shredded, erased] = ["sessions", "shredded", "erased"].map(|sum| unsigned(row.get(sum)));
        let state = match erased_at {
            Some(_) => DeletionState::Erased,
            None if shredded == sessions && !row.get::<bool, _>("finding") => DeletionState::Shredded,
            None => DeletionState::Unreadable,
        };
        Ok(Some(DeletionItem {
            id,
            state,
            cause: cause_of(&row)?,
            sessions,
            sessions_shredded: shredded,
            sessions_erased: erased,
            requested_at: row.get("requested_at"),
            erased_at,
            receipt: row.get("body"),
            receipts: unsigned(row.get("receipts")),
        }))
    }

    /// Sessions that are on their way out and whose keys are destroyed, oldest deletions first, behind the one given: those that wait for
    /// others must not keep those behind them from going on, and a round must not run ahead of the destruction of keys.
    pub async fn leaving(&self, round: Round, after: Option<&Leaving>, limit: i64) -> Result<Vec<Leaving>, IndexError> {
        let query = match round {
            Round::All => sqlx::query(concat!(leaving_facts!(), "from deletion_session d where ", leaving_next!())),
            Round::Asked => sqlx::query(concat!(
                leaving_facts!(),
                "from deletion asked join deletion_session d on d.deletion_id = asked.id
                 where asked.erased_at is null and ",
                asked_for!("asked"),
                " and ($2::uuid is null or asked.id >= $2) and ",
                leaving_next!()
            )),
        };
        let rows = query
            .bind(limit)
            .bind(after.map(|leaving| leaving.deletion.0))
            .bind(after.map(|leaving| leaving.key.session.0))
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list leaving sessions"))?;
        Ok(rows
            .iter()
            .map(|row| Leaving {
                deletion: DeletionId(row.get("deletion_id")),
                key: session_key(row),
                facts: Facts {
                    shredded: row.get("shredded"),
                    journalled: row.get("journalled"),
                    barrier_set: row.get("barrier_set"),
                    barrier_passed: row.get("barrier_passed"),
                    blockers_noted: row.get("blockers_noted"),
                    blockers_left: unsigned(row.get("blockers_left")),
                    objects_left: unsigned(row.get("objects_left")),
                    exports_left: unsigned(row.get("exports_left")),
                },
            })
            .collect())
    }

    /// Deleted sessions in the journal whose keys are still there, oldest deletions first.
    pub async fn unshredded(&self, round: Round, limit: i64) -> Result<Vec<(DeletionId, SessionKey)>, IndexError> {
        // Not before the journal has them: a restored index would have the session, and nobody its key.
        let query = match round {
            Round::All => sqlx::query(
                "select deletion_id, workspace_id, session_id from deletion_session
                 where shredded_at is null and entry_id is not null order by deletion_id, session_id limit $1",
            ),
            Round::Asked => sqlx::query(concat!(
                "select d.deletion_id, d.workspace_id, d.session_id
                 from deletion asked join deletion_session d on d.deletion_id = asked.id
                 where asked.erased_at is null and ",
                asked_for!("asked"),
                " and d.shredded_at is null and d.entry_id is not null
                 order by d.deletion_id, d.session_id limit $1"
            )),
        };
        let rows = query.bind(limit).fetch_all(&self.pool).await.map_err(failed("list keys to destroy"))?;
        Ok(rows.iter().map(|row| (DeletionId(row.get("deletion_id")), session_key(row))).collect())
    }

    /// Their keys were destroyed, and the key store has counted so many destructions by then.
    pub async fn mark_shredded(
        &self,
        shredded: &[(DeletionId, SessionKey)],
        shreddings: u64,
    ) -> Result<(), IndexError> {
        let (workspaces, sessions) = key_arrays(shredded.iter().map(|(_, key)| key));
        let deletions: Vec<Uuid> = shredded.iter().map(|(deletion, _)| deletion.0).collect();
        let mut tx = self.pool.begin().await.map_err(failed("begin shredding"))?;
        sqlx::query(
            "with leaving as (
                 select s.workspace_id, s.id from session s
                 join unnest($1::uuid[], $2::uuid[]) as l (workspace_id, id) using (workspace_id, id)
                 where s.state = 1 order by s.workspace_id, s.id for update of s
             )
             update session set state = 2 from leaving
             where session.workspace_id = leaving.workspace_id and session.id = leaving.id",
        )
        .bind(&workspaces)
        .bind(&sessions)
        .execute(&mut *tx)
        .await
        .map_err(failed("mark sessions shredded"))?;
        sqlx::query(
            // The barrier is set as well: the tombstones were committed before this transaction began.
            "update deletion_session d set shredded_at = now(), barrier = coalesce(d.barrier, pg_current_xact_id())
             from unnest($1::uuid[], $2::uuid[], $3::uuid[]) as l (deletion_id, workspace_id, session_id)
             where d.deletion_id = l.deletion_id and d.workspace_id = l.workspace_id and d.session_id = l.session_id
                 and d.shredded_at is null",
        )
        .bind(&deletions)
        .bind(&workspaces)
        .bind(&sessions)
        .execute(&mut *tx)
        .await
        .map_err(failed("mark deletions shredded"))?;
        sqlx::query("update keystore_seen set shreddings = $1 where shreddings < $1")
            .bind(signed(shreddings))
            .execute(&mut *tx)
            .await
            .map_err(failed("note what the key store told"))?;
        tx.commit().await.map_err(failed("commit shredding"))
    }

    /// Sets the barriers of these: this transaction's number, taken after the tombstones were committed.
    pub async fn set_barriers(&self, leaving: &[&Leaving]) -> Result<(), IndexError> {
        if leaving.is_empty() {
            return Ok(());
        }
        let (workspaces, sessions) = key_arrays(leaving.iter().map(|leaving| &leaving.key));
        sqlx::query(
            // Rows that another worker has are set by it. Which ones have one is no condition of the join, for the sake of its plan.
            "with free as (
                 select d.deletion_id, d.workspace_id, d.session_id from deletion_session d
                 join unnest($1::uuid[], $2::uuid[], $3::uuid[]) as l (deletion_id, workspace_id, session_id)
                     using (deletion_id, workspace_id, session_id)
                 for update of d skip locked
             )
             update deletion_session d set barrier =
                 case when d.barrier < pg_snapshot_xmax(pg_current_snapshot()) then d.barrier else pg_current_xact_id() end
             from free where d.deletion_id = free.deletion_id and d.workspace_id = free.workspace_id
                 and d.session_id = free.session_id",
        )
        .bind(leaving.iter().map(|leaving| leaving.deletion.0).collect::<Vec<_>>())
        .bind(&workspaces)
        .bind(&sessions)
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("set barriers"))
    }

    /// Behind the barrier: notes the shared objects that may hold these sessions' bytes, and condemns their own objects.
    pub async fn note_blockers(&self, leaving: &[&Leaving]) -> Result<(), IndexError> {
        if leaving.is_empty() {
            return Ok(());
        }
        let (workspaces, sessions) = key_arrays(leaving.iter().map(|leaving| &leaving.key));
        let mut tx = self.pool.begin().await.map_err(failed("begin noting"))?;
        // What was noted first stays. Rows that another worker has are noted by it. The condition is looked at here: where statistics say
        // that it holds of no row, the table would be gone through before the list of sessions, once for each of them.
        let free = sqlx::query(
            "select d.workspace_id, d.session_id, d.blockers is null as is_unnoted from deletion_session d
             join unnest($1::uuid[], $2::uuid[]) as l (workspace_id, session_id) using (workspace_id, session_id)
             for update of d skip locked",
        )
        .bind(&workspaces)
        .bind(&sessions)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("lock sessions to note"))?;
        let free: BTreeSet<SessionKey> = free.iter().filter(|row| row.get("is_unnoted")).map(session_key).collect();
        let seen = partitions_of(&mut tx, (&workspaces, &sessions)).await?;
        let rows =
            sqlx::query("select id, partition, sessions_filter from object where kind = 0 and partition = any($1)")
                .bind(seen.values().flatten().copied().collect::<BTreeSet<i32>>().into_iter().collect::<Vec<_>>())
                .fetch_all(&mut *tx)
                .await
                .map_err(failed("find shared objects"))?;
        let shared: Vec<(Uuid, i32, Option<SessionFilter>)> = rows
            .iter()
            .map(|row| (row.get("id"), row.get("partition"), filter_of(row.get("sessions_filter"))))
            .collect();
        // A row for each pair, and for each session that has none.
        let mut pairs: Vec<(Uuid, Uuid, Option<Uuid>)> = Vec::new();
        for key in &free {
            let of_session = (key.workspace.0, key.session.0);
            pairs.push((of_session.0, of_session.1, None));
            let partitions = seen.get(key).map_or(&[][..], Vec::as_slice);
            let blocking = shared.iter().filter(|(_, partition, filter)| {
                partitions.contains(partition) && filter.as_ref().is_none_or(|filter| filter.may_contain(key))
            });
            pairs.extend(blocking.map(|(id, ..)| (of_session.0, of_session.1, Some(*id))));
        }
        let (of_workspace, of_session, blocker) = pairs.into_iter().collect::<(Vec<_>, Vec<_>, Vec<_>)>();
        sqlx::query(
            "with noted as (
                 select w, s, coalesce(array_agg(o) filter (where o is not null), '{}') as blockers
                 from unnest($1::uuid[], $2::uuid[], $3::uuid[]) as pair (w, s, o) group by w, s
             )
             update deletion_session d set blockers = noted.blockers, shared_objects = cardinality(noted.blockers),
                 (objects, bytes) = (
                     -- Each half has an index of its own, whatever the statistics say.
                     select count(*), coalesce(sum(bytes), 0) from (
                         select bytes from object o
                         where o.kind = 1 and o.workspace_id = noted.w and o.session_id = noted.s
                         union all select bytes from object o
                         where o.kind = 2 and o.session_id is not null and o.workspace_id = noted.w
                             and o.session_id = noted.s
                     ) own)
             from noted where d.workspace_id = noted.w and d.session_id = noted.s",
        )
        .bind(of_workspace)
        .bind(of_session)
        .bind(blocker)
        .execute(&mut *tx)
        .await
        .map_err(failed("note shared objects"))?;
        sqlx::query(
            // In order, so that several workers that do the same do not wait in a circle.
            "with own as (
                 select o.id from unnest($1::uuid[], $2::uuid[]) as d (w, s) cross join lateral (
                     select id from object where kind = 1 and workspace_id = d.w and session_id = d.s
                     union all select id from object
                     where kind = 2 and session_id is not null and workspace_id = d.w and session_id = d.s
                 ) o
             ), locked as (
                 select o.id from object o join own using (id) where o.state < 2 order by o.id for update of o
             )
             update object set state = 2, condemned_at = now() from locked where object.id = locked.id and state < 2",
        )
        .bind(&workspaces)
        .bind(&sessions)
        .execute(&mut *tx)
        .await
        .map_err(failed("condemn sessions' objects"))?;
        tx.commit().await.map_err(failed("commit noting"))
    }

    /// Those of these sessions of which a quarantine object that is nobody's may hold frames: they cannot be called erased. One of an
    /// earlier release, which has no filters, holds none of a session that began a day after it.
    pub async fn held_by_quarantine(&self, keys: &BTreeSet<SessionKey>) -> Result<BTreeSet<SessionKey>, IndexError> {
        let mut held = BTreeSet::new();
        let rows = sqlx::query(
            "select partition, sessions_filter, source_filters, live_at from object
             where kind = 2 and session_id is null",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(failed("find quarantine objects"))?;
        if rows.is_empty() {
            return Ok(held);
        }
        let (workspaces, sessions) = key_arrays(keys.iter());
        let asked = sqlx::query(
            "select s.workspace_id, s.id as session_id, s.partitions, s.started_at from session s
             join unnest($1::uuid[], $2::uuid[]) as d (workspace_id, id) using (workspace_id, id)",
        )
        .bind(&workspaces)
        .bind(&sessions)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("find sessions"))?;
        for session in &asked {
            let key = session_key(session);
            let (partitions, started_at): (Vec<i32>, time::OffsetDateTime) =
                (session.get("partitions"), session.get("started_at"));
            let may_hold = |row: &PgRow| {
                let (filter, live_at): (Option<Vec<u8>>, Option<time::OffsetDateTime>) =
                    (row.get("sessions_filter"), row.get("live_at"));
                let sources: Option<Vec<Option<Vec<u8>>>> = row.get("source_filters");
                let is_old = filter.is_none() && sources.is_none();
                if is_old && live_at.is_some_and(|live_at| live_at <= started_at - time::Duration::DAY) {
                    return false;
                }
                let of_sources = sources.into_iter().flatten().any(|filter| filter_may_contain(filter, &key));
                of_sources || filter_may_contain(filter, &key)
            };
            if rows.iter().any(|row| partitions.contains(&row.get::<i32, _>("partition")) && may_hold(row)) {
                held.insert(key);
            }
        }
        Ok(held)
    }

    /// Condemns a live quarantine object, with all that is in it; `false` when there is none of this id.
    pub async fn discard_quarantine(&self, id: ObjectId) -> Result<bool, IndexError> {
        let condemned =
            sqlx::query("update object set state = 2, condemned_at = now() where id = $1 and kind = 2 and state = 1")
                .bind(id.0)
                .execute(&self.pool)
                .await
                .map_err(failed("discard quarantine object"))?;
        Ok(condemned.rows_affected() == 1)
    }

    /// Listings showed nothing of these sessions: they are erased, and their deletions when these were the last of them.
    pub async fn mark_erased(&self, absent: &Absent) -> Result<(), IndexError> {
        if absent.is_empty() {
            return Ok(());
        }
        let (workspaces, sessions) = key_arrays(absent.sessions());
        let mut tx = self.pool.begin().await.map_err(failed("begin erasing"))?;
        sqlx::query(
            "with gone as (
                 select s.workspace_id, s.id from session s
                 join unnest($1::uuid[], $2::uuid[]) as d (workspace_id, id) using (workspace_id, id)
                 where s.state < 3 order by s.workspace_id, s.id for update of s
             )
             update session set state = 3, events = 0, bytes_stored = 0, bytes_received = 0, pages = 0, errors = 0,
                 counts = default, ts_min = null, ts_max = null, active_ms = 0, clicks = 0, keypresses = 0,
                 console = default, failed_requests = 0, urls = default
             from gone where session.workspace_id = gone.workspace_id and session.id = gone.id",
        )
        .bind(&workspaces)
        .bind(&sessions)
        .execute(&mut *tx)
        .await
        .map_err(failed("mark sessions erased"))?;
        let deletions: Vec<Uuid> = sqlx::query_scalar(
            "with erased as (
                 update deletion_session d set erased_at = now() from unnest($1::uuid[], $2::uuid[]) as e (w, s)
                 where d.workspace_id = e.w and d.session_id = e.s and d.erased_at is null returning d.deletion_id
             ) select distinct deletion_id from erased order by deletion_id",
        )
        .bind(&workspaces)
        .bind(&sessions)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("mark sessions' deletions erased"))?;
        for deletion in deletions {
            end_deletion(&mut tx, DeletionId(deletion)).await?;
        }
        tx.commit().await.map_err(failed("commit erasing"))
    }

    /// Tombstones of deletions that got their receipts longer ago than `kept_s` seconds before `now_s`, and before the index's own time:
    /// oldest first, `limit` deletions and sessions at most.
    pub async fn forgettable(&self, now_s: i64, kept_s: i64, limit: i64) -> Result<Forgettable, IndexError> {
        let deletions: Vec<Uuid> = sqlx::query_scalar(
            "select id from deletion where receipted_at is not null and has_tombstones
                 and receipted_at < least(now(), to_timestamp($1)) - make_interval(secs => $2)
             order by receipted_at limit $3",
        )
        .bind(now_s as f64)
        .bind(kept_s as f64)
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("find deletions of long ago"))?;
        let rows = sqlx::query(
            // Along the primary key, however many one of them has.
            "select d.workspace_id, d.session_id from unnest($1::uuid[]) as old (id) cross join lateral (
                 select workspace_id, session_id from deletion_session
                 where deletion_id = old.id order by workspace_id, session_id limit $2
             ) d limit $2",
        )
        .bind(&deletions)
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("find tombstones of long ago"))?;
        Ok(Forgettable {
            deletions: deletions.into_iter().map(DeletionId).collect(),
            sessions: rows.iter().map(session_key).collect(),
        })
    }

    /// Removes these tombstones; how many. Their deletions and receipts stay, and say how many sessions there were.
    pub async fn forget_tombstones(&self, forgettable: &Forgettable) -> Result<u64, IndexError> {
        let (workspaces, sessions) = key_arrays(forgettable.sessions.iter());
        let deletions: Vec<Uuid> = forgettable.deletions.iter().map(|deletion| deletion.0).collect();
        let mut tx = self.pool.begin().await.map_err(failed("begin forgetting"))?;
        sqlx::query(
            "with locked as (
                 select s.workspace_id, s.id from session s
                 join unnest($1::uuid[], $2::uuid[]) as d (workspace_id, id) using (workspace_id, id)
                 where s.state = 3 order by s.workspace_id, s.id for update of s
             )
             delete from session s using locked where s.workspace_id = locked.workspace_id and s.id = locked.id",
        )
        .bind(&workspaces)
        .bind(&sessions)
        .execute(&mut *tx)
        .await
        .map_err(failed("remove tombstones"))?;
        // Who does the same at once finds none left to count.
        let forgotten = sqlx::query(
            "with gone as (
                 delete from deletion_session d using unnest($1::uuid[], $2::uuid[]) as g (w, s)
                 where d.workspace_id = g.w and d.session_id = g.s returning d.deletion_id
             ), counted as (
                 select deletion_id, count(*) as sessions from gone group by deletion_id
             ), locked as (
                 select id, sessions from deletion join counted on deletion_id = id order by id for no key update of deletion
             )
             update deletion set forgotten = forgotten + locked.sessions from locked where deletion.id = locked.id
             returning locked.sessions",
        )
        .bind(&workspaces)
        .bind(&sessions)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("remove sessions of deletions"))?;
        sqlx::query(
            "with over as (
                 select id from deletion where id = any($1) and has_tombstones
                     and not exists (select from deletion_session where deletion_id = id)
                 order by id for no key update
             )
             update deletion set has_tombstones = false from over where deletion.id = over.id",
        )
        .bind(&deletions)
        .execute(&mut *tx)
        .await
        .map_err(failed("note deletions without tombstones"))?;
        tx.commit().await.map_err(failed("commit forgetting"))?;
        Ok(forgotten.iter().map(|row| unsigned(row.get("sessions"))).sum())
    }

    /// Removes marks of links that were made before the same time, `limit` of each kind at most; whether there may be more. No session that
    /// they are for can come any more, and whoever looks for one goes through all marks.
    pub async fn forget_marks(&self, now_s: i64, kept_s: i64, limit: i64) -> Result<bool, IndexError> {
        let mut is_more = false;
        for statement in [
            "update link set begun_before = null, deletion_id = null where (workspace_id, id) in (
                 select workspace_id, id from link where deletion_id is not null
                     and begun_before < least(now(), to_timestamp($1)) - make_interval(secs => $2)
                 order by workspace_id, id limit $3 for no key update skip locked)",
            "delete from link_mark where (workspace_id, link_id) in (
                 select workspace_id, link_id from link_mark
                 where begun_before < least(now(), to_timestamp($1)) - make_interval(secs => $2) limit $3)",
        ] {
            let gone = sqlx::query(statement)
                .bind(now_s as f64)
                .bind(kept_s as f64)
                .bind(limit)
                .execute(&self.pool)
                .await
                .map_err(failed("remove marks of links"))?;
            is_more |= gone.rows_affected() == limit.unsigned_abs();
        }
        Ok(is_more)
    }

    /// Condemns rows that were staged longer ago than any publishing takes. A publisher that still comes finds its row
    /// staged no more, and changes nothing.
    pub async fn condemn_stale(&self, stale: Duration) -> Result<u64, IndexError> {
        sqlx::query(
            // Rows that a publisher holds are its own: it is quicker than we are, and waiting could be in a circle.
            "with stale as (
                 select id from object where state = 0 and staged_at < now() - make_interval(secs => $1)
                 for update skip locked
             )
             update object set state = 2, condemned_at = now() from stale where object.id = stale.id",
        )
        .bind(stale.as_secs_f64())
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected())
        .map_err(failed("condemn stale objects"))
    }

    /// Condemned objects that no reader can still be reading (C3).
    pub async fn removable(&self, grace: Duration, limit: i64) -> Result<Vec<Removable>, IndexError> {
        let rows = sqlx::query(concat!(
            "select live_at is not null as was_live, ",
            object_columns!(),
            " from object where state = 2 and deleted_at is null
                 and condemned_at < now() - make_interval(secs => $1)
             order by condemned_at limit $2"
        ))
        .bind(grace.as_secs_f64())
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list removable objects"))?;
        rows.iter().map(removable).collect()
    }

    /// S3 said that these are deleted; their rows stay until a listing says so too.
    pub async fn mark_deleted(&self, ids: &[ObjectId]) -> Result<(), IndexError> {
        sqlx::query("update object set deleted_at = now() where id = any($1) and state = 2 and deleted_at is null")
            .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("mark objects deleted"))
    }

    /// Deleted objects whose absence can be verified: no attempt to put them can still land.
    pub async fn verifiable(&self, put_horizon: Duration, limit: i64) -> Result<Vec<Removable>, IndexError> {
        let rows = sqlx::query(concat!(
            "select live_at is not null as was_live, ",
            object_columns!(),
            " from object where state = 2 and deleted_at is not null
                 and (live_at is not null or staged_at < now() - make_interval(secs => $1))
             order by condemned_at limit $2"
        ))
        .bind(put_horizon.as_secs_f64())
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list deleted objects"))?;
        rows.iter().map(removable).collect()
    }

    /// An object was listed as absent: its row goes.
    pub async fn forget_objects(&self, ids: &[ObjectId]) -> Result<(), IndexError> {
        sqlx::query("delete from object where id = any($1) and state = 2 and deleted_at is not null")
            .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("forget objects"))
    }

    /// An object that was deleted is there again: a late put. It is deleted once more.
    pub async fn mark_undeleted(&self, id: ObjectId) -> Result<(), IndexError> {
        sqlx::query("update object set deleted_at = null where id = $1 and state = 2")
            .bind(id.0)
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("mark object undeleted"))
    }

    /// Which of these objects the index names.
    pub async fn named_among(&self, ids: &[ObjectId]) -> Result<Vec<ObjectId>, IndexError> {
        let rows = sqlx::query("select id from object where id = any($1)")
            .bind(ids.iter().map(|id| id.0).collect::<Vec<_>>())
            .fetch_all(&self.pool)
            .await
            .map_err(failed("ask for objects"))?;
        Ok(rows.iter().map(|row| ObjectId(row.get("id"))).collect())
    }
}

/// Partitions that records of these sessions came from.
async fn partitions_of(
    tx: &mut PgConnection,
    (workspaces, sessions): (&[Uuid], &[Uuid]),
) -> Result<BTreeMap<SessionKey, Vec<i32>>, IndexError> {
    let rows = sqlx::query(
        "select s.workspace_id, s.id as session_id, s.partitions from session s
         join unnest($1::uuid[], $2::uuid[]) as d (workspace_id, id) using (workspace_id, id)",
    )
    .bind(workspaces)
    .bind(sessions)
    .fetch_all(tx)
    .await
    .map_err(failed("find partitions of sessions"))?;
    Ok(rows.iter().map(|row| (session_key(row), row.get("partitions"))).collect())
}

fn removable(row: &PgRow) -> Result<Removable, IndexError> {
    Ok(Removable { key: object_key(row)?, was_live: row.get("was_live") })
}

/// A deletion, for whatever it is to get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Deletion {
    /// The deletion.
    pub(super) id: DeletionId,
    /// Whose.
    pub(super) workspace: WorkspaceId,
    /// Why.
    pub(super) cause: Cause,
}

/// The cause in this row.
pub(super) fn cause_of(row: &PgRow) -> Result<Cause, IndexError> {
    Cause::parse(row.get("cause")).ok_or(IndexError::Row("deletion"))
}

/// Sessions whose rows are locked.
pub(super) struct Standing {
    /// Those that are deleted already, with the deletions that they stand in.
    deletions: Vec<(DeletionId, SessionKey)>,
    /// Those that are not.
    pub(super) new: Vec<SessionKey>,
}

/// Locks sessions that are to be deleted. Unknown ones get a tombstone. One lock each, in id order (the order of all who lock
/// sessions), so that of two deletions at once the later one finds the first.
pub(super) async fn lock_or_tombstone(tx: &mut PgConnection, keys: &[SessionKey]) -> Result<Standing, IndexError> {
    let (workspaces, sessions) = key_arrays(keys.iter());
    sqlx::query(
        "insert into session (workspace_id, id, state, started_at, last_activity_at)
         select distinct workspace_id, id, 1, now(), now() from unnest($1::uuid[], $2::uuid[]) as d (workspace_id, id)
         order by workspace_id, id
         -- Nothing is changed, but what is there is locked, so that all locks are taken in one order.
         on conflict (workspace_id, id) do update set state = session.state where false",
    )
    .bind(&workspaces)
    .bind(&sessions)
    .execute(&mut *tx)
    .await
    .map_err(failed("insert tombstones"))?;
    let locked = lock_sessions(tx, keys).await?;
    let standing = sqlx::query(
        "select deletion_id, workspace_id, session_id from deletion_session
         where (workspace_id, session_id) in (select * from unnest($1::uuid[], $2::uuid[]))
         order by workspace_id, session_id",
    )
    .bind(&workspaces)
    .bind(&sessions)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed("find deletions"))?;
    let deletions: Vec<(DeletionId, SessionKey)> =
        standing.iter().map(|row| (DeletionId(row.get("deletion_id")), session_key(row))).collect();
    let known: BTreeSet<SessionKey> = deletions.iter().map(|(_, key)| *key).collect();
    let new = locked.iter().map(session_key).filter(|key| !known.contains(key)).collect();
    Ok(Standing { deletions, new })
}

/// Sessions and the deletions that they stand in.
struct Deleted {
    deletions: Vec<(DeletionId, SessionKey)>,
    /// How many of them were not deleted before.
    new: u64,
}

/// Deletes those of these sessions that are not deleted yet.
async fn delete_unless_deleted(
    tx: &mut PgConnection,
    cause: Cause,
    keys: &[SessionKey],
) -> Result<Deleted, IndexError> {
    let Standing { mut deletions, new } = lock_or_tombstone(tx, keys).await?;
    deletions.extend(begin_deletions(tx, cause, &new).await?.deletions);
    Ok(Deleted { deletions, new: new.len() as u64 })
}

/// All sessions of a deletion that looks for them have been found.
pub(super) async fn end_finding(tx: &mut PgConnection, deletion: DeletionId) -> Result<(), IndexError> {
    sqlx::query("update deletion set finding = false where id = $1 and finding")
        .bind(deletion.0)
        .execute(&mut *tx)
        .await
        .map_err(failed("end finding"))?;
    end_deletion(tx, deletion).await
}

/// Locks a deletion's row. What is asked in the next statement is as of then.
pub(super) async fn lock_deletion(tx: &mut PgConnection, deletion: DeletionId) -> Result<(), IndexError> {
    sqlx::query("select from deletion where id = $1 for update")
        .bind(deletion.0)
        .execute(&mut *tx)
        .await
        .map(drop)
        .map_err(failed("lock deletion"))
}

/// A deletion is erased when all its sessions are, and no more can come to it. Under its lock, and in a statement of its own: who adds
/// a session to it holds the lock too.
async fn end_deletion(tx: &mut PgConnection, deletion: DeletionId) -> Result<(), IndexError> {
    lock_deletion(tx, deletion).await?;
    sqlx::query(
        "update deletion set erased_at = now() where id = $1 and erased_at is null and not finding
             and not exists (select from deletion_session where deletion_id = $1 and erased_at is null)",
    )
    .bind(deletion.0)
    .execute(&mut *tx)
    .await
    .map(drop)
    .map_err(failed("mark deletion erased"))
}

/// Adds sessions whose rows are locked to deletions that they come too late for. Gives the rows written.
pub(super) async fn join_deletions(
    tx: &mut PgConnection,
    mut late: Vec<(DeletionId, SessionKey)>,
) -> Result<u64, IndexError> {
    late.sort_unstable();
    let mut rows = 0;
    for of_deletion in late.chunk_by(|one, other| (one.0, one.1.workspace) == (other.0, other.1.workspace)) {
        if let Some((deletion, first)) = of_deletion.first() {
            let keys: Vec<SessionKey> = of_deletion.iter().map(|(_, key)| *key).collect();
            rows += join_deletion(tx, *deletion, first.workspace, &keys).await?;
        }
    }
    Ok(rows)
}

/// Adds sessions whose rows are locked to a deletion, or to a new one like it when that is over: what was said of it stays true.
/// Gives the rows written.
pub(super) async fn join_deletion(
    tx: &mut PgConnection,
    deletion: DeletionId,
    workspace: WorkspaceId,
    keys: &[SessionKey],
) -> Result<u64, IndexError> {
    if keys.is_empty() {
        return Ok(0);
    }
    let row = sqlx::query("select cause, erased_at is null as is_open from deletion where id = $1 for update")
        .bind(deletion.0)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed("lock deletion"))?;
    if row.get("is_open") {
        return add_to_deletion(tx, deletion, workspace, keys).await;
    }
    Ok(begin_deletions(tx, cause_of(&row)?, keys).await?.rows)
}

/// Deletions that have begun.
#[derive(Default)]
pub(super) struct Begun {
    /// The sessions, with the deletions that they stand in.
    deletions: Vec<(DeletionId, SessionKey)>,
    /// Rows that this wrote.
    pub(super) rows: u64,
}

/// Begins a deletion in each workspace of these sessions, whose rows are locked, and which are in order.
pub(super) async fn begin_deletions(
    tx: &mut PgConnection,
    cause: Cause,
    keys: &[SessionKey],
) -> Result<Begun, IndexError> {
    let mut begun = Begun::default();
    for of_workspace in keys.chunk_by(|one, other| one.workspace == other.workspace) {
        if let Some(first) = of_workspace.first() {
            let deletion = DeletionId(Uuid::now_v7());
            insert_deletion(tx, Deletion { id: deletion, workspace: first.workspace, cause }, false).await?;
            begun.rows += 1 + add_to_deletion(tx, deletion, first.workspace, of_workspace).await?;
            begun.deletions.extend(of_workspace.iter().map(|key| (deletion, *key)));
        }
    }
    Ok(begun)
}

pub(super) async fn insert_deletion(
    tx: &mut PgConnection,
    deletion: Deletion,
    finding: bool,
) -> Result<(), IndexError> {
    sqlx::query("insert into deletion (id, workspace_id, cause, finding) values ($1, $2, $3, $4)")
        .bind(deletion.id.0)
        .bind(deletion.workspace.0)
        .bind(deletion.cause.as_str())
        .bind(finding)
        .execute(&mut *tx)
        .await
        .map(drop)
        .map_err(failed("insert deletion"))
}

/// Tombstones sessions whose rows are locked, as some of a deletion. Everybody is told of it by the outbox. Gives the rows written.
async fn add_to_deletion(
    tx: &mut PgConnection,
    deletion: DeletionId,
    workspace: WorkspaceId,
    keys: &[SessionKey],
) -> Result<u64, IndexError> {
    let sessions: Vec<Uuid> = keys.iter().map(|key| key.session.0).collect();
    sqlx::query(
        "insert into deletion_session (deletion_id, workspace_id, session_id)
         select $1, $2, id from unnest($3::uuid[]) as s (id)",
    )
    .bind(deletion.0)
    .bind(workspace.0)
    .bind(&sessions)
    .execute(&mut *tx)
    .await
    .map_err(failed("insert deletion's sessions"))?;
    // Pages stand in clear in the row: they go with the readers' right to them, and do not wait for the bytes.
    let tombstoned = sqlx::query(
        "update session set state = 1, urls = default where workspace_id = $1 and id = any($2) and state = 0",
    )
    .bind(workspace.0)
    .bind(&sessions)
    .execute(&mut *tx)
    .await
    .map_err(failed("tombstone sessions"))?;
    end_exports_of(tx, workspace, &sessions).await?;
    let now = now_ms();
    let told: Vec<_> = keys.iter().map(|key| outbox::telling(&Entry::deletion(*key, now))).collect();
    outbox::insert(tx, &told).await?;
    // Of each session a row of the deletion and one of the outbox.
    Ok(2 * keys.len() as u64 + tombstoned.rows_affected())
}
