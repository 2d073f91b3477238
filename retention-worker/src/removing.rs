//! What goes from the bucket: at the worker's pace, and forgotten once listings show nothing of it.

use std::collections::BTreeSet;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use schemas::paths::{self, ObjectKey};
use schemas::{ObjectId, SessionKey};
use storage::index::deletions::Removable;
use storage::objects::{DELETE_KEYS_MAX, Left, Looked, Lying, OpenUpload};

use crate::driver::Worker;
use crate::metrics;

/// Listings at once.
const LISTED_AT_ONCE: usize = 4;

/// What came of removing what lies there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Removed {
    /// Went.
    pub(crate) gone: usize,
    /// S3 was asked to delete it and did not.
    pub(crate) refused: usize,
}

impl Worker {
    /// Erases sessions of which listings show nothing; of others what is there is removed as far as there is room, and the next pass
    /// looks again. Whether something was left.
    pub(crate) async fn look_at(&mut self, mut wanted: BTreeSet<SessionKey>) -> anyhow::Result<bool> {
        let held = self.index.held_by_quarantine(&wanted).await?;
        ::metrics::counter!(metrics::HELD).increment(held.len() as u64);
        wanted.retain(|key| !held.contains(key));
        let Looked { absent, lying, uploads } = self.objects.look_at(&wanted, self.keeps).await?;
        self.index.mark_erased(&absent).await?;
        ::metrics::counter!(metrics::ERASED).increment(absent.len() as u64);
        // No row names them: uploads that landed late, or not at all.
        self.abort(&uploads).await?;
        let found = lying.len();
        let Removed { gone, .. } = self.remove_lying(lying).await?;
        ::metrics::counter!(metrics::RETURNED).increment(gone as u64);
        Ok(gone < found)
    }

    /// Removes what lies there and no row names, as far as there is room. Strangers stay, and are told of: only what they lie
    /// below waits for an operator, not all that stands behind it.
    pub(crate) async fn remove_lying(&mut self, lying: Vec<Lying>) -> anyhow::Result<Removed> {
        let (mut ours, strangers): (Vec<Lying>, Vec<Lying>) = lying.into_iter().partition(|lying| lying.key.is_ok());
        ours.truncate(self.pace.room(DELETE_KEYS_MAX, self.now_ms()));
        let left = self.objects.remove(&ours).await?;
        self.note_removal(&left);
        let strangers: Vec<String> = strangers.into_iter().filter_map(|lying| lying.key.err()).collect();
        if let Some(first) = strangers.first() {
            ::metrics::counter!(metrics::FAILURES).increment(1);
            tracing::error!(
                strangers = strangers.len(),
                first,
                "objects below the prefixes of what was deleted are not ours to delete; look at them"
            );
        }
        Ok(Removed { gone: ours.len().saturating_sub(left.len()), refused: left.len() })
    }

    /// What S3 was asked to delete is paid for; should it have deleted nothing, or asked for fewer requests, it is left alone for a while.
    fn note_removal(&mut self, left: &Left) {
        let (now_ms, was_held) = (self.now_ms(), self.pace.is_held());
        self.pace.take(left.asked(), now_ms);
        if left.wants_pause() {
            self.pace.hold(now_ms);
            ::metrics::counter!(metrics::HELD_BACK).increment(1);
            if !was_held {
                tracing::info!(objects = left.len(), "the bucket takes no more deletions for now; they wait");
            }
        } else if left.asked() > 0 {
            self.pace.go_on();
        }
    }

    pub(crate) async fn abort(&self, uploads: &[OpenUpload]) -> anyhow::Result<()> {
        for open in uploads {
            self.objects.abort(&open.key, &open.upload).await?;
            ::metrics::counter!(metrics::UPLOADS_ENDED).increment(1);
        }
        Ok(())
    }

    /// Deletes condemned objects. Those that S3 does not delete are tried again by the next pass.
    pub(crate) async fn delete(&mut self, removable: &[Removable]) -> anyhow::Result<()> {
        if removable.is_empty() {
            return Ok(());
        }
        let keys: Vec<ObjectKey> = removable.iter().map(|object| object.key).collect();
        let left = self.objects.erase(&keys, self.keeps).await?;
        self.note_removal(&left);
        let gone: Vec<ObjectId> = keys.iter().filter(|key| !left.contains(key)).map(ObjectKey::id).collect();
        self.index.mark_deleted(&gone).await?;
        Ok(())
    }

    /// Forgets the rows of deleted objects that a listing shows absent (R3).
    pub(crate) async fn verify(&self, deleted: &[Removable]) -> anyhow::Result<()> {
        // A listing, not the word of a delete: of sessions' objects one through all of them, of an export's parts one of its prefix, of
        // others by their keys.
        let mut sessions = BTreeSet::new();
        let (mut prefixes, mut unlived) = (BTreeSet::new(), BTreeSet::new());
        for object in deleted {
            let prefix = match object.key {
                ObjectKey::Session { key, .. } => {
                    sessions.insert(key);
                    continue;
                }
                ObjectKey::Export { workspace, export, .. } => paths::export_prefix(workspace, export),
                key => key.to_string(),
            };
            if !object.was_live {
                unlived.insert(prefix.clone());
            }
            prefixes.insert(prefix);
        }
        let Looked { mut lying, mut uploads, .. } = self.objects.look_at(&sessions, self.keeps).await?;
        for prefix in &unlived {
            uploads.extend(self.objects.open_uploads(prefix, self.keeps).await?);
        }
        // Of what was live every upload has ended.
        uploads.retain(|open| deleted.iter().any(|object| !object.was_live && object.key == open.key));
        self.abort(&uploads).await?;
        let listing = stream::iter(prefixes).map(|prefix| {
            let (bucket, keeps) = (self.objects.clone(), self.keeps);
            async move { bucket.lying(&prefix, keeps).await }
        });
        let listed: Vec<Vec<Lying>> = listing.buffer_unordered(LISTED_AT_ONCE).try_collect().await?;
        lying.extend(listed.into_iter().flatten());
        let there: BTreeSet<ObjectId> = lying.iter().filter_map(|lying| Some(lying.key.as_ref().ok()?.id())).collect();
        let mut absent = Vec::new();
        for id in deleted.iter().map(|object| object.key.id()) {
            if there.contains(&id) {
                ::metrics::counter!(metrics::RETURNED).increment(1);
                self.index.mark_undeleted(id).await?;
            } else {
                absent.push(id);
            }
        }
        if !absent.is_empty() {
            self.index.forget_objects(&absent).await?;
            ::metrics::counter!(metrics::REMOVED).increment(absent.len() as u64);
        }
        Ok(())
    }
}
