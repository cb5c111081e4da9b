//! What cannot work is said by key and remedy, and the gateway serves its devices meanwhile.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;

use serde_json::json;

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
    let all = "\"$JS.API.>\", \"$KV.>\", \"pulsegate.>\"";
    let users: Vec<_> = [
        ("all", format!("publish: [{all}], subscribe: [\"pulsegate.>\", \"_INBOX.>\"]")),
        ("no-api", "publish: [\"$KV.>\", \"pulsegate.>\"]".to_owned()),
        ("no-rows", "publish: [\"$JS.API.>\", \"$KV.pulsegate_gateways.>\", \"pulsegate.>\"]".to_owned()),
        ("deaf", format!("publish: [{all}], subscribe: [\"_INBOX.>\"]")),
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
