//! One thread's share of the fleet: its epoll, its descriptor table, its wheel, its devices.
//!
//! ```text
//! turn:  wait -> read the clock once -> orders -> sockets -> timers -> connects (bounded) -> publish the counts
//! ```
//! Thread `n` of `m` has the devices `n`, `n + m`, `n + 2m` ...; `index` is a device's place in this thread, `number` its
//! place in the fleet.

mod endings;
mod messages;
mod orders;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use mio::event::Event;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use pulsegate::link::Doorbell;
use pulsegate::time::Tick;
use pulsegate::tls::record::RECORD_MAX;
use pulsegate::wheel::Wheel;
use pulsegate::worker::descriptors::leave_shared_table;
use rustix::io::Errno;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime, timerfd_create,
    timerfd_settime,
};

use super::counts::{Count, Counts, Findings, Published, record};
use super::device::{Device, Failure, Link, Output, ReadMode};
use super::liveness::Terms;
use super::protocol::{Greeting, Received};
use super::{Churn, ComeBack, FleetOptions, Listening, Order, Publishing};
use crate::clock::{Clock, Micros, TICK_MICROS, micros, start_of, tick, tick_from};

/// Connects begun in one turn at most, so that devices that are up wait no longer for their turn.
const CONNECTS_PER_TURN: usize = 32;
/// A device that must say something within its keep-alive does so by up to this share sooner, by chance: those that came
/// at the same time do not speak at the same time.
const EARLIER: f64 = 0.25;
/// Events taken in one turn.
const EVENTS_PER_TURN: usize = 256;
/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;
/// Counts are published so often, whether or not anything happens.
const PUBLISH: Duration = Duration::from_millis(250);

const BELL: Token = Token(usize::MAX);
const TIMER: Token = Token(usize::MAX - 1);

/// One thread's share.
pub struct FleetThread {
    number: u32,
    threads: u32,
    options: Arc<FleetOptions>,
    clock: Clock,
    /// Read once a turn.
    now: Micros,
    orders: Receiver<Order>,
    bell: Arc<Doorbell>,
    published: Arc<Published>,
    poll: Poll,
    timer: OwnedFd,
    devices: Vec<Device>,
    wheel: Wheel,
    due: Vec<u32>,
    /// Whose time to connect has come.
    ready: VecDeque<u32>,
    ramps: VecDeque<Ramp>,
    come_back: ComeBack,
    duty: Duty,
    listening: Option<Listening>,
    churn: Option<Churn>,
    counts: Counts,
    findings: Findings,
    random: fastrand::Rng,
    input: Vec<u8>,
    out: Output,
    greeting: Greeting,
    payload: Vec<u8>,
    is_stopped: bool,
}

/// What devices do all the while.
enum Duty {
    None,
    /// Heartbeats of these devices, `every` so often from `from` on, evenly spread.
    Beat {
        devices: std::ops::Range<u32>,
        from: Micros,
        every: Micros,
    },
    Publish(Publishing),
}

/// Devices to be connected, each at its time.
struct Ramp {
    next: u32,
    first: u32,
    end: u32,
    from: Micros,
    rate: f64,
}

impl Ramp {
    fn intended(&self) -> Micros {
        self.from + (f64::from(self.next - self.first) * 1e6 / self.rate) as Micros
    }
}

/// What a read from a socket came to.
enum Input {
    Bytes(usize),
    Nothing,
    End,
}

impl FleetThread {
    /// Leaves the shared descriptor table; to be called in the thread itself.
    pub fn new(
        number: u32,
        threads: u32,
        options: Arc<FleetOptions>,
        clock: Clock,
        orders: Receiver<Order>,
        bell: Arc<Doorbell>,
        published: Arc<Published>,
    ) -> io::Result<FleetThread> {
        let bell_number = bell.as_fd().as_raw_fd();
        leave_shared_table(&[bell_number])?;
        let poll = Poll::new()?;
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        poll.registry().register(&mut SourceFd(&bell_number), BELL, Interest::READABLE)?;
        poll.registry().register(&mut SourceFd(&timer.as_raw_fd()), TIMER, Interest::READABLE)?;
        let share = options.devices.saturating_sub(number).div_ceil(threads);
        Ok(FleetThread {
            number,
            threads,
            clock,
            now: clock.now(),
            orders,
            bell,
            published,
            poll,
            timer,
            devices: (0..share).map(|_| Device::new()).collect(),
            wheel: Wheel::new(tick(clock.now())),
            due: Vec::new(),
            ready: VecDeque::new(),
            ramps: VecDeque::new(),
            come_back: ComeBack::Never,
            duty: Duty::None,
            listening: None,
            churn: None,
            counts: Counts::default(),
            findings: Findings::new(),
            random: fastrand::Rng::new(),
            input: vec![0; READ_BYTES + RECORD_MAX],
            out: Output::default(),
            greeting: Greeting::default(),
            payload: Vec::new(),
            is_stopped: false,
            options,
        })
    }

    /// Turns until it is told to stop.
    ///
    /// # Panics
    /// When epoll itself fails.
    pub fn run(mut self) {
        let mut events = Events::with_capacity(EVENTS_PER_TURN);
        while !self.is_stopped {
            self.turn(&mut events).expect("epoll works on descriptors of our own");
        }
    }

    fn turn(&mut self, events: &mut Events) -> io::Result<()> {
        // Connects that are behind their time are no lateness of the loop: the bound on those in flight holds them back, and
        // each counts from when it was due.
        let deadline = self.wheel.next().map(start_of);
        let next = self.set_timer(deadline)?;
        let wait = if next.is_some_and(|at| at <= self.clock.now()) { Duration::ZERO } else { PUBLISH };
        // Orders that came before this thread sleeps must not be slept over.
        let wait = if wait.is_zero() || self.bell.doze() { wait } else { Duration::ZERO };
        let polled = self.poll.poll(events, Some(wait));
        let is_rung = self.bell.wake();
        match polled {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
        self.now = self.clock.now();
        let mut late = deadline.map_or(0, |at| self.now.saturating_sub(at));
        if is_rung {
            self.take_orders();
        }
        for event in events.iter().filter(|event| event.token() != BELL && event.token() != TIMER) {
            self.handle_event(event);
        }
        self.fire();
        self.connect_some();
        // Whatever came in at the beginning of a turn waits until its end at worst.
        late = late.max(self.clock.now() - self.now);
        self.note_lateness(late);
        self.publish_counts();
        Ok(())
    }

    /// When there is something to do next, if nothing comes in. The timer is set to it, to the microsecond.
    fn set_timer(&mut self, deadline: Option<Micros>) -> io::Result<Option<Micros>> {
        let has_room = self.in_flight() < self.options.in_flight_max;
        let ready = (has_room && !self.ready.is_empty()).then_some(self.now);
        let ramp = self.ramps.front().filter(|_| has_room).map(Ramp::intended);
        let next = [ready, ramp, deadline].into_iter().flatten().min();
        if let Some(at) = next {
            let wait = Duration::from_micros(at.saturating_sub(self.clock.now()).max(1));
            let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
            let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: wait };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
        }
        Ok(next)
    }

    fn note_lateness(&mut self, late: Micros) {
        record(&mut self.findings.loop_lateness, late);
        self.counts.set(Count::LatenessMax, late);
    }

    fn publish_counts(&mut self) {
        let cpu = clock_gettime(ClockId::ThreadCPUTime);
        self.counts.set(Count::CpuMicros, cpu.tv_sec as u64 * 1_000_000 + cpu.tv_nsec as u64 / 1_000);
        let ramp_due = self.ramps.front().is_some_and(|ramp| ramp.intended() <= self.now);
        self.counts.set(Count::Waiting, self.ready.len() as u64 + u64::from(ramp_due));
        self.published.publish(&self.counts);
    }

    fn in_flight(&self) -> usize {
        self.counts.get(Count::InFlight) as usize
    }

    fn number_of(&self, index: u32) -> u32 {
        index * self.threads + self.number
    }

    /// The places of the devices with these numbers.
    fn indices(&self, numbers: &std::ops::Range<u32>) -> std::ops::Range<u32> {
        let place = |number: u32| number.saturating_sub(self.number).div_ceil(self.threads);
        place(numbers.start)..place(numbers.end).min(self.devices.len() as u32)
    }

    fn is_control(&self, index: u32) -> bool {
        self.number_of(index) < self.options.control
    }

    // --- Connecting -------------------------------------------------------------------------------------------------

    /// Has a device that is down connect at `at`.
    fn call_at(&mut self, index: u32, at: Micros) {
        self.devices[index as usize].intended = at;
        if at <= self.now {
            self.ready.push_back(index);
        } else {
            self.wheel.arm(index, tick_from(at));
        }
    }

    fn connect_some(&mut self) {
        for _ in 0..CONNECTS_PER_TURN {
            if self.in_flight() >= self.options.in_flight_max {
                return;
            }
            let Some(index) = self.next_to_connect() else { return };
            self.connect(index);
        }
    }

    fn next_to_connect(&mut self) -> Option<u32> {
        if let Some(index) = self.ready.pop_front() {
            return Some(index);
        }
        let ramp = self.ramps.front_mut()?;
        let intended = ramp.intended();
        if intended > self.now {
            return None;
        }
        let index = ramp.next / self.threads;
        ramp.next += self.threads;
        if ramp.next >= ramp.end {
            self.ramps.pop_front();
        }
        self.devices[index as usize].intended = intended;
        Some(index)
    }

    fn connect(&mut self, index: u32) {
        if !self.devices[index as usize].is_down() {
            return;
        }
        self.counts.add(Count::Attempts, 1);
        let number = self.number_of(index);
        let options = &self.options;
        let device = &mut self.devices[index as usize];
        device.attempt = device.attempt.wrapping_add(1);
        if options.resumes && device.session.is_none() {
            device.session = Some(Box::new(options.tls.with_own_sessions()));
        }
        let token = Token((device.attempt as usize) << 32 | index as usize);
        let opened = options.sources.connect(number, options.target).and_then(|mut socket| {
            let interest = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut socket, token, interest).map(|()| socket)
        });
        match opened {
            Ok(socket) => {
                device.socket = Some(socket);
                device.link = Link::Connecting;
                self.counts.add(Count::InFlight, 1);
                self.wheel.arm(index, tick_from(self.now + micros(self.options.connect_timeout)));
            }
            Err(error) => self.fail(index, failure_of(&error)),
        }
    }

    /// Greets a server that TCP has reached.
    fn begin(&mut self, index: u32) -> Result<(), Failure> {
        let device = &mut self.devices[index as usize];
        let socket = device.socket.as_ref().expect("a device that connects has a socket");
        if let Some(error) = socket.take_error().map_err(|_| Failure::Socket)? {
            return Err(failure_of(&error));
        }
        let tls = device.session.as_deref().unwrap_or(&self.options.tls).clone();
        device.begin_handshake(&tls, &mut self.out)?;
        self.write(index)
    }

    // --- Sockets ----------------------------------------------------------------------------------------------------

    fn handle_event(&mut self, event: &Event) {
        let Token(token) = event.token();
        let (index, attempt) = (token as u32, (token >> 32) as u32);
        let device = &self.devices[index as usize];
        // An event of a socket that this turn, or the order before it, has closed.
        if device.attempt != attempt || device.is_down() {
            return;
        }
        if let Err(failure) = self.serve(index, event) {
            self.fail(index, failure);
        }
    }

    fn serve(&mut self, index: u32, event: &Event) -> Result<(), Failure> {
        if matches!(self.devices[index as usize].link, Link::Connecting) {
            if !event.is_writable() && !event.is_error() {
                return Ok(());
            }
            self.begin(index)?;
        } else if event.is_writable() {
            self.write(index)?;
        }
        if self.devices[index as usize].read_mode == ReadMode::Stopped {
            return if event.is_error() { Err(Failure::Reset) } else { Ok(()) };
        }
        if event.is_readable() || event.is_error() {
            let to_the_end = event.is_read_closed() || event.is_error();
            self.read(index, to_the_end)?;
        }
        Ok(())
    }

    /// Reads until a read comes back short, or, where the end is near, until there is nothing more.
    fn read(&mut self, index: u32, to_the_end: bool) -> Result<(), Failure> {
        loop {
            let kept = self.restore_input(index);
            let device = &mut self.devices[index as usize];
            let socket = device.socket.as_mut().expect("a device that is read has a socket");
            let room = &mut self.input[kept..kept + READ_BYTES];
            let read = match socket.read(room) {
                Ok(0) => Input::End,
                Ok(read) => Input::Bytes(read),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Input::Nothing,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(failure_of(&error)),
            };
            match read {
                Input::End => return Err(Failure::EndOfStream),
                Input::Nothing => {
                    self.keep_input(index, 0, kept);
                    return Ok(());
                }
                Input::Bytes(read) => {
                    self.handle_input(index, kept + read)?;
                    if read < READ_BYTES && !to_the_end {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn handle_input(&mut self, index: u32, length: usize) -> Result<(), Failure> {
        let options = Arc::clone(&self.options);
        if matches!(self.devices[index as usize].link, Link::Handshaking(_) | Link::Greeting(_)) {
            self.prepare_greeting(index);
        }
        let device = &mut self.devices[index as usize];
        let was_up = device.is_up();
        self.out.received.clear();
        let handled = device.handle_bytes(&options.protocol, &self.greeting, &mut self.input[..length], &mut self.out);
        if self.out.resumed.take() == Some(true) {
            self.counts.add(Count::Resumed, 1);
        }
        let came_up = !was_up && device.is_up();
        // Answers go out even when what came after them ends the connection.
        let written = self.write(index);
        if came_up {
            self.handle_up(index);
        }
        self.handle_received(index)?;
        let taken = handled?;
        self.keep_input(index, taken, length);
        written
    }

    fn prepare_greeting(&mut self, index: u32) {
        let number = self.number_of(index);
        let id = format!("{}{number}", self.options.prefix);
        self.options.protocol.greet(&id, number, &mut self.greeting);
    }

    /// Puts what was left of the last read to the front of the input.
    fn restore_input(&mut self, index: u32) -> usize {
        let Some(leftover) = &mut self.devices[index as usize].leftover else { return 0 };
        let kept = leftover.cipher.len();
        self.input[..kept].copy_from_slice(&leftover.cipher);
        leftover.cipher.clear();
        kept
    }

    fn keep_input(&mut self, index: u32, taken: usize, length: usize) {
        let leftover = &mut self.devices[index as usize].leftover;
        if taken < length {
            leftover.get_or_insert_default().cipher.extend_from_slice(&self.input[taken..length]);
        }
        if leftover.as_ref().is_some_and(|leftover| leftover.is_empty()) {
            *leftover = None;
        }
    }

    /// Writes what is in `out` after what was left from before.
    fn write(&mut self, index: u32) -> Result<(), Failure> {
        let device = &mut self.devices[index as usize];
        let unsent = device.leftover.as_mut().map(|leftover| &mut leftover.unsent).filter(|unsent| !unsent.is_empty());
        if let Some(unsent) = unsent {
            unsent.append(&mut self.out.wire);
            std::mem::swap(unsent, &mut self.out.wire);
        }
        if self.out.wire.is_empty() {
            return Ok(());
        }
        let socket = device.socket.as_mut().expect("a device that is written to has a socket");
        let written = match socket.write(&self.out.wire) {
            Ok(written) => written,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => {
                self.out.wire.clear();
                return Err(failure_of(&error));
            }
        };
        if written < self.out.wire.len() {
            device.leftover.get_or_insert_default().unsent.extend_from_slice(&self.out.wire[written..]);
        }
        self.out.wire.clear();
        device.watch.handle_sent(self.now);
        Ok(())
    }

    // --- Being up ---------------------------------------------------------------------------------------------------

    fn handle_up(&mut self, index: u32) {
        self.counts.sub(Count::InFlight, 1);
        self.counts.add(Count::Up, 1);
        self.counts.add(Count::Established, 1);
        let device = &mut self.devices[index as usize];
        device.failures = 0;
        if !self.options.protocol.has_terms() {
            device.watch.handle_terms(self.options.terms);
            self.note_bound(self.options.terms);
        }
        let device = &mut self.devices[index as usize];
        record(&mut self.findings.connect, self.now.saturating_sub(device.intended));
        if device.cut_at > 0 {
            record(&mut self.findings.recovery, self.now - device.cut_at);
            device.cut_at = 0;
        }
        self.plan(index);
    }

    fn note_bound(&mut self, terms: Terms) {
        let bound = (terms.bound() / 1_000).max(self.counts.get(Count::LongestBound));
        self.counts.set(Count::LongestBound, bound);
    }

    fn handle_received(&mut self, index: u32) -> Result<(), Failure> {
        for at in 0..self.out.received.len() {
            let device = &mut self.devices[index as usize];
            match self.out.received[at] {
                Received::Welcome(terms) => {
                    (device.unacknowledged, device.window) = (0, terms.window);
                    device.watch.handle_terms(terms);
                    self.note_bound(terms);
                }
                Received::Opened | Received::Subscribed => {}
                Received::Ping => {
                    self.counts.add(Count::Pings, 1);
                    if device.is_silent {
                        device.watch.handle_ping();
                    }
                }
                Received::Pong(intended) => {
                    let intended = intended.unwrap_or_else(|| std::mem::take(&mut device.awaiting));
                    if intended > 0 && intended <= self.now {
                        self.counts.add(Count::BeatsAnswered, 1);
                        let is_control = self.is_control(index);
                        let found = &mut self.findings;
                        let beats = if is_control { &mut found.beats_control } else { &mut found.beats };
                        record(beats, self.now - intended);
                    }
                }
                Received::Close(code) => return Err(code.into()),
                Received::Message(stamp) => self.handle_message(index, stamp),
                Received::Acknowledged(id) => {
                    device.unacknowledged = device.unacknowledged.saturating_sub(1);
                    self.handle_acknowledgement(index, id);
                }
                Received::Refused => device.unacknowledged = device.unacknowledged.saturating_sub(1),
            }
        }
        Ok(())
    }

    /// Arms a device that is up with whatever comes next for it.
    fn plan(&mut self, index: u32) {
        let number = self.number_of(index);
        let now_ms = tick(self.now).0;
        let device = &mut self.devices[index as usize];
        if !device.is_up() {
            return;
        }
        let duty = match &self.duty {
            Duty::Beat { devices, from, every } if devices.contains(&number) => {
                let (&from, &every, place) = (from, every, u128::from(number - devices.start));
                let phase = u128::from(every) * place / devices.len() as u128;
                let first = from + phase as Micros;
                let rounds = (self.now + TICK_MICROS).saturating_sub(first).div_ceil(every);
                (first + rounds * every).div_ceil(TICK_MICROS) as u32
            }
            Duty::Publish(publishing) => messages::next(publishing, number, device.published, now_ms),
            Duty::Beat { .. } | Duty::None => 0,
        };
        device.next_duty = match self.options.protocol.keep_alive_s() {
            // Whoever keeps silent does nothing else either.
            _ if device.is_silent || device.had_stopped_reading() => 0,
            keep_alive_s if duty == 0 && keep_alive_s > 0 => {
                let wait = f64::from(keep_alive_s) * 1e3 * self.random.f64().mul_add(-EARLIER, 1.0);
                now_ms + 1 + wait as u32
            }
            _ => duty,
        };
        match self.churn {
            Some(churn) if device.leaves == 0 => {
                device.leaves = now_ms + 1 + exponential(&mut self.random, churn.life);
            }
            Some(_) => {}
            None => device.leaves = 0,
        }
        match [device.next_duty, device.leaves].into_iter().filter(|&at| at > 0).min() {
            Some(at) => self.wheel.arm(index, Tick(at)),
            None => self.wheel.cancel(index),
        }
    }

    // --- Timers -----------------------------------------------------------------------------------------------------

    fn fire(&mut self) {
        let now = tick(self.now);
        let mut due = std::mem::take(&mut self.due);
        loop {
            due.clear();
            let more = self.wheel.expire(now, 4_096, &mut due);
            for &index in &due {
                if let Err(failure) = self.handle_due(index, now.0) {
                    self.fail(index, failure);
                }
            }
            if !more {
                break;
            }
        }
        self.due = due;
    }

    fn handle_due(&mut self, index: u32, now_ms: u32) -> Result<(), Failure> {
        let device = &mut self.devices[index as usize];
        match device.link {
            Link::Down => self.ready.push_back(index),
            Link::Connecting | Link::Handshaking(_) | Link::Greeting(_) => return Err(Failure::Timeout),
            Link::Up(_) if device.leaves > 0 && device.leaves <= now_ms => self.leave_by_chance(index),
            Link::Up(_) => {
                let is_due = device.next_duty > 0 && device.next_duty <= now_ms && !device.is_silent;
                if is_due && !self.publish_due(index)? {
                    self.beat(index)?;
                }
                self.plan(index);
            }
        }
        Ok(())
    }

    fn beat(&mut self, index: u32) -> Result<(), Failure> {
        let device = &mut self.devices[index as usize];
        let intended = start_of(Tick(device.next_duty));
        if device.awaiting == 0 {
            device.awaiting = intended;
        }
        self.options.protocol.heartbeat(intended, &mut self.out.plain);
        device.seal(&mut self.out)?;
        self.counts.add(Count::BeatsSent, 1);
        self.write(index)
    }
}

/// A random time in milliseconds with this mean.
fn exponential(random: &mut fastrand::Rng, mean: Duration) -> u32 {
    (-(1.0 - random.f64()).ln() * mean.as_millis() as f64) as u32
}

fn failure_of(error: &io::Error) -> Failure {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ADDRNOTAVAIL | Errno::ADDRINUSE) => Failure::Ports,
        Some(Errno::MFILE | Errno::NFILE) => Failure::Descriptors,
        Some(Errno::CONNREFUSED) => Failure::Refused,
        Some(Errno::CONNRESET | Errno::PIPE) => Failure::Reset,
        Some(Errno::TIMEDOUT) => Failure::Timeout,
        _ => Failure::Socket,
    }
}
