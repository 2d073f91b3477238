//! How fast objects are removed: at a rate, and slower when the store asks for it.
//!
//! An account as those of [`crate::rates`], of which nothing is saved up: what was removed at once is paid for before more is. So a million
//! objects leave as a steady stream, beside which others go on to put theirs. Only what waits for nobody is paced: sessions are
//! unreadable and their keys destroyed before.

use crate::{backoff, rates};

/// The wait after the store has asked for fewer requests.
const HELD_MS_MIN: u64 = 1_000;
/// It doubles up to this while the store goes on to ask.
const HELD_MS_MAX: u64 = 30_000;

/// When objects may be removed, and how many. Times are milliseconds of a clock that never goes back.
#[derive(Debug, Clone)]
pub struct Pace {
    per_s: u64,
    seed: u64,
    paid_until_us: u64,
    held_until_ms: u64,
    refusals: u32,
}

impl Pace {
    /// So many a second, 0 being as many as the store takes. Paces with different seeds do not wait in step.
    pub fn new(per_s: u64, seed: u64) -> Self {
        Self { per_s, seed, paid_until_us: 0, held_until_ms: 0, refusals: 0 }
    }

    /// How many may be removed at once now: `at_once_max`, or a second's worth where that is less; none before their time.
    pub fn room(&self, at_once_max: usize, now_ms: u64) -> usize {
        match self.per_s {
            _ if self.wait_ms(now_ms) > 0 => 0,
            0 => at_once_max,
            per_s => at_once_max.min(usize::try_from(per_s).unwrap_or(usize::MAX)),
        }
    }

    /// How long there is no room, in milliseconds.
    pub fn wait_ms(&self, now_ms: u64) -> u64 {
        self.paid_until_us.div_ceil(1_000).max(self.held_until_ms).saturating_sub(now_ms)
    }

    /// So many were removed. They may be more than there was room for: an object of many versions is removed as a whole, and paid for.
    pub fn take(&mut self, amount: usize, now_ms: u64) {
        if self.per_s > 0 {
            self.paid_until_us = rates::paid_until_us(self.paid_until_us, now_ms, amount as u64, self.per_s);
        }
    }

    /// The store asked for fewer requests, or removed nothing of what it was asked to.
    pub fn hold(&mut self, now_ms: u64) {
        let wait_ms = backoff::wait_ms(HELD_MS_MIN, HELD_MS_MAX, self.refusals);
        let less_ms = backoff::spread(self.seed, 0, self.refusals) % (wait_ms / 2 + 1);
        self.refusals = self.refusals.saturating_add(1);
        self.held_until_ms = now_ms + wait_ms - less_ms;
    }

    /// It removed what it was asked to: should it ask for fewer again, the waits begin anew.
    pub fn go_on(&mut self) {
        self.refusals = 0;
    }

    /// Whether the store was the last to say how fast.
    pub fn is_held(&self) -> bool {
        self.refusals > 0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_was_removed_is_paid_for_before_more_is() {
        let mut pace = Pace::new(500, 1);
        // A second's worth at once, however many more there are.
        assert_eq!((pace.room(1_000, 0), pace.room(7, 0)), (500, 7));
        pace.take(250, 10);
        assert_eq!((pace.room(1_000, 509), pace.wait_ms(509)), (0, 1));
        assert_eq!((pace.room(1_000, 510), pace.wait_ms(510)), (500, 0));
        // Silence saves up nothing.
        assert_eq!(pace.room(1_000, 1_000_000), 500);
        // More than there was room for is paid for as well.
        pace.take(5_000, 1_000_000);
        assert_eq!(pace.wait_ms(1_000_000), 10_000);
    }

    #[test]
    fn without_a_rate_only_the_store_says_how_fast() {
        let mut pace = Pace::new(0, 1);
        pace.take(1_000_000, 0);
        assert_eq!(pace.room(1_000, 0), 1_000);
        pace.hold(0);
        assert_eq!(pace.room(1_000, 499), 0);
        assert_eq!(pace.room(1_000, 1_000), 1_000);
    }

    #[test]
    fn waits_double_while_the_store_asks_for_fewer_and_begin_anew() {
        for rate in [0, 1_000] {
            let (mut pace, mut now_ms) = (Pace::new(rate, 7), 0);
            for expected_ms in [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
                pace.hold(now_ms);
                let wait_ms = pace.wait_ms(now_ms);
                assert!((expected_ms / 2..=expected_ms).contains(&wait_ms), "{wait_ms} of {expected_ms}");
                assert!(
                    pace.is_held() && pace.room(9, now_ms + wait_ms - 1) == 0 && pace.room(9, now_ms + wait_ms) == 9
                );
                now_ms += wait_ms;
            }
            pace.go_on();
            assert!(!pace.is_held());
            pace.hold(now_ms);
            assert!(pace.wait_ms(now_ms) <= 1_000);
        }
    }

    #[test]
    fn workers_that_are_held_at_once_do_not_go_on_in_step() {
        let waits: std::collections::BTreeSet<u64> = (0..20)
            .map(|seed| {
                let mut pace = Pace::new(0, seed);
                pace.hold(0);
                pace.wait_ms(0)
            })
            .collect();
        assert!(waits.len() > 10, "{waits:?}");
    }

    proptest! {
        /// Whenever it is looked, over any time no more is removed than the rate gives and what went at once.
        #[test]
        fn no_more_is_removed_than_the_rate_gives(
            per_s in 1..5_000_u64, looks in prop::collection::vec((0..700_u64, 1..2_000_usize), 1..200),
        ) {
            let (mut pace, mut now_ms, mut removed) = (Pace::new(per_s, 3), 0, 0);
            for (pause_ms, waiting) in looks {
                now_ms += pause_ms;
                let room = pace.room(1_000, now_ms).min(waiting);
                pace.take(room, now_ms);
                removed += room as u64;
                prop_assert!(removed <= now_ms * per_s / 1_000 + per_s.min(1_000) + 1, "{removed} by {now_ms} ms");
            }
        }
    }
}
