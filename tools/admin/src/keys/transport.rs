//! Epochs of the transport: rotating and destroying them.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use sealing::transport::EpochId;
use service_kit::keys;
use service_kit::keys::transport::{DestroyError, TransportKeys};
use time::OffsetDateTime;

use super::{TransportFile, lock};
use crate::output::moment;
use crate::settings;

#[derive(Debug, Args)]
#[command(subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
pub(crate) struct Destroy {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    due: Due,
}

#[derive(Debug, Args)]
struct Due {
    /// Destroy every epoch whose records have left the log by now.
    #[arg(long, required = true)]
    due: bool,
    #[command(flatten)]
    retention: Retention,
    #[command(flatten)]
    file: TransportFile,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Destroy one epoch. Refused while the log may hold records of it; the current one and the next are never destroyed.
    Epoch {
        /// Its number, as `clairvio keys list` shows it.
        id: u32,
        /// Destroy it now although the log may hold records of it: those that no batcher has stored yet are lost. To cut off
        /// whoever has the epoch's key and the log, when batchers are known to have caught up, or the loss is the lesser evil.
        #[arg(long)]
        and_lose_its_unread_records: bool,
        #[command(flatten)]
        retention: Retention,
        #[command(flatten)]
        file: TransportFile,
    },
}

/// How long the log keeps records.
#[derive(Debug, Args)]
pub(super) struct Retention {
    /// Hours that the topic of events keeps records.
    #[arg(long, value_name = "HOURS", default_value_t = 72, value_parser = clap::value_parser!(u64).range(1..=8_784))]
    pub(super) retention_hours: u64,
}

impl Retention {
    /// How long after its end an epoch's records may be in the log: the retention, a segment, which is deleted as a whole and
    /// spans a twenty-fourth of it at most, and an hour for clocks and for the broker to do it.
    pub(super) fn kept(&self) -> Duration {
        let retention = Duration::from_secs(self.retention_hours * 3600);
        retention + retention / 24 + Duration::from_secs(3600)
    }
}

pub(super) fn rotate(file: TransportFile) -> anyhow::Result<()> {
    let path = settings::transport_file(file.file)?;
    print!("{}", rotate_at(&path, OffsetDateTime::now_utc())?);
    Ok(())
}

fn rotate_at(path: &Path, now: OffsetDateTime) -> anyhow::Result<String> {
    let _turn = lock(path)?;
    let mut keys: TransportKeys = keys::read(path)?;
    let ended = keys.current().0;
    keys.rotate(now)?;
    keys::replace(path, &keys)?;
    let current = keys.current().0;
    let ready = keys.epochs().last().map_or(current, |epoch| EpochId(epoch.id));
    Ok(format!(
        "epoch {ended} has ended\nepoch {current} is current: edges seal under it within seconds of having the file\n\
         epoch {ready} stands ready\nnext: bring {} to every edge and every batcher, all of them before the next rotation: a \
         batcher puts records of an epoch that it does not know into quarantine\n",
        path.display()
    ))
}

impl Destroy {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let now = OffsetDateTime::now_utc();
        let said = match self.what {
            Some(What::Epoch { id, and_lose_its_unread_records, retention, file }) => {
                let path = settings::transport_file(file.file)?;
                let kept = if and_lose_its_unread_records { Duration::ZERO } else { retention.kept() };
                destroy_epoch(&path, EpochId(id), now, kept)?
            }
            None => destroy_due(&settings::transport_file(self.due.file.file)?, now, self.due.retention.kept())?,
        };
        print!("{said}");
        Ok(())
    }
}

fn destroy_epoch(path: &Path, epoch: EpochId, now: OffsetDateTime, kept: Duration) -> anyhow::Result<String> {
    let _turn = lock(path)?;
    let mut keys: TransportKeys = keys::read(path)?;
    match keys.destroy(epoch, now, kept) {
        Ok(()) => {}
        Err(DestroyError::Early { epoch, until }) => bail!(
            "destroy epoch {epoch}: the log may hold records of it until {}\n  hint: `clairvio keys destroy --due` destroys it \
             then; `clairvio keys destroy epoch --help` says what there is for emergencies",
            moment(until)
        ),
        Err(error) => return Err(error.into()),
    }
    keys::replace(path, &keys)?;
    Ok(destroyed(&[epoch], path))
}

fn destroy_due(path: &Path, now: OffsetDateTime, kept: Duration) -> anyhow::Result<String> {
    let _turn = lock(path)?;
    let mut keys: TransportKeys = keys::read(path)?;
    let due = keys.due(now, kept);
    if due.is_empty() {
        let next =
            keys.epochs().iter().filter_map(|epoch| Some((epoch.id, epoch.ended_at? + kept))).min_by_key(|e| e.1);
        return Ok(match next {
            Some((id, at)) => format!("no epoch is due\nepoch {id} is due at {}\n", moment(at)),
            None => "no epoch is due\nnone has ended\n".to_owned(),
        });
    }
    for epoch in &due {
        keys.destroy(*epoch, now, kept)?;
    }
    keys::replace(path, &keys)?;
    Ok(destroyed(&due, path))
}

fn destroyed(epochs: &[EpochId], path: &Path) -> String {
    let mut said = String::new();
    for epoch in epochs {
        said.push_str(&format!("epoch {epoch} is destroyed in {}\n", path.display()));
    }
    said + "next: bring the file to every edge and every batcher, and delete the epoch from every other copy: it is gone once the \
            last copy is\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::list::tests::folder;

    fn sample(folder: &Path) -> std::path::PathBuf {
        let path = folder.join(keys::TRANSPORT_FILE);
        keys::write(&path, &TransportKeys::make().unwrap()).unwrap();
        path
    }

    const START: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    fn epochs(path: &Path) -> Vec<u32> {
        keys::read::<TransportKeys>(path).unwrap().epochs().iter().map(|epoch| epoch.id).collect()
    }

    #[test]
    fn an_epoch_goes_when_the_log_holds_nothing_of_it_and_not_before() {
        let (folder, retention) = (folder(), Retention { retention_hours: 72 });
        let path = sample(&folder);
        assert_eq!(retention.kept(), Duration::from_secs((72 + 3 + 1) * 3600));
        let said = rotate_at(&path, START).unwrap();
        assert!(said.starts_with("epoch 1 has ended\nepoch 2 is current"), "{said}");
        assert!(said.contains("epoch 3 stands ready"), "{said}");

        let due = START + retention.kept();
        let early = due - Duration::from_secs(1);
        let refused = destroy_epoch(&path, EpochId(1), early, retention.kept()).unwrap_err().to_string();
        assert!(refused.contains("until 1970-01-04T04:00:00Z"), "{refused}");
        let said = destroy_due(&path, early, retention.kept()).unwrap();
        assert_eq!(said, "no epoch is due\nepoch 1 is due at 1970-01-04T04:00:00Z\n");
        assert_eq!(epochs(&path), [1, 2, 3], "what was refused changed nothing");

        assert!(destroy_due(&path, due, retention.kept()).unwrap().starts_with("epoch 1 is destroyed"));
        assert_eq!(epochs(&path), [2, 3]);
        assert!(!std::fs::read_to_string(&path).unwrap().contains("\"id\": 1"));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn an_emergency_ends_an_epoch_early_but_never_one_in_use() {
        let folder = folder();
        let path = sample(&folder);
        rotate_at(&path, START).unwrap();
        destroy_epoch(&path, EpochId(1), START, Duration::ZERO).unwrap();
        for in_use in [2, 3] {
            let refused = destroy_epoch(&path, EpochId(in_use), START, Duration::ZERO).unwrap_err().to_string();
            assert!(refused.contains("has not ended"), "{refused}");
        }
        assert_eq!(destroy_due(&path, START, Duration::ZERO).unwrap(), "no epoch is due\nnone has ended\n");
        assert_eq!(epochs(&path), [2, 3]);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
