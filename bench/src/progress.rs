//! The line that tells how it goes, on standard error: standard output is the report's.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::figures::Figures;
use crate::material::Material;
use crate::options::Options;

const SECOND: Duration = Duration::from_secs(1);

/// Says what is about to happen.
pub(crate) fn announce(options: &Options, material: &Material, rate: f64, links: usize) {
    let totals = material.totals();
    eprintln!(
        "{} recordings, {} events in {} batches, {:.2} MB of JSON",
        material.recordings.len(),
        totals.events,
        totals.batches,
        totals.raw_bytes as f64 / 1e6
    );
    eprintln!(
        "{rate:.2} sessions begin each second for {} s, by {links} links, {}x speed",
        options.seconds, options.speedup
    );
}

/// Closes each second of the run and shows it, until the load is over.
pub(crate) async fn tell(figures: &Figures, in_flight_max: usize, mut is_over: watch::Receiver<bool>) {
    let begun = Instant::now();
    let mut ticks = interval_at(begun + SECOND, SECOND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let line = Line::new();
    loop {
        tokio::select! {
            _ = is_over.changed() => break,
            _ = ticks.tick() => {
                let second = figures.with(|figures| figures.close_second(begun));
                line.show(&format!(
                    "{:5.0} s  {:6.0} events/s  {:6.2} MB/s  p50 {:6.1} ms  p99 {:7.1} ms  {} failures  \
                     {} of {in_flight_max} in flight  {} SDKs",
                    second.at_s,
                    second.events_per_second,
                    second.raw_mb_per_second,
                    second.p50_ms,
                    second.p99_ms,
                    second.failures,
                    second.in_flight,
                    second.sdks,
                ));
            }
        }
    }
    line.end();
}

/// One line that is rewritten on a terminal, or one after the other in a log.
pub(crate) struct Line {
    terminal: bool,
}

impl Line {
    pub(crate) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal() }
    }

    pub(crate) fn show(&self, text: &str) {
        if self.terminal {
            eprint!("\r\x1b[2K{text}");
            // A terminal that is gone is noticed by the next line.
            std::io::stderr().flush().unwrap_or_default();
        } else {
            eprintln!("{text}");
        }
    }

    pub(crate) fn end(&self) {
        if self.terminal {
            eprintln!();
        }
    }
}
