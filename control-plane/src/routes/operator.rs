//! The operator's calls. None of them shows whom a link is for, or anything of a session.

use axum::Json;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State as Extract};
use bytes::Bytes;
use http::StatusCode;
use schemas::control::WorkspaceState;
use schemas::deletion::Cause;
use schemas::http::{
    DeletionAccepted, DeletionItem, OperatorDeletion, OperatorLink, OperatorPatch, Page, ReceiptItem, Scope,
    WorkspaceCreated, WorkspaceItem, WorkspaceRequest,
};
use schemas::{ApiKeyId, DeletionId, ErrorCode, LinkId, SessionKey, WorkspaceId};
use service_kit::keys::tokens::make_api_key;
use storage::index::keys::{FIRST_KEY, NewKey};
use storage::index::workspaces::{WorkspaceChange, normal_name, normal_origins};
use uuid::Uuid;

use super::account::changed;
use super::deletions::{delete_all_of, delete_one};
use super::{Answer, PageQuery, field, page, page_limit, parse_body, parse_cursor, parse_id, query};
use crate::auth::Operator;
use crate::driver::State;

pub(super) async fn create_workspace(
    Extract(state): Extract<State>,
    _: Operator,
    body: Result<Bytes, BytesRejection>,
) -> Answer<(StatusCode, Json<WorkspaceCreated>)> {
    let request: WorkspaceRequest = parse_body(body)?;
    let name = field(normal_name(&request.name), "name")?;
    let origins = field(normal_origins(&request.origins), "origins")?;
    let (id, api_key) = (WorkspaceId(Uuid::now_v7()), make_api_key().map_err(|_| ErrorCode::Internal)?);
    let key = NewKey { id: ApiKeyId(Uuid::now_v7()), key: &api_key, name: FIRST_KEY, scopes: &Scope::ALL };
    let created_at = state.index.create_workspace_with_key(id, &name, request.plan, &origins, &key).await?;
    let workspace = WorkspaceItem {
        id,
        name,
        plan: request.plan,
        state: WorkspaceState::Active,
        origins,
        notice_versions: Vec::new(),
        limits: request.plan.limits(),
        created_at,
        terminates_at: None,
    };
    Ok((StatusCode::CREATED, Json(WorkspaceCreated { workspace, api_key })))
}

pub(super) async fn list_workspaces(
    Extract(state): Extract<State>,
    _: Operator,
    asked: Result<Query<PageQuery>, QueryRejection>,
) -> Answer<Json<Page<WorkspaceItem>>> {
    let asked = query(asked)?;
    let limit = page_limit(asked.limit)?;
    let before = parse_cursor(asked.cursor.as_deref())?;
    let items = state.index.workspaces(before, limit + 1).await?;
    Ok(Json(page(items, limit, |item| (item.created_at, item.id.0))))
}

pub(super) async fn workspace(
    Extract(state): Extract<State>,
    _: Operator,
    Path(id): Path<String>,
) -> Answer<Json<WorkspaceItem>> {
    let found = state.index.workspace(WorkspaceId(parse_id(&id)?)).await?;
    found.map(Json).ok_or_else(|| ErrorCode::NotFound.into())
}

pub(super) async fn change_workspace(
    Extract(state): Extract<State>,
    _: Operator,
    Path(id): Path<String>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<Json<WorkspaceItem>> {
    let patch: OperatorPatch = parse_body(body)?;
    let change =
        WorkspaceChange { plan: patch.plan, state: patch.state, by_operator: true, ..WorkspaceChange::default() };
    changed(state.change_workspace(WorkspaceId(parse_id(&id)?), &change).await?)
}

pub(super) async fn link(
    Extract(state): Extract<State>,
    _: Operator,
    Path(id): Path<String>,
) -> Answer<Json<OperatorLink>> {
    let found = state.index.link_of_anyone(LinkId(parse_id(&id)?)).await?;
    found.map(Json).ok_or_else(|| ErrorCode::NotFound.into())
}

/// Deletes a session or all of a reference, on notice (P23).
pub(super) async fn delete(
    Extract(state): Extract<State>,
    _: Operator,
    body: Result<Bytes, BytesRejection>,
) -> Answer<(StatusCode, Json<DeletionAccepted>)> {
    let OperatorDeletion { workspace_id, session_id, reference } = parse_body(body)?;
    // A tombstone in a workspace that never was would be nobody's.
    if state.index.workspace(workspace_id).await?.is_none() {
        return Err(ErrorCode::NotFound.into());
    }
    let deletion_id = match (session_id, reference) {
        (Some(session), None) => {
            delete_one(&state, &SessionKey { workspace: workspace_id, session }, Cause::Operator).await?
        }
        (None, Some(reference)) => delete_all_of(&state, workspace_id, reference, Cause::Operator).await?,
        // Both, or neither: who asks means something else than what would be done.
        _ => field(None, "session_id")?,
    };
    Ok((StatusCode::ACCEPTED, Json(DeletionAccepted { deletion_id })))
}

pub(super) async fn deletion(
    Extract(state): Extract<State>,
    _: Operator,
    Path(id): Path<String>,
) -> Answer<Json<DeletionItem>> {
    let found = state.index.deletion(None, DeletionId(parse_id(&id)?)).await?;
    found.map(Json).ok_or_else(|| ErrorCode::NotFound.into())
}

/// Receipts of a workspace's deletions, newest first, of each the first: also of one that is gone, which nobody else can ask for.
pub(super) async fn list_receipts(
    Extract(state): Extract<State>,
    _: Operator,
    Path(id): Path<String>,
    asked: Result<Query<PageQuery>, QueryRejection>,
) -> Answer<Json<Page<ReceiptItem>>> {
    let asked = query(asked)?;
    let limit = page_limit(asked.limit)?;
    let before = parse_cursor(asked.cursor.as_deref())?;
    let items = state.index.receipts(WorkspaceId(parse_id(&id)?), before, limit + 1).await?;
    Ok(Json(page(items, limit, |item| (item.signed_at, item.deletion_id.0))))
}
