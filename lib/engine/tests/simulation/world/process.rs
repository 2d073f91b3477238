//! A batcher's driver, without bytes: carries out what the machine wants against the models, and tells it what came of it.

use super::*;

/// Of a thousand stagings so many are committed late, or not at all.
const STAGING_OPEN: u32 = 60;

impl World {
    pub(super) fn fetch(&mut self, process: Process) -> Result<(), Violation> {
        let wait = if self.is_healed { self.rng.u64(10..40) } else { self.rng.u64(4..20) };
        self.after(wait, Event::Fetch(process));
        let node = &self.nodes[process.0];
        let reading: Vec<i32> = node.reading.keys().copied().collect();
        if reading.is_empty() || node.is_stopping {
            return Ok(());
        }
        let partition = reading[self.rng.usize(0..reading.len())];
        for _ in 0..self.rng.u32(1..8) {
            let node = &mut self.nodes[process.0];
            let Some(place) = node.reading.get_mut(&partition).filter(|_| !node.is_reading_paused) else { break };
            if place.generation != self.log.generation(partition) {
                // Asked for by the id of a topic that is no more.
                break;
            }
            match self.log.fetch(partition, place.position) {
                Fetched::End => break,
                Fetched::OutOfRange => {
                    node.reading.remove(&partition);
                    self.input(process, Input::LogDoubted)?;
                    break;
                }
                Fetched::Record(record) => {
                    place.position += 1;
                    self.take_in(process, partition, record)?;
                }
            }
        }
        Ok(())
    }

    fn take_in(&mut self, process: Process, partition: i32, record: Record) -> Result<(), Violation> {
        let node = &mut self.nodes[process.0];
        let mut kind = record.kind;
        if let RecordKind::Batch { key, place, .. } = kind
            && !node.read.insert((key, place))
            && self.mutant == Some(Mutant::CopiesOfWhatWasRead)
        {
            kind = RecordKind::Copy(key);
        }
        node.held.insert((partition, record.offset), record);
        node.truth.insert((partition, record.offset), record);
        let before = node.machine.conservation().records_in;
        let meta = RecordMeta { offset: record.offset, bytes: record.bytes, fingerprint: record.uid, kind };
        self.input(process, Input::Record { partition, record: meta })?;
        let node = &mut self.nodes[process.0];
        let taken = node.machine.conservation().records_in - before;
        *node.taken.entry(partition).or_default() += taken;
        // B7: a record may be the one that reaches the bound.
        if node.machine.buffered_bytes() >= self.config.buffer_bytes_max + RECORD_BYTES_MAX {
            return Err(format!("B7: {} bytes are buffered", node.machine.buffered_bytes()));
        }
        Ok(())
    }

    /// Hands over what happened, and carries out what follows.
    pub(super) fn input(&mut self, process: Process, input: Input) -> Result<(), Violation> {
        let now_ms = self.now_ms + self.nodes[process.0].skew_ms;
        if let Input::Staged { flush, staged: Some(staged) } = &input
            && let Some(work) = self.nodes[process.0].works.get_mut(flush)
        {
            work.staged.clone_from(staged);
        }
        self.nodes[process.0].machine.handle(now_ms, input);
        while let Some(effect) = self.nodes[process.0].machine.poll_effect() {
            self.carry_out(process, effect)?;
        }
        let node = &mut self.nodes[process.0];
        if node.machine.conservation().imbalance() != 0 {
            return Err(format!("B4: {:?}", node.machine.conservation()));
        }
        node.tick += 1;
        if let Some(at) = node.machine.poll_timeout() {
            let (wait, tick) = (at.saturating_sub(now_ms), node.tick);
            self.after(wait, Event::Tick { process, tick });
        }
        Ok(())
    }

    fn begin(&mut self, process: Process, op: Op) {
        let wait = self.latency();
        self.after(wait, Event::Apply { process, op, given_up: false });
    }

    fn carry_out(&mut self, process: Process, effect: Effect) -> Result<(), Violation> {
        match effect {
            Effect::TakeEpoch(partition) => self.begin(process, Op::TakeEpoch(partition)),
            Effect::AskLog { partition, question } => self.begin(process, Op::AskLog { partition, question }),
            Effect::Assign { partition, offset } => {
                let node = &mut self.nodes[process.0];
                if let Some(generation) = node.assigned.get(&partition).copied() {
                    node.reading.insert(partition, Reading { position: offset, generation });
                }
            }
            Effect::Drop(partition) => {
                let node = &mut self.nodes[process.0];
                node.reading.remove(&partition);
                node.held.retain(|(of, _), _| *of != partition);
                node.works.retain(|_, work| work.flush.partition != partition);
                node.taken.remove(&partition);
            }
            Effect::Stage(flush) => self.stage(process, flush),
            Effect::Upload { flush, staged } => self.upload(process, flush, staged),
            Effect::Publish { flush, attempt, with_object, activity } => {
                self.publish(process, flush, attempt, with_object, activity);
            }
            Effect::LookUp { flush, attempt } => {
                if let Some(work) = self.nodes[process.0].works.get(&flush) {
                    let (partition, next) = (work.flush.partition, work.flush.next);
                    self.begin(process, Op::LookUp { flush, attempt, partition, next, waited_ms: 0 });
                }
            }
            Effect::Release { partition, next } => self.release(process, partition, next)?,
            Effect::Pause => {
                self.happened.pauses += 1;
                self.nodes[process.0].is_reading_paused = true;
            }
            Effect::Resume => self.nodes[process.0].is_reading_paused = false,
            Effect::AlarmGap { partition, gap } => {
                if gap.first >= gap.next {
                    return Err(format!("B2: an empty gap {gap:?} of partition {partition}"));
                }
            }
            Effect::AlarmForeign(partition) => {
                self.happened.halts += 1;
                self.alarmed.insert(partition);
            }
            Effect::Stopped => self.stopped(process),
        }
        Ok(())
    }

    fn release(&mut self, process: Process, partition: i32, next: u64) -> Result<(), Violation> {
        let published = self.index.progress.get(&partition).map_or(0, |row| row.next);
        if published < next {
            return Err(format!("B4: records below {next} were let go of, and only those below {published} published"));
        }
        let node = &mut self.nodes[process.0];
        node.held.retain(|(of, offset), _| *of != partition || *offset >= next);
        let done: Vec<FlushId> =
            node.works.iter().filter(|(_, work)| work.flush.partition == partition).map(|(id, _)| *id).collect();
        for id in done {
            if let Some(work) = node.works.remove(&id) {
                let taken = node.taken.entry(partition).or_default();
                *taken = taken.saturating_sub(work.flush.records.len() as u64);
            }
        }
        Ok(())
    }

    fn stage(&mut self, process: Process, flush: Flush) {
        let keeps_names = self.mutant == Some(Mutant::NameReuse);
        self.next_object += 1;
        let fresh = self.next_object;
        let node = &mut self.nodes[process.0];
        if self.mutant == Some(Mutant::OffsetsFromKafka) {
            self.noted.insert(flush.partition, flush.next);
        }
        let object = flush
            .has_object()
            .then(|| if keeps_names { *node.names.entry(flush.partition).or_insert(fresh) } else { fresh });
        let find = |records: &BTreeMap<(i32, u64), Record>| -> Vec<Record> {
            let found = |record: &RecordMeta| records.get(&(flush.partition, record.offset)).copied();
            flush.records.iter().filter_map(found).collect()
        };
        let (held, truth) = (find(&node.held), find(&node.truth));
        node.works.retain(|_, work| work.flush.partition != flush.partition);
        let work = Work { flush: flush.clone(), truth, held, object, staged: Staged::default(), content: None };
        node.works.insert(flush.id, work);
        self.begin(process, Op::Keys { flush, object });
    }

    fn upload(&mut self, process: Process, id: FlushId, staged: Staged) {
        let stores_deleted = self.mutant == Some(Mutant::DeletedAreStored);
        let Some(work) = self.nodes[process.0].works.get_mut(&id) else { return };
        let Some(object) = work.object else { return };
        let layout = if stores_deleted { Staged { refused: Vec::new(), ..staged } } else { staged };
        let entries: Vec<Entry> = work
            .flush
            .records
            .iter()
            .filter_map(|meta| {
                let held = work.held.iter().find(|held| held.offset == meta.offset)?;
                let stored = match layout.fate(&meta.kind) {
                    Fate::Chunked => Stored::Chunked,
                    Fate::Copy => Stored::Copy,
                    Fate::Quarantined(_) => Stored::Quarantined,
                    Fate::Indexed | Fate::Deleted => return None,
                };
                let session = match held.kind {
                    RecordKind::Batch { key, .. } => Some(key),
                    _ => None,
                };
                Some(Entry { uid: held.uid, offset: held.offset, session, stored })
            })
            .collect();
        let sessions: BTreeSet<SessionKey> = entries.iter().filter_map(|entry| entry.session).collect();
        let content = Rc::new(self.shared_content(entries));
        for key in sessions {
            if self.chance(self.faults.corrupt) {
                self.corrupt.insert((object, key));
            }
        }
        if let Some(work) = self.nodes[process.0].works.get_mut(&id) {
            work.content = Some(Rc::clone(&content));
        }
        self.next_attempt += 1;
        let op = Op::Upload { flush: id, object, attempt: self.next_attempt, content };
        if self.mutant == Some(Mutant::PublishBeforeUpload) {
            self.answer(process, Input::Uploaded { flush: id, ok: true });
        }
        self.begin(process, op);
    }

    fn publish(&mut self, process: Process, id: FlushId, attempt: u32, with_object: bool, activity: Vec<SessionKey>) {
        let Some(work) = self.nodes[process.0].works.get(&id) else { return };
        let object = work.object.filter(|_| with_object).zip(work.content.clone());
        let gaps = work.flush.gaps.iter().map(|gap| (gap.first, gap.next));
        let gaps = if self.mutant == Some(Mutant::SilentGaps) { Vec::new() } else { gaps.collect() };
        let publishing = Box::new(Publishing { flush: work.flush.clone(), attempt, object, gaps, activity });
        let op = Op::Publish { publishing, truth: work.truth.clone(), staged: work.staged.clone(), waited_ms: 0 };
        self.begin(process, op);
    }

    /// An answer on its way; now and then it comes twice.
    pub(super) fn answer(&mut self, process: Process, input: Input) {
        let wait = self.latency();
        // An epoch is asked for without a number: given twice, it may be taken for the answer to the next assignment's question, whose
        // swap is then lost, as it must be.
        let is_numbered = !matches!(input, Input::EpochTaken { .. });
        if self.chance(self.faults.doubled) && is_numbered {
            self.happened.doubled += 1;
            let later = wait + self.rng.u64(1..400);
            self.after(later, Event::Answer { process, input: input.clone() });
        }
        self.after(wait, Event::Answer { process, input });
    }

    /// What a process is told when an operation failed, as far as it knows.
    fn failure(&self, op: &Op) -> Input {
        match op {
            Op::TakeEpoch(partition) => Input::EpochFailed(*partition),
            Op::AskLog { question, .. } => Input::LogAsked { question: *question, span: None },
            Op::Keys { flush, .. } | Op::Stage { flush, .. } => Input::Staged { flush: flush.id, staged: None },
            Op::Upload { flush, .. } => {
                Input::Uploaded { flush: *flush, ok: self.mutant == Some(Mutant::FailedUploadTakenAsDone) }
            }
            Op::Publish { publishing, .. } => {
                let (flush, attempt) = (publishing.flush.id, publishing.attempt);
                Input::Published { flush, attempt, outcome: Published::Failed }
            }
            Op::LookUp { flush, attempt, .. } => Input::LookedUp { flush: *flush, attempt: *attempt, committed: None },
        }
    }

    /// An operation reaches its server; which answers, fails, or does what it was asked for and loses its answer.
    pub(super) fn apply(&mut self, process: Process, op: Op, given_up: bool) -> Result<(), Violation> {
        let is_publish = matches!(op, Op::Publish { .. });
        if !given_up && self.chance(self.faults.failing) {
            self.happened.failed += 1;
            if let Op::Upload { object, content, .. } = &op
                && self.rng.u32(0..4) == 0
            {
                self.leave_part(*object, Rc::clone(content));
            }
            let failure = self.failure(&op);
            self.answer(process, failure);
            return Ok(());
        }
        let mut is_lost = given_up;
        // A publishing has ends of its own.
        if !is_lost && !is_publish && self.chance(self.faults.answer_lost) {
            let failure = self.failure(&op);
            self.answer(process, failure);
            if self.rng.bool() {
                self.happened.done_late += 1;
                let is_put = matches!(op, Op::Upload { .. });
                let wait = self.rng.u64(1..if is_put { PUT_LATE_MS_MAX } else { 3_000 });
                self.after(wait, Event::Apply { process, op, given_up: true });
                return Ok(());
            }
            self.happened.answers_lost += 1;
            is_lost = true;
        }
        let answer = match op {
            Op::TakeEpoch(partition) => self.take_epoch(process, partition),
            Op::AskLog { partition, question } => {
                Some(Input::LogAsked { question, span: Some(self.log.span(partition)) })
            }
            Op::Keys { flush, object } => return self.apply_keys(process, flush, object, is_lost),
            Op::Stage { .. } => return self.apply_stage(process, op, is_lost),
            Op::Upload { flush, object, attempt, content } => {
                self.put(object, attempt, content)?;
                Some(Input::Uploaded { flush, ok: true })
            }
            Op::Publish { publishing, truth, staged, waited_ms } => {
                return self.apply_publish(process, publishing, truth, staged, waited_ms);
            }
            Op::LookUp { .. } => self.look_up(process, op),
        };
        if let Some(answer) = answer.filter(|_| !is_lost) {
            self.answer(process, answer);
        }
        Ok(())
    }

    /// Whether an operation has to wait for a row that is locked; it is begun again then.
    fn waits(&mut self, process: Process, partition: i32, op: Op) -> bool {
        let is_locked = self.index.locked.contains(&partition);
        if is_locked {
            self.after(5, Event::Apply { process, op, given_up: false });
        }
        is_locked
    }

    fn take_epoch(&mut self, process: Process, partition: i32) -> Option<Input> {
        if self.waits(process, partition, Op::TakeEpoch(partition)) {
            return None;
        }
        let row = self.index.take_epoch(partition);
        let next_offset = match self.mutant {
            Some(Mutant::OffsetsFromKafka) => self.noted.get(&partition).copied().unwrap_or(row.next),
            _ => row.next,
        };
        let last = if self.mutant == Some(Mutant::FingerprintForgotten) { None } else { row.last };
        Some(Input::EpochTaken { partition, epoch: row.epoch, next_offset, last })
    }

    /// Keys of all sessions are made where there are none, and read back; then the flush is staged.
    fn apply_keys(
        &mut self,
        process: Process,
        flush: Flush,
        object: Option<ObjectNumber>,
        is_lost: bool,
    ) -> Result<(), Violation> {
        for key in &flush.sessions {
            if self.keys.get(key) == Some(KeyRow::Shredded) {
                self.happened.keys_late += 1;
            }
            self.keys.insert(*key, self.mutant)?;
            if self.keys.get(key) == Some(KeyRow::Known) {
                self.cache_key(process, *key);
            }
        }
        if is_lost {
            return Ok(());
        }
        let of = |wanted: KeyRow| -> Vec<SessionKey> {
            flush.sessions.iter().filter(|key| self.keys.get(key) == Some(wanted)).copied().collect()
        };
        let shredded = of(KeyRow::Shredded);
        let aside = of(KeyRow::Known).into_iter().filter(|key| self.keys.closed.contains(key)).collect();
        self.begin(process, Op::Stage { flush, object, aside, shredded });
        Ok(())
    }

    /// The transaction gets its number with the object's row, then asks for tombstones. Its commit may take a while.
    fn apply_stage(&mut self, process: Process, op: Op, is_lost: bool) -> Result<(), Violation> {
        let Op::Stage { flush, object, aside, shredded } = &op else { return Ok(()) };
        if self.staging_waits(&flush.first_seen) {
            self.after(5, Event::Apply { process, op, given_up: is_lost });
            return Ok(());
        }
        let partition = flush.partition;
        let first_seen = match self.mutant {
            Some(Mutant::FirstSightForgotten) => Vec::new(),
            Some(Mutant::FirstSightByNotExists) => {
                let is_there = |key: &SessionKey| self.index.sessions.contains_key(key);
                let (known, absent) = flush.first_seen.iter().partition::<Vec<SessionKey>, _>(|key| is_there(key));
                let wait = self.rng.u64(1..5);
                self.after(wait, Event::InsertUnlocked { partition, sessions: absent });
                known
            }
            _ => flush.first_seen.clone(),
        };
        let late = self.late_among(&first_seen);
        let mut refused = self.index.deleted_among(&flush.sessions);
        refused.extend(late.iter().map(|(_, key)| *key));
        refused.extend(shredded);
        self.index.step += 1;
        let answer = Input::Staged { flush: flush.id, staged: Some(Staged { refused, aside: aside.clone() }) };
        let staging = deletion::Staging {
            transaction: self.index.next_transaction(),
            object: *object,
            partition,
            first_seen,
            late,
            step: self.index.step,
            staged_ms: self.database_ms(),
            answer: (!is_lost).then(|| (answer, self.failure(&op))),
        };
        if self.chance(STAGING_OPEN) {
            let (wait, commits) = (self.rng.u64(1..1_200), self.rng.u32(0..4) > 0);
            self.lock_staging(&staging);
            self.after(wait, Event::EndStaging { process, staging: Box::new(staging), commits });
            return Ok(());
        }
        self.end_staging(process, staging, true)
    }

    pub(super) fn end_staging(
        &mut self,
        process: Process,
        staging: deletion::Staging,
        commits: bool,
    ) -> Result<(), Violation> {
        self.unlock_staging(&staging);
        if commits {
            self.commit_staging(&staging)?;
        }
        if let Some((answer, failure)) = staging.answer {
            self.answer(process, if commits { answer } else { failure });
        }
        Ok(())
    }

    /// The swap waits for the row, then the commit is sent; what comes of that may not be heard.
    fn apply_publish(
        &mut self,
        process: Process,
        publishing: Box<Publishing>,
        truth: Vec<Record>,
        staged: Staged,
        waited_ms: u64,
    ) -> Result<(), Violation> {
        let (id, partition) = (publishing.flush.id, publishing.flush.partition);
        let attempt = publishing.attempt;
        let outcome = |outcome| Input::Published { flush: id, attempt, outcome };
        if self.index.locked.contains(&partition) {
            if waited_ms > LOCK_TIMEOUT_MS {
                self.answer(process, outcome(Published::Failed));
            } else {
                let op = Op::Publish { publishing, truth, staged, waited_ms: waited_ms + 5 };
                self.after(5, Event::Apply { process, op, given_up: false });
            }
            return Ok(());
        }
        if !self.index.swaps(&publishing, self.mutant) {
            self.happened.lost_swaps += 1;
            self.check_lost_swap(&publishing)?;
            let is_mutant = self.mutant == Some(Mutant::LostSwapTakenAsCommitted);
            self.answer(process, outcome(if is_mutant { Published::Committed } else { Published::Lost }));
            return Ok(());
        }
        if self.chance(self.faults.answer_lost) {
            let commits = self.rng.bool();
            if commits {
                self.happened.ambiguous_committed += 1;
            } else {
                self.happened.ambiguous_aborted += 1;
            }
            self.index.locked.insert(partition);
            self.index.locked_objects.extend(publishing.object.iter().map(|(number, _)| *number));
            let wait = self.rng.u64(1..400);
            self.after(wait, Event::EndPublish { publishing, truth, staged, commits });
            self.answer(
                process,
                outcome(match self.mutant {
                    Some(Mutant::AmbiguousTakenAsFailed | Mutant::ProgressWithoutSwap) => Published::Failed,
                    Some(Mutant::AmbiguousTakenAsCommitted) => Published::Committed,
                    _ => Published::Unknown,
                }),
            );
            return Ok(());
        }
        if self.mutant == Some(Mutant::PublishInTwoTransactions) && publishing.object.is_some() {
            let first = Publishing { object: None, ..publishing.as_ref().clone() };
            self.commit(&first, &truth, &staged)?;
            let wait = self.latency();
            self.after(wait, Event::MakeLive { process, publishing });
        } else {
            self.commit(&publishing, &truth, &staged)?;
        }
        self.answer(process, outcome(Published::Committed));
        Ok(())
    }

    /// B5: who owns a partition under the latest epoch loses to nobody but the collector.
    fn check_lost_swap(&self, publishing: &Publishing) -> Result<(), Violation> {
        let flush = &publishing.flush;
        let row = self.index.progress.get(&flush.partition).copied().unwrap_or_default();
        if row.epoch == flush.epoch && row.next != flush.first {
            return Err(format!(
                "B5: the owner of epoch {} lost against itself: {} comes next, and it began at {}",
                flush.epoch, row.next, flush.first
            ));
        }
        Ok(())
    }

    fn look_up(&mut self, process: Process, op: Op) -> Option<Input> {
        let Op::LookUp { flush, attempt, partition, next, waited_ms } = op else { return None };
        if self.mutant != Some(Mutant::LookUpWithoutLock) && self.index.locked.contains(&partition) {
            if waited_ms > LOCK_TIMEOUT_MS {
                return Some(Input::LookedUp { flush, attempt, committed: None });
            }
            let op = Op::LookUp { flush, attempt, partition, next, waited_ms: waited_ms + 5 };
            self.after(5, Event::Apply { process, op, given_up: false });
            return None;
        }
        let committed = self.index.progress.get(&partition).is_some_and(|row| row.next >= next);
        Some(Input::LookedUp { flush, attempt, committed: Some(committed) })
    }
}
