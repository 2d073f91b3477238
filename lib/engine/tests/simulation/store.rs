//! The models of the index, the bucket and the key store, with what must hold at each of their steps.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use engine::batching::{Flush, LastRecord};
use engine::compaction::JobId;
use schemas::SessionKey;
use schemas::session_object::Footer;
use schemas::shared_object::Chunk;

use crate::mutants::Mutant;

/// What was seen to be wrong, by the id of what should hold.
pub(crate) type Violation = String;

/// The number of an object, which is its name.
pub(crate) type ObjectNumber = u64;

/// How a record lies in an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored {
    Chunked,
    Copy,
    Quarantined,
}

/// One record in an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) uid: u64,
    pub(crate) offset: u64,
    pub(crate) session: Option<SessionKey>,
    pub(crate) stored: Stored,
}

/// The bytes of an object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Content {
    pub(crate) entries: Vec<Entry>,
    /// Chunks of a shared object, and the records in their frames.
    pub(crate) chunks: Vec<Chunk>,
    pub(crate) uids: Vec<Vec<u64>>,
    /// The footer of a session object, whose entries are its batches in order.
    pub(crate) footer: Option<Footer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ObjectKind {
    Shared,
    Session(SessionKey),
    Quarantine,
}

/// A job of a compactor's process.
pub(crate) type Owner = ((usize, u64), JobId);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ObjectState {
    Staged,
    Live,
    Condemned,
}

#[derive(Debug, Clone)]
pub(crate) struct ObjectRow {
    pub(crate) kind: ObjectKind,
    pub(crate) partition: i32,
    /// The first offset that a shared object covers.
    pub(crate) first: u64,
    pub(crate) bytes: u64,
    pub(crate) state: ObjectState,
    pub(crate) staged_ms: u64,
    pub(crate) condemned_ms: u64,
    /// By the database's clock, and by the world's.
    pub(crate) live_ms: u64,
    pub(crate) live_world_ms: u64,
    /// When it became live, in steps of the index.
    pub(crate) live_step: u64,
    /// Whose run it is in, and until when.
    pub(crate) lease: Option<(Owner, u64)>,
    /// What its row says of its bytes: the hash of the real one.
    pub(crate) content: Rc<Content>,
    /// When its staging was committed, in steps of the index.
    pub(crate) staged_step: u64,
}

impl ObjectRow {
    pub(crate) fn is_live(&self, kind: ObjectKind) -> bool {
        self.state == ObjectState::Live && self.kind == kind
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    pub(crate) next: u64,
    pub(crate) epoch: u64,
    pub(crate) last: Option<LastRecord>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct SessionRow {
    /// The step of its tombstone.
    pub(crate) deleted_step: Option<u64>,
    pub(crate) partitions: BTreeSet<i32>,
    pub(crate) end_seen: bool,
    pub(crate) is_final: bool,
    /// By the database's clock.
    pub(crate) activity_ms: u64,
}

/// What publishing wants.
#[derive(Debug, Clone)]
pub(crate) struct Publishing {
    pub(crate) flush: Flush,
    pub(crate) attempt: u32,
    pub(crate) object: Option<(ObjectNumber, Rc<Content>)>,
    pub(crate) gaps: Vec<(u64, u64)>,
    pub(crate) activity: Vec<SessionKey>,
}

/// Postgres.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) progress: BTreeMap<i32, Progress>,
    pub(crate) objects: BTreeMap<ObjectNumber, ObjectRow>,
    pub(crate) sessions: BTreeMap<SessionKey, SessionRow>,
    /// Rows of `partition_progress` that a transaction has locked whose end is open.
    pub(crate) locked: BTreeSet<i32>,
    /// And the objects that it makes live.
    pub(crate) locked_objects: BTreeSet<ObjectNumber>,
    /// Rows of sessions that a swap has locked.
    pub(crate) locked_sessions: BTreeSet<SessionKey>,
    pub(crate) step: u64,
}

impl Index {
    pub(crate) fn take_epoch(&mut self, partition: i32) -> Progress {
        let row = self.progress.entry(partition).or_default();
        row.epoch += 1;
        *row
    }

    /// B10: a name is staged once.
    pub(crate) fn stage(
        &mut self,
        object: Option<ObjectNumber>,
        partition: i32,
        first_seen: &[SessionKey],
        sessions: &[SessionKey],
        now_ms: u64,
    ) -> Result<Vec<SessionKey>, Violation> {
        self.step += 1;
        if let Some(number) = object {
            self.insert(number, ObjectKind::Shared, partition, now_ms)?;
        }
        for key in first_seen {
            self.sessions.entry(*key).or_default().partitions.insert(partition);
        }
        Ok(self.deleted_among(sessions))
    }

    /// B10, C4: a name is staged once.
    pub(crate) fn insert(
        &mut self,
        number: ObjectNumber,
        kind: ObjectKind,
        partition: i32,
        now_ms: u64,
    ) -> Result<(), Violation> {
        let row = ObjectRow {
            kind,
            partition,
            first: 0,
            bytes: 0,
            state: ObjectState::Staged,
            staged_ms: now_ms,
            condemned_ms: 0,
            live_ms: 0,
            live_world_ms: 0,
            live_step: 0,
            lease: None,
            content: Rc::default(),
            staged_step: self.step,
        };
        match self.objects.insert(number, row) {
            Some(_) => Err(format!("B10: object {number} was staged twice")),
            None => Ok(()),
        }
    }

    pub(crate) fn is_deleted(&self, key: &SessionKey) -> bool {
        self.sessions.get(key).is_some_and(|row| row.deleted_step.is_some())
    }

    /// Live objects of a session alone, in the order in which they became live.
    pub(crate) fn parts(&self, key: SessionKey) -> Vec<ObjectNumber> {
        let own = self.objects.iter().filter(|(_, row)| row.is_live(ObjectKind::Session(key)));
        let mut parts: Vec<(u64, ObjectNumber)> = own.map(|(number, row)| (row.live_ms, *number)).collect();
        parts.sort_unstable();
        parts.into_iter().map(|(_, number)| number).collect()
    }

    pub(crate) fn deleted_among(&self, sessions: &[SessionKey]) -> Vec<SessionKey> {
        sessions.iter().filter(|key| self.is_deleted(key)).copied().collect()
    }

    /// A tombstone; of a session that was never seen as well.
    pub(crate) fn delete(&mut self, key: SessionKey) {
        self.step += 1;
        let step = self.step;
        self.sessions.entry(key).or_default().deleted_step.get_or_insert(step);
    }

    /// Whether the swap would change a row.
    pub(crate) fn swaps(&self, publishing: &Publishing, mutant: Option<Mutant>) -> bool {
        let flush = &publishing.flush;
        let row = self.progress.get(&flush.partition).copied().unwrap_or_default();
        let offset_fits = row.next == flush.first || mutant == Some(Mutant::ProgressWithoutSwap);
        let epoch_fits = row.epoch == flush.epoch || mutant == Some(Mutant::NoEpochCheck);
        let object_fits = publishing.object.as_ref().is_none_or(|(number, _)| {
            let state = self.objects.get(number).map(|row| row.state);
            // The mutant's second try finds it live.
            state == Some(ObjectState::Staged)
                || (state == Some(ObjectState::Live) && mutant == Some(Mutant::ProgressWithoutSwap))
                || (state.is_some() && mutant == Some(Mutant::PublishesWhatIsCondemned))
        });
        offset_fits && epoch_fits && object_fits
    }

    /// The commit of a publishing whose swap fits.
    pub(crate) fn publish(
        &mut self,
        publishing: &Publishing,
        bucket: &Bucket,
        (now_ms, world_ms): (u64, u64),
    ) -> Result<(), Violation> {
        let flush = &publishing.flush;
        let row = self.progress.entry(flush.partition).or_default();
        if flush.epoch != row.epoch {
            return Err(format!("B5: epoch {} changed a row of epoch {}", flush.epoch, row.epoch));
        }
        if flush.first != row.next || flush.next < row.next {
            let (first, next) = (flush.first, flush.next);
            return Err(format!("B2: {first}..{next} was published where {} comes next", row.next));
        }
        row.next = flush.next;
        row.last = flush.last;
        if !publishing.activity.iter().all(|key| flush.sessions.binary_search(key).is_ok()) {
            return Err("B12: activity of a session that the flush does not have".into());
        }
        for key in &publishing.activity {
            self.sessions.entry(*key).and_modify(|row| row.activity_ms = row.activity_ms.max(now_ms));
        }
        if let Some((number, content)) = &publishing.object {
            if bucket.get(*number) != Some(content) {
                return Err(format!("B3: object {number} became live without its bytes"));
            }
            let object = self.objects.get_mut(number).ok_or("B3: a live object without a row")?;
            (object.first, object.bytes) = (flush.first, flush.records.iter().map(|record| record.bytes).sum());
            self.turn_live(*number, content, (now_ms, world_ms));
        }
        Ok(())
    }

    pub(crate) fn turn_live(&mut self, number: ObjectNumber, content: &Rc<Content>, (now_ms, world_ms): (u64, u64)) {
        self.step += 1;
        if let Some(row) = self.objects.get_mut(&number) {
            row.state = ObjectState::Live;
            row.content = Rc::clone(content);
            (row.live_ms, row.live_world_ms, row.live_step) = (now_ms, world_ms, self.step);
        }
    }
}

/// S3.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    objects: BTreeMap<ObjectNumber, Rc<Content>>,
    /// Names by the attempt that used them.
    names: BTreeMap<ObjectNumber, u64>,
}

impl Bucket {
    pub(crate) fn get(&self, number: ObjectNumber) -> Option<&Rc<Content>> {
        self.objects.get(&number)
    }

    /// B10: a name is put by one attempt only, which may arrive more than once.
    pub(crate) fn put(&mut self, number: ObjectNumber, attempt: u64, content: Rc<Content>) -> Result<(), Violation> {
        if *self.names.entry(number).or_insert(attempt) != attempt {
            return Err(format!("B10: object {number} was put by two attempts"));
        }
        self.objects.insert(number, content);
        Ok(())
    }

    pub(crate) fn delete(&mut self, number: ObjectNumber) {
        self.objects.remove(&number);
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = ObjectNumber> {
        self.objects.keys().copied()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyRow {
    Known,
    Shredded,
}

/// The key store, and whether the keyring opens what it has.
#[derive(Debug, Default)]
pub(crate) struct KeyStore {
    rows: BTreeMap<SessionKey, KeyRow>,
    /// Sessions whose key does not open for now.
    pub(crate) closed: BTreeSet<SessionKey>,
    /// And those that were such at some time.
    pub(crate) were_closed: BTreeSet<SessionKey>,
}

impl KeyStore {
    /// Inserts what is absent. A shredded key never comes back.
    pub(crate) fn insert(&mut self, key: SessionKey, mutant: Option<Mutant>) -> Result<(), Violation> {
        let before = self.rows.get(&key).copied();
        if before.is_none() || mutant == Some(Mutant::LateKeyOverwrites) {
            self.rows.insert(key, KeyRow::Known);
        }
        if before == Some(KeyRow::Shredded) && self.rows.get(&key) != Some(&KeyRow::Shredded) {
            return Err("B8: a key that came late brought a shredded one back".into());
        }
        Ok(())
    }

    pub(crate) fn shred(&mut self, key: SessionKey) {
        self.rows.insert(key, KeyRow::Shredded);
    }

    pub(crate) fn get(&self, key: &SessionKey) -> Option<KeyRow> {
        self.rows.get(key).copied()
    }
}
