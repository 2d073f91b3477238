//! The edge's loop: takes requests, lets the engine decide, carries it out.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use engine::admission::{self, BodyForm, ConsentOutcome, Encoding, Place};
use engine::rates::{Cost, Rates};
use http::{Request, StatusCode, header};
use hyper::body::Incoming;
use masking::RuleBook;
use schemas::codes::Refusal;
use schemas::http::{
    BeaconHead, Capture, ConsentRequest, ConsentResponse, EventsResponse, SessionLimits, SessionResponse, WithdrawHead,
    WithdrawResponse,
};
use schemas::plan::Limits;
use schemas::record::{Header, Masking};
use schemas::token::SessionClaims;
use schemas::{ErrorCode, SessionId, SessionKey, codec, limits};
use service_kit::health::Part;
use service_kit::http_server;
use service_kit::keys::Watched;
use service_kit::pool::Pool;
use service_kit::service::Surroundings;
use service_kit::shutdown::Shutdown;
use service_kit::time::{Monotonic, now_ms, now_s};
use time::OffsetDateTime;

use crate::body::Rooms;
use crate::declines::Declines;
use crate::http::{Answer, Asked, Head, Route};
use crate::kafka::Producer;
use crate::news::Board;
use crate::seal::Seal;
use crate::tokens::Tokens;
use crate::{Config, body, http as answers, metrics};

/// zstd's level for records: the fastest, since the compactor compresses again.
const RECORD_ZSTD_LEVEL: i32 = 1;

/// What a record costs a rate of bytes beside its events: header, seal, and what each service does for it.
const RECORD_COST_BYTES: u64 = 256;

struct Edge {
    gate: Arc<Gate>,
    producer: Producer,
    seal: Arc<Seal>,
    pool: Pool,
    declines: Declines,
    log: Part,
    rooms: Rooms,
    rules: Arc<RuleBook>,
}

/// What decides whether a session's request is let in.
struct Gate {
    tokens: Tokens,
    board: Board,
    rates: Mutex<Rates>,
    /// Rates go by a clock that nobody sets.
    clock: Monotonic,
}

impl Gate {
    /// Whose token this is, if that may send now. The engine decides.
    fn admit(&self, token: &str, origin: Option<&str>) -> Result<Arc<SessionClaims>, Refusal> {
        let now_ms = now_ms();
        let claims = self.tokens.session(token, now_ms / 1000)?;
        self.board.read(|standing| admission::check_session(&claims, standing, origin, now_ms))?;
        Ok(claims)
    }

    /// Whether the session may send more now: asked before its body costs anything.
    fn check_rate(&self, claims: &SessionClaims) -> Result<(), Refusal> {
        let (limits, edges) = self.held_to(claims);
        self.rates().check(&key_of(claims), &limits, edges, self.clock.now_ms()).map_err(counted)
    }

    /// Takes what costs this, or refuses it. A record has its cost also where nothing is in it.
    fn take(&self, claims: &SessionClaims, cost: Cost) -> Result<(), Refusal> {
        let (limits, edges) = self.held_to(claims);
        let cost = Cost { events: cost.events.max(1), bytes: cost.bytes.saturating_add(RECORD_COST_BYTES) };
        self.rates().take(&key_of(claims), &limits, edges, cost, self.clock.now_ms()).map_err(counted)
    }

    fn held_to(&self, claims: &SessionClaims) -> (Limits, u64) {
        self.board.read(|standing| (standing.limits(claims.ws, claims.lim), standing.edges(now_s())))
    }

    fn rates(&self) -> std::sync::MutexGuard<'_, Rates> {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn counted(refusal: Refusal) -> Refusal {
    let (which, what) = (refusal.which.unwrap_or_default(), refusal.field.unwrap_or_default());
    ::metrics::counter!(metrics::RATE_LIMITED, "which" => which, "what" => what).increment(1);
    refusal
}

fn key_of(claims: &SessionClaims) -> SessionKey {
    SessionKey { workspace: claims.ws, session: claims.ses }
}

/// Serves until the shutdown, then drains: what was taken in is acknowledged or refused, and sums of declines are sent.
pub async fn run(config: Config, surroundings: Surroundings) -> anyhow::Result<()> {
    let Surroundings { listener, health, shutdown } = surroundings;
    let listener = listener.context("the edge has a public address")?;
    service_kit::telemetry::describe(metrics::ALL);
    let tokens = Tokens::new(Watched::start(config.keys_file.clone(), &shutdown)?)?;
    // The news are followed until nothing is taken any more.
    let last = Shutdown::new(shutdown.grace);
    let (board, told) =
        Board::start(&config.control, health.part("control"), &last).context("follow control entries")?;
    let transport = Watched::start(config.transport_keys_file.clone(), &shutdown)?;
    let seal = Seal::new(transport, &config.kafka.topic_events).context("make the seal of records")?;
    let producer = Producer::new(&config.kafka).context("make producer")?;
    let log = health.part("kafka");
    tokio::spawn(producer.clone().watch(config.kafka.clone(), log.clone(), shutdown.clone()));
    let edge = Arc::new(Edge {
        gate: Arc::new(Gate { tokens, board, rates: Mutex::default(), clock: Monotonic::start() }),
        producer,
        seal: Arc::new(seal),
        pool: Pool::new("edge", None).context("start pool")?,
        declines: Declines::default(),
        log,
        rooms: Rooms::new(config.bodies_bytes_max),
        rules: Arc::default(),
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
    last.begin();
    if tokio::time::timeout(shutdown.grace, told).await.is_err() {
        tracing::warn!("news were still on their way after the grace");
    }
    Ok(())
}

/// What a batch is made of before its events are read.
struct Envelope {
    claims: Arc<SessionClaims>,
    place: Place,
    events: Bytes,
}

/// A batch that is ready for the log.
struct Batch {
    claims: Arc<SessionClaims>,
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
                    Route::Withdraw => self.withdraw(head, body).await,
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
        self.check_open()?;
        let (body, _room) = body::read(body, limits::SMALL_BODY_BYTES_MAX, &self.rooms.of_small()).await?;
        let request: ConsentRequest =
            serde_json::from_slice(&body).map_err(|_| Refusal::from(ErrorCode::BodyMalformed))?;
        let now_ms = now_ms();
        let Gate { tokens, board, .. } = &*self.gate;
        // A slow body may have taken long.
        board.check_news()?;
        let link = tokens.link(&request.link, now_ms / 1000)?;
        let origin = answers::text(&head.headers, header::ORIGIN);
        let attempt = match &request.attempt {
            Some(attempt) => attempt.clone(),
            None => random_attempt()?,
        };
        match board.read(|standing| admission::consent(&request, &link, standing, origin, &attempt, now_ms))? {
            ConsentOutcome::CountDecline(workspace) => {
                self.declines.count(workspace, now_ms);
                ::metrics::counter!(metrics::DECLINES).increment(1);
                Ok(answers::empty(StatusCode::NO_CONTENT))
            }
            ConsentOutcome::Begin { acceptance, claims } => {
                // Asked again and again, a consent costs what a batch costs.
                self.gate.take(&claims, Cost { events: 1, bytes: 0 })?;
                let is_new = board
                    .write(|standing| standing.begin(&link, claims.ses, &claims.ntc, now_s()))
                    .map_err(|refusal| if refusal.which.is_some() { counted(refusal) } else { refusal })?;
                // The session's first record; only then may anything be sent.
                let value = sealed(&self.seal, claims.ses, &acceptance, &[])?;
                if let Err(refusal) = self.producer.send(claims.ses.as_bytes(), &value).await {
                    if is_new && refusal.code == ErrorCode::Backpressure {
                        board.write(|standing| standing.give_back(&link, &claims.ses));
                    }
                    return Err(refusal);
                }
                if is_new {
                    board.tell_begun(key_of(&claims), link.lnk, now_ms);
                }
                self.check_still(&claims)?;
                let expires_at = expires_at(&claims);
                let response = ConsentResponse {
                    session_id: claims.ses,
                    token: tokens.sign(&claims),
                    expires_at,
                    capture: Capture::of(claims.msk.as_ref()),
                };
                Ok(answers::json(StatusCode::CREATED, &response))
            }
        }
    }

    fn session(&self, head: &Head) -> Result<Answer, Refusal> {
        self.gate.board.check_news()?;
        let claims = self.admit_bearer(head)?;
        let limits = self.gate.board.read(|standing| standing.limits(claims.ws, claims.lim));
        let response = SessionResponse {
            session_id: claims.ses,
            expires_at: expires_at(&claims),
            capture: Capture::of(claims.msk.as_ref()),
            limits: SessionLimits::of(&limits),
        };
        Ok(answers::json(StatusCode::OK, &response))
    }

    /// Takes consent back. Never refused for what this edge cannot know right now, and never answered with 202 before Kafka has it.
    async fn withdraw(&self, head: Head, body: Incoming) -> Result<Answer, Refusal> {
        let (body, _room) = body::read(body, limits::SMALL_BODY_BYTES_MAX, &self.rooms.of_small()).await?;
        let authorization = answers::text(&head.headers, header::AUTHORIZATION);
        let claims = if authorization.is_none() && !body.is_empty() {
            // A beacon has no headers.
            let head: WithdrawHead =
                serde_json::from_slice(&body).map_err(|_| Refusal::from(ErrorCode::BodyMalformed))?;
            self.gate.tokens.withdrawal(&head.token)?
        } else {
            self.gate.tokens.withdrawal(admission::bearer(authorization)?)?
        };
        self.gate.board.withdraw(key_of(&claims)).await?;
        ::metrics::counter!(metrics::WITHDRAWALS).increment(1);
        Ok(answers::json(StatusCode::ACCEPTED, &WithdrawResponse { session_id: claims.ses }))
    }

    async fn events(&self, head: Head, body: Incoming) -> Result<Answer, Refusal> {
        let form = BodyForm::parse(answers::text(&head.headers, header::CONTENT_TYPE))?;
        let encoding = Encoding::parse(answers::text(&head.headers, header::CONTENT_ENCODING))?;
        // Whoever can prove its right by headers does so before its body is read.
        let proven = match form {
            BodyForm::Events => Some((self.admit_bearer(&head)?, Place::from_query(&head.query)?)),
            BodyForm::Beacon => None,
        };
        self.check_open()?;
        if let Some((claims, _)) = &proven {
            self.gate.check_rate(claims)?;
        }
        let rooms = match &proven {
            Some((claims, _)) => self.rooms.of(claims.ws),
            None => self.rooms.of_strangers(),
        };
        let (wire, room) = body::read(body, limits::BODY_BYTES_MAX, &rooms).await?;
        ::metrics::gauge!(metrics::BODIES_HELD).set(self.rooms.held_bytes() as f64);
        ::metrics::counter!(metrics::BYTES_RECEIVED).increment(wire.len() as u64);
        let gate = Arc::clone(&self.gate);
        let origin = answers::text(&head.headers, header::ORIGIN).map(str::to_owned);
        let (seal, rules) = (Arc::clone(&self.seal), Arc::clone(&self.rules));
        // Decoding, reading and sealing are one job: what a small body grows to is held by the pool's few threads, and never
        // by requests that wait for their turn.
        let reading = move || {
            let decoded = body::decode(wire, encoding)?;
            let Envelope { claims, place, events } = match proven {
                Some((claims, place)) => Envelope { claims, place, events: decoded },
                None => open_beacon(&gate, origin.as_deref(), &decoded)?,
            };
            let (masking, facts, frame) = read_batch(&events, &claims, &rules)?;
            gate.take(&claims, Cost { events: facts.events.into(), bytes: facts.raw_bytes.into() })?;
            let header = admission::batch_header(&claims, place, masking, facts.clone());
            let value = sealed(&seal, claims.ses, &header, &frame)?;
            Ok::<_, Refusal>(Batch { claims, place, facts, value })
        };
        let Batch { claims, place, facts, value } = self.on_pool(reading).await??;
        // A slow body may have taken long: what was heard meanwhile counts.
        self.check_still(&claims)?;
        self.producer.send(claims.ses.as_bytes(), &value).await?;
        drop(room);
        // Nothing is acknowledged behind a withdrawal's answer, although it may be in the log: the batcher drops it. Nor by an edge
        // that does not know any more whether there was one.
        self.check_still(&claims).map_err(|refusal| match refusal.code {
            ErrorCode::KeysUnavailable => ErrorCode::DeliveryUnknown.into(),
            _ => refusal,
        })?;
        ::metrics::counter!(metrics::EVENTS).increment(u64::from(facts.events));
        ::metrics::counter!(metrics::BYTES_DECODED).increment(u64::from(facts.raw_bytes));
        let response = EventsResponse { stream: place.at.stream(), seq: place.at.seq() };
        Ok(answers::json(StatusCode::ACCEPTED, &response))
    }

    fn admit_bearer(&self, head: &Head) -> Result<Arc<SessionClaims>, Refusal> {
        let token = admission::bearer(answers::text(&head.headers, header::AUTHORIZATION))?;
        self.gate.admit(token, answers::text(&head.headers, header::ORIGIN))
    }

    fn check_still(&self, claims: &SessionClaims) -> Result<(), Refusal> {
        self.gate.board.check_news()?;
        self.gate.board.read(|standing| standing.check_session(claims)).map_err(Refusal::from)
    }

    /// Refuses at once what cannot be taken: while Kafka does not answer, instead of letting every request wait for its time-out;
    /// and while it is not known who took consent back.
    fn check_open(&self) -> Result<(), Refusal> {
        if !self.log.is_up() {
            return Err(ErrorCode::Backpressure.into());
        }
        self.gate.board.check_news()
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

/// Takes a beacon's first line off, and proves its right.
fn open_beacon(gate: &Gate, origin: Option<&str>, body: &Bytes) -> Result<Envelope, Refusal> {
    let line_len = body.iter().position(|byte| *byte == b'\n').unwrap_or(body.len());
    let beacon: BeaconHead =
        serde_json::from_slice(&body[..line_len]).map_err(|_| Refusal::from(ErrorCode::BodyMalformed))?;
    let claims = gate.admit(&beacon.token, origin)?;
    gate.check_rate(&claims)?;
    let place = Place::new(beacon.stream, beacon.seq, beacon.end)?;
    Ok(Envelope { claims, place, events: body.slice((line_len + 1).min(body.len())..) })
}

/// Validates a batch's events, masks in them what they decide alone, and makes their frame.
fn read_batch(
    body: &[u8],
    claims: &SessionClaims,
    rules: &RuleBook,
) -> Result<(Masking, schemas::BatchFacts, Vec<u8>), Refusal> {
    let json = claims.msk.as_ref().map(serde_json::Value::to_string);
    let batch = masking::read(body, &rules.rules(json.as_deref()))?;
    ::metrics::counter!(metrics::MASKED).increment(u64::from(batch.facts.masked));
    ::metrics::counter!(metrics::DROPPED).increment(u64::from(batch.facts.dropped));
    let masking = Masking { rules: json, needs_state: batch.needs_state };
    if batch.payload.is_empty() {
        return Ok((masking, batch.facts, Vec::new()));
    }
    let frame = codec::compress(&batch.payload, RECORD_ZSTD_LEVEL);
    if frame.len() > limits::RECORD_PAYLOAD_BYTES_MAX {
        return Err(Refusal::limit(ErrorCode::EventTooLarge, limits::RECORD_PAYLOAD_BYTES_MAX));
    }
    Ok((masking, batch.facts, frame))
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
