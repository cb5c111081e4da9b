//! Commands that wait in this gateway's own store: put there where there is no fleet, told when their devices come here.
//!
//! One that was put there before the gateway became one of a fleet stays: its device gets it if it comes here, and else it expires.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::State;
use super::fleet::{ANSWER_MAX, ask};
use crate::commands::{self, Commands, Counts, Desk, Expected, Fate, Here, Known, NotQueued, Said, TRIED_MAX};
use crate::link::{Downlink, Outcome, WorkerCommand};
use crate::store::{CommandStamp, Store};

/// How often commands are looked at whose time may be over.
const EXPIRE_EVERY: Duration = Duration::from_mins(1);
/// How long it waits before the store is asked again that did not answer.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What the control plane knows of them.
pub(super) struct Queue {
    store: Arc<Store>,
    desk: Desk,
    expected: Mutex<Expected>,
    came: Mutex<Came>,
    bell: Notify,
}

/// Devices that came and for whom something may wait.
#[derive(Default)]
struct Came {
    devices: HashSet<Box<str>>,
    /// There was no room for others.
    is_over: bool,
}

impl Queue {
    pub(super) fn new(store: Arc<Store>) -> Self {
        let (came, bell) = (Mutex::default(), Notify::new());
        Self { store, desk: Desk::default(), expected: Mutex::default(), came, bell }
    }

    /// A device is here. Never waits.
    pub(super) fn came(&self, device: &str) {
        if self.expected.lock().expect("no holder panics").has(device) {
            let mut came = self.came.lock().expect("no holder panics");
            if came.devices.len() < TRIED_MAX {
                came.devices.insert(device.into());
            } else {
                came.is_over = true;
            }
            self.bell.notify_one();
        }
    }

    fn take_came(&self) -> Came {
        std::mem::take(&mut *self.came.lock().expect("no holder panics"))
    }

    fn unread(&self, stamp: CommandStamp) -> Option<u64> {
        self.expected.lock().expect("no holder panics").unread(stamp.last, stamp.rows)
    }
}

/// This gateway, as commands in its store see it.
#[derive(Clone)]
struct Teller(Arc<State>);

impl Teller {
    fn queue(&self) -> &Queue {
        self.0.queue.as_ref().expect("whoever tells has a store")
    }
}

impl Here for Teller {
    fn node(&self) -> &str {
        &self.0.config.node
    }

    fn desk(&self) -> &Desk {
        &self.queue().desk
    }

    /// A worker that does not answer may have it: the question that matters is put to it again, and has its own answer.
    async fn has(&self, device: &str) -> bool {
        let state = &self.0;
        let worker = state.home.of(device);
        let ticket = state.described.open();
        let question = WorkerCommand::Describe { request: ticket.request(), device: device.into() };
        let asked = state.mailboxes[worker.index()].send(question);
        asked.is_err() || ticket.answer(Instant::now() + ANSWER_MAX).await.is_none_or(|described| described.is_some())
    }

    async fn say(&self, device: &str, downlink: Downlink, patience: Duration) -> Said {
        let command = |request, device| WorkerCommand::Send { request, device, downlink, acknowledge: true };
        match ask(&self.0, device.into(), command, patience).await {
            Some(Outcome::Acknowledged) => Said::Acknowledged,
            Some(Outcome::Offline) => Said::Offline,
            Some(Outcome::Refused(why)) => Said::Refused(why.to_owned()),
            Some(Outcome::Delivered | Outcome::Unacknowledged) | None => Said::NotNow,
        }
    }
}

/// Tells devices what waits for them, until the gateway ends.
pub(super) async fn work(state: Arc<State>) {
    let here = Teller(state);
    let queue = here.queue();
    let place = &queue.store;
    let (mut stamps, mut commands) = (place.commands(), Commands::default());
    let mut jobs: JoinSet<()> = JoinSet::new();
    let mut expire_due = Instant::now();
    loop {
        let stamp = *stamps.borrow_and_update();
        queue.desk.note_waiting(stamp.rows);
        if commands.is_to_read_again(Instant::now().into_std()) {
            queue.expected.lock().expect("no holder panics").forget();
        }
        if let Some(from) = queue.unread(stamp) {
            match commands::read(place, from).await {
                Ok((upto, devices, has_more)) => {
                    let mut expected = queue.expected.lock().expect("no holder panics");
                    expected.handle_read(upto, devices.iter().map(|device| &**device));
                    drop(expected);
                    // Whoever is not here by then is known, and is told when it comes.
                    for device in devices {
                        commands.want(device);
                    }
                    if has_more {
                        continue;
                    }
                }
                Err(why) => {
                    tracing::debug!(why, "for whom commands wait was not read: it is tried again");
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
            }
        }
        let Came { devices, is_over } = queue.take_came();
        for device in devices {
            commands.want(device);
        }
        if is_over {
            commands.note_left_out();
        }
        if stamp.rows > 0 && jobs.is_empty() && Instant::now() >= expire_due {
            expire_due = Instant::now() + EXPIRE_EVERY;
            let (here, place) = (here.clone(), Arc::clone(place));
            jobs.spawn(async move {
                match commands::expire(&here, &place).await {
                    Ok(count) => tracing::debug!(count, "commands whose time was over were let go"),
                    Err(why) => tracing::debug!(why, "not all commands that wait were looked at"),
                }
            });
        }
        tokio::select! {
            changed = stamps.changed() => if changed.is_err() { return },
            () = queue.bell.notified() => {}
            () = commands.advance(&here, place) => {}
            Some(_) = jobs.join_next() => {}
            () = tokio::time::sleep_until(expire_due), if stamp.rows > 0 && jobs.is_empty() => {}
        }
    }
}

/// What is known of a command, or why not.
pub(super) enum NotKnown {
    /// Nothing waits for devices here.
    NoQueue,
    /// NATS, or the disk, does not answer.
    Away,
}

impl State {
    /// Whether commands can wait for devices: in NATS, or in the store.
    pub(super) fn has_queue(&self) -> bool {
        self.fleet.is_some() || self.queue.is_some()
    }

    /// Has a command wait for a device that is nowhere; its id. It is there when this returns. `None`: nothing waits here.
    pub(super) async fn queue_command(
        self: &Arc<Self>,
        device: &str,
        downlink: &Downlink,
        expiry: Duration,
        deadline: Instant,
    ) -> Option<Result<String, NotQueued>> {
        if let Some(fleet) = &self.fleet {
            return Some(fleet.queue(device, downlink, expiry, deadline.into_std()).await);
        }
        let store = &self.queue.as_ref()?.store;
        let here = Teller(Arc::clone(self));
        let put = commands::put(&here, store, device, downlink, expiry);
        let put = tokio::time::timeout_at(deadline, put).await;
        Some(put.map_or(Err(NotQueued::Away), |put| put.map_err(NotQueued::from)))
    }

    /// What is known of a command, after it was taken back, if it is to be and has no outcome yet.
    pub(super) async fn look_at_command(
        self: &Arc<Self>,
        id: &str,
        cancel: bool,
        deadline: Instant,
    ) -> Result<Option<Known>, NotKnown> {
        if let Some(fleet) = &self.fleet {
            let until = deadline.into_std();
            let known = if cancel { fleet.cancel_command(id, until).await } else { fleet.command(id, until).await };
            let known = known.map_err(|_| NotKnown::Away)?;
            if known.is_some() || self.queue.is_none() {
                return Ok(known);
            }
        }
        // Of a fleet's gateway: what it had before it was one.
        let store = &self.queue.as_ref().ok_or(NotKnown::NoQueue)?.store;
        let here = Teller(Arc::clone(self));
        let looked = commands::look(&here, store, id, cancel.then_some(Fate::Cancelled));
        let known = tokio::time::timeout_at(deadline, looked).await.map_err(|_| NotKnown::Away)?;
        known.map_err(|_| NotKnown::Away)
    }

    /// What was counted of commands that wait; `None`: none can.
    pub(super) fn command_counts(&self) -> Option<Counts> {
        let of_fleet = self.fleet.as_ref().map(crate::fleet::Fleet::commands);
        let here = self.queue.as_ref().map(|queue| queue.desk.counts());
        of_fleet.into_iter().chain(here).reduce(Counts::and)
    }
}
