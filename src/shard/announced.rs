//! Connections that come through proxies: whose they are, and whether those may come.

use std::net::{IpAddr, SocketAddr};

use super::Shard;
use crate::connection::{Announced, Announcement, Termination};
use crate::link::{CloseReason, ListenerId, Refusal};
use crate::network::Network;
use crate::slot::ConnectionSlot;
use crate::time::Moment;

impl Shard {
    /// Whether a peer at this address is a proxy that this listener trusts. Whoever it is must announce each connection; its
    /// own address says nothing of the device.
    #[must_use]
    pub fn announcement(&self, listener: ListenerId, address: IpAddr) -> Announcement {
        let settings = &self.settings[listener.index()];
        let is_in = |networks: &[Network]| networks.iter().any(|network| network.contains(address));
        if is_in(&settings.proxies) {
            Announcement::Expected
        } else if settings.websocket.as_ref().is_some_and(|websocket| is_in(&websocket.forwarded_from)) {
            Announcement::Forwarded
        } else {
            Announcement::Complete
        }
    }

    /// The connection that was just accepted comes from such a proxy.
    pub fn expect_announcement(&mut self, slot: ConnectionSlot, announcement: Announcement) {
        self.connections[slot].expect_announcement(announcement);
    }

    pub(super) fn handle_announced(&mut self, slot: ConnectionSlot, announced: &Announced, now: Moment) {
        let id = self.id(slot);
        tracing::debug!(
            worker = self.worker.0,
            connection = %id,
            source = announced.source.map(tracing::field::display),
            destination = announced.destination.map(tracing::field::display),
            authority = announced.authority.as_deref(),
            common_name = announced.common_name.as_deref(),
            alpn = announced.alpn.as_deref().map(|alpn| tracing::field::display(alpn.escape_ascii())),
            "a proxy announced a connection",
        );
        if let Some(source) = announced.source {
            self.addresses.insert(slot, source);
            self.note_peer(slot, source.ip());
        }
        self.announced.push_back(id);
        self.trace_announced(slot, now);
    }

    /// The next connection that a proxy has announced in this turn, and the device's address. It goes on unless it is
    /// [refused](Shard::refuse).
    pub fn next_announced(&mut self) -> Option<(ConnectionSlot, IpAddr)> {
        loop {
            let id = self.announced.pop_front()?;
            if self.is_current(id)
                && let Some(address) = self.address(id.slot)
            {
                return Some((id.slot, address.ip()));
            }
        }
    }

    /// An announced connection may not be.
    pub fn refuse(&mut self, slot: ConnectionSlot, refusal: Refusal, now: Moment) {
        let listener = self.connections[slot].listener().index();
        self.counters.count_refused_by(listener, refusal as usize);
        self.end(slot, &Termination::because(CloseReason::AddressRefused, refusal.label()), now);
    }

    /// The address of the device that a proxy has announced; `None`: the socket's own is the device's.
    #[must_use]
    pub fn address(&self, slot: ConnectionSlot) -> Option<SocketAddr> {
        if self.addresses.is_empty() { None } else { self.addresses.get(&slot).copied() }
    }

    /// Puts an announced address in front of a connection that moves; [`take_address`] takes it off.
    pub(super) fn pack_address(&self, slot: ConnectionSlot, out: &mut Vec<u8>) {
        match self.address(slot) {
            None => out.push(0),
            Some(address) => {
                match address.ip() {
                    IpAddr::V4(ip) => {
                        out.push(4);
                        out.extend_from_slice(&ip.octets());
                    }
                    IpAddr::V6(ip) => {
                        out.push(6);
                        out.extend_from_slice(&ip.octets());
                    }
                }
                out.extend_from_slice(&address.port().to_be_bytes());
            }
        }
    }
}

/// The announced address in front of a moved connection, and the connection; `None`: these are not such bytes.
pub(super) fn take_address(image: &[u8]) -> Option<(Option<SocketAddr>, &[u8])> {
    let (&kind, rest) = image.split_first()?;
    let (ip, rest) = match kind {
        0 => return Some((None, rest)),
        4 => rest.split_first_chunk::<4>().map(|(octets, rest)| (IpAddr::from(*octets), rest))?,
        6 => rest.split_first_chunk::<16>().map(|(octets, rest)| (IpAddr::from(*octets), rest))?,
        _ => return None,
    };
    let (port, rest) = rest.split_first_chunk::<2>()?;
    Some((Some(SocketAddr::new(ip, u16::from_be_bytes(*port))), rest))
}
