//! What an operator asks of the index about records in quarantine.

use schemas::{ObjectId, SessionKey, WorkspaceId};
use sqlx::Row as _;
use sqlx::postgres::PgRow;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{Index, IndexError, LiveObject, failed, live_object, object_columns, signed, unsigned};
use crate::quarantine::RecordId;

/// A live object that holds unreadable records or chunks, or may hold some.
#[derive(Debug, Clone)]
pub struct QuarantineObject {
    /// The object.
    pub object: LiveObject,
    /// The topic that its records came from.
    pub topic: String,
    /// When the last of its records was set aside.
    pub set_aside_at: OffsetDateTime,
}

impl QuarantineObject {
    /// Where a list goes on behind this object.
    pub fn cursor(&self) -> Cursor {
        Cursor { set_aside_at: self.set_aside_at, object: self.object.key.id() }
    }
}

/// The last object of a page; the next page goes on behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor {
    set_aside_at: OffsetDateTime,
    object: ObjectId,
}

/// The condition of the index `object_quarantined`.
macro_rules! select_objects {
    () => {
        concat!(
            "select ",
            object_columns!(),
            ", object.topic, coalesce(set_aside_at, live_at) as set_aside_at from object
             where kind <> 1 and state = 1 and (kind = 2 or quarantined is null or quarantined > 0)"
        )
    };
}

fn quarantine_object(row: &PgRow) -> Result<QuarantineObject, IndexError> {
    let (topic, set_aside_at): (Option<String>, Option<OffsetDateTime>) = (row.get("topic"), row.get("set_aside_at"));
    let (Some(topic), Some(set_aside_at)) = (topic, set_aside_at) else { return Err(IndexError::Row("object")) };
    Ok(QuarantineObject { object: live_object(row)?, topic, set_aside_at })
}

impl Index {
    /// Live objects with unreadable records of which some were set aside at `since` or later, `limit` at most: the oldest
    /// first, behind `after`.
    ///
    /// Records that a compactor moves between two pages are met on a later one, perhaps for the second time: the object
    /// that they are moved to stands behind all those that they come from.
    pub async fn quarantine_objects(
        &self,
        since: Option<OffsetDateTime>,
        after: Option<&Cursor>,
        limit: i64,
    ) -> Result<Vec<QuarantineObject>, IndexError> {
        let rows = sqlx::query(concat!(
            select_objects!(),
            " and ($1::timestamptz is null or coalesce(set_aside_at, live_at) >= $1)
              and ($2::timestamptz is null or (coalesce(set_aside_at, live_at), id) > ($2, $3))
              order by coalesce(set_aside_at, live_at), id limit $4"
        ))
        .bind(since)
        .bind(after.map(|cursor| cursor.set_aside_at))
        .bind(after.map(|cursor| cursor.object.0))
        .bind(limit)
        .fetch_all(&self.pool)
        .await
        .map_err(failed("list objects with quarantined records"))?;
        rows.iter().map(quarantine_object).collect()
    }

    /// Live objects that may hold this record, unread.
    pub async fn quarantine_objects_of(&self, record: &RecordId) -> Result<Vec<QuarantineObject>, IndexError> {
        let rows = sqlx::query(concat!(
            select_objects!(),
            " and topic = $1 and partition = $2 and (kind = 2 or (offset_first <= $3 and offset_next > $3)) order by id"
        ))
        .bind(&record.topic)
        .bind(record.partition)
        .bind(signed(record.offset))
        .fetch_all(&self.pool)
        .await
        .map_err(failed("find objects with a quarantined record"))?;
        rows.iter().map(quarantine_object).collect()
    }

    /// Which of these records were replayed, and when.
    pub async fn replayed_among(&self, records: &[RecordId]) -> Result<Vec<(RecordId, OffsetDateTime)>, IndexError> {
        let rows = sqlx::query(
            "select topic, partition, record_offset, replayed_at from quarantine_replayed
             join (select distinct * from unnest($1::text[], $2::integer[], $3::bigint[])
                 as w (topic, partition, record_offset)) wanted using (topic, partition, record_offset)",
        )
        .bind(records.iter().map(|record| record.topic.as_str()).collect::<Vec<_>>())
        .bind(records.iter().map(|record| record.partition).collect::<Vec<_>>())
        .bind(records.iter().map(|record| signed(record.offset)).collect::<Vec<_>>())
        .fetch_all(&self.pool)
        .await
        .map_err(failed("ask for replayed records"))?;
        let record = |row: &PgRow| RecordId {
            topic: row.get("topic"),
            partition: row.get("partition"),
            offset: unsigned(row.get("record_offset")),
        };
        Ok(rows.iter().map(|row| (record(row), row.get("replayed_at"))).collect())
    }

    /// Notes that a record was replayed; the last time counts.
    pub async fn mark_replayed(&self, record: &RecordId) -> Result<(), IndexError> {
        sqlx::query(
            "insert into quarantine_replayed (topic, partition, record_offset) values ($1, $2, $3)
             on conflict (topic, partition, record_offset) do update set replayed_at = excluded.replayed_at",
        )
        .bind(&record.topic)
        .bind(record.partition)
        .bind(signed(record.offset))
        .execute(&self.pool)
        .await
        .map(drop)
        .map_err(failed("note replayed record"))
    }

    /// Whether what was agreed to at this time is past the window of the workspace's plan by the index's clock (P7).
    pub async fn is_past_window(
        &self,
        workspace: WorkspaceId,
        consented_at: OffsetDateTime,
    ) -> Result<bool, IndexError> {
        sqlx::query_scalar(
            "select exists (select from workspace w where id = $1
                 and clairvio.expires_at(w, $2::timestamptz) < clairvio.clock())",
        )
        .bind::<Uuid>(workspace.0)
        .bind(consented_at)
        .fetch_one(&self.pool)
        .await
        .map_err(failed("ask for the plan's window"))
    }

    /// Whether a session of such a consent may have been deleted so long ago that its tombstone is gone: it has no row, and tombstones stay for
    /// `kept` after it at least.
    pub async fn may_be_forgotten(
        &self,
        key: &SessionKey,
        consented_at: OffsetDateTime,
        kept: Duration,
    ) -> Result<bool, IndexError> {
        sqlx::query_scalar(
            "select $3::timestamptz < clairvio.clock() - make_interval(secs => $4)
                 and not exists (select from session where workspace_id = $1 and id = $2)",
        )
        .bind::<Uuid>(key.workspace.0)
        .bind::<Uuid>(key.session.0)
        .bind(consented_at)
        .bind(kept.as_seconds_f64())
        .fetch_one(&self.pool)
        .await
        .map_err(failed("ask for a session's tombstone"))
    }
}
