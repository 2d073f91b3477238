//! What a log held at one moment, and how much of it the index has by now: by partition, as the index alone says.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use rdkafka::consumer::{BaseConsumer, Consumer};
use service_kit::config::kafka::KafkaConfig;
use service_kit::config::postgres::PostgresConfig;
use service_kit::kafka;
use storage::index::Index;

/// For one answer of Kafka.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// How far the index is in one partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The first offset that it has not.
    pub next: u64,
    /// How often the partition was taken over.
    pub epoch: u64,
}

/// The ends of a topic's partitions at one moment, and the index that is to reach them.
#[derive(Debug)]
pub struct Backlog {
    topic: String,
    ends: BTreeMap<i32, u64>,
    index: Index,
}

impl Backlog {
    /// Asks Kafka for the ends as they are now.
    pub(crate) async fn of(brokers: &str, topic: &str, database_url: &str) -> anyhow::Result<Backlog> {
        let config = KafkaConfig {
            brokers: brokers.to_owned(),
            topic_events: topic.to_owned(),
            delivery_timeout: Duration::from_secs(5),
        };
        let index = Index::new(&PostgresConfig { url: database_url.to_owned(), connections_max: 1 })?;
        let ends = tokio::task::spawn_blocking(move || ends(&config)).await.context("ask kafka for ends")??;
        Ok(Backlog { topic: topic.to_owned(), ends, index })
    }

    /// The offset behind the last record of each partition.
    pub fn ends(&self) -> &BTreeMap<i32, u64> {
        &self.ends
    }

    /// How far the index is now; a partition that nobody took over yet is left out.
    pub async fn progress(&self) -> anyhow::Result<BTreeMap<i32, Progress>> {
        let rows: Vec<(i32, i64, i64)> =
            sqlx::query_as("select partition, next_offset, epoch from partition_progress where topic = $1")
                .bind(&self.topic)
                .fetch_all(self.index.pool())
                .await
                .context("ask index for progress")?;
        rows.into_iter()
            .map(|(partition, next, epoch)| {
                let progress = Progress { next: next.try_into()?, epoch: epoch.try_into()? };
                anyhow::Ok((partition, progress))
            })
            .collect::<anyhow::Result<_>>()
            .context("read progress")
    }
}

fn ends(config: &KafkaConfig) -> anyhow::Result<BTreeMap<i32, u64>> {
    let topic = &config.topic_events;
    let client: BaseConsumer = kafka::client(config, "devstack").create().context("make kafka client")?;
    let metadata = client.fetch_metadata(Some(topic), ASK_TIMEOUT).with_context(|| format!("ask kafka for {topic}"))?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let partitions = found.with_context(|| format!("find topic {topic}"))?.partitions();
    let ends = partitions.iter().map(|partition| {
        let (_, end) = client
            .fetch_watermarks(topic, partition.id(), ASK_TIMEOUT)
            .with_context(|| format!("ask kafka for the end of {topic}, partition {}", partition.id()))?;
        Ok((partition.id(), end.try_into().context("read end of partition")?))
    });
    ends.collect()
}
