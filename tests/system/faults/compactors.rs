//! Compactors that are killed and frozen again and again, while readers read all the time.
//!
//! What a reader may see is known exactly. A session's batches are sent one after the other, all into one partition, so they
//! become readable in that order: a reading shows the first so many of them, whole, in the one order of reading, and never
//! fewer than any reading or any count showed before it began. Runs that are swapped and parts that become one change nothing
//! of that.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher as _};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use devstack::{DeploymentOptions, Stack};
use futures::future::try_join_all;
use schemas::SessionId;
use schemas::http::{LinkCreated, SessionState, StoredAs};
use serde::Deserialize;
use virtual_sdk::{Comparison, Encoding, Form, Sdk, Seen, Session, until};

use super::quick;
use crate::harness::{LATER, SOON, System, metric, run_on};
use crate::load::{self, made_up_batch};
use crate::proxy::s3::{Plan, S3Proxy};
use crate::readings::{Answer, ENCODINGS, FORMATS, Manner, Reader};

/// For how long compactors are killed, and longer where nothing came of it yet,
const FAULTS: Duration = Duration::from_secs(20);
/// but not for ever.
const FAULTS_MAX: Duration = LATER;
const LEASE: Duration = Duration::from_secs(2);
const CLIENTS: usize = 10;
const READERS: usize = 3;
/// Events of a batch, as [`made_up_batch`] makes them.
const EVENTS: usize = 4;
const BEGUN_AT: i64 = 1_700_000_000_000;

/// A compactor that was frozen within a transaction finds its connection closed, and one that was frozen within a request to
/// S3 or a question to Kafka finds that its time is over. Whoever waited for its locks may have waited for too long.
const FROZEN: &[&str] = &[
    "part is down",
    "ask kafka",
    "lock timeout",
    "idle-in-transaction timeout",
    "testing the connection",
    "give back partitions",
    "stop reading partition",
    "read partition",
];

/// Objects that compactors staged which were killed then.
const ABANDONED: &str =
    "select count(*) from object where kind = 1 and live_at is null and staged_at < now() - interval '2 s'";

/// Sessions of one run: more rounds of uploads than go on at once.
const SLOW_SESSIONS: usize = 32;

/// Uploads of session objects go on at a crawl, so that a run takes longer than what is staged may lie.
pub(super) async fn uploads_are_slow(stack: &Stack, name: &str) -> Result<Comparison> {
    let proxy = S3Proxy::start(&stack.parts().s3.endpoint).await?;
    proxy.set(Plan::Crawl);
    let options = DeploymentOptions { compactors: 2, held: Some(format!("compactor-{name}")), ..quick(name) };
    let options = options
        .with("compactor", "S3_ENDPOINT", proxy.url())
        .with("compactor", "CLAIRVIO_LEASE_MS", 1_000)
        .with("retention-worker", "CLAIRVIO_PASS_INTERVAL_MS", 200)
        .with("retention-worker", "CLAIRVIO_STAGED_STALE_MS", 1_500);
    run_on(stack, options, &[], async |system| {
        let (link, sdk) = (system.link(name).await?, system.sdk(1)?);
        let sessions = try_join_all((0..SLOW_SESSIONS).map(|_| load::begin(system, &sdk, &link))).await?;
        for seq in 0..2 {
            let sending = sessions.iter().map(async |session| {
                let batch =
                    made_up_batch(session.id, 0, seq, seq == 1, 100, |position| i64::from(seq) * 100 + position)?;
                load::send(system, &sdk, session, &batch, Form::Lines, Encoding::Zstd).await
            });
            try_join_all(sending).await?;
        }
        load::compare_all(system, SOON).await?;
        for compactor in system.deployment.release().await? {
            system.deployment.supervisor.wait_ready(&compactor, SOON).await?;
        }
        load::wait_compacted(system, LATER).await?;
        for number in 1..=2 {
            let lost = metric(&system.admin_url("compactor", number)?, "compactor_lost_swaps_total").await;
            ensure!(lost == 0, "compactor {number} lost {lost} of its jobs");
        }
        load::compare_all(system, SOON).await
    })
    .await
}

pub(super) async fn are_killed_and_frozen(stack: &Stack, name: &str) -> Result<Comparison> {
    let options = DeploymentOptions { edges: 2, compactors: 2, ..quick(name) }
        .with("compactor", "CLAIRVIO_LEASE_MS", LEASE.as_millis())
        .with("", "CLAIRVIO_SESSION_SILENCE_MS", 2_000)
        .with("retention-worker", "CLAIRVIO_PASS_INTERVAL_MS", 500)
        .with("retention-worker", "CLAIRVIO_CONDEMNED_GRACE_MS", 3_000)
        .with("retention-worker", "CLAIRVIO_STAGED_STALE_MS", 8_000)
        .with("retention-worker", "S3_REQUEST_TIMEOUT_MS", 2_000);
    run_on(stack, options, FROZEN, async |system| {
        let (link, sdks) = (system.link(name).await?, [system.sdk(1)?, system.sdk(2)?]);
        let (scene, stop_reading) = (Scene::default(), AtomicBool::new(false));
        let faults = async {
            let torments =
                (1..=2).map(|number| torment(system, &scene, number, Dice::new(name, &format!("fault{number}"))));
            try_join_all(torments).await?;
            scene.is_over.store(true, Ordering::Release);
            anyhow::Ok(())
        };
        let clients = (0..CLIENTS).map(|number| {
            let dice = Dice::new(name, &format!("client{number}"));
            record_on(system, &sdks, &link, &scene, dice)
        });
        let sending = async {
            tokio::try_join!(faults, try_join_all(clients))?;
            // Readers go on while the last runs are swapped and the last parts become one.
            let settled = settle(system).await;
            stop_reading.store(true, Ordering::Release);
            settled
        };
        let readers = (0..READERS).map(|number| {
            let dice = Dice::new(name, &format!("reader{number}"));
            read_on(system, &scene, dice, &stop_reading)
        });
        let ((), readings) = tokio::try_join!(sending, try_join_all(readers))?;
        let readings = readings.iter().sum::<u64>();
        let [late, abandoned] = [&scene.late, &scene.abandoned].map(|count| count.load(Ordering::Relaxed));
        ensure!(readings > 100 && late > 0, "{readings} readings and {late} late batches are too few");
        ensure!(abandoned > 0, "no kill hit a merge");
        load::count_all(system, SOON).await
    })
    .await
}

/// Chances that are the same for the same round.
struct Dice {
    seed: u64,
    rolls: u64,
}

impl Dice {
    fn new(round: &str, whose: &str) -> Self {
        Self { seed: hash((round, whose)), rolls: 0 }
    }

    /// One of this many numbers, from 0.
    fn roll(&mut self, sides: u64) -> u64 {
        self.rolls += 1;
        hash((self.seed, self.rolls)) % sides
    }

    fn pick<'t, T>(&mut self, of: &'t [T]) -> &'t T {
        &of[self.roll(of.len() as u64) as usize]
    }
}

fn hash(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// Kills and freezes a compactor at moments that its dice choose, often while a run is claimed.
async fn torment(system: &System<'_>, scene: &Scene, number: usize, mut dice: Dice) -> Result<()> {
    let (supervisor, service) = (&system.deployment.supervisor, system.service("compactor", number));
    let begun = Instant::now();
    for turn in 1.. {
        let abandoned = system.count(ABANDONED).await?;
        scene.abandoned.fetch_max(abandoned.unsigned_abs(), Ordering::Relaxed);
        if begun.elapsed() >= FAULTS {
            let came_of_it = [&scene.late, &scene.abandoned].iter().all(|count| count.load(Ordering::Relaxed) > 0);
            if came_of_it || begun.elapsed() >= FAULTS_MAX {
                break;
            }
            // On a busy machine no run may have come to its end so far.
            pass(2 * LEASE).await;
        }
        supervisor.wait_ready(&service, SOON).await?;
        if dice.roll(3) > 0 {
            wait_for_claim(system).await?;
        }
        pass(Duration::from_millis(dice.roll(120))).await;
        if turn % 5 == 0 {
            supervisor.pause(&service).await?;
            pass(LEASE + LEASE / 4).await;
            supervisor.resume(&service).await?;
        } else {
            supervisor.kill(&service).await?;
        }
    }
    supervisor.wait_ready(&service, SOON).await
}

/// Lets a time go by that is no condition of anything: a moment of the dice's choice.
async fn pass(time: Duration) {
    let mut ticks = tokio::time::interval(time.max(Duration::from_millis(1)));
    ticks.tick().await;
    ticks.tick().await;
}

/// Waits until a run is claimed that was not before, as far as its lease tells.
async fn wait_for_claim(system: &System<'_>) -> Result<()> {
    let newest = async || {
        let newest: Option<time::OffsetDateTime> =
            sqlx::query_scalar("select max(lease_until) from object").fetch_one(system.index.pool()).await?;
        anyhow::Ok(newest)
    };
    let before = newest().await?;
    until("a run is claimed", SOON, || async {
        match newest().await {
            Ok(now) if now > before => Seen::Done(()),
            Ok(_) => Seen::not_yet("none is"),
            Err(error) => Seen::not_yet(format_args!("{error:#}")),
        }
    })
    .await?;
    Ok(())
}

/// The sessions of a round.
#[derive(Default)]
struct Scene {
    tracks: Mutex<Vec<(SessionId, Arc<Track>)>>,
    /// Nothing new is begun.
    is_over: AtomicBool,
    /// Batches that were sent after their session was one object.
    late: AtomicU64,
    /// Objects of merges that kills hit, at once.
    abandoned: AtomicU64,
}

impl Scene {
    fn begin(&self, session: SessionId) -> Arc<Track> {
        let track = Arc::new(Track::default());
        self.tracks.lock().unwrap_or_else(PoisonError::into_inner).push((session, Arc::clone(&track)));
        track
    }

    /// One of the newest sessions mostly, for there something goes on.
    fn choose(&self, dice: &mut Dice) -> Option<(SessionId, Arc<Track>)> {
        let tracks = self.tracks.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = tracks.len().saturating_sub(if dice.roll(4) == 0 { tracks.len() } else { CLIENTS * 2 });
        (!tracks.is_empty()).then(|| dice.pick(&tracks[newest..]).clone())
    }

    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }
}

/// A batch by stream and seq.
type Place = (u32, u32);

/// What was sent of a session, and what was seen of it.
#[derive(Default)]
struct Track {
    /// Each batch when it is sent first, in the order of sending.
    sent: Mutex<Vec<Place>>,
    /// So many of them have been seen.
    shown: AtomicUsize,
}

impl Track {
    fn sent(&self) -> Vec<Place> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn send(&self, place: Place) {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner).push(place);
    }
}

fn timestamp((stream, seq): Place, position: i64) -> i64 {
    // Each batch begins before the last one ended, and the streams are interleaved.
    i64::from(seq) * 100 + position * 40 + i64::from(stream)
}

/// Records one session after the other.
async fn record_on(
    system: &System<'_>,
    sdks: &[Sdk; 2],
    link: &LinkCreated,
    scene: &Scene,
    mut dice: Dice,
) -> Result<()> {
    while !scene.is_over() {
        record(system, sdks, link, scene, &mut dice).await?;
    }
    Ok(())
}

/// A session that goes on across runs, over both edges: one or two streams, neighbours in the wrong order, copies at once and
/// later, an end mark or silence; then, often, a batch that was left out, and one that nobody expects any more.
async fn record(
    system: &System<'_>,
    sdks: &[Sdk; 2],
    link: &LinkCreated,
    scene: &Scene,
    dice: &mut Dice,
) -> Result<()> {
    let session = load::begin(system, dice.pick(sdks), link).await?;
    let track = scene.begin(session.id);
    let (streams, seqs) = (1 + dice.roll(2) as u32, 3 + dice.roll(16) as u32);
    let (has_end, pace) = (dice.roll(4) > 0, Duration::from_millis(20 + dice.roll(280)));
    let send = async |dice: &mut Dice, place: Place| {
        let (stream, seq) = place;
        // Some are large, so that objects have several frames; and a copy is the same whenever it is sent.
        let padding = if hash(place).is_multiple_of(7) { 20_000 } else { 100 };
        let end = has_end && seq + 1 == seqs;
        let batch = made_up_batch(session.id, stream, seq, end, padding, |position| timestamp(place, position))?;
        let (form, encoding) = (*dice.pick(&[Form::Array, Form::Lines, Form::Beacon]), *dice.pick(&Encoding::ALL));
        load::send(system, dice.pick(sdks), &session, &batch, form, encoding).await
    };
    let mut places: Vec<Place> = (0..seqs).flat_map(|seq| (0..streams).map(move |stream| (stream, seq))).collect();
    for at in 1..places.len() {
        if dice.roll(4) == 0 {
            places.swap(at - 1, at);
        }
    }
    let left_out = (dice.roll(2) == 0).then(|| places.remove(1 + dice.roll(places.len() as u64 - 2) as usize));
    for (at, place) in places.iter().enumerate() {
        if at > 0 && scene.is_over() {
            return Ok(());
        }
        track.send(*place);
        send(dice, *place).await?;
        if dice.roll(5) == 0 {
            let copy = *dice.pick(&places[..=at]);
            send(dice, copy).await?;
        }
        pass(pace).await;
    }
    if dice.roll(2) == 0 && wait_over(system, scene, &session).await? {
        for place in left_out.into_iter().chain([(0, seqs)]) {
            track.send(place);
            send(dice, place).await?;
            scene.late.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Waits until a session is over and nothing but session objects; `false` when the round is over first.
async fn wait_over(system: &System<'_>, scene: &Scene, session: &Session) -> Result<bool> {
    let is_over = until("the session is over and merged", LATER, || async {
        if scene.is_over() {
            return Seen::Done(false);
        }
        match system.api.session(session.id).await {
            Ok(item) if item.state == SessionState::Ended && item.stored_as == Some(StoredAs::Object) => {
                Seen::Done(true)
            }
            Ok(item) => Seen::not_yet(format_args!("{:?}, {:?}", item.state, item.stored_as)),
            Err(error) => Seen::not_yet(error),
        }
    })
    .await?;
    Ok(is_over)
}

/// Reads sessions in all manners until `stop` is set; how often.
async fn read_on(system: &System<'_>, scene: &Scene, mut dice: Dice, stop: &AtomicBool) -> Result<u64> {
    let reader = Reader::new(system)?;
    let (mut readings, mut pace) = (0, tokio::time::interval(Duration::from_millis(20)));
    while !stop.load(Ordering::Acquire) {
        pace.tick().await;
        let Some((session, track)) = scene.choose(&mut dice) else { continue };
        let manner = choose_manner(&mut dice);
        let mut seen = track.shown.load(Ordering::Acquire);
        if dice.roll(3) == 0 {
            match system.api.session(session).await {
                Ok(item) => seen = seen.max(item.completeness.map_or(0, |found| found.batches as usize)),
                // Accepted, and not stored yet.
                Err(error) if error.status() == Some(404) && seen == 0 => continue,
                Err(error) => return Err(error).with_context(|| format!("ask for session {session} during faults")),
            }
        }
        let answer = reader.read(session, &manner).await?;
        if seen == 0 && matches!(answer, Answer::Refused { status: 404, .. }) {
            continue;
        }
        // Taken after the reading: what was read was noted before.
        let shown = answer.whole().and_then(|events| shown(session, &manner, &events, seen, &track.sent()));
        let shown = shown.with_context(|| format!("read session {session} during faults, {manner:?}"))?;
        track.shown.fetch_max(shown, Ordering::AcqRel);
        readings += 1;
    }
    Ok(readings)
}

fn choose_manner(dice: &mut Dice) -> Manner {
    let mut bound = || (dice.roll(3) == 0).then(|| BEGUN_AT + dice.roll(2_000) as i64);
    let (from, to) = (bound(), bound());
    Manner { format: *dice.pick(&FORMATS), encoding: ENCODINGS[dice.roll(3) as usize], from, to }
}

/// How many of the batches that were sent a reading shows; an error when it shows anything but the first so many of them, or
/// fewer than were seen before.
fn shown(session: SessionId, manner: &Manner, events: &[Vec<u8>], seen: usize, sent: &[Place]) -> Result<usize> {
    let read: Vec<(Place, i64)> = events.iter().map(|event| of_event(session, event)).collect::<Result<_>>()?;
    let is_whole = manner.from.is_none() && manner.to.is_none();
    let shows = |first: usize| {
        let expected = in_order(&sent[..first]);
        read.iter()
            .copied()
            .eq(expected.filter(|(place, position)| manner.covers(BEGUN_AT + timestamp(*place, *position))))
    };
    let candidates = if is_whole { read.len() / EVENTS..=read.len() / EVENTS } else { seen..=sent.len() };
    let found = candidates.filter(|first| (seen..=sent.len()).contains(first)).find(|first| shows(*first));
    found.with_context(|| {
        let mut counts: BTreeMap<Place, usize> = BTreeMap::new();
        for (place, _) in &read {
            *counts.entry(*place).or_default() += 1;
        }
        format!(
            "its {} events are not those of the first {seen} to {} of {sent:?}, in order; read are {counts:?}",
            read.len(),
            sent.len()
        )
    })
}

/// The events of these batches in the order of reading: batch, and position within it.
fn in_order(sent: &[Place]) -> impl Iterator<Item = (Place, i64)> {
    let mut streams: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (stream, seq) in sent {
        streams.entry(*stream).or_default().push(*seq);
    }
    let mut events = Vec::with_capacity(sent.len() * EVENTS);
    for (stream, mut seqs) in streams {
        seqs.sort_unstable();
        let mut highest = i64::MIN;
        for seq in seqs {
            for position in 0..EVENTS as i64 {
                highest = highest.max(timestamp((stream, seq), position));
                events.push((highest, stream, seq, position));
            }
        }
    }
    events.sort_unstable();
    events.into_iter().map(|(_, stream, seq, position)| ((stream, seq), position))
}

/// What an event says that it is.
fn of_event(session: SessionId, event: &[u8]) -> Result<(Place, i64)> {
    #[derive(Deserialize)]
    struct Event<'e> {
        #[serde(borrow)]
        data: Data<'e>,
        timestamp: i64,
    }
    #[derive(Deserialize)]
    struct Data<'e> {
        source: &'e str,
    }
    let event: Event<'_> = serde_json::from_slice(event).context("read event")?;
    let mut parts = event.data.source.split('/');
    let (whose, numbers): (_, Vec<u32>) = (parts.next(), parts.map_while(|part| part.parse().ok()).collect());
    let (Some(whose), [stream, seq, position]) = (whose, numbers.as_slice()) else {
        anyhow::bail!("an event is none of those that were sent")
    };
    ensure!(whose == session.to_string(), "an event of session {whose} is read");
    let (place, position) = ((*stream, *seq), i64::from(*position));
    ensure!(event.timestamp == BEGUN_AT + timestamp(place, position), "an event has the timestamp {}", event.timestamp);
    Ok((place, position))
}

/// Waits until every session is one object and nothing is left of what was replaced or abandoned.
async fn settle(system: &System<'_>) -> Result<()> {
    load::wait_compacted(system, LATER).await?;
    let apart = "select count(*) from session s where 1 <> (select count(*) from object o
         where o.kind = 1 and o.state = 1 and o.workspace_id = s.workspace_id and o.session_id = s.id)";
    system.wait_count("every session is one object", apart, 0, LATER).await?;
    let shared = "select count(*) from object where kind = 0 and state = 1";
    system.wait_count("shared objects are drained", shared, 0, LATER).await?;
    // The rows of what was collected go when a listing shows it absent; that nothing else lies there is looked at afterwards.
    system.wait_count("nothing else is left", "select count(*) from object where state <> 1", 0, LATER).await
}
