//! What is counted and measured while batches are sent.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::time::Instant;

/// Latencies in microseconds, up to ten minutes, to three digits.
const LATENCY_US_MAX: u64 = 600_000_000;
const DIGITS: u8 = 3;

/// One batch that was acknowledged.
pub(crate) struct Acknowledged {
    pub(crate) latency: Duration,
    pub(crate) events: u64,
    pub(crate) raw_bytes: u64,
    pub(crate) wire_bytes: u64,
}

/// Sums of what was acknowledged.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(crate) struct Sums {
    pub(crate) batches: u64,
    pub(crate) events: u64,
    pub(crate) raw_bytes: u64,
    pub(crate) wire_bytes: u64,
}

/// One second of the run.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Second {
    pub(crate) at_s: f64,
    pub(crate) events_per_second: f64,
    pub(crate) raw_mb_per_second: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) failures: u64,
    pub(crate) in_flight: u64,
    pub(crate) sdks: u64,
}

/// Everything, at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Inner {
    pub(crate) sums: Sums,
    pub(crate) latency: Histogram<u64>,
    pub(crate) consent: Histogram<u64>,
    pub(crate) readable: Histogram<u64>,
    pub(crate) never_readable: u64,
    /// Attempts that failed and were repeated, by code.
    pub(crate) failures: BTreeMap<String, u64>,
    /// Batches and consents that were given up, by code.
    pub(crate) given_up: BTreeMap<String, u64>,
    pub(crate) sessions_begun: u64,
    pub(crate) sessions_ended: u64,
    pub(crate) in_flight: u64,
    pub(crate) first_at: Option<Instant>,
    pub(crate) last_at: Option<Instant>,
    pub(crate) timeline: Vec<Second>,
    second: Histogram<u64>,
    second_sums: Sums,
    second_failures: u64,
    second_at: Instant,
}

/// Shared by all tasks of a run.
pub(crate) struct Figures(Mutex<Inner>);

impl Figures {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let histogram = || Histogram::new_with_max(LATENCY_US_MAX, DIGITS);
        Ok(Self(Mutex::new(Inner {
            sums: Sums::default(),
            latency: histogram()?,
            consent: histogram()?,
            readable: histogram()?,
            never_readable: 0,
            failures: BTreeMap::new(),
            given_up: BTreeMap::new(),
            sessions_begun: 0,
            sessions_ended: 0,
            in_flight: 0,
            first_at: None,
            last_at: None,
            timeline: Vec::new(),
            second: histogram()?,
            second_sums: Sums::default(),
            second_failures: 0,
            second_at: Instant::now(),
        })))
    }

    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        // Figures that a panicking task left are still figures; the run fails by that panic anyway.
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn take(&self) -> Inner {
        self.with(|inner| inner.clone())
    }
}

impl Inner {
    pub(crate) fn acknowledged(&mut self, batch: &Acknowledged) {
        for sums in [&mut self.sums, &mut self.second_sums] {
            sums.batches += 1;
            sums.events += batch.events;
            sums.raw_bytes += batch.raw_bytes;
            sums.wire_bytes += batch.wire_bytes;
        }
        self.latency.saturating_record(micros(batch.latency));
        self.second.saturating_record(micros(batch.latency));
        let now = Instant::now();
        self.first_at.get_or_insert(now);
        self.last_at = Some(now);
    }

    pub(crate) fn failed(&mut self, codes: &[String]) {
        for code in codes {
            *self.failures.entry(code.clone()).or_default() += 1;
        }
        self.second_failures += codes.len() as u64;
    }

    pub(crate) fn gave_up(&mut self, code: &str) {
        *self.given_up.entry(code.to_owned()).or_default() += 1;
    }

    /// Closes a second of the run.
    pub(crate) fn close_second(&mut self, begun: Instant) -> Second {
        let now = Instant::now();
        let seconds = now.duration_since(self.second_at).as_secs_f64().max(1e-9);
        let second = Second {
            at_s: now.duration_since(begun).as_secs_f64(),
            events_per_second: self.second_sums.events as f64 / seconds,
            raw_mb_per_second: self.second_sums.raw_bytes as f64 / 1e6 / seconds,
            p50_ms: millis(&self.second, 0.5),
            p99_ms: millis(&self.second, 0.99),
            failures: self.second_failures,
            in_flight: self.in_flight,
            sdks: self.sessions_begun - self.sessions_ended,
        };
        self.second.reset();
        self.second_sums = Sums::default();
        self.second_failures = 0;
        self.second_at = now;
        self.timeline.push(second.clone());
        second
    }
}

/// A duration for a histogram.
pub(crate) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(LATENCY_US_MAX)
}

/// A quantile in milliseconds; 0 when nothing was measured.
pub(crate) fn millis(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1e3
}
