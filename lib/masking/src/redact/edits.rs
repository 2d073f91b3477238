//! What finders note: which bytes go, and what stands there instead. And buffers to look at decoded text without the heap.

use std::borrow::Cow;

use super::MASK;

/// Decoded text up to this length is looked at on the stack.
pub(super) const SCRATCH_BYTES: usize = 512;

/// Edits of one text, in any order.
#[derive(Default)]
pub(super) struct Edits {
    /// Where the part of the text begins that finders are looking at.
    base: usize,
    list: Vec<Edit>,
}

struct Edit {
    start: usize,
    end: usize,
    with: Cow<'static, str>,
}

impl Edits {
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Lets a finder look at a part of the text that begins at `offset` of the part that is looked at now.
    pub(super) fn within(&mut self, offset: usize, find: impl FnOnce(&mut Self)) {
        self.base += offset;
        find(self);
        self.base -= offset;
    }

    /// Notes that `with` stands for `bytes[start..end]`, unless it does already.
    pub(super) fn put(&mut self, bytes: &[u8], start: usize, end: usize, with: impl Into<Cow<'static, str>>) {
        let with = with.into();
        if start <= end && bytes.get(start..end).is_some_and(|old| old != with.as_bytes()) {
            self.list.push(Edit { start: self.base + start, end: self.base + end, with });
        }
    }

    /// Masks `bytes[start..end]`.
    pub(super) fn mask(&mut self, bytes: &[u8], start: usize, end: usize) {
        self.put(bytes, start, end, MASK);
    }

    /// Masks `bytes[start..end]` unless nothing stands there.
    pub(super) fn mask_filled(&mut self, bytes: &[u8], start: usize, end: usize) {
        if bytes.get(start..end).is_some_and(|old| !old.trim_ascii().is_empty()) {
            self.mask(bytes, start, end);
        }
    }

    /// The edited text; `None` when there is nothing to edit. An edit that lies within another is part of it; edits that
    /// overlap otherwise, and masks that touch, are one mask.
    pub(super) fn apply(mut self, text: &str) -> Option<String> {
        if self.list.is_empty() {
            return None;
        }
        self.list.sort_by_key(|edit| (edit.start, std::cmp::Reverse(edit.end)));
        let mut merged: Vec<Edit> = Vec::with_capacity(self.list.len());
        for edit in self.list {
            let Some(last) = merged.last_mut() else {
                merged.push(edit);
                continue;
            };
            if edit.end <= last.end && edit.start < last.end {
                continue;
            }
            let overlaps = edit.start < last.end;
            let touches = edit.start == last.end && edit.with == MASK && last.with == MASK;
            if overlaps || touches {
                last.end = edit.end;
                last.with = MASK.into();
            } else {
                merged.push(edit);
            }
        }
        let mut outcome = String::with_capacity(text.len());
        let mut kept = 0;
        for edit in merged {
            let (start, end) = (text.floor_char_boundary(edit.start), text.ceil_char_boundary(edit.end));
            outcome.push_str(&text[kept.min(start)..start]);
            outcome.push_str(&edit.with);
            kept = end;
        }
        outcome.push_str(&text[kept..]);
        (outcome != text).then_some(outcome)
    }
}

/// Room for decoded bytes: on the stack when they are few.
pub(super) struct Scratch {
    small: [u8; SCRATCH_BYTES],
    large: Vec<u8>,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self { small: [0; SCRATCH_BYTES], large: Vec::new() }
    }

    /// Room for this many bytes, all zero.
    pub(super) fn room(&mut self, bytes: usize) -> &mut [u8] {
        if bytes <= SCRATCH_BYTES {
            return &mut self.small[..bytes];
        }
        self.large.clear();
        self.large.resize(bytes, 0);
        &mut self.large
    }
}

/// Decodes what is percent-encoded, in place, and says how long it is now; `+` is a space when `plus`. What is no valid
/// encoding stays.
pub(super) fn percent_decode(bytes: &mut [u8], plus: bool) -> usize {
    let (mut from, mut to) = (0, 0);
    while from < bytes.len() {
        let byte = match (bytes[from], bytes.get(from + 1).and_then(hex), bytes.get(from + 2).and_then(hex)) {
            (b'%', Some(high), Some(low)) => {
                from += 2;
                high << 4 | low
            }
            (b'+', ..) if plus => b' ',
            (byte, ..) => byte,
        };
        bytes[to] = byte;
        (from, to) = (from + 1, to + 1);
    }
    to
}

/// The value of a hexadecimal digit.
pub(super) fn hex(byte: &u8) -> Option<u8> {
    char::from(*byte).to_digit(16).map(|digit| digit as u8)
}

/// Remembers the run of bytes of one class that was looked at last, so that many starts in one run cost one look.
#[derive(Default)]
pub(super) struct Run {
    start: usize,
    end: usize,
}

impl Run {
    /// Where the run that holds `at` ends; `at` itself when its byte is not of the class.
    pub(super) fn end(&mut self, bytes: &[u8], at: usize, member: impl Fn(u8) -> bool) -> usize {
        self.end_by(at, |at| at + bytes[at..].iter().position(|byte| !member(*byte)).unwrap_or(bytes.len() - at))
    }

    /// The same for runs that end where `find_end` says.
    pub(super) fn end_by(&mut self, at: usize, find_end: impl FnOnce(usize) -> usize) -> usize {
        if !self.knows(at) {
            (self.start, self.end) = (at, find_end(at));
        }
        self.end
    }

    /// Whether `at` lies in the run that was looked at last.
    pub(super) fn knows(&self, at: usize) -> bool {
        self.start <= at && at < self.end
    }
}
