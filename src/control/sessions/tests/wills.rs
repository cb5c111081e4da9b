//! Connections as the world knows them, and what must and must not become of the will that each has left.
//!
//! | the connection | its will is published |
//! | --- | --- |
//! | stands, or has said goodbye | never |
//! | was lost, or another one took its place | once: at once, or, if it waits for its delay, unless the device is back before; a new session does not count as back |
//! | went with its gateway | once, by another gateway or by the next life of this one, unless the device was somewhere before |
//!
//! What a gateway does that knows nothing of the others, and what becomes of what it was just about to say when it died, is not judged.

use std::time::Duration;

use tokio::time::Instant;

use super::nats::LEASE;
use super::troubles::Troubles;

/// What is said before and after a trouble may be lost, or come twice; and what is late.
const MARGIN: Duration = Duration::from_secs(15);
/// Between asking where a device is and publishing its will.
const RACE: Duration = Duration::from_secs(5);
/// How long it may take until another gateway publishes the will of one that has died: its lease ends, and the look at rows begins.
const SWEPT: Duration = LEASE.saturating_mul(4);

/// How a connection has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Lost,
    Goodbye,
    /// The device came again, to the same gateway;
    Followed,
    /// to another one.
    Disowned,
    /// It was asked to come again.
    PutOff,
    Killed,
}

/// A will that was published: when, and whether it was sure that it was to be.
#[derive(Clone, Copy, Debug)]
struct Published {
    when: Instant,
    is_sure: bool,
}

/// A connection.
#[derive(Clone, Debug)]
pub struct Life {
    pub device: usize,
    pub at: usize,
    pub is_clean: bool,
    /// How long its will waits, if it has one.
    pub delay: Option<Duration>,
    pub came: Instant,
    /// Whether it was let in.
    is_attached: bool,
    /// When CONNACK was sent, and whether it was known where the session is.
    greeted: Option<(Instant, bool)>,
    /// When the device was no more at it,
    left: Option<Instant>,
    /// and when its gateway knew so.
    ended: Option<(Instant, End)>,
    published: Vec<Published>,
}

/// All connections that there were, by their numbers, the first of which is 1.
#[derive(Default)]
pub struct Ledger(Vec<Life>);

impl Ledger {
    pub fn come(&mut self, device: usize, at: usize, is_clean: bool, delay: Option<Duration>, now: Instant) -> u64 {
        let (is_attached, greeted, left, ended, published) = (false, None, None, None, Vec::new());
        self.0.push(Life { device, at, is_clean, delay, came: now, is_attached, greeted, left, ended, published });
        self.0.len() as u64
    }

    fn life(&mut self, serial: u64) -> &mut Life {
        &mut self.0[serial as usize - 1]
    }

    pub fn attach(&mut self, serial: u64) {
        self.life(serial).is_attached = true;
    }

    pub fn greet(&mut self, serial: u64, is_sure: bool, now: Instant) {
        self.life(serial).greeted.get_or_insert((now, is_sure));
    }

    pub fn leave(&mut self, serial: u64, now: Instant) {
        self.life(serial).left.get_or_insert(now);
    }

    pub fn end(&mut self, serial: u64, end: End, now: Instant) {
        self.leave(serial, now);
        self.life(serial).ended.get_or_insert((now, end));
    }

    /// A gateway is no more, and all connections with it. Which.
    pub fn kill(&mut self, at: usize, now: Instant) -> Vec<u64> {
        let is_there =
            |serial: &u64| self.0[*serial as usize - 1].at == at && self.0[*serial as usize - 1].ended.is_none();
        let there: Vec<u64> = (1..=self.0.len() as u64).filter(is_there).collect();
        for &serial in &there {
            self.end(serial, End::Killed, now);
        }
        there
    }

    pub fn publish(&mut self, serial: u64, is_sure: bool, now: Instant) {
        self.life(serial).published.push(Published { when: now, is_sure });
    }

    /// Wills that were published.
    pub fn count(&self) -> usize {
        self.0.iter().map(|life| life.published.len()).sum()
    }

    /// What is wrong with all of it.
    pub fn judge(&self, troubles: &Troubles, now: Instant) -> Vec<String> {
        let judged = self.0.iter().enumerate().filter(|(_, life)| life.delay.is_some());
        judged.flat_map(|(place, life)| self.judge_one(place, life, troubles, now)).collect()
    }

    fn judge_one(&self, place: usize, life: &Life, troubles: &Troubles, now: Instant) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut add = |what: &str| wrong.push(format!("the will of connection {} {what}", place + 1));
        if life.is_twice(troubles) {
            add("is published twice");
        }
        if life.is_of_living(troubles) {
            add("is published though its device has not been lost");
        }
        if !life.is_attached && !life.published.is_empty() {
            add("is published though it was never let in");
        }
        if self.is_void(place, life) {
            add("is published though its device is back");
        }
        if life.published.is_empty() && self.is_owed(place, life, troubles, now) {
            add("is not published");
        }
        wrong
    }

    /// Those of the same device that came later.
    fn later(&self, place: usize) -> impl Iterator<Item = &Life> {
        let device = self.0[place].device;
        self.0[place + 1..].iter().filter(move |life| life.device == device)
    }

    /// It was published for certain, and the device had been greeted somewhere before it was due.
    fn is_void(&self, place: usize, life: &Life) -> bool {
        let (Some(delay), Some((_, end)), Some(left)) = (life.delay, life.ended, life.left) else { return false };
        if delay.is_zero() && end != End::Killed {
            return false;
        }
        let due = if end == End::Killed { None } else { Some(left + delay) };
        self.later(place).filter(|later| !later.is_clean).any(|later| {
            let Some((back, true)) = later.greeted else { return false };
            let is_in_time = due.is_none_or(|due| back < due);
            is_in_time && life.published.iter().any(|one| one.is_sure && one.when > back + RACE)
        })
    }

    /// It was to be published by now, whatever else was.
    fn is_owed(&self, place: usize, life: &Life, troubles: &Troubles, now: Instant) -> bool {
        let (Some(delay), Some((ended, end)), Some(_)) = (life.delay, life.ended, life.greeted) else { return false };
        let (from, next) = (ended.checked_sub(MARGIN).unwrap_or(ended), self.later(place).next());
        let by = match end {
            End::Killed => ended + SWEPT + delay,
            End::Lost => ended + delay,
            End::Followed | End::Disowned if delay.is_zero() => ended,
            End::Goodbye | End::PutOff | End::Followed | End::Disowned => return false,
        } + MARGIN;
        if by > now {
            return false;
        }
        if end == End::Killed {
            let is_back = next.is_some_and(|next| next.came < by);
            let others = (0..super::GATEWAYS).filter(|at| *at != life.at);
            return !is_back && others.into_iter().all(|at| troubles.is_quiet(at, (ended, by)));
        }
        if delay.is_zero() {
            return troubles.is_quiet(life.at, (from, by));
        }
        // A gateway that stands still may be believed to have the device that it had.
        let are_quiet = (0..super::GATEWAYS).all(|at| troubles.is_quiet(at, (from, by)));
        let back = next.filter(|next| next.came < by);
        are_quiet && back.is_none_or(|next| next.has_begun_anew(ended, troubles, now))
    }
}

impl Life {
    /// Its session was to be a new one, and the one before had ended by now.
    fn has_begun_anew(&self, since: Instant, troubles: &Troubles, now: Instant) -> bool {
        let Some((greeted, true)) = self.greeted else { return false };
        let by = greeted + MARGIN;
        self.is_clean && self.came > since && by < now && troubles.is_quiet(self.at, (self.came, by))
    }

    fn is_twice(&self, troubles: &Troubles) -> bool {
        let (Some(first), Some(last)) = (self.published.first(), self.published.last()) else { return false };
        if self.published.len() < 2 || self.published.iter().any(|one| !one.is_sure) {
            return false;
        }
        let span = (self.left.unwrap_or(first.when), last.when + MARGIN);
        match self.ended {
            // Two may look at the same instant.
            Some((_, End::Killed)) => last.when > first.when + RACE && troubles.is_quiet_but_killed(self.at, span),
            _ => troubles.is_quiet(self.at, span),
        }
    }

    fn is_of_living(&self, troubles: &Troubles) -> bool {
        self.published.iter().any(|one| {
            let since = one.when.checked_sub(MARGIN).unwrap_or(one.when);
            let is_well = |from: Instant| troubles.is_quiet(self.at, (from.min(since), one.when));
            match (self.left, self.ended) {
                (_, Some((ended, End::Goodbye))) => {
                    troubles.is_quiet(self.at, (ended.checked_sub(MARGIN).unwrap_or(ended), ended + MARGIN))
                }
                (None, _) => is_well(one.when),
                (Some(left), _) => one.when < left && is_well(left),
            }
        })
    }
}
