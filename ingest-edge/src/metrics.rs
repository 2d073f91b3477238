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
pub(crate) const WITHDRAWALS: &str = "edge_withdrawals_total";
pub(crate) const TOKENS: &str = "edge_session_tokens_total";
pub(crate) const ENDED_SESSIONS: &str = "edge_ended_sessions";
pub(crate) const EDGES: &str = "edge_edges_alive";
pub(crate) const UNTOLD: &str = "edge_untold_news_total";
pub(crate) const RATE_LIMITED: &str = "edge_rate_limited_total";
pub(crate) const MASKED: &str = "edge_masked_values_total";
pub(crate) const DROPPED: &str = "edge_dropped_events_total";

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
    Counter(WITHDRAWALS, "Consents taken back, as far as Kafka acknowledged it."),
    Counter(TOKENS, "Session tokens that were taken, by how: verified, or cached from an earlier request."),
    Gauge(ENDED_SESSIONS, "Sessions that are known to be withdrawn or deleted, and refused."),
    Gauge(EDGES, "Edges that live, this one among them: rates of workspaces are shared out among them."),
    Counter(UNTOLD, "Entries that Kafka did not take on `control`. Withdrawals are told again."),
    Counter(MASKED, "Values that were masked before Kafka had them: what their batch decides alone."),
    Counter(DROPPED, "Events of which only the time was kept, since they are nothing that rrweb writes."),
    Counter(RATE_LIMITED, "Requests that were too many, by whose rate was passed and what was counted."),
];
