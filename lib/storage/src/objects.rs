//! Objects in S3, by the keys of [`schemas::paths`].

mod lifecycle;
mod pages;
mod remains;
#[cfg(test)]
mod stub;
mod upload;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_sdk_s3::config::interceptors::{
    BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef,
};
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, ConfigBag, Intercept, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    RuntimeComponents,
};
use aws_sdk_s3::error::{BoxError, DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::{ByteStream, DateTime, DateTimeFormat};
use aws_sdk_s3::types::CompletedPart;
use aws_smithy_http_client::tls;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use schemas::ObjectId;
use schemas::limits::{S3_PART_BYTES, S3_PARTS_AT_ONCE};
use schemas::object::ObjectKind;
use schemas::paths::ObjectKey;
use sealing::keyring::KeyVersion;
use service_kit::config::s3::S3Config;
use service_kit::telemetry::Described;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::index::{FooterAt, Uploaded};

pub use lifecycle::Lifecycle;
pub use pages::{Listed, ListedTo, Page};
pub use remains::{Absent, Keeps, Left, Looked, Lying, LyingPage, OpenUpload};
pub use upload::{Put, Upload};

/// Keys in one request to delete; S3's own bound.
pub const DELETE_KEYS_MAX: usize = 1_000;

/// How often a request is sent at most.
const TRIES: u32 = 3;

const REQUESTS: &str = "s3_requests_total";
/// Requests to S3, for the metrics of a service that sends any.
pub const REQUESTS_DESCRIBED: Described =
    Described::Counter(REQUESTS, "Requests sent to S3, repetitions among them, by operation: each is paid for.");

/// Why S3 did not do what was asked.
#[derive(Debug, Error)]
pub enum ObjectError {
    /// There is no such object.
    #[error("object is absent")]
    Absent,
    /// The object ends before the range that was asked for: it was cut.
    #[error("object is shorter than it was")]
    Short,
    /// The bucket lies elsewhere than configured (P5). Trying again does not help.
    #[error("bucket {bucket} lies in {found}, not in {wanted}\n  hint: set S3_REGION or S3_BUCKET")]
    Region {
        /// The bucket.
        bucket: String,
        /// Where it is.
        found: String,
        /// Where it should be.
        wanted: String,
    },
    /// The server refused or did not answer.
    #[error("{what} at {endpoint}: {reason}")]
    Failed {
        /// What was tried.
        what: &'static str,
        /// Where.
        endpoint: String,
        /// The client's words.
        reason: String,
    },
}

impl ObjectError {
    /// Whether what lies in the bucket is at fault: it will be so for ever.
    pub fn is_damage(&self) -> bool {
        matches!(self, Self::Absent | Self::Short)
    }
}

/// The bucket.
#[derive(Debug, Clone)]
pub struct Objects {
    client: aws_sdk_s3::Client,
    bucket: String,
    prefix: String,
    region: String,
    endpoint: String,
    multipart_bytes: u64,
    clock: Arc<AtomicI64>,
}

impl Objects {
    /// A client of the configured bucket. Connects on first use.
    pub fn new(config: &S3Config) -> Self {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
            .build_https();
        let clock = Arc::new(AtomicI64::new(0));
        let mut builder = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http)
            .interceptor(RequestCounter { clock: Arc::clone(&clock) })
            .region(Region::new(config.region.clone()))
            .credentials_provider(Credentials::new(&config.access_key, &config.secret_key, None, None, "configuration"))
            .force_path_style(true)
            // Uploads carry a SHA-256 of their own; the default would send a trailer that not every server knows.
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_config(RetryConfig::standard().with_max_attempts(TRIES))
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(Duration::from_secs(3))
                    .operation_timeout(config.request_timeout)
                    .build(),
            );
        if let Some(endpoint) = &config.endpoint {
            builder = builder.endpoint_url(endpoint);
        }
        Self {
            client: aws_sdk_s3::Client::from_conf(builder.build()),
            bucket: config.bucket.clone(),
            prefix: config.prefix.clone(),
            region: config.region.clone(),
            endpoint: config.endpoint.clone().unwrap_or_else(|| "AWS".into()),
            multipart_bytes: config.multipart_bytes,
            clock,
        }
    }

    /// What the server's clock says, in seconds since the epoch: its answers bear their date.
    pub async fn now_s(&self) -> Result<i64, ObjectError> {
        self.clock.store(0, Ordering::Relaxed);
        let asked = self.client.head_bucket().bucket(&self.bucket).send().await;
        asked.map_err(|error| self.failed("ask for server's time", error))?;
        match self.clock.load(Ordering::Relaxed) {
            0 => Err(self.failed_text("ask for server's time", "the answer bears no date".into())),
            now_s => Ok(now_s),
        }
    }

    /// Checks that the bucket is there and lies in the configured region (P5).
    pub async fn check(&self) -> Result<(), ObjectError> {
        self.client
            .head_bucket()
            .bucket(&self.bucket)
            .send()
            .await
            .map_err(|error| self.failed("find bucket", error))?;
        let location = self
            .client
            .get_bucket_location()
            .bucket(&self.bucket)
            .send()
            .await
            .map_err(|error| self.failed("ask for bucket's region", error))?;
        // S3 says nothing for its first region.
        let found = location.location_constraint().map_or("us-east-1", |constraint| constraint.as_str());
        let found = if found.is_empty() { "us-east-1" } else { found };
        if found != self.region {
            return Err(ObjectError::Region {
                bucket: self.bucket.clone(),
                found: found.to_owned(),
                wanted: self.region.clone(),
            });
        }
        Ok(())
    }

    /// Puts an object under a name that is used once: with one request, or in parts when it is large. The server checks the
    /// hash, or that of each part. Gives the requests that were paid for.
    pub async fn put(&self, key: &ObjectKey, body: Bytes, sha256: &[u8; 32]) -> Result<u64, ObjectError> {
        if body.len() as u64 > self.multipart_bytes {
            return self.put_in_parts(key, body).await;
        }
        self.client
            .put_object()
            .bucket(&self.bucket)
            .key(self.full_key(key))
            .checksum_sha256(STANDARD.encode(sha256))
            .body(ByteStream::from(body))
            .send()
            .await
            .map(|_| 1)
            .map_err(|error| self.failed("put object", error))
    }

    async fn put_in_parts(&self, key: &ObjectKey, body: Bytes) -> Result<u64, ObjectError> {
        let upload = self.begin_parts(key).await?;
        let put = self.put_parts(key, &upload, &body).await;
        if put.is_err() {
            self.give_up_parts(key, &upload).await;
        }
        put.map(|parts| parts + 2)
    }

    /// Gives the number of parts.
    async fn put_parts(&self, key: &ObjectKey, upload: &str, body: &Bytes) -> Result<u64, ObjectError> {
        let part_bytes = S3_PART_BYTES as usize;
        let places = (0..body.len()).step_by(part_bytes).map(|at| body.slice(at..body.len().min(at + part_bytes)));
        let parts: Vec<CompletedPart> = futures::stream::iter(places.zip(1..))
            .map(|(part, number)| self.put_part(key, upload, number, part))
            .buffered(S3_PARTS_AT_ONCE)
            .try_collect()
            .await?;
        let count = parts.len() as u64;
        self.end_parts(key, upload, parts).await?;
        Ok(count)
    }

    async fn put_part(
        &self,
        key: &ObjectKey,
        upload: &str,
        number: i32,
        part: Bytes,
    ) -> Result<CompletedPart, ObjectError> {
        let checksum = STANDARD.encode(sha256(&part));
        let answer = self
            .client
            .upload_part()
            .bucket(&self.bucket)
            .key(self.full_key(key))
            .upload_id(upload)
            .part_number(number)
            .checksum_sha256(&checksum)
            .body(ByteStream::from(part))
            .send()
            .await
            .map_err(|error| self.failed("put part of object", error))?;
        let part = CompletedPart::builder().part_number(number).checksum_sha256(checksum);
        Ok(part.set_e_tag(answer.e_tag).build())
    }

    /// The bytes `at..at + len` of an object.
    pub async fn get_range(&self, key: &ObjectKey, at: u64, len: u64) -> Result<Bytes, ObjectError> {
        if len == 0 {
            return Ok(Bytes::new());
        }
        let range = format!("bytes={at}-{}", at + len - 1);
        let body = self.get_with(key, Some(range)).await?;
        if body.len() as u64 == len { Ok(body) } else { Err(ObjectError::Short) }
    }

    /// A whole object.
    pub async fn get(&self, key: &ObjectKey) -> Result<Bytes, ObjectError> {
        self.get_with(key, None).await
    }

    async fn get_with(&self, key: &ObjectKey, range: Option<String>) -> Result<Bytes, ObjectError> {
        let mut tries = 1;
        loop {
            let body = self.get_body(key, range.clone()).await?.collect().await;
            match body {
                Ok(body) => return Ok(body.into_bytes()),
                // The client repeats what fails before the body: a connection that ends within it is no other case.
                Err(_) if tries < TRIES => tries += 1,
                Err(error) => return Err(self.failed_text("read object", error.to_string())),
            }
        }
    }

    async fn get_body(&self, key: &ObjectKey, range: Option<String>) -> Result<ByteStream, ObjectError> {
        let answer =
            self.client.get_object().bucket(&self.bucket).key(self.full_key(key)).set_range(range).send().await;
        match answer {
            Ok(answer) => Ok(answer.body),
            Err(SdkError::ServiceError(error)) if error.err().is_no_such_key() => Err(ObjectError::Absent),
            Err(SdkError::ServiceError(error)) if error.err().code() == Some("InvalidRange") => Err(ObjectError::Short),
            Err(error) => Err(self.failed("get object", error)),
        }
    }

    /// The hash of an object as it lies in the bucket, piece by piece: it may be larger than memory.
    pub async fn hash(&self, key: &ObjectKey) -> Result<[u8; 32], ObjectError> {
        let mut body = self.get_body(key, None).await?;
        let mut hash = Sha256::new();
        while let Some(piece) = body.next().await {
            hash.update(&piece.map_err(|error| self.failed_text("read object", error.to_string()))?);
        }
        Ok(hash.finalize().into())
    }

    /// All keys below a prefix of this deployment; strangers among them as text.
    pub async fn list(&self, prefix: &str) -> Result<Vec<Result<ObjectKey, String>>, ObjectError> {
        let as_readers_see = Keeps { versions: false, uploads: false };
        Ok(self.lying(prefix, as_readers_see).await?.into_iter().map(|lying| lying.key).collect())
    }

    fn full_key(&self, key: &ObjectKey) -> String {
        format!("{}{key}", self.prefix)
    }

    fn parse_key(&self, full: &str) -> Option<ObjectKey> {
        ObjectKey::parse(full.strip_prefix(&self.prefix)?)
    }

    fn failed_text(&self, what: &'static str, reason: String) -> ObjectError {
        ObjectError::Failed { what, endpoint: self.endpoint.clone(), reason }
    }

    fn failed<E>(&self, what: &'static str, error: SdkError<E>) -> ObjectError
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
        SdkError<E>: std::error::Error,
    {
        let reason = match error.code() {
            Some(code) => code.to_owned(),
            None => DisplayErrorContext(&error).to_string(),
        };
        self.failed_text(what, reason)
    }
}

/// Counts requests as they are sent: the client repeats some by itself, and a listing asks page by page. Notes the date of answers.
#[derive(Debug)]
struct RequestCounter {
    clock: Arc<AtomicI64>,
}

impl Intercept for RequestCounter {
    fn name(&self) -> &'static str {
        "RequestCounter"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let request = context.request();
        let operation = operation(request.method(), request.uri());
        ::metrics::counter!(REQUESTS, "operation" => operation).increment(1);
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        _config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let date = context.response().headers().get("date");
        if let Some(date) = date.and_then(|date| DateTime::from_str(date, DateTimeFormat::HttpDate).ok()) {
            self.clock.store(date.secs(), Ordering::Relaxed);
        }
        Ok(())
    }
}

/// What a request asks for. S3 tells operations by their method and the names in the query.
fn operation(method: &str, uri: &str) -> &'static str {
    let query = uri.split_once('?').map_or("", |(_, query)| query);
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    match method {
        "GET" if has("list-type") => "list",
        "GET" if has("location") => "location",
        "GET" | "PUT" if has("lifecycle") => "lifecycle",
        "GET" => "get",
        "HEAD" => "head",
        "PUT" if has("uploadId") => "part",
        "PUT" => "put",
        "POST" if has("uploads") => "begin",
        "POST" if has("uploadId") => "complete",
        "POST" if has("delete") => "delete",
        "DELETE" if has("uploadId") => "abort",
        _ => "other",
    }
}

/// Ends an object with its footer's region and the trailer; gives its bytes, and what its row says of them. `key_version` is
/// the keyring's, where that opens the footer; `quarantined` is the number of unreadable records that the footer lists.
pub fn finish(
    id: ObjectId,
    kind: ObjectKind,
    mut body: Vec<u8>,
    footer: &[u8],
    key_version: Option<KeyVersion>,
    quarantined: usize,
) -> (Bytes, Uploaded) {
    let (at, len) = (body.len() as u64, footer.len() as u32);
    body.extend_from_slice(footer);
    body.extend_from_slice(&kind.trailer(len));
    let row = Uploaded {
        id,
        bytes: body.len() as u64,
        sha256: sha256(&body),
        footer: FooterAt { at, len },
        key_version,
        quarantined,
    };
    (body.into(), row)
}

/// The hash that stands in an object's row.
pub fn sha256(body: &[u8]) -> [u8; 32] {
    Sha256::digest(body).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart_by_method_and_query() {
        for (method, uri, expect) in [
            ("GET", "http://s3/bucket/shared/0/id?x-id=GetObject", "get"),
            ("GET", "http://s3/bucket?list-type=2&prefix=sessions%2F&continuation-token=x", "list"),
            ("GET", "http://s3/bucket?location", "location"),
            ("GET", "http://s3/bucket?lifecycle", "lifecycle"),
            ("PUT", "http://s3/bucket?lifecycle", "lifecycle"),
            ("HEAD", "http://s3/bucket", "head"),
            ("PUT", "http://s3/bucket/shared/0/id?x-id=PutObject", "put"),
            ("PUT", "http://s3/bucket/shared/0/id?x-id=UploadPart&partNumber=1&uploadId=u", "part"),
            ("POST", "http://s3/bucket/shared/0/id?uploads", "begin"),
            ("POST", "http://s3/bucket/shared/0/id?uploadId=u", "complete"),
            ("DELETE", "http://s3/bucket/shared/0/id?x-id=AbortMultipartUpload&uploadId=u", "abort"),
            ("POST", "http://s3/bucket?delete", "delete"),
            // A key that looks like a query is none.
            ("GET", "http://s3/bucket/list-type=2", "get"),
            ("PATCH", "http://s3/bucket", "other"),
        ] {
            assert_eq!(operation(method, uri), expect, "{method} {uri}");
        }
    }
}
