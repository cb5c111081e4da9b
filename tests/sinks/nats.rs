//! `type = "nats"`, against a real nats-server, asked over plain TCP.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::server::{nats_ask, nats_server};
use crate::support::{Device, Event, Gateway, Program, SOON, Site, message, native, wait_until};
use crate::{LATE, Meter, free_port, publish_all, sink, sink_metric};

/// A server on one port, which may come and go with what it keeps.
struct Server<'a> {
    site: &'a Site,
    port: u16,
    program: Option<Program>,
}

impl<'a> Server<'a> {
    fn new(site: &'a Site) -> Self {
        Self { site, port: free_port(), program: None }
    }

    fn start(&mut self, further: &[&str]) {
        let mut command = nats_server();
        command.current_dir(self.site.directory()).args(["-js", "-sd", "nats", "-a", "127.0.0.1", "-p"]);
        command.arg(self.port.to_string()).args(further);
        let program = Program::start(command);
        program.expect("Server is ready");
        self.program = Some(program);
    }

    fn signal(&self, signal: Signal) {
        self.program.as_ref().unwrap().signal(signal);
    }

    fn stop(&mut self, signal: Signal) {
        if let Some(mut program) = self.program.take() {
            program.signal(signal);
            program.wait(SOON);
        }
    }

    /// Asks, as any client may.
    #[track_caller]
    fn ask(&self, subject: &str, body: &Value) -> Value {
        nats_ask(self.port, subject, body)
    }

    #[track_caller]
    fn make_stream(&self, further: &Value) {
        let mut config =
            json!({"name": "UP", "subjects": ["site-1.>"], "storage": "file", "duplicate_window": 600_000_000_000_u64});
        config.as_object_mut().unwrap().extend(further.as_object().unwrap().clone());
        let answer = self.ask("$JS.API.STREAM.CREATE.UP", &config);
        assert!(answer["error"].is_null(), "{answer}");
    }

    /// Every message of the stream: its subject, its headers and its payload.
    fn messages(&self) -> Vec<(String, String, Vec<u8>)> {
        let last = self.ask("$JS.API.STREAM.INFO.UP", &json!({}))["state"]["last_seq"].as_u64().unwrap();
        let decode = |value: &Value| BASE64_STANDARD.decode(value.as_str().unwrap_or_default()).unwrap();
        let get = |seq: u64| {
            let answer = self.ask("$JS.API.STREAM.MSG.GET.UP", &json!({"seq": seq}));
            let message = &answer["message"];
            let headers = String::from_utf8(decode(&message["hdrs"])).unwrap();
            (message["subject"].as_str().unwrap().to_owned(), headers, decode(&message["data"]))
        };
        (1..=last).map(get).collect()
    }
}

fn configure(site: &Site, url: &str, further: &str) {
    let sink = format!(
        "[[sink]]\nname = \"fleet\"\ntype = \"nats\"\nurl = {url:?}\nstream = \"UP\"\nprefix = \"site-1\"\nretry_min = \"10ms\"\n\
         retry_max = \"200ms\"\n{further}\n"
    );
    site.configure(&format!("workers = 2\n[admin]\nlisten = \"127.0.0.1:0\"\n{sink}"), &[native()]);
}

fn error(gateway: &Gateway) -> String {
    sink(gateway, "fleet")["error"].as_str().unwrap_or_default().to_owned()
}

fn wait_for_the_end(gateway: &Gateway) {
    wait_until("the cursor is at the end", LATE, || sink(gateway, "fleet")["behind"] == 0);
}

/// Numbers of each device, in the order of the stream.
fn numbers(messages: &[(String, String, Vec<u8>)]) -> BTreeMap<String, Vec<u32>> {
    let mut numbers: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for (subject, headers, payload) in messages {
        assert!(headers.contains("Nats-Msg-Id: ") && headers.contains("Pulsegate-At: "), "{headers}");
        if let Some(rest) = subject.strip_prefix("site-1.up.") {
            let device = rest.split('.').next().unwrap().to_owned();
            numbers.entry(device).or_default().push(std::str::from_utf8(payload).unwrap().parse().unwrap());
        }
    }
    numbers
}

#[test]
fn jetstream_gets_everything_once_and_in_order_through_any_outage() {
    let site = Site::new();
    let mut server = Server::new(&site);
    configure(&site, &format!("nats://127.0.0.1:{}", server.port), "inflight = 8\ntimeout = \"2s\"");
    let mut meters = Meter::fleet(4);
    let mut gateway = Gateway::start(site.directory());
    publish_all(&mut meters, &site, &gateway, 5);
    wait_until("there is nobody", SOON, || sink(&gateway, "fleet")["state"] == "retrying");
    server.start(&[]);
    wait_until("the stream is missed by name", LATE, || error(&gateway).contains("the stream \"UP\" cannot be read"));
    server.make_stream(&json!({"subjects": ["site-1.up.>"]}));
    wait_until("what it does not take is named", LATE, || error(&gateway).contains("does not take site-1.presence.*"));
    let all =
        json!({"name": "UP", "subjects": ["site-1.>"], "storage": "file", "duplicate_window": 600_000_000_000_u64});
    server.ask("$JS.API.STREAM.UPDATE.UP", &all);
    wait_for_the_end(&gateway);
    let promises = gateway.logged("connected");
    assert!(
        promises.iter().any(|line| line["promise"].as_str().is_some_and(|said| said.contains("one server has it")))
    );
    for round in 0..4 {
        publish_all(&mut meters, &site, &gateway, 5);
        match round {
            0 => {
                gateway.signal(Signal::KILL);
                drop(gateway);
                gateway = Gateway::start(site.directory());
            }
            1 => server.stop(Signal::TERM),
            2 => server.stop(Signal::KILL),
            _ => server.signal(Signal::STOP),
        }
        publish_all(&mut meters, &site, &gateway, 5);
        match round {
            0 => {}
            1 | 2 => server.start(&[]),
            _ => {
                wait_until("it is given up", LATE, || sink(&gateway, "fleet")["state"] == "retrying");
                server.signal(Signal::CONT);
            }
        }
        publish_all(&mut meters, &site, &gateway, 3);
        wait_for_the_end(&gateway);
    }
    let messages = server.messages();
    let numbers = numbers(&messages);
    for meter in &meters {
        // Once: what came again was known by its id.
        assert_eq!(numbers[&meter.id], (1..=meter.next).collect::<Vec<_>>(), "{}", meter.id);
    }
    assert!(messages.iter().any(|(subject, ..)| subject == "site-1.presence.meter-1"));
    assert_eq!(sink_metric(&gateway, "pulsegate_sink_events_dead_lettered_total", "fleet"), 0);
}

#[test]
fn jetstream_over_tls_with_a_password() {
    let site = Site::new();
    site.identity("gateway-1");
    site.write("password", "open sesame");
    let mut server = Server::new(&site);
    server.start(&[]);
    server.make_stream(&json!({}));
    server.stop(Signal::TERM);
    let tls = [
        "--tls",
        "--tlscert",
        "certs/server.pem",
        "--tlskey",
        "certs/server.key",
        "--tlsverify",
        "--tlscacert",
        "certs/ca.pem",
    ];
    server.start(&[&tls[..], &["--user", "edge", "--pass", "open sesame"]].concat());
    let configure = |user: &str| {
        configure(
            &site,
            &format!("tls://localhost:{}", server.port),
            &format!(
                "presence = false\nusername = {user:?}\npassword_file = \"password\"\n[sink.tls]\nca = \"certs/ca.pem\"\n\
                 cert = \"certs/client-gateway-1.pem\"\nkey = \"certs/client-gateway-1.key\""
            ),
        );
    };
    configure("stranger");
    let gateway = Gateway::start(site.directory());
    let mut meters = Meter::fleet(2);
    publish_all(&mut meters, &site, &gateway, 3);
    wait_until("a stranger is not let in", LATE, || error(&gateway).contains("authorization"));
    configure("edge");
    assert_eq!(gateway.post("/v1/reload", &json!({})).0, 200);
    wait_for_the_end(&gateway);
    server.stop(Signal::TERM);
    server.start(&[]);
    assert_eq!(numbers(&server.messages())["meter-2"], [1, 2, 3]);
}

#[test]
fn jetstream_refusals_go_to_the_dead_letters_and_hold_up_nobody() {
    let site = Site::new();
    let mut server = Server::new(&site);
    server.start(&[]);
    server.make_stream(&json!({"max_msg_size": 600}));
    configure(&site, &format!("nats://127.0.0.1:{}", server.port), "presence = false\ntries_refused = 2");
    let gateway = Gateway::start(site.directory());
    let mut device = Device::welcomed(gateway.devices(), &site.tls(), "meter-1");
    for (number, payload) in [(1, "1".to_owned()), (2, "7".repeat(1_000)), (3, "3".to_owned())] {
        device.send(&[message(number, payload.as_bytes())]);
        assert_eq!(device.hear(), Event::Ack(number));
    }
    wait_until("it goes on behind it", LATE, || server.messages().len() == 2);
    assert_eq!(numbers(&server.messages())["meter-1"], [1, 3]);
    assert_eq!(sink_metric(&gateway, "pulsegate_sink_events_dead_lettered_total", "fleet"), 1);
}

#[test]
fn jetstream_of_an_old_server_is_refused_by_name() {
    let site = Site::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let info = json!({"server_id": "x", "version": "2.9.25", "proto": 1, "headers": true, "max_payload": 1_048_576, "jetstream": true});
            // Whoever has hung up is done with it.
            let _ = socket.write_all(format!("INFO {info}\r\n").as_bytes());
            let mut lines = BufReader::new(socket.try_clone().unwrap()).lines();
            while let Some(Ok(line)) = lines.next() {
                if line.starts_with("PING") {
                    let _ = socket.write_all(b"PONG\r\n");
                }
            }
        }
    });
    configure(&site, &format!("nats://127.0.0.1:{port}"), "");
    let gateway = Gateway::start(site.directory());
    wait_until("it is refused", LATE, || error(&gateway) == "nats-server 2.9.25 is too old: it takes 2.10 or newer");
}
