//! What a bucket keeps besides objects as readers see them: older versions, delete markers, parts of uploads that nobody ended.
//!
//! Not every server has these, and one that has none does not know the calls that list them: what a bucket keeps is asked first.

use std::collections::BTreeSet;

use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::types::{BucketVersioningStatus, Delete, ObjectIdentifier};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use schemas::SessionKey;
use schemas::paths::{self, ObjectKey};

use super::{DELETE_KEYS_MAX, Listed, ListedTo, ObjectError, Objects};

/// Requests at once, where each key has to be asked for by itself.
const REQUESTS_AT_ONCE: usize = 8;

/// What S3 and servers like it answer when they want fewer requests: for a whole request, or for a key of one.
const THROTTLED: [&str; 5] =
    ["SlowDown", "ServiceUnavailable", "InternalError", "RequestLimitExceeded", "TooManyRequests"];
/// The same as numbers, where an answer has no more.
const THROTTLED_STATUS: [u16; 2] = [429, 503];

/// A page of a workspace's objects is worth its bytes when it covers so many of the sessions that are looked for.
const COVERED_MIN: usize = 4;

/// Which of these sessions, which are in order, has this key below its prefix, whatever stands behind that.
fn session_of(sessions: &[SessionKey], key: &str) -> Option<SessionKey> {
    let place = sessions.partition_point(|session| paths::session_prefix(session).as_str() <= key);
    let session = sessions[..place].last()?;
    key.starts_with(&paths::session_prefix(session)).then_some(*session)
}

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

/// Some of what lies below a prefix.
#[derive(Debug)]
pub struct LyingPage {
    /// What it is.
    pub lying: Vec<Lying>,
    /// Where the next page begins; none behind the last.
    pub next: Option<ListedTo>,
}

/// Sessions of which listings showed nothing: no object, no version, no delete marker, no upload. Nothing else makes one.
#[derive(Debug)]
pub struct Absent(BTreeSet<SessionKey>);

impl Absent {
    /// The sessions, in order.
    pub fn sessions(&self) -> impl Iterator<Item = &SessionKey> {
        self.0.iter()
    }

    /// Whether a session is one of them.
    pub fn contains(&self, key: &SessionKey) -> bool {
        self.0.contains(key)
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What listings showed of some sessions.
#[derive(Debug)]
pub struct Looked {
    /// Those that have nothing.
    pub absent: Absent,
    /// What lies below the others' prefixes.
    pub lying: Vec<Lying>,
    /// Uploads of the others.
    pub uploads: Vec<OpenUpload>,
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

/// What is left of what S3 was asked to delete.
#[derive(Debug, Default)]
pub struct Left {
    keys: Vec<ObjectKey>,
    asked: usize,
    is_throttled: bool,
}

impl Left {
    /// The keys; that of an object of which several versions are left as often.
    pub fn iter(&self) -> std::slice::Iter<'_, ObjectKey> {
        self.keys.iter()
    }

    /// Whether this key is among them.
    pub fn contains(&self, key: &ObjectKey) -> bool {
        self.keys.contains(key)
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many objects and versions S3 was asked to delete.
    pub fn asked(&self) -> usize {
        self.asked
    }

    /// Whether it deleted nothing, or asked for fewer requests: it is to be left alone for a while.
    pub fn wants_pause(&self) -> bool {
        self.is_throttled || (self.asked > 0 && self.keys.len() >= self.asked)
    }

    /// Notes an error that an answer of 200 holds inside.
    fn note(&mut self, key: Option<ObjectKey>, code: Option<&str>) {
        self.keys.extend(key);
        self.is_throttled |= code.is_some_and(|code| THROTTLED.contains(&code));
    }
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
        let (mut found, mut behind) = (Vec::new(), None);
        loop {
            let page = self.lying_page(prefix, behind.as_ref(), keeps).await?;
            found.extend(page.lying);
            behind = page.next;
            if behind.is_none() {
                return Ok(found);
            }
        }
    }

    /// A page of what lies below a prefix.
    pub async fn lying_page(
        &self,
        prefix: &str,
        behind: Option<&ListedTo>,
        keeps: Keeps,
    ) -> Result<LyingPage, ObjectError> {
        let page = self.list_page(prefix, behind, keeps.versions).await?;
        let lying = page.listed.into_iter().map(|listed| self.lying_there(listed)).collect();
        Ok(LyingPage { lying, next: page.next })
    }

    fn lying_there(&self, listed: Listed) -> Lying {
        let key = ObjectKey::parse(&listed.key).ok_or_else(|| format!("{}{}", self.prefix, listed.key));
        Lying { key, version: listed.version }
    }

    /// Looks at what lies below the prefixes of these sessions: with one listing of each, or far fewer where they lie close together.
    pub async fn look_at(&self, sessions: &BTreeSet<SessionKey>, keeps: Keeps) -> Result<Looked, ObjectError> {
        let mut present = BTreeSet::new();
        let (mut lying, mut uploads) = (Vec::new(), Vec::new());
        let ordered: Vec<SessionKey> = sessions.iter().copied().collect();
        for of_workspace in ordered.chunk_by(|one, other| one.workspace == other.workspace) {
            let Some(first) = of_workspace.first() else { continue };
            for (session, found) in self.lying_of(of_workspace, keeps).await? {
                present.insert(session);
                lying.push(found);
            }
            // There are never many: they are listed at once, and others' are passed over.
            let one = (of_workspace.len() == 1).then(|| paths::session_prefix(first));
            let prefix = one.unwrap_or_else(|| paths::workspace_prefix(first.workspace));
            for open in self.open_uploads(&prefix, keeps).await? {
                if let ObjectKey::Session { key, .. } = open.key
                    && sessions.contains(&key)
                {
                    present.insert(key);
                    uploads.push(open);
                }
            }
        }
        Ok(Looked { absent: Absent(sessions.difference(&present).copied().collect()), lying, uploads })
    }

    /// What lies below the prefixes of sessions of one workspace, which are in order. The workspace is walked page by page, from session to
    /// session, for as long as a page covers several; else each is asked for by itself.
    async fn lying_of(&self, sessions: &[SessionKey], keeps: Keeps) -> Result<Vec<(SessionKey, Lying)>, ObjectError> {
        let mut found = Vec::new();
        let mut left = sessions;
        while let [first, others @ ..] = left {
            if others.len() < COVERED_MIN {
                break;
            }
            let behind = ListedTo { key: paths::session_prefix(first), version: None };
            let page = self.list_page(&paths::workspace_prefix(first.workspace), Some(&behind), keeps.versions).await?;
            for listed in page.listed {
                if let Some(session) = session_of(left, &listed.key) {
                    found.push((session, self.lying_there(listed)));
                }
            }
            let Some(ListedTo { key: last, .. }) = page.next else { return Ok(found) };
            // The session in which the page ends may go on behind it: it is looked at by itself, and what is known of it twice
            // is no harm.
            let covered = left.partition_point(|session| {
                let prefix = paths::session_prefix(session);
                prefix.as_str() < last.as_str() && !last.starts_with(&prefix)
            });
            left = &left[covered..];
            if covered < COVERED_MIN {
                break;
            }
        }
        let listing = stream::iter(left.to_vec()).map(|session| async move {
            let lying = self.lying(&paths::session_prefix(&session), keeps).await?;
            Ok::<_, ObjectError>(lying.into_iter().map(move |lying| (session, lying)))
        });
        let listed: Vec<_> = listing.buffer_unordered(REQUESTS_AT_ONCE).try_collect().await?;
        found.extend(listed.into_iter().flatten());
        Ok(found)
    }

    /// Deletes what lies there for good, a version as that version; gives what S3 says that it could not delete, and what it was not
    /// asked to any more once it had asked for fewer requests. Strangers stay.
    pub async fn remove(&self, lying: &[Lying]) -> Result<Left, ObjectError> {
        let ours: Vec<(&ObjectKey, &Option<String>)> =
            lying.iter().filter_map(|lying| Some((lying.key.as_ref().ok()?, &lying.version))).collect();
        let mut left = Left::default();
        for some in ours.chunks(DELETE_KEYS_MAX) {
            if left.is_throttled {
                left.keys.extend(some.iter().map(|(key, _)| **key));
                continue;
            }
            left.asked += some.len();
            let identifiers = some
                .iter()
                .map(|(key, version)| {
                    ObjectIdentifier::builder().key(self.full_key(key)).set_version_id((*version).clone()).build()
                })
                .collect::<Result<Vec<_>, _>>()
                .map_err(|error| self.failed_text("name objects to delete", error.to_string()))?;
            let delete = Delete::builder()
                .set_objects(Some(identifiers))
                .quiet(true)
                .build()
                .map_err(|error| self.failed_text("name objects to delete", error.to_string()))?;
            match self.client.delete_objects().bucket(&self.bucket).delete(delete).send().await {
                Ok(answer) => answer.errors().iter().for_each(|error| {
                    left.note(error.key().and_then(|key| self.parse_key(key)), error.code());
                }),
                // The client has tried it several times by then.
                Err(error) if is_throttled(&error) => {
                    left.is_throttled = true;
                    left.keys.extend(some.iter().map(|(key, _)| **key));
                }
                Err(error) => return Err(self.failed("delete objects", error)),
            }
        }
        Ok(left)
    }

    /// Deletes objects for good, with all their versions; gives those that S3 says it could not delete.
    pub async fn erase(&self, keys: &[ObjectKey], keeps: Keeps) -> Result<Left, ObjectError> {
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

/// Whether the server wants fewer requests.
pub(super) fn is_throttled<E: ProvideErrorMetadata>(error: &SdkError<E>) -> bool {
    let status = error.raw_response().map(|response| response.status().as_u16());
    error.code().is_some_and(|code| THROTTLED.contains(&code))
        || status.is_some_and(|status| THROTTLED_STATUS.contains(&status))
}

#[cfg(test)]
mod tests {
    use schemas::{ObjectId, SessionId, WorkspaceId};
    use uuid::Uuid;

    use super::super::stub;
    use super::*;

    async fn bucket(answers: Vec<(u16, String)>) -> Objects {
        stub::bucket(answers).await.0
    }

    fn keys(count: u128) -> Vec<ObjectKey> {
        (0..count).map(|number| ObjectKey::Shared { partition: 0, id: ObjectId(Uuid::from_u128(number)) }).collect()
    }

    fn deleted_but(keys: &[ObjectKey], code: &str) -> String {
        let errors = keys.iter().map(|key| format!("<Error><Key>some/{key}</Key><Code>{code}</Code></Error>"));
        format!("<DeleteResult>{}</DeleteResult>", errors.collect::<String>())
    }

    const KEEPS: Keeps = Keeps { versions: false, uploads: false };

    #[tokio::test]
    async fn a_key_that_s3_is_too_busy_for_is_left_and_s3_is_left_alone() {
        let keys = keys(5);
        for (code, wants_pause) in [("SlowDown", true), ("InternalError", true), ("AccessDenied", false)] {
            let left = bucket(vec![(200, deleted_but(&keys[1..3], code))]).await.erase(&keys, KEEPS).await.unwrap();
            assert_eq!((left.keys.as_slice(), left.asked()), (&keys[1..3], 5), "{code}");
            assert_eq!(left.wants_pause(), wants_pause, "{code}");
        }
        let left = bucket(vec![(200, deleted_but(&[], ""))]).await.erase(&keys, KEEPS).await.unwrap();
        assert!(left.is_empty() && !left.wants_pause());
        // Who may not delete anything does not ask on and on.
        let left = bucket(vec![(200, deleted_but(&keys, "AccessDenied"))]).await.erase(&keys, KEEPS).await.unwrap();
        assert!(left.wants_pause());
    }

    #[tokio::test]
    async fn a_request_that_s3_is_too_busy_for_is_the_last_one() {
        let keys = keys(DELETE_KEYS_MAX as u128 + 1);
        let slow_down = "<Error><Code>SlowDown</Code></Error>";
        for (status, body) in [(503, slow_down), (503, ""), (429, "")] {
            let left = bucket(vec![(status, body.into())]).await.erase(&keys, KEEPS).await.unwrap();
            assert!(left.wants_pause(), "{status}");
            assert_eq!((left.len(), left.asked()), (keys.len(), DELETE_KEYS_MAX), "{status}");
        }
        // What it says later is heard by the next request: the client has tried again.
        let answers = vec![(503, slow_down.into()), (200, deleted_but(&[], ""))];
        let left = bucket(answers).await.erase(&keys[..9], KEEPS).await.unwrap();
        assert!(left.is_empty() && !left.wants_pause());
        let denied = "<Error><Code>AccessDenied</Code></Error>";
        assert!(bucket(vec![(403, denied.into())]).await.erase(&keys, KEEPS).await.is_err());
    }

    #[test]
    fn a_key_is_of_the_session_whose_prefix_it_has() {
        let session = |number| SessionKey {
            workspace: WorkspaceId(Uuid::from_u128(1)),
            session: SessionId(Uuid::from_u128(number)),
        };
        let sessions = [session(1), session(3), session(0x10)];
        for number in 0..0x20 {
            let expected = sessions.contains(&session(number)).then(|| session(number));
            for name in ["", "0", "stranger/below"] {
                let key = format!("{}{name}", paths::session_prefix(&session(number)));
                assert_eq!(session_of(&sessions, &key), expected, "{key}");
            }
        }
        assert_eq!(session_of(&sessions, "shared/00000/x"), None);
        assert_eq!(session_of(&[], "sessions/"), None);
    }
}
