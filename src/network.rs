//! Networks: an address and how many of its bits count. Values, whoever speaks of them: the configuration, the deny list, the
//! API.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// A network, such as `10.0.0.0/8` or `2001:db8::/32`. An address alone is a network of itself.
///
/// ```
/// use pulsegate::network::Network;
///
/// let network: Network = "10.0.0.0/8".parse().unwrap();
/// assert!(network.contains("10.1.2.3".parse().unwrap()));
/// assert!("10.1.2.3/8".parse::<Network>().is_err()); // which of the two is meant?
/// assert_eq!(Network::around("10.1.2.3/8"), Ok(network));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    /// The first of its addresses.
    address: IpAddr,
    prefix: u8,
}

/// No network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotANetwork;

impl Network {
    /// The network that the written address is in: bits beyond the prefix do not count, for it was copied from a log.
    ///
    /// # Errors
    /// It is no address, or no prefix.
    pub fn around(text: &str) -> Result<Self, NotANetwork> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| NotANetwork)?;
        // An IPv4 address in the form of IPv6 is an IPv4 address, and its prefix could be meant as either.
        if matches!(address, IpAddr::V6(v6) if Ipv6Addr::to_ipv4_mapped(&v6).is_some()) {
            return Err(NotANetwork);
        }
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => most,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                digits.parse().map_err(|_| NotANetwork)?
            }
            Some(_) => return Err(NotANetwork),
        };
        if prefix > most {
            return Err(NotANetwork);
        }
        Ok(Self::of(address, prefix))
    }

    /// The network of the first `prefix` bits of an address; more than it has are all of them.
    #[must_use]
    pub fn of(address: IpAddr, prefix: u8) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => {
                let prefix = prefix.min(32);
                let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
                Self { address: IpAddr::V4((address.to_bits() & mask).into()), prefix }
            }
            IpAddr::V6(address) => {
                let prefix = prefix.min(128);
                let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
                Self { address: IpAddr::V6((address.to_bits() & mask).into()), prefix }
            }
        }
    }

    /// The first of its addresses.
    #[must_use]
    pub const fn first(&self) -> IpAddr {
        self.address
    }

    /// Whether the address lies in it. An IPv4 address that comes in the form of IPv6 is the IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.address.is_ipv4() == address.is_ipv4() && Self::of(address, self.prefix) == *self
    }

    /// Whether every address of its family lies in it.
    #[must_use]
    pub const fn is_everybody(&self) -> bool {
        self.prefix == 0
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Network {
    type Err = NotANetwork;

    /// Bits beyond the prefix must be 0: `10.1.2.3/8` may be meant as either.
    fn from_str(text: &str) -> Result<Self, NotANetwork> {
        let network = Self::around(text)?;
        let address = text.split_once('/').map_or(text, |(address, _)| address);
        if address.parse() == Ok(network.address) { Ok(network) } else { Err(NotANetwork) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_what_shares_its_prefix() {
        let contains =
            |network: &str, address: &str| network.parse::<Network>().unwrap().contains(address.parse().unwrap());
        assert!(contains("10.0.0.0/8", "10.255.0.1") && !contains("10.0.0.0/8", "11.0.0.0"));
        assert!(contains("192.0.2.7", "192.0.2.7") && !contains("192.0.2.7", "192.0.2.6"));
        assert!(contains("0.0.0.0/0", "203.0.113.1") && !contains("0.0.0.0/0", "::1"));
        assert!(contains("::/0", "2001:db8::1") && !contains("::/0", "10.0.0.1"));
        assert!(contains("2001:db8::/33", "2001:db8:7fff::1") && !contains("2001:db8::/33", "2001:db8:8000::1"));
        assert!(contains("10.0.0.0/8", "::ffff:10.1.2.3"), "as a dual-stack socket shows it");
        assert_eq!("10.0.0.0/8".parse::<Network>().unwrap().to_string(), "10.0.0.0/8");
        assert_eq!("::1".parse::<Network>().unwrap().to_string(), "::1/128");
    }

    #[test]
    fn what_is_no_network_is_refused() {
        let neither = [
            "",
            "10.0.0.0/33",
            "10.0.0.0/+8",
            "10.0.0.0/",
            "/8",
            "10/8",
            "::1/129",
            "::ffff:10.0.0.0/104",
            "any",
            "a",
            "192.0.2.1/-1",
        ];
        for text in neither {
            assert_eq!(text.parse::<Network>(), Err(NotANetwork), "{text}");
            assert_eq!(Network::around(text), Err(NotANetwork), "{text}");
        }
    }

    #[test]
    fn bits_beyond_the_prefix_are_refused_or_do_not_count() {
        for (text, network) in
            [("10.0.0.1/8", "10.0.0.0/8"), ("2001:db8::1/32", "2001:db8::/32"), ("9.9.9.9/0", "0.0.0.0/0")]
        {
            assert_eq!(text.parse::<Network>(), Err(NotANetwork), "{text}");
            assert_eq!(Network::around(text).unwrap().to_string(), network);
        }
    }
}
