//! What is checked at every commit, the healing, and what must hold in the end: the ledger against what can be read.

use engine::merge::{Location, Plan, SharedSource};
use schemas::BatchFacts;
use schemas::shared_object::{BatchEntry, Chunk, EMPTY_FRAME_BYTES};

use super::*;

/// Of a frame that holds something.
const FRAME_BYTES: u32 = 100;

impl World {
    /// B2, B4, B8, B9: a publishing is committed, and has to cover its offsets with what the log held there, each record once.
    pub(super) fn commit(
        &mut self,
        publishing: &Publishing,
        truth: &[Record],
        staged: &Staged,
    ) -> Result<(), Violation> {
        self.index.publish(publishing, &self.bucket)?;
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
        let content = publishing.object.as_ref().map_or(&[][..], |(_, content)| content);
        let stored = content.iter().find(|entry| entry.offset == record.offset);
        if stored.is_some_and(|entry| entry.uid != record.uid) {
            return Err(format!("B9: another record is stored at {} of partition {partition}", record.offset));
        }
        let stored = stored.map(|entry| entry.stored);
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
        let closed: Vec<SessionKey> = self.keys.closed.iter().copied().collect();
        for key in closed {
            self.keys.closed.remove(&key);
        }
        for number in 0..self.nodes.len() {
            if !self.nodes[number].is_alive {
                self.after(1, Event::Restart(number));
            }
        }
        self.after(1_000, Event::Converge);
    }

    /// What is not in order yet.
    pub(super) fn unfinished(&self) -> String {
        let lagging: Vec<i32> = self.log.partitions().into_iter().filter(|partition| self.lags(*partition)).collect();
        let staged = self.index.objects.values().filter(|row| row.state == ObjectState::Staged).count();
        let orphans = self.bucket.names().filter(|number| !self.is_live(*number)).count();
        if lagging.is_empty() && staged + orphans == 0 {
            return String::new();
        }
        format!("partitions {lagging:?} lag, {staged} objects are staged, {orphans} lie in the bucket for nothing")
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
            matches!(event, Event::Apply { .. } | Event::EndPublish { .. } | Event::Answer { .. } | Event::Shred(_))
        });
        if is_under_way || !self.unfinished().is_empty() {
            self.after(300, Event::Converge);
            return Ok(());
        }
        if self.has_replayed {
            self.is_done = true;
            return Ok(());
        }
        // The operator replays what was set aside: its keys open again.
        self.has_replayed = true;
        let entries = self.index.objects.values().filter(|row| row.state == ObjectState::Live).flat_map(|row| {
            let aside = |entry: &&Entry| entry.stored == Stored::Quarantined && entry.session.is_some();
            row.content.iter().filter(aside).map(|entry| entry.uid)
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

    pub(super) fn check_everything(&self) -> Result<(), Violation> {
        self.check_live_objects()?;
        self.check_processed()?;
        self.check_deleted()?;
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
        for row in self.index.objects.values().filter(|row| row.state == ObjectState::Live) {
            for entry in &row.content {
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

    /// Reads every session as readers do: by its row's partitions, with the plan of the merge.
    fn check_readings(&self) -> Result<(), Violation> {
        let batches: BTreeMap<u64, (SessionKey, StreamSeq, u64)> = self
            .log
            .all()
            .filter_map(|(_, _, record)| match record.kind {
                RecordKind::Batch { key, place, content } => Some((record.uid, (key, place, content))),
                _ => None,
            })
            .collect();
        // By session and stream, what lies in each live object.
        let mut chunks: BTreeMap<SessionKey, Vec<(ObjectNumber, i32, Chunk)>> = BTreeMap::new();
        for (number, row) in self.index.objects.iter().filter(|(_, row)| row.state == ObjectState::Live) {
            let mut by_stream: BTreeMap<(SessionKey, u32), Vec<BatchEntry>> = BTreeMap::new();
            for entry in row.content.iter().filter(|entry| entry.stored != Stored::Quarantined) {
                let Some((key, place, content)) = batches.get(&entry.uid).copied() else { continue };
                let facts = BatchFacts { raw_bytes: 1, content_hash: content, ..BatchFacts::default() };
                let len = if entry.stored == Stored::Copy { EMPTY_FRAME_BYTES } else { FRAME_BYTES };
                let entry = BatchEntry { seq: place.seq(), end: false, offset: entry.offset, len, facts };
                by_stream.entry((key, place.stream())).or_default().push(entry);
            }
            for ((key, stream), batches) in by_stream {
                let chunk = Chunk { key, stream, id: [0; 16], at: 0, batches };
                chunks.entry(key).or_default().push((*number, row.partition, chunk));
            }
        }
        let halted = |partition: i32, life: usize| life > 0 && self.alarmed.contains(&partition);
        let of_halted = self.log.all().filter(|(partition, life, _)| halted(*partition, *life));
        let of_halted = of_halted.map(|(_, _, record)| record.uid);
        // What was set aside is readable by its replay, which is another record.
        let aside = self.index.objects.values().filter(|row| row.state == ObjectState::Live).flat_map(|row| {
            row.content.iter().filter(|entry| entry.stored == Stored::Quarantined).map(|entry| entry.uid)
        });
        let not_readable: BTreeSet<u64> = of_halted.chain(aside).chain(self.ledger.at_risk.iter().copied()).collect();
        for key in &self.ledger.sessions {
            let row = self.index.sessions.get(key);
            if row.is_some_and(|row| row.deleted_step.is_some()) {
                continue;
            }
            let named = |partition: &i32| row.is_some_and(|row| row.partitions.contains(partition));
            let found: Vec<_> = chunks.remove(key).unwrap_or_default();
            let sources: Vec<SharedSource<'_>> = found
                .iter()
                .filter(|(_, partition, _)| named(partition))
                .map(|(object, partition, chunk)| SharedSource {
                    object: *object as usize,
                    partition: *partition,
                    number: 0,
                    chunk,
                })
                .collect();
            self.check_session(*key, &Plan::build(&[], &sources), &found, &not_readable)?;
        }
        Ok(())
    }

    fn check_session(
        &self,
        key: SessionKey,
        plan: &Plan,
        stored: &[(ObjectNumber, i32, Chunk)],
        not_readable: &BTreeSet<u64>,
    ) -> Result<(), Violation> {
        let mut read: BTreeMap<StreamSeq, u64> = BTreeMap::new();
        for stream in &plan.streams {
            for batch in &stream.batches {
                let place = StreamSeq::new(stream.stream, batch.seq).ok_or("a place that no client made")?;
                read.insert(place, batch.facts.content_hash);
                if matches!(batch.location, Location::Shared { len: EMPTY_FRAME_BYTES, .. }) {
                    return Err(format!("lost: of a batch of session {} only a copy is there", key.session));
                }
            }
        }
        let own = (key, StreamSeq::new(0, 0).ok_or("the first place")?)..;
        for ((_, place), (content, uids)) in self.ledger.batches.range(own).take_while(|((of, _), _)| *of == key) {
            let must_be_there = uids.iter().any(|uid| !not_readable.contains(uid));
            match read.remove(place) {
                Some(found) if found != *content => return Err("a batch reads back with other content".into()),
                None if must_be_there => {
                    return Err(format!("lost: stream {}, seq {} of a session", place.stream(), place.seq()));
                }
                Some(_) | None => {}
            }
        }
        let copies = stored.iter().map(|(_, _, chunk)| chunk.batches.len()).sum::<usize>() as u64;
        let counted: usize = plan.streams.iter().map(|stream| stream.batches.len()).sum();
        if !read.is_empty() || plan.conflicts > 0 || plan.duplicates != copies - counted as u64 {
            return Err(format!(
                "{} batches that nobody sent, {} conflicts, {} of {} copies",
                read.len(),
                plan.conflicts,
                plan.duplicates,
                copies - counted as u64
            ));
        }
        Ok(())
    }
}
