//! `clairvio`: the operator's tool.
//!
//! Each command does one thing and says what it did. Settings are those of the services: the same variables.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};
use schemas::WorkspaceId;
use schemas::plan::Plan;
use service_kit::config::Env;
use service_kit::config::kafka::KafkaConfig;
use service_kit::config::postgres::PostgresConfig;
use service_kit::kafka::topics::{self, TopicSpec};
use service_kit::{kafka, keys};
use storage::index::Index;
use uuid::Uuid;

/// The operator's tool. Settings come from the same environment variables as the services'.
#[derive(Debug, Parser)]
#[command(name = "clairvio", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keys of tokens.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Make the topic of events, or check that it is as durability needs it.
    Topics {
        /// Partitions, when it is made.
        #[arg(long, default_value_t = 12)]
        partitions: i32,
        /// Copies of each record.
        #[arg(long, default_value_t = 3)]
        replication: i32,
        /// Copies that must exist before a record is acknowledged.
        #[arg(long, default_value_t = 2)]
        min_insync: u32,
        /// Hours that records are kept.
        #[arg(long, default_value_t = 72)]
        retention_hours: u64,
    },
    /// Workspaces.
    #[command(subcommand)]
    Workspace(WorkspaceCommand),
}

#[derive(Debug, Subcommand)]
enum KeysCommand {
    /// Make fresh keys: edge-keys.json and transport-keys.json for edges, transport-keys.json and keyring.json for batchers,
    /// keyring.json for compactors, control-keys.json and keyring.json for control planes.
    Make {
        /// The folder to write them to. Existing files are never overwritten.
        #[arg(long)]
        folder: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum WorkspaceCommand {
    /// Make a workspace and its first API key, which is shown this once.
    Create {
        /// Its name.
        #[arg(long)]
        name: String,
        /// Its plan: free, starter, growth or scale.
        #[arg(long, default_value = "free")]
        plan: String,
        /// An origin that may record; can be given again.
        #[arg(long = "origin")]
        origins: Vec<String>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("clairvio: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Keys(KeysCommand::Make { folder }) => make_keys(&folder),
        Command::Topics { partitions, replication, min_insync, retention_hours } => {
            let config = load(KafkaConfig::load)?;
            let spec = TopicSpec {
                name: config.topic_events.clone(),
                partitions,
                replication,
                min_insync,
                retention: Duration::from_secs(retention_hours * 3600),
            };
            let made = topics::ensure(&kafka::client(&config, "clairvio"), &spec).await?;
            println!("topic {} {}", spec.name, if made { "made" } else { "is as it should be" });
            Ok(())
        }
        Command::Workspace(WorkspaceCommand::Create { name, plan, origins }) => {
            create_workspace(&name, &plan, &origins).await
        }
    }
}

/// Settings that these commands need, all errors at once.
fn load<T>(read: impl FnOnce(&mut Env<'_>) -> T) -> anyhow::Result<T> {
    let lookup = |name: &str| std::env::var(name).ok();
    let mut env = Env::new(&lookup);
    let config = read(&mut env);
    if env.errors().is_empty() { Ok(config) } else { bail!(env.errors().join("\n")) }
}

fn make_keys(folder: &std::path::Path) -> anyhow::Result<()> {
    let (made, kept) = keys::make(folder)?;
    for path in made {
        println!("made {}", path.display());
    }
    for path in kept {
        println!("kept {}", path.display());
    }
    Ok(())
}

async fn create_workspace(name: &str, plan: &str, origins: &[String]) -> anyhow::Result<()> {
    let plan = Plan::parse(plan).with_context(|| format!("plan {plan} is none of free, starter, growth, scale"))?;
    let index = Index::new(&load(PostgresConfig::load)?)?;
    index.migrate().await?;
    let workspace = WorkspaceId(Uuid::now_v7());
    let key = keys::tokens::make_api_key()?;
    index.create_workspace(workspace, name, plan, origins).await?;
    index.add_api_key(workspace, &key).await?;
    println!("workspace {workspace}\napi key   {key}");
    Ok(())
}
