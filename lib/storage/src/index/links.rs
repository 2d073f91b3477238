//! Magic links.

use schemas::control::Entry;
use schemas::http::OperatorLink;
use schemas::{LinkId, WorkspaceId};
use serde_json::Value;
use service_kit::time::now_ms;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Index, IndexError, failed, outbox};

/// A link to be stored.
#[derive(Debug, Clone)]
pub struct NewLink<'a> {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The link.
    pub id: LinkId,
    /// Whom it is for, sealed.
    pub reference: &'a SealedReference,
    /// When it expires.
    pub expires_at: OffsetDateTime,
    /// Sessions that it may begin.
    pub max_sessions: u32,
    /// Where the end user is sent.
    pub redirect_url: Option<&'a str>,
    /// Masking rules.
    pub masking: Option<&'a Value>,
}

/// A reference on its way into a link's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedReference {
    /// Itself, sealed.
    pub sealed: Vec<u8>,
    /// What equal references of the workspace have in common.
    pub hash: [u8; 32],
}

/// A reference as a link's row has it.
#[derive(Clone, PartialEq, Eq)]
pub enum StoredReference {
    /// Sealed.
    Sealed(Vec<u8>),
    /// Not sealed yet: an earlier release made the link a moment ago.
    Clear(String),
    /// The link's row is gone.
    Unknown,
}

impl std::fmt::Debug for StoredReference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Sealed(_) => "Sealed",
            Self::Clear(_) => "Clear(secret)",
            Self::Unknown => "Unknown",
        })
    }
}

/// A reference that is looked for.
#[derive(Clone, PartialEq, Eq)]
pub struct ReferenceFilter {
    /// Its hash; none while the workspace has sealed no reference.
    pub hash: Option<[u8; 32]>,
    /// Itself: rows that are not sealed yet have no hash.
    pub clear: String,
}

impl std::fmt::Debug for ReferenceFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ReferenceFilter(secret)")
    }
}

/// The links that a reference has now, in order; where they are locked, nobody adds a session to one of them meanwhile.
pub(super) async fn links_of(
    connection: &mut PgConnection,
    workspace: WorkspaceId,
    reference: &ReferenceFilter,
    are_locked: bool,
) -> Result<Vec<Uuid>, IndexError> {
    macro_rules! links {
        () => {
            "select id from link where workspace_id = $1 and (reference_hash = $2 or reference = $3) order by id"
        };
    }
    sqlx::query_scalar(if are_locked { concat!(links!(), " for no key update") } else { links!() })
        .bind(workspace.0)
        .bind(reference.hash.map(Vec::from))
        .bind(&reference.clear)
        .fetch_all(connection)
        .await
        .map_err(failed("find links of a reference"))
}

/// A link's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkRow {
    /// The link.
    pub id: LinkId,
    /// Whom it is for.
    pub reference: StoredReference,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it expires.
    pub expires_at: OffsetDateTime,
    /// Sessions that it may begin.
    pub max_sessions: u32,
    /// Sessions that it began.
    pub sessions: u32,
    /// When it was revoked.
    pub revoked_at: Option<OffsetDateTime>,
    /// Where the end user is sent.
    pub redirect_url: Option<String>,
    /// Masking rules.
    pub masking: Option<Value>,
}

/// A link whose reference lies in clear, from an earlier release.
#[derive(Clone)]
pub struct UnsealedLink {
    /// Its workspace.
    pub workspace: WorkspaceId,
    /// The link.
    pub id: LinkId,
    /// Whom it is for.
    pub reference: String,
}

impl std::fmt::Debug for UnsealedLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UnsealedLink").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A place in a list that is ordered by time and id, newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before {
    /// Items at this time…
    pub at: OffsetDateTime,
    /// … with a smaller id, and all older ones.
    pub id: Uuid,
}

/// Reads the columns `reference` and `reference_sealed`.
pub(super) fn stored_reference(row: &PgRow) -> StoredReference {
    let sealed: Option<Vec<u8>> = row.get("reference_sealed");
    let clear: Option<String> = row.get("reference");
    match (sealed, clear) {
        (Some(sealed), _) => StoredReference::Sealed(sealed),
        (None, Some(clear)) => StoredReference::Clear(clear),
        (None, None) => StoredReference::Unknown,
    }
}

impl Index {
    /// Stores a link.
    pub async fn insert_link(&self, link: &NewLink<'_>) -> Result<(), IndexError> {
        sqlx::query(
            "insert into link (workspace_id, id, reference_sealed, reference_hash, expires_at, max_sessions, redirect_url,
                 masking)
             values ($1, $2, $3, $4, $5, $6, $7, $8)",
        )
        .bind(link.workspace.0)
        .bind(link.id.0)
        .bind(&link.reference.sealed)
        .bind(link.reference.hash.as_slice())
        .bind(link.expires_at)
        .bind(i32::try_from(link.max_sessions).unwrap_or(i32::MAX))
        .bind(link.redirect_url)
        .bind(link.masking.map(sqlx::types::Json))
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("insert link"))
    }

    /// A page of a workspace's links, newest first; with a reference, of those that are for it.
    pub async fn links(
        &self,
        workspace: WorkspaceId,
        reference: Option<&ReferenceFilter>,
        before: Option<Before>,
        limit: u32,
    ) -> Result<Vec<LinkRow>, IndexError> {
        let rows = sqlx::query(
            "select id, reference, reference_sealed, created_at, expires_at, max_sessions, sessions, revoked_at,
                 redirect_url, masking
             from link
             where workspace_id = $1 and ($2::timestamptz is null or (created_at, id) < ($2, $3))
                 and ($5::text is null or reference_hash = $6 or reference = $5)
             order by created_at desc, id desc limit $4",
        )
        .bind(workspace.0)
        .bind(before.map(|before| before.at))
        .bind(before.map(|before| before.id))
        .bind(i64::from(limit))
        .bind(reference.map(|reference| reference.clear.as_str()))
        .bind(reference.and_then(|reference| reference.hash).map(Vec::from))
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list links"))?;
        let link = |row: &PgRow| LinkRow {
            id: LinkId(row.get("id")),
            reference: stored_reference(row),
            created_at: row.get("created_at"),
            expires_at: row.get("expires_at"),
            max_sessions: row.get::<i32, _>("max_sessions").unsigned_abs(),
            sessions: row.get::<i32, _>("sessions").unsigned_abs(),
            revoked_at: row.get("revoked_at"),
            redirect_url: row.get("redirect_url"),
            masking: row.get("masking"),
        };
        Ok(rows.iter().map(link).collect())
    }

    /// Revokes a link, for ever; `false` when the workspace has no such link. That it is revoked is told in the same
    /// transaction, once.
    pub async fn revoke_link(&self, workspace: WorkspaceId, link: LinkId) -> Result<bool, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin revocation"))?;
        let row = sqlx::query(
            "select expires_at, revoked_at is not null as is_revoked from link where workspace_id = $1 and id = $2
             for no key update",
        )
        .bind(workspace.0)
        .bind(link.0)
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed("lock link"))?;
        let Some(row) = row else { return Ok(false) };
        if row.get("is_revoked") {
            return Ok(true);
        }
        sqlx::query("update link set revoked_at = clock_timestamp() where workspace_id = $1 and id = $2")
            .bind(workspace.0)
            .bind(link.0)
            .execute(&mut *tx)
            .await
            .map_err(failed("revoke link"))?;
        let entry = Entry::revocation(workspace, link, now_ms(), row.get("expires_at"));
        outbox::insert(&mut tx, &[outbox::telling(&entry)]).await?;
        tx.commit().await.map_err(failed("commit revocation"))?;
        self.outbox.notify_one();
        Ok(true)
    }

    /// Who sent a link, for an operator whom an end user asks. Never whom it is for.
    pub async fn link_of_anyone(&self, link: LinkId) -> Result<Option<OperatorLink>, IndexError> {
        let row = sqlx::query(
            "select l.id, l.workspace_id, w.name, l.created_at, l.expires_at, l.revoked_at, l.sessions
             from link l join workspace w on w.id = l.workspace_id where l.id = $1",
        )
        .bind(link.0)
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("find link"))?;
        Ok(row.map(|row| OperatorLink {
            link_id: LinkId(row.get("id")),
            workspace_id: WorkspaceId(row.get("workspace_id")),
            workspace_name: row.get("name"),
            created_at: row.get("created_at"),
            expires_at: row.get("expires_at"),
            revoked_at: row.get("revoked_at"),
            sessions: row.get::<i32, _>("sessions").unsigned_abs(),
        }))
    }

    /// Whether any reference of the workspace was ever sealed.
    pub async fn has_sealed_references(&self, workspace: WorkspaceId) -> Result<bool, IndexError> {
        sqlx::query_scalar(
            "select exists (select from link where workspace_id = $1 and reference_hash is not null limit 1)",
        )
        .bind(workspace.0)
        .fetch_one(&self.pool)
        .await
        .map_err(failed("ask for sealed references"))
    }

    /// Links whose references lie in clear, behind the one given, in id order.
    pub async fn unsealed_links(
        &self,
        after: Option<(WorkspaceId, LinkId)>,
        limit: i64,
    ) -> Result<Vec<UnsealedLink>, IndexError> {
        let rows = sqlx::query(
            "select workspace_id, id, reference from link
             where reference is not null and ($1::uuid is null or (workspace_id, id) > ($1, $2))
             order by workspace_id, id limit $3",
        )
        .bind(after.map(|(workspace, _)| workspace.0))
        .bind(after.map(|(_, link)| link.0))
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("find references in clear"))?;
        let link = |row: &PgRow| UnsealedLink {
            workspace: WorkspaceId(row.get("workspace_id")),
            id: LinkId(row.get("id")),
            reference: row.get("reference"),
        };
        Ok(rows.iter().map(link).collect())
    }

    /// Puts sealed references in the place of those in clear; gives how many. What another process sealed meanwhile stays.
    pub async fn seal_links(&self, sealed: &[(WorkspaceId, LinkId, SealedReference)]) -> Result<u64, IndexError> {
        sqlx::query(
            "with due as (
                 select l.workspace_id, l.id, s.sealed, s.hash
                 from link l
                 join unnest($1::uuid[], $2::uuid[], $3::bytea[], $4::bytea[]) as s (workspace_id, id, sealed, hash)
                     using (workspace_id, id)
                 where l.reference is not null
                 order by l.workspace_id, l.id for no key update of l
             )
             update link set reference = null, reference_sealed = due.sealed, reference_hash = due.hash
             from due where link.workspace_id = due.workspace_id and link.id = due.id",
        )
        .bind(sealed.iter().map(|(workspace, ..)| workspace.0).collect::<Vec<_>>())
        .bind(sealed.iter().map(|(_, link, _)| link.0).collect::<Vec<_>>())
        .bind(sealed.iter().map(|(.., reference)| reference.sealed.clone()).collect::<Vec<_>>())
        .bind(sealed.iter().map(|(.., reference)| reference.hash.to_vec()).collect::<Vec<_>>())
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected())
        .map_err(failed("seal references"))
    }
}
