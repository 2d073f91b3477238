//! Sealing records before they leave for the log.

use std::sync::{Arc, PoisonError, RwLock};

use schemas::record::Header;
use sealing::SealError;
use sealing::transport::{EpochId, LogPlace, RecordSealer};
use service_kit::keys::Watched;
use service_kit::keys::transport::TransportKeys;

use crate::metrics;

/// Seals under the current epoch, as the key file has it by now.
pub(crate) struct Seal {
    keys: Arc<Watched<TransportKeys>>,
    sealer: RwLock<Arc<RecordSealer>>,
    topic: String,
}

impl Seal {
    pub(crate) fn new(keys: Arc<Watched<TransportKeys>>, topic: &str) -> Result<Self, SealError> {
        let sealer = sealer(&keys.get())?;
        Ok(Self { keys, sealer: RwLock::new(sealer), topic: topic.to_owned() })
    }

    /// A record's value. CPU work: large ones belong on the pool.
    pub(crate) fn seal(&self, key: &[u8], header: &Header, payload: &[u8]) -> Result<Vec<u8>, SealError> {
        self.current()?.seal(&LogPlace { topic: &self.topic, key }, header, payload)
    }

    fn current(&self) -> Result<Arc<RecordSealer>, SealError> {
        let keys = self.keys.get();
        let wanted: EpochId = keys.current().0;
        let known = Arc::clone(&self.sealer.read().unwrap_or_else(PoisonError::into_inner));
        if known.epoch() == wanted {
            return Ok(known);
        }
        let mut place = self.sealer.write().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have been faster.
        if place.epoch() != wanted {
            *place = sealer(&keys)?;
        }
        Ok(Arc::clone(&place))
    }
}

fn sealer(keys: &TransportKeys) -> Result<Arc<RecordSealer>, SealError> {
    let (epoch, key) = keys.current();
    ::metrics::gauge!(metrics::EPOCH).set(f64::from(epoch.0));
    RecordSealer::new(key, epoch).map(Arc::new)
}
