//! Cuts a streamed body into events: one a line, or the elements of one JSON array.

use bytes::{Buf, Bytes, BytesMut};

/// The body ended in the middle, or is not what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SplitError {
    #[error("end within an event")]
    EndsWithin,
    #[error("bytes outside of the array")]
    Outside,
}

#[derive(Debug)]
enum Shape {
    Lines,
    Array(Place),
}

/// Where in the array a splitter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Before,
    /// After the opening bracket or an element.
    Between,
    /// In an element, this many brackets deep.
    Within {
        depth: u32,
        string: bool,
        escaped: bool,
    },
    After,
}

/// Takes pieces of a body and gives events.
#[derive(Debug)]
pub(crate) struct Splitter {
    shape: Shape,
    buffer: BytesMut,
    /// Up to here the buffer was looked at.
    seen: usize,
}

impl Splitter {
    pub(crate) fn lines() -> Self {
        Self { shape: Shape::Lines, buffer: BytesMut::new(), seen: 0 }
    }

    pub(crate) fn array() -> Self {
        Self { shape: Shape::Array(Place::Before), buffer: BytesMut::new(), seen: 0 }
    }

    pub(crate) fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// The next whole event; `None` when more of the body is needed.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, SplitError> {
        match self.shape {
            Shape::Lines => Ok(self.next_line()),
            Shape::Array(place) => self.next_element(place),
        }
    }

    /// To be called after the whole body: fails when it was cut off.
    pub(crate) fn finish(&self) -> Result<(), SplitError> {
        let whole = match self.shape {
            Shape::Lines => self.buffer.is_empty(),
            Shape::Array(place) => place == Place::After,
        };
        if whole { Ok(()) } else { Err(SplitError::EndsWithin) }
    }

    fn next_line(&mut self) -> Option<Bytes> {
        let Some(end) = self.buffer[self.seen..].iter().position(|byte| *byte == b'\n') else {
            self.seen = self.buffer.len();
            return None;
        };
        let line = self.buffer.split_to(self.seen + end).freeze();
        self.buffer.advance(1);
        self.seen = 0;
        Some(line)
    }

    fn next_element(&mut self, mut place: Place) -> Result<Option<Bytes>, SplitError> {
        while let Some(byte) = self.buffer.get(self.seen).copied() {
            let was = place;
            place = step(place, byte)?;
            let within = matches!(was, Place::Within { .. });
            if within && !matches!(place, Place::Within { .. }) {
                let mut element = self.buffer.split_to(self.seen);
                element.truncate(element.trim_ascii_end().len());
                self.buffer.advance(1);
                self.seen = 0;
                self.shape = Shape::Array(place);
                return Ok(Some(element.freeze()));
            }
            if within || matches!(place, Place::Within { .. }) {
                self.seen += 1;
            } else {
                self.buffer.advance(1);
            }
        }
        self.shape = Shape::Array(place);
        Ok(None)
    }
}

fn step(place: Place, byte: u8) -> Result<Place, SplitError> {
    let space = byte.is_ascii_whitespace();
    Ok(match (place, byte) {
        (Place::Before, b'[') => Place::Between,
        (Place::Before | Place::Between | Place::After, _) if space => place,
        (Place::Before | Place::After, _) => return Err(SplitError::Outside),
        (Place::Between, b']') => Place::After,
        (Place::Between, b',') => return Err(SplitError::Outside),
        (Place::Between, b'"') => Place::Within { depth: 0, string: true, escaped: false },
        (Place::Between, b'{' | b'[') => Place::Within { depth: 1, string: false, escaped: false },
        (Place::Between, _) => Place::Within { depth: 0, string: false, escaped: false },
        (Place::Within { depth, string: true, escaped }, _) => {
            let string = escaped || byte != b'"';
            Place::Within { depth, string, escaped: !escaped && byte == b'\\' }
        }
        (Place::Within { depth: 0, .. }, b',') => Place::Between,
        (Place::Within { depth: 0, .. }, b']') => Place::After,
        (Place::Within { depth, .. }, b'"') => Place::Within { depth, string: true, escaped: false },
        (Place::Within { depth, .. }, b'{' | b'[') => Place::Within { depth: depth + 1, string: false, escaped: false },
        (Place::Within { depth, .. }, b'}' | b']') => {
            let depth = depth.checked_sub(1).ok_or(SplitError::Outside)?;
            Place::Within { depth, string: false, escaped: false }
        }
        (Place::Within { .. }, _) => place,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Splits a body that comes in pieces of every length, and expects the same each time.
    fn check(splitter: fn() -> Splitter, body: &str, expected: &[&str], finished: Result<(), SplitError>) {
        for length in 1..=body.len().max(1) {
            let mut splitter = splitter();
            let mut found = Vec::new();
            for piece in body.as_bytes().chunks(length) {
                splitter.push(piece);
                while let Some(event) = splitter.next().expect("well formed so far") {
                    found.push(String::from_utf8(event.to_vec()).expect("UTF-8"));
                }
            }
            assert_eq!(found, expected, "pieces of {length}");
            assert_eq!(splitter.finish(), finished, "pieces of {length}");
        }
    }

    #[test]
    fn lines_are_cut_at_their_ends() {
        check(Splitter::lines, "{\"a\":1}\n{\"b\":[2]}\n", &["{\"a\":1}", "{\"b\":[2]}"], Ok(()));
        check(Splitter::lines, "", &[], Ok(()));
        check(Splitter::lines, "{\"a\":1}\n{\"b\":", &["{\"a\":1}"], Err(SplitError::EndsWithin));
    }

    #[test]
    fn elements_of_an_array_are_cut_where_they_end() {
        let body = " [ {\"a\":\"]},\\\"[{\"} ,\n{\"b\":[[1],{\"c\":\"\\\\\"}]}, 7 ,\"x,]\" ] ";
        let expected = ["{\"a\":\"]},\\\"[{\"}", "{\"b\":[[1],{\"c\":\"\\\\\"}]}", "7", "\"x,]\""];
        check(Splitter::array, body, &expected, Ok(()));
        check(Splitter::array, "[]", &[], Ok(()));
        check(Splitter::array, "[{\"a\":1},{\"b\"", &["{\"a\":1}"], Err(SplitError::EndsWithin));
        check(Splitter::array, "[{\"a\":1}", &[], Err(SplitError::EndsWithin));
        check(Splitter::array, "", &[], Err(SplitError::EndsWithin));
    }

    #[test]
    fn what_stands_outside_of_the_array_is_a_fault() {
        for body in ["{}", "[]x", "[,1]", "[1]]"] {
            let mut splitter = Splitter::array();
            splitter.push(body.as_bytes());
            let outcome = std::iter::repeat_with(|| splitter.next()).take(8).find(|outcome| outcome.is_err());
            assert_eq!(outcome, Some(Err(SplitError::Outside)), "{body}");
        }
    }
}
