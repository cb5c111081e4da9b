//! What the whole fleet keeps, as one gateway follows it: who is kept out, and commands that wait for their devices. Each is looked at
//! with the survey of the buckets, and read where it has changed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::{Done, Run, Session};
use crate::commands;
use crate::fleet::Order;
use crate::fleet::blocks::{self, Stamp};
use crate::fleet::commands::Teller;
use crate::fleet::server::{Server, Survey};

/// How often commands are looked at whose time may be over.
pub(super) const EXPIRE_EVERY: Duration = Duration::from_mins(1);

/// What one connection has under way besides, each at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Job {
    /// It has asked itself something, and not heard itself answer yet.
    HearItself,
    /// Who is kept out of the fleet is read,
    Blocks,
    /// for whom commands wait is read,
    Commands,
    /// and commands whose time is over are let go.
    Expire,
}

impl Run {
    /// Who is kept out of the fleet is read where it is not what holds here.
    pub(super) fn read_blocks(&self, server: &Server, session: &mut Session, stamp: Stamp) {
        if self.blocks == Some(stamp) || !session.jobs.insert(Job::Blocks) {
            return;
        }
        let (shared, server, orders) = (Arc::clone(&self.shared), server.clone(), self.orders.clone());
        session.tasks.spawn(async move {
            let since = shared.touched.count();
            let read = if stamp.last == 0 { Ok(None) } else { blocks::read_all(&server).await.map(Some) };
            let result = match read {
                Ok(all) => {
                    let (answer, answered) = oneshot::channel();
                    // The receiver is gone when the gateway ends.
                    let _ = orders.send(Order::Blocks { all, since, answer });
                    if answered.await == Ok(true) { Ok(()) } else { Err("the deny list took no change".to_owned()) }
                }
                Err(why) => Err(why),
            };
            Done::Blocks(stamp, result)
        });
    }

    pub(super) fn handle_blocks(&mut self, session: &mut Session, stamp: Stamp, result: Result<(), String>) {
        session.jobs.remove(&Job::Blocks);
        match result {
            Ok(()) => self.blocks = Some(stamp),
            Err(why) => tracing::debug!(why, "who is kept out of the fleet was not read: it is tried again"),
        }
    }

    /// What is new of commands that wait is read, and what has expired goes.
    pub(super) fn look_at_commands(&mut self, server: &Server, session: &mut Session, survey: &Survey) {
        let Stamp { last, rows } = survey.commands;
        self.shared.desk.note_waiting(rows);
        if self.commands.is_to_read_again(Instant::now()) {
            self.expected.forget();
        }
        if let Some(from) = self.expected.unread(last, rows) {
            Self::read_commands(server, session, from);
        }
        // Whoever comes first by name does it.
        if rows > 0 && survey.gateways.first() == Some(&self.shared.node) {
            self.expire_commands(server, session);
        }
    }

    /// This gateway, as commands that wait see it.
    pub(super) fn teller(&self) -> Teller {
        Teller { shared: Arc::clone(&self.shared), orders: self.orders.clone() }
    }

    /// Devices that were claimed, or that somebody says something waits for.
    pub(super) fn look_for_commands(&mut self) {
        for device in self.shared.presence().take_claimed() {
            if self.expected.has(&device) {
                self.commands.want((&*device).into());
            }
        }
        for device in self.shared.take_woken() {
            self.commands.want(device);
        }
    }

    fn read_commands(server: &Server, session: &mut Session, from: u64) {
        if session.jobs.insert(Job::Commands) {
            let server = server.clone();
            session.tasks.spawn(async move { Done::Read(commands::read(&server, from).await) });
        }
    }

    pub(super) fn handle_read(
        &mut self,
        server: &Server,
        session: &mut Session,
        read: Result<(u64, Vec<Box<str>>, bool), String>,
    ) {
        session.jobs.remove(&Job::Commands);
        match read {
            Ok((upto, devices, has_more)) => {
                for device in devices.iter().filter(|device| self.shared.is_here(device)) {
                    self.commands.want(device.clone());
                }
                self.expected.handle_read(upto, devices.iter().map(|device| &**device));
                if has_more {
                    Self::read_commands(server, session, upto + 1);
                }
            }
            Err(why) => tracing::debug!(why, "for whom commands wait was not read: it is tried again"),
        }
    }

    fn expire_commands(&self, server: &Server, session: &mut Session) {
        let now = Instant::now();
        if now < session.expire_due || !session.jobs.insert(Job::Expire) {
            return;
        }
        session.expire_due = now + EXPIRE_EVERY;
        let (teller, server) = (self.teller(), server.clone());
        session.tasks.spawn(async move { Done::Expired(commands::expire(&teller, &server).await) });
    }

    pub(super) fn handle_expired(session: &mut Session, expired: Result<u64, String>) {
        session.jobs.remove(&Job::Expire);
        match expired {
            Ok(count) => tracing::debug!(count, "commands whose time was over were let go"),
            Err(why) => tracing::debug!(why, "not all commands that wait were looked at"),
        }
    }
}
