//! What is acknowledged is read, whole, in order, whichever way.

use std::io::Read as _;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use devstack::DeploymentOptions;
use futures::future::try_join_all;
use schemas::SessionId;
use schemas::http::{ConsoleCounts, SessionItem, StoredAs};
use serde_json::json;
use serde_json::value::RawValue;
use virtual_sdk::recordings::Batch;
use virtual_sdk::verify::read_back;
use virtual_sdk::{EventsFormat, Recording, Seen, SessionQuery, recordings, until};

use crate::harness::{LATER, SOON, System, logs, run};
use crate::load::{self, Sent, made_up_batch};

/// Goal: what was acknowledged is read back, each event once, unchanged, in order, from shared objects and from session
/// objects alike, in all forms of an answer. Method: all recordings and one made up session with two interleaved streams, at
/// once over two edges and two batchers, with copies and in the wrong order; the compactor stands still until the shared
/// objects were read.
#[test]
fn every_acknowledged_event_is_read_back_before_and_after_compaction() -> Result<()> {
    let options = DeploymentOptions { edges: 2, batchers: 2, ..DeploymentOptions::named("reading") }.with(
        "compactor",
        "CLAIRVIO_RUN_AGE_MS",
        2_000,
    );
    run(options, &[], async |system| {
        let compactor = system.service("compactor", 1);
        system.deployment.supervisor.pause(&compactor).await?;
        let link = system.link("reading").await?;
        let sdks = [system.sdk(1)?, system.sdk(2)?];
        let mut material: Vec<Arc<Recording>> = recordings::load()?.into_iter().map(Arc::new).collect();
        material.push(Arc::new(interleaved()?));
        material.push(Arc::new(known()?));
        let sending = material
            .iter()
            .enumerate()
            .map(|(variant, recording)| load::send_recording(system, &sdks, &link, recording, variant));
        let sent = try_join_all(sending).await?;

        let total = load::compare_all(system, SOON).await?;
        ensure!(total.expected > 4_000 && total.read == total.expected, "compare totals: {total}");
        for sent in &sent {
            check_item(system, sent, StoredAs::Shared).await?;
            check_forms(system, sent.session.id).await?;
        }
        let known = sent.last().context("the last one was sent")?.session.id;
        check_known(&system.api.session(known).await?).context("before compaction")?;

        system.deployment.supervisor.resume(&compactor).await?;
        load::wait_compacted(system, LATER).await?;
        let again = load::compare_all(system, SOON).await?;
        ensure!(again.read == total.read, "compare with the reading before: {again}; {total}");
        for sent in &sent {
            check_item(system, sent, StoredAs::Object).await?;
            check_forms(system, sent.session.id).await?;
        }
        check_known(&system.api.session(known).await?).context("after compaction")?;
        check_list(system, known).await
    })
}

/// Where the known session went: a name that stands in nothing else.
const SHOP: &str = "https://shop-4711.test";

/// A session of which is known what happened in it.
fn known() -> Result<Recording> {
    let start = 1_700_000_000_000_i64;
    let batch = |seq: u32, end: bool, events: &[(u8, i64, serde_json::Value)]| {
        let raw = |(kind, at, data): &(u8, i64, serde_json::Value)| {
            serde_json::value::to_raw_value(&json!({ "type": kind, "timestamp": start + at, "data": data }))
        };
        let events = events.iter().map(raw).collect::<Result<Vec<_>, _>>()?;
        anyhow::Ok(Batch::new(9, seq, end, u64::from(seq), events)?)
    };
    let meta = |path: &str| json!({ "href": format!("{SHOP}{path}"), "width": 1280, "height": 720 });
    let click = json!({ "source": 2, "type": 2, "id": 5, "x": 1, "y": 2 });
    let input = json!({ "source": 5, "text": "***", "isChecked": false, "id": 6 });
    let message = |level: &str| json!({ "plugin": "rrweb/console@1", "payload": { "level": level, "payload": [] } });
    let requests = json!([{ "status": 200 }, { "status": 404 }, { "status": 0, "error": "network" }]);
    let requests = json!({ "plugin": "rrweb/network@1", "payload": { "requests": requests } });
    let batches = vec![
        batch(
            0,
            false,
            &[
                (4, 0, meta("/cart?mail=a@b.test")),
                (2, 5, json!({ "node": { "type": 0, "childNodes": [], "id": 1 } })),
                (3, 1_000, click.clone()),
            ],
        )?,
        batch(1, false, &[(3, 1_500, click), (6, 1_600, message("warn")), (6, 1_700, message("error"))])?,
        // Without an interaction: the pause goes on over it.
        batch(2, false, &[(3, 1_800, json!({ "source": 0, "texts": [] })), (6, 1_900, requests)])?,
        batch(3, false, &[(3, 2_000, input.clone()), (4, 2_100, meta("/pay#card")), (4, 2_200, meta("/cart"))])?,
        // After a pause that is too long to be activity.
        batch(
            4,
            true,
            &[(3, 12_000, input), (3, 12_400, json!({ "source": 1, "positions": [] })), (5, 12_500, json!({}))],
        )?,
    ];
    Ok(Recording::new("known", batches)?)
}

/// What the API tells of [`known`].
fn check_known(item: &SessionItem) -> Result<()> {
    ensure!(item.active_ms == 500 + 500 + 400, "active for {} ms", item.active_ms);
    ensure!((item.clicks, item.keypresses) == (2, 2), "{} clicks, {} inputs", item.clicks, item.keypresses);
    let console = ConsoleCounts { error: 1, warn: 1, ..ConsoleCounts::default() };
    ensure!(item.console == console && item.errors == 1, "{:?}, {} errors", item.console, item.errors);
    ensure!(item.failed_requests == 2, "{} failed requests", item.failed_requests);
    ensure!(item.pages == 3 && item.urls == ["/cart", "/pay"].map(|path| format!("{SHOP}{path}")), "{:?}", item.urls);
    Ok(())
}

/// All sessions as they are listed, and how the first of them that differs from itself does.
async fn differing(system: &System<'_>) -> Result<(Vec<SessionItem>, Option<String>)> {
    let of = |item: &SessionItem| {
        let sums =
            (item.active_ms, item.clicks, item.keypresses, item.console, item.failed_requests, item.urls.clone());
        (sums, item.events, item.counts)
    };
    let all = system.api.all_sessions(&SessionQuery::default()).await?;
    for listed in &all {
        let item = system.api.session(listed.id).await?;
        if of(listed) != of(&item) {
            let differing = format!("session {} is listed as {:?}, and is {:?}", item.id, of(listed), of(&item));
            return Ok((all, Some(differing)));
        }
    }
    Ok((all, None))
}

/// The list shows the same, and finds sessions by their pages; what was asked for is in no log.
async fn check_list(system: &System<'_>, known: SessionId) -> Result<()> {
    // Sums are exact once all parts of a session are one.
    let all = until("the list tells what the sessions tell", LATER, || async {
        match differing(system).await {
            Ok((all, None)) => Seen::Done(all),
            Ok((_, Some(differing))) => Seen::not_yet(differing),
            Err(error) => Seen::not_yet(error),
        }
    })
    .await?;
    ensure!(all.len() > 3, "{} sessions are listed", all.len());
    check_known(all.iter().find(|item| item.id == known).context("the session is listed")?).context("in the list")?;

    for (url, is_found) in [
        ("/cart", true),
        ("/cart?mail=other@b.test#x", true),
        ("/ca", true),
        ("", true),
        ("/", true),
        ("/pay", true),
        ("/cart/", false),
        ("/art", false),
        (".example/cart", false),
    ] {
        let query = SessionQuery { url: Some(format!("{SHOP}{url}")), ..SessionQuery::default() };
        let found: Vec<SessionId> = system.api.all_sessions(&query).await?.iter().map(|item| item.id).collect();
        ensure!(found == if is_found { vec![known] } else { vec![] }, "by {url}: {} sessions", found.len());
    }
    for url in ["cart-4711", "ftp://shop-4711.test/", "https://"] {
        let query = SessionQuery { url: Some(url.to_owned()), ..SessionQuery::default() };
        let status = system.api.list_sessions(&query).await.err().and_then(|error| error.status());
        ensure!(status == Some(422), "{url} was answered with {status:?}");
    }
    let mut bytes = 0;
    for log in logs(system.stack, &system.name)? {
        let text = String::from_utf8_lossy(&std::fs::read(&log)?).into_owned();
        ensure!(!text.contains("-4711"), "{} names a page", log.display());
        bytes += text.len();
    }
    ensure!(bytes > 0, "the services wrote no log");
    Ok(())
}

/// Two streams whose timestamps interleave, with equal ones and a clock that jumps back.
fn interleaved() -> Result<Recording> {
    let mut batches = Vec::new();
    for seq in 0..8 {
        for stream in [3, 1] {
            // The clock of stream 1 goes back by more than a batch with every second one; its events stay in their
            // order, and the other stream's must not slip in between.
            let back = if stream == 1 && seq % 2 == 1 { 700 } else { 0 };
            let timestamp = |position| i64::from(seq) * 100 + position / 2 * 40 - back;
            let session = SessionId(uuid::Uuid::nil());
            let batch = made_up_batch(session, stream, seq, seq == 7, 2_000, timestamp)?;
            let batch = Arc::into_inner(batch).context("a batch that nobody else has")?;
            batches.push(batch);
        }
    }
    Ok(Recording::new("interleaved", batches)?)
}

async fn check_item(system: &System<'_>, sent: &Sent, stored_as: StoredAs) -> Result<()> {
    let session = sent.session.id;
    let ledger = system.ledger.session(session).context("find session in ledger")?;
    let item = system.api.session(session).await?;
    let completeness = item.completeness.as_ref().context("a session says what of it is there")?;
    ensure!(item.stored_as == Some(stored_as), "session {session} is {:?}", item.stored_as);
    ensure!(item.events == ledger.events(), "the index counts {} of {} events", item.events, ledger.events());
    ensure!(completeness.batches == ledger.batches(), "{} of {}", completeness.batches, ledger.batches());
    ensure!(completeness.missing.is_empty() && completeness.ended, "session {session}: {completeness:?}");
    ensure!(completeness.has_full_snapshot && completeness.conflicts == 0, "session {session}: {completeness:?}");
    // A batch that was answered with an error and repeated may be there twice or not.
    let (least, most) = (sent.copies, sent.copies + sent.repetitions);
    ensure!(
        (least..=most).contains(&completeness.duplicates_dropped),
        "session {session}: {least} to {most} copies were sent, {} were dropped",
        completeness.duplicates_dropped
    );
    Ok(())
}

/// Lines, an array, compressed answers and ranges all show the same events.
async fn check_forms(system: &System<'_>, session: SessionId) -> Result<()> {
    let ledger = system.ledger.session(session).context("find session in ledger")?;
    let array = read_back(&system.api, session, &ledger, EventsFormat::Array).await?.comparison;
    ensure!(array.is_exact(), "as an array: {array}");
    let whole = get(system, session, "application/x-ndjson", "identity").await?;
    for encoding in ["gzip", "zstd"] {
        ensure!(get(system, session, "application/x-ndjson", encoding).await? == whole, "{encoding} reads otherwise");
    }
    let body = get(system, session, "application/json", "gzip").await?;
    let as_array: Vec<&RawValue> = serde_json::from_slice(&body).context("read array")?;
    let lines: Vec<&[u8]> = whole.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    ensure!(
        as_array.iter().map(|event| event.get().as_bytes()).eq(lines.iter().copied()),
        "the elements of the array are not the lines"
    );

    let stamped: Vec<(i64, &[u8])> = lines
        .iter()
        .map(|line| Ok((timestamp(line).context("an event has a timestamp")?, *line)))
        .collect::<Result<_>>()?;
    let mut times: Vec<i64> = stamped.iter().map(|(timestamp, _)| *timestamp).collect();
    times.sort_unstable();
    let (early, late) = (times[times.len() / 4], times[times.len() * 3 / 4]);
    for (from, to) in [(Some(early), Some(late)), (Some(late), None), (None, Some(early)), (Some(late + 1), Some(late))]
    {
        let range = from.unwrap_or(i64::MIN)..=to.unwrap_or(i64::MAX);
        let expected = stamped.iter().filter(|(timestamp, _)| range.contains(timestamp)).map(|(_, line)| *line);
        let mut events = system.api.events_between(session, EventsFormat::Lines, from, to).await?;
        let mut read = Vec::new();
        while let Some(event) = events.next_event().await? {
            read.push(event);
        }
        ensure!(
            read.iter().map(|event| event.as_ref()).eq(expected),
            "session {session} from {from:?} to {to:?}: {} events of {}",
            read.len(),
            lines.len()
        );
    }
    Ok(())
}

fn timestamp(event: &[u8]) -> Option<i64> {
    let event: serde_json::Value = serde_json::from_slice(event).ok()?;
    Some(event.get("timestamp")?.as_f64()?.floor() as i64)
}

async fn get(system: &System<'_>, session: SessionId, accept: &str, encoding: &str) -> Result<Vec<u8>> {
    let endpoints = system.deployment.endpoints();
    let answer = reqwest::Client::new()
        .get(format!("{}/v1/sessions/{session}/events", endpoints.api_url))
        .bearer_auth(&endpoints.api_key)
        .header("accept", accept)
        .header("accept-encoding", encoding)
        .send()
        .await?
        .error_for_status()?;
    let found = answer.headers().get("content-encoding").and_then(|value| value.to_str().ok()).unwrap_or("identity");
    ensure!(found == encoding, "asked for {encoding}, got {found}");
    let body = answer.bytes().await?;
    let mut decoded = Vec::new();
    match encoding {
        "gzip" => {
            flate2::read::MultiGzDecoder::new(body.as_ref()).read_to_end(&mut decoded)?;
        }
        "zstd" => decoded = zstd::decode_all(body.as_ref())?,
        _ => decoded.extend_from_slice(&body),
    }
    Ok(decoded)
}
