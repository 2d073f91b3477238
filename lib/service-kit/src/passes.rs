//! The loop of a worker: one pass after the other, until the shutdown.

use std::time::Duration;

use crate::health::Part;
use crate::shutdown::Shutdown;

/// When a pass is followed by the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// More work may be waiting.
    AtOnce,
    /// More work is waiting for this to pass, or for the interval, should that be shorter.
    After(Duration),
    /// After the interval.
    Later,
}

/// Calls `pass` again and again; it says when the next one follows. A failed pass is logged here, counted under `failures`,
/// shown as the part's reason, and made up for by the next, after `interval`. A pass under way when the shutdown begins is
/// finished, and no wait outlasts that.
pub async fn run(
    shutdown: &Shutdown,
    interval: Duration,
    part: &Part,
    failures: &'static str,
    mut pass: impl AsyncFnMut() -> anyhow::Result<Next>,
) {
    loop {
        let next = match pass().await {
            Ok(next) => {
                part.up();
                next
            }
            Err(error) => {
                metrics::counter!(failures).increment(1);
                tracing::warn!("pass failed: {error:#}");
                part.down(format!("{error:#}"));
                Next::Later
            }
        };
        let wait = match next {
            Next::AtOnce => Duration::ZERO,
            Next::After(wait) => wait.min(interval),
            Next::Later => interval,
        };
        if shutdown.has_begun() || (!wait.is_zero() && !shutdown.sleep(wait).await) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::health::Health;

    const HOUR: Duration = Duration::from_secs(3_600);

    /// How many passes there are until the shutdown, which the last of these ends begin.
    async fn passes(outcomes: &[Next]) -> usize {
        let (shutdown, health, begun) = (Shutdown::new(Duration::ZERO), Health::default(), Cell::new(0));
        run(&shutdown, HOUR, &health.part("store"), "failures", async || {
            let next = outcomes[begun.get()];
            begun.set(begun.get() + 1);
            if begun.get() == outcomes.len() {
                let shutdown = shutdown.clone();
                tokio::spawn(async move { shutdown.begin() });
            }
            Ok(next)
        })
        .await;
        begun.get()
    }

    #[tokio::test]
    async fn a_pass_follows_when_the_one_before_says_and_no_wait_outlasts_the_shutdown() {
        let soon = Next::After(Duration::from_millis(1));
        assert_eq!(passes(&[Next::AtOnce, soon, Next::AtOnce, Next::After(HOUR)]).await, 4);
        assert_eq!(passes(&[soon, Next::Later]).await, 2);
        assert_eq!(passes(&[Next::After(Duration::MAX)]).await, 1);
    }
}
