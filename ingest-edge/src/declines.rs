//! Declines: one number per workspace and hour, and nothing else (P2).

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use schemas::WorkspaceId;
use schemas::record::Header;
use uuid::Uuid;

use crate::kafka::Producer;
use crate::seal::Seal;

const HOUR_MS: u64 = 3_600_000;

/// Declines that were not sent yet.
#[derive(Debug, Default)]
pub(crate) struct Declines(Mutex<BTreeMap<(WorkspaceId, u64), u32>>);

impl Declines {
    /// Counts one.
    pub(crate) fn count(&self, workspace: WorkspaceId, now_ms: u64) {
        self.add((workspace, now_ms - now_ms % HOUR_MS), 1);
    }

    fn add(&self, of: (WorkspaceId, u64), count: u32) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(of).or_default() += count;
    }

    /// Sends all sums. Those that Kafka does not take are kept for the next time.
    pub(crate) async fn send(&self, producer: &Producer, seal: &Seal) {
        let sums = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        for ((workspace, hour_ms), count) in sums {
            // A random key: the partition says nothing about who declined.
            let key = Uuid::new_v8(rand_bytes());
            let sent = match seal.seal(key.as_bytes(), &Header::Declines { workspace, hour_ms, count }, &[]) {
                Ok(value) => producer.send(key.as_bytes(), &value).await.is_ok(),
                Err(error) => {
                    tracing::error!(%error, "seal sum of declines");
                    false
                }
            };
            if !sent {
                self.add((workspace, hour_ms), count);
            }
        }
    }
}

fn rand_bytes() -> [u8; 16] {
    let mut bytes = [0; 16];
    // The key only spreads records; were there no randomness, all would go to one partition.
    let _ = getrandom::fill(&mut bytes);
    bytes
}
