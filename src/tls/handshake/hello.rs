//! The ClientHello, looked at before anything is spent on it: whether it is whole, how large the records may be that its
//! sender can take (rustls reads neither of the two extensions that say so), and which of a port's protocols it asks for.
//!
//! ```text
//! | 22 3 x length | 1 length, 3 | version 2 | random 32 | session id | suites | compression | extensions |
//! ```
//! A place among the handshakes is given for a whole ClientHello only; until then its bytes are all that a peer costs.

use crate::tls::record::{HEADER_LEN, RecordLimit, Stage, Version, next_record};

/// The most bytes that a ClientHello may have, record headers included. The largest that are seen, with post-quantum
/// key shares and a ticket that carries a certificate, have some 5 KB.
pub const HELLO_BYTES_MAX: usize = 16 * 1024;

const CLIENT_HELLO: u8 = 1;
const HANDSHAKE: u8 = 22;
const MAX_FRAGMENT_LENGTH: u16 = 1;
/// RFC 7301 section 3.1.
const APPLICATION_PROTOCOLS: u16 = 16;
const RECORD_SIZE_LIMIT: u16 = 28;
/// RFC 8449 section 4: a smaller one is a fatal `illegal_parameter`.
const RECORD_SIZE_LIMIT_MIN: u16 = 64;
/// So many of the protocols that a client offers are looked at; the most that are seen are five. Each costs a look at
/// every protocol of the port, and a ClientHello has room for thousands.
const OFFERS_MAX: usize = 32;

/// How far a peer's first message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hello {
    /// More bytes are needed.
    Partial,
    /// All of it is there, or so much that the handshake can refuse it.
    Whole(Wishes),
    /// It is, or says that it will be, longer than [`HELLO_BYTES_MAX`].
    TooLong,
}

/// What the client asks for, as far as it is looked at here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// What it can take in one record.
    pub records: RecordWish,
    /// The first of the protocols that it was scanned for and offers (ALPN), by its position among them.
    pub protocol: Option<usize>,
}

/// What the client can take in one record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordWish {
    /// `record_size_limit`: in TLS 1.3 the content type counts too.
    size_limit: Option<u16>,
    /// `max_fragment_length`, in bytes.
    fragment: Option<u16>,
    /// An extension has a value that its RFC forbids.
    is_illegal: bool,
}

impl RecordWish {
    /// Whether an extension has a value that must end the handshake with `illegal_parameter`.
    #[must_use]
    pub fn is_illegal(self) -> bool {
        self.is_illegal
    }

    /// The most plaintext in a record, if the client said anything about it. RFC 8449 section 5: whoever sends both
    /// extensions means the newer one.
    #[must_use]
    pub fn limit(self, version: Version) -> Option<RecordLimit> {
        let bytes = match (self.size_limit, self.fragment) {
            (Some(limit), _) => usize::from(limit) - usize::from(version == Version::Tls13),
            (None, fragment) => usize::from(fragment?),
        };
        Some(RecordLimit::at_most(bytes))
    }
}

/// Looks at the first bytes of a connection, and for `protocols`, the preferred one first, among those that it offers. What is
/// no ClientHello is whole: it is the handshake that refuses it.
#[must_use]
pub fn scan(bytes: &[u8], protocols: &[Box<[u8]>]) -> Hello {
    let mut gathered = Vec::new();
    let mut position = 0;
    loop {
        let rest = &bytes[position..];
        let stage = if position == 0 { Stage::First } else { Stage::Handshake };
        match next_record(rest, stage) {
            Err(_) => return Hello::Whole(Wishes::default()),
            Ok(None) if bytes.len() >= HELLO_BYTES_MAX => return Hello::TooLong,
            Ok(None) => return partial(rest, &gathered),
            Ok(Some(_)) if rest[0] != HANDSHAKE => return Hello::Whole(Wishes::default()),
            Ok(Some(length)) => {
                let content = &rest[HEADER_LEN..length];
                position += length;
                // Nearly always the first record is all.
                if gathered.is_empty()
                    && let Some(hello) = whole(content, protocols)
                {
                    return hello;
                }
                gathered.extend_from_slice(content);
                if let Some(hello) = whole(&gathered, protocols) {
                    return hello;
                }
            }
        }
    }
}

/// What can be said of a message whose last record is not there: that it will be too long.
fn partial(rest: &[u8], gathered: &[u8]) -> Hello {
    if rest.first().is_some_and(|&kind| kind != HANDSHAKE) {
        // Whatever an alert's bytes may look like.
        return Hello::Partial;
    }
    let begun = rest.get(HEADER_LEN..).unwrap_or_default();
    let mut head = gathered.iter().chain(begun).copied();
    match (head.next(), head.next(), head.next(), head.next()) {
        (Some(CLIENT_HELLO), Some(high), Some(middle), Some(low))
            if u32::from_be_bytes([0, high, middle, low]) as usize + 4 > HELLO_BYTES_MAX =>
        {
            Hello::TooLong
        }
        _ => Hello::Partial,
    }
}

/// The message at the front of `bytes`, if enough of it is there to be judged.
fn whole(bytes: &[u8], protocols: &[Box<[u8]>]) -> Option<Hello> {
    if bytes.first().is_some_and(|&kind| kind != CLIENT_HELLO) {
        return Some(Hello::Whole(Wishes::default()));
    }
    let (&[_, high, middle, low], body) = bytes.split_first_chunk()?;
    let length = u32::from_be_bytes([0, high, middle, low]) as usize;
    if length + 4 > HELLO_BYTES_MAX {
        return Some(Hello::TooLong);
    }
    // What cannot be read is rustls's to refuse.
    body.get(..length).map(|body| Hello::Whole(read_extensions(body, protocols).unwrap_or_default()))
}

fn read_extensions(body: &[u8], protocols: &[Box<[u8]>]) -> Option<Wishes> {
    let mut rest = body.get(2 + 32..)?;
    take_sized(&mut rest, 1)?;
    take_sized(&mut rest, 2)?;
    take_sized(&mut rest, 1)?;
    let mut wishes = Wishes::default();
    if rest.is_empty() {
        return Some(wishes);
    }
    let wish = &mut wishes.records;
    let mut extensions = take_sized(&mut rest, 2)?;
    while !extensions.is_empty() {
        let (kind, after) = extensions.split_first_chunk()?;
        extensions = after;
        let content = take_sized(&mut extensions, 2)?;
        match u16::from_be_bytes(*kind) {
            MAX_FRAGMENT_LENGTH => match content {
                // RFC 6066 section 4: 2^9 to 2^12.
                &[code @ 1..=4] => wish.fragment = Some(256 << code),
                _ => wish.is_illegal = true,
            },
            RECORD_SIZE_LIMIT => match content.try_into().map(u16::from_be_bytes) {
                Ok(limit) if limit >= RECORD_SIZE_LIMIT_MIN => wish.size_limit = Some(limit),
                _ => wish.is_illegal = true,
            },
            APPLICATION_PROTOCOLS => wishes.protocol = preferred(content, protocols),
            _ => {}
        }
    }
    Some(wishes)
}

/// The first of `protocols` that is in a client's list. What is wrong with the list is rustls's to refuse.
fn preferred(mut content: &[u8], protocols: &[Box<[u8]>]) -> Option<usize> {
    let mut list = take_sized(&mut content, 2)?;
    let mut found = None;
    for _ in 0..OFFERS_MAX {
        let Some(offered) = take_sized(&mut list, 1) else { break };
        let position = protocols.iter().position(|protocol| **protocol == *offered);
        found = position.map(|position| found.map_or(position, |found: usize| found.min(position))).or(found);
    }
    found
}

/// Takes a vector off the front whose length stands in `prefix` bytes before it.
fn take_sized<'a>(rest: &mut &'a [u8], prefix: usize) -> Option<&'a [u8]> {
    let (length, after) = rest.split_at_checked(prefix)?;
    let length = length.iter().fold(0, |length, &byte| length << 8 | usize::from(byte));
    let (content, after) = after.split_at_checked(length)?;
    *rest = after;
    Some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(extensions: &[u8]) -> Vec<u8> {
        let mut body = [&[3, 3][..], &[7; 32], &[0], &[0, 2, 0x13, 0x01], &[1, 0]].concat();
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        [&[1, 0][..], &(body.len() as u16).to_be_bytes(), &body].concat()
    }

    fn records(message: &[u8], piece: usize) -> Vec<u8> {
        let mut out = Vec::new();
        for part in message.chunks(piece) {
            out.extend([22, 3, 1]);
            out.extend((part.len() as u16).to_be_bytes());
            out.extend(part);
        }
        out
    }

    fn wish(size_limit: Option<u16>, fragment: Option<u16>) -> RecordWish {
        RecordWish { size_limit, fragment, is_illegal: false }
    }

    fn whole(records: RecordWish) -> Hello {
        Hello::Whole(Wishes { records, protocol: None })
    }

    /// An extension with these application protocols.
    fn offers(names: &[&[u8]]) -> Vec<u8> {
        let list: Vec<u8> = names.iter().flat_map(|name| [&[name.len() as u8], *name].concat()).collect();
        let sized = |content: &[u8]| [&(content.len() as u16).to_be_bytes(), content].concat();
        [&[0, 16][..], &sized(&sized(&list))].concat()
    }

    #[test]
    fn the_first_of_the_protocols_that_is_offered_counts_wherever_the_client_says_it() {
        let protocols = [&b"mqtt"[..], b"pulsegate/1", b"http/1.1"].map(Box::<[u8]>::from);
        let found = |extensions: &[u8]| {
            let bytes = records(&message(extensions), 1_000);
            let Hello::Whole(wishes) = scan(&bytes, &protocols) else { panic!("{extensions:?}") };
            assert_eq!(scan(&bytes, &[]), Hello::Whole(Wishes { protocol: None, ..wishes }), "nothing is looked for");
            wishes.protocol
        };
        assert_eq!(found(&[]), None);
        assert_eq!(found(&offers(&[b"mqtt"])), Some(0));
        assert_eq!(found(&offers(&[b"h2", b"http/1.1"])), Some(2));
        assert_eq!(found(&offers(&[b"http/1.1", b"pulsegate/1"])), Some(1));
        assert_eq!(found(&offers(&[b"MQTT", b"mqt", b"mqttt", b""])), None);
        let padding = [&b"x"[..]; 31];
        assert_eq!(found(&offers(&[&padding[..], &[b"mqtt"]].concat())), Some(0));
        assert_eq!(found(&offers(&[&padding[..], &[b"x", b"mqtt"]].concat())), None, "the 33rd is not looked at");
        // Beside the others, and where the list says that it is longer or shorter than it is.
        assert_eq!(found(&[&[0, 1, 0, 1, 2][..], &offers(&[b"mqtt"]), &[0, 28, 0, 2, 4, 1]].concat()), Some(0));
        assert_eq!(found(&[0, 16, 0, 7, 0, 9, 4, b'm', b'q', b't', b't']), None);
        assert_eq!(found(&[0, 16, 0, 7, 0, 5, 5, b'm', b'q', b't', b't']), None);
        assert_eq!(found(&[0, 16, 0, 0]), None);
    }

    #[test]
    fn a_hello_is_whole_when_its_last_byte_is_there_however_it_is_cut() {
        let message = message(&[0, 1, 0, 1, 2]);
        for piece in [1, 7, 40, 1_000] {
            let bytes = records(&message, piece);
            for cut in 0..bytes.len() {
                assert_eq!(scan(&bytes[..cut], &[]), Hello::Partial, "{piece} {cut}");
            }
            assert_eq!(scan(&bytes, &[]), whole(wish(None, Some(1_024))), "{piece}");
            assert_eq!(scan(&[&bytes[..], &bytes].concat(), &[]), whole(wish(None, Some(1_024))));
        }
    }

    #[test]
    fn the_two_extensions_are_read_and_the_newer_one_counts() {
        for (extensions, expected, tls13, tls12) in [
            (&[][..], wish(None, None), None, None),
            (&[0, 1, 0, 1, 1], wish(None, Some(512)), Some(512), Some(512)),
            (&[0, 1, 0, 1, 4], wish(None, Some(4_096)), Some(4_096), Some(4_096)),
            (&[0, 28, 0, 2, 4, 1], wish(Some(1_025), None), Some(1_024), Some(1_024)),
            (&[0, 28, 0, 2, 4, 0], wish(Some(1_024), None), Some(1_023), Some(1_024)),
            (&[0, 28, 0, 2, 0x40, 1], wish(Some(16_385), None), Some(16_384), Some(16_384)),
            (&[0, 1, 0, 1, 1, 0, 28, 0, 2, 0x10, 1], wish(Some(4_097), Some(512)), Some(4_096), Some(4_096)),
        ] {
            let Hello::Whole(Wishes { records: wish, .. }) = scan(&records(&message(extensions), 1_000), &[]) else {
                panic!("{extensions:?}")
            };
            assert_eq!(wish, expected);
            assert_eq!(wish.limit(Version::Tls13).map(RecordLimit::bytes), tls13, "{extensions:?}");
            assert_eq!(wish.limit(Version::Tls12).map(RecordLimit::bytes), tls12, "{extensions:?}");
        }
        for illegal in
            [&[0, 1, 0, 1, 0][..], &[0, 1, 0, 1, 5], &[0, 1, 0, 2, 1, 1], &[0, 28, 0, 2, 0, 63], &[0, 28, 0, 1, 9]]
        {
            let Hello::Whole(Wishes { records: wish, .. }) = scan(&records(&message(illegal), 1_000), &[]) else {
                panic!("{illegal:?}")
            };
            assert!(wish.is_illegal(), "{illegal:?}");
        }
    }

    #[test]
    fn too_long_is_said_as_soon_as_it_is_known() {
        assert_eq!(scan(&[22, 3, 1, 0x10, 0, 1, 0, 0x40, 1], &[]), Hello::TooLong);
        assert_eq!(scan(&records(&[1, 0, 0x40, 0], 1), &[]), Hello::TooLong);
        // Sixteen kilobytes of records with next to nothing in them.
        let crumbs: Vec<u8> =
            [1, 0, 0x30, 0].into_iter().chain([0; 4_000]).flat_map(|byte| [22, 3, 1, 0, 1, byte]).collect();
        assert_eq!(scan(&crumbs[..6_000], &[]), Hello::Partial);
        assert_eq!(scan(&crumbs[..HELLO_BYTES_MAX], &[]), Hello::TooLong);
    }

    #[test]
    fn what_is_no_hello_is_left_to_the_handshake() {
        for bytes in
            [&b"GET / HTTP/1.1\r\n"[..], &[21, 3, 3, 0, 2, 2, 40], &[22, 3, 1, 0, 4, 2, 0, 0, 0], &[22, 3, 1, 0, 0]]
        {
            assert_eq!(scan(bytes, &[]), Hello::Whole(Wishes::default()), "{bytes:?}");
        }
        // Half of an alert whose bytes look like the head of a large one.
        assert_eq!(scan(&[21, 3, 3, 0, 5, 1, 0x2f, 0x6d, 0x71], &[]), Hello::Partial);
        assert_eq!(scan(&[21, 3, 3, 0, 5, 1, 0x2f, 0x6d, 0x71, 0x74], &[]), Hello::Whole(Wishes::default()));
        assert_eq!(scan(&[], &[]), Hello::Partial);
        assert_eq!(scan(&[22], &[]), Hello::Partial);
        // Damaged within: rustls says what is wrong.
        assert_eq!(scan(&records(&[1, 0, 0, 3, 1, 2, 3], 100), &[]), Hello::Whole(Wishes::default()));
    }
}
