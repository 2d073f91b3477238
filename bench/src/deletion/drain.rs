//! From the moment that sessions are past their window until nothing is left of them, stage by stage.

use std::time::Duration;

use anyhow::{Context, bail};
use schemas::WorkspaceId;
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::Bench;
use super::seed::{KEPT_WITH_OBJECTS, Seeded};
use crate::progress::Line;

const LOOK_EVERY: Duration = Duration::from_millis(500);
const SHOW_EVERY: Duration = Duration::from_secs(5);
/// Nothing of a run takes longer than this without any stage ending.
const STAGE_WITHIN: Duration = Duration::from_secs(3_600);

/// When all had come so far, in seconds after they were due.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Drained {
    /// Nobody reads any of them.
    pub(super) tombstoned_s: f64,
    /// No key of them is there.
    pub(super) shredded_s: f64,
    /// The rows of their objects are gone, after a listing that showed the objects absent.
    pub(super) removed_s: f64,
    /// Listings showed nothing below any of their prefixes.
    pub(super) erased_s: f64,
    /// Their deletions have receipts.
    pub(super) receipted_s: f64,
}

/// What is left before a stage is over; each is asked along an index, and not before those that it follows from are over.
const TOMBSTONED: &str = "select not exists (select from session where workspace_id = $1 and state = 0
    and started_at < now() - interval '7 days')";
const SHREDDED: &str =
    "select $1::uuid is not null and not exists (select from deletion_session where shredded_at is null)";
const ERASED: &str =
    "select $1::uuid is not null and not exists (select from deletion_session where erased_at is null)";
const RECEIPTED: &str = "select not exists (select from deletion where workspace_id = $1 and receipted_at is null)";
const OBJECTS_LEFT: &str = "select count(*) from object where kind = 1 and workspace_id = $1";

pub(super) async fn run(bench: &Bench<'_>, seeded: &Seeded) -> anyhow::Result<Drained> {
    let begun = Instant::now();
    seeded.make_due(bench).await?;
    let stages = async {
        let mut ended = [0.0; 4];
        for (stage, question) in ended.iter_mut().zip([TOMBSTONED, SHREDDED, ERASED, RECEIPTED]) {
            *stage = wait(bench, seeded.workspace, question, begun).await?;
        }
        anyhow::Ok(ended)
    };
    // Beside the stages: the rows of some objects go while other sessions are not even found.
    let objects = async {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let left: i64 = sqlx::query_scalar(OBJECTS_LEFT)
                .bind(seeded.workspace.0)
                .fetch_one(&bench.pool)
                .await
                .context("count objects")?;
            if left <= i64::from(KEPT_WITH_OBJECTS) {
                return anyhow::Ok(begun.elapsed().as_secs_f64());
            }
            if begun.elapsed() > STAGE_WITHIN {
                bail!("{left} objects are left after {} s", STAGE_WITHIN.as_secs());
            }
        }
    };
    let told = tell(bench, begun);
    let ([tombstoned_s, shredded_s, erased_s, receipted_s], removed_s) = tokio::select! {
        ended = async { tokio::try_join!(stages, objects) } => ended?,
        () = told => bail!("watch the deletion: the line ended"),
    };
    Ok(Drained { tombstoned_s, shredded_s, removed_s, erased_s, receipted_s })
}

async fn wait(
    bench: &Bench<'_>,
    workspace: WorkspaceId,
    question: &'static str,
    begun: Instant,
) -> anyhow::Result<f64> {
    let (mut ticks, since) = (interval(LOOK_EVERY), Instant::now());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let is_over: bool = sqlx::query_scalar(question)
            .bind(workspace.0)
            .fetch_one(&bench.pool)
            .await
            .with_context(|| format!("ask: {question}"))?;
        if is_over {
            return Ok(begun.elapsed().as_secs_f64());
        }
        if since.elapsed() > STAGE_WITHIN {
            bail!("not within {} s: {question}", STAGE_WITHIN.as_secs());
        }
    }
}

/// Waits until nothing of a workspace's deletions is to be done, receipts apart.
pub(super) async fn wait_gone(bench: &Bench<'_>, workspace: WorkspaceId) -> anyhow::Result<()> {
    for question in [TOMBSTONED, SHREDDED, ERASED] {
        wait(bench, workspace, question, Instant::now()).await?;
    }
    Ok(())
}

/// Tells now and then how far it is, as the workers count it.
async fn tell(bench: &Bench<'_>, begun: Instant) {
    let (line, mut ticks) = (Line::new(), interval(SHOW_EVERY));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let supervisor = &bench.deployment.supervisor;
    loop {
        ticks.tick().await;
        let mut sums = [0; 4];
        for service in supervisor.running().iter().filter(|service| service.name.starts_with("retention-worker")) {
            // One that does not answer now does so the next time.
            let text = supervisor.metrics(&service.name).await.unwrap_or_default();
            for (sum, name) in sums.iter_mut().zip(["expired", "shredded", "erased", "removed"]) {
                *sum += counted(&text, name);
            }
        }
        let [expired, shredded, erased, removed] = sums;
        line.show(&format!(
            "{:6.0} s: {expired} expired, {shredded} shredded, {erased} erased, {removed} objects removed",
            begun.elapsed().as_secs_f64()
        ));
    }
}

/// A counter `retention_<name>_…_total`.
fn counted(text: &str, name: &str) -> u64 {
    let found = text.lines().find_map(|line| {
        let (metric, value) = line.split_once(' ')?;
        let of = metric.strip_prefix("retention_")?.strip_prefix(name)?;
        matches!(of, "_sessions_total" | "_objects_total").then(|| value.trim().parse().unwrap_or(0))
    });
    found.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_by_their_whole_names() {
        let text = "# HELP retention_erased_sessions_total x\nretention_erased_sessions_total 7\nretention_removed_objects_total 9\n\
                    retention_expired_sessions_total{a=\"b\"} 3\n";
        assert_eq!(["erased", "removed", "expired", "shredded"].map(|name| counted(text, name)), [7, 9, 0, 0]);
    }
}
