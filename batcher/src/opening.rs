//! Records on their way from Kafka to the machine: opened on the pool, handed over in the order in which they came.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt as _};
use rdkafka::Message as _;
use rdkafka::message::BorrowedMessage;
use schemas::limits;
use schemas::record;
use sealing::transport::{EpochKeys, LogPlace};
use service_kit::keys::Watched;
use service_kit::keys::transport::TransportKeys;
use service_kit::pool::{Panicked, Pool};

use crate::assemble::{Content, Held, Unreadable};

/// Records that are being opened at most; more are not taken from Kafka's client.
const RECORDS_MAX: usize = 256;
/// Bytes of them at most, one record apart.
const BYTES_MAX: u64 = 16 * limits::MIB as u64;

/// A record that was opened, or found unreadable.
pub(crate) struct Opened {
    pub(crate) partition: i32,
    pub(crate) offset: u64,
    /// Bytes of the record's value.
    pub(crate) bytes: u64,
    /// Of the record as the log has it.
    pub(crate) fingerprint: u64,
    pub(crate) held: Held,
}

struct Pending {
    opened: Opened,
    reading: u64,
}

/// Records that are being opened. Those of a partition that is not read any more, or is read anew from elsewhere, are
/// forgotten: their reading is over.
pub(crate) struct Opening {
    keys: Arc<Watched<TransportKeys>>,
    pool: Pool,
    topic: Arc<str>,
    pending: FuturesOrdered<BoxFuture<'static, Result<Pending, Panicked>>>,
    bytes: u64,
    /// By partition, how often its reading has begun or ended.
    readings: BTreeMap<i32, u64>,
}

impl Opening {
    pub(crate) fn new(keys: Arc<Watched<TransportKeys>>, pool: Pool, topic: &str) -> Self {
        let topic = Arc::from(topic);
        Self { keys, pool, topic, pending: FuturesOrdered::new(), bytes: 0, readings: BTreeMap::new() }
    }

    /// Whether another record may be begun.
    pub(crate) fn has_room(&self) -> bool {
        self.pending.len() < RECORDS_MAX && self.bytes < BYTES_MAX
    }

    /// Begins to open a record.
    pub(crate) fn begin(&mut self, message: &BorrowedMessage<'_>) {
        let (partition, offset) = (message.partition(), message.offset().max(0).unsigned_abs());
        let appended_ms = message.timestamp().to_millis().unwrap_or(0).max(0).unsigned_abs();
        let value = Bytes::copy_from_slice(message.payload().unwrap_or_default());
        let key = message.key().unwrap_or_default().to_vec();
        let bytes = value.len() as u64;
        let (keys, topic, pool) = (self.keys.get(), Arc::clone(&self.topic), self.pool.clone());
        let reading = self.readings.get(&partition).copied().unwrap_or_default();
        self.bytes += bytes;
        self.pending.push_back(Box::pin(async move {
            let open = move || {
                let fingerprint = record::fingerprint(&key, &value);
                (fingerprint, open(keys.keys(), &topic, &key, value))
            };
            let (fingerprint, content) = pool.run(open).await?;
            let held = Held { content, appended_ms };
            Ok(Pending { opened: Opened { partition, offset, bytes, fingerprint, held }, reading })
        }));
    }

    /// Forgets all records: nothing more is read. They would keep their places at the pool from those who flush.
    pub(crate) fn clear(&mut self) {
        self.pending = FuturesOrdered::new();
        self.bytes = 0;
    }

    /// The reading of a partition begins or ends: what was taken in before is not wanted any more.
    pub(crate) fn turn(&mut self, partition: i32) {
        *self.readings.entry(partition).or_default() += 1;
    }

    /// The next record, in the order of [`Opening::begin`]; waits for ever while there is none.
    pub(crate) async fn next(&mut self) -> Result<Opened, Panicked> {
        loop {
            let Some(pending) = self.pending.next().await else { return std::future::pending().await };
            let Pending { opened, reading } = pending?;
            self.bytes -= opened.bytes;
            if self.readings.get(&opened.partition).copied().unwrap_or_default() == reading {
                return Ok(opened);
            }
        }
    }
}

/// Opens a record. What cannot be read is kept whole, under the seal that it has.
fn open(keys: &EpochKeys, topic: &str, key: &[u8], value: Bytes) -> Content {
    match keys.read(&LogPlace { topic, key }, &value) {
        Ok(opened) => Content::Read(opened.header, Bytes::from(opened.bytes).slice(opened.payload_at..)),
        Err(reason) => {
            let record_key = Bytes::copy_from_slice(&key[..key.len().min(limits::RECORD_KEY_BYTES_MAX)]);
            Content::Unreadable(Unreadable { reason, record_key, value })
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::codec;
    use schemas::record::{Consent, Header};
    use schemas::shared_object::QuarantineReason;
    use schemas::{BatchFacts, LinkId, ReceiptId, SessionId, SessionKey, StreamSeq, WorkspaceId};
    use sealing::Key;
    use sealing::transport::{EpochId, RecordSealer};
    use uuid::Uuid;

    use super::*;

    const TOPIC: &str = "session-events";

    fn batch(raw_bytes: u32) -> Header {
        Header::Batch {
            key: SessionKey { workspace: WorkspaceId(Uuid::from_u128(1)), session: SessionId(Uuid::from_u128(2)) },
            consent: Consent {
                link: LinkId(Uuid::nil()),
                consented_at_ms: 0,
                notice_version: "v".into(),
                receipt: ReceiptId(Uuid::nil()),
            },
            place: StreamSeq::new(0, 0).unwrap(),
            end: false,
            masking: None,
            facts: BatchFacts { raw_bytes, ..BatchFacts::default() },
        }
    }

    fn check(header: &Header, payload: &[u8], epoch: u32, record_key: u128, change: usize) -> Option<QuarantineReason> {
        let key = Key::new([7; 32]);
        let record_key = Uuid::from_u128(record_key);
        let place = LogPlace { topic: TOPIC, key: record_key.as_bytes() };
        let mut value = RecordSealer::new(&key, EpochId(epoch)).unwrap().seal(&place, header, payload).unwrap();
        if let Some(byte) = value.get_mut(change) {
            *byte ^= 1;
        }
        let value = Bytes::from(value);
        let keys = EpochKeys::new([(EpochId(1), key)].into());
        match open(&keys, TOPIC, place.key, value.clone()) {
            Content::Read(found, found_payload) => {
                assert_eq!((&found, found_payload.as_ref()), (header, payload));
                None
            }
            Content::Unreadable(kept) => {
                assert_eq!(kept.value, value, "an unreadable record is kept byte for byte");
                assert_eq!(kept.record_key, place.key);
                Some(kept.reason)
            }
        }
    }

    #[test]
    fn records_are_opened_or_kept_whole_with_their_reason() {
        const UNCHANGED: usize = usize::MAX;
        let payload = codec::compress(b"{}\n", 1);
        assert_eq!(check(&batch(3), &payload, 1, 2, UNCHANGED), None);
        assert_eq!(check(&batch(4), &payload, 1, 2, UNCHANGED), Some(QuarantineReason::Payload));
        assert_eq!(check(&batch(3), &payload, 2, 2, UNCHANGED), Some(QuarantineReason::Key));
        assert_eq!(check(&batch(3), &payload, 1, 9, UNCHANGED), Some(QuarantineReason::Header));
        assert_eq!(check(&batch(3), &payload, 1, 2, 0), Some(QuarantineReason::Header));
        assert_eq!(check(&batch(3), &payload, 1, 2, 4), Some(QuarantineReason::Version));
        assert_eq!(check(&batch(3), &payload, 1, 2, 40), Some(QuarantineReason::Seal));
    }
}
