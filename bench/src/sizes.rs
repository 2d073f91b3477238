//! What session objects cost by zstd level and by size of frames: bytes beside gzip and whole-session zstd, and the sum of
//! storing and compressing in money.
//!
//! Each recording is a session. Its events are put in the order of reading and cut into frames as the compactor cuts them; sizes
//! are exact and the same on every run, speeds are of one thread's processor time. No cutting can beat the whole session in one
//! frame of the same level, so that is the bound. Prices are list prices, and only their sum's order matters.

use std::collections::BTreeMap;
use std::fmt;
use std::hint::black_box;

use anyhow::{Context, ensure};
use clap::Args;
use engine::events;
use schemas::codec;
use schemas::limits::{FRAME_RAW_BYTES, KIB, SESSION_ZSTD_LEVEL as LEVEL};
use sealing::TAG_BYTES;
use serde::Serialize;
use virtual_sdk::{Encoding, Recording, recordings};
use zstd::zstd_safe::{CCtx, CParameter, compress_bound};

use crate::hour;
use crate::machine::{self, Machine};

/// Sizes of frames before compression.
const FRAMES: [usize; 5] = [64 * KIB, 128 * KIB, 256 * KIB, 512 * KIB, 1024 * KIB];
/// The kernel counts processor time in hundredths of a second: shorter measurements say nothing.
const MEASURED_S_MIN: f64 = 0.3;
/// S3 Standard in us-east-1, first tier, list price in US dollars.
const STORAGE_PER_GB_MONTH: f64 = 0.023;
/// A core of a general-purpose machine, list price in US dollars, rounded.
const CORE_PER_HOUR: f64 = 0.04;
const DAYS_PER_MONTH: f64 = 365.25 / 12.0;

/// What a run is asked to do.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Options {
    /// Levels of zstd. 19 alone takes another half minute.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 3, 6, 9, 11, 12, 15], value_parser = clap::value_parser!(i32).range(1..=22))]
    pub levels: Vec<i32>,
    /// Days that a session is kept.
    #[arg(long, default_value_t = 90, value_parser = clap::value_parser!(u32).range(1..=3_650))]
    pub days: u32,
    /// Repeat each recording for an hour of its own time, with other node ids and times in each lap. Takes minutes.
    ///
    /// Laps repeat what real hours would not: a whole session in one frame looks better than it would be.
    #[arg(long)]
    pub hour: bool,
}

/// A session's events in the order of reading, a newline after each.
struct Events(Vec<(Vec<u8>, bool)>);

/// One recording, in bytes.
#[derive(Debug, Clone, Serialize)]
struct Session {
    name: String,
    raw: u64,
    gzip_6: u64,
    zstd_3_whole: u64,
    /// At the level and in the frames that session objects are written with, sealed, without the footer.
    frames: u64,
    frames_count: usize,
}

/// One level and size of frames, over all recordings.
#[derive(Debug, Clone, Serialize)]
struct Cell {
    level: i32,
    frame_raw_bytes: usize,
    bytes: u64,
    /// Of the bytes of JSON.
    ratio: f64,
    compress_mb_per_s: f64,
    decompress_mb_per_s: f64,
    /// US dollars for each GB of JSON: storage for the days, and compressing once.
    dollars_per_gb: f64,
}

/// What a run found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    machine: Machine,
    parameters: Options,
    raw_bytes: u64,
    sessions: Vec<Session>,
    cells: Vec<Cell>,
    /// By level, each session in one frame: what no cutting can beat.
    whole_bytes: BTreeMap<i32, u64>,
    /// Frames as they are written, were the session's first full snapshot the dictionary of all that follow it.
    frames_after_first_snapshot_bytes: u64,
    /// Frames of the written size that full snapshots do not begin.
    frames_without_cuts_bytes: u64,
}

/// Measures.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let recordings = recordings::load()?.into_iter();
    let recordings = recordings.map(|recording| if options.hour { hour::of(&recording) } else { Ok(recording) });
    let recordings = recordings.collect::<anyhow::Result<Vec<Recording>>>()?;
    let named: Vec<(String, Events)> =
        recordings.into_iter().map(|recording| (recording.name.clone(), Events::of(&recording))).collect();
    let sessions = named.iter().map(|(name, events)| session(name, events)).collect::<anyhow::Result<Vec<_>>>()?;
    let raw_bytes = sessions.iter().map(|session| session.raw).sum();
    let all: Vec<Events> = named.into_iter().map(|(_, events)| events).collect();
    let mut cells = Vec::new();
    let mut whole_bytes = BTreeMap::new();
    for level in &options.levels {
        for frame_raw_bytes in FRAMES {
            cells.push(cell(&all, *level, frame_raw_bytes, raw_bytes, options.days)?);
        }
        whole_bytes.insert(*level, all.iter().map(|events| compressed(&events.whole(), *level)).sum());
    }
    let after_first_snapshot = all.iter().map(frames_after_first_snapshot).collect::<anyhow::Result<Vec<u64>>>()?;
    let without_cuts = all.iter().flat_map(|events| events.frames(FRAME_RAW_BYTES, false));
    Ok(Report {
        machine: Machine::here(),
        parameters: options.clone(),
        raw_bytes,
        sessions,
        cells,
        whole_bytes,
        frames_after_first_snapshot_bytes: after_first_snapshot.iter().sum(),
        frames_without_cuts_bytes: without_cuts.map(|frame| sealed(&frame.0, LEVEL)).sum(),
    })
}

impl Events {
    /// In the one order of reading: by the running maximum of the timestamps, stream, seq, position.
    fn of(recording: &Recording) -> Self {
        let mut latest: BTreeMap<u32, i64> = BTreeMap::new();
        let mut events = Vec::new();
        // Batches come in the order of sending, which is that of their seqs within each stream.
        for batch in recording.batches() {
            let latest = latest.entry(batch.stream).or_insert(i64::MIN);
            for (position, (event, timestamp)) in batch.events().iter().zip(batch.timestamps()).enumerate() {
                *latest = (*latest).max(*timestamp);
                events.push(((*latest, batch.stream, batch.seq, position), event.get().as_bytes()));
            }
        }
        events.sort_unstable_by_key(|(order, _)| *order);
        let lines = events.into_iter().map(|(_, event)| {
            let is_snapshot = events::shallow(event).is_some_and(|shallow| events::is_full_snapshot(&shallow));
            ([event, b"\n"].concat(), is_snapshot)
        });
        Self(lines.collect())
    }

    fn whole(&self) -> Vec<u8> {
        self.0.iter().flat_map(|(event, _)| event).copied().collect()
    }

    /// Cut as the compactor cuts, and whether a full snapshot begins the frame. Without cuts a snapshot begins none.
    fn frames(&self, frame_raw_bytes: usize, cuts: bool) -> Vec<(Vec<u8>, bool)> {
        let mut frames: Vec<(Vec<u8>, bool)> = Vec::new();
        for (event, is_snapshot) in &self.0 {
            let begins = (cuts && *is_snapshot)
                || frames.last().is_none_or(|(frame, _)| frame.len() + event.len() > frame_raw_bytes);
            if begins {
                frames.push((Vec::new(), *is_snapshot));
            }
            if let Some((frame, _)) = frames.last_mut() {
                frame.extend_from_slice(event);
            }
        }
        frames
    }
}

fn compressed(raw: &[u8], level: i32) -> u64 {
    codec::compress(raw, level).len() as u64
}

fn sealed(raw: &[u8], level: i32) -> u64 {
    compressed(raw, level) + TAG_BYTES as u64
}

fn session(name: &str, events: &Events) -> anyhow::Result<Session> {
    let whole = events.whole();
    let frames = events.frames(FRAME_RAW_BYTES, true);
    Ok(Session {
        name: name.to_owned(),
        raw: whole.len() as u64,
        gzip_6: Encoding::Gzip.encode(whole.clone()).context("compress by gzip")?.len() as u64,
        zstd_3_whole: compressed(&whole, 3),
        frames: frames.iter().map(|(frame, _)| sealed(frame, LEVEL)).sum(),
        frames_count: frames.len(),
    })
}

fn cell(all: &[Events], level: i32, frame_raw_bytes: usize, raw_bytes: u64, days: u32) -> anyhow::Result<Cell> {
    let frames: Vec<Vec<u8>> =
        all.iter().flat_map(|events| events.frames(frame_raw_bytes, true)).map(|(frame, _)| frame).collect();
    let mut compressor = codec::Compressor::new(level);
    let mut written = Vec::new();
    let compress_mb_per_s = megabytes_per_s(raw_bytes, || {
        written = frames.iter().map(|frame| compressor.compress(frame)).collect();
        Ok(())
    })?;
    let decompress_mb_per_s = megabytes_per_s(raw_bytes, || {
        for (frame, raw) in written.iter().zip(&frames) {
            let read = black_box(codec::decompress(frame, raw.len()).context("decompress frame")?);
            ensure!(read.len() == raw.len(), "a frame holds other bytes than were put in");
        }
        Ok(())
    })?;
    let bytes: u64 = written.iter().map(|frame| (frame.len() + TAG_BYTES) as u64).sum();
    let ratio = bytes as f64 / raw_bytes as f64;
    let core_hours_per_gb = 1e3 / compress_mb_per_s / 3_600.0;
    let months = f64::from(days) / DAYS_PER_MONTH;
    let dollars_per_gb = ratio * STORAGE_PER_GB_MONTH * months + core_hours_per_gb * CORE_PER_HOUR;
    Ok(Cell { level, frame_raw_bytes, bytes, ratio, compress_mb_per_s, decompress_mb_per_s, dollars_per_gb })
}

/// Repeats the work until its time can be told.
fn megabytes_per_s(bytes: u64, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let cpu = || machine::thread_cpu_seconds().context("read processor time of this thread from /proc");
    let (begun, mut rounds) = (cpu()?, 0);
    loop {
        work()?;
        rounds += 1;
        let seconds = cpu()? - begun;
        if seconds >= MEASURED_S_MIN {
            return Ok(bytes as f64 * f64::from(rounds) / 1e6 / seconds);
        }
    }
}

fn frames_after_first_snapshot(events: &Events) -> anyhow::Result<u64> {
    let frames = events.frames(FRAME_RAW_BYTES, true);
    let first = frames.iter().position(|(_, is_snapshot)| *is_snapshot);
    let mut bytes = 0;
    for (number, (frame, _)) in frames.iter().enumerate() {
        let mut context = CCtx::create();
        let failed = |code| anyhow::anyhow!("compress after a snapshot: {}", zstd::zstd_safe::get_error_name(code));
        context.set_parameter(CParameter::CompressionLevel(LEVEL)).map_err(failed)?;
        context.set_parameter(CParameter::ChecksumFlag(true)).map_err(failed)?;
        if let Some(first) = first.filter(|first| *first < number) {
            context.ref_prefix(&frames[first].0).map_err(failed)?;
        }
        let mut written = Vec::with_capacity(compress_bound(frame.len()));
        context.compress2(&mut written, frame).map_err(failed)?;
        bytes += (written.len() + TAG_BYTES) as u64;
    }
    Ok(bytes)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frames = format!("level {LEVEL} in {} KiB", FRAME_RAW_BYTES / KIB);
        writeln!(
            f,
            "{:20} {:>10} {:>10} {:>14} {:>20} {:>7}",
            "bytes", "JSON", "gzip -6", "zstd -3 whole", frames, "frames"
        )?;
        let mut total = Session { name: "all".into(), raw: 0, gzip_6: 0, zstd_3_whole: 0, frames: 0, frames_count: 0 };
        for session in &self.sessions {
            total.raw += session.raw;
            total.gzip_6 += session.gzip_6;
            total.zstd_3_whole += session.zstd_3_whole;
            total.frames += session.frames;
            total.frames_count += session.frames_count;
        }
        for session in self.sessions.iter().chain([&total]) {
            let Session { name, raw, gzip_6, zstd_3_whole, frames, frames_count } = session;
            writeln!(f, "{name:20} {raw:>10} {gzip_6:>10} {zstd_3_whole:>14} {frames:>20} {frames_count:>7}")?;
        }
        writeln!(f, "ratio to JSON, MB/s of one core, US dollars per 1,000 GB kept {} days", self.parameters.days)?;
        write!(f, "{:5}", "level")?;
        for bytes in FRAMES {
            write!(f, "  {:>18}", format!("{} KiB", bytes / KIB))?;
        }
        writeln!(f, "  {:>7}", "whole")?;
        for cells in self.cells.chunks(FRAMES.len()) {
            let Some(level) = cells.first().map(|cell| cell.level) else { continue };
            write!(f, "{level:5}")?;
            for Cell { ratio, compress_mb_per_s, dollars_per_gb, .. } in cells {
                write!(f, "  {:>18}", format!("{ratio:.4} {compress_mb_per_s:4.0} {:5.2}", dollars_per_gb * 1e3))?;
            }
            let whole = self.whole_bytes.get(&level).map_or(0.0, |bytes| *bytes as f64 / self.raw_bytes as f64);
            writeln!(f, "  {whole:>7.4}")?;
        }
        write!(
            f,
            "{frames}: {} bytes; were no frame cut at a full snapshot {}; were the first snapshot known to all frames {}",
            total.frames, self.frames_without_cuts_bytes, self.frames_after_first_snapshot_bytes
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(of: &[(usize, bool)]) -> Events {
        Events(of.iter().map(|(bytes, is_snapshot)| (vec![b'x'; *bytes], *is_snapshot)).collect())
    }

    #[test]
    fn frames_are_cut_at_their_size_and_before_full_snapshots() {
        let events = events(&[(40, false), (50, false), (20, false), (5, true), (200, false), (1, true)]);
        let sizes = |cuts| -> Vec<(usize, bool)> {
            events.frames(100, cuts).iter().map(|(frame, is_snapshot)| (frame.len(), *is_snapshot)).collect()
        };
        assert_eq!(sizes(true), [(90, false), (20, false), (5, true), (200, false), (1, true)]);
        assert_eq!(sizes(false), [(90, false), (25, false), (200, false), (1, true)]);
    }

    #[test]
    fn events_are_in_the_order_of_reading_and_all_of_them() {
        for recording in recordings::load().expect("recordings") {
            let events = Events::of(&recording);
            assert_eq!(events.whole().len() as u64, recording.counts().raw_bytes, "{}", recording.name);
            let snapshots = events.0.iter().filter(|(_, is_snapshot)| *is_snapshot).count();
            assert!(snapshots >= 1, "{}", recording.name);
        }
    }
}
