//! Exports: of a session, at once; of a session, a reference or the workspace, kept until they are fetched.

use axum::Json;
use axum::body::Body;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State as Extract};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use schemas::codes::Refusal;
use schemas::export::{self, Manifest};
use schemas::http::{ExportItem, ExportRequest, ExportScope, ExportState, Page, ReadWhat};
use schemas::{ErrorCode, ExportId, SessionKey, limits};
use storage::exports::{self, Maker, Sink};
use storage::index::exports::Wanted;
use storage::index::sessions::Found;
use storage::reading::{ReadError, Reader, Session};
use storage::session_keys::KeyError;
use time::OffsetDateTime;

use super::sessions::{about, note, open};
use super::{Answer, PageQuery, field, page, page_limit, parse_body, parse_cursor, parse_id, query, searchable};
use crate::auth::{By, Read};
use crate::driver::State;
use crate::metrics;
use crate::pieces::{Giving, pieces, tell_cut};
use crate::reply::Refused;

/// What an archive is called where it is saved.
const GZIP: HeaderValue = HeaderValue::from_static("application/gzip");

/// Gives an archive to whoever asked for it.
struct Answering<'a> {
    giving: &'a Giving,
    reader: &'a Reader,
    session: &'a Session,
    has_begun: bool,
}

impl Sink for Answering<'_> {
    type Error = ReadError;

    async fn put(&mut self, bytes: Bytes) -> Result<(), ReadError> {
        ::metrics::counter!(metrics::READ_BYTES).increment(bytes.len() as u64);
        self.has_begun = true;
        self.reader.while_live(self.session, self.giving.give(bytes)).await
    }
}

/// An archive of one session, made while it is sent. Nothing of it is kept.
pub(super) async fn export_session(
    Extract(state): Extract<State>,
    By(caller, _): By<Read>,
    Path(id): Path<String>,
) -> Answer<Response> {
    let place = state.readings.begin(caller.workspace).ok_or(ErrorCode::RateLimited)?;
    let session = open(&state, &caller, &id).await?;
    note(&state, &caller, &session, ReadWhat::Export, (None, None)).await?;
    let key = session.snapshot.row.key;
    let described = about(&state, &session).await?;
    let (giving, given) = pieces();
    let requested_at = OffsetDateTime::now_utc();
    tokio::spawn(async move {
        let (has_begun, mut read) = make(&state, &session, described, requested_at, &giving).await;
        if read.is_ok() {
            // What waits may not be given any more either once the session is deleted.
            read = state.reader.while_live(&session, giving.drained()).await;
        }
        // What fails before is refused, and told then.
        if let (true, Err(error)) = (has_begun, &read) {
            tell_cut("archive of session", key.session, error);
        }
        drop((session, place));
        giving.end(read);
    });
    let mut response = Response::new(Body::from_stream(given.begun().await?));
    let name = format!("clairvio-session-{}.tar.gz", key.session);
    head(response.headers_mut(), &name);
    Ok(response)
}

/// Whether anything was given, and how it ended.
async fn make(
    state: &State,
    session: &Session,
    described: Vec<u8>,
    requested_at: OffsetDateTime,
    giving: &Giving,
) -> (bool, Result<(), ReadError>) {
    let answering = Answering { giving, reader: &state.reader, session, has_begun: false };
    let mut maker = Maker::new(state.pool.clone(), answering);
    let made = write(&mut maker, state, session, described, requested_at).await;
    (maker.sink.has_begun, made)
}

async fn write(
    maker: &mut Maker<Answering<'_>>,
    state: &State,
    session: &Session,
    described: Vec<u8>,
    requested_at: OffsetDateTime,
) -> Result<(), ReadError> {
    let key = session.snapshot.row.key;
    let written = maker.session(&state.reader, session, described).await?;
    let manifest = Manifest {
        format: export::FORMAT.into(),
        version: export::VERSION,
        export: None,
        workspace: key.workspace,
        scope: ExportScope::Session,
        requested_at,
        sessions: 1,
        events: written.events,
        receipts: 0,
        sums_sha256: String::new(),
    };
    maker.end_of_one(written, manifest).await
}

fn head(headers: &mut HeaderMap, name: &str) {
    headers.insert(header::CONTENT_TYPE, GZIP);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Names have ids in them, and nothing else.
    if let Ok(name) = HeaderValue::try_from(format!("attachment; filename=\"{name}\"")) {
        headers.insert(header::CONTENT_DISPOSITION, name);
    }
}

/// Asks for an archive that is made meanwhile.
pub(super) async fn create(
    Extract(state): Extract<State>,
    By(caller, _): By<Read>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<(StatusCode, Json<ExportItem>)> {
    let wanted = match parse_body(body)? {
        ExportRequest { session: Some(session), reference: None, workspace: false } => {
            let key = SessionKey { workspace: caller.workspace, session };
            match state.index.find_session(&key, state.silence).await? {
                Found::Live(_) => Wanted::Session(session),
                Found::Deleted => return Err(ErrorCode::SessionDeleted.into()),
                Found::Never => return Err(ErrorCode::NotFound.into()),
            }
        }
        ExportRequest { session: None, reference: Some(reference), workspace: false } => {
            field((1..=limits::REFERENCE_BYTES_MAX).contains(&reference.len()).then_some(()), "reference")?;
            let reference = state.references.filter(caller.workspace, searchable(reference)?).await?;
            Wanted::Links(state.index.links_of(caller.workspace, &reference).await?)
        }
        ExportRequest { session: None, reference: None, workspace: true } => Wanted::Workspace,
        // None of them, or more than one.
        _ => return Err(Refusal::field("workspace").into()),
    };
    let (kept, most) = (state.exports_kept, limits::EXPORTS_MAX);
    let asked = state.index.ask_export(caller.workspace, &wanted, caller.key, kept, most).await?;
    let item = asked.ok_or(Refusal::limit(ErrorCode::ExportsTooMany, most as usize))?;
    state.exports_asked.notify_one();
    Ok((StatusCode::ACCEPTED, Json(item)))
}

pub(super) async fn list(
    Extract(state): Extract<State>,
    By(caller, _): By<Read>,
    asked: Result<Query<PageQuery>, QueryRejection>,
) -> Answer<Json<Page<ExportItem>>> {
    let asked = query(asked)?;
    let limit = page_limit(asked.limit)?;
    let before = parse_cursor(asked.cursor.as_deref())?;
    let items = state.index.exports(caller.workspace, before, limit + 1).await?;
    Ok(Json(page(items, limit, |item| (item.requested_at, item.id.0))))
}

pub(super) async fn get(
    Extract(state): Extract<State>,
    By(caller, _): By<Read>,
    Path(id): Path<String>,
) -> Answer<Json<ExportItem>> {
    let found = state.index.export(caller.workspace, ExportId(parse_id(&id)?)).await?;
    found.map(Json).ok_or_else(|| ErrorCode::NotFound.into())
}

/// Ends an export: nobody fetches it any more, and its bytes go.
pub(super) async fn end(
    Extract(state): Extract<State>,
    By(caller, _): By<Read>,
    Path(id): Path<String>,
) -> Answer<StatusCode> {
    let id = ExportId(parse_id(&id)?);
    if !state.index.end_export(caller.workspace, id).await? {
        return Err(ErrorCode::NotFound.into());
    }
    state.keys.forget([&SessionKey::of_export(caller.workspace, id)]);
    Ok(StatusCode::NO_CONTENT)
}

/// The bytes that a header `Range` asks for of so many (RFC 9110, 14.2): one range of bytes. `None` for all of them, as for whatever
/// else stands there; an error when it begins behind the end.
fn wanted_range(headers: &HeaderMap, tag: &str, total: u64) -> Answer<Option<std::ops::Range<u64>>> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    // Of another archive nothing is wanted but all.
    if text(header::IF_RANGE).is_some_and(|known| known != tag) {
        return Ok(None);
    }
    let Some((from, to)) = text(header::RANGE).and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) else {
        return Ok(None);
    };
    let range = match (from.parse::<u64>(), to.parse::<u64>()) {
        (Ok(from), Ok(to)) if from <= to => from..to.saturating_add(1).min(total),
        (Ok(from), Err(_)) if to.is_empty() => from..total,
        (Err(_), Ok(last)) if from.is_empty() => total.saturating_sub(last)..total,
        _ => return Ok(None),
    };
    if range.is_empty() { Err(ErrorCode::RangeInvalid.into()) } else { Ok(Some(range)) }
}

pub(super) async fn archive(
    Extract(state): Extract<State>,
    By(caller, _): By<Read>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Answer<Response> {
    let (workspace, id) = (caller.workspace, ExportId(parse_id(&id)?));
    let place = state.readings.begin(workspace).ok_or(ErrorCode::RateLimited)?;
    let Some(parts) = state.index.open_export(workspace, id, caller.key).await? else {
        return Err(match state.index.export(workspace, id).await?.map(|item| item.state) {
            None => ErrorCode::NotFound.into(),
            Some(ExportState::Building) => ErrorCode::ExportNotReady.into(),
            Some(ExportState::Ready | ExportState::Ended | ExportState::Gone) => ErrorCode::ExportGone.into(),
        });
    };
    let total = exports::total(&parts);
    let tag = format!("\"{id}\"");
    let wanted = match wanted_range(&headers, &tag, total) {
        Ok(wanted) => wanted,
        Err(refused) => return Ok(behind_the_end(refused, total)),
    };
    let range = wanted.clone().unwrap_or(0..total);
    let (giving, given) = pieces();
    let of_answer = range.clone();
    tokio::spawn(async move {
        let mut has_begun = false;
        let give = |piece: Bytes| {
            has_begun = true;
            ::metrics::counter!(metrics::READ_BYTES).increment(piece.len() as u64);
            giving.give(piece)
        };
        let stores = (&state.index, &state.objects, &state.keys, &state.pool);
        let mut read = exports::fetch(stores, (workspace, id), &parts, range, give).await;
        if read.is_ok() {
            read = exports::while_open(&state.index, id, giving.drained()).await;
        }
        if let (true, Err(error)) = (has_begun, &read) {
            tell_cut("archive of export", id, error);
        }
        drop(place);
        giving.end(read);
    });
    let given = given.begun().await.map_err(|error| match error {
        // Of an archive that was ended while it was opened.
        ReadError::Deleted | ReadError::Key(KeyError::Shredded(_)) => ErrorCode::ExportGone.into(),
        error => Refused::from(error),
    })?;
    let mut response = Response::new(Body::from_stream(given));
    if wanted.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    let answer = response.headers_mut();
    head(answer, &format!("clairvio-export-{id}.tar.gz"));
    answer.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    let of_range = wanted.map(|range| format!("bytes {}-{}/{total}", range.start, range.end - 1));
    let numbers = [
        (header::ETAG, Some(tag)),
        (header::CONTENT_RANGE, of_range),
        (header::CONTENT_LENGTH, Some((of_answer.end - of_answer.start).to_string())),
    ];
    for (name, value) in numbers {
        if let Some(value) = value.and_then(|value| HeaderValue::try_from(value).ok()) {
            answer.insert(name, value);
        }
    }
    Ok(response)
}

/// The refusal, with the length of what there is (RFC 9110, 15.5.17).
fn behind_the_end(refused: Refused, total: u64) -> Response {
    let mut response = refused.into_response();
    if let Ok(length) = HeaderValue::try_from(format!("bytes */{total}")) {
        response.headers_mut().insert(header::CONTENT_RANGE, length);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_bytes_and_all_else_is_all() {
        let asked = |range: &'static str, known: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RANGE, HeaderValue::from_static(range));
            if let Some(known) = known {
                headers.insert(header::IF_RANGE, HeaderValue::from_static(known));
            }
            wanted_range(&headers, "\"a\"", 100).map_err(|refused| refused.0.code)
        };
        for (range, expect) in [
            ("bytes=0-0", Some(0..1)),
            ("bytes=10-19", Some(10..20)),
            ("bytes=10-", Some(10..100)),
            ("bytes=10-1000", Some(10..100)),
            ("bytes=-10", Some(90..100)),
            ("bytes=-1000", Some(0..100)),
            ("bytes=19-10", None),
            ("bytes=0-1,5-6", None),
            ("lines=0-1", None),
            ("bytes=-", None),
            ("bytes=a-b", None),
        ] {
            assert_eq!(asked(range, None), Ok(expect), "{range}");
        }
        assert_eq!(asked("bytes=10-", Some("\"a\"")), Ok(Some(10..100)));
        assert_eq!(asked("bytes=10-", Some("\"b\"")), Ok(None));
        for behind in ["bytes=100-", "bytes=100-200", "bytes=-0"] {
            assert_eq!(asked(behind, None), Err(ErrorCode::RangeInvalid), "{behind}");
        }
        assert_eq!(wanted_range(&HeaderMap::new(), "\"a\"", 100).unwrap(), None);
    }
}
