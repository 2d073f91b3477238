//! What a batcher stores, and what it does not, as an operator sees it by its metrics.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use devstack::DeploymentOptions;
use schemas::SessionKey;
use schemas::limits::S3_PART_BYTES;
use serde_json::value::RawValue;
use service_kit::keys::TRANSPORT_FILE;
use virtual_sdk::recordings::Batch;
use virtual_sdk::{Encoding, Form, Seen, until};

use crate::harness::{LATER, SOON, System, run};
use crate::load::{self, small_batch};
use crate::quarantine::{asks, list};

/// Characters of a batch whose record is as large as two parts of an upload: of 24 bits each, 14 are random.
const LARGE_CHARACTERS: usize = 3_500_000;

/// Goal: a batch that comes again is noted and not stored again; a large object goes up in parts; the rows of a flush do not
/// grow with what is in it (B12). Method: sessions one after the other, whose batches are sent twice, the second time once
/// the first is readable; one of them with a batch larger than a part. The batcher's own figures say what it did.
#[test]
fn copies_are_noted_large_objects_go_up_in_parts_and_rows_stay_few() -> Result<()> {
    let options = DeploymentOptions::named("batching")
        .with("batcher", "CLAIRVIO_FLUSH_AGE_MS", 200)
        .with("batcher", "S3_MULTIPART_BYTES", S3_PART_BYTES)
        .with("compactor", "CLAIRVIO_RUN_AGE_MS", 1_500)
        .with("", "CLAIRVIO_SESSION_SILENCE_MS", 3_000);
    run(options, &[], async |system| {
        let (link, sdk) = (system.link("batching").await?, system.sdk(1)?);
        let mut sessions = Vec::new();
        for number in 0..3 {
            let session = load::begin(system, &sdk, &link).await?;
            let first = small_batch(session.id, 0, 0, false, 100)?;
            let last = if number == 0 { large_batch(1)? } else { small_batch(session.id, 0, 1, true, 100)? };
            for batch in [&first, &last] {
                load::send(system, &sdk, &session, batch, Form::Lines, Encoding::Zstd).await?;
            }
            load::compare_all(system, SOON).await?;
            load::send(system, &sdk, &session, &first, Form::Array, Encoding::Gzip).await?;
            load::send(system, &sdk, &session, &first, Form::Lines, Encoding::Identity).await?;
            sessions.push(session.id);
        }
        let copies = "batcher_records_total{what=\"dropped_copies\"}";
        wait_for(system, copies, |noted| noted == 6).await?;
        ensure!(metric(system, "batcher_records_total{what=\"chunked\"}").await? == 6, "copies are stored");
        let flushes = metric(system, "batcher_flushes_total").await?;
        let puts = metric(system, "batcher_puts_total").await?;
        ensure!(puts >= flushes, "{puts} requests for {flushes} flushes");
        // Begin, two parts, end: one flush costs four requests, and each of the others one or none.
        let objects = system.count("select count(*) from object where kind = 0 and bytes is not null").await? as u64;
        ensure!(puts == objects + 3, "{puts} requests for {objects} objects, one of them in two parts");
        let rows = metric(system, "batcher_index_rows_total{what=\"flush\"}").await?;
        ensure!(rows == 2 * objects + flushes, "B12: {rows} rows for {flushes} flushes with {objects} objects");
        let first_sight = metric(system, "batcher_index_rows_total{what=\"first_sight\"}").await?;
        ensure!(first_sight == 9, "{first_sight} rows for 3 sessions, each in the counts of its link and its day");
        load::wait_compacted(system, LATER).await?;
        load::compare_all(system, SOON).await?;
        for session in sessions {
            let completeness = system.api.session(session).await?.completeness.context("it says what is there")?;
            ensure!(completeness.duplicates_dropped == 2 && completeness.conflicts == 0, "{completeness:?}");
        }
        Ok(())
    })
}

/// A batch that does not compress below 14 random bits of 24, and in which nothing looks like a secret: of letters that keys are
/// made of, some would by chance.
fn large_batch(seq: u32) -> Result<Arc<Batch>> {
    const IDEOGRAPHS: u32 = 0x4e00;
    let mut bytes = vec![0; 2 * LARGE_CHARACTERS];
    std::fs::File::open("/dev/urandom").and_then(|mut random| std::io::Read::read_exact(&mut random, &mut bytes))?;
    let ideograph = |two: &[u8]| char::from_u32(IDEOGRAPHS + (u32::from(two[0] % 64) << 8) + u32::from(two[1]));
    let text: String = bytes.chunks_exact(2).filter_map(ideograph).collect();
    let event = format!(r#"{{"type":3,"data":{{"text":"{text}"}},"timestamp":1700000000200}}"#);
    Ok(Arc::new(Batch::new(0, seq, true, 1, vec![RawValue::from_string(event)?])?))
}

/// Goal: a session whose key does not open holds up nobody, and nothing of it is lost. Method: the row of its key is damaged
/// while it goes on; its batches go into quarantine, another session's are read; the row is mended, the operator replays.
#[test]
fn a_session_whose_key_does_not_open_is_set_aside_and_replayed() -> Result<()> {
    let options = DeploymentOptions::named("aside")
        .with("batcher", "CLAIRVIO_FLUSH_AGE_MS", 200)
        .with("batcher", "CLAIRVIO_KEY_CACHE_MS", 100)
        .with("", "CLAIRVIO_SESSION_SILENCE_MS", 3_000);
    run(options, &["the key of a session does not open"], async |system| {
        let (link, sdk) = (system.link("aside").await?, system.sdk(1)?);
        let session = load::begin(system, &sdk, &link).await?;
        let next_seq = AtomicU32::new(0);
        let send = async |end: bool| {
            let batch = small_batch(session.id, 0, next_seq.fetch_add(1, Ordering::Relaxed), end, 100)?;
            load::send(system, &sdk, &session, &batch, Form::Lines, Encoding::Zstd).await
        };
        send(false).await?;
        load::compare_all(system, SOON).await?;
        // What merges would need the key as well, and wait for it.
        let compactor = system.service("compactor", 1);
        system.deployment.supervisor.pause(&compactor).await?;
        let key = system.key(session.id);
        flip_key(system, &key).await?;
        until("a batch is set aside", SOON, || async {
            if let Err(error) = send(false).await {
                return Seen::not_yet(format_args!("{error:#}"));
            }
            match metric(system, "batcher_keys_closed_total").await {
                Ok(0) => Seen::not_yet("its key is still in memory"),
                Ok(_) => Seen::Done(()),
                Err(error) => Seen::not_yet(format_args!("{error:#}")),
            }
        })
        .await?;
        send(true).await?;
        let transport = transport(system);
        let other = load::begin(system, &sdk, &link).await?;
        let batch = small_batch(other.id, 0, 0, true, 100)?;
        load::send(system, &sdk, &other, &batch, Form::Lines, Encoding::Zstd).await?;
        until("another session goes on", SOON, || async {
            match system.api.session(other.id).await {
                Ok(item) if item.completeness.as_ref().is_some_and(|found| found.batches == 1) => Seen::Done(()),
                Ok(item) => Seen::not_yet(format_args!("{:?}", item.completeness)),
                Err(error) => Seen::not_yet(error),
            }
        })
        .await?;

        flip_key(system, &key).await?;
        // The last batch as well, whose flush may have begun just now.
        wait_for(system, "batcher_records_total{what=\"buffered\"}", |left| left == 0).await?;
        let aside = list(system, &transport, &["--reason", "session_key"])?;
        ensure!(!aside.is_empty(), "nothing is in quarantine");
        let (said, succeeded) =
            asks(system, &transport, &["quarantine", "replay", "--reason", "session_key", "--json"])?;
        ensure!(succeeded, "the replay failed: {said}");
        system.deployment.supervisor.resume(&compactor).await?;
        load::compare_all(system, SOON).await.context("after the replay")?;
        ensure!(list(system, &transport, &[])?.is_empty(), "what was replayed is still listed");
        load::wait_compacted(system, LATER).await?;
        load::compare_all(system, SOON).await.context("once it is compacted")?;
        Ok(())
    })
}

fn transport(system: &System<'_>) -> PathBuf {
    system.deployment.keys.join(TRANSPORT_FILE)
}

/// Damages the wrapped key of a session, or mends it again.
async fn flip_key(system: &System<'_>, key: &SessionKey) -> Result<()> {
    let flipped = sqlx::query(
        "update keystore.session_key set wrapped = set_byte(wrapped, 20, get_byte(wrapped, 20) # 255)
         where workspace_id = $1 and session_id = $2",
    )
    .bind(key.workspace.0)
    .bind(key.session.0)
    .execute(system.index.pool())
    .await?;
    ensure!(flipped.rows_affected() == 1, "the session has no key");
    Ok(())
}

/// A figure of the only batcher.
async fn metric(system: &System<'_>, name: &str) -> Result<u64> {
    let admin = system.variable(&system.service("batcher", 1), "CLAIRVIO_ADMIN_LISTEN")?;
    let text = reqwest::get(format!("http://{admin}/metrics")).await?.text().await?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok());
    value.with_context(|| format!("the batcher does not say {name}"))
}

async fn wait_for(system: &System<'_>, name: &str, holds: impl Fn(u64) -> bool) -> Result<()> {
    until(name, SOON, || async {
        match metric(system, name).await {
            Ok(value) if holds(value) => Seen::Done(()),
            Ok(value) => Seen::not_yet(value),
            Err(error) => Seen::not_yet(format_args!("{error:#}")),
        }
    })
    .await?;
    Ok(())
}
