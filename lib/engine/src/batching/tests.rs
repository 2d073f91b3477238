//! Goal: the machine's promises hold whatever the effects answer. Method: scripted inputs, effects compared.

use schemas::{SessionId, WorkspaceId};
use uuid::Uuid;

use super::*;

const CONFIG: Config = Config {
    flush_age_ms: 1_000,
    flush_bytes: 1_000,
    buffer_bytes_max: 3_000,
    activity_interval_ms: 5_000,
    retry_min_ms: 100,
    retry_max_ms: 1_000,
    // Zero spreads the first waits of partition 0 by nothing.
    spread_seed: 0,
    sessions_known_max: 100,
    batches_known_max: 100,
};

fn key(n: u128) -> SessionKey {
    SessionKey { workspace: WorkspaceId(Uuid::from_u128(1)), session: SessionId(Uuid::from_u128(n)) }
}

fn batch(offset: u64, session: u128, bytes: u64) -> RecordMeta {
    batch_at(offset, session, offset as u32, 0, bytes)
}

fn batch_at(offset: u64, session: u128, seq: u32, content: u64, bytes: u64) -> RecordMeta {
    let place = StreamSeq::new(1, seq).unwrap();
    RecordMeta { offset, bytes, fingerprint: offset, kind: RecordKind::Batch { key: key(session), place, content } }
}

fn staged(flush: &Flush) -> Input {
    Input::Staged { flush: flush.id, staged: Some(Staged::default()) }
}

fn uploaded(flush: &Flush) -> Input {
    Input::Uploaded { flush: flush.id, ok: true }
}

/// The answer to the first publishing of a flush.
fn published(flush: &Flush, outcome: Published) -> Input {
    Input::Published { flush: flush.id, attempt: 1, outcome }
}

fn refusing(flush: &Flush, session: u128) -> Staged {
    assert!(flush.sessions.contains(&key(session)));
    Staged { refused: vec![key(session)], ..Staged::default() }
}

struct Run {
    machine: Machine,
    now_ms: u64,
}

impl Run {
    fn new() -> Self {
        Self { machine: Machine::new(CONFIG), now_ms: 0 }
    }

    fn give(&mut self, input: Input) -> Vec<Effect> {
        self.machine.handle(self.now_ms, input);
        std::iter::from_fn(|| self.machine.poll_effect()).collect()
    }

    fn wait(&mut self, ms: u64) -> Vec<Effect> {
        self.now_ms += ms;
        self.give(Input::Tick)
    }

    /// A partition that reads from `offset` on, under epoch 1.
    fn owning(partition: i32, offset: u64) -> Self {
        let mut run = Self::new();
        run.own(partition, offset, 1);
        run
    }

    fn own(&mut self, partition: i32, offset: u64, epoch: u64) {
        assert_eq!(self.give(Input::Assigned(partition)), [Effect::TakeEpoch(partition)]);
        self.begin(partition, offset, epoch);
    }

    /// Gives an epoch, and a log that holds all from `offset` on, and nothing before.
    fn begin(&mut self, partition: i32, offset: u64, epoch: u64) {
        let effects = self.give(Input::EpochTaken { partition, epoch, next_offset: offset, last: None });
        let span = Some(LogSpan { first: offset, next: offset + 100 });
        let answer = Input::LogAsked { question: Self::question_of(&effects), span };
        assert_eq!(self.give(answer), [Effect::Assign { partition, offset }]);
    }

    /// What follows when the index says this, and the log that.
    fn begin_with(&mut self, next_offset: u64, last: Option<LastRecord>, span: LogSpan) -> Vec<Effect> {
        self.give(Input::Assigned(0));
        let effects = self.give(Input::EpochTaken { partition: 0, epoch: 1, next_offset, last });
        self.give(Input::LogAsked { question: Self::question_of(&effects), span: Some(span) })
    }

    fn question_of(effects: &[Effect]) -> QuestionId {
        match effects {
            [Effect::AskLog { question, .. }] => *question,
            other => panic!("no question in {other:?}"),
        }
    }

    fn record(&mut self, partition: i32, record: RecordMeta) -> Vec<Effect> {
        self.give(Input::Record { partition, record })
    }

    fn stage_of(effects: &[Effect]) -> Flush {
        match effects {
            [.., Effect::Stage(flush)] => flush.clone(),
            other => panic!("no stage in {other:?}"),
        }
    }

    /// Takes a flush through to its commit.
    fn commit(&mut self, flush: &Flush) {
        self.give(staged(flush));
        self.give(uploaded(flush));
        let effects = self.give(published(flush, Published::Committed));
        assert!(effects.contains(&Effect::Release { partition: flush.partition, next: flush.next }));
    }
}

#[test]
fn a_flush_is_staged_uploaded_and_published_in_this_order() {
    let mut run = Run::owning(0, 10);
    assert_eq!(run.record(0, batch(10, 1, 50)), []);
    assert_eq!(run.record(0, batch(11, 2, 50)), []);
    assert_eq!(run.machine.poll_timeout(), Some(1_000));
    assert_eq!(run.wait(999), []);
    let flush = Run::stage_of(&run.wait(1));
    assert_eq!((flush.first, flush.next, flush.epoch), (10, 12, 1));
    assert_eq!(flush.sessions, [key(1), key(2)]);
    assert_eq!(flush.first_seen, [key(1), key(2)]);
    let answer = refusing(&flush, 2);
    let effects = run.give(Input::Staged { flush: flush.id, staged: Some(answer.clone()) });
    assert_eq!(effects, [Effect::Upload { flush: flush.id, staged: answer }]);
    let effects = run.give(uploaded(&flush));
    assert_eq!(
        effects,
        [Effect::Publish { flush: flush.id, attempt: 1, with_object: true, activity: vec![key(1), key(2)] }]
    );
    let effects = run.give(published(&flush, Published::Committed));
    assert_eq!(effects, [Effect::Release { partition: 0, next: 12 }]);
    let count = run.machine.conservation();
    assert_eq!((count.chunked, count.dropped_deleted, count.buffered), (1, 1, 0));
    assert_eq!(run.machine.buffered_bytes(), 0);
}

#[test]
fn size_flushes_before_age_and_one_flush_at_a_time() {
    let mut run = Run::owning(0, 0);
    let flush = Run::stage_of(&run.record(0, batch(0, 1, 1_000)));
    assert_eq!(run.record(0, batch(1, 1, 1_000)), []);
    run.commit(&flush);
    // What had come meanwhile went out as soon as the first was through.
    assert_eq!(run.machine.conservation().buffered, 1);
    assert_eq!(run.machine.poll_timeout(), None);
}

#[test]
fn known_sessions_are_not_first_seen_again_and_activity_is_throttled() {
    let mut run = Run::owning(0, 0);
    let flush = Run::stage_of(&run.record(0, batch(0, 1, 1_000)));
    run.commit(&flush);
    run.now_ms += 4_999;
    let flush = Run::stage_of(&run.record(0, batch(1, 1, 1_000)));
    assert_eq!(flush.first_seen, []);
    run.give(staged(&flush));
    let effects = run.give(uploaded(&flush));
    assert_eq!(effects, [Effect::Publish { flush: flush.id, attempt: 1, with_object: true, activity: vec![] }]);
    run.give(published(&flush, Published::Committed));
    run.now_ms += 1;
    let flush = Run::stage_of(&run.record(0, batch(2, 1, 1_000)));
    run.give(staged(&flush));
    let effects = run.give(uploaded(&flush));
    assert_eq!(effects, [Effect::Publish { flush: flush.id, attempt: 1, with_object: true, activity: vec![key(1)] }]);
}

#[test]
fn b10_a_failed_upload_is_staged_under_another_number() {
    let mut run = Run::owning(0, 0);
    let flush = Run::stage_of(&run.record(0, batch(0, 1, 1_000)));
    run.give(staged(&flush));
    assert_eq!(run.give(Input::Uploaded { flush: flush.id, ok: false }), []);
    assert_eq!(run.machine.poll_timeout(), Some(100));
    let again = Run::stage_of(&run.wait(100));
    assert_ne!(again.id, flush.id);
    assert_eq!((again.first, again.next, &again.records), (flush.first, flush.next, &flush.records));
    // Uploads that go on failing wait longer each time, though each is staged anew.
    run.give(staged(&again));
    run.give(Input::Uploaded { flush: again.id, ok: false });
    assert_eq!(run.machine.poll_timeout().map(|at| at - run.now_ms), Some(200));
    let again = Run::stage_of(&run.wait(200));
    // The late answer of the burnt attempt changes nothing.
    assert_eq!(run.give(uploaded(&flush)), []);
    run.commit(&again);
}

#[test]
fn b5_a_lost_swap_drops_the_buffer_and_takes_a_new_epoch_after_a_wait() {
    let mut run = Run::owning(0, 0);
    let flush = Run::stage_of(&run.record(0, batch(0, 1, 1_000)));
    run.record(0, batch(1, 1, 10));
    run.give(staged(&flush));
    run.give(uploaded(&flush));
    let effects = run.give(published(&flush, Published::Lost));
    assert_eq!(effects, [Effect::Drop(0)]);
    assert_eq!((run.machine.conservation().returned, run.machine.buffered_bytes()), (2, 0));
    // Records that were still on their way are not taken under no epoch.
    assert_eq!(run.record(0, batch(2, 1, 10)), []);
    assert_eq!(run.wait(100), [Effect::TakeEpoch(0)]);
    run.begin(0, 1, 3);
}

#[test]
fn a_lost_answer_is_looked_up_and_then_decided() {
    for committed in [true, false] {
        let mut run = Run::owning(0, 0);
        let flush = Run::stage_of(&run.record(0, batch(0, 1, 1_000)));
        run.give(staged(&flush));
        run.give(uploaded(&flush));
        let effects = run.give(published(&flush, Published::Unknown));
        let look_up = |attempt| Effect::LookUp { flush: flush.id, attempt };
        let looked_up = |attempt, committed| Input::LookedUp { flush: flush.id, attempt, committed };
        assert_eq!(effects, [look_up(2)]);
        assert_eq!(run.give(looked_up(2, None)), []);
        assert_eq!(run.wait(100), [look_up(3)]);
        // Answers to what is not asked any more.
        assert_eq!(run.give(looked_up(2, Some(!committed))), []);
        assert_eq!(run.give(published(&flush, Published::Failed)), []);
        let effects = run.give(looked_up(3, Some(committed)));
        if committed {
            assert_eq!(effects, [Effect::Release { partition: 0, next: 1 }]);
        } else {
            assert!(matches!(effects.as_slice(), [Effect::Publish { with_object: true, .. }]));
        }
    }
}

#[test]
fn b6_revoking_one_partition_leaves_the_others_alone() {
    let mut run = Run::owning(0, 0);
    run.own(1, 5, 9);
    run.record(0, batch(0, 1, 10));
    run.record(1, batch(5, 2, 10));
    assert_eq!(run.give(Input::Revoked(0)), [Effect::Drop(0)]);
    assert_eq!(run.machine.buffered_bytes(), 10);
    let flush = Run::stage_of(&run.wait(1_000));
    assert_eq!((flush.partition, flush.records.len(), flush.epoch), (1, 1, 9));
}

#[test]
fn b7_reading_pauses_at_the_bound_and_resumes_below_half_of_it() {
    let mut run = Run::owning(0, 0);
    run.own(1, 0, 1);
    let first = Run::stage_of(&run.record(0, batch(0, 1, 1_400)));
    let second = Run::stage_of(&run.record(1, batch(0, 1, 1_400)));
    assert_eq!(run.record(0, batch(1, 1, 200)), [Effect::Pause]);
    run.give(staged(&first));
    run.give(uploaded(&first));
    let effects = run.give(published(&first, Published::Committed));
    // Still above half: paused, and what is left goes out at once.
    assert!(!effects.contains(&Effect::Resume));
    run.give(staged(&second));
    run.give(uploaded(&second));
    let effects = run.give(published(&second, Published::Committed));
    assert!(effects.contains(&Effect::Resume));
}

#[test]
fn b2_a_hole_is_an_alarm_and_part_of_the_flush() {
    let mut run = Run::owning(0, 3);
    let gap = Gap { first: 3, next: 7 };
    let effects = run.record(0, batch(7, 1, 10));
    assert_eq!(effects, [Effect::AlarmGap { partition: 0, gap }]);
    let flush = Run::stage_of(&run.wait(1_000));
    assert_eq!((flush.first, flush.next, flush.gaps), (3, 8, vec![gap]));
}

#[test]
fn a_log_is_read_on_from_where_it_is_known() {
    let last = |offset| Some(LastRecord { offset, fingerprint: 7 });
    let alarm = |first, next| Effect::AlarmGap { partition: 0, gap: Gap { first, next } };
    let assign = |offset| Effect::Assign { partition: 0, offset };
    let halt = || vec![Effect::Drop(0), Effect::AlarmForeign(0)];
    for (next_offset, last, (first, next), expect) in [
        // Nothing was ever published.
        (0, None, (0, 5), vec![assign(0)]),
        (0, None, (3, 5), vec![alarm(0, 3), assign(3)]),
        // What was published last is there still: it comes first, as a proof.
        (10, last(9), (0, 20), vec![assign(9)]),
        (10, last(9), (9, 10), vec![assign(9)]),
        (10, last(6), (2, 10), vec![assign(6)]),
        // It is gone: by its age, and nothing was lost, or more than that.
        (10, last(9), (10, 20), vec![assign(10)]),
        (10, last(9), (12, 20), vec![alarm(10, 12), assign(12)]),
        // It ends before what was stored of it.
        (10, last(9), (0, 9), halt()),
        (10, last(9), (0, 0), halt()),
        (10, None, (0, 9), halt()),
    ] {
        let effects = Run::new().begin_with(next_offset, last, LogSpan { first, next });
        assert_eq!(effects, expect, "{next_offset} {last:?} {first}..{next}");
    }
}

#[test]
fn a_log_with_another_record_where_the_last_published_was_halts() {
    let last = Some(LastRecord { offset: 9, fingerprint: 9 });
    let span = LogSpan { first: 0, next: 20 };
    for (fingerprint, is_ours) in [(9, true), (8, false)] {
        let mut run = Run::new();
        run.begin_with(10, last, span);
        // From before the seek.
        run.record(0, batch(4, 1, 10));
        let effects = run.record(0, RecordMeta { fingerprint, ..batch(9, 1, 10) });
        let expect = if is_ours { vec![] } else { vec![Effect::Drop(0), Effect::AlarmForeign(0)] };
        assert_eq!(effects, expect);
        run.record(0, batch(10, 1, 10));
        assert_eq!(run.machine.conservation().buffered, u64::from(is_ours));
        assert_eq!(run.wait(100_000).is_empty(), !is_ours);
    }
    // It went from the log while it was asked for: nothing tells that the log is another one.
    let mut run = Run::new();
    run.begin_with(10, last, span);
    let gap = Gap { first: 10, next: 12 };
    assert_eq!(run.record(0, batch(12, 1, 10)), [Effect::AlarmGap { partition: 0, gap }]);
}

#[test]
fn a_halted_partition_is_looked_at_again_when_it_is_assigned_anew() {
    let mut run = Run::new();
    run.begin_with(10, None, LogSpan { first: 0, next: 9 });
    assert_eq!(run.give(Input::Revoked(0)), [Effect::Drop(0)]);
    assert_eq!(run.begin_with(10, None, LogSpan { first: 0, next: 10 }), [Effect::Assign { partition: 0, offset: 10 }]);
}

#[test]
fn b6_an_offset_out_of_range_costs_the_partition_that_it_was_and_no_other() {
    let mut run = Run::owning(0, 3);
    run.own(1, 0, 2);
    run.record(0, batch(3, 1, 10));
    run.record(1, batch(0, 1, 10));
    let asked = |run: &mut Run| match run.give(Input::LogDoubted).as_slice() {
        [Effect::AskLog { partition: 0, question: one }, Effect::AskLog { partition: 1, question: other }] => {
            (*one, *other)
        }
        other => panic!("{other:?}"),
    };
    let answer = |question, first, next| Input::LogAsked { question, span: Some(LogSpan { first, next }) };
    let (one, other) = asked(&mut run);
    let gap = Gap { first: 4, next: 9 };
    let effects = run.give(answer(one, 9, 20));
    assert_eq!(effects, [Effect::AlarmGap { partition: 0, gap }, Effect::Assign { partition: 0, offset: 9 }]);
    // What came while the question was open does not stand against its answer.
    run.record(1, batch(1, 1, 10));
    // What was read last is read again, as a proof.
    assert_eq!(run.give(answer(other, 0, 1)), [Effect::Assign { partition: 1, offset: 1 }]);
    assert_eq!(run.record(1, batch(1, 1, 10)), []);
    assert_eq!((run.machine.conservation().buffered, run.machine.conservation().returned), (3, 0));
    // The log ends before what was held already; an answer that comes again is none to a later question.
    let (_, again) = asked(&mut run);
    assert_eq!(run.give(answer(other, 0, 0)), []);
    assert_eq!(run.give(answer(again, 0, 1)), [Effect::Drop(1), Effect::AlarmForeign(1)]);
    assert_eq!(run.machine.conservation().returned, 2);
    let flush = Run::stage_of(&run.wait(1_000));
    assert_eq!((flush.first, flush.next, flush.gaps, flush.last.unwrap().offset), (3, 9, vec![gap], 3));
}

#[test]
fn a_log_that_was_made_anew_while_it_was_read_halts() {
    let mut run = Run::owning(0, 0);
    let flush = Run::stage_of(&run.record(0, batch(0, 1, 1_000)));
    for (held, last) in [("in flight", 0), ("buffered", 1)] {
        if last == 1 {
            run.record(0, batch(1, 1, 10));
        }
        let question = Run::question_of(&run.give(Input::LogDoubted));
        let span = Some(LogSpan { first: 0, next: 50 });
        let effects = run.give(Input::LogAsked { question, span });
        assert_eq!(effects, [Effect::Assign { partition: 0, offset: last }], "what is {held} tells the log");
    }
    run.commit(&flush);
    let effects = run.record(0, RecordMeta { fingerprint: 77, ..batch(1, 1, 10) });
    assert_eq!(effects, [Effect::Drop(0), Effect::AlarmForeign(0)]);
    assert_eq!((run.machine.halted(), run.machine.holds(0), run.machine.holds(1)), (1, true, false));
}

#[test]
fn kafka_that_does_not_say_what_the_log_holds_is_asked_again_later() {
    let mut run = Run::new();
    run.give(Input::Assigned(0));
    let effects = run.give(Input::EpochTaken { partition: 0, epoch: 1, next_offset: 0, last: None });
    let question = Run::question_of(&effects);
    assert_eq!(run.give(Input::LogAsked { question, span: None }), [Effect::Drop(0)]);
    assert_eq!(run.wait(100), [Effect::TakeEpoch(0)]);
    run.begin(0, 0, 2);
}

#[test]
fn the_last_published_record_stays_known_over_flushes_without_records() {
    let mut run = Run::owning(0, 3);
    let flush = Run::stage_of(&run.record(0, batch(3, 1, 1_000)));
    assert_eq!(flush.last, Some(LastRecord { offset: 3, fingerprint: 3 }));
    run.commit(&flush);
    let question = Run::question_of(&run.give(Input::LogDoubted));
    run.give(Input::LogAsked { question, span: Some(LogSpan { first: 8, next: 8 }) });
    let flush = Run::stage_of(&run.wait(1_000));
    assert_eq!((flush.first, flush.next, flush.has_object()), (4, 8, false));
    assert_eq!(flush.last, Some(LastRecord { offset: 3, fingerprint: 3 }));
}

#[test]
fn a_batch_that_comes_again_is_noted_as_a_copy_and_one_of_other_content_is_stored() {
    let mut run = Run::owning(0, 0);
    let first = Run::stage_of(&run.record(0, batch_at(0, 1, 5, 50, 1_000)));
    run.commit(&first);
    for record in [
        batch_at(1, 1, 5, 50, 10),
        batch_at(2, 1, 5, 51, 10),
        batch_at(3, 2, 5, 50, 10),
        batch_at(4, 2, 5, 50, 10),
        batch_at(5, 1, 6, 50, 10),
    ] {
        run.record(0, record);
    }
    let second = Run::stage_of(&run.wait(1_000));
    let copies = second.records.iter().filter(|record| matches!(record.kind, RecordKind::Copy(_)));
    assert_eq!(copies.map(|record| record.offset).collect::<Vec<_>>(), [1, 4]);
    run.commit(&second);
    let count = run.machine.conservation();
    assert_eq!((count.chunked, count.dropped_copies, count.buffered), (4, 2, 0));
}

/// Goal: a copy is never taken for a batch that was not stored: what went into quarantine, or back to the log, is not known.
#[test]
fn only_what_was_stored_makes_copies() {
    let mut run = Run::owning(0, 0);
    let aside = |flush: &Flush| Input::Staged {
        flush: flush.id,
        staged: Some(Staged { aside: vec![key(1)], ..Staged::default() }),
    };
    run.record(0, batch_at(0, 1, 5, 50, 10));
    run.record(0, batch_at(1, 1, 5, 50, 10));
    let flush = Run::stage_of(&run.wait(1_000));
    let effects = run.give(aside(&flush));
    let [Effect::Upload { staged, .. }] = effects.as_slice() else { panic!("{effects:?}") };
    // Also the second: nobody knows whether the first can be read again.
    let quarantined = Fate::Quarantined(QuarantineReason::SessionKey);
    assert!(flush.records.iter().all(|record| staged.fate(&record.kind) == quarantined));
    run.give(uploaded(&flush));
    run.give(published(&flush, Published::Committed));
    assert_eq!(run.machine.conservation().quarantined, 2);
    // Replayed once its key opens again, it is stored.
    run.record(0, batch_at(2, 1, 5, 50, 10));
    let flush = Run::stage_of(&run.wait(1_000));
    assert!(matches!(flush.records[0].kind, RecordKind::Batch { .. }));
    run.commit(&flush);
    assert_eq!(run.machine.conservation().chunked, 1);
    // With the partition goes what is known of it.
    run.give(Input::Revoked(0));
    run.own(0, 0, 2);
    run.record(0, batch_at(0, 1, 5, 50, 10));
    let flush = Run::stage_of(&run.wait(1_000));
    assert!(matches!(flush.records[0].kind, RecordKind::Batch { .. }));
}

#[test]
fn memory_of_known_batches_is_bounded_and_keeps_the_latest() {
    let mut known = KnownBatches::default();
    for n in 0..1_000 {
        known.note(&batch(n, 1, 1).kind, 10);
        known.note(&batch(n, 1, 1).kind, 10);
    }
    assert_eq!((known.known.len(), known.order.len()), (10, 10));
    let mut records = [batch(989, 1, 1), batch(990, 1, 1)];
    known.mark_copies(&mut records);
    assert_eq!(records.map(|record| matches!(record.kind, RecordKind::Copy(_))), [false, true]);
}

#[test]
fn a_flush_of_deleted_sessions_needs_no_object_but_moves_on() {
    let mut run = Run::owning(0, 0);
    let flush = Run::stage_of(&run.record(0, batch(0, 1, 1_000)));
    let effects = run.give(Input::Staged { flush: flush.id, staged: Some(refusing(&flush, 1)) });
    assert!(matches!(effects.as_slice(), [Effect::Publish { with_object: false, .. }]));
}

#[test]
fn shutdown_flushes_what_is_buffered_and_then_stops() {
    let mut run = Run::owning(0, 0);
    run.record(0, batch(0, 1, 10));
    let flush = Run::stage_of(&run.give(Input::Shutdown));
    run.give(staged(&flush));
    run.give(uploaded(&flush));
    let effects = run.give(published(&flush, Published::Committed));
    assert_eq!(effects, [Effect::Release { partition: 0, next: 1 }, Effect::Stopped]);
}

#[test]
fn memory_of_known_sessions_is_bounded() {
    let mut known = KnownSessions::default();
    for n in 0..1_000 {
        known.insert(key(n), 0, 10);
        known.insert(key(n), 1, 10);
    }
    assert_eq!((known.known.len(), known.order.len()), (10, 10));
}

#[test]
fn what_gathered_during_an_outage_goes_out_in_flushes_of_the_usual_size() {
    let mut run = Run::owning(0, 0);
    let first = Run::stage_of(&run.record(0, batch(0, 1, 1_000)));
    for offset in [1, 2, 3, 5] {
        run.record(0, batch(offset, 1, 400));
    }
    run.commit(&first);
    let sizes = |flush: &Flush| (flush.first, flush.next, flush.records.len(), flush.gaps.clone());
    let active = |run: &mut Run| run.machine.active(0).unwrap().in_flight.as_ref().unwrap().flush.clone();
    let second = active(&mut run);
    assert_eq!(sizes(&second), (1, 4, 3, vec![]));
    // The hole goes with the record behind it, and what is left has waited long enough.
    run.commit(&second);
    let third = Run::stage_of(&run.wait(1_000));
    assert_eq!(sizes(&third), (4, 6, 1, vec![Gap { first: 4, next: 5 }]));
    run.commit(&third);
    assert_eq!((run.machine.buffered_bytes(), run.machine.conservation().chunked), (0, 5));
}

#[test]
fn a_late_failure_of_an_assignment_before_this_one_changes_nothing() {
    let mut run = Run::new();
    run.give(Input::Assigned(0));
    run.give(Input::Revoked(0));
    run.own(0, 0, 2);
    run.record(0, batch(0, 1, 10));
    assert_eq!(run.give(Input::EpochFailed(0)), []);
    assert_eq!((run.machine.buffered_bytes(), run.machine.conservation().buffered), (10, 1));
    Run::stage_of(&run.wait(1_000));
}

#[test]
fn a_partition_whose_reading_stopped_begins_anew() {
    let mut run = Run::owning(0, 0);
    run.record(0, batch(0, 1, 10));
    assert_eq!(run.give(Input::ReadingStopped(0)), [Effect::Drop(0)]);
    assert_eq!((run.machine.conservation().returned, run.machine.buffered_bytes()), (1, 0));
    // Told twice, it waits once.
    assert_eq!(run.give(Input::ReadingStopped(0)), []);
    assert_eq!(run.wait(100), [Effect::TakeEpoch(0)]);
}

#[test]
fn stopping_a_partition_that_waits_for_an_epoch_wakes_nobody() {
    let mut run = Run::owning(0, 0);
    run.own(1, 0, 1);
    run.record(1, batch(0, 1, 10));
    run.give(Input::ReadingStopped(0));
    assert_eq!(run.machine.poll_timeout(), Some(100));
    run.give(Input::Shutdown);
    assert_eq!(run.machine.poll_timeout(), None);
}

#[test]
fn activity_that_became_due_while_publishing_is_noted_by_the_next_flush() {
    let mut run = Run::owning(0, 0);
    let flush = Run::stage_of(&run.record(0, batch(0, 1, 1_000)));
    run.commit(&flush);
    run.now_ms += 4_999;
    let flush = Run::stage_of(&run.record(0, batch(1, 1, 1_000)));
    run.give(staged(&flush));
    run.give(uploaded(&flush));
    run.now_ms += 1;
    run.give(published(&flush, Published::Committed));
    let flush = Run::stage_of(&run.record(0, batch(2, 1, 1_000)));
    run.give(staged(&flush));
    let effects = run.give(uploaded(&flush));
    assert_eq!(effects, [Effect::Publish { flush: flush.id, attempt: 1, with_object: true, activity: vec![key(1)] }]);
}

/// Goal: two that fight over a partition do not do so for ever, nor in step. Method: swaps are lost again and again; the waits
/// grow, differ between processes, and are short again once something was published.
#[test]
fn waits_after_lost_swaps_grow_until_something_is_published() {
    let waits = |spread_seed| {
        let mut run = Run { machine: Machine::new(Config { spread_seed, ..CONFIG }), now_ms: 0 };
        run.own(0, 0, 1);
        let mut waits = Vec::new();
        for epoch in 2..8 {
            let flush = Run::stage_of(&run.record(0, batch(0, 1, 1_000)));
            run.give(staged(&flush));
            run.give(uploaded(&flush));
            run.give(published(&flush, Published::Lost));
            let wait = run.machine.poll_timeout().unwrap() - run.now_ms;
            waits.push(wait);
            assert_eq!(run.wait(wait), [Effect::TakeEpoch(0)]);
            run.begin(0, 0, epoch);
        }
        let flush = Run::stage_of(&run.record(0, batch(0, 1, 1_000)));
        run.commit(&flush);
        run.give(Input::ReadingStopped(0));
        assert!(run.machine.poll_timeout().unwrap() - run.now_ms <= 200);
        waits
    };
    let (one, other) = (waits(1), waits(2));
    assert_ne!(one, other);
    for (wait, least) in one.iter().zip([100, 200, 400, 800, 1_000, 1_000]) {
        assert!((least..=least * 2).contains(wait), "{one:?}");
    }
}
