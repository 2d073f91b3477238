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
    /// Wait until compactor and collector have removed what is left.
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
        Facts { blockers_left: 0, objects_left: 0, .. } => Step::VerifyAbsent,
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
        assert_eq!(next_step(&facts), Step::VerifyAbsent);
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
