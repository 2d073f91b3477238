//! The compactor's metrics.

use service_kit::telemetry::Described::{self, Counter, Gauge, Histogram};
use storage::{objects, session_keys};

pub(crate) const RUNS: &str = "compactor_runs_total";
pub(crate) const RUN_BYTES: &str = "compactor_run_bytes_total";
pub(crate) const OBJECT_BYTES: &str = "compactor_session_object_bytes_total";
pub(crate) const OBJECTS: &str = "compactor_session_objects_total";
pub(crate) const FINALS: &str = "compactor_finals_total";
pub(crate) const QUARANTINED: &str = "compactor_quarantined_records_total";
pub(crate) const LOST: &str = "compactor_lost_swaps_total";
pub(crate) const FAILURES: &str = "compactor_failures_total";
pub(crate) const RUN_SECONDS: &str = "compactor_run_seconds";
pub(crate) const OLDEST: &str = "compactor_oldest_shared_object_age_seconds";

pub(crate) const ALL: &[Described] = &[
    Counter(RUNS, "Runs swapped for their results."),
    Counter(RUN_BYTES, "Bytes of shared objects in those runs."),
    Counter(OBJECT_BYTES, "Bytes of session objects written."),
    Counter(OBJECTS, "Session objects written."),
    Counter(FINALS, "Sessions that became one object."),
    Counter(QUARANTINED, "Records and corrupt batches moved into quarantine objects. Alarm on any."),
    Counter(LOST, "Swaps that changed nothing, since somebody else was faster."),
    Counter(
        FAILURES,
        "Looks at the index, and runs and sessions after several tries, that failed; they are tried again after a wait.",
    ),
    Histogram(RUN_SECONDS, "From claiming a run until it was swapped."),
    Gauge(OLDEST, "C6: age of the oldest shared object that is still live."),
    objects::REQUESTS_DESCRIBED,
    session_keys::CACHED_DESCRIBED,
];
