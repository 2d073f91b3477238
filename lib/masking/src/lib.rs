//! What is masked, and how: blind to secrets, also when the SDK fails (P4, E5).

pub mod redact;
