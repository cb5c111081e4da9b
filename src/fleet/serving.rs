//! Which groups of shared subscribers this gateway serves, what of theirs it was given, and what became of that. Pure: what has come and what the
//! time is go in, and what is to be said to NATS, to shards and to members comes out.
//!
//! ```text
//!                 asked for                     lent to a member                  its device has acknowledged it
//!   in the stream ─────────▶ given, unsettled ─────────────────────▶ … progress … ────────────────────▶ acknowledged, known for a while
//!        ▲                        │ nobody took it                                                          │ its acknowledgement was lost:
//!        └── another one's ◀──────┴── at once, or later                                                     └─ it comes again, and is acknowledged again
//! ```
//!
//! What is under way outlives a connection to NATS: it is acknowledged over the next one.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Subject;
use bytes::Bytes;

use super::groups_wanted::{Decided, GroupsWanted};
use super::membership::End;
use super::pulls::{ASKED, Pull, Pulls, ROOM_ASKED_MAX, share};
use crate::config::FLEET_GROUPS_BYTES;
use crate::link::{Giver, WorkerId, group_key, group_wants};
use crate::sink::nats::Publishing;

/// How often NATS is told that what was given is still being dealt with: four times before it gives it to somebody else.
const TOLD_EVERY: Duration = Duration::from_secs(5);
/// A row is written again so often at least, long before it would be let go.
const REFRESHED_EVERY: Duration = Duration::from_hours(1);
/// What failed is tried again after so long,
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// and a group for which there was no room.
const ROOM_AGAIN_AFTER: Duration = Duration::from_mins(1);
/// Rows that name this gateway without a member here are looked for so long after the beginning: by then all members that an earlier
/// process has left are known.
const STRAYS_AFTER: Duration = Duration::from_mins(2);
/// What nobody took twice comes again after so long; the first time it is somebody else's at once.
const GIVEN_BACK_FOR: Duration = Duration::from_millis(500);
/// Messages that were settled, known for a while: an acknowledgement may be lost, and then they come again.
const SETTLED_KNOWN: usize = 8_192;
/// What each question may bring at least, in bytes.
const PULL_BYTES_MIN: usize = 8 << 10;

/// What is to be done, in this order.
#[derive(Debug)]
pub enum Effect {
    /// This gateway is to be in the row of a group.
    Join(Arc<str>),
    /// It is to be in it no more.
    Leave(Arc<str>),
    /// Rows that name this gateway are to be looked for.
    FindStrays,
    /// NATS is to know that a consumer is still wanted.
    Touch(Arc<str>),
    /// Messages are to be asked for, so many bytes at most; what comes of it names the slot and the question.
    Pull { consumer: Arc<str>, slot: u64, pull: Pull, bytes: usize },
    /// NATS is to be told what became of a message.
    Say(Subject, Said),
    /// A shard is to be told who gives to a group.
    Tell(Decided),
    /// A member is to get this: [`Serving::settle`] hears what became of it.
    Give(Box<Given>),
}

/// What is said of a message that was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Its device has acknowledged it, or it is of no use to anybody.
    Taken,
    /// Somebody else is to get it, after so long.
    Back(Option<Duration>),
    /// It is being dealt with.
    Underway,
}

/// A message for one member of a group.
#[derive(Debug)]
pub struct Given {
    pub number: u64,
    pub group: Arc<str>,
    pub worker: WorkerId,
    pub topic: Box<str>,
    pub payload: Bytes,
    pub publishing: Publishing,
}

/// A message as it has come.
#[derive(Debug)]
pub struct Came {
    /// Of which consumer,
    pub consumer: String,
    /// its place in the stream,
    pub seq: u64,
    /// how often it was given so far,
    pub tries: u64,
    /// and where to say what became of it.
    pub reply: Subject,
    /// What it is; `None`: no publication of a gateway.
    pub publication: Option<(Publishing, Box<str>, Bytes)>,
}

/// How the server has ended a question.
#[derive(Clone, Copy, Debug)]
pub struct Ended {
    pub slot: u64,
    pub number: u64,
    /// So many messages of it did not come.
    pub left: u32,
    /// The next one is larger than what was asked for.
    pub is_too_large: bool,
    /// The consumer is not there.
    pub is_gone: bool,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub given: u64,
    pub returned: u64,
    pub given_elsewhere: u64,
}

/// What a join came to.
#[derive(Debug)]
pub struct Joined {
    pub end: End,
    /// When the stream was made,
    pub stream: String,
    /// and where its last message stood then.
    pub last: u64,
}

/// A message of a consumer, by its place in the stream.
type Place = (Arc<str>, u64);

/// A message that was given and is not settled.
struct Unsettled {
    group: Arc<str>,
    /// `None`: it was of a stream that is no more, and there is nobody to acknowledge it to.
    at: Option<Place>,
    reply: Subject,
    /// It has no acknowledgement: NATS was told at once.
    is_quick: bool,
    /// It was given before, and came again.
    is_again: bool,
}

/// One group that is served here, or is to be.
struct Served {
    slot: u64,
    consumer: Option<Arc<str>>,
    /// It has no members here, or no more.
    is_left: bool,
    pulls: Pulls,
    /// When it is looked again whether all is as it is to be; at once, if that is past.
    due: Instant,
    unsettled: u32,
    /// The room of members here for which is asked, as of the latest look; 0: nobody is connected.
    room: u32,
    /// There may be room for more than was asked for.
    is_changed: bool,
    /// Messages without an acknowledgement up to this one were published before somebody was.
    quiet_until: u64,
}

/// See the head of this file.
pub struct Serving {
    served: BTreeMap<Arc<str>, Served>,
    /// Of these something is under way.
    busy: HashSet<Arc<str>>,
    given: HashMap<u64, Unsettled>,
    by_place: HashMap<Place, u64>,
    known: VecDeque<Place>,
    known_places: HashSet<Place>,
    /// When the stream was made to which places belong; empty: nothing was joined yet.
    stream: String,
    number: u64,
    /// Questions that may be asked of all groups.
    questions: usize,
    told_due: Instant,
    strays_due: Option<Instant>,
    random: fastrand::Rng,
    counts: Counts,
}

impl Serving {
    pub fn new(random: fastrand::Rng, now: Instant) -> Self {
        Self {
            served: BTreeMap::new(),
            busy: HashSet::new(),
            given: HashMap::new(),
            by_place: HashMap::new(),
            known: VecDeque::new(),
            known_places: HashSet::new(),
            stream: String::new(),
            number: 0,
            questions: 1,
            told_due: now,
            strays_due: Some(now + STRAYS_AFTER),
            random,
            counts: Counts::default(),
        }
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Groups that are served, those that are to be, and messages that are not settled.
    pub fn standing(&self) -> (u64, u64, u64) {
        let served = self.served.values().filter(|known| known.consumer.is_some()).count();
        let unserved = self.served.values().filter(|known| known.consumer.is_none() && !known.is_left).count();
        (served as u64, unserved as u64, self.given.len() as u64)
    }

    // --- The connection -----------------------------------------------------------------------------------------------

    /// There is a connection, another one than before: nothing that was asked over that is answered.
    pub fn begin(&mut self, now: Instant) {
        self.busy.clear();
        self.told_due = now;
        self.served.values_mut().for_each(|known| known.pulls.clear());
    }

    /// The connection is gone: this gateway gives to its groups what is published at it.
    pub fn end(&mut self, wanted: &mut GroupsWanted, now: Instant, out: &mut Vec<Effect>) {
        self.busy.clear();
        for known in self.served.values_mut() {
            known.pulls.clear();
            known.due = now;
        }
        out.extend(wanted.end().into_iter().map(Effect::Tell));
    }

    // --- Who serves what ----------------------------------------------------------------------------------------------

    /// Joins what has members here, leaves what has none any more.
    pub fn follow(&mut self, wanted: &GroupsWanted, now: Instant, out: &mut Vec<Effect>) {
        let wanted: BTreeMap<Arc<str>, u32> =
            wanted.all().map(|(group, wanted)| (Arc::clone(group), wanted.room)).collect();
        let all: u32 = wanted.values().sum();
        self.questions = all.min(ROOM_ASKED_MAX).div_ceil(ASKED) as usize + wanted.len() * 2;
        for (group, room) in &wanted {
            let known = self.served.entry(Arc::clone(group)).or_insert_with(|| {
                self.number += 1;
                Served::new(self.number, unsettled_of(&self.given, group), now)
            });
            known.is_left = false;
            let is_online = *room > 0;
            if is_online && known.room == 0 {
                // What has no acknowledgement is for whoever was there: from where is asked.
                known.due = now;
                known.quiet_until = u64::MAX;
            }
            (known.room, known.is_changed) = (share(*room, all), true);
            if known.due <= now && self.busy.insert(Arc::clone(group)) {
                if let (Some(consumer), false) = (&known.consumer, is_online) {
                    out.push(Effect::Touch(Arc::clone(consumer)));
                }
                out.push(Effect::Join(Arc::clone(group)));
            }
        }
        for (group, known) in self.served.iter_mut().filter(|(group, _)| !wanted.contains_key(*group)) {
            if self.busy.insert(Arc::clone(group)) {
                // Should the connection go before it has left, it may be out of the row all the same.
                (known.consumer, known.is_left) = (None, true);
                out.push(Effect::Leave(Arc::clone(group)));
            }
        }
    }

    /// A join has come to its end. Whether the group is served.
    pub fn handle_joined(
        &mut self,
        group: &Arc<str>,
        joined: Result<Joined, String>,
        wanted: &mut GroupsWanted,
        now: Instant,
        out: &mut Vec<Effect>,
    ) -> bool {
        self.busy.remove(group);
        if let Ok(joined) = &joined {
            self.begin_stream(&joined.stream);
        }
        let Some(known) = self.served.get_mut(group) else { return false };
        let giver = match joined {
            Ok(Joined { end: End::Held(consumer), last, .. }) => {
                let is_other = known.consumer.as_deref() != Some(&*consumer);
                if is_other {
                    known.pulls.clear();
                }
                if is_other || known.quiet_until == u64::MAX {
                    known.quiet_until = last;
                }
                known.consumer = Some(consumer.into());
                known.due = now + REFRESHED_EVERY.mul_f64(0.5 + self.random.f64() / 2.0);
                Giver::Fleet
            }
            Ok(_) => {
                known.due = now + ROOM_AGAIN_AFTER;
                tracing::warn!(
                    group = &**group,
                    "the fleet serves as many groups of shared subscribers as it may: each gateway gives this one what is published at it"
                );
                Giver::Each
            }
            Err(why) => {
                known.due = now + AGAIN_AFTER;
                tracing::debug!(group = &**group, why, "a group is not served yet");
                return false;
            }
        };
        out.extend(wanted.decide(group, giver).map(Effect::Tell));
        giver == Giver::Fleet
    }

    /// In a stream that was made anew places say nothing of what was given before, though a consumer has the same name.
    fn begin_stream(&mut self, made: &str) {
        if self.stream == made {
            return;
        }
        made.clone_into(&mut self.stream);
        self.known.clear();
        self.known_places.clear();
        self.by_place.clear();
        self.given.values_mut().for_each(|given| given.at = None);
    }

    /// A leave has come to its end.
    pub fn handle_left(&mut self, group: &Arc<str>, left: Result<(), String>, now: Instant) {
        self.busy.remove(group);
        if let Err(why) = left {
            // Its row is found later.
            tracing::debug!(group = &**group, why, "a group is not left yet");
            self.strays_due.get_or_insert(now + STRAYS_AFTER);
        }
        // It may have come again meanwhile: then it is joined anew.
        self.served.remove(group);
    }

    /// These are the groups whose rows name this gateway.
    pub fn handle_strays(&mut self, found: Result<Vec<String>, String>, now: Instant) {
        let Ok(found) = found else {
            self.strays_due = Some(now + STRAYS_AFTER);
            return;
        };
        for group in found {
            // As one that was served: then it is left.
            self.number += 1;
            let unsettled = unsettled_of(&self.given, &group);
            self.served.entry(group.into()).or_insert_with(|| Served::new(self.number, unsettled, now));
        }
    }

    /// What is due by the clock.
    pub fn look(&mut self, wanted: &mut GroupsWanted, now: Instant, out: &mut Vec<Effect>) {
        out.extend(wanted.give_up(now).into_iter().map(Effect::Tell));
        if self.strays_due.is_some_and(|due| due <= now) {
            self.strays_due = None;
            out.push(Effect::FindStrays);
        }
        if self.told_due > now {
            return;
        }
        self.told_due = now + TOLD_EVERY;
        let acknowledged = self.given.values().filter(|given| !given.is_quick && given.at.is_some());
        out.extend(acknowledged.map(|given| Effect::Say(given.reply.clone(), Said::Underway)));
    }

    // --- Messages -----------------------------------------------------------------------------------------------------

    /// Asks for as much as members have room for.
    pub fn ask(&mut self, now: Instant, out: &mut Vec<Effect>) {
        let bytes = (FLEET_GROUPS_BYTES / self.questions.max(1)).max(PULL_BYTES_MIN);
        for known in self.served.values_mut().filter(|known| known.is_changed) {
            known.is_changed = false;
            let Some(consumer) = known.consumer.clone().filter(|_| known.quiet_until != u64::MAX) else { continue };
            let slot = known.slot;
            let pulls = known.pulls.ask(known.room, known.unsettled, now).into_iter();
            out.extend(pulls.map(|pull| Effect::Pull { consumer: Arc::clone(&consumer), slot, pull, bytes }));
        }
    }

    /// A message has come, at this time of day.
    pub fn handle_message(&mut self, came: Came, wanted: &GroupsWanted, now_ms: i64, out: &mut Vec<Effect>) {
        let Came { consumer, seq, tries, reply, publication } = came;
        let found = self.served.iter_mut().find(|(_, known)| known.consumer.as_deref() == Some(&*consumer));
        let Some((group, known)) = found else {
            // Its last member here has just gone.
            return out.push(Effect::Say(reply, Said::Back(None)));
        };
        known.pulls.handle_message();
        known.is_changed = true;
        let (group, at) = (Arc::clone(group), (Arc::<str>::from(consumer), seq));
        if let Some(number) = self.by_place.get(&at) {
            // It was not heard of for long enough to be given again, and is being dealt with.
            if let Some(given) = self.given.get_mut(number) {
                given.reply = reply.clone();
            }
            return out.push(Effect::Say(reply, Said::Underway));
        }
        let quiet_until = known.quiet_until;
        let is_known = self.known_places.contains(&at);
        let is_for_it = |(publishing, topic, _): &(Publishing, Box<str>, Bytes)| {
            !is_known && self.is_for(&group, (seq, tries, quiet_until), (publishing, topic), now_ms)
        };
        let Some((publishing, topic, payload)) = publication.filter(is_for_it) else {
            return out.push(Effect::Say(reply, Said::Taken));
        };
        let Some(worker) = wanted.get(&group).map(|wanted| wanted.worker) else {
            // Its last member here has gone, and it is about to be left: members elsewhere get it.
            return out.push(Effect::Say(reply, Said::Back(None)));
        };
        let is_quick = !publishing.qos.is_acknowledged();
        if is_quick {
            out.push(Effect::Say(reply.clone(), Said::Taken));
        }
        self.number += 1;
        let number = self.number;
        if let Some(served) = self.served.get_mut(&group) {
            served.unsettled += 1;
        }
        self.by_place.insert(at.clone(), number);
        let is_again = tries > 1;
        self.given.insert(number, Unsettled { group: Arc::clone(&group), at: Some(at), reply, is_quick, is_again });
        out.push(Effect::Give(Box::new(Given { number, group, worker, topic, payload, publishing })));
    }

    /// Whether some member of the group is to get this message.
    fn is_for(
        &mut self,
        group: &Arc<str>,
        (seq, tries, quiet_until): (u64, u64, u64),
        (publishing, topic): (&Publishing, &str),
        now_ms: i64,
    ) -> bool {
        if publishing.was_given_to(&group_key(group)) {
            self.counts.given_elsewhere += 1;
            return false;
        }
        if !publishing.qos.is_acknowledged() && (tries > 1 || seq <= quiet_until) {
            return false;
        }
        publishing.expires_ms.is_none_or(|expires_ms| expires_ms > now_ms) && group_wants(group, topic)
    }

    /// The server has ended a question, or says that there is nobody who could answer it.
    pub fn handle_ended(&mut self, ended: Ended, now: Instant) {
        let Some(known) = self.served.values_mut().find(|known| known.slot == ended.slot) else { return };
        known.pulls.handle_end(ended.number, ended.left, ended.is_too_large);
        known.is_changed = true;
        if ended.is_gone {
            // It is looked whether there is one; not at once, since many questions end so at a time.
            known.pulls.clear();
            known.quiet_until = u64::MAX;
            known.due = now + AGAIN_AFTER / 2;
        }
    }

    /// It is known what became of a message.
    pub fn settle(&mut self, number: u64, is_taken: bool, out: &mut Vec<Effect>) {
        let Some(given) = self.given.remove(&number) else { return };
        if let Some(served) = self.served.get_mut(&given.group) {
            served.unsettled = served.unsettled.saturating_sub(1);
            served.is_changed = true;
        }
        let count = if is_taken { &mut self.counts.given } else { &mut self.counts.returned };
        *count += 1;
        let Some(at) = given.at else { return };
        self.by_place.remove(&at);
        let said = if is_taken {
            self.know(at);
            Said::Taken
        } else {
            Said::Back(given.is_again.then_some(GIVEN_BACK_FOR))
        };
        if !given.is_quick {
            out.push(Effect::Say(given.reply, said));
        }
    }

    fn know(&mut self, at: Place) {
        self.known_places.insert(at.clone());
        self.known.push_back(at);
        if self.known.len() > SETTLED_KNOWN
            && let Some(oldest) = self.known.pop_front()
        {
            self.known_places.remove(&oldest);
        }
    }
}

/// How much of what a group was given is not settled: of one that was left and is joined again some may be with members still.
fn unsettled_of(given: &HashMap<u64, Unsettled>, group: &str) -> u32 {
    given.values().filter(|given| *given.group == *group).count() as u32
}

impl Served {
    fn new(slot: u64, unsettled: u32, now: Instant) -> Self {
        Self {
            slot,
            consumer: None,
            is_left: false,
            pulls: Pulls::default(),
            due: now,
            unsettled,
            room: 0,
            is_changed: true,
            quiet_until: u64::MAX,
        }
    }
}

#[cfg(test)]
mod tests;
