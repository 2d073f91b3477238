//! Reading back: whether what was acknowledged is there, and whether it is exactly that.

use schemas::SessionId;
use schemas::http::SessionItem;

use crate::api::{Api, EventsFormat};
use crate::call::CallError;
use crate::ledger::{Comparison, SessionLedger};
use crate::wait::Seen;

/// What reading a session back showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadBack {
    /// How it compares with the ledger.
    pub comparison: Comparison,
    /// Bytes that were read.
    pub bytes: u64,
}

/// Reads all events of a session and compares them with what was acknowledged. Holds one event at a time.
pub async fn read_back(
    api: &Api,
    session: SessionId,
    ledger: &SessionLedger,
    format: EventsFormat,
) -> Result<ReadBack, CallError> {
    let mut events = api.events(session, format).await?;
    let mut comparer = ledger.comparer(session);
    while let Some(event) = events.next_event().await? {
        comparer.push(&event);
    }
    Ok(ReadBack { comparison: comparer.finish(), bytes: events.bytes() })
}

/// One look, for [`crate::until`], at whether a session shows at least so many batches.
pub async fn look_for_batches(api: &Api, session: SessionId, batches: u64) -> Seen<SessionItem> {
    match api.session(session).await {
        Ok(item) => match item.completeness.as_ref().map_or(0, |completeness| completeness.batches) {
            found if found >= batches => Seen::Done(item),
            found => Seen::not_yet(format_args!("{found} of {batches} batches are there")),
        },
        Err(error) => Seen::not_yet(error),
    }
}
