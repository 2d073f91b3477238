//! Long sessions, made of recordings that last a minute or two.

use anyhow::Context;
use serde_json::value::RawValue;
use virtual_sdk::{Batch, Recording};

/// How long a session becomes, in milliseconds.
const HOUR_MS: u64 = 3_600_000;
/// Between two laps, in milliseconds.
const PAUSE_MS: u64 = 1_000;
/// What a lap adds to node ids: more than any recording has nodes.
const IDS_PER_LAP: i64 = 100_000;
/// The members of events that hold a node's id.
const ID_MEMBERS: [&str; 5] = ["\"id\":", "\"parentId\":", "\"nextId\":", "\"previousId\":", "\"rootId\":"];
const TIME_MEMBER: &str = "\"timestamp\":";

/// The recording again and again for an hour of its own time. Each lap has streams of its own, as page loads have, its own times
/// and node ids, and the same content else.
pub(crate) fn of(recording: &Recording) -> anyhow::Result<Recording> {
    lengthened(recording, HOUR_MS)
}

fn lengthened(recording: &Recording, until_ms: u64) -> anyhow::Result<Recording> {
    let mut streams: Vec<u32> = recording.batches().iter().map(|batch| batch.stream).collect();
    streams.sort_unstable();
    streams.dedup();
    let lap_ms = recording.counts().duration_ms + PAUSE_MS;
    let mut batches = Vec::new();
    for lap in 0..=until_ms / lap_ms {
        let later_ms = lap * lap_ms;
        let shift = Shift { ms: later_ms as i64, ids: lap as i64 * IDS_PER_LAP };
        for batch in recording.batches().iter().filter(|batch| batch.offset_ms + later_ms <= until_ms) {
            let number = streams.partition_point(|stream| *stream < batch.stream) as u64;
            let stream = u32::try_from(lap * streams.len() as u64 + number).context("number streams")?;
            batches.push(shift.batch(batch, stream, batch.offset_ms + later_ms)?);
        }
    }
    Recording::new(recording.name.clone(), batches).context("lengthen recording")
}

/// What is added to the numbers of a batch's events.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shift {
    /// To timestamps, in milliseconds.
    pub(crate) ms: i64,
    /// To ids of nodes.
    pub(crate) ids: i64,
}

impl Shift {
    /// The batch as one of another stream, sent at another time.
    pub(crate) fn batch(self, batch: &Batch, stream: u32, offset_ms: u64) -> anyhow::Result<Batch> {
        let events = batch.events().iter().map(|event| RawValue::from_string(self.event(event.get())));
        let events = events.collect::<Result<_, _>>().context("shift event")?;
        Batch::new(stream, batch.seq, batch.end, offset_ms, events).context("shift batch")
    }

    /// A quote within a text is escaped, so what looks like a member is one.
    pub(crate) fn event(self, event: &str) -> String {
        let mut shifted = String::with_capacity(event.len() + 64);
        let mut rest = event;
        while let Some(quote) = rest.find('"') {
            let (before, from) = rest.split_at(quote);
            shifted.push_str(before);
            let ids = ID_MEMBERS.iter().filter(|_| self.ids != 0).map(|member| (*member, self.ids));
            let member = ids.chain([(TIME_MEMBER, self.ms)]).find(|(member, _)| from.starts_with(member));
            let Some((member, add)) = member else {
                shifted.push('"');
                rest = &from[1..];
                continue;
            };
            shifted.push_str(member);
            rest = &from[member.len()..];
            let digits = rest.find(|character: char| !character.is_ascii_digit()).unwrap_or(rest.len());
            if let Ok(number) = rest[..digits].parse::<i64>() {
                shifted.push_str(&(number + add).to_string());
                rest = &rest[digits..];
            }
        }
        shifted.push_str(rest);
        shifted
    }
}

#[cfg(test)]
mod tests {
    use virtual_sdk::recordings;

    use super::*;

    #[test]
    fn times_and_node_ids_are_shifted_and_nothing_else() {
        let shift = Shift { ms: 1_000, ids: 50 };
        let event = r#"{"type":3,"data":{"id":7,"parentId":-1,"text":"a \"id\":7, \"timestamp\":5","attributes":{"id":"x"},"n":7},"timestamp":1999.5}"#;
        let expected = r#"{"type":3,"data":{"id":57,"parentId":-1,"text":"a \"id\":7, \"timestamp\":5","attributes":{"id":"x"},"n":7},"timestamp":2999.5}"#;
        assert_eq!(shift.event(event), expected);
        assert_eq!(Shift { ms: 0, ids: 0 }.event(event), event);
    }

    #[test]
    fn a_recording_of_a_minute_becomes_an_hour_whose_laps_follow_each_other() {
        let recordings = recordings::load().expect("recordings");
        let recording = recordings.iter().find(|recording| recording.name == "login-short").expect("a recording");
        let hour = of(recording).expect("an hour");
        let (short, long) = (recording.counts(), hour.counts());
        let laps = long.duration_ms / (short.duration_ms + PAUSE_MS);
        assert!((HOUR_MS - 60_000..=HOUR_MS).contains(&long.duration_ms), "{long:?}");
        assert!(long.events >= laps * short.events && long.streams >= laps * short.streams, "{long:?}");
        let times: Vec<i64> = hour.batches().iter().flat_map(|batch| batch.timestamps()).copied().collect();
        let spread = times.iter().max().expect("events") - times.iter().min().expect("events");
        assert!((3_500_000..3_700_000).contains(&spread), "{spread}");
    }
}
