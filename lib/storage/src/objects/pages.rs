//! What lies in the bucket, page by page: a bucket may have more than fits into memory.

use aws_sdk_s3::primitives::DateTime;

use super::{ObjectError, Objects};

/// How far a list of the bucket has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedTo {
    /// The last key, without the deployment's prefix.
    pub key: String,
    /// Its last version, where versions are listed and the key may have more of them.
    pub version: Option<String>,
}

/// Something that lies in the bucket: an object, a version of one, or a delete marker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its key, without the deployment's prefix.
    pub key: String,
    /// Its version, where versions are listed.
    pub version: Option<String>,
    /// Whether readers see it.
    pub is_object: bool,
    /// When it was put, by the server's clock, in seconds since the epoch.
    pub put_s: i64,
}

/// A page of what lies in the bucket: 1,000 keys or versions at most, in the order of keys.
#[derive(Debug)]
pub struct Page {
    /// What lies there.
    pub listed: Vec<Listed>,
    /// Where the next page begins; none behind the last one.
    pub next: Option<ListedTo>,
}

impl Objects {
    /// The page of what lies below a prefix behind the place given. With `versions` that is each version and delete marker, else what
    /// readers see. One request.
    pub async fn list_page(&self, prefix: &str, after: Option<&ListedTo>, versions: bool) -> Result<Page, ObjectError> {
        if versions { self.versions_page(prefix, after).await } else { self.objects_page(prefix, after).await }
    }

    async fn objects_page(&self, prefix: &str, after: Option<&ListedTo>) -> Result<Page, ObjectError> {
        let page = self
            .client
            .list_objects_v2()
            .bucket(&self.bucket)
            .prefix(format!("{}{prefix}", self.prefix))
            .set_start_after(after.map(|after| format!("{}{}", self.prefix, after.key)))
            .send()
            .await
            .map_err(|error| self.failed("list objects", error))?;
        let listed: Vec<Listed> = page
            .contents()
            .iter()
            .filter_map(|object| {
                let (key, put_s) = (self.own(object.key()?)?, put_s(object.last_modified()));
                Some(Listed { key, version: None, is_object: true, put_s })
            })
            .collect();
        let last = listed.last().map(|last| ListedTo { key: last.key.clone(), version: None });
        let next = if page.is_truncated == Some(true) { Some(last.ok_or_else(|| self.endless())?) } else { None };
        Ok(Page { listed, next })
    }

    async fn versions_page(&self, prefix: &str, after: Option<&ListedTo>) -> Result<Page, ObjectError> {
        let page = self
            .client
            .list_object_versions()
            .bucket(&self.bucket)
            .prefix(format!("{}{prefix}", self.prefix))
            .set_key_marker(after.map(|after| format!("{}{}", self.prefix, after.key)))
            .set_version_id_marker(after.and_then(|after| after.version.clone()))
            .send()
            .await
            .map_err(|error| self.failed("list versions", error))?;
        let versions = page.versions().iter().map(|version| {
            (version.key(), version.version_id(), version.is_latest() == Some(true), put_s(version.last_modified()))
        });
        let markers = page
            .delete_markers()
            .iter()
            .map(|marker| (marker.key(), marker.version_id(), false, put_s(marker.last_modified())));
        let mut listed: Vec<Listed> = versions
            .chain(markers)
            .filter_map(|(key, version, is_object, put_s)| {
                Some(Listed { key: self.own(key?)?, version: version.map(str::to_owned), is_object, put_s })
            })
            // A marker without a version is to mean: behind all versions of the key. Not every server takes it so.
            .filter(|listed| after.is_none_or(|after| after.version.is_some() || listed.key > after.key))
            .collect();
        // The answer has versions and markers in one order, which the client takes apart.
        listed.sort_by(|one, other| one.key.cmp(&other.key));
        let next = match (page.is_truncated, page.next_key_marker) {
            (Some(true), Some(key)) => {
                let key = self.own(&key).ok_or_else(|| self.endless())?;
                Some(ListedTo { key, version: page.next_version_id_marker })
            }
            (Some(true), None) => return Err(self.endless()),
            _ => None,
        };
        Ok(Page { listed, next })
    }

    fn own(&self, full: &str) -> Option<String> {
        full.strip_prefix(&self.prefix).map(str::to_owned)
    }

    /// A list that says that there is more and not where: who took it for the end would take what is there for absent.
    fn endless(&self) -> ObjectError {
        self.failed_text("list objects", "the answer goes on, and does not say where".into())
    }
}

/// What has no time counts as put just now: nothing is done to it.
fn put_s(at: Option<&DateTime>) -> i64 {
    at.map_or(i64::MAX, DateTime::secs)
}
