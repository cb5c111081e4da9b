//! Up to which time every readable socket was read (decision D5).
//!
//! Edge-triggered epoll hands out sockets in the order in which they became ready, and hands each out once. So when a
//! poll returned fewer events than it had room for, every socket that was ready at that time has been handed out. When
//! polls come back full, as many events as there are sockets must be seen before the same is certain of the time at
//! which that began.

use crate::time::Tick;

/// The drained time. It never goes back, and however busy the loop is, it goes on.
pub(super) struct Drained {
    until: Tick,
    /// What takes its turn among the sockets: the doorbell, listeners, ways to other workers.
    others: usize,
    full: Option<FullPolls>,
}

/// Full polls in a row: when the first came back, and how many events they brought.
struct FullPolls {
    since: Tick,
    events: usize,
}

impl Drained {
    /// At `now`, with so many `others` registered besides sockets.
    pub(super) fn new(now: Tick, others: usize) -> Self {
        Self { until: now, others, full: None }
    }

    /// A poll came back at `now` with `events` events of at most `room`, while so many `sockets` are registered. Its
    /// events will have been read when the answer, the drained time, is used.
    pub(super) fn handle_poll(&mut self, now: Tick, events: usize, room: usize, sockets: usize) -> Tick {
        if events < room {
            self.full = None;
            self.until = now;
            return self.until;
        }
        let full = self.full.get_or_insert(FullPolls { since: now, events: 0 });
        full.events += events;
        if full.events >= sockets + self.others {
            self.until = full.since;
            self.full = None;
        }
        self.until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poll_with_room_to_spare_drains_up_to_now() {
        let mut drained = Drained::new(Tick(5), 3);
        assert_eq!(drained.handle_poll(Tick(9), 0, 10, 100), Tick(9));
        assert_eq!(drained.handle_poll(Tick(12), 9, 10, 100), Tick(12));
    }

    #[test]
    fn full_polls_drain_up_to_their_first_when_every_socket_had_its_chance() {
        let mut drained = Drained::new(Tick(5), 0);
        for tick in 10..19 {
            assert_eq!(drained.handle_poll(Tick(tick), 10, 10, 100), Tick(5), "{tick}");
        }
        assert_eq!(drained.handle_poll(Tick(19), 10, 10, 100), Tick(10));
        assert_eq!(drained.handle_poll(Tick(20), 10, 10, 100), Tick(10));
        assert_eq!(drained.handle_poll(Tick(21), 3, 10, 100), Tick(21));
    }

    /// A busy doorbell may be in every poll: its events say nothing about the sockets that are still to come.
    #[test]
    fn what_is_no_socket_is_waited_for_as_well() {
        let mut drained = Drained::new(Tick(5), 3);
        for tick in 10..20 {
            assert_eq!(drained.handle_poll(Tick(tick), 10, 10, 100), Tick(5), "{tick}");
        }
        assert_eq!(drained.handle_poll(Tick(20), 10, 10, 100), Tick(10));
    }
}
