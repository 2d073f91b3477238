//! Who calls, and what they may do: an API key as bearer names a workspace and has scopes; an operator's key names none.
//!
//! A handler says by the type of its caller what its call needs, so none gets a caller that was not asked for it.

use std::marker::PhantomData;

use axum::extract::FromRequestParts;
use http::header;
use http::request::Parts;
use schemas::control::WorkspaceState;
use schemas::http::Scope;
use schemas::plan::Plan;
use schemas::{ApiKeyId, ErrorCode, WorkspaceId};
use service_kit::telemetry::chain;
use storage::index::keys::{Caller as Found, hash_api_key};

use crate::driver::State;
use crate::reply::Refused;

/// An API key is no longer than this.
const API_KEY_BYTES_MAX: usize = 256;

/// The calling workspace.
pub(crate) struct Caller {
    pub(crate) key: ApiKeyId,
    pub(crate) workspace: WorkspaceId,
    pub(crate) origins: Vec<String>,
    pub(crate) plan: Plan,
    pub(crate) scopes: Vec<Scope>,
    pub(crate) state: WorkspaceState,
}

/// What a call needs.
pub(crate) trait Right {
    /// One of these scopes.
    const SCOPES: &'static [Scope];
    /// States in which the workspace may call it.
    const STATES: &'static [WorkspaceState];
}

/// Whoever may read may do so while suspended: what is stored stays the customer's.
const NOT_CLOSED: &[WorkspaceState] = &[WorkspaceState::Active, WorkspaceState::Suspended];

macro_rules! rights {
    ($($(#[$doc:meta])* $name:ident $scopes:expr, $states:expr;)*) => {
        $($(#[$doc])*
        pub(crate) struct $name;

        impl Right for $name {
            const SCOPES: &'static [Scope] = &$scopes;
            const STATES: &'static [WorkspaceState] = $states;
        })*
    };
}

rights! {
    /// Making links: the one thing that a suspended workspace may not do here.
    MakeLinks [Scope::Links], &[WorkspaceState::Active];
    /// Listing links.
    ListLinks [Scope::Links, Scope::Read], NOT_CLOSED;
    /// Revoking links.
    RevokeLinks [Scope::Links], NOT_CLOSED;
    /// Listing and reading sessions, following deletions.
    Read [Scope::Read], NOT_CLOSED;
    /// Deleting sessions.
    Delete [Scope::Delete], NOT_CLOSED;
    /// Changing the workspace's keys.
    Administer [Scope::Admin], NOT_CLOSED;
    /// Seeing who read what: it names keys, as only their administration does.
    Audit [Scope::Admin], NOT_CLOSED;
    /// Seeing, changing and closing the workspace: one that is closed can be opened again.
    OwnWorkspace [Scope::Admin], &WorkspaceState::ALL;
}

/// A caller who has this right.
pub(crate) struct By<R>(pub(crate) Caller, pub(crate) PhantomData<R>);

/// Whoever runs the service.
pub(crate) struct Operator;

fn bearer(parts: &Parts) -> Result<&str, Refused> {
    let header = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let key = engine::admission::bearer(header)?;
    if key.len() > API_KEY_BYTES_MAX { Err(ErrorCode::TokenMalformed.into()) } else { Ok(key) }
}

impl<R: Right> FromRequestParts<State> for By<R> {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Refused> {
        let hash = hash_api_key(bearer(parts)?);
        let found = state.index.caller(&hash).await?.ok_or(ErrorCode::TokenKeyUnknown)?;
        if found.is_revoked {
            return Err(ErrorCode::TokenKeyRevoked.into());
        }
        if !found.is_noted {
            let index = state.index.clone();
            tokio::spawn(async move {
                // What is not noted now is noted with the next use.
                if let Err(error) = index.note_use(found.key).await {
                    tracing::debug!(error = %chain(&error), "note use of api key");
                }
            });
        }
        if !R::SCOPES.iter().any(|scope| found.scopes.contains(scope)) {
            return Err(ErrorCode::ScopeMissing.into());
        }
        if !R::STATES.contains(&found.state) {
            return Err(match found.state {
                WorkspaceState::Terminated => ErrorCode::WorkspaceTerminated.into(),
                WorkspaceState::Active | WorkspaceState::Suspended => ErrorCode::WorkspaceSuspended.into(),
            });
        }
        let Found { key, workspace, origins, plan, scopes, state, .. } = found;
        Ok(Self(Caller { key, workspace, origins, plan, scopes, state }, PhantomData))
    }
}

impl FromRequestParts<State> for Operator {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, state: &State) -> Result<Self, Refused> {
        let hash = hash_api_key(bearer(parts)?);
        // All are compared, and all of each: how long it takes says nothing of a hash.
        let known = state.operators.iter().fold(false, |known, operator| known | is_same(operator, &hash));
        if known { Ok(Self) } else { Err(ErrorCode::TokenKeyUnknown.into()) }
    }
}

fn is_same(one: &[u8; 32], other: &[u8; 32]) -> bool {
    one.iter().zip(other).fold(0, |difference, (one, other)| difference | (one ^ other)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_the_same_in_every_byte_or_not_at_all() {
        let hash = hash_api_key("key");
        assert!(is_same(&hash, &hash.clone()));
        for byte in 0..hash.len() {
            let mut other = hash;
            other[byte] ^= 0x80;
            assert!(!is_same(&hash, &other), "byte {byte}");
        }
    }
}
