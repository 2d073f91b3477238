//! A reader that opens all that real readers open, and no more: it takes nothing for granted that they do not check.

use std::collections::BTreeMap;
use std::error::Error;

use schemas::codec::{self, FormatError};
use schemas::journal::Entry;
use schemas::object::ObjectKind;
use schemas::record::Header;
use schemas::stream_note::{self, StreamNote};
use schemas::{ObjectId, SessionKey, session_object, shared_object};

use crate::Key;
use crate::frames::Opener;
use crate::keyring::{KeyVersion, Owner, Roots};
use crate::objects::{
    chunk_opener, frame_at, journal_version, open_journal, open_session_footer, open_shared_footer, session_opener,
    shared_footer_version,
};
use crate::transport::{EpochKeys, LogPlace};

/// What was read, or why nothing was.
pub(super) type Read<T> = Result<T, Box<dyn Error>>;

/// All that a reader needs beside the files.
#[derive(Debug, Clone)]
pub(super) struct Keys {
    pub(super) roots: Roots,
    pub(super) sessions: BTreeMap<SessionKey, Key>,
    pub(super) epochs: EpochKeys,
    pub(super) topic: String,
}

impl Keys {
    pub(super) fn storage(&self, version: KeyVersion) -> Read<Key> {
        Ok(self.roots.derive(Owner::Storage, version)?)
    }

    fn session(&self, session: &SessionKey) -> Read<&Key> {
        Ok(self.sessions.get(session).ok_or("no key of this session")?)
    }
}

/// How a reader finds the footer.
#[derive(Debug, Clone, Copy)]
pub(super) enum FooterAt {
    /// By the trailer: who has the object alone.
    Trailer,
    /// By the object's row in the index: first byte, length.
    Row(usize, usize),
}

/// The events of one batch, each without its newline.
pub(super) type Events = Vec<String>;

/// A record as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) header: Header,
    pub(super) events: Events,
}

/// All that a shared or quarantine object holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shared {
    pub(super) version: KeyVersion,
    pub(super) footer: shared_object::Footer,
    /// By chunk and batch.
    pub(super) events: Vec<Vec<Events>>,
    /// Quarantined records; `None` for those that no key ever opened.
    pub(super) records: Vec<Option<Record>>,
}

/// An event of a session object, in the order of reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) stream: u32,
    pub(super) seq: u32,
    pub(super) position: u32,
    pub(super) text: String,
}

/// All that a session object holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) footer: session_object::Footer,
    /// By frame.
    pub(super) events: Vec<Vec<Event>>,
}

fn region(kind: ObjectKind, object: &[u8], at: FooterAt) -> Read<(&[u8], u64)> {
    let (at, len) = match at {
        FooterAt::Row(at, len) => (at, len),
        FooterAt::Trailer => {
            if ObjectKind::of(object)? != kind {
                return Err(FormatError::Magic.into());
            }
            let trailer = object.last_chunk().ok_or(FormatError::Truncated)?;
            let (at, len) = kind.footer_place(object.len() as u64, trailer)?;
            (at as usize, len as usize)
        }
    };
    Ok((object.get(at..at + len).ok_or(FormatError::Truncated)?, at as u64))
}

/// A batch's events. What is checked is what a merger checks: the length, and that each event ends.
fn events(compressed: &[u8], raw_bytes: u32) -> Read<Events> {
    if raw_bytes == 0 && compressed.is_empty() {
        return Ok(Events::new());
    }
    let raw = codec::decompress(compressed, raw_bytes as usize)?;
    if raw.len() != raw_bytes as usize {
        return Err("batch does not match its facts".into());
    }
    lines(&raw)
}

fn lines(raw: &[u8]) -> Read<Events> {
    let text = std::str::from_utf8(raw)?;
    if !text.is_empty() && !text.ends_with('\n') {
        return Err("an event does not end".into());
    }
    Ok(text.lines().map(str::to_owned).collect())
}

fn open_frame(opener: &Opener, object: &[u8], (number, count): (usize, usize), (at, len): (u64, u32)) -> Read<Vec<u8>> {
    let frame = object.get(at as usize..at as usize + len as usize).ok_or(FormatError::Truncated)?;
    Ok(opener.open(frame_at(number, count), frame)?)
}

/// Reads a shared or quarantine object.
pub(super) fn shared(keys: &Keys, id: ObjectId, object: &[u8], at: FooterAt) -> Read<Shared> {
    let (region, body_len) = region(ObjectKind::Shared, object, at)?;
    let version = shared_footer_version(region)?;
    let footer = open_shared_footer(&keys.storage(version)?, id, region, body_len)?;
    let chunks = footer.chunks.iter().map(|chunk| read_chunk(keys, chunk, object)).collect::<Read<_>>()?;
    let records = footer.quarantined.iter().map(|entry| quarantined(keys, entry, object)).collect::<Read<_>>()?;
    Ok(Shared { version, footer, events: chunks, records })
}

fn read_chunk(keys: &Keys, chunk: &shared_object::Chunk, object: &[u8]) -> Read<Vec<Events>> {
    let opener = chunk_opener(keys.session(&chunk.key)?, chunk);
    let (mut at, count, mut batches) = (chunk.at, chunk.batches.len(), Vec::new());
    for (number, batch) in chunk.batches.iter().enumerate() {
        // Nobody asks for a batch without events: all that there is of it stands in the footer.
        batches.push(match batch.facts.events {
            0 => Events::new(),
            // The events lie where they were first.
            _ if batch.is_copy() => Events::new(),
            _ => events(&open_frame(&opener, object, (number, count), (at, batch.len))?, batch.facts.raw_bytes)?,
        });
        at += u64::from(batch.len);
    }
    Ok(batches)
}

/// The notes behind each frame of a chunk, as who looks for them opens it.
pub(super) fn chunk_notes(keys: &Keys, chunk: &shared_object::Chunk, object: &[u8]) -> Read<Vec<Vec<StreamNote>>> {
    let opener = chunk_opener(keys.session(&chunk.key)?, chunk);
    let (mut at, count, mut notes) = (chunk.at, chunk.batches.len(), Vec::new());
    for (number, batch) in chunk.batches.iter().enumerate() {
        notes.push(stream_note::read(&open_frame(&opener, object, (number, count), (at, batch.len))?)?);
        at += u64::from(batch.len);
    }
    Ok(notes)
}

/// The notes behind each frame of a session object.
pub(super) fn session_notes(keys: &Keys, footer: &session_object::Footer, object: &[u8]) -> Read<Vec<Vec<StreamNote>>> {
    let (opener, count) = (session_opener(keys.session(&footer.key)?, footer), footer.frames.len());
    let opened = |(number, frame): (usize, &session_object::Frame)| {
        Ok(stream_note::read(&open_frame(&opener, object, (number, count), (frame.at, frame.len))?)?)
    };
    footer.frames.iter().enumerate().map(opened).collect()
}

fn quarantined(keys: &Keys, entry: &shared_object::Quarantined, object: &[u8]) -> Read<Option<Record>> {
    let value = object.get(entry.at as usize..entry.at as usize + entry.len as usize).ok_or(FormatError::Truncated)?;
    match entry.reason {
        // The key that was missing, of its epoch or of its session, is there by now.
        shared_object::QuarantineReason::Key | shared_object::QuarantineReason::SessionKey => {
            record(keys, &entry.record_key, value).map(Some)
        }
        // Nobody ever opened it: it lies there as it is.
        _ => Ok(None),
    }
}

/// Reads a session object.
pub(super) fn session(keys: &Keys, session: SessionKey, id: ObjectId, object: &[u8], at: FooterAt) -> Read<Session> {
    let data_key = keys.session(&session)?;
    let (region, body_len) = region(ObjectKind::Session, object, at)?;
    let footer = open_session_footer(data_key, session, id, region, body_len)?;
    let opener = session_opener(data_key, &footer);
    let mut frames = Vec::new();
    for (number, frame) in footer.frames.iter().enumerate() {
        let opened = open_frame(&opener, object, (number, footer.frames.len()), (frame.at, frame.len))?;
        let raw = codec::decompress(&opened, frame.raw_len as usize)?;
        let (mut at, mut found) = (0, Vec::new());
        for segment in &frame.segments {
            let piece = raw.get(at..at + segment.bytes as usize).ok_or(FormatError::Truncated)?;
            at += piece.len();
            found.extend(lines(piece)?.into_iter().zip(segment.position..).map(|(text, position)| Event {
                stream: segment.stream,
                seq: segment.seq,
                position,
                text,
            }));
        }
        frames.push(found);
    }
    Ok(Session { footer, events: frames })
}

/// Reads an entry of the journal.
pub(super) fn journal(keys: &Keys, id: ObjectId, object: &[u8]) -> Read<(KeyVersion, Entry)> {
    let version = journal_version(object)?;
    Ok((version, open_journal(&keys.storage(version)?, id, object)?))
}

/// Reads a record under this key.
pub(super) fn record(keys: &Keys, key: &[u8], value: &[u8]) -> Read<Record> {
    let opened = keys.epochs.open(&LogPlace { topic: &keys.topic, key }, value)?;
    let payload = &opened.bytes[opened.payload_at..];
    let events = match &opened.header {
        Header::Batch { facts, .. } => events(payload, facts.raw_bytes)?,
        _ if payload.is_empty() => Vec::new(),
        _ => return Err(FormatError::Trailing.into()),
    };
    Ok(Record { header: opened.header, events })
}
