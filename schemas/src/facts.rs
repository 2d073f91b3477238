//! What the edge found out about a batch while it validated it, so that nobody has to parse it again.

use crate::codec::{FormatError, Reader, Writer};
use crate::limits;

/// Counts by kind of event: rrweb's types 0 to 6, and all others together.
pub const KINDS: usize = 8;

/// The facts of one batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BatchFacts {
    /// Events in the batch.
    pub events: u32,
    /// Bytes of the batch's payload before compression: its events, a newline after each.
    pub raw_bytes: u32,
    /// The least timestamp, in milliseconds as the client's clock had them.
    pub ts_min: i64,
    /// The greatest timestamp.
    pub ts_max: i64,
    /// Events by type, index 7 for those of a type that is not known.
    pub kinds: [u32; KINDS],
    /// Pages opened: meta events.
    pub pages: u32,
    /// Console messages of level error.
    pub errors: u32,
    /// Whether a full snapshot is among the events.
    pub full_snapshot: bool,
    /// XXH3 of the payload before compression; two batches of one place that differ in it are in conflict.
    pub content_hash: u64,
}

impl BatchFacts {
    /// With their length before them: later releases append fields, and readers pass over those that they do not know.
    pub(crate) fn write(&self, to: &mut Writer) {
        let mut writer = Writer::new();
        writer.uint(u64::from(self.events));
        writer.uint(u64::from(self.raw_bytes));
        writer.int(self.ts_min);
        writer.int(self.ts_max.wrapping_sub(self.ts_min));
        for kind in self.kinds {
            writer.uint(u64::from(kind));
        }
        writer.uint(u64::from(self.pages));
        writer.uint(u64::from(self.errors));
        writer.u8(u8::from(self.full_snapshot));
        writer.u64_fixed(self.content_hash);
        to.bytes(&writer.into_bytes());
    }

    pub(crate) fn read(from: &mut Reader<'_>) -> Result<Self, FormatError> {
        let mut reader = Reader::new(from.bytes(limits::FACTS_BYTES_MAX, "facts")?);
        let events = reader.uint32("events")?;
        let raw_bytes = reader.uint32("raw_bytes")?;
        if raw_bytes as usize > limits::DECODED_BYTES_MAX {
            return Err(FormatError::Field("raw_bytes"));
        }
        let ts_min = reader.int()?;
        let ts_max = ts_min.wrapping_add(reader.int()?);
        let mut kinds = [0; KINDS];
        for kind in &mut kinds {
            *kind = reader.uint32("kinds")?;
        }
        Ok(Self {
            events,
            raw_bytes,
            ts_min,
            ts_max,
            kinds,
            pages: reader.uint32("pages")?,
            errors: reader.uint32("errors")?,
            full_snapshot: reader.flag("full_snapshot")?,
            content_hash: reader.u64_fixed()?,
        })
    }

    /// The hash that stands in [`BatchFacts::content_hash`].
    pub fn hash(payload: &[u8]) -> u64 {
        xxhash_rust::xxh3::xxh3_64(payload)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_later_releases_are_passed_over_and_missing_ones_are_an_error() {
        let facts = BatchFacts { events: 3, raw_bytes: 400, ts_min: -5, ts_max: 9, ..BatchFacts::default() };
        let mut writer = Writer::new();
        facts.write(&mut writer);
        let written = writer.into_bytes();
        let fields = Reader::new(&written).bytes(limits::FACTS_BYTES_MAX, "facts").expect("own bytes");
        for len in 0..fields.len() + 3 {
            let mut fields = fields.to_vec();
            fields.resize(len, 1);
            let mut writer = Writer::new();
            writer.bytes(&fields);
            writer.raw(b"behind");
            let bytes = writer.into_bytes();
            let mut reader = Reader::new(&bytes);
            let expected = if len < written.len() - 1 { Err(FormatError::Truncated) } else { Ok(facts) };
            assert_eq!(BatchFacts::read(&mut reader), expected, "{len} bytes");
            assert_eq!(reader.rest(), b"behind", "{len} bytes");
        }
    }
}
