//! How far this gateway has come in the fleet's stream, and what of it is for somebody here. Pure.
//!
//! ```text
//!                 taken          the end when "b" was first read
//!   ────────────────┼──────────────────────────┼───────────────────▶ sequence
//!                     only what "a" matches       what "a" or "b" matches
//! ```
//!
//! A consumer that is made with another filter is made from where the one before it has come to. Where that lies back, the new filter
//! would bring what was published before anybody had subscribed to it.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::link::QoS;
use crate::sink::nats::subject;

/// So many changes of what is wanted are told apart; beyond that the two oldest count as one, and what comes may be older than who
/// gets it.
const CHANGES_MAX: usize = 16;

/// Where it was, as it was kept, or is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// Which stream: when it was made.
    pub stream: Arc<str>,
    /// Every message up to this one was taken.
    pub position: u64,
}

/// What the stream is like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamFacts {
    /// When it was made.
    pub created: Arc<str>,
    /// The first message that it holds,
    pub first: u64,
    /// and the last.
    pub last: u64,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Place {
    stream: Arc<str>,
    /// Every message up to this one was taken, or is for nobody here.
    position: u64,
    /// From behind which message which subjects were wanted, in order.
    changes: VecDeque<(u64, Vec<String>)>,
    /// Messages without an acknowledgement up to this one were published when this process was not there: nobody was connected then.
    quiet_until: u64,
    /// Messages that the stream let go before they were read, at most.
    missed: u64,
}

impl Place {
    /// Where a gateway begins that was at `kept` before, or was never one of this fleet: then at the stream's end.
    pub fn new(kept: Option<&Position>, facts: &StreamFacts) -> Self {
        let position = match kept {
            Some(kept) if kept.stream == facts.created => kept.position,
            // Another stream than before: all of it came since.
            Some(_) => 0,
            None => facts.last,
        };
        let stream = Arc::clone(&facts.created);
        let mut place = Self { stream, position, changes: VecDeque::new(), quiet_until: facts.last, missed: 0 };
        place.look(facts);
        place
    }

    /// The stream is as it is now: it may be another one, or have let go what was not read.
    pub fn look(&mut self, facts: &StreamFacts) {
        if self.stream != facts.created {
            // Nobody has read any of it.
            (self.stream, self.position, self.quiet_until) = (Arc::clone(&facts.created), 0, 0);
            if let Some((_, wanted)) = self.changes.pop_back() {
                self.resume(&wanted);
            }
        }
        // A server that lost its last messages gives their numbers again.
        self.position = self.position.min(facts.last);
        if self.position + 1 < facts.first {
            self.missed += facts.first - 1 - self.position;
            self.advance(facts.first - 1);
        }
    }

    /// Where it is.
    pub fn position(&self) -> Position {
        Position { stream: Arc::clone(&self.stream), position: self.position }
    }

    /// Messages that the stream let go before they were read, at most; those are told once.
    pub fn take_missed(&mut self) -> u64 {
        std::mem::take(&mut self.missed)
    }

    /// The last of the changes of what is wanted.
    pub fn wanted(&self) -> &[String] {
        self.changes.back().map_or(&[], |(_, subjects)| subjects)
    }

    /// What is wanted now was wanted all the while: as it is for a gateway that begins anew with the sessions that it had.
    pub fn resume(&mut self, subjects: &[String]) {
        self.changes = VecDeque::from([(self.position, subjects.to_vec())]);
    }

    /// From behind `last`, the stream's end, on `subjects` are wanted. `is_read`: all that was wanted up to there was taken.
    pub fn want(&mut self, subjects: &[String], last: u64, is_read: bool) {
        if is_read || self.wanted().is_empty() {
            self.advance(last);
            self.changes.clear();
        }
        let from = if self.changes.is_empty() { self.position } else { last };
        self.changes.push_back((from, subjects.to_vec()));
        if self.changes.len() > CHANGES_MAX {
            let oldest = self.changes.pop_front().map_or(0, |(from, _)| from);
            if let Some(second) = self.changes.front_mut() {
                second.0 = oldest;
            }
        }
    }

    /// Everything up to this one was taken, or is for nobody here.
    pub fn advance(&mut self, seq: u64) {
        self.position = self.position.max(seq);
        while self.changes.get(1).is_some_and(|(from, _)| *from <= self.position) {
            self.changes.pop_front();
        }
    }

    /// A message has come; it counts as taken. Whether it is for somebody here.
    pub fn take(&mut self, seq: u64, subject: &str, qos: QoS) -> bool {
        if seq <= self.position {
            return false;
        }
        let in_force = self.changes.iter().rev().find(|(from, _)| *from < seq);
        let is_wanted = match in_force {
            // Nearly always: what comes is what was asked for.
            Some(_) if self.changes.len() == 1 => true,
            Some((_, subjects)) => subjects.iter().any(|wanted| subject::covers(wanted, subject)),
            None => false,
        };
        self.advance(seq);
        is_wanted && (qos.is_acknowledged() || seq > self.quiet_until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(created: &str, first: u64, last: u64) -> StreamFacts {
        StreamFacts { created: created.into(), first, last }
    }

    fn kept(stream: &str, position: u64) -> Position {
        Position { stream: stream.into(), position }
    }

    fn subjects(all: &[&str]) -> Vec<String> {
        all.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_gateway_begins_at_the_end_and_goes_on_where_it_was() {
        assert_eq!(Place::new(None, &facts("t1", 1, 90)).position(), kept("t1", 90));
        assert_eq!(Place::new(Some(&kept("t1", 40)), &facts("t1", 1, 90)).position(), kept("t1", 40));
        assert_eq!(Place::new(Some(&kept("t0", 40)), &facts("t1", 1, 90)).position(), kept("t1", 0));
        // The server lost its last ones.
        assert_eq!(Place::new(Some(&kept("t1", 95)), &facts("t1", 1, 90)).position(), kept("t1", 90));
        // The stream let go what was not read.
        let mut late = Place::new(Some(&kept("t1", 40)), &facts("t1", 61, 90));
        assert_eq!((late.position(), late.take_missed(), late.take_missed()), (kept("t1", 60), 20, 0));
        // An empty stream's first is behind its last.
        assert_eq!(Place::new(Some(&kept("t1", 90)), &facts("t1", 91, 90)).take_missed(), 0);
        // Made anew while it is read.
        late.resume(&subjects(&["a"]));
        late.look(&facts("t2", 1, 5));
        assert_eq!(late.position(), kept("t2", 0));
        assert!(late.take(3, "a", QoS::AtMostOnce), "what was wanted is wanted there");
    }

    #[test]
    fn nobody_gets_what_was_published_before_he_subscribed() {
        let mut place = Place::new(Some(&kept("t", 10)), &facts("t", 1, 10));
        place.want(&subjects(&["a"]), 10, false);
        assert!(place.take(11, "a", QoS::AtLeastOnce));
        // Nothing has come since, and much was published: what is read of it begins when "b" is wanted.
        place.want(&subjects(&["a", "b"]), 100, true);
        assert_eq!(place.position(), kept("t", 100));
        assert!(place.take(101, "b", QoS::AtLeastOnce));
        // It is not known whether all that was wanted was read: what comes is looked at.
        place.want(&subjects(&["a", "b", "c"]), 200, false);
        assert!(!place.take(150, "c", QoS::AtLeastOnce) && place.take(160, "b", QoS::AtLeastOnce));
        assert!(place.take(201, "c", QoS::AtLeastOnce));
        assert!(!place.take(201, "c", QoS::AtLeastOnce) && !place.take(7, "a", QoS::AtLeastOnce), "once");
        // From nothing at all to something: nothing before it was wanted.
        let mut place = Place::new(Some(&kept("t", 10)), &facts("t", 1, 50));
        place.want(&[], 50, false);
        place.want(&subjects(&["a"]), 70, false);
        assert_eq!(place.position(), kept("t", 70));
    }

    #[test]
    fn what_no_acknowledgement_is_asked_for_is_for_who_was_there() {
        let mut place = Place::new(Some(&kept("t", 10)), &facts("t", 1, 20));
        // What was wanted before the process ended is wanted on.
        let wanted = subjects(&["a"]);
        place.resume(&wanted);
        assert!(!place.take(15, "a", QoS::AtMostOnce) && place.take(16, "a", QoS::ExactlyOnce));
        assert!(place.take(21, "a", QoS::AtMostOnce));
    }

    /// Whatever changes and however far it is read: a message is for somebody if its subject was wanted when it was published.
    #[test]
    fn what_is_for_somebody_is_what_was_wanted_when_it_was_published() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut place = Place::new(Some(&kept("t", 0)), &facts("t", 1, 0));
            let (mut published, mut wanted_at) = (Vec::new(), Vec::new());
            let mut wanted = subjects(&["a"]);
            place.resume(&wanted);
            let (mut read, mut changes) = (0, 0);
            for _ in 0..200 {
                match random.u8(..4) {
                    0 | 1 => {
                        published.push(["a", "b", "c", "d"][random.usize(..4)]);
                        wanted_at.push(wanted.clone());
                    }
                    2 if read < published.len() => {
                        let (subject, then) = (published[read], &wanted_at[read]);
                        read += 1;
                        // The consumer brings what is wanted now, or was.
                        if wanted.iter().any(|wanted| wanted == subject) {
                            let is_taken = place.take(read as u64, subject, QoS::AtLeastOnce);
                            assert_eq!(is_taken, then.iter().any(|wanted| wanted == subject), "seed {seed}");
                        }
                    }
                    3 if changes < CHANGES_MAX - 1 && wanted.len() < 4 => {
                        let more = ["a", "b", "c", "d"][random.usize(..4)].to_owned();
                        if !wanted.contains(&more) {
                            wanted.push(more);
                        }
                        changes += 1;
                        place.want(&wanted, published.len() as u64, read == published.len());
                    }
                    _ => {}
                }
            }
        }
    }
}
