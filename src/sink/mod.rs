//! Sinks: where what devices say goes by itself, each from a cursor of its own in the store.
//!
//! ```text
//!   store ──▶ thread "sink-NAME" ──▶ the other side          the cursor moves when the other side has acknowledged
//!     ▲              │  ▲
//!     └── cursor ────┘  └── pause, resume, seek, other settings
//! ```
//!
//! At least once, and for each device in order. A sink has a thread of its own, so that one whose other side hangs is
//! nobody else's trouble, and reads as a consumer whose name nobody else can take. What it must know after a restart is in
//! the store; so other settings are another thread, which begins when the one before has ended. Nothing here is waited for by
//! an event loop (decision 0026).

mod answer;
mod backoff;
mod batch;
mod dead_letter;
mod event;
mod feed;
mod http;
mod mqtt;
pub(crate) mod nats;
mod run;
mod selection;
mod settings;
mod signature;
mod tls;
mod window;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, mem};

use tokio::sync::{mpsc, oneshot, watch};

pub use backoff::Backoff;
pub use event::{Event, time};
pub use settings::{Fault, Reading, Settings, files_of};

use crate::link::{Downlink, Outcome};
use crate::store::{Backlog, Position, Range, SINK_PREFIX, SinkNote, Store, StoreError};
use dead_letter::DeadLetters;
use http::HttpRun;
use mqtt::MqttRun;
use nats::NatsRun;
use run::{Phase, Run, Shared};
use settings::Target;

/// How long the threads may take to end: what the store takes for their last cursors. Whoever waits for an answer longer is
/// left, and sends that again in the next life, under the same id.
const END_MAX: Duration = Duration::from_secs(2);
/// Commands from all sinks that wait to be passed on.
const ORDERS_WAITING_MAX: usize = 64;

/// Something for a device, from the other side of a sink.
#[derive(Debug)]
pub struct Order {
    /// The device.
    pub device: Box<str>,
    /// What it is to be told.
    pub downlink: Downlink,
    /// What became of it.
    pub answer: oneshot::Sender<Outcome>,
}

/// How far a sink has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// The store dropped these before the sink had read them; but for those that are done.
    Missed(Range),
    /// All up to this one is done with: the other side has it, it is in the dead letters, or it was missed, which was told before.
    Done(u64),
}

/// Hears how far a sink has come. Called in the sink's thread; it must not wait.
pub type Tell = Arc<dyn Fn(Told) + Send + Sync>;

/// Every sink of a gateway.
pub struct Sinks {
    store: Arc<Store>,
    node: String,
    data_dir: PathBuf,
    devices: mpsc::Sender<Order>,
    seed: u64,
    /// Who hears how far the sink of this name is.
    tell: Option<(&'static str, Tell)>,
    threads: Mutex<Threads>,
}

#[derive(Default)]
struct Threads {
    running: BTreeMap<String, Running>,
    /// Of sinks that are gone, and may be back before these have ended.
    ending: BTreeMap<String, JoinHandle<()>>,
}

struct Running {
    settings: Arc<Settings>,
    shared: Arc<Shared>,
    orders: watch::Sender<()>,
    thread: JoinHandle<()>,
}

/// How a sink is, for people and metrics.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its name.
    pub name: String,
    /// `http`, `mqtt` or `nats`.
    pub kind: &'static str,
    /// Where to, without secrets.
    pub target: String,
    /// `running`, `retrying`, `blocked` or `paused`.
    pub state: &'static str,
    /// Why the last try failed, if it did.
    pub error: Option<String>,
    /// How far it is. Events behind the cursor may be for others.
    pub backlog: Option<Backlog>,
    /// The time of the oldest event behind the cursor, as Unix time in milliseconds.
    pub oldest_ms: Option<i64>,
    /// Events that the other side has acknowledged, since the start.
    pub sent: u64,
    /// Tries that failed.
    pub failed: u64,
    /// Events in the dead letters, added since the start.
    pub dead_lettered: u64,
    /// Commands that devices took.
    pub commands: u64,
    /// Commands that did not reach a device.
    pub commands_failed: u64,
}

impl Report {
    /// How old the oldest event behind the cursor is at `now_ms`, in seconds; 0 when there is none.
    #[must_use]
    pub fn lag_s(&self, now_ms: i64) -> u64 {
        self.oldest_ms.map_or(0, |at_ms| u64::try_from(now_ms.saturating_sub(at_ms) / 1_000).unwrap_or(0))
    }
}

/// Why something could not be asked of a sink.
#[derive(Debug)]
pub enum SinkError {
    /// There is no such sink.
    NoSink(String),
    /// The store does not have it.
    Store(StoreError),
}

impl Sinks {
    /// None yet. What comes back for devices goes to the receiver; `seed` keeps two gateways from trying at the same time.
    #[must_use]
    pub fn new(store: Arc<Store>, node: String, data_dir: PathBuf, seed: u64) -> (Self, mpsc::Receiver<Order>) {
        let (devices, orders) = mpsc::channel(ORDERS_WAITING_MAX);
        (Self { store, node, data_dir, devices, seed, tell: None, threads: Mutex::default() }, orders)
    }

    /// The same; `tell` hears how far the sink `name` is.
    #[must_use]
    pub fn tell(self, name: &'static str, tell: Tell) -> Self {
        Self { tell: Some((name, tell)), ..self }
    }

    /// What [`Sinks::replace`] would change, in words.
    #[must_use]
    pub fn changes(&self, settings: &[Settings]) -> Vec<String> {
        let threads = self.lock();
        let is_wanted = |name: &&String| settings.iter().any(|settings| settings.name() == *name);
        let gone = threads.running.keys().filter(|name| !is_wanted(name));
        let gone = gone.map(|name| format!("sink {name:?}: it is gone"));
        let changed = settings.iter().filter_map(|settings| match threads.running.get(settings.name()) {
            None => Some(format!("sink {:?}: it is new", settings.name())),
            Some(there) if !there.settings.is_same(settings) => Some(format!("sink {:?}", settings.name())),
            Some(_) => None,
        });
        changed.chain(gone).collect()
    }

    /// From now on these sinks are there, with these settings. One that has changed goes on where it was; one that is gone
    /// keeps its place in the store.
    ///
    /// # Errors
    /// There is no thread for one, or the store cannot be read; those before it hold.
    pub fn replace(&self, settings: Vec<Settings>) -> io::Result<()> {
        let mut threads = self.lock();
        let Threads { running, ending } = &mut *threads;
        let wanted = |name: &String| settings.iter().any(|settings| settings.name() == name);
        // With its sender a thread loses its reason; nobody waits for it here.
        let gone = running.extract_if(.., |name, _| !wanted(name));
        ending.extend(gone.map(|(name, running)| (name, running.thread)));
        for settings in settings {
            let name = settings.name().to_owned();
            if running.get(&name).is_some_and(|there| there.settings.is_same(&settings)) {
                continue;
            }
            let (shared, before) = match running.remove(&name) {
                Some(Running { shared, thread, .. }) => (shared, Some(thread)),
                None => (self.fresh(&name)?, ending.remove(&name)),
            };
            running.insert(name, self.start(settings, shared, before)?);
        }
        ending.retain(|_, thread| !thread.is_finished());
        Ok(())
    }

    /// What is known of a sink that has not run yet.
    fn fresh(&self, name: &str) -> io::Result<Arc<Shared>> {
        let shared = Shared::default();
        let state = self.store.reader().sink(&format!("{SINK_PREFIX}{name}")).map_err(io::Error::other)?;
        shared.is_paused.store(state.is_paused, Ordering::Relaxed);
        Ok(Arc::new(shared))
    }

    /// Its thread begins when the one `before` has ended: two that go on from one cursor would send twice.
    fn start(&self, settings: Settings, shared: Arc<Shared>, before: Option<JoinHandle<()>>) -> io::Result<Running> {
        let settings = Arc::new(settings);
        let consumer = format!("{SINK_PREFIX}{}", settings.name());
        let (orders, ordered) = watch::channel(());
        let run = Run {
            settings: Arc::clone(&settings),
            store: Arc::clone(&self.store),
            letters: DeadLetters::new(&self.data_dir, settings.name(), settings.config.dead_letter_bytes),
            consumer: consumer.into(),
            node: self.node.clone(),
            shared: Arc::clone(&shared),
            devices: self.devices.clone(),
            orders: ordered,
            tell: self.tell_of(settings.name()).cloned(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let seed = self.seed;
        let work = move || {
            if let Some(before) = before {
                let _ = before.join();
            }
            let _over = runtime.block_on(async move {
                match run.settings.target {
                    Target::Http(_) => HttpRun::work(run, seed).await,
                    Target::Mqtt(_) => MqttRun::work(run, seed).await,
                    Target::Nats(_) => Box::pin(NatsRun::work(run, seed)).await,
                }
            });
        };
        let thread = thread::Builder::new().name(format!("sink-{}", settings.name())).spawn(work)?;
        Ok(Running { settings, shared, orders, thread })
    }

    /// Ends all threads; what the other sides have acknowledged by then is kept. Bounded by two seconds.
    pub fn stop(&self) {
        let Threads { running, ending } = mem::take(&mut *self.lock());
        let ending: Vec<_> = running.into_values().map(|running| running.thread).chain(ending.into_values()).collect();
        let deadline = Instant::now() + END_MAX;
        while ending.iter().any(|thread| !thread.is_finished()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// How each is, in order of names. Reads the disk.
    #[must_use]
    pub fn reports(&self) -> Vec<Report> {
        let mut backlogs: BTreeMap<_, _> =
            self.store.backlogs().into_iter().map(|backlog| (backlog.name.clone(), backlog)).collect();
        let threads = self.lock();
        let report = |(name, running): (&String, &Running)| {
            let backlog = backlogs.remove(&*format!("{SINK_PREFIX}{name}"));
            running.report(&self.store, backlog)
        };
        threads.running.iter().map(report).collect()
    }

    /// Retained messages that the fleet's sink did not write, because later ones were there.
    #[must_use]
    pub fn superseded(&self) -> u64 {
        self.lock().running.values().map(|running| running.shared.superseded.load(Ordering::Relaxed)).sum()
    }

    /// Whether there is a sink whose consumer is `consumer`.
    #[must_use]
    pub fn has(&self, consumer: &str) -> bool {
        consumer.strip_prefix(SINK_PREFIX).is_some_and(|name| self.lock().running.contains_key(name))
    }

    /// Lets it wait, or go on. Answered when that outlasts a restart.
    ///
    /// # Errors
    /// There is no such sink, or the store is closed.
    pub async fn pause(&self, name: &str, is_paused: bool) -> Result<(), SinkError> {
        let shared = self.shared(name)?;
        shared.is_paused.store(is_paused, Ordering::Relaxed);
        self.order(name);
        self.store
            .note(&format!("{SINK_PREFIX}{name}"), SinkNote::Paused(is_paused))
            .await
            .map_err(SinkError::Store)?;
        Ok(())
    }

    /// Lets it go on elsewhere. Gives back its cursor, when that is safe. One that somebody waits for is only let go back: what it would
    /// jump would count as done.
    ///
    /// # Errors
    /// There is no such sink, the store is closed, or it would be let go on past what somebody waits for.
    pub async fn seek(&self, name: &str, position: Position) -> Result<u64, SinkError> {
        let shared = self.shared(name)?;
        let consumer = format!("{SINK_PREFIX}{name}");
        let cursor = {
            let mut seeks = shared.seeks.lock().await;
            // A batch that was begun elsewhere is none here.
            self.store.note(&consumer, SinkNote::Batch(0)).await.map_err(SinkError::Store)?;
            let cursor = match self.tell_of(name) {
                Some(_) => self.store.seek_back(&consumer, position).await,
                None => self.store.seek(&consumer, position).await,
            };
            let cursor = cursor.map_err(SinkError::Store)?;
            *seeks += 1;
            cursor
        };
        self.order(name);
        Ok(cursor)
    }

    fn shared(&self, name: &str) -> Result<Arc<Shared>, SinkError> {
        let threads = self.lock();
        let found = threads.running.get(name).map(|running| Arc::clone(&running.shared));
        found.ok_or_else(|| SinkError::NoSink(name.to_owned()))
    }

    /// Who hears how far the sink `name` is.
    fn tell_of(&self, name: &str) -> Option<&Tell> {
        self.tell.as_ref().filter(|(of, _)| *of == name).map(|(_, tell)| tell)
    }

    fn order(&self, name: &str) {
        if let Some(running) = self.lock().running.get(name) {
            running.orders.send_replace(());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock().expect("no holder panics")
    }
}

impl Running {
    fn report(&self, store: &Store, backlog: Option<Backlog>) -> Report {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let state = match self.shared.phase() {
            _ if self.shared.is_paused.load(Ordering::Relaxed) => "paused",
            Phase::Running => "running",
            Phase::Retrying => "retrying",
            Phase::Blocked => "blocked",
        };
        let oldest = backlog.as_ref().and_then(|backlog| store.reader().time_after(backlog.cursor).ok().flatten());
        Report {
            name: self.settings.name().to_owned(),
            kind: self.settings.config.kind.label(),
            target: match &self.settings.target {
                Target::Http(client) => client.address().to_owned(),
                Target::Mqtt(target) => target.address(),
                Target::Nats(target) => target.address(),
            },
            state,
            error: self.shared.error(),
            oldest_ms: oldest,
            backlog,
            sent: load(&self.shared.sent),
            failed: load(&self.shared.failed),
            dead_lettered: load(&self.shared.dead_lettered),
            commands: load(&self.shared.commands),
            commands_failed: load(&self.shared.commands_failed),
        }
    }
}
