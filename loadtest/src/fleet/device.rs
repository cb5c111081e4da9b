//! One device: plain data, and what it does with bytes. No socket is read or written here.
//!
//! ```text
//!  Down --> Connecting --> Handshaking --> Greeting --> Up
//!    ^______________________________________________|   (from anywhere)
//! ```
//! Once up it owns no heap: about 300 bytes, most of them the record layer's.

use mio::net::TcpStream;
use pulsegate::codec::native::CloseCode;
use pulsegate::tls::handshake::{ClientTls, Handshake, Progress};
use pulsegate::tls::record::{Opened, RecordLayer, Stage, next_record};

use super::liveness::Watch;
use super::protocol::{DeviceProtocol, Greeting, Received};
use crate::clock::Micros;

/// One device of the fleet.
pub struct Device {
    pub socket: Option<TcpStream>,
    pub link: Link,
    /// Counts connects, so that an event for an earlier socket is known as such.
    pub attempt: u32,
    /// Failed attempts in a row, for back-off.
    pub failures: u8,
    /// It keeps its connection and says nothing more.
    pub is_silent: bool,
    /// Whether it reads what comes.
    pub read_mode: ReadMode,
    /// When the connection was due to be opened, whether or not the harness was in time.
    pub intended: Micros,
    /// When it was cut off, until it is back; 0: it was not.
    pub cut_at: Micros,
    /// The oldest unanswered heartbeat was due then, in protocols whose answers do not say; 0: none is.
    pub awaiting: Micros,
    /// The next heartbeat or message is due then, in milliseconds; 0: none.
    pub next_duty: u32,
    /// Messages that it has published.
    pub published: u32,
    /// Of them, those that are not acknowledged on this connection, and how many may be.
    pub unacknowledged: u16,
    pub window: u16,
    /// It leaves then, in milliseconds; 0: it stays.
    pub leaves: u32,
    pub watch: Watch,
    pub leftover: Option<Box<Leftover>>,
    /// Its own sessions, where it resumes.
    pub session: Option<Box<ClientTls>>,
}

const _: () = assert!(size_of::<Device>() <= 320);

/// Whether a device reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadMode {
    Reading,
    /// It keeps its connection and reads nothing.
    Stopped,
    /// It had stopped, and reads what was left for it: an end that comes now was caused before.
    Resumed,
}

/// How far a device is.
pub enum Link {
    Down,
    Connecting,
    Handshaking(Box<Handshake>),
    /// TLS stands; the protocol's greeting is not answered yet.
    Greeting(RecordLayer),
    Up(RecordLayer),
}

/// What could not be dealt with yet. Rare: most records come whole, and most writes are taken whole.
#[derive(Default)]
pub struct Leftover {
    /// Less than one record.
    pub cipher: Vec<u8>,
    /// Less than one frame.
    pub plain: Vec<u8>,
    /// Bytes that the socket did not take.
    pub unsent: Vec<u8>,
}

impl Leftover {
    pub fn is_empty(&self) -> bool {
        self.cipher.is_empty() && self.plain.is_empty() && self.unsent.is_empty()
    }
}

macro_rules! failures {
    ($($(#[doc = $doc:literal])+ $variant:ident = $label:literal,)+) => {
        /// Why a connection failed or was lost.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Failure { $($(#[doc = $doc])+ $variant,)+ }

        impl Failure {
            /// Every one, in declaration order.
            pub const ALL: &'static [Failure] = &[$(Failure::$variant,)+];
            /// How many there are.
            pub const COUNT: usize = Self::ALL.len();
            /// For people and for JSON.
            pub const fn label(self) -> &'static str { match self { $(Failure::$variant => $label,)+ } }
        }
    };
}

failures! {
    /// This host has no source port left: more source addresses are needed.
    Ports = "no_source_port",
    /// This process has no descriptor left: more threads are needed.
    Descriptors = "no_descriptor",
    /// Nobody listens, or the backlog refuses.
    Refused = "refused",
    /// Not up within the time given.
    Timeout = "timeout",
    /// Any other error of the socket's.
    Socket = "socket_error",
    /// The server reset the connection.
    Reset = "reset",
    /// The server ended the connection without a word.
    EndOfStream = "end_of_stream",
    /// The handshake or a record was wrong, or the server said so.
    Tls = "tls_error",
    /// The server broke the device protocol.
    Protocol = "protocol_error",
    /// CLOSE: silent for too long.
    Expired = "close_expired",
    /// CLOSE: another device uses the same id.
    TakenOver = "close_taken_over",
    /// CLOSE: the server ends.
    GoingAway = "close_going_away",
    /// CLOSE: no room at this time.
    TryLater = "close_try_later",
    /// CLOSE: it did not read what it was sent.
    SlowConsumer = "close_slow_consumer",
    /// CLOSE with any other code.
    Closed = "close_other",
}

impl From<CloseCode> for Failure {
    fn from(code: CloseCode) -> Self {
        match code {
            CloseCode::EXPIRED => Failure::Expired,
            CloseCode::TAKEN_OVER => Failure::TakenOver,
            CloseCode::GOING_AWAY => Failure::GoingAway,
            CloseCode::TRY_LATER => Failure::TryLater,
            CloseCode::SLOW_CONSUMER => Failure::SlowConsumer,
            _ => Failure::Closed,
        }
    }
}

/// Where a device puts what it says and what it was told; one for each thread.
#[derive(Default)]
pub struct Output {
    /// To be written to the socket.
    pub wire: Vec<u8>,
    /// To be sealed.
    pub plain: Vec<u8>,
    /// What the device was told, in order.
    pub received: Vec<Received>,
    /// Set when a handshake was completed: whether a session was resumed.
    pub resumed: Option<bool>,
}

impl Device {
    /// A device that was never connected.
    pub fn new() -> Self {
        Self {
            socket: None,
            link: Link::Down,
            attempt: 0,
            failures: 0,
            is_silent: false,
            read_mode: ReadMode::Reading,
            intended: 0,
            cut_at: 0,
            awaiting: 0,
            next_duty: 0,
            published: 0,
            unacknowledged: 0,
            window: u16::MAX,
            leaves: 0,
            watch: Watch::default(),
            leftover: None,
            session: None,
        }
    }

    pub fn is_up(&self) -> bool {
        matches!(self.link, Link::Up(_))
    }

    /// Whether it does not read, or did not.
    pub fn had_stopped_reading(&self) -> bool {
        self.read_mode != ReadMode::Reading
    }

    pub fn is_down(&self) -> bool {
        matches!(self.link, Link::Down)
    }

    /// TCP is there: says ClientHello.
    pub fn begin_handshake(&mut self, tls: &ClientTls, out: &mut Output) -> Result<(), Failure> {
        let handshake = Handshake::client(tls, &mut out.wire).map_err(|_| Failure::Tls)?;
        self.link = Link::Handshaking(Box::new(handshake));
        Ok(())
    }

    /// Handles all whole records in `input`; how many bytes that were. `greeting` is what the device says at first.
    pub fn handle_bytes(
        &mut self,
        protocol: &DeviceProtocol,
        greeting: &Greeting,
        input: &mut [u8],
        out: &mut Output,
    ) -> Result<usize, Failure> {
        let mut taken = 0;
        if let Link::Handshaking(_) = self.link {
            taken = self.handle_handshake(protocol, greeting, input, out)?;
        }
        match self.link {
            Link::Greeting(_) | Link::Up(_) => {
                Ok(taken + self.handle_records(protocol, greeting, &mut input[taken..], out)?)
            }
            _ => Ok(taken),
        }
    }

    /// Seals `out.plain` into `out.wire`.
    pub fn seal(&mut self, out: &mut Output) -> Result<(), Failure> {
        if let Link::Greeting(records) | Link::Up(records) = &mut self.link {
            records.burst().seal(&out.plain, &mut out.wire).map_err(|_| Failure::Tls)?;
        }
        out.plain.clear();
        Ok(())
    }

    /// Appends the protocol's goodbye and close_notify.
    pub fn encode_goodbye(&mut self, protocol: &DeviceProtocol, out: &mut Output) {
        if let Link::Up(records) = &mut self.link {
            protocol.encode_goodbye(&mut out.plain);
            let mut burst = records.burst();
            // A layer that can seal no more has sent its close_notify already.
            let _ = burst.seal(&out.plain, &mut out.wire);
            burst.close_notify(&mut out.wire);
        }
        out.plain.clear();
    }

    fn handle_handshake(
        &mut self,
        protocol: &DeviceProtocol,
        greeting: &Greeting,
        input: &mut [u8],
        out: &mut Output,
    ) -> Result<usize, Failure> {
        let Link::Handshaking(handshake) = &mut self.link else { unreachable!("asked before") };
        let mut taken = 0;
        loop {
            let rest = &input[taken..];
            let Some(length) = next_record(rest, Stage::Handshake).map_err(|_| Failure::Tls)? else { return Ok(taken) };
            taken += length;
            let progress = handshake.handle_record(&rest[..length], &mut out.wire).map_err(|_| Failure::Tls)?;
            if progress == Progress::Done {
                break;
            }
        }
        let Link::Handshaking(handshake) = std::mem::replace(&mut self.link, Link::Down) else {
            unreachable!("as above")
        };
        let established = handshake.finish(&mut out.wire).map_err(|_| Failure::Tls)?;
        out.resumed = Some(established.resumed);
        let mut records = established.records;
        self.link = if greeting.first.is_empty() {
            Link::Up(records)
        } else {
            let first = if greeting.opening.is_empty() { &greeting.first } else { &greeting.opening };
            records.burst().seal(first, &mut out.wire).map_err(|_| Failure::Tls)?;
            Link::Greeting(records)
        };
        if !established.early_plaintext.is_empty() {
            self.understand(protocol, &established.early_plaintext, out)?;
        }
        Ok(taken)
    }

    fn handle_records(
        &mut self,
        protocol: &DeviceProtocol,
        greeting: &Greeting,
        input: &mut [u8],
        out: &mut Output,
    ) -> Result<usize, Failure> {
        let (Link::Greeting(records) | Link::Up(records)) = &mut self.link else { unreachable!("asked before") };
        let mut burst = records.burst();
        let carried = self.leftover.as_mut().map(|leftover| &mut leftover.plain).filter(|plain| !plain.is_empty());
        let mut plaintext = carried.map(std::mem::take).unwrap_or_default();
        let (mut taken, mut is_over) = (0, false);
        while !is_over {
            let Some(length) = burst.next_record(&input[taken..], &mut out.wire).map_err(|_| Failure::Tls)? else {
                break;
            };
            match burst.open(&mut input[taken..taken + length], &mut out.wire).map_err(|_| Failure::Tls)? {
                Opened::Data(data) if plaintext.is_empty() => {
                    let understood = understand(protocol, self.is_silent, data, out)?;
                    plaintext.extend_from_slice(&data[understood..]);
                }
                Opened::Data(data) => {
                    plaintext.extend_from_slice(data);
                    let understood = understand(protocol, self.is_silent, &plaintext, out)?;
                    plaintext.drain(..understood);
                }
                Opened::Handled(_) => {}
                Opened::CloseNotify => is_over = true,
            }
            taken += length;
        }
        let has = |what: fn(&Received) -> bool| out.received.iter().any(what);
        let is_known = has(|received| matches!(received, Received::Welcome(_)));
        let is_subscribed = has(|received| matches!(received, Received::Subscribed));
        if has(|received| matches!(received, Received::Opened)) {
            out.plain.extend_from_slice(&greeting.first);
        }
        if is_known {
            out.plain.extend_from_slice(&greeting.second);
        }
        if !out.plain.is_empty() {
            burst.seal(&out.plain, &mut out.wire).map_err(|_| Failure::Tls)?;
            out.plain.clear();
        }
        if !plaintext.is_empty() {
            self.leftover.get_or_insert_default().plain = plaintext;
        }
        let is_done = is_subscribed || (is_known && greeting.second.is_empty());
        if matches!(self.link, Link::Greeting(_)) && is_done {
            let Link::Greeting(records) = std::mem::replace(&mut self.link, Link::Down) else {
                unreachable!("asked just now")
            };
            self.link = Link::Up(records);
        }
        // What came before the end is handled first: the caller finds a CLOSE in `received`.
        let closed = out.received.iter().any(|received| matches!(received, Received::Close(_)));
        if is_over && !closed { Err(Failure::EndOfStream) } else { Ok(taken) }
    }

    /// Application data that came before the session ticket that was waited for.
    fn understand(&mut self, protocol: &DeviceProtocol, plaintext: &[u8], out: &mut Output) -> Result<(), Failure> {
        let understood = understand(protocol, self.is_silent, plaintext, out)?;
        if understood < plaintext.len() {
            self.leftover.get_or_insert_default().plain = plaintext[understood..].to_vec();
        }
        self.seal(out)
    }
}

fn understand(
    protocol: &DeviceProtocol,
    is_silent: bool,
    plaintext: &[u8],
    out: &mut Output,
) -> Result<usize, Failure> {
    let received = &mut out.received;
    let understood = protocol.handle(plaintext, !is_silent, &mut out.plain, |what| received.push(what));
    understood.map_err(|_| Failure::Protocol)
}
