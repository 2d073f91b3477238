//! `bench`: measures a running stack, and proves that nothing it acknowledged was lost.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use bench::{Options, Report, Verdict};
use clap::{Parser, Subcommand};
use devstack::{Endpoints, Private, PrivateStack};

/// Many virtual SDKs against a stack, and proof that nothing it acknowledged was lost.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Send recordings at a steady rate, measure, read everything back, and compare.
    ///
    /// Exits with 1 when anything that was acknowledged is lost, doubled, altered, out of order or cannot be read.
    Run {
        #[command(flatten)]
        options: Box<Options>,
        /// A running stack's endpoints.json. Without it a private stack is started, and ended afterwards.
        #[arg(long, value_name = "FILE")]
        endpoints: Option<PathBuf>,
        /// Where the report goes, as JSON. [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// What the batcher costs: CPU beside zstd level 1 over the same bytes, PUTs, index rows; one batcher and two.
    ///
    /// Starts a private stack, fills logs through the real edge and lets batchers drain them. Exits with 1 when anything
    /// that was acknowledged is not in the index, once.
    #[command(after_help = BATCHER_EXAMPLES)]
    Batcher {
        #[command(flatten)]
        options: bench::batcher::Options,
        /// Where the report goes, as JSON. [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// What the compactor costs: CPU beside plain zstd over the same bytes, requests to S3, memory in its two large cases.
    ///
    /// Starts a private stack, fills logs through the real edges, and lets one compactor merge them. Exits with 1 when anything that
    /// was acknowledged is not read back, a session is not in one object, or memory is beyond 256 MiB.
    #[command(after_help = COMPACTOR_EXAMPLES)]
    Compactor {
        #[command(flatten)]
        options: bench::compactor::Options,
        /// Where the report goes, as JSON. [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// How fast what must go goes: many sessions past their window at once, some by hand; what that costs the index and ingest.
    ///
    /// Starts a private stack and fills its index and bucket. Exits with 1 when anything is left of what had to go, anything is missing
    /// of what had to stay, or a receipt does not verify.
    #[command(after_help = DELETION_EXAMPLES)]
    Deletion {
        #[command(flatten)]
        options: bench::deletion::Options,
        /// Where the report goes, as JSON. [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// What checking consent costs: tokens verified per second, a million ended sessions in memory, the spread of a withdrawal.
    ///
    /// Starts a private stack with several edges. Exits with 1 when memory or spread are beyond the design's bounds.
    Tokens {
        #[command(flatten)]
        options: bench::tokens::Options,
        /// Where the report goes, as JSON. [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// What masking costs beside bare parses of the same events by the fastest JSON crates, on one core.
    Masking {
        #[command(flatten)]
        options: bench::masking::Options,
        /// Where the report goes, as JSON. [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// How soon a session of an hour is there: first and last byte, and requests to S3, while it runs and after compaction.
    ///
    /// Starts a private stack. Exits with 1 when a reading gives anything but what was acknowledged.
    Reading {
        #[command(flatten)]
        options: bench::reading::Options,
        /// Where the report goes, as JSON. [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// What sealing costs beside the bare cipher, on one core, and the bytes that it adds.
    Seal {
        #[command(flatten)]
        options: bench::seal::Options,
        /// Where the report goes, as JSON. [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// What session objects take by zstd level and size of frames, beside gzip and whole-session zstd, in bytes, MB/s and money.
    ///
    /// Sizes are the same on every run. Half a minute on one core.
    Sizes {
        #[command(flatten)]
        options: bench::sizes::Options,
        /// Where the report goes, as JSON. [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

const COMPACTOR_EXAMPLES: &str = "\
Examples:
  bench compactor --megabytes 60 --giant-megabytes 60       a look, in a minute or two
  bench compactor --megabytes 400 --giant-megabytes 1000    the two cases that the design bounds";

const DELETION_EXAMPLES: &str = "\
Examples:
  bench deletion --sessions 10000 --objects 1000 --rows 100000 --by-hand 10 --load-seconds 10    a look, in a minute
  bench deletion --objects-per-second 1000    at the pace that workers have by default
  bench deletion --workers 2 --out deletion.json";

const BATCHER_EXAMPLES: &str = "\
Examples:
  bench batcher --megabytes 60 --sessions 100 --rounds 1    a look, in a minute
  bench batcher --megabytes 2000 --out batcher.json         enough for a throughput of two";

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse().command).await {
        Ok(Verdict::Held) => ExitCode::SUCCESS,
        Ok(Verdict::Failed) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<Verdict> {
    match command {
        Command::Run { options, endpoints, out } => {
            let report = match endpoints {
                Some(file) => bench::run(&read_endpoints(&file)?, &options).await?,
                None => until_interrupted(run_in_private(&options)).await?,
            };
            write(&report, out.as_deref())?;
            Ok(report.verdict)
        }
        Command::Batcher { options, out } => {
            let report = until_interrupted(batcher_in_private(&options)).await?;
            write(&report, out.as_deref())?;
            Ok(report.verdict)
        }
        Command::Compactor { options, out } => {
            let report = until_interrupted(compactor_in_private(&options)).await?;
            write(&report, out.as_deref())?;
            Ok(report.verdict)
        }
        Command::Deletion { options, out } => {
            let report = until_interrupted(deletion_in_private(&options)).await?;
            write(&report, out.as_deref())?;
            Ok(report.verdict)
        }
        Command::Tokens { options, out } => {
            let report = until_interrupted(tokens_in_private(&options)).await?;
            write(&report, out.as_deref())?;
            Ok(report.verdict)
        }
        Command::Masking { options, out } => {
            write(&bench::masking::run(&options)?, out.as_deref())?;
            Ok(Verdict::Held)
        }
        Command::Reading { options, out } => {
            let report = until_interrupted(reading_in_private(&options)).await?;
            write(&report, out.as_deref())?;
            Ok(report.verdict)
        }
        Command::Seal { options, out } => {
            write(&bench::seal::run(&options)?, out.as_deref())?;
            Ok(Verdict::Held)
        }
        Command::Sizes { options, out } => {
            write(&bench::sizes::run(&options)?, out.as_deref())?;
            Ok(Verdict::Held)
        }
    }
}

/// A few lines for people, JSON for machines.
fn write<R: std::fmt::Display + serde::Serialize>(report: &R, out: Option<&Path>) -> anyhow::Result<()> {
    eprintln!("{report}");
    let mut json = serde_json::to_vec_pretty(report).context("encode report")?;
    json.push(b'\n');
    match out {
        Some(file) => std::fs::write(file, json).with_context(|| format!("write report: {}", file.display())),
        None => std::io::Write::write_all(&mut std::io::stdout(), &json).context("write report"),
    }
}

/// On a stack of its own, which goes afterwards.
async fn run_in_private(options: &Options) -> anyhow::Result<Report> {
    let private = Private::start("bench").await?;
    let report = bench::run(&private.endpoints(), options).await;
    private.stop().await?;
    report
}

async fn batcher_in_private(options: &bench::batcher::Options) -> anyhow::Result<bench::batcher::Report> {
    let private = PrivateStack::start("bench").await?;
    let report = bench::batcher::run(private.stack(), options).await;
    private.stop().await?;
    report
}

async fn reading_in_private(options: &bench::reading::Options) -> anyhow::Result<bench::reading::Report> {
    let private = PrivateStack::start("bench").await?;
    let report = bench::reading::run(private.stack(), options).await;
    private.stop().await?;
    report
}

async fn compactor_in_private(options: &bench::compactor::Options) -> anyhow::Result<bench::compactor::Report> {
    let private = PrivateStack::start("bench").await?;
    let report = bench::compactor::run(private.stack(), options).await;
    private.stop().await?;
    report
}

async fn deletion_in_private(options: &bench::deletion::Options) -> anyhow::Result<bench::deletion::Report> {
    let private = PrivateStack::start("bench").await?;
    let report = bench::deletion::run(private.stack(), options).await;
    private.stop().await?;
    report
}

async fn tokens_in_private(options: &bench::tokens::Options) -> anyhow::Result<bench::tokens::Report> {
    let private = PrivateStack::start("bench").await?;
    let report = bench::tokens::run(private.stack(), options).await;
    private.stop().await?;
    report
}

/// Interrupted, it leaves nothing either: the stack's guard sees to that.
async fn until_interrupted<T>(running: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::select! {
        outcome = running => outcome,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.context("listen for Ctrl-C")?;
            bail!("interrupted; all of it was ended")
        }
    }
}

fn read_endpoints(file: &Path) -> anyhow::Result<Endpoints> {
    let text = std::fs::read(file).with_context(|| format!("read endpoints: {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("decode endpoints: {}", file.display()))
}
