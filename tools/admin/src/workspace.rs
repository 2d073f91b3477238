//! `clairvio workspace`: making workspaces.

use anyhow::Context as _;
use clap::Subcommand;
use schemas::WorkspaceId;
use schemas::plan::Plan;
use service_kit::config::postgres::PostgresConfig;
use service_kit::keys;
use storage::index::Index;
use storage::index::workspaces::{normal_name, normal_origins};
use uuid::Uuid;

use crate::settings::load;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
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

pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create { name, plan, origins } => create(&name, &plan, &origins).await,
    }
}

async fn create(name: &str, plan: &str, origins: &[String]) -> anyhow::Result<()> {
    let plan = Plan::parse(plan).with_context(|| format!("plan {plan} is none of free, starter, growth, scale"))?;
    let name = normal_name(name).context("the name is empty, longer than 100 bytes, or has control characters")?;
    let origins = normal_origins(origins).context(
        "an origin is none that a browser sends, or there are more than 8\n  hint: it looks like https://app.example",
    )?;
    let index = Index::new(&load(PostgresConfig::load)?)?;
    index.migrate().await?;
    let workspace = WorkspaceId(Uuid::now_v7());
    let key = keys::tokens::make_api_key()?;
    index.create_workspace(workspace, &name, plan, &origins).await?;
    index.add_api_key(workspace, &key).await?;
    println!("workspace {workspace}\napi key   {key}");
    Ok(())
}
