//! Batches: what an edge takes in, and what a batcher stores.
//!
//! A body is a JSON array of events, or one event a line. It becomes a payload: each event's bytes as they came, raw line breaks
//! between tokens and what is masked apart, and a newline after each.

use schemas::codes::Refusal;
use schemas::limits::{BATCH_EVENTS_MAX, DECODED_BYTES_MAX, JSON_DEPTH_MAX};
use schemas::{BatchFacts, ErrorCode};

use crate::found::Sums;
use crate::json::{Cursor, JsonError};
use crate::pass::{DROPPED_TAG, Fail, Pass, Unknown};
use crate::rules::Rules;
use crate::state::StreamState;

/// A batch whose body was read.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch {
    /// The events, a newline after each.
    pub payload: Vec<u8>,
    /// What is in them.
    pub facts: BatchFacts,
    /// Whether more is to be masked by who knows the stream, or matters for what comes after.
    pub needs_state: bool,
}

/// Timestamps beyond this are no time that any clock shows, and would not be exact as a JSON number.
const TIMESTAMP_MAX: f64 = 9_007_199_254_740_992.0;

/// Milliseconds by the client's clock, rounded down.
fn whole_ms(value: f64) -> Option<i64> {
    (value.abs() <= TIMESTAMP_MAX).then(|| value.floor() as i64)
}

/// Reads a body, and masks in it what it decides alone.
pub fn read(body: &[u8], rules: &Rules) -> Result<Batch, Refusal> {
    let text = std::str::from_utf8(body).map_err(|_| Refusal::from(ErrorCode::BodyMalformed))?;
    let mut state = StreamState::new();
    let mut reading = Reading { payload: Vec::with_capacity(text.len() + 1), sums: Sums::default() };
    let mut pass = Pass::new(text, rules, &mut state, Unknown::Left);
    if pass.cursor.peek() == Ok(b'[') {
        reading.array(&mut pass)?;
    } else {
        for line in lines(text) {
            pass.cursor = Cursor::new(line);
            if !pass.cursor.is_at_end() {
                reading.event(&mut pass)?;
                if !pass.cursor.is_at_end() {
                    return Err(ErrorCode::BodyMalformed.into());
                }
            }
        }
    }
    let (needs_state, masked, dropped) = (pass.needs_state, pass.masked, pass.dropped);
    // With its last newline, and masks longer than what they hide, a payload can be larger than its body.
    if reading.payload.len() > DECODED_BYTES_MAX {
        return Err(Refusal::limit(ErrorCode::DecodedTooLarge, DECODED_BYTES_MAX));
    }
    let facts = BatchFacts { masked, dropped, ..reading.sums.finish(&reading.payload) };
    Ok(Batch { payload: reading.payload, facts, needs_state })
}

fn lines(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(text);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(at) = memchr::memchr(b'\n', text.as_bytes()) else { return rest.take() };
        rest = Some(&text[at + 1..]);
        Some(&text[..at])
    })
}

struct Reading {
    payload: Vec<u8>,
    sums: Sums,
}

impl Reading {
    fn array(&mut self, pass: &mut Pass<'_, '_>) -> Result<(), Refusal> {
        let whole = pass.cursor.clone();
        self.events(pass).map_err(|refusal| {
            // What is no JSON is called so, whatever is in it.
            let mut whole = whole;
            match whole.skip() {
                Err(error) => refusal_of(Fail::Json(error), 0),
                Ok(()) if !whole.is_at_end() => ErrorCode::BodyMalformed.into(),
                Ok(()) => refusal,
            }
        })
    }

    fn events(&mut self, pass: &mut Pass<'_, '_>) -> Result<(), Refusal> {
        let mut first = true;
        let refuse = |error| refusal_of(Fail::Json(error), 0);
        pass.cursor.enter_array().map_err(refuse)?;
        while pass.cursor.next_item(&mut first).map_err(refuse)? {
            self.event(pass)?;
        }
        if pass.cursor.is_at_end() { Ok(()) } else { Err(ErrorCode::BodyMalformed.into()) }
    }

    fn event(&mut self, pass: &mut Pass<'_, '_>) -> Result<(), Refusal> {
        let index = self.sums.events();
        if index == BATCH_EVENTS_MAX {
            return Err(Refusal::limit(ErrorCode::BatchTooMany, BATCH_EVENTS_MAX));
        }
        let walked = pass.event().map_err(|fail| refusal_of(fail, index))?;
        let at = whole_ms(walked.timestamp).ok_or_else(|| refusal_of(Fail::NoEvent, index))?;
        pass.write(&walked, &mut self.payload);
        self.payload.push(b'\n');
        self.sums.add(&walked, at, &mut pass.found);
        Ok(())
    }
}

fn refusal_of(fail: Fail, index: usize) -> Refusal {
    match fail {
        Fail::Json(JsonError::Malformed) => ErrorCode::BodyMalformed.into(),
        Fail::Json(JsonError::TooDeep) => Refusal::limit(ErrorCode::BodyMalformed, JSON_DEPTH_MAX),
        Fail::NoEvent | Fail::Irregular | Fail::Late => Refusal::index(ErrorCode::EventInvalid, index),
    }
}

/// What became of a stored batch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Masked {
    /// The payload as it is kept; `None` when nothing had to change.
    pub payload: Option<Vec<u8>>,
    /// Values that were masked.
    pub masked: u32,
    /// Events of which nothing was kept.
    pub dropped: u32,
}

/// Masks a batch's payload by what is known of its stream. What is unknown is masked, and what cannot be read is not kept.
pub fn mask(payload: &[u8], rules: &Rules, state: &mut StreamState) -> Masked {
    let Ok(text) = std::str::from_utf8(payload) else {
        // No edge lets such a payload in; its lines are told apart all the same.
        state.close();
        let lines = payload.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
        return all_dropped(lines);
    };
    let mut kept: Option<Vec<u8>> = None;
    let (mut masked, mut dropped) = (0, 0);
    let mut at = 0;
    let mut pass = Pass::new(text, rules, state, Unknown::Masked);
    for line in lines(text) {
        let start = at;
        at += line.len() + 1;
        pass.cursor = Cursor::new(line);
        if pass.cursor.is_at_end() {
            continue;
        }
        let walked = pass.event().and_then(|walked| {
            if pass.cursor.is_at_end() && whole_ms(walked.timestamp).is_some() {
                Ok(walked)
            } else {
                Err(Fail::NoEvent)
            }
        });
        match walked {
            Ok(walked) => {
                if kept.is_none() && pass.has_changed() {
                    kept = Some(before(payload, start));
                }
                if let Some(kept) = &mut kept {
                    pass.write(&walked, kept);
                    kept.push(b'\n');
                }
            }
            Err(_) => {
                pass.close();
                let kept = kept.get_or_insert_with(|| before(payload, start));
                kept.extend_from_slice(dropped_event().as_bytes());
                dropped += 1;
            }
        }
    }
    masked += pass.masked;
    dropped += pass.dropped;
    if kept.as_ref().is_some_and(|kept| kept.len() > DECODED_BYTES_MAX) {
        // Masks can be longer than what they hide; nobody reads more than this.
        pass.close();
        return all_dropped(lines(text).filter(|line| !line.trim().is_empty()).count());
    }
    Masked { payload: kept, masked, dropped }
}

fn before(payload: &[u8], at: usize) -> Vec<u8> {
    let mut kept = Vec::with_capacity(payload.len());
    kept.extend_from_slice(&payload[..at]);
    kept
}

fn dropped_event() -> String {
    format!("{{\"type\":5,\"data\":{{\"tag\":\"{DROPPED_TAG}\",\"payload\":{{}}}},\"timestamp\":0}}\n")
}

fn all_dropped(events: usize) -> Masked {
    let payload = dropped_event().repeat(events).into_bytes();
    Masked { payload: Some(payload), masked: 0, dropped: u32::try_from(events).unwrap_or(u32::MAX) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(body: &[u8]) -> Result<Batch, Refusal> {
        super::read(body, &Rules::default())
    }

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
