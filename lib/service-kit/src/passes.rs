//! The loop of a worker: one pass after the other, until the shutdown.

use std::time::Duration;

use crate::health::Part;
use crate::retry::Backoff;
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

/// The first wait behind a failed pass.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Calls `pass` again and again; it says when the next one follows. A failed pass is logged here, counted under `failures`,
/// shown as the part's reason, and made up for by the next, which comes soon, and never later than after `interval`. A pass under way when the shutdown begins is
/// finished, and no wait outlasts that.
pub async fn run(
    shutdown: &Shutdown,
    interval: Duration,
    part: &Part,
    failures: &'static str,
    mut pass: impl AsyncFnMut() -> anyhow::Result<Next>,
) {
    let mut backoff = Backoff::new(AGAIN_AFTER.min(interval), interval);
    loop {
        let next = match pass().await {
            Ok(next) => {
                part.up();
                backoff.reset();
                next
            }
            Err(error) => {
                metrics::counter!(failures).increment(1);
                tracing::warn!("pass failed: {error:#}");
                part.down(format!("{error:#}"));
                Next::After(backoff.wait())
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

    /// How many passes there are until the shutdown, which the last of these ends begin; none is a pass that fails.
    async fn passes(outcomes: &[Option<Next>]) -> usize {
        let (shutdown, health, begun) = (Shutdown::new(Duration::ZERO), Health::default(), Cell::new(0));
        run(&shutdown, HOUR, &health.part("store"), "failures", async || {
            let next = outcomes[begun.get()];
            begun.set(begun.get() + 1);
            if begun.get() == outcomes.len() {
                let shutdown = shutdown.clone();
                tokio::spawn(async move { shutdown.begin() });
            }
            next.ok_or_else(|| anyhow::anyhow!("the store is away"))
        })
        .await;
        begun.get()
    }

    #[tokio::test]
    async fn a_pass_follows_when_the_one_before_says_and_no_wait_outlasts_the_shutdown() {
        let (soon, at_once) = (Some(Next::After(Duration::from_millis(1))), Some(Next::AtOnce));
        assert_eq!(passes(&[at_once, soon, at_once, Some(Next::After(HOUR))]).await, 4);
        assert_eq!(passes(&[soon, Some(Next::Later)]).await, 2);
        assert_eq!(passes(&[Some(Next::After(Duration::MAX))]).await, 1);
    }

    #[tokio::test]
    async fn a_failed_pass_is_made_up_for_long_before_the_interval() {
        let made_up_for = tokio::time::timeout(HOUR / 60, passes(&[None, Some(Next::Later)])).await;
        assert_eq!(made_up_for, Ok(2));
    }
}
