//! What stands in the files of exports, which came within version 1. It is read by the generator alone.

use schemas::ExportId;
use schemas::paths::ObjectKey;
use serde_json::json;
use uuid::Uuid;

use super::super::reader::Keys;
use super::super::samples;
use super::v1::{Made, one};
use crate::objects::{EXPORT_FRAME_BYTES, PartOf, seal_export};

/// The folder of these files.
pub(super) const FOLDER: &str = "v1-exports";

const EXPORT_ID: u128 = 0x0199_0000_0021_7000_8000_0000_0000_0031;
const PART_ID: u128 = 0x0199_0000_0022_7000_8000_0000_0000_0032;

/// All files: a part of two frames. Its key is that of the first session, under the export's id.
pub(super) fn files(keys: &Keys) -> Vec<Made> {
    let of = PartOf {
        workspace: one().workspace,
        export: ExportId(Uuid::from_u128(EXPORT_ID)),
        object: samples::object_id(PART_ID),
    };
    let part: Vec<u8> = b"a part of an archive\n".iter().copied().cycle().take(EXPORT_FRAME_BYTES + 100).collect();
    let sealed = seal_export(&keys.sessions[&one()], &of, &part).unwrap();
    let key = ObjectKey::Export { workspace: of.workspace, export: of.export, id: of.object };
    let known = json!({ "format": "export", "object_key": key.to_string(), "key_of": one().session });
    vec![("export.bin", known, sealed)]
}
