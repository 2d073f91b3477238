//! Who may record, as far as an edge has heard on the topic `control`.
//!
//! An edge knows nothing of a session but what stands in its token; what has changed since the token was made stands here:
//! withdrawals, deletions, revoked and used-up links, workspaces' rules, and which other edges there are. Entries are kept
//! until their `not_after`, and never longer. All of it is small: a million ended sessions take about 40 MB
//! (`tests/memory.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use schemas::codes::Refusal;
use schemas::control::{Entry, News, WorkspaceRules, WorkspaceState};
use schemas::limits::{CONTROL_BEGUN_KEPT_S, CONTROL_DELETION_KEPT_S};
use schemas::plan::Limits;
use schemas::token::{LinkClaims, SessionClaims};
use schemas::{ErrorCode, LinkId, SessionId, SessionKey, WorkspaceId};
use uuid::Uuid;

/// What is known. Times are seconds since the epoch.
#[derive(Debug, Default)]
pub struct Standing {
    workspaces: BTreeMap<WorkspaceId, Workspace>,
    /// Edges that live, until when they count.
    edges: BTreeMap<Uuid, i64>,
    /// How many sessions are marked.
    sessions: usize,
    /// Where sweeping goes on: behind this session of this workspace, or behind the workspace.
    swept: Option<(WorkspaceId, Option<SessionId>)>,
}

#[derive(Debug, Default)]
struct Workspace {
    rules: Option<(u64, Arc<WorkspaceRules>)>,
    sessions: BTreeMap<SessionId, Mark>,
    links: BTreeMap<LinkId, Link>,
}

/// Why a session takes nothing any more. Of two the greater counts: who withdrew is told so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Ended {
    Deleted,
    /// Its end user asked this edge to; nobody else may know.
    Withdrawing,
    /// It was heard, so everybody hears it.
    Withdrawn,
}

/// How far a link is used, to be looked into with every consent.
#[derive(Debug)]
struct Used {
    sessions: u32,
    newest: BTreeSet<SessionId>,
}

/// Eight bytes: there may be a million of them.
#[derive(Debug, Clone, Copy)]
struct Mark {
    /// Good until 2106; what should count for longer counts until then.
    until_s: u32,
    ended: Ended,
}

#[derive(Debug, Default)]
struct Link {
    /// When it was heard of last counts no more.
    until_s: i64,
    revoked: bool,
    used: Option<Used>,
    /// Sessions that edges let begin lately, until when each counts: the index knows of them soon.
    begun: BTreeMap<SessionId, i64>,
}

impl Link {
    fn is_one_of_its_own(&self, session: &SessionId) -> bool {
        self.begun.contains_key(session) || self.used.as_ref().is_some_and(|used| used.newest.contains(session))
    }

    /// Sessions that it has begun, as far as is known here.
    fn sessions(&self, now_s: i64) -> u64 {
        let counted = |session: &SessionId| self.used.as_ref().is_some_and(|used| used.newest.contains(session));
        let begun = self.begun.iter().filter(|(session, until)| **until > now_s && !counted(session)).count();
        self.used.as_ref().map_or(0, |used| u64::from(used.sessions)) + begun as u64
    }
}

impl Standing {
    /// Takes an entry in. One that does not count any more changes nothing, and so does an older one of two. That a session has
    /// ended counts from now on for as long as such an entry is kept, whatever the clock of its writer said.
    pub fn apply(&mut self, entry: Entry, now_s: i64) {
        let until_s = entry.not_after.unix_timestamp();
        let ended_until_s = until_s.max(now_s.saturating_add(CONTROL_DELETION_KEPT_S));
        match entry.news {
            News::Deletion(key) => self.end(&key, Ended::Deleted, ended_until_s),
            News::Withdrawal(key) => self.end(&key, Ended::Withdrawn, ended_until_s),
            _ if until_s <= now_s => {}
            News::Revocation(workspace, link) => self.link(workspace, link, until_s).revoked = true,
            News::Exhaustion(workspace, link, used) => {
                let link = self.link(workspace, link, until_s);
                if link.used.as_ref().is_none_or(|known| known.sessions <= used.sessions) {
                    link.used = Some(Used { sessions: used.sessions, newest: used.newest.into_iter().collect() });
                }
            }
            News::Begun(key, link) => {
                self.link(key.workspace, link, until_s).begun.insert(key.session, until_s);
            }
            News::Workspace(workspace, rules) => {
                let known = &mut self.workspaces.entry(workspace).or_default().rules;
                if known.as_ref().is_none_or(|(version, _)| *version <= entry.version) {
                    *known = Some((entry.version, rules.into()));
                }
            }
            News::Edge(instance) => {
                self.edges.insert(instance, until_s);
            }
        }
    }

    /// The end user of this session takes consent back at this edge: it takes nothing of it any more. `false` when everybody hears
    /// of it already, so that there is nothing to tell.
    pub fn withdraw(&mut self, key: &SessionKey, now_s: i64) -> bool {
        let known = self.workspaces.get(&key.workspace).and_then(|workspace| workspace.sessions.get(&key.session));
        if known.is_some_and(|mark| mark.ended != Ended::Withdrawing) {
            return false;
        }
        self.end(key, Ended::Withdrawing, now_s.saturating_add(CONTROL_DELETION_KEPT_S));
        true
    }

    fn end(&mut self, key: &SessionKey, ended: Ended, until_s: i64) {
        let until_s = u32::try_from(until_s).unwrap_or(u32::MAX);
        let sessions = &mut self.workspaces.entry(key.workspace).or_default().sessions;
        let known = sessions.insert(key.session, Mark { until_s, ended });
        match (known, sessions.get_mut(&key.session)) {
            (Some(known), Some(mark)) => {
                *mark = Mark { until_s: known.until_s.max(until_s), ended: known.ended.max(ended) };
            }
            _ => self.sessions += 1,
        }
    }

    fn link(&mut self, workspace: WorkspaceId, link: LinkId, until_s: i64) -> &mut Link {
        let link = self.workspaces.entry(workspace).or_default().links.entry(link).or_default();
        link.until_s = link.until_s.max(until_s);
        link
    }

    /// What the workspace of this token is held to: what was heard beats what the token says.
    pub fn limits(&self, workspace: WorkspaceId, token: [u64; 6]) -> Limits {
        self.rules(workspace).map_or_else(|| Limits::from_array(token), |rules| rules.limits)
    }

    /// A workspace's rules, if anything was heard of them.
    pub fn rules(&self, workspace: WorkspaceId) -> Option<&WorkspaceRules> {
        self.workspaces.get(&workspace)?.rules.as_ref().map(|(_, rules)| &**rules)
    }

    /// Whether this session may still send (E2).
    pub fn check_session(&self, claims: &SessionClaims) -> Result<(), ErrorCode> {
        let Some(workspace) = self.workspaces.get(&claims.ws) else { return Ok(()) };
        // What its end user decided comes first.
        workspace.check_ended(&claims.ses)?;
        workspace.check_state()?;
        if workspace.links.get(&claims.lnk).is_some_and(|link| link.revoked) {
            return Err(ErrorCode::LinkRevoked);
        }
        Ok(())
    }

    /// Whether this link may begin this session, and if so notes that it has: the next one counts it (E2). `true` when it was not
    /// known to have begun.
    pub fn begin(
        &mut self,
        claims: &LinkClaims,
        session: SessionId,
        notice_version: &str,
        now_s: i64,
    ) -> Result<bool, Refusal> {
        let workspace = self.workspaces.entry(claims.ws).or_default();
        workspace.check_ended(&session)?;
        workspace.check_state()?;
        let link = workspace.links.entry(claims.lnk).or_default();
        if link.revoked {
            return Err(ErrorCode::LinkRevoked.into());
        }
        if let Some((_, rules)) = &workspace.rules
            && !rules.notice_versions.is_empty()
            && !rules.notice_versions.iter().any(|accepted| accepted == notice_version)
        {
            return Err(ErrorCode::ConsentStale.into());
        }
        // Asking again for a session that has begun is not beginning another.
        let is_new = !link.is_one_of_its_own(&session);
        if is_new {
            if link.sessions(now_s) >= u64::from(claims.max) {
                return Err(ErrorCode::LinkExhausted.into());
            }
            if let Some((_, rules)) = &workspace.rules
                && let Some(until) = rules.full_until
                && until.unix_timestamp() > now_s
            {
                return Err(Refusal {
                    limit: Some(rules.limits.sessions_per_day),
                    field: Some("sessions_per_day"),
                    which: Some("workspace"),
                    retry_after_s: Some((until.unix_timestamp() - now_s).unsigned_abs()),
                    ..ErrorCode::RateLimited.into()
                });
            }
        }
        let until_s = now_s.saturating_add(CONTROL_BEGUN_KEPT_S);
        link.until_s = link.until_s.max(until_s);
        link.begun.insert(session, until_s);
        Ok(is_new)
    }

    /// A session that was to begin did not: nothing of it went anywhere. Its place is free.
    pub fn give_back(&mut self, claims: &LinkClaims, session: &SessionId) {
        let workspace = self.workspaces.get_mut(&claims.ws);
        if let Some(link) = workspace.and_then(|workspace| workspace.links.get_mut(&claims.lnk)) {
            link.begun.remove(session);
        }
    }

    /// Edges that live, this one among them.
    pub fn edges(&self, now_s: i64) -> u64 {
        (self.edges.values().filter(|until| **until > now_s).count() as u64).max(1)
    }

    /// Sessions that are marked as ended.
    pub fn sessions(&self) -> usize {
        self.sessions
    }

    /// Drops what does not count any more, `entries` at a time: where the last call ended the next goes on. Links of one
    /// workspace are looked at as a whole.
    pub fn sweep(&mut self, now_s: i64, entries: usize) {
        self.edges.retain(|_, until| *until > now_s);
        let mut left = entries.max(1);
        while left > 0 {
            let behind = self.swept.take();
            let from = match behind {
                None => Bound::Unbounded,
                Some((workspace, Some(_))) => Bound::Included(workspace),
                Some((workspace, None)) => Bound::Excluded(workspace),
            };
            let mut range = self.workspaces.range_mut((from, Bound::Unbounded));
            // The next call begins anew.
            let Some((id, workspace)) = range.next() else { return };
            let id = *id;
            let from = match behind {
                Some((workspace, Some(session))) if workspace == id => Bound::Excluded(session),
                _ => Bound::Unbounded,
            };
            let looked_at = workspace.sessions.range((from, Bound::Unbounded)).take(left);
            let (mut count, mut last, mut over) = (0, None, Vec::new());
            for (session, mark) in looked_at {
                (count, last) = (count + 1, Some(*session));
                if i64::from(mark.until_s) <= now_s {
                    over.push(*session);
                }
            }
            for session in &over {
                workspace.sessions.remove(session);
            }
            self.sessions -= over.len();
            if let Some(last) = last.filter(|_| count == left) {
                self.swept = Some((id, Some(last)));
                return;
            }
            left = left.saturating_sub(count + 1 + workspace.links.len());
            workspace.links.retain(|_, link| {
                link.begun.retain(|_, until| *until > now_s);
                link.until_s > now_s
            });
            let is_empty = workspace.rules.is_none() && workspace.sessions.is_empty() && workspace.links.is_empty();
            self.swept = Some((id, None));
            if is_empty {
                self.workspaces.remove(&id);
            }
        }
    }
}

impl Workspace {
    fn check_ended(&self, session: &SessionId) -> Result<(), ErrorCode> {
        match self.sessions.get(session).map(|mark| mark.ended) {
            None => Ok(()),
            Some(Ended::Withdrawing | Ended::Withdrawn) => Err(ErrorCode::ConsentWithdrawn),
            Some(Ended::Deleted) => Err(ErrorCode::SessionDeleted),
        }
    }

    fn check_state(&self) -> Result<(), ErrorCode> {
        match self.rules.as_ref().map(|(_, rules)| rules.state) {
            None | Some(WorkspaceState::Active) => Ok(()),
            Some(WorkspaceState::Suspended) => Err(ErrorCode::WorkspaceSuspended),
            Some(WorkspaceState::Terminated) => Err(ErrorCode::WorkspaceTerminated),
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::ReceiptId;
    use schemas::control::LinkUse;
    use schemas::plan::Plan;
    use schemas::token::AUDIENCE;
    use time::OffsetDateTime;

    use super::*;

    const NOW_S: i64 = 1_790_000_000;
    const NOW_MS: u64 = NOW_S as u64 * 1000;

    fn link_claims(max: u32) -> LinkClaims {
        LinkClaims {
            aud: AUDIENCE.into(),
            ws: WorkspaceId(Uuid::from_u128(1)),
            lnk: LinkId(Uuid::from_u128(2)),
            iat: 0,
            exp: u64::MAX,
            org: Vec::new(),
            max,
            lim: Plan::Free.limits().to_array(),
            msk: None,
        }
    }

    fn session(id: u128) -> SessionId {
        SessionId(Uuid::from_u128(id))
    }

    fn claims(id: u128) -> SessionClaims {
        let link = link_claims(1);
        SessionClaims {
            aud: link.aud,
            ws: link.ws,
            ses: session(id),
            lnk: link.lnk,
            rcp: ReceiptId(Uuid::from_u128(9)),
            cst: NOW_MS,
            ntc: "v1".into(),
            iat: 0,
            exp: u64::MAX,
            org: None,
            lim: link.lim,
            msk: None,
        }
    }

    fn key(id: u128) -> SessionKey {
        SessionKey { workspace: link_claims(1).ws, session: session(id) }
    }

    fn rules(state: WorkspaceState) -> WorkspaceRules {
        let limits = Plan::Growth.limits();
        WorkspaceRules {
            state,
            limits,
            full_until: None,
            origins: Vec::new(),
            notice_versions: Vec::new(),
            terms: None,
        }
    }

    fn at(s: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(s).unwrap()
    }

    #[test]
    fn an_ended_session_takes_nothing_whatever_is_heard_first() {
        let (deletion, withdrawal) = (Entry::deletion(key(7), NOW_MS), Entry::withdrawal(key(7), NOW_MS));
        for order in [[&deletion, &withdrawal], [&withdrawal, &deletion]] {
            let mut standing = Standing::default();
            assert_eq!(standing.check_session(&claims(7)), Ok(()));
            for entry in order {
                standing.apply(entry.clone(), NOW_S);
            }
            assert_eq!(standing.check_session(&claims(7)), Err(ErrorCode::ConsentWithdrawn));
            assert_eq!(standing.check_session(&claims(8)), Ok(()));
            assert_eq!(standing.sessions(), 1);
            // Asking again with the same attempt begins nothing.
            let again = standing.begin(&link_claims(5), session(7), "v1", NOW_S);
            assert_eq!(again, Err(ErrorCode::ConsentWithdrawn.into()));
        }
    }

    /// Goal: another workspace's deletion of the same id, which leaves a tombstone there, is none of ours (R9).
    #[test]
    fn r09_a_mark_counts_in_its_workspace_only() {
        let mut standing = Standing::default();
        let other = SessionKey { workspace: WorkspaceId(Uuid::from_u128(99)), ..key(7) };
        standing.apply(Entry::deletion(other, NOW_MS), NOW_S);
        assert_eq!(standing.check_session(&claims(7)), Ok(()));
    }

    #[test]
    fn a_revoked_link_begins_nothing_and_what_it_began_ends() {
        let mut standing = Standing::default();
        standing.begin(&link_claims(5), session(7), "v1", NOW_S).unwrap();
        let revocation = Entry::revocation(link_claims(5).ws, link_claims(5).lnk, NOW_MS, at(NOW_S + 60));
        standing.apply(revocation, NOW_S);
        assert_eq!(standing.check_session(&claims(7)), Err(ErrorCode::LinkRevoked));
        assert_eq!(standing.begin(&link_claims(5), session(8), "v1", NOW_S), Err(ErrorCode::LinkRevoked.into()));
    }

    #[test]
    fn a_link_begins_as_many_sessions_as_it_may_however_they_are_heard_of() {
        let mut standing = Standing::default();
        let begin = |standing: &mut Standing, id| standing.begin(&link_claims(4), session(id), "v1", NOW_S);
        let exhausted = Err(ErrorCode::LinkExhausted.into());
        begin(&mut standing, 1).unwrap();
        // Another edge's, told twice.
        for _ in 0..2 {
            standing.apply(Entry::begun(key(2), link_claims(4).lnk, NOW_MS), NOW_S);
        }
        // The index knows of the first two and of one from before.
        let used = LinkUse { sessions: 3, newest: vec![session(2), session(1), session(0)] };
        let told = Entry::exhaustion(link_claims(4).ws, link_claims(4).lnk, used, at(NOW_S + 3600));
        standing.apply(told, NOW_S);
        begin(&mut standing, 3).unwrap();
        assert_eq!(begin(&mut standing, 4), exhausted);
        // Those that have begun can be asked for again.
        for id in [0, 1, 2, 3] {
            begin(&mut standing, id).unwrap();
        }
        // An older word does not make the link younger.
        let older = LinkUse { sessions: 1, newest: vec![session(0)] };
        standing.apply(Entry::exhaustion(link_claims(4).ws, link_claims(4).lnk, older, at(NOW_S + 3600)), NOW_S);
        assert_eq!(begin(&mut standing, 4), exhausted);
    }

    #[test]
    fn the_newest_rules_of_a_workspace_beat_its_tokens() {
        let mut standing = Standing::default();
        let workspace = link_claims(1).ws;
        let token = link_claims(1).lim;
        assert_eq!(standing.limits(workspace, token), Plan::Free.limits());
        standing.apply(Entry::workspace(workspace, rules(WorkspaceState::Suspended), 5), NOW_S);
        standing.apply(Entry::workspace(workspace, rules(WorkspaceState::Active), 4), NOW_S);
        assert_eq!(standing.limits(workspace, token), Plan::Growth.limits());
        assert_eq!(standing.check_session(&claims(7)), Err(ErrorCode::WorkspaceSuspended));
        standing.apply(Entry::workspace(workspace, rules(WorkspaceState::Active), 6), NOW_S);
        assert_eq!(standing.check_session(&claims(7)), Ok(()));
        standing.apply(Entry::workspace(workspace, rules(WorkspaceState::Terminated), 7), NOW_S);
        let begun = standing.begin(&link_claims(1), session(1), "v1", NOW_S);
        assert_eq!(begun, Err(ErrorCode::WorkspaceTerminated.into()));
    }

    #[test]
    fn a_full_day_and_an_old_notice_begin_nothing() {
        let mut standing = Standing::default();
        let workspace = link_claims(9).ws;
        standing.begin(&link_claims(9), session(1), "v1", NOW_S).unwrap();
        let full = WorkspaceRules { full_until: Some(at(NOW_S + 90)), ..rules(WorkspaceState::Active) };
        standing.apply(Entry::workspace(workspace, full, 1), NOW_S);
        let refusal = standing.begin(&link_claims(9), session(2), "v1", NOW_S).unwrap_err();
        assert_eq!((refusal.code, refusal.which), (ErrorCode::RateLimited, Some("workspace")));
        assert_eq!((refusal.field, refusal.retry_after_s), (Some("sessions_per_day"), Some(90)));
        standing.begin(&link_claims(9), session(1), "v1", NOW_S).unwrap();
        standing.begin(&link_claims(9), session(2), "v1", NOW_S + 90).unwrap();
        let stale = WorkspaceRules { notice_versions: vec!["v2".into()], ..rules(WorkspaceState::Active) };
        standing.apply(Entry::workspace(workspace, stale, 2), NOW_S);
        assert_eq!(standing.begin(&link_claims(9), session(3), "v1", NOW_S), Err(ErrorCode::ConsentStale.into()));
        standing.begin(&link_claims(9), session(3), "v2", NOW_S).unwrap();
    }

    #[test]
    fn what_does_not_count_any_more_is_dropped() {
        let mut standing = Standing::default();
        let late = NOW_S + CONTROL_DELETION_KEPT_S;
        standing.apply(Entry::withdrawal(key(7), NOW_MS), NOW_S);
        standing.apply(Entry::edge(Uuid::from_u128(1), NOW_MS), NOW_S);
        standing.apply(Entry::edge(Uuid::from_u128(2), NOW_MS), NOW_S);
        standing.begin(&link_claims(1), session(8), "v1", NOW_S).unwrap();
        standing.sweep(late - 1, 100);
        assert_eq!((standing.sessions(), standing.edges(NOW_S)), (1, 1));
        assert_eq!(standing.check_session(&claims(7)), Err(ErrorCode::ConsentWithdrawn));
        standing.sweep(late, 100);
        assert_eq!(standing.sessions(), 0);
        assert!(standing.workspaces.is_empty());
        // An entry that comes when it does not count any more is not taken in, but that of a session's end, whose writer's clock
        // may be wrong: it counts from when it was heard.
        standing.apply(Entry::edge(Uuid::from_u128(3), NOW_MS), late);
        standing.apply(Entry::withdrawal(key(7), NOW_MS), late);
        assert_eq!(standing.edges(late), 1);
        assert_eq!(standing.check_session(&claims(7)), Err(ErrorCode::ConsentWithdrawn));
        standing.sweep(late + CONTROL_DELETION_KEPT_S, 100);
        assert_eq!(standing.sessions(), 0);
    }

    #[test]
    fn what_everybody_hears_already_need_not_be_told() {
        let mut standing = Standing::default();
        assert!(standing.withdraw(&key(7), NOW_S), "nobody knows");
        assert_eq!(standing.check_session(&claims(7)), Err(ErrorCode::ConsentWithdrawn));
        assert!(standing.withdraw(&key(7), NOW_S), "it was not heard yet");
        standing.apply(Entry::withdrawal(key(7), NOW_MS), NOW_S);
        assert!(!standing.withdraw(&key(7), NOW_S));
        standing.apply(Entry::deletion(key(8), NOW_MS), NOW_S);
        assert!(!standing.withdraw(&key(8), NOW_S), "it is deleted");
        assert_eq!(standing.sessions(), 2);
    }

    #[test]
    fn a_place_that_was_given_back_is_free() {
        let mut standing = Standing::default();
        assert_eq!(standing.begin(&link_claims(1), session(1), "v1", NOW_S), Ok(true));
        assert_eq!(standing.begin(&link_claims(1), session(1), "v1", NOW_S), Ok(false));
        assert!(standing.begin(&link_claims(1), session(2), "v1", NOW_S).is_err());
        standing.give_back(&link_claims(1), &session(1));
        assert_eq!(standing.begin(&link_claims(1), session(2), "v1", NOW_S), Ok(true));
    }

    #[test]
    fn everything_is_swept_however_little_at_a_time() {
        for entries in [1, 2, 3, 7, 1_000] {
            let mut standing = Standing::default();
            for id in 0..40 {
                // Of each workspace every other one counts for longer.
                let key = SessionKey { workspace: WorkspaceId(Uuid::from_u128(id % 4)), session: session(id) };
                standing.apply(Entry::withdrawal(key, NOW_MS), NOW_S + (id as i64 / 4 % 2));
                standing.apply(Entry::begun(key, LinkId(Uuid::from_u128(id)), NOW_MS), NOW_S);
            }
            let late = NOW_S + CONTROL_DELETION_KEPT_S;
            for left in [20, 0] {
                for _ in 0..100 {
                    standing.sweep(late + 1 - i64::from(left > 0), entries);
                }
                assert_eq!(standing.sessions(), left as usize, "{entries} at a time");
            }
            assert!(standing.workspaces.is_empty(), "{entries} at a time");
        }
    }

    #[test]
    fn edges_that_live_are_counted() {
        let mut standing = Standing::default();
        assert_eq!(standing.edges(NOW_S), 1);
        for id in 0..3 {
            standing.apply(Entry::edge(Uuid::from_u128(id), NOW_MS + 1000 * id as u64), NOW_S);
        }
        let edges = [29, 30, 31, 32].map(|later| standing.edges(NOW_S + later));
        assert_eq!(edges, [3, 2, 1, 1]);
    }
}
