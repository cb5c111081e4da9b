//! What a simulated gateway has of the fleet, beside its sessions.

pub use super::lease::{Lease, LeaseRow, Step};
pub use super::presence::{Answer, Ask, Claim, Effect, Owner, Presence, Row};
pub use super::server::Written;
