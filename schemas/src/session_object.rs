//! Session objects (level 1): one session, in the order of reading, seekable.
//!
//! Layout, version 1: the preamble (magic `CLVO`, version); frames; the footer's region; the trailer, see [`crate::object`].
//! A frame is one zstd frame of events with a newline after each; all frames are one chunk, sealed with the session's data
//! key. Notes of streams that go on stand behind the last frame's events, see [`crate::stream_note`]. A full snapshot begins a frame. The segments of a frame say which batch its events came from, so that objects can be
//! merged again.
//!
//! The footer's region: the id of the footer's own chunk (16 bytes), and the footer, one zstd frame with a checksum, sealed
//! with the session's data key.

use crate::codec::{self, FormatError, Reader, Writer};
use crate::facts::BatchFacts;
use crate::ids::{ObjectId, SessionId, SessionKey, WorkspaceId};
use crate::limits;

/// Neighbouring events of one batch in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// The stream.
    pub stream: u32,
    /// The batch.
    pub seq: u32,
    /// Place of the first event within its batch.
    pub position: u32,
    /// How many events.
    pub events: u32,
    /// Their bytes in the decompressed frame, newlines included.
    pub bytes: u32,
}

/// One zstd frame, sealed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Where it begins in the object.
    pub at: u64,
    /// Its length.
    pub len: u32,
    /// Bytes after decompression.
    pub raw_len: u32,
    /// The least timestamp in it, milliseconds.
    pub ts_min: i64,
    /// The greatest.
    pub ts_max: i64,
    /// Whether its first event is a full snapshot: a player can start here.
    pub full_snapshot: bool,
    /// Where its events came from, in order.
    pub segments: Vec<Segment>,
}

/// A batch that is in the object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BatchInfo {
    /// Its number in its stream.
    pub seq: u32,
    /// Whether it is the last of its stream.
    pub end: bool,
    /// What the edge found in it.
    pub facts: BatchFacts,
}

/// The batches of one stream that are in the object, by seq.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamInfo {
    /// The stream.
    pub stream: u32,
    /// Its batches.
    pub batches: Vec<BatchInfo>,
}

/// The footer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// The object that it is of: footers of other objects are found.
    pub object: ObjectId,
    /// The session.
    pub key: SessionKey,
    /// Names the key of the frames' chunk.
    pub chunk: [u8; 16],
    /// Frames, in order.
    pub frames: Vec<Frame>,
    /// Streams, by number.
    pub streams: Vec<StreamInfo>,
    /// Copies that were dropped while the object was made.
    pub duplicates: u64,
    /// Dropped copies that differed from the one that stayed.
    pub conflicts: u64,
}

impl Footer {
    /// The footer's bytes, compressed.
    pub fn encode(&self) -> Vec<u8> {
        codec::compress_footer(&self.raw())
    }

    /// The footer's bytes before they are compressed: more than [`limits::FOOTER_RAW_BYTES_MAX`] nobody reads.
    pub fn raw_len(&self) -> usize {
        self.raw().len()
    }

    fn raw(&self) -> Vec<u8> {
        let mut writer = Writer::new();
        writer.raw(self.object.as_bytes());
        writer.raw(self.key.workspace.as_bytes());
        writer.raw(self.key.session.as_bytes());
        writer.raw(&self.chunk);
        writer.uint(self.frames.len() as u64);
        for frame in &self.frames {
            writer.uint(frame.at);
            writer.uint(u64::from(frame.len));
            writer.uint(u64::from(frame.raw_len));
            writer.int(frame.ts_min);
            writer.int(frame.ts_max);
            writer.u8(u8::from(frame.full_snapshot));
            writer.uint(frame.segments.len() as u64);
            for segment in &frame.segments {
                for field in [segment.stream, segment.seq, segment.position, segment.events, segment.bytes] {
                    writer.uint(u64::from(field));
                }
            }
        }
        writer.uint(self.streams.len() as u64);
        for stream in &self.streams {
            writer.uint(u64::from(stream.stream));
            writer.uint(stream.batches.len() as u64);
            for batch in &stream.batches {
                writer.uint(u64::from(batch.seq));
                writer.u8(u8::from(batch.end));
                batch.facts.write(&mut writer);
            }
        }
        writer.uint(self.duplicates);
        writer.uint(self.conflicts);
        writer.into_bytes()
    }

    /// Reads a footer. Frames are checked to lie before `body_len`, segments to fill their frames exactly.
    pub fn decode(bytes: &[u8], body_len: u64) -> Result<Self, FormatError> {
        let raw = codec::decompress(bytes, limits::FOOTER_RAW_BYTES_MAX)?;
        let mut reader = Reader::new(&raw);
        let object = ObjectId::from_bytes(reader.array()?);
        let key = SessionKey {
            workspace: WorkspaceId::from_bytes(reader.array()?),
            session: SessionId::from_bytes(reader.array()?),
        };
        let chunk = reader.array()?;
        let frame_count = reader.count(7, "frames")?;
        let mut frames = Vec::with_capacity(frame_count);
        for _ in 0..frame_count {
            frames.push(Self::decode_frame(&mut reader, body_len)?);
        }
        let stream_count = reader.count(2, "streams")?;
        let mut streams = Vec::with_capacity(stream_count);
        for _ in 0..stream_count {
            let stream = reader.uint32("stream")?;
            let batch_count = reader.count(18, "batches")?;
            // No writer makes an empty stream or frame; millions of them would be cheap to write and dear to hold.
            if batch_count == 0 {
                return Err(FormatError::Field("batches"));
            }
            let mut batches = Vec::with_capacity(batch_count);
            for _ in 0..batch_count {
                batches.push(BatchInfo {
                    seq: reader.uint32("seq")?,
                    end: reader.flag("end")?,
                    facts: BatchFacts::read(&mut reader)?,
                });
            }
            streams.push(StreamInfo { stream, batches });
        }
        let (duplicates, conflicts) = (reader.uint()?, reader.uint()?);
        reader.finish()?;
        Ok(Self { object, key, chunk, frames, streams, duplicates, conflicts })
    }

    fn decode_frame(reader: &mut Reader<'_>, body_len: u64) -> Result<Frame, FormatError> {
        let at = reader.uint()?;
        let len = reader.uint32("len")?;
        let raw_len = reader.uint32("raw_len")?;
        let ts_min = reader.int()?;
        let ts_max = reader.int()?;
        let full_snapshot = reader.flag("full_snapshot")?;
        let segment_count = reader.count(5, "segments")?;
        if segment_count == 0 {
            return Err(FormatError::Field("segments"));
        }
        let mut segments = Vec::with_capacity(segment_count);
        for _ in 0..segment_count {
            segments.push(Segment {
                stream: reader.uint32("stream")?,
                seq: reader.uint32("seq")?,
                position: reader.uint32("position")?,
                events: reader.uint32("events")?,
                bytes: reader.uint32("bytes")?,
            });
        }
        let filled: u64 = segments.iter().map(|segment| u64::from(segment.bytes)).sum();
        if filled != u64::from(raw_len) || raw_len as usize > limits::FRAME_RAW_BYTES_MAX {
            return Err(FormatError::Field("raw_len"));
        }
        if at.checked_add(u64::from(len)).is_none_or(|end| end > body_len) {
            return Err(FormatError::Field("frame range"));
        }
        Ok(Frame { at, len, raw_len, ts_min, ts_max, full_snapshot, segments })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn sample() -> Footer {
        Footer {
            object: ObjectId(Uuid::from_u128(8)),
            key: SessionKey { workspace: WorkspaceId(Uuid::from_u128(1)), session: SessionId(Uuid::from_u128(2)) },
            chunk: [6; 16],
            frames: vec![Frame {
                at: 5,
                len: 20,
                raw_len: 64,
                ts_min: -1,
                ts_max: 9,
                full_snapshot: true,
                segments: vec![Segment { stream: 1, seq: 0, position: 0, events: 2, bytes: 64 }],
            }],
            streams: vec![StreamInfo {
                stream: 1,
                batches: vec![BatchInfo { seq: 0, end: false, facts: BatchFacts::default() }],
            }],
            duplicates: 1,
            conflicts: 0,
        }
    }

    #[test]
    fn footers_read_back_and_frames_outside_the_body_are_refused() {
        let bytes = sample().encode();
        assert_eq!(Footer::decode(&bytes, 25), Ok(sample()));
        assert_eq!(Footer::decode(&bytes, 24), Err(FormatError::Field("frame range")));
        let mut wrong = sample();
        wrong.frames[0].raw_len += 1;
        assert_eq!(Footer::decode(&wrong.encode(), 25), Err(FormatError::Field("raw_len")));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_without_panic(raw: Vec<u8>) {
            let _ = Footer::decode(&codec::compress_footer(&raw), 1000);
        }
    }
}
