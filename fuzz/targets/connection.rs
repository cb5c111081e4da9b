//! A shard, and whatever can happen to it: connections that come, go, move, speak nonsense within TLS and without, in an
//! order that the input chooses. Its invariants hold after each step.
//!
//! Input: steps of `what, which, length, bytes …`.
#![no_main]

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use libfuzzer_sys::fuzz_target;
use pulsegate_fuzz::config::{self, Authenticator, Heartbeat, Identity, IdentityFrom, Limits, Listener, Mqtt, Protocol, Raw};
use pulsegate_fuzz::connection::{Input, ListenerSettings};
use pulsegate_fuzz::link::{
    AuthAnswer, Choice, CloseReason, ConnectionId, Credit, Downlink, Exchange, Home, ListenerId, Passed, ShardMessage, Publication, Receipt, SessionId, WorkerId,
};
use pulsegate_fuzz::broker;
use pulsegate_fuzz::shard::{Plan, Setup, Shard, Transmit};
use pulsegate_fuzz::time::{Moment, Tick};
use pulsegate_fuzz::tls::certs::development;
use pulsegate_fuzz::tls::handshake::{ClientAuth, ServerOptions, ServerTls};
use pulsegate_fuzz::tls::record::{DirectionSecrets, RecordLayer, Role, Suite};

fn limits() -> Limits {
    Limits {
        frame_bytes: 300,
        read_bytes: 600,
        outbox_bytes: 2_000,
        packet_bytes: 300,
        session_inflight: 3,
        session_messages: 4,
        session_bytes: 100,
        session_subscriptions: 3,
        topic_levels: 4,
        retained_messages: 2,
        ..Limits::default()
    }
}

fn settings() -> Arc<[ListenerSettings]> {
    static RULES: OnceLock<Arc<[ListenerSettings]>> = OnceLock::new();
    Arc::clone(RULES.get_or_init(|| {
        let directory = std::env::temp_dir().join(format!("pulsegate-fuzz-{}", std::process::id()));
        let certs = development::ensure(&directory, &[], SystemTime::now()).expect("certificates");
        let pair = [(&*certs.server.cert, &*certs.server.key)];
        let options = ServerOptions { certificates: &pair, client_auth: ClientAuth::Off, alpn: &[], ..ServerOptions::default() };
        let (tls, _) = ServerTls::load(&options).expect("a server's TLS");
        std::fs::remove_dir_all(&directory).expect("what was made just now");
        let raw = Raw { heartbeat: b"hb".to_vec(), reply: b"ok".to_vec(), probe: b"?".to_vec() };
        let listener = |protocol, tokens: bool| Listener {
            name: "fuzz".into(),
            listen: ([127, 0, 0, 1], 0).into(),
            protocol,
            transport: config::Transport::Tls,
            proxy_protocol: Vec::new(),
            tls: config::Tls::default(),
            heartbeat: Heartbeat { interval: Duration::from_secs(5), timeout: Duration::from_secs(1), retries: 1, ..Heartbeat::default() },
            identity: Identity { from: IdentityFrom::Hello, authenticators: if tokens { vec![Authenticator::secrets("tokens".into(), "identity.token_file")] } else { Vec::new() } },
            rates: config::Rates::default(),
        };
        let settings =
            |id, protocol, tokens| ListenerSettings::new(ListenerId(id), &listener(protocol, tokens), &limits(), tls.clone());
        let open = || vec!["#".to_owned()];
        let mqtt = Mqtt { publish: open(), subscribe: open(), ..Mqtt::default() };
        [
            settings(0, Protocol::Native, false),
            settings(1, Protocol::Raw(raw), false),
            settings(2, Protocol::Native, true),
            settings(3, Protocol::Mqtt(mqtt), false),
        ]
        .into()
    }))
}

/// A record layer and its peer's.
fn layers() -> (RecordLayer, RecordLayer) {
    let suite = Suite::Tls13Aes128GcmSha256;
    let secrets = |byte| DirectionSecrets {
        secret: &[1; 32],
        key: &[3; 16],
        iv: if byte == 0 { &[5; 12] } else { &[6; 12] },
        sequence: 0,
    };
    (
        RecordLayer::new(Role::Server, suite, &secrets(0), &secrets(1)),
        RecordLayer::new(Role::Client, suite, &secrets(1), &secrets(0)),
    )
}

/// A shard and the clients whose keys are known, by slot.
struct Desk {
    shard: Shard,
    exchange: Arc<Exchange>,
    now: Moment,
    input: Input,
    peers: HashMap<u32, RecordLayer>,
    seen: Vec<ConnectionId>,
}

impl Desk {
    fn new() -> Self {
        let exchange = Arc::new(Exchange::new(2));
        let setup = Setup {
            worker: WorkerId(0),
            home: Home::new([0; 16], 2),
            settings: settings(),
            handshakes: 2,
            uplink_length: 6,
            seed: 1,
            exchange: Arc::clone(&exchange),
            sessions: broker::Bounds::of(&limits(), 2),
        };
        Self {
            shard: Shard::new(setup, Tick(0)),
            exchange,
            now: Moment::from_micros(0),
            input: Input::new(limits().frame_bytes, limits().read_bytes),
            peers: HashMap::new(),
            seen: Vec::new(),
        }
    }

    /// The slot that the input means, if there is somebody.
    fn slot(&self, which: u8) -> Option<u32> {
        let slot = u32::from(which) % (self.shard.slots() as u32).max(1);
        self.shard.holds(slot).then_some(slot)
    }

    fn read(&mut self, slot: u32, mut bytes: &[u8]) {
        while self.shard.load_input(slot, &mut self.input) {
            if bytes.is_empty() {
                return self.shard.handle_nothing(slot);
            }
            let space = self.input.space();
            let count = bytes.len().min(space.len());
            space[..count].copy_from_slice(&bytes[..count]);
            bytes = &bytes[count..];
            self.input.filled(count);
            self.shard.handle_input(slot, &mut self.input, count, self.now);
        }
    }

    fn arrive(&mut self, which: u8, bytes: &[u8]) {
        let (server, client) = layers();
        // No address; version 2, listener, named by HELLO, TLS alone, interval, connected at the beginning.
        let mut image = vec![0, 0, 2, which % 4, 1, 0, 0, 50, 0, 0, 0, 0];
        image.extend_from_slice(&[1, b'a' + which / 4 % 4]);
        for part in [&bytes[..bytes.len() / 2], &[], &bytes[bytes.len() / 2..], &[]] {
            image.extend_from_slice(&(part.len() as u32).to_be_bytes());
            image.extend_from_slice(part);
        }
        server.encode(&mut image);
        // No client certificate.
        image.extend_from_slice(&[0; 20]);
        if let Ok(slot) = self.shard.unpack(&image, self.now) {
            self.peers.insert(slot, client);
            self.shard.handle_arrival(slot, self.now);
        }
    }

    fn step(&mut self, what: u8, which: u8, bytes: &[u8]) {
        if what >= 240 {
            return self.messages(what, which, bytes);
        }
        let slot = self.slot(which);
        match what % 20 {
            0 => drop(self.shard.handle_accept(ListenerId(which % 4), self.now)),
            1 => {
                if let Some(slot) = slot {
                    match self.shard.plan_read(slot) {
                        Plan::Read | Plan::ReadLater => self.read(slot, bytes),
                        Plan::Leave => {}
                    }
                }
            }
            2 => {
                if let Some(slot) = self.shard.next_waiting() {
                    self.read(slot, bytes);
                }
            }
            3 => self.arrive(which, &[]),
            4 => self.arrive(which, bytes),
            // What any bytes are worth as an image.
            5 => {
                if let Ok(slot) = self.shard.unpack(bytes, self.now) {
                    self.shard.handle_arrival(slot, self.now);
                }
            }
            6 | 7 | 8 => {
                if let Some(slot) = slot
                    && let Some(peer) = self.peers.get_mut(&slot)
                    && self.shard.plan_read(slot) == Plan::Read
                {
                    let mut wire = Vec::new();
                    if what % 20 == 8 {
                        peer.burst().update_keys(true, &mut wire);
                    }
                    peer.burst().seal(bytes, &mut wire).expect("young keys");
                    self.read(slot, &wire);
                }
            }
            9 => {
                if let Some(slot) = slot {
                    self.shard.handle_eof(slot, self.now);
                }
            }
            10 => {
                if let Some(slot) = slot {
                    self.shard.handle_reset(slot, self.now);
                }
            }
            11 => {
                let mut ready = VecDeque::new();
                self.shard.take_ready(&mut ready);
                for slot in ready {
                    if self.shard.load_input(slot, &mut self.input) {
                        self.shard.handle_input(slot, &mut self.input, 0, self.now);
                    }
                }
            }
            12 => self.expire(which),
            13 => self.flush(which),
            14 => self.reap(),
            15 => self.moves(which),
            16 => self.command(which, bytes),
            17 => {
                self.shard.uplink().clear();
                self.shard.resume_paused();
            }
            18 => {
                if let Some(slot) = slot {
                    let id = self.shard.id(slot);
                    self.shard.handle_authenticated(id, if which > 127 { AuthAnswer::plain() } else { AuthAnswer::Rejected(CloseReason::TokenRejected, "".into()) }, self.now);
                    self.shard.handle_settled(Receipt::Connection(id, 7), true, self.now);
                    self.seen.push(id);
                }
            }
            _ => {
                if let Some(&id) = self.seen.get(usize::from(which)) {
                    self.shard.handle_authenticated(id, AuthAnswer::plain(), self.now);
                    self.shard.handle_settled(Receipt::Connection(id, 7), true, self.now);
                    if !self.shard.is_current(id) {
                        self.shard.handle_moved(id);
                        self.shard.handle_move_refused(id, self.now);
                    }
                }
            }
        }
    }

    /// What happens to sessions without their devices.
    fn messages(&mut self, what: u8, which: u8, bytes: &[u8]) {
        let worker = WorkerId(u16::from(which & 1));
        let member = SessionId { worker, index: u32::from(which >> 1 & 3), generation: u32::from(which >> 3) };
        let group: Arc<str> = ["$share/g/t", "$share/h/#", "nothing"][usize::from(which % 3)].into();
        let publication = Publication {
            topic: ["t", "t/u", "v"][usize::from(which % 3)].into(),
            payload: bytes.to_vec().into(),
            qos: which % 3,
            retain: which & 8 != 0,
            properties: Box::default(),
            expires: (which & 16 != 0).then(|| self.now.plus(Duration::from_secs(1))),
            // As the other shard was given it: what shards tell each other is right, and what is not panics.
            stamp: self.exchange.next_stamp(WorkerId(1)),
            origin: 0,
            owner: u32::from(which),
            publisher: None,
        };
        let (options, identifier) = (which % 3, u32::from(which));
        // Those of this shard join by themselves.
        let stranger = SessionId { worker: WorkerId(1), ..member };
        let peer = match what % 16 {
            0..4 => return self.shard.deliver(self.now),
            // What other shards answer is asked for by number: what nobody asked for is a fault of ours, and panics.
            4..7 => return self.answer_outgoing(which),
            7..10 => return self.shard.handle_publish(9, publication),
            10 => ShardMessage::Join { group, member: stranger, options, identifier, is_online: which & 32 != 0, waits: 1 },
            11 => ShardMessage::Leave { group, member: stranger },
            12..15 => {
                let choice = (what % 16 == 12).then(|| Box::new(Choice { group, member, options, identifier }));
                let passed = Passed { publication: Arc::new(publication), token: identifier, choice };
                return self.shard.handle_passed(WorkerId(1), vec![passed]);
            }
            _ => ShardMessage::Joined { member, waits: identifier },
        };
        self.shard.handle_shard_messages(WorkerId(1), vec![peer]);
    }

    /// The other shard takes what this one passes on, or sends it back, and returns the credit.
    fn answer_outgoing(&mut self, which: u8) {
        for passed in self.shard.take_outgoing(WorkerId(1)).passed {
            let mut credit = [Credit::default(); 2];
            credit[passed.class().index()] = Credit { messages: 1, bytes: passed.publication.bytes() };
            let Passed { publication, token, choice } = passed;
            let answer = match choice {
                Some(choice) if which & 1 == 0 => ShardMessage::Returned { token, choice, publication },
                _ => ShardMessage::Taken { token, is_refused: which & 2 == 0 },
            };
            let answer = (token != 0 || matches!(answer, ShardMessage::Returned { .. })).then_some(answer);
            self.shard.handle_shard_messages(WorkerId(1), answer.into_iter().chain([ShardMessage::Credit(credit)]).collect());
        }
    }

    fn expire(&mut self, which: u8) {
        self.now = self.now.plus(Duration::from_millis(u64::from(which) * 100));
        let mut suspects = Vec::new();
        self.shard.handle_deadlines(self.now.tick(), self.now, 3, &mut suspects);
        for slot in suspects {
            if self.shard.load_input(slot, &mut self.input) {
                self.shard.handle_nothing(slot);
            }
            self.shard.recheck_suspect(slot, self.now);
        }
    }

    /// Some sockets take all, some a part, some nothing.
    fn flush(&mut self, which: u8) {
        let mut transmit = Transmit::default();
        self.shard.take_transmit(&mut transmit);
        for (slot, bytes) in transmit.segments() {
            let taken = match which % 3 {
                0 => bytes.len(),
                1 => bytes.len() / 2,
                _ => 0,
            };
            let waits = !self.shard.unsent(slot).is_empty();
            let kept = if waits { bytes } else { &bytes[taken..] };
            if !kept.is_empty() {
                self.shard.handle_unsent(slot, kept, self.now);
            }
        }
        for slot in 0..self.shard.slots() as u32 {
            if which > 127 && self.shard.holds(slot) && !self.shard.unsent(slot).is_empty() {
                let count = self.shard.unsent(slot).len().div_ceil(2);
                self.shard.handle_sent(slot, count);
            }
        }
    }

    /// Slots are freed when all was flushed, as at the end of a turn.
    fn reap(&mut self) {
        self.flush(0);
        while let Some(slot) = self.shard.next_closed() {
            self.shard.reap(slot);
            self.peers.remove(&slot);
        }
    }

    fn moves(&mut self, which: u8) {
        while let Some((id, home)) = self.shard.next_move() {
            assert_eq!(home, WorkerId(1));
            let mut image = Vec::new();
            self.shard.pack(id, &mut image);
            if which & 1 == 0 {
                self.shard.handle_moved(id);
            } else {
                self.shard.handle_move_refused(id, self.now);
            }
            self.seen.push(id);
        }
    }

    fn command(&mut self, which: u8, bytes: &[u8]) {
        let device = ["a", "b", "c", "d"][usize::from(which % 4)];
        let downlink = Downlink { topic: "t".into(), payload: bytes.to_vec().into() };
        match which / 4 % 4 {
            0 => self.shard.handle_send(1, device, &downlink, true, self.now),
            1 => self.shard.handle_send(2, device, &downlink, false, self.now),
            2 => self.shard.handle_disconnect(3, device, self.now),
            _ => {
                self.shard.shut_down(0, 2, 1, &(1..=5), self.now);
            }
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let mut input = input;
    let mut desk = Desk::new();
    while let Some((&[what, which, length], rest)) = input.split_first_chunk() {
        let (bytes, rest) = rest.split_at(rest.len().min(usize::from(length) * 2));
        input = rest;
        desk.step(what, which, bytes);
        desk.shard.check_invariants();
    }
});
