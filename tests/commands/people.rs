//! What people type: looking, following, trying out, bringing along. All of it through the real program.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Stdio};

use pulsegate::codec::native::{Frame, Message};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::support::{Gateway, Program, Site, wait_for};

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    command.args(arguments).stdin(Stdio::null()).env_remove("PULSEGATE_ADMIN").env_remove("PULSEGATE_TOKEN");
    command
}

#[track_caller]
fn done(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn devices_are_chosen_and_sorted() {
    let site = Site::new("");
    let gateway = site.start();
    let connect = |id| {
        // The time of a connection is told to a tenth of a second: these are told apart.
        std::thread::sleep(std::time::Duration::from_millis(150));
        gateway.connect(id)
    };
    let _devices: Vec<_> = ["b", "a", "c"].map(connect).into_iter().collect();
    let mut raw = gateway.connect_raw();
    raw.stream.write_all(b"here").unwrap();
    wait_for("all are there", || (gateway.ask("GET", "/v1/overview", None).1["devices"] == 4).then_some(()));
    let ids = |arguments: &[&str]| -> Vec<String> {
        let (code, text, errors) = gateway.run(&[&["devices", "--json"], arguments].concat(), b"");
        assert_eq!(code, 0, "{errors}");
        lines(&text).iter().map(|device| device["id"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&["--protocol", "native"]), ["a", "b", "c"]);
    assert_eq!(ids(&["--listener", "devices", "--reverse"]), ["c", "b", "a"]);
    assert_eq!(ids(&["--protocol", "native", "--sort", "connected"]), ["b", "a", "c"]);
    assert_eq!(ids(&["--protocol", "native", "--sort", "connected", "--reverse", "--limit", "2"]), ["c", "a"]);
    assert_eq!(ids(&["--protocol", "raw"]).len(), 1);
    assert_eq!(ids(&["--state", "probed"]), Vec::<String>::new());
    let (_, _, remark) = gateway.run(&["devices", "--sort", "heard", "--limit", "1"], b"");
    assert!(remark.starts_with("and more: "), "{remark}");
}

#[test]
fn a_follower_comes_back_behind_what_it_has_seen() {
    let site = Site::new("");
    let mut gateway = site.start();
    // The API on a port that stays, so that the next life is found there.
    let port = gateway.admin.port();
    let say = |gateway: &Gateway, text: &str| {
        let mut device = gateway.connect("meter-1");
        device.say(&Frame::Message(Message { id: 9, topic: "t", payload: text.as_bytes() }));
        device.hear();
    };
    say(&gateway, "before");
    let old = Program::start(gateway.command(&["watch", "--json", "--kind", "message", "--since", "first"]));
    let first: Value = serde_json::from_str(&old.expect("\"before\"", 1)).unwrap();
    say(&gateway, "while");
    old.expect("\"while\"", 1);
    // From its id on, and by time.
    let id = first["id"].as_str().unwrap();
    let behind = Program::start(gateway.command(&["watch", "--json", "--kind", "message", "--since", id]));
    behind.expect("\"while\"", 1);
    assert!(!behind.lines.lock().unwrap().iter().any(|line| line.contains("before")));
    let recent = Program::start(gateway.command(&["watch", "--kind", "message", "--since", "1h", "--no-reconnect"]));
    recent.expect("t: before", 1);
    let (code, _, errors) = gateway.run(&["watch", "--since", "yesterday"], b"");
    assert!(code == 1 && errors.contains("--since takes"), "{errors}");

    gateway.program.signal(Signal::TERM);
    assert!(gateway.program.wait().success());
    old.expect("trying again in 1s", 1);
    recent.expect("the gateway has ended the stream", 1);
    let toml = site.path().join("pulsegate.toml");
    let text = std::fs::read_to_string(&toml).unwrap();
    std::fs::write(
        &toml,
        text.replace(
            "127.0.0.1:0\"\n[[listener]]\nname = \"devices\"",
            &format!("127.0.0.1:{port}\"\n[[listener]]\nname = \"devices\""),
        ),
    )
    .unwrap();
    let gateway = site.start();
    assert_eq!(gateway.admin.port(), port);
    say(&gateway, "anew");
    old.expect("\"anew\"", 1);
    old.expect("\"missed\"", 1);
}

#[test]
fn top_tells_everything_without_a_terminal() {
    let site = Site::new("");
    let gateway = site.start();
    let _device = gateway.connect("meter-1");
    let (code, text, errors) = gateway.run(&["top", "--once"], b"");
    assert_eq!((code, errors.as_str()), (0, ""));
    for part in ["1 devices", "PER SECOND", "WORKER ", "devices                 native", "REFUSED BEFORE TLS\n  none"] {
        assert!(text.contains(part), "{part:?} is not in\n{text}");
    }
    let (code, text, _) = gateway.run(&["top", "--once", "--json"], b"");
    let looks = lines(&text);
    assert_eq!((code, looks.len()), (0, 1));
    assert_eq!((&looks[0]["overview"]["devices"], &looks[0]["per_second"]), (&json!(1), &Value::Null));
    assert!(looks[0]["consumers"].is_array());
    // Look after look, until nobody reads.
    let mut child = gateway.command(&["top", "--json", "--interval", "200ms"]).spawn().unwrap();
    let read: Vec<String> = BufReader::new(child.stdout.take().unwrap()).lines().take(2).map(Result::unwrap).collect();
    let second: Value = serde_json::from_str(&read[1]).unwrap();
    assert!(second["per_second"]["accepted"].is_number());
    assert!(wait_for("it ends with its reader", || child.try_wait().unwrap()).success());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
}

#[test]
fn health_is_an_exit_code_and_needs_no_token() {
    let site = Site::new("");
    let file = site.path().join("pulsegate.toml");
    let config = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, config.replacen("[admin]\n", "[admin]\ntoken_file = \"admin.token\"\n", 1)).unwrap();
    std::fs::write(site.path().join("admin.token"), "0123456789abcdef0123456789abcdef\n").unwrap();
    let gateway = site.start();
    let health = |arguments: &[&str]| {
        let (code, said, complaint) = gateway.run(&[&["health"], arguments].concat(), b"");
        (code, said + &complaint)
    };
    assert_eq!(health(&[]), (0, "ok\n".to_owned()));
    assert_eq!(health(&["--ready"]), (0, "ready\n".to_owned()));
    // One that says nothing: it gives up by itself.
    gateway.program.signal(Signal::STOP);
    let (code, said) = health(&[]);
    assert!(code == 1 && said.contains("cannot be reached"), "{code}: {said}");
    gateway.program.signal(Signal::CONT);
    wait_for("it answers again", || (health(&[]).0 == 0).then_some(()));
}

#[test]
fn gateway_and_token_come_from_the_environment() {
    let site = Site::new("");
    let toml = site.path().join("pulsegate.toml");
    let text = std::fs::read_to_string(&toml).unwrap();
    let tokens = "[[admin.token]]\nname = \"shift\"\nrole = \"command\"\nfile = \"shift.token\"\n";
    std::fs::write(&toml, text.replacen("[[listener]]", &format!("{tokens}[[listener]]"), 1)).unwrap();
    std::fs::write(site.path().join("shift.token"), "a-token-of-the-shift\n").unwrap();
    let gateway = site.start();
    let admin = format!("http://{}", gateway.admin);
    let mut command = program(&["devices"]);
    command.env("PULSEGATE_ADMIN", &admin);
    assert!(String::from_utf8_lossy(&command.output().unwrap().stderr).contains("--token-file"));
    command.env("PULSEGATE_TOKEN", "a-token-of-the-shift");
    assert_eq!(done(command), "no device is connected\n");
    let mut command = program(&["top", "--once", "--json"]);
    command.current_dir(site.path()).env("PULSEGATE_ADMIN", &admin).env("PULSEGATE_TOKEN_FILE", "shift.token");
    assert_eq!(lines(&done(command)).len(), 1);
    // What a token may do, whoever asks.
    let mut request =
        ureq::get(format!("{admin}/v1/whoami")).header("authorization", "Bearer a-token-of-the-shift").call().unwrap();
    let answer: Value = serde_json::from_str(&request.body_mut().read_to_string().unwrap()).unwrap();
    assert_eq!(answer, json!({"name": "shift", "role": "command"}));
}

#[test]
fn the_demo_has_devices_of_every_protocol_and_ends() {
    let site = Site::new("");
    let toml = site.path().join("pulsegate.toml");
    let text = std::fs::read_to_string(&toml).unwrap();
    let listener = |name: &str, more: &str| {
        format!(
            "[[listener]]\nname = \"{name}\"\nlisten = \"127.0.0.1:0\"\n{more}\n[listener.tls]\ncert = \"certs/server.pem\"\n\
             key = \"certs/server.key\"\n"
        )
    };
    let mqtt = listener("mqtt", "protocol = \"mqtt\"");
    let websocket = listener("ws", "protocol = \"mqtt\"\ntransport = \"websocket\"");
    let native = listener("native-ws", "protocol = \"native\"\ntransport = \"websocket\"");
    std::fs::write(&toml, text + &mqtt + &websocket + &native).unwrap();
    let gateway = site.start();
    let mut command = gateway.command(&["demo", "--devices", "2", "--for", "1h", "--ca", "certs/ca.pem"]);
    command.current_dir(site.path());
    let mut demo = Program::start(command);
    demo.expect("10 devices for 1h; Ctrl-C ends them", 1);
    wait_for("all have come and reported", || {
        let (_, overview) = gateway.ask("GET", "/v1/overview", None);
        (overview["devices"] == 10 && overview["messages_received"].as_u64() >= Some(10)).then_some(())
    });
    for id in ["demo-devices-1", "demo-mqtt-2", "demo-ws-1", "demo-native-ws-1"] {
        let topic = format!("devices/{id}/set");
        let order = json!({"topic": topic, "payload": "on", "ack": true, "timeout": "20s"});
        assert_eq!(gateway.send(id, &order), (200, json!({"outcome": "acknowledged"})), "{id}");
        demo.expect(&format!("{id} is told {topic}: on"), 1);
    }
    demo.signal(Signal::INT);
    assert!(demo.wait().success());
    wait_for("all have gone", || (gateway.ask("GET", "/v1/overview", None).1["connections"] == 0).then_some(()));
    let (_, overview) = gateway.ask("GET", "/v1/overview", None);
    assert_eq!(overview["closed"]["protocol_error"], 0);

    // A gateway whose certificates another authority has made is not spoken to.
    let stranger = Site::new("");
    let mut command = gateway.command(&["demo", "--devices", "1", "--ca", "certs/ca.pem"]);
    command.current_dir(stranger.path());
    let mut demo = Program::start(command);
    demo.expect("gives up", 5);
    assert_eq!(demo.wait().code(), Some(1));
}

#[test]
fn completions_manual_and_doctor_need_no_gateway() {
    for shell in ["bash", "zsh", "fish"] {
        let text = done(program(&["completions", shell]));
        assert!(text.contains("pulsegate") && text.contains("check-config"), "{shell}");
    }
    let directory = tempfile::tempdir().unwrap();
    done(program(&["man", directory.path().to_str().unwrap()]));
    for page in ["pulsegate.1", "pulsegate-top.1", "pulsegate-ca-issue.1"] {
        let text =
            std::fs::read_to_string(directory.path().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
        assert!(text.contains(".SH NAME"), "{page}");
    }
    assert!(done(program(&["man"])).contains(".SH NAME"));
    // Whoever has seen enough ends nothing with an error.
    for arguments in [&["man"][..], &["completions", "zsh"], &["doctor"], &["check-config"]] {
        let mut child = program(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!errors.contains("panicked") && !errors.contains("ipe"), "{arguments:?}: {errors}");
    }

    let site = Site::new("");
    let doctor = |config: &str| {
        let mut command = program(&["doctor", "--json", "--config", config]);
        let output = command.current_dir(site.path()).output().unwrap();
        (output.status.code(), lines(&String::from_utf8(output.stdout).unwrap()))
    };
    let (_, findings) = doctor("pulsegate.toml");
    let of = |check: &str| findings.iter().filter(|finding| finding["check"] == check).count();
    assert!(of("descriptors") == 1 && of("disk") == 2 && of("clock") == 1 && of("certificates") == 2, "{findings:#?}");
    assert!(findings.iter().all(|finding| finding["level"] == "ok" || finding["remedy"] != ""), "{findings:#?}");
    let text = std::fs::read_to_string(site.path().join("pulsegate.toml")).unwrap();
    std::fs::write(site.path().join("broken.toml"), text.replace("server.key", "server.pem")).unwrap();
    let (code, findings) = doctor("broken.toml");
    assert_eq!(code, Some(1));
    assert!(findings.iter().any(|finding| finding["level"] == "problem" && finding["check"] == "configuration"));
}

#[test]
fn a_mosquitto_configuration_is_brought_along() {
    let site = Site::new("");
    let write = |name: &str, text: &str| std::fs::write(site.path().join(name), text).unwrap();
    write(
        "mosquitto.conf",
        "persistence true\nallow_anonymous true\nacl_file acl\nlistener 8883 127.0.0.1\ncertfile certs/server.pem\nkeyfile certs/server.key\nlog_type all\n",
    );
    write("acl", "pattern readwrite devices/%c/#\n");
    let mut command = program(&["import", "mosquitto.conf"]);
    let output = command.current_dir(site.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("log_type all"));
    let toml = String::from_utf8(output.stdout).unwrap();
    write("imported.toml", &toml.replace("/var/lib/pulsegate", "data"));
    let mut command = program(&["check-config", "--config", "imported.toml"]);
    command.current_dir(site.path());
    let told = done(command);
    assert!(told.contains("mqtt-1") && told.contains("imported.toml is usable"), "{told}");
    let output = program(&["import", "nowhere.conf"]).output().unwrap();
    assert!(output.status.code() == Some(1) && String::from_utf8_lossy(&output.stderr).contains("nowhere.conf: "));
}
