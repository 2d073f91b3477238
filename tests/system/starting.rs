//! Services that start before what they need, or with wrong settings.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use devstack::{DeploymentOptions, ServiceSpec, Supervisor, find_binary, free_port};
use tokio::net::{TcpListener, TcpStream};
use virtual_sdk::{Seen, until};

use crate::harness::{SOON, System, run};

/// The command line or the environment is wrong.
const EXIT_USAGE: i32 = 64;
const KINDS: [&str; 5] = ["ingest-edge", "control-plane", "batcher", "compactor", "retention-worker"];
/// Time over which the work of a waiting service is measured.
const WATCHED: Duration = Duration::from_secs(3);
/// Ticks of a hundredth of a second that a waiting service may use in that time: a loop without pauses would use 300.
const TICKS_MAX: u64 = 30;
/// Lines that a service may have written until then: what it is, and one for each new reason.
const LINES_MAX: usize = 8;

/// Goal: services start in any order: one that misses a part lives, says which part and where it looked, costs nothing, and is
/// ready once the part is there. Method: every service is given addresses where nobody listens, and then, part by part, a
/// proxy begins to listen there.
#[test]
fn services_start_in_any_order_and_say_what_is_missing() -> Result<()> {
    run(DeploymentOptions::named("starting"), &["trying again", "part is down", "rebalance"], async |system| {
        let endpoints = system.deployment.endpoints();
        let real = Addresses {
            kafka: address(&endpoints.kafka_brokers)?,
            postgres: address(&endpoints.database_url)?,
            s3: address(&endpoints.s3.endpoint)?,
        };
        let absent = Addresses { kafka: nobody()?, postgres: nobody()?, s3: nobody()? };
        let lonely = system.stack.supervisor(|_| {})?;
        for kind in KINDS {
            lonely.start(lonely_spec(system, kind, &real, &absent)?).await?;
        }
        for kind in KINDS {
            let part = if kind == "ingest-edge" { ("kafka", absent.kafka) } else { ("postgres", absent.postgres) };
            names(&lonely, system, kind, part).await?;
        }
        stay_calm(&lonely, system).await?;

        proxy(absent.postgres, real.postgres).await?;
        for kind in &KINDS[1..] {
            names(&lonely, system, kind, ("s3", absent.s3)).await?;
        }
        proxy(absent.s3, real.s3).await?;
        for kind in ["control-plane", "compactor"] {
            lonely.wait_ready(&name(system, kind), SOON).await?;
        }
        names(&lonely, system, "batcher", ("kafka", absent.kafka)).await?;
        proxy(absent.kafka, real.kafka).await?;
        for kind in KINDS {
            lonely.wait_ready(&name(system, kind), SOON).await?;
        }
        lonely.stop_all().await?;
        wrong_settings(system)
    })
}

#[derive(Clone, Copy)]
struct Addresses {
    kafka: SocketAddr,
    postgres: SocketAddr,
    s3: SocketAddr,
}

/// The `host:port` in a URL or a list of brokers.
fn address(url: &str) -> Result<SocketAddr> {
    let after_scheme = url.rsplit_once("//").map_or(url, |(_, rest)| rest);
    let host = after_scheme.rsplit_once('@').map_or(after_scheme, |(_, host)| host);
    let host = host.split('/').next().unwrap_or_default();
    host.parse().with_context(|| format!("parse address {host}"))
}

fn nobody() -> Result<SocketAddr> {
    Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()?)))
}

fn name(system: &System<'_>, kind: &str) -> String {
    system.service(kind, 9)
}

/// The same service as the deployment's, at addresses where nobody listens.
fn lonely_spec(system: &System<'_>, kind: &str, real: &Addresses, absent: &Addresses) -> Result<ServiceSpec> {
    let mut env = system.settings(&system.service(kind, 1))?;
    let admin = nobody()?.to_string();
    for (name, value) in &mut env {
        match name.as_str() {
            "CLAIRVIO_ADMIN_LISTEN" => value.clone_from(&admin),
            "CLAIRVIO_LISTEN" => *value = nobody()?.to_string(),
            _ => {
                for (from, to) in [(real.kafka, absent.kafka), (real.postgres, absent.postgres), (real.s3, absent.s3)] {
                    *value = value.replace(&from.to_string(), &to.to_string());
                }
            }
        }
    }
    let (name, binary, admin_url) = (name(system, kind), find_binary(kind)?, format!("http://{admin}"));
    Ok(ServiceSpec { name, binary, env, admin_url, restart: false })
}

/// Waits until a service lives, is not ready, and says that this part is missing, and where it looked for it.
async fn names(lonely: &Supervisor, system: &System<'_>, kind: &str, (part, at): (&str, SocketAddr)) -> Result<()> {
    let name = name(system, kind);
    let running = lonely.running().into_iter().find(|running| running.name == name);
    let admin = running.with_context(|| format!("{name} does not live"))?.admin_url;
    let at = at.to_string();
    let what = format!("{name} says that {part} is missing at {at}");
    until(&what, SOON, || async {
        let (Ok(live), Ok(ready)) =
            (reqwest::get(format!("{admin}/livez")).await, reqwest::get(format!("{admin}/readyz")).await)
        else {
            return Seen::not_yet("no answer");
        };
        let statuses = (live.status().as_u16(), ready.status().as_u16());
        let body: serde_json::Value = ready.json().await.unwrap_or_default();
        let reason = body["parts"][part].to_string();
        if statuses == (200, 503) && reason.contains(&at) {
            Seen::Done(())
        } else {
            Seen::not_yet(format_args!("it answers {statuses:?}: {body}"))
        }
    })
    .await?;
    Ok(())
}

/// Waiting costs next to nothing, and each reason is told once.
async fn stay_calm(lonely: &Supervisor, system: &System<'_>) -> Result<()> {
    let ticks = || -> Result<Vec<u64>> {
        KINDS.iter().map(|kind| ticks(lonely.pid(&name(system, kind)).context("it lives")?)).collect()
    };
    let before = ticks()?;
    // The one place where time has to pass: what is measured is work per time.
    tokio::time::sleep(WATCHED).await;
    for (kind, (before, after)) in KINDS.iter().zip(before.into_iter().zip(ticks()?)) {
        let used = after - before;
        ensure!(used < TICKS_MAX, "{kind} used {used} hundredths of a second in {} s of waiting", WATCHED.as_secs());
        let log = lonely.log(&name(system, kind));
        let text = std::fs::read_to_string(&log).with_context(|| format!("read {}", log.display()))?;
        let lines = text.lines().count();
        ensure!(lines <= LINES_MAX, "{kind} wrote {lines} lines while it waited:\n{text}");
        ensure!(text.contains("WARN"), "{kind} says nothing of what is missing:\n{text}");
    }
    Ok(())
}

/// Processor time of a process, user's and system's.
fn ticks(pid: u32) -> Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).context("read stat")?;
    let (_, fields) = stat.rsplit_once(')').context("read stat")?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

/// Listens where nobody did, and passes everything on.
async fn proxy(at: SocketAddr, to: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(at).await.context("listen as proxy")?;
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut to) = TcpStream::connect(to).await else { return };
                // A connection that breaks is what a proxy's clients live with.
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
    Ok(())
}

/// Wrong settings end a service at once, with all that is wrong, and a missing key file is named.
fn wrong_settings(system: &System<'_>) -> Result<()> {
    for kind in KINDS {
        let binary = find_binary(kind)?;
        let wrong = Command::new(&binary)
            .env_clear()
            .envs([("CLAIRVIO_ADMIN_LISTEN", "nowhere"), ("CLAIRVIO_LOG_FORMAT", "loud")])
            .env("CLAIRVIO_SHUTDOWN_GRACE_MS", "soon")
            .stdin(Stdio::null())
            .output()?;
        let told = String::from_utf8_lossy(&wrong.stderr).into_owned();
        ensure!(wrong.status.code() == Some(EXIT_USAGE), "{kind} ended with {}: {told}", wrong.status);
        let keys = match kind {
            "ingest-edge" => "CLAIRVIO_EDGE_KEYS_FILE",
            "control-plane" => "CLAIRVIO_CONTROL_KEYS_FILE",
            _ => "DATABASE_URL",
        };
        for name in ["CLAIRVIO_ADMIN_LISTEN", "CLAIRVIO_LOG_FORMAT", "CLAIRVIO_SHUTDOWN_GRACE_MS", keys] {
            ensure!(told.contains(name), "{kind} does not say that {name} is wrong: {told}");
        }
        if keys == "DATABASE_URL" {
            continue;
        }
        let missing = "/nowhere/at-all/keys.json";
        let mut env = system.settings(&system.service(kind, 1))?;
        env.retain(|(name, _)| !name.ends_with("_LISTEN"));
        let lost = Command::new(&binary)
            .env_clear()
            .envs(env)
            .envs([("CLAIRVIO_LISTEN", "127.0.0.1:0"), ("CLAIRVIO_ADMIN_LISTEN", "127.0.0.1:0"), (keys, missing)])
            .stdin(Stdio::null())
            .output()?;
        let told = String::from_utf8_lossy(&lost.stderr).into_owned();
        ensure!(!lost.status.success() && told.contains(missing), "{kind} does not name the missing file: {told}");
    }
    Ok(())
}
