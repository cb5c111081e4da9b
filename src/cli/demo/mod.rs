//! `demo`: a few devices of every protocol against a running gateway, so that there is something to look at. They are bounded in
//! number and in time, and end with the command.

mod device;
mod link;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

use super::arguments::Demo;
use super::client::{Client, harmless};
use super::{CliError, write_out};
use device::Plan;

/// How long the gateway may take to tell its listeners.
const ANSWER: Duration = Duration::from_secs(10);
/// Lines that may wait to be printed; whoever prints slower slows the devices down.
const LINES_MAX: usize = 256;
/// So often it is looked at whether it is over.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Lets the devices live until the time is over, there is a Ctrl-C, or none of them gets in.
pub fn demo(options: &Demo) -> Result<(), CliError> {
    let client = Client::new(&options.gateway, Some(ANSWER))?;
    let overview = client.get("/v1/overview")?;
    let tls = Tls::new(options)?;
    let plans: Vec<Plan> = each(&overview["listeners"])
        .flat_map(|listener| (1..=options.devices).filter_map(|number| Plan::new(listener, number)))
        .collect();
    if plans.is_empty() {
        return Err(CliError::Run("the gateway tells of no listener that devices could connect to".to_owned()));
    }
    let over = Arc::new(AtomicBool::new(false));
    end_in_time(Arc::clone(&over), options.span)?;
    let text = format!(
        "{} devices for {}; Ctrl-C ends them. Look at {}, or with: pulsegate top, devices, watch\n",
        plans.len(),
        humantime::format_duration(options.span),
        options.gateway.admin,
    );
    if is_closed(write_out(&text))? {
        return Ok(());
    }
    let (say, lines) = sync_channel::<String>(LINES_MAX);
    let devices: Vec<_> = plans
        .into_iter()
        .map(|plan| {
            let (tls, over, say) = (tls.clone(), Arc::clone(&over), say.clone());
            thread::spawn(move || device::live(&plan, &tls, &over, &say))
        })
        .collect();
    drop(say);
    loop {
        match lines.recv_timeout(LOOK_EVERY) {
            Ok(line) if is_closed(write_out(&format!("{}\n", harmless(&line))))? => over.store(true, Ordering::Relaxed),
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            // The last device has gone.
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let got_in = devices.into_iter().map(|device| device.join().unwrap_or(false)).filter(|got_in| *got_in).count();
    if got_in == 0 {
        return Err(CliError::Run("not one of them got in: the lines above say why".to_owned()));
    }
    Ok(())
}

/// Sets `over` on Ctrl-C or SIGTERM, or when the time is over.
fn end_in_time(over: Arc<AtomicBool>, span: Duration) -> Result<(), CliError> {
    let cannot = |error| CliError::Io("signals cannot be waited for", error);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(cannot)?;
    let (interrupt, terminate) = runtime
        .block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            Ok((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?))
        })
        .map_err(cannot)?;
    let (mut interrupt, mut terminate) = (interrupt, terminate);
    thread::spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                () = tokio::time::sleep(span) => {}
            }
        });
        over.store(true, Ordering::Relaxed);
    });
    Ok(())
}

/// Whether nobody reads any more.
fn is_closed(written: io::Result<()>) -> Result<bool, CliError> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(true),
        written => written.map(|()| false).map_err(|error| CliError::Io("stdout", error)),
    }
}

fn each(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// How a device makes sure that it speaks to the gateway.
#[derive(Clone)]
struct Tls {
    roots: Arc<RootCertStore>,
    name: ServerName<'static>,
}

impl Tls {
    fn new(options: &Demo) -> Result<Self, CliError> {
        let file = options.ca.display();
        let cannot = |error: &dyn std::fmt::Display| {
            CliError::Run(format!("{file}: {error}: --ca names the authority of the gateway's certificates"))
        };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&options.ca).map_err(|error| cannot(&error))? {
            roots.add(certificate.map_err(|error| cannot(&error))?).map_err(|error| cannot(&error))?;
        }
        if roots.is_empty() {
            return Err(cannot(&"holds no certificate"));
        }
        let name = ServerName::try_from(options.server_name.clone())
            .map_err(|error| CliError::Run(format!("--server-name {:?}: {error}", options.server_name)))?;
        Ok(Self { roots: Arc::new(roots), name })
    }

    /// What all connections of one device share: it keeps the tickets.
    fn client(&self, alpn: &[u8]) -> Arc<ClientConfig> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has suites of the default versions")
            .with_root_certificates(Arc::clone(&self.roots))
            .with_no_client_auth();
        if !alpn.is_empty() {
            config.alpn_protocols = vec![alpn.to_vec()];
        }
        Arc::new(config)
    }
}

/// Where a device tells what it lives through.
type Say = SyncSender<String>;
