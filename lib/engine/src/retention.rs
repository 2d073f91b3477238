//! What a deletion has to do next.
//!
//! A session's way out: its row is the tombstone (unreadable at once); the deletion stands in the journal; its key is destroyed; all
//! transactions that may not know of the tombstone end (the barrier); the shared objects that may hold its bytes are noted; its own
//! objects are condemned and deleted; the noted ones are drained by the compactor, which leaves it out, and deleted; then a listing
//! shows its prefix empty, and it is erased. A deletion whose sessions are all erased, and whose keys nobody can have in memory any
//! more, gets its receipt. Every step can be repeated (R4), and states only move forward (R1).

/// What is known of one session that is being deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// Whether the journal outside the index has it: a restored index learns of the deletion there.
    pub journalled: bool,
    /// Whether its key was destroyed.
    pub shredded: bool,
    /// Whether the barrier was set.
    pub barrier_set: bool,
    /// Whether every transaction older than the barrier has ended.
    pub barrier_passed: bool,
    /// Whether the shared objects that may hold its bytes were noted.
    pub blockers_noted: bool,
    /// Rows of noted shared objects that are still there.
    pub blockers_left: u64,
    /// Rows of objects of its own that are still there.
    pub objects_left: u64,
    /// Exports that may have some of it, and are not gone.
    pub exports_left: u64,
}

/// What comes next for a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Write it into the journal.
    Journal,
    /// Destroy its key: from here on its bytes are worth nothing, wherever they are.
    Shred,
    /// Set the barrier.
    SetBarrier,
    /// Nothing to do yet but wait for transactions to end.
    AwaitBarrier,
    /// Note the shared objects that may hold its bytes, and condemn its own.
    NoteBlockers,
    /// Wait until compactor and collector have removed what is left, exports with it.
    AwaitRemoval,
    /// List its prefix: empty means erased, anything found is deleted first.
    VerifyAbsent,
}

/// Decides. The journal comes first: an index that is restored behind the destruction would have a session without a key, and nobody
/// would know that it is deleted.
pub fn next_step(facts: &Facts) -> Step {
    match facts {
        Facts { journalled: false, .. } => Step::Journal,
        Facts { shredded: false, .. } => Step::Shred,
        Facts { barrier_set: false, .. } => Step::SetBarrier,
        Facts { barrier_passed: false, .. } => Step::AwaitBarrier,
        Facts { blockers_noted: false, .. } => Step::NoteBlockers,
        Facts { blockers_left: 0, objects_left: 0, exports_left: 0, .. } => Step::VerifyAbsent,
        _ => Step::AwaitRemoval,
    }
}

/// What is known of a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeletionFacts {
    /// Whether its sessions are being found still.
    pub finding: bool,
    /// Sessions that are not erased yet.
    pub sessions_left: u64,
    /// How long ago the last of its keys was destroyed, in milliseconds; 0 when one was not.
    pub shredded_for_ms: u64,
    /// Whether its receipt was signed.
    pub receipted: bool,
}

/// What comes next for a deletion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeletionStep {
    /// Sessions are being found or led on.
    AwaitSessions,
    /// A process may have an unwrapped key in memory still.
    AwaitKeyCaches,
    /// Verify once more, and sign.
    Sign,
    /// Nothing: it is over.
    Done,
}

/// Decides. `keys_cached_ms` is how long any process keeps an unwrapped key.
pub fn next_deletion_step(facts: &DeletionFacts, keys_cached_ms: u64) -> DeletionStep {
    match facts {
        DeletionFacts { receipted: true, .. } => DeletionStep::Done,
        DeletionFacts { finding: false, sessions_left: 0, shredded_for_ms, .. }
            if *shredded_for_ms > keys_cached_ms =>
        {
            DeletionStep::Sign
        }
        DeletionFacts { finding: false, sessions_left: 0, .. } => DeletionStep::AwaitKeyCaches,
        _ => DeletionStep::AwaitSessions,
    }
}

/// What is known of an export that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExportFacts {
    /// How long ago its key was destroyed, in milliseconds; none when it was not.
    pub shredded_for_ms: Option<u64>,
    /// Rows of its objects that are not condemned.
    pub objects_standing: u64,
    /// Rows of its objects that are still there.
    pub objects_left: u64,
}

/// What comes next for an export that is over. No object comes to it any more: nothing is staged for one that is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportStep {
    /// Destroy its key: from here on its bytes are worth nothing.
    Shred,
    /// Condemn its objects.
    Condemn,
    /// Wait until the collector has removed them.
    AwaitRemoval,
    /// A process may have its unwrapped key in memory still.
    AwaitKeyCaches,
    /// List its prefix: empty means gone, anything found is deleted first.
    VerifyAbsent,
}

/// Decides. `keys_cached_ms` is how long any process keeps an unwrapped key: sessions that are in the export wait for it, and their
/// receipts say that no key is anywhere.
pub fn next_export_step(facts: &ExportFacts, keys_cached_ms: u64) -> ExportStep {
    match *facts {
        ExportFacts { shredded_for_ms: None, .. } => ExportStep::Shred,
        ExportFacts { objects_standing: 1.., .. } => ExportStep::Condemn,
        ExportFacts { objects_left: 1.., .. } => ExportStep::AwaitRemoval,
        ExportFacts { shredded_for_ms: Some(for_ms), .. } if for_ms > keys_cached_ms => ExportStep::VerifyAbsent,
        _ => ExportStep::AwaitKeyCaches,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r01_steps_come_in_their_order() {
        let mut facts = Facts {
            journalled: false,
            shredded: false,
            barrier_set: false,
            barrier_passed: false,
            blockers_noted: false,
            blockers_left: 0,
            objects_left: 0,
            exports_left: 0,
        };
        assert_eq!(next_step(&facts), Step::Journal);
        facts.journalled = true;
        assert_eq!(next_step(&facts), Step::Shred);
        facts.shredded = true;
        assert_eq!(next_step(&facts), Step::SetBarrier);
        facts.barrier_set = true;
        assert_eq!(next_step(&facts), Step::AwaitBarrier);
        facts.barrier_passed = true;
        assert_eq!(next_step(&facts), Step::NoteBlockers);
        facts.blockers_noted = true;
        facts.blockers_left = 1;
        assert_eq!(next_step(&facts), Step::AwaitRemoval);
        facts.blockers_left = 0;
        facts.objects_left = 1;
        assert_eq!(next_step(&facts), Step::AwaitRemoval);
        facts.objects_left = 0;
        facts.exports_left = 1;
        assert_eq!(next_step(&facts), Step::AwaitRemoval);
        facts.exports_left = 0;
        assert_eq!(next_step(&facts), Step::VerifyAbsent);
    }

    #[test]
    fn an_export_that_is_over_loses_its_key_first_and_is_gone_last() {
        let mut facts = ExportFacts { shredded_for_ms: None, objects_standing: 3, objects_left: 3 };
        let step = |facts: &ExportFacts| next_export_step(facts, 60_000);
        assert_eq!(step(&facts), ExportStep::Shred);
        facts.shredded_for_ms = Some(0);
        assert_eq!(step(&facts), ExportStep::Condemn);
        facts.objects_standing = 0;
        assert_eq!(step(&facts), ExportStep::AwaitRemoval);
        facts.objects_left = 0;
        assert_eq!(step(&facts), ExportStep::AwaitKeyCaches);
        facts.shredded_for_ms = Some(60_000);
        assert_eq!(step(&facts), ExportStep::AwaitKeyCaches);
        facts.shredded_for_ms = Some(60_001);
        assert_eq!(step(&facts), ExportStep::VerifyAbsent);
        // A key store of a backup has the key again.
        facts.shredded_for_ms = None;
        assert_eq!(step(&facts), ExportStep::Shred);
    }

    #[test]
    fn r03_a_receipt_waits_for_all_sessions_and_for_the_key_caches() {
        let step = |finding, sessions_left, shredded_for_ms, receipted| {
            next_deletion_step(&DeletionFacts { finding, sessions_left, shredded_for_ms, receipted }, 60_000)
        };
        assert_eq!(step(true, 0, 90_000, false), DeletionStep::AwaitSessions);
        assert_eq!(step(false, 1, 90_000, false), DeletionStep::AwaitSessions);
        assert_eq!(step(false, 0, 60_000, false), DeletionStep::AwaitKeyCaches);
        assert_eq!(step(false, 0, 60_001, false), DeletionStep::Sign);
        assert_eq!(step(false, 0, 60_001, true), DeletionStep::Done);
    }
}
