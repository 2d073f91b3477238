//! What must always hold, by id. Cited by assertions, metrics, tests and documents.

/// An invariant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invariant {
    /// Its id.
    pub id: &'static str,
    /// What holds, in one sentence.
    pub sentence: &'static str,
}

macro_rules! invariants {
    ($($id:ident $sentence:literal;)*) => {
        $(#[doc = $sentence] pub const $id: Invariant = Invariant { id: stringify!($id), sentence: $sentence };)*
        /// All of them.
        pub const ALL: &[Invariant] = &[$($id,)*];
    };
}

invariants! {
    B1 "progress only grows, per topic and partition, and so do epochs";
    B2 "committed ranges touch and never overlap; a hole has a gap row";
    B3 "a live row's object exists with the hash that the row names";
    B4 "records in are chunked, quarantined, dropped for a counted reason, or buffered";
    B5 "a stale epoch or offset changes no row";
    B6 "revoking one partition leaves the buffers of the others as they were";
    B7 "buffered bytes stay within their bound, but for what one poll already fetched";
    B8 "a tombstoned session never becomes readable again, whatever is written late";
    B9 "a replay from any commit gives the same batches at the same places";
    B10 "object names are never used twice";
    B11 "a chunk is sealed with the key of its own session, quarantine apart";
    B12 "index rows written per flush do not grow with the sessions in it, first sight apart";
    C1 "merging is idempotent and independent of order; the order read is (seq, position) in each stream";
    C2 "the swap of a run for its results is atomic to readers";
    C3 "sources of a merge are deleted only after swap and grace";
    C4 "no pair of key and nonce ever repeats, in the whole system, over re-runs too";
    C5 "any flip, drop, swap or cut of sealed bytes is an error";
    C6 "no shared object outlives its draining bound";
    R1 "states of sessions and deletions only move forward";
    R2 "after the shredding of its key, and the bound of key caches, no process opens a session";
    R3 "erased means absent from storage, seen by a listing and not by a 200";
    R4 "a retry does what remains, and only that";
    R5 "nothing is deleted early by plan";
    R6 "a shorter plan applies to old sessions, a longer one revives none";
    R7 "a deletion by reference covers every session that began before it, those too that are on their way";
    R8 "deleting an unknown session leaves a tombstone";
    R9 "no deletion has an effect on another workspace";
    R10 "each deleted session stands in exactly one receipt";
    R11 "no byte stays past its window";
    E1 "an answer of 202 implies the broker's acknowledgement";
    E2 "no byte reaches the log without a verified, unexpired token within its scope";
    E3 "decoded bytes stay within their bound, whatever came";
    E4 "parsers never panic";
    S1 "no session has bytes without consent facts";
}
