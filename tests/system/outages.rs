//! Kafka, Postgres and S3 going away and coming back.

use anyhow::Result;

use crate::faults;
use crate::harness::run_round;

/// Goal: an outage of any part loses nothing that was acknowledged, and the edge says 503 quickly instead of waiting. Method:
/// on a stack of its own, kill -9 each part under a light load, wait until the services have noticed, start it again; then
/// the ledger is exact, before and after compaction.
#[test]
fn kafka_postgres_and_s3_outages_lose_nothing() -> Result<()> {
    run_round(&faults::OUTAGES)
}
