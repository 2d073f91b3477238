//! What a run showed, as JSON for machines and in a few lines for people.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::bare::Bare;
use super::by_hand::ByHand;
use super::drain::Drained;
use super::ingest::Latency;
use super::{CONDEMNED_GRACE_MS, KEY_CACHE_MS, Options, PASS_INTERVAL_MS, Passes, Size};
use crate::machine::Machine;
use crate::report::{Quantiles, Verdict};
use crate::spread::Spread;

/// What a report is made of.
pub(super) struct Parts {
    pub(super) parameters: Options,
    pub(super) by_hand: ByHand,
    pub(super) calm: Latency,
    pub(super) busy: Latency,
    pub(super) bare: Bare,
    pub(super) drained: Drained,
    pub(super) requests: BTreeMap<String, u64>,
    pub(super) passes: [Passes; 2],
    pub(super) sizes: [Vec<Size>; 3],
    pub(super) vacuum_s: f64,
    pub(super) faults: Vec<String>,
}

/// How fast a stage was: all of it from when it was due.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Stage {
    count: u64,
    seconds: f64,
    per_s: f64,
    /// By the bound of the same run.
    by_bare: f64,
}

impl Stage {
    fn of(count: u32, seconds: f64, bare_per_s: f64) -> Self {
        // No clock is so fine that something took no time.
        let per_s = f64::from(count) / seconds.max(1e-3);
        Self { count: count.into(), seconds, per_s, by_bare: per_s / bare_per_s.max(1e-9) }
    }
}

/// What stands in the index, in bytes.
#[derive(Debug, Clone, Serialize)]
struct Sizes {
    when: &'static str,
    tables: Vec<Size>,
}

/// What a run found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether all that had to go is gone, all that had to stay is there, and a receipt verifies.
    pub verdict: Verdict,
    faults: Vec<String>,
    machine: Machine,
    parameters: Options,
    /// How the programs were built.
    profile: &'static str,
    bare: Bare,
    tombstoned: Stage,
    shredded: Stage,
    erased: Stage,
    removed_objects: Stage,
    receipted_s: f64,
    /// Of the workers to S3, by operation.
    requests: BTreeMap<String, u64>,
    by_hand: ByHand,
    ingest_calm: Latency,
    ingest_busy: Latency,
    /// Of batches, while much is deleted by while nothing is.
    ingest_p99_ratio: f64,
    passes_before: Passes,
    passes_after: Passes,
    sizes: [Sizes; 3],
    vacuum_s: f64,
}

impl Report {
    pub(super) fn new(parts: Parts) -> Self {
        let Parts { parameters, by_hand, calm, busy, bare, drained, requests, passes, sizes, vacuum_s, faults } = parts;
        let [passes_before, passes_after] = passes;
        let [filled, emptied, vacuumed] = sizes;
        let of_rows = |seconds| Stage::of(parameters.sessions, seconds, bare.updated_rows_per_s);
        Self {
            verdict: if faults.is_empty() { Verdict::Held } else { Verdict::Failed },
            faults,
            machine: Machine::here(),
            profile: crate::batcher::PROFILE,
            tombstoned: of_rows(drained.tombstoned_s),
            shredded: of_rows(drained.shredded_s),
            erased: of_rows(drained.erased_s),
            removed_objects: Stage::of(parameters.objects, drained.removed_s, bare.deleted_objects_per_s),
            receipted_s: drained.receipted_s,
            bare,
            requests,
            by_hand,
            ingest_p99_ratio: busy.batch_ms.p99 / calm.batch_ms.p99.max(1e-3),
            ingest_calm: calm,
            ingest_busy: busy,
            passes_before,
            passes_after,
            sizes: [
                Sizes { when: "filled", tables: filled },
                Sizes { when: "after the deletion", tables: emptied },
                Sizes { when: "after a vacuum", tables: vacuumed },
            ],
            vacuum_s,
            parameters,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { sessions, objects, rows, workspaces, workers, objects_per_second, .. } = self.parameters;
        writeln!(
            f,
            "{sessions} sessions past their window at once, {objects} with an object of {} bytes and a key, beside {rows} of {workspaces} \
             workspaces that stay",
            self.parameters.object_bytes
        )?;
        let pace = if objects_per_second == 0 { "no bound".to_owned() } else { objects_per_second.to_string() };
        writeln!(
            f,
            "{workers} workers, {pace} of objects a second; passes each {PASS_INTERVAL_MS} ms, grace {CONDEMNED_GRACE_MS} ms, keys in memory \
             {KEY_CACHE_MS} ms; {} cores for all processes together; profile {}",
            self.machine.cores, self.profile
        )?;
        let Bare { deleted_objects_per_s, updated_rows_per_s } = self.bare;
        writeln!(
            f,
            "bare          {deleted_objects_per_s:.0} objects/s by DeleteObjects, {updated_rows_per_s:.0} rows/s by one update"
        )?;
        let stages = [
            ("unreadable", self.tombstoned, "rows"),
            ("shredded", self.shredded, "rows"),
            ("erased", self.erased, "rows"),
            ("objects gone", self.removed_objects, "objects"),
        ];
        for (what, Stage { count, seconds, per_s, by_bare }, of) in stages {
            writeln!(f, "{what:13} {count} after {seconds:.1} s: {per_s:.0}/s, {by_bare:.4} of bare {of}")?;
        }
        writeln!(f, "receipted     after {:.1} s", self.receipted_s)?;
        let requests: Vec<String> =
            self.requests.iter().map(|(operation, count)| format!("{operation} {count}")).collect();
        writeln!(f, "requests      of workers to S3: {}", requests.join(", "))?;
        let ByHand { answered_ms, unreadable_ms, shredded_ms, erased_ms } = self.by_hand;
        for (what, Quantiles { count, p50, p99, max, .. }) in
            [("answered", answered_ms), ("unreadable", unreadable_ms), ("shredded", shredded_ms), ("erased", erased_ms)]
        {
            writeln!(f, "by hand       {what} after p50 {p50:.1} ms, p99 {p99:.1} ms, max {max:.1} ms, of {count}")?;
        }
        for (when, latency) in [("calm", &self.ingest_calm), ("busy", &self.ingest_busy)] {
            let Latency { events_per_second, batch_ms, given_up } = latency;
            writeln!(
                f,
                "ingest {when}   p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms at {events_per_second:.0} events/s, {} given up",
                batch_ms.p50,
                batch_ms.p99,
                batch_ms.max,
                given_up.values().sum::<u64>()
            )?;
        }
        writeln!(f, "ingest        p99 {:.2} times as long as while nothing is deleted", self.ingest_p99_ratio)?;
        for passes in [&self.passes_before, &self.passes_after] {
            write!(f, "queries       with {} live sessions, in ms:", passes.live)?;
            for (what, rounds) in [
                ("due", &passes.due_ms),
                ("leaving", &passes.leaving_ms),
                ("removable", &passes.removable_ms),
                ("expire 1,000", &passes.expire_ms),
            ] {
                if let Some(spread) = Spread::of(rounds.iter().copied()) {
                    write!(f, " {what} {spread:.1};")?;
                }
            }
            writeln!(f)?;
        }
        for Sizes { when, tables } in &self.sizes {
            let sum = |of: fn(&Size) -> u64| tables.iter().map(of).sum::<u64>();
            writeln!(
                f,
                "index         {when}: {:.1} MB of tables, {:.1} MB of their indexes, {} dead rows",
                sum(|size| size.table_bytes) as f64 / 1e6,
                sum(|size| size.index_bytes) as f64 / 1e6,
                sum(|size| size.dead_rows)
            )?;
        }
        writeln!(f, "vacuum        {:.1} s", self.vacuum_s)?;
        for fault in &self.faults {
            writeln!(f, "fault         {fault}")?;
        }
        write!(
            f,
            "verdict       {}",
            match self.verdict {
                Verdict::Held => "held: all that had to go is gone, all else is there, and a receipt verifies",
                Verdict::Failed => "FAILED",
            }
        )
    }
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;

    use super::*;

    fn report(faults: Vec<String>) -> Report {
        let quantiles = |ms: u64| {
            let mut histogram = Histogram::<u64>::new(3).expect("a histogram");
            histogram.record(ms * 1_000).expect("it fits");
            Quantiles::of(&histogram, 1.0)
        };
        let latency = |ms| Latency { events_per_second: 300.0, batch_ms: quantiles(ms), given_up: BTreeMap::new() };
        let passes = Passes {
            live: 10,
            due_ms: vec![1.0, 2.0, 3.0],
            leaving_ms: vec![4.0],
            removable_ms: vec![5.0],
            expire_ms: Vec::new(),
        };
        let size = Size { table: "session", table_bytes: 1_000_000, index_bytes: 2_000_000, dead_rows: 7 };
        Report::new(Parts {
            parameters: Options {
                sessions: 1_000,
                objects: 100,
                object_bytes: 4_096,
                rows: 5_000,
                workspaces: 10,
                by_hand: 1,
                workers: 1,
                objects_per_second: 0,
                load_seconds: 1,
                events_per_second: 300.0,
            },
            by_hand: ByHand {
                answered_ms: quantiles(1),
                unreadable_ms: quantiles(2),
                shredded_ms: quantiles(3),
                erased_ms: quantiles(4),
            },
            calm: latency(10),
            busy: latency(25),
            bare: Bare { deleted_objects_per_s: 50.0, updated_rows_per_s: 400.0 },
            drained: Drained {
                tombstoned_s: 5.0,
                shredded_s: 10.0,
                removed_s: 20.0,
                erased_s: 25.0,
                receipted_s: 30.0,
            },
            requests: BTreeMap::from([("delete".to_owned(), 1)]),
            passes: [passes.clone(), passes],
            sizes: [vec![size.clone()], vec![size.clone()], vec![size]],
            vacuum_s: 1.0,
            faults,
        })
    }

    #[test]
    fn stages_are_held_against_the_bound_of_their_own_kind() {
        let report = report(Vec::new());
        assert_eq!(report.tombstoned, Stage { count: 1_000, seconds: 5.0, per_s: 200.0, by_bare: 0.5 });
        assert_eq!(report.erased, Stage { count: 1_000, seconds: 25.0, per_s: 40.0, by_bare: 0.1 });
        assert_eq!(report.removed_objects, Stage { count: 100, seconds: 20.0, per_s: 5.0, by_bare: 0.1 });
        assert!((2.4..2.6).contains(&report.ingest_p99_ratio), "{}", report.ingest_p99_ratio);
    }

    #[test]
    fn any_fault_fails_the_run_and_is_told() {
        assert_eq!(report(Vec::new()).verdict, Verdict::Held);
        let failed = report(vec!["3 objects are left".to_owned()]);
        assert_eq!(failed.verdict, Verdict::Failed);
        let text = failed.to_string();
        assert!(text.contains("3 objects are left") && text.contains("FAILED"), "{text}");
        serde_json::to_string(&failed).expect("a report is JSON");
    }
}
