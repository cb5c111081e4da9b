//! One TLS connection of a device for whose socket nobody waits: what has come is taken, what was not taken is kept.

use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};
use pulsegate::tls::handshake::{ClientTls, Handshake, Progress};
use pulsegate::tls::record::{Opened, RecordLayer, Stage, next_record};

/// Why a connection is no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gone {
    /// The other side ended it.
    Ended,
    /// It could not be had, or broke.
    Broke(ErrorKind),
    /// What came is no TLS that a device can go on with.
    Tls(String),
}

pub struct Line {
    socket: TcpStream,
    state: State,
    cipher: Vec<u8>,
    unsent: Vec<u8>,
    /// What came and was not understood yet.
    pub plain: Vec<u8>,
}

enum State {
    Connecting,
    Shaking(Box<Handshake>),
    Open(Box<RecordLayer>),
}

impl Line {
    /// Begins one, which is told apart by its token from then on.
    pub fn dial(address: SocketAddr, registry: &Registry, token: usize) -> io::Result<Self> {
        let mut socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        registry.register(&mut socket, Token(token), Interest::READABLE | Interest::WRITABLE)?;
        Ok(Self { socket, state: State::Connecting, cipher: Vec::new(), unsent: Vec::new(), plain: Vec::new() })
    }

    /// From where it goes out; 0: from nowhere any more.
    pub fn port(&self) -> u16 {
        self.socket.local_addr().map_or(0, |address| address.port())
    }

    /// Takes what has come, and sends what waits. `true`: TLS stands now and did not before. What came before an error is in `plain`.
    pub fn turn(&mut self, tls: &ClientTls, buffer: &mut [u8]) -> Result<bool, Gone> {
        let was_open = matches!(self.state, State::Open(_));
        if matches!(self.state, State::Connecting) && !self.begin(tls)? {
            return Ok(false);
        }
        self.flush();
        loop {
            match self.socket.read(buffer) {
                Ok(0) => return Err(Gone::Ended),
                Ok(count) => {
                    self.cipher.extend_from_slice(&buffer[..count]);
                    self.take_records()?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(Gone::Broke(error.kind())),
            }
        }
        self.flush();
        Ok(!was_open && matches!(self.state, State::Open(_)))
    }

    /// Whether TCP stands, in which case ClientHello is said.
    fn begin(&mut self, tls: &ClientTls) -> Result<bool, Gone> {
        let broke = |error: io::Error| Gone::Broke(error.kind());
        if let Some(error) = self.socket.take_error().map_err(broke)? {
            return Err(broke(error));
        }
        match self.socket.peer_addr() {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(false),
            Err(error) => return Err(broke(error)),
        }
        let handshake = Handshake::client(tls, &mut self.unsent).map_err(|error| Gone::Tls(error.to_string()))?;
        self.state = State::Shaking(Box::new(handshake));
        Ok(true)
    }

    fn take_records(&mut self) -> Result<(), Gone> {
        if let State::Shaking(_) = self.state {
            self.take_handshake()?;
        }
        let State::Open(records) = &mut self.state else { return Ok(()) };
        let (mut burst, mut taken) = (records.burst(), 0);
        let wrong = |error: &dyn std::fmt::Display| Gone::Tls(error.to_string());
        while let Some(length) =
            burst.next_record(&self.cipher[taken..], &mut self.unsent).map_err(|error| wrong(&error))?
        {
            let record = &mut self.cipher[taken..taken + length];
            match burst.open(record, &mut self.unsent).map_err(|error| wrong(&error))? {
                Opened::Data(data) => self.plain.extend_from_slice(data),
                // The end of the stream follows.
                Opened::Handled(_) | Opened::CloseNotify => {}
            }
            taken += length;
        }
        drop(burst);
        self.cipher.drain(..taken);
        Ok(())
    }

    fn take_handshake(&mut self) -> Result<(), Gone> {
        let wrong = |error: &dyn std::fmt::Display| Gone::Tls(error.to_string());
        let State::Shaking(handshake) = &mut self.state else { return Ok(()) };
        let mut taken = 0;
        let is_done = loop {
            let rest = &self.cipher[taken..];
            let Some(length) = next_record(rest, Stage::Handshake).map_err(|error| wrong(&error))? else {
                break false;
            };
            taken += length;
            let progress = handshake.handle_record(&rest[..length], &mut self.unsent);
            if progress.map_err(|error| wrong(&error))? == Progress::Done {
                break true;
            }
        };
        self.cipher.drain(..taken);
        if !is_done {
            return Ok(());
        }
        let State::Shaking(handshake) = std::mem::replace(&mut self.state, State::Connecting) else { unreachable!() };
        let established = handshake.finish(&mut self.unsent).map_err(|error| wrong(&error))?;
        self.plain.extend_from_slice(&established.early_plaintext);
        self.state = State::Open(Box::new(established.records));
        Ok(())
    }

    /// Says this, as soon as the socket takes it. An end is found by who reads.
    pub fn say(&mut self, plain: &[u8]) {
        let State::Open(records) = &mut self.state else { return };
        records.burst().seal(plain, &mut self.unsent).expect("no connection is old enough for its last key");
        self.flush();
    }

    /// What cannot be sent is forgotten: whoever reads finds why.
    fn flush(&mut self) {
        let mut sent = 0;
        while sent < self.unsent.len() {
            match self.socket.write(&self.unsent[sent..]) {
                Ok(count) => sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => break,
                Err(_) => sent = self.unsent.len(),
            }
        }
        self.unsent.drain(..sent);
        if self.unsent.is_empty() {
            // Thousands of them rest most of the time.
            self.unsent = Vec::new();
        }
    }
}
