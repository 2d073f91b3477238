//! Versions of the keyring: adding, using and retiring them, and wrapping session keys anew.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Args;
use schemas::SessionKey;
use sealing::keyring::KeyVersion;
use service_kit::config::keys::KeyringSource;
use service_kit::config::postgres::PostgresConfig;
use service_kit::config::s3::S3Config;
use service_kit::keys;
use service_kit::keys::keyring::KeyringFile as Keyring;
use storage::index::Index;
use storage::inspect::journal_versions;
use storage::keystore::KeyStore;
use storage::objects::Objects;
use storage::session_keys::SessionKeys;
use time::OffsetDateTime;

use super::{KeyringFile, lock};
use crate::output::counted;
use crate::settings;

/// Session keys that are wrapped anew in one statement.
const BATCH: i64 = 1_000;
/// Session keys that do not unwrap, by name.
const CLOSED_TOLD_MAX: usize = 10;
/// How often progress is told.
const TOLD_INTERVAL: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub(crate) struct RotateKeyring {
    /// Take the newest version into use, then wrap all session keys under it. Only once every process has it.
    #[arg(long)]
    r#use: bool,
    /// Leave the session keys as they are; `clairvio keys rewrap` wraps them later.
    #[arg(long, requires = "use")]
    no_rewrap: bool,
    #[command(flatten)]
    file: KeyringFile,
}

impl RotateKeyring {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let path = settings::keyring_file(self.file.file)?;
        if !self.r#use {
            print!("{}", add(&path)?);
            return Ok(());
        }
        // Before anything is changed: whoever forgot the setting has done no half of it then.
        let store = (!self.no_rewrap).then(settings::keystore).transpose().context(
            "wrap session keys anew\n  hint: with --no-rewrap the version is taken into use, and nothing else happens",
        )?;
        print!("{}", take_into_use(&path)?);
        match store {
            Some(store) => rewrap_under(&KeyringSource::File(path), store).await,
            None => {
                println!("next: clairvio keys rewrap");
                Ok(())
            }
        }
    }
}

fn add(path: &Path) -> anyhow::Result<String> {
    let _turn = lock(path)?;
    let mut ring: Keyring = keys::read(path)?;
    let (current, newest) = (ring.current(), newest(&ring));
    let said = if newest == current {
        let added = ring.add()?;
        keys::replace(path, &ring)?;
        format!("version {added} is added\nversion {current} is still the current one\n")
    } else {
        format!("version {newest} stands ready already, nothing is added\nversion {current} is still the current one\n")
    };
    Ok(format!(
        "{said}next: bring {} to every process that has a keyring, and to its backup; then `clairvio keys rotate keyring --use`\n",
        path.display()
    ))
}

fn take_into_use(path: &Path) -> anyhow::Result<String> {
    let _turn = lock(path)?;
    let mut ring: Keyring = keys::read(path)?;
    let (before, newest) = (ring.current(), newest(&ring));
    if newest == before {
        return Ok(format!("version {newest} is the current one already\n"));
    }
    if !ring.set_current(newest) {
        bail!("take version {newest} into use: the keyring does not have it");
    }
    keys::replace(path, &ring)?;
    Ok(format!(
        "version {newest} is the current one, version {before} still opens\nnext: bring {} to every process that has a keyring: \
         until then it wraps and seals under version {before}\n",
        path.display()
    ))
}

/// The newest version; a keyring has at least one.
fn newest(ring: &Keyring) -> KeyVersion {
    ring.versions().last().copied().unwrap_or(ring.current())
}

pub(super) async fn rewrap(file: KeyringFile) -> anyhow::Result<()> {
    rewrap_under(&settings::keyring(file.file)?, settings::keystore()?).await
}

async fn rewrap_under(source: &KeyringSource, store: KeyStore) -> anyhow::Result<()> {
    let keys = settings::session_keys(source, store.clone())?;
    let current = keys.version()?;
    let all = under_others(&store.versions().await?, current);
    let (changed, closed) = rewrap_batches(&keys, all)
        .await
        .context("wrap session keys anew\n  hint: what was wrapped stays so; run `clairvio keys rewrap` to go on")?;
    println!("{} wrapped anew under version {current}", counted(changed, "session key was", "session keys were"));
    refuse_closed(&closed)?;
    let left = under_others(&store.versions().await?, current);
    if left > 0 {
        println!(
            "{} wrapped under other versions, by processes that do not have the file yet\nnext: `clairvio keys rewrap` once all \
             have it",
            counted(left, "session key is still", "session keys are still")
        );
    }
    Ok(())
}

async fn rewrap_batches(keys: &SessionKeys, all: u64) -> anyhow::Result<(u64, Vec<SessionKey>)> {
    let (mut after, mut changed, mut closed) = (None, 0, Vec::new());
    let mut told = Instant::now();
    // Each batch is one statement of compare-and-swap: ended at any point, every key is wrapped under one version or the other.
    while let Some(mut some) = keys.rewrap(after.as_ref(), BATCH).await? {
        after = Some(some.last);
        changed += some.changed;
        closed.append(&mut some.closed);
        if told.elapsed() >= TOLD_INTERVAL {
            eprintln!("{changed} of {} wrapped anew", counted(all, "session key", "session keys"));
            told = Instant::now();
        }
    }
    Ok((changed, closed))
}

/// Keys that do not unwrap are lost, or of another keyring: nothing that was done is wrong, and somebody has to look.
fn refuse_closed(closed: &[SessionKey]) -> anyhow::Result<()> {
    if closed.is_empty() {
        return Ok(());
    }
    let sessions = closed
        .iter()
        .take(CLOSED_TOLD_MAX)
        .map(|key| format!("\n  session {} of workspace {}", key.session, key.workspace));
    let more = closed.len().saturating_sub(CLOSED_TOLD_MAX);
    let more = if more > 0 { format!("\n  and {more} more") } else { String::new() };
    bail!(
        "wrap {} anew: no version of the keyring unwraps them{}{more}\n  hint: where this keyring never wrapped them, find the one that \
         did; else the sessions cannot be read any more, and deleting them lets their keys go",
        counted(closed.len() as u64, "session key", "session keys"),
        sessions.collect::<String>()
    )
}

fn under_others(versions: &[(KeyVersion, u64)], current: KeyVersion) -> u64 {
    versions.iter().filter(|(version, _)| *version != current).map(|(_, keys)| keys).sum()
}

#[derive(Debug, Args)]
pub(crate) struct RetireKeyring {
    /// Its number, as `clairvio keys list` shows it.
    #[arg(id = "number", value_name = "VERSION")]
    version: u32,
    /// The oldest backup of index or key store that may still be restored, in days: entries of the journal of deletions that are
    /// younger must open, so that a restored backup brings nobody back.
    #[arg(long, value_name = "DAYS", default_value_t = 35, value_parser = clap::value_parser!(u32).range(1..=3_660))]
    backup_days: u32,
    #[command(flatten)]
    file: KeyringFile,
}

impl RetireKeyring {
    pub(super) async fn run(self) -> anyhow::Result<()> {
        let version = KeyVersion(self.version);
        let path = settings::keyring_file(self.file.file)?;
        let _turn = lock(&path)?;
        let ring: Keyring = keys::read(&path)?;
        // What the file alone forbids needs no settings to be refused.
        refuse_by_file(&ring, version)?;
        let store = settings::keystore()?;
        let (postgres, s3) = settings::load(|env| (PostgresConfig::load(env), S3Config::load(env)))?;
        let since = OffsetDateTime::now_utc() - Duration::from_secs(u64::from(self.backup_days) * 86_400);
        let uses = Uses {
            wrapped: count(&store.versions().await?, version),
            objects: Index::new(&postgres)?.sealed_under().await?.into_iter().collect(),
            entries: journal_versions(&Objects::new(&s3), since).await?.remove(&version).unwrap_or(0),
        };
        uses.refuse(version)?;
        print!("{}", retire(&path, ring, version)?);
        Ok(())
    }
}

fn count(versions: &[(KeyVersion, u64)], version: KeyVersion) -> u64 {
    versions.iter().find(|(found, _)| *found == version).map_or(0, |(_, keys)| *keys)
}

fn refuse_by_file(ring: &Keyring, version: KeyVersion) -> anyhow::Result<()> {
    if !ring.versions().contains(&version) {
        bail!("retire version {version}: the keyring does not have it");
    }
    if ring.current() == version {
        bail!(
            "retire version {version}: it is the current one\n  hint: `clairvio keys rotate keyring`, spread the file, then \
             `clairvio keys rotate keyring --use`"
        );
    }
    if version > ring.current() {
        bail!(
            "retire version {version}: it stands ready, and some process may use it already\n  hint: `clairvio keys rotate keyring \
             --use` takes it into use"
        );
    }
    Ok(())
}

/// What needs versions of the keyring.
#[derive(Debug)]
struct Uses {
    /// Session keys under the version in question.
    wrapped: u64,
    /// Shared and quarantine objects by version; under `None` those whose version nobody knows yet.
    objects: BTreeMap<Option<KeyVersion>, u64>,
    /// Young entries of the journal under the version in question.
    entries: u64,
}

impl Uses {
    /// Everything that stands against it at once.
    fn refuse(&self, version: KeyVersion) -> anyhow::Result<()> {
        let objects = |version| self.objects.get(&version).copied().unwrap_or(0);
        let (sealed, staged) = (objects(Some(version)), objects(None));
        let mut reasons = Vec::new();
        if self.wrapped > 0 {
            let keys = counted(self.wrapped, "session key is", "session keys are");
            reasons.push(format!(
                "{keys} wrapped under it\n  hint: `clairvio keys rewrap` wraps them under the current version"
            ));
        }
        if sealed > 0 {
            let objects = counted(sealed, "object is", "objects are");
            reasons.push(format!(
                "{objects} sealed under it\n  hint: shared objects go when compactors have merged them and the collector has \
                 removed them, those in quarantine when they were replayed or are past their time"
            ));
        }
        if staged > 0 {
            let objects = counted(staged, "object is", "objects are");
            reasons.push(format!(
                "{objects} staged and may be sealed under it right now\n  hint: try again in some minutes; stale ones go by the \
                 collector"
            ));
        }
        if self.entries > 0 {
            let entries = counted(self.entries, "young entry", "young entries");
            reasons.push(format!(
                "{entries} of the journal of deletions sealed under it\n  hint: they are needed for as long as a backup may be \
                 restored, see --backup-days"
            ));
        }
        if reasons.is_empty() {
            return Ok(());
        }
        bail!("retire version {version}: {}", reasons.join("\n"))
    }
}

fn retire(path: &Path, mut ring: Keyring, version: KeyVersion) -> anyhow::Result<String> {
    if !ring.retire(version) {
        bail!("retire version {version}: the keyring does not have it, or it is the current one");
    }
    keys::replace(path, &ring)?;
    Ok(format!(
        "version {version} is retired from {}\nnext: bring the file to every process that has a keyring; keep the backup of the file \
         as it was for as long as a backup of index or key store may be restored\n",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::list::tests::folder;

    fn sample(folder: &Path) -> std::path::PathBuf {
        let path = folder.join(keys::KEYRING_FILE);
        keys::write(&path, &Keyring::make().unwrap()).unwrap();
        path
    }

    fn ring(path: &Path) -> (u32, Vec<u32>) {
        let ring: Keyring = keys::read(path).unwrap();
        (ring.current().0, ring.versions().iter().map(|version| version.0).collect())
    }

    #[test]
    fn a_version_is_added_spread_used_and_only_then_the_next_one_added() {
        let folder = folder();
        let path = sample(&folder);
        assert_eq!(take_into_use(&path).unwrap(), "version 1 is the current one already\n");
        assert!(add(&path).unwrap().starts_with("version 2 is added\nversion 1 is still the current one\n"));
        assert_eq!(ring(&path), (1, vec![1, 2]));
        assert!(add(&path).unwrap().starts_with("version 2 stands ready already"), "one that waits is enough");
        assert_eq!(ring(&path), (1, vec![1, 2]));
        assert!(take_into_use(&path).unwrap().starts_with("version 2 is the current one, version 1 still opens\n"));
        assert_eq!(ring(&path), (2, vec![1, 2]));
        assert!(take_into_use(&path).unwrap().contains("already"));
        assert!(add(&path).unwrap().starts_with("version 3 is added\n"));

        let keyring: Keyring = keys::read(&path).unwrap();
        for (version, expect) in [(2, "it is the current one"), (3, "stands ready"), (9, "does not have it")] {
            let refused = refuse_by_file(&keyring, KeyVersion(version)).unwrap_err().to_string();
            assert!(refused.contains(expect), "{refused}");
        }
        refuse_by_file(&keyring, KeyVersion(1)).unwrap();
        assert!(retire(&path, keyring, KeyVersion(1)).unwrap().starts_with("version 1 is retired"));
        assert_eq!(ring(&path), (2, vec![2, 3]));
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_version_that_anything_needs_is_not_retired_and_all_reasons_are_told() {
        fn check(wrapped: u64, objects: &[(Option<u32>, u64)], entries: u64, expect: &[&str]) {
            let objects = objects.iter().map(|(version, count)| (version.map(KeyVersion), *count)).collect();
            let refused = Uses { wrapped, objects, entries }.refuse(KeyVersion(1));
            let Err(error) = refused else { return assert!(expect.is_empty(), "{expect:?}") };
            let text = error.to_string();
            assert_eq!(text.matches("hint:").count(), expect.len(), "{text}");
            assert!(!expect.is_empty() && expect.iter().all(|reason| text.contains(reason)), "{text}");
        }
        check(0, &[], 0, &[]);
        check(0, &[(Some(2), 7)], 0, &[]);
        check(1, &[], 0, &["1 session key is wrapped under it"]);
        check(0, &[(Some(1), 2)], 0, &["2 objects are sealed under it"]);
        check(0, &[(None, 1)], 0, &["1 object is staged"]);
        check(0, &[], 1, &["1 young entry of the journal"]);
        check(
            5,
            &[(Some(1), 1), (None, 3)],
            2,
            &["5 session keys", "1 object is sealed", "3 objects are staged", "2 young"],
        );
    }

    #[test]
    fn keys_that_do_not_unwrap_are_named_as_far_as_they_are_few() {
        let key = |n| SessionKey {
            workspace: schemas::WorkspaceId(uuid::Uuid::nil()),
            session: schemas::SessionId(uuid::Uuid::from_u128(n)),
        };
        refuse_closed(&[]).unwrap();
        let text = refuse_closed(&[key(7)]).unwrap_err().to_string();
        assert!(text.starts_with("wrap 1 session key anew") && text.contains(&key(7).session.to_string()), "{text}");
        assert!(!text.contains("more\n"), "{text}");
        let text = refuse_closed(&(0..12).map(key).collect::<Vec<_>>()).unwrap_err().to_string();
        assert!(text.contains("\n  and 2 more\n"), "{text}");
    }

    #[test]
    fn keys_under_other_versions_are_those_that_are_left() {
        let versions = [(KeyVersion(1), 5), (KeyVersion(2), 7), (KeyVersion(3), 1)];
        assert_eq!(under_others(&versions, KeyVersion(2)), 6);
        assert_eq!((count(&versions, KeyVersion(2)), count(&versions, KeyVersion(9))), (7, 0));
    }
}
