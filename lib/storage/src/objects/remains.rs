//! What a bucket keeps besides objects as readers see them: older versions, delete markers, parts of uploads that nobody ended.
//!
//! Not every server has these, and one that has none does not know the calls that list them: what a bucket keeps is asked first.

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::types::{BucketVersioningStatus, Delete, ObjectIdentifier};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use schemas::paths::ObjectKey;

use super::{DELETE_KEYS_MAX, ObjectError, Objects};

/// Requests at once, where each key has to be asked for by itself.
const REQUESTS_AT_ONCE: usize = 8;

/// What a bucket keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keeps {
    /// Versions of objects and delete markers: a deletion by key alone removes nothing.
    pub versions: bool,
    /// Parts of uploads, and lists them. A server that cannot list them may keep them all the same.
    pub uploads: bool,
}

/// Something that lies in the bucket under a key: an object, a version of one, or a delete marker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lying {
    /// Its key; that of a stranger as text.
    pub key: Result<ObjectKey, String>,
    /// Its version, where the bucket keeps them.
    pub version: Option<String>,
}

/// An upload that was begun and not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenUpload {
    /// What it would become.
    pub key: ObjectKey,
    /// Its id at the server.
    pub upload: String,
    /// When it was begun, by the server's clock, in seconds since the epoch.
    pub begun_s: Option<i64>,
}

impl Objects {
    /// Asks what the bucket keeps.
    pub async fn keeps(&self) -> Result<Keeps, ObjectError> {
        let versions = self.keeps_versions().await?;
        let uploads = self.client.list_multipart_uploads().bucket(&self.bucket).max_uploads(1).send().await;
        let uploads = self.known("list uploads", uploads)?.is_some();
        Ok(Keeps { versions, uploads })
    }

    /// Asks whether it keeps versions: that can be switched on at any time.
    pub async fn keeps_versions(&self) -> Result<bool, ObjectError> {
        let versioning = self.client.get_bucket_versioning().bucket(&self.bucket).send().await;
        let status = self.known("ask for bucket's versioning", versioning)?.and_then(|answer| answer.status);
        Ok(matches!(status, Some(BucketVersioningStatus::Enabled | BucketVersioningStatus::Suspended)))
    }

    /// An answer, or none from a server that does not know the call.
    fn known<T, E>(&self, what: &'static str, answer: Result<T, SdkError<E>>) -> Result<Option<T>, ObjectError>
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
        SdkError<E>: std::error::Error,
    {
        match answer {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if error.code() == Some("NotImplemented") => Ok(None),
            Err(error) => Err(self.failed(what, error)),
        }
    }

    /// All that lies below a prefix, whatever readers see of it.
    pub async fn lying(&self, prefix: &str, keeps: Keeps) -> Result<Vec<Lying>, ObjectError> {
        if !keeps.versions {
            let found = self.list(prefix).await?;
            return Ok(found.into_iter().map(|key| Lying { key, version: None }).collect());
        }
        let mut found = Vec::new();
        let (mut key_marker, mut version_marker) = (None, None);
        loop {
            let page = self
                .client
                .list_object_versions()
                .bucket(&self.bucket)
                .prefix(format!("{}{prefix}", self.prefix))
                .set_key_marker(key_marker)
                .set_version_id_marker(version_marker)
                .send()
                .await
                .map_err(|error| self.failed("list versions", error))?;
            let versions = page.versions().iter().map(|version| (version.key(), version.version_id()));
            let markers = page.delete_markers().iter().map(|marker| (marker.key(), marker.version_id()));
            for (key, version) in versions.chain(markers) {
                let Some(key) = key else { continue };
                let key = self.parse_key(key).ok_or_else(|| key.to_owned());
                found.push(Lying { key, version: version.map(str::to_owned) });
            }
            (key_marker, version_marker) = (page.next_key_marker, page.next_version_id_marker);
            if page.is_truncated != Some(true) || key_marker.is_none() {
                return Ok(found);
            }
        }
    }

    /// Deletes what lies there for good, a version as that version; gives the keys of what S3 says that it could not delete. Strangers
    /// stay.
    pub async fn remove(&self, lying: &[Lying]) -> Result<Vec<ObjectKey>, ObjectError> {
        let mut left = Vec::new();
        for some in lying.chunks(DELETE_KEYS_MAX) {
            let identifiers = some
                .iter()
                .filter_map(|lying| Some((lying.key.as_ref().ok()?, &lying.version)))
                .map(|(key, version)| {
                    ObjectIdentifier::builder().key(self.full_key(key)).set_version_id(version.clone()).build()
                })
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| self.failed_text("name objects to delete", error.to_string()))?;
            if identifiers.is_empty() {
                continue;
            }
            let delete = Delete::builder()
                .set_objects(Some(identifiers))
                .quiet(true)
                .build()
                .map_err(|error| self.failed_text("name objects to delete", error.to_string()))?;
            let answer = self
                .client
                .delete_objects()
                .bucket(&self.bucket)
                .delete(delete)
                .send()
                .await
                .map_err(|error| self.failed("delete objects", error))?;
            // An answer of 200 holds errors inside.
            left.extend(answer.errors().iter().filter_map(|error| self.parse_key(error.key()?)));
        }
        Ok(left)
    }

    /// Deletes objects for good, with all their versions; gives those that S3 says it could not delete.
    pub async fn erase(&self, keys: &[ObjectKey], keeps: Keeps) -> Result<Vec<ObjectKey>, ObjectError> {
        if !keeps.versions {
            let lying: Vec<Lying> = keys.iter().map(|key| Lying { key: Ok(*key), version: None }).collect();
            return self.remove(&lying).await;
        }
        // Owned, since the compiler does not see that closures which borrow give futures that can be sent.
        let listing = stream::iter(keys.to_vec()).map(|key| async move {
            let found = self.lying(&key.to_string(), keeps).await?;
            Ok::<_, ObjectError>(found.into_iter().filter(move |lying| lying.key == Ok(key)))
        });
        let found: Vec<_> = listing.buffered(REQUESTS_AT_ONCE).try_collect().await?;
        self.remove(&found.into_iter().flatten().collect::<Vec<_>>()).await
    }

    /// Uploads below a prefix that were begun and not ended; none where the server cannot list them.
    pub async fn open_uploads(&self, prefix: &str, keeps: Keeps) -> Result<Vec<OpenUpload>, ObjectError> {
        let mut found = Vec::new();
        if !keeps.uploads {
            return Ok(found);
        }
        let (mut key_marker, mut upload_marker) = (None, None);
        loop {
            let page = self
                .client
                .list_multipart_uploads()
                .bucket(&self.bucket)
                .prefix(format!("{}{prefix}", self.prefix))
                .set_key_marker(key_marker)
                .set_upload_id_marker(upload_marker)
                .send()
                .await
                .map_err(|error| self.failed("list uploads", error))?;
            found.extend(page.uploads().iter().filter_map(|upload| {
                let key = self.parse_key(upload.key()?)?;
                let begun_s = upload.initiated().map(|at| at.secs());
                Some(OpenUpload { key, upload: upload.upload_id()?.to_owned(), begun_s })
            }));
            (key_marker, upload_marker) = (page.next_key_marker, page.next_upload_id_marker);
            if page.is_truncated != Some(true) || key_marker.is_none() {
                return Ok(found);
            }
        }
    }

    /// Ends an upload that nobody goes on with, and removes its parts. One that is gone already is no error.
    pub async fn abort(&self, key: &ObjectKey, upload: &str) -> Result<(), ObjectError> {
        let aborted = self
            .client
            .abort_multipart_upload()
            .bucket(&self.bucket)
            .key(self.full_key(key))
            .upload_id(upload)
            .send()
            .await;
        match aborted {
            Err(error) if error.code() != Some("NoSuchUpload") => Err(self.failed("give up upload in parts", error)),
            _ => Ok(()),
        }
    }
}
