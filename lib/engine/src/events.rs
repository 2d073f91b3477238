//! Stored events, as far as merging and reading want to know them.

use serde::Deserialize;

/// What reading an event needs of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Shallow {
    /// rrweb's type.
    pub kind: u64,
    /// Milliseconds by the client's clock, rounded down.
    pub timestamp: i64,
}

#[derive(Deserialize)]
struct ShallowJson {
    #[serde(rename = "type")]
    kind: u64,
    timestamp: f64,
}

const TYPE_FULL_SNAPSHOT: u64 = 2;

/// Timestamps beyond this are no time that any clock shows, and would not be exact as a JSON number.
const TIMESTAMP_MAX: f64 = 9_007_199_254_740_992.0;

/// Reads type and timestamp of one stored event.
pub fn shallow(event: &[u8]) -> Option<Shallow> {
    let json: ShallowJson = serde_json::from_slice(event).ok()?;
    (json.timestamp.abs() <= TIMESTAMP_MAX)
        .then(|| Shallow { kind: json.kind, timestamp: json.timestamp.floor() as i64 })
}

/// Whether a shallow event is a full snapshot.
pub fn is_full_snapshot(event: &Shallow) -> bool {
    event.kind == TYPE_FULL_SNAPSHOT
}
