//! Pulsegate: an edge gateway for device fleets.
//!
//! It terminates TLS for very many devices that do almost nothing, knows which of them are alive, and joins them to a
//! backend. This page is a tour from the inside out; `docs/ARCHITECTURE.md` has the drawings, and `docs/decisions/` says
//! why it is so.
//!
//! **Values.** [`time`] counts in ticks of 100 ms and never reads a clock; [`clock`] does, for whatever is not below a worker. [`network`] is an address and how many of its bits count. [`slot`] has
//! the numbers by which a shard finds what it holds, a type for each kind. [`wire`] reads and writes the bytes of our own
//! formats, [`whole_file`] small files that are there as a whole. [`codec`] turns bytes into borrowed frames of the device protocols and back: [`codec::native`], [`codec::raw`], [`codec::mqtt`].
//! [`image`] is what outlives a process: sessions, messages that wait, retained messages, and the changes of them.
//!
//! **Tables.** [`config`] is what the operator wrote, checked, and the memory that it allows ([`config::budget`]).
//! [`metrics`] has every counter, [`devices`] finds a slot by a device's name, and the [`wheel`] keeps one deadline for each
//! slot.
//!
//! **The seam.** [`link`] is all that the data plane and the control plane, and one shard and another, say to each other:
//! plain data. It also knows where a device lives ([`link::Home`]) and why a connection ends ([`link::CloseReason`]).
//!
//! **TLS.** [`tls::handshake`] has rustls behind one type; what is left of a connection afterwards is
//! [`tls::record`], our own record layer over a few hundred bytes of plain data.
//!
//! **One core's share.** [`pool`] counts its variable bytes, with a share for each class. [`broker`] keeps MQTT sessions,
//! subscriptions and retained messages. [`connection`] is one connection from its first byte to its last, and the only
//! place where TLS and protocols meet. [`shard`] holds a core's connections and sessions, takeover, presence and expiry: it
//! is handed bytes and the time, so a simulation drives it through hours in a second.
//!
//! **Threads.** [`turn`] is the order in which an event loop does its work, over any [`turn::Io`]. [`worker`] runs it with
//! the poll, the sockets, the clock, and moves connections to their home. [`store`] puts what must survive the process on
//! the disk, [`commands`] wait there, or in a fleet, for devices that are nowhere, [`sink`] sends it on to where it is wanted, [`backbone`] keeps the latest events for those who follow them,
//! [`fleet`] makes one of several gateways. [`control`] has what an event loop has no time
//! for: HTTP, metrics, events, token checks. [`gateway`] starts all of it, changes its configuration under live
//! connections, and ends it.
//!
//! A module uses only those above it; `tests/tidy.rs` holds the table.

#![deny(unsafe_code)]

// What its own tests share with the fuzzer and the benches names the package.
#[cfg(test)]
extern crate self as pulsegate;

pub mod clock;
pub mod network;
pub mod slot;
pub mod time;
pub mod whole_file;
pub mod wire;

pub mod codec;
pub mod image;

pub mod config;
pub mod devices;
pub mod metrics;
pub mod wheel;

pub mod pool;

pub mod link;

pub mod commands;

pub mod tls;

pub mod broker;

pub mod connection;
pub mod shard;
pub mod store;
pub mod turn;

pub mod worker;

pub mod sink;

pub mod backbone;
pub mod fleet;

pub mod control;

pub mod gateway;
