//! Which shared objects are merged, when a session is over, and where the frames of its object are cut.

use schemas::ObjectId;
use schemas::session_object::{Frame, Segment};

use crate::merge::{Event, Plan};

mod machine;

pub use machine::{
    Answer, Config, Effect, End, Found, Input, JobId, Machine, Merged, Name, Opened, Parts, SharedRow, Standing,
    TaskId, Work,
};

/// Bounds of a run. Times in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct RunConfig {
    /// A run is merged once it has this many bytes…
    pub run_bytes_min: u64,
    /// … or its oldest object is this old (C6).
    pub run_age_ms: u64,
    /// A run has at most this many bytes, unless its first object alone has more.
    pub run_bytes_max: u64,
    /// A run has at most this many objects.
    pub run_objects_max: usize,
}

/// A live shared object that nobody has claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// The object.
    pub id: ObjectId,
    /// Its bytes.
    pub bytes: u64,
    /// How long it has been live.
    pub age_ms: u64,
}

/// The run to claim among a partition's candidates, which come in the order of their offsets.
pub fn choose_run(config: &RunConfig, candidates: &[Candidate]) -> Option<Vec<ObjectId>> {
    let mut run = Vec::new();
    let mut bytes = 0;
    for candidate in candidates.iter().take(config.run_objects_max) {
        if !run.is_empty() && bytes + candidate.bytes > config.run_bytes_max {
            break;
        }
        bytes += candidate.bytes;
        run.push(candidate.id);
    }
    let is_full = bytes >= config.run_bytes_min || run.len() == config.run_objects_max;
    let is_old = candidates.iter().take(run.len()).any(|candidate| candidate.age_ms >= config.run_age_ms);
    (!run.is_empty() && (is_full || is_old)).then_some(run)
}

/// A frame before compression.
#[derive(Debug, PartialEq, Eq)]
pub struct Cut {
    /// Its events, a newline after each.
    pub raw: Vec<u8>,
    ts_min: i64,
    ts_max: i64,
    full_snapshot: bool,
    segments: Vec<Segment>,
}

impl Cut {
    /// The frame's entry in the footer, once its place and compressed length are known.
    pub fn frame(&self, at: u64, len: u32) -> Frame {
        Frame {
            at,
            len,
            raw_len: self.raw.len() as u32,
            ts_min: self.ts_min,
            ts_max: self.ts_max,
            full_snapshot: self.full_snapshot,
            segments: self.segments.clone(),
        }
    }
}

/// Cuts a session's events into frames of about the same size. A full snapshot begins a frame, so that a player can
/// start there.
#[derive(Debug)]
pub struct FrameCutter {
    frame_bytes: usize,
    open: Option<Cut>,
}

impl FrameCutter {
    /// Frames of about `frame_bytes` before compression.
    pub fn new(frame_bytes: usize) -> Self {
        Self { frame_bytes, open: None }
    }

    /// Adds the next event; gives the frame that it closed, if any.
    pub fn push(&mut self, plan: &Plan, event: &Event, bytes: &[u8]) -> Option<Cut> {
        let must_cut = self
            .open
            .as_ref()
            .is_some_and(|open| event.full_snapshot || open.raw.len() + bytes.len() > self.frame_bytes);
        let closed = if must_cut { self.open.take() } else { None };
        let open = self.open.get_or_insert_with(|| Cut {
            raw: Vec::new(),
            ts_min: event.timestamp,
            ts_max: event.timestamp,
            full_snapshot: event.full_snapshot,
            segments: Vec::new(),
        });
        open.raw.extend_from_slice(bytes);
        open.ts_min = open.ts_min.min(event.timestamp);
        open.ts_max = open.ts_max.max(event.timestamp);
        let stream = &plan.streams[event.stream];
        let (stream, seq) = (stream.stream, stream.batches[event.batch].seq);
        match open.segments.last_mut() {
            Some(last) if last.stream == stream && last.seq == seq => {
                last.events += 1;
                last.bytes += bytes.len() as u32;
            }
            _ => open.segments.push(Segment {
                stream,
                seq,
                position: event.position,
                events: 1,
                bytes: bytes.len() as u32,
            }),
        }
        closed
    }

    /// The last frame.
    pub fn finish(&mut self) -> Option<Cut> {
        self.open.take()
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    const CONFIG: RunConfig =
        RunConfig { run_bytes_min: 100, run_age_ms: 1_000, run_bytes_max: 150, run_objects_max: 4 };

    fn check(candidates: &[(u64, u64)], expect: Option<usize>) {
        let candidates: Vec<_> = candidates
            .iter()
            .enumerate()
            .map(|(n, (bytes, age_ms))| Candidate {
                id: ObjectId(Uuid::from_u128(n as u128)),
                bytes: *bytes,
                age_ms: *age_ms,
            })
            .collect();
        let expect = expect.map(|len| candidates[..len].iter().map(|candidate| candidate.id).collect());
        assert_eq!(choose_run(&CONFIG, &candidates), expect, "{candidates:?}");
    }

    #[test]
    fn runs_are_chosen_by_size_number_and_age() {
        check(&[], None);
        check(&[(10, 999)], None);
        check(&[(10, 1_000)], Some(1));
        check(&[(10, 1_000), (10, 0)], Some(2));
        check(&[(60, 0), (60, 0)], Some(2));
        check(&[(60, 0), (60, 0), (60, 0)], Some(2));
        check(&[(999, 0), (1, 0)], Some(1));
        check(&[(1, 0), (1, 0), (1, 0), (1, 0), (1, 0)], Some(4));
        // Objects claimed by age must be those that are old.
        check(&[(10, 0), (145, 1_000)], None);
    }
}
