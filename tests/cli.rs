//! The program from outside: what it says, where, and with which exit code. And that what `deploy/` offers works.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use argon2::Argon2;
use argon2::password_hash::PasswordVerifier;
use argon2::password_hash::phc::PasswordHash;

fn pulsegate(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    command.current_dir(directory).args(arguments).stdin(Stdio::null());
    command
}

/// Runs to the end and gives the exit code, stdout and stderr.
#[track_caller]
fn run(directory: &Path, arguments: &[&str]) -> (i32, String, String) {
    ended(pulsegate(directory, arguments).output().unwrap())
}

fn ended(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().expect("it ended by itself"), text(output.stdout), text(output.stderr))
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

const CONFIG: &str = "\
[limits]
connections = 1000
[[listener]]
name = \"devices\"
listen = \"127.0.0.1:17443\"
protocol = \"native\"
[listener.tls]
cert = \"certs/server.pem\"
key = \"certs/server.key\"
";

/// A directory with certificates and the configuration above.
fn prepared() -> tempfile::TempDir {
    let directory = directory();
    let (code, _, errors) = run(directory.path(), &["dev-certs", "certs"]);
    assert_eq!(code, 0, "{errors}");
    fs::write(directory.path().join("pulsegate.toml"), CONFIG).unwrap();
    directory
}

#[test]
fn help_teaches() {
    let (code, text, _) = run(directory().path(), &["--help"]);
    assert_eq!(code, 0);
    for part in ["check-config", "dev-certs", "hash-token", "--config <FILE>", "--log-format", "Examples:", "7443"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    let (code, text, _) = run(directory().path(), &["--version"]);
    assert_eq!((code, text.trim()), (0, concat!("pulsegate ", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn what_is_not_understood_exits_with_2() {
    for arguments in [&["--confg", "x"][..], &["check"], &["--log-format", "xml"], &["--log-filter", "=x="]] {
        let (code, text, errors) = run(directory().path(), arguments);
        assert_eq!((code, text.as_str()), (2, ""), "{errors}");
        assert!(errors.contains("error: "), "{errors}");
    }
}

#[test]
fn a_right_configuration_is_shown() {
    let directory = prepared();
    let (code, text, errors) = run(directory.path(), &["check-config", "--config", "pulsegate.toml"]);
    assert_eq!((code, errors.as_str()), (0, ""));
    for part in ["devices", "127.0.0.1:17443", "at most 1,000", "Memory budget", "note: listener[0]", "is usable"] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
}

#[test]
fn a_wrong_configuration_exits_with_1_and_one_line() {
    let directory = prepared();
    let wrong = |change: [&str; 2], parts: &[&str]| {
        assert!(CONFIG.contains(change[0]));
        fs::write(directory.path().join("wrong.toml"), CONFIG.replace(change[0], change[1])).unwrap();
        let (code, text, errors) = run(directory.path(), &["check-config", "--config", "wrong.toml"]);
        assert_eq!((code, text.as_str(), errors.lines().count()), (1, "", 1), "{errors}");
        assert!(errors.starts_with("pulsegate: wrong.toml:"), "{errors}");
        for part in parts {
            assert!(errors.contains(part), "{part} is not in {errors}");
        }
        // Serving refuses it in the same words, before anything is bound or made.
        assert_eq!(run(directory.path(), &["--config", "wrong.toml"]), (1, String::new(), errors));
    };
    wrong(["connections = 1000", "conections = 1000"], &[":2: limits.conections: unknown field"]);
    wrong(
        ["\"native\"", "\"websocket\""],
        &[":6: ", "protocol: \"websocket\" is a transport, and carries a protocol: write "],
    );
    wrong(
        ["certs/server.key", "certs/none.key"],
        &[":9: listener[0] \"devices\": tls.key: ", "none.key cannot be read"],
    );
    wrong(
        ["certs/server.key", "certs/ca.key"],
        &[":9: listener[0] \"devices\": tls.key: ", "certs/ca.key", "does not belong"],
    );
    wrong(["certs/server.pem", "wrong.toml"], &[":8: listener[0] \"devices\": tls.cert: ", "wrong.toml"]);
    fs::write(directory.path().join("tokens"), "# ours\nmeter-1:secret\n").unwrap();
    let tokens = "certs/server.key\"\n[listener.identity]\ntoken_file = \"tokens\"\n#";
    wrong(["certs/server.key", tokens], &[":11: listener[0] \"devices\": identity.token_file: ", "tokens, line 2: "]);
    let (code, _, errors) = run(directory.path(), &["--config", "none.toml"]);
    assert_eq!(code, 1);
    assert!(errors.starts_with("pulsegate: none.toml: the configuration file cannot be read"), "{errors}");
}

#[test]
fn checking_the_built_in_configuration_makes_nothing() {
    let directory = directory();
    let (code, text, errors) = run(directory.path(), &["check-config"]);
    assert_eq!((code, errors.as_str()), (0, ""));
    assert!(text.contains("127.0.0.1:7443") && text.contains("127.0.0.1:7444"), "{text}");
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn development_certificates_are_made_once() {
    let directory = directory();
    let arguments = ["dev-certs", "certs", "--client", "meter-1", "--client", "meter-2"];
    let (code, first, errors) = run(directory.path(), &arguments);
    assert_eq!(code, 0, "{errors}");
    for name in ["ca", "server", "client-meter-1", "client-meter-2"] {
        for suffix in ["pem", "key"] {
            let path = format!("certs/{name}.{suffix}");
            assert!(first.contains(&path) && directory.path().join(&path).is_file(), "{path}");
        }
    }
    assert_eq!(first.lines().filter(|line| line.starts_with("made")).count(), 4, "{first}");
    let authority = fs::read(directory.path().join("certs/ca.pem")).unwrap();
    let (_, second, _) = run(directory.path(), &arguments);
    assert_eq!(second.lines().filter(|line| line.starts_with("kept")).count(), 4, "{second}");
    assert_eq!(fs::read(directory.path().join("certs/ca.pem")).unwrap(), authority);

    let (code, _, errors) = run(directory.path(), &["dev-certs", "certs", "--client", "../x"]);
    assert_eq!(code, 1);
    assert!(errors.starts_with("pulsegate: development certificates: \"../x\""), "{errors}");
}

#[test]
fn a_hashed_token_verifies() {
    let directory = directory();
    let hash = |arguments: &[&str], input: &[u8]| {
        let mut child = pulsegate(directory.path(), arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that refuses its arguments may be gone before it is written to.
        let _ = child.stdin.take().unwrap().write_all(input);
        ended(child.wait_with_output().unwrap())
    };
    let verifies = |line: &str, token: &[u8]| {
        let (device, hash) = line.trim_end().rsplit_once(':').unwrap();
        assert_eq!(device, "urn:meter:1");
        Argon2::default().verify_password(token, &PasswordHash::new(hash).unwrap()).is_ok()
    };
    let (code, line, _) = hash(&["hash-token", "urn:meter:1", "--memory", "64"], b"correct horse\n");
    assert_eq!(code, 0);
    assert!(line.starts_with("urn:meter:1:$argon2id$v=19$m=64,t=2,p=1$"), "{line}");
    assert!(verifies(&line, b"correct horse") && !verifies(&line, b"correct horse\n"));
    let (_, again, _) = hash(&["hash-token", "urn:meter:1", "--memory", "64", "--token", "correct horse"], b"");
    assert!(verifies(&again, b"correct horse"));
    assert_ne!(line, again, "every hash has its own salt");

    let (code, text, errors) = hash(&["hash-token", "a"], b"\n");
    assert_eq!((code, text.as_str()), (1, ""));
    assert!(errors.starts_with("pulsegate: the token is empty"), "{errors}");
}

fn deployed(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)).unwrap()
}

#[test]
fn the_production_configuration_is_right() {
    let directory = directory();
    assert_eq!(run(directory.path(), &["dev-certs", "tls"]).0, 0);
    // Enough descriptors for its connections, whatever the limit is where this test runs.
    let text = deployed("pulsegate.toml");
    assert!(text.contains("\nworkers = 0\n"));
    fs::write(directory.path().join("pulsegate.toml"), text.replace("\nworkers = 0\n", "\nworkers = 64\n")).unwrap();
    let (code, text, errors) = run(directory.path(), &["check-config", "--config", "pulsegate.toml"]);
    assert_eq!((code, errors.as_str()), (0, ""), "{text}");
    assert!(!text.contains("note: ") && text.contains("at most 100,000"), "{text}");
}

#[test]
fn the_systemd_unit_gives_commands_that_are_understood() {
    let unit = deployed("pulsegate.service");
    let commands: Vec<_> = unit
        .lines()
        .filter_map(|line| line.strip_prefix("ExecStartPre=").or_else(|| line.strip_prefix("ExecStart=")))
        .collect();
    assert_eq!(commands.len(), 2);
    let directory = directory();
    for command in commands {
        let arguments = command.strip_prefix("/usr/bin/pulsegate ").unwrap();
        // On a machine without the file: understood (not 2), and refused for the file alone.
        let arguments = arguments.replace("/etc/pulsegate/pulsegate.toml", "nowhere.toml");
        let (code, _, errors) = run(directory.path(), &arguments.split(' ').collect::<Vec<_>>());
        assert_eq!(code, 1, "{errors}");
        assert!(errors.contains("nowhere.toml: the configuration file cannot be read"), "{errors}");
    }
    let descriptors = unit.lines().find_map(|line| line.strip_prefix("LimitNOFILE=")).unwrap();
    assert!(descriptors.parse::<u64>().unwrap() >= 200_000);
}

/// A file that is there must be whole: half a key is worse than none, for it looks like one.
#[test]
fn a_full_disk_leaves_no_half_certificates() {
    let directory = directory();
    let on_full_disk = |arguments: &str| {
        // No file may have a byte, and the signal that says so is ignored: each write fails as on a full disk.
        let script = format!("trap '' XFSZ; ulimit -f 0; exec \"$0\" {arguments}");
        let mut command = Command::new("sh");
        command.current_dir(directory.path()).args(["-c", &script, env!("CARGO_BIN_EXE_pulsegate")]);
        ended(command.output().unwrap())
    };
    let (code, _, errors) = on_full_disk("dev-certs certs");
    assert_eq!((code, errors.lines().count()), (1, 1), "{errors}");
    assert!(errors.contains("certs/ca.key"), "{errors}");
    assert_eq!(fs::read_dir(directory.path().join("certs")).unwrap().count(), 0);

    // Once there is room again it goes on as if nothing had been, and what is there survives the next full disk.
    assert_eq!(run(directory.path(), &["dev-certs", "certs"]).0, 0);
    assert_eq!(on_full_disk("dev-certs certs --client a").0, 1);
    let (code, text, _) = run(directory.path(), &["dev-certs", "certs"]);
    assert_eq!((code, text.matches("kept").count()), (0, 2), "{text}");
    assert_eq!(fs::read_dir(directory.path().join("certs")).unwrap().count(), 4);
}
