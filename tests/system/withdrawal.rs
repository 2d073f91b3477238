//! Consent that is taken back, links that are used up or revoked, and edges that hear of it.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use devstack::DeploymentOptions;
use futures::future::{join_all, try_join_all};
use rdkafka::admin::AdminOptions;
use schemas::control::{Entry, WorkspaceRules, WorkspaceState};
use schemas::http::{LinkCreated, LinkRequest};
use schemas::limits::NEWS_SPREAD_MS;
use schemas::plan::{Limits, Plan};
use schemas::token::SessionClaims;
use serde_json::json;
use service_kit::config::kafka::ControlConfig;
use service_kit::kafka::control::Publisher;
use service_kit::keys;
use service_kit::keys::tokens::{EdgeKeys, RetiredKey};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;
use virtual_sdk::sdk::random_attempt;
use virtual_sdk::{Body, CallError, Encoding, EventsFormat, Form, Sdk, SdkOptions, Seen, Session, until};

use crate::faults::kafka_admin;
use crate::harness::{LATER, NOTICE_VERSION, SOON, System, make_control_topic, run};
use crate::load::{self, small_batch};

const NEWS_SPREAD: Duration = Duration::from_millis(NEWS_SPREAD_MS);
const EDGES: usize = 3;
/// A topic of news that is not there.
const NOWHERE: &str = "nowhere";
/// How often an edge is asked whether it knows by now.
const ASKED_EVERY: Duration = Duration::from_millis(100);

fn three_edges(name: &str) -> DeploymentOptions {
    DeploymentOptions { edges: EDGES, ..DeploymentOptions::named(name) }
}

fn sdks(system: &System<'_>) -> Result<Vec<Sdk>> {
    (1..=EDGES).map(|edge| system.sdk(edge)).collect()
}

fn code<T>(answer: &Result<T, CallError>) -> &str {
    answer.as_ref().err().map_or("taken", CallError::code)
}

/// Sends one small batch once.
async fn send_once(sdk: &Sdk, session: &Session, seq: u32) -> Result<(), CallError> {
    let batch = small_batch(session.id, 7, seq, false, 10).expect("a small batch is made");
    let body = Body::of_batch(&batch, Form::Lines, Encoding::Identity).expect("a small batch has a body");
    sdk.send(session, 7, seq, false, &body).await.map(drop)
}

/// Sends through an edge until it refuses; when the last batch that was taken had been asked for, and with what it refused.
async fn send_until_refused(sdk: &Sdk, session: &Session, seqs: std::ops::Range<u32>) -> Result<(Instant, String)> {
    let mut last_taken = Instant::now();
    for seq in seqs {
        let asked = Instant::now();
        match send_once(sdk, session, seq).await {
            Ok(()) => last_taken = asked,
            Err(error) if error.is_retryable() => {}
            Err(error) => return Ok((last_taken, error.code().to_owned())),
        }
    }
    bail!("it took everything")
}

/// Goal: once a withdrawal is answered, its edge takes nothing more of the session, no edge does 5 s later, nobody reads it, and
/// what was stored of it is gone (P2; bound of the design: 5 s). Method: three edges are sent batches on and on while the end
/// user withdraws at the first of them.
#[test]
fn p02_a_withdrawal_ends_a_session_everywhere() -> Result<()> {
    run(three_edges("withdrawal"), &[], async |system| {
        let sdks = sdks(system)?;
        let link = system.link("withdrawing").await?;
        let late = load::begin(system, &sdks[0], &link).await?;
        let [session, other] =
            [load::begin(system, &sdks[0], &link).await?, load::begin(system, &sdks[1], &link).await?];
        for (seq, sdk) in (0..).zip(&sdks) {
            let batch = small_batch(other.id, 0, seq, false, 10)?;
            load::send(system, sdk, &other, &batch, Form::Array, Encoding::Identity).await?;
            send_once(sdk, &session, seq).await?;
        }
        until("the session is readable", SOON, || async {
            match system.api.events(session.id, EventsFormat::Lines).await {
                Ok(_) => Seen::Done(()),
                Err(error) => Seen::not_yet(error),
            }
        })
        .await?;
        let elsewhere = try_join_all([
            send_until_refused(&sdks[1], &session, 1_000..100_000),
            send_until_refused(&sdks[2], &session, 100_000..200_000),
        ]);
        let withdrawing = async {
            sdks[0].withdraw(&session).await?;
            let withdrawn = Instant::now();
            let after = send_once(&sdks[0], &session, 10).await;
            ensure!(code(&after) == "consent_withdrawn", "the serving edge answered {}", code(&after));
            let unreadable = until("the session is unreadable", SOON, || async {
                match system.api.session(session.id).await {
                    Err(error) if error.status() == Some(410) => Seen::Done(()),
                    other => Seen::not_yet(code(&other)),
                }
            });
            unreadable.await?;
            anyhow::Ok((withdrawn, withdrawn.elapsed()))
        };
        let (elsewhere, (withdrawn, unreadable_after)) = futures::try_join!(elsewhere, withdrawing)?;
        for (last_taken, code) in elsewhere {
            ensure!(code == "consent_withdrawn" || code == "session_deleted", "another edge refused with {code}");
            let late = last_taken.saturating_duration_since(withdrawn);
            ensure!(late <= NEWS_SPREAD, "another edge took a batch {late:?} after the withdrawal");
        }
        ensure!(unreadable_after <= NEWS_SPREAD, "the session could be read for {unreadable_after:?}");
        eprintln!("withdrawal: unreadable {} ms after the answer", unreadable_after.as_millis());
        let on_its_way = half_sent(system, &late).await?;
        sdks[0].withdraw(&late).await?;
        let answer = on_its_way.finish().await?;
        ensure!(
            answer.starts_with("HTTP/1.1 403 ") && answer.contains("consent_withdrawn"),
            "a batch that was on its way when consent was taken back was answered: {answer}"
        );
        // Asking for it again begins nothing, and so does coming back with the token.
        for sdk in &sdks {
            let info = sdk.session_info(&session).await;
            ensure!(
                ["consent_withdrawn", "session_deleted"].contains(&code(&info)),
                "a reload was told {}",
                code(&info)
            );
        }
        ensure!(sdks[0].withdraw(&session).await.is_ok(), "withdrawing twice is refused");
        system
            .wait_count(
                "both sessions have a deletion",
                "select count(*) from deletion where cause = 'withdrawn'",
                2,
                SOON,
            )
            .await?;
        system
            .wait_count("what was stored of them is gone", "select count(*) from session where state = 3", 2, LATER)
            .await?;
        for session in [&session, &late] {
            system.ledger.forget(session.id);
        }
        let end = small_batch(other.id, 0, 3, true, 10)?;
        load::send(system, &sdks[2], &other, &end, Form::Array, Encoding::Identity).await?;
        load::compare_all(system, SOON).await?;
        Ok(())
    })
}

/// A batch of which an edge has the head and half of the body.
struct HalfSent {
    stream: TcpStream,
    rest: Vec<u8>,
}

async fn half_sent(system: &System<'_>, session: &Session) -> Result<HalfSent> {
    let address = system.variable(&system.service("ingest-edge", 1), "CLAIRVIO_LISTEN")?;
    let batch = small_batch(session.id, 0, 0, false, 10)?;
    let mut body = Body::of_batch(&batch, Form::Array, Encoding::Identity)?.bytes.to_vec();
    let rest = body.split_off(body.len() / 2);
    let head = format!(
        "POST /v1/events?seq=0 HTTP/1.1\r\nhost: edge\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\
         expect: 100-continue\r\nconnection: close\r\n\r\n",
        session.token,
        body.len() + rest.len()
    );
    let mut stream = TcpStream::connect(address).await.context("connect to the edge")?;
    stream.write_all(head.as_bytes()).await?;
    // The edge asks for the body once it has let the head in: the token was good then.
    let mut asked = [0; 25];
    stream.read_exact(&mut asked).await.context("wait until the edge asks for the body")?;
    ensure!(asked.starts_with(b"HTTP/1.1 100 Continue"), "the edge said {}", String::from_utf8_lossy(&asked));
    stream.write_all(&body).await?;
    Ok(HalfSent { stream, rest })
}

impl HalfSent {
    /// Sends the rest, and gives the answer.
    async fn finish(mut self) -> Result<String> {
        self.stream.write_all(&self.rest).await?;
        let mut answer = String::new();
        self.stream.read_to_string(&mut answer).await.context("read answer")?;
        Ok(answer)
    }
}

/// Goal: consent can be taken back with a token that has expired, or whose key was retired, by a beacon too; with a forged one it
/// cannot. And a key is retired without a restart: from then on its tokens send nothing. Method: tokens made with the
/// deployment's own key; the key file is replaced while the edge runs.
#[test]
fn consent_can_be_taken_back_with_any_token_that_was_given() -> Result<()> {
    run(DeploymentOptions::named("oldtokens"), &[], async |system| {
        let (sdk, link) = (system.sdk(1)?, system.link("old tokens").await?);
        let path = system.deployment.keys.join("edge-keys.json");
        let edge_keys: EdgeKeys = keys::read(&path)?;
        let mut sessions = Vec::new();
        for _ in 0..3 {
            sessions.push(load::begin(system, &sdk, &link).await?);
        }
        let [expired, retired, beacon] = <[Session; 3]>::try_from(sessions).ok().context("three sessions")?;
        let key = &edge_keys.session_signing;
        let signing = engine::token::Signing::new(key.kid.clone(), &key.bytes().context("a key has 32 bytes")?);
        let mut claims = claims_of(&expired)?;
        (claims.iat, claims.exp) = (claims.iat - 7200, claims.iat - 3600);
        let old = Session { token: signing.session(&claims), ..expired.clone() };
        let sent = send_once(&sdk, &old, 0).await;
        ensure!(code(&sent) == "token_expired", "an expired token was told {}", code(&sent));
        let forger = engine::token::Signing::new(key.kid.clone(), &[7; 32]);
        let forged = Session { token: forger.session(&claims), ..expired.clone() };
        let answer = sdk.withdraw(&forged).await;
        ensure!(code(&answer) == "token_signature_invalid", "a forged token was told {}", code(&answer));
        sdk.withdraw(&old).await?;
        let sent = send_once(&sdk, &expired, 0).await;
        ensure!(code(&sent) == "consent_withdrawn", "a withdrawn session was told {}", code(&sent));

        let (others, _) = service_kit::keys::tokens::make()?;
        let gone = RetiredKey::Session(key.public().context("a key has a public half")?);
        let rotated = EdgeKeys { session_signing: others.session_signing, retired: vec![gone], ..edge_keys.clone() };
        keys::replace(&path, &rotated)?;
        until("the edge has the new keys", SOON, || async {
            let sent = send_once(&sdk, &retired, 0).await;
            if code(&sent) == "token_key_revoked" { Seen::Done(()) } else { Seen::not_yet(code(&sent)) }
        })
        .await?;
        sdk.withdraw(&retired).await?;
        let edge = system.url("ingest-edge", 1)?;
        let answer = reqwest::Client::new()
            .post(format!("{edge}/v1/withdraw"))
            .header("content-type", "text/plain;charset=UTF-8")
            .body(json!({"token": beacon.token}).to_string())
            .send()
            .await?;
        ensure!(answer.status() == 202, "a beacon's withdrawal was answered with {}", answer.status());
        // New sessions begin under the new key.
        let fresh = load::begin(system, &sdk, &link).await?;
        let batch = small_batch(fresh.id, 0, 0, true, 10)?;
        load::send(system, &sdk, &fresh, &batch, Form::Array, Encoding::Identity).await?;
        for session in [&expired, &retired, &beacon] {
            system.ledger.forget(session.id);
            until("the session is deleted", SOON, || async {
                match system.api.session(session.id).await {
                    Err(error) if error.status() == Some(410) => Seen::Done(()),
                    other => Seen::not_yet(code(&other)),
                }
            })
            .await?;
        }
        load::compare_all(system, SOON).await?;
        Ok(())
    })
}

/// Goal: a token reaches its own workspace and no other (R9). Method: a token that is right in all but its workspace: it names the
/// session of another. What it sends goes to a session of that id in the token's workspace, and the other's stays as it was.
#[test]
fn r09_a_token_reaches_its_own_workspace_only() -> Result<()> {
    run(DeploymentOptions::named("crossed"), &[], async |system| {
        let sdk = system.sdk(1)?;
        let session = load::begin(system, &sdk, &system.link("of a").await?).await?;
        let batch = small_batch(session.id, 0, 0, true, 10)?;
        load::send(system, &sdk, &session, &batch, Form::Array, Encoding::Identity).await?;
        let (other, other_key) = system.another_workspace(Plan::Scale).await?;
        let other_api = system.api_at(1, &other_key)?;
        let link = crate::harness::link_of(&other_api, "of b").await?;
        let theirs = sdk.accept(&link.token, NOTICE_VERSION, &random_attempt()).await?;
        let edge_keys: EdgeKeys = keys::read(&system.deployment.keys.join("edge-keys.json"))?;
        let key = &edge_keys.session_signing;
        let signing = engine::token::Signing::new(key.kid.clone(), &key.bytes().context("a key has 32 bytes")?);
        let claims = SessionClaims { ses: session.id, ..claims_of(&theirs)? };
        ensure!(claims.ws == other, "the token is of another workspace than it should be");
        let crossed = Session { token: signing.session(&claims), ..session.clone() };
        send_once(&sdk, &crossed, 0).await?;
        sdk.withdraw(&crossed).await?;
        until("the other workspace's session of that id is deleted", SOON, || async {
            match other_api.session(session.id).await {
                Err(error) if error.status() == Some(410) => Seen::Done(()),
                other => Seen::not_yet(code(&other)),
            }
        })
        .await?;
        let more = small_batch(session.id, 0, 1, true, 10)?;
        load::send(system, &sdk, &session, &more, Form::Array, Encoding::Identity).await?;
        load::compare_all(system, SOON).await?;
        Ok(())
    })
}

fn claims_of(session: &Session) -> Result<SessionClaims> {
    let claims = session.token.split('.').nth(1).context("claims of a token")?;
    Ok(serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?)
}

async fn link_for(system: &System<'_>, max_sessions: u32) -> Result<LinkCreated> {
    let request = LinkRequest {
        reference: format!("for {max_sessions}"),
        expires_in: Some(3600),
        max_sessions: Some(max_sessions),
        redirect_url: None,
        masking: None,
    };
    Ok(system.api.create_link(&request).await?)
}

/// Goal: a link begins as many sessions as it may, whichever edges they come to; more only while the news of them spread, and
/// then each edge at most as many as the link may; those are refused when seen, and purged. Asking again for a session that has
/// begun gives that session. Method: three edges. A link is used up slowly, before the index knows of any of it; another at once,
/// from everywhere.
#[test]
fn a_link_begins_no_more_sessions_than_it_may() -> Result<()> {
    const MAX: u32 = 3;
    const AT_ONCE: usize = 30;
    // Long enough that nothing of the first part can come from the index.
    let options = three_edges("usedup").with("batcher", "CLAIRVIO_FLUSH_AGE_MS", 8_000);
    run(options, &[], async |system| {
        let sdks = sdks(system)?;
        let link = link_for(system, MAX).await?;
        let attempts: Vec<String> = (0..MAX).map(|_| random_attempt()).collect();
        let mut begun = Vec::new();
        for (sdk, attempt) in sdks.iter().zip(&attempts) {
            begun.push(sdk.accept(&link.token, NOTICE_VERSION, attempt).await?);
        }
        let used_up = Instant::now();
        let mut over = 0;
        for sdk in &sdks {
            let mut asking = tokio::time::interval(ASKED_EVERY);
            loop {
                asking.tick().await;
                let Ok(let_in) = sdk.accept(&link.token, NOTICE_VERSION, &random_attempt()).await else { break };
                ensure!(used_up.elapsed() <= NEWS_SPREAD, "session {} began after the news had spread", let_in.id);
                over += 1;
            }
        }
        let known_after = used_up.elapsed();
        // By what each counts alone they would let in two more each.
        ensure!(over < i64::from(MAX - 1) * EDGES as i64, "no edge heard of what the others had let begin");
        for sdk in &sdks {
            let answer = sdk.accept(&link.token, NOTICE_VERSION, &random_attempt()).await;
            ensure!(code(&answer) == "link_exhausted", "a consent too many was told {}", code(&answer));
        }
        eprintln!("usedup: {} ms until edges knew, {over} sessions over", known_after.as_millis());
        ensure!(known_after <= NEWS_SPREAD, "edges knew after {known_after:?} that the link was used up");
        ensure!(system.count("select count(*) from session").await? == 0, "the index knew of sessions already");
        for (place, attempt) in attempts.iter().enumerate() {
            // An edge that knows that the link is used up may hear a moment later by which sessions.
            let again = until("asking again for a session that has begun gives one", NEWS_SPREAD, || async {
                match sdks[(place + 1) % EDGES].accept(&link.token, NOTICE_VERSION, attempt).await {
                    Ok(again) => Seen::Done(again),
                    Err(error) => Seen::not_yet(error),
                }
            });
            ensure!(again.await?.id == begun[place].id, "asking again gave another session");
        }

        let hot = link_for(system, MAX).await?;
        let asking = (0..AT_ONCE).map(|place| {
            let (sdk, link) = (&sdks[place % EDGES], &hot);
            async move { sdk.accept(&link.token, NOTICE_VERSION, &random_attempt()).await }
        });
        let answers = join_all(asking).await;
        let refused = answers.iter().filter(|answer| code(answer) == "link_exhausted").count();
        let admitted: Vec<&Session> = answers.iter().filter_map(|answer| answer.as_ref().ok()).collect();
        ensure!(admitted.len() + refused == AT_ONCE, "some were refused for something else: {answers:?}");
        let bound = MAX as usize * EDGES;
        ensure!((MAX as usize..=bound).contains(&admitted.len()), "{} sessions were let in", admitted.len());
        eprintln!("usedup: {} of {AT_ONCE} let in at once, at most {bound}", admitted.len());
        let over = over + admitted.len() as i64 - i64::from(MAX);
        system
            .wait_count("what is over is deleted", "select count(*) from session where state > 0", over, SOON)
            .await?;
        ensure!(
            system.count("select count(*) from session where state = 0").await? == 2 * i64::from(MAX),
            "not all are there"
        );
        let mut taken = 0;
        for session in &admitted {
            let answer = until("edges know which sessions were over", SOON, || async {
                match send_once(&sdks[0], session, 0).await {
                    Ok(()) if system.api.session(session.id).await.is_err() => {
                        Seen::not_yet("it is deleted, and taken")
                    }
                    answer => Seen::Done(answer),
                }
            });
            let answer = answer.await?;
            ensure!(["taken", "session_deleted"].contains(&code(&answer)), "it was told {}", code(&answer));
            taken += u32::from(answer.is_ok());
        }
        ensure!(taken == MAX, "{taken} of the link's sessions are taken");
        system.wait_count("what was over is gone", "select count(*) from session where state = 3", over, LATER).await?;
        Ok(())
    })
}

async fn tell(system: &System<'_>, entries: &[Entry]) -> Result<()> {
    let config = ControlConfig {
        brokers: system.deployment.endpoints().kafka_brokers,
        topic: system.deployment.topic_control.clone(),
    };
    let entries: Vec<_> = entries.iter().map(|entry| (entry.key(), Some(entry.value()))).collect();
    Publisher::new(&config, "test")?.publish(&entries).await?;
    Ok(())
}

fn rules(limits: Limits) -> WorkspaceRules {
    WorkspaceRules {
        state: WorkspaceState::Active,
        limits,
        full_until: None,
        origins: Vec::new(),
        notice_versions: Vec::new(),
        terms: None,
    }
}

/// Goal: what a workspace may is told to edges and held by them, each refusal with its code, its reason and when to come again; a
/// workspace that sends too much does not hold up another. Method: rules are told on `control`, one after the other, and asked
/// about; then one workspace sends as fast as it can while another sends as it should.
#[test]
fn p13_limits_are_held_and_told() -> Result<()> {
    // What the test tells is newer than what the index has.
    run(DeploymentOptions::named("limits"), &["is one of a backup"], async |system| {
        let sdk = system.sdk(1)?;
        let link = system.link("limited").await?;
        let session = load::begin(system, &sdk, &link).await?;
        let small = Limits { session_events_per_s: 1, ..Plan::Scale.limits() };
        let day = time::OffsetDateTime::now_utc() + time::Duration::minutes(5);
        // Far above what the control plane counts up.
        let mut version = 1_000;
        let mut told = async |rules: WorkspaceRules| {
            version += 1;
            tell(system, &[Entry::workspace(system.workspace, rules, version)]).await
        };
        let consents = async |expected: &str| {
            let attempt = random_attempt();
            until(&format!("consents are told {expected}"), SOON, || async {
                let answer = sdk.accept(&link.token, NOTICE_VERSION, &attempt).await;
                if code(&answer) == expected { Seen::Done(answer.err()) } else { Seen::not_yet(code(&answer)) }
            })
            .await
        };
        let batches = async |expected: &str| {
            until(&format!("batches are told {expected}"), SOON, || async {
                let answer = send_once(&sdk, &session, 0).await;
                if code(&answer) == expected { Seen::Done(answer.err()) } else { Seen::not_yet(code(&answer)) }
            })
            .await
        };
        told(WorkspaceRules { state: WorkspaceState::Suspended, ..rules(Plan::Scale.limits()) }).await?;
        consents("workspace_suspended").await?;
        batches("workspace_suspended").await?;
        told(WorkspaceRules { state: WorkspaceState::Terminated, ..rules(Plan::Scale.limits()) }).await?;
        consents("workspace_terminated").await?;
        batches("workspace_terminated").await?;
        told(WorkspaceRules { notice_versions: vec!["another".into()], ..rules(Plan::Scale.limits()) }).await?;
        consents("consent_stale").await?;
        batches("taken").await?;
        told(WorkspaceRules { full_until: Some(day), ..rules(Plan::Scale.limits()) }).await?;
        let full = consents("rate_limited").await?.context("it was refused")?;
        let wait = full.refused().and_then(|refused| refused.retry_after).unwrap_or_default();
        ensure!((200..=300).contains(&wait.as_secs()), "a full day is over in {wait:?}");
        told(rules(Limits { session_s: 0, ..Plan::Scale.limits() })).await?;
        batches("session_closed").await?;
        told(rules(small)).await?;
        let limited = batches("rate_limited").await?.context("it was refused")?;
        let wait = limited.refused().and_then(|refused| refused.retry_after).unwrap_or_default();
        ensure!((1..=15).contains(&wait.as_secs()), "a session at its rate has to wait {wait:?}");
        let problem = raw_refusal(system, &session).await?;
        ensure!(
            problem["which"] == "session" && problem["field"] == "events_per_s" && problem["limit"] == 1,
            "{problem}"
        );

        // Ten events a second for each session, twenty for all of them: what comes beyond is refused, and costs nobody else.
        told(rules(Limits { session_events_per_s: 10, events_per_s: 20, ..Plan::Scale.limits() })).await?;
        batches("taken").await?;
        let (_, quiet_key) = system.another_workspace(Plan::Scale).await?;
        let quiet_link = crate::harness::link_of(&system.api_at(1, &quiet_key)?, "quiet").await?;
        let noisy: Vec<Session> = try_join_all((0..16).map(|_| load::begin(system, &sdk, &link))).await?;
        let quiet = sdk.accept(&quiet_link.token, NOTICE_VERSION, &random_attempt()).await?;
        let (mut refused, mut which) = (0, Vec::new());
        let mut flood = Box::pin(async {
            for seq in 0.. {
                for answer in join_all(noisy.iter().map(|session| send_once(&sdk, session, seq))).await {
                    refused += u32::from(code(&answer) == "rate_limited");
                    if let Err(error) = answer
                        && error.code() != "rate_limited"
                    {
                        which.push(error.code().to_owned());
                    }
                }
            }
        });
        let calm = async {
            for seq in 0..100 {
                send_once(&sdk, &quiet, seq).await.context("the quiet workspace is held up")?;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            () = &mut flood => {}
            done = calm => done?,
        }
        drop(flood);
        ensure!(refused > 100, "only {refused} batches of the noisy workspace were refused");
        ensure!(which.is_empty(), "the noisy workspace was told other things too: {which:?}");
        for session in noisy.iter().chain([&session]) {
            system.ledger.forget(session.id);
        }
        Ok(())
    })
}

/// A refused batch as it stands on the wire: the problem, and that a browser's script may read it.
async fn raw_refusal(system: &System<'_>, session: &Session) -> Result<serde_json::Value> {
    let origin = "https://app.example";
    let sdk =
        Sdk::new(&system.url("ingest-edge", 1)?, SdkOptions { origin: Some(origin.into()), ..SdkOptions::default() })?;
    ensure!(send_once(&sdk, session, 1).await.is_err(), "it was not refused");
    let answer = reqwest::Client::new()
        .post(format!("{}/v1/events?seq=1", system.url("ingest-edge", 1)?))
        .bearer_auth(&session.token)
        .header("origin", origin)
        .body("[]")
        .send()
        .await?;
    ensure!(answer.status() == 429, "it was answered with {}", answer.status());
    let header = |name: &str| answer.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    ensure!(header("access-control-allow-origin").as_deref() == Some(origin), "a script cannot read it");
    ensure!(
        header("access-control-expose-headers").is_some_and(|value| value.contains("Retry-After")),
        "nor when to come again"
    );
    ensure!(
        header("retry-after").is_some_and(|value| value.parse::<u64>().is_ok_and(|seconds| seconds > 0)),
        "Retry-After"
    );
    Ok(answer.json().await?)
}

/// Goal: an edge that cannot hear who took consent back takes nothing, and says so (fail closed); one that hears no more stops
/// within the bound, and goes on when it hears again. Method: beside the deployment's edge another whose topic of news does not
/// exist, is made, is removed, and is made anew.
#[test]
fn an_edge_without_news_takes_nothing() -> Result<()> {
    let expected = [
        "topic nowhere is not at",
        "the topic control was not read to its end lately",
        "write control entries",
        "ask kafka at",
    ];
    run(DeploymentOptions::named("deaf"), &expected, async |system| {
        let (sdk, link) = (system.sdk(1)?, system.link("deaf").await?);
        let noted = load::begin(system, &sdk, &link).await?;
        let session = sdk.accept(&link.token, NOTICE_VERSION, &random_attempt()).await?;
        let deaf = system.deaf_edge(NOWHERE).await?;
        let refused = until("the log is up, and the news are not", SOON, || async {
            let answer = send_once(&deaf.sdk, &session, 0).await;
            if code(&answer) == "keys_unavailable" { Seen::Done(answer) } else { Seen::not_yet(code(&answer)) }
        });
        let refused = refused.await?.err().context("it was refused")?;
        ensure!(
            refused.refused().is_some_and(|refused| refused.retry_after.is_some()),
            "it does not say when to come again"
        );
        let accepted = deaf.sdk.accept(&link.token, NOTICE_VERSION, &random_attempt()).await;
        ensure!(code(&accepted) == "keys_unavailable", "a consent was told {}", code(&accepted));
        let reload = deaf.sdk.session_info(&session).await;
        ensure!(code(&reload) == "keys_unavailable", "a reload was told {}", code(&reload));
        let ready = reqwest::get(format!("{}/readyz", deaf.admin_url)).await?;
        ensure!(ready.status() == 503, "the edge says that it is ready");
        let parts: serde_json::Value = ready.json().await?;
        ensure!(parts["parts"]["control"]["state"] == "down", "{parts}");
        until("the edge says in its log what it lacks", SOON, || async {
            match std::fs::read_to_string(deaf.supervisor.log(&deaf.name)) {
                Ok(told) if told.contains("topic nowhere is not at") => Seen::Done(()),
                other => Seen::not_yet(format_args!("{other:?}")),
            }
        })
        .await?;
        make_control_topic(system, NOWHERE).await?;
        deaf.supervisor.wait_ready(&deaf.name, SOON).await?;
        send_once(&deaf.sdk, &session, 0).await?;
        for seq in 1..3 {
            let admin = kafka_admin(system)?;
            admin.delete_topics(&[NOWHERE], &AdminOptions::new()).await.context("remove the topic")?;
            let removed = Instant::now();
            let refused = until("an edge that hears no more takes nothing", SOON, || async {
                let answer = send_once(&deaf.sdk, &session, seq).await;
                if code(&answer) == "keys_unavailable" { Seen::Done(()) } else { Seen::not_yet(code(&answer)) }
            });
            refused.await?;
            // Kafka may take a moment for the removal, and the question of an edge may be on its way then.
            ensure!(removed.elapsed() < NEWS_SPREAD * 3, "it went on for {:?}", removed.elapsed());
            make_control_topic(system, NOWHERE).await?;
            until("it goes on when it hears again", SOON, || async {
                let answer = send_once(&deaf.sdk, &session, seq).await;
                if answer.is_ok() { Seen::Done(()) } else { Seen::not_yet(code(&answer)) }
            })
            .await?;
        }
        deaf.supervisor.stop_all().await?;
        let batch = small_batch(noted.id, 0, 0, true, 10)?;
        load::send(system, &sdk, &noted, &batch, Form::Array, Encoding::Identity).await?;
        load::compare_all(system, SOON).await?;
        Ok(())
    })
}
