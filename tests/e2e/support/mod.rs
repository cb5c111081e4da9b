//! What every test stands on: a gateway in a process of its own, devices, fleets of devices, and clients that we did not
//! write. Nothing here sleeps for luck: whatever is waited for has a deadline, and a condition that ends the wait.

mod device;
mod disk;
pub mod fleet;
mod follower;
mod gateway;
mod program;
mod site;
#[allow(dead_code, reason = "not every test makes every kind of token")]
pub mod token;

use std::time::{Duration, Instant};

pub use device::{ConnectError, Device, Event, client_hello, dial, dial_from, encoded, giving_up, hello, message};
pub use disk::SmallDisk;
pub use fleet::{Behaviour, Fleet};
pub use follower::Follower;
pub use gateway::{Gateway, time_of};
pub use program::Program;
pub use site::{Listener, Site, native, raw};

/// By when something must have happened that should happen at once. Generous: machines are busy.
pub const SOON: Duration = Duration::from_secs(10);

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(10);

/// How many of something a test takes: as many as fit into a few seconds or, where `PULSEGATE_FULL` is set, as many as
/// the thing shall be shown with.
pub fn sized(usual: usize, full: usize) -> usize {
    if std::env::var_os("PULSEGATE_FULL").is_some() { full } else { usual }
}

/// Waits until `condition` says what was waited for, and panics when it has not by `within`.
#[track_caller]
pub fn wait_for<T>(what: &str, within: Duration, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {within:?}: {what}");
        std::thread::sleep(POLL);
    }
}

/// Waits until `condition` holds, and panics when it does not by `within`.
#[track_caller]
pub fn wait_until(what: &str, within: Duration, mut condition: impl FnMut() -> bool) {
    wait_for(what, within, || condition().then_some(()));
}

/// Watches `condition` hold for the whole of `span`, and panics when it does not.
#[track_caller]
pub fn hold_for(what: &str, span: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + span;
    while Instant::now() < end {
        assert!(condition(), "does not hold: {what}");
        std::thread::sleep(POLL);
    }
}
