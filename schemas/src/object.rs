//! What all objects in the bucket have in common: how they begin and end.
//!
//! An object begins with its magic (4 bytes) and version (1 byte). Objects with a footer end with it and a trailer: the
//! footer's length (4 bytes) and the magic once more. The index names the footer's place as well; the trailer is for those
//! who have the object alone.

use crate::codec::FormatError;

/// Bytes of the preamble: magic and version.
pub const PREAMBLE_BYTES: usize = 5;
/// Bytes of the trailer: the footer's length, and the magic.
pub const TRAILER_BYTES: usize = 8;

/// What an object is, by its magic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ObjectKind {
    /// A shared or quarantine object.
    Shared,
    /// A session object.
    Session,
    /// An entry of the journal.
    Journal,
    /// A part of an export's archive.
    Export,
}

impl ObjectKind {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::Shared, Self::Session, Self::Journal, Self::Export];

    /// The first bytes.
    pub fn magic(self) -> &'static [u8; 4] {
        match self {
            Self::Shared => b"CLVS",
            Self::Session => b"CLVO",
            Self::Journal => b"CLVJ",
            Self::Export => b"CLVE",
        }
    }

    /// The version that is written.
    pub fn written(self) -> u8 {
        1
    }

    /// Versions that are read. A version is read by every release from its first on; it is written only once all readers of
    /// a deployment know it.
    pub fn read(self) -> &'static [u8] {
        &[1]
    }

    /// The first bytes of an object that is written now.
    pub fn preamble(self) -> [u8; PREAMBLE_BYTES] {
        let [a, b, c, d] = *self.magic();
        [a, b, c, d, self.written()]
    }

    /// What these bytes are the beginning of.
    pub fn of(bytes: &[u8]) -> Result<Self, FormatError> {
        let (magic, rest) = bytes.split_first_chunk::<4>().ok_or(FormatError::Truncated)?;
        let kind = Self::ALL.into_iter().find(|kind| kind.magic() == magic).ok_or(FormatError::Magic)?;
        let version = *rest.first().ok_or(FormatError::Truncated)?;
        if kind.read().contains(&version) { Ok(kind) } else { Err(FormatError::Version(version)) }
    }

    /// The end of an object with a footer of this length.
    pub fn trailer(self, footer_len: u32) -> [u8; TRAILER_BYTES] {
        let mut bytes = [0; TRAILER_BYTES];
        bytes[..4].copy_from_slice(&footer_len.to_le_bytes());
        bytes[4..].copy_from_slice(self.magic());
        bytes
    }

    /// Where the footer of an object of `object_len` bytes is, by its trailer: first byte, and length.
    pub fn footer_place(self, object_len: u64, trailer: &[u8; TRAILER_BYTES]) -> Result<(u64, u32), FormatError> {
        let ([a, b, c, d], magic) = (trailer[..4].try_into().unwrap_or_default(), &trailer[4..]);
        if magic != self.magic() {
            return Err(FormatError::Magic);
        }
        let len = u32::from_le_bytes([a, b, c, d]);
        let end = object_len.checked_sub(TRAILER_BYTES as u64).ok_or(FormatError::Truncated)?;
        let at = end.checked_sub(u64::from(len)).filter(|at| *at >= PREAMBLE_BYTES as u64);
        at.map(|at| (at, len)).ok_or(FormatError::Field("footer_len"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_tell_what_they_are_and_where_their_footer_is() {
        for kind in ObjectKind::ALL {
            assert_eq!(ObjectKind::of(&kind.preamble()), Ok(kind));
            assert!(kind.read().contains(&kind.written()), "what is written is read");
            let mut newer = kind.preamble();
            newer[4] += 1;
            assert_eq!(ObjectKind::of(&newer), Err(FormatError::Version(kind.written() + 1)));
            assert_eq!(kind.footer_place(113, &kind.trailer(100)), Ok((5, 100)));
            assert_eq!(kind.footer_place(112, &kind.trailer(100)), Err(FormatError::Field("footer_len")));
            assert_eq!(kind.footer_place(7, &kind.trailer(0)), Err(FormatError::Truncated));
        }
        assert_eq!(ObjectKind::of(b"CLVR\x01"), Err(FormatError::Magic));
        assert_eq!(ObjectKind::of(b"CLVS"), Err(FormatError::Truncated));
        let trailer = ObjectKind::Shared.trailer(100);
        assert_eq!(ObjectKind::Session.footer_place(200, &trailer), Err(FormatError::Magic));
    }
}
