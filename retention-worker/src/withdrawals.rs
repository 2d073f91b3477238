//! Withdrawals: each entry of one on `control` becomes a deletion, at once and not when the next pass comes.
//!
//! The topic is the queue: an entry stays there until the deletion that was made of it is told, and whoever starts reads all of
//! it. So what waits here may be lost with the process, and may come twice.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use schemas::SessionKey;
use service_kit::health::Part;
use service_kit::retry;
use service_kit::shutdown::Shutdown;
use storage::index::Index;
use storage::journal::{Journal, JournalError};
use tokio::sync::Notify;

use crate::metrics;

/// Withdrawals that become deletions in one transaction.
const BATCH: usize = 500;

/// Withdrawals that were heard of and are no deletions yet, oldest first. As many as the topic has at most: 48 bytes each.
#[derive(Debug, Clone, Default)]
pub(crate) struct Withdrawals(Arc<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    queue: Mutex<VecDeque<(SessionKey, Instant)>>,
    came: Notify,
}

impl Withdrawals {
    /// The end user took consent back.
    pub(crate) fn add(&self, key: SessionKey) {
        self.queue().push_back((key, Instant::now()));
        self.0.came.notify_one();
    }

    /// Makes deletions of them until the shutdown, each in the journal before its entry goes. While Postgres or the bucket are away they
    /// wait.
    pub(crate) async fn run(self, index: Index, journal: Journal, part: Part, shutdown: Shutdown) {
        // Nothing waits so far.
        part.up();
        loop {
            let batch: Vec<SessionKey> = self.queue().iter().take(BATCH).map(|(key, _)| *key).collect();
            self.show();
            if batch.is_empty() {
                tokio::select! {
                    () = shutdown.begun() => return,
                    () = self.0.came.notified() => continue,
                }
            }
            let withdraw = || {
                self.show();
                delete(&index, &journal, &batch)
            };
            let Some(deleted) = retry::until_ok("withdraw sessions", &part, &shutdown, withdraw).await else {
                return;
            };
            ::metrics::counter!(metrics::WITHDRAWN).increment(deleted);
            // Only this loop takes any away, so these are still the first.
            self.queue().drain(..batch.len());
        }
    }

    fn show(&self) {
        let queue = self.queue();
        let age = queue.front().map_or(0.0, |(_, since)| since.elapsed().as_secs_f64());
        ::metrics::gauge!(metrics::WITHDRAWALS_WAITING).set(queue.len() as f64);
        ::metrics::gauge!(metrics::WITHDRAWALS_OLDEST).set(age);
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<(SessionKey, Instant)>> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Deletes sessions whose end users took consent back; how many were not deleted before.
async fn delete(index: &Index, journal: &Journal, batch: &[SessionKey]) -> Result<u64, JournalError> {
    let (deletions, new) = index.withdraw(batch).await?;
    journal.write_each(deletions).await?;
    index.forget_withdrawals(batch).await?;
    Ok(new)
}
