//! Commands to devices that are nowhere: kept in a stream of NATS until the device comes, to whichever gateway.
//!
//! ```text
//!   nobody has the device ──▶ PREFIX.command.DEVICE in the stream PREFIX_commands ──▶ its row is looked at once more: who has it is told
//!                                       │ each gateway reads what is new: which devices are waited for
//!   the device's row is written here ───┴──▶ the oldest that waits ──▶ "sent" (compare-and-set) ──▶ the device ──▶ acknowledged (compare-and-set) ──▶ gone
//! ```
//!
//! Each command has one outcome, written once by compare-and-set under `PREFIX.outcome.ID`, whoever tries: acknowledged, expired, refused
//! or cancelled. It is sent at least once if it is acknowledged: what was sent and not acknowledged is sent again until it expires.
//!
//! Nothing is missed: who puts a command looks at the device's row after the stream has it, and whoever writes a row looks for
//! commands after the row is there, so one of the two sees the other; and what was put by a gateway that died then is found by reading on.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::presence::Row;
use super::server::{NotPut, Server, Written};
use super::wire::{Call, Reply, Request};
use super::{Fleet, Order, SLACK, Shared, Unreachable, requests};
use crate::link::{Downlink, is_refused_for_now};

/// Commands that may wait for one device,
pub const PER_DEVICE_MAX: i64 = 32;
/// and for all of them;
pub const ALL_MAX: i64 = 100_000;
/// and their bytes.
pub const BYTES_MAX: i64 = 256 << 20;
/// The longest that one may wait.
pub const EXPIRY_MAX: Duration = Duration::from_hours(24 * 7);
/// How long outcomes can be asked for,
pub const OUTCOMES_FOR: Duration = Duration::from_hours(24 * 7);
/// and how many of them are kept, the latest.
pub const OUTCOMES_MAX: i64 = 1_000_000;
/// Devices that are told what waits for them at a time.
const AT_A_TIME: usize = 32;
/// How long a device may take to acknowledge one.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it waits before a device is tried again that is here and did not take it: at first,
const AGAIN_MIN: Duration = Duration::from_secs(1);
/// and at the most.
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// Devices that are known to be waited for; beyond that all is read again.
const KNOWN_MAX: usize = 200_000;
/// Commands that are read in one go.
const READ_AT_ONCE: usize = 500;
/// Tries to write an outcome while others write it too.
const TRIES_MAX: usize = 8;

/// A command as it waits.
#[derive(Debug, Serialize, Deserialize)]
struct Command {
    /// Makes its id another one than that of a command in a stream before this one.
    tag: Box<str>,
    topic: Box<str>,
    /// In base64.
    payload: String,
    put_ms: u64,
    expires_ms: u64,
    /// The gateway that took it.
    by: Box<str>,
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It waits for its device.
    Queued,
    /// It is sent, or was, and is not acknowledged yet: it is sent again.
    Sent,
    /// The device has acknowledged it.
    Acknowledged,
    /// Its time was over before the device acknowledged it. If it was sent, it may have arrived.
    Expired,
    /// The device takes no such message.
    Refused,
    /// Somebody took it back. If it was sent, it may have arrived.
    Cancelled,
}

impl Fate {
    /// Its word.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Fate::Queued => "queued",
            Fate::Sent => "sent",
            Fate::Acknowledged => "acknowledged",
            Fate::Expired => "expired",
            Fate::Refused => "refused",
            Fate::Cancelled => "cancelled",
        }
    }

    /// Whether nothing comes after it.
    #[must_use]
    pub const fn is_final(self) -> bool {
        !matches!(self, Fate::Queued | Fate::Sent)
    }
}

/// What is known of a command.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// For which device.
    pub device: Box<str>,
    /// What became of it.
    pub fate: Fate,
    /// When, as Unix time in milliseconds.
    pub at_ms: u64,
    /// How often it was tried to send it.
    pub tries: u32,
    /// The gateway that tried last, or took it where nobody has.
    pub node: Box<str>,
    /// Why it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Why a command does not wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotQueued {
    /// NATS does not answer: it may wait all the same.
    Away,
    /// There is no room; what NATS says.
    Full(String),
}

/// What is known of one, and where.
struct Found {
    /// The revision of its outcome; 0: there is none.
    revision: u64,
    known: Option<Known>,
}

impl Fleet {
    /// Has a command wait for a device that is nowhere; its id. It is there when this returns.
    ///
    /// # Errors
    /// [`NotQueued`].
    pub async fn queue(
        &self,
        device: &str,
        downlink: &Downlink,
        expiry: Duration,
        deadline: Instant,
    ) -> Result<String, NotQueued> {
        let shared = &self.shared;
        let server = shared.server().ok_or(NotQueued::Away)?;
        let now_ms = unix_ms();
        let command = Command {
            tag: format!("{:08x}", fastrand::u32(..)).into(),
            topic: downlink.topic.clone(),
            payload: BASE64_STANDARD.encode(&downlink.payload),
            put_ms: now_ms,
            expires_ms: now_ms.saturating_add(expiry.min(EXPIRY_MAX).as_millis() as u64),
            by: shared.node.as_str().into(),
        };
        let payload = serde_json::to_vec(&command).expect("it has no keys but texts");
        let left = deadline.saturating_duration_since(Instant::now());
        let put = tokio::time::timeout(left, server.put_command(device, payload.into())).await;
        let number = match put {
            Ok(Ok(number)) => number,
            Ok(Err(NotPut::Full(why))) => return Err(NotQueued::Full(why)),
            Ok(Err(NotPut::Lost(_))) | Err(_) => return Err(NotQueued::Away),
        };
        shared.counters.queued.fetch_add(1, Ordering::Relaxed);
        self.tell_owner(server, device.into());
        Ok(id_of(number, &command))
    }

    /// Whoever has the device by now is told that something waits. It would find out by itself, later.
    fn tell_owner(&self, server: Server, device: Box<str>) {
        let shared = Arc::clone(&self.shared);
        drop(tokio::spawn(async move {
            let Ok(Some((_, row))) = server.device_for_sure::<Row>(&device).await else { return };
            if *row.node == *shared.node {
                shared.wake(&device);
            } else {
                let request = Request::Call { call: Call::Commands { device } };
                let _ = requests::put(&server, &row.node, &request, SLACK).await;
            }
        }));
    }

    /// What is known of a command; `None`: nothing, or no more. One whose time is over has expired with this.
    ///
    /// # Errors
    /// [`Unreachable::Away`].
    pub async fn command(&self, id: &str, deadline: Instant) -> Result<Option<Known>, Unreachable> {
        self.look_at_command(id, None, deadline).await
    }

    /// Takes a command back, if it has no outcome yet; what is known of it then.
    ///
    /// # Errors
    /// [`Unreachable::Away`]: it may be taken back.
    pub async fn cancel_command(&self, id: &str, deadline: Instant) -> Result<Option<Known>, Unreachable> {
        self.look_at_command(id, Some(Fate::Cancelled), deadline).await
    }

    async fn look_at_command(
        &self,
        id: &str,
        unless_final: Option<Fate>,
        deadline: Instant,
    ) -> Result<Option<Known>, Unreachable> {
        let server = self.shared.server().ok_or(Unreachable::Away)?;
        let looked = look(&self.shared, &server, id, unless_final);
        let left = deadline.saturating_duration_since(Instant::now());
        let known = tokio::time::timeout(left, looked).await.map_err(|_| Unreachable::Away)?;
        known.map_err(|_| Unreachable::Away)
    }
}

/// What is known of a command, after it was given this fate unless it has one.
async fn look(shared: &Shared, server: &Server, id: &str, unless_final: Option<Fate>) -> Result<Option<Known>, String> {
    // What is no id may not be asked for either: it could be a pattern of subjects.
    let Some(number) = number_of(id) else { return Ok(None) };
    let found = find(server, id).await?;
    if let Some(known) = found.known.as_ref().filter(|known| known.fate.is_final()) {
        return Ok(Some(known.clone()));
    }
    let waits = server.command_at(number).await?.and_then(|(device, payload)| Some((device, parse(&payload)?)));
    let Some((device, command)) = waits.filter(|(_, command)| id_of(number, command) == *id) else {
        // It went between the two looks.
        return Ok(find(server, id).await?.known);
    };
    let now_ms = unix_ms();
    let fate = if command.expires_ms <= now_ms { Some(Fate::Expired) } else { unless_final };
    if let Some(fate) = fate {
        let known = settle(shared, server, id, (&device, &command), |_| (fate, None)).await?;
        server.remove_command(number).await?;
        return Ok(Some(known));
    }
    Ok(Some(found.known.unwrap_or_else(|| first(&device, &command))))
}

/// A command that nobody has tried to send.
fn first(device: &str, command: &Command) -> Known {
    let Command { put_ms, by, .. } = command;
    Known { device: device.into(), fate: Fate::Queued, at_ms: *put_ms, tries: 0, node: by.clone(), why: None }
}

async fn find(server: &Server, id: &str) -> Result<Found, String> {
    Ok(match server.outcome(id).await? {
        Some((revision, payload)) => Found { revision, known: serde_json::from_slice(&payload).ok() },
        None => Found { revision: 0, known: None },
    })
}

/// Writes an outcome, unless there is a final one: what stands there then. Whoever comes first wins.
async fn settle(
    shared: &Shared,
    server: &Server,
    id: &str,
    (device, command): (&str, &Command),
    fate: impl Fn(&Known) -> (Fate, Option<String>),
) -> Result<Known, String> {
    for _ in 0..TRIES_MAX {
        let Found { revision, known } = find(server, id).await?;
        let before = known.unwrap_or_else(|| first(device, command));
        if before.fate.is_final() {
            return Ok(before);
        }
        let (fate, why) = fate(&before);
        let mut after = Known { fate, why, at_ms: unix_ms(), ..before };
        if fate == Fate::Sent {
            after.tries = after.tries.saturating_add(1);
            after.node = shared.node.as_str().into();
        }
        let payload = serde_json::to_vec(&after).expect("it has no keys but texts");
        match server.write(server.names.outcome(id), revision, payload.into()).await {
            Written::At(_) => {
                shared.counters.count_fate(fate);
                return Ok(after);
            }
            Written::Conflict => {}
            Written::Lost(why) => return Err(why),
        }
    }
    Err("others write the same outcome all the time".to_owned())
}

/// What is to be done about a device next.
#[derive(Debug, PartialEq, Eq)]
enum After {
    /// Nothing waits, or the device has gone.
    Nothing,
    /// Something waits that it did not take now.
    Again,
    /// NATS did not answer; what the device did acknowledge is remembered.
    Broken,
}

/// Says to a device what waits for it, in order. One that it does not take now is passed over.
async fn deliver(
    shared: &Shared,
    server: &Server,
    orders: &mpsc::UnboundedSender<Order>,
    device: &str,
) -> Result<After, String> {
    let (mut from, mut after) = (1, After::Nothing);
    while let Some((number, payload)) = server.next_command(device, from).await? {
        from = number + 1;
        let Some(command) = parse(&payload) else {
            tracing::warn!(
                device,
                number,
                "a command that waits is not understood: whoever put it is no gateway; it is let go"
            );
            server.remove_command(number).await?;
            continue;
        };
        let id = id_of(number, &command);
        let about = (device, &command);
        if shared.take_owed(&id) {
            settle(shared, server, &id, about, |_| (Fate::Acknowledged, None))
                .await
                .inspect_err(|_| shared.owe(&id))?;
            server.remove_command(number).await?;
            continue;
        }
        if !shared.is_here(device) {
            return Ok(After::Nothing);
        }
        let left = command.expires_ms.saturating_sub(unix_ms());
        let fate = if left == 0 { Fate::Expired } else { Fate::Sent };
        let known = settle(shared, server, &id, about, |_| (fate, None)).await?;
        if known.fate.is_final() {
            server.remove_command(number).await?;
            continue;
        }
        let patience = PATIENCE.min(Duration::from_millis(left));
        let fate = match say(orders, device, &command, patience).await {
            Reply::Acknowledged => (Fate::Acknowledged, None),
            Reply::Refused { why } if !is_refused_for_now(&why) => (Fate::Refused, Some(why)),
            // It comes again.
            Reply::Offline => return Ok(After::Nothing),
            _ => {
                after = After::Again;
                continue;
            }
        };
        let is_acknowledged = fate.0 == Fate::Acknowledged;
        let settled = settle(shared, server, &id, about, |_| fate.clone()).await;
        settled.inspect_err(|_| {
            if is_acknowledged {
                shared.owe(&id);
            }
        })?;
        server.remove_command(number).await?;
    }
    Ok(after)
}

/// Says it to the device, which is here, and waits for its acknowledgement.
async fn say(orders: &mpsc::UnboundedSender<Order>, device: &str, command: &Command, patience: Duration) -> Reply {
    // Whoever put it is no gateway.
    let Ok(payload) = BASE64_STANDARD.decode(&command.payload) else {
        return Reply::Refused { why: "its payload is not base64".to_owned() };
    };
    let (answer, answered) = oneshot::channel();
    let downlink = Downlink { topic: command.topic.clone(), payload: payload.into() };
    let order = Order::Send { device: device.into(), downlink, patience: Some(patience), answer };
    if orders.send(order).is_err() {
        return Reply::Busy;
    }
    match tokio::time::timeout(patience + SLACK, answered).await {
        Ok(Ok(reply)) => reply,
        _ => Reply::Late,
    }
}

fn parse(payload: &[u8]) -> Option<Command> {
    serde_json::from_slice(payload).ok()
}

fn id_of(number: u64, command: &Command) -> String {
    format!("{number}-{}", command.tag)
}

fn number_of(id: &str) -> Option<u64> {
    let (number, tag) = id.split_once('-')?;
    let is_tag = !tag.is_empty() && tag.len() <= 16 && tag.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if is_tag { number.parse().ok() } else { None }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// For which devices something waits, and who of those that are here is told.
#[derive(Default)]
pub struct Commands {
    /// Devices for which something was put, as far as it was read; of some it is gone by now.
    known: HashSet<Box<str>>,
    /// Up to where it was read.
    read: u64,
    wanted: VecDeque<Box<str>>,
    /// Those of `wanted`, and those that are told now; `true`: they are to be looked at again after that.
    busy: HashMap<Box<str>, bool>,
    again: BinaryHeap<Reverse<(Instant, Box<str>)>>,
    /// How often a device did not take what waits, in a row.
    fails: HashMap<Box<str>, u32>,
    tasks: JoinSet<(Box<str>, After)>,
}

impl Commands {
    /// The connection to NATS is gone: what is under way is asked again over the next one.
    pub fn end(&mut self) {
        self.tasks.abort_all();
        self.tasks = JoinSet::new();
        let devices: Vec<_> = self.busy.drain().map(|(device, _)| device).collect();
        self.wanted.clear();
        for device in devices {
            self.want(device);
        }
    }

    /// A device's row was written here.
    pub fn came(&mut self, device: &str) {
        if self.known.contains(device) {
            self.want(device.into());
        }
    }

    /// Something may wait for a device that is here.
    pub fn want(&mut self, device: Box<str>) {
        if let Some(is_again) = self.busy.get_mut(&device) {
            *is_again = true;
        } else {
            self.busy.insert(device.clone(), false);
            self.wanted.push_back(device);
        }
    }

    /// From where on there is something to be read, if there is: the stream has `rows`, and `last` is the latest there ever was.
    pub fn unread(&mut self, last: u64, rows: u64) -> Option<u64> {
        if last < self.read || self.known.len() > KNOWN_MAX {
            // The stream was made anew, or too much is known of what is gone.
            (self.known, self.read) = (HashSet::new(), 0);
        }
        if rows == 0 {
            // Whatever was put is gone, up to there.
            (self.known, self.read) = (HashSet::new(), last);
        }
        (self.read < last).then_some(self.read + 1)
    }

    /// These were read, up to there. `is_here`: whether a device is.
    pub fn handle_read(&mut self, upto: u64, devices: Vec<Box<str>>, is_here: impl Fn(&str) -> bool) {
        self.read = self.read.max(upto);
        for device in devices {
            if is_here(&device) {
                self.want(device.clone());
            }
            self.known.insert(device);
        }
    }

    /// Begins what may begin, and takes note of what is done.
    pub async fn advance(&mut self, shared: &Arc<Shared>, server: &Server, orders: &mpsc::UnboundedSender<Order>) {
        while self.tasks.len() < AT_A_TIME
            && let Some(device) = self.wanted.pop_front()
        {
            let (shared, server, orders) = (Arc::clone(shared), server.clone(), orders.clone());
            self.tasks.spawn(async move {
                let after = deliver(&shared, &server, &orders, &device).await.unwrap_or_else(|why| {
                    tracing::debug!(why, %device, "what waits for a device is looked at again");
                    After::Broken
                });
                (device, after)
            });
        }
        let due = self.again.peek().map(|Reverse((due, _))| *due);
        tokio::select! {
            Some(done) = self.tasks.join_next() => {
                if let Ok((device, after)) = done {
                    self.handle_done(device, &after, Instant::now());
                }
            }
            () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now).into()), if due.is_some() => {
                if let Some(Reverse((_, device))) = self.again.pop() {
                    self.want(device);
                }
            }
            else => std::future::pending().await,
        }
    }

    fn handle_done(&mut self, device: Box<str>, after: &After, now: Instant) {
        let is_again = self.busy.remove(&device).unwrap_or(false);
        match after {
            After::Nothing => {
                self.fails.remove(&device);
                if is_again {
                    self.want(device);
                }
            }
            After::Again | After::Broken => {
                let fails = self.fails.entry(device.clone()).or_default();
                let wait = AGAIN_MIN.saturating_mul(1 << (*fails).min(8)).min(AGAIN_MAX);
                *fails += 1;
                self.again.push(Reverse((now + wait, device)));
            }
        }
    }
}

/// The devices for which something was put from this number on, up to which number, and whether there may be more.
///
/// # Errors
/// There is no answer; why.
pub async fn read(server: &Server, from: u64) -> Result<(u64, Vec<Box<str>>, bool), String> {
    let (mut upto, mut devices) = (from.saturating_sub(1), Vec::new());
    while devices.len() < READ_AT_ONCE {
        let Some((number, device, _)) = server.any_command(upto + 1).await? else { return Ok((upto, devices, false)) };
        upto = number;
        devices.extend(device);
    }
    Ok((upto, devices, true))
}

/// Lets all go whose time is over, each with that outcome. How many.
///
/// # Errors
/// There is no answer; why.
pub async fn expire(shared: &Shared, server: &Server) -> Result<u64, String> {
    let (mut number, mut count, mut looked) = (0, 0, 0_u32);
    while let Some((at, device, payload)) = server.any_command(number + 1).await? {
        number = at;
        if let (Some(device), Some(command)) = (device, parse(&payload))
            && command.expires_ms <= unix_ms()
        {
            settle(shared, server, &id_of(at, &command), (&device, &command), |_| (Fate::Expired, None)).await?;
            server.remove_command(at).await?;
            count += 1;
        }
        looked += 1;
        if looked.is_multiple_of(50) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_they_were_written_and_nothing_else_is() {
        let command = Command {
            tag: "0a1b2c3d".into(),
            topic: "t".into(),
            payload: String::new(),
            put_ms: 1,
            expires_ms: 2,
            by: "a".into(),
        };
        assert_eq!(number_of(&id_of(17, &command)), Some(17));
        for id in ["", "17", "17-", "-0a", "x-0a", "17-a.b", "17-*", "17->", "17-aaaaaaaaaaaaaaaaa", "17-a b"] {
            assert_eq!(number_of(id), None, "{id:?}");
        }
        let text = serde_json::to_vec(&command).unwrap();
        assert_eq!(parse(&text).unwrap().expires_ms, 2);
        assert!(parse(b"{}").is_none() && parse(b"").is_none());
    }

    #[test]
    fn what_is_read_is_known_until_all_is_gone() {
        let mut commands = Commands::default();
        assert_eq!(commands.unread(0, 0), None);
        assert_eq!(commands.unread(3, 3), Some(1));
        commands.handle_read(3, vec!["a".into(), "b".into()], |device| device == "b");
        assert_eq!(commands.wanted, ["b".into()], "it is here already");
        assert_eq!(commands.unread(3, 2), None);
        commands.came("c");
        assert_eq!(commands.wanted.len(), 1, "nothing waits for it");
        commands.came("a");
        assert_eq!(commands.wanted.len(), 2);
        assert_eq!(commands.unread(5, 0), None, "all that was put is gone");
        assert!(commands.known.is_empty());
        assert_eq!(commands.unread(6, 1), Some(6));
        // A stream that was made anew.
        assert_eq!(commands.unread(2, 2), Some(1));
    }

    #[test]
    fn one_device_is_told_by_one_task_and_looked_at_again_when_something_came_meanwhile() {
        let mut commands = Commands::default();
        let now = Instant::now();
        commands.want("a".into());
        commands.want("a".into());
        assert_eq!(commands.wanted.len(), 1);
        commands.wanted.clear();
        commands.handle_done("a".into(), &After::Nothing, now);
        assert_eq!(commands.wanted, ["a".into()], "something was put while it was told");
        commands.wanted.clear();
        commands.handle_done("a".into(), &After::Nothing, now);
        assert!(commands.wanted.is_empty() && commands.busy.is_empty());
        // Not taken: later and later, up to a bound.
        for fails in 0..12 {
            commands.want("a".into());
            commands.wanted.clear();
            commands.handle_done("a".into(), &After::Again, now);
            let Reverse((due, _)) = commands.again.pop().unwrap();
            assert_eq!(due - now, (AGAIN_MIN * (1 << fails.min(8))).min(AGAIN_MAX), "{fails}");
        }
        commands.want("a".into());
        commands.wanted.clear();
        commands.handle_done("a".into(), &After::Nothing, now);
        assert!(commands.fails.is_empty(), "nothing is kept of who took it");
        // The connection breaks: all that was under way is under way again.
        commands.want("b".into());
        commands.wanted.clear();
        commands.end();
        assert_eq!(commands.wanted, ["b".into()]);
    }

    #[test]
    fn an_outcome_is_final_or_not() {
        for (fate, is_final) in [
            (Fate::Queued, false),
            (Fate::Sent, false),
            (Fate::Acknowledged, true),
            (Fate::Expired, true),
            (Fate::Refused, true),
            (Fate::Cancelled, true),
        ] {
            assert_eq!(fate.is_final(), is_final);
            assert_eq!(serde_json::to_string(&fate).unwrap(), format!("\"{}\"", fate.label()));
        }
    }
}
