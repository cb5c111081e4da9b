//! The gateway's heartbeat beside the least that it could cost: the same client pings, at the same rate, a plain TCP
//! server that does nothing else, a tokio-rustls one, and the gateway, in turns within one run. What is compared is the
//! servers' CPU time, the kernel's part included. Loopback only.
//!
//! The servers' threads run on the first core and the client on the last, as the gateway's one worker pins itself.

mod client;
mod gateway;
mod servers;
mod threads;

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::arguments::Arguments;
use crate::clock::median;
use crate::fixtures::Deployment;
use crate::report::{Column, Table, Unit, ratio};
use client::{Client, Outcome};
use threads::Threads;

/// The gateway's own heartbeats keep out of the way: the client's are the ones that are counted.
const INTERVAL_SECONDS: u32 = 3_600;
/// Seconds at a time for each server: short turns, so that whatever else the machine does, it does to all of them.
const SLICE_SECONDS: f64 = 0.5;
/// Of the pings asked for, so many must have been answered, or the figures are marked.
const ANSWERED_MIN: f64 = 0.98;

/// What to run.
pub struct Options {
    pub connections: u32,
    pub rate: u32,
    pub seconds: f64,
    pub rounds: u32,
    pub gateway: Option<PathBuf>,
}

impl From<&Arguments> for Options {
    fn from(arguments: &Arguments) -> Self {
        Self {
            connections: arguments.connections,
            rate: arguments.rate,
            seconds: arguments.seconds.clamp(0.1, 60.0),
            rounds: arguments.rounds,
            gateway: arguments.gateway.clone(),
        }
    }
}

impl Options {
    /// Turns of each server, and how long one is.
    fn slices(&self) -> (u32, f64) {
        let slices = (self.seconds / SLICE_SECONDS).round().max(1.0);
        (self.rounds * slices as u32, self.seconds / slices)
    }
}

/// One server under measurement: its threads, its client, and what each turn has cost.
struct Contest {
    name: String,
    threads: Threads,
    client: Client,
    micros_per_ping: Vec<f64>,
    asked: u64,
    outcome: Outcome,
}

impl Contest {
    fn new(name: &str, threads: Threads, client: Client) -> Self {
        let outcome = Outcome::default();
        Self { name: name.to_owned(), threads, client, micros_per_ping: Vec::new(), asked: 0, outcome }
    }

    /// One turn of so many seconds.
    fn run(&mut self, rate: u32, seconds: f64) {
        let before = self.threads.cpu();
        let outcome = self.client.ping(rate, Duration::from_secs_f64(seconds));
        let spent = self.threads.cpu().saturating_sub(before);
        assert!(outcome.answered > 0, "{} answers nothing", self.name);
        self.micros_per_ping.push(spent.as_secs_f64() * 1e6 / outcome.answered as f64);
        self.asked += (f64::from(rate) * seconds) as u64;
        self.outcome.answered += outcome.answered;
        self.outcome.bursts += outcome.bursts;
    }

    /// How many times what `other` costs: the median over the turns, each beside the other's of the same time.
    fn ratio_to(&self, other: &Contest) -> f64 {
        let pairs = self.micros_per_ping.iter().zip(&other.micros_per_ping);
        median(&pairs.map(|(own, other)| own / other).collect::<Vec<_>>())
    }
}

/// Everybody in turns, some rounds.
pub fn run(options: &Options) -> Vec<Table> {
    raise_descriptor_limit();
    let [port, admin_port] = [gateway::free_port(), gateway::free_port()];
    let deployment = Deployment::new(port, admin_port, INTERVAL_SECONDS);
    let cores = threads::allowed_cores();
    let first = cores.first().copied();

    let gateway = gateway::Gateway::start(&deployment, options.gateway.as_deref());
    let plain = servers::plain(first);
    let tokio = servers::tokio_rustls(&deployment, first);
    let restore = threads::pin(cores.last().copied());
    let count = options.connections;
    let mut contests = [
        Contest::new("plain TCP", plain.threads.clone(), Client::plain(plain.address, count)),
        Contest::new("tokio-rustls", tokio.threads.clone(), Client::echo(tokio.address, &deployment, count)),
        Contest::new(gateway.name(), gateway.threads(), Client::native(gateway.address(), &deployment, count)),
    ];
    let (slices, seconds) = options.slices();
    for _ in 0..slices {
        for contest in &mut contests {
            contest.run(options.rate, seconds);
            gateway.drain();
        }
    }
    let table = table(&contests, options);
    drop(contests);
    drop(restore);
    vec![table]
}

/// Both ends of every connection lie in this process, but for the gateway's.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused, the soft limit is what there is, and a bind or an accept will say so.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

fn table(contests: &[Contest; 3], options: &Options) -> Table {
    let [plain, tokio, _] = contests;
    let row = |contest: &Contest| {
        let share = contest.outcome.answered as f64 / contest.asked.max(1) as f64;
        let burst = contest.outcome.answered as f64 / contest.outcome.bursts.max(1) as f64;
        let ratios = [contest.ratio_to(plain), contest.ratio_to(tokio)];
        let figures = ratios.into_iter().chain([median(&contest.micros_per_ping), share, burst]);
        (contest.name.clone(), figures.map(Some).collect())
    };
    let Options { connections, rate, seconds, rounds, .. } = options;
    let mut notes = vec!["CPU time of the server's threads for each ping, kernel included.".to_owned()];
    let behind =
        contests.iter().filter(|contest| (contest.outcome.answered as f64) < contest.asked as f64 * ANSWERED_MIN);
    for contest in behind {
        notes.push(format!("{} was not asked or has not answered as often as it should: lower --rate.", contest.name));
    }
    Table {
        title: format!(
            "{connections} connections each, {rate} pings/s, {rounds} rounds of {seconds} s; 30 bytes there and back"
        ),
        of: "server",
        columns: vec![
            ratio("to plain TCP"),
            ratio("to tokio-rustls"),
            Column { name: "CPU per ping", unit: Unit::Microseconds },
            ratio("answered to asked"),
            ratio("pings to a burst"),
        ],
        rows: contests.iter().map(row).collect(),
        notes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_size_runs() {
        let options = Options { connections: 8, rate: 500, seconds: 0.4, rounds: 1, gateway: None };
        let tables = run(&options);
        tables[0].assert_measured();
        for server in ["plain TCP", "tokio-rustls", "pulsegate, its worker"] {
            assert!(tables[0].figure(server, "answered to asked") > 0.5, "{server}");
        }
    }
}
