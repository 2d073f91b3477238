//! What a person did and what a page ran into, as far as events tell: interactions, pages, console messages, requests.
//!
//! The events' `data` is looked at through a keyhole: no tree of values is built, and what tells is at the front, so that
//! of a large mutation or snapshot nothing is read a second time. Clients write what they like into `data`: what has
//! another shape than expected counts as nothing, and is never an error.

use std::borrow::Cow;
use std::fmt;
use std::ops::ControlFlow;

use schemas::BatchFacts;
use schemas::facts::Urls;
use schemas::limits::BATCH_URLS_MAX;
use serde::Deserialize;
use serde::de::{Deserializer as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use crate::pages::origin_and_path;

/// Two interactions that are further apart have a pause between them, and not activity, in milliseconds. PostHog's players
/// skip from the same figure on (`ACTIVITY_THRESHOLD_MS`), so that two products tell the same of one session.
const IDLE_MS: u64 = 5_000;

/// Plugins that tell of requests: rrweb's, which PostHog's recorder has too, and our recorder's.
const NETWORK_PLUGINS: [&str; 2] = ["rrweb/network@1", "clairvio/network@1"];
const CONSOLE_PLUGIN: &str = "rrweb/console@1";

/// `source` of an incremental event that tells of a mouse button, a touch, focus.
const SOURCE_MOUSE_INTERACTION: u64 = 2;
/// `source` of an incremental event that tells of a form field's new content.
const SOURCE_INPUT: u64 = 5;
/// `type` of a mouse interaction. A double click and a tap come with clicks of their own.
const INTERACTION_CLICK: u64 = 2;

/// Whether an incremental event of this source is a person's doing: rrweb's MouseMove, MouseInteraction, Scroll, Input,
/// TouchMove, MediaInteraction, Drag and Selection.
fn is_interaction(source: u64) -> bool {
    matches!(source, 1..=3 | 5..=7 | 12 | 14)
}

/// The active time between an interaction and the next one, in milliseconds: none where the person was idle, or the clock
/// went back.
pub(crate) fn active_between_ms(before: i64, after: i64) -> u64 {
    let gap = after.checked_sub(before).and_then(|gap| u64::try_from(gap).ok());
    gap.filter(|gap| *gap <= IDLE_MS).unwrap_or(0)
}

/// Counts into a batch's facts.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    urls: Vec<String>,
}

impl Observer {
    /// An incremental event.
    pub(crate) fn incremental(&self, facts: &mut BatchFacts, at: i64, data: &RawValue) {
        let (mut source, mut kind) = (None, None);
        look(data, |field, value| {
            match field {
                Field::Source => source = Some(number(value)),
                Field::Type => kind = Some(number(value)),
                _ => {}
            }
            match (source, kind) {
                (Some(Some(SOURCE_MOUSE_INTERACTION)), None) | (None, _) => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            }
        });
        let Some(source) = source.flatten().filter(|source| is_interaction(*source)) else { return };
        let (first, last) = facts.interacted.unwrap_or((at, at));
        // No batch has as many events as would make more of it than the field holds; it is a sum of clients' numbers.
        facts.active_ms = facts.active_ms.saturating_add(active_between_ms(last, at) as u32);
        facts.interacted = Some((first, at));
        facts.clicks += u32::from(source == SOURCE_MOUSE_INTERACTION && kind == Some(Some(INTERACTION_CLICK)));
        facts.keypresses += u32::from(source == SOURCE_INPUT);
    }

    /// A meta event: a page was opened.
    pub(crate) fn meta(&mut self, data: &RawValue) {
        let mut href = None;
        look(data, |field, value| {
            if field != Field::Href {
                return ControlFlow::Continue(());
            }
            href = text(value);
            ControlFlow::Break(())
        });
        if self.urls.len() < BATCH_URLS_MAX
            && let Some(url) = href.and_then(|href| origin_and_path(&href))
            && !self.urls.contains(&url)
        {
            self.urls.push(url);
        }
    }

    /// An event of a plugin.
    pub(crate) fn plugin(&self, facts: &mut BatchFacts, data: &RawValue) {
        let (mut plugin, mut payload) = (None, None);
        look(data, |field, value| {
            match field {
                Field::Plugin => plugin = Some(value),
                Field::Payload => payload = Some(value),
                _ => {}
            }
            if plugin.is_some() && payload.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let (Some(plugin), Some(payload)) = (plugin.and_then(text), payload) else { return };
        if plugin == CONSOLE_PLUGIN {
            count_message(facts, payload);
        } else if NETWORK_PLUGINS.contains(&plugin.as_ref()) {
            count_requests(facts, payload);
        }
    }

    /// The pages that were opened.
    pub(crate) fn urls(self) -> Urls {
        Urls::new(self.urls.iter().map(String::as_str))
    }
}

fn count_message(facts: &mut BatchFacts, payload: &RawValue) {
    look(payload, |field, value| {
        if field != Field::Level {
            return ControlFlow::Continue(());
        }
        let [warn, info, log, other] = &mut facts.console;
        match text(value).as_deref() {
            Some("error") => facts.errors += 1,
            Some("warn") => *warn += 1,
            Some("info") => *info += 1,
            Some("log") => *log += 1,
            Some(_) => *other += 1,
            None => {}
        }
        ControlFlow::Break(())
    });
}

fn count_requests(facts: &mut BatchFacts, payload: &RawValue) {
    look(payload, |field, value| {
        if field != Field::Requests {
            return ControlFlow::Continue(());
        }
        each(value, |request| facts.failed_requests += u32::from(has_failed(request)));
        ControlFlow::Break(())
    });
}

/// Whether a request was answered with a status from 400 on, or not at all: its status is 0 then, or an error is told.
/// `responseStatus` is the browser's own figure, in which 0 means that another origin does not show it.
fn has_failed(request: &RawValue) -> bool {
    let mut failed = false;
    look(request, |field, value| {
        failed = match field {
            Field::Status => number(value).is_some_and(|status| status == 0 || status >= 400),
            Field::ResponseStatus => number(value).is_some_and(|status| status >= 400),
            Field::Error => value.get() == "true" || text(value).is_some_and(|error| !error.is_empty()),
            _ => false,
        };
        if failed { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    failed
}

/// A name in an object that is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(field_identifier, rename_all = "camelCase")]
enum Field {
    Source,
    Type,
    Href,
    Plugin,
    Payload,
    Level,
    Requests,
    Status,
    ResponseStatus,
    Error,
    #[serde(other)]
    Other,
}

fn number(value: &RawValue) -> Option<u64> {
    value.get().parse().ok()
}

fn text(value: &RawValue) -> Option<Cow<'_, str>> {
    let inner = value.get().strip_prefix('"')?.strip_suffix('"')?;
    if inner.contains('\\') {
        serde_json::from_str(value.get()).ok().map(Cow::Owned)
    } else {
        Some(Cow::Borrowed(inner))
    }
}

/// Shows the fields of an object that have a name of [`Field`], until `see` breaks off; nothing of what is no object.
fn look<'a>(object: &'a RawValue, mut see: impl FnMut(Field, &'a RawValue) -> ControlFlow<()>) {
    struct Fields<F>(F);
    impl<'a, F: FnMut(Field, &'a RawValue) -> ControlFlow<()>> Visitor<'a> for Fields<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }

        fn visit_map<A: MapAccess<'a>>(mut self, mut map: A) -> Result<(), A::Error> {
            while let Some(field) = map.next_key()? {
                if field == Field::Other {
                    map.next_value::<IgnoredAny>()?;
                } else if (self.0)(field, map.next_value()?).is_break() {
                    break;
                }
            }
            Ok(())
        }
    }
    // It is JSON, which was checked when it was taken out of its event. So this fails on what is no object, and where it
    // was broken off, for the end was not reached: what was to be seen was seen.
    drop(serde_json::Deserializer::from_str(object.get()).deserialize_map(Fields(&mut see)));
}

/// Shows the elements of an array; nothing of what is no array.
fn each<'a>(array: &'a RawValue, mut see: impl FnMut(&'a RawValue)) {
    struct Elements<F>(F);
    impl<'a, F: FnMut(&'a RawValue)> Visitor<'a> for Elements<F> {
        type Value = ();

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }

        fn visit_seq<A: SeqAccess<'a>>(mut self, mut seq: A) -> Result<(), A::Error> {
            while let Some(element) = seq.next_element()? {
                (self.0)(element);
            }
            Ok(())
        }
    }
    // As above: this fails on what is no array, and on nothing else.
    drop(serde_json::Deserializer::from_str(array.get()).deserialize_seq(Elements(&mut see)));
}

#[cfg(test)]
mod tests;
