//! A device in Rust: TLS by rustls, frames by the gateway's own codec, and coming back as one should. The same as
//! `examples/python/device.py`, in short: it answers heartbeats and messages, notices a dead gateway, and resumes its
//! TLS session when it returns.
//!
//! ```sh
//! cargo run --example device -- device-2 localhost 7443 pulsegate-data/certs/ca.pem
//! ```

use std::error::Error;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, thread};

use pulsegate::codec::native::{ALPN, CloseCode, Frame, Hello, decode};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

const SPAN_MAX: Duration = Duration::from_mins(5);
const BODY_MAX: usize = 65_535;
const PATIENCE: Duration = Duration::from_secs(10);

type Stream = StreamOwned<ClientConnection, TcpStream>;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let defaults = ["device-2", "localhost", "7443", "pulsegate-data/certs/ca.pem"];
    let argument = |place: usize| arguments.get(place).map_or(defaults[place], String::as_str);
    let (id, host, port, authority) = (argument(0), argument(1), argument(2).parse()?, argument(3));

    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority)? {
        roots.add(certificate?)?;
    }
    // Shared by all connections: it keeps the tickets that sessions are resumed with.
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    let config = Arc::new(config);

    let mut failures = 0;
    loop {
        let (mut welcomed, mut lasted) = (false, false);
        let end = connect(&config, host, port).and_then(|stream| live(stream, id, &mut welcomed, &mut lasted));
        let retry_after = match &end {
            Ok(Close { code, retry_after }) => {
                println!("closed: {}", code.name());
                *retry_after
            }
            Err(error) => {
                println!("closed: {error}");
                Duration::ZERO
            }
        };
        // Full jitter: a random time within a span that doubles with each failure. A gateway that says to a device of its when to
        // come back has spread its devices itself; one that it never let in goes on backing off beside what it was told.
        failures = if lasted || welcomed && !retry_after.is_zero() { 0 } else { failures + 1 };
        let span = SPAN_MAX.min(Duration::from_secs(1 << failures.min(16)));
        let wait = retry_after + span.mul_f64(fastrand::f64());
        println!("coming back in {:.1} s", wait.as_secs_f64());
        thread::sleep(wait);
    }
}

fn connect(config: &Arc<ClientConfig>, host: &str, port: u16) -> Result<Stream, Box<dyn Error>> {
    let socket = TcpStream::connect((host, port))?;
    socket.set_nodelay(true)?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let tls = ClientConnection::new(Arc::clone(config), ServerName::try_from(host.to_owned())?)?;
    Ok(StreamOwned::new(tls, socket))
}

/// How the gateway ended a connection.
struct Close {
    code: CloseCode,
    retry_after: Duration,
}

/// One connection, from HELLO to its end. `welcomed` becomes true with WELCOME, `lasted` when it held for a heartbeat.
fn live(mut stream: Stream, id: &str, welcomed: &mut bool, lasted: &mut bool) -> Result<Close, Box<dyn Error>> {
    send(&mut stream, &Frame::Hello(Hello { heartbeat_ms: 0, id, token: b"" }))?;
    let mut inbox = Vec::new();
    // Until WELCOME says better.
    let (mut heartbeat, mut timeout) = (PATIENCE, PATIENCE);
    let mut since: Option<Instant> = None;
    let (mut last_heard, mut asked) = (Instant::now(), false);
    loop {
        while let Some((frame, length)) = decode(&inbox, BODY_MAX)? {
            match frame {
                Frame::Welcome(welcome) => {
                    heartbeat = Duration::from_millis(welcome.heartbeat_ms.into());
                    timeout = Duration::from_millis(welcome.timeout_ms.into());
                    (*welcomed, since) = (true, Some(Instant::now()));
                    println!("connected as {id}, {:?} handshake", stream.conn.handshake_kind());
                }
                Frame::Ping(body) => send(&mut stream, &Frame::Pong(body))?,
                Frame::Message(message) => {
                    println!("message {}: {}", message.topic, message.payload.escape_ascii());
                    if message.id != 0 {
                        send(&mut stream, &Frame::Ack(message.id))?;
                    }
                }
                Frame::Close(close) => {
                    let retry_after = Duration::from_millis(close.retry_after_ms.into());
                    return Ok(Close { code: close.code, retry_after });
                }
                Frame::Pong(_) | Frame::Ack(_) | Frame::Hello(_) => {}
            }
            inbox.drain(..length);
        }
        *lasted |= since.is_some_and(|at| at.elapsed() >= heartbeat);
        // A living gateway is heard at least so often; ask once before giving it up.
        let silent_until = last_heard + heartbeat + timeout * if asked { 2 } else { 1 };
        let left = silent_until.saturating_duration_since(Instant::now());
        if left.is_zero() && asked {
            return Err("the gateway is dead: not a byte for too long".into());
        }
        if left.is_zero() {
            send(&mut stream, &Frame::Ping(b""))?;
            asked = true;
            continue;
        }
        stream.sock.set_read_timeout(Some(left))?;
        let mut chunk = [0; 4_096];
        match stream.read(&mut chunk) {
            Ok(0) => return Err("the gateway ended the connection".into()),
            Ok(count) => {
                inbox.extend_from_slice(&chunk[..count]);
                (last_heard, asked) = (Instant::now(), false);
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn send(stream: &mut Stream, frame: &Frame<'_>) -> Result<(), Box<dyn Error>> {
    let mut bytes = Vec::new();
    frame.encode(&mut bytes);
    stream.write_all(&bytes)?;
    Ok(stream.flush()?)
}
