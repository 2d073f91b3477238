//! What the fuzz targets share: seeds, and parts that samples are made of.
//!
//! A target is one file below `fuzz/targets/`: seeds made by the real encoders, and what must hold for any bytes whatever. Each
//! asserts more than that nothing panics: what is read is written and read again as the same, bounds hold, what was not sealed
//! or signed does not pass. `fuzz/run` runs them.

use std::path::Path;

use schemas::limits::KIB;
use schemas::record::Consent;
use schemas::token::{AUDIENCE, LinkClaims};
use schemas::{BatchFacts, LinkId, ReceiptId, SessionId, SessionKey, WorkspaceId};
use uuid::Uuid;

/// Where the seeds go. Not set when an input is repeated by hand.
const CORPUS: &str = "FUZZ_CORPUS";

/// Writes the seeds into the corpus, over those of an earlier build: libFuzzer reads the corpus after this.
pub fn plant(seeds: impl IntoIterator<Item = Vec<u8>>) {
    let Some(corpus) = std::env::var_os(CORPUS) else { return };
    for (number, seed) in seeds.into_iter().enumerate() {
        let path = Path::new(&corpus).join(format!("seed-{number}"));
        std::fs::write(&path, seed).unwrap_or_else(|error| panic!("write seed {}: {error}", path.display()));
    }
}

/// A session.
pub fn session() -> SessionKey {
    SessionKey { workspace: WorkspaceId(Uuid::from_u128(1)), session: SessionId(Uuid::from_u128(2)) }
}

/// A consent.
pub fn consent() -> Consent {
    Consent {
        link: LinkId(Uuid::from_u128(3)),
        consented_at_ms: 1_790_000_000_000,
        notice_version: "2026-03".into(),
        receipt: ReceiptId(Uuid::from_u128(4)),
    }
}

/// What a link's token says that begins one session, from any origin, for ever.
pub fn link() -> LinkClaims {
    LinkClaims {
        aud: AUDIENCE.into(),
        ws: session().workspace,
        lnk: consent().link,
        iat: 0,
        exp: u64::MAX,
        org: Vec::new(),
        max: 1,
        lim: [u64::MAX; 6],
        msk: None,
    }
}

/// A body of all that is found in events: a full snapshot, a page, a click, an input, failed requests, a console error.
pub const BODY: &str = r#"[{"type":2,"timestamp":1790000000000,"data":{"node":{"type":0,"childNodes":[],"id":1}}},
    {"type":4,"timestamp":1790000000001.5,"data":{"href":"https://app.example/a?b#c"}},
    {"type":3,"timestamp":1790000000100,"data":{"source":2,"type":2,"id":7}},
    {"type":3,"timestamp":1790000000200,"data":{"source":5,"text":"*","id":8}},
    {"type":6,"timestamp":3,"data":{"plugin":"rrweb/network@1","payload":{"requests":[{"status":404},{"error":"x"}]}}},
    {"type":6,"timestamp":-3,"data":{"plugin":"rrweb/console@1","payload":{"level":"error","trace":[]}}}]"#;

/// The facts of [`BODY`], as the edge finds them.
pub fn facts() -> BatchFacts {
    masking::read(BODY.as_bytes(), &masking::Rules::default()).expect("the sample is a body of events").facts
}

/// A zstd frame that holds these bytes as they are (RFC 8878, one raw block): footers are compressed, and compressing each input
/// would cost more than reading it.
pub fn frame(raw: &[u8]) -> Vec<u8> {
    const MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
    const SINGLE_SEGMENT_WITH_SIZE: u8 = 0xa0;
    const BLOCK_BYTES_MAX: usize = 128 * KIB;
    assert!(raw.len() <= BLOCK_BYTES_MAX, "fuzz/run bounds inputs well below this");
    let len = raw.len() as u32;
    let last_raw_block = len << 3 | 1;
    [&MAGIC, [SINGLE_SEGMENT_WITH_SIZE].as_slice(), &len.to_le_bytes(), &last_raw_block.to_le_bytes()[..3], raw]
        .concat()
}
