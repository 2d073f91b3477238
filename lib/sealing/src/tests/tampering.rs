//! C5, exhaustively over small files: every flip of one bit, every cut, every frame, footer and object in another's place gives
//! an error or the same content, and never a panic.
//!
//! Events are equally long, so that a frame fits exactly into another's place. Run with `--nocapture` to see what was counted.

mod alone;
mod session;
mod shared;

use std::fmt::Debug;
use std::ops::Range;

use schemas::object::ObjectKind;
use schemas::record::{Consent, Header};
use schemas::shared_object::QuarantineReason;
use schemas::{
    LinkId, ObjectId, ReceiptId, SessionId, SessionKey, StreamSeq, WorkspaceId, session_object, shared_object,
};
use uuid::Uuid;

use super::cast::{EPOCH, TOPIC, foreign, other, own, storage, twin};
use super::reader::{FooterAt, Keys, Read};
use super::samples::{self, Batch, Object, Stream};
use super::tally::{Tally, flips};
use crate::frames::{ChunkContext, ChunkKind};
use crate::keyring::KeyVersion;
use crate::transport::{LogPlace, RecordSealer};

const KINDS: [ChunkKind; 5] =
    [ChunkKind::Shared, ChunkKind::Session, ChunkKind::SessionFooter, ChunkKind::SharedFooter, ChunkKind::Journal];

/// How a reader finds the footer that has the object alone.
const TRAILER: FooterAt = FooterAt::Trailer;

fn event(number: u32) -> String {
    format!(r#"{{"type":3,"timestamp":1000,"data":{number:04}}}"#)
}

fn batch_header(key: SessionKey, seq: u32, events: &[String]) -> Header {
    let consent = Consent {
        link: LinkId(Uuid::from_u128(5)),
        consented_at_ms: 6,
        notice_version: "v".into(),
        receipt: ReceiptId(Uuid::from_u128(7)),
    };
    Header::Batch {
        key,
        consent,
        place: StreamSeq::new(1, seq).unwrap(),
        end: false,
        masking: None,
        facts: samples::facts(events),
    }
}

fn record(sealer: &RecordSealer, key: SessionKey, number: u32) -> Vec<u8> {
    let events = [event(number)];
    let place = LogPlace { topic: TOPIC, key: key.session.as_bytes() };
    let payload = samples::compressed(&samples::raw(&events));
    sealer.seal(&place, &batch_header(key, number, &events), &payload).unwrap()
}

/// A shared object: two streams of one session, sessions under one data key and not, a batch without events, two records that
/// open under their own seal, and one that never did.
fn make_shared(keys: &Keys, id: ObjectId, first: u32) -> Object<shared_object::Footer> {
    let mut numbers = first..;
    let mut stream = |key: SessionKey, stream: u32, count: u32| {
        let mut batch = |seq: u32| {
            let number = numbers.next().unwrap();
            Batch { seq, end: false, offset: u64::from(number), events: vec![event(number)], is_copy: false }
        };
        Stream { key, data_key: &keys.sessions[&key], stream, batches: (0..count).map(&mut batch).collect() }
    };
    let mut streams = [
        stream(own(), 1, 3),
        stream(own(), 2, 2),
        stream(twin(), 1, 3),
        stream(foreign(), 1, 2),
        stream(other(), 1, 2),
    ];
    streams[4].batches.push(Batch { seq: 2, end: true, offset: 80, events: Vec::new(), is_copy: false });
    let sealer = RecordSealer::new(keys.epochs.get(EPOCH).unwrap(), EPOCH).unwrap();
    let unreadable = [
        (90, QuarantineReason::Key, twin().session.as_bytes().to_vec(), record(&sealer, twin(), 8_000)),
        (91, QuarantineReason::Key, own().session.as_bytes().to_vec(), record(&sealer, own(), 8_001)),
        (92, QuarantineReason::Header, b"a stranger's".to_vec(), b"no record of ours".to_vec()),
    ];
    samples::shared(id, 7, &storage(keys), &streams, &unreadable)
}

/// A session object of four frames, in two streams.
fn make_session(keys: &Keys, id: ObjectId, key: SessionKey, first: u32) -> Object<session_object::Footer> {
    let events: Vec<[String; 1]> = (first..first + 4).map(|number| [event(number)]).collect();
    let frames: Vec<Vec<samples::Run>> = (0..4).map(|n| vec![(n % 2, n / 2, 0, events[n as usize].to_vec())]).collect();
    let info = |stream: usize| {
        let batches = [(0, false, events[stream].as_slice()), (1, true, events[stream + 2].as_slice())];
        samples::stream_info(stream as u32, &batches)
    };
    samples::session(id, key, &keys.sessions[&key], &frames, vec![info(0), info(1)])
}

/// Where a frame lies, whose it is, and in which chunk.
#[derive(Debug, Clone)]
struct Place {
    chunk: usize,
    owner: SessionKey,
    range: Range<usize>,
}

fn places_in_shared(footer: &shared_object::Footer) -> Vec<Place> {
    let mut places = Vec::new();
    for (number, chunk) in footer.chunks.iter().enumerate() {
        let mut at = chunk.at as usize;
        for batch in &chunk.batches {
            let range = at..at + batch.len as usize;
            at = range.end;
            places.push(Place { chunk: number, owner: chunk.key, range });
        }
    }
    places
}

fn places_in_session(footer: &session_object::Footer) -> Vec<Place> {
    let range = |frame: &session_object::Frame| frame.at as usize..frame.at as usize + frame.len as usize;
    footer.frames.iter().map(|frame| Place { chunk: 0, owner: footer.key, range: range(frame) }).collect()
}

/// What two frames' owners have to do with each other.
fn relation(one: &SessionKey, two: &SessionKey) -> usize {
    match (one == two, one.workspace == two.workspace, *one == other() || *two == other()) {
        (true, ..) => 0,
        (false, _, true) => 3,
        (false, true, false) => 1,
        (false, false, false) => 2,
    }
}

/// The same, for frames of one object.
fn within(one: &Place, two: &Place) -> usize {
    if one.chunk == two.chunk { 0 } else { relation(&one.owner, &two.owner) + 1 }
}

const SWAPS: [&str; 5] = [
    "frames swapped within a chunk",
    "frames swapped between chunks of a session",
    "frames swapped between sessions under one data key",
    "frames swapped between workspaces under one data key",
    "frames swapped between sessions under their own keys",
];
const COPIES: [&str; 5] = [
    "a frame over another of its chunk",
    "a frame over one of another chunk of its session",
    "a frame over another session's under one data key",
    "a frame over another workspace's under one data key",
    "a frame over another session's under its own key",
];
const FOREIGN_FRAMES: [&str; 4] = [
    "a frame of the same session's other object over each frame",
    "a frame of another session's object, one data key, over each frame",
    "a frame of another workspace's object, one data key, over each frame",
    "a frame of another session's object, its own key, over each frame",
];
const OWNERS: [&str; 4] = [
    "a chunk said to be its own session's",
    "a chunk said to be another session's under one data key",
    "a chunk said to be another workspace's under one data key",
    "a chunk said to be another session's under its own key",
];
fn replaced(bytes: &[u8], range: Range<usize>, by: &[u8]) -> Vec<u8> {
    [&bytes[..range.start], by, &bytes[range.end..]].concat()
}

fn swapped(bytes: &[u8], one: &Range<usize>, two: &Range<usize>) -> Vec<u8> {
    let (first, second) = if one.start < two.start { (one, two) } else { (two, one) };
    let (head, tail) = (&bytes[..first.start], &bytes[second.end..]);
    [head, &bytes[second.clone()], &bytes[first.end..second.start], &bytes[first.clone()], tail].concat()
}

/// Flips of each bit, named by what they hit: `parts` are named ranges, in order, that fill the object.
fn flip_all<T: PartialEq + Debug>(
    tally: &mut Tally<T>,
    bytes: &[u8],
    parts: &[(&'static str, Range<usize>)],
    read: impl Fn(&[u8]) -> Read<T>,
) {
    assert_eq!(parts.iter().map(|(_, range)| range.len()).sum::<usize>(), bytes.len(), "the parts fill the object");
    for (bit, changed) in flips(bytes) {
        let (kind, _) = parts.iter().find(|(_, range)| range.contains(&(bit / 8))).unwrap();
        tally.case(kind, format_args!("bit {bit}"), read(&changed));
    }
}

/// Every cut, and all that can be done with frames of one object.
fn move_frames<T: PartialEq + Debug>(
    tally: &mut Tally<T>,
    bytes: &[u8],
    places: &[Place],
    read: impl Fn(&[u8]) -> Read<T>,
) {
    for len in 0..bytes.len() {
        tally.case("the object cut short", format_args!("{len} bytes"), read(&bytes[..len]));
    }
    let (all, end) = (|| places.iter().enumerate(), places.last().map_or(0, |place| place.range.end));
    for (number, one) in all() {
        let frame = &bytes[one.range.clone()];
        tally.case("a frame dropped", number, read(&replaced(bytes, one.range.clone(), b"")));
        for at in places.iter().map(|place| place.range.start).chain([end]) {
            let changed = replaced(bytes, at..at, frame);
            // The last frame before itself is the last frame behind itself.
            let is_behind = changed == replaced(bytes, end..end, frame);
            let kind = if is_behind { BEHIND } else { "a frame repeated before each frame" };
            tally.case(kind, format_args!("{number} at {at}"), read(&changed));
        }
        for (second, two) in all().filter(|(second, _)| *second != number) {
            let what = format_args!("{number} and {second}");
            let copied = replaced(bytes, two.range.clone(), frame);
            tally.case(COPIES[within(one, two)], what, read(&copied));
            if number < second {
                tally.case(SWAPS[within(one, two)], what, read(&swapped(bytes, &one.range, &two.range)));
            }
        }
    }
}

/// Frames of another object over each frame of this one.
fn splice_frames<T: PartialEq + Debug>(
    tally: &mut Tally<T>,
    kind: impl Fn(&Place, &Place) -> &'static str,
    (bytes, places): (&[u8], &[Place]),
    (donor, donor_places): (&[u8], &[Place]),
    read: impl Fn(&[u8]) -> Read<T>,
) {
    for (number, one) in places.iter().enumerate() {
        for (second, two) in donor_places.iter().enumerate() {
            let changed = replaced(bytes, one.range.clone(), &donor[two.range.clone()]);
            tally.case(kind(one, two), format_args!("{second} over {number}"), read(&changed));
        }
    }
}

fn nobody(kind: ChunkKind) -> ChunkContext {
    let session = SessionKey { workspace: WorkspaceId(Uuid::nil()), session: SessionId(Uuid::nil()) };
    ChunkContext { session, kind }
}

fn versioned(version: KeyVersion, sealed: Vec<u8>) -> Vec<u8> {
    [version.0.to_le_bytes().to_vec(), sealed].concat()
}

fn with_region<F>(kind: ObjectKind, object: &Object<F>, region: &[u8]) -> Vec<u8> {
    samples::finish(kind, object.bytes[..object.footer_at].to_vec(), region, ()).bytes
}

const BEHIND: &str = "a frame repeated behind the last frame";
