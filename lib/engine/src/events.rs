//! What a body of events is, and what is in it.
//!
//! A body is a JSON array of events, or one event a line. It becomes a payload: each event's bytes as they came, raw
//! line breaks between tokens apart, and a newline after each. Of each event type and timestamp are looked at, and what
//! `activity` finds in its data.

use std::fmt;

use schemas::codes::Refusal;
use schemas::limits::{BATCH_EVENTS_MAX, DECODED_BYTES_MAX, JSON_DEPTH_MAX};
use schemas::{BatchFacts, ErrorCode};
use serde::Deserialize;
use serde::de::{SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::activity::Observer;

/// A batch whose body was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch {
    /// The events, a newline after each.
    pub payload: Vec<u8>,
    /// What is in them.
    pub facts: BatchFacts,
}

/// What reading an event needs of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shallow {
    /// rrweb's type.
    pub kind: u64,
    /// Milliseconds by the client's clock, rounded down.
    pub timestamp: i64,
}

#[derive(Deserialize)]
struct ShallowJson<'a> {
    #[serde(rename = "type")]
    kind: u64,
    timestamp: f64,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

const TYPE_FULL_SNAPSHOT: u64 = 2;
const TYPE_INCREMENTAL: u64 = 3;
const TYPE_META: u64 = 4;
const TYPE_PLUGIN: u64 = 6;

/// Timestamps beyond this are no time that any clock shows, and would not be exact as a JSON number.
const TIMESTAMP_MAX: f64 = 9_007_199_254_740_992.0;

/// Reads type and timestamp of one stored event.
pub fn shallow(event: &[u8]) -> Option<Shallow> {
    let json: ShallowJson<'_> = serde_json::from_slice(event).ok()?;
    Some(Shallow { kind: json.kind, timestamp: timestamp(json.timestamp)? })
}

fn timestamp(value: f64) -> Option<i64> {
    (value.abs() <= TIMESTAMP_MAX).then(|| value.floor() as i64)
}

/// Whether a shallow event is a full snapshot.
pub fn is_full_snapshot(event: &Shallow) -> bool {
    event.kind == TYPE_FULL_SNAPSHOT
}

/// Reads a body.
pub fn read(body: &[u8]) -> Result<Batch, Refusal> {
    let text = std::str::from_utf8(body).map_err(|_| Refusal::from(ErrorCode::BodyMalformed))?;
    if depth_max(text) > JSON_DEPTH_MAX {
        return Err(Refusal::limit(ErrorCode::BodyMalformed, JSON_DEPTH_MAX));
    }
    let mut builder = Builder {
        payload: Vec::with_capacity(body.len() + 1),
        facts: BatchFacts::default(),
        observer: Observer::default(),
    };
    if text.trim_start_matches(JSON_SPACE).starts_with('[') {
        let Events(events) = serde_json::from_str(text).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => Refusal::limit(ErrorCode::BatchTooMany, BATCH_EVENTS_MAX),
            _ => ErrorCode::BodyMalformed.into(),
        })?;
        for event in events {
            builder.push(event.get())?;
        }
    } else {
        for line in text.split('\n') {
            let line = line.trim_matches(JSON_SPACE);
            if !line.is_empty() {
                builder.push(line)?;
            }
        }
    }
    // With its last newline a payload can be larger than its body, by one byte too many for readers of its record.
    if builder.payload.len() > DECODED_BYTES_MAX {
        return Err(Refusal::limit(ErrorCode::DecodedTooLarge, DECODED_BYTES_MAX));
    }
    Ok(builder.finish())
}

const JSON_SPACE: [char; 4] = [' ', '\t', '\r', '\n'];

/// The deepest nesting of arrays and objects. Looks at brackets outside strings only: on a text that is no JSON it
/// gives some number, and the parser refuses it afterwards.
fn depth_max(text: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0usize);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => in_string = false,
                _ => {}
            }
        } else {
            match byte {
                b'"' => in_string = true,
                b'[' | b'{' => {
                    depth += 1;
                    deepest = deepest.max(depth);
                }
                b']' | b'}' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
    }
    deepest
}

/// The elements of an array as they came, [`BATCH_EVENTS_MAX`] at most: a body of commas costs no memory.
struct Events<'a>(Vec<&'a RawValue>);

impl<'de> Deserialize<'de> for Events<'de> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EventsVisitor;
        impl<'de> Visitor<'de> for EventsVisitor {
            type Value = Events<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of events")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                let mut events = Vec::new();
                while let Some(event) = seq.next_element()? {
                    if events.len() == BATCH_EVENTS_MAX {
                        return Err(serde::de::Error::custom("too many events"));
                    }
                    events.push(event);
                }
                Ok(Events(events))
            }
        }
        deserializer.deserialize_seq(EventsVisitor)
    }
}

struct Builder {
    payload: Vec<u8>,
    facts: BatchFacts,
    observer: Observer,
}

impl Builder {
    fn push(&mut self, event: &str) -> Result<(), Refusal> {
        let index = self.facts.events as usize;
        if index == BATCH_EVENTS_MAX {
            return Err(Refusal::limit(ErrorCode::BatchTooMany, BATCH_EVENTS_MAX));
        }
        let invalid = || Refusal::index(ErrorCode::EventInvalid, index);
        let json: ShallowJson<'_> = serde_json::from_str(event).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => invalid(),
            _ => ErrorCode::BodyMalformed.into(),
        })?;
        // Serde reads a struct from an array of its fields too. An event is an object; stored at the start of a batch, an
        // array would be read as an array of events.
        if !event.starts_with('{') {
            return Err(invalid());
        }
        let at = timestamp(json.timestamp).ok_or_else(invalid)?;
        self.count(&json, at);
        // Line breaks stand only between tokens: inside strings JSON wants them escaped.
        if event.contains(['\n', '\r']) {
            self.payload.extend(event.bytes().filter(|byte| !matches!(byte, b'\n' | b'\r')));
        } else {
            self.payload.extend_from_slice(event.as_bytes());
        }
        self.payload.push(b'\n');
        Ok(())
    }

    fn count(&mut self, json: &ShallowJson<'_>, at: i64) {
        let facts = &mut self.facts;
        if facts.events == 0 {
            (facts.ts_min, facts.ts_max) = (at, at);
        }
        facts.events += 1;
        facts.ts_min = facts.ts_min.min(at);
        facts.ts_max = facts.ts_max.max(at);
        facts.kinds[json.kind.min(7) as usize] += 1;
        match (json.kind, json.data) {
            (TYPE_FULL_SNAPSHOT, _) => facts.full_snapshot = true,
            (TYPE_INCREMENTAL, Some(data)) => self.observer.incremental(facts, at, data),
            (TYPE_META, data) => {
                facts.pages += 1;
                data.into_iter().for_each(|data| self.observer.meta(data));
            }
            (TYPE_PLUGIN, Some(data)) => self.observer.plugin(facts, data),
            _ => {}
        }
    }

    fn finish(mut self) -> Batch {
        self.facts.raw_bytes = self.payload.len() as u32;
        self.facts.content_hash = BatchFacts::hash(&self.payload);
        self.facts.urls = self.observer.urls();
        Batch { payload: self.payload, facts: self.facts }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refusal(body: &str) -> Refusal {
        read(body.as_bytes()).expect_err(body)
    }

    #[test]
    fn an_array_and_lines_give_the_same_payload() {
        let array = "[ {\"type\":4,\"timestamp\":5,\n\"data\":{}} ,{\"type\":2,\"timestamp\":3.9,\"data\":\"a\\nb\"}]";
        let lines = "{\"type\":4,\"timestamp\":5,\"data\":{}}\n\r\n{\"type\":2,\"timestamp\":3.9,\"data\":\"a\\nb\"}\n";
        let batch = read(array.as_bytes()).unwrap();
        assert_eq!(batch, read(lines.as_bytes()).unwrap());
        assert_eq!(batch.payload.iter().filter(|byte| **byte == b'\n').count(), 2);
        let facts = &batch.facts;
        assert_eq!((facts.events, facts.ts_min, facts.ts_max, facts.pages), (2, 3, 5, 1));
        assert!(facts.full_snapshot);
        assert_eq!(facts.kinds, [0, 0, 1, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn console_errors_are_counted_and_unknown_types_are_kept() {
        let body = r#"[{"type":6,"timestamp":1,"data":{"plugin":"rrweb/console@1","payload":{"level":"error","trace":[]}}},
            {"type":6,"timestamp":1,"data":{"plugin":"rrweb/console@1","payload":{"level":"warn"}}},
            {"type":6,"timestamp":1,"data":{"plugin":"x","payload":7}},{"type":99,"timestamp":-1}]"#;
        let facts = read(body.as_bytes()).unwrap().facts;
        assert_eq!((facts.errors, facts.kinds[6], facts.kinds[7], facts.ts_min), (1, 3, 1, -1));
    }

    #[test]
    fn what_is_no_json_is_malformed_and_what_is_no_event_is_invalid() {
        for body in ["{", "[1", "[{}] x", "nonsense", "[{\"type\":1,\"timestamp\":1}", "{\"type\":1,\"timestamp\":1}}"]
        {
            assert_eq!(refusal(body).code, ErrorCode::BodyMalformed, "{body}");
        }
        for (body, index) in [
            ("[1]", 0),
            ("[[1,1]]", 0),
            ("{\"type\":1,\"timestamp\":1}\n[1,1,{}]", 1),
            ("{}", 0),
            (r#"[{"type":1,"timestamp":1},{"type":-1,"timestamp":1}]"#, 1),
            (r#"[{"type":1,"timestamp":"1"}]"#, 0),
            (r#"[{"type":1,"timestamp":1e300}]"#, 0),
            (r#"[{"type":1,"type":1,"timestamp":1}]"#, 0),
        ] {
            assert_eq!(refusal(body), Refusal::index(ErrorCode::EventInvalid, index), "{body}");
        }
        assert_eq!(read(b"\xff").expect_err("not UTF-8").code, ErrorCode::BodyMalformed);
    }

    #[test]
    fn too_deep_and_too_many_are_refused() {
        let nested = |levels: usize| {
            format!("[{{\"type\":1,\"timestamp\":1,\"data\":{}{}}}]", "[".repeat(levels), "]".repeat(levels))
        };
        assert!(read(nested(JSON_DEPTH_MAX - 2).as_bytes()).is_ok());
        assert_eq!(refusal(&nested(JSON_DEPTH_MAX - 1)).code, ErrorCode::BodyMalformed);
        let event = r#"{"type":1,"timestamp":1},"#;
        let array = format!("[{}1]", event.repeat(BATCH_EVENTS_MAX));
        assert_eq!(refusal(&array).code, ErrorCode::BatchTooMany);
        let lines = format!("{}\n", event.trim_end_matches(',')).repeat(BATCH_EVENTS_MAX + 1);
        assert_eq!(refusal(&lines).code, ErrorCode::BatchTooMany);
    }

    #[test]
    fn a_payload_is_no_larger_than_readers_of_records_take() {
        let line = |bytes: usize| {
            let (head, tail) = (r#"{"type":1,"timestamp":1,"data":""#, "\"}");
            format!("{head}{}{tail}", "a".repeat(bytes - head.len() - tail.len()))
        };
        // The newline that a last line lacks is added.
        let batch = read(line(DECODED_BYTES_MAX - 1).as_bytes()).unwrap();
        assert_eq!(batch.facts.raw_bytes as usize, DECODED_BYTES_MAX);
        let too_large = Refusal::limit(ErrorCode::DecodedTooLarge, DECODED_BYTES_MAX);
        // Not by `refusal`, which would print the body.
        assert_eq!(read(line(DECODED_BYTES_MAX).as_bytes()).map(|batch| batch.facts.events), Err(too_large));
    }

    #[test]
    fn an_empty_batch_is_a_batch() {
        for body in ["[]", "", " \n"] {
            let batch = read(body.as_bytes()).unwrap();
            assert_eq!((batch.facts.events, batch.payload.len()), (0, 0));
        }
    }

    proptest! {
        #[test]
        fn e04_any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let _ = read(&bytes);
        }

        #[test]
        fn events_are_kept_as_they_came(values in prop::collection::vec((0u64..9, -1_000_000i64..1_000_000, ".*"), 0..20)) {
            let events: Vec<String> = values
                .iter()
                .map(|(kind, at, text)| serde_json::json!({"type": kind, "timestamp": at, "data": text}).to_string())
                .collect();
            let batch = read(format!("[{}]", events.join(",")).as_bytes()).unwrap();
            let lines: Vec<&str> = std::str::from_utf8(&batch.payload).unwrap().lines().collect();
            prop_assert_eq!(lines, events);
        }
    }
}
