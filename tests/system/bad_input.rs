//! What the edge refuses, and how.

use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use devstack::DeploymentOptions;
use ed25519_dalek::{Signer as _, SigningKey};
use reqwest::Method;
use schemas::codes::Problem;
use schemas::token::{self, LinkClaims, SessionClaims, TokenType};
use schemas::{ErrorCode, limits};
use serde_json::{Value, json};
use service_kit::keys;
use service_kit::keys::tokens::{self, ControlKeys, EdgeKeys, RetiredKey, SecretKey};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use virtual_sdk::sdk::random_attempt;
use virtual_sdk::{Encoding, Form, Seen, Session, until};

use crate::harness::{NOTICE_VERSION, SOON, System, run};
use crate::load::{self, small_batch};

/// In every refused request, where it may be echoed; the edge never does.
const MARKER: &str = "PLANTED-MARKER-7f3a";
const ORIGIN: &str = "https://app.example";
/// What an edge that holds bombs back needs at most, in a debug build.
const EDGE_BYTES_MAX: u64 = 400 * limits::MIB as u64;

/// A request that must be refused.
struct Case {
    name: &'static str,
    method: Method,
    path: String,
    headers: Vec<(&'static str, String)>,
    body: Content,
    expect: ErrorCode,
    /// The event that the refusal has to point at.
    index: Option<u64>,
}

enum Content {
    Whole(Vec<u8>),
    /// Only the length of a body, and nothing of it.
    Announced(usize),
    /// A body of this length without saying so, and without an end.
    Endless(usize),
}

/// Goal: whatever is wrong with a request, it is refused with the code that stands for it, readable for a browser's script,
/// without an echo, within bounded memory, and leaves nothing. Method: a table of requests at the real edge; its memory is
/// watched meanwhile; then the session holds exactly the good batches.
#[test]
fn bad_input_is_refused_with_its_code() -> Result<()> {
    run(DeploymentOptions::named("badinput"), &[], async |system| {
        let (sdk, link) = (system.sdk(1)?, system.link("badinput").await?);
        let session = load::begin(system, &sdk, &link).await?;
        let good = small_batch(session.id, 0, 0, false, 100)?;
        load::send(system, &sdk, &session, &good, Form::Array, Encoding::Identity).await?;

        let forger = Forger::new(system, &session, &link.token)?;
        retire_a_key(system, &forger).await?;
        let mut cases = bodies(&session)?;
        cases.extend(routes(&session));
        cases.extend(tokens(&session, &forger)?);
        cases.extend(consents(&forger)?);
        let pid = system.deployment.supervisor.pid(&system.service("ingest-edge", 1)).context("the edge runs")?;
        let (done, most) = (AtomicBool::new(false), AtomicU64::new(0));
        let watching = async {
            let mut looks = tokio::time::interval(Duration::from_millis(5));
            while !done.load(Ordering::Acquire) {
                looks.tick().await;
                most.fetch_max(resident_bytes(pid)?, Ordering::Relaxed);
            }
            anyhow::Ok(())
        };
        let asking = async {
            let edge = system.url("ingest-edge", 1)?;
            let client = reqwest::Client::builder().no_proxy().build()?;
            let mut wrong = Vec::new();
            for case in cases {
                let name = case.name;
                if let Err(error) = check(&client, &edge, case).await {
                    wrong.push(format!("{name}: {error:#}"));
                }
            }
            done.store(true, Ordering::Release);
            ensure!(wrong.is_empty(), "{} cases are wrong:\n{}", wrong.len(), wrong.join("\n"));
            Ok(())
        };
        let (watched, asked) = tokio::join!(watching, asking);
        asked?;
        watched?;
        let most = most.into_inner();
        ensure!(most > 0 && most < EDGE_BYTES_MAX, "the edge held {} MiB", most / limits::MIB as u64);
        ensure!(system.deployment.supervisor.pid(&system.service("ingest-edge", 1)) == Some(pid), "the edge died");

        let good = small_batch(session.id, 0, 1, true, 100)?;
        load::send(system, &sdk, &session, &good, Form::Lines, Encoding::Zstd).await?;
        let comparison = load::compare(system, session.id, SOON).await?;
        ensure!(comparison.read == 8, "{comparison}");
        let sessions = system.count("select count(*) from session").await?;
        ensure!(sessions == 1, "{sessions} sessions are stored, and one was begun");
        Ok(())
    })
}

fn resident_bytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("read status of the edge")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("find VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
}

/// What came back.
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: String,
}

async fn check(client: &reqwest::Client, edge: &str, mut case: Case) -> Result<()> {
    if !case.headers.iter().any(|(name, _)| *name == "origin") {
        case.headers.push(("origin", ORIGIN.to_owned()));
    }
    case.headers.push(("x-marker", MARKER.to_owned()));
    let (expect, index) = (case.expect, case.index);
    expect_problem(&ask(client, edge, case).await?, expect, index)
}

async fn ask(client: &reqwest::Client, edge: &str, case: Case) -> Result<Answer> {
    let body = match case.body {
        Content::Whole(body) => body,
        // A client that writes on while the edge refuses and closes may lose the answer, so these stop to listen.
        Content::Announced(length) => return ask_raw(edge, &case, &format!("content-length: {length}"), 0).await,
        Content::Endless(length) => return ask_raw(edge, &case, "transfer-encoding: chunked", length).await,
    };
    let mut request = client.request(case.method, format!("{edge}{}", case.path)).body(body);
    for (name, value) in case.headers {
        request = request.header(name, value);
    }
    let answer = request.send().await.map_err(|error| anyhow!("no answer: {error:?}"))?;
    let text = |value: &reqwest::header::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let headers = answer.headers().iter().map(|(name, value)| (name.to_string(), text(value))).collect();
    Ok(Answer { status: answer.status().as_u16(), headers, body: answer.text().await.context("read body")? })
}

async fn ask_raw(edge: &str, case: &Case, framing: &str, length: usize) -> Result<Answer> {
    const PIECE: usize = 64 * limits::KIB;
    let address = edge.strip_prefix("http://").context("an address without TLS")?;
    let mut head = format!("{} {} HTTP/1.1\r\nhost: {address}\r\n{framing}\r\n", case.method, case.path);
    for (name, value) in &case.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut socket = TcpStream::connect(address).await.context("connect")?;
    socket.write_all(format!("{head}\r\n").as_bytes()).await.context("send head")?;
    let mut left = length;
    while left > 0 {
        let piece = left.min(PIECE);
        let chunk = [format!("{piece:x}\r\n").as_bytes(), &vec![b' '; piece], b"\r\n"].concat();
        socket.write_all(&chunk).await.context("send chunk")?;
        left -= piece;
    }
    let mut answer = Vec::new();
    while !is_whole(&answer) {
        ensure!(socket.read_buf(&mut answer).await.context("read answer")? > 0, "the answer ends early");
    }
    let text = String::from_utf8(answer)?;
    let (head, body) = text.split_once("\r\n\r\n").context("a head")?;
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).context("a status")?.parse()?;
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
    Ok(Answer { status, headers: headers.collect(), body: body.to_owned() })
}

/// Whether head and body of an answer with a length are there.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    length.is_some_and(|length| body.len() >= length)
}

fn expect_problem(answer: &Answer, expect: ErrorCode, index: Option<u64>) -> Result<()> {
    let Answer { status, headers, body } = answer;
    let header = |wanted: &str| {
        headers.iter().find_map(|(name, value)| (name == wanted).then_some(value.as_str())).unwrap_or_default()
    };
    let echoed = headers.iter().any(|(_, value)| value.contains(MARKER));
    ensure!(!echoed && !body.contains(MARKER), "the marker came back");
    let kind = header("content-type");
    ensure!(kind == "application/problem+json", "{status} came as {kind:?}: {body}");
    let problem: Problem = serde_json::from_str(body).context("decode problem")?;
    ensure!(problem.code == expect.as_str(), "wanted {}, got {status} {}", expect.as_str(), problem.code);
    ensure!(*status == expect.status() && problem.status == *status, "{} came with status {status}", problem.code);
    ensure!(problem.index == index, "it points at event {:?}, not at {index:?}", problem.index);
    let cors = header("access-control-allow-origin");
    ensure!(cors == ORIGIN, "the CORS header is {cors:?}");
    let allow = header("allow");
    ensure!((expect == ErrorCode::MethodNotAllowed) == allow.contains("OPTIONS"), "Allow is {allow:?}");
    ensure!(!problem.detail.is_empty(), "it says nothing of what to do");
    Ok(())
}

fn bearer(token: &str) -> (&'static str, String) {
    ("authorization", format!("Bearer {token}"))
}

/// A batch that is refused for its body.
fn batch(session: &Session, name: &'static str, body: Vec<u8>, expect: ErrorCode) -> Case {
    let (method, path) = (Method::POST, "/v1/events?stream=9&seq=0".to_owned());
    let headers = vec![bearer(&session.token), ("content-type", "application/json".to_owned())];
    Case { name, method, path, headers, body: Content::Whole(body), expect, index: None }
}

fn encoded(mut case: Case, encoding: &str) -> Case {
    case.headers.push(("content-encoding", encoding.to_owned()));
    case
}

fn gzip(raw: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(raw)?;
    Ok(encoder.finish()?)
}

/// Frames of zeros that say nothing of their length, `raw` MiB once decoded.
fn bomb(encoding: &str, raw: usize) -> Result<Vec<u8>> {
    let zeros = vec![0; limits::MIB];
    match encoding {
        "gzip" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            for _ in 0..raw {
                encoder.write_all(&zeros)?;
            }
            Ok(encoder.finish()?)
        }
        _ => {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3)?;
            for _ in 0..raw {
                encoder.write_all(&zeros)?;
            }
            Ok(encoder.finish()?)
        }
    }
}

fn event() -> String {
    format!(r#"{{"type":3,"timestamp":1,"data":"{MARKER}"}}"#)
}

fn bodies(session: &Session) -> Result<Vec<Case>> {
    use ErrorCode::*;
    let case = |name, body: Vec<u8>, expect| batch(session, name, body, expect);
    let text = |name, body: String, expect| batch(session, name, body.into_bytes(), expect);
    let event = event();
    let good = format!("[{event}]").into_bytes();
    let deep = "[".repeat(limits::JSON_DEPTH_MAX + 10);
    let shut = "]".repeat(limits::JSON_DEPTH_MAX + 10);
    let mut pointing = text("an event without a type", format!(r#"[{event},{event},{{"{MARKER}":1}}]"#), EventInvalid);
    pointing.index = Some(2);
    let mut not_object = text("an event that is a number", format!("[{event},7]"), EventInvalid);
    not_object.index = Some(1);
    let mut in_lines = text("a line without a timestamp", format!("{event}\n{{\"type\":3}}\n"), EventInvalid);
    in_lines.index = Some(1);
    let large = limits::BODY_BYTES_MAX + 1;
    let announced =
        Case { body: Content::Announced(large), ..case("too large, declared", Vec::new(), PayloadTooLarge) };
    let endless = Case { body: Content::Endless(large), ..case("too large, chunked", Vec::new(), PayloadTooLarge) };
    let cut = |mut body: Vec<u8>| {
        body.truncate(body.len() - 5);
        body
    };
    let many = format!("[{}{event}]", format!("{event},").repeat(limits::BATCH_EVENTS_MAX));
    let mut cases = vec![
        text("not JSON", format!("[{{{MARKER}]"), BodyMalformed),
        text("cut off", format!("[{event}"), BodyMalformed),
        text("something after the array", format!("[{event}]{MARKER}"), BodyMalformed),
        case("not UTF-8", [b"[\"\xff\xfe", MARKER.as_bytes(), b"\"]"].concat(), BodyMalformed),
        text("too deep", format!(r#"[{{"type":3,"timestamp":1,"data":{deep}{shut}}}]"#), BodyMalformed),
        announced,
        endless,
        encoded(case("too many events", gzip(many.as_bytes())?, BatchTooMany), "gzip"),
        encoded(case("gzip cut off", cut(gzip(&good)?), BodyMalformed), "gzip"),
        encoded(case("zstd cut off", cut(zstd::bulk::compress(&good, 3)?), BodyMalformed), "zstd"),
        encoded(case("no gzip at all", good.clone(), BodyMalformed), "gzip"),
        encoded(case("no zstd at all", good.clone(), BodyMalformed), "zstd"),
        encoded(case("unknown encoding", good.clone(), EncodingUnsupported), "br"),
        encoded(case("stacked encodings", good.clone(), EncodingUnsupported), "gzip, zstd"),
        pointing,
        not_object,
        in_lines,
    ];
    for (name, encoding) in [("gzip bomb", "gzip"), ("zstd bomb", "zstd")] {
        let bomb = bomb(encoding, 512)?;
        for _ in 0..3 {
            cases.push(encoded(case(name, bomb.clone(), DecodedTooLarge), encoding));
        }
    }
    let mut unknown_type = case("unknown type", good.clone(), ContentTypeUnsupported);
    unknown_type.headers[1].1 = format!("image/{MARKER}");
    cases.push(unknown_type);
    for (name, query) in [
        ("no seq", format!("stream=1&{MARKER}=1")),
        ("seq is no number", format!("seq={MARKER}")),
        ("seq is negative", "seq=-1".to_owned()),
        ("seq is too large", "seq=4294967296".to_owned()),
        ("stream is too large", "stream=2147483648&seq=0".to_owned()),
        ("seq is there twice", "seq=0&seq=1".to_owned()),
    ] {
        cases.push(Case { path: format!("/v1/events?{query}"), ..case(name, good.clone(), SeqInvalid) });
    }
    for (name, head, expect) in [
        ("beacon without a head", MARKER.to_owned(), BodyMalformed),
        ("beacon with a head too much", format!(r#"{{"token":"x","seq":0,"{MARKER}":1}}"#), BodyMalformed),
        ("beacon with a bad token", format!(r#"{{"token":"{MARKER}","seq":0}}"#), TokenMalformed),
        ("beacon with a bad seq", format!(r#"{{"token":"{}","seq":4294967296}}"#, session.token), SeqInvalid),
    ] {
        let headers = vec![("content-type", "text/plain".to_owned())];
        let body = Content::Whole(format!("{head}\n{event}\n").into_bytes());
        cases.push(Case { path: "/v1/events".into(), headers, body, ..case(name, Vec::new(), expect) });
    }
    Ok(cases)
}

fn routes(session: &Session) -> Vec<Case> {
    use ErrorCode::*;
    let case = |name, method, path: String, expect| Case {
        method,
        path,
        ..batch(session, name, format!("[{}]", event()).into_bytes(), expect)
    };
    vec![
        case("wrong path", Method::POST, format!("/v1/{MARKER}"), NotFound),
        case("path with a slash too much", Method::POST, "/v1/events/?seq=0".into(), NotFound),
        case("GET events", Method::GET, "/v1/events?seq=0".into(), MethodNotAllowed),
        case("PUT consent", Method::PUT, "/v1/consent".into(), MethodNotAllowed),
        case("POST session", Method::POST, "/v1/session".into(), MethodNotAllowed),
        case("URI too long", Method::POST, format!("/v1/events?seq=0&x={MARKER}{}", "x".repeat(2_100)), UriTooLong),
    ]
}

/// Makes tokens with the deployment's own keys, and with others.
struct Forger {
    session_key: SecretKey,
    link_key: SecretKey,
    session: SessionClaims,
    link: LinkClaims,
}

impl Forger {
    fn new(system: &System<'_>, session: &Session, link: &str) -> Result<Self> {
        let edge: EdgeKeys = keys::read(&system.deployment.keys.join("edge-keys.json"))?;
        let control: ControlKeys = keys::read(&system.deployment.keys.join("control-keys.json"))?;
        let claims = |token: &str| -> Result<Vec<u8>> {
            Ok(URL_SAFE_NO_PAD.decode(token.split('.').nth(1).context("claims of a token")?)?)
        };
        Ok(Self {
            session_key: edge.session_signing,
            link_key: control.link_signing,
            session: serde_json::from_slice(&claims(&session.token)?)?,
            link: serde_json::from_slice(&claims(link)?)?,
        })
    }

    fn sign(&self, key: &SecretKey, header: &Value, claims: &impl serde::Serialize) -> Result<String> {
        let encode = |bytes: Vec<u8>| URL_SAFE_NO_PAD.encode(bytes);
        let signed = format!("{}.{}", encode(serde_json::to_vec(header)?), encode(serde_json::to_vec(claims)?));
        let signing = SigningKey::from_bytes(&key.bytes().context("a key has 32 bytes")?);
        let signature = signing.sign(signed.as_bytes()).to_bytes();
        Ok(token::join(signed, &signature))
    }

    fn header(alg: &str, token_type: TokenType, kid: &str) -> Value {
        json!({"alg": alg, "typ": token_type.as_str(), "kid": kid})
    }

    /// A session token that an edge would take, were there not what `change` does to its claims.
    fn session(&self, change: impl FnOnce(&mut SessionClaims)) -> Result<String> {
        let mut claims = self.session.clone();
        change(&mut claims);
        let key = &self.session_key;
        self.sign(key, &Self::header("EdDSA", TokenType::Session, &key.kid), &claims)
    }

    fn link(&self, change: impl FnOnce(&mut LinkClaims)) -> Result<String> {
        let mut claims = self.link.clone();
        change(&mut claims);
        let key = &self.link_key;
        self.sign(key, &Self::header("EdDSA", TokenType::Link, &key.kid), &claims)
    }
}

/// A key that the edge knows as retired.
const RETIRED_KID: &str = "session-retired";

/// Has the running edge know of a retired key, and waits until it does.
async fn retire_a_key(system: &System<'_>, forger: &Forger) -> Result<()> {
    let path = system.deployment.keys.join("edge-keys.json");
    let mut edge: EdgeKeys = keys::read(&path)?;
    edge.retired.push(RetiredKey::Id(RETIRED_KID.into()));
    keys::replace(&path, &edge)?;
    let header = Forger::header("EdDSA", TokenType::Session, RETIRED_KID);
    let token = forger.sign(&forger.session_key, &header, &forger.session)?;
    let url = format!("{}/v1/session", system.url("ingest-edge", 1)?);
    let client = reqwest::Client::new();
    until("the edge knows the retired key", SOON, || async {
        let Ok(answer) = client.get(&url).bearer_auth(&token).send().await else { return Seen::not_yet("no answer") };
        let problem: Problem = answer.json().await.unwrap_or_else(|_| Problem::new(ErrorCode::Internal));
        if problem.code == "token_key_revoked" { Seen::Done(()) } else { Seen::not_yet(problem.code) }
    })
    .await?;
    Ok(())
}

/// A token whose claims name the session twice, signed by the right key.
fn doubled_claim(forger: &Forger) -> Result<String> {
    let claims = serde_json::to_string(&forger.session)?;
    let doubled = claims.replacen('{', &format!(r#"{{"ses":"{}","#, forger.session.ses), 1);
    let header = serde_json::to_vec(&Forger::header("EdDSA", TokenType::Session, &forger.session_key.kid))?;
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(doubled));
    let signing = SigningKey::from_bytes(&forger.session_key.bytes().context("a key has 32 bytes")?);
    let signature = signing.sign(signed.as_bytes()).to_bytes();
    Ok(token::join(signed, &signature))
}

/// The same signature with the group's order added to its scalar: it says the same, and is not the one form that counts (RFC
/// 8032).
fn not_canonical(token: &str) -> Result<String> {
    const ORDER: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let (signed, signature) = token.rsplit_once('.').context("a token has parts")?;
    let mut signature: [u8; 64] =
        URL_SAFE_NO_PAD.decode(signature)?.try_into().ok().context("a signature has 64 bytes")?;
    let mut carry = 0u16;
    for (byte, add) in signature[32..].iter_mut().zip(ORDER) {
        carry += u16::from(*byte) + u16::from(add);
        *byte = carry.to_le_bytes()[0];
        carry >>= 8;
    }
    Ok(token::join(signed.to_owned(), &signature))
}

fn tokens(session: &Session, forger: &Forger) -> Result<Vec<Case>> {
    use ErrorCode::*;
    let (key, claims) = (&forger.session_key, &forger.session);
    let with_header = |header: Value| forger.sign(key, &header, claims);
    let typed = |alg, kid: &str| with_header(Forger::header(alg, TokenType::Session, kid));
    let honest = forger.session(|_| {})?;
    let (signed, _) = honest.rsplit_once('.').context("a token has parts")?;
    let unsigned = format!("{}.", typed("none", &key.kid)?.rsplit_once('.').context("a token has parts")?.0);
    let (others, _) = tokens::make()?;
    let others_key =
        forger.sign(&others.session_signing, &Forger::header("EdDSA", TokenType::Session, &key.kid), claims)?;
    let mut changed = honest.clone().into_bytes();
    let middle = changed.len() / 2;
    changed[middle] = if changed[middle] == b'A' { b'B' } else { b'A' };
    let far = claims.exp + 10 * 86_400;
    let mut list = vec![
        ("no token of three parts", MARKER.to_owned(), TokenMalformed),
        ("an empty signature", format!("{signed}."), TokenMalformed),
        ("a token that is too long", format!("{MARKER}{}", "x".repeat(limits::TOKEN_BYTES_MAX)), TokenMalformed),
        (
            "a header with more",
            with_header(json!({"alg": "EdDSA", "typ": "clairvio-session", "kid": key.kid, "jku": MARKER}))?,
            TokenMalformed,
        ),
        ("alg none", unsigned, TokenAlgRejected),
        ("alg none with a signature", typed("none", &key.kid)?, TokenAlgRejected),
        ("alg HS256", typed("HS256", &key.kid)?, TokenAlgRejected),
        ("alg eddsa", typed("eddsa", &key.kid)?, TokenAlgRejected),
        ("unknown kid", typed("EdDSA", MARKER)?, TokenKeyUnknown),
        ("retired kid", typed("EdDSA", RETIRED_KID)?, TokenKeyRevoked),
        ("a truncated token", honest[..honest.len() - 3].to_owned(), TokenMalformed),
        ("a claim that is there twice", doubled_claim(forger)?, TokenMalformed),
        ("a signature that is not canonical", not_canonical(&honest)?, TokenSignatureInvalid),
        ("another key's signature", others_key, TokenSignatureInvalid),
        (
            "a link's key for a session",
            forger.sign(&forger.link_key, &Forger::header("EdDSA", TokenType::Session, &key.kid), claims)?,
            TokenSignatureInvalid,
        ),
        ("a link's token", forger.link(|_| {})?, TokenAudienceInvalid),
        ("expired", forger.session(|claims| claims.exp = claims.iat - 1)?, TokenExpired),
        ("not yet valid", forger.session(|claims| (claims.iat, claims.exp) = (far, far + 60))?, TokenNotYetValid),
        ("another audience", forger.session(|claims| claims.aud = MARKER.into())?, TokenAudienceInvalid),
    ];
    list.push(("one byte changed", String::from_utf8(changed)?, TokenSignatureInvalid));
    let good = format!("[{}]", event()).into_bytes();
    let mut cases = Vec::new();
    for (name, token, expect) in list {
        let mut case = batch(session, name, good.clone(), expect);
        case.headers[0] = bearer(&token);
        cases.push(case);
    }
    for (name, header) in [("no token", None), ("no bearer", Some(format!("Basic {MARKER}")))] {
        let mut case = batch(session, name, good.clone(), TokenMissing);
        case.headers.remove(0);
        case.headers.extend(header.map(|value| ("authorization", value)));
        cases.push(case);
    }
    let mut elsewhere = batch(session, "another origin than consented", good.clone(), ConsentScope);
    elsewhere.headers[0] = bearer(&forger.session(|claims| claims.org = Some("https://consented.example".into()))?);
    cases.push(elsewhere);
    let withdrawals = [
        ("withdrawal without a token", None, "", TokenMissing),
        (
            "withdrawal with another's signature",
            Some(forger.sign(
                &tokens::make()?.0.session_signing,
                &Forger::header("EdDSA", TokenType::Session, &key.kid),
                claims,
            )?),
            "",
            TokenSignatureInvalid,
        ),
        ("withdrawal with a link's token", Some(forger.link(|_| {})?), "", TokenAudienceInvalid),
        ("withdrawal by a beacon that is none", None, MARKER, BodyMalformed),
        ("withdrawal by a beacon with more", None, r#"{"token":"x","more":1}"#, BodyMalformed),
        ("withdrawal by a beacon with a bad token", None, r#"{"token":"x"}"#, TokenMalformed),
    ];
    for (name, token, body, expect) in withdrawals {
        let mut case = batch(session, name, body.as_bytes().to_vec(), expect);
        case.path = "/v1/withdraw".into();
        case.headers = token.iter().map(|token| bearer(token)).collect();
        cases.push(case);
    }
    let mut reading = batch(session, "session without a token", Vec::new(), TokenMissing);
    (reading.method, reading.path, reading.headers) = (Method::GET, "/v1/session".into(), Vec::new());
    cases.push(reading);
    Ok(cases)
}

fn consents(forger: &Forger) -> Result<Vec<Case>> {
    use ErrorCode::*;
    let request = |link: &str| json!({"link": link, "decision": "accepted", "notice_version": NOTICE_VERSION, "attempt": random_attempt()});
    let with = |field: &str, value: Value| -> Result<Vec<u8>> {
        let mut body = request(&forger.link(|_| {})?);
        body[field] = value;
        Ok(serde_json::to_vec(&body)?)
    };
    let of = |link: String| -> Result<Vec<u8>> { Ok(serde_json::to_vec(&request(&link))?) };
    let list = vec![
        ("expired link", of(forger.link(|claims| claims.exp = claims.iat - 1)?)?, LinkExpired),
        (
            "link for another origin",
            of(forger.link(|claims| claims.org = vec!["https://other.example".into()])?)?,
            ConsentScope,
        ),
        ("session token as link", of(forger.session(|_| {})?)?, TokenAudienceInvalid),
        ("no link token", of(MARKER.into())?, TokenMalformed),
        ("link of another audience", of(forger.link(|claims| claims.aud = MARKER.into())?)?, TokenAudienceInvalid),
        ("no decision", with("decision", json!(MARKER))?, BodyMalformed),
        ("a field too much", with("extra", json!(MARKER))?, BodyMalformed),
        ("not JSON", MARKER.as_bytes().to_vec(), BodyMalformed),
        ("empty notice version", with("notice_version", json!(""))?, FieldInvalid),
        ("long notice version", with("notice_version", json!(MARKER.repeat(10)))?, FieldInvalid),
        ("long attempt", with("attempt", json!(MARKER.repeat(10)))?, FieldInvalid),
    ];
    let cases = list.into_iter().map(|(name, body, expect)| Case {
        name,
        method: Method::POST,
        path: "/v1/consent".into(),
        headers: vec![("content-type", "application/json".into())],
        body: Content::Whole(body),
        expect,
        index: None,
    });
    let mut cases: Vec<Case> = cases.collect();
    cases.push(Case {
        name: "too large a consent",
        method: Method::POST,
        path: "/v1/consent".into(),
        headers: vec![("content-type", "application/json".into())],
        body: Content::Announced(limits::SMALL_BODY_BYTES_MAX + 1),
        expect: PayloadTooLarge,
        index: None,
    });
    Ok(cases)
}
