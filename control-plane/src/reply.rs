//! Answers and refusals.

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use schemas::ErrorCode;
use schemas::codes::{PROBLEM_CONTENT_TYPE, Refusal};
use service_kit::telemetry::chain;
use storage::index::IndexError;
use storage::journal::JournalError;
use storage::reading::ReadError;
use storage::references::ReferenceError;
use storage::session_keys::KeyError;

/// A refusal on its way out.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) Refusal);

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl From<ErrorCode> for Refused {
    fn from(code: ErrorCode) -> Self {
        Self(code.into())
    }
}

impl From<IndexError> for Refused {
    fn from(error: IndexError) -> Self {
        tracing::warn!(error = %chain(&error), "ask the index");
        ErrorCode::Unavailable.into()
    }
}

impl From<ReadError> for Refused {
    fn from(error: ReadError) -> Self {
        if error.is_damage() {
            // What the index names is not there, or not what was put there.
            tracing::error!(error = %chain(&error), code = ErrorCode::ObjectCorrupt.as_str(), "read session");
            return ErrorCode::ObjectCorrupt.into();
        }
        match error {
            ReadError::Deleted => ErrorCode::SessionDeleted.into(),
            ReadError::Key(KeyError::Shredded(_)) => ErrorCode::SessionDeleted.into(),
            ReadError::Key(KeyError::Missing(_) | KeyError::NotUnwrapped(_)) => {
                tracing::error!(error = %chain(&error), "read session");
                ErrorCode::KeyMissing.into()
            }
            ReadError::Index(_) | ReadError::Object { .. } | ReadError::Key(_) => {
                tracing::warn!(error = %chain(&error), "read session");
                ErrorCode::Unavailable.into()
            }
            ReadError::Corrupt(_) | ReadError::Lost(_) | ReadError::Pool(_) | ReadError::HungUp => {
                ErrorCode::Internal.into()
            }
        }
    }
}

impl From<JournalError> for Refused {
    fn from(error: JournalError) -> Self {
        // What was to be deleted is unreadable, and the retention worker writes what is not written: but it cannot be promised yet.
        tracing::warn!(error = %chain(&error), "write journal of deletions");
        ErrorCode::Unavailable.into()
    }
}

impl From<ReferenceError> for Refused {
    fn from(error: ReferenceError) -> Self {
        if error.is_of_key() {
            tracing::error!(error = %chain(&error), "open references");
            ErrorCode::KeyMissing.into()
        } else {
            tracing::warn!(error = %chain(&error), "open references");
            ErrorCode::Unavailable.into()
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(self.0.problem())).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_CONTENT_TYPE));
        if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
