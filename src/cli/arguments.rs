//! What can be asked for on the command line. The help texts are the first documentation that an operator meets.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

const ABOUT: &str = "An edge gateway for device fleets: terminates TLS, holds the connections, knows who is alive";

const LONG_ABOUT: &str = "\
An edge gateway for device fleets.

Pulsegate terminates TLS, holds hundreds of thousands of mostly idle device connections on one machine, knows within a \
heartbeat which of them are alive, and shows and commands them over HTTP.

Without a configuration it serves at once, for trying out: development certificates are made in ./pulsegate-data, \
devices connect on 127.0.0.1:7443 (native protocol), 127.0.0.1:7444 (raw bytes over TLS) and 127.0.0.1:8883 (MQTT, \
open: any device may publish and subscribe anywhere), and http://127.0.0.1:7480/v1/overview shows what is going on.";

const EXAMPLES: &str = "\
Examples:
  Try it out; the start-up message has lines to paste:
    pulsegate

  Make certificates, write a configuration, check it, serve:
    pulsegate dev-certs certs --client meter-17
    pulsegate check-config --config pulsegate.toml
    pulsegate --config pulsegate.toml

  See what one listener's connections do:
    pulsegate --config pulsegate.toml --log-filter info,pulsegate::connection=debug

  Who is there, what happens, and a command that waits until meter-17 has taken it:
    pulsegate devices --prefix meter-
    pulsegate watch --kind connected,disconnected
    pulsegate send meter-17 --topic set/relay --ack on

  Tell every MQTT device that has subscribed, now and later:
    pulsegate publish fleet/tariff 2 --qos 1 --retain

  Work through what devices said, each event once, also after a restart:
    pulsegate uplink --consumer billing --follow

  Let meter-17 prove itself with a token:
    openssl rand -hex 32 | tee meter-17.token | pulsegate hash-token meter-17 >> devices.tokens

  Let an MQTT user come with a password, asked for on the terminal:
    pulsegate hash-token alice >> users

docs/OPERATING.md describes every key of the configuration, sizing and limits.";

/// The whole command line.
#[derive(Debug, Parser)]
#[command(name = "pulsegate", version, about = ABOUT, long_about = LONG_ABOUT, after_long_help = EXAMPLES)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// What to do; nothing said means `serve`.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The options of `serve`, which may stand without its name.
    #[command(flatten)]
    pub serve: Serve,
}

/// What can be asked for.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the gateway (this is what happens without a command, too)
    Serve(Serve),
    /// Check a configuration and the files that it names, and show what would be in effect
    ///
    /// Nothing is bound, made or changed. Exits with 1 and one line that names file, line, key and remedy if something
    /// is wrong. Memory and descriptor limits are those of the shell that runs it.
    CheckConfig(CheckConfig),
    /// List the devices that are connected to a running gateway
    Devices(Devices),
    /// Tell why a device went, or does not come in: the latest ends of its connections
    ///
    /// With what the reason means, what to look at, and what to do (docs/REASONS.md). The gateway remembers the latest 16 ends of
    /// a device, of 32,768 in all, since it was started.
    Why(Why),
    /// Say something to a connected device
    ///
    /// Prints `delivered` when it is on its way, or with --ack `acknowledged` when the device has confirmed it.
    Send(Send),
    /// Publish a message to every MQTT device that has subscribed to its topic
    ///
    /// Prints `accepted` when it is on its way to all of them.
    Publish(Publish),
    /// Follow what happens: devices that come and go, and what they say
    Watch(Watch),
    /// Follow one device, or whoever comes from a network, step by step: accept, handshake, who it is, packets, why it ends
    ///
    /// By --address also who never becomes a device. Costs nothing where nobody follows anything; at most 4 traces at a time, each
    /// of 1,000 events a second and worker: what is left out is said. Ends by itself after --for, or with Ctrl-C.
    Trace(Trace),
    /// Show a running gateway in the terminal: load, storms, refusals, ends, certificates, consumers; q ends it
    Top(Top),
    /// Let a running gateway read anew everything that was configured, and say what came of it
    ///
    /// Configuration, certificates, keys, authorities, tokens, passwords, rules and limits; nobody is disconnected. Where
    /// anything is wrong, all that was in effect stays, each thing that is wrong is named, and the exit code is 1.
    Reload(Reload),
    /// Read what devices said and when they came and went, as a consumer that acknowledges
    ///
    /// A consumer is a name with a place in what is kept: what was read under it and acknowledged is not read again,
    /// also after a restart of the gateway. Prints one JSON object a line and acknowledges what it has printed.
    Uplink(Uplink),
    /// See how far the sinks are, let one wait, go on, or go on elsewhere
    Sinks(Sinks),
    /// Check, export or back up the store, also while the gateway runs
    #[command(subcommand)]
    Store(Store),
    /// Keep a device or a network out, at once, until the gateway ends or for a while
    ///
    /// A device that is connected is gone when the command returns. What is to outlast a restart belongs into deny_file.
    Block(Block),
    /// Let a device or a network in again that was kept out by `block`
    Unblock(Unblock),
    /// List who is kept out
    Blocks(Blocks),
    /// Look at the machine and the configuration for what would hurt later: a line for each finding, with its remedy
    ///
    /// Descriptors, kernel settings, memory, certificates, the clock, the disk under data_dir. Changes nothing but one file
    /// of its own in data_dir, which it takes away again. Exits with 1 if there is a problem; warnings are none.
    Doctor(Doctor),
    /// Let a few simulated devices of every protocol connect to a running gateway, so that there is something to look at
    ///
    /// They report, take commands, fall silent and come back, and end with the command: on Ctrl-C, or by themselves.
    Demo(Demo),
    /// Translate a mosquitto.conf into a configuration, with a comment for whatever does not carry over
    ///
    /// Prints it; what it could not translate is told on stderr too.
    Import(Import),
    /// Print the completions of a shell: pulsegate completions bash > /etc/bash_completion.d/pulsegate
    Completions(Completions),
    /// Write the manual pages
    Man(Man),
    /// Make certificates for trying out: an authority, a server certificate for localhost, clients by id
    ///
    /// What is there and still serves is kept. Not for production: the authority's key lies beside what it signs.
    DevCerts(DevCerts),
    /// A private authority for a fleet: make it, issue, renew and revoke the certificates of devices
    ///
    /// Keep its directory on a machine that is no gateway: gateways need its ca.pem and ca.crl alone.
    #[command(subcommand)]
    Ca(Ca),
    /// Make a line for a listener's token file or password file: a name and the argon2id hash of its token or password
    ///
    /// The name is the device's id (token_file), or for MQTT the user's name (password_file). The token is read from stdin (one line) unless --token gives it, where other users of the machine could see it.
    HashToken(HashToken),
}

/// `serve`.
#[derive(Args, Debug)]
pub struct Serve {
    /// The configuration (TOML); without it the built-in one for trying out is used
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Begin with an empty store if the one that is there is damaged, which is moved aside
    #[arg(long)]
    pub accept_data_loss: bool,
    /// How log lines are written to stderr
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// What is logged: a level (error, warn, info, debug, trace), or levels by module
    ///
    /// Single connections are logged at debug. Levels by module are written as in `info,pulsegate::connection=debug`.
    #[arg(long, alias = "log-level", value_name = "FILTER", default_value = "info", value_parser = log_filter)]
    pub log_filter: String,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

/// `check-config`.
#[derive(Args, Debug)]
pub struct CheckConfig {
    /// The configuration (TOML); without it the built-in one is shown
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

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

/// `completions`.
#[derive(Args, Debug)]
pub struct Completions {
    /// For which shell
    pub shell: clap_complete::Shell,
}

/// `man`.
#[derive(Args, Debug)]
pub struct Man {
    /// Write a page for each command into this directory, which is made if it does not exist; without it, the page of
    /// pulsegate itself goes to stdout
    #[arg(value_name = "DIR")]
    pub directory: Option<PathBuf>,
}

/// `doctor`.
#[derive(Args, Debug)]
pub struct Doctor {
    /// The configuration (TOML); without it the built-in one is looked at
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// One JSON object for each finding, a line each
    #[arg(long)]
    pub json: bool,
}

/// `demo`.
#[derive(Args, Debug)]
pub struct Demo {
    #[command(flatten)]
    pub gateway: Gateway,
    /// So many devices for each listener
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=50))]
    pub devices: u16,
    /// For how long, at most an hour
    #[arg(long = "for", value_name = "DURATION", default_value = "10m", value_parser = demo_span)]
    pub span: Duration,
    /// The authority of the listeners' certificates (PEM)
    #[arg(long, value_name = "FILE", default_value = "pulsegate-data/certs/ca.pem")]
    pub ca: PathBuf,
    /// The name that these certificates are for
    #[arg(long, value_name = "NAME", default_value = "localhost")]
    pub server_name: String,
}

/// `import`.
#[derive(Args, Debug)]
pub struct Import {
    /// A mosquitto.conf; the files that it names are read too
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
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
    /// For how long, such as 1h; without it until the gateway ends
    #[arg(long = "for", value_name = "DURATION")]
    pub span: Option<String>,
}

/// `unblock`.
#[derive(Args, Debug)]
pub struct Unblock {
    #[command(flatten)]
    pub gateway: Gateway,
    #[command(flatten)]
    pub subject: Subject,
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

/// `store`.
#[derive(Debug, Subcommand)]
pub enum Store {
    /// Read the whole store and say what is wrong with it; exits with 1 if something is
    Check(StoreOf),
    /// Print what is held, one JSON object a line
    Export {
        #[command(flatten)]
        of: StoreOf,
        /// What
        #[arg(value_enum, default_value_t = Exported::Events)]
        what: Exported,
    },
    /// Write a copy of the store as it is at one instant to FILE, which must not exist
    Backup {
        #[command(flatten)]
        of: StoreOf,
        /// Where to
        #[arg(value_name = "FILE")]
        to: PathBuf,
    },
}

/// What is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Exported {
    /// What devices said and when they came and went
    Events,
    /// MQTT sessions, with how much waits in each
    Sessions,
    /// The messages that wait in sessions, in the order in which each session is sent them
    Messages,
    /// Retained messages
    Retained,
}

/// Which store.
#[derive(Args, Debug)]
pub struct StoreOf {
    /// The configuration whose data_dir holds it; without it that of the built-in one
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
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

/// `dev-certs`.
#[derive(Args, Debug)]
pub struct DevCerts {
    /// Where the files go; made if it does not exist
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// Also make a client certificate for the device with this id; may be given several times
    #[arg(long = "client", value_name = "ID")]
    pub clients: Vec<String>,
}

/// `ca`.
#[derive(Debug, Subcommand)]
pub enum Ca {
    /// Make an authority, and an empty revocation list
    Init {
        /// Where it lives; made if it does not exist
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// Its name, which every certificate shows
        #[arg(long, default_value = "Pulsegate fleet CA")]
        name: String,
        /// How long it holds
        #[arg(long = "for", value_name = "DURATION", default_value = "20years", value_parser = duration)]
        life: Duration,
        /// How long the revocation list is good
        #[arg(long = "crl-for", value_name = "DURATION", default_value = "30days", value_parser = duration)]
        crl_life: Duration,
    },
    /// Make a certificate for a device; again, to renew it: the one before stays good until its end
    Issue(CaIssue),
    /// Revoke all good certificates of a device, or the one with this serial number, and make the revocation list anew
    Revoke {
        /// Where the authority lives
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// The device's id, or a serial number as `openssl x509 -serial` shows it
        #[arg(value_name = "ID")]
        device: String,
        /// How long the revocation list is good
        #[arg(long = "crl-for", value_name = "DURATION", default_value = "30days", value_parser = duration)]
        crl_life: Duration,
    },
    /// Make the revocation list anew, before the one that is out ends
    Refresh {
        /// Where the authority lives
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// How long the revocation list is good
        #[arg(long = "crl-for", value_name = "DURATION", default_value = "30days", value_parser = duration)]
        crl_life: Duration,
    },
    /// Show what was issued: good, ended or revoked; until when; serial number; device
    List {
        /// Where the authority lives
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// Only what is good and ends within this
        #[arg(long, value_name = "DURATION", value_parser = duration)]
        ends_within: Option<Duration>,
    },
}

/// `ca issue`.
#[derive(Args, Debug)]
pub struct CaIssue {
    /// Where the authority lives
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// The device's id: common name, DNS name (where it is one) and urn:pulsegate:device:ID
    #[arg(value_name = "ID")]
    pub device: String,
    /// How long it holds
    #[arg(long = "for", value_name = "DURATION", default_value = "1year", value_parser = duration)]
    pub life: Duration,
    /// A signing request (PEM) of the device's, which then keeps its key to itself; its key alone is taken from it
    #[arg(long, value_name = "FILE")]
    pub csr: Option<PathBuf>,
}

/// `hash-token`.
#[derive(Args, Debug)]
pub struct HashToken {
    /// The device's id, or the MQTT user's name
    #[arg(value_name = "NAME", value_parser = device_id)]
    pub device: String,
    /// The token or password, instead of a line on stdin
    #[arg(long, value_name = "TOKEN")]
    pub token: Option<String>,
    /// Memory that each check of this token takes, in KiB
    ///
    /// The default suits tokens that people chose. A long random token (32 bytes) cannot be guessed anyway: 1024 makes
    /// its check twenty times cheaper, which counts when a whole fleet reconnects.
    #[arg(long, value_name = "KIB", default_value_t = 19_456)]
    #[arg(value_parser = clap::value_parser!(u32).range(8..=262_144))]
    pub memory: u32,
}

/// Where an API can be: plain HTTP, as the gateway speaks it.
fn admin_url(text: &str) -> Result<String, String> {
    let url = text.trim_end_matches('/');
    match url.strip_prefix("http://").or_else(|| url.strip_prefix("https://")) {
        Some(address) if !address.is_empty() && !address.contains('/') => Ok(url.to_owned()),
        _ => Err("write http://HOST:PORT, or https://HOST:PORT where the configuration has [admin.tls]".to_owned()),
    }
}

/// A filter is checked here, so that a wrong one is a wrong command line.
fn log_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// A name that a line of a token file or password file can carry: it ends at the last colon, spaces around it are cut, `#` is a comment.
fn device_id(text: &str) -> Result<String, String> {
    if text.is_empty() || text.trim() != text || text.starts_with('#') || text.contains(char::is_control) {
        return Err("a name is not empty, does not begin with # and has no spaces around it".to_owned());
    }
    Ok(text.to_owned())
}

/// How often `top` looks.
fn interval(text: &str) -> Result<Duration, String> {
    let span = duration(text)?;
    let range = Duration::from_millis(200)..=Duration::from_mins(1);
    if range.contains(&span) { Ok(span) } else { Err("write a duration between 200ms and 1m".to_owned()) }
}

/// How long `demo` goes on.
fn demo_span(text: &str) -> Result<Duration, String> {
    let span = duration(text)?;
    let range = Duration::from_secs(1)..=Duration::from_hours(1);
    if range.contains(&span) { Ok(span) } else { Err("write a duration between 1s and 1h".to_owned()) }
}

fn trace_span(text: &str) -> Result<Duration, String> {
    let span = duration(text)?;
    let range = Duration::from_secs(1)..=Duration::from_hours(24);
    if range.contains(&span) { Ok(span) } else { Err("write a duration between 1s and 24h".to_owned()) }
}

/// Such as `30days`.
fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write such as 30days or 1year"))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_definition_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn serve_is_what_happens_without_a_command() {
        let arguments = parse("pulsegate --config a.toml --log-format json").unwrap();
        assert!(arguments.command.is_none());
        assert_eq!(arguments.serve.config, Some("a.toml".into()));
        assert_eq!(arguments.serve.log_format, LogFormat::Json);
        let Some(Command::Serve(serve)) = parse("pulsegate serve --config a.toml").unwrap().command else { panic!() };
        assert_eq!(serve.config, Some("a.toml".into()));
        assert_eq!(serve.log_filter, "info");
    }

    #[test]
    fn what_makes_no_sense_is_not_understood() {
        assert!(parse("pulsegate serve --log-filter =x=").is_err());
        assert!(parse("pulsegate hash-token #a").is_err());
        assert!(parse("pulsegate hash-token a --memory 1").is_err());
        assert!(parse("pulsegate dev-certs").is_err());
        assert!(parse("pulsegate sreve").is_err());
        assert!(parse("pulsegate send a b --timeout 1s").is_err());
        for url in ["ftp://a", "localhost:7480", "http://", "https://", "http://a/v1"] {
            assert!(parse(&format!("pulsegate devices --admin {url}")).is_err(), "{url}");
        }
        assert!(parse("pulsegate publish a b --qos 3").is_err() && parse("pulsegate publish a").is_err());
        let Some(Command::Publish(publish)) = parse("pulsegate publish a -5 --qos 2 --retain").unwrap().command else {
            panic!()
        };
        assert_eq!((&*publish.topic, &*publish.payload, publish.qos, publish.retain), ("a", "-5", 2, true));
        let Some(Command::Send(send)) = parse("pulsegate send a -5 --admin http://a:1/").unwrap().command else {
            panic!()
        };
        assert_eq!((send.payload.as_str(), send.gateway.admin.as_str()), ("-5", "http://a:1"));
        assert!(parse("pulsegate devices --admin https://a:1/ --admin-ca ca.pem").is_ok());
        assert!(parse("pulsegate devices --admin-cert a.pem").is_err(), "a certificate without its key");
    }
}
