//! What lies in a stream of JetStream, read by plain TCP, from any place on and on as it grows.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use serde_json::{Value, json};

/// A server that says nothing for so long has died: it is to say something each second.
const SILENCE_MAX: Duration = Duration::from_secs(3);
const HEARTBEAT_NS: u64 = 1_000_000_000;
/// Between two attempts.
const AGAIN: Duration = Duration::from_millis(100);

/// A message of a stream.
pub struct Stored {
    pub sequence: u64,
    pub subject: String,
    pub payload: Vec<u8>,
    /// So many follow.
    pub pending: u64,
}

/// What is told of it.
pub enum Told {
    Message(Stored),
    /// There is nothing new.
    Nothing,
}

/// A consumer of one stream.
pub struct Following {
    socket: TcpStream,
    lines: BufReader<TcpStream>,
}

impl Following {
    /// Everything under these subjects from a sequence number on. `None`: there is no answer just now.
    pub fn begin(port: u16, stream: &str, subjects: &[&str], from: u64) -> Option<Self> {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
        socket.set_read_timeout(Some(SILENCE_MAX)).ok()?;
        let mut lines = BufReader::new(socket.try_clone().ok()?);
        lines.read_line(&mut String::new()).ok()?;
        let own = socket.local_addr().ok()?.port();
        let wanted = json!({"stream_name": stream, "config": {
            "deliver_subject": format!("crowd.told.{own}"), "deliver_policy": "by_start_sequence", "opt_start_seq": from.max(1),
            "filter_subjects": subjects, "ack_policy": "none", "replay_policy": "instant", "idle_heartbeat": HEARTBEAT_NS,
            "mem_storage": true, "num_replicas": 1, "inactive_threshold": 10 * HEARTBEAT_NS,
        }})
        .to_string();
        let asked =
            format!("SUB crowd.made.{own} 1\r\nPUB $JS.API.CONSUMER.CREATE.{stream} crowd.made.{own} {}", wanted.len());
        write!(socket, "CONNECT {{\"verbose\":false,\"headers\":true}}\r\n{asked}\r\n{wanted}\r\n").ok()?;
        let mut following = Self { socket, lines };
        let (_, answer) = following.take()?;
        let answer: Value = serde_json::from_slice(&answer).ok()?;
        // It begins when somebody listens.
        write!(following.socket, "SUB crowd.told.{own} 2\r\n").ok()?;
        answer["error"].is_null().then_some(following)
    }

    /// The head of whatever is told next, as words, and its payload.
    fn take(&mut self) -> Option<(Vec<String>, Vec<u8>)> {
        let mut line = String::new();
        loop {
            line.clear();
            if self.lines.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line.starts_with("PING") {
                self.socket.write_all(b"PONG\r\n").ok()?;
            } else if line.starts_with("MSG ") || line.starts_with("HMSG ") {
                break;
            }
        }
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let mut numbers = words.iter().rev().map(|word| word.parse::<usize>());
        let length = numbers.next()?.ok()?;
        let head = if line.starts_with('H') { numbers.next()?.ok()? } else { 0 };
        let mut bytes = vec![0; length + 2];
        self.lines.read_exact(&mut bytes).ok()?;
        bytes.truncate(length);
        Some((words, bytes.split_off(head)))
    }

    /// What is told next. `None`: the server, or the consumer, is gone.
    pub fn next(&mut self) -> Option<Told> {
        let (words, payload) = self.take()?;
        // Heartbeats have no place to be acknowledged.
        let Some(place) = words.iter().find_map(|word| word.strip_prefix("$JS.ACK.")) else {
            return Some(Told::Nothing);
        };
        let parts: Vec<&str> = place.split('.').collect();
        // Stream, consumer, how often, sequence, the consumer's, time, how many follow; newer servers begin with domain and account.
        let first = if parts.len() > 7 { 2 } else { 0 };
        let number = |at: usize| parts.get(first + at).and_then(|part| part.parse().ok());
        let (sequence, pending) = (number(3)?, number(6)?);
        Some(Told::Message(Stored { sequence, subject: words[1].clone(), payload, pending }))
    }
}

/// All that lies in a stream under these subjects, in its order. `None`: the server went meanwhile.
pub fn all_of(port: u16, stream: &str, subjects: &[&str]) -> Option<Vec<Stored>> {
    let (mut following, mut all) = (Following::begin(port, stream, subjects, 1)?, Vec::new());
    loop {
        let is_last = match following.next()? {
            Told::Message(stored) => {
                let pending = stored.pending;
                all.push(stored);
                pending == 0
            }
            Told::Nothing => all.is_empty(),
        };
        if is_last {
            return Some(all);
        }
    }
}

/// Rows of the bucket that says who has which device, as they were written: by revision.
pub type Rows = BTreeMap<u64, (String, Value)>;

/// Follows that bucket, whichever servers die.
pub struct Watch {
    rows: Arc<Mutex<Rows>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    pub fn begin(ports: &[u16]) -> Self {
        let (rows, is_over) = (Arc::new(Mutex::new(Rows::new())), Arc::new(AtomicBool::new(false)));
        let (ports, into, over) = (ports.to_vec(), Arc::clone(&rows), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            for port in ports.into_iter().cycle() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                follow(port, &into, &over);
                std::thread::sleep(AGAIN);
            }
        });
        Self { rows, is_over, thread: Some(thread) }
    }

    pub fn end(mut self) -> Rows {
        self.is_over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().expect("the watch has failed");
        std::mem::take(&mut *self.rows.lock().unwrap())
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

fn follow(port: u16, into: &Mutex<Rows>, over: &AtomicBool) {
    let from = into.lock().unwrap().last_key_value().map_or(0, |(revision, _)| *revision) + 1;
    let subjects = ["$KV.pulsegate_devices.>"];
    let Some(mut following) = Following::begin(port, "KV_pulsegate_devices", &subjects, from) else { return };
    // A heartbeat comes each second, so this ends soon after it is to.
    while !over.load(Ordering::Relaxed) {
        let Stored { sequence, subject, payload, .. } = match following.next() {
            Some(Told::Message(stored)) => stored,
            Some(Told::Nothing) => continue,
            None => return,
        };
        let device = subject.trim_start_matches("$KV.pulsegate_devices.").to_owned();
        let row = serde_json::from_slice(&payload).unwrap_or(Value::Null);
        into.lock().unwrap().insert(sequence, (device, row));
    }
}
