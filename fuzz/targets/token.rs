//! Tokens and receipts. An input is taken as a token, and as the parts of one that our key signed: only so do its claims get read.
#![no_main]

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signer as _, SigningKey};
use engine::receipt::read;
use engine::token::{Signing, Verifiers};
use fuzz::{consent, plant, session};
use libfuzzer_sys::fuzz_target;
use schemas::ErrorCode;
use schemas::deletion::RECEIPT_VERSION;
use schemas::limits::{TOKEN_BYTES_MAX, TOKEN_LEEWAY_S};
use schemas::token::{ALGORITHM, AUDIENCE, JoseHeader, LinkClaims, SessionClaims, TokenType, join, parse};

const SECRET: [u8; 32] = [7; 32];
const KID: &str = "k1";
const NOW_S: u64 = 1_790_000_000;

static KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::from_bytes(&SECRET));
static SIGNING: LazyLock<Signing> = LazyLock::new(|| Signing::new(KID.into(), &SECRET));
static VERIFIERS: LazyLock<Verifiers> = LazyLock::new(|| {
    let mut verifiers = Verifiers::default();
    verifiers.add(KID, &SIGNING.public()).expect("a fresh key is taken");
    verifiers.retire("k0", None).expect("an id alone is retired");
    verifiers
});

fn seeds() -> impl Iterator<Item = Vec<u8>> {
    let link = LinkClaims {
        aud: AUDIENCE.into(),
        ws: session().workspace,
        lnk: consent().link,
        iat: NOW_S,
        exp: NOW_S + 60,
        org: vec!["https://app.example".into()],
        max: 5,
        lim: [1, 2, 3, 4, 5, 6],
        msk: Some(serde_json::json!({"inputs": true})),
    };
    let session = SessionClaims {
        aud: AUDIENCE.into(),
        ws: session().workspace,
        ses: session().session,
        lnk: consent().link,
        rcp: consent().receipt,
        cst: NOW_S * 1000,
        ntc: consent().notice_version,
        iat: NOW_S,
        exp: NOW_S + 60,
        org: Some("https://app.example".into()),
        lim: [1, 2, 3, 4, 5, 6],
        msk: None,
    };
    let parts = |token_type: TokenType, claims: serde_json::Result<Vec<u8>>| {
        let header = JoseHeader { alg: ALGORITHM.into(), typ: token_type.as_str().into(), kid: KID.into() };
        let header = serde_json::to_vec(&header).expect("a header serializes");
        [&[header.len() as u8], header.as_slice(), &claims.expect("claims serialize")].concat()
    };
    let early = SessionClaims { iat: NOW_S + TOKEN_LEEWAY_S + 1, ..session.clone() };
    let late = LinkClaims { exp: NOW_S, ..link.clone() };
    let time = "2026-11-30T00:00:00Z";
    let receipt = serde_json::json!({
        "version": 1, "deletion_id": session.ses, "workspace_id": session.ws, "cause": "by_hand", "part": 1, "parts": 1,
        "requested_at": time, "unreadable_at": null, "shredded_at": time, "erased_at": time, "verified_at": time,
        "sessions": 1, "objects": 1, "bytes": 9, "shared_objects": 0,
        "scope": { "key": URL_SAFE_NO_PAD.encode([1; 32]), "sessions": ["AAAA"] },
        "remains": [{ "what": "log", "until": time }], "residual_until": time,
    });
    [
        parts(TokenType::Receipt, serde_json::to_vec(&receipt)),
        parts(TokenType::Session, serde_json::to_vec(&early)),
        parts(TokenType::Link, serde_json::to_vec(&late)),
        parts(TokenType::Link, serde_json::to_vec(&link)),
        parts(TokenType::Session, serde_json::to_vec(&session)),
        SIGNING.link(&link).into_bytes(),
        SIGNING.session(&session).into_bytes(),
    ]
    .into_iter()
}

/// What any verified claims have in common.
fn check(text: &str, aud: &str, iat: u64, exp: u64) {
    assert!(text.len() <= TOKEN_BYTES_MAX);
    assert_eq!(aud, AUDIENCE);
    assert!(iat <= NOW_S + TOKEN_LEEWAY_S && exp > NOW_S, "a token passes outside of its time");
}

/// Verifies as both types; gives what passed, signed anew by us.
fn verify(text: &str) -> Option<String> {
    let link = VERIFIERS.link(text, NOW_S);
    let session = VERIFIERS.session(text, NOW_S);
    assert!(link.is_err() || session.is_err(), "one token passes as both types");
    if let Ok(claims) = link {
        check(text, &claims.aud, claims.iat, claims.exp);
        return Some(SIGNING.link(&claims));
    }
    let claims = session.ok()?;
    check(text, &claims.aud, claims.iat, claims.exp);
    Some(SIGNING.session(&claims))
}

/// The token that our key makes of this header and these claims, whatever they are.
fn signed(header: &[u8], claims: &[u8]) -> String {
    let input = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let signature = KEY.sign(input.as_bytes()).to_bytes();
    join(input, &signature)
}

fuzz_target!(init: plant(seeds()), |data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data)
        && let Some(ours) = verify(text)
    {
        assert_eq!(ours, text, "a token passes that we did not make");
    }
    let Some((len, rest)) = data.split_first() else { return };
    let Some((header, claims)) = rest.split_at_checked(usize::from(*len)) else { return };
    let token = signed(header, claims);
    if let Ok(receipt) = read(&token, |kid| (kid == KID).then(|| KEY.verifying_key())) {
        assert_eq!(receipt.version, RECEIPT_VERSION);
        let _ = receipt.scope.covers(receipt.workspace_id, session().session);
        assert!(verify(&token).is_none(), "a receipt passes as a token");
    }
    if verify(&token).is_none() {
        return;
    }
    let header: JoseHeader = parse(header).expect("the header of a token that passes is one");
    assert_eq!((header.alg.as_str(), header.kid.as_str()), (ALGORITHM, KID));
    // One character changed: some place in it, by the input's length.
    let mut changed = token.into_bytes();
    let at = data.len() * 31 % changed.len();
    changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
    let changed = String::from_utf8(changed).expect("base64 is text");
    assert!(VERIFIERS.link(&changed, NOW_S).is_err() && VERIFIERS.session(&changed, NOW_S).is_err());
    assert_eq!(VERIFIERS.session("", NOW_S), Err(ErrorCode::TokenMalformed));
});
