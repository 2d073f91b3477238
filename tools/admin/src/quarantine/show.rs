//! What is in quarantine, for machines as JSON and for people as text. Never a payload.

use schemas::record::Envelope;
use schemas::shared_object::QuarantineReason;
use sealing::transport::Opened;
use serde_json::{Value, json};
use storage::quarantine::{Entry, Page, State};

use crate::object::show::{all_facts_of, header, record_key};
use crate::output::{counted, moment, row, table};

/// What a reason means, and what to do. `docs/quarantine.md` has a paragraph for each.
fn words(reason: QuarantineReason) -> (&'static str, &'static str) {
    match reason {
        QuarantineReason::Header => (
            "it is no record of ours, or does not fit its key in the log",
            "find out who else writes to the topic, and keep them out",
        ),
        QuarantineReason::Version => {
            ("a newer release wrote it", "upgrade the batchers, then replay it with the clairvio of that release")
        }
        QuarantineReason::Payload => (
            "its payload is not what its header says",
            "look for the release of the edges: the one that sealed it has a defect",
        ),
        QuarantineReason::Key => (
            "there is no key of its epoch",
            "bring the file that has the epoch to every batcher, then replay it; without the epoch's key it is lost",
        ),
        QuarantineReason::Seal => (
            "it was sealed as another record, or changed since, or under another key of the same epoch",
            "compare the transport keys of edges and batchers; where they are the same, somebody copied or altered the record",
        ),
        QuarantineReason::SessionKey => (
            "the key of its session did not open",
            "give every batcher's keyring the version that it lacks, or bring back the key store's row, then replay it",
        ),
    }
}

/// Why a record does not open now, and what to do.
pub(super) fn why(reason: QuarantineReason, envelope: Option<&Envelope>) -> (String, &'static str) {
    let (meaning, next) = words(reason);
    match (reason, envelope) {
        (QuarantineReason::Key, Some(envelope)) => (format!("there is no key of its epoch {}", envelope.epoch), next),
        _ => (meaning.to_owned(), next),
    }
}

fn item(entry: &Entry) -> Value {
    json!({
        "id": entry.id.to_string(),
        "topic": entry.id.topic,
        "partition": entry.id.partition,
        "offset": entry.id.offset,
        "reason": entry.reason.as_str(),
        "bytes": entry.len,
        "record_key": record_key(&entry.record_key),
        "object": entry.object.to_string(),
        "set_aside_at": moment(entry.set_aside_at),
        "replayed_at": entry.replayed_at.map(moment),
    })
}

/// The list.
pub(super) fn list(found: &Page) -> Value {
    let damaged = found.damaged.iter().map(|damaged| {
        json!({
            "object": damaged.object.to_string(),
            "from": damaged.at,
            "to": damaged.at + u64::from(damaged.len),
            "set_aside_at": moment(damaged.set_aside_at),
        })
    });
    let chunks = found.chunks.iter().map(|chunk| {
        json!({
            "object": chunk.object.to_string(),
            "session": chunk.session.session.to_string(),
            "stream": chunk.stream,
            "batches": chunk.batches,
            "bytes": chunk.bytes,
            "set_aside_at": moment(chunk.set_aside_at),
        })
    });
    let corrupt = found.corrupt.iter().map(|(object, why)| json!({ "object": object.to_string(), "why": why }));
    json!({
        "items": found.entries.iter().map(item).collect::<Vec<_>>(),
        "chunks": chunks.collect::<Vec<_>>(),
        "damaged": damaged.collect::<Vec<_>>(),
        "corrupt": corrupt.collect::<Vec<_>>(),
    })
}

/// The same for people.
pub(super) fn render_list(found: &Page, state: State) -> String {
    let shows_replayed = state != State::Open;
    let mut rows = vec![row(["id", "reason", "bytes", "record key", "set aside"])];
    if shows_replayed {
        rows[0].push("replayed".to_owned());
    }
    for entry in &found.entries {
        let (id, key) = (entry.id.to_string(), record_key(&entry.record_key));
        let (bytes, at) = (entry.len.to_string(), moment(entry.set_aside_at));
        let mut cells = row([id.as_str(), entry.reason.as_str(), &bytes, &key, &at]);
        if shows_replayed {
            cells.push(entry.replayed_at.map_or_else(|| "-".to_owned(), moment));
        }
        rows.push(cells);
    }
    let mut out = if found.entries.is_empty() { String::new() } else { table("", &rows) };
    out.push_str(&match found.entries.len() as u64 {
        0 => "no record\n".to_owned(),
        records => format!("{}\n", counted(records, "record", "records")),
    });
    for chunk in &found.chunks {
        out.push_str(&format!(
            "chunk: {} of session {}, stream {}, in {}: it could not be merged when its run was; nothing replays it\n",
            counted(chunk.batches as u64, "batch", "batches"),
            chunk.session.session,
            chunk.stream,
            chunk.object
        ));
    }
    for damaged in &found.damaged {
        let (from, to) = (damaged.at, damaged.at + u64::from(damaged.len));
        out.push_str(&format!(
            "damaged: {}, bytes {from}..{to}: a shared object whose footer could not be read; it is kept whole, and nothing \
             replays it\n",
            damaged.object
        ));
    }
    for (object, why) in &found.corrupt {
        out.push_str(&format!(
            "corrupt: {object}: {why}; what it holds cannot be told\n  hint: `clairvio object verify {object}`\n"
        ));
    }
    out
}

/// A record: what lies in clear of it.
pub(super) fn record(entry: &Entry, envelope: Option<&Envelope>) -> Value {
    let mut described = item(entry);
    described["meaning"] = json!(words(entry.reason).0);
    described["epoch"] = json!(envelope.map(|envelope| envelope.epoch));
    described
}

/// Adds whether the record opens now: as what, or why not.
pub(super) fn add_judgement(to: &mut Value, envelope: Option<&Envelope>, judged: Result<&Opened, QuarantineReason>) {
    match judged {
        Ok(opened) => {
            to["opens_now"] = json!("yes");
            to["header"] = header(&opened.header);
            to["next"] = json!("replay it, once every batcher has the same transport keys");
        }
        Err(reason) => {
            let (why, next) = why(reason, envelope);
            to["opens_now"] = json!("no");
            to["why"] = json!(why);
            to["next"] = json!(next);
        }
    }
}

/// The same for people.
pub(super) fn render(described: &Value) -> String {
    let (mut described, mut out) = (described.clone(), String::new());
    let header = described.as_object_mut().and_then(|fields| fields.remove("header"));
    out.push_str(&all_facts_of(&described));
    if let Some(header) = header {
        out.push_str("opened:\n");
        out.extend(all_facts_of(&header).lines().map(|line| format!("  {line}\n")));
    }
    out
}

#[cfg(test)]
mod tests {
    use schemas::ObjectId;
    use schemas::paths::ObjectKey;
    use schemas::record::Header;
    use storage::quarantine::{Damaged, RecordId};
    use time::OffsetDateTime;
    use uuid::Uuid;

    use super::*;

    fn entry(reason: QuarantineReason) -> Entry {
        Entry {
            id: RecordId { topic: "t".to_owned(), partition: 3, offset: 12 },
            reason,
            record_key: vec![0xcd; 16],
            len: 90,
            object: ObjectKey::Quarantine { partition: 3, id: ObjectId(Uuid::from_u128(5)) },
            at: 5,
            set_aside_at: OffsetDateTime::UNIX_EPOCH,
            replayed_at: None,
        }
    }

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
    }

    #[test]
    fn the_page_for_operators_has_a_paragraph_for_each_reason() {
        let page = include_str!("../../../../docs/quarantine.md");
        let told: Vec<&str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("### `").and_then(|rest| rest.strip_suffix('`')))
            .collect();
        assert_eq!(told, QuarantineReason::ALL.iter().map(|reason| reason.as_str()).collect::<Vec<_>>());
        let help = <super::super::List as clap::Args>::augment_args(clap::Command::new("list"));
        let of_reason = help.get_arguments().find(|argument| argument.get_id() == "reason");
        let help = of_reason.and_then(|argument| argument.get_help()).map(ToString::to_string).unwrap_or_default();
        for word in told {
            assert!(help.contains(word), "--reason does not name {word}: {help}");
        }
    }

    #[test]
    fn a_list_names_records_and_what_is_none() {
        let (damaged, object) = (entry(QuarantineReason::Key), entry(QuarantineReason::Key).object);
        let mut found = Page { entries: vec![entry(QuarantineReason::Key)], ..Page::default() };
        found.damaged.push(Damaged { object, at: 5, len: 20, set_aside_at: damaged.set_aside_at });
        found.corrupt.push((object, "it is cut short".to_owned()));
        let shown = lines(&render_list(&found, State::Open));
        assert_eq!(shown[1], "t/3/12 key 90 cdcdcdcd-cdcd-cdcd-cdcd-cdcdcdcdcdcd 1970-01-01T00:00:00Z");
        assert_eq!(shown[2], "1 record");
        assert!(shown[3].contains("bytes 5..25") && shown[4].contains("cut short"), "{shown:?}");
        let described = list(&found);
        assert_eq!((&described["items"][0]["id"], &described["damaged"][0]["to"]), (&json!("t/3/12"), &json!(25)));
        assert_eq!(render_list(&Page::default(), State::All), "no record\n");
        found.entries[0].replayed_at = Some(OffsetDateTime::UNIX_EPOCH);
        assert!(lines(&render_list(&found, State::All))[1].ends_with("1970-01-01T00:00:00Z 1970-01-01T00:00:00Z"));
    }

    #[test]
    fn a_record_shows_whether_it_opens_and_what_to_do_when_it_does_not() {
        let envelope = Envelope { epoch: 7, salt: [0; 16], number: 1 };
        let mut described = record(&entry(QuarantineReason::Key), Some(&envelope));
        add_judgement(&mut described, Some(&envelope), Err(QuarantineReason::Key));
        let shown = lines(&render(&described));
        for expect in ["epoch 7", "opens now no", "why there is no key of its epoch 7", "reason key"] {
            assert!(shown.iter().any(|line| line == expect), "{expect} in {shown:?}");
        }
        let mut described = record(&entry(QuarantineReason::Header), None);
        let declines = Header::Declines { workspace: schemas::WorkspaceId(Uuid::nil()), hour_ms: 0, count: 3 };
        let opened = Opened { header: declines, bytes: b"not to be shown".to_vec(), payload_at: 0 };
        add_judgement(&mut described, None, Ok(&opened));
        let shown = render(&described);
        assert!(lines(&shown).contains(&"kind declines".to_owned()) && !shown.contains("not to be"), "{shown}");
        assert_eq!(described["epoch"], Value::Null);
    }
}
