//! One shard full of devices, driven without sockets: what the worker would do for it, and what the devices would
//! answer, in the same thread and under a clock that goes by hand.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use pulsegate::broker;
use pulsegate::codec::native::{self, BODY_MAX, Frame};
use pulsegate::config::Limits;
use pulsegate::connection::{Input, ListenerSettings};
use pulsegate::link::{Exchange, Home, WorkerId};
use pulsegate::shard::{self, Plan, Shard, Transmit};
use pulsegate::time::{Moment, TICK_MICROS};
use pulsegate::tls::record::{Opened, RecordLayer, next_record};

use crate::fixtures::{Deployment, INTERVAL_SECONDS, SUITE, device_id, image, record_pair};

/// Deadlines of one turn, as the worker bounds them.
const DEADLINES: usize = 1_024;
/// Devices that come in before their presence events are taken away, as the worker does with its batches.
const ARRIVALS: u32 = 1_024;
/// What one device answers to one probe, from the probe's record to the gateway's read.
const ROUND_TRIP: Duration = Duration::from_millis(20);

/// A shard without devices, and the memory that its worker would lend it.
pub struct Host {
    pub shard: Shard,
    input: Input,
    transmit: Transmit,
    ready: VecDeque<u32>,
    suspects: Vec<u32>,
    now: Moment,
}

impl Host {
    /// The one shard of its gateway.
    pub fn new(settings: Arc<[ListenerSettings]>) -> Self {
        let setup = shard::Setup {
            worker: WorkerId(0),
            home: Home::new([7; 16], 1),
            settings,
            handshakes: 1,
            uplink_length: 1 << 20,
            seed: 7,
            exchange: Arc::new(Exchange::new(1)),
            sessions: broker::Bounds::of(&Limits::default(), 1),
        };
        let now = Moment::from_micros(1_000_000);
        Self {
            shard: Shard::new(setup, now.tick()),
            input: Input::new(16_384, 16_384),
            transmit: Transmit::default(),
            ready: VecDeque::new(),
            suspects: Vec::new(),
            now,
        }
    }

    /// Takes one device in, as if it had come from another worker. Its WELCOME is sealed.
    pub fn take_in(&mut self, number: u32, server: &RecordLayer, scratch: &mut Vec<u8>) {
        scratch.clear();
        image(&device_id(number), server, scratch);
        let index = self.shard.unpack(scratch, self.now).expect("an image of this version");
        assert_eq!(index, number, "slots are given out in order");
        self.shard.handle_arrival(index, self.now);
    }

    /// Ends the turn in which devices came: what is left of it is dropped or, if it is for devices, handed to `deliver`.
    pub fn settle(&mut self, mut deliver: impl FnMut(u32, &[u8])) {
        self.shard.uplink().clear();
        self.shard.take_ready(&mut self.ready);
        self.ready.clear();
        self.shard.take_transmit(&mut self.transmit);
        for (index, bytes) in self.transmit.segments() {
            deliver(index, bytes);
        }
        self.transmit.clear();
    }

    /// The half of a turn that probes: every deadline up to now.
    fn probe(&mut self) {
        while self.shard.handle_deadlines(self.now.tick(), self.now, DEADLINES, &mut self.suspects) {}
        assert!(self.suspects.is_empty(), "every device has answered");
        self.shard.take_transmit(&mut self.transmit);
    }

    /// The half of a turn that reads: every answer.
    fn hear(&mut self, answers: &Answers) {
        for (index, bytes) in answers.iter() {
            assert_eq!(self.shard.plan_read(index), Plan::Read);
            assert!(self.shard.load_input(index, &mut self.input));
            self.input.space()[..bytes.len()].copy_from_slice(bytes);
            self.input.filled(bytes.len());
            self.shard.handle_input(index, &mut self.input, bytes.len(), self.now);
        }
    }
}

/// Sealed answers of devices, all in one buffer.
#[derive(Default)]
struct Answers {
    bytes: Vec<u8>,
    ends: Vec<(u32, usize)>,
}

impl Answers {
    fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    fn iter(&self) -> impl Iterator<Item = (u32, &[u8])> {
        let mut start = 0;
        self.ends.iter().map(move |&(index, end)| {
            let bytes = &self.bytes[start..end];
            start = end;
            (index, bytes)
        })
    }
}

/// A host and all its devices.
pub struct Fleet {
    host: Host,
    /// The devices' ends, by slot.
    devices: Vec<RecordLayer>,
    answers: Answers,
    step: Duration,
}

impl Fleet {
    /// `count` devices, all at home.
    pub fn new(count: u32) -> Self {
        let mut host = Host::new(Deployment::new(7_443, 7_480, INTERVAL_SECONDS).settings());
        let mut random = fastrand::Rng::with_seed(11);
        let mut devices = Vec::with_capacity(count as usize);
        let mut scratch = Vec::new();
        for number in 0..count {
            let (device, server) = record_pair(SUITE, &mut random);
            host.take_in(number, &server, &mut scratch);
            devices.push(device);
            if number % ARRIVALS == ARRIVALS - 1 || number == count - 1 {
                host.settle(|index, welcome| {
                    assert!(matches!(open(&mut devices[index as usize], welcome), Received::Welcome));
                });
            }
        }
        // Some hundred heartbeats a step, so that reading the CPU clock costs little of it; never less than a tick.
        let ticks = (256 * u64::from(INTERVAL_SECONDS) * 10 / u64::from(count)).clamp(1, 20);
        Self { host, devices, answers: Answers::default(), step: Duration::from_micros(ticks * TICK_MICROS) }
    }

    /// Steps in one interval: in so many, every device is probed once.
    pub fn steps(&self) -> usize {
        (Duration::from_secs(INTERVAL_SECONDS.into()).as_micros() / self.step.as_micros()) as usize
    }

    /// Lets a step of time go by and probes whoever is due. Inlined nowhere, so that it can be counted by its name.
    #[inline(never)]
    pub fn counted_probe(&mut self) {
        self.host.now = self.host.now.plus(self.step);
        self.host.probe();
    }

    /// The devices' part, which is not the gateway's cost: each opens its PING and seals a PONG. Returns how many.
    pub fn answer(&mut self) -> usize {
        let Self { host, devices, answers, .. } = self;
        answers.clear();
        for (index, record) in host.transmit.segments() {
            let device = &mut devices[index as usize];
            assert!(matches!(open(device, record), Received::Ping));
            let mut pong = Vec::new();
            Frame::Pong(&[]).encode(&mut pong);
            device.burst().seal(&pong, &mut answers.bytes).expect("a fresh key");
            answers.ends.push((index, answers.bytes.len()));
        }
        host.transmit.clear();
        answers.ends.len()
    }

    /// Every answer arrives and is read. Inlined nowhere, as above.
    #[inline(never)]
    pub fn counted_hear(&mut self) {
        let Self { host, answers, .. } = self;
        host.now = host.now.plus(ROUND_TRIP);
        host.hear(answers);
    }

    /// Heartbeats sent and answered as the shard itself counts them.
    pub fn heartbeats(&mut self) -> (u64, u64) {
        use pulsegate::metrics::Metric;
        let counters = self.host.shard.counters();
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
