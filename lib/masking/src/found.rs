//! What a person did and what a page ran into, as far as events tell: interactions, pages, console messages, requests.
//!
//! Clients write what they like into an event's data: what has another shape than expected counts as nothing, and is never an
//! error.

use schemas::BatchFacts;
use schemas::facts::{Urls, active_between_ms};
use schemas::limits::BATCH_URLS_MAX;

use crate::pass::Walked;

/// `type` of a mouse interaction. A double click and a tap come with clicks of their own.
const INTERACTION_CLICK: u64 = 2;

/// Whether an incremental event of this source is a person's doing: rrweb's MouseMove, MouseInteraction, Scroll, Input,
/// TouchMove, MediaInteraction, Drag and Selection.
pub(crate) fn is_interaction(source: u64) -> bool {
    matches!(source, 1..=3 | 5..=7 | 12 | 14)
}

/// The level of a console message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Error,
    Warn,
    Info,
    Log,
    Other,
}

impl Level {
    pub(crate) fn of(level: &str) -> Self {
        match level {
            "error" => Self::Error,
            "warn" => Self::Warn,
            "info" => Self::Info,
            "log" => Self::Log,
            _ => Self::Other,
        }
    }
}

/// What is found in one event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Found {
    pub(crate) interacts: bool,
    /// rrweb's type of a mouse interaction.
    pub(crate) interaction: Option<u64>,
    pub(crate) is_input: bool,
    /// Origin and path of a page that was opened.
    pub(crate) page: Option<String>,
    pub(crate) level: Option<Level>,
    pub(crate) failed_requests: u32,
}

/// Sums over a batch.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    facts: BatchFacts,
    urls: Vec<String>,
}

const TYPE_FULL_SNAPSHOT: u64 = 2;
const TYPE_META: u64 = 4;

impl Sums {
    /// Events so far.
    pub(crate) fn events(&self) -> usize {
        self.facts.events as usize
    }

    /// Takes in an event and what was found in it.
    pub(crate) fn add(&mut self, walked: &Walked, at: i64, found: &mut Found) {
        let facts = &mut self.facts;
        if facts.events == 0 {
            (facts.ts_min, facts.ts_max) = (at, at);
        }
        facts.events += 1;
        facts.ts_min = facts.ts_min.min(at);
        facts.ts_max = facts.ts_max.max(at);
        facts.kinds[walked.kind.min(7) as usize] += 1;
        facts.full_snapshot |= walked.kind == TYPE_FULL_SNAPSHOT;
        facts.pages += u32::from(walked.kind == TYPE_META);
        if found.interacts {
            let (first, last) = facts.interacted.unwrap_or((at, at));
            // No batch has as many events as would make more of it than the field holds; it is a sum of clients' numbers.
            facts.active_ms = facts.active_ms.saturating_add(active_between_ms(last, at) as u32);
            facts.interacted = Some((first, at));
            facts.clicks += u32::from(found.interaction == Some(INTERACTION_CLICK));
            facts.keypresses += u32::from(found.is_input);
        }
        let [warn, info, log, other] = &mut facts.console;
        match found.level {
            Some(Level::Error) => facts.errors += 1,
            Some(Level::Warn) => *warn += 1,
            Some(Level::Info) => *info += 1,
            Some(Level::Log) => *log += 1,
            Some(Level::Other) => *other += 1,
            None => {}
        }
        facts.failed_requests = facts.failed_requests.saturating_add(found.failed_requests);
        if let Some(url) = found.page.take()
            && self.urls.len() < BATCH_URLS_MAX
            && !self.urls.contains(&url)
        {
            self.urls.push(url);
        }
    }

    /// The facts of the batch with this payload.
    pub(crate) fn finish(mut self, payload: &[u8]) -> BatchFacts {
        self.facts.raw_bytes = payload.len() as u32;
        self.facts.content_hash = BatchFacts::hash(payload);
        self.facts.urls = Urls::new(self.urls.iter().map(String::as_str));
        self.facts
    }
}

#[cfg(test)]
mod tests;
