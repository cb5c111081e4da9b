//! Who a device is, and what it may do, where that takes time or memory that an event loop has not.
//!
//! `chain` holds each listener's list; `verifier` (with `queue`) hashes tokens and passwords of `tokens` files, `jwt` verifies
//! JSON Web Tokens by `keys`, which `fetch` may bring, and `hook` (with `cache` and `breaker`) asks an HTTP service. `secrets` bounds
//! what waits for any of them.

mod breaker;
mod cache;
pub(super) mod chain;
mod fair;
mod fetch;
mod hook;
mod http;
mod jwt;
mod keys;
pub mod material;
mod queue;
mod secrets;
pub mod tokens;
pub(super) mod verifier;
