//! A model device's connection: the client role of everything, and an account of what was said and heard.

use std::time::Duration;

use pulsegate::codec::native::{self, CloseCode, Frame, Hello, Message};
use pulsegate::time::Moment;
use pulsegate::tls::handshake::{ClientTls, Handshake, Progress};
use pulsegate::tls::record::{DirectionSecrets, Opened, RecordLayer, Role, Stage, Suite, next_record};

/// What a peer speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    Native,
    Raw,
    /// What it is given to say, and keeps what it hears.
    Bytes,
}

/// Of a peer that speaks by itself.
const NO_WORDS: &str = "it has no words of its own";

/// What raw peers say to show that they live.
pub const HEARTBEAT: &[u8] = b"heartbeat";
/// What raw peers are asked with.
pub const PROBE: &[u8] = b"?";

/// What became of a peer, as far as the peer knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Connected, or on the way to it.
    Live,
    /// It ended by its own doing.
    Left,
    /// It fell silent by its own doing: it neither reads nor speaks.
    Vanished,
    /// The gateway ended it, with this code, or without any.
    Ended(Option<CloseCode>),
}

enum Tls {
    Handshaking(Box<Handshake>),
    Open(RecordLayer),
    /// It needs no more: it is over.
    Over,
}

#[expect(clippy::struct_excessive_bools, reason = "what happened to it so far, each on its own")]
pub struct Peer {
    /// Which device it is: there may be several connections of one.
    pub device: u32,
    pub speaks: Speaks,
    pub fate: Fate,
    tls: Tls,
    inbox: Vec<u8>,
    plain: Vec<u8>,
    /// Sealed, not yet sent.
    pub out: Vec<u8>,
    /// It is not probed and sends a heartbeat so often (raw only).
    pub beats_every: Option<Duration>,
    /// A part of `out` is to be sent later: nothing may overtake it.
    pub is_pumping: bool,
    /// When it was welcomed (raw peers: when they began).
    pub welcomed: Option<Moment>,
    /// It has said something that the gateway will not bear.
    pub is_rude: bool,
    /// It may be told to try later: its home was made to refuse.
    pub has_moved: bool,
    pub wire_ended: bool,
    /// Messages sent that want an ACK, acknowledged, and held by the backbone.
    pub sure_sent: u32,
    pub sure_acknowledged: u32,
    pub sure_held: u32,
    /// Messages sent that may be dropped, and the least number that may arrive next.
    pub loose_sent: u32,
    pub loose_next: u32,
    code: Option<CloseCode>,
}

/// What a peer wants done when it has heard something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// A heartbeat waits for its answer.
    Answer,
    /// A message of the backend's, by its number.
    Heard(u64),
    /// Its TLS handshake is done.
    Established,
    /// The gateway said that it ends.
    Goodbye,
}

impl Peer {
    fn new(device: u32, speaks: Speaks, tls: Tls) -> Self {
        Self {
            device,
            speaks,
            fate: Fate::Live,
            tls,
            inbox: Vec::new(),
            plain: Vec::new(),
            out: Vec::new(),
            beats_every: None,
            is_pumping: false,
            welcomed: None,
            is_rude: false,
            has_moved: false,
            wire_ended: false,
            sure_sent: 0,
            sure_acknowledged: 0,
            sure_held: 0,
            loose_sent: 0,
            loose_next: 0,
            code: None,
        }
    }

    /// A peer that begins with its ClientHello.
    pub fn connecting(device: u32, client: &ClientTls) -> Self {
        let mut out = Vec::new();
        let handshake = Handshake::client(client, &mut out).expect("a client hello");
        Self { out, ..Self::new(device, Speaks::Native, Tls::Handshaking(Box::new(handshake))) }
    }

    /// Whether its TLS handshake is not done.
    pub fn is_unanswered(&self) -> bool {
        matches!(self.tls, Tls::Handshaking(_))
    }

    /// A peer whose handshake has been, and the gateway's side of it.
    pub fn established(device: u32, speaks: Speaks, random: &mut fastrand::Rng) -> (Self, RecordLayer) {
        const SUITES: [(Suite, usize, usize); 4] = [
            (Suite::Tls13Aes128GcmSha256, 32, 16),
            (Suite::Tls13Aes256GcmSha384, 48, 32),
            (Suite::Tls13ChaCha20Poly1305Sha256, 32, 32),
            (Suite::EcdheEcdsaAes128GcmSha256, 0, 16),
        ];
        // Mostly the cheapest.
        let (suite, secret_length, key_length) = SUITES[random.usize(..40).min(3)];
        let mut bytes = [0u8; 2 * (48 + 32 + 12)];
        random.fill(&mut bytes);
        let [one, two] = [&bytes[..92], &bytes[92..]].map(|bytes| DirectionSecrets {
            secret: &bytes[..secret_length],
            key: &bytes[48..48 + key_length],
            iv: bytes[80..].try_into().expect("twelve bytes"),
            sequence: 1,
        });
        let client = RecordLayer::new(Role::Client, suite, &one, &two);
        let server = RecordLayer::new(Role::Server, suite, &two, &one);
        (Self::new(device, speaks, Tls::Open(client)), server)
    }

    /// Whether it should be there: welcomed, and neither gone nor told to go.
    pub fn is_healthy(&self) -> bool {
        self.fate == Fate::Live && self.welcomed.is_some()
    }

    // --- What it says -----------------------------------------------------------------------------------------------

    fn seal(&mut self, bytes: &[u8]) {
        if let Tls::Open(records) = &mut self.tls
            && records.can_seal()
        {
            records.burst().seal(bytes, &mut self.out).expect("a peer's keys are young");
        }
    }

    /// These bytes, in a record.
    pub fn say_bytes(&mut self, bytes: &[u8]) {
        self.seal(bytes);
    }

    fn say(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.seal(&bytes);
    }

    pub fn say_hello(&mut self, id: &str, heartbeat_ms: u32) {
        self.say(&Frame::Hello(Hello { heartbeat_ms, id, token: b"" }));
    }

    /// The answer to a heartbeat, or one of its own.
    pub fn say_alive(&mut self) {
        match self.speaks {
            Speaks::Native => self.say(&Frame::Pong(b"")),
            Speaks::Raw => self.seal(HEARTBEAT),
            Speaks::Bytes => unreachable!("{NO_WORDS}"),
        }
    }

    pub fn say_ping(&mut self) {
        match self.speaks {
            Speaks::Native => self.say(&Frame::Ping(b"?")),
            Speaks::Raw => self.seal(HEARTBEAT),
            Speaks::Bytes => unreachable!("{NO_WORDS}"),
        }
    }

    /// A message whose arrival is promised. Its payload tells who says it, and its number.
    pub fn say_sure(&mut self, peer: u32) {
        let payload = payload(b'S', peer, self.sure_sent);
        self.sure_sent += 1;
        match self.speaks {
            Speaks::Native => {
                self.say(&Frame::Message(Message { id: self.sure_sent, topic: "sure", payload: &payload }));
            }
            Speaks::Raw => self.seal(&payload),
            Speaks::Bytes => unreachable!("{NO_WORDS}"),
        }
    }

    /// A message that may be dropped.
    pub fn say_loose(&mut self, peer: u32) {
        if self.speaks == Speaks::Native {
            let payload = payload(b'L', peer, self.loose_sent);
            self.loose_sent += 1;
            self.say(&Frame::Message(Message { id: 0, topic: "loose", payload: &payload }));
        }
    }

    /// New keys for both directions.
    pub fn update_keys(&mut self) {
        if let Tls::Open(records) = &mut self.tls {
            records.burst().update_keys(true, &mut self.out);
        }
    }

    /// Something that no gateway bears.
    pub fn say_nonsense(&mut self, random: &mut fastrand::Rng) {
        self.is_rude = true;
        // Within TLS nothing is nonsense to the raw protocol.
        let first = if self.speaks == Speaks::Raw { 2 } else { 0 };
        match random.u8(first..4) {
            0 => self.seal(&[0xff; 20]),
            1 => self.seal(&[0x05, 0xff, 0xff, 0]),
            2 => self.out.extend_from_slice(&[23, 3, 3, 0, 30, 1, 2, 3]),
            _ => self.out.extend((0..200).map(|_| random.u8(..))),
        }
    }

    pub fn say_goodbye(&mut self) {
        if let Tls::Open(records) = &mut self.tls {
            records.burst().close_notify(&mut self.out);
        }
    }

    // --- What it hears ----------------------------------------------------------------------------------------------

    /// Bytes from the gateway.
    pub fn hear(&mut self, bytes: &[u8], now: Moment, reactions: &mut Vec<Reaction>) {
        self.inbox.extend_from_slice(bytes);
        while self.hear_record(reactions) {}
        if self.inbox.is_empty() {
            self.inbox = Vec::new();
        }
        match self.speaks {
            Speaks::Native => self.hear_frames(now, reactions),
            Speaks::Raw => {
                reactions.extend(self.plain.iter().filter(|&&byte| byte == PROBE[0]).map(|_| Reaction::Answer));
                self.plain = Vec::new();
            }
            Speaks::Bytes => {}
        }
    }

    /// What one that is given its bytes has heard since.
    pub fn take_plain(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.plain)
    }

    fn hear_record(&mut self, reactions: &mut Vec<Reaction>) -> bool {
        match &mut self.tls {
            Tls::Handshaking(handshake) => {
                let Some(length) = next_record(&self.inbox, Stage::Handshake).expect("the gateway speaks TLS") else {
                    return false;
                };
                let record: Vec<u8> = self.inbox.drain(..length).collect();
                match handshake.handle_record(&record, &mut self.out) {
                    Ok(Progress::Continue) => {}
                    Ok(Progress::Done) => {
                        let Tls::Handshaking(handshake) = std::mem::replace(&mut self.tls, Tls::Over) else {
                            unreachable!("asked before")
                        };
                        let established = handshake.finish(&mut self.out).expect("both sides agree");
                        self.tls = Tls::Open(established.records);
                        reactions.push(Reaction::Established);
                    }
                    Err(error) => {
                        assert!(self.is_rude, "the handshake of a polite peer failed: {error}");
                        self.tls = Tls::Over;
                    }
                }
                true
            }
            Tls::Open(records) => {
                let mut burst = records.burst();
                let length = match burst.next_record(&self.inbox, &mut self.out) {
                    Ok(Some(length)) => length,
                    Ok(None) => return false,
                    Err(error) => panic!("the gateway sent what is no record: {error}"),
                };
                let mut record: Vec<u8> = self.inbox.drain(..length).collect();
                match burst.open(&mut record, &mut self.out) {
                    Ok(Opened::Data(data)) => self.plain.extend_from_slice(data),
                    Ok(Opened::Handled(_)) => {}
                    Ok(Opened::CloseNotify) => reactions.push(Reaction::Goodbye),
                    Err(error) => {
                        assert!(self.is_rude, "a polite peer was sent: {error}");
                        reactions.push(Reaction::Goodbye);
                        self.tls = Tls::Over;
                    }
                }
                true
            }
            Tls::Over => {
                self.inbox.clear();
                false
            }
        }
    }

    fn hear_frames(&mut self, now: Moment, reactions: &mut Vec<Reaction>) {
        let mut at = 0;
        let mut acknowledge = Vec::new();
        while let Some((frame, length)) = native::decode(&self.plain[at..], native::BODY_MAX).expect("frames") {
            at += length;
            match frame {
                Frame::Welcome(_) => {
                    assert!(self.welcomed.is_none(), "welcomed twice");
                    self.welcomed = Some(now);
                }
                Frame::Ping(_) => reactions.push(Reaction::Answer),
                Frame::Pong(_) => {}
                Frame::Ack(id) => {
                    assert_eq!(id, self.sure_acknowledged + 1, "ACKs out of order");
                    assert!(id <= self.sure_held, "an ACK for a message that the backbone does not hold");
                    self.sure_acknowledged = id;
                }
                Frame::Message(message) => {
                    let number = u64::from_be_bytes(message.payload.try_into().expect("eight bytes"));
                    reactions.push(Reaction::Heard(number));
                    acknowledge.extend((message.id != 0).then_some(message.id));
                }
                Frame::Close(close) => self.code = Some(close.code),
                Frame::Hello(_) => panic!("a gateway says no HELLO"),
            }
        }
        self.plain.drain(..at);
        if self.plain.is_empty() {
            self.plain = Vec::new();
        }
        for id in acknowledge {
            self.say(&Frame::Ack(id));
        }
    }

    /// It is over: memory goes back, the account stays.
    pub fn settle(&mut self, fate: Fate) {
        if self.fate == Fate::Live {
            self.fate = if let Fate::Ended(None) = fate { Fate::Ended(self.code) } else { fate };
        }
        self.tls = Tls::Over;
        self.inbox = Vec::new();
        self.plain = Vec::new();
        self.out = Vec::new();
    }
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { device, speaks, fate, welcomed, beats_every, is_rude, has_moved, .. } = self;
        write!(f, "device {device}, {speaks:?}, {fate:?}, welcomed {welcomed:?}, beats {beats_every:?}")?;
        write!(f, ", rude {is_rude}, moved {has_moved}, {} sure sent", self.sure_sent)
    }
}

fn payload(kind: u8, peer: u32, number: u32) -> [u8; 9] {
    let mut payload = [kind; 9];
    payload[1..5].copy_from_slice(&peer.to_be_bytes());
    payload[5..].copy_from_slice(&number.to_be_bytes());
    payload
}

/// Who says it, with which number, and whether its arrival is promised.
pub fn read_payload(payload: &[u8]) -> (u32, u32, bool) {
    let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("four bytes"));
    assert!(payload.len() == 9 && (payload[0] == b'S' || payload[0] == b'L'), "a message that nobody sent");
    (number(1), number(5), payload[0] == b'S')
}
