//! Sets of node ids. rrweb numbers nodes in the order in which it meets them, so sets of neighbours are a few ranges.

use schemas::codec::{FormatError, Reader, Writer};

/// A set of ids, as ranges that neither touch nor overlap.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ranges(
    /// First and last of each, in order.
    Vec<(u32, u32)>,
);

impl Ranges {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// The index of the first range that ends at `id` or behind it.
    fn place(&self, id: u32) -> usize {
        // Most questions are about the nodes that came last.
        match self.0.last() {
            Some((_, last)) if *last < id => self.0.len(),
            Some((first, _)) if *first <= id => self.0.len() - 1,
            _ => self.0.partition_point(|(_, last)| *last < id),
        }
    }

    pub(crate) fn contains(&self, id: u32) -> bool {
        self.0.get(self.place(id)).is_some_and(|(first, _)| *first <= id)
    }

    pub(crate) fn insert(&mut self, id: u32) {
        let place = self.place(id);
        if self.0.get(place).is_some_and(|(first, _)| *first <= id) {
            return;
        }
        let joins_before = place > 0 && self.0[place - 1].1.checked_add(1) == Some(id);
        let joins_after = self.0.get(place).is_some_and(|(first, _)| id.checked_add(1) == Some(*first));
        match (joins_before, joins_after) {
            (true, true) => {
                self.0[place - 1].1 = self.0[place].1;
                self.0.remove(place);
            }
            (true, false) => self.0[place - 1].1 = id,
            (false, true) => self.0[place].0 = id,
            (false, false) => self.0.insert(place, (id, id)),
        }
    }

    pub(crate) fn remove(&mut self, id: u32) {
        let place = self.place(id);
        let Some((first, last)) = self.0.get(place).copied().filter(|(first, _)| *first <= id) else { return };
        match (first == id, last == id) {
            (true, true) => drop(self.0.remove(place)),
            (true, false) => self.0[place].0 = id + 1,
            (false, true) => self.0[place].1 = id - 1,
            (false, false) => {
                self.0[place].1 = id - 1;
                self.0.insert(place + 1, (id + 1, last));
            }
        }
    }

    /// Bytes that [`Ranges::write`] writes, at most.
    pub(crate) fn bytes_max(&self) -> usize {
        5 + 10 * self.0.len()
    }

    /// Bytes that [`Ranges::write`] writes.
    pub(crate) fn bytes(&self) -> usize {
        let mut writer = Writer::new();
        self.write(&mut writer);
        writer.into_bytes().len()
    }

    pub(crate) fn write(&self, to: &mut Writer) {
        to.uint(self.0.len() as u64);
        let mut behind = 0;
        for (first, last) in &self.0 {
            to.uint(u64::from(first - behind));
            to.uint(u64::from(last - first));
            behind = *last;
        }
    }

    pub(crate) fn read(from: &mut Reader<'_>) -> Result<Self, FormatError> {
        let count = from.count(2, "ranges")?;
        let mut ranges: Vec<(u32, u32)> = Vec::with_capacity(count);
        let mut behind = 0u32;
        for number in 0..count {
            let (gap, more) = (from.uint32("ranges")?, from.uint32("ranges")?);
            let first = behind.checked_add(gap).ok_or(FormatError::Field("ranges"))?;
            let last = first.checked_add(more).ok_or(FormatError::Field("ranges"))?;
            // No writer makes ranges that touch.
            if number > 0 && gap < 2 {
                return Err(FormatError::Field("ranges"));
            }
            ranges.push((first, last));
            behind = last;
        }
        Ok(Self(ranges))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_are_a_set(changes in prop::collection::vec((any::<bool>(), prop_oneof![0u32..40, Just(u32::MAX), Just(u32::MAX - 1)]), 0..80)) {
            let (mut ranges, mut set) = (Ranges::default(), BTreeSet::new());
            for (inserts, id) in changes {
                if inserts {
                    ranges.insert(id);
                    set.insert(id);
                } else {
                    ranges.remove(id);
                    set.remove(&id);
                }
                for id in (0..42).chain([u32::MAX - 2, u32::MAX - 1, u32::MAX]) {
                    prop_assert_eq!(ranges.contains(id), set.contains(&id));
                }
            }
            let mut writer = Writer::new();
            ranges.write(&mut writer);
            let written = writer.into_bytes();
            prop_assert!(written.len() <= ranges.bytes_max());
            let mut reader = Reader::new(&written);
            prop_assert_eq!(Ranges::read(&mut reader), Ok(ranges));
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn any_bytes_are_read_without_panic_and_written_again_as_the_same(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            if let Ok(ranges) = Ranges::read(&mut reader) {
                let mut writer = Writer::new();
                ranges.write(&mut writer);
                let written = writer.into_bytes();
                prop_assert_eq!(Ranges::read(&mut Reader::new(&written)), Ok(ranges));
            }
        }
    }
}
