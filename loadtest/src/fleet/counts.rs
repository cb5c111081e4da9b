//! What a thread counts while it runs, and what it found out when it is asked.

use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;

use super::device::Failure;

macro_rules! counts {
    ($($(#[doc = $doc:literal])+ $variant:ident,)+) => {
        /// A count of one thread's.
        #[derive(Clone, Copy, Debug)]
        pub enum Count { $($(#[doc = $doc])+ $variant,)+ }
        const COUNTS: usize = [$(Count::$variant,)+].len();
    };
}

counts! {
    /// Devices that are up.
    Up,
    /// Devices on their way up.
    InFlight,
    /// Devices whose turn to connect has come and that wait for a place among those in flight.
    Waiting,
    /// Connections begun.
    Attempts,
    /// Connections that came up.
    Established,
    /// Of them, those that resumed a session.
    Resumed,
    /// Attempts that failed.
    Failed,
    /// Connections that were up and ended without our doing.
    Lost,
    /// Devices that were told that they are expired though they answered everything.
    FalselyExpired,
    /// PINGs from the server.
    Pings,
    /// Heartbeats sent by devices.
    BeatsSent,
    /// Heartbeats answered by the server.
    BeatsAnswered,
    /// Messages that devices have published.
    MessagesSent,
    /// Messages that have come to devices, each time that one came.
    MessagesReceived,
    /// Devices that do not read and are still connected.
    NotReading,
    /// Devices whose connection ended while they did not read.
    NotReadingEnded,
    /// Devices that left politely.
    LeftPolitely,
    /// Devices that left with a reset.
    LeftRudely,
    /// Devices that keep silent and are still connected.
    Silent,
    /// CPU time that the thread used, in microseconds.
    CpuMicros,
    /// The worst lateness of the thread's loop since it was last asked, in microseconds.
    LatenessMax,
    /// The longest that any device may be silent under the terms that it was told, in milliseconds.
    LongestBound,
}

impl Count {
    /// Of several threads the greatest counts, not the sum.
    const fn is_greatest(number: usize) -> bool {
        number == Count::LatenessMax as usize || number == Count::LongestBound as usize
    }
}

/// The counts of one thread, or of all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts([u64; COUNTS]);

impl Counts {
    pub fn get(&self, count: Count) -> u64 {
        self.0[count as usize]
    }

    pub fn add(&mut self, count: Count, by: u64) {
        self.0[count as usize] += by;
    }

    pub fn sub(&mut self, count: Count, by: u64) {
        self.0[count as usize] =
            self.0[count as usize].checked_sub(by).expect("nothing is counted down that was not counted up");
    }

    /// Adds another fleet's.
    pub fn merge(&mut self, other: &Counts) {
        for (number, (ours, theirs)) in self.0.iter_mut().zip(other.0).enumerate() {
            *ours = if Count::is_greatest(number) { (*ours).max(theirs) } else { *ours + theirs };
        }
    }

    pub fn set(&mut self, count: Count, to: u64) {
        self.0[count as usize] = to;
    }
}

/// The copy of a thread's counts that others read.
#[derive(Default)]
pub struct Published([AtomicU64; COUNTS]);

impl Published {
    /// Called by the thread, once a turn.
    pub fn publish(&self, counts: &Counts) {
        for (cell, (number, value)) in self.0.iter().zip(counts.0.iter().enumerate()) {
            if number == Count::LatenessMax as usize {
                cell.fetch_max(*value, Ordering::Relaxed);
            } else {
                cell.store(*value, Ordering::Relaxed);
            }
        }
    }

    /// Adds the thread's counts to `total`. Lateness begins anew, and of several threads the worst counts.
    pub fn add_to(&self, total: &mut Counts) {
        for (number, cell) in self.0.iter().enumerate() {
            if number == Count::LatenessMax as usize {
                total.0[number] = total.0[number].max(cell.swap(0, Ordering::Relaxed));
            } else if Count::is_greatest(number) {
                total.0[number] = total.0[number].max(cell.load(Ordering::Relaxed));
            } else {
                total.0[number] += cell.load(Ordering::Relaxed);
            }
        }
    }

    /// Adds only the CPU time.
    pub fn add_cpu_to(&self, total: &mut Counts) {
        total.add(Count::CpuMicros, self.0[Count::CpuMicros as usize].load(Ordering::Relaxed));
    }
}

/// What silence came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expiries {
    /// Silent devices that were expired when they were due.
    pub right: u64,
    /// Silent devices that were expired sooner than promised, or without the PINGs that they were owed.
    pub early: u64,
    /// Silent devices that lost their connection without being told why.
    pub wrong_reason: u64,
}

/// What a thread found out since it was last asked.
pub struct Findings {
    /// From the time that a connection was due to be opened until it was up, in microseconds.
    pub connect: Histogram<u64>,
    /// From the time that a heartbeat was due to its answer, in microseconds: the control group's.
    pub beats_control: Histogram<u64>,
    /// The same of all others.
    pub beats: Histogram<u64>,
    /// From the time that a message to a device was due until it was there, in microseconds.
    pub messages: Histogram<u64>,
    /// From the time that a message of a device's was due to its acknowledgement, in microseconds.
    pub acknowledged: Histogram<u64>,
    /// From the cut until a device was up again, in microseconds.
    pub recovery: Histogram<u64>,
    /// From the deadline of a silent device to its expiry, in microseconds.
    pub expiry_lateness: Histogram<u64>,
    /// How late the harness itself was, in microseconds: what it adds to every figure at most.
    pub loop_lateness: Histogram<u64>,
    /// What silence came to.
    pub expiries: Expiries,
    /// Failed attempts and lost connections, by [`Failure`].
    pub failures: [u64; Failure::COUNT],
    /// Of the control group: connections lost.
    pub control_lost: u64,
}

impl Findings {
    /// Nothing found yet.
    pub fn new() -> Self {
        Self {
            connect: histogram(),
            beats_control: histogram(),
            beats: histogram(),
            messages: histogram(),
            acknowledged: histogram(),
            recovery: histogram(),
            expiry_lateness: histogram(),
            loop_lateness: histogram(),
            expiries: Expiries::default(),
            failures: [0; Failure::COUNT],
            control_lost: 0,
        }
    }

    /// Adds another thread's.
    pub fn merge(&mut self, other: &Findings) {
        let pairs = [
            (&mut self.connect, &other.connect),
            (&mut self.beats_control, &other.beats_control),
            (&mut self.beats, &other.beats),
            (&mut self.messages, &other.messages),
            (&mut self.acknowledged, &other.acknowledged),
            (&mut self.recovery, &other.recovery),
            (&mut self.expiry_lateness, &other.expiry_lateness),
            (&mut self.loop_lateness, &other.loop_lateness),
        ];
        for (ours, theirs) in pairs {
            ours.add(theirs).expect("histograms that grow take each other's values");
        }
        self.expiries.right += other.expiries.right;
        self.expiries.early += other.expiries.early;
        self.expiries.wrong_reason += other.expiries.wrong_reason;
        for (ours, theirs) in self.failures.iter_mut().zip(other.failures) {
            *ours += theirs;
        }
        self.control_lost += other.control_lost;
    }
}

/// Three digits, as wide as its values need. To be filled by [`record`]: the histogram's own way that never fails cuts values off where it is
/// wide just now, which is at 2,047 at first.
pub fn histogram() -> Histogram<u64> {
    Histogram::new(3).expect("three digits are allowed")
}

/// Adds a value.
pub fn record(histogram: &mut Histogram<u64>, value: u64) {
    histogram.record(value).expect("a histogram that grows takes every value");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_taken_whole_however_large() {
        let mut histogram = histogram();
        for value in [1, 5_000, 3_600_000_000] {
            record(&mut histogram, value);
            assert!(histogram.equivalent(histogram.max(), value), "{} for {value}", histogram.max());
        }
    }

    #[test]
    fn threads_add_up_and_the_worst_lateness_counts_once() {
        let published = [Published::default(), Published::default()];
        for (cell, late) in published.iter().zip([700, 300]) {
            let mut counts = Counts::default();
            counts.add(Count::Up, 5);
            counts.set(Count::LatenessMax, late);
            cell.publish(&counts);
        }
        let mut total = Counts::default();
        for cell in &published {
            cell.add_to(&mut total);
        }
        assert_eq!((total.get(Count::Up), total.get(Count::LatenessMax)), (10, 700));
        let mut again = Counts::default();
        for cell in &published {
            cell.add_to(&mut again);
        }
        assert_eq!((again.get(Count::Up), again.get(Count::LatenessMax)), (10, 0));
    }

    #[test]
    fn merged_histograms_hold_the_values_of_both_whatever_their_range() {
        let (mut one, mut other) = (Findings::new(), Findings::new());
        (1..=99).for_each(|value| one.beats.record(value).unwrap());
        other.beats.record(3_600_000_000).unwrap();
        other.failures[Failure::Reset as usize] = 3;
        one.merge(&other);
        assert_eq!(one.beats.len(), 100);
        assert_eq!(one.beats.value_at_quantile(0.5), 50);
        assert!(one.beats.max() >= 3_600_000_000);
        assert_eq!(one.failures[Failure::Reset as usize], 3);
    }
}
