//! Bringing the workers up, and their threads to an end.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use socket2::Socket;

use super::descriptors::{close_left_behind, leave_shared_table};
use super::handoff::{HandoffChannel, Message, pair};
use super::io::{Sampled, WorkerIo, token};
use super::kept::{self, Kept, KeptPart};
use super::listen::{Listener, listen, reserve};
use super::policy::{Policy, PolicySwitch};
use super::sockets::Sockets;
use super::uplink_batch::{BATCH, UplinkBatches};
use crate::config::budget::descriptors_for_connections;
use crate::config::{self, Config};
use crate::connection::{Input, ListenerSettings};
use crate::link::{
    AddressTable, CloseReason, Doorbell, EventReceiver, EventSender, Exchange, Home, Inbox, ListenerId, Mailbox,
    Refusal, WorkerCommand, WorkerId, event_channel, mailbox,
};
use crate::metrics::Published;
use crate::shard::{self, Shard};
use crate::time::Moment;
use crate::turn::{self, Admission, AdmissionLimits, Turn};

/// What the workers are made with.
pub struct WorkerOptions<'a> {
    /// The whole configuration.
    pub config: &'a Config,
    /// What holds for the connections of each listener, in the order of the configuration.
    pub settings: Arc<[ListenerSettings]>,
    /// Where devices live; over `config.workers` workers.
    pub home: Home,
    /// The gateway's moment zero.
    pub started: Instant,
    /// Seeds jitter and generated ids.
    pub seed: u64,
    /// Of the table of addresses: nobody outside may choose which of them meet in it.
    pub address_key: [u8; 16],
}

/// The running workers.
pub struct Workers {
    /// Their inboxes, by worker.
    pub mailboxes: Vec<Mailbox>,
    /// What holds for their connections, and the way to change it.
    pub policy: PolicySwitch,
    /// Copies of their counters, by worker.
    pub published: Vec<Arc<Published>>,
    /// What they say.
    pub uplink: EventReceiver,
    /// In which order they retain messages.
    pub exchange: Arc<Exchange>,
    /// Where they listen, by listener: as configured, with a real port.
    pub addresses: Vec<SocketAddr>,
    threads: Vec<JoinHandle<()>>,
}

/// The workers could not be started.
#[derive(Debug)]
pub enum StartError {
    /// A listener's address cannot be had.
    Listen {
        /// The listener's name.
        listener: String,
        /// The address.
        address: SocketAddr,
        /// Why not.
        error: io::Error,
    },
    /// The kernel refused something else that a worker needs.
    System(&'static str, io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Listen { listener, address, error } => {
                write!(f, "listener {listener:?} cannot listen on {address} (listener.listen): {error}")
            }
            StartError::System(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// Starts `config.workers` workers and returns when all of them listen. To be called from the main thread: a thread
/// started by a worker would share that worker's descriptor table.
///
/// # Errors
/// [`StartError`]; no thread is left behind.
pub fn start(setup: &WorkerOptions, kept: Option<Kept>) -> Result<Workers, StartError> {
    let limits = &setup.config.limits;
    let count = usize::from(setup.config.workers);
    // Held until the workers listen.
    let Reserved { sockets: _reserved, ports, addresses } = reserve_all(setup.config)?;

    let batches = (limits.uplink_length / BATCH).max(4) * count;
    let (uplink_sender, uplink) = event_channel(batches);
    let bells = make(count, "a worker's doorbell cannot be made", Doorbell::new)?;
    let bells: Vec<Arc<Doorbell>> = bells.into_iter().map(Arc::new).collect();
    let polls = make(count, "a worker's poll cannot be made", Poll::new)?;
    let channels = make_channels(count)?;
    let shared = Shared::new(setup.config, setup.address_key);
    let mut kept = kept.map(|kept| kept.parts(&shared.exchange)).unwrap_or_default().into_iter();

    // What a worker takes along and this thread gives up.
    let mut left_behind: Vec<RawFd> = polls.iter().map(AsRawFd::as_raw_fd).collect();
    left_behind.extend(channels.iter().flatten().flatten().map(AsRawFd::as_raw_fd));

    let (mailboxes, inboxes): (Vec<Mailbox>, Vec<Inbox>) =
        bells.iter().map(|bell| mailbox(limits.inbox_length, Arc::clone(bell))).unzip();
    let policy = PolicySwitch::new(first_policy(setup), mailboxes.clone());
    let mut workers = Workers {
        mailboxes: mailboxes.clone(),
        policy: policy.clone(),
        published: Vec::new(),
        uplink,
        exchange: Arc::clone(&shared.exchange),
        addresses,
        threads: Vec::new(),
    };
    let (report, reports) = bounded(count);
    let (begin, waits_to_begin) = bounded::<()>(count);
    for (position, ((poll, channels), inbox)) in polls.into_iter().zip(channels).zip(inboxes).enumerate() {
        let published = Arc::new(Published::new(CloseReason::COUNT, Refusal::COUNT));
        workers.published.push(Arc::clone(&published));
        let parts = WorkerParts {
            id: WorkerId(position as u16),
            started: setup.started,
            seed: setup.seed.wrapping_add(position as u64),
            policy: policy.clone(),
            home: setup.home,
            listen: ports.clone(),
            poll,
            bells: bells.clone(),
            channels,
            inbox,
            mailboxes: mailboxes.clone(),
            uplink: uplink_sender.clone(),
            published,
            shared: shared.clone(),
            kept: kept.next().flatten(),
        };
        let (report, waits_to_begin) = (report.clone(), waits_to_begin.clone());
        let thread = std::thread::Builder::new().name(format!("worker-{position}"));
        let thread = thread
            .spawn(move || match parts.build() {
                Ok(turn) => {
                    // The receiver waits for every report.
                    let _ = report.send(Ok(()));
                    drop(report);
                    // Nobody is accepted before all have what they begin with.
                    if waits_to_begin.recv().is_ok() {
                        run(turn);
                    }
                }
                Err(error) => {
                    let _ = report.send(Err(error));
                }
            })
            .map_err(|error| StartError::System("a worker's thread cannot be started", error))?;
        workers.threads.push(thread);
    }
    drop(report);

    if let Some(error) = reports.iter().filter_map(Result::err).last() {
        drop(begin);
        workers.shut_down(Duration::ZERO);
        return Err(error);
    }
    for _ in 0..count {
        begin.send(()).expect("there is room for each");
    }
    close_left_behind(&left_behind)
        .map_err(|error| StartError::System("the workers' descriptors cannot be given up", error))?;
    Ok(workers)
}

/// What is listened on for this process.
struct Reserved {
    /// Kept until the workers listen.
    sockets: Vec<Socket>,
    /// Each port once, with the listener that it is called after.
    ports: Vec<(ListenerId, SocketAddr)>,
    /// Where each listener's clients come to, with a real port.
    addresses: Vec<SocketAddr>,
}

/// Takes every port for this process, and tells the real addresses.
fn reserve_all(config: &Config) -> Result<Reserved, StartError> {
    let (mut sockets, mut ports) = (Vec::new(), Vec::new());
    for (position, listener) in config.listeners.iter().enumerate().filter(|(_, listener)| listener.shares.is_none()) {
        let (socket, bound) = reserve(listener.listen).map_err(|error| StartError::Listen {
            listener: listener.name.clone(),
            address: listener.listen,
            error,
        })?;
        sockets.push(socket);
        ports.push((ListenerId(position as u8), bound));
    }
    let address = |listener: &config::Listener| {
        let owner = listener.shares.as_ref().unwrap_or(&listener.name);
        let port = ports.iter().find(|(id, _)| config.listeners[id.index()].name == *owner);
        port.expect("the configuration has every port that is shared").1
    };
    let addresses = config.listeners.iter().map(address).collect();
    Ok(Reserved { sockets, ports, addresses })
}

fn make<T>(count: usize, what: &'static str, mut one: impl FnMut() -> io::Result<T>) -> Result<Vec<T>, StartError> {
    (0..count).map(|_| one().map_err(|error| StartError::System(what, error))).collect()
}

/// The channels between each two workers: `channels[a][b]` is the end that worker `a` has of the one to `b`.
fn make_channels(count: usize) -> Result<Vec<Vec<Option<OwnedFd>>>, StartError> {
    let mut channels: Vec<Vec<Option<OwnedFd>>> = (0..count).map(|_| (0..count).map(|_| None).collect()).collect();
    for (one, other) in (0..count).flat_map(|one| (one + 1..count).map(move |other| (one, other))) {
        let (here, there) =
            pair().map_err(|error| StartError::System("the channel between two workers cannot be made", error))?;
        channels[one][other] = Some(here);
        channels[other][one] = Some(there);
    }
    Ok(channels)
}

impl Workers {
    /// Ends every connection and every worker in order, the goodbyes spread over `window`, and waits for it.
    pub fn shut_down(&mut self, window: Duration) {
        for mailbox in &self.mailboxes {
            // One that is gone has ended already.
            let _ = mailbox.answer(WorkerCommand::Shutdown { window });
        }
        for thread in self.threads.drain(..) {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }

    /// Whether a worker has ended though nobody asked it to: it has panicked.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.threads.iter().any(JoinHandle::is_finished)
    }
}

/// What one worker's thread is given.
struct WorkerParts {
    id: WorkerId,
    started: Instant,
    seed: u64,
    policy: PolicySwitch,
    home: Home,
    listen: Vec<(ListenerId, SocketAddr)>,
    poll: Poll,
    bells: Vec<Arc<Doorbell>>,
    channels: Vec<Option<OwnedFd>>,
    inbox: Inbox,
    mailboxes: Vec<Mailbox>,
    uplink: EventSender,
    published: Arc<Published>,
    shared: Shared,
    kept: Option<KeptPart>,
}

/// What all workers know together.
#[derive(Clone)]
struct Shared {
    exchange: Arc<Exchange>,
    /// Connections held by all of them.
    held: Arc<AtomicU32>,
    addresses: Arc<AddressTable>,
    /// Whether this gateway is one of several.
    is_of_fleet: bool,
}

impl Shared {
    fn new(config: &Config, address_key: [u8; 16]) -> Self {
        let exchange = match config.fleet {
            Some(_) => Exchange::of_fleet(config.workers, &config.node),
            None => Exchange::new(config.workers),
        };
        Self {
            exchange: Arc::new(exchange),
            held: Arc::new(AtomicU32::new(0)),
            addresses: Arc::new(AddressTable::new(address_key)),
            is_of_fleet: config.fleet.is_some(),
        }
    }
}

fn first_policy(setup: &WorkerOptions) -> Policy {
    let Config { limits, admission, .. } = setup.config;
    Policy { settings: Arc::clone(&setup.settings), limits: limits.clone(), admission: admission.clone() }
}

impl WorkerParts {
    /// Leaves the shared table and opens what belongs to this worker alone. Runs in the worker's thread.
    fn build(self) -> Result<Turn<WorkerIo>, StartError> {
        let system = |what: &'static str| move |error: io::Error| StartError::System(what, error);
        let mut keep: Vec<RawFd> = self.bells.iter().map(|bell| bell.as_fd().as_raw_fd()).collect();
        keep.push(self.poll.as_raw_fd());
        keep.extend(self.channels.iter().flatten().map(AsRawFd::as_raw_fd));
        leave_shared_table(&keep).map_err(system("a worker cannot leave the shared descriptor table"))?;
        pin(self.id);

        let registry = self.poll.registry();
        let bell = Arc::clone(&self.bells[self.id.index()]);
        registry
            .register(&mut SourceFd(&bell.as_fd().as_raw_fd()), token::BELL, Interest::READABLE)
            .map_err(system("a worker's doorbell cannot be polled"))?;
        let channels: Vec<Option<HandoffChannel>> =
            self.channels.into_iter().map(|channel| channel.map(HandoffChannel::new)).collect();
        for (worker, channel) in channels.iter().enumerate() {
            let Some(channel) = channel else { continue };
            // Not for room: a channel is told of as having room whenever the other worker has taken something. What it did
            // not take is tried again in every turn, and the next poll waits for a few milliseconds at most.
            registry
                .register(&mut SourceFd(&channel.as_fd().as_raw_fd()), token::channel(worker), Interest::READABLE)
                .map_err(system("the channel between two workers cannot be polled"))?;
        }
        let mut listeners = Vec::new();
        for (position, &(id, address)) in self.listen.iter().enumerate() {
            let mut socket = listen(address).map_err(|error| StartError::Listen {
                listener: format!("number {}", id.index()),
                address,
                error,
            })?;
            registry
                .register(&mut socket, token::listener(position), Interest::READABLE)
                .map_err(system("a listener cannot be polled"))?;
            listeners.push(Listener { id, socket, is_starved: false });
        }

        // The doorbell, listeners, channels to other workers.
        let other_sources = 1 + listeners.len() + channels.iter().flatten().count();
        let table = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let sockets = descriptors_for_connections(self.home.workers(), listeners.len(), table);
        let policy = self.policy.current();
        let limits = &policy.limits;
        let now = Moment::from_micros(self.started.elapsed().as_micros() as u64);
        let frame_bytes =
            policy.settings.iter().map(|settings| settings.frame_bytes).max().unwrap_or(limits.frame_bytes);
        let setup = shard::ShardOptions {
            worker: self.id,
            home: self.home,
            settings: Arc::clone(&policy.settings),
            handshakes: limits.handshakes as usize,
            uplink_length: limits.uplink_length,
            seed: self.seed,
            is_of_fleet: self.shared.is_of_fleet,
            exchange: self.shared.exchange,
            sessions: kept::bounds(self.kept.as_ref(), limits, self.home.workers()),
        };
        let mut shard = Shard::new(setup, now.tick());
        let changes = self.kept.map(|kept| kept.begin(&mut shard, self.id, &self.mailboxes, now));
        let bounds = turn::Bounds::default();
        let admission = AdmissionLimits::new(limits, &policy.admission, sockets as usize);
        let io = WorkerIo {
            id: self.id,
            started: self.started,
            poll: self.poll,
            events: Events::with_capacity(bounds.events),
            sockets: Sockets::default(),
            sockets_max: sockets as usize,
            listeners,
            held: self.shared.held,
            channels,
            message: Message::new(),
            inbox: self.inbox,
            mailboxes: self.mailboxes,
            policy: self.policy,
            policy_taken: 0,
            bell,
            refusals: Sampled::default(),
            uplink: UplinkBatches::new(self.id, self.uplink.of(self.id, shard.pool())),
            published: self.published,
            changes,
        };
        let setup = turn::TurnOptions {
            workers: self.home.workers(),
            shard,
            input: Input::new(frame_bytes, limits.read_bytes),
            admission: Admission::new(admission, self.shared.addresses),
            bounds,
            other_sources,
        };
        Ok(Turn::new(setup, io))
    }
}

/// Turns until the gateway comes down.
fn run(mut turn: Turn<WorkerIo>) {
    while turn.turn() {}
    turn.io().end();
}

/// Keeps the worker's thread on one core, so that its connections stay in that core's caches. With more workers than
/// cores they go round. A machine that does not allow it is no worse off than before.
fn pin(id: WorkerId) {
    let Ok(allowed) = sched_getaffinity(None) else { return };
    let cores: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect();
    let Some(&core) = cores.get(id.index() % cores.len().max(1)) else { return };
    let mut only = CpuSet::new();
    only.set(core);
    if let Err(error) = sched_setaffinity(None, &only) {
        tracing::debug!(worker = id.0, core, %error, "the worker's thread could not be kept on its core");
    }
}
