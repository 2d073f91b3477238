//! Why sessions are deleted: those who ask for it, links and plans; what a restored backup does not know; and what must hold of it all.

use super::*;
use crate::store::{
    Cause, DeletionNumber, DeletionRow, Journalled, LeavingRow, Link, LinkNumber, SessionRow, SessionState, Workspace,
};

/// Two workspaces, each with two references of two links.
const WORKSPACES: usize = 2;
const LINKS: usize = 8;
/// A window that no run sees the end of.
const WINDOW_LONG_MS: u64 = 10_000_000;
/// After a shorter plan the longer one holds for so long.
const PLAN_GRACE_MS: u64 = 1_500;

pub(crate) const LEAST_KEY: SessionKey =
    SessionKey { workspace: WorkspaceId(Uuid::nil()), session: SessionId(Uuid::nil()) };

/// What somebody asks for, again and again until it is answered.
#[derive(Debug, Clone)]
pub(crate) enum Ask {
    Sessions(Cause, Vec<SessionKey>),
    /// All sessions of a workspace's reference.
    Reference(WorkspaceId, usize),
    /// The same, once it has its deletion: sessions are found until none is left.
    Find(DeletionNumber),
    /// The mutant's second step.
    Mark(DeletionNumber, Vec<LinkNumber>),
    Terminate(WorkspaceId),
    CancelTermination(WorkspaceId),
    Plan(WorkspaceId, u64),
}

/// What a batcher's staging writes when it is committed.
#[derive(Debug, Clone)]
pub(crate) struct Staging {
    pub(crate) transaction: u64,
    pub(crate) object: Option<ObjectNumber>,
    pub(crate) partition: i32,
    pub(crate) first_seen: Vec<SessionKey>,
    /// New sessions that their links' deletions cover.
    pub(crate) late: Vec<(DeletionNumber, SessionKey)>,
    /// When it asked for tombstones.
    pub(crate) step: u64,
    pub(crate) staged_ms: u64,
    /// What its process is told when it was committed, and when not.
    pub(crate) answer: Option<(Input, Input)>,
}

/// The index as it was, as far as deletions change it.
#[derive(Debug)]
pub(crate) struct Backup {
    sessions: BTreeMap<SessionKey, (SessionState, Option<u64>)>,
    deletions: BTreeMap<DeletionNumber, DeletionRow>,
    leaving: BTreeMap<(DeletionNumber, SessionKey), LeavingRow>,
    marks: Vec<Option<(u64, DeletionNumber)>>,
    /// Links that were not used: they may have been made since.
    unused: BTreeSet<LinkNumber>,
    exports: export::Backup,
    /// Keys that were there, unless the key store is never restored.
    keys: Option<BTreeSet<SessionKey>>,
}

/// A link whose sessions were asked for.
#[derive(Debug)]
struct Referenced {
    link: LinkNumber,
    /// By the world's clock, and by the index's, which may be ahead.
    world_ms: u64,
    clock_ms: u64,
}

/// The checker's own knowledge.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    /// Sessions that were asked for by name.
    asked: BTreeSet<SessionKey>,
    referenced: Vec<Referenced>,
    /// All that was ever tombstoned.
    gone: BTreeSet<SessionKey>,
    pub(crate) erased: BTreeSet<SessionKey>,
    /// Records in quarantine objects that an operator discarded.
    pub(crate) discarded: BTreeSet<u64>,
}

fn workspace(number: usize) -> WorkspaceId {
    WorkspaceId(Uuid::from_u128(number as u128 % WORKSPACES as u128 + 1))
}

pub(crate) fn other_workspace(of: WorkspaceId) -> WorkspaceId {
    workspace(of.0.as_u128() as usize)
}

/// The link that begins a session.
fn link_of(key: &SessionKey) -> LinkNumber {
    (key.session.0.as_u128() * 5 / 2 % LINKS as u128) as usize
}

/// The session that begins as this one, whether it has or has not.
pub(crate) fn key_of(number: usize) -> SessionKey {
    let session = SessionId(Uuid::from_u128(number as u128));
    let link = link_of(&SessionKey { session, ..LEAST_KEY });
    SessionKey { workspace: workspace(link), session }
}

pub(crate) fn links() -> Vec<Link> {
    let link = |number| Link { workspace: workspace(number), reference: number / 4, is_known: true, mark: None };
    (0..LINKS).map(link).collect()
}

fn window_ms(rng: &mut Rng) -> u64 {
    if rng.u32(0..10) < 7 { WINDOW_LONG_MS } else { rng.u64(1_500..6_000) }
}

pub(crate) fn workspaces(rng: &mut Rng) -> BTreeMap<WorkspaceId, Workspace> {
    let row = |rng: &mut Rng| Workspace { window_ms: window_ms(rng), ..Workspace::default() };
    (0..WORKSPACES).map(|number| (workspace(number), row(rng))).collect()
}

impl World {
    // Those who ask.

    pub(super) fn ask_deletion(&mut self) {
        let begun = self.ledger.sessions.len();
        if begun == 0 {
            return;
        }
        let (any, next) = (self.rng.usize(1..=begun), begun + self.rng.usize(1..4));
        let (one, workspace) = (self.rng.usize(0..LINKS), workspace(self.rng.usize(0..WORKSPACES)));
        let ask = match self.rng.u32(0..100) {
            0..48 => Ask::Sessions(Cause::ByHand, vec![key_of(any)]),
            // It may begin yet.
            48..58 => Ask::Sessions(Cause::ByHand, vec![key_of(next)]),
            // The caller has no such session; another workspace does.
            58..63 => {
                let key = key_of(any);
                Ask::Sessions(Cause::ByHand, vec![SessionKey { workspace: other_workspace(key.workspace), ..key }])
            }
            63..73 => Ask::Sessions(Cause::Withdrawn, vec![key_of(self.rng.usize(1..=next))]),
            73..77 => {
                let keys: BTreeSet<SessionKey> = (0..4).map(|_| key_of(self.rng.usize(1..=begun))).collect();
                Ask::Sessions(Cause::Operator, keys.into_iter().collect())
            }
            77..89 => Ask::Reference(workspace, one / 3),
            89..92 => {
                if self.rng.bool() {
                    let wait = self.rng.u64(1..1_500);
                    self.after(wait, Event::Ask(Ask::CancelTermination(workspace)));
                }
                Ask::Terminate(workspace)
            }
            _ => Ask::Plan(workspace, window_ms(&mut self.rng)),
        };
        self.after(0, Event::Ask(ask));
    }

    pub(super) fn ask(&mut self, ask: Ask) -> Result<(), Violation> {
        if self.is_ask_locked(&ask) {
            self.after(5, Event::Ask(ask));
            return Ok(());
        }
        let wait = self.rng.u64(1..400);
        if self.chance(self.faults.failing) {
            self.happened.failed += 1;
            self.after(wait, Event::Ask(ask));
            return Ok(());
        }
        if self.chance(self.faults.answer_lost) && !matches!(ask, Ask::Find(_)) {
            self.happened.asked_again += 1;
            self.after(wait, Event::Ask(ask.clone()));
        }
        match ask {
            Ask::Sessions(cause, keys) => self.delete_sessions(cause, &keys),
            Ask::Reference(workspace, reference) => self.delete_reference(workspace, reference),
            Ask::Find(deletion) => {
                self.find_deleted(deletion)?;
                if self.index.deletions.get(&deletion).is_some_and(|row| row.is_finding) {
                    self.find_on(deletion);
                }
                Ok(())
            }
            Ask::Mark(deletion, links) => {
                self.mark_links(deletion, &links);
                Ok(())
            }
            Ask::Terminate(workspace) => {
                let at = self.database_ms() + self.rng.u64(200..1_500);
                let row = self.index.workspaces.entry(workspace).or_default();
                row.terminates_ms.get_or_insert(at);
                row.first_terminates_ms.get_or_insert(at);
                Ok(())
            }
            Ask::CancelTermination(workspace) => {
                let now_ms = self.database_ms();
                let row = self.index.workspaces.entry(workspace).or_default();
                if row.terminates_ms.take_if(|at| *at > now_ms).is_some() {
                    self.happened.terminations_cancelled += 1;
                }
                Ok(())
            }
            Ask::Plan(workspace, window_ms) => {
                let now_ms = self.database_ms();
                let row = self.index.workspaces.entry(workspace).or_default();
                let kept_for_ms = row.kept_for_ms(now_ms);
                if window_ms < kept_for_ms {
                    row.kept = Some((kept_for_ms, now_ms + PLAN_GRACE_MS));
                    self.happened.plans_shortened += 1;
                }
                row.window_ms = window_ms;
                Ok(())
            }
        }
    }

    fn is_ask_locked(&self, ask: &Ask) -> bool {
        let index = &self.index;
        let is_session = |key: &SessionKey| index.is_session_locked(key);
        match ask {
            Ask::Sessions(_, keys) => keys.iter().any(is_session),
            Ask::Reference(workspace, reference) => {
                let links = self.links_of(*workspace, *reference);
                let is_locked = |link: &LinkNumber| {
                    let mark = index.links[*link].mark;
                    let deletion = mark.is_some_and(|(_, deletion)| index.locked_deletions.contains(&deletion));
                    index.locked_links.contains(link) || deletion
                };
                links.iter().any(is_locked)
            }
            Ask::Find(deletion) => {
                index.locked_deletions.contains(deletion) || self.sessions_marked(*deletion).iter().any(is_session)
            }
            Ask::Mark(_, links) => links.iter().any(|link| index.locked_links.contains(link)),
            Ask::Terminate(_) | Ask::CancelTermination(_) | Ask::Plan(..) => false,
        }
    }

    // Deletions.

    /// Those that are deleted already stand in their deletions. Unknown ones get a tombstone (R8).
    fn delete_sessions(&mut self, cause: Cause, keys: &[SessionKey]) -> Result<(), Violation> {
        self.truth.asked.extend(keys);
        let mut new = keys.to_vec();
        if self.mutant != Some(Mutant::DeletedTwice) {
            new.retain(|key| self.index.deletion_of(key).is_none());
        }
        let is_known = |key: &SessionKey| self.index.sessions.contains_key(key);
        self.happened.unknown_deleted += new.iter().filter(|key| !is_known(key)).count() as u64;
        if self.mutant == Some(Mutant::UnknownLeaveNothing) {
            new.retain(is_known);
        }
        for of_workspace in new.chunk_by(|one, other| one.workspace == other.workspace) {
            self.begin_deletion(cause, of_workspace)?;
        }
        Ok(())
    }

    pub(super) fn begin_deletion(&mut self, cause: Cause, keys: &[SessionKey]) -> Result<(), Violation> {
        let Some(first) = keys.first() else { return Ok(()) };
        let deletion = self.insert_deletion(first.workspace, cause, false);
        self.add_to_deletion(deletion, keys)
    }

    fn insert_deletion(&mut self, workspace: WorkspaceId, cause: Cause, is_finding: bool) -> DeletionNumber {
        self.next_deletion += 1;
        let row = DeletionRow { workspace, cause, is_finding, is_erased: false, is_receipted: false };
        self.index.deletions.insert(self.next_deletion, row);
        self.next_deletion
    }

    pub(super) fn add_to_deletion(&mut self, deletion: DeletionNumber, keys: &[SessionKey]) -> Result<(), Violation> {
        let Some(row) = self.index.deletions.get(&deletion).cloned() else { return Ok(()) };
        for key in keys {
            if key.workspace != row.workspace {
                return Err("R9: a session of another workspace came to a deletion".into());
            }
            self.check_cause(row.cause, key)?;
            self.index.leaving.entry((deletion, *key)).or_default();
            self.index.tombstone(*key);
            if self.truth.gone.insert(*key) {
                self.happened.deletions += 1;
                self.exported.deleted_ms.insert(*key, self.now_ms);
            }
            if self.mutant != Some(Mutant::TombstoneEndsNoExport) {
                self.happened.exports_ended += self.index.end_exports_of(key);
            }
        }
        Ok(())
    }

    /// R5, R6, R7: nothing that should stay goes.
    fn check_cause(&self, cause: Cause, key: &SessionKey) -> Result<(), Violation> {
        let now_ms = self.database_ms();
        let workspace = &self.index.workspaces[&key.workspace];
        let row = self.index.sessions.get(key).cloned().unwrap_or_default();
        let (holds, rule) = match cause {
            Cause::ByHand | Cause::Withdrawn | Cause::Operator => (self.truth.asked.contains(key), "R9"),
            Cause::ByReference => {
                let covers = |asked: &Referenced| row.link == Some(asked.link) && row.began_ms <= asked.clock_ms;
                (self.truth.referenced.iter().any(covers), "R7")
            }
            Cause::Expired => (row.began_ms.saturating_add(workspace.kept_for_ms(now_ms)) < now_ms, "R5"),
            Cause::Terminated => (workspace.terminates_ms.is_some_and(|at| at <= now_ms), "R5"),
        };
        if holds { Ok(()) } else { Err(format!("{rule}: a session was deleted that should stay: {cause:?}")) }
    }

    fn links_of(&self, workspace: WorkspaceId, reference: usize) -> Vec<LinkNumber> {
        let links = self.index.links.iter().enumerate();
        let own = links.filter(|(_, link)| link.workspace == workspace && link.reference == reference && link.is_known);
        own.map(|(number, _)| number).collect()
    }

    /// Marks a reference's links; the sessions that are there are found then.
    fn delete_reference(&mut self, workspace: WorkspaceId, reference: usize) -> Result<(), Violation> {
        let links = self.links_of(workspace, reference);
        let marks = links.iter().filter_map(|link| self.index.links[*link].mark);
        let is_finding =
            |deletion: &DeletionNumber| self.index.deletions.get(deletion).is_some_and(|row| row.is_finding);
        // One that finds its sessions still is this one.
        let finding = marks.map(|(_, deletion)| deletion).find(is_finding);
        let deletion = finding.unwrap_or_else(|| self.insert_deletion(workspace, Cause::ByReference, true));
        let (world_ms, clock_ms) = (self.now_ms, self.database_ms());
        self.truth.referenced.extend(links.iter().map(|link| Referenced { link: *link, world_ms, clock_ms }));
        self.happened.references_deleted += 1;
        if self.mutant == Some(Mutant::MarkedAfterListing) {
            let of_link = |row: &SessionRow| row.link.is_some_and(|link| links.contains(&link));
            let there = self.index.sessions.iter().filter(|(_, row)| row.deleted_step.is_none() && of_link(row));
            let there: Vec<SessionKey> = there.map(|(key, _)| *key).collect();
            self.index.deletions.entry(deletion).and_modify(|row| row.is_finding = false);
            let wait = self.rng.u64(50..500);
            self.after(wait, Event::Ask(Ask::Mark(deletion, links)));
            self.add_to_deletion(deletion, &there)?;
            self.end_deletion(deletion);
            return Ok(());
        }
        self.mark_links(deletion, &links);
        self.find_on(deletion);
        Ok(())
    }

    /// Who took a deletion of a reference finds its sessions, unless it goes away before it has them all.
    fn find_on(&mut self, deletion: DeletionNumber) {
        if !self.chance(self.faults.answer_lost) {
            let wait = self.latency();
            self.after(wait, Event::Ask(Ask::Find(deletion)));
        }
    }

    fn mark_links(&mut self, deletion: DeletionNumber, links: &[LinkNumber]) {
        let begun_before_ms = self.database_ms();
        for link in links {
            self.index.links[*link].mark = Some((begun_before_ms, deletion));
        }
        let workspace = self.index.links.get(links.first().copied().unwrap_or_default()).map(|link| link.workspace);
        if let Some(workspace) = workspace.filter(|_| self.mutant != Some(Mutant::MarksNotJournalled)) {
            self.bucket.journal.push(Journalled::Mark { deletion, workspace, links: links.to_vec(), begun_before_ms });
        }
    }

    /// Live sessions of links that a deletion marked, begun by then.
    pub(super) fn sessions_marked(&self, deletion: DeletionNumber) -> Vec<SessionKey> {
        let is_marked = |row: &SessionRow| {
            let mark = row.link.and_then(|link| self.index.links[link].mark);
            mark.is_some_and(|(before_ms, by)| by == deletion && row.began_ms <= before_ms)
        };
        let live = self.index.sessions.iter().filter(|(_, row)| row.deleted_step.is_none() && is_marked(row));
        live.map(|(key, _)| *key).collect()
    }

    // First sight.

    pub(super) fn staging_waits(&self, first_seen: &[SessionKey]) -> bool {
        let index = &self.index;
        first_seen.iter().any(|key| {
            let link = link_of(key);
            let mark = index.links[link].mark;
            index.locked_sessions.contains(key)
                || index.locked_links.contains(&link)
                || mark.is_some_and(|(_, deletion)| index.locked_deletions.contains(&deletion))
        })
    }

    /// New sessions among these that began before all of their link's were deleted (R7).
    pub(super) fn late_among(&self, first_seen: &[SessionKey]) -> Vec<(DeletionNumber, SessionKey)> {
        let new = first_seen.iter().filter(|key| !self.index.sessions.contains_key(key));
        let late = new.filter_map(|key| {
            let (before_ms, deletion) = self.index.links[link_of(key)].mark?;
            (self.began_ms(key) <= before_ms).then_some((deletion, *key))
        });
        late.collect()
    }

    fn began_ms(&self, key: &SessionKey) -> u64 {
        self.ledger.began.get(key).copied().unwrap_or_default()
    }

    /// What an open staging has, until it ends.
    pub(super) fn lock_staging(&mut self, staging: &Staging) {
        self.happened.stagings_open += 1;
        self.index.open.insert(staging.transaction);
        self.index.locked_sessions.extend(&staging.first_seen);
        self.index.locked_links.extend(staging.first_seen.iter().map(link_of));
        self.index.locked_deletions.extend(staging.late.iter().map(|(deletion, _)| *deletion));
    }

    pub(super) fn unlock_staging(&mut self, staging: &Staging) {
        if !self.index.open.remove(&staging.transaction) {
            return;
        }
        for key in &staging.first_seen {
            self.index.locked_sessions.remove(key);
            self.index.locked_links.remove(&link_of(key));
        }
        for (deletion, _) in &staging.late {
            self.index.locked_deletions.remove(deletion);
        }
    }

    /// B10: a name is staged once.
    pub(super) fn commit_staging(&mut self, staging: &Staging) -> Result<(), Violation> {
        // A name that the mutant keeps has its row already.
        let keeps_names = self.mutant == Some(Mutant::NameReuse);
        let object = staging.object.filter(|number| !keeps_names || !self.index.objects.contains_key(number));
        if let Some(number) = object {
            self.index.insert(number, ObjectKind::Shared, staging.partition, staging.staged_ms)?;
            self.index.objects.entry(number).and_modify(|row| row.staged_step = staging.step);
        }
        for key in &staging.first_seen {
            self.first_row(*key, staging.partition);
        }
        for (deletion, key) in &staging.late {
            self.happened.late_deleted += 1;
            self.join_deletion(*deletion, *key)?;
        }
        Ok(())
    }

    pub(super) fn first_row(&mut self, key: SessionKey, partition: i32) {
        let began_ms = self.began_ms(&key);
        let window_at_start_ms = self.index.workspaces[&key.workspace].window_ms;
        let row = self.index.sessions.entry(key).or_insert_with(|| SessionRow {
            link: Some(link_of(&key)),
            began_ms,
            window_at_start_ms,
            ..SessionRow::default()
        });
        row.partitions.insert(partition);
    }

    /// What was said of a deletion that is over stays true.
    fn join_deletion(&mut self, deletion: DeletionNumber, key: SessionKey) -> Result<(), Violation> {
        let is_open = self.index.deletions.get(&deletion).is_some_and(|row| !row.is_erased);
        if is_open || self.mutant == Some(Mutant::LateJoinWhatIsOver) {
            self.add_to_deletion(deletion, &[key])
        } else {
            self.happened.late_of_their_own += 1;
            self.begin_deletion(Cause::ByReference, &[key])
        }
    }

    // Keys in memory.

    pub(super) fn cache_key(&mut self, process: Process, key: SessionKey) {
        let for_ever = self.mutant == Some(Mutant::KeysCachedForEver);
        let until_ms = if for_ever { u64::MAX } else { self.now_ms + KEYS_CACHED_MS };
        self.caches.insert((key, process), until_ms);
    }

    /// R2: whether a process opens a session: by its key, or by one that it has in memory still.
    pub(super) fn opens(&mut self, process: Process, key: SessionKey) -> Result<bool, Violation> {
        if self.keys.get(&key) != Some(KeyRow::Shredded) {
            self.cache_key(process, key);
            return Ok(true);
        }
        let is_cached = self.caches.get(&(key, process)).is_some_and(|until_ms| *until_ms > self.now_ms);
        let shredded_ms = self.keys.shredded_ms.get(&key).copied().unwrap_or_default();
        if is_cached && shredded_ms + KEYS_CACHED_MS < self.now_ms {
            return Err("R2: a session was opened long after its key was destroyed".into());
        }
        self.happened.opened_from_memory += u64::from(is_cached);
        Ok(is_cached)
    }

    // The bucket.

    /// R3: what was erased does not come back.
    pub(super) fn put(&mut self, number: ObjectNumber, attempt: u64, content: Rc<Content>) -> Result<(), Violation> {
        // A clock that jumps lets less time pass than it should.
        let is_timely = self.happened.database_clock_jumps == 0;
        let is_erased = |entry: &Entry| entry.session.is_some_and(|key| self.truth.erased.contains(&key));
        if is_timely && content.entries.iter().any(is_erased) {
            return Err(format!("R3: object {number} landed after its session was erased"));
        }
        self.bucket.put(number, attempt, content)
    }

    pub(super) fn leave_part(&mut self, number: ObjectNumber, content: Rc<Content>) {
        self.happened.parts_left += 1;
        self.bucket.put_part(number, content, self.now_ms);
    }

    // Backups.

    /// Takes a backup, or restores it. A restored index has deletions as they were, but for those that the journal does not have yet:
    /// whoever has it restored loses what was last, with its answers. Rows of objects and progress stay.
    pub(super) fn back_up_or_restore(&mut self) -> Result<(), Violation> {
        let Some(backup) = self.backup.take() else {
            let known = |key: &&SessionKey| self.keys.get(key) == Some(KeyRow::Known);
            let of_exports = self.index.exports.iter().map(|(export, row)| export::key_of(row.workspace, *export));
            let of_exports: Vec<SessionKey> = of_exports.collect();
            let keys = self.index.sessions.keys().chain(&of_exports).filter(known).copied().collect();
            self.backup = Some(Backup {
                sessions: self.index.sessions.iter().map(|(key, row)| (*key, (row.state, row.deleted_step))).collect(),
                deletions: self.index.deletions.clone(),
                leaving: self.index.leaving.clone(),
                marks: self.index.links.iter().map(|link| link.mark).collect(),
                unused: self.unused_links(),
                exports: self.back_up_exports(),
                keys: self.rng.bool().then_some(keys),
            });
            return Ok(());
        };
        self.happened.restored += 1;
        self.life += 1;
        self.take_back(&backup);
        self.take_exports_back(backup.exports, backup.keys.as_ref());
        if self.index.open.is_empty() && self.rng.bool() {
            // From a dump: the new database counts its transactions anew.
            self.index.transaction = 0;
        }
        if self.mutant != Some(Mutant::JournalNotReplayed) {
            self.replay_journal();
        }
        for number in self.first_worker()..self.first_exporter() {
            self.crash_worker(number);
        }
        if self.mutant != Some(Mutant::ExportersOutliveTheirIndex) {
            for number in self.first_exporter()..self.processes() {
                self.crash_exporter(number);
            }
        }
        self.check_gone()
    }

    fn unused_links(&self) -> BTreeSet<LinkNumber> {
        let used: BTreeSet<LinkNumber> = self.index.sessions.values().filter_map(|row| row.link).collect();
        let unmarked = self.index.links.iter().enumerate().filter(|(_, link)| link.mark.is_none());
        unmarked.map(|(number, _)| number).filter(|number| !used.contains(number)).collect()
    }

    fn take_back(&mut self, backup: &Backup) {
        let journalled = self.index.leaving.iter().filter(|(_, row)| row.is_journalled);
        let journalled: Vec<(DeletionNumber, SessionKey)> = journalled.map(|(leaving, _)| *leaving).collect();
        for leaving in journalled {
            match backup.leaving.get(&leaving) {
                Some(row) => drop(self.index.leaving.insert(leaving, row.clone())),
                None => drop(self.index.leaving.remove(&leaving)),
            }
            let key = leaving.1;
            let before = backup.sessions.get(&key).copied().unwrap_or_default();
            if let Some(row) = self.index.sessions.get_mut(&key) {
                (row.state, row.deleted_step) = before;
            }
            if before.0 < SessionState::Erased {
                self.truth.erased.remove(&key);
            }
            if backup.keys.as_ref().is_some_and(|keys| keys.contains(&key)) {
                self.happened.keys_restored += 1;
                self.keys.restore(key);
            }
        }
        let deletions: Vec<DeletionNumber> = self.index.deletions.keys().copied().collect();
        for deletion in deletions {
            if let Some(row) = backup.deletions.get(&deletion) {
                self.index.deletions.insert(deletion, row.clone());
            } else if self.sessions_of(deletion).next().is_none() {
                self.index.deletions.remove(&deletion);
            }
        }
        for (link, mark) in self.index.links.iter_mut().zip(&backup.marks) {
            link.mark = *mark;
        }
        for number in &backup.unused {
            if self.rng.bool() {
                self.happened.links_lost += 1;
                self.index.links[*number].is_known = false;
            }
        }
    }

    /// What is missing comes back before anybody reads: tombstones, marks, destroyed keys, and what has its receipt.
    fn replay_journal(&mut self) {
        if self.mutant != Some(Mutant::BarriersOfTheOldDatabase) {
            self.index.leaving.values_mut().for_each(|row| row.barrier = None);
        }
        for entry in self.bucket.journal.clone() {
            match entry {
                Journalled::Mark { deletion, workspace, links, begun_before_ms } => {
                    let cause = Cause::ByReference;
                    self.index.deletions.entry(deletion).or_insert(DeletionRow {
                        workspace,
                        cause,
                        is_finding: true,
                        is_erased: false,
                        is_receipted: false,
                    });
                    for link in links {
                        let Link { is_known, mark, .. } = &mut self.index.links[link];
                        if !*is_known && self.mutant == Some(Mutant::MarksOfUnknownLinksLost) {
                            continue;
                        }
                        self.happened.marks_of_unknown += u64::from(!*is_known);
                        if mark.is_none_or(|(before_ms, _)| before_ms <= begun_before_ms) {
                            *mark = Some((begun_before_ms, deletion));
                        }
                    }
                }
                Journalled::Session { deletion, cause, key } => {
                    self.index.deletions.entry(deletion).or_insert(DeletionRow {
                        workspace: key.workspace,
                        cause,
                        is_finding: false,
                        is_erased: false,
                        is_receipted: false,
                    });
                    let leaving = self.index.leaving.entry((deletion, key));
                    self.happened.replayed +=
                        u64::from(matches!(leaving, std::collections::btree_map::Entry::Vacant(_)));
                    leaving.or_default().is_journalled = true;
                    self.index.tombstone(key);
                    if self.mutant != Some(Mutant::RestoredExportsGoOn) {
                        self.happened.exports_ended += self.index.end_exports_of(&key);
                    }
                    self.keys.shred(key, self.now_ms);
                }
            }
        }
        // Its sessions are led on once more, but nobody joins it, and it is not signed again.
        for deletion in self.bucket.receipts.keys() {
            if let Some(row) = self.index.deletions.get_mut(deletion) {
                (row.is_finding, row.is_erased, row.is_receipted) = (false, true, true);
            }
        }
    }

    // What must hold.

    /// R2, R8, R9: whatever was deleted stays deleted, and a key that was destroyed stays so.
    pub(super) fn check_gone(&self) -> Result<(), Violation> {
        for key in &self.truth.gone {
            if !self.index.is_deleted(key) {
                return Err("R1: a deleted session is there again".into());
            }
            let was_shredded = self.keys.shredded_ms.contains_key(key);
            if was_shredded && self.keys.get(key) != Some(KeyRow::Shredded) {
                return Err("R2: a destroyed key is there again".into());
            }
        }
        Ok(())
    }

    /// R3: nothing is left of a session, whatever answers and lists say.
    pub(super) fn check_absent(&self, key: &SessionKey) -> Result<(), Violation> {
        let of_session = |row: &crate::store::ObjectRow| row.kind.owner() == Some(*key) || row.content.holds(key);
        if let Some((number, _)) = self.index.objects.iter().find(|(_, row)| of_session(row)) {
            return Err(format!("R3: object {number} of an erased session has a row"));
        }
        // Where a clock jumped a shared object may have landed behind its row: an operator removes it.
        let is_stranger =
            |number: &ObjectNumber| self.happened.database_clock_jumps > 0 && !self.index.objects.contains_key(number);
        // Nobody knows of it: it goes with its export, or by its age.
        let is_stray = |number: &ObjectNumber| self.exported.strays.contains(number);
        let mut holding = self.bucket.holding(key);
        if let Some(number) = holding.find(|number| !is_stranger(number) && !is_stray(number)) {
            return Err(format!("R3: bytes of an erased session lie in object {number}"));
        }
        let kind = |number: &ObjectNumber| self.index.kinds.get(number).and_then(|kind| kind.owner());
        if self.bucket.names().any(|number| kind(&number) == Some(*key)) {
            return Err("R3: something lies below an erased session's prefix".into());
        }
        match self.keys.get(key) {
            Some(KeyRow::Shredded) => Ok(()),
            _ => Err("R3: an erased session has a key".into()),
        }
    }

    /// R2: with the receipt nobody can open it any more.
    pub(super) fn check_caches(&self, key: &SessionKey) -> Result<(), Violation> {
        // A clock that jumps lets less time pass than it should.
        if self.happened.database_clock_jumps > 0 {
            return Ok(());
        }
        let own = self.caches.range((*key, (0, 0))..).take_while(|((of, _), _)| of == key);
        for ((_, process), until_ms) in own {
            let is_running = *process == READER || self.is_current(*process);
            if is_running && *until_ms > self.now_ms {
                return Err("R2: a receipt while a process has the key in memory".into());
            }
        }
        Ok(())
    }

    /// Live sessions past their window.
    pub(super) fn past_window(&self) -> usize {
        let now_ms = self.database_ms();
        let live = self.index.sessions.iter().filter(|(_, row)| row.deleted_step.is_none());
        let is_due = |key: &SessionKey, row: &SessionRow| {
            let kept_for_ms = self.index.workspaces[&key.workspace].kept_for_ms(now_ms);
            row.began_ms.saturating_add(kept_for_ms).saturating_add(DUE_LATE_MS) < now_ms
        };
        live.filter(|(key, row)| is_due(key, row)).count()
    }

    /// Sessions and deletions that are not over.
    pub(super) fn leaving(&self) -> (usize, usize) {
        let sessions = self.index.leaving.values().filter(|row| !row.is_erased).count();
        (sessions, self.index.deletions.values().filter(|row| !row.is_receipted).count())
    }

    /// In the end: all that should be gone is gone, each by one receipt.
    pub(super) fn check_deletions(&self) -> Result<(), Violation> {
        self.check_gone()?;
        for key in &self.truth.asked {
            if !self.truth.gone.contains(key) {
                return Err("R8: a session that was to be deleted has no tombstone".into());
            }
        }
        for (key, row) in &self.index.sessions {
            let began_ms = self.began_ms(key);
            let covers = |asked: &Referenced| row.link == Some(asked.link) && began_ms <= asked.world_ms;
            if !self.truth.gone.contains(key) && self.truth.referenced.iter().any(covers) {
                return Err("R7: a session that began before all of its reference's were deleted is there".into());
            }
            let is_over = self.index.workspaces[&key.workspace].terminates_ms.is_some();
            if is_over && !self.truth.gone.contains(key) {
                return Err("R11: a session of a workspace that is over is there".into());
            }
        }
        if self.past_window() > 0 {
            return Err("R11: a session is past its window".into());
        }
        let mut receipts: BTreeMap<SessionKey, usize> = BTreeMap::new();
        for (deletion, sessions) in &self.bucket.receipts {
            let standing: BTreeSet<SessionKey> = self.sessions_of(*deletion).map(|(key, _)| key).collect();
            if *sessions != standing {
                return Err("R10: a receipt names other sessions than its deletion has".into());
            }
            for key in sessions {
                *receipts.entry(*key).or_default() += 1;
            }
        }
        for key in &self.truth.gone {
            if receipts.get(key) != Some(&1) {
                let count = receipts.get(key).copied().unwrap_or_default();
                return Err(format!("R10: a deleted session stands in {count} receipts"));
            }
            if self.index.sessions[key].state != SessionState::Erased {
                return Err("R1: a deletion is over, and its session is not erased".into());
            }
            self.check_absent(key)?;
        }
        Ok(())
    }
}
