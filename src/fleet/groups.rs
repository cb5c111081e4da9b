//! Groups of shared subscribers over the whole fleet: each message in the stream that a group wants goes to one member of it somewhere
//! (decision 0033).
//!
//! ```text
//!   homes of groups ── members ──▶ GroupsWanted ──▶ Membership: a row in the bucket, a consumer of the stream
//!                                                        │ as many questions as there are members here
//!                                                        ▼
//!       one message ──▶ Gift ──▶ the group's home ──▶ a member ──▶ safe with it, or acknowledged ──▶ acknowledged to NATS
//!                                                        └── nobody is there, its session ended ──▶ given back: somebody else gets it
//! ```
//!
//! What was given to this gateway and is not settled it says so every few seconds; when it has died NATS hears nothing, and gives it to
//! others. What is under way outlives a connection: it is acknowledged over the next one.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_nats::jetstream::AckKind;
use async_nats::{Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::groups_wanted::Decided;
use super::membership::{Ask, End, GroupRow, Membership};
use super::pulls::{MEMBERS_ASKED_MAX, Pulls, share};
use super::server::Server;
use super::server::groups::{given_of, left_of};
use super::{Order, Shared};
use crate::config::FLEET_GROUPS_BYTES;
use crate::link::{Giver, WorkerId, group_key, group_wants};
use crate::sink::Backoff;
use crate::sink::nats::{Publishing, subject};

/// How often it is looked what is due.
const LOOK_EVERY: Duration = Duration::from_millis(500);
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
/// What nobody took comes again after so long.
const GIVEN_BACK_FOR: Duration = Duration::from_millis(500);
/// Messages that were settled, known for a while: an acknowledgement may be lost, and then they come again.
const SETTLED_KNOWN: usize = 8_192;
/// What each question may bring at least, in bytes.
const PULL_BYTES_MIN: usize = 8 << 10;

/// A message for one member of a group.
#[derive(Debug)]
pub struct Gift {
    /// The group, as `$share/NAME/FILTER`,
    pub group: Arc<str>,
    /// and its home.
    pub worker: WorkerId,
    /// Under which topic.
    pub topic: Box<str>,
    /// The payload: opaque bytes.
    pub payload: Bytes,
    /// How it was published.
    pub publishing: Publishing,
    /// Where to say what became of it.
    pub settle: Settle,
}

/// Says what became of a [`Gift`]. Dropped, it says that nobody took it.
#[derive(Debug)]
pub struct Settle {
    number: u64,
    is_taken: bool,
    settled: mpsc::UnboundedSender<(u64, bool)>,
}

impl Settle {
    /// It is with a member, or of no use to anybody.
    pub fn taken(mut self) {
        self.is_taken = true;
    }
}

impl Drop for Settle {
    fn drop(&mut self) {
        // The receiver is gone when the gateway ends.
        let _ = self.settled.send((self.number, self.is_taken));
    }
}

/// What became of what was given.
#[derive(Debug, Default)]
pub struct Counters {
    pub served: AtomicU64,
    pub unserved: AtomicU64,
    pub given: AtomicU64,
    pub returned: AtomicU64,
    pub unsettled: AtomicU64,
    pub given_elsewhere: AtomicU64,
}

/// A message that was given and is not settled.
struct Given {
    group: Arc<str>,
    at: (Arc<str>, u64),
    reply: Subject,
    /// It has no acknowledgement: NATS was told at once.
    is_quick: bool,
}

/// One group that is served here, or is to be.
struct Served {
    slot: u64,
    consumer: Option<Arc<str>>,
    pulls: Pulls,
    /// When it is looked again whether all is as it is to be; at once, if that is past.
    due: Instant,
    unsettled: u32,
    /// Members here for whom is asked, as of the latest look; 0: nobody is connected.
    members: u32,
    /// There may be room for more than was asked for.
    is_changed: bool,
    /// Messages without an acknowledgement up to this one were published before somebody was.
    quiet_until: u64,
}

/// Something that was under way.
enum Did {
    Joined(Arc<str>, Result<(End, u64), String>),
    Left(Arc<str>, Result<(), String>),
    Strays(Result<Vec<String>, String>),
}

/// See the head of this file.
pub struct Groups {
    shared: Arc<Shared>,
    prefix: String,
    gifts: mpsc::UnboundedSender<Gift>,
    orders: mpsc::UnboundedSender<Order>,
    served: BTreeMap<Arc<str>, Served>,
    /// Of these something is under way.
    busy: HashSet<Arc<str>>,
    given: HashMap<u64, Given>,
    by_place: HashMap<(Arc<str>, u64), u64>,
    known: VecDeque<(Arc<str>, u64)>,
    known_places: HashSet<(Arc<str>, u64)>,
    settling: mpsc::UnboundedSender<(u64, bool)>,
    settled: mpsc::UnboundedReceiver<(u64, bool)>,
    number: u64,
    /// Questions that may be asked of all groups.
    questions: usize,
    told_due: Instant,
    strays_due: Option<Instant>,
    backoff: Backoff,
    random: fastrand::Rng,
}

impl Groups {
    pub(super) fn new(
        shared: Arc<Shared>,
        prefix: &str,
        (gifts, orders): (mpsc::UnboundedSender<Gift>, mpsc::UnboundedSender<Order>),
        backoff: Backoff,
        random: fastrand::Rng,
    ) -> Self {
        let now = Instant::now();
        let (settling, settled) = mpsc::unbounded_channel();
        Self {
            shared,
            prefix: prefix.to_owned(),
            gifts,
            orders,
            served: BTreeMap::new(),
            busy: HashSet::new(),
            given: HashMap::new(),
            by_place: HashMap::new(),
            known: VecDeque::new(),
            known_places: HashSet::new(),
            settling,
            settled,
            number: 0,
            questions: 1,
            told_due: now,
            strays_due: Some(now + STRAYS_AFTER),
            backoff,
            random,
        }
    }

    /// Serves for as long as it is polled: until the connection is given up.
    pub(super) async fn run(&mut self, server: &Server) -> Infallible {
        self.shared.groups().begin();
        loop {
            let why = match self.serve(server).await {
                Ok(never) => match never {},
                Err(why) => why,
            };
            tracing::debug!(why, "groups of shared subscribers are not served, and are tried again");
            tokio::time::sleep(self.backoff.fail(None)).await;
        }
    }

    /// The connection is gone: this gateway gives to its groups what is published at it.
    pub(super) fn end(&mut self) {
        self.busy.clear();
        for known in self.served.values_mut() {
            known.pulls.clear();
            known.due = Instant::now();
        }
        let decided = self.shared.groups().end();
        self.tell(decided);
    }

    fn tell(&self, decided: impl IntoIterator<Item = Decided>) {
        for decided in decided {
            // The receiver is gone when the gateway ends.
            let _ = self.orders.send(Order::GroupServed(decided));
        }
    }

    async fn serve(&mut self, server: &Server) -> Result<Infallible, String> {
        let inbox = server.client.new_inbox();
        let subscribed = server.client.subscribe(format!("{inbox}.>")).await;
        let mut messages: Subscriber = subscribed.map_err(|error| error.to_string())?;
        let mut tasks = JoinSet::new();
        self.busy.clear();
        self.told_due = Instant::now();
        self.served.values_mut().for_each(|known| known.pulls.clear());
        let mut look = tokio::time::interval(LOOK_EVERY);
        let mut has_news = true;
        loop {
            if has_news {
                self.follow(server, &inbox, &mut tasks).await?;
                self.count();
            }
            self.ask(server, &inbox).await?;
            let shared = Arc::clone(&self.shared);
            has_news = false;
            tokio::select! {
                () = shared.groups_bell.notified() => has_news = true,
                _ = look.tick() => {
                    self.look(server, &mut tasks).await?;
                    has_news = true;
                }
                Some(did) = tasks.join_next(), if !tasks.is_empty() => {
                    self.handle_did(did.map_err(|fault| fault.to_string())?);
                    has_news = true;
                }
                settled = self.settled.recv() => {
                    let mut next = settled;
                    while let Some((number, is_taken)) = next {
                        self.settle(server, number, is_taken).await?;
                        next = self.settled.try_recv().ok();
                    }
                }
                message = messages.next() => {
                    let message = message.ok_or("the connection is gone")?;
                    self.handle(server, &inbox, message).await?;
                }
            }
        }
    }

    // --- Who serves what ----------------------------------------------------------------------------------------------

    /// Joins what has members here, leaves what has none any more.
    async fn follow(&mut self, server: &Server, inbox: &str, tasks: &mut JoinSet<Did>) -> Result<(), String> {
        let now = Instant::now();
        let wanted: BTreeMap<Arc<str>, u32> = {
            let groups = self.shared.groups();
            groups.all().map(|(group, wanted)| (Arc::clone(group), wanted.online)).collect()
        };
        let all: u32 = wanted.values().sum();
        self.questions = (all.min(MEMBERS_ASKED_MAX) as usize + wanted.len()) * 2;
        for (group, online) in &wanted {
            let known = self.served.entry(Arc::clone(group)).or_insert_with(|| {
                self.number += 1;
                Served::new(self.number, now)
            });
            let is_online = *online > 0;
            if is_online && known.members == 0 {
                // What has no acknowledgement is for whoever was there: from where is asked.
                known.due = now;
                known.quiet_until = u64::MAX;
            }
            (known.members, known.is_changed) = (share(*online, all), true);
            if known.due <= now && !self.busy.contains(group) {
                if let (Some(consumer), false) = (&known.consumer, is_online) {
                    server.touch(consumer, format!("{inbox}.0.0")).await?;
                }
                self.busy.insert(Arc::clone(group));
                let name = format!("group-{}-{:016x}", group_key(group), self.random.u64(..));
                tasks.spawn(join(server.clone(), self.shared.node.clone(), Arc::clone(group), name));
            }
        }
        let gone = self.served.keys().filter(|group| !wanted.contains_key(*group));
        let gone: Vec<_> = gone.filter(|group| !self.busy.contains(*group)).cloned().collect();
        for group in gone {
            self.busy.insert(Arc::clone(&group));
            tasks.spawn(leave(server.clone(), self.shared.node.clone(), group));
        }
        Ok(())
    }

    fn handle_did(&mut self, did: Did) {
        let now = Instant::now();
        match did {
            Did::Joined(group, joined) => {
                self.busy.remove(&group);
                self.handle_joined(&group, joined, now);
            }
            Did::Left(group, left) => {
                self.busy.remove(&group);
                if let Err(why) = left {
                    // Its row is found later.
                    tracing::debug!(group = &*group, why, "a group is not left yet");
                    self.strays_due.get_or_insert(now + STRAYS_AFTER);
                }
                // It may have come again meanwhile: then it is joined anew.
                self.served.remove(&group);
            }
            Did::Strays(found) => match found {
                Err(_) => self.strays_due = Some(now + STRAYS_AFTER),
                Ok(found) => {
                    for group in found {
                        // As one that was served: then it is left.
                        self.number += 1;
                        self.served.entry(group.into()).or_insert_with(|| Served::new(self.number, now));
                    }
                }
            },
        }
    }

    fn handle_joined(&mut self, group: &Arc<str>, joined: Result<(End, u64), String>, now: Instant) {
        let Some(known) = self.served.get_mut(group) else { return };
        let giver = match joined {
            Ok((End::Held(consumer), last)) => {
                let is_other = known.consumer.as_deref() != Some(&*consumer);
                if is_other {
                    known.pulls.clear();
                }
                if is_other || known.quiet_until == u64::MAX {
                    known.quiet_until = last;
                }
                known.consumer = Some(consumer.into());
                known.due = now + REFRESHED_EVERY.mul_f64(0.5 + self.random.f64() / 2.0);
                self.backoff.succeed();
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
                return tracing::debug!(group = &**group, why, "a group is not served yet");
            }
        };
        let decided = self.shared.groups().decide(group, giver);
        self.tell(decided);
    }

    /// What is due by the clock.
    async fn look(&mut self, server: &Server, tasks: &mut JoinSet<Did>) -> Result<(), String> {
        let now = Instant::now();
        let decided = self.shared.groups().give_up(now);
        self.tell(decided);
        if self.strays_due.is_some_and(|due| due <= now) {
            self.strays_due = None;
            tasks.spawn(strays(server.clone(), self.shared.node.clone()));
        }
        if self.told_due > now {
            return Ok(());
        }
        self.told_due = now + TOLD_EVERY;
        for given in self.given.values().filter(|given| !given.is_quick) {
            server.acknowledge(&given.reply, AckKind::Progress).await?;
        }
        Ok(())
    }

    // --- Messages -----------------------------------------------------------------------------------------------------

    /// Asks for as much as members have room for.
    async fn ask(&mut self, server: &Server, inbox: &str) -> Result<(), String> {
        let now = Instant::now();
        let bytes = (FLEET_GROUPS_BYTES / self.questions.max(1)).max(PULL_BYTES_MIN);
        for known in self.served.values_mut().filter(|known| known.is_changed) {
            known.is_changed = false;
            let Some(consumer) = known.consumer.clone().filter(|_| known.quiet_until != u64::MAX) else { continue };
            for pull in known.pulls.ask(known.members, known.unsettled, now) {
                let reply = format!("{inbox}.{}.{}", known.slot, pull.number);
                server.pull(&consumer, reply, pull, bytes).await?;
            }
        }
        Ok(())
    }

    async fn handle(&mut self, server: &Server, inbox: &str, message: Message) -> Result<(), String> {
        if let Some(status) = message.status {
            self.handle_status(inbox, status, &message);
            return Ok(());
        }
        let (Some((consumer, seq, tries)), Some(reply)) = (given_of(&message), message.reply.clone()) else {
            return Ok(());
        };
        let found = self.served.iter_mut().find(|(_, known)| known.consumer.as_deref() == Some(&*consumer));
        let Some((group, known)) = found else {
            // Its last member here has just gone.
            return server.acknowledge(&reply, AckKind::Nak(None)).await;
        };
        known.pulls.handle_message();
        known.is_changed = true;
        let (group, at) = (Arc::clone(group), (Arc::<str>::from(consumer), seq));
        if let Some(number) = self.by_place.get(&at) {
            // It was not heard of for long enough to be given again, and is being dealt with.
            if let Some(given) = self.given.get_mut(number) {
                given.reply = reply.clone();
            }
            return server.acknowledge(&reply, AckKind::Progress).await;
        }
        let quiet_until = known.quiet_until;
        match self.look_at(&group, &at, message, (tries, quiet_until)) {
            Some((topic, payload, publishing, worker)) => {
                let is_quick = !publishing.qos.is_acknowledged();
                if is_quick {
                    server.acknowledge(&reply, AckKind::Ack).await?;
                }
                let given = Given { group, at, reply, is_quick };
                self.give(given, (topic, payload, publishing, worker));
                Ok(())
            }
            None => server.acknowledge(&reply, AckKind::Ack).await,
        }
    }

    /// The server has ended a question, or says that there is nobody who could answer it.
    fn handle_status(&mut self, inbox: &str, status: StatusCode, message: &Message) {
        let slots = message.subject.strip_prefix(inbox).and_then(|rest| rest.strip_prefix('.'));
        let Some((slot, number)) = slots.and_then(|rest| rest.split_once('.')) else { return };
        let (Ok(slot), Ok(number)) = (slot.parse::<u64>(), number.parse::<u64>()) else { return };
        let Some(known) = self.served.values_mut().find(|known| known.slot == slot) else { return };
        let said = message.description.as_deref().unwrap_or_default();
        let left = left_of(message.headers.as_ref());
        known.pulls.handle_end(number, left, said.contains("MaxBytes"));
        known.is_changed = true;
        if status == StatusCode::NO_RESPONDERS || said.contains("Consumer Deleted") {
            // It is looked whether there is one; not at once, since many questions end so at a time.
            known.pulls.clear();
            known.quiet_until = u64::MAX;
            known.due = Instant::now() + AGAIN_AFTER / 2;
        }
    }

    /// Whether somebody is to get it, and what it is.
    fn look_at(
        &mut self,
        group: &Arc<str>,
        at: &(Arc<str>, u64),
        message: Message,
        (tries, quiet_until): (u64, u64),
    ) -> Option<(Box<str>, Bytes, Publishing, WorkerId)> {
        let counters = &self.shared.group_counts;
        if self.known_places.contains(at) {
            return None;
        }
        let mut publishing = message.headers.as_ref().and_then(Publishing::read)?;
        if publishing.was_given_to(&group_key(group)) {
            counters.given_elsewhere.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        if !publishing.qos.is_acknowledged() && (tries > 1 || at.1 <= quiet_until) {
            return None;
        }
        if publishing.expires_ms.is_some_and(|expires_ms| expires_ms <= unix_ms()) {
            return None;
        }
        if !publishing.stamp.is_none() && !self.shared.may_follow(&publishing) {
            publishing.stamp = crate::link::Stamp::NONE;
        }
        let (_, topic) = subject::publication_of(&self.prefix, &message.subject)?;
        if !group_wants(group, &topic) {
            return None;
        }
        let worker = self.shared.groups().get(group)?.worker;
        Some((topic.into(), message.payload, publishing, worker))
    }

    fn give(&mut self, given: Given, (topic, payload, publishing, worker): (Box<str>, Bytes, Publishing, WorkerId)) {
        self.number += 1;
        let number = self.number;
        if let Some(served) = self.served.get_mut(&given.group) {
            served.unsettled += 1;
        }
        let settle = Settle { number, is_taken: false, settled: self.settling.clone() };
        let gift = Gift { group: Arc::clone(&given.group), worker, topic, payload, publishing, settle };
        self.by_place.insert(given.at.clone(), number);
        self.given.insert(number, given);
        // The receiver is gone when the gateway ends.
        let _ = self.gifts.send(gift);
    }

    /// It is known what became of a message.
    async fn settle(&mut self, server: &Server, number: u64, is_taken: bool) -> Result<(), String> {
        let Some(given) = self.given.remove(&number) else { return Ok(()) };
        self.by_place.remove(&given.at);
        if let Some(served) = self.served.get_mut(&given.group) {
            served.unsettled = served.unsettled.saturating_sub(1);
            served.is_changed = true;
        }
        let counters = &self.shared.group_counts;
        if !is_taken {
            counters.returned.fetch_add(1, Ordering::Relaxed);
            if given.is_quick {
                return Ok(());
            }
            return server.acknowledge(&given.reply, AckKind::Nak(Some(GIVEN_BACK_FOR))).await;
        }
        counters.given.fetch_add(1, Ordering::Relaxed);
        self.know(given.at);
        if given.is_quick {
            return Ok(());
        }
        server.acknowledge(&given.reply, AckKind::Ack).await
    }

    fn know(&mut self, at: (Arc<str>, u64)) {
        self.known_places.insert(at.clone());
        self.known.push_back(at);
        if self.known.len() > SETTLED_KNOWN
            && let Some(oldest) = self.known.pop_front()
        {
            self.known_places.remove(&oldest);
        }
    }

    fn count(&self) {
        let counters = &self.shared.group_counts;
        let served = self.served.values().filter(|served| served.consumer.is_some()).count();
        counters.served.store(served as u64, Ordering::Relaxed);
        counters.unserved.store((self.served.len() - served) as u64, Ordering::Relaxed);
        counters.unsettled.store(self.given.len() as u64, Ordering::Relaxed);
    }
}

impl Served {
    fn new(slot: u64, now: Instant) -> Self {
        Self {
            slot,
            consumer: None,
            pulls: Pulls::default(),
            due: now,
            unsettled: 0,
            members: 0,
            is_changed: true,
            quiet_until: u64::MAX,
        }
    }
}

/// Comes to be in the row of a group; and the stream's last message at that time.
async fn join(server: Server, node: String, group: Arc<str>, consumer: String) -> Did {
    let joined = async {
        let end = walk(&server, &group, Membership::join(&node, &group, consumer, true)).await?;
        Ok((end, server.uplink_facts().await?.2))
    };
    let joined = joined.await;
    Did::Joined(group, joined)
}

async fn leave(server: Server, node: String, group: Arc<str>) -> Did {
    let left = walk(&server, &group, Membership::leave(&node, &group)).await.map(drop);
    Did::Left(group, left)
}

/// Groups whose rows name this gateway.
async fn strays(server: Server, node: String) -> Did {
    let found = async {
        let (mut found, mut next) = (Vec::new(), 1);
        while let Some((at, row)) = server.next_group_row(next).await? {
            let GroupRow { group, nodes, .. } = row;
            if nodes.contains(&node) {
                found.push(group);
            }
            next = at + 1;
        }
        Ok(found)
    };
    Did::Strays(found.await)
}

async fn walk(server: &Server, group: &str, mut membership: Membership) -> Result<End, String> {
    let mut ask = Membership::first();
    loop {
        if let Ask::Over(end) = ask {
            return Ok(end);
        }
        let told = server.ask_of_group(group, &ask).await?;
        ask = membership.handle(told);
    }
}

fn unix_ms() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as i64)
}
