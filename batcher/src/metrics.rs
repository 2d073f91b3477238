//! The batcher's metrics.

use service_kit::telemetry::Described::{self, Counter, Gauge, Histogram};
use storage::{objects, session_keys};

pub(crate) const RECORDS: &str = "batcher_records_total";
pub(crate) const IMBALANCE: &str = "batcher_conservation_imbalance_records";
pub(crate) const BUFFERED: &str = "batcher_buffered_bytes";
pub(crate) const FLUSHES: &str = "batcher_flushes_total";
pub(crate) const FLUSH_SIZE_BYTES: &str = "batcher_flush_size_bytes";
pub(crate) const FLUSH_AGE_SECONDS: &str = "batcher_flush_age_seconds";
pub(crate) const RAW_BYTES: &str = "batcher_raw_bytes_total";
pub(crate) const OBJECT_BYTES: &str = "batcher_object_bytes_total";
pub(crate) const PUTS: &str = "batcher_puts_total";
pub(crate) const ROWS: &str = "batcher_index_rows_total";
pub(crate) const HALTED: &str = "batcher_halted_partitions";
pub(crate) const LAG: &str = "batcher_lag_records";
pub(crate) const FLUSH_SECONDS: &str = "batcher_flush_seconds";
pub(crate) const LOST_SWAPS: &str = "batcher_lost_swaps_total";
pub(crate) const GAPS: &str = "batcher_gap_offsets_total";
pub(crate) const KEYS_LOST: &str = "batcher_keys_lost_total";
pub(crate) const KEYS_CLOSED: &str = "batcher_keys_closed_total";
pub(crate) const PAUSES: &str = "batcher_pauses_total";
pub(crate) const FAILURES: &str = "batcher_failures_total";
pub(crate) const MASKED: &str = "batcher_masked_values_total";
pub(crate) const DROPPED: &str = "batcher_dropped_events_total";
pub(crate) const LOOKED_THROUGH: &str = "batcher_looked_through_batches_total";
pub(crate) const REMADE: &str = "batcher_remade_frames_total";
pub(crate) const UNKNOWN: &str = "batcher_out_of_order_batches_total";
pub(crate) const NOTES: &str = "batcher_notes_searched_total";

pub(crate) const ALL: &[Described] = &[
    Gauge(LAG, "Records of a partition that the log has and the index does not, as far as this process owns it."),
    Gauge(HALTED, "Partitions that are not read since their log is another one than was stored from. Alarm on any."),
    Gauge(RECORDS, "Records by what became of them since the start; dropped_copies are duplicates."),
    Gauge(IMBALANCE, "B4: records in less records accounted for. Anything but 0 is a defect."),
    Gauge(BUFFERED, "Bytes buffered or in flight."),
    Counter(FLUSHES, "Flushes published."),
    Histogram(FLUSH_SIZE_BYTES, "Bytes of a published shared object."),
    Histogram(FLUSH_AGE_SECONDS, "From when the first record of a flush came until it was published."),
    Histogram(FLUSH_SECONDS, "From the beginning of a flush until it was published."),
    Counter(RAW_BYTES, "Bytes of events published, masked, before compression."),
    Counter(OBJECT_BYTES, "Bytes of shared objects published."),
    Counter(PUTS, "Requests to S3 that wrote. Divided by batcher_raw_bytes_total: PUTs per byte of events."),
    Counter(
        ROWS,
        "Rows written to the index, by what for: flush (the same for each flush, B12), first_sight and activity (by session).",
    ),
    Counter(LOST_SWAPS, "Publishings that changed no row: another batcher owns the partition, or did."),
    Counter(GAPS, "Offsets that were gone from the log before they could be stored. Alarm on any."),
    Counter(KEYS_LOST, "Sessions whose key the key store had lost while they were written. Alarm on any."),
    Counter(KEYS_CLOSED, "Flushes of sessions whose key does not open: they are quarantined. Alarm on any."),
    Counter(PAUSES, "Times that reading paused at the memory bound."),
    Counter(FAILURES, "Failed steps of flushes, by step. They are tried again."),
    Counter(MASKED, "Values that were masked by what was known of their stream, in flushes that were published."),
    Counter(DROPPED, "Events of which only the time was kept, since they could not be masked. Alarm on any."),
    Counter(
        LOOKED_THROUGH,
        "Batches whose events were looked through to mask them; all others were stored as they came.",
    ),
    Counter(REMADE, "Batches of which something had to change: their frames were compressed again."),
    Counter(
        UNKNOWN,
        "Batches that did not come after the one before: late ones, and those behind a gap, after which nothing of their stream is known until its next full snapshot.",
    ),
    Counter(NOTES, "Streams whose state was searched for in what is stored: taken over, or forgotten."),
    objects::REQUESTS_DESCRIBED,
    session_keys::CACHED_DESCRIBED,
];
