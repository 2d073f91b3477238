//! Exports: which there are, what of them stands, and how they end.
//!
//! A session is in `export_session` before any byte of it is in an archive: who deletes it finds it there, under its row's lock, and
//! ends the export in the same transaction; who includes it finds it deleted. Whoever makes an archive has a lease; each part becomes
//! live in a transaction that finds the export neither over nor taken. Sessions are locked before exports, by everybody.

use std::time::Duration;

use engine::retention::ExportFacts;
use schemas::http::{ExportEnd, ExportItem, ExportScope, ExportState, ReadWhat, ReceiptItem};
use schemas::paths::ObjectKey;
use schemas::{ApiKeyId, ExportId, ObjectId, SessionId, SessionKey, WorkspaceId};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::links::{Before, ReferenceFilter, links_of};
use super::receipts::receipt_item;
use super::{Index, IndexError, KIND_EXPORT, failed, signed, unsigned};

/// Ended exports are remembered for so long: longer than any backup of the key store gets old.
const REMEMBERED: &str = "30 days";

/// Rows of one transaction.
const ROWS_AT_ONCE: i64 = 10_000;
/// Readings that are noted at once.
const NOTED_AT_ONCE: i64 = 1_000;

/// What is to be exported.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// This session.
    Session(SessionId),
    /// All of these links, which a reference had when it was asked for.
    Links(Vec<Uuid>),
    /// All of the workspace that are not deleted before the export is.
    Workspace,
}

impl Wanted {
    /// What kind of export that is.
    pub fn scope(&self) -> ExportScope {
        match self {
            Self::Session(_) => ExportScope::Session,
            Self::Links(_) => ExportScope::Reference,
            Self::Workspace => ExportScope::Workspace,
        }
    }

    fn columns(&self) -> (Option<Uuid>, Option<&[Uuid]>) {
        match self {
            Self::Session(session) => (Some(session.0), None),
            Self::Links(links) => (None, Some(links)),
            Self::Workspace => (None, None),
        }
    }
}

/// An export whose archive somebody makes, and what of it stands.
#[derive(Debug, Clone)]
pub struct Building {
    /// The export.
    pub id: ExportId,
    /// Whose.
    pub workspace: WorkspaceId,
    /// What it is of.
    pub wanted: Wanted,
    /// Who asked.
    pub asked_by: ApiKeyId,
    /// When.
    pub requested_at: OffsetDateTime,
    /// When it is over.
    pub expires_at: OffsetDateTime,
    /// Whether its sessions were counted.
    pub is_counted: bool,
    /// Sessions up to this one, in the order of their ids, are in it.
    pub after: Option<SessionId>,
    /// How much that is.
    pub stands: Stands,
}

/// What of an archive stands, whatever happens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stands {
    /// Its parts.
    pub parts: u32,
    /// Sessions in them.
    pub sessions: u64,
    /// Events in them.
    pub events: u64,
    /// Their bytes, unsealed.
    pub bytes: u64,
}

/// A part that was uploaded.
#[derive(Debug, Clone, Copy)]
pub struct NewPart {
    /// The object.
    pub object: ObjectId,
    /// All its bytes.
    pub object_bytes: u64,
    /// Their hash.
    pub sha256: [u8; 32],
    /// Which part it is, from 1.
    pub number: u32,
    /// Bytes of the archive in it.
    pub bytes: u64,
}

/// What stands with a part behind which no session is cut.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    /// How much stands now.
    pub stands: Stands,
    /// Sessions that it has and the one before had not, with the hashes of their manifests, in the order of their ids.
    pub sessions: Vec<(SessionId, [u8; 32])>,
    /// Whether the archive is whole.
    pub is_last: bool,
}

/// A part of an archive that can be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Its object.
    pub key: ObjectKey,
    /// All bytes of it.
    pub object_bytes: u64,
    /// Bytes of the archive in it.
    pub bytes: u64,
}

/// An export that is over, and what is left of it.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// The export.
    pub id: ExportId,
    /// Whose.
    pub workspace: WorkspaceId,
    /// What is known.
    pub facts: ExportFacts,
}

/// Live sessions of an export's scope. `$1` is its workspace, `$2` its session, `$3` its links; `$4` is when it is over: sessions of
/// the workspace that are deleted by then would take it with them. `$5` is when it was asked for: what began later is not in it.
macro_rules! in_scope {
    () => {
        " from workspace w join session s on s.workspace_id = w.id where w.id = $1 and s.state = 0
             and ($2::uuid is null or s.id = $2) and ($3::uuid[] is null or s.link_id = any($3))
             and ($2::uuid is not null or $3::uuid[] is not null or s.started_at > $4 - clairvio.kept_for(w))
             and least(s.consented_at, s.started_at) <= $5 "
    };
}

fn wanted(row: &PgRow) -> Result<Wanted, IndexError> {
    match (scope(row)?, row.get::<Option<Uuid>, _>("session_id"), row.get::<Option<Vec<Uuid>>, _>("links")) {
        (ExportScope::Session, Some(session), _) => Ok(Wanted::Session(SessionId(session))),
        (ExportScope::Reference, _, Some(links)) => Ok(Wanted::Links(links)),
        (ExportScope::Workspace, ..) => Ok(Wanted::Workspace),
        _ => Err(IndexError::Row("export")),
    }
}

fn scope(row: &PgRow) -> Result<ExportScope, IndexError> {
    ExportScope::parse(row.get("scope")).ok_or(IndexError::Row("export"))
}

fn item(row: &PgRow) -> Result<ExportItem, IndexError> {
    let because: Option<&str> = row.get("ended_because");
    let ended_because = because.map(|word| ExportEnd::parse(word).ok_or(IndexError::Row("export"))).transpose()?;
    // It is over with its time, whether or not a worker has said so.
    let ended_because = ended_because.or(row.get::<bool, _>("is_past").then_some(ExportEnd::Expired));
    let moment = |column| row.get::<Option<OffsetDateTime>, _>(column);
    let state = match (ended_because, moment("gone_at"), moment("ready_at")) {
        (_, Some(_), _) => ExportState::Gone,
        (Some(_), ..) => ExportState::Ended,
        (None, None, Some(_)) => ExportState::Ready,
        (None, None, None) => ExportState::Building,
    };
    let count = |column| row.get::<Option<i64>, _>(column).map(unsigned);
    Ok(ExportItem {
        id: ExportId(row.get("id")),
        scope: scope(row)?,
        state,
        sessions: unsigned(row.get("sessions")),
        sessions_total: count("sessions_total"),
        sessions_left_out: count("sessions_left_out"),
        events: unsigned(row.get("events")),
        bytes: unsigned(row.get("bytes")),
        requested_at: row.get("requested_at"),
        ready_at: moment("ready_at"),
        expires_at: row.get("expires_at"),
        ended_because,
    })
}

impl Index {
    /// The links that a reference has now.
    pub async fn links_of(&self, workspace: WorkspaceId, reference: &ReferenceFilter) -> Result<Vec<Uuid>, IndexError> {
        let mut connection = self.pool.acquire().await.map_err(failed("find links of a reference"))?;
        links_of(&mut connection, workspace, reference, false).await
    }

    /// Asks for an export; none when the workspace has `most` that are not over. One of a session that is deleted before it is included
    /// has nothing.
    pub async fn ask_export(
        &self,
        workspace: WorkspaceId,
        of: &Wanted,
        asked_by: ApiKeyId,
        kept: Duration,
        most: u32,
    ) -> Result<Option<ExportItem>, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin export"))?;
        // One after the other, so that none is more than may be.
        sqlx::query("select from workspace where id = $1 for no key update")
            .bind(workspace.0)
            .execute(&mut *tx)
            .await
            .map_err(failed("lock workspace"))?;
        let (session, links) = of.columns();
        let row = sqlx::query(
            "insert into export (id, workspace_id, scope, session_id, links, asked_by, expires_at)
             select $1, $2, $3, $4, $5, $6, clairvio.clock() + make_interval(secs => $7)
             where (select count(*) from export where workspace_id = $2 and ended_at is null) < $8
                 -- Those that are on their way out are work as well.
                 and (select count(*) from export where workspace_id = $2 and gone_at is null) < 10 * $8
             returning *, false as is_past",
        )
        .bind(Uuid::now_v7())
        .bind(workspace.0)
        .bind(of.scope().as_str())
        .bind(session)
        .bind(links)
        .bind(asked_by.0)
        .bind(kept.as_secs_f64())
        .bind(i64::from(most))
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed("insert export"))?;
        tx.commit().await.map_err(failed("commit export"))?;
        row.as_ref().map(item).transpose()
    }

    /// An export of this workspace.
    pub async fn export(&self, workspace: WorkspaceId, id: ExportId) -> Result<Option<ExportItem>, IndexError> {
        let row = sqlx::query(
            "select *, expires_at <= clairvio.clock() as is_past from export where id = $1 and workspace_id = $2",
        )
        .bind(id.0)
        .bind(workspace.0)
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("find export"))?;
        row.as_ref().map(item).transpose()
    }

    /// Exports of a workspace, newest first.
    pub async fn exports(
        &self,
        workspace: WorkspaceId,
        before: Option<Before>,
        limit: u32,
    ) -> Result<Vec<ExportItem>, IndexError> {
        let rows = sqlx::query(
            "select *, expires_at <= clairvio.clock() as is_past from export where workspace_id = $1
                 and ($2::timestamptz is null or (requested_at, id) < ($2, $3))
             order by requested_at desc, id desc limit $4",
        )
        .bind(workspace.0)
        .bind(before.map(|before| before.at))
        .bind(before.map(|before| before.id))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list exports"))?;
        rows.iter().map(item).collect()
    }

    /// Ends an export of this workspace; `false` when there is none. One that is over stays what it is.
    pub async fn end_export(&self, workspace: WorkspaceId, id: ExportId) -> Result<bool, IndexError> {
        let ended = sqlx::query(
            "update export set ended_at = coalesce(ended_at, now()), ended_because = coalesce(ended_because, 'by_hand')
             where id = $1 and workspace_id = $2",
        )
        .bind(id.0)
        .bind(workspace.0)
        .execute(&self.pool)
        .await
        .map_err(failed("end export"))?;
        Ok(ended.rows_affected() == 1)
    }

    /// Whether an archive is whole and its export not over.
    pub async fn is_export_ready(&self, id: ExportId) -> Result<bool, IndexError> {
        sqlx::query_scalar(
            "select exists (select from export where id = $1 and ready_at is not null and ended_at is null
                 and expires_at > clairvio.clock())",
        )
        .bind(id.0)
        .fetch_one(&self.pool)
        .await
        .map_err(failed("ask for export"))
    }

    /// Takes an export whose archive is to be made, for `lease`: the one that was worked at least lately, so that a big one does not hold
    /// up the others. Parts of it that do not stand go.
    pub async fn take_export(&self, owner: Uuid, lease: Duration) -> Result<Option<Building>, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin taking an export"))?;
        let row = sqlx::query(
            "with free as (
                 select id from export where ready_at is null and ended_at is null
                     and (lease_until is null or lease_until < now())
                 order by worked_at nulls first, id limit 1 for update skip locked
             )
             update export e set lease_owner = $1, lease_until = now() + make_interval(secs => $2), worked_at = now()
             from free where e.id = free.id returning e.*",
        )
        .bind(owner)
        .bind(lease.as_secs_f64())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed("take export"))?;
        let Some(row) = row else { return Ok(None) };
        let building = Building {
            id: ExportId(row.get("id")),
            workspace: WorkspaceId(row.get("workspace_id")),
            wanted: wanted(&row)?,
            asked_by: ApiKeyId(row.get("asked_by")),
            requested_at: row.get("requested_at"),
            expires_at: row.get("expires_at"),
            is_counted: row.get::<Option<i64>, _>("sessions_total").is_some(),
            after: row.get::<Option<Uuid>, _>("after_session").map(SessionId),
            stands: Stands {
                parts: row.get::<i32, _>("parts").unsigned_abs(),
                sessions: unsigned(row.get("sessions")),
                events: unsigned(row.get("events")),
                bytes: unsigned(row.get("bytes")),
            },
        };
        // Of a session that somebody before was in the middle of.
        sqlx::query(
            "with cut as (delete from export_part where export_id = $1 and number > $2 returning object_id)
             update object set state = 2, condemned_at = now() from cut where object.id = cut.object_id and state < 2",
        )
        .bind(building.id.0)
        .bind(row.get::<i32, _>("parts"))
        .execute(&mut *tx)
        .await
        .map_err(failed("remove parts that do not stand"))?;
        tx.commit().await.map_err(failed("commit taking an export"))?;
        Ok(Some(building))
    }

    /// Lets go of an export, so that somebody goes on with it at once.
    pub async fn leave_export(&self, owner: Uuid, id: ExportId) -> Result<(), IndexError> {
        sqlx::query("update export set lease_owner = null, lease_until = null where id = $1 and lease_owner = $2")
            .bind(id.0)
            .bind(owner)
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("leave export"))
    }

    /// Takes exports from all who make them: they go on from what stands.
    pub async fn leave_exports(&self) -> Result<(), IndexError> {
        sqlx::query(
            "update export set lease_owner = null, lease_until = null where ready_at is null and ended_at is null",
        )
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("leave exports"))
    }

    /// Counts the sessions of an export, and those of the workspace that it leaves out.
    pub async fn count_exported(&self, building: &Building) -> Result<(), IndexError> {
        let (session, links) = building.wanted.columns();
        // Of millions of sessions it takes a while.
        let begin = "begin; set local statement_timeout = '10min'";
        let mut tx = self.pool.begin_with(begin).await.map_err(failed("begin counting"))?;
        sqlx::query(concat!(
            "update export e set (sessions_total, sessions_left_out) = (
                 select total.sessions, case when $2::uuid is null and $3::uuid[] is null then (
                     select count(*) from session s where s.workspace_id = $1 and s.state = 0
                         and least(s.consented_at, s.started_at) <= $5) - total.sessions else 0 end
                 from (select count(*) as sessions",
            in_scope!(),
            ") total) where e.id = $6"
        ))
        .bind(building.workspace.0)
        .bind(session)
        .bind(links)
        .bind(building.expires_at)
        .bind(building.requested_at)
        .bind(building.id.0)
        .execute(&mut *tx)
        .await
        .map_err(failed("count sessions to export"))?;
        tx.commit().await.map_err(failed("commit counting"))
    }

    /// Includes the next sessions behind `after`, in the order of their ids, `limit` at most, and notes that they are read by who
    /// asked; none when the export is over or another has it. An empty list means that it has all.
    pub async fn include_in_export(
        &self,
        owner: Uuid,
        lease: Duration,
        building: &Building,
        after: Option<SessionId>,
        limit: i64,
    ) -> Result<Option<Vec<SessionKey>>, IndexError> {
        let (session, links) = building.wanted.columns();
        let mut tx = self.pool.begin().await.map_err(failed("begin including"))?;
        let found: Vec<Uuid> = sqlx::query_scalar(concat!(
            "select s.id",
            in_scope!(),
            "and ($6::uuid is null or s.id > $6) order by s.id limit $7 for share of s"
        ))
        .bind(building.workspace.0)
        .bind(session)
        .bind(links)
        .bind(building.expires_at)
        .bind(building.requested_at)
        .bind(after.map(|session| session.0))
        .bind(limit)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("find sessions to export"))?;
        if !keep_export(&mut tx, owner, lease, building.id).await? {
            return Ok(None);
        }
        sqlx::query(
            "with new as (
                 insert into export_session (export_id, workspace_id, session_id)
                 select $1, $2, id from unnest($3::uuid[]) as s (id) on conflict do nothing returning session_id
             )
             insert into session_read (workspace_id, id, session_id, api_key_id, what)
             select $2, gen_random_uuid(), session_id, $4, $5 from new",
        )
        .bind(building.id.0)
        .bind(building.workspace.0)
        .bind(&found)
        .bind(building.asked_by.0)
        .bind(ReadWhat::Export.as_str())
        .execute(&mut *tx)
        .await
        .map_err(failed("include sessions"))?;
        tx.commit().await.map_err(failed("commit including"))?;
        let key = |session| SessionKey { workspace: building.workspace, session: SessionId(session) };
        Ok(Some(found.into_iter().map(key).collect()))
    }

    /// Names an object that is about to be put as a part of an export; `false` when that is over, or another has it.
    pub async fn stage_export_part(
        &self,
        owner: Uuid,
        lease: Duration,
        building: &Building,
        object: ObjectId,
    ) -> Result<bool, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin staging"))?;
        if !keep_export(&mut tx, owner, lease, building.id).await? {
            return Ok(false);
        }
        sqlx::query("insert into object (id, kind, workspace_id, export_id, quarantined) values ($1, $2, $3, $4, 0)")
            .bind(object.0)
            .bind(KIND_EXPORT)
            .bind(building.workspace.0)
            .bind(building.id.0)
            .execute(&mut *tx)
            .await
            .map_err(failed("stage part of an export"))?;
        tx.commit().await.map_err(failed("commit staging"))?;
        Ok(true)
    }

    /// Makes a part live that was put, and with a checkpoint all that stands by it; `false` when the export is over, another has it, or
    /// the part was given up meanwhile.
    pub async fn publish_export_part(
        &self,
        owner: Uuid,
        lease: Duration,
        building: &Building,
        part: &NewPart,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<bool, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin publishing"))?;
        if !keep_export(&mut tx, owner, lease, building.id).await? {
            return Ok(false);
        }
        let live = sqlx::query(
            "update object set state = 1, live_at = now(), bytes = $2, sha256 = $3, footer_at = $2, footer_len = 0
             where id = $1 and state = 0",
        )
        .bind(part.object.0)
        .bind(signed(part.object_bytes))
        .bind(part.sha256.as_slice())
        .execute(&mut *tx)
        .await
        .map_err(failed("publish part of an export"))?;
        if live.rows_affected() == 0 {
            return Ok(false);
        }
        let inserted = sqlx::query(
            // Behind all others: an index that lost some of them gets no archive without them.
            "insert into export_part (export_id, number, object_id, bytes)
             select $1, $2, $3, $4
             where $2 = 1 or exists (select from export_part where export_id = $1 and number = $2 - 1)",
        )
        .bind(building.id.0)
        .bind(i32::try_from(part.number).map_err(|_| IndexError::Full("parts of an export"))?)
        .bind(part.object.0)
        .bind(signed(part.bytes))
        .execute(&mut *tx)
        .await
        .map_err(failed("insert part of an export"))?;
        if inserted.rows_affected() == 0 {
            return Ok(false);
        }
        if let Some(checkpoint) = checkpoint
            && !stand(&mut tx, building.id, checkpoint).await?
        {
            return Ok(false);
        }
        tx.commit().await.map_err(failed("commit publishing"))?;
        Ok(true)
    }

    /// Sessions of an export whose manifests stand in it, with the manifests' hashes, behind `after` in the order of their ids.
    pub async fn exported(
        &self,
        id: ExportId,
        after: Option<SessionId>,
        limit: i64,
    ) -> Result<Vec<(SessionId, [u8; 32])>, IndexError> {
        let rows = sqlx::query(
            "select session_id, manifest_sha256 from export_session
             where export_id = $1 and manifest_sha256 is not null and ($2::uuid is null or session_id > $2)
             order by session_id limit $3",
        )
        .bind(id.0)
        .bind(after.map(|session| session.0))
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list exported sessions"))?;
        let session = |row: &PgRow| {
            let hash: Vec<u8> = row.get("manifest_sha256");
            let hash = hash.try_into().map_err(|_| IndexError::Row("export_session"))?;
            Ok((SessionId(row.get("session_id")), hash))
        };
        rows.iter().map(session).collect()
    }

    /// Receipts of deletions that an export's scope had sessions in, behind the one given in the order of deletions and parts.
    pub async fn receipts_to_export(
        &self,
        building: &Building,
        after: Option<(Uuid, u32)>,
        limit: i64,
    ) -> Result<Vec<ReceiptItem>, IndexError> {
        let query = match &building.wanted {
            // It is there.
            Wanted::Session(_) => return Ok(Vec::new()),
            Wanted::Links(_) => sqlx::query(
                "with of_sessions as (
                     select distinct d.deletion_id from session s join deletion_session d
                         on d.workspace_id = s.workspace_id and d.session_id = s.id
                     where s.workspace_id = $1 and s.link_id = any($5)
                 )
                 select r.deletion_id, r.part, r.sessions, r.signed_at, r.body
                 from receipt r join of_sessions using (deletion_id)
                 where $2::uuid is null or (r.deletion_id, r.part) > ($2, $3)
                 order by r.deletion_id, r.part limit $4",
            ),
            Wanted::Workspace => sqlx::query(
                "select r.deletion_id, r.part, r.sessions, r.signed_at, r.body from receipt r
                 where r.workspace_id = $1 and ($2::uuid is null or (r.deletion_id, r.part) > ($2, $3))
                     and $5::uuid[] is null
                 order by r.deletion_id, r.part limit $4",
            ),
        };
        let rows = query
            .bind(building.workspace.0)
            .bind(after.map(|(deletion, _)| deletion))
            .bind(after.map(|(_, part)| i32::try_from(part).unwrap_or(i32::MAX)))
            .bind(limit)
            .bind(building.wanted.columns().1)
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list receipts to export"))?;
        Ok(rows.iter().map(receipt_item).collect())
    }

    /// The parts of an archive that is whole, in their order. That it is about to be fetched by this key is noted of each session in it,
    /// once; none when it is over or not whole.
    pub async fn open_export(
        &self,
        workspace: WorkspaceId,
        id: ExportId,
        by: ApiKeyId,
    ) -> Result<Option<Vec<Part>>, IndexError> {
        // The first that fetches waits until its reading is noted, and asks then: what ended meanwhile is over.
        let rows = loop {
            let rows = sqlx::query(
                "select e.asked_by = $3 or $3 = any(e.read_by) as is_noted, p.object_id, p.bytes, o.bytes as object_bytes
                 from export e join export_part p on p.export_id = e.id join object o on o.id = p.object_id
                 where e.id = $1 and e.workspace_id = $2 and e.ready_at is not null and e.ended_at is null
                     and e.expires_at > clairvio.clock()
                 order by p.number",
            )
            .bind(id.0)
            .bind(workspace.0)
            .bind(by.0)
            .fetch_all(&self.pool)
            .await
            .map_err(failed("list parts of an export"))?;
            match rows.first() {
                // A whole archive has parts.
                None => return Ok(None),
                Some(row) if row.get("is_noted") => break rows,
                Some(_) => self.note_fetching(workspace, id, by).await?,
            }
        };
        let part = |row: &PgRow| Part {
            key: ObjectKey::Export { workspace, export: id, id: ObjectId(row.get("object_id")) },
            object_bytes: unsigned(row.get("object_bytes")),
            bytes: unsigned(row.get("bytes")),
        };
        Ok(Some(rows.iter().map(part).collect()))
    }

    /// Notes of each session in an archive that this key reads it, some at once: who deletes one of them must not wait for all. Should it
    /// end early some are noted twice.
    async fn note_fetching(&self, workspace: WorkspaceId, id: ExportId, by: ApiKeyId) -> Result<(), IndexError> {
        let mut after = Uuid::nil();
        loop {
            let noted: Vec<Uuid> = sqlx::query_scalar(
                "with some_of as (
                     select session_id from export_session where export_id = $1 and session_id > $5
                     order by session_id limit $6
                 ), noted as (
                     insert into session_read (workspace_id, id, session_id, api_key_id, what)
                     select $2, gen_random_uuid(), session_id, $3, $4 from some_of
                 ) select session_id from some_of order by session_id",
            )
            .bind(id.0)
            .bind(workspace.0)
            .bind(by.0)
            .bind(ReadWhat::Export.as_str())
            .bind(after)
            .bind(NOTED_AT_ONCE)
            .fetch_all(&self.pool)
            .await
            .map_err(failed("note a reading of an archive"))?;
            let Some(last) = noted.last() else { break };
            after = *last;
        }
        sqlx::query("update export set read_by = array_append(read_by, $2) where id = $1 and not $2 = any(read_by)")
            .bind(id.0)
            .bind(by.0)
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("note who reads an archive"))
    }

    /// Exports that nobody has ended and whose time is over, `limit` at most: which, whose, and since when.
    pub async fn due_exports(&self, limit: i64) -> Result<Vec<(ExportId, WorkspaceId, OffsetDateTime)>, IndexError> {
        let rows = sqlx::query(
            "select id, workspace_id, expires_at from export where ended_at is null and expires_at <= clairvio.clock()
             order by expires_at limit $1",
        )
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list exports whose time is over"))?;
        let due = |row: &PgRow| (ExportId(row.get("id")), WorkspaceId(row.get("workspace_id")), row.get("expires_at"));
        Ok(rows.iter().map(due).collect())
    }

    /// Ends exports whose time is over, `limit` at most, and those of workspaces that are gone or closed for good.
    pub async fn expire_exports(&self, limit: i64) -> Result<u64, IndexError> {
        sqlx::query(
            "with due as (
                 select e.id from export e where ended_at is null and (expires_at <= clairvio.clock()
                     or not exists (select from workspace w where w.id = e.workspace_id and w.terminated_by is null))
                 order by e.id limit $1 for update skip locked
             )
             update export set ended_at = now(), ended_because = 'expired' from due where export.id = due.id",
        )
        .bind(limit)
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected())
        .map_err(failed("end exports whose time is over"))
    }

    /// Exports that are over and not gone, and those whose keys have to be destroyed once more, oldest first.
    pub async fn ended_exports(&self, limit: i64) -> Result<Vec<Ended>, IndexError> {
        let rows = sqlx::query(
            // Whether there are any is enough. Those whose key is there come first, whatever waits.
            "select e.id, e.workspace_id, (extract(epoch from now() - shredded_at) * 1000)::bigint as shredded_for_ms,
                 (select count(*) from (select from object where kind = 3 and workspace_id = e.workspace_id
                     and export_id = e.id and state < 2 limit 1) o) as standing,
                 (select count(*) from (select from object where kind = 3 and workspace_id = e.workspace_id
                     and export_id = e.id limit 1) o) as objects
             from export e
             where ended_at is not null and (gone_at is null or shredded_at is null)
             order by e.shredded_at is not null, e.id limit $1",
        )
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list exports that are over"))?;
        let ended = |row: &PgRow| Ended {
            id: ExportId(row.get("id")),
            workspace: WorkspaceId(row.get("workspace_id")),
            facts: ExportFacts {
                shredded_for_ms: row.get::<Option<i64>, _>("shredded_for_ms").map(unsigned),
                objects_standing: unsigned(row.get("standing")),
                objects_left: unsigned(row.get("objects")),
            },
        };
        Ok(rows.iter().map(ended).collect())
    }

    /// Their keys were destroyed, and the key store has counted so many destructions by then.
    pub async fn mark_exports_shredded(&self, exports: &[ExportId], shreddings: u64) -> Result<(), IndexError> {
        sqlx::query(
            "with seen as (update keystore_seen set shreddings = $2 where shreddings < $2)
             update export set shredded_at = now() where id = any($1) and ended_at is not null and shredded_at is null",
        )
        .bind(ids(exports))
        .bind(signed(shreddings))
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("mark exports shredded"))
    }

    /// Has the keys of all exports that are over destroyed once more: the key store is one of a backup.
    pub async fn shred_exports_again(&self) -> Result<(), IndexError> {
        sqlx::query("update export set shredded_at = null where shredded_at is not null")
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("note keys of exports to destroy"))
    }

    /// Condemns objects of these, some at once. They are first in line, and need no grace: nobody opens them any more.
    pub async fn condemn_exports(&self, exports: &[ExportId]) -> Result<(), IndexError> {
        sqlx::query(
            "with own as (
                 select o.id from object o join export e on o.workspace_id = e.workspace_id and o.export_id = e.id
                 where o.kind = 3 and o.state < 2 and e.id = any($1) and e.ended_at is not null
                 order by o.id limit $2 for update of o
             )
             update object set state = 2, condemned_at = to_timestamp(0) from own where object.id = own.id",
        )
        .bind(ids(exports))
        .bind(ROWS_AT_ONCE)
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("condemn exports' objects"))
    }

    /// Listings showed nothing of these: they are gone, and which sessions they had is forgotten.
    pub async fn mark_exports_gone(&self, exports: &[ExportId]) -> Result<(), IndexError> {
        // Of a large workspace they are millions. Whoever ends in between is followed: there is nothing of these but rows.
        for statement in [
            "delete from export_part where (export_id, number) in
                 (select export_id, number from export_part where export_id = any($1) limit $2)",
            "delete from export_session where (export_id, session_id) in
                 (select export_id, session_id from export_session where export_id = any($1) limit $2)",
        ] {
            loop {
                let gone = sqlx::query(statement).bind(ids(exports)).bind(ROWS_AT_ONCE).execute(&self.pool).await;
                if gone.map_err(failed("forget what exports had"))?.rows_affected() == 0 {
                    break;
                }
            }
        }
        sqlx::query("update export set gone_at = now() where id = any($1) and ended_at is not null and gone_at is null")
            .bind(ids(exports))
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("mark exports gone"))
    }

    /// Which of these have rows.
    pub async fn exports_among(&self, exports: &[ExportId]) -> Result<Vec<ExportId>, IndexError> {
        let known: Vec<Uuid> = sqlx::query_scalar("select id from export where id = any($1)")
            .bind(ids(exports))
            .fetch_all(&self.pool)
            .await
            .map_err(failed("ask for exports"))?;
        Ok(known.into_iter().map(ExportId).collect())
    }

    /// Removes rows of exports that are gone for long, `limit` at most.
    pub async fn forget_exports(&self, limit: i64) -> Result<u64, IndexError> {
        sqlx::query(sqlx::AssertSqlSafe(format!(
            "delete from export where id in (select id from export
                 where gone_at < now() - interval '{REMEMBERED}' and shredded_at is not null limit $1)"
        )))
        .bind(limit)
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected())
        .map_err(failed("forget exports"))
    }
}

fn ids(exports: &[ExportId]) -> Vec<Uuid> {
    exports.iter().map(|export| export.0).collect()
}

/// Locks an export for whoever makes its archive, and keeps it for `lease` from now; `false` when it is over, or another has it.
async fn keep_export(tx: &mut PgConnection, owner: Uuid, lease: Duration, id: ExportId) -> Result<bool, IndexError> {
    let kept = sqlx::query(
        "update export set lease_until = now() + make_interval(secs => $3)
         where id = $1 and lease_owner = $2 and ended_at is null and ready_at is null and expires_at > clairvio.clock()",
    )
    .bind(id.0)
    .bind(owner)
    .bind(lease.as_secs_f64())
    .execute(tx)
    .await
    .map_err(failed("keep export"))?;
    Ok(kept.rows_affected() == 1)
}

/// Has what was published so far stand; `false` when the index knows nothing of a session in it.
async fn stand(tx: &mut PgConnection, id: ExportId, checkpoint: &Checkpoint) -> Result<bool, IndexError> {
    let Checkpoint { stands, sessions, is_last } = checkpoint;
    let (written, hashes): (Vec<Uuid>, Vec<&[u8]>) =
        sessions.iter().map(|(session, hash)| (session.0, hash.as_slice())).unzip();
    let noted = sqlx::query(
        "update export_session e set manifest_sha256 = w.hash from unnest($2::uuid[], $3::bytea[]) as w (id, hash)
         where e.export_id = $1 and e.session_id = w.id",
    )
    .bind(id.0)
    .bind(&written)
    .bind(&hashes)
    .execute(&mut *tx)
    .await
    .map_err(failed("note manifests"))?;
    if noted.rows_affected() != written.len() as u64 {
        return Ok(false);
    }
    sqlx::query(
        "update export set parts = $2, sessions = $3, events = $4, bytes = $5,
             after_session = coalesce($6, after_session), ready_at = case when $7 then now() end
         where id = $1",
    )
    .bind(id.0)
    .bind(i32::try_from(stands.parts).map_err(|_| IndexError::Full("parts of an export"))?)
    .bind(signed(stands.sessions))
    .bind(signed(stands.events))
    .bind(signed(stands.bytes))
    .bind(written.last().copied())
    .bind(is_last)
    .execute(&mut *tx)
    .await
    .map(|_| true)
    .map_err(failed("note what of an export stands"))
}

/// Ends the exports that have anything of these sessions, whose rows are locked.
pub(super) async fn end_exports_of(
    tx: &mut PgConnection,
    workspace: WorkspaceId,
    sessions: &[Uuid],
) -> Result<(), IndexError> {
    sqlx::query(
        "with of_sessions as (
             select id from export where ended_at is null and id in (
                 select export_id from export_session where workspace_id = $1 and session_id = any($2))
             order by id for update
         )
         update export set ended_at = now(), ended_because = 'session_deleted' from of_sessions
         where export.id = of_sessions.id",
    )
    .bind(workspace.0)
    .bind(sessions)
    .execute(tx)
    .await
    .map(drop)
    .map_err(failed("end exports of deleted sessions"))
}
