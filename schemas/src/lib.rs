//! The nouns of the system: everything that crosses a process boundary, and nothing that does I/O.
//!
//! HTTP bodies ([`http`]), token claims ([`token`]), Kafka records ([`record`], [`control`]), object formats ([`object`],
//! [`shared_object`], [`session_object`], [`stream_note`], [`journal`]), deletions and their receipts ([`deletion`]), object keys ([`paths`]), bounds ([`limits`]), plans ([`plan`]) and the
//! stable error codes ([`codes`]). The SQL migrations lie beside this crate, in `migrations/`.
//!
//! Every decoder here is total: any bytes give a value or a [`codec::FormatError`], never a panic.

pub mod codec;
pub mod codes;
pub mod control;
pub mod deletion;
pub mod export;
pub mod facts;
pub mod http;
pub mod ids;
pub mod journal;
pub mod limits;
pub mod object;
pub mod paths;
pub mod plan;
pub mod record;
pub mod session_object;
pub mod shared_object;
pub mod stream_note;
pub mod token;

pub use codes::ErrorCode;
pub use facts::BatchFacts;
pub use ids::{
    ApiKeyId, DeletionId, ExportId, LinkId, ObjectId, ReceiptId, SessionId, SessionKey, StreamSeq, WorkspaceId,
};
