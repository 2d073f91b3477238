//! What the first row of a session brings with it: its link's count, the day's count, and its end when it must not be.
//!
//! Edges hold links and workspaces to their limits as far as they know of what other edges did; here, under the lock of the
//! link, it is decided. A session beyond its link's `max_sessions`, of a link that was revoked before it began, or begun before all
//! sessions of its link's reference were deleted, gets its row and is deleted by the same transaction: nobody ever reads it, its
//! bytes are not kept, and what was stored of it is purged like that of any other deletion.

use std::collections::{BTreeMap, BTreeSet};

use schemas::control::{Entry, LinkUse};
use schemas::deletion::Cause;
use schemas::limits::{CONTROL_DELETION_KEPT_S, EXHAUSTION_SESSIONS_MAX};
use schemas::plan::Plan;
use schemas::{DeletionId, LinkId, SessionId, SessionKey, WorkspaceId};
use service_kit::time::now_ms;
use sqlx::{PgConnection, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::batches::FirstSight;
use super::deletions::{begin_deletions, join_deletions};
use super::workspaces::tell_rules_again;
use super::{IndexError, failed, key_arrays, moment, outbox, session_key, unsigned};

/// Edges are told how far a link is used when it may begin this many sessions more, or a quarter of all, whichever is less.
const REMAINING_TOLD_MAX: u32 = 16;

/// A link, locked.
#[derive(Debug, Clone, Copy)]
struct Link {
    sessions: u32,
    max_sessions: u32,
    revoked_at: Option<OffsetDateTime>,
    expires_at: OffsetDateTime,
    /// Whether some of its sessions are deleted.
    mark: Option<Mark>,
}

type LinkKey = (WorkspaceId, LinkId);

/// Sessions that began no later are deleted, by whom.
type Mark = (OffsetDateTime, DeletionId);

/// Links of new sessions, locked.
#[derive(Debug, Default)]
struct Links {
    /// Those that have rows.
    known: BTreeMap<LinkKey, Link>,
    /// Of the others those that are marked all the same: the index is one of a backup that is older than they are.
    marked: BTreeMap<LinkKey, Mark>,
}

/// Inserts first rows of sessions. Gives the rows written.
pub(super) async fn insert(
    tx: &mut PgConnection,
    partition: i32,
    first_seen: &[FirstSight],
) -> Result<u64, IndexError> {
    if first_seen.is_empty() {
        return Ok(0);
    }
    let mut links = lock_links(tx, first_seen).await?;
    let (mut rows, new) = insert_rows(tx, partition, first_seen).await?;
    let mut arrived: Vec<&FirstSight> = first_seen.iter().filter(|sight| new.contains(&sight.key)).collect();
    if arrived.is_empty() {
        return Ok(rows);
    }
    arrived.sort_unstable_by_key(|sight| (sight.appended_ms, sight.key));
    let judged = judge(&mut links, &arrived);
    rows += count_in_links(tx, &links.known, &judged.counted).await?;
    for (cause, keys) in [(Cause::Exhausted, judged.over), (Cause::Revoked, judged.revoked)] {
        // The rows are this transaction's own, so they are locked.
        rows += begin_deletions(tx, cause, &keys).await?.rows;
    }
    rows += join_deletions(tx, judged.deleted).await?;
    rows += tell_exhaustion(tx, &links.known, &judged.touched).await?;
    rows += count_in_days(tx, &judged.admitted).await?;
    Ok(rows)
}

async fn lock_links(tx: &mut PgConnection, first_seen: &[FirstSight]) -> Result<Links, IndexError> {
    let (workspaces, _) = key_arrays(first_seen.iter().map(|sight| &sight.key));
    let rows = sqlx::query(
        "select workspace_id, id, sessions, max_sessions, revoked_at, expires_at, begun_before, deletion_id
         from link join (select distinct * from unnest($1::uuid[], $2::uuid[]) as w (workspace_id, id)) wanted
             using (workspace_id, id)
         order by workspace_id, id for no key update of link",
    )
    .bind(&workspaces)
    .bind(first_seen.iter().map(|sight| sight.consent.link.0).collect::<Vec<_>>())
    .fetch_all(&mut *tx)
    .await
    .map_err(failed("lock links"))?;
    let link = |row: &sqlx::postgres::PgRow| {
        let key = (WorkspaceId(row.get("workspace_id")), LinkId(row.get("id")));
        let link = Link {
            sessions: row.get::<i32, _>("sessions").unsigned_abs(),
            max_sessions: row.get::<i32, _>("max_sessions").unsigned_abs(),
            revoked_at: row.get("revoked_at"),
            expires_at: row.get("expires_at"),
            mark: Option::zip(row.get("begun_before"), row.get::<Option<Uuid>, _>("deletion_id").map(DeletionId)),
        };
        (key, link)
    };
    let known: BTreeMap<LinkKey, Link> = rows.iter().map(link).collect();
    let of_sight = |sight: &FirstSight| (sight.key.workspace, sight.consent.link);
    let unknown: BTreeSet<LinkKey> = first_seen.iter().map(of_sight).filter(|link| !known.contains_key(link)).collect();
    let marked = if unknown.is_empty() { BTreeMap::new() } else { lock_marks(tx, &unknown).await? };
    Ok(Links { known, marked })
}

/// Marks of links that have no row, which could be locked: until this transaction ends nobody makes one.
async fn lock_marks(tx: &mut PgConnection, unknown: &BTreeSet<LinkKey>) -> Result<BTreeMap<LinkKey, Mark>, IndexError> {
    sqlx::query("lock table link_mark in share mode").execute(&mut *tx).await.map_err(failed("lock marks of links"))?;
    let (workspaces, links) = link_arrays(unknown.iter());
    let rows = sqlx::query(
        "select workspace_id, link_id, begun_before, deletion_id from link_mark
         where (workspace_id, link_id) in (select * from unnest($1::uuid[], $2::uuid[]))",
    )
    .bind(&workspaces)
    .bind(&links)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed("find marks of links"))?;
    let mark = |row: &sqlx::postgres::PgRow| {
        let key = (WorkspaceId(row.get("workspace_id")), LinkId(row.get("link_id")));
        (key, (row.get("begun_before"), DeletionId(row.get("deletion_id"))))
    };
    Ok(rows.iter().map(mark).collect())
}

/// The rows written, and the sessions that had none before.
async fn insert_rows(
    tx: &mut PgConnection,
    partition: i32,
    first_seen: &[FirstSight],
) -> Result<(u64, BTreeSet<SessionKey>), IndexError> {
    let (workspaces, sessions) = key_arrays(first_seen.iter().map(|sight| &sight.key));
    let inserted = sqlx::query(
        "with arrived as (
             select * from unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[], $5::timestamptz[], $6::uuid[],
                 $7::timestamptz[])
                 as a (workspace_id, id, link_id, notice_version, consented_at, receipt_id, appended_at)
             order by workspace_id, id
         )
         insert into session (workspace_id, id, link_id, notice_version, consented_at, receipt_id, started_at,
             last_activity_at, partitions)
         select workspace_id, id, link_id, notice_version, consented_at, receipt_id, appended_at, appended_at,
             array[$8::integer]
         from arrived
         on conflict (workspace_id, id) do update set
             partitions = session.partitions || excluded.partitions,
             started_at = least(session.started_at, excluded.started_at)
         where not session.partitions @> excluded.partitions
         returning workspace_id, id as session_id, (xmax = 0) as is_new",
    )
    .bind(&workspaces)
    .bind(&sessions)
    .bind(first_seen.iter().map(|sight| sight.consent.link.0).collect::<Vec<_>>())
    .bind(first_seen.iter().map(|sight| sight.consent.notice_version.clone()).collect::<Vec<_>>())
    .bind(first_seen.iter().map(|sight| moment(sight.consent.consented_at_ms)).collect::<Vec<_>>())
    .bind(first_seen.iter().map(|sight| sight.consent.receipt.0).collect::<Vec<_>>())
    .bind(first_seen.iter().map(|sight| moment(sight.appended_ms)).collect::<Vec<_>>())
    .bind(partition)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed("insert sessions"))?;
    let new = inserted.iter().filter(|row| row.get("is_new")).map(session_key).collect();
    Ok((inserted.len() as u64, new))
}

/// What becomes of new sessions.
#[derive(Debug, Default)]
struct Judged {
    /// They may be: their keys, and append times in milliseconds.
    admitted: Vec<(SessionKey, u64)>,
    /// Their link had begun all that it may. In key order.
    over: Vec<SessionKey>,
    /// They began after their link was revoked. In key order.
    revoked: Vec<SessionKey>,
    /// They were admitted, and are deleted with all others of their reference.
    deleted: Vec<(DeletionId, SessionKey)>,
    /// Known links of new sessions.
    touched: BTreeSet<LinkKey>,
    /// Links that count more sessions than before.
    counted: BTreeSet<LinkKey>,
}

/// Admits new sessions, in the order in which they came, as far as their links go, and counts them. Those whose link is not known
/// have nobody to hold them to anything but a mark.
fn judge(links: &mut Links, arrived: &[&FirstSight]) -> Judged {
    let mut judged = Judged::default();
    for sight in arrived {
        let link_key = (sight.key.workspace, sight.consent.link);
        // Of an edge's clock and the log's the one that says less: neither can make an old session look new.
        let began = moment(sight.consent.consented_at_ms.min(sight.appended_ms));
        let mut mark = links.marked.get(&link_key).copied();
        if let Some(link) = links.known.get_mut(&link_key) {
            judged.touched.insert(link_key);
            if link.revoked_at.is_some_and(|revoked_at| began > revoked_at) {
                judged.revoked.push(sight.key);
                continue;
            }
            if link.sessions >= link.max_sessions {
                judged.over.push(sight.key);
                continue;
            }
            link.sessions += 1;
            judged.counted.insert(link_key);
            mark = link.mark;
        }
        if let Some((_, deletion)) = mark.filter(|(before, _)| began <= *before) {
            judged.deleted.push((deletion, sight.key));
        }
        judged.admitted.push((sight.key, sight.appended_ms));
    }
    judged.over.sort_unstable();
    judged.revoked.sort_unstable();
    judged
}

fn link_arrays<'a>(keys: impl Iterator<Item = &'a LinkKey>) -> (Vec<Uuid>, Vec<Uuid>) {
    keys.map(|(workspace, link)| (workspace.0, link.0)).unzip()
}

async fn count_in_links(
    tx: &mut PgConnection,
    links: &BTreeMap<LinkKey, Link>,
    counted: &BTreeSet<LinkKey>,
) -> Result<u64, IndexError> {
    if counted.is_empty() {
        return Ok(0);
    }
    let (workspaces, ids) = link_arrays(counted.iter());
    let sessions: Vec<i32> =
        counted.iter().filter_map(|key| links.get(key)).map(|link| link.sessions.cast_signed()).collect();
    sqlx::query(
        "update link set sessions = counted.sessions
         from unnest($1::uuid[], $2::uuid[], $3::integer[]) as counted (workspace_id, id, sessions)
         where link.workspace_id = counted.workspace_id and link.id = counted.id",
    )
    .bind(&workspaces)
    .bind(&ids)
    .bind(&sessions)
    .execute(&mut *tx)
    .await
    .map(|updated| updated.rows_affected())
    .map_err(failed("count sessions of links"))
}

impl Link {
    fn is_nearly_exhausted(&self) -> bool {
        self.max_sessions.saturating_sub(self.sessions) <= (self.max_sessions / 4).min(REMAINING_TOLD_MAX)
    }
}

/// Tells edges of links that have begun nearly all that they may, or were asked for more.
async fn tell_exhaustion(
    tx: &mut PgConnection,
    links: &BTreeMap<LinkKey, Link>,
    touched: &BTreeSet<LinkKey>,
) -> Result<u64, IndexError> {
    let told: Vec<(&LinkKey, &Link)> = touched
        .iter()
        .filter_map(|key| links.get_key_value(key))
        .filter(|(_, link)| link.is_nearly_exhausted())
        .collect();
    if told.is_empty() {
        return Ok(0);
    }
    let (workspaces, ids) = link_arrays(told.iter().map(|(key, _)| *key));
    let rows = sqlx::query(
        "select l.workspace_id, l.id as link_id, newest.id as session_id
         from unnest($1::uuid[], $2::uuid[]) as l (workspace_id, id)
         cross join lateral (
             select s.id, s.started_at from session s
             where s.workspace_id = l.workspace_id and s.link_id = l.id
                 -- Those deleted since count as well, but not those that were never let in.
                 and not exists (
                     select from deletion_session e join deletion d on d.id = e.deletion_id
                     where e.workspace_id = s.workspace_id and e.session_id = s.id
                         and d.cause in ('exhausted', 'revoked'))
             order by s.started_at desc, s.id desc limit $3
         ) newest
         order by newest.started_at desc, newest.id desc",
    )
    .bind(&workspaces)
    .bind(&ids)
    .bind(EXHAUSTION_SESSIONS_MAX as i64)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed("find newest sessions of links"))?;
    let mut newest: BTreeMap<LinkKey, Vec<SessionId>> = BTreeMap::new();
    for row in &rows {
        let key = (WorkspaceId(row.get("workspace_id")), LinkId(row.get("link_id")));
        newest.entry(key).or_default().push(SessionId(row.get("session_id")));
    }
    let records: Vec<_> = told
        .iter()
        .map(|(key, link)| {
            let used = LinkUse { sessions: link.sessions, newest: newest.remove(key).unwrap_or_default() };
            outbox::telling(&Entry::exhaustion(key.0, key.1, used, link.expires_at))
        })
        .collect();
    outbox::insert(tx, &records).await?;
    Ok(records.len() as u64)
}

/// Tells edges again of deletions that some of them may have forgotten: a session that was deleted so long ago and still sends was
/// asked for anew, with a link that is good still. Gives the rows written.
pub(super) async fn tell_deleted_again(tx: &mut PgConnection, deleted: &[SessionKey]) -> Result<u64, IndexError> {
    if deleted.is_empty() {
        return Ok(0);
    }
    let (workspaces, sessions) = key_arrays(deleted.iter());
    let rows = sqlx::query(
        "select distinct e.workspace_id, e.session_id from deletion_session e join deletion d on d.id = e.deletion_id
         where (e.workspace_id, e.session_id) in (select * from unnest($1::uuid[], $2::uuid[]))
             and d.requested_at < now() - make_interval(secs => $3)",
    )
    .bind(&workspaces)
    .bind(&sessions)
    .bind(CONTROL_DELETION_KEPT_S as f64 / 2.0)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed("find deletions that edges may have forgotten"))?;
    let now = now_ms();
    let told: Vec<_> = rows.iter().map(|row| outbox::telling(&Entry::deletion(session_key(row), now))).collect();
    outbox::insert(tx, &told).await?;
    Ok(told.len() as u64)
}

/// Counts sessions in the days in which they came, and closes workspaces whose plan allows no more today.
async fn count_in_days(tx: &mut PgConnection, admitted: &[(SessionKey, u64)]) -> Result<u64, IndexError> {
    if admitted.is_empty() {
        return Ok(0);
    }
    let counted = sqlx::query(
        "with counted as (
             insert into workspace_day (workspace_id, day, sessions)
             select workspace_id, (appended_at at time zone 'utc')::date, count(*)
             from unnest($1::uuid[], $2::timestamptz[]) as a (workspace_id, appended_at)
             group by 1, 2 order by 1, 2
             on conflict (workspace_id, day) do update set sessions = workspace_day.sessions + excluded.sessions
             returning workspace_id, day, sessions
         )
         select c.workspace_id, c.sessions, c.day = (now() at time zone 'utc')::date as is_today, w.plan
         from counted c left join workspace w on w.id = c.workspace_id order by 1",
    )
    .bind(admitted.iter().map(|(key, _)| key.workspace.0).collect::<Vec<_>>())
    .bind(admitted.iter().map(|(_, appended_ms)| moment(*appended_ms)).collect::<Vec<_>>())
    .fetch_all(&mut *tx)
    .await
    .map_err(failed("count sessions of days"))?;
    let mut rows = counted.len() as u64;
    for row in counted.iter().filter(|row| row.get("is_today")) {
        let Some(plan) = row.get::<Option<&str>, _>("plan") else { continue };
        let plan = Plan::parse(plan).ok_or(IndexError::Row("workspace"))?;
        if unsigned(row.get("sessions")) >= plan.limits().sessions_per_day {
            rows += close_for_today(tx, WorkspaceId(row.get("workspace_id")), plan).await?;
        }
    }
    Ok(rows)
}

/// Has no session of this workspace begin until midnight, UTC, and tells its edges so: once.
/// Not when its plan is another by now than the one whose limit was reached.
async fn close_for_today(tx: &mut PgConnection, workspace: WorkspaceId, plan: Plan) -> Result<u64, IndexError> {
    let closed = sqlx::query(
        "update workspace set full_until = m.midnight
         from (select (date_trunc('day', now() at time zone 'utc') + interval '1 day') at time zone 'utc' as midnight) m
         where id = $1 and plan = $2 and (full_until is null or full_until < m.midnight)",
    )
    .bind(workspace.0)
    .bind(plan.as_str())
    .execute(&mut *tx)
    .await
    .map_err(failed("close workspace for today"))?;
    if closed.rows_affected() == 0 {
        return Ok(0);
    }
    // Batchers do not wait for what an index of a backup has to learn.
    tell_rules_again(tx, workspace).await?;
    // The workspace twice, and the outbox.
    Ok(closed.rows_affected() + 2)
}
