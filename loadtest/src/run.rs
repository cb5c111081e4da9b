//! One run: the fleet, what is observed beside it, and the report that grows.

use std::io;
use std::ops::Range;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use pulsegate::tls::handshake::{ClientOptions, ClientResumption, ClientTls, Roots, Versions};
use serde_json::{Map, Value};

use crate::admin::Admin;
use crate::cli::{Common, Scenario, TlsVersion};
use crate::clock::{Clock, micros};
use crate::fleet::liveness::Terms;
use crate::fleet::protocol::{DeviceProtocol, Mqtt, Protocol};
use crate::fleet::{Count, Counts, Failure, Findings, Fleet, FleetOptions, Order, Sources};
use crate::observe::{Kernel, Machine, Metrics, Process, Usage, commit};
use crate::progress::Progress;
use crate::report::{
    Condition, Connections, Cpu, Curve, Expiry, Generator, Memory, Messages, Percentiles, Recovery, Report, Sample,
    units,
};

/// Samples for the timeline are taken so often.
const SAMPLE: Duration = Duration::from_millis(500);
/// A thread above this share of a core has no room left.
const BUSY_SHARE: f64 = 0.9;
/// Loop lateness above this (99th percentile, in microseconds) makes latencies those of the harness.
const LATE_MICROS: u64 = 20_000;
/// Devices that one thread takes before a further core is used.
const PER_THREAD: u32 = 5_000;
/// Descriptors of a thread that are not devices.
const RESERVED_DESCRIPTORS: u64 = 64;

/// A run in progress.
pub struct Run {
    pub common: Common,
    pub fleet: Fleet,
    pub report: Report,
    pub findings: Findings,
    /// The counts of fleets that ran beside the run's own.
    pub beside: Counts,
    clock: Clock,
    process: Option<Process>,
    admin: Option<Admin>,
    progress: Progress,
    last: Last,
    /// The worst seconds of the threads since measuring began.
    busiest: f64,
}

/// What the last sample was taken from.
struct Last {
    at: Instant,
    established: u64,
    server_cpu: Option<u64>,
    own_cpu: Vec<u64>,
    first: bool,
}

/// Server and kernel at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub at: Instant,
    pub usage: Option<Usage>,
    pub kernel: Kernel,
    pub metrics: Option<Metrics>,
}

impl Run {
    /// Checks what can be checked, starts the fleet.
    pub fn start(scenario: &Scenario) -> Result<Run, String> {
        let common = scenario.common().clone();
        if let Some(what) = scenario.lacks() {
            return Err(what);
        }
        let clock = Clock::start();
        let process = common.pid.map(Process::new);
        if let (Some(process), Some(pid)) = (process, common.pid) {
            process.measure().map_err(|error| format!("--pid {pid}: {error}"))?;
        }
        let admin = admin(&common)?;
        let threads = threads(&common)?;
        let own = Common { connections: scenario.own_devices(), ..common.clone() };
        let source_addresses = Sources::new(own.target, own.source_addresses, own.connections).addresses();
        let fleet = start_fleet(&own, device_protocol(scenario), scenario.control(), clock)?;
        let mut report = empty_report(scenario);
        report.generator.threads = threads as usize;
        report.details.insert("source_addresses".into(), source_addresses.into());
        let progress = Progress::new(scenario.name(), common.connections);
        let last =
            Last { at: Instant::now(), established: 0, server_cpu: None, own_cpu: fleet.cpu_micros(), first: true };
        let findings = Findings::new();
        let beside = Counts::default();
        Ok(Run { common, fleet, report, findings, beside, clock, process, admin, progress, last, busiest: 0.0 })
    }

    /// Seconds since the run began.
    pub fn elapsed(&self) -> Duration {
        Duration::from_micros(self.clock.now())
    }

    /// The run's clock, for orders that name a time.
    pub fn now(&self) -> u64 {
        self.clock.now()
    }

    /// The same for whoever works beside the run.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Another connection to the control plane, for scenarios that need it.
    ///
    /// # Panics
    /// In a scenario that can do without.
    pub fn admin(&self) -> Admin {
        self.admin.as_ref().expect("the scenario has said that it needs it").another()
    }

    /// Waits until a Pulsegate's count of connections stands still: those of an earlier run may still be ending.
    pub fn wait_for_calm(&mut self) {
        let count = |run: &Run| {
            let metrics = run.admin.as_ref()?.metrics().ok()?;
            Some(metrics.sum("pulsegate_connections", "") as u64)
        };
        for _ in 0..20 {
            let before = count(self);
            self.pass("waiting for calm", Duration::from_millis(if before.is_some() { 500 } else { 0 }));
            if count(self) == before {
                return;
            }
        }
    }

    /// Server and kernel now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            at: Instant::now(),
            usage: self.process.and_then(|process| process.measure().ok()),
            kernel: Kernel::measure(),
            metrics: self.admin.as_ref().and_then(|admin| admin.metrics().ok()),
        }
    }

    /// Waits until `is_done` or until `limit` has passed; whether it was done. Samples and shows progress meanwhile.
    pub fn wait(&mut self, what: &'static str, limit: Duration, is_done: impl Fn(&Counts) -> bool) -> bool {
        let end = Instant::now() + limit;
        loop {
            let counts = self.fleet.counts();
            if is_done(&counts) {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
            if self.last.at.elapsed() >= SAMPLE {
                self.sample(what, &counts);
            }
        }
    }

    /// Waits for `time`.
    pub fn pass(&mut self, what: &'static str, time: Duration) {
        self.wait(what, time, |_| false);
    }

    /// Stops the server's process for `time`. Nothing is sampled meanwhile.
    ///
    /// # Errors
    /// A sentence, when it cannot be stopped.
    pub fn freeze_server(&mut self, time: Duration) -> Result<(), String> {
        let Some(process) = self.process else { return Ok(()) };
        let stopped = process.stop().map_err(|error| format!("--pid: the server cannot be stopped: {error}"))?;
        std::thread::sleep(time);
        drop(stopped);
        Ok(())
    }

    /// Connects devices at the configured rate, and waits until all are up or nothing moves any more.
    pub fn connect(&mut self, devices: Range<u32>) -> Counts {
        let asked = u64::from(devices.end);
        let ramp = Duration::from_secs_f64(f64::from(devices.end - devices.start) / self.common.rate);
        self.fleet.order(&Order::Connect { devices, from: self.clock.now(), rate: self.common.rate });
        let mut before = u64::MAX;
        self.wait("connecting", ramp, |counts| counts.get(Count::Up) >= asked);
        // As long as devices come up there is no reason to give up on the others.
        loop {
            let timeout = self.common.connect_timeout;
            let up = self.fleet.counts().get(Count::Up);
            if up >= asked || up == before {
                return self.fleet.counts();
            }
            before = up;
            self.wait("connecting", timeout, |counts| counts.get(Count::Up) >= asked);
        }
    }

    fn all_counts(&self) -> Counts {
        let mut counts = self.fleet.counts();
        counts.merge(&self.beside);
        counts
    }

    /// Adds what the fleet found since the last time.
    pub fn collect(&mut self) {
        let found = self.fleet.collect();
        self.findings.merge(&found);
    }

    /// Forgets what was found so far in the histograms that the measured phase is about.
    pub fn begin_measuring(&mut self) {
        self.collect();
        self.findings.beats.reset();
        self.findings.beats_control.reset();
        self.findings.messages.reset();
        self.findings.acknowledged.reset();
        self.findings.loop_lateness.reset();
        self.busiest = 0.0;
    }

    /// States what must hold, and whether it does.
    pub fn require(&mut self, name: impl Into<String>, holds: bool, found: impl Into<String>) {
        self.report.conditions.push(Condition { name: name.into(), holds, found: found.into() });
    }

    /// Adds a figure that only this scenario has.
    pub fn detail(&mut self, name: &str, value: impl Into<Value>) {
        self.report.details.insert(name.into(), value.into());
    }

    fn sample(&mut self, what: &'static str, counts: &Counts) {
        let seconds = self.last.at.elapsed().as_secs_f64();
        self.last.at = Instant::now();
        let per_second = |now: u64, before: u64| now.saturating_sub(before) as f64 / seconds;
        let own = self.fleet.cpu_micros();
        let shares = own.iter().zip(&self.last.own_cpu).map(|(now, before)| per_second(*now, *before) / 1e6);
        let busiest = shares.fold(0.0, f64::max);
        self.last.own_cpu = own;
        let glance = self.process.and_then(|process| process.glance().ok());
        let cpu = glance.map(|usage| usage.cpu_micros);
        let established = counts.get(Count::Established);
        let sample = Sample {
            at_s: self.elapsed().as_secs_f64(),
            connected: counts.get(Count::Up),
            connects_per_s: per_second(established, self.last.established),
            failures: counts.get(Count::Failed) + counts.get(Count::Lost),
            server_rss_bytes: glance.map(|usage| usage.rss_bytes),
            server_cpu_share: cpu.zip(self.last.server_cpu).map(|(now, before)| per_second(now, before) / 1e6),
            generator_cpu_share: busiest,
            lateness_ms: counts.get(Count::LatenessMax) as f64 / 1e3,
        };
        self.last.established = established;
        self.last.server_cpu = cpu;
        // A thread's first second holds its start.
        if !std::mem::take(&mut self.last.first) {
            self.busiest = self.busiest.max(busiest);
        }
        self.progress.show(what, &sample, counts);
        self.report.timeline.push(sample);
    }

    /// Memory by connection, of `held` connections that came between the two.
    pub fn measure_memory(&mut self, before: &Snapshot, after: &Snapshot, held: u64) {
        if held == 0 {
            return;
        }
        let per = |after: u64, before: u64| (after as f64 - before as f64) / held as f64;
        let memory = &mut self.report.memory;
        if let (Some(before), Some(after)) = (before.usage, after.usage) {
            memory.user_bytes_per_connection = Some(per(after.rss_bytes, before.rss_bytes));
            memory.user_pss_bytes_per_connection = Some(per(after.pss_bytes, before.pss_bytes));
            memory.rss_before_bytes = Some(before.rss_bytes);
            memory.rss_after_bytes = Some(after.rss_bytes);
        }
        // Both ends of a loopback connection are this kernel's.
        let ends = if self.common.target.ip().is_loopback() { 2.0 } else { 1.0 };
        memory.kernel_bytes_per_connection = Some(per(after.kernel.bytes(), before.kernel.bytes()) / ends);
        memory.kernel_slab_bytes_per_connection = Some(per(after.kernel.slab_bytes, before.kernel.slab_bytes) / ends);
    }

    /// Who is there at the end; a Pulsegate's own count is compared with it. The counts so far are returned.
    pub fn measure_end(&mut self, end: &Snapshot) -> Counts {
        let counts = self.all_counts();
        let held = counts.get(Count::Up);
        self.report.connections.held = held;
        self.report.expiry.r#false = Some(counts.get(Count::FalselyExpired));
        if let Some(metrics) = &end.metrics {
            self.detail("server_devices", metrics.sum("pulsegate_devices", ""));
            self.detail("server_loop_lateness_us", metrics.greatest("pulsegate_loop_lateness_seconds") * 1e6);
        }
        counts
    }

    /// The server's CPU time between two moments, divided by how often something was done, in microseconds.
    pub fn cpu_per(before: &Snapshot, after: &Snapshot, times: u64) -> Option<f64> {
        let (before, after) = (before.usage?, after.usage?);
        (times > 0).then(|| (after.cpu_micros - before.cpu_micros) as f64 / times as f64)
    }

    /// The server's CPU time between two moments, as a share of one core.
    pub fn cpu_share(before: &Snapshot, after: &Snapshot) -> Option<f64> {
        let seconds = after.at.duration_since(before.at).as_secs_f64();
        Self::cpu_per(before, after, 1).map(|micros| micros / 1e6 / seconds)
    }

    /// The end: the last figures, the judgement of the harness itself, and the report.
    pub fn finish(mut self) -> Report {
        self.collect();
        let counts = self.all_counts();
        let (report, found) = (&mut self.report, &self.findings);
        report.connections.failed = counts.get(Count::Failed);
        report.connections.lost = counts.get(Count::Lost);
        report.connections.established = counts.get(Count::Established);
        report.connections.resumed = counts.get(Count::Resumed);
        report.connect_latency_us = Percentiles::of(&found.connect, 1.0);
        report.expiry.lateness_ms = Percentiles::of(&found.expiry_lateness, 1_000.0);
        for (failure, &times) in Failure::ALL.iter().zip(&found.failures).filter(|(_, times)| **times > 0) {
            report.failures.insert(failure.label().into(), times.into());
        }
        let late = Percentiles::of(&found.loop_lateness, 1.0);
        let generator = &mut report.generator;
        generator.lateness_us = late;
        generator.busiest_thread_share = self.busiest;
        generator.rss_bytes = Process::new(std::process::id()).glance().ok().map(|usage| usage.rss_bytes);
        generator.why = why_saturated(self.busiest, late.p99.unwrap_or(0.0));
        generator.saturated = generator.why.is_some();
        let others = std::mem::take(&mut report.curves);
        report.curves = [
            Curve::of("connect", &found.connect, false),
            Curve::of("heartbeat", &found.beats, false),
            Curve::of("heartbeat, control group", &found.beats_control, false),
            Curve::of("message to a device", &found.messages, false),
            Curve::of("acknowledgement of a device's message", &found.acknowledged, false),
            Curve::of("recovery", &found.recovery, false),
            Curve::of("expiry after its deadline", &found.expiry_lateness, true),
            Curve::of("harness", &found.loop_lateness, true),
        ]
        .into_iter()
        .flatten()
        .chain(others)
        .collect();
        report.passed = report.conditions.iter().all(|condition| condition.holds);
        self.progress.end();
        self.fleet.stop();
        self.report
    }
}

fn why_saturated(busiest: f64, late_micros: f64) -> Option<String> {
    if busiest > BUSY_SHARE {
        return Some(format!("a thread of the harness used {:.0} % of its core", busiest * 100.0));
    }
    let is_late = late_micros > LATE_MICROS as f64;
    is_late.then(|| format!("the harness's loop was late by {:.1} ms (99th percentile)", late_micros / 1e3))
}

fn admin(common: &Common) -> Result<Option<Admin>, String> {
    let Some(base) = &common.admin else { return Ok(None) };
    let token = match &common.admin_token_file {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            Some(text.trim().to_owned())
        }
    };
    let admin = Admin::new(base, token);
    admin.metrics().map_err(|error| format!("--admin: {error}"))?;
    Ok(Some(admin))
}

/// As many as the descriptor limit demands; it holds for each thread's own table.
fn threads(common: &Common) -> Result<u32, String> {
    let room = descriptor_limit().map_err(|error| format!("the descriptor limit cannot be told: {error}"))?;
    let room = u32::try_from(room.saturating_sub(RESERVED_DESCRIPTORS)).unwrap_or(u32::MAX).max(1);
    let needed = common.connections.div_ceil(room);
    if let Some(threads) = common.threads {
        if threads < needed {
            return Err(format!("--threads {threads}: {needed} are needed, as each may have {room} connections"));
        }
        return Ok(threads.min(common.connections));
    }
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u32);
    Ok(needed.max(common.connections.div_ceil(PER_THREAD).min(cores)))
}

/// The limit, raised as far as allowed.
fn descriptor_limit() -> io::Result<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
}

/// What devices bring to their handshakes.
pub fn client_tls(common: &Common) -> Result<ClientTls, String> {
    ClientTls::load(&ClientOptions {
        roots: Roots::Pem(&common.ca),
        server_name: &common.server_name,
        identity: common.client_cert.as_deref().zip(common.client_key.as_deref()),
        alpn: common.protocol.alpn(),
        versions: match common.tls {
            TlsVersion::Tls12 => Versions::Tls12,
            TlsVersion::Tls13 => Versions::Tls13,
        },
        cipher_suites: None,
        key_exchange: None,
        resumption: if common.resume { ClientResumption::AwaitTicket } else { ClientResumption::Off },
    })
    .map_err(|error| error.to_string())
}

/// Starts a fleet of `common.connections` devices, the first `control` of which are the control group. To be called from
/// the main thread.
pub fn start_fleet(common: &Common, protocol: DeviceProtocol, control: u32, clock: Clock) -> Result<Fleet, String> {
    let threads = threads(common)?;
    let options = fleet_options(common, protocol, control, threads)?;
    Fleet::start(options, threads, clock).map_err(|error| format!("the fleet cannot be started: {error}"))
}

fn fleet_options(
    common: &Common,
    protocol: DeviceProtocol,
    control: u32,
    threads: u32,
) -> Result<FleetOptions, String> {
    let tls = client_tls(common)?;
    Ok(FleetOptions {
        target: common.target,
        protocol,
        tls,
        resumes: common.resume,
        prefix: common.device_prefix.clone(),
        devices: common.connections,
        control,
        in_flight_max: (common.in_flight.div_ceil(threads)) as usize,
        connect_timeout: common.connect_timeout,
        terms: Terms {
            interval_ms: (micros(common.raw_interval) / 1_000) as u32,
            timeout_ms: (micros(common.raw_timeout) / 1_000) as u32,
            retries: common.raw_retries,
            probes: common.protocol == Protocol::Native,
            window: u16::MAX,
        },
        sources: Sources::new(common.target, common.source_addresses, common.connections),
    })
}

/// How devices speak.
fn device_protocol(scenario: &Scenario) -> DeviceProtocol {
    let common = scenario.common();
    match common.protocol {
        Protocol::Native => DeviceProtocol::Native {
            wanted_interval_ms: u32::try_from(common.heartbeat.as_millis()).unwrap_or(u32::MAX),
        },
        Protocol::Raw => DeviceProtocol::Raw,
        Protocol::Mqtt => {
            let (subscription, subscription_qos) = scenario.subscription();
            let options = common.mqtt.clone();
            DeviceProtocol::Mqtt(Mqtt {
                version: options.mqtt_version,
                keep_alive_s: options.keep_alive.as_secs() as u16,
                clean_start: !options.keep_session,
                username: options.username,
                password: options.password,
                subscription,
                subscription_qos,
                websocket: options.websocket,
            })
        }
    }
}

/// The report of a run that has not begun.
pub fn empty_report(scenario: &Scenario) -> Report {
    let common = scenario.common();
    Report {
        scenario: scenario.name(),
        target: common.target.to_string(),
        passed: false,
        conditions: Vec::new(),
        connections: Connections { asked: common.connections.into(), ..Connections::default() },
        memory: Memory::default(),
        cpu: Cpu::default(),
        expiry: Expiry::default(),
        latency_us: Percentiles::default(),
        connect_latency_us: Percentiles::default(),
        recovery_s: Recovery::default(),
        messages: Messages::default(),
        generator: Generator::default(),
        failures: Map::new(),
        details: Map::new(),
        configuration: scenario.configuration(),
        commit: commit(),
        machine: Machine::detect(),
        started_unix_s: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
        timeline: Vec::new(),
        units: units(),
        curves: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_harness_says_when_it_was_the_bottleneck_and_why() {
        assert_eq!(why_saturated(0.5, 900.0), None);
        assert!(why_saturated(0.97, 0.0).unwrap().contains("97 %"));
        assert!(why_saturated(0.1, 55_000.0).unwrap().contains("55.0 ms"));
    }
}
