//! The worker's loop.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use engine::retention::{Step, next_step};
use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use schemas::control::{Entry, News};
use schemas::paths::{self, ObjectKey};
use schemas::{ObjectId, SessionKey};
use service_kit::kafka::control::{self, Publisher};
use service_kit::service::Surroundings;
use service_kit::{passes, retry};
use storage::index::deletions::{Leaving, Removable};
use storage::index::{Index, outbox};
use storage::keystore::KeyStore;
use storage::objects::{DELETE_KEYS_MAX, Keeps, Lying, Objects, OpenUpload};
use storage::reconciling::Reconciler;
use storage::{Schema, Stores};

use crate::cleaning::Cleaning;
use crate::reconciling::Reconciling;
use crate::withdrawals::Withdrawals;
use crate::{Config, metrics};

/// Rows of one transaction, objects of one request.
const BATCH: i64 = DELETE_KEYS_MAX as i64;

/// Sessions that are led on at once, and listings.
const LED_AT_ONCE: usize = 4;

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

/// Deletions by reference that are gone on with by one pass.
const FINDING_AT_ONCE: i64 = 100;

/// How often entries of the read-access audit are looked for that are older than they have to be.
const AUDIT_INTERVAL: Duration = Duration::from_secs(600);

/// A worker that has not read `control` to its end for this long makes no deletion of a withdrawal: its part is down then.
const HEARD_WITHIN: Duration = Duration::from_secs(15);

struct Worker {
    config: Config,
    index: Index,
    keystore: KeyStore,
    objects: Objects,
    keeps: Keeps,
    /// An upload cannot land later than this after its row was staged.
    put_horizon: Duration,
    /// How far this round through the leaving sessions has come.
    led: Option<Leaving>,
    /// Looking for entries of the audit that are too old.
    old_reads: Seldom,
    /// Whether the index's clock was found wrong.
    clock_is_wrong: bool,
    /// Looking for sessions that no deletion by reference found.
    overlooked: Seldom,
    /// Looking for uploads that nobody ends.
    uploads: Seldom,
}

/// What is done now and then.
struct Seldom {
    every: Duration,
    done: Option<Instant>,
}

impl Seldom {
    fn every(every: Duration) -> Self {
        Self { every, done: None }
    }

    fn is_due(&self) -> bool {
        self.done.is_none_or(|done| done.elapsed() >= self.every)
    }

    fn note_done(&mut self) {
        self.done = Some(Instant::now());
    }
}

/// Deletes until the shutdown.
pub async fn run(config: Config, surroundings: Surroundings) -> anyhow::Result<()> {
    let Surroundings { health, shutdown, .. } = surroundings;
    service_kit::telemetry::describe(metrics::ALL);
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
    if !keeps.uploads {
        tracing::warn!(
            "the bucket's server lists no uploads: parts of those that nobody ended stay until it removes them"
        );
    }
    let publisher = || Publisher::new(&config.control, "retention-worker").context("make producer");
    tokio::spawn(outbox::relay(index.clone(), publisher()?, shutdown.clone()));
    let (withdrawals, cleaning) = (Withdrawals::default(), Cleaning::default());
    tokio::spawn(withdrawals.clone().run(index.clone(), postgres.clone(), shutdown.clone()));
    let cleaner = cleaning.clone();
    let on_entry = move |entry: Entry| {
        cleaning.add(&entry);
        // Whatever its age: only a deletion ends it.
        if let News::Withdrawal(key) = entry.news {
            withdrawals.add(key);
        }
    };
    let following = control::follow_closely(&config.control, "retention-worker", shutdown.clone(), on_entry)
        .context("follow control entries")?;
    tokio::spawn(following.clone().report(health.part("control"), HEARD_WITHIN, shutdown.clone()));
    tokio::spawn(cleaner.run(index.clone(), publisher()?, following, shutdown.clone()));
    let reconciler = Reconciler::new(index.clone(), objects.clone(), put_horizon);
    let reconciling = Reconciling::new(config.reconciling, config.s3.request_timeout, index.clone(), reconciler);
    tokio::spawn(reconciling.run(interval, shutdown.clone()));
    let mut worker = Worker {
        config,
        index,
        keystore,
        objects,
        keeps,
        put_horizon,
        led: None,
        old_reads: Seldom::every(AUDIT_INTERVAL),
        clock_is_wrong: false,
        overlooked: Seldom::every(OVERLOOKED_INTERVAL),
        uploads: Seldom::every(UPLOADS_INTERVAL.min(put_horizon)),
    };
    passes::run(&shutdown, interval, &postgres, metrics::FAILURES, async || worker.pass().await).await;
    Ok(())
}

impl Worker {
    /// One pass; whether a bound cut it short.
    async fn pass(&mut self) -> anyhow::Result<bool> {
        // Before all else, and whatever else fails: nothing of a deletion is more urgent.
        let shredded = self.shred().await;
        let finding_goes_on = self.find_deleted().await;
        let expired = self.expire().await?;
        ::metrics::counter!(metrics::EXPIRED).increment(expired);
        let stale = self.index.condemn_stale(self.config.staged_stale).await?;
        ::metrics::counter!(metrics::STALE).increment(stale);
        // One part of a round through all of them. A part that fails is taken up again.
        let leaving = self.index.leaving(self.led.as_ref(), BATCH).await?;
        ::metrics::gauge!(metrics::LEAVING).set(leaving.len() as f64);
        let removable = self.index.removable(self.config.condemned_grace, BATCH).await?;
        let verifiable = self.index.verifiable(self.put_horizon, BATCH).await?;
        if !(leaving.is_empty() && removable.is_empty() && verifiable.is_empty()) {
            // It may be switched on while we run, and then a deletion by key alone removes nothing.
            self.keeps.versions |= self.objects.keeps_versions().await?;
        }
        self.lead_all_on(&leaving).await?;
        let round_goes_on = leaving.len() == DELETE_KEYS_MAX;
        self.led = leaving.into_iter().next_back().filter(|_| round_goes_on);
        self.delete(&removable).await?;
        self.verify(&verifiable).await?;
        self.end_uploads().await?;
        let forgetting_goes_on = self.forget_reads().await?;
        let shredding_goes_on = shredded? == DELETE_KEYS_MAX;
        Ok(shredding_goes_on
            || finding_goes_on
            || forgetting_goes_on
            || expired == BATCH as u64
            || removable.len() == DELETE_KEYS_MAX
            || round_goes_on)
    }

    /// Begins to delete what is past its window; how many. Where that is much, two clocks have to agree: what a wrong one deletes nobody
    /// brings back.
    async fn expire(&mut self) -> anyhow::Result<u64> {
        let due = self.index.due(DUE_UNCHECKED_MAX + 1).await?;
        let is_much = due.sessions > DUE_UNCHECKED_MAX as u64 || (due.sessions > DUE_FEW && due.is_most);
        let differ_s = if is_much { (due.now_s - self.objects.now_s().await?).abs() } else { 0 };
        let is_wrong = differ_s > CLOCKS_DIFFER_S_MAX;
        ::metrics::gauge!(metrics::CLOCKS_DIFFER).set(if is_wrong { differ_s as f64 } else { 0.0 });
        if std::mem::replace(&mut self.clock_is_wrong, is_wrong) != is_wrong {
            if is_wrong {
                tracing::error!(
                    differ_s,
                    sessions = due.sessions,
                    "nothing expires: the index's clock and the bucket's differ"
                );
            } else {
                tracing::info!("the index's clock and the bucket's agree again; what is past its window expires");
            }
        }
        if is_wrong { Ok(0) } else { Ok(self.index.expire(BATCH).await?) }
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

    async fn abort(&self, uploads: &[OpenUpload]) -> anyhow::Result<()> {
        for open in uploads {
            self.objects.abort(&open.key, &open.upload).await?;
            ::metrics::counter!(metrics::UPLOADS_ENDED).increment(1);
        }
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
        let finding = self.index.finding(FINDING_AT_ONCE).await?;
        for deletion in &finding {
            self.index.find_deleted(*deletion, BATCH).await?;
        }
        if self.overlooked.is_due() && self.index.delete_overlooked(BATCH).await? < BATCH as u64 {
            self.overlooked.note_done();
        }
        Ok(!finding.is_empty())
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

    /// Destroys keys of sessions that are new among the deleted, in one go; how many.
    async fn shred(&self) -> anyhow::Result<usize> {
        let due = self.index.unshredded(BATCH).await?;
        if due.is_empty() {
            return Ok(0);
        }
        let keys: Vec<SessionKey> = due.iter().map(|(_, key)| *key).collect();
        self.keystore.shred(&keys).await?;
        self.index.mark_shredded(&due).await?;
        ::metrics::counter!(metrics::SHREDDED).increment(due.len() as u64);
        Ok(due.len())
    }

    /// Leads each of these one step on: barriers at once, whatever needs questions of its own a few at a time.
    async fn lead_all_on(&self, leaving: &[Leaving]) -> anyhow::Result<()> {
        let (barred, others): (Vec<&Leaving>, Vec<&Leaving>) =
            leaving.iter().partition(|session| next_step(&session.facts) == Step::SetBarrier);
        self.index.set_barriers(&barred).await?;
        // Boxed, since the compiler does not see that closures which borrow give futures that can be sent.
        let leading: Vec<BoxFuture<'_, anyhow::Result<()>>> =
            others.into_iter().map(|session| self.lead_on(session).boxed()).collect();
        stream::iter(leading).buffer_unordered(LED_AT_ONCE).try_collect().await
    }

    async fn lead_on(&self, session: &Leaving) -> anyhow::Result<()> {
        match next_step(&session.facts) {
            // Set for all.
            Step::SetBarrier => {}
            Step::NoteBlockers => self.index.note_blockers(session).await?,
            // Keys are destroyed at the beginning of a pass.
            Step::Shred | Step::AwaitBarrier | Step::AwaitRemoval => {}
            Step::VerifyAbsent if self.index.may_be_quarantined(&session.key).await? => {
                ::metrics::counter!(metrics::HELD).increment(1);
            }
            Step::VerifyAbsent => {
                let prefix = paths::session_prefix(&session.key);
                let found = self.objects.lying(&prefix, self.keeps).await?;
                let uploads = self.objects.open_uploads(&prefix, self.keeps).await?;
                if found.is_empty() && uploads.is_empty() {
                    self.index.mark_erased(session).await?;
                    ::metrics::counter!(metrics::ERASED).increment(1);
                } else {
                    // No row names them: uploads that landed late, or not at all. The next pass lists again.
                    self.abort(&uploads).await?;
                    let left = self.objects.remove(&found).await?;
                    let strangers = found.iter().filter(|lying| lying.key.is_err()).count();
                    ::metrics::counter!(metrics::RETURNED).increment((found.len() - strangers - left.len()) as u64);
                    if strangers > 0 {
                        // Only this session waits for an operator, not all that stand behind it.
                        ::metrics::counter!(metrics::FAILURES).increment(1);
                        tracing::error!(
                            strangers,
                            prefix,
                            "objects below a deleted session's prefix are not ours to delete; look at them"
                        );
                    }
                }
            }
        }
        Ok(())
    }

    /// Deletes condemned objects. Those that S3 does not delete are tried again by the next pass.
    async fn delete(&self, removable: &[Removable]) -> anyhow::Result<()> {
        if removable.is_empty() {
            return Ok(());
        }
        let keys: Vec<ObjectKey> = removable.iter().map(|object| object.key).collect();
        let left = self.objects.erase(&keys, self.keeps).await?;
        let gone: Vec<ObjectId> = keys.iter().filter(|key| !left.contains(key)).map(ObjectKey::id).collect();
        self.index.mark_deleted(&gone).await?;
        Ok(())
    }

    /// Forgets the rows of deleted objects that a listing shows absent (R3).
    async fn verify(&self, deleted: &[Removable]) -> anyhow::Result<()> {
        // A listing, not the word of a delete: of each session once, of other objects by their keys.
        let mut below: BTreeMap<String, Vec<&Removable>> = BTreeMap::new();
        for object in deleted {
            let prefix = match &object.key {
                ObjectKey::Session { key, .. } => paths::session_prefix(key),
                other => other.to_string(),
            };
            below.entry(prefix).or_default().push(object);
        }
        for (prefix, objects) in &below {
            if objects.iter().any(|object| !object.was_live) {
                let mut uploads = self.objects.open_uploads(prefix, self.keeps).await?;
                uploads.retain(|open| objects.iter().any(|object| object.key == open.key));
                self.abort(&uploads).await?;
            }
        }
        let listing = stream::iter(below).map(|(prefix, objects)| {
            let (bucket, keeps) = (self.objects.clone(), self.keeps);
            async move { bucket.lying(&prefix, keeps).await.map(|found| (objects, found)) }
        });
        let listed: Vec<(Vec<&Removable>, Vec<Lying>)> = listing.buffer_unordered(LED_AT_ONCE).try_collect().await?;
        let mut absent = Vec::new();
        for (objects, found) in listed {
            for object in objects {
                if found.iter().all(|lying| lying.key != Ok(object.key)) {
                    absent.push(object.key.id());
                } else {
                    ::metrics::counter!(metrics::RETURNED).increment(1);
                    self.index.mark_undeleted(object.key.id()).await?;
                }
            }
        }
        if !absent.is_empty() {
            self.index.forget_objects(&absent).await?;
            ::metrics::counter!(metrics::REMOVED).increment(absent.len() as u64);
        }
        Ok(())
    }
}
