//! The connection of a simulated device: TLS, and a WebSocket within it where the listener wants one.
//!
//! ```text
//!   a client's frame (RFC 6455 5.2)  | 0x82 | 0x80 + length | (2 bytes of length) | mask (4) | payload under the mask |
//! ```

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::Tls;

/// How long anything may take that is not waiting.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one wait for bytes is.
const WAIT: Duration = Duration::from_millis(100);
/// No device of the demo is told more at once.
const RECEIVED_MAX: usize = 1 << 20;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xa;

/// One connection.
pub(super) struct Link {
    stream: StreamOwned<ClientConnection, TcpStream>,
    is_websocket: bool,
    /// What came and is no whole frame yet.
    frames: Vec<u8>,
    /// What the device protocol has not taken yet.
    pub inbox: Vec<u8>,
}

impl Link {
    /// Connects; with `websocket`, a path and a subprotocol, opens a WebSocket there.
    pub fn open(
        address: SocketAddr,
        tls: &Tls,
        client: &Arc<ClientConfig>,
        websocket: Option<(&str, &str)>,
    ) -> io::Result<Self> {
        let socket = TcpStream::connect_timeout(&address, PATIENCE)?;
        socket.set_nodelay(true)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let connection = ClientConnection::new(Arc::clone(client), tls.name.clone()).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        let mut link = Self { stream, is_websocket: false, frames: Vec::new(), inbox: Vec::new() };
        if let Some((path, protocol)) = websocket {
            link.upgrade(path, protocol)?;
        }
        link.stream.sock.set_read_timeout(Some(WAIT))?;
        Ok(link)
    }

    /// The opening handshake. The answer's key is not checked: who answers has proven by TLS who it is.
    fn upgrade(&mut self, path: &str, protocol: &str) -> io::Result<()> {
        let key = BASE64_STANDARD.encode(fastrand::u128(..).to_be_bytes());
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: pulsegate\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: {key}\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
        );
        self.stream.write_all(request.as_bytes())?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.stream.read_exact(&mut byte)?;
            head.push(byte[0]);
            if head.len() > 8_192 {
                return Err(io::Error::other("the answer to the WebSocket's request has no end"));
            }
        }
        if !head.starts_with(b"HTTP/1.1 101 ") {
            let status = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
            return Err(io::Error::other(format!("no WebSocket: {}", status.escape_ascii())));
        }
        self.is_websocket = true;
        Ok(())
    }

    /// Says something, all of it.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.is_websocket { self.send_frame(BINARY, bytes) } else { self.stream.write_all(bytes) }
    }

    fn send_frame(&mut self, opcode: u8, payload: &[u8]) -> io::Result<()> {
        let mut frame = vec![0x80 | opcode];
        match u16::try_from(payload.len()) {
            Ok(length @ 0..126) => frame.push(0x80 | length as u8),
            Ok(length) => {
                frame.push(0x80 | 0x7e);
                frame.extend(length.to_be_bytes());
            }
            Err(_) => return Err(io::Error::other("no device of the demo says so much at once")),
        }
        let mask = fastrand::u32(..).to_be_bytes();
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        self.stream.write_all(&frame)
    }

    /// Waits a moment for what comes, into [`Link::inbox`].
    pub fn receive(&mut self) -> io::Result<()> {
        let mut chunk = [0; 4_096];
        match self.stream.read(&mut chunk) {
            Ok(0) => return Err(io::Error::other("the gateway has ended the connection")),
            Ok(count) if self.is_websocket => self.frames.extend_from_slice(&chunk[..count]),
            Ok(count) => self.inbox.extend_from_slice(&chunk[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
        while let Some((opcode, payload)) = take_frame(&mut self.frames) {
            match opcode {
                PING => self.send_frame(PONG, &payload)?,
                CLOSE => return Err(io::Error::other("the gateway has closed the WebSocket")),
                _ => self.inbox.extend(payload),
            }
        }
        if self.inbox.len() + self.frames.len() > RECEIVED_MAX {
            return Err(io::Error::other("the gateway says more than a device of the demo takes"));
        }
        Ok(())
    }

    /// Ends it in order.
    pub fn close(mut self) {
        if self.is_websocket {
            // Whoever is gone hears no goodbye.
            let _ = self.send_frame(CLOSE, &1_000_u16.to_be_bytes());
        }
        self.stream.conn.send_close_notify();
        let _ = self.stream.flush();
    }
}

/// The first whole frame of a server, which has no mask: its opcode and its payload.
fn take_frame(bytes: &mut Vec<u8>) -> Option<(u8, Vec<u8>)> {
    let (&first, &second) = (bytes.first()?, bytes.get(1)?);
    let (start, length): (usize, usize) = match second & 0x7f {
        126 => (4, usize::from(u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?))),
        127 => (10, usize::try_from(u64::from_be_bytes(bytes.get(2..10)?.try_into().ok()?)).ok()?),
        length => (2, usize::from(length)),
    };
    let payload = bytes.get(start..start.checked_add(length)?)?.to_vec();
    bytes.drain(..start + length);
    Some((first & 0x0f, payload))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_taken_when_it_is_whole() {
        let mut all = b"\x82\x03abc\x8a\x00\x82\x7e\x00\xc8".to_vec();
        all.extend([7; 200]);
        let mut bytes = Vec::new();
        let mut taken = Vec::new();
        for byte in all {
            bytes.push(byte);
            taken.extend(take_frame(&mut bytes));
        }
        assert_eq!(taken, [(BINARY, b"abc".to_vec()), (PONG, Vec::new()), (BINARY, vec![7; 200])]);
        assert!(bytes.is_empty());
        let mut endless = [&[0x82, 127][..], &[0xff; 8]].concat();
        assert_eq!(take_frame(&mut endless), None);
    }
}
