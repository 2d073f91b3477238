//! What a deletion has to do next.
//!
//! A session's way out: its row is the tombstone (unreadable at once); its key is destroyed; all transactions that may not know of the
//! tombstone end (the barrier); the shared objects that may hold its bytes are noted; its own objects are condemned and
//! deleted; the noted ones are drained by the compactor, which leaves it out, and deleted; then a listing shows its
//! prefix empty, and it is erased. Every step can be repeated (R4), and states only move forward (R1).

/// What is known of one session that is being deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
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

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
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

/// Decides.
pub fn next_step(facts: &Facts) -> Step {
    match facts {
        Facts { shredded: false, .. } => Step::Shred,
        Facts { barrier_set: false, .. } => Step::SetBarrier,
        Facts { barrier_passed: false, .. } => Step::AwaitBarrier,
        Facts { blockers_noted: false, .. } => Step::NoteBlockers,
        Facts { blockers_left: 0, objects_left: 0, .. } => Step::VerifyAbsent,
        _ => Step::AwaitRemoval,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r01_steps_come_in_their_order() {
        let mut facts = Facts {
            shredded: false,
            barrier_set: false,
            barrier_passed: false,
            blockers_noted: false,
            blockers_left: 0,
            objects_left: 0,
        };
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
}
