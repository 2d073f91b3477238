//! A log that is not what the index knows of it.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use devstack::Stack;
use futures::future::try_join_all;
use rdkafka::admin::AdminOptions;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};
use schemas::SessionId;
use schemas::http::{LinkCreated, MissingRange};
use service_kit::kafka::topics::{self, TopicSpec};
use sqlx::Row as _;
use virtual_sdk::sdk::random_attempt;
use virtual_sdk::{Body, Comparison, Content, Encoding, Form, Sdk, Seen, Session, until};

use super::{PARTITIONS, kafka_admin, kafka_client, log_of, progress, quick};
use crate::harness::{LATER, NOTICE_VERSION, SOON, System, metric, run_on};
use crate::load::{self, small_batch};

const CUT: &[&str] = &["offsets are gone from the log before they were stored"];
const GAP_OFFSETS: &str = "batcher_gap_offsets_total";
const KAFKA_TIMEOUT: Duration = Duration::from_secs(5);

/// Seqs of the session whose records are cut out: those before are stored, those after are still in the log.
const CUT_FROM: u32 = 4;
const CUT_TO: u32 = 6;
const SEQS: u32 = 12;

/// Records that were acknowledged and not stored are deleted from the log while the batcher is down.
pub(super) async fn is_cut(stack: &Stack, name: &str) -> Result<Comparison> {
    run_on(stack, quick(name), CUT, async |system| {
        let (link, sdk) = (system.link(&system.name).await?, system.sdk(1)?);
        let session = load::begin(system, &sdk, &link).await?;
        for seq in 0..CUT_FROM {
            send(system, &sdk, &session, seq).await?;
        }
        send_sessions(system, &sdk, &link, 8).await?;
        load::compare_all(system, SOON).await?;
        let partition = partition_of(system, &session).await?;
        let (stored, _) = *progress(system).await?.get(&partition).context("its partition has progress")?;

        take_batcher_down(system).await?;
        for seq in CUT_FROM..=CUT_TO {
            send_in_doubt(system, &sdk, &session, seq).await?;
        }
        let cut = stored + i64::from(CUT_TO - CUT_FROM + 1);
        let end = log_end(system, partition).await?;
        ensure!(end == cut, "the log ends at {end}, so what is before {cut} is not what the session sent");
        for seq in CUT_TO + 1..SEQS - 1 {
            send(system, &sdk, &session, seq).await?;
        }
        send_sessions(system, &sdk, &link, 8).await?;
        delete_records(system, partition, cut).await?;
        system.gaps_made.store(1, Ordering::Release);
        bring_batcher_back(system).await?;

        send(system, &sdk, &session, SEQS - 1).await?;
        let comparison = load::count_settled(system).await?;
        let gap = sqlx::query("select topic, partition, offset_first, offset_next from log_gap");
        let gap = gap.fetch_one(system.index.pool()).await.context("ask for the gap")?;
        let found: (String, i32, i64, i64) = (gap.get(0), gap.get(1), gap.get(2), gap.get(3));
        ensure!(found == (system.deployment.topic.clone(), partition, stored, cut), "B2: the gap is {found:?}");
        let counted = metric(&system.admin_url("batcher", 1)?, GAP_OFFSETS).await;
        ensure!(counted == u64::from(CUT_TO - CUT_FROM + 1), "{GAP_OFFSETS} is {counted}");
        let log = log_of(system, &system.service("batcher", 1))?;
        ensure!(CUT.iter().all(|alarm| log.contains(alarm)), "the batcher's log says nothing of the gap");
        let completeness = system.api.session(session.id).await?.completeness.context("it has batches")?;
        let hole = MissingRange { stream: 0, from: CUT_FROM, to: CUT_TO };
        ensure!(completeness.missing == [hole], "the session misses {:?}", completeness.missing);
        Ok(comparison)
    })
    .await
}

/// What the batcher and others say when their topic goes and another one comes in its place.
const MADE_ANEW: &[&str] =
    &[MADE_ANEW_ALARM, "offset out of range", "the topic is away", "part is down", "produce record", "trying again"];
const MADE_ANEW_ALARM: &str = "the topic was made anew";
/// Looks at progress, 20 ms apart, that must all show the same: much longer than a flush takes.
const LOOKS: usize = 150;

/// How far the new topic's partitions reach when the batcher sees them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Reaches {
    /// They end before the offset that is stored next.
    LessFar,
    /// They have a record at that offset, another one than was expected.
    Farther,
}

/// The topic is deleted and made anew while the batcher is down.
pub(super) async fn is_made_anew(stack: &Stack, name: &str, reaches: Reaches) -> Result<Comparison> {
    run_on(stack, quick(name), MADE_ANEW, async |system| {
        let (link, sdk) = (system.link(&system.name).await?, system.sdk(1)?);
        while progress(system).await?.into_values().filter(|(next, _)| *next > 2).count() < PARTITIONS {
            send_sessions(system, &sdk, &link, 8).await?;
            load::compare_all(system, SOON).await?;
        }
        take_batcher_down(system).await?;
        let stored = offsets(system).await?;
        make_topic_anew(system).await?;
        // Two records: no partition is as long as it was.
        let mut foreign = vec![send_foreign(&sdk, &link).await?];
        while reaches == Reaches::Farther && !is_longer(system, &stored).await? {
            foreign.extend(try_join_all((0..8).map(|_| send_foreign(&sdk, &link))).await?);
        }
        bring_batcher_back(system).await?;

        until("every partition has raised the alarm", SOON, || async {
            let log = match log_of(system, &system.service("batcher", 1)) {
                Ok(log) => log,
                Err(error) => return Seen::not_yet(error),
            };
            let alarms: Vec<&str> = log.lines().filter(|line| line.contains(MADE_ANEW_ALARM)).collect();
            let of = |partition: usize| alarms.iter().any(|line| line.contains(&format!("partition={partition}")));
            let raised = (0..PARTITIONS).filter(|partition| of(*partition)).count();
            if raised == PARTITIONS { Seen::Done(()) } else { Seen::not_yet(format_args!("{raised} have")) }
        })
        .await?;
        let halted = progress(system).await?;
        let mut looks = tokio::time::interval(Duration::from_millis(20));
        for _ in 0..LOOKS {
            looks.tick().await;
            let now = progress(system).await?;
            ensure!(now == halted, "a partition that is halted went from {halted:?} to {now:?}");
        }
        let now = offsets(system).await?;
        ensure!(now == stored, "records of the new topic were stored as the old one's: {stored:?} became {now:?}");
        for session in foreign {
            let status = system.api.session(session).await.err().and_then(|error| error.status());
            ensure!(status == Some(404), "a session of the new topic is there: {status:?}");
        }
        load::count_settled(system).await
    })
    .await
}

async fn send(system: &System<'_>, sdk: &Sdk, session: &Session, seq: u32) -> Result<()> {
    let batch = small_batch(session.id, 0, seq, seq + 1 == SEQS, 100)?;
    load::send(system, sdk, session, &batch, Form::Array, Encoding::Identity).await
}

/// Sends a batch that is going to be lost: it may be there or not.
async fn send_in_doubt(system: &System<'_>, sdk: &Sdk, session: &Session, seq: u32) -> Result<()> {
    let batch = small_batch(session.id, 0, seq, false, 100)?;
    let body = Body::of_batch(&batch, Form::Array, Encoding::Identity)?;
    system.ledger.doubt(session.id, 0, seq, Content::Own(batch));
    sdk.send_until_acknowledged(session, 0, seq, false, &body, load::deadline()).await?;
    Ok(())
}

/// Sends short sessions, whole.
async fn send_sessions(system: &System<'_>, sdk: &Sdk, link: &LinkCreated, sessions: usize) -> Result<()> {
    const BATCHES: u32 = 3;
    let sending = (0..sessions).map(|_| async {
        let session = load::begin(system, sdk, link).await?;
        for seq in 0..BATCHES {
            let batch = small_batch(session.id, 0, seq, seq + 1 == BATCHES, 100)?;
            load::send(system, sdk, &session, &batch, Form::Lines, Encoding::Zstd).await?;
        }
        anyhow::Ok(())
    });
    try_join_all(sending).await?;
    Ok(())
}

/// Sends a session that nobody may ever read: it lies in another log than the one that is stored.
async fn send_foreign(sdk: &Sdk, link: &LinkCreated) -> Result<SessionId> {
    let accepted = sdk.accept_until_answered(&link.token, NOTICE_VERSION, &random_attempt(), load::deadline()).await?;
    let session = accepted.answer;
    let batch = small_batch(session.id, 0, 0, true, 100)?;
    let body = Body::of_batch(&batch, Form::Array, Encoding::Identity)?;
    sdk.send_until_acknowledged(&session, 0, 0, true, &body, load::deadline()).await?;
    Ok(session.id)
}

/// Whether the log of every partition reaches beyond the offset that is stored next.
async fn is_longer(system: &System<'_>, stored: &BTreeMap<i32, i64>) -> Result<bool> {
    for (partition, next) in stored {
        if log_end(system, *partition).await? <= *next {
            return Ok(false);
        }
    }
    Ok(true)
}

async fn partition_of(system: &System<'_>, session: &Session) -> Result<i32> {
    let partitions: Vec<i32> = sqlx::query_scalar("select partitions from session where id = $1")
        .bind(session.id.0)
        .fetch_one(system.index.pool())
        .await
        .context("ask for the session's partitions")?;
    match partitions.as_slice() {
        [partition] => Ok(*partition),
        other => bail!("the session lies in partitions {other:?}"),
    }
}

/// Next offsets by partition.
async fn offsets(system: &System<'_>) -> Result<BTreeMap<i32, i64>> {
    Ok(progress(system).await?.into_iter().map(|(partition, (next, _))| (partition, next)).collect())
}

async fn take_batcher_down(system: &System<'_>) -> Result<()> {
    let (supervisor, batcher) = (&system.deployment.supervisor, system.service("batcher", 1));
    supervisor.set_restart(&batcher, false)?;
    supervisor.kill(&batcher).await
}

async fn bring_batcher_back(system: &System<'_>) -> Result<()> {
    let (supervisor, batcher) = (&system.deployment.supervisor, system.service("batcher", 1));
    supervisor.set_restart(&batcher, true)?;
    supervisor.restart(&batcher).await?;
    supervisor.wait_ready(&batcher, SOON).await
}

/// The offset behind a partition's last record.
async fn log_end(system: &System<'_>, partition: i32) -> Result<i64> {
    let consumer: BaseConsumer = kafka_client(system).create().context("make kafka's client")?;
    let topic = system.deployment.topic.clone();
    let asking = tokio::task::spawn_blocking(move || consumer.fetch_watermarks(&topic, partition, KAFKA_TIMEOUT));
    let (_, end) = asking.await?.context("ask for the log's end")?;
    Ok(end)
}

async fn delete_records(system: &System<'_>, partition: i32, before: i64) -> Result<()> {
    let mut places = TopicPartitionList::new();
    places.add_partition_offset(&system.deployment.topic, partition, Offset::Offset(before))?;
    let options = AdminOptions::new().operation_timeout(Some(KAFKA_TIMEOUT));
    let deleted = kafka_admin(system)?.delete_records(&places, &options).await.context("delete records")?;
    for place in deleted.elements() {
        place.error().context("delete records")?;
        ensure!(place.offset() == Offset::Offset(before), "the log begins at {:?}, not at {before}", place.offset());
    }
    Ok(())
}

async fn make_topic_anew(system: &System<'_>) -> Result<()> {
    let (topic, options) = (&system.deployment.topic, AdminOptions::new().operation_timeout(Some(KAFKA_TIMEOUT)));
    for deleted in kafka_admin(system)?.delete_topics(&[topic], &options).await.context("delete topic")? {
        deleted.map_err(|(topic, code)| anyhow::anyhow!("delete topic {topic}: {code}"))?;
    }
    let spec = TopicSpec {
        name: topic.clone(),
        partitions: i32::try_from(PARTITIONS)?,
        replication: 1,
        min_insync: 1,
        retention: Duration::from_secs(72 * 3600),
    };
    let client = kafka_client(system);
    until("the topic is made anew", LATER, || async {
        match topics::ensure(&client, &spec).await {
            Ok(true) => Seen::Done(()),
            Ok(false) => Seen::not_yet("the old one is still there"),
            Err(error) => Seen::not_yet(error),
        }
    })
    .await?;
    Ok(())
}
