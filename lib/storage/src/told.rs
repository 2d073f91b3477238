//! What was told of workspaces, and what an index that is one of a backup has forgotten of it.
//!
//! Their plans, and that they are closed or suspended, are told on `control`, which keeps the latest of each. What was told under a higher
//! version than the index has is taken back. A workspace that neither of them knows, and that has sessions, gets a row of its own, or no
//! window would end for them.
//!
//! Nothing is told of workspaces, nothing of them changes, and nothing goes by their plans, before that was done with the server that the
//! index is on ([`Told::is_compared`]): a restored index would have sessions go by plans that were, and tell them to everybody.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use schemas::WorkspaceId;
use schemas::control::{Entry, News};
use service_kit::kafka::control::Following;
use service_kit::retry::Reasons;
use service_kit::shutdown::Shutdown;
use service_kit::telemetry::Described::{self, Counter};
use service_kit::telemetry::chain;

use crate::index::workspaces::ToldRules;
use crate::index::{Index, IndexError};
use crate::journal::Journal;

const RESTORED: &str = "restored_workspaces_total";

/// For the metrics of a service that compares.
pub const RESTORED_DESCRIBED: Described =
    Counter(RESTORED, "Workspaces of which the index knew less than was told: it is one of a backup. Alarm on any.");

/// How often it is looked whether there is anything to compare.
const INTERVAL: Duration = Duration::from_millis(200);
/// Workspaces that are compared by one question.
const BATCH: usize = 500;
/// How often all of them are compared: the index may be another by now.
const ROUND_INTERVAL: Duration = Duration::from_secs(600);
/// The topic counts as read to its end when it was so lately.
const READ_WITHIN: Duration = Duration::from_secs(5);

/// What was told of workspaces: some 500 bytes of each.
#[derive(Debug, Clone)]
pub struct Told(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    rules: Mutex<Rules>,
    journal: Journal,
    /// The server of the index with which all was compared, as the journal counts them.
    compared: AtomicU64,
}

#[derive(Debug, Default)]
struct Rules {
    latest: BTreeMap<WorkspaceId, ToldRules>,
    /// Those that were not compared since they were told.
    new: BTreeSet<WorkspaceId>,
}

impl Rules {
    /// Of two entries the one with the higher version counts, and of two that are equal the later one.
    fn add(&mut self, told: ToldRules) {
        let workspace = told.workspace;
        if self.latest.get(&workspace).is_none_or(|known| known.version <= told.version) {
            self.latest.insert(workspace, told);
            self.new.insert(workspace);
        }
    }

    fn some_new(&self) -> Vec<ToldRules> {
        self.new.iter().filter_map(|workspace| self.latest.get(workspace)).take(BATCH).cloned().collect()
    }

    /// These were compared. What was told of one meanwhile is new still.
    fn forget_new(&mut self, compared: &[ToldRules]) {
        for rules in compared {
            if self.latest.get(&rules.workspace).is_none_or(|latest| latest == rules) {
                self.new.remove(&rules.workspace);
            }
        }
    }

    fn some_behind(&self, after: Option<WorkspaceId>) -> Vec<ToldRules> {
        let behind = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        self.latest.range(behind).take(BATCH).map(|(_, rules)| rules.clone()).collect()
    }
}

/// A round through all workspaces.
#[derive(Debug)]
enum Round {
    /// Through those that were told of, behind the one given.
    Told(Option<WorkspaceId>),
    /// Through those that have sessions.
    WithSessions(Option<WorkspaceId>),
    /// Over since then.
    Over(Instant),
}

impl Told {
    /// Nothing so far; compared with an index that this journal is beside.
    pub fn new(journal: Journal) -> Self {
        Self(Arc::new(Inner { rules: Mutex::default(), journal, compared: AtomicU64::new(0) }))
    }

    /// This entry is on the topic.
    pub fn add(&self, entry: &Entry) {
        let News::Workspace(workspace, rules) = &entry.news else { return };
        let (workspace, version) = (*workspace, entry.version);
        self.rules().add(ToldRules { workspace, version, rules: (**rules).clone() });
    }

    /// Whether all that was told was compared with the server that the index is on: of whatever connection there is by then.
    pub fn is_compared(&self) -> bool {
        self.0.compared.load(Ordering::Acquire) == self.0.journal.servers()
    }

    /// Waits until it is, for no longer than this.
    pub async fn wait_compared(&self, within: Duration) {
        let begun = Instant::now();
        while !self.is_compared() && begun.elapsed() < within {
            tokio::time::sleep(INTERVAL).await;
        }
    }

    /// Compares until the shutdown: what is new, and all of it now and then and whenever the index is on another server.
    pub async fn run(self, index: Index, following: Following, shutdown: Shutdown) {
        let (mut round, mut server, mut reasons) = (Round::Told(None), self.0.journal.servers(), Reasons::default());
        let mut since = Instant::now();
        while shutdown.sleep(INTERVAL).await {
            // What was told before the index came to be on this server has to be known.
            if !following.knows_as_of(READ_WITHIN.min(since.elapsed())) {
                continue;
            }
            let is_due = matches!(round, Round::Over(since) if since.elapsed() >= ROUND_INTERVAL);
            let servers = self.0.journal.servers();
            if std::mem::replace(&mut server, servers) != servers {
                (round, since) = (Round::Told(None), Instant::now());
                continue;
            }
            if is_due {
                round = Round::Told(None);
            }
            let mut goes_on = true;
            while goes_on && !shutdown.has_begun() && self.0.journal.servers() == server {
                goes_on = match self.step(&index, &mut round).await {
                    Ok(goes_on) => {
                        reasons.clear();
                        goes_on
                    }
                    Err(error) => {
                        reasons.warn(format!("compare what was told of workspaces: {}", chain(&error)));
                        false
                    }
                };
            }
            if matches!(round, Round::Over(_)) {
                self.0.compared.store(server, Ordering::Release);
            }
        }
    }

    /// Compares some; whether there is more to do at once.
    async fn step(&self, index: &Index, round: &mut Round) -> Result<bool, IndexError> {
        let new = self.rules().some_new();
        if !new.is_empty() {
            take_back(index, &new).await?;
            self.rules().forget_new(&new);
            return Ok(true);
        }
        *round = match *round {
            Round::Over(_) => return Ok(false),
            Round::Told(after) => {
                let some = self.rules().some_behind(after);
                take_back(index, &some).await?;
                match some.last() {
                    Some(last) => Round::Told(Some(last.workspace)),
                    None => Round::WithSessions(None),
                }
            }
            Round::WithSessions(after) => {
                let (made, next) = index.find_unknown_workspaces(after, BATCH as i64).await?;
                if !made.is_empty() {
                    ::metrics::counter!(RESTORED).increment(made.len() as u64);
                    tracing::warn!(
                        workspaces = ?made,
                        "sessions of workspaces that the index does not know: it is one of a backup, or another's; they are suspended, with the \
                         longest window, until an operator gives them their plans"
                    );
                }
                next.map_or_else(|| Round::Over(Instant::now()), |next| Round::WithSessions(Some(next)))
            }
        };
        Ok(true)
    }

    fn rules(&self) -> MutexGuard<'_, Rules> {
        self.0.rules.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn take_back(index: &Index, told: &[ToldRules]) -> Result<(), IndexError> {
    let changed = index.take_back_rules(told).await?;
    if !changed.is_empty() {
        ::metrics::counter!(RESTORED).increment(changed.len() as u64);
        tracing::warn!(workspaces = ?changed, "the index is one of a backup: what was told of workspaces since is taken back");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use schemas::control::{WorkspaceRules, WorkspaceState};
    use schemas::plan::Plan;
    use uuid::Uuid;

    use super::*;

    fn told(workspace: u128, version: u64, state: WorkspaceState) -> ToldRules {
        let rules = WorkspaceRules {
            state,
            limits: Plan::Free.limits(),
            full_until: None,
            origins: Vec::new(),
            notice_versions: Vec::new(),
            terms: None,
        };
        ToldRules { workspace: WorkspaceId(Uuid::from_u128(workspace)), version, rules }
    }

    #[test]
    fn the_latest_of_each_workspace_counts_and_is_new_until_it_was_compared() {
        let mut rules = Rules::default();
        let [first, second] = [told(1, 5, WorkspaceState::Active), told(1, 6, WorkspaceState::Suspended)];
        rules.add(second.clone());
        rules.add(first);
        assert_eq!(rules.some_new(), std::slice::from_ref(&second), "an entry that comes late counts");
        let again = told(1, 6, WorkspaceState::Terminated);
        rules.add(again.clone());
        rules.forget_new(&[second]);
        assert_eq!(rules.some_new(), std::slice::from_ref(&again), "what was told meanwhile counts as compared");
        rules.forget_new(std::slice::from_ref(&again));
        assert!(rules.some_new().is_empty());
        assert_eq!(rules.some_behind(None), [again], "what was compared is forgotten");
    }

    #[test]
    fn a_round_meets_every_workspace_once() {
        let mut rules = Rules::default();
        let count = 2 * BATCH as u128 + 7;
        (0..count).for_each(|workspace| rules.add(told(workspace, 1, WorkspaceState::Active)));
        let (mut after, mut met) = (None, Vec::new());
        loop {
            let some = rules.some_behind(after);
            let Some(last) = some.last() else { break };
            after = Some(last.workspace);
            met.extend(some.iter().map(|told| told.workspace.0.as_u128()));
        }
        assert!(met.into_iter().eq(0..count));
    }
}
