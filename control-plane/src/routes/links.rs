//! Magic links.

use axum::Json;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Path, Query, State as Extract};
use bytes::Bytes;
use http::StatusCode;
use masking::Rules;
use schemas::codes::Refusal;
use schemas::http::{LinkCreated, LinkItem, LinkRequest, MaskingRules, Page};
use schemas::token::{AUDIENCE, LinkClaims};
use schemas::{ErrorCode, LinkId, limits};
use serde::Deserialize;
use serde_json::Value;
use storage::index::links::NewLink;
use time::OffsetDateTime;
use url::Url;
use uuid::Uuid;

use super::{Answer, field, page, page_limit, parse_body, parse_cursor, parse_id, query, reference_filter, searchable};
use crate::auth::{By, ListLinks, MakeLinks, RevokeLinks};
use crate::driver::State;
use crate::reply::Refused;

pub(super) async fn create(
    Extract(state): Extract<State>,
    By(caller, _): By<MakeLinks>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<(StatusCode, Json<LinkCreated>)> {
    let request: LinkRequest = parse_body(body)?;
    let now = OffsetDateTime::now_utc();
    let expires_in = request.expires_in.unwrap_or(limits::LINK_EXPIRES_IN_DEFAULT_S);
    let max_sessions = request.max_sessions.unwrap_or(limits::LINK_SESSIONS_DEFAULT);
    let within = |holds: bool, name| field(holds.then_some(()), name);
    within((1..=limits::REFERENCE_BYTES_MAX).contains(&request.reference.len()), "reference")?;
    let reference = searchable(request.reference)?;
    within((1..=limits::LINK_EXPIRES_IN_MAX_S).contains(&expires_in), "expires_in")?;
    within((1..=limits::LINK_SESSIONS_MAX).contains(&max_sessions), "max_sessions")?;
    let masking = request.masking.as_ref().map(|rules| field(usable_rules(rules), "masking")).transpose()?;
    let redirect = request.redirect_url.as_deref().map(|url| allowed_redirect(url, &caller.origins)).transpose()?;
    let expires_at = now + std::time::Duration::from_secs(expires_in);
    let id = LinkId(Uuid::now_v7());
    let reference = state.references.seal(caller.workspace, id, &reference).await?;
    let link = NewLink {
        workspace: caller.workspace,
        id,
        reference: &reference,
        expires_at,
        max_sessions,
        redirect_url: request.redirect_url.as_deref(),
        masking: masking.as_ref(),
    };
    state.index.insert_link(&link).await?;
    let token = state.sign(&LinkClaims {
        aud: AUDIENCE.into(),
        ws: caller.workspace,
        lnk: id,
        iat: now.unix_timestamp().max(0).unsigned_abs(),
        exp: expires_at.unix_timestamp().max(0).unsigned_abs(),
        org: caller.origins.iter().take(limits::ORIGINS_MAX).cloned().collect(),
        max: max_sessions,
        lim: caller.plan.limits().to_array(),
        msk: masking,
    })?;
    // The token never stands in a query: a fragment does not reach the redirect's server or its logs.
    let url = redirect.map(|mut url| {
        url.set_fragment(Some(&format!("clairvio={token}")));
        url.into()
    });
    Ok((StatusCode::CREATED, Json(LinkCreated { id, token, url, expires_at })))
}

fn allowed_redirect(text: &str, origins: &[String]) -> Answer<Url> {
    let refused = || Refused(Refusal::field("redirect_url"));
    let url = Url::parse(text).map_err(|_| refused())?;
    let allowed = origins.contains(&url.origin().ascii_serialization()) && !text.contains('\0');
    if text.len() <= limits::REDIRECT_URL_BYTES_MAX && allowed { Ok(url) } else { Err(refused()) }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LinksQuery {
    reference: Option<String>,
    cursor: Option<String>,
    limit: Option<u32>,
}

pub(super) async fn list(
    Extract(state): Extract<State>,
    By(caller, _): By<ListLinks>,
    asked: Result<Query<LinksQuery>, QueryRejection>,
) -> Answer<Json<Page<LinkItem>>> {
    let asked = query(asked)?;
    let limit = page_limit(asked.limit)?;
    let before = parse_cursor(asked.cursor.as_deref())?;
    let reference = reference_filter(&state, &caller, asked.reference).await?;
    let rows = state.index.links(caller.workspace, reference.as_ref(), before, limit + 1).await?;
    let stored = rows.iter().map(|row| (row.id, row.reference.clone())).collect();
    let references = state.references.open(caller.workspace, stored).await?;
    let items = rows.into_iter().zip(references).map(|(row, reference)| LinkItem {
        id: row.id,
        reference,
        created_at: row.created_at,
        expires_at: row.expires_at,
        max_sessions: row.max_sessions,
        sessions: row.sessions,
        revoked_at: row.revoked_at,
        redirect_url: row.redirect_url,
        masking: row.masking,
    });
    Ok(Json(page(items.collect(), limit, |item: &LinkItem| (item.created_at, item.id.0))))
}

pub(super) async fn revoke(
    Extract(state): Extract<State>,
    By(caller, _): By<RevokeLinks>,
    Path(id): Path<String>,
) -> Answer<StatusCode> {
    if state.index.revoke_link(caller.workspace, LinkId(parse_id(&id)?)).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(ErrorCode::NotFound.into())
    }
}

/// Masking rules in their normal form; `None` for those that no edge could carry out.
fn usable_rules(rules: &Value) -> Option<Value> {
    let normal = MaskingRules::normal(rules)?;
    let parsed = serde_json::from_value(normal.clone()).ok()?;
    Rules::compile(&parsed).is_ok().then_some(normal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_go_to_allowed_origins_only() {
        let origins = ["https://app.example".to_owned()];
        assert!(allowed_redirect("https://app.example/a?b", &origins).is_ok());
        for url in ["https://evil.example/", "javascript:alert(1)", "/a", "https://app.example.evil.example/"] {
            assert!(allowed_redirect(url, &origins).is_err(), "{url}");
        }
    }
}
