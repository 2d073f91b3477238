//! What checking consent costs: verifications on one core, beside the bare signature check in the same run; memory for a
//! million ended sessions; and how long the news of a withdrawal takes to all edges of a real stack.

use std::collections::BTreeMap;
use std::fmt;
use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use devstack::{Deployment, DeploymentOptions, Stack};
use ed25519_dalek::{Signature, Signer as _, SigningKey};
use engine::standing::Standing;
use engine::token::{Signing, Verifiers};
use futures::future::try_join_all;
use hdrhistogram::Histogram;
use ingest_edge::Tokens;
use schemas::control::Entry;
use schemas::http::LinkRequest;
use schemas::plan::Plan;
use schemas::token::{AUDIENCE, SessionClaims};
use schemas::{LinkId, ReceiptId, SessionId, SessionKey, WorkspaceId};
use serde::Serialize;
use service_kit::keys::{self, Watched, tokens};
use service_kit::shutdown::Shutdown;
use uuid::Uuid;
use virtual_sdk::sdk::random_attempt;
use virtual_sdk::{Api, CallError, Sdk, SdkOptions, Session};

use crate::report::Verdict;
use crate::spread::Spread;

const NOW_S: u64 = 1_790_000_000;
/// Tokens of one round; all of them fit into an edge's cache.
const TOKENS: usize = 2_000;
const ENDED_SESSIONS: usize = 1_000_000;
const MIB: f64 = 1_048_576.0;
/// A look at an edge that has not heard yet is followed by another after this.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// The design's bound for the spread of news.
const SPREAD_MAX: Duration = Duration::from_millis(schemas::limits::NEWS_SPREAD_MS);

/// What a run is asked to do.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// How long verifying is measured, in seconds.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub seconds: u64,
    /// Sessions that are withdrawn one after the other.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub withdrawals: u32,
    /// Edges that have to hear of each.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(2..=16))]
    pub edges: u32,
}

/// Verifications a second on one core.
#[derive(Debug, Clone, Copy, Serialize)]
struct Verifying {
    /// Ed25519 alone, strictly, over as many bytes.
    bare: Spread,
    /// A token that was not seen before.
    cold: Spread,
    /// A token that was verified before, as an edge finds it.
    cached: Spread,
}

/// A million ended sessions in an edge's memory.
#[derive(Debug, Clone, Copy, Serialize)]
struct Memory {
    ended_sessions: usize,
    mebibytes: f64,
    /// Asking for a session among them, nanoseconds.
    ask_ns: f64,
}

/// From the answer to a withdrawal until another edge refuses the session, milliseconds.
#[derive(Debug, Clone, Copy, Serialize)]
struct NewsSpread {
    edges: u32,
    measured: u64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

/// What a run found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    verifications_per_s: Verifying,
    memory: Memory,
    news: NewsSpread,
    /// Whether memory and spread are within the design's bounds.
    pub verdict: Verdict,
}

/// Measures; the spread on this stack.
pub async fn run(stack: &Stack, options: &Options) -> anyhow::Result<Report> {
    let verifications_per_s = verifying(Duration::from_secs(options.seconds)).context("measure verifying")?;
    let memory = memory()?;
    let news = spread(stack, options).await.context("measure the spread of news")?;
    let holds = memory.mebibytes <= 64.0 && news.max_ms <= SPREAD_MAX.as_secs_f64() * 1e3;
    let verdict = if holds { Verdict::Held } else { Verdict::Failed };
    Ok(Report { verifications_per_s, memory, news, verdict })
}

fn claims(number: usize) -> SessionClaims {
    SessionClaims {
        aud: AUDIENCE.into(),
        ws: WorkspaceId(Uuid::from_u128(1)),
        ses: SessionId(Uuid::from_u128(number as u128)),
        lnk: LinkId(Uuid::from_u128(3)),
        rcp: ReceiptId(Uuid::from_u128(4)),
        cst: NOW_S * 1000,
        ntc: "2026-03".into(),
        iat: NOW_S,
        exp: NOW_S + 3600,
        org: Some("https://app.example".into()),
        lim: Plan::Scale.limits().to_array(),
        msk: None,
    }
}

fn verifying(time: Duration) -> anyhow::Result<Verifying> {
    let folder = tempfile::tempdir().context("make temporary folder")?;
    let path = folder.path().join("keys.json");
    let (edge_keys, _) = tokens::make()?;
    keys::write(&path, &edge_keys)?;
    let shutdown = Shutdown::new(Duration::ZERO);
    let cache = Tokens::new(Watched::start(path, &shutdown)?)?;
    let secret = edge_keys.session_signing.bytes().context("a key has 32 bytes")?;
    let signing = Signing::new(edge_keys.session_signing.kid.clone(), &secret);
    let mut verifiers = Verifiers::default();
    verifiers.add(&edge_keys.session_signing.kid, &signing.public())?;
    let texts: Vec<String> = (0..TOKENS).map(|number| signing.session(&claims(number))).collect();
    let key = SigningKey::from_bytes(&secret);
    let signed: Vec<(&[u8], Signature)> = texts
        .iter()
        .map(|text| text.rsplit_once('.').map_or(text.as_bytes(), |(signed, _)| signed.as_bytes()))
        .map(|signed| (signed, key.sign(signed)))
        .collect();
    let public = key.verifying_key();
    let bare = || -> anyhow::Result<()> {
        for (signed, signature) in &signed {
            black_box(public.verify_strict(signed, signature)?);
        }
        Ok(())
    };
    let refused = |code: schemas::ErrorCode| anyhow::anyhow!("a good token was refused: {}", code.as_str());
    let cold = || -> anyhow::Result<()> {
        for text in &texts {
            black_box(verifiers.session(text, NOW_S).map_err(refused)?);
        }
        Ok(())
    };
    let cached = || -> anyhow::Result<()> {
        for text in &texts {
            black_box(cache.session(text, NOW_S).map_err(refused)?);
        }
        Ok(())
    };
    let mut speeds: [Vec<f64>; 3] = Default::default();
    let until = Instant::now() + time;
    let mut warm = false;
    while !warm || Instant::now() < until {
        let rounds = [timed(bare)?, timed(cold)?, timed(cached)?];
        // The first round fills the cache.
        if warm {
            speeds.iter_mut().zip(rounds).for_each(|(speeds, speed)| speeds.push(speed));
        }
        warm = true;
    }
    shutdown.begin();
    let [Some(bare), Some(cold), Some(cached)] = speeds.map(Spread::of) else {
        bail!("no rounds in {time:?}: give more seconds");
    };
    Ok(Verifying { bare, cold, cached })
}

fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let begun = Instant::now();
    work()?;
    Ok(TOKENS as f64 / begun.elapsed().as_secs_f64())
}

/// Bytes of this process that are in memory, as Linux tells them.
fn resident() -> anyhow::Result<f64> {
    let statm = std::fs::read_to_string("/proc/self/statm").context("read this process's memory")?;
    let pages: f64 = statm.split(' ').nth(1).context("read this process's memory")?.parse()?;
    Ok(pages * 4096.0)
}

fn memory() -> anyhow::Result<Memory> {
    let key = |number: usize| {
        // Ids as they come: spread by hashing, in no order.
        let bits = (number as u128).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        SessionKey {
            workspace: WorkspaceId(Uuid::from_u128((number % 100) as u128)),
            session: SessionId(Uuid::new_v8(bits.to_be_bytes())),
        }
    };
    let before = resident()?;
    let mut standing = Standing::default();
    for number in 0..ENDED_SESSIONS {
        standing.apply(Entry::withdrawal(key(number), NOW_S * 1000), NOW_S.cast_signed());
    }
    let mebibytes = (resident()? - before) / MIB;
    let asked: Vec<SessionClaims> = (0..TOKENS)
        .map(|number| {
            let SessionKey { workspace, session } = key(number * (ENDED_SESSIONS / TOKENS));
            SessionClaims { ws: workspace, ses: session, ..claims(number) }
        })
        .collect();
    let begun = Instant::now();
    let refused = asked.iter().filter(|claims| standing.check_session(claims).is_err()).count();
    let ask_ns = begun.elapsed().as_secs_f64() * 1e9 / TOKENS as f64;
    ensure!(refused == TOKENS && standing.sessions() == ENDED_SESSIONS, "{refused} of {TOKENS} were refused");
    Ok(Memory { ended_sessions: ENDED_SESSIONS, mebibytes, ask_ns })
}

async fn spread(stack: &Stack, options: &Options) -> anyhow::Result<NewsSpread> {
    let deployment_options =
        DeploymentOptions { edges: options.edges as usize, batchers: 1, ..DeploymentOptions::named("news") };
    let deployment = Deployment::start(stack, &deployment_options).await?;
    let outcome = spread_on(&deployment, options).await;
    deployment.stop().await?;
    outcome
}

async fn spread_on(deployment: &Deployment, options: &Options) -> anyhow::Result<NewsSpread> {
    let endpoints = deployment.endpoints();
    let api = Api::new(&endpoints.api_url, &endpoints.api_key)?;
    let request = LinkRequest {
        reference: "the spread of news".into(),
        expires_in: None,
        max_sessions: Some(10_000),
        redirect_url: None,
        masking: None,
    };
    let mut links = BTreeMap::new();
    let edges = deployment.edge_urls.iter().map(|url| Sdk::new(url, SdkOptions::default()));
    let edges: Vec<Sdk> = edges.collect::<Result<_, _>>()?;
    ensure!(edges.len() == options.edges as usize, "{} edges run", edges.len());
    let mut took_us = Histogram::<u64>::new_with_bounds(1, 60_000_000, 3)?;
    for number in 0..options.withdrawals {
        // A link begins 10,000 sessions at most.
        let link = match links.entry(number / 10_000) {
            std::collections::btree_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::btree_map::Entry::Vacant(place) => place.insert(api.create_link(&request).await?),
        };
        let serving = number as usize % edges.len();
        let session = edges[serving].accept(&link.token, "v1", &random_attempt()).await?;
        edges[serving].withdraw(&session).await?;
        let withdrawn = Instant::now();
        let others = edges.iter().enumerate().filter(|(place, _)| *place != serving);
        let hearing = others.map(|(_, edge)| heard(edge, &session, withdrawn));
        for took in try_join_all(hearing).await? {
            took_us.record(u64::try_from(took.as_micros())?.max(1))?;
        }
    }
    let ms = |quantile| took_us.value_at_quantile(quantile) as f64 / 1e3;
    Ok(NewsSpread {
        edges: options.edges,
        measured: took_us.len(),
        p50_ms: ms(0.5),
        p99_ms: ms(0.99),
        max_ms: took_us.max() as f64 / 1e3,
    })
}

/// When an edge refuses a session for the first time. It is asked again and again: what is measured includes a request's way.
async fn heard(edge: &Sdk, session: &Session, since: Instant) -> anyhow::Result<Duration> {
    loop {
        match edge.session_info(session).await {
            Err(error) if is_ended(&error) => return Ok(since.elapsed()),
            Err(error) if !error.is_retryable() => return Err(error.into()),
            Ok(_) | Err(_) => ensure!(since.elapsed() < SPREAD_MAX * 4, "an edge does not hear of a withdrawal"),
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

fn is_ended(error: &CallError) -> bool {
    matches!(error.code(), "consent_withdrawn" | "session_deleted")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Verifying { bare, cold, cached } = self.verifications_per_s;
        writeln!(
            f,
            "tokens verified per second on one core: median (min to max), and the ratio to bare Ed25519 in the same run"
        )?;
        writeln!(f, "  bare    {bare:.0}")?;
        writeln!(f, "  cold    {cold:.0} {:.2}", cold.median / bare.median)?;
        writeln!(f, "  cached  {cached:.0} {:.1}", cached.median / bare.median)?;
        let Memory { ended_sessions, mebibytes, ask_ns } = self.memory;
        writeln!(f, "{ended_sessions} ended sessions: {mebibytes:.1} MiB (64 at most), {ask_ns:.0} ns to ask for one")?;
        let NewsSpread { edges, measured, p50_ms, p99_ms, max_ms } = self.news;
        write!(
            f,
            "a withdrawal's news at the other of {edges} edges, {measured} times: p50 {p50_ms:.1} ms, p99 {p99_ms:.1} ms, \
             max {max_ms:.1} ms (5,000 at most)"
        )
    }
}
