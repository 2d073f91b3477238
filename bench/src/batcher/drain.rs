//! Batchers that bring a full log into the index, and what that took.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use devstack::{Backlog, Deployment, Progress};
use serde::Serialize;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::counts::Counts;
use super::fill::Filled;
use crate::machine;
use crate::progress::Line;

const LOOK_EVERY: Duration = Duration::from_millis(50);
const SHOW_EVERY: Duration = Duration::from_secs(1);
/// Without any progress for this long, a drain has failed. Longer than a flush's age and a rebalance together.
const STALLED_AFTER: Duration = Duration::from_secs(120);
/// From when the index has it until the batcher has counted it.
const COUNTED_WITHIN: Duration = Duration::from_secs(10);

/// The part of a drain in which batchers worked without a break.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Steady {
    pub(crate) seconds: f64,
    pub(crate) raw_bytes: u64,
    pub(crate) records: u64,
}

/// What a drain took.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Drain {
    /// From the processes' start until the index had all: joining the group and the last flushes' age included.
    pub(crate) seconds: f64,
    /// From the processes' start until each partition had the owner that it kept.
    pub(crate) settled_after_s: f64,
    /// None when there was no flush but the last of each partition.
    pub(crate) steady: Option<Steady>,
    /// Processor seconds of the batchers, user and system, their start included.
    pub(crate) cpu_seconds: f64,
    pub(crate) counts: Counts,
    pub(crate) faults: Vec<String>,
}

/// Starts the deployment's batchers and watches the index until it has all that the log holds.
pub(crate) async fn run(deployment: &Deployment, filled: &Filled) -> anyhow::Result<Drain> {
    let backlog = deployment.backlog().await?;
    let log_records: u64 = backlog.ends().values().sum();
    let begun = Instant::now();
    let batchers = deployment.release().await?;
    let watch = watch(deployment, &backlog, &batchers, begun).await?;
    let seconds = begun.elapsed().as_secs_f64();
    let counts = settled_counts(deployment, &batchers, filled, log_records).await?;
    let running = deployment.supervisor.running();
    let batchers: Vec<_> = running.into_iter().filter(|service| batchers.contains(&service.name)).collect();
    let cpu = machine::service_cpu(&batchers);
    anyhow::ensure!(cpu.len() == batchers.len(), "read processor time of batchers from /proc");
    Ok(Drain {
        seconds,
        settled_after_s: watch.settled.map_or(seconds, |mark| mark.at.as_secs_f64()),
        steady: watch.steady(),
        cpu_seconds: cpu.values().sum(),
        faults: counts.faults(filled, log_records),
        counts,
    })
}

async fn watch(
    deployment: &Deployment,
    backlog: &Backlog,
    batchers: &[String],
    begun: Instant,
) -> anyhow::Result<Watch> {
    let mut watch = Watch::default();
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (line, mut shown, mut moved) = (Line::new(), begun, begun);
    loop {
        ticks.tick().await;
        let progress = backlog.progress().await?;
        let records: u64 = progress.values().map(|progress| progress.next).sum();
        if progress != watch.last {
            moved = Instant::now();
            // Asked for after the progress: what is counted by then was published before.
            let raw_bytes = raw_bytes(deployment, batchers).await?;
            watch.see(backlog.ends(), progress, Mark { at: begun.elapsed(), raw_bytes, records });
        }
        if shown.elapsed() >= SHOW_EVERY || watch.is_over(backlog.ends()) {
            shown = Instant::now();
            let all: u64 = backlog.ends().values().sum();
            line.show(&format!(
                "{} batchers, {:5.1} s: {records} of {all} records in the index",
                batchers.len(),
                begun.elapsed().as_secs_f64()
            ));
        }
        if watch.is_over(backlog.ends()) {
            line.end();
            return Ok(watch);
        }
        for batcher in batchers {
            if deployment.supervisor.pid(batcher).is_none() {
                bail!(
                    "drain the log: {batcher} ended by itself; its log: {}",
                    deployment.supervisor.log(batcher).display()
                );
            }
        }
        if moved.elapsed() >= STALLED_AFTER {
            bail!(
                "drain the log: no progress for {} s at {progress:?}",
                STALLED_AFTER.as_secs(),
                progress = watch.last
            );
        }
    }
}

/// Bytes that batchers say they published. One that does not answer yet has published nothing.
async fn raw_bytes(deployment: &Deployment, batchers: &[String]) -> anyhow::Result<u64> {
    let texts = futures::future::join_all(batchers.iter().map(|name| deployment.supervisor.metrics(name))).await;
    let texts: Vec<String> = texts.into_iter().flatten().collect();
    Ok(Counts::read(&texts)?.raw_bytes)
}

/// The counts once they say that all is stored; else, after a time, as they are.
async fn settled_counts(
    deployment: &Deployment,
    batchers: &[String],
    filled: &Filled,
    log_records: u64,
) -> anyhow::Result<Counts> {
    let deadline = Instant::now() + COUNTED_WITHIN;
    let mut ticks = interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        let texts = futures::future::try_join_all(batchers.iter().map(|name| deployment.supervisor.metrics(name)));
        let counts = Counts::read(&texts.await?).context("read metrics of batchers")?;
        if counts.faults(filled, log_records).is_empty() || Instant::now() >= deadline {
            return Ok(counts);
        }
    }
}

/// A moment of a drain.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Mark {
    /// Since the processes' start.
    at: Duration,
    raw_bytes: u64,
    records: u64,
}

/// What was seen of a drain.
///
/// A partition's last flush is mostly one that waited until it was old enough, which says nothing of speed. So the steady
/// part begins when the last partition changed its owner, and ends with the last progress of a partition that did not
/// reach its end: work went on all that time. What was read by then and not published does not count.
#[derive(Debug, Default)]
struct Watch {
    last: BTreeMap<i32, Progress>,
    settled: Option<Mark>,
    worked: Option<Mark>,
}

impl Watch {
    fn see(&mut self, ends: &BTreeMap<i32, u64>, progress: BTreeMap<i32, Progress>, mark: Mark) {
        for (partition, now) in &progress {
            let before = self.last.get(partition);
            if before.is_none_or(|before| before.epoch != now.epoch) {
                self.settled = Some(mark);
            }
            let has_moved = now.next > before.map_or(0, |before| before.next);
            if has_moved && ends.get(partition).is_some_and(|end| now.next < *end) {
                self.worked = Some(mark);
            }
        }
        self.last = progress;
    }

    fn is_over(&self, ends: &BTreeMap<i32, u64>) -> bool {
        ends.iter().all(|(partition, end)| self.last.get(partition).map_or(0, |progress| progress.next) >= *end)
    }

    fn steady(&self) -> Option<Steady> {
        let (from, to) = (self.settled?, self.worked?);
        let seconds = to.at.checked_sub(from.at).filter(|time| !time.is_zero())?.as_secs_f64();
        let raw_bytes = to.raw_bytes.checked_sub(from.raw_bytes).filter(|bytes| *bytes > 0)?;
        Some(Steady { seconds, raw_bytes, records: to.records.checked_sub(from.records)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A second, (next, epoch) of two partitions, and the bytes published by then.
    type Look = (u64, [(u64, u64); 2], u64);

    /// Looks at two partitions that end at 100 and 50.
    fn watch(looks: &[Look]) -> Watch {
        let ends = BTreeMap::from([(0, 100), (1, 50)]);
        let mut watch = Watch::default();
        for (second, partitions, raw_bytes) in looks {
            let progress: BTreeMap<i32, Progress> =
                (0..).zip(partitions.map(|(next, epoch)| Progress { next, epoch })).collect();
            let records = progress.values().map(|progress| progress.next).sum();
            watch.see(&ends, progress, Mark { at: Duration::from_secs(*second), raw_bytes: *raw_bytes, records });
        }
        assert!(
            watch.is_over(&ends) == looks.last().is_some_and(|(_, partitions, _)| partitions.map(|p| p.0) == [100, 50])
        );
        watch
    }

    #[test]
    fn the_steady_part_ends_before_the_wait_of_the_last_flushes() {
        let seen = watch(&[
            (1, [(0, 1), (0, 1)], 0),
            (2, [(40, 1), (0, 1)], 400),
            (3, [(80, 1), (30, 1)], 1_100),
            (13, [(100, 1), (30, 1)], 1_300),
            (14, [(100, 1), (50, 1)], 1_500),
        ]);
        assert_eq!(seen.steady(), Some(Steady { seconds: 2.0, raw_bytes: 1_100, records: 110 }));
    }

    #[test]
    fn what_was_done_before_the_last_change_of_an_owner_does_not_count() {
        let seen = watch(&[
            (1, [(0, 1), (0, 1)], 0),
            (5, [(40, 1), (10, 1)], 500),
            (6, [(40, 1), (10, 2)], 500),
            (10, [(80, 1), (30, 2)], 1_100),
            (20, [(100, 1), (50, 2)], 1_500),
        ]);
        assert_eq!(seen.steady(), Some(Steady { seconds: 4.0, raw_bytes: 600, records: 60 }));
    }

    #[test]
    fn last_flushes_alone_have_no_steady_part() {
        assert_eq!(watch(&[(1, [(0, 1), (0, 1)], 0), (11, [(100, 1), (50, 1)], 1_500)]).steady(), None);
        assert_eq!(
            watch(&[(1, [(0, 1), (0, 1)], 0), (5, [(40, 1), (0, 1)], 400), (6, [(40, 2), (0, 1)], 400)]).steady(),
            None
        );
        assert!(!watch(&[]).is_over(&BTreeMap::from([(0, 1)])));
    }
}
