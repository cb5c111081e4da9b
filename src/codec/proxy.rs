//! The PROXY protocol, versions 1 and 2 (HAProxy's `proxy-protocol.txt`): what a load balancer says of a connection before
//! the connection's own first byte.
//!
//! ```text
//!   v1   PROXY TCP4 192.0.2.7 198.51.100.1 51234 8883\r\n                                  at most 107 bytes
//!   v2   signature   version  family    length   addresses        TLVs
//!         12 bytes   command  transport  u16      0, 12, 36, 216   type u8, length u16, value
//! ```
//!
//! A header is whole or it is not there: nothing is read beyond its own length, and what follows it is the connection's.
//! Whether somebody may send one at all is not judged here.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The longest header that is taken. What balancers send with all TLVs is a few hundred bytes; a client certificate in a
/// TLV may be two thousand.
pub const HEADER_BYTES_MAX: usize = 4_096;

const V1_PREFIX: &[u8] = b"PROXY ";
/// "the maximum line length the receiver must support including the CRLF" (2.1).
const V1_BYTES_MAX: usize = 107;
const V2_SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
const V2_HEADER_BYTES: usize = 16;

const TLV_ALPN: u8 = 0x01;
const TLV_AUTHORITY: u8 = 0x02;
const TLV_CRC32C: u8 = 0x03;
const TLV_UNIQUE_ID: u8 = 0x05;
const TLV_SSL: u8 = 0x20;
const SSL_VERSION: u8 = 0x21;
const SSL_CN: u8 = 0x22;
const SSL_CLIENT: u8 = 0x01;
const SSL_CLIENT_CERTIFICATE: u8 = 0x02 | 0x04;
const UNIQUE_ID_BYTES_MAX: usize = 128;

/// A header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header<'a> {
    /// The balancer itself connects, to see whether somebody is here. There is no client.
    Local,
    /// It connects on behalf of a client.
    Proxied(Proxied<'a>),
}

/// What is said of a client's connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Proxied<'a> {
    /// Where the client is; `None` where the balancer does not know, or it is no IP address.
    pub source: Option<SocketAddr>,
    /// Which address it had connected to.
    pub destination: Option<SocketAddr>,
    /// The protocol that was negotiated by ALPN, where the balancer took part in it.
    pub alpn: Option<&'a [u8]>,
    /// The server name that the client asked for.
    pub authority: Option<&'a str>,
    /// What identifies the connection in the balancer's log; at most 128 bytes.
    pub unique_id: Option<&'a [u8]>,
    /// The client's TLS with the balancer, where it had one.
    pub ssl: Option<Ssl<'a>>,
}

/// The client's TLS with the balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ssl<'a> {
    /// The client used TLS.
    pub is_tls: bool,
    /// The client showed a certificate, now or when the session that it resumes began, and it was verified.
    pub is_verified: bool,
    /// As OpenSSL names it: `TLSv1.3`.
    pub version: Option<&'a str>,
    /// The Common Name of the client's certificate.
    pub common_name: Option<&'a str>,
}

/// The bytes are no header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error(&'static str);

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Error {}

/// Decodes the header at the start of `bytes`: it and its length, or `None` while it is not all there. What cannot become
/// one is an error with its first wrong byte.
///
/// ```
/// # use pulsegate::codec::proxy::{Header, decode};
/// let (header, length) = decode(b"PROXY TCP4 192.0.2.7 198.51.100.1 51234 8883\r\n\x16\x03").unwrap().unwrap();
/// let Header::Proxied(proxied) = header else { panic!() };
/// assert_eq!((proxied.source, length), (Some("192.0.2.7:51234".parse().unwrap()), 46));
/// ```
///
/// # Errors
/// [`Error`] when the bytes are no header.
pub fn decode(bytes: &[u8]) -> Result<Option<(Header<'_>, usize)>, Error> {
    let begins_as = |prefix: &[u8]| bytes.iter().zip(prefix).all(|(byte, expected)| byte == expected);
    if begins_as(V1_PREFIX) {
        decode_v1(bytes)
    } else if begins_as(V2_SIGNATURE) {
        decode_v2(bytes)
    } else {
        Err(Error("the connection does not begin with a PROXY header"))
    }
}

// --- Version 1 --------------------------------------------------------------------------------------------------------

fn decode_v1(bytes: &[u8]) -> Result<Option<(Header<'_>, usize)>, Error> {
    let looked_at = &bytes[..bytes.len().min(V1_BYTES_MAX)];
    let Some(end) = looked_at.iter().position(|&byte| byte == b'\n') else {
        return if looked_at.len() < V1_BYTES_MAX { Ok(None) } else { Err(Error("a PROXY line is too long")) };
    };
    let line = looked_at[..end].strip_suffix(b"\r").ok_or(Error("a PROXY line does not end with CR LF"))?;
    let line = std::str::from_utf8(line).map_err(|_| Error("a PROXY line is no text"))?;
    let mut words = line.split(' ').skip(1);
    let proxied = match words.next() {
        // "the receiver must ignore anything presented before the CRLF".
        Some("UNKNOWN") => Proxied::default(),
        Some("TCP4") => v1_addresses(words, v1_ipv4)?,
        Some("TCP6") => v1_addresses(words, v1_ipv6)?,
        _ => return Err(Error("a PROXY line names another protocol than TCP4, TCP6 or UNKNOWN")),
    };
    Ok(Some((Header::Proxied(proxied), end + 1)))
}

/// Source and destination, source port and destination port: with one space between them, and nothing behind.
fn v1_addresses<'a>(
    mut words: impl Iterator<Item = &'a str>,
    address: impl Fn(&str) -> Option<IpAddr>,
) -> Result<Proxied<'static>, Error> {
    let mut next = || words.next().unwrap_or_default();
    let (source, destination, source_port, destination_port) = (next(), next(), next(), next());
    let (Some(source), Some(destination)) = (address(source), address(destination)) else {
        return Err(Error("an address of a PROXY line is none of its family"));
    };
    let (Some(source_port), Some(destination_port)) = (v1_port(source_port), v1_port(destination_port)) else {
        return Err(Error("a port of a PROXY line is none"));
    };
    if words.next().is_some() {
        return Err(Error("a PROXY line goes on behind its ports"));
    }
    Ok(Proxied {
        source: Some(SocketAddr::new(source, source_port)),
        destination: Some(SocketAddr::new(destination, destination_port)),
        ..Proxied::default()
    })
}

/// Four numbers without leading zeros, which is what std takes.
fn v1_ipv4(text: &str) -> Option<IpAddr> {
    text.parse::<Ipv4Addr>().ok().map(IpAddr::V4)
}

fn v1_ipv6(text: &str) -> Option<IpAddr> {
    text.parse::<Ipv6Addr>().ok().map(IpAddr::V6)
}

/// Digits without a sign and without leading zeros.
fn v1_port(text: &str) -> Option<u16> {
    let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if is_plain { text.parse().ok() } else { None }
}

// --- Version 2 --------------------------------------------------------------------------------------------------------

fn decode_v2(bytes: &[u8]) -> Result<Option<(Header<'_>, usize)>, Error> {
    // What is wrong already is not waited for.
    let command = match bytes.get(12) {
        None => return Ok(None),
        Some(0x20) => Command::Local,
        Some(0x21) => Command::Proxy,
        Some(_) => return Err(Error("a PROXY header is of another version than 2, or has an unknown command")),
    };
    let Some(header) = bytes.first_chunk::<V2_HEADER_BYTES>() else { return Ok(None) };
    let length = V2_HEADER_BYTES + usize::from(u16::from_be_bytes([header[14], header[15]]));
    if length > HEADER_BYTES_MAX {
        return Err(Error("a PROXY header is longer than is taken"));
    }
    let Some(whole) = bytes.get(..length) else { return Ok(None) };
    let header = match command {
        // "The receiver must accept this connection as valid and must use the real connection endpoints and discard the
        // protocol block including the family which is ignored."
        Command::Local => Header::Local,
        Command::Proxy => Header::Proxied(decode_v2_proxied(header[13], whole)?),
    };
    Ok(Some((header, length)))
}

enum Command {
    Local,
    Proxy,
}

const SHORT: Error = Error("a PROXY header is shorter than the addresses of its family");

/// `whole` is the header to its last byte.
fn decode_v2_proxied(family: u8, whole: &[u8]) -> Result<Proxied<'_>, Error> {
    let body = &whole[V2_HEADER_BYTES..];
    let (source, destination, tlvs) = match family {
        // Unknown: whatever there is of addresses cannot be told from TLVs, and is left alone (2.2).
        0x00 => return Ok(Proxied::default()),
        0x11 => {
            let (addresses, tlvs) = body.split_first_chunk::<12>().ok_or(SHORT)?;
            let address = |at: usize| {
                let octets: [u8; 4] = addresses[at..at + 4].try_into().expect("four were taken");
                Ipv4Addr::from(octets)
            };
            (Some(endpoint(address(0), &addresses[8..10])), Some(endpoint(address(4), &addresses[10..])), tlvs)
        }
        0x21 => {
            let (addresses, tlvs) = body.split_first_chunk::<36>().ok_or(SHORT)?;
            let address = |at: usize| {
                let octets: [u8; 16] = addresses[at..at + 16].try_into().expect("sixteen were taken");
                Ipv6Addr::from(octets)
            };
            (Some(endpoint(address(0), &addresses[32..34])), Some(endpoint(address(16), &addresses[34..])), tlvs)
        }
        // A unix socket in front of the balancer: nowhere that has an address.
        0x31 => (None, None, body.split_at_checked(216).ok_or(SHORT)?.1),
        0x12 | 0x22 | 0x32 => return Err(Error("a PROXY header is about datagrams")),
        _ => return Err(Error("a PROXY header is of an unknown family")),
    };
    let mut proxied = Proxied { source, destination, ..Proxied::default() };
    decode_tlvs(tlvs, whole, &mut proxied)?;
    Ok(proxied)
}

fn endpoint(address: impl Into<IpAddr>, port: &[u8]) -> SocketAddr {
    SocketAddr::new(address.into(), u16::from_be_bytes([port[0], port[1]]))
}

fn decode_tlvs<'a>(mut tlvs: &'a [u8], whole: &[u8], proxied: &mut Proxied<'a>) -> Result<(), Error> {
    while let Some((kind, value)) = next_tlv(&mut tlvs)? {
        match kind {
            TLV_ALPN => proxied.alpn = Some(value),
            TLV_AUTHORITY => proxied.authority = Some(text(value)?),
            TLV_UNIQUE_ID if value.len() > UNIQUE_ID_BYTES_MAX => {
                return Err(Error("a unique id of a PROXY header is longer than 128 bytes"));
            }
            TLV_UNIQUE_ID => proxied.unique_id = Some(value),
            TLV_SSL => proxied.ssl = Some(decode_ssl(value)?),
            TLV_CRC32C => check_crc(value, whole.len() - tlvs.len() - value.len(), whole)?,
            // Of no use here, and of the future: "must be ignored".
            _ => {}
        }
    }
    Ok(())
}

const CUT: Error = Error("a TLV of a PROXY header reaches beyond it");

/// The next type and value; they end exactly where the header does.
fn next_tlv<'a>(tlvs: &mut &'a [u8]) -> Result<Option<(u8, &'a [u8])>, Error> {
    if tlvs.is_empty() {
        return Ok(None);
    }
    let (&[kind, high, low], rest) = tlvs.split_first_chunk::<3>().ok_or(CUT)?;
    let (value, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([high, low]))).ok_or(CUT)?;
    *tlvs = rest;
    Ok(Some((kind, value)))
}

fn decode_ssl(value: &[u8]) -> Result<Ssl<'_>, Error> {
    let (&[client, verify @ ..], mut tlvs) =
        value.split_first_chunk::<5>().ok_or(Error("the TLS part of a PROXY header is too short"))?;
    let mut ssl = Ssl {
        is_tls: client & SSL_CLIENT != 0,
        // Zero says that it was verified, also of who showed none.
        is_verified: client & SSL_CLIENT_CERTIFICATE != 0 && verify == [0; 4],
        version: None,
        common_name: None,
    };
    while let Some((kind, value)) = next_tlv(&mut tlvs)? {
        match kind {
            SSL_VERSION => ssl.version = Some(text(value)?),
            SSL_CN => ssl.common_name = Some(text(value)?),
            _ => {}
        }
    }
    Ok(ssl)
}

fn text(value: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(value).map_err(|_| Error("a text of a PROXY header is no UTF-8"))
}

/// "If the checksum is provided [...] and the calculated checksum does not match, the receiver must abort". It covers the
/// whole header, its own four bytes (`at`) taken as zero.
fn check_crc(value: &[u8], at: usize, whole: &[u8]) -> Result<(), Error> {
    let expected = <[u8; 4]>::try_from(value).map_err(|_| Error("the checksum of a PROXY header is not four bytes"))?;
    let crc = crc32c(!0, &whole[..at]);
    let crc = crc32c(crc, &[0; 4]);
    let crc = !crc32c(crc, &whole[at + 4..]);
    if crc.to_be_bytes() == expected { Ok(()) } else { Err(Error("the checksum of a PROXY header is wrong")) }
}

/// CRC-32C (Castagnoli, RFC 3720 B.4), bit by bit: a header is short and comes once.
fn crc32c(mut crc: u32, bytes: &[u8]) -> u32 {
    for &byte in bytes {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
        }
    }
    crc
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A header of version 2 with this body.
    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u16).to_be_bytes();
        [&V2_SIGNATURE[..], &[command, family], &length, body].concat()
    }

    fn tlv(kind: u8, value: &[u8]) -> Vec<u8> {
        [&[kind][..], &(value.len() as u16).to_be_bytes(), value].concat()
    }

    const ADDRESSES_4: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0xC8, 0x22, 0x22, 0xB3];

    fn proxied(bytes: &[u8]) -> Proxied<'_> {
        match decode(bytes).unwrap().unwrap() {
            (Header::Proxied(proxied), length) if length == bytes.len() => proxied,
            other => panic!("{other:?}"),
        }
    }

    fn endpoints(source: &str, destination: &str) -> Proxied<'static> {
        let [source, destination] = [source, destination].map(|text| Some(text.parse().unwrap()));
        Proxied { source, destination, ..Proxied::default() }
    }

    /// Whole headers of every kind.
    fn headers() -> Vec<Vec<u8>> {
        let mut address_6 = [0; 36];
        (address_6[..16]).copy_from_slice(&"2001:db8::7".parse::<Ipv6Addr>().unwrap().octets());
        (address_6[32..]).copy_from_slice(&[0xC8, 0x22, 0x22, 0xB3]);
        let ssl = [&[0x03, 0, 0, 0, 0][..], &tlv(SSL_VERSION, b"TLSv1.3"), &tlv(SSL_CN, b"meter-7")].concat();
        let tlvs = [tlv(TLV_ALPN, b"mqtt"), tlv(TLV_AUTHORITY, b"broker.example"), tlv(TLV_SSL, &ssl)].concat();
        vec![
            b"PROXY TCP4 192.0.2.7 198.51.100.1 51234 8883\r\n".to_vec(),
            b"PROXY TCP6 2001:db8::7 ::1 51234 8883\r\n".to_vec(),
            b"PROXY UNKNOWN\r\n".to_vec(),
            b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n".to_vec(),
            v2(0x20, 0x00, b""),
            v2(0x20, 0x11, b"a LOCAL one may hold anything"),
            v2(0x21, 0x00, b"\x01"),
            v2(0x21, 0x11, &ADDRESSES_4),
            v2(0x21, 0x11, &[&ADDRESSES_4[..], &tlvs].concat()),
            v2(0x21, 0x21, &address_6),
            v2(0x21, 0x31, &[7; 216]),
        ]
    }

    #[test]
    fn version_1_tells_addresses_and_ports() {
        let headers = headers();
        assert_eq!(proxied(&headers[0]), endpoints("192.0.2.7:51234", "198.51.100.1:8883"));
        assert_eq!(proxied(&headers[1]), endpoints("[2001:db8::7]:51234", "[::1]:8883"));
        assert_eq!(proxied(&headers[2]), Proxied::default());
        assert_eq!(proxied(&headers[3]), Proxied::default());
    }

    #[test]
    fn version_2_tells_addresses_ports_and_what_else_there_is() {
        let headers = headers();
        assert_eq!(decode(&headers[4]), Ok(Some((Header::Local, 16))));
        assert_eq!(decode(&headers[5]), Ok(Some((Header::Local, headers[5].len()))));
        assert_eq!(proxied(&headers[6]), Proxied::default());
        assert_eq!(proxied(&headers[7]), endpoints("192.0.2.7:51234", "198.51.100.1:8883"));
        let told = proxied(&headers[8]);
        assert_eq!((told.alpn, told.authority), (Some(&b"mqtt"[..]), Some("broker.example")));
        let ssl = told.ssl.unwrap();
        assert_eq!((ssl.version, ssl.common_name), (Some("TLSv1.3"), Some("meter-7")));
        assert!(ssl.is_tls && ssl.is_verified);
        assert_eq!(proxied(&headers[9]), endpoints("[2001:db8::7]:51234", "[::]:8883"));
        assert_eq!(proxied(&headers[10]), Proxied::default());
    }

    /// Cut anywhere it is waited for, and what follows it is not looked at.
    #[test]
    fn a_header_is_waited_for_to_its_last_byte_and_ends_there() {
        for header in headers() {
            for length in 0..header.len() {
                assert_eq!(decode(&header[..length]), Ok(None), "{header:02x?} cut to {length}");
            }
            let (decoded, length) = decode(&header).unwrap().unwrap();
            for follows in [&b"\x16\x03\x01"[..], b"\n", &[0xFF; 600]] {
                assert_eq!(decode(&[&header, follows].concat()), Ok(Some((decoded, length))));
            }
        }
    }

    #[test]
    fn the_checksum_covers_all_of_the_header_and_nothing_behind_it() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xE306_9283, "RFC 3720's check value");
        let tlvs = [tlv(TLV_CRC32C, &[0; 4]), tlv(TLV_AUTHORITY, b"a")].concat();
        let mut header = v2(0x21, 0x11, &[&ADDRESSES_4[..], &tlvs].concat());
        let at = V2_HEADER_BYTES + 12 + 3;
        let crc = !crc32c(!0, &header);
        header[at..at + 4].copy_from_slice(&crc.to_be_bytes());
        assert_eq!(proxied(&header).authority, Some("a"));
        assert!(decode(&[&header[..], b"more"].concat()).is_ok());
        // But for the command and the checksum's own type: a LOCAL header is not looked at, and none need have a checksum.
        for place in (13..header.len()).filter(|&place| place != at - 3) {
            let mut changed = header.clone();
            changed[place] ^= 1;
            // A length that is longer waits for more; whatever else is changed is found out.
            if !matches!(decode(&changed), Ok(None)) {
                assert!(decode(&changed).is_err(), "byte {place}");
            }
        }
        assert!(decode(&v2(0x21, 0x11, &[&ADDRESSES_4[..], &tlv(TLV_CRC32C, &[0; 3])].concat())).is_err());
    }

    #[test]
    fn what_is_no_header_is_refused() {
        let lines = [
            "PROXY TCP4 192.0.2.7 198.51.100.1 51234 8883\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 51234\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 51234 8883 \r\n",
            "PROXY TCP4 192.0.2.7  198.51.100.1 51234 8883\r\n",
            "PROXY TCP4 192.0.2.007 198.51.100.1 51234 8883\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 051234 8883\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 +1 8883\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 65536 8883\r\n",
            "PROXY TCP4 ::1 ::1 1 2\r\n",
            "PROXY TCP6 192.0.2.7 198.51.100.1 51234 8883\r\n",
            "PROXY UDP4 192.0.2.7 198.51.100.1 51234 8883\r\n",
            "PROXY tcp4 192.0.2.7 198.51.100.1 51234 8883\r\n",
            "PROXY\r\n",
            "proxy TCP4 192.0.2.7 198.51.100.1 51234 8883\r\n",
            "GET / HTTP/1.1\r\n",
            "\u{16}\u{3}\u{1}",
        ];
        for line in lines {
            assert!(decode(line.as_bytes()).is_err(), "{line:?}");
        }
        let endless = [b"PROXY UNKNOWN ", &[b'x'; 200][..]].concat();
        assert_eq!(decode(&endless[..106]), Ok(None));
        assert!(decode(&endless[..107]).is_err());
        let addresses = |tlvs: &[u8]| [&ADDRESSES_4[..], tlvs].concat();
        let ssl_that_reaches_out = tlv(TLV_SSL, &[&[1, 0, 0, 0, 0][..], &[SSL_CN, 0, 9, b'x']].concat());
        for (command, family, body) in [
            (0x11, 0x11, addresses(b"")),
            (0x22, 0x11, addresses(b"")),
            (0x21, 0x12, addresses(b"")),
            (0x21, 0x41, addresses(b"")),
            (0x21, 0x10, addresses(b"")),
            (0x21, 0x11, ADDRESSES_4[..11].to_vec()),
            (0x21, 0x21, ADDRESSES_4.to_vec()),
            (0x21, 0x31, vec![0; 215]),
            (0x21, 0x11, addresses(&[TLV_ALPN])),
            (0x21, 0x11, addresses(&[TLV_ALPN, 0, 2, b'x'])),
            (0x21, 0x11, addresses(&tlv(TLV_UNIQUE_ID, &[0; 129]))),
            (0x21, 0x11, addresses(&tlv(TLV_AUTHORITY, &[0xFF]))),
            (0x21, 0x11, addresses(&tlv(TLV_SSL, &[1, 0, 0, 0]))),
            (0x21, 0x11, addresses(&ssl_that_reaches_out)),
            (0x20, 0x00, vec![0; HEADER_BYTES_MAX - V2_HEADER_BYTES + 1]),
        ] {
            // Followed by what would make up for what is missing, if it were read.
            let bytes = [v2(command, family, &body), vec![0; 300]].concat();
            assert!(decode(&bytes).is_err(), "{command:02x} {family:02x} {body:02x?}");
        }
    }

    #[test]
    fn no_bytes_make_it_panic() {
        let mut random = fastrand::Rng::with_seed(10);
        for header in headers() {
            for _ in 0..2_000 {
                let mut changed = header.clone();
                for _ in 0..random.usize(1..4) {
                    let place = random.usize(..changed.len());
                    changed[place] = random.u8(..);
                }
                if let Ok(Some((_, length))) = decode(&changed) {
                    assert!(length <= changed.len());
                }
            }
        }
    }
}
