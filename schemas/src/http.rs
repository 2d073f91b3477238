//! Bodies of the HTTP calls. Times are RFC 3339 in UTC, durations whole seconds, sizes bytes.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::control::WorkspaceState;
use crate::deletion::Cause;
use crate::facts::BatchFacts;
use crate::ids::{ApiKeyId, DeletionId, ExportId, LinkId, ReceiptId, SessionId, WorkspaceId};
use crate::limits;
use crate::plan::{Limits, Plan};

/// The attribute below which all text and values are masked.
pub const MASK_ATTRIBUTE: &str = "data-clairvio-mask";
/// The attribute of elements of which only the box is kept.
pub const BLOCK_ATTRIBUTE: &str = "data-clairvio-block";

/// What the end user decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// Recording may begin.
    Accepted,
    /// Nothing is kept.
    Declined,
}

/// `POST /v1/consent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsentRequest {
    /// The link's token.
    pub link: String,
    /// The decision.
    pub decision: Decision,
    /// The notice that was shown.
    pub notice_version: String,
    /// A random text; the same one gives the same session.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub attempt: Option<String>,
}

/// What an SDK needs to record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Capture {
    /// [`MASK_ATTRIBUTE`].
    pub mask_attribute: String,
    /// [`BLOCK_ATTRIBUTE`].
    pub block_attribute: String,
    /// The link's masking rules.
    pub masking: Value,
    /// Bytes of a batch, before compression, that always pass.
    pub max_batch_bytes: u64,
    /// How often to send.
    pub flush_interval_ms: u64,
}

impl Capture {
    /// The capture rules of a session with these masking rules.
    pub fn of(masking: Option<&Value>) -> Self {
        Self {
            mask_attribute: MASK_ATTRIBUTE.into(),
            block_attribute: BLOCK_ATTRIBUTE.into(),
            masking: masking.cloned().unwrap_or_else(|| Value::Object(Default::default())),
            max_batch_bytes: limits::SDK_BATCH_BYTES as u64,
            flush_interval_ms: limits::SDK_FLUSH_INTERVAL_MS,
        }
    }
}

/// The answer to an accepted consent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConsentResponse {
    /// The session that begins.
    pub session_id: SessionId,
    /// Its token.
    pub token: String,
    /// When the token expires.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// How to record.
    pub capture: Capture,
}

/// `GET /v1/session`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SessionResponse {
    /// The session.
    pub session_id: SessionId,
    /// When the token expires.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// How to record.
    pub capture: Capture,
    /// What the session is held to.
    pub limits: SessionLimits,
}

/// What a session is held to, as an SDK needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionLimits {
    /// Events a second, as a mean.
    pub events_per_s: u64,
    /// Bytes of events a second, before compression, as a mean.
    pub bytes_per_s: u64,
    /// How long the session may last from its consent on, seconds.
    pub duration_s: u64,
}

impl SessionLimits {
    /// Those of a session among its workspace's.
    pub fn of(limits: &Limits) -> Self {
        Self {
            events_per_s: limits.session_events_per_s,
            bytes_per_s: limits.session_bytes_per_s,
            duration_s: limits.session_s,
        }
    }
}

/// The body of `POST /v1/withdraw` when the token stands in no header, as with `sendBeacon`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WithdrawHead {
    /// The session token.
    pub token: String,
}

/// The answer to a withdrawal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct WithdrawResponse {
    /// The session that is deleted.
    pub session_id: SessionId,
}

/// The answer to a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsResponse {
    /// The stream that the batch went to.
    pub stream: u32,
    /// Its number.
    pub seq: u32,
}

/// The first line of a `text/plain` batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BeaconHead {
    /// The session token.
    pub token: String,
    /// The stream; 0 when left out.
    #[serde(default)]
    pub stream: u64,
    /// The batch's number.
    pub seq: u64,
    /// Whether it is the stream's last.
    #[serde(default)]
    pub end: bool,
}

/// `POST /v1/links`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkRequest {
    /// Whom the link is for: an e-mail address, a ticket number.
    pub reference: String,
    /// Seconds until it expires.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub expires_in: Option<u64>,
    /// Sessions that it may begin.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub max_sessions: Option<u32>,
    /// Where the end user is sent; its origin must be one of the workspace's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub redirect_url: Option<String>,
    /// [`MaskingRules`], as they came.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub masking: Option<Value>,
}

/// Which values of form fields are masked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum MaskedInputs {
    /// All of them.
    #[default]
    All,
    /// Those that are masked whatever the rules, and no other.
    Sensitive,
}

/// Which texts are masked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum MaskedText {
    /// None but what is masked whatever the rules.
    #[default]
    None,
    /// All of it.
    All,
}

/// Masking rules of a link. A rule that is left out has its default, and what has its default is left out when the rules are
/// written: they travel in tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct MaskingRules {
    /// Values of form fields.
    #[serde(skip_serializing_if = "is_default")]
    pub inputs: MaskedInputs,
    /// Texts.
    #[serde(skip_serializing_if = "is_default")]
    pub text: MaskedText,
    /// Elements whose texts and values are masked, by CSS selector.
    #[serde(skip_serializing_if = "is_default")]
    pub mask_selectors: Vec<String>,
    /// Elements of which only the box is kept, by CSS selector.
    #[serde(skip_serializing_if = "is_default")]
    pub block_selectors: Vec<String>,
    /// Attributes whose values are masked, by name.
    #[serde(skip_serializing_if = "is_default")]
    pub attributes: Vec<String>,
    /// Whether bodies of requests are recorded.
    #[serde(skip_serializing_if = "is_default")]
    pub network_bodies: bool,
    /// Names of JSON fields, headers and parameters whose values are masked in network requests.
    #[serde(skip_serializing_if = "is_default")]
    pub redact_keys: Vec<String>,
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl MaskingRules {
    /// The rules in this JSON, in the one form in which they are kept; `None` when it has other fields, names nothing, or is
    /// longer than rules may be.
    pub fn normal(rules: &Value) -> Option<Value> {
        // A struct would be read from an array too.
        let rules: Self = rules.is_object().then(|| serde_json::from_value(rules.clone()).ok())??;
        let named = [&rules.mask_selectors, &rules.block_selectors, &rules.attributes, &rules.redact_keys];
        // The index holds no text with a zero byte.
        let names = |text: &String| !text.trim().is_empty() && !text.contains('\0');
        if !named.into_iter().flatten().all(names) {
            return None;
        }
        let normal = serde_json::to_value(&rules).ok()?;
        (normal.to_string().len() <= limits::MASKING_BYTES_MAX).then_some(normal)
    }
}

/// The answer: the token is shown once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkCreated {
    /// The link.
    pub id: LinkId,
    /// Its token.
    pub token: String,
    /// What to send to the end user; absent without a redirect URL.
    pub url: Option<String>,
    /// When it expires.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
}

/// An item of `GET /v1/links`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkItem {
    /// The link.
    pub id: LinkId,
    /// Whom it is for.
    pub reference: String,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it expires.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// Sessions that it may begin.
    pub max_sessions: u32,
    /// Sessions that it began.
    pub sessions: u32,
    /// When it was revoked; null while it counts.
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
    /// Where the end user is sent.
    pub redirect_url: Option<String>,
    /// [`MaskingRules`], in their normal form; null where none were given.
    pub masking: Option<Value>,
}

/// What an API key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Make, list and revoke links.
    Links,
    /// List and read: links, sessions, events, deletions, usage.
    Read,
    /// Delete sessions.
    Delete,
    /// Change the workspace and its keys.
    Admin,
}

impl Scope {
    /// Every scope.
    pub const ALL: [Self; 4] = [Self::Links, Self::Read, Self::Delete, Self::Admin];

    /// The word in the index and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Links => "links",
            Self::Read => "read",
            Self::Delete => "delete",
            Self::Admin => "admin",
        }
    }

    /// The scope of this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == word)
    }
}

/// `POST /v1/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRequest {
    /// By which people know it.
    pub name: String,
    /// What it may do: nothing that the asking key may not.
    pub scopes: Vec<Scope>,
}

/// The answer: the key is shown once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyCreated {
    /// The key's id.
    pub id: ApiKeyId,
    /// The key itself.
    pub key: String,
    /// By which people know it.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
}

/// An item of `GET /v1/keys`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyItem {
    /// The key's id.
    pub id: ApiKeyId,
    /// By which people know it.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Its last characters.
    pub ending: String,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it was last used, to the minute; null when it never was.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_used_at: Option<OffsetDateTime>,
    /// When it was revoked; null while it counts.
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
}

/// What of a session was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadWhat {
    /// What `GET /v1/sessions/{id}` tells.
    Metadata,
    /// Its events.
    Events,
    /// An archive of it.
    Export,
}

impl ReadWhat {
    /// Everything that can be read.
    pub const ALL: [Self; 3] = [Self::Metadata, Self::Events, Self::Export];

    /// The word in the index and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Metadata => "metadata",
            Self::Events => "events",
            Self::Export => "export",
        }
    }

    /// What this word means.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|what| what.as_str() == word)
    }
}

/// `POST /v1/exports`: of what. One of the three.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct ExportRequest {
    /// This session.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub session: Option<SessionId>,
    /// All sessions of this reference.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reference: Option<String>,
    /// `true`: all sessions of the workspace.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub workspace: bool,
}

/// What an export is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportScope {
    /// One session.
    Session,
    /// All sessions of a reference.
    Reference,
    /// All sessions of the workspace.
    Workspace,
}

impl ExportScope {
    /// All scopes.
    pub const ALL: [Self; 3] = [Self::Session, Self::Reference, Self::Workspace];

    /// The word in the index and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Reference => "reference",
            Self::Workspace => "workspace",
        }
    }

    /// What this word means.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|scope| scope.as_str() == word)
    }
}

/// How far an export is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportState {
    /// Its archive is being made.
    Building,
    /// Its archive can be fetched.
    Ready,
    /// It is over: nobody fetches it any more, and its bytes go.
    Ended,
    /// Nothing of it is left.
    Gone,
}

/// Why an export is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportEnd {
    /// Its time was over.
    Expired,
    /// One of its sessions was deleted.
    SessionDeleted,
    /// Somebody ended it.
    ByHand,
}

impl ExportEnd {
    /// All ends.
    pub const ALL: [Self; 3] = [Self::Expired, Self::SessionDeleted, Self::ByHand];

    /// The word in the index and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::SessionDeleted => "session_deleted",
            Self::ByHand => "by_hand",
        }
    }

    /// What this word means.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|end| end.as_str() == word)
    }
}

/// `GET /v1/exports/{id}`, and an item of `GET /v1/exports`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExportItem {
    /// The export.
    pub id: ExportId,
    /// What it is of.
    pub scope: ExportScope,
    /// How far it is.
    pub state: ExportState,
    /// Sessions that are in the archive so far.
    pub sessions: u64,
    /// Sessions that it will have, as far as was counted when it began; null before.
    pub sessions_total: Option<u64>,
    /// Sessions of the workspace that are left out, since they are deleted before the export would be; null before they are counted.
    pub sessions_left_out: Option<u64>,
    /// Events in the archive so far.
    pub events: u64,
    /// Bytes of the archive so far.
    pub bytes: u64,
    /// When it was asked for.
    #[serde(with = "time::serde::rfc3339")]
    pub requested_at: OffsetDateTime,
    /// When its archive was whole; null before.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ready_at: Option<OffsetDateTime>,
    /// When it is over at the latest.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// Why it is over; null while it is not.
    pub ended_because: Option<ExportEnd>,
}

/// Who read a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reader {
    /// The API key that was shown.
    pub key_id: ApiKeyId,
    /// By which people know it; null when its row is gone.
    pub key_name: Option<String>,
    /// Its last characters; null when its row is gone.
    pub key_ending: Option<String>,
}

/// An item of `GET /v1/reads`: a session was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadItem {
    /// The entry.
    pub id: Uuid,
    /// The session, which may have been deleted since.
    pub session_id: SessionId,
    /// When, by the database's clock.
    #[serde(with = "time::serde::rfc3339")]
    pub read_at: OffsetDateTime,
    /// Who.
    pub by: Reader,
    /// What of it.
    pub what: ReadWhat,
    /// The least timestamp that was asked for, milliseconds; null when the beginning was.
    pub from: Option<i64>,
    /// The greatest timestamp that was asked for, milliseconds; null when the end was.
    pub to: Option<i64>,
}

/// A workspace: `GET /v1/workspace`, and what an operator sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceItem {
    /// The workspace.
    pub id: WorkspaceId,
    /// Its name.
    pub name: String,
    /// What it pays for.
    pub plan: Plan,
    /// Whether it may record.
    pub state: WorkspaceState,
    /// Origins that may record; empty for any.
    pub origins: Vec<String>,
    /// Versions of the notice that are accepted; empty for any.
    pub notice_versions: Vec<String>,
    /// What its plan holds it to.
    pub limits: Limits,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When all of a closed workspace goes: until then it can be opened again. Null while it is open.
    #[serde(with = "time::serde::rfc3339::option")]
    pub terminates_at: Option<OffsetDateTime>,
}

/// `PATCH /v1/workspace`. What is left out stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct WorkspacePatch {
    /// Its name.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub name: Option<String>,
    /// Origins that may record; empty for any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub origins: Option<Vec<String>>,
    /// Versions of the notice that are accepted; empty for any.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub notice_versions: Option<Vec<String>>,
    /// `active` opens a closed workspace again, before it goes. Nothing else can be asked for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub state: Option<WorkspaceState>,
}

/// Sessions that began in one day.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageItem {
    /// The day in UTC, as `2026-03-23`.
    pub day: String,
    /// Sessions that began in it.
    pub sessions: u64,
}

/// `GET /v1/usage`: days without sessions are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// The days, oldest first.
    pub items: Vec<UsageItem>,
}

/// `POST /v1/operator/workspaces`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkspaceRequest {
    /// Its name.
    pub name: String,
    /// What it pays for.
    pub plan: Plan,
    /// Origins that may record; any when left out.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub origins: Vec<String>,
}

/// The answer: the workspace, and its first API key, which is shown once and has all scopes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkspaceCreated {
    /// The workspace.
    #[serde(flatten)]
    pub workspace: WorkspaceItem,
    /// The key.
    pub api_key: String,
}

/// `PATCH /v1/operator/workspaces/{id}`. What is left out stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub struct OperatorPatch {
    /// What it pays for.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub plan: Option<Plan>,
    /// Whether it may record. `terminated` can be taken back until it goes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub state: Option<WorkspaceState>,
}

/// `GET /v1/operator/links/{id}`: who sent a link. Never whom it is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorLink {
    /// The link.
    pub link_id: LinkId,
    /// Whose it is.
    pub workspace_id: WorkspaceId,
    /// Whose it is.
    pub workspace_name: String,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When it expires.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// When it was revoked; null while it counts.
    #[serde(with = "time::serde::rfc3339::option")]
    pub revoked_at: Option<OffsetDateTime>,
    /// Sessions that it began.
    pub sessions: u32,
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The items.
    pub items: Vec<T>,
    /// Give this as `cursor` to get the next page; null on the last.
    pub next_cursor: Option<String>,
}

/// Whether a session still grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    /// Events may still come.
    Recording,
    /// Its end mark came, or it was silent for long enough.
    Ended,
}

/// Where a session's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoredAs {
    /// In shared objects, with other sessions'.
    Shared,
    /// In objects of its own.
    Object,
    /// In both.
    Mixed,
}

/// Numbers of batches that are not there although a later one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MissingRange {
    /// The stream.
    pub stream: u32,
    /// The first missing number.
    pub from: u32,
    /// The last missing number.
    pub to: u32,
}

/// What of a session is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Completeness {
    /// Batches, each counted once.
    pub batches: u64,
    /// Holes, 1,024 ranges at most.
    pub missing: Vec<MissingRange>,
    /// Whether every stream has its end mark.
    pub ended: bool,
    /// Whether a full snapshot is there: without one nothing can be replayed.
    pub has_full_snapshot: bool,
    /// Copies of batches that were dropped.
    pub duplicates_dropped: u64,
    /// Dropped copies that had other bytes than the one that stayed.
    pub conflicts: u64,
}

/// What was agreed to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsentFacts {
    /// The notice that was shown.
    pub notice_version: String,
    /// When it was accepted.
    #[serde(with = "time::serde::rfc3339")]
    pub accepted_at: OffsetDateTime,
    /// The receipt.
    pub receipt_id: ReceiptId,
}

/// Events by kind: rrweb's types by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
#[expect(missing_docs, reason = "the names are rrweb's own")]
pub struct EventCounts {
    pub dom_content_loaded: u64,
    pub load: u64,
    pub full_snapshot: u64,
    pub incremental: u64,
    pub meta: u64,
    pub custom: u64,
    pub plugin: u64,
    pub other: u64,
}

impl EventCounts {
    /// The counts by type, those of unknown types last.
    pub fn to_array(&self) -> [u64; crate::facts::KINDS] {
        [
            self.dom_content_loaded,
            self.load,
            self.full_snapshot,
            self.incremental,
            self.meta,
            self.custom,
            self.plugin,
            self.other,
        ]
    }

    /// The counts in this array, as [`EventCounts::to_array`] gives them.
    pub fn from_array(counts: [u64; crate::facts::KINDS]) -> Self {
        let [dom_content_loaded, load, full_snapshot, incremental, meta, custom, plugin, other] = counts;
        Self { dom_content_loaded, load, full_snapshot, incremental, meta, custom, plugin, other }
    }

    /// Adds a batch's counts.
    pub fn add(&mut self, kinds: &[u32; crate::facts::KINDS]) {
        let mut sums = self.to_array();
        for (sum, count) in sums.iter_mut().zip(kinds) {
            *sum += u64::from(*count);
        }
        *self = Self::from_array(sums);
    }
}

/// Console messages by level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct ConsoleCounts {
    /// Of level error.
    pub error: u64,
    /// Of level warn.
    pub warn: u64,
    /// Of level info.
    pub info: u64,
    /// Of level log.
    pub log: u64,
    /// Of all other levels: debug, trace, assert and more.
    pub other: u64,
}

impl ConsoleCounts {
    /// The counts of these errors, and of the other levels in the order of [`BatchFacts::console`].
    pub fn new(error: u64, [warn, info, log, other]: [u64; crate::facts::CONSOLE_LEVELS]) -> Self {
        Self { error, warn, info, log, other }
    }

    /// The counts but that of errors, in the order of [`BatchFacts::console`].
    pub fn but_errors(&self) -> [u64; crate::facts::CONSOLE_LEVELS] {
        [self.warn, self.info, self.log, self.other]
    }

    /// Adds a batch's counts.
    pub fn add(&mut self, facts: &BatchFacts) {
        let mut sums = self.but_errors();
        for (sum, count) in sums.iter_mut().zip(facts.console) {
            *sum += u64::from(count);
        }
        *self = Self::new(self.error + u64::from(facts.errors), sums);
    }
}

/// A session's metadata. Of batches that were recorded before a number was counted, nothing is in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionItem {
    /// The session.
    pub id: SessionId,
    /// Whether it still grows.
    pub state: SessionState,
    /// Whom its link is for.
    pub reference: String,
    /// The link that began it.
    pub link_id: LinkId,
    /// When its first record was appended to the log.
    #[serde(with = "time::serde::rfc3339")]
    pub started_at: OffsetDateTime,
    /// When it ended; null while it grows.
    #[serde(with = "time::serde::rfc3339::option")]
    pub ended_at: Option<OffsetDateTime>,
    /// From the least to the greatest timestamp of its events.
    pub duration_ms: u64,
    /// Events, each counted once.
    pub events: u64,
    /// Events by kind.
    pub counts: EventCounts,
    /// Pages opened.
    pub pages: u64,
    /// Console errors.
    pub errors: u64,
    /// Time in which the end user was active, in milliseconds: pauses of more than 5 s between two interactions are none.
    /// What was done in two tabs at the same time counts twice.
    pub active_ms: u64,
    /// Clicks.
    pub clicks: u64,
    /// Inputs into form fields, each change of a field one: keys are not recorded.
    pub keypresses: u64,
    /// Console messages by level; those of level error are `errors` too.
    pub console: ConsoleCounts,
    /// Requests of the page that were answered with a status from 400 on, or not at all.
    pub failed_requests: u64,
    /// Pages by origin and path, in the order of the first visits, 64 at most.
    pub urls: Vec<String>,
    /// Bytes of its events as JSON.
    pub bytes_received: u64,
    /// Bytes of its frames in S3.
    pub bytes_stored: u64,
    /// Where they are; null before the first are stored, and in a list.
    pub stored_as: Option<StoredAs>,
    /// When its plan window ends.
    #[serde(with = "time::serde::rfc3339")]
    pub expires_at: OffsetDateTime,
    /// What of it is there; null in a list, which looks into no object.
    pub completeness: Option<Completeness>,
    /// What was agreed to.
    pub consent: ConsentFacts,
}

/// The answer to a request to delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletionAccepted {
    /// Follow it at `GET /v1/deletions/{id}`.
    pub deletion_id: DeletionId,
}

/// `POST /v1/deletions`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeletionRequest {
    /// Whose sessions are to go.
    pub reference: String,
}

impl std::fmt::Debug for DeletionRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DeletionRequest(secret)")
    }
}

/// How far a deletion is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DeletionState {
    /// No reader gets it any more.
    Unreadable,
    /// Its keys are gone.
    Shredded,
    /// Its bytes are gone from storage, seen by listing.
    Erased,
}

/// `GET /v1/deletions/{id}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletionItem {
    /// The deletion.
    pub id: DeletionId,
    /// How far it is.
    pub state: DeletionState,
    /// Why.
    pub cause: Cause,
    /// Sessions that it covers. Of a deletion by reference more may come while it is not erased: those that were on their way.
    pub sessions: u64,
    /// Those of them whose keys are gone.
    pub sessions_shredded: u64,
    /// Those of them whose bytes are gone.
    pub sessions_erased: u64,
    /// When it was asked for.
    #[serde(with = "time::serde::rfc3339")]
    pub requested_at: OffsetDateTime,
    /// When the last byte was seen gone.
    #[serde(with = "time::serde::rfc3339::option")]
    pub erased_at: Option<OffsetDateTime>,
    /// The signed receipt, once there is one: a compact JWS whose payload is [`Receipt`](crate::deletion::Receipt). The first of
    /// several.
    pub receipt: Option<String>,
    /// How many receipts there are: of a deletion of very many sessions more than one, at `GET /v1/deletions/{id}/receipts`.
    pub receipts: u64,
}

/// A receipt, in a list of those of a deletion or a workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReceiptItem {
    /// The deletion that it is of.
    pub deletion_id: DeletionId,
    /// Which of its receipts, from 1.
    pub part: u32,
    /// Sessions in it.
    pub sessions: u64,
    /// When it was signed.
    #[serde(with = "time::serde::rfc3339")]
    pub signed_at: OffsetDateTime,
    /// The receipt, a compact JWS.
    pub receipt: String,
}

/// `POST /v1/operator/deletions`: of one session, or of all of a reference; exactly one is given.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OperatorDeletion {
    /// Whose.
    pub workspace_id: WorkspaceId,
    /// The session.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub session_id: Option<SessionId>,
    /// Whose sessions are to go.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reference: Option<String>,
}

impl std::fmt::Debug for OperatorDeletion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OperatorDeletion").field("workspace_id", &self.workspace_id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn masking_rules_have_one_form_and_no_stranger_passes() {
        let whole = json!({
            "inputs": "sensitive", "text": "all", "mask_selectors": [".a"], "block_selectors": ["#b"],
            "attributes": ["title"], "network_bodies": true, "redact_keys": ["secret"],
        });
        let defaults = json!({
            "inputs": "all", "text": "none", "mask_selectors": [], "block_selectors": [], "attributes": [],
            "network_bodies": false, "redact_keys": [],
        });
        let long = |len: usize| json!({ "mask_selectors": ["x".repeat(len)] });
        let around = long(0).to_string().len();
        let longest = long(limits::MASKING_BYTES_MAX - around);
        for (given, expect) in [
            (json!({}), Some(json!({}))),
            (defaults, Some(json!({}))),
            (whole.clone(), Some(whole)),
            (json!({ "text": "none", "inputs": "sensitive" }), Some(json!({ "inputs": "sensitive" }))),
            (longest.clone(), Some(longest)),
            (long(limits::MASKING_BYTES_MAX - around + 1), None),
            (json!({ "images": true }), None),
            (json!({ "inputs": "none" }), None),
            (json!({ "inputs": null }), None),
            (json!({ "mask_selectors": ".a" }), None),
            (json!({ "mask_selectors": [" "] }), None),
            (json!({ "redact_keys": ["a\u{0}"] }), None),
            (json!({ "network_bodies": "yes" }), None),
            (json!(["all"]), None),
            (json!(null), None),
        ] {
            assert_eq!(MaskingRules::normal(&given), expect, "{given}");
        }
    }

    #[test]
    fn scopes_are_the_same_words_everywhere() {
        for scope in Scope::ALL {
            assert_eq!(Scope::parse(scope.as_str()), Some(scope));
            assert_eq!(serde_json::to_value(scope).expect("a word"), scope.as_str());
        }
        assert_eq!(Scope::parse("owner"), None);
    }
}
