//! Consent that is taken back, and the order in which news are told.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use devstack::DeploymentOptions;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};
use schemas::control::{Entry, News};
use schemas::{LinkId, SessionId, SessionKey};
use service_kit::config::kafka::ControlConfig;
use service_kit::kafka::control::Publisher;
use service_kit::time::now_ms;
use sqlx::postgres::PgPoolOptions;
use storage::keystore::KeyRow;
use tokio::time::Instant;
use uuid::Uuid;
use virtual_sdk::{Encoding, Form, Seen, until};

use crate::harness::{LATER, SOON, System, metric, run};
use crate::load::{self, small_batch, wait_readyz};

/// From the entry on `control` until nobody can read the session.
const GONE_WITHIN: Duration = Duration::from_secs(5);
const KAFKA_TIMEOUT: Duration = Duration::from_secs(10);
const HOUR_MS: u64 = 3_600_000;
const RELAYS: [&str; 2] = ["control-plane", "retention-worker"];

/// What services say while they cannot reach Postgres.
const WITHOUT_POSTGRES: &[&str] =
    &["part is down", "trying again", "pass failed", "ask the index", "testing the connection"];

/// A record of the topic `control`: a key, and a value unless it removes the key's entry.
pub(crate) type Told = (String, Option<Vec<u8>>);

/// All that was told on `control`, in order. Compaction leaves a segment alone that is still written to.
pub(crate) async fn told(system: &System<'_>) -> Result<Vec<Told>> {
    let (brokers, topic) = (system.deployment.endpoints().kafka_brokers, system.deployment.topic_control.clone());
    tokio::task::spawn_blocking(move || consume(&brokers, &topic)).await?
}

fn consume(brokers: &str, topic: &str) -> Result<Vec<Told>> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("group.id", "reader-of-control")
        .set("enable.auto.commit", "false")
        .create()?;
    // In tests it has one partition.
    let (low, high) = consumer.fetch_watermarks(topic, 0, KAFKA_TIMEOUT)?;
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, 0, Offset::Offset(low))?;
    consumer.assign(&list)?;
    let (mut records, mut next) = (Vec::new(), low);
    while next < high {
        let Some(message) = consumer.poll(KAFKA_TIMEOUT) else { bail!("the topic ends before its watermark") };
        let message = message?;
        next = message.offset() + 1;
        let key = String::from_utf8(message.key().unwrap_or_default().to_vec())?;
        records.push((key, message.payload().map(<[u8]>::to_vec)));
    }
    Ok(records)
}

/// Waits until what was told on `control` has something.
pub(crate) async fn wait_told<T>(system: &System<'_>, find: impl Fn(&[News]) -> Option<T>) -> Result<T> {
    until("it is told", SOON, || async {
        let records = match told(system).await {
            Ok(records) => records,
            Err(error) => return Seen::not_yet(format_args!("{error:#}")),
        };
        let news = records.iter().filter_map(|(key, value)| Entry::decode(key.as_bytes(), value.as_ref()?).ok());
        let news: Vec<News> = news.map(|entry| entry.news).collect();
        find(&news).map_or_else(|| Seen::not_yet(format_args!("{} entries", news.len())), Seen::Done)
    })
    .await
    .map_err(Into::into)
}

/// Waits until the last record of this key removes it; its place, and that of the first record of another.
async fn wait_removed(system: &System<'_>, key: &str) -> Result<()> {
    until(&format!("{key} is removed"), LATER, || async {
        match told(system).await.map(|records| records.into_iter().rfind(|(told_key, _)| told_key == key)) {
            Ok(Some((_, None))) => Seen::Done(()),
            Ok(last) => Seen::not_yet(if last.is_some() { "it is there" } else { "it never was" }),
            Err(error) => Seen::not_yet(format_args!("{error:#}")),
        }
    })
    .await?;
    Ok(())
}

fn publisher(system: &System<'_>) -> Result<Publisher> {
    let config = ControlConfig {
        brokers: system.deployment.endpoints().kafka_brokers,
        topic: system.deployment.topic_control.clone(),
    };
    Publisher::new(&config, "test").context("make producer")
}

async fn say(publisher: &mut Publisher, entries: &[Entry]) -> Result<()> {
    let records: Vec<Told> = entries.iter().map(|entry| (entry.key(), Some(entry.value()))).collect();
    publisher.publish(&records).await.context("say")
}

async fn record(system: &System<'_>) -> Result<SessionId> {
    let (sdk, link) = (system.sdk(1)?, system.link("withdrawn").await?);
    let session = load::begin(system, &sdk, &link).await?;
    let batch = small_batch(session.id, 0, 0, true, 100)?;
    load::send(system, &sdk, &session, &batch, Form::Lines, Encoding::Zstd).await?;
    load::compare(system, session.id, SOON).await?;
    Ok(session.id)
}

/// Waits until a session is answered with 410; how long that took.
async fn wait_gone(system: &System<'_>, session: SessionId) -> Result<Duration> {
    let begun = Instant::now();
    until("the session is gone", SOON, || async {
        match system.api.session(session).await {
            Ok(_) => Seen::not_yet("it is readable"),
            Err(error) if error.status() == Some(410) => Seen::Done(()),
            Err(error) => Seen::not_yet(error),
        }
    })
    .await?;
    system.ledger.forget(session);
    Ok(begun.elapsed())
}

/// The causes of deletions that a session stands in.
async fn causes(system: &System<'_>, key: &SessionKey) -> Result<Vec<String>> {
    Ok(sqlx::query_scalar(
        "select d.cause from deletion_session s join deletion d on d.id = s.deletion_id
         where s.workspace_id = $1 and s.session_id = $2",
    )
    .bind(key.workspace.0)
    .bind(key.session.0)
    .fetch_all(system.index.pool())
    .await?)
}

/// Goal: who takes consent back is deleted within seconds, whether ever seen or not, once, and also when worker or Postgres were
/// away when it was said; the entry stays on the topic until the deletion is told there, and goes then. What counts no more goes
/// too, and nothing else (P2, R1). Method: entries as edges write them, said by the test; passes come once in ten minutes, so
/// that nothing here waits for one but the destruction of keys, for which the worker is started anew.
#[test]
fn p02_a_withdrawal_becomes_a_deletion_within_seconds() -> Result<()> {
    let options = DeploymentOptions::named("withdrawn").with("retention-worker", "CLAIRVIO_PASS_INTERVAL_MS", 600_000);
    run(options, WITHOUT_POSTGRES, async |system| {
        let (supervisor, worker) = (&system.deployment.supervisor, system.service("retention-worker", 1));
        let (mut publisher, now) = (publisher(system)?, now_ms());
        let over = Entry::begun(system.key(SessionId(Uuid::now_v7())), LinkId(Uuid::now_v7()), now - 3 * HOUR_MS);
        let counting = Entry::begun(system.key(SessionId(Uuid::now_v7())), LinkId(Uuid::now_v7()), now - HOUR_MS / 2);
        say(&mut publisher, &[over.clone(), counting.clone()]).await?;
        let (kept, by_hand) = (record(system).await?, record(system).await?);
        let (first, second, third) = (record(system).await?, record(system).await?, record(system).await?);
        let unseen = SessionId(Uuid::now_v7());

        say(&mut publisher, &[Entry::withdrawal(system.key(first), now_ms())]).await?;
        let took = wait_gone(system, first).await?;
        ensure!(took <= GONE_WITHIN, "it took {took:?}");
        // However old the entry is: only the deletion ends it.
        say(&mut publisher, &[Entry::withdrawal(system.key(unseen), now - 1_000 * HOUR_MS)]).await?;
        let took = wait_gone(system, unseen).await?;
        ensure!(took <= GONE_WITHIN, "for an unseen one it took {took:?}");

        // Said while no worker lives.
        system.api.delete_session(by_hand).await?;
        system.ledger.forget(by_hand);
        supervisor.set_restart(&worker, false)?;
        supervisor.kill(&worker).await?;
        let late = [first, second, by_hand].map(|session| Entry::withdrawal(system.key(session), now_ms()));
        say(&mut publisher, &late).await?;
        supervisor.restart(&worker).await?;
        supervisor.wait_ready(&worker, SOON).await?;
        wait_gone(system, second).await?;

        without_postgres(system, async || {
            say(&mut publisher, &[Entry::withdrawal(system.key(third), now_ms())]).await?;
            let admin = system.admin_url("retention-worker", 1)?;
            until("the withdrawal waits", SOON, || async {
                match metric(&admin, "retention_withdrawals_waiting").await {
                    0 => Seen::not_yet("none does"),
                    _ => Seen::Done(()),
                }
            })
            .await?;
            Ok(())
        })
        .await?;
        wait_gone(system, third).await?;

        for session in [first, second, third, unseen, by_hand] {
            let key = system.key(session);
            let cause = if session == by_hand { "by_hand" } else { "withdrawn" };
            ensure!(causes(system, &key).await? == [cause], "{session}: {:?}", causes(system, &key).await?);
            wait_removed(system, &News::Withdrawal(key).key()).await?;
            let records = told(system).await?;
            let deletion = News::Deletion(key).key();
            let deleted_at = records.iter().position(|(told_key, _)| *told_key == deletion);
            let withdrawal = News::Withdrawal(key).key();
            let removed_at = records.iter().position(|(told_key, value)| *told_key == withdrawal && value.is_none());
            ensure!(deleted_at.is_some() && deleted_at < removed_at, "{session}: {deleted_at:?}, {removed_at:?}");
        }
        wait_removed(system, &over.key()).await?;
        let still = told(system).await?.into_iter().rfind(|(key, _)| *key == counting.key());
        ensure!(still == Some((counting.key(), Some(counting.value()))), "an entry that counts was removed: {still:?}");

        // A pass comes when it starts.
        supervisor.terminate(&worker).await?;
        supervisor.restart(&worker).await?;
        let withdrawn = [first, second, third, unseen].map(|session| system.key(session));
        until("their keys are destroyed", SOON, || async {
            match system.keystore.rows(&withdrawn).await {
                Ok(rows) if rows.len() == 4 && rows.iter().all(|(_, row)| *row == KeyRow::Shredded) => Seen::Done(()),
                Ok(rows) => Seen::not_yet(format_args!("{rows:?}")),
                Err(error) => Seen::not_yet(error),
            }
        })
        .await?;
        load::compare(system, kept, SOON).await?;
        Ok(())
    })
}

/// Nobody can connect to the deployment's database while `act` goes on.
async fn without_postgres(system: &System<'_>, act: impl AsyncFnOnce() -> Result<()>) -> Result<()> {
    let worker = system.service("retention-worker", 1);
    let server = PgPoolOptions::new().max_connections(1).connect(&system.stack.parts().database_url).await?;
    let database = format!("clairvio_{}", system.name);
    let allow = async |allowed: bool| {
        let statement = format!("alter database {database} with allow_connections {allowed}");
        sqlx::query(sqlx::AssertSqlSafe(statement)).execute(&server).await
    };
    allow(false).await?;
    sqlx::query("select pg_terminate_backend(pid) from pg_stat_activity where datname = $1")
        .bind(&database)
        .execute(&server)
        .await?;
    let outcome = act().await;
    allow(true).await?;
    outcome?;
    wait_readyz(system, &worker, 200).await?;
    Ok(())
}

/// Goal: what is told of one key is told in its order, and a removal after all that was to be told before it, whichever relay has
/// what (two relays must not tell a workspace's rules the wrong way round). Method: the test is a relay that has taken two rows
/// and does not go on; the others tell what may be told meanwhile.
#[test]
fn news_of_one_key_are_told_in_order_and_removals_behind_what_was_said_before() -> Result<()> {
    run(DeploymentOptions::named("inorder"), &[], async |system| {
        let supervisor = &system.deployment.supervisor;
        for kind in RELAYS {
            supervisor.pause(&system.service(kind, 1)).await?;
        }
        let begun = |number: u64| Entry::begun(system.key(SessionId(Uuid::now_v7())), LinkId(Uuid::nil()), number);
        let (first, free) = (begun(now_ms()), begun(now_ms()));
        let second = Entry { version: first.version + 1, ..first.clone() };
        let removed = begun(now_ms()).key();
        let rows: [Told; 5] = [
            (first.key(), Some(first.value())),
            (second.key(), Some(second.value())),
            (second.key(), None),
            (removed.clone(), None),
            (free.key(), Some(free.value())),
        ];
        for (key, value) in &rows {
            sqlx::query("insert into outbox (topic_key, value) values ($1, $2)")
                .bind(key)
                .bind(value)
                .execute(system.index.pool())
                .await?;
        }
        let mut relay = system.index.pool().begin().await?;
        sqlx::query("select from outbox where topic_key = $1 order by id limit 1 for update")
            .bind(first.key())
            .execute(&mut *relay)
            .await?;
        for kind in RELAYS {
            supervisor.resume(&system.service(kind, 1)).await?;
        }
        system.wait_count("what may be told is told", "select count(*) from outbox", 4, SOON).await?;
        let ours = async || -> Result<Vec<Told>> {
            let records = told(system).await?.into_iter();
            Ok(records.filter(|(key, _)| rows.iter().any(|(row_key, _)| row_key == key)).collect())
        };
        let meanwhile = ours().await?;
        ensure!(meanwhile == rows[4..], "meanwhile {} rows were told", meanwhile.len());
        relay.rollback().await?;
        system.wait_count("all is told", "select count(*) from outbox", 0, SOON).await?;
        let all = ours().await?;
        let of_one: Vec<&Told> = all.iter().filter(|(key, _)| *key == first.key()).collect();
        ensure!(of_one == [&rows[0], &rows[1], &rows[2]], "rows of one key were told out of order");
        let place = |row: &Told| all.iter().position(|told| told == row);
        ensure!(place(&rows[3]) > place(&rows[1]), "a removal was told before what came before it");
        Ok(())
    })
}
