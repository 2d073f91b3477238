//! C5 over large random objects: random frames, and random tampering of several steps.

use std::ops::Range;

use proptest::collection::vec;
use proptest::prelude::*;
use schemas::ObjectId;
use schemas::object::PREAMBLE_BYTES;

use super::cast::{foreign, keys, other, own, storage, twin};
use super::reader::{self, FooterAt, Keys, Read};
use super::samples::{self, Batch, Run, Stream};

/// Batches of a stream, each the lengths of its events.
type Lengths = Vec<Vec<usize>>;

/// One step. Numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Step {
    Flip(usize),
    Cut(usize),
    /// Bytes out of the middle.
    CutOut(usize, usize),
    Drop(usize),
    Swap(usize, usize),
    /// A frame once more, before another.
    Repeat(usize, usize),
    /// A frame over another of the object.
    Over(usize, usize),
    /// A frame of another object over one of this.
    SpliceFrame(usize, usize, usize),
    /// Bytes of another object, over as many of this.
    Splice(usize, usize, usize),
    /// The end of another object from somewhere on.
    End(usize, usize),
}

/// An object with its frames and footer as pieces, and how it is read, whatever it is.
struct Whole {
    bytes: Vec<u8>,
    pieces: Vec<Range<usize>>,
    row: FooterAt,
    kind: Kind,
}

enum Kind {
    Shared(ObjectId),
    Session(ObjectId),
}

#[derive(Debug, PartialEq)]
enum Content {
    Shared(reader::Shared),
    Session(reader::Session),
}

impl Whole {
    fn read(&self, keys: &Keys, bytes: &[u8], at: FooterAt) -> Read<Content> {
        match self.kind {
            Kind::Shared(id) => reader::shared(keys, id, bytes, at).map(Content::Shared),
            Kind::Session(id) => reader::session(keys, own(), id, bytes, at).map(Content::Session),
        }
    }

    fn piece(&self, number: usize) -> Range<usize> {
        self.pieces[number % self.pieces.len()].clone()
    }
}

/// An event of about this length that does not compress.
fn event(len: usize, number: &mut u64) -> String {
    *number += 1;
    let mut state = *number;
    let text: String = (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            char::from(b'a' + (state >> 33) as u8 % 26)
        })
        .collect();
    format!(r#"{{"type":3,"timestamp":{number},"data":"{text}"}}"#)
}

fn shared(keys: &Keys, id: ObjectId, streams: &[(usize, Lengths)], number: &mut u64) -> Whole {
    let owners = [own(), twin(), foreign(), other()];
    let mut made = Vec::new();
    for (stream, (owner, lengths)) in (0..).zip(streams) {
        let key = owners[owner % owners.len()];
        let mut batches = Vec::new();
        for (seq, lengths) in (0..).zip(lengths) {
            let events = lengths.iter().map(|len| event(*len, number)).collect();
            batches.push(Batch { seq, end: false, offset: u64::from(seq), events, is_copy: false });
        }
        made.push(Stream { key, data_key: &keys.sessions[&key], stream, batches });
    }
    let object = samples::shared(id, 1, &storage(keys), &made, &[]);
    let mut at = PREAMBLE_BYTES;
    let lens = object.footer.chunks.iter().flat_map(|chunk| &chunk.batches).map(|batch| batch.len as usize);
    let ends = lens.chain([object.footer_len]).map(|len| {
        at += len;
        at - len..at
    });
    Whole {
        pieces: ends.collect(),
        row: FooterAt::Row(object.footer_at, object.footer_len),
        bytes: object.bytes,
        kind: Kind::Shared(id),
    }
}

fn session(keys: &Keys, id: ObjectId, frames: &Lengths, number: &mut u64) -> Whole {
    let mut runs: Vec<Vec<Run>> = Vec::new();
    for (seq, lengths) in (0..).zip(frames) {
        // A session object has no frames without events.
        let mut events: Vec<String> = lengths.iter().map(|len| event(*len, number)).collect();
        events.push(event(seq as usize, number));
        runs.push(vec![(1, seq, 0, events)]);
    }
    let batches: Vec<(u32, bool, &[String])> =
        runs.iter().flatten().map(|(_, seq, _, events)| (*seq, false, events.as_slice())).collect();
    let streams = vec![samples::stream_info(1, &batches)];
    let object = samples::session(id, own(), &keys.sessions[&own()], &runs, streams);
    let frames = object.footer.frames.iter().map(|frame| frame.at as usize..frame.at as usize + frame.len as usize);
    let region = object.footer_at..object.footer_at + object.footer_len;
    Whole {
        pieces: frames.chain(std::iter::once(region)).collect(),
        row: FooterAt::Row(object.footer_at, object.footer_len),
        bytes: object.bytes,
        kind: Kind::Session(id),
    }
}

/// Does one step. Pieces lie where they were at first: after other steps they hit whatever is there.
fn apply(step: &Step, whole: &Whole, others: &[Whole], bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        return;
    }
    let len = bytes.len();
    let cap = |range: Range<usize>| range.start.min(len)..range.end.min(len);
    let piece = |number: usize| cap(whole.piece(number));
    match *step {
        Step::Flip(bit) => bytes[bit / 8 % len] ^= 1 << (bit % 8),
        Step::Cut(kept) => bytes.truncate(kept % len),
        Step::CutOut(at, count) => drop(bytes.drain(cap(at % len..at % len + count % 64))),
        Step::Drop(number) => drop(bytes.drain(piece(number))),
        Step::Swap(one, two) => {
            let (one, two) = (piece(one), piece(two));
            let (first, second) = if one.start < two.start { (one, two) } else { (two, one) };
            if first.end <= second.start {
                let (early, late) = (bytes[first.clone()].to_vec(), bytes[second.clone()].to_vec());
                bytes.splice(second, early);
                bytes.splice(first, late);
            }
        }
        Step::Repeat(number, before) => {
            let (copy, at) = (bytes[piece(number)].to_vec(), piece(before).start);
            bytes.splice(at..at, copy);
        }
        Step::Over(from, over) => {
            let copy = bytes[piece(from)].to_vec();
            bytes.splice(piece(over), copy);
        }
        Step::SpliceFrame(object, from, over) => {
            let donor = &others[object % others.len()];
            bytes.splice(piece(over), donor.bytes[donor.piece(from)].to_vec());
        }
        Step::Splice(object, at, count) => {
            let donor = &others[object % others.len()].bytes;
            let range = cap(at % len..at % len + count % 256);
            let range = range.start.min(donor.len())..range.end.min(donor.len());
            bytes.splice(range.clone(), donor[range].to_vec());
        }
        Step::End(object, at) => {
            let donor = &others[object % others.len()].bytes;
            bytes.truncate(at % len);
            bytes.extend_from_slice(&donor[bytes.len().min(donor.len())..]);
        }
    }
}

fn step() -> impl Strategy<Value = Step> {
    let any = any::<usize>;
    prop_oneof![
        any().prop_map(Step::Flip),
        any().prop_map(Step::Cut),
        (any(), any()).prop_map(|(at, count)| Step::CutOut(at, count)),
        any().prop_map(Step::Drop),
        (any(), any()).prop_map(|(one, two)| Step::Swap(one, two)),
        (any(), any()).prop_map(|(number, before)| Step::Repeat(number, before)),
        (any(), any()).prop_map(|(from, over)| Step::Over(from, over)),
        (any(), any(), any()).prop_map(|(object, from, over)| Step::SpliceFrame(object, from, over)),
        (any(), any(), any()).prop_map(|(object, at, count)| Step::Splice(object, at, count)),
        (any(), any()).prop_map(|(object, at)| Step::End(object, at)),
    ]
}

fn lengths() -> impl Strategy<Value = Lengths> {
    vec(vec(0..700usize, 0..4), 1..8)
}

/// One object, other objects to take bytes from, and tamperings, each from the whole object on.
fn check(keys: &Keys, whole: &Whole, others: &[Whole], tamperings: &[Vec<Step>]) -> Result<(), TestCaseError> {
    let content = whole.read(keys, &whole.bytes, FooterAt::Trailer).unwrap();
    for steps in tamperings {
        let mut bytes = whole.bytes.clone();
        for step in steps {
            apply(step, whole, others, &mut bytes);
        }
        for at in [FooterAt::Trailer, whole.row] {
            if let Ok(read) = whole.read(keys, &bytes, at) {
                prop_assert_eq!(&read, &content, "{:?}", steps);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn c05_random_tampering_gives_an_error_or_the_same_content(
        streams in vec((any::<usize>(), lengths()), 1..6),
        other_streams in vec((any::<usize>(), lengths()), 1..6),
        frames in lengths(),
        tamperings in vec(vec(step(), 1..4), 24),
    ) {
        let (keys, mut number) = (keys(), 0);
        let id = samples::object_id;
        let make_shared = |n, streams: &[(usize, Lengths)], number: &mut u64| shared(&keys, id(n), streams, number);
        let first = make_shared(1, &streams, &mut number);
        // The same shape with other events: whatever is taken from it fits.
        let mut donors = vec![make_shared(2, &streams, &mut number), make_shared(3, &other_streams, &mut number)];
        donors.extend([4, 5].map(|n| session(&keys, id(n), &frames, &mut number)));
        check(&keys, &first, &donors, &tamperings)?;
        let last = donors.pop().unwrap();
        donors.push(first);
        check(&keys, &last, &donors, &tamperings)?;
    }
}
