//! An SDK without a browser, for the demo, the tests and the benchmark.
//!
//! Recorded sessions ([`recordings`]) become bodies of requests ([`body`]); [`Sdk`] sends them to an edge as the real
//! SDK does, [`Api`] reads them back from the control plane, and the [`ledger`] says whether what was read is exactly
//! what was acknowledged: nothing lost, nothing doubled, nothing altered, in order. [`wait`] polls for conditions.
//!
//! Invariants: an event's bytes are never changed between recording and request; a batch is repeated with the bytes
//! that it was first sent with; errors never show tokens, references or content.

pub mod api;
pub mod body;
pub mod call;
pub mod ledger;
pub mod recordings;
pub mod sdk;
mod split;
pub mod verify;
pub mod wait;

pub use api::{Api, EventStream, EventsFormat, ReadsQuery, SessionQuery};
pub use body::{Body, Encoding, Form};
pub use call::{CallError, Refused};
pub use ledger::{Comparison, Content, Ledger, SessionLedger};
pub use recordings::{Batch, Recording};
pub use sdk::{Delivered, Sdk, SdkOptions, Session, Undelivered};
pub use wait::{NotWithin, Seen, until};
