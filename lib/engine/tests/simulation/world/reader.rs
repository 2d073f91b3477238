//! Readers: a snapshot of a session's objects, then one after the other, while the compactor swaps and the collector removes
//! beneath. What is read is what was published.

use schemas::shared_object::EMPTY_FRAME_BYTES;

use super::compactor::{Source, plan_of};
use super::*;

/// What readers have to find.
#[derive(Debug, Default)]
pub(crate) struct Visible {
    /// Of each published batch the first content in each partition.
    pub(super) batches: BTreeMap<SessionKey, BTreeMap<StreamSeq, Vec<(i32, u64)>>>,
    /// Records that are stored of each session, copies too.
    stored: BTreeMap<SessionKey, u64>,
    /// Batches of which a copy went into quarantine, since it could not be merged.
    pub(crate) damaged: BTreeSet<(SessionKey, StreamSeq)>,
    /// And those records.
    pub(crate) moved: BTreeSet<u64>,
    /// Swaps so far.
    pub(crate) swaps: u64,
}

impl Visible {
    pub(crate) fn publish(&mut self, partition: i32, record: &Record, stored: Option<Stored>) {
        let RecordKind::Batch { key, place, content } = record.kind else { return };
        if matches!(stored, Some(Stored::Chunked | Stored::Copy)) {
            *self.stored.entry(key).or_default() += 1;
        }
        if stored == Some(Stored::Chunked) {
            let contents = self.batches.entry(key).or_default().entry(place).or_default();
            // The first stays.
            if contents.iter().all(|(other, _)| *other != partition) {
                contents.push((partition, content));
            }
        }
    }
}

/// A reading that has begun.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    key: SessionKey,
    sources: Vec<Source>,
    next: usize,
    step_ms: u64,
    expected: BTreeMap<StreamSeq, Vec<(i32, u64)>>,
    swaps: u64,
    /// The database's clock when it began: a jump shortens the grace.
    skew: (u64, u64),
}

impl World {
    /// By the session's row: its own live objects, then the live shared ones of its partitions that hold some of it.
    pub(super) fn snapshot(&self, key: SessionKey) -> Option<Vec<Source>> {
        let row = self.index.sessions.get(&key).filter(|row| row.deleted_step.is_none())?;
        let objects = &self.index.objects;
        let own = self.index.parts(key).into_iter().map(|number| (number, 0, Rc::clone(&objects[&number].content)));
        let holds = |content: &Content| content.chunks.iter().any(|chunk| chunk.key == key);
        let shared = objects.iter().filter(|(_, object)| {
            object.is_live(ObjectKind::Shared) && row.partitions.contains(&object.partition) && holds(&object.content)
        });
        let mut shared: Vec<(i32, u64, Source)> = shared
            .map(|(number, object)| {
                (object.partition, object.first, (*number, object.partition, Rc::clone(&object.content)))
            })
            .collect();
        shared.sort_by_key(|(partition, first, _)| (*partition, *first));
        Some(own.chain(shared.into_iter().map(|(_, _, source)| source)).collect())
    }

    fn can_be_read(&self, key: SessionKey) -> bool {
        self.keys.get(&key) == Some(KeyRow::Known) && !self.keys.closed.contains(&key) && !self.index.is_deleted(&key)
    }

    pub(super) fn read(&mut self) -> Result<(), Violation> {
        let wait = self.rng.u64(40..200);
        self.after(wait, Event::Read);
        let sessions = self.ledger.sessions.len();
        if sessions == 0 {
            return Ok(());
        }
        let least = if self.rng.bool() { sessions.saturating_sub(8) } else { 0 };
        let key = self.ledger.sessions[self.rng.usize(least..sessions)];
        if !self.can_be_read(key) {
            return Ok(());
        }
        let Some(sources) = self.snapshot(key) else { return Ok(()) };
        self.cache_key(READER, key);
        let step_ms = self.rng.u64(0..READING_MS_MAX) / (sources.len() as u64 + 1);
        self.read_on(Box::new(Reading {
            key,
            sources,
            next: 0,
            step_ms,
            expected: self.visible.batches.get(&key).cloned().unwrap_or_default(),
            swaps: self.visible.swaps,
            skew: (self.database_skew_ms, self.happened.database_clock_jumps),
        }))
    }

    /// C3: what the reading began with is there until its end.
    pub(super) fn read_on(&mut self, mut reading: Box<Reading>) -> Result<(), Violation> {
        let has_jumped = reading.skew != (self.database_skew_ms, self.happened.database_clock_jumps);
        if !self.can_be_read(reading.key) || has_jumped {
            return Ok(());
        }
        let Some((number, _, content)) = reading.sources.get(reading.next) else {
            self.happened.readings += 1;
            self.happened.readings_over_swaps += u64::from(reading.swaps != self.visible.swaps);
            return self.check_reading(reading.key, &reading.sources, &reading.expected);
        };
        if self.bucket.get(*number) != Some(content) {
            return Err(format!("C3: object {number} went beneath a reading"));
        }
        reading.next += 1;
        self.after(reading.step_ms, Event::ReadOn(reading));
        Ok(())
    }

    /// C1, C2: each batch that was published before is read once, with the content that it had from the first.
    pub(super) fn check_reading(
        &mut self,
        key: SessionKey,
        sources: &[Source],
        expected: &BTreeMap<StreamSeq, Vec<(i32, u64)>>,
    ) -> Result<(), Violation> {
        if sources.iter().any(|(number, ..)| self.corrupt.contains(&(*number, key))) {
            // It is told with a code.
            self.happened.readings_corrupt += 1;
            return Ok(());
        }
        let mut records = BTreeSet::new();
        for entry in sources.iter().flat_map(|(_, _, content)| &content.entries) {
            if entry.session == Some(key) && entry.stored == Stored::Chunked && !records.insert(entry.uid) {
                return Err("C2: a batch is in two objects of one reading".into());
            }
        }
        let mut expected = expected.clone();
        for stream in &plan_of(key, sources).streams {
            for batch in &stream.batches {
                let place = StreamSeq::new(stream.stream, batch.seq).ok_or("a place that no client made")?;
                let contents = expected.remove(&place);
                if matches!(batch.location, engine::merge::Location::Shared { len: EMPTY_FRAME_BYTES, .. }) {
                    return Err(format!("lost: of a batch of session {} only a copy is there", key.session));
                }
                // Which of two partitions has the first is not known: only one that grew has two.
                let is_known = |(_, content): &(i32, u64)| *content == batch.facts.content_hash;
                let fits = contents.is_some_and(|contents| contents.iter().any(is_known));
                if !fits && !self.visible.damaged.contains(&(key, place)) {
                    return Err(format!(
                        "C1: stream {}, seq {} of a session is read with another content than at first",
                        stream.stream, batch.seq
                    ));
                }
            }
        }
        let lost = expected.keys().find(|place| !self.visible.damaged.contains(&(key, **place)));
        match lost {
            Some(place) => {
                Err(format!("C2: stream {}, seq {} of a session is not read any more", place.stream(), place.seq()))
            }
            None => Ok(()),
        }
    }

    /// Reads every session in the end, and compares with the clients' ledger as well.
    pub(super) fn check_readings(&mut self) -> Result<(), Violation> {
        let halted = |partition: i32, life: usize| life > 0 && self.alarmed.contains(&partition);
        let of_halted = self.log.all().filter(|(partition, life, _)| halted(*partition, *life));
        let of_halted = of_halted.map(|(_, _, record)| record.uid);
        // What was set aside is readable by its replay, which is another record.
        let aside = self.index.objects.values().filter(|row| row.state == ObjectState::Live).flat_map(|row| {
            row.content.entries.iter().filter(|entry| entry.stored == Stored::Quarantined).map(|entry| entry.uid)
        });
        let not_readable: BTreeSet<u64> = of_halted
            .chain(aside)
            .chain(self.ledger.at_risk.iter().copied())
            .chain(self.truth.discarded.iter().copied())
            .collect();
        for key in self.ledger.sessions.clone() {
            if self.index.is_deleted(&key) {
                continue;
            }
            let sources = self.snapshot(key).unwrap_or_default();
            let expected = self.visible.batches.get(&key).cloned().unwrap_or_default();
            self.check_reading(key, &sources, &expected)?;
            if sources.iter().all(|(number, ..)| !self.corrupt.contains(&(*number, key))) {
                self.check_ledger(key, &sources, &not_readable)?;
            }
        }
        Ok(())
    }

    fn check_ledger(&self, key: SessionKey, sources: &[Source], not_readable: &BTreeSet<u64>) -> Result<(), Violation> {
        let plan = plan_of(key, sources);
        let mut read: BTreeSet<StreamSeq> = BTreeSet::new();
        for stream in &plan.streams {
            read.extend(stream.batches.iter().filter_map(|batch| StreamSeq::new(stream.stream, batch.seq)));
        }
        let counted = read.len() as u64;
        let mut is_damaged = false;
        let mut has_conflicts = false;
        let own = (key, StreamSeq::new(0, 0).ok_or("the first place")?)..;
        for ((_, place), sent) in self.ledger.batches.range(own).take_while(|((of, _), _)| *of == key) {
            let damaged = self.visible.damaged.contains(&(key, *place));
            is_damaged |= damaged;
            has_conflicts |= sent.iter().any(|(_, content)| Some(*content) != sent.first().map(|(_, first)| *first));
            let must_be_there = sent.iter().any(|(uid, _)| !not_readable.contains(uid));
            if !read.remove(place) && must_be_there && !damaged {
                return Err(format!("lost: stream {}, seq {} of a session", place.stream(), place.seq()));
            }
        }
        let copies = self.visible.stored.get(&key).copied().unwrap_or_default().saturating_sub(counted);
        let miscounts = !is_damaged && (plan.duplicates != copies || (plan.conflicts > 0 && !has_conflicts));
        if !read.is_empty() || miscounts {
            return Err(format!(
                "C1: {} batches that nobody sent, {} conflicts, {} of {copies} copies",
                read.len(),
                plan.conflicts,
                plan.duplicates,
            ));
        }
        Ok(())
    }
}
