//! Networks: an address and how many of its bits count.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// A network, such as `10.0.0.0/8` or `2001:db8::/32`. An address alone is a network of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// Whether the address lies in it. An IPv4 address that comes in the form of IPv6 is the IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let (own, other) = (bits(self.address), bits(address.to_canonical()));
        self.address.is_ipv4() == address.to_canonical().is_ipv4() && (own ^ other) & self.mask() == 0
    }

    /// Whether every address of its family lies in it.
    #[must_use]
    pub const fn is_everybody(&self) -> bool {
        self.prefix == 0
    }

    /// The bits that count. Those above the 32 of an IPv4 address are 0 in all of them.
    fn mask(&self) -> u128 {
        // IPv4 addresses are the last 32 of the bits.
        let prefix = u32::from(self.prefix) + if self.address.is_ipv4() { 96 } else { 0 };
        u128::MAX.checked_shl(128 - prefix).unwrap_or(0)
    }
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Network {
    type Err = ();

    /// Bits beyond the prefix must be 0: `10.1.2.3/8` may be meant as either.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| ())?;
        if matches!(address, IpAddr::V6(v6) if Ipv6Addr::to_ipv4_mapped(&v6).is_some()) {
            return Err(());
        }
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => most,
            Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().map_err(|_| ())?,
            Some(_) => return Err(()),
        };
        if prefix > most {
            return Err(());
        }
        let network = Self { address, prefix };
        if bits(address) & !network.mask() != 0 {
            return Err(());
        }
        Ok(network)
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
        for text in [
            "",
            "10.0.0.0/33",
            "10.0.0.1/8",
            "10.0.0.0/+8",
            "10.0.0.0/",
            "/8",
            "10/8",
            "::1/129",
            "2001:db8::1/32",
            "::ffff:10.0.0.0/104",
            "any",
        ] {
            assert!(text.parse::<Network>().is_err(), "{text}");
        }
    }
}
