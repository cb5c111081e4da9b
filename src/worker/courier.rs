//! Moving connections between workers (decision D3): a descriptor and its plain state go over a unix socket, and the
//! sender forgets them only when the receiver has said that it holds them.
//!
//! ```text
//!   sender                                        receiver (the home)
//!   deregisters the socket, packs the state
//!   ── parcels + descriptors ───────────────────▶ takes both, registers the socket; the device lives here now
//!   ◀───────────────────────────────── verdicts ──
//!   taken: closes its copy.  refused: still has everything, and tells the peer itself
//! ```
//!
//! One SOCK_SEQPACKET pair joins each two workers. A message is
//!
//! ```text
//!   1 (parcels)   count u16   { index u32, generation u32, length u32, bytes … }  × count, with count descriptors
//!   2 (verdicts)  count u16   { index u32, generation u32, taken u8 }             × count
//! ```
//! in the byte order of the machine that both ends share; the handle is the sender's. A full receiving table drops
//! descriptors silently (MSG_CTRUNC): parcels without one are refused, which is why there are verdicts at all.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use zeroize::Zeroize;

use crate::config::budget::DESCRIPTORS_SPARE;
use crate::link::ConnectionId;

/// Connections in one message: for so many the home keeps places free. The kernel takes at most 253 descriptors.
const PARCELS_MAX: usize = DESCRIPTORS_SPARE as usize;
/// A message is closed when it has grown beyond this; a single parcel may be larger.
const MESSAGE_BYTES: usize = 64 << 10;
/// The largest message.
const RECEIVE_BYTES: usize = 512 << 10;
/// The largest parcel: with all before it in its message it must fit into what is received. Whoever has said more than
/// that behind HELLO, without waiting for an answer, is refused.
const PARCEL_BYTES_MAX: usize = RECEIVE_BYTES - MESSAGE_BYTES - 64;
const VERDICTS_MAX: usize = 1_024;

const PARCELS: u8 = 1;
const VERDICTS: u8 = 2;

/// The two ends of the way between two workers.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (one, two) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    for end in [&one, &two] {
        // As much as the kernel allows: one message must fit, and more than one is welcome.
        rustix::net::sockopt::set_socket_send_buffer_size(end, 2 * RECEIVE_BYTES)?;
    }
    Ok((one, two))
}

/// A connection that came over the way.
pub(super) struct Parcel<'a> {
    /// Its handle at the sender's, for the verdict.
    pub origin: ConnectionId,
    /// Its state.
    pub bytes: &'a [u8],
    /// Its socket; `None` when this worker's table is full.
    pub socket: Option<OwnedFd>,
}

/// What the home says of a connection that this worker sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Verdict {
    /// The handle that the connection has, or had, at the sender's.
    pub origin: ConnectionId,
    /// Whether the home holds it now.
    pub taken: bool,
}

/// One worker's end of the way to one other worker.
pub(super) struct Courier {
    socket: OwnedFd,
    outgoing: VecDeque<ConnectionId>,
    verdicts: VecDeque<Verdict>,
}

impl Courier {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, outgoing: VecDeque::new(), verdicts: VecDeque::new() }
    }

    /// Puts a connection on the way; it goes with the next [`Courier::send`].
    pub(super) fn add(&mut self, id: ConnectionId) {
        self.outgoing.push_back(id);
    }

    /// Answers for a connection that came.
    pub(super) fn answer(&mut self, verdict: Verdict) {
        self.verdicts.push_back(verdict);
    }

    /// Whether something waits to be sent.
    pub(super) fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty() || !self.verdicts.is_empty()
    }

    /// Sends what waits, as far as the way takes it. `pack` appends a connection's state and lends its socket, or says
    /// that it is gone. Connections that can never be sent are appended to `refused`.
    pub(super) fn send<'s>(
        &mut self,
        mut pack: impl FnMut(ConnectionId, &mut Vec<u8>) -> Option<BorrowedFd<'s>>,
        refused: &mut Vec<ConnectionId>,
    ) {
        if self.send_verdicts() {
            while !self.outgoing.is_empty() && self.send_parcels(&mut pack, refused) {}
        }
    }

    /// `true`: all were sent.
    fn send_verdicts(&mut self) -> bool {
        while !self.verdicts.is_empty() {
            let count = self.verdicts.len().min(VERDICTS_MAX);
            let mut message = vec![VERDICTS];
            message.extend_from_slice(&(count as u16).to_ne_bytes());
            for verdict in self.verdicts.iter().take(count) {
                put_id(&mut message, verdict.origin);
                message.push(u8::from(verdict.taken));
            }
            if self.send_message(&message, &[]).is_err() {
                return false;
            }
            self.verdicts.drain(..count);
        }
        true
    }

    /// Sends one message of parcels. `true`: it went, or was given up; there may be more.
    fn send_parcels<'s>(
        &mut self,
        pack: &mut impl FnMut(ConnectionId, &mut Vec<u8>) -> Option<BorrowedFd<'s>>,
        refused: &mut Vec<ConnectionId>,
    ) -> bool {
        // Room for all but the largest from the start: a buffer that grows leaves keys behind in its former place.
        let mut message = Vec::with_capacity(2 * MESSAGE_BYTES);
        message.extend_from_slice(&[PARCELS, 0, 0]);
        let mut packed = Vec::new();
        let mut too_large = Vec::new();
        let mut sockets = Vec::new();
        let mut looked_at = 0;
        for &id in &self.outgoing {
            if packed.len() == PARCELS_MAX || message.len() > MESSAGE_BYTES {
                break;
            }
            looked_at += 1;
            let start = message.len();
            put_id(&mut message, id);
            message.extend_from_slice(&[0; 4]);
            let body = message.len();
            let Some(socket) = pack(id, &mut message) else {
                message.truncate(start);
                continue;
            };
            let length = message.len() - body;
            if length > PARCEL_BYTES_MAX {
                message.truncate(start);
                too_large.push(id);
                continue;
            }
            message[body - 4..body].copy_from_slice(&(length as u32).to_ne_bytes());
            packed.push(id);
            sockets.push(socket);
        }
        message[1..3].copy_from_slice(&(packed.len() as u16).to_ne_bytes());
        let sent = if packed.is_empty() { Ok(()) } else { self.send_message(&message, &sockets) };
        message.as_mut_slice().zeroize();
        match sent {
            Ok(()) => {}
            // EAGAIN: the way is full. ETOOMANYREFS: too many descriptors are on their way. Both pass.
            Err(Errno::AGAIN | Errno::TOOMANYREFS | Errno::NOBUFS | Errno::NOMEM) => return false,
            Err(error) => {
                tracing::warn!(%error, connections = packed.len(), "connections could not be moved to their home");
                refused.extend(packed);
            }
        }
        // Only now: as long as they are outgoing they would be packed again.
        refused.extend(too_large);
        self.outgoing.drain(..looked_at);
        true
    }

    fn send_message(&self, message: &[u8], sockets: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PARCELS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !sockets.is_empty() {
            let fits = ancillary.push(SendAncillaryMessage::ScmRights(sockets));
            assert!(fits, "the space is made for a full message");
        }
        let sent = sendmsg(&self.socket, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)?;
        debug_assert_eq!(sent, message.len(), "a SEQPACKET message goes whole or not at all");
        Ok(())
    }

    /// Receives one message into `buffer`. `false`: none is there.
    ///
    /// # Errors
    /// The other worker is gone, or the message is none of ours: both mean that the process is coming down.
    pub(super) fn receive(&mut self, buffer: &mut Received) -> io::Result<bool> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PARCELS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let received = match recvmsg(&self.socket, &mut [IoSliceMut::new(&mut buffer.bytes)], &mut ancillary, flags) {
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer.length = received.bytes;
        buffer.sockets.clear();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(sockets) = message {
                buffer.sockets.extend(sockets);
            }
        }
        Ok(true)
    }
}

impl AsFd for Courier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One received message, in memory that serves every message of a worker in turn.
#[derive(Default)]
pub(super) struct Received {
    bytes: Box<[u8]>,
    length: usize,
    sockets: VecDeque<OwnedFd>,
}

impl Received {
    pub(super) fn new() -> Self {
        let mut bytes = vec![0; RECEIVE_BYTES].into_boxed_slice();
        // What all but the largest messages use is there before the first device is.
        bytes[..2 * MESSAGE_BYTES].fill(0xA5);
        Self { bytes, length: 0, sockets: VecDeque::new() }
    }

    /// Forgets the message: it held keys.
    pub(super) fn wipe(&mut self) {
        self.bytes[..self.length].zeroize();
        self.length = 0;
    }

    /// What the message holds. It comes from this program; a message that is not well-formed is our own error.
    pub(super) fn read(&mut self) -> (Vec<Parcel<'_>>, Vec<Verdict>) {
        let mut rest = &self.bytes[..self.length];
        let mut take = |count: usize| {
            let (taken, left) = rest.split_at(count);
            rest = left;
            taken
        };
        let kind = take(1)[0];
        let count = u16::from_ne_bytes(take(2).try_into().expect("two bytes"));
        let (mut parcels, mut verdicts) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let origin = ConnectionId { index: number(take(4)), generation: number(take(4)) };
            match kind {
                PARCELS => {
                    let length = number(take(4)) as usize;
                    parcels.push(Parcel { origin, bytes: take(length), socket: self.sockets.pop_front() });
                }
                VERDICTS => verdicts.push(Verdict { origin, taken: take(1)[0] != 0 }),
                kind => unreachable!("no worker sends messages of kind {kind}"),
            }
        }
        (parcels, verdicts)
    }
}

fn put_id(message: &mut Vec<u8>, id: ConnectionId) {
    message.extend_from_slice(&id.index.to_ne_bytes());
    message.extend_from_slice(&id.generation.to_ne_bytes());
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_ne_bytes(bytes.try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use super::*;

    fn id(index: u32) -> ConnectionId {
        ConnectionId { index, generation: index + 1_000 }
    }

    #[test]
    fn parcels_arrive_with_their_own_sockets_and_verdicts_come_back() {
        let (one, two) = pair().unwrap();
        let (mut sender, mut home) = (Courier::new(one), Courier::new(two));
        let files: Vec<File> = (0..200u32)
            .map(|n| {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&n.to_ne_bytes()).unwrap();
                file
            })
            .collect();
        (0..200).for_each(|n| sender.add(id(n)));
        let mut refused = Vec::new();
        sender.send(
            |id, out| {
                // Every tenth is gone when its turn comes.
                if id.index % 10 == 3 {
                    return None;
                }
                out.extend_from_slice(format!("state of {}", id.index).as_bytes());
                Some(files[id.index as usize].as_fd())
            },
            &mut refused,
        );
        assert!(!sender.has_outgoing() && refused.is_empty());

        let mut received = Received::new();
        let mut seen = Vec::new();
        while home.receive(&mut received).unwrap() {
            let (parcels, verdicts) = received.read();
            assert!(verdicts.is_empty());
            for parcel in parcels {
                assert_eq!(parcel.bytes, format!("state of {}", parcel.origin.index).as_bytes());
                let mut file = File::from(parcel.socket.unwrap());
                let mut content = [0; 4];
                file.rewind().unwrap();
                file.read_exact(&mut content).unwrap();
                assert_eq!(u32::from_ne_bytes(content), parcel.origin.index);
                home.answer(Verdict { origin: parcel.origin, taken: parcel.origin.index != 7 });
                seen.push(parcel.origin);
            }
        }
        assert_eq!(seen, (0..200).filter(|n| n % 10 != 3).map(id).collect::<Vec<_>>());

        home.send(|_, _| None, &mut refused);
        let mut taken = 0;
        while sender.receive(&mut received).unwrap() {
            let (parcels, verdicts) = received.read();
            assert!(parcels.is_empty());
            assert!(verdicts.iter().all(|verdict| verdict.taken == (verdict.origin.index != 7)));
            taken += verdicts.len();
        }
        assert_eq!(taken, 180);
    }

    #[test]
    fn a_parcel_that_no_message_can_hold_is_refused_and_delays_nobody() {
        let (one, two) = pair().unwrap();
        let (mut sender, mut home) = (Courier::new(one), Courier::new(two));
        let file = tempfile::tempfile().unwrap();
        (0..3).for_each(|n| sender.add(id(n)));
        let mut refused = Vec::new();
        sender.send(
            |id, out| {
                out.resize(out.len() + if id.index == 1 { PARCEL_BYTES_MAX + 1 } else { 100 }, 7);
                Some(file.as_fd())
            },
            &mut refused,
        );
        assert_eq!(refused, [id(1)]);
        let mut received = Received::new();
        let mut seen = Vec::new();
        while home.receive(&mut received).unwrap() {
            seen.extend(received.read().0.iter().map(|parcel| (parcel.origin, parcel.bytes.len())));
        }
        assert_eq!(seen, [(id(0), 100), (id(2), 100)]);
    }

    #[test]
    fn a_full_way_keeps_what_it_cannot_take_and_goes_on_later() {
        let (one, two) = pair().unwrap();
        let (mut sender, mut home) = (Courier::new(one), Courier::new(two));
        let file = tempfile::tempfile().unwrap();
        (0..5_000).for_each(|n| sender.add(id(n)));
        let mut received = Received::new();
        let (mut refused, mut seen, mut rounds) = (Vec::new(), 0, 0);
        while sender.has_outgoing() {
            sender.send(
                |_, out| {
                    out.extend_from_slice(&[7; 2_000]);
                    Some(file.as_fd())
                },
                &mut refused,
            );
            while home.receive(&mut received).unwrap() {
                seen += received.read().0.len();
            }
            rounds += 1;
        }
        assert_eq!((seen, refused.len()), (5_000, 0));
        assert!(rounds > 1, "the way was never full");
    }
}
