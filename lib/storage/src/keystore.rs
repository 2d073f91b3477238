//! The key store: wrapped data keys of sessions, on a connection of its own.
//!
//! A key is inserted if there is none, and then read back: of several writers one wins, and all go on with its key.
//! Shredding takes the key out of the row and leaves the row, so an insert that comes late changes nothing. What is shredded
//! is gone from the table; Postgres overwrites the old row's bytes in its own time (vacuum, recycled log), and what it has not
//! overwritten yet is still wrapped.

use schemas::{SessionKey, WorkspaceId};
use sealing::keyring::KeyVersion;
use sealing::wrapping::{WRAPPED_BYTES, Wrapped};
use service_kit::config::keys::KeyStoreConfig;
use sqlx::Row as _;
use sqlx::postgres::{PgPool, PgRow};

use crate::index::{IndexError, failed, key_arrays, session_key, signed, unsigned};
use crate::postgres;

/// The schema that all of it lies in.
const SCHEMA: &str = "keystore";

/// Connections to the key store.
#[derive(Debug, Clone)]
pub struct KeyStore {
    pool: PgPool,
    address: String,
}

/// A session's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyRow {
    /// Its key, wrapped.
    Wrapped(Wrapped),
    /// Its key is gone for ever.
    Shredded,
}

fn number(version: KeyVersion) -> Result<i32, IndexError> {
    i32::try_from(version.0).map_err(|_| IndexError::Row("session_key"))
}

fn key_row(row: &PgRow) -> Result<(SessionKey, KeyRow), IndexError> {
    let not_ours = || IndexError::Row("session_key");
    let (version, wrapped): (Option<i32>, Option<Vec<u8>>) = (row.get("version"), row.get("wrapped"));
    let key_row = match (version, wrapped) {
        (Some(version), Some(bytes)) => {
            let version = KeyVersion(u32::try_from(version).map_err(|_| not_ours())?);
            let bytes: [u8; WRAPPED_BYTES] = bytes.try_into().map_err(|_| not_ours())?;
            KeyRow::Wrapped(Wrapped { version, bytes })
        }
        (None, None) => KeyRow::Shredded,
        _ => return Err(not_ours()),
    };
    Ok((session_key(row), key_row))
}

impl KeyStore {
    /// A pool of connections; none is made yet.
    pub fn new(config: &KeyStoreConfig) -> Result<Self, IndexError> {
        let (pool, address) =
            postgres::pool(&config.url, "KEYSTORE_DATABASE_URL", config.connections_max, Some(SCHEMA), None)?;
        Ok(Self { pool, address })
    }

    /// Whether it answers and has its schema.
    pub async fn check(&self) -> Result<(), IndexError> {
        sqlx::query("select 1 from session_key limit 1")
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(|source| IndexError::Ask { address: self.address.clone(), source })
    }

    /// Brings its schema up to date. Safe when several do it at once.
    pub async fn migrate(&self) -> Result<(), IndexError> {
        sqlx::query(
            // Two that make it at once would collide in the catalogue, `if not exists` or not.
            "do $$ begin
                 perform pg_advisory_xact_lock(hashtext('clairvio keystore'));
                 create schema if not exists keystore;
             end $$",
        )
        .execute(&self.pool)
        .await
        .map_err(|source| IndexError::Ask { address: self.address.clone(), source })?;
        sqlx::migrate!("../../schemas/keystore")
            .run(&self.pool)
            .await
            .map_err(|source| IndexError::Migrate { address: self.address.clone(), source })
    }

    /// The rows of these sessions, as far as there are any.
    pub async fn rows(&self, keys: &[SessionKey]) -> Result<Vec<(SessionKey, KeyRow)>, IndexError> {
        let (workspaces, sessions) = key_arrays(keys.iter());
        let rows = sqlx::query(
            "select workspace_id, session_id, version, wrapped from session_key
             join unnest($1::uuid[], $2::uuid[]) as wanted (workspace_id, session_id) using (workspace_id, session_id)",
        )
        .bind(&workspaces)
        .bind(&sessions)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("read keys"))?;
        rows.iter().map(key_row).collect()
    }

    /// Inserts keys of sessions that have no row. Those that have one keep it, shredded ones too.
    pub async fn insert_absent(&self, keys: &[(SessionKey, Wrapped)]) -> Result<(), IndexError> {
        let (workspaces, sessions) = key_arrays(keys.iter().map(|(key, _)| key));
        let versions = keys.iter().map(|(_, wrapped)| number(wrapped.version)).collect::<Result<Vec<_>, _>>()?;
        sqlx::query(
            "insert into session_key (workspace_id, session_id, version, wrapped)
             select * from unnest($1::uuid[], $2::uuid[], $3::integer[], $4::bytea[]) as k (w, s, v, b) order by w, s
             on conflict do nothing",
        )
        .bind(&workspaces)
        .bind(&sessions)
        .bind(versions)
        .bind(keys.iter().map(|(_, wrapped)| wrapped.bytes.to_vec()).collect::<Vec<_>>())
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("insert keys"))
    }

    /// Destroys the keys of these sessions, for ever; also of those that never had one (R8). Can be repeated. What is no
    /// session has nothing destroyed: a deletion that names one must not take a workspace's references with it. Gives how many times
    /// keys were destroyed here by then.
    pub async fn shred(&self, keys: &[SessionKey]) -> Result<u64, IndexError> {
        let sessions: Vec<SessionKey> = keys.iter().filter(|key| key.is_session()).copied().collect();
        self.shred_any(&sessions).await
    }

    /// Destroys the key of a workspace's references, for ever: the workspace is gone.
    pub async fn shred_references(&self, workspace: WorkspaceId) -> Result<u64, IndexError> {
        self.shred_any(&[SessionKey::references(workspace)]).await
    }

    async fn shred_any(&self, keys: &[SessionKey]) -> Result<u64, IndexError> {
        let (workspaces, sessions) = key_arrays(keys.iter());
        let mut tx = self.pool.begin().await.map_err(failed("begin shredding"))?;
        sqlx::query(
            "insert into session_key (workspace_id, session_id, shredded_at)
             select w, s, now() from unnest($1::uuid[], $2::uuid[]) as k (w, s) order by w, s
             on conflict (workspace_id, session_id) do update set version = null, wrapped = null, shredded_at = now()
             where session_key.shredded_at is null",
        )
        .bind(&workspaces)
        .bind(&sessions)
        .execute(&mut *tx)
        .await
        .map_err(failed("shred keys"))?;
        let shreddings: i64 = sqlx::query_scalar("update shreddings set count = count + 1 returning count")
            .fetch_one(&mut *tx)
            .await
            .map_err(failed("count shreddings"))?;
        tx.commit().await.map_err(failed("commit shredding"))?;
        Ok(unsigned(shreddings))
    }

    /// Removes the rows of sessions whose keys are destroyed: nobody can ask for one any more. Keys that are there stay.
    pub async fn forget(&self, keys: &[SessionKey]) -> Result<(), IndexError> {
        let (workspaces, sessions) = key_arrays(keys.iter().filter(|key| key.is_session()));
        sqlx::query(
            "delete from session_key k using unnest($1::uuid[], $2::uuid[]) as gone (w, s)
             where k.workspace_id = gone.w and k.session_id = gone.s and k.wrapped is null",
        )
        .bind(&workspaces)
        .bind(&sessions)
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("remove rows of destroyed keys"))
    }

    /// How many times keys were destroyed here. It never gets less, unless the key store is one of a backup.
    pub async fn shreddings(&self) -> Result<u64, IndexError> {
        let shreddings: i64 = sqlx::query_scalar("select count from shreddings")
            .fetch_one(&self.pool)
            .await
            .map_err(failed("ask how many keys were shredded"))?;
        Ok(unsigned(shreddings))
    }

    /// Counts so many: what was destroyed before a backup of it was restored is destroyed again.
    pub async fn count_shreddings(&self, shreddings: u64) -> Result<(), IndexError> {
        sqlx::query("update shreddings set count = $1 where count < $1")
            .bind(signed(shreddings))
            .execute(&self.pool)
            .await
            .map(drop)
            .map_err(failed("count shreddings"))
    }

    /// Keys that are wrapped under another version than this, behind `after` in id order, `limit` at most.
    pub async fn wrapped_otherwise(
        &self,
        current: KeyVersion,
        after: Option<&SessionKey>,
        limit: i64,
    ) -> Result<Vec<(SessionKey, Wrapped)>, IndexError> {
        let rows = sqlx::query(
            "select workspace_id, session_id, version, wrapped from session_key
             where wrapped is not null and version <> $1
                 and ($2::uuid is null or (workspace_id, session_id) > ($2, $3))
             order by workspace_id, session_id limit $4",
        )
        .bind(number(current)?)
        .bind(after.map(|key| key.workspace.0))
        .bind(after.map(|key| key.session.0))
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list keys"))?;
        let wrapped = |row| match key_row(row)? {
            (key, KeyRow::Wrapped(wrapped)) => Ok((key, wrapped)),
            (_, KeyRow::Shredded) => Err(IndexError::Row("session_key")),
        };
        rows.iter().map(wrapped).collect()
    }

    /// Wraps keys anew, by compare-and-swap on what was read: a key that was shredded or wrapped meanwhile stays as it is.
    /// Gives how many were changed.
    pub async fn rewrap(&self, keys: &[(SessionKey, Wrapped, Wrapped)]) -> Result<u64, IndexError> {
        let (workspaces, sessions) = key_arrays(keys.iter().map(|(key, ..)| key));
        let versions = keys.iter().map(|(.., to)| number(to.version)).collect::<Result<Vec<_>, _>>()?;
        sqlx::query(
            "update session_key set version = k.v, wrapped = k.after
             from unnest($1::uuid[], $2::uuid[], $3::integer[], $4::bytea[], $5::bytea[]) as k (w, s, v, before, after)
             where workspace_id = k.w and session_id = k.s and wrapped = k.before",
        )
        .bind(&workspaces)
        .bind(&sessions)
        .bind(versions)
        .bind(keys.iter().map(|(_, from, _)| from.bytes.to_vec()).collect::<Vec<_>>())
        .bind(keys.iter().map(|(.., to)| to.bytes.to_vec()).collect::<Vec<_>>())
        .execute(&self.pool)
        .await
        .map(|done| done.rows_affected())
        .map_err(failed("wrap keys anew"))
    }

    /// How many keys each version of the keyring wraps.
    pub async fn versions(&self) -> Result<Vec<(KeyVersion, u64)>, IndexError> {
        let rows = sqlx::query(
            "select version, count(*) as keys from session_key where wrapped is not null group by version order by version",
        )
        .fetch_all(&self.pool)
        .await
        .map_err(failed("count keys"))?;
        rows.iter()
            .map(|row| {
                let version =
                    u32::try_from(row.get::<i32, _>("version")).map_err(|_| IndexError::Row("session_key"))?;
                Ok((KeyVersion(version), row.get::<i64, _>("keys").unsigned_abs()))
            })
            .collect()
    }

    /// The pool, for tests that look at rows.
    pub fn pool(&self) -> &PgPool {
        &self.pool
    }
}
