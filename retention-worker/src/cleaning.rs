//! Takes entries off the topic `control` that nobody needs any more: compaction keeps the last entry of each key for ever.
//!
//! Two kinds stay: what holds of a workspace, and a withdrawal, which goes only behind its deletion. Several workers remove the
//! same entries, one after the other; that changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use schemas::control::{Entry, LinkUse, News};
use schemas::{LinkId, SessionId, SessionKey, WorkspaceId};
use service_kit::kafka::control::{Following, Publisher};
use service_kit::shutdown::Shutdown;
use storage::index::Index;
use uuid::Uuid;

use crate::metrics;

/// Entries stay this much longer than they count: no clock is that wrong.
const KEPT_LONGER_S: i64 = 3600;
/// How often it is looked for entries to remove. Not before the topic was read to its end: an entry that counts no more may have
/// been said anew behind it.
const INTERVAL: Duration = Duration::from_secs(20);
/// Removed at once. When there are more the next follow without a pause.
const REMOVED_AT_ONCE_MAX: usize = 1_000;
/// The topic counts as read to its end when it was so lately.
const READ_WITHIN: Duration = Duration::from_secs(30);

/// What an entry is about, without what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Subject {
    kind: Kind,
    workspace: WorkspaceId,
    id: Uuid,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Deletion,
    Revocation,
    Exhaustion,
    Begun,
    Edge,
}

impl Subject {
    /// `None` for what stays.
    fn of(news: &News) -> Option<Self> {
        let subject = |kind, workspace, id| Some(Self { kind, workspace, id });
        match news {
            News::Deletion(key) => subject(Kind::Deletion, key.workspace, key.session.0),
            News::Revocation(workspace, link) => subject(Kind::Revocation, *workspace, link.0),
            News::Exhaustion(workspace, link, _) => subject(Kind::Exhaustion, *workspace, link.0),
            News::Begun(key, _) => subject(Kind::Begun, key.workspace, key.session.0),
            News::Edge(instance) => subject(Kind::Edge, WorkspaceId(Uuid::nil()), *instance),
            News::Withdrawal(_) | News::Workspace(..) => None,
        }
    }

    /// The key of its record.
    fn key(&self) -> String {
        let session = SessionKey { workspace: self.workspace, session: SessionId(self.id) };
        let link = LinkId(self.id);
        let news = match self.kind {
            Kind::Deletion => News::Deletion(session),
            Kind::Revocation => News::Revocation(self.workspace, link),
            Kind::Exhaustion => News::Exhaustion(self.workspace, link, LinkUse { sessions: 0, newest: Vec::new() }),
            Kind::Begun => News::Begun(session, LinkId(Uuid::nil())),
            Kind::Edge => News::Edge(self.id),
        };
        news.key()
    }
}

/// The entries of the topic, and when each stops to count. Some 150 bytes each.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cleaning(Arc<Mutex<Entries>>);

/// Times are seconds since the epoch.
#[derive(Debug, Default)]
struct Entries {
    until_s: BTreeMap<Subject, i64>,
    /// The same, by time.
    in_order: BTreeSet<(i64, Subject)>,
}

impl Cleaning {
    /// This entry is on the topic.
    pub(crate) fn add(&self, entry: &Entry) {
        let Some(subject) = Subject::of(&entry.news) else { return };
        let not_after_s = entry.not_after.unix_timestamp();
        let mut entries = self.entries();
        match entries.until_s.get(&subject).copied() {
            // What is said anew counts for longer, and may be read late.
            Some(known) if known >= not_after_s => return,
            Some(known) => entries.in_order.remove(&(known, subject)),
            None => true,
        };
        entries.until_s.insert(subject, not_after_s);
        entries.in_order.insert((not_after_s, subject));
    }

    fn due(&self, now_s: i64) -> Vec<Subject> {
        let entries = self.entries();
        let due = entries.in_order.iter().take_while(|(until_s, _)| until_s.saturating_add(KEPT_LONGER_S) <= now_s);
        due.map(|(_, subject)| *subject).take(REMOVED_AT_ONCE_MAX).collect()
    }

    fn forget(&self, removed: &[Subject]) {
        let mut entries = self.entries();
        for subject in removed {
            if let Some(until_s) = entries.until_s.remove(subject) {
                entries.in_order.remove(&(until_s, *subject));
            }
        }
    }

    /// Removes what is due by the index's clock, until the shutdown.
    pub(crate) async fn run(self, index: Index, mut publisher: Publisher, following: Following, shutdown: Shutdown) {
        while shutdown.sleep(INTERVAL).await {
            let mut is_more = following.knows_as_of(READ_WITHIN);
            while is_more && !shutdown.has_begun() {
                is_more = match self.remove_some(&index, &mut publisher).await {
                    Ok(removed) => removed == REMOVED_AT_ONCE_MAX,
                    Err(error) => {
                        // Those who relay the outbox say so louder.
                        tracing::debug!("remove control entries: {error:#}; trying again");
                        false
                    }
                };
            }
        }
    }

    /// Removes what is due, so much at once; how much.
    async fn remove_some(&self, index: &Index, publisher: &mut Publisher) -> anyhow::Result<usize> {
        let due = self.due(index.now_s().await?);
        if !due.is_empty() {
            let removals: Vec<_> = due.iter().map(|subject| (subject.key(), None)).collect();
            publisher.publish(&removals).await?;
            self.forget(&due);
            ::metrics::counter!(metrics::CLEANED).increment(due.len() as u64);
        }
        Ok(due.len())
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use schemas::control::WorkspaceRules;
    use schemas::limits::CONTROL_EDGE_KEPT_S;
    use schemas::plan::Plan;
    use time::OffsetDateTime;

    use super::*;

    const NOW_MS: u64 = 1_790_000_000_000;
    const NOW_S: i64 = 1_790_000_000;

    fn session() -> SessionKey {
        SessionKey { workspace: WorkspaceId(Uuid::from_u128(1)), session: SessionId(Uuid::from_u128(2)) }
    }

    /// Goal: whatever counts no more is removed, by its own key, and only what may be. Method: one entry of each kind, long
    /// after all of them.
    #[test]
    fn what_counts_no_more_goes_and_withdrawals_and_workspaces_stay() {
        let (key, link) = (session(), LinkId(Uuid::from_u128(3)));
        let rules = WorkspaceRules {
            state: schemas::control::WorkspaceState::Active,
            limits: Plan::Free.limits(),
            full_until: None,
            origins: Vec::new(),
            notice_versions: Vec::new(),
            terms: None,
        };
        let used = LinkUse { sessions: 5, newest: vec![key.session] };
        let going = [
            Entry::deletion(key, NOW_MS),
            Entry::revocation(key.workspace, link, NOW_MS, OffsetDateTime::UNIX_EPOCH),
            Entry::exhaustion(key.workspace, link, used, OffsetDateTime::UNIX_EPOCH),
            Entry::begun(key, link, NOW_MS),
            Entry::edge(Uuid::from_u128(4), NOW_MS),
        ];
        let staying = [Entry::withdrawal(key, NOW_MS), Entry::workspace(key.workspace, rules, 1)];
        let cleaning = Cleaning::default();
        going.iter().chain(&staying).for_each(|entry| cleaning.add(entry));
        let due = cleaning.due(i64::MAX);
        let mut keys: Vec<String> = due.iter().map(Subject::key).collect();
        let mut expected: Vec<String> = going.iter().map(Entry::key).collect();
        keys.sort_unstable();
        expected.sort_unstable();
        assert_eq!(keys, expected);
        cleaning.forget(&due);
        assert!(cleaning.due(i64::MAX).is_empty(), "an entry is removed once");
    }

    #[test]
    fn an_entry_that_is_said_anew_stays_in_whatever_order_it_is_read() {
        let (first, again) = (Entry::edge(Uuid::nil(), NOW_MS), Entry::edge(Uuid::nil(), NOW_MS + 10_000));
        for order in [[&first, &again], [&again, &first]] {
            let cleaning = Cleaning::default();
            order.into_iter().for_each(|entry| cleaning.add(entry));
            let over = NOW_S + 10 + CONTROL_EDGE_KEPT_S + KEPT_LONGER_S;
            assert!(cleaning.due(over - 1).is_empty());
            assert_eq!(cleaning.due(over).len(), 1);
        }
    }

    #[test]
    fn little_is_removed_at_once() {
        let cleaning = Cleaning::default();
        for number in 0..=REMOVED_AT_ONCE_MAX as u128 {
            cleaning.add(&Entry::edge(Uuid::from_u128(number), NOW_MS));
        }
        let due = cleaning.due(i64::MAX);
        assert_eq!(due.len(), REMOVED_AT_ONCE_MAX);
        cleaning.forget(&due);
        assert_eq!(cleaning.due(i64::MAX).len(), 1);
    }
}
