//! S3 and Postgres: the one home of objects and of index queries.
//!
//! [`objects`] puts, gets, lists and deletes; [`index`] has every query, one file per caller; [`reading`] puts both
//! together into sessions. Services call these and decide nothing in SQL of their own.

pub mod index;
pub mod objects;
pub mod reading;
