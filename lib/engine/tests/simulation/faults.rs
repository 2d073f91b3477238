//! What goes wrong in a run: each seed draws its own mixture, so that some runs have one fault only and others nearly all.

use fastrand::Rng;

/// Faults that come by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Crash,
    Pause,
    Shutdown,
    ClockJump,
    DatabaseClockJump,
    Grow,
    Trim,
    Recreate,
    Delete,
    Backup,
    CloseKey,
    Export,
}

/// A mixture. Rates are mean times between two, in milliseconds; chances are of a thousand.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    pub(crate) rebalance_ms: Option<u64>,
    pub(crate) crash_ms: Option<u64>,
    pub(crate) pause_ms: Option<u64>,
    pub(crate) shutdown_ms: Option<u64>,
    pub(crate) clock_ms: Option<u64>,
    pub(crate) database_clock_ms: Option<u64>,
    pub(crate) grow_ms: Option<u64>,
    pub(crate) trim_ms: Option<u64>,
    pub(crate) recreate_ms: Option<u64>,
    pub(crate) delete_ms: Option<u64>,
    /// Between a backup and its restoring.
    pub(crate) backup_ms: Option<u64>,
    pub(crate) close_key_ms: Option<u64>,
    /// Between two that are asked for.
    pub(crate) export_ms: Option<u64>,
    /// Operations that take long.
    pub(crate) slow: u32,
    /// Operations that fail without an effect.
    pub(crate) failing: u32,
    /// Operations that are done and whose answer is lost, or that are given up and done later.
    pub(crate) answer_lost: u32,
    /// Answers that come twice.
    pub(crate) doubled: u32,
    /// Sessions whose bytes in an object are damaged.
    pub(crate) corrupt: u32,
    /// Copies of a batch that have other bytes.
    pub(crate) conflicting: u32,
    /// The longest time between two produced bursts.
    pub(crate) produce_ms: u64,
}

impl Faults {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        // In a third of the runs a fault is likely, in another it is rare.
        let liveliness = [150, 450, 800][rng.usize(0..3)];
        let mut rate = |least: u64, most: u64| {
            let comes = rng.u32(0..1_000) < liveliness;
            let rate_ms = rng.u64(least..most);
            comes.then_some(rate_ms)
        };
        let mut faults = Self {
            rebalance_ms: rate(150, 2_000),
            crash_ms: rate(200, 3_000),
            pause_ms: rate(200, 3_000),
            shutdown_ms: rate(500, 4_000),
            clock_ms: rate(300, 4_000),
            database_clock_ms: rate(300, 4_000),
            grow_ms: rate(800, 5_000),
            trim_ms: rate(500, 5_000),
            recreate_ms: rate(1_000, 5_000),
            delete_ms: rate(100, 2_000),
            backup_ms: rate(300, 3_000),
            close_key_ms: rate(300, 3_000),
            export_ms: rate(200, 2_000),
            ..Self::default()
        };
        let mut chance = |most: u32| if rng.u32(0..1_000) < liveliness { rng.u32(1..most) } else { 0 };
        faults.slow = chance(200);
        faults.failing = chance(200);
        faults.answer_lost = chance(200);
        faults.doubled = chance(200);
        faults.corrupt = chance(30);
        faults.conflicting = chance(600);
        faults.produce_ms = rng.u64(8..60);
        faults
    }

    /// The faults that begin by themselves, with their rates. Rebalances begin with the run.
    pub(crate) fn schedule(&self) -> Vec<(u64, Kind)> {
        [
            (self.crash_ms, Kind::Crash),
            (self.pause_ms, Kind::Pause),
            (self.shutdown_ms, Kind::Shutdown),
            (self.clock_ms, Kind::ClockJump),
            (self.database_clock_ms, Kind::DatabaseClockJump),
            (self.grow_ms, Kind::Grow),
            (self.trim_ms, Kind::Trim),
            (self.recreate_ms, Kind::Recreate),
            (self.delete_ms, Kind::Delete),
            (self.backup_ms, Kind::Backup),
            (self.close_key_ms, Kind::CloseKey),
            (self.export_ms, Kind::Export),
        ]
        .into_iter()
        .filter_map(|(rate_ms, kind)| Some((rate_ms?, kind)))
        .collect()
    }
}

macro_rules! happened {
    ($($field:ident $what:literal,)*) => {
        /// How often what was to be tried did happen: a simulation in which a fault never comes shows nothing.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        pub(crate) struct Happened {
            $(pub(crate) $field: u64,)*
        }

        impl Happened {
            pub(crate) fn add(&mut self, other: &Self) {
                $(self.$field += other.$field;)*
            }

            pub(crate) fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$(($what, self.$field),)*]
            }
        }
    };
}

happened! {
    records "records published",
    commits "flushes published",
    crashes "crashes",
    zombies "processes frozen for longer than their group waits",
    shutdowns "processes that were asked to stop",
    rebalances "rebalances",
    growths "partitions added",
    recreations "topics made anew",
    halts "partitions halted",
    lost_to_retention "records that retention took before they were published",
    gaps "gaps published",
    slow "slow operations",
    failed "operations that failed",
    answers_lost "operations that were done and whose answer was lost",
    done_late "operations that were done after they were given up",
    doubled "answers that came twice",
    ambiguous_committed "commits without an answer that had committed",
    ambiguous_aborted "commits without an answer that had not",
    lost_swaps "publishings that changed no row",
    condemned "staged objects condemned",
    deletions "sessions deleted",
    worker_crashes "retention workers that crashed",
    workers_frozen "retention workers frozen",
    asked_again "deletions asked for again",
    unknown_deleted "deletions of sessions that nobody had seen",
    references_deleted "deletions of all sessions of a reference",
    late_deleted "sessions deleted at first sight",
    late_of_their_own "sessions that came too late for their deletion",
    expired "sessions that expired",
    terminated "sessions of workspaces that ended",
    terminations_cancelled "ends of workspaces that were cancelled",
    plans_shortened "plans that became shorter",
    clocks_found_wrong "passes that found the clocks to differ",
    stagings_open "stagings whose transactions stayed open",
    barriers_awaited "waits for a barrier",
    blockers "shared objects noted for a deletion",
    held "sessions held up by what is in quarantine",
    deleted_partly "keys left by a DeleteObjects",
    returned "listings that found what was deleted",
    forgotten "rows of objects that went",
    parts_left "uploads that nobody went on with",
    uploads_ended "uploads ended",
    opened_from_memory "sessions opened by a key in memory, behind its shredding",
    erased "sessions erased",
    receipts "receipts",
    restored "backups restored",
    keys_restored "destroyed keys that a backup had",
    links_lost "links that a backup had not",
    marks_of_unknown "marks of such links that the journal brought",
    replayed "sessions that the journal brought to a restored index",
    strangers "objects without a row that an operator removed",
    keys_late "keys inserted behind their shredding",
    dropped_deleted "records left out since their session was deleted",
    retries "batches sent again",
    copies "batches noted as copies",
    unreadable "unreadable records",
    set_aside "records set aside since their session's key did not open",
    pauses "pauses at the memory bound",
    clock_jumps "clocks that jumped",
    database_clock_jumps "jumps of the database's clock",
    compactor_crashes "compactors that crashed",
    compactor_shutdowns "compactors that were asked to stop",
    claims "runs claimed",
    claims_lost "claims that somebody else was faster with",
    leases_lost "leases that ran out beneath their job",
    runs "runs swapped for their results",
    left_out "results left out since their session was deleted",
    swaps_lost "swaps that changed nothing",
    swaps_committed "swaps without an answer that had committed",
    swaps_aborted "swaps without an answer that had not",
    finals "sessions that became one object",
    marked_final "sessions whose parts stayed as they were",
    parts_added "parts that came after a session was final",
    corrupt_moved "batches moved into quarantine since they could not be merged",
    conflicting "batches sent again with other bytes",
    readings "readings",
    readings_over_swaps "readings with a swap beneath them",
    readings_corrupt "readings that met damaged bytes",
    exports_asked "exports asked for",
    exporters_died "makers of archives that died",
    exports_taken "archives that somebody went on with",
    exports_taken_over "archives whose maker had lost its lease",
    parts_cut "parts of archives that did not stand",
    exports_ready "archives that became whole",
    exports_over_unready "archives given up since their export was over",
    exports_ended "exports ended by a session's deletion",
    exports_ended_by_hand "exports ended by hand",
    exports_expired "exports whose time was over",
    exports_gone "exports gone",
    exports_returned "listings that found something of an export",
    exports_restored "exports that a backup had otherwise",
    exports_lost "exports that a backup had not",
    strays "objects of exports without a row that were removed",
    left_in_strays "objects of exports that a backup did not know of, with bytes of a session that was erased",
    parts_aborted "parts of archives without an answer that were not published",
    parts_committed "parts of archives without an answer that were",
    archives_fetched "archives fetched to their end",
    archives_cut "archives that ended beneath who fetched them",
}
