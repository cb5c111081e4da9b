//! One connection in memory, against a client in memory. The harness does what a shard does with each step.

use super::fixtures::{Client, End, Fixtures, ReceivedFrame};
use super::*;
use crate::codec::native::{self, CloseCode, Frame, Hello};
use crate::config::{ClientAuth, Identity, IdentityFrom, Limits};
use crate::link::{Grant, Refusal};
use crate::time::TICK_MICROS;
use crate::tls::handshake::Versions;
use crate::tls::record::{Alert, RecordError};

/// One connection and all that it is lent.
struct ConnectionHarness {
    connection: Connection,
    settings: ListenerSettings,
    now: Moment,
    input: Input,
    wire: Vec<u8>,
    plain: Vec<u8>,
    counters: Counters,
    uplink: Vec<WorkerEvent>,
    uplink_length: usize,
    sessions: Broker,
    /// A token that waits to be checked.
    token: Option<bytes::Bytes>,
    /// The reason for which it has ended.
    ended: Option<Termination>,
}

impl ConnectionHarness {
    fn new(settings: ListenerSettings) -> Self {
        let Limits { frame_bytes, read_bytes, .. } = Fixtures::limits();
        let now = Moment::from_micros(TICK_MICROS);
        let mut connection = Connection::accept(ListenerId(0), 1, now.tick());
        connection.begin_waiting();
        connection.call();
        Self {
            connection,
            settings,
            now,
            input: Input::new(frame_bytes, read_bytes),
            wire: Vec::new(),
            plain: Vec::new(),
            counters: Counters::new(CloseReason::COUNT, Refusal::COUNT),
            uplink: Vec::new(),
            uplink_length: 100,
            sessions: Fixtures::sessions(),
            token: None,
            ended: None,
        }
    }

    fn with<R>(&mut self, act: impl FnOnce(&mut Connection, &ListenerSettings, &mut Context) -> R) -> R {
        let pool = std::sync::Arc::clone(self.sessions.pool());
        let mut context = Context {
            slot: ConnectionSlot(0),
            now: self.now,
            wire: &mut self.wire,
            plain: &mut self.plain,
            counters: &mut self.counters,
            pool: &pool,
            broker: &mut self.sessions,
            due_wills: &mut Vec::new(),
            uplink: &mut self.uplink,
            uplink_length: self.uplink_length,
            way_up_moves: true,
            grant: None,
            trace: None,
        };
        let result = act(&mut self.connection, &self.settings, &mut context);
        assert!(self.plain.is_empty(), "something was said and not sealed");
        result
    }

    /// Bytes arrive, and are looked at as a shard would.
    fn receive(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.ended.is_none() && self.connection.wants_read() {
            self.connection.load(&mut self.input);
            let space = self.input.space();
            let count = bytes.len().min(space.len());
            space[..count].copy_from_slice(&bytes[..count]);
            self.input.filled(count);
            bytes = &bytes[count..];
            let _ = self.connection.handle_heard(self.now, &self.settings, &mut self.counters);
            let settings = std::slice::from_ref(&self.settings);
            if self.connection.is_called() && !self.connection.begin_handshake(&self.input, settings, self.now) {
                // Less than a ClientHello: it waits for more, and comes to its turn again.
                self.connection.save(&self.input);
                self.connection.begin_waiting();
                self.connection.call();
                continue;
            }
            self.handle_input();
        }
    }

    fn handle_input(&mut self) {
        let mut input = std::mem::replace(&mut self.input, Input::new(0, 0));
        loop {
            match self.with(|connection, settings, cx| connection.handle_input(&mut input, settings, cx)) {
                Step::Wait => break,
                // Whether those may come is the shard's question.
                Step::Established(_) | Step::Announced(_) => {}
                Step::Named => self.named(),
                Step::Verify(credentials) => {
                    self.token = Some(credentials.secret);
                    break;
                }
                Step::Paused | Step::Yielding | Step::Held | Step::Unfinished => {
                    self.connection.pause(&input);
                    self.input = input;
                    return;
                }
                Step::End(termination) => {
                    self.input = input;
                    return self.end(termination);
                }
            }
        }
        self.connection.save(&input);
        self.input = input;
    }

    fn named(&mut self) {
        if self.connection.device().is_empty() {
            self.connection.set_generated_id("generated".into());
        }
        self.with(|connection, settings, cx| connection.begin_device(2, settings, 0, cx)).unwrap();
    }

    fn end(&mut self, termination: Termination) {
        self.with(|connection, settings, cx| connection.end(&termination, settings, cx));
        self.ended = Some(termination);
    }

    fn reason(&self) -> Option<CloseReason> {
        self.ended.as_ref().map(|termination| termination.reason)
    }

    /// Everything that waits goes both ways until nothing moves.
    fn exchange(&mut self, client: &mut Client) {
        while !client.out.is_empty() || !self.wire.is_empty() {
            client.receive(&std::mem::take(&mut self.wire));
            self.receive(&std::mem::take(&mut client.out));
        }
    }

    fn payloads(&self) -> Vec<&[u8]> {
        let messages = self.uplink.iter().filter_map(|event| match event {
            WorkerEvent::Message(message) => Some(&message.payload[..]),
            _ => None,
        });
        messages.collect()
    }

    /// What it keeps on the heap besides its id.
    fn is_bare(&self) -> bool {
        self.connection.buffers.is_none()
    }
}

/// A harness and a client whose handshake is done.
fn established(settings: ListenerSettings, client: &crate::tls::handshake::ClientTls) -> (ConnectionHarness, Client) {
    let mut harness = ConnectionHarness::new(settings);
    let mut client = Client::new(client);
    harness.exchange(&mut client);
    (harness, client)
}

fn device(versions: Versions) -> (ConnectionHarness, Client) {
    let fixtures = Fixtures::new();
    let (mut harness, mut client) =
        established(fixtures.settings(0, &Fixtures::native()), &fixtures.client(None, versions));
    client.say_hello("meter-1");
    harness.exchange(&mut client);
    assert!(matches!(client.frames()[..], [ReceivedFrame::Welcome(_)]));
    (harness, client)
}

fn close(code: CloseCode) -> impl Fn(&ReceivedFrame) -> bool {
    move |said| matches!(said, ReceivedFrame::Close(found, ..) if *found == code)
}

#[test]
fn a_native_life_in_both_versions() {
    for versions in [Versions::Tls13, Versions::Tls12] {
        let (mut harness, mut client) = device(versions);
        assert!(harness.connection.is_device() && harness.is_bare());
        let (version, _, identity) = harness.connection.facts().unwrap();
        assert_eq!((version == "TLSv1.3", identity), (versions == Versions::Tls13, "hello"));
        client.say(&Frame::Ping(b"12345678"));
        client.say_message(7, b"up");
        client.say_message(0, b"up, unacknowledged");
        harness.exchange(&mut client);
        assert_eq!(harness.payloads(), [&b"up"[..], b"up, unacknowledged"]);
        harness.with(|connection, settings, cx| connection.handle_message_accepted(7, settings, cx)).unwrap();
        let due = harness.connection.liveness().last_heard().plus(100);
        harness.now = due.start_near(harness.now);
        let probed = harness.with(|connection, settings, cx| connection.handle_deadline(due, settings, cx)).unwrap();
        assert!(matches!(probed, Due::Probe(_)));
        harness.exchange(&mut client);
        assert_eq!(
            client.frames(),
            [ReceivedFrame::Pong(b"12345678".to_vec()), ReceivedFrame::Ack(7), ReceivedFrame::Ping]
        );
        client.say(&Frame::Pong(b""));
        harness.exchange(&mut client);
        assert!(!harness.connection.liveness().is_probed() && harness.is_bare());
        client.records.as_mut().unwrap().burst().close_notify(&mut client.out);
        harness.exchange(&mut client);
        assert_eq!((harness.reason(), client.end.take()), (Some(CloseReason::PeerClosed), Some(End::CloseNotify)));
        assert!(harness.connection.is_lingering(), "what was said to it arrives");
    }
}

#[test]
fn a_raw_life_named_by_a_certificate_or_by_us() {
    let fixtures = Fixtures::new();
    let mut listener = Fixtures::raw();
    listener.tls.client_auth = ClientAuth::Optional;
    for (certificate, id) in [(Some("pump-3"), "pump-3"), (None, "generated")] {
        let (mut harness, mut client) =
            established(fixtures.settings(0, &listener), &fixtures.client(certificate, Versions::Both));
        assert!(harness.connection.is_device());
        assert_eq!(harness.connection.device(), id);
        for bytes in [&b"heartbeat"[..], b"heartbeatheartbeat", b"heartbeat!", &[7; 5_000]] {
            client.say_bytes(bytes);
        }
        harness.exchange(&mut client);
        // One reply for a record, however many heartbeats it holds.
        assert_eq!(client.heard, b"okok");
        let payloads = harness.payloads();
        assert_eq!(payloads.iter().map(|payload| payload.len()).collect::<Vec<_>>(), [10, 4_096, 904]);
        assert!(harness.is_bare());
        harness.end(Termination::new(CloseReason::Shutdown));
        harness.exchange(&mut client);
        assert_eq!(client.end, Some(End::CloseNotify));
        assert_eq!(client.heard, b"okok", "the raw protocol has no words for it");
    }
}

/// However the stream is cut, it means the same.
#[test]
fn bytes_split_at_every_position() {
    let (mut harness, mut client) = device(Versions::Tls13);
    client.out.clear();
    client.say(&Frame::Ping(b"a"));
    let mut both = Vec::new();
    Frame::Ping(b"b").encode(&mut both);
    Frame::Message(native::Message { id: 1, topic: "t", payload: b"payload" }).encode(&mut both);
    // Two frames, cut in the middle of the second by the end of a record.
    client.say_bytes(&both[..both.len() - 4]);
    client.say_bytes(&both[both.len() - 4..]);
    let stream = std::mem::take(&mut client.out);

    // One stream can be received once only; so each cut is tried on a connection of the same form.
    let mut image = Vec::new();
    harness.connection.begin_move();
    harness.connection.pack(&mut image);
    for cut in 0..=stream.len() {
        harness.connection = Connection::unpack(&image, 9, harness.now.tick()).unwrap();
        harness.named();
        harness.wire.clear();
        harness.uplink.clear();
        harness.receive(&stream[..cut]);
        let is_whole = cut == 0 || cut == stream.len();
        assert!(!is_whole || harness.is_bare(), "cut at {cut}");
        harness.receive(&stream[cut..]);
        assert_eq!(harness.payloads(), [b"payload"], "cut at {cut}");
        assert!(harness.is_bare(), "cut at {cut}");
    }
    for byte in stream.chunks(1) {
        harness.receive(byte);
    }
    assert_eq!(harness.reason(), Some(CloseReason::TlsError), "the same records again do not authenticate");
}

#[test]
fn a_handshake_split_at_every_position() {
    let fixtures = Fixtures::new();
    let (settings, tls) = (fixtures.settings(0, &Fixtures::native()), fixtures.client(None, Versions::Tls13));
    let mut harness = ConnectionHarness::new(settings);
    let mut client = Client::new(&tls);
    while client.records.is_none() {
        for byte in std::mem::take(&mut client.out) {
            harness.receive(&[byte]);
        }
        for byte in std::mem::take(&mut harness.wire) {
            client.receive(&[byte]);
        }
    }
    client.say_hello("a");
    for byte in std::mem::take(&mut client.out) {
        harness.receive(&[byte]);
    }
    assert!(harness.connection.is_device() && harness.is_bare());
}

/// What a HELLO in these words comes to: the reason for an end, or the heartbeat that the device is told.
fn hello(certificate: Option<&str>, identity: IdentityFrom, tokens: bool, hello: Hello) -> Result<u32, CloseReason> {
    let fixtures = Fixtures::new();
    let mut listener = Fixtures::native();
    listener.identity = Identity { from: identity, authenticators: Fixtures::tokens(tokens) };
    listener.tls.client_auth = ClientAuth::Optional;
    let (mut harness, mut client) =
        established(fixtures.settings(0, &listener), &fixtures.client(certificate, Versions::Tls13));
    if harness.ended.is_none() {
        client.say(&Frame::Hello(hello));
        harness.exchange(&mut client);
    }
    if let Some(token) = harness.token.take() {
        assert!(harness.connection.is_verifying() && !harness.connection.wants_read());
        let answer = if &*token == b"right" {
            harness.connection.handle_authenticated(&Grant::default())
        } else {
            Step::End(Termination::new(CloseReason::TokenRejected))
        };
        match answer {
            Step::Named => harness.named(),
            Step::End(termination) => harness.end(termination),
            step => panic!("{step:?}"),
        }
    }
    harness.exchange(&mut client);
    match client.frames()[..] {
        [ReceivedFrame::Welcome(welcome)] => Ok(welcome.heartbeat_ms),
        [ReceivedFrame::Close(..)] => Err(harness.reason().unwrap()),
        ref said => panic!("{said:?}"),
    }
}

#[test]
fn a_hello_must_fit_certificate_and_token() {
    use CloseReason::{IdentityMismatch, IdentityMissing, TokenRejected};
    use IdentityFrom::{CertCn, CertSanDns, CertSanUri, Hello as ByHello};
    let named = |id, token| Hello { heartbeat_ms: 0, id, token };
    assert_eq!(hello(None, ByHello, false, named("a", b"")), Ok(10_000));
    assert_eq!(hello(Some("a"), CertCn, false, named("a", b"")), Ok(10_000));
    assert_eq!(hello(Some("a"), CertCn, false, named("b", b"")), Err(IdentityMismatch));
    assert_eq!(hello(Some("a"), CertSanDns, false, named("device.test", b"")), Ok(10_000));
    assert_eq!(hello(Some("a"), CertSanUri, false, named("a", b"")), Err(IdentityMissing));
    assert_eq!(hello(None, CertCn, false, named("a", b"")), Err(IdentityMissing));
    assert_eq!(hello(None, ByHello, true, named("a", b"")), Err(TokenRejected));
    assert_eq!(hello(None, ByHello, true, named("a", b"wrong")), Err(TokenRejected));
    assert_eq!(hello(None, ByHello, true, named("a", b"right")), Ok(10_000));
    assert_eq!(hello(Some("a"), CertCn, true, named("a", b"right")), Ok(10_000));
}

#[test]
fn a_wanted_heartbeat_is_held_within_bounds_and_rounded_up() {
    let wanted =
        |heartbeat_ms| hello(None, IdentityFrom::Hello, false, Hello { heartbeat_ms, id: "a", token: b"" }).unwrap();
    for (asked, told) in [(0, 10_000), (1, 1_000), (1_001, 1_100), (25_000, 25_000), (u32::MAX, 600_000)] {
        assert_eq!(wanted(asked), told, "{asked}");
    }
}

#[test]
fn frames_have_their_time() {
    let fixtures = Fixtures::new();
    let (settings, tls) = (|| fixtures.settings(0, &Fixtures::native()), fixtures.client(None, Versions::Tls13));
    let message = Frame::Message(native::Message { id: 1, topic: "", payload: b"" });
    for frame in [Frame::Ping(b""), Frame::Pong(b""), message, Frame::Ack(1)] {
        let (mut harness, mut client) = established(settings(), &tls);
        client.say(&frame);
        harness.exchange(&mut client);
        assert_eq!(harness.reason(), Some(CloseReason::ProtocolError), "{frame:?}");
        assert!(client.frames().iter().all(close(CloseCode::PROTOCOL_ERROR)));
        assert!(harness.uplink.is_empty());
    }
    let welcome = native::Welcome { heartbeat_ms: 1, timeout_ms: 1, retries: 0, body_max: 1 };
    for frame in [Frame::Welcome(welcome), Frame::Hello(Hello { heartbeat_ms: 0, id: "a", token: b"" })] {
        let (mut harness, mut client) = device(Versions::Tls13);
        client.say(&frame);
        harness.exchange(&mut client);
        assert_eq!(harness.reason(), Some(CloseReason::ProtocolError), "{frame:?}");
    }
    // A device may say goodbye at any time, and may be answered before what it did wrong.
    let (mut harness, mut client) = established(settings(), &tls);
    client.say(&Frame::Close(native::Close { code: CloseCode::NORMAL, retry_after_ms: 0, reason: "" }));
    harness.exchange(&mut client);
    assert_eq!(harness.reason(), Some(CloseReason::DeviceClosed));
    let (mut harness, mut client) = device(Versions::Tls13);
    let mut bytes = Vec::new();
    Frame::Ping(b"1").encode(&mut bytes);
    bytes.push(0xee);
    client.say_bytes(&bytes);
    harness.exchange(&mut client);
    assert!(matches!(
        &client.frames()[..],
        [ReceivedFrame::Pong(_), ReceivedFrame::Close(CloseCode::PROTOCOL_ERROR, 0, _)]
    ));
}

#[test]
fn each_end_is_told_in_its_own_way() {
    use CloseReason as Reason;
    for (reason, code) in [
        (Reason::TakenOver, Some(CloseCode::TAKEN_OVER)),
        (Reason::Shutdown, Some(CloseCode::GOING_AWAY)),
        (Reason::Expired, Some(CloseCode::EXPIRED)),
        (Reason::HelloTimeout, Some(CloseCode::HELLO_TIMEOUT)),
        (Reason::TokenUnanswered, Some(CloseCode::TRY_LATER)),
        (Reason::HomeFull, Some(CloseCode::TRY_LATER)),
        (Reason::PoolFull, Some(CloseCode::TRY_LATER)),
        (Reason::Requested, Some(CloseCode::REQUESTED)),
        (Reason::PeerClosed, None),
    ] {
        let (mut harness, mut client) = device(Versions::Tls13);
        harness.end(Termination::new(reason).with_retry_after(1_234));
        harness.exchange(&mut client);
        let expected: Vec<ReceivedFrame> =
            code.into_iter().map(|code| ReceivedFrame::Close(code, 1_234, reason.label().to_owned())).collect();
        assert_eq!(client.frames(), expected, "{reason}");
        assert_eq!(client.end, Some(End::CloseNotify), "{reason}");
        assert_eq!(harness.connection.is_lingering(), lingers(reason), "{reason}");
        assert!(harness.is_bare() && harness.connection.facts().is_none(), "the keys are gone");
    }
    // Nobody is there, or nobody reads.
    for reason in [Reason::PeerReset, Reason::SlowConsumer] {
        let (mut harness, _) = device(Versions::Tls13);
        harness.end(Termination::new(reason));
        assert!(harness.wire.is_empty() && harness.connection.is_closed(), "{reason}");
    }
}

#[test]
fn what_breaks_the_stream_is_answered_with_its_alert() {
    let cases: [(&[u8], Alert); 3] = [
        (&[23, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0], Alert::BadRecordMac),
        (&[23, 3, 3, 0xff, 0xff], Alert::RecordOverflow),
        (&[22, 3, 3, 0, 1, 0], Alert::UnexpectedMessage),
    ];
    for (bytes, alert) in cases {
        let (mut harness, mut client) = device(Versions::Tls13);
        harness.receive(bytes);
        assert_eq!(harness.reason(), Some(CloseReason::TlsError));
        harness.exchange(&mut client);
        assert_eq!(client.end, Some(End::Record(RecordError::PeerAlert(alert as u8))));
        assert!(client.frames().is_empty() && harness.connection.is_lingering());
    }
    let fixtures = Fixtures::new();
    for (bytes, reason) in [
        (&b"GET / HTTP/1.1\r\n"[..], CloseReason::NotTls),
        (&[22, 3, 1, 0xff, 0xff], CloseReason::HandshakeFailed),
        (&[22, 3, 1, 0, 4, 9, 9, 9, 9], CloseReason::HandshakeFailed),
    ] {
        let mut harness = ConnectionHarness::new(fixtures.settings(0, &Fixtures::native()));
        harness.receive(bytes);
        assert_eq!(harness.reason(), Some(reason));
        assert_eq!(harness.wire.is_empty(), reason == CloseReason::NotTls, "an alert for whoever speaks TLS");
    }
}

#[test]
fn a_frame_too_long_ends_at_its_header_and_one_that_just_fits_is_taken() {
    let (mut harness, mut client) = device(Versions::Tls13);
    let overhead = native::MESSAGE_OVERHEAD + 1;
    let most = vec![5; Fixtures::limits().frame_bytes - overhead];
    client.say_message(0, &most);
    harness.exchange(&mut client);
    assert_eq!(harness.payloads(), [&most[..]]);
    client.say_bytes(&[0x05, 0x05, 0xdd]);
    harness.exchange(&mut client);
    assert_eq!(harness.reason(), Some(CloseReason::FrameTooLarge));
    assert!(client.frames().iter().all(close(CloseCode::FRAME_TOO_LARGE)));
}

#[test]
fn a_connection_is_paused_at_the_message_that_must_not_be_lost_and_goes_on_from_there() {
    let (mut harness, mut client) = device(Versions::Tls13);
    harness.uplink_length = 1;
    for id in 1..=3 {
        client.say_message(id, &[id as u8]);
    }
    client.say(&Frame::Ping(b"after"));
    harness.receive(&std::mem::take(&mut client.out));
    assert!(harness.connection.is_paused() && !harness.connection.wants_read());
    for id in 1..=3u8 {
        assert_eq!(harness.payloads(), [&[id]]);
        harness.uplink.clear();
        harness.connection.resume();
        harness.connection.load(&mut harness.input);
        harness.handle_input();
    }
    assert!(!harness.connection.is_paused() && harness.is_bare());
    harness.exchange(&mut client);
    assert_eq!(client.frames(), [ReceivedFrame::Pong(b"after".to_vec())]);
}

/// Half a frame, half a record and unsent bytes travel along.
#[test]
fn a_parcel_in_the_middle_of_everything_goes_on_where_it_was() {
    let (mut harness, mut client) = device(Versions::Tls13);
    let mut frame = Vec::new();
    Frame::Message(native::Message { id: 0, topic: "t", payload: b"in three parts" }).encode(&mut frame);
    client.say_bytes(&frame[..7]);
    client.say_bytes(&frame[7..]);
    let stream = std::mem::take(&mut client.out);
    harness.receive(&stream[..stream.len() - 5]);
    harness.connection.keep_unsent(b"unsent");
    assert!(harness.connection.buffered() > 6);
    harness.connection.begin_move();
    assert!(!harness.connection.wants_read());
    let mut image = Vec::new();
    harness.connection.pack(&mut image);
    harness.connection.forget();
    assert!(harness.connection.is_moved());

    harness.connection = Connection::unpack(&image, 77, harness.now.tick()).unwrap();
    assert!(harness.connection.fits(&harness.settings));
    assert_eq!((harness.connection.device(), harness.connection.generation()), ("meter-1", 77));
    assert_eq!(harness.connection.unsent(), b"unsent");
    harness.named();
    harness.connection.sent(6);
    harness.receive(&stream[stream.len() - 5..]);
    assert_eq!(harness.payloads(), [b"in three parts"]);
    client.receive(&std::mem::take(&mut harness.wire));
    assert!(matches!(client.frames()[..], [ReceivedFrame::Welcome(_)]));
    assert!(harness.is_bare());
}

#[test]
fn parcels_that_are_cut_or_changed_are_refused_and_never_panic() {
    let (mut harness, _) = device(Versions::Tls13);
    harness.connection.keep_unsent(b"unsent");
    harness.connection.begin_move();
    let mut image = Vec::new();
    harness.connection.pack(&mut image);
    let unpack = |bytes: &[u8]| Connection::unpack(bytes, 1, Tick(0)).map(|_| ());
    assert_eq!(unpack(&image), Ok(()));
    for length in 0..image.len() {
        assert_eq!(unpack(&image[..length]), Err(InvalidImage), "cut to {length}");
    }
    for place in 0..image.len() {
        for bit in 0..8 {
            let mut changed = image.clone();
            changed[place] ^= 1 << bit;
            // Keys and counts may be any; that is for the shard's keys to find out.
            let _ = unpack(&changed);
        }
    }
    let with = |place: usize, byte: u8| {
        let mut changed = image.clone();
        changed[place] = byte;
        unpack(&changed)
    };
    assert_eq!(with(0, image[0] + 1), Err(InvalidImage), "another version");
    assert_eq!(with(2, 8), Err(InvalidImage), "another way to be named");
    assert_eq!(with(3, 4), Err(InvalidImage), "another carrier");
    assert_eq!(with(11, b'\n'), Err(InvalidImage), "an id with a control character");
    image.push(0);
    assert_eq!(Connection::unpack(&image, 1, Tick(0)).map(|_| ()), Err(InvalidImage), "something behind it");
}

#[test]
fn a_parcel_with_more_than_there_is_room_for_does_not_fit() {
    let (mut harness, _) = device(Versions::Tls13);
    let bound = RECORD_BYTES_MAX + Fixtures::limits().read_bytes;
    for (length, fits) in [(bound, true), (bound + 1, false)] {
        harness.connection.buffers.get_or_insert_default().saved.cipher = vec![0; length];
        assert_eq!(harness.connection.fits(&harness.settings), fits);
    }
    harness.connection.buffers.as_mut().unwrap().saved.cipher = vec![0; bound];
    harness.connection.load(&mut harness.input);
    assert!(!harness.input.space().is_empty());
}

const RECORD_BYTES_MAX: usize = crate::tls::record::RECORD_MAX;
