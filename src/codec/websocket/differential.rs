//! Against an implementation that others wrote: what its client says, ours hears, and what ours says, it hears.

use std::io::{self, ErrorKind, Read, Write};

use tungstenite::handshake::HandshakeError;
use tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tungstenite::{Message, WebSocket};

use super::*;

/// A socket in memory.
#[derive(Debug, Default)]
struct Wire {
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

impl Read for Wire {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.incoming.is_empty() {
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = buffer.len().min(self.incoming.len());
        buffer[..count].copy_from_slice(&self.incoming[..count]);
        self.incoming.drain(..count);
        Ok(count)
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.outgoing.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn client() -> WebSocket<Wire> {
    WebSocket::from_raw_socket(Wire::default(), Role::Client, Some(WebSocketConfig::default()))
}

#[test]
fn its_client_agrees_to_our_answer() {
    let request = tungstenite::ClientRequestBuilder::new("ws://gateway:8884/mqtt".parse().unwrap())
        .with_header("Origin", "https://a.example")
        .with_sub_protocol("mqtt");
    let Err(HandshakeError::Interrupted(mut waiting)) = tungstenite::client::client(request, Wire::default()) else {
        panic!("it does not wait for an answer")
    };
    let wire = waiting.get_mut().get_mut();
    let (request, length) = decode_request(&wire.outgoing).unwrap().unwrap();
    assert_eq!((length, request.path(), request.host), (wire.outgoing.len(), "/mqtt", "gateway:8884"));
    assert!(request.offers("mqtt") && request.origin == Some("https://a.example"));
    let mut answer = Vec::new();
    encode_accept(request.key, Some("mqtt"), &mut answer);
    wire.incoming = answer;
    let (_client, response) = waiting.handshake().expect("it takes the answer");
    assert_eq!(response.headers()["Sec-WebSocket-Protocol"], "mqtt");
}

#[test]
fn what_its_client_says_is_heard_however_it_is_cut() {
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..200 {
        let mut client = client();
        let (mut expected, mut pings) = (Vec::new(), Vec::new());
        for _ in 0..random.usize(1..6) {
            let payload: Vec<u8> =
                (0..random.usize(..300) * random.usize(..3) * random.usize(1..90)).map(|_| random.u8(..)).collect();
            if random.u8(..4) == 0 {
                let payload = payload[..payload.len().min(125)].to_vec();
                client.send(Message::Ping(payload.clone().into())).unwrap();
                pings.push(payload);
            } else {
                client.send(Message::Binary(payload.clone().into())).unwrap();
                expected.extend(payload);
            }
        }
        let closing = CloseFrame { code: 1000.into(), reason: "done".into() };
        client.close(Some(closing)).unwrap();
        let stream = client.get_ref().outgoing.clone();
        let (mut decoder, mut data, mut heard, mut close) = (Decoder::default(), Vec::new(), Vec::new(), None);
        let mut rest = &stream[..];
        while !rest.is_empty() {
            let (piece, behind) = rest.split_at(random.usize(1..=rest.len().min(5_000)));
            let (mut piece, mut at) = (piece.to_vec(), 0);
            loop {
                let (next, event) = decoder.next(&mut piece, at).unwrap();
                at = next;
                match event {
                    None => break,
                    Some(Event::Data { payload, .. }) => data.extend_from_slice(&piece[payload]),
                    Some(Event::Ping(payload)) => heard.push(payload.as_slice().to_vec()),
                    Some(Event::Pong) => panic!("nobody was pinged"),
                    Some(Event::Close(found)) => close = Some(found),
                }
            }
            rest = behind;
        }
        assert_eq!((data == expected, heard, close), (true, pings, Some(Close { code: Some(1000) })));
        assert!(decoder.is_idle());
    }
}

#[test]
fn what_we_say_its_client_hears() {
    for length in [0, 1, 125, 126, 127, 65_535, 65_536, 200_000] {
        let mut client = client();
        let payload = vec![9; length];
        let out = &mut client.get_mut().incoming;
        encode_header(Kind::Binary, length, out);
        out.extend_from_slice(&payload);
        assert_eq!(client.read().unwrap(), Message::Binary(payload.into()));
    }
    let mut client = client();
    client.send(Message::Ping(b"there?".to_vec().into())).unwrap();
    let mut bytes = client.get_ref().outgoing.clone();
    let Ok((_, Some(Event::Ping(ping)))) = Decoder::default().next(&mut bytes, 0) else { panic!("no PING") };
    encode_pong(&ping, &mut client.get_mut().incoming);
    assert_eq!(client.read().unwrap(), Message::Pong(b"there?".to_vec().into()));
    encode_close(Some(1001), &mut client.get_mut().incoming);
    let Message::Close(Some(close)) = client.read().unwrap() else { panic!("no CLOSE") };
    assert_eq!(u16::from(close.code), 1001);
}
