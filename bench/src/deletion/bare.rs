//! The bounds: the same work without anything around it. As many objects as are deleted go by DeleteObjects alone, 1,000 a request, one
//! after the other, as a worker sends them; as many rows as are tombstoned are changed by one statement in a table like `session`.

use anyhow::{Context, ensure};
use schemas::{ObjectId, SessionId, WorkspaceId};
use serde::Serialize;
use storage::objects::{DELETE_KEYS_MAX, Keeps};
use tokio::time::Instant;
use uuid::Uuid;

use super::{Bench, seed};
use crate::progress::Line;

/// Of the same machine, in the same run.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Bare {
    pub(super) deleted_objects_per_s: f64,
    pub(super) updated_rows_per_s: f64,
}

pub(super) async fn run(bench: &Bench<'_>) -> anyhow::Result<Bare> {
    let line = Line::new();
    line.show("bare deletions and updates");
    let deleted_objects_per_s = delete_objects(bench).await?;
    let updated_rows_per_s = update_rows(bench).await?;
    line.end();
    Ok(Bare { deleted_objects_per_s, updated_rows_per_s })
}

async fn delete_objects(bench: &Bench<'_>) -> anyhow::Result<f64> {
    // Beside the others and not among them, one below a prefix as theirs.
    let workspace = WorkspaceId(Uuid::now_v7());
    let key = |_| seed::object_key(workspace, SessionId(seed::random_id()), ObjectId(Uuid::now_v7()));
    let keys: Vec<_> = (0..bench.options.objects).map(key).collect();
    seed::put(bench, keys.clone(), &seed::noise(bench)).await?;
    let begun = Instant::now();
    for some in keys.chunks(DELETE_KEYS_MAX) {
        let left = bench.objects.erase(some, Keeps { versions: false, uploads: false }).await?;
        ensure!(left.is_empty(), "delete objects: {} are left", left.len());
    }
    Ok(keys.len() as f64 / begun.elapsed().as_secs_f64())
}

async fn update_rows(bench: &Bench<'_>) -> anyhow::Result<f64> {
    // With all indexes of the table, which is what a change costs.
    let made = ["drop table if exists bench_session", "create table bench_session (like session including all)"];
    for statement in made {
        sqlx::query(statement).execute(&bench.pool).await.context("make table for the bound")?;
    }
    let sessions = i64::from(bench.options.sessions);
    sqlx::query(
        "insert into bench_session (workspace_id, id, link_id, notice_version, consented_at, receipt_id, started_at,
             last_activity_at, partitions, end_seen, final)
         select '00000000-0000-0000-0000-000000000001', gen_random_uuid(), gen_random_uuid(), 'bench-1', now(), gen_random_uuid(),
             now() - make_interval(secs => n), now(), '{0}', true, true from generate_series(1::bigint, $1::bigint) n",
    )
    .bind(sessions)
    .execute(&bench.pool)
    .await
    .context("insert rows for the bound")?;
    let begun = Instant::now();
    let updated =
        sqlx::query("update bench_session set state = 1").execute(&bench.pool).await.context("update rows")?;
    let seconds = begun.elapsed().as_secs_f64();
    ensure!(updated.rows_affected() as i64 == sessions, "update rows: {} were", updated.rows_affected());
    sqlx::query("drop table bench_session").execute(&bench.pool).await.context("drop table of the bound")?;
    Ok(sessions as f64 / seconds)
}
