//! The gateway as a whole: both planes, started together, changed under way, and ended in order.
//!
//! ```text
//! Source ── read and proven ──▶ Prepared ──▶ Gateway::start ──▶ workers, control plane
//!   ▲                                │
//!   └── file changed, SIGHUP, API ── Reloader ── what differs ──▶ one swap (D10)
//! ```

pub mod log;

mod blocks;
mod deny;
mod difference;
mod error;
mod files;
mod kept;
mod reload;
mod watch;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Sender, bounded};

use crate::config::budget::MemoryBudget;
use crate::config::{Config, DEVELOPMENT_CERTIFICATES, Listener};
use crate::connection::{ListenerSettings, Port};
use crate::control::{ChainFacts, Clock, Control, ControlParts, Inventory, OpenStore, ReloadRequest, epoch};
use crate::link::{DenyList, Home, ListenerId};
use crate::metrics::Published;
use crate::store::{self, StoreError};
use crate::tls::certs::development::{self, DevelopmentCerts};
use crate::tls::handshake::ServerTls;
use crate::worker::{self, StartError, WorkerOptions, Workers};
use blocks::BlocksFile;
use deny::Denied;
pub use error::{GatewayError, Problems};
pub use files::{Prepared, Source};
use log::Log;
use reload::{Reloader, Running};

/// The device for which the built-in configuration has a client certificate.
const DEVELOPMENT_DEVICE: &str = "device-1";

/// Both planes, running.
pub struct Gateway {
    workers: Workers,
    control: Control,
    stop_reloader: Sender<()>,
    reloader: std::thread::JoinHandle<()>,
}

impl Gateway {
    /// Starts the workers, then the control plane; returns when both listen. From then on `source` is watched. To be
    /// called from the main thread, as [`worker::start`] is.
    ///
    /// # Errors
    /// [`GatewayError`]: an address that is taken, a store that cannot be used, or what the system does not give. A store
    /// that is damaged is refused, or with `accept_data_loss` moved aside for an empty one.
    pub fn start(source: Source, prepared: Prepared, accept_data_loss: bool, log: &Log) -> Result<Self, GatewayError> {
        let Prepared { loaded, materials, sinks, fleet, api, denied, seen } = prepared;
        let api_tls = api.as_ref().map(|api| api.tls.clone());
        let inventory = inventory(&loaded.budget, materials.iter().map(|material| &material.tls));
        let config = Arc::new(loaded.config);
        let started = Instant::now();
        let (epoch, unkept) = epoch::next(&config.data_dir, SystemTime::now());
        if let Some(error) = unkept {
            tracing::warn!(%error, data_dir = %config.data_dir.display(), "the epoch is not kept: with a clock set back it goes back");
        }
        let admin = TcpListener::bind(config.admin.listen).map_err(|error| admin_taken(&config, &error))?;
        // Before anything listens: whoever is answered may rely on it.
        let (home, clock) = (Home::new(random()?, config.workers), Arc::new(Clock::new(started)));
        let store = open_store(&config, accept_data_loss, &clock)?;
        let blocks_file = BlocksFile::of(&config.data_dir);
        let denied = Denied::new(started, denied, blocks_file.read().map_err(GatewayError::Start)?);
        let running = Running::begin(Arc::clone(&config), materials, api, denied);
        let setup = WorkerOptions {
            config: &config,
            settings: running.settings(),
            home,
            started,
            seed: u64::from_ne_bytes(random()?),
            address_key: random()?,
        };
        let kept = store.as_ref().map(|open| kept::read(&open.store, &config, home, &clock)).transpose();
        let kept = kept.map_err(|error| GatewayError::Start(error.to_string()))?;
        let workers = worker::start(&setup, kept).map_err(|error| not_started(&error))?;
        if let Some(open) = &store {
            let connected = open.store.connect(workers.mailboxes.clone());
            connected.map_err(|error| GatewayError::Start(error.to_string()))?;
        }
        let control = Control::start(ControlParts {
            config,
            inventory,
            home,
            mailboxes: workers.mailboxes.clone(),
            uplink: workers.uplink.clone(),
            exchange: Arc::clone(&workers.exchange),
            published: workers.published.clone(),
            listeners: workers.addresses.clone(),
            clock,
            epoch,
            admin,
            api_tls,
            log_lines_lost: log.lost(),
            store,
            sinks,
            fleet: fleet.map(|fleet| random().map(|seed| (fleet, u64::from_ne_bytes(seed)))).transpose()?,
        })
        .map_err(|error| GatewayError::Start(format!("the control plane cannot start: {error}")))?;
        let (stop_reloader, stopped) = bounded(1);
        let reloader = Reloader::new(source, running, blocks_file, seen, workers.policy.clone(), control.policy());
        let (asked, blocks) = (control.reload_requests().clone(), control.block_requests().clone());
        let reloader = std::thread::Builder::new()
            .name("reload".into())
            .spawn(move || reloader.run(&asked, &blocks, &stopped))
            .map_err(|error| GatewayError::Start(format!("there is no thread for reloads: {error}")))?;
        Ok(Self { workers, control, stop_reloader, reloader })
    }

    /// Where the listeners really listen, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.workers.addresses
    }

    /// Where the HTTP API really listens.
    #[must_use]
    pub fn admin_addr(&self) -> SocketAddr {
        self.control.admin_addr()
    }

    /// Copies of the workers' counters, by worker.
    #[must_use]
    pub fn published(&self) -> &[Arc<Published>] {
        &self.workers.published
    }

    /// Asks for a reload; nobody waits for its outcome, which is in the log.
    pub fn reload(&self) {
        self.control.policy().request_reload(ReloadRequest::by_signal());
    }

    /// Over how long the goodbyes are to be spread, as it is configured by now.
    #[must_use]
    pub fn drain_window(&self) -> Duration {
        self.control.policy().config().drain.window
    }

    /// Whether a worker has ended though nobody asked it to: it has panicked.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.workers.has_failed()
    }

    /// Whether the store has failed: nothing is acknowledged any more, and the gateway must end.
    #[must_use]
    pub fn store_has_failed(&self) -> bool {
        self.control.has_failed()
    }

    /// The first step of the end: new devices are sent elsewhere.
    pub fn begin_shutdown(&self) {
        self.control.begin_shutdown();
    }

    /// Ends every connection in order, the goodbyes spread over `window`, then both planes.
    pub fn shut_down(self, window: Duration) {
        let Self { mut workers, control, stop_reloader, reloader } = self;
        // It may be gone only because it panicked.
        let _ = stop_reloader.send(());
        control.settle_sessions();
        workers.shut_down(window);
        control.shutdown();
        // It logs its own panics, and whoever has come this far does not need it.
        let _ = reloader.join();
    }
}

/// What holds for the connections of each listener.
fn settings_of(
    config: &Config,
    tls: impl IntoIterator<Item = ServerTls>,
    deny: &Arc<DenyList>,
) -> Arc<[ListenerSettings]> {
    let settings = |(position, (listener, tls)): (usize, (&Listener, ServerTls))| {
        let settings = ListenerSettings::new(ListenerId(position as u8), listener, &config.limits, tls);
        settings.with_port(Port::of(&config.listeners, position)).with_deny(Arc::clone(deny))
    };
    config.listeners.iter().zip(tls).enumerate().map(settings).collect()
}

/// Opens the store. One that is damaged is refused, or with `accept_data_loss` moved aside for an empty one.
fn open_store(config: &Config, accept_data_loss: bool, clock: &Arc<Clock>) -> Result<Option<OpenStore>, GatewayError> {
    let failed = |error: StoreError| GatewayError::Start(error.to_string());
    match OpenStore::open(config, Arc::clone(clock)) {
        Err(StoreError::Damaged { path, what }) if accept_data_loss => {
            let aside = store::move_aside(&config.data_dir).map_err(failed)?;
            let (path, aside) = (path.display(), aside.display());
            tracing::warn!(%path, what, %aside, "the store was damaged: it was moved aside, an empty one is begun");
            OpenStore::open(config, Arc::clone(clock)).map_err(failed)
        }
        opened => opened.map_err(failed),
    }
}

fn admin_taken(config: &Config, error: &io::Error) -> GatewayError {
    let address = config.admin.listen;
    let what = format!("cannot listen on {address} (admin.listen): {error}");
    GatewayError::Start(what + how_to_move(error))
}

fn not_started(error: &StartError) -> GatewayError {
    let remedy = match error {
        StartError::Listen { error, .. } => how_to_move(error),
        StartError::System(..) => "",
    };
    GatewayError::Start(format!("{error}{remedy}"))
}

/// What to do about an address that cannot be had.
fn how_to_move(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            ": another program listens there (`ss -ltnp` shows which): end it, or write another port; without a \
             configuration, take deploy/pulsegate.toml and give it with --config"
        }
        io::ErrorKind::AddrNotAvailable => {
            ": no network interface has this address: write one of this machine's, or 0.0.0.0"
        }
        io::ErrorKind::PermissionDenied => {
            ": ports below 1024 need CAP_NET_BIND_SERVICE: write a higher one, or give it to the program"
        }
        _ => "",
    }
}

fn random<const N: usize>() -> Result<[u8; N], GatewayError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| GatewayError::Start("the system has no randomness".to_owned()))?;
    Ok(bytes)
}

/// What the API shows of the files of a configuration with this budget: `tls` is what was made of each listener's.
fn inventory<'a>(budget: &MemoryBudget, tls: impl Iterator<Item = &'a ServerTls>) -> Inventory {
    let chains = |tls: &ServerTls| {
        let policy = tls.policy();
        let facts = policy.chains_names().zip(policy.chains_not_after());
        facts.map(|(names, not_after)| ChainFacts { names: names.to_vec(), not_after }).collect()
    };
    Inventory { certificates: tls.map(chains).collect(), memory_budget: budget.user_bytes() }
}

/// The certificates that the built-in configuration names, made where they are missing.
///
/// # Errors
/// [`GatewayError::Development`].
pub fn development_certificates(config: &Config) -> Result<DevelopmentCerts, GatewayError> {
    let directory = config.data_dir.join(Path::new(DEVELOPMENT_CERTIFICATES));
    Ok(development::ensure(&directory, &[DEVELOPMENT_DEVICE], SystemTime::now())?)
}
