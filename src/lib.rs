//! Pulsegate: an edge gateway for device fleets.
//!
//! The modules stand in reading order; each may use only those above it (`tests/tidy.rs` holds the table, and
//! `docs/ARCHITECTURE.md` explains it).

pub mod time;

pub mod codec;

pub mod config;
pub mod devices;
pub mod metrics;
pub mod wheel;

pub mod link;

pub mod tls;

pub mod broker;

pub mod connection;
pub mod shard;
pub mod worker;

pub mod backbone;
pub mod control;

pub mod gateway;
