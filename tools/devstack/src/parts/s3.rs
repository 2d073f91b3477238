//! An S3 server on a folder: this binary's own by default, versitygw on request.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{BehaviorVersion, Region};
use aws_sdk_s3::error::{DisplayErrorContext, ProvideErrorMetadata as _};
use aws_sdk_s3::types::{BucketVersioningStatus, VersioningConfiguration};

use super::{BUCKET, REGION, S3Access, S3Kind};
use crate::guard::Guard;
use crate::home::{Home, Kept};
use crate::places;
use crate::process::{Launch, Managed};
use crate::until;

const VERSITYGW: &str = "github.com/versity/versitygw/cmd/versitygw@v1.8.0";
const BUILD_TIMEOUT: Duration = Duration::from_secs(20 * 60);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct S3 {
    kind: S3Kind,
    program: PathBuf,
    folder: PathBuf,
    log: PathBuf,
    port: u16,
    access_key: String,
    secret_key: String,
}

impl S3 {
    /// Finds or builds the server, and makes its folders.
    pub(crate) async fn prepare(kind: S3Kind, home: &Home, kept: &Kept, guard: &Guard) -> anyhow::Result<S3> {
        let (program, name) = match kind {
            S3Kind::Folder => (places::find_binary("devstack")?, "s3"),
            S3Kind::Versitygw => (versitygw(home, guard).await?, "s3-versitygw"),
        };
        let s3 = S3 {
            kind,
            program,
            folder: home.path.join(name),
            log: home.log("s3"),
            port: kept.s3_port,
            access_key: kept.s3_access_key.clone(),
            secret_key: kept.s3_secret_key.clone(),
        };
        for folder in ["data", "versions"] {
            let folder = s3.folder.join(folder);
            std::fs::create_dir_all(&folder).with_context(|| format!("make folder of s3: {}", folder.display()))?;
        }
        Ok(s3)
    }

    pub(crate) fn launch(&self) -> Launch {
        let address = format!("127.0.0.1:{}", self.port);
        let launch = Launch::new("s3", &self.program, &self.log);
        match self.kind {
            S3Kind::Folder => launch
                .args(["s3-server", "--listen", &address, "--root"])
                .args([self.folder.join("data")])
                .env("AWS_ACCESS_KEY_ID", &self.access_key)
                .env("AWS_SECRET_ACCESS_KEY", &self.secret_key),
            S3Kind::Versitygw => launch
                .args(["--port", &address, "--region", REGION, "--quiet", "--keep-alive", "posix", "--versioning-dir"])
                .args([self.folder.join("versions"), self.folder.join("data")])
                .env("ROOT_ACCESS_KEY", &self.access_key)
                .env("ROOT_SECRET_KEY", &self.secret_key),
        }
    }

    pub(crate) fn access(&self) -> S3Access {
        S3Access {
            endpoint: format!("http://127.0.0.1:{}", self.port),
            region: REGION.to_owned(),
            bucket: BUCKET.to_owned(),
            access_key: self.access_key.clone(),
            secret_key: self.secret_key.clone(),
        }
    }
}

/// Waits until the server has the bucket, and makes it if it is missing.
pub(crate) async fn answers(access: &S3Access, timeout: Duration) -> anyhow::Result<()> {
    let timeouts = TimeoutConfig::builder().operation_timeout(REQUEST_TIMEOUT).build();
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(access.region.clone()))
        .credentials_provider(Credentials::new(&access.access_key, &access.secret_key, None, None, "devstack"))
        .endpoint_url(&access.endpoint)
        .force_path_style(true)
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        .http_client(http_client(&access.endpoint))
        .build();
    let client = Client::from_conf(config);
    until(&format!("find or make bucket {} at {}", access.bucket, access.endpoint), timeout, async || {
        let Err(missing) = client.head_bucket().bucket(&access.bucket).send().await else {
            return Ok(());
        };
        if !missing.as_service_error().is_some_and(|error| error.is_not_found()) {
            bail!("look for bucket: {}", DisplayErrorContext(missing));
        }
        let made = client.create_bucket().bucket(&access.bucket).send().await;
        made.map_err(|error| anyhow::anyhow!("make bucket: {}", DisplayErrorContext(error)))?;
        // Where the server has versions the bucket keeps them: whatever deletes has to remove them too.
        let versioning = VersioningConfiguration::builder().status(BucketVersioningStatus::Enabled).build();
        let asked = client.put_bucket_versioning().bucket(&access.bucket).versioning_configuration(versioning);
        match asked.send().await {
            Err(error) if error.code() != Some("NotImplemented") => {
                bail!("have bucket keep versions: {}", DisplayErrorContext(error))
            }
            _ => Ok(()),
        }
    })
    .await
}

/// A bucket that the environment gives may be behind HTTPS.
fn http_client(endpoint: &str) -> aws_sdk_s3::config::SharedHttpClient {
    use aws_smithy_http_client::{Builder, tls};
    if endpoint.starts_with("https:") {
        Builder::new().tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring)).build_https()
    } else {
        Builder::new().build_http()
    }
}

async fn versitygw(home: &Home, guard: &Guard) -> anyhow::Result<PathBuf> {
    let cache = places::cache()?;
    let programs = cache.join("bin");
    let mut folders = vec![programs.clone()];
    if let Some(user_home) = places::variable("HOME") {
        folders.push(PathBuf::from(user_home).join("go/bin"));
    }
    if let Some(found) = places::find_program("versitygw", &folders) {
        return Ok(found);
    }
    let Some(go) = places::find_program("go", &[PathBuf::from("/usr/local/go/bin")]) else {
        bail!(
            "find versitygw: neither in {} nor in PATH, and there is no go to build it\n  \
             install Go, or versitygw itself, or unset DEVSTACK_S3",
            programs.display()
        );
    };
    let _turn = places::lock_cache(&cache, "versitygw").await?;
    let built = programs.join("versitygw");
    if built.is_file() {
        return Ok(built);
    }
    let install = Launch::new("go install", go, home.log("versitygw-build"))
        .args(["install", VERSITYGW])
        .env("GOBIN", programs.display().to_string());
    Managed::run(guard, &install, BUILD_TIMEOUT).await.context("build versitygw")?;
    Ok(built)
}
