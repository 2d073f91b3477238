//! Waiting for a condition instead of for a time.

use std::fmt;
use std::time::Duration;

use tokio::time::{Instant, sleep_until, timeout_at};

/// The first pause between two looks; each further one is half as long again, up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(250);

/// What a look at a condition showed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen<T> {
    /// It is met.
    Done(T),
    /// Not yet; this is how far it is.
    NotYet(String),
}

impl<T> Seen<T> {
    /// Not yet, and this is how far it is.
    pub fn not_yet(state: impl fmt::Display) -> Self {
        Self::NotYet(state.to_string())
    }
}

/// A condition was not met in time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("wait until {what}: not within {:.1} s: {last}", within.as_secs_f64())]
pub struct NotWithin {
    /// The condition.
    pub what: String,
    /// The time that it had.
    pub within: Duration,
    /// What the last look showed.
    pub last: String,
}

/// Looks at a condition, again and again, until it is met. A look that hangs is cut off at the end of the time.
pub async fn until<T, F>(what: &str, within: Duration, mut look: impl FnMut() -> F) -> Result<T, NotWithin>
where
    F: Future<Output = Seen<T>>,
{
    let deadline = Instant::now() + within;
    let mut pause = PAUSE_MIN;
    let mut last = "the first look did not end".to_owned();
    loop {
        match timeout_at(deadline, look()).await {
            Ok(Seen::Done(value)) => return Ok(value),
            Ok(Seen::NotYet(state)) => last = state,
            Err(_) => return Err(NotWithin { what: what.to_owned(), within, last }),
        }
        let next = Instant::now() + pause;
        if next >= deadline {
            return Err(NotWithin { what: what.to_owned(), within, last });
        }
        sleep_until(next).await;
        pause = (pause * 3 / 2).min(PAUSE_MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_condition_that_is_met_later_is_seen() {
        let mut looks = 0;
        let seen = until("the third look comes", Duration::from_secs(10), || {
            looks += 1;
            let looks = looks;
            async move { if looks == 3 { Seen::Done(looks) } else { Seen::not_yet(looks) } }
        })
        .await;
        assert_eq!(seen, Ok(3));
    }

    #[tokio::test]
    async fn a_condition_that_is_not_met_or_hangs_names_the_last_state() {
        let error = until("pigs fly", Duration::from_millis(30), || async { Seen::<()>::not_yet("2 on the ground") })
            .await
            .expect_err("pigs do not fly");
        assert_eq!(error.to_string(), "wait until pigs fly: not within 0.0 s: 2 on the ground");
        let hung = until("time ends", Duration::from_millis(20), std::future::pending::<Seen<()>>).await;
        assert!(hung.is_err());
    }
}
