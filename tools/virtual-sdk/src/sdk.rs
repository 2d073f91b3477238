//! The edge's client: what a browser SDK does, without a browser.

use std::time::Duration;

use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, ORIGIN};
use reqwest::{Client, RequestBuilder, StatusCode};
use schemas::SessionId;
use schemas::http::{BeaconHead, Capture, ConsentRequest, ConsentResponse, Decision, EventsResponse, SessionResponse};
use tokio::time::{Instant, sleep_until};

use crate::body::{Body, Form};
use crate::call::{self, CallError};

/// How an SDK behaves.
#[derive(Debug, Clone)]
pub struct SdkOptions {
    /// How long one attempt may take.
    pub request_timeout: Duration,
    /// The page's origin, as a browser would send it.
    pub origin: Option<String>,
}

impl Default for SdkOptions {
    fn default() -> Self {
        Self { request_timeout: call::REQUEST_TIMEOUT, origin: None }
    }
}

/// A session that was consented to.
#[derive(Debug, Clone, PartialEq)]
pub struct Session {
    /// The session.
    pub id: SessionId,
    /// Its token.
    pub token: String,
    /// How to record.
    pub capture: Capture,
}

/// A call that was answered, if need be after repetitions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivered<T> {
    /// What the edge said.
    pub answer: T,
    /// The codes of the attempts that failed before, in order.
    pub failures: Vec<String>,
}

/// A call that was given up.
#[derive(Debug, thiserror::Error)]
#[error("repeat call: gave up after {} attempts", failures.len())]
pub struct Undelivered {
    /// The codes of all attempts, in order.
    pub failures: Vec<String>,
    /// Whether it may have been carried out all the same: a batch may be stored.
    pub fate_unknown: bool,
    /// The last failure.
    #[source]
    pub last: CallError,
}

/// A client of an edge. Clones share connections.
#[derive(Debug, Clone)]
pub struct Sdk {
    client: Client,
    edge_url: String,
    options: SdkOptions,
}

impl Sdk {
    /// A client of the edge at this address.
    pub fn new(edge_url: &str, options: SdkOptions) -> Result<Self, CallError> {
        Ok(Self { client: call::client()?, edge_url: edge_url.trim_end_matches('/').to_owned(), options })
    }

    /// The end user accepts. The same `attempt` gives the same session, so a lost answer can be asked for again.
    pub async fn accept(&self, link_token: &str, notice_version: &str, attempt: &str) -> Result<Session, CallError> {
        const CALL: &str = "accept consent";
        let answer = self.consent(link_token, Decision::Accepted, notice_version, Some(attempt)).send().await;
        let response = call::expect(CALL, StatusCode::CREATED, answer).await?;
        let accepted: ConsentResponse = call::json(CALL, response).await?;
        Ok(Session { id: accepted.session_id, token: accepted.token, capture: accepted.capture })
    }

    /// Accepts, and repeats the same attempt until the edge answers or the deadline comes.
    pub async fn accept_until_answered(
        &self,
        link_token: &str,
        notice_version: &str,
        attempt: &str,
        deadline: Instant,
    ) -> Result<Delivered<Session>, Undelivered> {
        repeat(deadline, || self.accept(link_token, notice_version, attempt)).await
    }

    /// The end user declines.
    pub async fn decline(&self, link_token: &str, notice_version: &str) -> Result<(), CallError> {
        let answer = self.consent(link_token, Decision::Declined, notice_version, None).send().await;
        call::expect("decline consent", StatusCode::NO_CONTENT, answer).await.map(drop)
    }

    /// The end user takes consent back.
    pub async fn withdraw(&self, session: &Session) -> Result<(), CallError> {
        let answer = self.post("/v1/withdraw").bearer_auth(&session.token).send().await;
        call::expect("withdraw consent", StatusCode::ACCEPTED, answer).await.map(drop)
    }

    /// What an SDK asks for after a reload.
    pub async fn session_info(&self, session: &Session) -> Result<SessionResponse, CallError> {
        const CALL: &str = "get session";
        let url = format!("{}/v1/session", self.edge_url);
        let answer = self.finish(self.client.get(url)).bearer_auth(&session.token).send().await;
        call::json(CALL, call::expect(CALL, StatusCode::OK, answer).await?).await
    }

    /// Sends a batch once.
    pub async fn send(
        &self,
        session: &Session,
        stream: u32,
        seq: u32,
        end: bool,
        body: &Body,
    ) -> Result<EventsResponse, CallError> {
        const CALL: &str = "send batch";
        let request = match body.form {
            Form::Beacon => self.beacon(session, stream, seq, end, body),
            Form::Array | Form::Lines => self.batch(session, stream, seq, end, body),
        };
        let response = call::expect(CALL, StatusCode::ACCEPTED, request.send().await).await?;
        let ack: EventsResponse = call::json(CALL, response).await?;
        if (ack.stream, ack.seq) != (stream, seq) {
            let what = format!("expected stream {stream}, seq {seq}; got {}, {}", ack.stream, ack.seq);
            return Err(CallError::Unexpected { call: CALL, status: StatusCode::ACCEPTED.as_u16(), what });
        }
        Ok(ack)
    }

    /// Sends a batch, and repeats the same bytes until they are acknowledged, refused for good, or the deadline comes.
    pub async fn send_until_acknowledged(
        &self,
        session: &Session,
        stream: u32,
        seq: u32,
        end: bool,
        body: &Body,
        deadline: Instant,
    ) -> Result<Delivered<EventsResponse>, Undelivered> {
        repeat(deadline, || self.send(session, stream, seq, end, body)).await
    }

    fn consent(&self, link: &str, decision: Decision, notice_version: &str, attempt: Option<&str>) -> RequestBuilder {
        self.post("/v1/consent").json(&ConsentRequest {
            link: link.to_owned(),
            decision,
            notice_version: notice_version.to_owned(),
            attempt: attempt.map(str::to_owned),
        })
    }

    fn batch(&self, session: &Session, stream: u32, seq: u32, end: bool, body: &Body) -> RequestBuilder {
        let end = if end { "&end=true" } else { "" };
        let request = self
            .post(&format!("/v1/events?stream={stream}&seq={seq}{end}"))
            .bearer_auth(&session.token)
            .header(CONTENT_TYPE, body.form.content_type())
            .body(body.bytes.clone());
        match body.encoding.header() {
            Some(encoding) => request.header(CONTENT_ENCODING, encoding),
            None => request,
        }
    }

    fn beacon(&self, session: &Session, stream: u32, seq: u32, end: bool, body: &Body) -> RequestBuilder {
        let head = BeaconHead { token: session.token.clone(), stream: u64::from(stream), seq: u64::from(seq), end };
        // A structure of a string and numbers always has a JSON form.
        let mut bytes = serde_json::to_vec(&head).unwrap_or_default();
        bytes.push(b'\n');
        bytes.extend_from_slice(&body.bytes);
        self.post("/v1/events").header(CONTENT_TYPE, body.form.content_type()).body(bytes)
    }

    fn post(&self, path: &str) -> RequestBuilder {
        self.finish(self.client.post(format!("{}{path}", self.edge_url)))
    }

    fn finish(&self, request: RequestBuilder) -> RequestBuilder {
        let request = request.timeout(self.options.request_timeout);
        match &self.options.origin {
            Some(origin) => request.header(ORIGIN, origin),
            None => request,
        }
    }
}

/// Repeats a call that is safe to repeat.
async fn repeat<T, F>(deadline: Instant, mut call: impl FnMut() -> F) -> Result<Delivered<T>, Undelivered>
where
    F: Future<Output = Result<T, CallError>>,
{
    let mut failures = Vec::new();
    let mut fate_unknown = false;
    loop {
        let error = match call().await {
            Ok(answer) => return Ok(Delivered { answer, failures }),
            Err(error) => error,
        };
        failures.push(error.code().to_owned());
        fate_unknown |= error.may_have_happened();
        let attempts = u32::try_from(failures.len()).unwrap_or(u32::MAX);
        let next = Instant::now() + call::backoff(attempts, &error);
        if !error.is_retryable() || next >= deadline {
            return Err(Undelivered { failures, fate_unknown, last: error });
        }
        sleep_until(next).await;
    }
}

/// A random text for [`Sdk::accept`].
pub fn random_attempt() -> String {
    let (high, low) = (getrandom::u64(), getrandom::u64());
    match (high, low) {
        (Ok(high), Ok(low)) => format!("{high:016x}{low:016x}"),
        // A machine without randomness still has a clock and a process number, as a version 7 id has.
        _ => uuid::Uuid::now_v7().simple().to_string(),
    }
}

#[cfg(test)]
mod tests;
