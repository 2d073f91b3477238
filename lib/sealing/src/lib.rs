//! Keys, key wrapping, encrypted frames.
//!
//! A stolen bucket, broker disk or database dump is worth nothing without the keys, and destroying a key destroys what it
//! sealed. Three seals, each with a key of its own kind:
//!
//! - [`frames`]: a session's frames in objects, in the STREAM construction under a key per chunk;
//! - [`transport`]: a record on its way through the log, under a key per epoch and process;
//! - [`wrapping`]: a session's data key at rest, under a workspace's key.
//!
//! [`references`] of links lie in the index, each a chunk by itself in the first of these seals.
//!
//! Workspaces' keys come from a [`keyring`]; [`objects`] puts seals and formats together. Compressed first, sealed then.
//!
//! In all of them AES-256-GCM under a key that HKDF derives from a fresh random salt: no (key, nonce) pair ever repeats
//! (C4), whatever crashes or runs twice. What is bound in is who the bytes belong to and where in their chunk they stand,
//! not where they are stored: ciphertext can be moved, and frames cannot be swapped, dropped, truncated or repeated
//! unnoticed (C5). There is no way to write clear text here, and no default key.

pub mod frames;
mod key;
pub mod keyring;
pub mod objects;
pub mod references;
#[cfg(test)]
mod tests;
pub mod transport;
pub mod wrapping;

pub use key::{Key, Random};

/// The bytes were not sealed like this, or were changed since. It does not say which: nobody needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("sealed bytes do not open: wrong key, or changed since they were sealed")]
pub struct NotOpened;

/// What stops sealing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// The machine gives no randomness; nothing may be sealed then.
    #[error("draw random bytes from the system")]
    Random,
    /// A key has sealed all that it may.
    #[error("seal more than {0} frames under one key; begin a new chunk")]
    Exhausted(u32),
    /// A process has sealed all the records that it may in this epoch.
    #[error("seal more records in this epoch; start the process anew")]
    Worn,
    /// A frame is larger than the cipher can take.
    #[error("seal a frame of more than 2^36 bytes")]
    TooLarge,
}

/// Bytes that the cipher adds to each frame.
pub const TAG_BYTES: usize = 16;
const _: () = assert!(TAG_BYTES == schemas::shared_object::EMPTY_FRAME_BYTES as usize);
