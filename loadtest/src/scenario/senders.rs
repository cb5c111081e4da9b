//! Messages to single devices through the HTTP API, each at its time, by several connections.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::admin::{self, Admin};
use crate::clock::{Clock, Micros};
use crate::fleet::{Ledger, Stamp, histogram, record};

/// What is to be sent.
pub struct Plan {
    /// Device ids are this and a number.
    pub prefix: String,
    /// Those who are told something: the first one's number, and how many.
    pub devices: (u32, u32),
    /// Messages in all; the `n`th goes to the `n`th device, and over again.
    pub total: u64,
    /// Messages each second.
    pub rate: f64,
    /// When the first one is due.
    pub from: Micros,
    /// The length of each payload, in bytes.
    pub bytes: usize,
    pub ack: bool,
    /// Where the messages that the server took are noted.
    pub taken: Arc<Ledger>,
}

/// The senders at work.
pub struct Senders {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Sent>>,
}

struct Shared {
    plan: Plan,
    clock: Clock,
    next: AtomicU64,
    under_way: AtomicU64,
    is_over: AtomicBool,
    /// By device, counted from the first: it is gone, and nothing more is for it.
    gone: Box<[AtomicBool]>,
}

/// What came of it.
pub struct Sent {
    /// Answers by what they said.
    pub outcomes: BTreeMap<String, u64>,
    /// From the time that a message was due to the answer, in microseconds.
    pub answers: Histogram<u64>,
    /// How late requests were begun, because all senders still waited for answers, in microseconds.
    pub begun_late: Histogram<u64>,
}

impl Senders {
    /// Starts `count` of them.
    pub fn start(plan: Plan, count: u32, admin: &Admin, clock: Clock) -> Self {
        let gone = (0..plan.devices.1).map(|_| AtomicBool::new(false)).collect();
        let (next, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
        let under_way = AtomicU64::new(count.into());
        let shared = Arc::new(Shared { plan, clock, next, under_way, is_over, gone });
        let threads = (0..count).map(|number| {
            let (shared, admin) = (Arc::clone(&shared), admin.another());
            let thread = std::thread::Builder::new().name(format!("sender-{number}"));
            thread.spawn(move || shared.work(&admin)).expect("a further thread can be started")
        });
        Self { threads: threads.collect(), shared }
    }

    /// Whether all has been sent and answered.
    pub fn are_done(&self) -> bool {
        self.shared.under_way.load(Ordering::Acquire) == 0
    }

    /// Devices of which the server said that they are gone.
    pub fn gone(&self) -> u64 {
        self.shared.gone.iter().filter(|gone| gone.load(Ordering::Relaxed)).count() as u64
    }

    /// Begins nothing more; waits for the answers that are still to come.
    pub fn end(self) -> Sent {
        self.shared.is_over.store(true, Ordering::Relaxed);
        let mut all = Sent::new();
        for thread in self.threads {
            all.merge(&thread.join().expect("a sender has panicked"));
        }
        all
    }
}

impl Sent {
    fn new() -> Self {
        Self { outcomes: BTreeMap::new(), answers: histogram(), begun_late: histogram() }
    }

    fn merge(&mut self, other: &Sent) {
        for (outcome, times) in &other.outcomes {
            *self.outcomes.entry(outcome.clone()).or_default() += times;
        }
        self.answers.add(&other.answers).expect("histograms that grow take each other's values");
        self.begun_late.add(&other.begun_late).expect("as above");
    }

    /// How often this was the answer.
    pub fn times(&self, outcome: &str) -> u64 {
        self.outcomes.get(outcome).copied().unwrap_or(0)
    }
}

impl Shared {
    fn work(&self, admin: &Admin) -> Sent {
        let mut sent = Sent::new();
        let (mut payload, mut body) = (Vec::new(), String::new());
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.plan.total {
                break;
            }
            let due = self.plan.from + (number as f64 * 1e6 / self.plan.rate) as Micros;
            if !self.wait_until(due) {
                break;
            }
            self.send(number, due, admin, &mut payload, &mut body, &mut sent);
        }
        self.under_way.fetch_sub(1, Ordering::Release);
        sent
    }

    /// False when it is over before.
    fn wait_until(&self, due: Micros) -> bool {
        loop {
            if self.is_over.load(Ordering::Relaxed) {
                return false;
            }
            let left = due.saturating_sub(self.clock.now());
            if left == 0 {
                return true;
            }
            std::thread::sleep(Duration::from_micros(left.min(100_000)));
        }
    }

    fn send(&self, number: u64, due: Micros, admin: &Admin, payload: &mut Vec<u8>, body: &mut String, sent: &mut Sent) {
        let Plan { prefix, devices: (first, count), bytes, ack, taken, .. } = &self.plan;
        let (position, round) = ((number % u64::from(*count)) as u32, number / u64::from(*count));
        if self.gone[position as usize].load(Ordering::Relaxed) {
            return;
        }
        let device = first + position;
        let slot = taken.slot(device, round);
        payload.clear();
        Stamp { slot, due }.encode(*bytes, payload);
        let text = std::str::from_utf8(payload).expect("a stamp is ASCII");
        *body = format!(r#"{{"topic":"load","payload":"{text}","ack":{ack}}}"#);
        record(&mut sent.begun_late, self.clock.now() - due);
        let answer = admin.post(&format!("/v1/devices/{prefix}{device}/messages"), body);
        let outcome = answer.as_ref().map_or("no_answer", admin::outcome);
        match outcome {
            "delivered" | "acknowledged" => {
                taken.note(slot, device);
                record(&mut sent.answers, self.clock.now() - due);
            }
            "device_offline" => self.gone[position as usize].store(true, Ordering::Relaxed),
            _ => {}
        }
        *sent.outcomes.entry(outcome.to_owned()).or_default() += 1;
    }
}
