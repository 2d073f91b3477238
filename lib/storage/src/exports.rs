//! Exports: archives of sessions, made, kept under a key of their own, and fetched.
//!
//! A [`Maker`] writes an archive into a [`Sink`]: into an answer, for one session ([`crate::reading`] says when that must end), or into
//! a [`Kept`], which seals it part by part into the bucket. What is kept is under a key of its own, a row of the key store beside
//! those of sessions: it is destroyed when the export is over, and so is what is left of it wherever it lies. What of it stands, who
//! makes it, and how a session that is deleted ends it, see [`crate::index::exports`].

mod archive;
mod fetching;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use engine::merge::Range;
use schemas::codec::hex;
use schemas::export::{self, FileEntry, Manifest, SessionManifest};
use schemas::http::ReceiptItem;
use schemas::limits::MIB;
use schemas::paths::ObjectKey;
use schemas::{DeletionId, ObjectId, SessionId, SessionKey};
use sealing::SealError;
use sealing::objects::{PartOf, seal_export};
use service_kit::pool::{Panicked, Pool};
use thiserror::Error;
use tokio::sync::mpsc;
use uuid::Uuid;

use archive::Archive;
pub use fetching::{fetch, total, while_open};

use crate::index::exports::{Building, Checkpoint, NewPart, Stands};
use crate::index::{Index, IndexError};
use crate::objects::{ObjectError, Objects, sha256};
use crate::reading::{Form, ReadError, Reader, Session};
use crate::session_keys::{DataKey, KeyError, SessionKeys};

/// Events of one file: what is in memory of it, three times over at most. A session of more has several files.
const FILE_BYTES: usize = 4 * MIB;
/// Bytes of an archive in one object but the last.
const PART_BYTES: usize = 8 * MIB;
/// Pieces that wait to be written.
const WAITING_MAX: usize = 4;
/// Sessions that are asked for at once for the archive's list.
const LISTED_AT_ONCE: i64 = 1_000;
/// Receipts at once: one of 10,000 sessions has some 400 KB.
const RECEIPTS_AT_ONCE: i64 = 16;

/// Why an archive is not made.
#[derive(Debug, Error)]
pub enum ExportError {
    /// The export's key was destroyed: it is over, whatever its row says. An index of a backup has it as it was.
    #[error("key of the export was destroyed")]
    Shredded,
    /// The export is over, or another makes it by now.
    #[error("export is over, or another makes it")]
    Over,
    /// The index.
    #[error("ask the index")]
    Index(#[from] IndexError),
    /// What stands beside its events cannot be had.
    #[error("ask what is known of a session")]
    Unavailable,
    /// A session cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The bucket does not take a part.
    #[error("put part of an archive")]
    Object(#[from] ObjectError),
    /// The export's key cannot be had.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// A part cannot be sealed.
    #[error("seal part of an archive")]
    Seal(#[from] SealError),
    /// The pool.
    #[error(transparent)]
    Pool(#[from] Panicked),
}

/// Where an archive goes.
pub trait Sink: Send {
    /// Why it does not.
    type Error: From<ReadError> + From<Panicked> + Send;

    /// Takes the next bytes.
    fn put(&mut self, bytes: Bytes) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Makes an archive.
#[derive(Debug)]
pub struct Maker<S> {
    pool: Pool,
    /// On the pool while it is worked at.
    archive: Option<Archive>,
    /// Where it goes.
    pub sink: S,
}

/// A session that was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// The session.
    pub session: SessionId,
    /// Events of it.
    pub events: u64,
    /// The hash of its manifest.
    pub manifest_sha256: [u8; 32],
}

/// A session's files.
struct Files {
    folder: String,
    /// Events that are in no file yet.
    pending: Vec<u8>,
    manifest: SessionManifest,
}

impl Files {
    fn add(&mut self, archive: &mut Archive, name: &str, body: &[u8]) {
        let path = format!("{}{name}", self.folder);
        let sha256 = hex(&archive.file(&path, body));
        self.manifest.files.push(FileEntry { path, bytes: body.len() as u64, sha256 });
    }

    /// Writes events that are whole into a file; what of the last one is there stays.
    fn cut(&mut self, archive: &mut Archive) {
        let Some(end) = memchr::memrchr(b'\n', &self.pending) else { return };
        let rest = self.pending.split_off(end + 1);
        let lines = std::mem::replace(&mut self.pending, rest);
        self.manifest.events += memchr::memchr_iter(b'\n', &lines).count() as u64;
        // The first is what tells of the session.
        self.add(archive, &format!("events-{:06}.ndjson", self.manifest.files.len()), &lines);
    }
}

fn json(value: &impl serde::Serialize) -> Vec<u8> {
    serde_json::to_vec_pretty(value).expect("what is written has texts as keys")
}

impl<S: Sink> Maker<S> {
    /// An archive that goes there, from its beginning or behind what stands of it.
    pub fn new(pool: Pool, sink: S) -> Self {
        let made_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { pool, archive: Some(Archive::new(made_s)), sink }
    }

    /// Does something with the archive on the pool, and passes on what came of it.
    async fn work<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Archive) -> (T, Vec<u8>) + Send + 'static,
    ) -> Result<T, S::Error> {
        let mut archive = self.archive.take().ok_or(Panicked)?;
        let ((done, bytes), archive) = self
            .pool
            .run(move || {
                let done = work(&mut archive);
                (done, archive)
            })
            .await?;
        self.archive = Some(archive);
        if !bytes.is_empty() {
            self.sink.put(bytes.into()).await?;
        }
        Ok(done)
    }

    /// Writes a session: `about`, which is what `GET /v1/sessions/{id}` tells of it, and its events. One that is damaged is written as
    /// far as it can be read.
    pub async fn session(&mut self, reader: &Reader, session: &Session, about: Vec<u8>) -> Result<Written, S::Error> {
        let id = session.snapshot.row.key.session;
        let mut files = Files {
            folder: export::session_folder(id),
            pending: Vec::new(),
            manifest: SessionManifest { session: id, files: Vec::new(), events: 0, damaged: false },
        };
        files = self
            .work(move |archive| {
                files.add(archive, "session.json", &about);
                (files, archive.take())
            })
            .await?;
        let (read, mut files) = self.events(reader, session, files).await?;
        if let Err(error) = read {
            tracing::error!(
                session = %id,
                error = %service_kit::telemetry::chain(&error),
                "a session cannot be read to its end; its export has what can"
            );
            files.manifest.damaged = true;
        }
        let written = move |archive: &mut Archive| {
            let manifest_sha256 = archive.file(&session_manifest(id), &json(&files.manifest));
            (Written { session: id, events: files.manifest.events, manifest_sha256 }, archive.take())
        };
        self.work(written).await
    }

    /// Writes a session's events. Also gives how reading them ended, which may be with damage and nothing else.
    async fn events(
        &mut self,
        reader: &Reader,
        session: &Session,
        mut files: Files,
    ) -> Result<(Result<(), ReadError>, Files), S::Error> {
        let (giving, given) = mpsc::channel::<Bytes>(WAITING_MAX);
        let reading = async move {
            // Gone with the reading's end: it is how the writing hears of that.
            let giving = giving;
            let give = |piece| {
                let giving = giving.clone();
                async move { giving.send(piece).await.map_err(|_| ReadError::HungUp) }
            };
            let all = Range { from: i64::MIN, to: i64::MAX };
            reader.events(session, all, Form::Lines, give).await
        };
        let writing = async move {
            let mut given = given;
            while let Some(piece) = given.recv().await {
                files.pending.extend_from_slice(&piece);
                if files.pending.len() >= FILE_BYTES {
                    files = self.cut(files).await?;
                }
            }
            self.cut(files).await
        };
        tokio::pin!(reading, writing);
        let (read, files): (Result<(), ReadError>, Result<Files, S::Error>) = tokio::select! {
            biased;
            read = &mut reading => match read {
                // What was read and waits is not written either: nobody may have it any more, or nobody takes it.
                Err(error) if !error.is_damage() => return Err(error.into()),
                read => (read, writing.await),
            },
            written = &mut writing => match written {
                Err(error) => return Err(error),
                written => (reading.await, written),
            },
        };
        match read {
            Err(error) if !error.is_damage() => Err(error.into()),
            read => Ok((read, files?)),
        }
    }

    /// Writes of a session that it cannot be read at all.
    pub async fn damaged(&mut self, session: SessionId) -> Result<Written, S::Error> {
        let manifest = SessionManifest { session, files: Vec::new(), events: 0, damaged: true };
        self.work(move |archive| {
            let manifest_sha256 = archive.file(&session_manifest(session), &json(&manifest));
            (Written { session, events: 0, manifest_sha256 }, archive.take())
        })
        .await
    }

    async fn cut(&mut self, mut files: Files) -> Result<Files, S::Error> {
        self.work(move |archive| {
            files.cut(archive);
            (files, archive.take())
        })
        .await
    }

    /// Ends the list of sums, and the archive, of one session alone.
    pub async fn end_of_one(&mut self, written: Written, mut manifest: Manifest) -> Result<(), S::Error> {
        self.work(move |archive| {
            let sums = sum_line(&session_manifest(written.session), &written.manifest_sha256);
            manifest.sums_sha256 = hex(&archive.file(export::SUMS, sums.as_bytes()));
            archive.file(export::MANIFEST, &json(&manifest));
            ((), archive.end_all())
        })
        .await
    }
}

fn session_manifest(session: SessionId) -> String {
    format!("{}{}", export::session_folder(session), export::MANIFEST)
}

/// As `sha256sum` writes it.
fn sum_line(path: &str, hash: &[u8; 32]) -> String {
    format!("{}  {path}\n", hex(hash))
}

fn receipt_path((deletion, part): (DeletionId, u32)) -> String {
    format!("receipts/{deletion}-{part:06}.jws")
}

/// An archive that is kept: sealed, in the bucket, part by part.
#[derive(Debug)]
pub struct Kept {
    index: Index,
    objects: Objects,
    keys: SessionKeys,
    pool: Pool,
    owner: Uuid,
    lease: Duration,
    building: Building,
    /// What was published, and what of it stands.
    published: Stands,
    /// Bytes that are in no part yet.
    pending: Vec<u8>,
    /// Sessions since the last checkpoint.
    sessions: Vec<Written>,
}

impl Sink for Kept {
    type Error = ExportError;

    async fn put(&mut self, bytes: Bytes) -> Result<(), ExportError> {
        self.pending.extend_from_slice(&bytes);
        while self.pending.len() >= PART_BYTES {
            let rest = self.pending.split_off(PART_BYTES);
            let part = std::mem::replace(&mut self.pending, rest);
            self.publish(part, None).await?;
        }
        Ok(())
    }
}

impl Kept {
    /// An export that `owner` has taken for `lease`, and goes on with behind what stands of it.
    pub fn new(
        index: Index,
        objects: Objects,
        keys: SessionKeys,
        pool: Pool,
        (owner, lease): (Uuid, Duration),
        building: Building,
    ) -> Self {
        let published = building.stands;
        let (pending, sessions) = (Vec::new(), Vec::new());
        Self { index, objects, keys, pool, owner, lease, building, published, pending, sessions }
    }

    async fn publish(&mut self, part: Vec<u8>, checkpoint: Option<bool>) -> Result<(), ExportError> {
        let of_export = SessionKey::of_export(self.building.workspace, self.building.id);
        let key = match self.keys.obtain(&[of_export]).await?.0.remove(&of_export) {
            Some(DataKey::Known(key)) => key,
            Some(DataKey::Shredded) => return Err(ExportError::Shredded),
            Some(DataKey::Closed(_)) => return Err(KeyError::NotUnwrapped(of_export.session).into()),
            None => return Err(KeyError::Missing(of_export.session).into()),
        };
        let (workspace, export, id) = (self.building.workspace, self.building.id, ObjectId(Uuid::now_v7()));
        let of = PartOf { workspace, export, object: id };
        let bytes = part.len() as u64;
        let sealing = move || seal_export(&key, &of, &part).map(|object| (sha256(&object), object));
        let (hash, object) = self.pool.run(sealing).await??;
        if !self.index.stage_export_part(self.owner, self.lease, &self.building, id).await? {
            return Err(ExportError::Over);
        }
        let object_bytes = object.len() as u64;
        self.objects.put(&ObjectKey::Export { workspace, export, id }, object.into(), &hash).await?;
        self.published.parts += 1;
        self.published.bytes += bytes;
        let new = NewPart { object: id, object_bytes, sha256: hash, number: self.published.parts, bytes };
        let checkpoint = checkpoint.map(|is_last| {
            self.published.sessions += self.sessions.len() as u64;
            self.published.events += self.sessions.iter().map(|written| written.events).sum::<u64>();
            let sessions = self.sessions.drain(..).map(|written| (written.session, written.manifest_sha256)).collect();
            Checkpoint { stands: self.published, sessions, is_last }
        });
        let is_published =
            self.index.publish_export_part(self.owner, self.lease, &self.building, &new, checkpoint.as_ref()).await?;
        if !is_published {
            return Err(ExportError::Over);
        }
        if checkpoint.is_some() {
            self.building.stands = self.published;
        }
        Ok(())
    }
}

impl Maker<Kept> {
    /// A session is written whole, and counts with the next checkpoint.
    pub fn note(&mut self, written: Written) {
        self.sink.sessions.push(written);
    }

    /// Whether sessions were written that do not stand.
    pub fn has_unkept(&self) -> bool {
        !self.sink.sessions.is_empty()
    }

    /// Bytes of the archive that do not stand.
    pub fn unkept_bytes(&self) -> u64 {
        self.sink.published.bytes - self.sink.building.stands.bytes + self.sink.pending.len() as u64
    }

    /// Has all that was written stand.
    pub async fn checkpoint(&mut self) -> Result<(), ExportError> {
        self.work(|archive| ((), archive.end_member())).await?;
        let part = std::mem::take(&mut self.sink.pending);
        self.sink.publish(part, Some(false)).await
    }

    /// Writes receipts, the list of sums and the archive's manifest: it is whole. All sessions stand by then.
    pub async fn end(&mut self) -> Result<(), ExportError> {
        let (index, building) = (self.sink.index.clone(), self.sink.building.clone());
        let (mut receipts, mut after) = (Vec::new(), None);
        loop {
            let some = index.receipts_to_export(&building, after, RECEIPTS_AT_ONCE).await?;
            let Some(last) = some.last() else { break };
            after = Some((last.deletion_id.0, last.part));
            let sums = move |archive: &mut Archive| {
                let file = |receipt: &ReceiptItem| {
                    let of = (receipt.deletion_id, receipt.part);
                    (of, archive.file(&receipt_path(of), receipt.receipt.as_bytes()))
                };
                let sums: Vec<((DeletionId, u32), [u8; 32])> = some.iter().map(file).collect();
                (sums, archive.take())
            };
            receipts.append(&mut self.work(sums).await?);
        }
        // A line of each session is as long as that of any.
        let line = sum_line(&session_manifest(SessionId(Uuid::nil())), &[0; 32]).len() as u64;
        let of_receipts: u64 = receipts.iter().map(|(of, hash)| sum_line(&receipt_path(*of), hash).len() as u64).sum();
        let bytes = building.stands.sessions * line + of_receipts;
        self.work(move |archive| (archive.begin(export::SUMS, bytes), archive.take())).await?;
        let (mut after, mut listed) = (None, 0);
        loop {
            let some = index.exported(building.id, after, LISTED_AT_ONCE).await?;
            let Some((last, _)) = some.last() else { break };
            after = Some(*last);
            listed += some.len() as u64;
            self.work(move |archive| {
                for (session, hash) in &some {
                    archive.write(sum_line(&session_manifest(*session), hash).as_bytes());
                }
                ((), archive.take())
            })
            .await?;
        }
        if listed != building.stands.sessions {
            return Err(IndexError::Row("export_session").into());
        }
        let mut manifest = Manifest {
            format: export::FORMAT.into(),
            version: export::VERSION,
            export: Some(building.id),
            workspace: building.workspace,
            scope: building.wanted.scope(),
            requested_at: building.requested_at,
            sessions: listed,
            events: building.stands.events,
            receipts: receipts.len() as u64,
            sums_sha256: String::new(),
        };
        self.work(move |archive| {
            for (of, hash) in &receipts {
                archive.write(sum_line(&receipt_path(*of), hash).as_bytes());
            }
            manifest.sums_sha256 = hex(&archive.end());
            archive.file(export::MANIFEST, &json(&manifest));
            ((), archive.end_all())
        })
        .await?;
        let part = std::mem::take(&mut self.sink.pending);
        self.sink.publish(part, Some(true)).await
    }
}
