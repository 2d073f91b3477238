//! Before Postgres: commits of publishing transactions whose reply is lost, that never arrive, or that are answered late.
//!
//! It knows of the protocol what that takes: how a connection begins, where a message ends, which prepared statement is the
//! one that advances progress, and what `COMMIT` looks like. Everything else passes as it comes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::Listener;

/// What a publishing says and nothing else does.
const ADVANCES_PROGRESS: &[u8] = b"update partition_progress set next_offset";
/// The first message of a connection that asks for TLS, or for Kerberos' encryption: instead of a version it has this.
const ENCRYPTION_CODES: [u32; 2] = [80_877_103, 80_877_104];
const MESSAGE_BYTES_MAX: usize = 64 << 20;
const DELAY: Duration = Duration::from_millis(300);

/// What is done to a commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum CommitFault {
    /// It is carried out; the connection ends in place of the reply.
    ReplyLost,
    /// The connection ends before it arrives.
    Cut,
    /// It is carried out, and the reply comes late.
    ReplyLate,
}

impl CommitFault {
    pub(crate) const ALL: [CommitFault; 3] = [Self::ReplyLost, Self::Cut, Self::ReplyLate];

    /// Every other commit is spared, so that something moves on all the while.
    fn in_turn(turn: usize) -> Option<CommitFault> {
        if turn % 2 == 1 { None } else { Self::ALL.get(turn / 2 % Self::ALL.len()).copied() }
    }
}

/// A proxy before a Postgres server.
pub(crate) struct PostgresProxy {
    listener: Listener,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: String,
    is_faulty: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    turn: usize,
    hits: BTreeMap<CommitFault, u64>,
}

impl PostgresProxy {
    /// A proxy of the server at `address` (`host:port`); it lets everything pass.
    pub(crate) async fn start(address: &str) -> Result<PostgresProxy> {
        let upstream = address.to_owned();
        let shared = Shared { upstream, is_faulty: AtomicBool::new(false), state: Mutex::default() };
        let shared = Arc::new(shared);
        let serving = Arc::clone(&shared);
        let listener = Listener::start(move |client| serve(client, Arc::clone(&serving))).await?;
        Ok(PostgresProxy { listener, shared })
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> &str {
        &self.listener.address
    }

    /// From now on faults come by turns, or none does.
    pub(crate) fn set_faulty(&self, is_faulty: bool) {
        self.shared.is_faulty.store(is_faulty, Ordering::Release);
    }

    /// Commits of publishing transactions that a fault has hit.
    pub(crate) fn hits(&self, fault: CommitFault) -> u64 {
        self.shared.state().hits.get(&fault).copied().unwrap_or_default()
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn choose(&self) -> Option<CommitFault> {
        if !self.is_faulty.load(Ordering::Acquire) {
            return None;
        }
        let mut state = self.state();
        state.turn += 1;
        CommitFault::in_turn(state.turn - 1)
    }

    fn note_hit(&self, fault: CommitFault) {
        *self.state().hits.entry(fault).or_default() += 1;
    }
}

/// A client's messages, as far as they have come.
#[derive(Default)]
struct Messages {
    read: BytesMut,
    /// Prepared statements that advance progress, by name.
    publishing: BTreeSet<Bytes>,
    /// Whether the transaction under way has.
    has_advanced: bool,
}

/// A message with its kind and length, to be sent on.
struct Message {
    bytes: Bytes,
    is_publishing_commit: bool,
}

impl Messages {
    /// The next message that is whole.
    fn next(&mut self) -> Result<Option<Message>> {
        let Some(head) = self.read.first_chunk::<5>() else { return Ok(None) };
        let (kind, length) = (head[0], u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize);
        ensure!((4..MESSAGE_BYTES_MAX).contains(&length), "a message of {length} bytes is none");
        if self.read.len() < length + 1 {
            return Ok(None);
        }
        let bytes = self.read.split_to(length + 1).freeze();
        let mut body = bytes.slice(5..);
        let mut is_publishing_commit = false;
        match kind {
            b'P' => {
                let (name, query) = (text(&mut body)?, text(&mut body)?);
                if memchr::memmem::find(&query, ADVANCES_PROGRESS).is_some() {
                    self.publishing.insert(name);
                }
            }
            b'B' => {
                let (_portal, name) = (text(&mut body)?, text(&mut body)?);
                self.has_advanced |= self.publishing.contains(&name);
            }
            b'Q' => {
                let query = text(&mut body)?;
                let ends = |with: &str| query.to_ascii_uppercase().starts_with(with.as_bytes());
                is_publishing_commit = self.has_advanced && ends("COMMIT");
                if ends("COMMIT") || ends("ROLLBACK") {
                    self.has_advanced = false;
                }
            }
            _ => {}
        }
        Ok(Some(Message { bytes, is_publishing_commit }))
    }
}

/// Takes a text off that ends with a zero.
fn text(body: &mut Bytes) -> Result<Bytes> {
    let end = memchr::memchr(0, body).context("a text ends with a zero")?;
    let text = body.split_to(end);
    body.advance(1);
    Ok(text)
}

async fn serve(mut client: TcpStream, shared: Arc<Shared>) -> Result<()> {
    let mut server = TcpStream::connect(&shared.upstream).await?;
    server.set_nodelay(true)?;
    begin(&mut client, &mut server).await?;
    let (mut messages, mut replies) = (Messages::default(), BytesMut::new());
    loop {
        tokio::select! {
            read = client.read_buf(&mut messages.read) => ensure!(read? > 0, "the client hung up"),
            read = server.read_buf(&mut replies) => {
                ensure!(read? > 0, "the server hung up");
                client.write_all_buf(&mut replies).await?;
            }
        }
        while let Some(mut message) = messages.next()? {
            let fault = if message.is_publishing_commit { shared.choose() } else { None };
            if fault == Some(CommitFault::Cut) {
                shared.note_hit(CommitFault::Cut);
                return Ok(());
            }
            server.write_all_buf(&mut message.bytes).await?;
            if let Some(fault) = fault {
                // What was asked before is answered: a client waits for that before it commits.
                read_reply_to_commit(&mut server, &mut replies).await?;
                shared.note_hit(fault);
                if fault == CommitFault::ReplyLost {
                    return Ok(());
                }
                tokio::time::sleep(DELAY).await;
                client.write_all_buf(&mut replies).await?;
            }
        }
    }
}

/// Passes on how a connection begins, which no kind stands before. It is not encrypted, or there would be nothing to see.
async fn begin(client: &mut TcpStream, server: &mut TcpStream) -> Result<()> {
    loop {
        let length = client.read_u32().await?;
        ensure!((8..10_000).contains(&length), "a first message of {length} bytes is none");
        let mut message = length.to_be_bytes().to_vec();
        message.resize(length as usize, 0);
        client.read_exact(&mut message[4..]).await?;
        server.write_all(&message).await?;
        let code = message[4..].first_chunk().map(|code| u32::from_be_bytes(*code));
        if !code.is_some_and(|code| ENCRYPTION_CODES.contains(&code)) {
            return Ok(());
        }
        let answer = server.read_u8().await?;
        client.write_u8(answer).await?;
        if answer != b'N' {
            bail!("the stack's Postgres encrypts, and the proxy cannot read that");
        }
    }
}

/// Reads until the server is ready again, and makes sure that it has committed.
async fn read_reply_to_commit(server: &mut TcpStream, replies: &mut BytesMut) -> Result<()> {
    const COMMITTED: &[u8] = b"COMMIT\0";
    const READY: &[u8] = b"Z\0\0\0\x05I";
    while !replies.ends_with(READY) {
        ensure!(server.read_buf(replies).await? > 0, "the server hung up");
    }
    ensure!(memchr::memmem::find(replies, COMMITTED).is_some(), "the server did not commit");
    Ok(())
}
