//! Who may not come in, whatever proof there is: devices by id, and networks.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use crate::network::Network;
use crate::time::Moment;

/// Devices that a list names at most.
pub const DENIED_DEVICES_MAX: usize = 100_000;
/// Networks that a list names at most: each new connection is looked at against all.
pub const DENIED_NETWORKS_MAX: usize = 1_024;

/// Whom an entry is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// The device with this id.
    Device(Box<str>),
    /// Every address of this network.
    Network(Network),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Device(id) => write!(f, "device {id}"),
            Subject::Network(network) => write!(f, "network {network}"),
        }
    }
}

/// The list. It never changes: another takes its place.
#[derive(Clone, Debug, Default)]
pub struct DenyList {
    devices: HashMap<Box<str>, Option<Moment>>,
    networks: Vec<(Network, Option<Moment>)>,
}

impl DenyList {
    /// Of entries, each until a moment or for good.
    #[must_use]
    pub fn new(entries: impl IntoIterator<Item = (Subject, Option<Moment>)>) -> Self {
        let mut list = Self::default();
        for (subject, until) in entries {
            match subject {
                Subject::Device(id) => {
                    list.devices.insert(id, until);
                }
                Subject::Network(network) => list.networks.push((network, until)),
            }
        }
        list
    }

    /// Whether the device may not come in at `now`.
    #[must_use]
    pub fn refuses_device(&self, id: &str, now: Moment) -> bool {
        !self.devices.is_empty() && self.devices.get(id).is_some_and(|&until| holds(until, now))
    }

    /// Whether nobody from this address may come in at `now`.
    #[must_use]
    pub fn refuses_address(&self, address: IpAddr, now: Moment) -> bool {
        self.networks.iter().any(|&(network, until)| network.contains(address) && holds(until, now))
    }

    /// The devices that it names.
    pub fn devices(&self) -> impl Iterator<Item = &str> {
        self.devices.keys().map(|id| &**id)
    }
}

fn holds(until: Option<Moment>, now: Moment) -> bool {
    until.is_none_or(|until| now < until)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn an_entry_holds_until_its_moment() {
        let at = Moment::from_micros;
        let list = DenyList::new([
            (Subject::Device("stolen".into()), None),
            (Subject::Device("loud".into()), Some(at(10))),
            (Subject::Network(network("192.0.2.0/24")), Some(at(20))),
        ]);
        assert!(list.refuses_device("stolen", at(1_000)) && !list.refuses_device("other", at(0)));
        assert!(list.refuses_device("loud", at(9)) && !list.refuses_device("loud", at(10)));
        let address = "192.0.2.9".parse().unwrap();
        assert!(list.refuses_address(address, at(19)) && !list.refuses_address(address, at(20)));
        assert!(!DenyList::default().refuses_device("stolen", at(0)));
    }
}
