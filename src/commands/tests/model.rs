//! Several gateways over one place, which loses answers, gives them late, and does what it was asked later than it was given up:
//! every step in an order that a seed draws.
//!
//! What must hold: an outcome that is final stays as it is; acknowledged is what a device has acknowledged; what is let go has an
//! outcome; and once answers come again and every device is there, nothing waits any more.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use super::*;

const GATEWAYS: usize = 3;
const DEVICES: usize = 4;
const COMMANDS: usize = 24;
/// Worlds of a run; the variable asks for more.
const WORLDS: u64 = 300;
const WORLDS_VARIABLE: &str = "SIM_RUNS";
/// Steps in which all of it must be over once nothing is lost any more.
const SETTLED_WITHIN: usize = 200_000;

/// What is asked of the place.
#[derive(Clone)]
enum Deed {
    Put(Box<str>, Command),
    Outcome(String, u64, Known),
    Remove(u64),
}

/// What a world may plant, to see it found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Compare-and-set that all win who try at once (nats-server 4319).
    NotExclusive,
    /// What a device has acknowledged is forgotten with its connection.
    AcknowledgesUnheard,
}

struct World {
    random: fastrand::Rng,
    fault: Fault,
    /// Answers are lost, or not any more.
    is_lossy: bool,
    last: u64,
    waiting: BTreeMap<u64, (Box<str>, Command)>,
    outcomes: HashMap<String, (u64, Known)>,
    revision: u64,
    /// Was given up, and is done later.
    late: Vec<Deed>,
    /// At which gateway each device is.
    devices: BTreeMap<Box<str>, Option<usize>>,
    /// What devices have acknowledged, by id of the command: its payload.
    acknowledged: BTreeSet<Bytes>,
    /// By id, the payload of each that was ever put.
    said: HashMap<String, Bytes>,
    broken: Vec<String>,
}

impl World {
    fn apply(&mut self, deed: Deed) -> u64 {
        match deed {
            Deed::Put(device, command) => {
                self.last += 1;
                self.said.insert(id_of(self.last, &command.tag), command.payload.clone());
                self.waiting.insert(self.last, (device, command));
                self.last
            }
            Deed::Outcome(id, revision, known) => {
                let there = self.outcomes.get(&id);
                let is_as_expected = there.map_or(0, |(revision, _)| *revision) == revision;
                if !is_as_expected && self.fault != Fault::NotExclusive {
                    return 0;
                }
                if let Some((_, before)) = there.filter(|(_, before)| before.fate.is_final()) {
                    let (before, after) = (before.fate, known.fate);
                    self.broken.push(format!("{id} was {before:?} and becomes {after:?}"));
                }
                let has_arrived = self.acknowledged.contains(&self.said[&id]);
                if known.fate == Fate::Acknowledged && !has_arrived {
                    self.broken.push(format!("{id} is acknowledged, and by no device"));
                }
                self.revision += 1;
                self.outcomes.insert(id, (self.revision, known));
                self.revision
            }
            Deed::Remove(number) => {
                if let Some((_, command)) = self.waiting.remove(&number) {
                    let id = id_of(number, &command.tag);
                    let is_final = self.outcomes.get(&id).is_some_and(|(_, known)| known.fate.is_final());
                    if !is_final {
                        self.broken.push(format!("{id} is let go without an outcome"));
                    }
                }
                1
            }
        }
    }
}

/// The place, or one gateway.
#[derive(Clone)]
struct Handle {
    world: Arc<Mutex<World>>,
    desk: Arc<Desk>,
    gateway: usize,
}

impl Handle {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// On the way there, or back.
    async fn travel(&self) {
        let steps = self.world().random.usize(0..4);
        for _ in 0..steps {
            let mut is_here = false;
            std::future::poll_fn(
                |_| {
                    if std::mem::replace(&mut is_here, true) { Poll::Ready(()) } else { Poll::Pending }
                },
            )
            .await;
        }
    }

    async fn do_it(&self, deed: Deed) -> Result<u64, String> {
        self.travel().await;
        let done = {
            let mut world = self.world();
            match if world.is_lossy { world.random.u8(0..12) } else { 9 } {
                0 => return Err("it never came there".into()),
                1 => {
                    world.late.push(deed);
                    return Err("it comes there later".into());
                }
                2 => {
                    world.apply(deed);
                    Err("the answer was lost".into())
                }
                3 if !matches!(deed, Deed::Put(..)) => {
                    // It comes twice: over the old connection and the new one.
                    world.late.push(deed.clone());
                    Ok(world.apply(deed))
                }
                _ => Ok(world.apply(deed)),
            }
        };
        self.travel().await;
        done
    }

    async fn see<T>(&self, look: impl FnOnce(&World) -> T) -> Result<T, String> {
        self.travel().await;
        let (seen, is_lost) = {
            let mut world = self.world();
            let is_lost = world.is_lossy && world.random.u8(0..12) == 0;
            (look(&world), is_lost)
        };
        self.travel().await;
        if is_lost { Err("no answer".into()) } else { Ok(seen) }
    }
}

impl Place for Handle {
    async fn put(&self, device: &str, command: &Command) -> Result<u64, NotPut> {
        self.do_it(Deed::Put(device.into(), command.clone())).await.map_err(NotPut::Lost)
    }

    async fn next(&self, device: &str, from: u64) -> Result<Option<(u64, Option<Command>)>, String> {
        self.see(|world| {
            let mut behind = world.waiting.range(from..);
            let (number, (_, command)) = behind.find(|(_, (whose, _))| **whose == *device)?;
            Some((*number, Some(command.clone())))
        })
        .await
    }

    async fn page(&self, from: u64, _over_ms: Option<u64>) -> Result<Vec<Listed>, String> {
        let listed = |(number, (device, command)): (&u64, &(Box<str>, Command))| {
            let brief = Some(command.brief(*number, device));
            Listed { number: *number, device: Some(device.clone()), brief }
        };
        self.see(|world| world.waiting.range(from..).take(2).map(listed).collect()).await
    }

    async fn at(&self, number: u64) -> Result<Option<Brief>, String> {
        self.see(|world| world.waiting.get(&number).map(|(device, command)| command.brief(number, device))).await
    }

    async fn remove(&self, number: u64) -> Result<(), String> {
        self.do_it(Deed::Remove(number)).await.map(drop)
    }

    async fn outcome(&self, id: &str) -> Result<(u64, Option<Known>), String> {
        let found = |(revision, known): &(u64, Known)| (*revision, Some(known.clone()));
        self.see(|world| world.outcomes.get(id).map_or((0, None), found)).await
    }

    async fn write_outcome(&self, id: &str, revision: u64, known: &Known) -> Result<bool, String> {
        self.do_it(Deed::Outcome(id.into(), revision, known.clone())).await.map(|at| at > 0)
    }
}

impl Here for Handle {
    fn node(&self) -> &'static str {
        ["a", "b", "c"][self.gateway]
    }

    fn desk(&self) -> &Desk {
        &self.desk
    }

    async fn has(&self, device: &str) -> bool {
        self.world().devices[device] == Some(self.gateway)
    }

    async fn say(&self, device: &str, downlink: Downlink, _patience: Duration) -> Said {
        self.travel().await;
        let said = {
            let mut world = self.world();
            if world.devices[device] != Some(self.gateway) {
                return Said::Offline;
            }
            match if world.is_lossy { world.random.u8(0..8) } else { 9 } {
                0 => Said::NotNow,
                // It arrives, and the word that it did does not.
                1 => {
                    world.acknowledged.insert(downlink.payload);
                    Said::NotNow
                }
                2 if world.fault == Fault::AcknowledgesUnheard => Said::Acknowledged,
                _ => {
                    world.acknowledged.insert(downlink.payload);
                    Said::Acknowledged
                }
            }
        };
        self.travel().await;
        said
    }
}

/// A gateway and a device.
type AtGateway = (usize, Box<str>);
type Task = Pin<Box<dyn Future<Output = ()>>>;

/// One world from its seed; what was broken in it.
struct Run {
    world: Arc<Mutex<World>>,
    gateways: Vec<Handle>,
    tasks: Vec<Task>,
    /// By gateway and device: it is told just now.
    told: Rc<RefCell<BTreeSet<AtGateway>>>,
    /// Ids that callers were given.
    ids: Rc<RefCell<Vec<String>>>,
}

fn name(number: usize) -> Box<str> {
    format!("device-{number}").into()
}

impl Run {
    fn new(seed: u64, fault: Fault) -> Self {
        let world = Arc::new(Mutex::new(World {
            random: fastrand::Rng::with_seed(seed),
            fault,
            is_lossy: true,
            last: 0,
            waiting: BTreeMap::new(),
            outcomes: HashMap::new(),
            revision: 0,
            late: Vec::new(),
            devices: (0..DEVICES).map(|number| (name(number), None)).collect(),
            acknowledged: BTreeSet::new(),
            said: HashMap::new(),
            broken: Vec::new(),
        }));
        let gateway = |gateway| Handle { world: Arc::clone(&world), desk: Arc::default(), gateway };
        let gateways = (0..GATEWAYS).map(gateway).collect();
        Self { world, gateways, tasks: Vec::new(), told: Rc::default(), ids: Rc::default() }
    }

    fn draw(&self, below: usize) -> usize {
        self.world.lock().unwrap().random.usize(0..below)
    }

    fn put(&mut self, number: usize) {
        let (here, ids) = (self.gateways[self.draw(GATEWAYS)].clone(), self.ids.clone());
        let device = name(self.draw(DEVICES));
        let expiry = Duration::from_secs(if self.draw(8) == 0 { 0 } else { 3_600 });
        self.tasks.push(Box::pin(async move {
            let downlink = Downlink { topic: "t".into(), payload: format!("command {number}").into() };
            if let Ok(id) = put(&here, &here, &device, &downlink, expiry).await {
                ids.borrow_mut().push(id);
            }
        }));
    }

    /// What its scheduler does: one task for a device at a gateway.
    fn tell(&mut self, gateway: usize, device: Box<str>) {
        let place = (gateway, device.clone());
        if !self.told.borrow_mut().insert(place.clone()) {
            return;
        }
        let (here, told) = (self.gateways[gateway].clone(), self.told.clone());
        self.tasks.push(Box::pin(async move {
            // After an error it is tried again, as what did not take it is.
            let _ = deliver(&here, &here, &device).await;
            told.borrow_mut().remove(&place);
        }));
    }

    fn cancel(&mut self) {
        let (here, id) = (self.gateways[self.draw(GATEWAYS)].clone(), self.ids.borrow().last().cloned());
        let Some(id) = id else { return };
        self.tasks.push(Box::pin(async move {
            let _ = look(&here, &here, &id, Some(Fate::Cancelled)).await;
        }));
    }

    fn expire(&mut self) {
        let here = self.gateways[self.draw(GATEWAYS)].clone();
        self.tasks.push(Box::pin(async move {
            let _ = expire(&here, &here).await;
        }));
    }

    /// A device comes, goes or moves; whoever has it now looks what waits.
    fn shift(&mut self) {
        let (device, to) = (name(self.draw(DEVICES)), self.draw(GATEWAYS + 1));
        let at = (to < GATEWAYS).then_some(to);
        self.world.lock().unwrap().devices.insert(device.clone(), at);
        if let Some(gateway) = at {
            self.tell(gateway, device);
        }
    }

    fn step(&mut self) {
        if self.draw(8) == 0 {
            let mut world = self.world.lock().unwrap();
            if !world.late.is_empty() {
                let count = world.late.len();
                let at = world.random.usize(..count);
                let deed = world.late.swap_remove(at);
                world.apply(deed);
            }
        }
        if !self.tasks.is_empty() {
            let at = self.draw(self.tasks.len());
            let context = &mut Context::from_waker(Waker::noop());
            if self.tasks[at].as_mut().poll(context).is_ready() {
                drop(self.tasks.swap_remove(at));
            }
        }
    }

    /// All of its faults, in words.
    fn run(mut self) -> Vec<String> {
        let mut put = 0;
        while put < COMMANDS {
            match self.draw(24) {
                0 => {
                    self.put(put);
                    put += 1;
                }
                1 => self.shift(),
                2 => self.cancel(),
                3 => self.expire(),
                _ => self.step(),
            }
        }
        self.world.lock().unwrap().is_lossy = false;
        for number in 0..DEVICES {
            self.world.lock().unwrap().devices.insert(name(number), Some(number % GATEWAYS));
        }
        let mut steps = 0;
        loop {
            // Whoever has a device comes to know that something waits, by reading on.
            let waiting: BTreeSet<_> =
                self.world.lock().unwrap().waiting.values().map(|(device, _)| device.clone()).collect();
            let is_over = waiting.is_empty() && self.tasks.is_empty() && self.world.lock().unwrap().late.is_empty();
            if is_over || steps > SETTLED_WITHIN {
                break;
            }
            for device in waiting {
                let gateway = self.world.lock().unwrap().devices[&device].unwrap();
                self.tell(gateway, device);
            }
            for _ in 0..50 {
                self.step();
                steps += 1;
            }
        }
        let mut world = self.world.lock().unwrap();
        let mut broken = std::mem::take(&mut world.broken);
        if !world.waiting.is_empty() {
            broken.push(format!("{} wait for ever", world.waiting.len()));
        }
        for id in self.ids.borrow().iter() {
            if !world.outcomes.get(id).is_some_and(|(_, known)| known.fate.is_final()) {
                broken.push(format!("{id} has no outcome"));
            }
        }
        broken
    }
}

fn worlds() -> u64 {
    std::env::var(WORLDS_VARIABLE).map_or(WORLDS, |worlds| worlds.parse().expect("a number of worlds"))
}

#[test]
fn each_command_has_one_outcome_whatever_becomes_of_answers() {
    for seed in 0..worlds() {
        let broken = Run::new(seed, Fault::None).run();
        assert!(broken.is_empty(), "seed {seed}: {broken:#?}");
    }
}

#[test]
fn compare_and_set_that_is_not_exclusive_is_found() {
    let found = (0..worlds()).filter(|&seed| !Run::new(seed, Fault::NotExclusive).run().is_empty()).count();
    assert!(found > 0, "no world has found it");
}

#[test]
fn an_acknowledgement_that_no_device_gave_is_found() {
    let found = (0..worlds()).filter(|&seed| !Run::new(seed, Fault::AcknowledgesUnheard).run().is_empty()).count();
    assert!(found > 0, "no world has found it");
}
