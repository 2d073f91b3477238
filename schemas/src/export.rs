//! What an export's archive says of itself. It is a tar archive in gzip: `docs/exports.md`.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::http::ExportScope;
use crate::ids::{ExportId, SessionId, WorkspaceId};

/// The name of the format.
pub const FORMAT: &str = "clairvio-export";
/// Its version.
pub const VERSION: u32 = 1;
/// The archive's own manifest, its last file: an archive that has it is whole.
pub const MANIFEST: &str = "manifest.json";
/// The hash of each session's manifest and of each receipt, in the format of `sha256sum`.
pub const SUMS: &str = "SHA256SUMS";

/// The folder of a session, with its slash.
pub fn session_folder(session: SessionId) -> String {
    format!("sessions/{session}/")
}

/// A file in the archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its path in the archive.
    pub path: String,
    /// Its bytes.
    pub bytes: u64,
    /// Their hash, in hexadecimal.
    pub sha256: String,
}

/// `sessions/<id>/manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionManifest {
    /// The session.
    pub session: SessionId,
    /// Its other files: what `GET /v1/sessions/{id}` tells, then its events in their order.
    pub files: Vec<FileEntry>,
    /// Events in them.
    pub events: u64,
    /// Whether it could not be read to its end, because a stored object is corrupt: the operator was told.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub damaged: bool,
}

/// [`MANIFEST`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// The export; none of a session's that was not kept.
    pub export: Option<ExportId>,
    /// Whose.
    pub workspace: WorkspaceId,
    /// What it is of.
    pub scope: ExportScope,
    /// When it was asked for: sessions that began later are not in it.
    #[serde(with = "time::serde::rfc3339")]
    pub requested_at: OffsetDateTime,
    /// Sessions in it.
    pub sessions: u64,
    /// Events in it.
    pub events: u64,
    /// Receipts of deletions in it.
    pub receipts: u64,
    /// The hash of [`SUMS`], in hexadecimal.
    pub sums_sha256: String,
}
