//! One session of any size: all recordings at the same time, as tabs are, lap after lap, each lap later by a lap's time.
//!
//! What is expected of it need not be kept: the first lap is compared with what was sent, event by event, and every other lap,
//! its times taken back, has to be the first.

use std::hash::{DefaultHasher, Hasher as _};
use std::sync::Arc;

use anyhow::{Context, ensure};
use devstack::Deployment;
use engine::events;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use schemas::SessionId;
use schemas::http::LinkRequest;
use tokio::time::{Duration, Instant};
use virtual_sdk::sdk::random_attempt;
use virtual_sdk::{
    Api, Batch, Body, Content, Encoding, EventsFormat, Form, Recording, Sdk, SdkOptions, Session, SessionLedger,
    recordings,
};

use crate::batcher::fill::Filled;
use crate::hour::Shift;
use crate::progress::Line;

const NOTICE_VERSION: &str = "bench-1";
/// Recordings that send at the same time, as tabs do.
const SENDERS: usize = 16;
/// Between two laps, in milliseconds.
const PAUSE_MS: i64 = 1_000;
/// An edge holds a session to its plan's rate, and says when to try again.
const GIVE_UP_AFTER: Duration = Duration::from_secs(600);
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// A recording's part of a lap.
struct Visit {
    recording: Recording,
    /// Its streams, and the last seq of each; numbered on from the visits before.
    streams: Vec<(u32, u32)>,
    first_stream: u32,
    /// From its own times to those of the first lap.
    later_ms: i64,
}

/// A session that is to be sent.
pub(crate) struct Giant {
    visits: Vec<Arc<Visit>>,
    laps: i64,
    lap_ms: i64,
    /// The least timestamp.
    first_ms: i64,
    streams_per_lap: u32,
}

/// What reading it back showed.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    pub(crate) faults: Vec<String>,
}

impl Giant {
    /// A session of at least so many bytes of events.
    pub(crate) fn of(raw_bytes: u64) -> anyhow::Result<Self> {
        let recordings = recordings::load()?;
        let per_lap: u64 = recordings.iter().map(|recording| recording.counts().raw_bytes).sum();
        ensure!(per_lap > 0, "plan a session: the recordings are empty");
        let times = |recording: &Recording| {
            let times = recording.batches().iter().flat_map(|batch| batch.timestamps());
            times.clone().min().copied().zip(times.max().copied())
        };
        // Any beginning would do; this one is a time of today.
        let first_ms = recordings.iter().filter_map(times).map(|(first, _)| first).max().unwrap_or_default();
        let (mut lap_ms, mut streams_per_lap) = (0, 0);
        let mut visits = Vec::new();
        for recording in recordings {
            let Some((first, last)) = times(&recording) else { continue };
            let mut streams: Vec<(u32, u32)> =
                recording.batches().iter().map(|batch| (batch.stream, batch.seq)).collect();
            streams.sort_unstable_by_key(|(stream, seq)| (*stream, std::cmp::Reverse(*seq)));
            streams.dedup_by_key(|(stream, _)| *stream);
            let later_ms = first_ms - first;
            lap_ms = lap_ms.max(last - first + PAUSE_MS);
            let first_stream = streams_per_lap;
            streams_per_lap += streams.len() as u32;
            visits.push(Arc::new(Visit { recording, streams, first_stream, later_ms }));
        }
        let laps = i64::try_from(raw_bytes.div_ceil(per_lap)).context("count laps")?;
        Ok(Self { visits, laps, lap_ms, first_ms, streams_per_lap })
    }

    /// A lap's batches, and whether each is its stream's last.
    fn batches(&self, lap: i64, visit: &Visit) -> impl Iterator<Item = anyhow::Result<(Batch, bool)>> {
        let shift = Shift { ms: visit.later_ms + lap * self.lap_ms, ids: 0 };
        let first_stream = lap as u32 * self.streams_per_lap + visit.first_stream;
        visit.recording.batches().iter().map(move |batch| {
            let number = visit.streams.partition_point(|(stream, _)| *stream < batch.stream);
            let is_last = visit.streams.get(number).is_some_and(|(_, last)| *last == batch.seq);
            Ok((shift.batch(batch, first_stream + number as u32, 0)?, is_last))
        })
    }

    /// Each lap's events as the system receives them.
    pub(crate) fn laps(&self) -> impl Iterator<Item = anyhow::Result<Vec<u8>>> {
        (0..self.laps).map(|lap| {
            let mut raw = Vec::new();
            for batch in self.visits.iter().flat_map(|visit| self.batches(lap, visit)) {
                let body = Body::of_batch(&batch?.0, Form::Lines, Encoding::Identity).context("encode batch")?;
                raw.extend_from_slice(&body.bytes);
            }
            Ok(raw)
        })
    }

    /// Sends it, by all edges: each holds a session to its plan's rate on its own.
    pub(crate) async fn send(&self, deployment: &Deployment) -> anyhow::Result<(SessionId, Filled)> {
        let endpoints = deployment.endpoints();
        let api = Api::new(&endpoints.api_url, &endpoints.api_key)?;
        let request = LinkRequest {
            reference: "bench-giant".into(),
            expires_in: None,
            max_sessions: Some(1),
            redirect_url: None,
            masking: None,
        };
        let link = api.create_link(&request).await.context("make link")?.token;
        let sdks = deployment.edge_urls.iter().map(|url| Sdk::new(url, SdkOptions::default()));
        let sdks = sdks.collect::<Result<Vec<_>, _>>()?;
        let sdk = sdks.first().context("send a session: there is no edge")?;
        let (attempt, deadline) = (random_attempt(), Instant::now() + GIVE_UP_AFTER);
        let session = sdk.accept_until_answered(&link, NOTICE_VERSION, &attempt, deadline).await?.answer;
        let begun = Instant::now();
        let visits = (0..self.laps).flat_map(|lap| self.visits.iter().map(move |visit| (lap, visit)));
        let sending =
            visits.zip(sdks.iter().cycle()).map(|((lap, visit), sdk)| self.send_visit(sdk, &session, lap, visit));
        let mut sent = stream::iter(sending).buffer_unordered(SENDERS);
        let (mut total, line, mut shown) = (Filled { sessions: 1, ..Filled::default() }, Line::new(), begun);
        while let Some(visit) = sent.try_next().await? {
            total.add(visit);
            if shown.elapsed() >= SHOW_EVERY {
                shown = Instant::now();
                line.show(&format!("{:.1} MB of one session sent", total.raw_bytes as f64 / 1e6));
            }
        }
        total.seconds = begun.elapsed().as_secs_f64();
        line.show(&total.to_string());
        line.end();
        Ok((session.id, total))
    }

    async fn send_visit(&self, sdk: &Sdk, session: &Session, lap: i64, visit: &Visit) -> anyhow::Result<Filled> {
        let mut sent = Filled::default();
        for batch in self.batches(lap, visit) {
            let (batch, is_last) = batch?;
            let body = Body::of_batch(&batch, Form::Lines, Encoding::Zstd).context("encode batch")?;
            let deadline = Instant::now() + GIVE_UP_AFTER;
            let (stream, seq) = (batch.stream, batch.seq);
            let sending = sdk.send_until_acknowledged(session, stream, seq, is_last, &body, deadline);
            let delivered = sending.await.with_context(|| format!("fill the log: stream {stream}, seq {seq}"))?;
            sent.batches += 1;
            sent.events += batch.events().len() as u64;
            sent.raw_bytes += batch.raw_bytes();
            sent.repetitions += delivered.failures.len() as u64;
        }
        Ok(sent)
    }

    /// Reads all of it.
    pub(crate) async fn read_back(&self, api: &Api, session: SessionId, filled: &Filled) -> anyhow::Result<Read> {
        let mut ledger = SessionLedger::default();
        for batch in self.visits.iter().flat_map(|visit| self.batches(0, visit)) {
            let (batch, _) = batch?;
            ledger.acknowledge(batch.stream, batch.seq, Content::Own(Arc::new(batch)));
        }
        let mut comparer = ledger.comparer(session);
        let mut laps = vec![(0_u64, DefaultHasher::new()); usize::try_from(self.laps).context("count laps")?];
        let mut stream = api.events(session, EventsFormat::Lines).await?;
        let (mut read, mut latest, mut out_of_order, mut foreign) = (Read::default(), 0, 0_u64, 0_u64);
        while let Some(event) = stream.next_event().await? {
            read.events += 1;
            let shallow = events::shallow(&event).context("read an event that came back")?;
            let lap = (shallow.timestamp - self.first_ms).div_euclid(self.lap_ms);
            let Some((events, hash)) = usize::try_from(lap).ok().and_then(|lap| laps.get_mut(lap)) else {
                foreign += 1;
                continue;
            };
            out_of_order += u64::from(lap < latest);
            latest = latest.max(lap);
            let text = std::str::from_utf8(&event).context("read an event that came back")?;
            *events += 1;
            hash.write(Shift { ms: -lap * self.lap_ms, ids: 0 }.event(text).as_bytes());
            hash.write_u8(b'\n');
            if lap == 0 {
                comparer.push(&event);
            }
        }
        read.bytes = stream.bytes();
        let comparison = comparer.finish();
        let mut laps = laps.into_iter().map(|(events, hash)| (events, hash.finish()));
        let first = laps.next();
        let different = laps.filter(|lap| Some(*lap) != first).count();
        let mut demand = |holds: bool, fault: String| {
            if !holds {
                read.faults.push(fault);
            }
        };
        demand(
            read.events == filled.events,
            format!("{} events were read, {} acknowledged", read.events, filled.events),
        );
        demand(comparison.is_exact(), format!("the first lap is not what was sent: {:?}", comparison.first_fault));
        demand(different == 0, format!("{different} laps are not the first, later"));
        demand(out_of_order == 0, format!("{out_of_order} events came after those of a later lap"));
        demand(foreign == 0, format!("{foreign} events are of no lap"));
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laps_are_all_recordings_at_once_and_no_stream_comes_twice() {
        let giant = Giant::of(6_000_000).expect("a session");
        assert_eq!(giant.laps, 2);
        let laps: Vec<Vec<u8>> = giant.laps().collect::<anyhow::Result<_>>().expect("laps");
        assert!(laps[0].len() == laps[1].len() && laps[0].len() >= 5_000_000);
        let later = |line: &str| Shift { ms: giant.lap_ms, ids: 0 }.event(line);
        let (first, second) = (String::from_utf8_lossy(&laps[0]), String::from_utf8_lossy(&laps[1]));
        assert!(first.lines().map(later).eq(second.lines().map(str::to_owned)));
        let mut streams = Vec::new();
        for lap in 0..2 {
            for visit in &giant.visits {
                let batches: Vec<(Batch, bool)> =
                    giant.batches(lap, visit).collect::<anyhow::Result<_>>().expect("batches");
                let times = || batches.iter().flat_map(|(batch, _)| batch.timestamps()).copied();
                let begins = giant.first_ms + lap * giant.lap_ms;
                assert_eq!(times().min(), Some(begins), "all begin together");
                assert!(times().max().expect("events") < begins + giant.lap_ms);
                let lasts = batches.iter().filter(|(_, is_last)| *is_last).map(|(batch, _)| batch.stream);
                let before = streams.len();
                streams.extend(lasts);
                assert_eq!(streams.len() - before, visit.streams.len());
            }
        }
        let count = streams.len();
        streams.sort_unstable();
        streams.dedup();
        assert_eq!((streams.len(), streams.len() as u32), (count, 2 * giant.streams_per_lap));
    }
}
