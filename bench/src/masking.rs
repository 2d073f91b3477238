//! What masking costs: beside bare parses of the same bytes, in the same run, on one core.
//!
//! The material are the recordings' batches, one after the other as a batcher has them. Rounds of all ways alternate, so that
//! whatever else the machine does meets them alike; the median over the rounds is compared. The bounds are the fastest JSON crates: one
//! that gives values to look at, as the pass looks at them, and one that only checks the grammar and looks at nothing.

use std::fmt;
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use masking::{Rules, StreamState};
use serde::Serialize;
use serde::de::IgnoredAny;
use virtual_sdk::recordings;

use crate::spread::Spread;

/// What a run is asked to do.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// How long is measured, in seconds, over all ways.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub seconds: u64,
}

/// A batch, and what is known of its stream when it comes.
struct Batch {
    payload: String,
    before: StreamState,
}

/// Batches, and the rules that they are masked by.
struct Material {
    rules: Rules,
    batches: Vec<Batch>,
}

/// Batches that were measured.
#[derive(Debug, Clone, Copy, Serialize)]
struct Measured {
    batches: usize,
    bytes: usize,
    /// Values that are masked in them.
    masked: u64,
}

/// What a run found; speeds in MB/s.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    rounds: usize,
    /// Batches of which nothing has to change.
    nothing_to_mask: Measured,
    pass: Spread,
    /// `sonic_rs::Value` of each event.
    parse_sonic: Spread,
    /// simd-json's tape of each event, a copy of it included: it writes into its input.
    parse_simd: Spread,
    /// `serde_json::Value` of each event.
    parse_serde: Spread,
    /// `serde_json` over each event, which it passes over: no value is given.
    check_serde: Spread,
    /// All batches, where all texts are masked.
    much_to_mask: Measured,
    pass_much: Spread,
    /// All batches at the edge: bodies read and masked by the default rules, facts found, hashed.
    edge: Spread,
}

impl Report {
    /// The pass as a share of the fastest crate that gives values.
    fn of_parse(&self) -> f64 {
        let fastest = [self.parse_sonic, self.parse_simd, self.parse_serde].map(|spread| spread.median);
        self.pass.median / fastest.into_iter().fold(f64::MIN, f64::max)
    }
}

fn material(rules: &str, unchanged_only: bool) -> anyhow::Result<(Material, Measured)> {
    let rules = Rules::of_json(rules);
    let mut found = (Vec::new(), Measured { batches: 0, bytes: 0, masked: 0 });
    for recording in recordings::load()? {
        let mut states = std::collections::BTreeMap::new();
        for batch in recording.batches() {
            let payload: String = batch.events().iter().map(|event| format!("{event}\n")).collect();
            let state = states.entry(batch.stream).or_insert_with(StreamState::new);
            let before = state.clone();
            let masked = masking::mask(payload.as_bytes(), &rules, state);
            let is_wanted = !unchanged_only || masked.payload.is_none();
            if is_wanted && !payload.is_empty() {
                let (batches, measured) = &mut found;
                measured.batches += 1;
                measured.bytes += payload.len();
                measured.masked += u64::from(masked.masked);
                batches.push(Batch { payload, before });
            }
        }
    }
    let (batches, measured) = found;
    Ok((Material { rules, batches }, measured))
}

impl Material {
    fn each_event(&self, mut look: impl FnMut(&str) -> anyhow::Result<()>) -> anyhow::Result<()> {
        self.batches.iter().flat_map(|batch| batch.payload.lines()).try_for_each(&mut look)
    }

    fn mask(&self) {
        for batch in &self.batches {
            black_box(masking::mask(batch.payload.as_bytes(), &self.rules, &mut batch.before.clone()));
        }
    }
}

/// Measures.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let (calm, nothing_to_mask) = material(r#"{"inputs":"sensitive"}"#, true)?;
    let (busy, much_to_mask) = material(r#"{"text":"all"}"#, false)?;
    ensure!(nothing_to_mask.masked == 0 && much_to_mask.masked > 1_000, "the recordings are not what they were");
    let mut buffers = simd_json::Buffers::default();
    let mut speeds: [Vec<f64>; 7] = Default::default();
    let until = Instant::now() + Duration::from_secs(options.seconds);
    let mut warm = false;
    while !warm || Instant::now() < until {
        let (calm_bytes, busy_bytes) = (nothing_to_mask.bytes, much_to_mask.bytes);
        let round = [
            timed(calm_bytes, || {
                calm.mask();
                Ok(())
            })?,
            timed(calm_bytes, || {
                calm.each_event(|event| {
                    black_box(sonic_rs::from_str::<sonic_rs::Value>(event)?);
                    Ok(())
                })
            })?,
            timed(calm_bytes, || {
                calm.each_event(|event| {
                    let mut event = event.as_bytes().to_vec();
                    black_box(simd_json::to_tape_with_buffers(&mut event, &mut buffers)?);
                    Ok(())
                })
            })?,
            timed(calm_bytes, || {
                calm.each_event(|event| {
                    black_box(serde_json::from_str::<serde_json::Value>(event)?);
                    Ok(())
                })
            })?,
            timed(calm_bytes, || {
                calm.each_event(|event| {
                    black_box(serde_json::from_str::<IgnoredAny>(event)?);
                    Ok(())
                })
            })?,
            timed(busy_bytes, || {
                busy.mask();
                Ok(())
            })?,
            timed(busy_bytes, || {
                let rules = Rules::default();
                for batch in &busy.batches {
                    let read = masking::read(batch.payload.as_bytes(), &rules);
                    black_box(read.map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?);
                }
                Ok(())
            })?,
        ];
        // The first round meets cold caches and pages that are not there yet.
        if warm {
            speeds.iter_mut().zip(round).for_each(|(speeds, speed)| speeds.push(speed));
        }
        warm = true;
    }
    let rounds = speeds[0].len();
    let [
        Some(pass),
        Some(parse_sonic),
        Some(parse_simd),
        Some(parse_serde),
        Some(check_serde),
        Some(pass_much),
        Some(edge),
    ] = speeds.map(Spread::of)
    else {
        anyhow::bail!("no rounds in {} s: give more seconds", options.seconds);
    };
    Ok(Report {
        rounds,
        nothing_to_mask,
        pass,
        parse_sonic,
        parse_simd,
        parse_serde,
        check_serde,
        much_to_mask,
        pass_much,
        edge,
    })
}

fn timed(bytes: usize, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let begun = Instant::now();
    work().context("look through a batch")?;
    Ok(bytes as f64 / 1e6 / begun.elapsed().as_secs_f64())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Measured { batches, bytes, .. } = self.nothing_to_mask;
        writeln!(f, "MB/s on one core, median of {} rounds (least to most)", self.rounds)?;
        writeln!(f, "{batches} batches of which nothing has to change, {:.2} MB", bytes as f64 / 1e6)?;
        for (what, speed) in [
            ("the masking pass", self.pass),
            ("parsed by sonic-rs", self.parse_sonic),
            ("parsed by simd-json, a tape", self.parse_simd),
            ("parsed by serde_json", self.parse_serde),
            ("checked by serde_json, no values", self.check_serde),
        ] {
            writeln!(f, "  {what:<34}{speed:>26.0}   pass: {:.2}", self.pass.median / speed.median)?;
        }
        let Measured { batches, bytes, masked } = self.much_to_mask;
        writeln!(f, "all {batches} batches, {:.2} MB", bytes as f64 / 1e6)?;
        writeln!(f, "  {:<34}{:>26.0}   {masked} values", "all texts masked", self.pass_much)?;
        writeln!(f, "  {:<34}{:>26.0}", "bodies read at the edge", self.edge)?;
        write!(f, "the pass runs at {:.2} of the fastest parse", self.of_parse())
    }
}
