//! On what machine the figures were made.

use std::fmt;
use std::fs;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// What a reader must know of the machine and the build to make sense of absolute figures.
pub struct Machine {
    processor: String,
    cores: usize,
    memory_mib: u64,
    kernel: String,
    load: String,
    commit: String,
    profile: &'static str,
    unix_time: u64,
}

impl Machine {
    /// Looks around.
    pub fn look() -> Self {
        let kernel = rustix::system::uname();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown processor".to_owned()),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: field("/proc/meminfo", "MemTotal").map_or(0, |text| first_number(&text) / 1_024),
            kernel: format!("{} {}", kernel.sysname().to_string_lossy(), kernel.release().to_string_lossy()),
            load: load.split(' ').next().unwrap_or_default().to_owned(),
            commit: commit().unwrap_or_else(|| "unknown".to_owned()),
            profile: if cfg!(debug_assertions) { "debug: figures mean nothing" } else { "release" },
            unix_time: SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
        }
    }

    pub fn json(&self) -> Value {
        json!({
            "processor": self.processor,
            "cores": self.cores,
            "memory_mib": self.memory_mib,
            "kernel": self.kernel,
            "load_before": self.load,
            "commit": self.commit,
            "profile": self.profile,
            "unix_time": self.unix_time,
        })
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processor, cores, memory_mib, kernel, load, commit, profile, .. } = self;
        write!(f, "{processor}, {cores} cores, {memory_mib} MiB; {kernel}; load {load}; commit {commit}; {profile}")
    }
}

/// The value of the first line `name : value` in a file of such lines.
fn field(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

fn first_number(text: &str) -> u64 {
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn commit() -> Option<String> {
    let directory = env!("CARGO_MANIFEST_DIR");
    let output = Command::new("git").args(["-C", directory, "describe", "--always", "--dirty"]).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
