//! Kafka, Postgres and S3 going away and coming back.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use devstack::{DeploymentOptions, Part};
use tokio::time::Instant;
use virtual_sdk::sdk::random_attempt;
use virtual_sdk::{Body, Comparison, Encoding, Form, Seen, until};

use crate::harness::{SOON, System, metric, run_on, start_stack};
use crate::load::{self, small_batch, wait_readyz};

/// What services say while a part is away: that it is, and that they try again.
const EXPECTED: &[&str] = &[
    "part is down",
    "trying again",
    "pass failed",
    "ask the index",
    "read session",
    "produce record",
    "give back partitions",
    "stop reading partition",
    "read partition",
    "rebalance",
    "ask where the log begins and ends",
    "the topic is away",
    "testing the connection",
];

/// An edge that knows that Kafka is away answers within this.
const REFUSED_WITHIN: Duration = Duration::from_secs(3);

const BATCHERS: usize = 2;
const FLUSHES: &str = "batcher_flushes_total";

pub(super) async fn of_parts(name: &str) -> Result<Comparison> {
    let options = DeploymentOptions { edges: 2, batchers: BATCHERS, ..DeploymentOptions::named(name) }
        .with("batcher", "CLAIRVIO_FLUSH_AGE_MS", 200)
        .with("compactor", "CLAIRVIO_RUN_AGE_MS", 1_500)
        .with("", "CLAIRVIO_SESSION_SILENCE_MS", 5_000);
    let stack = start_stack().await?;
    let outcome = run_on(&stack, options, EXPECTED, async |system| {
        let link = system.link(name).await?;
        let sdks = [system.sdk(1)?, system.sdk(2)?];
        let stop = AtomicBool::new(false);
        let faults = async {
            without_kafka(system).await.context("without kafka")?;
            let noticing = [
                (Part::Postgres, [("batcher", 1), ("batcher", 2), ("retention-worker", 1)].as_slice()),
                (Part::S3, &[("batcher", 1), ("batcher", 2)]),
            ];
            for (part, services) in noticing {
                let services = services.iter().map(|(kind, number)| system.service(kind, *number));
                let services: Vec<String> = services.collect();
                // Both batchers are in the middle of flushes: what is killed is what they publish to.
                for number in 1..=BATCHERS {
                    wait_publishing(system, number).await?;
                }
                system.stack.kill(part).await?;
                for service in &services {
                    wait_readyz(system, service, 503).await.with_context(|| format!("without {part}"))?;
                }
                // Edges need neither.
                wait_readyz(system, &system.service("ingest-edge", 1), 200).await?;
                system.stack.restart(part).await?;
                for service in &services {
                    wait_readyz(system, service, 200).await.with_context(|| format!("{part} is back"))?;
                }
            }
            Ok(())
        };
        let sent = load::load_during(load::load(system, &sdks, &link, 2, 30, &stop), &stop, faults).await?;
        ensure!(sent > 50, "a load of {sent} batches is none");
        load::count_settled(system).await
    })
    .await;
    let stopped = stack.stop().await;
    outcome.and_then(|comparison| stopped.map(|()| comparison))
}

/// Waits until a batcher has published something more. One that has no partitions does not notice what it publishes to going
/// away, and gets none while the other cannot read from the index where to go on.
async fn wait_publishing(system: &System<'_>, number: usize) -> Result<()> {
    let admin = system.admin_url("batcher", number)?;
    let before = metric(&admin, FLUSHES).await;
    until("the batcher publishes", SOON, || async {
        let now = metric(&admin, FLUSHES).await;
        if now > before { Seen::Done(()) } else { Seen::not_yet(format_args!("{FLUSHES} is {now}")) }
    })
    .await?;
    Ok(())
}

async fn without_kafka(system: &System<'_>) -> Result<()> {
    let (sdk, link) = (system.sdk(1)?, system.link("without-kafka").await?);
    let session = load::begin(system, &sdk, &link).await?;
    let withdrawing = sdk.accept(&link.token, "v", &random_attempt()).await?;
    let edge = system.service("ingest-edge", 1);
    system.stack.kill(Part::Kafka).await?;
    wait_readyz(system, &edge, 503).await?;
    let batch = small_batch(session.id, 0, 0, true, 100)?;
    let body = Body::of_batch(&batch, Form::Array, Encoding::Identity)?;
    for _ in 0..5 {
        let begun = Instant::now();
        let refused = sdk.send(&session, 0, 0, true, &body).await.err().context("a batch was acknowledged")?;
        ensure!(refused.status() == Some(503), "without Kafka the edge answers {refused}");
        ensure!(refused.refused().is_some_and(|refused| refused.retry_after.is_some()), "without Retry-After");
        ensure!(begun.elapsed() < REFUSED_WITHIN, "it took {:.1} s to say so", begun.elapsed().as_secs_f32());
    }
    let refused = sdk.accept(&link.token, "v", "attempt").await.err().context("a consent was acknowledged")?;
    ensure!(refused.status() == Some(503), "without Kafka a consent is answered {refused}");
    // Whoever takes consent back now is not told that everybody knows; this edge takes nothing more, and tells it later.
    let unheard = sdk.withdraw(&withdrawing).await.err().context("a withdrawal was acknowledged")?;
    ensure!(unheard.status() == Some(503), "without Kafka a withdrawal is answered {unheard}");
    let refused =
        sdk.send(&withdrawing, 0, 0, true, &body).await.err().context("a withdrawn session's batch was taken")?;
    ensure!(refused.code() == "consent_withdrawn", "a withdrawn session is answered {refused}");
    system.stack.restart(Part::Kafka).await?;
    wait_readyz(system, &edge, 200).await?;
    until("the withdrawal is honoured, although nobody asked again", SOON, || async {
        match system.api.session(withdrawing.id).await {
            Err(error) if error.status() == Some(410) => Seen::Done(()),
            Err(error) => Seen::not_yet(error),
            Ok(_) => Seen::not_yet("it can be read"),
        }
    })
    .await?;
    load::send(system, &sdk, &session, &batch, Form::Array, Encoding::Identity).await
}
