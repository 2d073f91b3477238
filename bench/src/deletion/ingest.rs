//! Load through the edge, once while nothing is deleted and once while much is; all of it is compared at the end.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use virtual_sdk::{Api, Ledger, Sdk, SdkOptions};

use super::Bench;
use crate::figures::Figures;
use crate::freshness::Latest;
use crate::load::{self, Load};
use crate::material::Material;
use crate::options::{Encodings, Options};
use crate::progress::Line;
use crate::report::Quantiles;
use crate::verify::{self, Outcome};

/// What the edge was like.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Latency {
    pub(super) events_per_second: f64,
    /// From when a batch was due to its acknowledgement.
    pub(super) batch_ms: Quantiles,
    /// Batches and consents that were given up, by code.
    pub(super) given_up: BTreeMap<String, u64>,
}

pub(super) struct Ingest {
    api: Api,
    edge_url: String,
    ledger: Arc<Ledger>,
    options: Options,
    last: Option<Instant>,
}

impl Ingest {
    pub(super) fn new(bench: &Bench<'_>) -> anyhow::Result<Self> {
        let endpoints = bench.deployment.endpoints();
        Ok(Self {
            api: Api::new(&endpoints.api_url, &endpoints.api_key)?,
            edge_url: endpoints.edge_url,
            ledger: Arc::default(),
            options: Options {
                seconds: bench.options.load_seconds,
                events_per_second: bench.options.events_per_second,
                sessions_per_second: None,
                sdks: None,
                speedup: 20.0,
                in_flight_max: 512,
                encoding: Encodings::Mixed,
                unique: false,
                sessions_per_link: 50,
                give_up_after_s: 60,
                readable_within_s: 120,
                readers: 4,
            },
            last: None,
        })
    }

    pub(super) async fn run(&mut self, meanwhile: &str) -> anyhow::Result<Latency> {
        let line = Line::new();
        line.show(&format!("{} s of load while {meanwhile}", self.options.seconds));
        let material = Material::prepare(&self.options)?;
        let rate = material.sessions_per_second(&self.options)?;
        let figures = Arc::new(Figures::new()?);
        let load = Arc::new(Load {
            sdk: Sdk::new(&self.edge_url, SdkOptions::default())?,
            links: load::make_links(&self.api, &self.options, rate).await?,
            material,
            ledger: Arc::clone(&self.ledger),
            figures: Arc::clone(&figures),
            latest: Arc::new(Latest::default()),
            in_flight: Semaphore::new(self.options.in_flight_max),
            options: self.options.clone(),
            rate,
            begun: Instant::now(),
        });
        load.run().await?;
        let figures = figures.take();
        self.last = figures.last_at.or(self.last);
        line.end();
        Ok(Latency {
            events_per_second: figures.sums.events as f64 / self.options.seconds as f64,
            batch_ms: Quantiles::of(&figures.latency, 1.0),
            given_up: figures.given_up,
        })
    }

    /// Reads all back that was acknowledged.
    pub(super) async fn read_back(&self) -> Outcome {
        verify::run(&self.api, &self.ledger, self.last, &self.options).await
    }
}
