//! Writers: objects as batcher, compactor and retention worker make them, from events to bytes.

use schemas::codec;
use schemas::facts::Urls;
use schemas::object::ObjectKind;
use schemas::session_object::{self, BatchInfo, Frame, Segment, StreamInfo};
use schemas::shared_object::{self, BatchEntry, Chunk, QuarantineReason, Quarantined};
use schemas::stream_note::{self, StreamNote};
use schemas::{BatchFacts, ObjectId, SessionId, SessionKey, WorkspaceId};
use serde_json::Value;
use uuid::Uuid;

use crate::Key;
use crate::frames::{ChunkContext, ChunkKind, seal_chunk};
use crate::objects::{StorageKey, seal_session_footer, seal_shared_footer};

pub(super) fn object_id(n: u128) -> ObjectId {
    ObjectId(Uuid::from_u128(n))
}

pub(super) fn session_key(workspace: u128, session: u128) -> SessionKey {
    SessionKey { workspace: WorkspaceId(Uuid::from_u128(workspace)), session: SessionId(Uuid::from_u128(session)) }
}

/// The payload of these events before compression.
pub(super) fn raw(events: &[String]) -> Vec<u8> {
    events.iter().flat_map(|event| [event.as_str(), "\n"]).collect::<String>().into_bytes()
}

/// One zstd frame; nothing holds nothing.
pub(super) fn compressed(raw: &[u8]) -> Vec<u8> {
    if raw.is_empty() { Vec::new() } else { codec::compress(raw, 3) }
}

/// What the edge finds in these events.
pub(super) fn facts(events: &[String]) -> BatchFacts {
    let payload = raw(events);
    let mut facts = BatchFacts {
        events: events.len() as u32,
        raw_bytes: payload.len() as u32,
        content_hash: BatchFacts::hash(&payload),
        ..BatchFacts::default()
    };
    let mut urls = Vec::new();
    for (number, event) in events.iter().enumerate() {
        let event: Value = serde_json::from_str(event).unwrap();
        let (kind, at) = (event["type"].as_u64().unwrap(), event["timestamp"].as_i64().unwrap());
        facts.kinds[kind.min(7) as usize] += 1;
        facts.full_snapshot |= kind == 2;
        facts.pages += u32::from(kind == 4);
        facts.errors += u32::from(event["data"]["payload"]["level"] == "error");
        (facts.ts_min, facts.ts_max) =
            if number == 0 { (at, at) } else { (facts.ts_min.min(at), facts.ts_max.max(at)) };
        add_activity(&mut facts, &event);
        urls.extend(event["data"]["href"].as_str().and_then(|href| href.split(['?', '#']).next()).map(str::to_owned));
    }
    facts.urls = Urls::new(urls.iter().map(String::as_str));
    facts
}

/// Clicks, inputs, messages and requests, as far as samples have them.
fn add_activity(facts: &mut BatchFacts, event: &Value) {
    let (at, data) = (event["timestamp"].as_i64().unwrap(), &event["data"]);
    let source = data["source"].as_u64().filter(|source| [2, 5].contains(source));
    if let Some(source) = source {
        let (first, last) = facts.interacted.unwrap_or((at, at));
        facts.active_ms += if at - last <= 5_000 { (at - last) as u32 } else { 0 };
        facts.interacted = Some((first, at));
        facts.clicks += u32::from(source == 2);
        facts.keypresses += u32::from(source == 5);
    }
    if let Some(level) = data["payload"]["level"].as_str().filter(|level| *level != "error") {
        facts.console[["warn", "info", "log"].iter().position(|name| *name == level).unwrap_or(3)] += 1;
    }
    let requests = data["payload"]["requests"].as_array();
    let failed = requests.into_iter().flatten().filter(|request| request["status"].as_u64() >= Some(400));
    facts.failed_requests += failed.count() as u32;
}

/// A batch on its way into a shared object.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    pub(super) seq: u32,
    pub(super) end: bool,
    pub(super) offset: u64,
    pub(super) events: Vec<String>,
    /// Whether only that it came again is noted.
    pub(super) is_copy: bool,
}

/// One stream's batches, and the key that seals them.
#[derive(Debug, Clone)]
pub(super) struct Stream<'a> {
    pub(super) key: SessionKey,
    pub(super) data_key: &'a Key,
    pub(super) stream: u32,
    pub(super) batches: Vec<Batch>,
}

/// An object, and what is known of it beside its bytes.
#[derive(Debug, Clone)]
pub(super) struct Object<F> {
    pub(super) bytes: Vec<u8>,
    pub(super) footer: F,
    /// Where the footer's region begins.
    pub(super) footer_at: usize,
    pub(super) footer_len: usize,
}

impl<F> Object<F> {
    pub(super) fn region(&self) -> &[u8] {
        &self.bytes[self.footer_at..self.footer_at + self.footer_len]
    }
}

/// The whole object of a body and a footer's region.
pub(super) fn finish<F>(kind: ObjectKind, mut body: Vec<u8>, region: &[u8], footer: F) -> Object<F> {
    let footer_at = body.len();
    body.extend_from_slice(region);
    body.extend_from_slice(&kind.trailer(region.len() as u32));
    Object { bytes: body, footer, footer_at, footer_len: region.len() }
}

/// Seals a stream's batches as one chunk at the end of `body`.
fn chunk(stream: &Stream<'_>, body: &mut Vec<u8>) -> Chunk {
    let at = body.len() as u64;
    let context = ChunkContext { session: stream.key, kind: ChunkKind::Shared };
    let frame = |batch: &Batch| if batch.is_copy { Vec::new() } else { compressed(&raw(&batch.events)) };
    let frames: Vec<Vec<u8>> = stream.batches.iter().map(frame).collect();
    let (id, lens) = seal_chunk(stream.data_key, context, frames.iter().map(Vec::as_slice), body).unwrap();
    let entry = |(batch, len): (&Batch, usize)| BatchEntry {
        seq: batch.seq,
        end: batch.end,
        offset: batch.offset,
        len: len as u32,
        facts: facts(&batch.events),
    };
    let batches = stream.batches.iter().zip(lens).map(entry).collect();
    Chunk { key: stream.key, stream: stream.stream, id: *id.as_bytes(), at, batches }
}

/// A record that could not be read: offset, reason, key, value.
pub(super) type Unreadable = (u64, QuarantineReason, Vec<u8>, Vec<u8>);

/// A shared object of these streams.
pub(super) fn shared(
    id: ObjectId,
    partition: i32,
    storage: &StorageKey,
    streams: &[Stream<'_>],
    unreadable: &[Unreadable],
) -> Object<shared_object::Footer> {
    let mut body = ObjectKind::Shared.preamble().to_vec();
    let chunks = streams.iter().map(|stream| chunk(stream, &mut body)).collect();
    with_records(id, partition, storage, (body, chunks), unreadable)
}

/// A quarantine object of chunks that are moved as they are.
pub(super) fn quarantine(
    id: ObjectId,
    partition: i32,
    storage: &StorageKey,
    moved: &[(Chunk, &[u8])],
    unreadable: &[Unreadable],
) -> Object<shared_object::Footer> {
    let mut body = ObjectKind::Shared.preamble().to_vec();
    let mut chunks = Vec::new();
    for (chunk, bytes) in moved {
        chunks.push(Chunk { at: body.len() as u64, ..chunk.clone() });
        body.extend_from_slice(bytes);
    }
    with_records(id, partition, storage, (body, chunks), unreadable)
}

/// A shared object of this body and its chunks, with records behind them.
pub(super) fn with_records(
    object: ObjectId,
    partition: i32,
    storage: &StorageKey,
    (mut body, chunks): (Vec<u8>, Vec<Chunk>),
    unreadable: &[Unreadable],
) -> Object<shared_object::Footer> {
    let mut quarantined = Vec::new();
    for (offset, reason, record_key, bytes) in unreadable {
        let (at, len) = (body.len() as u64, bytes.len() as u32);
        quarantined.push(Quarantined { offset: *offset, record_key: record_key.clone(), at, len, reason: *reason });
        body.extend_from_slice(bytes);
    }
    let in_chunks = chunks.iter().flat_map(|chunk| &chunk.batches).map(|batch| batch.offset);
    let offsets: Vec<u64> = in_chunks.chain(quarantined.iter().map(|record| record.offset)).collect();
    let offset_first = offsets.iter().copied().min().unwrap_or(0);
    let offset_next = offsets.iter().max().map_or(0, |last| last + 1);
    let footer = shared_object::Footer { object, partition, offset_first, offset_next, chunks, quarantined };
    let region = seal_shared_footer(storage, &footer).unwrap();
    finish(ObjectKind::Shared, body, &region, footer)
}

/// Neighbouring events of one batch: stream, seq, place of the first, texts.
pub(super) type Run = (u32, u32, u32, Vec<String>);

/// A session object of these frames, each a list of runs of events.
pub(super) fn session(
    object: ObjectId,
    key: SessionKey,
    data_key: &Key,
    frames: &[Vec<Run>],
    streams: Vec<StreamInfo>,
) -> Object<session_object::Footer> {
    session_with_notes(object, key, data_key, frames, streams, &[])
}

/// The same, with notes of streams behind the last frame.
pub(super) fn session_with_notes(
    object: ObjectId,
    key: SessionKey,
    data_key: &Key,
    frames: &[Vec<Run>],
    streams: Vec<StreamInfo>,
    notes: &[StreamNote],
) -> Object<session_object::Footer> {
    let mut body = ObjectKind::Session.preamble().to_vec();
    let mut at = body.len() as u64;
    let texts = |runs: &[Run]| -> Vec<String> { runs.iter().flat_map(|(.., events)| events.clone()).collect() };
    let mut payloads: Vec<Vec<u8>> = frames.iter().map(|runs| compressed(&raw(&texts(runs)))).collect();
    if let Some(last) = payloads.last_mut() {
        stream_note::append(last, notes);
    }
    let context = ChunkContext { session: key, kind: ChunkKind::Session };
    let (chunk, lens) = seal_chunk(data_key, context, payloads.iter().map(Vec::as_slice), &mut body).unwrap();
    let mut entries = Vec::new();
    for (runs, len) in frames.iter().zip(lens) {
        let segment = |(stream, seq, position, events): &Run| Segment {
            stream: *stream,
            seq: *seq,
            position: *position,
            events: events.len() as u32,
            bytes: raw(events).len() as u32,
        };
        let all = texts(runs);
        let found = facts(&all);
        entries.push(Frame {
            at,
            len: len as u32,
            raw_len: found.raw_bytes,
            ts_min: found.ts_min,
            ts_max: found.ts_max,
            full_snapshot: facts(&all[..1]).full_snapshot,
            segments: runs.iter().map(segment).collect(),
        });
        at += len as u64;
    }
    let footer = session_object::Footer {
        object,
        key,
        chunk: *chunk.as_bytes(),
        frames: entries,
        streams,
        duplicates: 1,
        conflicts: 0,
    };
    let region = seal_session_footer(data_key, &footer).unwrap();
    finish(ObjectKind::Session, body, &region, footer)
}

/// A stream as a session object's footer lists it: the seq, the end mark and the events of each batch.
pub(super) fn stream_info(stream: u32, batches: &[(u32, bool, &[String])]) -> StreamInfo {
    let info = |(seq, end, events): &(u32, bool, &[String])| BatchInfo { seq: *seq, end: *end, facts: facts(events) };
    StreamInfo { stream, batches: batches.iter().map(info).collect() }
}
