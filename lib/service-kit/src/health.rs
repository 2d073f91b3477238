//! Health: what a service needs, part by part, and whether it has it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

/// The parts of one process. Ready means: every part is up.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<Mutex<BTreeMap<&'static str, PartState>>>);

/// How one part is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "reason", rename_all = "lowercase")]
pub enum PartState {
    /// It answers.
    Up,
    /// It does not, and why as far as known.
    Down(String),
}

/// One part's reporter.
#[derive(Debug, Clone)]
pub struct Part {
    health: Health,
    name: &'static str,
}

impl Health {
    /// A part that is down until somebody says otherwise.
    pub fn part(&self, name: &'static str) -> Part {
        self.set(name, PartState::Down("starting".into()));
        Part { health: self.clone(), name }
    }

    /// Whether every part is up, and all parts.
    pub fn ready(&self) -> (bool, BTreeMap<&'static str, PartState>) {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (parts.values().all(|state| *state == PartState::Up), parts)
    }

    fn set(&self, name: &'static str, state: PartState) {
        let mut parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = parts.insert(name, state.clone());
        // A change is logged once, here.
        match (&before, &state) {
            (Some(PartState::Down(_)), PartState::Up) => tracing::info!(part = name, "part is up"),
            (Some(PartState::Up), PartState::Down(reason)) => tracing::warn!(part = name, reason, "part is down"),
            _ => {}
        }
    }
}

impl Part {
    /// Whether it answers, as far as is known.
    pub fn is_up(&self) -> bool {
        let parts = self.health.0.lock().unwrap_or_else(PoisonError::into_inner);
        parts.get(self.name) == Some(&PartState::Up)
    }

    /// It answers.
    pub fn up(&self) {
        self.health.set(self.name, PartState::Up);
    }

    /// It does not.
    pub fn down(&self, reason: impl Into<String>) {
        self.health.set(self.name, PartState::Down(reason.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_that_every_part_is_up() {
        let health = Health::default();
        assert!(health.ready().0);
        let (kafka, s3) = (health.part("kafka"), health.part("s3"));
        kafka.up();
        assert!(!health.ready().0);
        s3.up();
        assert!(health.ready().0);
        kafka.down("gone");
        assert_eq!(health.ready().1["kafka"], PartState::Down("gone".into()));
    }
}
