//! Workspaces, and what edges are told of them.

use std::time::Duration;

use schemas::WorkspaceId;
use schemas::control::{Entry, Kept, News, Terms, WorkspaceRules, WorkspaceState};
use schemas::http::{UsageItem, WorkspaceItem};
use schemas::limits::{NAME_BYTES_MAX, NOTICE_VERSION_BYTES_MAX, NOTICE_VERSIONS_MAX, ORIGIN_BYTES_MAX, ORIGINS_MAX};
use schemas::plan::Plan;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use time::{Date, OffsetDateTime};
use url::Url;
use uuid::Uuid;

use super::links::Before;
use super::{Index, IndexError, failed, outbox, signed, unsigned};

/// A name as it is kept: without blanks around it, neither empty nor longer than names may be, on one line.
pub fn normal_name(text: &str) -> Option<String> {
    let name = text.trim();
    let fits = !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.contains(char::is_control);
    fits.then(|| name.to_owned())
}

/// Origins as browsers write them in the header `Origin`, each once; `None` when one is none of http or https, or has more
/// than an origin has, or when there are too many.
pub fn normal_origins(texts: &[String]) -> Option<Vec<String>> {
    let mut origins: Vec<String> = Vec::new();
    for text in texts {
        let origin = normal_origin(text)?;
        if !origins.contains(&origin) {
            origins.push(origin);
        }
    }
    (origins.len() <= ORIGINS_MAX).then_some(origins)
}

fn normal_origin(text: &str) -> Option<String> {
    let url = Url::parse(text).ok()?;
    let is_bare = url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none()
        && url.username().is_empty()
        && url.password().is_none();
    let origin = url.origin().ascii_serialization();
    let is_origin = matches!(url.scheme(), "http" | "https") && is_bare && origin.len() <= ORIGIN_BYTES_MAX;
    is_origin.then_some(origin)
}

/// Versions of the notice, each once; `None` when one is empty or too long, or when there are too many.
pub fn normal_notice_versions(texts: &[String]) -> Option<Vec<String>> {
    let mut versions: Vec<String> = Vec::new();
    for text in texts {
        if !(1..=NOTICE_VERSION_BYTES_MAX).contains(&text.len()) || text.contains(char::is_control) {
            return None;
        }
        if !versions.contains(text) {
            versions.push(text.clone());
        }
    }
    (versions.len() <= NOTICE_VERSIONS_MAX).then_some(versions)
}

/// What changes of a workspace; what is `None` stays.
#[derive(Debug, Clone, Default)]
pub struct WorkspaceChange {
    /// Its name.
    pub name: Option<String>,
    /// Origins that may record.
    pub origins: Option<Vec<String>>,
    /// Versions of the notice that are accepted.
    pub notice_versions: Option<Vec<String>>,
    /// What it pays for.
    pub plan: Option<Plan>,
    /// Whether it may record.
    pub state: Option<WorkspaceState>,
    /// Whether an operator changes it: nobody else opens what an operator closed.
    pub by_operator: bool,
}

/// What came of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// The workspace as it is now.
    Done(WorkspaceItem),
    /// There is no such workspace.
    Unknown,
    /// It is closed: nothing of it changes, but that it may be opened again before its time is over.
    Terminated,
    /// The index's server is not compared with what was told yet.
    Uncompared,
}

/// What was told of a workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToldRules {
    /// Which.
    pub workspace: WorkspaceId,
    /// Under which version.
    pub version: u64,
    /// What edges hold it to, and how long it is kept.
    pub rules: WorkspaceRules,
}

/// How long what a change takes away stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Graces {
    /// Sessions, when a plan's window became shorter.
    pub plan: Duration,
    /// All of a workspace, when it was closed.
    pub termination: Duration,
}

const COLUMNS: &str = "id, name, plan, state, origins, notice_versions, created_at, terminates_at";

fn workspace_item(row: &PgRow) -> Result<WorkspaceItem, IndexError> {
    let plan = Plan::parse(row.get("plan")).ok_or(IndexError::Row("workspace"))?;
    Ok(WorkspaceItem {
        id: WorkspaceId(row.get("id")),
        name: row.get("name"),
        plan,
        state: WorkspaceState::parse(row.get("state")).ok_or(IndexError::Row("workspace"))?,
        origins: row.get("origins"),
        notice_versions: row.get("notice_versions"),
        limits: plan.limits(),
        created_at: row.get("created_at"),
        terminates_at: row.get("terminates_at"),
    })
}

/// Tells edges what they hold this workspace to: counts up the version of its rules, and puts them as they are now into the
/// outbox. From then on the workspace's row is locked, so what is told under a version is what the row has under it.
pub(super) async fn tell_rules(tx: &mut PgConnection, workspace: WorkspaceId) -> Result<(), IndexError> {
    tell_rules_under(tx, workspace, 1).await
}

/// The same without counting up: for whoever does not know whether the index is one of a backup. Should it be, it says nothing new.
pub(super) async fn tell_rules_again(tx: &mut PgConnection, workspace: WorkspaceId) -> Result<(), IndexError> {
    tell_rules_under(tx, workspace, 0).await
}

async fn tell_rules_under(tx: &mut PgConnection, workspace: WorkspaceId, step: i64) -> Result<(), IndexError> {
    let row = sqlx::query(
        "update workspace set rules_version = rules_version + $2 where id = $1
         returning plan, state, origins, notice_versions, full_until, rules_version, terminates_at, closed_by_operator,
             kept_until, (extract(epoch from kept_window) / 86400)::integer as kept_days",
    )
    .bind(workspace.0)
    .bind(step)
    .fetch_one(&mut *tx)
    .await
    .map_err(failed("count up version of rules"))?;
    let not_ours = || IndexError::Row("workspace");
    let plan = Plan::parse(row.get("plan")).ok_or_else(not_ours)?;
    let kept = Option::zip(row.get("kept_until"), row.get::<Option<i32>, _>("kept_days"));
    let rules = WorkspaceRules {
        state: WorkspaceState::parse(row.get("state")).ok_or_else(not_ours)?,
        limits: plan.limits(),
        full_until: row.get("full_until"),
        origins: row.get("origins"),
        notice_versions: row.get("notice_versions"),
        terms: Some(Terms {
            plan,
            kept: kept.map(|(until, days)| Kept { until, days: days.unsigned_abs() }),
            terminates_at: row.get("terminates_at"),
            closed_by_operator: row.get("closed_by_operator"),
        }),
    };
    let entry = Entry::workspace(workspace, rules, unsigned(row.get("rules_version")));
    outbox::insert(tx, &[outbox::telling(&entry)]).await
}

impl Index {
    /// Makes a workspace, and tells edges of it.
    pub async fn create_workspace(
        &self,
        id: WorkspaceId,
        name: &str,
        plan: Plan,
        origins: &[String],
    ) -> Result<(), IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin workspace"))?;
        insert_workspace(&mut tx, id, name, plan, origins).await?;
        tx.commit().await.map_err(failed("commit workspace"))?;
        self.outbox.notify_one();
        Ok(())
    }

    /// A workspace.
    pub async fn workspace(&self, id: WorkspaceId) -> Result<Option<WorkspaceItem>, IndexError> {
        let row = sqlx::query(sqlx::AssertSqlSafe(format!("select {COLUMNS} from workspace where id = $1")))
            .bind(id.0)
            .fetch_optional(&self.pool)
            .await
            .map_err(failed("find workspace"))?;
        row.as_ref().map(workspace_item).transpose()
    }

    /// A page of all workspaces, newest first.
    pub async fn workspaces(&self, before: Option<Before>, limit: u32) -> Result<Vec<WorkspaceItem>, IndexError> {
        let rows = sqlx::query(sqlx::AssertSqlSafe(format!(
            "select {COLUMNS} from workspace where $1::timestamptz is null or (created_at, id) < ($1, $2)
             order by created_at desc, id desc limit $3"
        )))
        .bind(before.map(|before| before.at))
        .bind(before.map(|before| before.id))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list workspaces"))?;
        rows.iter().map(workspace_item).collect()
    }

    /// Changes a workspace, and tells edges in the same transaction when it is something that they go by. Not on a server that
    /// [is not compared](crate::told::Told::is_compared).
    pub async fn change_workspace(
        &self,
        id: WorkspaceId,
        change: &WorkspaceChange,
        graces: Graces,
        is_compared: impl Fn() -> bool + Send,
    ) -> Result<Changed, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin change"))?;
        // Asked on a connection: it may be one to another server than a moment ago.
        if !is_compared() {
            return Ok(Changed::Uncompared);
        }
        let row = sqlx::query(sqlx::AssertSqlSafe(format!(
            "select {COLUMNS}, terminated_by is null and terminates_at > clairvio.clock()
                 and ($2 or not closed_by_operator) as can_be_opened
             from workspace where id = $1 for no key update"
        )))
        .bind(id.0)
        .bind(change.by_operator)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed("lock workspace"))?;
        let Some(row) = row else { return Ok(Changed::Unknown) };
        let before = workspace_item(&row)?;
        let plan = change.plan.unwrap_or(before.plan);
        let after = WorkspaceItem {
            name: change.name.clone().unwrap_or_else(|| before.name.clone()),
            plan,
            limits: plan.limits(),
            state: change.state.unwrap_or(before.state),
            origins: change.origins.clone().unwrap_or_else(|| before.origins.clone()),
            notice_versions: change.notice_versions.clone().unwrap_or_else(|| before.notice_versions.clone()),
            ..before.clone()
        };
        if after == before {
            return Ok(Changed::Done(before));
        }
        if before.state == WorkspaceState::Terminated {
            let is_opened = after.state != WorkspaceState::Terminated && row.get("can_be_opened");
            // Opened as it was: what else is to change is asked for then.
            let is_alone = WorkspaceItem { state: before.state, ..after.clone() } == before;
            if !(is_opened && is_alone) {
                return Ok(Changed::Terminated);
            }
        }
        let terminates_at: Option<OffsetDateTime> = sqlx::query_scalar(
            // Another plan has another number of sessions a day: whether the day is full is found out anew.
            "update workspace set name = $2, plan = $3, state = $4, origins = $5, notice_versions = $6,
                 full_until = case when plan = $3 then full_until end,
                 kept_until = case when plan <> $3 and clairvio.retention($3) < clairvio.kept_for(workspace)
                     then clairvio.clock() + make_interval(secs => $7) else kept_until end,
                 kept_window = case when plan <> $3 and clairvio.retention($3) < clairvio.kept_for(workspace)
                     then clairvio.kept_for(workspace) else kept_window end,
                 terminates_at = case when $4 = 'terminated'
                     then coalesce(terminates_at, clairvio.clock() + make_interval(secs => $8)) end,
                 closed_by_operator = $4 = 'terminated' and $9
             where id = $1 returning terminates_at",
        )
        .bind(id.0)
        .bind(&after.name)
        .bind(after.plan.as_str())
        .bind(after.state.as_str())
        .bind(&after.origins)
        .bind(&after.notice_versions)
        .bind(graces.plan.as_secs_f64())
        .bind(graces.termination.as_secs_f64())
        .bind(change.by_operator)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed("change workspace"))?;
        let after = WorkspaceItem { terminates_at, ..after };
        // A name is for people.
        let told = WorkspaceItem { name: before.name.clone(), terminates_at: before.terminates_at, ..after.clone() };
        if told != before {
            tell_rules(&mut tx, id).await?;
        }
        tx.commit().await.map_err(failed("commit change"))?;
        self.outbox.notify_one();
        Ok(Changed::Done(after))
    }

    /// Takes back what was told of workspaces under higher versions than the index has: it is one of a backup that is older. Those that it
    /// has no row of get one, unless they are gone. Gives which were changed. Only when this was done of all may rules be told.
    pub async fn take_back_rules(&self, told: &[ToldRules]) -> Result<Vec<WorkspaceId>, IndexError> {
        let news: Vec<Uuid> = sqlx::query_scalar(
            "select told.id from unnest($1::uuid[], $2::bigint[]) as told (id, version)
             where not exists (select from workspace w where w.id = told.id
                     and (w.rules_version >= told.version or w.terminated_by is not null))
                 and not exists (select from workspace_gone g where g.id = told.id)",
        )
        .bind(told.iter().map(|told| told.workspace.0).collect::<Vec<_>>())
        .bind(told.iter().map(|told| signed(told.version)).collect::<Vec<_>>())
        .fetch_all(&self.pool)
        .await
        .map_err(failed("compare what was told of workspaces"))?;
        let mut changed = Vec::new();
        for told in told.iter().filter(|told| news.contains(&told.workspace.0)) {
            if self.take_back(told).await? {
                changed.push(told.workspace);
            }
        }
        Ok(changed)
    }

    async fn take_back(&self, told: &ToldRules) -> Result<bool, IndexError> {
        let ToldRules { workspace, version, rules } = told;
        let is_closed = rules.state == WorkspaceState::Terminated;
        let terms = match rules.terms {
            Some(terms) => terms,
            // An earlier release told it: the plan is the one of these limits.
            None => match Plan::ALL.into_iter().find(|plan| plan.limits() == rules.limits) {
                Some(plan) => Terms { plan, kept: None, terminates_at: None, closed_by_operator: is_closed },
                None => return Ok(false),
            },
        };
        let mut tx = self.pool.begin().await.map_err(failed("begin taking rules back"))?;
        let changed = sqlx::query(
            // What it was called stands in the backup alone, if it does; when it goes, also where an earlier release told that it was closed.
            "insert into workspace (id, name, plan, state, origins, notice_versions, full_until, rules_version, terminates_at,
                 closed_by_operator, kept_until, kept_window)
             values ($1, 'restored', $2, $3, $4, $5, $6, $7,
                 case when $8 then coalesce($9, clairvio.clock() + interval '14 days') end, $10, $11, make_interval(days => $12))
             on conflict (id) do update set plan = excluded.plan, state = excluded.state, origins = excluded.origins,
                 notice_versions = excluded.notice_versions, full_until = excluded.full_until,
                 rules_version = excluded.rules_version, terminates_at = excluded.terminates_at,
                 closed_by_operator = excluded.closed_by_operator, kept_until = excluded.kept_until,
                 kept_window = excluded.kept_window
             where workspace.rules_version < excluded.rules_version and workspace.terminated_by is null",
        )
        .bind(workspace.0)
        .bind(terms.plan.as_str())
        .bind(rules.state.as_str())
        .bind(&rules.origins)
        .bind(&rules.notice_versions)
        .bind(rules.full_until)
        .bind(signed(*version))
        .bind(is_closed)
        .bind(terms.terminates_at)
        .bind(is_closed && terms.closed_by_operator)
        .bind(terms.kept.map(|kept| kept.until))
        .bind(terms.kept.map(|kept| kept.days.cast_signed()))
        .execute(&mut *tx)
        .await
        .map_err(failed("take rules of a workspace back"))?;
        // Asked once the row is locked: one that went meanwhile is not to come back.
        let is_gone: bool = sqlx::query_scalar("select exists (select from workspace_gone where id = $1)")
            .bind(workspace.0)
            .fetch_one(&mut *tx)
            .await
            .map_err(failed("ask for a workspace that is gone"))?;
        if is_gone || changed.rows_affected() == 0 {
            return Ok(false);
        }
        // What the backup was about to tell is older than what was told.
        sqlx::query("delete from outbox where topic_key = $1")
            .bind(News::Workspace(*workspace, Box::new(rules.clone())).key())
            .execute(&mut *tx)
            .await
            .map_err(failed("forget what a backup was to tell"))?;
        // Should something older have been told behind it, this is the last again.
        tell_rules_again(&mut tx, *workspace).await?;
        tx.commit().await.map_err(failed("commit rules"))?;
        Ok(true)
    }

    /// Makes rows for workspaces that have live sessions and no row, which nobody told anything of, in id order behind the one given;
    /// `limit` workspaces are looked at. The index is one of a backup, and the topic has forgotten. Their sessions get the longest window,
    /// so that none stays for ever, and they are suspended until an operator says what they are. Gives those, and where to go on.
    pub async fn find_unknown_workspaces(
        &self,
        after: Option<WorkspaceId>,
        limit: i64,
    ) -> Result<(Vec<WorkspaceId>, Option<WorkspaceId>), IndexError> {
        let looked_at: Vec<(Uuid, bool)> = sqlx::query_as(
            // From workspace to workspace along an index, whatever they have.
            "with recursive found (id, number) as (
                 (select workspace_id, 1::bigint from session where state = 0 and ($1::uuid is null or workspace_id > $1)
                  order by workspace_id limit 1)
                 union all
                 select next.workspace_id, number + 1 from found cross join lateral (
                     select workspace_id from session where state = 0 and workspace_id > found.id
                     order by workspace_id limit 1
                 ) next where number < $2
             )
             select id, not exists (select from workspace w where w.id = found.id)
                 and not exists (select from workspace_gone g where g.id = found.id) as is_unknown from found order by id",
        )
        .bind(after.map(|after| after.0))
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("look for workspaces without a row"))?;
        let mut made = Vec::new();
        for workspace in looked_at.iter().filter(|(_, is_unknown)| *is_unknown).map(|(workspace, _)| *workspace) {
            let mut tx = self.pool.begin().await.map_err(failed("begin workspace"))?;
            let inserted = sqlx::query(
                "insert into workspace (id, name, plan, state) values ($1, 'restored', $2, 'suspended') on conflict do nothing",
            )
            .bind(workspace)
            .bind(Plan::Scale.as_str())
            .execute(&mut *tx)
            .await
            .map_err(failed("make a workspace that nobody knows"))?;
            if inserted.rows_affected() == 1 {
                tell_rules(&mut tx, WorkspaceId(workspace)).await?;
                made.push(WorkspaceId(workspace));
            }
            tx.commit().await.map_err(failed("commit workspace"))?;
        }
        self.outbox.notify_one();
        let next = looked_at.last().filter(|_| looked_at.len() as i64 == limit).map(|(last, _)| WorkspaceId(*last));
        Ok((made, next))
    }

    /// Sessions that began in each day from `from` to `to`, oldest first; days without sessions are left out.
    pub async fn usage(&self, workspace: WorkspaceId, from: Date, to: Date) -> Result<Vec<UsageItem>, IndexError> {
        let rows = sqlx::query(
            "select day, sessions from workspace_day where workspace_id = $1 and day between $2 and $3 order by day",
        )
        .bind(workspace.0)
        .bind(from)
        .bind(to)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("read usage"))?;
        let item = |row: &PgRow| UsageItem {
            day: row.get::<Date, _>("day").to_string(),
            sessions: unsigned(row.get("sessions")),
        };
        Ok(rows.iter().map(item).collect())
    }
}

/// Inserts a workspace, and tells edges of it. Gives when it was made.
pub(super) async fn insert_workspace(
    tx: &mut PgConnection,
    id: WorkspaceId,
    name: &str,
    plan: Plan,
    origins: &[String],
) -> Result<OffsetDateTime, IndexError> {
    let created_at = sqlx::query_scalar(
        "insert into workspace (id, name, plan, origins) values ($1, $2, $3, $4) returning created_at",
    )
    .bind(id.0)
    .bind(name)
    .bind(plan.as_str())
    .bind(origins)
    .fetch_one(&mut *tx)
    .await
    .map_err(failed("create workspace"))?;
    tell_rules(tx, id).await?;
    Ok(created_at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_kept_as_browsers_write_them() {
        for (given, expect) in [
            ("https://app.example", Some("https://app.example")),
            ("HTTPS://App.Example:443/", Some("https://app.example")),
            ("http://localhost:3000", Some("http://localhost:3000")),
            ("https://bücher.example", Some("https://xn--bcher-kva.example")),
            ("http://[::1]:80", Some("http://[::1]")),
            ("https://app.example/path", None),
            ("https://app.example/?q", None),
            ("https://app.example/#f", None),
            ("https://user@app.example", None),
            ("ftp://app.example", None),
            ("file:///", None),
            ("null", None),
            ("app.example", None),
            ("*", None),
            ("", None),
        ] {
            assert_eq!(normal_origin(given).as_deref(), expect, "{given}");
        }
        let long = format!("https://{}.example", vec!["a".repeat(60); 5].join("."));
        assert_eq!(normal_origin(&long), None);
        let many: Vec<String> = (0..=ORIGINS_MAX).map(|n| format!("https://{n}.app.example")).collect();
        assert_eq!(normal_origins(&many), None);
        assert_eq!(normal_origins(&many[1..]).map(|origins| origins.len()), Some(ORIGINS_MAX));
        let twice = ["https://a.example".to_owned(), "https://A.example/".to_owned()];
        assert_eq!(normal_origins(&twice), Some(vec!["https://a.example".to_owned()]));
    }

    #[test]
    fn names_and_notice_versions_are_bounded() {
        assert_eq!(normal_name("  Shop "), Some("Shop".to_owned()));
        for name in ["", " ", "a\nb", "a\0", &"x".repeat(NAME_BYTES_MAX + 1)] {
            assert_eq!(normal_name(name), None, "{name:?}");
        }
        let versions =
            |texts: &[&str]| normal_notice_versions(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
        assert_eq!(versions(&["a", "b", "a"]).map(|versions| versions.len()), Some(2));
        for wrong in ["", "a\0", &"x".repeat(NOTICE_VERSION_BYTES_MAX + 1)] {
            assert_eq!(versions(&[wrong]), None, "{wrong:?}");
        }
        let many: Vec<String> = (0..=NOTICE_VERSIONS_MAX).map(|n| n.to_string()).collect();
        assert_eq!(normal_notice_versions(&many), None);
    }
}
