//! What a bucket and an index say of each other: two streams in one order, laid side by side.
//!
//! [`Comparison`] is given pages of what lies in the bucket and pages of what the index names, each in ascending order of keys, asks
//! for the next page of the side that it needs, and says what stands on one side alone. It holds a page of each, whatever the sizes.
//! Both sides change while they are read, so what it says are suspicions: [`Suspicion`] has what is to be asked before one is a
//! finding.

use std::collections::VecDeque;

/// Something that lies in the bucket under a key: an object, a version of one, or a delete marker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lying<K> {
    /// Its key. Several may have the same one, one behind the other.
    pub key: K,
    /// Whether readers see it: it is an object, and no older version or delete marker.
    pub is_object: bool,
    /// When it was put, by the bucket's clock, in seconds since the epoch.
    pub put_s: i64,
}

impl<K> Lying<K> {
    /// Something else lies under the same key: it counts as one thing, as new as the newest of it.
    pub fn join(&mut self, other: &Self) {
        self.is_object |= other.is_object;
        self.put_s = self.put_s.max(other.put_s);
    }
}

/// A row of the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row<K> {
    /// The key of the object that it names.
    pub key: K,
    /// Whether readers are sent to the object: it has to be there. Another one may be there, or not be there.
    pub is_live: bool,
}

/// What one side says and the other does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Suspicion<K> {
    /// No row names what lies there. A row is there before its object and goes after it: so it is an orphan if it lies there still,
    /// when the rows are asked once more after it was listed there is still none, and it was put longer ago than any upload takes.
    Orphan(K),
    /// A live row names what readers do not see. A row never becomes live again: so the object is missing if it is not there when it is
    /// listed once more after the row was read, and the row is live still after that.
    Missing(K),
}

/// Which page is wanted next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// One of what lies in the bucket.
    Lying,
    /// One of rows.
    Rows,
    /// None: all was compared.
    Nothing,
}

/// A side came in another order than that of its keys: nothing can be said by comparing it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} is not in the order of its keys")]
pub struct OutOfOrder(pub &'static str);

/// Two streams side by side.
#[derive(Debug, Clone)]
pub struct Comparison<K> {
    lying: VecDeque<Lying<K>>,
    lying_ended: bool,
    rows: VecDeque<Row<K>>,
    rows_ended: bool,
    /// All keys up to this one were compared.
    compared: Option<K>,
    objects: u64,
}

impl<K: Ord + Clone> Default for Comparison<K> {
    fn default() -> Self {
        Self {
            lying: VecDeque::new(),
            lying_ended: false,
            rows: VecDeque::new(),
            rows_ended: false,
            compared: None,
            objects: 0,
        }
    }
}

impl<K: Ord + Clone> Comparison<K> {
    /// The next page of what lies in the bucket; whether it is the last one. What has the same key counts as one thing.
    pub fn add_lying(&mut self, page: impl IntoIterator<Item = Lying<K>>, is_last: bool) -> Result<(), OutOfOrder> {
        for next in page {
            match self.lying.back_mut() {
                Some(last) if last.key == next.key => last.join(&next),
                Some(last) if last.key > next.key => return Err(OutOfOrder("the bucket's list")),
                None if self.compared.as_ref().is_some_and(|compared| *compared >= next.key) => {
                    return Err(OutOfOrder("the bucket's list"));
                }
                _ => self.lying.push_back(next),
            }
        }
        self.lying_ended = is_last;
        Ok(())
    }

    /// The next page of rows; whether it is the last one.
    pub fn add_rows(&mut self, page: impl IntoIterator<Item = Row<K>>, is_last: bool) -> Result<(), OutOfOrder> {
        for next in page {
            let last = self.rows.back().map(|last| &last.key).or(self.compared.as_ref());
            if last.is_some_and(|last| *last >= next.key) {
                return Err(OutOfOrder("the index"));
            }
            self.rows.push_back(next);
        }
        self.rows_ended = is_last;
        Ok(())
    }

    /// Compares as far as the pages go, adds what is suspicious in ascending order of keys, and says which page is wanted next.
    pub fn compare(&mut self, suspicions: &mut Vec<Suspicion<K>>) -> Wanted {
        loop {
            // The next page may begin with more of the last key.
            if !self.lying_ended && self.lying.len() < 2 {
                return Wanted::Lying;
            }
            if !self.rows_ended && self.rows.is_empty() {
                return Wanted::Rows;
            }
            let (lying, row) = match (self.lying.front(), self.rows.front()) {
                (None, None) => return Wanted::Nothing,
                (Some(lying), Some(row)) => (lying.key <= row.key, row.key <= lying.key),
                (lying, row) => (lying.is_some(), row.is_some()),
            };
            let lying = if lying { self.lying.pop_front() } else { None };
            let row = if row { self.rows.pop_front() } else { None };
            self.objects += u64::from(lying.is_some());
            self.compared = lying.as_ref().map(|lying| &lying.key).or(row.as_ref().map(|row| &row.key)).cloned();
            let is_object = lying.as_ref().is_some_and(|lying| lying.is_object);
            match (lying, row) {
                (Some(lying), None) => suspicions.push(Suspicion::Orphan(lying.key)),
                (_, Some(row)) if row.is_live && !is_object => {
                    suspicions.push(Suspicion::Missing(row.key));
                }
                _ => {}
            }
        }
    }

    /// All keys up to this one were compared.
    pub fn compared(&self) -> Option<&K> {
        self.compared.as_ref()
    }

    /// How many keys of the bucket were compared.
    pub fn objects(&self) -> u64 {
        self.objects
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Runs a comparison over pages of these sizes. Gives what it suspects, the pages of each side that it took, and how many keys of the
    /// bucket it compared.
    fn run(lying: &[Lying<u8>], rows: &[Row<u8>], sizes: (usize, usize)) -> (Vec<Suspicion<u8>>, (usize, usize), u64) {
        let (mut comparison, mut suspicions) = (Comparison::default(), Vec::new());
        let (mut lying_at, mut rows_at, mut pages) = (0, 0, (0, 0));
        loop {
            match comparison.compare(&mut suspicions) {
                Wanted::Lying => {
                    let end = lying.len().min(lying_at + sizes.0);
                    comparison.add_lying(lying[lying_at..end].to_vec(), end == lying.len()).unwrap();
                    (lying_at, pages.0) = (end, pages.0 + 1);
                }
                Wanted::Rows => {
                    let end = rows.len().min(rows_at + sizes.1);
                    comparison.add_rows(rows[rows_at..end].to_vec(), end == rows.len()).unwrap();
                    (rows_at, pages.1) = (end, pages.1 + 1);
                }
                Wanted::Nothing => return (suspicions, pages, comparison.objects()),
            }
        }
    }

    proptest! {
        /// Goal: whatever lies in the bucket and stands in the index, in pages of whatever size, exactly what one side has alone is
        /// suspicious, and each page is taken once. Method: sets of both sides, keys of the bucket several times over; the difference is
        /// taken naively, of sets.
        #[test]
        fn what_one_side_has_alone_is_suspicious_and_nothing_else(
            lying in proptest::collection::vec((0_u8..40, any::<bool>()), 0..60),
            rows in proptest::collection::btree_map(0_u8..40, any::<bool>(), 0..40),
            sizes in (1_usize..7, 1_usize..7),
        ) {
            let mut in_bucket: BTreeMap<u8, bool> = BTreeMap::new();
            for (key, is_object) in &lying {
                *in_bucket.entry(*key).or_default() |= is_object;
            }
            let mut listed: Vec<Lying<u8>> =
                lying.into_iter().map(|(key, is_object)| Lying { key, is_object, put_s: 0 }).collect();
            listed.sort_by_key(|lying| lying.key);
            let named: Vec<Row<u8>> = rows.iter().map(|(key, is_live)| Row { key: *key, is_live: *is_live }).collect();
            let mut expected = Vec::new();
            for key in 0..40 {
                match (in_bucket.get(&key), rows.get(&key)) {
                    (Some(_), None) => expected.push(Suspicion::Orphan(key)),
                    (None | Some(false), Some(true)) => expected.push(Suspicion::Missing(key)),
                    _ => {}
                }
            }
            let (suspicions, pages, objects) = run(&listed, &named, sizes);
            prop_assert_eq!(suspicions, expected);
            prop_assert_eq!(objects, in_bucket.len() as u64);
            let pages_of = |items: usize, size: usize| items.div_ceil(size).max(1);
            prop_assert_eq!(pages, (pages_of(listed.len(), sizes.0), pages_of(named.len(), sizes.1)));
        }

        /// Goal: a comparison that is taken up behind what was compared says the same as one that never stopped. Method: one stops
        /// after some pages, and another goes on with what lies behind.
        #[test]
        fn a_comparison_that_stops_is_taken_up_where_it_was(
            lying in proptest::collection::btree_set(0_u8..40, 0..40),
            rows in proptest::collection::btree_map(0_u8..40, any::<bool>(), 0..40),
            (size, stop) in (1_usize..7, 0_usize..20),
        ) {
            let listed: Vec<Lying<u8>> =
                lying.iter().map(|key| Lying { key: *key, is_object: true, put_s: 0 }).collect();
            let named: Vec<Row<u8>> = rows.iter().map(|(key, is_live)| Row { key: *key, is_live: *is_live }).collect();
            let (mut comparison, mut suspicions) = (Comparison::default(), Vec::new());
            let (mut listing, mut reading) = (listed.chunks(size), named.chunks(size));
            for _ in 0..stop {
                match comparison.compare(&mut suspicions) {
                    Wanted::Lying => {
                        let page = listing.next().unwrap_or_default().to_vec();
                        comparison.add_lying(page, listing.len() == 0).unwrap();
                    }
                    Wanted::Rows => {
                        let page = reading.next().unwrap_or_default().to_vec();
                        comparison.add_rows(page, reading.len() == 0).unwrap();
                    }
                    Wanted::Nothing => break,
                }
            }
            comparison.compare(&mut suspicions);
            let behind = |key: u8| comparison.compared().is_none_or(|compared| key > *compared);
            let listed_behind: Vec<_> = listed.iter().filter(|lying| behind(lying.key)).cloned().collect();
            let named_behind: Vec<_> = named.iter().filter(|row| behind(row.key)).cloned().collect();
            let (rest, _, objects) = run(&listed_behind, &named_behind, (size, size));
            suspicions.extend(rest);
            prop_assert_eq!(suspicions, run(&listed, &named, (size, size)).0);
            prop_assert_eq!(comparison.objects() + objects, listed.len() as u64);
        }
    }

    #[test]
    fn what_comes_in_another_order_is_refused() {
        let lying = |key| Lying { key, is_object: true, put_s: 0 };
        let row = |key| Row { key, is_live: true };
        let mut comparison = Comparison::default();
        assert!(comparison.add_lying([lying(3), lying(2)], false).is_err());
        assert!(comparison.add_rows([row(3), row(3)], false).is_err(), "no two rows have one key");
        let mut comparison = Comparison::default();
        comparison.add_lying([lying(5), lying(7)], false).unwrap();
        comparison.add_rows([row(5)], false).unwrap();
        assert_eq!(comparison.compare(&mut Vec::new()), Wanted::Lying);
        assert!(comparison.add_rows([row(4)], false).is_err(), "it was passed already");
        assert!(comparison.add_lying([lying(6)], false).is_err(), "it was passed already");
    }
}
