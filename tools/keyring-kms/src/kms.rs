//! Keys from AWS KMS: an owner's key is a MAC of the owner's name.
//!
//! KMS computes HMAC-SHA256 under a key that never leaves it, and always the same for the same message: the same question
//! has the same answer, and there is nothing to store, to back up or to lose but the KMS key itself.

use std::collections::BTreeMap;
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::timeout::TimeoutConfig;
use aws_sdk_kms::config::{BehaviorVersion, Region};
use aws_sdk_kms::error::{ProvideErrorMetadata as _, SdkError};
use aws_sdk_kms::operation::generate_mac::GenerateMacError;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::MacAlgorithmSpec;
use aws_smithy_http_client::tls;
use schemas::limits::KEYRING_ANSWER_MS_MAX;
use sealing::Key;
use sealing::keyring::{KeyFuture, KeyVersion, Keyring, KeyringError, Owner};
use service_kit::telemetry::chain;
use zeroize::Zeroizing;

use crate::KmsConfig;

/// What every message begins with: no other use of the KMS key can make a key of ours.
const MESSAGE: &[u8] = b"clairvio keyring v1";

const CONNECT_MS_MAX: u64 = 1_000;
const ATTEMPT_MS_MAX: u64 = 1_200;
const ATTEMPTS: u32 = 3;
/// The first wait between attempts is at most this long, the second twice as long.
const BACKOFF_MS: u64 = 50;
const OPERATION_MS_MAX: u64 = 4_000;

const _: () = {
    assert!(CONNECT_MS_MAX < ATTEMPT_MS_MAX);
    assert!(ATTEMPTS as u64 * ATTEMPT_MS_MAX + 3 * BACKOFF_MS < OPERATION_MS_MAX);
    // A service hears that KMS does not answer before it takes this program for hung.
    assert!(OPERATION_MS_MAX < KEYRING_ANSWER_MS_MAX);
};

/// A keyring whose roots are HMAC keys in KMS.
#[derive(Debug)]
pub struct KmsKeyring {
    client: aws_sdk_kms::Client,
    keys: BTreeMap<KeyVersion, String>,
    current: KeyVersion,
}

impl KmsKeyring {
    /// The keyring of this configuration. Connects on first use.
    pub fn new(config: &KmsConfig) -> Self {
        let http = aws_smithy_http_client::Builder::new()
            .tls_provider(tls::Provider::Rustls(tls::rustls_provider::CryptoMode::Ring))
            .build_https();
        let token = config.session_token.clone();
        let retries =
            RetryConfig::standard().with_max_attempts(ATTEMPTS).with_initial_backoff(Duration::from_millis(BACKOFF_MS));
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(Duration::from_millis(CONNECT_MS_MAX))
            .operation_attempt_timeout(Duration::from_millis(ATTEMPT_MS_MAX))
            .operation_timeout(Duration::from_millis(OPERATION_MS_MAX));
        let mut builder = aws_sdk_kms::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .http_client(http)
            .region(Region::new(config.region.clone()))
            .credentials_provider(Credentials::new(
                &config.access_key,
                &config.secret_key,
                token,
                None,
                "configuration",
            ))
            .retry_config(retries)
            .timeout_config(timeouts.build());
        if let Some(endpoint) = &config.endpoint {
            builder = builder.endpoint_url(endpoint);
        }
        Self {
            client: aws_sdk_kms::Client::from_conf(builder.build()),
            keys: config.keys.clone(),
            current: config.current,
        }
    }

    async fn generate(&self, owner: Owner, version: KeyVersion) -> Result<Key, KeyringError> {
        let key_id = self.keys.get(&version).ok_or(KeyringError::Missing(version))?;
        let message = [MESSAGE, &owner.to_bytes()].concat();
        let answer = self
            .client
            .generate_mac()
            .key_id(key_id)
            .mac_algorithm(MacAlgorithmSpec::HmacSha256)
            .message(Blob::new(message))
            .send()
            .await
            .map_err(|error| refusal(version, &error))?;
        let mac = Zeroizing::new(answer.mac.map(Blob::into_inner).unwrap_or_default());
        let key = mac.as_slice().try_into().map(Key::new);
        key.map_err(|_| KeyringError::Unavailable("KMS answered without a MAC of 32 bytes".into()))
    }
}

impl Keyring for KmsKeyring {
    fn current(&self) -> Result<KeyVersion, KeyringError> {
        Ok(self.current)
    }

    fn versions(&self) -> Result<Vec<KeyVersion>, KeyringError> {
        Ok(self.keys.keys().copied().collect())
    }

    fn key(&self, owner: Owner, version: KeyVersion) -> KeyFuture<'_> {
        Box::pin(self.generate(owner, version))
    }
}

fn refusal(version: KeyVersion, error: &SdkError<GenerateMacError>) -> KeyringError {
    use GenerateMacError as Refused;
    const UNREADABLE: &str = "KMS gave an answer that cannot be read";
    let reason = match error {
        SdkError::ServiceError(refused) => match refused.err() {
            // Disabled, deleted or about to be, or never there.
            Refused::DisabledException(_) | Refused::NotFoundException(_) | Refused::KmsInvalidStateException(_) => {
                return KeyringError::Missing(version);
            }
            other => match (other.code(), other.message()) {
                (Some(code), Some(message)) => format!("KMS refuses: {code}: {message}"),
                (Some(code), None) => format!("KMS refuses: {code}"),
                // Its causes could quote what was answered, and that may be a key.
                (None, _) => format!("{UNREADABLE} (status {})", refused.raw().status()),
            },
        },
        SdkError::ResponseError(_) => UNREADABLE.into(),
        other => format!("ask KMS: {}", chain(other)),
    };
    KeyringError::Unavailable(reason)
}
