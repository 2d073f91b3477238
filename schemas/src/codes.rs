//! The stable codes of refusals. Each has a status, a sentence that says what to do, and a paragraph in
//! `docs/errors.md`; a test compares this list with that page.

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($($variant:ident $code:literal $status:literal $detail:literal;)*) => {
        /// Why a request was refused. Never carries anything of the request.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum ErrorCode {
            $(#[doc = $detail] $variant,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable code.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// The HTTP status that goes with it.
            pub fn status(self) -> u16 {
                match self { $(Self::$variant => $status,)* }
            }

            /// What the caller can do.
            pub fn detail(self) -> &'static str {
                match self { $(Self::$variant => $detail,)* }
            }
        }
    };
}

codes! {
    HttpMalformed "http_malformed" 400 "The request is not valid HTTP; send a well-formed request with one length.";
    UriTooLong "uri_too_long" 414 "The path and query are too long; send at most 2 KiB.";
    HeadersTooLarge "headers_too_large" 431 "The headers are too large; send at most 64 headers and 32 KiB.";
    NotFound "not_found" 404 "There is nothing here for this caller; check the path and the id.";
    MethodNotAllowed "method_not_allowed" 405 "The path does not take this method; see the Allow header.";
    RequestTimeout "request_timeout" 408 "The request came too slowly; send it again.";
    PayloadTooLarge "payload_too_large" 413 "The body is too large; split the batch below the limit.";
    DecodedTooLarge "decoded_too_large" 413 "The body is too large once decoded; split the batch below the limit.";
    EncodingUnsupported "encoding_unsupported" 415 "The content encoding is not supported; use one of identity, gzip and zstd.";
    ContentTypeUnsupported "content_type_unsupported" 415 "The content type is not supported; use application/json, application/x-ndjson or text/plain.";
    BodyMalformed "body_malformed" 400 "The body cannot be read as the JSON that this call takes; correct it.";
    EventInvalid "event_invalid" 422 "One of the events is not an object with a type and a timestamp; see the index.";
    SeqInvalid "seq_invalid" 422 "stream must be a number of 31 bits and seq one of 32 bits; correct the query.";
    FieldInvalid "field_invalid" 422 "A field is missing or out of its range; see which.";
    BatchTooMany "batch_too_many" 413 "The batch has too many events; split it below the limit.";
    EventTooLarge "event_too_large" 413 "The events do not fit one record even compressed; split the batch, or mark the gap.";
    TokenMissing "token_missing" 401 "The request has no token; send it as Authorization: Bearer.";
    TokenMalformed "token_malformed" 401 "The token is not a token of this service; ask for a new one.";
    TokenAlgRejected "token_alg_rejected" 401 "The token's algorithm is not EdDSA; ask for a new token.";
    TokenKeyUnknown "token_key_unknown" 401 "The token was signed by a key that is not known here; ask for a new token.";
    TokenKeyRevoked "token_key_revoked" 401 "The token was signed by a retired key; ask for a new token.";
    TokenSignatureInvalid "token_signature_invalid" 401 "The token's signature does not match; ask for a new token.";
    TokenExpired "token_expired" 401 "The token has expired; ask for a new one.";
    TokenNotYetValid "token_not_yet_valid" 401 "The token is not valid yet; check this machine's clock.";
    TokenAudienceInvalid "token_audience_invalid" 401 "The token was made for another purpose; use the one made for this call.";
    LinkExpired "link_expired" 403 "The link has expired; ask the support team for a new one.";
    LinkRevoked "link_revoked" 403 "The link was revoked; ask the support team for a new one.";
    LinkExhausted "link_exhausted" 403 "The link has begun all the sessions it may; ask the support team for a new one.";
    ConsentScope "consent_scope" 403 "The token does not cover this origin or session; record only where consent was given.";
    ConsentWithdrawn "consent_withdrawn" 403 "Consent was withdrawn; stop recording and clear what is buffered.";
    ConsentStale "consent_stale" 403 "The notice version is no longer accepted; show the current notice.";
    SessionDeleted "session_deleted" 410 "The session was deleted; it cannot be read or continued.";
    SessionClosed "session_closed" 409 "The session has reached its length; ask for consent to a new one.";
    RateLimited "rate_limited" 429 "Too much was sent; wait as long as Retry-After says.";
    WorkspaceSuspended "workspace_suspended" 403 "The workspace is suspended; its owner can ask support.";
    WorkspaceTerminated "workspace_terminated" 410 "The workspace was closed; stop recording.";
    KeysUnavailable "keys_unavailable" 503 "This node cannot check tokens safely right now; try again as Retry-After says.";
    Backpressure "backpressure" 503 "This node cannot take more right now; repeat the same batch as Retry-After says.";
    DeliveryUnknown "delivery_unknown" 503 "It is not known whether the batch was stored; repeat the same bytes with the same seq.";
    ScopeMissing "scope_missing" 403 "The API key lacks the scope that this call needs; use another key, or make one with it.";
    KeysTooMany "keys_too_many" 409 "The workspace has as many API keys as it may; revoke one that is not used any more.";
    ExportNotReady "export_not_ready" 409 "The archive is being made; ask how far it is, and fetch it when its state is ready.";
    ExportGone "export_gone" 410 "The export is over: its time, or one of its sessions was deleted; ask for a new one.";
    ExportsTooMany "exports_too_many" 409 "The workspace has as many exports as it may at once; end one, or wait until one is over.";
    RangeInvalid "range_invalid" 416 "The range begins behind the end; ask for one that is within the archive.";
    ObjectCorrupt "object_corrupt" 500 "A stored object of this session is corrupt; the operator was told.";
    KeyMissing "key_missing" 500 "The key that opens this session is missing; the operator was told.";
    Unavailable "unavailable" 503 "A part behind this service does not answer right now; try again as Retry-After says.";
    Internal "internal" 500 "The service failed; try again, and tell the operator if it stays so.";
}

/// The body of every refusal: `application/problem+json` (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The stable code.
    pub code: String,
    /// The HTTP status.
    pub status: u16,
    /// What the caller can do.
    pub detail: String,
    /// The limit that was passed, in the unit of the thing.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub limit: Option<u64>,
    /// The index of the event that is meant, from 0.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub index: Option<u64>,
    /// The field that is meant.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub field: Option<String>,
    /// What a rate limit counted: `session`, `workspace` or `address`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub which: Option<String>,
}

/// The content type of [`Problem`].
pub const PROBLEM_CONTENT_TYPE: &str = "application/problem+json";

impl Problem {
    /// The problem of this code.
    pub fn new(code: ErrorCode) -> Self {
        Self {
            code: code.as_str().to_owned(),
            status: code.status(),
            detail: code.detail().to_owned(),
            limit: None,
            index: None,
            field: None,
            which: None,
        }
    }
}

/// A refusal: a code, and what it points at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The stable code.
    pub code: ErrorCode,
    /// The limit that was passed.
    pub limit: Option<u64>,
    /// The event that is meant.
    pub index: Option<u64>,
    /// The field that is meant; of a rate, what was counted.
    pub field: Option<&'static str>,
    /// Whose rate was passed.
    pub which: Option<&'static str>,
    /// When to come again, seconds; 1 where nothing else is known.
    pub retry_after_s: Option<u64>,
}

impl From<ErrorCode> for Refusal {
    fn from(code: ErrorCode) -> Self {
        Self { code, limit: None, index: None, field: None, which: None, retry_after_s: None }
    }
}

impl Refusal {
    /// A limit was passed.
    pub fn limit(code: ErrorCode, limit: usize) -> Self {
        Self { limit: Some(limit as u64), ..code.into() }
    }

    /// This event is meant.
    pub fn index(code: ErrorCode, index: usize) -> Self {
        Self { index: Some(index as u64), ..code.into() }
    }

    /// This field is missing or out of its range.
    pub fn field(field: &'static str) -> Self {
        Self { field: Some(field), ..ErrorCode::FieldInvalid.into() }
    }

    /// The body that tells the caller.
    pub fn problem(&self) -> Problem {
        Problem {
            limit: self.limit,
            index: self.index,
            field: self.field.map(str::to_owned),
            which: self.which.map(str::to_owned),
            ..Problem::new(self.code)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_code_has_a_paragraph_in_the_errors_page_and_no_other_has() {
        let page = include_str!("../../docs/errors.md");
        let documented: BTreeSet<&str> =
            page.lines().filter_map(|line| line.strip_prefix("### `")?.split('`').next()).collect();
        let known: BTreeSet<&str> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(documented, known);
    }

    #[test]
    fn the_page_names_the_status_of_each_code() {
        let page = include_str!("../../docs/errors.md");
        for code in ErrorCode::ALL {
            let heading = format!("### `{}` ({})", code.as_str(), code.status());
            assert!(page.contains(&heading), "docs/errors.md lacks the heading {heading}");
        }
    }
}
