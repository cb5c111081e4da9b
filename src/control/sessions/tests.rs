//! Sessions, presence and wills in a simulated fleet (decisions 0009, 0030, 0032): three gateways with the program's own parts, from the broker to
//! the rows, over a model of NATS and a time of its own. Gateways are cut off, are killed and come back, stand still, lose their leases; questions
//! and answers are late, lost and doubled; devices go from one to another at any moment, say goodbye or do not, and leave connections behind that
//! nobody sees end.
//!
//! What must hold: what was acknowledged to its publisher comes to each session that had subscribed before, at least once; no session begins anew
//! while NATS is there to say where it is, unless its device wants that, and then nothing comes of the one before; whoever is greeted is greeted by
//! the gateway that the row names; the row of a device goes from one of its connections to a later one and never back, and of two connections one
//! ends; wills are published as `wills` says; and when all has calmed down each device is at one gateway, with its session and its rows.

mod calm;
mod chance;
mod device;
mod executor;
mod gateway;
mod nats;
mod planted;
mod presence;
mod shard;
mod troubles;
mod wills;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::around::Neighbours;
use super::claim;
use crate::codec::mqtt::QoS;
use crate::link::WorkerId;
use chance::Weather;
use device::{Coming, Device, Heard, TOPICS};
use executor::{Executor, Whose};
use gateway::{Gateway, Lives};
use nats::{Nats, name};
use shard::{Kept, Shard, Wish};
use troubles::Trouble;
use wills::{End, Ledger};

const GATEWAYS: usize = 3;
const DEVICES: usize = 3;
const WORLDS: u64 = 3;
/// Points at which a lease is over, for each seed.
const POINTS: u64 = 8;
const WORLDS_VARIABLE: &str = "SIM_RUNS";
const SEED_VARIABLE: &str = "SIM_SEED";
/// What was published so long before a device was greeted with a new session must not come to it.
const OLD: Duration = Duration::from_secs(20);
/// How long two connections of a device may stand at gateways that work, and have for a while.
const DOUBLE_MAX: Duration = Duration::from_secs(20);
const WORK_FOR: Duration = Duration::from_secs(12);

/// What a world may plant, to see it found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// A session moves before all that was published at its new gateway is in the stream.
    NothingIsSent,
    /// A session is cut before all that is in the stream has come to it.
    EndIsReached,
    /// The cursor goes on whatever is outstanding, and nobody has a place of its own.
    NoNeeds,
    /// A row is written over whatever stands there.
    NoCompareAndSet,
    /// SUBACK does not wait for the row.
    SubackTooSoon,
    /// Everything that is in the stream is said to be with sessions, which get it later.
    SettledTooSoon,
    /// The row of a device is written over whatever stands there,
    OwnersWithoutCompareAndSet,
    /// and whoever has the device, without a question.
    OwnerIsNotAsked,
    /// Who has lost a device hears nothing of it.
    NobodyIsTold,
    /// What was had under a lease that is over is believed to be had.
    LostLeaseIsBelieved,
    /// A will that was delayed is published wherever its device is.
    WillIsNotAskedAbout,
    /// Rows keep wills that are no more.
    RowsKeepWills,
    /// Nobody publishes the wills of gateways that have died.
    NobodyLooksAtTheDead,
    /// Who wants a new session gets the old one.
    CleanStartIsIgnored,
    /// The walk over all sessions comes before any of them is stored.
    WalkIsEarly,
}

struct Message {
    /// Sessions that had subscribed when it was published.
    owed: Vec<(usize, u32)>,
    is_safe: bool,
    /// When its publisher was told.
    acknowledged: Option<Instant>,
}

/// A connection that has ended, and of which its gateway hears then.
struct Hangup {
    due: Instant,
    at: usize,
    life: u64,
    device: String,
    serial: u64,
    end: End,
}

struct World {
    random: fastrand::Rng,
    fault: Fault,
    weather: Weather,
    /// When the next thing goes wrong, where it is fair, or is to be done, where all is written down.
    next_due: Instant,
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
    began: Instant,
    devices: Vec<Device>,
    ledger: Ledger,
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
    fn new(seed: u64, fault: Fault, weather: Weather) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        let executor = Executor::new(random.fork());
        let nats = Nats::new(executor.clock.clone());
        let began = executor.clock.now();
        let device = |number| Device::new(format!("device-{number}"));
        let mut world = Self {
            random,
            fault,
            weather,
            next_due: began,
            executor,
            nats,
            lives: Arc::new(Mutex::new([const { None }; GATEWAYS])),
            kept: [const { None }; GATEWAYS],
            back_at: [None; GATEWAYS],
            frozen_until: [None; GATEWAYS],
            cut_until: [None; GATEWAYS],
            unasked: [0; GATEWAYS],
            life: 0,
            began,
            devices: (0..DEVICES).map(device).collect(),
            ledger: Ledger::default(),
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
        self.end_trouble(at, Trouble::Killed);
        (self.back_at[at], self.unasked[at]) = (None, 0);
        self.lives.lock().unwrap()[at] = Some(gateway);
    }

    fn kill(&mut self, at: usize) {
        let Some(gateway) = self.lives.lock().unwrap()[at].take() else { return };
        self.note(&format!("gate-{at} is killed"));
        self.end_trouble(at, Trouble::Frozen);
        self.begin_trouble(at, Trouble::Killed);
        for serial in self.ledger.kill(at, self.now()) {
            self.nats.state().standing.remove(&serial);
        }
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
                Wish::Settled(_) if self.fault == Fault::SettledTooSoon => {}
                Wish::Settled(position) => gateway.note_settled(position),
                Wish::WillDue(device, will) => presence::will_due(&gateway, device, will),
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
                    gateway.shard().disconnect(&device, None, End::PutOff, now);
                }
            }
            Heard::Came { device, serial, since } => {
                gateway.claims().presence.connected(&device, serial, None, since.into_std());
            }
            Heard::Attached { serial } => self.ledger.attach(serial),
            Heard::Willed { serial, is_sure } => self.ledger.publish(serial, is_sure, now),
            Heard::Greeted { device, serial, was_present } => self.hear_greeting(gateway, &device, serial, was_present),
            Heard::Subscribed { device } => self.hear_suback(at, &device),
            Heard::Message { device, serial, number, packet, qos } => {
                self.look_at_age(at, &device, number);
                let known = self.device(&device);
                if known.is_at(at, serial) {
                    known.take(number, packet, qos);
                }
            }
            Heard::Released { device, packet } => self.device(&device).release(packet),
            Heard::Ended { device, serial, end } => {
                self.ledger.end(serial, end, now);
                self.nats.state().standing.remove(&serial);
                gateway.claims().presence.disconnected(&device, serial);
                let known = self.device(&device);
                if known.is_at(at, serial) {
                    known.leave();
                }
            }
            Heard::Safe { number } => self.messages[number as usize].is_safe = true,
        }
    }

    fn hear_greeting(&mut self, gateway: &Gateway, device: &str, serial: u64, was_present: bool) {
        let (at, is_away, now) = (gateway.at, !gateway.was_connected(), self.now());
        let row = self.nats.state().rows.get(device).map(|(_, row)| row.node.clone());
        let is_sure = !is_away && !self.device(device).is_between;
        self.ledger.greet(serial, is_sure, now);
        let known = self.device(device);
        if !known.is_at(at, serial) {
            return;
        }
        let is_between = known.is_between;
        // One that begins where NATS is away ends nothing elsewhere, and whoever comes there at once goes on with that.
        if known.is_clean && is_sure {
            known.began_anew = Some(now);
        }
        let is_old = known.is_clean && was_present;
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
        if is_old {
            self.broken.insert(format!("{device} wants a new session at gate-{at}, and gets the old one"));
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
        let (now, is_away) = (self.now(), !self.gateway(at).is_some_and(|gateway| gateway.was_connected()));
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

    /// What comes is not of a session that has ended.
    fn look_at_age(&mut self, at: usize, device: &str, number: u32) {
        let Some(began_anew) = self.device(device).began_anew else { return };
        let since = began_anew.checked_sub(OLD).unwrap_or(began_anew);
        let is_old = self.messages[number as usize].acknowledged.is_some_and(|at| at < since);
        if is_old && self.nats.state().troubles.is_quiet(at, (since, self.now())) {
            self.broken.insert(format!("{number} comes to {device}, which has begun anew since"));
        }
    }

    fn connect(&mut self, number: usize, at: usize) {
        let is_clean = !self.is_calm && self.random.u8(..16) == 0;
        let delay_s = self.random.choice([None, Some(0), Some(0), Some(2), Some(6)]).expect("there are some");
        self.connect_as(number, at, is_clean, delay_s);
    }

    fn connect_as(&mut self, number: usize, at: usize, is_clean: bool, delay_s: Option<u32>) {
        let Some(gateway) = self.gateway(at).filter(|_| self.frozen_until[at].is_none()) else { return };
        if !gateway.is_connected() && self.random.u8(..4) > 0 {
            return;
        }
        let end = if self.random.u8(..3) == 0 { End::Goodbye } else { End::Lost };
        let is_seen = self.random.u8(..3) > 0;
        self.disconnect(number, end, is_seen);
        let (now, delay) = (self.now(), delay_s.map(|delay_s| Duration::from_secs(delay_s.into())));
        let serial = self.ledger.come(number, at, is_clean, delay, now);
        self.nats.state().standing.insert(serial, now);
        let device = &mut self.devices[number];
        (device.place, device.is_clean) = (Some((at, serial)), is_clean);
        if is_clean {
            // Whether there is one from now on it does not know before it is greeted.
            device.begin_anew();
            device.has_session = false;
        }
        let device = device.name.clone();
        self.note(&format!("{device} comes to gate-{at} as {serial}, clean {is_clean}, will {delay_s:?}"));
        gateway.shard().connect(&device, Coming { serial, is_clean, delay_s }, now);
    }

    /// The device is gone; its gateway hears so a little later, unless what tells it is lost too: a goodbye is not.
    fn disconnect(&mut self, number: usize, end: End, is_seen: bool) {
        let device = &mut self.devices[number];
        let Some((at, serial)) = device.place else { return };
        let name = device.name.clone();
        device.leave();
        let (now, is_seen) = (self.now(), is_seen || end == End::Goodbye);
        self.ledger.leave(serial, now);
        self.note(&format!("{name} leaves gate-{at} as {serial}: {end:?}, seen {is_seen}"));
        let Some(gateway) = self.gateway(at) else { return };
        gateway.shard().leave(&name, serial);
        if is_seen {
            let due = now + Duration::from_millis(self.random.u64(..1_500));
            self.hangups.push(Hangup { due, at, life: gateway.life, device: name, serial, end });
        }
    }

    fn hang_up(&mut self) {
        let (now, frozen) = (self.now(), self.frozen_until);
        let is_due = |hangup: &mut Hangup| hangup.due <= now && frozen[hangup.at].is_none();
        let due: Vec<_> = self.hangups.extract_if(.., is_due).collect();
        for Hangup { at, life, device, serial, end, .. } in due {
            if let Some(gateway) = self.gateway(at).filter(|gateway| gateway.life == life) {
                gateway.shard().disconnect(&device, Some(serial), end, now);
            }
        }
    }

    /// Of two connections of a device one ends, where those who have them can hear each other.
    fn look_at_doubles(&mut self) {
        let now = self.now();
        let span = (now.checked_sub(WORK_FOR).unwrap_or(now), now);
        let lives = self.lives.lock().unwrap().clone();
        for device in &mut self.devices {
            let has =
                |at: &usize| lives[*at].as_ref().is_some_and(|life| life.shard().connection(&device.name).is_some());
            let there: Vec<usize> = (0..GATEWAYS).filter(has).collect();
            let is_double = there.len() > 1 && there.iter().all(|&at| self.nats.state().troubles.is_quiet(at, span));
            device.double_since = device.double_since.or(Some(now)).filter(|_| is_double);
            if device.double_since.is_some_and(|since| now > since + DOUBLE_MAX) {
                self.broken.insert(format!("{} has connections at {there:?}, and neither ends", device.name));
            }
        }
    }

    /// A device is found where it is, as soon as all gateways have worked for a while.
    fn look_at_owners(&mut self) {
        let now = self.now();
        let since = now.checked_sub(WORK_FOR).unwrap_or(now);
        let state = self.nats.state();
        if !(0..GATEWAYS).all(|at| state.troubles.is_quiet(at, (since, now))) {
            return;
        }
        for device in self.devices.iter().filter(|device| device.is_greeted) {
            let Some((at, serial)) = device.place else { continue };
            let has_come = state.standing.get(&serial).is_some_and(|came| *came < since);
            let is_there = state.owners.get(&device.name).is_some_and(|(_, row)| {
                let owner = (&*row.node, row.generation);
                owner == (&*name(at), serial) && state.holds(&row.node, &row.lease, now)
            });
            if has_come && !is_there {
                self.broken.insert(format!("{} is at gate-{at}, and nobody finds it there", device.name));
            }
        }
    }

    // --- Messages -----------------------------------------------------------------------------------------------------

    fn publish(&mut self, at: usize) {
        let Some(gateway) = self.gateway(at).filter(|_| self.frozen_until[at].is_none()) else { return };
        let number = self.messages.len() as u32;
        let sure = self.devices.iter().enumerate().filter(|(_, device)| device.has_subscribed);
        let owed = sure.map(|(at, device)| (at, device.epoch)).collect();
        self.messages.push(Message { owed, is_safe: false, acknowledged: None });
        let qos = if self.random.bool() { QoS::AtLeastOnce } else { QoS::ExactlyOnce };
        let topic = TOPICS[self.random.usize(..TOPICS.len())];
        gateway.shard().publish(number, topic, qos);
    }

    fn acknowledge(&mut self) {
        let (state, now) = (self.nats.state(), self.executor.clock.now());
        for (number, message) in self.messages.iter_mut().enumerate() {
            if message.is_safe && message.acknowledged.is_none() && state.has(number as u32) {
                message.acknowledged = Some(now);
            }
        }
    }

    /// What was acknowledged and has not come.
    fn missing(&self) -> Vec<(u32, usize)> {
        let mut missing = Vec::new();
        for (number, message) in self.messages.iter().enumerate().filter(|(_, message)| message.acknowledged.is_some())
        {
            for &(device, epoch) in &message.owed {
                let known = &self.devices[device];
                if known.epoch == epoch && !known.got.contains_key(&(number as u32)) {
                    missing.push((number as u32, device));
                }
            }
        }
        missing
    }

    // --- Time ---------------------------------------------------------------------------------------------------------

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
        if self.random.u8(..16) == 0 {
            self.look_at_doubles();
            self.look_at_owners();
        }
    }

    fn run(mut self) -> Outcome {
        let mut due = self.now();
        while self.now() < self.began + self.weather.lasts() {
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
        if self.weather == Weather::Fair {
            self.spend_evening();
        }
        self.judge();
        let gateways: Vec<_> = (0..GATEWAYS).filter_map(|at| self.gateway(at)).collect();
        for gateway in &gateways {
            self.count(gateway);
        }
        let log = if self.broken.is_empty() { Vec::new() } else { std::mem::take(&mut self.log) };
        let (asked, wills) = (self.nats.state().asked, self.ledger.count());
        Outcome { broken: self.broken, taken: self.taken, revived: self.revived, asked, wills, log }
    }
}

/// Whoever holds up the walk over all sessions, as their devices come all at once, is remembered in small numbers: the walk waits for room.
#[test]
fn the_walk_over_all_sessions_remembers_few_however_many_are_busy() {
    const CROWD: usize = 420;
    let mut world = World::new(1, Fault::None, Weather::Fair);
    world.is_calm = true;
    // Whoever is let in before NATS is there goes on unasked, and is sure of nothing.
    while !world.gateway(0).unwrap().was_connected() {
        world.step();
    }
    world.devices = (0..CROWD).map(|number| Device::new(format!("device-{number}"))).collect();
    // SUBACK has come to all, whether or not the row could be written before.
    let has_all = |world: &World| world.devices.iter().all(|device| device.is_greeted && device.asked_at.is_none());
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
    let now = world.now();
    world.nats.state().end_lease(&name(0), now);
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
    /// Questions to NATS.
    asked: u64,
    /// Wills that were published.
    wills: usize,
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
        let outcome = run(seed, Weather::Rough);
        (taken, revived) = (taken + outcome.taken, revived + outcome.revived);
    }
    let worlds = seeds().count() as u64;
    // Most of those who are asked for a session here have died, or are without a lease, and are not waited for: where they live it is taken from
    // them, which the fair worlds count.
    let is_enough = taken + revived >= 2 * worlds && 2 * revived >= worlds;
    assert!(is_enough, "too little happened: {taken} taken, {revived} revived");
}

#[test]
fn where_one_thing_goes_wrong_at_a_time_each_device_has_one_owner_and_wills_are_published_once() {
    let (mut wills, mut taken) = (0, 0);
    for seed in seeds() {
        let outcome = run(seed, Weather::Fair);
        (wills, taken) = (wills + outcome.wills, taken + outcome.taken);
    }
    let worlds = seeds().count();
    let is_enough = wills >= 5 * worlds && taken >= worlds as u64;
    assert!(is_enough, "too little happened: {wills} wills, {taken} taken");
}

#[test]
fn a_lease_that_is_over_at_any_point_costs_nobody_anything() {
    let asked = run(0, Weather::LeaseEnds(0)).asked;
    let points = seeds().count() as u64 * POINTS;
    for point in 0..points {
        run(point, Weather::LeaseEnds(1 + point * asked / points));
    }
}

/// Each was found by the seed that plays it again.
#[test]
fn whoever_has_a_session_no_more_drops_it_whatever_answers_are_lost() {
    run(28, Weather::LeaseEnds(105));
    run(65, Weather::LeaseEnds(98));
    run(18, Weather::Rough);
    run(4, Weather::Rough);
}

/// A gateway that is back finds the session of a device elsewhere whose old connection here has not ended yet: it is not taken back, or it is given
/// back by who is told. Each was found by the seed that plays it again.
#[test]
fn a_session_stays_where_its_device_is_though_another_gateway_still_has_a_connection_of_it() {
    run(15, Weather::LeaseEnds(146));
    run(18, Weather::Rough);
}

/// The answer to the write of a row is lost, and a third gateway writes over it before that is looked for. Found by the seed that plays it again.
#[test]
fn whoever_lost_a_session_is_told_though_the_row_has_gone_on_since() {
    run(21, Weather::LeaseEnds(204));
}

/// NATS has gone between the write of another lease and the word that its gateway lives again. Found by the seed that plays it again.
#[test]
fn a_device_that_was_had_under_another_lease_is_looked_at_whatever_comes_between_the_two() {
    run(129, Weather::Rough);
}

/// What comes once under an identifier that the device knows from a gateway that has died is not taken by it. Found by the seed that plays it again.
#[test]
fn what_is_to_come_once_comes_though_identifiers_of_a_dead_gateway_are_still_open() {
    run(123, Weather::Rough);
}

/// A world in which the first device has a session at the first gateway; its name, and the gateway.
fn with_a_session(fault: Fault) -> (World, String, Arc<Gateway>) {
    let mut world = World::new(0, fault, Weather::Fair);
    while !world.gateway(0).unwrap().was_connected() {
        world.step();
    }
    world.connect_as(0, 0, false, None);
    world.pass(Duration::from_secs(3));
    assert!(world.devices[0].has_subscribed, "{:?}", world.log);
    let (device, gateway) = (world.devices[0].name.clone(), world.gateway(0).unwrap());
    (world, device, gateway)
}

/// It waits, with Clean Start, for whoever has to do with the session; by then its device has gone.
#[test]
fn a_connect_whose_device_has_gone_while_it_waited_changes_nothing() {
    let (mut world, device, gateway) = with_a_session(Fault::None);
    let before = world.nats.state().rows[&device].clone();
    let held = gateway.sessions.try_hold(&device).unwrap();
    world.connect_as(0, 0, true, None);
    world.pass(Duration::from_millis(500));
    world.disconnect(0, End::Lost, true);
    world.pass(Duration::from_secs(3));
    drop(held);
    world.pass(Duration::from_secs(3));
    assert_eq!(world.nats.state().rows[&device], before);
    assert!(gateway.shard().has_session(&device));
}

/// NATS is found again in the instant in which a device is let in unasked, and what looks at all sessions has passed before its own is stored; what
/// it subscribes to is nothing new. By and by the row says where it is.
#[test]
fn whoever_is_let_in_unasked_as_nats_comes_has_its_row() {
    let (mut world, device, gateway) = with_a_session(Fault::WalkIsEarly);
    world.disconnect(0, End::Lost, true);
    world.pass(Duration::from_secs(3));
    world.nats.state().rows.remove(&device);
    world.nats.set_cut(0, true);
    while gateway.is_connected() {
        world.step();
    }
    while world.devices[0].place.is_none() {
        world.connect_as(0, 0, false, None);
    }
    while gateway.sessions.counters.counts().unasked == 0 {
        world.step();
    }
    assert!(!world.nats.state().rows.contains_key(&device));
    world.nats.set_cut(0, false);
    world.pass(Duration::from_secs(5));
    let rows = &world.nats.state().rows;
    assert_eq!(rows.get(&device).map(|(_, row)| &*row.node), Some(&*name(0)), "{:?}", world.log);
}

/// A world in which everything holds.
fn run(seed: u64, weather: Weather) -> Outcome {
    let outcome = World::new(seed, Fault::None, weather).run();
    assert!(outcome.broken.is_empty(), "{weather:?}, seed {seed}: {:#?}\n{}", outcome.broken, outcome.log.join("\n"));
    outcome
}
