//! What was found in an object or a record, for machines as JSON and for people as tables of the same. Never an event.

use schemas::codec::hex;
use schemas::journal::Entry;
use schemas::object::ObjectKind;
use schemas::paths::ObjectKey;
use schemas::record::{Consent, Envelope, Header};
use schemas::{BatchFacts, SessionKey, session_object, shared_object};
use sealing::transport::Opened;
use serde_json::{Value, json};
use storage::inspect::{Content, Outline, Verified};
use uuid::Uuid;

use crate::output::{counted, moment_ms, row, table};

/// An object: its outline, and its content or why it stays closed.
pub(super) fn object(outline: &Outline, content: Result<&Content, &str>) -> Value {
    let kind = match (outline.kind, outline.key) {
        (Some(ObjectKind::Shared), ObjectKey::Quarantine { .. }) => Some("quarantine object"),
        (Some(ObjectKind::Shared), _) => Some("shared object"),
        (Some(ObjectKind::Session), _) => Some("session object"),
        (Some(ObjectKind::Journal), _) => Some("entry of the journal"),
        (Some(ObjectKind::Export), _) => Some("part of an export"),
        (None, _) => None,
    };
    let mut described = json!({
        "key": outline.key.to_string(),
        "kind": kind,
        "version": outline.version,
        "bytes": outline.bytes,
        "footer": outline.footer.map(|footer| json!({ "at": footer.at, "len": footer.len })),
        "keyring_version": outline.key_version.map(|version| version.0),
        "faults": outline.faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
    });
    match content {
        Ok(Content::Shared(footer)) => described["shared"] = shared(footer),
        Ok(Content::Session(footer)) => described["session"] = session(footer),
        Ok(Content::Journal(entry)) => described["entry"] = journal(entry),
        Ok(Content::Export(bytes)) => described["archive_bytes"] = json!(bytes),
        Err(why) => described["not_opened"] = json!(why),
    }
    described
}

fn shared(footer: &shared_object::Footer) -> Value {
    let chunk = |chunk: &shared_object::Chunk| {
        let batch = |batch: &shared_object::BatchEntry| {
            let mut described = json!({
                "seq": batch.seq,
                "end": batch.end,
                "offset": batch.offset,
                "bytes": batch.len,
            });
            add_facts(&mut described, &batch.facts);
            described
        };
        let mut described = json!({
            "stream": chunk.stream,
            "chunk": hex(&chunk.id),
            "from": chunk.at,
            "to": chunk.at + chunk.len(),
            "batches": chunk.batches.iter().map(batch).collect::<Vec<_>>(),
        });
        add_session(&mut described, &chunk.key);
        described
    };
    let record = |record: &shared_object::Quarantined| {
        json!({
            "offset": record.offset,
            "record_key": record_key(&record.record_key),
            "from": record.at,
            "to": record.at + u64::from(record.len),
            "reason": record.reason.as_str(),
        })
    };
    json!({
        "partition": footer.partition,
        "offset_first": footer.offset_first,
        "offset_next": footer.offset_next,
        "chunks": footer.chunks.iter().map(chunk).collect::<Vec<_>>(),
        "quarantined": footer.quarantined.iter().map(record).collect::<Vec<_>>(),
    })
}

fn session(footer: &session_object::Footer) -> Value {
    let frame = |frame: &session_object::Frame| {
        json!({
            "from": frame.at,
            "to": frame.at + u64::from(frame.len),
            "raw_bytes": frame.raw_len,
            "events": frame.segments.iter().map(|segment| u64::from(segment.events)).sum::<u64>(),
            "time_min": moment_ms(frame.ts_min),
            "time_max": moment_ms(frame.ts_max),
            "full_snapshot": frame.full_snapshot,
        })
    };
    let batches = footer.streams.iter().flat_map(|stream| {
        stream.batches.iter().map(|batch| {
            let mut described = json!({ "stream": stream.stream, "seq": batch.seq, "end": batch.end });
            add_facts(&mut described, &batch.facts);
            described
        })
    });
    let mut described = json!({
        "chunk": hex(&footer.chunk),
        "duplicates": footer.duplicates,
        "conflicts": footer.conflicts,
        "frames": footer.frames.iter().map(frame).collect::<Vec<_>>(),
        "batches": batches.collect::<Vec<_>>(),
    });
    add_session(&mut described, &footer.key);
    described
}

fn journal(entry: &Entry) -> Value {
    json!({
        "deletion": entry.deletion.to_string(),
        "workspace": entry.workspace.to_string(),
        "cause": entry.cause.as_str(),
        "requested_at": moment_ms(i64::try_from(entry.requested_at_ms).unwrap_or(i64::MAX)),
        "sessions": entry.sessions.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "links": entry.marks.iter().flat_map(|marks| &marks.links).map(ToString::to_string).collect::<Vec<_>>(),
    })
}

/// A record: what lies in clear, and its header or why it stays closed.
pub(super) fn record(value: &[u8], key: Uuid, topic: &str, opened: Result<&Opened, &str>) -> Value {
    let mut described = json!({ "record_key": key.to_string(), "topic": topic, "bytes": value.len(), "faults": [] });
    match Envelope::read(value) {
        Ok((envelope, _)) => {
            described["epoch"] = json!(envelope.epoch);
            described["number"] = json!(envelope.number);
        }
        Err(error) => described["faults"] = json!([format!("envelope: {error}")]),
    }
    match opened {
        Ok(opened) => {
            described["header"] = header(&opened.header);
            described["payload_bytes"] = json!(opened.bytes.len() - opened.payload_at);
        }
        Err(why) => described["not_opened"] = json!(why),
    }
    described
}

/// A record's header.
pub(crate) fn header(header: &Header) -> Value {
    match header {
        Header::Acceptance { key, consent } => {
            let mut described = json!({ "kind": "acceptance" });
            add_session(&mut described, key);
            add_consent(&mut described, consent);
            described
        }
        Header::Batch { key, consent, place, end, masking, facts } => {
            let mut described = json!({ "kind": "batch", "stream": place.stream(), "seq": place.seq(), "end": end });
            described["masked_by_edge"] = masking.is_some().into();
            add_session(&mut described, key);
            add_consent(&mut described, consent);
            add_facts(&mut described, facts);
            described
        }
        Header::Declines { workspace, hour_ms, count } => json!({
            "kind": "declines",
            "workspace": workspace.to_string(),
            "hour": moment_ms(i64::try_from(*hour_ms).unwrap_or(i64::MAX)),
            "count": count,
        }),
    }
}

/// What a batch tells of activity.
const ACTIVITY: [&str; 6] = ["active_ms", "clicks", "keypresses", "errors", "failed_requests", "urls"];

fn add_session(to: &mut Value, key: &SessionKey) {
    to["workspace"] = json!(key.workspace.to_string());
    to["session"] = json!(key.session.to_string());
}

fn add_consent(to: &mut Value, consent: &Consent) {
    to["link"] = json!(consent.link.to_string());
    to["receipt"] = json!(consent.receipt.to_string());
    to["consented_at"] = json!(moment_ms(i64::try_from(consent.consented_at_ms).unwrap_or(i64::MAX)));
    to["notice_version"] = json!(consent.notice_version);
}

fn add_facts(to: &mut Value, facts: &BatchFacts) {
    to["events"] = json!(facts.events);
    to["raw_bytes"] = json!(facts.raw_bytes);
    to["time_min"] = json!((facts.events > 0).then(|| moment_ms(facts.ts_min)));
    to["time_max"] = json!((facts.events > 0).then(|| moment_ms(facts.ts_max)));
    to["full_snapshot"] = json!(facts.full_snapshot);
    to["active_ms"] = json!(facts.active_ms);
    to["clicks"] = json!(facts.clicks);
    to["keypresses"] = json!(facts.keypresses);
    to["errors"] = json!(facts.errors);
    to["failed_requests"] = json!(facts.failed_requests);
    // How many: where a person went is theirs, as the events are.
    to["urls"] = json!(facts.urls.len());
}

/// A record's key in the log. Ours are ids; what a stranger wrote is shown as it is.
pub(crate) fn record_key(bytes: &[u8]) -> String {
    Uuid::from_slice(bytes).map_or_else(|_| hex(bytes), |id| id.to_string())
}

/// The same for people.
pub(super) fn render(described: &Value) -> String {
    let mut out = facts_of(
        described,
        &["key", "record_key", "topic", "kind", "version", "bytes", "footer", "keyring_version", "epoch", "number"],
    );
    for fault in list(described, "faults") {
        out.push_str(&format!("fault: {}\n", text(fault)));
    }
    if let Some(why) = described.get("not_opened") {
        out.push_str(&format!("not opened: {}\n", text(why)));
    }
    for part in ["header", "entry"] {
        if let Some(of) = described.get(part) {
            out.push_str(&all_facts_of(of));
        }
    }
    if let Some(of) = described.get("shared") {
        render_shared(of, &mut out);
    }
    if let Some(of) = described.get("session") {
        out.push_str(&facts_of(of, &["workspace", "session", "chunk", "duplicates", "conflicts"]));
        let frames = ["from", "to", "raw_bytes", "events", "time_min", "time_max", "full_snapshot"];
        out.push_str(&columns("frames", of, "frames", &frames));
        let mut batches = vec!["stream", "seq", "events", "raw_bytes", "time_min", "time_max", "end"];
        batches.extend(ACTIVITY);
        out.push_str(&columns("batches", of, "batches", &batches));
    }
    out
}

fn render_shared(of: &Value, out: &mut String) {
    out.push_str(&facts_of(of, &["partition", "offset_first", "offset_next"]));
    for (number, chunk) in list(of, "chunks").enumerate() {
        out.push_str(&format!(
            "chunk {number}: session {}, workspace {}, stream {}, id {}, bytes {}..{}\n",
            text(&chunk["session"]),
            text(&chunk["workspace"]),
            text(&chunk["stream"]),
            text(&chunk["chunk"]),
            text(&chunk["from"]),
            text(&chunk["to"]),
        ));
        let mut batches = vec!["seq", "offset", "bytes", "events", "raw_bytes", "end"];
        batches.extend(ACTIVITY);
        out.push_str(&rows(chunk, "batches", &batches));
    }
    if list(of, "quarantined").next().is_some() {
        out.push_str(&columns(
            "records in quarantine",
            of,
            "quarantined",
            &["offset", "record_key", "from", "to", "reason"],
        ));
    }
}

fn list<'a>(of: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    of[name].as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(" "),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| format!("{name} {}", text(value))).collect::<Vec<_>>().join(", ")
        }
        Value::Number(number) => number.to_string(),
    }
}

fn label(name: &str) -> String {
    name.replace('_', " ")
}

fn facts_of(of: &Value, names: &[&str]) -> String {
    let present = names.iter().filter_map(|name| Some(vec![label(name), text(of.get(name)?)]));
    table("", &present.collect::<Vec<_>>())
}

/// All fields of an object, a line each.
pub(crate) fn all_facts_of(of: &Value) -> String {
    let names: Vec<&str> = of.as_object().into_iter().flatten().map(|(name, _)| name.as_str()).collect();
    facts_of(of, &names)
}

fn columns(title: &str, of: &Value, name: &str, fields: &[&str]) -> String {
    format!("{title}: {}\n{}", list(of, name).count(), rows(of, name, fields))
}

fn rows(of: &Value, name: &str, fields: &[&str]) -> String {
    let head = fields.iter().map(|field| label(field)).collect();
    let items = list(of, name).map(|item| fields.iter().map(|field| text(&item[*field])).collect());
    table("  ", &std::iter::once(head).chain(items).collect::<Vec<Vec<String>>>())
}

/// The counts, then every note, then every fault.
pub(super) fn verified(verified: &Verified) -> String {
    let mut rows = vec![
        row(["frames opened", &verified.frames.to_string()]),
        row(["batches whole", &verified.batches.to_string()]),
        row(["events", &verified.events.to_string()]),
        row(["raw bytes", &verified.raw_bytes.to_string()]),
    ];
    if verified.quarantined > 0 {
        rows.push(row(["records in quarantine, not opened", &verified.quarantined.to_string()]));
    }
    if verified.shredded > 0 {
        rows.push(row(["sessions whose key was destroyed", &verified.shredded.to_string()]));
    }
    if !verified.notes.is_empty() {
        rows.push(row(["notes of streams", &verified.notes.len().to_string()]));
    }
    let mut out = table("", &rows);
    for note in &verified.notes {
        out.push_str(&format!("note: {note}\n"));
    }
    for fault in &verified.faults {
        out.push_str(&format!("fault: {fault}\n"));
    }
    match verified.faults.len() as u64 {
        0 => out.push_str("no fault\n"),
        faults => out.push_str(&format!("{}\n", counted(faults, "fault", "faults"))),
    }
    out
}

#[cfg(test)]
mod tests {
    use schemas::facts::Urls;
    use schemas::shared_object::{BatchEntry, Chunk, Footer, QuarantineReason, Quarantined};
    use schemas::{ObjectId, SessionId, WorkspaceId};
    use sealing::keyring::KeyVersion;
    use storage::index::FooterAt;
    use storage::inspect::{Fault, Note, Place, Problem};

    use super::*;

    fn outline() -> Outline {
        Outline {
            key: ObjectKey::Shared { partition: 3, id: ObjectId(Uuid::from_u128(5)) },
            bytes: 100,
            kind: Some(ObjectKind::Shared),
            version: Some(1),
            footer: Some(FooterAt { at: 60, len: 32 }),
            key_version: Some(KeyVersion(7)),
            faults: Vec::new(),
        }
    }

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn what_lies_in_clear_is_shown_with_why_the_rest_is_not() {
        let mut outline = outline();
        outline.faults.push(Fault { place: Place::Preamble, problem: Problem::Kind });
        let described = object(&outline, Err("no keyring is given"));
        assert_eq!((&described["keyring_version"], &described["footer"]["at"]), (&json!(7), &json!(60)));
        let shown = lines(&render(&described));
        for expect in [
            "key shared/00003/00000000-0000-0000-0000-000000000005",
            "kind shared object",
            "footer at 60, len 32",
            "fault: preamble: object is of another kind than its key says",
            "not opened: no keyring is given",
        ] {
            assert!(shown.iter().any(|line| line == expect), "{expect} in {shown:?}");
        }
    }

    #[test]
    fn chunks_batches_and_records_in_quarantine_are_listed() {
        let urls = Urls::new(["https://app.example/cart"]);
        let facts = BatchFacts { events: 3, raw_bytes: 400, active_ms: 70, clicks: 2, urls, ..BatchFacts::default() };
        let key = SessionKey { workspace: WorkspaceId(Uuid::from_u128(1)), session: SessionId(Uuid::from_u128(2)) };
        let batch = BatchEntry { seq: 4, end: true, offset: 11, len: 40, facts };
        let footer = Footer {
            object: ObjectId(Uuid::from_u128(5)),
            partition: 3,
            offset_first: 11,
            offset_next: 13,
            chunks: vec![Chunk { key, stream: 9, id: [0xab; 16], at: 5, batches: vec![batch] }],
            quarantined: vec![Quarantined {
                offset: 12,
                record_key: vec![0xcd; 16],
                at: 45,
                len: 15,
                reason: QuarantineReason::Key,
            }],
        };
        let described = object(&outline(), Ok(&Content::Shared(footer)));
        assert_eq!(described["shared"]["chunks"][0]["batches"][0]["raw_bytes"], json!(400));
        let shown = render(&described);
        assert!(shown.contains("stream 9, id abababab"), "{shown}");
        assert!(!described.to_string().contains("app.example"), "pages are counted, and not shown");
        for expect in [
            "4 11 40 3 400 yes 70 2 0 0 0 1",
            "12 cdcdcdcd-cdcd-cdcd-cdcd-cdcdcdcdcdcd 45 60 key",
            "records in quarantine: 1",
        ] {
            assert!(lines(&shown).iter().any(|line| line == expect), "{expect} in {shown}");
        }
    }

    #[test]
    fn a_record_without_keys_shows_its_envelope() {
        let value = [Envelope { epoch: 3, salt: [0; 16], number: 8 }.to_bytes().as_slice(), b"sealed"].concat();
        let described = record(&value, Uuid::from_u128(2), "t", Err("no transport keys are given"));
        assert_eq!((&described["epoch"], &described["number"]), (&json!(3), &json!(8)));
        let shown = lines(&render(&described));
        assert!(shown.contains(&"epoch 3".to_owned()) && shown.contains(&"topic t".to_owned()), "{shown:?}");
        let described = record(b"nothing", Uuid::from_u128(2), "t", Err(""));
        assert_eq!(described["faults"], json!(["envelope: magic number does not match"]));
    }

    #[test]
    fn counts_come_first_and_every_fault_has_its_line() {
        let mut found = Verified { frames: 2, shredded: 1, ..Verified::default() };
        assert!(verified(&found).ends_with("no fault\n"));
        found.faults.push(Fault { place: Place::Bytes { from: 5, to: 9 }, problem: Problem::Gap });
        let shown = lines(&verified(&found));
        assert!(shown.contains(&"sessions whose key was destroyed 1".to_owned()), "{shown:?}");
        assert_eq!(shown[shown.len() - 2..], ["fault: bytes 5..9: the footer names nothing here", "1 fault"]);
        found.notes.push(Note { place: Place::Frame { frame: 3, at: 90 }, stream: 5, next: 7, state_bytes: 12 });
        let shown = lines(&verified(&found));
        let expect = ["notes of streams 1", "note: frame 3 at byte 90: of stream 5, next 7, 12 bytes of state"];
        assert_eq!(shown[shown.len() - 4..shown.len() - 2], expect);
    }
}
