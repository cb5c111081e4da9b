//! Moving connections between workers (decision D3): a descriptor and its plain state go over a unix socket, and the
//! sender forgets them only when the receiver has said that it holds them.
//!
//! ```text
//!   sender                                        receiver (the home)
//!   deregisters the socket, packs the state
//!   ── images + descriptors ────────────────────▶ takes both, registers the socket; the device lives here now
//!   ◀──────────────────────────────────── acks ──
//!   taken: closes its copy.  refused: still has everything, and tells the peer itself
//! ```
//!
//! One SOCK_SEQPACKET pair joins each two workers. A message is
//!
//! ```text
//!   1 (images)   count u16   { index u32, generation u32, length u32, bytes … }  × count, with count descriptors
//!   2 (acks)     count u16   { index u32, generation u32, taken u8 }               × count
//! ```
//! big-endian (`wire`); the handle is the sender's. A full receiving table drops
//! descriptors silently (MSG_CTRUNC): images without one are refused, which is why there are acks at all.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::TcpStream;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use zeroize::Zeroize;

use crate::config::budget::DESCRIPTORS_SPARE;
use crate::link::ConnectionId;
use crate::slot::ConnectionSlot;
use crate::turn::{Handoff, HandoffAck};
use crate::wire::{Reader, WireError, Writer};

/// Connections in one message: for so many the home keeps places free. The kernel takes at most 253 descriptors.
const IMAGES_MAX: usize = DESCRIPTORS_SPARE as usize;
/// A message is closed when it has grown beyond this; a single image may be larger.
const MESSAGE_BYTES: usize = 64 << 10;
/// The largest message.
const RECEIVE_BYTES: usize = 512 << 10;
/// The largest image: with all before it in its message it must fit into what is received. A peer that pipelined more
/// than this behind HELLO is refused.
const IMAGE_BYTES_MAX: usize = RECEIVE_BYTES - MESSAGE_BYTES - 64;
const ACKS_MAX: usize = 1_024;

const IMAGES: u8 = 1;
const ACKS: u8 = 2;

/// The two ends of the channel between two workers.
pub(super) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (one, two) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    for end in [&one, &two] {
        // As much as the kernel allows: one message must fit, and more than one is welcome.
        rustix::net::sockopt::set_socket_send_buffer_size(end, 2 * RECEIVE_BYTES)?;
    }
    Ok((one, two))
}

/// One worker's end of the channel to one other worker.
pub(super) struct HandoffChannel {
    socket: OwnedFd,
    outgoing: VecDeque<ConnectionId>,
    acks: VecDeque<HandoffAck>,
}

impl HandoffChannel {
    pub(super) fn new(socket: OwnedFd) -> Self {
        Self { socket, outgoing: VecDeque::new(), acks: VecDeque::new() }
    }

    /// Queues a connection; it goes with the next [`HandoffChannel::send`].
    pub(super) fn add(&mut self, id: ConnectionId) {
        self.outgoing.push_back(id);
    }

    /// Answers for a connection that came.
    pub(super) fn acknowledge(&mut self, ack: HandoffAck) {
        self.acks.push_back(ack);
    }

    /// Whether something waits to be sent.
    pub(super) fn has_outgoing(&self) -> bool {
        !self.outgoing.is_empty() || !self.acks.is_empty()
    }

    /// Sends what is queued, as far as the channel takes it. `pack` appends a connection's state and lends its socket, or says
    /// that it is gone. Connections that can never be sent are appended to `refused`.
    pub(super) fn send<'s>(
        &mut self,
        mut pack: impl FnMut(ConnectionId, &mut Vec<u8>) -> Option<BorrowedFd<'s>>,
        refused: &mut Vec<ConnectionId>,
    ) {
        if self.send_acks() {
            while !self.outgoing.is_empty() && self.send_images(&mut pack, refused) {}
        }
    }

    /// `true`: all were sent.
    fn send_acks(&mut self) -> bool {
        while !self.acks.is_empty() {
            let count = self.acks.len().min(ACKS_MAX);
            let mut message = vec![ACKS];
            message.extend_from_slice(&(count as u16).to_be_bytes());
            for ack in self.acks.iter().take(count) {
                put_id(&mut message, ack.origin);
                message.push(u8::from(ack.taken));
            }
            if self.send_message(&message, &[]).is_err() {
                return false;
            }
            self.acks.drain(..count);
        }
        true
    }

    /// Sends one message of images. `true`: it went, or was given up; there may be more.
    fn send_images<'s>(
        &mut self,
        pack: &mut impl FnMut(ConnectionId, &mut Vec<u8>) -> Option<BorrowedFd<'s>>,
        refused: &mut Vec<ConnectionId>,
    ) -> bool {
        // Room for all but the largest from the start: a buffer that grows leaves keys behind in its former place.
        let mut message = Vec::with_capacity(2 * MESSAGE_BYTES);
        message.extend_from_slice(&[IMAGES, 0, 0]);
        let mut packed = Vec::new();
        let mut too_large = Vec::new();
        let mut sockets = Vec::new();
        let mut looked_at = 0;
        for &id in &self.outgoing {
            if packed.len() == IMAGES_MAX || message.len() > MESSAGE_BYTES {
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
            if length > IMAGE_BYTES_MAX {
                message.truncate(start);
                too_large.push(id);
                continue;
            }
            message[body - 4..body].copy_from_slice(&(length as u32).to_be_bytes());
            packed.push(id);
            sockets.push(socket);
        }
        message[1..3].copy_from_slice(&(packed.len() as u16).to_be_bytes());
        let sent = if packed.is_empty() { Ok(()) } else { self.send_message(&message, &sockets) };
        message.as_mut_slice().zeroize();
        match sent {
            Ok(()) => {}
            // EAGAIN: the channel is full. ETOOMANYREFS: too many descriptors are on their way. Both pass.
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
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(IMAGES_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !sockets.is_empty() {
            let fits = ancillary.push(SendAncillaryMessage::ScmRights(sockets));
            assert!(fits, "the space is made for a full message");
        }
        let sent = sendmsg(&self.socket, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)?;
        debug_assert_eq!(sent, message.len(), "a SEQPACKET message goes whole or not at all");
        Ok(())
    }

    /// Receives one message. `false`: none is there.
    ///
    /// # Errors
    /// The other worker is gone, or the message is none of ours: both mean that the process is coming down.
    pub(super) fn receive(&mut self, message: &mut Message) -> io::Result<bool> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(IMAGES_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let mut into = [IoSliceMut::new(&mut message.bytes)];
        let received = loop {
            match recvmsg(&self.socket, &mut into, &mut ancillary, flags) {
                Ok(received) => break received,
                Err(Errno::AGAIN) => return Ok(false),
                // The poll has told of the message, and does so once: it would wait for the next one.
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        if received.bytes == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        message.sockets.clear();
        for extra in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(sockets) = extra {
                message.sockets.extend(sockets);
            }
        }
        message.begin(received.bytes);
        Ok(true)
    }
}

impl AsFd for HandoffChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// One received message, in memory that serves every message of a worker in turn.
pub(super) struct Message {
    bytes: Box<[u8]>,
    length: usize,
    /// What was taken out so far.
    position: usize,
    kind: u8,
    /// How many are still to be taken out.
    left: u16,
    sockets: VecDeque<OwnedFd>,
}

impl Message {
    pub(super) fn new() -> Self {
        let mut bytes = vec![0; RECEIVE_BYTES].into_boxed_slice();
        // What all but the largest messages use is there before the first device is.
        bytes[..2 * MESSAGE_BYTES].fill(0xA5);
        Self { bytes, length: 0, position: 0, kind: 0, left: 0, sockets: VecDeque::new() }
    }

    /// A message of so many bytes was received.
    fn begin(&mut self, length: usize) {
        (self.length, self.position) = (length, 0);
        self.kind = self.read(Reader::u8);
        self.left = self.read(Reader::u16);
    }

    /// What the message holds, one after the other. It comes from this program; a message that is not well-formed is our
    /// own error.
    pub(super) fn next(&mut self) -> Option<Handoff<TcpStream>> {
        let Some(left) = self.left.checked_sub(1) else {
            self.wipe();
            return None;
        };
        self.left = left;
        let origin = ConnectionId { slot: ConnectionSlot(self.read(Reader::u32)), generation: self.read(Reader::u32) };
        Some(match self.kind {
            IMAGES => {
                let length = self.read(Reader::u32) as usize;
                let image = self.position..self.position + length;
                self.position = image.end;
                Handoff::Connection { origin, image, socket: self.sockets.pop_front().map(TcpStream::from) }
            }
            ACKS => Handoff::Ack(HandoffAck { origin, taken: self.read(Reader::flag) }),
            kind => unreachable!("no worker sends messages of kind {kind}"),
        })
    }

    /// The bytes of an image.
    pub(super) fn bytes(&self, image: Range<usize>) -> &[u8] {
        &self.bytes[image]
    }

    /// Forgets the message: it held keys.
    fn wipe(&mut self) {
        self.bytes[..self.length].zeroize();
        self.length = 0;
    }

    /// One field, behind those that were taken out.
    fn read<'m, T>(&'m mut self, field: impl FnOnce(&mut Reader<'m>) -> Result<T, WireError>) -> T {
        let mut reader = Reader::new(&self.bytes[self.position..self.length]);
        let value = field(&mut reader).expect("a message of this program is well-formed");
        self.position = self.length - reader.len();
        value
    }
}

fn put_id(message: &mut Vec<u8>, id: ConnectionId) {
    let mut writer = Writer::new(message);
    writer.u32(id.slot.0);
    writer.u32(id.generation);
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, Write};

    use super::*;

    fn id(index: u32) -> ConnectionId {
        ConnectionId { slot: ConnectionSlot(index), generation: index + 1_000 }
    }

    /// Handle, image and socket of a connection that came.
    type Arrived = (ConnectionId, Vec<u8>, File);

    /// All that has arrived: connections and answers.
    fn receive_all(channel: &mut HandoffChannel) -> (Vec<Arrived>, Vec<HandoffAck>) {
        let mut message = Message::new();
        let (mut connections, mut acks) = (Vec::new(), Vec::new());
        while channel.receive(&mut message).unwrap() {
            while let Some(handoff) = message.next() {
                match handoff {
                    Handoff::Connection { origin, image, socket } => {
                        let file = File::from(OwnedFd::from(socket.unwrap()));
                        connections.push((origin, message.bytes(image).to_vec(), file));
                    }
                    Handoff::Ack(ack) => acks.push(ack),
                }
            }
            assert!(
                message.bytes[..MESSAGE_BYTES].iter().all(|&byte| byte == 0 || byte == 0xA5),
                "keys are left behind"
            );
        }
        (connections, acks)
    }

    #[test]
    fn images_arrive_with_their_own_sockets_and_acks_come_back() {
        let (one, two) = pair().unwrap();
        let (mut sender, mut home) = (HandoffChannel::new(one), HandoffChannel::new(two));
        let files: Vec<File> = (0..200u32)
            .map(|n| {
                let mut file = tempfile::tempfile().unwrap();
                file.write_all(&n.to_be_bytes()).unwrap();
                file
            })
            .collect();
        (0..200).for_each(|n| sender.add(id(n)));
        let mut refused = Vec::new();
        sender.send(
            |id, out| {
                // Every tenth is gone when its turn comes.
                if id.slot.0 % 10 == 3 {
                    return None;
                }
                out.extend_from_slice(format!("state of {}", id.slot).as_bytes());
                Some(files[id.slot.index()].as_fd())
            },
            &mut refused,
        );
        assert!(!sender.has_outgoing() && refused.is_empty());

        let (mut connections, acks) = receive_all(&mut home);
        assert!(acks.is_empty());
        for (origin, image, file) in &mut connections {
            assert_eq!(*image, format!("state of {}", origin.slot).as_bytes());
            let mut content = [0; 4];
            file.rewind().unwrap();
            file.read_exact(&mut content).unwrap();
            assert_eq!(u32::from_be_bytes(content), origin.slot.0);
            home.acknowledge(HandoffAck { origin: *origin, taken: origin.slot.0 != 7 });
        }
        let origins: Vec<_> = connections.iter().map(|(origin, ..)| *origin).collect();
        assert_eq!(origins, (0..200).filter(|n| n % 10 != 3).map(id).collect::<Vec<_>>());

        home.send(|_, _| None, &mut refused);
        let (connections, acks) = receive_all(&mut sender);
        assert!(connections.is_empty() && acks.len() == 180);
        assert!(acks.iter().all(|ack| ack.taken == (ack.origin.slot.0 != 7)));
    }

    #[test]
    fn an_image_that_no_message_can_hold_is_refused_and_delays_nobody() {
        let (one, two) = pair().unwrap();
        let (mut sender, mut home) = (HandoffChannel::new(one), HandoffChannel::new(two));
        let file = tempfile::tempfile().unwrap();
        (0..3).for_each(|n| sender.add(id(n)));
        let mut refused = Vec::new();
        sender.send(
            |id, out| {
                out.resize(out.len() + if id.slot.0 == 1 { IMAGE_BYTES_MAX + 1 } else { 100 }, 7);
                Some(file.as_fd())
            },
            &mut refused,
        );
        assert_eq!(refused, [id(1)]);
        let seen: Vec<_> =
            receive_all(&mut home).0.into_iter().map(|(origin, image, _)| (origin, image.len())).collect();
        assert_eq!(seen, [(id(0), 100), (id(2), 100)]);
    }

    #[test]
    fn a_full_channel_keeps_what_it_cannot_take_and_goes_on_later() {
        let (one, two) = pair().unwrap();
        let (mut sender, mut home) = (HandoffChannel::new(one), HandoffChannel::new(two));
        let file = tempfile::tempfile().unwrap();
        (0..5_000).for_each(|n| sender.add(id(n)));
        let (mut refused, mut seen, mut rounds) = (Vec::new(), 0, 0);
        while sender.has_outgoing() {
            sender.send(
                |_, out| {
                    out.extend_from_slice(&[7; 2_000]);
                    Some(file.as_fd())
                },
                &mut refused,
            );
            seen += receive_all(&mut home).0.len();
            rounds += 1;
        }
        assert_eq!((seen, refused.len()), (5_000, 0));
        assert!(rounds > 1, "the channel was never full");
    }
}
