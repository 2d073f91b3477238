//! The models of the index, the bucket and the key store, with what must hold at each of their steps.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use engine::batching::{Flush, LastRecord};
use engine::compaction::JobId;
use schemas::session_object::Footer;
use schemas::shared_object::Chunk;
use schemas::{SessionKey, WorkspaceId};

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

impl Content {
    /// Whether bytes of a session are in it.
    pub(crate) fn holds(&self, key: &SessionKey) -> bool {
        self.entries.iter().any(|entry| entry.session == Some(*key))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ObjectKind {
    Shared,
    Session(SessionKey),
    /// Chunks of a session, or what is nobody's.
    Quarantine(Option<SessionKey>),
    /// A part of an archive.
    Export(ExportNumber),
}

impl ObjectKind {
    /// Whose prefix it lies below.
    pub(crate) fn owner(self) -> Option<SessionKey> {
        match self {
            Self::Session(key) | Self::Quarantine(Some(key)) => Some(key),
            Self::Shared | Self::Quarantine(None) | Self::Export(_) => None,
        }
    }
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
    /// When its staging asked for tombstones, in steps of the index.
    pub(crate) staged_step: u64,
    /// The bucket said that it is deleted.
    pub(crate) is_deleted: bool,
}

impl ObjectRow {
    /// Whoever put it was answered, and puts it no more.
    pub(crate) fn was_live(&self) -> bool {
        self.live_step > 0
    }

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

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) enum SessionState {
    #[default]
    Live,
    Tombstoned,
    Shredded,
    Erased,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct SessionRow {
    pub(crate) state: SessionState,
    /// The step of its tombstone.
    pub(crate) deleted_step: Option<u64>,
    pub(crate) link: Option<LinkNumber>,
    /// By the log's clock.
    pub(crate) began_ms: u64,
    /// The plan's window then, for the mutant that keeps to it.
    pub(crate) window_at_start_ms: u64,
    pub(crate) partitions: BTreeSet<i32>,
    pub(crate) end_seen: bool,
    pub(crate) is_final: bool,
    /// By the database's clock.
    pub(crate) activity_ms: u64,
}

pub(crate) type LinkNumber = usize;
pub(crate) type DeletionNumber = u64;

#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) workspace: WorkspaceId,
    pub(crate) reference: usize,
    /// Whether the index has a row of it: one of a backup that is older has none.
    pub(crate) is_known: bool,
    /// Sessions that began no later are deleted, by whom.
    pub(crate) mark: Option<(u64, DeletionNumber)>,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Workspace {
    pub(crate) window_ms: u64,
    /// A longer window, and until when it holds.
    pub(crate) kept: Option<(u64, u64)>,
    /// All its sessions go then.
    pub(crate) terminates_ms: Option<u64>,
    /// The same, for the mutant that forgets that it was cancelled.
    pub(crate) first_terminates_ms: Option<u64>,
}

impl Workspace {
    pub(crate) fn kept_for_ms(&self, now_ms: u64) -> u64 {
        let kept = self.kept.filter(|(_, until)| *until > now_ms);
        kept.map_or(self.window_ms, |(window_ms, _)| window_ms.max(self.window_ms))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    ByHand,
    ByReference,
    Expired,
    Withdrawn,
    Terminated,
    Operator,
}

#[derive(Debug, Clone)]
pub(crate) struct DeletionRow {
    pub(crate) workspace: WorkspaceId,
    pub(crate) cause: Cause,
    pub(crate) is_finding: bool,
    pub(crate) is_erased: bool,
    pub(crate) is_receipted: bool,
}

/// A session of a deletion.
#[derive(Debug, Clone, Default)]
pub(crate) struct LeavingRow {
    /// By the database's clock.
    pub(crate) shredded_ms: Option<u64>,
    pub(crate) is_journalled: bool,
    pub(crate) barrier: Option<u64>,
    pub(crate) blockers: Option<Vec<ObjectNumber>>,
    pub(crate) is_erased: bool,
}

pub(crate) type ExportNumber = u64;

#[derive(Debug, Clone)]
pub(crate) struct ExportRow {
    pub(crate) workspace: WorkspaceId,
    /// One of its references, unless it is of all that the workspace has.
    pub(crate) reference: Option<usize>,
    /// By the database's clock, as all times here.
    pub(crate) expires_ms: u64,
    /// Sessions that it has anything of, or is about to, and whether their last bytes stand in it.
    pub(crate) sessions: BTreeMap<SessionKey, bool>,
    /// Its parts by number, from 1.
    pub(crate) parts: BTreeMap<usize, ObjectNumber>,
    /// What stands, whoever dies: so many parts, with so many sessions, up to this one.
    pub(crate) stands: usize,
    pub(crate) sessions_stand: usize,
    pub(crate) after: Option<SessionKey>,
    /// Who makes it, and until when.
    pub(crate) lease: Option<((usize, u64), u64)>,
    pub(crate) worked_ms: u64,
    pub(crate) is_ready: bool,
    pub(crate) is_over: bool,
    pub(crate) shredded_ms: Option<u64>,
    pub(crate) gone_ms: Option<u64>,
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
    /// And those of exports that a publishing has.
    pub(crate) locked_exports: BTreeSet<ExportNumber>,
    /// And links and deletions that a staging has.
    pub(crate) locked_links: BTreeSet<LinkNumber>,
    pub(crate) locked_deletions: BTreeSet<DeletionNumber>,
    pub(crate) step: u64,
    /// The last transaction's number, and those of transactions that have not ended.
    pub(crate) transaction: u64,
    pub(crate) open: BTreeSet<u64>,
    pub(crate) links: Vec<Link>,
    pub(crate) workspaces: BTreeMap<WorkspaceId, Workspace>,
    pub(crate) deletions: BTreeMap<DeletionNumber, DeletionRow>,
    pub(crate) leaving: BTreeMap<(DeletionNumber, SessionKey), LeavingRow>,
    pub(crate) exports: BTreeMap<ExportNumber, ExportRow>,
    /// What every object's path says, also of those whose rows are gone.
    pub(crate) kinds: BTreeMap<ObjectNumber, ObjectKind>,
}

impl Index {
    pub(crate) fn take_epoch(&mut self, partition: i32) -> Progress {
        let row = self.progress.entry(partition).or_default();
        row.epoch += 1;
        *row
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
            is_deleted: false,
        };
        self.kinds.insert(number, kind);
        match self.objects.insert(number, row) {
            Some(_) => Err(format!("B10: object {number} was staged twice")),
            None => Ok(()),
        }
    }

    pub(crate) fn is_deleted(&self, key: &SessionKey) -> bool {
        self.sessions.get(key).is_some_and(|row| row.deleted_step.is_some())
    }

    /// Whether who deletes a session has to wait for its row, or for that of an export that it ends.
    pub(crate) fn is_session_locked(&self, key: &SessionKey) -> bool {
        let has = |export: &ExportNumber| self.exports.get(export).is_some_and(|row| row.sessions.contains_key(key));
        self.locked_sessions.contains(key) || self.locked_exports.iter().any(has)
    }

    /// Ends the exports that have anything of a session.
    pub(crate) fn end_exports_of(&mut self, key: &SessionKey) -> u64 {
        let mut ended = 0;
        for row in self.exports.values_mut().filter(|row| !row.is_over && row.sessions.contains_key(key)) {
            row.is_over = true;
            ended += 1;
        }
        ended
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
    pub(crate) fn tombstone(&mut self, key: SessionKey) {
        self.step += 1;
        let step = self.step;
        let row = self.sessions.entry(key).or_default();
        row.state = row.state.max(SessionState::Tombstoned);
        row.deleted_step.get_or_insert(step);
    }

    /// R1.
    pub(crate) fn lead_on(&mut self, key: &SessionKey, state: SessionState) -> Result<(), Violation> {
        let Some(row) = self.sessions.get_mut(key) else { return Err("R1: a deleted session has no row".into()) };
        if state < row.state {
            return Err(format!("R1: a session that was {:?} became {state:?}", row.state));
        }
        row.state = state;
        Ok(())
    }

    pub(crate) fn next_transaction(&mut self) -> u64 {
        self.transaction += 1;
        self.transaction
    }

    /// The deletion that a session stands in.
    pub(crate) fn deletion_of(&self, key: &SessionKey) -> Option<DeletionNumber> {
        self.leaving.keys().find(|(_, other)| other == key).map(|(deletion, _)| *deletion)
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

/// All that lies under a name.
#[derive(Debug, Default)]
struct Lying {
    current: Option<Rc<Content>>,
    /// Versions that are not current.
    old: Vec<Rc<Content>>,
    markers: u32,
    /// Parts of uploads that nobody ends, and when they were begun.
    parts: Vec<(Rc<Content>, u64)>,
}

impl Lying {
    fn is_nothing(&self) -> bool {
        self.current.is_none() && self.old.is_empty() && self.markers == 0 && self.parts.is_empty()
    }

    fn contents(&self) -> impl Iterator<Item = &Rc<Content>> {
        self.current.iter().chain(&self.old).chain(self.parts.iter().map(|(content, _)| content))
    }
}

/// An entry of the journal: what a restored index has to learn of.
#[derive(Debug, Clone)]
pub(crate) enum Journalled {
    Session { deletion: DeletionNumber, cause: Cause, key: SessionKey },
    Mark { deletion: DeletionNumber, workspace: WorkspaceId, links: Vec<LinkNumber>, begun_before_ms: u64 },
}

/// S3.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    keeps_versions: bool,
    objects: BTreeMap<ObjectNumber, Lying>,
    /// Names by the attempt that used them.
    names: BTreeMap<ObjectNumber, u64>,
    /// In the order in which it was written. Removed by nobody.
    pub(crate) journal: Vec<Journalled>,
    pub(crate) receipts: BTreeMap<DeletionNumber, BTreeSet<SessionKey>>,
}

impl Bucket {
    pub(crate) fn new(keeps_versions: bool) -> Self {
        Self { keeps_versions, ..Self::default() }
    }

    pub(crate) fn get(&self, number: ObjectNumber) -> Option<&Rc<Content>> {
        self.objects.get(&number)?.current.as_ref()
    }

    /// B10: a name is put by one attempt only, which may arrive more than once.
    pub(crate) fn put(&mut self, number: ObjectNumber, attempt: u64, content: Rc<Content>) -> Result<(), Violation> {
        if *self.names.entry(number).or_insert(attempt) != attempt {
            return Err(format!("B10: object {number} was put by two attempts"));
        }
        let lying = self.objects.entry(number).or_default();
        let before = lying.current.replace(content);
        lying.old.extend(before.filter(|_| self.keeps_versions));
        Ok(())
    }

    /// An upload in parts is begun, and ended by nobody.
    pub(crate) fn put_part(&mut self, number: ObjectNumber, content: Rc<Content>, now_ms: u64) {
        self.objects.entry(number).or_default().parts.push((content, now_ms));
    }

    /// By key alone: where versions are kept nothing goes.
    pub(crate) fn hide(&mut self, number: ObjectNumber) {
        if !self.keeps_versions {
            return self.delete(number);
        }
        if let Some(lying) = self.objects.get_mut(&number) {
            lying.old.extend(lying.current.take());
            lying.markers += 1;
        }
    }

    /// All versions, and what marks them as deleted.
    pub(crate) fn delete(&mut self, number: ObjectNumber) {
        let Some(lying) = self.objects.get_mut(&number) else { return };
        (lying.current, lying.markers) = (None, 0);
        lying.old.clear();
        self.forget_nothing(number);
    }

    pub(crate) fn abort(&mut self, number: ObjectNumber) {
        let Some(lying) = self.objects.get_mut(&number) else { return };
        lying.parts.clear();
        self.forget_nothing(number);
    }

    fn forget_nothing(&mut self, number: ObjectNumber) {
        if self.objects.get(&number).is_some_and(Lying::is_nothing) {
            self.objects.remove(&number);
        }
    }

    /// What a listing of versions shows.
    pub(crate) fn lies(&self, number: ObjectNumber) -> bool {
        let lying = self.objects.get(&number);
        lying.is_some_and(|lying| lying.current.is_some() || !lying.old.is_empty() || lying.markers > 0)
    }

    pub(crate) fn has_parts(&self, number: ObjectNumber) -> bool {
        self.objects.get(&number).is_some_and(|lying| !lying.parts.is_empty())
    }

    /// Names with parts of uploads that were begun before.
    pub(crate) fn parts_before(&self, before_ms: u64) -> impl Iterator<Item = ObjectNumber> {
        let is_old = move |lying: &Lying| lying.parts.iter().any(|(_, begun_ms)| *begun_ms < before_ms);
        self.objects.iter().filter(move |(_, lying)| is_old(lying)).map(|(number, _)| *number)
    }

    /// Names under which bytes of a session lie, whatever lists show.
    pub(crate) fn holding(&self, key: &SessionKey) -> impl Iterator<Item = ObjectNumber> {
        let holds = |lying: &Lying| lying.contents().any(|content| content.holds(key));
        self.objects.iter().filter(move |(_, lying)| holds(lying)).map(|(number, _)| *number)
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
    /// When a key was destroyed first.
    pub(crate) shredded_ms: BTreeMap<SessionKey, u64>,
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

    pub(crate) fn shred(&mut self, key: SessionKey, now_ms: u64) {
        self.rows.insert(key, KeyRow::Shredded);
        self.shredded_ms.entry(key).or_insert(now_ms);
    }

    /// A backup had the key still.
    pub(crate) fn restore(&mut self, key: SessionKey) {
        self.rows.insert(key, KeyRow::Known);
    }

    pub(crate) fn get(&self, key: &SessionKey) -> Option<KeyRow> {
        self.rows.get(key).copied()
    }
}
