//! The encoding under all binary formats: little-endian fixed fields, LEB128 variable-length integers, zigzag for
//! signed ones, bytes with their length before them.

use thiserror::Error;

use crate::{limits, stream_note};

/// Why bytes are not what they should be. No variant carries content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FormatError {
    /// Fewer bytes than the format says.
    #[error("bytes end early")]
    Truncated,
    /// More bytes than the format says.
    #[error("bytes follow the end")]
    Trailing,
    /// Not one of ours.
    #[error("magic number does not match")]
    Magic,
    /// Written by a newer release: upgrade the reader first.
    #[error("format version {0} is unknown, upgrade this reader")]
    Version(u8),
    /// A field holds what it never may.
    #[error("field {0} is out of its range")]
    Field(&'static str),
    /// A compressed part does not decompress, or its checksum differs.
    #[error("compressed part is corrupt")]
    Compression,
}

/// Appends to a buffer.
#[derive(Debug, Default)]
pub struct Writer(Vec<u8>);

impl Writer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// The bytes written so far.
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    /// A fixed 64-bit number.
    pub fn u64_fixed(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// A variable-length number (LEB128).
    pub fn uint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push((value as u8) | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    /// A signed variable-length number (zigzag, then LEB128).
    pub fn int(&mut self, value: i64) {
        self.uint(((value << 1) ^ (value >> 63)) as u64);
    }

    /// Bytes as they are.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Bytes with their length before them.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.uint(bytes.len() as u64);
        self.raw(bytes);
    }
}

/// Reads from a slice, and never beyond it.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// What was not read yet.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }

    /// `Ok` when all was read.
    pub fn finish(self) -> Result<(), FormatError> {
        if self.0.is_empty() { Ok(()) } else { Err(FormatError::Trailing) }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `len` bytes.
    pub fn raw(&mut self, len: usize) -> Result<&'a [u8], FormatError> {
        let (head, tail) = self.0.split_at_checked(len).ok_or(FormatError::Truncated)?;
        self.0 = tail;
        Ok(head)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], FormatError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(FormatError::Truncated)?;
        self.0 = tail;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, FormatError> {
        Ok(self.array::<1>()?[0])
    }

    /// One byte that is yes or no.
    pub fn flag(&mut self, field: &'static str) -> Result<bool, FormatError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(FormatError::Field(field)),
        }
    }

    /// A fixed 64-bit number.
    pub fn u64_fixed(&mut self) -> Result<u64, FormatError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A variable-length number.
    pub fn uint(&mut self) -> Result<u64, FormatError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let part = u64::from(byte & 0x7f);
            if shift == 63 && part > 1 {
                return Err(FormatError::Field("varint"));
            }
            value |= part << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(FormatError::Field("varint"))
    }

    /// A variable-length number that must fit 32 bits.
    pub fn uint32(&mut self, field: &'static str) -> Result<u32, FormatError> {
        u32::try_from(self.uint()?).map_err(|_| FormatError::Field(field))
    }

    /// A signed variable-length number.
    pub fn int(&mut self) -> Result<i64, FormatError> {
        let value = self.uint()?;
        Ok(((value >> 1) as i64) ^ -((value & 1) as i64))
    }

    /// Bytes with their length before them, `max` of them at most.
    pub fn bytes(&mut self, max: usize, field: &'static str) -> Result<&'a [u8], FormatError> {
        let len = usize::try_from(self.uint()?).map_err(|_| FormatError::Field(field))?;
        if len > max {
            return Err(FormatError::Field(field));
        }
        self.raw(len)
    }

    /// Text with its length before it, `max` bytes at most.
    pub fn text(&mut self, max: usize, field: &'static str) -> Result<&'a str, FormatError> {
        std::str::from_utf8(self.bytes(max, field)?).map_err(|_| FormatError::Field(field))
    }

    /// The number of items that follow, each of at least `item_bytes_min` bytes: a count that the rest cannot hold
    /// is refused, so no decoder allocates for items that are not there.
    pub fn count(&mut self, item_bytes_min: usize, field: &'static str) -> Result<usize, FormatError> {
        let count = usize::try_from(self.uint()?).map_err(|_| FormatError::Field(field))?;
        if count > self.0.len() / item_bytes_min.max(1) {
            return Err(FormatError::Field(field));
        }
        Ok(count)
    }
}

/// Compresses a footer: one zstd frame with a checksum.
pub fn compress_footer(raw: &[u8]) -> Vec<u8> {
    compress(raw, FOOTER_LEVEL)
}

const FOOTER_LEVEL: i32 = 3;

/// Compresses `raw` into one zstd frame with its content's size and checksum in it.
pub fn compress(raw: &[u8], level: i32) -> Vec<u8> {
    Compressor::new(level).compress(raw)
}

/// Compresses frames one after the other: the tables of a high level take long to be made.
pub struct Compressor(zstd::bulk::Compressor<'static>);

impl std::fmt::Debug for Compressor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compressor").finish_non_exhaustive()
    }
}

impl Compressor {
    /// A compressor of this level of zstd.
    pub fn new(level: i32) -> Self {
        let mut compressor = zstd::bulk::Compressor::new(level)
            .expect("a compressor of a valid level fails only when memory cannot be had");
        compressor.include_checksum(true).expect("the checksum flag is valid for every compressor");
        Self(compressor)
    }

    /// One zstd frame, with its content's size and checksum in it.
    pub fn compress(&mut self, raw: &[u8]) -> Vec<u8> {
        self.0.compress(raw).expect("compression into a buffer of the bound's size cannot fail")
    }
}

/// Decompresses one or more zstd frames into at most `max` bytes. What is skippable, as notes are, adds nothing to them.
pub fn decompress(frame: &[u8], max: usize) -> Result<Vec<u8>, FormatError> {
    use std::io::Read;
    let mut decoder = zstd::stream::read::Decoder::with_buffer(frame).map_err(|_| FormatError::Compression)?;
    // What a frame asks for before its content is seen is bounded too.
    decoder.window_log_max(limits::ZSTD_WINDOW_LOG_MAX).map_err(|_| FormatError::Compression)?;
    // The frame's own claim of its size is a hint that anybody can write: start from it, capped.
    let hint = zstd::zstd_safe::get_frame_content_size(frame).ok().flatten().unwrap_or(0);
    let mut raw = Vec::with_capacity(usize::try_from(hint).unwrap_or(max).min(max));
    decoder.take(max as u64 + 1).read_to_end(&mut raw).map_err(|_| FormatError::Compression)?;
    if raw.len() > max {
        return Err(FormatError::Field("raw_len"));
    }
    Ok(raw)
}

/// The first zstd frame of these bytes, without what stands behind it. What holds nothing has no bytes.
pub fn first_frame(bytes: &[u8]) -> Result<&[u8], FormatError> {
    if bytes.is_empty() || stream_note::holds_only_notes(bytes) {
        return Ok(&[]);
    }
    let len = zstd::zstd_safe::find_frame_compressed_size(bytes).map_err(|_| FormatError::Compression)?;
    bytes.get(..len).ok_or(FormatError::Truncated)
}

/// Whether these bytes look like one frame that says it holds `raw_bytes`: the cheap half of a pair of checks, of which
/// reading does the other. Nothing holds nothing, and so do notes alone.
pub fn frame_holds(frame: &[u8], raw_bytes: usize) -> bool {
    if raw_bytes == 0 {
        return stream_note::holds_only_notes(frame);
    }
    zstd::zstd_safe::get_frame_content_size(frame).ok().flatten() == Some(raw_bytes as u64)
}

/// Bytes in lower-case hexadecimal, two digits each.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| char::from(DIGITS[usize::from(digit)])).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_and_bytes_read_back(unsigned: u64, signed: i64, bytes: Vec<u8>) {
            let mut writer = Writer::new();
            writer.uint(unsigned);
            writer.int(signed);
            writer.bytes(&bytes);
            let written = writer.into_bytes();
            let mut reader = Reader::new(&written);
            prop_assert_eq!(reader.uint(), Ok(unsigned));
            prop_assert_eq!(reader.int(), Ok(signed));
            prop_assert_eq!(reader.bytes(bytes.len(), "b"), Ok(bytes.as_slice()));
            prop_assert_eq!(reader.finish(), Ok(()));
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            while reader.int().is_ok() && reader.bytes(16, "b").is_ok() && reader.count(4, "n").is_ok() {}
            let _ = decompress(&bytes, 1 << 16);
        }
    }

    #[test]
    fn hexadecimal_has_two_digits_of_each_byte() {
        assert_eq!(hex(&[0x00, 0x0f, 0xf0, 0xa5, 0xff]), "000ff0a5ff");
        assert_eq!(hex(&[]), "");
    }

    #[test]
    fn a_varint_of_more_than_64_bits_is_refused() {
        assert_eq!(Reader::new(&[0xff; 11]).uint(), Err(FormatError::Field("varint")));
        assert_eq!(
            Reader::new(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02]).uint(),
            Err(FormatError::Field("varint"))
        );
    }

    #[test]
    fn a_frame_that_grows_beyond_the_bound_is_refused_and_a_flipped_one_too() {
        let frame = compress(&vec![7; 100_000], 1);
        assert_eq!(decompress(&frame, 99_999), Err(FormatError::Field("raw_len")));
        assert_eq!(decompress(&frame, 100_000).map(|raw| raw.len()), Ok(100_000));
        for bit in 0..frame.len() * 8 {
            let mut flipped = frame.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(decompress(&flipped, 100_000).as_deref(), Ok([8; 100_000].as_slice()));
        }
    }
}
