//! Lists of sessions, newest first, in pages whose cost is bounded whatever is asked for.
//!
//! A page is read along one of a few lists that the index keeps in the order of all pages: all sessions, those that are open, have
//! errors or are long, those of a reference's links, those with a page. The rarest of them that holds all that is wanted is
//! taken, [`LIST_ROWS_MAX`] rows of it are looked through at most, and what else was asked for is decided row by row. So a page
//! may come short, or empty, and still have a next one, which goes on where the looking stopped.
//!
//! Tombstones stand in none of these lists.

use std::time::Duration;

use schemas::WorkspaceId;
use schemas::http::SessionState;
use schemas::limits::{LIST_ROWS_MAX, PAGE_URL_BYTES_MAX};
use serde_json::Value;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{PgConnection, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::links::{Before, ReferenceFilter};
use super::sessions::{COLUMNS, SessionRow, is_over, session_row};
use super::{Index, IndexError, failed, unsigned};

/// Which sessions are wanted.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of links with this reference.
    pub reference: Option<ReferenceFilter>,
    /// Started at or after.
    pub from: Option<OffsetDateTime>,
    /// Started before.
    pub to: Option<OffsetDateTime>,
    /// Growing or not.
    pub state: Option<SessionState>,
    /// With console errors, or without.
    pub has_errors: Option<bool>,
    /// At least this long, milliseconds.
    pub min_duration_ms: Option<i64>,
    /// With a page whose origin and path begin with this.
    pub url: Option<String>,
}

/// A page of sessions.
#[derive(Debug, Clone, Default)]
pub struct Listed {
    /// As many as were asked for, or fewer.
    pub rows: Vec<SessionRow>,
    /// Where the next page begins; none behind the last.
    pub next: Option<Before>,
}

/// Which page of which sessions of a workspace.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// Silence after which a session is over.
    pub silence: Duration,
    /// Which sessions.
    pub filter: &'a Filter,
    /// Where the page begins; at the newest when it is none.
    pub before: Option<Before>,
    /// Rows at most.
    pub limit: u32,
}

/// Durations from which on sessions stand in a list of their own, in milliseconds: what the partial indexes say.
const LONG_MS: [i64; 3] = [3_600_000, 600_000, 60_000];

/// The greatest character. As often as a page can have it, it comes behind all pages that begin with the text before it.
const GREATEST: &str = "\u{10ffff}";

/// The list that a page is read along.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Along {
    Newest,
    Open,
    Errors,
    /// At least this long, milliseconds.
    Long(i64),
    /// Those of these links.
    Links(Vec<Uuid>),
    /// Those with the page that is asked for.
    Pages,
}

impl Wanted<'_> {
    /// The bounds of the list, on these columns.
    fn bounds(&self, started_at: &str, id: &str) -> String {
        let mut bounds = String::new();
        if self.filter.from.is_some() {
            bounds += &format!(" and {started_at} >= $3");
        }
        if self.filter.to.is_some() {
            bounds += &format!(" and {started_at} < $4");
        }
        if self.before.is_some() {
            bounds += &format!(" and ({started_at}, {id}) < ($5, $6)");
        }
        bounds
    }

    /// The rows of the list that are looked through, in its order.
    fn rows_along(&self, along: &Along) -> String {
        let bounds = self.bounds("started_at", "id");
        let list = |which: &str| {
            format!(
                "select * from session where workspace_id = $2 and state = 0{which}{bounds}
                 order by started_at desc, id desc limit {LIST_ROWS_MAX}"
            )
        };
        match along {
            Along::Newest => list(""),
            Along::Open => list(" and not end_seen and not final"),
            Along::Errors => list(" and errors > 0"),
            Along::Long(ms) => list(&format!(" and ts_max - ts_min >= {ms}")),
            // Link by link, and tombstones are left out behind the fence: without either all sessions might be gone through for
            // those of a few, since other indexes have sessions that are live.
            Along::Links(_) => format!(
                "select few.* from unnest($12) wanted (link) cross join lateral (
                     select * from session where workspace_id = $2 and link_id = wanted.link{bounds} offset 0
                 ) few where few.state = 0 order by few.started_at desc, few.id desc limit {LIST_ROWS_MAX}"
            ),
            // Each session is looked up by its key alone: without the fence all might be gone through for a few.
            Along::Pages => format!(
                "select s.* from (
                     select distinct started_at, session_id from session_page
                     where workspace_id = $2 and url >= $8 and url <= $9{}
                     order by started_at desc, session_id desc limit {LIST_ROWS_MAX}
                 ) page cross join lateral (
                     select * from session where workspace_id = $2 and id = page.session_id offset 0
                 ) s where s.started_at = page.started_at and s.state = 0
                 order by page.started_at desc, page.session_id desc",
                self.bounds("started_at", "session_id")
            ),
        }
    }

    /// What the list does not decide.
    fn rest(&self, along: &Along) -> String {
        let filter = self.filter;
        let mut rest = vec!["true"];
        if filter.reference.is_some() && !matches!(along, Along::Links(_)) {
            rest.push(
                "exists (select from link l where l.workspace_id = s.workspace_id and l.id = s.link_id
                     and (l.reference_hash = $10 or l.reference = $11))",
            );
        }
        match filter.state {
            Some(SessionState::Recording) => rest.push(concat!("not ", is_over!())),
            Some(SessionState::Ended) => rest.push(is_over!()),
            None => {}
        }
        match filter.has_errors {
            Some(true) => rest.push("s.errors > 0"),
            Some(false) => rest.push("s.errors = 0"),
            None => {}
        }
        if filter.min_duration_ms.is_some() {
            rest.push("s.ts_max - s.ts_min >= $7");
        }
        if filter.url.is_some() && *along != Along::Pages {
            rest.push("exists (select from unnest(s.urls) as page (url) where starts_with(page.url, $8))");
        }
        rest.join(" and ")
    }

    /// All that any of the statements is asked with; each has them all, under the same numbers.
    fn bind<'q>(&self, sql: String, links: &[Uuid]) -> sqlx::query::Query<'q, sqlx::Postgres, PgArguments> {
        let filter = self.filter;
        let reference = filter.reference.as_ref();
        let url_last = filter
            .url
            .as_ref()
            .map(|url| [url, GREATEST.repeat(PAGE_URL_BYTES_MAX / GREATEST.len()).as_str()].concat());
        sqlx::query(sqlx::AssertSqlSafe(sql))
            // What is planned once for all values fits no value.
            .persistent(false)
            .bind(self.silence.as_secs_f64())
            .bind(self.workspace.0)
            .bind(filter.from)
            .bind(filter.to)
            .bind(self.before.map(|before| before.at))
            .bind(self.before.map(|before| before.id))
            .bind(filter.min_duration_ms)
            .bind(filter.url.clone())
            .bind(url_last)
            .bind(reference.and_then(|reference| reference.hash).map(Vec::from))
            .bind(reference.map(|reference| reference.clear.clone()))
            .bind(links.to_vec())
    }
}

/// A list on its way: how it asks, and how Postgres went about it if that is wanted.
struct Asking<'a> {
    wanted: Wanted<'a>,
    tx: &'a mut PgConnection,
    plans: Option<&'a mut Vec<Value>>,
}

impl Asking<'_> {
    async fn ask(&mut self, what: &'static str, sql: String, links: &[Uuid]) -> Result<Vec<PgRow>, IndexError> {
        if let Some(plans) = &mut self.plans {
            let explain = format!("explain (analyze, buffers, timing off, format json) {sql}");
            let plan = self.wanted.bind(explain, links).fetch_one(&mut *self.tx).await.map_err(failed(what))?;
            plans.push(plan.get(0));
        }
        self.wanted.bind(sql, links).fetch_all(&mut *self.tx).await.map_err(failed(what))
    }

    /// The links of the reference that is asked for; `None` when they, or their sessions, are too many to be looked at all.
    async fn few_links(&mut self) -> Result<Option<Vec<Uuid>>, IndexError> {
        let by = |which: &str| {
            format!("(select id, sessions from link where workspace_id = $2 and {which} limit {})", LIST_ROWS_MAX + 1)
        };
        let links = [by("reference_hash = $10"), by("reference = $11")].join(" union all ");
        let rows = self.ask("find links of a reference", links, &[]).await?;
        let sessions: u64 = rows.iter().map(|row| unsigned(i64::from(row.get::<i32, _>("sessions")))).sum();
        let are_few = rows.len().max(usize::try_from(sessions).unwrap_or(usize::MAX)) <= LIST_ROWS_MAX;
        Ok(are_few.then(|| rows.iter().map(|row| row.get("id")).collect()))
    }

    /// Whether the page that is asked for stands in few enough rows to look at all.
    async fn has_few_pages(&mut self) -> Result<bool, IndexError> {
        let pages = format!(
            "select count(*) from (
                 select from session_page where workspace_id = $2 and url >= $8 and url <= $9 limit {}
             ) page",
            LIST_ROWS_MAX + 1
        );
        let counted = self.ask("count pages", pages, &[]).await?;
        Ok(counted.first().is_some_and(|row| row.get::<i64, _>(0) <= LIST_ROWS_MAX as i64))
    }

    async fn along(&mut self) -> Result<Along, IndexError> {
        let filter = self.wanted.filter;
        if filter.reference.is_some()
            && let Some(links) = self.few_links().await?
        {
            return Ok(Along::Links(links));
        }
        if filter.url.is_some() && self.has_few_pages().await? {
            return Ok(Along::Pages);
        }
        if filter.state == Some(SessionState::Recording) {
            return Ok(Along::Open);
        }
        let long = LONG_MS.into_iter().find(|long| filter.min_duration_ms.is_some_and(|asked| asked >= *long));
        Ok(match (filter.has_errors, long) {
            // Hours are rarer than errors.
            (_, Some(long)) if long == LONG_MS[0] => Along::Long(long),
            (Some(true), _) => Along::Errors,
            (_, Some(long)) => Along::Long(long),
            (_, None) => Along::Newest,
        })
    }

    async fn list(&mut self) -> Result<Listed, IndexError> {
        let along = self.along().await?;
        let links = if let Along::Links(links) = &along { links.as_slice() } else { &[] };
        let (rows_along, rest) = (self.wanted.rows_along(&along), self.wanted.rest(&along));
        let limit = self.wanted.limit as usize;
        let page = format!(
            "select {COLUMNS} from (
                 select * from ({rows_along}) s where {rest} order by started_at desc, id desc limit {}
             ) s join workspace w on w.id = s.workspace_id
             left join link l on l.workspace_id = s.workspace_id and l.id = s.link_id
             order by s.started_at desc, s.id desc",
            limit + 1
        );
        let found = self.ask("list sessions", page, links).await?;
        let mut rows = found.iter().map(session_row).collect::<Result<Vec<_>, _>>()?;
        if rows.len() > limit {
            rows.truncate(limit);
            let next = rows.last().map(|row| Before { at: row.started_at, id: row.key.session.0 });
            return Ok(Listed { rows, next });
        }
        // All that was looked through was too little, or it was all there is.
        let stopped = format!(
            "select started_at, id from ({rows_along}) s order by started_at desc, id desc offset {} limit 1",
            LIST_ROWS_MAX - 1
        );
        let stopped = self.ask("find where listing stopped", stopped, links).await?;
        let next = stopped.first().map(|row| Before { at: row.get("started_at"), id: row.get("id") });
        Ok(Listed { rows, next })
    }
}

impl Index {
    /// A page of a workspace's live sessions, newest first. It may be short, or empty, and have a next one.
    pub async fn sessions(&self, wanted: Wanted<'_>) -> Result<Listed, IndexError> {
        self.list(wanted, None).await
    }

    /// The same, and how Postgres went about each statement: its plans, with the rows and buffers that they touched.
    pub async fn sessions_with_plans(&self, wanted: Wanted<'_>) -> Result<(Listed, Vec<Value>), IndexError> {
        let mut plans = Vec::new();
        let listed = self.list(wanted, Some(&mut plans)).await?;
        Ok((listed, plans))
    }

    async fn list(&self, wanted: Wanted<'_>, plans: Option<&mut Vec<Value>>) -> Result<Listed, IndexError> {
        let mut tx = self.begin_listing().await?;
        let listed = Asking { wanted, tx: &mut tx, plans }.list().await?;
        tx.rollback().await.map_err(failed("end listing"))?;
        Ok(listed)
    }
}
