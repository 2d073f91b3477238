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

/// The page that is visited at a time.
fn page(at: i64) -> String {
    format!("https://a.example/{}", at.rem_euclid(13))
}

fn payload(stream: u32, seq: usize, timestamps: &[i64]) -> Vec<u8> {
    let line = |(position, at): (usize, &i64)| {
        // A snapshot, a click, a page; each says beside its data whose it is.
        let kind = 2 + position % 3;
        let found = [r#""x":0"#.to_owned(), r#""source":2,"type":2"#.to_owned(), format!("\"href\":\"{}\"", page(*at))];
        let of = format!("{stream}/{seq}/{position}");
        format!("{{\"type\":{kind},\"timestamp\":{at},\"of\":\"{of}\",\"data\":{{{}}}}}\n", found[kind - 2])
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
        self.put(partition, offset, stream, seq, end, payload(stream, seq, timestamps));
    }

    fn put(&mut self, partition: i32, offset: u64, stream: u32, seq: usize, end: bool, payload: Vec<u8>) {
        let (payload, facts) = if payload.is_empty() {
            (payload, BatchFacts::default())
        } else {
            let batch = masking::read(&payload, &masking::Rules::default()).unwrap();
            (batch.payload, batch.facts)
        };
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

    fn walk(&self, plan: &Plan, range: Range, mut each: impl FnMut(&Event, &[u8])) -> Vec<(usize, usize)> {
        self.walk_holding(plan, range, usize::MAX, &mut each)
    }

    /// Gives what was asked for, in order.
    fn walk_holding(
        &self,
        plan: &Plan,
        range: Range,
        held_max: usize,
        mut each: impl FnMut(&Event, &[u8]),
    ) -> Vec<(usize, usize)> {
        let mut merger = Merger::new(Arc::new(plan.clone()), range, held_max);
        let mut asked = Vec::new();
        loop {
            let held = |cursor: &Cursor| cursor.loaded.as_ref().map_or(0, |loaded| loaded.payload.len());
            let held: Vec<usize> = merger.cursors.iter().map(held).filter(|bytes| *bytes > 0).collect();
            assert!(held.iter().sum::<usize>() <= held_max || held.len() <= 1, "{held:?} of {held_max}");
            assert_eq!(merger.held, held.iter().sum::<usize>());
            match merger.step().unwrap() {
                Step::Need { stream, batch } => {
                    asked.push((stream, batch));
                    let payload = self.load(&plan.streams[stream].batches[batch].location);
                    merger.supply(stream, payload).unwrap();
                }
                Step::Event(event) => each(&event, merger.bytes(&event)),
                Step::Done => return asked,
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
        let each = |event: &Event, bytes: &[u8]| frames.extend(cutter.push(&plan, event, bytes));
        self.walk(&plan, Range::ALL, each);
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

/// The sums by the definition, over all events one by one.
fn expected_totals(streams: &BTreeMap<u32, Batches>) -> Totals {
    let mut totals = Totals::default();
    let mut visits = Vec::new();
    for (stream, batches) in streams {
        let mut clicked: Option<i64> = None;
        for (seq, timestamps) in batches.iter().enumerate() {
            let start = timestamps.iter().min();
            totals.raw_bytes += payload(*stream, seq, timestamps).len() as u64;
            for (position, at) in timestamps.iter().enumerate() {
                totals.events += 1;
                let (min, max) = totals.span.unwrap_or((*at, *at));
                totals.span = Some((min.min(*at), max.max(*at)));
                match position % 3 {
                    0 => totals.counts.full_snapshot += 1,
                    1 => {
                        totals.counts.incremental += 1;
                        totals.clicks += 1;
                        let pause = at - clicked.replace(*at).unwrap_or(*at);
                        totals.active_ms += if (0..=5_000).contains(&pause) { pause as u64 } else { 0 };
                    }
                    _ => {
                        totals.counts.meta += 1;
                        totals.pages += 1;
                        visits.push((start, *stream, seq, position, page(*at)));
                    }
                }
            }
        }
    }
    visits.sort();
    for (.., url) in visits {
        if !totals.urls.contains(&url) {
            totals.urls.push(url);
        }
    }
    totals
}

fn any_streams() -> impl Strategy<Value = BTreeMap<u32, Batches>> {
    let batches = prop::collection::vec(prop::collection::vec(-9_000i64..9_000, 0..8), 1..6);
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
        held_max in 0usize..2_000,
        (from, to) in (-10_000i64..10_000, -10_000i64..10_000),
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
        let plan = store.plan();
        prop_assert_eq!(store.walk(&plan, range, |_, _| ()), plan.needs(range));
        let mut lines = Vec::new();
        store.walk_holding(&plan, range, held_max, |_, bytes| lines.push(String::from_utf8(bytes.to_vec()).unwrap()));
        prop_assert_eq!(lines, expected(&streams, range));
        let before = (store.read(Range::ALL), store.plan().totals());
        prop_assert_eq!(&before.1, &expected_totals(&streams));
        store.compact(frame_bytes);
        prop_assert_eq!((store.read(Range::ALL), store.plan().totals()), before);
        let completeness = store.plan().completeness();
        prop_assert!(completeness.ended && completeness.missing.is_empty() && completeness.conflicts == 0);
        prop_assert_eq!(completeness.duplicates_dropped, ((copies - 1) * completeness.batches as usize) as u64);
    }
}

/// Goal: what a client lays side by side costs what it holds, and not its square. Method: streams of one batch each, whose events
/// alternate, together far more than may be held; how often batches are asked for is held against what the streams' shares allow.
#[test]
fn streams_that_alternate_ask_for_their_batches_a_bounded_number_of_times() {
    const EVENTS: i64 = 500;
    for streams in [2, 3, 8, 40] {
        let mut store = Store::default();
        for stream in 0..streams {
            let times: Vec<i64> = (0..EVENTS).map(|event| event * i64::from(streams) + i64::from(stream)).collect();
            store.put_shared(0, u64::from(stream), stream, 0, true, &times);
        }
        let raw_bytes = store.shared.iter().map(Vec::len).max().unwrap();
        for held_max in [raw_bytes / 8, raw_bytes, raw_bytes * 3 / 2] {
            let mut events = 0;
            let asked = store.walk_holding(&store.plan(), Range::ALL, held_max, |_, _| events += 1);
            let share = held_max / streams as usize;
            // Shares shrink while the streams come, and an event may be larger than what is left of one.
            let each = (2 * raw_bytes).div_ceil(share.max(1)).min(EVENTS as usize) + 2;
            assert_eq!(events, EVENTS * i64::from(streams));
            assert!(asked.len() <= each * streams as usize, "{streams} streams, {held_max}: {} of {each}", asked.len());
        }
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
fn streams_that_go_on_are_told_the_latest_first() {
    let mut store = Store::default();
    for (stream, end, timestamps) in
        [(1, false, &[5, 9][..]), (2, true, &[50]), (3, false, &[30]), (4, false, &[]), (5, false, &[9])]
    {
        store.put_shared(0, u64::from(stream), stream, 0, end, timestamps);
    }
    store.put_shared(0, 9, 2, 1, false, &[60]);
    assert_eq!(store.plan().open_streams(), [3, 1, 5, 4]);
}

/// Copies of one batch may be masked differently: by which state was at hand when they came.
#[test]
fn copies_that_are_masked_differently_are_no_conflict() {
    let mut store = Store::default();
    store.put_shared(0, 0, 7, 0, true, &[1]);
    store.put_shared(0, 1, 7, 0, true, &[2, 3]);
    let sent = store.chunks[0].2.batches[0].facts.content_hash;
    let masked = &mut store.chunks[1].2.batches[0].facts;
    (masked.stored_hash, masked.content_hash) = (Some(masked.content_hash), sent);
    let before = store.plan();
    store.compact(100);
    for plan in [before, store.plan()] {
        assert_eq!((plan.duplicates, plan.conflicts), (1, 0));
        assert_eq!(plan.streams[0].batches[0].facts.raw_bytes as usize, payload(7, 0, &[1]).len());
    }
}

#[test]
fn a_batch_that_is_not_what_its_facts_say_is_refused() {
    let mut store = Store::default();
    store.put_shared(0, 0, 7, 0, false, &[1]);
    let plan = store.plan();
    let mut merger = Merger::new(Arc::new(plan.clone()), Range::ALL, usize::MAX);
    assert_eq!(merger.step(), Ok(Step::Need { stream: 0, batch: 0 }));
    assert_eq!(merger.supply(0, b"short\n".to_vec()), Err(Mismatch { stream: 0, batch: 0 }));
    assert_eq!(
        merger.supply(0, vec![b'x'; plan.streams[0].batches[0].facts.raw_bytes as usize]),
        Err(Mismatch { stream: 0, batch: 0 })
    );
}

/// Goal: what a session's pages cost is bounded, and which are kept does not depend on how it was merged (C1). Method: two
/// streams that together open more pages than are kept, and each of them often; merged at once, in parts, and in parts
/// that came in the wrong order.
#[test]
fn c01_the_first_pages_of_a_session_are_kept_however_it_is_merged() {
    let visit = |stream: u32, seq: usize| format!("https://a.example/{}", seq * 2 + stream as usize);
    let batches = SESSION_URLS_MAX + 10;
    let put = |store: &mut Store, stream, seq: usize| {
        let line =
            |at: usize, url: String| format!("{{\"type\":4,\"timestamp\":{at},\"data\":{{\"href\":\"{url}?q\"}}}}\n");
        let at = seq * 10 + stream as usize;
        let urls = [visit(stream, seq), visit(stream, seq.saturating_sub(1)), "https://a.example/home".to_owned()];
        store.put(0, (seq * 2) as u64, stream, seq, false, urls.map(|url| line(at, url)).concat().into_bytes());
    };
    let first: Vec<String> = std::iter::once((0, 0))
        .chain((0..batches).flat_map(|seq| [(0, seq), (1, seq)]))
        .enumerate()
        .map(|(place, (stream, seq))| if place == 1 { "https://a.example/home".to_owned() } else { visit(stream, seq) })
        .take(SESSION_URLS_MAX)
        .collect();
    let places: Vec<(u32, usize)> = (0..batches).flat_map(|seq| [(0, seq), (1, seq)]).collect();
    let turned: Vec<(u32, usize)> = places.iter().copied().rev().collect();
    for (order, compact_every) in [(&places, usize::MAX), (&places, 7), (&turned, 7), (&turned, usize::MAX)] {
        let mut store = Store::default();
        for (number, (stream, seq)) in order.iter().enumerate() {
            put(&mut store, *stream, *seq);
            if number % compact_every == compact_every - 1 {
                store.compact(1_000);
            }
        }
        assert_eq!(store.plan().totals().urls, first, "merged each {compact_every}");
        store.compact(1_000);
        assert_eq!(store.plan().totals().urls, first, "merged each {compact_every}, then all");
        let footer = &store.objects[0].0;
        let kept = footer.streams.iter().flat_map(|stream| &stream.batches).map(|batch| batch.facts.urls.len());
        assert_eq!(kept.sum::<usize>(), SESSION_URLS_MAX);
    }
}

/// A reading goes on with the batches that were there when it began, and says when one is gone.
#[test]
fn c02_a_plan_is_restricted_to_what_was_there_before() {
    let mut store = Store::default();
    store.put_shared(0, 0, 7, 0, false, &[1]);
    store.put_shared(0, 1, 7, 1, false, &[2]);
    store.put_shared(0, 2, 8, 4, false, &[3]);
    let before = store.plan();
    let lines = store.read(Range::ALL);
    store.put_shared(0, 3, 6, 0, false, &[1]);
    store.put_shared(0, 4, 7, 2, false, &[3]);
    store.compact(100);
    let mut after = store.plan();
    after.restrict(&before).unwrap();
    assert!(matches!(after.streams[0].batches[0].location, Location::Session { .. }));
    let mut again = Vec::new();
    store.walk(&after, Range::ALL, |_, bytes| again.push(String::from_utf8(bytes.to_vec()).unwrap()));
    assert_eq!(again, lines);
    after.streams[1].batches.clear();
    assert_eq!(after.restrict(&before), Err(Lost { stream: 8, seq: 4 }));
    assert_eq!(Plan::default().restrict(&before), Err(Lost { stream: 7, seq: 0 }));
}

/// Cutting a stream elsewhere changes no sum, whether batches without interactions lie between or batches are missing.
#[test]
fn active_time_goes_on_over_the_ends_of_batches() {
    let click = |at: i64| format!("{{\"type\":3,\"timestamp\":{at},\"data\":{{\"source\":2,\"type\":2}}}}\n");
    let other = |at: i64| format!("{{\"type\":3,\"timestamp\":{at},\"data\":{{\"source\":0}}}}\n");
    let check = |batches: &[(usize, String)], active_ms| {
        let mut store = Store::default();
        for (seq, payload) in batches {
            store.put(0, *seq as u64, 7, *seq, false, payload.clone().into_bytes());
        }
        assert_eq!(store.plan().totals().active_ms, active_ms, "{batches:?}");
        store.compact(100);
        assert_eq!(store.plan().totals().active_ms, active_ms, "{batches:?}");
    };
    let whole: String = [0, 100, 4_000, 9_000, 14_001].map(click).concat();
    check(&[(0, whole)], 9_000);
    check(&[(0, [0, 100].map(click).concat()), (1, [4_000, 9_000].map(click).concat()), (2, click(14_001))], 9_000);
    check(&[(0, click(0)), (1, other(50)), (2, String::new()), (5, click(100))], 100);
    check(&[(0, click(0)), (1, click(-40)), (2, click(5_001))], 0);
    // Two streams at the same time count twice.
    let mut store = Store::default();
    for stream in [1, 2] {
        store.put(0, u64::from(stream), stream, 0, true, [0, 100].map(click).concat().into_bytes());
    }
    assert_eq!(store.plan().totals().active_ms, 200);
}
