//! What is checked at every commit, the healing, and what must hold in the end: the ledger against what can be read.

use super::*;

impl World {
    /// B2, B4, B8, B9: a publishing is committed, and has to cover its offsets with what the log held there, each record once.
    pub(super) fn commit(
        &mut self,
        publishing: &Publishing,
        truth: &[Record],
        staged: &Staged,
    ) -> Result<(), Violation> {
        let times = (self.database_ms(), self.now_ms);
        self.index.publish(publishing, &self.bucket, times)?;
        self.happened.commits += 1;
        let flush = &publishing.flush;
        let partition = flush.partition;
        let mut covered = flush.first;
        let mut gaps = publishing.gaps.iter().peekable();
        for record in truth {
            while let Some((first, next)) = gaps.next_if(|(first, _)| *first == covered && *first != record.offset) {
                self.check_gap(partition, *first, *next)?;
                covered = *next;
            }
            if record.offset != covered {
                return Err(format!("B2: offset {covered} of partition {partition} is in no record and no gap"));
            }
            covered += 1;
            self.check_record(partition, record, publishing, staged)?;
        }
        for (first, next) in gaps {
            if *first != covered {
                return Err(format!("B2: a gap begins at {first}, where {covered} comes next"));
            }
            self.check_gap(partition, *first, *next)?;
            covered = *next;
        }
        if covered != flush.next {
            return Err(format!("B2: {covered}..{} of partition {partition} is in no record and no gap", flush.next));
        }
        Ok(())
    }

    /// A gap holds only what the log does not have.
    fn check_gap(&mut self, partition: i32, first: u64, next: u64) -> Result<(), Violation> {
        self.happened.gaps += 1;
        let begins = self.log.span(partition).first;
        if self.log.generation(partition) == 0 && next > begins {
            return Err(format!("B2: a gap {first}..{next} of partition {partition}, whose log begins at {begins}"));
        }
        Ok(())
    }

    fn check_record(
        &mut self,
        partition: i32,
        record: &Record,
        publishing: &Publishing,
        staged: &Staged,
    ) -> Result<(), Violation> {
        self.happened.records += 1;
        if !self.processed.insert(record.uid) {
            return Err(format!("B2: the record at {} of partition {partition} was published twice", record.offset));
        }
        let lives = 0..=self.log.generation(partition);
        let life = lives.rev().find(|life| self.log.ever(partition, *life, record.offset) == Some(*record));
        let life = life.ok_or("B9: a record that the log never had")?;
        if *self.published_life.entry(partition).or_insert(life) != life {
            return Err(format!("B2: partition {partition} was read on in a log that was made anew"));
        }
        let content = publishing.object.as_ref().map_or(&[][..], |(_, content)| &content.entries);
        let stored = content.iter().find(|entry| entry.offset == record.offset);
        if stored.is_some_and(|entry| entry.uid != record.uid) {
            return Err(format!("B9: another record is stored at {} of partition {partition}", record.offset));
        }
        let stored = stored.map(|entry| entry.stored);
        self.visible.publish(partition, record, stored);
        let session = match record.kind {
            RecordKind::Acceptance(key) | RecordKind::Batch { key, .. } => Some(key),
            _ => None,
        };
        let is_refused = session.is_some_and(|key| staged.refused.contains(&key));
        let is_aside = session.is_some_and(|key| staged.aside.contains(&key));
        let is_gone = session.is_some_and(|key| {
            self.index.sessions.get(&key).is_some_and(|row| row.deleted_step.is_some())
                || self.keys.get(&key) == Some(KeyRow::Shredded)
        });
        let what = match (record.kind, stored) {
            (_, None) if is_refused && is_gone => {
                self.happened.dropped_deleted += 1;
                return Ok(());
            }
            (RecordKind::Acceptance(_) | RecordKind::Declines, None) => return Ok(()),
            (RecordKind::Unreadable(_), Some(Stored::Quarantined)) => return Ok(()),
            (RecordKind::Batch { .. }, Some(Stored::Quarantined)) if is_aside && !is_refused => {
                self.happened.set_aside += 1;
                return Ok(());
            }
            (RecordKind::Batch { .. }, Some(Stored::Copy)) if !is_refused && !is_aside => {
                self.happened.copies += 1;
                return Ok(());
            }
            (RecordKind::Batch { .. }, Some(Stored::Chunked)) if !is_refused && !is_aside => return Ok(()),
            (kind, stored) => format!("{kind:?} is stored as {stored:?}"),
        };
        Err(format!("B4: at {} of partition {partition}: {what}", record.offset))
    }

    /// All that was broken is mended, and nothing breaks any more.
    pub(super) fn heal(&mut self) {
        self.is_healed = true;
        self.healed_ms = self.now_ms;
        // The database's clock is right again, and no row is from the future.
        self.database_skew_ms = self.database_skew_max_ms;
        let closed: Vec<SessionKey> = self.keys.closed.iter().copied().collect();
        for key in closed {
            self.keys.closed.remove(&key);
        }
        for number in 0..self.processes() {
            self.after(1, Event::Restart(number));
        }
        self.after(1_000, Event::Converge);
    }

    /// What is not in order yet.
    pub(super) fn unfinished(&self) -> String {
        let lagging: Vec<i32> = self.log.partitions().into_iter().filter(|partition| self.lags(*partition)).collect();
        let staged = self.index.objects.values().filter(|row| row.state == ObjectState::Staged).count();
        let condemned = self.index.objects.values().filter(|row| row.state == ObjectState::Condemned).count();
        let is_kept = |number: &ObjectNumber| self.is_live(*number) || self.is_below_open_export(*number);
        let orphans = self.bucket.names().filter(|number| !is_kept(number)).count();
        let (making, ending) = self.exports_unfinished();
        let shared = self.index.objects.values().filter(|row| row.is_live(ObjectKind::Shared)).count();
        let live = self.index.objects.values().filter(|row| row.state == ObjectState::Live);
        let open = live.filter_map(|row| match row.kind {
            ObjectKind::Session(key) if !self.index.sessions[&key].is_final => Some(key),
            _ => None,
        });
        let open: BTreeSet<SessionKey> = open.collect();
        if lagging.is_empty() && staged + condemned + orphans + shared + open.len() + making + ending == 0 {
            return String::new();
        }
        format!(
            "partitions {lagging:?} lag, {staged} objects are staged, {condemned} condemned, {orphans} lie in the bucket for \
             nothing, {shared} are shared still, {} sessions are not final, {making} archives are not whole, {ending} exports are \
             over and not gone",
            open.len()
        )
    }

    /// What is not deleted yet; some of it may wait for an operator.
    pub(super) fn undeleted(&self) -> String {
        let (past, (sessions, deletions)) = (self.past_window(), self.leaving());
        if past + sessions + deletions == 0 {
            return String::new();
        }
        format!(
            "{past} sessions are past their window, {sessions} are not erased, {deletions} deletions have no receipt"
        )
    }

    fn is_live(&self, number: ObjectNumber) -> bool {
        self.index.objects.get(&number).is_some_and(|row| row.state == ObjectState::Live)
    }

    /// Whether something of a partition is to be published still. One that halts at a log that was made anew has said so.
    fn lags(&self, partition: i32) -> bool {
        let published = self.index.progress.get(&partition).map_or(0, |row| row.next);
        let is_behind = published != self.log.span(partition).next;
        let halted = self.log.generation(partition) > 0 && self.alarmed.contains(&partition);
        is_behind && !halted
    }

    pub(super) fn converge(&mut self) -> Result<(), Violation> {
        let is_under_way = self.queue.values().any(|event| {
            matches!(
                **event,
                Event::Apply { .. }
                    | Event::EndPublish { .. }
                    | Event::Answer { .. }
                    | Event::EndStaging { .. }
                    | Event::Ask(_)
                    | Event::Retain { given_up: true, .. }
                    | Event::EndSwap { .. }
                    | Event::HalfSwap(_)
                    | Event::Compact { given_up: true, .. }
                    | Event::Export { given_up: true, .. }
                    | Event::EndPart { .. }
            )
        });
        let is_ordered = !is_under_way && self.unfinished().is_empty();
        if is_ordered && self.has_discarded && self.undeleted().is_empty() {
            self.is_done = true;
            return Ok(());
        }
        self.remove_strangers();
        if !is_ordered || self.has_discarded {
            self.after(300, Event::Converge);
            return Ok(());
        }
        if self.has_replayed {
            self.discard_quarantine();
            self.after(300, Event::Converge);
            return Ok(());
        }
        // The operator replays what was set aside: its keys open again.
        self.has_replayed = true;
        let entries = self.index.objects.values().filter(|row| row.state == ObjectState::Live).flat_map(|row| {
            let is_moved = |entry: &Entry| self.visible.moved.contains(&entry.uid);
            let aside = move |entry: &&Entry| {
                entry.stored == Stored::Quarantined && entry.session.is_some() && !is_moved(entry)
            };
            row.content.entries.iter().filter(aside).map(|entry| entry.uid)
        });
        let aside: BTreeSet<u64> = entries.collect();
        let again: Vec<RecordKind> = self
            .log
            .all()
            .filter(|(_, _, record)| aside.contains(&record.uid))
            .map(|(_, _, record)| record.kind)
            .collect();
        for kind in again {
            if let RecordKind::Batch { key, place, content } = kind {
                self.append_batch(key, place, content, 100);
            }
        }
        self.after(300, Event::Converge);
        Ok(())
    }

    /// Where a clock jumped a row went before its object landed: an operator is told of it, and removes it.
    fn remove_strangers(&mut self) {
        if self.happened.database_clock_jumps == 0 {
            return;
        }
        // What is left of exports nobody has to look at.
        let is_exported = |number: &ObjectNumber| matches!(self.index.kinds.get(number), Some(ObjectKind::Export(_)));
        let is_stranger = |number: &ObjectNumber| !self.index.objects.contains_key(number) && !is_exported(number);
        let strangers = self.bucket.names().filter(is_stranger);
        let strangers: Vec<ObjectNumber> = strangers.collect();
        for number in strangers {
            self.happened.strangers += 1;
            self.bucket.delete(number);
            self.bucket.abort(number);
        }
    }

    /// What is nobody's holds up deletions of those who may be in it, until an operator discards it.
    fn discard_quarantine(&mut self) {
        self.has_discarded = true;
        let rows = self.index.objects.iter();
        let nobodys = rows.filter(|(_, row)| row.is_live(ObjectKind::Quarantine(None)));
        let nobodys: Vec<ObjectNumber> = nobodys.map(|(number, _)| *number).collect();
        for number in &nobodys {
            let entries = self.index.objects[number].content.entries.iter();
            self.truth.discarded.extend(entries.map(|entry| entry.uid));
        }
        self.condemn(&nobodys);
    }

    pub(super) fn check_everything(&mut self) -> Result<(), Violation> {
        self.check_live_objects()?;
        self.check_processed()?;
        self.check_deleted()?;
        self.check_deletions()?;
        self.check_exports()?;
        self.check_archives()?;
        self.check_readings()
    }

    /// Each record that the log kept was published; what retention or a topic's deletion took first is in a gap at most.
    fn check_processed(&self) -> Result<(), Violation> {
        for (partition, life, record) in self.log.all() {
            let is_halted = life > 0 && self.alarmed.contains(&partition);
            let may_be_lost = self.ledger.at_risk.contains(&record.uid) || is_halted;
            if !self.processed.contains(&record.uid) && !may_be_lost {
                return Err(format!("lost: the record at {} of partition {partition}", record.offset));
            }
            if let RecordKind::Acceptance(key) = record.kind
                && self.processed.contains(&record.uid)
                && !self.index.sessions.contains_key(&key)
            {
                return Err("lost: a session that was accepted has no row".into());
            }
        }
        Ok(())
    }

    /// B8: what was staged behind a tombstone holds nothing of the session, and its key is gone.
    fn check_deleted(&self) -> Result<(), Violation> {
        let live = self.index.objects.values().filter(|row| row.state == ObjectState::Live);
        // What is in quarantine nobody reads, and its keys are gone.
        for row in live.filter(|row| !matches!(row.kind, ObjectKind::Quarantine(_))) {
            if let ObjectKind::Session(key) = row.kind
                && self.index.is_deleted(&key)
            {
                return Err("B8: a deleted session has an object".into());
            }
            for entry in &row.content.entries {
                let Some(session) = entry.session.and_then(|key| self.index.sessions.get(&key)) else { continue };
                if session.deleted_step.is_some_and(|deleted| deleted < row.staged_step) {
                    return Err("B8: an object that was staged behind a tombstone holds some of its session".into());
                }
            }
        }
        for (key, row) in &self.index.sessions {
            if row.deleted_step.is_some() && self.keys.get(key) != Some(KeyRow::Shredded) {
                return Err("B8: a deleted session has a key".into());
            }
        }
        Ok(())
    }
}
