//! `clairvio`: the operator's tool.
//!
//! Each command does one thing and says what it did, one line per fact. Settings are those of the services: the same
//! variables. [`keys`] makes, rotates and destroys keys, [`object`] looks into what lies in the bucket and in the log,
//! [`quarantine`] lists and replays what no batcher could read, [`receipt`] checks receipts of deletions, [`reconcile`] compares bucket
//! and index, [`workspace`] makes workspaces and keys of theirs.

mod keys;
mod object;
mod output;
mod quarantine;
mod receipt;
mod reconcile;
mod settings;
mod workspace;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use service_kit::config::kafka::{ControlConfig, KafkaConfig};
use service_kit::kafka;
use service_kit::kafka::topics::{self, CompactedTopicSpec, TopicSpec};

/// Partitions of the control topic: it holds little, every follower reads all of it, and each edge's sign of life keeps it moving, so
/// that its end is always a record that can be read.
const CONTROL_PARTITIONS: i32 = 1;

/// The operator's tool. Settings come from the same environment variables as the services'.
#[derive(Debug, Parser)]
#[command(name = "clairvio", version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Keys: make, list, rotate, retire and destroy them.
    #[command(subcommand)]
    Keys(keys::Command),
    /// Objects in the bucket and records of the log: what they are, whether they are whole, what is in them.
    #[command(subcommand)]
    Object(object::Command),
    /// Records that no batcher could read: list them, look at them, replay them.
    #[command(subcommand)]
    Quarantine(quarantine::Command),
    /// Receipts of deletions: check them, without any service.
    #[command(subcommand)]
    Receipt(receipt::Command),
    /// Compare bucket and index: list objects that no row names, rows whose object is missing, and sessions past their window.
    ///
    /// When `retention_orphan_objects`, `retention_missing_objects` or a `retention_past_window_…` is not 0, and after the index or
    /// the bucket was restored. One round, now, beside those of the retention workers. The exit code is 1 when anything is found.
    /// Needs DATABASE_URL and the bucket's settings; no keys. A million objects take 1,000 requests that list them.
    #[command(after_help = reconcile::EXAMPLES)]
    Reconcile(reconcile::Reconcile),
    /// Make the topics, of events and of control, or check that they are as durability needs them.
    ///
    /// Before the first start, and before the start of a release that brings a new topic.
    Topics {
        /// Partitions of the topic of events, when it is made.
        #[arg(long, default_value_t = 12)]
        partitions: i32,
        /// Copies of each record.
        #[arg(long, default_value_t = 3)]
        replication: i32,
        /// Copies that must exist before a record is acknowledged.
        #[arg(long, default_value_t = 2)]
        min_insync: u32,
        /// Hours that records of events are kept.
        #[arg(long, default_value_t = 72)]
        retention_hours: u64,
    },
    /// Workspaces.
    #[command(subcommand)]
    Workspace(workspace::Command),
    /// Make a key for the operator's calls, which is shown this once, and its hash for CLAIRVIO_OPERATOR_KEY_HASHES.
    ///
    /// Once for each operator, so that one can be taken back without the others. Control planes take it when they are started
    /// again with the hash.
    OperatorKey,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse().command).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("clairvio: {}", output::explain(&error));
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Keys(command) => keys::run(command).await.map(|()| ExitCode::SUCCESS),
        Command::Object(command) => object::run(command).await,
        Command::Quarantine(command) => quarantine::run(command).await,
        Command::Receipt(command) => receipt::run(command),
        Command::Reconcile(reconcile) => reconcile.run().await,
        Command::Topics { partitions, replication, min_insync, retention_hours } => {
            let (config, control) = settings::load(|env| {
                let config = KafkaConfig::load(env);
                let control = ControlConfig::load_beside(&config, env);
                (config, control)
            })?;
            let spec = TopicSpec {
                name: config.topic_events.clone(),
                partitions,
                replication,
                min_insync,
                retention: Duration::from_secs(retention_hours * 3600),
            };
            let made = topics::ensure(&kafka::client(&config, "clairvio"), &spec).await?;
            println!("topic {} {}", spec.name, if made { "made" } else { "is as it should be" });
            let name = control.topic;
            let spec = CompactedTopicSpec { name, partitions: CONTROL_PARTITIONS, replication, min_insync };
            let made = topics::ensure_compacted(&kafka::client(&config, "clairvio"), &spec).await?;
            println!("topic {} {}", spec.name, if made { "made" } else { "is as it should be" });
            Ok(ExitCode::SUCCESS)
        }
        Command::OperatorKey => {
            let key = service_kit::keys::tokens::make_api_key()?;
            println!("operator key {key}\nhash         {}", storage::index::keys::operator_key_hash(&key));
            Ok(ExitCode::SUCCESS)
        }
        Command::Workspace(command) => workspace::run(command).await.map(|()| ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_holds_together_and_every_argument_has_its_help() {
        fn check(command: &clap::Command) {
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
            assert!(command.get_about().is_some(), "{}", command.get_name());
            command.get_subcommands().for_each(check);
        }
        let command = Arguments::command();
        command.clone().debug_assert();
        check(&command);
    }
}
