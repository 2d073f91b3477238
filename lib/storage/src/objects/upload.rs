//! An object that is written while it is made: only a few parts of it are in memory.

use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use bytes::{Bytes, BytesMut};
use schemas::limits::S3_PART_BYTES;
use schemas::paths::ObjectKey;
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;

use super::{ObjectError, Objects};

/// Parts of one upload that are under way at once.
const PARTS_AT_ONCE: usize = 2;

/// An upload under a name that is used once. With one request when it stays small, in parts when it does not.
///
/// It is ended by [`Upload::finish`] or [`Upload::give_up`]; parts of one that is just dropped lie there until somebody looks.
#[derive(Debug)]
pub struct Upload {
    objects: Objects,
    key: ObjectKey,
    hash: Sha256,
    bytes: u64,
    /// What was not sent yet.
    pending: BytesMut,
    parts: Option<Parts>,
}

#[derive(Debug)]
struct Parts {
    upload: String,
    next: i32,
    under_way: JoinSet<Result<CompletedPart, ObjectError>>,
    done: Vec<CompletedPart>,
}

/// What was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Put {
    /// Its bytes.
    pub bytes: u64,
    /// Their hash.
    pub sha256: [u8; 32],
}

impl Objects {
    /// Bytes that an upload of so many holds at most: what is gathered before parts are begun, by doubling, and parts under way.
    pub fn upload_held(&self, bytes: u64) -> u64 {
        let gathered = self.multipart_bytes.max(S3_PART_BYTES) + (PARTS_AT_ONCE as u64 + 1) * S3_PART_BYTES;
        bytes.min(gathered) * 2
    }

    /// Begins an upload. Nothing is sent yet.
    pub fn upload(&self, key: ObjectKey) -> Upload {
        Upload { objects: self.clone(), key, hash: Sha256::new(), bytes: 0, pending: BytesMut::new(), parts: None }
    }
}

impl Upload {
    /// The object's key.
    pub fn key(&self) -> ObjectKey {
        self.key
    }

    /// Appends to the object; waits while too many parts are under way.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<(), ObjectError> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.pending.extend_from_slice(bytes);
        let sent = self.send_parts().await;
        if sent.is_err() {
            self.give_up().await;
        }
        sent
    }

    async fn send_parts(&mut self) -> Result<(), ObjectError> {
        if self.parts.is_none() {
            if self.bytes <= self.objects.multipart_bytes.max(S3_PART_BYTES) {
                return Ok(());
            }
            let upload = self.objects.begin_parts(&self.key).await?;
            self.parts = Some(Parts { upload, next: 1, under_way: JoinSet::new(), done: Vec::new() });
        }
        while self.pending.len() as u64 >= S3_PART_BYTES {
            let part = self.pending.split_to(S3_PART_BYTES as usize).freeze();
            self.send_part(part).await?;
        }
        Ok(())
    }

    async fn send_part(&mut self, part: Bytes) -> Result<(), ObjectError> {
        let Some(parts) = &mut self.parts else { return Ok(()) };
        while parts.under_way.len() >= PARTS_AT_ONCE {
            parts.wait(&self.objects).await?;
        }
        let (objects, key, upload, number) = (self.objects.clone(), self.key, parts.upload.clone(), parts.next);
        parts.next += 1;
        parts.under_way.spawn(async move { objects.put_part(&key, &upload, number, part).await });
        Ok(())
    }

    /// Ends the object. It is in the bucket whole, or not at all.
    pub async fn finish(mut self) -> Result<Put, ObjectError> {
        let sha256: [u8; 32] = self.hash.clone().finalize().into();
        let pending = std::mem::take(&mut self.pending).freeze();
        if self.parts.is_none() {
            self.objects.put(&self.key, pending, &sha256).await?;
        } else if let Err(error) = self.end_parts(pending).await {
            self.give_up().await;
            return Err(error);
        }
        Ok(Put { bytes: self.bytes, sha256 })
    }

    async fn end_parts(&mut self, last: Bytes) -> Result<(), ObjectError> {
        if !last.is_empty() {
            self.send_part(last).await?;
        }
        let Some(parts) = &mut self.parts else { return Ok(()) };
        while !parts.under_way.is_empty() {
            parts.wait(&self.objects).await?;
        }
        parts.done.sort_by_key(|part| part.part_number);
        let (upload, done) = (parts.upload.clone(), std::mem::take(&mut parts.done));
        self.objects.end_parts(&self.key, &upload, done).await
    }

    /// Takes back what was sent. Where that fails too, parts stay.
    pub async fn give_up(&mut self) {
        if let Some(mut parts) = self.parts.take() {
            parts.under_way.shutdown().await;
            self.objects.give_up_parts(&self.key, &parts.upload).await;
        }
    }
}

impl Parts {
    async fn wait(&mut self, objects: &Objects) -> Result<(), ObjectError> {
        if let Some(ended) = self.under_way.join_next().await {
            let part = ended.map_err(|_| objects.failed_text("put part of object", "the task ended early".into()))?;
            self.done.push(part?);
        }
        Ok(())
    }
}

impl Objects {
    pub(super) async fn begin_parts(&self, key: &ObjectKey) -> Result<String, ObjectError> {
        let begun = self
            .client
            .create_multipart_upload()
            .bucket(&self.bucket)
            .key(self.full_key(key))
            .checksum_algorithm(ChecksumAlgorithm::Sha256)
            .send()
            .await
            .map_err(|error| self.failed("begin upload in parts", error))?;
        let no_id = || self.failed_text("begin upload in parts", "the answer names no upload".into());
        begun.upload_id.ok_or_else(no_id)
    }

    pub(super) async fn end_parts(
        &self,
        key: &ObjectKey,
        upload: &str,
        parts: Vec<CompletedPart>,
    ) -> Result<(), ObjectError> {
        self.client
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(self.full_key(key))
            .upload_id(upload)
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build())
            .send()
            .await
            .map(drop)
            .map_err(|error| self.failed("end upload in parts", error))
    }

    /// Its parts would lie there, and be paid for, until somebody looks. Where this fails too, that is how it is.
    pub(super) async fn give_up_parts(&self, key: &ObjectKey, upload: &str) {
        if let Err(error) = self.abort(key, upload).await {
            tracing::debug!(%error, "parts stay");
        }
    }
}
