//! Entries of the compacted topic `control`: what every process has to know soon, wherever it was decided.
//!
//! The key says what an entry is about, `kind/workspace/id`; the value what holds of it. Kafka keeps the latest entry of each
//! key, so a reader that begins at the beginning knows all that still counts. An entry may come more than once and late: of
//! two with the same key the one with the higher version counts. All kinds but `workspace` only ever say more (a revocation is
//! never taken back), so that an entry that comes late does no harm; those of one workspace are told in order.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::ids::{LinkId, SessionId, SessionKey, WorkspaceId};
use crate::limits::{CONTROL_BEGUN_KEPT_S, CONTROL_DELETION_KEPT_S, CONTROL_EDGE_KEPT_S, EXHAUSTION_SESSIONS_MAX};
use crate::plan::{Limits, Plan};

/// Whether a workspace may record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum WorkspaceState {
    /// It may.
    #[default]
    Active,
    /// An operator suspended it; what is stored stays.
    Suspended,
    /// It was closed.
    Terminated,
}

impl WorkspaceState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Active, Self::Suspended, Self::Terminated];

    /// The word in the index and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Terminated => "terminated",
        }
    }

    /// The state of this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// What edges hold a workspace to. It beats what stands in tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceRules {
    /// Whether it may record.
    #[serde(default)]
    pub state: WorkspaceState,
    /// Its plan's limits.
    pub limits: Limits,
    /// Until then no session begins: the day's sessions are used up.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub full_until: Option<OffsetDateTime>,
    /// Origins that may record; empty for any.
    #[serde(default)]
    pub origins: Vec<String>,
    /// Versions of the notice that are accepted; empty for any.
    #[serde(default)]
    pub notice_versions: Vec<String>,
    /// What edges do without. None where an earlier release told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terms: Option<Terms>,
}

/// How long a workspace and its sessions are kept: what an index that is one of a backup learns again from the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// What it pays for.
    pub plan: Plan,
    /// Sessions are kept for longer than the plan says, since it had a longer window before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Kept>,
    /// When all of it goes, of one that is closed.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "time::serde::rfc3339::option")]
    pub terminates_at: Option<OffsetDateTime>,
    /// Whether an operator closed it: then nobody else opens it again.
    #[serde(default)]
    pub closed_by_operator: bool,
}

/// A window that was longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Until then it holds.
    #[serde(with = "time::serde::rfc3339")]
    pub until: OffsetDateTime,
    /// Its length.
    pub days: u32,
}

/// What an entry says, and of what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// `deletion/<workspace>/<session>`: the session is deleted.
    Deletion(SessionKey),
    /// `withdrawal/<workspace>/<session>`: the end user took consent back. A retention worker makes a deletion of it, and
    /// only then removes the entry.
    Withdrawal(SessionKey),
    /// `revocation/<workspace>/<link>`: the link begins nothing any more, and what it began ends.
    Revocation(WorkspaceId, LinkId),
    /// `exhaustion/<workspace>/<link>`: the link has begun all, or nearly all, the sessions that it may.
    Exhaustion(WorkspaceId, LinkId, LinkUse),
    /// `begun/<workspace>/<session>`: an edge let a session of this link begin. Counts until the index has told of it.
    Begun(SessionKey, LinkId),
    /// `workspace/<workspace>/<workspace>`: what edges hold it to.
    Workspace(WorkspaceId, Box<WorkspaceRules>),
    /// `edge/<nil>/<instance>`: an edge is alive. Limits of workspaces are shared out among those that are.
    Edge(Uuid),
}

/// How far a link is used, as the index knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkUse {
    /// Sessions that it began.
    pub sessions: u32,
    /// The newest of them, so that a consent that is asked for again is known as one of them.
    pub newest: Vec<SessionId>,
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it says.
    pub news: News,
    /// Of two entries with the same key the higher counts, and of two that are equal the later one. Milliseconds since the epoch when it was
    /// decided, or a number that the index counts up.
    pub version: u64,
    /// When nobody needs it any more.
    pub not_after: OffsetDateTime,
}

/// Why bytes are no entry. No variant carries content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EntryError {
    /// A newer release wrote it, and readers of this one do without.
    #[error("kind of entry is unknown")]
    Kind,
    /// The key is of a known kind, and otherwise than we write it.
    #[error("key of entry is not understood")]
    Key,
    /// The value is not what we write.
    #[error("value of entry is not understood")]
    Value,
}

#[derive(Deserialize)]
struct Envelope {
    version: u64,
    #[serde(with = "time::serde::rfc3339")]
    not_after: OffsetDateTime,
    #[serde(flatten)]
    rest: serde_json::Map<String, Value>,
}

/// The last second that RFC 3339 can name.
const FOR_EVER: &str = "9999-12-31T23:59:59Z";
const FOR_EVER_S: i64 = 253_402_300_799;

/// When an entry that was made now goes, `kept_s` later.
fn after(now_ms: u64, kept_s: i64) -> OffsetDateTime {
    // A clock that is as wrong as this can only keep the entry for longer.
    let now = i64::try_from(now_ms / 1000).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    now.and_then(|now| now.checked_add(Duration::seconds(kept_s))).unwrap_or_else(for_ever)
}

fn for_ever() -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(FOR_EVER_S).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

impl News {
    /// The key of its record.
    pub fn key(&self) -> String {
        let (kind, workspace, id) = match self {
            Self::Deletion(key) => ("deletion", key.workspace, key.session.0),
            Self::Withdrawal(key) => ("withdrawal", key.workspace, key.session.0),
            Self::Revocation(workspace, link) => ("revocation", *workspace, link.0),
            Self::Exhaustion(workspace, link, _) => ("exhaustion", *workspace, link.0),
            Self::Begun(key, _) => ("begun", key.workspace, key.session.0),
            Self::Workspace(workspace, _) => ("workspace", *workspace, workspace.0),
            Self::Edge(instance) => ("edge", WorkspaceId(Uuid::nil()), *instance),
        };
        format!("{kind}/{workspace}/{id}")
    }

    /// What its value says beside version and `not_after`.
    fn fields(&self) -> Value {
        match self {
            Self::Deletion(_) | Self::Withdrawal(_) | Self::Revocation(..) | Self::Edge(_) => json!({}),
            Self::Exhaustion(_, _, used) => json!(used),
            Self::Begun(_, link) => json!({ "link": link }),
            Self::Workspace(_, rules) => json!(rules),
        }
    }

    fn decode(key: &[u8], fields: impl FnOnce() -> Result<Value, EntryError>) -> Result<Self, EntryError> {
        #[derive(Deserialize)]
        struct Begun {
            link: LinkId,
        }
        let text = std::str::from_utf8(key).map_err(|_| EntryError::Kind)?;
        let (kind, rest) = text.split_once('/').ok_or(EntryError::Kind)?;
        if !["deletion", "withdrawal", "revocation", "exhaustion", "begun", "workspace", "edge"].contains(&kind) {
            return Err(EntryError::Kind);
        }
        let (workspace, id) = rest.split_once('/').ok_or(EntryError::Key)?;
        let parse = |text| Uuid::parse_str(text).map_err(|_| EntryError::Key);
        let (workspace, id) = (WorkspaceId(parse(workspace)?), parse(id)?);
        let session = SessionKey { workspace, session: SessionId(id) };
        let fields = fields()?;
        let malformed = |_| EntryError::Value;
        let news = match kind {
            "deletion" => Self::Deletion(session),
            "withdrawal" => Self::Withdrawal(session),
            "revocation" => Self::Revocation(workspace, LinkId(id)),
            "exhaustion" => {
                let used: LinkUse = serde_json::from_value(fields).map_err(malformed)?;
                if used.newest.len() > EXHAUSTION_SESSIONS_MAX {
                    return Err(EntryError::Value);
                }
                Self::Exhaustion(workspace, LinkId(id), used)
            }
            "begun" => Self::Begun(session, serde_json::from_value::<Begun>(fields).map_err(malformed)?.link),
            "workspace" => Self::Workspace(workspace, serde_json::from_value(fields).map_err(malformed)?),
            _ => Self::Edge(id),
        };
        // Two keys for one subject would be two entries of it.
        if news.key() == text { Ok(news) } else { Err(EntryError::Key) }
    }
}

impl fmt::Display for News {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key())
    }
}

impl Entry {
    /// The entry of a session that is deleted now.
    pub fn deletion(key: SessionKey, now_ms: u64) -> Self {
        Self { news: News::Deletion(key), version: now_ms, not_after: after(now_ms, CONTROL_DELETION_KEPT_S) }
    }

    /// The entry of a session whose end user withdraws now.
    pub fn withdrawal(key: SessionKey, now_ms: u64) -> Self {
        Self { news: News::Withdrawal(key), version: now_ms, not_after: after(now_ms, CONTROL_DELETION_KEPT_S) }
    }

    /// The entry of a link that is revoked now. It counts as long as a session of the link may still have a token.
    pub fn revocation(workspace: WorkspaceId, link: LinkId, now_ms: u64, link_expires_at: OffsetDateTime) -> Self {
        let expired_ms = u64::try_from(link_expires_at.unix_timestamp()).unwrap_or(0).saturating_mul(1000);
        let not_after = after(now_ms.max(expired_ms), CONTROL_DELETION_KEPT_S);
        Self { news: News::Revocation(workspace, link), version: now_ms, not_after }
    }

    /// The entry of a link that has begun nearly all its sessions. Nobody needs it once the link has expired.
    pub fn exhaustion(
        workspace: WorkspaceId,
        link: LinkId,
        mut used: LinkUse,
        link_expires_at: OffsetDateTime,
    ) -> Self {
        used.newest.truncate(EXHAUSTION_SESSIONS_MAX);
        let version = u64::from(used.sessions);
        Self { news: News::Exhaustion(workspace, link, used), version, not_after: link_expires_at }
    }

    /// The entry of a session that an edge lets begin now.
    pub fn begun(key: SessionKey, link: LinkId, now_ms: u64) -> Self {
        Self { news: News::Begun(key, link), version: now_ms, not_after: after(now_ms, CONTROL_BEGUN_KEPT_S) }
    }

    /// The entry of a workspace's rules; `version` is counted up by the index with each change.
    pub fn workspace(workspace: WorkspaceId, rules: WorkspaceRules, version: u64) -> Self {
        Self { news: News::Workspace(workspace, Box::new(rules)), version, not_after: for_ever() }
    }

    /// The entry of an edge that lives now.
    pub fn edge(instance: Uuid, now_ms: u64) -> Self {
        Self { news: News::Edge(instance), version: now_ms, not_after: after(now_ms, CONTROL_EDGE_KEPT_S) }
    }

    /// Whether it still counts at this time, seconds since the epoch.
    pub fn counts_at(&self, now_s: i64) -> bool {
        self.not_after.unix_timestamp() > now_s
    }

    /// The key of its record.
    pub fn key(&self) -> String {
        self.news.key()
    }

    /// The value of its record.
    pub fn value(&self) -> Vec<u8> {
        let not_after = self.not_after.format(&Rfc3339).unwrap_or_else(|_| FOR_EVER.to_owned());
        let mut value = self.news.fields();
        value["version"] = self.version.into();
        value["not_after"] = not_after.into();
        value.to_string().into_bytes()
    }

    /// Reads a record. Fields that are unknown are a later release's.
    pub fn decode(key: &[u8], value: &[u8]) -> Result<Self, EntryError> {
        let (mut version, mut not_after) = (0, OffsetDateTime::UNIX_EPOCH);
        let news = News::decode(key, || {
            let envelope: Envelope = serde_json::from_slice(value).map_err(|_| EntryError::Value)?;
            (version, not_after) = (envelope.version, envelope.not_after);
            Ok(Value::Object(envelope.rest))
        })?;
        Ok(Self { news, version, not_after })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW_MS: u64 = 1_790_000_000_123;

    fn session(workspace: u128, session: u128) -> SessionKey {
        SessionKey { workspace: WorkspaceId(Uuid::from_u128(workspace)), session: SessionId(Uuid::from_u128(session)) }
    }

    /// One of each kind.
    fn all(workspace: u128, id: u128, now_ms: u64) -> Vec<Entry> {
        let (key, link) = (session(workspace, id), LinkId(Uuid::from_u128(id)));
        let at = after(now_ms, 7);
        let rules = WorkspaceRules {
            state: WorkspaceState::Suspended,
            limits: Plan::Growth.limits(),
            full_until: Some(at),
            origins: vec!["https://app.example".into()],
            notice_versions: vec!["2026-03".into()],
            terms: None,
        };
        let terms = Terms {
            plan: Plan::Growth,
            kept: Some(Kept { until: at, days: 365 }),
            terminates_at: Some(at),
            closed_by_operator: true,
        };
        let closed = WorkspaceRules { state: WorkspaceState::Terminated, terms: Some(terms), ..rules.clone() };
        vec![
            Entry::deletion(key, now_ms),
            Entry::withdrawal(key, now_ms),
            Entry::revocation(key.workspace, link, now_ms, at),
            Entry::exhaustion(key.workspace, link, LinkUse { sessions: 5, newest: vec![key.session] }, at),
            Entry::begun(key, link, now_ms),
            Entry::workspace(key.workspace, rules, 3),
            Entry::edge(Uuid::from_u128(id), now_ms),
            Entry::workspace(key.workspace, closed, now_ms),
        ]
    }

    /// What lies in topics is read for ever: keys and values to the letter.
    #[test]
    fn entries_are_what_was_promised() {
        let written: Vec<String> = all(1, 2, NOW_MS)
            .iter()
            .map(|entry| format!("{} {}", entry.key(), String::from_utf8(entry.value()).unwrap()))
            .collect();
        let golden = include_str!("../golden-control-v1.txt");
        assert_eq!(written.join("\n"), golden.trim_end());
    }

    #[test]
    fn strangers_are_refused_by_what_is_wrong_with_them() {
        let ours = Entry::deletion(session(1, 2), NOW_MS);
        let (key, value) = (ours.key(), ours.value());
        let later = br#"{"version":1,"not_after":"2026-09-23T14:13:20+02:00","cause":"expired"}"#;
        let begun = key.replace("deletion", "begun");
        let cases: [(&str, &[u8], Option<EntryError>); 11] = [
            (&key, &value, None),
            (&key, later, None),
            ("", &value, Some(EntryError::Kind)),
            ("deletion", &value, Some(EntryError::Kind)),
            ("coronation/a/b", &value, Some(EntryError::Kind)),
            ("deletion/a/b", &value, Some(EntryError::Key)),
            (&key.replace('-', ""), &value, Some(EntryError::Key)),
            (&key.replace("deletion", "workspace"), &value, Some(EntryError::Value)),
            (&begun, &value, Some(EntryError::Value)),
            (&key, b"", Some(EntryError::Value)),
            (&key, br#"{"version":-1,"not_after":"2026-09-23T14:13:20Z"}"#, Some(EntryError::Value)),
        ];
        for (key, value, expected) in cases {
            assert_eq!(Entry::decode(key.as_bytes(), value).err(), expected, "{key}");
        }
    }

    #[test]
    fn a_wrong_clock_keeps_an_entry_for_longer_and_never_shorter() {
        assert!(Entry::deletion(session(1, 2), u64::MAX).counts_at(FOR_EVER_S - 1));
        let expired = Entry::edge(Uuid::nil(), NOW_MS);
        let now_s = (NOW_MS / 1000).cast_signed();
        assert!(expired.counts_at(now_s) && !expired.counts_at(now_s + CONTROL_EDGE_KEPT_S));
    }

    proptest! {
        #[test]
        fn entries_read_back(workspace: u128, id: u128, now_ms: u64) {
            for entry in all(workspace, id, now_ms) {
                let read = Entry::decode(entry.key().as_bytes(), &entry.value()).unwrap();
                prop_assert_eq!(read, entry);
            }
        }

        #[test]
        fn any_bytes_are_decoded_without_panic(mut key: Vec<u8>, mut value: Vec<u8>, ours in 0..9usize) {
            if let Some(entry) = all(1, 2, NOW_MS).get(ours) {
                let mut whole = [entry.key().into_bytes(), entry.value()];
                for (whole, flips) in whole.iter_mut().zip([&key, &value]) {
                    for (at, byte) in flips.iter().enumerate() {
                        let len = whole.len();
                        whole[(at * 31 + usize::from(*byte)) % len] ^= byte;
                    }
                }
                [key, value] = whole;
            }
            if let Ok(entry) = Entry::decode(&key, &value) {
                prop_assert_eq!(entry.key().into_bytes(), key);
            }
        }
    }
}
