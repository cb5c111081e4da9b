//! A gateway in a process of its own, its API, native devices, and other programs.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use pulsegate::codec::native::{ALPN, Frame, Hello, decode};
use pulsegate::tls::certs::development;
use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;
use socket2::{Domain, Socket, Type};

/// By when something must have happened that should happen at once. Generous: machines are busy.
pub const SOON: Duration = Duration::from_secs(20);

/// Waits until `condition` gives something.
#[track_caller]
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not in time: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A directory with certificates and a configuration.
pub struct Site {
    directory: tempfile::TempDir,
    /// Where the native listener is.
    pub port: u16,
}

impl Site {
    /// Two workers, a native listener on a port that stays the same, and `tables` on top.
    pub fn new(tables: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        development::ensure(&directory.path().join("certs"), &[], SystemTime::now()).unwrap();
        let port = free_port();
        let config = format!(
            "workers = 2\n{tables}\n[admin]\nlisten = \"127.0.0.1:0\"\n\
             [[listener]]\nname = \"devices\"\nlisten = \"127.0.0.1:{port}\"\nprotocol = \"native\"\n\
             [listener.tls]\ncert = \"certs/server.pem\"\nkey = \"certs/server.key\"\n\
             [[listener]]\nname = \"raw\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"raw\"\n\
             [listener.tls]\ncert = \"certs/server.pem\"\nkey = \"certs/server.key\"\n"
        );
        std::fs::write(directory.path().join("pulsegate.toml"), config).unwrap();
        Self { directory, port }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn start(&self) -> Gateway {
        Gateway::start(self.path(), |_| {})
    }
}

/// A port that nobody has, below those that the kernel gives to outgoing connections.
pub fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(12_000..32_000);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// What a program has printed so far.
pub type Lines = Arc<Mutex<Vec<String>>>;

fn collect(from: impl Read + Send + 'static, into: &Lines) {
    let into = Arc::clone(into);
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            into.lock().unwrap().push(line);
        }
    });
}

/// A running program. It ends with this value.
pub struct Program {
    child: Child,
    pub lines: Lines,
}

impl Program {
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let lines = Lines::default();
        collect(child.stdout.take().unwrap(), &lines);
        collect(child.stderr.take().unwrap(), &lines);
        Self { child, lines }
    }

    /// Waits until `count` of its lines hold `part`, and gives back the last of those.
    #[track_caller]
    pub fn expect(&self, part: &str, count: usize) -> String {
        wait_for(part, || {
            let lines = self.lines.lock().unwrap();
            lines.iter().filter(|line| line.contains(part)).nth(count - 1).cloned()
        })
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    #[track_caller]
    pub fn wait(&mut self) -> ExitStatus {
        wait_for("the program ends", || self.child.try_wait().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            let lines = self.lines.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            eprintln!("--- {} ---\n{}", self.child.id(), lines[lines.len().saturating_sub(60)..].join("\n"));
        }
    }
}

/// A running gateway.
pub struct Gateway {
    pub program: Program,
    pub devices: SocketAddr,
    pub raw: SocketAddr,
    pub admin: SocketAddr,
    authority: std::path::PathBuf,
    agent: ureq::Agent,
}

impl Gateway {
    /// Starts what `directory/pulsegate.toml` describes, and waits until it listens.
    #[track_caller]
    pub fn start(directory: &Path, adjust: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
        command.current_dir(directory).args(["--config", "pulsegate.toml", "--log-format", "json"]);
        command.args(["--log-filter", "info,pulsegate=debug"]);
        adjust(&mut command);
        let program = Program::start(command);
        let address = |part: &str| {
            let line: Value = serde_json::from_str(&program.expect(part, 1)).unwrap();
            line["address"].as_str().unwrap().parse().unwrap()
        };
        let admin = address("\"admin listening\"");
        let agent = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(SOON)).build();
        let (devices, raw) = (address("\"listener\":\"devices\""), address("\"listener\":\"raw\""));
        let authority = directory.join("certs/ca.pem");
        Self { devices, raw, admin, authority, agent: agent.into(), program }
    }

    /// A request's status and JSON.
    #[track_caller]
    pub fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("http://{}{path}", self.admin));
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut response = self.agent.run(request.body(body).unwrap()).unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), serde_json::from_str(&text).unwrap_or_default())
    }

    /// A metric's value, summed over its labels.
    pub fn metric(&self, name: &str) -> Option<u64> {
        let text = self.agent.get(format!("http://{}/metrics", self.admin)).call().unwrap().body_mut().read_to_string();
        let text = text.unwrap();
        let lines = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
        lines.map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    #[track_caller]
    pub fn send(&self, device: &str, order: &Value) -> (u16, Value) {
        self.ask("POST", &format!("/v1/devices/{device}/messages"), Some(order))
    }

    /// The data of events from now on.
    pub fn follow(&self, query: &str) -> impl Iterator<Item = Value> + use<> {
        let response = self.agent.get(format!("http://{}/v1/events{query}", self.admin)).call().unwrap();
        assert_eq!(response.status(), 200);
        let lines = BufReader::new(response.into_body().into_reader()).lines();
        lines.map_while(Result::ok).filter_map(|line| Some(serde_json::from_str(line.strip_prefix("data:")?).unwrap()))
    }

    /// This program's own command line against this gateway: exit code, stdout, stderr.
    pub fn run(&self, arguments: &[&str], input: &[u8]) -> (i32, String, String) {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
        command.args(arguments).arg("--admin").arg(format!("http://{}", self.admin));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// A native device that was welcomed.
    #[track_caller]
    pub fn connect(&self, id: &str) -> Device {
        let mut device = Device::over(self.devices, &self.authority, Some(ALPN));
        device.say(&Frame::Hello(Hello { heartbeat_ms: 0, id, token: b"" }));
        assert_eq!(device.hear(), Heard::Welcome);
        device
    }

    /// A connection of the raw listener.
    pub fn connect_raw(&self) -> Device {
        Device::over(self.raw, &self.authority, None)
    }
}

/// What a device hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    Welcome,
    Message { id: u32, topic: String, payload: Vec<u8> },
    Close { code: String, retry_after_ms: u32 },
    Ack(u32),
    End,
}

/// A device: blocking, one connection.
pub struct Device {
    pub stream: StreamOwned<ClientConnection, TcpStream>,
    inbox: Vec<u8>,
}

impl Device {
    pub fn over(address: SocketAddr, authority: &Path, alpn: Option<&[u8]>) -> Self {
        Self::over_from(Ipv4Addr::LOCALHOST, address, authority, alpn)
    }

    /// The same, from another address of the loopback network: a stranger to whoever counts by address.
    pub fn over_from(source: Ipv4Addr, address: SocketAddr, authority: &Path, alpn: Option<&[u8]>) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(authority).unwrap()).unwrap();
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.into_iter().map(<[u8]>::to_vec).collect();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
        socket.connect(&address.into()).unwrap();
        let socket = TcpStream::from(socket);
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        let tls = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
        Self { stream: StreamOwned::new(tls, socket), inbox: Vec::new() }
    }

    #[track_caller]
    pub fn say(&mut self, frame: &Frame<'_>) {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        self.stream.write_all(&bytes).unwrap();
        self.stream.flush().unwrap();
    }

    /// The next thing that the gateway says, heartbeats aside.
    #[track_caller]
    pub fn hear(&mut self) -> Heard {
        loop {
            let heard = decode(&self.inbox, 65_535).unwrap().map(|(frame, length)| (describe(&frame), length));
            if let Some((heard, length)) = heard {
                self.inbox.drain(..length);
                if let Some(heard) = heard {
                    return heard;
                }
                continue;
            }
            let mut chunk = [0; 4_096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Heard::End,
                Ok(count) => self.inbox.extend_from_slice(&chunk[..count]),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// Whether nothing comes for a while.
    pub fn is_silent_for(&mut self, span: Duration) -> bool {
        self.stream.sock.set_read_timeout(Some(span)).unwrap();
        let read = self.stream.read(&mut [0; 1]);
        self.stream.sock.set_read_timeout(Some(SOON)).unwrap();
        matches!(read, Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
            && self.inbox.is_empty()
    }
}

fn describe(frame: &Frame<'_>) -> Option<Heard> {
    Some(match frame {
        Frame::Welcome(_) => Heard::Welcome,
        Frame::Message(message) => {
            Heard::Message { id: message.id, topic: message.topic.to_owned(), payload: message.payload.to_vec() }
        }
        Frame::Ack(id) => Heard::Ack(*id),
        Frame::Close(close) => {
            Heard::Close { code: close.code.name().to_owned(), retry_after_ms: close.retry_after_ms }
        }
        Frame::Ping(_) | Frame::Pong(_) => return None,
        Frame::Hello(_) => panic!("a gateway says no HELLO"),
    })
}
