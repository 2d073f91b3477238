//! Topics: made and checked, so that no broker's default decides about durability.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::types::RDKafkaErrorCode;
use schemas::limits::KAFKA_MESSAGE_BYTES_MAX;
use thiserror::Error;

/// How a topic is to be that keeps records for a time: that of events.
#[derive(Debug, Clone)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// Its partitions, when it is made.
    pub partitions: i32,
    /// Copies of each record.
    pub replication: i32,
    /// Copies that must exist before a record is acknowledged.
    pub min_insync: u32,
    /// How long records are kept (R).
    pub retention: Duration,
}

/// How a topic is to be that keeps the latest record of each key: `control`.
#[derive(Debug, Clone)]
pub struct CompactedTopicSpec {
    /// Its name.
    pub name: String,
    /// Its partitions, when it is made.
    pub partitions: i32,
    /// Copies of each record.
    pub replication: i32,
    /// Copies that must exist before a record is acknowledged.
    pub min_insync: u32,
}

/// Why topics are not as they should be.
#[derive(Debug, Error)]
pub enum TopicsError {
    /// Kafka did not answer, or refused.
    #[error("make topic {topic}: {code}\n  hint: check that the brokers are reachable and have enough replicas")]
    Make {
        /// Which.
        topic: String,
        /// Kafka's word.
        code: String,
    },
    /// Kafka did not answer.
    #[error("ask kafka for topic {topic}")]
    Ask {
        /// Which.
        topic: String,
        /// Why.
        source: rdkafka::error::KafkaError,
    },
    /// A setting differs from what durability needs.
    #[error("topic {topic} has {setting}={found}, not {wanted}\n  hint: alter the topic, or its data can be lost")]
    Differs {
        /// Which.
        topic: String,
        /// The setting.
        setting: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        wanted: String,
    },
}

/// What is compacted is what lies in closed segments.
const COMPACTED_SEGMENT: Duration = Duration::from_secs(3600);

type Settings = Vec<(&'static str, String)>;

/// What all topics have in common.
fn settings(min_insync: u32) -> Settings {
    vec![
        // An edge's wrong clock must not make records deletable.
        ("message.timestamp.type", "LogAppendTime".into()),
        ("max.message.bytes", KAFKA_MESSAGE_BYTES_MAX.to_string()),
        ("min.insync.replicas", min_insync.to_string()),
        ("unclean.leader.election.enable", "false".into()),
    ]
}

/// Makes the topic if it is absent, and checks it if it is there. `true` when it was made.
pub async fn ensure(client: &ClientConfig, spec: &TopicSpec) -> Result<bool, TopicsError> {
    let retention_ms = spec.retention.as_millis();
    let mut settings = settings(spec.min_insync);
    settings.extend([
        ("cleanup.policy", "delete".into()),
        ("retention.ms", retention_ms.to_string()),
        // Retention works by whole segments: a segment of more than a small part of it would prolong it.
        ("segment.ms", (retention_ms / 24).max(1000).to_string()),
    ]);
    let topic = NewTopic::new(&spec.name, spec.partitions, TopicReplication::Fixed(spec.replication));
    make_or_check(client, topic, &settings).await
}

/// The same for a topic that is compacted.
pub async fn ensure_compacted(client: &ClientConfig, spec: &CompactedTopicSpec) -> Result<bool, TopicsError> {
    let mut settings = settings(spec.min_insync);
    settings.extend([("cleanup.policy", "compact".into()), ("segment.ms", COMPACTED_SEGMENT.as_millis().to_string())]);
    let topic = NewTopic::new(&spec.name, spec.partitions, TopicReplication::Fixed(spec.replication));
    make_or_check(client, topic, &settings).await
}

async fn make_or_check(
    client: &ClientConfig,
    mut topic: NewTopic<'_>,
    settings: &Settings,
) -> Result<bool, TopicsError> {
    let name = topic.name.to_owned();
    let ask = |source| TopicsError::Ask { topic: name.clone(), source };
    let admin: AdminClient<DefaultClientContext> = client.create().map_err(ask)?;
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(20)));
    for (name, value) in settings {
        topic = topic.set(name, value);
    }
    let made = admin.create_topics([&topic], &options).await.map_err(ask)?;
    match made.into_iter().next() {
        Some(Ok(_)) => return Ok(true),
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => {}
        Some(Err((topic, code))) => return Err(TopicsError::Make { topic, code: code.to_string() }),
        None => return Err(TopicsError::Make { topic: name, code: "no answer".into() }),
    }
    let described = admin.describe_configs([&ResourceSpecifier::Topic(&name)], &options).await.map_err(ask)?;
    for resource in described.into_iter().flatten() {
        for (setting, wanted) in settings {
            let found = resource.get(setting).and_then(|entry| entry.value.clone()).unwrap_or_default();
            if found != *wanted {
                return Err(TopicsError::Differs { topic: name, setting, found, wanted: wanted.clone() });
            }
        }
    }
    Ok(false)
}
