//! Sessions in a simulated fleet (decisions 0030, 0032): three gateways with the program's own parts, from the broker to the rows, over a model of NATS
//! and a time of its own. Gateways are cut off, are killed and come back, stand still, lose their leases; questions and answers are late, lost and
//! doubled; devices go from one to another at any moment.
//!
//! What must hold: what was acknowledged to its publisher comes to each session that had subscribed before, at least once; no session begins anew
//! while NATS is there to say where it is; whoever is greeted is greeted by the gateway that the row names; and when all has calmed down each
//! session is at one gateway.

mod device;
mod executor;
mod gateway;
mod nats;
mod shard;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::claim;
use crate::codec::mqtt::QoS;
use crate::link::WorkerId;
use device::{Device, Heard, TOPICS};
use executor::{Executor, Whose};
use gateway::{Gateway, Lives};
use nats::{Nats, name};
use shard::{Kept, Shard, Wish};

const GATEWAYS: usize = 3;
const DEVICES: usize = 3;
const WORLDS: u64 = 3;
const WORLDS_VARIABLE: &str = "SIM_RUNS";
const SEED_VARIABLE: &str = "SIM_SEED";
/// How long a world goes on, by its clock,
const LASTS: Duration = Duration::from_secs(75);
/// and how long it may take to calm down.
const CALMS: Duration = Duration::from_mins(5);
/// When nothing has come for so long nothing more comes: whoever waits for a gateway that is silent does not wait that long.
const STILL: Duration = Duration::from_secs(45);

/// What a world may plant, to see it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// A session moves before all that was published at its new gateway is in the stream.
    NothingIsSent,
    /// A session is cut before all that is in the stream has come to it.
    EndIsReached,
    /// The cursor goes on whatever is outstanding.
    NoNeeds,
    /// A row is written over whatever stands there.
    NoCompareAndSet,
    /// SUBACK does not wait for the row.
    SubackTooSoon,
}

struct Message {
    /// Sessions that had subscribed when it was published.
    owed: Vec<(usize, u32)>,
    is_safe: bool,
    is_acknowledged: bool,
}

/// A connection that has ended, and of which its gateway hears then.
type Hangup = (Instant, usize, u64, String, u64);

struct World {
    random: fastrand::Rng,
    fault: Fault,
    executor: Executor,
    nats: Nats,
    lives: Lives,
    kept: [Option<Kept>; GATEWAYS],
    /// Until when each is not there, or stands still.
    back_at: [Option<Instant>; GATEWAYS],
    frozen_until: [Option<Instant>; GATEWAYS],
    cut_until: [Option<Instant>; GATEWAYS],
    unasked: [u64; GATEWAYS],
    life: u64,
    serial: u64,
    began: Instant,
    devices: Vec<Device>,
    messages: Vec<Message>,
    hangups: Vec<Hangup>,
    broken: BTreeSet<String>,
    is_calm: bool,
    /// How often sessions came from gateways that lived, and from dead ones.
    taken: u64,
    revived: u64,
    log: Vec<String>,
}

impl World {
    fn new(seed: u64, fault: Fault) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let executor = Executor::new(random.fork());
        let nats = Nats::new(executor.clock.clone());
        let began = executor.clock.now();
        let device = |number| Device::new(format!("device-{number}"));
        let mut world = Self {
            random,
            fault,
            executor,
            nats,
            lives: Arc::new(Mutex::new([const { None }; GATEWAYS])),
            kept: [const { None }; GATEWAYS],
            back_at: [None; GATEWAYS],
            frozen_until: [None; GATEWAYS],
            cut_until: [None; GATEWAYS],
            unasked: [0; GATEWAYS],
            life: 0,
            serial: 0,
            began,
            devices: (0..DEVICES).map(device).collect(),
            messages: Vec::new(),
            hangups: Vec::new(),
            broken: BTreeSet::new(),
            is_calm: false,
            taken: 0,
            revived: 0,
            log: Vec::new(),
        };
        (0..GATEWAYS).for_each(|at| world.begin(at));
        world
    }

    fn now(&self) -> Instant {
        self.executor.clock.now()
    }

    fn note(&mut self, what: &str) {
        let at = self.now().duration_since(self.began).as_millis();
        self.log.push(format!("{at}: {what}"));
    }

    fn gateway(&self, at: usize) -> Option<Arc<Gateway>> {
        self.lives.lock().unwrap()[at].clone()
    }

    // --- Gateways -----------------------------------------------------------------------------------------------------

    fn begin(&mut self, at: usize) {
        self.life += 1;
        let kept = self.kept[at].take().unwrap_or_default();
        let end = self.nats.state().stream.len() as u64;
        let shard = Shard::new(at, self.fault, kept, self.began, self.now(), end);
        let gateway = Gateway::new(at, self.life, &self.nats, &self.lives, self.fault, shard);
        gateway.begin();
        self.note(&format!("gate-{at} begins as {}", self.life));
        (self.back_at[at], self.unasked[at]) = (None, 0);
        self.lives.lock().unwrap()[at] = Some(gateway);
    }

    fn kill(&mut self, at: usize) {
        let Some(gateway) = self.lives.lock().unwrap()[at].take() else { return };
        self.note(&format!("gate-{at} is killed"));
        self.count(&gateway);
        self.executor.end(gateway.whose());
        self.kept[at] = Some(gateway.shard().end());
        self.frozen_until[at] = None;
        self.back_at[at] = Some(self.now() + Duration::from_millis(self.random.u64(100..40_000)));
        for device in &mut self.devices {
            if device.place.is_some_and(|(place, _)| place == at) {
                device.leave();
            }
        }
    }

    fn count(&mut self, gateway: &Gateway) {
        let counts = gateway.sessions.counters.counts();
        (self.taken, self.revived) = (self.taken + counts.taken, self.revived + counts.revived);
    }

    fn may_go_on(frozen: &[Option<Instant>; GATEWAYS], whose: Whose) -> bool {
        match whose {
            Whose::Network => true,
            Whose::Gateway(at, _) => frozen[at].is_none(),
        }
    }

    /// One turn of a gateway, and what it wishes.
    fn turn(&mut self, at: usize) {
        let Some(gateway) = self.gateway(at).filter(|_| self.frozen_until[at].is_none()) else { return };
        let now = self.now();
        let (wishes, heard) = {
            let mut shard = gateway.shard();
            shard.is_calm = self.is_calm;
            shard.turn(&mut self.random, now);
            (std::mem::take(&mut shard.wishes), std::mem::take(&mut shard.heard))
        };
        for wish in wishes {
            let (whose, life) = (gateway.whose(), Arc::clone(&gateway));
            let clock = &gateway.clock;
            match wish {
                Wish::Wanted(wanted) => {
                    clock.spawn(whose, async move { claim::claim(&life, WorkerId(0), &wanted).await });
                }
                Wish::Gone(device) => clock.spawn(whose, async move { claim::let_go(&life, &device).await }),
                Wish::Changed(changed) => gateway.sessions.rows.add(WorkerId(0), changed, now),
                Wish::Settled(position) => gateway.note_settled(position),
            }
        }
        let unasked = gateway.sessions.counters.counts().unasked;
        let is_unasked = std::mem::replace(&mut self.unasked[at], unasked) != unasked;
        for one in heard {
            self.hear(&gateway, one, is_unasked);
        }
    }

    // --- Devices ------------------------------------------------------------------------------------------------------

    fn device(&mut self, device: &str) -> &mut Device {
        self.devices.iter_mut().find(|known| known.name == device).expect("there is no other")
    }

    fn hear(&mut self, gateway: &Arc<Gateway>, heard: Heard, is_unasked: bool) {
        let (at, now) = (gateway.at, self.now());
        if !matches!(heard, Heard::Message { .. } | Heard::Released { .. }) {
            self.note(&format!("gate-{at}: {heard:?}"));
        }
        match heard {
            Heard::Settled { device, goes_on } => {
                if is_unasked {
                    // It goes on with what is here, whatever is elsewhere.
                    self.device(&device).is_between = true;
                    self.device(&device).begin_anew();
                }
                if goes_on {
                    gateway.shard().attach(&device, now);
                } else {
                    gateway.shard().disconnect(&device, None, now);
                }
            }
            Heard::Greeted { device, serial, was_present } => self.hear_greeting(gateway, &device, serial, was_present),
            Heard::Subscribed { device } => self.hear_suback(at, &device),
            Heard::Message { device, serial, number, packet, qos } => {
                let known = self.device(&device);
                if known.is_at(at, serial) {
                    known.take(number, packet, qos);
                }
            }
            Heard::Released { device, packet } => self.device(&device).release(packet),
            Heard::Ended { device, serial } => {
                let known = self.device(&device);
                if known.is_at(at, serial) {
                    known.leave();
                }
            }
            Heard::Safe { number } => self.messages[number as usize].is_safe = true,
        }
    }

    fn hear_greeting(&mut self, gateway: &Gateway, device: &str, serial: u64, was_present: bool) {
        let (at, is_away) = (gateway.at, !self.nats.knows(gateway.at));
        let row = self.nats.state().rows.get(device).map(|(_, row)| row.node.clone());
        let known = self.device(device);
        if !known.is_at(at, serial) {
            return;
        }
        let is_between = known.is_between;
        if is_between && !is_away {
            // What it was elsewhere, or is here, counts from now on.
            known.begin_anew();
            known.is_between = false;
        }
        let had_session = std::mem::replace(&mut known.has_session, true);
        known.is_greeted = true;
        if !known.has_subscribed {
            known.asked_at = Some(gateway.clock.now());
            gateway.shard().subscribe(device);
        }
        if is_between || is_away {
            return;
        }
        if had_session && !was_present {
            self.broken.insert(format!("{device} begins anew at gate-{at}"));
        }
        if row.as_deref() != Some(&*name(at)) {
            self.broken.insert(format!("gate-{at} greets {device}, whose row names {row:?}"));
        }
    }

    fn hear_suback(&mut self, at: usize, device: &str) {
        let (now, is_away) = (self.now(), !self.nats.knows(at));
        let row = self.nats.state().rows.get(device).and_then(|(_, row)| row.outline());
        let is_known = row.is_some_and(|session| session.subscriptions.len() == TOPICS.len());
        let known = self.device(device);
        let Some(asked_at) = known.asked_at.take() else { return };
        // It was answered because nobody can know: the device is not sure, and says it again.
        known.has_subscribed = is_known && !known.is_between;
        let has_waited = now.duration_since(asked_at) >= Duration::from_millis(4_900);
        if !is_known && !has_waited && !is_away && !known.is_between {
            let said = format!("{device} is told that it has subscribed, and its row at gate-{at} does not say so");
            self.broken.insert(said);
        }
    }

    fn connect(&mut self, number: usize, at: usize) {
        let Some(gateway) = self.gateway(at).filter(|_| self.frozen_until[at].is_none()) else { return };
        if !self.nats.knows(at) && self.random.u8(..4) > 0 {
            return;
        }
        self.disconnect(number);
        self.serial += 1;
        let (serial, now) = (self.serial, self.now());
        let device = &mut self.devices[number];
        device.place = Some((at, serial));
        let device = device.name.clone();
        self.note(&format!("{device} comes to gate-{at} as {serial}"));
        gateway.shard().connect(&device, serial, now);
    }

    /// The device is gone; its gateway hears so a little later.
    fn disconnect(&mut self, number: usize) {
        let device = &mut self.devices[number];
        let Some((at, serial)) = device.place else { return };
        let name = device.name.clone();
        device.leave();
        let Some(gateway) = self.gateway(at) else { return };
        gateway.shard().leave(&name, serial);
        let due = self.now() + Duration::from_millis(self.random.u64(..1_500));
        self.hangups.push((due, at, gateway.life, name, serial));
    }

    fn hang_up(&mut self) {
        let now = self.now();
        let frozen = self.frozen_until;
        let due: Vec<_> = self.hangups.extract_if(.., |(due, at, ..)| *due <= now && frozen[*at].is_none()).collect();
        for (_, at, life, device, serial) in due {
            if let Some(gateway) = self.gateway(at).filter(|gateway| gateway.life == life) {
                gateway.shard().disconnect(&device, Some(serial), now);
            }
        }
    }

    // --- Messages -----------------------------------------------------------------------------------------------------

    fn publish(&mut self, at: usize) {
        let Some(gateway) = self.gateway(at).filter(|_| self.frozen_until[at].is_none()) else { return };
        let number = self.messages.len() as u32;
        let sure = self.devices.iter().enumerate().filter(|(_, device)| device.has_subscribed);
        let owed = sure.map(|(at, device)| (at, device.epoch)).collect();
        self.messages.push(Message { owed, is_safe: false, is_acknowledged: false });
        let qos = if self.random.bool() { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
        let topic = TOPICS[self.random.usize(..TOPICS.len())];
        gateway.shard().publish(number, topic, qos);
    }

    fn acknowledge(&mut self) {
        let state = self.nats.state();
        for (number, message) in self.messages.iter_mut().enumerate() {
            message.is_acknowledged |= message.is_safe && state.has(number as u32);
        }
    }

    /// What was acknowledged and has not come.
    fn missing(&self) -> Vec<(u32, usize)> {
        let mut missing = Vec::new();
        for (number, message) in self.messages.iter().enumerate().filter(|(_, message)| message.is_acknowledged) {
            for &(device, epoch) in &message.owed {
                let known = &self.devices[device];
                if known.epoch == epoch && !known.got.contains_key(&(number as u32)) {
                    missing.push((number as u32, device));
                }
            }
        }
        missing
    }

    // --- Chance -------------------------------------------------------------------------------------------------------

    fn act(&mut self) {
        let at = self.random.usize(..GATEWAYS);
        let number = self.random.usize(..DEVICES);
        let now = self.now();
        let soon = |random: &mut fastrand::Rng, ms| Some(now + Duration::from_millis(random.u64(..ms)));
        match self.random.u16(..1_000) {
            0..500 => self.publish(at),
            500..600 if self.devices[number].place.is_none() => self.connect(number, at),
            600..607 => self.connect(number, at),
            607..612 => self.disconnect(number),
            630..638 => self.kill(at),
            638..644 if self.cut_until[at].is_none() => {
                self.note(&format!("gate-{at} is cut off"));
                self.cut_until[at] = soon(&mut self.random, 20_000);
                self.nats.set_cut(at, true);
            }
            644..648 if self.frozen_until[at].is_none() => {
                self.note(&format!("gate-{at} stands still"));
                self.frozen_until[at] = soon(&mut self.random, 15_000);
            }
            648..653 => self.nats.state().end_lease(&name(at)),
            _ => {}
        }
    }

    /// Whoever was away for long enough is back.
    fn heal(&mut self, is_all: bool) {
        let now = self.now();
        let is_due = |until: Option<Instant>| until.is_some_and(|until| is_all || until <= now);
        for at in 0..GATEWAYS {
            if is_due(self.back_at[at]) {
                self.begin(at);
            }
            if is_due(self.frozen_until[at]) {
                self.frozen_until[at] = None;
            }
            if is_due(self.cut_until[at]) {
                self.cut_until[at] = None;
                self.nats.set_cut(at, false);
            }
        }
    }

    /// All that can go on does, in some order, and then time passes.
    fn step(&mut self) {
        let frozen = self.frozen_until;
        while self.executor.poll_one(|whose| Self::may_go_on(&frozen, whose)) {
            if self.random.u8(..16) == 0 {
                let at = self.random.usize(..GATEWAYS);
                self.turn(at);
            }
        }
        (0..GATEWAYS).for_each(|at| self.turn(at));
        self.acknowledge();
        let most = Duration::from_millis(self.random.u64(10..80));
        self.executor.pass_time(most);
        self.hang_up();
    }

    fn run(mut self) -> Outcome {
        let mut due = self.now();
        while self.now() < self.began + LASTS {
            self.step();
            self.heal(false);
            if self.now() >= due {
                self.act();
                due = self.now() + Duration::from_millis(self.random.u64(..100));
            }
        }
        self.heal(true);
        self.is_calm = true;
        self.calm_down();
        for at in 0..GATEWAYS {
            let gateway = self.gateway(at).expect("all are back");
            self.count(&gateway);
        }
        let log = if self.broken.is_empty() { Vec::new() } else { std::mem::take(&mut self.log) };
        Outcome { broken: self.broken, taken: self.taken, revived: self.revived, log }
    }

    fn calm_down(&mut self) {
        (0..DEVICES).for_each(|number| self.disconnect(number));
        let until = self.now() + CALMS;
        let (mut quiet_since, mut left, mut came_at) = (None, usize::MAX, self.now());
        while self.now() < until {
            self.step();
            for number in 0..DEVICES {
                if self.devices[number].place.is_none() {
                    let at = self.random.usize(..GATEWAYS);
                    self.connect(number, at);
                }
            }
            let missing = self.missing().len();
            if std::mem::replace(&mut left, missing) != missing {
                came_at = self.now();
            }
            let is_quiet = missing == 0 && self.scattered().is_empty();
            if !is_quiet && self.now() > came_at + STILL {
                break;
            }
            quiet_since = if is_quiet { quiet_since.or(Some(self.now())) } else { None };
            if quiet_since.is_some_and(|since| self.now() > since + Duration::from_secs(5)) {
                return;
            }
        }
        for (number, device) in self.missing().into_iter().take(5) {
            let numbers = self.missing().len();
            self.note(&format!("{numbers} missing, {number} to device-{device}, epoch {}", self.devices[device].epoch));
            let message = &self.messages[number as usize];
            self.broken.insert(format!("{number} of {} never came to device-{device}", message.owed.len()));
        }
        let scattered = self.scattered();
        self.broken.extend(scattered);
    }

    /// Sessions that are not at the one gateway at which their devices are.
    fn scattered(&self) -> Vec<String> {
        let mut scattered = Vec::new();
        for device in &self.devices {
            let has = |at: &usize| self.gateway(*at).is_some_and(|life| life.shard().has_session(&device.name));
            let there: Vec<_> = (0..GATEWAYS).filter(has).collect();
            let row = self.nats.state().rows.get(&device.name).map(|(_, row)| row.node.clone());
            let place = device.place.filter(|_| device.is_greeted).map(|(at, _)| at);
            if place.is_none_or(|at| there != [at] || row.as_deref() != Some(&*name(at))) {
                scattered
                    .push(format!("{} is at {place:?}, its session at {there:?}, its row at {row:?}", device.name));
            }
        }
        scattered
    }
}

/// Whoever holds up the walk over all sessions, as their devices come all at once, is remembered in small numbers: the walk waits for room.
#[test]
fn the_walk_over_all_sessions_remembers_few_however_many_are_busy() {
    const CROWD: usize = 420;
    let mut world = World::new(1, Fault::None);
    world.is_calm = true;
    world.devices = (0..CROWD).map(|number| Device::new(format!("device-{number}"))).collect();
    let has_all = |world: &World| world.devices.iter().all(|device| device.is_greeted && device.has_subscribed);
    while !has_all(&world) {
        for number in 0..CROWD {
            if world.devices[number].place.is_none() {
                world.connect(number, 0);
            }
        }
        world.step();
    }
    let gateway = world.gateway(0).unwrap();
    let pages = || gateway.pages.load(std::sync::atomic::Ordering::Relaxed);
    let go_on = |world: &mut World, seconds| {
        let until = world.now() + Duration::from_secs(seconds);
        while world.now() < until {
            world.step();
        }
    };
    // Until what was begun before is at its end.
    let mut quiet_at = u64::MAX;
    while std::mem::replace(&mut quiet_at, pages()) != pages() {
        go_on(&mut world, 20);
    }
    let mut held = Vec::new();
    while held.len() < CROWD {
        match gateway.sessions.try_hold(&format!("device-{}", held.len())) {
            Some(one) => held.push(one),
            // Something is still done about it.
            None => world.step(),
        }
    }
    let before = pages();
    world.nats.state().end_lease(&name(0));
    go_on(&mut world, 30);
    assert_eq!(pages() - before, 4, "so many pages fill what is remembered, of {CROWD} sessions");
    drop(held);
    go_on(&mut world, 120);
    assert_eq!(pages() - before, CROWD.div_ceil(64) as u64 + 1, "all, and that there is no more");
}

/// What became of a world.
struct Outcome {
    broken: BTreeSet<String>,
    taken: u64,
    revived: u64,
    log: Vec<String>,
}

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    match number(SEED_VARIABLE) {
        Some(seed) => seed..seed + 1,
        None => 0..number(WORLDS_VARIABLE).unwrap_or(WORLDS),
    }
}

#[test]
fn whatever_is_lost_late_cut_or_killed_sessions_have_what_is_theirs_and_are_in_one_place() {
    let (mut taken, mut revived) = (0, 0);
    for seed in seeds() {
        let outcome = World::new(seed, Fault::None).run();
        assert!(outcome.broken.is_empty(), "seed {seed}: {:#?}\n{}", outcome.broken, outcome.log.join("\n"));
        (taken, revived) = (taken + outcome.taken, revived + outcome.revived);
    }
    let worlds = seeds().count() as u64;
    assert!(taken >= worlds && 2 * revived >= worlds, "too little happened: {taken} taken, {revived} revived");
}

fn is_found(fault: Fault) {
    let is_found = (0..10 * WORLDS).any(|seed| !World::new(seed, fault).run().broken.is_empty());
    assert!(is_found, "no world has found {fault:?}");
}

#[test]
fn a_session_that_moves_before_what_was_published_is_in_the_stream_is_found() {
    is_found(Fault::NothingIsSent);
}

#[test]
fn a_session_that_is_cut_before_the_stream_has_come_to_it_is_found() {
    is_found(Fault::EndIsReached);
}

#[test]
fn a_cursor_that_waits_for_nobody_is_found() {
    is_found(Fault::NoNeeds);
}

#[test]
fn rows_without_compare_and_set_are_found() {
    is_found(Fault::NoCompareAndSet);
}

#[test]
fn a_suback_before_its_row_is_found() {
    is_found(Fault::SubackTooSoon);
}
