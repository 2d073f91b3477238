//! Notes behind a frame of events. An input is as it is, and once more behind a whole frame; its beginning is a note's content, too.
#![no_main]

use fuzz::{frame, plant};
use libfuzzer_sys::fuzz_target;
use schemas::codec::{compress, decompress, frame_holds};
use schemas::limits::{STREAM_NOTES_BYTES_MAX, STREAM_NOTES_MAX, STREAM_STATE_BYTES_MAX};
use schemas::stream_note::{StreamNote, append, read};

const MAGIC: [u8; 4] = [0x5c, 0x2a, 0x4d, 0x18];
const EVENTS: &[u8] = b"{\"type\":3}\n";
/// More than any input says that it holds.
const RAW_BYTES_MAX: usize = 1 << 16;

fn notes() -> [StreamNote; 2] {
    [
        StreamNote { stream: 300, next: 1 << 32, state: b"state".to_vec() },
        StreamNote { stream: 1, next: 0, state: Vec::new() },
    ]
}

fn seeds() -> impl Iterator<Item = Vec<u8>> {
    let with_notes = |mut frame: Vec<u8>| {
        append(&mut frame, &notes());
        frame
    };
    let skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc".to_vec();
    let content = with_notes(Vec::new())[8..].to_vec();
    [with_notes(Vec::new()), with_notes(compress(EVENTS, 3)), with_notes(frame(EVENTS)), skippable, content].into_iter()
}

/// What was read is bounded, and read again as the same from what is written of it.
fn check_notes(notes: &[StreamNote]) {
    let bytes: usize = notes.iter().map(|note| note.state.len()).sum();
    assert!(notes.len() <= STREAM_NOTES_MAX && bytes <= STREAM_NOTES_BYTES_MAX, "more notes than the bound");
    assert!(notes.iter().all(|note| note.state.len() <= STREAM_STATE_BYTES_MAX), "a longer state than the bound");
    let mut written = Vec::new();
    append(&mut written, notes);
    assert_eq!(read(&written).as_deref(), Ok(notes));
    assert!(frame_holds(&written, 0));
}

fn check(frame: &[u8]) {
    let found = read(frame);
    if let Ok(notes) = &found {
        check_notes(notes);
    }
    let mut longer = frame.to_vec();
    append(&mut longer, &notes());
    let raw = decompress(frame, RAW_BYTES_MAX);
    if let Ok(raw) = &raw
        && !frame.is_empty()
    {
        assert_eq!(decompress(&longer, RAW_BYTES_MAX).as_ref(), Ok(raw), "notes changed the events");
    }
    if let Ok(mut expected) = found
        && expected.len() + notes().len() <= STREAM_NOTES_MAX
    {
        expected.extend(notes());
        assert_eq!(read(&longer), Ok(expected), "notes changed the notes before them");
    }
    for raw_bytes in [0, EVENTS.len()] {
        // What was cut short may go on with a note's bytes; what was whole stays what it was.
        let is_changed = frame_holds(frame, raw_bytes) && !frame_holds(&longer, raw_bytes);
        assert!(!is_changed, "notes changed what a frame holds");
    }
    if frame_holds(frame, 0) && !frame.is_empty() {
        assert_eq!(raw, Ok(Vec::new()), "what holds nothing holds something");
    }
}

fuzz_target!(init: plant(seeds()), |data: &[u8]| {
    check(data);
    check(&[compress(EVENTS, 1).as_slice(), data].concat());
    let content = [MAGIC.as_slice(), &(data.len() as u32).to_le_bytes(), data].concat();
    check(&content);
    if let Ok(found) = read(&content)
        && let [note] = found.as_slice()
    {
        let mut written = Vec::new();
        append(&mut written, [note]);
        // A number may come with more bytes than it needs; nothing else has two forms.
        assert!(written == content || written.len() < content.len(), "other bytes say the same");
    }
});
