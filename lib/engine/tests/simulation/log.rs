//! The model of Kafka: partitions of records, append only; retention takes records from their beginning.

use std::collections::BTreeMap;

use engine::batching::{LogSpan, RecordKind};
use schemas::{SessionKey, StreamSeq};

/// What a record is, for the ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    /// Different for each append; its fingerprint as well.
    pub(crate) uid: u64,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    pub(crate) kind: RecordKind,
}

/// One life of a partition: from when its topic was made until it was deleted.
#[derive(Debug, Default)]
struct Generation {
    /// All that was ever appended, by offset.
    records: Vec<Record>,
    /// The first offset that is still there.
    first: u64,
}

impl Generation {
    fn next(&self) -> u64 {
        self.records.len() as u64
    }
}

/// A topic.
#[derive(Debug, Default)]
pub(crate) struct Log {
    partitions: BTreeMap<i32, Vec<Generation>>,
    /// All records, by uid less one.
    by_uid: Vec<Record>,
}

/// What a reader finds at an offset.
pub(crate) enum Fetched {
    Record(Record),
    /// Nothing yet.
    End,
    /// There is no such offset, or not any more.
    OutOfRange,
}

impl Log {
    pub(crate) fn partitions(&self) -> Vec<i32> {
        self.partitions.keys().copied().collect()
    }

    /// Adds partitions up to this many.
    pub(crate) fn grow(&mut self, count: i32) {
        for partition in 0..count {
            self.partitions.entry(partition).or_insert_with(|| vec![Generation::default()]);
        }
    }

    fn now(&self, partition: i32) -> Option<&Generation> {
        self.partitions.get(&partition)?.last()
    }

    /// The life that a partition is in.
    pub(crate) fn generation(&self, partition: i32) -> usize {
        self.partitions.get(&partition).map_or(0, |lives| lives.len() - 1)
    }

    pub(crate) fn append(&mut self, partition: i32, bytes: u64, kind: RecordKind) -> Record {
        let uid = self.by_uid.len() as u64 + 1;
        let lives = self.partitions.entry(partition).or_insert_with(|| vec![Generation::default()]);
        let now = lives.last_mut().expect("a partition has a life");
        let record = Record { uid, offset: now.next(), bytes, kind };
        now.records.push(record);
        self.by_uid.push(record);
        record
    }

    /// The batch that a record holds.
    pub(crate) fn batch(&self, uid: u64) -> Option<(SessionKey, StreamSeq, u64)> {
        let record = self.by_uid.get((uid as usize).checked_sub(1)?)?;
        match record.kind {
            RecordKind::Batch { key, place, content } => Some((key, place, content)),
            _ => None,
        }
    }

    pub(crate) fn span(&self, partition: i32) -> LogSpan {
        self.now(partition).map_or(LogSpan { first: 0, next: 0 }, |now| LogSpan { first: now.first, next: now.next() })
    }

    pub(crate) fn fetch(&self, partition: i32, offset: u64) -> Fetched {
        let span = self.span(partition);
        if offset < span.first || offset > span.next {
            return Fetched::OutOfRange;
        }
        match self.now(partition).and_then(|now| now.records.get(offset as usize)) {
            Some(record) => Fetched::Record(*record),
            None => Fetched::End,
        }
    }

    /// The record that an offset held in a life, gone or not.
    pub(crate) fn ever(&self, partition: i32, generation: usize, offset: u64) -> Option<Record> {
        self.partitions.get(&partition)?.get(generation)?.records.get(offset as usize).copied()
    }

    /// Records of all lives of all partitions.
    pub(crate) fn all(&self) -> impl Iterator<Item = (i32, usize, &Record)> {
        self.partitions.iter().flat_map(|(partition, lives)| {
            lives.iter().enumerate().flat_map(move |(life, generation)| {
                generation.records.iter().map(move |record| (*partition, life, record))
            })
        })
    }

    /// Retention: nothing before `first` is there any more.
    pub(crate) fn trim(&mut self, partition: i32, first: u64) {
        if let Some(now) = self.partitions.get_mut(&partition).and_then(|lives| lives.last_mut()) {
            now.first = now.first.max(first.min(now.next()));
        }
    }

    /// The partition's topic is deleted and made anew.
    pub(crate) fn recreate(&mut self, partition: i32) {
        if let Some(lives) = self.partitions.get_mut(&partition) {
            lives.push(Generation::default());
        }
    }
}
