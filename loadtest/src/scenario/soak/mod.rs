//! `soak`: everything at once for a long time. Devices of all three protocols behave well, come and go, fall silent, are
//! frozen and thawed, while all kinds of attack take their turns and the server itself is stopped now and then.
//!
//! ```text
//!  connect  quiet      cycle 1: attack, attack, ..., server stopped  calm  cycle 2: the same again            calm
//!  ------|----------|-----------------------------------------------|-----|-----------------------------------|-----|
//!         p99 quiet   p99 under attack (not while it was stopped)    memory                                    memory
//! ```
//! What a device saw for itself is what is judged: who was expired although it was heard, what was acknowledged and never
//! came.

mod attacked;
mod groups;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::json;

use super::attack::{self, Attack, Means};
use super::follower::Follower;
use crate::cli::Soak;
use crate::fleet::protocol::Protocol;
use crate::fleet::{ComeBack, Count, Ledger, Order, histogram};
use crate::report::{Curve, Messages, Percentiles};
use crate::run::{Run, Snapshot, client_tls};
use attacked::Attacked;
use groups::{COLLECTORS, Group, Role};

use groups::share;

/// Turns of the server's event loops, and those of them that did nothing.
const TURNS: &str = "pulsegate_turns_total";
const IDLE_TURNS: &str = "pulsegate_idle_turns_total";
/// How often stages are looked at.
const STEP: Duration = Duration::from_millis(250);
/// How long groups may take to come up or to come back, and the last messages to arrive.
const PATIENCE: Duration = Duration::from_mins(1);
/// Rounds that are published beyond what the clock says, as nobody knows how long waiting takes.
const SLACK_ROUNDS: u64 = 16;

/// One way that messages go: what was acknowledged to publishers, and what arrived.
struct Account {
    label: &'static str,
    acknowledged: Arc<Ledger>,
    arrived: Arc<Ledger>,
}

/// Round trips of well-behaved devices, in microseconds.
#[derive(Clone)]
struct RoundTrips {
    native: Histogram<u64>,
    mqtt: Histogram<u64>,
}

impl RoundTrips {
    fn new() -> Self {
        Self { native: histogram(), mqtt: histogram() }
    }

    fn add(&mut self, other: &RoundTrips) {
        self.native.add(&other.native).expect("histograms that grow take each other's values");
        self.mqtt.add(&other.mqtt).expect("histograms that grow take each other's values");
    }
}

/// A soak under way.
struct Trial<'r> {
    run: &'r mut Run,
    options: &'r Soak,
    /// All but the run's own fleet, which is that of the steady native devices.
    groups: Vec<Group>,
    accounts: Vec<Account>,
    follower: Option<Arc<Follower>>,
}

/// Passes when nobody was expired who was heard, nothing acknowledged was lost, memory is flat, event loops are idle when
/// they have nothing to do, and the well-behaved hardly noticed.
pub fn run(run: &mut Run, options: &Soak) -> Result<(), String> {
    let groups = start(run, options)?;
    let mut trial = Trial { run, options, groups, accounts: Vec::new(), follower: None };
    trial.connect();
    let before = trial.run.snapshot();
    trial.begin_traffic();
    trial.pass("settling", options.common.settle);
    trial.round_trips();
    trial.pass("quiet", options.quiet);
    let quiet = trial.round_trips();

    let mut attacked = Attacked::new();
    let mut calm = Vec::new();
    for _ in 0..options.cycles {
        trial.cycle(&mut attacked)?;
        trial.pass("calm", options.common.settle);
        calm.push(trial.run.snapshot());
    }
    trial.end_traffic();
    attacked.report(trial.run);
    trial.check_devices();
    trial.check_messages();
    trial.check_round_trips(&quiet, attacked.round_trips());
    trial.check_server(&before, &calm);
    trial.groups.into_iter().for_each(|group| group.fleet.stop());
    Ok(())
}

/// How many of `all` devices the run's own fleet has.
pub fn steady_native(all: u32) -> u32 {
    share(all, Protocol::Native, Role::Steady)
}

fn start(run: &Run, options: &Soak) -> Result<Vec<Group>, String> {
    let all = options.common.connections;
    let mut groups = Vec::new();
    for protocol in [Protocol::Native, Protocol::Raw, Protocol::Mqtt] {
        for role in [Role::Steady, Role::Restless, Role::Failing] {
            if (protocol, role) != (Protocol::Native, Role::Steady) {
                groups.push(Group::start(options, protocol, role, share(all, protocol, role), run.clock())?);
            }
        }
    }
    groups.push(Group::start(options, Protocol::Mqtt, Role::Collector, COLLECTORS, run.clock())?);
    Ok(groups)
}

impl Trial<'_> {
    fn connect(&mut self) {
        let own = steady_native(self.options.common.connections);
        self.run.fleet.order(&Order::ComeBack(ComeBack::BackOff(Duration::from_secs(1))));
        let mut up = self.run.connect(0..own).get(Count::Up);
        for group in &self.groups {
            group.connect(self.run.now());
            let ramp = Duration::from_secs_f64(f64::from(group.devices) / self.options.common.rate);
            self.run.wait("connecting", ramp + PATIENCE, |_| group.are_up());
            up += group.count(Count::Up);
        }
        let asked = u64::from(own) + self.groups.iter().map(|group| u64::from(group.devices)).sum::<u64>();
        self.run.report.connections.asked = asked;
        self.run.require("every device came up", up == asked, format!("{up} of {asked}"));
    }

    /// Heartbeats of the steady, messages and comings and goings of the restless. Failing groups are led by `pass`.
    fn begin_traffic(&mut self) {
        let (options, now) = (self.options, self.run.now() + 10_000);
        let own = steady_native(options.common.connections);
        self.run.fleet.order(&Order::Beat { devices: 0..own, from: now, every: options.every });
        let calm = options.common.settle * (options.cycles + 2);
        let whole = calm + options.quiet + options.common.duration + options.freeze * options.cycles + PATIENCE;
        let rounds = (whole.as_secs_f64() / options.publish_every.as_secs_f64()) as u64 + SLACK_ROUNDS;
        for group in &self.groups {
            // Restless devices that have messages show their life by them.
            if group.role != Role::Restless || group.protocol == Protocol::Raw {
                group.beat(now, options.every);
            }
        }
        self.begin_messages(now, rounds);
        let restless = self.groups.iter().filter(|group| group.role == Role::Restless);
        restless.for_each(|group| group.churn(options.life));
    }

    fn begin_messages(&mut self, now: u64, rounds: u64) {
        let of = |protocol| {
            let mut groups = self.groups.iter();
            groups
                .find(move |group| (group.protocol, group.role) == (protocol, Role::Restless))
                .expect("it was started")
        };
        let (native, mqtt) = (of(Protocol::Native), of(Protocol::Mqtt));
        let arrived = Arc::new(Ledger::new(mqtt.devices, rounds));
        let collectors = self.groups.iter().find(|group| group.role == Role::Collector).expect("they were started");
        collectors.listen(&arrived);
        let every = self.options.publish_every;
        let acknowledged = mqtt.publish(now, every, rounds).expect("MQTT has messages");
        let mut accounts = vec![Account { label: "MQTT, to a shared subscription", acknowledged, arrived }];
        // Where native messages arrive is the event stream: without the API nobody can tell.
        let mut following = None;
        if self.options.common.admin.is_some() {
            let prefix = groups::prefix(&self.options.common.device_prefix, Protocol::Native, Role::Restless);
            let follower = Arc::new(Follower::new(Ledger::new(native.devices, rounds), &prefix));
            follower.start(self.run.admin(), self.run.clock());
            // What is acknowledged before the stream has begun would be taken for lost.
            self.run.wait("finding the events", PATIENCE, |_| follower.has_begun.load(Ordering::Relaxed));
            let acknowledged = native.publish(now, every, rounds).expect("native devices have messages");
            let arrived = Arc::clone(&follower.ledger);
            accounts.push(Account { label: "native, to the event stream", acknowledged, arrived });
            following = Some(follower);
        }
        (self.accounts, self.follower) = (accounts, following);
    }

    /// Lets time pass, and leads failing groups from stage to stage meanwhile.
    fn pass(&mut self, what: &'static str, time: Duration) {
        let end = self.run.elapsed() + time;
        while let Some(left) = end.checked_sub(self.run.elapsed()).filter(|left| !left.is_zero()) {
            self.run.pass(what, left.min(STEP));
            let now = self.run.now();
            self.groups.iter_mut().for_each(|group| group.advance(now));
        }
    }

    /// The round trips of the steady since the last time.
    fn round_trips(&mut self) -> RoundTrips {
        self.run.collect();
        self.groups.iter_mut().for_each(Group::collect);
        let mut found = RoundTrips::new();
        let take = |from: &mut Histogram<u64>, to: &mut Histogram<u64>| {
            to.add(&*from).expect("histograms that grow take each other's values");
            from.reset();
        };
        take(&mut self.run.findings.beats_control, &mut found.native);
        let steady = |group: &&mut Group| (group.protocol, group.role) == (Protocol::Mqtt, Role::Steady);
        for group in self.groups.iter_mut().filter(steady) {
            take(&mut group.findings.beats_control, &mut found.mqtt);
        }
        found
    }

    /// Every kind of attack for the same time, and the server stopped at the end.
    fn cycle(&mut self, attacked: &mut Attacked) -> Result<(), String> {
        let kinds: Vec<Attack> = Attack::ALL.into_iter().chain(Attack::MQTT).collect();
        let slice = self.options.common.duration / (self.options.cycles * kinds.len() as u32);
        for kind in kinds {
            let means = Arc::new(self.means(kind)?);
            let attack = attack::start(kind, Arc::clone(&means)).map_err(|error| format!("a thread: {error}"))?;
            self.pass(kind.label(), slice);
            means.is_over.store(true, Ordering::Relaxed);
            let outcome = attack.join().expect("an attacker has panicked");
            let found = self.round_trips();
            attacked.add(kind, outcome, &found);
        }
        if self.options.common.pid.is_some() && !self.options.freeze.is_zero() {
            self.run.freeze_server(self.options.freeze)?;
            self.pass("after the server was stopped", self.options.common.settle);
            // What took longer because the server stood still is not the attackers' doing.
            self.round_trips();
        }
        Ok(())
    }

    fn means(&self, kind: Attack) -> Result<Means, String> {
        let mut common = self.options.common.clone();
        if kind.is_mqtt() {
            common.protocol = Protocol::Mqtt;
            common.target = self.options.mqtt_target;
        } else {
            common.protocol = Protocol::Native;
        }
        Ok(Means::new(common.target, client_tls(&common)?, self.options.attackers as usize))
    }

    /// Nobody publishes any more, and everybody who should be there comes back.
    fn end_traffic(&mut self) {
        let now = self.run.now();
        for group in &mut self.groups {
            match group.role {
                Role::Restless => group.settle_down(now),
                Role::Failing => group.recover(now),
                Role::Steady | Role::Collector => {}
            }
        }
        let groups = &self.groups;
        self.run.wait("coming back", PATIENCE, |_| groups.iter().all(Group::are_up));
        let accounts = &self.accounts;
        let are_there = || accounts.iter().all(|account| account.acknowledged.missing_in(&account.arrived) == 0);
        self.run.wait("waiting for the last ones", PATIENCE, |_| are_there());
        self.round_trips();
        if let Some(follower) = &self.follower {
            follower.is_over.store(true, Ordering::Relaxed);
        }
    }

    fn check_devices(&mut self) {
        for group in &self.groups {
            self.run.findings.merge(&group.findings);
            let counts = group.fleet.counts();
            self.run.beside.merge(&counts);
            let [up, came, lost, falsely] =
                [Count::Up, Count::Established, Count::Lost, Count::FalselyExpired].map(|count| counts.get(count));
            let line =
                json!({ "devices": group.devices, "up": up, "came": came, "lost": lost, "falsely_expired": falsely });
            self.run.detail(&group.label(), line);
        }
        let end = self.run.snapshot();
        let counts = self.run.measure_end(&end);
        let found = |of: fn(&Group) -> u64| self.groups.iter().map(of).sum::<u64>();
        let (missed, silences, freezes) =
            (found(|group| group.missed), found(|group| group.silences), found(|group| group.freezes));
        let expiries = self.run.findings.expiries.clone();
        let (right, wrong) = (expiries.right, expiries.wrong_reason);
        let early = counts.get(Count::FalselyExpired) + expiries.early;
        let (held, asked, lost) = (counts.get(Count::Up), self.run.report.connections.asked, counts.get(Count::Lost));
        self.run.report.expiry.right = Some(right);
        self.run.report.expiry.r#false = Some(early);
        self.run.detail("times_that_a_group_fell_silent", silences);
        self.run.detail("times_that_a_group_was_frozen", freezes);
        self.run.require("every device is connected at the end", held == asked, format!("{held} of {asked}"));
        self.run.require("no connection was lost", lost == 0, format!("{lost} lost"));
        self.run.require("nobody was expired who was heard", early == 0, format!("{early} falsely expired"));
        let text = format!("{right} were, {wrong} for another reason, {missed} not in time");
        let holds = right > 0 && wrong + missed == 0;
        self.run.require("who was silent was expired, for that reason", holds, text);
    }

    fn check_messages(&mut self) {
        let mut total = Messages { sent: Some(0), received: Some(0), lost: Some(0), duplicated: Some(0) };
        for account in &self.accounts {
            let (acknowledged, arrived) = (account.acknowledged.sums(), account.arrived.sums());
            let lost = account.acknowledged.missing_in(&account.arrived);
            let add = |to: &mut Option<u64>, what: u64| *to = to.map(|sum| sum + what);
            add(&mut total.sent, acknowledged.received);
            add(&mut total.received, arrived.received);
            add(&mut total.lost, lost);
            add(&mut total.duplicated, arrived.duplicated);
            let (label, of) = (account.label, acknowledged.received);
            let holds = lost == 0 && of > 0;
            self.run.require(format!("nothing acknowledged was lost ({label})"), holds, format!("{lost} of {of}"));
        }
        self.run.report.messages = total;
        if let Some(follower) = &self.follower {
            self.run.detail("events_missed_by_the_harness", follower.missed.load(Ordering::Relaxed));
        }
    }

    fn check_round_trips(&mut self, quiet: &RoundTrips, during: &RoundTrips) {
        self.run.report.latency_us = Percentiles::of(&during.native, 1.0);
        self.run.report.curves.extend(
            [
                Curve::of("native, quiet", &quiet.native, false),
                Curve::of("native, under attack", &during.native, false),
                Curve::of("MQTT, quiet", &quiet.mqtt, false),
                Curve::of("MQTT, under attack", &during.mqtt, false),
            ]
            .into_iter()
            .flatten(),
        );
        let factor = self.options.max_p99_factor;
        for (label, quiet, during) in [("native", &quiet.native, &during.native), ("MQTT", &quiet.mqtt, &during.mqtt)] {
            let p99 = |histogram: &Histogram<u64>| histogram.value_at_quantile(0.99) as f64;
            let (before, now) = (p99(quiet), p99(during));
            let holds = !quiet.is_empty() && !during.is_empty() && now <= before * factor;
            let text = format!("{:.2} ms, quiet {:.2} ms", now / 1e3, before / 1e3);
            let name = format!("99 % of {label} round trips took at most {factor} times as long as when it was quiet");
            self.run.require(name, holds, text);
        }
    }

    fn check_server(&mut self, before: &Snapshot, calm: &[Snapshot]) {
        let (Some(first), Some(last)) = (calm.first(), calm.last()) else { return };
        if let (Some(first), Some(last)) = (first.usage, last.usage) {
            let growth = (last.rss_bytes as f64 - first.rss_bytes as f64) / 1_048_576.0;
            self.run.detail("server_memory_after_each_cycle_bytes", memory_of(calm));
            let limit = self.options.max_growth;
            let name = format!("from the first cycle to the last the server's memory grew by at most {limit} MiB");
            self.run.require(name, growth <= limit, format!("{growth:.1} MiB"));
        }
        if let (Some(before), Some(last)) = (&before.metrics, &last.metrics) {
            let turns = last.growth(before, TURNS, "");
            let idle = last.growth(before, IDLE_TURNS, "");
            let (share, limit) = (idle / turns.max(1.0), self.options.max_idle_turns);
            self.run.detail("server_turns", turns);
            let name = format!("at most {:.1} % of the turns of the event loops did nothing", limit * 100.0);
            self.run.require(name, turns > 0.0 && share <= limit, format!("{:.2} %", share * 100.0));
        }
    }
}

fn memory_of(calm: &[Snapshot]) -> Vec<u64> {
    calm.iter().filter_map(|snapshot| Some(snapshot.usage?.rss_bytes)).collect()
}
