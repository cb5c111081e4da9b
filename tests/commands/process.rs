//! What happens to the process from outside: whoever reads its log hangs, goes, or is full; signals that mean nothing.

use std::io::{BufRead, BufReader, PipeReader, Write, pipe};
use std::net::TcpStream;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::support::{SOON, Site, wait_for};

/// A gateway whose stderr and stdout are the test's own, and that is asked over HTTP alone.
struct Bare {
    child: Child,
    admin: String,
    agent: ureq::Agent,
}

impl Bare {
    #[track_caller]
    fn spawn(site: &Site, mut command: Command) -> Self {
        let port = super::support::free_port();
        let text = std::fs::read_to_string(site.path().join("pulsegate.toml")).unwrap();
        let text =
            text.replace("[admin]\nlisten = \"127.0.0.1:0\"", &format!("[admin]\nlisten = \"127.0.0.1:{port}\""));
        std::fs::write(site.path().join("pulsegate.toml"), text).unwrap();
        let child = command.current_dir(site.path()).stdin(Stdio::null()).spawn().unwrap();
        let agent = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(SOON)).build();
        let bare = Self { child, admin: format!("http://127.0.0.1:{port}"), agent: agent.into() };
        wait_for("it listens", || bare.get("/readyz").filter(|(status, _)| *status == 200));
        bare
    }

    fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut response = self.agent.get(format!("{}{path}", self.admin)).call().ok()?;
        Some((response.status().as_u16(), response.body_mut().read_to_string().ok()?))
    }

    fn lost_lines(&self) -> u64 {
        let (_, text) = self.get("/metrics").expect("metrics");
        let line = text.lines().find_map(|line| line.strip_prefix("pulsegate_log_lines_lost_total ")).unwrap();
        line.parse().unwrap()
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// A line of the log for each: requests without an answer make none.
    #[track_caller]
    fn fill_log(&self, until: impl Fn(&Self) -> bool) {
        wait_for("the log is full", || {
            for _ in 0..200 {
                self.signal(Signal::USR1);
                self.get("/healthz");
            }
            until(self).then_some(())
        });
    }

    #[track_caller]
    fn wait(&mut self) -> ExitStatus {
        wait_for("it ends", || self.child.try_wait().unwrap())
    }

    #[track_caller]
    fn end(mut self) {
        assert_eq!(self.get("/readyz").unwrap().0, 200);
        self.signal(Signal::TERM);
        assert_eq!(self.wait().code(), Some(0));
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn gateway() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pulsegate"));
    command.args(["--config", "pulsegate.toml", "--log-format", "json"]).stdout(Stdio::null());
    command
}

/// Reads lines until one holds `part`.
#[track_caller]
fn read_until(lines: &mut impl Iterator<Item = String>, part: &str) -> Value {
    let line = lines.find(|line| line.contains(part)).unwrap_or_else(|| panic!("{part} was not said"));
    serde_json::from_str(&line).unwrap()
}

fn lines(reader: PipeReader) -> impl Iterator<Item = String> {
    BufReader::new(reader).lines().map_while(Result::ok)
}

#[test]
fn the_log_s_reader_goes_and_the_gateway_goes_on() {
    let site = Site::new("");
    let (reader, writer) = pipe().unwrap();
    let mut command = gateway();
    command.stderr(writer);
    let gateway = Bare::spawn(&site, command);
    drop(reader);
    gateway.fill_log(|gateway| gateway.lost_lines() > 0);
    gateway.end();
}

#[test]
fn a_log_collector_that_hangs_holds_nobody_up_and_is_told_what_it_missed() {
    let site = Site::new("");
    let (reader, writer) = pipe().unwrap();
    let mut command = gateway();
    command.args(["--log-filter", "trace"]).stderr(writer);
    let gateway = Bare::spawn(&site, command);
    gateway.fill_log(|gateway| gateway.lost_lines() > 0);
    let mut lines = lines(reader);
    let account = read_until(&mut lines, "log lines were lost");
    assert_eq!(account["level"], "WARN", "{account}");
    // Whatever was lost, the end is told of again.
    std::thread::scope(|scope| {
        scope.spawn(move || read_until(&mut lines, "\"ended\""));
        gateway.end();
    });
}

#[test]
fn a_disk_that_is_full_takes_no_lines_and_the_gateway_goes_on() {
    // A store would find no room either, and could not be begun.
    let site = Site::new("[store]\ndurability = \"memory\"\n");
    let mut command = Command::new("sh");
    // Files end at 512 bytes. The signal that says so is left as it is: it must not end the gateway.
    command.args(["-c", "ulimit -f 1; exec \"$0\" \"$@\" 2>>log", env!("CARGO_BIN_EXE_pulsegate")]);
    command.args(gateway().get_args()).stdout(Stdio::null());
    let gateway = Bare::spawn(&site, command);
    gateway.fill_log(|gateway| gateway.lost_lines() > 0);
    gateway.end();
}

#[test]
fn nobody_needs_to_read_the_start_up_message() {
    let site = Site::new("");
    let (gone, writer) = pipe().unwrap();
    drop(gone);
    let mut command = gateway();
    command.stdout(writer).stderr(Stdio::null());
    Bare::spawn(&site, command).end();

    let site = Site::new("");
    let (_hangs, mut writer) = pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    while std::io::Write::write(&mut writer, &[b'x'; 4_096]).is_ok() {}
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    let mut command = gateway();
    command.stdout(writer).stderr(Stdio::null());
    Bare::spawn(&site, command).end();
}

#[test]
fn only_the_signals_that_should_end_it_do() {
    let site = Site::new("");
    let (reader, writer) = pipe().unwrap();
    let mut command = gateway();
    command.stderr(writer);
    let gateway = Bare::spawn(&site, command);
    let mut lines = lines(reader);
    for (signal, name) in [(Signal::USR1, "SIGUSR1"), (Signal::USR2, "SIGUSR2"), (Signal::ALARM, "SIGALRM")] {
        gateway.signal(signal);
        assert_eq!(read_until(&mut lines, "a signal that means nothing")["signal"], name);
    }
    for signal in [Signal::PIPE, Signal::IO, Signal::VTALARM, Signal::PROF, Signal::XCPU, Signal::XFSZ] {
        gateway.signal(signal);
    }
    gateway.end();
}

/// What one asks of a program that holds passwords.
#[test]
fn its_memory_goes_into_no_core_dump() {
    let site = Site::new("");
    let mut command = gateway();
    command.stderr(Stdio::null());
    let gateway = Bare::spawn(&site, command);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", gateway.child.id())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"], "{core}");
    gateway.end();
}

/// The filter that the help text and docs/OPERATING.md name.
#[test]
fn the_documented_filter_shows_who_was_refused_and_why() {
    let site = Site::new("[limits]\nconnections = 1");
    let (reader, writer) = pipe().unwrap();
    let mut command = gateway();
    command.args(["--log-filter", "info,pulsegate::connection=debug"]).stderr(writer);
    let gateway = Bare::spawn(&site, command);
    let mut lines = lines(reader);
    let mut stranger = TcpStream::connect(("127.0.0.1", site.port)).unwrap();
    stranger.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    let ended = read_until(&mut lines, "connection ended");
    assert_eq!((&ended["reason"], &ended["listener"]), (&"not_tls".into(), &"devices".into()), "{ended}");
    drop(stranger);

    // Whoever comes while the one place is taken. The stranger may take a moment to leave it.
    let held: Vec<TcpStream> = (0..3).map(|_| TcpStream::connect(("127.0.0.1", site.port)).unwrap()).collect();
    let refused = read_until(&mut lines, "refused before TLS");
    assert_eq!(refused["cause"], "connection_limit", "{refused}");
    assert_eq!((&refused["peer"], &refused["listener"]), (&"127.0.0.1".into(), &"devices".into()), "{refused}");
    drop(held);
    gateway.end();
}
