//! A life of a gateway: what is around its sessions, as models; what it does with them is the program's own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::around::{Around, Neighbours, Pieces, within};
use super::super::{SHARD_MAX, Sessions, keep_cursor, rows, serve, sweep, verify};
use super::executor::{Clock, Whose};
use super::nats::{LEASE, Nats, name, place};
use super::presence::{self, Claims};
use super::shard::{Shard, will_number};
use super::{Fault, GATEWAYS};
use crate::config::Limits;
use crate::fleet::{
    Cursor, LEASE_KNOWN_FOR, Position, Published, RowChange, SessionAsk, SessionRow, Span, StreamEnds, Unreachable,
};
use crate::image::{Message, Session, SessionKey, Will};
use crate::link::{Cover, Lag, Outcome, SessionOrder, WorkerCommand, WorkerId};

/// How long an answer of another gateway is waited for.
const ASK_MAX: Duration = Duration::from_millis(3_500);
/// The same, of what it knows at once.
const PUT_MAX: Duration = Duration::from_secs(2);
/// How long all that others have published may take to come.
const END_MAX: Duration = Duration::from_secs(2);
/// How long it may take until all that was published here is in the stream.
const SENT_MAX: Duration = Duration::from_secs(4);
/// For so long what was done before NATS was there may still be heard.
const AWAY_FOR: Duration = Duration::from_millis(500);
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
    /// Whether others had leases, and when that was asked for.
    leases: Mutex<BTreeMap<String, (bool, Instant)>>,
    pub(super) claims: Mutex<Claims>,
}

impl Gateway {
    pub fn new(at: usize, life: u64, nats: &Nats, lives: &Lives, fault: Fault, shard: Shard) -> Arc<Self> {
        let id = format!("{:016x}", nats.clock.below(u64::MAX));
        let claims = Claims::new(at, life, id, nats.clock.now().into_std());
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
            leases: Mutex::default(),
            claims: Mutex::new(claims),
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
        if self.fault != Fault::NobodyLooksAtTheDead {
            spawn(Box::pin(sweep(Arc::clone(self))));
        }
        spawn(Box::pin(presence::keep(Arc::clone(self))));
        spawn(Box::pin(send(Arc::clone(self))));
        spawn(Box::pin(read(Arc::clone(self))));
    }

    /// It has come to hold its lease.
    pub fn note_joined(&self) {
        self.joined.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether it knew a moment ago how it is with NATS.
    pub fn was_connected(&self) -> bool {
        let (is_connected, now) = (self.is_connected(), self.clock.now().into_std());
        is_connected && now.duration_since(self.claims().away) > AWAY_FOR
    }

    /// Asks another gateway something that it knows at once. `None`: it does not answer.
    pub async fn put<T: Send + 'static>(&self, node: &str, act: impl FnOnce(&Self) -> T + Send + 'static) -> Option<T> {
        let (nats, lives, at, to) = (self.nats.clone(), Arc::clone(&self.lives), self.at, place(node));
        let (answer, answered) = oneshot::channel();
        self.clock.spawn(Whose::Network, async move {
            nats.clock.way().await;
            let there = lives.lock().unwrap()[to].clone();
            let is_lost = move |nats: &Nats| nats.is_cut(at) || nats.is_cut(to) || nats.clock.chance(60);
            let Some(there) = there.filter(|there| there.is_connected() && !is_lost(&nats)) else { return };
            let asked = Arc::clone(&there);
            there.clock.spawn(there.whose(), async move {
                let known = act(&asked);
                nats.clock.way().await;
                if !is_lost(&nats) {
                    drop(answer.send(known));
                }
            });
        });
        self.nats.wait(answered, PUT_MAX).await
    }

    /// Every message up to there is with sessions here.
    pub fn note_settled(&self, position: u64) {
        self.sessions.note_settled(&Position { stream: "t".into(), position });
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
        if gateway.fault == Fault::SettledTooSoon {
            let end = gateway.nats.state().ends().last;
            gateway.note_settled(end);
            gateway.clock.sleep(Duration::from_secs(1)).await;
        }
        let piece = if has_room {
            let piece = move |state: &mut super::nats::State, _| -> Vec<Published> {
                state.stream.iter().skip(after as usize).take(4).cloned().collect()
            };
            gateway.nats.look(gateway.at, piece).await.unwrap_or_default()
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
        let lags = within(self, self.now() + SHARD_MAX, join_all(answered)).await?;
        let mut lags: Vec<Lag> = lags.into_iter().collect::<Result<_, _>>().ok()?;
        if self.fault == Fault::NoNeeds {
            for lag in &mut lags {
                lag.oldest = number;
                lag.slow.clear();
            }
        }
        Some(lags)
    }

    fn publish_will(&self, _device: Box<str>, _listener: &str, will: Will) {
        self.shard().note_will(will_number(&will.publication.payload), true);
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
        let is_early = self.fault == Fault::WalkIsEarly;
        Some(if is_early { Vec::new() } else { self.shard().store.names(after, count) })
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
        let passed = self.shard().pass_all();
        self.clock.way().await;
        let passed = within(self, self.now() + SENT_MAX, join_all(passed)).await?;
        passed.into_iter().all(|outcome| outcome.is_ok()).then_some(())
    }
}

impl Neighbours for Gateway {
    type Missed = Missed;

    fn node(&self) -> &str {
        &self.name
    }

    fn is_connected(&self) -> bool {
        self.claims().is_serving
    }

    fn joined(&self) -> u64 {
        self.joined.load(Ordering::Relaxed)
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

    /// As `fleet/leases.rs`: what was read a moment ago is believed, whatever it was.
    async fn is_live(&self, node: &str) -> Result<bool, String> {
        let (known, asked) = (self.leases.lock().unwrap().get(node).copied(), self.clock.now());
        if let Some((is_live, at)) = known
            && asked.duration_since(at) < LEASE_KNOWN_FOR
        {
            return Ok(is_live);
        }
        let of = node.to_owned();
        let is_live = self.nats.look(self.at, move |state, now| state.is_live(&of, now)).await?;
        self.leases.lock().unwrap().insert(node.to_owned(), (is_live, asked));
        Ok(is_live)
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
        let device = device.to_owned();
        let found = self.nats.ask(self.at, move |state, _| state.owners.get(&device).cloned()).await?;
        let Some((_, row)) = found else { return Ok(false) };
        presence::holds(self, &row.node, &row.lease).await
    }

    fn holds_device(&self, device: &str) -> bool {
        self.claims().presence.holds(device)
    }

    fn note_will_withheld(&self) {}

    async fn ask_session(&self, node: &str, device: &str, ask: SessionAsk) -> Result<Bytes, Unreachable> {
        let (nats, lives, device) = (self.nats.clone(), Arc::clone(&self.lives), Box::<str>::from(device));
        let (at, to) = (self.at, place(node));
        let (answer, answered) = oneshot::channel();
        self.clock.spawn(Whose::Network, async move {
            nats.clock.way().await;
            let there = lives.lock().unwrap()[to].clone();
            let is_reached = !nats.is_cut(at) && !nats.is_cut(to) && !nats.clock.chance(60);
            let Some(there) = there.filter(|there| is_reached && there.is_connected()) else { return };
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
