//! A reader of `GET /v1/events`: one socket, read when it is asked to be and not before.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};

/// Longer than the stream is ever silent.
const SILENCE_MAX: Duration = Duration::from_secs(40);

/// A reader whose stream has begun: it hears of all that happens from now on. Iterates over the data of events, up to
/// the end of the stream.
pub struct Follower {
    lines: BufReader<TcpStream>,
}

impl Follower {
    /// Follows the events of the gateway whose API is at `admin`. `window`: how many bytes the kernel takes for a reader
    /// that does not read, about.
    #[track_caller]
    pub fn new(admin: SocketAddr, query: &str, window: Option<usize>) -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
        if let Some(bytes) = window {
            // Before it connects: afterwards the window would only shrink step by step.
            socket.set_recv_buffer_size(bytes).unwrap();
        }
        socket.connect(&admin.into()).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(SILENCE_MAX)).unwrap();
        // HTTP/1.0: the answer comes as it is, without chunks, and ends with the connection.
        write!(stream, "GET /v1/events{query} HTTP/1.0\r\n\r\n").unwrap();
        let mut lines = BufReader::new(stream);
        let mut head = String::new();
        lines.read_line(&mut head).unwrap();
        assert!(head.contains(" 200 "), "{head}");
        // The first comment: it follows from here on.
        while !head.starts_with(':') {
            head.clear();
            assert!(lines.read_line(&mut head).unwrap() > 0, "the stream ended before it began");
        }
        Self { lines }
    }
}

impl Iterator for Follower {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.lines.read_line(&mut line).expect("events are UTF-8, and never silent for so long") == 0 {
                return None;
            }
            if let Some(data) = line.strip_prefix("data:") {
                return Some(serde_json::from_str(data).unwrap());
            }
        }
    }
}
