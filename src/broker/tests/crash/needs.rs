//! What another gateway would have to read for each session, should this one die now: never less than what its device does not have.
//! Rounds as the control plane goes them, with places that are written late, crashes, and faults that are planted.

use super::*;
use crate::broker::needs::Told;
use crate::link::{Round, Standing, Told as Slot};

/// A fault on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Nobody waits for what shards have passed to each other.
    NoFence,
    /// The cursor goes on whatever is outstanding.
    NoNeeds,
    /// A session that loses its place does not hold up the cursor before.
    UnplacedAtOnce,
    /// The place that an earlier process has written is forgotten.
    LeftGoesByCursor,
}

/// What the control plane knows.
struct Course {
    fault: Fault,
    /// The places of the rounds, from 0 on.
    places: Vec<u64>,
    floor: usize,
    /// As it is written.
    cursor: u64,
    /// In the rows of sessions, by client.
    from: HashMap<usize, u64>,
    step: Step,
    told: Vec<Told>,
    /// Written places, and the numbers of their rounds, of which shards are told later.
    late: Vec<(usize, u64)>,
    placed: usize,
    unplaced: usize,
}

enum Step {
    Idle,
    /// Until so many requests are answered.
    Fence,
    /// Until so many shards have told how it stands.
    Asked,
}

impl Course {
    fn new(fault: Fault) -> Self {
        Self {
            fault,
            places: vec![0],
            floor: 0,
            cursor: 0,
            from: HashMap::new(),
            step: Step::Idle,
            told: Vec::new(),
            late: Vec::new(),
            placed: 0,
            unplaced: 0,
        }
    }

    /// The process has ended: its next one goes on from what is written.
    fn crash(&mut self) {
        (self.places, self.floor, self.step) = (vec![self.cursor], 0, Step::Idle);
        self.told.clear();
        self.late.clear();
    }

    /// The next process has joined: rows of what an earlier one has left are looked at, and keep their places.
    fn rejoin(&mut self, world: &mut World) {
        let mut placed: Vec<_> = self.from.keys().copied().collect();
        placed.sort_unstable();
        for client in placed {
            let (worker, session) = world.kept(client);
            match world.shards[worker].standing(session) {
                Standing::Even => drop(self.from.remove(&client)),
                // Or it is found to lag before that.
                Standing::Behind if world.random.bool() => world.shards[worker].note_placed(session, 0),
                Standing::Behind | Standing::Placed => {}
            }
        }
    }

    fn advance(&mut self, world: &mut World) {
        match self.step {
            Step::Idle => {
                self.places.push(world.places);
                world.requests.clear();
                for (request, shard) in (1..).zip(&mut world.shards) {
                    let ticket = shard.request(request);
                    shard.publish(
                        Publication::plain("$behind", Bytes::new(), QoS::AtMostOnce),
                        ticket,
                        &mut world.counters,
                    );
                }
                self.step = Step::Fence;
            }
            Step::Fence if world.requests.len() == world.shards.len() || self.fault == Fault::NoFence => {
                let number = self.places.len() as u64 - 1;
                for shard in &mut world.shards {
                    let told = Slot::default();
                    let round = Round { request: 9, number, floor: self.told_floor(), is_last: false, told };
                    assert!(shard.begin_round(round).is_none());
                }
                self.step = Step::Asked;
            }
            Step::Fence => {}
            Step::Asked => {
                self.told.extend(world.shards.iter_mut().filter_map(Broker::take_round).map(|(_, told)| told));
                if self.told.len() == world.shards.len() {
                    self.end_round(world);
                }
            }
        }
    }

    fn told_floor(&self) -> u64 {
        if self.fault == Fault::UnplacedAtOnce { 0 } else { self.floor as u64 }
    }

    fn end_round(&mut self, world: &mut World) {
        self.step = Step::Idle;
        let oldest = self.told.iter().map(|told| told.oldest).min().unwrap() as usize;
        self.floor = self.floor.max(oldest.min(self.places.len() - 1));
        if self.fault == Fault::NoNeeds {
            self.floor = self.places.len() - 1;
        }
        self.cursor = self.places[self.floor];
        let told = std::mem::take(&mut self.told);
        for (worker, Told { mut slow, mut near, .. }) in told.into_iter().enumerate() {
            // A seed plays the same again.
            slow.sort_unstable();
            near.sort_unstable();
            for (session, since) in slow {
                // Some are not written: nobody answers.
                if let Some(client) = world.client_of(worker, session).filter(|_| world.random.bool()) {
                    let at = self.places[since as usize];
                    let known = self.from.get(&client).copied();
                    // What an earlier process has left may have had a place of its own, which the cursor did not wait for.
                    let is_left = since == 0 && self.fault != Fault::LeftGoesByCursor;
                    self.from.insert(
                        client,
                        if is_left { known.unwrap_or(at) } else { known.map_or(at, |known| known.max(at)) },
                    );
                    self.late.push((client, since));
                    self.placed += 1;
                }
            }
            for session in near {
                let floor = self.told_floor();
                if let Some(client) = world.client_of(worker, session)
                    && world.shards[worker].unplace(session, floor)
                {
                    self.from.remove(&client);
                    self.unplaced += 1;
                }
            }
        }
        // No session's row is written twice at a time.
        for (client, since) in std::mem::take(&mut self.late) {
            let (worker, session) = world.kept(client);
            world.shards[worker].note_placed(session, since);
        }
    }

    /// Whatever a device does not have comes from where it would be read.
    fn check(&self, world: &World) {
        for (number, client) in world.clients.iter().enumerate() {
            let from = *self.from.get(&number).unwrap_or(&self.cursor);
            for (message, published) in &world.published {
                let Some(place) = world.stream.get(message) else { continue };
                let needs = published.owed.contains(&number) && !client.got.contains(message);
                let seed = world.seed;
                assert!(!needs || *place > from, "seed {seed}: {} needs {place}, and is read from {from}", client.name);
            }
        }
    }
}

impl World {
    /// What the control plane answers.
    pub(super) fn answer_fleet(&mut self, worker: usize) {
        let shard = &mut self.shards[worker];
        if let Some(crate::link::WorkerEvent::Interest { version, .. }) = shard.take_interest() {
            shard.handle_interest_held(version);
        }
        for (session, waits) in shard.take_changed() {
            let id = shard.id(session);
            shard.handle_row_written(id, waits, true);
        }
    }

    fn go_on(&mut self, course: &mut Course) {
        course.advance(self);
        (0..self.shards.len()).for_each(|worker| self.turn(worker));
        (0..self.shards.len()).for_each(|from| while (0..self.shards.len()).any(|to| self.arrive(from, to)) {});
        self.commit();
        course.check(self);
    }

    fn kept(&self, number: usize) -> (usize, SessionSlot) {
        let client = &self.clients[number];
        let worker = self.home.of(&client.name).index();
        let connection = client.connection.map(|(_, slot)| slot);
        (worker, self.shards[worker].kept_session(connection, &client.name).expect("it has one"))
    }

    fn client_of(&self, worker: usize, session: SessionSlot) -> Option<usize> {
        (0..CLIENTS).find(|&number| self.clients[number].was_greeted && self.kept(number) == (worker, session))
    }
}

/// How many places were given, and how many taken away.
fn play(worlds: std::ops::Range<u64>, fault: Fault) -> (usize, usize) {
    let (mut given, mut taken) = (0, 0);
    for seed in worlds {
        let mut world = World::new(seed, Planted::Nothing);
        world.is_of_fleet = true;
        world.crash();
        let mut course = Course::new(fault);
        for _ in 0..2_000 {
            let crashes = world.crashes;
            let may_crash = world.random.u8(..20) == 0;
            world.step(may_crash);
            if world.crashes != crashes {
                course.crash();
                course.rejoin(&mut world);
                // Of what nobody was told it may be in the stream and nowhere else; it comes again.
                let World { stream, clients, .. } = &mut world;
                stream.retain(|message, _| clients.iter().any(|client| client.acknowledged.contains(message)));
            } else if world.random.u8(..3) == 0 {
                course.advance(&mut world);
            }
            course.check(&world);
        }
        // The round that has begun comes to its end, and when all is quiet as many as it takes.
        while !matches!(course.step, Step::Idle) {
            world.go_on(&mut course);
        }
        world.end();
        for _ in 0..60 {
            world.go_on(&mut course);
        }
        assert_eq!(course.cursor, world.places, "seed {seed}: nothing is outstanding, and it is held up");
        given += course.placed;
        taken += course.unplaced;
    }
    (given, taken)
}

#[test]
fn what_a_device_does_not_have_is_always_behind_where_its_session_would_be_read_from() {
    let (given, taken) = play(0..12, Fault::None);
    assert!(given > 20 && taken > 10, "too little happened: {given} places given, {taken} taken away");
}

#[test]
fn a_cursor_that_goes_too_far_is_found() {
    for fault in [Fault::NoFence, Fault::NoNeeds, Fault::UnplacedAtOnce, Fault::LeftGoesByCursor] {
        let found = std::panic::catch_unwind(|| play(0..20, fault)).expect_err("it is not found");
        let text = found.downcast_ref::<String>().cloned().unwrap_or_default();
        assert!(text.contains("is read from"), "{fault:?}: {text}");
    }
}
