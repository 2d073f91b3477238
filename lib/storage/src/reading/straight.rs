//! The events of a session that is one object: its frames lie in the order of reading, so nothing has to be merged, and a reader who
//! takes zstd is given them as they are. No I/O.

use std::sync::Arc;

use bytes::Bytes;
use engine::events;
use engine::merge::Range;
use schemas::codec::{self, FormatError};
use schemas::session_object;
use sealing::Key;
use sealing::objects::OpenError;

use super::Halt;
use super::output::{Form, Output};
use super::walk::{Corrupt, Source, WINDOWS_BYTES_MAX, decompress_frame, open_frame};
use super::windows::Windows;
use crate::footers::Footer;

/// Reads one session object from frame to frame.
#[derive(Debug)]
pub(super) struct Straight {
    source: Source,
    footer: Arc<session_object::Footer>,
    windows: Windows,
    range: Range,
    /// The frame that comes next.
    next: usize,
    /// Wanted events that were given before this reading of them began.
    skip: u64,
}

impl Straight {
    /// The events of `range` but the first `skip`. `None` when the object is no session object.
    pub(super) fn new(source: &Source, range: Range, skip: u64) -> Option<Self> {
        let Footer::Session(footer) = &source.footer else { return None };
        let wanted = footer.frames.iter().filter(|frame| range.overlaps(frame.ts_min, frame.ts_max));
        let windows = Windows::new(wanted.map(|frame| (0, frame.at, u64::from(frame.len))), WINDOWS_BYTES_MAX);
        Some(Self { source: source.clone(), footer: Arc::clone(footer), windows, range, next: 0, skip })
    }

    pub(super) fn windows(&mut self) -> &mut Windows {
        &mut self.windows
    }

    pub(super) fn source(&self) -> &Source {
        &self.source
    }

    /// Goes on until there is enough to give out, or a window is wanted.
    pub(super) fn go(&mut self, key: &Key, out: &mut Output) -> Result<Halt, Corrupt> {
        while !out.is_full() {
            match self.frame(key, out) {
                Ok(None) => {}
                Ok(Some(halt)) => return Ok(halt),
                Err(source) => return Err(Corrupt { key: self.source.key, chunk: None, source }),
            }
        }
        Ok(Halt::Full)
    }

    fn frame(&mut self, key: &Key, out: &mut Output) -> Result<Option<Halt>, OpenError> {
        let footer = Arc::clone(&self.footer);
        let Some(entry) = footer.frames.get(self.next) else { return Ok(Some(Halt::Done)) };
        if !self.range.overlaps(entry.ts_min, entry.ts_max) {
            self.next += 1;
            return Ok(None);
        }
        let is_whole = self.range.covers(entry.ts_min, entry.ts_max);
        let events: u64 = entry.segments.iter().map(|segment| u64::from(segment.events)).sum();
        if is_whole && self.skip >= events {
            self.skip -= events;
            self.windows.used(0, entry.at);
            self.next += 1;
            return Ok(None);
        }
        let sealed: Bytes = match self.windows.frame(0, entry.at, u64::from(entry.len))? {
            Ok(sealed) => sealed,
            Err(window) => return Ok(Some(Halt::Fetch(window))),
        };
        let opened = open_frame(key, &footer, self.next, &sealed)?;
        self.windows.used(0, entry.at);
        self.next += 1;
        if is_whole && self.skip == 0 {
            match out.form() {
                Form::Zstd => out.push_frame(codec::first_frame(&opened)?, events),
                Form::Lines => out.push_lines(&decompress_frame(entry, &opened)?, events),
            }
            return Ok(None);
        }
        for line in decompress_frame(entry, &opened)?.split_inclusive(|byte| *byte == b'\n') {
            let event = line.strip_suffix(b"\n").and_then(events::shallow).ok_or(FormatError::Field("event"))?;
            if !self.range.contains(event.timestamp) {
                continue;
            }
            if self.skip > 0 {
                self.skip -= 1;
            } else {
                out.push_lines(line, 1);
            }
        }
        Ok(None)
    }
}
