//! The options of the scenarios that are about messages.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{Common, duration, nonzero_duration, positive, seconds, share};
use crate::fleet::STAMP_BYTES;

/// How many messages, and of which size.
#[derive(Clone, Debug, Args, Serialize)]
pub struct Load {
    /// Messages each second, of the whole fleet together.
    #[arg(long, default_value_t = 1_000.0, value_name = "PER_SECOND", value_parser = positive)]
    pub messages_per_second: f64,
    /// How many messages in all [default: what the rate makes of --duration].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    pub messages: Option<u64>,
    /// The length of each payload, in bytes.
    #[arg(long, default_value_t = 64, value_name = "BYTES", value_parser = payload_bytes)]
    pub payload: usize,
}

impl Load {
    /// Messages in all.
    pub fn total(&self, duration: Duration) -> u64 {
        self.messages.unwrap_or_else(|| (self.messages_per_second * duration.as_secs_f64()).ceil() as u64).max(1)
    }
}

/// `uplink`.
#[derive(Debug, Args, Serialize)]
pub struct Uplink {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    #[command(flatten)]
    #[serde(flatten)]
    pub load: Load,
    /// Devices ask for an acknowledgement of each message.
    #[arg(long)]
    pub ack: bool,
}

/// `downlink`.
#[derive(Debug, Args, Serialize)]
pub struct Downlink {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    #[command(flatten)]
    #[serde(flatten)]
    pub load: Load,
    /// The server waits for the device's acknowledgement of each message.
    #[arg(long)]
    pub ack: bool,
    /// Only the first so many devices are told anything; the others are there all the same [default: all].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub to: Option<u32>,
    /// Keep-alive connections to the control plane, each with one request at a time.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=120))]
    pub senders: u32,
}

/// `broadcast`.
#[derive(Debug, Args, Serialize)]
pub struct Broadcast {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    /// How many broadcasts, one after the other.
    #[arg(long, default_value_t = 3, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub rounds: u32,
    /// How many devices the server is to tell in one second.
    #[arg(long, default_value_t = 10_000, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub per_second: u32,
    /// The length of each payload, in bytes.
    #[arg(long, default_value_t = 64, value_name = "BYTES", value_parser = payload_bytes)]
    pub payload: usize,
}

/// `slow`.
#[derive(Debug, Args, Serialize)]
pub struct Slow {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    /// The share of devices that stops reading.
    #[arg(long, default_value_t = 0.05, value_name = "SHARE", value_parser = share)]
    pub share: f64,
    /// Messages each second to those who do not read, all together.
    #[arg(long, default_value_t = 1_000.0, value_name = "PER_SECOND", value_parser = positive)]
    pub messages_per_second: f64,
    /// The length of each payload, in bytes.
    #[arg(long, default_value_t = 16_000, value_name = "BYTES", value_parser = payload_bytes)]
    pub payload: usize,
    /// Keep-alive connections to the control plane, each with one request at a time.
    #[arg(long, default_value_t = 16, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=120))]
    pub senders: u32,
    /// How often each device that reads sends a heartbeat.
    #[arg(long, default_value = "1s", value_name = "TIME", value_parser = nonzero_duration)]
    #[serde(rename = "every_s", serialize_with = "seconds")]
    pub every: Duration,
    /// Fails when not all of them are ended by then.
    #[arg(long, default_value = "2m", value_name = "TIME", value_parser = nonzero_duration)]
    #[serde(rename = "patience_s", serialize_with = "seconds")]
    pub patience: Duration,
    /// Fails when the server's memory grows by more than this for each that does not read (needs --pid).
    #[arg(long, default_value_t = 262_144.0, value_name = "BYTES", value_parser = positive)]
    pub max_growth: f64,
    /// Fails when the 99th percentile of the others' round trips is above this.
    #[arg(long, default_value = "250ms", value_name = "TIME", value_parser = duration)]
    #[serde(rename = "max_p99_s", serialize_with = "seconds")]
    pub max_p99: Duration,
}

fn payload_bytes(text: &str) -> Result<usize, String> {
    let range = STAMP_BYTES..=65_000;
    text.parse().ok().filter(|bytes| range.contains(bytes)).ok_or(format!("from {STAMP_BYTES} to 65000"))
}
