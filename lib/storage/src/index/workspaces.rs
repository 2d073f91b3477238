//! Workspaces and their API keys.

use schemas::WorkspaceId;
use schemas::plan::Plan;
use sqlx::Row as _;
use uuid::Uuid;

use super::{Index, IndexError, failed};
use crate::objects::sha256;

/// The hash under which an API key is stored. A key has 256 random bits: there is nothing to guess, so a fast hash is
/// right.
pub fn hash_api_key(key: &str) -> [u8; 32] {
    sha256(key.as_bytes())
}

/// Whose key was shown, and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// Its allowed origins.
    pub origins: Vec<String>,
    /// What it pays for.
    pub plan: Plan,
}

impl Index {
    /// Makes a workspace.
    pub async fn create_workspace(
        &self,
        id: WorkspaceId,
        name: &str,
        plan: Plan,
        origins: &[String],
    ) -> Result<(), IndexError> {
        sqlx::query("insert into workspace (id, name, plan, origins) values ($1, $2, $3, $4)")
            .bind(id.0)
            .bind(name)
            .bind(plan.as_str())
            .bind(origins)
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("create workspace"))
    }

    /// Lets this API key act for a workspace. Only its hash is stored.
    pub async fn add_api_key(&self, workspace: WorkspaceId, key: &str) -> Result<(), IndexError> {
        sqlx::query("insert into api_key (id, workspace_id, hash) values ($1, $2, $3)")
            .bind(Uuid::now_v7())
            .bind(workspace.0)
            .bind(hash_api_key(key).as_slice())
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("add api key"))
    }

    /// The caller whose key has this hash.
    pub async fn caller(&self, hash: &[u8; 32]) -> Result<Option<Caller>, IndexError> {
        let row = sqlx::query(
            "select w.id, w.origins, w.plan from api_key k join workspace w on w.id = k.workspace_id
             where k.hash = $1 and k.revoked_at is null",
        )
        .bind(hash.as_slice())
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("look up api key"))?;
        row.map(|row| {
            let plan = Plan::parse(row.get("plan")).ok_or(IndexError::Row("workspace"))?;
            Ok(Caller { workspace: WorkspaceId(row.get("id")), origins: row.get("origins"), plan })
        })
        .transpose()
    }
}
