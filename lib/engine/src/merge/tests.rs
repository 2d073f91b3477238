//! Goal: C1. However a session's batches are spread, doubled and merged in between, it reads the same. Method: random
//! streams are laid down in random ways and read back against a simple sort.

use proptest::prelude::*;
use schemas::shared_object::{BatchEntry, Chunk};
use schemas::{SessionId, SessionKey, WorkspaceId};
use uuid::Uuid;

use super::*;
use crate::compaction::FrameCutter;

fn session() -> SessionKey {
    SessionKey { workspace: WorkspaceId(Uuid::from_u128(1)), session: SessionId(Uuid::from_u128(2)) }
}

/// Timestamps of each batch's events.
type Batches = Vec<Vec<i64>>;

fn payload(stream: u32, seq: usize, timestamps: &[i64]) -> Vec<u8> {
    let line = |(position, at): (usize, &i64)| {
        format!("{{\"type\":{},\"timestamp\":{at},\"data\":\"{stream}/{seq}/{position}\"}}\n", 2 + position % 2)
    };
    timestamps.iter().enumerate().map(line).collect::<String>().into_bytes()
}

/// A store of objects: shared ones as their frames' bytes, session ones as their frames' bytes.
#[derive(Default)]
struct Store {
    shared: Vec<Vec<u8>>,
    chunks: Vec<(usize, i32, Chunk)>,
    objects: Vec<(session_object::Footer, Vec<Vec<u8>>)>,
}

impl Store {
    fn put_shared(&mut self, partition: i32, offset: u64, stream: u32, seq: usize, end: bool, timestamps: &[i64]) {
        let payload = payload(stream, seq, timestamps);
        let facts = if payload.is_empty() { BatchFacts::default() } else { events::read(&payload).unwrap().facts };
        let entry = BatchEntry { seq: seq as u32, end, offset, len: payload.len() as u32, facts };
        self.chunks.push((
            self.shared.len(),
            partition,
            Chunk { key: session(), stream, id: [0; 16], at: 0, batches: vec![entry] },
        ));
        self.shared.push(payload);
    }

    fn plan(&self) -> Plan {
        let merged: Vec<_> = self.objects.iter().enumerate().map(|(at, (footer, _))| (at, footer)).collect();
        let shared: Vec<_> = self
            .chunks
            .iter()
            .map(|(object, partition, chunk)| SharedSource { object: *object, partition: *partition, number: 0, chunk })
            .collect();
        Plan::build(&merged, &shared)
    }

    fn load(&self, location: &Location) -> Vec<u8> {
        match location {
            Location::Shared { object, at, len, .. } => {
                self.shared[*object][*at as usize..(*at + u64::from(*len)) as usize].to_vec()
            }
            Location::Session { object, pieces } => pieces
                .iter()
                .flat_map(|piece| {
                    let frame = &self.objects[*object].1[piece.frame];
                    frame[piece.at as usize..(piece.at + piece.len) as usize].to_vec()
                })
                .collect(),
        }
    }

    fn walk(&self, plan: &Plan, range: Range, mut each: impl FnMut(&Event, &[u8])) {
        let mut merger = Merger::new(plan, range);
        loop {
            match merger.step().unwrap() {
                Step::Need { stream, batch } => {
                    let payload = self.load(&plan.streams[stream].batches[batch].location);
                    merger.supply(stream, payload).unwrap();
                }
                Step::Event(event) => each(&event, merger.bytes(&event)),
                Step::Done => return,
            }
        }
    }

    fn read(&self, range: Range) -> Vec<String> {
        let mut lines = Vec::new();
        self.walk(&self.plan(), range, |_, bytes| lines.push(String::from_utf8(bytes.to_vec()).unwrap()));
        lines
    }

    /// Everything so far becomes one session object.
    fn compact(&mut self, frame_bytes: usize) {
        let plan = self.plan();
        let mut cutter = FrameCutter::new(frame_bytes);
        let mut frames = Vec::new();
        self.walk(&plan, Range::ALL, |event, bytes| frames.extend(cutter.push(&plan, event, bytes)));
        frames.extend(cutter.finish());
        let mut footer = session_object::Footer {
            object: schemas::ObjectId(Uuid::nil()),
            chunk: [0; 16],
            key: session(),
            frames: Vec::new(),
            streams: plan.stream_infos(),
            duplicates: plan.duplicates,
            conflicts: plan.conflicts,
        };
        let mut raws = Vec::new();
        let mut at = 0;
        for cut in frames {
            let len = cut.raw.len() as u32;
            footer.frames.push(cut.frame(at, len));
            at += u64::from(len);
            raws.push(cut.raw);
        }
        let footer = session_object::Footer::decode(&footer.encode(), at).unwrap();
        *self = Self { objects: vec![(footer, raws)], ..Self::default() };
    }
}

/// What must be read, by the definition: (running maximum, stream, seq, position).
fn expected(streams: &BTreeMap<u32, Batches>, range: Range) -> Vec<String> {
    let mut all = Vec::new();
    for (stream, batches) in streams {
        let mut high = i64::MIN;
        for (seq, timestamps) in batches.iter().enumerate() {
            let text = String::from_utf8(payload(*stream, seq, timestamps)).unwrap();
            for ((position, line), at) in text.split_inclusive('\n').enumerate().zip(timestamps) {
                high = high.max(*at);
                if (range.from..=range.to).contains(at) {
                    all.push((high, *stream, seq, position, line.to_owned()));
                }
            }
        }
    }
    all.sort();
    all.into_iter().map(|(.., line)| line).collect()
}

fn any_streams() -> impl Strategy<Value = BTreeMap<u32, Batches>> {
    let batches = prop::collection::vec(prop::collection::vec(-50i64..50, 0..6), 1..6);
    prop::collection::btree_map(0u32..5, batches, 1..4)
}

proptest! {
    #[test]
    fn c01_any_spread_of_batches_reads_in_the_one_order(
        streams in any_streams(),
        order: u64,
        copies in 1usize..3,
        compact_every in 1usize..12,
        frame_bytes in 1usize..200,
        (from, to) in (-60i64..60, -60i64..60),
    ) {
        let mut arrivals: Vec<(u32, usize)> = streams
            .iter()
            .flat_map(|(stream, batches)| (0..batches.len()).map(|seq| (*stream, seq)))
            .cycle()
            .take(copies * streams.values().map(Vec::len).sum::<usize>())
            .collect();
        // Any order: a late batch may come after later ones were merged.
        arrivals.sort_by_key(|(stream, seq)| order.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(stream * 7 + *seq as u32 * 3));
        let mut store = Store::default();
        for (offset, (stream, seq)) in arrivals.iter().enumerate() {
            let batches = &streams[stream];
            store.put_shared(0, offset as u64, *stream, *seq, *seq + 1 == batches.len(), &batches[*seq]);
            if offset % compact_every == compact_every - 1 {
                store.compact(frame_bytes);
            }
        }
        prop_assert_eq!(store.read(Range::ALL), expected(&streams, Range::ALL));
        let range = Range { from, to };
        prop_assert_eq!(store.read(range), expected(&streams, range));
        let before = store.read(Range::ALL);
        store.compact(frame_bytes);
        prop_assert_eq!(store.read(Range::ALL), before);
        let completeness = store.plan().completeness();
        prop_assert!(completeness.ended && completeness.missing.is_empty() && completeness.conflicts == 0);
        prop_assert_eq!(completeness.duplicates_dropped, ((copies - 1) * completeness.batches as usize) as u64);
    }
}

#[test]
fn holes_and_conflicts_are_found() {
    let mut store = Store::default();
    store.put_shared(0, 0, 7, 1, false, &[1]);
    store.put_shared(0, 1, 7, 4, true, &[2]);
    store.put_shared(0, 2, 7, 4, true, &[3]);
    store.put_shared(1, 0, 7, 4, true, &[2]);
    let completeness = store.plan().completeness();
    let range = |from, to| MissingRange { stream: 7, from, to };
    assert_eq!(completeness.missing, [range(0, 0), range(2, 3)]);
    assert_eq!((completeness.batches, completeness.duplicates_dropped, completeness.conflicts), (2, 2, 1));
    // The first by (partition, offset) stays.
    assert!(store.read(Range::ALL)[1].contains("\"timestamp\":2"));
}

#[test]
fn a_batch_that_is_not_what_its_facts_say_is_refused() {
    let mut store = Store::default();
    store.put_shared(0, 0, 7, 0, false, &[1]);
    let plan = store.plan();
    let mut merger = Merger::new(&plan, Range::ALL);
    assert_eq!(merger.step(), Ok(Step::Need { stream: 0, batch: 0 }));
    assert_eq!(merger.supply(0, b"short\n".to_vec()), Err(Mismatch));
    assert_eq!(merger.supply(0, vec![b'x'; plan.streams[0].batches[0].facts.raw_bytes as usize]), Err(Mismatch));
}
