//! Blind to secrets, also when the SDK fails (P4, E5): the corpus of leaks through the whole system.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use devstack::DeploymentOptions;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use masking::{Rules, StreamState};
use rdkafka::producer::FutureProducer;
use schemas::http::{LinkRequest, SessionItem};
use schemas::record::{Consent, Header, Masking};
use schemas::{BatchFacts, ReceiptId, SessionId, StreamSeq, codec};
use sealing::transport::{LogPlace, RecordSealer};
use serde::Deserialize;
use serde_json::Value;
use service_kit::config::kafka::KafkaConfig;
use service_kit::keys::transport::TransportKeys;
use uuid::Uuid;
use virtual_sdk::recordings::{self, Batch, Recording};
use virtual_sdk::sdk::random_attempt;
use virtual_sdk::{Body, Encoding, EventsFormat, Form, Sdk, Seen, Session, until};

use crate::harness::{LATER, NOTICE_VERSION, SOON, System, run};
use crate::load;
use crate::scanner::Scanner;
use crate::sealed::{self, Places};
use crate::unsealed;

/// Sessions that send at once.
const AT_ONCE: usize = 6;

#[derive(Deserialize)]
struct Manifest {
    cases: Vec<Described>,
}

#[derive(Deserialize)]
struct Described {
    name: String,
    class: String,
    rules: Value,
    secrets: Vec<String>,
    kept: Vec<String>,
}

/// A recording with planted secrets.
struct Case {
    described: Described,
    recording: Recording,
}

fn corpus() -> Result<Vec<Case>> {
    let folder = recordings::folder().join("leaks");
    let manifest = std::fs::read(folder.join("manifest.json")).context("read the corpus of leaks")?;
    let described = serde_json::from_slice::<Manifest>(&manifest)?.cases;
    let read = |described: Described| {
        let recording = Recording::read(&folder.join(format!("{}.ndjson.gz", described.name)))?;
        Ok(Case { described, recording })
    };
    described.into_iter().map(read).collect()
}

impl Case {
    fn rules(&self) -> Rules {
        Rules::of_json(&self.described.rules.to_string())
    }

    fn markers(&self) -> BTreeSet<String> {
        self.described.secrets.iter().flat_map(|secret| forms(secret)).collect()
    }
}

/// A secret as it may lie somewhere: as it is, in JSON, in JSON within JSON, and in a URL.
fn forms(secret: &str) -> [String; 4] {
    let quoted = |text: &str| {
        let json = Value::from(text).to_string();
        json[1..json.len() - 1].to_owned()
    };
    let escaped = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    [secret.to_owned(), quoted(secret), quoted(&quoted(secret)), secret.bytes().map(escaped).collect()]
}

fn payload_of(batch: &Batch) -> String {
    batch.events().iter().map(|event| format!("{event}\n")).collect()
}

/// One case that was sent: in order, or as a bad network and a bad SDK send it.
struct Sent {
    case: usize,
    session: Session,
    in_order: bool,
    /// Batches that were acknowledged, each once.
    batches: u64,
}

/// Goal: of what was planted nothing is stored, whatever masks in the browser; and what need not be masked is there. Method: the
/// corpus is sent in order and out of order, twice and with gaps, while the batcher is killed in the middle: who goes on has to find
/// what was known. Then everything is opened and searched: objects before and after compaction, the log, the index, logs. The
/// control lays down the same recordings past the edge, as if it had masked them: there everything is found.
#[test]
fn p04_planted_secrets_reach_no_storage_and_all_else_does() -> Result<()> {
    let options = DeploymentOptions::named("masking")
        .with("batcher", "CLAIRVIO_FLUSH_AGE_MS", 300)
        .with("compactor", "CLAIRVIO_RUN_AGE_MS", 3_000)
        .with("", "CLAIRVIO_SESSION_SILENCE_MS", 600_000);
    run(options, &[], async |system| {
        let corpus = corpus()?;
        let sdk = system.sdk(1)?;
        let begun: Vec<Sent> = stream::iter((0..corpus.len()).flat_map(|case| [(case, true), (case, false)]))
            .map(|(case, in_order)| begin(system, &sdk, &corpus, case, in_order))
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        // Each sends its first half; then the batcher is gone, and another one goes on.
        let half = send_all(system, &sdk, &corpus, begun, Half::First).await?;
        wait_stored(system, &half).await?;
        let batcher = system.service("batcher", 1);
        system.deployment.supervisor.kill(&batcher).await?;
        system.deployment.supervisor.wait_ready(&batcher, SOON).await?;
        let sent = send_all(system, &sdk, &corpus, half, Half::Second).await?;
        wait_stored(system, &sent).await?;
        let told = crate::harness::metric(&system.admin_url("batcher", 1)?, "batcher_notes_searched_total").await;
        ensure!(told > 100, "the batcher that went on asked for the state of {told} streams");

        check_read(system, &corpus, &sent).await.context("before compaction")?;
        let markers: BTreeSet<String> = corpus.iter().flat_map(Case::markers).collect();
        let markers: Vec<&str> = markers.iter().map(String::as_str).collect();
        check_stored(system, &markers).await.context("before compaction")?;
        load::wait_compacted(system, LATER).await?;
        check_read(system, &corpus, &sent).await.context("after compaction")?;
        check_stored(system, &markers).await.context("after compaction")?;
        check_log(system, &corpus, &markers).await?;

        let planted: BTreeSet<&str> = lay_down_unmasked(system, &corpus).await?;
        check_control(system, &planted, &markers).await
    })
}

async fn begin(system: &System<'_>, sdk: &Sdk, corpus: &[Case], case: usize, in_order: bool) -> Result<Sent> {
    let request = LinkRequest {
        reference: format!("leaks-{case}-{in_order}"),
        expires_in: Some(3600),
        max_sessions: None,
        redirect_url: None,
        masking: Some(corpus[case].described.rules.clone()),
    };
    let link = system.api.create_link(&request).await?;
    let accepted = sdk.accept_until_answered(&link.token, NOTICE_VERSION, &random_attempt(), load::deadline()).await?;
    Ok(Sent { case, session: accepted.answer, in_order, batches: 0 })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Half {
    First,
    Second,
}

async fn send_all(system: &System<'_>, sdk: &Sdk, corpus: &[Case], sent: Vec<Sent>, half: Half) -> Result<Vec<Sent>> {
    let sending = stream::iter(sent).map(|sent| send(system, sdk, &corpus[sent.case], sent, half));
    sending.buffer_unordered(AT_ONCE).try_collect().await
}

async fn send(_: &System<'_>, sdk: &Sdk, case: &Case, mut sent: Sent, half: Half) -> Result<Sent> {
    let batches = case.recording.batches();
    let middle = batches.len().div_ceil(2);
    let mut order: Vec<usize> = match half {
        Half::First => (0..middle).collect(),
        Half::Second => (middle..batches.len()).collect(),
    };
    if !sent.in_order {
        // The same disorder in each run: neighbours change places, every fifth batch is lost, every third comes twice.
        order.retain(|place| (place + sent.case) % 5 != 4);
        for pair in (sent.case % 2..order.len().saturating_sub(1)).step_by(2) {
            order.swap(pair, pair + 1);
        }
    }
    for (turn, place) in order.into_iter().enumerate() {
        let batch = &batches[place];
        let encoding = Encoding::ALL[(sent.case + turn) % Encoding::ALL.len()];
        let form = [Form::Array, Form::Lines, Form::Beacon][(sent.case + turn) % 3];
        let body = Body::of_batch(batch, form, encoding)?;
        let times = if !sent.in_order && turn % 3 == 1 { 2 } else { 1 };
        for _ in 0..times {
            sdk.send_until_acknowledged(&sent.session, batch.stream, batch.seq, batch.end, &body, load::deadline())
                .await
                .with_context(|| format!("send {} batch {place}", case.described.name))?;
        }
        sent.batches += 1;
    }
    Ok(sent)
}

async fn wait_stored(system: &System<'_>, sent: &[Sent]) -> Result<()> {
    for sent in sent.iter().filter(|sent| sent.batches > 0) {
        until("all batches are stored", SOON, || async {
            match system.api.session(sent.session.id).await {
                Ok(session) if stored(&session) == sent.batches => Seen::Done(()),
                Ok(session) => Seen::not_yet(format_args!("{} of {}", stored(&session), sent.batches)),
                Err(error) => Seen::not_yet(error),
            }
        })
        .await?;
    }
    Ok(())
}

/// Batches of a session that are stored, each once.
fn stored(session: &SessionItem) -> u64 {
    session.completeness.as_ref().map_or(0, |completeness| completeness.batches)
}

/// What is read of a session, in the order of reading.
async fn read(system: &System<'_>, session: SessionId) -> Result<String> {
    let mut events = system.api.events(session, EventsFormat::Lines).await?;
    let mut text = String::new();
    while let Some(event) = events.next_event().await? {
        text.push_str(std::str::from_utf8(&event)?);
        text.push('\n');
    }
    Ok(text)
}

/// Nothing that was planted is read, and of what came in order all that need not be masked: the very bytes that a reading of the
/// same recording by hand leaves.
async fn check_read(system: &System<'_>, corpus: &[Case], sent: &[Sent]) -> Result<()> {
    let mut found = BTreeMap::new();
    for sent in sent {
        let case = &corpus[sent.case];
        let text = read(system, sent.session.id).await?;
        for marker in case.markers().iter().filter(|marker| text.contains(marker.as_str())) {
            found.entry((&case.described.class, &case.described.name)).or_insert_with(Vec::new).push(marker.clone());
        }
        if sent.in_order {
            for kept in &case.described.kept {
                ensure!(text.contains(kept), "{}: {kept} need not be masked", case.described.name);
            }
            let read: BTreeSet<&str> = text.lines().collect();
            let by_hand = masked_by_hand(case)?;
            for line in by_hand.lines() {
                ensure!(read.contains(line), "{}: an event is not as it is masked by hand", case.described.name);
            }
        }
    }
    ensure!(found.is_empty(), "leaks: {found:?}");
    Ok(())
}

fn masked_by_hand(case: &Case) -> Result<String> {
    let rules = case.rules();
    let mut states: BTreeMap<u32, StreamState> = BTreeMap::new();
    let mut masked = String::new();
    for batch in case.recording.batches() {
        let state = states.entry(batch.stream).or_default();
        let read =
            masking::read(payload_of(batch).as_bytes(), &rules).map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
        let stored = masking::mask(&read.payload, &rules, state).payload.unwrap_or(read.payload);
        masked.push_str(std::str::from_utf8(&stored)?);
    }
    Ok(masked)
}

/// Nothing that was planted lies in the bucket once it is opened, nor in the index or a log.
async fn check_stored(system: &System<'_>, markers: &[&str]) -> Result<()> {
    let mut bucket = Scanner::new(markers);
    for object in unsealed::objects(system).await? {
        bucket.source(&object.key.to_string(), &object.clear);
    }
    ensure!(bucket.frames > 0 && bucket.bytes > 0, "nothing was looked through: {bucket:?}");
    ensure!(bucket.found.is_empty(), "in the bucket: {:?}", bucket.found);
    for (place, scanner) in Places::of(system)?.scan(system, markers)? {
        ensure!(scanner.bytes > 0, "nothing was looked through: {place}");
        ensure!(scanner.found.is_empty(), "in {place}: {:?}", scanner.found);
    }
    Ok(())
}

/// In the log lies, under its seal, what only who knows the stream can decide, and nothing else.
async fn check_log(system: &System<'_>, corpus: &[Case], markers: &[&str]) -> Result<()> {
    let mut left: BTreeSet<String> = BTreeSet::new();
    for case in corpus {
        let (rules, markers) = (case.rules(), case.markers());
        for batch in case.recording.batches() {
            let read = masking::read(payload_of(batch).as_bytes(), &rules)
                .map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
            let text = std::str::from_utf8(&read.payload)?;
            for marker in markers.iter().filter(|marker| text.contains(marker.as_str())) {
                ensure!(read.needs_state, "{}: {marker} is left to nobody", case.described.name);
                left.insert(marker.clone());
            }
        }
    }
    let mut log = Scanner::new(markers);
    for record in unsealed::records(system).await? {
        log.source("a record", &record.clear);
    }
    let found: BTreeSet<String> =
        log.found.iter().filter_map(|found| Some(found.split_once(" in ")?.0.to_owned())).collect();
    ensure!(log.frames > 0, "nothing was looked through: {log:?}");
    ensure!(found == left, "in the log lies what the edge could have masked: {:?}", found.difference(&left));
    ensure!(left.len() * 2 < markers.len(), "{} of {} are left to the batcher", left.len(), markers.len());
    Ok(())
}

/// Lays the recordings into the log as an edge would that masked nothing and said that it had: the batcher stores them as they
/// are. Gives what was planted.
async fn lay_down_unmasked<'c>(system: &System<'_>, corpus: &'c [Case]) -> Result<BTreeSet<&'c str>> {
    let file: TransportKeys = service_kit::keys::read(&system.deployment.keys.join(service_kit::keys::TRANSPORT_FILE))?;
    let (epoch, key) = file.current();
    let sealer = RecordSealer::new(key, epoch)?;
    let topic = system.deployment.topic.clone();
    let config = KafkaConfig {
        brokers: system.deployment.endpoints().kafka_brokers,
        topic_events: topic.clone(),
        delivery_timeout: SOON,
    };
    let producer: FutureProducer = service_kit::kafka::client(&config, "control").create()?;
    let link = system.link("control").await?;
    let mut sent: Vec<(SessionId, u64)> = Vec::new();
    let mut sending = Vec::new();
    for case in corpus {
        let session = SessionId(Uuid::now_v7());
        let consent = Consent {
            link: link.id,
            consented_at_ms: service_kit::time::now_ms(),
            notice_version: NOTICE_VERSION.to_owned(),
            receipt: ReceiptId(Uuid::now_v7()),
        };
        for batch in case.recording.batches() {
            let payload = payload_of(batch).into_bytes();
            let timestamps = || batch.timestamps().iter().copied();
            let facts = BatchFacts {
                events: batch.events().len() as u32,
                raw_bytes: payload.len() as u32,
                ts_min: timestamps().min().unwrap_or_default(),
                ts_max: timestamps().max().unwrap_or_default(),
                content_hash: BatchFacts::hash(&payload),
                ..BatchFacts::default()
            };
            let header = Header::Batch {
                key: system.key(session),
                consent: consent.clone(),
                place: StreamSeq::new(batch.stream, batch.seq).context("a stream of 31 bits")?,
                end: batch.end,
                masking: Some(Masking::default()),
                facts,
            };
            let frame = if payload.is_empty() { Vec::new() } else { codec::compress(&payload, 1) };
            let place = LogPlace { topic: &topic, key: session.as_bytes() };
            let value = sealer.seal(&place, &header, &frame)?;
            sending.push(sealed::produce(&producer, &topic, session.as_bytes(), &value)?);
        }
        sent.push((session, case.recording.batches().len() as u64));
    }
    sealed::await_delivered(sending).await?;
    for (session, batches) in sent {
        until("the control is stored", SOON, || async {
            match system.api.session(session).await {
                Ok(session) if stored(&session) == batches => Seen::Done(()),
                Ok(session) => Seen::not_yet(format_args!("{} of {batches}", stored(&session))),
                Err(error) => Seen::not_yet(error),
            }
        })
        .await?;
    }
    Ok(corpus.iter().flat_map(|case| &case.described.secrets).map(String::as_str).collect())
}

/// The same search finds everything where nothing was masked, and finds what lies in clear in the index and in logs.
async fn check_control(system: &System<'_>, planted: &BTreeSet<&str>, markers: &[&str]) -> Result<()> {
    let mut scanned: Vec<(&str, Scanner<'_>)> = Vec::new();
    let mut bucket = Scanner::new(markers);
    for object in unsealed::objects(system).await? {
        bucket.source("the bucket", &object.clear);
    }
    scanned.push(("the bucket", bucket));
    let mut log = Scanner::new(markers);
    for record in unsealed::records(system).await? {
        log.source("the log", &record.clear);
    }
    scanned.push(("the log", log));
    for (place, scanner) in &scanned {
        let found: BTreeSet<&str> =
            scanner.found.iter().filter_map(|found| Some(found.rsplit_once(" in ")?.0)).collect();
        let missed: Vec<&&str> =
            planted.iter().filter(|secret| !forms(secret).iter().any(|form| found.contains(form.as_str()))).collect();
        ensure!(
            missed.is_empty(),
            "the search does not find {} of what lies unmasked in {place}: {missed:?}",
            missed.len()
        );
    }
    let first = planted.iter().next().context("something was planted")?;
    sealed::unseal(system, first).await?;
    let control = Places::of(system)?.scan(system, markers)?;
    sealed::clean_up(system).await?;
    for (place, scanner) in &control {
        ensure!(!scanner.found.is_empty(), "the search does not find what lies in clear in {place}");
    }
    Ok(())
}

/// Where all came in order nothing but what has to be is masked: every event of the recordings is read as it is masked by hand,
/// and most of them are the bytes that were sent.
#[test]
fn what_need_not_be_masked_is_read_byte_for_byte() -> Result<()> {
    run(DeploymentOptions::named("unmasked").with("batcher", "CLAIRVIO_FLUSH_AGE_MS", 300), &[], async |system| {
        let (link, sdk) = (system.link("unmasked").await?, system.sdk(1)?);
        for recording in recordings::load()? {
            let session = load::begin(system, &sdk, &link).await?;
            for batch in recording.batches() {
                load::send(system, &sdk, &session, &Arc::new(batch.clone()), Form::Lines, Encoding::Zstd).await?;
            }
            let compared = load::compare(system, session.id, SOON).await?;
            ensure!(compared.masked_more == 0, "{}: more is masked than has to be: {compared}", recording.name);
            let sent: BTreeSet<String> =
                recording.batches().iter().flat_map(Batch::events).map(|event| event.get().to_owned()).collect();
            let text = read(system, session.id).await?;
            let (mut same, mut changed) = (0, 0);
            for line in text.lines().filter(|line| !sent.contains(*line)) {
                ensure!(line.contains("***"), "{}: an event was changed, and nothing is masked in it", recording.name);
                // What was typed is as long as what the SDK made of it, which tells its length.
                changed += u64::from(!line.contains(r#""source":5"#));
            }
            for line in text.lines() {
                same += u64::from(sent.contains(line));
            }
            ensure!(same > 10 * changed, "{}: {changed} events were changed, {same} were not", recording.name);
        }
        Ok(())
    })
}
