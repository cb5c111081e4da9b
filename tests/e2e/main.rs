//! End to end: the real program in a process of its own, real sockets, and clients that we did not write.
//!
//! One file for each thing that the gateway must show. Every test has its own gateway on free ports. Nothing is expected
//! earlier than the protocol allows, and lateness is forgiven generously.

mod support;

mod admin_tls;
mod admission;
mod article;
mod control;
mod disconnect;
mod durability;
mod ending;
mod hook;
mod identity;
mod idle;
mod interop;
mod liveness;
mod memory;
mod moves;
mod orders;
mod page;
mod presence;
mod prometheus;
mod proxy;
mod queue;
mod refusals;
mod reloads;
mod slow;
mod stalled;
mod takeover;
mod trace;
mod vanishing;
mod why;
