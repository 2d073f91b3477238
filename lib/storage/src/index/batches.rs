//! What a batcher asks of the index: epochs, staging, publishing.

use schemas::record::Consent;
use schemas::shared_object::SessionFilter;
use schemas::{ObjectId, SessionKey, WorkspaceId};
use sealing::keyring::KeyVersion;
use sqlx::{PgConnection, Row as _};
use uuid::Uuid;

use super::{
    Index, IndexError, KIND_QUARANTINE, KIND_SHARED, Uploaded, failed, first_sight, key_arrays, moment, session_key,
    signed, unsigned,
};

/// A partition that is owned under an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// The epoch; greater than all before it.
    pub epoch: u64,
    /// Where to go on.
    pub next_offset: u64,
    /// The last record that was published, when one was: its offset and fingerprint.
    pub last: Option<(u64, u64)>,
}

/// The first row of a session.
#[derive(Debug, Clone)]
pub struct FirstSight {
    /// The session.
    pub key: SessionKey,
    /// What was agreed to.
    pub consent: Consent,
    /// Append time of its first record here, milliseconds since the epoch.
    pub appended_ms: u64,
}

/// What a flush stages.
#[derive(Debug)]
pub struct Staging<'a> {
    /// The object that is going to be put, unless nothing is stored.
    pub object: Option<ObjectId>,
    /// The topic.
    pub topic: &'a str,
    /// The partition.
    pub partition: i32,
    /// Offsets covered.
    pub offsets: (u64, u64),
    /// Sessions that this owner sees for the first time.
    pub first_seen: &'a [FirstSight],
    /// All sessions in the flush.
    pub sessions: &'a [SessionKey],
}

/// A sum of declines.
#[derive(Debug, Clone, Copy)]
pub struct Declines {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The hour, milliseconds since the epoch.
    pub hour_ms: u64,
    /// How many.
    pub count: u32,
}

/// What a flush publishes.
#[derive(Debug)]
pub struct Publishing<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The partition.
    pub partition: i32,
    /// The epoch under which it was read.
    pub epoch: u64,
    /// Offsets covered.
    pub offsets: (u64, u64),
    /// The last record that is published by then: its offset and fingerprint.
    pub last: Option<(u64, u64)>,
    /// Offsets that hold no record.
    pub gaps: &'a [(u64, u64)],
    /// The object, when there is one, and its sessions.
    pub object: Option<(&'a Uploaded, &'a SessionFilter)>,
    /// Sessions whose activity is noted, with the append time of their last record.
    pub activity: &'a [(SessionKey, u64)],
    /// Sums of declines.
    pub declines: &'a [Declines],
}

/// What staging found out, and what it cost.
#[derive(Debug)]
pub struct StageOutcome {
    /// Sessions of the flush that are deleted, those too that staging itself deleted.
    pub deleted: Vec<SessionKey>,
    /// Rows written: the object's, first rows of sessions, and what follows from them: counts of links and days, and
    /// deletions of those that must not be.
    pub rows: u64,
}

/// How publishing went.
#[derive(Debug)]
pub enum PublishOutcome {
    /// It committed, and wrote so many rows.
    Committed {
        /// The progress, the object, gaps, sums of declines (B12).
        rows: u64,
        /// Sessions whose activity was noted.
        activity_rows: u64,
    },
    /// The swap changed no row, or the staged row is gone: rolled back.
    Lost,
    /// It failed before the commit was sent.
    Failed(IndexError),
    /// The commit was sent and its answer is not known.
    Unknown(IndexError),
}

impl Index {
    /// Takes a new epoch of a partition (B1). Without a row the log is read from its beginning.
    pub async fn take_epoch(&self, topic: &str, partition: i32) -> Result<Ownership, IndexError> {
        let row = sqlx::query(
            "insert into partition_progress (topic, partition, next_offset, epoch) values ($1, $2, 0, 1)
             on conflict (topic, partition) do update set epoch = partition_progress.epoch + 1, updated_at = now()
             returning epoch, next_offset, last_offset, last_fingerprint",
        )
        .bind(topic)
        .bind(partition)
        .fetch_one(&self.pool)
        .await
        .map_err(failed("take epoch"))?;
        let last_offset: Option<i64> = row.get("last_offset");
        let fingerprint: Option<i64> = row.get("last_fingerprint");
        Ok(Ownership {
            epoch: unsigned(row.get("epoch")),
            next_offset: unsigned(row.get("next_offset")),
            last: last_offset.zip(fingerprint).map(|(offset, bits)| (unsigned(offset), bits.cast_unsigned())),
        })
    }

    /// Stages a flush in one transaction, and gives the sessions of it that are deleted.
    ///
    /// The object's row comes first: with it the transaction has its number, and a deletion that this transaction does
    /// not see yet waits for every older number before it lists what may hold the session's bytes.
    pub async fn stage(&self, staging: &Staging<'_>) -> Result<StageOutcome, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin staging"))?;
        if let Some(object) = staging.object {
            sqlx::query(
                "insert into object (id, kind, topic, partition, offset_first, offset_next)
                 values ($1, $2, $3, $4, $5, $6)",
            )
            .bind(object.0)
            .bind(KIND_SHARED)
            .bind(staging.topic)
            .bind(staging.partition)
            .bind(signed(staging.offsets.0))
            .bind(signed(staging.offsets.1))
            .execute(&mut *tx)
            .await
            .map_err(failed("stage object"))?;
        }
        let first_rows = first_sight::insert(&mut tx, staging.partition, staging.first_seen).await?;
        let deleted = deleted_among(&mut *tx, staging.sessions).await?;
        let told_rows = first_sight::tell_deleted_again(&mut tx, &deleted).await?;
        tx.commit().await.map_err(failed("commit staging"))?;
        Ok(StageOutcome { deleted, rows: first_rows + told_rows + u64::from(staging.object.is_some()) })
    }

    /// Publishes a flush in one transaction: the progress moves by compare-and-swap, the object becomes live. Rows written
    /// do not grow with the sessions in the flush, their throttled activity apart (B12).
    pub async fn publish(&self, publishing: &Publishing<'_>) -> PublishOutcome {
        let mut tx = match self.pool.begin().await {
            Ok(tx) => tx,
            Err(error) => return PublishOutcome::Failed(failed("begin publishing")(error)),
        };
        let (rows, activity_rows) = match publish_in(&mut tx, publishing).await {
            Ok(Some(rows)) => rows,
            Ok(None) => return PublishOutcome::Lost,
            Err(error) => return PublishOutcome::Failed(error),
        };
        match tx.commit().await {
            Ok(()) => PublishOutcome::Committed { rows, activity_rows },
            // A refusal by the server is an answer; anything else leaves it open.
            Err(error @ sqlx::Error::Database(_)) => PublishOutcome::Failed(failed("commit publishing")(error)),
            Err(error) => PublishOutcome::Unknown(failed("commit publishing")(error)),
        }
    }

    /// Whether the index covers all offsets below `next`. Locks the row: a transaction whose answer was lost may still
    /// be on its way, and this waits for its end.
    pub async fn is_published(&self, topic: &str, partition: i32, next: u64) -> Result<bool, IndexError> {
        let mut tx = self.pool.begin().await.map_err(failed("begin look-up"))?;
        let row =
            sqlx::query("select next_offset from partition_progress where topic = $1 and partition = $2 for update")
                .bind(topic)
                .bind(partition)
                .fetch_optional(&mut *tx)
                .await
                .map_err(failed("look up progress"))?;
        tx.rollback().await.map_err(failed("end look-up"))?;
        Ok(row.is_some_and(|row| unsigned(row.get("next_offset")) >= next))
    }
}

impl Index {
    /// How many shared and quarantine objects each version of the keyring opens, condemned ones too: their bytes are still
    /// there. Under `None` those that are staged and may be sealed right now, under any version.
    pub async fn sealed_under(&self) -> Result<Vec<(Option<KeyVersion>, u64)>, IndexError> {
        let rows = sqlx::query(
            "select key_version, count(*) as objects from object
             where kind in ($1, $2) and (key_version is not null or state = 0)
             group by key_version order by key_version",
        )
        .bind(KIND_SHARED)
        .bind(KIND_QUARANTINE)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("count objects by the keyring's version"))?;
        rows.iter()
            .map(|row| {
                let version = row.get::<Option<i32>, _>("key_version").map(u32::try_from).transpose();
                let version = version.map_err(|_| IndexError::Row("object"))?;
                Ok((version.map(KeyVersion), unsigned(row.get("objects"))))
            })
            .collect()
    }
}

/// Sessions among these that are deleted.
pub(super) async fn deleted_among(
    executor: impl sqlx::PgExecutor<'_>,
    keys: &[SessionKey],
) -> Result<Vec<SessionKey>, IndexError> {
    let (workspaces, sessions) = key_arrays(keys.iter());
    let rows = sqlx::query(
        "select s.workspace_id, s.id as session_id from session s
         join unnest($1::uuid[], $2::uuid[]) as wanted (workspace_id, id) using (workspace_id, id)
         where s.state > 0",
    )
    .bind(&workspaces)
    .bind(&sessions)
    .fetch_all(executor)
    .await
    .map_err(failed("ask for deleted sessions"))?;
    Ok(rows.iter().map(session_key).collect())
}

/// The rows written, those of sessions' activity apart; `None` when the swap changed nothing.
async fn publish_in(tx: &mut PgConnection, publishing: &Publishing<'_>) -> Result<Option<(u64, u64)>, IndexError> {
    let (first, next) = publishing.offsets;
    let swapped = sqlx::query(
        "update partition_progress set next_offset = $4, last_offset = $6, last_fingerprint = $7, updated_at = now()
         where topic = $1 and partition = $2 and next_offset = $3 and epoch = $5",
    )
    .bind(publishing.topic)
    .bind(publishing.partition)
    .bind(signed(first))
    .bind(signed(next))
    .bind(signed(publishing.epoch))
    .bind(publishing.last.map(|(offset, _)| signed(offset)))
    .bind(publishing.last.map(|(_, fingerprint)| fingerprint.cast_signed()))
    .execute(&mut *tx)
    .await
    .map_err(failed("advance progress"))?;
    if swapped.rows_affected() == 0 {
        return Ok(None);
    }
    let mut rows = swapped.rows_affected();
    let activity_rows = note_activity(tx, publishing.activity).await?;
    if let Some((object, filter)) = publishing.object
        && !make_live_from(tx, object, Some(filter.as_bytes()), &[]).await?
    {
        return Ok(None);
    }
    rows += u64::from(publishing.object.is_some()) + publishing.gaps.len() as u64;
    for (gap_first, gap_next) in publishing.gaps {
        sqlx::query(
            "insert into log_gap (topic, partition, offset_first, offset_next, reason)
             values ($1, $2, $3, $4, 'absent from the log')",
        )
        .bind(publishing.topic)
        .bind(publishing.partition)
        .bind(signed(*gap_first))
        .bind(signed(*gap_next))
        .execute(&mut *tx)
        .await
        .map_err(failed("insert gap"))?;
    }
    if !publishing.declines.is_empty() {
        let declines = publishing.declines;
        let counted = sqlx::query(
            "insert into decline_count (workspace_id, hour, count)
             select workspace_id, hour, sum(count)
             from unnest($1::uuid[], $2::timestamptz[], $3::bigint[]) as d (workspace_id, hour, count)
             group by 1, 2 order by 1, 2
             on conflict (workspace_id, hour) do update set count = decline_count.count + excluded.count",
        )
        .bind(declines.iter().map(|sum| sum.workspace.0).collect::<Vec<_>>())
        .bind(declines.iter().map(|sum| moment(sum.hour_ms)).collect::<Vec<_>>())
        .bind(declines.iter().map(|sum| i64::from(sum.count)).collect::<Vec<_>>())
        .execute(&mut *tx)
        .await
        .map_err(failed("count declines"))?;
        rows += counted.rows_affected();
    }
    Ok(Some((rows, activity_rows)))
}

async fn note_activity(tx: &mut PgConnection, activity: &[(SessionKey, u64)]) -> Result<u64, IndexError> {
    if activity.is_empty() {
        return Ok(0);
    }
    let (workspaces, sessions) = key_arrays(activity.iter().map(|(key, _)| key));
    sqlx::query(
        "with due as (
             select s.workspace_id, s.id, a.appended_at
             from session s
             join unnest($1::uuid[], $2::uuid[], $3::timestamptz[]) as a (workspace_id, id, appended_at)
                 using (workspace_id, id)
             where s.state = 0
             order by s.workspace_id, s.id for no key update of s
         )
         update session set last_activity_at = greatest(session.last_activity_at, due.appended_at)
         from due where session.workspace_id = due.workspace_id and session.id = due.id",
    )
    .bind(&workspaces)
    .bind(&sessions)
    .bind(activity.iter().map(|(_, at)| moment(*at)).collect::<Vec<_>>())
    .execute(&mut *tx)
    .await
    .map(|noted| noted.rows_affected())
    .map_err(failed("note activity"))
}

/// Turns a staged row live; `false` when it is staged no more. Its unreadable records may come from these objects, which are live
/// still: when they were set aside goes with them. The latest time of all counts, so that a list in this order, once begun, meets what is moved meanwhile.
pub(super) async fn make_live_from(
    tx: &mut PgConnection,
    object: &Uploaded,
    filter: Option<&[u8]>,
    sources: &[Uuid],
) -> Result<bool, IndexError> {
    let turned = sqlx::query(
        "update object set state = 1, bytes = $2, sha256 = $3, footer_at = $4, footer_len = $5, sessions_filter = $6,
             key_version = $7, live_at = now(), quarantined = $8,
             set_aside_at = case when $8 > 0 then coalesce(
                 (select max(coalesce(source.set_aside_at, source.live_at)) from object source
                     where source.id = any($9) and source.quarantined is distinct from 0),
                 now()) end
         where id = $1 and state = 0",
    )
    .bind(object.id.0)
    .bind(signed(object.bytes))
    .bind(object.sha256.as_slice())
    .bind(signed(object.footer.at))
    .bind(i32::try_from(object.footer.len).map_err(|_| IndexError::Row("object"))?)
    .bind(filter)
    .bind(object.key_version.map(|version| signed(u64::from(version.0)) as i32))
    .bind(i32::try_from(object.quarantined).map_err(|_| IndexError::Row("object"))?)
    .bind(sources)
    .execute(&mut *tx)
    .await
    .map_err(failed("turn object live"))?;
    Ok(turned.rows_affected() == 1)
}
