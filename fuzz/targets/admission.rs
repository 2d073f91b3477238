//! What a request says beside its events: place, headers, consent. What is let in is what the batcher can read.
#![no_main]

use engine::admission::{BodyForm, ConsentOutcome, Encoding, Place, bearer, consent as decide};
use engine::standing::Standing;
use fuzz::{link, plant};
use libfuzzer_sys::fuzz_target;
use schemas::http::{ConsentRequest, Decision};
use schemas::limits::NOTICE_VERSION_BYTES_MAX;
use schemas::record::{decode, encode};

const NOW_MS: u64 = 1_790_000_000_000;

fn seeds() -> impl Iterator<Item = Vec<u8>> {
    let request = ConsentRequest {
        link: "token".into(),
        decision: Decision::Accepted,
        notice_version: "2026-03".into(),
        attempt: Some("attempt".into()),
    };
    let declined = ConsentRequest { decision: Decision::Declined, attempt: None, ..request.clone() };
    let requests = [request, declined].map(|request| serde_json::to_vec(&request).expect("a request serializes"));
    let texts = ["stream=7&seq=3&end=true", "seq=0&utm=x", "Bearer abc", "gzip", "text/plain; charset=utf-8"];
    requests.into_iter().chain(texts.map(|text| text.as_bytes().to_vec()))
}

fn check_place(query: &str) {
    let Ok(place) = Place::from_query(query) else { return };
    let written = format!("stream={}&seq={}&end={}", place.at.stream(), place.at.seq(), place.end);
    assert_eq!(Place::from_query(&written), Ok(place));
    assert!(Place::from_query(&format!("{query}&seq=0")).is_err(), "a doubled number is taken");
}

fn check_consent(request: &ConsentRequest) {
    let link = link();
    let attempt = request.attempt.as_deref().unwrap_or("drawn");
    match decide(request, &link, &Standing::default(), None, attempt, NOW_MS) {
        Ok(ConsentOutcome::Begin { acceptance, claims }) => {
            assert_eq!(request.decision, Decision::Accepted);
            assert!(claims.ntc.len() <= NOTICE_VERSION_BYTES_MAX);
            assert_eq!(decode(&encode(&acceptance)).map(|(read, _)| read), Ok(*acceptance));
        }
        Ok(ConsentOutcome::CountDecline(_)) => assert_eq!(request.decision, Decision::Declined),
        Err(_) => {}
    }
}

fuzz_target!(init: plant(seeds()), |data: &[u8]| {
    if let Ok(request) = serde_json::from_slice(data) {
        check_consent(&request);
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    // Without JSON around it, where an odd character is six that have to be right.
    let (link, attempt) = (String::new(), Some("attempt".into()));
    check_consent(&ConsentRequest { link, decision: Decision::Accepted, notice_version: text.into(), attempt });
    check_place(text);
    if let Ok(token) = bearer(Some(text)) {
        assert!(!token.is_empty() && token.trim() == token);
    }
    // Nothing is to be compared with here: these must only answer.
    let _answers = (Encoding::parse(Some(text)), BodyForm::parse(Some(text)));
});
