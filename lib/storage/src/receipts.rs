//! Receipts: verifying that a deletion is over, and signing that it is.
//!
//! What index and key store say is put together here; whether it is enough decides [`engine::receipt::verify`], and only what it gives
//! can be signed.

use std::collections::BTreeSet;

use engine::receipt::{Evidence, Residuals, Unverified, verify};
use engine::token::Signing;
use schemas::deletion::RECEIPT_SESSIONS_MAX;
use schemas::{DeletionId, SessionId, SessionKey};
use sealing::{Random, SealError};
use thiserror::Error;
use uuid::Uuid;

use crate::index::receipts::{SignedPart, WithoutReceipt};
use crate::index::{Index, IndexError};
use crate::keystore::{KeyRow, KeyStore};

/// Keys that are asked for at once.
const KEYS_AT_ONCE: usize = 1_000;

/// Why a deletion has no receipt.
#[derive(Debug, Error)]
pub enum ReceiptError {
    /// The index or the key store.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Something is there that should be gone.
    #[error(
        "verify deletion {0}\n  hint: it stays without a receipt; `clairvio reconcile` and the worker's log may tell what is left"
    )]
    Unverified(DeletionId, #[source] Unverified),
    /// The machine gives no randomness.
    #[error("draw random bytes")]
    Random(#[from] SealError),
}

/// Verifies and signs.
#[derive(Debug, Clone)]
pub struct Receipts {
    index: Index,
    keystore: KeyStore,
    residuals: Residuals,
}

impl Receipts {
    /// Of deletions in this index and key store.
    pub fn new(index: Index, keystore: KeyStore, residuals: Residuals) -> Self {
        Self { index, keystore, residuals }
    }

    /// Deletions that are over and have no receipt, oldest first, behind the one given.
    pub async fn due(&self, after: Option<WithoutReceipt>, limit: i64) -> Result<Vec<WithoutReceipt>, IndexError> {
        self.index.without_receipt(self.residuals.keys_cached_ms, after, limit).await
    }

    /// Verifies a deletion and keeps its receipts; `false` when it has some already, or is not due.
    pub async fn sign(&self, deletion: DeletionId, signing: &Signing) -> Result<bool, ReceiptError> {
        // As a whole it is looked at once: what is over gets no more sessions.
        let evidence = self.index.evidence(deletion, RECEIPT_SESSIONS_MAX).await?;
        let Some(mut evidence) = evidence else { return Ok(false) };
        let draft = Uuid::now_v7();
        let signed = self.sign_parts(draft, &mut evidence, signing).await;
        if evidence.parts > 1 {
            // They are receipts now, or nobody needs them.
            self.index.forget_draft(draft, deletion).await?;
        }
        signed
    }

    async fn sign_parts(&self, draft: Uuid, evidence: &mut Evidence, signing: &Signing) -> Result<bool, ReceiptError> {
        let (deletion, mut after) = (evidence.deletion, None);
        loop {
            evidence.sessions = self.index.session_evidence(deletion, after, RECEIPT_SESSIONS_MAX).await?;
            self.add_keys(evidence).await?;
            let verified = match verify(evidence, &self.residuals, &Random::draw()?) {
                // Another worker was faster, or it is not due yet.
                Err(Unverified::Early(_)) => return Ok(false),
                verified => verified.map_err(|source| ReceiptError::Unverified(deletion, source))?,
            };
            let signed = SignedPart {
                number: evidence.part,
                sessions: evidence.sessions.len() as u64,
                body: signing.receipt(&verified),
            };
            if evidence.part == evidence.parts {
                return Ok(self.index.keep_receipts(draft, deletion, evidence.workspace, &signed).await?);
            }
            // However many there are, one is held at a time.
            self.index.draft_receipt(draft, deletion, &signed).await?;
            after = evidence.sessions.last().map(|known| known.session);
            evidence.part += 1;
        }
    }

    /// What the key store says right now.
    async fn add_keys(&self, evidence: &mut Evidence) -> Result<(), IndexError> {
        let workspace = evidence.workspace;
        for some in evidence.sessions.chunks_mut(KEYS_AT_ONCE) {
            let keys: Vec<SessionKey> =
                some.iter().map(|known| SessionKey { workspace, session: known.session }).collect();
            let rows = self.keystore.rows(&keys).await?;
            let gone: BTreeSet<SessionId> =
                rows.iter().filter(|(_, row)| *row == KeyRow::Shredded).map(|(key, _)| key.session).collect();
            for known in some {
                known.key_is_gone = gone.contains(&known.session);
            }
        }
        Ok(())
    }
}
