//! Bytes that went bad in the bucket: found, told with a code, kept apart, and in nobody else's way.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use devstack::DeploymentOptions;
use schemas::http::StoredAs;
use schemas::paths::ObjectKey;
use schemas::{ErrorCode, ObjectId, SessionId, session_object, shared_object};
use service_kit::keys::TRANSPORT_FILE;
use sqlx::Row as _;
use storage::footers::Footer;
use uuid::Uuid;
use virtual_sdk::{Encoding, Form, Sdk, Seen, Session, SessionQuery, until};

use crate::harness::{LATER, SOON, System, metric, run};
use crate::load::{self, dense_batch, small_batch};
use crate::quarantine::{asks, clairvio};
use crate::readings::{Answer, ENCODINGS, FORMATS, Manner, Reader};

/// Of what services say of damaged objects; what exactly they have to say, the tests look for.
const EXPECTED: &[&str] = &["corrupt", "object is gone"];

/// Of a session whose object has several frames.
const BATCHES: u32 = 12;
const BATCH_BYTES: usize = 128 << 10;

/// What happens to an object on its disk.
#[derive(Debug, Clone)]
enum Damage {
    /// A bit of this byte is another one.
    Flip(u64),
    /// These bytes are zero.
    Zero(Range<u64>),
    /// Only so many of its bytes are left.
    Cut(u64),
    /// Nothing is left of it.
    Gone,
}

/// A damaged object, and what it was.
struct Damaged {
    file: PathBuf,
    whole: Vec<u8>,
}

impl Damaged {
    fn mend(self) -> Result<()> {
        std::fs::write(&self.file, &self.whole).with_context(|| format!("mend {}", self.file.display()))
    }
}

fn damage(system: &System<'_>, key: &ObjectKey, damage: &Damage) -> Result<Damaged> {
    let file = system.file_of(key);
    let whole = std::fs::read(&file).with_context(|| format!("read {}", file.display()))?;
    let mut bytes = whole.clone();
    match damage {
        Damage::Flip(at) => bytes[*at as usize] ^= 0x10,
        Damage::Zero(range) => bytes[range.start as usize..range.end as usize].fill(0),
        Damage::Cut(len) => bytes.truncate(*len as usize),
        Damage::Gone => {
            std::fs::remove_file(&file).with_context(|| format!("remove {}", file.display()))?;
            return Ok(Damaged { file, whole });
        }
    }
    ensure!(bytes != whole, "{damage:?} changes nothing of {key}");
    std::fs::write(&file, &bytes).with_context(|| format!("damage {}", file.display()))?;
    Ok(Damaged { file, whole })
}

fn options(name: &str) -> DeploymentOptions {
    DeploymentOptions { partitions: 1, held: Some(format!("compactor-{name}")), ..DeploymentOptions::named(name) }
        .with("batcher", "CLAIRVIO_FLUSH_AGE_MS", 500)
        .with("compactor", "CLAIRVIO_RUN_AGE_MS", 500)
        .with("compactor", "CLAIRVIO_PASS_INTERVAL_MS", 200)
        .with("", "CLAIRVIO_SESSION_SILENCE_MS", 2_000)
        .with("retention-worker", "CLAIRVIO_PASS_INTERVAL_MS", 200)
        .with("retention-worker", "CLAIRVIO_CONDEMNED_GRACE_MS", 500)
}

async fn release_compactor(system: &System<'_>) -> Result<()> {
    for compactor in system.deployment.release().await? {
        system.deployment.supervisor.wait_ready(&compactor, SOON).await?;
    }
    Ok(())
}

/// Sends a session of several frames, whole.
async fn send_large(system: &System<'_>, sdk: &Sdk) -> Result<SessionId> {
    let session = load::begin(system, sdk, &system.link("corruption").await?).await?;
    for seq in 0..BATCHES {
        let batch = dense_batch(session.id, seq, seq + 1 == BATCHES, BATCH_BYTES)?;
        load::send(system, sdk, &session, &batch, Form::Lines, Encoding::Identity).await?;
    }
    Ok(session.id)
}

async fn send_small(system: &System<'_>, sdk: &Sdk, session: &Session, seqs: Range<u32>, end: bool) -> Result<()> {
    for seq in seqs.clone() {
        let batch = small_batch(session.id, 0, seq, end && seq + 1 == seqs.end, 2_000)?;
        load::send(system, sdk, session, &batch, Form::Lines, Encoding::Zstd).await?;
    }
    Ok(())
}

/// The live objects of a session, oldest first, with their footers.
async fn objects_of(system: &System<'_>, session: SessionId) -> Result<Vec<(ObjectKey, Arc<session_object::Footer>)>> {
    let ids: Vec<Uuid> = sqlx::query_scalar(
        "select id from object where kind = 1 and state = 1 and session_id = $1 order by live_at, id",
    )
    .bind(session.0)
    .fetch_all(system.index.pool())
    .await?;
    let mut objects = Vec::new();
    for id in ids {
        let key = ObjectKey::Session { key: system.key(session), id: ObjectId(id) };
        match system.footer(key, &system.objects.get(&key).await?).await? {
            Some(Footer::Session(footer)) => objects.push((key, footer)),
            _ => anyhow::bail!("{key} is no session object"),
        }
    }
    Ok(objects)
}

/// The one object of a session that is final.
async fn object_of(system: &System<'_>, session: SessionId) -> Result<(ObjectKey, Arc<session_object::Footer>)> {
    let objects = objects_of(system, session).await?;
    ensure!(objects.len() == 1, "session {session} is {} objects", objects.len());
    objects.into_iter().next().context("it has an object")
}

/// Live shared objects with their footers, in the log's order.
async fn shared_objects(system: &System<'_>) -> Result<Vec<(ObjectKey, Arc<shared_object::Footer>)>> {
    let rows = sqlx::query("select id, partition from object where kind = 0 and state = 1 order by offset_first")
        .fetch_all(system.index.pool())
        .await?;
    let mut objects = Vec::new();
    for row in rows {
        let key = ObjectKey::Shared { partition: row.get("partition"), id: ObjectId(row.get("id")) };
        match system.footer(key, &system.objects.get(&key).await?).await? {
            Some(Footer::Shared(footer)) => objects.push((key, footer)),
            _ => anyhow::bail!("{key} is no shared object"),
        }
    }
    Ok(objects)
}

/// Waits until all sessions that the ledger knows are one object each.
async fn wait_final(system: &System<'_>) -> Result<()> {
    load::wait_compacted(system, LATER).await?;
    system.wait_count("every session is final", "select count(*) from session where not final", 0, LATER).await
}

/// Waits until these shared objects are swapped and gone: no row, and nothing in the bucket.
async fn wait_gone(system: &System<'_>, run: &[ObjectKey]) -> Result<()> {
    let ids: Vec<Uuid> = run.iter().map(|key| key.id().0).collect();
    until("the run is gone", LATER, || async {
        let rows: Result<i64, _> = sqlx::query_scalar("select count(*) from object where id = any($1)")
            .bind(&ids)
            .fetch_one(system.index.pool())
            .await;
        match rows {
            Ok(0) => Seen::Done(()),
            Ok(left) => Seen::not_yet(format_args!("{left} of {} are left", ids.len())),
            Err(error) => Seen::not_yet(error),
        }
    })
    .await?;
    for key in system.objects.list("shared/").await?.iter().flatten() {
        ensure!(!run.contains(key), "{key} lies in the bucket and no row names it");
    }
    Ok(())
}

/// A reading whose end is seen: the connection ends within the answer, or a problem with the code comes in its place.
async fn ends_in_an_error(reader: &Reader, session: SessionId, manner: &Manner) -> Result<()> {
    match reader.read(session, manner).await? {
        Answer::Whole(events) => anyhow::bail!("{manner:?} looks whole and shows {} events", events.len()),
        Answer::Refused { status, code } => {
            let expected = ErrorCode::ObjectCorrupt;
            ensure!((status, code.as_str()) == (expected.status(), expected.as_str()), "{manner:?}: {status} {code}");
        }
        Answer::Cut(_) => {}
    }
    Ok(())
}

/// Metadata and events are answered with the problem's code.
async fn is_refused(system: &System<'_>, reader: &Reader, session: SessionId) -> Result<()> {
    let expected = ErrorCode::ObjectCorrupt;
    let metadata = system.api.session(session).await.err().context("metadata without a footer is none")?;
    ensure!(
        (metadata.status(), metadata.code()) == (Some(expected.status()), expected.as_str()),
        "metadata of session {session}: {metadata}"
    );
    for format in FORMATS {
        match reader.read(session, &Manner { format, ..Manner::WHOLE }).await? {
            Answer::Refused { status, code } => {
                ensure!((status, code.as_str()) == (expected.status(), expected.as_str()), "{status} {code}");
            }
            other => anyhow::bail!("events of session {session} were answered with {other:?}"),
        }
    }
    Ok(())
}

async fn is_listed(system: &System<'_>, session: SessionId) -> Result<()> {
    let listed = system.api.all_sessions(&SessionQuery::default()).await?;
    ensure!(listed.iter().any(|item| item.id == session), "session {session} is not listed");
    Ok(())
}

/// Lines of a service's log at this level that have all of these texts.
fn lines_with(system: &System<'_>, service: &str, level: &str, texts: &[&str]) -> Result<usize> {
    let log = system.deployment.supervisor.log(service);
    let text = std::fs::read_to_string(&log).with_context(|| format!("read log {}", log.display()))?;
    let has = |line: &&str| {
        line.split_ascii_whitespace().nth(1) == Some(level) && texts.iter().all(|text| line.contains(text))
    };
    Ok(text.lines().filter(has).count())
}

/// The control plane's log has an ERROR with the code that names the object.
fn is_told(system: &System<'_>, key: &ObjectKey) -> Result<()> {
    let texts = [ErrorCode::ObjectCorrupt.as_str(), &key.to_string()];
    let told = lines_with(system, &system.service("control-plane", 1), "ERROR", &texts)?;
    ensure!(told > 0, "no ERROR with the code {} names {key}", texts[0]);
    Ok(())
}

fn timestamp(event: &[u8]) -> Result<i64> {
    let event: serde_json::Value = serde_json::from_slice(event).context("read event")?;
    event["timestamp"].as_i64().context("an event has a timestamp")
}

/// Goal: a damaged object is an error that is seen, with a code, and only where its bytes are needed; when it is mended all is as
/// before. Method: in objects of sessions with several frames, a bit of a middle frame is flipped, a frame is zeroed, and one
/// object is cut: whole readings in all forms end in an error, ranges beside the damage read on, as do metadata and other
/// sessions. Then the footers of others, by a control plane that has not seen them: flipped, zeroed, cut away.
#[test]
fn a_damaged_session_object_is_an_error_with_a_code_and_nobody_elses() -> Result<()> {
    run(options("damaged"), EXPECTED, async |system| {
        let sdk = system.sdk(1)?;
        let mut sessions = Vec::new();
        for _ in 0..6 {
            sessions.push(send_large(system, &sdk).await?);
        }
        release_compactor(system).await?;
        wait_final(system).await?;
        load::compare_all(system, SOON).await?;
        let reader = Reader::new(system)?;

        let (frames, footers) = sessions.split_at(3);
        for (number, session) in frames.iter().enumerate() {
            damaged_frame(system, &reader, *session, number).await.with_context(|| format!("frame {number}"))?;
        }
        for session in footers {
            load::compare(system, *session, SOON).await.context("beside damaged frames")?;
        }

        let mut damages = Vec::new();
        for (number, session) in footers.iter().enumerate() {
            let (key, footer) = object_of(system, *session).await?;
            let last = footer.frames.last().context("it has frames")?;
            let (at, end) = (last.at + u64::from(last.len), system.objects.get(&key).await?.len() as u64);
            let damage_of = match number {
                0 => Damage::Flip(at + (end - at) / 2),
                1 => Damage::Zero(at..end),
                _ => Damage::Cut(at),
            };
            damages.push((*session, key, damage_of.clone(), damage(system, &key, &damage_of)?));
        }
        // Another process: this one has their footers in memory.
        let control_plane = system.service("control-plane", 1);
        system.take_down(&control_plane).await?;
        system.bring_back(&control_plane).await?;
        for (session, _, damage, _) in &damages {
            is_refused(system, &reader, *session).await.with_context(|| format!("footer, {damage:?}"))?;
            is_listed(system, *session).await?;
        }
        for session in frames {
            load::compare(system, *session, SOON).await.context("beside damaged footers")?;
        }
        let keys: Vec<ObjectKey> = damages.iter().map(|(_, key, ..)| *key).collect();
        for (.., damaged) in damages {
            damaged.mend()?;
        }
        load::compare_all(system, SOON).await.context("once all is mended")?;
        keys.iter().try_for_each(|key| is_told(system, key).context("of a footer"))
    })
}

/// Damages a frame in the middle of a session's object, or all from there on, and looks at what is read then.
async fn damaged_frame(system: &System<'_>, reader: &Reader, session: SessionId, number: usize) -> Result<()> {
    let (key, footer) = object_of(system, session).await?;
    ensure!(footer.frames.len() >= 4, "an object of {} frames has no middle", footer.frames.len());
    let whole = reader.read(session, &Manner::WHOLE).await?.whole()?;
    let frame = &footer.frames[footer.frames.len() / 2];
    let (at, end) = (frame.at, frame.at + u64::from(frame.len));
    let is_cut = number == 2;
    let damaged = damage(
        system,
        &key,
        &match number {
            0 => Damage::Flip(at + u64::from(frame.len) / 2),
            1 => Damage::Zero(at..end),
            _ => Damage::Cut(at),
        },
    )?;

    for format in FORMATS {
        for encoding in ENCODINGS {
            ends_in_an_error(reader, session, &Manner { format, encoding, ..Manner::WHOLE }).await?;
        }
    }
    // Met before the first event.
    let within = Manner::between(Some(frame.ts_min), Some(frame.ts_max));
    ends_in_an_error(reader, session, &within).await?;
    let (before, after) =
        (Manner::between(None, Some(frame.ts_min - 1)), Manner::between(Some(frame.ts_max + 1), None));
    for manner in if is_cut { vec![before] } else { vec![before, after] } {
        let read = reader.read(session, &manner).await?.whole().with_context(|| format!("{manner:?}"))?;
        let mut expected = Vec::new();
        for event in &whole {
            if manner.covers(timestamp(event)?) {
                expected.push(event);
            }
        }
        ensure!(!read.is_empty() && read.iter().eq(expected), "{manner:?}: other events are read");
    }
    system.api.session(session).await.context("its metadata")?;
    is_listed(system, session).await?;
    damaged.mend()?;
    load::compare(system, session, SOON).await.context("once it is mended")?;
    is_told(system, &key)
}

/// Goal: a damaged chunk goes into quarantine when its run is merged, and nothing else: its session's other chunks are read as
/// before, and it holds nobody up: neither the run, nor the other sessions in it, nor a deletion of one of those; and it goes with its
/// session. Method: several sessions in two shared objects at least; one bit in a chunk of one of them is flipped before any
/// compactor runs. Later another session is deleted, and then this one.
#[test]
fn a_damaged_chunk_goes_into_quarantine_alone() -> Result<()> {
    run(options("chunk"), EXPECTED, async |system| {
        let (link, sdk) = (system.link("chunk").await?, system.sdk(1)?);
        let mut sessions = Vec::new();
        for _ in 0..4 {
            sessions.push(load::begin(system, &sdk, &link).await?);
        }
        // At once, so that one flush takes batches of all.
        for (seqs, end) in [(0..3, false), (3..5, true)] {
            let sending = sessions.iter().map(|session| send_small(system, &sdk, session, seqs.clone(), end));
            futures::future::try_join_all(sending).await?;
            load::compare_all(system, SOON).await?;
        }

        let run = shared_objects(system).await?;
        let has_all = |footer: &shared_object::Footer| {
            let found: BTreeSet<SessionId> = footer.chunks.iter().map(|chunk| chunk.key.session).collect();
            found.len() > 2
        };
        let (key, footer) = run.iter().find(|(_, footer)| has_all(footer)).context("one has several sessions")?;
        let chunk = footer.chunks.first().context("it has chunks")?;
        let victim = chunk.key.session;
        let (of_session, of_chunk) =
            (5 * 4, chunk.batches.iter().map(|batch| u64::from(batch.facts.events)).sum::<u64>());
        ensure!(of_chunk < of_session, "all of the session is in one chunk");
        // Not mended: what is moved into quarantine is what lies there.
        damage(system, key, &Damage::Flip(chunk.at + chunk.len() / 2))?;
        let reader = Reader::new(system)?;
        ends_in_an_error(&reader, victim, &Manner::WHOLE).await?;
        system.ledger.forget(victim);
        load::compare_all(system, SOON).await.context("beside the damaged chunk")?;

        release_compactor(system).await?;
        load::wait_compacted(system, LATER).await?;
        let keys: Vec<ObjectKey> = run.iter().map(|(key, _)| *key).collect();
        wait_gone(system, &keys).await?;
        load::compare_all(system, SOON).await.context("once the run is merged")?;
        let compactor = system.service("compactor", 1);
        let told = lines_with(system, &compactor, "ERROR", &[&victim.to_string(), "quarantine"])?;
        ensure!(told == 1, "the compactor told {told} times of what it set aside");
        // What is left of the session is read, and says what is missing.
        let left = system.api.session(victim).await.context("its metadata")?.events;
        ensure!(left == of_session - of_chunk, "{left} of {of_session} events are left without {of_chunk}");
        let read = reader.read(victim, &Manner::WHOLE).await?.whole().context("what is left of the session")?;
        ensure!(read.len() as u64 == left, "{} of {left} events are read", read.len());

        let transport = system.deployment.keys.join(TRANSPORT_FILE);
        let (said, succeeded) = asks(system, &transport, &["quarantine", "list", "--json"])?;
        ensure!(succeeded && said.to_string().contains(&victim.to_string()), "no chunk of {victim} is listed: {said}");

        let other = sessions.iter().find(|session| session.id != victim).context("there are others")?.id;
        let deletion = system.api.delete_session(other).await?.deletion_id;
        system.ledger.forget(other);
        load::wait_erased(&system.api, deletion).await?;
        load::compare_all(system, SOON).await?;
        ensure!(!system.objects.list("quarantine/").await?.is_empty(), "quarantine holds nothing");
        load::wait_erased(&system.api, system.api.delete_session(victim).await?.deletion_id).await?;
        let left = system.objects.list("quarantine/").await?;
        ensure!(left.is_empty(), "quarantine keeps {left:?} of an erased session");
        is_told(system, key)
    })
}

/// Goal: a shared object that cannot be told apart any more goes into quarantine as a whole, and its partition goes on, as do deletions of
/// sessions that cannot be in it; those of sessions that may be in it wait until an operator discards it. Method:
/// the footer of one is damaged before any compactor runs: a bit of it, all of it, it is cut away, or the object is gone, with
/// sessions before and after it in the same partition.
#[test]
fn a_shared_object_without_a_footer_goes_into_quarantine_whole() -> Result<()> {
    // Runs of few objects, so that most of one are damaged, and others say that it is these.
    let options = options("footer").with("compactor", "CLAIRVIO_RUN_OBJECTS_MAX", 4);
    run(options, EXPECTED, async |system| {
        let (link, sdk) = (system.link("footer").await?, system.sdk(1)?);
        let mut lost = Vec::new();
        // One session, one object: the next one begins when this one can be read.
        for number in 0..8 {
            let session = load::begin(system, &sdk, &link).await?;
            send_small(system, &sdk, &session, 0..3, true).await?;
            load::compare(system, session.id, SOON).await?;
            if (1..5).contains(&number) {
                lost.push(session.id);
            }
        }
        let run = shared_objects(system).await?;
        let mut keys = Vec::new();
        for (number, session) in lost.iter().enumerate() {
            let of_session =
                run.iter().filter(|(_, footer)| footer.chunks.iter().any(|chunk| chunk.key.session == *session));
            for (key, footer) in of_session {
                let end = system.objects.get(key).await?.len() as u64;
                let at = footer.chunks.iter().map(|chunk| chunk.at + chunk.len()).max().context("it has chunks")?;
                let damage_of = match number {
                    0 => Damage::Flip(at + (end - at) / 2),
                    1 => Damage::Zero(at..end),
                    2 => Damage::Cut(at),
                    _ => Damage::Gone,
                };
                damage(system, key, &damage_of)?;
                keys.push(*key);
            }
            system.ledger.forget(*session);
        }
        // A process that has their footers in memory would still read them.
        let control_plane = system.service("control-plane", 1);
        system.take_down(&control_plane).await?;
        system.bring_back(&control_plane).await?;
        let reader = Reader::new(system)?;
        for session in &lost {
            is_refused(system, &reader, *session).await.context("before the run is merged")?;
        }
        load::compare_all(system, SOON).await.context("beside damaged footers")?;

        release_compactor(system).await?;
        load::wait_compacted(system, LATER).await?;
        wait_gone(system, &run.iter().map(|(key, _)| *key).collect::<Vec<_>>()).await?;
        load::compare_all(system, SOON).await.context("once the run is merged")?;
        let compactor = system.service("compactor", 1);
        for key in &keys {
            let told = lines_with(system, &compactor, "ERROR", &[&key.to_string(), "quarantine"])?;
            ensure!(told == 1, "the compactor told {told} times that {key} is in quarantine");
        }
        let transport = system.deployment.keys.join(TRANSPORT_FILE);
        let (said, succeeded) = asks(system, &transport, &["quarantine", "list", "--json"])?;
        let damaged = said["damaged"].as_array().map_or(0, Vec::len);
        ensure!(succeeded && damaged == keys.len(), "{damaged} of {} damaged objects are listed: {said}", keys.len());
        // Nothing is shown of what is lost, and nothing of it is an error any more.
        for session in &lost {
            let read = reader.read(*session, &Manner::WHOLE).await?.whole()?;
            ensure!(read.is_empty(), "{} events of a lost session are read", read.len());
        }
        // What cannot be in it goes; what may be in it waits.
        let kept = run.iter().flat_map(|(_, footer)| &footer.chunks).map(|chunk| chunk.key.session);
        let kept = kept.into_iter().find(|session| !lost.contains(session)).context("one was kept")?;
        let deletion = system.api.delete_session(kept).await?.deletion_id;
        system.ledger.forget(kept);
        load::wait_erased(&system.api, deletion).await?;
        let deletion = system.api.delete_session(lost[0]).await?.deletion_id;
        let held = "retention_held_by_quarantine_total";
        let worker = system.admin_url("retention-worker", 1)?;
        until("the deletion waits", SOON, || async {
            let times = metric(&worker, held).await;
            if times > 2 { Seen::Done(()) } else { Seen::not_yet(times) }
        })
        .await?;
        ensure!(
            system.api.deletion(deletion).await?.erased_at.is_none(),
            "it is called erased, and may lie in quarantine"
        );
        for object in damaged_in(&said)? {
            let output = clairvio(system, &transport, &["quarantine", "discard", &object, "--yes"])?;
            ensure!(output.status.success(), "discard {object}: {}", String::from_utf8_lossy(&output.stderr));
        }
        load::wait_erased(&system.api, deletion).await?;
        // The partition goes on.
        let next = load::begin(system, &sdk, &link).await?;
        send_small(system, &sdk, &next, 0..3, true).await?;
        load::wait_stored(&system.api, next.id, StoredAs::Object, LATER).await?;
        load::compare_all(system, SOON).await?;
        Ok(())
    })
}

/// The quarantine objects that damaged objects lie in.
fn damaged_in(said: &serde_json::Value) -> Result<BTreeSet<String>> {
    let damaged = said["damaged"].as_array().context("a list has damaged objects")?;
    let object = |damaged: &serde_json::Value| damaged["object"].as_str().map(str::to_owned).context("it lies in one");
    damaged.iter().map(object).collect()
}

/// For how long nothing may be tried again.
const WATCHED: Duration = Duration::from_secs(3);

/// Goal: one damaged part of a session spoils neither its other parts nor the compactor's time. Method: a session in three
/// parts; a bit of the second one's frame is flipped before the session is over. It stays listed, ranges of the other parts are
/// read, and merging it is not tried again and again.
#[test]
fn a_damaged_part_leaves_the_others_and_is_not_merged_for_ever() -> Result<()> {
    // The silence is longer than the test: only its end mark ends the session.
    let options = options("part").with("", "CLAIRVIO_SESSION_SILENCE_MS", 600_000);
    run(options, EXPECTED, async |system| {
        let (link, sdk) = (system.link("part").await?, system.sdk(1)?);
        release_compactor(system).await?;
        let session = load::begin(system, &sdk, &link).await?;
        let parts = 3_u32;
        for part in 0..parts {
            send_small(system, &sdk, &session, part * 3..part * 3 + 3, false).await?;
            load::compare(system, session.id, SOON).await?;
            load::wait_stored(&system.api, session.id, StoredAs::Object, LATER).await?;
        }
        let objects = objects_of(system, session.id).await?;
        ensure!(objects.len() >= 3, "the session is {} parts", objects.len());
        let reader = Reader::new(system)?;
        let whole = reader.read(session.id, &Manner::WHOLE).await?.whole()?;
        let (key, footer) = &objects[1];
        let frame = footer.frames.first().context("a part has a frame")?;
        let damaged = damage(system, key, &Damage::Flip(frame.at + u64::from(frame.len) / 2))?;

        send_small(system, &sdk, &session, parts * 3..parts * 3 + 1, true).await?;
        let compactor = system.service("compactor", 1);
        until("the compactor tells of the damage", LATER, || async {
            match lines_with(system, &compactor, "ERROR", &[&session.id.to_string()]) {
                Ok(0) => Seen::not_yet("it does not"),
                Ok(_) => Seen::Done(()),
                Err(error) => Seen::not_yet(format_args!("{error:#}")),
            }
        })
        .await?;
        let tries = async || {
            let told = lines_with(system, &compactor, "ERROR", &[])?;
            let objects: i64 = sqlx::query_scalar("select count(*) from object where session_id = $1")
                .bind(session.id.0)
                .fetch_one(system.index.pool())
                .await?;
            anyhow::Ok((told, objects))
        };
        let (told, _) = tries().await?;
        let (mut looks, begun) = (tokio::time::interval(Duration::from_millis(100)), tokio::time::Instant::now());
        let mut staged = BTreeSet::new();
        while begun.elapsed() < WATCHED {
            looks.tick().await;
            staged.insert(tries().await?.1);
        }
        let (told_then, _) = tries().await?;
        // One that was under way, and one by which it is marked.
        ensure!(told_then <= told + 1, "the compactor told {} times more of it", told_then - told);
        ensure!(staged.len() <= 3, "objects of the session come and go: {staged:?}");

        is_listed(system, session.id).await?;
        system.api.session(session.id).await.context("its metadata")?;
        ends_in_an_error(&reader, session.id, &Manner::WHOLE).await?;
        for manner in
            [Manner::between(None, Some(frame.ts_min - 1)), Manner::between(Some(frame.ts_max + 1), Some(i64::MAX))]
        {
            let read = reader.read(session.id, &manner).await?.whole().with_context(|| format!("{manner:?}"))?;
            let known = whole.iter().filter(|event| timestamp(event).is_ok_and(|at| manner.covers(at)));
            // One batch more came since.
            let (known, read): (BTreeSet<&Vec<u8>>, BTreeSet<&Vec<u8>>) = (known.collect(), read.iter().collect());
            ensure!(!known.is_empty() && known.is_subset(&read), "{manner:?}: {} of {}", read.len(), known.len());
        }
        damaged.mend()?;
        load::compare_all(system, SOON).await.context("once it is mended")?;
        is_told(system, key)
    })
}
