//! A private, real stack on one machine: Apache Kafka, Postgres and an S3 server, each its own process, and the services on it.
//!
//! The demo, the system tests and the benchmark all stand on this crate, so that there is one way to bring the system up and one
//! set of faults to inflict on it. Flow: [`Stack::start`] locks a folder (`home`), starts a guard, starts what the environment
//! does not already name, and waits until each part answers in its own protocol; a [`Supervisor`] runs the services; an
//! [`Endpoints`] file tells others where everything is.
//!
//! Invariants: nothing outlives the process that started it, however that ends (`guard.rs`); no process is signalled that the
//! stack did not start (`process.rs`); everything listens on 127.0.0.1 alone; stacks with different homes share nothing but
//! downloaded programs.

mod backlog;
mod deployment;
mod endpoints;
pub mod guard;
mod home;
mod parts;
mod places;
mod process;
pub mod process_table;
mod s3_listing;
pub mod s3_server;
mod services;
mod stack;

use std::time::Duration;

pub use backlog::{Backlog, Progress};
pub use deployment::{Deployment, DeploymentOptions, Private, PrivateStack};
pub use endpoints::{Endpoints, ServiceEndpoint};
pub use guard::{Guard, StopSignal};
pub use parts::postgres::postgres_program;
pub use parts::{Given, Part, Parts, S3Access, S3Kind};
pub use places::{default_home, find_binary, free_port, workspace_root};
pub use process::{Launch, Managed, User};
pub use services::{ServiceSpec, Supervisor};
pub use stack::{Stack, StackOptions};

/// Between two tries of a condition that is waited for.
const TRY_EVERY: Duration = Duration::from_millis(20);

/// Waits until `condition` is met; after `timeout` the last reason why it was not becomes the error's cause.
pub async fn until<T>(
    what: &str,
    timeout: Duration,
    mut condition: impl AsyncFnMut() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let deadline = tokio::time::Instant::now() + timeout;
    loop {
        match condition().await {
            Ok(value) => return Ok(value),
            Err(error) if tokio::time::Instant::now() >= deadline => {
                return Err(error.context(format!("{what}: not within {} s", timeout.as_secs_f32())));
            }
            Err(_) => tokio::time::sleep(TRY_EVERY).await,
        }
    }
}
