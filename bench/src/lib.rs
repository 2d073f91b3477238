//! The benchmark: many virtual SDKs at a steady rate, and proof that nothing they were promised was lost.
//!
//! Flow: recordings are made into bodies once ([`material`]); sessions arrive by a schedule, whatever the system does
//! ([`load`]); meanwhile a sampler measures how long until what was acknowledged can be read ([`freshness`]), and a
//! line tells how it goes ([`progress`]); at the end all of it is read back and compared ([`verify`]), and everything
//! becomes a [`Report`].
//!
//! Latency is measured from the moment a batch was due, not from when it was sent: a stall counts for every batch that
//! it held up.

pub mod batcher;
pub mod compactor;
pub mod deletion;
mod figures;
mod freshness;
mod hour;
mod load;
mod machine;
pub mod masking;
mod material;
mod options;
mod progress;
pub mod reading;
mod report;
pub mod seal;
pub mod sizes;
mod spread;
mod stored;
pub mod tokens;
mod verify;

use std::sync::Arc;
use std::time::Duration;

use devstack::Endpoints;
use tokio::sync::watch;
use tokio::time::Instant;
use virtual_sdk::{Api, Ledger, Sdk, SdkOptions};

pub use options::{Encodings, Options};
pub use report::{Report, Verdict};

use figures::Figures;
use load::Load;
use material::Material;

/// Runs the benchmark against a running stack. An error means that it could not be carried out; what it found wrong
/// with the system is in the report's verdict.
pub async fn run(endpoints: &Endpoints, options: &Options) -> anyhow::Result<Report> {
    let material = Material::prepare(options)?;
    let api = Api::new(&endpoints.api_url, &endpoints.api_key)?;
    let sdk = Sdk::new(&endpoints.edge_url, SdkOptions::default())?;
    let rate = material.sessions_per_second(options)?;
    let ledger = Arc::new(Ledger::default());
    let figures = Arc::new(Figures::new()?);
    let latest = Arc::new(freshness::Latest::default());
    let links = load::make_links(&api, options, rate).await?;
    progress::announce(options, &material, rate, links.len());

    let cpu_before = machine::service_cpu(&endpoints.services);
    let begun = Instant::now();
    let load = Arc::new(Load {
        sdk,
        links,
        material,
        ledger: Arc::clone(&ledger),
        figures: Arc::clone(&figures),
        latest: Arc::clone(&latest),
        in_flight: tokio::sync::Semaphore::new(options.in_flight_max),
        options: options.clone(),
        rate,
        begun,
    });
    let (over, is_over) = watch::channel(false);
    let sending = async {
        let outcome = load.run().await;
        // The two others end when they see it; without them nobody needs to be told.
        over.send_replace(true);
        outcome
    };
    let readable_within = Duration::from_secs(options.readable_within_s);
    let sampling = freshness::sample(&api, &latest, &figures, readable_within, is_over.clone());
    let (sent, (), ()) = tokio::join!(sending, sampling, progress::tell(&figures, options.in_flight_max, is_over));
    sent?;
    let cpu = machine::service_cpu(&endpoints.services);

    let figures = figures.take();
    let read_back = verify::run(&api, &ledger, figures.last_at, options).await;
    Ok(Report::new(report::Parts {
        options: options.clone(),
        rate,
        figures,
        cpu_seconds: machine::difference(&cpu_before, &cpu),
        read_back,
        duration: begun.elapsed(),
    }))
}
