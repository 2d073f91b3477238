//! `devstack`: a private, real stack on one machine, and the demo on it.

mod demo;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use devstack::{Deployment, DeploymentOptions, Endpoints, Private, S3Kind, Stack, StackOptions};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// A private, real stack on one machine: Apache Kafka, Postgres, an S3 server and all services, each its own process.
///
/// Everything listens on 127.0.0.1 alone, on ports that are free, and lives in one folder. When devstack ends, however that
/// happens, nothing that it started is left running.
///
/// A part that already runs elsewhere is used instead of being started when the environment gives its address: KAFKA_BROKERS;
/// DATABASE_URL; S3_ENDPOINT with S3_REGION, S3_BUCKET, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the stack and the services, say where they are, and keep them until Ctrl-C.
    ///
    /// A service that dies is started again. Once all is ready, endpoints.json in the folder says where everything is. What lies in the folder from an earlier start is used again, with the same addresses where they are still free.
    Up {
        #[command(flatten)]
        place: Place,
    },
    /// Start a private stack, see an event's whole way on it, and end it. Exits with 0 only if everything held.
    Demo {
        /// Tell the story on a stack that runs already: the one in this folder.
        #[arg(long, value_name = "FOLDER")]
        on: Option<PathBuf>,
    },
    /// End what a parent left behind: lines on standard input name its processes, its end is the parent's.
    #[command(hide = true)]
    Guard,
    /// Serve a folder as an S3 server, with credentials from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
    #[command(hide = true)]
    S3Server {
        /// The folder; its sub-folders are the buckets.
        #[arg(long, value_name = "FOLDER")]
        root: PathBuf,
        /// The address to listen on.
        #[arg(long, value_name = "ADDRESS")]
        listen: SocketAddr,
    },
}

#[derive(Debug, clap::Args)]
struct Place {
    /// The stack's folder: data, logs, addresses. One stack at a time lives in it. [default: .devstack in the workspace]
    #[arg(long, env = "DEVSTACK_HOME", value_name = "FOLDER")]
    home: Option<PathBuf>,
    /// The S3 server to start: folder, which is built in, or versitygw, which is built with Go when it is not installed.
    #[arg(long, env = "DEVSTACK_S3", value_name = "SERVER", default_value = "folder", value_parser = parse_s3_kind)]
    s3: S3Kind,
}

fn parse_s3_kind(name: &str) -> Result<S3Kind, String> {
    name.parse().map_err(|error: anyhow::Error| format!("{error:#}"))
}

impl Place {
    fn options(self) -> anyhow::Result<StackOptions> {
        let home = match self.home {
            Some(home) => home,
            None => devstack::default_home()?,
        };
        Ok(StackOptions { home, s3: self.s3, progress: true, remove_home: false })
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse().command).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("devstack: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up { place } => up(place.options()?).await,
        Command::Demo { on } => run_demo(on).await,
        Command::Guard => devstack::guard::run().await.map(|()| ExitCode::SUCCESS),
        Command::S3Server { root, listen } => devstack::s3_server::run(&root, listen).await.map(|()| ExitCode::SUCCESS),
    }
}

async fn up(options: StackOptions) -> anyhow::Result<ExitCode> {
    let mut interruptions = Interruptions::listen()?;
    let started = tokio::select! {
        started = start(options) => Some(started?),
        () = interruptions.next() => None,
    };
    let Some((stack, deployment)) = started else {
        eprintln!("devstack: interrupted while starting; all of it was ended");
        return Ok(ExitCode::FAILURE);
    };
    tell(&stack, &deployment.endpoints());
    println!("Ctrl-C ends it.");

    interruptions.next().await;
    eprintln!("devstack: stopping");
    tokio::select! {
        stopped = stop(stack, deployment) => stopped?,
        // The guard ends what is left, without further patience of ours.
        () = interruptions.next() => return Ok(ExitCode::FAILURE),
    }
    Ok(ExitCode::SUCCESS)
}

async fn start(options: StackOptions) -> anyhow::Result<(Stack, Deployment)> {
    let progress = options.progress;
    let stack = Stack::start(options).await?;
    let since = std::time::Instant::now();
    let options = DeploymentOptions { default_ports: true, ..DeploymentOptions::default() }.with(
        "retention-worker",
        "CLAIRVIO_RECONCILE_INTERVAL_MS",
        2_000,
    );
    let deployment = Deployment::start(&stack, &options).await?;
    if progress {
        eprintln!("devstack: services are ready after {:.1} s more", since.elapsed().as_secs_f32());
    }
    Ok((stack, deployment))
}

async fn stop(stack: Stack, deployment: Deployment) -> anyhow::Result<()> {
    deployment.stop().await?;
    stack.stop().await
}

fn tell(stack: &Stack, endpoints: &Endpoints) {
    let s3 = &endpoints.s3;
    println!("home      {}", stack.home().display());
    println!("edge      {}", endpoints.edge_url);
    println!("api       {}  (key and all else: endpoints.json in home)", endpoints.api_url);
    println!("kafka     {}", endpoints.kafka_brokers);
    println!("postgres  {}", endpoints.database_url);
    println!("s3        {}  bucket {}  region {}", s3.endpoint, s3.bucket, s3.region);
    for service in &endpoints.services {
        println!("{:<20} pid {:<8} {}", service.name, service.pid, service.admin_url);
    }
}

/// The demo on a stack of its own, in a folder that goes with it; or on one that runs.
async fn run_demo(on: Option<PathBuf>) -> anyhow::Result<ExitCode> {
    if let Some(home) = on {
        demo::run(&Endpoints::read(&home)?).await?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut interruptions = Interruptions::listen()?;
    let telling = async {
        let private = Private::start("demo").await?;
        let told = demo::run(&private.endpoints()).await;
        private.stop().await?;
        told
    };
    tokio::select! {
        told = telling => told?,
        () = interruptions.next() => {
            eprintln!("devstack: interrupted; all of it was ended");
            return Ok(ExitCode::FAILURE);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What ends a program: Ctrl-C, SIGTERM, the terminal's end.
struct Interruptions {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Interruptions {
    fn listen() -> anyhow::Result<Interruptions> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Interruptions {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
