//! The operator's calls. None of them shows whom a link is for, or anything of a session.

use axum::Json;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State as Extract};
use bytes::Bytes;
use http::StatusCode;
use schemas::control::WorkspaceState;
use schemas::http::{OperatorLink, OperatorPatch, Page, Scope, WorkspaceCreated, WorkspaceItem, WorkspaceRequest};
use schemas::{ApiKeyId, ErrorCode, LinkId, WorkspaceId};
use service_kit::keys::tokens::make_api_key;
use storage::index::keys::{FIRST_KEY, NewKey};
use storage::index::workspaces::{WorkspaceChange, normal_name, normal_origins};
use uuid::Uuid;

use super::account::changed;
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
    let change = WorkspaceChange { plan: patch.plan, state: patch.state, ..WorkspaceChange::default() };
    changed(state.index.change_workspace(WorkspaceId(parse_id(&id)?), &change, state.plan_grace).await?)
}

pub(super) async fn link(
    Extract(state): Extract<State>,
    _: Operator,
    Path(id): Path<String>,
) -> Answer<Json<OperatorLink>> {
    let found = state.index.link_of_anyone(LinkId(parse_id(&id)?)).await?;
    found.map(Json).ok_or_else(|| ErrorCode::NotFound.into())
}
