//! What can be seen from outside: the server's process, the kernel's memory, this machine, and what a Pulsegate's own
//! metrics said.

use std::collections::BTreeMap;
use std::fs;
use std::io;

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

/// A process as /proc shows it.
#[derive(Clone, Copy, Debug)]
pub struct Process(u32);

/// A process at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Physical memory, in bytes.
    pub rss_bytes: u64,
    /// The same, with shared pages divided among those who share them, in bytes. 0 where it was not asked for.
    pub pss_bytes: u64,
    /// CPU time used so far, in user and kernel mode, in microseconds.
    pub cpu_micros: u64,
}

impl Process {
    /// The process with this id.
    pub fn new(pid: u32) -> Self {
        Self(pid)
    }

    /// Everything; walking the process's memory takes some milliseconds for each gigabyte.
    ///
    /// # Errors
    /// When there is no such process, or it is another user's.
    pub fn measure(self) -> io::Result<Usage> {
        let rollup = fs::read_to_string(self.path("smaps_rollup"))?;
        Ok(Usage {
            rss_bytes: kilobytes(&rollup, "Rss:").unwrap_or(0),
            pss_bytes: kilobytes(&rollup, "Pss:").unwrap_or(0),
            cpu_micros: self.cpu()?,
        })
    }

    /// Without PSS, cheaply.
    ///
    /// # Errors
    /// As [`Process::measure`].
    pub fn glance(self) -> io::Result<Usage> {
        let status = fs::read_to_string(self.path("status"))?;
        Ok(Usage { rss_bytes: kilobytes(&status, "VmRSS:").unwrap_or(0), pss_bytes: 0, cpu_micros: self.cpu()? })
    }

    /// Stops it (SIGSTOP) until what is returned is dropped.
    ///
    /// # Errors
    /// When there is no such process, or it is another user's.
    pub fn stop(self) -> io::Result<Stopped> {
        let pid = Pid::from_raw(self.0 as i32).ok_or(io::ErrorKind::NotFound)?;
        kill_process(pid, Signal::STOP)?;
        Ok(Stopped(pid))
    }

    fn cpu(self) -> io::Result<u64> {
        let stat = fs::read_to_string(self.path("stat"))?;
        parse_cpu(&stat).ok_or_else(|| io::Error::other("/proc/PID/stat has another form than expected"))
    }

    fn path(self, file: &str) -> String {
        format!("/proc/{}/{file}", self.0)
    }
}

/// A process that stands still; it goes on when this is dropped, whatever happens to the run.
pub struct Stopped(Pid);

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have been ended meanwhile.
        let _ = kill_process(self.0, Signal::CONT);
    }
}

/// `utime` and `stime`, the 14th and 15th fields. The second field is the name in parentheses, and may hold anything.
fn parse_cpu(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(ticks * 1_000_000 / rustix::param::clock_ticks_per_second())
}

fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_ascii_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1_024)
}

/// What the whole kernel holds, at one moment. Differences of it are the connections' when nothing else happens here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Kernel {
    /// Sockets, inodes, files, epoll entries and everything else that the kernel allocates by the piece.
    pub slab_bytes: u64,
    /// Pages in socket buffers.
    pub socket_buffer_bytes: u64,
}

impl Kernel {
    /// Zero where /proc does not say.
    pub fn measure() -> Self {
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let sockets = fs::read_to_string("/proc/net/sockstat").unwrap_or_default();
        Self {
            slab_bytes: kilobytes(&memory, "Slab:").unwrap_or(0),
            socket_buffer_bytes: buffer_pages(&sockets) * rustix::param::page_size() as u64,
        }
    }

    /// Both together.
    pub fn bytes(&self) -> u64 {
        self.slab_bytes + self.socket_buffer_bytes
    }
}

fn buffer_pages(sockstat: &str) -> u64 {
    let line = sockstat.lines().find(|line| line.starts_with("TCP:")).unwrap_or_default();
    let mut words = line.split_ascii_whitespace().skip_while(|&word| word != "mem");
    words.nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0)
}

/// The machine and the source that a figure is of.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// Cores that this process may use.
    pub cores: usize,
    /// The processor's name.
    pub processor: String,
    /// Physical memory, in bytes.
    pub memory_bytes: u64,
    /// The kernel's release.
    pub kernel: String,
    /// Other load: the average of the last minute when the run began.
    pub load_average: String,
}

impl Machine {
    /// This one.
    pub fn detect() -> Self {
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let name = processors.lines().find(|line| line.starts_with("model name"));
        let name = name.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, name)| name);
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        Self {
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            processor: name.to_owned(),
            memory_bytes: kilobytes(&memory, "MemTotal:").unwrap_or(0),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            load_average: load.split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

/// The commit of the source tree that the harness is run in, if git knows one.
pub fn commit() -> Option<String> {
    let output = std::process::Command::new("git").args(["rev-parse", "HEAD"]).output().ok()?;
    let commit = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| commit.trim().to_owned())
}

/// What /metrics said at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    /// From the text that the control plane answers with.
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let pairs = lines.filter_map(|line| line.rsplit_once(' '));
        Self(pairs.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect())
    }

    /// The sum over all workers of the metric of this name that carries this label, or any where it is empty.
    pub fn sum(&self, name: &str, label: &str) -> f64 {
        self.values(name, label).sum()
    }

    /// The greatest value that any worker has.
    pub fn greatest(&self, name: &str) -> f64 {
        self.values(name, "").fold(0.0, f64::max)
    }

    fn values(&self, name: &str, label: &str) -> impl Iterator<Item = f64> {
        let fits = move |key: &str| {
            let labels = key.strip_prefix(name);
            labels.is_some_and(|labels| (labels.is_empty() || labels.starts_with('{')) && labels.contains(label))
        };
        self.0.iter().filter(move |(key, _)| fits(key)).map(|(_, value)| *value)
    }

    /// How much that sum has grown since `earlier`.
    pub fn growth(&self, earlier: &Metrics, name: &str, label: &str) -> f64 {
        self.sum(name, label) - earlier.sum(name, label)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_found_behind_any_name() {
        let stat = "17 (a) b (c) S 1 17 17 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 1 0 5 1 1";
        let per_second = rustix::param::clock_ticks_per_second();
        assert_eq!(parse_cpu(stat), Some(300 * 1_000_000 / per_second));
        assert_eq!(parse_cpu("17 (a)"), None);
    }

    #[test]
    fn this_process_has_memory_and_has_used_time() {
        let own = Process::new(std::process::id());
        let (whole, glance) = (own.measure().unwrap(), own.glance().unwrap());
        assert!(whole.rss_bytes > 100_000 && whole.pss_bytes > 100_000 && whole.pss_bytes <= whole.rss_bytes);
        assert!(glance.rss_bytes > 100_000);
        assert!(Process::new(u32::MAX).measure().is_err());
    }

    #[test]
    fn socket_buffers_are_counted_in_pages() {
        let text = "sockets: used 15\nTCP: inuse 1 orphan 0 tw 80 alloc 1 mem 238\nUDP: inuse 0 mem 9\n";
        assert_eq!(buffer_pages(text), 238);
        assert_eq!(buffer_pages(""), 0);
    }

    #[test]
    fn metrics_are_summed_over_workers_and_told_apart_by_name_and_label() {
        let text = "# TYPE a counter\na_total{worker=\"0\",reason=\"expired\"} 3\na_total{worker=\"1\",reason=\"expired\"} 4\n\
                    a_total{worker=\"0\",reason=\"shutdown\"} 9\na_total_more 100\nb 2.5\n# EOF\n";
        let metrics = Metrics::parse(text);
        let same = |one: f64, other: f64| (one - other).abs() < 1e-9;
        assert!(same(metrics.sum("a_total", "reason=\"expired\""), 7.0));
        assert!(same(metrics.sum("a_total", ""), 16.0));
        assert!(same(metrics.greatest("a_total"), 9.0));
        assert!(same(metrics.sum("b", ""), 2.5));
        assert!(same(metrics.growth(&Metrics::default(), "b", ""), 2.5));
    }
}
