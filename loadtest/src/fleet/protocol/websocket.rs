//! WebSocket (RFC 6455), the client's side: what MQTT is carried in towards a listener with `transport = "websocket"`.
//!
//! ```text
//!   GET … Upgrade: websocket ──▶        ◀── 101        packets ──▶ one masked frame        frames ──▶ packets
//! ```

use super::Broken;

/// Sec-WebSocket-Key. One for all: it keeps no secret, but shows that the server speaks WebSocket.
const KEY: &str = "cHVsc2VnYXRlLWxvYWQtMQ==";
/// One for all, too: masks guard proxies against pages in browsers (RFC 6455 10.3), of which there are none here.
const MASK: [u8; 4] = [0x5b, 0xc6, 0x12, 0xe9];
/// What is longer is no answer to the request.
const HEAD_MAX: usize = 8_192;
/// The longest frame that a device takes. Servers of this fleet send nothing near it.
const FRAME_MAX: u64 = 1 << 20;

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

/// The length follows in 16 bits, or in 64.
const LENGTH_16: u8 = 0x7E;
const LENGTH_64: u8 = 0x7F;

/// What the server said next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event<'a> {
    /// The WebSocket is open.
    Opened,
    /// Bytes of the protocol within.
    Data(&'a [u8]),
    /// It asks for a PONG with the same payload.
    Ping(&'a [u8]),
    Pong,
    Close,
}

/// Appends the request with which a WebSocket for MQTT is opened under `path`.
pub(super) fn request(path: &str, out: &mut Vec<u8>) {
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: loadtest\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"
    );
    out.extend_from_slice(head.as_bytes());
}

/// Makes one frame of everything in `out` from `start` on; none of nothing.
pub(super) fn frame(start: usize, out: &mut Vec<u8>) {
    if out.len() > start {
        mask(BINARY, start, out);
    }
}

/// Appends the answer to a PING.
pub(super) fn pong(payload: &[u8], out: &mut Vec<u8>) {
    let start = out.len();
    out.extend_from_slice(payload);
    mask(PONG, start, out);
}

fn mask(opcode: u8, start: usize, out: &mut Vec<u8>) {
    let length = out.len() - start;
    for (byte, mask) in out[start..].iter_mut().zip(MASK.iter().cycle()) {
        *byte ^= mask;
    }
    let mut header = vec![FIN | opcode];
    match length {
        0..=125 => header.push(MASKED | length as u8),
        126..=0xffff => {
            header.push(MASKED | LENGTH_16);
            header.extend_from_slice(&(length as u16).to_be_bytes());
        }
        _ => {
            header.push(MASKED | LENGTH_64);
            header.extend_from_slice(&(length as u64).to_be_bytes());
        }
    }
    header.extend_from_slice(&MASK);
    out.splice(start..start, header);
}

/// What is at the front of `bytes` and how long it is, or `None` while it is not all there. No frame begins as an answer does:
/// its first byte would have bits that are reserved.
///
/// # Errors
/// [`Broken`] when this is neither the answer that opens a WebSocket nor a server's frame.
pub(super) fn next(bytes: &[u8]) -> Result<Option<(Event<'_>, usize)>, Broken> {
    if bytes.first() == Some(&b'H') { answer(bytes) } else { decode(bytes) }
}

fn answer(bytes: &[u8]) -> Result<Option<(Event<'_>, usize)>, Broken> {
    const SWITCHING: &[u8] = b"HTTP/1.1 101 ";
    let looked = bytes.len().min(SWITCHING.len());
    if bytes[..looked] != SWITCHING[..looked] {
        return Err(Broken);
    }
    match bytes.windows(4).take(HEAD_MAX).position(|window| window == b"\r\n\r\n") {
        Some(end) => Ok(Some((Event::Opened, end + 4))),
        None if bytes.len() < HEAD_MAX => Ok(None),
        None => Err(Broken),
    }
}

fn decode(bytes: &[u8]) -> Result<Option<(Event<'_>, usize)>, Broken> {
    let Some((&[first, second], rest)) = bytes.split_first_chunk() else { return Ok(None) };
    if second & MASKED != 0 {
        return Err(Broken);
    }
    let (length, rest) = match second {
        LENGTH_16 => match rest.split_first_chunk() {
            Some((length, rest)) => (u16::from_be_bytes(*length).into(), rest),
            None => return Ok(None),
        },
        LENGTH_64 => match rest.split_first_chunk() {
            Some((length, rest)) => (u64::from_be_bytes(*length), rest),
            None => return Ok(None),
        },
        length => (length.into(), rest),
    };
    if length > FRAME_MAX {
        return Err(Broken);
    }
    let Some(payload) = rest.get(..length as usize) else { return Ok(None) };
    let event = match first & 0x7f {
        0 | BINARY => Event::Data(payload),
        PING => Event::Ping(payload),
        PONG => Event::Pong,
        CLOSE => Event::Close,
        _ => return Err(Broken),
    };
    Ok(Some((event, bytes.len() - rest.len() + payload.len())))
}

#[cfg(test)]
mod tests {
    use pulsegate::codec::websocket as server;

    use super::*;

    #[test]
    fn the_gateway_takes_the_request_and_the_device_its_answer() {
        let mut bytes = Vec::new();
        request("/mqtt", &mut bytes);
        let (request, length) = server::decode_request(&bytes).unwrap().unwrap();
        assert!(length == bytes.len() && request.path() == "/mqtt" && request.offers("mqtt"));
        let mut answer = Vec::new();
        server::encode_accept(request.key, Some("mqtt"), &mut answer);
        let whole = answer.len();
        answer.extend_from_slice(&[0x82, 0]);
        assert_eq!(next(&answer), Ok(Some((Event::Opened, whole))));
        for cut in 0..whole {
            assert_eq!(next(&answer[..cut]), Ok(None));
        }
        assert_eq!(next(b"HTTP/1.1 404 Not Found\r\n\r\n"), Err(Broken));
    }

    #[test]
    fn frames_of_every_length_are_those_that_the_gateway_reads_and_writes() {
        for length in [0, 1, 125, 126, 65_535, 65_536] {
            let payload: Vec<u8> = (0..length).map(|at| at as u8).collect();
            let mut sent = payload.clone();
            frame(0, &mut sent);
            assert_eq!(sent.is_empty(), length == 0);
            let (mut decoder, mut at, mut seen) = (server::Decoder::default(), 0, Vec::new());
            while at < sent.len() {
                let (behind, event) = decoder.next(&mut sent, at).unwrap();
                if let Some(server::Event::Data { payload, .. }) = event {
                    seen.extend_from_slice(&sent[payload]);
                }
                at = behind;
            }
            assert_eq!(seen, payload);

            let mut answer = Vec::new();
            server::encode_header(server::Kind::Binary, length, &mut answer);
            answer.extend_from_slice(&payload);
            assert_eq!(next(&answer), Ok(Some((Event::Data(&payload), answer.len()))));
            assert_eq!(next(&answer[..answer.len() - 1]), Ok(None));
        }
    }

    #[test]
    fn what_no_server_may_send_breaks_it() {
        assert_eq!(next(&[0x82, 0x80, 0, 0, 0, 0]), Err(Broken));
        assert_eq!(next(&[0x83, 0]), Err(Broken));
        assert_eq!(next(&[0x82, 127, 1, 0, 0, 0, 0, 0, 0, 0]), Err(Broken));
    }
}
