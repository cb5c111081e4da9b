//! Who a device is, where that takes time or memory that an event loop has not: token files, and the thread that hashes.

mod queue;
pub mod tokens;
pub(super) mod verifier;
