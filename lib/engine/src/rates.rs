//! How much a session and a workspace may send: rates that need no store.
//!
//! An account is a time: until when what was taken is paid for at the rate (the generic cell rate algorithm of ATM's traffic
//! management, ITU-T I.371). It may run ahead of the clock by [`BURST_MS`]; then nothing is taken until it does not any more.
//! A batch that is let in is taken as a whole, so that one of any size passes sooner or later. What is refused costs
//! nothing, or a client that tries again would never get in.
//!
//! **An edge's share.** A workspace's rates are those of all edges together. Each edge holds it to the rate divided by the
//! edges that live, which it knows from the topic `control`, but never to less than one session's rate: whoever is alone
//! gets what a session may have, however many edges there are. The sum over all edges is at most the workspace's rate or,
//! where that is more, a session's rate for each edge.

use std::collections::BTreeMap;

use schemas::codes::Refusal;
use schemas::plan::Limits;
use schemas::{ErrorCode, SessionKey, WorkspaceId};

/// How far an account may run ahead: what was saved up in this time can be spent at once.
pub const BURST_MS: u64 = 10_000;
/// Accounts of sessions: about 8 MB. Beyond it a session is held to its workspace's rate alone.
pub const SESSIONS_MAX: usize = 100_000;
/// Accounts that are paid off are looked for this often, and when there is no room.
const SWEEP_INTERVAL_MS: u64 = 1_000;

/// What a batch costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cost {
    /// Events.
    pub events: u64,
    /// Bytes of them after decoding.
    pub bytes: u64,
}

/// Until when what was taken is paid for, in microseconds since the epoch.
#[derive(Debug, Clone, Copy, Default)]
struct Account {
    events_us: u64,
    bytes_us: u64,
}

/// Events and bytes a second.
#[derive(Debug, Clone, Copy)]
struct Rate {
    events: u64,
    bytes: u64,
}

/// Accounts of those who sent lately. Times are milliseconds since the epoch.
#[derive(Debug, Default)]
pub struct Rates {
    sessions: BTreeMap<SessionKey, Account>,
    workspaces: BTreeMap<WorkspaceId, Account>,
    swept_ms: u64,
}

impl Rate {
    fn of_session(limits: &Limits) -> Self {
        Self { events: limits.session_events_per_s, bytes: limits.session_bytes_per_s }
    }

    fn of_share(limits: &Limits, edges: u64) -> Self {
        let share = |of_all: u64, of_session: u64| of_all.div_ceil(edges.max(1)).max(of_session);
        Self {
            events: share(limits.events_per_s, limits.session_events_per_s),
            bytes: share(limits.bytes_per_s, limits.session_bytes_per_s),
        }
    }
}

/// Until when all is paid for, in microseconds, once this amount is taken too.
pub(crate) fn paid_until_us(until_us: u64, now_ms: u64, amount: u64, rate: u64) -> u64 {
    let took_us = u128::from(amount) * 1_000_000 / u128::from(rate.max(1));
    until_us.max(now_ms.saturating_mul(1000)).saturating_add(u64::try_from(took_us).unwrap_or(u64::MAX))
}

impl Account {
    fn check(self, rate: Rate, which: &'static str, now_ms: u64) -> Result<(), Refusal> {
        let bound_us = now_ms.saturating_add(BURST_MS).saturating_mul(1000);
        for (until_us, rate, field) in
            [(self.events_us, rate.events, "events_per_s"), (self.bytes_us, rate.bytes, "bytes_per_s")]
        {
            if until_us > bound_us {
                return Err(Refusal {
                    limit: Some(rate),
                    field: Some(field),
                    which: Some(which),
                    retry_after_s: Some((until_us - bound_us).div_ceil(1_000_000)),
                    ..ErrorCode::RateLimited.into()
                });
            }
        }
        Ok(())
    }

    fn take(&mut self, cost: Cost, rate: Rate, now_ms: u64) {
        self.events_us = paid_until_us(self.events_us, now_ms, cost.events, rate.events);
        self.bytes_us = paid_until_us(self.bytes_us, now_ms, cost.bytes, rate.bytes);
    }

    fn is_paid_off(&self, now_ms: u64) -> bool {
        self.events_us.max(self.bytes_us) <= now_ms.saturating_mul(1000)
    }
}

impl Rates {
    /// Whether a batch may come at all, before anything is known of it.
    pub fn check(&self, key: &SessionKey, limits: &Limits, edges: u64, now_ms: u64) -> Result<(), Refusal> {
        let session = self.sessions.get(key).copied().unwrap_or_default();
        session.check(Rate::of_session(limits), "session", now_ms)?;
        let workspace = self.workspaces.get(&key.workspace).copied().unwrap_or_default();
        workspace.check(Rate::of_share(limits, edges), "workspace", now_ms)
    }

    /// Takes a batch, or refuses it: others of the same session may have come since the check.
    pub fn take(
        &mut self,
        key: &SessionKey,
        limits: &Limits,
        edges: u64,
        cost: Cost,
        now_ms: u64,
    ) -> Result<(), Refusal> {
        self.check(key, limits, edges, now_ms)?;
        if now_ms >= self.swept_ms.saturating_add(SWEEP_INTERVAL_MS) {
            self.swept_ms = now_ms;
            // An account that is paid off says as much as none.
            self.sessions.retain(|_, account| !account.is_paid_off(now_ms));
            self.workspaces.retain(|_, account| !account.is_paid_off(now_ms));
        }
        let has_room = self.sessions.len() < SESSIONS_MAX;
        match self.sessions.get_mut(key) {
            Some(account) => account.take(cost, Rate::of_session(limits), now_ms),
            None if has_room => {
                self.sessions.entry(*key).or_default().take(cost, Rate::of_session(limits), now_ms);
            }
            None => {}
        }
        let workspace = self.workspaces.entry(key.workspace).or_default();
        workspace.take(cost, Rate::of_share(limits, edges), now_ms);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use schemas::SessionId;
    use schemas::plan::Plan;
    use uuid::Uuid;

    use super::*;

    const NOW_MS: u64 = 1_790_000_000_000;

    fn key(workspace: u128, session: u128) -> SessionKey {
        SessionKey { workspace: WorkspaceId(Uuid::from_u128(workspace)), session: SessionId(Uuid::from_u128(session)) }
    }

    fn limits() -> Limits {
        Limits {
            session_events_per_s: 10,
            session_bytes_per_s: 1_000,
            session_s: 60,
            events_per_s: 30,
            bytes_per_s: 3_000,
            sessions_per_day: 9,
        }
    }

    const fn cost(events: u64, bytes: u64) -> Cost {
        Cost { events, bytes }
    }

    /// How much of unit batches, each of this cost, is let in at once.
    fn at_once(rates: &mut Rates, of: impl Fn(u128) -> SessionKey, edges: u64, cost: Cost, now_ms: u64) -> u64 {
        (0..10_000).filter(|number| rates.take(&of(*number), &limits(), edges, cost, now_ms).is_ok()).count() as u64
    }

    #[test]
    fn a_session_sends_at_its_rate_and_what_it_saved_up() {
        let mut rates = Rates::default();
        let of = |_| key(1, 1);
        // One more than the ten seconds' worth: an account may be ahead by that, and then one more is taken whole.
        assert_eq!(at_once(&mut rates, of, 1, cost(1, 1), NOW_MS), 101);
        let refusal = rates.check(&of(0), &limits(), 1, NOW_MS).unwrap_err();
        assert_eq!(
            (refusal.code, refusal.which, refusal.field),
            (ErrorCode::RateLimited, Some("session"), Some("events_per_s"))
        );
        assert_eq!((refusal.limit, refusal.retry_after_s), (Some(10), Some(1)));
        assert_eq!(at_once(&mut rates, of, 1, cost(1, 1), NOW_MS + 1_000), 10);
        // Silence saves up ten seconds, and no more.
        assert_eq!(at_once(&mut rates, of, 1, cost(1, 1), NOW_MS + 1_000_000), 101);
    }

    #[test]
    fn a_batch_of_any_size_passes_and_is_paid_for() {
        let mut rates = Rates::default();
        rates.take(&key(1, 1), &limits(), 1, cost(1, 25_000), NOW_MS).unwrap();
        let refusal = rates.take(&key(1, 1), &limits(), 1, cost(1, 1), NOW_MS).unwrap_err();
        assert_eq!((refusal.field, refusal.retry_after_s), (Some("bytes_per_s"), Some(15)));
        assert!(rates.check(&key(1, 1), &limits(), 1, NOW_MS + 14_999).is_err());
        assert_eq!(rates.check(&key(1, 1), &limits(), 1, NOW_MS + 15_000), Ok(()));
    }

    #[test]
    fn edges_share_a_workspaces_rate_and_leave_a_session_its_own() {
        for (edges, each) in [(1, 301), (2, 151), (3, 101), (100, 101)] {
            let mut rates = Rates::default();
            // A session for each batch: only the workspace's account fills up.
            let sent = at_once(&mut rates, |number| key(1, number), edges, cost(1, 0), NOW_MS);
            assert_eq!(sent, each, "{edges} edges");
            let refusal = rates.check(&key(1, 77), &limits(), edges, NOW_MS).unwrap_err();
            assert_eq!(refusal.which, Some("workspace"));
            assert_eq!(rates.check(&key(2, 77), &limits(), edges, NOW_MS), Ok(()), "another's workspace is held up");
        }
    }

    #[test]
    fn accounts_are_bounded_and_those_paid_off_are_dropped() {
        let mut rates = Rates::default();
        let wide = Plan::Scale.limits();
        for number in 0..SESSIONS_MAX as u128 + 10 {
            rates.take(&key(1, number), &wide, 1, cost(1, 1), NOW_MS).unwrap();
        }
        assert_eq!(rates.sessions.len(), SESSIONS_MAX);
        rates.take(&key(1, 0), &wide, 1, cost(1, 1), NOW_MS + SWEEP_INTERVAL_MS).unwrap();
        assert_eq!((rates.sessions.len(), rates.workspaces.len()), (1, 1));
    }

    proptest! {
        /// Whatever comes when: over any time no more is let in than the rate gives, the burst and one batch.
        #[test]
        fn no_more_is_let_in_than_the_rate_gives(batches in prop::collection::vec((0..3_000u64, 0..200u64), 1..200)) {
            let (mut rates, mut now_ms, mut taken, mut largest) = (Rates::default(), NOW_MS, 0, 0);
            for (pause_ms, events) in batches {
                now_ms += pause_ms;
                if rates.take(&key(1, 1), &limits(), 1, cost(events, 0), now_ms).is_ok() {
                    taken += events;
                    largest = largest.max(events);
                }
                let given = (now_ms - NOW_MS + BURST_MS) * limits().session_events_per_s / 1000;
                prop_assert!(taken <= given + largest + 1);
            }
        }
    }
}
