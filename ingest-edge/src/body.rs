//! Bodies: read within a bound and a time, decoded within a bound (E3).

use std::io::Read;
use std::time::Duration;

use bytes::Bytes;
use engine::admission::Encoding;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use schemas::codes::Refusal;
use schemas::{ErrorCode, limits};

/// A body that takes longer than this is refused.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// Reads a body of at most `max` bytes.
pub(crate) async fn read(body: Incoming, max: usize) -> Result<Bytes, Refusal> {
    let too_large = || Refusal::limit(ErrorCode::PayloadTooLarge, max);
    // What says that it is too large is not read at all.
    if body.size_hint().lower() > max as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, max).collect()).await {
        Err(_) => Err(ErrorCode::RequestTimeout.into()),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(ErrorCode::HttpMalformed.into()),
    }
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
