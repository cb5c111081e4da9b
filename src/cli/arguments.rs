//! What can be asked for on the command line. The help texts are the first documentation that an operator meets.

mod client;
mod tools;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use tracing_subscriber::EnvFilter;

pub use client::{
    Block, Blocks, DeviceOrder, Devices, Gateway, Health, Publish, Queued, Reload, Send, SinkOrder, Sinks, Subject,
    Top, Trace, Unblock, Uplink, Watch, Why,
};
pub use tools::{
    Ca, CaIssue, CaServer, Completions, Demo, DevCerts, Doctor, Exported, HashToken, Import, Man, Store, StoreOf,
};

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
    /// Ask a running gateway whether it lives, or with --ready whether it takes new devices: for health checks
    ///
    /// Exits with 0 for yes and with 1 for no, or where there is no answer within a few seconds. Needs no token.
    Health(Health),
    /// List the devices that are connected to a running gateway
    Devices(Devices),
    /// Tell why a device went, or does not come in: the latest ends of its connections
    ///
    /// With what the reason means, what to look at, and what to do (docs/REASONS.md). The gateway remembers the latest 16 ends of
    /// a device, of 32,768 in all, since it was started.
    Why(Why),
    /// Say something to a connected device
    ///
    /// Prints `delivered` when it is on its way, or with --ack `acknowledged` when the device has confirmed it. With --queue
    /// one that is for a device that is nowhere waits for it, and `queued` and its id are printed.
    Send(Send),
    /// Tell what became of a command that `send --queue` had wait, or take it back
    Queued(Queued),
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

/// A filter is checked here, so that a wrong one is a wrong command line.
fn log_filter(text: &str) -> Result<String, String> {
    EnvFilter::try_new(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
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
