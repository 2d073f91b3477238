//! Notes behind a frame of events: how far a stream's masking has come.
//!
//! A batcher masks each stream with a small state. Whoever takes the partition over finds it at the end of the stream's chunk in
//! a shared object, or of the last frame of a session object. A note is a zstd skippable frame (RFC 8878, section 3.1.2) behind
//! the frame of events, inside what is sealed: every decoder passes over it, also those of releases that know nothing of notes.
//! So a note may be missing, and says nothing that must not be: a stream without one is only masked more.
//!
//! Layout: the magic number 0x184D2A5C and the content's length, little-endian, 4 bytes each; the content: version (1 byte),
//! stream, next, the state with its length. The state's own bytes are the masking's matter.

use std::fmt;

use crate::codec::{FormatError, Reader, Writer};
use crate::limits::{STREAM_NOTES_BYTES_MAX, STREAM_NOTES_MAX, STREAM_STATE_BYTES_MAX};

/// Magic number of a note, one of the sixteen that skippable frames have.
const MAGIC: u32 = 0x184D_2A5C;
/// What all sixteen have in common.
const SKIPPABLE: u32 = 0x184D_2A50;
/// The version of the content that is written.
const VERSION: u8 = 1;

/// How far a stream's masking has come.
#[derive(Clone, PartialEq, Eq)]
pub struct StreamNote {
    /// The stream.
    pub stream: u32,
    /// The seq that comes next: all before it was seen.
    pub next: u64,
    /// What the masking needs to go on, [`STREAM_STATE_BYTES_MAX`] bytes at most.
    pub state: Vec<u8>,
}

/// Says how much: what a state tells of a page does not belong into a log.
impl fmt::Debug for StreamNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StreamNote(stream {}, next {}, {} bytes)", self.stream, self.next, self.state.len())
    }
}

impl StreamNote {
    /// The skippable frame.
    fn encode(&self) -> Vec<u8> {
        let mut content = Writer::new();
        content.u8(VERSION);
        content.uint(u64::from(self.stream));
        content.uint(self.next);
        content.bytes(&self.state);
        let content = content.into_bytes();
        [MAGIC.to_le_bytes().as_slice(), &(content.len() as u32).to_le_bytes(), &content].concat()
    }

    /// Reads a frame's content; none when a later release wrote it.
    fn decode(content: &[u8]) -> Result<Option<Self>, FormatError> {
        let mut reader = Reader::new(content);
        if reader.u8()? != VERSION {
            return Ok(None);
        }
        let stream = reader.uint32("stream")?;
        let next = reader.uint()?;
        let state = reader.bytes(STREAM_STATE_BYTES_MAX, "state")?.to_vec();
        reader.finish()?;
        Ok(Some(Self { stream, next, state }))
    }

    /// Whether this one counts where there are both, of one stream. Which of two with the same `next` it is does not matter, but
    /// all who choose must choose the same.
    pub fn is_newer_than(&self, other: &Self) -> bool {
        (self.next, &self.state) > (other.next, &other.state)
    }
}

/// Appends notes to a frame, which may be empty: a batch without events has no other bytes. Of one call's notes those that are
/// within the bounds are written, the first ones first: 64 notes, 512 KiB in all, 16 KiB of state in each.
pub fn append<'a>(frame: &mut Vec<u8>, notes: impl IntoIterator<Item = &'a StreamNote>) {
    let (mut count, mut bytes) = (0, 0);
    for note in notes.into_iter().filter(|note| note.state.len() <= STREAM_STATE_BYTES_MAX) {
        let encoded = note.encode();
        if count < STREAM_NOTES_MAX && bytes + encoded.len() <= STREAM_NOTES_BYTES_MAX {
            (count, bytes) = (count + 1, bytes + encoded.len());
            frame.extend_from_slice(&encoded);
        }
    }
}

/// The notes in these frames, as they lie there. Those of later releases are passed over, and so is whatever else is skippable.
pub fn read(frame: &[u8]) -> Result<Vec<StreamNote>, FormatError> {
    let mut reader = Reader::new(frame);
    let (mut notes, mut bytes) = (Vec::new(), 0);
    while let Some(found) = next_frame(&mut reader)? {
        let Found::Note(content) = found else { continue };
        let Some(note) = StreamNote::decode(content)? else { continue };
        bytes += HEAD_BYTES + content.len();
        if notes.len() == STREAM_NOTES_MAX || bytes > STREAM_NOTES_BYTES_MAX {
            return Err(FormatError::Field("notes"));
        }
        notes.push(note);
    }
    Ok(notes)
}

/// Whether there is nothing but notes, or nothing at all: what a batch without events is stored as.
pub(crate) fn holds_only_notes(frame: &[u8]) -> bool {
    let mut reader = Reader::new(frame);
    loop {
        match next_frame(&mut reader) {
            Ok(None) => return true,
            Ok(Some(Found::Note(_))) => {}
            Ok(Some(Found::Other)) | Err(_) => return false,
        }
    }
}

/// Bytes of a skippable frame before its content.
const HEAD_BYTES: usize = 8;

/// A frame, of whichever kind.
enum Found<'a> {
    /// A note's content.
    Note(&'a [u8]),
    /// Events, or what others let their readers skip.
    Other,
}

/// Takes the next frame off. It is passed over as a whole: whether a frame of events decompresses is not seen here.
fn next_frame<'a>(reader: &mut Reader<'a>) -> Result<Option<Found<'a>>, FormatError> {
    let bytes = reader.rest();
    if bytes.is_empty() {
        return Ok(None);
    }
    let mut ahead = *reader;
    let magic = u32::from_le_bytes(ahead.array()?);
    if magic & !0xf == SKIPPABLE {
        let len = u32::from_le_bytes(ahead.array()?);
        let content = ahead.raw(usize::try_from(len).map_err(|_| FormatError::Truncated)?)?;
        *reader = ahead;
        return Ok(Some(if magic == MAGIC { Found::Note(content) } else { Found::Other }));
    }
    match zstd::zstd_safe::find_frame_compressed_size(bytes) {
        // A frame of no bytes would be met for ever.
        Ok(len) if len > 0 => reader.raw(len).map(|_| Some(Found::Other)),
        Ok(_) | Err(_) => Err(FormatError::Compression),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec::{compress, decompress, frame_holds};

    fn note(stream: u32, next: u64, state: &[u8]) -> StreamNote {
        StreamNote { stream, next, state: state.to_vec() }
    }

    fn with_notes(frame: &[u8], notes: &[StreamNote]) -> Vec<u8> {
        let mut whole = frame.to_vec();
        append(&mut whole, notes);
        whole
    }

    /// A skippable frame of any kind and content.
    fn skippable(magic: u32, content: &[u8]) -> Vec<u8> {
        [magic.to_le_bytes().as_slice(), &(content.len() as u32).to_le_bytes(), content].concat()
    }

    #[test]
    fn a_note_has_these_bytes() {
        let bytes = with_notes(&[], &[note(300, 7, b"\x01state")]);
        assert_eq!(bytes, b"\x5c\x2a\x4d\x18\x0b\0\0\0\x01\xac\x02\x07\x06\x01state");
        assert_eq!(format!("{:?}", note(300, 7, b"state")), "StreamNote(stream 300, next 7, 5 bytes)");
    }

    #[test]
    fn what_is_skippable_or_of_a_later_release_is_passed_over() {
        let events = compress(b"{}\n", 3);
        let mine = note(1, 2, b"three");
        let later = skippable(MAGIC, b"\x02whatever it is");
        for others in [later, skippable(SKIPPABLE, b"somebody's"), skippable(SKIPPABLE + 15, b"")] {
            let before = with_notes(&[others.as_slice(), &events].concat(), std::slice::from_ref(&mine));
            let between = with_notes(&[events.as_slice(), &others].concat(), std::slice::from_ref(&mine));
            for frame in [before, between] {
                assert_eq!(read(&frame).as_deref(), Ok([mine.clone()].as_slice()));
                assert_eq!(decompress(&frame, 3).as_deref(), Ok(b"{}\n".as_slice()));
            }
        }
    }

    #[test]
    fn what_is_no_frame_or_no_note_is_an_error() {
        let events = compress(b"{}\n", 3);
        let behind = |bytes: &[u8]| read(&[events.as_slice(), bytes].concat());
        assert_eq!(behind(b""), Ok(Vec::new()));
        assert_eq!(behind(b"\0"), Err(FormatError::Truncated));
        assert_eq!(behind(b"some bytes"), Err(FormatError::Compression));
        assert_eq!(behind(&events[..events.len() - 1]), Err(FormatError::Compression));
        assert_eq!(behind(&skippable(MAGIC, b"")), Err(FormatError::Truncated), "no version");
        assert_eq!(behind(&skippable(MAGIC, b"\x01\x01\x02\x00more")), Err(FormatError::Trailing));
        let whole = with_notes(&[], &[note(1, 2, b"three")]);
        for len in 1..whole.len() {
            assert_eq!(behind(&whole[..len]), Err(FormatError::Truncated), "{len} bytes");
            assert!(decompress(&[&events, &whole[..len]].concat(), 3).is_err(), "{len} bytes");
        }
        let mut long = Writer::new();
        long.raw(&[VERSION, 1, 2]);
        long.bytes(&vec![0; STREAM_STATE_BYTES_MAX + 1]);
        assert_eq!(behind(&skippable(MAGIC, &long.into_bytes())), Err(FormatError::Field("state")));
    }

    #[test]
    fn no_more_is_written_than_is_read() {
        let all = |count: u32, bytes: usize| (0..count).map(|n| note(n, 1, &vec![7; bytes])).collect::<Vec<_>>();
        let written = |notes: &[StreamNote]| read(&with_notes(&compress(b"x\n", 1), notes)).map(|notes| notes.len());
        assert_eq!(written(&all(65, 0)), Ok(STREAM_NOTES_MAX));
        assert_eq!(written(&all(1, STREAM_STATE_BYTES_MAX)), Ok(1));
        assert_eq!(written(&all(1, STREAM_STATE_BYTES_MAX + 1)), Ok(0));
        assert_eq!(written(&all(64, STREAM_STATE_BYTES_MAX)), Ok(31), "with their heads, 32 are more than 512 KiB");
        // A smaller one that comes behind still has its place.
        let mut mixed = all(40, STREAM_STATE_BYTES_MAX);
        mixed.push(note(99, 1, b""));
        assert_eq!(written(&mixed), Ok(32));
        let twice = with_notes(&with_notes(&[], &all(64, 0)), &all(1, 0));
        assert_eq!(read(&twice), Err(FormatError::Field("notes")));
        let twice = with_notes(&with_notes(&[], &all(31, STREAM_STATE_BYTES_MAX)), &all(31, STREAM_STATE_BYTES_MAX));
        assert_eq!(read(&twice), Err(FormatError::Field("notes")));
    }

    fn any_notes() -> impl Strategy<Value = Vec<StreamNote>> {
        let one = (any::<u32>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..300));
        prop::collection::vec(one.prop_map(|(stream, next, state)| StreamNote { stream, next, state }), 0..8)
    }

    proptest! {
        /// Whoever knows nothing of notes reads what would be there without them.
        #[test]
        fn frames_decompress_to_their_events_whatever_notes_follow(events: Vec<u8>, notes in any_notes(), garbage in 1..9_usize) {
            let frame = if events.is_empty() { Vec::new() } else { compress(&events, 1) };
            let whole = with_notes(&frame, &notes);
            prop_assert_eq!(read(&whole), Ok(notes.clone()));
            prop_assert!(frame_holds(&whole, events.len()));
            prop_assert!(!frame_holds(&whole, events.len() + 1));
            if !whole.is_empty() {
                prop_assert_eq!(decompress(&whole, events.len()), Ok(events.clone()));
                prop_assert_eq!(zstd::stream::decode_all(whole.as_slice()).ok(), Some(events.clone()));
            }
            if !events.is_empty() {
                prop_assert!(decompress(&whole, events.len() - 1).is_err());
            }
            let behind = [whole.as_slice(), &b"some bytes"[..garbage]].concat();
            prop_assert!(decompress(&behind, events.len()).is_err() && read(&behind).is_err());
            prop_assert!(!events.is_empty() || !frame_holds(&behind, 0));
        }

        #[test]
        fn any_bytes_are_read_without_panic_and_notes_read_again_as_the_same(bytes: Vec<u8>, content: Vec<u8>, kind in 0..17_u32) {
            let _ = read(&bytes);
            let versioned = [&[VERSION], content.as_slice()].concat();
            for content in [content, versioned] {
                let frame = [skippable(SKIPPABLE + kind, &content), bytes.clone()].concat();
                if let Ok(notes) = read(&frame) {
                    prop_assert_eq!(read(&with_notes(&[], &notes)), Ok(notes));
                }
            }
        }
    }

    /// Nothing holds nothing, and a frame of no events is not what a batch without events is stored as.
    #[test]
    fn a_batch_without_events_is_notes_and_nothing_else() {
        let notes = with_notes(&[], &[note(1, 2, b"three"), note(2, 3, b"")]);
        assert!(frame_holds(b"", 0) && frame_holds(&notes, 0));
        assert_eq!(decompress(&notes, 0), Ok(Vec::new()));
        let events = compress(b"{}\n", 1);
        for other in [compress(b"", 1), skippable(SKIPPABLE, b""), b"x".to_vec(), [notes.as_slice(), &events].concat()]
        {
            assert!(!frame_holds(&other, 0));
        }
        assert!(!frame_holds(&[notes, events].concat(), 3), "notes come behind the events");
    }
}
