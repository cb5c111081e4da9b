//! A nats-server that we did not write, and a client of it in a few lines of plain TCP.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::support::SOON;

/// The server that `tests/tools` installs; else the one of the system.
pub fn nats_server() -> Command {
    let mut target = PathBuf::from(env!("CARGO_BIN_EXE_pulsegate"));
    target.pop();
    target.pop();
    let installed = target.join("test-clients/python/bin/nats-server");
    Command::new(if installed.exists() { installed } else { "nats-server".into() })
}

/// Asks, as any client may. An answer without content (`null`): nobody hears it.
#[track_caller]
pub fn nats_ask(port: u16, subject: &str, body: &Value) -> Value {
    let (mut socket, mut lines) = nats_tell(port, subject, body);
    let mut line = String::new();
    loop {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "the server has gone");
        if line.starts_with("PING") {
            socket.write_all(b"PONG\r\n").unwrap();
        } else if line.starts_with("MSG ") {
            let length = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
            let mut answer = vec![0; length];
            lines.read_exact(&mut answer).unwrap();
            return serde_json::from_slice(&answer).unwrap_or(Value::Null);
        }
    }
}

/// Says it, and where the answer is to come.
#[track_caller]
pub fn nats_tell(port: u16, subject: &str, body: &Value) -> (TcpStream, BufReader<TcpStream>) {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(SOON)).unwrap();
    let mut lines = BufReader::new(socket.try_clone().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.starts_with("INFO "), "{line}");
    // Some questions have no body.
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let asked = format!(
        "CONNECT {{\"verbose\":false,\"headers\":true}}\r\nSUB answer 1\r\nPUB {subject} answer {}\r\n{body}\r\n",
        body.len()
    );
    socket.write_all(asked.as_bytes()).unwrap();
    (socket, lines)
}
