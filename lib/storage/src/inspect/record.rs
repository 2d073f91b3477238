//! One record of the log, as a transport key opened it.

use schemas::codec::FormatError;
use schemas::record::Header;
use sealing::transport::Opened;

use super::check::{check_payload, decompress};
use super::{Place, Verified};

/// Compares a record with what its header says, and with the key that it has in the log.
pub fn check_record(opened: &Opened, record_key: &[u8]) -> Verified {
    let mut verified = Verified { frames: 1, ..Verified::default() };
    let payload = &opened.bytes[opened.payload_at..];
    let session = match &opened.header {
        Header::Acceptance { key, .. } | Header::Batch { key, .. } => Some(key.session),
        // Sums of declines have random keys, so that they spread.
        Header::Declines { .. } => None,
    };
    if session.is_some_and(|session| session.as_bytes() != record_key) {
        verified.fault(Place::Record, FormatError::Field("session"));
    }
    match &opened.header {
        Header::Batch { facts, .. } => {
            check_payload(Place::Record, facts, payload, &mut verified);
        }
        Header::Acceptance { .. } | Header::Declines { .. } if payload.is_empty() => {}
        Header::Acceptance { .. } | Header::Declines { .. } => verified.fault(Place::Record, FormatError::Trailing),
    }
    verified
}

/// The events of a record, a newline after each; none unless it is a batch.
pub fn record_events(opened: &Opened) -> Result<Vec<u8>, FormatError> {
    match &opened.header {
        Header::Batch { facts, .. } => decompress(facts, &opened.bytes[opened.payload_at..]),
        Header::Acceptance { .. } | Header::Declines { .. } => Ok(Vec::new()),
    }
}
