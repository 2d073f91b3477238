//! Retry with backoff: once, here.

use std::error::Error;
use std::time::Duration;

use crate::health::Part;
use crate::shutdown::Shutdown;
use crate::telemetry::chain;

/// Doubling waits with jitter.
#[derive(Debug, Clone)]
pub struct Backoff {
    next: Duration,
    min: Duration,
    max: Duration,
}

impl Backoff {
    /// The first wait is about `min`, the longest about `max`.
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { next: min, min, max }
    }

    /// How long to wait now: between half and all of the current step.
    pub fn wait(&mut self) -> Duration {
        let step = self.next;
        self.next = (step * 2).min(self.max);
        step / 2 + step.mul_f64(f64::from(random_u32()) / f64::from(u32::MAX) / 2.0)
    }

    /// Begins anew after a success.
    pub fn reset(&mut self) {
        self.next = self.min;
    }
}

fn random_u32() -> u32 {
    // Jitter needs no secret: without randomness all waits are just alike.
    getrandom::u32().unwrap_or(u32::MAX / 2)
}

/// Why something goes wrong that is tried again and again: each new reason is logged once.
#[derive(Debug, Clone, Default)]
pub struct Reasons {
    last: String,
}

impl Reasons {
    /// Logs the reason, unless it is the last one once more.
    pub fn warn(&mut self, reason: String) {
        if reason != self.last {
            tracing::warn!("{reason}; trying again");
            self.last = reason;
        }
    }

    /// It went well: whatever comes next is new.
    pub fn clear(&mut self) {
        self.last.clear();
    }
}

/// Calls `attempt` until it succeeds or the shutdown begins (`None`). Meanwhile the part is down, with a reason that
/// names what was tried and where, and each new reason is logged once.
pub async fn until_ok<T, E, Fut>(
    what: &str,
    part: &Part,
    shutdown: &Shutdown,
    mut attempt: impl FnMut() -> Fut,
) -> Option<T>
where
    E: Error + 'static,
    Fut: Future<Output = Result<T, E>>,
{
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let mut reasons = Reasons::default();
    loop {
        let outcome = tokio::select! {
            () = shutdown.begun() => return None,
            outcome = attempt() => outcome,
        };
        match outcome {
            Ok(value) => {
                part.up();
                return Some(value);
            }
            Err(error) => {
                let reason = format!("{what}: {}", chain(&error));
                part.down(reason.clone());
                reasons.warn(reason);
            }
        }
        if !shutdown.sleep(backoff.wait()).await {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_their_bound_and_begin_anew() {
        let (min, max) = (Duration::from_millis(100), Duration::from_millis(350));
        let mut backoff = Backoff::new(min, max);
        for step in [100, 200, 350, 350] {
            let wait = backoff.wait();
            assert!(wait >= Duration::from_millis(step) / 2 && wait <= Duration::from_millis(step), "{wait:?}");
        }
        backoff.reset();
        assert!(backoff.wait() <= min);
    }
}
