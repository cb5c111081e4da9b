//! The fleet: so many devices, on as many threads as their descriptors need, driven by orders.

mod counts;
mod device;
mod ledger;
pub mod liveness;
pub mod protocol;
mod source;
mod thread;

use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use pulsegate::link::Doorbell;
use pulsegate::tls::handshake::ClientTls;

pub use counts::{Count, Counts, Findings, histogram, record};
pub use device::Failure;
pub use ledger::{Ledger, STAMP_BYTES, Stamp};
pub use source::Sources;

use crate::clock::{Clock, Micros};
use counts::Published;
use liveness::Terms;
use protocol::DeviceProtocol;
use thread::FleetThread;

/// What all devices share.
pub struct FleetOptions {
    /// Where they connect to.
    pub target: SocketAddr,
    /// What they speak.
    pub protocol: DeviceProtocol,
    /// How they protect it.
    pub tls: ClientTls,
    /// Whether each keeps sessions of its own and resumes them.
    pub resumes: bool,
    /// Their ids are this and their number.
    pub prefix: String,
    /// How many there are.
    pub devices: u32,
    /// How many of them, the first ones, are the control group.
    pub control: u32,
    /// Connections on their way up, per thread, at most.
    pub in_flight_max: usize,
    /// How long one may be on its way up.
    pub connect_timeout: Duration,
    /// How silence is judged where the protocol does not tell.
    pub terms: Terms,
    /// Where connections come from.
    pub sources: Sources,
}

/// What the fleet is told to do. Devices are named by their numbers, `0..devices`.
#[derive(Clone)]
pub enum Order {
    /// Connects devices in the order of their numbers, the first one at `from`, `rate` of them each second.
    Connect { devices: Range<u32>, from: Micros, rate: f64 },
    /// Whether and when devices that failed or were lost come back.
    ComeBack(ComeBack),
    /// Each of these devices sends a heartbeat `every` so often from `from` on, evenly spread; the others send none.
    Beat { devices: Range<u32>, from: Micros, every: Duration },
    /// Devices publish, each message at its time, instead of heartbeats.
    Publish(Publishing),
    /// No more heartbeats, and no more messages.
    Quiet,
    /// What arrives at devices is counted here.
    Listen(Listening),
    /// Devices keep their connections and read nothing any more.
    StopReading { devices: Range<u32> },
    /// Those who do not read do so again, and are as they were before.
    Thaw,
    /// Those who do not read do so again, only to find their end.
    ResumeReading,
    /// Ends connections without a word.
    Cut { devices: Range<u32>, how: Cut },
    /// Devices keep their connections and answer nothing any more.
    Silence { devices: Range<u32> },
    /// Devices live and leave by chance.
    Churn(Churn),
    /// Nobody leaves by chance any more.
    Stay,
    /// Devices leave politely and stay away.
    Leave { devices: Range<u32> },
    /// Hands over what was found, and begins anew.
    Collect(Sender<Findings>),
    /// The end.
    Stop,
}

/// Messages from devices: the `round`th one of the `n`th publisher is due at `from + every x (round + n / publishers)`.
#[derive(Clone)]
pub struct Publishing {
    /// Who publishes.
    pub devices: Range<u32>,
    pub from: Micros,
    /// Between two messages of one device.
    pub every: Duration,
    /// Messages of each device.
    pub rounds: u32,
    /// Under which topic.
    pub topic: Arc<str>,
    /// The length of each payload, in bytes.
    pub bytes: usize,
    /// Where acknowledgements are counted; `None`: none is asked for.
    pub acknowledged: Option<Arc<Ledger>>,
}

impl Publishing {
    /// When the `round`th message of `device` is due.
    pub fn due(&self, device: u32, round: u64) -> Micros {
        let every = u128::from(crate::clock::micros(self.every));
        let (position, all) = (u128::from(device - self.devices.start), self.devices.len().max(1) as u128);
        self.from + (every * u128::from(round) + every * position / all) as Micros
    }
}

/// How messages that arrive at devices are counted.
#[derive(Clone)]
pub struct Listening {
    pub ledger: Arc<Ledger>,
    pub whose: Whose,
}

/// Which messages a device may get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// Its own: each message is for one device.
    Own,
    /// Everybody's: each message goes to all devices, and counts for each of them.
    ToAll,
    /// Everybody's, once: each message comes from one device and goes to whoever listens.
    FromAny,
}

/// Whether and when devices come back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ComeBack {
    /// Never.
    Never,
    /// Almost at once: a failed attempt is repeated after 50 ms.
    AtOnce,
    /// After a random part of a span that doubles with each failure (full jitter).
    BackOff(Duration),
}

/// How connections are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// TCP says that it is over.
    Fin,
    /// TCP is torn down.
    Reset,
}

/// How devices come and go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Churn {
    /// How long they stay, on average (exponentially spread).
    pub life: Duration,
    /// How long they stay away, on average.
    pub pause: Duration,
    /// The share that leaves with a goodbye; the others tear the connection down.
    pub polite: f64,
}

/// The running fleet.
pub struct Fleet {
    threads: Vec<Handle>,
}

struct Handle {
    orders: Sender<Order>,
    bell: Arc<Doorbell>,
    published: Arc<Published>,
    join: JoinHandle<()>,
}

impl Fleet {
    /// Starts `thread_count` threads, each with a descriptor table of its own. To be called from the main thread.
    pub fn start(options: FleetOptions, thread_count: u32, clock: Clock) -> io::Result<Fleet> {
        let options = Arc::new(options);
        let mut handles = Vec::new();
        for number in 0..thread_count {
            let (orders, inbox) = channel();
            let bell = Arc::new(Doorbell::new()?);
            let published = Arc::new(Published::default());
            let parts = (Arc::clone(&options), Arc::clone(&bell), Arc::clone(&published));
            let join = std::thread::Builder::new().name(format!("fleet-{number}")).spawn(move || {
                let (options, bell, published) = parts;
                let thread = FleetThread::new(number, thread_count, options, clock, inbox, bell, published);
                // A thread that cannot have its own epoll and timer has nothing to go on with.
                thread.expect("a thread of the fleet could not be set up").run();
            })?;
            handles.push(Handle { orders, bell, published, join });
        }
        Ok(Fleet { threads: handles })
    }

    /// Tells every thread.
    pub fn order(&self, order: &Order) {
        for thread in &self.threads {
            // A thread that has ended by a panic is found when it is joined.
            let _ = thread.orders.send(order.clone());
            let _ = thread.bell.ring();
        }
    }

    /// All threads' counts.
    pub fn counts(&self) -> Counts {
        let mut total = Counts::default();
        self.threads.iter().for_each(|thread| thread.published.add_to(&mut total));
        total
    }

    /// The CPU time of each thread, in microseconds.
    pub fn cpu_micros(&self) -> Vec<u64> {
        let of = |thread: &Handle| {
            let mut counts = Counts::default();
            thread.published.add_cpu_to(&mut counts);
            counts.get(Count::CpuMicros)
        };
        self.threads.iter().map(of).collect()
    }

    /// What all threads found since the last time.
    pub fn collect(&self) -> Findings {
        let (sender, receiver) = channel();
        self.order(&Order::Collect(sender));
        let mut all = Findings::new();
        for findings in receiver {
            all.merge(&findings);
        }
        all
    }

    /// Ends all threads; their connections end with them.
    ///
    /// # Panics
    /// When a thread has panicked.
    pub fn stop(self) {
        self.order(&Order::Stop);
        for thread in self.threads {
            thread.join.join().expect("a thread of the fleet has panicked");
        }
    }
}
