//! Records of the topic `session-events`: an envelope in clear, then a header and a payload, sealed as one.
//!
//! The envelope, version 1: magic `CLVR`, version (1 byte), and what opening needs: epoch (4 bytes), salt (16), number (8).
//! Sealed behind it: kind (1 byte), the header's fields, then the payload to the end. A batch that its edge masked is of another
//! kind than one of a release before, and has the link's masking rules before its facts. The payload of a batch is one zstd
//! frame: the batch's events, each followed by a newline. The consent facts stand in every record, so that an index row with
//! bytes and without consent cannot come to be (S1). Who a record belongs to is in the sealed part only; the record's key,
//! the session's id, is bound in, see `sealing::transport`.

use crate::codec::{FormatError, Reader, Writer};
use crate::facts::BatchFacts;
use crate::ids::{LinkId, ReceiptId, SessionId, SessionKey, StreamSeq, WorkspaceId};
use crate::limits;

const MAGIC: &[u8; 4] = b"CLVR";
/// The version that is written.
pub const VERSION: u8 = 1;
/// Versions that are read. As with objects, see [`crate::object::ObjectKind::read`]: a version is written only once all
/// readers of a deployment know it, and is read for ever.
pub const READ: &[u8] = &[1];
/// Bytes of the envelope.
pub const ENVELOPE_BYTES: usize = 33;
const KIND_ACCEPTANCE: u8 = 1;
const KIND_BATCH: u8 = 2;
const KIND_DECLINES: u8 = 3;
/// A batch that an edge has looked through. Readers of releases before set such records aside, and can replay them.
const KIND_MASKED_BATCH: u8 = 4;

/// What stands in clear before a record's sealed part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Envelope {
    /// The epoch whose key seals.
    pub epoch: u32,
    /// What the producing process drew at random for its own key.
    pub salt: [u8; 16],
    /// The number of the record within its process.
    pub number: u64,
}

impl Envelope {
    /// The envelope's bytes.
    pub fn to_bytes(&self) -> [u8; ENVELOPE_BYTES] {
        let mut bytes = [0; ENVELOPE_BYTES];
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4] = VERSION;
        bytes[5..9].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[9..25].copy_from_slice(&self.salt);
        bytes[25..].copy_from_slice(&self.number.to_le_bytes());
        bytes
    }

    /// A record's envelope, and its sealed part.
    pub fn read(record: &[u8]) -> Result<(Self, &[u8]), FormatError> {
        let mut reader = Reader::new(record);
        if &reader.array::<4>()? != MAGIC {
            return Err(FormatError::Magic);
        }
        let version = reader.u8()?;
        if !READ.contains(&version) {
            return Err(FormatError::Version(version));
        }
        let envelope = Self {
            epoch: u32::from_le_bytes(reader.array()?),
            salt: reader.array()?,
            number: u64::from_le_bytes(reader.array()?),
        };
        Ok((envelope, reader.rest()))
    }
}

/// What an end user agreed to, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Consent {
    /// The link that was opened.
    pub link: LinkId,
    /// When the end user accepted, in milliseconds since the epoch, by the edge's clock.
    pub consented_at_ms: u64,
    /// The notice that was shown.
    pub notice_version: String,
    /// The receipt of this consent.
    pub receipt: ReceiptId,
}

/// How a batch is to be masked, and what its edge did of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Masking {
    /// The link's masking rules in their JSON form; none for the default ones.
    pub rules: Option<String>,
    /// Whether there is more to be masked by who knows the stream, or what is in the batch matters for the batches after it.
    pub needs_state: bool,
}

/// The header of a record.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly every record is a batch: a box for each would cost more than it saves"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Header {
    /// The session's first record.
    Acceptance {
        /// The session that begins.
        key: SessionKey,
        /// What was agreed to.
        consent: Consent,
    },
    /// Events.
    Batch {
        /// The session.
        key: SessionKey,
        /// What was agreed to.
        consent: Consent,
        /// The batch's place.
        place: StreamSeq,
        /// Whether it is the last of its stream.
        end: bool,
        /// How it is to be masked; none where its edge, of a release before, masked nothing.
        masking: Option<Masking>,
        /// What the edge found in it.
        facts: BatchFacts,
    },
    /// A sum of declines of one workspace. It names no link and no person.
    Declines {
        /// The workspace.
        workspace: WorkspaceId,
        /// The start of the hour, in milliseconds since the epoch.
        hour_ms: u64,
        /// How many.
        count: u32,
    },
}

fn write_session(writer: &mut Writer, key: &SessionKey, consent: &Consent) {
    writer.raw(key.workspace.as_bytes());
    writer.raw(key.session.as_bytes());
    writer.raw(consent.link.as_bytes());
    writer.raw(consent.receipt.as_bytes());
    writer.uint(consent.consented_at_ms);
    writer.bytes(consent.notice_version.as_bytes());
}

fn read_session(reader: &mut Reader<'_>) -> Result<(SessionKey, Consent), FormatError> {
    let key = SessionKey {
        workspace: WorkspaceId::from_bytes(reader.array()?),
        session: SessionId::from_bytes(reader.array()?),
    };
    let link = LinkId::from_bytes(reader.array()?);
    let receipt = ReceiptId::from_bytes(reader.array()?);
    let consented_at_ms = reader.uint()?;
    let notice_version = reader.text(limits::NOTICE_VERSION_BYTES_MAX, "notice_version")?.to_owned();
    // Postgres takes no such text: a record with it would hold up its partition for ever.
    if notice_version.contains('\0') {
        return Err(FormatError::Field("notice_version"));
    }
    Ok((key, Consent { link, consented_at_ms, notice_version, receipt }))
}

/// XXH3 of a record as the log has it, its key included: tells a log from one that was made anew under its name. No secret
/// and no proof against forgery; whoever can write to the topic could write records that pass.
pub fn fingerprint(record_key: &[u8], value: &[u8]) -> u64 {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    hash.update(&(record_key.len() as u64).to_le_bytes());
    hash.update(record_key);
    hash.update(value);
    hash.digest()
}

/// The bytes of a header; its payload follows them.
pub fn encode(header: &Header) -> Vec<u8> {
    let mut writer = Writer::new();
    match header {
        Header::Acceptance { key, consent } => {
            writer.u8(KIND_ACCEPTANCE);
            write_session(&mut writer, key, consent);
        }
        Header::Batch { key, consent, place, end, masking, facts } => {
            writer.u8(if masking.is_some() { KIND_MASKED_BATCH } else { KIND_BATCH });
            write_session(&mut writer, key, consent);
            writer.uint(u64::from(place.stream()));
            writer.uint(u64::from(place.seq()));
            writer.u8(u8::from(*end));
            if let Some(Masking { rules, needs_state }) = masking {
                writer.u8(u8::from(*needs_state));
                writer.bytes(rules.as_deref().unwrap_or_default().as_bytes());
            }
            facts.write(&mut writer);
        }
        Header::Declines { workspace, hour_ms, count } => {
            writer.u8(KIND_DECLINES);
            writer.raw(workspace.as_bytes());
            writer.uint(*hour_ms);
            writer.uint(u64::from(*count));
        }
    }
    writer.into_bytes()
}

/// The header of a record that was opened, and where in `bytes` its payload begins.
pub fn decode(bytes: &[u8]) -> Result<(Header, usize), FormatError> {
    let mut reader = Reader::new(bytes);
    let header = match reader.u8()? {
        KIND_ACCEPTANCE => {
            let (key, consent) = read_session(&mut reader)?;
            Header::Acceptance { key, consent }
        }
        kind @ (KIND_BATCH | KIND_MASKED_BATCH) => {
            let (key, consent) = read_session(&mut reader)?;
            let stream = reader.uint32("stream")?;
            let seq = reader.uint32("seq")?;
            let place = StreamSeq::new(stream, seq).ok_or(FormatError::Field("stream"))?;
            let end = reader.flag("end")?;
            let masking = if kind == KIND_MASKED_BATCH {
                let needs_state = reader.flag("needs_state")?;
                let rules = reader.text(limits::MASKING_BYTES_MAX, "masking")?;
                Some(Masking { rules: Some(rules.to_owned()).filter(|rules| !rules.is_empty()), needs_state })
            } else {
                None
            };
            Header::Batch { key, consent, place, end, masking, facts: BatchFacts::read(&mut reader)? }
        }
        KIND_DECLINES => Header::Declines {
            workspace: WorkspaceId::from_bytes(reader.array()?),
            hour_ms: reader.uint()?,
            count: reader.uint32("count")?,
        },
        _ => return Err(FormatError::Field("kind")),
    };
    Ok((header, bytes.len() - reader.rest().len()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::facts::Urls;

    fn sample() -> Header {
        Header::Batch {
            key: SessionKey { workspace: WorkspaceId(Uuid::from_u128(1)), session: SessionId(Uuid::from_u128(2)) },
            consent: Consent {
                link: LinkId(Uuid::from_u128(3)),
                consented_at_ms: 1_790_000_000_000,
                notice_version: "2026-03".into(),
                receipt: ReceiptId(Uuid::from_u128(4)),
            },
            place: StreamSeq::new(77, 12).expect("31 bits"),
            end: true,
            masking: Some(Masking { rules: Some("{\"text\":\"all\"}".into()), needs_state: true }),
            facts: BatchFacts {
                events: 3,
                raw_bytes: 400,
                ts_min: -5,
                ts_max: 1_790_000_000_123,
                kinds: [0, 0, 1, 2, 0, 0, 0, 0],
                pages: 1,
                errors: 2,
                full_snapshot: true,
                content_hash: 0xdead_beef,
                active_ms: 70_000,
                interacted: Some((0, 1_790_000_000_100)),
                clicks: 2,
                keypresses: 7,
                console: [1, 0, 3, 0],
                failed_requests: 1,
                urls: Urls::new(["https://app.example/cart"]),
                stored_hash: None,
                masked: 0,
                dropped: 0,
            },
        }
    }

    #[test]
    fn records_read_back_with_their_payload() {
        let bytes = [encode(&sample()).as_slice(), b"payload"].concat();
        let (header, at) = decode(&bytes).expect("own bytes");
        assert_eq!(header, sample());
        assert_eq!(&bytes[at..], b"payload");
    }

    #[test]
    fn a_batch_without_rules_and_one_of_a_release_before_read_back() {
        for without in [None, Some(Masking::default())] {
            let mut header = sample();
            let Header::Batch { masking, .. } = &mut header else { panic!("the sample is a batch") };
            masking.clone_from(&without);
            let bytes = encode(&header);
            assert_eq!(bytes[0], if without.is_some() { KIND_MASKED_BATCH } else { KIND_BATCH });
            assert_eq!(decode(&bytes), Ok((header, bytes.len())));
        }
    }

    #[test]
    fn a_notice_version_that_the_index_cannot_hold_is_refused() {
        let key = SessionKey { workspace: WorkspaceId(Uuid::from_u128(1)), session: SessionId(Uuid::from_u128(2)) };
        let consent = Consent {
            link: LinkId(Uuid::from_u128(3)),
            consented_at_ms: 0,
            notice_version: "v\0".into(),
            receipt: ReceiptId(Uuid::from_u128(4)),
        };
        let bytes = encode(&Header::Acceptance { key, consent });
        assert_eq!(decode(&bytes), Err(FormatError::Field("notice_version")));
    }

    #[test]
    fn every_truncation_of_a_header_is_an_error() {
        let bytes = encode(&sample());
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn envelopes_read_back_and_strangers_are_refused() {
        let envelope = Envelope { epoch: 7, salt: [9; 16], number: u64::MAX - 1 };
        let record = [envelope.to_bytes().as_slice(), b"sealed"].concat();
        assert_eq!(Envelope::read(&record), Ok((envelope, b"sealed".as_slice())));
        for len in 0..ENVELOPE_BYTES {
            assert_eq!(Envelope::read(&record[..len]), Err(FormatError::Truncated), "{len} bytes");
        }
        let changed = |at: usize| {
            let mut record = record.clone();
            record[at] ^= 3;
            record
        };
        assert_eq!(Envelope::read(&changed(0)), Err(FormatError::Magic));
        assert_eq!(Envelope::read(&changed(4)), Err(FormatError::Version(VERSION ^ 3)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_without_panic(mut bytes: Vec<u8>, ours: bool) {
            if ours {
                let mut whole = encode(&sample());
                for (at, byte) in bytes.iter().enumerate() {
                    let len = whole.len();
                    whole[(at * 31 + usize::from(*byte)) % len] ^= byte;
                }
                bytes = whole;
            }
            let _ = decode(&bytes);
        }
    }
}
