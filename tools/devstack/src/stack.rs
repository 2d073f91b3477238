//! The stack: starts the parts at once, keeps their processes, inflicts faults on them, and takes all down again.

use std::collections::BTreeMap;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use futures::future::try_join_all;
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};

use crate::ServiceEndpoint;
use crate::guard::Guard;
use crate::home::{Home, Kept};
use crate::parts::{GIVEN_TIMEOUT, Given, Part, Parts, S3Kind, Server, kafka, postgres, s3};
use crate::process::Managed;
use crate::services::Supervisor;

/// How to start a stack.
#[derive(Clone, Debug)]
pub struct StackOptions {
    /// Its folder, made if need be. What lies there from an earlier start is used again.
    pub home: PathBuf,
    /// Which S3 server to start.
    pub s3: S3Kind,
    /// Whether to say on standard error what is ready when.
    pub progress: bool,
    /// Whether the folder goes when the stack does. It stays when the stack is dropped by a panic, for a look at the logs.
    pub remove_home: bool,
}

impl StackOptions {
    /// A stack in `home`, with the S3 server that `DEVSTACK_S3` names, silent, kept.
    pub fn new(home: impl Into<PathBuf>) -> anyhow::Result<StackOptions> {
        Ok(StackOptions { home: home.into(), s3: S3Kind::from_env()?, progress: false, remove_home: false })
    }
}

/// A running stack. Dropping it ends everything it started, and blocks for that; [`Stack::stop`] does it in order.
#[derive(Debug)]
pub struct Stack {
    // Declared first: what it guards ends before the lock on the home is given back.
    guard: ClosingGuard,
    home: Home,
    parts: Parts,
    own: BTreeMap<Part, Own>,
    remove_home: bool,
}

/// A part that this stack started.
#[derive(Debug)]
struct Own {
    server: Server,
    process: Mutex<Option<Managed>>,
}

/// Closes the guard when it goes, so that a start that fails or is given up half-way leaves nothing either.
#[derive(Debug)]
struct ClosingGuard(Guard);

impl Drop for ClosingGuard {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl Stack {
    /// Starts the parts that the environment does not give, all at once, and waits until each answers.
    pub async fn start(options: StackOptions) -> anyhow::Result<Stack> {
        Stack::start_with(options, Given::from_env()?).await
    }

    /// The same, with the parts that run elsewhere named by the caller instead of by the environment.
    pub async fn start_with(options: StackOptions, given: Given) -> anyhow::Result<Stack> {
        let home = Home::open(&options.home).await?;
        let lock = home.lock.try_clone().context("share lock of home")?;
        let guard = ClosingGuard(Guard::start(&home.log("guard"), lock)?);
        if options.remove_home {
            guard.0.clean_up(&home.path)?;
        }
        let kept = Kept::load(&home.path)?;
        let starting = Starting { home: &home, kept: &kept, guard: &guard.0, options: &options, since: Instant::now() };
        // Boxed: the types of the clients' futures within are so deep that a caller's compiler would give up on them.
        let started = tokio::try_join!(
            Box::pin(starting.kafka(given.kafka_brokers)),
            Box::pin(starting.postgres(given.database_url)),
            Box::pin(starting.s3(given.s3)),
        );
        if started.is_err() && options.remove_home {
            // The error names logs in it.
            guard.0.keep()?;
        }
        let ((kafka_brokers, kafka), (database_url, postgres), (s3, object_store)) = started?;
        let own = [(Part::Kafka, kafka), (Part::Postgres, postgres), (Part::S3, object_store)];
        let own = own.into_iter().filter_map(|(part, own)| Some((part, own?))).collect();
        let parts = Parts { kafka_brokers, database_url, s3 };
        Ok(Stack { guard, home, parts, own, remove_home: options.remove_home })
    }

    /// The addresses of the parts.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// The stack's folder, absolute.
    pub fn home(&self) -> &Path {
        &self.home.path
    }

    /// Where the log of a process of that name is.
    pub fn log(&self, name: &str) -> PathBuf {
        self.home.log(name)
    }

    /// For other processes that must not outlive this one.
    pub fn guard(&self) -> &Guard {
        &self.guard.0
    }

    /// A supervisor for services on this stack. `on_change` gets the services that run, whenever that changes.
    pub fn supervisor(
        &self,
        on_change: impl Fn(&[ServiceEndpoint]) + Send + Sync + 'static,
    ) -> anyhow::Result<Supervisor> {
        Supervisor::new(self.guard.0.clone(), self.home.path.join("logs"), on_change)
    }

    /// Whether a part runs elsewhere and was only given.
    pub fn is_given(&self, part: Part) -> bool {
        !self.own.contains_key(&part)
    }

    /// The process of a part; None while it is down, or when it was not started here.
    pub async fn pid(&self, part: Part) -> Option<u32> {
        let process = self.own.get(&part)?.process.lock().await;
        process.as_ref().filter(|process| process.is_running()).map(Managed::pid)
    }

    /// Kills a part as a power cut would (SIGKILL, children included). It stays down until [`Stack::restart`].
    pub async fn kill(&self, part: Part) -> anyhow::Result<()> {
        self.process(part).await?.kill().await
    }

    /// Asks a part to end and waits until it has. It stays down until [`Stack::restart`].
    pub async fn terminate(&self, part: Part) -> anyhow::Result<()> {
        self.process(part).await?.terminate(part.stop_grace()).await
    }

    /// Stops a part in its tracks (SIGSTOP, children included): it keeps its connections and answers nothing.
    pub async fn pause(&self, part: Part) -> anyhow::Result<()> {
        self.process(part).await?.pause().await
    }

    /// Lets a paused part go on, and waits until it answers.
    pub async fn resume(&self, part: Part) -> anyhow::Result<()> {
        let own = self.own(part)?;
        let process = self.process(part).await?;
        process.resume().await?;
        own.server.ready(&process).await
    }

    /// Starts a part anew, with the same address and the same data, and waits until it answers. One that still runs is asked to
    /// end first.
    pub async fn restart(&self, part: Part) -> anyhow::Result<()> {
        let own = self.own(part)?;
        let mut process = own.process.lock().await;
        if let Some(running) = process.as_ref() {
            running.terminate(part.stop_grace()).await?;
        }
        let started = Managed::spawn(&self.guard.0, &own.server.launch())?;
        let started = process.insert(started);
        own.server.ready(started).await
    }

    /// Takes everything down in order, the parts at once.
    pub async fn stop(self) -> anyhow::Result<()> {
        let ends = self.own.iter().map(|(part, own)| async {
            match own.process.lock().await.as_ref() {
                Some(process) => process.terminate(part.stop_grace()).await,
                None => Ok(()),
            }
        });
        try_join_all(ends).await?;
        // The rest is the guard's, when the stack is dropped: services that were left, and the folders.
        let put_away = tokio::task::spawn_blocking(move || drop(self));
        put_away.await.context("wait for the guard")
    }

    fn own(&self, part: Part) -> anyhow::Result<&Own> {
        self.own.get(&part).with_context(|| {
            format!(
                "control {part}: it was not started by this stack, because {} is set\n  unset it to have a {part} of its own",
                part.variable()
            )
        })
    }

    async fn process(&self, part: Part) -> anyhow::Result<MappedMutexGuard<'_, Managed>> {
        let process = self.own(part)?.process.lock().await;
        match MutexGuard::try_map(process, Option::as_mut) {
            Ok(process) => Ok(process),
            Err(_) => bail!("control {part}: it is not running; restart it first"),
        }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if self.remove_home && std::thread::panicking() {
            // A guard that is gone removes nothing either.
            drop(self.guard.0.keep());
            eprintln!("devstack: kept {} for a look at its logs", self.home.path.display());
        }
    }
}

/// A start under way.
struct Starting<'a> {
    home: &'a Home,
    kept: &'a Kept,
    guard: &'a Guard,
    options: &'a StackOptions,
    since: Instant,
}

impl Starting<'_> {
    async fn kafka(&self, given: Option<String>) -> anyhow::Result<(String, Option<Own>)> {
        if let Some(brokers) = given {
            self.check_given(Part::Kafka, kafka::answers(&brokers, GIVEN_TIMEOUT)).await?;
            return Ok((brokers, None));
        }
        let kafka = kafka::Kafka::prepare(self.home, self.kept, self.guard).await?;
        Ok((kafka.brokers(), Some(self.start(Part::Kafka, Server::Kafka(kafka)).await?)))
    }

    async fn postgres(&self, given: Option<String>) -> anyhow::Result<(String, Option<Own>)> {
        if let Some(url) = given {
            self.check_given(Part::Postgres, postgres::answers(&url, GIVEN_TIMEOUT)).await?;
            return Ok((url, None));
        }
        let postgres = postgres::Postgres::prepare(self.home, self.kept, self.guard).await?;
        if self.options.remove_home {
            self.guard.clean_up(postgres.folder())?;
        }
        Ok((postgres.url(), Some(self.start(Part::Postgres, Server::Postgres(postgres)).await?)))
    }

    async fn s3(&self, given: Option<crate::S3Access>) -> anyhow::Result<(crate::S3Access, Option<Own>)> {
        if let Some(access) = given {
            self.check_given(Part::S3, s3::answers(&access, GIVEN_TIMEOUT)).await?;
            return Ok((access, None));
        }
        let s3 = s3::S3::prepare(self.options.s3, self.home, self.kept, self.guard).await?;
        Ok((s3.access(), Some(self.start(Part::S3, Server::S3(s3)).await?)))
    }

    async fn check_given(&self, part: Part, answers: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
        answers.await.with_context(|| format!("use {part} that {} gives", part.variable()))?;
        self.say(&format!("{part} is given by {}", part.variable()));
        Ok(())
    }

    async fn start(&self, part: Part, server: Server) -> anyhow::Result<Own> {
        let process = Managed::spawn(self.guard, &server.launch())?;
        server.ready(&process).await?;
        self.say(&format!("{part} is ready after {:.1} s", self.since.elapsed().as_secs_f32()));
        Ok(Own { server, process: Mutex::new(Some(process)) })
    }

    fn say(&self, what: &str) {
        if self.options.progress {
            eprintln!("devstack: {what}");
        }
    }
}
