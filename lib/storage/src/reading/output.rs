//! Events on their way to a reader: gathered into pieces, compressed where that is wanted.

use bytes::Bytes;
use schemas::codec;
use schemas::limits::KIB;

/// Bytes of events that are given out at once, as they are.
const LINES_BYTES: usize = 64 * KIB;
/// Bytes of events in a frame that is compressed for a reader: a smaller one costs more bytes.
const FRAME_BYTES: usize = 256 * KIB;
/// For one reader, once: what takes longer than sending it saves nothing.
const ZSTD_LEVEL: i32 = 3;

/// How a reader wants events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A newline after each.
    Lines,
    /// The same, as zstd frames one after the other.
    Zstd,
}

/// What was read and not given out yet.
#[derive(Debug)]
pub(super) struct Output {
    form: Form,
    lines: Vec<u8>,
    frames: Vec<u8>,
    /// Events in them.
    events: u64,
}

impl Output {
    pub(super) fn new(form: Form) -> Self {
        Self { form, lines: Vec::new(), frames: Vec::new(), events: 0 }
    }

    pub(super) fn form(&self) -> Form {
        self.form
    }

    /// Whether it should be taken before more is pushed.
    pub(super) fn is_full(&self) -> bool {
        let lines_max = if self.form == Form::Zstd { FRAME_BYTES } else { LINES_BYTES };
        self.lines.len() >= lines_max || self.frames.len() >= LINES_BYTES
    }

    /// Events with a newline after each.
    pub(super) fn push_lines(&mut self, lines: &[u8], events: u64) {
        self.lines.extend_from_slice(lines);
        self.events += events;
    }

    /// A frame of events, as a reader takes it.
    pub(super) fn push_frame(&mut self, frame: &[u8], events: u64) {
        self.end_frame();
        self.frames.extend_from_slice(frame);
        self.events += events;
    }

    fn end_frame(&mut self) {
        if self.form == Form::Zstd && !self.lines.is_empty() {
            self.frames.extend_from_slice(&codec::compress(&self.lines, ZSTD_LEVEL));
            self.lines.clear();
        }
    }

    /// What there is, and how many events that are.
    pub(super) fn take(&mut self) -> (Bytes, u64) {
        self.end_frame();
        let bytes = match self.form {
            Form::Lines => std::mem::take(&mut self.lines),
            Form::Zstd => std::mem::take(&mut self.frames),
        };
        (bytes.into(), std::mem::take(&mut self.events))
    }
}
