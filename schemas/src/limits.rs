//! Every bound of the system, with its unit in its name. Relations between bounds are asserted at compile time.

/// One kibibyte.
pub const KIB: usize = 1024;
/// One mebibyte.
pub const MIB: usize = 1024 * KIB;

/// The largest number of a stream: 31 bits.
pub const STREAM_MAX: u32 = (1 << 31) - 1;

/// Payload of one Kafka record, after compression.
pub const RECORD_PAYLOAD_BYTES_MAX: usize = 8 * MIB;
/// Envelope, header and seal of one Kafka record, and Kafka's own framing.
pub const RECORD_OVERHEAD_BYTES_MAX: usize = 64 * KIB;
/// `max.message.bytes` of the topics and `message.max.bytes` of the clients.
pub const KAFKA_MESSAGE_BYTES_MAX: usize = RECORD_PAYLOAD_BYTES_MAX + RECORD_OVERHEAD_BYTES_MAX;

/// Body of a request to the edge, as it comes over the wire.
pub const BODY_BYTES_MAX: usize = 8 * MIB;
/// Body of a request to the edge after decoding; a decompressor is stopped at this many bytes.
pub const DECODED_BYTES_MAX: usize = 24 * MIB;
/// `Content-Encoding: zstd` frames may ask for a window of at most 2^23 bytes (RFC 9659).
pub const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Body of a consent request, or of any JSON request but events.
pub const SMALL_BODY_BYTES_MAX: usize = 16 * KIB;
/// Events in one batch.
pub const BATCH_EVENTS_MAX: usize = 50_000;
/// Nesting of arrays and objects in one event. A DOM node costs two levels.
pub const JSON_DEPTH_MAX: usize = 1_024;
/// What the edge tells an SDK to stay below, before compression, so that a batch leaves also as a beacon's half.
pub const SDK_BATCH_BYTES: usize = 512 * KIB;
/// How often the edge tells an SDK to send, in milliseconds.
pub const SDK_FLUSH_INTERVAL_MS: u64 = 5_000;

/// Request line and headers of one request.
pub const HEAD_BYTES_MAX: usize = 32 * KIB;
/// Headers of one request.
pub const HEADERS_MAX: usize = 64;
/// Path and query of one request.
pub const URI_BYTES_MAX: usize = 2 * KIB;

/// A link or session token, in its compact form.
pub const TOKEN_BYTES_MAX: usize = 6 * KIB;
/// A clock may be off by this many seconds when tokens are checked.
pub const TOKEN_LEEWAY_S: u64 = 60;
/// Origins in a link's token.
pub const ORIGINS_MAX: usize = 8;
/// An origin.
pub const ORIGIN_BYTES_MAX: usize = 256;
/// Versions of the notice that a workspace accepts.
pub const NOTICE_VERSIONS_MAX: usize = 16;
/// Version of a consent notice.
pub const NOTICE_VERSION_BYTES_MAX: usize = 64;
/// The random text by which a consent can be repeated.
pub const ATTEMPT_BYTES_MAX: usize = 64;
/// Masking rules of a link, as JSON; they travel in tokens.
pub const MASKING_BYTES_MAX: usize = KIB;
/// A reference: an e-mail address, a ticket number.
pub const REFERENCE_BYTES_MAX: usize = 256;
/// A redirect URL.
pub const REDIRECT_URL_BYTES_MAX: usize = 2 * KIB;

/// The longest that a session may last, whatever its plan, in seconds.
pub const SESSION_S_MAX: u64 = 8 * 3600;
/// A session token is valid for this long after its session's length: whoever goes on is told why it ends. In seconds.
pub const SESSION_TOKEN_GRACE_S: u64 = 3600;
/// A deletion's entry on `control` counts for this long: longer than any token of the session, any kept key, and any process
/// that could still have either. In seconds.
pub const CONTROL_DELETION_KEPT_S: i64 = 48 * 3600;
/// An edge's word that a session has begun counts for this long: until the batcher has put it into the index, and the index
/// has told how far the link is used. In seconds.
pub const CONTROL_BEGUN_KEPT_S: i64 = 120;
/// An edge that has not been heard of for this long has no share of a workspace's limits any more. In seconds.
pub const CONTROL_EDGE_KEPT_S: i64 = 30;
/// How often an edge says that it is alive. In seconds.
pub const CONTROL_EDGE_INTERVAL_S: u64 = 10;
/// Sessions by name in the entry of a link that is nearly used up.
pub const EXHAUSTION_SESSIONS_MAX: usize = 100;
/// News on `control` are acted upon within this, or nothing is taken any more. In milliseconds.
pub const NEWS_SPREAD_MS: u64 = 5_000;
/// Entries that are taken out of the outbox in one transaction.
pub const OUTBOX_ROWS_MAX: usize = 1_000;
/// A link is valid for this long unless its maker says otherwise, in seconds.
pub const LINK_EXPIRES_IN_DEFAULT_S: u64 = 7 * 86_400;
/// The longest that a link can be valid, in seconds.
pub const LINK_EXPIRES_IN_MAX_S: u64 = 90 * 86_400;
/// Sessions that one link may begin, unless its maker says otherwise.
pub const LINK_SESSIONS_DEFAULT: u32 = 5;
/// The most sessions that one link may begin.
pub const LINK_SESSIONS_MAX: u32 = 10_000;

/// API keys of a workspace that are not revoked.
pub const API_KEYS_MAX: u32 = 100;
/// Days of usage that are given at once.
pub const USAGE_DAYS_MAX: i64 = 366;
/// Exports of one workspace at once, those that are being made and those that can be fetched.
pub const EXPORTS_MAX: u32 = 20;
/// A name of a workspace or an API key.
pub const NAME_BYTES_MAX: usize = 100;
/// Items of one page of a list.
pub const PAGE_ITEMS_MAX: u32 = 200;
/// Items of one page of a list, unless the caller says otherwise.
pub const PAGE_ITEMS_DEFAULT: u32 = 50;
/// Rows of the index that are looked through for one page of sessions, at most. A page of which fewer fit ends there, and the next
/// one goes on.
pub const LIST_ROWS_MAX: usize = 5_000;
/// Ranges of missing batches that a session's completeness lists.
pub const MISSING_RANGES_MAX: usize = 1_024;

/// A shared object is flushed when its chunks have this many bytes.
pub const FLUSH_BYTES: usize = 16 * MIB;
/// A part of an upload: the least that S3 takes, the last one apart. It takes 10,000 of them, so an object has 50 GB at most.
pub const S3_PART_BYTES: u64 = 5 * MIB as u64;
/// Parts of one upload that are under way at once.
pub const S3_PARTS_AT_ONCE: usize = 4;
/// zstd's level for session objects that may stay: written once, read for a year. Decisions/0013 has what others cost.
pub const SESSION_ZSTD_LEVEL: i32 = 9;
/// Raw bytes of events in one frame of a session object. Decisions/0013 has what other sizes cost.
pub const FRAME_RAW_BYTES: usize = 512 * KIB;
/// Raw bytes that a decoder of frames is ever asked for: a frame holds whole batches' events, and one event may be
/// as large as a batch.
pub const FRAME_RAW_BYTES_MAX: usize = DECODED_BYTES_MAX + FRAME_RAW_BYTES;
/// A record's key in the log, as it is kept with a record that could not be read. Ours have 16 bytes.
pub const RECORD_KEY_BYTES_MAX: usize = 256;
/// The facts of one batch in a header or footer, later releases' fields included.
pub const FACTS_BYTES_MAX: usize = 16 * KIB;
/// URLs of pages that the facts of one batch keep.
pub const BATCH_URLS_MAX: usize = 16;
/// URLs of pages that are kept of one session.
pub const SESSION_URLS_MAX: usize = 64;
/// The URL of a page: origin and path.
pub const PAGE_URL_BYTES_MAX: usize = 512;
/// All fields of a batch's facts but its URLs: 30 numbers of 10 bytes at most.
pub const FACTS_NUMBERS_BYTES_MAX: usize = 300;
/// The state by which one stream is masked, as it is noted behind the stream's events.
pub const STREAM_STATE_BYTES_MAX: usize = 16 * KIB;
/// Notes of streams behind one frame.
pub const STREAM_NOTES_MAX: usize = 64;
/// Bytes of all notes behind one frame.
pub const STREAM_NOTES_BYTES_MAX: usize = 512 * KIB;
/// A footer after decompression.
pub const FOOTER_RAW_BYTES_MAX: usize = 64 * MIB;

/// A line between a service and its keyring program, without its end.
pub const KEYRING_LINE_BYTES_MAX: usize = 16 * KIB;
/// Questions that a service has open at its keyring program, beside the one for its versions.
pub const KEYRING_QUESTIONS_MAX: usize = 64;
/// A keyring program that has not answered a question for this long, in milliseconds, is replaced.
pub const KEYRING_ANSWER_MS_MAX: u64 = 5_000;

const _: () = {
    assert!(BODY_BYTES_MAX <= DECODED_BYTES_MAX);
    assert!(SDK_BATCH_BYTES < BODY_BYTES_MAX);
    assert!(MASKING_BYTES_MAX + ORIGINS_MAX * ORIGIN_BYTES_MAX < TOKEN_BYTES_MAX);
    assert!(FACTS_BYTES_MAX < RECORD_OVERHEAD_BYTES_MAX / 2);
    assert!(FACTS_NUMBERS_BYTES_MAX + BATCH_URLS_MAX * (PAGE_URL_BYTES_MAX + 2) <= FACTS_BYTES_MAX);
    assert!(BATCH_URLS_MAX <= SESSION_URLS_MAX);
    assert!(PAGE_ITEMS_MAX as usize + 1 < LIST_ROWS_MAX);
    assert!(2 * STREAM_STATE_BYTES_MAX < STREAM_NOTES_BYTES_MAX);
    assert!(FLUSH_BYTES > RECORD_PAYLOAD_BYTES_MAX);
    assert!(TOKEN_BYTES_MAX < SMALL_BODY_BYTES_MAX);
    assert!(TOKEN_BYTES_MAX < HEAD_BYTES_MAX);
    assert!(CONTROL_DELETION_KEPT_S > 2 * (SESSION_S_MAX + SESSION_TOKEN_GRACE_S) as i64);
    assert!(CONTROL_EDGE_KEPT_S >= 3 * CONTROL_EDGE_INTERVAL_S as i64);
    assert!(CONTROL_BEGUN_KEPT_S * 1000 > 10 * NEWS_SPREAD_MS as i64);
    assert!(LINK_EXPIRES_IN_DEFAULT_S <= LINK_EXPIRES_IN_MAX_S);
};
