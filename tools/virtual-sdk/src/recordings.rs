//! Recorded sessions, as `bench/recorder` writes them: one file per session, one line per batch.
//!
//! Events are kept as the bytes that they are in the file, so that what is read back can be compared byte by byte.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;
use schemas::limits::STREAM_MAX;
use serde::Deserialize;
use serde_json::value::RawValue;

/// The environment's name for the folder of recordings.
pub const FOLDER_VARIABLE: &str = "CLAIRVIO_RECORDINGS";
const SUFFIX: &str = ".ndjson.gz";

/// Why recordings could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RecordingsError {
    /// The folder cannot be listed.
    #[error("list recordings: {}\n  make them as bench/recorder/README.md says, or set {FOLDER_VARIABLE}", folder.display())]
    Folder {
        /// Where they were looked for.
        folder: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The folder holds none.
    #[error("find recordings: no *{SUFFIX} in {}\n  make them as bench/recorder/README.md says, or set {FOLDER_VARIABLE}", .0.display())]
    None(PathBuf),
    /// A file cannot be read.
    #[error("read recording: {}\n  record it anew: node record.mjs <name> in bench/recorder", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A line is not a batch.
    #[error("decode recording: {} line {line}\n  check it: node check.mjs in bench/recorder", path.display())]
    Decode {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// Why it failed.
        source: serde_json::Error,
    },
    /// A batch cannot be sent as it is.
    #[error("check recording: {}\n  check it: node check.mjs in bench/recorder", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: InvalidRecording,
    },
}

/// What is wrong with a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRecording {
    /// A stream has more than 31 bits.
    #[error("take stream number: {stream} is beyond 31 bits")]
    Stream {
        /// The stream.
        stream: u32,
    },
    /// A stream's batches do not count from 0 without gaps.
    #[error("follow stream {stream}: expected batch {expected}, found {found}")]
    Seq {
        /// The stream.
        stream: u32,
        /// The number that had to come.
        expected: u32,
        /// The number that came.
        found: u32,
    },
    /// A stream goes on after its end.
    #[error("follow stream {stream}: batch {seq} comes after the end")]
    AfterEnd {
        /// The stream.
        stream: u32,
        /// The batch after the end.
        seq: u32,
    },
    /// An event has no timestamp that is a number.
    #[error("read timestamp of event {index} of stream {stream}, batch {seq}")]
    Timestamp {
        /// The stream.
        stream: u32,
        /// The batch.
        seq: u32,
        /// The event, from 0.
        index: usize,
    },
    /// An event has a raw line break, and would not be one line.
    #[error("keep event {index} of stream {stream}, batch {seq} on one line")]
    LineBreak {
        /// The stream.
        stream: u32,
        /// The batch.
        seq: u32,
        /// The event, from 0.
        index: usize,
    },
}

/// A batch, as an SDK flushes it.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The recorder's start that it belongs to.
    pub stream: u32,
    /// Its number within the stream.
    pub seq: u32,
    /// Whether it is its stream's last.
    pub end: bool,
    /// When the SDK would send it, in milliseconds since the session's start.
    pub offset_ms: u64,
    events: Box<[Box<RawValue>]>,
    timestamps: Box<[i64]>,
}

impl Batch {
    /// A batch of these events, one line each.
    pub fn new(
        stream: u32,
        seq: u32,
        end: bool,
        offset_ms: u64,
        events: Vec<Box<RawValue>>,
    ) -> Result<Self, InvalidRecording> {
        if stream > STREAM_MAX {
            return Err(InvalidRecording::Stream { stream });
        }
        let mut timestamps = Vec::with_capacity(events.len());
        for (index, event) in events.iter().enumerate() {
            if event.get().contains(['\n', '\r']) {
                return Err(InvalidRecording::LineBreak { stream, seq, index });
            }
            timestamps.push(timestamp(event.get().as_bytes()).ok_or(InvalidRecording::Timestamp {
                stream,
                seq,
                index,
            })?);
        }
        Ok(Self {
            stream,
            seq,
            end,
            offset_ms,
            events: events.into_boxed_slice(),
            timestamps: timestamps.into_boxed_slice(),
        })
    }

    /// The events, with the bytes of the recording.
    pub fn events(&self) -> &[Box<RawValue>] {
        &self.events
    }

    /// The events' timestamps in milliseconds, fractions rounded down, as the order of reading takes them.
    pub fn timestamps(&self) -> &[i64] {
        &self.timestamps
    }

    /// Bytes of the events as JSON, a newline after each: what the system calls received.
    pub fn raw_bytes(&self) -> u64 {
        self.events.iter().map(|event| event.get().len() as u64 + 1).sum()
    }
}

/// Sums over a recording.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Starts of a recorder.
    pub streams: u64,
    /// Batches.
    pub batches: u64,
    /// Events.
    pub events: u64,
    /// Bytes of the events as JSON, a newline after each.
    pub raw_bytes: u64,
    /// From the session's start to its last batch.
    pub duration_ms: u64,
}

/// A recorded session.
#[derive(Debug, Clone)]
pub struct Recording {
    /// The name of its file, without the ending.
    pub name: String,
    batches: Vec<Batch>,
    counts: Counts,
}

impl Recording {
    /// A recording of these batches; each stream's must count from 0 without gaps. They are put in the order of
    /// sending.
    pub fn new(name: impl Into<String>, mut batches: Vec<Batch>) -> Result<Self, InvalidRecording> {
        batches.sort_by_key(|batch| batch.offset_ms);
        let mut streams: BTreeMap<u32, (u32, bool)> = BTreeMap::new();
        let mut counts = Counts::default();
        for batch in &batches {
            let (expected, ended) = streams.entry(batch.stream).or_default();
            if *ended {
                return Err(InvalidRecording::AfterEnd { stream: batch.stream, seq: batch.seq });
            }
            if batch.seq != *expected {
                return Err(InvalidRecording::Seq { stream: batch.stream, expected: *expected, found: batch.seq });
            }
            *expected += 1;
            *ended = batch.end;
            counts.batches += 1;
            counts.events += batch.events.len() as u64;
            counts.raw_bytes += batch.raw_bytes();
            counts.duration_ms = counts.duration_ms.max(batch.offset_ms);
        }
        counts.streams = streams.len() as u64;
        Ok(Self { name: name.into(), batches, counts })
    }

    /// The batches, in the order of sending.
    pub fn batches(&self) -> &[Batch] {
        &self.batches
    }

    /// Sums over all batches.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Reads one file.
    pub fn read(path: &Path) -> Result<Self, RecordingsError> {
        #[derive(Deserialize)]
        struct Line {
            stream: u32,
            seq: u32,
            end: bool,
            offset_ms: u64,
            events: Vec<Box<RawValue>>,
        }
        let read = |source| RecordingsError::Read { path: path.to_owned(), source };
        let invalid = |source| RecordingsError::Invalid { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(read)?;
        let mut batches = Vec::new();
        for (index, line) in BufReader::new(MultiGzDecoder::new(file)).lines().enumerate() {
            let line = line.map_err(read)?;
            let decode = |source| RecordingsError::Decode { path: path.to_owned(), line: index + 1, source };
            let line: Line = serde_json::from_str(&line).map_err(decode)?;
            batches.push(Batch::new(line.stream, line.seq, line.end, line.offset_ms, line.events).map_err(invalid)?);
        }
        let file_name = path.file_name().unwrap_or_default().to_string_lossy();
        Self::new(file_name.strip_suffix(SUFFIX).unwrap_or(&file_name), batches).map_err(invalid)
    }
}

/// Where recordings are: what `CLAIRVIO_RECORDINGS` says, else `bench/recordings` of the workspace.
pub fn folder() -> PathBuf {
    match std::env::var_os(FOLDER_VARIABLE) {
        Some(folder) if !folder.is_empty() => folder.into(),
        _ => Path::new(env!("CARGO_MANIFEST_DIR")).join("../../bench/recordings"),
    }
}

/// All recordings of [`folder`], by name.
pub fn load() -> Result<Vec<Recording>, RecordingsError> {
    load_from(&folder())
}

/// All recordings of a folder, by name.
pub fn load_from(folder: &Path) -> Result<Vec<Recording>, RecordingsError> {
    let failed = |source| RecordingsError::Folder { folder: folder.to_owned(), source };
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(SUFFIX)) {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(RecordingsError::None(folder.to_owned()));
    }
    paths.sort();
    paths.iter().map(|path| Recording::read(path)).collect()
}

/// An event's timestamp in milliseconds, a fraction rounded down.
pub(crate) fn timestamp(event: &[u8]) -> Option<i64> {
    #[derive(Deserialize)]
    struct Timestamp {
        timestamp: f64,
    }
    let Timestamp { timestamp } = serde_json::from_slice(event).ok()?;
    Some(timestamp.floor() as i64)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn raw(event: &str) -> Box<RawValue> {
        RawValue::from_string(event.to_owned()).expect("valid JSON")
    }

    fn write(folder: &Path, name: &str, lines: &str) {
        let file = std::fs::File::create(folder.join(name)).expect("the file can be made");
        let mut gzip = flate2::write::GzEncoder::new(file, flate2::Compression::fast());
        gzip.write_all(lines.as_bytes()).expect("the file can be written");
        gzip.finish().expect("the file can be written");
    }

    #[test]
    fn events_keep_their_bytes_and_timestamps_are_rounded_down() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        write(
            folder.path(),
            "b.ndjson.gz",
            concat!(
                "{\"stream\":7,\"seq\":0,\"end\":false,\"offset_ms\":5,\"events\":",
                "[{ \"type\":4,\"timestamp\":1.9e0,\"data\":{\"n\":1.50} },{\"timestamp\":-0.5,\"type\":3}]}\n",
                "{\"stream\":7,\"seq\":1,\"end\":true,\"offset_ms\":9,\"events\":[]}\n",
            ),
        );
        write(folder.path(), "a.ndjson.gz", "");
        std::fs::write(folder.path().join("manifest.json"), "{}").expect("the file can be written");
        let recordings = load_from(folder.path()).expect("recordings can be read");
        let names: Vec<&str> = recordings.iter().map(|recording| recording.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        let batch = &recordings[1].batches()[0];
        assert_eq!(batch.events()[0].get(), "{ \"type\":4,\"timestamp\":1.9e0,\"data\":{\"n\":1.50} }");
        assert_eq!(batch.timestamps(), [1, -1]);
        let counts = recordings[1].counts();
        assert_eq!((counts.streams, counts.batches, counts.events, counts.duration_ms), (1, 2, 2, 9));
    }

    #[test]
    fn a_recording_that_an_sdk_could_not_have_made_is_refused() {
        let batch = |stream, seq, end| Batch::new(stream, seq, end, 0, Vec::new()).expect("valid batch");
        let refused = |batches| Recording::new("x", batches).expect_err("a fault");
        assert_eq!(
            refused(vec![batch(1, 0, false), batch(1, 2, false)]),
            InvalidRecording::Seq { stream: 1, expected: 1, found: 2 }
        );
        assert_eq!(
            refused(vec![batch(1, 0, true), batch(1, 1, false)]),
            InvalidRecording::AfterEnd { stream: 1, seq: 1 }
        );
        let refused = |stream, event: &str| {
            Batch::new(stream, 3, false, 0, vec![raw("{\"timestamp\":1}"), raw(event)]).expect_err("a fault")
        };
        assert_eq!(refused(1 << 31, "{\"timestamp\":1}"), InvalidRecording::Stream { stream: 1 << 31 });
        assert_eq!(refused(1, "{}"), InvalidRecording::Timestamp { stream: 1, seq: 3, index: 1 });
        assert_eq!(refused(1, "{\"timestamp\":\n1}"), InvalidRecording::LineBreak { stream: 1, seq: 3, index: 1 });
    }

    #[test]
    fn a_missing_folder_says_what_to_do() {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let empty = load_from(folder.path()).expect_err("no recordings").to_string();
        let missing = load_from(&folder.path().join("x")).expect_err("no folder").to_string();
        for message in [empty, missing] {
            assert!(message.contains("bench/recorder/README.md") && message.contains(FOLDER_VARIABLE), "{message}");
        }
    }

    #[test]
    fn the_recordings_of_this_checkout_can_be_read() {
        for recording in load().expect("recordings can be read") {
            assert!(recording.counts().events > 0, "{}", recording.name);
            assert!(recording.batches().iter().all(|batch| batch.events().len() == batch.timestamps().len()));
        }
    }
}
