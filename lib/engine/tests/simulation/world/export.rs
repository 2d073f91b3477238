//! Exports, without bytes: who asks for them, exporters that make their archives part by part, who fetches them, and how they end.
//! What comes next for one that is over is decided by the real rule.
//!
//! A restored index ends what exporters are at, as it ends workers' passes: one that goes on with what the index forgot is a mutant.

use std::collections::VecDeque;

use engine::retention::{ExportFacts, ExportStep, next_export_step};
use schemas::ExportId;

use super::compactor::{entries_of, plan_of};
use super::*;
use crate::store::{ExportRow, ObjectRow};

/// So many of a workspace are not over at most.
const OPEN_MOST: usize = 3;
/// Sessions that are included by one transaction,
const INCLUDED_AT_ONCE: usize = 2;
/// and those after which it is left for others.
const TURN_SESSIONS: usize = 4;
/// What lies in one part but the last.
const PART_ENTRIES: usize = 3;
/// A session is read in this time.
const READ_MS_MAX: u64 = 80;
/// An export that is not over sooner is over then.
const EXPIRES_MS_MAX: u64 = 12_000;
/// Who fetches an archive asks so often whether it is over.
const FETCH_CHECK_MS: u64 = 100;
/// What no row names, and is of an export as old as this, is removed.
const STRAY_AGE_MS: u64 = 9_000;
/// Exports that are gone are remembered for so long.
const REMEMBERED_MS: u64 = 3_000;

/// An exporter.
#[derive(Debug, Default)]
pub(crate) struct Node {
    incarnation: u64,
    is_alive: bool,
    pub(crate) paused_until: Option<u64>,
    making: Option<Making>,
}

impl Node {
    pub(crate) fn new(incarnation: u64) -> Self {
        Self { incarnation, is_alive: true, ..Self::default() }
    }
}

/// What a process holds of an archive that it makes.
#[derive(Debug, Clone)]
pub(crate) struct Making {
    export: ExportNumber,
    after: Option<SessionKey>,
    /// Sessions that are included and not read.
    todo: VecDeque<SessionKey>,
    has_all: bool,
    /// What is in no part yet.
    pending: Vec<Entry>,
    /// Sessions since the last checkpoint.
    written: Vec<SessionKey>,
    /// Parts that were published, and sessions that stand.
    parts: usize,
    sessions_stand: usize,
    /// Sessions of this turn.
    turn: usize,
}

/// A part of an archive.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    export: ExportNumber,
    object: ObjectNumber,
    attempt: u64,
    number: usize,
    content: Rc<Content>,
    /// The life of the database in which it was staged.
    life: u64,
    /// Sessions that stand with it, and how many do then; none when it ends in the middle of one.
    checkpoint: Option<(Vec<SessionKey>, usize)>,
    is_last: bool,
}

#[derive(Debug, Clone)]
pub(crate) enum Op {
    Take,
    Include { export: ExportNumber, after: Option<SessionKey> },
    Read { export: ExportNumber, key: SessionKey },
    Keys(Part),
    Stage(Part),
    Put(Part),
    Publish(Part),
    Leave(ExportNumber),
}

#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// There is nothing to make.
    Nothing,
    Failed,
    /// The export is over, or another has it.
    Over,
    Taken(Making),
    Included(Vec<SessionKey>),
    Read(SessionKey, Vec<Entry>),
    Then(Op),
    Published(Part),
    Left,
}

/// What a worker does to end exports.
#[derive(Debug, Clone)]
pub(crate) enum Ending {
    Expire,
    Shred(Vec<ExportNumber>),
    MarkShredded(Vec<ExportNumber>),
    Condemn(Vec<ExportNumber>),
    List(ExportNumber),
    /// Names that a listing showed, and names of uploads.
    Remove(Vec<ObjectNumber>, Vec<ObjectNumber>),
    MarkGone(ExportNumber),
    Forget,
    RemoveStrays,
}

/// An archive that is being fetched.
#[derive(Debug, Clone)]
pub(crate) struct Fetching {
    export: ExportNumber,
    parts: Vec<ObjectNumber>,
    next: usize,
    checked_ms: u64,
    step_ms: u64,
    life: u64,
}

/// What the index had of exports.
#[derive(Debug)]
pub(crate) struct Backup {
    exports: BTreeMap<ExportNumber, ExportRow>,
    objects: BTreeMap<ObjectNumber, ObjectRow>,
}

/// What an export's id and path say, and the checker knows.
#[derive(Debug)]
struct Asked {
    workspace: WorkspaceId,
    at_ms: u64,
    /// Sessions that were there then.
    seen: BTreeSet<SessionKey>,
}

/// The checker's own knowledge.
#[derive(Debug, Default)]
pub(crate) struct Truth {
    asked: BTreeMap<ExportNumber, Asked>,
    /// When sessions were deleted first.
    pub(crate) deleted_ms: BTreeMap<SessionKey, u64>,
    /// What was read of sessions for an archive, each time.
    readings: BTreeMap<(ExportNumber, SessionKey), Vec<Vec<u64>>>,
    /// Objects whose rows a backup had not.
    pub(crate) strays: BTreeSet<ObjectNumber>,
    /// Objects that landed when nobody had to expect them any more.
    late: BTreeSet<ObjectNumber>,
    /// Objects whose rows came back live behind them.
    pub(crate) gone_before: BTreeSet<ObjectNumber>,
}

/// Where a session's bytes end in an archive.
fn manifest(key: SessionKey) -> Entry {
    Entry { uid: 0, offset: 0, session: Some(key), stored: Stored::Chunked }
}

/// Under which the key store has an export's own key.
pub(crate) fn key_of(workspace: WorkspaceId, export: ExportNumber) -> SessionKey {
    SessionKey::of_export(workspace, ExportId(Uuid::from_u128(u128::MAX - u128::from(export))))
}

impl World {
    pub(super) fn exporter(&self, process: Process) -> Option<&Node> {
        let node = self.exporters.get(process.0.checked_sub(self.first_exporter())?)?;
        (node.is_alive && node.incarnation == process.1).then_some(node)
    }

    fn exporter_mut(&mut self, process: Process) -> Option<&mut Node> {
        let place = process.0.checked_sub(self.first_exporter())?;
        let node = self.exporters.get_mut(place)?;
        (node.is_alive && node.incarnation == process.1).then_some(node)
    }

    fn export_row(&self, export: ExportNumber) -> Option<&ExportRow> {
        self.index.exports.get(&export)
    }

    fn is_export_open(&self, export: ExportNumber) -> bool {
        self.export_row(export).is_some_and(|row| !row.is_over)
    }

    /// What an object's path says, also without a row.
    fn export_of(&self, number: ObjectNumber) -> Option<ExportNumber> {
        match self.index.kinds.get(&number) {
            Some(ObjectKind::Export(export)) => Some(*export),
            _ => None,
        }
    }

    // Processes come and go.

    pub(super) fn crash_exporter(&mut self, number: usize) {
        let place = number - self.first_exporter();
        if std::mem::replace(&mut self.exporters[place].is_alive, false) {
            self.happened.exporters_died += u64::from(self.exporters[place].making.is_some());
            let wait = self.rng.u64(1..1_000);
            self.after(wait, Event::Restart(number));
        }
    }

    pub(super) fn restart_exporter(&mut self, number: usize) {
        let place = number - self.first_exporter();
        let node = &mut self.exporters[place];
        if !node.is_alive {
            *node = Node::new(node.incarnation + 1);
            let process = (number, node.incarnation);
            self.after(1, Event::ExportOn(process));
        }
    }

    pub(super) fn pause_exporter(&mut self, number: usize, ms: u64) {
        let until = self.now_ms + ms;
        let place = number - self.first_exporter();
        let node = &mut self.exporters[place];
        if node.is_alive && node.paused_until.is_none_or(|before| before <= self.now_ms) {
            node.paused_until = Some(until);
        }
    }

    // Those who ask.

    pub(super) fn ask_export(&mut self) {
        let workspaces: Vec<WorkspaceId> = self.index.workspaces.keys().copied().collect();
        let workspace = workspaces[self.rng.usize(0..workspaces.len())];
        let reference = if self.rng.u32(0..10) < 6 { Some(self.rng.usize(0..2)) } else { None };
        let kept_ms = if self.rng.bool() { self.rng.u64(600..6_000) } else { EXPIRES_MS_MAX };
        let open = self.index.exports.values().filter(|row| row.workspace == workspace && !row.is_over).count();
        if open >= OPEN_MOST {
            return;
        }
        self.happened.exports_asked += 1;
        self.next_export += 1;
        let row = ExportRow {
            workspace,
            reference,
            expires_ms: self.database_ms() + kept_ms,
            sessions: BTreeMap::new(),
            parts: BTreeMap::new(),
            stands: 0,
            sessions_stand: 0,
            after: None,
            lease: None,
            worked_ms: 0,
            is_ready: false,
            is_over: false,
            shredded_ms: None,
            gone_ms: None,
        };
        let seen = self.in_scope(&row, None).collect();
        self.exported.asked.insert(self.next_export, Asked { workspace, at_ms: self.now_ms, seen });
        self.index.exports.insert(self.next_export, row);
        if self.rng.u32(0..8) == 0 {
            let wait = self.rng.u64(1..3_000);
            self.after(wait, Event::EndExport(self.next_export));
        }
    }

    pub(super) fn end_by_hand(&mut self, export: ExportNumber) {
        if self.index.locked_exports.contains(&export) {
            self.after(5, Event::EndExport(export));
        } else if let Some(row) = self.index.exports.get_mut(&export) {
            self.happened.exports_ended_by_hand += u64::from(!std::mem::replace(&mut row.is_over, true));
        }
    }

    /// Live sessions of an export behind one, in the order of their ids. An export of a workspace leaves out what would end it.
    fn in_scope<'a>(&'a self, row: &'a ExportRow, after: Option<SessionKey>) -> impl Iterator<Item = SessionKey> + 'a {
        let kept_for_ms = self.index.workspaces[&row.workspace].kept_for_ms(self.database_ms());
        let takes_deleted = self.mutant == Some(Mutant::IncludesDeleted);
        let own = self.index.sessions.iter().filter(move |(key, session)| {
            let is_wanted = match row.reference {
                Some(reference) => session.link.is_some_and(|link| self.index.links[link].reference == reference),
                None => session.began_ms.saturating_add(kept_for_ms) > row.expires_ms,
            };
            key.workspace == row.workspace
                && (session.deleted_step.is_none() || takes_deleted)
                && is_wanted
                && after.is_none_or(|after| after < **key)
        });
        own.map(|(key, _)| *key)
    }

    // Making archives.

    /// Does what comes next.
    pub(super) fn export_on(&mut self, process: Process) {
        if self.exporter(process).is_some_and(|node| node.making.is_none())
            && self.index.exports.values().all(|row| row.is_ready || row.is_over)
        {
            let wait = self.rng.u64(100..300);
            return self.after(wait, Event::ExportOn(process));
        }
        let checks = self.rng.u32(0..3) == 0;
        let Some(node) = self.exporter_mut(process) else { return };
        let op = match &mut node.making {
            None => Op::Take,
            Some(making) => {
                let is_turn_over = making.turn >= TURN_SESSIONS;
                let is_whole = making.has_all && making.todo.is_empty();
                if making.pending.len() >= PART_ENTRIES {
                    let rest = making.pending.split_off(PART_ENTRIES);
                    let entries = std::mem::replace(&mut making.pending, rest);
                    self.part(process, entries, false)
                } else if !making.written.is_empty() && (is_turn_over || is_whole || checks) {
                    let entries = std::mem::take(&mut making.pending);
                    self.part(process, entries, true)
                } else if let Some(key) = making.todo.front().filter(|_| !is_turn_over) {
                    Op::Read { export: making.export, key: *key }
                } else if is_whole {
                    self.part(process, Vec::new(), true)
                } else if is_turn_over {
                    Op::Leave(making.export)
                } else {
                    Op::Include { export: making.export, after: making.after }
                }
            }
        };
        self.send_export(process, op);
    }

    fn send_export(&mut self, process: Process, op: Op) {
        let (wait, life) = (self.latency(), self.life);
        self.after(wait, Event::Export { process, op: Box::new(op), given_up: false, life });
    }

    /// The next part, by a name that nobody had before.
    fn part(&mut self, process: Process, entries: Vec<Entry>, is_checkpoint: bool) -> Op {
        self.next_object += 1;
        self.next_attempt += 1;
        let (object, attempt, life) = (self.next_object, self.next_attempt, self.life);
        let Some(making) = self.exporter_mut(process).and_then(|node| node.making.as_mut()) else { return Op::Take };
        let checkpoint = is_checkpoint.then(|| (making.written.clone(), making.sessions_stand + making.written.len()));
        Op::Keys(Part {
            export: making.export,
            object,
            attempt,
            number: making.parts + 1,
            life,
            is_last: is_checkpoint && making.written.is_empty(),
            content: Rc::new(Content { entries, ..Content::default() }),
            checkpoint,
        })
    }

    /// Work reaches its server; which answers, fails, or does what it was asked for and loses its answer.
    pub(super) fn export(&mut self, process: Process, op: Box<Op>, given_up: bool, life: u64) -> Result<(), Violation> {
        let is_put = matches!(*op, Op::Put(_));
        if life != self.life && !is_put {
            // The database that it was sent to is no more.
            if !given_up {
                self.answer_export(process, Answer::Failed);
            }
            return Ok(());
        }
        if self.is_export_locked(&op) {
            self.after(5, Event::Export { process, op, given_up, life });
            return Ok(());
        }
        let mut is_lost = given_up;
        if !given_up && self.chance(self.faults.failing) {
            self.happened.failed += 1;
            if let Op::Put(part) = &*op
                && self.rng.u32(0..4) == 0
            {
                self.leave_part(part.object, Rc::clone(&part.content));
            }
            self.answer_export(process, Answer::Failed);
            return Ok(());
        }
        // A publishing has ends of its own.
        if !given_up && !matches!(*op, Op::Publish(_)) && self.chance(self.faults.answer_lost) {
            self.answer_export(process, Answer::Failed);
            if is_put && self.rng.bool() {
                self.happened.done_late += 1;
                let wait = self.rng.u64(1..PUT_LATE_MS_MAX);
                self.after(wait, Event::Export { process, op, given_up: true, life });
                return Ok(());
            }
            self.happened.answers_lost += 1;
            is_lost = true;
        }
        let answer = self.carry_out_export(process, *op)?;
        if !is_lost {
            self.answer_export(process, answer);
        }
        Ok(())
    }

    fn answer_export(&mut self, process: Process, answer: Answer) {
        let wait = self.latency();
        self.after(wait, Event::ExportAnswer { process, answer: Box::new(answer) });
    }

    /// Whether work waits for a row that a transaction has locked.
    fn is_export_locked(&self, op: &Op) -> bool {
        let is_locked = |export: &ExportNumber| self.index.locked_exports.contains(export);
        match op {
            Op::Include { export, after } => {
                let row = self.export_row(*export);
                let mut found = row.into_iter().flat_map(|row| self.in_scope(row, *after)).take(INCLUDED_AT_ONCE);
                is_locked(export) || found.any(|key| self.index.locked_sessions.contains(&key))
            }
            Op::Stage(part) | Op::Publish(part) => is_locked(&part.export),
            Op::Leave(export) => is_locked(export),
            Op::Take | Op::Read { .. } | Op::Keys(_) | Op::Put(_) => false,
        }
    }

    fn carry_out_export(&mut self, process: Process, op: Op) -> Result<Answer, Violation> {
        Ok(match op {
            Op::Take => self.take_export(process),
            Op::Include { export, after } => self.include(process, export, after),
            Op::Read { export, key } => self.read_for_export(process, export, key)?,
            Op::Keys(part) => {
                let key = key_of(self.exported.asked[&part.export].workspace, part.export);
                if self.caches.get(&(key, process)).is_none_or(|until_ms| *until_ms <= self.now_ms) {
                    self.keys.insert(key, self.mutant)?;
                }
                if self.opens(process, key)? { Answer::Then(Op::Stage(part)) } else { Answer::Over }
            }
            Op::Stage(mut part) => {
                part.life = self.life;
                if !self.keep_export(process, part.export) {
                    return Ok(Answer::Over);
                }
                if !self.is_export_open(part.export) {
                    return Err("R1: a part was staged of an export that is over".into());
                }
                let now_ms = self.database_ms();
                self.index.insert(part.object, ObjectKind::Export(part.export), 0, now_ms)?;
                Answer::Then(Op::Put(part))
            }
            Op::Put(part) => {
                self.put_part_of_export(&part)?;
                Answer::Then(Op::Publish(part))
            }
            Op::Publish(part) => self.publish_part(process, part)?,
            Op::Leave(export) => {
                if let Some(row) = self.index.exports.get_mut(&export) {
                    row.lease.take_if(|(owner, _)| *owner == process);
                }
                Answer::Left
            }
        })
    }

    /// The one that was worked at least lately. What of it does not stand goes.
    fn take_export(&mut self, process: Process) -> Answer {
        let (now_ms, lease_ms) = (self.database_ms(), self.export_lease_ms);
        let is_free =
            |row: &ExportRow| !row.is_ready && !row.is_over && row.lease.is_none_or(|(_, until_ms)| until_ms < now_ms);
        let rows = self.index.exports.iter();
        let free = rows.filter(|(export, row)| is_free(row) && !self.index.locked_exports.contains(export));
        let free = free.min_by_key(|(export, row)| (row.worked_ms, **export)).map(|(export, _)| *export);
        let Some((export, row)) = free.and_then(|export| Some((export, self.index.exports.get_mut(&export)?))) else {
            return Answer::Nothing;
        };
        self.happened.exports_taken += u64::from(row.stands > 0);
        self.happened.exports_taken_over += u64::from(row.lease.is_some());
        (row.lease, row.worked_ms) = (Some((process, now_ms + lease_ms)), now_ms);
        let stays = self.mutant == Some(Mutant::TornPartsStay);
        let cut = if stays { BTreeMap::new() } else { row.parts.split_off(&(row.stands + 1)) };
        let making = Making {
            export,
            after: row.after,
            todo: VecDeque::new(),
            has_all: false,
            pending: Vec::new(),
            written: Vec::new(),
            parts: row.parts.len(),
            sessions_stand: row.sessions_stand,
            turn: 0,
        };
        self.happened.parts_cut += cut.len() as u64;
        self.condemn_standing(cut.into_values());
        Answer::Taken(making)
    }

    fn condemn_standing(&mut self, objects: impl Iterator<Item = ObjectNumber>) {
        let is_condemned = |row: &ObjectRow| row.state == ObjectState::Condemned;
        let standing = objects.filter(|number| !self.index.objects.get(number).is_none_or(is_condemned));
        let standing: Vec<ObjectNumber> = standing.collect();
        self.condemn(&standing);
    }

    /// Keeps an export for whoever makes its archive; `false` when it is over, or another has it.
    fn keep_export(&mut self, process: Process, export: ExportNumber) -> bool {
        let (now_ms, lease_ms) = (self.database_ms(), self.export_lease_ms);
        let (any_owner, any_state) =
            (self.mutant == Some(Mutant::ExportOwnersNotCompared), self.mutant == Some(Mutant::PartsOfWhatIsOver));
        let Some(row) = self.index.exports.get_mut(&export) else { return false };
        let is_ours = row.lease.is_some_and(|(owner, _)| owner == process) || any_owner;
        let is_open = (!row.is_over && row.expires_ms > now_ms) || any_state;
        let keeps = is_ours && is_open && !row.is_ready;
        if keeps {
            row.lease = Some((process, now_ms + lease_ms));
        }
        keeps
    }

    fn include(&mut self, process: Process, export: ExportNumber, after: Option<SessionKey>) -> Answer {
        let Some(row) = self.export_row(export) else { return Answer::Over };
        let found: Vec<SessionKey> = self.in_scope(row, after).take(INCLUDED_AT_ONCE).collect();
        if !self.keep_export(process, export) {
            return Answer::Over;
        }
        if let Some(row) = self.index.exports.get_mut(&export) {
            for key in &found {
                row.sessions.entry(*key).or_default();
            }
        }
        Answer::Included(found)
    }

    fn read_for_export(
        &mut self,
        process: Process,
        export: ExportNumber,
        key: SessionKey,
    ) -> Result<Answer, Violation> {
        // One that was deleted since has ended the export with it.
        let Some(sources) = self.snapshot(key) else { return Ok(Answer::Over) };
        if self.keys.closed.contains(&key) {
            return Ok(Answer::Failed);
        }
        if !self.opens(process, key)? {
            return Ok(Answer::Over);
        }
        let expected = self.visible.batches.get(&key).cloned().unwrap_or_default();
        self.check_reading(key, &sources, &expected)?;
        let mut entries = entries_of(&self.log, &plan_of(key, &sources), &sources);
        entries.push(manifest(key));
        let read = entries.iter().map(|entry| entry.uid).collect();
        self.exported.readings.entry((export, key)).or_default().push(read);
        Ok(Answer::Read(key, entries))
    }

    /// Nothing lands of an export that is gone, or of a session that is erased.
    fn put_part_of_export(&mut self, part: &Part) -> Result<(), Violation> {
        // A clock that jumps lets less time pass than it should, and a restored index does not know what was staged.
        if self.happened.database_clock_jumps > 0 || part.life != self.life {
            self.exported.late.insert(part.object);
            return self.bucket.put(part.object, part.attempt, Rc::clone(&part.content));
        }
        if self.export_row(part.export).is_none_or(|row| row.gone_ms.is_some()) {
            return Err(format!("R3: object {} landed after its export was gone", part.object));
        }
        self.put(part.object, part.attempt, Rc::clone(&part.content))
    }

    fn publish_part(&mut self, process: Process, part: Part) -> Result<Answer, Violation> {
        if !self.keep_export(process, part.export) {
            return Ok(Answer::Over);
        }
        let state = self.index.objects.get(&part.object).map(|row| row.state);
        let takes_any = self.mutant == Some(Mutant::PartsThatWereGivenUp) && state.is_some();
        if state != Some(ObjectState::Staged) && !takes_any {
            return Ok(Answer::Over);
        }
        let row = &self.index.exports[&part.export];
        let standing = row.sessions.values().filter(|stands| **stands).count();
        if row.parts.contains_key(&part.number) || (part.is_last && standing != row.sessions_stand) {
            return Ok(Answer::Failed);
        }
        if self.chance(self.faults.answer_lost) {
            let commits = self.rng.bool();
            self.index.locked_exports.insert(part.export);
            self.index.locked_objects.insert(part.object);
            let (wait, life) = (self.rng.u64(1..400), self.life);
            self.after(wait, Event::EndPart { part: Box::new(part), commits, life });
            return Ok(Answer::Failed);
        }
        self.commit_part(&part)?;
        Ok(Answer::Published(part))
    }

    pub(super) fn end_part(&mut self, part: &Part, commits: bool, life: u64) -> Result<(), Violation> {
        self.index.locked_exports.remove(&part.export);
        self.index.locked_objects.remove(&part.object);
        if commits && life == self.life {
            self.happened.parts_committed += 1;
            self.commit_part(part)
        } else {
            self.happened.parts_aborted += 1;
            Ok(())
        }
    }

    fn commit_part(&mut self, part: &Part) -> Result<(), Violation> {
        if !self.is_export_open(part.export) {
            return Err("R1: an export that is over got a part".into());
        }
        if self.bucket.get(part.object) != Some(&part.content) {
            return Err(format!("B3: object {} of an export became live without its bytes", part.object));
        }
        let times = (self.database_ms(), self.now_ms);
        self.index.turn_live(part.object, &part.content, times);
        let Some(row) = self.index.exports.get_mut(&part.export) else { return Ok(()) };
        row.parts.insert(part.number, part.object);
        let Some((sessions, sessions_stand)) = &part.checkpoint else { return Ok(()) };
        for key in sessions {
            row.sessions.entry(*key).and_modify(|stands| *stands = true);
        }
        (row.stands, row.sessions_stand) = (part.number, *sessions_stand);
        (row.after, row.is_ready) = (sessions.last().copied().or(row.after), part.is_last);
        if !part.is_last {
            return Ok(());
        }
        self.happened.exports_ready += 1;
        for _ in 0..2 {
            let wait = self.rng.u64(1..2_500);
            self.after(wait, Event::FetchExport(part.export));
        }
        self.check_archive(part.export)
    }

    pub(super) fn export_answer(&mut self, process: Process, answer: Answer) -> Result<(), Violation> {
        let failed_wait = self.rng.u64(self.export_lease_ms..self.export_lease_ms * 2);
        let read_wait = self.rng.u64(1..READ_MS_MAX);
        let Some(node) = self.exporter_mut(process) else { return Ok(()) };
        let wait = match (answer, &mut node.making) {
            (Answer::Taken(making), none) => {
                *none = Some(making);
                1
            }
            (Answer::Then(op), _) => {
                self.send_export(process, op);
                return Ok(());
            }
            (Answer::Included(found), Some(making)) => {
                making.has_all = found.is_empty();
                making.after = found.last().copied().or(making.after);
                making.todo.extend(found);
                1
            }
            (Answer::Read(key, entries), Some(making)) => {
                making.todo.pop_front();
                making.pending.extend(entries);
                making.written.push(key);
                making.turn += 1;
                read_wait
            }
            (Answer::Published(part), Some(making)) if !part.is_last => {
                making.parts = part.number;
                if let Some((_, sessions_stand)) = part.checkpoint {
                    making.sessions_stand = sessions_stand;
                    making.written.clear();
                }
                1
            }
            (answer, making) => {
                *making = None;
                let has_failed = matches!(answer, Answer::Failed | Answer::Nothing);
                self.happened.exports_over_unready += u64::from(matches!(answer, Answer::Over));
                if has_failed { failed_wait } else { 1 }
            }
        };
        self.after(wait, Event::ExportOn(process));
        Ok(())
    }

    // Fetching.

    pub(super) fn fetch_export(&mut self, export: ExportNumber) -> Result<(), Violation> {
        let asks = self.mutant != Some(Mutant::FetchesWhatIsOver);
        let row = self.export_row(export).filter(|row| row.is_ready && (!row.is_over || !asks));
        let Some(row) = row else { return Ok(()) };
        let parts = row.parts.values().copied().collect();
        let step_ms = self.rng.u64(0..200);
        let (checked_ms, life) = (self.now_ms, self.life);
        self.fetch_on(Box::new(Fetching { export, parts, next: 0, checked_ms, step_ms, life }))
    }

    /// R2: what an archive has of a session goes with it.
    pub(super) fn fetch_on(&mut self, mut fetching: Box<Fetching>) -> Result<(), Violation> {
        if fetching.life != self.life {
            return Ok(());
        }
        let export = fetching.export;
        let Some(number) = fetching.parts.get(fetching.next).copied() else {
            self.happened.archives_fetched += 1;
            if self.rng.bool() && !self.is_healed {
                let wait = self.rng.u64(1..2_500);
                self.after(wait, Event::FetchExport(export));
            }
            return Ok(());
        };
        if self.now_ms - fetching.checked_ms >= FETCH_CHECK_MS {
            if !self.is_export_open(export) && self.mutant != Some(Mutant::FetchesWhatIsOver) {
                self.happened.archives_cut += 1;
                return Ok(());
            }
            fetching.checked_ms = self.now_ms;
        }
        let key = key_of(self.exported.asked[&export].workspace, export);
        if !self.opens(READER, key)? {
            self.happened.archives_cut += 1;
            return Ok(());
        }
        let Some(content) = self.bucket.get(number) else {
            if self.is_export_open(export) && !self.exported.gone_before.contains(&number) {
                return Err(format!("C3: object {number} went beneath who fetches an archive"));
            }
            self.happened.archives_cut += 1;
            return Ok(());
        };
        for key in content.entries.iter().filter_map(|entry| entry.session) {
            let deleted_ms = self.exported.deleted_ms.get(&key);
            if deleted_ms.is_some_and(|deleted_ms| deleted_ms + FETCH_CHECK_MS < self.now_ms) {
                return Err("R2: an archive was fetched with a session that is deleted".into());
            }
        }
        fetching.next += 1;
        self.after(fetching.step_ms, Event::FetchOn(fetching));
        Ok(())
    }

    // How they end.

    pub(super) fn look_for_exports(&self) -> Vec<Ending> {
        let mut endings = Vec::new();
        if self.next_export == 0 {
            return endings;
        }
        let now_ms = self.database_ms();
        let rows = || self.index.exports.iter();
        if rows().any(|(export, _)| self.is_export_due(*export)) && self.mutant != Some(Mutant::ExportsLastForEver) {
            endings.push(Ending::Expire);
        }
        let is_ending = |row: &ExportRow| row.is_over && (row.gone_ms.is_none() || row.shredded_ms.is_none());
        let mut objects: BTreeMap<ExportNumber, (u64, u64)> = BTreeMap::new();
        if rows().any(|(_, row)| is_ending(row)) {
            for row in self.index.objects.values() {
                if let ObjectKind::Export(export) = row.kind {
                    let (standing, left) = objects.entry(export).or_default();
                    *standing += u64::from(row.state != ObjectState::Condemned);
                    *left += 1;
                }
            }
        }
        let keys_cached_ms = if self.mutant == Some(Mutant::ExportGoneBeforeCachesRanOut) { 0 } else { KEYS_CACHED_MS };
        let (mut shredded, mut condemned) = (Vec::new(), Vec::new());
        for (export, row) in rows().filter(|(_, row)| is_ending(row)) {
            let (objects_standing, left) = objects.get(export).copied().unwrap_or_default();
            let awaits = self.mutant != Some(Mutant::ExportRemovalNotAwaited);
            let facts = ExportFacts {
                shredded_for_ms: row.shredded_ms.map(|at| now_ms.saturating_sub(at)),
                objects_standing,
                objects_left: if awaits { left } else { 0 },
            };
            match next_export_step(&facts, keys_cached_ms) {
                ExportStep::Shred => shredded.push(*export),
                ExportStep::Condemn => condemned.push(*export),
                ExportStep::VerifyAbsent if self.mutant == Some(Mutant::ExportsNotListed) => {
                    endings.push(Ending::MarkGone(*export));
                }
                ExportStep::VerifyAbsent => endings.push(Ending::List(*export)),
                ExportStep::AwaitRemoval | ExportStep::AwaitKeyCaches => {}
            }
        }
        if !shredded.is_empty() {
            endings.push(Ending::Shred(shredded));
        }
        if !condemned.is_empty() {
            endings.push(Ending::Condemn(condemned));
        }
        if rows().any(|(_, row)| self.is_forgettable(row)) {
            endings.push(Ending::Forget);
        }
        let may_be = self.exported.asked.len() > self.index.exports.len();
        if may_be && self.mutant != Some(Mutant::StraysStay) && !self.strays().is_empty() {
            endings.push(Ending::RemoveStrays);
        }
        endings
    }

    fn is_export_due(&self, export: ExportNumber) -> bool {
        let is_locked = self.index.locked_exports.contains(&export);
        self.export_row(export).is_some_and(|row| !row.is_over && row.expires_ms <= self.database_ms() && !is_locked)
    }

    fn is_forgettable(&self, row: &ExportRow) -> bool {
        row.gone_ms.is_some_and(|at| at + REMEMBERED_MS < self.database_ms()) && row.shredded_ms.is_some()
    }

    /// Objects of exports that are old and have no row.
    fn strays(&self) -> Vec<(ExportNumber, ObjectNumber)> {
        let is_old = |export: &ExportNumber| self.exported.asked[export].at_ms + STRAY_AGE_MS < self.now_ms;
        let lying = self.bucket.names().filter_map(|number| Some((self.export_of(number)?, number)));
        lying.filter(|(export, _)| self.export_row(*export).is_none() && is_old(export)).collect()
    }

    /// What lies below an export's prefix, and uploads there, as far as it is listed.
    fn below_export(&self, export: ExportNumber) -> (Vec<ObjectNumber>, Vec<ObjectNumber>) {
        let below: Vec<ObjectNumber> =
            self.bucket.names().filter(|number| self.export_of(*number) == Some(export)).collect();
        let found = below.iter().copied().filter(|number| self.is_listed(*number)).collect();
        let ends = self.mutant != Some(Mutant::UploadsGoOn);
        let uploads = below.into_iter().filter(|number| ends && self.bucket.has_parts(*number)).collect();
        (found, uploads)
    }

    pub(super) fn lead_export(&mut self, ending: Ending) -> Result<Vec<Ending>, Violation> {
        let now_ms = self.database_ms();
        match ending {
            Ending::Expire => {
                let due: Vec<ExportNumber> =
                    self.index.exports.keys().copied().filter(|export| self.is_export_due(*export)).collect();
                for export in due {
                    self.happened.exports_expired += 1;
                    self.index.exports.entry(export).and_modify(|row| row.is_over = true);
                }
            }
            Ending::Shred(exports) => {
                for export in &exports {
                    if self.is_export_open(*export) {
                        return Err("R9: a key was destroyed of an export that is not over".into());
                    }
                    let key = key_of(self.exported.asked[export].workspace, *export);
                    if self.mutant != Some(Mutant::ExportKeyStays) {
                        self.keys.shred(key, self.now_ms);
                    }
                }
                return Ok(vec![Ending::MarkShredded(exports)]);
            }
            Ending::MarkShredded(exports) => {
                for export in exports {
                    if let Some(row) = self.index.exports.get_mut(&export).filter(|row| row.is_over) {
                        row.shredded_ms.get_or_insert(now_ms);
                    }
                }
            }
            Ending::Condemn(exports) => {
                let of_over = |kind: ObjectKind| match kind {
                    ObjectKind::Export(export) => exports.contains(&export),
                    _ => false,
                };
                let own = self.index.objects.iter().filter(|(_, row)| of_over(row.kind));
                let own: Vec<ObjectNumber> = own.map(|(number, _)| *number).collect();
                self.condemn_standing(own.into_iter());
            }
            Ending::List(export) => {
                let (found, uploads) = self.below_export(export);
                if found.is_empty() && uploads.is_empty() {
                    return Ok(vec![Ending::MarkGone(export)]);
                }
                self.happened.exports_returned += 1;
                return Ok(vec![Ending::Remove(found, uploads)]);
            }
            Ending::Remove(found, uploads) => {
                uploads.into_iter().for_each(|number| self.bucket.abort(number));
                self.delete_objects(&found);
            }
            Ending::MarkGone(export) => {
                let row = self.index.exports.get_mut(&export).filter(|row| row.is_over && row.gone_ms.is_none());
                if let Some(row) = row {
                    row.gone_ms = Some(now_ms);
                    row.sessions.clear();
                    row.parts.clear();
                    self.happened.exports_gone += 1;
                    return self.check_export_gone(export).map(|()| Vec::new());
                }
            }
            Ending::Forget => {
                let old = self.index.exports.iter().filter(|(_, row)| self.is_forgettable(row));
                let old: Vec<ExportNumber> = old.map(|(export, _)| *export).collect();
                old.iter().for_each(|export| drop(self.index.exports.remove(export)));
            }
            Ending::RemoveStrays => {
                let strays = self.strays();
                self.happened.strays += strays.len() as u64;
                for (export, number) in &strays {
                    self.keys.shred(key_of(self.exported.asked[export].workspace, *export), self.now_ms);
                    self.bucket.abort(*number);
                }
                self.delete_objects(&strays.into_iter().map(|(_, number)| number).collect::<Vec<_>>());
            }
        }
        Ok(Vec::new())
    }

    // Backups.

    pub(super) fn back_up_exports(&self) -> Backup {
        let own = self.index.objects.iter().filter(|(_, row)| matches!(row.kind, ObjectKind::Export(_)));
        Backup {
            exports: self.index.exports.clone(),
            objects: own.map(|(number, row)| (*number, row.clone())).collect(),
        }
    }

    /// Exports, and rows of their objects, are as they were, or not there at all; what lies in the bucket stays.
    pub(super) fn take_exports_back(&mut self, backup: Backup, keys: Option<&BTreeSet<SessionKey>>) {
        let Backup { exports, objects } = backup;
        let strays = &mut self.exported.strays;
        self.index.objects.retain(|number, row| {
            let is_lost = matches!(row.kind, ObjectKind::Export(_)) && !objects.contains_key(number);
            if is_lost {
                strays.insert(*number);
            }
            !is_lost
        });
        for (number, row) in objects {
            if row.state == ObjectState::Live && self.bucket.get(number) != Some(&row.content) {
                self.exported.gone_before.insert(number);
            }
            self.index.objects.insert(number, row);
        }
        let before = std::mem::replace(&mut self.index.exports, exports);
        for (export, row) in &before {
            match self.index.exports.get(export) {
                None => self.happened.exports_lost += 1,
                Some(now) => {
                    let is_other = now.is_over != row.is_over || now.parts.len() != row.parts.len();
                    self.happened.exports_restored += u64::from(is_other);
                }
            }
        }
        for (export, row) in &self.index.exports {
            let key = key_of(row.workspace, *export);
            let was_there = keys.is_some_and(|keys| keys.contains(&key));
            if was_there && self.keys.get(&key) == Some(KeyRow::Shredded) {
                self.happened.keys_restored += 1;
                self.keys.restore(key);
                self.keys.shredded_ms.remove(&key);
            }
        }
        // A tombstone that the journal does not have yet is not taken back here: so is not what came with it.
        let deleted = self.index.sessions.iter().filter(|(_, row)| row.deleted_step.is_some());
        let deleted: Vec<SessionKey> = deleted.map(|(key, _)| *key).collect();
        for key in deleted {
            self.index.end_exports_of(&key);
        }
    }

    // What must hold.

    /// Objects with bytes of a session that a backup did not know of, and whose exports have keys.
    pub(super) fn left_in_strays(&self, key: &SessionKey) -> u64 {
        let can_be_opened = |number: &ObjectNumber| {
            self.export_of(*number).is_some_and(|export| {
                let key = key_of(self.exported.asked[&export].workspace, export);
                self.keys.get(&key) == Some(KeyRow::Known)
            })
        };
        self.bucket.holding(key).filter(can_be_opened).count() as u64
    }

    /// Archives that are not whole, and exports that are over and not gone.
    pub(super) fn exports_unfinished(&self) -> (usize, usize) {
        let rows = self.index.exports.values();
        let making = rows.clone().filter(|row| !row.is_ready && !row.is_over).count();
        (making, rows.filter(|row| row.is_over && row.gone_ms.is_none()).count())
    }

    /// What lies below an export that is not over goes with it, row or none.
    pub(super) fn is_below_open_export(&self, number: ObjectNumber) -> bool {
        self.export_of(number).is_some_and(|export| self.is_export_open(export))
    }

    /// An export goes with the first of its sessions, and in time; one that is gone has nothing.
    pub(super) fn check_exports(&self) -> Result<(), Violation> {
        let now_ms = self.database_ms();
        let kinds = self.index.objects.values().map(|row| row.kind);
        let with_rows: BTreeSet<ExportNumber> = kinds
            .filter_map(|kind| match kind {
                ObjectKind::Export(export) => Some(export),
                _ => None,
            })
            .collect();
        for (export, row) in &self.index.exports {
            if !row.is_over && row.sessions.keys().any(|key| self.index.is_deleted(key)) {
                return Err("R2: an export goes on with a session that is deleted".into());
            }
            let due_ms = row.expires_ms.max(self.healed_ms + self.database_skew_ms);
            if self.is_healed && !row.is_over && due_ms + DUE_LATE_MS < now_ms {
                return Err("R11: an export is not over in time".into());
            }
            if row.gone_ms.is_some() && with_rows.contains(export) {
                return Err("R3: an export that is gone has an object's row".into());
            }
            if row.gone_ms.is_some() && self.keys.get(&key_of(row.workspace, *export)) != Some(KeyRow::Shredded) {
                return Err("R2: an export that is gone has a key".into());
            }
        }
        Ok(())
    }

    /// Nothing is left of an export, and nothing of it comes any more.
    fn check_export_gone(&self, export: ExportNumber) -> Result<(), Violation> {
        let mut below = self.bucket.names().filter(|number| self.export_of(*number) == Some(export));
        if let Some(number) = below.find(|number| !self.exported.late.contains(number)) {
            return Err(format!("R3: object {number} of an export that is gone lies in the bucket"));
        }
        let is_late = self.queue.values().any(|event| match &**event {
            Event::Export { op, .. } => {
                matches!(&**op, Op::Put(part) if part.export == export && part.life == self.life)
            }
            _ => false,
        });
        if is_late && self.happened.database_clock_jumps == 0 {
            return Err("R3: of an export that is gone an object is on its way".into());
        }
        let key = key_of(self.exported.asked[&export].workspace, export);
        if self.keys.get(&key) != Some(KeyRow::Shredded) {
            return Err("R2: an export that is gone has a key".into());
        }
        self.check_caches(&key)
    }

    /// An archive that is whole has each of its sessions once, as it was read, and in order.
    fn check_archive(&self, export: ExportNumber) -> Result<(), Violation> {
        let Some(row) = self.export_row(export) else { return Ok(()) };
        if !row.parts.keys().copied().eq(1..=row.stands) {
            return Err(format!("C1: an archive is whole with {} of {} parts", row.parts.len(), row.stands));
        }
        let contents = row.parts.values().map(|number| &self.index.objects[number].content);
        let entries: Vec<&Entry> = contents.flat_map(|content| &content.entries).collect();
        let mut found = Vec::new();
        for of_session in entries.split_inclusive(|entry| entry.uid == 0) {
            let Some(key) = of_session.first().and_then(|entry| entry.session) else { continue };
            let is_alone = of_session.iter().all(|entry| entry.session == Some(key));
            let uids: Vec<u64> = of_session.iter().map(|entry| entry.uid).collect();
            let is_read = self.exported.readings.get(&(export, key)).is_some_and(|read| read.contains(&uids));
            if !is_alone || !is_read {
                return Err("C1: an archive has a session otherwise than it was read".into());
            }
            found.push(key);
        }
        // One that was included, and left out as its window became shorter, has a row and nothing in it.
        let standing = row.sessions.iter().filter(|(_, stands)| **stands).map(|(key, _)| key);
        if !standing.clone().eq(&found) {
            return Err(format!("C1: an archive of {} sessions has {}", standing.count(), found.len()));
        }
        let asked = &self.exported.asked[&export];
        let wanted = asked.seen.iter().filter(|key| !self.index.is_deleted(key));
        // Of a workspace, what it leaves out changes with the plan.
        let lost = wanted.filter(|key| row.reference.is_some() && !found.contains(key)).count();
        if lost > 0 {
            return Err(format!("lost: {lost} sessions that were to be exported are in no archive"));
        }
        Ok(())
    }

    /// Those that can be fetched in the end.
    pub(super) fn check_archives(&self) -> Result<(), Violation> {
        let open = self.index.exports.iter().filter(|(_, row)| row.is_ready && !row.is_over);
        for (export, _) in open {
            self.check_archive(*export)?;
        }
        Ok(())
    }
}
