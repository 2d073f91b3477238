//! Sessions: listing, reading, deleting.

use async_compression::tokio::bufread::{GzipEncoder, ZstdEncoder};
use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State as Extract};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use engine::merge::Range;
use futures::{StreamExt as _, TryStreamExt as _};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use masking::pages::origin_and_path;
use schemas::codes::Refusal;
use schemas::http::{DeletionAccepted, DeletionItem, Page, ReadWhat, SessionItem, SessionState, StoredAs};
use schemas::{DeletionId, ErrorCode, SessionId, SessionKey};
use serde::Deserialize;
use service_kit::telemetry::chain;
use storage::index::listing::{Filter, Listed, Wanted};
use storage::index::reads::Reading;
use storage::index::sessions::SessionRow;
use storage::reading::{Form, Opened, ReadError, Session};
use tokio::sync::mpsc;
use tokio_util::io::{ReaderStream, StreamReader};
use url::Url;

use super::{Answer, cursor, moment, page_limit, parse_cursor, parse_id, query, reference_filter};
use crate::auth::{By, Caller, Delete, Read};
use crate::driver::State;
use crate::metrics;
use crate::reply::Refused;

/// Pieces of a reading that wait for a slow reader; with the merger's batches this bounds its memory.
const PIECES_WAITING_MAX: usize = 4;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SessionsQuery {
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

/// A page that is looked for, in the form in which pages are kept: as a browser writes it, without query and fragment.
fn page_prefix(url: &str) -> Answer<String> {
    let normal = Url::parse(url).ok().and_then(|url| origin_and_path(url.as_str()));
    normal.ok_or_else(|| Refused(Refusal::field("url")))
}

pub(super) async fn list_sessions(
    Extract(state): Extract<State>,
    By(caller, _): By<Read>,
    asked: Result<Query<SessionsQuery>, QueryRejection>,
) -> Answer<Json<Page<SessionItem>>> {
    let asked = query(asked)?;
    let limit = page_limit(asked.limit)?;
    let before = parse_cursor(asked.cursor.as_deref())?;
    let reference = reference_filter(&state, &caller, asked.reference).await?;
    let filter = Filter {
        from: moment(asked.from.as_deref(), "from")?,
        to: moment(asked.to.as_deref(), "to")?,
        reference,
        state: asked.state,
        has_errors: asked.has_errors,
        min_duration_ms: asked.min_duration.map(|seconds| i64::from(seconds) * 1_000),
        url: asked.url.as_deref().map(page_prefix).transpose()?,
    };
    let wanted = Wanted { workspace: caller.workspace, silence: state.silence, filter: &filter, before, limit };
    let Listed { rows, next } = state.index.sessions(wanted).await?;
    let stored = rows.iter().map(|row| (row.link, row.reference.clone())).collect();
    let references = state.references.open(caller.workspace, stored).await?;
    let items = rows.iter().zip(references).map(|(row, reference)| listed(row, reference)).collect();
    Ok(Json(Page { items, next_cursor: next.map(|next| cursor(next.at, next.id)) }))
}

/// A session in a list: sums as of its last merge, and no look into its objects.
fn listed(row: &SessionRow, reference: String) -> SessionItem {
    SessionItem {
        id: row.key.session,
        state: row.state,
        reference,
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
fn detailed(session: &Session, reference: String) -> SessionItem {
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
        ..listed(&snapshot.row, reference)
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

/// Notes that what was opened is about to be read. What cannot be noted is not read.
async fn note(
    state: &State,
    caller: &Caller,
    session: &Session,
    what: ReadWhat,
    (from, to): (Option<i64>, Option<i64>),
) -> Answer<()> {
    let reading = Reading { by: caller.key, what, from, to };
    if state.index.note_read(&session.snapshot.row.key, &reading).await? {
        Ok(())
    } else {
        // It was opened a moment ago.
        Err(ErrorCode::SessionDeleted.into())
    }
}

pub(super) async fn get_session(
    Extract(state): Extract<State>,
    By(caller, _): By<Read>,
    Path(id): Path<String>,
) -> Answer<Json<SessionItem>> {
    let session = open(&state, &caller, &id).await?;
    let row = &session.snapshot.row;
    let mut opened = state.references.open(caller.workspace, vec![(row.link, row.reference.clone())]).await?;
    note(&state, &caller, &session, ReadWhat::Metadata, (None, None)).await?;
    Ok(Json(detailed(&session, opened.pop().unwrap_or_default())))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
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

pub(super) async fn get_events(
    Extract(state): Extract<State>,
    By(caller, _): By<Read>,
    Path(id): Path<String>,
    headers: HeaderMap,
    asked: Result<Query<EventsQuery>, QueryRejection>,
) -> Answer<Response> {
    let asked = query(asked)?;
    let range = Range { from: asked.from.unwrap_or(i64::MIN), to: asked.to.unwrap_or(i64::MAX) };
    let session = open(&state, &caller, &id).await?;
    note(&state, &caller, &session, ReadWhat::Events, (asked.from, asked.to)).await?;
    let layout = if accepts(&headers, header::ACCEPT, "application/json") { Layout::Array } else { Layout::Lines };
    let compression = if accepts(&headers, header::ACCEPT_ENCODING, "zstd") {
        Compression::Zstd
    } else if accepts(&headers, header::ACCEPT_ENCODING, "gzip") {
        Compression::Gzip
    } else {
        Compression::None
    };
    // Whoever takes lines and zstd is given frames of it, most of them as they are stored.
    let form = match (layout, compression) {
        (Layout::Lines, Compression::Zstd) => Form::Zstd,
        _ => Form::Lines,
    };
    let (give, mut given) = mpsc::channel::<Result<Bytes, ReadError>>(PIECES_WAITING_MAX);
    let opened = session;
    let session = opened.snapshot.row.key.session;
    tokio::spawn(async move {
        if let Err(error) = write_events(&state, &opened, range, layout, form, &give).await {
            let _ = give.send(Err(error)).await;
        }
    });
    // What fails before anything was given is refused as it should be, not cut off.
    let first = given.recv().await.transpose()?;
    let rest = futures::stream::poll_fn(move |context| given.poll_recv(context));
    // The answer's head is gone by then: the reader sees a reset, never an end that looks whole.
    let rest = rest.map_err(move |error| {
        tell_cut(session, &error);
        std::io::Error::other("reading ended early")
    });
    let pieces = futures::stream::iter(first.map(Ok)).chain(rest);
    let body = match compression {
        Compression::Gzip => Body::from_stream(ReaderStream::new(GzipEncoder::new(StreamReader::new(pieces)))),
        Compression::Zstd if form == Form::Lines => {
            Body::from_stream(ReaderStream::new(ZstdEncoder::new(StreamReader::new(pieces))))
        }
        Compression::None | Compression::Zstd => Body::from_stream(pieces),
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

/// Says why an answer was cut off that had begun.
fn tell_cut(session: SessionId, error: &ReadError) {
    match error {
        ReadError::Deleted | ReadError::HungUp => {}
        error if error.is_damage() => {
            let code = ErrorCode::ObjectCorrupt.as_str();
            tracing::error!(%session, code, error = %chain(error), "read events; the answer was cut off");
        }
        error => tracing::warn!(%session, error = %chain(error), "read events; the answer was cut off"),
    }
}

async fn write_events(
    state: &State,
    session: &Session,
    range: Range,
    layout: Layout,
    form: Form,
    give: &mpsc::Sender<Result<Bytes, ReadError>>,
) -> Result<(), ReadError> {
    let mut is_first = true;
    // A reader that hung up wants nothing more: nothing more is fetched for it.
    let send = async |piece: Bytes| {
        ::metrics::counter!(metrics::READ_BYTES).increment(piece.len() as u64);
        give.send(Ok(piece)).await.map_err(|_| ReadError::HungUp)
    };
    let pieces = |piece: Bytes| {
        send(match layout {
            Layout::Lines => piece,
            Layout::Array => as_elements(&piece, std::mem::take(&mut is_first)),
        })
    };
    let mut read = state.reader.events(session, range, form, pieces).await;
    if read.is_ok() && layout == Layout::Array {
        let end: &'static [u8] = if is_first { b"[]" } else { b"]" };
        read = send(Bytes::from_static(end)).await;
    }
    let outcome = match &read {
        Ok(()) => "whole",
        Err(ReadError::Deleted) => "deleted",
        Err(ReadError::HungUp) => "hung_up",
        Err(_) => "failed",
    };
    ::metrics::counter!(metrics::READS, "outcome" => outcome).increment(1);
    read
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

pub(super) async fn delete_session(
    Extract(state): Extract<State>,
    By(caller, _): By<Delete>,
    Path(id): Path<String>,
) -> Answer<(StatusCode, Json<DeletionAccepted>)> {
    let key = SessionKey { workspace: caller.workspace, session: SessionId(parse_id(&id)?) };
    // Under that id lies the key of the workspace's references: it is no session's, and never to be destroyed as one's.
    if !key.is_session() {
        return Err(ErrorCode::NotFound.into());
    }
    let deletion_id = state.index.delete_session(&key).await?;
    state.keys.forget([&key]);
    Ok((StatusCode::ACCEPTED, Json(DeletionAccepted { deletion_id })))
}

pub(super) async fn get_deletion(
    Extract(state): Extract<State>,
    By(caller, _): By<Read>,
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
