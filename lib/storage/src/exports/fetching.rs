//! Fetching an archive that is kept: any range of it, so that who was cut off goes on.

use std::ops::Range;

use bytes::Bytes;
use schemas::codec::FormatError;
use schemas::{ExportId, SessionKey, WorkspaceId};
use sealing::objects::{EXPORT_FRAME_BYTES, EXPORT_FRAMES_AT, ExportOpener, OpenError, PartOf};
use service_kit::pool::Pool;
use tokio::time::Instant;

use crate::index::Index;
use crate::index::exports::Part;
use crate::objects::Objects;
use crate::reading::{ReadError, give_while, walk::Corrupt};
use crate::session_keys::SessionKeys;

/// Frames that are fetched at once: a mebibyte.
const FRAMES_AT_ONCE: u64 = 16;

/// Gives the bytes `range` of an archive with these parts, in pieces. It asks each second whether the export is over, and for its key
/// with every piece: then it ends as deleted.
pub async fn fetch<Fut>(
    (index, objects, keys, pool): (&Index, &Objects, &SessionKeys, &Pool),
    (workspace, export): (WorkspaceId, ExportId),
    parts: &[Part],
    range: Range<u64>,
    mut give: impl FnMut(Bytes) -> Fut,
) -> Result<(), ReadError>
where
    Fut: Future<Output = Result<(), ReadError>>,
{
    let mut checked = Instant::now();
    let mut begins = 0;
    for part in parts {
        let ends = begins + part.bytes;
        let wanted = range.start.max(begins)..range.end.min(ends);
        let mut at = wanted.start;
        if wanted.is_empty() {
            begins = ends;
            continue;
        }
        let failed = |source| ReadError::Object { key: part.key, source };
        let corrupt = |source: OpenError| ReadError::Corrupt(Corrupt { key: part.key, chunk: None, source });
        let head = objects.get_range(&part.key, 0, EXPORT_FRAMES_AT as u64).await.map_err(failed)?;
        let head = head.first_chunk().ok_or_else(|| corrupt(FormatError::Truncated.into()))?;
        let of = PartOf { workspace, export, object: part.key.id() };
        while at < wanted.end {
            let frame = (at - begins) / EXPORT_FRAME_BYTES as u64;
            let last = (wanted.end - begins).div_ceil(EXPORT_FRAME_BYTES as u64);
            let frames = frame..last.min(frame + FRAMES_AT_ONCE);
            let data_key = keys.key(&SessionKey::of_export(workspace, export)).await?;
            let opener = ExportOpener::new(&data_key, &of, head, part.object_bytes);
            let opener = opener.map_err(|error| corrupt(error.into()))?;
            if opener.bytes() != part.bytes {
                return Err(corrupt(FormatError::Field("bytes").into()));
            }
            let (place, len) = opener.place(frames.clone());
            let sealed = objects.get_range(&part.key, place, len).await.map_err(failed)?;
            let opened = pool.run(move || opener.open(frame, &sealed)).await?.map_err(|error| corrupt(error.into()))?;
            // The first frame has what lies before what is wanted, the last what lies behind it.
            let opened_at = begins + frame * EXPORT_FRAME_BYTES as u64;
            let until = wanted.end.min(opened_at + opened.len() as u64);
            let piece = Bytes::from(opened).slice((at - opened_at) as usize..(until - opened_at) as usize);
            give_while(|| index.is_export_ready(export), &mut checked, give(piece)).await?;
            at = until;
        }
        begins = ends;
    }
    Ok(())
}

/// The bytes of an archive with these parts.
pub fn total(parts: &[Part]) -> u64 {
    parts.iter().map(|part| part.bytes).sum()
}

/// Waits for what of an archive was given and waits still, and asks meanwhile whether the export is over.
pub async fn while_open(
    index: &Index,
    export: ExportId,
    taking: impl Future<Output = Result<(), ReadError>>,
) -> Result<(), ReadError> {
    give_while(|| index.is_export_ready(export), &mut Instant::now(), taking).await
}
