//! MQTT devices in the simulation: sessions, QoS 0 to 2, wills, shared groups, retained messages, takeover and expiry,
//! over several shards whose words to each other meet full inboxes. A ledger says what each must and may get.

mod client;
mod coverage;
mod device;
mod ledger;
mod world;

use std::time::{Duration, Instant};

use pulsegate::turn::Bounds;

use crate::certificates::Certificates;
use crate::gateway::Build;
use crate::io::{Faults, Patience, Sabotage};
use crate::{from_environment, seed};
use coverage::Coverage;
use world::{KEEP_ALIVE, Plan, World};

/// Small worlds that are run without being asked for more.
const RUNS: u64 = 12;

fn patience() -> Patience {
    Patience { micros: (KEEP_ALIVE + KEEP_ALIVE / 2).as_micros() as u64 }
}

/// A small world in which everything goes wrong all the time.
fn small(seed: u64) -> Plan {
    let mut random = fastrand::Rng::with_seed(seed ^ 0x5EED);
    let mut one_of = |choices: &[u32]| choices[random.usize(..choices.len())];
    Plan {
        seed,
        devices: one_of(&[3, 8, 30]) as usize,
        neighbourhood: usize::MAX,
        time: Duration::from_hours(1),
        step: Duration::from_millis(one_of(&[200, 2_000]).into()),
        act_every: Duration::from_secs(one_of(&[10, 60, 200]).into()),
        split: one_of(&[0, 2, 10]),
        late: one_of(&[0, 100, 1_000]),
        backlog: one_of(&[0, 200, 2_000]),
        check_every: 16,
        uplink_length: one_of(&[4, 100, 10_000]) as usize,
        build: Build {
            workers: one_of(&[1, 2, 4]) as u16,
            bounds: Bounds {
                events: one_of(&[2, 8, 64]) as usize,
                commands: one_of(&[2, 64, 1_024]) as usize,
                deadlines: one_of(&[4, 1_024]) as usize,
                ..Bounds::default()
            },
            faults: Faults {
                channel: one_of(&[8, 1_024]) as usize,
                inbox: one_of(&[1, 4, 1_000]) as usize,
                short_writes: one_of(&[0, 2, 20]),
                home_full: 0,
                channel_full: 0,
                interrupted: one_of(&[0, 5]),
                stopped: one_of(&[0, 500]),
                check_phases: false,
            },
            sabotage: Sabotage::None,
            patience: patience(),
            room: 1 << 20,
        },
    }
}

/// A large one: what goes wrong is rare for each, and common for all.
fn large(seed: u64, devices: usize, time: Duration) -> Plan {
    Plan {
        devices,
        neighbourhood: 30,
        time,
        step: Duration::from_millis(200),
        act_every: Duration::from_secs(250),
        split: 10,
        late: 1_000,
        backlog: 1_000,
        check_every: 20_000,
        uplink_length: 4_096,
        build: Build {
            workers: 4,
            bounds: Bounds::default(),
            faults: Faults {
                channel: 16_384,
                inbox: 100,
                short_writes: 20,
                stopped: 12_000,
                interrupted: 50,
                ..small(seed).build.faults
            },
            ..small(seed).build
        },
        ..small(seed)
    }
}

fn run(plan: Plan) -> Coverage {
    let directory = tempfile::tempdir().unwrap();
    World::new(plan, &Certificates::new(directory.path())).run()
}

#[test]
fn mqtt_small_worlds_in_which_everything_goes_wrong() {
    let first = seed();
    let replayed = from_environment("SIM_SEED").map(|_| 1);
    let asked = from_environment("SIM_RUNS").or(replayed);
    let mut all = Coverage::default();
    // Twelve worlds are drawn that now and then lack what is rare: then there are more.
    let least = asked.unwrap_or(RUNS);
    for seed in first..first + asked.unwrap_or(10 * RUNS) {
        if seed - first >= least && all.is_enough() {
            break;
        }
        println!("simulation of MQTT: SIM_SEED={seed}");
        let began = Instant::now();
        let coverage = run(small(seed));
        println!("    {:.1} s: {coverage:?}", began.elapsed().as_secs_f64());
        all.add(&coverage);
    }
    assert!(least < RUNS || all.is_enough(), "{all:?}");
}

/// `SIM_DEVICES=100000 SIM_HOURS=2` for the world that a release is tried with.
#[test]
fn mqtt_large_world_for_hours() {
    let devices = from_environment("SIM_DEVICES").unwrap_or(300) as usize;
    let hours = from_environment("SIM_HOURS").unwrap_or(1);
    let seed = seed();
    println!("simulation of MQTT: {devices} devices for {hours} hours, SIM_SEED={seed}");
    let began = Instant::now();
    let coverage = run(large(seed, devices, Duration::from_hours(hours)));
    println!("    {:.1} s: {coverage:?}", began.elapsed().as_secs_f64());
    assert!(coverage.received > coverage.published / 2 && coverage.resumed > 0, "{coverage:?}");
}

/// A world that is sure to meet a planted error.
fn sabotaged(sabotage: Sabotage) -> Plan {
    let mut plan = Plan { devices: 12, act_every: Duration::from_secs(20), ..small(7) };
    plan.build.workers = 2;
    plan.build.sabotage = sabotage;
    plan
}

#[test]
fn mqtt_world_without_an_error_is_well() {
    let coverage = run(sabotaged(Sabotage::None));
    assert!(coverage.received > 200, "{coverage:?}");
}

#[test]
fn mqtt_seed_replays() {
    let [one, other] = [(); 2].map(|()| run(small(3)));
    assert_eq!(format!("{one:?}"), format!("{other:?}"));
}

#[test]
#[should_panic(expected = "device ")]
fn mqtt_message_that_is_lost_between_shards_is_caught() {
    run(sabotaged(Sabotage::LosePeers));
}

/// Worlds in which shards have much to say to each other, of so many workers: small ones, of seeds in their order.
fn busy(seed: u64, workers: u16, sabotage: Sabotage) -> Plan {
    let mut plan = Plan { seed, devices: 30, act_every: Duration::from_secs(5), ..sabotaged(sabotage) };
    (plan.build.workers, plan.build.faults.inbox) = (workers, 1);
    plan
}

#[test]
fn mqtt_busy_worlds_without_an_error_are_well() {
    for workers in [1, 2, 4] {
        println!("{workers}: {:?}", run(busy(1, workers, Sabotage::None)));
    }
}

#[test]
#[should_panic(expected = "device ")]
fn mqtt_workers_that_do_not_hear_while_they_cannot_speak_are_caught() {
    for seed in 1..20 {
        println!("{seed}: {:?}", run(busy(seed, 2, Sabotage::StopsHearing)));
    }
}

#[test]
#[should_panic(expected = "reached no member of the group")]
fn mqtt_suback_before_the_home_of_a_group_knows_is_caught() {
    for seed in 1..20 {
        println!("{seed}: {:?}", run(busy(seed, 4, Sabotage::EarlySuback)));
    }
}

#[test]
#[should_panic(expected = "it was acknowledged before it was asked for")]
fn mqtt_puback_before_every_shard_has_what_is_retained_is_caught() {
    for seed in 1..20 {
        println!("{seed}: {:?}", run(busy(seed, 2, Sabotage::EarlyPuback)));
    }
}

#[test]
#[should_panic(expected = "was never acknowledged")]
fn mqtt_lost_answer_of_the_backbone_is_caught() {
    run(sabotaged(Sabotage::LoseAnswers));
}

#[test]
#[should_panic(expected = "reached no member of the group")]
fn mqtt_message_that_an_ended_session_has_left_and_that_is_lost_is_missed() {
    // Members that come and go all the time, at a group whose home is the other worker's for some of them.
    for seed in 1..20 {
        let mut plan = Plan { seed, devices: 30, act_every: Duration::from_secs(5), ..sabotaged(Sabotage::LoseLeft) };
        plan.build.workers = 4;
        println!("{seed}: {:?}", run(plan));
    }
}
