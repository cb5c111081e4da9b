//! The options of MQTT: how devices speak it, and the scenarios that only it has.

use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::messages::Load;
use super::{Common, duration, seconds};
use crate::fleet::protocol::MqttVersion;

/// What `fan-in` and `fan-out` publish and subscribe to.
pub const FAN_TOPIC: &str = "loadtest/fan";

/// How devices speak MQTT (`--protocol mqtt`).
#[derive(Clone, Debug, Args, Serialize)]
#[command(next_help_heading = "MQTT")]
pub struct MqttOptions {
    /// Which MQTT.
    #[arg(long, value_enum, default_value = "5")]
    pub mqtt_version: MqttVersion,
    /// The keep-alive that devices ask for, in whole seconds; 0s: none. They say something within each, and are silent for
    /// one and a half of them before they are ended.
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = keep_alive)]
    #[serde(rename = "keep_alive_s", serialize_with = "seconds")]
    pub keep_alive: Duration,
    /// Devices come back to the session that they had.
    #[arg(long)]
    pub keep_session: bool,
    /// Devices speak MQTT within WebSocket, and ask for this path (/mqtt unless written: --websocket, --websocket=/path).
    #[arg(long, value_name = "PATH", num_args = 0..=1, require_equals = true, default_missing_value = "/mqtt", value_parser = path)]
    pub websocket: Option<String>,
    /// The user name that devices give.
    #[arg(long, value_name = "TEXT")]
    pub username: Option<String>,
    /// The password that they give with it.
    #[arg(long, value_name = "TEXT", requires = "username")]
    #[serde(skip)]
    pub password: Option<String>,
    /// What each device subscribes to before it counts as up; {device} stands for its id.
    #[arg(long, value_name = "FILTER")]
    pub subscribe: Option<String>,
    /// The quality of service of that subscription.
    #[arg(long, default_value_t = 0, value_name = "QOS", value_parser = clap::value_parser!(u8).range(0..=1))]
    pub subscribe_qos: u8,
}

/// `fan-in` and `fan-out`.
#[derive(Debug, Args, Serialize)]
pub struct Fan {
    #[command(flatten)]
    #[serde(flatten)]
    pub common: Common,
    #[command(flatten)]
    #[serde(flatten)]
    pub load: Load,
    /// The quality of service of messages and subscriptions.
    #[arg(long, default_value_t = 0, value_name = "QOS", value_parser = clap::value_parser!(u8).range(0..=1))]
    pub qos: u8,
}

fn keep_alive(text: &str) -> Result<Duration, String> {
    let keep_alive = duration(text)?;
    let fits = keep_alive.subsec_nanos() == 0 && u16::try_from(keep_alive.as_secs()).is_ok();
    if fits { Ok(keep_alive) } else { Err("whole seconds, at most 65535s".to_owned()) }
}

fn path(text: &str) -> Result<String, String> {
    let fits = text.starts_with('/') && text.bytes().all(|byte| byte.is_ascii_graphic());
    if fits { Ok(text.to_owned()) } else { Err("a path that begins with / and has no blanks".to_owned()) }
}
