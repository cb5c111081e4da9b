//! The client of all three: many connections on one thread, pinged in turn at a fixed rate. It opens and checks every
//! answer; what that costs is its own.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream as Blocking};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};
use pulsegate::codec::native::{self, BODY_MAX, Frame, Hello};
use pulsegate::tls::handshake::{ClientOptions, ClientResumption, ClientTls, Handshake, Progress, Roots, Versions};
use pulsegate::tls::record::{Opened, RecordLayer, Stage, next_record};

use crate::fixtures::{Deployment, SUITE, device_id};

/// On the wire all pings are this long: a record with a native PING that carries five bytes.
const PING_BYTES: usize = 30;
const OPAQUE: &[u8] = b"12345";
/// How long answers may be outstanding at the end of a round.
const TAIL: Duration = Duration::from_secs(2);
/// How long connecting and shaking hands may take for each connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// What one round came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Outcome {
    pub(super) answered: u64,
    /// Times at which pings were sent, some at once.
    pub(super) bursts: u64,
}

/// Connections to one server.
pub(super) struct Client {
    poll: Poll,
    events: Events,
    connections: Vec<Connection>,
    next: usize,
}

struct Connection {
    socket: TcpStream,
    protocol: ClientProtocol,
    received: Vec<u8>,
    is_waiting: bool,
}

/// What is said within a ping.
enum ClientProtocol {
    Plain,
    /// TLS, and the same bytes back.
    Echo(Box<RecordLayer>),
    /// TLS, PING and PONG.
    Native(Box<RecordLayer>),
}

impl Client {
    /// Connects to the plain server.
    pub(super) fn plain(address: SocketAddr, count: u32) -> Self {
        Self::connect(address, count, |_, _| (ClientProtocol::Plain, Vec::new()))
    }

    /// Connects to the tokio-rustls server.
    pub(super) fn echo(address: SocketAddr, deployment: &Deployment, count: u32) -> Self {
        let tls = client_tls(deployment, &[]);
        Self::connect(address, count, |_, socket| {
            let (records, rest) = shake_hands(&tls, socket);
            (ClientProtocol::Echo(Box::new(records)), rest)
        })
    }

    /// Connects to the gateway's native listener: devices with names.
    pub(super) fn native(address: SocketAddr, deployment: &Deployment, count: u32) -> Self {
        let tls = client_tls(deployment, &[native::ALPN]);
        Self::connect(address, count, |number, socket| {
            let (mut records, mut rest) = shake_hands(&tls, socket);
            say_hello(number, &mut records, socket, &mut rest);
            (ClientProtocol::Native(Box::new(records)), rest)
        })
    }

    fn connect(
        address: SocketAddr,
        count: u32,
        begin: impl Fn(u32, &mut Blocking) -> (ClientProtocol, Vec<u8>),
    ) -> Self {
        let poll = Poll::new().expect("a poll");
        let connections = (0..count).map(|number| {
            let mut socket = Blocking::connect(address).expect("the server listens");
            socket.set_nodelay(true).expect("a TCP socket");
            socket.set_read_timeout(Some(PATIENCE)).expect("a TCP socket");
            let (protocol, received) = begin(number, &mut socket);
            socket.set_nonblocking(true).expect("a TCP socket");
            let mut socket = TcpStream::from_std(socket);
            poll.registry()
                .register(&mut socket, Token(number as usize), Interest::READABLE)
                .expect("room in the poll");
            Connection { socket, protocol, received, is_waiting: false }
        });
        let connections = connections.collect();
        Self { poll, events: Events::with_capacity(1_024), connections, next: 0 }
    }

    /// Pings at `rate` a second for so long, and waits for the last answers. A connection that has not answered yet is
    /// passed over; when all have not, pings are given up.
    pub(super) fn ping(&mut self, rate: u32, duration: Duration) -> Outcome {
        let mut outcome = Outcome::default();
        let total = (duration.as_secs_f64() * f64::from(rate)) as u64;
        let (began, mut dealt_with) = (Instant::now(), 0);
        loop {
            let elapsed = began.elapsed();
            let due = ((elapsed.as_secs_f64() * f64::from(rate)) as u64).min(total);
            if dealt_with < due {
                outcome.bursts += 1;
                for _ in dealt_with..due {
                    self.ping_next();
                }
                dealt_with = due;
            }
            let outstanding = self.connections.iter().any(|connection| connection.is_waiting);
            if dealt_with == total && (!outstanding || elapsed > duration + TAIL) {
                return outcome;
            }
            let until_next = Duration::from_secs_f64((dealt_with + 1) as f64 / f64::from(rate)).saturating_sub(elapsed);
            let timeout = if dealt_with == total { Duration::from_millis(10) } else { until_next };
            outcome.answered += self.receive(timeout);
        }
    }

    fn ping_next(&mut self) {
        for _ in 0..self.connections.len() {
            let current = self.next;
            self.next = (current + 1) % self.connections.len();
            let connection = &mut self.connections[current];
            if !connection.is_waiting {
                connection.ping();
                return;
            }
        }
    }

    /// Returns how many answers came.
    fn receive(&mut self, timeout: Duration) -> u64 {
        if let Err(error) = self.poll.poll(&mut self.events, Some(timeout)) {
            assert_eq!(error.kind(), ErrorKind::Interrupted, "{error}");
            return 0;
        }
        let events = self.events.iter();
        events.map(|event| u64::from(self.connections[event.token().0].receive())).sum()
    }
}

impl Connection {
    fn ping(&mut self) {
        let mut wire = Vec::with_capacity(PING_BYTES);
        match &mut self.protocol {
            ClientProtocol::Plain => wire.resize(PING_BYTES, 0x5a),
            ClientProtocol::Echo(records) | ClientProtocol::Native(records) => {
                records.burst().seal(&ping_frame(), &mut wire).expect("a key with records left");
            }
        }
        assert_eq!(wire.len(), PING_BYTES);
        self.socket.write_all(&wire).expect("room for a ping");
        self.is_waiting = true;
    }

    /// Whether the answer has come.
    fn receive(&mut self) -> bool {
        let mut buffer = [0; 4_096];
        loop {
            match self.socket.read(&mut buffer) {
                Ok(0) => panic!("the server has ended a connection"),
                Ok(count) => self.received.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("a connection has failed: {error}"),
            }
        }
        if !self.is_waiting || !self.has_answer() {
            return false;
        }
        self.is_waiting = false;
        true
    }

    fn has_answer(&mut self) -> bool {
        let expected = match self.protocol {
            ClientProtocol::Plain => {
                let is_whole = self.received.len() >= PING_BYTES;
                self.received.drain(..if is_whole { PING_BYTES } else { 0 });
                return is_whole;
            }
            ClientProtocol::Echo(_) => ping_frame(),
            ClientProtocol::Native(_) => frame(&Frame::Pong(OPAQUE)),
        };
        let (ClientProtocol::Echo(records) | ClientProtocol::Native(records)) = &mut self.protocol else {
            return false;
        };
        next_content(records, &mut self.received).is_some_and(|content| {
            assert_eq!(content, expected, "another answer than the ping's");
            true
        })
    }
}

fn frame(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    bytes
}

fn ping_frame() -> Vec<u8> {
    frame(&Frame::Ping(OPAQUE))
}

/// Opens records until one holds data.
fn next_content(records: &mut RecordLayer, received: &mut Vec<u8>) -> Option<Vec<u8>> {
    let stage = Stage::Protected(records.version());
    while let Some(length) = next_record(received, stage).expect("a server with manners") {
        let mut record: Vec<u8> = received.drain(..length).collect();
        let mut out = Vec::new();
        match records.burst().open(&mut record, &mut out).expect("a server with manners") {
            Opened::Data(content) => return Some(content.to_vec()),
            Opened::Handled(_) => assert!(out.is_empty(), "nothing that needs an answer"),
            Opened::CloseNotify => panic!("the server has ended a connection"),
        }
    }
    None
}

fn client_tls(deployment: &Deployment, alpn: &[&[u8]]) -> ClientTls {
    ClientTls::load(&ClientOptions {
        roots: Roots::Pem(deployment.authority()),
        server_name: "localhost",
        identity: None,
        alpn,
        versions: Versions::Tls13,
        cipher_suites: Some(&[SUITE.code()]),
        key_exchange: None,
        resumption: ClientResumption::Off,
    })
    .expect("an authority of our own")
}

/// Shakes hands on a blocking socket. What was read beyond it is returned too.
fn shake_hands(tls: &ClientTls, socket: &mut Blocking) -> (RecordLayer, Vec<u8>) {
    let mut out = Vec::new();
    let mut received = Vec::new();
    let mut handshake = Handshake::client(tls, &mut out).expect("a ClientHello");
    loop {
        socket.write_all(&out).expect("the server reads");
        out.clear();
        let length = loop {
            match next_record(&received, Stage::Handshake).expect("a server with manners") {
                Some(length) => break length,
                None => read_more(socket, &mut received),
            }
        };
        let record: Vec<u8> = received.drain(..length).collect();
        if handshake.handle_record(&record, &mut out).expect("a server that we trust") == Progress::Done {
            break;
        }
    }
    socket.write_all(&out).expect("the server reads");
    let established = handshake.finish(&mut out).expect("a complete handshake");
    (established.records, received)
}

/// HELLO and WELCOME.
fn say_hello(number: u32, records: &mut RecordLayer, socket: &mut Blocking, received: &mut Vec<u8>) {
    let id = device_id(number);
    let hello = frame(&Frame::Hello(Hello { heartbeat_ms: 0, id: &id, token: &[] }));
    let mut out = Vec::new();
    records.burst().seal(&hello, &mut out).expect("a fresh key");
    socket.write_all(&out).expect("the gateway reads");
    let welcome = loop {
        match next_content(records, received) {
            Some(content) => break content,
            None => read_more(socket, received),
        }
    };
    let decoded = native::decode(&welcome, BODY_MAX);
    assert!(matches!(decoded, Ok(Some((Frame::Welcome(_), _)))), "{decoded:?} instead of WELCOME");
}

fn read_more(socket: &mut Blocking, received: &mut Vec<u8>) {
    let mut buffer = [0; 4_096];
    let count = socket.read(&mut buffer).expect("the server answers in time");
    assert!(count > 0, "the server has ended a connection");
    received.extend_from_slice(&buffer[..count]);
}
