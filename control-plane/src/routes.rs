//! One handler per call: what they share, and which there are.

mod account;
mod deletions;
mod exports;
mod links;
mod operator;
mod reads;
mod sessions;

use axum::Router;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{DefaultBodyLimit, Query};
use axum::routing::{delete, get, post};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use schemas::codes::Refusal;
use schemas::http::Page;
use schemas::{ErrorCode, limits};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use storage::index::links::{Before, ReferenceFilter};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::auth::Caller;
use crate::driver::State;
use crate::reply::Refused;

pub(crate) use sessions::about;

type Answer<T> = Result<T, Refused>;

/// The control plane's calls: method and path, as `schemas/openapi.yaml` has them.
pub const CALLS: &[(&str, &str)] = &[
    ("post", "/v1/links"),
    ("get", "/v1/links"),
    ("delete", "/v1/links/{id}"),
    ("get", "/v1/sessions"),
    ("get", "/v1/sessions/{id}"),
    ("delete", "/v1/sessions/{id}"),
    ("get", "/v1/sessions/{id}/events"),
    ("get", "/v1/sessions/{id}/export"),
    ("post", "/v1/exports"),
    ("get", "/v1/exports"),
    ("get", "/v1/exports/{id}"),
    ("delete", "/v1/exports/{id}"),
    ("get", "/v1/exports/{id}/archive"),
    ("get", "/v1/reads"),
    ("post", "/v1/deletions"),
    ("get", "/v1/deletions/{id}"),
    ("get", "/v1/deletions/{id}/receipts"),
    ("get", "/v1/workspace"),
    ("patch", "/v1/workspace"),
    ("delete", "/v1/workspace"),
    ("get", "/v1/usage"),
    ("post", "/v1/keys"),
    ("get", "/v1/keys"),
    ("delete", "/v1/keys/{id}"),
    ("post", "/v1/operator/workspaces"),
    ("get", "/v1/operator/workspaces"),
    ("get", "/v1/operator/workspaces/{id}"),
    ("patch", "/v1/operator/workspaces/{id}"),
    ("get", "/v1/operator/workspaces/{id}/receipts"),
    ("post", "/v1/operator/deletions"),
    ("get", "/v1/operator/deletions/{id}"),
    ("get", "/v1/operator/links/{id}"),
];

pub(crate) fn router() -> Router<State> {
    Router::new()
        .route("/v1/links", post(links::create).get(links::list))
        .route("/v1/links/{id}", delete(links::revoke))
        .route("/v1/sessions", get(sessions::list_sessions))
        .route("/v1/sessions/{id}", get(sessions::get_session).delete(deletions::delete_session))
        .route("/v1/sessions/{id}/events", get(sessions::get_events))
        .route("/v1/sessions/{id}/export", get(exports::export_session))
        .route("/v1/exports", post(exports::create).get(exports::list))
        .route("/v1/exports/{id}", get(exports::get).delete(exports::end))
        .route("/v1/exports/{id}/archive", get(exports::archive))
        .route("/v1/reads", get(reads::list_reads))
        .route("/v1/deletions", post(deletions::delete_reference))
        .route("/v1/deletions/{id}", get(deletions::get_deletion))
        .route("/v1/deletions/{id}/receipts", get(deletions::list_receipts))
        .route(
            "/v1/workspace",
            get(account::workspace).patch(account::change_workspace).delete(account::close_workspace),
        )
        .route("/v1/usage", get(account::usage))
        .route("/v1/keys", post(account::create_key).get(account::list_keys))
        .route("/v1/keys/{id}", delete(account::revoke_key))
        .route("/v1/operator/workspaces", post(operator::create_workspace).get(operator::list_workspaces))
        .route("/v1/operator/workspaces/{id}", get(operator::workspace).patch(operator::change_workspace))
        .route("/v1/operator/workspaces/{id}/receipts", get(operator::list_receipts))
        .route("/v1/operator/deletions", post(operator::delete))
        .route("/v1/operator/deletions/{id}", get(operator::deletion))
        .route("/v1/operator/links/{id}", get(operator::link))
        .layer(DefaultBodyLimit::max(limits::SMALL_BODY_BYTES_MAX))
        .fallback(|| async { Refused::from(ErrorCode::NotFound) })
        .method_not_allowed_fallback(|| async { Refused::from(ErrorCode::MethodNotAllowed) })
}

/// An id in a path; what is no id names nothing that the caller has.
fn parse_id(text: &str) -> Answer<Uuid> {
    Uuid::parse_str(text).map_err(|_| ErrorCode::NotFound.into())
}

fn parse_body<T: DeserializeOwned>(body: Result<Bytes, BytesRejection>) -> Answer<T> {
    match body {
        Ok(body) => serde_json::from_slice(&body).map_err(|_| ErrorCode::BodyMalformed.into()),
        Err(rejection) if rejection.status() == http::StatusCode::PAYLOAD_TOO_LARGE => {
            Err(Refusal::limit(ErrorCode::PayloadTooLarge, limits::SMALL_BODY_BYTES_MAX).into())
        }
        Err(_) => Err(ErrorCode::BodyMalformed.into()),
    }
}

/// What a field of the body was made into; when it could not, the field is named.
fn field<T>(value: Option<T>, name: &'static str) -> Answer<T> {
    value.ok_or_else(|| Refused(Refusal::field(name)))
}

/// A reference that can be looked for: the index holds none with a zero byte.
fn searchable(reference: String) -> Answer<String> {
    if reference.contains('\0') { Err(Refused(Refusal::field("reference"))) } else { Ok(reference) }
}

/// What a list is narrowed to by the reference that was asked for, if one was.
async fn reference_filter(
    state: &State,
    caller: &Caller,
    reference: Option<String>,
) -> Answer<Option<ReferenceFilter>> {
    let Some(reference) = reference.map(searchable).transpose()? else { return Ok(None) };
    Ok(Some(state.references.filter(caller.workspace, reference).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PageQuery {
    cursor: Option<String>,
    limit: Option<u32>,
}

fn query<T>(query: Result<Query<T>, QueryRejection>) -> Answer<T> {
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

/// A time that is asked for.
fn moment(text: Option<&str>, name: &'static str) -> Answer<Option<OffsetDateTime>> {
    text.map(|text| field(OffsetDateTime::parse(text, &Rfc3339).ok(), name)).transpose()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_read_back_and_strangers_are_refused() {
        let at = OffsetDateTime::from_unix_timestamp_nanos(1_790_000_000_123_456_000).unwrap();
        let id = Uuid::from_u128(7);
        assert_eq!(parse_cursor(Some(&cursor(at, id))).unwrap(), Some(Before { at, id }));
        assert!(parse_cursor(Some("x")).is_err());
        assert!(parse_cursor(None).unwrap().is_none());
    }
}
