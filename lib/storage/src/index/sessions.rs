//! Sessions as readers see them.

use std::time::Duration;

use schemas::http::{ConsentFacts, ConsoleCounts, EventCounts, SessionState};
use schemas::shared_object::SessionFilter;
use schemas::{LinkId, ReceiptId, SessionId, SessionKey, WorkspaceId};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use time::OffsetDateTime;

use super::links::{StoredReference, stored_reference};
use super::{Index, IndexError, LiveObject, failed, key_arrays, live_object, object_columns, unsigned};

/// A live session's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    /// The session.
    pub key: SessionKey,
    /// Its link.
    pub link: LinkId,
    /// Whom its link is for.
    pub reference: StoredReference,
    /// Whether it still grows.
    pub state: SessionState,
    /// Append time of its first record.
    pub started_at: OffsetDateTime,
    /// Append time of the last activity that was noted.
    pub last_activity_at: OffsetDateTime,
    /// When its plan window ends.
    pub expires_at: OffsetDateTime,
    /// What was agreed to.
    pub consent: ConsentFacts,
    /// Sums as of the last merge.
    pub events: u64,
    /// Events by kind, as of the last merge.
    pub counts: EventCounts,
    /// Pages opened, as of the last merge.
    pub pages: u64,
    /// Console errors, as of the last merge.
    pub errors: u64,
    /// Bytes of events, as of the last merge.
    pub bytes_received: u64,
    /// Bytes of frames, as of the last merge.
    pub bytes_stored: u64,
    /// The least and greatest timestamp, as of the last merge.
    pub span: Option<(i64, i64)>,
    /// Time in which the user was active, in milliseconds, as of the last merge.
    pub active_ms: u64,
    /// Clicks, as of the last merge.
    pub clicks: u64,
    /// Inputs into form fields, as of the last merge.
    pub keypresses: u64,
    /// Console messages by level, as of the last merge.
    pub console: ConsoleCounts,
    /// Failed requests, as of the last merge.
    pub failed_requests: u64,
    /// Pages by origin and path, as of the last merge.
    pub urls: Vec<String>,
}

/// What a session is to one workspace.
#[derive(Debug, Clone)]
pub enum Found {
    /// The workspace never had it.
    Never,
    /// It had it, and it was deleted.
    Deleted,
    /// It has it: its row, and its live objects by one snapshot.
    Live(Box<Snapshot>),
}

/// A session and where its bytes are, at one moment (C2).
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The row.
    pub row: SessionRow,
    /// Its own objects, in the order in which they were made.
    pub own: Vec<LiveObject>,
    /// Shared objects that may hold some of it, by partition and offset.
    pub shared: Vec<LiveObject>,
}

/// Whether a session is over; `$1` is the silence after which it is, in seconds. One that became one object was over, and is until
/// what came later is merged.
macro_rules! is_over {
    () => {
        "(s.end_seen or s.final or s.last_activity_at < now() - make_interval(secs => $1))"
    };
}
pub(super) use is_over;

/// The columns of a [`SessionRow`]; `$1` as [`is_over`] has it.
pub(super) const COLUMNS: &str = concat!(
    "
    s.workspace_id, s.id, s.link_id, l.reference, l.reference_sealed,
    ",
    is_over!(),
    " as is_over,
    s.started_at, s.last_activity_at, clairvio.expires_at(w, s.started_at) as expires_at,
    s.notice_version, s.consented_at, s.receipt_id,
    s.events, s.counts, s.pages, s.errors, s.bytes_received, s.bytes_stored, s.ts_min, s.ts_max, s.partitions,
    s.active_ms, s.clicks, s.keypresses, s.console, s.failed_requests, s.urls"
);
const TABLES: &str = "
    from session s join workspace w on w.id = s.workspace_id
    left join link l on l.workspace_id = s.workspace_id and l.id = s.link_id";

pub(super) fn session_row(row: &PgRow) -> Result<SessionRow, IndexError> {
    let not_ours = || IndexError::Row("session");
    let counts: Vec<i64> = row.get("counts");
    let counts: [i64; schemas::facts::KINDS] = counts.try_into().map_err(|_| not_ours())?;
    let console: Vec<i64> = row.get("console");
    let console: [i64; schemas::facts::CONSOLE_LEVELS] = console.try_into().map_err(|_| not_ours())?;
    let link: Option<uuid::Uuid> = row.get("link_id");
    let receipt: Option<uuid::Uuid> = row.get("receipt_id");
    let notice_version: Option<String> = row.get("notice_version");
    let accepted_at: Option<OffsetDateTime> = row.get("consented_at");
    // The table's constraint gives every live session its consent (S1).
    let (Some(link), Some(receipt), Some(notice_version), Some(accepted_at)) =
        (link, receipt, notice_version, accepted_at)
    else {
        return Err(not_ours());
    };
    let ts_min: Option<i64> = row.get("ts_min");
    let ts_max: Option<i64> = row.get("ts_max");
    Ok(SessionRow {
        key: SessionKey { workspace: WorkspaceId(row.get("workspace_id")), session: SessionId(row.get("id")) },
        link: LinkId(link),
        reference: stored_reference(row),
        state: if row.get("is_over") { SessionState::Ended } else { SessionState::Recording },
        started_at: row.get("started_at"),
        last_activity_at: row.get("last_activity_at"),
        expires_at: row.get("expires_at"),
        consent: ConsentFacts { notice_version, accepted_at, receipt_id: ReceiptId(receipt) },
        events: unsigned(row.get("events")),
        counts: EventCounts::from_array(counts.map(unsigned)),
        pages: unsigned(row.get("pages")),
        errors: unsigned(row.get("errors")),
        bytes_received: unsigned(row.get("bytes_received")),
        bytes_stored: unsigned(row.get("bytes_stored")),
        span: ts_min.zip(ts_max),
        active_ms: unsigned(row.get("active_ms")),
        clicks: unsigned(row.get("clicks")),
        keypresses: unsigned(row.get("keypresses")),
        console: ConsoleCounts::new(unsigned(row.get("errors")), console.map(unsigned)),
        failed_requests: unsigned(row.get("failed_requests")),
        urls: row.get("urls"),
    })
}

impl Index {
    /// A session and where its bytes are, all by one snapshot: a run that is swapped meanwhile is seen either before or
    /// after (C2).
    pub async fn find_session(&self, key: &SessionKey, silence: Duration) -> Result<Found, IndexError> {
        let mut tx = self
            .pool
            .begin_with("begin isolation level repeatable read read only")
            .await
            .map_err(failed("begin reading"))?;
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "select {COLUMNS}, s.state {TABLES} where s.workspace_id = $2 and s.id = $3"
        )))
        .bind(silence.as_secs_f64())
        .bind(key.workspace.0)
        .bind(key.session.0)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed("find session"))?;
        let Some(row) = row else { return Ok(Found::Never) };
        if row.get::<i16, _>("state") > 0 {
            return Ok(Found::Deleted);
        }
        let own = sqlx::query(concat!(
            "select ",
            object_columns!(),
            " from object where kind = 1 and state = 1 and workspace_id = $1 and session_id = $2 order by live_at, id"
        ))
        .bind(key.workspace.0)
        .bind(key.session.0)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("find session's objects"))?;
        let partitions: Vec<i32> = row.get("partitions");
        let shared = sqlx::query(concat!(
            "select sessions_filter, ",
            object_columns!(),
            " from object where kind = 0 and state = 1 and partition = any($1) order by partition, offset_first"
        ))
        .bind(&partitions)
        .fetch_all(&mut *tx)
        .await
        .map_err(failed("find shared objects"))?;
        tx.rollback().await.map_err(failed("end reading"))?;
        Ok(Found::Live(Box::new(Snapshot {
            row: session_row(&row)?,
            own: own.iter().map(live_object).collect::<Result<_, _>>()?,
            shared: shared.iter().filter(|row| may_contain(row, key)).map(live_object).collect::<Result<_, _>>()?,
        })))
    }

    /// Whether a session is readable right now.
    pub async fn is_live(&self, key: &SessionKey) -> Result<bool, IndexError> {
        let row = sqlx::query("select state from session where workspace_id = $1 and id = $2")
            .bind(key.workspace.0)
            .bind(key.session.0)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("ask for session's state"))?;
        Ok(row.is_some_and(|row| row.get::<i16, _>("state") == 0))
    }

    /// Bytes of a session's events, as of its last merge.
    pub async fn bytes_received(&self, key: &SessionKey) -> Result<u64, IndexError> {
        let bytes: Option<i64> =
            sqlx::query_scalar("select bytes_received from session where workspace_id = $1 and id = $2")
                .bind(key.workspace.0)
                .bind(key.session.0)
                .fetch_optional(&self.pool)
                .await
                .map_err(failed("ask for session's bytes"))?;
        Ok(unsigned(bytes.unwrap_or_default()))
    }

    /// Whether a shared object, staged or live, of the partitions that the session's row names may hold some of it.
    pub async fn may_be_shared(&self, key: &SessionKey) -> Result<bool, IndexError> {
        let rows = sqlx::query(
            "select o.sessions_filter from session s join object o on o.partition = any(s.partitions)
             where s.workspace_id = $1 and s.id = $2 and o.kind = 0 and o.state in (0, 1)",
        )
        .bind(key.workspace.0)
        .bind(key.session.0)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("find shared objects"))?;
        Ok(rows.iter().any(|row| may_contain(row, key)))
    }
}

/// Locks sessions in id order, each once however often it is named; gives the rows of those that are there, in that order, with
/// their states.
pub(super) async fn lock_sessions(tx: &mut PgConnection, keys: &[SessionKey]) -> Result<Vec<PgRow>, IndexError> {
    let (workspaces, sessions) = key_arrays(keys.iter());
    sqlx::query(
        "select s.workspace_id, s.id as session_id, s.state from session s
         where (s.workspace_id, s.id) in (select * from unnest($1::uuid[], $2::uuid[]))
         order by s.workspace_id, s.id for update of s",
    )
    .bind(&workspaces)
    .bind(&sessions)
    .fetch_all(&mut *tx)
    .await
    .map_err(failed("lock sessions"))
}

pub(super) fn may_contain(row: &PgRow, key: &SessionKey) -> bool {
    filter_may_contain(row.get("sessions_filter"), key)
}

/// A staged object has no filter yet, and may hold anything.
pub(super) fn filter_may_contain(filter: Option<Vec<u8>>, key: &SessionKey) -> bool {
    filter_of(filter).is_none_or(|filter| filter.may_contain(key))
}

/// The filter in a column, for asking it of many sessions.
pub(super) fn filter_of(bytes: Option<Vec<u8>>) -> Option<SessionFilter> {
    bytes.map(SessionFilter::from_bytes)
}
