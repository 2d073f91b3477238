//! What the edge found out about a batch while it validated it, so that nobody has to parse it again.

use std::fmt;
use std::sync::Arc;

use crate::codec::{FormatError, Reader, Writer};
use crate::limits;

/// Counts by kind of event: rrweb's types 0 to 6, and all others together.
pub const KINDS: usize = 8;

/// Counts of console messages: of level warn, info and log, and of all others but error, which has a field of its own.
pub const CONSOLE_LEVELS: usize = 4;

/// Two interactions that are further apart have a pause between them, and not activity, in milliseconds. PostHog's players
/// skip from the same figure on (`ACTIVITY_THRESHOLD_MS`), so that two products tell the same of one session.
const IDLE_MS: u64 = 5_000;

/// The active time between an interaction and the next one, in milliseconds: none where the person was idle, or the clock
/// went back.
pub fn active_between_ms(before: i64, after: i64) -> u64 {
    let gap = after.checked_sub(before).and_then(|gap| u64::try_from(gap).ok());
    gap.filter(|gap| *gap <= IDLE_MS).unwrap_or(0)
}

/// The facts of one batch.
///
/// Up to `content_hash` they are in every batch's facts. What follows was appended in two groups, up to `urls` and from
/// `stored_hash` on, by later releases; batches that were recorded before have the defaults.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BatchFacts {
    /// Events in the batch.
    pub events: u32,
    /// Bytes of the batch's payload before compression, as it is stored: its events, a newline after each.
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
    /// XXH3 of the payload as its edge made it, before compression; two batches of one place that differ in it are in conflict.
    pub content_hash: u64,
    /// The sum of the pauses between neighbouring interactions, as far as the user was not idle in them, in milliseconds.
    pub active_ms: u32,
    /// Timestamps of the first and of the last interaction, by their places in the batch; none without any.
    pub interacted: Option<(i64, i64)>,
    /// Clicks.
    pub clicks: u32,
    /// Inputs into form fields: rrweb records no keys, but each change of a field.
    pub keypresses: u32,
    /// Console messages by level, see [`CONSOLE_LEVELS`].
    pub console: [u32; CONSOLE_LEVELS],
    /// Requests of the page that were answered with a status from 400 on, or not at all.
    pub failed_requests: u32,
    /// Pages opened, by origin and path.
    pub urls: Urls,
    /// XXH3 of the payload as it is stored, where masking changed it after `content_hash` was taken.
    pub stored_hash: Option<u64>,
    /// Values that were masked.
    pub masked: u32,
    /// Events whose payload was dropped since masking failed.
    pub dropped: u32,
}

/// URLs of pages, each once, in the order of the first visits. [`limits::BATCH_URLS_MAX`] of
/// [`limits::PAGE_URL_BYTES_MAX`] bytes at most, so they are as small in memory as in their record.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Urls(
    /// A newline after each. Copies share it: a batcher holds facts more than once.
    Arc<str>,
);

impl Urls {
    /// The URLs of these that can be kept, each once, up to the bound.
    pub fn new<'a>(urls: impl IntoIterator<Item = &'a str>) -> Self {
        let mut kept: Vec<&str> = Vec::new();
        for url in urls {
            if kept.len() < limits::BATCH_URLS_MAX && is_kept(url) && !kept.contains(&url) {
                kept.push(url);
            }
        }
        Self(kept.iter().flat_map(|url| [url, "\n"]).collect::<String>().into())
    }

    /// The URLs, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.lines()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes in memory, beside the facts themselves.
    pub fn heap_bytes(&self) -> usize {
        self.0.len()
    }

    fn write(&self, to: &mut Writer) {
        to.uint(self.len() as u64);
        for url in self.iter() {
            to.bytes(url.as_bytes());
        }
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, FormatError> {
        let count = from.uint32("urls")? as usize;
        if count > limits::BATCH_URLS_MAX {
            return Err(FormatError::Field("urls"));
        }
        let mut urls = Vec::with_capacity(count);
        for _ in 0..count {
            urls.push(from.text(limits::PAGE_URL_BYTES_MAX, "urls")?);
        }
        let read = Self::new(urls.iter().copied());
        // No writer makes others: what is read is written again as the same.
        if read.len() == count { Ok(read) } else { Err(FormatError::Field("urls")) }
    }
}

/// Says how many: pages that a person visited do not belong into a log.
impl fmt::Debug for Urls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Urls({})", self.len())
    }
}

/// Whether a URL can stand in facts and in the index: a line of its own.
fn is_kept(url: &str) -> bool {
    (1..=limits::PAGE_URL_BYTES_MAX).contains(&url.len()) && !url.contains(char::is_control)
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
        writer.uint(u64::from(self.active_ms));
        writer.u8(u8::from(self.interacted.is_some()));
        if let Some((first, last)) = self.interacted {
            writer.int(first.wrapping_sub(self.ts_min));
            writer.int(last.wrapping_sub(first));
        }
        writer.uint(u64::from(self.clicks));
        writer.uint(u64::from(self.keypresses));
        for level in self.console {
            writer.uint(u64::from(level));
        }
        writer.uint(u64::from(self.failed_requests));
        self.urls.write(&mut writer);
        writer.u8(u8::from(self.stored_hash.is_some()));
        if let Some(hash) = self.stored_hash {
            writer.u64_fixed(hash);
        }
        writer.uint(u64::from(self.masked));
        writer.uint(u64::from(self.dropped));
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
        let mut facts = Self {
            events,
            raw_bytes,
            ts_min,
            ts_max,
            kinds,
            pages: reader.uint32("pages")?,
            errors: reader.uint32("errors")?,
            full_snapshot: reader.flag("full_snapshot")?,
            content_hash: reader.u64_fixed()?,
            ..Self::default()
        };
        // A group was appended together: all of it is there or nothing.
        if !reader.rest().is_empty() {
            facts.read_activity(&mut reader)?;
        }
        if !reader.rest().is_empty() {
            facts.read_masking(&mut reader)?;
        }
        Ok(facts)
    }

    fn read_activity(&mut self, reader: &mut Reader<'_>) -> Result<(), FormatError> {
        self.active_ms = reader.uint32("active_ms")?;
        if reader.flag("interacted")? {
            let first = self.ts_min.wrapping_add(reader.int()?);
            self.interacted = Some((first, first.wrapping_add(reader.int()?)));
        }
        self.clicks = reader.uint32("clicks")?;
        self.keypresses = reader.uint32("keypresses")?;
        for level in &mut self.console {
            *level = reader.uint32("console")?;
        }
        self.failed_requests = reader.uint32("failed_requests")?;
        self.urls = Urls::read(reader)?;
        Ok(())
    }

    fn read_masking(&mut self, reader: &mut Reader<'_>) -> Result<(), FormatError> {
        self.stored_hash = reader.flag("stored_hash")?.then(|| reader.u64_fixed()).transpose()?;
        self.masked = reader.uint32("masked")?;
        self.dropped = reader.uint32("dropped")?;
        Ok(())
    }

    /// What the payload as it is stored hashes to.
    pub fn hash_as_stored(&self) -> u64 {
        self.stored_hash.unwrap_or(self.content_hash)
    }

    /// The hash that stands in [`BatchFacts::content_hash`] and in [`BatchFacts::stored_hash`].
    pub fn hash(payload: &[u8]) -> u64 {
        xxhash_rust::xxh3::xxh3_64(payload)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sample() -> BatchFacts {
        BatchFacts {
            events: 3,
            raw_bytes: 400,
            ts_min: -5,
            ts_max: 9,
            active_ms: 300,
            interacted: Some((-4, 7)),
            clicks: 1,
            keypresses: 200,
            console: [1, 2, 3, 4],
            failed_requests: 5,
            urls: Urls::new(["https://app.example/", "https://app.example/cart"]),
            stored_hash: Some(3),
            masked: 300,
            dropped: 1,
            ..BatchFacts::default()
        }
    }

    /// The bytes of facts, without their length.
    fn fields(facts: &BatchFacts) -> Vec<u8> {
        let mut writer = Writer::new();
        facts.write(&mut writer);
        let written = writer.into_bytes();
        Reader::new(&written).bytes(limits::FACTS_BYTES_MAX, "facts").expect("own bytes").to_vec()
    }

    /// Reads facts of these bytes, and whether what stands behind them stays.
    fn read(fields: &[u8]) -> Result<BatchFacts, FormatError> {
        let mut writer = Writer::new();
        writer.bytes(fields);
        writer.raw(b"behind");
        let bytes = writer.into_bytes();
        let mut reader = Reader::new(&bytes);
        let facts = BatchFacts::read(&mut reader);
        assert_eq!(reader.rest(), b"behind");
        facts
    }

    /// Goal: facts of all releases are read for ever. Method: the bytes of facts as they are written now, cut at each
    /// place and lengthened. They are whole where the first release ended, with defaults behind, where the second did, and where
    /// this one ends.
    #[test]
    fn facts_of_earlier_and_of_later_releases_are_read_and_cut_ones_are_an_error() {
        let facts = sample();
        let written = fields(&facts);
        let first_release = {
            let BatchFacts { events, raw_bytes, ts_min, ts_max, .. } = facts.clone();
            BatchFacts { events, raw_bytes, ts_min, ts_max, ..BatchFacts::default() }
        };
        // Two numbers of one and two bytes, two times, eight kinds, pages, errors, the flag, and the hash.
        let first_release_len = 3 + 2 + 8 + 3 + 8;
        let second_release = BatchFacts { stored_hash: None, masked: 0, dropped: 0, ..facts.clone() };
        // Behind it are the flag, the hash, and two numbers of two bytes and one.
        let second_release_len = written.len() - (1 + 8 + 3);
        for len in 0..written.len() + 3 {
            let mut cut = written.clone();
            cut.resize(len, 1);
            let expected = match len {
                len if len == first_release_len => Ok(first_release.clone()),
                len if len == second_release_len => Ok(second_release.clone()),
                len if len < written.len() => Err(FormatError::Truncated),
                _ => Ok(facts.clone()),
            };
            assert_eq!(read(&cut), expected, "{len} bytes");
        }
    }

    /// No reader meets facts that are longer than it takes, or another count of URLs than it writes again.
    #[test]
    fn the_largest_facts_are_within_their_bound_and_urls_beyond_theirs_are_refused() {
        let url = |number: usize| format!("{number:0len$}", len = limits::PAGE_URL_BYTES_MAX);
        let urls: Vec<String> = (0..limits::BATCH_URLS_MAX).map(url).collect();
        let facts = BatchFacts {
            events: u32::MAX,
            raw_bytes: limits::DECODED_BYTES_MAX as u32,
            ts_min: i64::MIN,
            ts_max: i64::MAX,
            kinds: [u32::MAX; KINDS],
            pages: u32::MAX,
            errors: u32::MAX,
            full_snapshot: true,
            content_hash: u64::MAX,
            active_ms: u32::MAX,
            interacted: Some((i64::MAX, i64::MIN)),
            clicks: u32::MAX,
            keypresses: u32::MAX,
            console: [u32::MAX; CONSOLE_LEVELS],
            failed_requests: u32::MAX,
            urls: Urls::new(urls.iter().map(String::as_str)),
            stored_hash: Some(u64::MAX),
            masked: u32::MAX,
            dropped: u32::MAX,
        };
        assert_eq!(facts.urls.len(), limits::BATCH_URLS_MAX);
        let bytes = fields(&facts);
        let of_urls = limits::BATCH_URLS_MAX * (limits::PAGE_URL_BYTES_MAX + 2);
        assert!(bytes.len() - of_urls <= limits::FACTS_NUMBERS_BYTES_MAX, "{} bytes", bytes.len());
        assert_eq!(read(&bytes), Ok(facts));

        let with = |urls: &[&str]| {
            let bytes = fields(&BatchFacts::default());
            let (before, behind) = bytes.split_at(bytes.len() - 4);
            assert_eq!(behind, [0; 4], "the count of URLs is before the last three");
            let mut writer = Writer::new();
            writer.raw(before);
            writer.uint(urls.len() as u64);
            urls.iter().for_each(|url| writer.bytes(url.as_bytes()));
            writer.raw(&behind[1..]);
            read(&writer.into_bytes()).map(|facts| facts.urls.len())
        };
        assert_eq!(with(&["http://a/", "http://b/"]), Ok(2));
        let long = url(7) + "x";
        let many: Vec<String> = (0..=limits::BATCH_URLS_MAX).map(|number| number.to_string()).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        for refused in [&["a", "a"][..], &[""], &["a\nb"], &["a\0"], &[&long], &many] {
            assert_eq!(with(refused), Err(FormatError::Field("urls")), "{} URLs", refused.len());
        }
    }

    #[test]
    fn urls_are_kept_once_in_order_and_never_shown() {
        let urls = Urls::new(["http://b/", "", "http://a/", "http://b/", "x\ny"]);
        assert_eq!(urls.iter().collect::<Vec<_>>(), ["http://b/", "http://a/"]);
        assert_eq!(format!("{urls:?}"), "Urls(2)");
        assert!(Urls::default().is_empty() && !urls.is_empty());
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic_and_written_again_as_the_same(behind: Vec<u8>, cut: prop::sample::Index) {
            let written = fields(&sample());
            let mut bytes = written[..cut.index(written.len())].to_vec();
            bytes.extend(behind);
            if let Ok(facts) = read(&bytes) {
                prop_assert_eq!(read(&fields(&facts)), Ok(facts));
            }
        }
    }
}
