//! Receipts of deletions: only what was verified can be signed.
//!
//! [`verify`] looks at what index, key store and journal say of a deletion that is over; the [`Verified`] that it gives is the one
//! thing that [`Signing::receipt`](crate::token::Signing::receipt) takes, and nobody else can make one.

use ed25519_dalek::{Signature, VerifyingKey};
use schemas::deletion::{
    Cause, RECEIPT_BYTES_MAX, RECEIPT_SESSIONS_MAX, RECEIPT_VERSION, Receipt, Remains, RemainsIn, Scope,
};
use schemas::limits::{LINK_EXPIRES_IN_MAX_S, SESSION_S_MAX, SESSION_TOKEN_GRACE_S, TOKEN_LEEWAY_S};
use schemas::token::{self, ALGORITHM, TokenType};
use schemas::{DeletionId, SessionId, WorkspaceId};
use time::{Duration, OffsetDateTime};

use crate::retention::{DeletionFacts, DeletionStep, next_deletion_step};
use crate::token::Signing;

/// What is known of a deletion that a receipt is wanted of.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// The deletion.
    pub deletion: DeletionId,
    /// Whose.
    pub workspace: WorkspaceId,
    /// Why.
    pub cause: Cause,
    /// When it was asked for.
    pub requested_at: OffsetDateTime,
    /// How far it is, as a whole.
    pub facts: DeletionFacts,
    /// Which of its receipts is wanted, from 1,
    pub part: u32,
    /// of so many.
    pub parts: u32,
    /// The sessions of this one.
    pub sessions: Vec<SessionEvidence>,
    /// The index's time.
    pub now: OffsetDateTime,
}

/// What is known of one of its sessions.
#[derive(Debug, Clone)]
pub struct SessionEvidence {
    /// The session.
    pub session: SessionId,
    /// Whether the journal has it.
    pub is_journalled: bool,
    /// Whether the key store says that its key is gone: now, not when it was destroyed.
    pub key_is_gone: bool,
    /// Whether its row is the tombstone of an erased session, with nothing of it.
    pub is_erased: bool,
    /// Rows of objects of its own that are there, and of archives that have it.
    pub rows_left: u64,
    /// When it became unreadable; none where an earlier release did not note it.
    pub unreadable_at: Option<OffsetDateTime>,
    /// When its key was destroyed.
    pub shredded_at: Option<OffsetDateTime>,
    /// When a listing showed its prefix empty.
    pub erased_at: Option<OffsetDateTime>,
    /// Objects of its own that there were; none where an earlier release did not note it, as the next two.
    pub objects: Option<u64>,
    /// Their bytes.
    pub bytes: Option<u64>,
    /// Shared objects that may have held some of it.
    pub shared_objects: Option<u64>,
}

/// What a deletion does not reach at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Residuals {
    /// How long the log may hold a record.
    pub log: Duration,
    /// How old a backup of the key store gets.
    pub keystore_backups: Duration,
    /// How old a backup of the index gets.
    pub index_backups: Duration,
    /// How long any process keeps an unwrapped key.
    pub keys_cached_ms: u64,
}

/// A session that was asked for anew sends for so long after its link was made, at most: until its token ends. In seconds.
const TOKENS_S: u64 = LINK_EXPIRES_IN_MAX_S + SESSION_S_MAX + SESSION_TOKEN_GRACE_S + TOKEN_LEEWAY_S;

/// A tombstone stays for so long at least, whatever is set: of a session whose end user consented later than this ago it is there.
pub const TOMBSTONES_KEPT_MIN: Duration = Duration::seconds(TOKENS_S.cast_signed());

/// No clock is so wrong that a time was noted later than this after it.
const CLOCKS_DIFFER_MAX: Duration = Duration::days(2);

impl Residuals {
    /// How long after its receipt a tombstone stays: then no record, token or backup can bring the session back. Its link was made before
    /// the deletion, so the last token of the session, and the last record that this token lets in, are no younger than links and
    /// tokens get, and the log lets go of that record. Backups are as old.
    pub fn tombstones_kept(&self) -> Duration {
        let records = TOMBSTONES_KEPT_MIN.saturating_add(self.log);
        records.max(self.keystore_backups).max(self.index_backups).saturating_add(CLOCKS_DIFFER_MAX)
    }
}

/// Why no receipt is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unverified {
    /// It is not over.
    #[error("the deletion is not over")]
    Early(DeletionStep),
    /// There are no sessions in it, or more than one receipt takes.
    #[error("a receipt has 1 to {RECEIPT_SESSIONS_MAX} sessions, or is the only one of a deletion of none")]
    Size,
    /// Something of a session is there.
    #[error("session {0}: {1}")]
    Session(SessionId, &'static str),
}

/// A deletion that was seen to be over, and what is to be said of it.
#[derive(Debug)]
pub struct Verified {
    receipt: Receipt,
}

/// Looks once more at everything that a receipt says. `scope_key` is fresh and random.
pub fn verify(evidence: &Evidence, residuals: &Residuals, scope_key: &[u8; 32]) -> Result<Verified, Unverified> {
    match next_deletion_step(&evidence.facts, residuals.keys_cached_ms) {
        DeletionStep::Sign => {}
        step => return Err(Unverified::Early(step)),
    }
    let sessions = &evidence.sessions;
    if sessions.len() > RECEIPT_SESSIONS_MAX || (sessions.is_empty() && evidence.parts != 1) {
        return Err(Unverified::Size);
    }
    for known in sessions {
        let fault = [
            (!known.is_journalled, "the journal has it not"),
            (!known.key_is_gone || known.shredded_at.is_none(), "its key is there"),
            (!known.is_erased || known.erased_at.is_none(), "it was not seen absent"),
            (known.rows_left > 0, "rows of it are there"),
        ];
        if let Some((_, fault)) = fault.into_iter().find(|(is_there, _)| *is_there) {
            return Err(Unverified::Session(known.session, fault));
        }
    }
    // What is not known of one is not known of all.
    let sum = |of: fn(&SessionEvidence) -> Option<u64>| sessions.iter().map(of).sum();
    let last = |of: fn(&SessionEvidence) -> Option<OffsetDateTime>| sessions.iter().filter_map(of).max();
    let shredded_at = last(|known| known.shredded_at).unwrap_or(evidence.requested_at);
    let erased_at = last(|known| known.erased_at);
    // Nothing of it was appended to the log after this, and nothing written to a backup of the index.
    let remains = if sessions.is_empty() {
        Vec::new()
    } else {
        vec![
            Remains { what: RemainsIn::Log, until: shredded_at + residuals.log },
            Remains { what: RemainsIn::KeyStoreBackups, until: shredded_at + residuals.keystore_backups },
            Remains {
                what: RemainsIn::IndexBackups,
                until: erased_at.unwrap_or(shredded_at) + residuals.index_backups,
            },
        ]
    };
    let residual_until = remains.iter().map(|remains| remains.until).max().unwrap_or(shredded_at);
    let ids: Vec<SessionId> = sessions.iter().map(|known| known.session).collect();
    Ok(Verified {
        receipt: Receipt {
            version: RECEIPT_VERSION,
            deletion_id: evidence.deletion,
            workspace_id: evidence.workspace,
            cause: evidence.cause,
            part: evidence.part,
            parts: evidence.parts,
            requested_at: evidence.requested_at,
            unreadable_at: last(|known| known.unreadable_at),
            shredded_at,
            erased_at,
            verified_at: evidence.now,
            sessions: sessions.len() as u64,
            objects: sum(|known| known.objects),
            bytes: sum(|known| known.bytes),
            shared_objects: sum(|known| known.shared_objects),
            scope: Scope::new(scope_key, evidence.workspace, &ids),
            remains,
            residual_until,
        },
    })
}

impl Signing {
    /// The receipt of what was verified, signed.
    pub fn receipt(&self, verified: &Verified) -> String {
        self.sign(TokenType::Receipt, &verified.receipt)
    }
}

/// Why a text is no receipt of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReceiptError {
    /// It is not of the form of a receipt.
    #[error("this is no receipt: it is three texts in base64url with dots between them, of which the second is JSON")]
    Malformed,
    /// It is signed by a key that is not among those given.
    #[error("it is signed by key {0:?}, which is not among the public keys given")]
    KeyUnknown(String),
    /// It was changed, or signed by somebody else.
    #[error("its signature does not verify: it was changed, or somebody else signed it")]
    SignatureInvalid,
    /// A newer release made it.
    #[error("it is of version {0}, which this release does not know: use a newer one")]
    Version(u32),
}

/// Verifies a receipt, offline; `public` gives the public key of an id. Strictly, as tokens are.
pub fn read(text: &str, public: impl FnOnce(&str) -> Option<VerifyingKey>) -> Result<Receipt, ReceiptError> {
    let parts = token::split_within(text.trim(), RECEIPT_BYTES_MAX).map_err(|_| ReceiptError::Malformed)?;
    if parts.header.alg != ALGORITHM || parts.header.typ != TokenType::Receipt.as_str() {
        return Err(ReceiptError::Malformed);
    }
    let key = public(&parts.header.kid).ok_or(ReceiptError::KeyUnknown(parts.header.kid))?;
    let signature: [u8; 64] = parts.signature.try_into().map_err(|_| ReceiptError::Malformed)?;
    key.verify_strict(parts.signed.as_bytes(), &Signature::from_bytes(&signature))
        .map_err(|_| ReceiptError::SignatureInvalid)?;
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = token::parse(&parts.claims).map_err(|_| ReceiptError::Malformed)?;
    if version != RECEIPT_VERSION {
        return Err(ReceiptError::Version(version));
    }
    token::parse(&parts.claims).map_err(|_| ReceiptError::Malformed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    const DAY: Duration = Duration::DAY;

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::seconds(1_790_000_000 + seconds)
    }

    fn session(number: u128) -> SessionEvidence {
        SessionEvidence {
            session: SessionId(Uuid::from_u128(number)),
            is_journalled: true,
            key_is_gone: true,
            is_erased: true,
            rows_left: 0,
            unreadable_at: Some(at(1)),
            shredded_at: Some(at(2)),
            erased_at: Some(at(300)),
            objects: Some(1),
            bytes: Some(1_000),
            shared_objects: Some(3),
        }
    }

    #[test]
    fn tombstones_stay_longer_than_all_that_could_bring_a_session_back() {
        let short = Residuals { log: 3 * DAY, keystore_backups: 7 * DAY, index_backups: 35 * DAY, keys_cached_ms: 1 };
        // A link is good for 90 days, the last session's token for another 9 hours, and the log has what it let in for 3 days.
        assert!((94 * DAY..96 * DAY).contains(&short.tombstones_kept()), "{}", short.tombstones_kept());
        for long in [
            Residuals { log: 400 * DAY, ..short },
            Residuals { keystore_backups: 400 * DAY, ..short },
            Residuals { index_backups: 400 * DAY, ..short },
        ] {
            assert!(long.tombstones_kept() > 401 * DAY, "{long:?}");
        }
        assert!(Residuals { log: Duration::MAX, ..short }.tombstones_kept() > 10_000 * DAY);
    }

    fn evidence() -> Evidence {
        Evidence {
            deletion: DeletionId(Uuid::from_u128(8)),
            workspace: WorkspaceId(Uuid::from_u128(9)),
            cause: Cause::ByReference,
            requested_at: at(0),
            facts: DeletionFacts { finding: false, sessions_left: 0, shredded_for_ms: 60_001, receipted: false },
            part: 1,
            parts: 1,
            sessions: vec![session(1), session(2)],
            now: at(400),
        }
    }

    const RESIDUALS: Residuals = Residuals {
        log: Duration::hours(76),
        keystore_backups: Duration::days(7),
        index_backups: Duration::days(35),
        keys_cached_ms: 60_000,
    };

    fn signing() -> Signing {
        Signing::new("receipt-1".into(), &[5; 32])
    }

    fn public(kid: &str) -> Option<VerifyingKey> {
        (kid == "receipt-1").then(|| VerifyingKey::from_bytes(&signing().public()).unwrap())
    }

    #[test]
    fn r10_a_receipt_says_what_was_verified_and_nothing_of_it_can_be_changed() {
        let verified = verify(&evidence(), &RESIDUALS, &[1; 32]).unwrap();
        let text = signing().receipt(&verified);
        let receipt = read(&format!("{text}\n"), public).unwrap();
        assert_eq!(
            (receipt.sessions, receipt.objects, receipt.bytes, receipt.shared_objects),
            (2, Some(2), Some(2_000), Some(6))
        );
        assert_eq!(receipt.scope.covers(receipt.workspace_id, SessionId(Uuid::from_u128(2))), Some(true));
        assert_eq!(receipt.scope.covers(receipt.workspace_id, SessionId(Uuid::from_u128(3))), Some(false));
        let until: Vec<OffsetDateTime> = receipt.remains.iter().map(|remains| remains.until).collect();
        assert_eq!(until, [at(2) + Duration::hours(76), at(2) + 7 * DAY, at(300) + 35 * DAY]);
        assert_eq!(receipt.residual_until, at(300) + 35 * DAY);
        assert!(!text.contains("00000001"), "no id of a session stands in it");
        // Each character of it counts.
        for (place, character) in text.char_indices() {
            let other = if character == 'A' { 'B' } else { 'A' };
            let mut changed = text.clone();
            changed.replace_range(place..=place, &other.to_string());
            assert!(read(&changed, public).is_err(), "character {place}");
        }
        assert_eq!(read(&text, |_| None), Err(ReceiptError::KeyUnknown("receipt-1".into())));
        let other = VerifyingKey::from_bytes(&Signing::new("x".into(), &[6; 32]).public()).unwrap();
        assert_eq!(read(&text, |_| Some(other)), Err(ReceiptError::SignatureInvalid));
    }

    #[test]
    fn r03_nothing_is_signed_while_anything_is_left() {
        let refused = |change: fn(&mut Evidence)| {
            let mut evidence = evidence();
            change(&mut evidence);
            verify(&evidence, &RESIDUALS, &[1; 32]).map(|_| ()).unwrap_err()
        };
        assert_eq!(refused(|e| e.facts.finding = true), Unverified::Early(DeletionStep::AwaitSessions));
        assert_eq!(refused(|e| e.facts.sessions_left = 1), Unverified::Early(DeletionStep::AwaitSessions));
        assert_eq!(refused(|e| e.facts.shredded_for_ms = 60_000), Unverified::Early(DeletionStep::AwaitKeyCaches));
        assert_eq!(refused(|e| e.facts.receipted = true), Unverified::Early(DeletionStep::Done));
        let of_session: [fn(&mut SessionEvidence); 6] = [
            |s| s.is_journalled = false,
            |s| s.key_is_gone = false,
            |s| s.shredded_at = None,
            |s| s.is_erased = false,
            |s| s.erased_at = None,
            |s| s.rows_left = 1,
        ];
        for change in of_session {
            let mut evidence = evidence();
            change(&mut evidence.sessions[1]);
            let refused = verify(&evidence, &RESIDUALS, &[1; 32]).unwrap_err();
            assert!(matches!(refused, Unverified::Session(id, _) if id == SessionId(Uuid::from_u128(2))), "{refused}");
        }
        assert_eq!(refused(|e| (e.sessions, e.parts) = (Vec::new(), 2)), Unverified::Size);
    }

    #[test]
    fn what_is_not_known_is_not_said() {
        let mut evidence = evidence();
        evidence.sessions[1].bytes = None;
        let receipt = verify(&evidence, &RESIDUALS, &[1; 32]).unwrap().receipt;
        assert_eq!((receipt.objects, receipt.bytes), (Some(2), None));
    }

    #[test]
    fn a_deletion_of_nothing_has_a_receipt_and_one_of_very_much_fits() {
        let none = Evidence { sessions: Vec::new(), ..evidence() };
        let receipt = verify(&none, &RESIDUALS, &[1; 32]).unwrap().receipt;
        assert_eq!((receipt.sessions, receipt.residual_until), (0, receipt.requested_at));
        let much = Evidence { sessions: (0..RECEIPT_SESSIONS_MAX as u128).map(session).collect(), ..evidence() };
        let text = signing().receipt(&verify(&much, &RESIDUALS, &[1; 32]).unwrap());
        assert_eq!(read(&text, public).unwrap().sessions, RECEIPT_SESSIONS_MAX as u64);
        let more = Evidence { sessions: (0..=RECEIPT_SESSIONS_MAX as u128).map(session).collect(), ..evidence() };
        assert_eq!(verify(&more, &RESIDUALS, &[1; 32]).unwrap_err(), Unverified::Size);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text: String) {
            let _ = read(&text, public);
        }
    }
}
