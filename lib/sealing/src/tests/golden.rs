//! Golden files: what each version of each format looks like, and what must be read from it for ever.
//!
//! `schemas/golden/v<N>/` holds files of version N, and in `expected.json` the keys and all that the files decode to; so does
//! `v<N>-<what>/` with what was appended within the version. They were made once. `MAKE_GOLDEN=1 cargo test -p sealing golden`
//! makes those that do not exist, and never touches another.

mod appended;
mod copies;
mod exports;
mod notes;
mod v1;
mod versions;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use schemas::codec::hex;
use schemas::journal::Entry;
use schemas::paths::ObjectKey;
use schemas::record::{Consent, Envelope, Header};
use schemas::stream_note::{self, StreamNote};
use schemas::{BatchFacts, SessionKey, codec, session_object, shared_object};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};

use super::reader::{self, FooterAt, Keys};
use super::samples;
use crate::Key;
use crate::keyring::{KeyVersion, Owner, Roots};
use crate::objects::{PartOf, open_export};
use crate::transport::{EpochId, EpochKeys};
use crate::wrapping::{self, Wrapped};

const EXPECTED: &str = "expected.json";
const SUMS: &str = "SHA256SUMS";
const WRAPPED: &str = "wrapped-key.bin";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../schemas/golden")
}

/// A golden folder.
struct Folder {
    version: u8,
    path: PathBuf,
}

/// The golden folders by name. Missing files of version 1 are made first, when that is asked for.
fn folders() -> &'static BTreeMap<String, Folder> {
    static FOLDERS: OnceLock<BTreeMap<String, Folder>> = OnceLock::new();
    FOLDERS.get_or_init(|| {
        if std::env::var_os("MAKE_GOLDEN").is_some() {
            make(&root().join("v1"), v1::files);
            make(&root().join(appended::FOLDER), appended::files);
            make(&root().join(copies::FOLDER), copies::files);
            make(&root().join(notes::FOLDER), notes::files);
            make(&root().join(exports::FOLDER), exports::files);
        }
        let folder = |path: PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let number = name.strip_prefix('v').and_then(|rest| rest.split('-').next()?.parse().ok());
            let version = number.unwrap_or_else(|| panic!("{name} is no version"));
            (name, Folder { version, path })
        };
        std::fs::read_dir(root()).unwrap().map(|entry| folder(entry.unwrap().path())).collect()
    })
}

fn names(folder: &Path) -> Vec<String> {
    let listed = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        listed.map(|entry| entry.unwrap().file_name().into_string().unwrap()).filter(|name| name != SUMS).collect();
    names.sort();
    names
}

fn sums(folder: &Path) -> String {
    let line = |name: String| format!("{}  {name}\n", hex(&Sha256::digest(std::fs::read(folder.join(&name)).unwrap())));
    names(folder).into_iter().map(line).collect()
}

fn unhex(text: &Value) -> Vec<u8> {
    let text = text.as_str().unwrap();
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

fn key(text: &Value) -> Key {
    Key::new(unhex(text).try_into().unwrap())
}

fn session_key(value: &Value) -> SessionKey {
    let id = |name: &str| value[name].as_str().unwrap();
    SessionKey { workspace: id("workspace").parse().unwrap(), session: id("session").parse().unwrap() }
}

fn number(value: &Value) -> u32 {
    value.as_u64().unwrap().try_into().unwrap()
}

/// The keys that a golden folder names.
fn keys(of: &Value) -> Keys {
    let list = |value: &'_ Value| value.as_array().unwrap().clone();
    let roots = list(&of["keyring"]["roots"]);
    let roots = roots.iter().map(|root| (KeyVersion(number(&root["version"])), key(&root["secret"]))).collect();
    let epochs = list(&of["transport_epochs"]);
    let epochs = epochs.iter().map(|epoch| (EpochId(number(&epoch["epoch"])), key(&epoch["key"]))).collect();
    let sessions = list(&of["sessions"]);
    Keys {
        roots: Roots::new(KeyVersion(number(&of["keyring"]["current"])), roots).unwrap(),
        sessions: sessions.iter().map(|session| (session_key(session), key(&session["data_key"]))).collect(),
        epochs: EpochKeys::new(epochs),
        topic: of["topic"].as_str().unwrap().to_owned(),
    }
}

/// The facts without what was appended after the first release.
fn first_release(facts: &BatchFacts) -> BatchFacts {
    BatchFacts {
        events: facts.events,
        raw_bytes: facts.raw_bytes,
        ts_min: facts.ts_min,
        ts_max: facts.ts_max,
        kinds: facts.kinds,
        pages: facts.pages,
        errors: facts.errors,
        full_snapshot: facts.full_snapshot,
        content_hash: facts.content_hash,
        ..BatchFacts::default()
    }
}

/// The facts without what masking appended.
fn second_release(facts: &BatchFacts) -> BatchFacts {
    BatchFacts { stored_hash: None, masked: 0, dropped: 0, ..facts.clone() }
}

/// The facts are those of the events, as this release or the first one finds them; of masked ones, of those that are stored.
fn check_facts(facts: &BatchFacts, events: &[String]) {
    let facts = BatchFacts { content_hash: facts.hash_as_stored(), ..second_release(facts) };
    let found = samples::facts(events);
    assert!(facts == found || facts == first_release(&found), "the facts are those of the events");
}

fn facts_json(facts: &BatchFacts) -> Value {
    let mut value = first_release_json(facts);
    if *facts != first_release(facts) {
        let appended = json!({
            "active_ms": facts.active_ms,
            "interacted": facts.interacted,
            "clicks": facts.clicks,
            "keypresses": facts.keypresses,
            "console": facts.console,
            "failed_requests": facts.failed_requests,
            "urls": facts.urls.iter().collect::<Vec<_>>(),
        });
        value.as_object_mut().unwrap().extend(appended.as_object().unwrap().clone());
    }
    if *facts != second_release(facts) {
        value["stored_hash"] = facts.stored_hash.map(|hash| format!("{hash:016x}")).into();
        value["masked"] = facts.masked.into();
        value["dropped"] = facts.dropped.into();
    }
    value
}

/// Adds the notes behind a frame to what stands of it.
fn with_notes(mut value: Value, notes: &[StreamNote]) -> Value {
    let note = |note: &StreamNote| json!({ "stream": note.stream, "next": note.next, "state": hex(&note.state) });
    if !notes.is_empty() {
        value["notes"] = notes.iter().map(note).collect();
    }
    value
}

fn first_release_json(facts: &BatchFacts) -> Value {
    json!({
        "events": facts.events,
        "raw_bytes": facts.raw_bytes,
        "ts_min": facts.ts_min,
        "ts_max": facts.ts_max,
        "kinds": facts.kinds,
        "pages": facts.pages,
        "errors": facts.errors,
        "full_snapshot": facts.full_snapshot,
        // A number of 64 bits is more than JSON's readers can hold.
        "content_hash": format!("{:016x}", facts.content_hash),
    })
}

fn header_json(header: &Header) -> Value {
    let of_session = |kind: &str, key: &SessionKey, consent: &Consent| {
        json!({
            "kind": kind,
            "workspace": key.workspace,
            "session": key.session,
            "link": consent.link,
            "receipt": consent.receipt,
            "consented_at_ms": consent.consented_at_ms,
            "notice_version": consent.notice_version,
        })
    };
    match header {
        Header::Acceptance { key, consent } => of_session("acceptance", key, consent),
        Header::Batch { key, consent, place, end, masking, facts } => {
            let mut value = of_session("batch", key, consent);
            if let Some(masking) = masking {
                value["masking"] = json!({ "rules": masking.rules, "needs_state": masking.needs_state });
            }
            value["stream"] = place.stream().into();
            value["seq"] = place.seq().into();
            value["end"] = (*end).into();
            value["facts"] = facts_json(facts);
            value
        }
        Header::Declines { workspace, hour_ms, count } => {
            json!({ "kind": "declines", "workspace": workspace, "hour_ms": hour_ms, "count": count })
        }
    }
}

fn record_json(value: &[u8], record: &reader::Record) -> Value {
    let (envelope, _) = Envelope::read(value).unwrap();
    if let Header::Batch { facts, .. } = &record.header {
        check_facts(facts, &record.events);
    }
    json!({
        "envelope": { "epoch": envelope.epoch, "salt": hex(&envelope.salt), "number": envelope.number },
        "header": header_json(&record.header),
        "events": record.events,
    })
}

fn shared_json(keys: &Keys, object: &[u8], shared: &reader::Shared) -> Value {
    let batch = |((entry, events), notes): ((&shared_object::BatchEntry, &Vec<String>), Vec<StreamNote>)| {
        // Of a copy only the facts are there.
        if !entry.is_copy() {
            check_facts(&entry.facts, events);
        }
        let described = json!({
            "seq": entry.seq,
            "end": entry.end,
            "offset": entry.offset,
            "len": entry.len,
            "facts": facts_json(&entry.facts),
            "events": events,
        });
        with_notes(described, &notes)
    };
    let chunk = |(chunk, events): (&shared_object::Chunk, &Vec<Vec<String>>)| {
        let notes = reader::chunk_notes(keys, chunk, object).unwrap();
        json!({
            "workspace": chunk.key.workspace,
            "session": chunk.key.session,
            "stream": chunk.stream,
            "chunk_id": hex(&chunk.id),
            "at": chunk.at,
            "batches": chunk.batches.iter().zip(events).zip(notes).map(batch).collect::<Vec<_>>(),
        })
    };
    let quarantined = |(entry, record): (&shared_object::Quarantined, &Option<reader::Record>)| {
        let bytes = &object[entry.at as usize..entry.at as usize + entry.len as usize];
        json!({
            "offset": entry.offset,
            "record_key": hex(&entry.record_key),
            "at": entry.at,
            "len": entry.len,
            "reason": entry.reason.as_str(),
            "bytes": hex(bytes),
            "record": record.as_ref().map(|record| record_json(bytes, record)),
        })
    };
    let footer = &shared.footer;
    json!({
        "key_version": shared.version.0,
        "partition": footer.partition,
        "offset_first": footer.offset_first,
        "offset_next": footer.offset_next,
        "chunks": footer.chunks.iter().zip(&shared.events).map(chunk).collect::<Vec<_>>(),
        "quarantined": footer.quarantined.iter().zip(&shared.records).map(quarantined).collect::<Vec<_>>(),
    })
}

fn session_json(keys: &Keys, object: &[u8], session: &reader::Session) -> Value {
    let event = |event: &reader::Event| json!({ "stream": event.stream, "seq": event.seq, "position": event.position, "event": event.text });
    let segment = |segment: &session_object::Segment| {
        json!({
            "stream": segment.stream,
            "seq": segment.seq,
            "position": segment.position,
            "events": segment.events,
            "bytes": segment.bytes,
        })
    };
    let frame = |((frame, events), notes): ((&session_object::Frame, &Vec<reader::Event>), Vec<StreamNote>)| {
        let described = json!({
            "at": frame.at,
            "len": frame.len,
            "raw_len": frame.raw_len,
            "ts_min": frame.ts_min,
            "ts_max": frame.ts_max,
            "full_snapshot": frame.full_snapshot,
            "segments": frame.segments.iter().map(segment).collect::<Vec<_>>(),
            "events": events.iter().map(event).collect::<Vec<_>>(),
        });
        with_notes(described, &notes)
    };
    let batch = |batch: &session_object::BatchInfo| json!({ "seq": batch.seq, "end": batch.end, "facts": facts_json(&batch.facts) });
    let stream = |stream: &session_object::StreamInfo| json!({ "stream": stream.stream, "batches": stream.batches.iter().map(batch).collect::<Vec<_>>() });
    let footer = &session.footer;
    let notes = reader::session_notes(keys, footer, object).unwrap();
    json!({
        "workspace": footer.key.workspace,
        "session": footer.key.session,
        "chunk_id": hex(&footer.chunk),
        "frames": footer.frames.iter().zip(&session.events).zip(notes).map(frame).collect::<Vec<_>>(),
        "streams": footer.streams.iter().map(stream).collect::<Vec<_>>(),
        "duplicates": footer.duplicates,
        "conflicts": footer.conflicts,
    })
}

fn journal_json(version: KeyVersion, entry: &Entry) -> Value {
    json!({
        "key_version": version.0,
        "deletion": entry.deletion,
        "workspace": entry.workspace,
        "cause": entry.cause as u8,
        "requested_at_ms": entry.requested_at_ms,
        "sessions": entry.sessions,
    })
}

/// What a file decodes to. `known` is what a reader knows of it beforehand; it stands in the result, too.
fn decode(keys: &Keys, known: &Value, bytes: &[u8]) -> Value {
    let object_key = known["object_key"].as_str().map(|text| ObjectKey::parse(text).unwrap());
    let content = match object_key {
        Some(ObjectKey::Shared { id, partition } | ObjectKey::Quarantine { id, partition }) => {
            let read = reader::shared(keys, id, bytes, FooterAt::Trailer).unwrap();
            assert_eq!(read.footer.partition, partition);
            shared_json(keys, bytes, &read)
        }
        Some(ObjectKey::Session { key, id }) => {
            session_json(keys, bytes, &reader::session(keys, key, id, bytes, FooterAt::Trailer).unwrap())
        }
        Some(ObjectKey::Journal { id }) => {
            let (version, entry) = reader::journal(keys, id, bytes).unwrap();
            journal_json(version, &entry)
        }
        Some(ObjectKey::Export { workspace, export, id }) => {
            let key_of = SessionKey { workspace, session: known["key_of"].as_str().unwrap().parse().unwrap() };
            let of = PartOf { workspace, export, object: id };
            let part = open_export(&keys.sessions[&key_of], &of, bytes).unwrap();
            json!({ "part_bytes": part.len(), "part_sha256": hex(&Sha256::digest(&part)) })
        }
        None if known["record_key"].is_string() => {
            record_json(bytes, &reader::record(keys, &unhex(&known["record_key"]), bytes).unwrap())
        }
        None if known["format"] == notes::FRAME => {
            let raw = codec::decompress(bytes, bytes.len() * 100).unwrap();
            let events: Vec<&str> = std::str::from_utf8(&raw).unwrap().lines().collect();
            with_notes(json!({ "events": events }), &stream_note::read(bytes).unwrap())
        }
        None => {
            let version = KeyVersion(number(&known["key_version"]));
            let session = session_key(known);
            let workspace_key = keys.roots.derive(Owner::Workspace(session.workspace), version).unwrap();
            let wrapped = Wrapped { version, bytes: bytes.try_into().unwrap() };
            let data_key = wrapping::unwrap(&workspace_key, &session, &wrapped).unwrap();
            assert_eq!(data_key.expose(), keys.sessions[&session].expose(), "the key is that of the session");
            json!({ "workspace_key": hex(workspace_key.expose()), "data_key": hex(data_key.expose()) })
        }
    };
    let mut whole = content.as_object().unwrap().clone();
    whole.insert("bytes".into(), bytes.len().into());
    let beforehand: &[&str] = match known["format"].as_str() {
        Some("wrapped key") => &["format", "key_version", "workspace", "session"],
        _ => &["format", "object_key", "record_key", "key_of"],
    };
    for name in beforehand {
        whole.extend(known.get(name).map(|value| ((*name).to_owned(), value.clone())));
    }
    whole.into()
}

/// Writes those of these files of version 1 that do not exist.
fn make(folder: &Path, made: fn(&Keys) -> Vec<v1::Made>) {
    std::fs::create_dir_all(folder).unwrap();
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        if !path.exists() {
            std::fs::write(path, bytes).unwrap();
        }
    };
    let keys_json = v1::keys();
    let keys = keys(&keys_json);
    let mut files = Map::new();
    for (name, known, bytes) in made(&keys) {
        put(name, &bytes);
        if !folder.join(EXPECTED).exists() {
            files.insert(name.to_owned(), decode(&keys, &known, &std::fs::read(folder.join(name)).unwrap()));
        }
    }
    let expected = json!({ "version": 1, "keys": keys_json, "files": files });
    put(EXPECTED, format!("{}\n", serde_json::to_string_pretty(&expected).unwrap()).as_bytes());
    put(SUMS, sums(folder).as_bytes());
}

fn expected(folder: &str) -> Value {
    serde_json::from_slice(&std::fs::read(folders()[folder].path.join(EXPECTED)).unwrap()).unwrap()
}

/// Reading all golden files gives what was written into them, down to the events.
#[test]
fn golden_files_are_read_as_they_were_when_they_were_made() {
    for (name, Folder { version, path: folder }) in folders() {
        let expected = expected(name);
        assert_eq!(expected["version"], *version);
        let keys = keys(&expected["keys"]);
        let files = expected["files"].as_object().unwrap();
        let mut named: Vec<&str> = files.keys().map(String::as_str).chain([EXPECTED]).collect();
        named.sort_unstable();
        assert_eq!(names(folder), named, "{name}: expected.json tells of each file");
        for (file, content) in files {
            let bytes = std::fs::read(folder.join(file)).unwrap();
            assert_eq!(decode(&keys, content, &bytes), *content, "{name}/{file}");
        }
    }
}

/// Whoever makes golden files anew has to change their sums as well, and explain it.
#[test]
fn golden_files_are_those_that_were_made() {
    for (name, Folder { path, .. }) in folders() {
        let noted = std::fs::read_to_string(path.join(SUMS)).unwrap();
        assert_eq!(sums(path), noted, "{name}: golden files were changed; they are never made anew");
    }
}

/// What a stranger's reader may trip over is in the files: what the page says of them holds.
#[test]
fn golden_files_show_every_part_of_the_formats() {
    let expected = expected("v1");
    let files = &expected["files"];
    let list = |value: &Value| value.as_array().unwrap().clone();
    let chunks = list(&files["shared.bin"]["chunks"]);
    assert!(chunks.len() >= 4 && chunks[0]["session"] == chunks[1]["session"], "several sessions, several streams");
    let batches: Vec<Value> = chunks.iter().flat_map(|chunk| list(&chunk["batches"])).collect();
    assert!(batches.iter().any(|batch| batch["facts"]["events"] == 0 && batch["len"] == 16), "a batch without events");
    assert_eq!(files["shared.bin"]["quarantined"][0]["record"]["header"]["kind"], "batch");
    assert!(files["quarantine.bin"]["quarantined"][0]["record"].is_null());
    assert_ne!(files["shared.bin"]["key_version"], files["quarantine.bin"]["key_version"]);
    let frames = list(&files["session.bin"]["frames"]);
    assert!(frames.len() >= 3 && frames.iter().any(|frame| frame["full_snapshot"] == true));
    assert_eq!(list(&files["session.bin"]["streams"]).len(), 2);
    let number = list(&files["journal.bin"]["sessions"]).len();
    assert_eq!(number, 2);
}

/// Fields that were appended to facts within version 1 are in files of their own, in each format that has facts; files of the
/// first release are without them.
#[test]
fn golden_files_show_facts_with_and_without_what_was_appended() {
    let appended = expected(appended::FOLDER);
    let files = &appended["files"];
    for facts in [
        &files["record-batch.bin"]["header"]["facts"],
        &files["shared.bin"]["chunks"][0]["batches"][0]["facts"],
        &files["session.bin"]["streams"][0]["batches"][0]["facts"],
    ] {
        for field in ["active_ms", "clicks", "keypresses", "failed_requests"] {
            assert!(facts[field].as_u64().unwrap() > 0, "{field}: {facts}");
        }
        assert!(
            facts["interacted"][0].is_i64() && facts["console"].as_array().unwrap().iter().any(|count| *count != 0)
        );
        assert_eq!(facts["urls"], json!(["https://shop.example/cart", "https://shop.example/zahlung/ü"]));
    }
    assert!(expected("v1")["files"]["record-batch.bin"]["header"]["facts"].get("active_ms").is_none());
}

#[test]
fn golden_files_show_copies_and_what_was_set_aside() {
    let copies = expected(copies::FOLDER);
    let shared = &copies["files"]["shared.bin"];
    let batches = shared["chunks"][0]["batches"].as_array().unwrap();
    let is_copy =
        |batch: &Value| batch["len"] == 16 && batch["facts"]["raw_bytes"] != 0 && batch["events"] == json!([]);
    assert_eq!(batches.iter().map(is_copy).collect::<Vec<_>>(), [false, true, true]);
    assert_eq!(shared["quarantined"][0]["reason"], "session_key");
    assert_eq!(shared["quarantined"][0]["record"]["header"]["kind"], "batch");
}

/// Notes behind events, alone, and before a copy; and facts of a batch that was masked. All who know nothing of them read the same.
#[test]
fn golden_files_show_notes_of_streams_and_what_masking_did() {
    let noted = expected(notes::FOLDER);
    let files = &noted["files"];
    let notes = |of: &Value| of.get("notes").map_or(0, |notes| notes.as_array().unwrap().len());
    let chunks = &files["shared.bin"]["chunks"];
    let in_chunks =
        [&chunks[0]["batches"][0], &chunks[0]["batches"][1], &chunks[1]["batches"][0], &chunks[1]["batches"][1]];
    assert_eq!(in_chunks.map(notes), [0, 1, 1, 0]);
    assert!(
        in_chunks[2]["events"] == json!([]) && in_chunks[2]["len"].as_u64() > Some(16) && in_chunks[3]["len"] == 16
    );
    let frames = &files["session.bin"]["frames"];
    assert_eq!([&frames[0], &frames[1], &files["frame.zst"]].map(notes), [0, 2, 2]);
    for facts in [&in_chunks[0]["facts"], &files["session.bin"]["streams"][0]["batches"][0]["facts"]] {
        assert!(facts["stored_hash"].is_string() && facts["stored_hash"] != facts["content_hash"], "{facts}");
        assert_eq!((&facts["masked"], &facts["dropped"]), (&json!(1), &json!(1)));
    }
    assert!(in_chunks[1]["facts"].get("masked").is_none());
}
