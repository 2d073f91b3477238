//! Lists of a stack's bucket. `s3s-fs` reads all folders of a bucket for each list; here only those are that a page needs, in the order
//! of keys, so that a bucket of many objects is listed as fast as S3 lists one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use async_trait::async_trait;
use hyper::http::Extensions;
use hyper::{HeaderMap, Method, Uri};
use s3s::dto::{Timestamp, TimestampFormat};
use s3s::route::S3Route;
use s3s::{Body, S3Request, S3Response, S3Result, s3_error};

const KEYS_MAX: usize = 1_000;

/// Answers ListObjectsV2 without a delimiter for buckets that are folders below `root`.
pub(crate) struct Listing {
    pub(crate) root: PathBuf,
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
        let listed = tokio::task::spawn_blocking(move || {
            let mut page = Page { prefix: &query.prefix, after: &query.after, max: query.max, found: Vec::new() };
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

    /// What has been removed meanwhile is not there.
    fn walk_folder(&mut self, folder: &Path, base: &str) -> io::Result<()> {
        let Some(entries) = there(fs::read_dir(folder))? else { return Ok(()) };
        let mut children = Vec::new();
        for entry in entries {
            let Some(entry) = there(entry)? else { continue };
            let Ok(name) = entry.file_name().into_string() else { continue };
            let is_folder = entry.file_type()?.is_dir();
            let key = if is_folder { format!("{base}{name}/") } else { format!("{base}{name}") };
            if self.may_hold(&key, is_folder) {
                children.push((key, is_folder, entry));
            }
        }
        children.sort_unstable_by(|(one, ..), (other, ..)| one.cmp(other));
        for (key, is_folder, entry) in children {
            if self.found.len() > self.max {
                break;
            }
            if is_folder {
                self.walk_folder(&entry.path(), &key)?;
            } else if let Some(metadata) = there(entry.metadata())? {
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
        for prefix in ["", "a", "a/", "a/2", "a/2/", "b/1/2/4", "empty/", "missing/below", "../", "c/"] {
            let expected: Vec<&str> = keys.iter().copied().filter(|key| key.starts_with(prefix)).collect();
            for max in 1..=keys.len() {
                let (mut listed, mut after) = (Vec::new(), String::new());
                loop {
                    let mut page = Page { prefix, after: &after, max, found: Vec::new() };
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
}
