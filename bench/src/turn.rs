//! Heartbeats of one shard without sockets: a deadline expires, a probe is sealed, its answer is opened and heard.
//! What the kernel's part would add is in `floor`.

use std::time::Duration;

use pulsegate::codec::native::Frame;
use pulsegate::tls::record::{Opened, RecordLayer};

use crate::arguments::Arguments;
use crate::clock::{median, ns_each, thread_cpu};
use crate::fixtures::{SUITE, record_pair};
use crate::fleet::Fleet;
use crate::report::{Column, Table, Unit, ns, ratio};

/// What to run.
pub struct Options {
    pub devices: u32,
    pub rounds: u32,
}

impl From<&Arguments> for Options {
    fn from(arguments: &Arguments) -> Self {
        Self { devices: arguments.size.unwrap_or(20_000).min(1_000_000), rounds: arguments.rounds }
    }
}

/// One table: the shard's heartbeat beside the cryptography that it contains.
pub fn run(options: &Options) -> Vec<Table> {
    let mut fleet = Fleet::new(options.devices);
    let mut bare = Bare::new(options.devices);
    // The first interval of all is half as long, and grows every buffer to its size.
    interval(&mut fleet);
    let (mut probes, mut hears, mut seals, mut opens) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..options.rounds {
        let [probe, hear] = interval(&mut fleet);
        let [seal, open] = bare.round();
        probes.push(probe);
        hears.push(hear);
        seals.push(seal);
        opens.push(open);
    }
    let (sent, answered) = fleet.heartbeats();
    assert!(sent == answered && sent >= u64::from(options.devices * options.rounds));
    let [probe, hear, seal, open] = [probes, hears, seals, opens].map(|figures| median(&figures));
    let row = |name: &str, shard: f64, crypto: f64| {
        (name.to_owned(), vec![Some(shard / crypto), Some(shard), Some(crypto), Some(1e9 / shard)])
    };
    let table = Table {
        title: format!("One shard of {} devices, {}", options.devices, SUITE.name()),
        of: "part",
        columns: vec![
            ratio("to its crypto"),
            ns("in the shard"),
            ns("crypto alone"),
            Column { name: "per core and second", unit: Unit::Count },
        ],
        rows: vec![
            row("heartbeat", probe + hear, seal + open),
            row("probe: expire, seal", probe, seal),
            row("answer: open, note", hear, open),
        ],
        notes: vec![
            "Each heartbeat costs two deadlines: the interval's, and the timeout's, which finds the answer there."
                .to_owned(),
            "Crypto alone: the same records by as many bare record layers, keys made for each record.".to_owned(),
        ],
    };
    vec![table]
}

/// One interval: nanoseconds of probing and of hearing for each heartbeat.
fn interval(fleet: &mut Fleet) -> [f64; 2] {
    let (mut probing, mut hearing, mut heartbeats) = (Duration::ZERO, Duration::ZERO, 0);
    for _ in 0..fleet.steps() {
        let before = thread_cpu();
        fleet.counted_probe();
        probing += thread_cpu().saturating_sub(before);
        heartbeats += fleet.answer();
        let before = thread_cpu();
        fleet.counted_hear();
        hearing += thread_cpu().saturating_sub(before);
    }
    assert!(heartbeats > 0);
    [probing, hearing].map(|spent| spent.as_nanos() as f64 / heartbeats as f64)
}

/// As many record layers as there are devices, and nothing around them.
struct Bare {
    pairs: Vec<(RecordLayer, RecordLayer)>,
}

impl Bare {
    fn new(count: u32) -> Self {
        let mut random = fastrand::Rng::with_seed(12);
        Self { pairs: (0..count).map(|_| record_pair(SUITE, &mut random)).collect() }
    }

    /// Nanoseconds for sealing each PING and for opening each PONG.
    fn round(&mut self) -> [f64; 2] {
        let (mut probe, mut answer) = (Vec::new(), Vec::new());
        Frame::Ping(&[]).encode(&mut probe);
        Frame::Pong(&[]).encode(&mut answer);
        let count = self.pairs.len();
        let mut sealed = Vec::with_capacity(count * 64);
        let seal = ns_each(count, || {
            for (_, server) in &mut self.pairs {
                server.burst().seal(&probe, &mut sealed).expect("a fresh key");
            }
        });
        sealed.clear();
        for (client, _) in &mut self.pairs {
            client.burst().seal(&answer, &mut sealed).expect("a fresh key");
        }
        let (each, mut out) = (sealed.len() / count, Vec::new());
        let open = ns_each(count, || {
            for ((_, server), record) in self.pairs.iter_mut().zip(sealed.chunks_exact_mut(each)) {
                let mut burst = server.burst();
                assert!(matches!(burst.open(record, &mut out), Ok(Opened::Data(data)) if data == answer));
            }
        });
        [seal, open]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_size_runs() {
        run(&Options { devices: 300, rounds: 1 })[0].assert_measured();
    }

    #[test]
    fn every_device_is_probed_once_an_interval() {
        let mut fleet = Fleet::new(64);
        interval(&mut fleet);
        let (first, _) = fleet.heartbeats();
        assert!((64..=128).contains(&first), "{first}");
        for _ in 0..3 {
            interval(&mut fleet);
        }
        let (sent, answered) = fleet.heartbeats();
        assert_eq!(sent, answered);
        assert!((64 * 3 - 64..=64 * 3).contains(&(sent - first)), "{}", sent - first);
    }
}
