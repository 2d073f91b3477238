//! S3: the bucket.

use std::time::Duration;

use schemas::limits;

use super::{Env, Knob};

/// Settings of the bucket's client.
#[derive(Clone)]
pub struct S3Config {
    /// The server; absent for AWS itself.
    pub endpoint: Option<String>,
    /// The region that the bucket must lie in (P5).
    pub region: String,
    /// The bucket.
    pub bucket: String,
    /// What all keys of this deployment begin with: empty, or a path with its slash.
    pub prefix: String,
    /// The access key.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    /// How long one request may take.
    pub request_timeout: Duration,
    /// Larger objects are uploaded in parts, in bytes.
    pub multipart_bytes: u64,
}

impl std::fmt::Debug for S3Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Config")
            .field("endpoint", &self.endpoint)
            .field("region", &self.region)
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

const ENDPOINT: Knob = Knob {
    name: "S3_ENDPOINT",
    doc: "The S3 server; leave it out for AWS.",
    unit: "a URL",
    default: None,
    secret: false,
};
const REGION: Knob = Knob {
    name: "S3_REGION",
    doc: "The region that the bucket must lie in.",
    unit: "a region's name",
    default: Some("us-east-1"),
    secret: false,
};
const BUCKET: Knob =
    Knob { name: "S3_BUCKET", doc: "The bucket.", unit: "a bucket's name", default: Some("clairvio"), secret: false };
const PREFIX: Knob = Knob {
    name: "S3_PREFIX",
    doc: "What all keys of this deployment begin with.",
    unit: "nothing, or a path that ends with a slash",
    default: Some(""),
    secret: false,
};
const ACCESS_KEY: Knob =
    Knob { name: "AWS_ACCESS_KEY_ID", doc: "The access key.", unit: "text", default: None, secret: false };
const SECRET_KEY: Knob =
    Knob { name: "AWS_SECRET_ACCESS_KEY", doc: "The access key's secret.", unit: "text", default: None, secret: true };
const REQUEST_TIMEOUT_MS: Knob = Knob {
    name: "S3_REQUEST_TIMEOUT_MS",
    doc: "How long one request to S3 may take.",
    unit: "milliseconds",
    default: Some("30000"),
    secret: false,
};
const MULTIPART_BYTES: Knob = Knob {
    name: "S3_MULTIPART_BYTES",
    doc: "Objects larger than this are uploaded in parts: at least 5242880, which is the least that S3 takes as a part.",
    unit: "bytes",
    default: Some("33554432"),
    secret: false,
};

impl S3Config {
    /// Reads the settings.
    pub fn load(env: &mut Env<'_>) -> Self {
        Self {
            endpoint: env.optional_text(&ENDPOINT),
            region: env.text(&REGION),
            bucket: env.text(&BUCKET),
            prefix: env.parsed(&PREFIX, String::new(), |raw| {
                (raw.is_empty() || (raw.ends_with('/') && !raw.starts_with('/'))).then(|| raw.to_owned())
            }),
            access_key: env.text(&ACCESS_KEY),
            secret_key: env.text(&SECRET_KEY),
            request_timeout: env.millis(&REQUEST_TIMEOUT_MS),
            multipart_bytes: env.number(&MULTIPART_BYTES, limits::S3_PART_BYTES),
        }
    }
}
