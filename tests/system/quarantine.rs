//! What a batcher cannot read stops nothing, is found again wherever it lies, and becomes whole by a replay.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use devstack::{DeploymentOptions, find_binary};
use rdkafka::producer::{FutureProducer, FutureRecord};
use schemas::paths::ObjectKey;
use schemas::record::{Consent, Header};
use schemas::{LinkId, ReceiptId, SessionId, SessionKey};
use sealing::transport::{LogPlace, RecordSealer};
use serde_json::Value;
use service_kit::config::kafka::KafkaConfig;
use service_kit::kafka;
use service_kit::keys::TRANSPORT_FILE;
use service_kit::keys::transport::TransportKeys;
use storage::footers::Footer;
use uuid::Uuid;
use virtual_sdk::{Encoding, EventsFormat, Form, Sdk, Seen, Session, until};

use crate::harness::{LATER, NOTICE_VERSION, SOON, System, logs, run, wait_for_metric};
use crate::load::{self, small_batch};
use crate::unsealed;

const TRANSPORT_VARIABLE: &str = "CLAIRVIO_TRANSPORT_KEYS_FILE";

/// The operator's tool with the settings of a service and these transport keys.
pub(crate) fn clairvio(system: &System<'_>, transport: &Path, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new(find_binary("clairvio")?);
    command.args(arguments).envs(system.settings(&system.service("batcher", 1))?).env(TRANSPORT_VARIABLE, transport);
    command.output().with_context(|| format!("run clairvio {arguments:?}"))
}

/// What it says as JSON, and whether it succeeded.
pub(crate) fn asks(system: &System<'_>, transport: &Path, arguments: &[&str]) -> Result<(Value, bool)> {
    let output = clairvio(system, transport, arguments)?;
    let said = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("clairvio {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)))?;
    Ok((said, output.status.success()))
}

/// Records by id, each with its reason.
pub(crate) fn list(system: &System<'_>, transport: &Path, filters: &[&str]) -> Result<BTreeMap<String, String>> {
    let (said, succeeded) = asks(system, transport, &[&["quarantine", "list", "--json"], filters].concat())?;
    ensure!(succeeded, "the list failed");
    let text =
        |item: &Value, field: &str| item[field].as_str().map(str::to_owned).with_context(|| format!("no {field}"));
    let items = said["items"].as_array().context("a list has items")?;
    items.iter().map(|item| Ok((text(item, "id")?, text(item, "reason")?))).collect()
}

fn ids(of: &Value) -> BTreeSet<String> {
    let id = |item: &Value| item.as_str().or_else(|| item["id"].as_str()).map(str::to_owned);
    of.as_array().into_iter().flatten().filter_map(id).collect()
}

/// A session of which these batches of stream 0 are sent; the last of all ends it.
async fn send(system: &System<'_>, sdk: &Sdk, session: &Session, seqs: std::ops::Range<u32>, end: bool) -> Result<()> {
    for seq in seqs.clone() {
        let batch = small_batch(session.id, 0, seq, end && seq + 1 == seqs.end, 100)?;
        load::send(system, sdk, session, &batch, Form::Lines, Encoding::Zstd).await?;
    }
    Ok(())
}

/// Partitions are given, so that what lies in quarantine lies in several objects.
async fn produce(system: &System<'_>, partition: i32, key: &[u8], value: &[u8]) -> Result<()> {
    let config = KafkaConfig {
        brokers: system.deployment.endpoints().kafka_brokers,
        topic_events: system.deployment.topic.clone(),
        delivery_timeout: SOON,
    };
    let producer: FutureProducer = kafka::client(&config, "stranger").set("acks", "all").create()?;
    let record = FutureRecord::to(&config.topic_events).partition(partition).key(key).payload(value);
    producer.send(record, SOON).await.map_err(|(error, _)| error).context("produce as a stranger")?;
    Ok(())
}

/// Goal: records that cannot be read hold up nobody, are listed with their reasons before and after they are moved, and become
/// whole by a replay, exactly once; what nobody can read and what is past its window is refused, and who was deleted stays
/// deleted. Method: edge and batcher have files of their own with the same transport keys. The edge's is rotated twice, so that
/// it seals under an epoch that the batcher has never heard of; a stranger produces garbage and a copy of a record under
/// another key; one acceptance is so old that no plan keeps it. Then the batcher gets the edge's file, and the operator replays.
#[test]
fn records_that_could_not_be_read_are_listed_and_replayed_exactly_once() -> Result<()> {
    let folder = tempfile::tempdir().context("make folder of transport keys")?;
    let (edges, batchers) = (folder.path().join("edges"), folder.path().join("batchers"));
    service_kit::keys::make(&make_folder(&edges)?)?;
    make_folder(&batchers)?;
    let (edges, batchers) = (edges.join(TRANSPORT_FILE), batchers.join(TRANSPORT_FILE));
    std::fs::copy(&edges, &batchers).context("give the batchers their file")?;
    let options = DeploymentOptions::named("quarantine")
        .with("ingest-edge", TRANSPORT_VARIABLE, edges.display())
        .with("batcher", TRANSPORT_VARIABLE, batchers.display())
        .with("compactor", "CLAIRVIO_RUN_AGE_MS", 1_500)
        .with("", "CLAIRVIO_SESSION_SILENCE_MS", 4_000)
        .with("retention-worker", "CLAIRVIO_PASS_INTERVAL_MS", 500);
    run(options, &["record cannot be read; it is quarantined"], async |system| {
        let (link, sdk) = (system.link("quarantine").await?, system.sdk(1)?);
        let partly = load::begin(system, &sdk, &link).await?;
        send(system, &sdk, &partly, 0..1, false).await?;
        load::compare_all(system, SOON).await?;

        let copied = records_of(system, &edges, partly.id).await?;
        produce(system, 0, Uuid::now_v7().as_bytes(), b"no record of ours").await?;
        produce(system, 1, Uuid::now_v7().as_bytes(), &copied).await?;
        wait_listed(system, &batchers, BTreeMap::from([("header", 1), ("seal", 1)])).await?;
        let strangers: BTreeSet<String> = list(system, &batchers, &[])?.into_keys().collect();
        let beside = load::begin(system, &sdk, &link).await?;
        send(system, &sdk, &beside, 0..2, true).await?;
        load::compare_all(system, SOON).await.context("beside records that cannot be read")?;

        // Twice at once: the batchers' file has the first epoch and the one after it.
        let rotated = folder.path().join("rotated");
        std::fs::copy(&edges, &rotated).context("copy the edges' file")?;
        for _ in 0..2 {
            let file = rotated.to_string_lossy();
            let rotated = clairvio(system, &edges, &["keys", "rotate", "transport", "--file", &file])?;
            ensure!(rotated.status.success(), "the edge's keys are not rotated");
        }
        give_keys(system, &rotated, &edges, "ingest-edge").await?;
        send(system, &sdk, &partly, 1..3, true).await?;
        let wholly = load::begin(system, &sdk, &link).await?;
        send(system, &sdk, &wholly, 0..2, true).await?;
        let deleted = load::begin(system, &sdk, &link).await?;
        send(system, &sdk, &deleted, 0..1, false).await?;
        let (key, value) = long_ago(system, &edges)?;
        produce(system, 2, key.as_bytes(), &value).await?;
        // Two batches, an acceptance with two, an acceptance with one, and the acceptance of long ago.
        wait_listed(system, &batchers, BTreeMap::from([("header", 1), ("seal", 1), ("key", 8)])).await?;
        let before = list(system, &batchers, &[])?;
        wait_moved(system).await?;
        ensure!(list(system, &batchers, &[])? == before, "records have other names or reasons once they were moved");
        pages_hold_together(system).await?;
        // As an earlier release would have left them.
        sqlx::query("update object set quarantined = null, set_aside_at = null where kind = 2 and state = 1")
            .execute(system.index.pool())
            .await?;
        ensure!(list(system, &batchers, &[])? == before, "what nobody counted is not found");
        ensure!(list(system, &batchers, &["--since", "1h"])? == before, "records of this hour are left out");
        ensure!(
            list(system, &batchers, &["--since", "2999-01-01T00:00:00Z"])?.is_empty(),
            "the future is full of records"
        );

        let mut waiting: Vec<String> = list(system, &batchers, &["--reason", "key"])?.into_keys().collect();
        let past = look_at_all(system, &waiting, (&edges, &batchers), partly.id, key)?;
        waiting.retain(|id| *id != past);
        let refused: BTreeSet<String> = strangers.iter().cloned().chain([past.clone()]).collect();
        let (said, succeeded) = asks(system, &batchers, &["quarantine", "replay", "--all-open", "--json"])?;
        ensure!(
            !succeeded && ids(&said["refused"]).len() == before.len(),
            "without the key something is replayed: {said}"
        );
        ensure!(list(system, &batchers, &[])? == before, "what was refused is not listed any more");

        let deletion = system.api.delete_session(deleted.id).await?.deletion_id;
        system.ledger.forget(deleted.id);
        give_keys(system, &edges, &batchers, "batcher").await?;
        let (said, _) = asks(system, &edges, &["quarantine", "replay", "--reason", "key", "--dry-run", "--json"])?;
        ensure!(ids(&said["replayed"]).len() == 7 && list(system, &edges, &[])? == before, "a dry run is none: {said}");
        let (said, succeeded) = asks(system, &edges, &["quarantine", "replay", "--all-open", "--json"])?;
        ensure!(ids(&said["replayed"]) == waiting.iter().cloned().collect(), "not all that open are replayed: {said}");
        ensure!(!succeeded && ids(&said["refused"]) == refused, "a stranger's or an old one is sent: {said}");
        load::compare_all(system, SOON).await.context("after the replay")?;
        let left = list(system, &edges, &["--reason", "key"])?;
        ensure!(left.keys().eq([&past]), "what was replayed is still listed: {left:?}");
        ensure!(list(system, &edges, &["--all"])? == before, "what was replayed is not listed among all");

        // Again, as after a crash between acknowledgement and note: the same batches come a third time.
        let again: Vec<&str> =
            ["quarantine", "replay", "--json"].into_iter().chain(waiting.iter().map(String::as_str)).collect();
        let (said, succeeded) = asks(system, &edges, &again)?;
        ensure!(succeeded && ids(&said["replayed_before"]).len() == 7, "what was replayed is sent again: {said}");
        let (said, succeeded) = asks(system, &edges, &[again.as_slice(), &["--force"]].concat())?;
        ensure!(succeeded && ids(&said["replayed"]).len() == 7, "--force does not send again: {said}");
        let (said, succeeded) = asks(system, &edges, &["quarantine", "replay", &past, "--force", "--json"])?;
        ensure!(!succeeded && ids(&said["refused"]).len() == 1, "--force sends what is past its window: {said}");
        // Both times, the acceptance and the batch of the deleted session.
        wait_for_metric(system, "batcher", r#"batcher_records_total{what="dropped_deleted"} 4"#).await?;
        load::compare_all(system, SOON).await.context("after the second replay")?;
        stays_deleted(system, deleted.id).await?;
        load::wait_compacted(system, LATER).await?;
        load::compare_all(system, SOON).await.context("once it is compacted")?;
        load::wait_erased(&system.api, deletion).await?;
        stays_deleted(system, deleted.id).await?;
        let left: BTreeSet<String> = list(system, &edges, &[])?.into_keys().collect();
        ensure!(left == refused, "other records are left than those that were refused: {left:?}");
        Ok(())
    })
}

fn make_folder(path: &Path) -> Result<std::path::PathBuf> {
    std::fs::create_dir(path).with_context(|| format!("make folder {}", path.display()))?;
    Ok(path.to_owned())
}

/// The value of a record of this session, as it lies in the log.
async fn records_of(system: &System<'_>, transport: &Path, session: SessionId) -> Result<Vec<u8>> {
    let records = unsealed::records_with(system, transport).await?;
    let found = records.into_iter().find(|record| record.key == session.as_bytes());
    Ok(found.context("the log has a record of the session")?.value)
}

/// Waits until so many records of each reason are listed, and no others.
async fn wait_listed(system: &System<'_>, transport: &Path, wanted: BTreeMap<&str, usize>) -> Result<()> {
    until("all that cannot be read is listed", SOON, || async {
        match list(system, transport, &[]) {
            Ok(listed) => {
                let mut counted = BTreeMap::new();
                for reason in listed.values() {
                    *counted.entry(reason.as_str()).or_insert(0) += 1;
                }
                if counted == wanted { Seen::Done(()) } else { Seen::not_yet(format_args!("{counted:?}")) }
            }
            Err(error) => Seen::not_yet(format_args!("{error:#}")),
        }
    })
    .await?;
    Ok(())
}

/// An acceptance of 400 days ago under the edges' current key: past the window of every plan. Its session, and its value.
fn long_ago(system: &System<'_>, transport: &Path) -> Result<(SessionId, Vec<u8>)> {
    let file: TransportKeys = service_kit::keys::read(transport)?;
    let session = SessionId(Uuid::now_v7());
    let consent = Consent {
        link: LinkId(Uuid::now_v7()),
        consented_at_ms: service_kit::time::now_ms() - 400 * 86_400_000,
        notice_version: NOTICE_VERSION.to_owned(),
        receipt: ReceiptId(Uuid::now_v7()),
    };
    let (epoch, key) = file.current();
    let place = LogPlace { topic: &system.deployment.topic, key: session.as_bytes() };
    let header = Header::Acceptance { key: system.key(session), consent };
    Ok((session, RecordSealer::new(key, epoch)?.seal(&place, &header, b"")?))
}

/// One object at a time gives the same as all at once.
async fn pages_hold_together(system: &System<'_>) -> Result<()> {
    let all = system.index.quarantine_objects(None, None, 1_000).await?;
    let (mut walked, mut cursor) = (Vec::new(), None);
    while let Some(next) = system.index.quarantine_objects(None, cursor.as_ref(), 1).await?.pop() {
        cursor = Some(next.cursor());
        walked.push(next.object.key);
    }
    let all: Vec<_> = all.iter().map(|found| found.object.key).collect();
    ensure!(walked == all && all.len() > 1, "pages do not hold together: {walked:?}, {all:?}");
    Ok(())
}

/// Waits until no shared object holds any of them.
async fn wait_moved(system: &System<'_>) -> Result<()> {
    until("a compactor has moved all records in quarantine", LATER, || async {
        let left = system.count("select count(*) from object where kind = 0 and state = 1 and quarantined <> 0").await;
        match left {
            Ok(0) => Seen::Done(()),
            Ok(left) => Seen::not_yet(left),
            Err(error) => Seen::not_yet(format_args!("{error:#}")),
        }
    })
    .await?;
    let uncounted = system.count("select count(*) from object where state = 1 and quarantined is null").await?;
    ensure!(uncounted == 0, "{uncounted} live objects do not say how many records in quarantine they hold");
    let forgotten =
        system.count("select count(*) from object where kind = 2 and state = 1 and set_aside_at >= live_at");
    ensure!(forgotten.await? == 0, "when records were set aside is forgotten once they are moved");
    Ok(())
}

/// Every record, with and without the key that opens it; nothing of its payload. Gives the id of the record of session `past`.
fn look_at_all(
    system: &System<'_>,
    ids: &[String],
    (with_key, without): (&Path, &Path),
    session: SessionId,
    past: SessionId,
) -> Result<String> {
    let (mut batches, mut found) = (BTreeSet::new(), None);
    for id in ids {
        let (closed, _) = asks(system, without, &["quarantine", "show", id, "--json"])?;
        ensure!(closed["opens_now"] == "no" && closed["epoch"] == 3 && closed["header"].is_null(), "{closed}");
        let (opened, _) = asks(system, with_key, &["quarantine", "show", id, "--json"])?;
        ensure!(opened["opens_now"] == "yes" && opened["reason"] == "key", "{opened}");
        let header = &opened["header"];
        if header["session"] == past.to_string() {
            found = Some(id.clone());
        }
        if header["session"] == session.to_string() {
            ensure!(header["kind"] == "batch" && header["stream"] == 0 && header["events"] == 4, "{opened}");
            ensure!(opened["record_key"] == session.to_string() && opened["session_deleted"] == false, "{opened}");
            let shown = clairvio(system, with_key, &["quarantine", "show", id])?;
            let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
            ensure!(shown.contains("opens now") && !shown.contains("filling"), "{shown}");
            batches.insert(header["seq"].as_u64());
        }
    }
    ensure!(
        batches == BTreeSet::from([Some(1), Some(2)]),
        "other batches of the session are in quarantine: {batches:?}"
    );
    found.context("the acceptance of long ago is in quarantine")
}

/// Puts a file of keys in the place of another that a service reads, and waits until it has. Once for each service.
async fn give_keys(system: &System<'_>, from: &Path, to: &Path, kind: &str) -> Result<()> {
    let beside = to.with_extension("new");
    std::fs::copy(from, &beside).context("copy keys")?;
    std::fs::rename(&beside, to).context("replace keys")?;
    until(&format!("{kind} has read the new keys"), SOON, || async {
        let logs = match logs(system.stack, &system.name) {
            Ok(logs) => logs,
            Err(error) => return Seen::not_yet(format_args!("{error:#}")),
        };
        let mut of_kind = logs.iter().filter(|log| log.to_string_lossy().contains(kind));
        let has_read = |log| std::fs::read_to_string(log).is_ok_and(|text| text.contains("keys were read anew"));
        if of_kind.any(has_read) { Seen::Done(()) } else { Seen::not_yet("it has not yet") }
    })
    .await?;
    Ok(())
}

/// Neither read nor in any object, whatever was replayed.
async fn stays_deleted(system: &System<'_>, session: SessionId) -> Result<()> {
    let answer = system.api.events(session, EventsFormat::Lines).await.err().and_then(|error| error.status());
    ensure!(answer == Some(410), "events of deleted session {session} were answered with {answer:?}");
    let key: SessionKey = system.key(session);
    for object in system.objects.list("").await? {
        let object = object.map_err(|name| anyhow::anyhow!("{name} is none of our objects"))?;
        if matches!(object, ObjectKey::Journal { .. }) {
            continue;
        }
        // One that is removed in this moment holds nothing any more.
        let Ok(body) = system.objects.get(&object).await else { continue };
        let holds = match system.footer(object, &body).await? {
            Some(Footer::Shared(footer)) => footer.chunks.iter().any(|chunk| chunk.key == key),
            Some(Footer::Session(footer)) => footer.key == key,
            None => false,
        };
        ensure!(!holds, "{object} has bytes of deleted session {session}");
    }
    Ok(())
}
