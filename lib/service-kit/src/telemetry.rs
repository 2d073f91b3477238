//! Logs and metrics. Never content: no payload, token, reference or query reaches either.

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::config::{Env, Knob};

/// How a process logs.
#[derive(Debug, Clone)]
pub struct LogConfig {
    filter: String,
    json: bool,
}

const FILTER: Knob = Knob {
    name: "CLAIRVIO_LOG",
    doc: "Which log lines are written.",
    unit: "a tracing filter",
    default: Some("info"),
    secret: false,
};
const FORMAT: Knob = Knob {
    name: "CLAIRVIO_LOG_FORMAT",
    doc: "How log lines look.",
    unit: "text or json",
    default: Some("text"),
    secret: false,
};

impl LogConfig {
    /// Reads the settings.
    pub fn load(env: &mut Env<'_>) -> Self {
        Self {
            filter: env.parsed(&FILTER, "info".into(), |raw| EnvFilter::try_new(raw).is_ok().then(|| raw.to_owned())),
            json: env.parsed(&FORMAT, false, |raw| match raw {
                "text" => Some(false),
                "json" => Some(true),
                _ => None,
            }),
        }
    }
}

/// An error with all its causes, in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Latency buckets in seconds: 0.5 ms to 32 s, doubling.
const LATENCY_BUCKETS: [f64; 17] =
    [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0];

/// Size buckets in bytes: 1 KiB to 64 MiB, in steps of four.
const SIZE_BUCKETS: [f64; 9] =
    [1024.0, 4096.0, 16384.0, 65536.0, 262_144.0, 1_048_576.0, 4_194_304.0, 16_777_216.0, 67_108_864.0];

/// Starts logging to standard error and collecting metrics.
pub(crate) fn start(config: &LogConfig) -> anyhow::Result<PrometheusHandle> {
    let filter = EnvFilter::try_new(&config.filter)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    if config.json {
        builder.json().init()
    } else {
        builder.init()
    }
    Ok(PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &LATENCY_BUCKETS)?
        .set_buckets_for_metric(Matcher::Suffix("_size_bytes".into()), &SIZE_BUCKETS)?
        .install_recorder()?)
}

/// A metric's name and help text, registered before its first use so that `/metrics` explains it.
#[derive(Debug, Clone, Copy)]
pub enum Described {
    /// Only grows.
    Counter(&'static str, &'static str),
    /// Goes up and down.
    Gauge(&'static str, &'static str),
    /// A distribution.
    Histogram(&'static str, &'static str),
}

/// Registers help texts, and shows counters as 0 before they first count.
pub fn describe(metrics: &[Described]) {
    for metric in metrics {
        match *metric {
            Described::Counter(name, help) => {
                metrics::describe_counter!(name, help);
                metrics::counter!(name).increment(0);
            }
            Described::Gauge(name, help) => metrics::describe_gauge!(name, help),
            Described::Histogram(name, help) => metrics::describe_histogram!(name, help),
        }
    }
}
