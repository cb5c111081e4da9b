//! From where connections come: how many live ones each address and each network has, and how fast new ones came. One table
//! for all workers, since the kernel spreads the connections of an address over them.
//!
//! The table never grows. It is made of sets of eight entries; where a set is full, the entry with the fewest connections
//! gives way, and whoever it was about is not counted any more. So whoever holds many connections stays in it, however many
//! others come and go, and what is counted is never more than what is there: nobody is refused by mistake. Each lock is
//! held for one set and a few dozen instructions, once when a connection comes and once when it ends.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use siphasher::sip::SipHasher13;

use super::{ConnectionId, Refusal, WorkerId};
use crate::network::Network;
use crate::time::Moment;

/// Entries of one set.
const WAYS: usize = 8;
/// Entries of the table, addresses and networks together: a line of the memory budget.
pub const ADDRESS_ENTRIES: usize = 1 << INDEX_BITS;
/// Of a [`Counted`], so many bits say which entry.
const INDEX_BITS: u32 = 16;
/// Entries are reused so often before a stale [`Counted`] could be taken for another's.
const GENERATIONS: u32 = (1 << (32 - INDEX_BITS)) - 1;
/// What is one address: of IPv6 a network, which one customer has all of.
const ADDRESS_BITS: (u8, u8) = (32, 64);
/// What is one network of many.
const NETWORK_BITS: (u8, u8) = (24, 48);

/// How much may come from one address, or from one network. 0 is no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressBounds {
    /// Live connections.
    pub connections: u32,
    /// New ones in a second, once the burst is used up.
    pub per_second: u32,
    /// New ones at once.
    pub burst: u32,
}

/// The bounds of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddressRules {
    /// Of an IPv4 address, or an IPv6 /64.
    pub address: AddressBounds,
    /// Of an IPv4 /24, or an IPv6 /48.
    pub network: AddressBounds,
}

/// Where a live connection is counted, to be given back when it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counted(u32);

impl Counted {
    /// It is counted nowhere.
    pub const NOWHERE: Counted = Counted(0);
    /// It is counted, and its place waits for the worker that the connection moves to ([`AddressTable::depart`]).
    pub const IN_MOTION: Counted = Counted(u32::MAX);

    fn new(index: usize, generation: u32) -> Self {
        Self(generation << INDEX_BITS | index as u32)
    }

    fn index(self) -> usize {
        self.0 as usize & (ADDRESS_ENTRIES - 1)
    }

    fn generation(self) -> u32 {
        self.0 >> INDEX_BITS
    }
}

/// One address, or one network.
#[derive(Clone, Copy, Default)]
struct Entry {
    /// A keyed hash of whom it is about; 0: nobody.
    tag: u64,
    /// The tag of the network that the address is in; 0: it is a network itself.
    network: u64,
    /// Up to when what came is paid for, at its rate, in microseconds.
    paid_until: u64,
    live: u32,
    /// How often the entry was given to somebody, in 16 bits and never 0 once it was.
    generation: u32,
}

type Set = [Entry; WAYS];

/// The bytes of one entry, its part of the lock included.
pub const ADDRESS_ENTRY_BYTES: usize = size_of::<Mutex<Set>>() / WAYS;

/// What is over its bound.
enum Over {
    Connections,
    Rate,
}

/// See the head of this file.
pub struct AddressTable {
    hasher: SipHasher13,
    sets: Box<[Mutex<Set>]>,
    /// Where connections are counted that are on their way from one worker to another: one each, so that none is counted
    /// twice and none not at all.
    moving: Mutex<HashMap<(WorkerId, ConnectionId), Counted>>,
}

impl std::fmt::Debug for AddressTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AddressTable").finish_non_exhaustive()
    }
}

impl AddressTable {
    /// An empty table, under a key that nobody outside knows: whoever could choose addresses that meet in one set could push
    /// others out of it.
    #[must_use]
    pub fn new(key: [u8; 16]) -> Self {
        let sets = std::iter::repeat_with(|| Mutex::new(Set::default())).take(ADDRESS_ENTRIES / WAYS).collect();
        Self { hasher: SipHasher13::new_with_key(&key), sets, moving: Mutex::default() }
    }

    /// Counts one connection more from this address, if it is within the bounds of its address and its network.
    ///
    /// # Errors
    /// Why not. An address over its own bound costs its network nothing.
    pub fn admit(&self, address: IpAddr, rules: &AddressRules, now: Moment) -> Result<Counted, Refusal> {
        let (address, network) = self.tags(address);
        let counted = self.count(address, network, &rules.address, now).map_err(|over| match over {
            Over::Connections => Refusal::AddressConnections,
            Over::Rate => Refusal::AddressRate,
        })?;
        if let Err(over) = self.count(network, 0, &rules.network, now) {
            self.forget(counted);
            return Err(match over {
                Over::Connections => Refusal::NetworkConnections,
                Over::Rate => Refusal::NetworkRate,
            });
        }
        // Where live connections have no bound nobody needs to give anything back.
        if rules.address.connections == 0 && rules.network.connections == 0 {
            self.release(counted);
            return Ok(Counted::NOWHERE);
        }
        Ok(counted)
    }

    /// The connection that is `id` at the worker `from` leaves for another one.
    pub fn depart(&self, from: WorkerId, id: ConnectionId, counted: Counted) {
        if counted != Counted::NOWHERE {
            self.lock_moving().insert((from, id), counted);
        }
    }

    /// It has arrived, or has come back: whoever asks first has it from now on.
    #[must_use]
    pub fn arrive(&self, from: WorkerId, id: ConnectionId) -> Counted {
        self.lock_moving().remove(&(from, id)).unwrap_or_default()
    }

    fn lock_moving(&self) -> MutexGuard<'_, HashMap<(WorkerId, ConnectionId), Counted>> {
        self.moving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A connection that was counted has ended.
    pub fn release(&self, counted: Counted) {
        if let Some(network) = self.forget(counted) {
            self.take_from(network, 1);
        }
    }

    /// Live connections that are counted of an address.
    #[must_use]
    pub fn live(&self, address: IpAddr) -> u32 {
        let (tag, _) = self.tags(address);
        self.lock(tag).1.iter().find(|entry| entry.tag == tag).map_or(0, |entry| entry.live)
    }

    fn tags(&self, address: IpAddr) -> (u64, u64) {
        let tag = |(v4, v6): (u8, u8), kind: u8| {
            let canonical = address.to_canonical();
            let network = Network::of(canonical, if canonical.is_ipv4() { v4 } else { v6 });
            let mut bytes = [0; 18];
            match network.first() {
                IpAddr::V4(address) => bytes[..4].copy_from_slice(&address.octets()),
                IpAddr::V6(address) => bytes[..16].copy_from_slice(&address.octets()),
            }
            (bytes[16], bytes[17]) = (kind, u8::from(canonical.is_ipv4()));
            self.hasher.hash(&bytes).max(1)
        };
        (tag(ADDRESS_BITS, 0), tag(NETWORK_BITS, 1))
    }

    fn lock(&self, tag: u64) -> (usize, MutexGuard<'_, Set>) {
        let set = tag as usize & (self.sets.len() - 1);
        (set, self.lock_set(set))
    }

    fn lock_set(&self, set: usize) -> MutexGuard<'_, Set> {
        // Nothing within the lock can panic half-way.
        self.sets[set].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more of `tag`, if that is within `bounds`.
    fn count(&self, tag: u64, network: u64, bounds: &AddressBounds, now: Moment) -> Result<Counted, Over> {
        let (set, mut entries) = self.lock(tag);
        let now = now.micros();
        let known = entries.iter().position(|entry| entry.tag == tag);
        let way = known.unwrap_or_else(|| way_for_another(&entries, now));
        let (mut fresh, mut pushed_out) = (entries[way], None);
        if known.is_none() {
            pushed_out = (fresh.live > 0 && fresh.network != 0).then_some((fresh.network, fresh.live));
            let generation = fresh.generation % (GENERATIONS - 1) + 1;
            fresh = Entry { tag, network, generation, ..Entry::default() };
        }
        if bounds.connections > 0 && fresh.live >= bounds.connections {
            return Err(Over::Connections);
        }
        if bounds.per_second > 0 {
            // The generic cell rate algorithm: each costs its part of a second, and as much as a burst may be owed.
            let cost = 1_000_000 / u64::from(bounds.per_second).min(1_000_000);
            let paid_until = fresh.paid_until.max(now) + cost;
            if paid_until - now > cost * u64::from(bounds.burst.max(1)) {
                return Err(Over::Rate);
            }
            fresh.paid_until = paid_until;
        }
        fresh.live = fresh.live.saturating_add(1);
        entries[way] = fresh;
        drop(entries);
        if let Some((network, live)) = pushed_out {
            self.take_from(network, live);
        }
        Ok(Counted::new(set * WAYS + way, fresh.generation))
    }

    /// One less where it was counted, and the network that it was counted in too.
    fn forget(&self, counted: Counted) -> Option<u64> {
        if counted == Counted::NOWHERE {
            return None;
        }
        let mut entries = self.lock_set(counted.index() / WAYS);
        let entry = &mut entries[counted.index() % WAYS];
        if entry.generation != counted.generation() {
            return None;
        }
        entry.live = entry.live.saturating_sub(1);
        (entry.network != 0).then_some(entry.network)
    }

    fn take_from(&self, network: u64, live: u32) {
        let (_, mut entries) = self.lock(network);
        if let Some(entry) = entries.iter_mut().find(|entry| entry.tag == network) {
            entry.live = entry.live.saturating_sub(live);
        }
    }
}

/// The entry of a set that is given to somebody else: of whom nothing is known any more, or else of whom there is the least.
fn way_for_another(entries: &Set, now: u64) -> usize {
    let weight = |entry: &Entry| (entry.live, entry.paid_until.saturating_sub(now));
    let ways = entries.iter().enumerate();
    ways.min_by_key(|(_, entry)| weight(entry)).map_or(0, |(way, _)| way)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FREE: AddressBounds = AddressBounds { connections: 0, per_second: 0, burst: 0 };

    fn table() -> AddressTable {
        AddressTable::new([7; 16])
    }

    fn live(connections: u32) -> AddressBounds {
        AddressBounds { connections, ..FREE }
    }

    fn at(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn moment(millis: u64) -> Moment {
        Moment::from_micros(millis * 1_000)
    }

    #[test]
    fn live_connections_are_bounded_by_address_and_by_network_and_come_back() {
        let table = table();
        let rules = AddressRules { address: live(2), network: live(3) };
        let admit = |address: &str| table.admit(at(address), &rules, moment(0));
        let one = admit("192.0.2.1").unwrap();
        let two = admit("192.0.2.1").unwrap();
        assert_eq!(admit("192.0.2.1"), Err(Refusal::AddressConnections));
        let three = admit("192.0.2.2").unwrap();
        assert_eq!(admit("192.0.2.3"), Err(Refusal::NetworkConnections));
        assert_eq!(table.live(at("192.0.2.3")), 0, "what its network refuses is not counted of it");
        let other = admit("192.0.3.1").unwrap();
        table.release(two);
        let four = admit("192.0.2.3").unwrap();
        for counted in [one, three, other, four] {
            table.release(counted);
        }
        assert!((0..3).all(|last| admit(&format!("192.0.2.{last}")).is_ok()));
        // One customer has a /64; many have a /48.
        assert!(admit("2001:db8::1").is_ok() && admit("2001:db8::2").is_ok());
        assert_eq!(admit("2001:db8::3"), Err(Refusal::AddressConnections));
        assert!(admit("2001:db8:0:1::1").is_ok());
        assert_eq!(admit("2001:db8:0:2::1"), Err(Refusal::NetworkConnections));
        assert!(admit("2001:db8:1::1").is_ok());
        // As a dual-stack socket shows it.
        assert_eq!(table.live(at("::ffff:192.0.3.1")), table.live(at("192.0.3.1")));
    }

    #[test]
    fn new_connections_have_a_burst_and_then_a_rate() {
        let table = table();
        let address = AddressBounds { connections: 0, per_second: 10, burst: 3 };
        let network = AddressBounds { connections: 0, per_second: 10, burst: 4 };
        let rules = AddressRules { address, network };
        let admit = |last: u8, millis| table.admit(IpAddr::from([192, 0, 2, last]), &rules, moment(millis));
        assert!((0..3).all(|_| admit(1, 0) == Ok(Counted::NOWHERE)), "without a bound nothing is to be given back");
        assert_eq!(admit(1, 0), Err(Refusal::AddressRate));
        assert!(admit(2, 0).is_ok(), "what was refused for its address has cost its network nothing");
        assert_eq!(admit(3, 0), Err(Refusal::NetworkRate));
        assert_eq!(admit(1, 99), Err(Refusal::AddressRate));
        assert!(admit(1, 100).is_ok());
        assert_eq!(admit(1, 100), Err(Refusal::AddressRate));
        assert!((0..3).all(|_| admit(1, 60_000).is_ok()), "the burst comes back");
        assert_eq!(table.live(at("192.0.2.1")), 0);
    }

    #[test]
    fn a_full_table_forgets_those_who_have_the_least_and_refuses_nobody_for_it() {
        let table = table();
        let rules = AddressRules { address: live(50), network: FREE };
        let crowd = at("203.0.113.1");
        let held: Vec<_> = (0..50).map(|_| table.admit(crowd, &rules, moment(0)).unwrap()).collect();
        // Many times more addresses than there is room for, each with a connection.
        let addresses = (0..400_000_u32).map(|number| IpAddr::from((0x0a00_0000 + number * 7).to_be_bytes()));
        let others: Vec<_> = addresses.map(|address| table.admit(address, &rules, moment(1)).unwrap()).collect();
        assert_eq!(table.live(crowd), 50, "it stays counted");
        assert_eq!(table.admit(crowd, &rules, moment(2)), Err(Refusal::AddressConnections));
        // Ends of those that were forgotten are nobody else's.
        for counted in others {
            table.release(counted);
        }
        assert_eq!(table.live(crowd), 50);
        for counted in held {
            table.release(counted);
        }
        assert_eq!(table.live(crowd), 0);
        let left: u32 = table.sets.iter().flat_map(|set| *set.lock().unwrap()).map(|entry| entry.live).sum();
        assert_eq!(left, 0, "whatever was counted was given back");
    }

    #[test]
    fn a_handle_says_which_entry_and_which_of_its_holders() {
        let last = Counted::new(ADDRESS_ENTRIES - 1, GENERATIONS - 1);
        assert_eq!((last.index(), last.generation()), (ADDRESS_ENTRIES - 1, GENERATIONS - 1));
        assert!(![Counted::NOWHERE, Counted::IN_MOTION].contains(&last));
        assert_ne!(Counted::new(0, 1), Counted::NOWHERE);
    }
}
