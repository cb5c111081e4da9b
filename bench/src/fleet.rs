//! The turns of one worker full of devices, over memory instead of sockets, and what the devices would answer: in the same
//! thread and under a clock that goes by hand.

use std::sync::Arc;
use std::time::Duration;

use pulsegate::broker;
use pulsegate::codec::native::{self, BODY_MAX, Frame};
use pulsegate::config::Limits;
use pulsegate::connection::{Input, ListenerSettings};
use pulsegate::link::{ConnectionId, Exchange, Home, WorkerId};
use pulsegate::shard::{self, Shard};
use pulsegate::slot::ConnectionSlot;
use pulsegate::time::{Moment, TICK_MICROS};
use pulsegate::tls::record::{Opened, RecordLayer, next_record};
use pulsegate::turn::{Bounds, Turn};

use crate::fixtures::{Deployment, INTERVAL_SECONDS, SUITE, device_id, image, record_pair};
use crate::memory_io::{Arrivals, MemoryIo, memory_turn};

/// Devices that come in together.
const ARRIVALS: u32 = 1_024;
/// From where they come: no worker of this gateway.
const OUTSIDE: WorkerId = WorkerId(1);
/// What one device answers to one probe, from the probe's record to the gateway's read.
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// A worker without devices: its turns, and those that are on their way to it.
pub struct Host {
    turn: Turn<MemoryIo>,
    arriving: Arrivals,
}

impl Host {
    /// The one worker of its gateway, whose world has room for so many `sockets`.
    pub fn new(settings: Arc<[ListenerSettings]>, sockets: u32) -> Self {
        let bounds = Bounds::default();
        let now = Moment::from_micros(1_000_000);
        let mut io = MemoryIo::new(1, settings.len(), bounds.events, now);
        io.reserve(sockets as usize);
        let setup = shard::ShardOptions {
            worker: WorkerId(0),
            home: Home::new([7; 16], 1),
            settings,
            handshakes: 1,
            uplink_length: 1 << 20,
            seed: 7,
            is_of_fleet: false,
            exchange: Arc::new(Exchange::new(1)),
            sessions: broker::Bounds::of(&Limits::default(), 1),
        };
        let turn = memory_turn(io, Shard::new(setup, now.tick()), Input::new(16_384, 16_384), bounds);
        Self { turn, arriving: Arrivals::default() }
    }

    /// One device comes, as from another worker; many at a time are taken in. Slots are given out in order.
    pub fn take_in(&mut self, number: u32, server: &RecordLayer) {
        let origin = ConnectionId { slot: ConnectionSlot(number), generation: 0 };
        self.arriving.push(origin, |out| image(&device_id(number), server, out));
        if number % ARRIVALS == ARRIVALS - 1 {
            self.settle();
        }
    }

    /// Takes in all that have come: their WELCOMEs are written. What is said to others is dropped.
    pub fn settle(&mut self) {
        let arriving = std::mem::take(&mut self.arriving);
        self.turn.io().arrive(OUTSIDE, arriving);
        self.turn_while_called();
        let io = self.turn.io();
        assert!(io.acks.iter().all(|ack| ack.taken), "an image of this version");
        (io.acks, io.up, io.opened) = (Vec::new(), Vec::new(), Vec::new());
    }

    /// What was written to devices that do not hear.
    pub fn forget_written(&mut self) {
        self.turn.io().clear_written();
    }

    /// Turns as often as a worker would without a pause.
    fn turn_while_called(&mut self) {
        loop {
            self.turn.turn();
            if !self.turn.io().has_events() && !self.turn.timeout().is_zero() {
                return;
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let io = self.turn.io();
        io.now = io.now.plus(time);
    }
}

/// A host and all its devices.
pub struct Fleet {
    host: Host,
    /// The devices' ends, by slot.
    devices: Vec<RecordLayer>,
    /// Sealed answers of devices, all in one buffer: whose each is, and where it ends.
    answers: Vec<u8>,
    ends: Vec<(ConnectionSlot, usize)>,
    step: Duration,
}

impl Fleet {
    /// `count` devices, all at home.
    pub fn new(count: u32) -> Self {
        let mut host = Host::new(Deployment::new(7_443, 7_480, INTERVAL_SECONDS).settings(), count);
        let mut random = fastrand::Rng::with_seed(11);
        let mut devices = Vec::with_capacity(count as usize);
        for number in 0..count {
            let (device, server) = record_pair(SUITE, &mut random);
            devices.push(device);
            host.take_in(number, &server);
        }
        host.settle();
        let mut welcomed = 0;
        for (slot, welcome) in host.turn.io().written() {
            assert!(matches!(open(&mut devices[slot.index()], welcome), Received::Welcome));
            welcomed += 1;
        }
        assert_eq!(welcomed, count);
        host.turn.io().clear_written();
        // Some hundred heartbeats a step, so that reading the CPU clock costs little of it; never less than a tick.
        let ticks = (256 * u64::from(INTERVAL_SECONDS) * 10 / u64::from(count)).clamp(1, 20);
        Self { host, devices, answers: Vec::new(), ends: Vec::new(), step: Duration::from_micros(ticks * TICK_MICROS) }
    }

    /// Steps in one interval: in so many, every device is probed once.
    pub fn steps(&self) -> usize {
        (Duration::from_secs(INTERVAL_SECONDS.into()).as_micros() / self.step.as_micros()) as usize
    }

    /// Lets a step of time go by and turns: whoever is due is probed. Inlined nowhere, so that it can be counted by its name.
    #[inline(never)]
    pub fn counted_probe(&mut self) {
        self.host.pass(self.step);
        self.host.turn_while_called();
    }

    /// The devices' part, which is not the gateway's cost: each opens its PING and seals a PONG. Returns how many.
    pub fn answer(&mut self) -> usize {
        let Self { host, devices, answers, ends, .. } = self;
        answers.clear();
        ends.clear();
        let io = host.turn.io();
        for (slot, record) in io.written() {
            let device = &mut devices[slot.index()];
            assert!(matches!(open(device, record), Received::Ping));
            let mut pong = Vec::new();
            Frame::Pong(&[]).encode(&mut pong);
            device.burst().seal(&pong, answers).expect("a fresh key");
            ends.push((slot, answers.len()));
        }
        io.clear_written();
        let mut start = 0;
        for &(slot, end) in &*ends {
            io.receive(slot, &answers[start..end]);
            start = end;
        }
        ends.len()
    }

    /// Every answer is there and is read. Inlined nowhere, as above.
    #[inline(never)]
    pub fn counted_hear(&mut self) {
        self.host.pass(ROUND_TRIP);
        self.host.turn_while_called();
    }

    /// Heartbeats sent and answered as the shard itself counts them.
    pub fn heartbeats(&mut self) -> (u64, u64) {
        use pulsegate::metrics::Metric;
        let counters = self.host.turn.shard().counters();
        (counters.value(Metric::HeartbeatsSent), counters.value(Metric::HeartbeatsAnswered))
    }
}

enum Received {
    Welcome,
    Ping,
    Other,
}

/// Opens one record of the gateway's, which holds one frame.
fn open(device: &mut RecordLayer, sealed: &[u8]) -> Received {
    let (mut record, mut out) = (sealed.to_vec(), Vec::new());
    let stage = pulsegate::tls::record::Stage::Protected(device.version());
    assert_eq!(next_record(&record, stage), Ok(Some(record.len())), "one record");
    let mut burst = device.burst();
    let Ok(Opened::Data(plaintext)) = burst.open(&mut record, &mut out) else { return Received::Other };
    match native::decode(plaintext, BODY_MAX) {
        Ok(Some((Frame::Welcome(_), _))) => Received::Welcome,
        Ok(Some((Frame::Ping(_), _))) => Received::Ping,
        _ => Received::Other,
    }
}
