//! The opening handshake (RFC 6455 4.2): one GET, one answer.

use std::net::{IpAddr, SocketAddr};

use super::sha1;

/// The longest request head that is taken.
pub const HEAD_BYTES_MAX: usize = 8_192;
/// Header lines at most.
const LINES_MAX: usize = 64;
/// What a server adds to the client's key (1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// A client's wish for a WebSocket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request<'a> {
    /// Path and query as they are.
    pub target: &'a str,
    /// Host.
    pub host: &'a str,
    /// Origin: browsers say whose page this is.
    pub origin: Option<&'a str>,
    /// Sec-WebSocket-Key.
    pub key: &'a str,
    /// The whole head: the header lines that [`Request::offers`] looks through.
    head: &'a str,
}

/// Why a request is no wish for a WebSocket, or is not granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The bytes are no HTTP request, or one that RFC 6455 does not allow: 400.
    BadRequest(&'static str),
    /// Another method than GET: 405.
    MethodNotAllowed,
    /// It asks for something else than a WebSocket, or for another version than 13: 426.
    UpgradeRequired,
    /// There is nothing under this path: 404.
    NotFound,
    /// The page's origin is not allowed here: 403.
    Forbidden,
    /// The head is too long: 431.
    TooLong,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Refusal::BadRequest(what) => what,
            Refusal::MethodNotAllowed => "the request's method is not GET",
            Refusal::UpgradeRequired => "the request does not ask for a WebSocket of version 13",
            Refusal::NotFound => "there is nothing under the request's path",
            Refusal::Forbidden => "the request's origin is not allowed",
            Refusal::TooLong => "the request's head is too long",
        })
    }
}

impl std::error::Error for Refusal {}

impl<'a> Request<'a> {
    /// The path, without the query.
    #[must_use]
    pub fn path(&self) -> &'a str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// Whether the client offers this subprotocol; names are compared as they are (11.5).
    #[must_use]
    pub fn offers(&self, protocol: &str) -> bool {
        values(self.head, "sec-websocket-protocol")
            .flat_map(|value| value.split(','))
            .any(|name| name.trim() == protocol)
    }

    /// The address for which the last proxy that is not trusted, or the client itself, was connected: what X-Forwarded-For names
    /// last that is no trusted proxy's, since each proxy appends whom it was asked by. Where all are trusted it is the first.
    /// `None`: the header is missing, or names something else than an address in front of what is trusted.
    #[must_use]
    pub fn forwarded_for(&self, is_trusted: impl Fn(IpAddr) -> bool) -> Option<IpAddr> {
        // Several of them are one list (RFC 9110 5.3).
        let lines: Vec<&str> = values(self.head, "x-forwarded-for").collect();
        let mut named = None;
        for text in lines.iter().rev().flat_map(|line| line.rsplit(',')) {
            named = Some(address(text.trim())?);
            if named.is_some_and(|address| !is_trusted(address)) {
                break;
            }
        }
        named
    }

    /// The value of another header, if it is there once or more: the first one.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a str> {
        values(self.head, name).next()
    }
}

/// Decodes the request head at the start of `bytes`: it and its length, or `None` while it is not all there.
///
/// # Errors
/// [`Refusal`]: what the client is to be answered.
pub fn decode_request(bytes: &[u8]) -> Result<Option<(Request<'_>, usize)>, Refusal> {
    // What is no HTTP at all is not waited for.
    if !bytes.iter().zip(b"GET ").all(|(byte, expected)| byte == expected) {
        let is_method = bytes.iter().take(8).take_while(|&&byte| byte != b' ').all(u8::is_ascii_uppercase);
        return Err(if is_method { Refusal::MethodNotAllowed } else { Refusal::BadRequest("this is no HTTP request") });
    }
    let Some(length) = bytes.windows(4).take(HEAD_BYTES_MAX).position(|window| window == b"\r\n\r\n") else {
        return if bytes.len() < HEAD_BYTES_MAX { Ok(None) } else { Err(Refusal::TooLong) };
    };
    let length = length + 4;
    if length > HEAD_BYTES_MAX {
        return Err(Refusal::TooLong);
    }
    let head = std::str::from_utf8(&bytes[..length - 2]).map_err(|_| Refusal::BadRequest("the head is no text"))?;
    Ok(Some((decode_head(head)?, length)))
}

/// `head` is lines that end with CR LF.
fn decode_head(head: &str) -> Result<Request<'_>, Refusal> {
    let (first, head) = head.split_once("\r\n").ok_or(Refusal::BadRequest("the head has no request line"))?;
    let mut words = first.split(' ');
    let (Some("GET"), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Refusal::BadRequest("the request line is none"));
    };
    if version != "HTTP/1.1" {
        return Err(Refusal::BadRequest("the request is not of HTTP/1.1"));
    }
    if !target.starts_with('/') || target.bytes().any(|byte| byte.is_ascii_control()) {
        return Err(Refusal::BadRequest("the request's target is no path"));
    }
    check_lines(head)?;
    let one = |name: &str, what: &'static str| {
        let mut all = values(head, name);
        match (all.next(), all.next()) {
            (value, None) => Ok(value),
            _ => Err(Refusal::BadRequest(what)),
        }
    };
    let host = one("host", "there are several Host headers")?.ok_or(Refusal::BadRequest("there is no Host header"))?;
    let has = |name, token: &str| {
        values(head, name).flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case(token))
    };
    if !has("upgrade", "websocket") || !has("connection", "upgrade") {
        return Err(Refusal::UpgradeRequired);
    }
    if one("sec-websocket-version", "there are several versions")? != Some("13") {
        return Err(Refusal::UpgradeRequired);
    }
    let key = one("sec-websocket-key", "there are several keys")?.filter(|key| sha1::is_key(key));
    let key = key.ok_or(Refusal::BadRequest("Sec-WebSocket-Key is not sixteen bytes in Base64"))?;
    let origin = one("origin", "there are several origins")?;
    // A body would be taken for frames.
    if values(head, "transfer-encoding").next().is_some() || values(head, "content-length").any(|value| value != "0") {
        return Err(Refusal::BadRequest("the request has a body"));
    }
    Ok(Request { target, host, origin, key, head })
}

/// Each line is a name, a colon and a value; a line is not continued in the next (RFC 9112 5.2).
fn check_lines(head: &str) -> Result<(), Refusal> {
    let lines = head.split_terminator("\r\n");
    if lines.clone().count() > LINES_MAX {
        return Err(Refusal::TooLong);
    }
    for line in lines {
        let (name, value) = line.split_once(':').ok_or(Refusal::BadRequest("a header line has no colon"))?;
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if name.is_empty() || !name.bytes().all(is_token) {
            return Err(Refusal::BadRequest("a header's name is none"));
        }
        if value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t') {
            return Err(Refusal::BadRequest("a header's value has control characters"));
        }
    }
    Ok(())
}

/// The values of a header, whose name is given in lower case.
fn values<'a>(head: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    head.split_terminator("\r\n").filter_map(move |line| {
        let (found, value) = line.split_once(':')?;
        found.eq_ignore_ascii_case(name).then(|| value.trim_matches([' ', '\t']))
    })
}

/// An address as proxies write it: some with the port behind it, some IPv6 in brackets. An IPv4 address within IPv6 is one.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let address = bare.parse().or_else(|_| text.parse().map(|address: SocketAddr| address.ip())).ok()?;
    Some(IpAddr::to_canonical(&address))
}

/// Appends the answer that opens the WebSocket (4.2.2), with the subprotocol that was chosen.
pub fn encode_accept(key: &str, protocol: Option<&str>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n");
    out.extend_from_slice(b"Sec-WebSocket-Accept: ");
    sha1::put_base64(&sha1::sha1(&[key.as_bytes(), GUID].concat()), out);
    if let Some(protocol) = protocol {
        out.extend_from_slice(b"\r\nSec-WebSocket-Protocol: ");
        out.extend_from_slice(protocol.as_bytes());
    }
    out.extend_from_slice(b"\r\n\r\n");
}

/// Appends the answer to a request that is refused; the connection ends behind it.
pub fn encode_refusal(refusal: Refusal, out: &mut Vec<u8>) {
    let (status, more) = match refusal {
        Refusal::BadRequest(_) => ("400 Bad Request", ""),
        Refusal::MethodNotAllowed => ("405 Method Not Allowed", "Allow: GET\r\n"),
        Refusal::UpgradeRequired => ("426 Upgrade Required", "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"),
        Refusal::NotFound => ("404 Not Found", ""),
        Refusal::Forbidden => ("403 Forbidden", ""),
        Refusal::TooLong => ("431 Request Header Fields Too Large", ""),
    };
    out.extend_from_slice(b"HTTP/1.1 ");
    out.extend_from_slice(status.as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(more.as_bytes());
    out.extend_from_slice(b"Content-Length: 0\r\nConnection: close\r\n\r\n");
}
