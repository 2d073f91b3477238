//! `clairvio workspace`: making workspaces, and keys for those that have lost theirs.

use anyhow::Context as _;
use clap::Subcommand;
use schemas::http::Scope;
use schemas::plan::Plan;
use schemas::{ApiKeyId, WorkspaceId};
use service_kit::config::postgres::PostgresConfig;
use service_kit::keys;
use storage::index::Index;
use storage::index::keys::{FIRST_KEY, NewKey};
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
    /// Make an API key with all scopes for a workspace that has lost its last one. It is shown this once.
    Key {
        /// The workspace's id.
        workspace: Uuid,
        /// By which people know the key.
        #[arg(long, default_value = "by the operator")]
        name: String,
    },
}

pub(crate) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Create { name, plan, origins } => create(&name, &plan, &origins).await,
        Command::Key { workspace, name } => make_key(WorkspaceId(workspace), &name).await,
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
    index.create_workspace_with_key(workspace, &name, plan, &origins, &new_key(&key, FIRST_KEY)).await?;
    println!("workspace {workspace}\napi key   {key}");
    Ok(())
}

fn new_key<'a>(key: &'a str, name: &'a str) -> NewKey<'a> {
    NewKey { id: ApiKeyId(Uuid::now_v7()), key, name, scopes: &Scope::ALL }
}

async fn make_key(workspace: WorkspaceId, name: &str) -> anyhow::Result<()> {
    let name = normal_name(name).context("the name is empty, longer than 100 bytes, or has control characters")?;
    let index = Index::new(&load(PostgresConfig::load)?)?;
    index.workspace(workspace).await?.with_context(|| format!("there is no workspace {workspace}"))?;
    let key = keys::tokens::make_api_key()?;
    let made = index.create_key(workspace, &new_key(&key, &name)).await?;
    made.context("the workspace has as many API keys as it may\n  hint: revoke one that is not used any more")?;
    println!("api key {key}");
    Ok(())
}
