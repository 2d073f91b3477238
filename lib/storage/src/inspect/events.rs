//! One session's events out of one object, in the order of reading.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::sync::Arc;

use engine::merge::{Location, Merger, Mismatch, Plan, Range, SharedSource, Step};
use schemas::SessionKey;
use schemas::codec::{self, FormatError};
use sealing::Key;
use sealing::frames::Opener;
use sealing::objects::{OpenError, chunk_opener, frame_at, session_opener};
use thiserror::Error;

use super::Content;

/// Opened frames of a session object that are kept: streams of a session share them.
const FRAMES_KEPT_MAX: usize = 8;

/// Why events cannot be written.
#[derive(Debug, Error)]
pub enum EventsError {
    /// The object is not what was put there.
    #[error("read events\n  hint: `clairvio object verify` says all that is wrong with the object")]
    Corrupt(#[from] OpenError),
    /// A batch is not what its facts say.
    #[error("read events\n  hint: `clairvio object verify` says all that is wrong with the object")]
    Mismatch(#[from] Mismatch),
    /// Nobody takes them.
    #[error("write events")]
    Write(#[from] std::io::Error),
}

/// Writes a session's events, a newline after each; gives their number. They are what an end user did: personal data.
pub fn write_events(
    body: &[u8],
    content: &Content,
    session: &SessionKey,
    key: &Key,
    out: &mut impl Write,
) -> Result<u64, EventsError> {
    let plan = Arc::new(plan(content, session));
    let mut source = Source { body, content, key, openers: BTreeMap::new(), frames: VecDeque::new() };
    let mut merger = Merger::new(Arc::clone(&plan), Range::ALL, usize::MAX);
    let mut events = 0;
    loop {
        match merger.step()? {
            Step::Need { stream, batch } => {
                let batch = &plan.streams[stream].batches[batch];
                merger.supply(stream, source.load(&batch.location, batch.facts.raw_bytes as usize)?)?;
            }
            Step::Event(event) => {
                out.write_all(merger.bytes(&event))?;
                events += 1;
            }
            Step::Done => break,
        }
    }
    out.flush()?;
    Ok(events)
}

fn plan(content: &Content, session: &SessionKey) -> Plan {
    match content {
        Content::Session(footer) if footer.key == *session => Plan::build(&[(0, footer)], &[]),
        Content::Shared(footer) => {
            let chunks = footer.chunks.iter().enumerate().filter(|(_, chunk)| chunk.key == *session);
            let source = |(number, chunk)| SharedSource { object: 0, partition: footer.partition, number, chunk };
            Plan::build(&[], &chunks.map(source).collect::<Vec<_>>())
        }
        Content::Session(_) | Content::Journal(_) => Plan::default(),
    }
}

struct Source<'a> {
    body: &'a [u8],
    content: &'a Content,
    key: &'a Key,
    /// By chunk; a session object is one.
    openers: BTreeMap<usize, Opener>,
    frames: VecDeque<(usize, Vec<u8>)>,
}

impl Source<'_> {
    fn load(&mut self, location: &Location, raw_bytes: usize) -> Result<Vec<u8>, OpenError> {
        match location {
            Location::Shared { chunk: number, frame, at, len, .. } => {
                let Content::Shared(footer) = self.content else { return Err(FormatError::Field("kind").into()) };
                let chunk = footer.chunks.get(*number).ok_or(FormatError::Field("chunk"))?;
                let key = self.key;
                let opener = self.openers.entry(*number).or_insert_with(|| chunk_opener(key, chunk));
                let sealed = slice(self.body, *at, *len)?;
                let opened = opener.open(frame_at(*frame, chunk.batches.len()), sealed)?;
                Ok(codec::decompress(&opened, raw_bytes)?)
            }
            Location::Session { pieces, .. } => {
                let mut payload = Vec::with_capacity(raw_bytes);
                for piece in pieces {
                    let raw = self.frame(piece.frame)?;
                    let part = raw.get(piece.at as usize..(piece.at + piece.len) as usize);
                    payload.extend_from_slice(part.ok_or(FormatError::Truncated)?);
                }
                Ok(payload)
            }
        }
    }

    /// A frame of a session object, opened and decompressed.
    fn frame(&mut self, number: usize) -> Result<&[u8], OpenError> {
        let place = match self.frames.iter().position(|(kept, _)| *kept == number) {
            Some(place) => place,
            None => {
                let raw = self.open_frame(number)?;
                if self.frames.len() == FRAMES_KEPT_MAX {
                    self.frames.pop_front();
                }
                self.frames.push_back((number, raw));
                self.frames.len() - 1
            }
        };
        Ok(&self.frames[place].1)
    }

    fn open_frame(&mut self, number: usize) -> Result<Vec<u8>, OpenError> {
        let Content::Session(footer) = self.content else { return Err(FormatError::Field("kind").into()) };
        let frame = footer.frames.get(number).ok_or(FormatError::Field("frame"))?;
        let key = self.key;
        let opener = self.openers.entry(0).or_insert_with(|| session_opener(key, footer));
        let opened = opener.open(frame_at(number, footer.frames.len()), slice(self.body, frame.at, frame.len)?)?;
        Ok(codec::decompress(&opened, frame.raw_len as usize)?)
    }
}

fn slice(body: &[u8], at: u64, len: u32) -> Result<&[u8], FormatError> {
    body.get(at as usize..at as usize + len as usize).ok_or(FormatError::Truncated)
}
