//! Topics: made and checked, so that no broker's default decides about durability.

use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::types::RDKafkaErrorCode;
use schemas::limits::KAFKA_MESSAGE_BYTES_MAX;
use thiserror::Error;

/// How the topic of events is to be.
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

impl TopicSpec {
    fn settings(&self) -> [(&'static str, String); 7] {
        let retention_ms = self.retention.as_millis();
        [
            ("cleanup.policy", "delete".into()),
            ("retention.ms", retention_ms.to_string()),
            // Retention works by whole segments: a segment of more than a small part of it would prolong it.
            ("segment.ms", (retention_ms / 24).max(1000).to_string()),
            // An edge's wrong clock must not make records deletable.
            ("message.timestamp.type", "LogAppendTime".into()),
            ("max.message.bytes", KAFKA_MESSAGE_BYTES_MAX.to_string()),
            ("min.insync.replicas", self.min_insync.to_string()),
            ("unclean.leader.election.enable", "false".into()),
        ]
    }
}

/// Makes the topic if it is absent, and checks it if it is there. `true` when it was made.
pub async fn ensure(client: &ClientConfig, spec: &TopicSpec) -> Result<bool, TopicsError> {
    let ask = |source| TopicsError::Ask { topic: spec.name.clone(), source };
    let admin: AdminClient<DefaultClientContext> = client.create().map_err(ask)?;
    let options = AdminOptions::new().operation_timeout(Some(Duration::from_secs(20)));
    let settings = spec.settings();
    let mut topic = NewTopic::new(&spec.name, spec.partitions, TopicReplication::Fixed(spec.replication));
    for (name, value) in &settings {
        topic = topic.set(name, value);
    }
    let made = admin.create_topics([&topic], &options).await.map_err(ask)?;
    match made.into_iter().next() {
        Some(Ok(_)) => return Ok(true),
        Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => {}
        Some(Err((topic, code))) => return Err(TopicsError::Make { topic, code: code.to_string() }),
        None => return Err(TopicsError::Make { topic: spec.name.clone(), code: "no answer".into() }),
    }
    let described = admin.describe_configs([&ResourceSpecifier::Topic(&spec.name)], &options).await.map_err(ask)?;
    for resource in described.into_iter().flatten() {
        for (name, wanted) in &settings {
            let found = resource.get(name).and_then(|entry| entry.value.clone()).unwrap_or_default();
            if found != *wanted {
                return Err(TopicsError::Differs {
                    topic: spec.name.clone(),
                    setting: name,
                    found,
                    wanted: wanted.clone(),
                });
            }
        }
    }
    Ok(false)
}
