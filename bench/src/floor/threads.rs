//! CPU time of other threads, and on which core one's own runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Threads whose CPU time is looked up in /proc.
#[derive(Clone)]
pub(super) enum Threads {
    /// These of this process.
    Own(Vec<u32>),
    /// All of another process, whichever there are.
    Process(u32),
}

impl Threads {
    /// The threads of this process that are there now.
    pub(super) fn present() -> Vec<u32> {
        tasks(Path::new("/proc/self/task"))
    }

    /// What all of them have had so far.
    pub(super) fn cpu(&self) -> Duration {
        match self {
            Threads::Own(threads) => {
                threads.iter().map(|id| cpu_of(&PathBuf::from(format!("/proc/self/task/{id}")))).sum()
            }
            Threads::Process(process) => {
                let directory = PathBuf::from(format!("/proc/{process}/task"));
                tasks(&directory).iter().map(|id| cpu_of(&directory.join(id.to_string()))).sum()
            }
        }
    }
}

fn tasks(directory: &Path) -> Vec<u32> {
    let entries = fs::read_dir(directory).expect("the process is there");
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// One thread's: to the nanosecond where the kernel keeps schedstat, else to its clock tick of 10 ms.
fn cpu_of(task: &Path) -> Duration {
    let first = |text: String| text.split(' ').next().and_then(|number| number.parse().ok());
    if let Some(nanos) = fs::read_to_string(task.join("schedstat")).ok().and_then(first)
        && nanos > 0
    {
        return Duration::from_nanos(nanos);
    }
    let stat = fs::read_to_string(task.join("stat")).unwrap_or_default();
    // proc(5): behind the name in brackets, utime and stime are the 12th and 13th.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(10 * ticks)
}

/// The cores that this thread may use.
pub(super) fn allowed_cores() -> Vec<usize> {
    let Ok(allowed) = sched_getaffinity(None) else { return Vec::new() };
    (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect()
}

/// Keeps this thread on one core until the result is dropped. Where that is not allowed, figures are only noisier.
pub(super) fn pin(core: Option<usize>) -> Pinned {
    let before = sched_getaffinity(None).ok();
    if let Some(core) = core {
        let mut only = CpuSet::new();
        only.set(core);
        let _ = sched_setaffinity(None, &only);
    }
    Pinned { before }
}

/// See [`pin`].
pub(super) struct Pinned {
    before: Option<CpuSet>,
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = sched_setaffinity(None, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_thread_is_seen_to_be_busy() {
        let (sender, receiver) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            sender.send(rustix::thread::gettid().as_raw_nonzero().get() as u32).unwrap();
            let until = crate::clock::thread_cpu() + Duration::from_millis(60);
            while crate::clock::thread_cpu() < until {}
            sender.send(0).unwrap();
            std::thread::park();
        });
        let threads = Threads::Own(vec![receiver.recv().unwrap()]);
        receiver.recv().unwrap();
        assert!(threads.cpu() >= Duration::from_millis(50), "{:?}", threads.cpu());
        thread.thread().unpark();
        thread.join().unwrap();
    }
}
