//! The real program in a process of its own, and what it says over HTTP.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Resource, Rlimit, Signal, kill_process, prlimit};
use serde_json::Value;

use super::{Follower, POLL, SOON, wait_for, wait_until};

/// Lines of the gateway's log that a failed test shows.
const LINES_SHOWN: usize = 80;
/// For how long turns are counted,
const QUIET_WINDOW: Duration = Duration::from_millis(500);
/// and those of two loops in that time that are nobody's doing: sleeps that end, ticks of the timing wheel.
const QUIET_TURNS: u64 = 8;
/// What a gateway logs under test.
const LOG_FILTER: &str = "info,pulsegate=debug";

/// A running gateway. It ends with this value, however the test ends.
pub struct Gateway {
    child: Child,
    ended: Option<ExitStatus>,
    /// That it fails is what the test is about.
    may_fail: bool,
    log: Arc<Mutex<Vec<Value>>>,
    listeners: HashMap<String, SocketAddr>,
    admin: SocketAddr,
    token: Option<String>,
    agent: ureq::Agent,
}

impl Gateway {
    /// Starts the gateway that `directory/pulsegate.toml` describes, and waits until it listens.
    #[track_caller]
    pub fn start(directory: &Path) -> Self {
        Self::spawn(Self::command(directory), LOG_FILTER)
    }

    /// The same; it logs what an operator would see, and nothing of each connection.
    #[track_caller]
    #[allow(dead_code, reason = "for tests of so many connections that their log would be the load")]
    pub fn start_quiet(directory: &Path) -> Self {
        Self::spawn(Self::command(directory), "info")
    }

    /// The same, with further arguments.
    #[track_caller]
    pub fn start_with(directory: &Path, arguments: &[&str]) -> Self {
        let mut command = Self::command(directory);
        command.args(arguments);
        Self::spawn(command, LOG_FILTER)
    }

    /// The same, with these variables in its environment.
    #[track_caller]
    #[allow(dead_code, reason = "not every test that has this file gives some")]
    pub fn start_in(directory: &Path, environment: &[(&str, &Path)]) -> Self {
        let mut command = Self::command(directory);
        command.envs(environment.iter().copied());
        Self::spawn(command, LOG_FILTER)
    }

    /// The same, with so many descriptors in each table.
    #[track_caller]
    pub fn start_with_descriptors(directory: &Path, descriptors: u32) -> Self {
        let usual = Self::command(directory);
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -n {descriptors} && exec \"$0\" \"$@\""));
        command.arg(usual.get_program()).args(usual.get_args()).current_dir(directory).stdin(Stdio::null());
        Self::spawn(command, LOG_FILTER)
    }

    #[track_caller]
    fn spawn(mut command: Command, log_filter: &str) -> Self {
        let mut child = command
            .args(["--log-format", "json", "--log-filter", log_filter])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (lines, written) = (BufReader::new(child.stderr.take().unwrap()), Arc::clone(&log));
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                // What an allocator or a linker says is text.
                let line = serde_json::from_str(&line).unwrap_or(Value::String(line));
                written.lock().unwrap().push(line);
            }
        });
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(SOON))
            .max_idle_connections_per_host(64)
            .build();
        let mut gateway = Self {
            child,
            ended: None,
            may_fail: false,
            log,
            listeners: HashMap::new(),
            admin: SocketAddr::from(([0, 0, 0, 0], 0)),
            token: None,
            agent: config.into(),
        };
        gateway.admin = wait_for("the gateway listens", SOON, || {
            assert!(gateway.child.try_wait().unwrap().is_none(), "the gateway has ended");
            gateway.logged("admin listening").first().map(|line| address(&line["address"]))
        });
        for line in gateway.logged("listening") {
            gateway.listeners.insert(line["listener"].as_str().unwrap().to_owned(), address(&line["address"]));
        }
        gateway
    }

    /// The program, about to serve what `directory/pulsegate.toml` describes.
    pub fn command(directory: &Path) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
        command.current_dir(directory).args(["--config", "pulsegate.toml"]).stdin(Stdio::null());
        command
    }

    /// Where the listener of this name listens.
    #[track_caller]
    pub fn address(&self, listener: &str) -> SocketAddr {
        self.listeners[listener]
    }

    /// Where the native listener of [`super::native`] listens.
    #[track_caller]
    pub fn devices(&self) -> SocketAddr {
        self.address("devices")
    }

    /// Log lines with this message.
    pub fn logged(&self, message: &str) -> Vec<Value> {
        self.log.lock().unwrap().iter().filter(|line| line["message"] == message).cloned().collect()
    }

    /// When a connection of this device ended for this reason.
    pub fn ended_at(&self, device: &str, reason: &str) -> Option<SystemTime> {
        let lines = self.logged("connection ended");
        let line = lines.iter().find(|line| line["device"] == device && line["reason"] == reason)?;
        Some(time(&line["timestamp"]))
    }

    // --- HTTP -------------------------------------------------------------------------------------------------------

    /// Sends this token with every request.
    pub fn use_token(&mut self, token: &str) {
        self.token = Some(token.to_owned());
    }

    /// A GET's status and body.
    #[track_caller]
    pub fn get(&self, path: &str) -> (u16, String) {
        let mut request = self.agent.get(format!("http://{}{path}", self.admin));
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let mut response = request.call().unwrap_or_else(|error| panic!("GET {path}: {error}"));
        (response.status().as_u16(), response.body_mut().read_to_string().unwrap())
    }

    /// The same, unless the gateway is gone.
    pub fn try_get(&self, path: &str) -> Option<(u16, String)> {
        let mut response = self.agent.get(format!("http://{}{path}", self.admin)).call().ok()?;
        Some((response.status().as_u16(), response.body_mut().read_to_string().ok()?))
    }

    /// A POST's status and JSON, unless the gateway is gone.
    pub fn try_post(&self, path: &str, body: &Value) -> Option<(u16, Value)> {
        let request =
            self.agent.post(format!("http://{}{path}", self.admin)).header("content-type", "application/json");
        let mut response = request.send(body.to_string()).ok()?;
        let text = response.body_mut().read_to_string().ok()?;
        Some((response.status().as_u16(), serde_json::from_str(&text).ok()?))
    }

    /// The address of the HTTP API, as the command line takes it.
    pub fn admin(&self) -> String {
        format!("http://{}", self.admin)
    }

    /// A GET's JSON; its status must be 200.
    #[track_caller]
    pub fn get_json(&self, path: &str) -> Value {
        let (status, body) = self.get(path);
        assert_eq!(status, 200, "GET {path}: {body}");
        serde_json::from_str(&body).unwrap()
    }

    /// A POST's status and JSON; null where there is nothing to say.
    #[track_caller]
    pub fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        let request =
            self.agent.post(format!("http://{}{path}", self.admin)).header("content-type", "application/json");
        let mut response = request.send(body.to_string()).unwrap_or_else(|error| panic!("POST {path}: {error}"));
        let text = response.body_mut().read_to_string().unwrap();
        let answer = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
        (response.status().as_u16(), answer)
    }

    /// The events from now on.
    #[track_caller]
    pub fn follow(&self, query: &str) -> Follower {
        Follower::new(self.admin, query, None)
    }

    /// The same for a reader that will not read: the kernel takes little for it.
    #[track_caller]
    pub fn follow_without_reading(&self, query: &str) -> Follower {
        Follower::new(self.admin, query, Some(4_096))
    }

    /// What is said of one device, if it is connected.
    #[track_caller]
    pub fn device(&self, id: &str) -> Option<Value> {
        let (status, body) = self.get(&format!("/v1/devices/{}", id.replace('/', "%2F")));
        match status {
            200 => Some(serde_json::from_str(&body).unwrap()),
            404 => None,
            _ => panic!("{status}: {body}"),
        }
    }

    /// The overview.
    #[track_caller]
    pub fn overview(&self) -> Value {
        self.get_json("/v1/overview")
    }

    /// Devices connected.
    #[track_caller]
    pub fn connected(&self) -> u64 {
        self.overview()["devices"].as_u64().unwrap()
    }

    /// Connections held.
    #[track_caller]
    pub fn connections(&self) -> u64 {
        self.overview()["connections"].as_u64().unwrap()
    }

    /// Connections that ended for this reason.
    #[track_caller]
    pub fn closed(&self, reason: &str) -> u64 {
        self.overview()["closed"][reason].as_u64().unwrap()
    }

    /// Every reason for which connections have ended, with their number.
    #[track_caller]
    pub fn all_closed(&self) -> Vec<(String, u64)> {
        let overview = self.overview();
        let counts = overview["closed"].as_object().unwrap().iter();
        counts
            .map(|(reason, count)| (reason.clone(), count.as_u64().unwrap()))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// Connections that were refused for this reason.
    #[track_caller]
    pub fn refused(&self, reason: &str) -> u64 {
        self.overview()["refused"][reason].as_u64().unwrap()
    }

    /// Bytes that the program holds from its allocator.
    #[track_caller]
    pub fn allocated(&self) -> u64 {
        self.overview()["memory"]["allocated_bytes"].as_u64().unwrap()
    }

    /// A metric's value, summed over its labels.
    #[track_caller]
    pub fn metric(&self, name: &str) -> u64 {
        let (status, text) = self.get("/metrics");
        assert_eq!(status, 200);
        let mut values = text.lines().filter_map(|line| {
            let (key, value) = line.rsplit_once(' ')?;
            (key.split('{').next() == Some(name)).then(|| value.parse::<f64>().unwrap())
        });
        let first = values.next().unwrap_or_else(|| panic!("there is no metric {name}"));
        (first + values.sum::<f64>()) as u64
    }

    /// Waits for a time in which the loops hardly turn, while its peers stay as they are.
    #[track_caller]
    pub fn expect_quiet(&self, state: &str) {
        wait_until(&format!("the loops rest with a peer that is {state}"), SOON, || {
            let before = self.metric("pulsegate_turns_total");
            std::thread::sleep(QUIET_WINDOW);
            self.metric("pulsegate_turns_total") - before <= QUIET_TURNS
        });
    }

    // --- What counts come to. A worker's are published at the end of its turn, when a peer may long have heard of it. -

    /// Waits until so many devices are connected.
    #[track_caller]
    pub fn expect_connected(&self, count: usize) {
        settle("devices", count as u64, || self.connected());
    }

    /// Waits until so many connections are held.
    #[track_caller]
    pub fn expect_connections(&self, count: usize) {
        settle("connections", count as u64, || self.connections());
    }

    /// Waits until so many connections have ended for this reason.
    #[track_caller]
    pub fn expect_closed(&self, reason: &str, count: u64) {
        settle(reason, count, || self.closed(reason));
    }

    /// Waits until so many connections were refused for this reason.
    #[track_caller]
    pub fn expect_refused(&self, reason: &str, count: u64) {
        settle(reason, count, || self.refused(reason));
    }

    /// Waits until a metric, summed over its labels, has this value.
    #[track_caller]
    pub fn expect_metric(&self, name: &str, value: u64) {
        settle(name, value, || self.metric(name));
    }

    /// Waits until no connection is held and the books are right: everyone who came has gone, for one reason each.
    #[track_caller]
    pub fn wait_until_empty(&self) {
        self.expect_connections(0);
        let accepted = || self.metric("pulsegate_connections_accepted_total");
        wait_until("everyone who came has gone for one reason", SOON, || {
            self.all_closed().iter().map(|(_, count)| count).sum::<u64>() == accepted()
        });
        self.expect_connected(0);
        for gauge in ["pulsegate_handshakes_in_flight", "pulsegate_handshakes_waiting", "pulsegate_buffered_bytes"] {
            self.expect_metric(gauge, 0);
        }
    }

    // --- Its process ------------------------------------------------------------------------------------------------

    /// The number of its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Bytes of memory that its process has in use (`VmRSS`).
    #[track_caller]
    pub fn resident(&self) -> u64 {
        self.memory_figure("VmRSS:")
    }

    /// The most that it ever had (`VmHWM`).
    #[track_caller]
    pub fn peak_resident(&self) -> u64 {
        self.memory_figure("VmHWM:")
    }

    #[track_caller]
    fn memory_figure(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("it runs");
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
    }

    /// Sets the number at which its descriptor tables end; gives back the one before. What is open stays open.
    pub fn limit_descriptors(&self, current: Option<u64>) -> Option<u64> {
        let pid = Some(Pid::from_child(&self.child));
        let maximum = rustix::process::getrlimit(Resource::Nofile).maximum;
        prlimit(pid, Resource::Nofile, Rlimit { current, maximum }).unwrap().current
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Stops it, and returns when it has stopped: the signal is sent before every thread has had it.
    #[track_caller]
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        let tasks = format!("/proc/{}/task", self.child.id());
        wait_until("every thread has stopped", SOON, || {
            std::fs::read_dir(&tasks).unwrap().all(|task| {
                let stat = std::fs::read_to_string(task.unwrap().path().join("stat")).unwrap();
                // The state is behind the name, which stands in brackets and may be anything.
                stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'))
            })
        });
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let status = wait_for("the gateway ends", within, || self.child.try_wait().unwrap());
        self.ended = Some(status);
        status
    }

    /// Waits for the failure that the test has brought about.
    #[track_caller]
    pub fn wait_for_failure(&mut self, within: Duration) -> ExitStatus {
        self.may_fail = true;
        self.wait(within)
    }

    /// Lets the system refuse whatever it writes to a file beyond so many bytes of it.
    pub fn limit_file_size(&self, bytes: u64) {
        let maximum = rustix::process::getrlimit(Resource::Fsize).maximum;
        prlimit(Some(Pid::from_child(&self.child)), Resource::Fsize, Rlimit { current: Some(bytes), maximum }).unwrap();
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let ended = self.ended.or_else(|| self.child.try_wait().unwrap());
        // Killed by the test is an end that was meant.
        let died = !self.may_fail
            && ended.is_some_and(|status| !status.success() && status.signal() != Some(Signal::KILL.as_raw()));
        // Its end is ours to see to; there is nobody to be told that it was gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.log.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let panicked = log.iter().any(|line| line["message"].as_str().is_some_and(|text| text.contains("panicked")));
        if std::thread::panicking() || died || panicked {
            eprintln!("--- the gateway's log, its last {LINES_SHOWN} lines ({ended:?}) ---");
            for line in &log[log.len().saturating_sub(LINES_SHOWN)..] {
                eprintln!("{line}");
            }
        }
        if !std::thread::panicking() {
            assert!(!died && !panicked, "the gateway has failed");
        }
    }
}

/// Waits until `read` gives what is expected; says what it gives instead when it does not in time.
#[track_caller]
fn settle(what: &str, expected: u64, mut read: impl FnMut() -> u64) {
    let deadline = Instant::now() + SOON;
    let mut value = read();
    while value != expected && Instant::now() < deadline {
        std::thread::sleep(POLL);
        value = read();
    }
    assert_eq!(value, expected, "{what}");
}

fn address(value: &Value) -> SocketAddr {
    value.as_str().unwrap().parse().unwrap()
}

fn time(value: &Value) -> SystemTime {
    humantime::parse_rfc3339(value.as_str().unwrap()).unwrap()
}

/// A field of the API that holds a time.
pub fn time_of(device: &Value, field: &str) -> SystemTime {
    time(&device[field])
}
