//! What a shard tells of its devices.
//!
//! A listing is in order of ids and never stops the loop: a table of a million is walked a slice a turn, and only the
//! `limit` smallest ids seen so far are kept.

use std::collections::BTreeSet;

use super::Shard;
use crate::link::{Description, DeviceFilter};
use crate::slot::ConnectionSlot;
use crate::time::Moment;

/// Bytes of the filters that the description of one device shows.
const FILTER_BYTES: usize = 65_536;
/// The same in a listing, which may be of a thousand devices.
const LISTED_FILTER_BYTES: usize = 1_024;

/// A listing in progress. A device that comes or goes while it is under way may or may not be in it; every other one
/// is.
pub struct Listing {
    request: u64,
    filter: DeviceFilter,
    position: usize,
    found: BTreeSet<Box<str>>,
}

impl Listing {
    /// The listing asked for by `request`.
    #[must_use]
    pub fn new(request: u64, filter: DeviceFilter) -> Self {
        Self { request, filter, position: 0, found: BTreeSet::new() }
    }

    /// Under which number it was asked for.
    #[must_use]
    pub fn request(&self) -> u64 {
        self.request
    }

    fn consider(&mut self, device: &str) {
        let full = self.found.len() >= self.filter.limit;
        let too_late = full && self.found.last().is_none_or(|last| device > &**last);
        if too_late || !self.filter.matches(device) {
            return;
        }
        self.found.insert(device.into());
        if self.found.len() > self.filter.limit {
            self.found.pop_last();
        }
    }
}

impl Shard {
    /// All that is known of a connected device (but its address, which only the socket knows). `now` places its ticks.
    #[must_use]
    pub fn describe(&self, device: &str, now: Moment) -> Option<Description> {
        self.describe_with(device, FILTER_BYTES, now)
    }

    fn describe_with(&self, device: &str, filter_bytes: usize, now: Moment) -> Option<Description> {
        let slot = self.find(device)?;
        let connection = &self.connections[slot];
        let (tls_version, tls_suite, identity) = connection.facts()?;
        let liveness = connection.liveness();
        Some(Description {
            device: device.into(),
            connection: self.id(slot),
            worker: self.worker,
            state: if liveness.is_probed() { "probed" } else { "heard" },
            listener: connection.listener(),
            peer: self.address(slot),
            tls_version,
            tls_suite,
            identity,
            connected_at: connection.connected_at().start_near(now),
            last_heard: liveness.last_heard().start_near(now),
            round_trip: liveness.round_trip(),
            generation: self.full_generation(connection.generation()),
            session: self.broker.of(slot).map(|session| Box::new(self.broker.describe(session, filter_bytes))),
        })
    }

    /// Looks at the next `slots` slots of the shard. `true` when all were seen.
    pub fn advance_listing(&self, listing: &mut Listing, slots: usize) -> bool {
        let end = (listing.position + slots).min(self.slots);
        for slot in (listing.position..end).map(ConnectionSlot::at) {
            if let Some(connection) = self.connections.get(slot)
                && connection.is_device()
            {
                listing.consider(connection.device());
            }
        }
        listing.position = listing.position.max(end);
        end == self.slots
    }

    /// What the listing found, in order.
    #[must_use]
    pub fn finish_listing(&self, listing: &Listing, now: Moment) -> Vec<Description> {
        listing.found.iter().filter_map(|device| self.describe_with(device, LISTED_FILTER_BYTES, now)).collect()
    }
}
