//! nats-server: one, or a cluster of three, each with its store in the site's directory, and asked over plain TCP.

use std::io::BufRead;
use std::net::TcpListener;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::nats::{nats_ask, nats_server, nats_tell};
use crate::support::{Program, SOON, Site};

/// Servers on ports of their own, which may come and go with what they keep.
pub struct Servers<'a> {
    site: &'a Site,
    /// Where clients find them.
    pub ports: Vec<u16>,
    routes: Vec<u16>,
    running: Vec<Option<Program>>,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl<'a> Servers<'a> {
    /// So many, none of which runs yet.
    pub fn new(site: &'a Site, count: usize) -> Self {
        let ports = |count| (0..count).map(|_| free_port()).collect();
        Self { site, ports: ports(count), routes: ports(count), running: (0..count).map(|_| None).collect() }
    }

    /// As they stand in a configuration.
    pub fn urls(&self, scheme: &str) -> String {
        let urls: Vec<_> = self.ports.iter().map(|port| format!("\"{scheme}://localhost:{port}\"")).collect();
        format!("[{}]", urls.join(", "))
    }

    pub fn start_all(&mut self) {
        (0..self.ports.len()).for_each(|server| self.start(server, &[]));
    }

    pub fn start(&mut self, server: usize, further: &[&str]) {
        let mut command = nats_server();
        let store = format!("nats-{server}");
        command.current_dir(self.site.directory()).args(["-js", "-sd", &store, "-a", "127.0.0.1", "-p"]);
        command.arg(self.ports[server].to_string()).args(further);
        if self.ports.len() > 1 {
            let routes: Vec<_> = self.routes.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
            let cluster = format!("nats://127.0.0.1:{}", self.routes[server]);
            command.args([
                "-n",
                &store,
                "--cluster_name",
                "fleet",
                "--cluster",
                &cluster,
                "--routes",
                &routes.join(","),
            ]);
        }
        let program = Program::start(command);
        program.expect("Server is ready");
        self.running[server] = Some(program);
    }

    pub fn signal(&self, server: usize, signal: Signal) {
        self.running[server].as_ref().unwrap().signal(signal);
    }

    pub fn stop(&mut self, server: usize, signal: Signal) {
        if let Some(mut program) = self.running[server].take() {
            program.signal(signal);
            program.wait(SOON);
        }
    }

    /// Asks the first of them, as any client may.
    #[track_caller]
    pub fn ask(&self, subject: &str, body: &Value) -> Value {
        nats_ask(self.ports[0], subject, body)
    }

    /// The same, if there is an answer so soon.
    pub fn ask_within(&self, subject: &str, body: &Value, within: Duration) -> Option<Value> {
        let (socket, mut lines) = nats_tell(self.ports[0], subject, body);
        socket.set_read_timeout(Some(within)).unwrap();
        let mut line = String::new();
        while !line.starts_with("MSG ") {
            line.clear();
            lines.read_line(&mut line).ok().filter(|read| *read > 0)?;
        }
        line.clear();
        lines.read_line(&mut line).ok()?;
        Some(serde_json::from_str(&line).unwrap())
    }

    /// How many rows a bucket of the fleet has.
    #[track_caller]
    pub fn rows(&self, bucket: &str) -> u64 {
        self.try_rows(bucket).unwrap_or_else(|| panic!("there is no bucket {bucket}"))
    }

    /// The same; `None`: there is no such bucket just now.
    pub fn try_rows(&self, bucket: &str) -> Option<u64> {
        // Of sessions there is something of gateways beside.
        let asked = serde_json::json!({"subjects_filter": "$KV.pulsegate_sessions.*.>"});
        let state = &self.ask(&format!("$JS.API.STREAM.INFO.KV_{bucket}"), &asked)["state"];
        let beside = state["subjects"].as_object().map_or(0, |subjects| subjects.len() as u64);
        Some(state["messages"].as_u64()? - beside)
    }
}
