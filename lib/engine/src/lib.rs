//! The verbs of the system: what each service decides next.
//!
//! Nothing here does I/O, reads a clock or draws a random number: time and ids are arguments, effects are values. A
//! driver in each service feeds inputs in and carries effects out; a test feeds the same inputs and looks.
//!
//! - [`token`] and [`admission`]: what an edge lets in, and as what; [`standing`]: what it has heard of who may record; [`rates`]:
//!   how much each may send;
//! - [`events`]: what merging and reading want to know of a stored event;
//! - [`batching`]: when a partition's records become an object, and what happens when that fails;
//! - [`merge`]: the one order in which a session is read, wherever its batches lie;
//! - [`compaction`]: which objects are merged, what happens when that fails, and where frames are cut;
//! - [`retention`]: what a deletion has to do next, [`pace`]: how fast its objects go, and [`receipt`]: what is signed when it is over;
//! - [`reconciling`]: what bucket and index say of each other;
//! - [`invariants`]: what must always hold, by id.

pub mod admission;
mod backoff;
pub mod batching;
pub mod compaction;
pub mod events;
pub mod invariants;
pub mod merge;
pub mod pace;
pub mod rates;
pub mod receipt;
pub mod reconciling;
pub mod retention;
pub mod standing;
pub mod token;
