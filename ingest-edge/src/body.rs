//! Bodies: read within a bound and a time, decoded within a bound (E3).

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use engine::admission::Encoding;
use http_body_util::BodyExt as _;
use hyper::body::Body;
use schemas::codes::Refusal;
use schemas::{ErrorCode, WorkspaceId, limits};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// A body that takes longer than this is refused.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Of a body that is refused for its size, this much is read, and this long.
const DISCARD_BYTES_MAX: usize = 2 * limits::BODY_BYTES_MAX;
const DISCARD_TIMEOUT: Duration = Duration::from_secs(2);

/// Of the room for bodies this part is one workspace's at most, and that of all who have not proven who they are: who sends
/// slowly, or much, leaves room to the others.
const PART: u64 = 4;
/// Room of its own for small bodies: consents and withdrawals find it whatever events there are.
const SMALL_ROOM_BYTES: u64 = 8 * limits::MIB as u64;
/// Workspaces whose rooms are remembered although nothing lies in them.
const ROOMS_IDLE_MAX: usize = 1_024;

/// Room for bodies, in KiB: all of it, each workspace's part, that of strangers, and that of small bodies beside.
pub(crate) struct Rooms {
    all: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
    small: Arc<Semaphore>,
    bytes_max: u64,
    workspaces: Mutex<BTreeMap<WorkspaceId, Arc<Semaphore>>>,
}

/// Room that is taken, until this is dropped.
#[derive(Debug)]
pub(crate) struct Held(#[expect(dead_code, reason = "dropping them gives the room back")] Vec<OwnedSemaphorePermit>);

fn kib(bytes: u64) -> Arc<Semaphore> {
    Arc::new(Semaphore::new((bytes / limits::KIB as u64) as usize))
}

/// One body fits, however small the whole is.
fn part(bytes_max: u64) -> u64 {
    (bytes_max / PART).max(limits::BODY_BYTES_MAX as u64)
}

impl Rooms {
    pub(crate) fn new(bytes_max: u64) -> Self {
        Self {
            all: kib(bytes_max),
            strangers: kib(part(bytes_max)),
            small: kib(SMALL_ROOM_BYTES),
            bytes_max,
            workspaces: Mutex::default(),
        }
    }

    /// Room for events of whom nobody knows yet.
    pub(crate) fn of_strangers(&self) -> Vec<Arc<Semaphore>> {
        vec![Arc::clone(&self.strangers), Arc::clone(&self.all)]
    }

    /// Room for bodies of at most [`limits::SMALL_BODY_BYTES_MAX`].
    pub(crate) fn of_small(&self) -> Vec<Arc<Semaphore>> {
        vec![Arc::clone(&self.small)]
    }

    /// Room for bodies of this workspace.
    pub(crate) fn of(&self, workspace: WorkspaceId) -> Vec<Arc<Semaphore>> {
        let mut workspaces = self.workspaces.lock().unwrap_or_else(PoisonError::into_inner);
        if workspaces.len() >= ROOMS_IDLE_MAX {
            // Who holds a permit, or is about to take one, has the room too.
            workspaces.retain(|_, room| Arc::strong_count(room) > 1);
        }
        let room = workspaces.entry(workspace).or_insert_with(|| kib(part(self.bytes_max)));
        vec![Arc::clone(room), Arc::clone(&self.all)]
    }

    /// Bytes that are held right now.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.bytes_max.saturating_sub((self.all.available_permits() * limits::KIB) as u64)
    }
}

/// Reads a body of at most `max` bytes. Room for it is taken in each of these rooms as its bytes come: a body that is announced
/// and does not come holds nobody up.
pub(crate) async fn read<B>(body: B, max: usize, rooms: &[Arc<Semaphore>]) -> Result<(Bytes, Held), Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    let announced = body.size_hint().lower();
    // What there is no room for right now is not read, and what says that it is too large is not kept.
    if announced > max as u64 {
        discard(body).await;
        return Err(Refusal::limit(ErrorCode::PayloadTooLarge, max));
    }
    if rooms.iter().any(|room| announced > (room.available_permits() * limits::KIB) as u64) {
        return Err(ErrorCode::Backpressure.into());
    }
    match tokio::time::timeout(BODY_TIMEOUT, collect(body, max, rooms)).await {
        Err(_) => Err(ErrorCode::RequestTimeout.into()),
        Ok(collected) => collected,
    }
}

/// Reads a body that is refused, and forgets it: a client that still writes would see its connection break, and never the
/// answer. Within bounds, so that nobody can have it read for ever.
async fn discard<B>(mut body: B)
where
    B: Body<Data = Bytes> + Unpin,
{
    let mut left = DISCARD_BYTES_MAX;
    let reading = async {
        while let Some(Ok(frame)) = body.frame().await {
            match left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) {
                Some(rest) => left = rest,
                None => return,
            }
        }
    };
    // Beyond the time the connection is closed, as it would have been at once.
    let _ = tokio::time::timeout(DISCARD_TIMEOUT, reading).await;
}

async fn collect<B>(mut body: B, max: usize, rooms: &[Arc<Semaphore>]) -> Result<(Bytes, Held), Refusal>
where
    B: Body<Data = Bytes> + Unpin,
{
    let take = |room: &Arc<Semaphore>, kib| {
        Arc::clone(room).try_acquire_many_owned(kib).map_err(|_| Refusal::from(ErrorCode::Backpressure))
    };
    let mut held = rooms.iter().map(|room| take(room, 0)).collect::<Result<Vec<_>, _>>()?;
    let mut collected = Vec::new();
    while let Some(frame) = body.frame().await {
        // Trailers say nothing that we want.
        let Ok(data) = frame.map_err(|_| Refusal::from(ErrorCode::HttpMalformed))?.into_data() else { continue };
        let len = collected.len() + data.len();
        if len > max {
            return Err(Refusal::limit(ErrorCode::PayloadTooLarge, max));
        }
        for (held, room) in held.iter_mut().zip(rooms) {
            let more = len.div_ceil(limits::KIB).saturating_sub(held.num_permits());
            held.merge(take(room, u32::try_from(more).unwrap_or(u32::MAX))?);
        }
        collected.extend_from_slice(&data);
    }
    Ok((collected.into(), Held(held)))
}

/// Decodes a body into at most [`limits::DECODED_BYTES_MAX`] bytes; a bomb is stopped there. Trailing bytes after the
/// encoded ones are an error. CPU work.
pub(crate) fn decode(body: Bytes, encoding: Encoding) -> Result<Bytes, Refusal> {
    match encoding {
        Encoding::Identity => Ok(body),
        Encoding::Gzip => bounded(flate2::bufread::MultiGzDecoder::new(body.as_ref())),
        Encoding::Zstd => {
            let malformed = |_| Refusal::from(ErrorCode::BodyMalformed);
            let mut decoder = zstd::stream::read::Decoder::with_buffer(body.as_ref()).map_err(malformed)?;
            // A frame may ask for a window of gigabytes: that is refused, not allocated.
            decoder.window_log_max(limits::ZSTD_WINDOW_LOG_MAX).map_err(malformed)?;
            bounded(decoder)
        }
    }
}

fn bounded(decoder: impl Read) -> Result<Bytes, Refusal> {
    let mut decoded = Vec::new();
    let mut limited = decoder.take(limits::DECODED_BYTES_MAX as u64 + 1);
    limited.read_to_end(&mut decoded).map_err(|_| Refusal::from(ErrorCode::BodyMalformed))?;
    if decoded.len() > limits::DECODED_BYTES_MAX {
        return Err(Refusal::limit(ErrorCode::DecodedTooLarge, limits::DECODED_BYTES_MAX));
    }
    Ok(decoded.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn gzip(raw: &[u8]) -> Bytes {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(raw).unwrap();
        encoder.finish().unwrap().into()
    }

    fn zstd(raw: &[u8]) -> Bytes {
        zstd::bulk::compress(raw, 3).unwrap().into()
    }

    /// A body of 4 KiB that never comes.
    struct Announced;

    impl Body for Announced {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<hyper::body::Frame<Bytes>, Self::Error>>> {
            std::task::Poll::Pending
        }

        fn size_hint(&self) -> hyper::body::SizeHint {
            hyper::body::SizeHint::with_exact(4 * limits::KIB as u64)
        }
    }

    #[tokio::test]
    async fn room_is_taken_as_bytes_come_and_given_back() {
        let room = kib(4 * limits::KIB as u64);
        let rooms = [Arc::clone(&room)];
        let body = |len| http_body_util::Full::new(Bytes::from(vec![7; len]));
        // Nothing of it came: it holds nothing, whatever it may become.
        let reading = read(Announced, 4 * limits::KIB, &rooms);
        tokio::pin!(reading);
        assert!(tokio::time::timeout(Duration::from_millis(1), &mut reading).await.is_err());
        assert_eq!(room.available_permits(), 4);
        let (bytes, held) = read(body(2_049), 4 * limits::KIB, &rooms).await.unwrap();
        assert_eq!((bytes.len(), room.available_permits()), (2_049, 1));
        assert_eq!(read(body(1_025), 4 * limits::KIB, &rooms).await.unwrap_err().code, ErrorCode::Backpressure);
        drop(held);
        assert_eq!(room.available_permits(), 4);
        assert_eq!(read(body(9), 8, &rooms).await.unwrap_err(), Refusal::limit(ErrorCode::PayloadTooLarge, 8));
    }

    #[tokio::test]
    async fn a_workspace_leaves_room_to_the_others() {
        let part = limits::BODY_BYTES_MAX;
        let rooms = Rooms::new(PART * part as u64);
        let [noisy, quiet] = [1, 2].map(|id| WorkspaceId(uuid::Uuid::from_u128(id)));
        let body = |len| http_body_util::Full::new(Bytes::from(vec![7; len]));
        let held = read(body(part), part, &rooms.of(noisy)).await.unwrap();
        assert_eq!(read(body(1), part, &rooms.of(noisy)).await.unwrap_err().code, ErrorCode::Backpressure);
        assert!(read(body(part), part, &rooms.of(quiet)).await.is_ok());
        assert_eq!(rooms.held_bytes(), part as u64);
        // Strangers are as one workspace, and never in the way of a consent or a withdrawal.
        let strangers = read(body(part), part, &rooms.of_strangers()).await.unwrap();
        assert_eq!(read(body(1), part, &rooms.of_strangers()).await.unwrap_err().code, ErrorCode::Backpressure);
        assert!(read(body(1), part, &rooms.of_small()).await.is_ok());
        assert!(read(body(part), part, &rooms.of(quiet)).await.is_ok());
        drop(strangers);
        drop(held);
        assert!(read(body(part), part, &rooms.of(noisy)).await.is_ok());
        assert_eq!(rooms.held_bytes(), 0);
    }

    #[test]
    fn every_encoding_decodes() {
        let raw = Bytes::from_static(b"[1,2,3]");
        assert_eq!(decode(raw.clone(), Encoding::Identity), Ok(raw.clone()));
        assert_eq!(decode(gzip(&raw), Encoding::Gzip), Ok(raw.clone()));
        assert_eq!(decode(zstd(&raw), Encoding::Zstd), Ok(raw));
    }

    #[test]
    fn e03_bombs_stop_at_the_bound() {
        let bomb = vec![0; limits::DECODED_BYTES_MAX + 1];
        let too_large = Err(Refusal::limit(ErrorCode::DecodedTooLarge, limits::DECODED_BYTES_MAX));
        assert_eq!(decode(gzip(&bomb), Encoding::Gzip), too_large);
        assert_eq!(decode(zstd(&bomb), Encoding::Zstd), too_large);
        assert!(decode(zstd(&bomb[1..]), Encoding::Zstd).is_ok());
    }

    #[test]
    fn corrupt_bytes_and_huge_windows_are_malformed() {
        let malformed = Err(Refusal::from(ErrorCode::BodyMalformed));
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            assert_eq!(decode(Bytes::from_static(b"nonsense"), encoding), malformed);
        }
        let cut = zstd(b"[1,2,3]");
        assert_eq!(decode(cut.slice(..cut.len() - 1), Encoding::Zstd), malformed);
        let mut wide = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        wide.window_log(limits::ZSTD_WINDOW_LOG_MAX + 1).unwrap();
        wide.include_contentsize(false).unwrap();
        wide.write_all(b"[]").unwrap();
        assert_eq!(decode(wide.finish().unwrap().into(), Encoding::Zstd), malformed);
    }
}
