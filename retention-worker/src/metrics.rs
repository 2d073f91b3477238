//! The retention worker's metrics.

use service_kit::telemetry::Described::{self, Counter, Gauge};
use storage::index::outbox;
use storage::{objects, told};

pub(crate) const EXPIRED: &str = "retention_expired_sessions_total";
pub(crate) const SHREDDED: &str = "retention_shredded_sessions_total";
pub(crate) const ERASED: &str = "retention_erased_sessions_total";
pub(crate) const WITHDRAWN: &str = "retention_withdrawn_sessions_total";
pub(crate) const WITHDRAWALS_WAITING: &str = "retention_withdrawals_waiting";
pub(crate) const WITHDRAWALS_OLDEST: &str = "retention_withdrawals_oldest_seconds";
pub(crate) const CLEANED: &str = "retention_cleaned_control_entries_total";
pub(crate) const LEAVING: &str = "retention_leaving_sessions";
pub(crate) const HELD: &str = "retention_held_by_quarantine_total";
pub(crate) const REMOVED: &str = "retention_removed_objects_total";
pub(crate) const HELD_BACK: &str = "retention_held_back_total";
pub(crate) const STALE: &str = "retention_stale_objects_total";
pub(crate) const RETURNED: &str = "retention_returned_objects_total";
pub(crate) const CLOCKS_DIFFER: &str = "retention_clocks_differ_seconds";
pub(crate) const UPLOADS_ENDED: &str = "retention_ended_uploads_total";
pub(crate) const READS_FORGOTTEN: &str = "retention_forgotten_reads_total";
pub(crate) const TERMINATED: &str = "retention_terminated_workspaces_total";
pub(crate) const JOURNALLED: &str = "retention_journalled_deletions_total";
pub(crate) const EXPORTS_GONE: &str = "retention_exports_gone_total";
pub(crate) const STRAY_PARTS: &str = "retention_stray_export_parts_total";
pub(crate) const RECEIPTS: &str = "retention_receipted_deletions_total";
pub(crate) const UNVERIFIED: &str = "retention_unverified_deletions";
pub(crate) const SHREDDED_AGAIN: &str = "retention_shredded_again_total";
pub(crate) const FORGOTTEN: &str = "retention_forgotten_tombstones_total";
pub(crate) const ORPHANS: &str = "retention_orphan_objects";
pub(crate) const MISSING: &str = "retention_missing_objects";
pub(crate) const PAST_WINDOW_BYTES: &str = "retention_past_window_bytes";
pub(crate) const PAST_WINDOW_SESSIONS: &str = "retention_past_window_sessions";
pub(crate) const RECONCILED: &str = "retention_reconciled_objects_total";
pub(crate) const RECONCILED_AT: &str = "retention_reconciled_timestamp_seconds";
pub(crate) const FAILURES: &str = "retention_failures_total";

pub(crate) const ALL: &[Described] = &[
    Counter(EXPIRED, "Sessions that were past their plan window."),
    Counter(SHREDDED, "Sessions whose keys were destroyed."),
    Counter(ERASED, "Sessions whose bytes are gone, seen by listing."),
    Counter(WITHDRAWN, "Sessions deleted since their end users took consent back."),
    Gauge(WITHDRAWALS_WAITING, "Withdrawals that were heard of and are no deletions yet."),
    Gauge(WITHDRAWALS_OLDEST, "How long ago the oldest of them was heard of. Alarm on 5."),
    Counter(CLEANED, "Entries removed from `control` since nobody needs them any more."),
    Gauge(LEAVING, "Sessions of the last pass whose keys are destroyed and that are not erased yet, 1,000 at most."),
    Counter(
        HELD,
        "Times that a session was not called erased since a quarantine object may hold frames of it. Alarm on any.",
    ),
    Counter(REMOVED, "Objects deleted and seen absent."),
    Counter(HELD_BACK, "Times that S3 deleted nothing or asked for fewer requests, and was left alone for a while."),
    Counter(STALE, "Staged objects given up."),
    Counter(RETURNED, "Deleted objects that were there again: late uploads. They are deleted once more."),
    Gauge(
        CLOCKS_DIFFER,
        "By how much the index's clock and the bucket's differ, while nothing expires because of it. Alarm on any.",
    ),
    Counter(UPLOADS_ENDED, "Uploads that nobody ended, ended with their parts."),
    Counter(READS_FORGOTTEN, "Entries of the read-access audit removed since they were older than 400 days."),
    Counter(TERMINATED, "Closed workspaces of which nothing is left but receipts and tombstones."),
    Counter(JOURNALLED, "Deletions that were written into the journal here since who began them had not."),
    Counter(EXPORTS_GONE, "Exports of which nothing is left."),
    Counter(STRAY_PARTS, "Parts of exports that no row named, removed: only an index of a backup has any."),
    Counter(RECEIPTS, "Deletions that were verified and have their signed receipts."),
    Gauge(
        UNVERIFIED,
        "Deletions of the last round that are over, and of which something is there still. Alarm on any.",
    ),
    Counter(
        SHREDDED_AGAIN,
        "Keys that were destroyed once more since the key store had forgotten it: it is one of a backup. Alarm on any.",
    ),
    Counter(FORGOTTEN, "Tombstones removed since nothing can bring their sessions back any more."),
    Gauge(ORPHANS, "Objects in the bucket that no row of the index names. Alarm on any."),
    Gauge(MISSING, "Live rows of the index whose object is not in the bucket. Alarm on any."),
    Gauge(
        PAST_WINDOW_BYTES,
        "Bytes of objects of sessions that are past their window by more than an hour. Alarm on any.",
    ),
    Gauge(PAST_WINDOW_SESSIONS, "Such sessions, those too that have no object of their own. Alarm on any."),
    Counter(RECONCILED, "Objects of the bucket that were held against the index."),
    Gauge(RECONCILED_AT, "When all of them were last, in seconds since the epoch. Alarm when it stands for a day."),
    Counter(FAILURES, "Passes that failed; what remains is done by the next."),
    told::RESTORED_DESCRIBED,
    outbox::ROWS_DESCRIBED,
    outbox::FAILURES_DESCRIBED,
    objects::REQUESTS_DESCRIBED,
];
