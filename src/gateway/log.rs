//! Where log lines go: a thread of its own writes them, and nobody else ever waits for it.
//!
//! ```text
//! event loop ──▶ line ──▶ queue, bounded in bytes ──▶ thread "log" ──▶ stderr
//!                  └── full, or the writing failed: lost and counted
//! ```
//!
//! Whoever writes a line never waits for the disk, pipe or terminal behind stderr, and never hears of its errors. What
//! is lost meanwhile is counted, and told in a line of its own as soon as lines are written again. The last lines of
//! a process get out as far as a bound of time allows ([`Log::flush`]).

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

/// Bytes of lines that may wait for the writer.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// What stays free for warnings and errors, so that a flood of lesser lines does not push them out.
const RESERVED_BYTES: usize = WAITING_BYTES_MAX / 4;
/// What a line costs in the queue beside its bytes.
const LINE_BYTES: usize = 64;
/// Bytes that are gathered for one write.
const BATCH_BYTES: usize = 64 << 10;
/// How long a descriptor that takes nothing just now is waited for at a time.
const PATIENCE: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// How the writer's own lines look: like those that it is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How much a line matters when there is no room for all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Weight {
    /// The first to be lost.
    Ordinary,
    /// A warning or an error.
    Important,
}

/// The way to the thread that writes. Clones share it.
#[derive(Clone)]
pub struct Log {
    jobs: Sender<Job>,
    shared: Arc<Shared>,
    format: LineFormat,
}

struct Shared {
    /// What the lines cost that are not written yet.
    waiting_bytes: AtomicUsize,
    lost: Arc<AtomicU64>,
}

enum Job {
    Line(Box<[u8]>),
    /// Answered when everything before it is written or lost.
    Flush(Sender<()>),
}

impl Log {
    /// Starts the thread `log`, which writes to `sink`.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(sink: impl Write + Send + 'static, format: LineFormat) -> io::Result<Self> {
        let (jobs, waiting) = unbounded();
        let shared = Arc::new(Shared { waiting_bytes: AtomicUsize::new(0), lost: Arc::default() });
        let writer = Writer { jobs: waiting, shared: shared.clone(), sink, format, told: 0, is_torn: false };
        thread::Builder::new().name("log".into()).spawn(move || writer.run())?;
        Ok(Self { jobs, shared, format })
    }

    /// Takes one line with its end, or loses and counts it. Never waits.
    pub fn push(&self, line: &[u8], weight: Weight) {
        let room = match weight {
            Weight::Ordinary => WAITING_BYTES_MAX - RESERVED_BYTES,
            Weight::Important => WAITING_BYTES_MAX,
        };
        let cost = cost(line);
        if self.shared.waiting_bytes.fetch_add(cost, Ordering::Relaxed) + cost > room {
            self.shared.waiting_bytes.fetch_sub(cost, Ordering::Relaxed);
            self.shared.lose(1);
        } else if self.jobs.send(Job::Line(line.into())).is_err() {
            // The thread is gone: only a panic of its own ends it while somebody may still write.
            self.shared.lose(1);
        }
    }

    /// Takes a line that is not the logger's but the process's own, such as its last words.
    pub fn say(&self, level: &str, message: &str) {
        self.push(self.format.line(level, message).as_bytes(), Weight::Important);
    }

    /// Waits until every line so far is written or lost, at most for `patience`.
    pub fn flush(&self, patience: Duration) {
        let (written, wait) = bounded(1);
        if self.jobs.send(Job::Flush(written)).is_ok() {
            // Whether it came to that or not, there is nothing else to do.
            let _ = wait.recv_timeout(patience);
        }
    }

    /// How many lines were lost so far.
    #[must_use]
    pub fn lost(&self) -> Arc<AtomicU64> {
        self.shared.lost.clone()
    }
}

impl Shared {
    fn lose(&self, lines: u64) {
        self.lost.fetch_add(lines, Ordering::Relaxed);
    }
}

fn cost(line: &[u8]) -> usize {
    line.len() + LINE_BYTES
}

impl LineFormat {
    fn line(self, level: &str, message: &str) -> String {
        let now = humantime::format_rfc3339_micros(SystemTime::now());
        match self {
            LineFormat::Text => format!("{now} {level:>5} pulsegate: {message}\n"),
            LineFormat::Json => {
                let line =
                    json!({"timestamp": now.to_string(), "level": level, "target": "pulsegate", "message": message});
                format!("{line}\n")
            }
        }
    }
}

/// The thread's own state.
struct Writer<W> {
    jobs: Receiver<Job>,
    shared: Arc<Shared>,
    sink: W,
    format: LineFormat,
    /// How many lost lines were told of.
    told: u64,
    /// The latest write ended within a line.
    is_torn: bool,
}

impl<W: Write> Writer<W> {
    /// Writes until nobody can say anything any more.
    fn run(mut self) {
        let mut batch = Vec::new();
        while let Ok(first) = self.jobs.recv() {
            let mut flushes = Vec::new();
            let (mut lines, mut costs) = (0, 0);
            let mut job = Some(first);
            while let Some(next) = job {
                match next {
                    Job::Line(line) => {
                        batch.extend_from_slice(&line);
                        lines += 1;
                        costs += cost(&line);
                    }
                    Job::Flush(written) => flushes.push(written),
                }
                job = if batch.len() < BATCH_BYTES { self.jobs.try_recv().ok() } else { None };
            }
            self.write(&batch, lines);
            batch.clear();
            self.shared.waiting_bytes.fetch_sub(costs, Ordering::Relaxed);
            for written in flushes {
                // Whoever has lost patience is not there any more.
                let _ = written.send(());
            }
        }
    }

    fn write(&mut self, batch: &[u8], lines: u64) {
        if batch.is_empty() {
            return;
        }
        if self.put(batch).is_err() {
            self.shared.lose(lines);
            return;
        }
        let lost = self.shared.lost.load(Ordering::Relaxed);
        if lost > self.told {
            let message = format!("{} log lines were lost: they could not be written in time", lost - self.told);
            if self.put(self.format.line("WARN", &message).as_bytes()).is_ok() {
                self.told = lost;
            }
        }
    }

    /// Writes all of it. What follows a line that broke off begins on a line of its own.
    fn put(&mut self, text: &[u8]) -> io::Result<()> {
        if self.is_torn {
            self.sink.write_all(b"\n")?;
            self.is_torn = false;
        }
        let mut written = 0;
        while written < text.len() {
            match self.sink.write(&text[written..]) {
                Ok(0) => return Err(self.torn(written, io::ErrorKind::WriteZero.into())),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.torn(written, error)),
            }
        }
        Ok(())
    }

    fn torn(&mut self, written: usize, error: io::Error) -> io::Error {
        self.is_torn = written > 0;
        error
    }
}

/// Standard error as a sink. It waits where somebody has made the descriptor one that does not.
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        // Not std's handle, whose lock a panic of another thread may hold.
        let stderr = io::stderr();
        loop {
            match rustix::io::write(stderr.as_fd(), text) {
                Err(rustix::io::Errno::AGAIN) => {
                    poll(&mut [PollFd::new(&stderr, PollFlags::OUT)], Some(&PATIENCE))?;
                }
                other => return Ok(other?),
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, PipeReader, pipe};
    use std::sync::Mutex;
    use std::time::Instant;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + SOON;
        while !condition() {
            assert!(Instant::now() < deadline, "not in time: {what}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn lost(log: &Log) -> u64 {
        log.lost().load(Ordering::Relaxed)
    }

    /// Pushes until nothing more is taken, the writer being stuck: how many lines were taken.
    fn fill(log: &Log, line: &[u8], weight: Weight) -> u64 {
        let before = lost(log);
        let mut taken = 0;
        loop {
            log.push(line, weight);
            if lost(log) > before {
                return taken;
            }
            taken += 1;
        }
    }

    fn lines_of(reader: PipeReader) -> impl Iterator<Item = String> {
        BufReader::new(reader).lines().map(Result::unwrap)
    }

    #[test]
    fn a_reader_that_hangs_holds_nobody_up_and_hears_how_much_it_has_missed() {
        let (reader, writer) = pipe().unwrap();
        let log = Log::start(writer, LineFormat::Text).unwrap();
        let line = [&[b'x'; 999][..], b"\n"].concat();
        // Nobody reads. What was taken and not written is within the bound.
        let ordinary = fill(&log, &line, Weight::Ordinary);
        assert!(ordinary as usize * line.len() < WAITING_BYTES_MAX + BATCH_BYTES, "{ordinary}");
        let important = fill(&log, &line, Weight::Important);
        assert!(important as usize > RESERVED_BYTES / line.len() / 2, "{important} warnings found room");
        let missing = lost(&log);
        assert!(missing >= 2);
        log.flush(Duration::ZERO);

        // Now somebody reads, and goes on reading.
        let (read, mut lines) = {
            let (read, lines) = unbounded();
            (thread::spawn(move || lines_of(reader).for_each(|line| read.send(line).unwrap())), lines.into_iter())
        };
        let account = lines.find(|line| line.contains("lost")).unwrap();
        assert!(account.contains(&format!(" WARN pulsegate: {missing} log lines were lost")), "{account}");
        wait_until("the queue is empty", || log.shared.waiting_bytes.load(Ordering::Relaxed) == 0);
        log.push(b"after\n", Weight::Ordinary);
        assert_eq!(lines.find(|line| !line.starts_with('x')).unwrap(), "after");
        assert_eq!(lost(&log), missing);
        drop(log);
        read.join().unwrap();
    }

    #[test]
    fn a_reader_that_is_gone_costs_lines_and_nothing_else() {
        let (reader, writer) = pipe().unwrap();
        let log = Log::start(writer, LineFormat::Json).unwrap();
        drop(reader);
        for _ in 0..100 {
            log.push(b"{}\n", Weight::Important);
        }
        log.flush(SOON);
        assert_eq!(lost(&log), 100);
    }

    /// A file system that is full for a while, and full in the middle of a line.
    #[derive(Clone, Default)]
    struct Disk(Arc<Mutex<(Vec<u8>, usize)>>);

    impl Write for Disk {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            let mut disk = self.0.lock().unwrap();
            let room = disk.1.saturating_sub(disk.0.len()).min(text.len());
            if room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            disk.0.extend_from_slice(&text[..room]);
            Ok(room)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_disk_that_was_full_gets_whole_lines_again() {
        let disk = Disk::default();
        disk.0.lock().unwrap().1 = 8;
        let log = Log::start(disk.clone(), LineFormat::Json).unwrap();
        let say = |line: &[u8]| {
            log.push(line, Weight::Ordinary);
            log.flush(SOON);
        };
        say(b"first\n");
        say(b"second\n");
        say(b"third\n");
        assert_eq!(lost(&log), 2);
        disk.0.lock().unwrap().1 = 10_000;
        say(b"fourth\n");
        say(b"fifth\n");
        let text = String::from_utf8(disk.0.lock().unwrap().0.clone()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!([lines[0], lines[1], lines[2], lines[4]], ["first", "se", "fourth", "fifth"], "{text}");
        let account: serde_json::Value = serde_json::from_str(lines[3]).unwrap();
        assert!(account["message"].as_str().unwrap().starts_with("2 log lines were lost"), "{account}");
    }

    #[test]
    fn nothing_waits_when_all_is_written() {
        let log = Log::start(io::sink(), LineFormat::Text).unwrap();
        for _ in 0..10_000 {
            log.push(&[b'x'; 1_000], Weight::Important);
        }
        log.flush(SOON);
        wait_until("the queue is empty", || log.shared.waiting_bytes.load(Ordering::Relaxed) == 0);
    }
}
