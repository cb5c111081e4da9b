//! `serve`: arguments to configuration to a running gateway.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use pulsegate::config::{Config, DEVELOPMENT_CERTIFICATES, Drain, Machine};
use pulsegate::connection::Rules;
use pulsegate::control::{Clock, Control, Parts};
use pulsegate::link::{Home, ListenerId};
use pulsegate::tls::certs::development::{self, DevelopmentCerts};
use pulsegate::tls::handshake::{ServerTls, self_test};
use pulsegate::worker::{self, Setup, Workers};
use tokio::signal::unix::{SignalKind, signal};

use super::arguments::Serve;
use super::supervisor::Supervisor;
use super::{CliError, files, load_configuration, logging, print, raise_descriptor_limit, startup};

/// The device for which the built-in configuration has a client certificate.
const DEVELOPMENT_DEVICE: &str = "device-1";
/// The exit code after a second signal: connections were cut.
const EXIT_AT_ONCE: i32 = 130;

/// Runs the gateway until it is told to end.
pub fn serve(options: &Serve) -> Result<(), CliError> {
    logging::start(options);
    let machine = Machine::detect(raise_descriptor_limit());
    let file = options.config.as_deref();
    let mut loaded = load_configuration(file, &machine)?;
    let development = match file {
        Some(_) => None,
        None => Some(development_certificates(&loaded.config)?),
    };
    let (tls, warnings) = files::load_certificates(&loaded.config, file)?;
    files::check_tokens(&loaded.config, file)?;
    loaded.warnings.extend(warnings);

    let gateway = Gateway::start(&loaded.config, tls)?;
    print(&startup::message(&loaded, &gateway.workers.addresses, gateway.control.admin_addr(), development.as_ref()))?;
    for (listener, address) in loaded.config.listeners.iter().zip(&gateway.workers.addresses) {
        tracing::info!(listener = listener.name, protocol = listener.protocol.label(), %address, "listening");
    }
    tracing::info!(address = %gateway.control.admin_addr(), "admin listening");
    gateway.run(loaded.config.drain)
}

/// Both planes, running.
struct Gateway {
    workers: Workers,
    control: Control,
}

impl Gateway {
    /// Starts the workers, then the control plane; returns when both listen.
    fn start(config: &Config, tls: Vec<ServerTls>) -> Result<Self, CliError> {
        let clock = Clock { started: Instant::now(), started_at: SystemTime::now() };
        let since_1970 = clock.started_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let admin = TcpListener::bind(config.admin.listen).map_err(|error| {
            CliError::Run(format!("cannot listen on {} (admin.listen): {error}", config.admin.listen))
        })?;
        let mut rules = Vec::with_capacity(tls.len());
        for (position, (listener, tls)) in config.listeners.iter().zip(tls).enumerate() {
            self_test(&tls).map_err(|error| CliError::Run(format!("listener {:?}: {error}", listener.name)))?;
            rules.push(Rules::new(ListenerId(position as u8), listener, &config.limits, tls));
        }
        let home = Home::new(random()?, config.workers);
        let setup =
            Setup { config, rules: rules.into(), home, started: clock.started, seed: u64::from_ne_bytes(random()?) };
        let workers = worker::start(&setup).map_err(|error| CliError::Run(error.to_string()))?;
        let control = Control::start(Parts {
            config: Arc::new(config.clone()),
            home,
            mailboxes: workers.mailboxes.clone(),
            uplink: workers.uplink.clone(),
            published: workers.published.clone(),
            listeners: workers.addresses.clone(),
            clock,
            epoch: since_1970.as_millis() as u64,
            admin,
        })
        .map_err(|error| CliError::Run(format!("the control plane cannot start: {error}")))?;
        Ok(Self { workers, control })
    }

    /// Runs until a signal: the first ends the gateway in order, a second at once.
    fn run(mut self, drain: Drain) -> Result<(), CliError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| CliError::Run(format!("signals cannot be waited for: {error}")))?;
        let mut supervisor = Supervisor::new(self.workers.published.clone());
        runtime.block_on(async {
            let signals =
                || -> std::io::Result<_> { Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?)) };
            let (mut terminate, mut interrupt) =
                signals().map_err(|error| CliError::Run(format!("signals cannot be waited for: {error}")))?;
            // Only now: whoever is told that the gateway is ready may end it.
            Supervisor::ready();
            let mut ticks = tokio::time::interval(supervisor.interval());
            loop {
                tokio::select! {
                    _ = terminate.recv() => break,
                    _ = interrupt.recv() => break,
                    _ = ticks.tick() => {
                        supervisor.feed(Instant::now());
                        if self.workers.has_failed() {
                            return Err(CliError::Run("a worker has failed; its account is in the log".to_owned()));
                        }
                    }
                }
            }
            tracing::info!("ending: every connection is told; a second signal ends at once");
            self.control.begin_shutdown();
            supervisor.stopping(drain.window);
            let mut ended = tokio::task::spawn_blocking(move || {
                self.workers.shut_down(drain.window);
                self.control.shutdown();
            });
            loop {
                tokio::select! {
                    ended = &mut ended => {
                        tracing::info!("ended");
                        return ended
                            .map_err(|_| CliError::Run("a worker has failed; its account is in the log".to_owned()));
                    }
                    _ = ticks.tick() => supervisor.feed(Instant::now()),
                    _ = terminate.recv() => std::process::exit(EXIT_AT_ONCE),
                    _ = interrupt.recv() => std::process::exit(EXIT_AT_ONCE),
                }
            }
        })
    }
}

fn random<const N: usize>() -> Result<[u8; N], CliError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| CliError::Run("the system has no randomness".to_owned()))?;
    Ok(bytes)
}

/// The certificates that the built-in configuration names, made where they are missing.
fn development_certificates(config: &Config) -> Result<DevelopmentCerts, CliError> {
    let directory = config.data_dir.join(Path::new(DEVELOPMENT_CERTIFICATES));
    Ok(development::ensure(&directory, &[DEVELOPMENT_DEVICE], SystemTime::now())?)
}
