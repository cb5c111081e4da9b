//! How much is asked for of one group's messages. Pure.
//!
//! NATS gives a message to whichever question is next, one after the other, and a question that wants more goes to the end of the line: so
//! as many questions wait for a group as its members have room for, and of all gateways' members each has its part. A question is for few
//! messages, and the next follows when there is room for it: what was given and is not settled counts against it. So whoever is slow is
//! asked for less.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Messages in one question, where there is room for so many.
pub const ASKED: u32 = 4;
/// Messages that are asked for at a time, of all groups of a gateway. Where members have more room, each group has its part of these.
pub const ROOM_ASKED_MAX: u32 = 2_048;
/// The server ends a question after so long, and says so.
pub const EXPIRES: Duration = Duration::from_secs(5);
/// So much later it is not waited for any more.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(2);

/// One question that is to be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pull {
    pub number: u64,
    pub messages: u32,
    /// Whatever its size: one that was too large for the others is next.
    pub is_large: bool,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Pulls {
    next: u64,
    /// Messages that may come.
    credit: u32,
    /// Questions by number, until when they may be answered.
    open: BTreeMap<u64, Instant>,
    /// The next message is larger than a question of several takes.
    is_large: bool,
}

/// How much of a group's room is asked for, of so much of all groups.
pub fn share(room: u32, of_all: u32) -> u32 {
    if of_all <= ROOM_ASKED_MAX {
        return room;
    }
    let part = u64::from(room) * u64::from(ROOM_ASKED_MAX) / u64::from(of_all);
    (part as u32).max(room.min(ASKED))
}

impl Pulls {
    /// What is to be asked, with so much `room` among members, while so much that was given is not settled.
    pub fn ask(&mut self, room: u32, unsettled: u32, now: Instant) -> Vec<Pull> {
        self.forget(now);
        let mut pulls = Vec::new();
        if self.is_large {
            if self.open.is_empty() && unsettled < room {
                pulls.push(self.open(1, true, now));
            }
            return pulls;
        }
        loop {
            let free = room.saturating_sub(self.credit + unsettled);
            // Few are asked for where nothing else is.
            if free == 0 || (free < ASKED && self.credit > 0) {
                return pulls;
            }
            pulls.push(self.open(free.min(ASKED), false, now));
        }
    }

    fn open(&mut self, messages: u32, is_large: bool, now: Instant) -> Pull {
        self.next += 1;
        self.credit += messages;
        self.open.insert(self.next, now + EXPIRES + FORGOTTEN_AFTER);
        Pull { number: self.next, messages, is_large }
    }

    /// A message has come, by whichever question.
    pub fn handle_message(&mut self) {
        self.credit = self.credit.saturating_sub(1);
        self.is_large = false;
    }

    /// The server has ended a question, of which so many messages did not come.
    pub fn handle_end(&mut self, number: u64, left: u32, is_too_large: bool) {
        self.is_large |= is_too_large;
        if self.open.remove(&number).is_some() {
            self.credit = self.credit.saturating_sub(left);
        }
        self.settle();
    }

    /// The connection is another one, or the consumer: nothing that was asked is answered.
    pub fn clear(&mut self) {
        (self.credit, self.is_large) = (0, false);
        self.open.clear();
    }

    fn forget(&mut self, now: Instant) {
        // The oldest come first.
        while self.open.first_entry().is_some_and(|oldest| *oldest.get() <= now) {
            self.open.pop_first();
        }
        self.settle();
    }

    /// Whatever was lost on the way is not waited for when no question is open.
    fn settle(&mut self) {
        if self.open.is_empty() {
            self.credit = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn as_much_is_asked_as_there_are_members_and_no_more_than_they_settle() {
        let (mut pulls, now) = (Pulls::default(), Instant::now());
        assert_eq!(pulls.ask(0, 0, now), []);
        let first = pulls.ask(24, 0, now);
        assert_eq!((first.len(), first[0].messages), (6, ASKED));
        assert_eq!(pulls.ask(24, 0, now), []);
        (0..ASKED).for_each(|_| pulls.handle_message());
        assert_eq!(pulls.ask(24, ASKED, now), [], "what was given is not settled");
        assert_eq!(pulls.ask(24, 0, now).len(), 1);
        // A question that is ended gives back what is left of it; one that is not heard of is forgotten.
        pulls.handle_end(first[1].number, 3, false);
        pulls.handle_end(first[1].number, 3, false);
        assert_eq!(pulls.ask(24, 0, now), []);
        pulls.handle_message();
        assert_eq!(pulls.ask(24, 0, now).len(), 1);
        assert_eq!(pulls.ask(24, 0, now + EXPIRES + FORGOTTEN_AFTER).len(), 6);
    }

    /// Whoever takes one at a time is asked for one.
    #[test]
    fn no_more_is_asked_for_than_there_is_room() {
        for room in 1..40 {
            let (mut pulls, now) = (Pulls::default(), Instant::now());
            let sum = |pulls: &[Pull]| pulls.iter().map(|pull| pull.messages).sum::<u32>();
            let asked = sum(&pulls.ask(room, 0, now));
            assert!(asked <= room && asked + ASKED > room && asked > 0, "{asked} of {room}");
            for given in 1..=asked {
                pulls.handle_message();
                let more = sum(&pulls.ask(room, given, now));
                assert!(asked + more <= room, "{asked} and {more} of {room}");
                if more > 0 {
                    break;
                }
            }
        }
    }

    #[test]
    fn what_is_too_large_for_many_is_asked_for_alone() {
        let (mut pulls, now) = (Pulls::default(), Instant::now());
        for pull in pulls.ask(8, 0, now) {
            pulls.handle_end(pull.number, pull.messages, true);
        }
        let alone = pulls.ask(8, 0, now);
        assert_eq!(alone, [Pull { number: 3, messages: 1, is_large: true }]);
        assert_eq!(pulls.ask(8, 0, now), []);
        pulls.handle_message();
        pulls.handle_end(alone[0].number, 0, false);
        assert_eq!(pulls.ask(8, 1, now).len(), 1);
    }

    #[test]
    fn a_crowd_has_its_part() {
        assert_eq!((share(0, 10), share(7, 10), share(1, 100_000), share(8, 100_000)), (0, 7, 1, ASKED));
        assert_eq!(share(2 * ROOM_ASKED_MAX, 4 * ROOM_ASKED_MAX), ROOM_ASKED_MAX / 2);
    }

    /// A line of questions as the server keeps it: gateways with 9, 3 and 1 members get 9, 3 and 1 parts, whatever the rate.
    #[test]
    fn each_member_of_the_fleet_has_the_same_part() {
        for settles_after in [0, 3, 40] {
            let (members, now) = ([9_u32, 3, 1], Instant::now());
            let mut gateways = [Pulls::default(), Pulls::default(), Pulls::default()];
            let (mut line, mut got) = (VecDeque::new(), [0_u32; 3]);
            // What was given and when it is settled.
            let mut unsettled: VecDeque<(u32, usize)> = VecDeque::new();
            for turn in 0..13_000 {
                while unsettled.front().is_some_and(|(due, _)| *due <= turn) {
                    unsettled.pop_front();
                }
                for (number, pulls) in gateways.iter_mut().enumerate() {
                    let open = unsettled.iter().filter(|(_, of)| *of == number).count() as u32;
                    line.extend(
                        pulls.ask(members[number] * 8, open, now).into_iter().map(|pull| (number, pull.messages)),
                    );
                }
                let Some((number, left)) = line.pop_front() else { continue };
                if left > 1 {
                    line.push_back((number, left - 1));
                }
                gateways[number].handle_message();
                unsettled.push_back((turn + settles_after, number));
                got[number] += 1;
            }
            let all: u32 = got.iter().sum();
            for (number, members) in members.iter().enumerate() {
                let fair = all * members / 13;
                assert!(got[number].abs_diff(fair) <= fair / 5, "{settles_after}: {got:?}");
            }
        }
    }
}
