//! Sessions: listing and reading.

use async_compression::tokio::bufread::{GzipEncoder, ZstdEncoder};
use axum::Json;
use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State as Extract};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use engine::merge::{Range, Totals};
use http::{HeaderMap, HeaderValue, header};
use masking::pages::origin_and_path;
use schemas::codes::Refusal;
use schemas::http::{Completeness, Page, ReadWhat, SessionItem, SessionState, StoredAs};
use schemas::{ErrorCode, SessionId, SessionKey};
use serde::Deserialize;
use storage::index::listing::{Filter, Listed, Wanted};
use storage::index::reads::Reading;
use storage::index::sessions::SessionRow;
use storage::reading::{Form, Opened, ReadError, Session};
use tokio_util::io::{ReaderStream, StreamReader};
use url::Url;

use super::{Answer, cursor, moment, page_limit, parse_cursor, parse_id, query, reference_filter};
use crate::auth::{By, Caller, Read};
use crate::driver::State;
use crate::metrics;
use crate::pieces::{Giving, pieces, tell_cut};
use crate::reply::Refused;

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
fn detailed(session: &Session, (totals, completeness): (Totals, Completeness), reference: String) -> SessionItem {
    let snapshot = &session.snapshot;
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

pub(super) async fn open(state: &State, caller: &Caller, id: &str) -> Answer<Box<Session>> {
    let key = SessionKey { workspace: caller.workspace, session: SessionId(parse_id(id)?) };
    match state.reader.open(&key, state.silence).await? {
        Opened::Never => Err(ErrorCode::NotFound.into()),
        Opened::Deleted => Err(ErrorCode::SessionDeleted.into()),
        Opened::Session(session) => Ok(session),
    }
}

/// Notes that what was opened is about to be read. What cannot be noted is not read.
pub(super) async fn note(
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
    let item = item(&state, &session).await?;
    note(&state, &caller, &session, ReadWhat::Metadata, (None, None)).await?;
    Ok(Json(item))
}

/// A session with all that is known of it.
async fn item(state: &State, session: &Session) -> Answer<SessionItem> {
    let row = &session.snapshot.row;
    let mut opened = state.references.open(row.key.workspace, vec![(row.link, row.reference.clone())]).await?;
    let sums = state.reader.sums(session).await?;
    Ok(detailed(session, sums, opened.pop().unwrap_or_default()))
}

/// The same as JSON, for an archive.
pub(crate) async fn about(state: &State, session: &Session) -> Answer<Vec<u8>> {
    let item = item(state, session).await?;
    serde_json::to_vec_pretty(&item).map_err(|_| ErrorCode::Internal.into())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    from: Option<i64>,
    to: Option<i64>,
}

/// How events are laid out in an answer.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Layout {
    Lines,
    Array,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// How much a value is wanted by a header that accepts some, in thousandths (RFC 9110, 12.4.2); `None` where it says nothing of it.
fn weight(headers: &HeaderMap, name: &header::HeaderName, value: &str) -> Option<u16> {
    let items = headers.get_all(name).iter().filter_map(|header| header.to_str().ok());
    let items = items.flat_map(|header| header.split(',')).filter_map(|item| {
        let mut parts = item.split(';').map(str::trim);
        let found = parts.next()?;
        // What names it says more than what stands for anything.
        let rank = match found {
            "*" | "*/*" => 0,
            _ if found.strip_suffix('*').is_some_and(|begin| value.starts_with(begin)) => 1,
            _ if found.eq_ignore_ascii_case(value) => 2,
            _ => return None,
        };
        let quality = parts.find_map(|part| {
            let (name, quality) = part.split_once('=')?;
            name.trim().eq_ignore_ascii_case("q").then(|| quality.trim().parse::<f32>().unwrap_or(1.0))
        });
        Some((rank, (quality.unwrap_or(1.0).clamp(0.0, 1.0) * 1000.0).round() as u16))
    });
    items.max_by_key(|(rank, _)| *rank).map(|(_, quality)| quality)
}

impl Layout {
    /// The one that is wanted most, lines when both are as much.
    fn wanted(headers: &HeaderMap) -> Self {
        let weight = |value| weight(headers, &header::ACCEPT, value).unwrap_or(0);
        if weight("application/json") > weight("application/x-ndjson") { Self::Array } else { Self::Lines }
    }
}

impl Compression {
    /// The one that is wanted most; of those that are as much the one that costs least.
    fn wanted(headers: &HeaderMap) -> Self {
        let weight = |value| weight(headers, &header::ACCEPT_ENCODING, value);
        let (zstd, gzip) = (weight("zstd").unwrap_or(0), weight("gzip").unwrap_or(0));
        // Whoever says nothing of it takes it, but wants what is named more.
        let none = weight("identity").unwrap_or(1);
        match zstd.max(gzip) {
            0 => Self::None,
            best if best < none => Self::None,
            best if best == zstd => Self::Zstd,
            _ => Self::Gzip,
        }
    }
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
    let place = state.readings.begin(caller.workspace).ok_or(ErrorCode::RateLimited)?;
    let session = open(&state, &caller, &id).await?;
    note(&state, &caller, &session, ReadWhat::Events, (asked.from, asked.to)).await?;
    let (layout, compression) = (Layout::wanted(&headers), Compression::wanted(&headers));
    // Whoever takes lines and zstd is given frames of it, most of them as they are stored.
    let form = match (layout, compression) {
        (Layout::Lines, Compression::Zstd) => Form::Zstd,
        _ => Form::Lines,
    };
    let (giving, given) = pieces();
    tokio::spawn(async move {
        let mut begun = false;
        let read = write_events(&state, &session, range, (layout, form), &giving, &mut begun).await;
        // Here, and not where it is taken: a reader that stalls or is gone takes nothing.
        if let (true, Err(error)) = (begun, &read) {
            tell_cut("events of session", session.snapshot.row.key.session, error);
        }
        drop((session, place));
        giving.end(read);
    });
    let pieces = given.begun().await?;
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

async fn write_events(
    state: &State,
    session: &Session,
    range: Range,
    (layout, form): (Layout, Form),
    giving: &Giving,
    begun: &mut bool,
) -> Result<(), ReadError> {
    let mut elements = Elements::default();
    let send = async |piece: Bytes| {
        ::metrics::counter!(metrics::READ_BYTES).increment(piece.len() as u64);
        giving.give(piece).await
    };
    let pieces = |piece: Bytes| {
        *begun = true;
        send(match layout {
            Layout::Lines => piece,
            Layout::Array => elements.of(&piece),
        })
    };
    let mut read = state.reader.events(session, range, form, pieces).await;
    if read.is_ok() && layout == Layout::Array {
        read = send(elements.end()).await;
    }
    if read.is_ok() {
        // What waits may not be given any more either once the session is deleted.
        read = state.reader.while_live(session, giving.drained()).await;
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

/// Lines as elements of an array, wherever they are cut: a newline becomes a comma once something follows it.
#[derive(Debug, Default)]
struct Elements {
    has_begun: bool,
    is_after_line: bool,
}

impl Elements {
    fn of(&mut self, piece: &[u8]) -> Bytes {
        let Some((last, before)) = piece.split_last() else { return Bytes::new() };
        let mut out = Vec::with_capacity(piece.len() + 2);
        if !std::mem::replace(&mut self.has_begun, true) {
            out.push(b'[');
        }
        if std::mem::replace(&mut self.is_after_line, *last == b'\n') {
            out.push(b',');
        }
        out.extend(before.iter().map(|byte| if *byte == b'\n' { b',' } else { *byte }));
        if !self.is_after_line {
            out.push(*last);
        }
        out.into()
    }

    fn end(&self) -> Bytes {
        Bytes::from_static(if self.has_begun { b"]" } else { b"[]" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_become_elements_wherever_they_are_cut() {
        let lines = b"{}\n{\"a\":1}\n{}\n";
        for bytes in 1..=lines.len() {
            let mut elements = Elements::default();
            let mut whole: Vec<u8> = lines.chunks(bytes).flat_map(|piece| elements.of(piece)).collect();
            whole.extend(elements.end());
            assert_eq!(whole, b"[{},{\"a\":1},{}]", "in pieces of {bytes}");
        }
        assert_eq!(Elements::default().end(), "[]");
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
    fn what_is_wanted_most_is_given() {
        let headers = |name: header::HeaderName, value: &'static str| {
            let mut headers = HeaderMap::new();
            value.split('|').filter(|value| !value.is_empty()).for_each(|value| {
                headers.append(name.clone(), HeaderValue::from_static(value));
            });
            headers
        };
        for (value, expect) in [
            ("", Layout::Lines),
            ("*/*", Layout::Lines),
            ("application/json", Layout::Array),
            ("Application/JSON; charset=utf-8", Layout::Array),
            ("application/*", Layout::Lines),
            ("application/json, */*;q=0.5", Layout::Array),
            ("application/x-ndjson, application/json;q=0.1", Layout::Lines),
            ("application/x-ndjson;Q=0.1|application/json; q = 0.2", Layout::Array),
            ("application/json;q=0", Layout::Lines),
            ("text/html", Layout::Lines),
        ] {
            assert_eq!(Layout::wanted(&headers(header::ACCEPT, value)), expect, "{value}");
        }
        for (value, expect) in [
            ("", Compression::None),
            ("identity", Compression::None),
            ("gzip;q=0, ZSTD", Compression::Zstd),
            ("gzip, zstd;q=0.1", Compression::Gzip),
            ("gzip, deflate, br, zstd", Compression::Zstd),
            ("gzip, deflate, br", Compression::Gzip),
            ("zstd;q=0, *", Compression::Gzip),
            ("gzip;q=0.5, identity", Compression::None),
            ("gzip;q=0.5, identity;q=0", Compression::Gzip),
            ("zstd;Q=0", Compression::None),
            ("br", Compression::None),
        ] {
            assert_eq!(Compression::wanted(&headers(header::ACCEPT_ENCODING, value)), expect, "{value}");
        }
    }
}
