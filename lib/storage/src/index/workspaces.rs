//! Workspaces, and what edges are told of them.

use std::time::Duration;

use schemas::WorkspaceId;
use schemas::control::{Entry, WorkspaceRules, WorkspaceState};
use schemas::http::{UsageItem, WorkspaceItem};
use schemas::limits::{NAME_BYTES_MAX, NOTICE_VERSION_BYTES_MAX, NOTICE_VERSIONS_MAX, ORIGIN_BYTES_MAX, ORIGINS_MAX};
use schemas::plan::Plan;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use time::{Date, OffsetDateTime};
use url::Url;

use super::links::Before;
use super::{Index, IndexError, failed, outbox, unsigned};

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
    let row = sqlx::query(
        "update workspace set rules_version = rules_version + 1 where id = $1
         returning plan, state, origins, notice_versions, full_until, rules_version",
    )
    .bind(workspace.0)
    .fetch_one(&mut *tx)
    .await
    .map_err(failed("count up version of rules"))?;
    let not_ours = || IndexError::Row("workspace");
    let rules = WorkspaceRules {
        state: WorkspaceState::parse(row.get("state")).ok_or_else(not_ours)?,
        limits: Plan::parse(row.get("plan")).ok_or_else(not_ours)?.limits(),
        full_until: row.get("full_until"),
        origins: row.get("origins"),
        notice_versions: row.get("notice_versions"),
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

    /// Changes a workspace, and tells edges in the same transaction when it is something that they go by.
    pub async fn change_workspace(
        &self,
        id: WorkspaceId,
        change: &WorkspaceChange,
        graces: Graces,
    ) -> Result<Changed, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin change"))?;
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
