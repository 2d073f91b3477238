//! Exports that are over: their keys are destroyed, their objects go, and what sessions they had is forgotten once listings show
//! nothing of them. Decided by [`engine::retention::next_export_step`].

use std::collections::BTreeSet;
use std::time::Duration;

use engine::retention::{ExportStep, next_export_step};
use schemas::paths::{self, ObjectKey, Section};
use schemas::{ExportId, SessionKey, WorkspaceId};
use storage::index::Index;
use storage::index::exports::Ended;
use storage::keystore::KeyStore;
use storage::objects::{Keeps, Objects};

use crate::metrics;

/// Exports of one pass.
const EXPORTS_AT_ONCE: i64 = 500;
/// How often it is looked for what is left of exports that no row names any more: of an index that was restored from a backup.
pub(crate) const STRAY_INTERVAL: Duration = Duration::from_secs(3_600);
/// Nothing of an export is there 72 hours after it was asked for; clocks may differ.
const STRAY_AGE: Duration = Duration::from_secs(96 * 3_600);

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
        Ok([expired, ended.len() as u64, forgotten].contains(&EXPORTS_AT_ONCE.unsigned_abs())
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
            }
        }
        if !gone.is_empty() {
            self.index.mark_exports_gone(&gone).await?;
            ::metrics::counter!(metrics::EXPORTS_GONE).increment(gone.len() as u64);
        }
        Ok(())
    }

    /// Removes what is left of exports that have no row and are older than any may get, by the bucket's clock and their ids.
    pub(crate) async fn remove_strays(&self) -> anyhow::Result<()> {
        let now_s = self.objects.now_s().await?;
        let oldest_s = now_s.saturating_sub_unsigned(STRAY_AGE.as_secs());
        let mut behind = None;
        loop {
            let page = self.objects.list_page(Section::Exports.prefix(), behind.as_ref(), self.keeps.versions).await?;
            let keys = page.listed.iter().filter_map(|listed| ObjectKey::parse(&listed.key));
            let old: BTreeSet<(WorkspaceId, ExportId)> = keys
                .filter_map(|key| match key {
                    ObjectKey::Export { workspace, export, .. } => Some((workspace, export)),
                    _ => None,
                })
                .filter(|(_, export)| asked_s(*export).is_some_and(|asked_s| asked_s < oldest_s))
                .collect();
            let ids: Vec<ExportId> = old.iter().map(|(_, export)| *export).collect();
            let named = self.index.exports_among(&ids).await?;
            for (workspace, export) in old.into_iter().filter(|(_, export)| !named.contains(export)) {
                self.keystore.shred(&[SessionKey::of_export(workspace, export)]).await?;
                let lying = self.objects.lying(&paths::export_prefix(workspace, export), self.keeps).await?;
                self.objects.remove(&lying).await?;
                ::metrics::counter!(metrics::EXPORTS_GONE).increment(1);
                tracing::warn!(%workspace, %export, "removed what was left of an export that no row names: the index is one of a backup");
            }
            behind = page.next;
            if behind.is_none() {
                return Ok(());
            }
        }
    }
}

/// When an export was asked for, in seconds since the epoch, by its id. None of an id that has no time.
fn asked_s(export: ExportId) -> Option<i64> {
    let (seconds, _) = export.0.get_timestamp()?.to_unix();
    i64::try_from(seconds).ok()
}

#[cfg(test)]
mod tests {
    use uuid::{NoContext, Timestamp, Uuid};

    use super::*;

    #[test]
    fn an_export_tells_by_its_id_when_it_was_asked_for() {
        let asked = Timestamp::from_unix(NoContext, 1_790_000_000, 5_000_000);
        assert_eq!(asked_s(ExportId(Uuid::new_v7(asked))), Some(1_790_000_000));
        assert_eq!(asked_s(ExportId(Uuid::new_v4())), None);
    }
}
