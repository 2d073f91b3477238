//! After the load: waits until all that was acknowledged is readable, reads it back, and compares.

use std::time::Duration;

use futures::{StreamExt, stream};
use schemas::SessionId;
use serde::Serialize;
use tokio::time::Instant;
use virtual_sdk::verify::{ReadBack, look_for_batches, read_back};
use virtual_sdk::{Api, CallError, Comparison, EventsFormat, Ledger, NotWithin, Seen, until};

use crate::options::Options;
use crate::progress::Line;

/// How long reading one session is tried while the control plane cannot serve it.
const READ_WITHIN: Duration = Duration::from_secs(60);
const SHOW_EVERY: Duration = Duration::from_secs(1);

/// What reading back showed.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Outcome {
    pub(crate) sessions: u64,
    /// From the last acknowledgement until all sessions were seen to be readable.
    pub(crate) all_readable_after_s: f64,
    /// Sessions that did not become readable in time.
    pub(crate) sessions_not_readable: u64,
    /// Sessions that could not be read to their end: nothing is known of their events.
    pub(crate) sessions_unread: u64,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
    #[serde(skip)]
    pub(crate) comparison: Comparison,
    /// Why the first session that failed could not be read.
    pub(crate) first_error: Option<String>,
}

pub(crate) async fn run(api: &Api, ledger: &Ledger, last_acknowledged: Option<Instant>, options: &Options) -> Outcome {
    let sessions = ledger.sessions();
    let mut outcome = Outcome { sessions: sessions.len() as u64, ..Outcome::default() };
    let within = Duration::from_secs(options.readable_within_s);

    let mut progress = Counter::new("readable", sessions.len());
    let waiting = sessions.iter().map(|session| wait(api, *session, ledger, within));
    let mut waiting = stream::iter(waiting).buffer_unordered(options.readers);
    while let Some(readable) = waiting.next().await {
        if let Err(error) = readable {
            outcome.sessions_not_readable += 1;
            outcome.first_error.get_or_insert(error.to_string());
        }
        progress.one_more();
    }
    progress.end();
    outcome.all_readable_after_s = last_acknowledged.map_or(0.0, |last| last.elapsed().as_secs_f64());

    let begun = Instant::now();
    let mut progress = Counter::new("read back", sessions.len());
    let reading = sessions.iter().map(|session| read(api, *session, ledger));
    let mut reading = stream::iter(reading).buffer_unordered(options.readers);
    while let Some(read) = reading.next().await {
        match read {
            Ok(read) => {
                outcome.bytes += read.bytes;
                outcome.comparison.add(read.comparison);
            }
            Err(error) => {
                outcome.sessions_unread += 1;
                outcome.first_error.get_or_insert(error);
            }
        }
        progress.one_more();
    }
    progress.end();
    outcome.seconds = begun.elapsed().as_secs_f64();
    outcome
}

async fn wait(api: &Api, session: SessionId, ledger: &Ledger, within: Duration) -> Result<(), NotWithin> {
    let batches = ledger.session(session).map_or(0, |ledger| ledger.batches());
    if batches == 0 {
        return Ok(());
    }
    let what = format!("session {session} is readable");
    until(&what, within, || look_for_batches(api, session, batches)).await.map(drop)
}

/// Reads a session, again while the control plane cannot serve it now. A comparison that is not exact is final.
async fn read(api: &Api, session: SessionId, ledger: &Ledger) -> Result<ReadBack, String> {
    let ledger = ledger.session(session).unwrap_or_default();
    let what = format!("session {session} can be read");
    let outcome: Result<Result<ReadBack, CallError>, NotWithin> = until(&what, READ_WITHIN, || async {
        match read_back(api, session, &ledger, EventsFormat::Lines).await {
            Err(error) if error.is_retryable() => Seen::not_yet(error),
            // Acknowledged and unknown to the control plane: all of it is lost.
            Err(error) if error.status() == Some(404) => {
                Seen::Done(Ok(ReadBack { comparison: ledger.comparer(session).finish(), bytes: 0 }))
            }
            outcome => Seen::Done(outcome),
        }
    })
    .await;
    match outcome {
        Ok(Ok(read)) => Ok(read),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Shows how many of all are done.
struct Counter {
    what: &'static str,
    line: Line,
    done: usize,
    of: usize,
    shown: Instant,
}

impl Counter {
    fn new(what: &'static str, of: usize) -> Self {
        Self { what, line: Line::new(), done: 0, of, shown: Instant::now() }
    }

    fn one_more(&mut self) {
        self.done += 1;
        if self.shown.elapsed() >= SHOW_EVERY {
            self.shown = Instant::now();
            self.show();
        }
    }

    fn show(&self) {
        self.line.show(&format!("{} of {} sessions {}", self.done, self.of, self.what));
    }

    fn end(&self) {
        self.show();
        self.line.end();
    }
}
