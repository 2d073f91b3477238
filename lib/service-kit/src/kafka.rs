//! Kafka: how clients are configured, and the topics.

pub mod topics;

use rdkafka::ClientConfig;
use schemas::limits::KAFKA_MESSAGE_BYTES_MAX;

use crate::config::kafka::KafkaConfig;

/// What all clients have in common.
pub fn client(config: &KafkaConfig, client_id: &str) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", &config.brokers)
        .set("client.id", client_id)
        .set("message.max.bytes", KAFKA_MESSAGE_BYTES_MAX.to_string())
        .set("socket.keepalive.enable", "true")
        // A restarted broker is found again within this.
        .set("reconnect.backoff.max.ms", "2000");
    client
}
