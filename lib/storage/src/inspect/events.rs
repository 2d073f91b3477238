//! One session's events out of one object, in the order of reading.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use engine::merge::Range;
use schemas::SessionKey;
use schemas::paths::ObjectKey;
use sealing::Key;
use thiserror::Error;

use super::Content;
use crate::footers::Footer;
use crate::reading::plan;
use crate::reading::walk::{Corrupt, Source, Turn, Walk};

/// Why events cannot be written.
#[derive(Debug, Error)]
pub enum EventsError {
    /// The object is not what was put there.
    #[error("read events\n  hint: `clairvio object verify` says all that is wrong with the object")]
    Corrupt(#[from] Corrupt),
    /// Nobody takes them.
    #[error("write events")]
    Write(#[from] std::io::Error),
}

/// Writes a session's events, a newline after each; gives their number. They are what an end user did: personal data.
pub fn write_events(
    object: ObjectKey,
    body: &Bytes,
    content: &Content,
    session: &SessionKey,
    key: &Key,
    out: &mut impl Write,
) -> Result<u64, EventsError> {
    let footer = match content {
        Content::Shared(footer) => Footer::Shared(Arc::new(footer.clone())),
        Content::Session(footer) if footer.key == *session => Footer::Session(Arc::new(footer.clone())),
        Content::Session(_) | Content::Journal(_) | Content::Export(_) => return Ok(0),
    };
    let sources = [Source { key: object, footer, body: Some(body.clone()) }];
    let (plan, _) = plan(session, &sources);
    let mut walk = Walk::new(Arc::new(sources), Arc::new(plan), Range::ALL);
    let mut events = 0;
    // Nothing has to be fetched: all of the object is here.
    while let Turn::Event(event) = walk.turn(key)? {
        out.write_all(walk.bytes(&event))?;
        events += 1;
    }
    out.flush()?;
    Ok(events)
}
