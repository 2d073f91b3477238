//! Lists of sessions: complete, in order, at a bounded cost per page, and of nothing that cannot be read.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use devstack::DeploymentOptions;
use schemas::deletion::Cause;
use schemas::http::{SessionItem, SessionState};
use schemas::limits::LIST_ROWS_MAX;
use schemas::plan::Plan;
use schemas::{SessionId, SessionKey, WorkspaceId};
use serde_json::Value;
use service_kit::config::postgres::PostgresConfig;
use storage::index::Index;
use storage::index::links::{Before, ReferenceFilter};
use storage::index::listing::{Filter, Listed, Wanted};
use time::OffsetDateTime;
use time::macros::datetime;
use uuid::Uuid;
use virtual_sdk::{EventsFormat, Seen, SessionQuery, until};

use crate::harness::{LATER, SOON, System, run};
use crate::load;
use crate::references::database_of_release;

/// Sessions that the release before left.
const SESSIONS: i64 = 100_000;
/// Links of each workspace.
const LINKS: i64 = 2_000;
const BEGINNING: OffsetDateTime = datetime!(2026-01-01 00:00 UTC);
const SILENCE: Duration = Duration::from_secs(1_800);
/// A statement of a page may look at so many rows of tables and indexes: those that are looked through, in three steps of its plan.
const ROWS_PER_STATEMENT_MAX: u64 = 3 * LIST_ROWS_MAX as u64;
/// And touch so many buffers: some for each row, since a row may lie anywhere.
const BUFFERS_PER_STATEMENT_MAX: u64 = 6 * LIST_ROWS_MAX as u64;

/// The sessions with these numbers, by the rules that [`Row::of`] has too.
const INSERT: &str = "
    insert into session (workspace_id, id, state, link_id, notice_version, consented_at, receipt_id, started_at,
        last_activity_at, errors, ts_min, ts_max, end_seen, final, urls)
    select lpad((case n % 10 when 8 then 2 when 9 then 3 else 1 end)::text, 32, '0')::uuid,
        (lpad(to_hex(n * 2654435761 % 4294967296), 8, '0') || lpad(to_hex(n), 24, '0'))::uuid,
        case when n % 101 = 0 then 1 else 0 end,
        lpad((n / 40 % 2000)::text, 32, '0')::uuid, '1', '2026-01-01', gen_random_uuid(),
        timestamptz '2026-01-01 00:00Z' + make_interval(secs => (case when n <= 100000 then n else n * 7919 % 100000 end) / 3 * 21),
        case when n > 97000 and n % 2 = 0 then timestamptz '2100-01-01' else timestamptz '2026-01-01' end,
        case when n % 97 = 5 then n % 7 + 1 else 0 end,
        case when n % 11 = 0 then null else -5 end,
        case when n % 11 = 0 then null when n % 1000 = 17 then 5000000 when n % 50 = 3 then 700000 + n
            when n % 4 = 0 then 61000 else n % 60 * 1000 end,
        n % 5 <> 0, n <= 97000 and n % 2000 <> 1,
        case when n % 101 = 0 or n % 13 = 0 then '{}' else
            case when n % 3 <> 0 then '{https://a.example/}'::text[] else '{}' end
            || array['https://a.example/p/' || n % 200, 'https://a.example/päge/' || n % 5000]
            || case when n % 4001 = 11 then '{https://a.example/rare}'::text[] else '{}' end
        end
    from generate_series($1, $2) as n";

/// A session that was inserted.
#[derive(Debug, Clone)]
struct Row {
    workspace: u128,
    id: Uuid,
    started_at: OffsetDateTime,
    is_live: bool,
    reference: String,
    is_over: bool,
    errors: i64,
    duration_ms: Option<i64>,
    urls: Vec<String>,
}

/// Whom a link is for: one half has the same reference, some beside each other have another, the others share theirs with few.
fn reference_of(link: i64) -> String {
    match link - LINKS / 2 {
        ..0 => "all".to_owned(),
        0..200 => "some".to_owned(),
        _ => format!("few-{}", link % 70),
    }
}

fn hash_of(reference: &str) -> [u8; 32] {
    storage::objects::sha256(reference.as_bytes())
}

impl Row {
    fn of(n: i64) -> Self {
        let slot = if n <= SESSIONS { n } else { n * 7919 % SESSIONS };
        let is_live = n % 101 != 0;
        let ends_at = match n {
            _ if n % 11 == 0 => None,
            _ if n % 1000 == 17 => Some(5_000_000),
            _ if n % 50 == 3 => Some(700_000 + n),
            _ if n % 4 == 0 => Some(61_000),
            _ => Some(n % 60 * 1000),
        };
        let mut urls = Vec::new();
        if is_live && n % 13 != 0 {
            if n % 3 != 0 {
                urls.push("https://a.example/".to_owned());
            }
            urls.push(format!("https://a.example/p/{}", n % 200));
            urls.push(format!("https://a.example/päge/{}", n % 5000));
            if n % 4001 == 11 {
                urls.push("https://a.example/rare".to_owned());
            }
        }
        let (is_recent, is_final) = (n > 97_000 && n % 2 == 0, n <= 97_000 && n % 2000 != 1);
        Self {
            workspace: match n % 10 {
                8 => 2,
                9 => 3,
                _ => 1,
            },
            id: Uuid::from_u128(((n as u128 * 2_654_435_761 % 4_294_967_296) << 96) | n as u128),
            started_at: BEGINNING + time::Duration::seconds(slot / 3 * 21),
            is_live,
            reference: reference_of(n / 40 % LINKS),
            is_over: n % 5 != 0 || is_final || !is_recent,
            errors: if n % 97 == 5 { n % 7 + 1 } else { 0 },
            duration_ms: ends_at.map(|at| at + 5),
            urls,
        }
    }

    fn matches(&self, filter: &Filter) -> bool {
        let state = if self.is_over { SessionState::Ended } else { SessionState::Recording };
        self.is_live
            && filter.reference.as_ref().is_none_or(|reference| reference.clear == self.reference)
            && filter.from.is_none_or(|from| self.started_at >= from)
            && filter.to.is_none_or(|to| self.started_at < to)
            && filter.state.is_none_or(|wanted| wanted == state)
            && filter.has_errors.is_none_or(|has_errors| has_errors == (self.errors > 0))
            && filter.min_duration_ms.is_none_or(|least| self.duration_ms.is_some_and(|duration| duration >= least))
            && filter.url.as_ref().is_none_or(|url| self.urls.iter().any(|page| page.starts_with(url)))
    }

    fn place(&self) -> Place {
        Reverse((self.started_at, self.id))
    }
}

/// Newest first.
type Place = Reverse<(OffsetDateTime, Uuid)>;

/// What is in the index, by the rules.
struct Model {
    index: Index,
    rows: BTreeMap<Place, Row>,
    inserted: i64,
}

impl Model {
    async fn insert(&mut self, count: i64) -> Result<Vec<Row>> {
        let (first, last) = (self.inserted + 1, self.inserted + count);
        sqlx::query(INSERT).bind(first).bind(last).execute(self.index.pool()).await.context("insert sessions")?;
        self.inserted = last;
        let rows: Vec<Row> = (first..=last).map(Row::of).collect();
        self.rows.extend(rows.iter().map(|row| (row.place(), row.clone())));
        Ok(rows)
    }

    async fn delete(&mut self, workspace: u128, place: Place) -> Result<()> {
        let Reverse((_, id)) = place;
        let key = SessionKey { workspace: WorkspaceId(Uuid::from_u128(workspace)), session: SessionId(id) };
        self.index.delete_session(&key, Cause::ByHand).await?;
        self.rows.remove(&place);
        Ok(())
    }
}

/// Workspaces and links, and the sessions of a release that had no lists of their own for anything, brought up to date.
async fn fill(system: &System<'_>) -> Result<Model> {
    let url = database_of_release(system, "listing", 7).await?;
    let index = Index::new(&PostgresConfig { url, connections_max: 4 })?;
    let mut model = Model { index, rows: BTreeMap::new(), inserted: 0 };
    let pool = model.index.pool();
    sqlx::query("insert into workspace (id, name, plan) select lpad(n::text, 32, '0')::uuid, 'w', 'scale' from generate_series(1, 3) n")
        .execute(pool)
        .await?;
    let numbers: Vec<i64> = (0..LINKS).collect();
    let hashes: Vec<Vec<u8>> = numbers.iter().map(|link| hash_of(&reference_of(*link)).to_vec()).collect();
    sqlx::query(
        "insert into link (workspace_id, id, reference_sealed, reference_hash, expires_at, max_sessions)
         select lpad(w::text, 32, '0')::uuid, lpad(n::text, 32, '0')::uuid, '\\x00', hash, now(), 1000
         from generate_series(1, 3) w, unnest($1::bigint[], $2::bytea[]) as l (n, hash)",
    )
    .bind(&numbers)
    .bind(&hashes)
    .execute(pool)
    .await?;
    // Statistics come when the test says so.
    for table in ["session", "link"] {
        let statement = format!("alter table {table} set (autovacuum_enabled = false)");
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(pool).await?;
    }
    for _ in 0..6 {
        model.insert(SESSIONS / 6).await?;
    }
    sqlx::query(
        "update link set sessions = counted.sessions
         from (select workspace_id, link_id, count(*) as sessions from session group by 1, 2) counted
         where link.workspace_id = counted.workspace_id and link.id = counted.link_id",
    )
    .execute(model.index.pool())
    .await?;
    model.index.migrate().await.context("bring it up to date")?;
    sqlx::query("alter table session_page set (autovacuum_enabled = false)").execute(model.index.pool()).await?;
    Ok(model)
}

fn reference(reference: &str) -> Option<ReferenceFilter> {
    Some(ReferenceFilter { hash: Some(hash_of(reference)), clear: reference.to_owned() })
}

fn url(path: &str) -> Option<String> {
    Some(format!("https://a.example{path}"))
}

/// Each filter by itself, and together: a name, what is asked for, whose sessions, and how many on a page.
fn asked() -> Vec<(&'static str, Filter, u128, u32)> {
    use SessionState::{Ended, Recording};
    let day = |days: i64| Some(BEGINNING + time::Duration::days(days));
    let none = Filter::default;
    vec![
        ("all", none(), 3, 200),
        ("a day", Filter { from: day(3), to: day(4), ..none() }, 1, 200),
        ("recording", Filter { state: Some(Recording), ..none() }, 1, 50),
        ("ended", Filter { state: Some(Ended), ..none() }, 2, 200),
        ("errors", Filter { has_errors: Some(true), ..none() }, 1, 200),
        ("no errors", Filter { has_errors: Some(false), ..none() }, 3, 200),
        ("any duration", Filter { min_duration_ms: Some(0), ..none() }, 3, 200),
        ("40 s", Filter { min_duration_ms: Some(40_000), ..none() }, 2, 200),
        ("61 s", Filter { min_duration_ms: Some(61_005), ..none() }, 2, 200),
        ("10 min", Filter { min_duration_ms: Some(600_000), ..none() }, 1, 200),
        ("15 min", Filter { min_duration_ms: Some(900_000), ..none() }, 1, 200),
        ("1 h", Filter { min_duration_ms: Some(3_600_000), ..none() }, 1, 20),
        ("too long", Filter { min_duration_ms: Some(5_000_006), ..none() }, 1, 200),
        ("everywhere", Filter { url: url("/"), ..none() }, 3, 200),
        ("many pages", Filter { url: url("/p/1"), ..none() }, 2, 200),
        ("one page", Filter { url: url("/p/17"), ..none() }, 1, 200),
        ("a rare page", Filter { url: url("/rare"), ..none() }, 1, 7),
        ("beyond ASCII", Filter { url: url("/päge/499"), ..none() }, 1, 20),
        ("no page", Filter { url: url("/q"), ..none() }, 1, 200),
        ("few links", Filter { reference: reference("few-5"), ..none() }, 1, 7),
        ("many links", Filter { reference: reference("all"), ..none() }, 2, 200),
        ("links of some days", Filter { reference: reference("some"), ..none() }, 1, 200),
        ("no link", Filter { reference: reference("none"), ..none() }, 1, 200),
        ("no errors among few links", Filter { reference: reference("few-5"), has_errors: Some(true), ..none() }, 1, 1),
        ("many links, a rare page", Filter { reference: reference("all"), url: url("/rare"), ..none() }, 1, 5),
        (
            "many links, many pages, long, without errors",
            Filter {
                reference: reference("all"),
                url: url("/p/1"),
                min_duration_ms: Some(600_000),
                has_errors: Some(false),
                ..none()
            },
            1,
            50,
        ),
        ("recording, errors", Filter { state: Some(Recording), has_errors: Some(true), ..none() }, 1, 3),
        ("ended, hours", Filter { state: Some(Ended), min_duration_ms: Some(4_000_000), ..none() }, 1, 50),
        (
            "errors, everywhere, in some days",
            Filter { has_errors: Some(true), url: url("/"), from: day(2), to: day(6), ..none() },
            1,
            50,
        ),
        ("errors, minutes", Filter { has_errors: Some(true), min_duration_ms: Some(60_000), ..none() }, 1, 50),
        (
            // No list of its own has these few.
            "too long for its errors",
            Filter { has_errors: Some(false), min_duration_ms: Some(1_000_005), state: Some(Recording), ..none() },
            1,
            50,
        ),
    ]
}

fn wanted(filter: &Filter, workspace: u128, limit: u32, before: Option<Before>) -> Wanted<'_> {
    Wanted { workspace: WorkspaceId(Uuid::from_u128(workspace)), silence: SILENCE, filter, before, limit }
}

fn place_of(before: Before) -> Place {
    Reverse((before.at, before.id))
}

fn beyond(places: &BTreeSet<Place>, place: Option<Place>) -> impl Iterator<Item = &Place> {
    places.range((place.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded))
}

/// Walks a list from its newest page to its end while sessions come and go, and holds each page against the rules; gives its pages.
async fn walk(model: &mut Model, name: &str, filter: &Filter, workspace: u128, limit: u32) -> Result<usize> {
    let is_wanted = |row: &Row| row.workspace == workspace && row.matches(filter);
    let mut expect: BTreeSet<Place> = model.rows.values().filter(|row| is_wanted(row)).map(Row::place).collect();
    let (mut before, mut pages, mut seen) = (None, 0, BTreeSet::new());
    loop {
        let Listed { rows, next } = model.index.sessions(wanted(filter, workspace, limit, before)).await?;
        pages += 1;
        let found: Vec<Place> = rows.iter().map(|row| Reverse((row.started_at, row.key.session.0))).collect();
        let behind = before.map(place_of);
        ensure!(
            found.iter().eq(beyond(&expect, behind).take(found.len())),
            "{name}, page {pages}: these are not the next ones: {found:?}"
        );
        ensure!(found.iter().all(|place| seen.insert(*place)), "{name}, page {pages}: a session comes twice");
        let last = found.last().copied().or(behind);
        let Some(next) = next else {
            let left = beyond(&expect, last).count();
            ensure!(left == 0, "{name}: it ended, and {left} are left");
            return Ok(pages);
        };
        let passed = beyond(&expect, last).next().is_some_and(|place| *place <= place_of(next));
        ensure!(!passed, "{name}, page {pages}: what matches was passed over");
        ensure!(behind.is_none_or(|behind| place_of(next) > behind), "{name}, page {pages}: it does not go on");
        ensure!(found.len() <= limit as usize, "{name}, page {pages}: it has {} items", found.len());
        before = Some(next);
        if pages % 8 == 1 {
            expect.extend(model.insert(20).await?.iter().filter(|row| is_wanted(row)).map(Row::place));
            // One that was shown, and the next that would have been.
            let coming = beyond(&expect, Some(place_of(next))).next().copied();
            for place in found.first().copied().into_iter().chain(coming) {
                model.delete(workspace, place).await?;
                expect.remove(&place);
            }
        }
    }
}

/// What a plan touched: rows of tables and indexes, buffers, and what it read as a whole.
#[derive(Default)]
struct Touched {
    rows: u64,
    buffers: u64,
    whole: Vec<String>,
}

impl Touched {
    fn by(plans: &Value) -> Self {
        let mut touched = Self::default();
        let plan = &plans[0]["Plan"];
        touched.buffers = number(plan, "Shared Hit Blocks") + number(plan, "Shared Read Blocks");
        touched.add(plan);
        touched
    }

    fn add(&mut self, node: &Value) {
        if let Some(table) = node["Relation Name"].as_str() {
            // Of each loop, on average; one that finds nothing has looked all the same.
            let of_loop = ["Actual Rows", "Rows Removed by Filter", "Rows Removed by Index Recheck"];
            let of_loop: f64 = of_loop.iter().filter_map(|name| node[name].as_f64()).sum();
            self.rows += (of_loop.max(1.0) * node["Actual Loops"].as_f64().unwrap_or_default()).ceil() as u64;
            if node["Node Type"].as_str().is_some_and(|kind| kind.contains("Seq Scan")) {
                self.whole.push(table.to_owned());
            }
        }
        for child in node["Plans"].as_array().into_iter().flatten() {
            self.add(child);
        }
    }
}

fn number(node: &Value, name: &str) -> u64 {
    node[name].as_f64().unwrap_or_default() as u64
}

/// Pages of every list, the first one and one from the middle, touch no more than is allowed.
async fn bounded(model: &Model, statistics: &str) -> Result<()> {
    let (mut rows_max, mut buffers_max) = (0, 0);
    for (name, filter, workspace, limit) in asked() {
        for days in [None, Some(4)] {
            let at = days.map(|days| BEGINNING + time::Duration::days(days));
            let before = at.map(|at| Before { at, id: Uuid::max() });
            let (_, plans) = model.index.sessions_with_plans(wanted(&filter, workspace, limit, before)).await?;
            for plan in &plans {
                let touched = Touched::by(plan);
                let is_bounded = touched.rows <= ROWS_PER_STATEMENT_MAX && touched.buffers <= BUFFERS_PER_STATEMENT_MAX;
                ensure!(
                    is_bounded && touched.whole.is_empty(),
                    "{name}, {statistics} statistics: {} rows, {} buffers, as a whole {:?}: {plan:#}",
                    touched.rows,
                    touched.buffers,
                    touched.whole
                );
                rows_max = rows_max.max(touched.rows);
                buffers_max = buffers_max.max(touched.buffers);
            }
        }
    }
    eprintln!(
        "listing, {statistics} statistics: a statement touches {rows_max} rows and {buffers_max} buffers at most"
    );
    Ok(())
}

/// Goal: whatever is asked for, lists are complete and in order, no session twice or left out, while others come and go; and no page
/// costs more than its bound, with statistics or without. Method: 100,000 sessions that a release without these lists left are
/// brought up to date; every filter and many together are walked from end to end and held against the rules by which the
/// sessions were made; what pages touch is what Postgres says that it did.
#[test]
fn lists_are_complete_and_every_page_is_bounded() -> Result<()> {
    run(DeploymentOptions::named("listing"), &[], async |system| {
        let begun = std::time::Instant::now();
        let mut model = fill(system).await?;
        eprintln!("listing: filled and brought up to date in {:.1} s", begun.elapsed().as_secs_f32());
        bounded(&model, "the migration's").await?;
        // As where none were ever made.
        for catalog in ["pg_statistic where starelid", "pg_statistic_ext_data where stxoid"] {
            let statement = format!("delete from {catalog} > 16383");
            sqlx::query(sqlx::AssertSqlSafe(statement)).execute(model.index.pool()).await?;
        }
        bounded(&model, "no").await?;
        sqlx::query("analyze").execute(model.index.pool()).await?;
        bounded(&model, "new").await?;
        let mut short = 0;
        for (name, filter, workspace, limit) in asked() {
            let pages = walk(&mut model, name, &filter, workspace, limit).await?;
            let matching = model.rows.values().filter(|row| row.workspace == workspace && row.matches(&filter)).count();
            short += usize::from(pages > matching.div_ceil(limit as usize) + 1);
            ensure!(matching > 0 || name.starts_with("no ") || name.starts_with("too "), "{name}: nothing matches");
        }
        ensure!(short > 0, "no list had pages that came short");
        pages_follow(&model).await?;
        eprintln!("listing: {:.1} s", begun.elapsed().as_secs_f32());
        Ok(())
    })
}

/// The lists by pages have what the sessions have: after the migration, inserts, deletions, and changes as merges make them.
async fn pages_follow(model: &Model) -> Result<()> {
    let pool = model.index.pool();
    for change in [
        "select",
        "update session set urls = urls || '{https://a.example/rare}' where errors > 5",
        "update session set urls = urls[2:] where errors > 4",
        "update session set started_at = started_at - interval '1 second' where errors > 3",
        "update session set urls = default where errors > 2",
        "delete from session where errors > 1",
    ] {
        sqlx::query(change).execute(pool).await?;
        let differing: i64 = sqlx::query_scalar(
            "with wanted as (
                 select distinct workspace_id, page.url collate \"C\" as url, started_at, id from session, unnest(urls) as page (url)
             ), kept as (select workspace_id, url, started_at, session_id from session_page)
             select count(*) from ((table wanted except table kept) union all (table kept except table wanted)) differing",
        )
        .fetch_one(pool)
        .await?;
        ensure!(differing == 0, "{differing} pages differ after: {change}");
    }
    Ok(())
}

/// Goal: what is listed can be read, at every moment of a session's life: while it is recorded, once it is compacted, when it is
/// deleted, when its window is over. Method: all that is listed is read, at two control planes; a session that is gone by then must
/// be gone from the list too. Then pages that come short go on over HTTP.
#[test]
fn what_is_listed_can_be_read() -> Result<()> {
    let options = DeploymentOptions { control_planes: 2, plan: Plan::Free, ..DeploymentOptions::named("listed") };
    run(options, &[], async |system| {
        let link = system.link("listed").await?;
        let sdks = [system.sdk(1)?];
        let began = load::begin(system, &sdks[0], &link).await?;
        let mut sent = Vec::new();
        for variant in 0..3 {
            sent.push(
                load::send_recording(system, &sdks, &link, &load::recording("login-short")?, variant).await?.session.id,
            );
        }
        load::compare_all(system, SOON).await?;
        until("all are listed", SOON, || async {
            match all_are_readable(system).await {
                Ok(found) if found.len() == 4 && found.contains(&began.id) => Seen::Done(Ok(())),
                Ok(found) => Seen::not_yet(format_args!("{} are", found.len())),
                Err(error) => Seen::Done(Err(error)),
            }
        })
        .await??;
        for session in &sent {
            load::wait_stored(&system.api, *session, schemas::http::StoredAs::Object, LATER).await?;
        }
        ensure!(all_are_readable(system).await?.len() == 4, "a compacted session is not listed");

        let deleted = sent.remove(0);
        system.api.delete_session(deleted).await?;
        system.ledger.forget(deleted);
        let left = all_are_readable(system).await?;
        ensure!(left.len() == 3 && !left.contains(&deleted), "a deleted session is listed");
        let pages =
            system.count("select count(*) from session_page p join session s on s.id = p.session_id where s.state > 0");
        ensure!(pages.await? == 0, "a deleted session's pages are kept");

        // Its window ends: whatever the worker has done of it by now, list and session agree.
        let expiring = sent.remove(0);
        sqlx::query("update session set started_at = started_at - interval '8 days' where id = $1")
            .bind(expiring.0)
            .execute(system.index.pool())
            .await?;
        system.ledger.forget(expiring);
        until("the session's window is over", LATER, || async {
            match all_are_readable(system).await {
                Ok(found) if !found.contains(&expiring) => Seen::Done(Ok(())),
                Ok(_) => Seen::not_yet("it is listed, and can be read"),
                Err(error) => Seen::Done(Err(error)),
            }
        })
        .await??;
        short_pages_go_on(system).await
    })
}

/// All that is listed, after all of it was read.
async fn all_are_readable(system: &System<'_>) -> Result<BTreeSet<SessionId>> {
    let key = system.deployment.endpoints().api_key;
    let apis = [system.api_at(1, &key)?, system.api_at(2, &key)?];
    let mut readable = BTreeSet::new();
    let listed: Vec<SessionItem> = apis[0].all_sessions(&SessionQuery::default()).await?;
    for item in listed {
        let answers = (apis[1].session(item.id).await, apis[0].events(item.id, EventsFormat::Lines).await);
        if let (Ok(found), Ok(mut events)) = answers {
            ensure!(found.id == item.id, "another session came");
            while events.next_event().await?.is_some() {}
            readable.insert(item.id);
            continue;
        }
        let again = apis[1].all_sessions(&SessionQuery::default()).await?;
        ensure!(again.iter().all(|other| other.id != item.id), "{} is listed and cannot be read", item.id);
    }
    Ok(readable)
}

/// Over HTTP: a page without items is not the last as long as it has a cursor.
async fn short_pages_go_on(system: &System<'_>) -> Result<()> {
    let (workspace, key) = system.another_workspace(Plan::Scale).await?;
    sqlx::query(
        "insert into session (workspace_id, id, link_id, notice_version, consented_at, receipt_id, started_at,
             last_activity_at, ts_min, ts_max, final)
         select $1, gen_random_uuid(), gen_random_uuid(), '1', now(), gen_random_uuid(), now() - make_interval(secs => n),
             now() - interval '1 day', 0, case when n = $2 then 31000 else 0 end, true
         from generate_series(1, $2) n",
    )
    .bind(workspace.0)
    .bind(2 * LIST_ROWS_MAX as i64 + 1)
    .execute(system.index.pool())
    .await?;
    let api = system.api_at(2, &key)?;
    let mut query = SessionQuery { min_duration: Some(31), ..SessionQuery::default() };
    let mut items = Vec::new();
    loop {
        let page = api.list_sessions(&query).await?;
        items.push(page.items.len());
        query.cursor = page.next_cursor;
        if query.cursor.is_none() {
            break;
        }
    }
    ensure!(items == [0, 0, 1], "the pages had {items:?} items");
    Ok(())
}
