//! Entries of the topic `control`: what is read is written and read again as the same, and an edge takes any of it in.
#![no_main]

use engine::standing::Standing;
use fuzz::{consent, link, plant, session};
use libfuzzer_sys::fuzz_target;
use schemas::control::{Entry, Kept, LinkUse, Terms, WorkspaceRules, WorkspaceState};
use schemas::limits::EXHAUSTION_SESSIONS_MAX;
use schemas::plan::Plan;

const NOW_MS: u64 = 1_790_000_000_000;

/// The length of the key, the key, the value.
fn join(entry: &Entry) -> Vec<u8> {
    let key = entry.key();
    let len = u8::try_from(key.len()).expect("a key is short");
    [&[len], key.as_bytes(), &entry.value()].concat()
}

fn seeds() -> impl Iterator<Item = Vec<u8>> {
    let (key, id) = (session(), consent().link);
    let at = Entry::deletion(key, NOW_MS).not_after;
    let rules = WorkspaceRules {
        state: WorkspaceState::Suspended,
        limits: Plan::Free.limits(),
        full_until: Some(at),
        origins: vec!["https://app.example".into()],
        notice_versions: vec!["2026-03".into()],
        terms: Some(Terms {
            plan: Plan::Free,
            kept: Some(Kept { until: at, days: 365 }),
            terminates_at: Some(at),
            closed_by_operator: true,
        }),
    };
    let used = LinkUse { sessions: 5, newest: vec![key.session] };
    [
        Entry::deletion(key, NOW_MS),
        Entry::withdrawal(key, NOW_MS),
        Entry::revocation(key.workspace, id, NOW_MS, at),
        Entry::exhaustion(key.workspace, id, used, at),
        Entry::begun(key, id, NOW_MS),
        Entry::workspace(key.workspace, rules, 3),
        Entry::edge(key.session.0, NOW_MS),
    ]
    .map(|entry| join(&entry))
    .into_iter()
}

fuzz_target!(init: plant(seeds()), |data: &[u8]| {
    let Some((len, rest)) = data.split_first() else { return };
    let Some((key, value)) = rest.split_at_checked(usize::from(*len)) else { return };
    let Ok(entry) = Entry::decode(key, value) else { return };
    assert_eq!(entry.key().as_bytes(), key, "two keys for one subject");
    if let schemas::control::News::Exhaustion(_, _, used) = &entry.news {
        assert!(used.newest.len() <= EXHAUSTION_SESSIONS_MAX);
    }
    let read = Entry::decode(key, &entry.value()).expect("what was read can be written and read");
    // Fractions of a second may be cut in writing; nothing else may change.
    assert_eq!((&read.news, read.version), (&entry.news, entry.version));
    let mut standing = Standing::default();
    let now_s = (NOW_MS / 1000).cast_signed();
    standing.apply(entry.clone(), now_s);
    standing.apply(read, now_s);
    let claims = link();
    // Whatever was heard: what was let in once is let in again.
    if standing.begin(&claims, session().session, "2026-03", now_s).is_ok() {
        assert!(standing.begin(&claims, session().session, "2026-03", now_s).is_ok());
    }
    assert!(standing.edges(now_s) >= 1 && standing.sessions() <= 1);
    standing.sweep(i64::MAX, 10);
});
