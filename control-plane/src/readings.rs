//! How many readings of events go on at once: each holds memory for as long as its reader likes, and no workspace may have all of it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use schemas::WorkspaceId;

use crate::metrics;

/// Readings under way.
#[derive(Debug, Clone)]
pub(crate) struct Readings {
    max: usize,
    of_one_max: usize,
    under_way: Arc<Mutex<UnderWay>>,
}

#[derive(Debug, Default)]
struct UnderWay {
    all: usize,
    by_workspace: BTreeMap<WorkspaceId, usize>,
}

/// A reading's place among those at once, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    readings: Readings,
    workspace: WorkspaceId,
}

impl Readings {
    /// So many at once, and a quarter of them for one workspace.
    pub(crate) fn new(max: usize) -> Self {
        Self { max, of_one_max: max.div_ceil(4), under_way: Arc::default() }
    }

    /// A place for a reading of this workspace; `None` while it has as many as it may, or all are taken.
    pub(crate) fn begin(&self, workspace: WorkspaceId) -> Option<Place> {
        let mut under_way = self.under_way();
        let of_workspace = under_way.by_workspace.get(&workspace).copied().unwrap_or_default();
        if under_way.all >= self.max || of_workspace >= self.of_one_max {
            return None;
        }
        under_way.all += 1;
        ::metrics::gauge!(metrics::READINGS).set(under_way.all as f64);
        under_way.by_workspace.insert(workspace, of_workspace + 1);
        Some(Place { readings: self.clone(), workspace })
    }

    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut under_way = self.readings.under_way();
        under_way.all -= 1;
        ::metrics::gauge!(metrics::READINGS).set(under_way.all as f64);
        let left = under_way.by_workspace.get(&self.workspace).map_or(0, |count| count - 1);
        if left == 0 {
            under_way.by_workspace.remove(&self.workspace);
        } else {
            under_way.by_workspace.insert(self.workspace, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn a_workspace_has_its_quarter_and_all_have_the_whole() {
        let readings = Readings::new(10);
        let workspace = |number: u128| WorkspaceId(Uuid::from_u128(number));
        let mut places: Vec<Place> = (0..3).filter_map(|_| readings.begin(workspace(1))).collect();
        assert_eq!(places.len(), 3);
        assert!(readings.begin(workspace(1)).is_none(), "others need room");
        places.extend((2..9).filter_map(|number| readings.begin(workspace(number))));
        assert_eq!(places.len(), 10);
        assert!(readings.begin(workspace(20)).is_none(), "all are taken");
        places.remove(0);
        places.push(readings.begin(workspace(1)).unwrap());
        places.clear();
        assert!(readings.under_way().by_workspace.is_empty() && readings.under_way().all == 0);
        assert!(Readings::new(1).begin(workspace(1)).is_some());
    }
}
