//! Producing: a record is acknowledged when all in-sync replicas have it (E1).

use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{FutureProducer, FutureRecord, Producer as _};
use schemas::codes::Refusal;
use schemas::{ErrorCode, limits};
use service_kit::config::kafka::KafkaConfig;
use service_kit::health::Part;
use service_kit::kafka;
use service_kit::shutdown::Shutdown;

use crate::metrics;

/// Bytes of records that may wait for Kafka; beyond it the edge says 503.
const QUEUE_KIB_MAX: usize = 64 * limits::KIB;

/// The producer of events.
#[derive(Clone)]
pub(crate) struct Producer {
    inner: FutureProducer,
    topic: String,
}

impl Producer {
    pub(crate) fn new(config: &KafkaConfig) -> Result<Self, KafkaError> {
        let inner = kafka::client(config, "ingest-edge")
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "5")
            .set("message.timeout.ms", config.delivery_timeout.as_millis().to_string())
            .set("queue.buffering.max.kbytes", QUEUE_KIB_MAX.to_string())
            .set("queue.buffering.max.messages", "100000")
            .create()?;
        Ok(Self { inner, topic: config.topic_events.clone() })
    }

    /// Sends one record and waits until Kafka has it.
    pub(crate) async fn send(&self, key: &[u8], value: &[u8]) -> Result<(), Refusal> {
        let begun = Instant::now();
        // `send` would sleep on a full queue; here a full queue is an answer.
        let sent = self.inner.send_result(FutureRecord::to(&self.topic).key(key).payload(value));
        let delivery = match sent {
            Ok(delivery) => delivery,
            Err((error, _)) => return Err(refuse(&error)),
        };
        match delivery.await {
            Ok(Ok(_)) => {
                ::metrics::histogram!(metrics::PRODUCE_SECONDS).record(begun.elapsed().as_secs_f64());
                ::metrics::counter!(metrics::BYTES_PRODUCED).increment(value.len() as u64);
                Ok(())
            }
            Ok(Err((error, _))) => Err(refuse(&error)),
            Err(_) => Err(ErrorCode::DeliveryUnknown.into()),
        }
    }

    /// Tells the part whether Kafka and the topic are there, until the shutdown.
    pub(crate) async fn watch(self, config: KafkaConfig, part: Part, shutdown: Shutdown) {
        kafka::watch(config, part, shutdown, move |topic, timeout| {
            // A producer with a fatal error never sends again, however well its brokers are: only a restart helps.
            if let Some((code, _)) = self.inner.client().fatal_error() {
                return Err(KafkaError::MessageProduction(code));
            }
            self.inner.client().fetch_metadata(Some(topic), timeout)
        })
        .await;
    }

    /// Waits until nothing is on its way any more.
    pub(crate) async fn flush(&self, timeout: Duration) -> Result<(), KafkaError> {
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || inner.flush(timeout)).await.map_err(|_| KafkaError::Canceled)?
    }
}

fn refuse(error: &KafkaError) -> Refusal {
    let code = error.rdkafka_error_code();
    let (reason, refusal) = match code {
        Some(RDKafkaErrorCode::QueueFull) => ("queue_full", ErrorCode::Backpressure.into()),
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => {
            ("too_large", Refusal::limit(ErrorCode::EventTooLarge, limits::RECORD_PAYLOAD_BYTES_MAX))
        }
        Some(RDKafkaErrorCode::MessageTimedOut) => ("timed_out", ErrorCode::DeliveryUnknown.into()),
        _ => ("other", ErrorCode::DeliveryUnknown.into()),
    };
    ::metrics::counter!(metrics::PRODUCE_ERRORS, "reason" => reason).increment(1);
    if reason == "other" {
        tracing::warn!(%error, "produce record");
    }
    refusal
}
