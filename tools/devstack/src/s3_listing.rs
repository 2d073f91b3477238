//! Lists of a stack's bucket. `s3s-fs` reads all folders of a bucket for each list; here only those are that a page needs, in the order
//! of keys, so that a bucket of many objects is listed as fast as S3 lists one. What large folders hold is remembered for as long as
//! they do not change: each page of a folder of 50,000 sessions would read all of it.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use hyper::http::Extensions;
use hyper::{HeaderMap, Method, Uri};
use s3s::dto::{Timestamp, TimestampFormat};
use s3s::route::S3Route;
use s3s::{Body, S3Request, S3Response, S3Result, s3_error};

const KEYS_MAX: usize = 1_000;
/// Children of a folder from which on they are remembered, and of how many folders.
const REMEMBERED_CHILDREN_MIN: usize = 1_000;
const REMEMBERED_FOLDERS_MAX: usize = 16;
/// A folder that changed less than this before it was read may change once more under the same time: file systems count time in
/// ticks of some milliseconds.
const SETTLED: Duration = Duration::from_millis(100);

/// Answers ListObjectsV2 without a delimiter for buckets that are folders below `root`.
pub(crate) struct Listing {
    root: PathBuf,
    folders: Arc<Folders>,
}

impl Listing {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, folders: Arc::default() }
    }
}

/// A file or a folder in a folder.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Child {
    /// In keys a folder ends with a slash, and by that they are in order.
    name: String,
    is_folder: bool,
}

/// What a folder held.
#[derive(Debug)]
struct Remembered {
    /// When it was changed last.
    changed_at: SystemTime,
    children: Arc<[Child]>,
}

/// What folders hold, in the order of keys.
#[derive(Debug, Default)]
struct Folders {
    /// Of large ones.
    remembered: Mutex<HashMap<PathBuf, Remembered>>,
}

impl Folders {
    /// What has been removed meanwhile is not there.
    fn children(&self, folder: &Path) -> io::Result<Arc<[Child]>> {
        let Some(changed_at) = there(fs::metadata(folder).and_then(|metadata| metadata.modified()))? else {
            return Ok(Arc::default());
        };
        let lock = || self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(remembered) = lock().get(folder)
            && remembered.changed_at == changed_at
        {
            return Ok(Arc::clone(&remembered.children));
        }
        let is_settled = changed_at.elapsed().is_ok_and(|age| age > SETTLED);
        let Some(entries) = there(fs::read_dir(folder))? else { return Ok(Arc::default()) };
        let mut children = Vec::new();
        for entry in entries {
            let Some(entry) = there(entry)? else { continue };
            let Ok(mut name) = entry.file_name().into_string() else { continue };
            let is_folder = entry.file_type()?.is_dir();
            if is_folder {
                name.push('/');
            }
            children.push(Child { name, is_folder });
        }
        children.sort_unstable();
        let children: Arc<[Child]> = children.into();
        if is_settled && children.len() >= REMEMBERED_CHILDREN_MIN {
            let mut remembered = lock();
            if remembered.len() >= REMEMBERED_FOLDERS_MAX {
                remembered.clear();
            }
            remembered.insert(folder.to_path_buf(), Remembered { changed_at, children: Arc::clone(&children) });
        }
        Ok(children)
    }
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
struct Query {
    bucket: String,
    prefix: String,
    after: String,
    max: usize,
}

impl Query {
    /// `None` for any other request.
    fn of(method: &Method, uri: &Uri) -> Option<Self> {
        let bucket = uri.path().trim_matches('/');
        if method != Method::GET || bucket.is_empty() || bucket.contains('/') || bucket.starts_with('.') {
            return None;
        }
        let mut query = Self { bucket: bucket.into(), prefix: String::new(), after: String::new(), max: KEYS_MAX };
        let mut is_list = false;
        let url = reqwest::Url::parse(&format!("http://s3/?{}", uri.query()?)).ok()?;
        for (name, value) in url.query_pairs() {
            match name.as_ref() {
                "list-type" => is_list = value == "2",
                "prefix" => query.prefix = value.into_owned(),
                // A token is the last key of the page before.
                "start-after" | "continuation-token" => query.after = query.after.max(value.into_owned()),
                "max-keys" => query.max = value.parse::<usize>().ok()?.min(KEYS_MAX),
                "delimiter" => return None,
                _ => {}
            }
        }
        is_list.then_some(query)
    }
}

#[async_trait]
impl S3Route for Listing {
    fn is_match(&self, method: &Method, uri: &Uri, _headers: &HeaderMap, _extensions: &mut Extensions) -> bool {
        Query::of(method, uri).is_some()
    }

    async fn call(&self, request: S3Request<Body>) -> S3Result<S3Response<Body>> {
        let query = Query::of(&request.method, &request.uri).ok_or_else(|| s3_error!(InvalidRequest))?;
        let folder = self.root.join(&query.bucket);
        if !folder.is_dir() {
            return Err(s3_error!(NoSuchBucket));
        }
        let folders = Arc::clone(&self.folders);
        let listed = tokio::task::spawn_blocking(move || {
            let mut page = Page {
                folders: &folders,
                prefix: &query.prefix,
                after: &query.after,
                max: query.max,
                found: Vec::new(),
            };
            page.walk(&folder)?;
            Ok::<_, io::Error>(answer(&query.bucket, &query.prefix, query.max, page.found))
        });
        let listed = listed.await.map_err(|_| s3_error!(InternalError))?;
        let mut response = S3Response::new(Body::from(listed.map_err(|_| s3_error!(InternalError))?));
        response.headers.insert("content-type", hyper::header::HeaderValue::from_static("application/xml"));
        Ok(response)
    }
}

#[derive(Debug)]
struct Found {
    key: String,
    bytes: u64,
    put_at: SystemTime,
}

struct Page<'a> {
    folders: &'a Folders,
    prefix: &'a str,
    after: &'a str,
    max: usize,
    /// In order, and one more than the page takes when there are more.
    found: Vec<Found>,
}

impl Page<'_> {
    fn walk(&mut self, bucket: &Path) -> io::Result<()> {
        // The folders that all of it lies in are not looked through.
        let (inner, _) = self.prefix.rsplit_once('/').unwrap_or_default();
        let is_plain = inner.split('/').all(|part| !matches!(part, "." | ".."));
        if !is_plain {
            return Ok(());
        }
        let base = if inner.is_empty() { String::new() } else { format!("{inner}/") };
        self.walk_folder(&bucket.join(inner), &base)
    }

    fn walk_folder(&mut self, folder: &Path, base: &str) -> io::Result<()> {
        let children = self.folders.children(folder)?;
        // Those that lie before what is asked for are not looked at one by one: of children the one that holds it begins with it up to
        // the slash.
        let begin = |bound: &str| {
            let inner = bound.strip_prefix(base).unwrap_or_default();
            inner.split_inclusive('/').next().unwrap_or_default().to_owned()
        };
        let begin = begin(self.after).max(begin(self.prefix));
        let first = children.partition_point(|child| child.name < begin);
        for Child { name, is_folder } in &children[first..] {
            let key = format!("{base}{name}");
            let is_past = key.as_str() > self.prefix && !key.starts_with(self.prefix);
            if is_past || self.found.len() > self.max {
                break;
            }
            if !self.may_hold(&key, *is_folder) {
                continue;
            }
            let path = folder.join(name);
            if *is_folder {
                self.walk_folder(&path, &key)?;
            } else if let Some(metadata) = there(fs::metadata(path))? {
                self.found.push(Found { key, bytes: metadata.len(), put_at: metadata.modified()? });
            }
        }
        Ok(())
    }

    fn may_hold(&self, key: &str, is_folder: bool) -> bool {
        let in_prefix = key.starts_with(self.prefix) || (is_folder && self.prefix.starts_with(key));
        in_prefix && (key > self.after || (is_folder && self.after.starts_with(key)))
    }
}

fn there<T>(outcome: io::Result<T>) -> io::Result<Option<T>> {
    match outcome {
        Ok(found) => Ok(Some(found)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

fn answer(bucket: &str, prefix: &str, max: usize, mut found: Vec<Found>) -> String {
    let is_truncated = found.len() > max;
    found.truncate(max);
    let mut contents = String::new();
    for Found { key, bytes, put_at } in &found {
        let mut at = Vec::new();
        // Times that have no such text are none that a file has.
        drop(Timestamp::from(*put_at).format(TimestampFormat::DateTime, &mut at));
        let (key, at) = (escaped(key), String::from_utf8_lossy(&at));
        contents.push_str(&format!(
            "<Contents><Key>{key}</Key><LastModified>{at}</LastModified><Size>{bytes}</Size></Contents>"
        ));
    }
    let next = found.last().filter(|_| is_truncated).map_or_else(String::new, |last| {
        format!("<NextContinuationToken>{}</NextContinuationToken>", escaped(&last.key))
    });
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>{}</Name>\
         <Prefix>{}</Prefix><KeyCount>{}</KeyCount><MaxKeys>{max}</MaxKeys><IsTruncated>{is_truncated}</IsTruncated>{next}{contents}\
         </ListBucketResult>",
        escaped(bucket),
        escaped(prefix),
        found.len()
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(uri: &str) -> Option<Query> {
        Query::of(&Method::GET, &uri.parse().expect("a uri"))
    }

    #[test]
    fn only_plain_lists_are_answered_here() {
        let asked = query("/clairvio/?list-type=2&prefix=a%2Fb&start-after=a%2Fb%2F1&max-keys=7").expect("a list");
        let wanted = Query { bucket: "clairvio".into(), prefix: "a/b".into(), after: "a/b/1".into(), max: 7 };
        assert_eq!(asked, wanted);
        assert_eq!(query("/clairvio?list-type=2").expect("a list").max, KEYS_MAX);
        for other in
            ["/clairvio", "/clairvio?list-type=1", "/clairvio?list-type=2&delimiter=%2F", "/clairvio/key?list-type=2"]
        {
            assert_eq!(query(other), None, "{other}");
        }
    }

    #[test]
    fn pages_of_any_size_give_all_keys_of_a_prefix_once_and_in_order() {
        let bucket = tempfile::tempdir().expect("a folder");
        // A folder's name and a file's are in the order of keys, in which a slash comes behind a dash.
        let mut keys = vec!["a-1", "a/1", "a/2/3", "a/2/4", "a/2-5", "a0", "b/1/2/3", "b/1/2/4", "c"];
        keys.sort_unstable();
        for key in &keys {
            let path = bucket.path().join(key);
            fs::create_dir_all(path.parent().expect("a folder")).expect("it can be made");
            fs::write(path, key).expect("it can be written");
        }
        fs::create_dir_all(bucket.path().join("empty/folder")).expect("it can be made");
        let folders = Folders::default();
        for prefix in ["", "a", "a/", "a/2", "a/2/", "b/1/2/4", "empty/", "missing/below", "../", "c/"] {
            let expected: Vec<&str> = keys.iter().copied().filter(|key| key.starts_with(prefix)).collect();
            for max in 1..=keys.len() {
                let (mut listed, mut after) = (Vec::new(), String::new());
                loop {
                    let mut page = Page { folders: &folders, prefix, after: &after, max, found: Vec::new() };
                    page.walk(bucket.path()).expect("a walk");
                    let is_truncated = page.found.len() > max;
                    let found: Vec<String> = page.found.into_iter().take(max).map(|found| found.key).collect();
                    listed.extend(found);
                    if !is_truncated {
                        break;
                    }
                    after = listed.last().expect("a page has keys").clone();
                }
                assert_eq!(listed, expected, "{prefix} by {max}");
            }
        }
    }

    #[test]
    fn large_folders_are_remembered_until_they_change() {
        let bucket = tempfile::tempdir().expect("a folder");
        let put = |key: usize| fs::write(bucket.path().join(format!("{key:05}")), "").expect("it can be written");
        (0..REMEMBERED_CHILDREN_MIN).for_each(put);
        let folders = Folders::default();
        let is_remembered = || folders.remembered.lock().expect("nobody panicked").contains_key(bucket.path());
        let count = || folders.children(bucket.path()).expect("it can be read").len();
        assert_eq!(count(), REMEMBERED_CHILDREN_MIN);
        assert!(!is_remembered(), "it may change within the same tick");
        let aged = fs::File::open(bucket.path()).expect("it can be opened");
        aged.set_modified(SystemTime::now() - 2 * SETTLED).expect("it can be aged");
        assert_eq!(count(), REMEMBERED_CHILDREN_MIN);
        assert!(is_remembered());
        put(REMEMBERED_CHILDREN_MIN);
        assert_eq!(count(), REMEMBERED_CHILDREN_MIN + 1, "a change is seen");
    }
}
