//! What everybody has to know soon, everybody knows soon, whoever dies in between.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use devstack::DeploymentOptions;
use schemas::control::{Entry, News};
use schemas::deletion::Cause;
use schemas::limits::CONTROL_DELETION_KEPT_S;
use schemas::{SessionId, SessionKey};
use service_kit::config::kafka::ControlConfig;
use service_kit::shutdown::Shutdown;
use service_kit::time::now_ms;
use tokio::time::Instant;
use virtual_sdk::{Api, Encoding, EventsFormat, Form, Seen, until};

use crate::harness::{LATER, SOON, System, run};
use crate::load::{self, small_batch};

/// From the answer to a deletion until nobody has the session's key any more.
const FORGOTTEN_WITHIN: Duration = Duration::from_secs(5);
const WRITERS: [(&str, usize); 2] = [("batcher", 1), ("compactor", 1)];
const PLANES: [(&str, usize); 2] = [("control-plane", 1), ("control-plane", 2)];

/// Goal: every process that has the key of a session drops it as soon as the session is deleted, whether by hand or by expiry,
/// keeps the others', and hears of it also when whoever deleted it is killed at once, or nobody but one relay lives (R2).
/// Method: keys are kept for ten minutes, so that a number of kept keys that goes down has been told to; each service shows
/// that number. The test follows the topic as well, and compares what it hears with what it deleted.
#[test]
fn r02_a_deleted_sessions_key_is_dropped_everywhere_at_once() -> Result<()> {
    let options = DeploymentOptions { control_planes: 2, ..DeploymentOptions::named("control") }
        .with("", "CLAIRVIO_KEY_CACHE_MS", 600_000)
        .with("", "CLAIRVIO_SESSION_SILENCE_MS", 3_000)
        .with("compactor", "CLAIRVIO_RUN_AGE_MS", 1_500);
    run(options, &[], async |system| {
        let begun_ms = now_ms();
        let supervisor = &system.deployment.supervisor;
        let (shutdown, heard) = (Shutdown::new(Duration::ZERO), Heard::default());
        heard.follow(system, &shutdown)?;
        let sessions = record(system, 6).await?;
        let [by_hand, expired, orphaned, by_worker, by_plane, kept] = sessions[..] else { unreachable!() };
        load::wait_compacted(system, LATER).await?;
        let apis = [api(system, 1)?, api(system, 2)?];
        for api in &apis {
            for session in &sessions {
                read(api, *session).await?;
            }
        }
        let everybody = [PLANES, WRITERS].concat();
        wait_keys(system, &everybody, 6, SOON).await.context("everybody has all keys")?;

        delete(system, by_hand).await?;
        let took = wait_keys(system, &everybody, 5, LATER).await?;
        ensure!(took <= FORGOTTEN_WITHIN, "its key was forgotten only after {took:?}");
        eprintln!("control: everybody has forgotten the key after {took:?}");
        // Were it another session's key that went, it would be fetched again now.
        for api in &apis {
            for session in sessions.iter().filter(|session| **session != by_hand) {
                read(api, *session).await?;
            }
        }
        wait_keys(system, &everybody, 5, SOON).await?;

        sqlx::query("update session set started_at = started_at - interval '3000 days' where id = $1")
            .bind(expired.0)
            .execute(system.index.pool())
            .await?;
        wait_keys(system, &everybody, 4, LATER).await.context("an expired session's key is dropped too")?;

        for (kind, number) in PLANES {
            supervisor.set_restart(&system.service(kind, number), false)?;
        }
        delete(system, orphaned).await?;
        supervisor.kill(&system.service("control-plane", 1)).await?;
        supervisor.kill(&system.service("control-plane", 2)).await?;
        let took = wait_keys(system, &WRITERS, 3, LATER).await?;
        ensure!(took <= FORGOTTEN_WITHIN, "with all control planes dead it took {took:?}");
        // By this process, which tells nobody: the worker alone is left to.
        system.index.delete_session(&system.key(by_worker), Cause::ByHand).await?;
        let took = wait_keys(system, &WRITERS, 2, LATER).await?;
        ensure!(took <= FORGOTTEN_WITHIN, "the worker alone took {took:?}");

        let worker = system.service("retention-worker", 1);
        supervisor.set_restart(&worker, false)?;
        supervisor.kill(&worker).await?;
        for (kind, number) in PLANES {
            supervisor.restart(&system.service(kind, number)).await?;
            supervisor.wait_ready(&system.service(kind, number), SOON).await?;
        }
        delete(system, by_plane).await?;
        let took = wait_keys(system, &WRITERS, 1, LATER).await?;
        ensure!(took <= FORGOTTEN_WITHIN, "control planes alone took {took:?}");
        supervisor.restart(&worker).await?;
        supervisor.wait_ready(&worker, SOON).await?;
        for api in &apis {
            read(api, kept).await?;
        }
        wait_keys(system, &everybody, 1, SOON).await?;

        system.wait_count("the outbox is empty", "select count(*) from outbox", 0, SOON).await?;
        let deleted = [by_hand, expired, orphaned, by_worker, by_plane].map(|session| system.key(session));
        heard.compare(&deleted, begun_ms).await?;
        shutdown.begin();
        Ok(())
    })
}

async fn record(system: &System<'_>, count: usize) -> Result<Vec<SessionId>> {
    let (sdk, link) = (system.sdk(1)?, system.link("control").await?);
    let mut sessions = Vec::new();
    for _ in 0..count {
        let session = load::begin(system, &sdk, &link).await?;
        let batch = small_batch(session.id, 0, 0, true, 100)?;
        load::send(system, &sdk, &session, &batch, Form::Lines, Encoding::Zstd).await?;
        sessions.push(session.id);
    }
    load::compare_all(system, SOON).await?;
    Ok(sessions)
}

fn api(system: &System<'_>, control_plane: usize) -> Result<Api> {
    system.api_at(control_plane, &system.deployment.endpoints().api_key)
}

async fn read(api: &Api, session: SessionId) -> Result<()> {
    let mut events = api.events(session, EventsFormat::Lines).await.context("read events")?;
    while events.next_event().await?.is_some() {}
    Ok(())
}

async fn delete(system: &System<'_>, session: SessionId) -> Result<()> {
    system.api.delete_session(session).await.context("delete session")?;
    system.ledger.forget(session);
    Ok(())
}

/// Waits until each of these services has this number of keys; how long that took.
async fn wait_keys(system: &System<'_>, services: &[(&str, usize)], count: u64, within: Duration) -> Result<Duration> {
    let begun = Instant::now();
    until(&format!("each has {count} keys"), within, || async {
        let mut found = BTreeMap::new();
        for (kind, number) in services {
            let service = system.service(kind, *number);
            match keys(system, &service).await {
                Ok(keys) => drop(found.insert(service, keys)),
                Err(error) => return Seen::not_yet(error),
            }
        }
        if found.values().all(|keys| *keys == count) {
            Seen::Done(())
        } else {
            Seen::not_yet(format_args!("{found:?}"))
        }
    })
    .await?;
    Ok(begun.elapsed())
}

/// How many keys a service says that it has.
async fn keys(system: &System<'_>, service: &str) -> Result<u64> {
    let running = system.deployment.supervisor.running().into_iter().find(|running| running.name == service);
    let admin = running.with_context(|| format!("{service} does not run"))?.admin_url;
    let text = reqwest::get(format!("{admin}/metrics")).await?.text().await?;
    let found = text.lines().find_map(|line| line.strip_prefix("session_keys_cached "));
    found
        .with_context(|| format!("{service} does not say how many keys it has"))?
        .trim()
        .parse()
        .context("parse number")
}

/// What this process hears on the topic.
#[derive(Default)]
struct Heard(Arc<Mutex<Vec<Entry>>>);

impl Heard {
    fn follow(&self, system: &System<'_>, shutdown: &Shutdown) -> Result<()> {
        let config = ControlConfig {
            brokers: system.deployment.endpoints().kafka_brokers,
            topic: system.deployment.topic_control.clone(),
        };
        let entries = Arc::clone(&self.0);
        service_kit::kafka::control::follow(&config, "test", shutdown.clone(), move |entry| {
            entries.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
        })?;
        Ok(())
    }

    /// What was heard names these sessions as deleted, each once at least, and no others.
    async fn compare(&self, deleted: &[SessionKey], begun_ms: u64) -> Result<()> {
        let entries = || self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let deletion_of = |entry: &Entry| match entry.news {
            News::Deletion(key) => Some(key),
            _ => None,
        };
        until("each deletion is heard", SOON, || async {
            let heard: Vec<SessionKey> = entries().iter().filter_map(deletion_of).collect();
            let missing = deleted.iter().filter(|key| !heard.contains(key)).count();
            if missing == 0 { Seen::Done(()) } else { Seen::not_yet(format_args!("{missing} are missing")) }
        })
        .await?;
        let now = now_ms();
        for entry in entries() {
            let Some(key) = deletion_of(&entry) else { continue };
            ensure!(deleted.contains(&key), "{entry:?} was heard, and nobody deleted it");
            ensure!((begun_ms..=now).contains(&entry.version), "{entry:?} is of another time");
            let kept_s = entry.not_after.unix_timestamp() - entry.version as i64 / 1000;
            ensure!(kept_s == CONTROL_DELETION_KEPT_S, "{entry:?} does not count for as long as it should");
        }
        Ok(())
    }
}
