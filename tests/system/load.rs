//! Sending: recordings in all forms, small batches for as long as faults go on, and comparing what is read with the ledger.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use schemas::http::{DeletionState, LinkCreated, SessionItem, StoredAs};
use schemas::{DeletionId, SessionId};
use serde_json::value::RawValue;
use tokio::time::Instant;
use virtual_sdk::ledger::mark;
use virtual_sdk::recordings::Batch;
use virtual_sdk::sdk::random_attempt;
use virtual_sdk::verify::{look_for_batches, read_back};
use virtual_sdk::{
    Api, Body, Comparison, Content, Encoding, EventsFormat, Form, Recording, Sdk, Seen, Session, recordings, until,
};

use crate::harness::{LATER, NOTICE_VERSION, SOON, System};

/// For one batch to be acknowledged, repetitions and restarts of services included.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(90);

const FORMS: [Form; 3] = [Form::Array, Form::Lines, Form::Beacon];

pub(crate) fn deadline() -> Instant {
    Instant::now() + ACKNOWLEDGED_WITHIN
}

pub(crate) fn recording(name: &str) -> Result<Arc<Recording>> {
    let path = recordings::folder().join(format!("{name}.ndjson.gz"));
    Ok(Arc::new(Recording::read(&path)?))
}

/// Begins a session, and notes it in the ledger.
pub(crate) async fn begin(system: &System<'_>, sdk: &Sdk, link: &LinkCreated) -> Result<Session> {
    let accepted = sdk.accept_until_answered(&link.token, NOTICE_VERSION, &random_attempt(), deadline()).await?;
    system.ledger.begin(accepted.answer.id);
    Ok(accepted.answer)
}

/// Sends a batch and notes its fate: in doubt before the first attempt, so that a reader who is faster is right too.
pub(crate) async fn send(
    system: &System<'_>,
    sdk: &Sdk,
    session: &Session,
    batch: &Arc<Batch>,
    form: Form,
    encoding: Encoding,
) -> Result<()> {
    let (stream, seq) = (batch.stream, batch.seq);
    let body = Body::of_batch(batch, form, encoding)?;
    let content = Content::Own(Arc::clone(batch));
    system.ledger.doubt(session.id, stream, seq, content.clone());
    let sent = sdk.send_until_acknowledged(session, stream, seq, batch.end, &body, deadline()).await;
    sent.with_context(|| format!("send stream {stream}, seq {seq}"))?;
    system.ledger.acknowledge(session.id, stream, seq, content);
    Ok(())
}

/// What was done on purpose to a session that was sent.
pub(crate) struct Sent {
    pub(crate) session: Session,
    /// Batches that were sent once more.
    pub(crate) copies: u64,
    /// Batches that were answered with anything but 202 and repeated for that.
    pub(crate) repetitions: u64,
}

/// Sends a whole recording as a session: encodings and forms in turn, edges in turn, neighbours of a stream in the wrong
/// order now and then, and some batches twice.
pub(crate) async fn send_recording(
    system: &System<'_>,
    sdks: &[Sdk],
    link: &LinkCreated,
    recording: &Arc<Recording>,
    variant: usize,
) -> Result<Sent> {
    let session = begin(system, &sdks[variant % sdks.len()], link).await?;
    let batches = recording.batches();
    let mut order: Vec<usize> = (0..batches.len()).collect();
    // Seq 2 before 1, 5 before 4, …: the neighbours are of one stream, or it would not be out of order.
    for pair in (1..batches.len().saturating_sub(1)).step_by(3) {
        if batches[pair].stream == batches[pair + 1].stream {
            order.swap(pair, pair + 1);
        }
    }
    let mut sent = Sent { session, copies: 0, repetitions: 0 };
    for (turn, place) in order.into_iter().enumerate() {
        let batch = &batches[place];
        let (stream, seq, end) = (batch.stream, batch.seq, batch.end);
        let mark = mark(sent.session.id, stream, seq, batch);
        let encoding = Encoding::ALL[(variant + turn) % Encoding::ALL.len()];
        let form = FORMS[(variant + turn / Encoding::ALL.len()) % FORMS.len()];
        let body = Body::of_marked_batch(batch, &mark, form, encoding)?;
        let times = if turn % 4 == 1 { 2 } else { 1 };
        for time in 0..times {
            // The copy goes through another edge, as after a change of the load balancer's mind.
            let sdk = &sdks[(variant + turn + time) % sdks.len()];
            let sending = sdk.send_until_acknowledged(&sent.session, stream, seq, end, &body, deadline());
            let delivered = sending.await.with_context(|| format!("send {} batch {place}", recording.name))?;
            sent.repetitions += delivered.failures.len() as u64;
        }
        sent.copies += times as u64 - 1;
        let content = Content::Marked { recording: Arc::clone(recording), batch: u32::try_from(place)? };
        system.ledger.acknowledge(sent.session.id, stream, seq, content);
    }
    Ok(sent)
}

/// A batch whose every event says whose it is.
pub(crate) fn small_batch(session: SessionId, stream: u32, seq: u32, end: bool, padding: usize) -> Result<Arc<Batch>> {
    // Streams are interleaved, and each batch begins before the last one ended.
    let timestamp = |position| i64::from(seq) * 100 + position * 40 + i64::from(stream);
    made_up_batch(session, stream, seq, end, padding, timestamp)
}

/// The same, with timestamps of the caller's, by position.
pub(crate) fn made_up_batch(
    session: SessionId,
    stream: u32,
    seq: u32,
    end: bool,
    padding: usize,
    timestamp: impl Fn(i64) -> i64,
) -> Result<Arc<Batch>> {
    let events = (0..4)
        .map(|position| {
            let kind = if seq == 0 && position == 0 { 2 } else { 3 };
            let filling = "x".repeat(padding);
            let text = format!(
                r#"{{"type":{kind},"data":{{"source":"{session}/{stream}/{seq}/{position}","filling":"{filling}"}},"timestamp":{}}}"#,
                1_700_000_000_000_i64 + timestamp(position)
            );
            Ok(RawValue::from_string(text)?)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(Batch::new(stream, seq, end, u64::from(seq), events)?))
}

/// A batch of stream 0 of about so many bytes that compress badly.
pub(crate) fn dense_batch(session: SessionId, seq: u32, end: bool, bytes: usize) -> Result<Arc<Batch>> {
    let mut noise = String::with_capacity(bytes);
    while noise.len() < bytes {
        noise.push_str(&random_attempt());
    }
    let source = format!("{session}/0/{seq}/0");
    let kind = if seq == 0 { 2 } else { 3 };
    let at = 1_700_000_000_000_i64 + i64::from(seq) * 100;
    let event = serde_json::json!({"type": kind, "data": {"source": source, "noise": noise}, "timestamp": at});
    Ok(Arc::new(Batch::new(0, seq, end, u64::from(seq), vec![serde_json::value::to_raw_value(&event)?])?))
}

/// A batch of stream 0 with a text planted in every event, among texts that are like it: what compresses it refers back.
pub(crate) fn planted_batch(session: SessionId, seq: u32, end: bool, planted: &str) -> Result<Arc<Batch>> {
    let like = planted.replace(|character: char| character.is_ascii_digit(), "0");
    let events = (0..8)
        .map(|position| {
            let at = 1_700_000_000_000_i64 + i64::from(seq) * 100 + position;
            let source = format!("{session}/0/{seq}/{position}");
            let data = serde_json::json!({"source": source, "like": like.repeat(4), "text": planted});
            let event = serde_json::json!({"type": 3, "data": data, "timestamp": at});
            Ok(serde_json::value::to_raw_value(&event)?)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(Batch::new(0, seq, end, u64::from(seq), events)?))
}

/// Sends small batches in sessions of `batches` each, from `clients` at once over these edges, until `stop` is set.
/// Gives how many batches were acknowledged.
pub(crate) async fn load(
    system: &System<'_>,
    sdks: &[Sdk],
    link: &LinkCreated,
    clients: usize,
    batches: u32,
    stop: &AtomicBool,
) -> Result<u64> {
    let acknowledged = AtomicU64::new(0);
    let client = async |number: usize| {
        let sdk = &sdks[number % sdks.len()];
        // So much that something is always on its way, and so little that the machine is not what is tested.
        let mut pace = tokio::time::interval(Duration::from_millis(20));
        while !stop.load(Ordering::Acquire) {
            let session = begin(system, sdk, link).await?;
            for turn in 0..batches {
                pace.tick().await;
                let is_last = turn + 2 >= batches || stop.load(Ordering::Acquire);
                let batch = small_batch(session.id, turn % 2, turn / 2, is_last, 100)?;
                let encoding = Encoding::ALL[turn as usize % Encoding::ALL.len()];
                send(system, sdk, &session, &batch, FORMS[turn as usize % 2], encoding).await?;
                acknowledged.fetch_add(1, Ordering::Relaxed);
                if is_last && turn % 2 == 1 {
                    break;
                }
            }
        }
        anyhow::Ok(())
    };
    try_join_all((0..clients).map(client)).await?;
    Ok(acknowledged.load(Ordering::Relaxed))
}

/// Runs a load beside `faults` and ends it when they are over.
pub(crate) async fn load_during(
    load: impl Future<Output = Result<u64>>,
    stop: &AtomicBool,
    faults: impl Future<Output = Result<()>>,
) -> Result<u64> {
    let faults = async {
        let outcome = faults.await;
        stop.store(true, Ordering::Release);
        outcome
    };
    let (acknowledged, ()) = tokio::try_join!(load, faults)?;
    Ok(acknowledged)
}

/// Waits until every session in the ledger shows its batches, and compares each with it. What is not there by then is found
/// lost, not an error: the caller counts.
pub(crate) async fn count_all(system: &System<'_>, within: Duration) -> Result<Comparison> {
    let deadline = Instant::now() + within;
    let mut total = Comparison::default();
    for session in system.ledger.sessions() {
        let left = deadline.saturating_duration_since(Instant::now());
        let waited = wait_readable(system, session, left).await;
        let comparison = read(system, session).await?;
        ensure!(waited.is_ok() || !comparison.is_exact(), "session {session} shows all events and {waited:?}");
        total.add(comparison);
    }
    Ok(total)
}

/// The same, and anything lost or doubled is an error.
pub(crate) async fn compare_all(system: &System<'_>, within: Duration) -> Result<Comparison> {
    let mut total = Comparison::default();
    for session in system.ledger.sessions() {
        total.add(compare(system, session, within).await?);
    }
    Ok(total)
}

/// The same for one session.
pub(crate) async fn compare(system: &System<'_>, session: SessionId, within: Duration) -> Result<Comparison> {
    wait_readable(system, session, within).await?;
    let comparison = read(system, session).await?;
    ensure!(comparison.is_exact(), "session {session}: {comparison}");
    Ok(comparison)
}

async fn wait_readable(system: &System<'_>, session: SessionId, within: Duration) -> Result<()> {
    let batches = system.ledger.session(session).context("find session in ledger")?.batches();
    until("all batches are readable", within, || look_for_batches(&system.api, session, batches)).await?;
    Ok(())
}

async fn read(system: &System<'_>, session: SessionId) -> Result<Comparison> {
    let ledger = system.ledger.session(session).context("find session in ledger")?;
    match read_back(&system.api, session, &ledger, EventsFormat::Lines).await {
        Ok(read) => Ok(read.comparison),
        // It shows nothing at all, so all of it is lost.
        Err(error) if error.status() == Some(404) => Ok(ledger.compare(session, [""; 0])),
        Err(error) => Err(error).with_context(|| format!("read session {session}")),
    }
}

/// Counts, waits for compaction, and counts again; once is enough when something is lost already.
pub(crate) async fn count_settled(system: &System<'_>) -> Result<Comparison> {
    let before = count_all(system, SOON).await?;
    if !before.is_exact() {
        return Ok(before);
    }
    wait_compacted(system, LATER).await?;
    count_all(system, SOON).await
}

/// Waits until a deletion is erased.
pub(crate) async fn wait_erased(api: &Api, deletion: DeletionId) -> Result<()> {
    until("the deletion is erased", LATER, || async {
        match api.deletion(deletion).await {
            Ok(item) if item.state == DeletionState::Erased => Seen::Done(()),
            Ok(item) => Seen::not_yet(format_args!("it is {:?}", item.state)),
            Err(error) => Seen::not_yet(error),
        }
    })
    .await?;
    Ok(())
}

/// Waits until every session in the ledger is nothing but session objects, and gives them.
pub(crate) async fn wait_compacted(system: &System<'_>, within: Duration) -> Result<BTreeMap<SessionId, SessionItem>> {
    let mut items = BTreeMap::new();
    for session in system.ledger.sessions() {
        items.insert(session, wait_stored(&system.api, session, StoredAs::Object, within).await?);
    }
    Ok(items)
}

pub(crate) async fn wait_stored(
    api: &Api,
    session: SessionId,
    stored_as: StoredAs,
    within: Duration,
) -> Result<SessionItem> {
    let item = until("the session is stored as wanted", within, || async {
        match api.session(session).await {
            Ok(item) if item.stored_as == Some(stored_as) => Seen::Done(item),
            Ok(item) => Seen::not_yet(format_args!("session {session} is {:?}, {:?}", item.stored_as, item.state)),
            Err(error) => Seen::not_yet(error),
        }
    })
    .await?;
    Ok(item)
}

/// Reads sessions of the ledger, one after the other, until `stop` is set. Whatever happens meanwhile, a reading never shows
/// anything twice, altered, foreign or out of order, and never less than an earlier one.
pub(crate) async fn read_all_the_time(system: &System<'_>, stop: &AtomicBool) -> Result<u64> {
    let mut shown: BTreeMap<SessionId, u64> = BTreeMap::new();
    let mut readings = 0;
    let mut rounds = tokio::time::interval(Duration::from_millis(100));
    while !stop.load(Ordering::Acquire) {
        rounds.tick().await;
        let sessions = system.ledger.sessions();
        // The newest are where something goes on.
        for session in sessions.iter().rev().take(20) {
            let mut events = match system.api.events(*session, EventsFormat::Lines).await {
                Ok(events) => events,
                // Accepted, and not stored yet.
                Err(error) if error.status() == Some(404) && !shown.contains_key(session) => continue,
                Err(error) => return Err(error).with_context(|| format!("read session {session} during faults")),
            };
            let mut lines = Vec::new();
            while let Some(event) = events.next_event().await.context("read on during faults")? {
                lines.push(event);
            }
            // Taken after the reading: what was read was noted before.
            let ledger = system.ledger.session(*session).context("find session in ledger")?;
            let comparison = ledger.compare(*session, &lines);
            let wrong = comparison.doubled + comparison.altered + comparison.foreign + comparison.torn;
            ensure!(wrong + comparison.out_of_order == 0, "session {session} during faults: {comparison}");
            let before = shown.insert(*session, comparison.read).unwrap_or_default();
            ensure!(comparison.read >= before, "session {session} showed {before} events, then {}", comparison.read);
            readings += 1;
        }
    }
    Ok(readings)
}

/// Waits until `/readyz` of a service answers with this status; gives the body.
pub(crate) async fn wait_readyz(system: &System<'_>, service: &str, status: u16) -> Result<String> {
    let found = system.deployment.supervisor.running().into_iter().find(|running| running.name == service);
    let Some(running) = found else { bail!("{service} does not run") };
    let url = format!("{}/readyz", running.admin_url);
    let what = format!("{service} answers {status} at {url}");
    let body = until(&what, SOON, || async {
        match reqwest::get(&url).await {
            Ok(answer) if answer.status() == status => Seen::Done(answer.text().await.unwrap_or_default()),
            Ok(answer) => Seen::not_yet(answer.text().await.unwrap_or_default()),
            Err(error) => Seen::not_yet(error),
        }
    })
    .await?;
    Ok(body)
}
