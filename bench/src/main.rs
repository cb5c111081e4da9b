//! The benches: what the gateway's parts cost, each beside what one would use instead, as ratios within one run.
//!
//! Absolute times move from machine to machine; ratios hardly do. So every table leads with ratios, every
//! figure is the median of several rounds in which all rivals took their turns, and CPU time of the thread is counted
//! where nothing waits. Small sizes of every bench run under `cargo test -p bench`; `tests/ceilings.rs` counts
//! instructions, which no neighbour on the machine can disturb.

#![forbid(unsafe_code)]

mod arguments;
mod clock;
mod machine;
mod report;

mod fixtures;
mod fleet;
#[path = "../../tests/turn/memory_io.rs"]
#[allow(dead_code, reason = "the fuzzer uses more of it")]
mod memory_io;

mod codec;
mod floor;
mod handshake;
mod memory;
mod record;
mod start;
mod turn;
mod wheel;

mod count;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use tikv_jemallocator::Jemalloc;

use arguments::{Arguments, Benchmark, Command};
use report::{Finished, Table};

/// The gateway's own allocator: what a bench allocates costs what it costs there.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Some(Command::Count { subject }) = arguments.command {
        println!("{}", count::run(subject));
        return ExitCode::SUCCESS;
    }
    let machine = machine::Machine::look();
    println!("{machine}");
    let mut finished = Vec::new();
    for bench in arguments.chosen() {
        let began = Instant::now();
        println!("\n# {}: {}", bench.name(), bench.sentence());
        let tables = run(bench, &arguments);
        for table in &tables {
            println!("\n{table}");
        }
        finished.push(Finished { name: bench.name(), seconds: began.elapsed().as_secs_f64(), tables });
    }
    if let Some(file) = &arguments.json {
        let text = report::json(&machine, &arguments, &finished);
        if let Err(error) = std::fs::write(file, text) {
            eprintln!("bench: cannot write {}: {error}", file.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn run(bench: Benchmark, arguments: &Arguments) -> Vec<Table> {
    match bench {
        Benchmark::Wheel => wheel::run(&wheel::Options::from(arguments)),
        Benchmark::Record => record::run(&record::Options::from(arguments)),
        Benchmark::Handshake => handshake::run(&handshake::Options::from(arguments)),
        Benchmark::Codec => codec::run(&codec::Options::from(arguments)),
        Benchmark::Turn => turn::run(&turn::Options::from(arguments)),
        Benchmark::Memory => memory::run(&memory::Options::from(arguments)),
        Benchmark::Start => start::run(&start::Options::from(arguments)),
        Benchmark::Floor => floor::run(&floor::Options::from(arguments)),
    }
}
