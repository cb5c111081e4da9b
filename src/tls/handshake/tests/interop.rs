//! Clients that we did not write, over real sockets, with development certificates: the `openssl` command and Python's
//! `ssl` module.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use super::*;
use crate::tls::certs::development::{self, DevelopmentCerts};
use crate::tls::record::RECORD_MAX;

/// Takes one connection, says hello and ends it when the peer does; whether it was a resumption.
pub(super) fn serve_once(tls: &ServerTls, listener: &TcpListener) -> bool {
    serve(tls, listener.accept().unwrap().0)
}

/// Answers one connection: `hello NAME of VERSION resumed BOOL` and then whatever is sent, until it is closed.
fn serve(tls: &ServerTls, mut stream: TcpStream) -> bool {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (mut inbox, mut out) = (Vec::new(), Vec::new());
    let wish = loop {
        receive(&mut stream, &mut inbox);
        match scan(&inbox, &[]) {
            Hello::Whole(wishes) => break wishes.records,
            Hello::Partial => {}
            Hello::TooLong => panic!("a ClientHello that is too long"),
        }
    };
    let mut handshake = Handshake::server(tls, wish);
    while !handshake.is_done {
        if let Some(length) = next_record(&inbox, Stage::Handshake).unwrap() {
            let record: Vec<u8> = inbox.drain(..length).collect();
            let handled = handshake.handle_record(&record, &mut out);
            check_sizes(&out, wish);
            stream.write_all(&std::mem::take(&mut out)).unwrap();
            let _progress = handled.unwrap();
        } else {
            receive(&mut stream, &mut inbox);
        }
    }
    let Established { mut records, peer, resumed, .. } = handshake.finish(&mut out).unwrap();
    let name = peer.and_then(|peer| peer.common_name).unwrap_or_else(|| "nobody".to_owned());
    let greeting = format!("hello {name} of {} resumed {resumed}\n", records.version());
    records.burst().seal(greeting.as_bytes(), &mut out).unwrap();
    loop {
        check_sizes(&out, wish);
        stream.write_all(&std::mem::take(&mut out)).unwrap();
        let Some(length) = records.burst().next_record(&inbox, &mut out).unwrap() else {
            receive(&mut stream, &mut inbox);
            continue;
        };
        let mut record: Vec<u8> = inbox.drain(..length).collect();
        let mut burst = records.burst();
        let said = match burst.open(&mut record, &mut out).unwrap() {
            Opened::Data(data) => data.to_vec(),
            Opened::Handled(_) => continue,
            Opened::CloseNotify => break,
        };
        burst.seal(&said, &mut out).unwrap();
    }
    records.burst().close_notify(&mut out);
    // The peer may be gone already; it has said its farewell.
    let _ = stream.write_all(&out);
    resumed
}

/// No record is longer than the peer can take.
fn check_sizes(mut out: &[u8], wish: RecordWish) {
    // The most that protection adds: a nonce and a tag, or a content type and a tag.
    let most = wish.limit(Version::Tls12).map_or(RECORD_MAX, |limit| limit.bytes() + HEADER_LEN + 24);
    while let Some(length) = next_record(out, Stage::Handshake).unwrap() {
        assert!(length <= most, "a record of {length} bytes, where {most} are right");
        out = &out[length..];
    }
}

fn receive(stream: &mut TcpStream, inbox: &mut Vec<u8>) {
    let mut chunk = [0; 4096];
    let read = stream.read(&mut chunk).unwrap();
    assert_ne!(read, 0, "the peer left without a word");
    inbox.extend_from_slice(&chunk[..read]);
}

struct Fixture {
    directory: tempfile::TempDir,
    certs: DevelopmentCerts,
    listener: TcpListener,
}

impl Fixture {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let certs = development::ensure(directory.path(), &["pump-17"], SystemTime::now()).unwrap();
        Self { directory, certs, listener: TcpListener::bind("127.0.0.1:0").unwrap() }
    }

    fn tls(&self) -> ServerTls {
        let (certs, ca) = (&self.certs, &*self.certs.authority.cert);
        let certificates = [(&*certs.server.cert, &*certs.server.key)];
        let options = ServerOptions {
            certificates: &certificates,
            client_auth: ClientAuth::Optional(ca),
            alpn: &[],
            ..ServerOptions::default()
        };
        ServerTls::load(&options).unwrap().0
    }

    /// Runs a client while `connections` of its connections are served. Its standard input stays open until it has
    /// printed `lines` lines, which are returned.
    fn run(&self, mut command: Command, connections: usize, input: &[u8], lines: usize) -> Vec<String> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.current_dir(self.directory.path()).spawn().expect("it is installed");
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(input).unwrap();
        let tls = self.tls();
        let printed = std::thread::scope(|scope| {
            let server = scope.spawn(|| {
                for _ in 0..connections {
                    serve(&tls, self.listener.accept().unwrap().0);
                }
            });
            let stdout = BufReader::new(child.stdout.take().unwrap());
            let printed: Vec<_> = stdout.lines().take(lines).map(Result::unwrap).collect();
            drop(stdin);
            server.join().unwrap();
            printed
        });
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{printed:?}\n{}", String::from_utf8_lossy(&output.stderr));
        printed
    }
}

#[test]
fn openssl_verifies_us_and_is_understood() {
    let fixture = Fixture::new();
    let address = fixture.listener.local_addr().unwrap().to_string();
    for (version, name) in [("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")] {
        let identity = ["-cert", "client-pump-17.pem", "-key", "client-pump-17.key"];
        for (identity, peer) in [(&[][..], "nobody"), (&identity[..], "pump-17")] {
            let mut command = Command::new("openssl");
            command.args(["s_client", "-connect", &address, version, "-CAfile", "ca.pem", "-verify_return_error"]);
            command.args(["-verify_hostname", "localhost", "-servername", "localhost", "-quiet", "-no_ign_eof"]);
            command.args(identity);
            let printed = fixture.run(command, 1, b"over and out\n", 2);
            assert_eq!(printed, [format!("hello {peer} of {name} resumed false"), "over and out".to_owned()]);
        }
    }
}

#[test]
fn openssl_that_can_take_little_is_sent_little_in_each_record() {
    let fixture = Fixture::new();
    let address = fixture.listener.local_addr().unwrap().to_string();
    let line = "x".repeat(5_000);
    for version in ["-tls1_3", "-tls1_2"] {
        for size in ["512", "1024", "4096"] {
            let mut command = Command::new("openssl");
            command.args(["s_client", "-connect", &address, version, "-CAfile", "ca.pem", "-maxfraglen", size]);
            command.args(["-servername", "localhost", "-quiet", "-no_ign_eof"]);
            let printed = fixture.run(command, 1, format!("{line}\n").as_bytes(), 2);
            assert_eq!(printed[1], line, "{version} {size}");
        }
    }
}

const PYTHON: &str = r#"
import socket, ssl, sys
port = int(sys.argv[1])
for version in (ssl.TLSVersion.TLSv1_3, ssl.TLSVersion.TLSv1_2):
    context = ssl.create_default_context(cafile="ca.pem")
    context.load_cert_chain("client-pump-17.pem", "client-pump-17.key")
    context.minimum_version = context.maximum_version = version
    session = None
    for name in ("localhost", "localhost", "127.0.0.1"):
        with socket.create_connection(("127.0.0.1", port)) as plain:
            tls = context.wrap_socket(plain, server_hostname=name, session=session if name == "localhost" else None)
            print(tls.makefile("rb").readline().decode(), end="", flush=True)
            tls.sendall(b"x" * 50000)
            left = 50000
            while left:
                left -= len(tls.recv(left))
            session = tls.session
            tls.unwrap()
"#;

#[test]
fn python_verifies_us_and_is_understood_and_resumes() {
    let fixture = Fixture::new();
    let port = fixture.listener.local_addr().unwrap().port().to_string();
    let mut command = Command::new("python3");
    command.args(["-c", PYTHON, &port]);
    let printed = fixture.run(command, 6, b"", 6);
    let expected = ["TLSv1.3", "TLSv1.2"]
        .map(|version| [false, true, false].map(|resumed| format!("hello pump-17 of {version} resumed {resumed}")));
    assert_eq!(printed, expected.concat());
}
