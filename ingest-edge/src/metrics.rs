//! The edge's metrics.

use service_kit::telemetry::Described::{self, Counter, Gauge, Histogram};

pub(crate) const REQUESTS: &str = "edge_requests_total";
pub(crate) const REFUSALS: &str = "edge_refusals_total";
pub(crate) const EVENTS: &str = "edge_events_total";
pub(crate) const BYTES_RECEIVED: &str = "edge_received_bytes_total";
pub(crate) const BYTES_DECODED: &str = "edge_decoded_bytes_total";
pub(crate) const BYTES_PRODUCED: &str = "edge_produced_bytes_total";
pub(crate) const PRODUCE_ERRORS: &str = "edge_produce_errors_total";
pub(crate) const PRODUCE_SECONDS: &str = "edge_produce_seconds";
pub(crate) const BODIES_HELD: &str = "edge_bodies_held_bytes";
pub(crate) const EPOCH: &str = "edge_transport_epoch";
pub(crate) const DECLINES: &str = "edge_declines_total";

pub(crate) const ALL: &[Described] = &[
    Counter(REQUESTS, "Requests, by route and status."),
    Counter(REFUSALS, "Refused requests, by code."),
    Counter(EVENTS, "Events acknowledged."),
    Counter(BYTES_RECEIVED, "Bytes of bodies as they came."),
    Counter(BYTES_DECODED, "Bytes of events after decoding, acknowledged."),
    Counter(BYTES_PRODUCED, "Bytes of records that Kafka acknowledged."),
    Counter(PRODUCE_ERRORS, "Records that Kafka did not acknowledge, by reason."),
    Histogram(PRODUCE_SECONDS, "From handing a record over until Kafka's acknowledgement."),
    Gauge(BODIES_HELD, "Bytes of bodies held right now."),
    Gauge(EPOCH, "The transport epoch that records are sealed under."),
    Counter(DECLINES, "Consents declined."),
];
