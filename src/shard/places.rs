//! Places among the handshakes: who gets one, and who gives his way.
//!
//! A handshake costs some 10 KB and 100 µs of work, so there are only so many at a time. A place is for a whole ClientHello
//! (`tls::handshake::scan`): a peer that sends a byte, or half of one, holds its bytes and nothing else. When all places are
//! taken and somebody waits, whoever has been silent for longest gives way, once that is longer than the handshakes of
//! late have been. And an address that holds a quarter of the places lets others go first, and gives way to them as soon as
//! anybody may be asked to, so that nobody keeps the others out alone.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use crate::link::ConnectionId;
use crate::slot::ConnectionSlot;
use crate::time::{Moment, Tick, ticks_ceil};

/// Nobody gives way before so much silence: round trips over satellites come to two thirds of a second, twice.
const SILENCE_MIN: Duration = Duration::from_millis(500);
/// Beyond this nobody is waited for while others wait: small devices take seconds for their part.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Of the places, the part that one address may hold while others wait.
const SHARE: usize = 4;

/// The places of one shard, and those who wait for them.
pub(super) struct Places {
    max: usize,
    /// Connections with bytes to read whose handshake has not begun, first come first served.
    waiting: VecDeque<ConnectionId>,
    /// The same of those whose address has its share: they come when nobody else waits.
    crowded: VecDeque<ConnectionId>,
    /// Handshakes in progress, by when they were heard; looked up before anything is done on it.
    silent: VecDeque<(ConnectionId, Moment)>,
    /// How many places an address holds, and which one each newcomer has.
    held: HashMap<Prefix, u32>,
    peers: HashMap<ConnectionSlot, Prefix>,
    silence: Silence,
}

/// Of IPv6 a network, which one customer has all of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Prefix {
    V4([u8; 4]),
    V6([u8; 8]),
}

impl Prefix {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Prefix::V4(address.octets()),
            IpAddr::V6(address) => Prefix::V6(*address.octets().first_chunk().expect("16 bytes")),
        }
    }
}

/// For how long handshakes that came to their end were silent at the most, as TCP estimates its round trips (RFC 6298): a
/// mean and a mean deviation.
#[derive(Clone, Copy, Debug, Default)]
struct Silence {
    mean: Option<Duration>,
    deviation: Duration,
}

impl Silence {
    fn note(&mut self, silence: Duration) {
        match &mut self.mean {
            None => (self.mean, self.deviation) = (Some(silence), silence / 2),
            Some(mean) => {
                self.deviation = self.deviation * 3 / 4 + mean.abs_diff(silence) / 4;
                *mean = *mean * 7 / 8 + silence / 8;
            }
        }
    }

    /// Longer than nearly all.
    fn bound(&self) -> Duration {
        match self.mean {
            None => SILENCE_MAX,
            Some(mean) => (mean + 4 * self.deviation).clamp(SILENCE_MIN, SILENCE_MAX),
        }
    }
}

impl Places {
    pub fn new(max: usize) -> Self {
        Self {
            max,
            waiting: VecDeque::new(),
            crowded: VecDeque::new(),
            silent: VecDeque::new(),
            held: HashMap::new(),
            peers: HashMap::new(),
            silence: Silence::default(),
        }
    }

    /// How many places there are from now on.
    pub fn set_max(&mut self, max: usize) {
        self.max = max;
    }

    /// A newcomer's address is known.
    pub fn note_peer(&mut self, slot: ConnectionSlot, address: IpAddr) {
        self.peers.insert(slot, Prefix::of(address));
    }

    /// A connection with bytes to read wants a place.
    pub fn wait(&mut self, id: ConnectionId) {
        if self.has_its_share(id.slot) { self.crowded.push_back(id) } else { self.waiting.push_back(id) }
    }

    fn share(&self) -> usize {
        self.max.div_ceil(SHARE)
    }

    fn held(&self, prefix: Option<&Prefix>) -> usize {
        prefix.and_then(|prefix| self.held.get(prefix)).map_or(0, |&held| held as usize)
    }

    fn has_its_share(&self, slot: ConnectionSlot) -> bool {
        self.held(self.peers.get(&slot)) >= self.share()
    }

    fn has_more_than_its_share(&self, slot: ConnectionSlot) -> bool {
        self.held(self.peers.get(&slot)) > self.share()
    }

    /// Whoever is next; those whose address has its share in the meantime step back.
    pub fn next(&mut self) -> Option<ConnectionId> {
        while let Some(id) = self.waiting.pop_front() {
            if !self.has_its_share(id.slot) {
                return Some(id);
            }
            self.crowded.push_back(id);
        }
        self.crowded.pop_front()
    }

    /// Whether anybody waits.
    pub fn has_waiting(&self) -> bool {
        !(self.waiting.is_empty() && self.crowded.is_empty())
    }

    /// All who wait, for the invariants.
    pub fn waiting(&self) -> impl Iterator<Item = &ConnectionId> {
        self.waiting.iter().chain(&self.crowded)
    }

    /// The first of those that come before everybody else; what `is_gone` is dropped.
    pub fn first_waiting(&mut self, is_gone: impl Fn(ConnectionId) -> bool) -> Option<ConnectionId> {
        first(&mut self.waiting, is_gone)
    }

    /// The same of those whose address has its share.
    pub fn first_crowded(&mut self, is_gone: impl Fn(ConnectionId) -> bool) -> Option<ConnectionId> {
        first(&mut self.crowded, is_gone)
    }

    /// Whether somebody who comes from this address now lets others go first.
    pub fn is_crowded(&self, address: IpAddr) -> bool {
        self.held(Some(&Prefix::of(address))) >= self.share()
    }

    /// A handshake has begun.
    pub fn begin(&mut self, id: ConnectionId, now: Moment) {
        self.silent.push_back((id, now));
        if let Some(prefix) = self.peers.get(&id.slot) {
            *self.held.entry(*prefix).or_default() += 1;
        }
    }

    /// One that was to give way was heard after all, at `heard`.
    pub fn keep(&mut self, id: ConnectionId, heard: Moment) {
        self.silent.push_back((id, heard));
    }

    /// A handshake has ended, after having been silent for so long at the most; none: it did not come to its end.
    pub fn end(&mut self, slot: ConnectionSlot, longest_silence: Option<Duration>) {
        if let Some(silence) = longest_silence {
            self.silence.note(silence);
        }
        if let Some(prefix) = self.peers.get(&slot)
            && let Some(held) = self.held.get_mut(prefix)
        {
            *held -= 1;
            if *held == 0 {
                self.held.remove(prefix);
            }
        }
    }

    /// The connection is a newcomer no more, or no connection.
    pub fn forget(&mut self, slot: ConnectionSlot) {
        self.peers.remove(&slot);
    }

    /// When to look for one that gives way, if somebody waits for it.
    pub fn next_look(&self) -> Option<Tick> {
        let (_, noted) = self.silent.front().filter(|_| self.has_waiting())?;
        let look = noted.tick().deadline_after(ticks_ceil(self.silence.bound()));
        let Some(position) = self.first_of_a_crowd() else { return Some(look) };
        let sooner = self.silent[position].1.tick().deadline_after(ticks_ceil(SILENCE_MIN));
        Some(if look.is_after(sooner) { sooner } else { look })
    }

    /// Where in `silent` the first is whose address has more than its share, if somebody else waits.
    fn first_of_a_crowd(&self) -> Option<usize> {
        if self.waiting.is_empty() {
            return None;
        }
        self.silent.iter().position(|(id, _)| self.has_more_than_its_share(id.slot))
    }

    /// The handshake that gives way: the one that has been silent for longest, if that is long enough. `heard` tells when a
    /// handshake was heard; none: it is over. At most a few are looked at.
    pub fn gives_way(
        &mut self,
        now: Moment,
        heard: impl Fn(ConnectionId) -> Option<Moment>,
    ) -> Option<(ConnectionId, Duration)> {
        let bound = self.silence.bound();
        for _ in 0..self.silent.len() {
            let (id, noted) = self.silent.pop_front()?;
            match heard(id) {
                None => {}
                Some(latest) if latest > noted => self.silent.push_back((id, latest)),
                Some(latest) if now.since(latest) > bound => return Some((id, now.since(latest))),
                Some(latest) => {
                    self.silent.push_front((id, latest));
                    break;
                }
            }
        }
        self.crowd_gives_way(now, heard)
    }

    /// Whoever has more than its share is waited for no longer than anybody must be.
    fn crowd_gives_way(
        &mut self,
        now: Moment,
        heard: impl Fn(ConnectionId) -> Option<Moment>,
    ) -> Option<(ConnectionId, Duration)> {
        for _ in 0..self.silent.len() {
            let (id, noted) = self.silent.remove(self.first_of_a_crowd()?)?;
            match heard(id) {
                None => {}
                Some(latest) if latest > noted => self.silent.push_back((id, latest)),
                Some(latest) if now.since(latest) > SILENCE_MIN => return Some((id, now.since(latest))),
                Some(latest) => {
                    // The first of its crowd is not silent for long enough: nor are those behind it.
                    let place = self.silent.partition_point(|(_, noted)| *noted < latest);
                    self.silent.insert(place, (id, latest));
                    return None;
                }
            }
        }
        None
    }
}

fn first(queue: &mut VecDeque<ConnectionId>, is_gone: impl Fn(ConnectionId) -> bool) -> Option<ConnectionId> {
    while let Some(&id) = queue.front() {
        if !is_gone(id) {
            return Some(id);
        }
        queue.pop_front();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn id(slot: u32) -> ConnectionId {
        ConnectionId { slot: ConnectionSlot(slot), generation: 1 }
    }

    fn at(millis: u64) -> Moment {
        Moment::from_micros(millis * 1_000)
    }

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn silence_is_long_when_it_is_longer_than_nearly_all() {
        let mut silence = Silence::default();
        assert_eq!(silence.bound(), SILENCE_MAX, "nothing is known");
        for _ in 0..50 {
            silence.note(millis(20));
        }
        assert_eq!(silence.bound(), SILENCE_MIN);
        // Every fourth device takes a second and a half for its part.
        for number in 0..200 {
            silence.note(millis(if number % 4 == 0 { 1_500 } else { 100 }));
        }
        assert!(silence.bound() > millis(1_500), "{:?}", silence.bound());
        for _ in 0..50 {
            silence.note(millis(9_000));
        }
        assert_eq!(silence.bound(), SILENCE_MAX);
    }

    #[test]
    fn the_longest_silent_gives_way_and_nobody_before_its_time() {
        let mut places = Places::new(4);
        for slot in 0..3 {
            places.begin(id(slot), at(u64::from(slot)));
        }
        places.silence.note(millis(10));
        let heard = |id: ConnectionId| [Some(at(0)), None, Some(at(600))][id.slot.index()];
        assert_eq!(places.gives_way(at(500), heard), None);
        assert_eq!(places.gives_way(at(501), heard), Some((id(0), millis(501))));
        // The second has ended, the third has been heard since.
        assert_eq!(places.gives_way(at(1_000), heard), None);
        assert_eq!(places.gives_way(at(1_101), heard), Some((id(2), millis(501))));
    }

    #[test]
    fn a_crowd_gives_way_to_others_sooner_than_somebody_alone() {
        let mut places = Places::new(8);
        let (crowd, other, alone) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into(), [192, 0, 2, 3].into());
        places.note_peer(ConnectionSlot(0), alone);
        places.begin(id(0), at(0));
        for slot in 1..8 {
            places.note_peer(ConnectionSlot(slot), crowd);
            places.begin(id(slot), at(100));
        }
        let heard = |id: ConnectionId| Some(at(if id.slot.0 == 0 { 0 } else { 100 }));
        places.note_peer(ConnectionSlot(8), crowd);
        places.wait(id(8));
        // One of themselves waits: nothing is known of how long handshakes take, and nobody is in a hurry.
        assert_eq!(places.gives_way(at(4_000), heard), None);
        assert!(places.next_look().unwrap().is_after(at(4_000).tick()));
        places.note_peer(ConnectionSlot(9), other);
        places.wait(id(9));
        assert!(!places.next_look().unwrap().is_after(at(700).tick()));
        assert_eq!(places.gives_way(at(600), heard), None);
        assert_eq!(places.gives_way(at(601), heard), Some((id(1), millis(501))));
        assert_eq!(places.next(), Some(id(9)));
        assert_eq!(places.gives_way(at(601), heard), None, "nobody else waits");
    }

    #[test]
    fn an_address_with_its_share_lets_others_go_first() {
        let mut places = Places::new(8);
        let (crowd, other) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
        for slot in 0..3 {
            places.note_peer(ConnectionSlot(slot), crowd);
        }
        places.note_peer(ConnectionSlot(3), other);
        places.begin(id(0), at(0));
        places.wait(id(1));
        places.begin(id(9), at(0));
        assert_eq!(places.next(), Some(id(1)), "one of eight is not a share");
        places.begin(id(1), at(0));
        places.wait(id(2));
        places.wait(id(3));
        assert_eq!(places.waiting().copied().collect::<Vec<_>>(), [id(3), id(2)]);
        assert_eq!((places.next(), places.next(), places.next()), (Some(id(3)), Some(id(2)), None));
        // With places of its own given back it is one among others.
        places.end(ConnectionSlot(0), None);
        places.forget(ConnectionSlot(0));
        places.wait(id(2));
        assert_eq!(places.waiting.len(), 1);
        // A network of IPv6 is one address.
        let (one, two) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        assert_eq!(Prefix::of(one), Prefix::of(two));
        assert_eq!(Prefix::of("::ffff:192.0.2.1".parse().unwrap()), Prefix::of(crowd));
    }
}
