//! What a run found, as JSON for machines and in a few lines for people.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::figures::{Inner, Second, Sums, millis};
use crate::machine::Machine;
use crate::options::Options;
use crate::verify::Outcome;

/// Whether everything that was acknowledged is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is there, once, unchanged, in order.
    Held,
    /// Something was lost, doubled, altered, out of order, or could not be read; or nothing was acknowledged at all.
    Failed,
}

/// Of what was measured.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Quantiles {
    pub(crate) count: u64,
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

impl Quantiles {
    /// In the histogram's microseconds, divided by this.
    pub(crate) fn of(histogram: &Histogram<u64>, divisor: f64) -> Self {
        let quantile = |quantile| millis(histogram, quantile) / divisor;
        Self {
            count: histogram.len(),
            p50: quantile(0.5),
            p99: quantile(0.99),
            p999: quantile(0.999),
            max: quantile(1.0),
        }
    }
}

/// Means over the whole run, its slow start included: the timeline has each second.
#[derive(Debug, Clone, Serialize)]
struct Rates {
    seconds: f64,
    events_per_second: f64,
    batches_per_second: f64,
    raw_mb_per_second: f64,
    wire_mb_per_second: f64,
}

#[derive(Debug, Clone, Serialize)]
struct ReadBackFigures {
    #[serde(flatten)]
    outcome: Outcome,
    events: u64,
    events_per_second: f64,
    raw_mb_per_second: f64,
}

/// A run's outcome.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// The verdict.
    pub verdict: Verdict,
    /// Acknowledged events that are not there.
    pub lost: u64,
    /// Events that are there more often than they were sent.
    pub doubled: u64,
    /// Events that came back with other content.
    pub altered: u64,
    /// Events that nobody sent to their session.
    pub foreign: u64,
    /// Events out of their order.
    pub out_of_order: u64,
    /// Batches of unknown fate of which a part is there.
    pub torn: u64,
    first_fault: Option<String>,
    machine: Machine,
    parameters: Options,
    sessions_per_second: f64,
    sessions: u64,
    acknowledged: Sums,
    rates: Rates,
    /// From when a batch was due to its acknowledgement.
    latency_ms: Quantiles,
    /// From when a session was due to its consent's answer.
    consent_latency_ms: Quantiles,
    /// Attempts that failed and were repeated or given up, by code.
    failed_attempts: BTreeMap<String, u64>,
    /// Batches and consents that were given up, by the last code.
    given_up: BTreeMap<String, u64>,
    /// From a batch's acknowledgement until its session shows it, sampled each second.
    readable_after_s: Quantiles,
    samples_never_readable: u64,
    read_back: ReadBackFigures,
    /// Processor seconds of each service while batches were sent.
    service_cpu_seconds: BTreeMap<String, f64>,
    duration_s: f64,
    timeline: Vec<Second>,
}

/// What a report is made of.
pub(crate) struct Parts {
    pub(crate) options: Options,
    pub(crate) rate: f64,
    pub(crate) figures: Inner,
    pub(crate) cpu_seconds: BTreeMap<String, f64>,
    pub(crate) read_back: Outcome,
    pub(crate) duration: Duration,
}

impl Report {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { options, rate, figures, cpu_seconds, read_back, duration } = parts;
        let comparison = read_back.comparison.clone();
        let all_read = read_back.sessions_not_readable + read_back.sessions_unread == 0;
        let held = comparison.is_exact() && all_read && figures.sums.events > 0 && figures.never_readable == 0;
        let seconds = match (figures.first_at, figures.last_at) {
            (Some(first), Some(last)) => last.duration_since(first).as_secs_f64().max(1e-3),
            _ => f64::INFINITY,
        };
        let read_seconds = read_back.seconds.max(1e-3);
        Self {
            verdict: if held { Verdict::Held } else { Verdict::Failed },
            lost: comparison.lost,
            doubled: comparison.doubled,
            altered: comparison.altered,
            foreign: comparison.foreign,
            out_of_order: comparison.out_of_order,
            torn: comparison.torn,
            first_fault: comparison.first_fault.clone(),
            machine: Machine::here(),
            parameters: options,
            sessions_per_second: rate,
            sessions: figures.sessions_begun,
            acknowledged: figures.sums,
            rates: Rates {
                seconds: if seconds.is_finite() { seconds } else { 0.0 },
                events_per_second: figures.sums.events as f64 / seconds,
                batches_per_second: figures.sums.batches as f64 / seconds,
                raw_mb_per_second: figures.sums.raw_bytes as f64 / 1e6 / seconds,
                wire_mb_per_second: figures.sums.wire_bytes as f64 / 1e6 / seconds,
            },
            latency_ms: Quantiles::of(&figures.latency, 1.0),
            consent_latency_ms: Quantiles::of(&figures.consent, 1.0),
            failed_attempts: figures.failures,
            given_up: figures.given_up,
            readable_after_s: Quantiles::of(&figures.readable, 1e3),
            samples_never_readable: figures.never_readable,
            read_back: ReadBackFigures {
                events: comparison.read,
                events_per_second: comparison.read as f64 / read_seconds,
                raw_mb_per_second: read_back.bytes as f64 / 1e6 / read_seconds,
                outcome: read_back,
            },
            service_cpu_seconds: cpu_seconds,
            duration_s: duration.as_secs_f64(),
            timeline: figures.timeline,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rates, acknowledged, latency_ms: latency, readable_after_s: readable, read_back, .. } = self;
        writeln!(
            f,
            "acknowledged  {} events in {} batches of {} sessions, {:.1} MB of JSON, {:.1} MB on the wire, in {:.1} s",
            acknowledged.events,
            acknowledged.batches,
            self.sessions,
            acknowledged.raw_bytes as f64 / 1e6,
            acknowledged.wire_bytes as f64 / 1e6,
            rates.seconds,
        )?;
        writeln!(
            f,
            "rate          {:.0} events/s, {:.2} MB/s of JSON, {:.2} MB/s on the wire",
            rates.events_per_second, rates.raw_mb_per_second, rates.wire_mb_per_second
        )?;
        writeln!(
            f,
            "latency       p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, max {:.1} ms, from when a batch was due",
            latency.p50, latency.p99, latency.p999, latency.max
        )?;
        writeln!(
            f,
            "readable      after p50 {:.2} s, p99 {:.2} s, max {:.2} s, in {} samples",
            readable.p50, readable.p99, readable.max, readable.count
        )?;
        writeln!(
            f,
            "read back     {} events, {:.0} events/s, {:.2} MB/s",
            read_back.events, read_back.events_per_second, read_back.raw_mb_per_second
        )?;
        for (what, codes) in [("failed", &self.failed_attempts), ("given up", &self.given_up)] {
            let codes: Vec<String> = codes.iter().map(|(code, count)| format!("{count} {code}")).collect();
            writeln!(f, "{what:13} {}", if codes.is_empty() { "none".to_owned() } else { codes.join(", ") })?;
        }
        for reason in [&self.first_fault, &read_back.outcome.first_error].into_iter().flatten() {
            writeln!(f, "first fault   {reason}")?;
        }
        write!(
            f,
            "verdict       {}: {} lost, {} doubled, {} altered, {} foreign, {} out of order, {} torn, {} sessions unread",
            match self.verdict {
                Verdict::Held => "held",
                Verdict::Failed => "FAILED",
            },
            self.lost,
            self.doubled,
            self.altered,
            self.foreign,
            self.out_of_order,
            self.torn,
            read_back.outcome.sessions_unread + read_back.outcome.sessions_not_readable,
        )
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use virtual_sdk::Comparison;

    use super::*;
    use crate::figures::{Acknowledged, Figures};

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        options: Options,
    }

    fn verdict(acknowledged: bool, change: impl FnOnce(&mut Outcome)) -> Verdict {
        let figures = Figures::new().expect("figures can be made");
        if acknowledged {
            let batch = Acknowledged { latency: Duration::from_millis(1), events: 1, raw_bytes: 1, wire_bytes: 1 };
            figures.with(|inner| inner.acknowledged(&batch));
        }
        let mut read_back = Outcome::default();
        change(&mut read_back);
        let report = Report::new(Parts {
            options: Arguments::parse_from(["bench"]).options,
            rate: 1.0,
            figures: figures.take(),
            cpu_seconds: BTreeMap::new(),
            read_back,
            duration: Duration::from_secs(1),
        });
        serde_json::to_string(&report).expect("a report is JSON");
        report.verdict
    }

    #[test]
    fn every_fault_fails_the_run_and_so_does_a_run_without_any_acknowledgement() {
        assert_eq!(verdict(true, |_| ()), Verdict::Held);
        assert_eq!(verdict(false, |_| ()), Verdict::Failed);
        let faults: [fn(&mut Comparison); 6] = [
            |comparison| comparison.lost = 1,
            |comparison| comparison.doubled = 1,
            |comparison| comparison.altered = 1,
            |comparison| comparison.foreign = 1,
            |comparison| comparison.out_of_order = 1,
            |comparison| comparison.torn = 1,
        ];
        for fault in faults {
            assert_eq!(verdict(true, |outcome| fault(&mut outcome.comparison)), Verdict::Failed);
        }
        assert_eq!(verdict(true, |outcome| outcome.sessions_unread = 1), Verdict::Failed);
        assert_eq!(verdict(true, |outcome| outcome.sessions_not_readable = 1), Verdict::Failed);
    }
}
