//! The compacted topic `control`: followed by whoever has to know, written by whoever has an outbox.
//!
//! A follower reads the whole topic from its beginning and then goes on for ever. It commits nothing and joins no group: each
//! process needs every entry. Kafka being away delays it and ends nothing.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use futures::future::try_join_all;
use rdkafka::Message as _;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use rdkafka::{Offset, TopicPartitionList};
use schemas::control::{Entry, EntryError};
use thiserror::Error;

use super::client_of;
use crate::config::kafka::ControlConfig;
use crate::shutdown::Shutdown;

/// How often the topic is looked for that was not found.
const MISSING_INTERVAL: Duration = Duration::from_secs(1);
/// How often partitions are looked for that the topic got since.
const PARTITIONS_INTERVAL: Duration = Duration::from_secs(30);
const METADATA_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an entry may be on its way. Shorter than the time after which Postgres ends a transaction that does nothing:
/// the outbox waits within one.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(5);

/// Calls `on_entry` with every entry there is and every one that comes, until the shutdown. Entries of a newer release's
/// kinds are left out. Only a configuration that cannot be used is an error.
pub fn follow(
    config: &ControlConfig,
    client_id: &str,
    shutdown: Shutdown,
    on_entry: impl FnMut(Entry) + Send + 'static,
) -> Result<(), KafkaError> {
    let consumer: StreamConsumer = client_of(&config.brokers, client_id)
        // Kafka's client wants the name of a group, also where none is joined.
        .set("group.id", format!("{client_id}-control"))
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // The topic is compacted: its beginning is all that counts.
        .set("auto.offset.reset", "earliest")
        .create()?;
    let (consumer, topic) = (Arc::new(consumer), config.topic.clone());
    let brokers = config.brokers.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown.begun() => {}
            () = assign_all(&consumer, &brokers, &topic) => {}
            () = receive(&consumer, on_entry) => {}
        }
    });
    Ok(())
}

/// Has all partitions read, those too that the topic gets later. Never ends.
async fn assign_all(consumer: &Arc<StreamConsumer>, brokers: &str, topic: &str) {
    let mut assigned = BTreeSet::new();
    let mut last_reason = String::new();
    loop {
        match partitions(consumer, topic).await {
            Ok(found) if found.is_empty() => {
                warn_once(
                    &mut last_reason,
                    format!("topic {topic} is not at {brokers}; make it with `clairvio topics`"),
                );
            }
            Ok(found) if found == assigned => last_reason.clear(),
            // All of them from the beginning: entries may come more than once.
            Ok(found) => match from_the_beginning(topic, &found).and_then(|list| consumer.assign(&list)) {
                Ok(()) => {
                    tracing::info!(topic, partitions = found.len(), "following");
                    last_reason.clear();
                    assigned = found;
                }
                Err(error) => warn_once(&mut last_reason, format!("follow topic {topic}: {error}")),
            },
            Err(reason) => warn_once(&mut last_reason, format!("ask kafka at {brokers}: {reason}")),
        }
        let interval = if assigned.is_empty() { MISSING_INTERVAL } else { PARTITIONS_INTERVAL };
        tokio::time::sleep(interval).await;
    }
}

fn warn_once(last_reason: &mut String, reason: String) {
    if reason != *last_reason {
        tracing::warn!("{reason}; trying again");
        *last_reason = reason;
    }
}

async fn partitions(consumer: &Arc<StreamConsumer>, topic: &str) -> Result<BTreeSet<i32>, String> {
    let (asking, topic) = (Arc::clone(consumer), topic.to_owned());
    let asked = tokio::task::spawn_blocking(move || {
        let metadata = asking.fetch_metadata(Some(&topic), METADATA_TIMEOUT)?;
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        Ok::<_, KafkaError>(partitions.map(|partition| partition.id()).collect())
    });
    match asked.await {
        Ok(found) => found.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

fn from_the_beginning(topic: &str, partitions: &BTreeSet<i32>) -> Result<TopicPartitionList, KafkaError> {
    let places: HashMap<_, _> =
        partitions.iter().map(|partition| ((topic.to_owned(), *partition), Offset::Beginning)).collect();
    TopicPartitionList::from_topic_map(&places)
}

/// Never ends.
async fn receive(consumer: &StreamConsumer, mut on_entry: impl FnMut(Entry)) {
    loop {
        match consumer.recv().await {
            Ok(message) => {
                if let Some(entry) = entry_of(&message) {
                    on_entry(entry);
                }
            }
            // The client tries again by itself.
            Err(error) => tracing::debug!(%error, "read control entries"),
        }
    }
}

fn entry_of(message: &BorrowedMessage<'_>) -> Option<Entry> {
    // Without a value it says that the entry of this key is gone.
    let value = message.payload()?;
    match Entry::decode(message.key().unwrap_or_default(), value) {
        Ok(entry) => Some(entry),
        Err(EntryError::Kind) => None,
        Err(error) => {
            let (partition, offset) = (message.partition(), message.offset());
            tracing::error!(partition, offset, %error, "control entry cannot be read; it is left out");
            None
        }
    }
}

/// Entries were not written, or it is unknown whether they were.
#[derive(Debug, Error)]
#[error("write control entries")]
pub struct PublishError(#[from] KafkaError);

/// Writes entries.
pub struct Publisher {
    config: ControlConfig,
    client_id: String,
    producer: FutureProducer,
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Publisher {
    /// Only a configuration that cannot be used is an error.
    pub fn new(config: &ControlConfig, client_id: &str) -> Result<Self, KafkaError> {
        let producer = producer(config, client_id)?;
        Ok(Self { config: config.clone(), client_id: client_id.to_owned(), producer })
    }

    /// Writes these records, each a key and a value, in this order, and waits until Kafka has all of them. One without a value
    /// removes the entry of its key. After an error any of them may be there.
    pub async fn publish(&mut self, records: &[(String, Option<Vec<u8>>)]) -> Result<(), PublishError> {
        // One with a fatal error never sends again.
        if self.producer.client().fatal_error().is_some() {
            self.producer = producer(&self.config, &self.client_id)?;
        }
        let sending = records.iter().map(|(key, value)| {
            let mut record = FutureRecord::<_, Vec<u8>>::to(&self.config.topic).key(key);
            record.payload = value.as_ref();
            let sending = self.producer.send(record, DELIVERY_TIMEOUT);
            async { sending.await.map_err(|(error, _)| error) }
        });
        try_join_all(sending).await?;
        Ok(())
    }
}

fn producer(config: &ControlConfig, client_id: &str) -> Result<FutureProducer, KafkaError> {
    client_of(&config.brokers, client_id)
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", "0")
        .set("message.timeout.ms", DELIVERY_TIMEOUT.as_millis().to_string())
        .create()
}
