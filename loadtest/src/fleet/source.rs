//! Where connections come from: one address has 28,000 ports towards one server, the loopback network has 16 million
//! addresses.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use mio::net::TcpStream;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Devices that one source address is given when the number of addresses is not set. Far fewer than it has ports: each
/// connection that a device has closed keeps its port for another minute (TIME_WAIT), and where most ports are taken the
/// kernel searches long for a free one, which then looks like a slow server.
const PER_ADDRESS: u32 = 1_000;
/// Small fleets may come and go often.
const ADDRESSES_MIN: u32 = 16;

/// Where connections come from.
#[derive(Clone, Copy, Debug)]
pub struct Sources {
    /// Addresses from 127.0.0.1 on; 0: the system chooses address and port.
    addresses: u32,
}

impl Sources {
    /// `asked` addresses, or as many as `connections` need. Towards another host the system always chooses.
    pub fn new(target: SocketAddr, asked: Option<u32>, connections: u32) -> Self {
        let loopback = target.is_ipv4() && target.ip().is_loopback();
        let addresses = asked.unwrap_or_else(|| connections.div_ceil(PER_ADDRESS).max(ADDRESSES_MIN));
        Self { addresses: if loopback { addresses } else { 0 } }
    }

    /// How many addresses are used; 0: the system chooses.
    pub fn addresses(self) -> u32 {
        self.addresses
    }

    fn address(self, device: u32) -> Option<SocketAddr> {
        let number = device.checked_rem(self.addresses)?;
        // 127.0.0.1, 127.0.1.1, 127.0.2.1 ...
        let ip = Ipv4Addr::from(0x7f00_0001 + (number << 8));
        Some(SocketAddr::new(IpAddr::V4(ip), 0))
    }

    /// Begins to connect `device`; the socket becomes writable when it is done.
    pub fn connect(self, device: u32, target: SocketAddr) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(address) = self.address(device) {
            socket.bind(&address.into())?;
        }
        match socket.connect(&target.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error),
        }
        Ok(TcpStream::from_std(socket.into()))
    }
}

/// Makes the next close a reset: what a device does that loses power and comes back.
pub fn reset_on_close(socket: &TcpStream) {
    // A socket that is gone already needs no reset.
    let _ = SockRef::from(socket).set_linger(Some(std::time::Duration::ZERO));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_spread_over_as_many_addresses_as_they_need() {
        let target = "127.0.0.1:7443".parse().unwrap();
        let sources = Sources::new(target, None, 60_000);
        assert_eq!(sources.addresses(), 60);
        assert_eq!(sources.address(0).unwrap().ip(), Ipv4Addr::LOCALHOST);
        assert_eq!(sources.address(4).unwrap().ip(), Ipv4Addr::new(127, 0, 4, 1));
        assert_eq!(sources.address(60), sources.address(0));
        assert_eq!(Sources::new(target, None, 1).addresses(), 16);
        let far = Sources::new(target, Some(300), 1);
        assert_eq!(far.address(299).unwrap().ip(), Ipv4Addr::new(127, 1, 43, 1));
    }

    #[test]
    fn towards_another_host_the_system_chooses() {
        let sources = Sources::new("192.0.2.1:7443".parse().unwrap(), Some(9), 60_000);
        assert_eq!((sources.addresses(), sources.address(3)), (0, None));
    }
}
