//! Masks recordings as edge and batcher would, in their order: `mask <folder> <recording.ndjson.gz>…`. Each is written to the folder
//! as it came, batch by batch, uncompressed. Rules are the corpus's own, from a `manifest.json` beside a recording that names it; the
//! default ones without.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use masking::{Rules, StreamState};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

#[derive(Deserialize, Serialize)]
struct Batch {
    stream: u32,
    seq: u32,
    end: bool,
    offset_ms: u64,
    events: Vec<Box<RawValue>>,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let Some(folder) = arguments.next() else {
        eprintln!("usage: mask <folder> <recording.ndjson.gz>...");
        return ExitCode::from(64);
    };
    for recording in arguments {
        if let Err(error) = mask(&recording, &folder) {
            eprintln!("mask {}: {error}", recording.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn mask(recording: &Path, folder: &Path) -> Outcome<()> {
    let mut text = String::new();
    flate2::read::MultiGzDecoder::new(std::fs::File::open(recording)?).read_to_string(&mut text)?;
    let name = recording.file_name().and_then(|name| name.to_str()).and_then(|name| name.split('.').next());
    let name = name.ok_or("a recording has a name")?;
    let rules = rules_of(recording, name)?;
    let mut states: BTreeMap<u32, StreamState> = BTreeMap::new();
    let mut masked = Vec::new();
    for line in text.lines() {
        let mut batch: Batch = serde_json::from_str(line)?;
        let body: String = batch.events.iter().map(|event| format!("{event}\n")).collect();
        let read = masking::read(body.as_bytes(), &rules).map_err(|refusal| format!("{refusal:?}"))?;
        let stored = masking::mask(&read.payload, &rules, states.entry(batch.stream).or_default());
        let stored = String::from_utf8(stored.payload.unwrap_or(read.payload))?;
        batch.events = stored.lines().map(|event| RawValue::from_string(event.to_owned())).collect::<Result<_, _>>()?;
        serde_json::to_writer(&mut masked, &batch)?;
        masked.push(b'\n');
    }
    std::fs::create_dir_all(folder)?;
    Ok(std::fs::write(folder.join(format!("{name}.ndjson")), masked)?)
}

fn rules_of(recording: &Path, name: &str) -> Outcome<Rules> {
    let manifest: Value = serde_json::from_slice(&std::fs::read(recording.with_file_name("manifest.json"))?)?;
    let case = manifest["cases"].as_array().and_then(|cases| cases.iter().find(|case| case["name"] == name));
    Ok(case.map_or_else(Rules::default, |case| Rules::of_json(&case["rules"].to_string())))
}
