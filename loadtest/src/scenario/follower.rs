//! A reader of the gateway's event stream, which counts the messages of devices that come there.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::admin::{Admin, Event, Happening};
use crate::clock::Clock;
use crate::fleet::{Ledger, Stamp, histogram, record};

/// Whoever follows the events, on a thread of its own. Cut off, it goes on where it was.
pub struct Follower {
    pub ledger: Arc<Ledger>,
    prefix: String,
    latencies: Mutex<Histogram<u64>>,
    pub has_begun: AtomicBool,
    pub is_over: AtomicBool,
    /// Events that were gone before they could be read.
    pub missed: AtomicU64,
    /// Messages that are not of this run.
    pub others: AtomicU64,
}

impl Follower {
    /// Messages of devices whose ids begin with `prefix` are counted in `ledger`.
    pub fn new(ledger: Ledger, prefix: &str) -> Self {
        let (has_begun, is_over) = (AtomicBool::new(false), AtomicBool::new(false));
        let (missed, others) = (AtomicU64::new(0), AtomicU64::new(0));
        let latencies = Mutex::new(histogram());
        Self { ledger: Arc::new(ledger), prefix: prefix.to_owned(), latencies, has_begun, is_over, missed, others }
    }

    /// From the time that each message was due to its arrival here, in microseconds.
    pub fn latencies(&self) -> Histogram<u64> {
        self.latencies.lock().expect("no reader has panicked").clone()
    }

    /// It ends with the next event or sign of life after `is_over`, which nobody waits for.
    pub fn start(self: &Arc<Self>, admin: Admin, clock: Clock) {
        let follower = Arc::clone(self);
        let work = move || {
            let mut last = None;
            while !follower.is_over.load(Ordering::Relaxed) {
                // Whoever was cut off for being slow comes back with the last id; whoever could not come waits.
                let _ = admin.follow(&mut last, |happening| follower.handle_event(&happening, clock));
                std::thread::sleep(Duration::from_millis(100));
            }
        };
        let thread = std::thread::Builder::new().name("follower".to_owned());
        thread.spawn(work).expect("a further thread can be started");
    }

    fn handle_event(&self, happening: &Happening<'_>, clock: Clock) -> bool {
        match happening {
            Happening::Begun => self.has_begun.store(true, Ordering::Relaxed),
            Happening::Event(event) if event.kind == "message" => self.handle_message(event, clock),
            // `lagged` is told again as `missed` when the reader comes back.
            Happening::Event(event) if event.kind == "missed" => {
                self.missed.fetch_add(event.count.unwrap_or(1), Ordering::Relaxed);
            }
            Happening::Nothing | Happening::Event(_) => {}
        }
        !self.is_over.load(Ordering::Relaxed)
    }

    fn handle_message(&self, event: &Event<'_>, clock: Clock) {
        let number = event.device.as_ref().and_then(|device| device.strip_prefix(&*self.prefix)?.parse().ok());
        let stamp = event.payload.as_ref().and_then(|payload| Stamp::decode(payload.as_bytes()));
        let (Some(number), Some(stamp)) = (number, stamp) else {
            self.others.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if self.ledger.note(stamp.slot, number) {
            let latency = clock.now().saturating_sub(stamp.due);
            record(&mut self.latencies.lock().expect("no reader has panicked"), latency);
        }
    }
}
