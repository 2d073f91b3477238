//! Who calls: an API key as bearer names a workspace.

use axum::extract::FromRequestParts;
use http::header;
use http::request::Parts;
use schemas::plan::Plan;
use schemas::{ErrorCode, WorkspaceId};
use storage::index::workspaces::hash_api_key;

use crate::driver::State;
use crate::reply::Refused;

/// An API key is no longer than this.
const API_KEY_BYTES_MAX: usize = 256;

/// The calling workspace.
pub(crate) struct Caller {
    pub(crate) workspace: WorkspaceId,
    pub(crate) origins: Vec<String>,
    pub(crate) plan: Plan,
}

impl FromRequestParts<State> for Caller {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Refused> {
        let header = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let key = engine::admission::bearer(header)?;
        if key.len() > API_KEY_BYTES_MAX {
            return Err(ErrorCode::TokenMalformed.into());
        }
        let caller = state.index.caller(&hash_api_key(key)).await?.ok_or(ErrorCode::TokenKeyUnknown)?;
        Ok(Self { workspace: caller.workspace, origins: caller.origins, plan: caller.plan })
    }
}
