//! Groups of shared subscribers over the whole fleet: each message in the stream that a group wants goes to one member of it somewhere
//! (decision 0033).
//!
//! ```text
//!   homes of groups ── members ──▶ GroupsWanted ──▶ Membership: a row in the bucket, a consumer of the stream
//!                                                        │ as many questions as there are members here
//!                                                        ▼
//!       one message ──▶ Gift ──▶ the group's home ──▶ a member ──▶ its device acknowledges it ──▶ acknowledged to NATS
//!                                                        └── nobody is there, its connection ended ──▶ given back: somebody else gets it
//! ```
//!
//! What was given to this gateway and is not settled it says so every few seconds; when it has died NATS hears nothing, and gives it to
//! others. What is under way outlives a connection: it is acknowledged over the next one.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use async_nats::jetstream::AckKind;
use async_nats::{Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::membership::{Ask, End, GroupRow, Membership};
use super::server::Server;
use super::server::groups::{given_of, left_of};
use super::serving::{Came, Effect, Ended, Given, Joined, Said, Serving};
use super::{Order, Shared};
use crate::link::{Stamp, WorkerId, group_key};
use crate::sink::Backoff;
use crate::sink::nats::{Publishing, subject};

/// How often it is looked what is due.
const LOOK_EVERY: Duration = Duration::from_millis(500);

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
    /// Its device has acknowledged it, or it is of no use to anybody.
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

/// Something that was under way.
enum Did {
    Joined(Arc<str>, Result<Joined, String>),
    Left(Arc<str>, Result<(), String>),
    Strays(Result<Vec<String>, String>),
}

/// See the head of this file.
pub struct Groups {
    shared: Arc<Shared>,
    prefix: String,
    gifts: mpsc::UnboundedSender<Gift>,
    orders: mpsc::UnboundedSender<Order>,
    serving: Serving,
    settling: mpsc::UnboundedSender<(u64, bool)>,
    settled: mpsc::UnboundedReceiver<(u64, bool)>,
    backoff: Backoff,
    random: fastrand::Rng,
}

/// One connection: where what is asked over it is answered, and what is under way.
struct Link<'a> {
    server: &'a Server,
    inbox: String,
    tasks: JoinSet<Did>,
}

impl Groups {
    pub(super) fn new(
        shared: Arc<Shared>,
        prefix: &str,
        (gifts, orders): (mpsc::UnboundedSender<Gift>, mpsc::UnboundedSender<Order>),
        backoff: Backoff,
        mut random: fastrand::Rng,
    ) -> Self {
        let (settling, settled) = mpsc::unbounded_channel();
        let serving = Serving::new(random.fork(), Instant::now());
        Self { shared, prefix: prefix.to_owned(), gifts, orders, serving, settling, settled, backoff, random }
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
        let mut out = Vec::new();
        self.serving.end(&mut self.shared.groups(), Instant::now(), &mut out);
        for effect in out {
            if let Effect::Tell(decided) = effect {
                // The receiver is gone when the gateway ends.
                let _ = self.orders.send(Order::GroupServed(decided));
            }
        }
    }

    async fn serve(&mut self, server: &Server) -> Result<Infallible, String> {
        let inbox = server.client.new_inbox();
        let subscribed = server.client.subscribe(format!("{inbox}.>")).await;
        let mut messages: Subscriber = subscribed.map_err(|error| error.to_string())?;
        let mut link = Link { server, inbox, tasks: JoinSet::new() };
        self.serving.begin(Instant::now());
        let mut look = tokio::time::interval(LOOK_EVERY);
        let (mut has_news, mut out) = (true, Vec::new());
        loop {
            let now = Instant::now();
            if has_news {
                self.serving.follow(&self.shared.groups(), now, &mut out);
            }
            self.serving.ask(now, &mut out);
            self.act(&mut link, &mut out).await?;
            self.count(has_news);
            let shared = Arc::clone(&self.shared);
            has_news = false;
            tokio::select! {
                () = shared.groups_bell.notified() => has_news = true,
                _ = look.tick() => {
                    self.serving.look(&mut shared.groups(), Instant::now(), &mut out);
                    has_news = true;
                }
                Some(did) = link.tasks.join_next(), if !link.tasks.is_empty() => {
                    self.handle_did(did.map_err(|fault| fault.to_string())?, &mut out);
                    has_news = true;
                }
                settled = self.settled.recv() => {
                    let mut next = settled;
                    while let Some((number, is_taken)) = next {
                        self.serving.settle(number, is_taken, &mut out);
                        next = self.settled.try_recv().ok();
                    }
                }
                message = messages.next() => {
                    let message = message.ok_or("the connection is gone")?;
                    self.handle(&link.inbox, message, &mut out);
                }
            }
        }
    }

    /// Does what is to be done. Members get what they are to get, and shards hear what they are to hear, whatever becomes of the connection.
    async fn act(&mut self, link: &mut Link<'_>, out: &mut Vec<Effect>) -> Result<(), String> {
        let mut done = Ok(());
        for effect in out.drain(..) {
            match effect {
                Effect::Give(given) => self.give(*given),
                // The receiver is gone when the gateway ends.
                Effect::Tell(decided) => drop(self.orders.send(Order::GroupServed(decided))),
                effect if done.is_ok() => done = self.say(link, effect).await,
                _ => {}
            }
        }
        done
    }

    async fn say(&mut self, link: &mut Link<'_>, effect: Effect) -> Result<(), String> {
        let Link { server, inbox, tasks } = link;
        match effect {
            Effect::Join(group) => {
                let name = format!("group-{}-{:016x}", group_key(&group), self.random.u64(..));
                tasks.spawn(join(server.clone(), self.shared.node.clone(), group, name));
            }
            Effect::Leave(group) => drop(tasks.spawn(leave(server.clone(), self.shared.node.clone(), group))),
            Effect::FindStrays => drop(tasks.spawn(strays(server.clone(), self.shared.node.clone()))),
            Effect::Touch(consumer) => return server.touch(&consumer, format!("{inbox}.0.0")).await,
            Effect::Pull { consumer, slot, pull, bytes } => {
                let reply = format!("{inbox}.{slot}.{}", pull.number);
                return server.pull(&consumer, reply, pull, bytes).await;
            }
            Effect::Say(reply, said) => {
                let kind = match said {
                    Said::Taken => AckKind::Ack,
                    Said::Back(after) => AckKind::Nak(after),
                    Said::Underway => AckKind::Progress,
                };
                return server.acknowledge(&reply, kind).await;
            }
            Effect::Tell(_) | Effect::Give(_) => {}
        }
        Ok(())
    }

    fn give(&self, given: Given) {
        let Given { number, group, worker, topic, payload, mut publishing } = given;
        if !publishing.stamp.is_none() && !self.shared.may_follow(&publishing) {
            publishing.stamp = Stamp::NONE;
        }
        let settle = Settle { number, is_taken: false, settled: self.settling.clone() };
        // The receiver is gone when the gateway ends.
        let _ = self.gifts.send(Gift { group, worker, topic, payload, publishing, settle });
    }

    fn handle_did(&mut self, did: Did, out: &mut Vec<Effect>) {
        let now = Instant::now();
        match did {
            Did::Joined(group, joined) => {
                if self.serving.handle_joined(&group, joined, &mut self.shared.groups(), now, out) {
                    self.backoff.succeed();
                }
            }
            Did::Left(group, left) => self.serving.handle_left(&group, left, now),
            Did::Strays(found) => self.serving.handle_strays(found, now),
        }
    }

    fn handle(&mut self, inbox: &str, message: Message, out: &mut Vec<Effect>) {
        if let Some(status) = message.status {
            if let Some(ended) = ended_of(inbox, status, &message) {
                self.serving.handle_ended(ended, Instant::now());
            }
            return;
        }
        let (Some((consumer, seq, tries)), Some(reply)) = (given_of(&message), message.reply.clone()) else { return };
        let publication = message.headers.as_ref().and_then(Publishing::read).and_then(|publishing| {
            let (_, topic) = subject::publication_of(&self.prefix, &message.subject)?;
            Some((publishing, topic.into(), message.payload))
        });
        let came = Came { consumer, seq, tries, reply, publication };
        self.serving.handle_message(came, &self.shared.groups(), unix_ms(), out);
    }

    fn count(&self, has_news: bool) {
        let counts = self.serving.counts();
        let counters = &self.shared.group_counts;
        counters.given.store(counts.given, Ordering::Relaxed);
        counters.returned.store(counts.returned, Ordering::Relaxed);
        counters.given_elsewhere.store(counts.given_elsewhere, Ordering::Relaxed);
        if has_news {
            let (served, unserved, unsettled) = self.serving.standing();
            counters.served.store(served, Ordering::Relaxed);
            counters.unserved.store(unserved, Ordering::Relaxed);
            counters.unsettled.store(unsettled, Ordering::Relaxed);
        }
    }
}

/// The server has ended a question, or says that there is nobody who could answer it.
fn ended_of(inbox: &str, status: StatusCode, message: &Message) -> Option<Ended> {
    let slots = message.subject.strip_prefix(inbox).and_then(|rest| rest.strip_prefix('.'));
    let (slot, number) = slots?.split_once('.')?;
    let said = message.description.as_deref().unwrap_or_default();
    Some(Ended {
        slot: slot.parse().ok()?,
        number: number.parse().ok()?,
        left: left_of(message.headers.as_ref()),
        is_too_large: said.contains("MaxBytes"),
        is_gone: status == StatusCode::NO_RESPONDERS || said.contains("Consumer Deleted"),
    })
}

/// Comes to be in the row of a group.
async fn join(server: Server, node: String, group: Arc<str>, consumer: String) -> Did {
    let joined = async {
        let end = walk(&server, &group, Membership::join(&node, &group, consumer)).await?;
        let (stream, _, last) = server.uplink_facts().await?;
        Ok(Joined { end, stream, last })
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
