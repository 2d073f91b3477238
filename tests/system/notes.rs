//! How far a stream's masking has come is found wherever it lies.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use devstack::DeploymentOptions;
use schemas::http::StoredAs;
use schemas::object::ObjectKind;
use schemas::paths::ObjectKey;
use schemas::stream_note::{self, StreamNote};
use schemas::{ObjectId, SessionId, SessionKey, shared_object};
use sealing::frames::{ChunkContext, ChunkKind, seal_chunk};
use sealing::objects::{chunk_opener, frame_at, seal_shared_footer};
use storage::footers::Footer;
use storage::inspect;
use storage::objects::finish;
use storage::reading::Reader;
use uuid::Uuid;
use virtual_sdk::{Encoding, Form};

use crate::harness::{LATER, SOON, System, run};
use crate::load;

fn note(stream: u32, next: u64) -> StreamNote {
    StreamNote { stream, next, state: format!("the state of {stream}").into_bytes() }
}

fn by_stream(notes: &[StreamNote]) -> BTreeMap<u32, StreamNote> {
    notes.iter().map(|note| (note.stream, note.clone())).collect()
}

/// Goal: notes of streams are found in shared objects and, once they were merged, in session objects; they change nothing of what
/// is read, and go with their session. Method: the compactor stands still while notes are laid behind the chunks of a session that
/// goes on in two streams and has ended in a third; whoever is asked then is a reader that has just come up.
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
        ensure!(found(system, &key).await?.is_empty(), "notes are found where none are");

        let notes = [note(1, 2), note(2, 1), note(3, 1)];
        plant(system, &key, &notes).await?;
        ensure!(found(system, &key).await? == by_stream(&notes), "notes in shared objects");
        load::compare_all(system, SOON).await.context("with notes in shared objects")?;

        system.deployment.supervisor.resume(&compactor).await?;
        load::wait_stored(&system.api, session.id, StoredAs::Object, LATER).await?;
        ensure!(found(system, &key).await? == by_stream(&notes[..2]), "notes in a session object");
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
    let reader = Reader::new(system.index.clone(), system.objects.clone(), system.keys.clone(), system.pool.clone());
    Ok(reader.stream_notes(key, &[1, 2, 3, 4]).await?)
}

/// Lays notes behind the chunks of a session, as a batcher would have done. The objects get other names, since footers are kept by
/// them (B10).
async fn plant(system: &System<'_>, session: &SessionKey, notes: &[StreamNote]) -> Result<()> {
    for object in system.objects.list("shared/").await? {
        let object = object.map_err(|name| anyhow::anyhow!("{name} is none of our objects"))?;
        let body = system.objects.get(&object).await?;
        let Some(Footer::Shared(footer)) = system.footer(object, &body).await? else { continue };
        if !footer.chunks.iter().any(|chunk| chunk.key == *session) {
            continue;
        }
        let id = ObjectId(Uuid::now_v7());
        let named = ObjectKey::Shared { partition: footer.partition, id };
        let mut planted = shared_object::Footer { object: id, chunks: Vec::new(), ..footer.as_ref().clone() };
        let mut new = ObjectKind::Shared.preamble().to_vec();
        for chunk in &footer.chunks {
            planted.chunks.push(with_note(system, chunk, &body, notes, &mut new).await?);
        }
        ensure!(planted.quarantined.is_empty(), "the test sends nothing that is set aside");
        let storage = system.keys.storage().await?;
        let region = seal_shared_footer(&storage, &planted)?;
        let (new, row) = finish(id, ObjectKind::Shared, new, &region, Some(storage.version), 0);
        system.objects.put(&named, new.clone(), &row.sha256).await?;
        sqlx::query(
            "update object set id = $6, bytes = $2, sha256 = $3, footer_at = $4, footer_len = $5 where id = $1",
        )
        .bind(object.id().0)
        .bind(row.bytes.cast_signed())
        .bind(row.sha256.as_slice())
        .bind(row.footer.at.cast_signed())
        .bind(row.footer.len.cast_signed())
        .bind(id.0)
        .execute(system.index.pool())
        .await?;
        system.objects.delete(&[object]).await?;
        verify(system, &named, new).await?;
    }
    Ok(())
}

async fn verify(system: &System<'_>, object: &ObjectKey, body: bytes::Bytes) -> Result<()> {
    let verified = inspect::verify(&system.keys, &system.pool, object, body).await?;
    ensure!(verified.faults.is_empty() && !verified.notes.is_empty(), "{:?}", verified.faults);
    Ok(())
}

/// A chunk once more, at the end of `body`, with the note of its stream behind its last frame.
async fn with_note(
    system: &System<'_>,
    chunk: &shared_object::Chunk,
    object: &[u8],
    notes: &[StreamNote],
    body: &mut Vec<u8>,
) -> Result<shared_object::Chunk> {
    let data_key = system.keys.key(&chunk.key).await?;
    let (opener, mut from, mut frames) = (chunk_opener(&data_key, chunk), chunk.at as usize, Vec::new());
    for (number, batch) in chunk.batches.iter().enumerate() {
        let sealed = &object[from..from + batch.len as usize];
        frames.push(opener.open(frame_at(number, chunk.batches.len()), sealed)?);
        from += sealed.len();
    }
    let (noted, _) = chunk.noted_frame().context("find the frame for a note")?;
    // Of what was sent later, an earlier chunk knew nothing.
    let next = u64::from(chunk.batches[noted].seq) + 1;
    let of_stream = notes.iter().filter(|note| note.stream == chunk.stream);
    let notes: Vec<StreamNote> = of_stream.map(|note| StreamNote { next, ..note.clone() }).collect();
    stream_note::append(&mut frames[noted], &notes);
    let (at, context) = (body.len() as u64, ChunkContext { session: chunk.key, kind: ChunkKind::Shared });
    let (id, lens) = seal_chunk(&data_key, context, frames.iter().map(Vec::as_slice), body)?;
    let mut planted = shared_object::Chunk { id: *id.as_bytes(), at, ..chunk.clone() };
    for (batch, len) in planted.batches.iter_mut().zip(lens) {
        batch.len = len as u32;
    }
    Ok(planted)
}
