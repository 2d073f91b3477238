//! What is masked, and how: blind to secrets, also when the SDK fails (P4, E5).
//!
//! An SDK masks in the browser; one that is old, broken or hostile does not. So each batch is looked through twice on its way. The
//! edge [`read`]s it, and masks what the batch decides alone, before Kafka has it. The batcher [`mask`]s the rest by what it knows
//! of the stream ([`StreamState`]), before S3 has it: there, whatever is not known to be open is masked.
//!
//! Always masked are the values of passwords, one-time codes, cards and hidden fields, and everything below an element with
//! `data-clairvio-mask`; of one with `data-clairvio-block` a box is left. A link's [`Rules`] mask more. In URLs, requests, console
//! messages and what plugins write, secrets are found by name and by shape ([`redact`]).
//!
//! - [`body`]: batches; [`json`]: the walk over their text; [`pass`]: what is found and changed on the way;
//! - [`attributes`], [`selector`], [`redact`]: what becomes of which value;
//! - [`state`], [`ranges`]: what is known of a stream's nodes;
//! - [`found`], [`pages`]: what the index is told.

mod attributes;
mod body;
mod found;
mod json;
#[cfg(test)]
mod leaks;
pub mod pages;
mod pass;
mod ranges;
pub mod redact;
mod rules;
mod selector;
mod state;

pub use attributes::{BLOCK_ATTRIBUTE, MASK_ATTRIBUTE};
pub use body::{Batch, Masked, mask, read};
pub use pass::DROPPED_TAG;
pub use redact::MASK;
pub use rules::{RuleBook, Rules};
pub use selector::SelectorError;
pub use state::StreamState;
