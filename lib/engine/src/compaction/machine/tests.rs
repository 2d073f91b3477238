//! Goal: the machine's promises hold whatever the work answers. Method: scripted answers, effects compared.

use schemas::{SessionId, WorkspaceId};
use uuid::Uuid;

use super::*;

const CONFIG: Config = Config {
    runs: RunConfig { run_bytes_min: 100, run_age_ms: 1_000, run_bytes_max: 300, run_objects_max: 10 },
    interval_ms: 500,
    lease_ms: 3_000,
    runs_at_once: 2,
    finals_at_once: 2,
    merges_at_once: 2,
    bytes_max: 1_000,
    footers_bytes_max: 500,
    finals_per_look: 10,
    retry_min_ms: 100,
    retry_max_ms: 1_000,
    spread_seed: 0,
};

fn key(n: u128) -> SessionKey {
    SessionKey { workspace: WorkspaceId(Uuid::from_u128(1)), session: SessionId(Uuid::from_u128(n)) }
}

fn id(n: u128) -> ObjectId {
    ObjectId(Uuid::from_u128(n))
}

fn row(partition: i32, n: u128, bytes: u64) -> SharedRow {
    SharedRow { partition, candidate: Candidate { id: id(n), bytes, age_ms: 0 }, leased: false }
}

fn aged(row: SharedRow, age_ms: u64) -> SharedRow {
    SharedRow { candidate: Candidate { age_ms, ..row.candidate }, ..row }
}

fn opened(sessions: &[(u128, u64)]) -> Answer {
    let sessions = sessions.iter().map(|(n, bytes)| (key(*n), *bytes)).collect();
    Answer::Opened(Opened { sessions, has_unreadable: false, footers_bytes: 0 })
}

fn parts(sizes: &[u64]) -> Answer {
    let parts: Vec<(ObjectId, u64)> = (1..).zip(sizes).map(|(n, bytes)| (id(n), *bytes)).collect();
    let merge_bytes = parts.iter().map(|(_, bytes)| bytes).sum();
    Answer::Parts(Parts { may_be_shared: false, parts, merge_bytes })
}

const STORED: Answer = Answer::Merged(Merged::Stored);
const COMMITTED: Answer = Answer::Published(Published::Committed);

/// A machine, and the work that it has begun and not heard of.
struct Bench {
    machine: Machine,
    now_ms: u64,
    work: Vec<(TaskId, Work)>,
    ended: Vec<End>,
    has_stopped: bool,
}

impl Bench {
    fn new(config: Config) -> Self {
        let mut bench =
            Self { machine: Machine::new(config), now_ms: 0, work: Vec::new(), ended: Vec::new(), has_stopped: false };
        bench.give(Input::Tick);
        bench
    }

    /// One that was told of these.
    fn that_found(shared: &[SharedRow], over: &[u128]) -> Self {
        let mut bench = Self::new(CONFIG);
        bench.found(shared, over);
        bench
    }

    fn found(&mut self, shared: &[SharedRow], over: &[u128]) {
        let found = Found { shared: shared.to_vec(), over: over.iter().copied().map(key).collect() };
        self.answer(|work| matches!(work, Work::Look { .. }), Answer::Looked(found));
    }

    fn give(&mut self, input: Input) {
        self.machine.handle(self.now_ms, input);
        while let Some(effect) = self.machine.poll_effect() {
            match effect {
                Effect::Begin { task, work } => self.work.push((task, work)),
                Effect::Close { end, .. } => self.ended.push(end),
                Effect::Stopped => self.has_stopped = true,
            }
        }
    }

    /// Answers the first work that is such.
    fn answer(&mut self, is_it: impl Fn(&Work) -> bool, answer: Answer) -> TaskId {
        let place = self.work.iter().position(|(_, work)| is_it(work));
        let place = place.unwrap_or_else(|| panic!("no such work in {:?}", self.work));
        let (task, _) = self.work.remove(place);
        self.give(Input::Answer { task, answer });
        task
    }

    /// Answers the one thing that is under way.
    fn only(&mut self, answer: Answer) -> Work {
        assert_eq!(self.work.len(), 1, "{:?}", self.work);
        let work = self.work[0].1.clone();
        self.answer(|_| true, answer);
        work
    }

    fn wait(&mut self, ms: u64) {
        self.now_ms += ms;
        self.give(Input::Tick);
    }

    /// Waits until the machine wants to be called.
    fn wake(&mut self) {
        let at = self.machine.poll_timeout().expect("something to wait for");
        self.now_ms = self.now_ms.max(at);
        self.give(Input::Tick);
    }

    fn has(&self, is_it: impl Fn(&Work) -> bool) -> bool {
        self.work.iter().any(|(_, work)| is_it(work))
    }

    /// Claims, opens and stages the run that was found.
    fn begin_merging(&mut self, sessions: &[(u128, u64)]) {
        self.only(Answer::Claimed(true));
        self.only(opened(sessions));
        self.stage_all();
    }

    fn stage_all(&mut self) -> Vec<(SessionKey, Name)> {
        let wanted = self.work.iter().find_map(|(_, work)| match work {
            Work::Stage { objects, .. } => Some(objects.clone()),
            _ => None,
        });
        let wanted = wanted.unwrap_or_else(|| panic!("nothing is staged: {:?}", self.work));
        let live = wanted.iter().map(|(key, _)| *key).collect();
        self.answer(|work| matches!(work, Work::Stage { .. }), Answer::Staged(live));
        wanted
    }

    fn published(&self) -> (Vec<(SessionKey, Name)>, Option<Name>) {
        match &self.work[..] {
            [(_, Work::Publish { results, quarantine, .. })] => (results.clone(), *quarantine),
            other => panic!("no publishing in {other:?}"),
        }
    }
}

fn is_merge_of(n: u128) -> impl Fn(&Work) -> bool {
    move |work| matches!(work, Work::Merge { key: of, .. } if *of == key(n))
}

#[test]
fn a_run_is_swapped_for_its_results_and_more_is_looked_for_at_once() {
    let mut bench = Bench::that_found(&[row(0, 1, 60), row(0, 2, 60)], &[]);
    let claim = bench.only(Answer::Claimed(true));
    assert!(matches!(claim, Work::Claim { run, .. } if run == [id(1), id(2)]));
    assert!(matches!(bench.only(opened(&[(1, 10), (2, 10)])), Work::Open(_)));
    let names = bench.stage_all();
    // In any order.
    bench.answer(is_merge_of(2), STORED);
    bench.answer(is_merge_of(1), STORED);
    assert_eq!(bench.published(), (names, None), "in id order, since sessions are locked so");
    bench.only(COMMITTED);
    assert_eq!(bench.ended, [End::Done]);
    assert!(matches!(bench.work[..], [(_, Work::Look { .. })]));
    assert_eq!(bench.machine.bytes(), 0);
}

#[test]
fn what_is_behind_a_claimed_object_waits() {
    let leased = SharedRow { leased: true, ..row(0, 1, 500) };
    let mut bench = Bench::that_found(&[leased, row(0, 2, 500), row(1, 3, 500)], &[]);
    assert!(matches!(bench.only(Answer::Claimed(false)), Work::Claim { run, .. } if run == [id(3)]));
    assert_eq!(bench.ended, [End::Nothing]);
    assert!(bench.work.is_empty(), "nothing was claimed that could be given back");
    // A claim of our own that ran out is none of a dead process.
    let mut bench = Bench::that_found(&[row(0, 1, 200), row(0, 2, 200)], &[]);
    bench.answer(|_| true, Answer::Claimed(true));
    bench.wait(500);
    bench.found(&[row(0, 1, 200), row(0, 2, 200)], &[]);
    assert!(!bench.has(|work| matches!(work, Work::Claim { .. })), "the partition has a job");
}

#[test]
fn the_oldest_goes_first() {
    let rows = [aged(row(0, 1, 10), 1_000), aged(row(1, 2, 10), 3_000), aged(row(2, 3, 10), 2_000)];
    let bench = Bench::that_found(&rows, &[]);
    let claimed: Vec<Vec<ObjectId>> = bench
        .work
        .iter()
        .filter_map(|(_, work)| match work {
            Work::Claim { run, .. } => Some(run.clone()),
            _ => None,
        })
        .collect();
    assert_eq!(claimed, [[id(2)], [id(3)]], "two at once");
}

#[test]
fn deleted_sessions_are_left_out() {
    let mut bench = Bench::that_found(&[row(0, 1, 100)], &[]);
    bench.only(Answer::Claimed(true));
    bench.only(opened(&[(1, 10), (2, 10), (3, 10)]));
    bench.only(Answer::Staged(vec![key(3), key(1)]));
    bench.answer(is_merge_of(3), Answer::Merged(Merged::Deleted));
    bench.answer(is_merge_of(1), STORED);
    assert_eq!(bench.published().0.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [key(1)]);

    let mut bench = Bench::that_found(&[row(0, 1, 100)], &[]);
    bench.only(Answer::Claimed(true));
    bench.only(opened(&[(1, 10)]));
    bench.only(Answer::Staged(Vec::new()));
    assert_eq!(bench.published(), (Vec::new(), None), "the run goes all the same");
}

#[test]
fn what_failed_is_staged_anew_under_another_name() {
    let mut bench = Bench::that_found(&[row(0, 1, 100)], &[]);
    bench.begin_merging(&[(1, 10), (2, 10)]);
    bench.answer(is_merge_of(1), Answer::Failed);
    let doubled = bench.answer(is_merge_of(2), STORED);
    assert!(bench.work.is_empty(), "it waits: {:?}", bench.work);
    bench.give(Input::Answer { task: doubled, answer: STORED });
    bench.wait(100);
    let anew = bench.stage_all();
    assert_eq!(anew.iter().map(|(key, _)| *key).collect::<Vec<_>>(), [key(1)]);
    bench.only(STORED);
    let (results, _) = bench.published();
    assert_eq!(results.len(), 2, "an answer that came twice counts once");
    assert_eq!(results[0], anew[0]);
    assert_ne!(results[0].1, results[1].1);
}

#[test]
fn what_cannot_be_read_goes_into_quarantine_before_the_swap() {
    let mut bench = Bench::that_found(&[row(0, 1, 100)], &[]);
    bench.begin_merging(&[(1, 10), (2, 10)]);
    bench.answer(is_merge_of(1), Answer::Merged(Merged::Unreadable));
    bench.answer(is_merge_of(2), STORED);
    let Work::Quarantine { name: first, sessions, .. } = bench.only(Answer::Failed) else { panic!("no quarantine") };
    assert_eq!(sessions, [key(1)]);
    bench.wait(100);
    let Work::Quarantine { name: second, .. } = bench.only(Answer::Done) else { panic!("no quarantine") };
    assert_ne!(first, second, "whether the first arrived is not known");
    let (results, quarantine) = bench.published();
    assert_eq!((results.len(), quarantine), (1, Some(second)));

    let mut bench = Bench::that_found(&[row(0, 1, 100)], &[]);
    bench.only(Answer::Claimed(true));
    bench.only(Answer::Opened(Opened { sessions: Vec::new(), has_unreadable: true, footers_bytes: 0 }));
    assert!(matches!(bench.only(Answer::Done), Work::Quarantine { sessions, .. } if sessions.is_empty()));
}

/// A run of one session that is being published.
fn publishing() -> Bench {
    let mut bench = Bench::that_found(&[row(0, 1, 100)], &[]);
    bench.begin_merging(&[(1, 10)]);
    bench.only(STORED);
    bench
}

#[test]
fn a_commit_whose_answer_was_lost_is_looked_up() {
    for unknown in [Answer::Published(Published::Unknown), Answer::Failed] {
        for (standing, end) in [(Standing::Committed, End::Done), (Standing::Lost, End::Lost)] {
            let mut bench = publishing();
            bench.only(unknown.clone());
            assert!(matches!(bench.only(Answer::LookedUp(standing)), Work::LookUp { .. }));
            assert_eq!(bench.ended, [end]);
        }
    }
    let mut bench = publishing();
    let first = bench.published();
    bench.only(Answer::Published(Published::Unknown));
    bench.only(Answer::LookedUp(Standing::Open));
    bench.wait(100);
    assert_eq!(bench.published(), first, "it can be tried as it is");
    // A look-up that fails is asked again; and what nobody can find out is left to the next look.
    bench.only(Answer::Published(Published::Unknown));
    bench.only(Answer::Failed);
    bench.wake();
    assert!(matches!(bench.only(Answer::Failed), Work::LookUp { .. }));
    assert_eq!(bench.ended, [End::Failed]);
}

#[test]
fn a_claim_is_renewed_and_a_lost_one_ends_its_job() {
    let mut bench = Bench::that_found(&[row(0, 1, 100)], &[]);
    bench.begin_merging(&[(1, 10), (2, 10)]);
    let renews = |work: &Work| matches!(work, Work::Renew(_));
    bench.wait(999);
    assert!(!bench.has(renews));
    bench.wait(1);
    bench.answer(renews, Answer::Claimed(true));
    assert!(!bench.has(renews));
    bench.wait(1_000);
    bench.answer(renews, Answer::Failed);
    bench.wait(333);
    bench.answer(renews, Answer::Claimed(false));
    assert!(bench.ended.is_empty(), "merges are under way still");
    bench.answer(is_merge_of(1), STORED);
    bench.answer(is_merge_of(2), STORED);
    assert_eq!(bench.ended, [End::Lost]);
    assert!(bench.has(|work| matches!(work, Work::Release(_))), "it may be ours in part");
    assert!(!bench.has(|work| matches!(work, Work::Publish { .. })));
}

#[test]
fn a_renewal_that_a_swap_overtook_does_not_end_the_job() {
    let mut bench = Bench::that_found(&[row(0, 1, 100)], &[]);
    bench.begin_merging(&[(1, 10)]);
    bench.wait(1_000);
    bench.answer(is_merge_of(1), STORED);
    bench.answer(|work| matches!(work, Work::Renew(_)), Answer::Claimed(false));
    bench.answer(|work| matches!(work, Work::Publish { .. }), COMMITTED);
    assert_eq!(bench.ended, [End::Done]);
}

#[test]
fn what_fails_again_and_again_waits_and_holds_up_nothing_else() {
    let rows = [row(0, 1, 100), row(1, 2, 100)];
    let mut bench = Bench::that_found(&rows, &[]);
    let claims = |n: u128| move |work: &Work| matches!(work, Work::Claim { run, .. } if run[0] == id(n));
    let mut waits = Vec::new();
    for _ in 0..4 {
        bench.answer(claims(1), Answer::Failed);
        let failed_ms = bench.now_ms;
        bench.answer(|work| matches!(work, Work::Release(_)), Answer::Done);
        while !bench.has(claims(1)) {
            bench.wait(10);
            if bench.has(|work| matches!(work, Work::Look { .. })) {
                bench.found(&rows, &[]);
            }
        }
        waits.push(bench.now_ms - failed_ms);
    }
    assert!(waits.is_sorted() && waits[3] >= 800, "{waits:?}");
    assert!(bench.has(claims(2)), "the other partition's job went on all the time");
    assert_eq!(bench.ended, [End::Failed; 4]);
}

#[test]
fn nothing_begins_beyond_the_budget_unless_nothing_else_goes_on() {
    // Of one partition alone more than the budget: it goes when nothing else does.
    let runs = RunConfig { run_bytes_max: 5_000, ..CONFIG.runs };
    let mut bench = Bench::new(Config { runs, ..CONFIG });
    bench.found(&[aged(row(0, 1, 5_000), 9), row(1, 2, 100)], &[]);
    assert_eq!(bench.work.len(), 1, "{:?}", bench.work);
    // Merges: those that fit side by side, and a large one alone.
    bench.begin_merging(&[(1, 10), (2, 10)]);
    assert_eq!(bench.work.len(), 1, "{:?}", bench.work);
    bench.only(STORED);
    assert!(bench.has(is_merge_of(2)));

    let mut bench = Bench::that_found(&[row(0, 1, 100)], &[]);
    bench.begin_merging(&[(1, 500), (2, 600), (3, 10)]);
    assert!(!bench.has(is_merge_of(2)) && !bench.has(is_merge_of(3)), "what is behind it would hold it up for ever");
    bench.only(STORED);
    assert!(bench.has(is_merge_of(2)) && bench.has(is_merge_of(3)));
}

#[test]
fn sessions_that_are_finished_leave_room_for_a_run_that_waits() {
    let mut bench = Bench::that_found(&[], &[1, 2]);
    bench.answer(|_| true, parts(&[200, 200]));
    bench.stage_all();
    assert!(bench.has(|work| matches!(work, Work::MergeParts { .. })));
    bench.wait(500);
    bench.found(&[row(0, 1, 900)], &[]);
    assert!(!bench.has(|work| matches!(work, Work::Claim { .. })));
    bench.answer(|work| matches!(work, Work::FindParts { .. }), parts(&[100, 100]));
    bench.stage_all();
    let merges = |work: &Work| matches!(work, Work::MergeParts { .. });
    assert_eq!(bench.work.iter().filter(|(_, work)| merges(work)).count(), 1, "the other waits");
    bench.answer(merges, STORED);
    bench.answer(|work| matches!(work, Work::PublishFinal { .. }), COMMITTED);
    bench.found(&[row(0, 1, 900)], &[]);
    assert!(bench.has(|work| matches!(work, Work::Claim { .. })));
}

#[test]
fn a_session_that_is_over_becomes_one_object() {
    let mut bench = Bench::that_found(&[], &[1]);
    assert!(matches!(bench.only(parts(&[10, 20])), Work::FindParts { .. }));
    bench.stage_all();
    let Work::MergeParts { name, parts: of, .. } = bench.only(STORED) else { panic!("no merge") };
    assert_eq!(of, [id(1), id(2)]);
    let swapped = bench.only(Answer::Published(Published::Unknown));
    assert!(matches!(swapped, Work::PublishFinal { name: of, .. } if of == name));
    assert!(matches!(bench.only(Answer::LookedUp(Standing::Committed)), Work::LookUpFinal { .. }));
    assert_eq!(bench.ended, [End::Done]);
}

#[test]
fn parts_that_stay_as_they_are_are_noted() {
    // One part; more than fit; parts that cannot be merged.
    for (found, merged) in [(parts(&[10]), false), (parts(&[300, 300]), false), (parts(&[10, 10]), true)] {
        let mut bench = Bench::that_found(&[], &[1]);
        bench.only(found);
        if merged {
            bench.stage_all();
            bench.only(Answer::Merged(Merged::Unreadable));
        }
        assert!(matches!(bench.only(Answer::Marked(true)), Work::MarkFinal { .. }));
        assert_eq!(bench.ended, [End::Done]);
    }
}

#[test]
fn a_session_that_is_shared_still_is_asked_for_later_and_hides_no_other() {
    let mut bench = Bench::that_found(&[], &[1]);
    bench.only(Answer::Parts(Parts { may_be_shared: true, parts: vec![(id(1), 10)], merge_bytes: 10 }));
    assert_eq!(bench.ended, [End::Nothing]);
    bench.wait(500);
    assert!(matches!(bench.work[..], [(_, Work::Look { sessions_max: 11 })]), "{:?}", bench.work);
    bench.found(&[], &[1]);
    assert!(bench.has(|work| matches!(work, Work::FindParts { .. })));
}

#[test]
fn a_shutdown_finishes_what_is_under_way_and_begins_nothing() {
    let mut bench = Bench::that_found(&[row(0, 1, 100), row(1, 2, 100)], &[]);
    bench.answer(|_| true, Answer::Claimed(true));
    bench.give(Input::Shutdown);
    // What is claimed from now on is given back.
    bench.answer(|work| matches!(work, Work::Claim { .. }), Answer::Claimed(true));
    bench.answer(|work| matches!(work, Work::Release(_)), Answer::Done);
    bench.only(opened(&[(1, 10)]));
    bench.stage_all();
    bench.only(STORED);
    assert!(!bench.has_stopped);
    bench.only(COMMITTED);
    assert!(bench.has_stopped && bench.work.is_empty());
    assert_eq!(bench.ended, [End::GivenUp, End::Done]);
    assert_eq!(bench.machine.poll_timeout(), None, "a time that has passed would wake the driver again and again");
}

#[test]
fn claims_are_given_back_when_the_grace_is_over() {
    let mut bench = Bench::that_found(&[row(0, 1, 100)], &[]);
    bench.begin_merging(&[(1, 10), (2, 10)]);
    bench.give(Input::Shutdown);
    bench.give(Input::GraceOver);
    assert_eq!(bench.ended, [End::GivenUp]);
    assert!(!bench.has_stopped);
    // Merges that end now are nobody's.
    bench.answer(is_merge_of(1), STORED);
    bench.answer(|work| matches!(work, Work::Release(_)), Answer::Failed);
    assert!(bench.has_stopped);
}

#[test]
fn a_look_that_was_under_way_when_something_was_done_is_made_anew() {
    let mut bench = publishing();
    bench.wait(500);
    bench.answer(|work| matches!(work, Work::Publish { .. }), COMMITTED);
    bench.found(&[], &[]);
    assert!(matches!(bench.work[..], [(_, Work::Look { .. })]));
    bench.only(Answer::Failed);
    assert!(bench.work.is_empty());
    bench.wait(500);
    assert!(matches!(bench.work[..], [(_, Work::Look { .. })]));
}

#[test]
fn claims_of_parts_are_renewed_and_what_is_lost_is_given_back() {
    let mut bench = Bench::that_found(&[], &[1]);
    bench.only(parts(&[10, 20]));
    bench.stage_all();
    assert!(bench.has(|work| matches!(work, Work::MergeParts { .. })));
    bench.wait(CONFIG.lease_ms / 3);
    bench.answer(|work| matches!(work, Work::Renew(_)), Answer::Claimed(false));
    assert!(bench.ended.is_empty(), "its merge is under way");
    bench.answer(|work| matches!(work, Work::MergeParts { .. }), STORED);
    assert_eq!(bench.ended, [End::Lost]);
    assert!(bench.has(|work| matches!(work, Work::Release(_))));
}

#[test]
fn what_is_corrupt_of_a_session_goes_into_quarantine_and_the_rest_is_published() {
    let mut bench = Bench::that_found(&[row(0, 1, 100)], &[]);
    bench.begin_merging(&[(1, 10)]);
    bench.only(Answer::Merged(Merged::Partly));
    let Work::Quarantine { sessions, .. } = bench.only(Answer::Done) else { panic!("no quarantine") };
    assert_eq!(sessions, [key(1)]);
    let Work::Publish { results, quarantine, .. } = bench.only(COMMITTED) else { panic!("nothing is published") };
    assert!(results.len() == 1 && quarantine.is_some());
}
