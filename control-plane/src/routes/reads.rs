//! Who read which session when, as the workspace sees it.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State as Extract};
use schemas::http::{Page, ReadItem};
use schemas::{ApiKeyId, SessionId};
use serde::Deserialize;
use storage::index::reads::ReadsFilter;
use uuid::Uuid;

use super::{Answer, field, moment, page, page_limit, parse_cursor, query};
use crate::auth::{Audit, By};
use crate::driver::State;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReadsQuery {
    session: Option<String>,
    by: Option<String>,
    from: Option<String>,
    to: Option<String>,
    cursor: Option<String>,
    limit: Option<u32>,
}

pub(super) async fn list_reads(
    Extract(state): Extract<State>,
    By(caller, _): By<Audit>,
    asked: Result<Query<ReadsQuery>, QueryRejection>,
) -> Answer<Json<Page<ReadItem>>> {
    let asked = query(asked)?;
    let limit = page_limit(asked.limit)?;
    let before = parse_cursor(asked.cursor.as_deref())?;
    let id = |text: Option<String>, name| text.map(|text| field(Uuid::parse_str(&text).ok(), name)).transpose();
    let filter = ReadsFilter {
        session: id(asked.session, "session")?.map(SessionId),
        by: id(asked.by, "by")?.map(ApiKeyId),
        from: moment(asked.from.as_deref(), "from")?,
        to: moment(asked.to.as_deref(), "to")?,
    };
    let items = state.index.reads(caller.workspace, &filter, before, limit + 1).await?;
    Ok(Json(page(items, limit, |item| (item.read_at, item.id))))
}
