//! `clairvio object`: looking into what lies in the bucket and in the log.
//!
//! What is looked at is fetched whole, or read from a copy on disk. [`storage::inspect`] does the work; here are settings, keys,
//! and [`show`]ing. `inspect` does what it can with the keys that it has, `verify` and `cat` need them all.

pub(crate) mod show;

use std::io::{BufWriter, ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use clap::{Args, Subcommand};
use schemas::paths::ObjectKey;
use schemas::{SessionId, SessionKey};
use sealing::keyring::{KeyringError, Owner};
use sealing::transport::{LogPlace, Opened};
use service_kit::config::kafka::topic_events;
use service_kit::config::s3::S3Config;
use service_kit::keys;
use service_kit::keys::transport::TransportKeys;
use service_kit::pool::Pool;
use service_kit::shutdown::Shutdown;
use storage::inspect::{self, Content, EventsError, Held, Needed, Outline, Verified};
use storage::objects::Objects;
use storage::session_keys::SessionKeys;
use uuid::Uuid;

use crate::output::say;
use crate::settings::{self, KEYRING, KEYRING_FILE, KEYRING_PROGRAM, TRANSPORT_FILE, load, variable};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what it is and what is in it: sessions, batches, frames, records in quarantine; never an event.
    ///
    /// When an object or a record is in question: in an alarm, a gauge, an error that names it. Without keys it shows what lies in
    /// clear, and says what it could not open.
    Inspect {
        #[command(flatten)]
        what: What,
        /// For machines.
        #[arg(long)]
        json: bool,
    },
    /// Open all of it and compare it with what its footer, or its header, says. Exits with 1 on any fault.
    ///
    /// After a restore, a move to another bucket, a disk's error, or a reader's word that an object is corrupt. Sessions whose key
    /// was destroyed are counted and are no fault; records in quarantine are not opened.
    Verify {
        #[command(flatten)]
        what: What,
    },
    /// Write the events of one session to standard output, one JSON text per line, in the order of reading. They are personal data
    /// of an end user.
    ///
    /// When nothing else tells what is wrong with a session. Whoever runs it answers for what becomes of the output.
    Cat {
        #[command(flatten)]
        what: What,
        /// The session, when the object holds several.
        #[arg(long, value_name = "ID")]
        session: Option<SessionId>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct What {
    /// An object in the bucket by its key: shared/00003/ID, sessions/WORKSPACE/SESSION/ID, quarantine/00003/ID, journal/ID.
    #[arg(value_name = "KEY", required_unless_present_any = ["file", "record"], conflicts_with_all = ["file", "record"])]
    object: Option<String>,
    /// A copy of an object on disk.
    #[arg(long, value_name = "FILE", requires = "key", conflicts_with = "record")]
    file: Option<PathBuf>,
    /// The key that the copy had in the bucket: it says what it is.
    #[arg(long, value_name = "KEY", requires = "file")]
    key: Option<String>,
    /// The value of one record of the topic of events, byte for byte.
    #[arg(long, value_name = "FILE", requires = "record_key")]
    record: Option<PathBuf>,
    /// The record's key in the log: the session's id; of a sum of declines the random one that it has.
    #[arg(long, value_name = "UUID", requires = "record")]
    record_key: Option<Uuid>,
    /// The record's topic. [default: KAFKA_TOPIC_EVENTS]
    #[arg(long, value_name = "TOPIC", requires = "record")]
    topic: Option<String>,
}

/// What is looked at.
enum Subject {
    Object { key: ObjectKey, body: Bytes },
    Record { value: Vec<u8>, key: Uuid, topic: String },
}

impl What {
    async fn fetch(self) -> anyhow::Result<Subject> {
        match self {
            Self { record: Some(path), record_key: Some(key), topic, .. } => {
                let topic = topic.map_or_else(|| load(topic_events), Ok)?;
                Ok(Subject::Record { value: read(&path)?, key, topic })
            }
            Self { file: Some(path), key: Some(key), .. } => {
                Ok(Subject::Object { key: parse(&key)?, body: read(&path)?.into() })
            }
            Self { object: Some(text), .. } => {
                let config = load(S3Config::load)?;
                let key = parse(text.strip_prefix(&config.prefix).unwrap_or(&text))?;
                let body = Objects::new(&config).get(&key).await.with_context(|| format!("fetch {key}"))?;
                Ok(Subject::Object { key, body })
            }
            // The command line lets nothing else through.
            Self { .. } => bail!("nothing to look at is given"),
        }
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("read {}", path.display()))
}

fn parse(text: &str) -> anyhow::Result<ObjectKey> {
    ObjectKey::parse(text).with_context(|| {
        format!(
            "parse object key {text}\n  hint: shared/00003/ID, sessions/WORKSPACE/SESSION/ID, quarantine/00003/ID or journal/ID, as \
             it stands in the bucket"
        )
    })
}

pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Inspect { what, json } => {
            let description = match what.fetch().await? {
                Subject::Object { key, body } => describe_object(key, body).await?,
                Subject::Record { value, key, topic } => describe_record(&value, key, &topic)?,
            };
            say(&if json { format!("{description:#}\n") } else { show::render(&description) })?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Verify { what } => {
            let verified = match what.fetch().await? {
                Subject::Object { key, body } => inspect::verify(&all_keys()?, &pool()?, &key, body).await?,
                Subject::Record { value, key, topic } => {
                    inspect::check_record(&open_record(&value, key, &topic)?, key.as_bytes())
                }
            };
            say(&show::verified(&verified))?;
            Ok(exit_code(&verified))
        }
        Command::Cat { what, session } => {
            let subject = what.fetch().await?;
            eprintln!(
                "clairvio: these events are personal data of an end user; leave no copy where a deletion cannot find it"
            );
            cat(subject, session).await.map(|()| ExitCode::SUCCESS)
        }
    }
}

fn exit_code(verified: &Verified) -> ExitCode {
    if verified.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn pool() -> anyhow::Result<Pool> {
    Pool::new("inspect", None).context("start threads")
}

fn all_keys() -> anyhow::Result<SessionKeys> {
    settings::session_keys(&settings::keyring(None)?, settings::keystore()?)
}

/// An object's outline, and its content as far as there are keys.
async fn describe_object(key: ObjectKey, body: Bytes) -> anyhow::Result<serde_json::Value> {
    let outline = inspect::outline(key, &body);
    let content = match outline.needs() {
        None => Err("its clear bytes do not say how".to_owned()),
        Some(needed) => match held(needed).await? {
            Held::Known(key) => inspect::open(&outline, &body, &key).map_err(|error| error.to_string()),
            Held::Shredded => Err("the session's key was destroyed".to_owned()),
            Held::Unavailable(why) => Err(why),
        },
    };
    Ok(show::object(&outline, content.as_ref().map_err(String::as_str)))
}

/// What there is of a key with the settings that are given. That a setting is missing is no error here.
async fn held(needed: Needed) -> anyhow::Result<Held> {
    if [KEYRING_FILE, KEYRING, KEYRING_PROGRAM].into_iter().all(|name| variable(name).is_none()) {
        return Ok(Held::Unavailable(format!("no keyring is given\n  hint: set {KEYRING_FILE}")));
    }
    let source = settings::keyring(None)?;
    match needed {
        // The keyring alone opens it: no database is asked.
        Needed::Storage(version) => {
            let keyring = keys::keyring::open(&source, &Shutdown::new(Duration::ZERO))?;
            match keyring.key(Owner::Storage, version).await {
                Ok(key) => Ok(Held::Known(key)),
                Err(error @ KeyringError::Missing(_)) => Ok(Held::Unavailable(error.to_string())),
                Err(error) => Err(error.into()),
            }
        }
        Needed::Session(_) => match settings::keystore_if_given()? {
            Some(store) => Ok(inspect::key_of(&settings::session_keys(&source, store)?, needed).await?),
            None => {
                Ok(Held::Unavailable("no key store is given\n  hint: set KEYSTORE_DATABASE_URL or DATABASE_URL".into()))
            }
        },
    }
}

fn open_record(value: &[u8], key: Uuid, topic: &str) -> anyhow::Result<Opened> {
    let path = settings::transport_file(None)?;
    let keys: TransportKeys = keys::read(&path)?;
    keys.keys().open(&LogPlace { topic, key: key.as_bytes() }, value).context(
        "open record\n  hint: --record-key and --topic must be those that it has in the log, and the epoch's key must not be destroyed",
    )
}

fn describe_record(value: &[u8], key: Uuid, topic: &str) -> anyhow::Result<serde_json::Value> {
    let opened = if variable(TRANSPORT_FILE).is_some() {
        open_record(value, key, topic).map_err(|error| crate::output::explain(&error))
    } else {
        Err(format!("no transport keys are given\n  hint: set {TRANSPORT_FILE}"))
    };
    Ok(show::record(value, key, topic, opened.as_ref().map_err(String::as_str)))
}

async fn cat(subject: Subject, session: Option<SessionId>) -> anyhow::Result<()> {
    let (key, body) = match subject {
        Subject::Object { key, body } => (key, body),
        Subject::Record { value, key, topic } => {
            let events = inspect::record_events(&open_record(&value, key, &topic)?).context("read record")?;
            return written(std::io::stdout().lock().write_all(&events).map_err(EventsError::Write));
        }
    };
    let keys = all_keys()?;
    let outline = inspect::outline(key, &body);
    let content = Arc::new(open(&keys, &outline, &body).await?);
    let session = choose(&content, session)?;
    let data_key = keys.key(&session).await?;
    let writing = move || {
        let mut out = BufWriter::new(std::io::stdout().lock());
        inspect::write_events(key, &body, &content, &session, &data_key, &mut out).map(drop)
    };
    written(pool()?.run(writing).await?)
}

async fn open(keys: &SessionKeys, outline: &Outline, body: &Bytes) -> anyhow::Result<Content> {
    let Some(needed) = outline.needs() else {
        let faults: Vec<String> = outline.faults.iter().map(ToString::to_string).collect();
        bail!("open {}: {}", outline.key, faults.join("; "));
    };
    match inspect::key_of(keys, needed).await? {
        Held::Known(key) => inspect::open(outline, body, &key).with_context(|| format!("open {}", outline.key)),
        Held::Shredded => bail!("open {}: the session's key was destroyed", outline.key),
        Held::Unavailable(why) => bail!("open {}: {why}", outline.key),
    }
}

/// Whose events are wanted.
fn choose(content: &Content, session: Option<SessionId>) -> anyhow::Result<SessionKey> {
    let sessions = content.sessions();
    let mut wanted = sessions.iter().filter(|key| session.is_none_or(|session| session == key.session));
    match (wanted.next(), wanted.next()) {
        (Some(key), None) => Ok(*key),
        (Some(_), Some(_)) => bail!(
            "choose among {} sessions\n  hint: give one with --session; `clairvio object inspect` lists them",
            sessions.len()
        ),
        (None, _) if sessions.is_empty() => bail!("find events: the object holds none"),
        (None, _) => bail!("find the session: the object holds {} others", sessions.len()),
    }
}

/// Whoever reads the events may have had enough of them.
fn written(result: Result<(), EventsError>) -> anyhow::Result<()> {
    match result {
        Err(EventsError::Write(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

#[cfg(test)]
mod tests {
    use schemas::shared_object::{Chunk, Footer};
    use schemas::{ObjectId, WorkspaceId};
    use storage::inspect::{Fault, Place, Problem};

    use super::*;

    fn shared(sessions: &[u128]) -> Content {
        let key =
            |n: &u128| SessionKey { workspace: WorkspaceId(Uuid::nil()), session: SessionId(Uuid::from_u128(*n)) };
        let chunk = |n| Chunk { key: key(n), stream: 1, id: [0; 16], at: 5, batches: Vec::new() };
        Content::Shared(Footer {
            object: ObjectId(Uuid::nil()),
            partition: 0,
            offset_first: 0,
            offset_next: 0,
            chunks: sessions.iter().map(chunk).collect(),
            quarantined: Vec::new(),
        })
    }

    #[test]
    fn a_session_is_chosen_only_where_there_is_no_doubt() {
        let id = |n| SessionId(Uuid::from_u128(n));
        let chosen = |sessions: &[u128], wanted: Option<u128>| {
            choose(&shared(sessions), wanted.map(id)).map(|key| key.session).map_err(|error| error.to_string())
        };
        assert_eq!(chosen(&[1], None), Ok(id(1)));
        assert_eq!(chosen(&[1, 1], None), Ok(id(1)), "streams of one session are no choice");
        assert_eq!(chosen(&[1, 2], Some(2)), Ok(id(2)));
        assert!(chosen(&[1, 2], None).unwrap_err().contains("--session"));
        assert!(chosen(&[1, 2], Some(3)).unwrap_err().contains("2 others"));
        assert!(chosen(&[], None).unwrap_err().contains("none"));
    }

    #[test]
    fn any_fault_is_a_failure_and_a_closed_pipe_is_none() {
        let mut verified = Verified { shredded: 3, ..Verified::default() };
        assert_eq!(exit_code(&verified), ExitCode::SUCCESS);
        verified.faults.push(Fault { place: Place::Footer, problem: Problem::Gap });
        assert_eq!(exit_code(&verified), ExitCode::FAILURE);
        assert!(written(Err(EventsError::Write(ErrorKind::BrokenPipe.into()))).is_ok());
        assert!(written(Err(EventsError::Write(ErrorKind::StorageFull.into()))).is_err());
    }

    #[test]
    fn keys_that_no_object_has_are_refused_with_their_form() {
        assert!(parse("shared/00003/00000000-0000-0000-0000-000000000005").is_ok());
        assert!(parse("shared/3/x").unwrap_err().to_string().contains("hint: shared/00003/ID"));
    }
}
