//! What a run is told. Each bench makes its own options of these; none reads the command line itself.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// What the gateway's parts cost, each beside what one would use instead, as ratios within one run.
#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true, max_term_width = 110)]
pub struct Arguments {
    /// What to run; all of them when none is named.
    #[arg(value_enum, value_name = "NAME")]
    names: Vec<Benchmark>,
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Rounds; the figures are their medians.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// How many: timers for wheel (10,000, 100,000 and 1,000,000 unless told), devices for turn (20,000) and memory
    /// (100,000), sessions for start (100,000). Wheel goes up to 10,000,000.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(16..=10_000_000))]
    pub size: Option<u32>,
    /// Writes everything as one JSON object, too.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// floor: measure this built gateway as a process of its own, instead of its workers within this one.
    #[arg(long, value_name = "PATH")]
    pub gateway: Option<PathBuf>,
    /// floor: connections to each server.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=5_000))]
    pub connections: u32,
    /// floor: pings per second.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u32).range(10..=100_000))]
    pub rate: u32,
    /// floor: seconds of pings to each server in each round.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
}

/// What else there is.
#[derive(Clone, Copy, Debug, Subcommand)]
pub enum Command {
    /// Does a fixed piece of work for an instruction counter (tests/ceilings.rs runs it under callgrind).
    Count {
        /// What to count.
        #[arg(value_enum)]
        subject: Subject,
    },
}

/// What can be counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Subject {
    /// Timers: insert, re-arm, expire.
    Wheel,
    /// Records of 40 bytes: seal, open; each with a key made for it.
    Record,
    /// Heartbeats of one shard: probe, answer.
    Turn,
}

/// One bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Benchmark {
    /// The timing wheel against a BTreeSet, a BTreeMap, a BinaryHeap and tokio-util's DelayQueue.
    Wheel,
    /// Opening and sealing records, with a cold and a warm key, against rustls's own connection.
    Record,
    /// The server's side of a full handshake without sockets, against rustls alone.
    Handshake,
    /// Decoding and encoding native frames, against copying their bytes.
    Codec,
    /// A shard's heartbeats without sockets, against the cryptography that they contain.
    Turn,
    /// Bytes of an idle connection by cause, against a rustls connection.
    Memory,
    /// What a start reads: sessions out of the store and into a shard.
    Start,
    /// The gateway's CPU time for a ping, against a plain TCP server and a tokio-rustls one under the same client.
    Floor,
}

impl Benchmark {
    /// As it is called on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().expect("no bench is hidden").get_name().to_owned()
    }

    /// What it measures, as `--help` says it.
    pub fn sentence(self) -> String {
        let value = self.to_possible_value().expect("no bench is hidden");
        value.get_help().map(ToString::to_string).unwrap_or_default()
    }
}

impl Arguments {
    /// The benches to run, in order.
    pub fn chosen(&self) -> Vec<Benchmark> {
        if self.names.is_empty() { Benchmark::value_variants().to_vec() } else { self.names.clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_runs_unless_something_is_named() {
        assert_eq!(Arguments::parse_from(["bench"]).chosen(), Benchmark::value_variants());
        assert_eq!(Arguments::parse_from(["bench", "turn", "wheel"]).chosen(), [Benchmark::Turn, Benchmark::Wheel]);
        assert!(Arguments::try_parse_from(["bench", "nothing"]).is_err());
    }

    #[test]
    fn each_bench_has_its_sentence() {
        for bench in Benchmark::value_variants() {
            assert!(!bench.sentence().is_empty(), "{}", bench.name());
        }
    }
}
