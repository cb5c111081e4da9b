//! The gateway under measurement: its worker in this process, or a built program as a process of its own.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pulsegate::link::Home;
use pulsegate::worker::{self, WorkerOptions, Workers};

use super::threads::Threads;
use crate::fixtures::Deployment;

/// How long a program may take until it listens.
const START: Duration = Duration::from_secs(20);

/// One of the two.
pub(super) enum Gateway {
    Here { workers: Workers, threads: Vec<u32> },
    Program { child: Child, address: SocketAddr },
}

impl Gateway {
    /// Starts it with the deployment's configuration, and returns when it listens.
    pub(super) fn start(deployment: &Deployment, program: Option<&Path>) -> Self {
        let config = deployment.config();
        let Some(program) = program else {
            let before = Threads::present();
            let home = Home::new([7; 16], config.workers);
            let setup = WorkerOptions {
                config: &config,
                settings: deployment.settings(),
                home,
                started: Instant::now(),
                seed: 7,
                address_key: [7; 16],
            };
            let workers = worker::start(&setup, None).expect("the gateway's worker starts");
            let named_worker = |id: &u32| {
                let name = std::fs::read_to_string(format!("/proc/self/task/{id}/comm")).unwrap_or_default();
                !before.contains(id) && name.starts_with("worker-")
            };
            let threads = Threads::present().into_iter().filter(named_worker).collect();
            return Gateway::Here { workers, threads };
        };
        let mut command = Command::new(program);
        command.arg("serve").arg("--config").arg(deployment.file());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().unwrap_or_else(|error| panic!("{} cannot be run: {error}", program.display()));
        let mut gateway = Gateway::Program { child, address: config.listeners[0].listen };
        gateway.await_listening(program);
        gateway
    }

    fn await_listening(&mut self, program: &Path) {
        let Gateway::Program { child, address } = self else { return };
        let began = Instant::now();
        while TcpStream::connect(*address).is_err() {
            if let Ok(Some(status)) = child.try_wait() {
                panic!("{} has ended at its start: {status}", program.display());
            }
            assert!(began.elapsed() < START, "{} does not listen after {START:?}", program.display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(super) fn name(&self) -> &'static str {
        match self {
            Gateway::Here { .. } => "pulsegate, its worker",
            Gateway::Program { .. } => "pulsegate, the whole process",
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        match self {
            Gateway::Here { workers, .. } => workers.addresses[0],
            Gateway::Program { address, .. } => *address,
        }
    }

    pub(super) fn threads(&self) -> Threads {
        match self {
            Gateway::Here { threads, .. } => Threads::Own(threads.clone()),
            Gateway::Program { child, .. } => Threads::Process(child.id()),
        }
    }

    /// Takes what the worker has said, as the control plane would.
    pub(super) fn drain(&self) {
        if let Gateway::Here { workers, .. } = self {
            while workers.uplink.events.try_recv().is_ok() {}
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        match self {
            Gateway::Here { workers, .. } => {
                // Their clients are gone by now, and what they still have to say fits in their uplink.
                while workers.uplink.events.try_recv().is_ok() {}
                workers.shut_down(Duration::ZERO);
            }
            Gateway::Program { child, .. } => {
                // It has nothing to lose, and its clients are gone.
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// A port of the loopback address at which nobody listens. Below those that the kernel gives to clients.
pub(super) fn free_port() -> u16 {
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let drawn = (0..200).map(|_| fastrand::u16(20_000..32_000));
    drawn.into_iter().find(free).expect("a free port among thousands")
}
