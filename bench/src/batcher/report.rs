//! What the rounds found, as JSON for machines and as a table for people.

use std::fmt;

use serde::Serialize;

use super::{BATCHERS, FLUSH_AGE_MS, FLUSH_BYTES, Options, Round};
use crate::machine::Machine;
use crate::report::Verdict;
use crate::spread::Spread;

/// Medians and spreads over the rounds with so many batchers.
#[derive(Debug, Clone, Serialize)]
struct Column {
    batchers: usize,
    /// Events as JSON, without joining the group and the wait of the last flushes. None when there was nothing else.
    steady_mb_per_s: Option<Spread>,
    steady_records_per_s: Option<Spread>,
    /// Share of the bytes that the two figures above stand on.
    steady_share: Option<Spread>,
    drained_s: Option<Spread>,
    cpu_s_per_gb: Option<Spread>,
    zstd_cpu_s_per_gb: Option<Spread>,
    zstd_mb_per_s: Option<Spread>,
    /// The batcher's processor time by that of the reference of the same round.
    cpu_ratio: Option<Spread>,
    puts_per_gb: Option<Spread>,
    puts_per_1000_sessions: Option<Spread>,
    objects: Option<Spread>,
    object_mb_per_gb: Option<Spread>,
    rows_per_gb: Option<Spread>,
    rows_per_1000_sessions: Option<Spread>,
    rows_flush: Option<Spread>,
    rows_first_sight: Option<Spread>,
    rows_activity: Option<Spread>,
}

/// What a run found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether all that was acknowledged is in the index, once.
    pub verdict: Verdict,
    faults: Vec<String>,
    machine: Machine,
    parameters: Options,
    flush_age_ms: u64,
    flush_bytes: u64,
    /// How the programs were built.
    profile: &'static str,
    columns: Vec<Column>,
    rounds: Vec<Round>,
}

impl Report {
    pub(super) fn new(parameters: Options, rounds: Vec<Round>) -> Self {
        let told = rounds.iter().enumerate().flat_map(|(number, round)| {
            let round_number = number / BATCHERS.len() + 1;
            round
                .drain
                .faults
                .iter()
                .map(move |fault| format!("round {round_number}, {} batchers: {fault}", round.batchers))
        });
        let faults: Vec<String> = told.collect();
        let held = faults.is_empty() && !rounds.is_empty();
        Self {
            verdict: if held { Verdict::Held } else { Verdict::Failed },
            faults,
            machine: Machine::here(),
            parameters,
            flush_age_ms: FLUSH_AGE_MS,
            flush_bytes: FLUSH_BYTES,
            profile: super::PROFILE,
            columns: BATCHERS.iter().map(|batchers| Column::of(*batchers, &rounds)).collect(),
            rounds,
        }
    }
}

impl Column {
    fn of(batchers: usize, rounds: &[Round]) -> Self {
        let rounds: Vec<&Round> = rounds.iter().filter(|round| round.batchers == batchers).collect();
        let spread = |figure: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(|round| figure(round)));
        let steady = |figure: &dyn Fn(&Round, super::drain::Steady) -> f64| {
            Spread::of(rounds.iter().filter_map(|round| Some(figure(round, round.drain.steady?))))
        };
        let gigabytes = |round: &Round| round.filled.raw_bytes as f64 / 1e9;
        let thousands = |round: &Round| round.filled.sessions as f64 / 1e3;
        let rows = |round: &Round| {
            let counts = &round.drain.counts;
            (counts.rows_flush + counts.rows_first_sight + counts.rows_activity) as f64
        };
        Self {
            batchers,
            steady_mb_per_s: steady(&|_, steady| steady.raw_bytes as f64 / 1e6 / steady.seconds),
            steady_records_per_s: steady(&|_, steady| steady.records as f64 / steady.seconds),
            steady_share: steady(&|round, steady| steady.raw_bytes as f64 / round.filled.raw_bytes as f64),
            drained_s: spread(&|round| round.drain.seconds),
            cpu_s_per_gb: spread(&|round| round.drain.cpu_seconds / gigabytes(round)),
            zstd_cpu_s_per_gb: spread(&|round| round.reference.cpu_seconds / (round.reference.raw_bytes as f64 / 1e9)),
            zstd_mb_per_s: spread(&|round| round.reference.raw_bytes as f64 / 1e6 / round.reference.seconds),
            cpu_ratio: spread(&|round| round.drain.cpu_seconds / round.reference.cpu_seconds.max(1e-3)),
            puts_per_gb: spread(&|round| round.drain.counts.puts as f64 / gigabytes(round)),
            puts_per_1000_sessions: spread(&|round| round.drain.counts.puts as f64 / thousands(round)),
            objects: spread(&|round| round.drain.counts.objects as f64),
            object_mb_per_gb: spread(&|round| round.drain.counts.object_bytes as f64 / 1e6 / gigabytes(round)),
            rows_per_gb: spread(&|round| rows(round) / gigabytes(round)),
            rows_per_1000_sessions: spread(&|round| rows(round) / thousands(round)),
            rows_flush: spread(&|round| round.drain.counts.rows_flush as f64),
            rows_first_sight: spread(&|round| round.drain.counts.rows_first_sight as f64),
            rows_activity: spread(&|round| round.drain.counts.rows_activity as f64),
        }
    }
}

type Figure = fn(&Column) -> Option<Spread>;

/// The table's lines: what, to how many digits, which.
const LINES: [(&str, usize, Figure); 17] = [
    ("events, MB/s", 1, |column| column.steady_mb_per_s),
    ("records/s", 0, |column| column.steady_records_per_s),
    ("share of all bytes in these two", 2, |column| column.steady_share),
    ("start to lag 0, s", 1, |column| column.drained_s),
    ("batcher, CPU s/GB", 2, |column| column.cpu_s_per_gb),
    ("zstd level 1, CPU s/GB", 2, |column| column.zstd_cpu_s_per_gb),
    ("zstd level 1, MB/s", 0, |column| column.zstd_mb_per_s),
    ("CPU, batcher by zstd", 2, |column| column.cpu_ratio),
    ("PUTs per GB", 1, |column| column.puts_per_gb),
    ("PUTs per 1,000 sessions", 1, |column| column.puts_per_1000_sessions),
    ("objects", 0, |column| column.objects),
    ("object MB per GB", 1, |column| column.object_mb_per_gb),
    ("index rows per GB", 0, |column| column.rows_per_gb),
    ("index rows per 1,000 sessions", 0, |column| column.rows_per_1000_sessions),
    ("  rows for flushes", 0, |column| column.rows_flush),
    ("  rows for first sight", 0, |column| column.rows_first_sight),
    ("  rows for activity", 0, |column| column.rows_activity),
];

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Options { megabytes, sessions, partitions, rounds } = &self.parameters;
        writeln!(
            f,
            "{megabytes} MB of events of {sessions} sessions in {partitions} partitions, flushes of {} MiB or {} s; \
             median (min to max) of {rounds} rounds",
            self.flush_bytes >> 20,
            self.flush_age_ms / 1_000
        )?;
        writeln!(
            f,
            "{} cores for batchers, kafka, postgres and s3 together; profile {}",
            self.machine.cores, self.profile
        )?;
        write!(f, "{:32}", "")?;
        for column in &self.columns {
            let noun = if column.batchers == 1 { "batcher" } else { "batchers" };
            write!(f, "  {:>28}", format!("{} {noun}", column.batchers))?;
        }
        writeln!(f)?;
        for (what, digits, figure) in LINES {
            write!(f, "{what:32}")?;
            for column in &self.columns {
                match figure(column) {
                    Some(spread) => write!(f, "  {spread:>28.digits$}")?,
                    None => write!(f, "  {:>28}", "-")?,
                }
            }
            writeln!(f)?;
        }
        if self.columns.iter().any(|column| column.steady_mb_per_s.is_none()) {
            writeln!(
                f,
                "no figure (-): no flush but the last of each partition, which waits for its age; give more --megabytes"
            )?;
        }
        for fault in &self.faults {
            writeln!(f, "fault         {fault}")?;
        }
        write!(
            f,
            "verdict       {}",
            match self.verdict {
                Verdict::Held => "held: all that was acknowledged is in the index, once",
                Verdict::Failed => "FAILED",
            }
        )
    }
}
