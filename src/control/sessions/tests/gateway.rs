//! A life of a gateway: what is around its sessions, as models; what it does with them is the program's own.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::around::{Around, Neighbours, Pieces, within};
use super::super::{SHARD_MAX, Sessions, keep_cursor, rows, serve, sweep, verify};
use super::executor::{Clock, Whose};
use super::nats::{LEASE, Nats, name, place};
use super::shard::Shard;
use super::{Fault, GATEWAYS};
use crate::config::Limits;
use crate::fleet::{Cursor, Position, Published, RowChange, SessionAsk, SessionRow, Span, StreamEnds, Unreachable};
use crate::image::{Message, Session, SessionKey, Will};
use crate::link::{Cover, Lag, Outcome, SessionOrder, WorkerCommand, WorkerId};

/// How long an answer of another gateway is waited for.
const ASK_MAX: Duration = Duration::from_millis(3_500);
/// How long all that others have published may take to come.
const END_MAX: Duration = Duration::from_secs(2);
/// How long it may take until all that was published here is in the stream.
const SENT_MAX: Duration = Duration::from_secs(4);
/// Messages of the stream that are under way to sessions at a time.
const TAKEN_MAX: usize = 8;

/// The lives that there are, for those who ask each other.
pub type Lives = Arc<Mutex<[Option<Arc<Gateway>>; GATEWAYS]>>;

pub struct Gateway {
    pub at: usize,
    pub life: u64,
    name: String,
    pub clock: Clock,
    pub nats: Nats,
    lives: Lives,
    pub fault: Fault,
    pub sessions: Sessions,
    limits: Limits,
    joined: AtomicU64,
    /// How many pages of its sessions were read.
    pub pages: AtomicU64,
    shard: Mutex<Shard>,
}

impl Gateway {
    pub fn new(at: usize, life: u64, nats: &Nats, lives: &Lives, fault: Fault, shard: Shard) -> Arc<Self> {
        Arc::new(Self {
            at,
            life,
            name: name(at),
            clock: nats.clock.clone(),
            nats: nats.clone(),
            lives: Arc::clone(lives),
            fault,
            sessions: Sessions::new(),
            // Nothing gives way for want of room.
            limits: Limits { session_messages: 100_000, session_bytes: 1 << 30, ..Limits::default() },
            joined: AtomicU64::new(0),
            pages: AtomicU64::new(0),
            shard: Mutex::new(shard),
        })
    }

    pub fn shard(&self) -> MutexGuard<'_, Shard> {
        self.shard.lock().unwrap()
    }

    pub fn whose(&self) -> Whose {
        Whose::Gateway(self.at, self.life)
    }

    /// All that goes on in it by itself.
    pub fn begin(self: &Arc<Self>) {
        let spawn = |work: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| self.clock.spawn(self.whose(), work);
        spawn(Box::pin(rows::work(Arc::clone(self))));
        spawn(Box::pin(keep_cursor(Arc::clone(self))));
        spawn(Box::pin(verify(Arc::clone(self))));
        spawn(Box::pin(sweep(Arc::clone(self))));
        spawn(Box::pin(keep_lease(Arc::clone(self))));
        spawn(Box::pin(send(Arc::clone(self))));
        spawn(Box::pin(read(Arc::clone(self))));
    }

    /// Every message up to there is with sessions here.
    pub fn note_settled(&self, position: u64) {
        self.sessions.note_settled(&Position { stream: "t".into(), position });
    }
}

async fn keep_lease(gateway: Arc<Gateway>) {
    let mut has_joined = false;
    loop {
        let (name, life) = (gateway.name.clone(), gateway.life);
        let renewed = gateway.nats.ask(gateway.at, move |state, now| state.renew(&name, life, now)).await;
        if let Ok(is_new) = renewed
            && (is_new || !std::mem::replace(&mut has_joined, true))
        {
            gateway.joined.fetch_add(1, Ordering::Relaxed);
        }
        let pause = if renewed.is_ok() { LEASE / 3 } else { LEASE / 30 };
        gateway.clock.sleep(pause).await;
    }
}

/// What is published here goes up, in its order.
async fn send(gateway: Arc<Gateway>) {
    loop {
        let next = gateway.shard().next_of_log();
        let Some((number, published)) = next else {
            gateway.clock.sleep(Duration::from_millis(40)).await;
            continue;
        };
        let sent = gateway.nats.ask(gateway.at, move |state, _| state.publish(number, published)).await;
        if sent.is_ok() {
            gateway.shard().note_sent(number);
        } else {
            gateway.clock.sleep(Duration::from_millis(50)).await;
        }
    }
}

/// What is published elsewhere comes, in the order of the stream.
async fn read(gateway: Arc<Gateway>) {
    loop {
        let (after, has_room) = gateway.shard().taken(TAKEN_MAX);
        let piece = if has_room {
            let piece = move |state: &mut super::nats::State, _| -> Vec<Published> {
                state.stream.iter().skip(after as usize).take(4).cloned().collect()
            };
            gateway.nats.ask(gateway.at, piece).await.unwrap_or_default()
        } else {
            Vec::new()
        };
        let is_empty = piece.is_empty();
        gateway.shard().take(piece);
        if is_empty {
            gateway.clock.sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Around for Gateway {
    type Fleet = Self;

    fn sessions(&self) -> &Sessions {
        &self.sessions
    }

    fn fleet(&self) -> Option<&Self> {
        Some(self)
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn lease(&self) -> Duration {
        LEASE
    }

    fn is_ending(&self) -> bool {
        false
    }

    fn now(&self) -> Instant {
        self.clock.now()
    }

    fn unix_ms(&self) -> i64 {
        self.shard().unix_ms(self.clock.now())
    }

    async fn sleep(&self, duration: Duration) {
        self.clock.sleep(duration).await;
    }

    fn spawn(self: Arc<Self>, task: impl Future<Output = ()> + Send + 'static) {
        self.clock.spawn(self.whose(), task);
    }

    async fn ask(&self, device: &str, order: SessionOrder) -> Option<Outcome> {
        let asked = self.shard().order(device, order, self.clock.now());
        self.clock.way().await;
        match asked {
            Ok(outcome) => Some(outcome),
            Err(answered) => within(self, self.now() + SHARD_MAX, answered).await?.ok(),
        }
    }

    fn answer(&self, _worker: WorkerId, command: WorkerCommand) {
        self.shard().answer(command);
    }

    async fn ask_round(&self, number: u64, floor: u64) -> Option<Vec<Lag>> {
        let answered = self.shard().round(number, floor);
        let mut lag = within(self, self.now() + SHARD_MAX, answered).await?.ok()?;
        if self.fault == Fault::NoNeeds {
            lag.oldest = number;
        }
        Some(vec![lag])
    }

    fn publish_will(&self, device: Box<str>, _listener: &str, _will: Will) {
        self.shard().note_will(device);
    }

    fn has_store(&self) -> bool {
        true
    }

    async fn stored(&self, device: &str) -> Option<Session> {
        self.clock.way().await;
        self.shard().store.session(device)
    }

    async fn stored_messages(&self, key: SessionKey, numbers: (u64, u64), _bytes: usize) -> Option<Vec<Message>> {
        self.clock.way().await;
        Some(self.shard().store.messages(key, numbers, 8))
    }

    async fn stored_names(&self, after: SessionKey, count: usize) -> Option<Vec<(SessionKey, Box<str>)>> {
        self.clock.way().await;
        self.pages.fetch_add(1, Ordering::Relaxed);
        Some(self.shard().store.names(after, count))
    }

    fn has_stream(&self) -> bool {
        true
    }

    async fn send_all(&self) -> Option<()> {
        let until = self.now() + SENT_MAX;
        let last = self.shard().log_length();
        while self.fault != Fault::NothingIsSent && self.shard().sent() < last {
            if self.now() >= until {
                return None;
            }
            self.clock.sleep(Duration::from_millis(20)).await;
        }
        Some(())
    }

    async fn pass_all(&self) -> Option<()> {
        self.clock.way().await;
        Some(())
    }
}

impl Neighbours for Gateway {
    type Missed = Missed;

    fn node(&self) -> &str {
        &self.name
    }

    fn is_connected(&self) -> bool {
        self.nats.knows(self.at)
    }

    fn joined(&self) -> u64 {
        self.joined.load(Ordering::Relaxed) + self.nats.state().found[self.at]
    }

    fn has_no_sessions(&self) -> bool {
        false
    }

    async fn session_row(&self, device: &str) -> Result<Option<(u64, SessionRow)>, String> {
        let device = device.to_owned();
        self.nats.ask(self.at, move |state, _| state.rows.get(&device).cloned()).await
    }

    async fn write_row(&self, device: &str, expected: u64, row: &SessionRow) -> RowChange {
        let (device, row, fault) = (device.to_owned(), row.clone(), self.fault);
        let written = self.nats.ask(self.at, move |state, _| state.write_row(&device, expected, row, fault)).await;
        written.unwrap_or_else(RowChange::Lost)
    }

    async fn remove_session_row(&self, revision: u64) -> Result<bool, String> {
        self.nats.ask(self.at, move |state, _| state.remove_row(revision)).await
    }

    async fn next_session(&self, revision: u64) -> Result<Option<(u64, Option<String>, SessionRow)>, String> {
        self.nats.ask(self.at, move |state, _| state.next_row(revision)).await
    }

    async fn write_cursor(&self, cursor: &Cursor) -> bool {
        let (name, cursor) = (self.name.clone(), cursor.clone());
        self.nats.ask(self.at, move |state, _| state.write_cursor(&name, cursor)).await.is_ok()
    }

    async fn session_cursor(&self, node: &str) -> Result<Option<Cursor>, String> {
        let node = node.to_owned();
        self.nats.ask(self.at, move |state, _| state.cursor(&node)).await
    }

    async fn is_live(&self, node: &str) -> Result<bool, String> {
        let node = node.to_owned();
        self.nats.ask(self.at, move |state, now| state.is_live(&node, now)).await
    }

    fn living(&self) -> BTreeSet<String> {
        self.nats.state().living(self.now())
    }

    async fn dead_for(&self, node: &str) -> Result<Option<Duration>, String> {
        let node = node.to_owned();
        self.nats.ask(self.at, move |state, now| state.dead_for(&node, now)).await
    }

    async fn forget_dead(&self, _needed: impl Fn(&str) -> bool + Send) -> Result<(), String> {
        Ok(())
    }

    async fn has_device(&self, device: &str) -> Result<bool, String> {
        let lives = self.lives.lock().unwrap();
        let others = lives.iter().flatten().filter(|life| life.at != self.at);
        Ok(others.into_iter().any(|life| life.shard().connection(device).is_some()))
    }

    fn note_will_withheld(&self) {}

    async fn ask_session(&self, node: &str, device: &str, ask: SessionAsk) -> Result<Bytes, Unreachable> {
        let (nats, lives, device) = (self.nats.clone(), Arc::clone(&self.lives), Box::<str>::from(device));
        let (at, to) = (self.at, place(node));
        let (answer, answered) = oneshot::channel();
        self.clock.spawn(Whose::Network, async move {
            nats.clock.way().await;
            let there = lives.lock().unwrap()[to].clone();
            let Some(there) = there.filter(|_| !nats.is_cut(at) && !nats.is_cut(to) && !nats.clock.chance(60)) else {
                return;
            };
            let is_doubled = nats.clock.chance(20);
            let asked = Arc::clone(&there);
            let (again, device_again) = (ask.clone(), device.clone());
            there.clock.spawn(there.whose(), async move {
                let bytes = serve(&*asked, &device, ask).await;
                nats.clock.way().await;
                if !nats.is_cut(at) && !nats.is_cut(to) && !nats.clock.chance(60) {
                    drop(answer.send(bytes));
                }
            });
            if is_doubled {
                let asked = Arc::clone(&there);
                there.clock.spawn(there.whose(), async move {
                    asked.clock.way().await;
                    drop(serve(&*asked, &device_again, again).await);
                });
            }
        });
        self.nats.wait(answered, ASK_MAX).await.ok_or_else(|| Unreachable::Silent(node.to_owned()))
    }

    fn has_stream(&self) -> bool {
        true
    }

    async fn reach_end(&self) -> bool {
        let until = self.now() + END_MAX;
        if self.fault == Fault::EndIsReached {
            return true;
        }
        let Ok(end) = self.nats.ask(self.at, |state, _| state.stream.len() as u64).await else { return false };
        while self.shard().taken(0).0 < end {
            if self.now() >= until {
                return false;
            }
            self.clock.sleep(Duration::from_millis(20)).await;
        }
        true
    }

    async fn stream_ends(&self) -> Result<StreamEnds, String> {
        self.nats.ask(self.at, |state, _| state.ends()).await
    }

    async fn missed(&self, _cover: &Cover, span: Span) -> Result<Option<Missed>, String> {
        let pending = self.nats.ask(self.at, move |state, _| state.stream.len() as u64 - span.after).await?;
        if pending == 0 {
            return Ok(None);
        }
        Ok(Some(Missed { nats: self.nats.clone(), at: self.at, span, pending }))
    }
}

/// A part of the stream.
pub struct Missed {
    nats: Nats,
    at: usize,
    span: Span,
    pending: u64,
}

impl Pieces for Missed {
    fn pending(&self) -> u64 {
        self.pending
    }

    fn last(&self) -> u64 {
        self.span.after
    }

    async fn next(&mut self) -> Result<Option<Vec<Published>>, String> {
        let Span { after, upto, .. } = self.span;
        if after >= upto {
            return Ok(None);
        }
        let piece = move |state: &mut super::nats::State, _| -> Vec<Published> {
            let all = state.stream.iter().skip(after as usize).take(20);
            all.take_while(|published| published.at <= upto).cloned().collect()
        };
        let piece = self.nats.ask(self.at, piece).await?;
        self.span.after = piece.last().map_or(upto, |last| last.at);
        Ok(Some(piece))
    }
}
