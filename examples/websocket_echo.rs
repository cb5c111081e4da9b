//! A WebSocket server that sends back what it gets, over the gateway's own codec: what Autobahn's test suite speaks with
//! (`tests/autobahn`). Plain TCP on the loopback address: it is for tests.
//!
//! ```sh
//! cargo run --example websocket_echo -- 9001
//! ```

use std::error::Error;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;
use std::{env, str, thread};

use pulsegate::codec::websocket::{
    self, Decoder, Event, Kind, decode_request, encode_accept, encode_close, encode_header, encode_pong,
};

/// Autobahn's largest messages have 16 MiB.
const MESSAGE_MAX: usize = 16 << 20;
/// A peer that is silent for longer has gone.
const PATIENCE: Duration = Duration::from_mins(1);

fn main() -> Result<(), Box<dyn Error>> {
    let port = env::args().nth(1).map_or(Ok(9_001), |port| port.parse())?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))?;
    println!("listening on {}", listener.local_addr()?);
    for socket in listener.incoming() {
        let socket = socket?;
        thread::spawn(move || {
            // Whoever breaks off is no failure of the server's.
            if let Err(error) = serve(socket) {
                eprintln!("{error}");
            }
        });
    }
    Ok(())
}

fn serve(mut socket: TcpStream) -> Result<(), Box<dyn Error>> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    socket.set_nodelay(true)?;
    let mut chunk = vec![0; 1 << 16];
    let mut head = Vec::new();
    let mut out = Vec::new();
    loop {
        let count = socket.read(&mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        head.extend_from_slice(&chunk[..count]);
        match decode_request(&head) {
            Ok(None) => {}
            Ok(Some((request, _))) => {
                encode_accept(request.key, None, &mut out);
                break;
            }
            Err(refusal) => {
                websocket::encode_refusal(refusal, &mut out);
                socket.write_all(&out)?;
                return Err(refusal.into());
            }
        }
    }
    socket.write_all(&out)?;
    let mut echo = Echo::default();
    loop {
        let count = socket.read(&mut chunk)?;
        if count == 0 {
            return Ok(());
        }
        out.clear();
        let goes_on = echo.handle(&mut chunk[..count], &mut out);
        socket.write_all(&out)?;
        if !goes_on {
            return Ok(());
        }
    }
}

/// One connection behind its handshake.
#[derive(Default)]
struct Echo {
    decoder: Decoder,
    message: Vec<u8>,
    /// So much of a text is known to be UTF-8.
    checked: usize,
}

impl Echo {
    /// Takes bytes, appends the answers to `out`. `false`: it is over.
    fn handle(&mut self, bytes: &mut [u8], out: &mut Vec<u8>) -> bool {
        let mut at = 0;
        loop {
            let (next, event) = match self.decoder.next(bytes, at) {
                Ok(next) => next,
                Err(error) => {
                    encode_close(Some(error.code), out);
                    return false;
                }
            };
            at = next;
            match event {
                None => return true,
                Some(Event::Ping(payload)) => encode_pong(&payload, out),
                Some(Event::Pong) => {}
                Some(Event::Close(close)) => {
                    encode_close(close.code, out);
                    return false;
                }
                Some(Event::Data { kind, payload, is_last }) => {
                    self.message.extend_from_slice(&bytes[payload]);
                    if let Err(code) = self.check(kind, is_last) {
                        encode_close(Some(code), out);
                        return false;
                    }
                    if is_last {
                        encode_header(kind, self.message.len(), out);
                        out.append(&mut self.message);
                        self.checked = 0;
                    }
                }
            }
        }
    }

    /// A text is UTF-8 (RFC 6455 8.1), found out as early as it can be.
    fn check(&mut self, kind: Kind, is_last: bool) -> Result<(), u16> {
        if self.message.len() > MESSAGE_MAX {
            return Err(1_009);
        }
        if kind == Kind::Binary {
            return Ok(());
        }
        match str::from_utf8(&self.message[self.checked..]) {
            Ok(text) => self.checked += text.len(),
            // The last character may go on with the next part.
            Err(error) if error.error_len().is_none() && !is_last => self.checked += error.valid_up_to(),
            Err(_) => return Err(1_007),
        }
        Ok(())
    }
}
