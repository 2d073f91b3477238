//! `clairvio quarantine replay`: produces records again, as they are.
//!
//! A record's seal binds in its topic and its key, and nothing of its place: the same bytes under the same key open as before.
//! Each is judged as a batcher would judge it, sent, and noted as replayed once the brokers have it: at least once, which does
//! no harm, since one (session, stream, seq) is stored once. Whether its session was deleted is the batcher's to see.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use engine::receipt::TOMBSTONES_KEPT_MIN;
use futures::stream::{self, StreamExt as _};
use rdkafka::producer::{FutureProducer, FutureRecord};
use schemas::record::{Envelope, Header};
use schemas::shared_object::QuarantineReason;
use sealing::transport::Opened;
use serde_json::{Value, json};
use service_kit::config::kafka::KafkaConfig;
use service_kit::kafka;
use service_kit::keys;
use service_kit::keys::transport::TransportKeys;
use storage::quarantine::{Entry, Filter, QuarantineError, RecordId, State};
use time::OffsetDateTime;

use super::{Progress, Tools, show};
use crate::output::{counted, moment, say};
use crate::settings::{self, load};

/// Records on their way at once. Each is held in memory, of 8 MiB at most.
const AT_ONCE: usize = 8;

#[derive(Debug, Args)]
pub(crate) struct Replay {
    /// Records: TOPIC/PARTITION/OFFSET, as `list` shows them.
    #[arg(value_name = "ID", required_unless_present_any = ["reason", "all_open"], conflicts_with_all = ["reason", "all_open"])]
    ids: Vec<RecordId>,
    /// All that were not replayed and have this reason.
    #[arg(long, value_parser = super::reason, conflicts_with = "all_open")]
    reason: Option<QuarantineReason>,
    /// All that were not replayed.
    #[arg(long)]
    all_open: bool,
    /// Say what would be done, with the same exit code, and send nothing.
    #[arg(long)]
    dry_run: bool,
    /// Also send what does not open with the transport keys at hand, or was replayed before. Where the batchers have other
    /// keys than this command; what they cannot read they set aside anew.
    #[arg(long)]
    force: bool,
    /// For machines.
    #[arg(long)]
    json: bool,
}

/// What became of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    /// Kafka has it again; on a dry run, it would.
    Replayed,
    /// It was replayed before.
    Before(OffsetDateTime),
    /// Why it is not sent, and what to do.
    Refused(String, String),
}

impl Outcome {
    fn refused(why: impl Into<String>, next: impl Into<String>) -> Self {
        Self::Refused(why.into(), next.into())
    }
}

impl Replay {
    pub(super) async fn run(self) -> anyhow::Result<ExitCode> {
        let tools = Tools::open()?;
        let kafka = load(KafkaConfig::load)?;
        let keys: TransportKeys = keys::read(&settings::transport_file(None)?)?;
        let replaying = Replaying {
            tools: &tools,
            keys: Arc::new(keys),
            topic: kafka.topic_events.clone(),
            log: if self.dry_run { None } else { Some(Log::new(&kafka)?) },
            force: self.force,
        };
        let mut report = Report { dry_run: self.dry_run, outcomes: Vec::new() };
        let entries = self.entries(&tools, &mut report).await?;
        let failed = replaying.run(entries, &mut report).await;
        say(&if self.json { format!("{:#}\n", report.described()) } else { report.render() })?;
        failed.context("replay the rest\n  hint: run the command again; what was replayed is not sent again")?;
        Ok(report.exit_code())
    }

    /// The records that are meant. Those that are not there are refused.
    async fn entries(&self, tools: &Tools, report: &mut Report) -> anyhow::Result<Vec<Entry>> {
        if self.ids.is_empty() {
            let filter = Filter { reason: self.reason, since: None, state: State::Open };
            let found = tools.list(&filter).await?;
            for (object, why) in &found.corrupt {
                eprintln!("clairvio: {object} is corrupt: {why}; what it holds is left out");
            }
            return Ok(found.entries);
        }
        let mut entries = Vec::new();
        for id in self.ids.iter().collect::<BTreeSet<_>>() {
            match tools.quarantine.find(id).await {
                Ok(entry) => entries.push(entry),
                Err(QuarantineError::Missing(id)) => {
                    let outcome = Outcome::refused("it is not in quarantine", "see `clairvio quarantine list --all`");
                    report.outcomes.push((id, outcome));
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(entries)
    }
}

struct Replaying<'a> {
    tools: &'a Tools,
    keys: Arc<TransportKeys>,
    topic: String,
    /// None on a dry run.
    log: Option<Log>,
    force: bool,
}

impl Replaying<'_> {
    /// Replays all, in the order of the list. The first that Kafka, the bucket or the index fails is the last that is begun:
    /// they would fail the others too. What is on its way by then is waited for, since it has to be noted when it arrives.
    async fn run(&self, entries: Vec<Entry>, report: &mut Report) -> anyhow::Result<()> {
        let (total, mut progress) = (entries.len(), Progress::begin());
        let has_failed = Cell::new(false);
        let replay = async |entry: Entry| {
            if has_failed.get() {
                return Ok(None);
            }
            let outcome = self.replay(&entry).await.with_context(|| format!("replay record {}", entry.id));
            has_failed.set(has_failed.get() || outcome.is_err());
            outcome.map(|outcome| Some((entry.id, outcome)))
        };
        let mut outcomes = stream::iter(entries).map(replay).buffered(AT_ONCE);
        let mut first_failure = Ok(());
        while let Some(outcome) = outcomes.next().await {
            match outcome {
                Ok(outcome) => report.outcomes.extend(outcome),
                Err(error) => first_failure = first_failure.and(Err(error)),
            }
            progress.tell(|| format!("{} of {total} records", report.outcomes.len()));
        }
        first_failure
    }

    async fn replay(&self, entry: &Entry) -> anyhow::Result<Outcome> {
        if let Some(at) = entry.replayed_at.filter(|_| !self.force) {
            return Ok(Outcome::Before(at));
        }
        if entry.id.topic != self.topic {
            let why = format!("it is of topic {}, and the batchers read {}", entry.id.topic, self.topic);
            return Ok(Outcome::refused(why, "set KAFKA_TOPIC_EVENTS, if it is the wrong one here"));
        }
        let value = self.tools.quarantine.bytes(entry).await?;
        match self.tools.judge(&self.keys, entry, value.clone()).await? {
            Ok(opened) => {
                if let Some(refused) = self.past_window(&opened).await? {
                    return Ok(refused);
                }
            }
            Err(_) if self.force => {}
            Err(reason) => {
                let envelope = Envelope::read(&value).ok().map(|(envelope, _)| envelope);
                let (why, next) = show::why(reason, envelope.as_ref());
                return Ok(Outcome::refused(why, next));
            }
        }
        if let Some(log) = &self.log {
            log.append(&entry.id.topic, &entry.record_key, &value).await?;
            self.tools.quarantine.mark_replayed(&entry.id).await?;
        }
        Ok(Outcome::Replayed)
    }

    /// A session of which nothing was read before would begin its window on the day of the replay: what is past it by its
    /// consent must not come back (P7), nor what may have been deleted before.
    async fn past_window(&self, opened: &Opened) -> anyhow::Result<Option<Outcome>> {
        let (Header::Acceptance { key, consent } | Header::Batch { key, consent, .. }) = &opened.header else {
            return Ok(None);
        };
        let consented_at =
            OffsetDateTime::UNIX_EPOCH + Duration::from_millis(consent.consented_at_ms.min(MOMENT_MS_MAX));
        let is_past = self.tools.index.is_past_window(key.workspace, consented_at).await?;
        if is_past {
            let why = "its session is past the window of the workspace's plan";
            return Ok(Some(Outcome::refused(why, "leave it there")));
        }
        // Whether it was deleted is the batcher's to see, as long as there is a tombstone.
        if self.tools.index.may_be_forgotten(key, consented_at, TOMBSTONES_KEPT_MIN).await? {
            let why = "its session may have been deleted so long ago that nobody knows of it any more";
            return Ok(Some(Outcome::refused(why, "leave it there")));
        }
        Ok(None)
    }
}

/// The year 9999: a clock beyond it is out of its mind, and no moment can be told.
const MOMENT_MS_MAX: u64 = 253_402_300_799_000;

/// The topic, to be written to.
struct Log {
    producer: FutureProducer,
    brokers: String,
    timeout: Duration,
}

impl Log {
    fn new(config: &KafkaConfig) -> anyhow::Result<Self> {
        let timeout = config.delivery_timeout;
        let producer = kafka::client(config, "clairvio")
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("linger.ms", "0")
            .set("message.timeout.ms", timeout.as_millis().to_string())
            .create()
            .context("make producer")?;
        Ok(Self { producer, brokers: config.brokers.clone(), timeout })
    }

    /// Waits until all in-sync replicas have the record.
    async fn append(&self, topic: &str, key: &[u8], value: &[u8]) -> anyhow::Result<()> {
        let sent = self.producer.send(FutureRecord::to(topic).key(key).payload(value), self.timeout).await;
        sent.map(drop).map_err(|(error, _)| error).with_context(|| {
            format!("produce to {topic} at {}\n  hint: are the brokers up, and is KAFKA_BROKERS right?", self.brokers)
        })
    }
}

/// What became of all records.
struct Report {
    dry_run: bool,
    outcomes: Vec<(RecordId, Outcome)>,
}

impl Report {
    fn refused(&self) -> impl Iterator<Item = (&RecordId, &str, &str)> {
        self.outcomes.iter().filter_map(|(id, outcome)| match outcome {
            Outcome::Refused(why, next) => Some((id, why.as_str(), next.as_str())),
            Outcome::Replayed | Outcome::Before(_) => None,
        })
    }

    fn replayed(&self) -> impl Iterator<Item = &RecordId> {
        self.outcomes.iter().filter(|(_, outcome)| *outcome == Outcome::Replayed).map(|(id, _)| id)
    }

    fn before(&self) -> impl Iterator<Item = (&RecordId, OffsetDateTime)> {
        self.outcomes.iter().filter_map(|(id, outcome)| match outcome {
            Outcome::Before(at) => Some((id, *at)),
            Outcome::Replayed | Outcome::Refused(..) => None,
        })
    }

    fn exit_code(&self) -> ExitCode {
        if self.refused().next().is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn described(&self) -> Value {
        let refused = self.refused().map(|(id, why, next)| json!({ "id": id.to_string(), "why": why, "next": next }));
        let before = self.before().map(|(id, at)| json!({ "id": id.to_string(), "replayed_at": moment(at) }));
        json!({
            "dry_run": self.dry_run,
            "replayed": self.replayed().map(ToString::to_string).collect::<Vec<_>>(),
            "replayed_before": before.collect::<Vec<_>>(),
            "refused": refused.collect::<Vec<_>>(),
        })
    }

    fn render(&self) -> String {
        let mut out = String::new();
        for (id, why, next) in self.refused() {
            out.push_str(&format!("refused {id}: {why}\n  hint: {next}\n"));
        }
        for (id, at) in self.before() {
            out.push_str(&format!("left {id}: it was replayed at {}\n  hint: --force sends it again\n", moment(at)));
        }
        let counts = |number: usize| counted(number as u64, "record", "records");
        let done = if self.dry_run { "would be replayed" } else { "replayed" };
        out.push_str(&format!("{} {done}, {} refused\n", counts(self.replayed().count()), self.refused().count()));
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(outcomes: Vec<Outcome>) -> Report {
        let id = |offset| RecordId { topic: "t".to_owned(), partition: 1, offset };
        Report { dry_run: false, outcomes: (0..).map(id).zip(outcomes).collect() }
    }

    #[test]
    fn what_was_refused_is_told_with_its_remedy_and_is_a_failure() {
        let refused = report(vec![Outcome::Replayed, Outcome::refused("no key", "bring it")]);
        assert_eq!(refused.exit_code(), ExitCode::FAILURE);
        assert_eq!(refused.render(), "refused t/1/1: no key\n  hint: bring it\n1 record replayed, 1 refused\n");
        assert_eq!(refused.described()["replayed"], json!(["t/1/0"]));
        assert_eq!(refused.described()["refused"][0]["next"], json!("bring it"));
    }

    #[test]
    fn what_was_replayed_before_is_told_and_is_no_failure() {
        let mut before = report(vec![Outcome::Before(OffsetDateTime::UNIX_EPOCH), Outcome::Replayed]);
        assert_eq!(before.exit_code(), ExitCode::SUCCESS);
        assert!(
            before.render().starts_with("left t/1/0: it was replayed at 1970-01-01T00:00:00Z"),
            "{}",
            before.render()
        );
        before.dry_run = true;
        assert!(before.render().ends_with("1 record would be replayed, 0 refused\n"));
    }

    #[test]
    fn a_replay_needs_to_be_told_what_and_only_once() {
        let parse = |arguments: &[&str]| {
            let command = <Replay as Args>::augment_args(clap::Command::new("replay"));
            command.try_get_matches_from(std::iter::once(&"replay").chain(arguments)).is_ok()
        };
        for right in [["t/1/2", "t/1/3"].as_slice(), &["--reason", "key"], &["--all-open", "--dry-run"]] {
            assert!(parse(right), "{right:?}");
        }
        for wrong in
            [[].as_slice(), &["t/1"], &["t/1/2", "--all-open"], &["--all-open", "--reason", "key"], &["--force"]]
        {
            assert!(!parse(wrong), "{wrong:?}");
        }
    }
}
