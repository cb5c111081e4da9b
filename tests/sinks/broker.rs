//! mosquitto as the other side of the bridge, and who listens there.

use std::fmt::Write;
use std::process::Command;

use rustix::process::Signal;

use crate::free_port;
use crate::support::{Program, SOON, Site, wait_until};

/// A broker on one port, which may come and go; what it has acknowledged it keeps through an orderly end.
pub struct Broker<'a> {
    site: &'a Site,
    pub port: u16,
    is_tls: bool,
    program: Option<Program>,
}

impl<'a> Broker<'a> {
    /// Not started yet. `further` are lines of its configuration.
    pub fn new(site: &'a Site, is_tls: bool, further: &str) -> Self {
        let port = free_port();
        std::fs::create_dir_all(site.path("broker")).unwrap();
        let mut text = format!(
            "user root\nlistener {port} 127.0.0.1\nallow_anonymous true\npersistence true\npersistence_location {}/\n\
             max_queued_messages 0\n{further}\n",
            site.path("broker").display()
        );
        if is_tls {
            let path = |name: &str| site.path(name).display().to_string();
            let _ = write!(
                text,
                "cafile {}\ncertfile {}\nkeyfile {}\nrequire_certificate true\n",
                path("certs/ca.pem"),
                path("certs/server.pem"),
                path("certs/server.key")
            );
        }
        site.write("mosquitto.conf", &text);
        Self { site, port, is_tls, program: None }
    }

    pub fn start(&mut self) {
        let daemon = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"]
            .into_iter()
            .find(|path| std::fs::exists(path).unwrap());
        let mut command = Command::new(daemon.unwrap_or("mosquitto"));
        command.current_dir(self.site.directory()).args(["-c", "mosquitto.conf", "-v"]);
        let program = Program::start(command);
        program.expect("running");
        self.program = Some(program);
    }

    /// Ends it in order: it keeps what it has.
    pub fn stop(&mut self) {
        if let Some(mut program) = self.program.take() {
            program.signal(Signal::TERM);
            program.wait(SOON);
        }
    }

    /// Neither reads nor writes until it is woken.
    pub fn freeze(&self, is_frozen: bool) {
        self.program.as_ref().unwrap().signal(if is_frozen { Signal::STOP } else { Signal::CONT });
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        self.program.as_ref().map_or(String::new(), Program::text)
    }

    fn client(&self, program: &str, arguments: &[&str]) -> Program {
        let mut command = Command::new(program);
        command.current_dir(self.site.directory()).args(["-V", "5", "-p", &self.port.to_string()]).args(arguments);
        if self.is_tls {
            let (cert, key) = self.site.identity("listener-1");
            command.args(["-h", "localhost", "--cafile"]).arg(self.site.authority());
            command.arg("--cert").arg(cert).arg("--key").arg(key);
        } else {
            command.args(["-h", "127.0.0.1"]);
        }
        Program::start(command)
    }

    /// Somebody whose session outlives the broker's restarts, and who prints a line for each message.
    pub fn listen(&self, filter: &str) -> Program {
        let format = "%t|%p|%P";
        let arguments = ["-i", "ledger", "-c", "-x", "86400", "-q", "1", "-t", filter, "-F", format];
        let listener = self.client("mosquitto_sub", &arguments);
        wait_until("the listener has subscribed", SOON, || self.log().contains("Sending SUBACK to ledger"));
        listener
    }

    /// Publishes one message.
    pub fn publish(&self, topic: &str, payload: &str) {
        let mut publisher = self.client("mosquitto_pub", &["-q", "1", "-t", topic, "-m", payload]);
        assert!(publisher.wait(SOON).success(), "{}", publisher.text());
    }

    /// Asks, and waits for the answer.
    pub fn request(&self, topic: &str, payload: &str) -> String {
        let arguments = ["-q", "1", "-t", topic, "-e", "answers/1", "-m", payload, "-W", "20"];
        let mut asker = self.client("mosquitto_rr", &arguments);
        assert!(asker.wait(SOON * 3).success(), "{}", asker.text());
        asker.text().trim().to_owned()
    }
}
