//! A workspace's own affairs: what it is, its keys, its usage.

use axum::Json;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State as Extract};
use bytes::Bytes;
use http::StatusCode;
use schemas::control::WorkspaceState;
use schemas::http::{KeyCreated, KeyItem, KeyRequest, Page, Usage, WorkspaceItem, WorkspacePatch};
use schemas::limits::USAGE_DAYS_MAX;
use schemas::{ApiKeyId, ErrorCode};
use serde::Deserialize;
use service_kit::keys::tokens::make_api_key;
use storage::index::keys::NewKey;
use storage::index::workspaces::{Changed, WorkspaceChange, normal_name, normal_notice_versions, normal_origins};
use time::macros::format_description;
use time::{Date, Duration, OffsetDateTime};
use uuid::Uuid;

use super::{Answer, PageQuery, field, page, page_limit, parse_body, parse_cursor, parse_id, query};
use crate::auth::{Administer, By, OwnWorkspace, Read};
use crate::driver::State;

/// Days that a usage has when nothing else is asked for, today included.
const USAGE_DAYS_DEFAULT: i64 = 30;

pub(super) async fn workspace(
    Extract(state): Extract<State>,
    By(caller, _): By<OwnWorkspace>,
) -> Answer<Json<WorkspaceItem>> {
    let found = state.index.workspace(caller.workspace).await?;
    found.map(Json).ok_or_else(|| ErrorCode::NotFound.into())
}

pub(super) async fn change_workspace(
    Extract(state): Extract<State>,
    By(caller, _): By<OwnWorkspace>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<Json<WorkspaceItem>> {
    let patch: WorkspacePatch = parse_body(body)?;
    let opens =
        patch.state.map(|state| field((state == WorkspaceState::Active).then_some(state), "state")).transpose()?;
    // Whoever administers a workspace may open again what he closed, and nothing that an operator did.
    if opens.is_some() && caller.state == WorkspaceState::Suspended {
        return Err(ErrorCode::WorkspaceSuspended.into());
    }
    let change = WorkspaceChange {
        name: patch.name.map(|name| field(normal_name(&name), "name")).transpose()?,
        origins: patch.origins.map(|origins| field(normal_origins(&origins), "origins")).transpose()?,
        notice_versions: patch
            .notice_versions
            .map(|versions| field(normal_notice_versions(&versions), "notice_versions"))
            .transpose()?,
        state: opens,
        ..WorkspaceChange::default()
    };
    changed(state.change_workspace(caller.workspace, &change).await?)
}

/// Closes the workspace: nothing is recorded any more, and when its time is over all of it goes. Until then it can be opened again.
pub(super) async fn close_workspace(
    Extract(state): Extract<State>,
    By(caller, _): By<OwnWorkspace>,
) -> Answer<(StatusCode, Json<WorkspaceItem>)> {
    // Else it could be opened again, and would not be suspended any more.
    if caller.state == WorkspaceState::Suspended {
        return Err(ErrorCode::WorkspaceSuspended.into());
    }
    let change = WorkspaceChange { state: Some(WorkspaceState::Terminated), ..WorkspaceChange::default() };
    let closed = changed(state.change_workspace(caller.workspace, &change).await?)?;
    Ok((StatusCode::ACCEPTED, closed))
}

/// The answer to a change of a workspace.
pub(super) fn changed(changed: Changed) -> Answer<Json<WorkspaceItem>> {
    match changed {
        Changed::Done(workspace) => Ok(Json(workspace)),
        Changed::Unknown => Err(ErrorCode::NotFound.into()),
        Changed::Terminated => Err(ErrorCode::WorkspaceTerminated.into()),
        Changed::Uncompared => Err(ErrorCode::Unavailable.into()),
    }
}

pub(super) async fn create_key(
    Extract(state): Extract<State>,
    By(caller, _): By<Administer>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<(StatusCode, Json<KeyCreated>)> {
    let request: KeyRequest = parse_body(body)?;
    let name = field(normal_name(&request.name), "name")?;
    let mut scopes = request.scopes;
    scopes.sort_unstable();
    scopes.dedup();
    field((!scopes.is_empty()).then_some(()), "scopes")?;
    // Else whoever has a key for the administration alone could make one that reads.
    if !scopes.iter().all(|scope| caller.scopes.contains(scope)) {
        return Err(ErrorCode::ScopeMissing.into());
    }
    let (id, key) = (ApiKeyId(Uuid::now_v7()), make_api_key().map_err(|_| ErrorCode::Internal)?);
    let new = NewKey { id, key: &key, name: &name, scopes: &scopes };
    let created_at = state.index.create_key(caller.workspace, &new).await?.ok_or(ErrorCode::KeysTooMany)?;
    Ok((StatusCode::CREATED, Json(KeyCreated { id, key, name, scopes, created_at })))
}

pub(super) async fn list_keys(
    Extract(state): Extract<State>,
    By(caller, _): By<Administer>,
    asked: Result<Query<PageQuery>, QueryRejection>,
) -> Answer<Json<Page<KeyItem>>> {
    let asked = query(asked)?;
    let limit = page_limit(asked.limit)?;
    let before = parse_cursor(asked.cursor.as_deref())?;
    let items = state.index.keys(caller.workspace, before, limit + 1).await?;
    Ok(Json(page(items, limit, |item| (item.created_at, item.id.0))))
}

pub(super) async fn revoke_key(
    Extract(state): Extract<State>,
    By(caller, _): By<Administer>,
    Path(id): Path<String>,
) -> Answer<StatusCode> {
    if state.index.revoke_key(caller.workspace, ApiKeyId(parse_id(&id)?)).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ErrorCode::NotFound.into())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UsageQuery {
    from: Option<String>,
    to: Option<String>,
}

fn day(text: &str) -> Option<Date> {
    Date::parse(text, format_description!("[year]-[month]-[day]")).ok()
}

/// The days that are asked for, first and last.
fn days(asked: &UsageQuery, today: Date) -> Answer<(Date, Date)> {
    let given = |text: &Option<String>, name| text.as_deref().map(|text| field(day(text), name)).transpose();
    let to = given(&asked.to, "to")?.unwrap_or(today);
    let back = |days| to.checked_sub(Duration::days(days)).unwrap_or(Date::MIN);
    let from = given(&asked.from, "from")?.unwrap_or_else(|| back(USAGE_DAYS_DEFAULT - 1));
    field((back(USAGE_DAYS_MAX - 1) <= from && from <= to).then_some((from, to)), "from")
}

pub(super) async fn usage(
    Extract(state): Extract<State>,
    By(caller, _): By<Read>,
    asked: Result<Query<UsageQuery>, QueryRejection>,
) -> Answer<Json<Usage>> {
    let (from, to) = days(&query(asked)?, OffsetDateTime::now_utc().date())?;
    Ok(Json(Usage { items: state.index.usage(caller.workspace, from, to).await? }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_asked_for_by_days_and_bounded() {
        let today = day("2026-03-23").unwrap();
        let asked = |from: Option<&str>, to: Option<&str>| {
            let asked = UsageQuery { from: from.map(str::to_owned), to: to.map(str::to_owned) };
            days(&asked, today).ok().map(|(from, to)| (from.to_string(), to.to_string()))
        };
        let expect = |from: &str, to: &str| Some((from.to_owned(), to.to_owned()));
        assert_eq!(asked(None, None), expect("2026-02-22", "2026-03-23"));
        assert_eq!(asked(Some("2026-03-23"), None), expect("2026-03-23", "2026-03-23"));
        assert_eq!(asked(None, Some("2025-01-30")), expect("2025-01-01", "2025-01-30"));
        assert_eq!(asked(Some("2025-03-23"), None), expect("2025-03-23", "2026-03-23"));
        for (from, to) in [
            (Some("2026-03-24"), None),
            (Some("2025-03-22"), None),
            (Some("2026-3-1"), None),
            (Some("20260301"), None),
            (Some("2026-02-30"), None),
            (None, Some("yesterday")),
            (Some("2026-03-01"), Some("2026-02-28")),
        ] {
            assert_eq!(asked(from, to), None, "{from:?} {to:?}");
        }
    }
}
