//! The options of `soak`.

use std::net::SocketAddr;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::{Common, duration, nonzero_duration, positive, seconds, target};

/// `soak`. `--target` is where native devices connect to.
#[derive(Debug, Args, Serialize)]
pub struct Soak {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    /// Where MQTT devices connect to. They publish to `soak/up` and below `soak/devices`.
    #[arg(long, default_value = "127.0.0.1:8883", value_name = "HOST:PORT", value_parser = target)]
    pub mqtt_target: SocketAddr,
    /// Where raw devices connect to.
    #[arg(long, default_value = "127.0.0.1:7444", value_name = "HOST:PORT", value_parser = target)]
    pub raw_target: SocketAddr,
    /// How often each well-behaved device sends a heartbeat.
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = nonzero_duration)]
    #[serde(rename = "every_s", serialize_with = "seconds")]
    pub every: Duration,
    /// How often each restless device publishes a message that is to be acknowledged.
    #[arg(long, default_value = "10s", value_name = "TIME", value_parser = nonzero_duration)]
    #[serde(rename = "publish_every_s", serialize_with = "seconds")]
    pub publish_every: Duration,
    /// How long a restless device stays on average (exponentially spread); it is away for a tenth of that.
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = nonzero_duration)]
    #[serde(rename = "life_s", serialize_with = "seconds")]
    pub life: Duration,
    /// How long everything runs without an attack first: what round trips are compared with.
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = nonzero_duration)]
    #[serde(rename = "quiet_s", serialize_with = "seconds")]
    pub quiet: Duration,
    /// How often all kinds of attack are gone through. Memory after the last time is compared with that after the first.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u32).range(2..=100))]
    pub cycles: u32,
    /// Connections that the attack whose turn it is holds or opens at a time.
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000))]
    pub attackers: u32,
    /// For how long the server is stopped (SIGSTOP), once in each cycle; 0s: never (needs --pid).
    #[arg(long, default_value = "2s", value_name = "TIME", value_parser = duration)]
    #[serde(rename = "freeze_s", serialize_with = "seconds")]
    pub freeze: Duration,
    /// How long after its deadline a silent device may still be expired without counting as missed.
    #[arg(long, default_value = "5s", value_name = "TIME", value_parser = duration)]
    #[serde(rename = "grace_s", serialize_with = "seconds")]
    pub grace: Duration,
    /// Fails when the 99th percentile of a well-behaved device's round trips under attack is above so many times that of
    /// the quiet time.
    #[arg(long, default_value_t = 5.0, value_name = "TIMES", value_parser = positive)]
    pub max_p99_factor: f64,
    /// Fails when the server's memory after the last cycle is above that after the first by more than this (needs --pid).
    #[arg(long, default_value_t = 16.0, value_name = "MIB", value_parser = positive)]
    pub max_growth: f64,
    /// Fails when more than this share of the turns of the server's event loops did nothing (needs --admin).
    #[arg(long, default_value_t = 0.01, value_name = "SHARE", value_parser = super::share)]
    pub max_idle_turns: f64,
}
