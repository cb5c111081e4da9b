//! What is said by NATS, heard by somebody whom it is not for.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use crate::support::SOON;

/// What is said under a subject from now on, to whomever.
pub struct Overheard {
    socket: TcpStream,
    lines: BufReader<TcpStream>,
}

impl Overheard {
    #[track_caller]
    pub fn begin(port: u16, subject: &str) -> Self {
        let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let lines = BufReader::new(socket.try_clone().unwrap());
        let mut overheard = Self { socket, lines };
        write!(overheard.socket, "CONNECT {{\"verbose\":false,\"headers\":true}}\r\nSUB {subject} 1\r\n").unwrap();
        assert_eq!(overheard.so_far(), [""; 0]);
        overheard
    }

    /// What was said until now, and not told before.
    #[track_caller]
    pub fn so_far(&mut self) -> Vec<String> {
        self.socket.write_all(b"PING\r\n").unwrap();
        let (mut said, mut line) = (Vec::new(), String::new());
        loop {
            line.clear();
            assert!(self.lines.read_line(&mut line).unwrap() > 0, "the server has gone");
            match line.split(' ').next().unwrap().trim() {
                "PONG" => return said,
                "PING" => self.socket.write_all(b"PONG\r\n").unwrap(),
                "MSG" | "HMSG" => {
                    let length: usize = line.trim().rsplit(' ').next().unwrap().parse().unwrap();
                    let mut payload = vec![0; length + 2];
                    self.lines.read_exact(&mut payload).unwrap();
                    said.push(String::from_utf8_lossy(&payload[..length]).into_owned());
                }
                _ => {}
            }
        }
    }
}
