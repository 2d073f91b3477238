//! What must hold at the end of every test, whatever it was about.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use schemas::object::TRAILER_BYTES;
use schemas::paths::ObjectKey;
use schemas::{ObjectId, SessionId, SessionKey, WorkspaceId};
use sqlx::Row as _;
use storage::footers::Footer;
use storage::objects::sha256;
use uuid::Uuid;

use crate::harness::System;

/// B4: every record that a batcher took in is accounted for.
pub(crate) async fn conservation(system: &System<'_>) -> Result<()> {
    for service in system.deployment.supervisor.running() {
        if !service.name.starts_with("batcher-") {
            continue;
        }
        // A batcher that is just being started again has nothing to say yet.
        let Ok(answer) = reqwest::get(format!("{}/metrics", service.admin_url)).await else { continue };
        let text = answer.text().await.context("read metrics")?;
        let imbalance = text.lines().find_map(|line| line.strip_prefix("batcher_conservation_imbalance_records "));
        ensure!(imbalance.is_none_or(|value| value.trim() == "0"), "B4: {} has {imbalance:?} too many", service.name);
    }
    Ok(())
}

/// The index and the bucket agree with each other, and with what the system promises. For stopped services.
pub(crate) async fn index(system: &System<'_>) -> Result<()> {
    let pool = system.index.pool();
    let without_consent = system
        .count(
            "select count(*) from session s
             where (link_id is null or notice_version is null or consented_at is null or receipt_id is null)
                 and (events > 0 or bytes_stored > 0 or exists (select from object o
                     where o.workspace_id = s.workspace_id and o.session_id = s.id and o.state = 1))",
        )
        .await?;
    ensure!(without_consent == 0, "S1: {without_consent} sessions have events and no consent");
    let overlaps = system
        .count(
            "select count(*) from object one join object other using (topic, partition)
             where one.id < other.id and one.state = 1 and other.state = 1 and one.kind = 0 and other.kind = 0
                 and int8range(one.offset_first, one.offset_next) && int8range(other.offset_first, other.offset_next)",
        )
        .await?;
    ensure!(overlaps == 0, "B2: {overlaps} pairs of live objects cover the same offsets");
    let beyond = system
        .count(
            "select count(*) from object o join partition_progress p using (topic, partition)
             where o.state = 1 and o.kind = 0 and o.offset_next > p.next_offset",
        )
        .await?;
    ensure!(beyond == 0, "B2: {beyond} live objects lie beyond their partition's progress");
    let gaps = system.count("select count(*) from log_gap").await?;
    let made = system.gaps_made.load(std::sync::atomic::Ordering::Acquire);
    ensure!(gaps == i64::from(made), "B2: {gaps} gaps were noted, and the test made {made}");

    let early = system
        .count(
            "select count(*) from deletion d where receipted_at is not null and (erased_at is null or finding
                 or (select coalesce(sum(sessions), 0) from receipt where deletion_id = d.id)
                     <> (select d.forgotten + count(*) from deletion_session where deletion_id = d.id)
                 or exists (select from deletion_session s where s.deletion_id = d.id
                     and (erased_at is null or shredded_at is null or entry_id is null)))",
        )
        .await?;
    ensure!(early == 0, "R3, R10: {early} deletions have receipts and are not over, or of other sessions");

    let rows = sqlx::query(
        "select id, kind, partition, workspace_id, session_id, bytes, sha256, footer_at, footer_len, offset_first,
             offset_next from object where state = 1",
    )
    .fetch_all(pool)
    .await?;
    let mut found = BTreeSet::new();
    for row in &rows {
        let id = ObjectId(row.get("id"));
        let key = match row.get::<i16, _>("kind") {
            0 => ObjectKey::Shared { partition: row.get("partition"), id },
            1 => ObjectKey::Session { key: key_of(row), id },
            // Opened, and compared with what was recorded, by those who fetch it.
            3 => continue,
            _ => ObjectKey::Quarantine { partition: row.get("partition"), id },
        };
        let body = system.objects.get(&key).await.with_context(|| format!("B3: get live object {key}"))?;
        ensure!(sha256(&body).as_slice() == row.get::<Vec<u8>, _>("sha256"), "B3: {key} has another hash");
        ensure!(body.len() as i64 == row.get::<i64, _>("bytes"), "B3: {key} has another length");
        let (at, len): (i64, i32) = (row.get("footer_at"), row.get("footer_len"));
        let end = at + i64::from(len) + TRAILER_BYTES as i64;
        ensure!(end == body.len() as i64, "B3: the footer of {key} is not where its row says");
        match system.footer(key, &body).await? {
            Some(Footer::Session(footer)) => drop(found.insert(footer.key)),
            Some(Footer::Shared(footer)) => {
                let covered = (footer.offset_first as i64, footer.offset_next as i64);
                let kind: i16 = row.get("kind");
                ensure!(
                    kind != 0 || covered == (row.get("offset_first"), row.get("offset_next")),
                    "B2: {key} covers other offsets than its row says"
                );
                found.extend(footer.chunks.iter().map(|chunk| chunk.key));
            }
            // Its session is on its way out.
            None => {}
        }
    }
    for key in found {
        let consented: Option<bool> = sqlx::query_scalar(
            "select link_id is not null and notice_version is not null and consented_at is not null
                 and receipt_id is not null from session where workspace_id = $1 and id = $2",
        )
        .bind(key.workspace.0)
        .bind(key.session.0)
        .fetch_optional(pool)
        .await?;
        ensure!(consented == Some(true), "S1: bytes of session {} are stored without consent facts", key.session);
    }
    garbage(system).await
}

fn key_of(row: &sqlx::postgres::PgRow) -> SessionKey {
    SessionKey {
        workspace: WorkspaceId(row.get::<Option<Uuid>, _>("workspace_id").unwrap_or_default()),
        session: SessionId(row.get::<Option<Uuid>, _>("session_id").unwrap_or_default()),
    }
}

/// No object lies in the bucket that no row names; entries of the journal are named by themselves.
async fn garbage(system: &System<'_>) -> Result<()> {
    let named: Vec<Uuid> = sqlx::query_scalar("select id from object").fetch_all(system.index.pool()).await?;
    let named: BTreeSet<ObjectId> = named.into_iter().map(ObjectId).collect();
    for listed in system.objects.list("").await? {
        match listed {
            Ok(ObjectKey::Journal { .. }) => {}
            Ok(key) => ensure!(named.contains(&key.id()), "object {key} lies in the bucket and no row names it"),
            Err(name) => bail!("{name} lies in the bucket and is none of ours"),
        }
    }
    Ok(())
}

/// What a machine that is busy with other tests, or a process that was stopped, brings about: what was done and took long.
const ALWAYS_EXPECTED: [&str; 5] = [
    "slow_acquire_threshold",
    "slow_threshold",
    "the topic control was not read to its end lately",
    "has no lifecycle rules",
    "its index is compared with the journal first",
];

/// No panic, and no WARN or ERROR that the test does not expect.
pub(crate) fn logs(logs: &[PathBuf], expected: &[&str]) -> Result<()> {
    let mut found = Vec::new();
    for log in logs {
        let bytes = std::fs::read(log).with_context(|| format!("read log {}", log.display()))?;
        let text = String::from_utf8_lossy(&bytes);
        let name = log.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        for line in text.lines() {
            let level = line.split_ascii_whitespace().nth(1).unwrap_or_default();
            // What does not begin with a time is no log line: a panic, or a last word. A log line's own line breaks are
            // followed by blanks.
            let is_loose = !line.starts_with(|first: char| first.is_ascii_digit() || first == ' ') && !line.is_empty();
            let is_loud = matches!(level, "WARN" | "ERROR") || is_loose || line.contains("panicked at");
            let is_expected = ALWAYS_EXPECTED.iter().chain(expected).any(|text| line.contains(text));
            if is_loud && !is_expected {
                found.push(format!("{name}: {line}"));
            }
        }
    }
    ensure!(found.is_empty(), "{} lines in logs that nobody expected:\n{}", found.len(), found.join("\n"));
    Ok(())
}
