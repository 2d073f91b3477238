//! The parts of a stack: which there are, their addresses, and which of them the environment already gives.

pub(crate) mod kafka;
pub(crate) mod postgres;
pub(crate) mod s3;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::places::variable;
use crate::process::{Launch, Managed};

/// A part of the stack, to inflict faults on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// The broker (and its controller, one process).
    Kafka,
    /// The database server with its backends.
    Postgres,
    /// The object store.
    S3,
}

impl Part {
    /// All of them, in the order of data.
    pub const ALL: [Part; 3] = [Part::Kafka, Part::Postgres, Part::S3];

    /// Its name in messages and of its log.
    pub fn name(self) -> &'static str {
        match self {
            Part::Kafka => "kafka",
            Part::Postgres => "postgres",
            Part::S3 => "s3",
        }
    }

    /// The variable that gives an address of one that already runs.
    pub fn variable(self) -> &'static str {
        match self {
            Part::Kafka => "KAFKA_BROKERS",
            Part::Postgres => "DATABASE_URL",
            Part::S3 => "S3_ENDPOINT",
        }
    }

    /// After this it is not asked any more but killed.
    pub(crate) fn stop_grace(self) -> Duration {
        match self {
            Part::Kafka | Part::Postgres => Duration::from_secs(20),
            Part::S3 => Duration::from_secs(5),
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// Which S3 server a stack starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum S3Kind {
    /// A plain folder, served by this very binary: starts at once and needs nothing installed.
    #[default]
    Folder,
    /// versitygw on a folder, which knows versions of objects as well.
    Versitygw,
}

impl S3Kind {
    /// What `DEVSTACK_S3` says: `folder` (the default) or `versitygw`.
    pub fn from_env() -> anyhow::Result<S3Kind> {
        variable("DEVSTACK_S3").map_or(Ok(S3Kind::default()), |name| name.parse()).context("read DEVSTACK_S3")
    }
}

impl FromStr for S3Kind {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<S3Kind> {
        match name {
            "folder" => Ok(S3Kind::Folder),
            "versitygw" => Ok(S3Kind::Versitygw),
            other => {
                anyhow::bail!("choose S3 server: {other:?} is not known; it is folder or versitygw")
            }
        }
    }
}

/// The addresses of a stack's parts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parts {
    /// Bootstrap servers, comma separated.
    pub kafka_brokers: String,
    /// `postgres://…` with user and password.
    pub database_url: String,
    /// The bucket and the way to it.
    pub s3: S3Access,
}

/// A bucket and the way to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct S3Access {
    /// `http://…`, addressed by path.
    pub endpoint: String,
    /// The region that requests are signed for.
    pub region: String,
    /// The bucket, which exists.
    pub bucket: String,
    /// Who signs.
    pub access_key: String,
    /// With what.
    pub secret_key: String,
}

/// The parts that already run elsewhere, and are used instead of being started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Given {
    /// Bootstrap servers.
    pub kafka_brokers: Option<String>,
    /// A database.
    pub database_url: Option<String>,
    /// A bucket; it is made if it is missing.
    pub s3: Option<S3Access>,
}

/// The region and bucket where nothing else is said.
pub(crate) const REGION: &str = "us-east-1";
pub(crate) const BUCKET: &str = "clairvio";

impl Given {
    /// What `KAFKA_BROKERS`, `DATABASE_URL` and `S3_ENDPOINT` (with `S3_REGION`, `S3_BUCKET`, `AWS_ACCESS_KEY_ID`,
    /// `AWS_SECRET_ACCESS_KEY`) say.
    pub fn from_env() -> anyhow::Result<Given> {
        let s3 = match variable("S3_ENDPOINT") {
            None => None,
            Some(endpoint) => Some(S3Access {
                endpoint,
                region: variable("S3_REGION").unwrap_or_else(|| REGION.to_owned()),
                bucket: variable("S3_BUCKET").unwrap_or_else(|| BUCKET.to_owned()),
                access_key: variable("AWS_ACCESS_KEY_ID")
                    .context("read AWS_ACCESS_KEY_ID: set it along with S3_ENDPOINT")?,
                secret_key: variable("AWS_SECRET_ACCESS_KEY")
                    .context("read AWS_SECRET_ACCESS_KEY: set it along with S3_ENDPOINT")?,
            }),
        };
        Ok(Given { kafka_brokers: variable("KAFKA_BROKERS"), database_url: variable("DATABASE_URL"), s3 })
    }
}

/// A part that the stack starts itself.
#[derive(Debug)]
pub(crate) enum Server {
    Kafka(kafka::Kafka),
    Postgres(postgres::Postgres),
    S3(s3::S3),
}

impl Server {
    pub(crate) fn launch(&self) -> Launch {
        match self {
            Server::Kafka(kafka) => kafka.launch(),
            Server::Postgres(postgres) => postgres.launch(),
            Server::S3(s3) => s3.launch(),
        }
    }

    /// Waits until the part answers in its own protocol, or has ended.
    pub(crate) async fn ready(&self, process: &Managed) -> anyhow::Result<()> {
        // Boxed: the types of the clients' futures are so deep that a caller's compiler would give up on them.
        let answers = Box::pin(async {
            match self {
                Server::Kafka(kafka) => kafka::answers(&kafka.brokers(), START_TIMEOUT).await,
                Server::Postgres(postgres) => postgres::answers(&postgres.url(), START_TIMEOUT).await,
                Server::S3(s3) => s3::answers(&s3.access(), START_TIMEOUT).await,
            }
        });
        let result = tokio::select! {
            result = answers => result,
            status = process.wait() => Err(anyhow::anyhow!("it ended: {status}")),
        };
        result.map_err(|error| anyhow::anyhow!("start {}: {error:#}\n{}", process.name(), process.log_tail()))
    }
}

/// For a part to answer after its start, on a machine that is busy with other things.
const START_TIMEOUT: Duration = Duration::from_secs(90);
/// For a part that runs elsewhere to answer.
pub(crate) const GIVEN_TIMEOUT: Duration = Duration::from_secs(15);
