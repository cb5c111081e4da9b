//! Three gateways, a few devices that come, go and move, and a model of NATS between them: questions that arrive late, answers that
//! are lost or doubled, partitions, leases that end, gateways that stand still. What must hold whenever all has calmed down: each
//! device is connected in one place, and its row says where; nobody is listed who is nowhere.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

const NODES: [&str; 3] = ["a", "b", "c"];
const DEVICES: [&str; 4] = ["d0", "d1", "d2", "d3"];
const LEASE: Duration = Duration::from_secs(9);
/// How long a gateway that does not answer is waited for.
const ASK_MAX: Duration = Duration::from_secs(2);
/// Connections that begin within this of each other may be mistaken for one another.
const CLOSE: Duration = Duration::from_secs(10);
/// What one gateway has under way at a time.
const UNDER_WAY_MAX: usize = 3;

/// A question on its way to the server, or its answer on the way back.
struct Flight {
    node: usize,
    /// Which of the gateway's connections to NATS.
    session: u64,
    number: u64,
    device: Arc<str>,
    ask: Ask,
    /// When it was asked.
    asked: Instant,
    answer: Option<Answer>,
    /// To [`Ask::Owner`]: for how long that gateway had had the device when it answered.
    age: Option<Duration>,
}

/// What one gateway says to another.
#[derive(Clone)]
struct Notice {
    to: usize,
    device: Box<str>,
    before: Owner,
    revision: u64,
}

struct Node {
    presence: Presence,
    lease: String,
    /// Up to when it believes in it.
    believes_until: Instant,
    /// `None`: NATS is away.
    session: Option<u64>,
    is_frozen: bool,
    /// Connections that are really there.
    live: BTreeMap<Box<str>, u64>,
    /// Ends that were asked for and have not happened.
    ends: Vec<(Box<str>, u64)>,
}

struct World {
    random: fastrand::Rng,
    now: Instant,
    nodes: Vec<Node>,
    flights: Vec<Flight>,
    notices: Vec<Notice>,
    rows: BTreeMap<Box<str>, (u64, Row)>,
    leases: BTreeMap<usize, (String, Instant)>,
    sequence: u64,
    generation: u64,
    sessions: u64,
    /// Devices that are somewhere, as they see it.
    out: BTreeSet<&'static str>,
    /// The connection that began last of each that has not left it: which, when, and when the one before it began.
    latest: BTreeMap<Box<str>, (u64, Instant, Option<Instant>)>,
    /// What happened, for whoever reads why it failed.
    log: Vec<String>,
}

impl World {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let node = |name: &&str| Node {
            presence: Presence::new(name, 1),
            lease: String::new(),
            believes_until: now,
            session: None,
            is_frozen: false,
            live: BTreeMap::new(),
            ends: Vec::new(),
        };
        Self {
            random: fastrand::Rng::with_seed(seed),
            now,
            nodes: NODES.iter().map(node).collect(),
            flights: Vec::new(),
            notices: Vec::new(),
            rows: BTreeMap::new(),
            leases: BTreeMap::new(),
            sequence: 0,
            generation: 0,
            sessions: 0,
            out: BTreeSet::new(),
            latest: BTreeMap::new(),
            log: Vec::new(),
        }
    }

    // --- The server ---------------------------------------------------------------------------------------------------

    fn is_live(&self, owner: &Owner) -> bool {
        let node = NODES.iter().position(|name| **name == *owner.node).unwrap();
        self.leases.get(&node).is_some_and(|(id, until)| **id == *owner.lease && self.now < *until)
    }

    /// The server does what was asked, whenever that arrives.
    fn execute(&mut self, flight: usize) {
        let Flight { node, device, ask, .. } = &self.flights[flight];
        let (node, device, there) = (*node, Box::from(&**device), self.rows.get(&**device).cloned());
        let answer = match ask.clone() {
            Ask::Read => match there {
                None => Answer::Absent,
                Some((revision, row)) => {
                    let is_live = self.is_live(&row.owner());
                    Answer::Found(revision, row, is_live)
                }
            },
            Ask::Write(expected, row) => {
                if there.map_or(0, |(revision, _)| revision) == expected {
                    self.sequence += 1;
                    self.rows.insert(device, (self.sequence, row));
                    Answer::Written(Written::At(self.sequence))
                } else {
                    Answer::Written(Written::Conflict)
                }
            }
            Ask::Remove(revision) => {
                if let Some((at, row)) = there
                    && at == revision
                {
                    let is_whose = &*row.node == NODES[node] || !self.is_live(&row.owner());
                    assert!(is_whose, "a row is removed by whom it belongs to, or it is nobody's");
                    self.rows.remove(&device);
                }
                Answer::Removed
            }
            Ask::Owner(owner) => match self.ask_owner(&owner, &device, flight) {
                Some(answer) => answer,
                None => return,
            },
        };
        let Flight { device, ask, .. } = &self.flights[flight];
        self.log.push(format!("{device}: the server takes from {} {ask:?}: {answer:?}", NODES[node]));
        self.flights[flight].answer = Some(answer);
    }

    /// `None`: it is still waited for.
    fn ask_owner(&mut self, owner: &str, device: &str, flight: usize) -> Option<Answer> {
        let owner = NODES.iter().position(|name| **name == *owner).unwrap();
        let known = &self.nodes[owner];
        if known.is_frozen || known.session.is_none() {
            let is_over = self.now.saturating_duration_since(self.flights[flight].asked) >= ASK_MAX;
            return is_over.then_some(Answer::Owner(Claim::Silent));
        }
        let age = known.presence.age(device, self.now);
        self.flights[flight].age = age;
        // The span is known when it is heard.
        Some(Answer::Owner(age.map_or(Claim::Gone, |_| Claim::Silent)))
    }

    // --- A gateway ----------------------------------------------------------------------------------------------------

    fn lose_nats(&mut self, node: usize) {
        if self.nodes[node].session.take().is_some() {
            self.nodes[node].presence.end();
        }
    }

    /// Connects, and comes to have a lease.
    fn find_nats(&mut self, node: usize) {
        if self.nodes[node].session.is_none() && !self.nodes[node].is_frozen {
            self.sessions += 1;
            self.nodes[node].session = Some(self.sessions);
            self.have_lease(node);
        }
    }

    /// As `Run::have_lease`: one that is gone becomes another one, and what is under way has no answer.
    fn have_lease(&mut self, node: usize) {
        let until = self.now + LEASE;
        let there = self.leases.get(&node).filter(|(_, until)| self.now < *until).map(|(id, _)| id.clone());
        let known = &mut self.nodes[node];
        let is_new = there.as_ref() != Some(&known.lease) || self.now >= known.believes_until;
        known.presence.end();
        if is_new {
            self.sequence += 1;
            known.lease = format!("{}-{}", NODES[node], self.sequence);
            // Answers to what was asked before are of another connection.
            self.sessions += 1;
            known.session = Some(self.sessions);
        }
        known.believes_until = until;
        self.leases.insert(node, (known.lease.clone(), until));
        let lease = known.lease.clone();
        known.presence.begin(&lease, is_new);
        self.log.push(format!("all: {} begins with {lease}, new {is_new}", NODES[node]));
    }

    /// Writes the lease again while it holds.
    fn renew(&mut self, node: usize) {
        let known = &mut self.nodes[node];
        if known.session.is_none() || known.is_frozen {
            return;
        }
        let holds = self.leases.get(&node).is_some_and(|(id, until)| *id == known.lease && self.now < *until);
        if holds && self.now < known.believes_until {
            known.believes_until = self.now + LEASE;
            self.leases.insert(node, (known.lease.clone(), self.now + LEASE));
        } else {
            self.have_lease(node);
        }
    }

    fn work(&mut self, node: usize) {
        let known = &mut self.nodes[node];
        if known.is_frozen {
            return;
        }
        if self.now >= known.believes_until && known.session.is_some() {
            return self.renew(node);
        }
        for effect in known.presence.take_effects() {
            match effect {
                Effect::End { device, generation, .. } => known.ends.push((device, generation)),
                Effect::Tell { device, before, revision } => {
                    let to = NODES.iter().position(|name| **name == *before.node).unwrap();
                    assert_ne!(to, node);
                    self.notices.push(Notice { to, device, before, revision });
                }
            }
        }
        let Some(session) = known.session else { return };
        let under_way = self.flights.iter().filter(|flight| flight.session == session).count();
        if under_way < UNDER_WAY_MAX
            && let Some((number, device, ask)) = known.presence.next(NOW_MS)
        {
            let asked = self.now;
            self.flights.push(Flight { node, session, number, device, ask, asked, answer: None, age: None });
        }
        known.presence.check_invariants();
    }

    fn deliver(&mut self, flight: usize) {
        let is_doubled = self.random.u8(..) < 20;
        let Flight { node, session, number, answer, asked, age, .. } = &self.flights[flight];
        let (node, session, number, mut answer) = (*node, *session, *number, answer.clone().unwrap());
        if let Some(age) = *age {
            // As `run::claim`.
            let ago = |end: Instant| end.checked_sub(age).unwrap();
            answer = Answer::Owner(Claim::Began(ago(*asked), ago(self.now)));
        }
        if self.random.u8(..100) < 3 {
            // It is given up; whatever was asked may have been done.
            answer = Answer::Lost;
        }
        if self.nodes[node].is_frozen {
            return;
        }
        if self.nodes[node].session == Some(session) {
            self.log.push(format!("{}: {} hears {answer:?}", self.flights[flight].device, NODES[node]));
            self.nodes[node].presence.handle(number, answer.clone());
            if is_doubled {
                self.nodes[node].presence.handle(number, answer);
            }
            self.nodes[node].presence.check_invariants();
        }
        self.flights.swap_remove(flight);
    }

    fn tell(&mut self, notice: usize) {
        let Notice { to, device, before, revision } = self.notices[notice].clone();
        if !self.is_live(&before) {
            // It must look at all that it had before it goes on.
            self.notices.swap_remove(notice);
        } else if self.nodes[to].session.is_some() && !self.nodes[to].is_frozen {
            let told = self.nodes[to].presence.handle_taken(&device, &before.lease, before.generation, revision);
            self.log.push(format!("{device}: {} hears that {before:?} is over by {revision}: {told:?}", NODES[to]));
            if self.random.u8(..) > 50 {
                self.notices.swap_remove(notice);
            }
        }
    }

    fn end_one(&mut self, node: usize) {
        if self.nodes[node].is_frozen {
            return;
        }
        let Some((device, generation)) = self.nodes[node].ends.pop() else { return };
        if self.nodes[node].live.get(&device) == Some(&generation) {
            if let Some((latest, at, before)) = self.latest.get(&device)
                && *latest == generation
            {
                // Questions take seconds here: what lies closer together may be told apart by the middle.
                let is_close = before.is_some_and(|before| at.saturating_duration_since(before) < CLOSE);
                assert!(is_close, "{device}: the later connection is ended, {generation} at {}", NODES[node]);
            }
            self.leave(node, &device);
        }
    }

    // --- Devices ------------------------------------------------------------------------------------------------------

    fn come(&mut self, node: usize, device: &'static str) {
        if self.nodes[node].is_frozen {
            return;
        }
        self.generation += 1;
        self.now += Duration::from_millis(1);
        self.out.insert(device);
        let before = self.latest.get(device).map(|(_, at, _)| *at);
        self.latest.insert(device.into(), (self.generation, self.now, before));
        let (generation, now) = (self.generation, self.now);
        let known = &mut self.nodes[node];
        if let Some(before) = known.live.insert(device.into(), generation) {
            known.presence.disconnected(device, before);
        }
        self.log.push(format!("{device}: comes to {} as {generation}", NODES[node]));
        known.presence.connected(device, generation, "192.0.2.1".parse().ok(), now);
    }

    fn leave(&mut self, node: usize, device: &str) {
        if !self.nodes[node].is_frozen
            && let Some(generation) = self.nodes[node].live.remove(device)
        {
            if self.latest.get(device).is_some_and(|(latest, ..)| *latest == generation) {
                self.latest.remove(device);
            }
            self.nodes[node].presence.disconnected(device, generation);
            self.log.push(format!("{device}: leaves {} as {generation}", NODES[node]));
        }
    }

    // --- Chance -------------------------------------------------------------------------------------------------------

    fn step(&mut self) {
        let node = self.random.usize(..NODES.len());
        let device = DEVICES[self.random.usize(..DEVICES.len())];
        match self.random.u8(..100) {
            0..3 => self.come(node, device),
            3 => self.leave(node, device),
            4 => {
                self.out.remove(device);
                (0..NODES.len()).for_each(|node| self.leave(node, device));
            }
            5 if self.random.u8(..) < 100 => self.lose_nats(node),
            6 => self.nodes[node].is_frozen = self.random.u8(..) < 60,
            7..10 => self.find_nats(node),
            10..14 => self.now += Duration::from_millis(self.random.u64(..2_000)),
            14..20 => self.renew(node),
            20..40 if !self.flights.is_empty() => {
                let flight = self.random.usize(..self.flights.len());
                if self.flights[flight].answer.is_none() {
                    self.execute(flight);
                }
            }
            40..59 if !self.flights.is_empty() => {
                let flight = self.random.usize(..self.flights.len());
                if self.random.u8(..100) < 2 {
                    // It is waited for no longer; it may still arrive at the server.
                    let (node, session) = (self.flights[flight].node, self.flights[flight].session);
                    if self.nodes[node].session == Some(session) {
                        self.lose_nats(node);
                    }
                } else if self.flights[flight].answer.is_some() {
                    self.deliver(flight);
                }
            }
            59 => {
                // As the sweep does.
                let node = self.random.usize(..NODES.len());
                if let Some((revision, row)) = self.rows.get(device).cloned()
                    && !self.is_live(&row.owner())
                    && !self.nodes[node].is_frozen
                {
                    self.nodes[node].presence.found_dead(device, revision, row);
                }
            }
            60..68 if !self.notices.is_empty() => {
                let notice = self.random.usize(..self.notices.len());
                self.tell(notice);
            }
            68..76 => self.end_one(node),
            _ => self.work(node),
        }
    }

    /// Everything works again, until nothing is left to be done.
    fn calm_down(&mut self) {
        self.nodes.iter_mut().for_each(|node| node.is_frozen = false);
        for _ in 0..10_000 {
            for node in 0..NODES.len() {
                self.find_nats(node);
                self.renew(node);
                self.work(node);
                while !self.nodes[node].ends.is_empty() {
                    self.end_one(node);
                }
            }
            while let Some(flight) = self.flights.len().checked_sub(1) {
                if self.flights[flight].answer.is_none() {
                    self.execute(flight);
                }
                if self.flights[flight].answer.is_none() {
                    // Its gateway finds NATS in the next round.
                    self.now += ASK_MAX;
                    continue;
                }
                self.deliver(flight);
            }
            for notice in (0..self.notices.len()).rev() {
                self.tell(notice);
            }
            let is_calm =
                |node: &Node| node.presence.waiting() == 0 && node.ends.is_empty() && node.presence.effects.is_empty();
            if self.nodes.iter().all(is_calm) && self.notices.is_empty() {
                return;
            }
        }
        panic!("it does not come to an end");
    }

    fn place(&self, device: &str) -> Option<usize> {
        let mut places = (0..NODES.len()).filter(|node| self.nodes[*node].live.contains_key(device));
        let place = places.next();
        assert_eq!(places.next(), None, "{device} is in two places");
        place
    }

    fn check(&mut self) {
        self.calm_down();
        for device in DEVICES {
            if !self.out.contains(device) {
                (0..NODES.len()).for_each(|node| self.leave(node, device));
            }
            self.place(device);
        }
        // A write that was given up may have come to the server at last, for a connection that is gone: whoever looks for the
        // device finds nobody there, and that row goes. Who was told to end for its sake comes again.
        for device in DEVICES {
            if let Some((_, row)) = self.rows.get(device) {
                let node = NODES.iter().position(|name| **name == *row.node).unwrap();
                if !self.nodes[node].live.contains_key(device) {
                    self.nodes[node].presence.missed(device);
                }
            }
        }
        self.calm_down();
        for device in DEVICES {
            if self.place(device).is_none() && self.out.contains(device) {
                let node = self.random.usize(..NODES.len());
                self.come(node, device);
            }
        }
        self.calm_down();
        for device in DEVICES {
            let (place, row) = (self.place(device), self.rows.get(device));
            assert_eq!(place.is_some(), self.out.contains(device), "{device}");
            let said = row.map(|(_, row)| (&*row.node, &*row.lease, row.generation));
            let is = place.map(|node| (NODES[node], &*self.nodes[node].lease, self.nodes[node].live[device]));
            assert_eq!(said, is, "{device}");
        }
        assert_eq!(self.nodes.iter().map(|node| node.presence.counts().held).sum::<u64>(), self.out.len() as u64);
    }
}

#[test]
fn whatever_is_late_lost_or_doubled_each_device_ends_up_in_one_place() {
    let mut taken = 0;
    for seed in 0..400 {
        let mut world = World::new(seed);
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for _ in 0..6 {
                for _ in 0..600 {
                    world.step();
                }
                world.check();
            }
        }));
        if failed.is_err() {
            let history: Vec<_> = world.log.iter().rev().take(200).rev().map(String::as_str).collect();
            panic!("seed {seed}:\n{}", history.join("\n"));
        }
        taken += world.nodes.iter().map(|node| node.presence.counts().taken).sum::<u64>();
    }
    // Not for want of trying.
    assert!(taken > 500, "{taken}");
}
