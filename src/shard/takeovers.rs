//! Two places that take one id from each other again and again: two devices with one id, or one that was copied. After a few
//! rounds newcomers are told to wait, and whoever is there stays, so that the fight costs a handshake now and then and not
//! all that a core has.
//!
//! A place is an address. A device that comes again from where it was is no fight, however often it does.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use super::Shard;
use crate::connection::Termination;
use crate::link::{CloseReason, TakeoverLoop, WorkerEvent};
use crate::slot::ConnectionSlot;
use crate::time::Moment;

/// So many changes of place are free at once,
const FREE: u32 = 8;
/// and one more for each such span: nothing that moves through a country changes its network so often.
const SPAN: Duration = Duration::from_secs(10);
/// Devices watched at a time; beyond that those that were taken over longest ago are forgotten.
const WATCHED_MAX: usize = 4_096;

/// When whoever must wait is asked to come back, in milliseconds.
pub(super) const RETRY_AFTER_MS: std::ops::RangeInclusive<u32> = 10_000..=30_000;

/// Where a device was last, and how often it has changed its place.
#[derive(Clone, Copy, Debug, Default)]
struct Watched {
    place: Option<IpAddr>,
    /// Up to when its changes are paid for.
    paid_until: Moment,
    /// It was told of in this fight.
    is_told: bool,
}

/// The devices of one shard that were taken over of late.
#[derive(Default)]
pub(super) struct Takeovers {
    /// By the hash of the id.
    watched: HashMap<u64, Watched>,
    /// In the order in which they were first taken over.
    order: VecDeque<u64>,
}

/// What becomes of a newcomer whose id somebody has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Takeover {
    /// It takes over.
    Free,
    /// It waits, and whoever has the id keeps it. `is_news`: nobody was told of this fight.
    Damped {
        /// Whether this is the first of its fight.
        is_news: bool,
    },
}

impl Takeovers {
    /// Somebody comes whose id somebody else has.
    pub fn begin(&mut self, device: u64, now: Moment) -> Takeover {
        let watched = self.watched.entry(device).or_insert_with(|| {
            self.order.push_back(device);
            Watched::default()
        });
        let is_damped = watched.paid_until.since(now) > SPAN * (FREE - 1);
        let is_news = is_damped && !watched.is_told;
        watched.is_told = is_damped;
        if self.order.len() > WATCHED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.watched.remove(&oldest);
        }
        if is_damped { Takeover::Damped { is_news } } else { Takeover::Free }
    }

    /// Whether any device is watched.
    pub fn is_watching(&self) -> bool {
        !self.watched.is_empty()
    }

    /// A device is here, and comes from there.
    pub fn note_place(&mut self, device: u64, place: IpAddr, now: Moment) {
        let Some(watched) = self.watched.get_mut(&device) else { return };
        let place = place.to_canonical();
        if watched.place.replace(place).is_some_and(|before| before != place) {
            watched.paid_until = watched.paid_until.max(now).plus(SPAN);
        }
    }
}

impl Shard {
    /// Whether the connection that wants to be this device must wait, because two places fight over its id. It is ended then.
    pub(super) fn is_takeover_damped(&mut self, slot: ConnectionSlot, device: u64, now: Moment) -> bool {
        let Takeover::Damped { is_news } = self.takeovers.begin(device, now) else { return false };
        let connection = &self.connections[slot];
        if is_news {
            let listener = &*self.settings_of(slot).name;
            tracing::warn!(
                listener,
                device = connection.device(),
                "two places take this id from each other again and again: newcomers wait, and whoever is there stays",
            );
            let (device, listener) = (connection.device().into(), connection.listener());
            let (connection, peer) = (self.id(slot), self.address(slot));
            let told = TakeoverLoop { device, listener, connection, peer, at: now };
            self.uplink.push(WorkerEvent::TakeoverLoop(Box::new(told)));
        }
        let retry_after = self.random.u32(RETRY_AFTER_MS);
        let detail = "two places take this id from each other again and again, and the other one has it now";
        let termination = Termination::because(CloseReason::TakeoverLoop, detail).with_retry_after(retry_after);
        self.end(slot, &termination, now);
        true
    }

    /// Whether it is to be told where devices come from: not while nobody takes anybody over.
    #[must_use]
    pub fn is_watching_takeovers(&self) -> bool {
        self.takeovers.is_watching()
    }

    /// A device is here, and comes from this address.
    pub fn note_place(&mut self, device: &str, place: IpAddr, now: Moment) {
        self.takeovers.note_place(self.home.hash(device), place, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    fn at(seconds: u64) -> Moment {
        Moment::from_micros(seconds * 1_000_000)
    }

    #[test]
    fn a_fight_is_damped_and_told_once_and_goes_on_slowly() {
        let mut takeovers = Takeovers::default();
        let mut taken = 0;
        let mut told = 0;
        for second in 0..100 {
            match takeovers.begin(7, at(second)) {
                Takeover::Free => {
                    takeovers.note_place(7, place((taken % 2) as u8), at(second));
                    taken += 1;
                }
                Takeover::Damped { is_news } => told += u32::from(is_news),
            }
        }
        // The first place is no change; then those that are free, and one for each span.
        assert!((17..=19).contains(&taken), "{taken}");
        assert!(told >= 1);
        assert_eq!(takeovers.begin(7, at(1_000)), Takeover::Free);
        assert_eq!(takeovers.begin(8, at(0)), Takeover::Free, "others have no part in it");
    }

    #[test]
    fn a_device_that_comes_again_from_where_it_was_is_never_damped() {
        let mut takeovers = Takeovers::default();
        for _ in 0..1_000 {
            assert_eq!(takeovers.begin(7, at(0)), Takeover::Free);
            takeovers.note_place(7, place(1), at(0));
        }
    }

    #[test]
    fn the_number_of_devices_is_bounded() {
        let mut takeovers = Takeovers::default();
        assert!(!takeovers.is_watching());
        for device in 0..3 * WATCHED_MAX as u64 {
            takeovers.begin(device, at(0));
        }
        assert!(takeovers.is_watching());
        assert!(takeovers.watched.len() <= WATCHED_MAX && takeovers.order.len() <= WATCHED_MAX);
    }
}
