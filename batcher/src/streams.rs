//! What is known of streams between their flushes, and masking by it. Masking is CPU work, done on the pool.

use std::borrow::Cow;
use std::collections::BTreeMap;

use masking::{RuleBook, StreamState};
use quick_cache::Weighter;
use quick_cache::unsync::Cache;
use schemas::codec::{self, FormatError};
use schemas::record::Masking;
use schemas::stream_note::{self, StreamNote};
use schemas::{BatchFacts, SessionKey, limits};

/// zstd's level for frames that have to be made anew: as the edge's, since the compactor compresses again.
const FRAME_ZSTD_LEVEL: i32 = 1;
/// Memory for what is known of streams, about. What is forgotten is found again behind what was stored.
const KNOWN_BYTES_MAX: u64 = 64 * limits::MIB as u64;
/// Streams that fit into it, as far as the cache sizes its own tables by it.
const KNOWN_STREAMS: usize = 100_000;
/// What an entry costs beside its state's ranges.
const KNOWN_COST_BYTES: u64 = 256;

/// A stream of a session.
pub(crate) type StreamKey = (SessionKey, u32);

/// What is known of a stream: how far it was seen, and what follows from that.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Known {
    /// The seq that comes next.
    pub(crate) next: u64,
    pub(crate) state: StreamState,
}

impl Known {
    /// What a note tells; a note that cannot be read tells how far the stream was seen, and nothing else.
    pub(crate) fn of(note: &StreamNote) -> Self {
        let state = StreamState::decode(&note.state).unwrap_or_else(|_| StreamState::missed());
        Self { next: note.next, state }
    }

    /// Of a stream that has begun, and of which nothing is found.
    pub(crate) fn nothing() -> Self {
        Self { next: 0, state: StreamState::missed() }
    }

    fn note(&self, stream: u32) -> StreamNote {
        StreamNote { stream, next: self.next, state: self.state.encode() }
    }
}

#[derive(Debug, Clone)]
struct Cost;

impl Weighter<(i32, u64, StreamKey), Known> for Cost {
    fn weight(&self, _: &(i32, u64, StreamKey), known: &Known) -> u64 {
        known.state.heap_bytes() as u64 + KNOWN_COST_BYTES
    }
}

/// What is known of the streams of the partitions that are owned. It is as published: a flush that comes to nothing has changed
/// nothing here.
#[derive(Debug)]
pub(crate) struct Streams {
    /// By partition and how often that was taken: what was known before somebody else had it is not known any more.
    known: Cache<(i32, u64, StreamKey), Known, Cost>,
    turns: BTreeMap<i32, u64>,
}

impl Streams {
    pub(crate) fn new() -> Self {
        Self { known: Cache::with_weighter(KNOWN_STREAMS, KNOWN_BYTES_MAX, Cost), turns: BTreeMap::new() }
    }

    /// Somebody else owns the partition, or did: nothing that is known of its streams counts any more.
    pub(crate) fn turn(&mut self, partition: i32) {
        *self.turns.entry(partition).or_default() += 1;
    }

    pub(crate) fn get(&self, partition: i32, stream: StreamKey) -> Option<Known> {
        self.known.get(&(partition, self.turn_of(partition), stream)).cloned()
    }

    /// Takes in what a published flush has made of its streams.
    pub(crate) fn published(&mut self, partition: i32, streams: &BTreeMap<StreamKey, Known>) {
        let turn = self.turn_of(partition);
        for (stream, known) in streams {
            self.known.insert((partition, turn, *stream), known.clone());
        }
    }

    fn turn_of(&self, partition: i32) -> u64 {
        self.turns.get(&partition).copied().unwrap_or_default()
    }
}

/// A batch as it is to be stored.
pub(crate) struct ToMask<'a> {
    pub(crate) seq: u32,
    pub(crate) end: bool,
    pub(crate) masking: Option<&'a Masking>,
    pub(crate) frame: Cow<'a, [u8]>,
    pub(crate) facts: BatchFacts,
    /// Whether only that it came again is stored.
    pub(crate) is_copy: bool,
}

/// What masking did, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Done {
    pub(crate) masked: u64,
    pub(crate) dropped: u64,
    /// Batches whose events were looked at.
    pub(crate) opened: u64,
    /// Batches whose frame was made anew.
    pub(crate) changed: u64,
    /// Batches that did not come after the ones before.
    pub(crate) missed: u64,
}

/// Masks a batch by what is known of its stream, and learns from it. A batch that comes too late is masked by what it tells itself,
/// and teaches nothing; behind a gap nothing is known but what comes after. An error when its frame does not decompress: nothing
/// of it may be stored as it is then, and nothing is known any more.
pub(crate) fn mask(
    known: &mut Known,
    batch: &mut ToMask<'_>,
    rules: &RuleBook,
    done: &mut Done,
) -> Result<(), FormatError> {
    let seq = u64::from(batch.seq);
    let is_late = seq < known.next;
    if seq != known.next {
        done.missed += 1;
    }
    let mut apart = StreamState::missed();
    if !is_late {
        if seq > known.next {
            known.state.miss();
        }
        known.next = seq + 1;
    }
    let needs_state = batch.masking.is_none_or(|masking| masking.needs_state);
    if !needs_state || batch.facts.raw_bytes == 0 {
        return Ok(());
    }
    let state = if is_late { &mut apart } else { &mut known.state };
    let payload = codec::decompress(&batch.frame, limits::DECODED_BYTES_MAX).inspect_err(|_| state.miss())?;
    let rules = match batch.masking {
        Some(masking) => rules.rules(masking.rules.as_deref()),
        // Its edge was of a release before, which did not tell the link's rules.
        None => rules.strictest(),
    };
    let kept = masking::mask(&payload, &rules, state);
    done.opened += 1;
    done.masked += u64::from(kept.masked);
    done.dropped += u64::from(kept.dropped);
    if let Some(payload) = kept.payload {
        done.changed += 1;
        batch.frame = Cow::Owned(codec::compress(&payload, FRAME_ZSTD_LEVEL));
        // What it is told from other batches by is the hash that its edge took.
        batch.facts.stored_hash = Some(BatchFacts::hash(&payload));
        batch.facts.raw_bytes = payload.len() as u32;
        batch.facts.masked = batch.facts.masked.saturating_add(kept.masked);
        batch.facts.dropped = batch.facts.dropped.saturating_add(kept.dropped);
    }
    Ok(())
}

/// Notes behind the last of a chunk's frames what is known of the stream by now, unless it is over.
pub(crate) fn append_note(known: &Known, stream: u32, batches: &mut [&mut ToMask<'_>]) {
    if batches.iter().any(|batch| batch.end && u64::from(batch.seq) + 1 == known.next) {
        return;
    }
    if let Some(last) = batches.iter_mut().rev().find(|batch| !batch.is_copy) {
        stream_note::append(last.frame.to_mut(), [&known.note(stream)]);
    }
}

#[cfg(test)]
mod tests {
    use schemas::{SessionId, WorkspaceId};
    use uuid::Uuid;

    use super::*;

    const SNAPSHOT: &str = r#"{"type":2,"data":{"node":{"type":0,"childNodes":[{"type":2,"tagName":"p","attributes":{},"childNodes":[{"type":3,"textContent":"open","id":3}],"id":2},{"type":2,"tagName":"p","attributes":{"data-clairvio-mask":""},"childNodes":[{"type":3,"textContent":"***","id":5}],"id":4}],"id":1}},"timestamp":1}"#;

    fn change(id: u32, text: &str) -> String {
        format!(
            r#"{{"type":3,"data":{{"source":0,"texts":[{{"id":{id},"value":"{text}"}}],"attributes":[],"removes":[],"adds":[]}},"timestamp":2}}"#
        )
    }

    /// What is stored of a batch with these events, whose edge left everything to the batcher.
    fn stored(known: &mut Known, seq: u32, events: &[&str]) -> String {
        let payload: String = events.iter().map(|event| format!("{event}\n")).collect();
        let facts = BatchFacts {
            raw_bytes: payload.len() as u32,
            content_hash: BatchFacts::hash(payload.as_bytes()),
            ..BatchFacts::default()
        };
        let masking = Masking { rules: None, needs_state: true };
        let frame = Cow::Owned(codec::compress(payload.as_bytes(), 1));
        let mut batch =
            ToMask { seq, end: false, masking: Some(&masking), frame, facts: facts.clone(), is_copy: false };
        mask(known, &mut batch, &RuleBook::default(), &mut Done::default()).unwrap();
        let text = String::from_utf8(codec::decompress(&batch.frame, 1 << 20).unwrap()).unwrap();
        assert_eq!(batch.facts.raw_bytes as usize, text.len());
        assert_eq!(batch.facts.content_hash, facts.content_hash);
        assert_eq!(batch.facts.stored_hash, (text != payload).then(|| BatchFacts::hash(text.as_bytes())));
        text
    }

    #[test]
    fn a_batch_is_masked_by_what_the_ones_before_told() {
        let mut known = Known::default();
        assert!(stored(&mut known, 0, &[SNAPSHOT]).contains("open"));
        assert!(stored(&mut known, 1, &[&change(3, "seen")]).contains("seen"));
        assert!(!stored(&mut known, 2, &[&change(5, "secret")]).contains("secret"));
        // The same by who reads the note.
        let mut next = Known::of(&known.note(7));
        assert_eq!(next, known);
        assert!(stored(&mut next, 3, &[&change(3, "seen")]).contains("seen"));
    }

    #[test]
    fn behind_a_gap_and_out_of_order_all_is_masked_until_the_next_snapshot() {
        let mut known = Known::default();
        stored(&mut known, 0, &[SNAPSHOT]);
        assert!(!stored(&mut known, 2, &[&change(3, "after-gap")]).contains("after-gap"));
        let before = known.clone();
        // It comes late: it is masked, and changes nothing.
        assert!(!stored(&mut known, 1, &[&change(3, "late")]).contains("late"));
        assert!(stored(&mut known, 1, &[SNAPSHOT]).contains("open"), "a snapshot tells what is in it");
        assert_eq!(known, before);
        assert!(!stored(&mut known, 3, &[&change(3, "still-unknown")]).contains("still-unknown"));
        assert!(stored(&mut known, 4, &[SNAPSHOT, &change(3, "seen")]).contains("seen"));
        let mut nothing = Known::nothing();
        assert!(!stored(&mut nothing, 5, &[&change(3, "secret")]).contains("secret"));
    }

    #[test]
    fn a_batch_that_needs_no_state_is_not_opened_and_counts_as_seen() {
        let masking = Masking::default();
        let mut known = Known { next: 3, ..Known::default() };
        let facts = BatchFacts { raw_bytes: 9, ..BatchFacts::default() };
        let frame = Cow::Borrowed(b"no frame at all".as_slice());
        let mut batch = ToMask { seq: 3, end: false, masking: Some(&masking), frame, facts, is_copy: false };
        let mut done = Done::default();
        assert_eq!(mask(&mut known, &mut batch, &RuleBook::default(), &mut done), Ok(()));
        assert_eq!((known.next, done), (4, Done::default()));
        // Of an edge that masked nothing, or of one that saw that there is more to do, it is.
        let unsure = Masking { rules: None, needs_state: true };
        for masking in [None, Some(&unsure)] {
            batch.masking = masking;
            known = Known { next: 3, ..Known::default() };
            let failed = mask(&mut known, &mut batch, &RuleBook::default(), &mut done);
            assert_eq!(failed, Err(FormatError::Compression), "nothing of it may be stored");
        }
    }

    #[test]
    fn what_is_known_of_a_partition_goes_when_somebody_else_has_it() {
        let key = SessionKey { workspace: WorkspaceId(Uuid::from_u128(1)), session: SessionId(Uuid::from_u128(2)) };
        let mut streams = Streams::new();
        let known = Known { next: 4, ..Known::default() };
        streams.published(1, &[((key, 9), known.clone())].into());
        streams.turn(2);
        assert_eq!(streams.get(1, (key, 9)), Some(known));
        assert_eq!(streams.get(1, (key, 8)), None);
        streams.turn(1);
        assert_eq!(streams.get(1, (key, 9)), None);
    }
}
