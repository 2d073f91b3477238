//! How soon a session of an hour is there: from its request to its first and to its last byte, and the requests to S3 that takes,
//! while it runs and lies in shared objects, and after compaction, whole and seeking into its middle.
//!
//! Flow: a recording becomes an hour and is sent within a minute, so that a flush comes each second and the session lies in many
//! shared objects, as the latest minutes of one that runs. It is read, again and again; then a compactor makes one object of it,
//! and it is read as before. For a cold read the control plane is started anew and another session is read first: what is cold are the
//! session's footers, not connections. What is read is compared with what was acknowledged once, and with the first reading always.

mod report;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use devstack::{Deployment, DeploymentOptions, Endpoints, Stack};
use reqwest::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING};
use schemas::SessionId;
use schemas::http::LinkRequest;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};
use virtual_sdk::sdk::random_attempt;
use virtual_sdk::verify::{look_for_batches, read_back};
use virtual_sdk::{
    Api, Body, Content, Encoding, EventsFormat, Form, Recording, Sdk, SdkOptions, SessionLedger, recordings, until,
};

pub use report::Report;

use crate::hour;
use crate::progress::Line;
use crate::stored::{self, Stored};

const NOTICE_VERSION: &str = "bench-1";
/// One session may send as fast as its plan allows at each edge.
const EDGES: usize = 4;
/// A flush each so often, so that the session lies in as many shared objects as seconds were spent on sending it.
const FLUSH_AGE_MS: u64 = 1_000;
/// Of the session's own time.
const SEEK_MS: i64 = 60_000;
const SHOW_EVERY: Duration = Duration::from_secs(1);
const GIVE_UP_AFTER: Duration = Duration::from_secs(120);
const READY_WITHIN: Duration = Duration::from_secs(30);
const READABLE_WITHIN: Duration = Duration::from_secs(60);
const MERGED_WITHIN: Duration = Duration::from_secs(600);

/// What a run is asked to do.
#[derive(Debug, Clone, Args, Serialize)]
pub struct Options {
    /// The recording that becomes an hour.
    #[arg(long, default_value = "shop-long-scroll")]
    pub recording: String,
    /// How long it takes to send it, in seconds: about as many shared objects.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub seconds: u64,
    /// How often each way of reading is repeated.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub repeats: u32,
}

/// What is read of the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
enum Part {
    Whole,
    MiddleMinute,
}

/// One way of reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Way {
    part: Part,
    zstd: bool,
    /// Whether the session's footers were read before.
    warm: bool,
}

/// One reading.
#[derive(Debug, Clone, Serialize)]
struct Reading {
    first_byte_ms: f64,
    last_byte_ms: f64,
    body_bytes: u64,
    raw_bytes: u64,
    requests: BTreeMap<String, u64>,
}

/// Where the session lay, and all readings.
#[derive(Debug, Clone, Serialize)]
struct State {
    name: &'static str,
    shared_objects: usize,
    own_objects: usize,
    ways: Vec<(Way, Vec<Reading>)>,
}

/// What was sent.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Sent {
    batches: u64,
    events: u64,
    raw_bytes: u64,
}

/// Reads on a deployment of its own. An error means that it could not be carried out; what it found wrong with the system
/// is in the report's verdict.
pub async fn run(stack: &Stack, options: &Options) -> anyhow::Result<Report> {
    let recordings = recordings::load()?;
    let recording = recordings.iter().find(|recording| recording.name == options.recording);
    let recording = Arc::new(hour::of(recording.with_context(|| format!("find recording {}", options.recording))?)?);
    let first = recordings.first().context("find a recording")?;
    let deployment = DeploymentOptions {
        edges: EDGES,
        workers: 0,
        partitions: 1,
        held: Some("compactor".to_owned()),
        ..DeploymentOptions::named("reading")
    };
    let deployment =
        Deployment::start(stack, &deployment.with("batcher", "CLAIRVIO_FLUSH_AGE_MS", FLUSH_AGE_MS)).await?;
    let mut bench = Bench::new(&deployment, options).await?;
    // In objects of its own: reading it makes connections, and brings none of the hour's footers.
    bench.other = Some(bench.send(&Arc::new(first.clone()), Duration::ZERO).await?.0);
    let (session, ledger, sent) = bench.send(&recording, Duration::from_secs(options.seconds)).await?;
    let stored = Stored::of(&deployment)?;
    let mut states = Vec::new();
    let mut faults = bench.compare(session, &ledger, "in shared objects").await?;
    states.push(bench.state("not merged: shared objects", &stored, session, &recording, &mut faults).await?);
    let compactors = deployment.release().await?;
    stored.wait_until_merged(&deployment, &compactors, MERGED_WITHIN).await?;
    faults.extend(bench.compare(session, &ledger, "in its own object").await?);
    states.push(bench.state("merged: its own object", &stored, session, &recording, &mut faults).await?);
    let mut life = BTreeMap::new();
    for service in ["batcher", "compactor"] {
        life.insert(service, stored::requests(&deployment, service).await?);
    }
    deployment.stop().await?;
    Ok(Report::new(options.clone(), sent, states, life, faults))
}

struct Bench<'a> {
    deployment: &'a Deployment,
    endpoints: Endpoints,
    api: Api,
    http: reqwest::Client,
    link: String,
    repeats: u32,
    /// Read before each cold reading, once it was sent.
    other: Option<SessionId>,
    /// By part, what was read first.
    read: BTreeMap<Part, u64>,
}

impl<'a> Bench<'a> {
    async fn new(deployment: &'a Deployment, options: &Options) -> anyhow::Result<Self> {
        let endpoints = deployment.endpoints();
        let api = Api::new(&endpoints.api_url, &endpoints.api_key)?;
        let request = LinkRequest {
            reference: "bench-reading".into(),
            expires_in: None,
            max_sessions: None,
            redirect_url: None,
            masking: None,
        };
        let link = api.create_link(&request).await.context("make link")?.token;
        Ok(Self {
            deployment,
            endpoints,
            api,
            http: reqwest::Client::builder().no_proxy().build().context("make http client")?,
            link,
            repeats: options.repeats,
            other: None,
            read: BTreeMap::new(),
        })
    }

    /// Sends a session, its batches spread over this time, and waits until all of it can be read.
    async fn send(
        &self,
        recording: &Arc<Recording>,
        over: Duration,
    ) -> anyhow::Result<(SessionId, SessionLedger, Sent)> {
        let sdks = self.deployment.edge_urls.iter().map(|url| Sdk::new(url, SdkOptions::default()));
        let sdks = sdks.collect::<Result<Vec<_>, _>>()?;
        let sdk = sdks.first().context("send a session: there is no edge")?;
        let give_up = || Instant::now() + GIVE_UP_AFTER;
        let attempt = random_attempt();
        let session = sdk.accept_until_answered(&self.link, NOTICE_VERSION, &attempt, give_up()).await?.answer;
        let last_of_stream: BTreeMap<u32, u32> =
            recording.batches().iter().map(|batch| (batch.stream, batch.seq)).collect();
        let (begun, line, mut shown) = (Instant::now(), Line::new(), Instant::now());
        let (mut ledger, mut sent) = (SessionLedger::default(), Sent::default());
        let whole_ms = recording.counts().duration_ms.max(1);
        let batches = recording.batches().iter().zip(0..);
        for ((batch, number), sdk) in batches.zip(sdks.iter().cycle()) {
            sleep_until(begun + over.mul_f64(batch.offset_ms as f64 / whole_ms as f64)).await;
            let body = Body::of_batch(batch, Form::Lines, Encoding::Zstd).context("encode batch")?;
            let is_last = last_of_stream.get(&batch.stream) == Some(&batch.seq);
            let sending = sdk.send_until_acknowledged(&session, batch.stream, batch.seq, is_last, &body, give_up());
            sending.await.with_context(|| format!("send stream {}, seq {}", batch.stream, batch.seq))?;
            ledger.acknowledge(
                batch.stream,
                batch.seq,
                Content::Recorded { recording: Arc::clone(recording), batch: number },
            );
            sent.batches += 1;
            sent.events += batch.events().len() as u64;
            sent.raw_bytes += batch.raw_bytes();
            if shown.elapsed() >= SHOW_EVERY {
                shown = Instant::now();
                line.show(&format!("{:.1} MB of {} sent", sent.raw_bytes as f64 / 1e6, recording.name));
            }
        }
        line.end();
        let what = format!("session {} is readable", session.id);
        until(&what, READABLE_WITHIN, || look_for_batches(&self.api, session.id, sent.batches)).await?;
        Ok((session.id, ledger, sent))
    }

    /// What is wrong with the session as a whole.
    async fn compare(&self, session: SessionId, ledger: &SessionLedger, place: &str) -> anyhow::Result<Vec<String>> {
        let read = read_back(&self.api, session, ledger, EventsFormat::Lines).await.context("read the session back")?;
        let comparison = read.comparison;
        let fault = (!comparison.is_exact()).then(|| {
            format!(
                "{place}: {} of {} events are as they were sent; first fault: {:?}",
                comparison.read.saturating_sub(comparison.altered + comparison.foreign),
                comparison.expected,
                comparison.first_fault
            )
        });
        Ok(fault.into_iter().collect())
    }

    async fn state(
        &mut self,
        name: &'static str,
        stored: &Stored,
        session: SessionId,
        recording: &Recording,
        faults: &mut Vec<String>,
    ) -> anyhow::Result<State> {
        let line = Line::new();
        let times = || recording.batches().iter().flat_map(|batch| batch.timestamps()).copied();
        let (first, last) = times().min().zip(times().max()).context("find the session's middle")?;
        let middle = first + (last - first) / 2;
        let mut ways = Vec::new();
        for part in [Part::Whole, Part::MiddleMinute] {
            for warm in [false, true] {
                for zstd in [false, true] {
                    let way = Way { part, zstd, warm };
                    let mut readings = Vec::new();
                    for repeat in 1..=self.repeats {
                        line.show(&format!("{name}: {way:?}, {repeat} of {}", self.repeats));
                        if !warm {
                            self.forget().await?;
                        }
                        let range = (part == Part::MiddleMinute).then_some((middle, middle + SEEK_MS));
                        let (reading, hash) = self.read(session, range, zstd).await?;
                        if *self.read.entry(part).or_insert(hash) != hash {
                            faults.push(format!("{name}: {way:?} gave other events than the first reading"));
                        }
                        readings.push(reading);
                    }
                    ways.push((way, readings));
                }
            }
        }
        line.end();
        let own_objects = stored.own_objects(session).await?.len();
        Ok(State { name, shared_objects: stored.shared_objects().await?, own_objects, ways })
    }

    /// Starts the control plane anew, and lets it make its connections.
    async fn forget(&self) -> anyhow::Result<()> {
        let running = self.deployment.supervisor.running();
        let service = running.iter().find(|service| service.name.starts_with("control-plane"));
        let name = &service.context("find the control plane")?.name;
        self.deployment.supervisor.restart(name).await?;
        self.deployment.supervisor.wait_ready(name, READY_WITHIN).await?;
        let other = self.other.context("find the session to read first")?;
        self.read(other, None, false).await.map(drop)
    }

    /// One reading, and the hash of its events.
    async fn read(&self, session: SessionId, range: Option<(i64, i64)>, zstd: bool) -> anyhow::Result<(Reading, u64)> {
        let before = stored::requests(self.deployment, "control-plane").await?;
        let mut url = format!("{}/v1/sessions/{session}/events", self.endpoints.api_url.trim_end_matches('/'));
        if let Some((from, to)) = range {
            url.push_str(&format!("?from={from}&to={to}"));
        }
        let encoding = if zstd { "zstd" } else { "identity" };
        let request = self.http.get(url).bearer_auth(&self.endpoints.api_key).header(ACCEPT, "application/x-ndjson");
        let begun = Instant::now();
        let mut response =
            request.header(ACCEPT_ENCODING, encoding).send().await?.error_for_status().context("read events")?;
        let mut first_byte = None;
        let mut body = Vec::new();
        while let Some(piece) = response.chunk().await.context("read events")? {
            first_byte.get_or_insert_with(|| begun.elapsed());
            body.extend_from_slice(&piece);
        }
        let last_byte = begun.elapsed();
        let is_zstd = response.headers().get(CONTENT_ENCODING).is_some_and(|found| found == "zstd");
        ensure!(is_zstd == zstd, "read events: asked for {encoding}, got another encoding");
        let body_bytes = body.len() as u64;
        let events = if zstd { zstd::stream::decode_all(body.as_slice()).context("decompress events")? } else { body };
        let mut hash = DefaultHasher::new();
        events.hash(&mut hash);
        let after = stored::requests(self.deployment, "control-plane").await?;
        let millis = |time: Duration| time.as_secs_f64() * 1e3;
        let reading = Reading {
            first_byte_ms: millis(first_byte.unwrap_or(last_byte)),
            last_byte_ms: millis(last_byte),
            body_bytes,
            raw_bytes: events.len() as u64,
            requests: stored::since(&before, &after),
        };
        Ok((reading, hash.finish()))
    }
}
