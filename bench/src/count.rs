//! Fixed pieces of work for an instruction counter. Everything that is counted happens in functions whose names begin
//! with `counted_`; each is given by its name to callgrind, which counts nothing outside of it. Seeds are fixed and
//! nothing waits, so two runs of one build count the same to within a per cent, whatever else the machine does.

use pulsegate::time::Tick;
use pulsegate::tls::record::{Opened, RecordLayer};
use pulsegate::wheel::Wheel;

use crate::arguments::Subject;
use crate::fixtures::{SUITE, record_pair};
use crate::fleet::Fleet;

const TIMERS: u32 = 10_000;
const TICKS: u32 = 700;
const RECORDS: usize = 1_000;
const DEVICES: u32 = 256;

/// Does the work. Returns lines of `function operations`.
pub fn run(subject: Subject) -> String {
    match subject {
        Subject::Wheel => wheel(),
        Subject::Record => record(),
        Subject::Turn => turn(),
    }
}

fn wheel() -> String {
    let mut random = fastrand::Rng::with_seed(1);
    let mut draw = || -> Vec<u32> { (0..TIMERS).map(|_| random.u32(540..661)).collect() };
    let (first, second, third) = (draw(), draw(), draw());
    let mut order: Vec<u32> = (0..TIMERS).collect();
    random.shuffle(&mut order);
    let mut timers = Wheel::new(Tick(0));
    // The array of entries grows once; what is counted is the wheel.
    timers.arm(TIMERS - 1, Tick(1));
    timers.cancel(TIMERS - 1);
    counted_insert(&mut timers, &first);
    counted_rearm(&mut timers, &order, &second);
    let mut due = Vec::with_capacity(TIMERS as usize);
    let expired = counted_expire(&mut timers, &third, &mut due);
    format!("counted_insert {TIMERS}\ncounted_rearm {TIMERS}\ncounted_expire {expired}")
}

#[inline(never)]
fn counted_insert(timers: &mut Wheel, deadlines: &[u32]) {
    for (index, &deadline) in (0..).zip(deadlines) {
        timers.arm(index, Tick(deadline));
    }
}

#[inline(never)]
fn counted_rearm(timers: &mut Wheel, order: &[u32], deadlines: &[u32]) {
    for (&index, &deadline) in order.iter().zip(deadlines) {
        timers.arm(index, Tick(deadline));
    }
}

/// Each that expires is armed again.
#[inline(never)]
fn counted_expire(timers: &mut Wheel, deadlines: &[u32], due: &mut Vec<u32>) -> usize {
    let mut expired = 0;
    for now in 1..=TICKS {
        while timers.expire(Tick(now), usize::MAX, due) {}
        for &index in &*due {
            timers.arm(index, Tick(now + deadlines[index as usize]));
        }
        expired += due.len();
        due.clear();
    }
    expired
}

fn record() -> String {
    let mut random = fastrand::Rng::with_seed(2);
    let (mut client, mut server) = record_pair(SUITE, &mut random);
    // The library's own beginning, which gathers entropy and takes as long as that takes, is no record's cost.
    let (mut first, mut second) = record_pair(SUITE, &mut random);
    let (mut sealed, mut out) = (Vec::with_capacity(RECORDS * 128), Vec::new());
    first.burst().seal(&[0x5a; 40], &mut sealed).expect("a fresh key");
    second.burst().open(&mut sealed, &mut out).expect("a record of its peer");
    sealed.clear();
    counted_seal(&mut client, &mut sealed);
    let each = sealed.len() / RECORDS;
    counted_open(&mut server, &mut sealed, each);
    format!("counted_seal {RECORDS}\ncounted_open {RECORDS}")
}

#[inline(never)]
fn counted_seal(layer: &mut RecordLayer, sealed: &mut Vec<u8>) {
    for _ in 0..RECORDS {
        layer.burst().seal(&[0x5a; 40], sealed).expect("a fresh key");
    }
}

#[inline(never)]
fn counted_open(layer: &mut RecordLayer, sealed: &mut [u8], each: usize) {
    let mut out = Vec::new();
    for record in sealed.chunks_exact_mut(each) {
        let mut burst = layer.burst();
        assert!(matches!(burst.open(record, &mut out), Ok(Opened::Data(data)) if data.len() == 40));
    }
}

/// [`Fleet::counted_probe`] and [`Fleet::counted_hear`], over two intervals after the first.
fn turn() -> String {
    let mut fleet = Fleet::new(DEVICES);
    for _ in 0..3 * fleet.steps() {
        fleet.counted_probe();
        fleet.answer();
        fleet.counted_hear();
    }
    let (sent, answered) = fleet.heartbeats();
    format!("counted_probe {sent}\ncounted_hear {answered}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_is_the_same_every_time() {
        for subject in [Subject::Wheel, Subject::Record, Subject::Turn] {
            let counts = run(subject);
            assert_eq!(counts, run(subject));
            for line in counts.lines() {
                let (name, operations) = line.split_once(' ').unwrap();
                assert!(name.starts_with("counted_") && operations.parse::<u64>().unwrap() > 0, "{line}");
            }
        }
    }
}
