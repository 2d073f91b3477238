//! Whom links are for: sealed under a key of their workspace, and found by a keyed hash (P6).
//!
//! The key lies in the key store beside those of sessions, under [`SessionKey::references`]: it is wrapped, rotated and kept
//! in memory as they are. Without it nothing is shown and nothing is found: there is no way on in clear. Links that an
//! earlier release made are sealed by [`References::seal_clear`].

use schemas::{LinkId, SessionKey, WorkspaceId};
use sealing::keyring::KeyringError;
use sealing::references::ReferenceKeys;
use sealing::{Key, NotOpened, SealError};
use service_kit::telemetry::chain;
use thiserror::Error;

use crate::index::links::{ReferenceFilter, SealedReference, StoredReference};
use crate::index::{Index, IndexError};
use crate::session_keys::{DataKey, KeyError, SessionKeys};

/// Links that are sealed in one transaction.
const LINKS_SEALED_AT_ONCE: i64 = 500;

/// Why a reference cannot be sealed, shown or looked for.
#[derive(Debug, Error)]
pub enum ReferenceError {
    /// The index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The workspace's key.
    #[error("ask for the key of a workspace's references: workspace {workspace}")]
    Key {
        /// The workspace.
        workspace: WorkspaceId,
        /// Why.
        source: KeyError,
    },
    /// It was sealed by another key, or changed since.
    #[error("open the reference of link {link}\n  hint: was the key store restored from an older backup?")]
    NotOpened {
        /// The link.
        link: LinkId,
        /// What the seal says.
        source: NotOpened,
    },
    /// It cannot be sealed.
    #[error("seal a reference")]
    Seal(#[from] SealError),
}

impl ReferenceError {
    /// Whether the key is what is wrong, so that asking again does not help.
    pub fn is_of_key(&self) -> bool {
        match self {
            Self::NotOpened { .. } => true,
            Self::Key { source, .. } => !matches!(
                source,
                KeyError::Store(_) | KeyError::Make(_) | KeyError::Keyring(KeyringError::Unavailable(_))
            ),
            Self::Index(_) | Self::Seal(_) => false,
        }
    }
}

/// What sealing those in clear came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sealed {
    /// Links that were sealed.
    pub links: u64,
    /// Links that lie in clear still: the key of their workspace cannot be had.
    pub left: u64,
}

/// References of all workspaces.
#[derive(Debug, Clone)]
pub struct References {
    index: Index,
    keys: SessionKeys,
}

impl References {
    /// References in this index, under these keys.
    pub fn new(index: Index, keys: SessionKeys) -> Self {
        Self { index, keys }
    }

    /// The key of a workspace that has one; `None` when it has none and has sealed nothing.
    async fn known(&self, workspace: WorkspaceId) -> Result<Option<ReferenceKeys>, ReferenceError> {
        let ask = || async {
            match self.keys.key(&SessionKey::references(workspace)).await {
                Ok(key) => Ok(Some(ReferenceKeys::new(workspace, &key))),
                Err(KeyError::Missing(_)) => Ok(None),
                Err(source) => Err(ReferenceError::Key { workspace, source }),
            }
        };
        if let Some(keys) = ask().await? {
            return Ok(Some(keys));
        }
        if !self.index.has_sealed_references(workspace).await? {
            return Ok(None);
        }
        // Another process may have made the key and sealed with it between our two questions.
        let missing = || KeyError::Missing(SessionKey::references(workspace).session);
        ask().await?.map(Some).ok_or_else(|| ReferenceError::Key { workspace, source: missing() })
    }

    /// The key of a workspace; made when it has sealed nothing yet. Were one made for a workspace whose key was lost, its links
    /// would have two keys, and the lost one would never be missed.
    async fn obtain(&self, workspace: WorkspaceId) -> Result<ReferenceKeys, ReferenceError> {
        if let Some(keys) = self.known(workspace).await? {
            return Ok(keys);
        }
        let key = SessionKey::references(workspace);
        let failed = |source| ReferenceError::Key { workspace, source };
        let (mut found, _) = self.keys.obtain(&[key]).await.map_err(failed)?;
        let key: Key = match found.remove(&key) {
            Some(DataKey::Known(key)) => key,
            Some(DataKey::Shredded) => return Err(failed(KeyError::Shredded(key.session))),
            Some(DataKey::Closed(_)) => return Err(failed(KeyError::NotUnwrapped(key.session))),
            None => return Err(failed(KeyError::Missing(key.session))),
        };
        Ok(ReferenceKeys::new(workspace, &key))
    }

    /// Seals the reference of a new link.
    pub async fn seal(
        &self,
        workspace: WorkspaceId,
        link: LinkId,
        reference: &str,
    ) -> Result<SealedReference, ReferenceError> {
        sealed(&self.obtain(workspace).await?, link, reference)
    }

    /// The references of these links, in their order.
    pub async fn open(
        &self,
        workspace: WorkspaceId,
        stored: Vec<(LinkId, StoredReference)>,
    ) -> Result<Vec<String>, ReferenceError> {
        let mut keys = None;
        let mut opened = Vec::with_capacity(stored.len());
        for (link, reference) in stored {
            opened.push(match reference {
                StoredReference::Sealed(sealed) => {
                    let keys = match &mut keys {
                        Some(keys) => keys,
                        none => {
                            let source = KeyError::Missing(SessionKey::references(workspace).session);
                            let known = self.known(workspace).await?;
                            none.insert(known.ok_or(ReferenceError::Key { workspace, source })?)
                        }
                    };
                    keys.open(link, &sealed).map_err(|source| ReferenceError::NotOpened { link, source })?
                }
                StoredReference::Clear(reference) => reference,
                StoredReference::Unknown => String::new(),
            });
        }
        Ok(opened)
    }

    /// What links and sessions of a reference are found by.
    pub async fn filter(&self, workspace: WorkspaceId, reference: String) -> Result<ReferenceFilter, ReferenceError> {
        let hash = self.known(workspace).await?.map(|keys| keys.hash(&reference));
        Ok(ReferenceFilter { hash, clear: reference })
    }

    /// Seals the references that lie in clear, some at a time. Can be repeated, ended at any time, and done by several at once.
    /// A workspace whose key cannot be had is passed over and named: it must not keep the others' in clear.
    pub async fn seal_clear(&self) -> Result<Sealed, ReferenceError> {
        let mut done = Sealed::default();
        let mut after = None;
        let mut passed_over = None;
        loop {
            let links = self.index.unsealed_links(after, LINKS_SEALED_AT_ONCE).await?;
            let Some(last) = links.last() else { return Ok(done) };
            after = Some((last.workspace, last.id));
            let mut changes = Vec::with_capacity(links.len());
            for of_one in links.chunk_by(|one, other| one.workspace == other.workspace) {
                let workspace = of_one[0].workspace;
                let keys = match self.obtain(workspace).await {
                    Ok(keys) => keys,
                    Err(error) if error.is_of_key() => {
                        // Its links may go on in the next lot: said once.
                        if passed_over.replace(workspace) != Some(workspace) {
                            tracing::error!(error = %chain(&error), "seal references of a workspace");
                        }
                        done.left += of_one.len() as u64;
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                for link in of_one {
                    changes.push((workspace, link.id, sealed(&keys, link.id, &link.reference)?));
                }
            }
            done.links += self.index.seal_links(&changes).await?;
        }
    }
}

fn sealed(keys: &ReferenceKeys, link: LinkId, reference: &str) -> Result<SealedReference, ReferenceError> {
    Ok(SealedReference { sealed: keys.seal(link, reference)?, hash: keys.hash(reference) })
}
