//! The thread of one core: the turn over a real poll, real sockets and the one clock.
//!
//! A worker owns its share of the connections outright: its own listening sockets, descriptor table and shard. It
//! shares nothing but its inbox, the channel to each other worker, and the copy of its counters. It must never wait for
//! anything but its poll. What it does in which order is in [`crate::turn`]; here is what it does it with.

pub mod descriptors;
mod handoff;
mod io;
mod kept;
mod listen;
mod policy;
mod sockets;
mod start;
mod uplink_batch;

pub use kept::Kept;
pub use policy::{Policy, PolicySwitch};
pub use start::{StartError, WorkerOptions, Workers, start};
