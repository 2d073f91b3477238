//! The edge's loop: takes requests, lets the engine decide, carries it out.

use std::sync::Arc;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use engine::admission::{self, BodyForm, ConsentOutcome, Encoding, Place};
use engine::events;
use engine::token::{Signing, Verifiers};
use http::{Request, StatusCode, header};
use hyper::body::Incoming;
use schemas::codes::Refusal;
use schemas::http::{BeaconHead, Capture, ConsentRequest, ConsentResponse, EventsResponse, SessionResponse};
use schemas::record::Header;
use schemas::token::SessionClaims;
use schemas::{ErrorCode, SessionId, codec, limits};
use service_kit::health::Health;
use service_kit::http_server;
use service_kit::keys::tokens::EdgeKeys;
use service_kit::keys::{self, Watched};
use service_kit::pool::Pool;
use service_kit::service::Surroundings;
use service_kit::time::now_ms;
use time::OffsetDateTime;
use tokio::sync::Semaphore;

use crate::declines::Declines;
use crate::http::{Answer, Asked, Head, Route};
use crate::kafka::Producer;
use crate::seal::Seal;
use crate::{Config, body, http as answers, metrics};

/// zstd's level for records: the fastest, since the compactor compresses again.
const RECORD_ZSTD_LEVEL: i32 = 1;

struct Edge {
    links: Verifiers,
    sessions: Arc<Verifiers>,
    signing: Signing,
    producer: Producer,
    seal: Arc<Seal>,
    pool: Pool,
    declines: Declines,
    health: Health,
    /// Room for bodies, in KiB.
    bodies: Arc<Semaphore>,
    bodies_bytes_max: u64,
}

/// Serves until the shutdown, then drains: what was taken in is acknowledged or refused, and sums of declines are sent.
pub async fn run(config: Config, surroundings: Surroundings) -> anyhow::Result<()> {
    let Surroundings { listener, health, shutdown } = surroundings;
    let listener = listener.context("the edge has a public address")?;
    service_kit::telemetry::describe(metrics::ALL);
    let keys: EdgeKeys = keys::read(&config.keys_file)?;
    let (links, sessions, signing) = keyring(&keys)?;
    let transport = Watched::start(config.transport_keys_file.clone(), &shutdown)?;
    let seal = Seal::new(transport, &config.kafka.topic_events).context("make the seal of records")?;
    let producer = Producer::new(&config.kafka).context("make producer")?;
    let part = health.part("kafka");
    tokio::spawn(producer.clone().watch(config.kafka.clone(), part, shutdown.clone()));
    let edge = Arc::new(Edge {
        links,
        sessions: Arc::new(sessions),
        signing,
        producer,
        seal: Arc::new(seal),
        pool: Pool::new("edge", None).context("start pool")?,
        declines: Declines::default(),
        health,
        bodies: Arc::new(Semaphore::new((config.bodies_bytes_max / limits::KIB as u64) as usize)),
        bodies_bytes_max: config.bodies_bytes_max,
    });
    let sending = Arc::clone(&edge);
    let until = shutdown.clone();
    tokio::spawn(async move {
        while until.sleep(config.declines_interval).await {
            sending.declines.send(&sending.producer, &sending.seal).await;
        }
    });
    let serving = Arc::clone(&edge);
    http_server::serve(listener, &shutdown, move |request| {
        let edge = Arc::clone(&serving);
        async move { edge.answer(request).await }
    })
    .await;
    if tokio::time::timeout(shutdown.grace, edge.declines.send(&edge.producer, &edge.seal)).await.is_err() {
        tracing::warn!("sums of declines were still on their way after the grace");
    }
    edge.producer.flush(shutdown.grace).await.context("flush producer")?;
    Ok(())
}

fn keyring(keys: &EdgeKeys) -> anyhow::Result<(Verifiers, Verifiers, Signing)> {
    let (mut links, mut sessions) = (Verifiers::default(), Verifiers::default());
    for key in &keys.link_keys {
        links.add(&key.kid, &key.bytes().context("link key is not 32 bytes in base64")?)?;
    }
    let secret = keys.session_signing.bytes().context("session key is not 32 bytes in base64")?;
    let signing = Signing::new(keys.session_signing.kid.clone(), &secret);
    sessions.add(&keys.session_signing.kid, &signing.public())?;
    for key in &keys.session_keys {
        sessions.add(&key.kid, &key.bytes().context("session key is not 32 bytes in base64")?)?;
    }
    for kid in &keys.retired {
        links.retire(kid);
        sessions.retire(kid);
    }
    Ok((links, sessions, signing))
}

/// What a batch is made of before its events are read.
struct Envelope {
    claims: SessionClaims,
    place: Place,
    events: Bytes,
}

/// A batch that is ready for the log.
struct Batch {
    session: SessionId,
    place: Place,
    facts: schemas::BatchFacts,
    value: Vec<u8>,
}

impl Edge {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        let origin = request.headers().get(header::ORIGIN).cloned();
        let (mut answer, template, preflight) = match answers::asked(&request) {
            Asked::Preflight => (answers::empty(StatusCode::NO_CONTENT), "preflight", true),
            Asked::Refused(refusal, allow) => {
                let mut answer = self.refuse(&refusal);
                if let Some(methods) = allow {
                    answers::allow(&mut answer, methods);
                }
                (answer, "none", false)
            }
            Asked::Route(route) => {
                let (head, body) = answers::split(request);
                let answer = match route {
                    Route::Consent => self.consent(head, body).await,
                    Route::Events => self.events(head, body).await,
                    Route::Session => self.session(&head),
                };
                (answer.unwrap_or_else(|refusal| self.refuse(&refusal)), route.template(), false)
            }
        };
        answers::add_cors(&mut answer, origin, preflight);
        let status = answer.status().as_str().to_owned();
        ::metrics::counter!(metrics::REQUESTS, "route" => template, "status" => status).increment(1);
        answer
    }

    fn refuse(&self, refusal: &Refusal) -> Answer {
        ::metrics::counter!(metrics::REFUSALS, "code" => refusal.code.as_str()).increment(1);
        answers::refused(refusal)
    }

    async fn consent(&self, head: Head, body: Incoming) -> Result<Answer, Refusal> {
        self.check_log()?;
        let (body, _room) = body::read(body, limits::SMALL_BODY_BYTES_MAX, &self.bodies).await?;
        let request: ConsentRequest =
            serde_json::from_slice(&body).map_err(|_| Refusal::from(ErrorCode::BodyMalformed))?;
        let now_ms = now_ms();
        let link = self.links.link(&request.link, now_ms / 1000)?;
        let origin = answers::text(&head.headers, header::ORIGIN);
        let attempt = match &request.attempt {
            Some(attempt) => attempt.clone(),
            None => random_attempt()?,
        };
        match admission::consent(&request, &link, origin, &attempt, now_ms)? {
            ConsentOutcome::CountDecline(workspace) => {
                self.declines.count(workspace, now_ms);
                ::metrics::counter!(metrics::DECLINES).increment(1);
                Ok(answers::empty(StatusCode::NO_CONTENT))
            }
            ConsentOutcome::Begin { acceptance, claims } => {
                // The session's first record; only then may anything be sent.
                let value = sealed(&self.seal, claims.ses, &acceptance, &[])?;
                self.producer.send(claims.ses.as_bytes(), &value).await?;
                let expires_at = expires_at(&claims);
                let response = ConsentResponse {
                    session_id: claims.ses,
                    token: self.signing.session(&claims),
                    expires_at,
                    capture: Capture::of(claims.msk.as_ref()),
                };
                Ok(answers::json(StatusCode::CREATED, &response))
            }
        }
    }

    fn session(&self, head: &Head) -> Result<Answer, Refusal> {
        let claims = self.verify_bearer(head)?;
        let response = SessionResponse {
            session_id: claims.ses,
            expires_at: expires_at(&claims),
            capture: Capture::of(claims.msk.as_ref()),
        };
        Ok(answers::json(StatusCode::OK, &response))
    }

    async fn events(&self, head: Head, body: Incoming) -> Result<Answer, Refusal> {
        let form = BodyForm::parse(answers::text(&head.headers, header::CONTENT_TYPE))?;
        let encoding = Encoding::parse(answers::text(&head.headers, header::CONTENT_ENCODING))?;
        // Whoever can prove its right by headers does so before its body is read.
        let proven = match form {
            BodyForm::Events => Some((self.verify_bearer(&head)?, Place::from_query(&head.query)?)),
            BodyForm::Beacon => None,
        };
        self.check_log()?;
        let (wire, room) = body::read(body, limits::BODY_BYTES_MAX, &self.bodies).await?;
        self.show_bodies();
        ::metrics::counter!(metrics::BYTES_RECEIVED).increment(wire.len() as u64);
        let sessions = Arc::clone(&self.sessions);
        let origin = answers::text(&head.headers, header::ORIGIN).map(str::to_owned);
        let seal = Arc::clone(&self.seal);
        // Decoding, reading and sealing are one job: what a small body grows to is held by the pool's few threads, and never
        // by requests that wait for their turn.
        let reading = move || {
            let decoded = body::decode(wire, encoding)?;
            let Envelope { claims, place, events } = match proven {
                Some((claims, place)) => Envelope { claims, place, events: decoded },
                None => open_beacon(&sessions, origin.as_deref(), &decoded)?,
            };
            let (facts, frame) = read_batch(&events)?;
            let header = admission::batch_header(&claims, place, facts.clone());
            let value = sealed(&seal, claims.ses, &header, &frame)?;
            Ok::<_, Refusal>(Batch { session: claims.ses, place, facts, value })
        };
        let Batch { session, place, facts, value } = self.on_pool(reading).await??;
        self.producer.send(session.as_bytes(), &value).await?;
        drop(room);
        ::metrics::counter!(metrics::EVENTS).increment(u64::from(facts.events));
        ::metrics::counter!(metrics::BYTES_DECODED).increment(u64::from(facts.raw_bytes));
        let response = EventsResponse { stream: place.at.stream(), seq: place.at.seq() };
        Ok(answers::json(StatusCode::ACCEPTED, &response))
    }

    fn verify_bearer(&self, head: &Head) -> Result<SessionClaims, Refusal> {
        let token = admission::bearer(answers::text(&head.headers, header::AUTHORIZATION))?;
        verify(&self.sessions, token, answers::text(&head.headers, header::ORIGIN))
    }

    /// Refuses at once while Kafka does not answer, instead of letting every request wait for its time-out.
    fn check_log(&self) -> Result<(), Refusal> {
        if self.health.ready().0 { Ok(()) } else { Err(ErrorCode::Backpressure.into()) }
    }

    fn show_bodies(&self) {
        let held = self.bodies_bytes_max.saturating_sub((self.bodies.available_permits() * limits::KIB) as u64);
        ::metrics::gauge!(metrics::BODIES_HELD).set(held as f64);
    }

    async fn on_pool<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Refusal> {
        self.pool.run(work).await.map_err(|_| ErrorCode::Internal.into())
    }
}

/// A session's record, ready for the log.
fn sealed(seal: &Seal, session: SessionId, header: &Header, payload: &[u8]) -> Result<Vec<u8>, Refusal> {
    // Nothing leaves that is not sealed.
    seal.seal(session.as_bytes(), header, payload).map_err(|error| {
        tracing::error!(%error, "seal record");
        ErrorCode::Internal.into()
    })
}

fn verify(sessions: &Verifiers, token: &str, origin: Option<&str>) -> Result<SessionClaims, Refusal> {
    let claims = sessions.session(token, now_ms() / 1000)?;
    admission::check_session_origin(&claims, origin)?;
    Ok(claims)
}

/// Takes a beacon's first line off, and proves its right.
fn open_beacon(sessions: &Verifiers, origin: Option<&str>, body: &Bytes) -> Result<Envelope, Refusal> {
    let line_len = body.iter().position(|byte| *byte == b'\n').unwrap_or(body.len());
    let beacon: BeaconHead =
        serde_json::from_slice(&body[..line_len]).map_err(|_| Refusal::from(ErrorCode::BodyMalformed))?;
    let claims = verify(sessions, &beacon.token, origin)?;
    let place = Place::new(beacon.stream, beacon.seq, beacon.end)?;
    Ok(Envelope { claims, place, events: body.slice((line_len + 1).min(body.len())..) })
}

/// Validates a batch's events and makes their frame.
fn read_batch(body: &[u8]) -> Result<(schemas::BatchFacts, Vec<u8>), Refusal> {
    let batch = events::read(body)?;
    if batch.payload.is_empty() {
        return Ok((batch.facts, Vec::new()));
    }
    let frame = codec::compress(&batch.payload, RECORD_ZSTD_LEVEL);
    if frame.len() > limits::RECORD_PAYLOAD_BYTES_MAX {
        return Err(Refusal::limit(ErrorCode::EventTooLarge, limits::RECORD_PAYLOAD_BYTES_MAX));
    }
    Ok((batch.facts, frame))
}

fn random_attempt() -> Result<String, Refusal> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|_| Refusal::from(ErrorCode::Internal))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

fn expires_at(claims: &SessionClaims) -> OffsetDateTime {
    i64::try_from(claims.exp)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}
