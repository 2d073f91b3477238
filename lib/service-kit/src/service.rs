//! What every service's `main.rs` calls.

use std::pin::Pin;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;

use crate::config::listen::ListenConfig;
use crate::config::{self, Env, Knob};
use crate::health::Health;
use crate::http_server;
use crate::shutdown::Shutdown;
use crate::telemetry::{self, LogConfig};

/// `EX_CONFIG`'s neighbour: the command line or the environment is wrong, and trying again will not help.
const EXIT_USAGE: u8 = 64;

const SHUTDOWN_GRACE_MS: Knob = Knob {
    name: "CLAIRVIO_SHUTDOWN_GRACE_MS",
    doc: "How long stopping may take.",
    unit: "milliseconds",
    default: Some("10000"),
    secret: false,
};

/// What a service is, for its `main` and for the reference page.
pub struct Definition<C> {
    /// Its name.
    pub name: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// Default address for callers, if it has any.
    pub listen: Option<&'static str>,
    /// Default address of the admin interface.
    pub admin_listen: &'static str,
    /// Reads its settings.
    pub load: fn(&mut Env<'_>) -> C,
}

/// What a service gets beside its settings.
#[derive(Debug)]
pub struct Surroundings {
    /// Where its callers come, for services that have any.
    pub listener: Option<TcpListener>,
    /// Where to report.
    pub health: Health,
    /// When to stop.
    pub shutdown: Shutdown,
}

struct Common {
    log: LogConfig,
    listen: ListenConfig,
    grace: Duration,
}

impl<C> Definition<C> {
    fn load_all(&self, env: &mut Env<'_>) -> (Common, C) {
        let common = Common {
            log: LogConfig::load(env),
            listen: ListenConfig::load(env, self.listen, self.admin_listen),
            grace: env.millis(&SHUTDOWN_GRACE_MS),
        };
        (common, (self.load)(env))
    }

    /// The service's part of the reference page.
    pub fn reference(&self) -> String {
        let lookup = |_: &str| None;
        let mut env = Env::new(&lookup);
        self.load_all(&mut env);
        config::reference(self.name, env.settings())
    }
}

/// Something that is done, or fails.
pub type Doing = Pin<Box<dyn Future<Output = anyhow::Result<()>>>>;

/// What a service's program does by a flag instead of serving.
pub struct Instead<C> {
    /// The flag, with its dashes.
    pub flag: &'static str,
    /// What it does, in one line.
    pub about: &'static str,
    /// Does it.
    pub run: fn(C) -> Doing,
}

/// Runs a service to its end and tells how it went.
pub fn main<C, F, Fut>(definition: &Definition<C>, run: F) -> ExitCode
where
    F: FnOnce(C, Surroundings) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    main_or(definition, run, None)
}

/// The same of a program that does something else by a flag.
pub fn main_or<C, F, Fut>(definition: &Definition<C>, run: F, instead: Option<Instead<C>>) -> ExitCode
where
    F: FnOnce(C, Surroundings) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let lookup = |name: &str| std::env::var(name).ok();
    let mut env = Env::new(&lookup);
    let (common, config) = definition.load_all(&mut env);
    let other = instead.as_ref().map(|instead| (instead.flag, instead.about));
    let does_instead = instead.filter(|instead| arguments == [instead.flag]);
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => {}
        _ if does_instead.is_some() => {}
        ["--print-config"] => print!("{}", config::print(env.settings())),
        ["--version"] => println!("{} {}", definition.name, env!("CARGO_PKG_VERSION")),
        ["--help" | "-h"] => println!(
            "{}: {}\n\nAll settings are environment variables; --print-config shows them with their values.\n\n\
             Options:\n  --print-config  show the settings and stop\n  --version       show the version and stop{}",
            definition.name,
            definition.about,
            other.map_or_else(String::new, |(flag, about)| format!("\n  {flag:<14}  {about}"))
        ),
        _ => {
            eprintln!("{}: unknown argument\n  hint: see {0} --help", definition.name);
            return ExitCode::from(EXIT_USAGE);
        }
    }
    if !arguments.is_empty() && does_instead.is_none() {
        return ExitCode::SUCCESS;
    }
    if !env.errors().is_empty() {
        for error in env.errors() {
            eprintln!("{}: {error}", definition.name);
        }
        return ExitCode::from(EXIT_USAGE);
    }
    let done = match does_instead {
        None => start(definition.name, common, |surroundings| run(config, surroundings)),
        Some(instead) => runtime().and_then(|runtime| runtime.block_on((instead.run)(config))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The one place where a service's last error is told.
            eprintln!("{}: {error:#}", definition.name);
            ExitCode::FAILURE
        }
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start runtime")
}

fn start<F, Fut>(name: &'static str, common: Common, run: F) -> anyhow::Result<()>
where
    F: FnOnce(Surroundings) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    let metrics = telemetry::start(&common.log)?;
    runtime()?.block_on(async {
        let shutdown = Shutdown::new(common.grace);
        shutdown.begin_on_signal().context("listen for signals")?;
        let bind = |address: std::net::SocketAddr| async move {
            TcpListener::bind(address).await.with_context(|| format!("listen on {address}; is another process there?"))
        };
        let listener = match common.listen.public {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let admin = bind(common.listen.admin).await?;
        tracing::info!(service = name, admin = %common.listen.admin, "started");
        let health = Health::default();
        // The admin interface outlives the shutdown: an operator wants to see how draining goes.
        let (admin_health, upkeep) = (health.clone(), metrics.clone());
        tokio::spawn(async move {
            let forever = Shutdown::new(Duration::ZERO);
            http_server::serve_admin(admin, &forever, admin_health, metrics).await;
        });
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(5)).await;
                upkeep.run_upkeep();
            }
        });
        run(Surroundings { listener, health, shutdown }).await
    })
}
