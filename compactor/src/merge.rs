//! The bytes of session objects. CPU work over objects in memory, done on the pool.

use bytes::Bytes;
use engine::compaction::{Cut, FrameCutter};
use engine::merge::{Location, Merger, Plan, Range, Step};
use schemas::codec::{self, FormatError};
use schemas::session_object::{Footer, PREAMBLE};
use schemas::shared_object::{self, QuarantineReason, Quarantined};
use schemas::{ObjectId, SessionKey, limits};
use storage::index::Uploaded;
use storage::objects;

/// zstd's level for session objects: written once, read for a year.
const SESSION_ZSTD_LEVEL: i32 = 9;

/// An object in memory, with what its footer says of frames.
#[derive(Debug, Clone)]
pub(crate) struct Loaded {
    pub(crate) body: Bytes,
    pub(crate) footer: LoadedFooter,
}

/// The footer of an object in memory.
#[derive(Debug, Clone)]
pub(crate) enum LoadedFooter {
    Shared(shared_object::Footer),
    Session(Footer),
}

/// A session object that is ready for upload.
#[derive(Debug)]
pub(crate) struct Merged {
    pub(crate) body: Bytes,
    pub(crate) row: Uploaded,
}

/// Merges a session's batches into one object.
pub(crate) fn merge(id: ObjectId, key: SessionKey, plan: &Plan, objects: &[Loaded]) -> Result<Merged, FormatError> {
    let mismatch = |_| FormatError::Field("facts");
    let mut writer = ObjectWriter { body: PREAMBLE.to_vec(), footer: empty_footer(key, plan) };
    let mut cutter = FrameCutter::new(limits::FRAME_RAW_BYTES);
    let mut frames = FrameCache::default();
    let mut merger = Merger::new(plan, Range::ALL);
    loop {
        match merger.step().map_err(mismatch)? {
            Step::Need { stream, batch } => {
                let batch = &plan.streams[stream].batches[batch];
                let payload = load(&batch.location, batch.facts.raw_bytes as usize, objects, &mut frames)?;
                merger.supply(stream, payload).map_err(mismatch)?;
            }
            Step::Event(event) => {
                if let Some(cut) = cutter.push(plan, &event, merger.bytes(&event)) {
                    writer.frame(&cut);
                }
            }
            Step::Done => break,
        }
    }
    if let Some(cut) = cutter.finish() {
        writer.frame(&cut);
    }
    Ok(writer.finish(id))
}

fn empty_footer(key: SessionKey, plan: &Plan) -> Footer {
    Footer {
        key,
        frames: Vec::new(),
        streams: plan.stream_infos(),
        duplicates: plan.duplicates,
        conflicts: plan.conflicts,
    }
}

struct ObjectWriter {
    body: Vec<u8>,
    footer: Footer,
}

impl ObjectWriter {
    fn frame(&mut self, cut: &Cut) {
        let frame = codec::compress(&cut.raw, SESSION_ZSTD_LEVEL);
        self.footer.frames.push(cut.frame(self.body.len() as u64, frame.len() as u32));
        self.body.extend_from_slice(&frame);
    }

    fn finish(self, id: ObjectId) -> Merged {
        let (body, row) = objects::finish(id, self.body, &self.footer.encode());
        Merged { body, row }
    }
}

/// The last decompressed frame of each session object: neighbouring batches share it.
#[derive(Default)]
struct FrameCache(Vec<(usize, usize, Vec<u8>)>);

impl FrameCache {
    fn get(&mut self, object: usize, frame: usize, loaded: &Loaded) -> Result<&[u8], FormatError> {
        let place = match self.0.iter().position(|(of, ..)| *of == object) {
            Some(place) if self.0[place].1 == frame => place,
            found => {
                let LoadedFooter::Session(footer) = &loaded.footer else { return Err(FormatError::Field("kind")) };
                let entry = footer.frames.get(frame).ok_or(FormatError::Field("frame"))?;
                let bytes = slice(&loaded.body, entry.at, u64::from(entry.len))?;
                let raw = codec::decompress(bytes, entry.raw_len as usize)?;
                if let Some(place) = found {
                    self.0.swap_remove(place);
                }
                self.0.push((object, frame, raw));
                self.0.len() - 1
            }
        };
        Ok(&self.0[place].2)
    }
}

fn load(
    location: &Location,
    raw_bytes: usize,
    objects: &[Loaded],
    frames: &mut FrameCache,
) -> Result<Vec<u8>, FormatError> {
    let loaded = |object: usize| objects.get(object).ok_or(FormatError::Field("object"));
    match location {
        Location::Shared { object, at, len } => {
            codec::decompress(slice(&loaded(*object)?.body, *at, u64::from(*len))?, raw_bytes)
        }
        Location::Session { object, pieces } => {
            let mut payload = Vec::with_capacity(raw_bytes);
            for piece in pieces {
                let raw = frames.get(*object, piece.frame, loaded(*object)?)?;
                let part = raw.get(piece.at as usize..(piece.at + piece.len) as usize);
                payload.extend_from_slice(part.ok_or(FormatError::Truncated)?);
            }
            Ok(payload)
        }
    }
}

fn slice(body: &Bytes, at: u64, len: u64) -> Result<&[u8], FormatError> {
    body.get(at as usize..(at + len) as usize).ok_or(FormatError::Truncated)
}

/// Bytes that nobody can read, on their way into a quarantine object.
#[derive(Debug, Clone)]
pub(crate) struct Unreadable {
    pub(crate) offset: u64,
    pub(crate) reason: QuarantineReason,
    pub(crate) bytes: Bytes,
}

/// What of a shared object has to go into quarantine whatever happens.
pub(crate) fn quarantined(loaded: &Loaded) -> Vec<Unreadable> {
    let LoadedFooter::Shared(footer) = &loaded.footer else { return Vec::new() };
    let take = |record: &Quarantined| Unreadable {
        offset: record.offset,
        reason: record.reason,
        bytes: loaded.body.slice(record.at as usize..(record.at + u64::from(record.len)) as usize),
    };
    footer.quarantined.iter().map(take).collect()
}

impl Loaded {
    /// Whether it came from [`wholly_corrupt`]: a piece that begins before the preamble's end is no record.
    pub(crate) fn is_wholly_corrupt(&self) -> bool {
        matches!(&self.footer, LoadedFooter::Shared(footer) if footer.quarantined.iter().any(|piece| piece.at == 0))
    }
}

/// A shared object whose footer cannot be read: nobody knows what lies where in it, so all of it is one unreadable piece.
/// `None` when it is not of this format at all: a newer release may read it.
pub(crate) fn wholly_corrupt(body: Bytes) -> Option<Loaded> {
    let len = u32::try_from(body.len()).ok().filter(|_| body.starts_with(shared_object::PREAMBLE))?;
    let whole = Quarantined { offset: 0, at: 0, len, reason: QuarantineReason::Payload };
    let footer = shared_object::Footer {
        partition: 0,
        offset_first: 0,
        offset_next: 0,
        chunks: Vec::new(),
        quarantined: vec![whole],
    };
    Some(Loaded { body, footer: LoadedFooter::Shared(footer) })
}

/// The frames of a session that could not be merged, byte for byte.
pub(crate) fn unmergeable(key: SessionKey, objects: &[Loaded]) -> Vec<Unreadable> {
    let mut found = Vec::new();
    for loaded in objects {
        let LoadedFooter::Shared(footer) = &loaded.footer else { continue };
        for chunk in footer.chunks.iter().filter(|chunk| chunk.key == key) {
            let mut at = chunk.at as usize;
            for batch in &chunk.batches {
                let bytes = loaded.body.slice(at..at + batch.len as usize);
                at += batch.len as usize;
                found.push(Unreadable { offset: batch.offset, reason: QuarantineReason::Payload, bytes });
            }
        }
    }
    found
}

/// A quarantine object of these bytes.
pub(crate) fn quarantine_object(id: ObjectId, partition: i32, unreadable: &[Unreadable]) -> Merged {
    let mut body = shared_object::PREAMBLE.to_vec();
    let mut footer = shared_object::Footer {
        partition,
        offset_first: unreadable.iter().map(|record| record.offset).min().unwrap_or(0),
        offset_next: unreadable.iter().map(|record| record.offset + 1).max().unwrap_or(0),
        chunks: Vec::new(),
        quarantined: Vec::with_capacity(unreadable.len()),
    };
    for record in unreadable {
        footer.quarantined.push(Quarantined {
            offset: record.offset,
            at: body.len() as u64,
            len: record.bytes.len() as u32,
            reason: record.reason,
        });
        body.extend_from_slice(&record.bytes);
    }
    let (body, row) = objects::finish(id, body, &footer.encode());
    Merged { body, row }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn an_object_without_a_readable_footer_is_kept_byte_for_byte() {
        let body = Bytes::from_static(b"CLVS\x01whatever was there");
        let loaded = wholly_corrupt(body.clone()).unwrap();
        assert!(loaded.is_wholly_corrupt());
        let found = quarantined(&loaded);
        assert_eq!(found.iter().map(|record| &record.bytes).collect::<Vec<_>>(), [&body]);
        let object = quarantine_object(ObjectId(Uuid::nil()), 3, &found);
        let at = object.row.footer.at as usize;
        let footer = shared_object::Footer::decode(&object.body[at..], at as u64).unwrap();
        let place = footer.quarantined[0];
        assert_eq!(object.body.slice(place.at as usize..place.at as usize + place.len as usize), body);
        assert!(wholly_corrupt(Bytes::from_static(b"CLVS\x02newer")).is_none());
    }
}
