//! Retention workers, without bytes: each takes pass after pass, asks what there is to do, and does it against the models, step by
//! step, with what it read at the beginning. The decisions are the real ones.
//!
//! What batchers of earlier releases let in is not looked for: the mark on a link has to hold alone.

use std::collections::VecDeque;

use engine::retention::{DeletionFacts, DeletionStep, Facts, Step, next_deletion_step, next_step};

use super::deletion::{LEAST_KEY, other_workspace};
use super::*;
use crate::store::{Cause, DeletionNumber, Journalled, LeavingRow, ObjectRow, SessionState};

/// So many at once.
const BATCH: usize = 20;
/// So few sessions expire without a second clock,
const DUE_FEW: usize = 3;
/// and clocks that differ by more are not both right.
const CLOCKS_DIFFER_MS_MAX: u64 = 2_000;

type Leaving = (DeletionNumber, SessionKey);

/// The index's clock as it was compared with the bucket's.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Compared {
    clock_ms: u64,
    differ_ms: u64,
    /// Whether much was due by it.
    is_much: bool,
}

/// What one step of a pass does.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    /// Asks for all that there is to do.
    Look,
    Shred(Vec<Leaving>),
    MarkShredded(Vec<Leaving>),
    Find(DeletionNumber),
    Terminate(WorkspaceId),
    Expire(Compared),
    CondemnStale,
    Journal(Leaving),
    MarkJournalled(Leaving),
    SetBarriers(Vec<Leaving>),
    Note(Leaving),
    ListPrefix(Leaving),
    /// What no row names: names, and names of uploads.
    RemoveFound(Vec<ObjectNumber>, Vec<ObjectNumber>),
    MarkErased(Leaving),
    Delete(Vec<ObjectNumber>),
    MarkDeleted(Vec<ObjectNumber>),
    /// Lists deleted objects. Of those that were never live uploads are ended first.
    ListDeleted(Vec<ObjectNumber>),
    MarkUndeleted(Vec<ObjectNumber>),
    Forget(Vec<ObjectNumber>),
    Abort(Vec<ObjectNumber>),
    Sign(DeletionNumber),
    MarkReceipted(DeletionNumber),
    Export(export::Ending),
}

#[derive(Debug, Default)]
pub(crate) struct Node {
    pub(crate) incarnation: u64,
    pub(crate) is_alive: bool,
    pub(crate) paused_until: Option<u64>,
    /// The rest of its pass.
    todo: VecDeque<Op>,
}

impl Compared {
    fn is_wrong(&self) -> bool {
        self.is_much && self.differ_ms > CLOCKS_DIFFER_MS_MAX
    }
}

impl Node {
    pub(crate) fn new(incarnation: u64) -> Self {
        Self { incarnation, is_alive: true, ..Self::default() }
    }
}

impl World {
    pub(super) fn worker(&self, process: Process) -> Option<&Node> {
        let node = self.workers.get(process.0.checked_sub(self.first_worker())?)?;
        (node.is_alive && node.incarnation == process.1).then_some(node)
    }

    fn worker_mut(&mut self, process: Process) -> Option<&mut Node> {
        let place = process.0.checked_sub(self.first_worker())?;
        let node = self.workers.get_mut(place)?;
        (node.is_alive && node.incarnation == process.1).then_some(node)
    }

    // Processes come and go.

    pub(super) fn crash_worker(&mut self, number: usize) {
        let place = number - self.first_worker();
        if std::mem::replace(&mut self.workers[place].is_alive, false) {
            self.happened.worker_crashes += 1;
            let wait = self.rng.u64(1..1_000);
            self.after(wait, Event::Restart(number));
        }
    }

    pub(super) fn restart_worker(&mut self, number: usize) {
        let place = number - self.first_worker();
        let node = &mut self.workers[place];
        if !node.is_alive {
            *node = Node::new(node.incarnation + 1);
            let process = (number, node.incarnation);
            self.after(1, Event::Pass(process));
        }
    }

    pub(super) fn pause_worker(&mut self, number: usize, ms: u64) {
        let until = self.now_ms + ms;
        let place = number - self.first_worker();
        let node = &mut self.workers[place];
        if node.is_alive && node.paused_until.is_none_or(|before| before <= self.now_ms) {
            node.paused_until = Some(until);
            self.happened.workers_frozen += 1;
        }
    }

    // Passes.

    pub(super) fn pass(&mut self, process: Process) {
        if let Some(node) = self.worker_mut(process) {
            node.todo = VecDeque::from([Op::Look]);
            self.go_on(process);
        }
    }

    fn go_on(&mut self, process: Process) {
        let Some(node) = self.worker_mut(process) else { return };
        match node.todo.pop_front() {
            Some(op) => {
                let (wait, life) = (self.latency(), self.life);
                self.after(wait, Event::Retain { process, op, given_up: false, life });
            }
            None => {
                let wait = if self.is_healed { self.rng.u64(100..300) } else { self.rng.u64(30..150) };
                self.after(wait, Event::Pass(process));
            }
        }
    }

    /// What came of a step. One that failed ends the pass.
    pub(super) fn retention_answer(&mut self, process: Process, then: Option<Vec<Op>>) {
        let Some(node) = self.worker_mut(process) else { return };
        match then {
            Some(then) => then.into_iter().rev().for_each(|op| node.todo.push_front(op)),
            None => node.todo.clear(),
        }
        self.go_on(process);
    }

    /// A step reaches its server; which answers, fails, or does what it was asked for and loses its answer.
    pub(super) fn retain(&mut self, process: Process, op: Op, given_up: bool, life: u64) -> Result<(), Violation> {
        if life != self.life {
            // The database that it was sent to is no more.
            return Ok(());
        }
        if self.is_retention_locked(&op) {
            self.after(5, Event::Retain { process, op, given_up, life });
            return Ok(());
        }
        let mut is_lost = given_up;
        // What fails of these must not keep all else from being deleted.
        let failure = matches!(op, Op::Shred(_) | Op::Find(_)).then(Vec::new);
        if !given_up && self.chance(self.faults.failing) {
            self.happened.failed += 1;
            self.after(1, Event::RetentionAnswer { process, then: failure });
            return Ok(());
        }
        if !given_up && self.chance(self.faults.answer_lost) {
            self.after(1, Event::RetentionAnswer { process, then: failure });
            if self.rng.bool() {
                self.happened.done_late += 1;
                let wait = self.rng.u64(1..3_000);
                self.after(wait, Event::Retain { process, op, given_up: true, life });
                return Ok(());
            }
            self.happened.answers_lost += 1;
            is_lost = true;
        }
        if is_lost && matches!(op, Op::Look) {
            return Ok(());
        }
        let then = self.carry_out_retention(op)?;
        if !is_lost {
            let wait = self.latency();
            self.after(wait, Event::RetentionAnswer { process, then: Some(then) });
        }
        Ok(())
    }

    /// Whether a step waits for a row that a transaction has locked.
    fn is_retention_locked(&self, op: &Op) -> bool {
        let index = &self.index;
        let is_session = |key: &SessionKey| index.is_session_locked(key);
        match op {
            Op::MarkErased((deletion, key)) => index.locked_deletions.contains(deletion) || is_session(key),
            Op::Find(deletion) => {
                index.locked_deletions.contains(deletion) || self.sessions_marked(*deletion).iter().any(is_session)
            }
            Op::Sign(deletion) | Op::MarkReceipted(deletion) => index.locked_deletions.contains(deletion),
            Op::MarkShredded(leaving) => leaving.iter().any(|(_, key)| is_session(key)),
            Op::Note((_, key)) => self.own_objects(key).iter().any(|number| index.locked_objects.contains(number)),
            _ => false,
        }
    }

    fn carry_out_retention(&mut self, op: Op) -> Result<Vec<Op>, Violation> {
        match op {
            Op::Look => return Ok(self.look_for_work()),
            Op::Shred(leaving) => return self.shred(leaving).map(|op| vec![op]),
            Op::MarkShredded(leaving) => self.mark_shredded(&leaving)?,
            Op::Find(deletion) => self.find_deleted(deletion)?,
            Op::Terminate(workspace) => self.terminate(workspace)?,
            Op::Expire(compared) => self.expire(compared)?,
            Op::CondemnStale => self.condemn_stale(),
            Op::Journal(leaving) => return Ok(vec![self.journal(leaving)]),
            Op::MarkJournalled(leaving) => {
                self.index.leaving.entry(leaving).and_modify(|row| row.is_journalled = true);
            }
            Op::SetBarriers(leaving) => self.set_barriers(&leaving),
            Op::Note(leaving) => self.note_blockers(leaving),
            Op::ListPrefix(leaving) => return Ok(vec![self.list_prefix(leaving)]),
            Op::RemoveFound(found, uploads) => {
                uploads.into_iter().for_each(|number| self.bucket.abort(number));
                self.delete_objects(&found);
            }
            Op::MarkErased(leaving) => self.mark_erased(leaving)?,
            Op::Delete(condemned) => return Ok(self.delete_condemned(&condemned)),
            Op::MarkDeleted(gone) => self.mark(&gone, true),
            Op::ListDeleted(deleted) => return Ok(self.list_deleted(deleted)),
            Op::MarkUndeleted(back) => self.mark(&back, false),
            Op::Forget(absent) => {
                let is_gone = |row: &ObjectRow| row.state == ObjectState::Condemned && row.is_deleted;
                for number in absent {
                    if self.index.objects.get(&number).is_some_and(is_gone) {
                        self.index.objects.remove(&number);
                        self.happened.forgotten += 1;
                    }
                }
            }
            Op::Abort(uploads) => {
                self.happened.uploads_ended += uploads.len() as u64;
                uploads.into_iter().for_each(|number| self.bucket.abort(number));
            }
            Op::Sign(deletion) => return self.sign(deletion),
            Op::MarkReceipted(deletion) => {
                self.happened.receipts += 1;
                self.index.deletions.entry(deletion).and_modify(|row| row.is_receipted = true);
            }
            Op::Export(ending) => return Ok(self.lead_export(ending)?.into_iter().map(Op::Export).collect()),
        }
        Ok(Vec::new())
    }

    // What there is to do.

    fn look_for_work(&mut self) -> Vec<Op> {
        let mut ops = Vec::new();
        let unshredded = self.index.leaving.iter().filter(|(_, row)| row.is_journalled && row.shredded_ms.is_none());
        let unshredded: Vec<Leaving> = unshredded.map(|(leaving, _)| *leaving).take(BATCH).collect();
        if !unshredded.is_empty() {
            ops.push(Op::Shred(unshredded));
        }
        let finding = self.index.deletions.iter().filter(|(_, row)| row.is_finding);
        ops.extend(finding.map(|(deletion, _)| Op::Find(*deletion)));
        let workspaces: Vec<WorkspaceId> = self.index.workspaces.keys().copied().collect();
        ops.extend(workspaces.into_iter().filter(|workspace| self.has_to_end(*workspace)).map(Op::Terminate));
        self.look_for_due(&mut ops);
        ops.extend(self.look_for_exports().into_iter().map(Op::Export));
        let now_ms = self.database_ms();
        if self.index.objects.values().any(|row| is_stale(row, now_ms)) {
            ops.push(Op::CondemnStale);
        }
        self.look_for_leaving(&mut ops);
        self.look_for_objects(&mut ops);
        let deletions: Vec<DeletionNumber> = self.index.deletions.keys().copied().collect();
        ops.extend(deletions.into_iter().filter(|deletion| self.can_be_signed(*deletion)).map(Op::Sign));
        ops
    }

    fn has_to_end(&self, workspace: WorkspaceId) -> bool {
        let row = &self.index.workspaces[&workspace];
        let forgets = self.mutant == Some(Mutant::TerminationCannotBeCancelled);
        let ends_ms = if forgets { row.first_terminates_ms } else { row.terminates_ms };
        ends_ms.is_some_and(|at| at <= self.database_ms()) && !self.live_sessions(workspace).is_empty()
    }

    fn live_sessions(&self, workspace: WorkspaceId) -> Vec<SessionKey> {
        let own = self.index.sessions.iter();
        let own = own.filter(|(key, row)| key.workspace == workspace && row.deleted_step.is_none());
        own.map(|(key, _)| *key).collect()
    }

    /// What the index's clock says, whether much is due by it, and how far it is from the bucket's.
    fn compare_clocks(&self) -> (usize, Compared) {
        let clock_ms = self.database_ms();
        let due = self.due_by(clock_ms).len();
        let live = self.index.sessions.values().filter(|row| row.deleted_step.is_none()).count();
        // When all is healed the bucket's clock is the index's again.
        let differ_ms = if self.is_healed { 0 } else { self.database_skew_ms };
        (due, Compared { clock_ms, differ_ms, is_much: due > DUE_FEW && due * 10 > live })
    }

    fn look_for_due(&mut self, ops: &mut Vec<Op>) {
        let (due, compared) = self.compare_clocks();
        if compared.is_wrong() && self.mutant != Some(Mutant::ClocksNotCompared) {
            self.happened.clocks_found_wrong += 1;
        } else if due > 0 {
            ops.push(Op::Expire(compared));
        }
    }

    /// What is past its window, as the worker sees it.
    fn due_by(&self, now_ms: u64) -> Vec<SessionKey> {
        let window_ms = |key: &SessionKey, row: &crate::store::SessionRow| {
            let workspace = &self.index.workspaces[&key.workspace];
            match self.mutant {
                Some(Mutant::ExpiresByPlanAtStart) => row.window_at_start_ms,
                Some(Mutant::NoGraceForPlans) => workspace.window_ms,
                _ => workspace.kept_for_ms(now_ms),
            }
        };
        let live = self.index.sessions.iter().filter(|(_, row)| row.deleted_step.is_none());
        let due = live.filter(|(key, row)| row.began_ms.saturating_add(window_ms(key, row)) < now_ms);
        due.map(|(key, _)| *key).collect()
    }

    fn look_for_leaving(&mut self, ops: &mut Vec<Op>) {
        let mut own: BTreeMap<SessionKey, u64> = BTreeMap::new();
        for key in self.index.objects.values().filter_map(|row| row.kind.owner()) {
            *own.entry(key).or_default() += 1;
        }
        let mut exports: BTreeMap<SessionKey, u64> = BTreeMap::new();
        if self.mutant != Some(Mutant::ErasedWhileExported) {
            for key in self.index.exports.values().flat_map(|row| row.sessions.keys()) {
                *exports.entry(*key).or_default() += 1;
            }
        }
        let mut barred = Vec::new();
        let leaving = self.index.leaving.iter().filter(|(_, row)| !row.is_erased);
        let leaving: Vec<(Leaving, Facts)> = leaving
            .map(|(leaving, row)| {
                let left = |rows: &BTreeMap<SessionKey, u64>| rows.get(&leaving.1).copied().unwrap_or_default();
                (*leaving, self.facts(row, left(&own), left(&exports)))
            })
            .collect();
        for (leaving, facts) in leaving {
            match next_step(&facts) {
                Step::Journal => ops.push(Op::Journal(leaving)),
                Step::SetBarrier => barred.push(leaving),
                Step::NoteBlockers => ops.push(Op::Note(leaving)),
                Step::VerifyAbsent if self.may_be_quarantined(&leaving.1) => self.happened.held += 1,
                Step::VerifyAbsent if self.mutant == Some(Mutant::NothingIsListed) => ops.push(Op::MarkErased(leaving)),
                Step::VerifyAbsent => ops.push(Op::ListPrefix(leaving)),
                // Keys are destroyed all at once.
                Step::Shred => {}
                Step::AwaitBarrier => self.happened.barriers_awaited += 1,
                Step::AwaitRemoval => {}
            }
        }
        if !barred.is_empty() {
            ops.push(Op::SetBarriers(barred));
        }
    }

    fn facts(&self, row: &LeavingRow, objects_left: u64, exports_left: u64) -> Facts {
        let has_no_barrier = self.mutant == Some(Mutant::NoBarrier);
        let oldest = self.index.open.first().copied().unwrap_or(self.index.transaction + 1);
        let blockers = row.blockers.iter().flatten();
        let blockers_left = blockers.filter(|number| self.index.objects.contains_key(number)).count() as u64;
        let ignores_blockers = self.mutant == Some(Mutant::ErasedWhileBlocked);
        Facts {
            shredded: row.shredded_ms.is_some(),
            journalled: row.is_journalled,
            barrier_set: row.barrier.is_some() || has_no_barrier,
            barrier_passed: row.barrier.is_some_and(|barrier| barrier < oldest) || has_no_barrier,
            blockers_noted: row.blockers.is_some(),
            blockers_left: if ignores_blockers { 0 } else { blockers_left },
            objects_left,
            exports_left,
        }
    }

    fn look_for_objects(&mut self, ops: &mut Vec<Op>) {
        let now_ms = self.database_ms();
        let grace_ms = if self.mutant == Some(Mutant::CondemnedRemovedAtOnce) { 0 } else { CONDEMNED_GRACE_MS };
        let horizon_ms = if self.mutant == Some(Mutant::LatePutsNotAwaited) { 0 } else { PUT_HORIZON_MS };
        let condemned = self.index.objects.iter().filter(|(_, row)| row.state == ObjectState::Condemned);
        let (deleted, removable): (Vec<_>, Vec<_>) = condemned.partition(|(_, row)| row.is_deleted);
        let removable = removable.into_iter().filter(|(_, row)| row.condemned_ms + grace_ms <= now_ms);
        let removable: Vec<ObjectNumber> = removable.map(|(number, _)| *number).take(BATCH).collect();
        let cannot_come = |row: &ObjectRow| row.was_live() || row.staged_ms + horizon_ms <= now_ms;
        let deleted = deleted.into_iter().filter(|(_, row)| cannot_come(row));
        let deleted: Vec<ObjectNumber> = deleted.map(|(number, _)| *number).take(BATCH).collect();
        if !removable.is_empty() {
            ops.push(Op::Delete(removable));
        }
        if !deleted.is_empty() {
            ops.push(Op::ListDeleted(deleted));
        }
        if self.mutant == Some(Mutant::UploadsGoOn) {
            return;
        }
        let is_staged =
            |number: &ObjectNumber| self.index.objects.get(number).is_some_and(|row| row.state == ObjectState::Staged);
        let abandoned = self.bucket.parts_before(self.now_ms.saturating_sub(PUT_HORIZON_MS));
        let abandoned: Vec<ObjectNumber> = abandoned.filter(|number| !is_staged(number)).collect();
        if !abandoned.is_empty() {
            ops.push(Op::Abort(abandoned));
        }
    }

    // Sessions.

    fn shred(&mut self, leaving: Vec<Leaving>) -> Result<Op, Violation> {
        for (_, key) in &leaving {
            let by_id_alone = self.mutant == Some(Mutant::ShredsByIdAlone);
            for workspace in
                [key.workspace, other_workspace(key.workspace)].into_iter().take(1 + usize::from(by_id_alone))
            {
                let shredded = SessionKey { workspace, ..*key };
                if self.keys.get(&shredded).is_some() && !self.index.is_deleted(&shredded) {
                    return Err("R9: a key was destroyed of a session that is not deleted".into());
                }
                self.keys.shred(shredded, self.now_ms);
            }
        }
        Ok(Op::MarkShredded(leaving))
    }

    fn mark_shredded(&mut self, leaving: &[Leaving]) -> Result<(), Violation> {
        let now_ms = self.database_ms();
        for (deletion, key) in leaving {
            let Some(row) = self.index.leaving.get_mut(&(*deletion, *key)) else { continue };
            row.shredded_ms.get_or_insert(now_ms);
            let state = self.index.sessions.get(key).map(|row| row.state);
            if state == Some(SessionState::Tombstoned) || self.mutant == Some(Mutant::StatesGoBack) {
                self.index.lead_on(key, SessionState::Shredded)?;
            }
        }
        self.set_barriers(leaving);
        Ok(())
    }

    fn journal(&mut self, (deletion, key): Leaving) -> Op {
        let cause = self.index.deletions.get(&deletion).map(|row| row.cause);
        let is_there = self.bucket.journal.iter().any(|entry| {
            matches!(entry, Journalled::Session { deletion: other, key: of, .. } if (*other, *of) == (deletion, key))
        });
        if let Some(cause) = cause.filter(|_| !is_there && self.mutant != Some(Mutant::NothingIsJournalled)) {
            self.bucket.journal.push(Journalled::Session { deletion, cause, key });
        }
        Op::MarkJournalled((deletion, key))
    }

    fn set_barriers(&mut self, leaving: &[Leaving]) {
        let barrier = self.index.next_transaction();
        for leaving in leaving {
            if self.mutant == Some(Mutant::BlockersBeforeBarrier) {
                self.note_blockers(*leaving);
            }
            self.index.leaving.entry(*leaving).and_modify(|row| {
                row.barrier.get_or_insert(barrier);
            });
        }
    }

    /// Notes the shared objects that may hold the session's bytes, and condemns its own.
    fn note_blockers(&mut self, leaving: Leaving) {
        let key = leaving.1;
        let Some(session) = self.index.sessions.get(&key) else { return };
        let may_hold = |number: ObjectNumber, row: &ObjectRow| {
            // One that is staged has no filter yet, and a filter takes some for what they are not.
            let is_mistaken = (number + session.began_ms).is_multiple_of(32);
            row.kind == ObjectKind::Shared
                && session.partitions.contains(&row.partition)
                && (!row.was_live() || row.content.holds(&key) || is_mistaken)
        };
        let shared = self.index.objects.iter().filter(|(number, row)| may_hold(**number, row));
        let blockers: Vec<ObjectNumber> = shared.map(|(number, _)| *number).collect();
        self.happened.blockers += blockers.len() as u64;
        if let Some(row) = self.index.leaving.get_mut(&leaving) {
            row.blockers = Some(blockers);
        }
        let mut own = self.own_objects(&key);
        own.retain(|number| self.index.objects[number].state != ObjectState::Condemned);
        self.condemn(&own);
    }

    fn own_objects(&self, key: &SessionKey) -> Vec<ObjectNumber> {
        let own = self.index.objects.iter().filter(|(_, row)| row.kind.owner() == Some(*key));
        own.map(|(number, _)| *number).collect()
    }

    /// Whether an object in quarantine that is nobody's may hold some of it: it waits for an operator then.
    fn may_be_quarantined(&self, key: &SessionKey) -> bool {
        let mut rows = self.index.objects.values().filter(|row| row.kind == ObjectKind::Quarantine(None));
        rows.any(|row| !row.was_live() || row.content.holds(key))
    }

    /// Names below a session's prefix, and uploads there, as far as the worker lists them.
    fn below_prefix(&self, key: &SessionKey) -> (Vec<ObjectNumber>, Vec<ObjectNumber>) {
        let kind = |number: &ObjectNumber| self.index.kinds.get(number).and_then(|kind| kind.owner());
        let below: Vec<ObjectNumber> = self.bucket.names().filter(|number| kind(number) == Some(*key)).collect();
        let found = below.iter().copied().filter(|number| self.is_listed(*number)).collect();
        let ends = self.mutant != Some(Mutant::UploadsGoOn);
        let uploads = below.into_iter().filter(|number| ends && self.bucket.has_parts(*number)).collect();
        (found, uploads)
    }

    pub(super) fn is_listed(&self, number: ObjectNumber) -> bool {
        match self.mutant {
            Some(Mutant::OnlyCurrentVersions) => self.bucket.get(number).is_some(),
            _ => self.bucket.lies(number),
        }
    }

    fn list_prefix(&mut self, leaving: Leaving) -> Op {
        let (found, uploads) = self.below_prefix(&leaving.1);
        if found.is_empty() && uploads.is_empty() {
            Op::MarkErased(leaving)
        } else {
            self.happened.returned += 1;
            Op::RemoveFound(found, uploads)
        }
    }

    fn mark_erased(&mut self, (deletion, key): Leaving) -> Result<(), Violation> {
        let Some(row) = self.index.leaving.get_mut(&(deletion, key)) else { return Ok(()) };
        if std::mem::replace(&mut row.is_erased, true) {
            return Ok(());
        }
        self.index.lead_on(&key, SessionState::Erased)?;
        self.truth.erased.insert(key);
        self.happened.erased += 1;
        self.happened.left_in_strays += self.left_in_strays(&key);
        self.end_deletion(deletion);
        self.check_absent(&key)
    }

    // Deletions.

    pub(super) fn end_deletion(&mut self, deletion: DeletionNumber) {
        let is_over = self.sessions_of(deletion).all(|(_, row)| row.is_erased);
        if let Some(row) = self.index.deletions.get_mut(&deletion) {
            row.is_erased |= is_over && !row.is_finding;
        }
    }

    pub(super) fn sessions_of(&self, deletion: DeletionNumber) -> impl Iterator<Item = (SessionKey, &LeavingRow)> {
        let rows = self.index.leaving.range((deletion, LEAST_KEY)..);
        rows.take_while(move |((other, _), _)| *other == deletion).map(|((_, key), row)| (*key, row))
    }

    fn can_be_signed(&self, deletion: DeletionNumber) -> bool {
        let Some(row) = self.index.deletions.get(&deletion) else { return false };
        let now_ms = self.database_ms();
        let shredded_ms = self.sessions_of(deletion).map(|(_, row)| row.shredded_ms.unwrap_or(now_ms)).max();
        let facts = DeletionFacts {
            finding: row.is_finding && self.mutant != Some(Mutant::ReceiptWhileFinding),
            sessions_left: self.sessions_of(deletion).filter(|(_, row)| !row.is_erased).count() as u64,
            // One of no session has no key.
            shredded_for_ms: shredded_ms.map_or(u64::MAX, |at| now_ms.saturating_sub(at)),
            receipted: row.is_receipted,
        };
        let ignores_caches = self.mutant == Some(Mutant::ReceiptBeforeCachesRanOut);
        next_deletion_step(&facts, if ignores_caches { 0 } else { KEYS_CACHED_MS }) == DeletionStep::Sign
    }

    /// Verifies once more, and puts the receipt. What is found is deleted, and the next pass looks again.
    fn sign(&mut self, deletion: DeletionNumber) -> Result<Vec<Op>, Violation> {
        if !self.can_be_signed(deletion) {
            return Ok(Vec::new());
        }
        let sessions: BTreeSet<SessionKey> = self.sessions_of(deletion).map(|(key, _)| key).collect();
        for key in &sessions {
            let (found, uploads) = self.below_prefix(key);
            if self.mutant != Some(Mutant::NothingIsListed) && !(found.is_empty() && uploads.is_empty()) {
                self.happened.returned += 1;
                uploads.into_iter().for_each(|number| self.bucket.abort(number));
                self.delete_objects(&found);
                return Ok(Vec::new());
            }
        }
        for key in &sessions {
            self.check_absent(key)?;
            self.check_caches(key)?;
        }
        if self.bucket.receipts.get(&deletion).is_some_and(|signed| *signed != sessions) {
            return Err("R4: a receipt was signed again, and says something else".into());
        }
        self.bucket.receipts.insert(deletion, sessions);
        Ok(vec![Op::MarkReceipted(deletion)])
    }

    pub(super) fn find_deleted(&mut self, deletion: DeletionNumber) -> Result<(), Violation> {
        let mut found = self.sessions_marked(deletion);
        found.truncate(2);
        if found.is_empty() {
            if let Some(row) = self.index.deletions.get_mut(&deletion) {
                row.is_finding = false;
                self.end_deletion(deletion);
            }
            return Ok(());
        }
        self.add_to_deletion(deletion, &found)
    }

    fn terminate(&mut self, workspace: WorkspaceId) -> Result<(), Violation> {
        if !self.has_to_end(workspace) {
            return Ok(());
        }
        let mut live = self.live_sessions(workspace);
        live.retain(|key| !self.index.is_session_locked(key));
        live.truncate(BATCH);
        self.happened.terminated += live.len() as u64;
        self.begin_deletion(Cause::Terminated, &live)
    }

    /// R5: by the clock that was compared, however long ago that is.
    fn expire(&mut self, mut compared: Compared) -> Result<(), Violation> {
        if self.mutant == Some(Mutant::ExpiresByAnotherClock) {
            compared = self.compare_clocks().1;
        }
        if compared.is_wrong() {
            return Err(format!("R5: sessions expire by a clock that is {} ms wrong", compared.differ_ms));
        }
        let mut due = self.due_by(compared.clock_ms.min(self.database_ms()));
        due.retain(|key| !self.index.is_session_locked(key));
        due.truncate(BATCH);
        self.happened.expired += due.len() as u64;
        for of_workspace in due.chunk_by(|one, other| one.workspace == other.workspace) {
            self.begin_deletion(Cause::Expired, of_workspace)?;
        }
        Ok(())
    }

    // Objects.

    fn condemn_stale(&mut self) {
        let now_ms = self.database_ms();
        if self.mutant == Some(Mutant::CollectorByAgeAlone) {
            let old = self.index.objects.iter().filter(|(_, row)| is_stale(row, now_ms));
            let old = old.map(|(number, _)| *number).collect();
            let wait = self.rng.u64(1..300);
            self.after(wait, Event::RemoveObjects(old));
            return;
        }
        for (number, row) in &mut self.index.objects {
            // What a transaction has is its own: it is looked at again then.
            if is_stale(row, now_ms) && !self.index.locked_objects.contains(number) {
                (row.state, row.condemned_ms) = (ObjectState::Condemned, now_ms);
                self.happened.condemned += 1;
            }
        }
    }

    /// Some keys of a request may be left. Gives those that are gone.
    pub(super) fn delete_objects(&mut self, numbers: &[ObjectNumber]) -> Vec<ObjectNumber> {
        let mut gone = Vec::new();
        for number in numbers {
            if self.chance(self.faults.failing) {
                self.happened.deleted_partly += 1;
                continue;
            }
            match self.mutant {
                Some(Mutant::OnlyCurrentVersions) => self.bucket.hide(*number),
                _ => self.bucket.delete(*number),
            }
            gone.push(*number);
        }
        gone
    }

    fn delete_condemned(&mut self, condemned: &[ObjectNumber]) -> Vec<Op> {
        let gone = self.delete_objects(condemned);
        match self.mutant {
            // Its word counts, and nobody lists.
            Some(Mutant::PartlyDeletedTakenAsWhole) => {
                let left = condemned.iter().copied().filter(|number| !gone.contains(number)).collect();
                vec![Op::MarkDeleted(condemned.to_vec()), Op::Forget(left)]
            }
            Some(Mutant::ForgottenBeforeListing) => vec![Op::MarkDeleted(gone.clone()), Op::Forget(gone)],
            _ => vec![Op::MarkDeleted(gone)],
        }
    }

    fn mark(&mut self, numbers: &[ObjectNumber], is_deleted: bool) {
        for number in numbers {
            let row = self.index.objects.get_mut(number);
            if let Some(row) = row.filter(|row| row.state == ObjectState::Condemned) {
                row.is_deleted = is_deleted;
            }
        }
    }

    /// R3: the rows of those that a listing shows absent go.
    fn list_deleted(&mut self, deleted: Vec<ObjectNumber>) -> Vec<Op> {
        for number in &deleted {
            let was_live = self.index.objects.get(number).is_some_and(ObjectRow::was_live);
            if !was_live && self.bucket.has_parts(*number) && self.mutant != Some(Mutant::UploadsGoOn) {
                self.bucket.abort(*number);
                self.happened.uploads_ended += 1;
            }
        }
        if self.mutant == Some(Mutant::NothingIsListed) {
            return vec![Op::Forget(deleted)];
        }
        let (back, absent): (Vec<_>, Vec<_>) = deleted.into_iter().partition(|number| self.is_listed(*number));
        self.happened.returned += back.len() as u64;
        vec![Op::MarkUndeleted(back), Op::Forget(absent)]
    }
}

fn is_stale(row: &ObjectRow, now_ms: u64) -> bool {
    row.state == ObjectState::Staged && row.staged_ms + STAGED_GRACE_MS <= now_ms
}
