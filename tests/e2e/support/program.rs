//! Clients that we did not write, in processes of their own.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use super::{SOON, wait_for, wait_until};

/// A running program, with all that it has printed so far. It ends with this value, however the test ends.
pub struct Program {
    name: String,
    child: Child,
    stdin: Option<ChildStdin>,
    printed: Arc<Mutex<Vec<u8>>>,
}

impl Program {
    /// `openssl` with these arguments.
    pub fn openssl(directory: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new("openssl");
        command.current_dir(directory).args(arguments);
        Self::start(command)
    }

    /// Python with a client from `tests/e2e/clients`.
    pub fn python(directory: &Path, client: &str, arguments: &[&str]) -> Self {
        let clients = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/clients");
        let mut command = Command::new("python3");
        command.current_dir(directory).arg(clients.join(client)).args(arguments);
        Self::start(command)
    }

    /// Any command.
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        let name = format!("{command:?}");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}"));
        let printed = Arc::new(Mutex::new(Vec::new()));
        collect(child.stdout.take().unwrap(), &printed);
        collect(child.stderr.take().unwrap(), &printed);
        Self { stdin: child.stdin.take(), name, child, printed }
    }

    /// Writes to its standard input.
    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("its input is open");
        stdin.write_all(bytes).unwrap();
        stdin.flush().unwrap();
    }

    /// Ends its standard input.
    pub fn end_input(&mut self) {
        self.stdin = None;
    }

    /// All that it has printed, on standard output and standard error.
    pub fn printed(&self) -> Vec<u8> {
        self.printed.lock().unwrap().clone()
    }

    /// The same as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.printed()).into_owned()
    }

    /// Waits until it has printed `part` at least `times` times.
    #[track_caller]
    pub fn expect_times(&self, part: &[u8], times: usize) {
        let what = format!("{}: {:?}", self.name, String::from_utf8_lossy(part));
        wait_until(&what, SOON, || {
            self.printed().windows(part.len()).filter(|window| window == &part).count() >= times
        });
    }

    /// Waits until it has printed `part`.
    #[track_caller]
    pub fn expect(&self, part: &str) {
        self.expect_times(part.as_bytes(), 1);
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Whether it runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn wait(&mut self, within: Duration) -> ExitStatus {
        let name = self.name.clone();
        wait_for(&format!("{name} ends"), within, || self.child.try_wait().unwrap())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // Its end is ours to see to; there is nobody to be told that it was gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}", self.name, self.text());
        }
    }
}

fn collect(mut from: impl Read + Send + 'static, into: &Arc<Mutex<Vec<u8>>>) {
    let into = Arc::clone(into);
    std::thread::spawn(move || {
        let mut chunk = [0; 4_096];
        while let Ok(count @ 1..) = from.read(&mut chunk) {
            into.lock().unwrap().extend_from_slice(&chunk[..count]);
        }
    });
}
