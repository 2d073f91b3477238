//! Which ranges of objects are fetched for a reading: neighbouring frames together, in the order in which they are wanted, some
//! ahead, and never more than a bound at once. No I/O.

use std::collections::BTreeMap;

use bytes::Bytes;
use schemas::codec::FormatError;
use schemas::limits::{KIB, MIB};

/// A window ends before it grows beyond this, unless one frame alone is longer.
const WINDOW_BYTES: u64 = MIB as u64;
/// Bytes that nobody wants are fetched along where a request of their own for what follows would take longer: at some 80 MB/s
/// and 20 ms to the first byte, as S3 is known for.
const GAP_BYTES_MAX: u64 = 256 * KIB as u64;
/// Windows that are fetched at once.
const ASKED_AT_ONCE_MAX: usize = 8;

/// A range of an object that is to be fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask {
    /// The window's number, by which its bytes are given.
    pub window: usize,
    /// The object, by its number among the sources.
    pub object: usize,
    /// Where it begins.
    pub at: u64,
    /// Its length.
    pub len: u64,
}

#[derive(Debug)]
enum State {
    Idle,
    Asked,
    Held(Bytes),
}

#[derive(Debug)]
struct Window {
    object: usize,
    at: u64,
    len: u64,
    /// Frames in it that will be asked for, each as often as that.
    uses: u64,
    /// The first that wants it.
    first: usize,
    state: State,
}

/// The windows of one reading.
#[derive(Debug)]
pub struct Windows {
    /// In the order in which they are wanted.
    list: Vec<Window>,
    /// By object, where each begins.
    places: BTreeMap<(usize, u64), usize>,
    /// The first that was not fetched ahead.
    ahead: usize,
    asked: usize,
    /// Bytes that are held or were asked for.
    held: u64,
    held_max: u64,
}

impl Windows {
    /// Windows over frames, which are given as (object, at, length) in the order in which they are wanted. `held_max` bytes are
    /// held at most, and always one window.
    pub(super) fn new(frames: impl IntoIterator<Item = (usize, u64, u64)>, held_max: u64) -> Self {
        // Of each frame its length, how often it is wanted, and when first.
        let mut wanted: BTreeMap<(usize, u64), (u64, u64, usize)> = BTreeMap::new();
        for (first, (object, at, len)) in frames.into_iter().enumerate() {
            wanted.entry((object, at)).or_insert((len, 0, first)).1 += 1;
        }
        let mut list: Vec<Window> = Vec::new();
        for ((object, at), (len, uses, first)) in wanted {
            let end = at.saturating_add(len);
            match list.last_mut() {
                Some(last)
                    if last.object == object
                        && at.saturating_sub(last.at + last.len) <= GAP_BYTES_MAX
                        && end.saturating_sub(last.at) <= WINDOW_BYTES =>
                {
                    last.len = last.len.max(end - last.at);
                    last.uses += uses;
                    last.first = last.first.min(first);
                }
                _ => list.push(Window { object, at, len, uses, first, state: State::Idle }),
            }
        }
        list.sort_unstable_by_key(|window| window.first);
        let places = list.iter().enumerate().map(|(number, window)| ((window.object, window.at), number)).collect();
        Self { list, places, ahead: 0, asked: 0, held: 0, held_max }
    }

    /// Bytes that are held or were asked for.
    pub fn held(&self) -> u64 {
        self.held
    }

    fn find(&self, object: usize, at: u64) -> Result<usize, FormatError> {
        let before = self.places.range((object, 0)..=(object, at)).next_back();
        before.map(|(_, number)| *number).ok_or(FormatError::Field("window"))
    }

    /// The bytes of a frame, or the window that has to be fetched for it.
    pub(super) fn frame(&self, object: usize, at: u64, len: u64) -> Result<Result<Bytes, usize>, FormatError> {
        let number = self.find(object, at)?;
        let window = &self.list[number];
        let State::Held(bytes) = &window.state else { return Ok(Err(number)) };
        let start = (at - window.at) as usize;
        let end = start.checked_add(len as usize).filter(|end| *end <= bytes.len()).ok_or(FormatError::Truncated)?;
        Ok(Ok(bytes.slice(start..end)))
    }

    /// A frame was used. A window that nobody wants any more is let go of.
    pub(super) fn used(&mut self, object: usize, at: u64) {
        let Ok(number) = self.find(object, at) else { return };
        let window = &mut self.list[number];
        window.uses = window.uses.saturating_sub(1);
        if window.uses == 0 && matches!(window.state, State::Held(_)) {
            window.state = State::Idle;
            self.held -= window.len;
        }
    }

    /// What to fetch when this window is waited for: itself, unless that was asked for before, and the next ones as far as
    /// there is room.
    pub fn ask(&mut self, wanted: usize) -> Vec<Ask> {
        let mut asks = Vec::new();
        if let Some(Window { state: State::Idle, len, .. }) = self.list.get(wanted) {
            let len = *len;
            self.make_room(len, wanted);
            asks.extend(self.take(wanted));
        }
        while self.asked < ASKED_AT_ONCE_MAX
            && let Some(next) = self.list.get(self.ahead)
        {
            if matches!(next.state, State::Idle) && next.uses > 0 {
                if self.held + next.len > self.held_max {
                    break;
                }
                asks.extend(self.take(self.ahead));
            }
            self.ahead += 1;
        }
        asks
    }

    fn take(&mut self, number: usize) -> Option<Ask> {
        let window = self.list.get_mut(number)?;
        window.state = State::Asked;
        self.asked += 1;
        self.held += window.len;
        Some(Ask { window: number, object: window.object, at: window.at, len: window.len })
    }

    /// Lets go of windows that are wanted last; they will be fetched again.
    fn make_room(&mut self, len: u64, wanted: usize) {
        for number in (0..self.list.len().min(self.ahead)).rev().filter(|number| *number != wanted) {
            if self.held + len <= self.held_max {
                return;
            }
            let window = &mut self.list[number];
            if matches!(window.state, State::Held(_)) {
                window.state = State::Idle;
                self.held -= window.len;
            }
        }
    }

    /// The bytes of a window.
    pub fn supply(&mut self, number: usize, bytes: Bytes) {
        if let Some(window @ Window { state: State::Asked, .. }) = self.list.get_mut(number) {
            window.state = State::Held(bytes);
            self.asked -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: u64 = WINDOW_BYTES;

    fn asks(windows: &mut Windows, wanted: usize) -> Vec<(usize, u64, u64)> {
        windows.ask(wanted).into_iter().map(|ask| (ask.object, ask.at, ask.len)).collect()
    }

    #[test]
    fn neighbours_are_fetched_together_and_what_comes_next_ahead() {
        let far = 30 + GAP_BYTES_MAX;
        let frames =
            [(0, 0, 10), (0, 10, 20), (0, far, 5), (1, 5, WINDOW), (1, 5 + WINDOW, 9), (0, far + 6 + GAP_BYTES_MAX, 1)];
        let mut windows = Windows::new(frames, 10 * WINDOW);
        assert_eq!(windows.frame(0, 10, 20), Ok(Err(0)));
        let expected = [(0, 0, far + 5), (1, 5, WINDOW), (1, 5 + WINDOW, 9), (0, far + 6 + GAP_BYTES_MAX, 1)];
        assert_eq!(asks(&mut windows, 0), expected);
        assert_eq!(windows.ask(0), []);
        windows.supply(0, Bytes::from(vec![7; far as usize + 5]));
        assert_eq!(windows.frame(0, 10, 20), Ok(Ok(Bytes::from(vec![7; 20]))));
        assert_eq!(windows.frame(0, 10, far), Err(FormatError::Truncated));
        assert_eq!(windows.frame(2, 0, 1), Err(FormatError::Field("window")));
    }

    proptest! {
        /// Goal: every frame is got, no more than the bound is held, and without much ahead of room nothing is fetched twice.
        #[test]
        fn all_frames_come_within_the_bound(
            frames in prop::collection::vec((0..3_usize, 0..200_u64), 1..100),
            held_max in WINDOW..8 * WINDOW,
        ) {
            const LEN: u64 = 100_000;
            let frames: Vec<_> = frames.into_iter().map(|(object, at)| (object, at * LEN, LEN)).collect();
            let mut windows = Windows::new(frames.clone(), held_max);
            let mut under_way = Vec::new();
            for (object, at, len) in frames {
                let mut fetched = 0;
                let bytes = loop {
                    match windows.frame(object, at, len).unwrap() {
                        Ok(bytes) => break bytes,
                        Err(window) => {
                            under_way.extend(windows.ask(window));
                            prop_assert!(windows.held <= held_max.max(WINDOW) + WINDOW, "{} held", windows.held);
                            let place = under_way.iter().position(|ask: &Ask| ask.window == window).unwrap();
                            let ask = under_way.swap_remove(place);
                            windows.supply(ask.window, vec![ask.object as u8; ask.len as usize].into());
                            fetched += 1;
                            prop_assert_eq!(fetched, 1);
                        }
                    }
                };
                prop_assert!(bytes.len() as u64 == len && bytes[0] == object as u8);
                windows.used(object, at);
            }
            let left: u64 = under_way.iter().map(|ask| ask.len).sum();
            prop_assert_eq!(windows.held, left, "nothing is held in the end");
        }
    }
}
