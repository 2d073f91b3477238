//! What sealing costs: beside the cipher alone, in the same run, on one core.
//!
//! Rounds of all ways alternate, so that whatever else the machine does meets them alike; the median over the rounds is
//! compared. The bound is the crate's bare AES-256-GCM over the same buffers, in place, with a counted nonce.

use std::fmt;
use std::hint::black_box;
use std::time::{Duration, Instant};

use aes_gcm::aead::{AeadInOut as _, KeyInit as _};
use aes_gcm::{Aes256Gcm, Nonce};
use anyhow::{Context, bail, ensure};
use clap::Args;
use schemas::record::{Consent, Header};
use schemas::shared_object::{BatchEntry, Chunk, Footer};
use schemas::{BatchFacts, LinkId, ObjectId, ReceiptId, SessionId, SessionKey, StreamSeq, WorkspaceId};
use sealing::Key;
use sealing::frames::{ChunkContext, ChunkKind, seal_chunk};
use sealing::keyring::KeyVersion;
use sealing::objects::{StorageKey, chunk_opener, frame_at, seal_shared_footer};
use sealing::transport::{EpochId, EpochKeys, LogPlace, RecordSealer};
use serde::Serialize;
use uuid::Uuid;

use crate::spread::Spread;

/// Sizes of frames: a small batch, a usual one, one of a busy page, a session object's.
const FRAME_BYTES: [usize; 4] = [1 << 10, 16 << 10, 64 << 10, 256 << 10];
/// Bytes of one round of each way.
const ROUND_BYTES: usize = 8 << 20;
/// Frames of a chunk.
const CHUNK_FRAMES: usize = 8;

/// What a run is asked to do.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// How long is measured, in seconds, over all sizes.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    pub seconds: u64,
}

/// One size of frames, in MB/s.
#[derive(Debug, Clone, Serialize)]
struct Row {
    frame_bytes: usize,
    rounds: usize,
    /// The crate's cipher alone.
    bare_seal: Spread,
    seal_chunk: Spread,
    seal_record: Spread,
    open_chunk: Spread,
    open_record: Spread,
}

/// Bytes that seals add.
#[derive(Debug, Clone, Copy, Serialize)]
struct Overhead {
    per_frame: usize,
    /// A chunk's id in the footer, before compression.
    per_chunk: usize,
    per_record: usize,
    /// Footer's seal and version, and the trailer.
    per_shared_object: usize,
    per_session_object: usize,
}

/// What a run found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    rows: Vec<Row>,
    overhead_bytes: Overhead,
}

/// Measures.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let each = Duration::from_secs(options.seconds) / FRAME_BYTES.len() as u32;
    let rows = FRAME_BYTES.iter().map(|bytes| measure(*bytes, each)).collect::<anyhow::Result<_>>()?;
    Ok(Report { rows, overhead_bytes: overhead()? })
}

fn session() -> SessionKey {
    SessionKey { workspace: WorkspaceId(Uuid::from_u128(1)), session: SessionId(Uuid::from_u128(2)) }
}

fn header() -> anyhow::Result<Header> {
    let consent = Consent {
        link: LinkId(Uuid::from_u128(3)),
        consented_at_ms: 1_790_000_000_000,
        notice_version: "2026-03".into(),
        receipt: ReceiptId(Uuid::from_u128(4)),
    };
    let place = StreamSeq::new(7, 1).context("31 bits")?;
    Ok(Header::Batch { key: session(), consent, place, end: false, masking: None, facts: BatchFacts::default() })
}

fn context() -> ChunkContext {
    ChunkContext { session: session(), kind: ChunkKind::Shared }
}

fn measure(frame_bytes: usize, time: Duration) -> anyhow::Result<Row> {
    let key = Key::random()?;
    let frame: Vec<u8> = (0..frame_bytes).map(|at| (at * 31 % 251) as u8).collect();
    let chunks = (ROUND_BYTES / (frame_bytes * CHUNK_FRAMES)).max(1);
    let frames = chunks * CHUNK_FRAMES;
    let megabytes = (frames * frame_bytes) as f64 / 1e6;

    let cipher = Aes256Gcm::new(key.expose().into());
    let mut buffers = vec![frame.clone(); frames];
    let mut number = 0_u64;
    let mut bare = || -> anyhow::Result<()> {
        for buffer in &mut buffers {
            let mut nonce = [0; 12];
            nonce[4..].copy_from_slice(&number.to_be_bytes());
            number += 1;
            let nonce: Nonce<_> = nonce.into();
            black_box(cipher.encrypt_inout_detached(&nonce, &[0; 49], buffer.as_mut_slice().into()))?;
        }
        Ok(())
    };
    // Sealed once for opening.
    let mut sealed = Vec::new();
    let (id, lens) = seal_chunk(&key, context(), vec![frame.as_slice(); CHUNK_FRAMES], &mut sealed)?;
    let batch =
        |len: &usize| BatchEntry { seq: 0, end: false, offset: 0, len: *len as u32, facts: BatchFacts::default() };
    let batches = lens.iter().map(batch).collect();
    let chunk = Chunk { key: session(), stream: 0, id: *id.as_bytes(), at: 0, batches };
    let mut body = Vec::with_capacity(ROUND_BYTES * 2);
    let mut seal = || -> anyhow::Result<()> {
        body.clear();
        for _ in 0..chunks {
            black_box(seal_chunk(&key, context(), std::iter::repeat_n(frame.as_slice(), CHUNK_FRAMES), &mut body)?);
        }
        Ok(())
    };
    let open = || -> anyhow::Result<()> {
        for _ in 0..chunks {
            let opener = chunk_opener(&key, &chunk);
            let mut at = 0;
            for (number, len) in lens.iter().enumerate() {
                black_box(opener.open(frame_at(number, CHUNK_FRAMES), &sealed[at..at + len])?);
                at += len;
            }
        }
        Ok(())
    };
    let (epoch, header) = (EpochId(1), header()?);
    let sealer = RecordSealer::new(&key, epoch)?;
    let keys = EpochKeys::new([(epoch, key.clone())].into());
    let record_key = session().session;
    let place = LogPlace { topic: "session-events", key: record_key.as_bytes() };
    let record = sealer.seal(&place, &header, &frame)?;
    let seal_record = || -> anyhow::Result<()> {
        for _ in 0..frames {
            black_box(sealer.seal(&place, &header, &frame)?);
        }
        Ok(())
    };
    let open_record = || -> anyhow::Result<()> {
        for _ in 0..frames {
            black_box(keys.open(&place, &record)?);
        }
        Ok(())
    };

    let mut speeds: [Vec<f64>; 5] = Default::default();
    let until = Instant::now() + time;
    let mut warm = false;
    while !warm || Instant::now() < until {
        let rounds = [
            timed(megabytes, &mut bare)?,
            timed(megabytes, &mut seal)?,
            timed(megabytes, seal_record)?,
            timed(megabytes, open)?,
            timed(megabytes, open_record)?,
        ];
        // The first round meets cold caches and pages that are not there yet.
        if warm {
            speeds.iter_mut().zip(rounds).for_each(|(speeds, speed)| speeds.push(speed));
        }
        warm = true;
    }
    ensure!(speeds[0].len() >= 3, "too few rounds in {time:?}: give more seconds");
    let rounds = speeds[0].len();
    let [Some(bare_seal), Some(seal_chunk), Some(seal_record), Some(open_chunk), Some(open_record)] =
        speeds.map(Spread::of)
    else {
        bail!("no rounds in {time:?}: give more seconds");
    };
    Ok(Row { frame_bytes, rounds, bare_seal, seal_chunk, seal_record, open_chunk, open_record })
}

fn timed(megabytes: f64, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let begun = Instant::now();
    work()?;
    Ok(megabytes / begun.elapsed().as_secs_f64())
}

fn overhead() -> anyhow::Result<Overhead> {
    let key = Key::random()?;
    let frame = [7; 100];
    let mut body = Vec::new();
    let (_, lens) = seal_chunk(&key, context(), [frame.as_slice()], &mut body)?;
    let record_key = session().session;
    let place = LogPlace { topic: "t", key: record_key.as_bytes() };
    let record = RecordSealer::new(&key, EpochId(1))?.seal(&place, &header()?, &frame)?;
    let storage = StorageKey { version: KeyVersion(1), key };
    let footer = Footer {
        object: ObjectId(Uuid::nil()),
        partition: 0,
        offset_first: 0,
        offset_next: 0,
        chunks: Vec::new(),
        quarantined: Vec::new(),
    };
    let region = seal_shared_footer(&storage, &footer)?.len() - footer.encode().len();
    let trailer = schemas::object::TRAILER_BYTES;
    Ok(Overhead {
        per_frame: lens[0] - frame.len(),
        per_chunk: sealing::frames::CHUNK_ID_BYTES,
        per_record: record.len() - schemas::record::encode(&header()?).len() - frame.len(),
        per_shared_object: region + trailer,
        // Its footer needs no version of the keyring: the session's key opens it.
        per_session_object: region - size_of::<u32>() + trailer,
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "MB/s on one core: median (min to max), and the ratio to bare AES-256-GCM in the same run")?;
        writeln!(
            f,
            "{:>8}  {:>22}  {:>30}  {:>30}  {:>30}  {:>30}",
            "frame", "bare", "chunk", "record", "open chunk", "open record"
        )?;
        for row in &self.rows {
            let bound = row.bare_seal.median;
            let ratio = |speed: &Spread| format!("{speed:.0} {:.2}", speed.median / bound);
            let bare = row.bare_seal;
            writeln!(
                f,
                "{:>8}  {bare:>22.0}  {:>30}  {:>30}  {:>30}  {:>30}",
                row.frame_bytes,
                ratio(&row.seal_chunk),
                ratio(&row.seal_record),
                ratio(&row.open_chunk),
                ratio(&row.open_record),
            )?;
        }
        let Overhead { per_frame, per_chunk, per_record, per_shared_object, per_session_object } = self.overhead_bytes;
        write!(
            f,
            "bytes added: {per_frame} per frame, {per_chunk} per chunk (in the footer), {per_record} per record, \
             {per_shared_object} per shared object, {per_session_object} per session object"
        )
    }
}
