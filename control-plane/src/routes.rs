//! One handler per call.

use async_compression::tokio::bufread::{GzipEncoder, ZstdEncoder};
use axum::body::Body;
use axum::extract::{Path, Query, State as Extract};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use engine::merge::Range;
use engine::pages::origin_and_path;
use futures::TryStreamExt as _;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use schemas::codes::Refusal;
use schemas::http::{
    DeletionAccepted, DeletionItem, LinkCreated, LinkItem, LinkRequest, Page, SessionItem, SessionState, StoredAs,
};
use schemas::token::{AUDIENCE, LinkClaims};
use schemas::{DeletionId, ErrorCode, LinkId, SessionId, SessionKey, limits};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use service_kit::telemetry::chain;
use storage::index::links::{Before, NewLink};
use storage::index::sessions::{Filter, SessionRow};
use storage::reading::{Opened, ReadError, Session};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::mpsc;
use tokio_util::io::{ReaderStream, StreamReader};
use url::Url;
use uuid::Uuid;

use crate::auth::Caller;
use crate::driver::State;
use crate::metrics;
use crate::reply::Refused;

type Answer<T> = Result<T, Refused>;

/// Pieces of a reading that wait for a slow reader; with the merger's batches this bounds its memory.
const PIECES_WAITING_MAX: usize = 4;

/// The control plane's calls: method and path, as `schemas/openapi.yaml` has them.
pub const CALLS: &[(&str, &str)] = &[
    ("post", "/v1/links"),
    ("get", "/v1/links"),
    ("get", "/v1/sessions"),
    ("get", "/v1/sessions/{id}"),
    ("delete", "/v1/sessions/{id}"),
    ("get", "/v1/sessions/{id}/events"),
    ("get", "/v1/deletions/{id}"),
];

pub(crate) fn router() -> Router<State> {
    Router::new()
        .route("/v1/links", post(create_link).get(list_links))
        .route("/v1/sessions", get(list_sessions))
        .route("/v1/sessions/{id}", get(get_session).delete(delete_session))
        .route("/v1/sessions/{id}/events", get(get_events))
        .route("/v1/deletions/{id}", get(get_deletion))
        .fallback(|| async { Refused::from(ErrorCode::NotFound) })
        .method_not_allowed_fallback(|| async { Refused::from(ErrorCode::MethodNotAllowed) })
}

/// An id in a path; what is no id names nothing that the caller has.
fn parse_id(text: &str) -> Answer<Uuid> {
    Uuid::parse_str(text).map_err(|_| ErrorCode::NotFound.into())
}

fn parse_body<T: DeserializeOwned>(body: &Bytes) -> Answer<T> {
    if body.len() > limits::SMALL_BODY_BYTES_MAX {
        return Err(Refusal::limit(ErrorCode::PayloadTooLarge, limits::SMALL_BODY_BYTES_MAX).into());
    }
    serde_json::from_slice(body).map_err(|_| ErrorCode::BodyMalformed.into())
}

async fn create_link(
    Extract(state): Extract<State>,
    caller: Caller,
    body: Bytes,
) -> Answer<(StatusCode, Json<LinkCreated>)> {
    let request: LinkRequest = parse_body(&body)?;
    let now = OffsetDateTime::now_utc();
    let expires_in = request.expires_in.unwrap_or(limits::LINK_EXPIRES_IN_DEFAULT_S);
    let max_sessions = request.max_sessions.unwrap_or(limits::LINK_SESSIONS_DEFAULT);
    let within = |holds: bool, field| if holds { Ok(()) } else { Err(Refused(Refusal::field(field))) };
    within((1..=limits::REFERENCE_BYTES_MAX).contains(&request.reference.len()), "reference")?;
    // The index holds no text with a zero byte.
    within(!request.reference.contains('\0'), "reference")?;
    within((1..=limits::LINK_EXPIRES_IN_MAX_S).contains(&expires_in), "expires_in")?;
    within((1..=limits::LINK_SESSIONS_MAX).contains(&max_sessions), "max_sessions")?;
    let masking_len = request.masking.as_ref().map_or(0, |rules| rules.to_string().len());
    within(masking_len <= limits::MASKING_BYTES_MAX, "masking")?;
    within(request.masking.as_ref().is_none_or(serde_json::Value::is_object), "masking")?;
    within(request.masking.as_ref().is_none_or(|rules| !rules.to_string().contains("\\u0000")), "masking")?;
    let redirect = request.redirect_url.as_deref().map(|url| allowed_redirect(url, &caller.origins)).transpose()?;
    let expires_at = now + std::time::Duration::from_secs(expires_in);
    let id = LinkId(Uuid::now_v7());
    let token = state.signing.link(&LinkClaims {
        aud: AUDIENCE.into(),
        ws: caller.workspace,
        lnk: id,
        iat: now.unix_timestamp().max(0).unsigned_abs(),
        exp: expires_at.unix_timestamp().max(0).unsigned_abs(),
        org: caller.origins.iter().take(limits::ORIGINS_MAX).cloned().collect(),
        max: max_sessions,
        lim: caller.plan.limits().to_array(),
        msk: request.masking.clone(),
    });
    // The token never stands in a query: a fragment does not reach the redirect's server or its logs.
    let url = redirect.map(|mut url| {
        url.set_fragment(Some(&format!("clairvio={token}")));
        url.into()
    });
    let link = NewLink {
        workspace: caller.workspace,
        id,
        reference: &request.reference,
        expires_at,
        max_sessions,
        redirect_url: request.redirect_url.as_deref(),
        masking: request.masking.as_ref(),
    };
    state.index.insert_link(&link).await?;
    Ok((StatusCode::CREATED, Json(LinkCreated { id, token, url, expires_at })))
}

fn allowed_redirect(text: &str, origins: &[String]) -> Answer<Url> {
    let refused = || Refused(Refusal::field("redirect_url"));
    let url = Url::parse(text).map_err(|_| refused())?;
    let allowed = origins.contains(&url.origin().ascii_serialization()) && !text.contains('\0');
    if text.len() <= limits::REDIRECT_URL_BYTES_MAX && allowed { Ok(url) } else { Err(refused()) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PageQuery {
    cursor: Option<String>,
    limit: Option<u32>,
}

fn query<T>(query: Result<Query<T>, axum::extract::rejection::QueryRejection>) -> Answer<T> {
    // The rejection's text could repeat the query: a reference in it is personal data.
    query.map(|Query(query)| query).map_err(|_| Refused(Refusal::field("query")))
}

fn page_limit(limit: Option<u32>) -> Answer<u32> {
    let limit = limit.unwrap_or(limits::PAGE_ITEMS_DEFAULT);
    if (1..=limits::PAGE_ITEMS_MAX).contains(&limit) { Ok(limit) } else { Err(Refused(Refusal::field("limit"))) }
}

fn parse_cursor(cursor: Option<&str>) -> Answer<Option<Before>> {
    let Some(cursor) = cursor else { return Ok(None) };
    let before = || {
        let bytes: [u8; 24] = URL_SAFE_NO_PAD.decode(cursor).ok()?.try_into().ok()?;
        let (at, id) = bytes.split_first_chunk::<8>()?;
        let at = i128::from(i64::from_be_bytes(*at)) * 1_000;
        Some(Before { at: OffsetDateTime::from_unix_timestamp_nanos(at).ok()?, id: Uuid::from_slice(id).ok()? })
    };
    before().map(Some).ok_or_else(|| Refused(Refusal::field("cursor")))
}

/// The cursor behind an item: its time in microseconds, which is all that Postgres keeps, and its id.
fn cursor(at: OffsetDateTime, id: Uuid) -> String {
    let micros = i64::try_from(at.unix_timestamp_nanos() / 1_000).unwrap_or(i64::MAX);
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&micros.to_be_bytes());
    bytes[8..].copy_from_slice(id.as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A page of `limit` items out of up to one more, which says that there is a next page.
fn page<T>(mut items: Vec<T>, limit: u32, place: impl Fn(&T) -> (OffsetDateTime, Uuid)) -> Page<T> {
    let more = items.len() > limit as usize;
    items.truncate(limit as usize);
    let next_cursor = items.last().filter(|_| more).map(|last| {
        let (at, id) = place(last);
        cursor(at, id)
    });
    Page { items, next_cursor }
}

async fn list_links(
    Extract(state): Extract<State>,
    caller: Caller,
    asked: Result<Query<PageQuery>, axum::extract::rejection::QueryRejection>,
) -> Answer<Json<Page<LinkItem>>> {
    let asked = query(asked)?;
    let limit = page_limit(asked.limit)?;
    let before = parse_cursor(asked.cursor.as_deref())?;
    let items = state.index.links(caller.workspace, before, limit + 1).await?;
    Ok(Json(page(items, limit, |item| (item.created_at, item.id.0))))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SessionsQuery {
    reference: Option<String>,
    from: Option<String>,
    to: Option<String>,
    state: Option<SessionState>,
    has_errors: Option<bool>,
    min_duration: Option<u32>,
    url: Option<String>,
    cursor: Option<String>,
    limit: Option<u32>,
}

fn moment(text: Option<&str>, field: &'static str) -> Answer<Option<OffsetDateTime>> {
    text.map(|text| OffsetDateTime::parse(text, &Rfc3339)).transpose().map_err(|_| Refused(Refusal::field(field)))
}

/// A reference that can be looked for: the index holds none with a zero byte.
fn searchable(reference: String) -> Answer<String> {
    if reference.contains('\0') { Err(Refused(Refusal::field("reference"))) } else { Ok(reference) }
}

/// A page that is looked for, in the form in which pages are kept: as a browser writes it, without query and fragment.
fn page_prefix(url: &str) -> Answer<String> {
    let normal = Url::parse(url).ok().and_then(|url| origin_and_path(url.as_str()));
    normal.ok_or_else(|| Refused(Refusal::field("url")))
}

async fn list_sessions(
    Extract(state): Extract<State>,
    caller: Caller,
    asked: Result<Query<SessionsQuery>, axum::extract::rejection::QueryRejection>,
) -> Answer<Json<Page<SessionItem>>> {
    let asked = query(asked)?;
    let limit = page_limit(asked.limit)?;
    let before = parse_cursor(asked.cursor.as_deref())?;
    let filter = Filter {
        from: moment(asked.from.as_deref(), "from")?,
        to: moment(asked.to.as_deref(), "to")?,
        reference: asked.reference.map(searchable).transpose()?,
        state: asked.state,
        has_errors: asked.has_errors,
        min_duration_ms: asked.min_duration.map(|seconds| i64::from(seconds) * 1_000),
        url: asked.url.as_deref().map(page_prefix).transpose()?,
    };
    let rows = state.index.sessions(caller.workspace, state.silence, &filter, before, limit + 1).await?;
    let items = rows.iter().map(listed).collect();
    Ok(Json(page(items, limit, |item: &SessionItem| (item.started_at, item.id.0))))
}

/// A session in a list: sums as of its last merge, and no look into its objects.
fn listed(row: &SessionRow) -> SessionItem {
    SessionItem {
        id: row.key.session,
        state: row.state,
        reference: row.reference.clone(),
        link_id: row.link,
        started_at: row.started_at,
        ended_at: (row.state == SessionState::Ended).then_some(row.last_activity_at),
        duration_ms: duration_ms(row.span),
        events: row.events,
        counts: row.counts,
        pages: row.pages,
        errors: row.errors,
        active_ms: row.active_ms,
        clicks: row.clicks,
        keypresses: row.keypresses,
        console: row.console,
        failed_requests: row.failed_requests,
        urls: row.urls.clone(),
        bytes_received: row.bytes_received,
        bytes_stored: row.bytes_stored,
        stored_as: None,
        expires_at: row.expires_at,
        completeness: None,
        consent: row.consent.clone(),
    }
}

fn duration_ms(span: Option<(i64, i64)>) -> u64 {
    span.map_or(0, |(min, max)| max.saturating_sub(min).max(0).unsigned_abs())
}

/// A session with all that its footers say: exact at this moment.
fn detailed(session: &Session) -> SessionItem {
    let totals = session.plan.totals();
    let snapshot = &session.snapshot;
    let completeness = session.plan.completeness();
    let ended = snapshot.row.state == SessionState::Ended || completeness.ended;
    let in_shared = session.has_shared();
    SessionItem {
        state: if ended { SessionState::Ended } else { SessionState::Recording },
        ended_at: ended.then_some(snapshot.row.last_activity_at),
        duration_ms: duration_ms(totals.span),
        events: totals.events,
        counts: totals.counts,
        pages: totals.pages,
        errors: totals.errors,
        active_ms: totals.active_ms,
        clicks: totals.clicks,
        keypresses: totals.keypresses,
        console: totals.console,
        failed_requests: totals.failed_requests,
        urls: totals.urls,
        bytes_received: totals.raw_bytes,
        bytes_stored: session.bytes_stored,
        stored_as: match (snapshot.own.is_empty(), in_shared) {
            (true, false) => None,
            (true, true) => Some(StoredAs::Shared),
            (false, true) => Some(StoredAs::Mixed),
            (false, false) => Some(StoredAs::Object),
        },
        completeness: Some(completeness),
        ..listed(&snapshot.row)
    }
}

async fn open(state: &State, caller: &Caller, id: &str) -> Answer<Box<Session>> {
    let key = SessionKey { workspace: caller.workspace, session: SessionId(parse_id(id)?) };
    match state.reader.open(&key, state.silence).await? {
        Opened::Never => Err(ErrorCode::NotFound.into()),
        Opened::Deleted => Err(ErrorCode::SessionDeleted.into()),
        Opened::Session(session) => Ok(session),
    }
}

async fn get_session(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<Json<SessionItem>> {
    Ok(Json(detailed(&*open(&state, &caller, &id).await?)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    from: Option<i64>,
    to: Option<i64>,
}

/// How events are laid out in an answer.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    Lines,
    Array,
}

#[derive(Clone, Copy, PartialEq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// The first of the accepted values that we have; a value with `q=0` is not accepted.
fn accepts(headers: &HeaderMap, name: header::HeaderName, value: &str) -> bool {
    headers.get_all(name).iter().filter_map(|header| header.to_str().ok()).flat_map(|header| header.split(',')).any(
        |item| {
            let mut parts = item.split(';').map(str::trim);
            let is_value = parts.next().is_some_and(|found| found.eq_ignore_ascii_case(value));
            is_value
                && !parts.any(|part| matches!(part.replace(' ', "").as_str(), "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
        },
    )
}

async fn get_events(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(id): Path<String>,
    headers: HeaderMap,
    asked: Result<Query<EventsQuery>, axum::extract::rejection::QueryRejection>,
) -> Answer<Response> {
    let asked = query(asked)?;
    let range = Range { from: asked.from.unwrap_or(i64::MIN), to: asked.to.unwrap_or(i64::MAX) };
    let session = open(&state, &caller, &id).await?;
    let layout = if accepts(&headers, header::ACCEPT, "application/json") { Layout::Array } else { Layout::Lines };
    let compression = if accepts(&headers, header::ACCEPT_ENCODING, "zstd") {
        Compression::Zstd
    } else if accepts(&headers, header::ACCEPT_ENCODING, "gzip") {
        Compression::Gzip
    } else {
        Compression::None
    };
    let (give, mut given) = mpsc::channel::<std::io::Result<Bytes>>(PIECES_WAITING_MAX);
    tokio::spawn(async move {
        let outcome = match write_events(&state, &session, range, layout, &give).await {
            Ok(()) => "whole",
            Err(ReadError::Deleted) => "deleted",
            Err(ReadError::HungUp) => "hung_up",
            Err(error) => {
                tracing::error!(error = %chain(&error), session = %session.snapshot.row.key.session, "read events");
                // The answer's head is gone already: the reader sees a reset, never an end that looks whole.
                "failed"
            }
        };
        ::metrics::counter!(metrics::READS, "outcome" => outcome).increment(1);
        if outcome != "whole" {
            let _ = give.send(Err(std::io::Error::other("reading ended early"))).await;
        }
    });
    let pieces = futures::stream::poll_fn(move |context| given.poll_recv(context));
    let body = match compression {
        Compression::None => Body::from_stream(pieces),
        Compression::Gzip => {
            Body::from_stream(ReaderStream::new(GzipEncoder::new(StreamReader::new(pieces.into_stream()))))
        }
        Compression::Zstd => {
            Body::from_stream(ReaderStream::new(ZstdEncoder::new(StreamReader::new(pieces.into_stream()))))
        }
    };
    let mut response = Response::new(body);
    let content_type = if layout == Layout::Array { "application/json" } else { "application/x-ndjson" };
    let answer = response.headers_mut();
    answer.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer.insert(header::VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
    match compression {
        Compression::None => None,
        Compression::Gzip => answer.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip")),
        Compression::Zstd => answer.insert(header::CONTENT_ENCODING, HeaderValue::from_static("zstd")),
    };
    Ok(response.into_response())
}

async fn write_events(
    state: &State,
    session: &Session,
    range: Range,
    layout: Layout,
    give: &mpsc::Sender<std::io::Result<Bytes>>,
) -> Result<(), ReadError> {
    // A reader that hung up wants nothing more: nothing more is fetched for it.
    let mut is_first = true;
    let pieces = |piece: Bytes| {
        ::metrics::counter!(metrics::READ_BYTES).increment(piece.len() as u64);
        let piece = match layout {
            Layout::Lines => piece,
            Layout::Array => as_elements(&piece, std::mem::take(&mut is_first)),
        };
        async move { give.send(Ok(piece)).await.map_err(|_| ReadError::HungUp) }
    };
    state.reader.events(session, range, pieces).await?;
    if layout == Layout::Array {
        let end: &'static [u8] = if is_first { b"[]" } else { b"]" };
        let _ = give.send(Ok(Bytes::from_static(end))).await;
    }
    Ok(())
}

/// Lines as elements of an array: the newline before each but the first becomes a comma.
fn as_elements(lines: &[u8], is_first: bool) -> Bytes {
    let mut out = Vec::with_capacity(lines.len() + 1);
    out.push(if is_first { b'[' } else { b',' });
    out.extend_from_slice(lines.strip_suffix(b"\n").unwrap_or(lines));
    for byte in &mut out {
        if *byte == b'\n' {
            *byte = b',';
        }
    }
    out.into()
}

async fn delete_session(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<(StatusCode, Json<DeletionAccepted>)> {
    let key = SessionKey { workspace: caller.workspace, session: SessionId(parse_id(&id)?) };
    let deletion_id = state.index.delete_session(&key).await?;
    state.keys.forget([&key]);
    Ok((StatusCode::ACCEPTED, Json(DeletionAccepted { deletion_id })))
}

async fn get_deletion(
    Extract(state): Extract<State>,
    caller: Caller,
    Path(id): Path<String>,
) -> Answer<Json<DeletionItem>> {
    let found = state.index.deletion(caller.workspace, DeletionId(parse_id(&id)?)).await?;
    found.map(Json).ok_or_else(|| ErrorCode::NotFound.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_elements_whatever_the_pieces() {
        let whole = [as_elements(b"{}\n{\"a\":1}\n", true), as_elements(b"{}\n", false)].concat();
        assert_eq!(whole, b"[{},{\"a\":1},{}");
    }

    #[test]
    fn cursors_read_back_and_strangers_are_refused() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_790_000_000_123_456_000).unwrap();
        let id = Uuid::from_u128(7);
        assert_eq!(parse_cursor(Some(&cursor(at, id))).unwrap(), Some(Before { at, id }));
        assert!(parse_cursor(Some("x")).is_err());
        assert!(parse_cursor(None).unwrap().is_none());
    }

    #[test]
    fn redirects_go_to_allowed_origins_only() {
        let origins = ["https://app.example".to_owned()];
        assert!(allowed_redirect("https://app.example/a?b", &origins).is_ok());
        for url in ["https://evil.example/", "javascript:alert(1)", "/a", "https://app.example.evil.example/"] {
            assert!(allowed_redirect(url, &origins).is_err(), "{url}");
        }
    }

    #[test]
    fn pages_are_looked_for_as_browsers_write_them() {
        for (url, expect) in [
            ("https://app.example", "https://app.example/"),
            ("HTTPS://user@App.Example:443/Cart/../a b?mail=x#y", "https://app.example/a%20b"),
            ("http://app.example:8080/ü", "http://app.example:8080/%C3%BC"),
        ] {
            assert_eq!(page_prefix(url).unwrap(), expect, "{url}");
        }
        for url in ["", "/cart", "app.example/cart", "file:///a", "javascript:alert(1)", "https://"] {
            assert!(page_prefix(url).is_err(), "{url}");
        }
    }

    #[test]
    fn accept_headers_are_read() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip;q=0, ZSTD"));
        assert!(accepts(&headers, header::ACCEPT_ENCODING, "zstd"));
        assert!(!accepts(&headers, header::ACCEPT_ENCODING, "gzip"));
    }
}
