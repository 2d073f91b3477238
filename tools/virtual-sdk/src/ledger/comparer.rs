//! The comparison itself.
//!
//! Every distinct event has a **class**; what is read becomes a sequence of classes, and so does what is expected. The
//! read is exact when the two sequences are equal. Only when they are not, it is worked out what is wrong. Classes are
//! found by the events' bytes; at the first line whose bytes nobody sent, events are put into a canonical form too, in
//! which equal JSON values have equal bytes.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use masking::{Rules, StreamState};
use schemas::SessionId;
use serde::Deserialize;
use serde_json::Value;

use super::{Comparison, Fate, SessionLedger, events_of};
use crate::recordings::timestamp;

/// Batches of unknown fate of which all subsets are tried when their contents alone do not tell which are there.
const SUBSETS_OF_MAX: usize = 12;

/// A batch, as classes.
#[derive(Debug)]
struct Expected {
    stream: u32,
    seq: u32,
    fate: Fate,
    /// Class and timestamp of each event.
    events: Vec<(u32, i64)>,
}

/// A place of the expected sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    high: i64,
    stream: u32,
    seq: u32,
    position: u32,
    class: u32,
}

/// A line that was read and that is none of the expected events.
#[derive(Debug)]
struct Stranger {
    /// Its place in the read.
    at: usize,
    /// Type and timestamp, when it has them.
    looks: Option<(u64, i64)>,
}

/// Classes by value.
#[derive(Debug)]
struct Canonical {
    by_form: HashMap<Vec<u8>, u32>,
    /// For each class by bytes the one that stands for its value.
    stands_for: Vec<u32>,
}

/// Takes the events that are read, in their order, and says whether they are what was acknowledged.
#[derive(Debug)]
pub struct Comparer<'l> {
    batches: Vec<Expected>,
    classes: HashMap<Cow<'l, [u8]>, u32>,
    /// Made when first needed.
    canonical: Option<Canonical>,
    /// Classes by what is left of an event when all of it is masked, in their order; made when first needed.
    masked: Option<HashMap<Vec<u8>, VecDeque<u32>>>,
    everything: Rules,
    masked_more: u64,
    /// The class of each event that was read; none for a stranger.
    read: Vec<Option<u32>>,
    strangers: Vec<Stranger>,
    rewritten: u64,
}

impl<'l> Comparer<'l> {
    pub(super) fn new(session: SessionId, ledger: &'l SessionLedger) -> Self {
        let mut classes: HashMap<Cow<'l, [u8]>, u32> = HashMap::new();
        let mut batches = Vec::with_capacity(ledger.entries.len());
        let rules = Rules::default();
        let (mut stream, mut state) = (None, StreamState::new());
        for (place, entry) in &ledger.entries {
            if stream.replace(place.0) != Some(place.0) {
                state = StreamState::new();
            }
            let mut events = Vec::new();
            for (bytes, timestamp) in events_of(session, *place, entry, &rules, &mut state) {
                let next = number(classes.len());
                events.push((*classes.entry(bytes).or_insert(next), timestamp));
            }
            batches.push(Expected { stream: place.0, seq: place.1, fate: entry.fate, events });
        }
        Self {
            batches,
            classes,
            canonical: None,
            masked: None,
            everything: Rules::of_json(r#"{"text":"all"}"#),
            masked_more: 0,
            read: Vec::new(),
            strangers: Vec::new(),
            rewritten: 0,
        }
    }

    /// The next event that was read.
    pub fn push(&mut self, line: &[u8]) {
        let class = match self.classes.get(line) {
            Some(class) => Some(*class),
            None => {
                let by_value = self.class_by_value(line);
                self.rewritten += u64::from(by_value.is_some());
                let class = by_value.or_else(|| self.class_by_what_is_left(line));
                self.masked_more += u64::from(by_value.is_none() && class.is_some());
                class
            }
        };
        if class.is_none() {
            let looks = kind(line).zip(timestamp(line));
            self.strangers.push(Stranger { at: self.read.len(), looks });
        }
        self.read.push(class);
    }

    fn class_by_value(&mut self, line: &[u8]) -> Option<u32> {
        let known = self.canonical.get_or_insert_with(|| {
            let mut by_class: Vec<(&Cow<'l, [u8]>, u32)> =
                self.classes.iter().map(|(bytes, class)| (bytes, *class)).collect();
            by_class.sort_unstable_by_key(|(_, class)| *class);
            let mut by_form = HashMap::new();
            let stands_for = by_class
                .into_iter()
                .map(|(bytes, class)| {
                    // What is no JSON equals only its own bytes; no JSON value has them as its form.
                    let form = canonical(bytes).unwrap_or_else(|| bytes.to_vec());
                    *by_form.entry(form).or_insert(class)
                })
                .collect();
            Canonical { by_form, stands_for }
        });
        known.by_form.get(&canonical(line)?).copied()
    }

    fn class_by_what_is_left(&mut self, line: &[u8]) -> Option<u32> {
        let left = |line: &[u8]| {
            let line = [line, b"\n"].concat();
            // Nothing is known: all that can be masked is.
            masking::mask(&line, &self.everything, &mut StreamState::missed()).payload.unwrap_or(line)
        };
        let left_of_line = left(line);
        if self.masked.is_none() {
            let mut by_class: Vec<(&Cow<'l, [u8]>, u32)> =
                self.classes.iter().map(|(bytes, class)| (bytes, *class)).collect();
            by_class.sort_unstable_by_key(|(_, class)| *class);
            let mut masked: HashMap<Vec<u8>, VecDeque<u32>> = HashMap::new();
            for (bytes, class) in by_class {
                masked.entry(left(bytes)).or_default().push_back(class);
            }
            self.masked = Some(masked);
        }
        // Of events of which the same is left each is taken in turn.
        let classes = self.masked.as_mut()?.get_mut(&left_of_line)?;
        classes.rotate_left(1);
        let class = classes.back().copied()?;
        // The same is left of an event that holds a secret, and of one with another text: what was read has to be the mask.
        let (expected, _) = self.classes.iter().find(|(_, known)| **known == class)?;
        let [expected, read] = [expected, line].map(|event| serde_json::from_slice::<Value>(event).ok());
        is_masked_form(&expected?, &read?).then_some(class)
    }

    /// The outcome.
    pub fn finish(mut self) -> Comparison {
        if let Some(Canonical { stands_for, .. }) = self.canonical.take() {
            let represent = |class: &mut u32| *class = stands_for.get(*class as usize).copied().unwrap_or(*class);
            self.read.iter_mut().flatten().for_each(represent);
            self.batches.iter_mut().flat_map(|batch| &mut batch.events).for_each(|(class, _)| represent(class));
        }
        let there = self.doubts_there();
        let expected = self.expected(&there);
        let mut outcome = Comparison {
            expected: expected.len() as u64,
            read: self.read.len() as u64,
            doubts_there: there.iter().filter(|there| **there).count() as u64,
            rewritten: self.rewritten,
            masked_more: self.masked_more,
            ..Comparison::default()
        };
        if !self.is_exactly(&expected) {
            self.find_faults(&there, &expected, &mut outcome);
        }
        outcome
    }

    fn is_exactly(&self, expected: &[Place]) -> bool {
        self.read.len() == expected.len()
            && self.read.iter().zip(expected).all(|(read, place)| *read == Some(place.class))
    }

    /// The expected sequence, when of the batches of unknown fate those that `there` says are stored.
    fn expected(&self, there: &[bool]) -> Vec<Place> {
        let mut places = Vec::new();
        let mut high: Option<(u32, i64)> = None;
        for (batch, there) in self.batches.iter().zip(there) {
            if batch.fate == Fate::Unknown && !there {
                continue;
            }
            // Batches come by stream and seq, so the running maximum begins anew where the stream changes.
            for (position, (class, timestamp)) in batch.events.iter().enumerate() {
                let highest = match high {
                    Some((stream, high)) if stream == batch.stream => high.max(*timestamp),
                    _ => *timestamp,
                };
                high = Some((batch.stream, highest));
                let (stream, seq, position) = (batch.stream, batch.seq, number(position));
                places.push(Place { high: highest, stream, seq, position, class: *class });
            }
        }
        places.sort_unstable();
        places
    }

    /// Which batches of unknown fate are stored, as far as the read tells; false for all acknowledged ones.
    fn doubts_there(&self) -> Vec<bool> {
        let mut there = vec![false; self.batches.len()];
        let mut surplus = self.read_counts();
        for batch in self.batches.iter().filter(|batch| batch.fate == Fate::Acknowledged) {
            take(&mut surplus, batch);
        }
        let mut possible = Vec::new();
        for (index, batch) in self.batches.iter().enumerate() {
            if batch.fate == Fate::Unknown && !batch.events.is_empty() && holds(&surplus, batch) {
                possible.push(index);
            }
        }
        for index in &possible {
            if holds(&surplus, &self.batches[*index]) {
                take(&mut surplus, &self.batches[*index]);
                there[*index] = true;
            }
        }
        // Batches with the same content can stand for one another in the counts, but not in the order.
        if possible.len() > SUBSETS_OF_MAX || self.is_exactly(&self.expected(&there)) {
            return there;
        }
        for subset in 0..1_u32 << possible.len() {
            let mut tried = vec![false; self.batches.len()];
            for (bit, index) in possible.iter().enumerate() {
                tried[*index] = subset >> bit & 1 == 1;
            }
            if self.is_exactly(&self.expected(&tried)) {
                return tried;
            }
        }
        there
    }

    fn read_counts(&self) -> HashMap<u32, i64> {
        let mut counts = HashMap::new();
        for class in self.read.iter().flatten() {
            *counts.entry(*class).or_default() += 1;
        }
        counts
    }

    fn find_faults(&self, there: &[bool], expected: &[Place], outcome: &mut Comparison) {
        // The k-th event of a class that was read is taken for the k-th that is expected.
        let mut open: HashMap<u32, VecDeque<usize>> = HashMap::new();
        for (index, place) in expected.iter().enumerate() {
            open.entry(place.class).or_default().push_back(index);
        }
        let mut found = Vec::new();
        let mut surplus: HashMap<u32, u64> = HashMap::new();
        for (at, class) in self.read.iter().enumerate().filter_map(|(at, class)| Some((at, (*class)?))) {
            match open.get_mut(&class).and_then(VecDeque::pop_front) {
                Some(index) => found.push(index),
                None => {
                    *surplus.entry(class).or_default() += 1;
                    note(outcome, || format!("event {at} of the read is there once too often"));
                }
            }
        }

        let mut missing: Vec<usize> = open.into_values().flatten().collect();
        missing.sort_unstable();
        outcome.lost = missing.len() as u64;
        if let Some(place) = missing.first().map(|index| expected[*index]) {
            let Place { stream, seq, position, .. } = place;
            note(outcome, || format!("stream {stream}, seq {seq}, position {position} is not there"));
        }
        self.tell_torn(there, &mut surplus, outcome);
        outcome.doubled = surplus.values().sum();
        self.tell_altered(expected, &missing, outcome);

        let in_order = longest_rise(&found);
        outcome.out_of_order = (found.len() - in_order) as u64;
        if let Some(fall) = found.windows(2).find(|pair| pair[0] > pair[1]) {
            let Place { stream, seq, position, .. } = expected[fall[1]];
            note(outcome, || format!("stream {stream}, seq {seq}, position {position} comes too late"));
        }
        debug_assert!(!outcome.is_exact(), "sequences differ, and no fault was found");
    }

    /// Takes out of the surplus what belongs to batches of unknown fate that are there in part.
    fn tell_torn(&self, there: &[bool], surplus: &mut HashMap<u32, u64>, outcome: &mut Comparison) {
        let acknowledged: HashSet<u32> = self
            .batches
            .iter()
            .zip(there)
            .filter(|(batch, there)| batch.fate == Fate::Acknowledged || **there)
            .flat_map(|(batch, _)| batch.events.iter().map(|(class, _)| *class))
            .collect();
        let doubts = self.batches.iter().zip(there);
        for (batch, _) in doubts.filter(|(batch, there)| batch.fate == Fate::Unknown && !**there) {
            let mut torn = false;
            for (class, _) in &batch.events {
                // What an acknowledged batch holds too is called doubled: the graver of the two.
                if acknowledged.contains(class) {
                    continue;
                }
                if let Some(count) = surplus.get_mut(class).filter(|count| **count > 0) {
                    *count -= 1;
                    torn = true;
                }
            }
            if torn {
                outcome.torn += 1;
                let (stream, seq) = (batch.stream, batch.seq);
                note(outcome, || format!("of stream {stream}, seq {seq}, whose fate was unknown, a part is there"));
            }
        }
    }

    /// Pairs what nobody sent with what is missing, by type and timestamp.
    fn tell_altered(&self, expected: &[Place], missing: &[usize], outcome: &mut Comparison) {
        if self.strangers.is_empty() {
            return;
        }
        let by_class: BTreeMap<u32, &[u8]> =
            self.classes.iter().map(|(bytes, class)| (*class, bytes.as_ref())).collect();
        let mut looks: HashMap<(u64, i64), Vec<Place>> = HashMap::new();
        for place in missing.iter().rev().map(|index| expected[*index]) {
            let bytes = by_class.get(&place.class).copied().unwrap_or_default();
            if let Some(key) = kind(bytes).zip(timestamp(bytes)) {
                looks.entry(key).or_default().push(place);
            }
        }
        for stranger in &self.strangers {
            let original = stranger.looks.and_then(|key| looks.get_mut(&key)?.pop());
            let at = stranger.at;
            match original {
                Some(Place { stream, seq, position, .. }) => {
                    outcome.altered += 1;
                    note(outcome, || format!("stream {stream}, seq {seq}, position {position} was altered"));
                }
                None => {
                    outcome.foreign += 1;
                    note(outcome, || format!("event {at} of the read was not sent to this session"));
                }
            }
        }
    }
}

/// Whether a value differs from the expected one by masks alone.
fn is_masked_form(expected: &Value, read: &Value) -> bool {
    match (expected, read) {
        (expected, read) if expected == read => true,
        (_, Value::String(read)) => read.contains(masking::MASK),
        (_, Value::Null | Value::Bool(false)) => true,
        // What is blocked is left out, and so are the calls that drew on a canvas.
        (Value::Array(_), Value::Array(read)) if read.is_empty() => true,
        (Value::Array(expected), Value::Array(read)) => {
            expected.len() == read.len()
                && expected.iter().zip(read).all(|(expected, read)| is_masked_form(expected, read))
        }
        (Value::Object(expected), Value::Object(read)) => read.iter().all(|(name, read)| match expected.get(name) {
            Some(expected) => is_masked_form(expected, read),
            None => name.starts_with("data-"),
        }),
        _ => false,
    }
}

fn note(outcome: &mut Comparison, fault: impl FnOnce() -> String) {
    if outcome.first_fault.is_none() {
        outcome.first_fault = Some(fault());
    }
}

fn holds(surplus: &HashMap<u32, i64>, batch: &Expected) -> bool {
    let mut needed: HashMap<u32, i64> = HashMap::new();
    for (class, _) in &batch.events {
        *needed.entry(*class).or_default() += 1;
    }
    needed.iter().all(|(class, needed)| surplus.get(class).is_some_and(|there| there >= needed))
}

fn take(surplus: &mut HashMap<u32, i64>, batch: &Expected) {
    for (class, _) in &batch.events {
        *surplus.entry(*class).or_default() -= 1;
    }
}

/// The length of the longest subsequence that rises, by patience sorting.
fn longest_rise(sequence: &[usize]) -> usize {
    let mut ends: Vec<usize> = Vec::new();
    for value in sequence {
        let place = ends.partition_point(|end| end < value);
        match ends.get_mut(place) {
            Some(end) => *end = *value,
            None => ends.push(*value),
        }
    }
    ends.len()
}

/// Positions and classes of one session; a batch has 50,000 events at most, and memory ends before 2^32 events.
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn kind(event: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Kind {
        #[serde(rename = "type")]
        kind: u64,
    }
    serde_json::from_slice::<Kind>(event).ok().map(|event| event.kind)
}

/// Bytes that are equal exactly when the JSON values are; none for what is no JSON.
fn canonical(event: &[u8]) -> Option<Vec<u8>> {
    let mut deserializer = serde_json::Deserializer::from_slice(event);
    deserializer.disable_recursion_limit();
    let value = Value::deserialize(&mut deserializer).ok()?;
    deserializer.end().ok()?;
    let mut form = Vec::with_capacity(event.len());
    write_canonical(&value, &mut form);
    Some(form)
}

fn write_canonical(value: &Value, form: &mut Vec<u8>) {
    match value {
        Value::Array(items) => {
            form.push(b'[');
            for item in items {
                write_canonical(item, form);
                form.push(b',');
            }
            form.push(b']');
        }
        Value::Object(fields) => {
            // Sorted here, since serde_json keeps the order of fields when any crate of the build asks for that.
            let mut sorted: Vec<(&String, &Value)> = fields.iter().collect();
            sorted.sort_unstable_by_key(|(name, _)| *name);
            form.push(b'{');
            for (name, field) in sorted {
                write_scalar(&Value::String(name.clone()), form);
                form.push(b':');
                write_canonical(field, form);
                form.push(b',');
            }
            form.push(b'}');
        }
        scalar => write_scalar(scalar, form),
    }
}

fn write_scalar(value: &Value, form: &mut Vec<u8>) {
    // -0.0 equals 0.0 as a value.
    let zero = value.is_f64() && value.as_f64() == Some(0.0);
    let text = if zero { "0.0".to_owned() } else { value.to_string() };
    form.extend_from_slice(text.as_bytes());
}
