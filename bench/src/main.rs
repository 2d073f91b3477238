//! `bench`: measures a running stack, and proves that nothing it acknowledged was lost.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use bench::{Options, Verdict};
use clap::{Parser, Subcommand};
use devstack::Endpoints;

/// Many virtual SDKs against a running stack, and proof that nothing it acknowledged was lost.
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
        /// Where the stack is. [default: endpoints.json in DEVSTACK_HOME, or in .devstack in the workspace]
        #[arg(long, value_name = "FILE")]
        endpoints: Option<PathBuf>,
        /// Where the report goes, as JSON. [default: standard output]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

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
    let Command::Run { options, endpoints, out } = command;
    let endpoints = match endpoints {
        Some(file) => read_endpoints(&file)?,
        None => Endpoints::read(&devstack::default_home()?)?,
    };
    let report = bench::run(&endpoints, &options).await?;
    eprintln!("{report}");
    let mut json = serde_json::to_vec_pretty(&report).context("encode report")?;
    json.push(b'\n');
    match out {
        Some(file) => std::fs::write(&file, json).with_context(|| format!("write report: {}", file.display()))?,
        None => std::io::Write::write_all(&mut std::io::stdout(), &json).context("write report")?,
    }
    Ok(report.verdict)
}

fn read_endpoints(file: &Path) -> anyhow::Result<Endpoints> {
    let text = std::fs::read(file).with_context(|| format!("read endpoints: {}", file.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("decode endpoints: {}", file.display()))
}
