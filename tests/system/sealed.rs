//! What is written is worth nothing without its keys, and what was shredded is worth nothing at all.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use devstack::{DeploymentOptions, postgres_program};
use rdkafka::producer::future_producer::DeliveryFuture;
use rdkafka::producer::{FutureProducer, FutureRecord};
use schemas::paths::ObjectKey;
use schemas::{ObjectId, SessionId};
use service_kit::config::kafka::KafkaConfig;
use service_kit::kafka::topics::{self, TopicSpec};
use sqlx::{Connection as _, PgConnection, Row as _};
use storage::objects::sha256;
use tokio::time::Instant;
use uuid::Uuid;
use virtual_sdk::{Api, Encoding, EventsFormat, Form, Seen, until};

use crate::harness::{self, LATER, SOON, System, run};
use crate::load::{self, small_batch};
use crate::scanner::Scanner;
use crate::unsealed;

/// Goal: nothing that was recorded is found in the bucket's folder, Kafka's log, a dump of Postgres or any log, before and
/// after compaction; and a search that could not fail would prove nothing. Method: events with planted texts go the whole way;
/// the scanner looks through everything. Then the test lays down the same objects and records without their seals, through the
/// same servers, and the same scanner finds them in each of the four places.
#[test]
fn nothing_recorded_is_found_on_disk_unless_it_is_unsealed() -> Result<()> {
    let options = DeploymentOptions::named("sealed").with("compactor", "CLAIRVIO_RUN_AGE_MS", 3_000);
    run(options, &[], async |system| {
        let link = system.link("sealed").await?;
        let sdk = system.sdk(1)?;
        let marker = format!("planted-{}", Uuid::new_v4().simple());
        let mut sessions = Vec::new();
        for form in [Form::Array, Form::Lines, Form::Beacon] {
            let session = load::begin(system, &sdk, &link).await?;
            for seq in 0..4 {
                let batch = load::planted_batch(session.id, seq, seq == 3, &marker)?;
                load::send(system, &sdk, &session, &batch, form, Encoding::ALL[seq as usize % 3]).await?;
            }
            sessions.push(session.id);
        }
        load::compare_all(system, SOON).await?;
        let markers = [marker.as_str()];
        let places = Places::of(system)?;
        let before = places.scan(system, &markers)?;
        load::wait_compacted(system, LATER).await?;
        load::compare_all(system, SOON).await?;
        let after = places.scan(system, &markers)?;
        for (when, scanned) in [("before", &before), ("after", &after)] {
            for (place, scanner) in scanned {
                ensure!(scanner.found.is_empty(), "{when} compaction: {:?}", scanner.found);
                ensure!(
                    scanner.sources > 0 && scanner.bytes > 0,
                    "{when} compaction nothing was looked through: {place}"
                );
            }
        }
        unseal(system, &marker).await?;
        let control = places.scan(system, &markers)?;
        clean_up(system).await?;
        for (place, scanner) in &control {
            ensure!(!scanner.found.is_empty(), "the scanner does not find what lies unsealed in {place}");
        }
        // What the control found, it found by opening frames: there is no other way in.
        ensure!(control["bucket"].frames > 0 && control["log"].frames > 0 && control["dump"].frames > 0, "{control:?}");
        Ok(())
    })
}

/// Where this deployment's bytes are.
pub(crate) struct Places {
    bucket: PathBuf,
    log: Vec<PathBuf>,
}

impl Places {
    pub(crate) fn of(system: &System<'_>) -> Result<Self> {
        let home = system.stack.home();
        let bucket =
            folder_named(&home.join("s3"), &system.name)?.context("find this deployment's part of the bucket")?;
        let mut log = Vec::new();
        let data = home.join("kafka").join("data");
        for entry in std::fs::read_dir(&data).with_context(|| format!("list {}", data.display()))? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&system.deployment.topic)) {
                log.push(path);
            }
        }
        ensure!(log.len() >= 4, "find the topic's partitions in {}", data.display());
        Ok(Self { bucket, log })
    }

    pub(crate) fn scan<'m>(
        &self,
        system: &System<'_>,
        markers: &'m [&'m str],
    ) -> Result<BTreeMap<&'static str, Scanner<'m>>> {
        let mut scanned = BTreeMap::new();
        let mut bucket = Scanner::new(markers);
        bucket.folder(&self.bucket)?;
        scanned.insert("bucket", bucket);
        let mut log = Scanner::new(markers);
        for partition in &self.log {
            log.folder(partition)?;
        }
        let control = folder_named(&system.stack.home().join("kafka"), &format!("{}-0", control_name(system)))?;
        control.map_or(Ok(()), |folder| log.folder(&folder))?;
        scanned.insert("log", log);
        let mut dump = Scanner::new(markers);
        dump.source("dump of postgres", &dump_database(&system.deployment.endpoints().database_url)?);
        scanned.insert("dump", dump);
        let mut logs = Scanner::new(markers);
        for log in harness::all_logs(system.stack, &system.name)? {
            logs.file(&log)?;
        }
        scanned.insert("logs", logs);
        Ok(scanned)
    }
}

fn folder_named(below: &Path, name: &str) -> Result<Option<PathBuf>> {
    for entry in std::fs::read_dir(below).with_context(|| format!("list {}", below.display()))? {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        if path.file_name().is_some_and(|found| found == name) {
            return Ok(Some(path));
        }
        if let Some(found) = folder_named(&path, name)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// All of the database: index and key store.
fn dump_database(url: &str) -> Result<Vec<u8>> {
    let dumped = Command::new(postgres_program("pg_dump")?).arg(url).output().context("run pg_dump")?;
    ensure!(dumped.status.success(), "pg_dump: {}", String::from_utf8_lossy(&dumped.stderr));
    ensure!(contains(&dumped.stdout, b"keystore.session_key"), "the dump has no key store");
    Ok(dumped.stdout)
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    memchr::memmem::find(bytes, wanted).is_some()
}

/// Topic and log of what a test lays down without seals; the log is one of the deployment's by its name.
fn control_name(system: &System<'_>) -> String {
    format!("unsealed-of-{}-control", system.name)
}

/// No topic has so many partitions.
const CONTROL_PARTITION: i32 = 99_999;

/// Lays down what the deployment has stored as it would lie without seals; what a log would say names the marker.
pub(crate) async fn unseal(system: &System<'_>, marker: &str) -> Result<()> {
    let control = control_name(system);
    let objects = unsealed::objects(system).await?;
    let mut connection = PgConnection::connect(&system.deployment.endpoints().database_url).await?;
    sqlx::query("create table control (bytes bytea)").execute(&mut connection).await?;
    ensure!(!objects.is_empty(), "there are no objects to unseal");
    for object in objects {
        let id = ObjectId(Uuid::now_v7());
        let body = Bytes::from(object.clear);
        sqlx::query("insert into control values ($1)").bind(body.as_ref()).execute(&mut connection).await?;
        system
            .objects
            .put(&ObjectKey::Quarantine { partition: CONTROL_PARTITION, id }, body.clone(), &sha256(&body))
            .await?;
    }
    let records = unsealed::records(system).await?;
    ensure!(!records.is_empty(), "there are no records to unseal");
    let config = KafkaConfig {
        brokers: system.deployment.endpoints().kafka_brokers,
        topic_events: control.clone(),
        delivery_timeout: SOON,
    };
    let client = service_kit::kafka::client(&config, "control");
    let retention = Duration::from_secs(72 * 3600);
    let spec = TopicSpec { name: control.clone(), partitions: 1, replication: 1, min_insync: 1, retention };
    topics::ensure(&client, &spec).await?;
    let producer: FutureProducer = client.create()?;
    let sending = records.iter().map(|record| produce(&producer, &control, &record.key, &record.clear));
    await_delivered(sending.collect::<Result<_>>()?).await?;
    std::fs::write(system.stack.log(&control_name(system)), format!("an event was {marker}"))?;
    Ok(())
}

/// Has a record sent behind those before it; one that waited for each would take minutes for thousands.
pub(crate) fn produce(producer: &FutureProducer, topic: &str, key: &[u8], value: &[u8]) -> Result<DeliveryFuture> {
    let sending = producer.send_result(FutureRecord::to(topic).key(key).payload(value));
    sending.map_err(|(error, _)| error).context("produce record of a control")
}

pub(crate) async fn await_delivered(sending: Vec<DeliveryFuture>) -> Result<()> {
    for delivery in sending {
        delivery.await?.map_err(|(error, _)| error).context("produce record of a control")?;
    }
    Ok(())
}

pub(crate) async fn clean_up(system: &System<'_>) -> Result<()> {
    let listed = system.objects.list(&format!("quarantine/{CONTROL_PARTITION}/")).await?;
    let keys: Vec<ObjectKey> = listed.into_iter().flatten().collect();
    let keeps = system.objects.keeps().await?;
    ensure!(system.objects.erase(&keys, keeps).await?.is_empty(), "remove the control's objects");
    let mut connection = PgConnection::connect(&system.deployment.endpoints().database_url).await?;
    sqlx::query("drop table control").execute(&mut connection).await?;
    std::fs::remove_file(system.stack.log(&control_name(system))).context("remove the control's log")
}

/// Goal: once a session's key is destroyed, no process reads it any more when the cache bound has passed, also not one that has
/// the key unwrapped, nor one that is in the middle of a reading (R2); everybody else reads on. Method: two control planes read
/// a session; then this process destroys its key in the key store behind their backs, with no deletion that they could hear of.
#[test]
fn r02_a_shredded_session_is_read_by_nobody_once_the_cache_bound_has_passed() -> Result<()> {
    const BOUND: Duration = Duration::from_secs(3);
    let options = DeploymentOptions { control_planes: 2, ..DeploymentOptions::named("shredded") }
        .with("", "CLAIRVIO_KEY_CACHE_MS", BOUND.as_millis())
        .with("compactor", "CLAIRVIO_RUN_AGE_MS", 1_500);
    // A compactor that comes upon the session leaves it out.
    run(options, &[], async |system| {
        let (link, sdk) = (system.link("shredded").await?, system.sdk(1)?);
        let shredded = load::begin(system, &sdk, &link).await?;
        let other = load::begin(system, &sdk, &link).await?;
        for session in [&shredded, &other] {
            for seq in 0..30 {
                // Together more than sockets hold: a reader who does not read holds up whoever answers.
                let batch = small_batch(session.id, 0, seq, seq == 29, 200_000)?;
                load::send(system, &sdk, session, &batch, Form::Lines, Encoding::Zstd).await?;
            }
        }
        load::compare_all(system, SOON).await?;
        load::wait_compacted(system, LATER).await?;
        let api_key = system.deployment.endpoints().api_key;
        let apis = [system.api_at(1, &api_key)?, system.api_at(2, &api_key)?];
        for api in &apis {
            ensure!(reads(api, shredded.id).await? == 200, "it is readable before");
        }
        // A reading that has begun, and is in no hurry.
        let mut slow = apis[1].events(shredded.id, EventsFormat::Lines).await?;
        slow.next_event().await?.context("it has begun")?;

        system.keystore.shred(&[system.key(shredded.id)]).await?;
        let gone = Instant::now();
        let mut statuses = BTreeSet::new();
        let mut last_read = None;
        while gone.elapsed() < BOUND + Duration::from_secs(1) {
            for api in &apis {
                let asked = gone.elapsed();
                let status = reads(api, shredded.id).await?;
                statuses.insert(status);
                if status == 200 {
                    last_read = Some(asked);
                }
            }
        }
        ensure!(
            last_read.is_none_or(|asked| asked <= BOUND),
            "R2: it was read {last_read:?} after its key was destroyed"
        );
        ensure!(statuses.iter().all(|status| [200, 410].contains(status)), "answers: {statuses:?}");
        for api in &apis {
            ensure!(reads(api, shredded.id).await? == 410, "R2: it is not gone");
            ensure!(reads(api, other.id).await? == 200, "another session is gone too");
        }
        let mut rest = 1;
        let ended = loop {
            match slow.next_event().await {
                Ok(Some(_)) => rest += 1,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        ensure!(ended.is_err() && rest < 120, "R2: a reading that had begun went on to its end, {rest} events");
        system.ledger.forget(shredded.id);
        load::compare_all(system, SOON).await?;
        // Whatever is late changes nothing: the row stays without its key.
        let (found, _) = system.keys.obtain(&[system.key(shredded.id)]).await?;
        ensure!(
            matches!(found.get(&system.key(shredded.id)), Some(storage::session_keys::DataKey::Shredded)),
            "a late insert gave the session a key again"
        );
        Ok(())
    })
}

async fn reads(api: &Api, session: SessionId) -> Result<u16> {
    match api.events(session, EventsFormat::Lines).await {
        Ok(mut events) => {
            // A reading that is cut off counts as one that was refused.
            loop {
                match events.next_event().await {
                    Ok(Some(_)) => {}
                    Ok(None) => return Ok(200),
                    Err(_) => return Ok(410),
                }
            }
        }
        Err(error) => error.status().context("no answer"),
    }
}

/// Goal: no (key, nonce) pair is ever used twice, over crashes and re-runs too (C4), and no two sessions share a key. Method:
/// edges, batchers and compactors are killed under load, with nothing removed from the bucket; then every object that was ever
/// put, whether the index names it or not, and every record is opened, and what names their keys and nonces is counted.
#[test]
fn c04_no_key_and_nonce_are_used_twice_whatever_is_killed() -> Result<()> {
    let options = DeploymentOptions { edges: 2, batchers: 2, compactors: 2, ..DeploymentOptions::named("nonces") }
        .with("compactor", "CLAIRVIO_RUN_AGE_MS", 800)
        .with("compactor", "CLAIRVIO_PASS_INTERVAL_MS", 200)
        .with("compactor", "CLAIRVIO_LEASE_MS", 3_000)
        .with("", "CLAIRVIO_SESSION_SILENCE_MS", 4_000)
        .with("batcher", "CLAIRVIO_FLUSH_AGE_MS", 300)
        .with("retention-worker", "CLAIRVIO_CONDEMNED_GRACE_MS", 600_000)
        .with("retention-worker", "CLAIRVIO_STAGED_STALE_MS", 600_000);
    let expected = &["give back partitions", "stop reading partition", "read partition"];
    run(options, expected, async |system| {
        let link = system.link("nonces").await?;
        let sdks = [system.sdk(1)?, system.sdk(2)?];
        let stop = AtomicBool::new(false);
        let faults = async {
            let supervisor = &system.deployment.supervisor;
            for round in 0..3 {
                for (kind, number) in [
                    ("compactor", 1),
                    ("ingest-edge", 1),
                    ("batcher", 1 + round % 2),
                    ("compactor", 2),
                    ("ingest-edge", 2),
                ] {
                    let service = system.service(kind, number);
                    supervisor.wait_ready(&service, SOON).await?;
                    wait_for_batches(system, 10).await?;
                    supervisor.kill(&service).await?;
                }
            }
            Ok(())
        };
        let sent = load::load_during(load::load(system, &sdks, &link, 4, 20, &stop), &stop, faults).await?;
        ensure!(sent > 100, "a load of {sent} batches is none");
        load::compare_all(system, SOON).await?;
        load::wait_compacted(system, LATER).await?;

        let records = unsealed::records(system).await?;
        let mut numbers = BTreeMap::new();
        let mut salts = BTreeSet::new();
        for record in &records {
            let envelope = record.envelope;
            salts.insert(envelope.salt);
            let pair = (envelope.epoch, envelope.salt, envelope.number);
            if let Some(other) = numbers.insert(pair, &record.value) {
                ensure!(*other == record.value, "C4: one transport key and nonce seal two records");
            }
        }
        ensure!(salts.len() > 4, "edges were killed, and only {} processes sealed", salts.len());

        let objects = unsealed::objects(system).await?;
        let named: i64 = system.count("select count(*) from object where state = 1").await?;
        let of_sessions = objects.iter().filter(|object| !matches!(object.key, ObjectKey::Journal { .. })).count();
        ensure!(of_sessions as i64 > named, "nothing was put but what is live: no work was done twice");
        let mut uses: BTreeMap<&unsealed::ChunkUse, &ObjectKey> = BTreeMap::new();
        for object in &objects {
            for chunk in &object.chunks {
                if let Some(other) = uses.insert(chunk, &object.key) {
                    anyhow::bail!("C4: {other} and {} have a {} under one key", object.key, chunk.kind);
                }
            }
        }
        let keys = data_keys(system).await?;
        let distinct: BTreeSet<&[u8; 32]> = keys.iter().collect();
        ensure!(
            distinct.len() == keys.len() && keys.len() >= system.ledger.sessions().len(),
            "sessions share a data key"
        );
        eprintln!(
            "nonces: {} records of {} processes, {} chunks in {} objects, {} session keys",
            numbers.len(),
            salts.len(),
            uses.len(),
            objects.len(),
            keys.len()
        );
        Ok(())
    })
}

async fn wait_for_batches(system: &System<'_>, count: u64) -> Result<()> {
    let before = system.ledger.totals().0;
    until("the load goes on", SOON, || async {
        let more = system.ledger.totals().0 - before;
        if more >= count { Seen::Done(()) } else { Seen::not_yet(format_args!("{more} batches were acknowledged")) }
    })
    .await?;
    Ok(())
}

/// The data keys of all sessions.
async fn data_keys(system: &System<'_>) -> Result<Vec<[u8; 32]>> {
    let rows = sqlx::query("select workspace_id, session_id from session_key where wrapped is not null")
        .fetch_all(system.keystore.pool())
        .await?;
    let key = |row: &sqlx::postgres::PgRow| schemas::SessionKey {
        workspace: schemas::WorkspaceId(row.get(0)),
        session: SessionId(row.get(1)),
    };
    let sessions: Vec<schemas::SessionKey> = rows.iter().map(key).collect();
    let mut keys = Vec::new();
    for session in &sessions {
        keys.push(*system.keys.key(session).await?.expose());
    }
    Ok(keys)
}

/// Goal: while the key store does not answer nothing is written in clear, nothing acknowledged is lost, and services say what
/// is missing; a session whose key was lost is an error, and no other session notices. Method: the key store's table is away
/// for a while under load; then one row is taken out of it, as by a restored backup, and put back.
#[test]
fn a_missing_key_is_an_error_and_never_clear_text() -> Result<()> {
    let options = DeploymentOptions::named("keyless").with("", "CLAIRVIO_KEY_CACHE_MS", 500).with(
        "compactor",
        "CLAIRVIO_RUN_AGE_MS",
        2_000,
    );
    let expected = &[
        "part is down",
        "pass failed",
        "trying again",
        "read session",
        "the key store has lost",
        "has no key",
        "cannot be opened",
    ];
    run(options, expected, async |system| {
        let (link, sdk) = (system.link("keyless").await?, system.sdk(1)?);
        let stop = AtomicBool::new(false);
        let batcher = system.service("batcher", 1);
        let store = &system.keystore;
        let faults = async {
            wait_for_batches(system, 20).await?;
            sqlx::query("alter table session_key rename to away").execute(store.pool()).await?;
            let said = load::wait_readyz(system, &batcher, 503).await?;
            ensure!(said.contains("keystore"), "the batcher does not say what is missing: {said}");
            // Edges need no key store: they go on, and all of it is stored later.
            wait_for_batches(system, 20).await?;
            sqlx::query("alter table away rename to session_key").execute(store.pool()).await?;
            load::wait_readyz(system, &batcher, 200).await?;
            Ok(())
        };
        load::load_during(load::load(system, std::slice::from_ref(&sdk), &link, 2, 20, &stop), &stop, faults).await?;
        load::compare_all(system, SOON).await?;
        load::wait_compacted(system, LATER).await?;

        let lost = load::begin(system, &sdk, &link).await?;
        load::send(system, &sdk, &lost, &small_batch(lost.id, 0, 0, false, 10)?, Form::Lines, Encoding::Gzip).await?;
        load::compare(system, lost.id, SOON).await?;
        load::wait_compacted(system, LATER).await?;
        sqlx::query("create table kept as select * from session_key where session_id = $1")
            .bind(lost.id.0)
            .execute(store.pool())
            .await?;
        sqlx::query("delete from session_key where session_id = $1").bind(lost.id.0).execute(store.pool()).await?;
        until("it cannot be read any more", SOON, || async {
            match system.api.events(lost.id, EventsFormat::Lines).await {
                Err(error) if error.code() == "key_missing" => Seen::Done(()),
                Err(error) => Seen::not_yet(error),
                Ok(_) => Seen::not_yet("it was read"),
            }
        })
        .await?;
        for session in system.ledger.sessions().into_iter().filter(|session| *session != lost.id) {
            load::compare(system, session, SOON).await?;
        }
        // With its key it is there again.
        sqlx::query("insert into session_key select * from kept").execute(store.pool()).await?;
        sqlx::query("drop table kept").execute(store.pool()).await?;
        load::compare_all(system, SOON).await?;
        Ok(())
    })
}
