//! What the log is filled with: the recordings one after the other, again and again, cut into sessions of equal size.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, ensure};
use devstack::Endpoints;
use futures::{StreamExt, TryStreamExt, stream};
use schemas::http::LinkRequest;
use serde::Serialize;
use tokio::time::{Duration, Instant};
use virtual_sdk::sdk::random_attempt;
use virtual_sdk::{Api, Body, Content, Encoding, Form, Ledger, Sdk, SdkOptions, recordings};

use crate::progress::Line;

const NOTICE_VERSION: &str = "bench-1";
/// Sessions that send at the same time.
const SENDERS: usize = 32;
/// Sessions by one link, at most.
const SESSIONS_PER_LINK: usize = 10_000;
const GIVE_UP_AFTER: Duration = Duration::from_secs(60);
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// One batch of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Step {
    /// Its place in [`Source::batches`].
    source: usize,
    stream: u32,
    seq: u32,
}

/// A recorded batch, made ready once.
struct Prepared {
    /// The recording's place, and the recorder's start.
    recorded: (usize, u32),
    /// As the system receives it: an event a line.
    raw: Vec<u8>,
    /// Compressed as an SDK does, so that the generator compresses nothing while it sends.
    body: Body,
    events: u64,
    /// What is demanded of whoever reads it.
    content: Content,
}

/// The recordings' batches, in their order.
pub(crate) struct Source {
    batches: Vec<Prepared>,
}

/// What was acknowledged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Filled {
    pub(crate) sessions: u64,
    pub(crate) batches: u64,
    pub(crate) events: u64,
    pub(crate) raw_bytes: u64,
    /// Attempts that failed and were repeated: each may have left one more record.
    pub(crate) repetitions: u64,
    pub(crate) seconds: f64,
}

impl Source {
    pub(crate) fn load() -> anyhow::Result<Self> {
        let recordings: Vec<_> = recordings::load()?.into_iter().map(Arc::new).collect();
        let all = recordings.iter().enumerate().flat_map(|(place, recording)| {
            recording.batches().iter().zip(0..).map(move |(batch, number)| {
                (place, batch, Content::Recorded { recording: Arc::clone(recording), batch: number })
            })
        });
        let batches = all.map(|(place, batch, content)| {
            Ok(Prepared {
                recorded: (place, batch.stream),
                raw: Body::of_batch(batch, Form::Lines, Encoding::Identity)?.bytes.to_vec(),
                body: Body::of_batch(batch, Form::Lines, Encoding::Zstd)?,
                events: batch.events().len() as u64,
                content,
            })
        });
        let batches: std::io::Result<Vec<Prepared>> = batches.collect();
        Ok(Self { batches: batches.context("encode batches")? })
    }

    pub(crate) fn raw(&self, step: Step) -> &[u8] {
        &self.batches[step.source].raw
    }

    /// So many sessions of at least `raw_bytes` together.
    pub(crate) fn plan(&self, raw_bytes: u64, sessions: usize) -> anyhow::Result<Vec<Vec<Step>>> {
        let sizes: Vec<_> = self.batches.iter().map(|batch| (batch.recorded, batch.raw.len() as u64)).collect();
        plan(&sizes, raw_bytes, sessions)
    }

    /// Sends all of it through the edge; gives what was acknowledged, and notes it in the ledger. A batch that is given up is an
    /// error.
    pub(crate) async fn fill(
        &self,
        endpoints: &Endpoints,
        sessions: &[Vec<Step>],
        ledger: &Ledger,
    ) -> anyhow::Result<Filled> {
        let api = Api::new(&endpoints.api_url, &endpoints.api_key)?;
        let sdk = Sdk::new(&endpoints.edge_url, SdkOptions::default())?;
        let mut links = Vec::new();
        for number in 0..sessions.len().div_ceil(SESSIONS_PER_LINK) {
            let request = LinkRequest {
                reference: format!("bench-{number}"),
                expires_in: None,
                max_sessions: Some(SESSIONS_PER_LINK as u32),
                redirect_url: None,
                masking: None,
            };
            links.push(api.create_link(&request).await.context("make links")?.token);
        }
        let begun = Instant::now();
        let sending = sessions
            .iter()
            .enumerate()
            .map(|(number, steps)| self.send(&sdk, &links[number / SESSIONS_PER_LINK], steps, ledger));
        let mut sent = stream::iter(sending).buffer_unordered(SENDERS);
        let (mut total, line, mut shown) = (Filled::default(), Line::new(), begun);
        while let Some(session) = sent.try_next().await? {
            total.add(session);
            if shown.elapsed() >= SHOW_EVERY {
                shown = Instant::now();
                line.show(&format!("{} of {} sessions sent", total.sessions, sessions.len()));
            }
        }
        total.seconds = begun.elapsed().as_secs_f64();
        line.show(&total.to_string());
        line.end();
        Ok(total)
    }

    async fn send(&self, sdk: &Sdk, link: &str, steps: &[Step], ledger: &Ledger) -> anyhow::Result<Filled> {
        let deadline = || Instant::now() + GIVE_UP_AFTER;
        let accepted = sdk.accept_until_answered(link, NOTICE_VERSION, &random_attempt(), deadline()).await?;
        let mut sent = Filled { sessions: 1, repetitions: accepted.failures.len() as u64, ..Filled::default() };
        let last_of_stream: BTreeMap<u32, u32> = steps.iter().map(|step| (step.stream, step.seq)).collect();
        for step in steps {
            let Prepared { raw, body, events, content, .. } = &self.batches[step.source];
            let end = last_of_stream.get(&step.stream) == Some(&step.seq);
            let (stream, seq) = (step.stream, step.seq);
            let sending = sdk.send_until_acknowledged(&accepted.answer, stream, seq, end, body, deadline());
            let delivered = sending.await.with_context(|| format!("fill the log: stream {stream}, seq {seq}"))?;
            ledger.acknowledge(accepted.answer.id, stream, seq, content.clone());
            sent.batches += 1;
            sent.events += events;
            sent.raw_bytes += raw.len() as u64;
            sent.repetitions += delivered.failures.len() as u64;
        }
        Ok(sent)
    }
}

impl Filled {
    pub(crate) fn add(&mut self, other: Self) {
        self.sessions += other.sessions;
        self.batches += other.batches;
        self.events += other.events;
        self.raw_bytes += other.raw_bytes;
        self.repetitions += other.repetitions;
    }

    /// Records that the log has at least: a batch each, and an acceptance for each session.
    pub(crate) fn records(&self) -> u64 {
        self.batches + self.sessions
    }
}

impl std::fmt::Display for Filled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { sessions, batches, events, raw_bytes, repetitions, seconds } = self;
        let megabytes = *raw_bytes as f64 / 1e6;
        write!(
            f,
            "{megabytes:.1} MB of {events} events in {batches} batches of {sessions} sessions, \
             {:.1} MB/s through the edge, {repetitions} repetitions",
            megabytes / seconds.max(1e-3)
        )
    }
}

/// Walks the recordings round and round and cuts the walk into sessions of equal size. Each start of a recorder is a stream
/// of its session, numbered from 0 and counted from 0, whichever part of it the cut left.
fn plan(batches: &[((usize, u32), u64)], raw_bytes: u64, sessions: usize) -> anyhow::Result<Vec<Vec<Step>>> {
    ensure!(batches.iter().any(|(_, bytes)| *bytes > 0), "plan sessions: the recordings are empty");
    let mut plan = Vec::with_capacity(sessions);
    let mut walk = (0..).flat_map(|lap: usize| (0..batches.len()).map(move |source| (lap, source)));
    let mut sent = 0_u64;
    for number in 1..=sessions as u64 {
        let until = (u128::from(raw_bytes) * u128::from(number) / sessions as u128) as u64;
        let mut session = Vec::new();
        let mut streams: BTreeMap<_, (u32, u32)> = BTreeMap::new();
        while sent < until
            && let Some((lap, source)) = walk.next()
        {
            let (recorded, bytes) = batches[source];
            let fresh = (streams.len() as u32, 0);
            let (stream, seq) = streams.entry((lap, recorded)).or_insert(fresh);
            session.push(Step { source, stream: *stream, seq: *seq });
            *seq += 1;
            sent += bytes;
        }
        ensure!(
            !session.is_empty(),
            "plan sessions: {raw_bytes} bytes are fewer batches than {sessions} sessions\n  \
             hint: give more --megabytes or fewer --sessions"
        );
        plan.push(session);
    }
    Ok(plan)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two recordings; the first has two streams that take turns.
    const BATCHES: [((usize, u32), u64); 5] = [((0, 7), 30), ((0, 9), 20), ((0, 7), 10), ((1, 7), 25), ((1, 7), 15)];

    #[test]
    fn a_plan_has_all_bytes_and_streams_that_count_from_0_without_gaps() {
        let plan = plan(&BATCHES, 1_000, 7).expect("a plan");
        assert_eq!(plan.len(), 7);
        let bytes = |session: &Vec<Step>| session.iter().map(|step| BATCHES[step.source].1).sum::<u64>();
        let total: u64 = plan.iter().map(bytes).sum();
        assert!((1_000..1_030).contains(&total), "{total}");
        let sources: Vec<usize> = plan.iter().flatten().map(|step| step.source).collect();
        assert!(sources.iter().enumerate().all(|(at, source)| *source == at % BATCHES.len()), "{sources:?}");
        for session in &plan {
            assert!((110..=175).contains(&bytes(session)), "{session:?}");
            let mut next: BTreeMap<u32, u32> = BTreeMap::new();
            for step in session {
                assert!(step.stream <= next.len() as u32, "{session:?}");
                let next = next.entry(step.stream).or_default();
                assert_eq!(step.seq, *next, "{session:?}");
                *next += 1;
            }
        }
        // A recorder's second start is another stream, also when the same recording comes again within a session.
        let one = super::plan(&BATCHES, 200, 1).expect("a plan");
        let places: Vec<_> = one[0].iter().map(|step| (step.stream, step.seq)).collect();
        assert_eq!(places, [(0, 0), (1, 0), (0, 1), (2, 0), (2, 1), (3, 0), (4, 0), (3, 1), (5, 0), (5, 1)]);
    }

    #[test]
    fn more_sessions_than_batches_are_refused_with_a_hint() {
        let error = plan(&BATCHES, 100, 10).expect_err("too many sessions").to_string();
        assert!(error.contains("hint"), "{error}");
        assert!(plan(&[], 100, 1).is_err());
    }
}
