//! Plan windows: what is past its workspace's, and nothing else, by a clock that can be trusted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use devstack::DeploymentOptions;
use schemas::WorkspaceId;
use schemas::control::WorkspaceState;
use schemas::http::WorkspacePatch;
use schemas::plan::Plan;
use service_kit::config::postgres::PostgresConfig;
use storage::index::Index;
use storage::index::workspaces::{Graces, WorkspaceChange};
use time::OffsetDateTime;
use time::macros::datetime;
use uuid::Uuid;
use virtual_sdk::{Seen, until};

use crate::deletion::set_clock;
use crate::harness::{SOON, metric, run};
use crate::references::database_of_release;

const BEGINNING: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);
/// More than the longest window.
const DAYS: i64 = 380;
const WORKSPACES: u128 = 24;
/// Of each workspace: one each so many hours, from before the beginning on.
const SESSIONS: i64 = 60;
const EVERY_HOURS: i64 = 37;
const GRACE: Duration = Duration::from_secs(24 * 3_600);
const GRACES: Graces = Graces { plan: GRACE, termination: GRACE };
const PLANS: [(Plan, i64); 4] = [(Plan::Free, 7), (Plan::Starter, 30), (Plan::Growth, 90), (Plan::Scale, 365)];

/// A workspace by the rules.
struct Workspace {
    plan: usize,
    /// Sessions are kept as by the plan before until then, and so long.
    kept: Option<(OffsetDateTime, time::Duration)>,
    live: BTreeMap<Uuid, OffsetDateTime>,
}

impl Workspace {
    fn window(&self) -> time::Duration {
        time::Duration::days(PLANS[self.plan].1)
    }

    /// The window that counts at a time.
    fn kept_for(&self, now: OffsetDateTime) -> time::Duration {
        let kept = self.kept.filter(|(until, _)| *until > now).map(|(_, window)| window);
        kept.map_or(self.window(), |window| window.max(self.window()))
    }

    fn change(&mut self, plan: usize, now: OffsetDateTime) {
        let before = self.kept_for(now);
        let is_other = plan != self.plan;
        self.plan = plan;
        if is_other && self.window() < before {
            self.kept = Some((now + GRACE, before));
        }
    }

    fn expire(&mut self, now: OffsetDateTime) {
        let window = self.kept_for(now);
        self.live.retain(|_, started| *started >= now - window);
    }
}

fn started(session: i64) -> OffsetDateTime {
    BEGINNING + time::Duration::hours((session - SESSIONS / 2) * EVERY_HOURS)
}

/// Goal (P7, R5, R6): each day exactly those sessions are live that are not past their workspace's window: by its plan as it is now, a
/// shorter one only after a grace, and a longer one brings none back. Method: workspaces of all plans, a third of which change
/// their plan up and down again and again, with sessions spread over months; the clock of retention is moved day by day over a
/// year, and what is live is held against the rules.
#[test]
fn p07_each_days_survivors_are_those_within_their_windows() -> Result<()> {
    run(DeploymentOptions::named("year"), &[], async |system| {
        let url = database_of_release(system, "year", 11).await?;
        // One connection: the clock is its setting.
        let index = Index::new(&PostgresConfig { url, connections_max: 1 })?;
        index.migrate().await?;
        let mut model = BTreeMap::new();
        for number in 0..WORKSPACES {
            let (id, plan) = (WorkspaceId(Uuid::from_u128(number + 1)), number as usize % PLANS.len());
            index.create_workspace(id, "w", PLANS[plan].0, &[]).await?;
            let rows: Vec<(Uuid, OffsetDateTime)> =
                (0..SESSIONS).map(|session| (Uuid::now_v7(), started(session))).collect();
            let (ids, starts): (Vec<Uuid>, Vec<OffsetDateTime>) = rows.iter().copied().unzip();
            sqlx::query(
                "insert into session (workspace_id, id, link_id, notice_version, consented_at, receipt_id, started_at,
                     last_activity_at)
                 select $1, id, gen_random_uuid(), '1', at, gen_random_uuid(), at, at
                 from unnest($2::uuid[], $3::timestamptz[]) as s (id, at)",
            )
            .bind(id.0)
            .bind(&ids)
            .bind(&starts)
            .execute(index.pool())
            .await?;
            model.insert(id, Workspace { plan, kept: None, live: rows.into_iter().collect() });
        }
        for day in 0..DAYS {
            // Not on the hour, where sessions begin.
            let now = BEGINNING + time::Duration::days(day) + time::Duration::minutes(30);
            sqlx::query("select set_config('clairvio.now', $1::timestamptz::text, false)")
                .bind(now)
                .execute(index.pool())
                .await?;
            for (number, (id, workspace)) in model.iter_mut().enumerate().filter(|(number, _)| number % 3 == 1) {
                // Each by its own pace, up and down.
                if day % (11 + number as i64) == 5 {
                    let plan = (workspace.plan + 1 + number % 3) % PLANS.len();
                    let change = WorkspaceChange { plan: Some(PLANS[plan].0), ..WorkspaceChange::default() };
                    index.change_workspace(*id, &change, GRACES, || true).await?;
                    workspace.change(plan, now);
                }
            }
            let now_s = index.due(1).await?.now_s;
            while index.expire(now_s, 1_000, || true).await? > 0 {}
            model.values_mut().for_each(|workspace| workspace.expire(now));
            let live: Vec<Uuid> =
                sqlx::query_scalar("select id from session where state = 0").fetch_all(index.pool()).await?;
            let expected: BTreeSet<Uuid> =
                model.values().flat_map(|workspace| workspace.live.keys().copied()).collect();
            let live: BTreeSet<Uuid> = live.into_iter().collect();
            ensure!(
                live == expected,
                "day {day}: {} are gone too soon, {} are there too long",
                expected.difference(&live).count(),
                live.difference(&expected).count()
            );
        }
        let left: usize = model.values().map(|workspace| workspace.live.len()).sum();
        ensure!(left > 0 && left < WORKSPACES as usize * SESSIONS as usize / 2, "{left} sessions are left");
        let doubled = "select count(*) from (select from deletion_session group by session_id having count(*) > 1) d";
        let doubled: i64 = sqlx::query_scalar(doubled).fetch_one(index.pool()).await?;
        ensure!(doubled == 0, "{doubled} sessions stand in two deletions");
        Ok(())
    })
}

/// For how long nothing may go.
const WATCHED: Duration = Duration::from_secs(2);
const DIFFER: &str = "retention_clocks_differ_seconds";

/// Goal: a clock of the index that is years ahead deletes nothing, and an alarm says so; once it is right all goes on. Method: the clock
/// of retention is moved by three years under a worker with sessions in windows of a year, and a workspace that was just closed; then back,
/// with a session that is past its window.
#[test]
fn a_clock_that_is_years_ahead_wipes_nothing() -> Result<()> {
    let options = DeploymentOptions { plan: Plan::Scale, ..DeploymentOptions::named("clock") }.with(
        "retention-worker",
        "CLAIRVIO_PASS_INTERVAL_MS",
        100,
    );
    run(options, &["nothing expires"], async |system| {
        let (closed, closed_key) = system.another_workspace(Plan::Scale).await?;
        let closed_api = system.api_at(1, &closed_key)?;
        closed_api.close_workspace().await?;
        // Or it would be the one that finds them past their windows.
        let rounds = "select count(*) from reconciliation where ended_at is not null";
        system.wait_count("the reconciler's first round is over", rounds, 1, SOON).await?;
        set_clock(system, "3 years").await?;
        let worker = system.admin_url("retention-worker", 1)?;
        until("the worker alarms", SOON, || async {
            match metric(&worker, DIFFER).await {
                0 => Seen::not_yet("it does not"),
                seconds => Seen::Done(seconds),
            }
        })
        .await?;
        // Until now the workspace alone was past its time; now these are past their windows.
        sqlx::query(
            "insert into session (workspace_id, id, link_id, notice_version, consented_at, receipt_id, started_at,
                 last_activity_at)
             select $1, gen_random_uuid(), gen_random_uuid(), '1', now(), gen_random_uuid(), now(), now()
             from generate_series(1, 500)",
        )
        .bind(system.workspace.0)
        .execute(system.index.pool())
        .await?;
        let live = "select count(*) from session where state = 0";
        let begun_to_go = "select count(*) from workspace where terminated_by is not null";
        // Many passes long.
        let (mut looks, begun) = (tokio::time::interval(Duration::from_millis(100)), tokio::time::Instant::now());
        while begun.elapsed() < WATCHED {
            looks.tick().await;
            ensure!(system.count(live).await? == 500, "sessions went by a wrong clock");
            ensure!(system.count(begun_to_go).await? == 0, "workspace {closed} went by a wrong clock");
        }
        sqlx::query("update session set started_at = started_at - interval '366 days' where id = (select min(id::text)::uuid from session)")
            .execute(system.index.pool())
            .await?;
        set_clock(system, "0 seconds").await?;
        system.wait_count("what is past its window goes", live, 499, SOON).await?;
        ensure!(metric(&worker, DIFFER).await == 0, "it alarms still");
        let opened = WorkspacePatch { state: Some(WorkspaceState::Active), ..WorkspacePatch::default() };
        closed_api.change_workspace(&opened).await.context("open the closed workspace again")?;
        Ok(())
    })
    .context("a wrong clock")
}
