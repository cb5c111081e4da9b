//! `serve`: arguments to configuration to a running gateway.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use pulsegate::config::Machine;
use pulsegate::gateway::log::{Log, Weight};
use pulsegate::gateway::{self, Gateway, Source};

use super::arguments::Serve;
use super::signals::{Signals, Told};
use super::supervisor::{END_MAX, Supervisor};
use super::{CliError, complaint, logging, raise_descriptor_limit, refuse, startup, write_out};

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
    let source = Source { file: options.config.clone(), machine: Machine::detect(raise_descriptor_limit()) };
    let loaded = source.load()?;
    let development = match &source.file {
        Some(_) => None,
        None => Some(gateway::development_certificates(&loaded.config)?),
    };
    let prepared = source.prepare_files(loaded)?;
    let loaded = prepared.loaded.clone();
    let gateway = Gateway::start(source, prepared, options.accept_data_loss, log)?;
    let message = startup::message(&loaded, gateway.addresses(), gateway.admin_addr(), development.as_ref());
    print_if_somebody_reads(message);
    for (listener, address) in loaded.config.listeners.iter().zip(gateway.addresses()) {
        tracing::info!(listener = listener.name, protocol = listener.protocol.label(), %address, "listening");
    }
    tracing::info!(address = %gateway.admin_addr(), "admin listening");
    runtime.block_on(attend(gateway, signals, log))
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

/// Stands by the gateway until a signal: the first that ends it does so in order, a second at once. It is over within
/// `drain.window` and [`END_MAX`], whatever hangs.
async fn attend(gateway: Gateway, mut signals: Signals, log: &Log) -> Result<(), CliError> {
    let mut supervisor = Supervisor::new(gateway.published().to_vec());
    // Only now: whoever is told that the gateway is ready may end it.
    supervisor.ready();
    let mut ticks = tokio::time::interval(supervisor.interval());
    loop {
        tokio::select! {
            told = signals.next() => match told {
                Told::End => break,
                Told::Reload => gateway.reload(),
                Told::Nothing(name) => {
                    tracing::info!(signal = name, "a signal that means nothing to the gateway: it goes on");
                }
            },
            _ = ticks.tick() => {
                supervisor.feed(Instant::now());
                if gateway.has_failed() {
                    return Err(worker_failed());
                }
                if gateway.store_has_failed() {
                    let what = "the store has failed and nothing is acknowledged any more; its account is in the log";
                    return Err(CliError::Run(what.to_owned()));
                }
            }
        }
    }
    tracing::info!("ending: every connection is told; a second signal ends at once");
    let window = gateway.drain_window();
    gateway.begin_shutdown();
    supervisor.stopping(window);
    let (tell, mut ended) = tokio::sync::oneshot::channel();
    let end = move || {
        gateway.shut_down(window);
        // Nobody waits any more only where the end has taken too long.
        let _ = tell.send(());
    };
    std::thread::Builder::new()
        .name("ending".into())
        .spawn(end)
        .map_err(|error| CliError::Run(format!("there is no thread for the end: {error}")))?;
    let too_long = tokio::time::sleep(window + END_MAX);
    tokio::pin!(too_long);
    loop {
        tokio::select! {
            ended = &mut ended => {
                tracing::info!("ended");
                return ended.map_err(|_| worker_failed());
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

fn worker_failed() -> CliError {
    CliError::Run("a worker has failed; its account is in the log".to_owned())
}

/// Ends the process with whatever still runs, but for the last lines of the log.
fn end_at_once(log: &Log, code: i32) -> ! {
    log.flush(logging::LAST_LINES);
    std::process::exit(code)
}
