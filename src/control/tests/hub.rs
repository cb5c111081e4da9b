//! What workers say, and what they are answered.

use std::sync::atomic::Ordering;

use super::*;
use crate::control::auth::tokens::line_for;

#[test]
fn events_reach_the_backbone_in_the_order_in_which_they_were_said() {
    let stage = Stage::new(Plan::default());
    for round in 0..50 {
        let sequence = round * 2 + 1;
        stage.say(
            1,
            vec![
                WorkerEvent::Connected(presence("d", sequence)),
                message("d", round as u32, None),
                WorkerEvent::Disconnected(presence("d", sequence + 1), CloseReason::PeerClosed),
            ],
        );
    }
    until("all events are taken", || stage.control.state.backbone.accepted() == 150);
    for (round, events) in (0..).zip(stage.events().chunks(3)) {
        match [0, 1, 2].map(|place| events[place].event().what) {
            [
                What::Connected(connected),
                What::Message { topic: "t", payload },
                What::Disconnected(gone, CloseReason::PeerClosed),
            ] => {
                assert_eq!((connected.sequence, gone.sequence), (round * 2 + 1, round * 2 + 2));
                assert_eq!(payload, (round as u32).to_be_bytes());
            }
            other => panic!("{other:?}"),
        }
    }
}

/// What comes late, because it waited for the store or for the fleet's stream, is no younger for that.
#[test]
fn the_fleet_hears_when_a_device_came_and_not_when_the_hub_heard_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let fleet = config::Fleet {
        urls: vec!["nats://127.0.0.1:1".into()],
        is_tls: false,
        tls: config::SinkTls::default(),
        login: config::NatsLogin::default(),
        prefix: "p".into(),
        replicas: 1,
        lease: Duration::from_secs(10),
        timeout: Duration::from_secs(1),
        retry: (Duration::from_secs(1), Duration::from_secs(1)),
        writes_per_second: 1,
        ready_without_nats: true,
        uplink: config::FleetUplink::Off,
    };
    let uptime = Duration::from_hours(1);
    let store = Some(directory.path().to_owned());
    let stage = Stage::new(Plan { uptime, store, fleet: Some(fleet), ..Plan::default() });
    let late = Presence { at: Moment::from_micros(600_000_000), ..presence("late", 1) };
    let fresh = Presence { at: stage.control.state.clock.now(), ..presence("fresh", 1) };
    stage.say(1, vec![WorkerEvent::Connected(late), WorkerEvent::Connected(fresh)]);
    let age = |device: &str| stage.control.state.fleet.as_ref().unwrap().age(device);
    until("both are known", || age("fresh").is_some());
    let older = age("late").unwrap().saturating_sub(age("fresh").unwrap());
    // Fifty minutes, and what goes by between two lines of this test.
    assert!(older >= Duration::from_mins(49), "{older:?}");
    assert!(age("fresh").unwrap() < Duration::from_mins(10));
}

#[test]
fn a_message_is_acknowledged_when_the_backbone_holds_it() {
    let stage = Stage::new(Plan { silent: Some(1), ..Plan::default() });
    stage.say(1, vec![message("d", 1, None), message("d", 2, Some(77))]);
    match stage.silent[0].recv_timeout(DEADLINE).unwrap() {
        WorkerCommand::MessageSettled { receipt, accepted: true } => {
            assert_eq!(receipt, Receipt::Connection(connection(2), 77));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(stage.events().len(), 2);

    // One that is too large for the backbone is refused; the next one is not.
    let large = Message {
        device: "d".into(),
        connection: connection(3),
        topic: "t".into(),
        payload: Bytes::from(vec![0; 17 << 20]),
        published: None,
        receipt: Some(Receipt::Connection(connection(3), 78)),
        charge: None,
    };
    stage.say(1, vec![WorkerEvent::Message(large), message("d", 4, Some(79))]);
    for (number, holds) in [(78, false), (79, true)] {
        match stage.silent[0].recv_timeout(DEADLINE).unwrap() {
            WorkerCommand::MessageSettled { receipt: Receipt::Connection(_, message), accepted } => {
                assert_eq!((message, accepted), (number, holds));
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(stage.control.state.backbone.refused(), 1);
}

#[test]
fn acknowledgements_find_no_bound_in_an_inbox_and_keep_their_order() {
    let stage = Stage::new(Plan { silent: Some(0), inbox: 4, ..Plan::default() });
    let count = 500;
    for first in (0..count).step_by(50) {
        stage.say(0, (first..first + 50).map(|number| message("d", number, Some(number))).collect());
    }
    until("all messages are held", || stage.control.state.backbone.accepted() == u64::from(count));
    for number in 0..count {
        match stage.silent[0].recv_timeout(DEADLINE).unwrap() {
            WorkerCommand::MessageSettled { receipt: Receipt::Connection(_, message), .. } => {
                assert_eq!(message, number);
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A native device offers a token.
fn ask(index: u32, device: &str, token: &'static [u8]) -> WorkerEvent {
    let credentials = Credentials {
        device: device.into(),
        name: device.into(),
        secret: Bytes::from_static(token),
        is_certified: false,
        has_method: false,
        is_renewal: false,
    };
    let credentials = Box::new(credentials);
    WorkerEvent::Authenticate { connection: connection(index), listener: ListenerId(0), credentials, peer: None }
}

#[test]
fn tokens_are_checked_and_the_answer_goes_to_the_asking_worker() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("devices.tokens");
    std::fs::write(&path, line_for("meter", b"right")).unwrap();
    let stage = Stage::new(Plan { silent: Some(2), token_file: Some(path), ..Plan::default() });
    let check = |index, device: &str, token: &'static [u8]| {
        stage.say(2, vec![ask(index, device, token)]);
        match stage.silent[0].recv_timeout(DEADLINE).unwrap() {
            WorkerCommand::Authenticated { connection: to, answer } if to == connection(index) => answer,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(check(1, "meter", b"right"), AuthAnswer::plain());
    assert_eq!(check(2, "meter", b"right"), AuthAnswer::plain());
    for (index, device, token) in [(3, "meter", &b"wrong"[..]), (4, "nobody", b"right")] {
        let answer = check(index, device, token);
        assert!(matches!(answer, AuthAnswer::Rejected(CloseReason::TokenRejected, _)), "{answer:?}");
    }
    let text = stage.get("/metrics").text;
    for line in ["pulsegate_tokens_verified_total 1", "pulsegate_tokens_cached_total 1"] {
        assert!(text.lines().any(|found| found == line), "{line}");
    }
    assert!(text.lines().any(|found| found == "pulsegate_tokens_rejected_total 2"));
}

#[test]
fn shutdown_does_not_hash_all_tokens_that_wait() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("devices.tokens");
    let slow = "$argon2id$v=19$m=16384,t=4,p=1$c2FsdHNhbHQ$MTIzNDU2Nzg5MDEyMzQ1Njc4OTA\n";
    let waiting = 400;
    let lines: Vec<_> = (0..waiting).map(|index| format!("meter-{index}:{slow}")).collect();
    std::fs::write(&path, lines.concat()).unwrap();
    let stage = Stage::new(Plan { silent: Some(0), token_file: Some(path), ..Plan::default() });
    let ask = |index| ask(index, &format!("meter-{index}"), b"wrong");
    stage.say(0, (0..waiting).map(ask).collect());
    let answer = stage.silent[0].recv_timeout(DEADLINE).unwrap();
    assert!(matches!(answer, WorkerCommand::Authenticated { answer: AuthAnswer::Rejected(..), .. }), "{answer:?}");
    let counters = stage.control.state.counters.clone();
    stage.control.shutdown();
    let checked = counters.tokens_rejected.load(Ordering::Relaxed);
    assert!(checked < u64::from(waiting) / 2, "{checked} tokens were checked");
}

#[test]
fn a_wrong_token_file_stops_the_start() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("devices.tokens");
    std::fs::write(&path, "meter:secret\n").unwrap();
    let (_uplink, from_workers) = event_channel(16);
    let config = Arc::new(config(None, Some(path), config::Backbone::default()));
    let (mailbox, _inbox) = mailbox(1);
    let started = Control::start(ControlParts {
        inventory: Inventory::default(),
        listeners: config.listeners.iter().map(|listener| listener.listen).collect(),
        config,
        home: Home::new([0; 16], 1),
        exchange: Arc::new(crate::link::Exchange::new(1)),
        mailboxes: vec![mailbox],
        uplink: from_workers,
        published: vec![Arc::new(Published::new(CloseReason::COUNT, Refusal::COUNT))],
        clock: Arc::new(Clock::new(Instant::now())),
        epoch: 1,
        admin: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
        api_tls: None,
        log_lines_lost: Arc::default(),
        store: None,
        sinks: Vec::new(),
        fleet: None,
    });
    let error = started.err().unwrap().to_string();
    assert!(error.contains("devices.tokens, line 1: not a hash"), "{error}");
}
