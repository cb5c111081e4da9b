//! Several gateways that are one fleet, over NATS JetStream (`[backbone.nats]`, decision 0009).
//!
//! ```text
//!   hub ── a device came, went ──▶ Presence (who has which device) ◀── questions, answers ── thread "fleet" ◀──▶ NATS
//!   API ── this device is not here ──▶ Fleet::forward ── its row, its gateway's lease ──▶ that gateway's subject ──▶ answer
//!   workers ◀── Order ── thread "fleet" ◀── what other gateways, and anybody, say by NATS
//! ```
//!
//! Nothing of the data plane knows of it: a device is here as soon as it is, and claimed a moment later. Nothing here elects or
//! replicates: NATS does.

mod blocks;
mod commands;
mod deaths;
mod everywhere;
mod groups;
mod groups_wanted;
mod instance;
mod intake;
mod interests;
mod lease;
mod leases;
mod membership;
mod missed;
mod names;
mod notices;
mod pace;
mod place;
mod presence;
mod pulls;
mod requests;
mod retained;
mod rows;
mod run;
mod server;
mod serving;
mod sessions;
mod settings;
mod status;
mod sweep;
mod wills;
mod window;
mod wire;

#[cfg(test)]
pub(crate) mod parts;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, oneshot, watch};

pub use crate::sink::nats::Publishing;
use crate::sink::nats::bucket::is_ahead;
pub use blocks::{BlockRow, Blocked};
pub use everywhere::Answered;
pub use groups::{Gift, Settle};
pub use groups_wanted::Decided;
pub use intake::{Arrival, Remote};
pub use leases::KNOWN_FOR as LEASE_KNOWN_FOR;
pub use missed::{Missed, Published, Span, StreamEnds};
pub use place::Position;
pub use retained::{Change as BucketChange, Retained};
pub use rows::{Cursor, SessionRow};
pub use sessions::{RowChange, SessionAsk};
pub use settings::{Settings, files_of};
pub use status::{Bucket, GroupsReport, Report, State};
pub use sweep::Plan as SweepPlan;
pub use wire::{Call, Reply};

use crate::commands::{Counts, Desk};
use crate::config::FleetUplink;
use crate::link::{Cover, DelayedWill, Downlink, Giver, QoS, Stamp, WorkerId};
use crate::sink::Backoff;
use blocks::Touched;
use groups::Groups;
use groups_wanted::GroupsWanted;
use intake::Intake;
use interests::Interests;
use lease::{Lease, LeaseRow};
use leases::Leases;
use names::Names;
use presence::{Presence, Row};
use retained::Watch;
use run::{Readers, Run};
use server::Server;
use status::Status;
use wire::Request;

/// How long the last words may take: the lease is given back, so that nobody waits for it to end.
const END_MAX: Duration = Duration::from_secs(2);
/// How long a gateway that begins is not ready for want of what others retain.
const CATCH_UP_MAX: Duration = Duration::from_secs(30);
/// What an answer may take beyond what was asked for: the way there and back.
const SLACK: Duration = Duration::from_millis(500);
/// Devices that others say something waits for, and that were not looked at yet.
const WOKEN_MAX: usize = 4_096;
/// Where a device may be found after it was looked for: it may move meanwhile.
const HOPS_MAX: usize = 3;

/// Something that others want of this gateway.
#[derive(Debug)]
pub enum Order {
    /// Say something to a device that another gateway has found to be here.
    Send {
        /// The device.
        device: Box<str>,
        /// What it is to be told.
        downlink: Downlink,
        /// How long its acknowledgement is waited for; `None`: it is not.
        patience: Option<Duration>,
        /// What became of it.
        answer: oneshot::Sender<Reply>,
    },
    /// End a device's connection.
    Disconnect {
        /// The device.
        device: Box<str>,
        /// What became of it.
        answer: oneshot::Sender<Reply>,
    },
    /// Say something to a device wherever it is: as the API's `POST /v1/devices/{id}/messages`.
    Ask {
        /// The device.
        device: Box<str>,
        /// The body of such a request.
        body: Bytes,
        /// The body of its answer.
        answer: oneshot::Sender<Bytes>,
    },
    /// Answer what another gateway asks of this one, as the API would.
    Call {
        /// What.
        call: Call,
        /// The answer.
        answer: oneshot::Sender<Reply>,
    },
    /// Answer what another gateway wants of this one about a session.
    Session {
        /// Whose.
        device: Box<str>,
        /// What.
        ask: SessionAsk,
        /// A [`Reply`], or an image.
        answer: oneshot::Sender<Bytes>,
    },
    /// End the connection of a device that another gateway has.
    End {
        /// The device.
        device: Box<str>,
        /// Which of its connections.
        generation: u64,
        /// Whether it ends because two places fight over the id.
        is_loop: bool,
    },
    /// What a shard wants of what others publish is held: whoever waits for that goes on.
    InterestHeld {
        /// Whose shard.
        worker: WorkerId,
        /// Which change of what it wants.
        version: u64,
    },
    /// It is decided who gives to a group: its home is told.
    GroupServed(Decided),
    /// These and no others are kept out of the fleet.
    Blocks {
        /// Whom, and until when. `None`: the bucket was made anew, and knows nobody: what this gateway knows is to be written there.
        all: Option<Vec<Blocked>>,
        /// Those are left as they are about whom something was changed after so many changes ([`Fleet::touched_since`]).
        since: u64,
        /// Whether it was done.
        answer: oneshot::Sender<bool>,
    },
    /// Publish a will that was due, unless its device were elsewhere: it is not.
    Publish(Box<DelayedWill>),
}

/// What is to be done to a device at another gateway.
#[derive(Clone, Debug)]
pub enum Deed {
    /// It is told something. `acknowledge`: its acknowledgement is waited for.
    Send {
        /// What it is told.
        downlink: Downlink,
        /// Whether its acknowledgement is waited for.
        acknowledge: bool,
    },
    /// Its connection is ended.
    Disconnect,
    /// Nothing: it is described.
    Describe,
}

/// Why nobody knows what became of it, or where the device is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unreachable {
    /// NATS is away: whether the device is connected elsewhere is not known. Nothing was done.
    Away,
    /// The gateway that has the device does not hear. Nothing was done.
    Deaf(String),
    /// The gateway that has the device did not answer in time. It may have been done.
    Silent(String),
}

/// A message from the owner for the subscribers of all gateways.
#[derive(Clone, Debug)]
pub struct Publication<'a> {
    /// Under which topic: a valid topic name.
    pub topic: &'a str,
    /// The payload: opaque bytes.
    pub payload: Bytes,
    /// The quality of service.
    pub qos: QoS,
    /// Its place among retained messages of its topic; none: it is not to be retained.
    pub stamp: Stamp,
    /// After this time it is of no use to anybody, as Unix time in milliseconds.
    pub expires_ms: Option<i64>,
    /// Groups of shared subscribers that get it here: their keys, between commas.
    pub groups: Option<Box<str>>,
}

/// Why a message is not known to reach the subscribers of other gateways.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotPublished {
    /// NATS is away: it reaches none.
    Away,
    /// The fleet's stream does not take it, or has not said so in time: then it may reach them. Why.
    Refused(String),
}

/// This gateway's part of the fleet.
pub struct Fleet {
    shared: Arc<Shared>,
    wills: mpsc::UnboundedSender<Box<DelayedWill>>,
    orders: mpsc::UnboundedSender<Order>,
    /// Whether what is said here goes into the fleet's stream, and what is said elsewhere comes from there.
    has_stream: bool,
    stop: watch::Sender<bool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Who this gateway is.
pub struct Identity<'a> {
    /// Its name, unique in the fleet.
    pub node: &'a str,
    /// Which of its lives this is.
    pub epoch: u64,
    /// Where it keeps what makes it known after a restart.
    pub data_dir: &'a Path,
    /// So that two gateways do not try again at the same instants.
    pub seed: u64,
    /// How many shards it has.
    pub workers: usize,
    /// How far what others published had come here when the process before ended.
    pub position: Option<Position>,
}

/// What others want of this gateway.
pub struct Wishes {
    /// What is asked for. Bounded by requests under way, and by devices and shards that are here.
    pub orders: mpsc::UnboundedReceiver<Order>,
    /// What was published elsewhere. Bounded by what may be under way of it.
    pub arrivals: mpsc::UnboundedReceiver<Arrival>,
    /// What members of groups here are to get. Bounded by what they are asked for.
    pub gifts: mpsc::UnboundedReceiver<Gift>,
    /// What the bucket of retained messages says. Bounded in the same way.
    pub bucket: mpsc::UnboundedReceiver<BucketChange>,
}

/// What the thread and those who ask share.
struct Shared {
    node: String,
    presence: Mutex<Presence>,
    /// Rings when the presence has something to ask.
    bell: Notify,
    status: Mutex<Status>,
    /// The connection, while there is one and the lease holds.
    server: Mutex<Option<Server>>,
    /// Leases as they were read.
    leases: Leases,
    /// Blocks that were changed lately.
    touched: Touched,
    /// Devices for which something may wait that was just put.
    woken: Mutex<Vec<Box<str>>>,
    /// Of commands that wait in NATS.
    desk: Desk,
    counters: Counters,
    interests: Mutex<Interests>,
    /// Rings when a shard wants something else.
    interest_bell: Notify,
    intake: intake::Counters,
    groups: Mutex<GroupsWanted>,
    /// Rings when a group has come or gone, or its members have.
    groups_bell: Notify,
    group_counts: groups::Counters,
    retained: retained::Counters,
    names: Names,
    /// How often this gateway has come to hold its lease.
    joined: AtomicU64,
    /// Rows of sessions, as of the latest look,
    session_rows: AtomicU64,
    /// and the gateways that had leases.
    living: Mutex<BTreeSet<String>>,
    /// Those who want to know when all has come that was published until now.
    ends: Mutex<Vec<oneshot::Sender<()>>>,
}

#[derive(Debug, Default)]
struct Counters {
    connects: AtomicU64,
    connects_failed: AtomicU64,
    forwarded: AtomicU64,
    forwards_failed: AtomicU64,
    received: AtomicU64,
    untold: AtomicU64,
    unanswered: AtomicU64,
    wills_withheld: AtomicU64,
    calls_unanswered: AtomicU64,
}

impl Fleet {
    /// Starts the thread. What others want of this gateway goes to the receiver.
    ///
    /// # Errors
    /// There is no thread.
    pub fn start(settings: Settings, identity: &Identity<'_>) -> io::Result<(Self, Wishes)> {
        let mut random = fastrand::Rng::with_seed(identity.seed ^ identity.epoch);
        let drawn = format!("{:016x}", random.u64(..));
        let instance = instance::of(identity.data_dir, &drawn).unwrap_or_else(|error| {
            let data_dir = identity.data_dir.display();
            tracing::warn!(%error, %data_dir, "the fleet does not know this gateway after a restart until its lease has ended");
            drawn
        });
        let row = LeaseRow { id: format!("{:016x}", random.u64(..)), instance, epoch: identity.epoch };
        let status = Status::new(Instant::now(), settings.config().ready_without_nats);
        let shared = Arc::new(Shared::new(identity, &settings.config().prefix, status));
        let (stop, stopped) = watch::channel(false);
        let (orders, ordered) = mpsc::unbounded_channel();
        let (arrivals, arriving) = mpsc::unbounded_channel();
        let (changes, bucket) = mpsc::unbounded_channel();
        let (giving, gifts) = mpsc::unbounded_channel();
        // Each has its charge of the pool.
        let (wills, due) = mpsc::unbounded_channel();
        let backoff = Backoff::new(settings.config().retry, random.u64(..));
        let lease = Lease::new(settings.config().lease, row);
        let has_stream = settings.config().uplink != FleetUplink::Off;
        let intake = has_stream.then(|| {
            let (prefix, kept) = (&*settings.config().prefix, identity.position.clone());
            let (backoff, ways) = (backoff.clone(), (arrivals, orders.clone()));
            Intake::new(Arc::clone(&shared), prefix, kept, ways, backoff, random.fork())
        });
        let watch = has_stream.then(|| Watch::new(Arc::clone(&shared), changes, backoff.clone(), random.fork()));
        let groups = has_stream.then(|| {
            let (prefix, ways) = (&*settings.config().prefix, (giving, orders.clone()));
            Groups::new(Arc::clone(&shared), prefix, ways, backoff.clone(), random.fork())
        });
        let readers = Readers { intake, watch, groups };
        let ways = (orders.clone(), due);
        let run = Run::new(Arc::clone(&shared), settings, lease, backoff, random, readers, ways);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let work = move || runtime.block_on(run.work(stopped));
        let thread = std::thread::Builder::new().name("fleet".into()).spawn(work)?;
        let fleet = Self { shared, wills, orders, has_stream, stop, thread: Mutex::new(Some(thread)) };
        Ok((fleet, Wishes { orders: ordered, arrivals: arriving, gifts, bucket }))
    }

    /// A shard wants this of what others publish. Answered by an [`Order::InterestHeld`]: when it is held, at once while NATS is away,
    /// and after five seconds in any case. Never waits for anything outside.
    pub fn interest(&self, worker: WorkerId, version: u64, cover: Cover) {
        let held = self.shared.interests().say(worker, version, cover, Instant::now());
        if let Some((worker, version)) = held {
            // The receiver is gone when the gateway ends.
            let _ = self.orders.send(Order::InterestHeld { worker, version });
        }
        self.shared.interest_bell.notify_one();
    }

    /// A group of shared subscribers whose home is this shard has come, gone or changed: it has so many members, and those that are connected
    /// have so much room. Answered
    /// by an [`Order::GroupServed`] when it has come. Never waits for anything outside.
    pub fn group(&self, worker: WorkerId, (group, life): (Arc<str>, u32), members: (u32, u32)) {
        let decided = if self.has_stream {
            self.shared.groups().say(worker, (group, life), members, Instant::now())
        } else {
            Some(Decided { worker, group, life, giver: Giver::Each })
        };
        if let Some(decided) = decided {
            // The receiver is gone when the gateway ends.
            let _ = self.orders.send(Order::GroupServed(decided));
        }
        self.shared.groups_bell.notify_one();
    }

    /// Whether a message from the owner can reach subscribers at other gateways.
    #[must_use]
    pub fn has_stream(&self) -> bool {
        self.has_stream
    }

    /// All of the bucket of retained messages up to here is in the tables of this gateway, or, where it was not kept, has no room there.
    pub fn note_retained(&self, at: u64, is_kept: bool) {
        let counters = &self.shared.retained;
        if !is_kept {
            counters.refused.fetch_add(1, Ordering::Relaxed);
        }
        counters.apply(at);
    }

    /// A message in the stream is none that a gateway could have published.
    pub fn note_invalid(&self) {
        self.shared.intake.invalid.fetch_add(1, Ordering::Relaxed);
    }

    /// Publishes a message from the owner to the subscribers of all other gateways: into the stream, from which each takes it.
    ///
    /// # Errors
    /// [`NotPublished`].
    pub async fn publish(&self, publication: &Publication<'_>) -> Result<(), NotPublished> {
        let server = self.shared.server().ok_or(NotPublished::Away)?;
        let &Publication { topic, ref payload, qos, stamp, expires_ms, ref groups } = publication;
        let (node, retain) = (self.shared.node.clone(), !stamp.is_none());
        let (properties, groups) = (Box::default(), groups.clone());
        let how = Publishing { node, qos, retain, properties, expires_ms, stamp, groups };
        server.publish(topic, payload.clone(), &how).await.map_err(NotPublished::Refused)
    }

    /// A device is here, `since` when: of two connections the later one stays. Never waits for anything outside.
    pub fn connected(&self, device: &str, generation: u64, place: Option<IpAddr>, since: Instant) {
        self.shared.presence().connected(device, generation, place, since);
        self.shared.bell.notify_one();
    }

    /// A device's connection has ended. Never waits for anything outside.
    pub fn disconnected(&self, device: &str, generation: u64) {
        self.shared.presence().disconnected(device, generation);
        self.shared.bell.notify_one();
    }

    /// A will that waited for its delay is due: it is published by an [`Order::Publish`], unless its device is at another gateway.
    /// Never waits for anything outside.
    pub fn will_due(&self, will: Box<DelayedWill>) {
        // The thread is gone when the gateway ends: then no device has died.
        let _ = self.wills.send(will);
    }

    /// Does something to a device that is not here, wherever it is: once, or not at all. Offline: it is nowhere. Gives the name of
    /// the gateway that has done it.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub async fn forward(&self, device: &str, deed: &Deed, deadline: Instant) -> Result<(Reply, String), Unreachable> {
        let shared = &self.shared;
        let done = shared.forward(device, deed, deadline).await;
        // Who only looks commands nothing.
        if !matches!(deed, Deed::Describe) {
            let is_done = matches!(done, Ok((Reply::Delivered | Reply::Acknowledged, _)));
            let count = if is_done { &shared.counters.forwarded } else { &shared.counters.forwards_failed };
            count.fetch_add(1, Ordering::Relaxed);
        }
        done
    }

    /// Since when a device is here, as others are told.
    #[cfg(test)]
    pub fn age(&self, device: &str) -> Option<Duration> {
        self.shared.presence().age(device, Instant::now())
    }

    /// How it is.
    #[must_use]
    pub fn report(&self) -> Report {
        self.shared.report()
    }

    /// What it counts of commands that wait in NATS.
    #[must_use]
    pub fn commands(&self) -> Counts {
        self.shared.desk.counts()
    }

    /// Whether a newcomer would be told less than others retain: the bucket was not read since the start, and it can be, and has not taken
    /// too long.
    #[must_use]
    pub fn is_catching_up(&self) -> bool {
        let report = self.report();
        let is_new = report.state == State::Connected && report.for_long < CATCH_UP_MAX;
        self.has_stream && is_new && !report.retained.is_read && report.retained_error.is_none()
    }

    /// Gives the lease back and ends the thread. Bounded by two seconds.
    pub fn stop(&self) {
        let _ = self.stop.send(true);
        let Some(thread) = self.thread.lock().expect("no holder panics").take() else { return };
        let deadline = Instant::now() + END_MAX;
        while !thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Shared {
    fn new(identity: &Identity<'_>, prefix: &str, status: Status) -> Self {
        let &Identity { node, epoch, workers, .. } = identity;
        Self {
            node: node.to_owned(),
            presence: Mutex::new(Presence::new(node, epoch)),
            interests: Mutex::new(Interests::new(workers)),
            interest_bell: Notify::new(),
            intake: intake::Counters::default(),
            groups: Mutex::default(),
            groups_bell: Notify::new(),
            group_counts: groups::Counters::default(),
            retained: retained::Counters::default(),
            names: Names::new(prefix),
            joined: AtomicU64::new(0),
            session_rows: AtomicU64::new(1),
            living: Mutex::default(),
            ends: Mutex::default(),
            bell: Notify::new(),
            status: Mutex::new(status),
            server: Mutex::default(),
            leases: Leases::default(),
            touched: Touched::default(),
            woken: Mutex::default(),
            desk: Desk::default(),
            counters: Counters::default(),
        }
    }

    fn presence(&self) -> MutexGuard<'_, Presence> {
        self.presence.lock().expect("no holder panics")
    }

    fn interests(&self) -> MutexGuard<'_, Interests> {
        self.interests.lock().expect("no holder panics")
    }

    fn groups(&self) -> MutexGuard<'_, GroupsWanted> {
        self.groups.lock().expect("no holder panics")
    }

    fn ends(&self) -> MutexGuard<'_, Vec<oneshot::Sender<()>>> {
        self.ends.lock().expect("no holder panics")
    }

    fn status(&self) -> MutexGuard<'_, Status> {
        self.status.lock().expect("no holder panics")
    }

    fn server(&self) -> Option<Server> {
        self.server.lock().expect("no holder panics").clone()
    }

    fn set_server(&self, server: Option<Server>) {
        *self.server.lock().expect("no holder panics") = server;
    }

    fn report(&self) -> Report {
        let (counts, waiting) = {
            let presence = self.presence();
            (presence.counts(), presence.waiting())
        };
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Counters { connects, connects_failed, forwarded, forwards_failed, .. } = &self.counters;
        let Counters { received, untold, unanswered, wills_withheld, calls_unanswered, .. } = &self.counters;
        self.status().report(Instant::now(), |report| {
            report.devices_held = counts.held;
            report.devices_waiting = waiting;
            report.rows_written = counts.written;
            report.rows_removed = counts.removed;
            report.conflicts = counts.conflicts;
            report.taken = counts.taken;
            report.lost = counts.lost;
            report.damped = counts.damped;
            report.connects = load(connects);
            report.connects_failed = load(connects_failed);
            report.forwarded = load(forwarded);
            report.forwards_failed = load(forwards_failed);
            report.received = load(received);
            report.untold = load(untold);
            report.unanswered = load(unanswered);
            report.wills_withheld = load(wills_withheld);
            let intake::Counters { taken, own, invalid, missed, behind, subjects } = &self.intake;
            report.publications_taken = load(taken);
            report.publications_own = load(own);
            report.publications_invalid = load(invalid);
            report.publications_missed = load(missed);
            report.publications_behind = load(behind);
            report.subjects = load(subjects);
            let groups::Counters { served, unserved, given, returned, unsettled, given_elsewhere } = &self.group_counts;
            report.groups = GroupsReport {
                served: load(served),
                unserved: load(unserved),
                given: load(given),
                returned: load(returned),
                unsettled: load(unsettled),
                given_elsewhere: load(given_elsewhere),
            };
            self.retained.report(report);
            report.calls_unanswered = load(calls_unanswered);
        })
    }

    /// Something may wait for a device that is here by now.
    fn wake(&self, device: &str) {
        let mut woken = self.woken.lock().expect("no holder panics");
        // Whoever asks on and on is not served better: those are found by reading on.
        if woken.len() < WOKEN_MAX {
            woken.push(device.into());
            self.bell.notify_one();
        }
    }

    fn take_woken(&self) -> Vec<Box<str>> {
        std::mem::take(&mut *self.woken.lock().expect("no holder panics"))
    }

    fn is_here(&self, device: &str) -> bool {
        self.presence().age(device, Instant::now()).is_some()
    }

    /// Whether a retained message is followed: not where its stamp is far ahead of the clock here.
    fn may_follow(&self, how: &Publishing) -> bool {
        let is_ahead = is_ahead(how.stamp);
        if is_ahead && self.retained.ahead.fetch_add(1, Ordering::Relaxed) == 0 {
            let (gateway, unix_ms) = (&*how.node, how.stamp.unix_ms());
            tracing::warn!(
                gateway,
                unix_ms,
                "the clock of a gateway is more than ten minutes ahead of the one here: what it retains is not followed (set both)"
            );
        }
        !is_ahead
    }

    fn note_will_withheld(&self) {
        self.counters.wills_withheld.fetch_add(1, Ordering::Relaxed);
    }

    async fn forward(&self, device: &str, deed: &Deed, deadline: Instant) -> Result<(Reply, String), Unreachable> {
        let server = self.server().ok_or(Unreachable::Away)?;
        let mut asked = None;
        for _ in 0..HOPS_MAX {
            let found = server.device::<Row>(device).await.map_err(|_| Unreachable::Away)?;
            let Some((revision, row)) = found else { break };
            if *row.node == *self.node {
                // It has just gone, or a row was left behind.
                self.presence().missed(device);
                self.bell.notify_one();
                break;
            }
            // Asked already, and it has not moved since.
            if asked == Some(revision) {
                break;
            }
            let is_live = self.leases.is_live(&server, &row.node, &row.lease).await.map_err(|_| Unreachable::Away)?;
            if !is_live {
                self.presence().found_dead(device, revision, row);
                self.bell.notify_one();
                break;
            }
            asked = Some(revision);
            let reply = self.ask(&server, &row.node, device, deed, deadline).await?;
            if reply != Reply::Offline {
                return Ok((reply, row.node.into()));
            }
        }
        Ok((Reply::Offline, self.node.clone()))
    }

    /// Asks the gateway that has the device; once.
    async fn ask(
        &self,
        server: &Server,
        node: &str,
        device: &str,
        deed: &Deed,
        deadline: Instant,
    ) -> Result<Reply, Unreachable> {
        let left = deadline.saturating_duration_since(Instant::now());
        let request = match deed {
            Deed::Send { downlink, acknowledge } => Request::Send {
                device: device.into(),
                topic: downlink.topic.clone(),
                payload: downlink.payload.clone(),
                acknowledge: *acknowledge,
                patience_ms: left.as_millis() as u64,
            },
            Deed::Disconnect => Request::Disconnect { device: device.into() },
            Deed::Describe => Request::Call { call: Call::Device { device: device.into() } },
        };
        requests::put(server, node, &request, left + SLACK).await
    }
}
