//! The control plane's metrics.

use service_kit::telemetry::Described::{self, Counter, Gauge, Histogram};
use storage::index::outbox;
use storage::{objects, session_keys, told};

pub(crate) const REQUESTS: &str = "control_requests_total";
pub(crate) const REQUEST_SECONDS: &str = "control_request_seconds";
pub(crate) const READS: &str = "control_reads_total";
pub(crate) const READINGS: &str = "control_readings";
pub(crate) const EXPORTS: &str = "control_exports_total";
pub(crate) const READ_BYTES: &str = "control_read_bytes_total";

pub(crate) const REFERENCES_IN_CLEAR: &str = "control_references_in_clear";

pub(crate) const ALL: &[Described] = &[
    Counter(REQUESTS, "Requests, by route and status."),
    Histogram(REQUEST_SECONDS, "Until the answer's head, by route."),
    Counter(READS, "Readings of events, by how they ended."),
    Counter(READ_BYTES, "Bytes given to readers: of lines as zstd as they are sent, of all else before compression."),
    Counter(EXPORTS, "Slices of archives that were made, by what came of them."),
    Gauge(READINGS, "Readings of events under way."),
    Gauge(
        REFERENCES_IN_CLEAR,
        "Links of an earlier release whose workspace's key cannot be had, so that they lie in clear.",
    ),
    told::RESTORED_DESCRIBED,
    outbox::ROWS_DESCRIBED,
    outbox::FAILURES_DESCRIBED,
    objects::REQUESTS_DESCRIBED,
    session_keys::CACHED_DESCRIBED,
];
