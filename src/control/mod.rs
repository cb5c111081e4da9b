//! The control plane: what the gateway tells about itself, what its owner tells it, and what needs time or memory that
//! an event loop has not.
//!
//! ```text
//!              Batch                              ┌▶ backbone (the latest events)
//! worker ──────────────▶ thread "hub" ────────────┼▶ pending requests of the API
//!    ▲  │                  ▲     │                └▶ threads "tokens", "jwt", "hook" ─┐
//!    │  │                  └─────│──────────── results ──────────────────────────────┘
//!    │  │     WorkerCommand      │
//!    └──│──── mailbox ◀──────────┴──── thread "control": HTTP API, metrics
//!       └── published counters ───────────▲
//! ```
//!
//! It knows workers only through [`crate::link`] and [`crate::metrics`]: never a worker, shard, connection or TLS type.
//! Nothing here may make an event loop wait: commands are tried, never pushed.

mod answers;
mod api;
mod api_listener;
mod api_tls;
mod arrivals;
pub mod auth;
mod blocks;
mod broadcasts;
pub mod epoch;
mod exposition;
mod fleet;
mod fleet_blocks;
mod forwarded;
mod gifts;
mod history;
mod hub;
mod pending;
mod policy;
mod queue;
mod reasons;
mod retained;
mod sessions;
mod sinks;
mod traces;

#[cfg(test)]
mod tests;

use std::fmt::Display;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{io, panic};

use crossbeam_channel::{Receiver, Sender};
use socket2::SockRef;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::backbone::Backbone;
pub use crate::clock::Clock;
use crate::config::budget::{UNSENT_BYTES, answer_bytes};
use crate::config::{self, Config};
use crate::fleet::{self as nats, Fleet};
use crate::link::{Description, EventReceiver, Exchange, Home, Mailbox, Outcome};
use crate::metrics::Published;
use crate::sink::{self, Sinks};
use crate::store::{self, Durability, Health, Settled, Store, StoreError};
use answers::Answers;
use api_listener::{ApiListener, ApiPeer, Bounds};
pub use api_tls::{ApiTls, ApiTlsError};
use auth::chain::{AuthChains, Replacement};
use auth::material::Material;
pub use blocks::{Block, BlockError, BlockOrder, BlockRequest, BlockSource};
use broadcasts::Broadcasts;
use history::History;
use hub::Hub;
use pending::Pending;
pub use policy::{
    ChainFacts, ControlPolicy, Expiry, ExpiryKind, Inventory, ReloadOutcome, ReloadReport, ReloadRequest,
};
use policy::{Current, RELOADS_WAITING_MAX};
use queue::Queue;
use sessions::Sessions;
use traces::Traces;

/// How long requests in progress may take to end once the gateway shuts down.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);
/// Connections that the API holds at a time.
const CONNECTIONS_MAX: usize = 256;
/// How long one of them may take for a request, head and body.
const HEAD_MAX: Duration = Duration::from_secs(10);
/// How long one of them may stay without a byte otherwise. Longer than a scrape interval, so that scrapers keep theirs.
const IDLE_MAX: Duration = Duration::from_secs(90);
const BOUNDS: Bounds = Bounds { connections: CONNECTIONS_MAX, head_time: HEAD_MAX, idle_time: IDLE_MAX };
/// Requests answered at a time; further ones are told to come again. Probes of life are exempt.
const REQUESTS_MAX: usize = 64;
/// Bytes of requests' bodies that are on their way at a time; further ones wait. Together with the longest that each request in
/// progress holds this is all that bodies take.
const BODIES_BYTES_MAX: usize = 16 << 20;
/// Messages to devices under way at a time, each of which may wait for its device.
const SENDS_MAX: usize = 128;
/// Readers that follow the events at a time. Together with requests and sends fewer than
/// connections: one that waits for its next request can always give way to a probe.
const READERS_MAX: usize = 32;
const _: () = assert!(REQUESTS_MAX + SENDS_MAX + READERS_MAX < CONNECTIONS_MAX);

/// Threads that read the store's file at a time.
const STORE_READERS: usize = 4;

/// A worker that has not got on with its inbox, or with what waits for another's, for so long is stuck: twice the longest
/// sleep of its event loop.
pub const STUCK_AFTER: Duration = Duration::from_secs(10);

/// What the control plane is made of.
pub struct ControlParts {
    /// The configuration.
    pub config: Arc<Config>,
    /// What is in its files, for those who look.
    pub inventory: Inventory,
    /// Which worker a device belongs to.
    pub home: Home,
    /// Where each worker takes commands, by worker; as many as `home` counts.
    pub mailboxes: Vec<Mailbox>,
    /// What the workers say.
    pub uplink: EventReceiver,
    /// Each worker's counters, by worker; as many as `home` counts.
    pub published: Vec<Arc<Published>>,
    /// The addresses really listened on, by listener; as many as `config.listeners`.
    pub listeners: Vec<SocketAddr>,
    /// When the gateway started, and the time of day.
    pub clock: Arc<Clock>,
    /// Which life of this gateway it is; grows with each start.
    pub epoch: u64,
    /// The bound socket of the HTTP API.
    pub admin: TcpListener,
    /// What it is spoken over; none: plain HTTP.
    pub api_tls: Option<ApiTls>,
    /// How many log lines were lost.
    pub log_lines_lost: Arc<AtomicU64>,
    /// What must survive the process, with what it settles; `None` with `durability = "memory"`.
    pub store: Option<OpenStore>,
    /// Where what is in the store goes by itself; none without a store.
    pub sinks: Vec<sink::Settings>,
    /// How this gateway is one of a fleet; none: it is alone.
    pub fleet: Option<(nats::Settings, u64)>,
    /// In which order messages are retained here.
    pub exchange: Arc<Exchange>,
}

impl ControlParts {
    /// How many workers there are; panics unless there is everything of each.
    fn checked_workers(&self) -> usize {
        let workers = usize::from(self.home.workers());
        assert_eq!(self.mailboxes.len(), workers);
        assert_eq!(self.published.len(), workers);
        assert_eq!(self.listeners.len(), self.config.listeners.len());
        workers
    }
}

/// A store, and what it says is settled.
pub struct OpenStore {
    /// The store.
    pub store: Store,
    /// Group by group.
    pub settled: Receiver<Vec<Settled>>,
}

impl OpenStore {
    /// Opens the store of `config`, if it has one. Its times of day are by `clock`.
    ///
    /// # Errors
    /// It cannot be used; the error names the file and the remedy.
    pub fn open(config: &Config, clock: Arc<Clock>) -> Result<Option<Self>, StoreError> {
        let durability = match config.store.durability {
            config::Durability::Memory => return Ok(None),
            config::Durability::Group => Durability::Group,
            config::Durability::Interval => Durability::Interval(config.store.sync_interval),
        };
        let options = store::Options {
            directory: config.data_dir.clone(),
            durability,
            bytes_max: config.store.bytes,
            queue_bytes: config.store.queue_bytes,
            retention_age: config.uplink.retention,
            retention_bytes: config.uplink.retention_bytes,
            command_bytes: config.store.commands_bytes,
            clock,
        };
        // As many as the store's queue holds, which is bounded in bytes.
        let (sender, settled) = crossbeam_channel::unbounded();
        let settle = move |all: &[Settled]| {
            // The hub is gone when the gateway ends, and so are those who waited.
            let _ = sender.send(all.to_vec());
        };
        Ok(Some(Self { store: Store::open(&options, settle)?, settled }))
    }

    /// Both, as the threads want them; without a store nothing is ever settled.
    fn parts(open: Option<Self>) -> (Option<Arc<Store>>, Receiver<Vec<Settled>>) {
        match open {
            Some(Self { store, settled }) => (Some(Arc::new(store)), settled),
            None => (None, crossbeam_channel::never()),
        }
    }
}

/// The API's listener, and what drives it.
fn listen(
    admin: TcpListener,
    tls: watch::Receiver<Option<ApiTls>>,
) -> io::Result<(tokio::runtime::Runtime, ApiListener)> {
    let runtime = runtime()?;
    admin.set_nonblocking(true)?;
    // Those that it accepts inherit it: what an answer's reader does not take stays where it is counted, and not in a send buffer that
    // grows to 4 MiB.
    SockRef::from(&admin).set_tcp_notsent_lowat(UNSENT_BYTES as u32)?;
    let listener = runtime.block_on(async { ApiListener::new(admin, BOUNDS, tls) })?;
    Ok((runtime, listener))
}

/// What drives the HTTP API.
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        // Only reading the store waits for the disk.
        .max_blocking_threads(STORE_READERS)
        .build()
}

/// The running control plane.
pub struct Control {
    state: Arc<State>,
    admin_addr: SocketAddr,
    stop_hub: Sender<()>,
    replacements: Sender<Replacement>,
    reload_requests: Receiver<ReloadRequest>,
    block_requests: Receiver<BlockRequest>,
    stop_api: watch::Sender<bool>,
    hub: JoinHandle<()>,
    api: JoinHandle<()>,
}

impl Control {
    /// Reads what the authenticators need and starts the threads `hub` and `control`, and those that judge devices. Sinks begin last: what they
    /// send is there, and what comes back is heard.
    ///
    /// # Errors
    /// A file of an authenticator that cannot be used (`InvalidData`), or no thread, timer or
    /// random key from the system.
    pub fn start(parts: ControlParts) -> io::Result<Control> {
        let workers = parts.checked_workers();
        let counters = Arc::new(ProcessCounters::default());
        let auth = AuthChains::start(auth_material(&parts.config)?, counters.clone())?;
        let (blocks, block_requests) = crossbeam_channel::bounded(RELOADS_WAITING_MAX);
        let (reloads, reload_requests) = crossbeam_channel::bounded(RELOADS_WAITING_MAX);
        let admin_addr = parts.admin.local_addr()?;
        let (store, settled) = OpenStore::parts(parts.store);
        let (api_tls, api_tls_now) = watch::channel(parts.api_tls);
        let (sinks, orders, forwarded) = sinks::of(&parts.config, store.as_ref());
        let (fleet, wishes) = fleet::start(&parts.config, parts.epoch, parts.fleet, store.as_ref(), workers)?;
        let state = Arc::new(State {
            queue: store.as_ref().map(|store| Queue::new(Arc::clone(store))),
            sessions: Sessions::new(),
            store,
            sinks,
            fleet,
            backbone: Backbone::new(parts.config.backbone),
            current: Mutex::new(Arc::new(Current::new(parts.config.clone(), parts.inventory)?)),
            expiries: Mutex::new(Arc::new([])),
            answers: Arc::new(Answers::new(answer_bytes(&parts.config.limits) as usize)),
            config: parts.config,
            reloads,
            blocks,
            home: parts.home,
            exchange: parts.exchange,
            mailboxes: parts.mailboxes,
            published: parts.published,
            listeners: parts.listeners,
            clock: parts.clock,
            epoch: parts.epoch,
            log_lines_lost: parts.log_lines_lost,
            uplink: parts.uplink,
            described: Pending::default(),
            listed: Pending::default(),
            sent: Pending::default(),
            broadcasts: Broadcasts::new(workers),
            api_tls,
            history: History::default(),
            traces: Traces::default(),
            counters,
            bodies: Semaphore::new(BODIES_BYTES_MAX),
            requests: Semaphore::new(REQUESTS_MAX),
            sends: Semaphore::new(SENDS_MAX),
            readers: Arc::new(Semaphore::new(READERS_MAX)),
            stopping: AtomicBool::new(false),
        });
        let (runtime, listener) = listen(parts.admin, api_tls_now)?;
        let (stop_hub, hub_stopped) = crossbeam_channel::bounded(1);
        let (replacements, replaced) = crossbeam_channel::unbounded();
        let (stop_api, api_stopped) = watch::channel(false);
        let hub = Hub::new(state.clone(), auth, settled, forwarded);
        let hub = thread::Builder::new().name("hub".into()).spawn(move || hub.run(&hub_stopped, &replaced))?;
        let api = {
            let serving = serve(listener, state.clone(), (orders, wishes), api_stopped);
            thread::Builder::new().name("control".into()).spawn(move || runtime.block_on(serving))?
        };
        state.sinks.as_ref().map_or(Ok(()), |sinks| sinks.replace(parts.sinks))?;
        Ok(Control { state, admin_addr, stop_hub, replacements, reload_requests, block_requests, stop_api, hub, api })
    }

    /// Where the HTTP API really listens.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin_addr
    }

    /// Where changes of the deny list that are asked for arrive.
    #[must_use]
    pub fn block_requests(&self) -> &Receiver<BlockRequest> {
        &self.block_requests
    }

    /// Where reloads that are asked for arrive.
    #[must_use]
    pub fn reload_requests(&self) -> &Receiver<ReloadRequest> {
        &self.reload_requests
    }

    /// The way to change what it goes by.
    #[must_use]
    pub fn policy(&self) -> ControlPolicy {
        ControlPolicy { state: self.state.clone(), replacements: self.replacements.clone() }
    }

    /// Whether the store has failed: nothing is acknowledged any more, and the gateway must end.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.state.store.as_ref().is_some_and(|store| store.health() == Health::Failed)
    }

    /// Makes `/readyz` say no from now on, while everything else goes on: the first step of a shutdown.
    pub fn begin_shutdown(&self) {
        self.state.stopping.store(true, Ordering::Relaxed);
    }

    /// In a fleet: others are to know what this gateway's sessions need, before their devices are sent elsewhere. Bounded by a second and
    /// a half.
    pub fn settle_sessions(&self) {
        sessions::settle(&self.state);
    }

    /// Takes what the workers have said so far, then ends all threads. To lose nothing, the workers end before.
    ///
    /// Bounded: a second for the uplink, two for sinks, two for the fleet, what the disk takes for the store's last group, two seconds for requests in
    /// progress, and the hash of one token.
    pub fn shutdown(self) {
        self.begin_shutdown();
        // Each may be gone already only because it panicked, which `join` reports. Readers of events hear to the last
        // of them, so the hub ends first.
        let _ = self.stop_hub.send(());
        join(self.hub);
        // What other sides have acknowledged is kept.
        if let Some(sinks) = &self.state.sinks {
            sinks.stop();
        }
        // Its lease is given back: whoever looks for its devices need not wait.
        if let Some(fleet) = &self.state.fleet {
            fleet.stop();
        }
        // Readers of the uplink hear to the last of it.
        if let Some(store) = &self.state.store {
            store.close();
        }
        self.state.backbone.close();
        let _ = self.stop_api.send(true);
        join(self.api);
    }
}

fn join(thread: JoinHandle<()>) {
    if let Err(panicked) = thread.join() {
        panic::resume_unwind(panicked);
    }
}

/// What the authenticators of each listener need.
fn auth_material(config: &Arc<Config>) -> io::Result<Replacement> {
    let wrong = |error: auth::material::MaterialError| io::Error::new(io::ErrorKind::InvalidData, error.what);
    let load = |listener: &config::Listener| Material::load(&listener.identity).map_err(wrong);
    Ok(Replacement { config: config.clone(), materials: config.listeners.iter().map(load).collect::<io::Result<_>>()? })
}

/// Serves the API until `stopped` says so and the requests in progress are answered, or the grace is over.
async fn serve(
    listener: ApiListener,
    state: Arc<State>,
    (orders, wishes): (Option<mpsc::Receiver<sink::Order>>, Option<nats::Wishes>),
    mut stopped: watch::Receiver<bool>,
) {
    if let Some(orders) = orders {
        // It ends with the runtime.
        drop(tokio::spawn(sinks::pass_on(Arc::clone(&state), orders)));
    }
    if let Some(nats::Wishes { orders, arrivals, gifts, bucket }) = wishes {
        drop(tokio::spawn(retained::pass_on(Arc::clone(&state), bucket)));
        drop(tokio::spawn(fleet::pass_on(Arc::clone(&state), orders)));
        drop(tokio::spawn(arrivals::pass_on(Arc::clone(&state), arrivals)));
        drop(tokio::spawn(gifts::pass_on(Arc::clone(&state), gifts)));
        drop(tokio::spawn(sessions::run(Arc::clone(&state))));
        drop(tokio::spawn(sessions::verify(Arc::clone(&state))));
        drop(tokio::spawn(sessions::sweep(Arc::clone(&state))));
        drop(tokio::spawn(sessions::keep_cursor(Arc::clone(&state))));
    }
    if state.queue.is_some() {
        drop(tokio::spawn(queue::work(Arc::clone(&state))));
    }
    let mut grace_started = stopped.clone();
    // An error means that the sender is gone, which is a shutdown too.
    let signal = async move { drop(stopped.wait_for(|&stop| stop).await) };
    let grace = async move {
        drop(grace_started.wait_for(|&stop| stop).await);
        tokio::time::sleep(SHUTDOWN_GRACE).await;
    };
    let routes = api::router(state).into_make_service_with_connect_info::<ApiPeer>();
    let server = axum::serve(listener, routes).with_graceful_shutdown(signal);
    tokio::select! {
        ended = server => log_end(ended),
        () = grace => tracing::debug!("requests in progress were cut off at shutdown"),
    }
}

fn log_end(ended: Result<(), impl Display>) {
    if let Err(error) = ended {
        tracing::error!(%error, "the HTTP API ended");
    }
}

/// What the threads of the control plane share.
struct State {
    /// What it was started with: names, addresses and sizes, which stay.
    config: Arc<Config>,
    /// What may have changed since.
    current: Mutex<Arc<Current>>,
    /// When what the listeners hold of certificates ends.
    expiries: Mutex<Arc<[Expiry]>>,
    /// What new connections of the API are spoken over.
    api_tls: watch::Sender<Option<ApiTls>>,
    reloads: Sender<ReloadRequest>,
    blocks: Sender<BlockRequest>,
    home: Home,
    exchange: Arc<Exchange>,
    mailboxes: Vec<Mailbox>,
    published: Vec<Arc<Published>>,
    listeners: Vec<SocketAddr>,
    clock: Arc<Clock>,
    epoch: u64,
    log_lines_lost: Arc<AtomicU64>,
    uplink: EventReceiver,
    described: Pending<Option<Box<Description>>>,
    listed: Pending<Vec<Description>>,
    sent: Pending<Outcome>,
    broadcasts: Broadcasts,
    history: History,
    traces: Traces,
    backbone: Backbone,
    store: Option<Arc<Store>>,
    /// Commands that wait in it.
    queue: Option<Queue>,
    sinks: Option<Sinks>,
    fleet: Option<Fleet>,
    sessions: Sessions,
    counters: Arc<ProcessCounters>,
    answers: Arc<Answers>,
    bodies: Semaphore,
    requests: Semaphore,
    sends: Semaphore,
    readers: Arc<Semaphore>,
    stopping: AtomicBool,
}

impl State {
    /// What holds now. A request is answered by what held when it began.
    fn current(&self) -> Arc<Current> {
        // A panic within the lock cannot leave half a pointer.
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn expiries(&self) -> Arc<[Expiry]> {
        self.expiries.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace_current(&self, fresh: Current) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh);
    }
}

/// What the control plane counts itself; each is a [`crate::metrics::ProcessMetric`].
#[derive(Debug, Default)]
struct ProcessCounters {
    tokens_verified: AtomicU64,
    tokens_cached: AtomicU64,
    tokens_rejected: AtomicU64,
    tokens_unanswered: AtomicU64,
    jwt_accepted: AtomicU64,
    jwt_rejected: AtomicU64,
    jwt_unanswered: AtomicU64,
    keys_fetched: AtomicU64,
    keys_failed: AtomicU64,
    hook_asked: AtomicU64,
    hook_failures: AtomicU64,
    hook_cached: AtomicU64,
    hook_stale: AtomicU64,
    hook_accepted: AtomicU64,
    hook_rejected: AtomicU64,
    hook_unanswered: AtomicU64,
    answers_dropped: AtomicU64,
    reloads: AtomicU64,
    reloads_refused: AtomicU64,
    is_reload_refused: AtomicU64,
}
