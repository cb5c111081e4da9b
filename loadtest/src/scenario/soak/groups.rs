//! The fleets of a soak: a group for each protocol and each way to behave.
//!
//! ```text
//!             steady                     restless                        failing
//! native      heartbeats; round trips    come, publish, leave or vanish  silent until expired, back,
//! raw         heartbeats                 come, leave or vanish           frozen for a third of the bound, thawed,
//! MQTT        heartbeats; round trips    come, publish, leave or vanish  silent again ...
//! collector   four members of one shared subscription, which get what restless MQTT devices publish
//! ```

use std::sync::Arc;
use std::time::Duration;

use crate::cli::Soak;
use crate::clock::{Clock, Micros, micros};
use crate::fleet::protocol::{DeviceProtocol, Mqtt, MqttVersion, Protocol, Subscription};
use crate::fleet::{Churn, ComeBack, Count, Cut, Findings, Fleet, Ledger, Listening, Order, Publishing, Whose};
use crate::run::start_fleet;

/// What restless MQTT devices publish to.
pub const TOPIC: &str = "soak/up";
/// How many share the subscription to it.
pub const COLLECTORS: u32 = 4;
/// Away for this part of what they stay.
const PAUSE: u32 = 10;
/// Half of those who leave say so.
const POLITE: f64 = 0.5;
const PAYLOAD_BYTES: usize = 64;
/// How long a failing group is left in peace after it has come back, or was thawed.
const REST: Duration = Duration::from_secs(2);

/// How the devices of a group behave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Steady,
    Restless,
    Failing,
    Collector,
}

impl Role {
    const fn label(self) -> &'static str {
        match self {
            Role::Steady => "steady",
            Role::Restless => "restless",
            Role::Failing => "failing",
            Role::Collector => "collector",
        }
    }

    /// Out of a hundred devices of a protocol.
    const fn percent(self) -> u32 {
        match self {
            Role::Steady => 50,
            Role::Restless => 30,
            Role::Failing => 20,
            Role::Collector => 0,
        }
    }
}

/// Out of a hundred devices.
const fn percent(protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Native | Protocol::Mqtt => 40,
        Protocol::Raw => 20,
    }
}

/// How many of `all` devices speak `protocol` and behave like this; at least one.
pub fn share(all: u32, protocol: Protocol, role: Role) -> u32 {
    (u64::from(all) * u64::from(percent(protocol)) * u64::from(role.percent()) / 10_000).max(1) as u32
}

/// What a failing group is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Up until then.
    Resting(Micros),
    /// Answers nothing; whoever is not expired by then was missed.
    Silent { until: Micros },
    /// On its way up again.
    Returning,
    /// Reads and sends nothing until then, which is too short for an expiry.
    Frozen { until: Micros },
}

/// One fleet, and what it found.
pub struct Group {
    pub protocol: Protocol,
    pub role: Role,
    pub devices: u32,
    pub fleet: Fleet,
    pub findings: Findings,
    stage: Stage,
    is_silent_next: bool,
    grace: Duration,
    rate: f64,
    /// Silent devices that were not expired in time.
    pub missed: u64,
    pub silences: u64,
    pub freezes: u64,
}

impl Group {
    /// Starts a fleet beside the run's own; nothing is connected yet. To be called from the main thread.
    pub fn start(options: &Soak, protocol: Protocol, role: Role, devices: u32, clock: Clock) -> Result<Group, String> {
        let mut common = options.common.clone();
        common.protocol = protocol;
        common.connections = devices;
        common.threads = None;
        common.device_prefix = prefix(&options.common.device_prefix, protocol, role);
        common.target = match protocol {
            Protocol::Native => options.common.target,
            Protocol::Raw => options.raw_target,
            Protocol::Mqtt => options.mqtt_target,
        };
        let speaks = device_protocol(options, protocol, role, devices);
        let control = if role == Role::Steady { devices } else { 0 };
        let fleet = start_fleet(&common, speaks, control, clock)?;
        fleet.order(&Order::ComeBack(ComeBack::BackOff(Duration::from_secs(1))));
        Ok(Group {
            protocol,
            role,
            devices,
            fleet,
            findings: Findings::new(),
            stage: Stage::Resting(0),
            is_silent_next: true,
            grace: options.grace,
            rate: options.common.rate,
            missed: 0,
            silences: 0,
            freezes: 0,
        })
    }

    pub fn label(&self) -> String {
        format!("{}_{}", protocol_label(self.protocol), self.role.label())
    }

    /// Connects all that are not connected.
    pub fn connect(&self, now: Micros) {
        self.fleet.order(&Order::Connect { devices: 0..self.devices, from: now, rate: self.rate });
    }

    pub fn count(&self, count: Count) -> u64 {
        self.fleet.counts().get(count)
    }

    pub fn are_up(&self) -> bool {
        self.count(Count::Up) >= u64::from(self.devices)
    }

    /// Heartbeats from now on, evenly spread.
    pub fn beat(&self, now: Micros, every: Duration) {
        self.fleet.order(&Order::Beat { devices: 0..self.devices, from: now, every });
    }

    /// Messages that are to be acknowledged, for as long as the soak lasts; `None` where the protocol has none.
    pub fn publish(&self, now: Micros, every: Duration, rounds: u64) -> Option<Arc<Ledger>> {
        if self.protocol == Protocol::Raw {
            return None;
        }
        let acknowledged = Arc::new(Ledger::new(self.devices, rounds));
        self.fleet.order(&Order::Publish(Publishing {
            devices: 0..self.devices,
            from: now,
            every,
            rounds: u32::try_from(rounds).unwrap_or(u32::MAX),
            topic: Arc::from(TOPIC),
            bytes: PAYLOAD_BYTES,
            acknowledged: Some(Arc::clone(&acknowledged)),
        }));
        Some(acknowledged)
    }

    /// Devices come and go by chance.
    pub fn churn(&self, life: Duration) {
        self.fleet.order(&Order::Churn(Churn { life, pause: life / PAUSE, polite: POLITE }));
    }

    /// What comes to these devices is counted here, from whomever it is.
    pub fn listen(&self, ledger: &Arc<Ledger>) {
        self.fleet.order(&Order::Listen(Listening { ledger: Arc::clone(ledger), whose: Whose::FromAny }));
    }

    pub fn collect(&mut self) {
        let found = self.fleet.collect();
        self.findings.merge(&found);
    }

    /// Takes a failing group to its next stage when it is time.
    pub fn advance(&mut self, now: Micros) {
        if self.role != Role::Failing {
            return;
        }
        let rested = now + micros(REST);
        match self.stage {
            Stage::Resting(until) if now >= until && self.are_up() => self.fail_again(now),
            Stage::Silent { until } => {
                let silent = self.count(Count::Silent);
                if silent > 0 && now < until {
                    return;
                }
                self.missed += silent;
                self.fleet.order(&Order::Cut { devices: 0..self.devices, how: Cut::Reset });
                self.connect(now);
                self.stage = Stage::Returning;
            }
            Stage::Returning if self.are_up() => self.stage = Stage::Resting(rested),
            Stage::Frozen { until } if now >= until => {
                self.fleet.order(&Order::Thaw);
                self.stage = Stage::Resting(rested);
            }
            Stage::Resting(_) | Stage::Returning | Stage::Frozen { .. } => {}
        }
    }

    fn fail_again(&mut self, now: Micros) {
        let bound = self.count(Count::LongestBound) * 1_000;
        let is_silent = self.is_silent_next;
        self.is_silent_next = !is_silent;
        if is_silent {
            self.silences += 1;
            self.fleet.order(&Order::Silence { devices: 0..self.devices });
            self.stage = Stage::Silent { until: now + bound + micros(self.grace) };
        } else {
            self.freezes += 1;
            self.fleet.order(&Order::StopReading { devices: 0..self.devices });
            self.stage = Stage::Frozen { until: now + bound / 3 };
        }
    }

    /// No more messages, comings and goings. Raw devices go on with their heartbeats: nothing else shows that they live.
    pub fn settle_down(&self, now: Micros) {
        if self.protocol != Protocol::Raw {
            self.fleet.order(&Order::Quiet);
        }
        self.fleet.order(&Order::Stay);
        self.connect(now);
    }

    /// Ends whatever a failing group is at, so that everybody can be counted.
    pub fn recover(&mut self, now: Micros) {
        match self.stage {
            Stage::Frozen { .. } => self.fleet.order(&Order::Thaw),
            Stage::Silent { .. } => self.fleet.order(&Order::Cut { devices: 0..self.devices, how: Cut::Reset }),
            Stage::Resting(_) | Stage::Returning => {}
        }
        self.connect(now);
    }
}

pub const fn protocol_label(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Native => "native",
        Protocol::Raw => "raw",
        Protocol::Mqtt => "mqtt",
    }
}

/// How the ids of such devices begin.
pub fn prefix(of_all: &str, protocol: Protocol, role: Role) -> String {
    format!("{of_all}{}-{}-", protocol_label(protocol), role.label())
}

fn device_protocol(options: &Soak, protocol: Protocol, role: Role, devices: u32) -> DeviceProtocol {
    match protocol {
        Protocol::Native => DeviceProtocol::Native {
            wanted_interval_ms: u32::try_from(options.common.heartbeat.as_millis()).unwrap_or(u32::MAX),
        },
        Protocol::Raw => DeviceProtocol::Raw,
        Protocol::Mqtt => {
            let own = &options.common.mqtt;
            let filter = match role {
                Role::Collector => format!("$share/soak/{TOPIC}"),
                _ => "soak/devices/{device}/#".to_owned(),
            };
            DeviceProtocol::Mqtt(Mqtt {
                // Both versions take part.
                version: if role == Role::Restless { MqttVersion::V311 } else { own.mqtt_version },
                keep_alive_s: own.keep_alive.as_secs() as u16,
                // Restless devices find their session again.
                clean_start: role != Role::Restless,
                username: own.username.clone(),
                password: own.password.clone(),
                subscription: Some(Subscription { filter, devices: 0..devices }),
                subscription_qos: 1,
                websocket: None,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_to_nearly_all_and_nobody_is_left_out() {
        let groups = [Protocol::Native, Protocol::Raw, Protocol::Mqtt]
            .into_iter()
            .flat_map(|protocol| [Role::Steady, Role::Restless, Role::Failing].map(|role| (protocol, role)));
        let sum = |all: u32| groups.clone().map(|(protocol, role)| share(all, protocol, role)).sum::<u32>();
        assert_eq!(sum(20_000), 20_000);
        assert_eq!(sum(1), 9);
    }
}
