//! The compacted topic `control`: followed by whoever has to know, written by whoever has an outbox.
//!
//! A follower reads the whole topic from its beginning and then goes on for ever. It commits nothing and joins no group: each
//! process needs every entry. Kafka being away delays it and ends nothing; whoever must not go on without the news asks
//! [`Following`] how old its knowledge is.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use rdkafka::Message as _;
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::KafkaError;
use rdkafka::message::BorrowedMessage;
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use rdkafka::{Offset, TopicPartitionList};
use schemas::control::{Entry, EntryError};
use thiserror::Error;
use tokio::sync::Notify;

use super::client_of;
use crate::config::kafka::ControlConfig;
use crate::health::Part;
use crate::retry::Reasons;
use crate::shutdown::Shutdown;

/// How often the topic is looked for that was not found.
const MISSING_INTERVAL: Duration = Duration::from_secs(1);
/// How often partitions are looked for that the topic got since, by followers that may be late.
const PARTITIONS_INTERVAL: Duration = Duration::from_secs(30);
/// How often a close follower asks where the topic ends. Several times within
/// [`NEWS_SPREAD_MS`](schemas::limits::NEWS_SPREAD_MS): a question may fail.
const CONFIRM_INTERVAL: Duration = Duration::from_millis(500);
/// Entries that are taken in before others have their turn.
const RECEIVED_AT_ONCE: u64 = 256;
const METADATA_TIMEOUT: Duration = Duration::from_secs(2);
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
    start(config, client_id, shutdown, PARTITIONS_INTERVAL, on_entry).map(drop)
}

/// The same, and gives what tells how old the follower's knowledge is: Kafka is asked twice a second where the topic ends.
pub fn follow_closely(
    config: &ControlConfig,
    client_id: &str,
    shutdown: Shutdown,
    on_entry: impl FnMut(Entry) + Send + 'static,
) -> Result<Following, KafkaError> {
    start(config, client_id, shutdown, CONFIRM_INTERVAL, on_entry)
}

/// How far a follower is.
#[derive(Debug, Clone, Default)]
pub struct Following(Arc<Reached>);

#[derive(Debug, Default)]
struct Reached {
    /// Behind the last entry of each partition that was acted upon.
    next_offsets: Mutex<BTreeMap<i32, i64>>,
    moved: Notify,
    confirmed: Mutex<Option<Instant>>,
}

impl Following {
    /// Whether everything is known that Kafka had acknowledged `age` ago. Once it is not, nobody can say what is known.
    pub fn knows_as_of(&self, age: Duration) -> bool {
        self.0.confirmed.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() <= age)
    }

    /// Keeps a part up while all is known that Kafka had acknowledged `age` ago, until the shutdown.
    pub async fn report(self, part: Part, age: Duration, shutdown: Shutdown) {
        loop {
            if self.knows_as_of(age) {
                part.up();
            } else {
                part.down("the topic control was not read to its end lately");
            }
            if !shutdown.sleep(CONFIRM_INTERVAL).await {
                return;
            }
        }
    }

    fn confirm(&self, at: Instant) {
        *self.0.confirmed.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
    }

    fn note(&self, partition: i32, next_offset: i64) {
        self.0.next_offsets.lock().unwrap_or_else(PoisonError::into_inner).insert(partition, next_offset);
        self.0.moved.notify_one();
    }

    fn begin_anew(&self) {
        self.0.next_offsets.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn next_offsets(&self) -> BTreeMap<i32, i64> {
        self.0.next_offsets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether all partitions were read to these ends.
    fn has_reached(&self, ends: &Ends) -> bool {
        let next_offsets = self.next_offsets();
        // What lay before the beginning is gone: nobody can read it any more.
        ends.iter().all(|(partition, (low, high))| next_offsets.get(partition).unwrap_or(low).max(low) >= high)
    }
}

/// Where partitions begin and end.
type Ends = BTreeMap<i32, (i64, i64)>;

/// Whether more had been read of a partition than there is: it is another than it was.
fn is_another(read_before: &BTreeMap<i32, i64>, ends: &Ends) -> bool {
    ends.iter().any(|(partition, (_, high))| read_before.get(partition).is_some_and(|next| next > high))
}

fn start(
    config: &ControlConfig,
    client_id: &str,
    shutdown: Shutdown,
    interval: Duration,
    on_entry: impl FnMut(Entry) + Send + 'static,
) -> Result<Following, KafkaError> {
    let consumer: StreamConsumer = client_of(&config.brokers, client_id)
        // Kafka's client wants the name of a group, also where none is joined.
        .set("group.id", format!("{client_id}-control"))
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        // The topic is compacted: its beginning is all that counts.
        .set("auto.offset.reset", "earliest")
        .create()?;
    let follower = Follower {
        consumer: Arc::new(consumer),
        topic: config.topic.clone(),
        interval,
        following: Following::default(),
    };
    let (brokers, following) = (config.brokers.clone(), follower.following.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = shutdown.begun() => {}
            () = follower.assign_all(&brokers) => {}
            () = follower.receive(on_entry) => {}
        }
    });
    Ok(following)
}

struct Follower {
    consumer: Arc<StreamConsumer>,
    topic: String,
    /// How often Kafka is asked for partitions and their ends.
    interval: Duration,
    following: Following,
}

impl Follower {
    /// Has all partitions read, those too that the topic gets later, and notes how far that is. Never ends.
    async fn assign_all(&self, brokers: &str) {
        let topic = &self.topic;
        let mut assigned = Vec::new();
        let mut reasons = Reasons::default();
        loop {
            let (asked, read_before) = (Instant::now(), self.following.next_offsets());
            match self.ends().await {
                Ok(ends) if ends.is_empty() => {
                    let reason = format!("topic {topic} is not at {brokers}; make it with `clairvio topics`");
                    reasons.warn(reason);
                    // When it is there again it may be another.
                    assigned.clear();
                    self.following.begin_anew();
                }
                Ok(ends) => {
                    let found: Vec<i32> = ends.keys().copied().collect();
                    if found != assigned || is_another(&read_before, &ends) {
                        // All of them from the beginning: entries may come more than once.
                        self.following.begin_anew();
                        match from_the_beginning(topic, &found).and_then(|list| self.consumer.assign(&list)) {
                            Ok(()) => {
                                tracing::info!(topic, partitions = found.len(), "following");
                                assigned = found;
                            }
                            Err(error) => {
                                reasons.warn(format!("follow topic {topic}: {error}"));
                                assigned.clear();
                            }
                        }
                    }
                    if !assigned.is_empty() {
                        reasons.clear();
                        self.await_ends(&ends, asked).await;
                    }
                }
                Err(reason) => reasons.warn(format!("ask kafka at {brokers}: {reason}")),
            }
            let interval = if assigned.is_empty() { MISSING_INTERVAL.min(self.interval) } else { self.interval };
            tokio::time::sleep(interval).await;
        }
    }

    /// Once these ends are reached, all is known that Kafka had acknowledged when it was asked for them.
    async fn await_ends(&self, ends: &Ends, asked: Instant) {
        let reached = async {
            while !self.following.has_reached(ends) {
                self.following.0.moved.notified().await;
            }
        };
        // The first reading may take long; the next question is as good as this one then.
        if tokio::time::timeout(self.interval, reached).await.is_ok() {
            self.following.confirm(asked);
        }
    }

    /// Never ends.
    async fn receive(&self, mut on_entry: impl FnMut(Entry)) {
        for received in 1_u64.. {
            if received.is_multiple_of(RECEIVED_AT_ONCE) {
                // A long reading must not keep the questions for the topic's end waiting.
                tokio::task::yield_now().await;
            }
            match self.consumer.recv().await {
                Ok(message) => {
                    if let Some(entry) = entry_of(&message) {
                        on_entry(entry);
                    }
                    self.following.note(message.partition(), message.offset() + 1);
                }
                // The client tries again by itself.
                Err(error) => tracing::debug!(%error, "read control entries"),
            }
        }
    }

    /// Where all partitions begin and end, by their leaders. Nothing when there is no such topic.
    async fn ends(&self) -> Result<Ends, String> {
        let (asking, topic) = (Arc::clone(&self.consumer), self.topic.clone());
        let asked = tokio::task::spawn_blocking(move || {
            let metadata = asking.fetch_metadata(Some(&topic), METADATA_TIMEOUT)?;
            let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
            partitions
                .map(|partition| {
                    let id = partition.id();
                    Ok((id, asking.fetch_watermarks(&topic, id, METADATA_TIMEOUT)?))
                })
                .collect::<Result<Ends, KafkaError>>()
        });
        match asked.await {
            Ok(found) => found.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    }
}

fn from_the_beginning(topic: &str, partitions: &[i32]) -> Result<TopicPartitionList, KafkaError> {
    let places: HashMap<_, _> =
        partitions.iter().map(|partition| ((topic.to_owned(), *partition), Offset::Beginning)).collect();
    TopicPartitionList::from_topic_map(&places)
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
        self.publish_each(records).await?.into_iter().try_for_each(|outcome| outcome)?;
        Ok(())
    }

    /// The same, with the outcome of each record: a partition may be away when others are not.
    pub async fn publish_each(
        &mut self,
        records: &[(String, Option<Vec<u8>>)],
    ) -> Result<Vec<Result<(), KafkaError>>, PublishError> {
        // One with a fatal error never sends again.
        if self.producer.client().fatal_error().is_some() {
            self.producer = producer(&self.config, &self.client_id)?;
        }
        let sending = records.iter().map(|(key, value)| {
            let mut record = FutureRecord::<_, Vec<u8>>::to(&self.config.topic).key(key);
            record.payload = value.as_ref();
            let sending = self.producer.send(record, DELIVERY_TIMEOUT);
            async { sending.await.map(drop).map_err(|(error, _)| error) }
        });
        Ok(join_all(sending).await)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_follower_knows_when_it_has_read_to_all_ends() {
        let following = Following::default();
        let ends = |of: [(i64, i64); 2]| Ends::from([(0, of[0]), (1, of[1])]);
        assert!(following.has_reached(&ends([(0, 0), (5, 5)])), "nothing is in it");
        assert!(!following.has_reached(&ends([(0, 2), (5, 5)])));
        following.note(0, 1);
        assert!(!following.has_reached(&ends([(0, 2), (5, 5)])));
        following.note(0, 3);
        assert!(following.has_reached(&ends([(0, 2), (5, 5)])), "more came since Kafka was asked");
        assert!(!is_another(&BTreeMap::new(), &ends([(0, 2), (5, 5)])));
        assert!(is_another(&following.next_offsets(), &ends([(0, 2), (5, 9)])), "it was made anew");
        assert!(following.has_reached(&ends([(9, 9), (5, 5)])), "what was not read was deleted");
        following.begin_anew();
        assert!(!following.has_reached(&ends([(0, 1), (5, 5)])));
    }

    #[test]
    fn knowledge_that_was_never_confirmed_is_none() {
        let following = Following::default();
        assert!(!following.knows_as_of(Duration::MAX));
        following.confirm(Instant::now());
        assert!(following.knows_as_of(Duration::from_secs(60)));
        following.confirm(Instant::now() - Duration::from_secs(2));
        assert!(!following.knows_as_of(Duration::from_secs(1)));
    }
}
