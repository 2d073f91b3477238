//! How a process lives: configuration, telemetry, health, shutdown, retry, and clients of Kafka.
//!
//! A service's `main.rs` is one call of [`service::main`]; its `run` gets a configuration that was parsed and checked
//! whole, the listeners that are bound already, a [`health::Health`] to report to, and a [`shutdown::Shutdown`] to obey.

pub mod config;
pub mod health;
pub mod http_server;
pub mod kafka;
pub mod keys;
pub mod passes;
pub mod pool;
pub mod retry;
pub mod service;
pub mod shutdown;
pub mod telemetry;
pub mod time;
