//! API keys: of each only a hash is kept, and its last characters.

use schemas::codec::hex;
use schemas::control::WorkspaceState;
use schemas::http::{KeyItem, Scope};
use schemas::limits::API_KEYS_MAX;
use schemas::plan::Plan;
use schemas::{ApiKeyId, WorkspaceId};
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use time::OffsetDateTime;
use uuid::Uuid;

use super::links::Before;
use super::workspaces::insert_workspace;
use super::{Index, IndexError, failed};
use crate::objects::sha256;

/// Characters of a key that are kept, so that people know it again: 24 of its 256 random bits.
const ENDING_CHARS: usize = 4;

/// The name of the key that a workspace begins with.
pub const FIRST_KEY: &str = "first";

/// The hash under which an API key is stored. A key has 256 random bits: there is nothing to guess, so a fast hash is
/// right.
pub fn hash_api_key(key: &str) -> [u8; 32] {
    sha256(key.as_bytes())
}

/// The same in hexadecimal, as control planes are told who is an operator.
pub fn operator_key_hash(key: &str) -> String {
    hex(&hash_api_key(key))
}

/// Whose key was shown, and what follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The key.
    pub key: ApiKeyId,
    /// What it may do.
    pub scopes: Vec<Scope>,
    /// Whether it was revoked.
    pub is_revoked: bool,
    /// Whether its last use was noted within the last minute.
    pub is_noted: bool,
    /// The workspace.
    pub workspace: WorkspaceId,
    /// Whether it may record.
    pub state: WorkspaceState,
    /// Its allowed origins.
    pub origins: Vec<String>,
    /// What it pays for.
    pub plan: Plan,
}

/// A key to be stored.
#[derive(Clone)]
pub struct NewKey<'a> {
    /// Its id.
    pub id: ApiKeyId,
    /// Itself; only its hash is stored.
    pub key: &'a str,
    /// By which people know it.
    pub name: &'a str,
    /// What it may do.
    pub scopes: &'a [Scope],
}

impl std::fmt::Debug for NewKey<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewKey").field("id", &self.id).finish_non_exhaustive()
    }
}

fn scopes(row: &PgRow) -> Result<Vec<Scope>, IndexError> {
    let words: Vec<String> = row.get("scopes");
    let scopes = words.iter().map(|word| Scope::parse(word));
    scopes.collect::<Option<_>>().ok_or(IndexError::Row("api_key"))
}

async fn insert_key(
    tx: &mut PgConnection,
    workspace: WorkspaceId,
    key: &NewKey<'_>,
) -> Result<OffsetDateTime, IndexError> {
    let ending: String = key.key.chars().skip(key.key.chars().count().saturating_sub(ENDING_CHARS)).collect();
    sqlx::query_scalar(
        "insert into api_key (id, workspace_id, hash, name, scopes, ending) values ($1, $2, $3, $4, $5, $6)
         returning created_at",
    )
    .bind(key.id.0)
    .bind(workspace.0)
    .bind(hash_api_key(key.key).as_slice())
    .bind(key.name)
    .bind(key.scopes.iter().map(|scope| scope.as_str()).collect::<Vec<_>>())
    .bind(ending)
    .fetch_one(&mut *tx)
    .await
    .map_err(failed("add api key"))
}

impl Index {
    /// Makes a workspace with its first API key, and tells edges of it: both or neither. Gives when it was made.
    pub async fn create_workspace_with_key(
        &self,
        id: WorkspaceId,
        name: &str,
        plan: Plan,
        origins: &[String],
        key: &NewKey<'_>,
    ) -> Result<OffsetDateTime, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin workspace"))?;
        let created_at = insert_workspace(&mut tx, id, name, plan, origins).await?;
        insert_key(&mut tx, id, key).await?;
        tx.commit().await.map_err(failed("commit workspace"))?;
        self.outbox.notify_one();
        Ok(created_at)
    }

    /// Lets this API key act for a workspace, with all scopes. Only its hash is stored.
    pub async fn add_api_key(&self, workspace: WorkspaceId, key: &str) -> Result<(), IndexError> {
        let key = NewKey { id: ApiKeyId(Uuid::now_v7()), key, name: FIRST_KEY, scopes: &Scope::ALL };
        self.create_key(workspace, &key).await?.map(drop).ok_or(IndexError::Full("api keys of the workspace"))
    }

    /// Stores a key of a workspace, and gives when; `None` when the workspace has as many as it may.
    pub async fn create_key(
        &self,
        workspace: WorkspaceId,
        key: &NewKey<'_>,
    ) -> Result<Option<OffsetDateTime>, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin api key"))?;
        // Two that make the last one at once: one after the other.
        sqlx::query("select from workspace where id = $1 for no key update")
            .bind(workspace.0)
            .execute(&mut *tx)
            .await
            .map_err(failed("lock workspace"))?;
        let keys: i64 =
            sqlx::query_scalar("select count(*) from api_key where workspace_id = $1 and revoked_at is null")
                .bind(workspace.0)
                .fetch_one(&mut *tx)
                .await
                .map_err(failed("count api keys"))?;
        if keys >= i64::from(API_KEYS_MAX) {
            return Ok(None);
        }
        let created_at = insert_key(&mut tx, workspace, key).await?;
        tx.commit().await.map_err(failed("commit api key"))?;
        Ok(Some(created_at))
    }

    /// A page of a workspace's keys, revoked ones too, newest first.
    pub async fn keys(
        &self,
        workspace: WorkspaceId,
        before: Option<Before>,
        limit: u32,
    ) -> Result<Vec<KeyItem>, IndexError> {
        let rows = sqlx::query(
            "select id, name, scopes, ending, created_at, last_used_at, revoked_at from api_key
             where workspace_id = $1 and ($2::timestamptz is null or (created_at, id) < ($2, $3))
             order by created_at desc, id desc limit $4",
        )
        .bind(workspace.0)
        .bind(before.map(|before| before.at))
        .bind(before.map(|before| before.id))
        .bind(i64::from(limit))
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list api keys"))?;
        let item = |row: &PgRow| {
            Ok(KeyItem {
                id: ApiKeyId(row.get("id")),
                name: row.get("name"),
                scopes: scopes(row)?,
                ending: row.get("ending"),
                created_at: row.get("created_at"),
                last_used_at: row.get("last_used_at"),
                revoked_at: row.get("revoked_at"),
            })
        };
        rows.iter().map(item).collect()
    }

    /// Revokes a key, for ever; `false` when the workspace has no such key.
    pub async fn revoke_key(&self, workspace: WorkspaceId, key: ApiKeyId) -> Result<bool, IndexError> {
        let revoked = sqlx::query(
            "update api_key set revoked_at = coalesce(revoked_at, now()) where workspace_id = $1 and id = $2",
        )
        .bind(workspace.0)
        .bind(key.0)
        .execute(&self.pool)
        .await
        .map_err(failed("revoke api key"))?;
        Ok(revoked.rows_affected() > 0)
    }

    /// The caller whose key has this hash.
    pub async fn caller(&self, hash: &[u8; 32]) -> Result<Option<Caller>, IndexError> {
        let row = sqlx::query(
            "select k.id as key_id, k.scopes, k.revoked_at is not null as is_revoked,
                 coalesce(k.last_used_at > now() - interval '1 minute', false) as is_noted,
                 w.id, w.origins, w.plan, w.state
             from api_key k join workspace w on w.id = k.workspace_id where k.hash = $1",
        )
        .bind(hash.as_slice())
        .fetch_optional(&self.pool)
        .await
        .map_err(failed("look up api key"))?;
        row.map(|row| {
            let not_ours = || IndexError::Row("workspace");
            Ok(Caller {
                key: ApiKeyId(row.get("key_id")),
                scopes: scopes(&row)?,
                is_revoked: row.get("is_revoked"),
                is_noted: row.get("is_noted"),
                workspace: WorkspaceId(row.get("id")),
                state: WorkspaceState::parse(row.get("state")).ok_or_else(not_ours)?,
                origins: row.get("origins"),
                plan: Plan::parse(row.get("plan")).ok_or_else(not_ours)?,
            })
        })
        .transpose()
    }

    /// Notes that a key was used, once a minute at most.
    pub async fn note_use(&self, key: ApiKeyId) -> Result<(), IndexError> {
        sqlx::query(
            "update api_key set last_used_at = now()
             where id = $1 and (last_used_at is null or last_used_at <= now() - interval '1 minute')",
        )
        .bind(key.0)
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("note use of api key"))
    }
}
