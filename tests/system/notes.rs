//! How far a stream's masking has come is found wherever it lies.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use devstack::DeploymentOptions;
use masking::StreamState;
use schemas::http::StoredAs;
use schemas::stream_note::StreamNote;
use schemas::{SessionId, SessionKey};
use storage::inspect;
use storage::reading::Reader;
use uuid::Uuid;
use virtual_sdk::{Encoding, Form};

use crate::harness::{LATER, SOON, System, run};
use crate::load;

/// Goal: notes of streams are found in shared objects and, once they were merged, in session objects; they change nothing of what
/// is read, and go with their session. Method: the compactor stands still while a session goes on in two streams and has ended in
/// a third; whoever is asked then is a reader that has just come up.
#[test]
fn notes_of_streams_are_found_before_and_after_compaction_and_go_with_their_session() -> Result<()> {
    let options = DeploymentOptions::named("notes").with("compactor", "CLAIRVIO_RUN_AGE_MS", 1_000).with(
        "",
        "CLAIRVIO_SESSION_SILENCE_MS",
        600_000,
    );
    run(options, &[], async |system| {
        let compactor = system.service("compactor", 1);
        system.deployment.supervisor.pause(&compactor).await?;
        let (sdk, link) = (system.sdk(1)?, system.link("notes").await?);
        let session = load::begin(system, &sdk, &link).await?;
        for (stream, seq, end) in [(1, 0, false), (2, 0, false), (3, 0, true), (1, 1, false)] {
            let batch = load::small_batch(session.id, stream, seq, end, 10)?;
            load::send(system, &sdk, &session, &batch, Form::Lines, Encoding::Zstd).await?;
        }
        let key = system.key(session.id);
        load::wait_stored(&system.api, session.id, StoredAs::Shared, SOON).await?;
        load::compare_all(system, SOON).await?;
        let before = found(system, &key).await?;
        let nexts: Vec<(u32, u64)> = before.values().map(|note| (note.stream, note.next)).collect();
        ensure!(nexts == [(1, 2), (2, 1)], "one that has ended needs none: {before:?}");
        for note in before.values() {
            StreamState::decode(&note.state).with_context(|| format!("read the state of {note:?}"))?;
        }
        verify(system, "shared/").await?;

        system.deployment.supervisor.resume(&compactor).await?;
        load::wait_stored(&system.api, session.id, StoredAs::Object, LATER).await?;
        ensure!(found(system, &key).await? == before, "other notes are found in a session object");
        load::compare_all(system, SOON).await.context("with notes in a session object")?;

        let unknown = system.key(SessionId(Uuid::now_v7()));
        ensure!(found(system, &unknown).await?.is_empty(), "notes of an unknown session are found");
        system.api.delete_session(session.id).await?;
        system.ledger.forget(session.id);
        ensure!(found(system, &key).await?.is_empty(), "notes of a deleted session are found");
        Ok(())
    })
}

/// What a reader without anything in memory finds.
async fn found(system: &System<'_>, key: &SessionKey) -> Result<BTreeMap<u32, StreamNote>> {
    let reader =
        Reader::new(system.index.clone(), system.objects.clone(), system.keys.clone(), system.pool.clone(), 1 << 20);
    Ok(reader.stream_notes(key, &[1, 2, 3, 4]).await?)
}

/// Whoever looks into the objects below a prefix finds no fault with them, and notes in some.
async fn verify(system: &System<'_>, prefix: &str) -> Result<()> {
    let mut notes = 0;
    for object in system.objects.list(prefix).await? {
        let object = object.map_err(|name| anyhow::anyhow!("{name} is none of our objects"))?;
        let body = system.objects.get(&object).await?;
        let verified = inspect::verify(&system.keys, &system.pool, &object, body).await?;
        ensure!(verified.faults.is_empty(), "{object}: {:?}", verified.faults);
        notes += verified.notes.len();
    }
    ensure!(notes > 0, "no object has notes");
    Ok(())
}
