//! The worker's loop.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use engine::pace::Pace;
use engine::receipt::Residuals;
use engine::retention::{Step, next_step};
use engine::token::Signing;
use schemas::control::{Entry, News};
use schemas::{ObjectId, SessionKey};
use service_kit::kafka::control::{self, Publisher};
use service_kit::keys::receipts::ReceiptKeys;
use service_kit::keys::{self, Watched};
use service_kit::passes::{self, Next};
use service_kit::retry;
use service_kit::service::Surroundings;
use service_kit::telemetry::chain;
use storage::index::deletions::{Due, Leaving, Round};
use storage::index::receipts::WithoutReceipt;
use storage::index::termination::Terminated;
use storage::index::{Index, outbox};
use storage::journal::{Journal, Replayed};
use storage::keystore::KeyStore;
use storage::objects::{DELETE_KEYS_MAX, Keeps, Objects};
use storage::receipts::{ReceiptError, Receipts};
use storage::reconciling::Reconciler;
use storage::session_keys::StorageKeys;
use storage::told::Told;
use storage::{Schema, Stores};
use uuid::Uuid;

use crate::cleaning::Cleaning;
use crate::exports::{Led, STRAY_INTERVAL};
use crate::reconciling::Reconciling;

use crate::withdrawals::Withdrawals;
use crate::{Config, lifecycle, metrics};

/// Rows of one transaction, objects of one request.
const BATCH: i64 = DELETE_KEYS_MAX as i64;

/// How often sessions are looked at by one pass that it has led on: what only waited for this worker need not wait for a round through
/// all that leave.
const LOOKS_MAX: usize = 3;

/// So many sessions expire without a second clock, unless they are most of all,
const DUE_UNCHECKED_MAX: i64 = 1_000;
/// and so few in any case.
const DUE_FEW: u64 = 20;
/// Two clocks that differ by more are not both right.
const CLOCKS_DIFFER_S_MAX: i64 = 3_600;

/// How often sessions are looked for that were let in although all of their link's were deleted.
const OVERLOOKED_INTERVAL: Duration = Duration::from_secs(60);

/// How often uploads are looked for that nobody ends.
const UPLOADS_INTERVAL: Duration = Duration::from_secs(600);

/// Deletions by reference that are gone on with by one pass, deletions that are journalled, closed workspaces.
const DELETIONS_AT_ONCE: i64 = 100;

/// Deletions that get their receipts by one pass.
const RECEIPTS_AT_ONCE: i64 = 500;

/// How often entries of the journal are looked for that are older than any backup.
const JOURNAL_INTERVAL: Duration = Duration::from_secs(600);

/// How often entries of the read-access audit are looked for that are older than they have to be.
const AUDIT_INTERVAL: Duration = Duration::from_secs(600);

/// How often tombstones are looked for that nobody needs any more.
const TOMBSTONES_INTERVAL: Duration = Duration::from_secs(600);

/// A worker that has not read `control` to its end for this long makes no deletion of a withdrawal: its part is down then.
const HEARD_WITHIN: Duration = Duration::from_secs(15);

pub(crate) struct Worker {
    pub(crate) config: Config,
    pub(crate) index: Index,
    pub(crate) keystore: KeyStore,
    pub(crate) objects: Objects,
    pub(crate) journal: Journal,
    told: Told,
    receipts: Receipts,
    /// The key that signs them, as its file has it by now.
    receipt_keys: Arc<Watched<ReceiptKeys>>,
    pub(crate) keeps: Keeps,
    /// An upload cannot land later than this after its row was staged.
    put_horizon: Duration,
    /// How fast objects are removed,
    pub(crate) pace: Pace,
    /// by a clock that begins here.
    begun: Instant,
    /// How far this round through the leaving sessions has come,
    led: Option<Leaving>,
    /// and the one through those that somebody asked to have deleted.
    led_asked: Option<Leaving>,
    /// How far rounds through closed workspaces and through deletions without receipts have come,
    terminated: Option<Terminated>,
    receipted: Option<WithoutReceipt>,
    /// and how many of these were found that are not gone.
    unverified: u32,
    /// Looking for entries of the audit that are too old.
    old_reads: Seldom,
    /// Looking for tombstones that nobody needs any more, which is so long after their receipts.
    old_tombstones: Seldom,
    tombstones_kept_s: i64,
    /// Whether the index's clock was found wrong.
    clock_is_wrong: bool,
    /// Looking for sessions that no deletion by reference found.
    overlooked: Seldom,
    /// Looking for uploads that nobody ends.
    uploads: Seldom,
    /// Looking for entries of the journal that are too old.
    old_entries: Seldom,
    /// Looking for parts of exports that no row names.
    pub(crate) stray_exports: Seldom,
    /// Which of the index's servers that was beside, as the journal counts them.
    pub(crate) servers: u64,
}

/// What is done now and then.
pub(crate) struct Seldom {
    every: Duration,
    done: Option<Instant>,
}

impl Seldom {
    fn every(every: Duration) -> Self {
        Self { every, done: None }
    }

    pub(crate) fn is_due(&self) -> bool {
        self.done.is_none_or(|done| done.elapsed() >= self.every)
    }

    pub(crate) fn note_done(&mut self) {
        self.done = Some(Instant::now());
    }
}

/// Deletes until the shutdown.
pub async fn run(config: Config, surroundings: Surroundings) -> anyhow::Result<()> {
    let Surroundings { health, shutdown, .. } = surroundings;
    service_kit::telemetry::describe(metrics::ALL);
    let receipt_keys = Watched::start(config.receipt_keys_file.clone(), &shutdown)?;
    signing(&receipt_keys.get()).context("receipt key is not 32 bytes in base64")?;
    let keyring = keys::keyring::open(&config.keyring, &shutdown)?;
    let connecting =
        storage::connect(&config.postgres, &config.keystore, &config.s3, Schema::Await, &health, &shutdown);
    let Some(stores) = connecting.await? else { return Ok(()) };
    // A publisher may begin its upload until its row counts as stale, and the upload itself takes its time.
    let put_horizon = config.staged_stale + config.s3.request_timeout;
    let interval = config.pass_interval;
    let Stores { index, keystore, objects, postgres, s3, .. } = stores;
    let Some(keeps) = retry::until_ok("ask what the bucket keeps", &s3, &shutdown, || objects.keeps()).await else {
        return Ok(());
    };
    if config.lifecycle_days > 0 {
        let days = lifecycle::days(config.lifecycle_days, put_horizon);
        tokio::spawn(lifecycle::keep(objects.clone(), keeps, days, shutdown.clone()));
    } else if !keeps.uploads {
        tracing::warn!(
            "the bucket's server lists no uploads: parts of those that nobody ended stay until it removes them"
        );
    }
    let storage_keys = StorageKeys::new(keyring);
    let journal = Journal::new(index.clone(), keystore.clone(), objects.clone(), storage_keys, config.backups);
    let guarded = journal.guard(&config.postgres, health.part("journal"), &shutdown).await?;
    let Some(index) = guarded else { return Ok(()) };
    let publisher = || Publisher::new(&config.control, "retention-worker").context("make producer");
    let told = Told::new(journal.clone());
    tokio::spawn(outbox::relay(index.clone(), publisher()?, told.clone(), shutdown.clone()));
    let (withdrawals, cleaning) = (Withdrawals::default(), Cleaning::default());
    let waiting = health.part("withdrawals");
    tokio::spawn(withdrawals.clone().run(index.clone(), journal.clone(), waiting, shutdown.clone()));
    let (cleaner, heard) = (cleaning.clone(), told.clone());
    let on_entry = move |entry: Entry| {
        cleaning.add(&entry);
        heard.add(&entry);
        // Whatever its age: only a deletion ends it.
        if let News::Withdrawal(key) = entry.news {
            withdrawals.add(key);
        }
    };
    let following = control::follow_closely(&config.control, "retention-worker", shutdown.clone(), on_entry)
        .context("follow control entries")?;
    tokio::spawn(following.clone().report(health.part("control"), HEARD_WITHIN, shutdown.clone()));
    tokio::spawn(told.clone().run(index.clone(), following.clone(), shutdown.clone()));
    tokio::spawn(cleaner.run(index.clone(), publisher()?, following, shutdown.clone()));
    let residuals = Residuals {
        // A segment is a twenty-fourth of the retention, and is removed an hour later at most.
        log: duration(config.log_retention + config.log_retention / 24) + time::Duration::HOUR,
        keystore_backups: duration(config.keystore_backups),
        index_backups: duration(config.backups),
        keys_cached_ms: u64::try_from(config.key_cache.as_millis()).unwrap_or(u64::MAX),
    };
    let reconciler = Reconciler::new(index.clone(), objects.clone(), put_horizon);
    let timeout = config.s3.request_timeout;
    let reconciling = Reconciling::new(config.reconciling, timeout, index.clone(), reconciler, journal.clone());
    tokio::spawn(reconciling.run(interval, shutdown.clone()));
    let pace = Pace::new(config.deleted_per_s_max, Uuid::now_v7().as_u64_pair().1);
    let mut worker = Worker {
        told,
        receipts: Receipts::new(index.clone(), keystore.clone(), residuals),
        tombstones_kept_s: residuals.tombstones_kept().whole_seconds(),
        old_tombstones: Seldom::every(TOMBSTONES_INTERVAL),
        receipt_keys,
        journal,
        config,
        index,
        keystore,
        objects,
        keeps,
        put_horizon,
        pace,
        begun: Instant::now(),
        led: None,
        led_asked: None,
        terminated: None,
        receipted: None,
        unverified: 0,
        old_reads: Seldom::every(AUDIT_INTERVAL),
        clock_is_wrong: false,
        overlooked: Seldom::every(OVERLOOKED_INTERVAL),
        uploads: Seldom::every(UPLOADS_INTERVAL.min(put_horizon)),
        old_entries: Seldom::every(JOURNAL_INTERVAL),
        stray_exports: Seldom::every(STRAY_INTERVAL.min(put_horizon)),
        servers: 0,
    };
    passes::run(&shutdown, interval, &postgres, metrics::FAILURES, async || worker.pass().await).await;
    Ok(())
}

fn signing(keys: &ReceiptKeys) -> Option<Signing> {
    Some(Signing::new(keys.signing.kid.clone(), &keys.signing.bytes()?))
}

/// No setting is so long that it has no such form.
fn duration(of: Duration) -> time::Duration {
    of.try_into().unwrap_or(time::Duration::MAX)
}

impl Worker {
    /// One pass; when the next follows, should a bound have cut this one short.
    async fn pass(&mut self) -> anyhow::Result<Next> {
        // Before all else, and whatever else fails: nothing of a deletion is more urgent.
        let remembered = self.shred_again().await;
        let journalled = self.journal().await;
        // It would count up what the key store forgot, and nobody would see that it had.
        let shredded = if remembered.is_ok() { self.shred().await } else { Ok(0) };
        let finding_goes_on = self.find_deleted().await;
        let due = self.due().await;
        let terminating = self.terminate(due.as_ref().ok().copied().flatten()).await;
        let expired = match due {
            Ok(Some(due)) => self.expire(due).await,
            Ok(None) => Ok(0),
            Err(error) => Err(error),
        };
        // Should it fail, nothing is called erased that an archive may have, and all else goes on.
        let exported = self.end_exports().await;
        let stale = self.index.condemn_stale(self.config.staged_stale).await?;
        ::metrics::counter!(metrics::STALE).increment(stale);
        // What there is no room for yet waits for a later pass, and nothing else waits for it.
        let room = self.pace.room(DELETE_KEYS_MAX, self.now_ms());
        let removable = self.index.removable(self.config.condemned_grace, room as i64).await?;
        let verifiable = self.index.verifiable(self.put_horizon, BATCH).await?;
        if !(removable.is_empty() && verifiable.is_empty()) {
            self.see_versions().await?;
        }
        let is_left = match &exported {
            Ok(Led { has_strays: false, .. }) => self.lead_round_on().await?,
            Ok(Led { has_strays: true, .. }) => {
                // The round begins anew once they are gone: nothing of it goes on before.
                self.led = None;
                true
            }
            Err(_) => false,
        };
        self.delete(&removable).await?;
        self.verify(&verifiable).await?;
        self.end_uploads().await?;
        let receipting_goes_on = self.sign_receipts().await?;
        let forgetting_goes_on =
            self.forget_reads().await? | self.forget_entries().await? | self.forget_tombstones().await?;
        remembered?;
        let exports_go_on = exported?.goes_on;
        let terminating_goes_on = terminating?;
        let expiring_goes_on = expired? == BATCH as u64;
        let journalling_goes_on = journalled? as i64 == DELETIONS_AT_ONCE;
        let shredding_goes_on = shredded? == DELETE_KEYS_MAX;
        let goes_on = shredding_goes_on
            || journalling_goes_on
            || finding_goes_on
            || terminating_goes_on
            || receipting_goes_on
            || forgetting_goes_on
            || exports_go_on
            || expiring_goes_on
            || self.led.is_some();
        Ok(match self.pace.wait_ms(self.now_ms()) {
            _ if goes_on => Next::AtOnce,
            // Where there was no room nobody knows whether anything waits for it.
            wait_ms if is_left || removable.len() == room => Next::After(Duration::from_millis(wait_ms)),
            _ => Next::Later,
        })
    }

    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// What is past its window or time. Where that is much, or a whole workspace, two clocks have to agree: what a wrong one deletes nobody
    /// brings back. None where they do not, and as long as the index may be one of a backup that does not know the plans.
    async fn due(&mut self) -> anyhow::Result<Option<Due>> {
        // By the plans of a backup much would be due that is not.
        if !self.told.is_compared() {
            return Ok(None);
        }
        let due = self.index.due(DUE_UNCHECKED_MAX + 1).await?;
        let is_much =
            due.has_closed || due.sessions > DUE_UNCHECKED_MAX as u64 || (due.sessions > DUE_FEW && due.is_most);
        let differ_s = if is_much { (due.now_s - self.objects.now_s().await?).abs() } else { 0 };
        let is_wrong = differ_s > CLOCKS_DIFFER_S_MAX;
        ::metrics::gauge!(metrics::CLOCKS_DIFFER).set(if is_wrong { differ_s as f64 } else { 0.0 });
        if std::mem::replace(&mut self.clock_is_wrong, is_wrong) != is_wrong {
            if is_wrong {
                tracing::error!(
                    differ_s,
                    sessions = due.sessions,
                    closed_workspaces = due.has_closed,
                    "nothing expires: the index's clock and the bucket's differ"
                );
            } else {
                tracing::info!("the index's clock and the bucket's agree again; what is past its window expires");
            }
        }
        Ok((!is_wrong).then_some(due))
    }

    /// Begins to delete what is past its window; how many.
    async fn expire(&self, due: Due) -> anyhow::Result<u64> {
        let expired = self.index.expire(due.now_s, BATCH, || self.told.is_compared()).await?;
        ::metrics::counter!(metrics::EXPIRED).increment(expired);
        Ok(expired)
    }

    /// Ends uploads that whoever began them does not go on with: killed, or without an answer. Now and then.
    async fn end_uploads(&mut self) -> anyhow::Result<()> {
        if !self.uploads.is_due() {
            return Ok(());
        }
        let mut abandoned = self.objects.open_uploads("", self.keeps).await?;
        if !abandoned.is_empty() {
            // By the one clock that says when they were begun.
            let now_s = self.objects.now_s().await?;
            let horizon_s = self.put_horizon.as_secs().cast_signed();
            abandoned.retain(|open| open.begun_s.is_some_and(|begun_s| now_s - begun_s > horizon_s));
            // One whose row is staged is being made, for as long as that takes.
            let ids: Vec<ObjectId> = abandoned.iter().map(|open| open.key.id()).collect();
            let staged = self.index.staged_among(&ids).await?;
            abandoned.retain(|open| !staged.contains(&open.key.id()));
            self.abort(&abandoned).await?;
        }
        self.uploads.note_done();
        Ok(())
    }

    /// Goes on with deletions by reference whose sessions are not all found: who took them may be gone. Whether there is more to find.
    /// What fails of it must not keep all else from being deleted.
    async fn find_deleted(&mut self) -> bool {
        let found = self.find_some_deleted().await;
        found.unwrap_or_else(|error| {
            ::metrics::counter!(metrics::FAILURES).increment(1);
            tracing::warn!("find sessions of deleted references: {error:#}; trying again");
            false
        })
    }

    async fn find_some_deleted(&mut self) -> anyhow::Result<bool> {
        let finding = self.index.finding(DELETIONS_AT_ONCE).await?;
        let mut failed = Ok(());
        for deletion in &finding {
            // Others do not wait for one that fails.
            failed = self.index.find_deleted(*deletion, BATCH).await.map(drop).and(failed);
        }
        if self.overlooked.is_due() {
            let found = self.index.delete_overlooked(BATCH).await?.max(self.index.delete_of_gone(BATCH).await?);
            if found < BATCH as u64 {
                self.overlooked.note_done();
            }
        }
        failed?;
        Ok(!finding.is_empty())
    }

    /// Has keys destroyed once more that the key store forgot to have destroyed.
    async fn shred_again(&self) -> anyhow::Result<()> {
        let keys = self.journal.shred_again().await?;
        ::metrics::counter!(metrics::SHREDDED_AGAIN).increment(keys);
        Replayed { keys, ..Replayed::default() }.tell();
        Ok(())
    }

    /// Writes into the journal what was deleted and is not in it; of how many deletions.
    async fn journal(&self) -> anyhow::Result<usize> {
        let written = self.journal.write_all(DELETIONS_AT_ONCE as usize).await?;
        ::metrics::counter!(metrics::JOURNALLED).increment(written as u64);
        Ok(written)
    }

    /// Deletes what is a closed workspace's whose time is over; whether there is more. Where it is not known what is due, nothing is begun
    /// that was not.
    async fn terminate(&mut self, due: Option<Due>) -> anyhow::Result<bool> {
        if let Some(due) = due.filter(|due| due.has_closed) {
            self.index.begin_terminations(due.now_s, DELETIONS_AT_ONCE, || self.told.is_compared()).await?;
        }
        let mut goes_on = self.index.forget_reads_of_gone(BATCH).await? > 0;
        let found = self.index.terminated(self.terminated, DELETIONS_AT_ONCE).await?;
        self.terminated = behind(&found, DELETIONS_AT_ONCE);
        goes_on |= self.terminated.is_some();
        for terminated in found {
            let found = self.index.delete_of_terminated(&terminated, BATCH).await?;
            goes_on |= found == BATCH as u64;
            if found == 0 && terminated.is_receipted {
                // Before the rows of its links: whatever backup has them has nothing that opens them.
                self.keystore.shred_references(terminated.workspace).await?;
                let is_gone = self.index.forget_workspace(terminated.workspace, BATCH).await?;
                ::metrics::counter!(metrics::TERMINATED).increment(u64::from(is_gone));
                goes_on |= !is_gone;
            }
        }
        Ok(goes_on)
    }

    /// Verifies some deletions of a round through those that are over, and signs that they are; whether the round goes on.
    async fn sign_receipts(&mut self) -> anyhow::Result<bool> {
        let due = self.receipts.due(self.receipted, RECEIPTS_AT_ONCE).await?;
        let signing = signing(&self.receipt_keys.get()).context("receipt key is not 32 bytes in base64")?;
        for deletion in &due {
            match self.receipts.sign(deletion.id, &signing).await {
                Ok(true) => ::metrics::counter!(metrics::RECEIPTS).increment(1),
                // Another worker was faster.
                Ok(false) => {}
                Err(error @ ReceiptError::Unverified(..)) => {
                    // Only this one waits for an operator, not all that stand behind it. The first of a round is told of, and how many.
                    if self.unverified == 0 {
                        tracing::error!("{}", chain(&error));
                    }
                    self.unverified += 1;
                }
                Err(error) => {
                    // Should this one fail again, those behind it do not wait for it.
                    self.receipted = Some(*deletion);
                    return Err(error.into());
                }
            }
        }
        self.receipted = behind(&due, RECEIPTS_AT_ONCE);
        if self.receipted.is_none() {
            let deletions = std::mem::take(&mut self.unverified);
            ::metrics::gauge!(metrics::UNVERIFIED).set(f64::from(deletions));
            if deletions > 1 {
                tracing::error!(deletions, "deletions that are over could not be verified; one of them was told of");
            }
        }
        Ok(self.receipted.is_some())
    }

    /// Removes entries of the journal that are older than any backup, now and then; whether there may be more.
    async fn forget_entries(&mut self) -> anyhow::Result<bool> {
        if !self.old_entries.is_due() {
            return Ok(false);
        }
        let forgotten = self.journal.forget(self.keeps).await?;
        if forgotten == 0 {
            self.old_entries.note_done();
        }
        Ok(forgotten > 0)
    }

    /// Removes tombstones that nobody needs any more, now and then; whether there may be more. By the bucket's clock as well as the index's:
    /// a wrong one must not have them go early.
    async fn forget_tombstones(&mut self) -> anyhow::Result<bool> {
        if !self.old_tombstones.is_due() {
            return Ok(false);
        }
        let (now_s, kept_s) = (self.objects.now_s().await?, self.tombstones_kept_s);
        let found = self.index.forgettable(now_s, kept_s, BATCH).await?;
        // The key store first: should this end between the two, the tombstone is found again.
        self.keystore.forget(&found.sessions).await?;
        let forgotten = self.index.forget_tombstones(&found).await?;
        ::metrics::counter!(metrics::FORGOTTEN).increment(forgotten);
        let is_more = self.index.forget_marks(now_s, kept_s, BATCH).await? | !found.deletions.is_empty();
        if !is_more {
            self.old_tombstones.note_done();
        }
        Ok(is_more)
    }

    /// Removes entries of the audit that are too old, now and then; whether there may be more.
    async fn forget_reads(&mut self) -> anyhow::Result<bool> {
        if !self.old_reads.is_due() {
            return Ok(false);
        }
        let forgotten = self.index.forget_reads(BATCH).await?;
        ::metrics::counter!(metrics::READS_FORGOTTEN).increment(forgotten);
        let is_more = forgotten == BATCH as u64;
        if !is_more {
            self.old_reads.note_done();
        }
        Ok(is_more)
    }

    /// Destroys keys of sessions that are new among the deleted, in one go, first of those that somebody asked to have deleted; how many.
    async fn shred(&self) -> anyhow::Result<usize> {
        let mut due = self.index.unshredded(Round::Asked, BATCH).await?;
        if due.len() < DELETE_KEYS_MAX {
            let asked: BTreeSet<_> = due.iter().copied().collect();
            let others = self.index.unshredded(Round::All, BATCH).await?;
            due.extend(others.into_iter().filter(|session| !asked.contains(session)));
            due.truncate(DELETE_KEYS_MAX);
        }
        if due.is_empty() {
            return Ok(0);
        }
        let keys: Vec<SessionKey> = due.iter().map(|(_, key)| *key).collect();
        let shreddings = self.keystore.shred(&keys).await?;
        self.index.mark_shredded(&due, shreddings).await?;
        ::metrics::counter!(metrics::SHREDDED).increment(due.len() as u64);
        Ok(due.len())
    }

    /// Versioning may be switched on while we run, and then a deletion by key alone removes nothing.
    async fn see_versions(&mut self) -> anyhow::Result<()> {
        self.keeps.versions |= self.objects.keeps_versions().await?;
        Ok(())
    }

    /// Leads one part of a round through all leaving sessions on; a part that fails is taken up again. Where that is not the last part,
    /// those that somebody asked to have deleted have a round of their own: they do not wait for what expires beside them. Whether
    /// something was found that there was no room to remove.
    async fn lead_round_on(&mut self) -> anyhow::Result<bool> {
        let (leaving, mut wanted) = self.lead_on(Round::All, self.led.as_ref()).await?;
        ::metrics::gauge!(metrics::LEAVING).set(leaving.len() as f64);
        let led = behind(&leaving, BATCH);
        let led_asked = if led.is_some() {
            let (asked, of_asked) = self.lead_on(Round::Asked, self.led_asked.as_ref()).await?;
            wanted.extend(of_asked);
            behind(&asked, BATCH)
        } else {
            None
        };
        let is_left = if wanted.is_empty() {
            false
        } else {
            self.see_versions().await?;
            self.look_at(wanted).await?
        };
        (self.led, self.led_asked) = (led, led_asked);
        Ok(is_left)
    }

    /// Leads the next sessions of a round on, as far as nothing but this worker is waited for; gives them, and those that are to be listed.
    async fn lead_on(
        &self,
        round: Round,
        after: Option<&Leaving>,
    ) -> anyhow::Result<(Vec<Leaving>, BTreeSet<SessionKey>)> {
        let mut looks = 0;
        loop {
            let leaving = self.index.leaving(round, after, BATCH).await?;
            looks += 1;
            let (mut barred, mut noted, mut wanted) = (Vec::new(), Vec::new(), BTreeSet::new());
            for session in &leaving {
                match next_step(&session.facts) {
                    Step::SetBarrier => barred.push(session),
                    Step::NoteBlockers => noted.push(session),
                    Step::VerifyAbsent => drop(wanted.insert(session.key)),
                    // The journal is written at the beginning of a pass, and keys are destroyed.
                    Step::Journal | Step::Shred | Step::AwaitBarrier | Step::AwaitRemoval => {}
                }
            }
            self.index.set_barriers(&barred).await?;
            self.index.note_blockers(&noted).await?;
            if (barred.is_empty() && noted.is_empty()) || looks == LOOKS_MAX {
                return Ok((leaving, wanted));
            }
        }
    }
}

/// Behind which of these a round goes on; none when they were the last of it.
fn behind<T: Clone>(found: &[T], limit: i64) -> Option<T> {
    found.last().filter(|_| found.len() as i64 == limit).cloned()
}
