//! A server that speaks as much of KMS as the program uses: `GenerateMac` over HTTP, in the JSON protocol.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, KeyInit as _, Mac as _};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// What it does with requests.
#[derive(Debug, Clone)]
pub(crate) enum Mode {
    /// Answers as KMS does.
    Answer,
    /// Refuses with this status and code.
    Refuse(u16, &'static str),
    /// The same, and answers from then on.
    RefuseOnce(u16, &'static str),
    /// Gives no answer.
    Hang,
    /// Gives this one.
    Say(String),
}

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    headers: hyper::HeaderMap,
    pub(crate) body: Value,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}")).to_str().unwrap()
    }
}

#[derive(Debug)]
struct State {
    mode: Mode,
    requests: Vec<Seen>,
}

/// The server. It ends when it is dropped, with all its connections.
#[derive(Debug)]
pub(crate) struct FakeKms {
    port: u16,
    state: Arc<Mutex<State>>,
    _serving: JoinSet<()>,
}

impl FakeKms {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State { mode: Mode::Answer, requests: Vec::new() }));
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, Arc::clone(&state)));
        Self { port, state, _serving: serving }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.state.lock().unwrap().mode = mode;
    }

    pub(crate) fn requests(&self) -> Vec<Seen> {
        self.state.lock().unwrap().requests.clone()
    }
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let state = Arc::clone(&state);
        let service = hyper::service::service_fn(move |request| answer(Arc::clone(&state), request));
        // A client that gives up closes its connection; that is no failure.
        connections.spawn(async move {
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn answer(state: Arc<Mutex<State>>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
    let mode = {
        let mut state = state.lock().unwrap();
        state.requests.push(Seen { headers: head.headers, body: body.clone() });
        let mode = state.mode.clone();
        if matches!(mode, Mode::RefuseOnce(..)) {
            state.mode = Mode::Answer;
        }
        mode
    };
    let (status, answer) = match mode {
        Mode::Answer => {
            let message = STANDARD.decode(body["Message"].as_str().unwrap()).unwrap();
            let key_id = body["KeyId"].as_str().unwrap();
            let mac = STANDARD.encode(mac(key_id, &message));
            (200, json!({ "KeyId": key_id, "Mac": mac, "MacAlgorithm": "HMAC_SHA_256" }).to_string())
        }
        Mode::Refuse(status, code) | Mode::RefuseOnce(status, code) => {
            (status, json!({ "__type": code, "message": "words of the server" }).to_string())
        }
        Mode::Hang => std::future::pending().await,
        Mode::Say(answer) => (200, answer),
    };
    let response = Response::builder().status(status).header("content-type", "application/x-amz-json-1.1");
    Ok(response.body(Full::from(answer)).unwrap())
}

/// The MAC by the key of this id: the server's own secret.
pub(crate) fn mac(key_id: &str, message: &[u8]) -> [u8; 32] {
    let mut mac = Hmac::<Sha256>::new_from_slice(format!("secret of {key_id}").as_bytes()).unwrap();
    mac.update(message);
    mac.finalize().into_bytes().into()
}
