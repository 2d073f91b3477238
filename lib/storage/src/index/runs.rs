//! What a compactor asks of the index: runs, parts, publishing.

use std::time::Duration;

use engine::compaction::Standing;
use schemas::limits::SESSION_URLS_MAX;
use schemas::shared_object::SessionFilter;
use schemas::{ObjectId, SessionKey};
use serde::Serialize;
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use super::batches::{deleted_among, make_live_from};
use super::sessions::lock_sessions;
use super::{
    Index, IndexError, KIND_QUARANTINE, KIND_SESSION, LiveObject, Uploaded, failed, key_arrays, live_object,
    object_columns, session_key, signed,
};

/// A live shared object, as the chooser of runs sees it.
#[derive(Debug, Clone, Copy)]
pub struct SharedRow {
    /// The partition.
    pub partition: i32,
    /// The object.
    pub id: ObjectId,
    /// Its bytes.
    pub bytes: u64,
    /// How long it has been live.
    pub age: Duration,
    /// Whether a compactor has it.
    pub leased: bool,
}

/// A session that an object was staged for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Staged {
    /// The session.
    pub key: SessionKey,
    /// Whether it has live objects already.
    pub has_parts: bool,
}

/// What a session's new object changes in its row.
#[derive(Debug, Clone)]
pub struct SessionResult {
    /// The session.
    pub key: SessionKey,
    /// The object, staged and uploaded.
    pub object: Uploaded,
    /// Live objects of the session that it replaces.
    pub replaces: Vec<ObjectId>,
    /// What is in it.
    pub totals: engine::merge::Totals,
    /// Whether every stream in it has its end mark.
    pub ended: bool,
}

/// What of a run goes into quarantine: a session's chunks that cannot be merged, or what is nobody's.
#[derive(Debug, Clone)]
pub struct SetAside {
    /// The object, staged and uploaded.
    pub object: Uploaded,
    /// Whose chunks they are.
    pub session: Option<SessionKey>,
    /// Shared objects of the run that lie in it whole.
    pub whole: Vec<ObjectId>,
}

/// How a swap went.
#[derive(Debug)]
pub enum SwapOutcome {
    /// It committed.
    Committed,
    /// What was to be replaced is not what it was, or a staged row is gone: nothing was changed.
    Lost,
    /// It failed before the commit was sent.
    Failed(IndexError),
    /// The commit was sent and its answer is not known.
    Unknown(IndexError),
}

impl Index {
    /// Live shared objects of a topic, by partition and offset.
    pub async fn shared_objects(&self, topic: &str) -> Result<Vec<SharedRow>, IndexError> {
        let rows = sqlx::query(
            "select id, partition, bytes, coalesce(lease_until > now(), false) as leased,
                 greatest(extract(epoch from now() - live_at), 0)::float8 as age
             from object where kind = 0 and state = 1 and topic = $1 order by partition, offset_first",
        )
        .bind(topic)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list shared objects"))?;
        Ok(rows
            .iter()
            .map(|row| SharedRow {
                partition: row.get("partition"),
                id: ObjectId(row.get("id")),
                bytes: super::unsigned(row.get("bytes")),
                age: Duration::from_secs_f64(row.get("age")),
                leased: row.get("leased"),
            })
            .collect())
    }

    /// The newest live shared objects but for these.
    pub async fn newest_shared_but(&self, but: &[ObjectId], limit: i64) -> Result<Vec<LiveObject>, IndexError> {
        let rows = sqlx::query(concat!(
            "select ",
            object_columns!(),
            " from object where kind = 0 and state = 1 and id <> all($1) order by id desc limit $2"
        ))
        .bind(but.iter().map(|id| id.0).collect::<Vec<_>>())
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("find other shared objects"))?;
        rows.iter().map(live_object).collect()
    }

    /// Claims a run, or the parts of a session, for `lease`; `None` when somebody else was faster.
    pub async fn claim_run(
        &self,
        run: &[ObjectId],
        owner: Uuid,
        lease: Duration,
    ) -> Result<Option<Vec<LiveObject>>, IndexError> {
        let ids: Vec<Uuid> = run.iter().map(|id| id.0).collect();
        let mut tx = self.pool.begin().await.map_err(failed("begin claim"))?;
        let rows = sqlx::query(concat!(
            "with free as (
                 select id from object
                 where id = any($1) and state = 1 and (coalesce(lease_until <= now(), true) or lease_owner = $2)
                 order by id for update skip locked
             )
             update object set lease_owner = $2, lease_until = now() + make_interval(secs => $3)
             from free where object.id = free.id returning ",
            object_columns!()
        ))
        .bind(&ids)
        .bind(owner)
        .bind(lease.as_secs_f64())
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("claim run"))?;
        if rows.len() != run.len() {
            tx.rollback().await.map_err(failed("give back claim"))?;
            return Ok(None);
        }
        tx.commit().await.map_err(failed("commit claim"))?;
        let mut objects = rows.iter().map(live_object).collect::<Result<Vec<_>, _>>()?;
        // In the order in which the run was chosen, which is that of the log.
        objects.sort_by_key(|object| run.iter().position(|id| *id == object.key.id()));
        Ok(Some(objects))
    }

    /// Has a claim last for `lease` from now on, and what is staged for it count as new; `false` when the claim is not this owner's
    /// any more.
    pub async fn extend_lease(
        &self,
        claimed: &[ObjectId],
        owner: Uuid,
        lease: Duration,
        staged: &[ObjectId],
    ) -> Result<bool, IndexError> {
        let ids: Vec<Uuid> = claimed.iter().map(|id| id.0).collect();
        let extended = sqlx::query(
            // Rows that are being published are their transaction's: that has the claim's rows to lock as well.
            "with kept as (
                 select id from object where id = any($4) and state = 0 for update skip locked
             ), fresh as (
                 update object set staged_at = now() from kept where object.id = kept.id
             ), mine as (select id from object where id = any($1) order by id for update)
             update object set lease_until = now() + make_interval(secs => $3)
             from mine where object.id = mine.id and object.state = 1 and object.lease_owner = $2",
        )
        .bind(&ids)
        .bind(owner)
        .bind(lease.as_secs_f64())
        .bind(staged.iter().map(|id| id.0).collect::<Vec<_>>())
        .execute(&self.pool)
        .await
        .map_err(failed("extend lease"))?;
        Ok(extended.rows_affected() == ids.len() as u64)
    }

    /// Gives a claim back.
    pub async fn release_run(&self, run: &[ObjectId], owner: Uuid) -> Result<(), IndexError> {
        let ids: Vec<Uuid> = run.iter().map(|id| id.0).collect();
        sqlx::query("update object set lease_until = null, lease_owner = null where id = any($1) and lease_owner = $2")
            .bind(&ids)
            .bind(owner)
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("release run"))
    }

    /// Sessions among these that are deleted.
    pub async fn deleted_among(&self, keys: &[SessionKey]) -> Result<Vec<SessionKey>, IndexError> {
        deleted_among(&self.pool, keys).await
    }

    /// Stages session objects. A session's row is locked before an object of its own is staged: those that are deleted
    /// get none, and are left out of what is given back.
    pub async fn stage_session_objects(&self, objects: &[(SessionKey, ObjectId)]) -> Result<Vec<Staged>, IndexError> {
        let keys: Vec<SessionKey> = objects.iter().map(|(key, _)| *key).collect();
        let mut tx = self.pool.begin().await.map_err(failed("begin staging"))?;
        let live = lock_live_sessions(&mut tx, &keys).await?;
        let wanted: Vec<_> = objects.iter().filter(|(key, _)| live.binary_search(key).is_ok()).collect();
        let (workspaces, sessions) = key_arrays(wanted.iter().map(|(key, _)| key));
        let staged = sqlx::query(
            "insert into object (id, kind, workspace_id, session_id)
             select id, $4, workspace_id, session_id
             from unnest($1::uuid[], $2::uuid[], $3::uuid[]) as o (id, workspace_id, session_id)
             returning workspace_id, session_id, exists (select from object part where part.kind = 1 and part.state = 1
                 and part.workspace_id = object.workspace_id and part.session_id = object.session_id) as has_parts",
        )
        .bind(wanted.iter().map(|(_, id)| id.0).collect::<Vec<_>>())
        .bind(&workspaces)
        .bind(&sessions)
        .bind(KIND_SESSION)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("stage session objects"))?;
        tx.commit().await.map_err(failed("commit staging"))?;
        Ok(staged.iter().map(|row| Staged { key: session_key(row), has_parts: row.get("has_parts") }).collect())
    }

    /// Stages an object for what of a run cannot be merged: a session's chunks, or what is nobody's. `false` when the session was
    /// deleted meanwhile: it gets none.
    pub async fn stage_quarantine(
        &self,
        id: ObjectId,
        topic: &str,
        partition: i32,
        session: Option<&SessionKey>,
    ) -> Result<bool, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin staging"))?;
        if let Some(key) = session
            && lock_live_sessions(&mut tx, &[*key]).await?.is_empty()
        {
            return Ok(false);
        }
        sqlx::query(
            "insert into object (id, kind, topic, partition, workspace_id, session_id) values ($1, $2, $3, $4, $5, $6)",
        )
        .bind(id.0)
        .bind(KIND_QUARANTINE)
        .bind(topic)
        .bind(partition)
        .bind(session.map(|key| key.workspace.0))
        .bind(session.map(|key| key.session.0))
        .execute(&mut *tx)
        .await
        .map_err(failed("stage quarantine object"))?;
        tx.commit().await.map_err(failed("commit staging"))?;
        Ok(true)
    }

    /// Swaps a run for its results, in one transaction (C2). Sessions that were deleted meanwhile are left out; their staged objects
    /// are the collector's. One whose chunks were to go into quarantine is not, for that would keep them: the swap is lost.
    pub async fn publish_run(
        &self,
        run: &[ObjectId],
        owner: Uuid,
        results: &[SessionResult],
        quarantine: &[SetAside],
    ) -> SwapOutcome {
        self.swap(async |tx| swap_run(tx, run, owner, results, quarantine).await).await
    }

    async fn swap(&self, change: impl AsyncFnOnce(&mut PgConnection) -> Result<bool, IndexError>) -> SwapOutcome {
        let mut tx = match self.pool.begin().await {
            Ok(tx) => tx,
            Err(error) => return SwapOutcome::Failed(failed("begin swap")(error)),
        };
        match change(&mut tx).await {
            Ok(true) => {}
            Ok(false) => return SwapOutcome::Lost,
            Err(error) => return SwapOutcome::Failed(error),
        }
        match tx.commit().await {
            Ok(()) => SwapOutcome::Committed,
            // A refusal by the server is an answer; anything else leaves it open.
            Err(error @ sqlx::Error::Database(_)) => SwapOutcome::Failed(failed("commit swap")(error)),
            Err(error) => SwapOutcome::Unknown(failed("commit swap")(error)),
        }
    }

    /// What came of the swap of a run whose answer was lost. Locks the run's rows: the transaction may still be on its way,
    /// and this waits for its end. `results` are all objects that it would have made live.
    pub async fn look_up_run(
        &self,
        run: &[ObjectId],
        owner: Uuid,
        results: &[ObjectId],
    ) -> Result<Standing, IndexError> {
        let ids: Vec<Uuid> = run.iter().map(|id| id.0).collect();
        let mut tx = self.pool.begin().await.map_err(failed("begin look-up"))?;
        let rows = sqlx::query(
            "select state = 1 and lease_owner is not distinct from $2 as open from object where id = any($1)
             order by id for update",
        )
        .bind(&ids)
        .bind(owner)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("look up run"))?;
        let is_open = rows.len() == ids.len() && rows.iter().all(|row| row.get("open"));
        let standing = standing(&mut tx, results, is_open).await?;
        tx.rollback().await.map_err(failed("end look-up"))?;
        Ok(standing)
    }

    /// The same for the swap of a session's parts, under the session's lock.
    pub async fn look_up_final(
        &self,
        key: &SessionKey,
        result: ObjectId,
        parts: &[ObjectId],
    ) -> Result<Standing, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin look-up"))?;
        lock_live_sessions(&mut tx, &[*key]).await?;
        let live: i64 = sqlx::query_scalar("select count(*) from object where id = any($1) and state = 1")
            .bind(parts.iter().map(|id| id.0).collect::<Vec<_>>())
            .fetch_one(&mut *tx)
            .await
            .map_err(failed("look up parts"))?;
        let standing = standing(&mut tx, &[result], live == parts.len() as i64).await?;
        tx.rollback().await.map_err(failed("end look-up"))?;
        Ok(standing)
    }

    /// Sessions that are over, by end mark or silence, and not yet one object. Oldest activity first.
    pub async fn sessions_over(&self, silence: Duration, limit: i64) -> Result<Vec<SessionKey>, IndexError> {
        let rows = sqlx::query(
            "select workspace_id, id as session_id from session
             where state = 0 and not final
                 and (end_seen or last_activity_at < now() - make_interval(secs => $1))
                 and exists (select from object o
                     where o.kind = 1 and o.state = 1 and o.workspace_id = session.workspace_id
                         and o.session_id = session.id)
             order by last_activity_at limit $2",
        )
        .bind(silence.as_secs_f64())
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list sessions that are over"))?;
        Ok(rows.iter().map(session_key).collect())
    }

    /// Live objects of one session, in the order in which they were made.
    pub async fn session_objects(&self, key: &SessionKey) -> Result<Vec<LiveObject>, IndexError> {
        let rows = sqlx::query(concat!(
            "select ",
            object_columns!(),
            " from object where kind = 1 and state = 1 and workspace_id = $1 and session_id = $2 order by live_at, id"
        ))
        .bind(key.workspace.0)
        .bind(key.session.0)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list session objects"))?;
        rows.iter().map(live_object).collect()
    }

    /// Replaces a session's parts by one object, in one transaction. It is lost when something else happened to the session
    /// meanwhile.
    pub async fn publish_final(&self, result: &SessionResult) -> SwapOutcome {
        self.swap(async |tx| swap_parts(tx, result).await).await
    }

    /// Marks a session as final whose live objects are these, and stay as they are. `false` when they are others by now.
    pub async fn mark_final(&self, key: &SessionKey, objects: &[ObjectId]) -> Result<bool, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin marking"))?;
        // Under the session's lock, and in a statement of its own: one that waited for the lock would see the objects
        // as they were before.
        if lock_live_sessions(&mut tx, &[*key]).await?.is_empty() {
            return Ok(false);
        }
        let marked = sqlx::query(
            "update session set final = true where workspace_id = $1 and id = $2
                 and (select array_agg(o.id order by o.id) from object o where o.kind = 1 and o.state = 1
                     and o.workspace_id = $1 and o.session_id = $2)
                     = (select array_agg(id order by id) from unnest($3::uuid[]) as wanted (id))",
        )
        .bind(key.workspace.0)
        .bind(key.session.0)
        .bind(objects.iter().map(|id| id.0).collect::<Vec<_>>())
        .execute(&mut *tx)
        .await
        .map_err(failed("mark session final"))?;
        tx.commit().await.map_err(failed("commit marking"))?;
        Ok(marked.rows_affected() == 1)
    }
}

/// Locks sessions in id order; gives those that are live, in that order. Whatever makes data readable comes through here:
/// a tombstone that was committed before is seen, one that comes later waits (B8).
async fn lock_live_sessions(tx: &mut PgConnection, keys: &[SessionKey]) -> Result<Vec<SessionKey>, IndexError> {
    let rows = lock_sessions(tx, keys).await?;
    Ok(rows.iter().filter(|row| row.get::<i16, _>("state") == 0).map(session_key).collect())
}

/// Whether everything was as it had to be.
async fn swap_run(
    tx: &mut PgConnection,
    run: &[ObjectId],
    owner: Uuid,
    results: &[SessionResult],
    quarantine: &[SetAside],
) -> Result<bool, IndexError> {
    let ids: Vec<Uuid> = run.iter().map(|id| id.0).collect();
    let aside: Vec<SessionKey> = quarantine.iter().filter_map(|aside| aside.session).collect();
    if !aside.is_empty() {
        // All locks at once, in id order.
        let keys: Vec<SessionKey> = results.iter().map(|result| result.key).chain(aside.iter().copied()).collect();
        let live = lock_live_sessions(tx, &keys).await?;
        if aside.iter().any(|key| live.binary_search(key).is_err()) {
            return Ok(false);
        }
    }
    if !publish_results(tx, results, false).await? {
        return Ok(false);
    }
    for SetAside { object, session, whole } in quarantine {
        let sessions = SessionFilter::build(session.iter());
        if !make_live_from(tx, object, Some(sessions.as_bytes()), &ids).await? {
            return Ok(false);
        }
        keep_filters(tx, object.id, whole).await?;
    }
    let condemned = sqlx::query(
        "with mine as (select id from object where id = any($1) order by id for update)
         update object set state = 2, condemned_at = now(), lease_owner = null, lease_until = null
         from mine where object.id = mine.id and object.state = 1 and object.lease_owner = $2",
    )
    .bind(&ids)
    .bind(owner)
    .execute(&mut *tx)
    .await
    .map_err(failed("condemn run"))?;
    Ok(condemned.rows_affected() == ids.len() as u64)
}

/// A quarantine object may hold what these shared objects may have held.
async fn keep_filters(tx: &mut PgConnection, object: ObjectId, whole: &[ObjectId]) -> Result<(), IndexError> {
    if whole.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "update object set source_filters = (select array_agg(sessions_filter) from object s where s.id = any($2))
         where id = $1",
    )
    .bind(object.0)
    .bind(whole.iter().map(|id| id.0).collect::<Vec<_>>())
    .execute(&mut *tx)
    .await
    .map(drop)
    .map_err(failed("keep filters of damaged objects"))
}

async fn swap_parts(tx: &mut PgConnection, result: &SessionResult) -> Result<bool, IndexError> {
    // Under the session's lock: a part that a run added meanwhile would be left beside the one object.
    if lock_live_sessions(tx, &[result.key]).await?.is_empty() {
        return Ok(false);
    }
    let live =
        sqlx::query("select id from object where kind = 1 and state = 1 and workspace_id = $1 and session_id = $2")
            .bind(result.key.workspace.0)
            .bind(result.key.session.0)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed("list session's parts"))?;
    let all_replaced = live.iter().all(|row| result.replaces.contains(&ObjectId(row.get("id"))));
    Ok(all_replaced && publish_results(tx, std::slice::from_ref(result), true).await?)
}

/// What came of a swap, once it has ended: an object that was ever live was made so by it.
async fn standing(tx: &mut PgConnection, results: &[ObjectId], is_open: bool) -> Result<Standing, IndexError> {
    let made_live: bool =
        sqlx::query_scalar("select exists (select from object where id = any($1) and live_at is not null)")
            .bind(results.iter().map(|id| id.0).collect::<Vec<_>>())
            .fetch_one(&mut *tx)
            .await
            .map_err(failed("look up results"))?;
    Ok(match (made_live, is_open) {
        (true, _) => Standing::Committed,
        (false, true) => Standing::Open,
        (false, false) => Standing::Lost,
    })
}

async fn publish_results(tx: &mut PgConnection, results: &[SessionResult], is_final: bool) -> Result<bool, IndexError> {
    let keys: Vec<SessionKey> = results.iter().map(|result| result.key).collect();
    let live = lock_live_sessions(tx, &keys).await?;
    let results: Vec<&SessionResult> =
        results.iter().filter(|result| live.binary_search(&result.key).is_ok()).collect();
    let replaces: Vec<Uuid> = results.iter().flat_map(|result| &result.replaces).map(|id| id.0).collect();
    if !replaces.is_empty() {
        let condemned =
            sqlx::query("update object set state = 2, condemned_at = now() where id = any($1) and state = 1")
                .bind(&replaces)
                .execute(&mut *tx)
                .await
                .map_err(failed("condemn parts"))?;
        if condemned.rows_affected() != replaces.len() as u64 {
            return Ok(false);
        }
    }
    if !make_session_objects_live(tx, &results).await? {
        return Ok(false);
    }
    update_sessions(tx, &results, is_final).await?;
    order_parts(tx, &results).await?;
    Ok(true)
}

/// Turns staged rows live; `false` when one is staged no more.
async fn make_session_objects_live(tx: &mut PgConnection, results: &[&SessionResult]) -> Result<bool, IndexError> {
    let objects = || results.iter().map(|result| &result.object);
    let lens: Result<Vec<i32>, _> = objects().map(|object| i32::try_from(object.footer.len)).collect();
    let turned = sqlx::query(
        "update object set state = 1, bytes = o.bytes, sha256 = o.sha256, footer_at = o.footer_at,
             footer_len = o.footer_len, live_at = now(), quarantined = 0
         from unnest($1::uuid[], $2::bigint[], $3::bytea[], $4::bigint[], $5::integer[])
             as o (id, bytes, sha256, footer_at, footer_len)
         where object.id = o.id and object.state = 0",
    )
    .bind(objects().map(|object| object.id.0).collect::<Vec<_>>())
    .bind(objects().map(|object| signed(object.bytes)).collect::<Vec<_>>())
    .bind(objects().map(|object| object.sha256.to_vec()).collect::<Vec<_>>())
    .bind(objects().map(|object| signed(object.footer.at)).collect::<Vec<_>>())
    .bind(lens.map_err(|_| IndexError::Row("object"))?)
    .execute(&mut *tx)
    .await
    .map_err(failed("turn session objects live"))?;
    Ok(turned.rows_affected() == results.len() as u64)
}

/// Parts are read in the order in which they became live: what was merged first stays what readers see (C1). The clock alone does
/// not tell it, for it can go back, and a transaction that waited for the session's lock has the time at which it began.
async fn order_parts(tx: &mut PgConnection, results: &[&SessionResult]) -> Result<(), IndexError> {
    sqlx::query(
        "update object set live_at = before.at + interval '1 microsecond'
         from (
             select mine.id, max(other.live_at) as at
             from object mine join object other using (workspace_id, session_id)
             where mine.id = any($1) and mine.state = 1 and other.kind = 1 and other.state = 1 and other.id <> mine.id
             group by mine.id
         ) before
         where object.id = before.id and object.live_at <= before.at",
    )
    .bind(results.iter().map(|result| result.object.id.0).collect::<Vec<_>>())
    .execute(&mut *tx)
    .await
    .map(drop)
    .map_err(failed("order parts"))
}

/// The sums of sessions, as the statement that adds them up reads them.
#[derive(Serialize)]
struct Sums<'a> {
    workspace_id: Uuid,
    id: Uuid,
    events: i64,
    bytes_received: i64,
    bytes_stored: i64,
    pages: i64,
    errors: i64,
    ts_min: Option<i64>,
    ts_max: Option<i64>,
    counts: Vec<i64>,
    ended: bool,
    active_ms: i64,
    clicks: i64,
    keypresses: i64,
    failed_requests: i64,
    console: Vec<i64>,
    urls: &'a [String],
}

impl<'a> Sums<'a> {
    fn of(result: &'a SessionResult) -> Self {
        let totals = &result.totals;
        Self {
            workspace_id: result.key.workspace.0,
            id: result.key.session.0,
            events: signed(totals.events),
            bytes_received: signed(totals.raw_bytes),
            bytes_stored: signed(result.object.footer.at),
            pages: signed(totals.pages),
            errors: signed(totals.errors),
            ts_min: totals.span.map(|(min, _)| min),
            ts_max: totals.span.map(|(_, max)| max),
            counts: totals.counts.to_array().map(signed).to_vec(),
            ended: result.ended,
            active_ms: signed(totals.active_ms),
            clicks: signed(totals.clicks),
            keypresses: signed(totals.keypresses),
            failed_requests: signed(totals.failed_requests),
            console: totals.console.but_errors().map(signed).to_vec(),
            urls: &totals.urls,
        }
    }
}

/// The sums in sessions' rows: added up while parts come, exact once they are one. Whether the end was seen is what the
/// latest part says: a page that was left is no end of a session that goes on with the next one. One statement for a whole run: its
/// sessions are locked meanwhile.
async fn update_sessions(tx: &mut PgConnection, results: &[&SessionResult], is_final: bool) -> Result<(), IndexError> {
    let sums: Vec<Sums<'_>> = results.iter().map(|result| Sums::of(result)).collect();
    let sums = serde_json::to_string(&sums).map_err(|_| IndexError::Row("session"))?;
    sqlx::query(
        "update session s set
             events = case when $2 then 0 else s.events end + r.events,
             bytes_received = case when $2 then 0 else s.bytes_received end + r.bytes_received,
             bytes_stored = case when $2 then 0 else s.bytes_stored end + r.bytes_stored,
             pages = case when $2 then 0 else s.pages end + r.pages,
             errors = case when $2 then 0 else s.errors end + r.errors,
             ts_min = least(s.ts_min, r.ts_min), ts_max = greatest(s.ts_max, r.ts_max),
             counts = (select array_agg(case when $2 then 0 else coalesce(old, 0) end + new order by place)
                 from unnest(s.counts, r.counts) with ordinality as both_counts (old, new, place)),
             active_ms = case when $2 then 0 else s.active_ms end + r.active_ms,
             clicks = case when $2 then 0 else s.clicks end + r.clicks,
             keypresses = case when $2 then 0 else s.keypresses end + r.keypresses,
             failed_requests = case when $2 then 0 else s.failed_requests end + r.failed_requests,
             console = (select array_agg(case when $2 then 0 else coalesce(old, 0) end + new order by place)
                 from unnest(s.console, r.console) with ordinality as both_counts (old, new, place)),
             urls = (select coalesce(array_agg(url order by visit), '{}') from (
                 select url, min(place) as visit
                 from unnest(case when $2 then '{}' else s.urls end || r.urls) with ordinality as page (url, place)
                 group by url order by visit limit $3) visits),
             end_seen = r.ended,
             final = $2
         from jsonb_to_recordset($1::jsonb) as r (workspace_id uuid, id uuid, events bigint, bytes_received bigint,
             bytes_stored bigint, pages bigint, errors bigint, ts_min bigint, ts_max bigint, counts bigint[], ended boolean,
             active_ms bigint, clicks bigint, keypresses bigint, failed_requests bigint, console bigint[], urls text[])
         where s.workspace_id = r.workspace_id and s.id = r.id",
    )
    .bind(sums)
    .bind(is_final)
    .bind(SESSION_URLS_MAX as i64)
    .execute(&mut *tx)
    .await
    .map(drop)
    .map_err(failed("update sessions"))
}
