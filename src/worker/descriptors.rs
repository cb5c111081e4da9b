//! Descriptor tables. The descriptor limit holds per table, so each worker has its own; and calls are cheaper on a
//! table that nobody shares. This is the one module that speaks to the kernel without a safe wrapper.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, RawFd};

use socket2::SockAddr;

/// Leaves the process's shared descriptor table: from here on this thread has a table of its own, which holds standard
/// input, output and error, and the descriptors of `keep` under the numbers that they had.
///
/// Signals are left to the others, from before it leaves: a handler tells of a signal by writing to a descriptor of the
/// shared table, whose number is somebody else's here, be it a device's socket.
///
/// The numbers of `keep` must be open. Everything else is closed *in this table only*; the shared table is untouched, so
/// owners of descriptors in other threads notice nothing.
///
/// # Errors
/// What close_range(2) says: kernels before 5.9 have no such call.
pub fn leave_shared_table(keep: &[RawFd]) -> io::Result<()> {
    block_signals()?;
    let mut keep: Vec<u32> = keep.iter().map(|&number| number as u32).filter(|&number| number > 2).collect();
    keep.sort_unstable();
    keep.dedup();
    // The highest gap first: it also makes the table ours, and does not even copy what it would close.
    close_range(keep.last().map_or(3, |last| last + 1), u32::MAX, libc::CLOSE_RANGE_UNSHARE)?;
    let mut first = 3;
    for number in keep {
        if first < number {
            close_range(first, number - 1, 0)?;
        }
        first = number + 1;
    }
    Ok(())
}

/// Closes descriptors in the calling thread's table whose owners have taken them along into a table of their own.
///
/// Such a number is owned by nobody here any more: its `OwnedFd` lives in the thread that left, and will close it there.
pub(super) fn close_left_behind(numbers: &[RawFd]) -> io::Result<()> {
    for &number in numbers {
        close_range(number as u32, number as u32, 0)?;
    }
    Ok(())
}

/// Signals that the thread raises itself by what it does: they cannot be left to anybody.
const OWN_SIGNALS: [libc::c_int; 6] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGABRT];

/// Leaves every signal to the process's other threads, but for those that the thread raises itself.
#[expect(unsafe_code, reason = "the calls have no safe wrapper")]
fn block_signals() -> io::Result<()> {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset initialises the set that the other two are given; all pointers are to this frame or null where
    // null is allowed, and blocking signals in the calling thread touches no memory of anybody's.
    let error = unsafe {
        libc::sigfillset(set.as_mut_ptr());
        for signal in OWN_SIGNALS {
            libc::sigdelset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut())
    };
    if error == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(error)) }
}

#[expect(unsafe_code, reason = "the system call has no safe wrapper")]
fn close_range(first: u32, last: u32, flags: u32) -> io::Result<()> {
    // SAFETY: the call takes numbers and touches no memory. That no `OwnedFd` of this table is closed under its owner is
    // the callers' part: a worker names all that it owns in `keep`, and the main thread closes only what has left.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The address of a socket's peer, also of one that has reset the connection: getpeername(2) knows it no more then,
/// SO_PEERNAME does until the socket is closed.
pub(super) fn peer_of(socket: &TcpStream) -> Option<SocketAddr> {
    // The option refuses a buffer that is longer than the address.
    let lengths = [size_of::<libc::sockaddr_in6>(), size_of::<libc::sockaddr_in>()];
    lengths.into_iter().find_map(|length| peer_name(socket, length as libc::socklen_t))
}

#[expect(unsafe_code, reason = "the socket option has no safe wrapper")]
fn peer_name(socket: &TcpStream, bytes: libc::socklen_t) -> Option<SocketAddr> {
    // SAFETY: the kernel writes `bytes` at most, which is less than what there is to hold them, and the whole address.
    let named = unsafe {
        SockAddr::try_init(|address, length| {
            *length = bytes;
            match libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERNAME, address.cast(), length) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        })
    };
    named.ok()?.1.as_socket()
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;

    /// `SigBlk:` of proc_pid_status(5): a bit for each signal, the first for signal 1.
    fn blocked() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
        u64::from_str_radix(mask.trim(), 16).unwrap()
    }

    #[test]
    fn a_thread_that_left_takes_no_signals_but_its_own() {
        let before = blocked();
        std::thread::spawn(|| {
            leave_shared_table(&[]).unwrap();
            let is_blocked = |signal: libc::c_int| blocked() & (1 << (signal - 1)) != 0;
            assert!(
                [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGUSR1, libc::SIGALRM].map(is_blocked) == [true; 5]
            );
            assert!(OWN_SIGNALS.map(is_blocked) == [false; 6]);
        })
        .join()
        .unwrap();
        assert_eq!(blocked(), before, "in that thread alone");
    }

    #[test]
    fn the_address_of_a_peer_outlives_its_reset() {
        for local in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(local) else {
                assert!(local.starts_with('['), "a machine without IPv6");
                continue;
            };
            let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let address = peer.local_addr().unwrap();
            let (mut socket, _) = listener.accept().unwrap();
            assert_eq!(peer_of(&socket), Some(address));
            socket2::SockRef::from(&peer).set_linger(Some(std::time::Duration::ZERO)).unwrap();
            drop(peer);
            let ended = std::io::Read::read(&mut socket, &mut [0]).unwrap_err();
            assert_eq!(ended.kind(), io::ErrorKind::ConnectionReset);
            assert!(socket.peer_addr().is_err());
            assert_eq!(peer_of(&socket), Some(address));
        }
    }

    #[test]
    fn a_thread_that_left_keeps_what_it_named_and_nothing_of_others() {
        let kept = File::open("/dev/null").unwrap();
        let other = File::open("/dev/null").unwrap();
        let (kept_number, other_number) = (kept.as_raw_fd(), other.as_raw_fd());
        let seen = std::thread::spawn(move || {
            leave_shared_table(&[kept_number]).unwrap();
            let is_open = |number| std::fs::metadata(format!("/proc/thread-self/fd/{number}")).is_ok();
            let seen = (is_open(kept_number), is_open(other_number));
            drop(kept);
            seen
        })
        .join()
        .unwrap();
        assert_eq!(seen, (true, false));
        // In the shared table both are still there.
        assert!(other.metadata().is_ok());
        assert!(std::fs::metadata(format!("/proc/self/fd/{kept_number}")).is_ok());
        close_left_behind(&[kept_number]).unwrap();
    }
}
