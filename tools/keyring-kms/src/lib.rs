//! The keyring that AWS KMS has, as a program that services start and ask.
//!
//! An owner's key is the MAC that KMS makes of the owner's name with an HMAC key that never leaves KMS ([`KmsKeyring`]);
//! nothing is stored here or there. [`serve()`] answers a service's questions in the lines of
//! [`service_kit::keys::program::protocol`], from any keyring. The weight of the client is in this crate alone: no service
//! depends on it.
//!
//! There is no log subscriber in this program: at their most talkative the client's log lines hold whole answers, and
//! answers are keys. What goes wrong is told to the service, which logs it.

mod config;
mod kms;
mod serve;

pub use config::KmsConfig;
pub use kms::KmsKeyring;
pub use serve::serve;
