//! The client against a listener that plays an edge: it answers what it is told to, and keeps what it was sent.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use uuid::Uuid;

use super::*;
use crate::body::Encoding;

/// What the edge does with one request.
#[derive(Clone, Copy)]
enum Turn {
    Answer(&'static str, &'static str, &'static str),
    Hang,
    Break,
}

const ACK: Turn = Turn::Answer("202 Accepted", "", r#"{"stream":7,"seq":3}"#);
const BACKPRESSURE: Turn = Turn::Answer(
    "503 Service Unavailable",
    "Retry-After: 0\r\n",
    r#"{"code":"backpressure","status":503,"detail":"wait"}"#,
);

/// Head and body.
type Request = (String, Vec<u8>);

#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<Request>>>);

impl Heard {
    fn take(&self) -> Vec<Request> {
        std::mem::take(&mut self.0.lock().expect("no test panics with it"))
    }
}

/// An edge that takes these turns, one a connection.
async fn edge(turns: &'static [Turn]) -> (Sdk, Heard) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    let heard = Heard::default();
    let keeper = heard.clone();
    tokio::spawn(async move {
        let mut held = Vec::new();
        for turn in turns {
            let (mut socket, _) = listener.accept().await.expect("a connection");
            let mut request = Vec::new();
            let (head, length) = loop {
                let mut piece = [0; 4096];
                let read = socket.read(&mut piece).await.expect("a request");
                request.extend_from_slice(&piece[..read]);
                let text = String::from_utf8_lossy(&request).to_lowercase();
                let Some(end) = text.find("\r\n\r\n") else { continue };
                let length = text[..end]
                    .lines()
                    .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
                    .unwrap_or(0);
                if request.len() >= end + 4 + length {
                    break (String::from_utf8_lossy(&request[..end]).into_owned(), length);
                }
            };
            let body = request[request.len() - length..].to_vec();
            keeper.0.lock().expect("no test panics with it").push((head, body));
            match turn {
                Turn::Answer(status, headers, answer) => {
                    let length = answer.len();
                    let answer = format!(
                        "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{answer}"
                    );
                    socket.write_all(answer.as_bytes()).await.expect("an answer");
                }
                Turn::Hang => held.push(socket),
                Turn::Break => drop(socket),
            }
        }
    });
    let options = SdkOptions { request_timeout: Duration::from_secs(1), origin: Some("https://shop.test".into()) };
    (Sdk::new(&format!("http://{address}/"), options).expect("a client"), heard)
}

fn session() -> Session {
    Session { id: SessionId(Uuid::from_u128(1)), token: "secret".into(), capture: Capture::of(None) }
}

fn body(form: Form, encoding: Encoding) -> Body {
    Body::of(["{\"type\":3,\"timestamp\":1}"], form, encoding).expect("a body")
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[tokio::test]
async fn a_batch_is_repeated_with_the_same_bytes_until_it_is_acknowledged() {
    static TURNS: [Turn; 4] = [BACKPRESSURE, Turn::Hang, Turn::Break, ACK];
    let (sdk, heard) = edge(&TURNS).await;
    let body = body(Form::Array, Encoding::Zstd);
    let delivered = sdk.send_until_acknowledged(&session(), 7, 3, true, &body, soon()).await.expect("an ack");
    assert_eq!(delivered.failures, ["backpressure", "timeout", "connection_broken"]);
    let heard = heard.take();
    assert_eq!(heard.len(), 4);
    for (head, sent) in heard {
        assert!(head.starts_with("POST /v1/events?stream=7&seq=3&end=true HTTP/1.1\r\n"), "{head}");
        let head = head.to_lowercase();
        for header in ["authorization: bearer secret", "content-encoding: zstd", "content-type: application/json"] {
            assert!(head.contains(header), "{head}");
        }
        assert!(head.contains("origin: https://shop.test"), "{head}");
        assert_eq!(sent, body.bytes);
    }
}

#[tokio::test]
async fn a_refusal_for_good_ends_the_repetition_and_its_fate_is_known() {
    static TURNS: [Turn; 2] = [
        BACKPRESSURE,
        Turn::Answer("403 Forbidden", "", r#"{"code":"consent_withdrawn","status":403,"detail":"stop"}"#),
    ];
    let (sdk, _) = edge(&TURNS).await;
    let body = body(Form::Lines, Encoding::Gzip);
    let given_up = sdk.send_until_acknowledged(&session(), 7, 3, false, &body, soon()).await.expect_err("a refusal");
    assert_eq!((given_up.last.status(), given_up.last.code()), (Some(403), "consent_withdrawn"));
    assert!(!given_up.fate_unknown);
}

#[tokio::test]
async fn without_an_answer_the_fate_is_unknown_whatever_comes_after() {
    static TURNS: [Turn; 2] = [Turn::Hang, Turn::Answer("401 Unauthorized", "", "nonsense")];
    let (sdk, _) = edge(&TURNS).await;
    let body = body(Form::Lines, Encoding::Identity);
    let given_up = sdk.send_until_acknowledged(&session(), 7, 3, false, &body, soon()).await.expect_err("no ack");
    assert_eq!(given_up.failures, ["timeout", "no_code"]);
    assert!(given_up.fate_unknown);
}

#[tokio::test]
async fn an_edge_that_is_not_there_took_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let sdk = Sdk::new(&url, SdkOptions::default()).expect("a client");
    let body = body(Form::Lines, Encoding::Identity);
    let deadline = Instant::now() + Duration::from_millis(200);
    let given_up = sdk.send_until_acknowledged(&session(), 7, 3, false, &body, deadline).await.expect_err("no edge");
    assert!(!given_up.fate_unknown && given_up.last.is_retryable(), "{:?}", given_up.failures);
}

#[tokio::test]
async fn an_acknowledgement_of_another_batch_is_none() {
    static TURNS: [Turn; 1] = [ACK];
    let (sdk, _) = edge(&TURNS).await;
    let error = sdk.send(&session(), 7, 4, false, &body(Form::Lines, Encoding::Identity)).await.expect_err("not ours");
    assert_eq!(error.code(), "unexpected_answer");
}

#[tokio::test]
async fn a_beacon_has_its_token_in_the_first_line_and_no_headers_of_its_own() {
    static TURNS: [Turn; 1] = [ACK];
    let (sdk, heard) = edge(&TURNS).await;
    sdk.send(&session(), 7, 3, true, &body(Form::Beacon, Encoding::Zstd)).await.expect("an ack");
    let (head, sent) = heard.take().remove(0);
    assert!(head.starts_with("POST /v1/events HTTP/1.1\r\n"), "{head}");
    let head = head.to_lowercase();
    assert!(!head.contains("authorization") && !head.contains("content-encoding"), "{head}");
    let text = String::from_utf8(sent).expect("UTF-8");
    let expected = "{\"token\":\"secret\",\"stream\":7,\"seq\":3,\"end\":true}\n{\"type\":3,\"timestamp\":1}\n";
    assert_eq!(text, expected);
}

#[tokio::test]
async fn consent_gives_a_session_and_a_decline_gives_nothing() {
    static TURNS: [Turn; 3] = [
        BACKPRESSURE,
        Turn::Answer(
            "201 Created",
            "",
            r#"{"session_id":"00000000-0000-8000-8000-000000000001","token":"t","expires_at":"2026-01-01T00:00:00Z",
                "capture":{"mask_attribute":"a","block_attribute":"b","masking":{},"max_batch_bytes":1,"flush_interval_ms":2,"more":1}}"#,
        ),
        Turn::Answer("204 No Content", "", ""),
    ];
    let (sdk, heard) = edge(&TURNS).await;
    let accepted = sdk.accept_until_answered("link", "v1", "attempt", soon()).await.expect("a session");
    assert_eq!(accepted.failures, ["backpressure"]);
    let accepted = accepted.answer;
    assert_eq!((accepted.token.as_str(), accepted.capture.max_batch_bytes), ("t", 1));
    sdk.decline("link", "v1").await.expect("no content");
    let bodies: Vec<String> =
        heard.take().into_iter().map(|(_, body)| String::from_utf8(body).expect("UTF-8")).collect();
    assert_eq!(bodies[0], bodies[1]);
    assert_eq!(bodies[1], r#"{"link":"link","decision":"accepted","notice_version":"v1","attempt":"attempt"}"#);
    assert_eq!(bodies[2], r#"{"link":"link","decision":"declined","notice_version":"v1"}"#);
}

#[test]
fn attempts_differ() {
    assert_ne!(random_attempt(), random_attempt());
    assert!(random_attempt().len() <= schemas::limits::ATTEMPT_BYTES_MAX);
}
