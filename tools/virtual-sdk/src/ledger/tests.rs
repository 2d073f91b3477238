//! The comparer is tested by mutants: a read that is right is damaged in one way, and the damage has to be found. A
//! comparer that cannot fail proves nothing.

use serde_json::value::RawValue;
use uuid::Uuid;

use masking::{Rules, StreamState};

use super::*;

const SESSION: SessionId = SessionId(Uuid::from_u128(7));

fn batch(stream: u32, seq: u32, events: &[(f64, &str)]) -> Batch {
    let event = |(timestamp, content): &(f64, &str)| {
        let event = format!(r#"{{"type":3,"data":{{"a":"{content}","b":[1,2.5]}},"timestamp":{timestamp}}}"#);
        RawValue::from_string(event).expect("valid JSON")
    };
    Batch::new(stream, seq, false, 0, events.iter().map(event).collect()).expect("a valid batch")
}

fn own(batch: Batch) -> Content {
    Content::Own(Arc::new(batch))
}

/// Two streams that interleave, with a clock that jumps back, equal timestamps and fractions.
fn batches() -> Vec<Batch> {
    vec![
        batch(1, 0, &[(10.0, "a"), (30.0, "b")]),
        batch(1, 1, &[(20.0, "c"), (31.5, "d")]),
        batch(2, 0, &[(25.0, "e"), (30.0, "f")]),
        batch(2, 1, &[(31.2, "g"), (40.0, "h")]),
    ]
}

/// The right order of [`batches`]: `c` comes after `b`, whose timestamp is the highest before it; `b`, `c` (at 30)
/// come before `f` (at 30) since stream 1 comes before stream 2; `d` (31.5) before `g` (31.2) since both round to 31.
const ORDER: [&str; 8] = ["a", "e", "b", "c", "f", "d", "g", "h"];

fn ledger() -> SessionLedger {
    let mut ledger = SessionLedger::default();
    for batch in batches() {
        ledger.acknowledge(batch.stream, batch.seq, own(batch));
    }
    ledger
}

fn line(content: &str, of: &[Batch]) -> String {
    let events = of.iter().flat_map(Batch::events);
    let mut found = events.filter(|event| event.get().contains(&format!("\"a\":\"{content}\"")));
    found.next().expect("an event with this content").get().to_owned()
}

fn right() -> Vec<String> {
    ORDER.iter().map(|content| line(content, &batches())).collect()
}

fn compare(read: &[String]) -> Comparison {
    ledger().compare(SESSION, read)
}

#[test]
fn the_right_read_is_exact() {
    let outcome = compare(&right());
    assert!(outcome.is_exact(), "{outcome}");
    assert_eq!((outcome.expected, outcome.read, outcome.rewritten), (8, 8, 0));
    assert_eq!(outcome.first_fault, None);
}

#[test]
fn each_lost_event_is_found() {
    for lost in 0..ORDER.len() {
        let mut read = right();
        read.remove(lost);
        let outcome = compare(&read);
        assert_eq!((outcome.lost, outcome.doubled, outcome.out_of_order), (1, 0, 0), "{lost}: {outcome}");
        assert!(outcome.first_fault.is_some_and(|fault| fault.contains("is not there")), "{lost}");
    }
    assert_eq!(compare(&[]).lost, 8);
}

#[test]
fn each_doubled_event_is_found_wherever_its_copy_is() {
    for doubled in 0..ORDER.len() {
        for place in 0..=ORDER.len() {
            let mut read = right();
            read.insert(place, read[doubled].clone());
            let outcome = compare(&read);
            assert_eq!((outcome.lost, outcome.doubled), (0, 1), "{doubled} at {place}: {outcome}");
        }
    }
    let twice: Vec<String> = right().into_iter().chain(right()).collect();
    assert_eq!(compare(&twice).doubled, 8);
}

#[test]
fn each_two_events_that_change_places_are_found() {
    for first in 0..ORDER.len() {
        for second in first + 1..ORDER.len() {
            let mut read = right();
            read.swap(first, second);
            let outcome = compare(&read);
            assert!(outcome.out_of_order > 0 && !outcome.is_exact(), "{first} and {second}: {outcome}");
            assert_eq!((outcome.lost, outcome.doubled, outcome.foreign), (0, 0, 0), "{first} and {second}");
        }
    }
}

#[test]
fn orders_that_look_right_and_are_not_are_found() {
    let wrong: [&[&str]; 3] = [
        // By timestamp alone.
        &["a", "c", "e", "b", "f", "g", "d", "h"],
        // By stream alone.
        &["a", "b", "c", "d", "e", "f", "g", "h"],
        // By fraction.
        &["a", "e", "b", "c", "f", "g", "d", "h"],
    ];
    for order in wrong {
        let read: Vec<String> = order.iter().map(|content| line(content, &batches())).collect();
        assert!(compare(&read).out_of_order > 0, "{order:?}");
    }
}

#[test]
fn each_altered_event_is_found() {
    for altered in 0..ORDER.len() {
        let mut read = right();
        read[altered] = read[altered].replace("[1,2.5]", "[1,2.6]");
        let outcome = compare(&read);
        assert_eq!((outcome.altered, outcome.lost, outcome.foreign), (1, 1, 0), "{altered}: {outcome}");

        let mut read = right();
        read[altered] = read[altered].replace("\"timestamp\":", "\"timestamp\":1");
        let outcome = compare(&read);
        assert_eq!((outcome.altered, outcome.lost, outcome.foreign), (0, 1, 1), "{altered}: {outcome}");

        let mut read = right();
        read[altered].pop();
        assert_eq!(compare(&read).foreign, 1, "{altered}");
    }
}

#[test]
fn a_foreign_event_is_found() {
    for foreign in ["{\"type\":3,\"data\":{},\"timestamp\":30}", "", "null", "[]", "{\"type\":3"] {
        let mut read = right();
        read.insert(3, foreign.to_owned());
        let outcome = compare(&read);
        assert_eq!((outcome.foreign, outcome.lost, outcome.doubled), (1, 0, 0), "{foreign:?}: {outcome}");
    }
}

#[test]
fn events_are_compared_as_json_values() {
    let mut read = right();
    read[2] = r#" {"timestamp":30 , "data":{"b":[1, 2.50],"a":"\u0062"},"type":3} "#.to_owned();
    let outcome = compare(&read);
    assert!(outcome.is_exact(), "{outcome}");
    assert_eq!(outcome.rewritten, 1);
    // A number and the same number with a fraction are different values, as serde_json sees them.
    read[2] = r#"{"timestamp":30,"data":{"b":[1.0,2.5],"a":"b"},"type":3}"#.to_owned();
    assert_eq!(compare(&read).altered, 1);
    // A rewritten event that is there twice is doubled all the same.
    let mut read = right();
    read.insert(3, r#"{"timestamp":30,"data":{"b":[1,2.5],"a":"b"},"type":3}"#.to_owned());
    assert_eq!(compare(&read).doubled, 1);
}

#[test]
fn equal_events_are_counted_each() {
    let mut ledger = SessionLedger::default();
    let same = || batch(1, 0, &[(5.0, "x"), (5.0, "x")]);
    ledger.acknowledge(1, 0, own(same()));
    ledger.acknowledge(1, 1, own(batch(1, 1, &[(5.0, "y"), (5.0, "x")])));
    let batches = [same(), batch(1, 1, &[(5.0, "y")])];
    let read = |contents: &str| -> Vec<String> {
        contents.chars().map(|content| line(&content.to_string(), &batches)).collect()
    };
    for (contents, exact) in [("xxyx", true), ("xxxy", false), ("xyx", false), ("xxyxx", false), ("xyxx", false)] {
        assert_eq!(ledger.compare(SESSION, read(contents)).is_exact(), exact, "{contents}");
    }
}

#[test]
fn a_batch_of_unknown_fate_may_be_there_or_not_but_whole_and_once() {
    let content = |batch: &Batch| own(batch.clone());
    let all = batches();
    let mut ledger = SessionLedger::default();
    for batch in &all {
        if (batch.stream, batch.seq) == (1, 0) {
            ledger.doubt(batch.stream, batch.seq, content(batch));
        } else {
            ledger.acknowledge(batch.stream, batch.seq, content(batch));
        }
    }
    let read = |order: &[&str]| -> Vec<String> { order.iter().map(|content| line(content, &all)).collect() };
    let outcome = |order: &[&str]| ledger.compare(SESSION, read(order));

    let there = outcome(&ORDER);
    assert!(there.is_exact() && there.doubts_there == 1, "{there}");
    // Without `b`, `c` is at 20 and comes before `e`.
    let absent = outcome(&["c", "e", "f", "d", "g", "h"]);
    assert!(absent.is_exact() && absent.doubts_there == 0, "{absent}");

    let wrong_place = outcome(&["e", "c", "f", "d", "g", "h"]);
    assert_eq!((wrong_place.out_of_order, wrong_place.lost), (1, 0), "{wrong_place}");
    let torn = outcome(&["a", "c", "e", "f", "d", "g", "h"]);
    assert_eq!((torn.torn, torn.lost, torn.doubled), (1, 0, 0), "{torn}");
    let twice = outcome(&["a", "e", "b", "a", "b", "c", "f", "d", "g", "h"]);
    assert_eq!(twice.doubled, 2, "{twice}");

    // What was acknowledged cannot be called unknown any more.
    let mut known = ledger.clone();
    known.acknowledge(1, 0, content(&all[0]));
    known.doubt(1, 0, content(&all[0]));
    assert_eq!(known.compare(SESSION, read(&["c", "e", "f", "d", "g", "h"])).lost, 2);
    assert_eq!((known.batches(), known.doubts(), known.events()), (4, 0, 8));
}

#[test]
fn of_equal_batches_of_unknown_fate_the_order_tells_which_is_there() {
    // The same event, once before and once after an acknowledged batch: one of the two was stored.
    let mut ledger = SessionLedger::default();
    for seq in [0, 2] {
        ledger.doubt(1, seq, own(batch(1, seq, &[(5.0, "x")])));
    }
    ledger.acknowledge(1, 1, own(batch(1, 1, &[(5.0, "y")])));
    let batches = [batch(1, 0, &[(5.0, "x"), (5.0, "y")])];
    for (contents, exact) in [("xy", true), ("yx", true), ("xyx", true), ("y", true), ("xxy", false), ("x", false)] {
        let read: Vec<String> = contents.chars().map(|content| line(&content.to_string(), &batches)).collect();
        let outcome = ledger.compare(SESSION, read);
        assert_eq!(outcome.is_exact(), exact, "{contents}: {outcome}");
    }
}

#[test]
fn marks_tell_sessions_and_places_apart() {
    let recording = Arc::new(Recording::new("x", vec![batch(1, 0, &[(5.0, "x")])]).expect("a valid recording"));
    let mut ledger = SessionLedger::default();
    ledger.acknowledge(1, 0, Content::Marked { recording: Arc::clone(&recording), batch: 0 });
    assert_eq!(ledger.events(), 2);
    let first = recording.batches()[0].events()[0].get().to_owned();
    let read = |mark: String| ledger.compare(SESSION, [first.clone(), mark]);
    let mark = |session, seq| mark(session, 1, seq, &recording.batches()[0]);
    assert!(read(mark(SESSION, 0)).is_exact());
    for wrong in [mark(SessionId(Uuid::from_u128(8)), 0), mark(SESSION, 1)] {
        let outcome = read(wrong);
        assert_eq!((outcome.altered, outcome.lost), (1, 1), "{outcome}");
    }
}

#[test]
fn a_ledger_knows_each_session_by_itself() {
    let ledger = Ledger::default();
    let other = SessionId(Uuid::from_u128(8));
    for batch in batches() {
        ledger.acknowledge(SESSION, batch.stream, batch.seq, own(batch));
    }
    ledger.begin(other);
    assert_eq!(ledger.sessions(), [SESSION, other]);
    assert_eq!(ledger.totals(), (4, 8));
    let empty = ledger.session(other).expect("it began");
    assert!(empty.compare::<&str>(other, []).is_exact());
    assert_eq!(empty.compare(other, right()).foreign, 8);
    assert!(ledger.forget(SESSION).is_some() && ledger.session(SESSION).is_none());
}

#[test]
fn a_deeply_nested_event_is_compared_too() {
    let deep = format!(r#"{{"type":2,"data":{}1{},"timestamp":1}}"#, "[".repeat(900), "]".repeat(900));
    let event = RawValue::from_string(deep.clone()).expect("valid JSON");
    let batch = Batch::new(1, 0, false, 0, vec![event]).expect("a valid batch");
    let mut ledger = SessionLedger::default();
    ledger.acknowledge(1, 0, own(batch));
    assert!(ledger.compare(SESSION, [deep.replace(",\"timestamp\"", " , \"timestamp\"")]).is_exact());
    assert_eq!(ledger.compare(SESSION, [deep.replace('1', "2")]).lost, 1);
}

#[test]
fn real_recordings_compare_exact_with_themselves_and_with_nothing_less() {
    for recording in crate::recordings::load().expect("recordings can be read") {
        let recording = Arc::new(recording);
        let mut ledger = SessionLedger::default();
        let mut read: Vec<(i64, u32, u32, usize, String)> = Vec::new();
        let mut highest: BTreeMap<u32, i64> = BTreeMap::new();
        let mut states: BTreeMap<u32, StreamState> = BTreeMap::new();
        for (index, batch) in recording.batches().iter().enumerate() {
            let content = Content::Recorded { recording: Arc::clone(&recording), batch: index as u32 };
            ledger.acknowledge(batch.stream, batch.seq, content);
            let stored = stored(batch, states.entry(batch.stream).or_default());
            for (position, (event, timestamp)) in stored.lines().zip(batch.timestamps()).enumerate() {
                let high = highest.entry(batch.stream).or_insert(i64::MIN);
                *high = (*high).max(*timestamp);
                read.push((*high, batch.stream, batch.seq, position, event.to_owned()));
            }
        }
        read.sort();
        let lines: Vec<&str> = read.iter().map(|(.., event)| event.as_str()).collect();
        let outcome = ledger.compare(SESSION, &lines);
        assert!(outcome.is_exact(), "{}: {outcome}", recording.name);
        assert_eq!(outcome.expected, recording.counts().events);
        let outcome = ledger.compare(SESSION, &lines[..lines.len() - 1]);
        assert_eq!(outcome.lost, 1, "{}: {outcome}", recording.name);
    }
}

/// What edge and batcher store of a batch.
fn stored(batch: &Batch, state: &mut StreamState) -> String {
    let rules = Rules::default();
    let body: String = batch.events().iter().map(|event| format!("{event}\n")).collect();
    let read = masking::read(body.as_bytes(), &rules).expect("a recording is taken in");
    let kept = masking::mask(&read.payload, &rules, state).payload.unwrap_or(read.payload);
    String::from_utf8(kept).expect("events are text")
}

#[test]
fn what_is_masked_more_is_the_same_and_what_is_not_masked_is_altered() {
    let event = |text: &str, typed: &str| {
        [
            format!(r#"{{"type":5,"data":{{"tag":"a","payload":{{"text":"{text}"}}}},"timestamp":1}}"#),
            format!(r#"{{"type":3,"data":{{"source":5,"text":"{typed}","isChecked":false,"id":4}},"timestamp":2}}"#),
            format!(
                r#"{{"type":3,"data":{{"source":0,"texts":[{{"id":9,"value":"{text}"}}],"attributes":[],"removes":[],"adds":[]}},"timestamp":3}}"#
            ),
        ]
    };
    let raw = event("plain", "hunter2").map(|event| RawValue::from_string(event).expect("valid JSON"));
    let mut ledger = SessionLedger::default();
    ledger.acknowledge(1, 0, own(Batch::new(1, 0, false, 0, raw.into()).expect("a valid batch")));
    let [custom, typed, text] = event("plain", "***");
    let masked_text = text.replace("plain", "***");
    assert!(ledger.compare(SESSION, [&custom, &typed, &masked_text]).is_exact());
    let leaked = typed.replace("***", "hunter2");
    assert_eq!(ledger.compare(SESSION, [&custom, &leaked, &masked_text]).altered, 1, "what was typed is there");
    assert_eq!(
        ledger.compare(SESSION, [&custom, &typed, &text]).altered,
        1,
        "a text of a node that nobody knows is there"
    );
    let other = custom.replace("plain", "other");
    assert_eq!(ledger.compare(SESSION, [&other, &typed, &masked_text]).altered, 1);
}

/// Numbers that look random and are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// The order of reading by its definition as a merge: of the streams' next events, again and again the one with the
/// least running maximum, and of equal ones the least stream.
fn merge(batches: &[&Batch]) -> Vec<String> {
    let mut streams: BTreeMap<u32, (i64, Vec<(i64, String)>)> = BTreeMap::new();
    for batch in batches {
        let (_, events) = streams.entry(batch.stream).or_insert((i64::MIN, Vec::new()));
        let added = batch.timestamps().iter().zip(batch.events()).map(|(at, event)| (*at, event.get().to_owned()));
        events.extend(added);
    }
    let mut merged = Vec::new();
    loop {
        let open = streams.iter().filter(|(_, (_, events))| !events.is_empty());
        let next = open.map(|(stream, (high, events))| (events[0].0.max(*high), *stream)).min();
        let Some((high, stream)) = next else { return merged };
        let (highest, events) = streams.get_mut(&stream).expect("it was just there");
        *highest = high;
        merged.push(events.remove(0).1);
    }
}

#[test]
fn made_up_sessions_are_exact_when_merged_and_not_when_damaged() {
    for seed in 0..300 {
        let mut numbers = Numbers(seed);
        let mut batches = Vec::new();
        for stream in 0..=numbers.below(3) as u32 {
            for seq in 0..=numbers.below(4) as u32 {
                // Few timestamps and few contents, so that many events are equal or at the same time.
                let events: Vec<(f64, &str)> = (0..numbers.below(5))
                    .map(|_| (numbers.below(6) as f64 / 2.0, ["x", "y", "z"][numbers.below(3) as usize]))
                    .collect();
                batches.push(batch(stream, seq, &events));
            }
        }
        let (mut sure, mut unsure) = (SessionLedger::default(), SessionLedger::default());
        let mut there = Vec::new();
        for batch in &batches {
            sure.acknowledge(batch.stream, batch.seq, own(batch.clone()));
            match numbers.below(6) {
                0 => unsure.doubt(batch.stream, batch.seq, own(batch.clone())),
                fate => {
                    if fate == 1 {
                        unsure.doubt(batch.stream, batch.seq, own(batch.clone()));
                    } else {
                        unsure.acknowledge(batch.stream, batch.seq, own(batch.clone()));
                    }
                    there.push(batch);
                }
            }
        }
        let outcome = unsure.compare(SESSION, merge(&there));
        assert!(outcome.is_exact(), "seed {seed}: {outcome}");

        let right = merge(&batches.iter().collect::<Vec<_>>());
        let outcome = sure.compare(SESSION, &right);
        assert!(outcome.is_exact(), "seed {seed}: {outcome}");
        if right.is_empty() {
            continue;
        }
        let at = numbers.below(right.len() as u64) as usize;
        let to = numbers.below(right.len() as u64) as usize;
        let mut lost = right.clone();
        lost.remove(at);
        assert_eq!(sure.compare(SESSION, lost).lost, 1, "seed {seed}");
        let mut doubled = right.clone();
        doubled.insert(to, right[at].clone());
        assert_eq!(sure.compare(SESSION, doubled).doubled, 1, "seed {seed}");
        let mut swapped = right.clone();
        swapped.swap(at, to);
        assert_eq!(sure.compare(SESSION, &swapped).is_exact(), swapped == right, "seed {seed}");
    }
}
