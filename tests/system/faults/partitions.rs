//! A topic that gets more partitions.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use devstack::Stack;
use futures::future::try_join_all;
use rdkafka::admin::{AdminOptions, NewPartitions};
use virtual_sdk::{Comparison, Encoding, Form, Seen, Session, until};

use super::{kafka_admin, progress, quick, under_load};
use crate::harness::{SOON, System, run_on};
use crate::load::{self, small_batch};

const PARTITIONS_BEFORE: i32 = 4;
const PARTITIONS_AFTER: i32 = 8;
/// Sessions that run all the while. Of each the key moves with a chance of one half.
const SESSIONS: usize = 24;
/// Within this, all clients must have taken note: they look every 30 s at the latest.
const NOTED_WITHIN: Duration = Duration::from_secs(40);

pub(super) async fn are_added(stack: &Stack, name: &str) -> Result<Comparison> {
    let options = devstack::DeploymentOptions { batchers: 2, partitions: PARTITIONS_BEFORE, ..quick(name) };
    // A client may be assigned partitions before it has asked Kafka which there are.
    let expected = ["error=Meta data fetch error: UnknownPartition (Local: Unknown partition)"];
    run_on(stack, options, &expected, async |system| {
        let growing = async {
            let (link, sdk) = (system.link("running").await?, system.sdk(1)?);
            let sessions: Vec<Session> = try_join_all((0..SESSIONS).map(|_| load::begin(system, &sdk, &link))).await?;
            let mut seq = 0;
            let mut send_all = async |end: bool| {
                let sending = sessions.iter().map(|session| async {
                    let batch = small_batch(session.id, 0, seq, end, 100)?;
                    load::send(system, &sdk, session, &batch, Form::Array, Encoding::Identity).await
                });
                try_join_all(sending).await?;
                seq += 1;
                anyhow::Ok(())
            };
            send_all(false).await?;
            until("all sessions have a row", SOON, || async {
                let known = system.count("select count(*) from session where cardinality(partitions) = 1").await;
                match known {
                    Ok(known) if known >= SESSIONS as i64 => Seen::Done(()),
                    other => Seen::not_yet(format_args!("{other:?}")),
                }
            })
            .await?;
            add_partitions(system).await?;
            let since = Instant::now();
            loop {
                send_all(false).await?;
                let moved = system.count("select count(*) from session where cardinality(partitions) > 1").await?;
                let written = progress(system).await?.into_values().filter(|(next, _)| *next > 0).count();
                let elapsed = since.elapsed();
                if moved > 0 && written == PARTITIONS_AFTER as usize {
                    eprintln!(
                        "{}: all partitions are written and read after {:.1} s",
                        system.name,
                        elapsed.as_secs_f32()
                    );
                    break;
                }
                ensure!(elapsed < NOTED_WITHIN, "{moved} sessions moved and {written} partitions are written");
            }
            send_all(true).await
        };
        under_load(system, 4, 40, growing).await
    })
    .await
}

async fn add_partitions(system: &System<'_>) -> Result<()> {
    let topic = &system.deployment.topic;
    let more = NewPartitions::new(topic, PARTITIONS_AFTER as usize);
    let made = kafka_admin(system)?.create_partitions([&more], &AdminOptions::new()).await.context("add partitions")?;
    match made.into_iter().next() {
        Some(Ok(_)) => Ok(()),
        other => bail!("add partitions to {topic}: {other:?}"),
    }
}
