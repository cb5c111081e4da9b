//! What cannot work is said by key and remedy, and the gateway serves its devices meanwhile.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use serde_json::{Value, json};

use crate::mqtt::Client;
use crate::servers::Servers;
use crate::support::{Gateway, Site, wait_until};
use crate::{LATE, Member, configure, end};

#[track_caller]
fn expect_error(member: &Member, part: &str) {
    wait_until(&format!("{part:?} is said"), LATE, || member.error().contains(part));
    assert_eq!(member.gateway.get("/readyz").0, 503);
    // Devices come and stay all the same.
    member.device("meter-1").leave();
}

#[test]
fn names_leases_and_replicas_must_fit_the_fleet() {
    let site = Site::new();
    let mut servers = Servers::new(&site, 1);
    servers.start_all();
    let urls = servers.urls("nats");
    let first = Member::joined("gate-0", &urls, "");
    expect_error(&Member::start("gate-0", &urls, ""), "another gateway of this fleet is called \"gate-0\"");
    let made = json!({"name": "KV_long_gateways", "subjects": ["$KV.long_gateways.>"], "max_age": 60_000_000_000_u64});
    assert!(servers.ask("$JS.API.STREAM.CREATE.KV_long_gateways", &made)["error"].is_null());
    expect_error(&Member::start("gate-1", &urls, "prefix = \"long\""), "backbone.nats.lease says 2s");
    expect_error(&Member::start("gate-1", &urls, "replicas = 3"), "backbone.nats.replicas says 3");
    let greedy = json!({"name": "ALL", "subjects": ["greedy.>"]});
    assert!(servers.ask("$JS.API.STREAM.CREATE.ALL", &greedy)["error"].is_null());
    expect_error(&Member::start("gate-1", &urls, "prefix = \"greedy\""), "the stream \"ALL\" takes greedy.gateway.x");
    assert_eq!(first.fleet()["state"], "connected");
}

#[test]
fn a_server_without_jetstream_and_one_that_is_too_old_are_refused_by_name() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let info = json!({"server_id": "x", "version": "2.9.10", "proto": 1, "headers": true, "max_payload": 1_048_576, "jetstream": true});
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
    let member = Member::start("gate-0", &format!("[\"nats://127.0.0.1:{port}\"]"), "");
    expect_error(&member, "nats-server 2.9.10 is too old: it takes 2.10 or newer");
}

#[test]
fn a_server_that_does_not_speak_tls_and_a_port_that_is_not_one_of_nats_are_named() {
    let site = Site::new();
    let mut servers = Servers::new(&site, 1);
    servers.start_all();
    let member = Member::start("gate-0", &servers.urls("tls"), "");
    expect_error(&member, "it does not speak TLS on that port: write nats://, or another port, in [backbone.nats]");
    assert!(member.error().contains(&format!("tls://localhost:{}", servers.ports[0])), "{}", member.error());
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let member = Member::start("gate-0", &format!("[\"nats://127.0.0.1:{closed}\"]"), "");
    expect_error(&member, &format!("nats://127.0.0.1:{closed}: "));
    expect_error(&member, "check the host and the port in [backbone.nats], and that nats-server runs there");
}

#[test]
fn an_account_that_may_not_do_what_a_gateway_does_is_told_which_right_it_needs() {
    let site = Site::new();
    let mut servers = Servers::new(&site, 1);
    let all = "\"$JS.API.>\", \"$JS.ACK.>\", \"$KV.>\", \"pulsegate.>\"";
    let users: Vec<_> = [
        ("all", format!("publish: [{all}], subscribe: [\"pulsegate.>\", \"_INBOX.>\"], allow_responses: true")),
        ("no-api", "publish: [\"$KV.>\", \"pulsegate.>\"], allow_responses: true".to_owned()),
        (
            "no-rows",
            "publish: [\"$JS.API.>\", \"$KV.pulsegate_gateways.>\", \"pulsegate.>\"], allow_responses: true".to_owned(),
        ),
        ("deaf", format!("publish: [{all}], subscribe: [\"_INBOX.>\"], allow_responses: true")),
    ]
    .map(|(user, rights)| format!("{{user: {user}, password: p, permissions: {{ {rights} }} }}"))
    .into();
    site.write("nats.conf", &format!("authorization {{ users = [{}] }}\n", users.join(", ")));
    servers.start(0, &["-c", "nats.conf"]);
    let start = |number: usize, user: &str| {
        let site = Site::new();
        site.write("password", "p");
        let login = format!("username = \"{user}\"\npassword_file = \"password\"");
        configure(&site, &format!("gate-{number}"), &servers.urls("nats"), &login);
        let gateway = Gateway::start(site.directory());
        Member { site, gateway }
    };
    let good = start(0, "all");
    good.wait_until_joined();
    for (number, (user, right)) in [
        ("no-api", "Publish to \"$JS.API.INFO\""),
        ("no-rows", "Publish to \"$KV.pulsegate_devices.meter-1\""),
        ("deaf", "Subscription to \"pulsegate.gateway.gate-3\""),
    ]
    .into_iter()
    .enumerate()
    {
        let member = start(number + 1, user);
        let device = member.device("meter-1");
        wait_until(&format!("{right:?} is said"), LATE, || member.error().contains(right));
        let error = member.error();
        assert!(error.contains("let the account do that on the server"), "{error}");
        drop(device);
        end(member.gateway);
    }
    assert_eq!(good.fleet()["state"], "connected");
}

/// What docs/OPERATING.md and docs/howto/three-gateways.md say that an account needs.
const PUBLISH: [&str; 18] = [
    "pulsegate.>",
    "$KV.pulsegate_gateways.>",
    "$KV.pulsegate_devices.>",
    "$KV.pulsegate_blocks.>",
    "$KV.pulsegate_sessions.>",
    "$KV.pulsegate_retained.>",
    "$KV.pulsegate_groups.>",
    "$JS.ACK.pulsegate_uplink.>",
    "$JS.API.INFO",
    "$JS.API.STREAM.INFO.*",
    "$JS.API.STREAM.CREATE.*",
    "$JS.API.STREAM.NAMES",
    "$JS.API.STREAM.MSG.GET.*",
    "$JS.API.STREAM.MSG.DELETE.*",
    "$JS.API.DIRECT.GET.>",
    "$JS.API.CONSUMER.CREATE.KV_pulsegate_retained.*",
    "$JS.API.CONSUMER.INFO.KV_pulsegate_retained.*",
    "$JS.API.CONSUMER.MSG.NEXT.KV_pulsegate_retained.*",
];
/// What it needs besides to read what is published at other gateways.
const READ: [&str; 4] = [
    "$JS.API.CONSUMER.CREATE.pulsegate_uplink.*",
    "$JS.API.CONSUMER.INFO.pulsegate_uplink.*",
    "$JS.API.CONSUMER.MSG.NEXT.pulsegate_uplink.*",
    "$JS.API.CONSUMER.DELETE.pulsegate_uplink.*",
];
const SUBSCRIBE: [&str; 2] = ["pulsegate.>", "_INBOX.>"];

/// A user with these rights.
fn user(name: &str, publish: &[&str], subscribe: &[&str], may_answer: bool) -> String {
    let publish = [publish, &READ].concat();
    let answer = if may_answer { "allow_responses: true" } else { "" };
    format!(
        "{{user: {name:?}, password: p, permissions: {{ publish: {publish:?}, subscribe: {subscribe:?}, {answer} }} }}"
    )
}

/// One with all rights, one that may not answer, and one without each of the rights.
fn users() -> String {
    let without = |all: &[&'static str], left_out: &str| -> Vec<&'static str> {
        all.iter().copied().filter(|right| *right != left_out).collect()
    };
    let mut users = vec![user("all", &PUBLISH, &SUBSCRIBE, true), user("mute", &PUBLISH, &SUBSCRIBE, false)];
    for (number, right) in PUBLISH.iter().enumerate() {
        users.push(user(&format!("no-{number}"), &without(&PUBLISH, right), &SUBSCRIBE, true));
    }
    for (number, right) in SUBSCRIBE.iter().enumerate() {
        users.push(user(&format!("deaf-{number}"), &PUBLISH, &without(&SUBSCRIBE, right), true));
    }
    users.join(", ")
}

/// Whether the log says that the account lacks this, and what to do. It is tried again, and may be well until it is needed next.
fn was_told(member: &Member, part: &str) -> bool {
    let told = member.gateway.logged("NATS is away: devices stay, and are not claimed until it is back");
    let why = |line: &Value| line["why"].as_str().unwrap_or_default().to_owned();
    told.iter().map(why).any(|why| why.contains(part) && why.contains("let the account do that on the server"))
}

#[test]
fn the_rights_that_the_documentation_names_suffice_and_without_any_of_them_it_is_named() {
    let page = include_str!("../../docs/howto/three-gateways.md");
    for right in PUBLISH.iter().chain(&READ).chain(&SUBSCRIBE) {
        assert!(page.contains(&format!("\"{}\"", right.replace('$', "\\$"))), "the page lacks {right}");
    }
    let site = Site::new();
    let mut servers = Servers::new(&site, 1);
    site.write("nats.conf", &format!("authorization {{ users = [{}] }}\n", users()));
    servers.start(0, &["-c", "nats.conf"]);
    let urls = servers.urls("nats");
    let start = |node: &str, user: &str| {
        let site = Site::new();
        site.write("password", "p");
        configure(&site, node, &urls, &format!("username = {user:?}\npassword_file = \"password\""));
        let gateway = Gateway::start(site.directory());
        Member { site, gateway }
    };
    // Everything that a gateway does, with these rights alone.
    let good = [start("good-0", "all"), start("good-1", "all")];
    good.iter().for_each(Member::wait_until_joined);
    let mut device = good[1].claimed("meter-1");
    assert_eq!(good[0].send("meter-1", "x").0, 200);
    assert_eq!(crate::heard(&mut device).1, "x");
    let (status, answer) = good[0].gateway.post("/v1/blocks", &json!({"device": "stolen"}));
    assert_eq!((status, &answer["unanswered"]), (200, &json!([])), "{answer}");
    let (status, answer) = good[0].gateway.post("/v1/devices/nobody/messages", &json!({"payload": "x", "queue": true}));
    assert_eq!(status, 202, "{answer}");
    let order = json!({"topic": "t", "payload": "x", "retain": true});
    assert_eq!(good[0].gateway.post("/v1/publish", &order).0, 202);
    wait_until("it is retained", LATE, || good[1].fleet()["retained"]["taken"] == 1);
    assert_eq!(good[0].gateway.get_json("/v1/devices?fleet=true")["unanswered"], json!([]));
    let mut shares = Client::come(&good[1], "meter-5", false);
    shares.subscribe("$share/good/t", 1);
    assert_eq!(good[0].gateway.post("/v1/publish", &json!({"topic": "t", "payload": "y", "qos": 1})).0, 202);
    shares.hears("t", "y", 1);
    shares.cut();
    device.leave();
    good[1].wait_for_claims(0);
    assert_eq!((good[0].error(), good[1].error()), (String::new(), String::new()));
    for (number, right) in PUBLISH.iter().enumerate() {
        let member = start(&format!("no-{number}"), &format!("no-{number}"));
        // To acknowledge at once is an answer, which is allowed; whoever takes longer needs the right.
        let is_answer = right.starts_with("$JS.ACK.");
        let is_done = right.contains("STREAM.CREATE");
        if is_done || is_answer {
            // All is there already.
            member.wait_until_joined();
        }
        let stem = right.trim_end_matches(['*', '>']);
        let part = format!("Publish to \"{stem}");
        let mut shares = Client::ask_to_come(member.gateway.address("mqtt"), &member.site, "meter-4", false);
        shares.ask_to_subscribe(&["$share/g/t"], 1);
        if is_answer {
            shares.welcomed();
            shares.subscribed();
            assert_eq!(good[0].gateway.post("/v1/publish", &json!({"topic": "t", "payload": "slow", "qos": 1})).0, 202);
            // It is dealt with for so long that NATS is told so, again and again.
            while shares.unanswered().0.payload != "slow" {}
        }
        wait_until(&format!("{part} is said"), LATE, || {
            // Some are needed only for what happens then.
            member.device("meter-2").leave();
            drop(Client::ask_to_come(member.gateway.address("mqtt"), &member.site, "meter-3", true));
            member.send("nobody", "x");
            member.gateway.post("/v1/blocks", &json!({"device": "somebody"}));
            member.gateway.post("/v1/publish", &order);
            is_done || was_told(&member, &part)
        });
        end(member.gateway);
    }
    for (user, part) in [
        ("mute", "Publish to \"_INBOX."),
        ("deaf-0", "Subscription to \"pulsegate."),
        ("deaf-1", "Subscription to \"_INBOX."),
    ] {
        expect_error(&start(user, user), part);
    }
    assert_eq!(good[0].fleet()["state"], "connected");
}

#[test]
fn tls_a_password_and_an_nkey_let_a_gateway_in() {
    // The pair that the documentation of NATS shows.
    const SEED: &str = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY";
    const PUBLIC: &str = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4";
    let site = Site::new();
    site.identity("gateway-1");
    let mut servers = Servers::new(&site, 1);
    site.write(
        "nats.conf",
        &format!(
            "tls {{ cert_file: certs/server.pem, key_file: certs/server.key, ca_file: certs/ca.pem, verify: true }}\n\
             authorization {{ users = [{{nkey: {PUBLIC}}}, {{user: edge, password: \"open sesame\"}}] }}\n"
        ),
    );
    servers.start(0, &["-c", "nats.conf"]);
    let urls = servers.urls("tls");
    site.write("seed", SEED);
    site.write("password", "open sesame");
    let tls = "[backbone.nats.tls]\nca = \"certs/ca.pem\"\ncert = \"certs/client-gateway-1.pem\"\n\
               key = \"certs/client-gateway-1.key\"";
    let start = |login: &str| {
        configure(&site, "gate-0", &urls, &format!("{login}\n{tls}"));
        Member { site: Site::new(), gateway: Gateway::start(site.directory()) }
    };
    let stranger = start("username = \"stranger\"\npassword_file = \"password\"");
    wait_until("a stranger is not let in", LATE, || stranger.error().contains("authorization"));
    let error = stranger.error();
    assert!(error.contains(&format!("tls://localhost:{}", servers.ports[0])), "{error}");
    assert!(
        error.contains("check username and password_file in [backbone.nats]") && !error.contains("sesame"),
        "{error}"
    );
    end(stranger.gateway);
    for login in ["nkey_file = \"seed\"", "username = \"edge\"\npassword_file = \"password\""] {
        let member = start(login);
        member.wait_until_joined();
        end(member.gateway);
    }
}
