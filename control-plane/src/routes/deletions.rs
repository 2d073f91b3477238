//! Deletions: of a session, of a reference, and how far they are.

use axum::Json;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State as Extract};
use bytes::Bytes;
use http::StatusCode;
use schemas::deletion::Cause;
use schemas::http::{DeletionAccepted, DeletionItem, DeletionRequest, Page, ReceiptItem};
use schemas::{DeletionId, ErrorCode, SessionId, SessionKey, WorkspaceId, limits};
use serde::Deserialize;

use super::{Answer, field, page_limit, parse_body, parse_id, query, searchable};
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
    accepted(delete_one(&state, &key, Cause::ByHand).await?)
}

fn accepted(deletion_id: DeletionId) -> Answer<(StatusCode, Json<DeletionAccepted>)> {
    Ok((StatusCode::ACCEPTED, Json(DeletionAccepted { deletion_id })))
}

/// Deletes a session; it is unreadable, and in the journal, once this returns.
pub(super) async fn delete_one(state: &State, key: &SessionKey, cause: Cause) -> Answer<DeletionId> {
    // Under that id lies the key of the workspace's references: it is no session's, and never to be destroyed as one's.
    if !key.is_session() {
        return Err(ErrorCode::NotFound.into());
    }
    let deletion = state.index.delete_session(key, cause).await?;
    state.keys.forget([key]);
    state.journal.write(deletion).await?;
    Ok(deletion)
}

/// Answers once all sessions of the reference that the index knows are unreadable. Should that end early, the retention worker goes on.
pub(super) async fn delete_reference(
    Extract(state): Extract<State>,
    By(caller, _): By<Delete>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<(StatusCode, Json<DeletionAccepted>)> {
    let DeletionRequest { reference } = parse_body(body)?;
    accepted(delete_all_of(&state, caller.workspace, reference, Cause::ByReference).await?)
}

/// Deletes all sessions of a reference; those that the index knows are unreadable, and in the journal, once this returns.
pub(super) async fn delete_all_of(
    state: &State,
    workspace: WorkspaceId,
    reference: String,
    cause: Cause,
) -> Answer<DeletionId> {
    field((1..=limits::REFERENCE_BYTES_MAX).contains(&reference.len()).then_some(()), "reference")?;
    let reference = state.references.filter(workspace, searchable(reference)?).await?;
    let deletion = state.index.delete_reference(workspace, &reference, cause).await?;
    while let Some(found) = state.index.find_deleted(deletion, FOUND_AT_ONCE).await? {
        state.keys.forget(&found);
    }
    state.journal.write(deletion).await?;
    Ok(deletion)
}

pub(super) async fn get_deletion(
    Extract(state): Extract<State>,
    By(caller, _): By<Read>,
    Path(id): Path<String>,
) -> Answer<Json<DeletionItem>> {
    let found = state.index.deletion(Some(caller.workspace), DeletionId(parse_id(&id)?)).await?;
    found.map(Json).ok_or_else(|| ErrorCode::NotFound.into())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReceiptsQuery {
    cursor: Option<String>,
    limit: Option<u32>,
}

/// Receipts of a deletion, in their order. A cursor is the number of the last.
pub(super) async fn list_receipts(
    Extract(state): Extract<State>,
    By(caller, _): By<Read>,
    Path(id): Path<String>,
    asked: Result<Query<ReceiptsQuery>, QueryRejection>,
) -> Answer<Json<Page<ReceiptItem>>> {
    let asked = query(asked)?;
    let limit = page_limit(asked.limit)?;
    let after = asked.cursor.as_deref().map(|text| field(text.parse().ok(), "cursor")).transpose()?.unwrap_or(0);
    let deletion = DeletionId(parse_id(&id)?);
    if state.index.deletion(Some(caller.workspace), deletion).await?.is_none() {
        return Err(ErrorCode::NotFound.into());
    }
    let mut items = state.index.receipts_of(caller.workspace, deletion, after, limit + 1).await?;
    let is_more = items.len() > limit as usize;
    items.truncate(limit as usize);
    let next_cursor = items.last().filter(|_| is_more).map(|last| last.part.to_string());
    Ok(Json(Page { items, next_cursor }))
}
