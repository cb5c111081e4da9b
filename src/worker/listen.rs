//! Listening sockets, and what accept(2) means by its errors.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;

use mio::net::TcpListener;
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};

use crate::config::budget::{RECEIVE_BYTES, UNSENT_BYTES};
use crate::link::ListenerId;

/// Connections that wait for `accept`; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4_096;

/// Takes the address for this process: an error now, with the listener's name, and no surprise when the workers listen.
/// Port 0 becomes a real one. The reservation accepts nothing, and is dropped when the workers listen.
pub(super) fn reserve(address: SocketAddr) -> io::Result<(Socket, SocketAddr)> {
    // Without SO_REUSEPORT an address at which somebody listens is refused, be it another gateway of the same user.
    let probe = new_socket(address)?;
    probe.bind(&address.into())?;
    let bound = probe.local_addr()?.as_socket().expect("an IP socket has an IP address");
    drop(probe);
    let reservation = new_socket(bound)?;
    reservation.set_reuse_port(true)?;
    reservation.bind(&bound.into())?;
    Ok((reservation, bound))
}

/// One worker's listening socket. Each worker has its own, and the kernel spreads connections over them.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = new_socket(address)?;
    socket.set_reuse_port(true)?;
    // Attempt sockets inherit it, which saves a call for each. A frame is one write; there is nothing to wait for.
    socket.set_tcp_nodelay(true)?;
    // What the kernel keeps unsent for one socket. It takes more as long as the peer takes them, so this slows nobody who
    // reads; whoever does not costs this much and not the 4 MiB to which a send buffer grows.
    socket.set_tcp_notsent_lowat(UNSENT_BYTES as u32)?;
    // A publisher that is made to wait is not read, and fills what there is. By itself the kernel lets that grow to 6 MiB and more while
    // the publisher is fast. Before listen(2): the window that the peer is offered is reckoned from it.
    socket.set_recv_buffer_size(RECEIVE_BYTES as usize)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(TcpListener::from_std(OwnedFd::from(socket).into()))
}

fn new_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    Ok(socket)
}

/// One listener of one worker.
pub(super) struct Listener {
    pub id: ListenerId,
    pub socket: TcpListener,
    /// The last attempt to accept found no room: that is logged once.
    pub is_starved: bool,
}

/// What came of one attempt to accept.
pub(super) enum Attempt {
    /// A connection from this address.
    Stream(TcpStream, IpAddr),
    /// Nobody waits.
    Nobody,
    /// This one was gone before it was accepted; those behind it, of whom the poll has told once, are still there.
    Failed(io::Error),
    /// The process or the machine has no room for a new connection. Whoever waits goes on waiting, and nobody will say
    /// when there is room again.
    NoRoom(io::Error),
}

/// Accepts one connection.
pub(super) fn accept(listener: &TcpListener) -> Attempt {
    match listener.accept() {
        Ok((stream, peer)) => Attempt::Stream(stream.into(), peer.ip()),
        Err(error) => not_accepted(error),
    }
}

/// What an error of accept(2) means for those who wait. It reports errors pending on the accepted socket, too.
fn not_accepted(error: io::Error) -> Attempt {
    match Errno::from_io_error(&error) {
        Some(Errno::AGAIN) => Attempt::Nobody,
        Some(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => Attempt::NoRoom(error),
        _ => Attempt::Failed(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_where_there_is_no_room_is_there_no_next_try() {
        let meant = |error: Errno| not_accepted(error.into());
        assert!(matches!(meant(Errno::AGAIN), Attempt::Nobody));
        for error in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM] {
            assert!(matches!(meant(error), Attempt::NoRoom(_)), "{error}");
        }
        // accept(2), "Error handling": errors of the network that are pending on the new socket.
        for error in [Errno::CONNABORTED, Errno::NETDOWN, Errno::PROTO, Errno::HOSTUNREACH, Errno::PERM, Errno::INTR] {
            assert!(matches!(meant(error), Attempt::Failed(_)), "{error}");
        }
    }

    #[test]
    fn an_address_in_use_is_refused_and_port_zero_becomes_real() {
        let (reservation, bound) = reserve("127.0.0.1:0".parse().unwrap()).unwrap();
        assert_ne!(bound.port(), 0);
        let first = listen(bound).unwrap();
        let second = listen(bound).unwrap();
        drop(reservation);
        assert_eq!(reserve(bound).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop((first, second));
    }

    /// A connection as the gateway has it, and its peer, whose buffers are as the kernel makes them.
    fn accepted_of(listener: &TcpListener, peer: &Socket) -> TcpStream {
        peer.connect(&listener.local_addr().unwrap().into()).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            match accept(listener) {
                Attempt::Stream(stream, _) => break stream,
                Attempt::Nobody if std::time::Instant::now() < deadline => std::thread::yield_now(),
                _ => panic!("nobody came"),
            }
        }
    }

    #[test]
    fn publisher_that_is_made_to_wait_costs_the_kernel_little_however_fast_it_was() {
        use std::io::{Read, Write};

        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let peer = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        // What the peer's own kernel keeps for it is counted too.
        peer.set_send_buffer_size(65_536).unwrap();
        let mut accepted = accepted_of(&listener, &peer);
        let mut peer = TcpStream::from(peer);
        // It is read as fast as it comes: then the kernel's own buffers would grow.
        let mut buffer = vec![0; 65_536];
        let mut read = 0;
        peer.set_nonblocking(true).unwrap();
        accepted.set_nonblocking(true).unwrap();
        while read < 16 << 20 {
            while peer.write(&[7; 16_384]).is_ok() {}
            while let Ok(count) = accepted.read(&mut buffer) {
                read += count;
            }
        }
        // From here on it is not.
        let (mut taken, mut refusals) = (0, 0);
        while refusals < 1_000 {
            if let Ok(count) = peer.write(&[7; 8_192]) {
                taken += count;
            } else {
                refusals += 1;
                std::thread::yield_now();
            }
            assert!(taken < 256 << 10, "the kernel takes {taken} bytes that nobody reads");
        }
        assert_eq!(socket2::SockRef::from(&accepted).recv_buffer_size().unwrap(), 2 * RECEIVE_BYTES as usize);
    }

    #[test]
    fn peer_that_does_not_read_costs_the_kernel_little() {
        use std::io::Write;

        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let peer = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        // What it takes without reading is its own affair.
        peer.set_recv_buffer_size(4_096).unwrap();
        let mut accepted = accepted_of(&listener, &peer);
        let mut taken = 0;
        // An emptied buffer of the peer's may make room for a little more: until nothing is taken for a while.
        let mut refusals = 0;
        while refusals < 100 {
            match accepted.write(&[0; 8_192]) {
                Ok(count) => taken += count,
                Err(error) => {
                    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                    refusals += 1;
                    std::thread::yield_now();
                }
            }
            assert!(taken < 256 << 10, "the kernel keeps {taken} bytes of what nobody reads");
        }
    }
}
