//! Transport epochs: the keys of records on their way through the log.
//!
//! Edges seal under the current epoch, batchers open all that the file holds. The epoch that comes next is in the file
//! before it is used: a rotation makes it current and draws the one after it, so that a key is everywhere when the first
//! record under it comes, and no clock decides. An epoch that has ended is destroyed once the log holds nothing of it any
//! more; then whoever kept a broker's disk has nothing.

use std::time::Duration;

use sealing::Key;
use sealing::transport::{EpochId, EpochKeys};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use time::OffsetDateTime;

use super::{KeysError, key_text};

/// An epoch.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Epoch {
    /// Its number, above all before it.
    pub id: u32,
    #[serde(with = "key_text")]
    key: Key,
    /// Since when it is not the current one any more.
    #[serde(default, with = "time::serde::rfc3339::option", skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<OffsetDateTime>,
}

/// The file. One epoch is current, one stands ready, others have ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "File", into = "File")]
pub struct TransportKeys {
    current: u32,
    epochs: Vec<Epoch>,
    keys: EpochKeys,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    current: u32,
    epochs: Vec<Epoch>,
}

impl From<TransportKeys> for File {
    fn from(keys: TransportKeys) -> Self {
        Self { current: keys.current, epochs: keys.epochs }
    }
}

impl TryFrom<File> for TransportKeys {
    type Error = &'static str;

    fn try_from(file: File) -> Result<Self, Self::Error> {
        if !file.epochs.is_sorted_by(|one, other| one.id < other.id) {
            return Err("epochs stand in order, each once");
        }
        let keys = Self::of(file.current, file.epochs);
        let ended = |epoch: &Epoch| epoch.ended_at.is_some();
        if keys.epochs.iter().any(|epoch| ended(epoch) != (epoch.id < keys.current)) {
            return Err("epochs before the current one have ended, and no others");
        }
        if keys.epochs.iter().any(|epoch| epoch.id == keys.current) { Ok(keys) } else { Err("no current epoch") }
    }
}

/// Why an epoch cannot be destroyed.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DestroyError {
    /// There is no such epoch.
    #[error("there is no epoch {0}")]
    Missing(EpochId),
    /// It is in use, or will be.
    #[error("epoch {0} has not ended\n  hint: `clairvio keys rotate transport` ends the current one")]
    InUse(EpochId),
    /// The log may hold records of it.
    #[error("the log may hold records of epoch {epoch} until {until}")]
    Early {
        /// The epoch.
        epoch: EpochId,
        /// When they are gone.
        until: OffsetDateTime,
    },
}

impl TransportKeys {
    fn of(current: u32, epochs: Vec<Epoch>) -> Self {
        let keys = epochs.iter().map(|epoch| (EpochId(epoch.id), epoch.key.clone())).collect();
        Self { current, epochs, keys: EpochKeys::new(keys) }
    }

    /// A first epoch, and the one after it.
    pub fn make() -> Result<Self, KeysError> {
        Ok(Self::of(1, vec![new_epoch(1)?, new_epoch(2)?]))
    }

    /// The epoch that edges seal under, and its key.
    pub fn current(&self) -> (EpochId, &Key) {
        let found = self.epochs.iter().find(|epoch| epoch.id == self.current);
        let epoch = found.expect("a file without its current epoch is not read");
        (EpochId(epoch.id), &epoch.key)
    }

    /// All epochs, oldest first.
    pub fn epochs(&self) -> &[Epoch] {
        &self.epochs
    }

    /// The keys for opening.
    pub fn keys(&self) -> &EpochKeys {
        &self.keys
    }

    /// Ends the current epoch: the one that stands ready becomes current, and a new one stands ready.
    pub fn rotate(&mut self, now: OffsetDateTime) -> Result<(), KeysError> {
        let mut epochs = self.epochs.clone();
        let last = epochs.last().map_or(self.current, |epoch| epoch.id);
        // A file that holds no epoch behind the current one gets two: then the next is used before all have seen it, and
        // records under it wait in quarantine where they come too early.
        for id in last + 1..=self.current + 2 {
            epochs.push(new_epoch(id)?);
        }
        for epoch in epochs.iter_mut().filter(|epoch| epoch.id == self.current) {
            epoch.ended_at = Some(now);
        }
        *self = Self::of(self.current + 1, epochs);
        Ok(())
    }

    /// When an ended epoch can be destroyed: nothing of it is in the log any more `kept` after its end.
    pub fn destroy(&mut self, id: EpochId, now: OffsetDateTime, kept: Duration) -> Result<(), DestroyError> {
        let epoch = self.epochs.iter().find(|epoch| epoch.id == id.0).ok_or(DestroyError::Missing(id))?;
        let until = epoch.ended_at.ok_or(DestroyError::InUse(id))? + kept;
        if now < until {
            return Err(DestroyError::Early { epoch: id, until });
        }
        *self = Self::of(self.current, self.epochs.iter().filter(|epoch| epoch.id != id.0).cloned().collect());
        Ok(())
    }

    /// Ended epochs that can be destroyed by now.
    pub fn due(&self, now: OffsetDateTime, kept: Duration) -> Vec<EpochId> {
        let is_due = |epoch: &&Epoch| epoch.ended_at.is_some_and(|ended| ended + kept <= now);
        self.epochs.iter().filter(is_due).map(|epoch| EpochId(epoch.id)).collect()
    }
}

fn new_epoch(id: u32) -> Result<Epoch, KeysError> {
    Ok(Epoch { id, key: Key::random().map_err(|_| KeysError::Random)?, ended_at: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT: Duration = Duration::from_secs(100);
    const START: OffsetDateTime = OffsetDateTime::UNIX_EPOCH;

    #[test]
    fn an_epoch_is_spread_used_ended_and_destroyed() {
        let mut keys = TransportKeys::make().unwrap();
        let spread = keys.keys().clone();
        let next = spread.get(EpochId(2)).unwrap().expose();
        keys.rotate(START).unwrap();
        assert_eq!(keys.current().0, EpochId(2));
        assert_eq!(keys.current().1.expose(), next, "the next epoch's key was known before it is used");
        assert_eq!(keys.epochs().iter().map(|epoch| epoch.id).collect::<Vec<_>>(), [1, 2, 3]);

        assert_eq!(keys.destroy(EpochId(9), START, KEPT), Err(DestroyError::Missing(EpochId(9))));
        for in_use in [2, 3] {
            let refused = keys.destroy(EpochId(in_use), START + KEPT * 9, KEPT);
            assert_eq!(refused, Err(DestroyError::InUse(EpochId(in_use))));
        }
        let (early, due) = (START + KEPT - Duration::from_secs(1), START + KEPT);
        assert_eq!(keys.destroy(EpochId(1), early, KEPT), Err(DestroyError::Early { epoch: EpochId(1), until: due }));
        assert_eq!((keys.due(early, KEPT), keys.due(due, KEPT)), (vec![], vec![EpochId(1)]));
        keys.destroy(EpochId(1), due, KEPT).unwrap();
        assert!(keys.keys().get(EpochId(1)).is_none());
        keys.rotate(START).unwrap();
        assert_eq!(keys.current().0, EpochId(3), "a number is never given twice");
    }

    #[test]
    fn files_read_back_hide_their_keys_and_hold_together() {
        let keys = TransportKeys::make().unwrap();
        let text = serde_json::to_string(&keys).unwrap();
        let read: TransportKeys = serde_json::from_str(&text).unwrap();
        assert_eq!(read.current().1.expose(), keys.current().1.expose());
        assert!(format!("{keys:?}").contains("Key(secret)"));
        let key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let refused = [
            format!(r#"{{"current":2,"epochs":[{{"id":1,"key":"{key}"}}]}}"#),
            format!(r#"{{"current":1,"epochs":[{{"id":1,"key":"{key}"}},{{"id":1,"key":"{key}"}}]}}"#),
            format!(r#"{{"current":1,"epochs":[{{"id":1,"key":"{key}","ended_at":"2026-01-01T00:00:00Z"}}]}}"#),
            r#"{"current":1,"epochs":[{"id":1,"key":"AAAA"}]}"#.to_owned(),
        ];
        for text in refused {
            assert!(serde_json::from_str::<TransportKeys>(&text).is_err(), "{text}");
        }
    }
}
