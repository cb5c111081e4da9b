//! A queue in which no address keeps others out: each has its turn, and at the bound the one with the most waiting gives
//! way.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};

/// Where a connection comes from, as fairness counts: an IPv4 address, or the /64 network of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::control) struct Origin(IpAddr);

impl Origin {
    /// The origin of an address; all whose address is not known any more share one.
    pub(in crate::control) fn of(address: Option<IpAddr>) -> Self {
        const NETWORK: u128 = !0 << 64;
        Self(match address.map(|address| address.to_canonical()) {
            None => Ipv6Addr::UNSPECIFIED.into(),
            Some(IpAddr::V4(address)) => address.into(),
            Some(IpAddr::V6(address)) => Ipv6Addr::from_bits(address.to_bits() & NETWORK).into(),
        })
    }
}

/// A queue for each address, served in turns.
#[derive(Debug)]
pub(super) struct FairQueue<T> {
    by_origin: HashMap<Origin, VecDeque<T>>,
    /// Whose turn it is, in order: each address with something waiting, once.
    turns: VecDeque<Origin>,
    waiting: usize,
    waiting_max: usize,
}

impl<T> FairQueue<T> {
    pub(super) fn new(waiting_max: usize) -> Self {
        Self { by_origin: HashMap::new(), turns: VecDeque::new(), waiting: 0, waiting_max }
    }

    /// At the bound the address with the most waiting gives up its latest, which comes back; if that is the newcomer's own
    /// address, the newcomer does.
    ///
    /// # Errors
    /// The newcomer, which has found no place.
    pub(super) fn push(&mut self, origin: Origin, job: T) -> Result<Option<T>, T> {
        let mut gone = None;
        if self.waiting >= self.waiting_max {
            let own = self.by_origin.get(&origin).map_or(0, VecDeque::len);
            let Some(most) =
                self.by_origin.values_mut().max_by_key(|jobs| jobs.len()).filter(|jobs| jobs.len() > own + 1)
            else {
                return Err(job);
            };
            // It keeps at least one, and so its turn.
            gone = most.pop_back();
            self.waiting -= 1;
        }
        let jobs = self.by_origin.entry(origin).or_default();
        if jobs.is_empty() {
            self.turns.push_back(origin);
        }
        jobs.push_back(job);
        self.waiting += 1;
        Ok(gone)
    }

    pub(super) fn pop(&mut self) -> Option<T> {
        let origin = self.turns.pop_front()?;
        let jobs = self.by_origin.get_mut(&origin).expect("who has a turn has something waiting");
        let job = jobs.pop_front().expect("who has a turn has something waiting");
        if jobs.is_empty() {
            self.by_origin.remove(&origin);
        } else {
            self.turns.push_back(origin);
        }
        self.waiting -= 1;
        Some(job)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting == 0
    }
}
