//! Kafka: how clients are configured, and the topics.

pub mod control;
pub mod topics;

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
pub use rdkafka::error::KafkaError;
use rdkafka::metadata::Metadata;
use schemas::limits::KAFKA_MESSAGE_BYTES_MAX;

use crate::config::kafka::KafkaConfig;
use crate::health::Part;
use crate::retry::Reasons;
use crate::shutdown::Shutdown;

const PROBE_INTERVAL: Duration = Duration::from_secs(2);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// What all clients have in common.
pub fn client(config: &KafkaConfig, client_id: &str) -> ClientConfig {
    client_of(&config.brokers, client_id)
}

fn client_of(brokers: &str, client_id: &str) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", brokers)
        .set("client.id", client_id)
        .set("message.max.bytes", KAFKA_MESSAGE_BYTES_MAX.to_string())
        .set("socket.keepalive.enable", "true")
        // Partitions that a topic gets are noticed within this, whoever else asks or does not; the default is 5 minutes.
        .set("topic.metadata.refresh.interval.ms", "30000")
        // A restarted broker is found again within this.
        .set("reconnect.backoff.max.ms", "2000");
    client
}

/// Asks Kafka again and again, until the shutdown, whether it and the topic of events are there, and tells the part.
/// `fetch` asks with a client of the caller's: topic, time-out.
pub async fn watch<F>(config: KafkaConfig, part: Part, shutdown: Shutdown, fetch: F)
where
    F: Fn(&str, Duration) -> Result<Metadata, KafkaError> + Send + Sync + 'static,
{
    let fetch = Arc::new(fetch);
    let KafkaConfig { brokers, topic_events, .. } = config;
    // A part that goes down after it was up is told by its health; until it first is up, each new reason is told here.
    let (mut was_up, mut reasons) = (false, Reasons::default());
    loop {
        let (fetch, topic) = (Arc::clone(&fetch), topic_events.clone());
        let probe = tokio::task::spawn_blocking(move || {
            let metadata = fetch(&topic, PROBE_TIMEOUT)?;
            Ok::<_, KafkaError>(metadata.topics().iter().any(|found| !found.partitions().is_empty()))
        });
        let reason = match probe.await {
            Ok(Ok(true)) => None,
            Ok(Ok(false)) => Some(format!("topic {topic_events} is not at {brokers}; make it with `clairvio topics`")),
            Ok(Err(error)) => Some(format!("ask kafka at {brokers}: {error}")),
            Err(error) => Some(format!("ask kafka at {brokers}: {error}")),
        };
        match reason {
            None => {
                was_up = true;
                part.up();
            }
            Some(reason) => {
                if !was_up {
                    reasons.warn(reason.clone());
                }
                part.down(reason);
            }
        }
        if !shutdown.sleep(PROBE_INTERVAL).await {
            return;
        }
    }
}
