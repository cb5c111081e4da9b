//! The record layer against rustls, against the RFC's own traces, against its limits, and against noise.

mod differential;
mod duties;
mod image;
mod limits;
mod noise;
mod traces;

use super::framing::ContentType;
use super::keys::derive;
use super::*;

/// The two ends of one connection with secrets that the seed decides.
fn pair(suite: Suite) -> (RecordLayer, RecordLayer) {
    pair_at(suite, 0, 0)
}

/// One direction's secrets, owned.
struct Keys {
    secret: Vec<u8>,
    key: Vec<u8>,
    iv: [u8; 12],
    sequence: u64,
}

impl Keys {
    fn random(suite: Suite, sequence: u64, random: &mut fastrand::Rng) -> Self {
        let (mut secret, mut key, mut iv) = (vec![0; suite.secret_len()], vec![0; suite.key_len()], [0; 12]);
        random.fill(&mut secret);
        random.fill(&mut key);
        random.fill(&mut iv);
        if suite.version() == Version::Tls13 {
            derive(suite, &secret, &mut key, &mut iv);
        }
        Self { secret, key, iv, sequence }
    }

    fn borrowed(&self) -> DirectionSecrets<'_> {
        DirectionSecrets { secret: &self.secret, key: &self.key, iv: &self.iv, sequence: self.sequence }
    }
}

/// The same, with the client's and the server's next record number.
fn pair_at(suite: Suite, client_sequence: u64, server_sequence: u64) -> (RecordLayer, RecordLayer) {
    let mut random = fastrand::Rng::with_seed(u64::from(suite.code()));
    let client = Keys::random(suite, client_sequence, &mut random);
    let server = Keys::random(suite, server_sequence, &mut random);
    (
        RecordLayer::new(Role::Client, suite, &client.borrowed(), &server.borrowed()),
        RecordLayer::new(Role::Server, suite, &server.borrowed(), &client.borrowed()),
    )
}

/// One record of any type and content, as only a peer without manners would send it.
fn record(from: &mut RecordLayer, kind: ContentType, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    from.burst().seal_record(kind, content, &mut out);
    out
}

/// Application data in as many records as it needs.
fn data(from: &mut RecordLayer, content: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    from.burst().seal(content, &mut out).expect("sealed");
    out
}

/// An owned [`Opened`].
#[derive(Debug, PartialEq, Eq)]
enum Event {
    Data(Vec<u8>),
    Handled(Handled),
    CloseNotify,
}

/// Opens all of `bytes`, which are whole records; stops at the first error. The answers are appended to `out`.
fn open_into(to: &mut RecordLayer, bytes: &[u8], out: &mut Vec<u8>) -> (Vec<Event>, Option<RecordError>) {
    let (mut bytes, mut events, mut burst) = (bytes.to_vec(), Vec::new(), to.burst());
    let mut rest = &mut bytes[..];
    while !rest.is_empty() {
        let whole = match burst.next_record(rest, out) {
            Ok(whole) => whole.expect("whole records"),
            Err(error) => return (events, Some(error)),
        };
        let (record, after) = rest.split_at_mut(whole);
        rest = after;
        events.push(match burst.open(record, out) {
            Ok(Opened::Data(content)) => Event::Data(content.to_vec()),
            Ok(Opened::Handled(handled)) => Event::Handled(handled),
            Ok(Opened::CloseNotify) => Event::CloseNotify,
            Err(error) => return (events, Some(error)),
        });
    }
    (events, None)
}

/// Opens all of `bytes` without error and without an answer.
fn open(to: &mut RecordLayer, bytes: &[u8]) -> Vec<Event> {
    let mut out = Vec::new();
    let (events, error) = open_into(to, bytes, &mut out);
    assert_eq!((error, &out[..]), (None, &[][..]), "{events:?}");
    events
}

/// `bytes` end the receiver with `error`, and what it answers tells exactly that to the sender.
fn assert_refused(from: &mut RecordLayer, to: &mut RecordLayer, bytes: &[u8], error: RecordError) {
    let mut out = Vec::new();
    assert_eq!(open_into(to, bytes, &mut out).1, Some(error));
    match error.alert() {
        None => assert!(out.is_empty()),
        Some(alert) => {
            let told = open_into(from, &out, &mut Vec::new());
            assert_eq!(told, (vec![], Some(RecordError::PeerAlert(alert as u8))));
        }
    }
    assert_dead(to);
}

/// Nothing works any more, nothing panics, and no key is left.
fn assert_dead(layer: &mut RecordLayer) {
    let mut out = Vec::new();
    let mut burst = layer.burst();
    assert_eq!(burst.open(&mut [23, 3, 3, 0, 0], &mut out), Err(RecordError::Closed));
    assert_eq!(burst.next_record(&[23], &mut out), Err(RecordError::Closed));
    assert_eq!(burst.seal(b"x", &mut out), Err(RecordError::Closed));
    assert!(!burst.update_keys(true, &mut out));
    burst.close_notify(&mut out);
    burst.alert(Alert::InternalError, &mut out);
    burst.alert(Alert::UserCanceled, &mut out);
    assert!(out.is_empty());
    assert_wiped(layer);
}

fn assert_wiped(layer: &RecordLayer) {
    for direction in [&layer.tx, &layer.rx] {
        let (secret, key) = (direction.secret(layer.suite), direction.key(layer.suite));
        assert!(secret.iter().chain(key).chain(&direction.iv).all(|&byte| byte == 0));
    }
}

fn suites(version: Version) -> impl Iterator<Item = Suite> {
    Suite::ALL.iter().copied().filter(move |suite| suite.version() == version)
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().filter_map(|c| c.to_digit(16)).map(|digit| digit as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}
