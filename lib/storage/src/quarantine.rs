//! Records that no batcher could read: listed, fetched, noted as replayed, wherever their bytes lie.
//!
//! The index says which objects hold such records, their footers say which. A record is named by its place in the log:
//! compactors move its bytes from a shared object into a quarantine object, and the name stays. What is listed and moved in
//! the same moment is met twice rather than missed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use schemas::SessionKey;
use schemas::paths::ObjectKey;
use schemas::shared_object::{self, QuarantineReason};
use service_kit::pool::Pool;
use thiserror::Error;
use time::OffsetDateTime;

use crate::footers::{self, Footer, FooterError};
use crate::index::quarantine::{Cursor, QuarantineObject};
use crate::index::{Index, IndexError};
use crate::objects::{ObjectError, Objects};
use crate::session_keys::SessionKeys;

/// Objects of one page.
const OBJECTS_PER_PAGE: i64 = 32;
/// Footers that are fetched at once.
const FETCHES: usize = 8;

/// Names a record: its place in the log. Written `topic/partition/offset`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordId {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: u64,
}

impl fmt::Display for RecordId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.topic, self.partition, self.offset)
    }
}

/// A text names no record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("a record's id is TOPIC/PARTITION/OFFSET, as `clairvio quarantine list` shows it")]
pub struct RecordIdError;

impl FromStr for RecordId {
    type Err = RecordIdError;

    fn from_str(text: &str) -> Result<Self, RecordIdError> {
        // Kafka allows no slash in a topic's name.
        let mut parts = text.split('/');
        let (Some(topic), Some(partition), Some(offset), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(RecordIdError);
        };
        let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if topic.is_empty() || !number(partition) || !number(offset) {
            return Err(RecordIdError);
        }
        Ok(Self {
            topic: topic.to_owned(),
            partition: partition.parse().map_err(|_| RecordIdError)?,
            offset: offset.parse().map_err(|_| RecordIdError)?,
        })
    }
}

/// A record in quarantine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub id: RecordId,
    /// Why it could not be read.
    pub reason: QuarantineReason,
    /// Its key in the log; a longer one than any of ours is cut.
    pub record_key: Vec<u8>,
    /// Its bytes.
    pub len: u32,
    /// The object in which they lie for now.
    pub object: ObjectKey,
    /// Where in it they begin.
    pub at: u64,
    /// When it, or one beside it that came later, was set aside.
    pub set_aside_at: OffsetDateTime,
    /// When it was replayed.
    pub replayed_at: Option<OffsetDateTime>,
}

/// A shared object whose footer could not be read, kept whole in a quarantine object. It is no record, and nothing replays it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// The quarantine object.
    pub object: ObjectKey,
    /// Where in it the damaged one begins.
    pub at: u64,
    /// Its bytes.
    pub len: u32,
    /// When it, or one beside it that came later, was set aside.
    pub set_aside_at: OffsetDateTime,
}

/// Batches of one stream that could not be merged, kept as they were under the seal of their session. Nothing replays them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetAsideChunk {
    /// The quarantine object.
    pub object: ObjectKey,
    /// Whose they are.
    pub session: SessionKey,
    /// The stream.
    pub stream: u32,
    /// How many.
    pub batches: usize,
    /// Their bytes.
    pub bytes: u64,
    /// When they, or what came later beside them, were set aside.
    pub set_aside_at: OffsetDateTime,
}

/// Which records by what became of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// Those that were not replayed.
    #[default]
    Open,
    /// Those that were.
    Replayed,
    /// All.
    All,
}

/// Which records are wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct Filter {
    /// Those with this reason.
    pub reason: Option<QuarantineReason>,
    /// Those of objects in which something was set aside at this time or later: none that was is left out.
    pub since: Option<OffsetDateTime>,
    /// By what became of them.
    pub state: State,
}

impl Filter {
    fn wants(&self, entry: &Entry) -> bool {
        let is_of_state = match self.state {
            State::Open => entry.replayed_at.is_none(),
            State::Replayed => entry.replayed_at.is_some(),
            State::All => true,
        };
        is_of_state && self.reason.is_none_or(|reason| reason == entry.reason)
    }
}

/// A part of the list.
#[derive(Debug, Default)]
pub struct Page {
    /// Records, oldest objects first, in the log's order within each.
    pub entries: Vec<Entry>,
    /// Damaged objects; filters do not leave them out, `since` apart.
    pub damaged: Vec<Damaged>,
    /// Chunks of sessions; filters do not leave them out, `since` apart.
    pub chunks: Vec<SetAsideChunk>,
    /// Objects whose footer is corrupt, with why: what they hold cannot be told.
    pub corrupt: Vec<(ObjectKey, String)>,
    /// Objects that were looked into.
    pub objects: usize,
    /// Where to go on; `None` at the end.
    pub next: Option<Cursor>,
}

/// Why quarantine cannot be looked into.
#[derive(Debug, Error)]
pub enum QuarantineError {
    /// The index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The bucket.
    #[error("fetch {key}")]
    Object {
        /// Which object.
        key: ObjectKey,
        /// Why.
        source: ObjectError,
    },
    /// A footer cannot be opened.
    #[error("open footer of {key}")]
    Footer {
        /// Of which object.
        key: ObjectKey,
        /// Why.
        source: FooterError,
    },
    /// The record is not there.
    #[error("find record {0} in quarantine\n  hint: `clairvio quarantine list --all` shows all there are")]
    Missing(RecordId),
}

/// Quarantine, as the index and the bucket have it.
#[derive(Debug, Clone)]
pub struct Quarantine {
    index: Index,
    objects: Objects,
    keys: SessionKeys,
    pool: Pool,
}

impl Quarantine {
    /// What looks into it: the keys open footers, and no record.
    pub fn new(index: Index, objects: Objects, keys: SessionKeys, pool: Pool) -> Self {
        Self { index, objects, keys, pool }
    }

    /// A page of the list. Its objects are bounded, so a page may be empty and not be the last.
    pub async fn page(&self, filter: &Filter, after: Option<&Cursor>) -> Result<Page, QuarantineError> {
        let found = self.index.quarantine_objects(filter.since, after, OBJECTS_PER_PAGE).await?;
        let is_last = (found.len() as i64) < OBJECTS_PER_PAGE;
        let next = found.last().filter(|_| !is_last).map(QuarantineObject::cursor);
        let mut page = Page { objects: found.len(), next, ..Page::default() };
        let footers: Vec<Read> =
            stream::iter(&found).map(|object| self.read(object)).buffered(FETCHES).try_collect().await?;
        for (object, read) in found.iter().zip(footers) {
            match read {
                Read::Footer(footer) => add_entries(object, &footer, &mut page),
                Read::Corrupt(why) => page.corrupt.push((object.object.key, why)),
                Read::Gone => {}
            }
        }
        self.note_replayed(&mut page.entries).await?;
        page.entries.retain(|entry| filter.wants(entry));
        Ok(page)
    }

    /// All pages; `on_page` is told after each how many records and objects were found so far.
    pub async fn all(&self, filter: &Filter, mut on_page: impl FnMut(usize, usize)) -> Result<Page, QuarantineError> {
        let (mut all, mut seen) = (Page::default(), BTreeSet::new());
        loop {
            let page = self.page(filter, all.next.as_ref()).await?;
            // What was moved meanwhile comes once more.
            all.entries.extend(page.entries.into_iter().filter(|entry| seen.insert(entry.id.clone())));
            all.damaged.extend(page.damaged);
            all.chunks.extend(page.chunks);
            all.corrupt.extend(page.corrupt);
            all.objects += page.objects;
            all.next = page.next;
            on_page(all.entries.len(), all.objects);
            if all.next.is_none() {
                return Ok(all);
            }
        }
    }

    /// One record.
    pub async fn find(&self, id: &RecordId) -> Result<Entry, QuarantineError> {
        // A compactor may be moving it: then it is in another object by now.
        for _ in 0..2 {
            let mut was_moved = false;
            for object in self.index.quarantine_objects_of(id).await? {
                let mut page = Page::default();
                match self.read(&object).await? {
                    Read::Footer(footer) => add_entries(&object, &footer, &mut page),
                    Read::Corrupt(_) => {}
                    Read::Gone => was_moved = true,
                }
                page.entries.retain(|entry| entry.id == *id);
                self.note_replayed(&mut page.entries).await?;
                if let Some(entry) = page.entries.pop() {
                    return Ok(entry);
                }
            }
            if !was_moved {
                break;
            }
        }
        Err(QuarantineError::Missing(id.clone()))
    }

    /// A record's bytes, of the length that its footer says, as they were in the log.
    pub async fn bytes(&self, entry: &Entry) -> Result<Bytes, QuarantineError> {
        match self.objects.get_range(&entry.object, entry.at, u64::from(entry.len)).await {
            Ok(bytes) => Ok(bytes),
            // It was moved since.
            Err(ObjectError::Absent) => {
                let moved = self.find(&entry.id).await?;
                let range = self.objects.get_range(&moved.object, moved.at, u64::from(moved.len)).await;
                range.map_err(|source| QuarantineError::Object { key: moved.object, source })
            }
            Err(source) => Err(QuarantineError::Object { key: entry.object, source }),
        }
    }

    /// Notes that a record was replayed. After the broker's acknowledgement: a crash between the two makes a record replayed
    /// twice, never one that is taken for replayed and is not.
    pub async fn mark_replayed(&self, id: &RecordId) -> Result<(), QuarantineError> {
        Ok(self.index.mark_replayed(id).await?)
    }

    async fn read(&self, object: &QuarantineObject) -> Result<Read, QuarantineError> {
        let object = &object.object;
        let (key, at, len) = (object.key, object.footer.at, u64::from(object.footer.len));
        let region = match self.objects.get_range(&key, at, len).await {
            Ok(region) => region,
            Err(ObjectError::Absent) => return Ok(Read::Gone),
            Err(source) => return Err(QuarantineError::Object { key, source }),
        };
        match footers::open(&self.keys, &self.pool, object, region).await {
            Ok(Footer::Shared(footer)) => Ok(Read::Footer(footer)),
            Ok(Footer::Session(_)) => Ok(Read::Corrupt("it is a session object".to_owned())),
            Err(FooterError::Corrupt(error)) => Ok(Read::Corrupt(error.to_string())),
            Err(source) => Err(QuarantineError::Footer { key, source }),
        }
    }

    async fn note_replayed(&self, entries: &mut [Entry]) -> Result<(), QuarantineError> {
        if entries.is_empty() {
            return Ok(());
        }
        let ids: Vec<RecordId> = entries.iter().map(|entry| entry.id.clone()).collect();
        let replayed: BTreeMap<_, _> = self.index.replayed_among(&ids).await?.into_iter().collect();
        for entry in entries {
            entry.replayed_at = replayed.get(&entry.id).copied();
        }
        Ok(())
    }
}

enum Read {
    Footer(std::sync::Arc<shared_object::Footer>),
    Corrupt(String),
    /// The object was condemned and removed since its row was read: its records were moved.
    Gone,
}

/// What a footer lists, in the log's order.
fn add_entries(found: &QuarantineObject, footer: &shared_object::Footer, page: &mut Page) {
    let (object, set_aside_at) = (found.object.key, found.set_aside_at);
    let begin = page.entries.len();
    for record in &footer.quarantined {
        if record.is_damaged_object() {
            page.damaged.push(Damaged { object, at: record.at, len: record.len, set_aside_at });
            continue;
        }
        page.entries.push(Entry {
            id: RecordId { topic: found.topic.clone(), partition: footer.partition, offset: record.offset },
            reason: record.reason,
            record_key: record.record_key.clone(),
            len: record.len,
            object,
            at: record.at,
            set_aside_at,
            replayed_at: None,
        });
    }
    page.entries[begin..].sort_by_key(|entry| entry.id.offset);
    // In a shared object they are what everybody reads.
    if matches!(object, ObjectKey::Quarantine { .. }) {
        page.chunks.extend(footer.chunks.iter().map(|chunk| SetAsideChunk {
            object,
            session: chunk.key,
            stream: chunk.stream,
            batches: chunk.batches.len(),
            bytes: chunk.len(),
            set_aside_at,
        }));
    }
}

#[cfg(test)]
mod tests {
    use schemas::ObjectId;
    use schemas::shared_object::Quarantined;
    use sealing::keyring::KeyVersion;
    use uuid::Uuid;

    use super::*;
    use crate::index::{FooterAt, LiveObject};

    fn id(offset: u64) -> RecordId {
        RecordId { topic: "session-events".to_owned(), partition: 3, offset }
    }

    fn page_of(quarantined: Vec<Quarantined>) -> Page {
        let object = ObjectId(Uuid::from_u128(5));
        let found = QuarantineObject {
            object: LiveObject {
                key: ObjectKey::Quarantine { partition: 3, id: object },
                bytes: 100,
                footer: FooterAt { at: 60, len: 30 },
                key_version: Some(KeyVersion(1)),
            },
            topic: "session-events".to_owned(),
            set_aside_at: OffsetDateTime::UNIX_EPOCH,
        };
        let (chunks, partition) = (Vec::new(), 3);
        let footer = shared_object::Footer { object, partition, offset_first: 0, offset_next: 20, chunks, quarantined };
        let mut page = Page::default();
        add_entries(&found, &footer, &mut page);
        page
    }

    fn record(offset: u64, reason: QuarantineReason) -> Quarantined {
        Quarantined { offset, record_key: vec![9; 16], at: 5, len: 7, reason }
    }

    #[test]
    fn ids_read_back_and_nothing_else_is_one() {
        assert_eq!(id(12).to_string().parse(), Ok(id(12)));
        for text in ["", "t", "t/1", "t/1/2/3", "/1/2", "t/-1/2", "t/1/+2", "t/x/2", "t//2", "t/1/", "t/3000000000/1"] {
            assert_eq!(text.parse::<RecordId>(), Err(RecordIdError), "{text}");
        }
    }

    #[test]
    fn records_come_in_the_order_of_the_log_and_a_damaged_object_is_none() {
        let damaged = Quarantined { at: 12, ..Quarantined::damaged_object(40) };
        let page = page_of(vec![
            record(12, QuarantineReason::Key),
            damaged,
            // The first record of a partition, and what a stranger wrote without a key.
            Quarantined { record_key: Vec::new(), ..record(0, QuarantineReason::Header) },
        ]);
        assert_eq!(page.entries.iter().map(|entry| entry.id.clone()).collect::<Vec<_>>(), [id(0), id(12)]);
        assert_eq!(page.damaged.len(), 1, "its place in no log must not hide the record at offset 0");
        assert_eq!((page.damaged[0].at, page.damaged[0].len), (12, 40));
    }

    #[test]
    fn filters_go_by_reason_and_by_what_became_of_a_record() {
        let mut entries = page_of(vec![record(1, QuarantineReason::Key), record(2, QuarantineReason::Seal)]).entries;
        entries[1].replayed_at = Some(OffsetDateTime::UNIX_EPOCH);
        let wanted = |reason, state| {
            let filter = Filter { reason, since: None, state };
            let wanted = entries.iter().filter(|entry| filter.wants(entry));
            wanted.map(|entry| entry.id.offset).collect::<Vec<_>>()
        };
        assert_eq!(wanted(None, State::All), [1, 2]);
        assert_eq!(wanted(None, State::Open), [1]);
        assert_eq!(wanted(None, State::Replayed), [2]);
        assert_eq!(wanted(Some(QuarantineReason::Seal), State::Open), [0; 0]);
        assert_eq!(wanted(Some(QuarantineReason::Seal), State::All), [2]);
    }
}
