//! Kafka: brokers, topics, and how long to wait.

use std::time::Duration;

use super::{Env, Knob};

/// Settings of Kafka's clients.
#[derive(Debug, Clone)]
pub struct KafkaConfig {
    /// `host:port`, comma-separated.
    pub brokers: String,
    /// The topic of events.
    pub topic_events: String,
    /// How long a record may be on its way before its outcome counts as unknown.
    pub delivery_timeout: Duration,
}

/// Settings of those who follow or write the topic of control entries.
#[derive(Debug, Clone)]
pub struct ControlConfig {
    /// `host:port`, comma-separated.
    pub brokers: String,
    /// The topic.
    pub topic: String,
}

const BROKERS: Knob = Knob {
    name: "KAFKA_BROKERS",
    doc: "Kafka's brokers.",
    unit: "host:port, comma-separated",
    default: Some("127.0.0.1:9092"),
    secret: false,
};
const TOPIC_EVENTS: Knob = Knob {
    name: "KAFKA_TOPIC_EVENTS",
    doc: "The topic of events.",
    unit: "a topic's name",
    default: Some("session-events"),
    secret: false,
};
const TOPIC_CONTROL: Knob = Knob {
    name: "KAFKA_TOPIC_CONTROL",
    doc: "The compacted topic by which deletions are told to all services.",
    unit: "a topic's name",
    default: Some("control"),
    secret: false,
};
const DELIVERY_TIMEOUT_MS: Knob = Knob {
    name: "KAFKA_DELIVERY_TIMEOUT_MS",
    doc: "How long a record may be on its way before its outcome counts as unknown.",
    unit: "milliseconds",
    default: Some("10000"),
    secret: false,
};

/// The topic of events, for services that read no Kafka but what came through it.
pub fn topic_events(env: &mut Env<'_>) -> String {
    env.text(&TOPIC_EVENTS)
}

impl KafkaConfig {
    /// Reads the settings.
    pub fn load(env: &mut Env<'_>) -> Self {
        Self {
            brokers: env.text(&BROKERS),
            topic_events: topic_events(env),
            delivery_timeout: env.millis(&DELIVERY_TIMEOUT_MS),
        }
    }
}

impl ControlConfig {
    /// Reads the settings.
    pub fn load(env: &mut Env<'_>) -> Self {
        Self { brokers: env.text(&BROKERS), topic: env.text(&TOPIC_CONTROL) }
    }

    /// Reads the settings of a service that has the others already.
    pub fn load_beside(kafka: &KafkaConfig, env: &mut Env<'_>) -> Self {
        Self { brokers: kafka.brokers.clone(), topic: env.text(&TOPIC_CONTROL) }
    }
}
