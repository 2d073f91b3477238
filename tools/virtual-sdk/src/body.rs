//! Bodies of `POST /v1/events`: the same events in each form and encoding that an edge takes.
//!
//! A body is made once and can be sent any number of times, so that a retry repeats the same bytes and a load
//! generator compresses nothing while it measures.

use std::io::{self, Write};

use bytes::Bytes;

use crate::recordings::Batch;

/// As fast as a browser's own gzip, and about as good.
const GZIP_LEVEL: flate2::Compression = flate2::Compression::new(6);
const ZSTD_LEVEL: i32 = 3;

/// How a body is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// Not at all.
    Identity,
    /// gzip, as browsers can.
    Gzip,
    /// zstd.
    Zstd,
}

impl Encoding {
    /// Every encoding.
    pub const ALL: [Self; 3] = [Self::Identity, Self::Gzip, Self::Zstd];

    /// The value of `Content-Encoding`; none for [`Encoding::Identity`].
    pub fn header(self) -> Option<&'static str> {
        match self {
            Self::Identity => None,
            Self::Gzip => Some("gzip"),
            Self::Zstd => Some("zstd"),
        }
    }

    /// Compresses.
    pub fn encode(self, raw: Vec<u8>) -> io::Result<Bytes> {
        match self {
            Self::Identity => Ok(raw.into()),
            Self::Gzip => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::with_capacity(raw.len() / 4), GZIP_LEVEL);
                gzip.write_all(&raw)?;
                gzip.finish().map(Bytes::from)
            }
            Self::Zstd => zstd::bulk::compress(&raw, ZSTD_LEVEL).map(Bytes::from),
        }
    }
}

/// How events are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Form {
    /// A JSON array.
    Array,
    /// One event a line.
    Lines,
    /// As `sendBeacon` sends: no headers, the token in the first line, one event a line. Never compressed.
    Beacon,
}

impl Form {
    /// The value of `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Array => "application/json",
            Self::Lines => "application/x-ndjson",
            Self::Beacon => "text/plain",
        }
    }
}

/// A body that can be sent.
#[derive(Debug, Clone)]
pub struct Body {
    /// What goes over the wire, for a beacon without its first line.
    pub bytes: Bytes,
    /// Its form.
    pub form: Form,
    /// Its encoding.
    pub encoding: Encoding,
}

impl Body {
    /// These events in this form and encoding; a beacon takes no encoding.
    pub fn of<'a>(events: impl IntoIterator<Item = &'a str>, form: Form, encoding: Encoding) -> io::Result<Self> {
        let encoding = if form == Form::Beacon { Encoding::Identity } else { encoding };
        let mut raw = Vec::new();
        if form == Form::Array {
            raw.push(b'[');
            for (index, event) in events.into_iter().enumerate() {
                if index > 0 {
                    raw.push(b',');
                }
                raw.extend_from_slice(event.as_bytes());
            }
            raw.push(b']');
        } else {
            for event in events {
                raw.extend_from_slice(event.as_bytes());
                raw.push(b'\n');
            }
        }
        Ok(Self { bytes: encoding.encode(raw)?, form, encoding })
    }

    /// A batch's events.
    pub fn of_batch(batch: &Batch, form: Form, encoding: Encoding) -> io::Result<Self> {
        Self::of(batch.events().iter().map(|event| event.get()), form, encoding)
    }

    /// A batch's events, and a mark after them.
    pub fn of_marked_batch(batch: &Batch, mark: &str, form: Form, encoding: Encoding) -> io::Result<Self> {
        Self::of(batch.events().iter().map(|event| event.get()).chain([mark]), form, encoding)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const EVENTS: [&str; 2] = ["{\"type\":4,\"timestamp\":1}", "{ \"type\":3,\"timestamp\":2.5 }"];

    #[test]
    fn each_encoding_decodes_to_the_same_bytes() {
        for (form, expected) in [
            (Form::Array, format!("[{},{}]", EVENTS[0], EVENTS[1])),
            (Form::Lines, format!("{}\n{}\n", EVENTS[0], EVENTS[1])),
        ] {
            for encoding in Encoding::ALL {
                let bytes = Body::of(EVENTS, form, encoding).expect("a body").bytes;
                let mut decoded = Vec::new();
                match encoding {
                    Encoding::Identity => decoded.extend_from_slice(&bytes),
                    Encoding::Gzip => {
                        flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut decoded).expect("gzip");
                    }
                    Encoding::Zstd => decoded = zstd::stream::decode_all(&bytes[..]).expect("zstd"),
                }
                assert_eq!(String::from_utf8(decoded).expect("UTF-8"), expected, "{form:?} {encoding:?}");
            }
        }
    }

    #[test]
    fn a_body_without_events_is_one_too_and_a_beacon_is_never_compressed() {
        assert_eq!(Body::of([], Form::Array, Encoding::Identity).expect("a body").bytes, "[]");
        assert_eq!(Body::of([], Form::Lines, Encoding::Identity).expect("a body").bytes, "");
        assert_eq!(Body::of(EVENTS, Form::Beacon, Encoding::Zstd).expect("a body").encoding, Encoding::Identity);
    }
}
