//! The batcher's metrics.

use service_kit::telemetry::Described::{self, Counter, Gauge, Histogram};
use storage::session_keys;

pub(crate) const RECORDS: &str = "batcher_records_total";
pub(crate) const IMBALANCE: &str = "batcher_conservation_imbalance_records";
pub(crate) const BUFFERED: &str = "batcher_buffered_bytes";
pub(crate) const FLUSHES: &str = "batcher_flushes_total";
pub(crate) const FLUSH_BYTES: &str = "batcher_flush_bytes_total";
pub(crate) const FLUSH_SECONDS: &str = "batcher_flush_seconds";
pub(crate) const LOST_SWAPS: &str = "batcher_lost_swaps_total";
pub(crate) const GAPS: &str = "batcher_gap_offsets_total";
pub(crate) const KEYS_LOST: &str = "batcher_keys_lost_total";
pub(crate) const KEYS_CLOSED: &str = "batcher_keys_closed_total";
pub(crate) const PAUSES: &str = "batcher_pauses_total";
pub(crate) const FAILURES: &str = "batcher_failures_total";

pub(crate) const ALL: &[Described] = &[
    Gauge(RECORDS, "Records by what became of them since the start."),
    Gauge(IMBALANCE, "B4: records in less records accounted for. Anything but 0 is a defect."),
    Gauge(BUFFERED, "Bytes buffered or in flight."),
    Counter(FLUSHES, "Flushes published."),
    Counter(FLUSH_BYTES, "Bytes of shared objects published."),
    Histogram(FLUSH_SECONDS, "From the beginning of a flush until it was published."),
    Counter(LOST_SWAPS, "Publishings that changed no row: another batcher owns the partition, or did."),
    Counter(GAPS, "Offsets that were gone from the log before they could be stored. Alarm on any."),
    Counter(KEYS_LOST, "Sessions whose key the key store had lost while they were written. Alarm on any."),
    Counter(KEYS_CLOSED, "Flushes of sessions whose key does not open: they are quarantined. Alarm on any."),
    Counter(PAUSES, "Times that reading paused at the memory bound."),
    Counter(FAILURES, "Failed steps of flushes, by step. They are tried again."),
    session_keys::CACHED_DESCRIBED,
];
