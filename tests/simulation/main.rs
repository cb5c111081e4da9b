//! Shards under a virtual clock: model devices, faults drawn from a seed, and a shadow of what must be true.
//!
//! `world` has native and raw devices, `mqtt` has those of MQTT, `arrivals` every order of a few words. All drive the turn
//! of the program itself.
//!
//! A run prints its seed; `SIM_SEED=… cargo test --release --test simulation -- --nocapture` replays it. `SIM_RUNS` says
//! how many small runs there are (each with a seed of its own), `SIM_DEVICES` and `SIM_HOURS` how large the large one is.

mod arrivals;
mod certificates;
mod gateway;
mod io;
mod mqtt;
mod network;
mod peer;
mod shadow;
mod world;

use std::time::{Duration, Instant};

use certificates::Certificates;
use io::{Faults, Sabotage};
use pulsegate::turn::Bounds;
use world::{Account, Plan, World};

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number: {text}")))
}

/// A seed of today, unless one is to be replayed.
fn seed() -> u64 {
    from_environment("SIM_SEED").unwrap_or_else(|| fastrand::Rng::new().u64(..1 << 48))
}

/// A small world in which everything goes wrong all the time; how often exactly is drawn too.
fn small(seed: u64) -> Plan {
    let mut random = fastrand::Rng::with_seed(seed ^ 0x5EED);
    let mut one_of = |choices: &[u32]| choices[random.usize(..choices.len())];
    let step = Duration::from_millis(one_of(&[20, 150, 1_000]).into());
    Plan {
        seed,
        workers: one_of(&[1, 2, 4]) as u16,
        devices: one_of(&[10, 60, 250]),
        handshakes: one_of(&[10, 60]),
        time: step * 6_000,
        step,
        intervals: &[50, 100, 600],
        act_every: Duration::from_secs(one_of(&[2, 20, 100]).into()),
        lost: one_of(&[0, 1, 2, 8]),
        split: one_of(&[0, 1, 2, 10]),
        late: one_of(&[0, 50, 500]),
        jump: one_of(&[0, 500, 5_000]),
        backlog: one_of(&[0, 50, 500]),
        storm: one_of(&[0, 50, 500]),
        check_every: 1,
        uplink_length: one_of(&[16, 200, 10_000]) as usize,
        room: one_of(&[300, 2_000, 100_000]) as usize,
        bounds: Bounds {
            events: one_of(&[2, 8, 64]) as usize,
            accepts: one_of(&[1, 64]) as usize,
            handshakes: one_of(&[1, 16]) as usize,
            commands: one_of(&[8, 1_024]) as usize,
            deadlines: one_of(&[4, 1_024]) as usize,
            ..Bounds::default()
        },
        faults: Faults {
            channel: one_of(&[64, 1_024]) as usize,
            inbox: one_of(&[1, 20, 1_000]) as usize,
            short_writes: one_of(&[0, 2, 20]),
            home_full: one_of(&[0, 5]),
            channel_full: one_of(&[0, 2, 20]),
            interrupted: one_of(&[0, 5]),
            stopped: one_of(&[0, 300, 5_000]),
            check_phases: true,
        },
        sabotage: Sabotage::None,
    }
}

/// A large one: what goes wrong is rare for each, and common for all.
fn large(seed: u64, devices: u32, time: Duration) -> Plan {
    Plan {
        seed,
        workers: 4,
        devices,
        handshakes: 400,
        time,
        step: Duration::from_millis(100),
        intervals: &[6_000, 3_000, 600],
        act_every: Duration::from_mins(20),
        lost: 5,
        split: 10,
        late: 5_000,
        jump: 20_000,
        backlog: 2_000,
        storm: 2_000,
        check_every: 2_000,
        uplink_length: 4_096,
        room: 4_000,
        bounds: Bounds::default(),
        faults: Faults {
            channel: 16_384,
            inbox: 1_000,
            short_writes: 20,
            home_full: 20,
            channel_full: 50,
            interrupted: 50,
            stopped: 25_000,
            check_phases: false,
        },
        sabotage: Sabotage::None,
    }
}

fn run(plan: Plan) -> Account {
    let directory = tempfile::tempdir().unwrap();
    let certificates = Certificates::new(directory.path());
    World::new(plan, &certificates).run()
}

#[test]
fn small_worlds_in_which_everything_goes_wrong() {
    let first = seed();
    let runs = match from_environment("SIM_RUNS") {
        Some(runs) => runs,
        None if from_environment("SIM_SEED").is_some() => 1,
        None => 12,
    };
    for seed in first..first + runs {
        println!("simulation: SIM_SEED={seed}");
        let began = Instant::now();
        let account = run(small(seed));
        println!("    {:.1} s: {account:?}", began.elapsed().as_secs_f64());
    }
}

#[test]
fn a_large_world_for_hours() {
    let (devices, hours) = if cfg!(debug_assertions) { (5_000, 1) } else { (100_000, 2) };
    let devices = from_environment("SIM_DEVICES").map_or(devices, |devices| devices as u32);
    let hours = from_environment("SIM_HOURS").unwrap_or(hours);
    let seed = seed();
    println!("simulation: {devices} devices for {hours} hours, SIM_SEED={seed}");
    let began = Instant::now();
    let account = run(large(seed, devices, Duration::from_hours(hours)));
    println!("    {:.1} s: {account:?}", began.elapsed().as_secs_f64());
    assert!(account.connections >= u64::from(devices) && account.handshakes > 50);
    assert!(account.expired > 0 && account.moves > 0 && account.messages > 0);
}

/// A world that is sure to meet a planted error.
fn sabotaged(sabotage: Sabotage) -> Plan {
    let mut plan = Plan { sabotage, devices: 60, workers: 2, lost: 2, split: 2, late: 50, jump: 0, ..small(7) };
    plan.act_every = Duration::from_secs(5);
    plan.step = Duration::from_millis(150);
    plan.time = Duration::from_mins(20);
    plan.intervals = &[50, 100];
    plan.storm = 20;
    plan.room = 100_000;
    plan.bounds = Bounds { events: 2, commands: 1_024, ..plan.bounds };
    plan.faults = Faults { short_writes: 0, stopped: 0, ..plan.faults };
    plan
}

#[test]
fn a_seed_replays() {
    let plan = Plan { devices: 60, handshakes: 60, ..small(3) };
    let [one, other] = [(); 2].map(|()| run(plan.clone()));
    assert!(one.handshakes > 0);
    assert_eq!(format!("{one:?}"), format!("{other:?}"));
}

#[test]
fn the_same_world_without_an_error_is_well() {
    let account = run(sabotaged(Sabotage::None));
    assert!(account.expired > 0 && account.messages > 100);
}

#[test]
#[should_panic(expected = "was expired")]
fn expiry_on_a_clock_that_nobody_drained_is_caught() {
    run(sabotaged(Sabotage::DeafPoll));
}

#[test]
#[should_panic(expected = "invalid key")]
fn a_slot_that_is_used_after_it_was_freed_is_caught() {
    run(sabotaged(Sabotage::FreeEarly));
}

#[test]
#[should_panic(expected = "ACK")]
fn a_lost_acknowledgement_is_caught() {
    run(sabotaged(Sabotage::LoseAnswers));
}

#[test]
#[should_panic(expected = "turns and turns and does nothing")]
fn a_loop_that_spins_is_caught() {
    run(sabotaged(Sabotage::RepeatEdges));
}

#[test]
#[should_panic(expected = "for no reason of its own")]
fn a_goodbye_that_is_cut_off_is_caught() {
    run(sabotaged(Sabotage::ShutEarly));
}
