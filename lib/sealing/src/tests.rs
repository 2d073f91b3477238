//! Tests over whole files: what lies in the bucket and in the log, written as batcher, compactor, edge and retention worker
//! write it, and read as readers do.

mod cast;
mod golden;
mod reader;
mod samples;
mod splices;
mod tally;
mod tampering;
