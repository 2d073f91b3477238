//! Where a deployment's sessions lie, as the index says, and what its services asked of S3.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use devstack::Deployment;
use schemas::{SessionId, SessionKey, WorkspaceId};
use service_kit::config::postgres::PostgresConfig;
use storage::index::Index;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::progress::Line;

const LOOK_EVERY: Duration = Duration::from_millis(100);
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// The index of a deployment.
pub(crate) struct Stored {
    index: Index,
    topic: String,
    workspace: WorkspaceId,
}

impl Stored {
    pub(crate) fn of(deployment: &Deployment) -> anyhow::Result<Self> {
        let endpoints = deployment.endpoints();
        let index = Index::new(&PostgresConfig { url: endpoints.database_url, connections_max: 1 })?;
        let workspace = WorkspaceId(endpoints.workspace_id.parse().context("read workspace's id")?);
        Ok(Self { index, topic: deployment.topic.clone(), workspace })
    }

    /// Shared objects that readers have to look at.
    pub(crate) async fn shared_objects(&self) -> anyhow::Result<usize> {
        Ok(self.index.shared_objects(&self.topic).await?.len())
    }

    /// Bytes of each of a session's own objects.
    pub(crate) async fn own_objects(&self, session: SessionId) -> anyhow::Result<Vec<u64>> {
        let objects = self.index.session_objects(&SessionKey { workspace: self.workspace, session }).await?;
        Ok(objects.iter().map(|object| object.bytes).collect())
    }

    /// Waits until no shared object is left, and no session that will get another object of its own.
    pub(crate) async fn wait_until_merged(
        &self,
        deployment: &Deployment,
        compactors: &[String],
        within: Duration,
    ) -> anyhow::Result<()> {
        let what = "merge what was filled";
        wait(what, within, deployment, compactors, async || {
            let shared = self.shared_objects().await?;
            // Whatever was silent for no time at all is over: all that are not final yet.
            let open = self.index.sessions_over(Duration::ZERO, i64::MAX).await?.len();
            Ok((shared + open == 0, format!("{shared} shared objects and {open} sessions are left to merge")))
        })
        .await
    }
}

/// Waits until the index has all that the log holds now.
pub(crate) async fn wait_until_drained(deployment: &Deployment, within: Duration) -> anyhow::Result<()> {
    let backlog = deployment.backlog().await?;
    wait("drain the log", within, deployment, &[], async || {
        let progress = backlog.progress().await?;
        let next = |partition: &i32| progress.get(partition).map_or(0, |progress| progress.next);
        let left: u64 = backlog.ends().iter().map(|(partition, end)| end.saturating_sub(next(partition))).sum();
        Ok((left == 0, format!("{left} records are not in the index yet")))
    })
    .await
}

/// Looks until it is done; `needed` are services that must not end meanwhile.
async fn wait(
    what: &str,
    within: Duration,
    deployment: &Deployment,
    needed: &[String],
    look: impl AsyncFn() -> anyhow::Result<(bool, String)>,
) -> anyhow::Result<()> {
    let (begun, line) = (Instant::now(), Line::new());
    let (mut ticks, mut shown) = (interval(LOOK_EVERY), begun);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let (is_done, state) = look().await.with_context(|| what.to_owned())?;
        if is_done || shown.elapsed() >= SHOW_EVERY {
            shown = Instant::now();
            line.show(&format!("{:5.1} s: {state}", begun.elapsed().as_secs_f64()));
        }
        if is_done {
            line.end();
            return Ok(());
        }
        if let Some(name) = needed.iter().find(|name| deployment.supervisor.pid(name).is_none()) {
            bail!("{what}: {name} ended by itself; its log: {}", deployment.supervisor.log(name).display());
        }
        if begun.elapsed() >= within {
            bail!("{what}: after {} s {state}", within.as_secs());
        }
    }
}

/// Requests to S3 by operation, of all services whose names begin so.
pub(crate) async fn requests(deployment: &Deployment, services: &str) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut requests = BTreeMap::new();
    for service in deployment.supervisor.running().iter().filter(|service| service.name.starts_with(services)) {
        for (operation, count) in parse_requests(&deployment.supervisor.metrics(&service.name).await?) {
            *requests.entry(operation).or_default() += count;
        }
    }
    Ok(requests)
}

/// Requests between two looks.
pub(crate) fn since(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    let more = after.iter().map(|(operation, count)| {
        (operation.clone(), count.saturating_sub(before.get(operation).copied().unwrap_or_default()))
    });
    more.filter(|(_, count)| *count > 0).collect()
}

fn parse_requests(text: &str) -> BTreeMap<String, u64> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("s3_requests_total{operation=\""));
    lines
        .filter_map(|line| line.split_once("\"} "))
        .map(|(name, count)| (name.to_owned(), count.trim().parse().unwrap_or(0)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_by_operation_and_counted_from_the_look_before() {
        let text = "# TYPE s3_requests_total counter\ns3_requests_total 0\ns3_requests_total{operation=\"get\"} 7\n\
                    s3_requests_total{operation=\"put\"} 2\nother_total{operation=\"get\"} 9\n";
        let first = parse_requests(text);
        assert_eq!(first, BTreeMap::from([("get".to_owned(), 7), ("put".to_owned(), 2)]));
        let later = parse_requests(&text.replace("} 7", "} 10"));
        assert_eq!(since(&first, &later), BTreeMap::from([("get".to_owned(), 3)]));
    }
}
