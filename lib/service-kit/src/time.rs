//! The clock of a driver. Decisions get time as an argument from here.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since the epoch by this machine's clock.
pub fn now_ms() -> u64 {
    // A clock before 1970 is a broken machine: 0 makes every token not yet valid, so nothing is taken in.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Seconds since the epoch by this machine's clock, signed as times of entries are.
pub fn now_s() -> i64 {
    (now_ms() / 1000).cast_signed()
}

/// A clock that never goes back, for waiting.
#[derive(Debug, Clone, Copy)]
pub struct Monotonic(Instant);

impl Monotonic {
    /// Starts at 0.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Milliseconds since the start.
    pub fn now_ms(&self) -> u64 {
        self.0.elapsed().as_millis() as u64
    }

    /// The instant of that many milliseconds since the start.
    pub fn at(&self, ms: u64) -> tokio::time::Instant {
        (self.0 + std::time::Duration::from_millis(ms)).into()
    }
}
