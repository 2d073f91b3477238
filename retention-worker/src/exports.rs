//! Exports that are over: their keys are destroyed, their objects go, and what sessions they had is forgotten once listings show
//! nothing of them. Decided by [`engine::retention::next_export_step`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use engine::retention::{ExportStep, next_export_step};
use schemas::paths::{self, ObjectKey, Section};
use schemas::{ExportId, ObjectId, SessionKey, WorkspaceId};
use storage::index::exports::Ended;
use storage::objects::Lying;

use crate::driver::Worker;
use crate::metrics;
use crate::removing::Removed;

/// Exports of one pass.
const EXPORTS_AT_ONCE: i64 = 500;
/// How often it is looked for parts that no row names, of an index that was restored from a backup: by the first pass of a worker and beside each
/// server, and then for uploads that were under way.
pub(crate) const STRAY_INTERVAL: Duration = Duration::from_secs(600);

/// What came of leading exports on.
pub(crate) struct Led {
    /// Whether there are more.
    pub(crate) goes_on: bool,
    /// Whether parts that no row names are left: what had them cannot be called erased.
    pub(crate) has_strays: bool,
}

impl Worker {
    /// Ends exports whose time is over, leads those that are over one step on, and now and then removes parts that no row names.
    pub(crate) async fn end_exports(&mut self) -> anyhow::Result<Led> {
        let goes_on = self.lead_exports_on().await?;
        // Another server may be one of a backup.
        let servers = self.journal.servers();
        if servers != self.servers || self.stray_exports.is_due() {
            if !self.remove_strays().await? {
                return Ok(Led { goes_on, has_strays: true });
            }
            self.stray_exports.note_done();
            self.servers = servers;
        }
        Ok(Led { goes_on, has_strays: false })
    }

    async fn lead_exports_on(&mut self) -> anyhow::Result<bool> {
        let expired = self.index.expire_exports(EXPORTS_AT_ONCE).await?;
        let ended = self.index.ended_exports(EXPORTS_AT_ONCE).await?;
        let keys_cached_ms = u64::try_from(self.config.key_cache.as_millis()).unwrap_or(u64::MAX);
        let (mut shredded, mut condemned, mut looked_at) = (Vec::new(), Vec::new(), Vec::new());
        for export in &ended {
            match next_export_step(&export.facts, keys_cached_ms) {
                ExportStep::Shred => shredded.push(export),
                ExportStep::Condemn => condemned.push(export.id),
                ExportStep::VerifyAbsent => looked_at.push(export),
                ExportStep::AwaitRemoval | ExportStep::AwaitKeyCaches => {}
            }
        }
        if !shredded.is_empty() {
            let keys: Vec<SessionKey> =
                shredded.iter().map(|export| SessionKey::of_export(export.workspace, export.id)).collect();
            let shreddings = self.keystore.shred(&keys).await?;
            let ids: Vec<ExportId> = shredded.iter().map(|export| export.id).collect();
            self.index.mark_exports_shredded(&ids, shreddings).await?;
        }
        self.index.condemn_exports(&condemned).await?;
        self.look_at_exports(&looked_at).await?;
        let forgotten = self.index.forget_exports(EXPORTS_AT_ONCE).await?;
        Ok([expired, forgotten].contains(&EXPORTS_AT_ONCE.unsigned_abs())
            || !(shredded.is_empty() && condemned.is_empty()))
    }

    /// Those of which listings show nothing are gone; of others what is there is removed, and the next pass looks again.
    async fn look_at_exports(&mut self, exports: &[&Ended]) -> anyhow::Result<()> {
        let mut gone = Vec::new();
        for export in exports {
            let prefix = paths::export_prefix(export.workspace, export.id);
            let lying = self.objects.lying(&prefix, self.keeps).await?;
            if lying.is_empty() {
                gone.push(export.id);
            } else {
                self.remove_lying(lying).await?;
            }
        }
        if !gone.is_empty() {
            self.index.mark_exports_gone(&gone).await?;
            ::metrics::counter!(metrics::EXPORTS_GONE).increment(gone.len() as u64);
        }
        Ok(())
    }

    /// Removes parts that no row names, and destroys the keys of exports without any; `false` when there was no room for all. A row is
    /// there before its object and goes after it, and a part without one is of no use to anybody: so this waits for nothing else, and
    /// comes before anything is called erased.
    async fn remove_strays(&mut self) -> anyhow::Result<bool> {
        let mut behind = None;
        loop {
            let page = self.objects.lying_page(Section::Exports.prefix(), behind.as_ref(), self.keeps).await?;
            if !self.remove_unnamed(page.lying).await? {
                return Ok(false);
            }
            behind = page.next;
            if behind.is_none() {
                return Ok(true);
            }
        }
    }

    async fn remove_unnamed(&mut self, mut lying: Vec<Lying>) -> anyhow::Result<bool> {
        let ids: Vec<ObjectId> = lying.iter().filter_map(|lying| Some(lying.key.as_ref().ok()?.id())).collect();
        let named: BTreeSet<ObjectId> = self.index.named_among(&ids).await?.into_iter().collect();
        lying.retain(|lying| lying.key.as_ref().is_ok_and(|key| !named.contains(&key.id())));
        if lying.is_empty() {
            return Ok(true);
        }
        let exports: BTreeMap<ExportId, WorkspaceId> = lying
            .iter()
            .filter_map(|lying| match lying.key {
                Ok(ObjectKey::Export { workspace, export, .. }) => Some((export, workspace)),
                _ => None,
            })
            .collect();
        let known = self.index.exports_among(&exports.keys().copied().collect::<Vec<_>>()).await?;
        let unknown = exports.iter().filter(|(export, _)| !known.contains(export));
        let keys: Vec<SessionKey> =
            unknown.map(|(export, workspace)| SessionKey::of_export(*workspace, *export)).collect();
        if !keys.is_empty() {
            self.keystore.shred(&keys).await?;
        }
        let found = lying.len();
        let Removed { gone, refused } = self.remove_lying(lying).await?;
        if refused > 0 {
            ::metrics::counter!(metrics::FAILURES).increment(1);
            tracing::error!(
                parts = refused,
                exports = exports.len(),
                "the bucket does not delete parts of exports that no row names: nothing is called erased before they are gone; see whether a \
                 policy or an object lock keeps them below exports/"
            );
        }
        if gone > 0 {
            ::metrics::counter!(metrics::STRAY_PARTS).increment(gone as u64);
            tracing::warn!(
                parts = gone,
                exports = exports.len(),
                "removed parts of exports that no row names: the index is one of a backup"
            );
        }
        Ok(gone == found)
    }
}
