//! Which versions of the keyring the journal of deletions needs.

use std::collections::BTreeMap;

use futures::StreamExt as _;
use schemas::codec::FormatError;
use schemas::object::PREAMBLE_BYTES;
use schemas::paths::ObjectKey;
use sealing::keyring::KeyVersion;
use sealing::objects::journal_version;
use thiserror::Error;
use time::OffsetDateTime;

use crate::objects::{ObjectError, Objects};

/// Entries whose first bytes are asked for at once.
const ENTRIES_ASKED_MAX: usize = 16;
/// The preamble, and the keyring's version behind it.
const HEAD_BYTES: u64 = (PREAMBLE_BYTES + size_of::<u32>()) as u64;

/// Why nothing can be said about the journal.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The bucket does not answer.
    #[error("list the journal of deletions")]
    List(#[source] ObjectError),
    /// The bucket does not answer.
    #[error("fetch {key}")]
    Fetch {
        /// Which entry.
        key: ObjectKey,
        /// Why.
        source: ObjectError,
    },
    /// An entry is not what was put there.
    #[error("read {key}\n  hint: `clairvio object verify` says what is wrong with it")]
    Corrupt {
        /// Which entry.
        key: ObjectKey,
        /// What is wrong.
        source: FormatError,
    },
}

/// How many entries each version of the keyring opens, of those written since `since`: older ones are of no use to whoever
/// restores a younger backup. What is deleted meanwhile does not count.
pub async fn journal_versions(
    objects: &Objects,
    since: OffsetDateTime,
) -> Result<BTreeMap<KeyVersion, u64>, JournalError> {
    let listed = objects.list("journal/").await.map_err(JournalError::List)?;
    let wanted = listed.into_iter().flatten().filter(|key| is_since(key, since));
    let heads = wanted.map(async |key| (key, objects.get_range(&key, 0, HEAD_BYTES).await));
    let mut heads = futures::stream::iter(heads).buffer_unordered(ENTRIES_ASKED_MAX);
    let mut versions = BTreeMap::new();
    while let Some((key, head)) = heads.next().await {
        match head {
            Ok(head) => {
                let version = journal_version(&head).map_err(|source| JournalError::Corrupt { key, source })?;
                *versions.entry(version).or_default() += 1;
            }
            Err(ObjectError::Absent) => {}
            Err(source) => return Err(JournalError::Fetch { key, source }),
        }
    }
    Ok(versions)
}

/// When an entry was written stands in its name. One whose name does not tell counts as young.
fn is_since(key: &ObjectKey, since: OffsetDateTime) -> bool {
    let written = key.id().0.get_timestamp().map(|at| i64::try_from(at.to_unix().0).unwrap_or(i64::MAX));
    written.is_none_or(|written| written >= since.unix_timestamp())
}

#[cfg(test)]
mod tests {
    use schemas::ObjectId;
    use uuid::{NoContext, Timestamp, Uuid};

    use super::*;

    #[test]
    fn the_name_of_an_entry_tells_its_age() {
        let entry = |id| ObjectKey::Journal { id: ObjectId(id) };
        let at = |seconds| Uuid::new_v7(Timestamp::from_unix(NoContext, seconds, 0));
        let since = OffsetDateTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000);
        assert!(!is_since(&entry(at(999)), since));
        assert!(is_since(&entry(at(1_000)), since));
        assert!(is_since(&entry(Uuid::from_u128(1)), since), "who knows");
    }
}
