//! Objects are built in memory, damaged in every way that a disk, a network or a bug of ours could, and looked into.

use std::num::NonZeroUsize;

use engine::compaction::{Cut, FrameCutter};
use engine::merge::{Merger, Plan, Range, SharedSource, Step};
use schemas::codec;
use schemas::record::{Consent, Header};
use schemas::session_object;
use schemas::shared_object::{BatchEntry, Chunk, Footer, QuarantineReason, Quarantined};
use schemas::stream_note::{self, StreamNote};
use schemas::{BatchFacts, DeletionId, LinkId, ObjectId, ReceiptId, StreamSeq, WorkspaceId};
use sealing::frames::{ChunkContext, ChunkKind, seal_chunk};
use sealing::objects::{StorageKey, seal_journal, seal_session_footer, seal_shared_footer};
use sealing::transport::{EpochId, EpochKeys, LogPlace, RecordSealer};
use uuid::Uuid;

use super::*;
use crate::objects::finish;

const VERSION: KeyVersion = KeyVersion(7);
const GARBAGE: &[u8] = b"a record that nobody can read";

fn session(n: u128) -> SessionKey {
    SessionKey { workspace: WorkspaceId(Uuid::from_u128(1)), session: SessionId(Uuid::from_u128(n)) }
}

fn shared_key() -> ObjectKey {
    ObjectKey::Shared { partition: 3, id: ObjectId(Uuid::from_u128(8)) }
}

fn session_key() -> ObjectKey {
    ObjectKey::Session { key: session(1), id: ObjectId(Uuid::from_u128(9)) }
}

/// Keys from a map instead of a key store.
struct Map(BTreeMap<SessionKey, Held>);

impl Map {
    fn new() -> Self {
        Self([(session(1), Held::Known(Key::new([1; 32]))), (session(2), Held::Known(Key::new([2; 32])))].into())
    }

    fn key(n: u128) -> Key {
        Key::new([n as u8; 32])
    }
}

impl Keys for Map {
    async fn key_of(&self, needed: Needed) -> Result<Held, KeyError> {
        match needed {
            Needed::Storage(VERSION) => Ok(Held::Known(storage().key)),
            Needed::Storage(other) => unavailable(KeyringError::Missing(other).into()),
            Needed::Session(session) => Ok(self.0[&session].clone()),
        }
    }

    async fn keys_of(&self, sessions: &[SessionKey]) -> Result<BTreeMap<SessionKey, Held>, KeyError> {
        let held = |key| self.0.get(key).map(|held| (*key, held.clone()));
        Ok(sessions.iter().filter_map(held).collect())
    }
}

fn storage() -> StorageKey {
    StorageKey { version: VERSION, key: Key::new([9; 32]) }
}

/// Types and times of events.
type Events = &'static [(u8, i64)];

/// Events of these types and times, as they are stored.
fn payload(events: &[(u8, i64)]) -> (Vec<u8>, BatchFacts) {
    let mut payload = Vec::new();
    for (kind, at) in events {
        payload.extend_from_slice(format!("{{\"type\":{kind},\"timestamp\":{at},\"data\":{{}}}}\n").as_bytes());
    }
    let facts = BatchFacts {
        events: events.len() as u32,
        raw_bytes: payload.len() as u32,
        ts_min: events.iter().map(|(_, at)| *at).min().unwrap_or(0),
        ts_max: events.iter().map(|(_, at)| *at).max().unwrap_or(0),
        full_snapshot: events.iter().any(|(kind, _)| *kind == 2),
        content_hash: BatchFacts::hash(&payload),
        ..BatchFacts::default()
    };
    (payload, facts)
}

fn compressed(payload: &[u8]) -> Vec<u8> {
    if payload.is_empty() { Vec::new() } else { codec::compress(payload, 1) }
}

fn note(stream: u32, next: u64) -> StreamNote {
    StreamNote { stream, next, state: b"state".to_vec() }
}

/// Two sessions, three streams, a note behind each of the first session's, one record in quarantine. The second batch of the first chunk is empty, as that of a page
/// which was left may be.
fn shared_parts() -> (Vec<u8>, Footer) {
    let mut body = ObjectKind::Shared.preamble().to_vec();
    let mut footer = Footer {
        object: shared_key().id(),
        partition: 3,
        offset_first: 10,
        offset_next: 20,
        chunks: Vec::new(),
        quarantined: Vec::new(),
    };
    let streams: [(u128, u32, &[Events]); 3] = [
        (1, 5, &[&[(4, 100), (2, 101), (3, 102)], &[], &[(3, 110), (3, 120)]]),
        (1, 6, &[&[(3, 103), (3, 115)]]),
        (2, 5, &[&[(3, 50)], &[(3, 60)]]),
    ];
    let mut offset = 10;
    for (n, stream, batches) in streams {
        let payloads: Vec<_> = batches.iter().map(|events| payload(events)).collect();
        let mut frames: Vec<Vec<u8>> = payloads.iter().map(|(payload, _)| compressed(payload)).collect();
        if n == 1 {
            stream_note::append(frames.last_mut().unwrap(), &[note(stream, batches.len() as u64)]);
        }
        let at = body.len() as u64;
        let context = ChunkContext { session: session(n), kind: ChunkKind::Shared };
        let (id, lens) = seal_chunk(&Map::key(n), context, frames.iter().map(Vec::as_slice), &mut body).unwrap();
        let mut batches = Vec::new();
        for (seq, (len, (_, facts))) in lens.iter().zip(&payloads).enumerate() {
            batches.push(BatchEntry { seq: seq as u32, end: false, offset, len: *len as u32, facts: facts.clone() });
            offset += 1;
        }
        footer.chunks.push(Chunk { key: session(n), stream, id: *id.as_bytes(), at, batches });
    }
    let (at, len) = (body.len() as u64, GARBAGE.len() as u32);
    footer.quarantined.push(Quarantined { offset, record_key: vec![9; 16], at, len, reason: QuarantineReason::Seal });
    body.extend_from_slice(GARBAGE);
    (body, footer)
}

fn end_shared(body: Vec<u8>, footer: &Footer) -> Bytes {
    let region = seal_shared_footer(&storage(), footer).unwrap();
    finish(footer.object, ObjectKind::Shared, body, &region, Some(VERSION), footer.quarantined.len()).0
}

fn shared_object() -> Bytes {
    let (body, footer) = shared_parts();
    end_shared(body, &footer)
}

/// The first session of [`shared_parts`], merged as the compactor does it, in frames of few events.
fn session_parts() -> (Vec<u8>, session_object::Footer) {
    let (shared_body, shared) = shared_parts();
    let chunks = shared.chunks.iter().enumerate().filter(|(_, chunk)| chunk.key == session(1));
    let source = |(number, chunk)| SharedSource { object: 0, partition: 3, number, chunk };
    let plan = Plan::build(&[], &chunks.map(source).collect::<Vec<_>>());
    let mut merger = Merger::new(std::sync::Arc::new(plan.clone()), Range::ALL, usize::MAX);
    let mut cutter = FrameCutter::new(90);
    let mut cuts: Vec<Cut> = Vec::new();
    loop {
        match merger.step().unwrap() {
            Step::Need { stream, batch } => {
                let engine::merge::Location::Shared { chunk, frame, at, len, .. } =
                    plan.streams[stream].batches[batch].location
                else {
                    unreachable!("only shared sources were given")
                };
                let chunk = &shared.chunks[chunk];
                let sealed = &shared_body[at as usize..at as usize + len as usize];
                let opener = objects::chunk_opener(&Map::key(1), chunk);
                let opened = opener.open(objects::frame_at(frame, chunk.batches.len()), sealed).unwrap();
                merger.supply(stream, codec::decompress(&opened, 1 << 20).unwrap()).unwrap();
            }
            Step::Event(event) => cuts.extend(cutter.push(&plan, &event, merger.bytes(&event))),
            Step::Done => break,
        }
    }
    cuts.extend(cutter.finish());
    assert!(cuts.len() >= 3, "the sample has several frames");
    let (body, id, lens) = seal_frames(&cuts.iter().map(|cut| cut.raw.clone()).collect::<Vec<_>>());
    let mut at = ObjectKind::Session.preamble().len() as u64;
    let mut frames = Vec::new();
    for (cut, len) in cuts.iter().zip(lens) {
        frames.push(cut.frame(at, len as u32));
        at += len as u64;
    }
    let footer = session_object::Footer {
        object: session_key().id(),
        key: session(1),
        chunk: id,
        frames,
        streams: plan.stream_infos(),
        duplicates: 0,
        conflicts: 0,
    };
    (body, footer)
}

fn seal_frames(raws: &[Vec<u8>]) -> (Vec<u8>, [u8; 16], Vec<usize>) {
    let mut body = ObjectKind::Session.preamble().to_vec();
    let mut frames: Vec<Vec<u8>> = raws.iter().map(|raw| codec::compress(raw, 3)).collect();
    stream_note::append(frames.last_mut().unwrap(), &[note(5, 3)]);
    let context = ChunkContext { session: session(1), kind: ChunkKind::Session };
    let (id, lens) = seal_chunk(&Map::key(1), context, frames.iter().map(Vec::as_slice), &mut body).unwrap();
    (body, *id.as_bytes(), lens)
}

fn end_session(body: Vec<u8>, footer: &session_object::Footer) -> Bytes {
    let region = seal_session_footer(&Map::key(1), footer).unwrap();
    finish(footer.object, ObjectKind::Session, body, &region, None, 0).0
}

fn session_object() -> Bytes {
    let (body, footer) = session_parts();
    end_session(body, &footer)
}

fn journal_object() -> (ObjectKey, Bytes) {
    let id = ObjectId(Uuid::from_u128(4));
    let entry = Entry {
        object: id,
        deletion: DeletionId(Uuid::from_u128(5)),
        workspace: session(1).workspace,
        cause: schemas::deletion::Cause::Withdrawn,
        requested_at_ms: 6,
        sessions: vec![session(1).session],
        marks: None,
    };
    (ObjectKey::Journal { id }, seal_journal(&storage(), &entry).unwrap().into())
}

fn pool() -> Pool {
    Pool::new("inspect-test", NonZeroUsize::new(1)).unwrap()
}

async fn verified(keys: &Map, key: ObjectKey, body: impl Into<Bytes>) -> Verified {
    verify_with(keys, &pool(), &key, body.into()).await.unwrap()
}

/// The faults of an object, as text.
async fn faults(key: ObjectKey, body: impl Into<Bytes>) -> Vec<String> {
    verified(&Map::new(), key, body).await.faults.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn whole_objects_have_no_fault_and_their_sums_are_told() {
    let raw_bytes = |batches: &[Events]| batches.iter().map(|events| payload(events).0.len() as u64).sum::<u64>();
    let of_first = raw_bytes(&[&[(4, 100), (2, 101), (3, 102)], &[(3, 110), (3, 120)], &[(3, 103), (3, 115)]]);
    let of_second = raw_bytes(&[&[(3, 50)], &[(3, 60)]]);
    let mut found = verified(&Map::new(), shared_key(), shared_object()).await;
    let notes: Vec<_> = found.notes.drain(..).map(|note| (note.stream, note.next, note.state_bytes)).collect();
    let expect = Verified {
        frames: 6,
        batches: 6,
        events: 9,
        raw_bytes: of_first + of_second,
        quarantined: 1,
        ..Verified::default()
    };
    assert_eq!((found, notes), (expect, vec![(5, 3, 5), (6, 1, 5)]));

    let footer = session_parts().1;
    let (frames, last) = (footer.frames.len() as u64, footer.frames.last().unwrap().at);
    let mut found = verified(&Map::new(), session_key(), session_object()).await;
    let notes: Vec<String> = found.notes.drain(..).map(|note| note.to_string()).collect();
    let expect = Verified { frames, batches: 4, events: 7, raw_bytes: of_first, ..Verified::default() };
    assert_eq!(found, expect);
    let place = format!("frame {} at byte {last}", frames - 1);
    assert_eq!(notes, [format!("{place}: of stream 5, next 3, 5 bytes of state")]);

    let (key, body) = journal_object();
    assert_eq!(verified(&Map::new(), key, body).await, Verified { frames: 1, ..Verified::default() });
}

#[tokio::test]
async fn objects_without_anything_in_them_are_whole() {
    let (_, mut footer) = shared_parts();
    (footer.chunks, footer.quarantined) = (Vec::new(), Vec::new());
    let body = end_shared(ObjectKind::Shared.preamble().to_vec(), &footer);
    assert_eq!(verified(&Map::new(), shared_key(), body).await, Verified::default());
}

#[tokio::test]
async fn r02_destroyed_keys_are_counted_and_are_no_fault_and_missing_ones_are() {
    let mut keys = Map::new();
    keys.0.insert(session(1), Held::Shredded);
    let found = verified(&keys, shared_key(), shared_object()).await;
    assert_eq!((found.shredded, found.frames, found.faults), (1, 2, vec![]));
    let found = verified(&keys, session_key(), session_object()).await;
    assert_eq!(found, Verified { shredded: 1, ..Verified::default() });

    keys.0.insert(session(1), Held::Unavailable("no key".into()));
    let found = verified(&keys, shared_key(), shared_object()).await;
    let places: Vec<Place> = found.faults.iter().map(|fault| fault.place).collect();
    let chunk = |chunk, stream| Place::Chunk { chunk, session: session(1).session, stream };
    assert_eq!((found.shredded, found.frames, places), (0, 2, vec![chunk(0, 5), chunk(1, 6)]));
    let found = verified(&keys, session_key(), session_object()).await;
    assert_eq!(found.faults, [Fault { place: Place::Footer, problem: Problem::Key("no key".into()) }]);

    keys.0.remove(&session(2));
    assert_eq!(verified(&keys, shared_key(), shared_object()).await.faults.len(), 3);
}

/// Records in quarantine are under a seal of the log's: nothing here can tell whether they are what they were.
#[tokio::test]
async fn c05_every_flipped_bit_is_found_but_in_quarantine() {
    let footer = shared_parts().1;
    let quarantined = &footer.quarantined[0];
    let unknown = quarantined.at..quarantined.at + u64::from(quarantined.len);
    let (journal_key, journal) = journal_object();
    let (keys, pool) = (Map::new(), pool());
    for (key, whole) in [(shared_key(), shared_object()), (session_key(), session_object()), (journal_key, journal)] {
        for at in 0..whole.len() {
            for bit in [0, 7] {
                let mut changed = whole.to_vec();
                changed[at] ^= 1 << bit;
                let found = verify_with(&keys, &pool, &key, changed.into()).await.unwrap();
                let is_unknown = key == shared_key() && unknown.contains(&(at as u64));
                assert_eq!(found.faults.is_empty(), is_unknown, "{key}: byte {at}, bit {bit}");
            }
        }
    }
}

#[tokio::test]
async fn c05_every_cut_body_and_every_one_with_something_behind_it_is_found() {
    let (journal_key, journal) = journal_object();
    let (keys, pool) = (Map::new(), pool());
    for (key, whole) in [(shared_key(), shared_object()), (session_key(), session_object()), (journal_key, journal)] {
        for len in 0..whole.len() {
            let found = verify_with(&keys, &pool, &key, whole.slice(..len)).await.unwrap();
            assert!(!found.faults.is_empty(), "{key}: {len} bytes");
        }
        let longer = [whole.as_ref(), b"\0"].concat();
        assert!(!verify_with(&keys, &pool, &key, longer.into()).await.unwrap().faults.is_empty());
        // A byte more or less within the body: everything behind it has moved.
        let mut grown = whole.to_vec();
        grown.insert(20, 0);
        assert!(!verify_with(&keys, &pool, &key, grown.into()).await.unwrap().faults.is_empty());
        let mut shrunk = whole.to_vec();
        shrunk.remove(20);
        assert!(!verify_with(&keys, &pool, &key, shrunk.into()).await.unwrap().faults.is_empty());
    }
}

#[tokio::test]
async fn c05_swapped_frames_are_found_at_their_places() {
    // The second session's batches are equally long.
    let (mut body, footer) = shared_parts();
    let chunk = &footer.chunks[2];
    let (at, len) = (chunk.at as usize, chunk.batches[0].len as usize);
    assert_eq!(chunk.batches[1].len as usize, len);
    let (one, other) = body[at..at + len * 2].split_at_mut(len);
    one.swap_with_slice(other);
    let found = verified(&Map::new(), shared_key(), end_shared(body, &footer)).await;
    let place = |frame: usize| Place::SharedFrame {
        chunk: 2,
        frame,
        at: (at + frame * len) as u64,
        session: session(2).session,
        stream: 5,
        seq: frame as u32,
    };
    assert_eq!(found.faults.iter().map(|fault| fault.place).collect::<Vec<_>>(), [place(0), place(1)]);
    assert_eq!((found.frames, found.batches), (4, 4), "what lies elsewhere is looked through all the same");

    // Places changed along with the bytes: the seal still tells.
    let (body, mut footer) = session_parts();
    let (first, second) = (footer.frames[0].clone(), footer.frames[1].clone());
    (footer.frames[0].at, footer.frames[0].len) = (second.at, second.len);
    (footer.frames[1].at, footer.frames[1].len) = (first.at, first.len);
    let found = verified(&Map::new(), session_key(), end_session(body, &footer)).await;
    let places: Vec<Place> = found.faults.iter().map(|fault| fault.place).collect();
    assert_eq!(places, [Place::Frame { frame: 0, at: second.at }, Place::Frame { frame: 1, at: first.at }]);
}

#[tokio::test]
async fn an_object_in_the_place_of_another_is_found() {
    let other = ObjectId(Uuid::from_u128(77));
    let strangers = [
        (ObjectKey::Shared { partition: 3, id: other }, shared_object()),
        (ObjectKey::Shared { partition: 4, id: shared_key().id() }, shared_object()),
        (ObjectKey::Session { key: session(1), id: other }, session_object()),
        (ObjectKey::Session { key: session(2), id: session_key().id() }, session_object()),
        (ObjectKey::Journal { id: other }, journal_object().1),
        (session_key(), shared_object()),
        (shared_key(), session_object()),
        (shared_key(), journal_object().1),
        (journal_object().0, session_object()),
    ];
    for (key, body) in strangers {
        assert!(!faults(key, body).await.is_empty(), "{key}");
    }
    let found = faults(session_key(), shared_object()).await;
    assert_eq!(found[0], "preamble: object is of another kind than its key says");
    // A quarantine object differs from a shared one by its key alone.
    let quarantine = ObjectKey::Quarantine { partition: 3, id: shared_key().id() };
    assert!(faults(quarantine, shared_object()).await.is_empty());
}

/// Faults of ours, not of the bucket: the footer is sealed, and wrong.
#[tokio::test]
async fn a_shared_footer_that_says_what_is_not_so_is_found() {
    async fn check(change: impl FnOnce(&mut Vec<u8>, &mut Footer), expect: &[&str]) {
        let (mut body, mut footer) = shared_parts();
        change(&mut body, &mut footer);
        assert_eq!(faults(shared_key(), end_shared(body, &footer)).await, expect);
    }
    let frame = "chunk 2, frame 1 at byte ";
    let (_, footer) = shared_parts();
    let at = footer.chunks[2].at + u64::from(footer.chunks[2].batches[0].len);
    let frame = format!("{frame}{at} (session {}, stream 5, seq 1)", session(2).session);
    let len = footer.chunks[2].batches[1].facts.raw_bytes;
    let facts = |footer: &mut Footer, change: fn(&mut BatchFacts)| change(&mut footer.chunks[2].batches[1].facts);

    check(
        |_, f| facts(f, |facts| facts.content_hash ^= 1),
        &[&format!("{frame}: content is not what its facts were made of")],
    )
    .await;
    check(|_, f| facts(f, |facts| facts.events += 1), &[&format!("{frame}: 1 events, 2 expected")]).await;
    check(
        |_, f| facts(f, |facts| facts.raw_bytes += 1),
        &[&format!("{frame}: {len} bytes after decompression, {} expected", len + 1)],
    )
    .await;
    check(|_, f| facts(f, |facts| facts.raw_bytes -= 1), &[&format!("{frame}: field raw_len is out of its range")])
        .await;

    let end = footer.quarantined[0].at + u64::from(footer.quarantined[0].len);
    check(
        |body, _| body.extend_from_slice(b"xyz"),
        &[&format!("bytes {end}..{}: the footer names nothing here", end + 3)],
    )
    .await;
    let garbage = footer.quarantined[0].at;
    check(|_, f| f.quarantined.clear(), &[&format!("bytes {garbage}..{end}: the footer names nothing here")]).await;
    check(
        |_, f| f.quarantined[0].at -= 2,
        &[
            &format!("bytes {}..{garbage}: the footer names these bytes twice", garbage - 2),
            &format!("bytes {}..{end}: the footer names nothing here", end - 2),
        ],
    )
    .await;
    check(|_, f| f.quarantined[0].offset = 99, &["quarantined record 0: field offset is out of its range"]).await;
    let place = format!("chunk 2 (session {}, stream 5)", session(2).session);
    check(|_, f| f.chunks[2].batches[0].offset = 9, &[&format!("{place}: field offset is out of its range")]).await;
    check(|_, f| f.partition = 2, &["footer: field partition is out of its range"]).await;
}

#[tokio::test]
async fn a_session_footer_that_says_what_is_not_so_is_found() {
    async fn check(change: impl FnOnce(&mut session_object::Footer), expect: &[&str]) {
        let (body, mut footer) = session_parts();
        change(&mut footer);
        assert_eq!(faults(session_key(), end_session(body, &footer)).await, expect);
    }
    fn facts(footer: &mut session_object::Footer) -> &mut BatchFacts {
        &mut footer.streams[0].batches[0].facts
    }
    let (body, footer) = session_parts();
    let at = footer.frames[1].at;
    let (events, bytes) = (footer.streams[0].batches[0].facts.events, footer.streams[0].batches[0].facts.raw_bytes);

    check(|f| facts(f).content_hash ^= 1, &["batch 0 of stream 5: content is not what its facts were made of"]).await;
    check(|f| facts(f).events += 1, &[&format!("batch 0 of stream 5: {events} events, {} expected", events + 1)]).await;
    for change in [-1, 1] {
        let expect =
            format!("batch 0 of stream 5: {bytes} bytes after decompression, {} expected", i64::from(bytes) + change);
        check(|f| facts(f).raw_bytes = (i64::from(bytes) + change) as u32, &[&expect]).await;
    }
    check(|f| f.frames[1].ts_max += 1, &[&format!("frame 1 at byte {at}: time span is not that of the events")]).await;
    let marked =
        format!("frame 1 at byte {at}: full snapshot is marked where none begins, or not marked where one does");
    check(|f| f.frames[1].full_snapshot ^= true, &[&marked]).await;
    let unlisted = |frame: usize| {
        let at = footer.frames[frame].at;
        format!("frame {frame} at byte {at}: a piece is of batch 0 of stream 6, which the footer does not list")
    };
    let expect: Vec<String> = (0..footer.frames.len())
        .filter(|frame| footer.frames[*frame].segments.iter().any(|segment| segment.stream == 6))
        .map(unlisted)
        .collect();
    check(|f| drop(f.streams.pop()), &expect.iter().map(String::as_str).collect::<Vec<_>>()).await;
    check(|f| f.frames[0].segments[0].position = 4, &["batch 0 of stream 5: a piece begins at event 4, 0 expected"])
        .await;
    let (place, events) = (footer.frames[0].at, footer.frames[0].segments[0].events);
    let expect = format!("frame 0 at byte {place}: {events} events, {} expected", events + 1);
    check(|f| f.frames[0].segments[0].events += 1, &[&expect]).await;
    let twice = |f: &mut session_object::Footer| {
        let copy = f.streams[0].batches[0].clone();
        f.streams[0].batches.push(copy);
    };
    check(twice, &["batch 0 of stream 5: field seq is out of its range"]).await;

    // The last frame is dropped, as if the chunk had ended before: the seal knows better, and the place is told.
    let (gone, last) = (footer.frames.last().unwrap().at, footer.frames.len() - 2);
    let end = body.len();
    let mut short = footer.clone();
    short.frames.pop();
    let found = faults(session_key(), end_session(body, &short)).await;
    assert_eq!(found[0], format!("bytes {gone}..{end}: the footer names nothing here"));
    let opened = format!("frame {last} at byte {}: sealed bytes do not open", short.frames[last].at);
    assert!(found[1].starts_with(&opened), "{found:?}");
}

/// What a shared object's only frame holds, and what is found wrong with it.
async fn faults_of_frame(facts: &BatchFacts, frame: &[u8]) -> Vec<String> {
    let (_, mut footer) = shared_parts();
    let mut body = ObjectKind::Shared.preamble().to_vec();
    let context = ChunkContext { session: session(1), kind: ChunkKind::Shared };
    let (id, lens) = seal_chunk(&Map::key(1), context, [frame], &mut body).unwrap();
    let entry = BatchEntry { seq: 0, end: false, offset: 10, len: lens[0] as u32, facts: facts.clone() };
    footer.chunks = vec![Chunk { key: session(1), stream: 5, id: *id.as_bytes(), at: 5, batches: vec![entry] }];
    footer.quarantined.clear();
    let found = faults(shared_key(), end_shared(body, &footer)).await;
    let place = format!("chunk 0, frame 0 at byte 5 (session {}, stream 5, seq 0): ", session(1).session);
    found.iter().map(|fault| fault.strip_prefix(&place).unwrap_or(fault).to_owned()).collect()
}

#[tokio::test]
async fn notes_stand_behind_events_or_alone_and_nothing_else_does() {
    let (raw, facts) = payload(&[(3, 7)]);
    let (_, nothing) = payload(&[]);
    let behind = |frame: &[u8], notes: &[StreamNote]| {
        let mut whole = frame.to_vec();
        stream_note::append(&mut whole, notes);
        whole
    };
    let events = compressed(&raw);
    let whole = Vec::<String>::new();
    assert_eq!(faults_of_frame(&facts, &behind(&events, &[note(5, 1)])).await, whole);
    assert_eq!(faults_of_frame(&nothing, &behind(b"", &[note(5, 1)])).await, whole);
    let stray = faults_of_frame(&facts, &behind(&events, &[note(6, 1)])).await;
    assert_eq!(stray, ["a note is of stream 6, which has no batch here"]);
    for other in [&b"some bytes"[..], &events[..events.len() - 1], &behind(b"", &[note(5, 1)])[..12]] {
        assert_eq!(faults_of_frame(&facts, &[events.as_slice(), other].concat()).await.len(), 1);
        assert_eq!(faults_of_frame(&nothing, &[&behind(b"", &[note(5, 1)]), other].concat()).await.len(), 1);
    }
    // A skippable frame with our magic number that is no note.
    let no_note = [events.as_slice(), b"\x5c\x2a\x4d\x18\x02\0\0\0\x01\x05"].concat();
    assert_eq!(faults_of_frame(&facts, &no_note).await, ["bytes end early"]);
}

#[tokio::test]
async fn what_masking_changed_is_held_against_the_hash_of_what_is_stored() {
    let (raw, facts) = payload(&[(3, 7)]);
    let sent = BatchFacts { content_hash: 4711, masked: 1, ..facts.clone() };
    let masked = BatchFacts { stored_hash: Some(facts.content_hash), ..sent.clone() };
    let content = ["content is not what its facts were made of"];
    assert_eq!(faults_of_frame(&masked, &compressed(&raw)).await, [""; 0]);
    assert_eq!(faults_of_frame(&sent, &compressed(&raw)).await, content);
    let other = BatchFacts { stored_hash: Some(1), ..facts };
    assert_eq!(faults_of_frame(&other, &compressed(&raw)).await, content);

    // Merged as well.
    let (body, mut footer) = session_parts();
    let batch = &mut footer.streams[0].batches[0].facts;
    (batch.stored_hash, batch.content_hash) = (Some(batch.content_hash), 4711);
    assert_eq!(faults(session_key(), end_session(body.clone(), &footer)).await, [""; 0]);
    footer.streams[0].batches[0].facts.stored_hash = Some(1);
    let found = faults(session_key(), end_session(body, &footer)).await;
    assert_eq!(found, [format!("batch 0 of stream 5: {}", content[0])]);
}

/// A frame of another session object of the same session, or one that holds other bytes than it says.
#[tokio::test]
async fn a_frame_of_another_chunk_and_one_with_other_bytes_are_found() {
    let (mut body, footer) = session_parts();
    let (other_body, _) = session_parts();
    let frame = &footer.frames[1];
    let range = frame.at as usize..frame.at as usize + frame.len as usize;
    body[range.clone()].copy_from_slice(&other_body[range]);
    let found = verified(&Map::new(), session_key(), end_session(body, &footer)).await;
    assert_eq!(found.faults.len(), 1, "batches that lie in the frame add no faults of their own: {:?}", found.faults);
    assert_eq!(found.faults[0].place, Place::Frame { frame: 1, at: frame.at });

    // Well sealed, and shorter than the footer says.
    let mut shorter = footer.clone();
    let (body, id, lens) = seal_frames(&[b"{}\n".to_vec()]);
    shorter.chunk = id;
    shorter.frames.truncate(1);
    (shorter.frames[0].at, shorter.frames[0].len) = (5, lens[0] as u32);
    let expect = format!("frame 0 at byte 5: 3 bytes after decompression, {} expected", footer.frames[0].raw_len);
    assert_eq!(faults(session_key(), end_session(body, &shorter)).await[0], expect);

    // Well sealed, and other content: an event that is none.
    let mut footer = footer;
    let raw = b"nothing\n".to_vec();
    let (body, id, lens) = seal_frames(std::slice::from_ref(&raw));
    let segment = session_object::Segment { bytes: 8, events: 1, ..footer.frames[0].segments[0] };
    footer.chunk = id;
    footer.frames.truncate(1);
    (footer.frames[0].at, footer.frames[0].len, footer.frames[0].raw_len) = (5, lens[0] as u32, 8);
    footer.frames[0].segments = vec![segment];
    let found = faults(session_key(), end_session(body, &footer)).await;
    assert_eq!(found[0], "frame 0 at byte 5: an event cannot be read");
}

#[test]
fn clear_bytes_tell_what_an_object_is_without_any_key() {
    let shared = outline(shared_key(), &shared_object());
    assert_eq!((shared.kind, shared.version, shared.key_version), (Some(ObjectKind::Shared), Some(1), Some(VERSION)));
    assert_eq!((shared.footer.unwrap().at, shared.faults.len()), (shared_parts().0.len() as u64, 0));
    assert_eq!(shared.needs(), Some(Needed::Storage(VERSION)));

    let of_session = outline(session_key(), &session_object());
    assert_eq!((of_session.kind, of_session.key_version), (Some(ObjectKind::Session), None));
    assert_eq!(of_session.needs(), Some(Needed::Session(session(1))));

    let (key, journal) = journal_object();
    let journal = outline(key, &journal);
    assert_eq!((journal.footer, journal.needs()), (None, Some(Needed::Storage(VERSION))));

    let mut newer = shared_object().to_vec();
    newer[4] = 2;
    let newer = outline(shared_key(), &newer);
    assert_eq!(
        (newer.kind, newer.version, newer.needs()),
        (None, Some(2), None),
        "a newer release's is not guessed at"
    );
    assert_eq!(newer.faults[0].to_string(), "preamble: format version 2 is unknown, upgrade this reader");

    // Without its magic, and still found by the trailer.
    let mut damaged = shared_object().to_vec();
    damaged[0] = 0;
    let damaged = outline(shared_key(), &damaged);
    assert_eq!((damaged.footer, damaged.needs()), (shared.footer, shared.needs()));
    assert_eq!(outline(shared_key(), b"").faults.len(), 2);
}

fn events_of(key: ObjectKey, body: &Bytes, opens: &Key, of: u128) -> (u64, String) {
    let content = open(&outline(key, body), body, opens).unwrap();
    let mut out = Vec::new();
    let events = write_events(key, body, &content, &session(of), &Map::key(of), &mut out).unwrap();
    (events, String::from_utf8(out).unwrap())
}

#[test]
fn c01_a_session_reads_in_the_same_order_from_shared_and_session_objects() {
    let event = |(kind, at)| format!("{{\"type\":{kind},\"timestamp\":{at},\"data\":{{}}}}\n");
    let all = [(4, 100), (2, 101), (3, 102), (3, 103), (3, 110), (3, 115), (3, 120)].map(event).concat();
    assert_eq!(events_of(shared_key(), &shared_object(), &storage().key, 1), (7, all.clone()));
    assert_eq!(events_of(session_key(), &session_object(), &Map::key(1), 1), (7, all));
    let other = [(3, 50), (3, 60)].map(event).concat();
    assert_eq!(events_of(shared_key(), &shared_object(), &storage().key, 2), (2, other));
    assert_eq!(events_of(session_key(), &session_object(), &Map::key(1), 2), (0, String::new()));
}

#[test]
fn events_of_a_damaged_object_and_a_reader_that_hung_up_are_errors() {
    struct HungUp;
    impl std::io::Write for HungUp {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let body = session_object();
    let content = open(&outline(session_key(), &body), &body, &Map::key(1)).unwrap();
    let written = write_events(session_key(), &body, &content, &session(1), &Map::key(1), &mut HungUp);
    assert!(matches!(written, Err(EventsError::Write(error)) if error.kind() == std::io::ErrorKind::BrokenPipe));
    let mut damaged = body.to_vec();
    damaged[10] ^= 1;
    let written = write_events(session_key(), &damaged.into(), &content, &session(1), &Map::key(1), &mut Vec::new());
    assert!(matches!(written, Err(EventsError::Corrupt(_))));
}

#[test]
fn a_record_is_compared_with_its_header_and_its_key() {
    let consent = Consent {
        link: LinkId(Uuid::from_u128(3)),
        consented_at_ms: 0,
        notice_version: "v".into(),
        receipt: ReceiptId(Uuid::from_u128(4)),
    };
    let (raw, facts) = payload(&[(3, 7), (3, 8)]);
    let place = StreamSeq::new(5, 0).unwrap();
    let header =
        |facts| Header::Batch { key: session(1), consent: consent.clone(), place, end: false, masking: None, facts };
    let (key, record_key) = (Key::new([5; 32]), session(1).session);
    let sealed = |header: &Header, payload: &[u8]| {
        let at = LogPlace { topic: "t", key: record_key.as_bytes() };
        let value = RecordSealer::new(&key, EpochId(1)).unwrap().seal(&at, header, payload).unwrap();
        EpochKeys::new([(EpochId(1), key.clone())].into()).open(&at, &value).unwrap()
    };
    let whole = sealed(&header(facts.clone()), &compressed(&raw));
    let raw_bytes = raw.len() as u64;
    let expect = Verified { frames: 1, batches: 1, events: 2, raw_bytes, ..Verified::default() };
    assert_eq!(check_record(&whole, record_key.as_bytes()), expect);
    assert_eq!(record_events(&whole).unwrap(), raw);
    let stranger = check_record(&whole, session(2).session.as_bytes()).faults;
    assert_eq!(stranger[0].to_string(), "record: field session is out of its range");
    let wrong = sealed(&header(BatchFacts { content_hash: 1, ..facts }), &compressed(&raw));
    assert_eq!(check_record(&wrong, record_key.as_bytes()).faults[0].problem, Problem::Content);
    let empty = sealed(&header(payload(&[]).1), b"");
    assert!(check_record(&empty, record_key.as_bytes()).faults.is_empty());
    assert!(record_events(&empty).unwrap().is_empty());
    let acceptance = Header::Acceptance { key: session(1), consent: consent.clone() };
    assert!(check_record(&sealed(&acceptance, b""), record_key.as_bytes()).faults.is_empty());
    assert!(!check_record(&sealed(&acceptance, b"x"), record_key.as_bytes()).faults.is_empty());
    assert!(record_events(&sealed(&acceptance, b"")).unwrap().is_empty());
}
