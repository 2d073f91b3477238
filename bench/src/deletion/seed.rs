//! What index and bucket are filled with. Rows are made by the index itself, as many at once as it takes; objects are put one by one.

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use schemas::paths::ObjectKey;
use schemas::{ObjectId, SessionId, SessionKey, WorkspaceId};
use storage::objects::sha256;
use uuid::Uuid;

use super::{BATCH, Bench, EXPIRED};
use crate::progress::Line;

/// Rows of one statement.
const CHUNK: u32 = 100_000;
/// Objects that are put at once.
const PUTS_AT_ONCE: usize = 16;
/// Sessions of the same workspace that are not past their window: so many have an object each, and so many have none.
pub(super) const KEPT_WITH_OBJECTS: u32 = 100;
pub(super) const KEPT: u32 = 1_000;
/// Of a workspace of its own, which is expired to see how long that takes.
const MEASURED: u32 = BATCH as u32 * EXPIRED as u32;

/// What stands in index and bucket.
pub(super) struct Seeded {
    /// The workspace whose sessions go, and some of whose stay.
    pub(super) workspace: WorkspaceId,
    /// The one whose sessions go first.
    pub(super) measured: WorkspaceId,
    /// Sessions of it that stay and have an object and a key.
    pub(super) kept: Vec<(SessionId, ObjectId)>,
    /// Rows of others, which stay.
    pub(super) rows: u32,
}

/// When sessions of a statement began: so many days ago, and later ones a little later each.
#[derive(Clone, Copy)]
struct Began {
    days_ago: f64,
    apart_s: f64,
}

impl Seeded {
    pub(super) async fn fill(bench: &Bench<'_>) -> anyhow::Result<Self> {
        let options = bench.options;
        ensure!(options.objects <= options.sessions, "fill: --objects are some of --sessions");
        // A plan by which nothing of it is due yet.
        let [workspace, measured] = [WorkspaceId(Uuid::now_v7()), WorkspaceId(Uuid::now_v7())];
        for id in [workspace, measured] {
            workspace_row(bench, id).await?;
        }
        let line = Line::new();
        drop_indexes(bench).await?;
        let bare = options.sessions - options.objects;
        insert(bench, &line, workspace, bare, Began { days_ago: 40.0, apart_s: 0.01 }).await?;
        insert(bench, &line, workspace, KEPT - KEPT_WITH_OBJECTS, Began { days_ago: 1.0, apart_s: 1.0 }).await?;
        insert(bench, &line, measured, MEASURED, Began { days_ago: 50.0, apart_s: 0.01 }).await?;
        others(bench, &line).await?;
        line.show("indexes");
        make_indexes(bench).await?;
        let body = body(options.object_bytes);
        // The oldest of all, so that they go first, while load goes through the edge.
        let old = Began { days_ago: 45.0, apart_s: 0.01 };
        with_objects(bench, &line, (workspace, options.objects), old, &body).await?;
        let young = Began { days_ago: 2.0, apart_s: 1.0 };
        let kept = with_objects(bench, &line, (workspace, KEPT_WITH_OBJECTS), young, &body).await?;
        line.show("vacuum");
        bench.vacuum().await?;
        line.end();
        Ok(Self { workspace, measured, kept, rows: options.rows })
    }

    /// Puts the small workspace's sessions past their window.
    pub(super) async fn make_some_due(&self, bench: &Bench<'_>) -> anyhow::Result<()> {
        shorten(bench, self.measured).await
    }

    /// Puts those that are to go past their window, all at once.
    pub(super) async fn make_due(&self, bench: &Bench<'_>) -> anyhow::Result<()> {
        shorten(bench, self.workspace).await
    }
}

async fn workspace_row(bench: &Bench<'_>, id: WorkspaceId) -> anyhow::Result<()> {
    bench.index.create_workspace(id, "bench", schemas::plan::Plan::Scale, &[]).await.context("make workspace")
}

/// Without the grace that a changed plan has: as if that was over.
async fn shorten(bench: &Bench<'_>, workspace: WorkspaceId) -> anyhow::Result<()> {
    sqlx::query("update workspace set plan = 'free' where id = $1")
        .bind(workspace.0)
        .execute(&bench.pool)
        .await
        .map(drop)
        .context("shorten plan")
}

/// Made anew they take a third of the time that keeping them up takes, row by row.
async fn drop_indexes(bench: &Bench<'_>) -> anyhow::Result<()> {
    sqlx::raw_sql(
        "create table bench_index (definition text not null);
         do $$ declare found record; begin
             for found in select indexname, indexdef from pg_indexes
                 where tablename = 'session' and indexname <> 'session_pkey' loop
                 insert into bench_index values (found.indexdef);
                 execute format('drop index %I', found.indexname);
             end loop;
         end $$",
    )
    .execute(&bench.pool)
    .await
    .map(drop)
    .context("drop indexes")
}

async fn make_indexes(bench: &Bench<'_>) -> anyhow::Result<()> {
    sqlx::raw_sql(
        "do $$ declare kept record; begin
             for kept in select definition from bench_index loop execute kept.definition; end loop;
         end $$;
         drop table bench_index",
    )
    .execute(&bench.pool)
    .await
    .map(drop)
    .context("make indexes")
}

/// Sessions without any bytes, with ids as they are: in no order.
async fn insert(
    bench: &Bench<'_>,
    line: &Line,
    workspace: WorkspaceId,
    count: u32,
    began: Began,
) -> anyhow::Result<()> {
    for first in (0..count).step_by(CHUNK as usize) {
        sqlx::query(
            "insert into session (workspace_id, id, link_id, notice_version, consented_at, receipt_id, started_at, last_activity_at,
                 partitions, end_seen, final)
             select $1, gen_random_uuid(), gen_random_uuid(), 'bench-1', at, gen_random_uuid(), at, at, '{0}', true, true
             from generate_series($2::bigint, $3::bigint) n, lateral (
                 select now() - make_interval(secs => $4 * 86400 - $5 * n)) began (at)",
        )
        .bind(workspace.0)
        .bind(i64::from(first))
        .bind(i64::from(count.min(first.saturating_add(CHUNK)) - 1))
        .bind(began.days_ago)
        .bind(began.apart_s)
        .execute(&bench.pool)
        .await
        .context("insert sessions")?;
        line.show(&format!("{first} of {count} sessions"));
    }
    Ok(())
}

/// Sessions of other workspaces, which are in their windows. Their ids are in the order of their times, or filling would take longer
/// than all else.
async fn others(bench: &Bench<'_>, line: &Line) -> anyhow::Result<()> {
    let options = bench.options;
    sqlx::query(
        "insert into workspace (id, name, plan)
         select lpad(to_hex(n), 32, '0')::uuid, 'bench', 'scale' from generate_series(1::bigint, $1::bigint) n",
    )
    .bind(i64::from(options.workspaces))
    .execute(&bench.pool)
    .await
    .context("insert workspaces")?;
    for first in (0..options.rows).step_by(CHUNK as usize) {
        sqlx::query(
            "insert into session (workspace_id, id, link_id, notice_version, consented_at, receipt_id, started_at, last_activity_at,
                 partitions, end_seen, final)
             select lpad(to_hex(1 + n % $3), 32, '0')::uuid, id, id, 'bench-1', at, id, at, at, '{0}', true, true
             from generate_series($1::bigint, $2::bigint) n, lateral (
                 select lpad(to_hex(n + 1), 32, '0')::uuid, now() - make_interval(secs => 300 * 86400.0 * (1 - n / $4::float8) + 86400)
             ) made (id, at)",
        )
        .bind(i64::from(first))
        .bind(i64::from(options.rows.min(first.saturating_add(CHUNK)) - 1))
        .bind(i64::from(options.workspaces))
        .bind(f64::from(options.rows))
        .execute(&bench.pool)
        .await
        .context("insert sessions that stay")?;
        line.show(&format!("{first} of {} sessions that stay", options.rows));
    }
    Ok(())
}

/// As a session's id is: in no order.
pub(super) fn random_id() -> Uuid {
    let hash = sha256(Uuid::now_v7().as_bytes());
    Uuid::new_v8(std::array::from_fn(|place| hash[place]))
}

/// What nobody opens: noise, as sealed bytes are.
fn body(bytes: u32) -> Bytes {
    // Xorshift; nothing hangs on how good it is.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let noise = (0..bytes).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    });
    noise.collect::<Vec<u8>>().into()
}

/// Sessions with a key and an object each: the row before the object, as everywhere.
async fn with_objects(
    bench: &Bench<'_>,
    line: &Line,
    (workspace, count): (WorkspaceId, u32),
    began: Began,
    body: &Bytes,
) -> anyhow::Result<Vec<(SessionId, ObjectId)>> {
    let mut all = Vec::new();
    while all.len() < count as usize {
        let some: Vec<(SessionId, ObjectId)> = (all.len()..(all.len() + BATCH as usize).min(count as usize))
            .map(|_| (SessionId(random_id()), ObjectId(Uuid::now_v7())))
            .collect();
        let sessions: Vec<Uuid> = some.iter().map(|(session, _)| session.0).collect();
        let objects: Vec<Uuid> = some.iter().map(|(_, object)| object.0).collect();
        sqlx::query(
            "with made as (
                 insert into session (workspace_id, id, link_id, notice_version, consented_at, receipt_id, started_at, last_activity_at,
                     partitions, events, bytes_stored, end_seen, final)
                 select $1, id, gen_random_uuid(), 'bench-1', at, gen_random_uuid(), at, at, '{0}', 1, $6, true, true
                 from unnest($2::uuid[]) with ordinality as s (id, n), lateral (
                     select now() - make_interval(secs => $4 * 86400 - $5 * n)) began (at)
             ), keyed as (
                 insert into keystore.session_key (workspace_id, session_id, version, wrapped)
                 select $1, id, 1, sha512(id::text::bytea) from unnest($2::uuid[]) as s (id)
             )
             insert into object (id, kind, state, workspace_id, session_id, bytes, sha256, footer_at, footer_len, live_at)
             select o, 1, 1, $1, s, $6, $7, 0, 1, now() from unnest($2::uuid[], $3::uuid[]) as u (s, o)",
        )
        .bind(workspace.0)
        .bind(&sessions)
        .bind(&objects)
        .bind(began.days_ago)
        .bind(began.apart_s)
        .bind(body.len() as i64)
        .bind(sha256(body).to_vec())
        .execute(&bench.pool)
        .await
        .context("insert sessions with objects")?;
        let keys = some.iter().map(|(session, id)| object_key(workspace, *session, *id)).collect();
        put(bench, keys, body).await?;
        all.extend(some);
        line.show(&format!("{} of {count} objects", all.len()));
    }
    Ok(all)
}

pub(super) fn object_key(workspace: WorkspaceId, session: SessionId, id: ObjectId) -> ObjectKey {
    ObjectKey::Session { key: SessionKey { workspace, session }, id }
}

/// Puts the same bytes under each of these keys.
pub(super) async fn put(bench: &Bench<'_>, keys: Vec<ObjectKey>, body: &Bytes) -> anyhow::Result<()> {
    let hash = sha256(body);
    let putting = keys.into_iter().map(|key| {
        let (objects, body) = (bench.objects.clone(), body.clone());
        async move { objects.put(&key, body, &hash).await }
    });
    stream::iter(putting).buffer_unordered(PUTS_AT_ONCE).try_for_each(|_| async { Ok(()) }).await.context("put objects")
}

pub(super) fn noise(bench: &Bench<'_>) -> Bytes {
    body(bench.options.object_bytes)
}
