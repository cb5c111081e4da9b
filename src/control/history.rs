//! How the latest connections of each device ended, and the latest attempts to become one: what `pulsegate why` tells.
//!
//! In memory, and bounded in number: the newest [`ENDS_MAX`] of the gateway, of which [`ENDS_PER_DEVICE_MAX`] of one device, so
//! that one that comes and goes all day takes no other's place. An end with its texts takes at most some 400 bytes, all
//! together 13 MiB.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Mutex;

use crate::backbone::DETAIL_BYTES_MAX;
use crate::config::budget;
use crate::link::{CloseReason, ConnectionFacts, ListenerId, NotAdmitted, Presence};
use crate::time::Moment;

/// Ends remembered: a line of the memory budget.
const ENDS_MAX: usize = budget::ENDS_MAX as usize;
/// Of these, of one device.
pub(super) const ENDS_PER_DEVICE_MAX: usize = 16;

/// One end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) at: Moment,
    pub(super) reason: CloseReason,
    pub(super) detail: Box<str>,
    pub(super) listener: ListenerId,
    pub(super) peer: Option<SocketAddr>,
    pub(super) identity: &'static str,
    pub(super) tls_version: &'static str,
    pub(super) connected_at: Moment,
    /// The connection's generation, if it was a device.
    pub(super) generation: Option<u64>,
}

impl End {
    fn new(at: Moment, reason: CloseReason, listener: ListenerId, facts: &ConnectionFacts) -> Self {
        let detail = &facts.detail[..facts.detail.floor_char_boundary(DETAIL_BYTES_MAX)];
        Self {
            at,
            reason,
            detail: detail.into(),
            listener,
            peer: facts.peer,
            identity: facts.identity,
            tls_version: facts.tls_version,
            connected_at: facts.connected_at,
            generation: None,
        }
    }
}

/// The latest ends.
#[derive(Debug, Default)]
pub(super) struct History {
    ends: Mutex<Ends>,
}

#[derive(Debug, Default)]
struct Ends {
    /// Oldest first, each with its number.
    by_device: HashMap<Box<str>, VecDeque<(u64, End)>>,
    /// All of them in order, with the device; those that made room within their device are stale.
    order: VecDeque<(u64, Box<str>)>,
    next: u64,
    held: usize,
}

impl History {
    /// A device has gone.
    pub(super) fn add_disconnected(&self, presence: &Presence, reason: CloseReason) {
        let mut end = End::new(presence.at, reason, presence.listener, &presence.facts);
        end.generation = Some(presence.generation);
        self.add(&presence.device, end);
    }

    /// A connection did not become a device. Those that had not said who they are belong to nobody.
    pub(super) fn add_not_admitted(&self, end: &NotAdmitted) {
        if !end.device.is_empty() {
            self.add(&end.device, End::new(end.at, end.reason, end.listener, &end.facts));
        }
    }

    /// The ends of a device, newest first.
    pub(super) fn of(&self, device: &str) -> Vec<End> {
        let ends = self.ends.lock().expect("no holder panics");
        let ends = ends.by_device.get(device).into_iter().flatten();
        ends.rev().map(|(_, end)| end.clone()).collect()
    }

    fn add(&self, device: &str, end: End) {
        let mut ends = self.ends.lock().expect("no holder panics");
        let ends = &mut *ends;
        let number = ends.next;
        ends.next += 1;
        let of_device = ends.by_device.entry(device.into()).or_default();
        of_device.push_back((number, end));
        ends.order.push_back((number, device.into()));
        ends.held += 1;
        if of_device.len() > ENDS_PER_DEVICE_MAX {
            of_device.pop_front();
            ends.held -= 1;
        }
        // Stale entries go with their turn, and at the latest when there are as many again.
        while ends.held > ENDS_MAX || ends.order.len() > ENDS_MAX * 2 {
            ends.forget_oldest();
        }
    }
}

impl Ends {
    fn forget_oldest(&mut self) {
        let (number, device) = self.order.pop_front().expect("every end is in the order");
        let Some(of_device) = self.by_device.get_mut(&device) else { return };
        if of_device.front().is_some_and(|(oldest, _)| *oldest == number) {
            of_device.pop_front();
            self.held -= 1;
            if of_device.is_empty() {
                self.by_device.remove(&device);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::ConnectionId;

    fn end(device: &str, number: u64) -> NotAdmitted {
        let facts = ConnectionFacts {
            connection: ConnectionId { slot: crate::link::ConnectionSlot(1), generation: 1 },
            peer: Some(([192, 0, 2, 7], 1).into()),
            identity: "hello",
            tls_version: "TLSv1.3",
            connected_at: Moment::default(),
            detail: "why".into(),
        };
        let (at, reason) = (Moment::from_micros(number), CloseReason::TokenRejected);
        NotAdmitted { device: device.into(), listener: ListenerId(0), reason, at, facts }
    }

    fn times(history: &History, device: &str) -> Vec<u64> {
        history.of(device).iter().map(|end| end.at.micros()).collect()
    }

    #[test]
    fn the_latest_ends_of_a_device_are_kept_newest_first() {
        let history = History::default();
        for number in 0..100 {
            history.add_not_admitted(&end("busy", number));
            if number % 10 == 0 {
                history.add_not_admitted(&end("calm", number));
            }
            history.add_not_admitted(&end("", number));
        }
        assert_eq!(times(&history, "busy"), (84..100).rev().collect::<Vec<_>>());
        assert_eq!(times(&history, "calm"), (0..10).rev().map(|ten| ten * 10).collect::<Vec<_>>());
        assert!(times(&history, "nobody").is_empty());
        assert!(times(&history, "").is_empty(), "strangers are not collected under no name");
    }

    #[test]
    fn the_number_of_ends_is_bounded_whoever_comes() {
        let history = History::default();
        for number in 0..ENDS_MAX as u64 * 3 {
            history.add_not_admitted(&end(&format!("d{number}"), number));
            // One that flaps takes its own places only.
            history.add_not_admitted(&end("flapping", number));
        }
        let ends = history.ends.lock().unwrap();
        assert_eq!(ends.held, ends.by_device.values().map(VecDeque::len).sum::<usize>());
        assert!(ends.held <= ENDS_MAX && ends.order.len() <= ENDS_MAX * 2, "{} {}", ends.held, ends.order.len());
        assert!(ends.by_device.len() > ENDS_MAX / 2, "{} devices", ends.by_device.len());
        assert_eq!(ends.by_device["flapping"].len(), ENDS_PER_DEVICE_MAX);
    }
}
