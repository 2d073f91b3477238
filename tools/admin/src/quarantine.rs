//! `clairvio quarantine`: records that no batcher could read.
//!
//! [`storage::quarantine`] finds them wherever they lie; [`show`] says what they are, [`replay`] produces them again. No
//! command shows a payload.

mod replay;
mod show;

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use bytes::Bytes;
use clap::{Args, Subcommand};
use schemas::ObjectId;
use schemas::paths::ObjectKey;
use schemas::record::{Envelope, Header};
use schemas::shared_object::QuarantineReason;
use sealing::transport::{EpochKeys, LogPlace, Opened};
use serde_json::json;
use service_kit::config::postgres::PostgresConfig;
use service_kit::config::s3::S3Config;
use service_kit::keys;
use service_kit::keys::transport::TransportKeys;
use service_kit::pool::Pool;
use storage::index::Index;
use storage::objects::Objects;
use storage::quarantine::{Entry, Filter, Page, Quarantine, RecordId, State};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::output::{Progress, say};
use crate::settings::{self, TRANSPORT_FILE, load, variable};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the records in quarantine, those set aside first at the top.
    ///
    /// When `batcher_records_total{what="quarantined"}` grows, and before and after a replay. Needs DATABASE_URL, the bucket's
    /// settings and the keyring; no transport keys.
    #[command(after_help = LIST_EXAMPLES)]
    List(List),
    /// Show what one record is, and whether it opens now. Never its payload.
    ///
    /// Without CLAIRVIO_TRANSPORT_KEYS_FILE it shows what lies in clear.
    #[command(after_help = SHOW_EXAMPLES)]
    Show(Show),
    /// Produce records again, under the same key and byte for byte, so that the batchers read them.
    ///
    /// Once what kept them from being read is repaired, at the batchers too: they would set it aside anew. Only what opens now
    /// is sent; what does not is refused, and the exit code is 1 then. A record is noted as replayed after the broker's
    /// acknowledgement. If that is cut short, run it again: what is replayed twice is stored once, since a batch's session,
    /// stream and seq are. A sum of declines alone has no such number, and counts twice then.
    #[command(after_help = REPLAY_EXAMPLES)]
    Replay(replay::Replay),
    /// Remove a quarantine object with all that is in it, for good.
    ///
    /// For a damaged object that is past mending: deletions of sessions that it may hold wait for it, and no other way leads out.
    /// Records in it that were not replayed are lost. `list` shows objects; the retention worker removes it after the grace.
    #[command(after_help = DISCARD_EXAMPLES)]
    Discard(Discard),
}

const DISCARD_EXAMPLES: &str = "Examples:
  clairvio quarantine discard quarantine/00003/01a22a46-f48d-7590-9000-ba44251bf77c --yes";

const LIST_EXAMPLES: &str = "Examples:
  clairvio quarantine list
  clairvio quarantine list --reason key --since 2h
  clairvio quarantine list --all --json | jq '.items[] | select(.replayed_at == null) | .id'";

const SHOW_EXAMPLES: &str = "Examples:
  clairvio quarantine show session-events/3/1842";

const REPLAY_EXAMPLES: &str = "Examples:
  clairvio quarantine replay --reason key --dry-run
  clairvio quarantine replay --reason key
  clairvio quarantine replay session-events/3/1842 session-events/3/1850";

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Those with this reason only: header, version, payload, key, seal, session_key.
    #[arg(long, value_parser = reason)]
    reason: Option<QuarantineReason>,
    /// Those set aside since then only: 2026-03-23T10:00:00Z, or so long ago: 30m, 2h, 7d. Older ones that lie in the same
    /// object come along.
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<OffsetDateTime>,
    /// Those that were replayed too.
    #[arg(long, conflicts_with = "replayed")]
    all: bool,
    /// Those that were replayed only.
    #[arg(long)]
    replayed: bool,
    /// For machines.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Discard {
    /// The object: its key, as `list` shows it.
    #[arg(value_name = "OBJECT", value_parser = object)]
    object: ObjectId,
    /// Without it nothing is removed.
    #[arg(long)]
    yes: bool,
}

/// The id of a quarantine object, by its key.
fn object(text: &str) -> Result<ObjectId, String> {
    match ObjectKey::parse(text) {
        Some(ObjectKey::Quarantine { id, .. }) => Ok(id),
        _ => Err("it is a key as `list` shows it: quarantine/PARTITION/ID".to_owned()),
    }
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    /// The record: TOPIC/PARTITION/OFFSET, its place in the log, as `list` shows it.
    #[arg(value_name = "ID")]
    id: RecordId,
    /// For machines.
    #[arg(long)]
    json: bool,
}

fn reason(word: &str) -> Result<QuarantineReason, String> {
    QuarantineReason::parse(word).ok_or_else(|| {
        let words: Vec<&str> = QuarantineReason::ALL.iter().map(|reason| reason.as_str()).collect();
        format!("it is one of {}", words.join(", "))
    })
}

fn since(text: &str) -> Result<OffsetDateTime, String> {
    if let Ok(at) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(at);
    }
    let ago = || {
        let unit = text.chars().last()?;
        let seconds = match unit {
            'm' => 60,
            'h' => 3_600,
            'd' => 86_400,
            _ => return None,
        };
        let count: u32 = text.strip_suffix(unit)?.parse().ok()?;
        OffsetDateTime::now_utc().checked_sub(time::Duration::seconds(i64::from(count) * seconds))
    };
    ago().ok_or_else(|| "it is a time as 2026-03-23T10:00:00Z, or how long ago as 30m, 2h or 7d".to_owned())
}

pub(crate) async fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::List(list) => list.run().await.map(|()| ExitCode::SUCCESS),
        Command::Show(show) => show.run().await.map(|()| ExitCode::SUCCESS),
        Command::Replay(replay) => replay.run().await,
        Command::Discard(discard) => discard.run().await.map(|()| ExitCode::SUCCESS),
    }
}

/// What all commands look with.
struct Tools {
    index: Index,
    quarantine: Quarantine,
    pool: Pool,
}

impl Tools {
    fn open() -> anyhow::Result<Self> {
        let index = Index::new(&load(PostgresConfig::load)?)?;
        let objects = Objects::new(&load(S3Config::load)?);
        let keys = settings::session_keys(&settings::keyring(None)?, settings::keystore()?)?;
        let pool = Pool::new("quarantine", None).context("start threads")?;
        Ok(Self { quarantine: Quarantine::new(index.clone(), objects, keys, pool.clone()), index, pool })
    }

    async fn list(&self, filter: &Filter) -> anyhow::Result<Page> {
        let mut progress = Progress::begin();
        let told = |records, objects| progress.tell(|| format!("{records} records in {objects} objects so far"));
        Ok(self.quarantine.all(filter, told).await?)
    }

    /// Whether a batcher with these keys takes a record with these bytes, and as what; else why not.
    async fn judge(
        &self,
        keys: &Arc<TransportKeys>,
        entry: &Entry,
        value: Bytes,
    ) -> anyhow::Result<Result<Opened, QuarantineReason>> {
        let (keys, topic, key) = (Arc::clone(keys), entry.id.topic.clone(), entry.record_key.clone());
        Ok(self.pool.run(move || open(keys.keys(), &topic, &key, &value)).await?)
    }
}

fn open(keys: &EpochKeys, topic: &str, key: &[u8], value: &[u8]) -> Result<Opened, QuarantineReason> {
    keys.read(&LogPlace { topic, key }, value)
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let state = match (self.all, self.replayed) {
            (true, _) => State::All,
            (false, true) => State::Replayed,
            (false, false) => State::Open,
        };
        let filter = Filter { reason: self.reason, since: self.since, state };
        let found = Tools::open()?.list(&filter).await?;
        let described = show::list(&found);
        say(&if self.json { format!("{described:#}\n") } else { show::render_list(&found, state) })
    }
}

impl Discard {
    async fn run(self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.yes,
            "nothing was removed\n  hint: --yes removes the object with all that is in it, for good"
        );
        let index = Index::new(&load(PostgresConfig::load)?)?;
        let is_discarded = index.discard_quarantine(self.object).await?;
        anyhow::ensure!(is_discarded, "find the object: no live quarantine object has this key");
        say("discarded; the retention worker removes it after the grace for readers\n")
    }
}

impl Show {
    async fn run(self) -> anyhow::Result<()> {
        let tools = Tools::open()?;
        let entry = tools.quarantine.find(&self.id).await?;
        let value = tools.quarantine.bytes(&entry).await?;
        let envelope = Envelope::read(&value).ok().map(|(envelope, _)| envelope);
        let mut described = show::record(&entry, envelope.as_ref());
        if variable(TRANSPORT_FILE).is_none() {
            described["opens_now"] = json!("unknown");
            described["why"] = json!("no transport keys are given");
            described["next"] = json!(format!("set {TRANSPORT_FILE}"));
        } else {
            let keys: TransportKeys = keys::read(&settings::transport_file(None)?)?;
            let judged = tools.judge(&Arc::new(keys), &entry, value).await?;
            show::add_judgement(&mut described, envelope.as_ref(), judged.as_ref().map_err(|reason| *reason));
            if let Ok(Opened { header: Header::Acceptance { key, .. } | Header::Batch { key, .. }, .. }) = &judged {
                let deleted = tools.index.deleted_among(std::slice::from_ref(key)).await?;
                described["session_deleted"] = json!(!deleted.is_empty());
            }
        }
        say(&if self.json { format!("{described:#}\n") } else { show::render(&described) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_quarantine_objects_are_discarded() {
        let id = "01a22a46-f48d-7590-9000-ba44251bf77c";
        assert!(object(&format!("quarantine/00003/{id}")).is_ok());
        for text in [id, &format!("shared/00003/{id}"), "quarantine/00003/", ""] {
            assert!(object(text).unwrap_err().contains("quarantine/"), "{text}");
        }
    }

    #[test]
    fn reasons_and_times_are_read_or_refused_with_their_form() {
        assert_eq!(reason("seal"), Ok(QuarantineReason::Seal));
        assert!(reason("sael").unwrap_err().contains("seal"));
        assert_eq!(since("2026-03-23T10:00:00Z").map(OffsetDateTime::unix_timestamp), Ok(1_774_260_000));
        let ago = |text| since(text).map(|at| (OffsetDateTime::now_utc() - at).whole_minutes());
        assert_eq!((ago("30m"), ago("2h"), ago("7d")), (Ok(30), Ok(120), Ok(7 * 24 * 60)));
        for text in ["", "h", "2", "-2h", "2w", "yesterday", "4294967295d", "é"] {
            assert!(since(text).unwrap_err().contains("2h"), "{text}");
        }
    }
}
