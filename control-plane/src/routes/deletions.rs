//! Deletions: of a session, of a reference, and how far they are.

use axum::Json;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Path, State as Extract};
use bytes::Bytes;
use http::StatusCode;
use schemas::http::{DeletionAccepted, DeletionItem, DeletionRequest};
use schemas::{DeletionId, ErrorCode, SessionId, SessionKey, limits};

use super::{Answer, field, parse_body, parse_id, searchable};
use crate::auth::{By, Delete, Read};
use crate::driver::State;

/// Sessions of a reference that are deleted by one transaction.
const FOUND_AT_ONCE: i64 = 1_000;

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

/// Answers once all sessions of the reference that the index knows are unreadable. Should that end early, the retention worker goes on.
pub(super) async fn delete_reference(
    Extract(state): Extract<State>,
    By(caller, _): By<Delete>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<(StatusCode, Json<DeletionAccepted>)> {
    let DeletionRequest { reference } = parse_body(body)?;
    field((1..=limits::REFERENCE_BYTES_MAX).contains(&reference.len()).then_some(()), "reference")?;
    let reference = state.references.filter(caller.workspace, searchable(reference)?).await?;
    let deletion_id = state.index.delete_reference(caller.workspace, &reference).await?;
    while let Some(found) = state.index.find_deleted(deletion_id, FOUND_AT_ONCE).await? {
        state.keys.forget(&found);
    }
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
