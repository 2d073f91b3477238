//! Unwrapped keys in memory: bounded in number and in time.
//!
//! Time is an argument. A key's begins when it was asked for, and being used does not prolong it (R2): looking says nothing
//! of a key that is past its time, and sweeping wipes it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use sealing::Key;

/// Unwrapped keys by whose they are. All are kept equally long, so the order in which they came is that in which they go.
#[derive(Debug)]
pub struct KeyCache<K> {
    kept: Duration,
    max: usize,
    keys: BTreeMap<K, (Key, Instant)>,
    order: VecDeque<(Instant, K)>,
}

impl<K: Ord + Copy> KeyCache<K> {
    /// A cache of `max` keys, each for `kept`. Beyond it those go first that were fetched first.
    pub fn new(kept: Duration, max: usize) -> Self {
        Self { kept, max, keys: BTreeMap::new(), order: VecDeque::new() }
    }

    /// The key, unless its time is over.
    pub fn get(&self, whose: &K, now: Instant) -> Option<Key> {
        let (key, fetched) = self.keys.get(whose)?;
        (now.saturating_duration_since(*fetched) < self.kept).then(|| key.clone())
    }

    /// How many keys are kept, those that wait to be wiped included.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Keeps a key that was asked for at `fetched`.
    pub fn insert(&mut self, whose: K, key: Key, fetched: Instant) {
        self.sweep(fetched);
        self.keys.insert(whose, (key, fetched));
        self.order.push_back((fetched, whose));
        while self.order.len() > self.max {
            self.drop_oldest();
        }
    }

    /// Wipes a key at once.
    pub fn remove(&mut self, whose: &K) {
        // Its place in the order stays until its time: then there is nothing left to drop.
        self.keys.remove(whose);
    }

    /// Wipes the keys whose time is over.
    pub fn sweep(&mut self, now: Instant) {
        while self.order.front().is_some_and(|(fetched, _)| now.saturating_duration_since(*fetched) >= self.kept) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((fetched, whose)) = self.order.pop_front()
            // Fetched again since, it has another place in the order.
            && self.keys.get(&whose).is_some_and(|(_, known)| *known == fetched)
        {
            self.keys.remove(&whose);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT: Duration = Duration::from_secs(60);

    fn key() -> Key {
        Key::random().unwrap()
    }

    #[test]
    fn r02_a_key_goes_when_its_time_is_over_used_or_not() {
        let (mut cache, start) = (KeyCache::new(KEPT, 10), Instant::now());
        cache.insert(1, key(), start);
        let just_before = start + KEPT - Duration::from_millis(1);
        // Being used does not prolong its time.
        assert!(cache.get(&1, just_before).is_some());
        assert!(cache.get(&1, start + KEPT).is_none());
        cache.sweep(just_before);
        assert_eq!(cache.keys.len(), 1);
        cache.sweep(start + KEPT);
        assert!(cache.keys.is_empty() && cache.order.is_empty(), "an unused key is wiped too");
    }

    #[test]
    fn r02_a_key_that_was_fetched_again_has_a_time_of_its_own_and_one_that_was_dropped_has_none() {
        let (mut cache, start) = (KeyCache::new(KEPT, 10), Instant::now());
        cache.insert(1, key(), start);
        cache.insert(1, key(), start + KEPT / 2);
        cache.sweep(start + KEPT);
        assert!(cache.get(&1, start + KEPT).is_some());
        cache.remove(&1);
        assert!(cache.get(&1, start + KEPT).is_none());
        cache.sweep(start + KEPT * 2);
        assert!(cache.order.is_empty());
    }

    #[test]
    fn the_cache_is_bounded_and_the_oldest_go_first() {
        let (mut cache, start) = (KeyCache::new(KEPT, 3), Instant::now());
        for n in 0..10 {
            cache.insert(n, key(), start);
        }
        assert_eq!(cache.keys.keys().copied().collect::<Vec<_>>(), [7, 8, 9]);
    }
}
