//! What every call shares: the client, refusals and errors, and when to repeat.

use std::time::Duration;

use bytes::Bytes;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode};
use schemas::ErrorCode;
use schemas::codes::Problem;
use serde::de::DeserializeOwned;

/// Longer than the edge's own wait for Kafka, so that the edge's answer is heard rather than guessed.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(45);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The first pause before a repetition; it doubles with each, up to [`BACKOFF_MAX`].
const BACKOFF_MIN: Duration = Duration::from_millis(50);
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// A service said no.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The HTTP status.
    pub status: u16,
    /// The problem's stable code; empty when the answer was not a problem.
    pub code: String,
    /// What the service says can be done.
    pub detail: String,
    /// How long it asks to wait.
    pub retry_after: Option<Duration>,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The service said no.
    #[error("{call}: refused with {} {}: {}", refused.status, refused.code, refused.detail)]
    Refused {
        /// The call.
        call: &'static str,
        /// What it said.
        refused: Refused,
    },
    /// No answer came in time.
    #[error("{call}: no answer in time")]
    Timeout {
        /// The call.
        call: &'static str,
        /// Why it failed.
        source: reqwest::Error,
    },
    /// No connection could be made.
    #[error("{call}: connect\n  is the service running? look at endpoints.json and the service's log")]
    Connect {
        /// The call.
        call: &'static str,
        /// Why it failed.
        source: reqwest::Error,
    },
    /// The connection broke.
    #[error("{call}: connection broke")]
    Broken {
        /// The call.
        call: &'static str,
        /// Why it failed.
        source: reqwest::Error,
    },
    /// The answer is not what the contract says.
    #[error("{call}: read answer with status {status}: {what}\n  compare the service with schemas/openapi.yaml")]
    Unexpected {
        /// The call.
        call: &'static str,
        /// The HTTP status.
        status: u16,
        /// What is wrong with it.
        what: String,
    },
}

impl CallError {
    /// The refusal, when it was one.
    pub fn refused(&self) -> Option<&Refused> {
        match self {
            Self::Refused { refused, .. } => Some(refused),
            _ => None,
        }
    }

    /// The HTTP status of a refusal.
    pub fn status(&self) -> Option<u16> {
        self.refused().map(|refused| refused.status)
    }

    /// The stable code of a refusal, else a word for what failed: to count by.
    pub fn code(&self) -> &str {
        match self {
            Self::Refused { refused, .. } if refused.code.is_empty() => "no_code",
            Self::Refused { refused, .. } => &refused.code,
            Self::Timeout { .. } => "timeout",
            Self::Connect { .. } => "connect",
            Self::Broken { .. } => "connection_broken",
            Self::Unexpected { .. } => "unexpected_answer",
        }
    }

    /// Whether the same bytes should be sent again.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Refused { refused, .. } => matches!(refused.status, 408 | 429 | 500..=599),
            Self::Timeout { .. } | Self::Connect { .. } | Self::Broken { .. } => true,
            Self::Unexpected { .. } => false,
        }
    }

    /// Whether the call may have been carried out all the same.
    pub fn may_have_happened(&self) -> bool {
        match self {
            Self::Refused { refused, .. } => {
                let safe = [ErrorCode::Backpressure, ErrorCode::KeysUnavailable, ErrorCode::RateLimited];
                refused.status >= 500 && !safe.iter().any(|code| code.as_str() == refused.code)
            }
            Self::Connect { .. } => false,
            Self::Timeout { .. } | Self::Broken { .. } | Self::Unexpected { .. } => true,
        }
    }

    pub(crate) fn transport(call: &'static str, error: reqwest::Error) -> Self {
        // A URL can hold a reference, which is personal data.
        let source = error.without_url();
        if source.is_connect() {
            Self::Connect { call, source }
        } else if source.is_timeout() {
            Self::Timeout { call, source }
        } else {
            Self::Broken { call, source }
        }
    }
}

/// A client that keeps its connections. It never goes through a proxy: services are addressed directly.
pub(crate) fn client() -> Result<Client, CallError> {
    Client::builder()
        .no_proxy()
        .tcp_nodelay(true)
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_max_idle_per_host(usize::MAX)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .map_err(|error| CallError::transport("make client", error))
}

/// The answer, when it has this status; else the refusal.
pub(crate) async fn expect(
    call: &'static str,
    wanted: StatusCode,
    answer: Result<Response, reqwest::Error>,
) -> Result<Response, CallError> {
    let response = answer.map_err(|error| CallError::transport(call, error))?;
    let status = response.status();
    if status == wanted {
        return Ok(response);
    }
    if status.is_success() || status.is_redirection() {
        let what = format!("expected status {}", wanted.as_u16());
        return Err(CallError::Unexpected { call, status: status.as_u16(), what });
    }
    let retry_after = retry_after(response.headers());
    // The status alone says enough to go on when the body cannot be read.
    let problem = response.bytes().await.ok().and_then(|body| serde_json::from_slice::<Problem>(&body).ok());
    let (code, detail) = problem.map_or_else(
        || (String::new(), "the answer is not a problem".to_owned()),
        |problem| (problem.code, problem.detail),
    );
    Err(CallError::Refused { call, refused: Refused { status: status.as_u16(), code, detail, retry_after } })
}

/// The answer's body. One that is cut off is an error.
pub(crate) async fn bytes(call: &'static str, response: Response) -> Result<Bytes, CallError> {
    response.bytes().await.map_err(|error| CallError::transport(call, error))
}

/// The answer's body as JSON.
pub(crate) async fn json<T: DeserializeOwned>(call: &'static str, response: Response) -> Result<T, CallError> {
    let status = response.status().as_u16();
    let body = response.bytes().await.map_err(|error| CallError::transport(call, error))?;
    // The error of serde_json names a place and a type, never a value of a field that has a string type.
    serde_json::from_slice(&body).map_err(|error| CallError::Unexpected {
        call,
        status,
        what: format!("line {} column {}: {:?}", error.line(), error.column(), error.classify()),
    })
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// How long to wait before the next attempt: what the service asks for and a little more, else twice as long each time
/// with full jitter, so that clients which failed together do not come back together.
pub(crate) fn backoff(attempts: u32, error: &CallError) -> Duration {
    let asked = error.refused().and_then(|refused| refused.retry_after);
    match asked {
        Some(asked) => asked + asked.mul_f64(0.25 * random_share()),
        None => {
            let doubled = BACKOFF_MIN * 2_u32.saturating_pow(attempts.saturating_sub(1).min(10));
            doubled.min(BACKOFF_MAX).mul_f64(random_share())
        }
    }
}

/// Uniform in [0, 1). Without randomness jitter is lost, which is no reason to fail.
fn random_share() -> f64 {
    f64::from(getrandom::u32().unwrap_or(u32::MAX / 2)) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(status: u16, code: &str, retry_after: Option<u64>) -> CallError {
        let retry_after = retry_after.map(Duration::from_secs);
        CallError::Refused {
            call: "x",
            refused: Refused { status, code: code.to_owned(), detail: String::new(), retry_after },
        }
    }

    #[test]
    fn what_is_repeated_and_what_may_have_happened() {
        for (status, code, retryable, may_have_happened) in [
            (503, "backpressure", true, false),
            (503, "delivery_unknown", true, true),
            (500, "internal", true, true),
            (429, "rate_limited", true, false),
            (401, "token_expired", false, false),
            (413, "payload_too_large", false, false),
        ] {
            let error = refused(status, code, None);
            assert_eq!((error.is_retryable(), error.may_have_happened()), (retryable, may_have_happened), "{code}");
        }
    }

    #[test]
    fn pauses_grow_within_their_bound_and_obey_retry_after() {
        for attempts in 1..40 {
            assert!(backoff(attempts, &refused(503, "", None)) <= BACKOFF_MAX);
        }
        assert!(backoff(1, &refused(503, "", None)) <= BACKOFF_MIN);
        let asked = backoff(9, &refused(429, "", Some(2)));
        assert!((Duration::from_secs(2)..=Duration::from_millis(2_500)).contains(&asked));
    }
}
