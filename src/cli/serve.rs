//! `serve`: arguments to configuration to a running gateway.

use std::net::TcpListener;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use pulsegate::config::{Config, DEVELOPMENT_CERTIFICATES, Drain, Machine};
use pulsegate::connection::ListenerSettings;
use pulsegate::control::{Clock, Control, Parts};
use pulsegate::gateway::log::{Log, Weight};
use pulsegate::link::{Home, ListenerId};
use pulsegate::tls::certs::development::{self, DevelopmentCerts};
use pulsegate::tls::handshake::{ServerTls, self_test};
use pulsegate::worker::{self, Setup, Workers};

use super::arguments::Serve;
use super::signals::Signals;
use super::supervisor::{END_MAX, Supervisor};
use super::{
    CliError, complaint, files, load_configuration, logging, raise_descriptor_limit, refuse, startup, write_out,
};

/// The device for which the built-in configuration has a client certificate.
const DEVELOPMENT_DEVICE: &str = "device-1";
/// The exit code after a second signal: connections were cut.
const EXIT_AT_ONCE: i32 = 130;
/// The exit code when the end would not come by itself.
const EXIT_TOO_LATE: i32 = 1;
/// How long the start-up message may take.
const PRINTING_MAX: Duration = Duration::from_secs(1);

/// Runs the gateway until it is told to end.
pub fn serve(options: &Serve) -> ExitCode {
    let log = match logging::start(options) {
        Ok(log) => log,
        Err(error) => return refuse(&error),
    };
    let ended = run(options, &log);
    if let Err(error) = &ended {
        log.push(format!("{}\n", complaint(error)).as_bytes(), Weight::Important);
    }
    log.flush(logging::LAST_LINES);
    if ended.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run(options: &Serve, log: &Log) -> Result<(), CliError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| CliError::Run(format!("signals cannot be waited for: {error}")))?;
    // Before anything takes time: from here on only the two that should end the process do.
    let signals = runtime
        .block_on(async { Signals::hear() })
        .map_err(|error| CliError::Run(format!("signals cannot be waited for: {error}")))?;
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

    let gateway = Gateway::start(&loaded.config, tls, log)?;
    let message =
        startup::message(&loaded, &gateway.workers.addresses, gateway.control.admin_addr(), development.as_ref());
    print_if_somebody_reads(message);
    for (listener, address) in loaded.config.listeners.iter().zip(&gateway.workers.addresses) {
        tracing::info!(listener = listener.name, protocol = listener.protocol.label(), %address, "listening");
    }
    tracing::info!(address = %gateway.control.admin_addr(), "admin listening");
    runtime.block_on(gateway.run(loaded.config.drain, signals, log))
}

/// The start-up message is for people. Whoever has closed stdout, or never empties it, stops nothing.
fn print_if_somebody_reads(message: String) {
    let (printed, wait) = std::sync::mpsc::channel();
    let writer = move || {
        // Nobody is told when it comes too late.
        let _ = printed.send(write_out(&message));
    };
    let thread = std::thread::Builder::new().name("stdout".into()).spawn(writer);
    match thread.map(|_| wait.recv_timeout(PRINTING_MAX)) {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => tracing::warn!(%error, "the start-up message could not be printed"),
        Ok(Err(_)) => tracing::warn!("nobody reads the start-up message"),
        Err(error) => tracing::warn!(%error, "there is no thread for the start-up message"),
    }
}

/// Both planes, running.
struct Gateway {
    workers: Workers,
    control: Control,
}

impl Gateway {
    /// Starts the workers, then the control plane; returns when both listen.
    fn start(config: &Config, tls: Vec<ServerTls>, log: &Log) -> Result<Self, CliError> {
        let clock = Clock { started: Instant::now(), started_at: SystemTime::now() };
        let since_1970 = clock.started_at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let admin = TcpListener::bind(config.admin.listen).map_err(|error| {
            CliError::Run(format!("cannot listen on {} (admin.listen): {error}", config.admin.listen))
        })?;
        let mut settings = Vec::with_capacity(tls.len());
        for (position, (listener, tls)) in config.listeners.iter().zip(tls).enumerate() {
            self_test(&tls).map_err(|error| CliError::Run(format!("listener {:?}: {error}", listener.name)))?;
            settings.push(ListenerSettings::new(ListenerId(position as u8), listener, &config.limits, tls));
        }
        let home = Home::new(random()?, config.workers);
        let setup = Setup {
            config,
            settings: settings.into(),
            home,
            started: clock.started,
            seed: u64::from_ne_bytes(random()?),
        };
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
            log_lines_lost: log.lost(),
        })
        .map_err(|error| CliError::Run(format!("the control plane cannot start: {error}")))?;
        Ok(Self { workers, control })
    }

    /// Runs until a signal: the first ends the gateway in order, a second at once. It is over within `drain.window` and
    /// [`END_MAX`], whatever hangs.
    async fn run(mut self, drain: Drain, mut signals: Signals, log: &Log) -> Result<(), CliError> {
        let mut supervisor = Supervisor::new(self.workers.published.clone());
        // Only now: whoever is told that the gateway is ready may end it.
        Supervisor::ready();
        let mut ticks = tokio::time::interval(supervisor.interval());
        loop {
            tokio::select! {
                () = signals.end() => break,
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
        let ended = std::thread::Builder::new().name("ending".into());
        let (tell, mut ended_too) = tokio::sync::oneshot::channel();
        ended
            .spawn(move || {
                self.workers.shut_down(drain.window);
                self.control.shutdown();
                // Nobody waits any more only where the end has taken too long.
                let _ = tell.send(());
            })
            .map_err(|error| CliError::Run(format!("there is no thread for the end: {error}")))?;
        let too_long = tokio::time::sleep(drain.window + END_MAX);
        tokio::pin!(too_long);
        loop {
            tokio::select! {
                ended = &mut ended_too => {
                    tracing::info!("ended");
                    return ended.map_err(|_| CliError::Run("a worker has failed; its account is in the log".to_owned()));
                }
                _ = ticks.tick() => supervisor.feed(Instant::now()),
                () = signals.end() => end_at_once(log, EXIT_AT_ONCE),
                () = &mut too_long => {
                    tracing::error!("the end takes too long: what is still there is cut off");
                    end_at_once(log, EXIT_TOO_LATE);
                }
            }
        }
    }
}

/// Ends the process with whatever still runs, but for the last lines of the log.
fn end_at_once(log: &Log, code: i32) -> ! {
    log.flush(logging::LAST_LINES);
    std::process::exit(code)
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
