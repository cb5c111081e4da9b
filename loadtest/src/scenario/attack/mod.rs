//! Connections that mean no good: each kind on a thread of its own, with a bounded number at a time.
//!
//! They are plain blocking sockets with deadlines, apart from the fleet: what they cost the harness is not what is measured.

mod mqtt;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pulsegate::codec::native::{Frame, Hello};
use pulsegate::tls::handshake::{ClientTls, Handshake, Progress};
use pulsegate::tls::record::{Alert, RecordLayer, Stage, next_record};
use serde::Serialize;

/// Each connection takes its next step so often.
const STEP: Duration = Duration::from_millis(200);
/// Nothing that a connection does by itself may take longer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Type, version and length.
const RECORD_HEADER: usize = 5;
/// Messages of a flood, in one step.
const FLOOD: usize = 200;
/// A peer that was told goodbye keeps its connection open for so many steps.
const KEPT_OPEN_STEPS: usize = 25;

/// A kind of attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// TCP, and not a byte.
    SilentTcp,
    /// A ClientHello, a byte at a time.
    SlowClientHello,
    /// A ClientHello, and nothing after the server's answer.
    HalfHandshake,
    /// Bytes by chance instead of TLS.
    Garbage,
    /// A record that says it is longer than any may be.
    OversizedRecord,
    /// TLS, and no word within it.
    SilentTls,
    /// HELLO, a byte at a time.
    SlowHello,
    /// A frame that says it is longer than allowed.
    OversizedFrame,
    /// Frames by chance.
    GarbageFrames,
    /// Key updates that each want an answer.
    KeyUpdateFlood,
    /// Warning alerts.
    WarningFlood,
    /// ClientHello after ClientHello within TLS.
    RenegotiationFlood,
    /// Connections that are torn down as soon as they stand, from one address.
    ConnectionFlood,
    /// HTTP to the TLS port, and the connection kept open after the answer.
    PlainHttp,
    /// MQTT: half a long CONNECT.
    HalfConnect,
    /// MQTT: deletions of retained messages that never were.
    Tombstones,
    /// MQTT: filters and topics of nearly as many levels as are allowed.
    DeepFilters,
    /// MQTT: SUBSCRIBE with many filters that each search all retained topics.
    WideSubscribe,
    /// MQTT: messages of QoS 2 that are never released.
    OpenExchanges,
    /// MQTT: a subscriber of everything that reads nothing.
    NeverReads,
    /// MQTT: many that use one client id and come back at once.
    Takeovers,
    /// MQTT: packets by chance.
    GarbagePackets,
}

impl Attack {
    /// Those below MQTT.
    pub const ALL: [Attack; 14] = [
        Attack::SilentTcp,
        Attack::SlowClientHello,
        Attack::HalfHandshake,
        Attack::Garbage,
        Attack::OversizedRecord,
        Attack::SilentTls,
        Attack::SlowHello,
        Attack::OversizedFrame,
        Attack::GarbageFrames,
        Attack::KeyUpdateFlood,
        Attack::WarningFlood,
        Attack::RenegotiationFlood,
        Attack::ConnectionFlood,
        Attack::PlainHttp,
    ];

    /// Those within MQTT, by peers that log in and mostly keep the rules.
    pub const MQTT: [Attack; 8] = [
        Attack::HalfConnect,
        Attack::Tombstones,
        Attack::DeepFilters,
        Attack::WideSubscribe,
        Attack::OpenExchanges,
        Attack::NeverReads,
        Attack::Takeovers,
        Attack::GarbagePackets,
    ];

    /// Whether it is for a listener that speaks MQTT.
    pub fn is_mqtt(self) -> bool {
        Attack::MQTT.contains(&self)
    }

    /// For people and for JSON.
    pub const fn label(self) -> &'static str {
        match self {
            Attack::SilentTcp => "silent_tcp",
            Attack::SlowClientHello => "slow_client_hello",
            Attack::HalfHandshake => "half_handshake",
            Attack::Garbage => "garbage",
            Attack::OversizedRecord => "oversized_record",
            Attack::SilentTls => "silent_tls",
            Attack::SlowHello => "slow_hello",
            Attack::OversizedFrame => "oversized_frame",
            Attack::GarbageFrames => "garbage_frames",
            Attack::KeyUpdateFlood => "key_update_flood",
            Attack::WarningFlood => "warning_flood",
            Attack::RenegotiationFlood => "renegotiation_flood",
            Attack::ConnectionFlood => "connection_flood",
            Attack::PlainHttp => "plain_http",
            Attack::HalfConnect => "half_connect",
            Attack::Tombstones => "tombstones",
            Attack::DeepFilters => "deep_filters",
            Attack::WideSubscribe => "wide_subscribe",
            Attack::OpenExchanges => "open_exchanges",
            Attack::NeverReads => "never_reads",
            Attack::Takeovers => "takeovers",
            Attack::GarbagePackets => "garbage_packets",
        }
    }

    /// Whether it needs an established TLS connection.
    fn is_within_tls(self) -> bool {
        self.is_mqtt()
            || matches!(
                self,
                Attack::SilentTls
                    | Attack::SlowHello
                    | Attack::OversizedFrame
                    | Attack::GarbageFrames
                    | Attack::KeyUpdateFlood
                    | Attack::WarningFlood
                    | Attack::RenegotiationFlood
            )
    }
}

/// What came of one kind of attack.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Outcome {
    /// Connections that stood.
    pub opened: u64,
    /// Connections that were refused, or failed before the attack began.
    pub refused: u64,
    /// Connections that the server ended.
    pub ended: u64,
    /// The longest that the server bore one, in seconds.
    pub longest_life_s: f64,
}

impl Outcome {
    /// Adds what came of another turn of the same kind.
    pub fn add(&mut self, other: &Outcome) {
        self.opened += other.opened;
        self.refused += other.refused;
        self.ended += other.ended;
        self.longest_life_s = self.longest_life_s.max(other.longest_life_s);
    }
}

/// What all attackers need.
pub struct Means {
    target: SocketAddr,
    tls: ClientTls,
    at_a_time: usize,
    /// How many there were so far: each has a number.
    numbers: AtomicU32,
    pub is_over: AtomicBool,
}

impl Means {
    /// So many attackers at a time against `target`.
    pub fn new(target: SocketAddr, tls: ClientTls, at_a_time: usize) -> Self {
        Self { target, tls, at_a_time, numbers: AtomicU32::new(0), is_over: AtomicBool::new(false) }
    }
}

/// Starts one kind of attack; it lasts until `is_over`.
pub fn start(attack: Attack, means: Arc<Means>) -> io::Result<JoinHandle<Outcome>> {
    let name = attack.label().to_owned();
    std::thread::Builder::new().name(name).spawn(move || {
        let mut outcome = Outcome::default();
        let mut slots: Vec<Option<Attacker>> = (0..means.at_a_time).map(|_| None).collect();
        while !means.is_over.load(Ordering::Relaxed) {
            let begun = Instant::now();
            for slot in &mut slots {
                if means.is_over.load(Ordering::Relaxed) {
                    break;
                }
                advance(attack, &means, slot, &mut outcome);
            }
            std::thread::sleep(STEP.saturating_sub(begun.elapsed()));
        }
        let lives = slots.iter().flatten().map(|attacker| attacker.since.elapsed().as_secs_f64());
        outcome.longest_life_s = lives.fold(outcome.longest_life_s, f64::max);
        outcome
    })
}

/// One connection of an attacker's.
struct Attacker {
    stream: TcpStream,
    records: Option<RecordLayer>,
    since: Instant,
    steps: usize,
    number: u32,
    /// What the socket did not take yet: nothing more is said before it is gone.
    unsent: Vec<u8>,
}

/// Opens what is not open, takes a step with what is, and notes what the server has ended.
fn advance(attack: Attack, means: &Means, slot: &mut Option<Attacker>, outcome: &mut Outcome) {
    let Some(attacker) = slot else {
        match open(attack, means) {
            Ok(attacker) => {
                outcome.opened += 1;
                *slot = Some(attacker);
            }
            Err(_) => outcome.refused += 1,
        }
        return;
    };
    if attack == Attack::ConnectionFlood {
        // The next step opens another one in its place.
        *slot = None;
        return;
    }
    let stepped = attacker.step(attack, &means.tls);
    if stepped.is_err() || attacker.is_ended(attack) {
        outcome.ended += 1;
        outcome.longest_life_s = outcome.longest_life_s.max(attacker.since.elapsed().as_secs_f64());
        *slot = None;
    }
}

fn open(attack: Attack, means: &Means) -> io::Result<Attacker> {
    let mut stream = TcpStream::connect_timeout(&means.target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let since = Instant::now();
    let records = if attack.is_within_tls() { Some(shake(&mut stream, &means.tls)?) } else { None };
    stream.set_nonblocking(true)?;
    let number = means.numbers.fetch_add(1, Ordering::Relaxed);
    Ok(Attacker { stream, records, since, steps: 0, number, unsent: Vec::new() })
}

/// A whole handshake; whatever comes behind it is of no interest.
fn shake(stream: &mut TcpStream, tls: &ClientTls) -> io::Result<RecordLayer> {
    let mut out = Vec::new();
    let mut handshake = Handshake::client(tls, &mut out).map_err(io::Error::other)?;
    let (mut input, mut buffer) = (Vec::new(), [0; 8_192]);
    loop {
        stream.write_all(&out)?;
        out.clear();
        let Some(length) = next_record(&input, Stage::Handshake).map_err(io::Error::other)? else {
            match stream.read(&mut buffer)? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                read => input.extend_from_slice(&buffer[..read]),
            }
            continue;
        };
        let progress = handshake.handle_record(&input[..length], &mut out).map_err(io::Error::other)?;
        input.drain(..length);
        if progress == Progress::Done {
            stream.write_all(&out)?;
            return Ok(handshake.finish(&mut Vec::new()).map_err(io::Error::other)?.records);
        }
    }
}

impl Attacker {
    /// Whether the server has ended the connection. What it says otherwise is not listened to.
    fn is_ended(&mut self, attack: Attack) -> bool {
        match attack {
            // Its writes fail when the server has had enough of it.
            Attack::NeverReads => return false,
            Attack::PlainHttp if self.steps < KEPT_OPEN_STEPS => return false,
            _ => {}
        }
        let mut buffer = [0; 8_192];
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) => return error.kind() != ErrorKind::WouldBlock,
            }
        }
    }

    /// Says what comes next, once everything before was taken.
    fn step(&mut self, attack: Attack, tls: &ClientTls) -> io::Result<()> {
        if self.unsent.is_empty() {
            let mut wire = Vec::new();
            self.append_step(attack, tls, &mut wire)?;
            self.steps += 1;
            self.unsent = wire;
        }
        match self.stream.write(&self.unsent) {
            Ok(written) => drop(self.unsent.drain(..written)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn append_step(&mut self, attack: Attack, tls: &ClientTls, wire: &mut Vec<u8>) -> io::Result<()> {
        let step = self.steps;
        if attack.is_mqtt() {
            let mut plain = Vec::new();
            mqtt::plaintext(attack, self.number, step, &mut plain);
            return self.say(&plain, wire);
        }
        match attack {
            Attack::SilentTcp | Attack::SilentTls | Attack::ConnectionFlood => {}
            Attack::SlowClientHello => {
                // Each time another one, of which each byte is of the same length and form as any other's.
                let mut hello = Vec::new();
                Handshake::client(tls, &mut hello).map_err(io::Error::other)?;
                wire.extend_from_slice(hello.get(step..=step).unwrap_or_default());
            }
            Attack::HalfHandshake => {
                if step == 0 {
                    Handshake::client(tls, wire).map_err(io::Error::other)?;
                }
            }
            Attack::Garbage => wire.extend((0..256).map(|_| fastrand::u8(..))),
            Attack::PlainHttp => {
                if step == 0 {
                    wire.extend_from_slice(b"GET / HTTP/1.0\r\n\r\n");
                }
            }
            Attack::OversizedRecord => wire.extend_from_slice(&[0x16, 3, 1, 0xff, 0xff, 1]),
            Attack::SlowHello => {
                let hello = hello();
                self.say(hello.get(step..=step).unwrap_or_default(), wire)?;
            }
            Attack::OversizedFrame => self.say(&[0x05, 0xff, 0xff], wire)?,
            Attack::GarbageFrames => {
                let frames: Vec<u8> = (0..256).map(|_| fastrand::u8(..)).collect();
                self.say(&frames, wire)?;
            }
            Attack::KeyUpdateFlood => {
                let records = self.records.as_mut().expect("this attack is within TLS");
                let mut burst = records.burst();
                (0..FLOOD).for_each(|_| {
                    burst.update_keys(true, wire);
                });
            }
            Attack::WarningFlood => {
                let records = self.records.as_mut().expect("this attack is within TLS");
                let mut burst = records.burst();
                (0..FLOOD).for_each(|_| burst.alert(Alert::UserCanceled, wire));
            }
            Attack::RenegotiationFlood => {
                let mut hello = Vec::new();
                Handshake::client(tls, &mut hello).map_err(io::Error::other)?;
                let records = self.records.as_mut().expect("this attack is within TLS");
                let mut burst = records.burst();
                // Without the header of the record that it came in.
                (0..FLOOD).for_each(|_| burst.handshake_message(&hello[RECORD_HEADER..], wire));
            }
            _ => unreachable!("what MQTT attackers say was appended above"),
        }
        Ok(())
    }

    fn say(&mut self, plain: &[u8], wire: &mut Vec<u8>) -> io::Result<()> {
        let records = self.records.as_mut().expect("this attack is within TLS");
        records.burst().seal(plain, wire).map_err(io::Error::other)
    }
}

fn hello() -> Vec<u8> {
    let mut hello = Vec::new();
    let id = "x".repeat(pulsegate::codec::native::ID_MAX);
    Frame::Hello(Hello { heartbeat_ms: 0, id: &id, token: &[7; 1_000] }).encode(&mut hello);
    hello
}
