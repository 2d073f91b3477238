//! Whole-system tests: the real services over real Kafka, Postgres and S3, seen from outside.
//!
//! The stack is started once for all tests of this program, each test has a deployment of its own on it (database, topic,
//! prefix, keys), and all run at once. What a test sent stands in a ledger, and what is read is compared with it exactly. At
//! the end of every test `check` looks at index, bucket and logs, whatever the test was about.
//!
//! A failed test keeps its logs and says where.

mod audit;
mod bad_input;
mod batching;
mod by_reference;
mod check;
mod compaction;
mod consent;
mod control;
mod corruption;
mod crashes;
mod deletion;
mod exports;
mod faults;
mod first_sight;
mod harness;
mod listing;
mod load;
mod masking;
mod notes;
mod openapi;
mod outages;
mod plane;
mod proxy;
mod quarantine;
mod reading;
mod readings;
mod receipts;
mod reconciling;
mod references;
mod restored;
mod rotation;
mod scanner;
mod sealed;
mod stalled;
mod starting;
mod tenancy;
mod termination;
mod unsealed;
mod versions;
mod windows;
mod withdrawal;
mod withdrawn;
