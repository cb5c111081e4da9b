//! Who may not come in, whatever proof there is: devices by id, client certificates by fingerprint, and networks.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::network::Network;
use crate::time::Moment;

/// Devices that a list names at most.
pub const DENIED_DEVICES_MAX: usize = 100_000;
/// Client certificates that a list names at most.
pub const DENIED_CERTIFICATES_MAX: usize = 100_000;
/// Networks that a list names at most: each new connection is looked at against all.
pub const DENIED_NETWORKS_MAX: usize = 1_024;

/// Whom an entry is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// The device with this id.
    Device(Box<str>),
    /// Whoever shows the client certificate with this fingerprint.
    Certificate(Fingerprint),
    /// Every address of this network.
    Network(Network),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Device(id) => write!(f, "device {id}"),
            Subject::Certificate(fingerprint) => write!(f, "certificate {fingerprint}"),
            Subject::Network(network) => write!(f, "network {network}"),
        }
    }
}

/// The SHA-256 of a certificate, as `openssl x509 -fingerprint -sha256` shows it: with colons or without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Fingerprint([u8; 32]);

/// No fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAFingerprint;

impl Fingerprint {
    /// What a live connection keeps of it: its first 8 bytes.
    #[must_use]
    pub fn mark(&self) -> u64 {
        u64::from_be_bytes(*self.0.first_chunk().expect("32 bytes"))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, NotAFingerprint> {
        let digits: Vec<u8> = text.bytes().filter(|byte| *byte != b':').collect();
        let has_pairs =
            !text.contains(':') || (text.len() == 95 && text.bytes().skip(2).step_by(3).all(|byte| byte == b':'));
        if digits.len() != 64 || !has_pairs {
            return Err(NotAFingerprint);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            let digit = |of: u8| char::from(of).to_digit(16).ok_or(NotAFingerprint);
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Ok(Self(bytes))
    }
}

/// The list. It never changes: another takes its place.
#[derive(Clone, Debug, Default)]
pub struct DenyList {
    devices: HashMap<Box<str>, Option<Moment>>,
    /// By what a live connection keeps of a fingerprint. Sixty-four bits: with a million connections and a hundred thousand
    /// entries, one in a hundred million fleets would see a device refused by mistake.
    certificates: HashMap<u64, Option<Moment>>,
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
                Subject::Certificate(fingerprint) => {
                    list.certificates.insert(fingerprint.mark(), until);
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

    /// Whether whoever has the client certificate with this mark may not come in at `now`.
    #[must_use]
    pub fn refuses_certificate(&self, mark: u64, now: Moment) -> bool {
        !self.certificates.is_empty() && self.certificates.get(&mark).is_some_and(|&until| holds(until, now))
    }

    /// Whether nobody from this address may come in at `now`.
    #[must_use]
    pub fn refuses_address(&self, address: IpAddr, now: Moment) -> bool {
        self.networks.iter().any(|&(network, until)| network.contains(address) && holds(until, now))
    }

    /// Whether it names any network.
    #[must_use]
    pub fn has_networks(&self) -> bool {
        !self.networks.is_empty()
    }

    /// Whether it names a network that `before` did not, or for longer.
    #[must_use]
    pub fn denies_more_networks_than(&self, before: &Self) -> bool {
        self.networks.iter().any(|entry| !before.networks.contains(entry))
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
    fn a_fingerprint_is_read_as_tools_write_it() {
        let plain = "00".repeat(7) + "2A" + &"ff".repeat(24);
        let pairs: Vec<&str> = (0..32).map(|at| &plain[2 * at..2 * at + 2]).collect();
        let fingerprint: Fingerprint = plain.parse().unwrap();
        assert_eq!(pairs.join(":").parse(), Ok(fingerprint));
        assert_eq!((fingerprint.to_string(), fingerprint.mark()), (plain.to_lowercase(), 42));
        for wrong in [
            "",
            "00",
            &plain[1..],
            &format!("{plain}0"),
            &plain.replace('f', "g"),
            &pairs.join("::"),
            &format!(":{plain}"),
        ] {
            assert_eq!(wrong.parse::<Fingerprint>(), Err(NotAFingerprint), "{wrong}");
        }
        let list = DenyList::new([(Subject::Certificate(fingerprint), Some(Moment::from_micros(10)))]);
        assert!(
            list.refuses_certificate(42, Moment::from_micros(9)) && !list.refuses_certificate(43, Moment::default())
        );
        assert!(!list.refuses_certificate(42, Moment::from_micros(10)));
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
