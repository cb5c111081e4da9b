//! A device: blocking, simple, and able to misbehave. TLS by the library's own client role, so that it can speak
//! between the lines (records, keys, half frames).

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use pulsegate::codec::native::{self, CloseCode, Frame, Hello, Message, Welcome};
use pulsegate::tls::handshake::{ClientTls, Handshake, HandshakeError, Progress};
use pulsegate::tls::record::{Opened, RecordError, RecordLayer, Stage, next_record};

use socket2::{Domain, Socket, Type};

use super::SOON;

/// What a device hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Welcome(Welcome),
    Ping(Vec<u8>),
    Pong(Vec<u8>),
    Message {
        id: u32,
        topic: String,
        payload: Vec<u8>,
    },
    Ack(u32),
    Close {
        code: CloseCode,
        retry_after_ms: u32,
        reason: String,
    },
    /// Bytes of a raw listener.
    Data(Vec<u8>),
    /// A fatal alert.
    Alert(u8),
    /// The end of TLS, in order.
    CloseNotify,
    /// The end of the stream.
    Eof,
    /// The end of the stream, by force.
    Reset,
}

/// Why there is no device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConnectError {
    /// The gateway gave up with this alert.
    Alert(u8),
    /// The stream ended.
    Eof,
    /// The stream ended by force.
    Reset,
    /// The device gave up.
    Tls(String),
}

/// One TLS connection to the gateway.
pub struct Device {
    pub socket: TcpStream,
    pub records: RecordLayer,
    pub resumed: bool,
    is_native: bool,
    inbox: Vec<u8>,
    plain: Vec<u8>,
    events: VecDeque<Event>,
    is_over: bool,
}

/// A connected socket that gives up at some time.
pub fn dial(address: SocketAddr) -> Result<TcpStream, ConnectError> {
    TcpStream::connect(address).map(giving_up).map_err(|error| end_of(&error))
}

/// A connected socket, which gives up at some time from here on.
pub fn giving_up(socket: TcpStream) -> TcpStream {
    socket.set_nodelay(true).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    socket.set_write_timeout(Some(SOON)).unwrap();
    socket
}

/// The same from an address of one's own: every address of 127.0.0.0/8 is this machine's.
pub fn dial_from(source: [u8; 4], address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    giving_up(TcpStream::from(socket))
}

/// What a client says first.
pub fn client_hello(tls: &ClientTls) -> Vec<u8> {
    let mut out = Vec::new();
    Handshake::client(tls, &mut out).unwrap();
    out
}

impl Device {
    /// A native device after its TLS handshake, before HELLO.
    pub fn connect(address: SocketAddr, tls: &ClientTls) -> Result<Self, ConnectError> {
        Self::over(dial(address)?, tls)
    }

    /// The same over a socket that is there.
    pub fn over(mut socket: TcpStream, tls: &ClientTls) -> Result<Self, ConnectError> {
        let (mut out, mut inbox) = (Vec::new(), Vec::new());
        let mut handshake = Handshake::client(tls, &mut out).expect("the options fit");
        loop {
            if !out.is_empty() {
                socket.write_all(&out).map_err(|error| end_of(&error))?;
                out.clear();
            }
            let Some(length) = next_record(&inbox, Stage::Handshake).map_err(|error| tls_error(&error))? else {
                receive(&mut socket, &mut inbox)?;
                continue;
            };
            let record: Vec<u8> = inbox.drain(..length).collect();
            match handshake.handle_record(&record, &mut out) {
                Ok(Progress::Continue) => {}
                Ok(Progress::Done) => break,
                Err(HandshakeError::PeerAlert(code)) => return Err(ConnectError::Alert(code)),
                Err(error) => {
                    // The gateway is told why, if it still listens.
                    let _ = socket.write_all(&out);
                    return Err(tls_error(&error));
                }
            }
        }
        let established = handshake.finish(&mut out).map_err(|error| tls_error(&error))?;
        socket.write_all(&out).map_err(|error| end_of(&error))?;
        Ok(Self {
            socket,
            records: established.records,
            resumed: established.resumed,
            is_native: true,
            inbox,
            plain: established.early_plaintext,
            events: VecDeque::new(),
            is_over: false,
        })
    }

    /// A native device that was welcomed.
    #[track_caller]
    pub fn welcomed(address: SocketAddr, tls: &ClientTls, id: &str) -> Self {
        let mut device = Self::connect(address, tls).unwrap();
        device.send(&[hello(id)]);
        device.expect_welcome();
        device
    }

    /// A device of a raw listener.
    pub fn raw(address: SocketAddr, tls: &ClientTls) -> Result<Self, ConnectError> {
        Self::raw_over(dial(address)?, tls)
    }

    /// The same over a socket that is there.
    pub fn raw_over(socket: TcpStream, tls: &ClientTls) -> Result<Self, ConnectError> {
        Self::over(socket, tls).map(|device| Self { is_native: false, ..device })
    }

    // --- Speaking ---------------------------------------------------------------------------------------------------

    /// Sends frames: one record, one write.
    #[track_caller]
    pub fn send(&mut self, frames: &[Frame<'_>]) {
        self.send_plain(&encoded(frames));
    }

    /// Sends bytes within TLS, with one write.
    #[track_caller]
    pub fn send_plain(&mut self, plain: &[u8]) {
        let wire = self.seal(plain);
        self.send_wire(&wire);
    }

    /// Bytes as records that are not sent yet.
    pub fn seal(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut wire = Vec::new();
        self.records.burst().seal(plain, &mut wire).unwrap();
        wire
    }

    /// Sends bytes as they are.
    #[track_caller]
    pub fn send_wire(&mut self, wire: &[u8]) {
        self.socket.write_all(wire).unwrap();
    }

    /// Changes its sending key, and wants the gateway to change its own if `both`.
    pub fn update_keys(&mut self, both: bool) {
        let mut wire = Vec::new();
        assert!(self.records.burst().update_keys(both, &mut wire));
        self.send_wire(&wire);
    }

    /// Ends in order, and waits for the gateway's end.
    #[track_caller]
    pub fn leave(mut self) {
        let mut wire = Vec::new();
        self.records.burst().close_notify(&mut wire);
        self.send_wire(&wire);
        self.socket.shutdown(Shutdown::Write).unwrap();
        while !matches!(self.hear(), Event::Eof | Event::Reset) {}
    }

    /// Tears the connection down with a reset.
    pub fn reset(self) {
        socket2::SockRef::from(&self.socket).set_linger(Some(Duration::ZERO)).unwrap();
    }

    // --- Hearing ----------------------------------------------------------------------------------------------------

    /// The next thing that the gateway says; panics when it says nothing for [`SOON`].
    #[track_caller]
    pub fn hear(&mut self) -> Event {
        self.hear_within(SOON).expect("the gateway says nothing")
    }

    /// The next thing that the gateway says, if it does so in time.
    pub fn hear_within(&mut self, within: Duration) -> Option<Event> {
        let deadline = Instant::now() + within;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.is_over || left.is_zero() {
                return None;
            }
            self.socket.set_read_timeout(Some(left)).unwrap();
            self.read();
        }
    }

    /// Hears everything up to and with the end of the stream.
    #[track_caller]
    pub fn hear_all(&mut self) -> Vec<Event> {
        let mut heard = Vec::new();
        while !matches!(heard.last(), Some(Event::Eof | Event::Reset)) {
            heard.push(self.hear());
        }
        heard
    }

    #[track_caller]
    pub fn expect_welcome(&mut self) -> Welcome {
        match self.hear() {
            Event::Welcome(welcome) => welcome,
            other => panic!("WELCOME was to come: {other:?}"),
        }
    }

    /// CLOSE with this code, close_notify and the end of the stream, in this order and with nothing after a PING; the
    /// reason's text and the back-off.
    #[track_caller]
    pub fn expect_close(&mut self, expected: CloseCode) -> (String, u32) {
        let mut heard = self.hear_all();
        heard.retain(|event| !matches!(event, Event::Ping(_)));
        match heard.as_slice() {
            [Event::Close { code, reason, retry_after_ms }, Event::CloseNotify, Event::Eof] if *code == expected => {
                (reason.clone(), *retry_after_ms)
            }
            other => panic!("CLOSE {expected:?} was to come: {other:?}"),
        }
    }

    /// This alert, and the end of the stream.
    #[track_caller]
    pub fn expect_alert(&mut self, code: u8) {
        assert_eq!(self.hear_all(), [Event::Alert(code), Event::Eof]);
    }

    /// Reads once, as the socket is set to, and handles what came. `false`: nothing was there.
    pub fn read(&mut self) -> bool {
        let mut chunk = [0; 16_384];
        match self.socket.read(&mut chunk) {
            Ok(0) => self.end(Event::Eof),
            Ok(count) => {
                self.inbox.extend_from_slice(&chunk[..count]);
                self.handle_inbox();
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return false,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => self.end(Event::Reset),
        }
        !self.is_over
    }

    /// What was heard and not asked for yet.
    pub fn take_events(&mut self) -> impl Iterator<Item = Event> + use<> {
        std::mem::take(&mut self.events).into_iter()
    }

    fn end(&mut self, event: Event) {
        self.is_over = true;
        self.events.push_back(event);
    }

    fn handle_inbox(&mut self) {
        let mut answers = Vec::new();
        let mut burst = self.records.burst();
        loop {
            let length = match burst.next_record(&self.inbox, &mut answers) {
                Ok(Some(length)) => length,
                Ok(None) => break,
                Err(error) => panic!("the gateway's record is wrong: {error}"),
            };
            let mut record: Vec<u8> = self.inbox.drain(..length).collect();
            match burst.open(&mut record, &mut answers) {
                Ok(Opened::Data(data)) => self.plain.extend_from_slice(data),
                Ok(Opened::Handled(_)) => {}
                Ok(Opened::CloseNotify) => {
                    take_frames(&mut self.plain, self.is_native, &mut self.events);
                    self.events.push_back(Event::CloseNotify);
                }
                Err(RecordError::PeerAlert(code)) => {
                    take_frames(&mut self.plain, self.is_native, &mut self.events);
                    self.events.push_back(Event::Alert(code));
                    self.inbox.clear();
                    break;
                }
                Err(error) => panic!("the gateway's record is wrong: {error}"),
            }
        }
        drop(burst);
        take_frames(&mut self.plain, self.is_native, &mut self.events);
        if !answers.is_empty() {
            // An answer to a gateway that is gone is answer enough.
            let _ = self.socket.write_all(&answers);
        }
    }
}

/// HELLO without a token or wishes.
pub fn hello(id: &str) -> Frame<'_> {
    Frame::Hello(Hello { heartbeat_ms: 0, id, token: b"" })
}

/// A message that wants an ACK, if `id` is not 0.
pub fn message(id: u32, payload: &[u8]) -> Frame<'_> {
    Frame::Message(Message { id, topic: "power", payload })
}

/// Frames as bytes.
pub fn encoded(frames: &[Frame<'_>]) -> Vec<u8> {
    let mut plain = Vec::new();
    for frame in frames {
        frame.encode(&mut plain);
    }
    plain
}

fn take_frames(plain: &mut Vec<u8>, is_native: bool, events: &mut VecDeque<Event>) {
    if !is_native {
        if !plain.is_empty() {
            events.push_back(Event::Data(std::mem::take(plain)));
        }
        return;
    }
    while let Some((frame, length)) = native::decode(plain, native::BODY_MAX).expect("the gateway's frame is right") {
        events.push_back(owned(&frame));
        plain.drain(..length);
    }
}

fn owned(frame: &Frame<'_>) -> Event {
    match *frame {
        Frame::Hello(_) => panic!("a gateway sends no HELLO"),
        Frame::Welcome(welcome) => Event::Welcome(welcome),
        Frame::Ping(opaque) => Event::Ping(opaque.to_vec()),
        Frame::Pong(opaque) => Event::Pong(opaque.to_vec()),
        Frame::Message(Message { id, topic, payload }) => {
            Event::Message { id, topic: topic.to_owned(), payload: payload.to_vec() }
        }
        Frame::Ack(id) => Event::Ack(id),
        Frame::Close(close) => {
            Event::Close { code: close.code, retry_after_ms: close.retry_after_ms, reason: close.reason.to_owned() }
        }
    }
}

fn receive(socket: &mut TcpStream, inbox: &mut Vec<u8>) -> Result<(), ConnectError> {
    let mut chunk = [0; 4_096];
    match socket.read(&mut chunk) {
        Ok(0) => Err(ConnectError::Eof),
        Ok(count) => {
            inbox.extend_from_slice(&chunk[..count]);
            Ok(())
        }
        Err(error) => Err(end_of(&error)),
    }
}

#[track_caller]
fn end_of(error: &std::io::Error) -> ConnectError {
    match error.kind() {
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => ConnectError::Reset,
        _ => panic!("the gateway does not answer: {error}"),
    }
}

fn tls_error(error: &impl std::fmt::Display) -> ConnectError {
    ConnectError::Tls(error.to_string())
}
