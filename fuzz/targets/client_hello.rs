//! The look at a ClientHello before its handshake, against rustls, which reads it afterwards: the protocol that a connection is
//! passed on by must be one that the client really offers, and the first of the port's among those.
//!
//! Input: a byte that says how the rest is meant. 0: bytes as they arrive. Else: the extensions of a ClientHello that is right but for
//! them, in records of so many bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pulsegate_fuzz::tls::handshake::{Hello, Wishes, scan};
use rustls::server::Acceptor;

/// So many of a client's protocols are looked at.
const OFFERS_MAX: usize = 32;
/// What every client says: signature algorithms, groups, versions 1.3 and 1.2, and a key share of X25519.
const USUAL: &[u8] = &[
    0, 13, 0, 4, 0, 2, 4, 3, 0, 10, 0, 4, 0, 2, 0, 29, 0, 43, 0, 5, 4, 3, 4, 3, 3, 0, 51, 0, 38, 0, 36, 0, 29, 0, 32, 9, 9, 9, 9, 9, 9, 9,
    9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9, 9,
];

fn protocols() -> [Box<[u8]>; 4] {
    [&b"mqtt"[..], b"x", b"http/1.1", b"pulsegate/1"].map(Box::from)
}

/// A ClientHello with these extensions before the usual ones, in records of so many bytes.
fn hello(extensions: &[u8], piece: usize) -> Vec<u8> {
    let mut body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 0x01], &[1, 0]].concat();
    body.extend(((extensions.len() + USUAL.len()) as u16).to_be_bytes());
    body.extend(extensions);
    body.extend(USUAL);
    let message = [&[1, 0][..], &(body.len() as u16).to_be_bytes(), &body].concat();
    let mut out = Vec::new();
    for part in message.chunks(piece) {
        out.extend([22, 3, 1]);
        out.extend((part.len() as u16).to_be_bytes());
        out.extend(part);
    }
    out
}

/// What rustls says that the client offers; none: it is no ClientHello that it takes.
fn offered(mut bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut acceptor = Acceptor::default();
    while !bytes.is_empty() && acceptor.read_tls(&mut bytes).ok()? > 0 {}
    let accepted = acceptor.accept().ok()??;
    let hello = accepted.client_hello();
    Some(hello.alpn().map(|names| names.map(<[u8]>::to_vec).collect()).unwrap_or_default())
}

fuzz_target!(|data: &[u8]| {
    let Some((&mode, rest)) = data.split_first() else { return };
    let bytes = if mode == 0 { rest.to_vec() } else { hello(rest, usize::from(mode) * 8) };
    let protocols = protocols();
    let seen = scan(&bytes, &protocols);
    // Whoever looks for nothing sees the same but for that.
    match (seen, scan(&bytes, &[])) {
        (Hello::Whole(wishes), Hello::Whole(other)) => assert_eq!(other, Wishes { protocol: None, ..wishes }),
        (one, other) => assert_eq!(one, other),
    }
    // What was said of its beginning stays said.
    let half = scan(&bytes[..bytes.len() / 2], &protocols);
    assert!(half == Hello::Partial || half == seen, "{half:?}, and then {seen:?}");
    if let (Hello::Whole(wishes), Some(names)) = (seen, offered(&bytes)) {
        let positions = names.iter().take(OFFERS_MAX).filter_map(|name| protocols.iter().position(|one| **one == **name));
        assert_eq!(wishes.protocol, positions.min(), "{names:?}");
    }
});
