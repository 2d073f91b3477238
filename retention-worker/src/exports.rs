//! Exports that are over: their keys are destroyed, their objects go, and what sessions they had is forgotten once listings show
//! nothing of them. Decided by [`engine::retention::next_export_step`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::ensure;
use engine::retention::{ExportStep, next_export_step};
use schemas::paths::{self, ObjectKey, Section};
use schemas::{ExportId, ObjectId, SessionKey, WorkspaceId};
use storage::index::Index;
use storage::index::exports::Ended;
use storage::keystore::KeyStore;
use storage::objects::{Keeps, Lying, Objects};

use crate::metrics;

/// Exports of one pass.
const EXPORTS_AT_ONCE: i64 = 500;
/// How often it is looked for parts that no row names, of an index that was restored from a backup: by the first pass of a worker and beside each
/// server, and then for uploads that were under way.
pub(crate) const STRAY_INTERVAL: Duration = Duration::from_secs(600);

/// Where exports lie.
pub(crate) struct Exports<'a> {
    pub(crate) index: &'a Index,
    pub(crate) keystore: &'a KeyStore,
    pub(crate) objects: &'a Objects,
    pub(crate) keeps: Keeps,
    /// How long any process keeps an unwrapped key.
    pub(crate) key_cache: Duration,
}

impl Exports<'_> {
    /// Ends exports whose time is over, and leads those that are over one step on; whether there are more.
    pub(crate) async fn lead_on(&self) -> anyhow::Result<bool> {
        let expired = self.index.expire_exports(EXPORTS_AT_ONCE).await?;
        let ended = self.index.ended_exports(EXPORTS_AT_ONCE).await?;
        let keys_cached_ms = u64::try_from(self.key_cache.as_millis()).unwrap_or(u64::MAX);
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
        self.look_at(&looked_at).await?;
        let forgotten = self.index.forget_exports(EXPORTS_AT_ONCE).await?;
        Ok([expired, forgotten].contains(&EXPORTS_AT_ONCE.unsigned_abs())
            || !(shredded.is_empty() && condemned.is_empty()))
    }

    /// Those of which listings show nothing are gone; of others what is there is removed, and the next pass looks again.
    async fn look_at(&self, exports: &[&Ended]) -> anyhow::Result<()> {
        let mut gone = Vec::new();
        for export in exports {
            let prefix = paths::export_prefix(export.workspace, export.id);
            let lying = self.objects.lying(&prefix, self.keeps).await?;
            if lying.is_empty() {
                gone.push(export.id);
            } else {
                self.objects.remove(&lying).await?;
                if lying.iter().any(|lying| lying.key.is_err()) {
                    // Only its sessions wait for an operator, not all that stand behind them.
                    ::metrics::counter!(metrics::FAILURES).increment(1);
                    tracing::error!(
                        prefix,
                        "objects below the prefix of an export are not ours to delete; look at them"
                    );
                }
            }
        }
        if !gone.is_empty() {
            self.index.mark_exports_gone(&gone).await?;
            ::metrics::counter!(metrics::EXPORTS_GONE).increment(gone.len() as u64);
        }
        Ok(())
    }

    /// Removes parts that no row names, and destroys the keys of exports without any. A row is there before its object and goes after
    /// it, and a part without one is of no use to anybody: so this waits for nothing, and comes before anything is called erased.
    pub(crate) async fn remove_strays(&self) -> anyhow::Result<()> {
        let mut behind = None;
        loop {
            let page = self.objects.list_page(Section::Exports.prefix(), behind.as_ref(), self.keeps.versions).await?;
            let lying: Vec<Lying> = page
                .listed
                .iter()
                .filter_map(|listed| {
                    Some(Lying { key: Ok(ObjectKey::parse(&listed.key)?), version: listed.version.clone() })
                })
                .collect();
            self.remove_unnamed(lying).await?;
            behind = page.next;
            if behind.is_none() {
                return Ok(());
            }
        }
    }

    async fn remove_unnamed(&self, mut lying: Vec<Lying>) -> anyhow::Result<()> {
        let ids: Vec<ObjectId> = lying.iter().filter_map(|lying| Some(lying.key.as_ref().ok()?.id())).collect();
        let named: BTreeSet<ObjectId> = self.index.named_among(&ids).await?.into_iter().collect();
        lying.retain(|lying| lying.key.as_ref().is_ok_and(|key| !named.contains(&key.id())));
        if lying.is_empty() {
            return Ok(());
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
        let left = self.objects.remove(&lying).await?;
        ensure!(left.is_empty(), "the bucket did not delete {} parts of exports that no row names", left.len());
        ::metrics::counter!(metrics::STRAY_PARTS).increment(lying.len() as u64);
        tracing::warn!(
            parts = lying.len(),
            exports = exports.len(),
            "removed parts of exports that no row names: the index is one of a backup"
        );
        Ok(())
    }
}
