//! What an edge lets in, and as what: pure functions from what was asked to what is done.
//!
//! Order matters here: a request proves its right before its body costs anything (E2, E3).

use schemas::codes::Refusal;
use schemas::http::{ConsentRequest, Decision};
use schemas::limits;
use schemas::record::{Consent, Header, Masking};
use schemas::token::{AUDIENCE, LinkClaims, SessionClaims};
use schemas::{BatchFacts, ErrorCode, ReceiptId, SessionId, SessionKey, StreamSeq, WorkspaceId};

use crate::standing::Standing;

/// Where a batch belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Stream and number.
    pub at: StreamSeq,
    /// Whether it is the stream's last.
    pub end: bool,
}

impl Place {
    /// The place that these numbers name.
    pub fn new(stream: u64, seq: u64, end: bool) -> Result<Self, Refusal> {
        let stream = u32::try_from(stream).ok();
        let seq = u32::try_from(seq).ok();
        match (stream, seq) {
            (Some(stream), Some(seq)) => StreamSeq::new(stream, seq).map(|at| Self { at, end }),
            _ => None,
        }
        .ok_or_else(|| ErrorCode::SeqInvalid.into())
    }

    /// The place that a query names: `stream` (0 when left out), `seq`, `end`. Unknown names are passed over, doubled
    /// ones are refused.
    pub fn from_query(query: &str) -> Result<Self, Refusal> {
        let (mut stream, mut seq, mut end) = (None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let slot = match name {
                "stream" => &mut stream,
                "seq" => &mut seq,
                "end" => &mut end,
                _ => continue,
            };
            if slot.replace(value).is_some() {
                return Err(ErrorCode::SeqInvalid.into());
            }
        }
        let number = |text: &str| {
            // `parse` would take a plus sign.
            if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse::<u64>().ok() } else { None }
        };
        let stream = stream.map_or(Some(0), number).ok_or(ErrorCode::SeqInvalid)?;
        let seq = seq.and_then(number).ok_or(ErrorCode::SeqInvalid)?;
        let end = match end {
            None | Some("false" | "0") => false,
            Some("true" | "1") => true,
            Some(_) => return Err(Refusal::field("end")),
        };
        Self::new(stream, seq, end)
    }
}

/// How a body is encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// As it is.
    Identity,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

impl Encoding {
    /// The encoding that `Content-Encoding` names. Stacked encodings are refused.
    pub fn parse(header: Option<&str>) -> Result<Self, Refusal> {
        match header.map(str::trim) {
            None | Some("" | "identity") => Ok(Self::Identity),
            Some("gzip") => Ok(Self::Gzip),
            Some("zstd") => Ok(Self::Zstd),
            Some(_) => Err(ErrorCode::EncodingUnsupported.into()),
        }
    }
}

/// How a batch comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyForm {
    /// Token in the header, place in the query, events in the body.
    Events,
    /// `sendBeacon`: token and place in the body's first line.
    Beacon,
}

impl BodyForm {
    /// The form that `Content-Type` names. An absent type is taken as events.
    pub fn parse(header: Option<&str>) -> Result<Self, Refusal> {
        let essence = header.and_then(|value| value.split(';').next()).map(str::trim);
        match essence {
            None | Some("" | "application/json" | "application/x-ndjson" | "application/ndjson") => Ok(Self::Events),
            Some("text/plain") => Ok(Self::Beacon),
            Some(_) => Err(ErrorCode::ContentTypeUnsupported.into()),
        }
    }
}

/// The token in an `Authorization` header.
pub fn bearer(header: Option<&str>) -> Result<&str, Refusal> {
    let value = header.ok_or(ErrorCode::TokenMissing)?;
    match value.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => Ok(token.trim()),
        _ => Err(ErrorCode::TokenMissing.into()),
    }
}

/// Whether a session may send now, by its token and by what has been heard since: its origin, its standing, its length.
///
/// A client that sends no `Origin` is no browser, and what it could send there proves nothing.
pub fn check_session(
    claims: &SessionClaims,
    standing: &Standing,
    origin: Option<&str>,
    now_ms: u64,
) -> Result<(), Refusal> {
    if let (Some(consented), Some(origin)) = (&claims.org, origin)
        && consented != origin
    {
        return Err(ErrorCode::ConsentScope.into());
    }
    if let Some(consented) = &claims.org
        && !allows(origins_now(standing, claims.ws), consented)
    {
        return Err(ErrorCode::ConsentScope.into());
    }
    standing.check_session(claims)?;
    let length_s = standing.limits(claims.ws, claims.lim).session_s;
    if now_ms.saturating_sub(claims.cst) > length_s.saturating_mul(1000) {
        return Err(Refusal { limit: Some(length_s), ..ErrorCode::SessionClosed.into() });
    }
    Ok(())
}

/// Origins that the workspace has now, as far as is known; empty for any.
fn origins_now(standing: &Standing, workspace: WorkspaceId) -> &[String] {
    standing.rules(workspace).map_or(&[], |rules| &rules.origins)
}

fn allows(origins: &[String], origin: &str) -> bool {
    origins.is_empty() || origins.iter().any(|allowed| allowed == origin)
}

/// What a consent leads to.
#[derive(Debug, Clone, PartialEq)]
pub enum ConsentOutcome {
    /// A session begins: this record, then this token.
    Begin {
        /// The session's first record.
        acceptance: Box<Header>,
        /// What its token will say.
        claims: Box<SessionClaims>,
    },
    /// One decline of this workspace is counted, and nothing else is kept.
    CountDecline(WorkspaceId),
}

/// Decides a consent, but whether the link may begin one more session: that is [`Standing::begin`]'s. `attempt` is the client's,
/// or a random one when it gave none.
pub fn consent(
    request: &ConsentRequest,
    link: &LinkClaims,
    standing: &Standing,
    origin: Option<&str>,
    attempt: &str,
    now_ms: u64,
) -> Result<ConsentOutcome, Refusal> {
    // Both those that the workspace had when the link was made and those that it has now: an origin that was taken away is
    // gone at once, and one that was added is not the link's.
    if let Some(origin) = origin
        && (!allows(&link.org, origin) || !allows(origins_now(standing, link.ws), origin))
    {
        return Err(ErrorCode::ConsentScope.into());
    }
    if request.decision == Decision::Declined {
        return Ok(ConsentOutcome::CountDecline(link.ws));
    }
    let notice_len = request.notice_version.len();
    // A control character names no version, and one of them no database takes.
    if !(1..=limits::NOTICE_VERSION_BYTES_MAX).contains(&notice_len)
        || request.notice_version.chars().any(char::is_control)
    {
        return Err(Refusal::field("notice_version"));
    }
    if attempt.is_empty() || attempt.len() > limits::ATTEMPT_BYTES_MAX {
        return Err(Refusal::field("attempt"));
    }
    let session = SessionId::derive(link.lnk, attempt);
    let receipt = ReceiptId::derive(link.lnk, attempt);
    let now_s = now_ms / 1000;
    let held = standing.limits(link.ws, link.lim);
    let consent =
        Consent { link: link.lnk, consented_at_ms: now_ms, notice_version: request.notice_version.clone(), receipt };
    Ok(ConsentOutcome::Begin {
        acceptance: Box::new(Header::Acceptance { key: SessionKey { workspace: link.ws, session }, consent }),
        claims: Box::new(SessionClaims {
            aud: AUDIENCE.into(),
            ws: link.ws,
            ses: session,
            lnk: link.lnk,
            rcp: receipt,
            cst: now_ms,
            ntc: request.notice_version.clone(),
            iat: now_s,
            exp: now_s + held.session_s.min(limits::SESSION_S_MAX) + limits::SESSION_TOKEN_GRACE_S,
            org: origin.map(str::to_owned),
            lim: held.to_array(),
            msk: link.msk.clone(),
        }),
    })
}

/// The header of a batch's record.
pub fn batch_header(claims: &SessionClaims, place: Place, masking: Masking, facts: BatchFacts) -> Header {
    Header::Batch {
        key: SessionKey { workspace: claims.ws, session: claims.ses },
        consent: Consent {
            link: claims.lnk,
            consented_at_ms: claims.cst,
            notice_version: claims.ntc.clone(),
            receipt: claims.rcp,
        },
        place: place.at,
        end: place.end,
        masking: Some(masking),
        facts,
    }
}

#[cfg(test)]
mod tests {
    use schemas::LinkId;
    use schemas::control::{Entry, WorkspaceRules, WorkspaceState};
    use schemas::plan::Plan;
    use uuid::Uuid;

    use super::*;

    fn link() -> LinkClaims {
        LinkClaims {
            aud: AUDIENCE.into(),
            ws: WorkspaceId(Uuid::from_u128(1)),
            lnk: LinkId(Uuid::from_u128(2)),
            iat: 0,
            exp: 10,
            org: vec!["https://app.example".into()],
            max: 1,
            lim: Plan::Scale.limits().to_array(),
            msk: None,
        }
    }

    fn request(decision: Decision) -> ConsentRequest {
        ConsentRequest { link: String::new(), decision, notice_version: "v1".into(), attempt: None }
    }

    #[test]
    fn places_are_read_from_queries() {
        let place = |query| Place::from_query(query).map(|place| (place.at.stream(), place.at.seq(), place.end));
        assert_eq!(place("stream=7&seq=3"), Ok((7, 3, false)));
        assert_eq!(place("seq=0&end=true&utm=x"), Ok((0, 0, true)));
        for query in [
            "",
            "seq=",
            "seq=-1",
            "seq=+1",
            "seq=4294967296",
            "stream=2147483648&seq=0",
            "seq=1&seq=1",
            "seq=1&stream=x",
        ] {
            assert_eq!(place(query), Err(ErrorCode::SeqInvalid.into()), "{query}");
        }
        assert_eq!(place("seq=1&end=maybe"), Err(Refusal::field("end")));
    }

    #[test]
    fn headers_are_read() {
        assert_eq!(Encoding::parse(Some("gzip")), Ok(Encoding::Gzip));
        for stacked in ["gzip, zstd", "br", "GZIP2"] {
            assert_eq!(Encoding::parse(Some(stacked)), Err(ErrorCode::EncodingUnsupported.into()));
        }
        assert_eq!(BodyForm::parse(Some("application/json; charset=utf-8")), Ok(BodyForm::Events));
        assert_eq!(BodyForm::parse(Some("text/plain;charset=UTF-8")), Ok(BodyForm::Beacon));
        assert_eq!(BodyForm::parse(Some("image/png")), Err(ErrorCode::ContentTypeUnsupported.into()));
        assert_eq!(bearer(Some("Bearer abc")), Ok("abc"));
        for bad in [None, Some("abc"), Some("Basic abc"), Some("Bearer ")] {
            assert_eq!(bearer(bad), Err(ErrorCode::TokenMissing.into()));
        }
    }

    #[test]
    fn p02_a_decline_is_a_count_of_the_workspace_and_nothing_else() {
        let outcome = consent(&request(Decision::Declined), &link(), &Standing::default(), None, "a", 1);
        assert_eq!(outcome, Ok(ConsentOutcome::CountDecline(link().ws)));
    }

    #[test]
    fn the_same_attempt_begins_the_same_session() {
        let begin = |attempt| match consent(
            &request(Decision::Accepted),
            &link(),
            &Standing::default(),
            None,
            attempt,
            5_000,
        ) {
            Ok(ConsentOutcome::Begin { claims, acceptance }) => {
                let Header::Acceptance { key, consent } = *acceptance else { panic!("{acceptance:?}") };
                assert_eq!((key.session, consent.receipt), (claims.ses, claims.rcp));
                claims
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(begin("a"), begin("a"));
        assert_ne!(begin("a").ses, begin("b").ses);
    }

    #[test]
    fn a_notice_version_is_a_short_line_of_text() {
        for notice_version in ["", "v\0", "v\n", &"v".repeat(limits::NOTICE_VERSION_BYTES_MAX + 1)] {
            let request = ConsentRequest { notice_version: notice_version.into(), ..request(Decision::Accepted) };
            assert_eq!(
                consent(&request, &link(), &Standing::default(), None, "a", 1),
                Err(Refusal::field("notice_version"))
            );
        }
    }

    #[test]
    fn consent_is_bound_to_its_origins() {
        let mut standing = Standing::default();
        let ask = |standing: &Standing, origin| {
            consent(&request(Decision::Accepted), &link(), standing, Some(origin), "a", 1)
        };
        let scope = Refusal::from(ErrorCode::ConsentScope);
        assert_eq!(ask(&standing, "https://evil.example"), Err(scope));
        let Ok(ConsentOutcome::Begin { claims, .. }) = ask(&standing, "https://app.example") else { panic!("refused") };
        assert_eq!(check_session(&claims, &standing, Some("https://app.example"), 1), Ok(()));
        assert_eq!(check_session(&claims, &standing, Some("https://evil.example"), 1), Err(scope));
        // The workspace has another origin now: the link's is no longer one of them, and the new one is not the link's.
        let rules = |origins: &[&str]| WorkspaceRules {
            origins: origins.iter().map(|origin| (*origin).to_owned()).collect(),
            state: WorkspaceState::Active,
            limits: Plan::Free.limits(),
            full_until: None,
            notice_versions: Vec::new(),
            terms: None,
        };
        standing.apply(Entry::workspace(link().ws, rules(&["https://new.example"]), 1), 0);
        for origin in ["https://app.example", "https://new.example"] {
            assert_eq!(ask(&standing, origin), Err(scope), "{origin}");
        }
        let ended = check_session(&claims, &standing, Some("https://app.example"), 1);
        assert_eq!(ended, Err(scope), "a session goes on where nobody may record any more");
        for origins in [&[][..], &["https://new.example", "https://app.example"]] {
            let mut standing = Standing::default();
            standing.apply(Entry::workspace(link().ws, rules(origins), 1), 0);
            assert!(ask(&standing, "https://app.example").is_ok());
            assert_eq!(ask(&standing, "https://evil.example"), Err(scope));
        }
    }

    #[test]
    fn a_session_ends_with_its_length() {
        let standing = Standing::default();
        let asked = consent(&request(Decision::Accepted), &link(), &standing, None, "a", 5_000);
        let Ok(ConsentOutcome::Begin { claims, .. }) = asked else { panic!("refused") };
        let length_s = Plan::Scale.limits().session_s;
        assert_eq!(check_session(&claims, &standing, None, 5_000 + length_s * 1000), Ok(()));
        let closed = check_session(&claims, &standing, None, 5_001 + length_s * 1000).unwrap_err();
        assert_eq!((closed.code, closed.limit), (ErrorCode::SessionClosed, Some(length_s)));
        assert!(claims.exp > 5 + length_s, "it would be told that its token has expired");
    }
}
