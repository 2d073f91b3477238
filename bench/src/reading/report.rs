//! What the readings showed, as JSON for machines and as a table for people.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::{Options, Part, Reading, Sent, State};
use crate::machine::Machine;
use crate::report::Verdict;
use crate::spread::Spread;

/// What a run found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Whether all readings gave what was acknowledged.
    pub verdict: Verdict,
    faults: Vec<String>,
    machine: Machine,
    parameters: Options,
    /// How the programs were built.
    profile: &'static str,
    sent: Sent,
    states: Vec<State>,
    /// Requests to S3 from the log to the one object, by service; another small session's are among them.
    life: BTreeMap<&'static str, BTreeMap<String, u64>>,
}

impl Report {
    pub(super) fn new(
        parameters: Options,
        sent: Sent,
        states: Vec<State>,
        life: BTreeMap<&'static str, BTreeMap<String, u64>>,
        faults: Vec<String>,
    ) -> Self {
        let verdict = if faults.is_empty() { Verdict::Held } else { Verdict::Failed };
        let profile = crate::batcher::PROFILE;
        Self { verdict, faults, machine: Machine::here(), parameters, profile, sent, states, life }
    }
}

/// The median of something over the readings, and how far they lie apart.
fn spread(readings: &[Reading], figure: impl Fn(&Reading) -> f64) -> String {
    Spread::of(readings.iter().map(figure)).map_or_else(|| "-".to_owned(), |spread| format!("{spread:.1}"))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sent { batches, events, raw_bytes } = self.sent;
        writeln!(
            f,
            "an hour of {}: {:.1} MB of JSON, {events} events in {batches} batches; median (min to max) of {} readings; \
             {} cores for all processes together; profile {}",
            self.parameters.recording,
            raw_bytes as f64 / 1e6,
            self.parameters.repeats,
            self.machine.cores,
            self.profile
        )?;
        for State { name, shared_objects, own_objects, ways } in &self.states {
            writeln!(f, "{name}: {shared_objects} shared objects, {own_objects} of its own")?;
            writeln!(
                f,
                "  {:14} {:8} {:8} {:>26} {:>30} {:>14} {:>10} {:>10}",
                "part", "footers", "encoding", "first byte, ms", "last byte, ms", "S3 requests", "body, MB", "JSON, MB"
            )?;
            for (way, readings) in ways {
                writeln!(
                    f,
                    "  {:14} {:8} {:8} {:>26} {:>30} {:>14} {:>10} {:>10}",
                    match way.part {
                        Part::Whole => "whole",
                        Part::MiddleMinute => "middle minute",
                    },
                    if way.warm { "warm" } else { "cold" },
                    if way.zstd { "zstd" } else { "identity" },
                    spread(readings, |reading| reading.first_byte_ms),
                    spread(readings, |reading| reading.last_byte_ms),
                    median(readings, 0, |reading| reading.requests.values().sum::<u64>() as f64),
                    median(readings, 3, |reading| reading.body_bytes as f64 / 1e6),
                    median(readings, 3, |reading| reading.raw_bytes as f64 / 1e6),
                )?;
            }
        }
        for (service, requests) in &self.life {
            let each: Vec<String> = requests.iter().map(|(operation, count)| format!("{operation} {count}")).collect();
            writeln!(f, "{service}'s requests to S3, from the log to one object: {}", each.join(", "))?;
        }
        for fault in &self.faults {
            writeln!(f, "fault         {fault}")?;
        }
        write!(
            f,
            "verdict       {}",
            match self.verdict {
                Verdict::Held => "held: all readings gave what was acknowledged",
                Verdict::Failed => "FAILED",
            }
        )
    }
}

fn median(readings: &[Reading], digits: usize, figure: impl Fn(&Reading) -> f64) -> String {
    Spread::of(readings.iter().map(figure))
        .map_or_else(|| "-".to_owned(), |spread| format!("{:.digits$}", spread.median))
}
