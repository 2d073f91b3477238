//! A search for planted texts in whatever was left on disk.
//!
//! Content is compressed before it is sealed, so a search that looks at bytes as they lie would find nothing even if nothing
//! were sealed. This one decompresses every zstd frame that it finds, wherever it begins, and reads the hexadecimal digits that
//! a dump of Postgres writes bytes with. It proves something only beside a run in which it does find what was planted.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;

use aho_corasick::AhoCorasick;
use anyhow::{Context, Result};

/// The first bytes of a zstd frame (RFC 8878).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// What one frame may grow to.
const FRAME_BYTES_MAX: u64 = 256 << 20;
/// Frames within frames, digits within frames, and so on.
const DEPTH_MAX: u32 = 3;
/// Fewer hexadecimal digits than a frame of any use has are no bytes in a dump.
const DIGITS_MIN: usize = 32;

/// What is searched for, and what was looked through.
#[derive(Debug)]
pub(crate) struct Scanner<'m> {
    markers: &'m [&'m str],
    /// All of them at once: with hundreds of them each byte would be looked at as often.
    search: AhoCorasick,
    /// Files, or other sources, that were looked through.
    pub(crate) sources: usize,
    /// Their bytes.
    pub(crate) bytes: u64,
    /// zstd frames that were opened.
    pub(crate) frames: usize,
    /// Where something was found.
    pub(crate) found: BTreeSet<String>,
}

impl<'m> Scanner<'m> {
    pub(crate) fn new(markers: &'m [&'m str]) -> Self {
        // Texts of tests, some hundreds: far below what it can hold.
        let search = AhoCorasick::new(markers).expect("so few texts can be searched for");
        Self { markers, search, sources: 0, bytes: 0, frames: 0, found: BTreeSet::new() }
    }

    /// Looks through all files below a folder.
    pub(crate) fn folder(&mut self, folder: &Path) -> Result<()> {
        for entry in std::fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                self.folder(&path)?;
            } else {
                self.file(&path)?;
            }
        }
        Ok(())
    }

    /// Looks through a file. One that was removed in this moment has nothing to be found.
    pub(crate) fn file(&mut self, path: &Path) -> Result<()> {
        match std::fs::read(path) {
            Ok(bytes) => self.source(&path.display().to_string(), &bytes),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("read {}", path.display())),
        }
        Ok(())
    }

    /// Looks through bytes from anywhere.
    pub(crate) fn source(&mut self, name: &str, bytes: &[u8]) {
        self.sources += 1;
        self.bytes += bytes.len() as u64;
        self.look(name, bytes, 0);
    }

    fn look(&mut self, name: &str, bytes: &[u8], depth: u32) {
        // Overlapping: a text may lie within another.
        let found: BTreeSet<usize> =
            self.search.find_overlapping_iter(bytes).map(|found| found.pattern().as_usize()).collect();
        self.found.extend(found.into_iter().map(|marker| format!("{} in {name}", self.markers[marker])));
        if depth == DEPTH_MAX {
            return;
        }
        for at in memchr::memmem::find_iter(bytes, &ZSTD_MAGIC) {
            let opened = decompress(&bytes[at..]);
            if !opened.is_empty() {
                self.frames += 1;
                self.look(name, &opened, depth + 1);
            }
        }
        for digits in bytes.split(|byte| !byte.is_ascii_hexdigit()).filter(|digits| digits.len() >= DIGITS_MIN) {
            let decoded: Vec<u8> = digits.chunks_exact(2).filter_map(byte_of).collect();
            self.look(name, &decoded, depth + 1);
        }
    }
}

fn byte_of(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
}

/// What a frame holds, as far as it can be read: of one that is cut short, its beginning.
fn decompress(frame: &[u8]) -> Vec<u8> {
    let mut opened = Vec::new();
    let Ok(decoder) = zstd::stream::read::Decoder::with_buffer(frame) else { return opened };
    // An error at some point leaves what came before it.
    let _ = decoder.single_frame().take(FRAME_BYTES_MAX).read_to_end(&mut opened);
    opened
}

#[cfg(test)]
mod tests {
    use schemas::codec::hex;

    use super::*;

    const MARKER: &str = "planted-and-nowhere-else";

    fn finds(bytes: &[u8]) -> bool {
        let mut scanner = Scanner::new(&[MARKER]);
        scanner.source("test", bytes);
        !scanner.found.is_empty()
    }

    /// Long enough that the compressor writes the marker as a reference to what came before.
    fn content() -> Vec<u8> {
        let mut content = b"something planted-and-now else-where planted, and nowhere else ".repeat(50);
        content.extend_from_slice(MARKER.as_bytes());
        content
    }

    #[test]
    fn texts_are_found_however_they_are_wrapped() {
        let clear = content();
        let frame = zstd::bulk::compress(&clear, 9).unwrap();
        assert!(memchr::memmem::find(&frame, MARKER.as_bytes()).is_none(), "the compressed bytes do not show it");
        let behind = |bytes: &[u8]| [b"whatever \x28\xb5\x2f\xfd lies before".as_slice(), bytes, b"and after"].concat();
        assert!(finds(&clear));
        assert!(finds(&behind(&frame)));
        // Blocks have 128 KiB at most, and those before the cut are whole.
        let long = zstd::bulk::compress(&[clear.as_slice(), &vec![b'x'; 1 << 20]].concat(), 9).unwrap();
        assert!(finds(&behind(&long[..long.len() - 1])), "a frame that is cut short");
        assert!(finds(&zstd::bulk::compress(&behind(&frame), 1).unwrap()), "a frame in a frame");
        assert!(finds(format!("\\\\x{}\t7", hex(&frame)).as_bytes()), "a dump's bytes");
        assert!(finds(format!("\\\\x{}\t7", hex(&clear)).as_bytes()));
        assert!(!finds(&behind(b"planted-and-nowhere-els")));
    }

    #[test]
    fn texts_within_texts_are_found_each() {
        let markers = ["planted", "planted-and-nowhere", "and", "missing"];
        let mut scanner = Scanner::new(&markers);
        scanner.source("test", &content());
        let found: Vec<&str> = scanner.found.iter().map(|found| found.trim_end_matches(" in test")).collect();
        assert_eq!(found, ["and", "planted", "planted-and-nowhere"]);
    }
}
