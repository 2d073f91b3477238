//! The control plane's metrics.

use service_kit::telemetry::Described::{self, Counter, Histogram};
use storage::index::outbox;
use storage::session_keys;

pub(crate) const REQUESTS: &str = "control_requests_total";
pub(crate) const REQUEST_SECONDS: &str = "control_request_seconds";
pub(crate) const READS: &str = "control_reads_total";
pub(crate) const READ_BYTES: &str = "control_read_bytes_total";

pub(crate) const ALL: &[Described] = &[
    Counter(REQUESTS, "Requests, by route and status."),
    Histogram(REQUEST_SECONDS, "Until the answer's head, by route."),
    Counter(READS, "Readings of events, by how they ended."),
    Counter(READ_BYTES, "Bytes of events given to readers, before compression."),
    outbox::ROWS_DESCRIBED,
    outbox::FAILURES_DESCRIBED,
    session_keys::CACHED_DESCRIBED,
];
