//! The encoding under all formats. An input is a bound, a number, that many steps of reading, and the bytes to read.
#![no_main]

use fuzz::plant;
use libfuzzer_sys::fuzz_target;
use schemas::codec::{FormatError, Reader, Writer, compress, decompress, frame_holds};

const KINDS: u8 = 9;

fn seeds() -> impl Iterator<Item = Vec<u8>> {
    let mut writer = Writer::new();
    writer.u8(1);
    writer.u64_fixed(2);
    writer.uint(u64::MAX);
    writer.uint(300);
    writer.int(i64::MIN);
    writer.bytes(b"bytes");
    writer.bytes("text".as_bytes());
    writer.uint(2);
    writer.raw(b"items and more");
    let steps: Vec<u8> = (0..KINDS).map(|kind| kind + 8 * KINDS).collect();
    let frames = [compress(&[7; 3000], 3), compress(b"one", 1)].concat();
    [writer.into_bytes(), frames]
        .into_iter()
        .map(move |bytes| [&2999u16.to_le_bytes(), [KINDS].as_slice(), &steps, &bytes].concat())
}

/// Reads by these steps, and writes what was read.
fn reread(steps: &[u8], reader: &mut Reader<'_>) -> Result<Vec<u8>, FormatError> {
    let mut writer = Writer::new();
    for step in steps {
        let bound = usize::from(step / KINDS);
        let before = reader.rest().len();
        match step % KINDS {
            0 => writer.u8(reader.u8()?),
            1 => writer.u64_fixed(reader.u64_fixed()?),
            2 => writer.uint(reader.uint()?),
            3 => writer.uint(u64::from(reader.uint32("number")?)),
            4 => writer.int(reader.int()?),
            5 => {
                let bytes = reader.bytes(bound, "bytes")?;
                assert!(bytes.len() <= bound, "more bytes than the bound");
                writer.bytes(bytes);
            }
            6 => {
                let text = reader.text(bound, "text")?;
                assert!(text.len() <= bound, "more text than the bound");
                writer.bytes(text.as_bytes());
            }
            7 => {
                let count = reader.count(bound, "items")?;
                writer.uint(count as u64);
                writer.raw(reader.raw(count * bound.max(1)).expect("what was counted is there"));
            }
            _ => writer.raw(reader.raw(bound)?),
        }
        assert!(reader.rest().len() <= before, "a reader went back");
    }
    Ok(writer.into_bytes())
}

fn check_compression(bytes: &[u8], max: usize) {
    if let Ok(raw) = decompress(bytes, max) {
        assert!(raw.len() <= max, "{} bytes instead of at most {max}", raw.len());
    }
    let framed = compress(bytes, 1);
    assert!(frame_holds(&framed, bytes.len()) || bytes.is_empty());
    assert_eq!(decompress(&framed, bytes.len()).as_deref(), Ok(bytes));
    assert!(bytes.is_empty() || decompress(&framed, bytes.len() - 1).is_err(), "a frame grew beyond its bound");
    let mut flipped = framed;
    let bit = max % (flipped.len() * 8);
    flipped[bit / 8] ^= 1 << (bit % 8);
    if let Ok(raw) = decompress(&flipped, bytes.len()) {
        assert_eq!(raw, bytes, "a flipped bit changed the content unnoticed");
    }
}

fuzz_target!(init: plant(seeds()), |data: &[u8]| {
    let Some((&[low, high, step_count], rest)) = data.split_first_chunk() else { return };
    let Some((steps, bytes)) = rest.split_at_checked(usize::from(step_count)) else { return };
    let mut reader = Reader::new(bytes);
    if let Ok(written) = reread(steps, &mut reader) {
        let read = &bytes[..bytes.len() - reader.rest().len()];
        // A number may come with more bytes than it needs; nothing else has two forms.
        assert!(written == read || written.len() < read.len(), "other bytes say the same");
        let mut again = Reader::new(&written);
        assert_eq!(reread(steps, &mut again).as_ref(), Ok(&written));
        assert_eq!(again.finish(), Ok(()));
    }
    check_compression(bytes, usize::from(u16::from_le_bytes([low, high])));
});
