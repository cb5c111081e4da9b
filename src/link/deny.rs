//! Who may not come in, whatever proof there is: devices by id, and networks.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

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

/// A network: `192.0.2.0/24`, `2001:db8::/32`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    /// Its first address.
    first: IpAddr,
    /// How many of its bits all addresses of the network have.
    prefix: u8,
}

impl Network {
    /// Whether `address` is in it. One of IPv4 written as one of IPv6 is one of IPv4.
    #[must_use]
    pub fn holds(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.first.is_ipv4() && masked(address, self.prefix) == self.first
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

/// No network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotANetwork;

impl FromStr for Network {
    type Err = NotANetwork;

    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().map_err(|_| NotANetwork)?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NotANetwork)?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(most);
        if prefix > most {
            return Err(NotANetwork);
        }
        Ok(Self { first: masked(address, prefix), prefix })
    }
}

fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((address.to_bits() & mask).into())
        }
        IpAddr::V6(address) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((address.to_bits() & mask).into())
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
        self.networks.iter().any(|&(network, until)| network.holds(address) && holds(until, now))
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
    fn a_network_holds_its_addresses_and_no_others() {
        let holds = |of: &str, address: &str| network(of).holds(address.parse().unwrap());
        assert!(holds("192.0.2.77/24", "192.0.2.1") && !holds("192.0.2.0/24", "192.0.3.1"));
        assert!(holds("192.0.2.1", "192.0.2.1") && !holds("192.0.2.1", "192.0.2.2"));
        assert!(holds("0.0.0.0/0", "8.8.8.8") && !holds("0.0.0.0/0", "2001:db8::1"));
        assert!(holds("2001:db8::/32", "2001:db8:1::9") && !holds("2001:db8::/32", "2001:db9::1"));
        assert!(holds("::/0", "::1") && holds("192.0.2.0/24", "::ffff:192.0.2.5"));
        assert_eq!(network("192.0.2.77/24").to_string(), "192.0.2.0/24");
        for wrong in ["", "a", "192.0.2.0/33", "192.0.2.0/", "192.0.2/24", "::/129", "192.0.2.1/-1"] {
            assert_eq!(wrong.parse::<Network>(), Err(NotANetwork), "{wrong}");
        }
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
