//! What the mechanism wants of others: where commands wait, and the gateway that tells devices.

use std::future::Future;
use std::time::Duration;

use super::{Brief, Command, Desk, Known};
use crate::link::Downlink;

/// Why a command was not put.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotPut {
    /// One of the place's bounds; its words.
    Full(String),
    /// There is no answer: it may be there. Why.
    Lost(String),
}

/// A command as it is listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its number.
    pub number: u64,
    /// For which device it waits, as far as that is one.
    pub device: Option<Box<str>>,
    /// The rest of it, as far as it is understood.
    pub brief: Option<Brief>,
}

/// Where commands wait, and what became of them is kept. Numbers grow, and none is given twice. What was written is safe when the
/// answer is there; where there is no answer (`Err`: why), it may have been done.
pub trait Place: Clone + Send + Sync + 'static {
    /// Has a command wait for a device; its number.
    fn put(&self, device: &str, command: &Command) -> impl Future<Output = Result<u64, NotPut>> + Send;

    /// The oldest command from this number on that waits for a device; `None` in it: it is not understood.
    fn next(
        &self,
        device: &str,
        from: u64,
    ) -> impl Future<Output = Result<Option<(u64, Option<Command>)>, String>> + Send;

    /// Some commands from this number on, in the order of numbers; none: there are no more. With `over_ms` those whose time is over
    /// then are wanted, and others may be left out.
    fn page(&self, from: u64, over_ms: Option<u64>) -> impl Future<Output = Result<Vec<Listed>, String>> + Send;

    /// The command of this number, if it waits and is understood.
    fn at(&self, number: u64) -> impl Future<Output = Result<Option<Brief>, String>> + Send;

    /// Lets a command go, if it is there.
    fn remove(&self, number: u64) -> impl Future<Output = Result<(), String>> + Send;

    /// What became of a command, and at which revision that stands; 0: it stands nowhere.
    fn outcome(&self, id: &str) -> impl Future<Output = Result<(u64, Option<Known>), String>> + Send;

    /// Writes what became of a command in the place of that revision. `false`: another one stands there.
    fn write_outcome(
        &self,
        id: &str,
        revision: u64,
        known: &Known,
    ) -> impl Future<Output = Result<bool, String>> + Send;
}

/// What a device made of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// It has acknowledged it.
    Acknowledged,
    /// It is not here.
    Offline,
    /// It takes no such message; why.
    Refused(String),
    /// It did not acknowledge in time, or could not be told now.
    NotNow,
}

/// The gateway, as commands see it.
pub trait Here: Clone + Send + Sync + 'static {
    /// Its name.
    fn node(&self) -> &str;

    /// What it knows of the commands of the place.
    fn desk(&self) -> &Desk;

    /// Whether a device is here.
    fn has(&self, device: &str) -> impl Future<Output = bool> + Send;

    /// Says something to a device and waits for so long for its acknowledgement.
    fn say(&self, device: &str, downlink: Downlink, patience: Duration) -> impl Future<Output = Said> + Send;
}
