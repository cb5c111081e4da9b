//! How a world comes to its end, and what must hold then.

use std::time::Duration;

use super::nats::{LEASE, name};
use super::wills::End;
use super::{DEVICES, GATEWAYS, World};

/// How long it may take to calm down.
const CALMS: Duration = Duration::from_mins(5);
/// When nothing has come for so long nothing more comes: whoever waits for a gateway that is silent does not wait that long.
const STILL: Duration = Duration::from_secs(45);
/// How long it is calm before the evening,
const CALM_FOR: Duration = Duration::from_secs(12);
/// how long what is said to gateways may take to be written,
const DUSK: Duration = Duration::from_secs(17);
/// and how long it is evening: until another gateway has published the wills of one that has died.
const EVENING: Duration = LEASE.saturating_mul(7);

impl World {
    /// Nothing goes wrong any more: all comes that was acknowledged, and each device is in one place.
    pub fn calm_down(&mut self) {
        for number in 0..DEVICES {
            let is_seen = self.random.bool();
            self.disconnect(number, End::Lost, is_seen);
        }
        let until = self.now() + CALMS;
        let (mut quiet_since, mut left, mut came_at) = (None, usize::MAX, self.now());
        while self.now() < until {
            self.step();
            for number in 0..DEVICES {
                if self.devices[number].place.is_none() {
                    let at = self.random.usize(..GATEWAYS);
                    self.connect(number, at);
                }
            }
            let missing = self.missing().len();
            if std::mem::replace(&mut left, missing) != missing {
                came_at = self.now();
            }
            let is_quiet = missing == 0 && self.scattered().is_empty();
            if !is_quiet && self.now() > came_at + STILL {
                break;
            }
            quiet_since = if is_quiet { quiet_since.or(Some(self.now())) } else { None };
            if quiet_since.is_some_and(|since| self.now() > since + Duration::from_secs(5)) {
                return;
            }
        }
        for (number, device) in self.missing().into_iter().take(5) {
            let numbers = self.missing().len();
            self.note(&format!("{numbers} missing, {number} to device-{device}, epoch {}", self.devices[device].epoch));
            let message = &self.messages[number as usize];
            self.broken.insert(format!("{number} of {} never came to device-{device}", message.owed.len()));
        }
        let scattered = self.scattered();
        self.broken.extend(scattered);
    }

    /// Devices that are not at one gateway, with their sessions and their rows.
    fn scattered(&self) -> Vec<String> {
        let mut scattered = Vec::new();
        for device in &self.devices {
            let has = |at: &usize| self.gateway(*at).is_some_and(|life| life.shard().has_session(&device.name));
            let there: Vec<_> = (0..GATEWAYS).filter(has).collect();
            let row = self.nats.state().rows.get(&device.name).map(|(_, row)| row.node.clone());
            let owner = self.nats.state().owners.get(&device.name).map(|(_, row)| (row.node.clone(), row.generation));
            let place = device.place.filter(|_| device.is_greeted);
            let is_whole = place.is_some_and(|(at, serial)| {
                let is_owner = |(node, generation): &(Box<str>, u64)| (&**node, *generation) == (&*name(at), serial);
                there == [at] && row.as_deref() == Some(&*name(at)) && owner.as_ref().is_some_and(is_owner)
            });
            if !is_whole {
                let (name, rows) = (&device.name, (row, owner));
                scattered.push(format!("{name} is at {place:?}, its session at {there:?}, its rows are {rows:?}"));
            }
        }
        scattered
    }

    /// One device says goodbye, one is lost, and one stays; then a gateway is killed, and does not come back: who is left publishes what its
    /// devices have left, and nothing else.
    pub fn spend_evening(&mut self) {
        self.pass(CALM_FOR);
        let dies = self.random.choice(&self.devices).and_then(|device| device.place).map_or(0, |(at, _)| at);
        self.disconnect(0, End::Goodbye, true);
        self.disconnect(1, End::Lost, true);
        self.pass(DUSK);
        self.kill(dies);
        self.back_at[dies] = None;
        self.pass(EVENING);
    }

    pub fn pass(&mut self, time: Duration) {
        let until = self.now() + time;
        while self.now() < until {
            self.step();
        }
    }

    /// What was found on the way, and what became of wills.
    pub fn judge(&mut self) {
        let now = self.now();
        let mut state = self.nats.state();
        self.broken.append(&mut state.broken);
        self.broken.extend(self.ledger.judge(&state.troubles, now));
    }
}
