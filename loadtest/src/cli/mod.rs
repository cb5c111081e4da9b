//! The command line.

mod duel;
mod messages;
mod mqtt;
mod soak;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::fleet::protocol::{Protocol, Subscription};
pub use duel::{Duel, Opponents};
pub use messages::{Broadcast, Downlink, Slow, Uplink};
pub use mqtt::{FAN_TOPIC, Fan, MqttOptions};
pub use soak::Soak;

/// Drives a fleet of TLS devices against a server, and measures both.
#[derive(Debug, Parser)]
#[command(
    name = "loadtest",
    version,
    about,
    long_about = "Drives a fleet of TLS devices against a server, and measures both.\n\n\
        Every device is a real TLS connection, kept as about 300 bytes, so that one process holds as many as the server \
        does. Each scenario has a pass condition of its own and exits with 1 when it is not met.",
    after_long_help = EXAMPLES
)]
pub struct Cli {
    /// What is done to the server.
    #[command(subcommand)]
    pub command: Command,
}

/// One scenario, or one against several targets.
#[derive(Debug, Subcommand)]
pub enum Command {
    #[command(flatten)]
    Scenario(Scenario),
    /// The same scenario against several targets in turns, printed as ratios.
    Duel(Duel),
}

const EXAMPLES: &str = "\
Examples (a gateway with its built-in configuration runs in the same directory):

  What does an idle connection cost?
    loadtest hold --connections 15000 --pid $(pidof pulsegate) --admin http://127.0.0.1:7480

  What does a heartbeat cost, and how long does it take? 10,000 devices, one heartbeat every 2 s each:
    loadtest heartbeat --connections 10000 --every 2s --duration 60s --pid PID --html heartbeat.html

  The power comes back: all but a control group of 10 % are cut off at once and return as fast as they can:
    loadtest storm --connections 20000 --resume --pid PID --json storm.json

  5 % fall silent. Is each expired in time, and nobody else?
    loadtest dark --connections 20000 --share 0.05 --heartbeat 5s --admin http://127.0.0.1:7480

  10,000 commands to 10,000 devices, each acknowledged. Does each arrive exactly once, and how soon?
    loadtest downlink --connections 10000 --messages 10000 --ack --admin http://127.0.0.1:7480

  2,000 messages a second from devices to whoever follows the events:
    loadtest uplink --messages-per-second 2000 --ack --admin http://127.0.0.1:7480 --pid PID

  The same for several servers in turns, as ratios:
    loadtest duel heartbeat --connections 1000 --every 1s --pid PID --against other=127.0.0.1:8883:PID

  Ten minutes of everything, 20,000 devices of all three protocols:
    loadtest soak --admin http://127.0.0.1:7480 --pid PID

  1,000 MQTT publishers, 5,000 messages a second, one subscriber, against any broker:
    loadtest fan-in --protocol mqtt --target 127.0.0.1:8883 --connections 1001 --messages-per-second 5000 --qos 1 --pid PID

  The same against another server that takes opaque bytes over TLS:
    loadtest hold --protocol raw --target 127.0.0.1:8883 --ca other-ca.pem --pid PID

A figure is only as good as the harness was idle: the last lines say so when it was not.";

/// What is done to the server.
#[derive(Debug, Subcommand)]
pub enum Scenario {
    /// Connects all devices, leaves them idle, counts who is still there: memory and idle CPU.
    Hold(Hold),
    /// Connects all devices and has them send heartbeats: CPU per heartbeat and round trips.
    Heartbeat(Heartbeat),
    /// Cuts all devices off at once and lets them come back: recovery, and what a control group noticed of it.
    Storm(Storm),
    /// Lets a share of the devices fall silent: each must be expired in time and with the right reason, and nobody else.
    Dark(Dark),
    /// Devices come and go for a long time: counts must agree at the end, and memory must not grow.
    Churn(Churn),
    /// Attacks of several kinds beside a healthy control group, which must not notice.
    Hostile(Hostile),
    /// Devices publish, and whoever follows the gateway's events counts: nothing lost, nothing twice (needs --admin).
    Uplink(Uplink),
    /// Commands to single devices through the HTTP API: nothing lost, nothing twice, and how soon (needs --admin).
    Downlink(Downlink),
    /// Broadcasts to the whole fleet: each device is told each of them once (needs --admin).
    Broadcast(Broadcast),
    /// A share of the devices stops reading while messages pour in: they must be ended, in bounded memory, and no other
    /// device may notice (needs --admin).
    Slow(Slow),
    /// Many publishers, one subscriber (--protocol mqtt): exact counts, and the server's CPU time for each message.
    FanIn(Fan),
    /// One publisher, many subscribers (--protocol mqtt): exact counts, and the server's CPU time for each delivery.
    FanOut(Fan),
    /// Everything at once for a long time: three protocols, vanishing, silent and frozen devices, every attack in turns.
    #[command(
        mut_arg("connections", |argument| argument.default_value("20000")),
        mut_arg("duration", |argument| argument.default_value("10m"))
    )]
    Soak(Soak),
}

/// What all scenarios have in common.
#[derive(Clone, Debug, Args, Serialize)]
pub struct Common {
    /// Where the server listens.
    #[arg(long, default_value = "127.0.0.1:7443", value_name = "HOST:PORT", value_parser = target)]
    pub target: SocketAddr,
    /// What devices speak within TLS.
    #[arg(long, value_enum, default_value = "native")]
    pub protocol: Protocol,
    /// How many devices.
    #[arg(long, short = 'n', default_value_t = 1_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=16_000_000))]
    pub connections: u32,
    /// New connections each second while the fleet connects.
    #[arg(long, default_value_t = 2_000.0, value_name = "PER_SECOND", value_parser = positive)]
    pub rate: f64,
    /// How long the scenario runs once all devices are connected.
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = duration)]
    #[serde(rename = "duration_s", serialize_with = "seconds")]
    pub duration: Duration,
    /// Rest between connecting and measuring, in which the server may tidy up.
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = duration)]
    #[serde(rename = "settle_s", serialize_with = "seconds")]
    pub settle: Duration,

    /// The server's process id: its memory and CPU time are measured.
    #[arg(long, value_name = "PID")]
    pub pid: Option<u32>,
    /// A Pulsegate's control plane, such as http://127.0.0.1:7480: its metrics are compared with what devices saw.
    #[arg(long, value_name = "URL")]
    pub admin: Option<String>,
    /// A file with the control plane's bearer token.
    #[arg(long, value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// Authorities that devices trust.
    #[arg(long, default_value = "pulsegate-data/certs/ca.pem", value_name = "FILE")]
    pub ca: PathBuf,
    /// The name that devices expect in the server's certificate.
    #[arg(long, default_value = "localhost", value_name = "NAME")]
    pub server_name: String,
    /// One client certificate chain, shown by all devices.
    #[arg(long, value_name = "FILE", requires = "client_key")]
    pub client_cert: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE", requires = "client_cert")]
    pub client_key: Option<PathBuf>,
    /// Devices keep a session and resume it when they come back; without it every handshake is a full one.
    #[arg(long)]
    pub resume: bool,
    /// The only TLS version that is offered.
    #[arg(long, value_enum, default_value = "1.3")]
    pub tls: TlsVersion,

    /// Device ids are this and a number.
    #[arg(long, default_value = "load-", value_name = "TEXT")]
    pub device_prefix: String,
    /// The heartbeat interval that native devices ask the server for; 0s: the server's own.
    #[arg(long, default_value = "0s", value_name = "TIME", value_parser = duration)]
    #[serde(rename = "heartbeat_s", serialize_with = "seconds")]
    pub heartbeat: Duration,
    /// Raw only: the server's interval, which no raw device is told.
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = duration)]
    #[serde(rename = "raw_interval_s", serialize_with = "seconds")]
    pub raw_interval: Duration,
    /// Raw only: the server's timeout.
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = duration)]
    #[serde(rename = "raw_timeout_s", serialize_with = "seconds")]
    pub raw_timeout: Duration,
    /// Raw only: the server's retries.
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub raw_retries: u8,

    #[command(flatten)]
    #[serde(flatten)]
    pub mqtt: MqttOptions,

    /// Threads, each with a descriptor table of its own [default: as many as descriptors demand, and the machine's
    /// cores where there are more than 5,000 devices].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_024))]
    pub threads: Option<u32>,
    /// Source addresses from 127.0.0.0/8, for targets on the loopback; 0: the system chooses [default: one for each
    /// 1,000 devices, at least 16].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=65_000))]
    pub source_addresses: Option<u32>,
    /// Connections on their way up at any time, at most.
    #[arg(long, default_value_t = 1_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub in_flight: u32,
    /// How long one connection may take to come up.
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = duration)]
    #[serde(rename = "connect_timeout_s", serialize_with = "seconds")]
    pub connect_timeout: Duration,

    /// Writes everything measured as one JSON object.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub json: Option<PathBuf>,
    /// Writes one self-contained page with plots.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub html: Option<PathBuf>,
}

/// `hold`.
#[derive(Debug, Args, Serialize)]
pub struct Hold {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    /// Fails when the server's user-space memory per connection is above this (needs --pid).
    #[arg(long, value_name = "BYTES", requires = "pid")]
    pub max_user_bytes: Option<f64>,
}

/// `heartbeat`.
#[derive(Debug, Args, Serialize)]
pub struct Heartbeat {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    /// How often each device sends a heartbeat.
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = nonzero_duration)]
    #[serde(rename = "every_s", serialize_with = "seconds")]
    pub every: Duration,
}

/// `storm`.
#[derive(Debug, Args, Serialize)]
pub struct Storm {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    /// How connections are cut.
    #[arg(long, value_enum, default_value = "reset")]
    pub cut: CutKind,
    /// Devices wait a random part of this before they come back, doubled with each failure; 0s: at once.
    #[arg(long, default_value = "0s", value_name = "TIME", value_parser = duration)]
    #[serde(rename = "back_off_s", serialize_with = "seconds")]
    pub back_off: Duration,
    /// The share of devices that is not cut, and beats all the time.
    #[arg(long, default_value_t = 0.1, value_name = "SHARE", value_parser = share)]
    pub control: f64,
    /// How often each device of the control group sends a heartbeat.
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = nonzero_duration)]
    #[serde(rename = "every_s", serialize_with = "seconds")]
    pub every: Duration,
}

/// `dark`.
#[derive(Debug, Args, Serialize)]
pub struct Dark {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    /// The share of devices that falls silent.
    #[arg(long, default_value_t = 0.05, value_name = "SHARE", value_parser = share)]
    pub share: f64,
    /// How long after its deadline a device may still be expired without counting as missed.
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = duration)]
    #[serde(rename = "grace_s", serialize_with = "seconds")]
    pub grace: Duration,
    /// Fails when the 99.9th percentile of the lateness is above this.
    #[arg(long, default_value = "200ms", value_name = "TIME", value_parser = duration)]
    #[serde(rename = "max_lateness_s", serialize_with = "seconds")]
    pub max_lateness: Duration,
}

/// `churn`.
#[derive(Debug, Args, Serialize)]
pub struct Churn {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    /// How long a device stays on average (exponentially spread).
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = nonzero_duration)]
    #[serde(rename = "life_s", serialize_with = "seconds")]
    pub life: Duration,
    /// How long it stays away on average.
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = nonzero_duration)]
    #[serde(rename = "pause_s", serialize_with = "seconds")]
    pub pause: Duration,
    /// The share that leaves with a goodbye; the others tear the connection down.
    #[arg(long, default_value_t = 0.5, value_name = "SHARE", value_parser = share)]
    pub polite: f64,
    /// Fails when the server's memory grows faster than this in the second half (needs --pid).
    #[arg(long, value_name = "BYTES_PER_MINUTE", requires = "pid")]
    pub max_slope: Option<f64>,
}

/// `hostile`.
#[derive(Debug, Args, Serialize)]
pub struct Hostile {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    /// Connections that each kind of attack holds or opens at a time.
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub attackers: u32,
    /// How often each healthy device sends a heartbeat.
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = nonzero_duration)]
    #[serde(rename = "every_s", serialize_with = "seconds")]
    pub every: Duration,
    /// Fails when the 99th percentile of the control group's round trips is above this.
    #[arg(long, default_value = "250ms", value_name = "TIME", value_parser = duration)]
    #[serde(rename = "max_p99_s", serialize_with = "seconds")]
    pub max_p99: Duration,
    /// Fails when the server bears a connection that does no more than an attack for longer than this.
    #[arg(long, default_value = "25s", value_name = "TIME", value_parser = nonzero_duration)]
    #[serde(rename = "max_life_s", serialize_with = "seconds")]
    pub max_life: Duration,
}

/// The same for the options of every scenario.
macro_rules! each {
    ($scenario:expr, $options:ident => $what:expr) => {
        match $scenario {
            Scenario::Hold($options) => $what,
            Scenario::Heartbeat($options) => $what,
            Scenario::Storm($options) => $what,
            Scenario::Dark($options) => $what,
            Scenario::Churn($options) => $what,
            Scenario::Hostile($options) => $what,
            Scenario::Uplink($options) => $what,
            Scenario::Downlink($options) => $what,
            Scenario::Broadcast($options) => $what,
            Scenario::Slow($options) => $what,
            Scenario::FanIn($options) => $what,
            Scenario::FanOut($options) => $what,
            Scenario::Soak($options) => $what,
        }
    };
}

impl Scenario {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Scenario::Hold(_) => "hold",
            Scenario::Heartbeat(_) => "heartbeat",
            Scenario::Storm(_) => "storm",
            Scenario::Dark(_) => "dark",
            Scenario::Churn(_) => "churn",
            Scenario::Hostile(_) => "hostile",
            Scenario::Uplink(_) => "uplink",
            Scenario::Downlink(_) => "downlink",
            Scenario::Broadcast(_) => "broadcast",
            Scenario::Slow(_) => "slow",
            Scenario::FanIn(_) => "fan-in",
            Scenario::FanOut(_) => "fan-out",
            Scenario::Soak(_) => "soak",
        }
    }

    /// What it has in common with all others.
    pub fn common(&self) -> &Common {
        each!(self, scenario => &scenario.common)
    }

    /// The same, to be changed.
    pub fn common_mut(&mut self) -> &mut Common {
        each!(self, scenario => &mut scenario.common)
    }

    /// How many devices are in the run's own fleet: all, unless the scenario has several fleets.
    pub fn own_devices(&self) -> u32 {
        match self {
            Scenario::Soak(soak) => crate::scenario::soak_share(soak.common.connections),
            _ => self.common().connections,
        }
    }

    /// How many of its devices are the control group.
    pub fn control(&self) -> u32 {
        match self {
            Scenario::Storm(storm) => portion(storm.common.connections, storm.control),
            Scenario::Hostile(hostile) => hostile.common.connections,
            Scenario::Soak(_) => self.own_devices(),
            Scenario::Slow(slow) => slow.common.connections - portion(slow.common.connections, slow.share),
            _ => 0,
        }
    }

    /// What is missing for it, in a sentence.
    pub fn lacks(&self) -> Option<String> {
        let (common, name) = (self.common(), self.name());
        let needs_admin =
            matches!(self, Scenario::Uplink(_) | Scenario::Downlink(_) | Scenario::Broadcast(_) | Scenario::Slow(_));
        let needs_mqtt = matches!(self, Scenario::FanIn(_) | Scenario::FanOut(_));
        if needs_admin && common.admin.is_none() {
            return Some(format!("{name} needs the control plane: --admin URL"));
        }
        if needs_admin && common.protocol == Protocol::Raw {
            return Some(format!("{name} counts messages one by one, which raw devices cannot tell apart"));
        }
        if needs_mqtt && common.protocol != Protocol::Mqtt {
            return Some(format!("{name} needs publishers and subscribers: --protocol mqtt"));
        }
        if needs_mqtt && common.connections < 2 {
            return Some(format!("{name} needs at least two devices"));
        }
        if common.mqtt.websocket.is_some() && matches!(self, Scenario::Soak(_)) {
            return Some("soak and its attackers speak MQTT without WebSocket".to_owned());
        }
        if common.mqtt.websocket.is_some() && common.protocol != Protocol::Mqtt {
            return Some("--websocket carries MQTT: --protocol mqtt".to_owned());
        }
        let is_dark = matches!(self, Scenario::Dark(_)) && common.protocol == Protocol::Mqtt;
        (is_dark && common.mqtt.keep_alive.is_zero())
            .then(|| "dark needs a bound: a --keep-alive above 0s, or nobody is ever ended".to_owned())
    }

    /// What its devices subscribe to, with which quality of service.
    pub fn subscription(&self) -> (Option<Subscription>, u8) {
        let common = self.common();
        let fan = |devices| Some(Subscription { filter: FAN_TOPIC.to_owned(), devices });
        match self {
            Scenario::FanIn(fan_in) => (fan(0..1), fan_in.qos),
            Scenario::FanOut(fan_out) => (fan(1..common.connections), fan_out.qos),
            _ => {
                let filter = common.mqtt.subscribe.clone();
                let all = filter.map(|filter| Subscription { filter, devices: 0..common.connections });
                (all, common.mqtt.subscribe_qos)
            }
        }
    }

    /// All options, for the report.
    pub fn configuration(&self) -> serde_json::Value {
        let value = each!(self, scenario => serde_json::to_value(scenario));
        value.expect("options are plain data")
    }
}

/// A share of `count`, rounded up.
pub fn portion(count: u32, share: f64) -> u32 {
    (f64::from(count) * share).ceil() as u32
}

/// The TLS version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
pub enum TlsVersion {
    /// TLS 1.2.
    #[value(name = "1.2")]
    #[serde(rename = "1.2")]
    Tls12,
    /// TLS 1.3.
    #[value(name = "1.3")]
    #[serde(rename = "1.3")]
    Tls13,
}

/// How connections are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CutKind {
    /// TCP resets: the server hears of it at once.
    Reset,
    /// TCP ends: without close_notify.
    Fin,
}

fn seconds<S: serde::Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}

fn target(text: &str) -> Result<SocketAddr, String> {
    use std::net::ToSocketAddrs;
    let mut addresses = text.to_socket_addrs().map_err(|error| error.to_string())?;
    addresses.next().ok_or_else(|| "the name has no address".to_owned())
}

/// `500ms`, `30s`, `5m`, `2h`.
fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        _ => return Err("write a time as 500ms, 30s, 5m or 2h".to_owned()),
    };
    let number: f64 = number.parse().map_err(|_| format!("{number:?} is not a number"))?;
    Duration::try_from_secs_f64(number * seconds).map_err(|error| error.to_string())
}

fn nonzero_duration(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration < Duration::from_millis(1) { Err("at least 1ms".to_owned()) } else { Ok(duration) }
}

fn positive(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|&number: &f64| number > 0.0 && number.is_finite()).ok_or("a number above 0".to_owned())
}

fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|share| (0.0..=1.0).contains(share)).ok_or("a share from 0 to 1, such as 0.05".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound_and_its_examples_are_understood() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
        let lines = EXAMPLES.lines().filter_map(|line| line.trim().strip_prefix("loadtest "));
        let lines: Vec<_> = lines.map(|line| line.replace("$(pidof pulsegate)", "1").replace("PID", "1")).collect();
        assert!(lines.len() >= 5);
        for line in lines {
            let words = std::iter::once("loadtest").chain(line.split(' '));
            Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
    }

    #[test]
    fn times_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1_500)));
        assert_eq!(duration("2m"), Ok(Duration::from_mins(2)));
        assert!(duration("30").is_err() && duration("s").is_err() && duration("-1s").is_err());
    }

    #[test]
    fn the_configuration_names_units() {
        let cli = Cli::try_parse_from(["loadtest", "dark", "--share", "0.1"]).unwrap();
        let Command::Scenario(scenario) = cli.command else { panic!("a scenario") };
        let configuration = scenario.configuration();
        assert_eq!(configuration["duration_s"], 30.0);
        assert_eq!(configuration["share"], 0.1);
        assert_eq!(configuration["resume"], false);
    }
}
