//! What a run is asked to do.

use clap::{Args, ValueEnum};
use serde::Serialize;

/// How bodies are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Encodings {
    /// All three in turn.
    Mixed,
    /// None.
    Identity,
    /// gzip, as browsers can.
    Gzip,
    /// zstd.
    Zstd,
}

/// Parameters of a run.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Options {
    /// How long batches are sent, in seconds.
    #[arg(long, default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,
    /// The rate to aim at; sessions begin as often as that takes.
    #[arg(long, default_value_t = 4_000.0, value_parser = positive)]
    pub events_per_second: f64,
    /// How many sessions begin each second, instead of --events-per-second.
    #[arg(long, value_parser = positive, conflicts_with = "sdks")]
    pub sessions_per_second: Option<f64>,
    /// How many SDKs send at the same time, on average, instead of --events-per-second.
    #[arg(long, value_parser = positive)]
    pub sdks: Option<f64>,
    /// How many times faster than the people of the recordings.
    #[arg(long, default_value_t = 20.0, value_parser = positive)]
    pub speedup: f64,
    /// Requests that are under way at most; beyond it batches wait, and their waiting counts.
    #[arg(long, default_value_t = 512, value_parser = at_least_one)]
    pub in_flight_max: usize,
    /// How bodies are compressed.
    #[arg(long, value_enum, default_value_t = Encodings::Mixed)]
    pub encoding: Encodings,
    /// Give every batch content of its own, so that sessions which were mixed up are found. Costs the generator time.
    #[arg(long)]
    pub unique: bool,
    /// Sessions that begin by one link.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub sessions_per_link: u32,
    /// How long one batch is repeated before it is given up, in seconds.
    #[arg(long, default_value_t = 60)]
    pub give_up_after_s: u64,
    /// How long a session may take, after all was sent, until it is readable, in seconds.
    #[arg(long, default_value_t = 120)]
    pub readable_within_s: u64,
    /// Sessions that are read back at the same time.
    #[arg(long, default_value_t = 8, value_parser = at_least_one)]
    pub readers: usize,
}

pub(crate) fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number > 0.0 && number.is_finite() => Ok(number),
        _ => Err("give a number above 0".to_owned()),
    }
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(number) if (1..=65_536).contains(&number) => Ok(number),
        _ => Err("give a whole number from 1 to 65536".to_owned()),
    }
}
