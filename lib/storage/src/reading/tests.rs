//! Goal: however a session lies in objects, it reads the same: merged from shared objects, from parts, straight from one object, as
//! lines or zstd, from the start or behind what was given before. Method: random sessions, sealed as in the bucket, read by the work
//! that readers do, whose fetches are answered from memory.

use engine::compaction::FrameCutter;
use proptest::prelude::*;
use schemas::object::ObjectKind;
use schemas::session_object::Footer as SessionFooter;
use schemas::shared_object::{BatchEntry, Chunk, Footer as SharedFooter};
use schemas::{BatchFacts, SessionId, WorkspaceId, codec};
use sealing::frames::{ChunkContext, ChunkKind, seal_chunk};
use uuid::Uuid;

use super::*;

fn session() -> SessionKey {
    SessionKey { workspace: WorkspaceId(Uuid::from_u128(1)), session: SessionId(Uuid::from_u128(2)) }
}

fn data_key() -> Key {
    Key::new([5; 32])
}

/// Streams from this one on have large events.
const LARGE: u32 = 100;

fn payload(stream: u32, seq: usize, timestamps: &[i64]) -> Vec<u8> {
    let line = |(position, at): (usize, &i64)| {
        let kind = if position % 5 == 0 { 2 } else { 3 };
        // Large ones, and few of them, where much is to be held.
        let pad = if stream >= LARGE { "x".repeat(4_000) } else { String::new() };
        format!("{{\"type\":{kind},\"timestamp\":{at},\"data\":{{\"of\":\"{stream}/{seq}/{position}{pad}\"}}}}\n")
    };
    timestamps.iter().enumerate().map(line).collect::<String>().into_bytes()
}

/// Times of the events of each batch, by stream.
type Streams = BTreeMap<u32, Vec<Vec<i64>>>;

/// A bucket of sealed objects.
#[derive(Default)]
struct Bucket {
    sources: Vec<Source>,
    bodies: Vec<Vec<u8>>,
}

impl Bucket {
    /// One stream's batches from `first` on as a chunk of a shared object.
    fn put_shared(&mut self, stream: u32, first: usize, batches: &[Vec<i64>]) {
        let payloads: Vec<Vec<u8>> =
            batches.iter().enumerate().map(|(seq, times)| payload(stream, first + seq, times)).collect();
        let frames: Vec<Vec<u8>> =
            payloads.iter().map(|raw| if raw.is_empty() { Vec::new() } else { codec::compress(raw, 1) }).collect();
        let mut body = ObjectKind::Shared.preamble().to_vec();
        let at = body.len() as u64;
        let context = ChunkContext { session: session(), kind: ChunkKind::Shared };
        let (id, lens) = seal_chunk(&data_key(), context, frames.iter().map(Vec::as_slice), &mut body).unwrap();
        let offset = self.sources.len() as u64;
        let entry = |(number, raw): (usize, &Vec<u8>)| {
            let times = &batches[number];
            let facts = BatchFacts {
                events: times.len() as u32,
                raw_bytes: raw.len() as u32,
                ts_min: times.iter().min().copied().unwrap_or_default(),
                ts_max: times.iter().max().copied().unwrap_or_default(),
                content_hash: BatchFacts::hash(raw),
                ..BatchFacts::default()
            };
            BatchEntry { seq: (first + number) as u32, end: false, offset, len: lens[number] as u32, facts }
        };
        let entries = payloads.iter().enumerate().map(entry).collect();
        let id = *id.as_bytes();
        let footer = SharedFooter {
            object: ObjectId(Uuid::from_u128(u128::from(offset))),
            partition: 0,
            offset_first: offset,
            offset_next: offset + 1,
            chunks: vec![Chunk { key: session(), stream, id, at, batches: entries }],
            quarantined: Vec::new(),
        };
        let key = ObjectKey::Shared { partition: 0, id: footer.object };
        self.sources.push(Source { key, footer: Footer::Shared(Arc::new(footer)), body: None });
        self.bodies.push(body);
    }

    /// All of these objects as one.
    fn compact(&self, number: u128, frame_bytes: usize) -> Self {
        let (plan, _) = plan(&session(), &self.sources);
        let plan = Arc::new(plan);
        let (mut walk, mut cutter) =
            (Walk::new(self.sources.clone().into(), Arc::clone(&plan), Range::ALL), FrameCutter::new(frame_bytes));
        let mut cuts = Vec::new();
        loop {
            match walk.turn(&data_key()).unwrap() {
                Turn::Event(event) => cuts.extend(cutter.push(&plan, &event, walk.bytes(&event))),
                Turn::Fetch(window) => self.answer(&self.sources, walk.windows(), window),
                Turn::Done => break,
            }
        }
        cuts.extend(cutter.finish());
        let mut body = ObjectKind::Session.preamble().to_vec();
        let mut at = body.len() as u64;
        let frames: Vec<Vec<u8>> = cuts.iter().map(|cut| codec::compress(&cut.raw, 1)).collect();
        let context = ChunkContext { session: session(), kind: ChunkKind::Session };
        let (chunk, lens) = seal_chunk(&data_key(), context, frames.iter().map(Vec::as_slice), &mut body).unwrap();
        let mut entries = Vec::new();
        for (cut, len) in cuts.iter().zip(lens) {
            entries.push(cut.frame(at, len as u32));
            at += len as u64;
        }
        let footer = SessionFooter {
            object: ObjectId(Uuid::from_u128(1_000 + number)),
            key: session(),
            chunk: *chunk.as_bytes(),
            frames: entries,
            streams: plan.stream_infos(),
            duplicates: 0,
            conflicts: 0,
        };
        let key = ObjectKey::Session { key: session(), id: footer.object };
        Self {
            sources: vec![Source { key, footer: Footer::Session(Arc::new(footer)), body: None }],
            bodies: vec![body],
        }
    }

    /// `sources` are numbered as the windows' objects.
    fn answer(&self, sources: &[Source], windows: &mut Windows, window: usize) {
        for ask in windows.ask(window) {
            let of = self.sources.iter().position(|source| source.key == sources[ask.object].key).unwrap();
            let bytes = &self.bodies[of][ask.at as usize..(ask.at + ask.len) as usize];
            windows.supply(ask.window, Bytes::copy_from_slice(bytes));
        }
    }

    fn read(&self, range: Range, form: Form, skip: u64) -> Result<String, Corrupt> {
        let (plan, _) = plan(&session(), &self.sources);
        let sources: Arc<[Source]> = self.sources.clone().into();
        let course = Course::new(&sources, &Arc::new(plan), range, skip);
        let mut reading = Reading { course, out: Output::new(form) };
        let (mut out, mut events) = (Vec::new(), 0);
        loop {
            let halt = reading.go(&data_key())?;
            let (bytes, count) = reading.out.take();
            out.extend_from_slice(&bytes);
            events += count;
            match halt {
                Halt::Fetch(window) => {
                    let numbered: Vec<Source> =
                        (0..).map_while(|number| reading.source(number).cloned()).take(sources.len()).collect();
                    self.answer(&numbered, reading.windows(), window);
                }
                Halt::Full => {}
                Halt::Done => break,
            }
        }
        if form == Form::Zstd && !out.is_empty() {
            out = codec::decompress(&out, usize::MAX / 2).unwrap();
        }
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text.lines().count() as u64, events, "what was given is counted");
        Ok(text)
    }
}

fn bucket(streams: &Streams, cut: usize) -> Bucket {
    let mut bucket = Bucket::default();
    for (stream, batches) in streams {
        for (number, some) in batches.chunks(cut).enumerate() {
            bucket.put_shared(*stream, number * cut, some);
        }
    }
    bucket
}

/// What must be read: by (running maximum, stream, seq, position).
fn expected(streams: &Streams, range: Range, skip: u64) -> String {
    let mut all = Vec::new();
    for (stream, batches) in streams {
        let mut high = i64::MIN;
        for (seq, times) in batches.iter().enumerate() {
            let text = String::from_utf8(payload(*stream, seq, times)).unwrap();
            for ((position, line), at) in text.split_inclusive('\n').enumerate().zip(times) {
                high = high.max(*at);
                if range.contains(*at) {
                    all.push((high, *stream, seq, position, line.to_owned()));
                }
            }
        }
    }
    all.sort();
    all.into_iter().skip(skip as usize).map(|(.., line)| line).collect()
}

fn any_streams() -> impl Strategy<Value = Streams> {
    let batches = prop::collection::vec(prop::collection::vec(-500i64..500, 0..8), 1..8);
    prop::collection::btree_map(0u32..5, batches, 1..4)
}

proptest! {
    #[test]
    fn c01_a_session_reads_the_same_from_whatever_it_lies_in(
        streams in any_streams(),
        cut in 1usize..4,
        frame_bytes in 1usize..400,
        (from, to) in (-600i64..600, -600i64..600),
        skip in 0u64..40,
    ) {
        let shared = bucket(&streams, cut);
        let one = shared.compact(0, frame_bytes);
        let half = Range { from, to: to.max(from) };
        for range in [Range::ALL, half, Range { from, to }] {
            for skip in [0, skip] {
                let expected = expected(&streams, range, skip);
                for form in [Form::Lines, Form::Zstd] {
                    prop_assert_eq!(&shared.read(range, form, skip).unwrap(), &expected);
                    prop_assert_eq!(&one.read(range, form, skip).unwrap(), &expected);
                }
            }
        }
    }

    /// Of two parts and what lies in shared objects beside them, some of it doubled.
    #[test]
    fn c01_parts_and_shared_objects_read_as_one(streams in any_streams(), cut in 1usize..4, at in 0usize..6) {
        let shared = bucket(&streams, cut);
        let split = at.min(shared.sources.len());
        let part = |number, numbers: std::ops::Range<usize>| {
            let some = Bucket { sources: shared.sources[numbers.clone()].to_vec(), bodies: shared.bodies[numbers].to_vec() };
            some.compact(number, 200)
        };
        let mut all = Bucket::default();
        for some in [part(0, 0..split), part(1, split..shared.sources.len()), Bucket { sources: shared.sources.clone(), bodies: shared.bodies.clone() }] {
            all.sources.extend(some.sources);
            all.bodies.extend(some.bodies);
        }
        prop_assert_eq!(all.read(Range::ALL, Form::Zstd, 0).unwrap(), expected(&streams, Range::ALL, 0));
    }
}

#[test]
fn c05_a_flipped_bit_in_a_frame_is_an_error_that_names_the_object_and_only_where_it_is_read() {
    let streams: Streams = [(0, vec![vec![1, 2, 3], vec![4, 5], vec![100]]), (3, vec![vec![2, 6]])].into();
    for bucket in [bucket(&streams, 2), bucket(&streams, 2).compact(0, 60)] {
        for object in 0..bucket.bodies.len() {
            for at in ObjectKind::Shared.preamble().len()..bucket.bodies[object].len() {
                let mut damaged = Bucket { sources: bucket.sources.clone(), bodies: bucket.bodies.clone() };
                damaged.bodies[object][at] ^= 1;
                let error = damaged.read(Range::ALL, Form::Lines, 0).unwrap_err();
                assert_eq!(error.key, damaged.sources[object].key, "byte {at}");
            }
        }
    }
    let mut damaged = bucket(&streams, 2);
    let last = damaged.bodies[1].len() - 1;
    damaged.bodies[1][last] ^= 1;
    let before = Range { from: 0, to: 50 };
    assert_eq!(damaged.read(before, Form::Lines, 0).unwrap(), expected(&streams, before, 0));
}

#[test]
fn pieces_are_small_whatever_an_event_has_and_none_keeps_what_it_was_cut_from() {
    for len in [0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES + 5] {
        let bytes: Vec<u8> = (0..len).map(|at| at as u8).collect();
        let pieces: Vec<Bytes> = pieces(&bytes).collect();
        assert!(pieces.iter().all(|piece| (1..=PIECE_BYTES).contains(&piece.len()) && piece.is_unique()));
        assert_eq!(pieces.concat(), bytes);
    }
}

/// Goal: a session that is larger than any bound is read within them. Method: batches of megabytes in many streams at the same time,
/// from many parts, so that windows, frames and batches all are too many to be held.
#[test]
fn what_is_held_stays_within_its_bounds() {
    const EVENTS: i64 = 60;
    let times = |stream: i64, seq: i64| (0..EVENTS).map(|at| seq * EVENTS + at + stream).collect::<Vec<_>>();
    let streams: Streams =
        (0..60).map(|stream| (LARGE + stream as u32, (0..2).map(|seq| times(stream, seq)).collect())).collect();
    let shared = bucket(&streams, 1);
    let one = shared.compact(0, 300_000);
    let expected = expected(&streams, Range::ALL, 0);
    assert!(expected.len() > 10_000_000);
    for bucket in [&shared, &one] {
        assert!(bucket.read(Range::ALL, Form::Lines, 0).unwrap() == expected);
        let (plan, _) = plan(&session(), &bucket.sources);
        let mut walk = Walk::new(bucket.sources.clone().into(), Arc::new(plan), Range::ALL);
        loop {
            match walk.turn(&data_key()).unwrap() {
                Turn::Fetch(window) => {
                    bucket.answer(&bucket.sources, walk.windows(), window);
                    let held = walk.held();
                    assert!(held <= walk::HELD_BYTES_MAX, "{held} bytes are held");
                }
                Turn::Event(_) => {}
                Turn::Done => break,
            }
        }
    }
}
