//! What a decline leaves, and where references are.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use devstack::DeploymentOptions;
use reqwest::StatusCode;
use schemas::codec::hex;
use schemas::http::WorkspacePatch;
use virtual_sdk::sdk::random_attempt;
use virtual_sdk::{Encoding, Form, SessionQuery};

use crate::harness::{LATER, SOON, System, logs, run};
use crate::load;
use crate::sealed::{self, Places};
use crate::unsealed;

/// Goal: of a decline only a count of workspace and hour is kept, and no byte of the visitor lies anywhere (P2). Method: markers in
/// everything that a decline sends, and afterwards two searches: of all tables, the topic, the bucket and the logs with every seal
/// opened, and of Kafka's folder, the bucket's, a dump of Postgres and all logs as they lie on disk. Each has to find what a
/// control session left, the second once that was laid down without its seals.
#[test]
fn p02_a_decline_leaves_only_a_count() -> Result<()> {
    const DECLINES: i64 = 7;
    run(DeploymentOptions::named("decline"), &[], async |system| {
        let (sdk, edge) = (system.sdk(1)?, system.url("ingest-edge", 1)?);
        let link = system.link("declining-reference").await?;
        let (agent, attempt) = (format!("agent-{}", random_attempt()), format!("attempt-{}", random_attempt()));
        for number in 0..DECLINES {
            let body = serde_json::json!({
                "link": link.token, "decision": "declined", "notice_version": "notice-of-decline",
                "attempt": format!("{attempt}{number}"),
            });
            let answer = reqwest::Client::new()
                .post(format!("{edge}/v1/consent"))
                .header("user-agent", &agent)
                .header("origin", "https://declining.example")
                .json(&body)
                .send()
                .await?;
            ensure!(answer.status() == StatusCode::NO_CONTENT, "a decline was answered with {}", answer.status());
            ensure!(answer.bytes().await?.is_empty(), "a decline's answer has a body");
        }
        let control = load::begin(system, &sdk, &system.link("control-reference").await?).await?;
        let planted = format!("planted-{}", random_attempt());
        let batch = load::planted_batch(control.id, 0, true, &planted)?;
        load::send(system, &sdk, &control, &batch, Form::Array, Encoding::Identity).await?;
        load::compare_all(system, SOON).await?;
        system
            .wait_count(
                "all declines are counted",
                "select coalesce(sum(count), 0)::bigint from decline_count",
                DECLINES,
                SOON,
            )
            .await?;
        load::wait_compacted(system, LATER).await?;

        let places = everything(system).await?;
        let found = |marker: &str| -> Vec<&str> {
            let holding = places.iter().filter(|(_, text)| text.contains(marker));
            holding.map(|(place, _)| place.as_str()).collect()
        };
        // A search that cannot fail proves nothing.
        let source = planted.clone();
        for kind in ["bucket", "topic"] {
            ensure!(
                found(&source).iter().any(|place| place.starts_with(kind)),
                "the control's event is not in the {kind}"
            );
        }
        ensure!(found(&control.id.to_string()).contains(&"table session"), "the control's row is not found");
        for marker in [&agent, &attempt, "notice-of-decline", "declining.example", &link.token] {
            let places = found(marker);
            ensure!(places.is_empty(), "{} of a decline stands in {places:?}", &marker[..12]);
        }
        let link_id = link.id.to_string();
        let markers = [agent.as_str(), &attempt, "notice-of-decline", "declining.example", &link.token];
        let disk = Places::of(system)?;
        sealed::unseal(system, &planted).await?;
        let controls = [planted.as_str()];
        let scanned = (disk.scan(system, &markers), disk.scan(system, &controls));
        sealed::clean_up(system).await?;
        let (declined, control_found) = (scanned.0?, scanned.1?);
        for (place, scanner) in &declined {
            ensure!(scanner.found.is_empty(), "of a decline lies in {place}: {:?}", scanner.found);
        }
        for (place, scanner) in &control_found {
            ensure!(!scanner.found.is_empty(), "the scanner does not find what lies unsealed in {place}");
        }
        for (place, text) in &places {
            let is_in_declines = place == "table decline_count" && text.contains(&link_id);
            let is_elsewhere = place != "table link" && text.contains(&link_id);
            ensure!(!is_in_declines && !is_elsewhere, "the declined link stands in {place}");
        }
        let links = system.api.all_links().await?;
        let declined = links.iter().find(|item| item.id == link.id).context("find link")?;
        ensure!(declined.sessions == 0, "the declined link counts {} sessions", declined.sessions);
        let query = SessionQuery { reference: Some("declining-reference".into()), ..SessionQuery::default() };
        ensure!(system.api.all_sessions(&query).await?.is_empty(), "a session of a declined link is listed");
        ensure!(system.count("select count(*) from session").await? == 1, "there are other sessions than the control");
        Ok(())
    })
}

/// Goal: a reference lies in Postgres only, and there sealed (P6). Method: a session of a link with a marked reference goes its
/// whole way, is listed by its reference and deleted; the marker is in no token, record, object, log line or row. The
/// workspace's name holds another marker, which the same search finds.
#[test]
fn p06_references_lie_in_postgres_only_and_sealed() -> Result<()> {
    run(DeploymentOptions::named("reference"), &[], async |system| {
        let reference = format!("marked-{}@customer.example", random_attempt());
        let name = format!("named-{}", random_attempt());
        let patch = WorkspacePatch { name: Some(name.clone()), ..WorkspacePatch::default() };
        system.api.change_workspace(&patch).await?;
        let link = system.link(&reference).await?;
        let (sdk, recording) = (system.sdk(1)?, load::recording("login-short")?);
        let sent = load::send_recording(system, std::slice::from_ref(&sdk), &link, &recording, 0).await?;
        load::compare_all(system, SOON).await?;
        let before = everything(system).await?;
        load::wait_compacted(system, LATER).await?;
        let query = SessionQuery { reference: Some(reference.clone()), ..SessionQuery::default() };
        let listed = system.api.all_sessions(&query).await?;
        ensure!(listed.len() == 1 && listed[0].reference == reference, "the session is not listed by its reference");
        system.api.delete_session(sent.session.id).await?;
        let after = everything(system).await?;

        for token in [&link.token, &sent.session.token] {
            let text = decode_token(token)?;
            ensure!(text.contains("clairvio-edge"), "a token that cannot be looked into");
            ensure!(!text.contains(&reference), "the reference stands in a token");
        }
        ensure!(after.get("table workspace").is_some_and(|text| text.contains(&name)), "the search finds nothing");
        let row = after.get("table link").is_some_and(|text| text.contains(&link.id.to_string()));
        ensure!(row, "the link's row was not looked into");
        // Columns of bytes are shown so.
        let hex = hex(reference.as_bytes());
        for (place, text) in before.iter().chain(&after) {
            let forms = [reference.clone(), reference.replace('@', "%40"), hex.clone()];
            ensure!(!forms.iter().any(|form| text.contains(form)), "the reference stands in {place}");
        }
        Ok(())
    })
}

fn decode_token(token: &str) -> Result<String> {
    use base64::Engine as _;
    let parts = token.split('.').take(2);
    let decoded = parts.map(|part| Ok(base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part)?));
    let bytes = decoded.collect::<Result<Vec<_>>>()?.concat();
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// All that is stored anywhere, as texts by place: sealed bytes as they lie and opened, compressed frames as they lie and
/// decompressed.
async fn everything(system: &System<'_>) -> Result<BTreeMap<String, String>> {
    let mut places = BTreeMap::new();
    let tables: Vec<String> = sqlx::query_scalar(
        "select format('%I.%I', table_schema, table_name) from information_schema.tables
         where table_schema not in ('pg_catalog', 'information_schema') and table_type = 'BASE TABLE'",
    )
    .fetch_all(system.index.pool())
    .await?;
    ensure!(tables.len() > 5, "there are more tables than {tables:?}");
    for table in tables {
        let query = format!("select coalesce(string_agg(t::text, E'\\n'), '') from {table} t");
        let text: String = sqlx::query_scalar(sqlx::AssertSqlSafe(query)).fetch_one(system.index.pool()).await?;
        let name = table.rsplit_once('.').map_or(table.as_str(), |(_, name)| name);
        places.insert(format!("table {name}"), text);
    }
    for object in unsealed::objects(system).await? {
        places.insert(format!("bucket {}", object.key), opened(&[object.body.as_ref(), &object.clear].concat()));
    }
    let records = unsealed::records(system).await?;
    ensure!(!records.is_empty(), "the topic is empty");
    for (number, record) in records.iter().enumerate() {
        let bytes = [record.key.as_slice(), &record.value, &record.clear].concat();
        places.insert(format!("topic record {number}"), opened(&bytes));
    }
    for log in logs(system.stack, &system.name)? {
        let bytes = std::fs::read(&log)?;
        places.insert(format!("log {}", log.display()), String::from_utf8_lossy(&bytes).into_owned());
    }
    Ok(places)
}

/// The bytes as text, and after them every zstd frame in them, decompressed.
fn opened(bytes: &[u8]) -> String {
    const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
    let mut text = String::from_utf8_lossy(bytes).into_owned();
    for at in 0..bytes.len().saturating_sub(4) {
        if bytes[at..at + 4] == ZSTD_MAGIC
            && let Ok(decoder) = zstd::stream::read::Decoder::with_buffer(&bytes[at..])
        {
            let mut raw = Vec::new();
            // What follows the frame is no frame, which is an error after all of it was read.
            let _ = std::io::Read::read_to_end(&mut decoder.single_frame(), &mut raw);
            text.push('\n');
            text.push_str(&String::from_utf8_lossy(&raw));
        }
    }
    text
}
