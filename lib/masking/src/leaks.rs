//! Goal: nothing that was planted is kept, and nothing is masked that need not be. Method: recordings that rrweb made of real
//! pages in a real browser with its own masking switched off (`bench/recordings/leaks`), taken through edge and batcher in all the
//! ways in which batches come: in order, late, twice, not at all, and with the state lost in between.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::{Batch, Masked, Rules, StreamState, mask, read};

#[derive(Deserialize)]
struct Manifest {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    class: String,
    rules: Value,
    secrets: Vec<String>,
    kept: Vec<String>,
    batches: usize,
}

#[derive(Deserialize)]
struct Recorded {
    stream: u32,
    seq: u32,
    events: Vec<Box<RawValue>>,
}

impl Recorded {
    fn body(&self) -> String {
        self.events.iter().map(|event| format!("{event}\n")).collect()
    }
}

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/recordings/leaks"))
}

fn cases() -> Vec<Case> {
    let manifest = std::fs::read(folder().join("manifest.json")).expect("the corpus has a manifest");
    serde_json::from_slice::<Manifest>(&manifest).expect("the manifest reads").cases
}

impl Case {
    fn recorded(&self) -> Vec<Recorded> {
        let file = std::fs::File::open(folder().join(format!("{}.ndjson.gz", self.name))).expect("a recording");
        let mut text = String::new();
        flate2::read::MultiGzDecoder::new(file).read_to_string(&mut text).expect("a recording is text");
        let recorded: Vec<Recorded> =
            text.lines().map(|line| serde_json::from_str(line).expect("a batch of a recording")).collect();
        assert_eq!(recorded.len(), self.batches, "{}", self.name);
        recorded
    }

    fn rules(&self) -> Rules {
        Rules::of_json(&self.rules.to_string())
    }
}

/// All texts in some events: as they stand, and decoded, also where they are JSON or a URL themselves.
fn texts_of(payload: &str) -> String {
    fn decode(text: &str, to: &mut String, depth: usize) {
        to.push_str(text);
        to.push('\n');
        if depth == 0 {
            return;
        }
        if let Ok(value) = serde_json::from_str::<Value>(text) {
            walk(&value, to, depth - 1);
        }
        if text.contains('%') {
            decode(&percent_decoded(text), to, depth - 1);
        }
    }
    fn walk(value: &Value, to: &mut String, depth: usize) {
        match value {
            Value::String(text) => decode(text, to, depth),
            Value::Array(values) => values.iter().for_each(|value| walk(value, to, depth)),
            Value::Object(fields) => fields.iter().for_each(|(name, value)| {
                decode(name, to, depth);
                walk(value, to, depth);
            }),
            _ => {}
        }
    }
    let mut texts = String::new();
    payload.lines().for_each(|line| decode(line, &mut texts, 4));
    texts
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, more @ ..] = rest {
        let decoded = more.get(..2).and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match decoded.filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &more[2..];
            }
            None => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = more;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A batcher: a state for each stream, and what comes next in it.
#[derive(Default)]
struct Batcher {
    streams: BTreeMap<u32, (u32, StreamState)>,
}

impl Batcher {
    /// What is stored of a batch.
    fn store(&mut self, stream: u32, seq: u32, batch: &Batch, rules: &Rules) -> String {
        let payload = &batch.payload;
        let (next, state) = self.streams.entry(stream).or_insert_with(|| (0, StreamState::new()));
        let stored = if !batch.needs_state {
            if seq > *next {
                state.miss();
            }
            *next = (seq + 1).max(*next);
            Masked::default()
        } else if seq < *next {
            // It comes too late to tell anything of what is known.
            mask(payload, rules, &mut StreamState::missed())
        } else {
            if seq > *next {
                state.miss();
            }
            *next = seq + 1;
            mask(payload, rules, state)
        };
        // Nobody opens a batch of which the edge says that all was done.
        let kept = stored.payload.filter(|_| batch.needs_state).unwrap_or_else(|| payload.clone());
        assert_eq!(mask_again(&kept, rules), kept, "a second look finds more");
        String::from_utf8(kept).expect("a payload is text")
    }

    /// Another process goes on, with the states that were written.
    fn restart(&mut self) {
        for (_, state) in self.streams.values_mut() {
            *state = StreamState::decode(&state.encode()).expect("own bytes");
        }
    }
}

/// What an edge makes of a payload that was masked: nothing else.
fn mask_again(payload: &[u8], rules: &Rules) -> Vec<u8> {
    read(payload, rules).expect("what was stored reads").payload
}

fn through_the_edge(recorded: &Recorded, rules: &Rules) -> Batch {
    let batch = read(recorded.body().as_bytes(), rules).expect("rrweb writes events");
    assert_eq!(batch.facts.dropped, 0, "what rrweb writes is what rrweb writes");
    batch
}

fn check_found(case: &Case, how: &str, texts: &str, leaks: &mut Vec<String>) {
    for secret in &case.secrets {
        if texts.contains(secret.as_str()) {
            leaks.push(format!("{} ({}), {how}: {secret}", case.name, case.class));
        }
    }
}

#[test]
fn e05_no_planted_secret_is_kept_and_all_else_is() {
    let (mut leaks, mut lost, mut secrets) = (Vec::new(), Vec::new(), 0);
    for case in cases() {
        let rules = case.rules();
        let recorded = case.recorded();
        let all: String = recorded.iter().map(Recorded::body).collect();
        let (plain, mut batcher, mut stored) = (texts_of(&all), Batcher::default(), String::new());
        for batch in &recorded {
            let payload = through_the_edge(batch, &rules);
            stored += &batcher.store(batch.stream, batch.seq, &payload, &rules);
            batcher.restart();
        }
        for secret in &case.secrets {
            assert!(plain.contains(secret.as_str()), "{}: {secret} is not in the recording", case.name);
        }
        secrets += case.secrets.len();
        let texts = texts_of(&stored);
        check_found(&case, "in order", &texts, &mut leaks);
        for kept in case.kept.iter().filter(|kept| !texts.contains(kept.as_str())) {
            lost.push(format!("{}: {kept}", case.name));
        }
    }
    assert!(secrets > 100, "only {secrets} secrets were searched for");
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
    assert!(lost.is_empty(), "{} kept texts are gone:\n{}", lost.len(), lost.join("\n"));
}

/// Goal: more rules reveal nothing. Method: each case once more with rules beside its own, alone and all together.
#[test]
fn e05_what_is_masked_stays_masked_with_more_rules() {
    let mut leaks = Vec::new();
    for case in cases() {
        let mut all = case.rules.clone();
        for (name, value) in [
            ("attributes", serde_json::json!(["class", "type", "name", "id", "autocomplete", "href", "title"])),
            ("mask_selectors", serde_json::json!([".nothing", "main > p:not(.x)", "#nothing [data-x]"])),
            ("block_selectors", serde_json::json!(["figure.nothing", "b:first-child"])),
            ("redact_keys", serde_json::json!(["nothing", "id"])),
            ("text", serde_json::json!("all")),
            ("inputs", serde_json::json!("all")),
        ] {
            let mut more = case.rules.clone();
            for rules in [&mut more, &mut all] {
                match (rules[name].as_array().cloned(), &value) {
                    (Some(own), Value::Array(added)) => rules[name] = own.iter().chain(added).cloned().collect(),
                    _ => rules[name] = value.clone(),
                }
            }
            for rules in [&more, &all] {
                let rules = Rules::of_json(&rules.to_string());
                let (mut batcher, mut stored) = (Batcher::default(), String::new());
                for batch in case.recorded() {
                    let payload = through_the_edge(&batch, &rules);
                    stored += &batcher.store(batch.stream, batch.seq, &payload, &rules);
                }
                check_found(&case, name, &texts_of(&stored), &mut leaks);
            }
        }
    }
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
}

/// Whatever becomes of a batch on its way, and of a batcher.
#[test]
fn e05_no_planted_secret_is_kept_whatever_comes_late_twice_or_never() {
    let mut leaks = Vec::new();
    for case in cases() {
        let rules = case.rules();
        let recorded = case.recorded();
        let payloads: Vec<Batch> = recorded.iter().map(|batch| through_the_edge(batch, &rules)).collect();
        for seed in 0..12 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut order: Vec<usize> = Vec::new();
            for index in 0..recorded.len() {
                match random.u8(0..8) {
                    0 => {}
                    1 => order.extend([index, index]),
                    _ => order.push(index),
                }
            }
            for _ in 0..random.usize(0..3) {
                let [a, b] = [random.usize(0..order.len().max(1)), random.usize(0..order.len().max(1))];
                if a < order.len() && b < order.len() {
                    order.swap(a, b);
                }
            }
            let (mut batcher, mut stored) = (Batcher::default(), String::new());
            for index in order {
                match random.u8(0..6) {
                    0 => batcher.restart(),
                    1 => batcher = Batcher::default(),
                    _ => {}
                }
                stored += &batcher.store(recorded[index].stream, recorded[index].seq, &payloads[index], &rules);
            }
            check_found(&case, &format!("seed {seed}"), &texts_of(&stored), &mut leaks);
        }
    }
    leaks.sort();
    leaks.dedup();
    assert!(leaks.is_empty(), "{} leaks:\n{}", leaks.len(), leaks.join("\n"));
}
