//! `devstack demo`: the whole way of an event, told with figures.
//!
//! Consent, refusal and withdrawal of consent, recording, reading back, compaction, deletion: each step says what it expects, looks,
//! and ends the demo with an error at the first thing that does not hold. The sessions are recordings of real
//! browsers; the services are the ones that ship.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use devstack::Endpoints;
use futures::future::{join_all, try_join_all};
use schemas::SessionId;
use schemas::http::{DeletionItem, DeletionState, LinkCreated, LinkRequest, SessionItem, StoredAs};
use tokio::time::Instant;
use virtual_sdk::ledger::mark;
use virtual_sdk::recordings::Batch;
use virtual_sdk::sdk::random_attempt;
use virtual_sdk::verify::{look_for_batches, read_back};
use virtual_sdk::{
    Api, Body, CallError, Comparison, Content, Encoding, EventsFormat, Form, Ledger, Recording, Sdk, SdkOptions, Seen,
    SessionQuery, recordings, until,
};

const NOTICE_VERSION: &str = "demo-1";
/// For one batch to be acknowledged, repetitions included.
const ACKNOWLEDGED_WITHIN: Duration = Duration::from_secs(60);
/// A flush is due every second.
const READABLE_WITHIN: Duration = Duration::from_secs(60);
/// Silence of 10 s, a pass every 2 s, and shared objects drained within 30 s.
const COMPACTED_WITHIN: Duration = Duration::from_secs(150);
const ERASED_WITHIN: Duration = Duration::from_secs(90);

/// A step that takes longer shows how far it is.
const QUIET_FOR: Duration = Duration::from_secs(1);
const TERMINAL_EVERY: Duration = Duration::from_millis(200);
const LOG_EVERY: Duration = Duration::from_secs(5);

/// Tells the story on a running stack; fails at the first thing that does not hold.
pub(crate) async fn run(endpoints: &Endpoints) -> anyhow::Result<()> {
    let demo = Demo {
        story: Story::begin(),
        sdk: Sdk::new(&endpoints.edge_url, SdkOptions::default())?,
        api: Api::new(&endpoints.api_url, &endpoints.api_key)?,
        ledger: Ledger::default(),
    };
    let recordings: Vec<Arc<Recording>> = recordings::load()?.into_iter().map(Arc::new).collect();
    // Each run has references of its own, so that demos can follow one another on one stack.
    let run = &random_attempt()[..8];
    let references = References {
        accepting: format!("demo-{run}-accepts"),
        declining: format!("demo-{run}-declines"),
        withdrawing: format!("demo-{run}-withdraws"),
    };

    demo.story.tell(&format!("edge {}, control plane {}", endpoints.edge_url, endpoints.api_url));
    let link = demo.make_link(&references.accepting, recordings.len()).await?;
    demo.decline(&references.declining).await?;
    let batch =
        recordings.first().and_then(|recording| recording.batches().first()).context("find a recorded batch")?;
    demo.withdraw(&references.withdrawing, batch).await?;
    let sent = demo.record(&link, &recordings).await?;
    demo.wait_until_readable(&sent).await?;
    let first = demo.compare_all(&sent, EventsFormat::Lines, "the batcher's shared objects").await?;
    let items = demo.wait_until_compacted(&sent).await?;
    demo.tell_storage(&sent, &items);
    let second = demo.compare_all(&sent, EventsFormat::Array, "session objects, after compaction").await?;
    demo.delete_one(&sent, &references.accepting).await?;
    demo.nothing_of_the_decline(&references.declining).await.context("look for traces of the decline, at the end")?;
    demo.story.tell("of the decline there is still no session: only the hour's count of declines");

    let acknowledged = sent.iter().map(|sent| sent.events).sum();
    ensure!(first.read == acknowledged && second.read == acknowledged, "compare totals: {first}; {second}");
    println!();
    println!(
        "Everything held: {} events acknowledged, {} read back twice, 0 lost, 0 doubled.",
        count(acknowledged),
        count(second.read)
    );
    Ok(())
}

struct References {
    accepting: String,
    declining: String,
    withdrawing: String,
}

struct Demo {
    story: Story,
    sdk: Sdk,
    api: Api,
    ledger: Ledger,
}

/// One session, as it was sent.
struct Sent {
    session: SessionId,
    recording: String,
    batches: u64,
    events: u64,
    raw_bytes: u64,
    wire_bytes: u64,
    repetitions: u64,
    last_acknowledged: Instant,
}

impl Demo {
    async fn make_link(&self, reference: &str, sessions: usize) -> anyhow::Result<LinkCreated> {
        let link = self
            .api
            .create_link(&LinkRequest {
                reference: reference.to_owned(),
                expires_in: Some(3600),
                max_sessions: Some(u32::try_from(sessions)?),
                redirect_url: None,
                masking: None,
            })
            .await?;
        let id = link.id;
        self.story.tell(&format!("a link was made for {reference}: {id}, for {sessions} at most, good for one hour"));
        Ok(link)
    }

    async fn decline(&self, reference: &str) -> anyhow::Result<()> {
        let link = self.make_link(reference, 1).await?;
        self.sdk.decline(&link.token, NOTICE_VERSION).await?;
        self.nothing_of_the_decline(reference).await?;
        self.story.tell(&format!("{reference} said no: answered with 204, no token was given, no session is listed"));
        Ok(())
    }

    /// Somebody says yes, sends a batch, and takes it back.
    async fn withdraw(&self, reference: &str, batch: &Batch) -> anyhow::Result<()> {
        let link = self.make_link(reference, 1).await?;
        let session = self.sdk.accept(&link.token, NOTICE_VERSION, &random_attempt()).await?;
        let body = Body::of_batch(batch, Form::Lines, Encoding::Zstd).context("encode batch")?;
        self.sdk.send(&session, batch.stream, batch.seq, false, &body).await?;
        self.sdk.withdraw(&session).await?;
        let withdrawn = Instant::now();
        let refused = self.sdk.send(&session, batch.stream, batch.seq, false, &body).await.err();
        let code = refused.as_ref().map_or("taken", CallError::code);
        ensure!(code == "consent_withdrawn", "expect that nothing is taken after a withdrawal: it was {code}");
        until("what was withdrawn is deleted", READABLE_WITHIN, || async {
            match self.api.session(session.id).await {
                Err(error) if error.status() == Some(410) => Seen::Done(()),
                Err(error) => Seen::not_yet(error),
                Ok(_) => Seen::not_yet("it can be read"),
            }
        })
        .await?;
        self.story.tell(&format!(
            "{reference} said yes, sent a batch, and took it back: the next batch was refused with 403, and {} ms later it \
             was deleted for everybody",
            withdrawn.elapsed().as_millis()
        ));
        Ok(())
    }

    async fn nothing_of_the_decline(&self, reference: &str) -> anyhow::Result<()> {
        let sessions = self.sessions_of(reference).await?;
        ensure!(sessions.is_empty(), "expect no session after a decline: found {}", sessions.len());
        let links = self.api.all_links().await?;
        let link = links.iter().find(|link| link.reference == reference).context("find declined link in list")?;
        ensure!(link.sessions == 0, "expect that a declined link began no session: it counts {}", link.sessions);
        Ok(())
    }

    async fn sessions_of(&self, reference: &str) -> anyhow::Result<Vec<SessionItem>> {
        let query = SessionQuery { reference: Some(reference.to_owned()), ..SessionQuery::default() };
        Ok(self.api.all_sessions(&query).await?)
    }

    /// Every recording becomes a session, all at once, as fast as the edge acknowledges.
    async fn record(&self, link: &LinkCreated, recordings: &[Arc<Recording>]) -> anyhow::Result<Vec<Sent>> {
        let batches: usize = recordings.iter().map(|recording| recording.batches().len()).sum();
        let done = Done::of(batches);
        let begun = Instant::now();
        let sending = recordings.iter().enumerate().map(|(index, recording)| self.send(link, index, recording, &done));
        let sent = self.story.during("sending batches", &done, try_join_all(sending)).await?;
        let seconds = begun.elapsed().as_secs_f64();

        let sum = |of: fn(&Sent) -> u64| sent.iter().map(of).sum::<u64>();
        self.story.tell(&format!(
            "{} sessions said yes and sent {} events in {} batches, all acknowledged, in {seconds:.1} s",
            sent.len(),
            count(sum(|sent| sent.events)),
            count(sum(|sent| sent.batches)),
        ));
        self.story.detail(&format!(
            "{} of JSON, {} on the wire (identity, gzip and zstd in turn; arrays and lines in turn)",
            bytes(sum(|sent| sent.raw_bytes)),
            bytes(sum(|sent| sent.wire_bytes)),
        ));
        self.story.detail(&format!(
            "one batch of {} was sent twice on purpose; repetitions that the edge asked for: {}",
            sent.first().map_or("", |sent| &sent.recording),
            sum(|sent| sent.repetitions),
        ));
        Ok(sent)
    }

    async fn send(
        &self,
        link: &LinkCreated,
        index: usize,
        recording: &Arc<Recording>,
        done: &Done,
    ) -> anyhow::Result<Sent> {
        let name = &recording.name;
        let deadline = || Instant::now() + ACKNOWLEDGED_WITHIN;
        let attempt = random_attempt();
        let accepting = self.sdk.accept_until_answered(&link.token, NOTICE_VERSION, &attempt, deadline());
        let accepted = accepting.await.with_context(|| format!("begin session of recording: {name}"))?;
        let session = accepted.answer;
        self.ledger.begin(session.id);
        let mut sent = Sent {
            session: session.id,
            recording: name.clone(),
            batches: 0,
            events: 0,
            raw_bytes: 0,
            wire_bytes: 0,
            repetitions: accepted.failures.len() as u64,
            last_acknowledged: Instant::now(),
        };
        for (place, batch) in recording.batches().iter().enumerate() {
            let (stream, seq, end) = (batch.stream, batch.seq, batch.end);
            // Every session's batches carry its id, so that one session's cannot pass for another's.
            let mark = mark(session.id, stream, seq, batch);
            let encoding = Encoding::ALL[(index + place) % Encoding::ALL.len()];
            let form = if place % 2 == 0 { Form::Array } else { Form::Lines };
            let body = Body::of_marked_batch(batch, &mark, form, encoding).context("encode batch")?;
            // The first session's first batch is sent once more, as after an answer that was lost.
            let times = if index == 0 && place == 0 { 2 } else { 1 };
            for _ in 0..times {
                let sending = self.sdk.send_until_acknowledged(&session, stream, seq, end, &body, deadline());
                let delivered = sending.await.with_context(|| format!("send recording: {name}, batch {place}"))?;
                sent.repetitions += delivered.failures.len() as u64;
                sent.wire_bytes += body.bytes.len() as u64;
            }
            sent.last_acknowledged = Instant::now();
            let content = Content::Marked { recording: Arc::clone(recording), batch: u32::try_from(place)? };
            sent.batches += 1;
            sent.events += content.events();
            sent.raw_bytes += batch.raw_bytes() + mark.len() as u64 + 1;
            self.ledger.acknowledge(session.id, stream, seq, content);
            done.one_more();
        }
        Ok(sent)
    }

    async fn wait_until_readable(&self, sent: &[Sent]) -> anyhow::Result<()> {
        let done = Done::of(sent.len());
        let waiting = sent.iter().map(async |sent| {
            let what = format!("all batches of {} are readable", sent.recording);
            let item =
                until(&what, READABLE_WITHIN, || look_for_batches(&self.api, sent.session, sent.batches)).await?;
            let seconds = sent.last_acknowledged.elapsed().as_secs_f64();
            done.one_more();
            anyhow::Ok((item, seconds))
        });
        let readable = self.story.during("waiting for sessions to be readable", &done, try_join_all(waiting)).await?;
        for (sent, (item, _)) in sent.iter().zip(&readable) {
            let completeness = item.completeness.as_ref().context("a session says what of it is there")?;
            let (name, batches, events) = (&sent.recording, completeness.batches, item.events);
            ensure!(
                batches == sent.batches && events == sent.events,
                "compare counts of {name}: sent {} batches and {} events, the index says {batches} and {events}",
                sent.batches,
                sent.events
            );
            let missing = &completeness.missing;
            ensure!(missing.is_empty(), "expect no holes in {name}: found {missing:?}");
        }
        let slowest = readable.iter().map(|(_, seconds)| *seconds).fold(0.0, f64::max);
        let fastest = readable.iter().map(|(_, seconds)| *seconds).fold(f64::INFINITY, f64::min);
        self.story.tell(&format!(
            "all of it is readable, {fastest:.1} to {slowest:.1} s after each session's last acknowledgement"
        ));
        Ok(())
    }

    /// Reads every event of every session and demands exactly what was acknowledged.
    async fn compare_all(&self, sent: &[Sent], format: EventsFormat, whence: &str) -> anyhow::Result<Comparison> {
        let done = Done::of(sent.len());
        let reading = sent.iter().map(async |sent| {
            let ledger = self.ledger.session(sent.session).context("find session in ledger")?;
            let read = read_back(&self.api, sent.session, &ledger, format).await;
            done.one_more();
            read.with_context(|| format!("read back recording: {}", sent.recording))
        });
        let begun = Instant::now();
        let outcomes = self.story.during("reading sessions back", &done, join_all(reading)).await;
        let seconds = begun.elapsed().as_secs_f64();
        let (mut total, mut read_bytes) = (Comparison::default(), 0);
        for (sent, outcome) in sent.iter().zip(outcomes) {
            let outcome = outcome?;
            let comparison = &outcome.comparison;
            ensure!(comparison.is_exact(), "compare {} with what was acknowledged: {comparison}", sent.recording);
            total.add(outcome.comparison);
            read_bytes += outcome.bytes;
        }
        self.story.tell(&format!(
            "read back from {whence}: {} events, {} in {seconds:.1} s; each is there once, unchanged, in order",
            count(total.read),
            bytes(read_bytes),
        ));
        if total.rewritten > 0 {
            self.story.detail(&format!("{} came as other bytes of the same JSON value", count(total.rewritten)));
        }
        Ok(total)
    }

    async fn wait_until_compacted(&self, sent: &[Sent]) -> anyhow::Result<Vec<SessionItem>> {
        let done = Done::of(sent.len());
        let waiting = sent.iter().map(async |sent| {
            let what = format!("{} has an object of its own", sent.recording);
            let item = until(&what, COMPACTED_WITHIN, || async {
                match self.api.session(sent.session).await {
                    Ok(item) if item.stored_as == Some(StoredAs::Object) => Seen::Done(item),
                    Ok(item) => Seen::not_yet(format_args!("stored as {:?}, {:?}", item.stored_as, item.state)),
                    Err(error) => Seen::not_yet(error),
                }
            })
            .await?;
            done.one_more();
            anyhow::Ok(item)
        });
        let begun = Instant::now();
        let items = self.story.during("waiting for compaction", &done, try_join_all(waiting)).await?;
        let seconds = begun.elapsed().as_secs_f64();
        self.story.tell(&format!("compacted {seconds:.1} s later: each session has an object of its own"));
        Ok(items)
    }

    fn tell_storage(&self, sent: &[Sent], items: &[SessionItem]) {
        let raw: u64 = sent.iter().map(|sent| sent.raw_bytes).sum();
        let stored: u64 = items.iter().map(|item| item.bytes_stored).sum();
        let share = if stored > 0 { raw as f64 / stored as f64 } else { 0.0 };
        self.story.detail(&format!("{} on S3 for {} of JSON: one byte for {share:.1}", bytes(stored), bytes(raw)));
        let dropped: u64 = items.iter().flat_map(|item| &item.completeness).map(|found| found.duplicates_dropped).sum();
        self.story.detail(&format!("copies of batches that were dropped, as the index counts them: {dropped}"));
    }

    async fn delete_one(&self, sent: &[Sent], reference: &str) -> anyhow::Result<()> {
        let Some(victim) = sent.last() else { bail!("choose session to delete: there is none") };
        let begun = Instant::now();
        let deletion = self.api.delete_session(victim.session).await?.deletion_id;
        match self.api.events(victim.session, EventsFormat::Lines).await {
            Err(error) if error.status() == Some(410) => {}
            Err(error) => return Err(error).context("expect 410 for a deleted session"),
            Ok(_) => bail!("expect 410 for a deleted session: its events can be read"),
        }
        let listed = self.sessions_of(reference).await?;
        ensure!(listed.iter().all(|item| item.id != victim.session), "expect that a deleted session is not listed");
        ensure!(listed.len() + 1 == sent.len(), "expect that all others are listed: found {}", listed.len());
        self.story.tell(&format!(
            "{} was deleted: 410 after {} ms, and not listed any more",
            victim.recording,
            begun.elapsed().as_millis()
        ));

        let (done, begun_shredding) = (Done::of(1), Instant::now());
        let waiting = until("the deleted session's key is destroyed", ERASED_WITHIN, || async {
            match self.api.deletion(deletion).await {
                Ok(item) if item.state != DeletionState::Unreadable => Seen::Done(()),
                Ok(item) => Seen::not_yet(format_args!("it is {:?}", item.state)),
                Err(error) => Seen::not_yet(error),
            }
        });
        self.story.during("waiting until its key is destroyed", &done, waiting).await?;
        let seconds = begun_shredding.elapsed().as_secs_f64();
        self.story.tell(&format!("its key was destroyed after {seconds:.1} s: what is stored of it is worth nothing"));
        let waiting = until("the deleted session is erased", ERASED_WITHIN, || async {
            match self.api.deletion(deletion).await {
                Ok(item) if item.state == DeletionState::Erased => Seen::Done(item),
                Ok(item) => Seen::not_yet(format_args!("it is {:?}", item.state)),
                Err(error) => Seen::not_yet(error),
            }
        });
        let item = self.story.during("waiting until its last byte is gone", &done, waiting).await?;
        ensure!(item.sessions == 1, "expect that one session was deleted: {}", item.sessions);
        let seconds = begun.elapsed().as_secs_f64();
        self.story.tell(&format!("erased after {seconds:.1} s: no byte of it is left, seen by listing"));
        let waiting = until("the deletion has its receipt", ERASED_WITHIN, || async {
            match self.api.deletion(deletion).await {
                Ok(DeletionItem { receipt: Some(receipt), .. }) => Seen::Done(receipt),
                Ok(_) => Seen::not_yet("there is none"),
                Err(error) => Seen::not_yet(error),
            }
        });
        let receipt = self.story.during("waiting until no process can have its key", &done, waiting).await?;
        self.story.tell(&format!(
            "verified once more, and signed: a receipt of {} bytes; `clairvio receipt verify` checks it offline",
            receipt.len()
        ));
        Ok(())
    }
}

/// How much of a step is done.
struct Done {
    done: AtomicUsize,
    of: usize,
}

impl Done {
    fn of(of: usize) -> Self {
        Self { done: AtomicUsize::new(0), of }
    }

    fn one_more(&self) {
        // A figure for the eye: nothing is ordered by it.
        self.done.fetch_add(1, Ordering::Relaxed);
    }
}

/// What is printed, each line with the seconds since the start.
struct Story {
    begun: Instant,
    terminal: bool,
}

impl Story {
    fn begin() -> Self {
        Self { begun: Instant::now(), terminal: std::io::stdout().is_terminal() }
    }

    fn tell(&self, text: &str) {
        println!("{:6.1} s  {text}", self.begun.elapsed().as_secs_f64());
    }

    fn detail(&self, text: &str) {
        println!("          {text}");
    }

    /// Waits for a step; one that takes long shows how far it is, in one line of a terminal or in lines of a log.
    async fn during<T>(&self, what: &str, done: &Done, step: impl Future<Output = T>) -> T {
        let every = if self.terminal { TERMINAL_EVERY } else { LOG_EVERY };
        let mut ticks = tokio::time::interval_at(Instant::now() + QUIET_FOR, every);
        let mut shown = false;
        tokio::pin!(step);
        loop {
            tokio::select! {
                outcome = &mut step => {
                    if shown && self.terminal {
                        self.rewrite("");
                    }
                    return outcome;
                }
                _ = ticks.tick() => {
                    let progress = format!("{what}: {} of {}", done.done.load(Ordering::Relaxed), done.of);
                    if self.terminal {
                        self.rewrite(&format!("{:6.1} s  {progress}", self.begun.elapsed().as_secs_f64()));
                    } else {
                        self.tell(&progress);
                    }
                    shown = true;
                }
            }
        }
    }

    fn rewrite(&self, text: &str) {
        print!("\r\x1b[2K{text}");
        // A terminal that is gone is noticed by the next line.
        std::io::stdout().flush().unwrap_or_default();
    }
}

fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn bytes(number: u64) -> String {
    match number {
        0..1_000 => format!("{number} B"),
        1_000..1_000_000 => format!("{:.1} kB", number as f64 / 1e3),
        _ => format!("{:.2} MB", number as f64 / 1e6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_easy_to_read() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!([12, 1_250, 3_859_404].map(bytes), ["12 B", "1.2 kB", "3.86 MB"]);
    }
}
