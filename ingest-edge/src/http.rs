//! Requests in, answers out: routes, CORS, problems.

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use schemas::codes::{PROBLEM_CONTENT_TYPE, Refusal};
use schemas::{ErrorCode, limits};
use serde::Serialize;

/// An answer.
pub(crate) type Answer = Response<Full<Bytes>>;

/// The edge's calls: method and path, as `schemas/openapi.yaml` has them.
pub const CALLS: &[(&str, &str)] =
    &[("post", "/v1/consent"), ("post", "/v1/events"), ("get", "/v1/session"), ("post", "/v1/withdraw")];

/// The edge's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route {
    Consent,
    Events,
    Session,
    Withdraw,
}

impl Route {
    /// The path, for metrics: never a query.
    pub(crate) fn template(self) -> &'static str {
        match self {
            Self::Consent => "/v1/consent",
            Self::Events => "/v1/events",
            Self::Session => "/v1/session",
            Self::Withdraw => "/v1/withdraw",
        }
    }

    fn method(self) -> Method {
        match self {
            Self::Consent | Self::Events | Self::Withdraw => Method::POST,
            Self::Session => Method::GET,
        }
    }
}

/// What a request asks for.
pub(crate) enum Asked {
    Route(Route),
    /// A preflight: answered for all, the origin is checked on the request itself.
    Preflight,
    Refused(Refusal, Option<&'static str>),
}

pub(crate) fn asked<B>(request: &Request<B>) -> Asked {
    let uri = request.uri();
    if uri.path_and_query().is_some_and(|text| text.as_str().len() > limits::URI_BYTES_MAX) {
        return Asked::Refused(Refusal::limit(ErrorCode::UriTooLong, limits::URI_BYTES_MAX), None);
    }
    let route = match uri.path() {
        "/v1/consent" => Route::Consent,
        "/v1/events" => Route::Events,
        "/v1/session" => Route::Session,
        "/v1/withdraw" => Route::Withdraw,
        _ => return Asked::Refused(ErrorCode::NotFound.into(), None),
    };
    match request.method() {
        &Method::OPTIONS => Asked::Preflight,
        method if *method == route.method() => Asked::Route(route),
        _ => {
            let allow = if route.method() == Method::POST { "POST, OPTIONS" } else { "GET, OPTIONS" };
            Asked::Refused(ErrorCode::MethodNotAllowed.into(), Some(allow))
        }
    }
}

/// A header as text; what is no text is as good as absent, since no value that we take has such bytes.
pub(crate) fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

/// The request's parts that outlive its body.
pub(crate) struct Head {
    pub(crate) query: String,
    pub(crate) headers: HeaderMap,
}

pub(crate) fn split(request: Request<Incoming>) -> (Head, Incoming) {
    let (parts, body) = request.into_parts();
    let query = parts.uri.query().unwrap_or_default().to_owned();
    (Head { query, headers: parts.headers }, body)
}

pub(crate) fn json(status: StatusCode, body: &impl Serialize) -> Answer {
    match serde_json::to_vec(body) {
        Ok(body) => with_type(status, "application/json", body),
        Err(error) => {
            tracing::error!(%error, "serialize answer");
            refused(&ErrorCode::Internal.into())
        }
    }
}

pub(crate) fn empty(status: StatusCode) -> Answer {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}

/// A refusal as `application/problem+json`. Those that say "again later" say when.
pub(crate) fn refused(refusal: &Refusal) -> Answer {
    let status = StatusCode::from_u16(refusal.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::to_vec(&refusal.problem()).unwrap_or_default();
    let mut answer = with_type(status, PROBLEM_CONTENT_TYPE, body);
    if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
        let seconds = refusal.retry_after_s.unwrap_or(1);
        answer.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    answer
}

fn with_type(status: StatusCode, content_type: &'static str, body: Vec<u8>) -> Answer {
    let mut answer = Response::new(Full::from(body));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

pub(crate) fn allow(answer: &mut Answer, methods: &'static str) {
    answer.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
}

/// The CORS headers stand on every answer, refusals too, or a browser's script could not read them.
pub(crate) fn add_cors(answer: &mut Answer, origin: Option<HeaderValue>, preflight: bool) {
    let headers = answer.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    let Some(origin) = origin else { return };
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("Retry-After"));
    if preflight {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        headers.insert(
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            HeaderValue::from_static("authorization, content-type, content-encoding"),
        );
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("7200"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_call_has_its_route_and_another_method_is_told_which_there_are() {
        for (method, path) in CALLS {
            let request = |method: &str| Request::builder().method(method).uri(*path).body(()).unwrap();
            match asked(&request(&method.to_uppercase())) {
                Asked::Route(route) => assert_eq!(route.template(), *path),
                _ => panic!("{method} {path} has no route"),
            }
            assert!(matches!(asked(&request("DELETE")), Asked::Refused(_, Some(_))));
            assert!(matches!(asked(&request("OPTIONS")), Asked::Preflight));
        }
        let long = format!("/v1/events?{}", "a".repeat(limits::URI_BYTES_MAX));
        let request = Request::builder().uri(long).body(()).unwrap();
        assert!(matches!(asked(&request), Asked::Refused(Refusal { code: ErrorCode::UriTooLong, .. }, None)));
    }
}
