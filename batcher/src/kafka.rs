//! The consumer: cooperative assignments, offsets from the index.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rdkafka::client::ClientContext;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::statistics::Statistics;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};
use service_kit::kafka;
use tokio::sync::mpsc::UnboundedSender;

use crate::Config;

/// How often the ends of logs are told, for the lag.
const STATISTICS_INTERVAL_MS: u32 = 2_000;
const WATERMARKS_TIMEOUT: Duration = Duration::from_secs(5);

/// What Kafka's client tells between records.
#[derive(Debug)]
pub(crate) enum Heard {
    /// These are ours now; they are read once the driver gives their offsets.
    Assigned(Vec<i32>),
    /// These are not ours any more.
    Revoked(Vec<i32>),
    /// Where the logs of partitions end, as of the last fetches: the offset behind the last record.
    Ends(Vec<(i32, u64)>),
}

/// Hears rebalances. An assignment is answered later, by the driver, when the index has said where to go on; a
/// revocation is answered here and now, for the partitions that are read.
pub(crate) struct Context {
    heard: UnboundedSender<Heard>,
    reading: Mutex<BTreeSet<i32>>,
    /// Nobody answers assignments any more.
    closing: AtomicBool,
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        let partitions = statistics.topics.values().flat_map(|topic| topic.partitions.values());
        // A partition that was never fetched from has no end.
        let ends = partitions.filter_map(|found| Some((found.partition, u64::try_from(found.hi_offset).ok()?)));
        let _ = self.heard.send(Heard::Ends(ends.collect()));
    }
}

impl ConsumerContext for Context {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, err: RDKafkaRespErr, tpl: &mut TopicPartitionList) {
        let partitions: Vec<i32> = tpl.elements().iter().map(|element| element.partition()).collect();
        let heard = match err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS => {
                if self.closing.load(Ordering::Relaxed) {
                    refuse_assignment(consumer);
                }
                Heard::Assigned(partitions)
            }
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__REVOKE_PARTITIONS => {
                let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
                let mut stop = TopicPartitionList::new();
                for element in tpl.elements() {
                    if reading.remove(&element.partition()) {
                        stop.add_partition(element.topic(), element.partition());
                    }
                }
                if let Err(error) = consumer.incremental_unassign(&stop) {
                    tracing::warn!(%error, "give back partitions");
                    // The group waits for an answer, even if it is this one.
                    let _ = consumer.incremental_unassign(&TopicPartitionList::new());
                }
                Heard::Revoked(partitions)
            }
            other => {
                tracing::warn!(code = ?other, "rebalance");
                return;
            }
        };
        // The receiver lives as long as the consumer; without it nobody reads anything.
        let _ = self.heard.send(heard);
    }
}

/// Answers an assignment with nothing. One that stays without an answer would hold up the closing for ever.
fn refuse_assignment(consumer: &BaseConsumer<Context>) {
    if let Err(error) = consumer.incremental_assign(&TopicPartitionList::new()) {
        tracing::warn!(%error, "answer assignment while closing");
    }
}

/// The consumer of events.
pub(crate) struct Consumer {
    inner: StreamConsumer<Context>,
    topic: String,
    paused: AtomicBool,
}

impl Consumer {
    pub(crate) fn new(config: &Config, heard: UnboundedSender<Heard>) -> Result<Self, KafkaError> {
        let context = Context { heard, reading: Mutex::default(), closing: AtomicBool::new(false) };
        let topic = config.kafka.topic_events.clone();
        let inner: StreamConsumer<Context> = kafka::client(&config.kafka, "batcher")
            .set("group.id", &config.group)
            // KIP-848: cooperative by nature, the broker decides.
            .set("group.protocol", "consumer")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // Out of range is an alarm, never a silent skip.
            .set("auto.offset.reset", "error")
            .set("queued.max.messages.kbytes", "32768")
            .set("fetch.wait.max.ms", "100")
            .set("statistics.interval.ms", STATISTICS_INTERVAL_MS.to_string())
            .create_with_context(context)?;
        inner.subscribe(&[&topic])?;
        Ok(Self { inner, topic, paused: AtomicBool::new(false) })
    }

    pub(crate) fn stream(&self) -> &StreamConsumer<Context> {
        &self.inner
    }

    fn list(&self, partitions: impl IntoIterator<Item = i32>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.topic, partition);
        }
        list
    }

    /// Reads these partitions from these offsets on, in one call.
    pub(crate) fn assign(&self, offsets: &[(i32, u64)]) -> Result<(), KafkaError> {
        // A partition that is read already is stopped first: what was fetched for it is outdated.
        self.unassign(offsets.iter().map(|(partition, _)| *partition))?;
        let mut list = TopicPartitionList::new();
        for (partition, offset) in offsets {
            let offset = Offset::Offset(i64::try_from(*offset).unwrap_or(i64::MAX));
            list.add_partition_offset(&self.topic, *partition, offset)?;
        }
        self.inner.incremental_assign(&list)?;
        self.reading().extend(offsets.iter().map(|(partition, _)| *partition));
        // Kafka's client remembers a pause by partition, also while it is not ours: it is told anew what holds now.
        let these = self.list(offsets.iter().map(|(partition, _)| *partition));
        if self.paused.load(Ordering::Relaxed) { self.inner.pause(&these) } else { self.inner.resume(&these) }
    }

    /// Stops reading these partitions, as far as they are read.
    pub(crate) fn unassign(&self, partitions: impl IntoIterator<Item = i32>) -> Result<(), KafkaError> {
        let read: Vec<i32> = {
            let mut reading = self.reading();
            partitions.into_iter().filter(|partition| reading.remove(partition)).collect()
        };
        if read.is_empty() { Ok(()) } else { self.inner.incremental_unassign(&self.list(read)) }
    }

    fn reading(&self) -> std::sync::MutexGuard<'_, BTreeSet<i32>> {
        self.inner.context().reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The partitions that are read.
    pub(crate) fn partitions(&self) -> Vec<i32> {
        self.reading().iter().copied().collect()
    }

    /// Stops fetching, of what is read now and of what comes to it.
    pub(crate) fn pause(&self) -> Result<(), KafkaError> {
        self.paused.store(true, Ordering::Relaxed);
        self.inner.pause(&self.list(self.partitions()))
    }

    pub(crate) fn resume(&self) -> Result<(), KafkaError> {
        self.paused.store(false, Ordering::Relaxed);
        self.inner.resume(&self.list(self.partitions()))
    }

    /// Makes ready for being dropped: an assignment that waits for its offsets is answered.
    pub(crate) fn close(&self) {
        self.inner.context().closing.store(true, Ordering::Relaxed);
        if let Err(error) = self.inner.incremental_assign(&TopicPartitionList::new()) {
            tracing::debug!(%error, "close consumer");
        }
    }

    /// Tells Kafka how far the index is, so that the usual tools show the lag.
    pub(crate) fn note_lag(&self, partition: i32, next: u64) {
        let mut list = TopicPartitionList::new();
        let offset = Offset::Offset(i64::try_from(next).unwrap_or(i64::MAX));
        let noted = list
            .add_partition_offset(&self.topic, partition, offset)
            .and_then(|()| self.inner.commit(&list, CommitMode::Async));
        if let Err(error) = noted {
            // Nothing depends on it.
            tracing::debug!(%error, "note lag");
        }
    }

    /// The first offset of a partition and the one behind its last. Blocks.
    pub(crate) fn watermarks(&self, partition: i32) -> Result<(u64, u64), KafkaError> {
        let (low, high) = self.inner.fetch_watermarks(&self.topic, partition, WATERMARKS_TIMEOUT)?;
        // A place that Kafka does not know is none: taken for 0, it would tell of a log that is empty.
        let known = |offset: i64| u64::try_from(offset).map_err(|_| KafkaError::OffsetFetch(RDKafkaErrorCode::Unknown));
        Ok((known(low)?, known(high)?))
    }
}
