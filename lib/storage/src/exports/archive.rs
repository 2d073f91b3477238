//! A tar archive (POSIX ustar) in gzip, made file by file. No I/O.
//!
//! It can be ended as a gzip member behind any file: members one behind the other are one gzip (RFC 1952, 2.2), so an archive whose
//! maker died goes on behind the last one that stands.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use sha2::{Digest as _, Sha256};

/// Blocks that a tar archive consists of.
const BLOCK_BYTES: usize = 512;

/// Some of an archive. Writing into memory does not fail.
#[derive(Debug)]
pub(super) struct Archive {
    gzip: GzEncoder<Vec<u8>>,
    /// When its files were made, in seconds since the epoch.
    made_s: u64,
    /// Bytes of the file under way that are not there yet.
    left: u64,
    hash: Sha256,
    written: u64,
}

fn gzip() -> GzEncoder<Vec<u8>> {
    // Sent and kept for a short time: what takes longer than that saves is not worth it.
    GzEncoder::new(Vec::new(), Compression::fast())
}

impl Archive {
    pub(super) fn new(made_s: u64) -> Self {
        Self { gzip: gzip(), made_s, left: 0, hash: Sha256::new(), written: 0 }
    }

    /// A whole file; gives its hash. Its path has 100 bytes at most: ours have fewer.
    pub(super) fn file(&mut self, path: &str, body: &[u8]) -> [u8; 32] {
        self.begin(path, body.len() as u64);
        self.write(body);
        self.end()
    }

    /// Begins a file of so many bytes.
    pub(super) fn begin(&mut self, path: &str, bytes: u64) {
        debug_assert!(self.left == 0 && path.len() <= 100, "{path}");
        let mut header = tar::Header::new_ustar();
        let name = &mut header.as_ustar_mut().expect("made as one").name;
        for (byte, of_path) in name.iter_mut().zip(path.bytes()) {
            *byte = of_path;
        }
        header.set_size(bytes);
        header.set_mode(0o644);
        header.set_mtime(self.made_s);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        self.gzip.write_all(header.as_bytes()).expect("memory takes it");
        (self.left, self.written, self.hash) = (bytes, bytes, Sha256::new());
    }

    /// More of the file that was begun.
    pub(super) fn write(&mut self, body: &[u8]) {
        debug_assert!(body.len() as u64 <= self.left);
        self.left = self.left.saturating_sub(body.len() as u64);
        self.hash.update(body);
        self.gzip.write_all(body).expect("memory takes it");
    }

    /// Ends the file that was begun; gives its hash.
    pub(super) fn end(&mut self) -> [u8; 32] {
        debug_assert_eq!(self.left, 0, "a file has the bytes that it began with");
        let over = (self.written % BLOCK_BYTES as u64) as usize;
        if over > 0 {
            self.gzip.write_all(&[0; BLOCK_BYTES][over..]).expect("memory takes it");
        }
        std::mem::take(&mut self.hash).finalize().into()
    }

    /// The bytes that are there and were not taken.
    pub(super) fn take(&mut self) -> Vec<u8> {
        std::mem::take(self.gzip.get_mut())
    }

    /// The same, with the end of this gzip member.
    pub(super) fn end_member(&mut self) -> Vec<u8> {
        std::mem::replace(&mut self.gzip, gzip()).finish().expect("memory takes it")
    }

    /// The same, with the end of the archive.
    pub(super) fn end_all(&mut self) -> Vec<u8> {
        self.gzip.write_all(&[0; 2 * BLOCK_BYTES]).expect("memory takes it");
        self.end_member()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::MultiGzDecoder;

    use super::*;

    /// Goal: any tool reads it, whatever was taken when, and behind a member that stands another maker goes on. Method: files of all
    /// sizes around a block, read back by another implementation.
    #[test]
    fn an_archive_reads_back_whoever_made_which_part_of_it() {
        let files: Vec<(String, Vec<u8>)> = [0, 1, 511, 512, 513, 1_024, 100_000]
            .iter()
            .map(|len| (format!("sessions/{len}/file"), (0..*len).map(|at| (at % 251) as u8).collect()))
            .collect();
        let mut bytes = Vec::new();
        let mut archive = Archive::new(1_790_000_000);
        for (number, (path, body)) in files.iter().enumerate() {
            let hash: [u8; 32] = Sha256::digest(body).into();
            if number % 2 == 0 {
                assert_eq!(archive.file(path, body), hash);
            } else {
                archive.begin(path, body.len() as u64);
                body.chunks(100).for_each(|some| archive.write(some));
                assert_eq!(archive.end(), hash);
            }
            match number % 3 {
                0 => bytes.extend(archive.take()),
                1 => {
                    bytes.extend(archive.end_member());
                    archive = Archive::new(1_790_000_000);
                }
                _ => {}
            }
        }
        bytes.extend(archive.end_all());
        let mut read = tar::Archive::new(MultiGzDecoder::new(bytes.as_slice()));
        let mut found = Vec::new();
        for entry in read.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            let mut body = Vec::new();
            entry.read_to_end(&mut body).unwrap();
            found.push((path, body));
        }
        assert_eq!(found, files);
    }
}
