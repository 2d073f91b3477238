//! What the cases showed, as JSON for machines and as a table for people.

use std::collections::BTreeMap;
use std::fmt;

use schemas::limits::{FRAME_RAW_BYTES, KIB, SESSION_ZSTD_LEVEL as LEVEL};
use serde::Serialize;

use super::{Case, MEMORY_MAX, Options};
use crate::machine::Machine;
use crate::report::Verdict;

/// What a run found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether all that was acknowledged is there, in one object for each session, and memory stayed within its bound.
    pub verdict: Verdict,
    machine: Machine,
    parameters: Options,
    /// How the programs were built.
    profile: &'static str,
    cases: Vec<Case>,
}

impl Report {
    pub(super) fn new(parameters: Options, cases: Vec<Case>) -> Self {
        let held = cases.iter().all(|case| case.faults.is_empty());
        Self {
            verdict: if held { Verdict::Held } else { Verdict::Failed },
            machine: Machine::here(),
            parameters,
            profile: crate::batcher::PROFILE,
            cases,
        }
    }
}

impl Case {
    fn raw_mb(&self) -> f64 {
        self.filled.raw_bytes as f64 / 1e6
    }

    fn stored_mb(&self) -> f64 {
        self.stored_bytes as f64 / 1e6
    }

    fn sessions(&self) -> f64 {
        self.filled.sessions as f64
    }
}

type Figure = fn(&Case) -> f64;

/// The table's lines: what, to how many digits, which.
const LINES: [(&str, usize, Figure); 16] = [
    ("sessions", 0, Case::sessions),
    ("JSON, MB", 1, Case::raw_mb),
    ("shared objects", 0, |case| case.shared_objects as f64),
    ("session objects", 0, |case| case.session_objects as f64),
    ("session objects, MB", 2, Case::stored_mb),
    ("session objects by JSON", 4, |case| case.stored_mb() / case.raw_mb()),
    ("plain zstd by JSON", 4, |case| case.reference.compressed_bytes as f64 / case.reference.raw_bytes as f64),
    ("start to all merged, s", 1, |case| case.seconds),
    ("compactor, CPU s", 2, |case| case.cpu_seconds),
    ("JSON, MB/s of a core", 1, |case| case.raw_mb() / case.cpu_seconds),
    ("stored, MB/s of a core", 2, |case| case.stored_mb() / case.cpu_seconds),
    ("plain zstd, MB/s of a core", 1, |case| case.reference.raw_bytes as f64 / 1e6 / case.reference.cpu_seconds),
    ("speed, compactor by plain zstd", 2, |case| {
        case.raw_mb() / case.cpu_seconds / (case.reference.raw_bytes as f64 / 1e6 / case.reference.cpu_seconds)
    }),
    ("compactor, peak MiB", 1, |case| case.peak_bytes as f64 / 1_048_576.0),
    ("events read back", 0, |case| case.events_read as f64),
    ("reading back, s", 1, |case| case.read_seconds),
];

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "one compactor, level {LEVEL}, frames of {} KiB; {} cores for all processes together; profile {}",
            FRAME_RAW_BYTES / KIB,
            self.machine.cores,
            self.profile
        )?;
        write!(f, "{:32}", "")?;
        for case in &self.cases {
            write!(f, "  {:>18}", case.name)?;
        }
        writeln!(f)?;
        for (what, digits, figure) in LINES {
            write!(f, "{what:32}")?;
            for case in &self.cases {
                write!(f, "  {:>18.digits$}", figure(case))?;
            }
            writeln!(f)?;
        }
        for case in &self.cases {
            for (service, requests) in [("batcher", &case.batcher_requests), ("compactor", &case.compactor_requests)] {
                let requests = told(requests, case.sessions());
                writeln!(f, "{}, {service}'s requests to S3: {requests}", case.name)?;
            }
        }
        for case in &self.cases {
            for fault in &case.faults {
                writeln!(f, "fault         {}: {fault}", case.name)?;
            }
        }
        write!(
            f,
            "verdict       {}",
            match self.verdict {
                Verdict::Held => format!(
                    "held: all that was acknowledged is there, a session an object, within {} MiB of memory",
                    MEMORY_MAX >> 20
                ),
                Verdict::Failed => "FAILED".to_owned(),
            }
        )
    }
}

fn told(requests: &BTreeMap<String, u64>, sessions: f64) -> String {
    let total: u64 = requests.values().sum();
    let each: Vec<String> = requests.iter().map(|(operation, count)| format!("{operation} {count}")).collect();
    format!("{total} ({}), {:.3} for a session", each.join(", "), total as f64 / sessions.max(1.0))
}
