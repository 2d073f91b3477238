//! Before S3: uploads are refused, slowed down, cut, carried out without an answer, or carried out long after; requests that delete are
//! refused as a whole, for some of their keys, or answered by what is not true.
//!
//! A fault is chosen for an object, at the first attempt to put it, and holds for the repetitions of the client too: what the
//! client's own retries heal would never reach the service. Requests other than these pass. A connection carries one request;
//! all headers are passed on as they came, since the signature covers them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Listener;

const HEAD_BYTES_MAX: usize = 64 << 10;
/// A slow upload goes on in so many pieces, with this pause before each.
const CRAWL_PIECES: usize = 20;
const CRAWL_PAUSE: Duration = Duration::from_millis(40);

/// What is done to an upload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum UploadFault {
    /// It is answered with 500.
    InternalError,
    /// It is answered with 503, as S3 does when it is asked too much.
    SlowDown,
    /// It is taken in at a crawl, and succeeds.
    Crawl,
    /// The connection ends half-way through the body.
    Cut,
    /// It is carried out, and the connection ends in place of the answer.
    AnswerLost,
    /// It is carried out when the client has given up on it.
    Late,
}

impl UploadFault {
    pub(crate) const ALL: [UploadFault; 6] =
        [Self::InternalError, Self::SlowDown, Self::Crawl, Self::Cut, Self::AnswerLost, Self::Late];

    /// Whether the client is left with a failure.
    pub(crate) fn fails(self) -> bool {
        self != Self::Crawl
    }

    /// The fault of the next object; every third one is spared, so that something moves on all the while.
    fn in_turn(turn: usize) -> Option<UploadFault> {
        if turn % 3 == 2 { None } else { Self::ALL.get((turn / 3 * 2 + turn % 3) % Self::ALL.len()).copied() }
    }
}

/// What is done to a request that deletes objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DeletionFault {
    /// It is answered as if all of it was deleted, and nothing is.
    Untrue,
    /// It is answered with 200, and an error for every second key in it; nothing is deleted.
    Partial,
    /// It is carried out, and the connection ends in place of the answer.
    AnswerLost,
    /// It is answered with 503.
    SlowDown,
}

impl DeletionFault {
    pub(crate) const ALL: [DeletionFault; 4] = [Self::Untrue, Self::Partial, Self::AnswerLost, Self::SlowDown];
}

/// What happens from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// All requests pass.
    Pass,
    /// All faults of uploads by turns.
    InTurn,
    /// All uploads are answered with 503.
    Refuse,
    /// All uploads are taken in at a crawl.
    Crawl,
    /// All faults of deletions by turns; every fifth one passes.
    Deletions,
}

/// A proxy before an S3 server.
pub(crate) struct S3Proxy {
    listener: Listener,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: String,
    state: Mutex<State>,
}

struct State {
    plan: Plan,
    turn: usize,
    /// By path.
    chosen: BTreeMap<String, Chosen>,
    refused: u64,
    /// Requests that deleted, those included that passed.
    deletions: usize,
    deletion_hits: BTreeMap<DeletionFault, u64>,
}

struct Chosen {
    fault: Option<UploadFault>,
    /// Whether it was done to an upload, once at least.
    has_hit: bool,
}

impl S3Proxy {
    /// A proxy of the server at `endpoint`; it lets everything pass.
    pub(crate) async fn start(endpoint: &str) -> Result<S3Proxy> {
        let upstream = endpoint.strip_prefix("http://").context("the stack's S3 speaks HTTP")?.to_owned();
        let state = State {
            plan: Plan::Pass,
            turn: 0,
            chosen: BTreeMap::new(),
            refused: 0,
            deletions: 0,
            deletion_hits: BTreeMap::new(),
        };
        let shared = Arc::new(Shared { upstream, state: Mutex::new(state) });
        let serving = Arc::clone(&shared);
        let listener = Listener::start(move |client| serve(client, Arc::clone(&serving))).await?;
        Ok(S3Proxy { listener, shared })
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.listener.address)
    }

    pub(crate) fn set(&self, plan: Plan) {
        self.shared.state().plan = plan;
    }

    /// Objects whose upload a fault has hit, each counted once.
    pub(crate) fn hits(&self, fault: UploadFault) -> u64 {
        let state = self.shared.state();
        state.chosen.values().filter(|chosen| chosen.has_hit && chosen.fault == Some(fault)).count() as u64
    }

    /// Requests that deleted and were hit by a fault.
    pub(crate) fn deletion_hits(&self, fault: DeletionFault) -> u64 {
        self.shared.state().deletion_hits.get(&fault).copied().unwrap_or_default()
    }

    /// Requests that were refused under [`Plan::Refuse`].
    pub(crate) fn refused(&self) -> u64 {
        self.shared.state().refused
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn choose(&self, request: &Request) -> Option<UploadFault> {
        if request.method != "PUT" {
            return None;
        }
        let mut state = self.state();
        match state.plan {
            Plan::Pass | Plan::Deletions => None,
            Plan::Crawl => Some(UploadFault::Crawl),
            Plan::Refuse => {
                state.refused += 1;
                Some(UploadFault::SlowDown)
            }
            Plan::InTurn => {
                let state = &mut *state;
                let chosen = state.chosen.entry(request.path.clone()).or_insert_with(|| {
                    state.turn += 1;
                    Chosen { fault: UploadFault::in_turn(state.turn - 1), has_hit: false }
                });
                chosen.fault
            }
        }
    }

    fn choose_deletion(&self, request: &Request) -> Option<DeletionFault> {
        let mut state = self.state();
        let deletes =
            request.method == "POST" && request.path.split(['?', '&']).skip(1).any(|name| name.starts_with("delete"));
        if state.plan != Plan::Deletions || !deletes {
            return None;
        }
        state.deletions += 1;
        DeletionFault::ALL.get(state.deletions % (DeletionFault::ALL.len() + 1)).copied()
    }

    fn note_deletion_hit(&self, fault: DeletionFault) {
        *self.state().deletion_hits.entry(fault).or_default() += 1;
    }

    fn note_hit(&self, request: &Request) {
        if let Some(chosen) = self.state().chosen.get_mut(&request.path) {
            chosen.has_hit = true;
        }
    }
}

/// The head of a request, to be sent on.
struct Request {
    method: String,
    path: String,
    body_bytes: usize,
    head: Vec<u8>,
    /// What of the body was read along with the head.
    begun: Vec<u8>,
}

async fn serve(mut client: TcpStream, shared: Arc<Shared>) -> Result<()> {
    let request = read_head(&mut client).await?;
    if let Some(fault) = shared.choose_deletion(&request) {
        fail_deletion(&mut client, &request, &shared.upstream, fault).await?;
        shared.note_deletion_hit(fault);
        client.shutdown().await?;
        return Ok(());
    }
    match shared.choose(&request) {
        None => {
            let answer = exchange(&mut client, &request, &shared.upstream, None).await?;
            client.write_all(&answer).await?;
        }
        Some(UploadFault::Crawl) => {
            let answer = exchange(&mut client, &request, &shared.upstream, Some(CRAWL_PAUSE)).await?;
            client.write_all(&answer).await?;
            shared.note_hit(&request);
        }
        Some(UploadFault::InternalError) => {
            refuse(&mut client, &request, "500 Internal Server Error", "InternalError").await?;
            shared.note_hit(&request);
        }
        Some(UploadFault::SlowDown) => {
            refuse(&mut client, &request, "503 Slow Down", "SlowDown").await?;
            shared.note_hit(&request);
        }
        Some(UploadFault::Cut) => {
            let mut upstream = connect(&request, &shared.upstream).await?;
            let half = read_body(&mut client, &request, request.body_bytes / 2).await?;
            upstream.write_all(&half).await?;
            shared.note_hit(&request);
        }
        Some(UploadFault::AnswerLost) => {
            carry_out(&mut client, &request, &shared.upstream).await?;
            shared.note_hit(&request);
        }
        Some(UploadFault::Late) => {
            let body = read_body(&mut client, &request, request.body_bytes).await?;
            // Nothing more comes from the client: it waits for the answer, and hangs up when it has waited enough.
            let mut nothing = [0];
            drop(client.read(&mut nothing).await);
            let mut upstream = connect(&request, &shared.upstream).await?;
            upstream.write_all(&body).await?;
            let mut answer = Vec::new();
            upstream.read_to_end(&mut answer).await?;
            ensure!(answer.starts_with(b"HTTP/1.1 200"), "the upload was not carried out");
            shared.note_hit(&request);
        }
    }
    client.shutdown().await?;
    Ok(())
}

async fn read_head(client: &mut TcpStream) -> Result<Request> {
    let mut read = Vec::new();
    let end = loop {
        if let Some(at) = memchr::memmem::find(&read, b"\r\n\r\n") {
            break at + 2;
        }
        ensure!(read.len() < HEAD_BYTES_MAX, "the head of a request has no end");
        ensure!(client.read_buf(&mut read).await? > 0, "the client hung up");
    };
    let begun = read.split_off(end + 2);
    read.truncate(end);
    let text = std::str::from_utf8(&read).context("read head")?;
    let mut lines = text.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let method = first.next().context("a request has a method")?;
    let path = first.next().context("a request has a path")?;
    let header = |name: &str| {
        let value = |line: &str| {
            line.split_once(':').filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim().to_owned())
        };
        text.split("\r\n").find_map(value)
    };
    ensure!(header("transfer-encoding").is_none(), "a body without a length is not passed on");
    let body_bytes = header("content-length").map_or(Ok(0), |value| value.parse()).context("read content-length")?;
    // One request per connection, so that its answer ends where the connection does.
    read.extend_from_slice(b"Connection: close\r\n\r\n");
    Ok(Request { method, path, body_bytes, head: read, begun })
}

async fn connect(request: &Request, upstream: &str) -> Result<TcpStream> {
    let mut upstream = TcpStream::connect(upstream).await?;
    upstream.write_all(&request.head).await?;
    Ok(upstream)
}

async fn read_body(client: &mut TcpStream, request: &Request, bytes: usize) -> Result<Vec<u8>> {
    let mut body = vec![0; bytes];
    request.begun.as_slice().chain(client).read_exact(&mut body).await?;
    Ok(body)
}

/// Passes a request on, in pieces with a pause before each if there is one; gives the answer.
async fn exchange(
    client: &mut TcpStream,
    request: &Request,
    upstream: &str,
    pause: Option<Duration>,
) -> Result<Vec<u8>> {
    let mut upstream = connect(request, upstream).await?;
    let mut body = request.begun.as_slice().chain(client).take(request.body_bytes as u64);
    match pause {
        None => drop(tokio::io::copy(&mut body, &mut upstream).await?),
        Some(pause) => {
            let mut piece = vec![0; request.body_bytes.div_ceil(CRAWL_PIECES).max(1)];
            while body.limit() > 0 {
                tokio::time::sleep(pause).await;
                let bytes = body.read(&mut piece).await?;
                ensure!(bytes > 0, "the client hung up");
                upstream.write_all(&piece[..bytes]).await?;
            }
        }
    }
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer).await?;
    Ok(answer)
}

/// Has a request carried out whose answer nobody gets.
async fn carry_out(client: &mut TcpStream, request: &Request, upstream: &str) -> Result<()> {
    let answer = exchange(client, request, upstream, None).await?;
    ensure!(answer.starts_with(b"HTTP/1.1 200"), "the request was not carried out");
    Ok(())
}

/// Takes the body in, or the answer would be lost in the reset of a connection with unread data.
async fn refuse(client: &mut TcpStream, request: &Request, status: &str, code: &str) -> Result<()> {
    read_body(client, request, request.body_bytes).await?;
    answer(client, status, &format!("<Error><Code>{code}</Code><Message>{status}</Message></Error>")).await
}

/// Deletes nothing, but where the answer alone is lost.
async fn fail_deletion(client: &mut TcpStream, request: &Request, upstream: &str, fault: DeletionFault) -> Result<()> {
    match fault {
        DeletionFault::SlowDown => refuse(client, request, "503 Slow Down", "SlowDown").await,
        DeletionFault::AnswerLost => carry_out(client, request, upstream).await,
        DeletionFault::Untrue | DeletionFault::Partial => {
            let body = read_body(client, request, request.body_bytes).await?;
            let text = std::str::from_utf8(&body).context("read keys to delete")?;
            let keys = text.split("<Key>").skip(1).filter_map(|rest| Some(rest.split_once("</Key>")?.0));
            let error =
                |key| format!("<Error><Key>{key}</Key><Code>InternalError</Code><Message>again</Message></Error>");
            let errors: String =
                if fault == DeletionFault::Partial { keys.step_by(2).map(error).collect() } else { String::new() };
            answer(client, "200 OK", &format!("<DeleteResult>{errors}</DeleteResult>")).await
        }
    }
}

async fn answer(client: &mut TcpStream, status: &str, body: &str) -> Result<()> {
    let body = format!("<?xml version=\"1.0\"?>{body}");
    let length = body.len();
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/xml\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    client.write_all(answer.as_bytes()).await?;
    Ok(())
}
