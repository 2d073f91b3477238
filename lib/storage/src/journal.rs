//! The journal of deletions: what was deleted, outside of the index, so that a restored backup brings nobody back.
//!
//! A deletion is committed first (its sessions are unreadable then), written into the journal, and said to be accepted. What was
//! committed and not written, since somebody died between the two, is written by the retention worker. A service that serves sessions,
//! or deletes, compares before it begins: an entry that its index does not know was written after the backup that the index was
//! restored from, and is carried out once more. So is every destruction of keys, when the key store has counted fewer of them than
//! the index heard of.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use schemas::deletion::Cause;
use schemas::journal::{Entry, SESSIONS_MAX};
use schemas::paths::{ObjectKey, Section};
use schemas::{DeletionId, ObjectId, SessionKey};
use sealing::SealError;
use sealing::objects::{OpenError, journal_version, open_journal, seal_journal};
use service_kit::config::postgres::PostgresConfig;
use service_kit::health::Part;
use service_kit::retry;
use service_kit::shutdown::Shutdown;
use sha2::{Digest as _, Sha256};
use thiserror::Error;
use uuid::{NoContext, Timestamp, Uuid};

use crate::index::journal::{Unwritten, Written};
use crate::index::{Index, IndexError};
use crate::keystore::KeyStore;
use crate::objects::{Keeps, Listed, ListedTo, ObjectError, Objects};
use crate::postgres::Life;
use crate::session_keys::{KeyError, StorageKeys};

/// Entries that are fetched at once.
const FETCHED_AT_ONCE: usize = 8;
/// Sessions whose keys are destroyed by one statement.
const SHREDDED_AT_ONCE: usize = 1_000;
/// Sessions that are deleted in one transaction.
const FOUND_AT_ONCE: i64 = 1_000;
/// No two clocks differ by more than this.
const CLOCKS_DIFFER_MAX: Duration = Duration::from_secs(86_400);

/// Why the journal was not written, or not read.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The index or the key store.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The bucket.
    #[error("{what} of the journal of deletions")]
    Object {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: ObjectError,
    },
    /// The storage's key.
    #[error("ask for the key of the journal of deletions")]
    Key(#[from] KeyError),
    /// It could not be sealed.
    #[error("seal entry of the journal of deletions")]
    Seal(#[from] SealError),
    /// An entry is not what was put there: what it deleted cannot be known.
    #[error(
        "read {key}\n  hint: `clairvio object verify` says what is wrong with it; nothing is served until it reads: put it back from a version or \
         a copy. Who removes it gives up the deletion that it stands for: an index of an older backup would have those sessions again"
    )]
    Corrupt {
        /// Which entry.
        key: ObjectKey,
        /// What is wrong.
        source: OpenError,
    },
}

/// What a comparison did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Replayed {
    /// Entries that the index did not know.
    pub entries: u64,
    /// Sessions that were there again, or came before they were known to be deleted.
    pub sessions: u64,
    /// Keys of sessions that were destroyed once more since the key store forgot that it had.
    pub keys: u64,
}

impl Replayed {
    /// Tells an operator, where there is anything to tell: an entry alone may just have been written.
    pub fn tell(&self) {
        let Self { entries, sessions, keys } = *self;
        if sessions + keys > 0 {
            tracing::warn!(
                entries,
                sessions,
                keys,
                "the index or the key store is one of a backup: what was deleted since is deleted once more"
            );
        }
    }
}

/// The journal.
#[derive(Debug, Clone)]
pub struct Journal {
    index: Index,
    keystore: KeyStore,
    objects: Objects,
    keys: StorageKeys,
    /// How old a backup may be that is restored.
    backups: Duration,
    /// Servers that were compared.
    servers: Arc<AtomicU64>,
}

impl Journal {
    /// The journal beside this index and key store, for backups of this age.
    pub fn new(index: Index, keystore: KeyStore, objects: Objects, keys: StorageKeys, backups: Duration) -> Self {
        Self { index, keystore, objects, keys, backups, servers: Arc::default() }
    }

    /// Writes what of a deletion is not written yet. When it returns, all that the deletion has now will outlive the index.
    pub async fn write(&self, deletion: DeletionId) -> Result<(), JournalError> {
        while let Some(unwritten) = self.index.unwritten(deletion, SESSIONS_MAX).await? {
            self.put(unwritten).await?;
        }
        Ok(())
    }

    /// Writes what of any deletions is not written yet, of `limit` deletions at most. Gives how many there were.
    pub async fn write_all(&self, limit: usize) -> Result<usize, JournalError> {
        let deletions = self.index.with_unwritten(limit).await?;
        let count = deletions.len();
        self.write_each(deletions).await?;
        Ok(count)
    }

    /// Writes these, a few at a time.
    pub async fn write_each(&self, deletions: Vec<DeletionId>) -> Result<(), JournalError> {
        // Owned, since the compiler does not see that closures which borrow give futures that can be sent.
        let writing = stream::iter(deletions).map(|deletion| {
            let journal = self.clone();
            async move { journal.write(deletion).await }
        });
        writing.buffer_unordered(FETCHED_AT_ONCE).try_collect().await
    }

    async fn put(&self, unwritten: Unwritten) -> Result<(), JournalError> {
        let Unwritten { deletion, workspace, cause, requested_at_ms, now_ms, mut sessions, marks } = unwritten;
        let begun_before_ms = marks.first().map(|marks| marks.begun_before_ms);
        let mut marks = marks.into_iter();
        // One entry, but of a reference with very many links.
        loop {
            let id = ObjectId(Uuid::new_v7(timestamp_of(now_ms)));
            let (sessions, marks_of_entry) = (std::mem::take(&mut sessions), marks.next());
            let entry =
                Entry { object: id, deletion, workspace, cause, requested_at_ms, sessions, marks: marks_of_entry };
            let sealed = seal_journal(&self.keys.current().await?, &entry)?;
            let sha256: [u8; 32] = Sha256::digest(&sealed).into();
            let put = self.objects.put(&ObjectKey::Journal { id }, sealed.into(), &sha256).await;
            put.map_err(|source| JournalError::Object { what: "put entry", source })?;
            let is_last = marks.len() == 0;
            let begun_before_ms = begun_before_ms.filter(|_| is_last);
            self.index.mark_written(&Written { entry, is_last, begun_before_ms }).await?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// Compares, and carries out once more what index or key store forgot. Nothing may be served before it returns.
    pub async fn replay(&self) -> Result<Replayed, JournalError> {
        let mut replayed = Replayed { keys: self.shred_again().await?, ..Replayed::default() };
        let (mut is_over, mut after, mut corrupt) = (false, None, None);
        // All of it: what is older than any backup is removed, and a name is by a clock that may have been wrong.
        while !is_over {
            let (entries, next) = self.list(after.as_ref()).await?;
            (is_over, after) = (next.is_none(), next);
            let ids: Vec<ObjectId> = entries.iter().map(|entry| entry.id).collect();
            let unknown = self.index.unknown_entries(&ids).await?;
            let fetching = stream::iter(unknown).map(|id| {
                let journal = self.clone();
                async move { journal.fetch(id).await }
            });
            let mut fetched = fetching.buffered(FETCHED_AT_ONCE);
            while let Some(entry) = fetched.next().await {
                match entry {
                    Ok(Some(entry)) => {
                        replayed.sessions += self.carry_out(&entry).await?;
                        replayed.entries += 1;
                    }
                    // One that was removed meanwhile is older than any backup.
                    Ok(None) => {}
                    // Those behind it are carried out all the same.
                    Err(error @ JournalError::Corrupt { .. }) => corrupt = corrupt.or(Some(error)),
                    Err(error) => return Err(error),
                }
            }
        }
        match corrupt {
            Some(error) => Err(error),
            None => Ok(replayed),
        }
    }

    /// Carries an entry out once more, and only then knows it: whoever finds it known need not. Gives how many sessions were not deleted.
    async fn carry_out(&self, entry: &Entry) -> Result<u64, JournalError> {
        let sessions: Vec<SessionKey> =
            entry.sessions.iter().map(|session| SessionKey { workspace: entry.workspace, session: *session }).collect();
        for some in sessions.chunks(SHREDDED_AT_ONCE) {
            self.keystore.shred(some).await?;
        }
        if entry.cause == Cause::Terminated {
            self.keystore.shred_references(entry.workspace).await?;
        }
        let mut deleted = self.index.replay(entry, &sessions).await?;
        if entry.marks.is_some() {
            // Batchers do not wait for this: what they let in before the marks were there is deleted now, and they see the marks from now on.
            while let Some(found) = self.index.find_deleted(entry.deletion, FOUND_AT_ONCE).await? {
                deleted += found.len() as u64;
            }
        }
        self.index.note_known(entry).await?;
        Ok(deleted)
    }

    /// Compares, and gives the index by connections to a server alone that was compared: should it be another, it is compared before it is
    /// asked anything, until the shutdown. `None` when that began before.
    pub async fn guard(
        &self,
        config: &PostgresConfig,
        part: Part,
        shutdown: &Shutdown,
    ) -> Result<Option<Index>, IndexError> {
        let life = Arc::new(Life::default());
        if !self.trust(&life, &part, shutdown, false).await {
            return Ok(None);
        }
        let index = Index::trusted(config, &life)?;
        let (journal, shutdown) = (self.clone(), shutdown.clone());
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    () = shutdown.begun() => return,
                    () = life.doubted() => {}
                }
                if !journal.trust(&life, &part, &shutdown, true).await {
                    return;
                }
            }
        });
        Ok(Some(index))
    }

    /// Compares, and trusts the server that was asked; `false` when the shutdown began before. On `another` server than before nobody
    /// goes on with an archive as if it were the one that has what was made of it.
    async fn trust(&self, life: &Life, part: &Part, shutdown: &Shutdown, another: bool) -> bool {
        // When it was started is asked first: should it be another by the comparison, it is compared again.
        let compare = || async {
            let started = self.index.started().await?;
            if another {
                self.index.leave_exports().await?;
            }
            Ok::<_, JournalError>((started, self.replay().await?))
        };
        let compared = retry::until_ok("compare the journal of deletions", part, shutdown, compare).await;
        let Some((started, replayed)) = compared else { return false };
        replayed.tell();
        self.servers.fetch_add(1, Ordering::AcqRel);
        life.trust(started);
        true
    }

    /// How many servers of the index were compared so far. Nobody is connected to another one before this has counted it.
    pub fn servers(&self) -> u64 {
        self.servers.load(Ordering::Acquire)
    }

    /// Destroys keys once more where the key store has destroyed fewer than the index heard of; how many. It is asked last: what is
    /// destroyed meanwhile only makes it count more.
    pub async fn shred_again(&self) -> Result<u64, JournalError> {
        let seen = self.index.shreddings_seen().await?;
        if self.keystore.shreddings().await? >= seen {
            return Ok(0);
        }
        let (mut after, mut shredded) = (None, 0);
        loop {
            let some = self.index.shredded(self.backups + CLOCKS_DIFFER_MAX, after, SHREDDED_AT_ONCE).await?;
            let Some((deletion, key)) = some.last().copied() else { break };
            after = Some((deletion, key.session));
            self.keystore.shred(&some.iter().map(|(_, key)| *key).collect::<Vec<_>>()).await?;
            shredded += some.len() as u64;
        }
        for workspace in self.index.gone_workspaces().await? {
            self.keystore.shred_references(workspace).await?;
        }
        self.index.shred_exports_again().await?;
        self.keystore.count_shreddings(seen).await?;
        Ok(shredded)
    }

    async fn fetch(&self, id: ObjectId) -> Result<Option<Entry>, JournalError> {
        let key = ObjectKey::Journal { id };
        let object = match self.objects.get(&key).await {
            Ok(object) => object,
            Err(ObjectError::Absent) => return Ok(None),
            Err(source) => return Err(JournalError::Object { what: "fetch entry", source }),
        };
        let corrupt = |source| JournalError::Corrupt { key, source };
        let version = journal_version(&object).map_err(|source| corrupt(source.into()))?;
        let storage = self.keys.of(version).await?;
        open_journal(&storage, id, &object).map(Some).map_err(corrupt)
    }

    /// Removes entries that are older than any backup, by the bucket's clock; some of them, and how many.
    pub async fn forget(&self, keeps: Keeps) -> Result<usize, JournalError> {
        let now_s =
            self.objects.now_s().await.map_err(|source| JournalError::Object { what: "tell the age", source })?;
        let kept = self.backups.saturating_add(2 * CLOCKS_DIFFER_MAX);
        let old_s = now_s.saturating_sub(i64::try_from(kept.as_secs()).unwrap_or(i64::MAX));
        // Names begin with their time, so the oldest are on the first page.
        let (entries, next) = self.list(None).await?;
        let (old, young): (Vec<Lying>, Vec<Lying>) = entries.iter().partition(|entry| entry.put_s < old_s);
        let ids = |entries: &[Lying]| entries.iter().map(|entry| entry.id).collect::<Vec<ObjectId>>();
        let (old, mut left) = (ids(&old), ids(&young));
        self.index.condemn_entries(&old, &left, old_s).await?;
        let mut erased = old.len();
        if !old.is_empty() {
            let keys: Vec<ObjectKey> = old.iter().map(|id| ObjectKey::Journal { id: *id }).collect();
            let kept = self.objects.erase(&keys, keeps).await;
            let kept = kept.map_err(|source| JournalError::Object { what: "remove entries", source })?;
            let kept: BTreeSet<ObjectId> = kept.iter().map(ObjectKey::id).collect();
            erased -= kept.len();
            left.extend(kept);
        }
        // None up to here has an object but those that are left, so those neither that somebody died at.
        let last = match entries.last() {
            Some(last) if next.is_some() => last.id,
            _ => ObjectId(Uuid::max()),
        };
        self.index.forget_entries(last, &left).await?;
        Ok(erased)
    }

    /// A page of entries, and where the next begins.
    async fn list(&self, behind: Option<&ListedTo>) -> Result<(Vec<Lying>, Option<ListedTo>), JournalError> {
        let page = self.objects.list_page(Section::Journal.prefix(), behind, false).await;
        let page = page.map_err(|source| JournalError::Object { what: "list entries", source })?;
        let lying = |listed: &Listed| match ObjectKey::parse(&listed.key) {
            Some(ObjectKey::Journal { id }) => Some(Lying { id, put_s: listed.put_s }),
            _ => None,
        };
        Ok((page.listed.iter().filter_map(lying).collect(), page.next))
    }
}

/// Entries are named by the index's time.
fn timestamp_of(now_ms: u64) -> Timestamp {
    let at = Duration::from_millis(now_ms);
    Timestamp::from_unix(NoContext, at.as_secs(), at.subsec_nanos())
}

/// An entry as it is listed.
#[derive(Debug, Clone, Copy)]
struct Lying {
    id: ObjectId,
    /// When it was put, by the bucket's clock, in seconds since the epoch.
    put_s: i64,
}
