//! Magic links.

use schemas::http::LinkItem;
use schemas::{LinkId, WorkspaceId};
use serde_json::Value;
use sqlx::Row as _;
use time::OffsetDateTime;

use super::{Index, IndexError, failed};

/// A link to be stored.
#[derive(Debug, Clone)]
pub struct NewLink<'a> {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The link.
    pub id: LinkId,
    /// Whom it is for.
    pub reference: &'a str,
    /// When it expires.
    pub expires_at: OffsetDateTime,
    /// Sessions that it may begin.
    pub max_sessions: u32,
    /// Where the end user is sent.
    pub redirect_url: Option<&'a str>,
    /// Masking rules.
    pub masking: Option<&'a Value>,
}

/// A place in a list that is ordered by time and id, newest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Before {
    /// Items at this time…
    pub at: OffsetDateTime,
    /// … with a smaller id, and all older ones.
    pub id: uuid::Uuid,
}

impl Index {
    /// Stores a link.
    pub async fn insert_link(&self, link: &NewLink<'_>) -> Result<(), IndexError> {
        sqlx::query(
            "insert into link (workspace_id, id, reference, expires_at, max_sessions, redirect_url, masking)
             values ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(link.workspace.0)
        .bind(link.id.0)
        .bind(link.reference)
        .bind(link.expires_at)
        .bind(i32::try_from(link.max_sessions).unwrap_or(i32::MAX))
        .bind(link.redirect_url)
        .bind(link.masking.map(sqlx::types::Json))
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("insert link"))
    }

    /// A page of a workspace's links, newest first.
    pub async fn links(
        &self,
        workspace: WorkspaceId,
        before: Option<Before>,
        limit: u32,
    ) -> Result<Vec<LinkItem>, IndexError> {
        let rows = sqlx::query(
            "select id, reference, created_at, expires_at, max_sessions, sessions from link
             where workspace_id = $1 and ($2::timestamptz is null or (created_at, id) < ($2, $3))
             order by created_at desc, id desc limit $4",
        )
        .bind(workspace.0)
        .bind(before.map(|before| before.at))
        .bind(before.map(|before| before.id))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list links"))?;
        Ok(rows
            .iter()
            .map(|row| LinkItem {
                id: LinkId(row.get("id")),
                reference: row.get("reference"),
                created_at: row.get("created_at"),
                expires_at: row.get("expires_at"),
                max_sessions: row.get::<i32, _>("max_sessions").unsigned_abs(),
                sessions: row.get::<i32, _>("sessions").unsigned_abs(),
            })
            .collect())
    }
}
