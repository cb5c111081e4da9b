//! Commands that need no running gateway, and what they are given.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::{Gateway, duration};

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
    /// Make a certificate for a gateway, under the names by which devices connect to it; again, to renew it
    Server(CaServer),
    /// Revoke all good certificates of a device, or the one with this serial number, and make the revocation list anew
    Revoke {
        /// Where the authority lives
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// The device's id (of a gateway server/NAME), or a serial number as `openssl x509 -serial` shows it
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

/// `ca server`.
#[derive(Args, Debug)]
pub struct CaServer {
    /// Where the authority lives
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
    /// The host name or address by which devices connect to the gateway; its files are called by it
    #[arg(value_name = "NAME")]
    pub name: String,
    /// A further host name (*.example.com too) or address; as often as there are some
    #[arg(long, value_name = "NAME")]
    pub san: Vec<String>,
    /// How long it holds; more than 825 days some verifiers do not take
    #[arg(long = "for", value_name = "DURATION", default_value = "1year", value_parser = duration)]
    pub life: Duration,
    /// A signing request (PEM) of the gateway's, which then keeps its key to itself; its key alone is taken from it
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

/// A name that a line of a token file or password file can carry: it ends at the last colon, spaces around it are cut, `#` is a comment.
fn device_id(text: &str) -> Result<String, String> {
    if text.is_empty() || text.trim() != text || text.starts_with('#') || text.contains(char::is_control) {
        return Err("a name is not empty, does not begin with # and has no spaces around it".to_owned());
    }
    Ok(text.to_owned())
}

/// How long `demo` goes on.
fn demo_span(text: &str) -> Result<Duration, String> {
    let span = duration(text)?;
    let range = Duration::from_secs(1)..=Duration::from_hours(1);
    if range.contains(&span) { Ok(span) } else { Err("write a duration between 1s and 1h".to_owned()) }
}
