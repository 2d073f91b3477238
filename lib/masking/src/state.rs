//! What is known of a stream's nodes between its batches.

use schemas::codec::{FormatError, Reader, Writer};
use schemas::limits::STREAM_STATE_BYTES_MAX;

use crate::ranges::Ranges;

const VERSION: u8 = 1;
/// Ranges in the middle of an event: more than fit into the bytes of a state, for each takes two at least.
const RANGES_MAX: usize = STREAM_STATE_BYTES_MAX / 2;

/// What is known of a stream's nodes. Whatever is not known to be open is masked, also what nobody has seen: what is lost of a
/// state can only mask more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StreamState {
    /// Nodes of which all is kept, and what is put below them too.
    pub(crate) open: Ranges,
    /// Form fields whose value is never kept, also once they look like others: passwords that were toggled to text.
    pub(crate) secret: Ranges,
    /// Blocked elements and what was below them: of what is put there nothing is kept.
    pub(crate) blocked: Ranges,
    /// Masked elements and what is below them. Put elsewhere, it stays masked until the next full snapshot.
    pub(crate) masked: Ranges,
    /// Whether a field may have been a password's without our having seen it.
    pub(crate) missed: bool,
}

impl StreamState {
    /// The state before a stream's first batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// The state where something of the stream was missed: nothing is open until the next full snapshot, and which fields were
    /// a password's is not known any more.
    pub fn missed() -> Self {
        Self { missed: true, ..Self::default() }
    }

    /// Something of the stream was missed, see [`StreamState::missed`]. What is known to be secret stays so.
    pub fn miss(&mut self) {
        self.close();
        self.missed = true;
    }

    /// Nothing is open any more, until the next full snapshot.
    pub(crate) fn close(&mut self) {
        self.open.clear();
    }

    /// A full snapshot begins: it tells all nodes that there are. Which fields were a password's stays known.
    pub(crate) fn begin_snapshot(&mut self) {
        self.open.clear();
        self.masked.clear();
        self.blocked.clear();
    }

    /// The bytes of the state, at most [`STREAM_STATE_BYTES_MAX`]. What does not fit is left out: it masks more.
    pub fn encode(&self) -> Vec<u8> {
        let mut kept = self.clone();
        kept.shrink();
        let mut writer = Writer::new();
        writer.u8(VERSION);
        writer.u8(u8::from(kept.missed));
        kept.all().into_iter().for_each(|ranges| ranges.write(&mut writer));
        writer.into_bytes()
    }

    /// A state of these bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        let version = reader.u8()?;
        if version != VERSION {
            return Err(FormatError::Version(version));
        }
        let missed = reader.flag("missed")?;
        let mut ranges = || Ranges::read(&mut reader);
        let (secret, blocked, masked, open) = (ranges()?, ranges()?, ranges()?, ranges()?);
        reader.finish()?;
        Ok(Self { open, secret, blocked, masked, missed })
    }

    /// Bytes in memory, about.
    pub fn heap_bytes(&self) -> usize {
        8 * self.all().iter().map(|ranges| ranges.len()).sum::<usize>()
    }

    /// Whether its bytes are within their bound.
    fn fits(&self) -> bool {
        let bytes = |of: fn(&Ranges) -> usize| 2 + self.all().into_iter().map(of).sum::<usize>();
        bytes(Ranges::bytes_max) <= STREAM_STATE_BYTES_MAX || bytes(Ranges::bytes) <= STREAM_STATE_BYTES_MAX
    }

    /// Keeps it from growing in the middle of an event: putting an id into its place costs as much as there are ranges.
    pub(crate) fn bound(&mut self) {
        if self.all().iter().map(|ranges| ranges.len()).sum::<usize>() > RANGES_MAX {
            self.shrink();
        }
    }

    fn all(&self) -> [&Ranges; 4] {
        [&self.secret, &self.blocked, &self.masked, &self.open]
    }

    /// Leaves out what does not fit.
    pub(crate) fn shrink(&mut self) {
        if self.fits() {
            return;
        }
        // In this order: a node that is not open is masked whether it is listed or not.
        self.masked.clear();
        if !self.fits() {
            self.open.clear();
        }
        if !self.fits() {
            self.blocked.clear();
        }
        if !self.fits() {
            self.secret.clear();
            self.missed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges(count: u32, from: u32) -> Ranges {
        let mut ranges = Ranges::default();
        (0..count).for_each(|number| ranges.insert(from + number * 3));
        ranges
    }

    #[test]
    fn a_state_that_does_not_fit_masks_more() {
        let many = STREAM_STATE_BYTES_MAX as u32;
        let state = |open, secret, blocked| StreamState {
            open: ranges(open, 9_000),
            secret: ranges(secret, 5),
            blocked: ranges(blocked, 5),
            masked: ranges(open / 2, 7),
            missed: false,
        };
        let kept = |state: StreamState| {
            let bytes = state.encode();
            assert!(bytes.len() <= STREAM_STATE_BYTES_MAX, "{} bytes", bytes.len());
            let kept = StreamState::decode(&bytes).unwrap();
            (kept.open.len(), kept.secret.len(), kept.blocked.len(), kept.missed)
        };
        assert_eq!(kept(state(2_000, 100, 100)), (2_000, 100, 100, false));
        assert_eq!(kept(state(many, 100, 100)), (0, 100, 100, false));
        assert_eq!(kept(state(many, 100, many)), (0, 100, 0, false));
        assert_eq!(kept(state(1, many, 1)), (0, 0, 0, true));
    }

    #[test]
    fn states_are_read_for_ever() {
        let mut state = StreamState { missed: true, ..StreamState::default() };
        [1, 2, 3, 7, 300].into_iter().for_each(|id| state.open.insert(id));
        state.secret.insert(5);
        state.blocked.insert(8);
        state.masked.insert(9);
        let golden = [1, 1, 1, 5, 0, 1, 8, 0, 1, 9, 0, 3, 1, 2, 4, 0, 0xa5, 2, 0];
        assert_eq!(state.encode(), golden);
        assert_eq!(StreamState::decode(&golden), Ok(state));
        assert_eq!(StreamState::decode(&[2]), Err(FormatError::Version(2)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(mut bytes: Vec<u8>) {
            if let Some(version) = bytes.first_mut() {
                *version = VERSION;
            }
            if let Ok(state) = StreamState::decode(&bytes) {
                prop_assert_eq!(StreamState::decode(&state.encode()), Ok(state));
            }
        }
    }
}
