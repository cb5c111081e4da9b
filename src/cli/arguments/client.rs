//! Commands that ask a running gateway over its API, and what they are given.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::duration;

/// Which gateway is asked.
#[derive(Args, Debug)]
pub struct Gateway {
    /// The HTTP API of the gateway
    #[arg(long, global = true, env = "PULSEGATE_ADMIN", value_name = "URL", default_value = "http://127.0.0.1:7480")]
    #[arg(value_parser = admin_url)]
    pub admin: String,
    /// A file with the admin token, where the gateway demands one; the variable PULSEGATE_TOKEN may hold the token itself
    #[arg(long, global = true, env = "PULSEGATE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// The authorities of an API that is spoken over https (PEM); those of the system unless written
    #[arg(long, global = true, env = "PULSEGATE_ADMIN_CA", value_name = "FILE")]
    pub admin_ca: Option<PathBuf>,
    /// The client certificate for an API that demands one (PEM)
    #[arg(long, global = true, env = "PULSEGATE_ADMIN_CERT", value_name = "FILE", requires = "admin_key")]
    pub admin_cert: Option<PathBuf>,
    /// Its key (PEM)
    #[arg(long, global = true, env = "PULSEGATE_ADMIN_KEY", value_name = "FILE", requires = "admin_cert")]
    pub admin_key: Option<PathBuf>,
}

/// `health`.
#[derive(Args, Debug)]
pub struct Health {
    #[command(flatten)]
    pub gateway: Gateway,
    /// Whether it takes new devices, and not only whether it lives
    #[arg(long)]
    pub ready: bool,
}

/// `why`.
#[derive(Args, Debug)]
pub struct Why {
    /// The device's id
    pub device: String,
    /// Which gateway is asked
    #[command(flatten)]
    pub gateway: Gateway,
}

/// `devices`.
#[derive(Args, Debug)]
pub struct Devices {
    #[command(flatten)]
    pub gateway: Gateway,
    /// The devices of all gateways of the fleet, and which has each
    #[arg(long)]
    pub fleet: bool,
    /// Only devices whose ids begin so
    #[arg(long, default_value = "")]
    pub prefix: String,
    /// At most so many; 0: all
    #[arg(long, default_value_t = 100)]
    pub limit: usize,
    /// Only devices of this protocol
    #[arg(long, value_name = "PROTOCOL")]
    pub protocol: Option<String>,
    /// Only devices that came through this listener
    #[arg(long, value_name = "NAME")]
    pub listener: Option<String>,
    /// Only devices in this state
    #[arg(long, value_name = "STATE", value_parser = ["heard", "probed"])]
    pub state: Option<String>,
    /// In this order; anything but `id` asks for all of them
    #[arg(long, value_name = "KEY", value_enum, default_value_t = DeviceOrder::Id)]
    pub sort: DeviceOrder,
    /// The other way round
    #[arg(long)]
    pub reverse: bool,
    /// One JSON object a line, as the API has it, instead of a table
    #[arg(long)]
    pub json: bool,
}

/// By what a listing is sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeviceOrder {
    /// By bytes of the id
    Id,
    /// Who has been connected for longest first
    Connected,
    /// Who was heard longest ago first
    Heard,
    /// The quickest first, those that were never measured last
    RoundTrip,
    /// By the number of messages that wait in its MQTT session
    Queued,
    /// By address
    Peer,
}

/// `top`.
#[derive(Args, Debug)]
pub struct Top {
    #[command(flatten)]
    pub gateway: Gateway,
    /// How often the gateway is asked
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = interval)]
    pub interval: Duration,
    /// Print what is so now and end; this is what happens, too, where stdout is no terminal
    #[arg(long)]
    pub once: bool,
    /// One JSON object for each look, a line each
    #[arg(long)]
    pub json: bool,
}

/// `reload`.
#[derive(Args, Debug)]
pub struct Reload {
    #[command(flatten)]
    pub gateway: Gateway,
}

/// Whom `block` and `unblock` are about.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct Subject {
    /// The device with this id
    #[arg(value_name = "ID")]
    pub device: Option<String>,
    /// Whoever shows this client certificate, by its SHA-256 fingerprint as openssl x509 -fingerprint -sha256 shows it
    #[arg(long, value_name = "FINGERPRINT")]
    pub certificate: Option<String>,
    /// Every address of this network, such as 192.0.2.0/24
    #[arg(long, value_name = "NETWORK")]
    pub network: Option<String>,
}

/// `block`.
#[derive(Args, Debug)]
pub struct Block {
    #[command(flatten)]
    pub gateway: Gateway,
    #[command(flatten)]
    pub subject: Subject,
    /// For how long, such as 1h; without it for good
    #[arg(long = "for", value_name = "DURATION")]
    pub span: Option<String>,
    /// Only at the gateway that is asked, where there is a fleet
    #[arg(long)]
    pub here: bool,
}

/// `unblock`.
#[derive(Args, Debug)]
pub struct Unblock {
    #[command(flatten)]
    pub gateway: Gateway,
    #[command(flatten)]
    pub subject: Subject,
    /// Only at the gateway that is asked, where there is a fleet
    #[arg(long)]
    pub here: bool,
}

/// `blocks`.
#[derive(Args, Debug)]
pub struct Blocks {
    #[command(flatten)]
    pub gateway: Gateway,
}

/// `send`.
#[derive(Args, Debug)]
pub struct Send {
    #[command(flatten)]
    pub gateway: Gateway,
    /// The device's id
    #[arg(value_name = "ID")]
    pub device: String,
    /// What to say; - takes it from stdin, bytes as they are
    #[arg(value_name = "PAYLOAD", allow_hyphen_values = true)]
    pub payload: String,
    /// Under which topic (not used for raw devices)
    #[arg(long, default_value = "")]
    pub topic: String,
    /// Wait until the device has acknowledged it
    #[arg(long)]
    pub ack: bool,
    /// How long to wait for that
    #[arg(long, default_value = "5s", requires = "ack")]
    pub timeout: String,
    /// Keep it until the device comes, if it is nowhere now; prints the command's id
    #[arg(long)]
    pub queue: bool,
    /// For how long, from 1s to 7days; a day without it
    #[arg(long, value_name = "DURATION", requires = "queue")]
    pub expiry: Option<String>,
}

/// `queued`.
#[derive(Args, Debug)]
pub struct Queued {
    #[command(flatten)]
    pub gateway: Gateway,
    /// The id that `send --queue` printed
    pub id: String,
    /// Take it back, unless it has an outcome already
    #[arg(long)]
    pub cancel: bool,
}

/// `publish`.
#[derive(Args, Debug)]
pub struct Publish {
    #[command(flatten)]
    pub gateway: Gateway,
    /// The topic
    pub topic: String,
    /// What; - takes it from stdin, bytes as they are
    #[arg(value_name = "PAYLOAD", allow_hyphen_values = true)]
    pub payload: String,
    /// The quality of service: 0, 1 or 2
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=2))]
    pub qos: u8,
    /// Keep it for those who subscribe later; an empty payload deletes what is kept
    #[arg(long)]
    pub retain: bool,
    /// For how long it is of use, such as 60s; without it, for ever
    #[arg(long, value_name = "DURATION")]
    pub expiry: Option<String>,
}

/// `uplink`.
#[derive(Args, Debug)]
pub struct Uplink {
    #[command(flatten)]
    pub gateway: Gateway,
    /// Under which name to read
    #[arg(long, value_name = "NAME", required_unless_present = "list")]
    pub consumer: Option<String>,
    /// Where the consumer begins if it is new: first, end, an event's number, or a time such as 2026-11-25T08:00:00Z
    #[arg(long, value_name = "POSITION", default_value = "first")]
    pub from: String,
    /// Go on with what comes, until there is an interrupt
    #[arg(long, short)]
    pub follow: bool,
    /// Look only: what is printed is not acknowledged, and is handed out again after some seconds
    #[arg(long)]
    pub no_ack: bool,
    /// List the consumers and how far each is behind
    #[arg(long, conflicts_with_all = ["consumer", "follow", "no_ack"])]
    pub list: bool,
}

/// `sinks`.
#[derive(Args, Debug)]
pub struct Sinks {
    #[command(flatten)]
    pub gateway: Gateway,
    /// What to do; nothing said means `list`
    #[command(subcommand)]
    pub order: Option<SinkOrder>,
}

/// What a sink is told.
#[derive(Debug, Subcommand)]
pub enum SinkOrder {
    /// How far each is, and why one waits
    List,
    /// Send nothing more through a sink until it is resumed, also after a restart
    Pause {
        /// The sink's name
        name: String,
    },
    /// Go on where it was
    Resume {
        /// The sink's name
        name: String,
    },
    /// Go on elsewhere: send again what was sent, or pass over what was not
    Seek {
        /// The sink's name
        name: String,
        /// Where: first, end, an event's number, or a time such as 2026-11-25T08:00:00Z
        #[arg(long, value_name = "POSITION")]
        to: String,
    },
}

/// `watch`.
#[derive(Args, Debug)]
pub struct Watch {
    #[command(flatten)]
    pub gateway: Gateway,
    /// Only this device
    #[arg(long, value_name = "ID")]
    pub device: Option<String>,
    /// Only these kinds: connected, disconnected, message, takeover_loop (separated by commas)
    #[arg(long, value_name = "KINDS")]
    pub kind: Option<String>,
    /// Begin earlier: with `first` (all that the gateway still holds), behind the event with this id, or so long ago (10m)
    #[arg(long, value_name = "PLACE")]
    pub since: Option<String>,
    /// One JSON object a line, as the API has it, with the event's id
    #[arg(long)]
    pub json: bool,
    /// End with the connection to the gateway instead of coming back for what came meanwhile
    #[arg(long)]
    pub no_reconnect: bool,
}

/// Whom `trace` is about.
#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
pub struct Traced {
    /// The device with this id, from when it is known
    #[arg(value_name = "ID")]
    pub device: Option<String>,
    /// Whoever comes from this address or network, such as 192.0.2.7 or 192.0.2.0/24, from accept on
    #[arg(long, value_name = "NETWORK")]
    pub address: Option<String>,
}

/// `trace`.
#[derive(Args, Debug)]
pub struct Trace {
    #[command(flatten)]
    pub gateway: Gateway,
    #[command(flatten)]
    pub whom: Traced,
    /// Show packets too: names and what is in their headers, never a password or token
    #[arg(long)]
    pub packets: bool,
    /// Show the first 256 bytes of payloads too; with it packets are shown
    #[arg(long)]
    pub payloads: bool,
    /// For how long, from 1s to 24h
    #[arg(long = "for", value_name = "DURATION", default_value = "10m", value_parser = trace_span)]
    pub span: Duration,
    /// One JSON object a line, as the API has it
    #[arg(long)]
    pub json: bool,
}

/// Where an API can be: plain HTTP, as the gateway speaks it.
fn admin_url(text: &str) -> Result<String, String> {
    let url = text.trim_end_matches('/');
    match url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")) {
        Some(address) if !address.is_empty() && !address.contains('/') => Ok(url.to_owned()),
        _ => Err("write http://HOST:PORT, or https://HOST:PORT where the configuration has [admin.tls]".to_owned()),
    }
}

/// How often `top` looks.
fn interval(text: &str) -> Result<Duration, String> {
    let span = duration(text)?;
    let range = Duration::from_millis(200)..=Duration::from_mins(1);
    if range.contains(&span) { Ok(span) } else { Err("write a duration between 200ms and 1m".to_owned()) }
}

fn trace_span(text: &str) -> Result<Duration, String> {
    let span = duration(text)?;
    let range = Duration::from_secs(1)..=Duration::from_hours(24);
    if range.contains(&span) { Ok(span) } else { Err("write a duration between 1s and 24h".to_owned()) }
}
