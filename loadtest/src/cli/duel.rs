//! The options of `duel`: those of the scenario that is fought out, and who else is measured.

use std::net::SocketAddr;

use clap::{Args, Subcommand, ValueEnum};

use super::{Fan, Heartbeat, Hold, Scenario, target};
use crate::fleet::protocol::Protocol;

/// `duel`.
#[derive(Debug, Args)]
pub struct Duel {
    /// What is done to each of them.
    #[command(subcommand)]
    pub weapon: Weapon,
}

/// Scenarios that several targets go through in turns.
#[derive(Debug, Subcommand)]
pub enum Weapon {
    /// `hold`, against each in turns.
    Hold(Between<Hold>),
    /// `heartbeat`, against each in turns.
    Heartbeat(Between<Heartbeat>),
    /// `fan-in`, against each in turns.
    FanIn(Between<Fan>),
    /// `fan-out`, against each in turns.
    FanOut(Between<Fan>),
}

/// A scenario, and its further targets.
#[derive(Debug, Args)]
pub struct Between<S: Args> {
    #[command(flatten)]
    pub options: S,
    #[command(flatten)]
    pub opponents: Opponents,
}

/// Who is measured beside `--target`.
#[derive(Clone, Debug, Args)]
pub struct Opponents {
    /// A further target, as NAME=HOST:PORT:PID, or NAME=PROTOCOL@HOST:PORT:PID where it speaks another protocol. Again for
    /// each further one.
    #[arg(long, required = true, value_name = "NAME=HOST:PORT:PID", value_parser = opponent)]
    pub against: Vec<Opponent>,
    /// What --target is called.
    #[arg(long, default_value = "pulsegate", value_name = "NAME")]
    pub name: String,
    /// Turns of each. Memory is that of the first turn: later ones find it filled.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub turns: u32,
}

/// A further target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Opponent {
    pub name: String,
    /// `None`: that of the first target.
    pub protocol: Option<Protocol>,
    pub address: SocketAddr,
    pub pid: u32,
}

impl Duel {
    /// Who else takes part, and the scenario as it is for the first target.
    pub fn parts(self) -> (Opponents, Scenario) {
        match self.weapon {
            Weapon::Hold(hold) => (hold.opponents, Scenario::Hold(hold.options)),
            Weapon::Heartbeat(heartbeat) => (heartbeat.opponents, Scenario::Heartbeat(heartbeat.options)),
            Weapon::FanIn(fan) => (fan.opponents, Scenario::FanIn(fan.options)),
            Weapon::FanOut(fan) => (fan.opponents, Scenario::FanOut(fan.options)),
        }
    }
}

fn opponent(text: &str) -> Result<Opponent, String> {
    let form = || "write it as NAME=HOST:PORT:PID".to_owned();
    let (name, place) = text.split_once('=').ok_or_else(form)?;
    let (protocol, place) = match place.split_once('@') {
        Some((protocol, place)) => (Some(Protocol::from_str(protocol, false)?), place),
        None => (None, place),
    };
    let (address, pid) = place.rsplit_once(':').ok_or_else(form)?;
    let pid = pid.parse().map_err(|_| format!("{pid:?} is not a process id; {}", form()))?;
    Ok(Opponent { name: name.to_owned(), protocol, address: target(address)?, pid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opponents_have_a_name_an_address_and_a_process() {
        let plain = opponent("mosquitto=127.0.0.1:8884:77").unwrap();
        assert_eq!((plain.name.as_str(), plain.address.port(), plain.pid), ("mosquitto", 8884, 77));
        assert_eq!(plain.protocol, None);
        assert_eq!(opponent("x=raw@127.0.0.1:1:2").unwrap().protocol, Some(Protocol::Raw));
        assert!(opponent("x=127.0.0.1:8884").is_err());
        assert!(opponent("127.0.0.1:8884:77").is_err());
        assert!(opponent("x=smoke@127.0.0.1:8884:77").is_err());
    }
}
