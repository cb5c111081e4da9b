//! Readers of the API that ask and do not read.

use std::io::{Read, Write};
use std::net::TcpStream;

use socket2::{Domain, Socket, Type};
use tempfile::TempDir;

use super::*;

/// A connection on which the kernel takes little for whoever does not read, with a request on its way.
fn ask(stage: &Stage, path: &str) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    socket.connect(&stage.control.admin_addr().into()).unwrap();
    let mut stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).unwrap();
    stream
}

/// Says messages that are six times as long in JSON, and waits until they are safe.
fn say_long_messages(stage: &Stage, count: u32, bytes: usize) {
    for number in 0..count {
        let WorkerEvent::Message(said) = message("meter-1", number, Some(number)) else { unreachable!() };
        stage.say(1, vec![WorkerEvent::Message(Message { payload: vec![1; bytes].into(), ..said })]);
        stage.silent[0].recv_timeout(DEADLINE).unwrap();
    }
}

#[test]
fn readers_that_do_not_read_hold_no_more_than_their_share() {
    let directory = TempDir::new().unwrap();
    let stage = Stage::new(Plan { silent: Some(1), store: Some(directory.path().into()), ..Plan::default() });
    let answers = &stage.control.state.answers;
    let all = answers.free();
    // A mebibyte of JSON each, though little more than a sixth of that in the store.
    say_long_messages(&stage, 150, 60_000);
    assert_eq!(stage.get("/v1/uplink?consumer=careful&max=1").status, 200);
    until("nothing is held any more", || answers.free() == all);

    let mut greedy = Vec::new();
    while all - answers.free() < all / 2 - (3 << 20) {
        let before = answers.free();
        greedy.push(ask(&stage, "/v1/uplink?consumer=greedy&max=1000&lease=1h"));
        until("it has its answer", || answers.free() < before || greedy.len() > 12);
        assert!(greedy.len() <= 12, "{} bytes are free", answers.free());
    }
    let further: Vec<_> = (0..20).map(|_| ask(&stage, "/v1/uplink?consumer=greedy&max=1000&lease=1h")).collect();
    // Others are answered meanwhile, and so are probes; whoever is no better than those who do not read is told.
    let batch = stage.get("/v1/uplink?consumer=careful&max=2").json();
    assert_eq!(batch["events"].as_array().unwrap().len(), 2);
    assert_eq!((stage.get("/healthz").status, stage.get("/metrics").status), (200, 200));
    let refused = stage.get("/v1/uplink?consumer=greedy&max=1");
    let (status, code, message) = refused.error();
    assert_eq!((status, code.as_str(), &*refused.headers["retry-after"]), (503, "api_busy", "1"), "{message}");
    assert!(message.contains("not read yet") && answers.refused() > 0, "{message}");
    assert!(all - answers.free() <= all / 2, "{} bytes are free", answers.free());
    drop((greedy, further));
    until("all of it is free again", || answers.free() == all);
    assert_eq!(answers.cut(), 0);
    stage.control.shutdown();
}

#[test]
fn who_does_not_take_an_answer_in_time_is_cut() {
    let directory = TempDir::new().unwrap();
    let stage = Stage::new(Plan { silent: Some(1), store: Some(directory.path().into()), ..Plan::default() });
    let answers = &stage.control.state.answers;
    let all = answers.free();
    say_long_messages(&stage, 1, 60_000);
    let (mut silent, mut slow) = (ask(&stage, "/v1/uplink?consumer=a"), ask(&stage, "/v1/uplink?consumer=b"));
    until("both have their answers", || all - answers.free() > 700_000);
    // A byte now and then does not help.
    until("they are cut", || {
        let _ = slow.read(&mut [0]);
        answers.free() == all
    });
    assert_eq!(answers.cut(), 2);
    let mut rest = Vec::new();
    let end = silent.read_to_end(&mut rest);
    assert!(end.is_err() || rest.len() < 360_000, "{} bytes came", rest.len());
    stage.control.shutdown();
}

#[test]
fn a_batch_that_is_too_long_as_json_leaves_the_rest_to_the_next() {
    let directory = TempDir::new().unwrap();
    let stage = Stage::new(Plan { silent: Some(1), store: Some(directory.path().into()), ..Plan::default() });
    say_long_messages(&stage, 6, 60_000);
    for accept in ["application/json", "application/x-ndjson"] {
        let mut seen = Vec::new();
        for expected in ["1-2", "3-4", "5-6"] {
            let path = format!("/v1/uplink?consumer={}", accept.len());
            let answer = stage.request("GET", &path, &[("accept", accept)]);
            assert!(answer.text.len() < (1 << 20) + 1_000, "{} bytes", answer.text.len());
            if accept.ends_with("ndjson") {
                assert_eq!(answer.headers["pulsegate-ack"], expected);
                seen.extend(
                    answer.text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["seq"].clone()),
                );
            } else {
                let batch = answer.json();
                assert_eq!(format!("{}-{}", batch["ack"]["first"], batch["ack"]["last"]), expected);
                seen.extend(batch["events"].as_array().unwrap().iter().map(|event| event["seq"].clone()));
            }
        }
        assert_eq!(seen, (1..=6).map(Value::from).collect::<Vec<_>>());
    }
    stage.control.shutdown();
}
