//! How a gateway comes to be one of those that serve a group of shared subscribers, and ceases to be. Pure: what is asked, and what was
//! answered.
//!
//! ```text
//!   join    read the row ─ none ─▶ room for one more? ─▶ write a row with a name for its consumer and this gateway ─▶ make it ─▶ read again
//!                │                                                                                                     ▲
//!                └─ there ─▶ is its consumer? ─ no ─────────────────────────────────────────────────────▶ make it ────┘
//!                                 └─ yes ─▶ the row is written with this gateway in it: held
//!
//!   leave   read the row ─ others are in it ─▶ written without this one
//!                └─ nobody else ─▶ the row is removed, in the state that was read ─▶ then its consumer is dropped
//! ```
//!
//! The row is the truth: which consumer is the group's. It changes by compare-and-set alone, so there is one, and one that a gateway has
//! found in a row that it is written into stays until the gateway is out of it. Its name stays as long as the row: who finds that it is not
//! there makes it by that name, which is the same whoever does it and however often. So no consumer is older than its row: one that was made
//! before would begin in the life of the row before, and give a second time what that one has given.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

/// Groups that a fleet serves: each costs NATS a consumer.
pub const GROUPS_MAX: u64 = 256;

/// What the fleet knows of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRow {
    /// Its whole name: `$share/NAME/FILTER`.
    #[serde(default)]
    pub group: String,
    /// By which consumer it is served.
    #[serde(default)]
    pub consumer: String,
    /// The gateways at which it has members.
    #[serde(default)]
    pub nodes: BTreeSet<String>,
}

/// What is asked of NATS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    Read,
    /// How many rows there are.
    Count,
    /// Whether there is this consumer.
    Check(String),
    /// Make one, under this name; it begins at the stream's end. One that is there goes on where it is.
    Make(String),
    /// Write the row where it is at this revision; 0: where there is none.
    Write(u64, GroupRow),
    /// Remove the row of this revision, and no other.
    Remove(u64),
    /// Drop a consumer.
    Drop(String),
    Over(End),
}

/// What was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    Row(Option<(u64, GroupRow)>),
    Count(u64),
    /// Whether it is there, was written or removed; for what is made or dropped: that it was.
    Done(bool),
}

/// How it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// This gateway is in the row, with this consumer.
    Held(String),
    /// There are as many groups as may be, or another group has its key.
    Full,
    /// It is not in the row.
    Left,
}

/// One join or leave. See the head of this file.
#[derive(Debug)]
pub struct Membership {
    node: String,
    group: String,
    /// How the next consumers that it names are called; each another one.
    consumer: String,
    named: u32,
    /// What it has made, and may be nobody's by now.
    made: Option<String>,
    is_leaving: bool,
    found: Option<(u64, GroupRow)>,
    asked: Ask,
}

impl Membership {
    /// A join. `consumer` begins the names of consumers in rows that it begins, and nobody else's.
    pub fn join(node: &str, group: &str, consumer: String) -> Self {
        Self {
            node: node.to_owned(),
            group: group.to_owned(),
            consumer,
            named: 0,
            made: None,
            is_leaving: false,
            found: None,
            asked: Ask::Read,
        }
    }

    /// A leave.
    pub fn leave(node: &str, group: &str) -> Self {
        Self { is_leaving: true, ..Self::join(node, group, String::new()) }
    }

    /// What is asked first, and whenever an answer was lost.
    pub fn first() -> Ask {
        Ask::Read
    }

    /// The answer to what was asked; what is asked next.
    pub fn handle(&mut self, told: Told) -> Ask {
        let asked = std::mem::replace(&mut self.asked, Ask::Read);
        let next = if self.is_leaving { self.handle_leaving(asked, told) } else { self.handle_joining(asked, told) };
        self.asked = next.clone();
        next
    }

    fn handle_joining(&mut self, asked: Ask, told: Told) -> Ask {
        match (asked, told) {
            (Ask::Read, Told::Row(found)) => {
                self.found = found;
                self.handle_row()
            }
            (Ask::Count, Told::Count(count)) if count >= GROUPS_MAX => Ask::Over(End::Full),
            (Ask::Check(consumer), Told::Done(false)) => Ask::Make(consumer),
            (Ask::Count | Ask::Check(_), _) => self.enter(),
            (Ask::Make(consumer), _) => {
                self.made = Some(consumer);
                Ask::Read
            }
            (Ask::Write(_, row), Told::Done(true)) if self.found_consumer() == row.consumer => {
                Ask::Over(End::Held(row.consumer))
            }
            // What it had made for a row that is gone is dropped first.
            (Ask::Write(..), Told::Done(true)) if self.made.is_some() => Ask::Read,
            (Ask::Write(_, row), Told::Done(true)) => Ask::Make(row.consumer),
            _ => Ask::Read,
        }
    }

    fn handle_row(&mut self) -> Ask {
        let named = self.found_consumer().to_owned();
        // Another row is there: the one that named it is gone, and its name is in no row ever again. That there is none is no proof: whoever
        // says so may not lead any more. A row that is written where there is none tells.
        if let Some(made) = self.made.take_if(|made| *made != named && !named.is_empty()) {
            return Ask::Drop(made);
        }
        match &self.found {
            Some((_, row)) if row.group != self.group && !row.group.is_empty() => Ask::Over(End::Full),
            None => Ask::Count,
            Some(_) if named.is_empty() || self.made.is_some() => self.enter(),
            Some(_) => Ask::Check(named),
        }
    }

    /// The consumer in the row as it was found; none: an empty name.
    fn found_consumer(&self) -> &str {
        self.found.as_ref().map_or("", |(_, row)| &row.consumer)
    }

    /// This gateway in the row, whose consumer is there, or in one that it begins. One that is as it is to be is written again, so that it stays.
    fn enter(&mut self) -> Ask {
        let (revision, mut row) = self.found.clone().unwrap_or_default();
        if row.consumer.is_empty() {
            self.named += 1;
            row.consumer = format!("{}-{}", self.consumer, self.named);
        }
        row.group.clone_from(&self.group);
        row.nodes.insert(self.node.clone());
        Ask::Write(revision, row)
    }

    fn handle_leaving(&mut self, asked: Ask, told: Told) -> Ask {
        match (asked, told) {
            (Ask::Read, Told::Row(found)) => {
                self.found = found;
                let Some((revision, row)) = &self.found else { return Ask::Over(End::Left) };
                if row.group != self.group || !row.nodes.contains(&self.node) {
                    return Ask::Over(End::Left);
                }
                let mut left = row.clone();
                left.nodes.remove(&self.node);
                if left.nodes.is_empty() { Ask::Remove(*revision) } else { Ask::Write(*revision, left) }
            }
            (Ask::Write(..), Told::Done(true)) | (Ask::Drop(_), _) => Ask::Over(End::Left),
            (Ask::Remove(_), Told::Done(true)) => {
                Ask::Drop(self.found.take().map(|(_, row)| row.consumer).unwrap_or_default())
            }
            _ => Ask::Read,
        }
    }
}

#[cfg(test)]
pub mod model;

#[cfg(test)]
mod tests {
    use super::model::Rows;
    use super::*;

    const GROUP: &str = "$share/g/a";

    type Model = Rows<()>;

    fn answer(model: &mut Model, ask: &Ask) -> Told {
        model.answer(ask, || ())
    }

    /// What one gateway does: a join or a leave under way, and what it came to before.
    struct Gateway {
        going: Option<(Membership, Ask)>,
        held: Option<String>,
        wants: bool,
    }

    /// Whatever gateways do between each other's steps, lose answers, die in the middle or lose the consumer: each that holds the group
    /// holds it by the consumer that is in the row, and when the last has left nothing is there.
    #[test]
    fn all_who_hold_a_group_hold_it_by_one_consumer_that_is_there() {
        for seed in 0..2_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut model, mut serial, mut dead) = (Model::default(), 0, false);
            let mut gateways: Vec<_> = (0..3).map(|_| Gateway { going: None, held: None, wants: false }).collect();
            for step in 0..300 {
                let is_last = step > 200;
                let number = random.usize(..gateways.len());
                let gateway = &mut gateways[number];
                let name = format!("gate-{number}");
                match &mut gateway.going {
                    None if random.u8(..4) == 0 || is_last => {
                        // In the end all leave.
                        gateway.wants = !is_last && random.bool();
                        gateway.held = None;
                        serial += 1;
                        let membership = if gateway.wants {
                            Membership::join(&name, GROUP, format!("c{serial}"))
                        } else {
                            Membership::leave(&name, GROUP)
                        };
                        gateway.going = Some((membership, Membership::first()));
                    }
                    None => {}
                    Some((_, Ask::Over(end))) => {
                        if let End::Held(consumer) = end {
                            gateway.held = Some(consumer.clone());
                        }
                        gateway.going = None;
                    }
                    Some((_, ask)) if random.u8(..40) == 0 && !is_last => {
                        // The answer is lost, or the gateway dies: it was done, perhaps. It begins anew.
                        if random.bool() {
                            answer(&mut model, ask);
                        }
                        gateway.going = None;
                        dead = true;
                    }
                    Some((membership, ask)) => {
                        let told = answer(&mut model, ask);
                        *ask = membership.handle(told);
                    }
                }
                if random.u8(..100) == 0
                    && !is_last
                    && gateways.iter().all(|one| one.held.is_none() && one.going.is_none())
                {
                    // Nobody has asked it for long: the server lets it go.
                    model.consumers.clear();
                    dead = true;
                }
                for (number, gateway) in gateways.iter().enumerate() {
                    let Some(held) = &gateway.held else { continue };
                    let (_, row) =
                        model.row.as_ref().unwrap_or_else(|| panic!("seed {seed}: it holds what is not there"));
                    assert!(row.nodes.contains(&format!("gate-{number}")), "seed {seed}");
                    assert_eq!((held, model.consumers.contains_key(held)), (&row.consumer, true), "seed {seed}");
                }
            }
            assert_eq!(model.row, None, "seed {seed}");
            // What was lost on the way the server lets go when nobody asks it.
            assert!(dead || model.consumers.is_empty(), "seed {seed}: {:?}", model.consumers);
        }
    }

    #[test]
    fn there_are_no_more_groups_than_the_fleet_serves() {
        let mut model = Model { others: GROUPS_MAX, ..Model::default() };
        let mut membership = Membership::join("n", GROUP, "c".to_owned());
        let mut ask = Membership::first();
        while !matches!(ask, Ask::Over(_)) {
            let told = answer(&mut model, &ask);
            ask = membership.handle(told);
        }
        assert_eq!((ask, model.row), (Ask::Over(End::Full), None));
        // One that is served has room for another gateway.
        let row = GroupRow { group: GROUP.into(), consumer: "x".into(), nodes: BTreeSet::from(["m".into()]) };
        let mut model = Model { others: GROUPS_MAX, row: Some((7, row)), ..Model::default() };
        model.consumers.insert("x".into(), ());
        let mut membership = Membership::join("n", GROUP, "c".to_owned());
        let mut ask = Membership::first();
        while !matches!(ask, Ask::Over(_)) {
            let told = answer(&mut model, &ask);
            ask = membership.handle(told);
        }
        assert_eq!(ask, Ask::Over(End::Held("x".into())));
    }
}
