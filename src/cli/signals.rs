//! What the process is told by signals: two end it, and no other does.

use std::io;
use std::task::Poll;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals whose default would be the end of the process and that people send by mistake, or out of habit: logged.
const NAMED: [(SignalKind, &str); 3] = [
    (SignalKind::user_defined1(), "SIGUSR1"),
    (SignalKind::user_defined2(), "SIGUSR2"),
    (SignalKind::alarm(), "SIGALRM"),
];

/// Further ones that a limit, a timer or a descriptor raises. They are not logged: where the log itself raises one, that
/// would never end. (SIGPIPE is ignored before `main`; SIGQUIT and SIGABRT remain for who wants an end without order.)
const SILENT: [SignalKind; 5] = [
    SignalKind::io(),
    SignalKind::from_raw(libc::SIGVTALRM),
    SignalKind::from_raw(libc::SIGPROF),
    SignalKind::from_raw(libc::SIGXCPU),
    SignalKind::from_raw(libc::SIGXFSZ),
];

/// The signals that the gateway hears from now on.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    named: Vec<(Signal, &'static str)>,
    _silent: Vec<Signal>,
}

/// What one of them means.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    /// End, in order.
    End,
    /// Read everything that is configured anew.
    Reload,
    /// Nothing; it is named for the log.
    Nothing(&'static str),
}

impl Signals {
    /// Hears them. Only within a tokio runtime.
    pub fn hear() -> io::Result<Self> {
        let named = NAMED.map(|(kind, name)| signal(kind).map(|signal| (signal, name)));
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            named: named.into_iter().collect::<io::Result<_>>()?,
            _silent: SILENT.map(signal).into_iter().collect::<io::Result<_>>()?,
        })
    }

    /// The next one.
    pub async fn next(&mut self) -> Told {
        let named = std::future::poll_fn(|context| {
            let came = self.named.iter_mut().position(|(signal, _)| signal.poll_recv(context).is_ready());
            came.map_or(Poll::Pending, |position| Poll::Ready(self.named[position].1))
        });
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Told::End,
            _ = self.interrupt.recv() => Told::End,
            _ = self.hangup.recv() => Told::Reload,
            name = named => Told::Nothing(name),
        }
    }

    /// The next one that ends; others come too late.
    pub async fn end(&mut self) {
        while self.next().await != Told::End {}
    }
}
