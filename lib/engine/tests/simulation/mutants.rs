//! Protocols broken on purpose. They change what the driver of the simulation does with the machine's effects, or what the
//! models do; the checker has to find each of them.

/// A broken protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Mutant {
    /// An upload counts as done when it begins.
    PublishBeforeUpload,
    /// An upload that failed counts as done.
    FailedUploadTakenAsDone,
    /// Publishing does not compare the epoch.
    NoEpochCheck,
    /// Publishing does not compare the offset, and a commit whose answer was lost is tried again.
    ProgressWithoutSwap,
    /// A publishing that changed no row counts as committed.
    LostSwapTakenAsCommitted,
    /// Progress is committed before the object becomes live.
    PublishInTwoTransactions,
    /// A flush that is staged anew keeps its object's name.
    NameReuse,
    /// An assignment clears the buffers of all other partitions.
    ClearsAllBuffersOnAssign,
    /// Old staged objects are removed by what they were when the collector looked.
    CollectorByAgeAlone,
    /// Publishing does not look whether the object is staged still.
    PublishesWhatIsCondemned,
    /// A commit whose answer was lost counts as failed.
    AmbiguousTakenAsFailed,
    /// A commit whose answer was lost counts as committed.
    AmbiguousTakenAsCommitted,
    /// The look-up does not wait for a transaction that is still on its way.
    LookUpWithoutLock,
    /// First rows are inserted by NOT EXISTS, without a lock.
    FirstSightByNotExists,
    /// First rows are not written.
    FirstSightForgotten,
    /// Deleted sessions are stored like all others.
    DeletedAreStored,
    /// A key that comes late replaces a shredded one.
    LateKeyOverwrites,
    /// A partition is read on from what was noted at Kafka.
    OffsetsFromKafka,
    /// Gaps are left out when publishing.
    SilentGaps,
    /// The fingerprint of the last record is not compared.
    FingerprintForgotten,
    /// What was read before counts as stored before.
    CopiesOfWhatWasRead,
    /// A swap does not compare what it condemned.
    SwapComparesNothing,
    /// A run is condemned in a transaction of its own, before its results are live.
    CondemnsBeforeResults,
    /// A run is condemned in a transaction of its own, after its results are live.
    CondemnsAfterResults,
    /// A swap does not look whether a session was deleted since its object was staged.
    SwapIgnoresDeletion,
    /// Objects are staged for deleted sessions as for all others.
    StagesDeleted,
    /// A merged object whose upload failed, or reads back otherwise, counts as stored.
    FailedMergeTakenAsStored,
    /// Chunks that cannot be merged are dropped with their run.
    UnreadableDropped,
    /// With a chunk that is corrupt all others of its session go into quarantine.
    GoodChunksSetAside,
    /// That something of a session could not be merged is not told.
    PartlyTakenAsStored,
    /// What goes into quarantine goes there although its session was deleted meanwhile.
    QuarantineKeepsDeleted,
    /// A final swap does not look whether the session has other parts by now.
    FinalIgnoresLateParts,
    /// A session is finished while shared objects hold some of it.
    FinishesWhileShared,
    /// Condemned objects are removed without a grace.
    CondemnedRemovedAtOnce,
    /// A merge keeps the last copy of a batch.
    MergeKeepsLastCopy,
    /// Objects that are staged anew keep their names.
    MergeNameReuse,
    /// A run is chosen from what is behind a claimed object.
    RunSkipsLeased,
    /// The order of a session's parts is what the database's clock said.
    PartsByClock,
    /// A run is not merged because of its age.
    RunsBySizeAlone,
    /// A claim does not run out.
    LeasesLastForEver,
    /// Blockers are noted without any barrier.
    NoBarrier,
    /// Blockers are noted as the barrier is set.
    BlockersBeforeBarrier,
    /// A session is erased while shared objects may hold some of it.
    ErasedWhileBlocked,
    /// Rows go, and sessions are erased, by the word of deletes alone.
    NothingIsListed,
    /// Rows of deleted objects go at once.
    ForgottenBeforeListing,
    /// Deleted objects are listed while an upload may land still.
    LatePutsNotAwaited,
    /// Objects are deleted, and listed, by key alone, in a bucket that keeps versions.
    OnlyCurrentVersions,
    /// Parts of uploads are ended by nobody.
    UploadsGoOn,
    /// A DeleteObjects with errors in it counts as done.
    PartlyDeletedTakenAsWhole,
    /// A receipt is signed while keys may be in memory.
    ReceiptBeforeCachesRanOut,
    /// A receipt is signed while sessions are being found.
    ReceiptWhileFinding,
    /// Links are marked after their sessions were listed.
    MarkedAfterListing,
    /// Late sessions join a deletion that is over.
    LateJoinWhatIsOver,
    /// A restored index learns nothing.
    JournalNotReplayed,
    /// Sessions count as journalled, and are not.
    NothingIsJournalled,
    /// Marks of links are not in the journal.
    MarksNotJournalled,
    /// Marks are made of links alone that a restored index has.
    MarksOfUnknownLinksLost,
    /// Barriers that a backup had hold in a database that counts its transactions anew.
    BarriersOfTheOldDatabase,
    /// Sessions expire by the plan with which they began.
    ExpiresByPlanAtStart,
    /// A shorter plan holds at once.
    NoGraceForPlans,
    /// However much is due, one clock decides.
    ClocksNotCompared,
    /// Sessions expire by what the clock says after it was compared.
    ExpiresByAnotherClock,
    /// A key is destroyed by the session's id, in all workspaces.
    ShredsByIdAlone,
    /// A workspace ends at its time although that was cancelled.
    TerminationCannotBeCancelled,
    /// A worker that was frozen says of a session what it was.
    StatesGoBack,
    /// An unknown session gets no tombstone.
    UnknownLeaveNothing,
    /// A session that is deleted gets another deletion.
    DeletedTwice,
    /// Processes keep keys in memory.
    KeysCachedForEver,
    /// A tombstone ends no exports.
    TombstoneEndsNoExport,
    /// What the journal brings to a restored index ends no exports there.
    RestoredExportsGoOn,
    /// Sessions are included in exports without looking whether they are deleted.
    IncludesDeleted,
    /// Parts are staged and published without looking whether the export is over.
    PartsOfWhatIsOver,
    /// Parts are published that were condemned meanwhile.
    PartsThatWereGivenUp,
    /// Whoever had an archive once goes on with it, although another has it.
    ExportOwnersNotCompared,
    /// Whoever goes on with an archive does so behind parts that do not stand.
    TornPartsStay,
    /// An archive is fetched without asking whether the export is over.
    FetchesWhatIsOver,
    /// A session is erased while exports have some of it.
    ErasedWhileExported,
    /// The keys of exports are not destroyed.
    ExportKeyStays,
    /// Exports are listed while objects of theirs have rows, and may land still.
    ExportRemovalNotAwaited,
    /// Exports are gone by the word of rows alone.
    ExportsNotListed,
    /// Exports are gone while their keys may be in memory.
    ExportGoneBeforeCachesRanOut,
    /// Exporters go on with what a restored index forgot.
    ExportersOutliveTheirIndex,
    /// Time ends no exports.
    ExportsLastForEver,
    /// What lies of exports that no row names is removed by nobody.
    StraysStay,
}

/// All of them.
pub(crate) const ALL: &[Mutant] = &[
    Mutant::PublishBeforeUpload,
    Mutant::FailedUploadTakenAsDone,
    Mutant::NoEpochCheck,
    Mutant::ProgressWithoutSwap,
    Mutant::LostSwapTakenAsCommitted,
    Mutant::PublishInTwoTransactions,
    Mutant::NameReuse,
    Mutant::ClearsAllBuffersOnAssign,
    Mutant::CollectorByAgeAlone,
    Mutant::PublishesWhatIsCondemned,
    Mutant::AmbiguousTakenAsFailed,
    Mutant::AmbiguousTakenAsCommitted,
    Mutant::LookUpWithoutLock,
    Mutant::FirstSightByNotExists,
    Mutant::FirstSightForgotten,
    Mutant::DeletedAreStored,
    Mutant::LateKeyOverwrites,
    Mutant::OffsetsFromKafka,
    Mutant::SilentGaps,
    Mutant::FingerprintForgotten,
    Mutant::CopiesOfWhatWasRead,
    Mutant::SwapComparesNothing,
    Mutant::CondemnsBeforeResults,
    Mutant::CondemnsAfterResults,
    Mutant::SwapIgnoresDeletion,
    Mutant::StagesDeleted,
    Mutant::FailedMergeTakenAsStored,
    Mutant::UnreadableDropped,
    Mutant::GoodChunksSetAside,
    Mutant::PartlyTakenAsStored,
    Mutant::QuarantineKeepsDeleted,
    Mutant::FinalIgnoresLateParts,
    Mutant::FinishesWhileShared,
    Mutant::CondemnedRemovedAtOnce,
    Mutant::MergeKeepsLastCopy,
    Mutant::MergeNameReuse,
    Mutant::RunSkipsLeased,
    Mutant::PartsByClock,
    Mutant::RunsBySizeAlone,
    Mutant::LeasesLastForEver,
    Mutant::NoBarrier,
    Mutant::BlockersBeforeBarrier,
    Mutant::ErasedWhileBlocked,
    Mutant::NothingIsListed,
    Mutant::ForgottenBeforeListing,
    Mutant::LatePutsNotAwaited,
    Mutant::OnlyCurrentVersions,
    Mutant::UploadsGoOn,
    Mutant::PartlyDeletedTakenAsWhole,
    Mutant::ReceiptBeforeCachesRanOut,
    Mutant::ReceiptWhileFinding,
    Mutant::MarkedAfterListing,
    Mutant::LateJoinWhatIsOver,
    Mutant::JournalNotReplayed,
    Mutant::NothingIsJournalled,
    Mutant::MarksNotJournalled,
    Mutant::MarksOfUnknownLinksLost,
    Mutant::BarriersOfTheOldDatabase,
    Mutant::ExpiresByPlanAtStart,
    Mutant::NoGraceForPlans,
    Mutant::ClocksNotCompared,
    Mutant::ExpiresByAnotherClock,
    Mutant::ShredsByIdAlone,
    Mutant::TerminationCannotBeCancelled,
    Mutant::StatesGoBack,
    Mutant::UnknownLeaveNothing,
    Mutant::DeletedTwice,
    Mutant::KeysCachedForEver,
    Mutant::TombstoneEndsNoExport,
    Mutant::RestoredExportsGoOn,
    Mutant::IncludesDeleted,
    Mutant::PartsOfWhatIsOver,
    Mutant::PartsThatWereGivenUp,
    Mutant::ExportOwnersNotCompared,
    Mutant::TornPartsStay,
    Mutant::FetchesWhatIsOver,
    Mutant::ErasedWhileExported,
    Mutant::ExportKeyStays,
    Mutant::ExportRemovalNotAwaited,
    Mutant::ExportsNotListed,
    Mutant::ExportGoneBeforeCachesRanOut,
    Mutant::ExportersOutliveTheirIndex,
    Mutant::ExportsLastForEver,
    Mutant::StraysStay,
];
