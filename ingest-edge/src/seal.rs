//! Sealing records before they leave for the log.

use std::sync::{Arc, PoisonError, RwLock};

use schemas::record::Header;
use sealing::SealError;
use sealing::transport::{LogPlace, RecordSealer};
use service_kit::keys::Watched;
use service_kit::keys::transport::TransportKeys;

use crate::metrics;

/// Seals under the current epoch, as the key file has it by now.
pub(crate) struct Seal {
    keys: Arc<Watched<TransportKeys>>,
    /// The sealer, and the keys that it was made from.
    sealer: RwLock<(Arc<TransportKeys>, Arc<RecordSealer>)>,
    topic: String,
}

impl Seal {
    pub(crate) fn new(keys: Arc<Watched<TransportKeys>>, topic: &str) -> Result<Self, SealError> {
        let known = keys.get();
        let sealer = sealer(&known)?;
        Ok(Self { keys, sealer: RwLock::new((known, sealer)), topic: topic.to_owned() })
    }

    /// A record's value. CPU work: large ones belong on the pool.
    pub(crate) fn seal(&self, key: &[u8], header: &Header, payload: &[u8]) -> Result<Vec<u8>, SealError> {
        self.current()?.seal(&LogPlace { topic: &self.topic, key }, header, payload)
    }

    fn current(&self) -> Result<Arc<RecordSealer>, SealError> {
        let keys = self.keys.get();
        // A file that was replaced may hold another key under the same number: the file counts, not the number.
        let is_of = |known: &(Arc<TransportKeys>, _)| Arc::ptr_eq(&known.0, &keys);
        {
            let known = self.sealer.read().unwrap_or_else(PoisonError::into_inner);
            if is_of(&known) {
                return Ok(Arc::clone(&known.1));
            }
        }
        let mut place = self.sealer.write().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have been faster.
        if !is_of(&place) {
            *place = (Arc::clone(&keys), sealer(&keys)?);
        }
        Ok(Arc::clone(&place.1))
    }
}

fn sealer(keys: &TransportKeys) -> Result<Arc<RecordSealer>, SealError> {
    let (epoch, key) = keys.current();
    ::metrics::gauge!(metrics::EPOCH).set(f64::from(epoch.0));
    RecordSealer::new(key, epoch).map(Arc::new)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use schemas::WorkspaceId;
    use service_kit::keys;
    use service_kit::shutdown::Shutdown;
    use uuid::Uuid;

    use super::*;

    /// A file that was replaced may hold another key under the epoch's number, as when one of two files that were made apart is
    /// brought to where the other was: what was sealed under the old one then, nobody could open.
    #[tokio::test]
    async fn a_replaced_file_counts_also_when_its_epochs_have_the_same_numbers() {
        let path = std::env::temp_dir().join(format!("clairvio-seal-{}", Uuid::now_v7()));
        let (ours, theirs) = (TransportKeys::make().unwrap(), TransportKeys::make().unwrap());
        assert_eq!(ours.current().0, theirs.current().0);
        keys::write(&path, &ours).unwrap();
        let shutdown = Shutdown::new(Duration::ZERO);
        let seal = Seal::new(Watched::start(path.clone(), &shutdown).unwrap(), "topic").unwrap();
        let header = Header::Declines { workspace: WorkspaceId(Uuid::nil()), hour_ms: 0, count: 1 };
        let opens = |keys: &TransportKeys| {
            let value = seal.seal(b"key", &header, b"").unwrap();
            keys.keys().open(&LogPlace { topic: "topic", key: b"key" }, &value).is_ok()
        };
        assert!(opens(&ours));
        keys::replace(&path, &theirs).unwrap();
        let begun = Instant::now();
        while !opens(&theirs) {
            assert!(begun.elapsed() < keys::LOOK_INTERVAL * 20, "the new file is not gone by");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        shutdown.begin();
        std::fs::remove_file(&path).unwrap();
    }
}
