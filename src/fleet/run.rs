//! The thread of a fleet: connects, keeps the lease, asks what the presence wants asked, and hears what others say.
//!
//! ```text
//!   Away ──connected──▶ version, JetStream, buckets verified ──▶ the lease is had ──▶ Serving ── lease renewed, rows written, requests heard
//!    ▲                              │                              │                    │
//!    └────────── back-off ◀─────────┴──────────────────────────────┴────────────────────┘ anything without an answer
//! ```
//!
//! The first question without an answer ends the connection: the client is dropped and all of it is verified again, so that the
//! library's own reconnection, around which plain messages vanish, never comes to act.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use async_nats::{Message, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::JoinSet;

use super::lease::{Lease, Step};
use super::notices::Notices;
use super::pace::Pace;
use super::presence::{Answer, Ask, Effect, Row, Told};
use super::server::{Facts, Server, Written};
use super::settings::Settings;
use super::wire::{Reply, Request};
use super::{Order, SLACK, Shared};
use crate::link::Downlink;
use crate::sink::Backoff;

/// Questions about devices under way at a time.
const UNDER_WAY_MAX: usize = 512;
/// Requests from others under way at a time; further ones are told that this gateway is busy.
const ANSWERING_MAX: usize = 256;
/// How long a worker has to answer what another gateway asks.
const ANSWER_MAX: Duration = Duration::from_secs(2);
/// The longest that another gateway may ask to wait for a device.
const PATIENCE_MAX: Duration = Duration::from_mins(1);
/// How long somebody who asks by NATS may be waited for.
const ASKED_MAX: Duration = Duration::from_secs(63);

/// How often the loop turns at least,
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// and for how long it may not have turned. After that the process stood still, or a question took as long, and what others
/// wanted meanwhile is too old: it might come behind what they wanted later of somebody else.
const STILL_MAX: Duration = Duration::from_secs(1);

/// A number of a question and its answer, or why there is none.
type Answered = (u64, Result<Answer, String>);

/// Why serving has ended.
enum Over {
    /// The gateway ends.
    Stopped,
    /// NATS is away.
    Broken(String),
}

/// The thread's own state.
pub(super) struct Run {
    shared: Arc<Shared>,
    settings: Settings,
    lease: Lease,
    backoff: Backoff,
    random: fastrand::Rng,
    orders: mpsc::UnboundedSender<Order>,
    notices: Notices,
    pace: Pace,
}

/// What one connection has under way.
#[derive(Default)]
struct Session {
    asked: JoinSet<Answered>,
    answering: JoinSet<()>,
}

impl Run {
    pub(super) fn new(
        shared: Arc<Shared>,
        settings: Settings,
        lease: Lease,
        backoff: Backoff,
        random: fastrand::Rng,
        orders: mpsc::UnboundedSender<Order>,
    ) -> Self {
        let pace = Pace::new(settings.config().writes_per_second, Instant::now());
        Self { shared, settings, lease, backoff, random, orders, notices: Notices::default(), pace }
    }

    /// Works until `stopped` says so.
    pub(super) async fn work(mut self, mut stopped: watch::Receiver<bool>) {
        loop {
            let over = tokio::select! {
                // An error means that the sender is gone, which is an end too.
                _ = stopped.wait_for(|stop| *stop) => Over::Stopped,
                over = self.live() => over,
            };
            self.notices.end();
            let server = self.shared.server.lock().expect("no holder panics").take();
            self.shared.presence().end();
            match over {
                Over::Stopped => {
                    if let (Some(server), Some(Step::Write(revision))) = (server, self.lease.renewal()) {
                        // Whoever looks for the devices of this gateway need not wait for the lease to end.
                        let _ = server.remove_lease(revision).await;
                    }
                    return;
                }
                Over::Broken(why) => self.note_away(&why),
            }
            let wait = self.backoff.fail(None);
            tokio::select! {
                _ = stopped.wait_for(|stop| *stop) => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    fn note_away(&self, why: &str) {
        self.shared.counters.connects_failed.fetch_add(1, Ordering::Relaxed);
        if self.shared.status().away(Instant::now(), why) {
            tracing::warn!(why, "NATS is away: devices stay, and are not claimed until it is back");
        }
    }

    /// One connection, from its beginning to its end.
    async fn live(&mut self) -> Over {
        match self.connect().await {
            Ok((server, broken, facts)) => match self.serve(&server, &broken, facts).await {
                Err(over) => over,
                Ok(never) => match never {},
            },
            Err(why) => Over::Broken(why),
        }
    }

    async fn connect(&mut self) -> Result<(Server, Arc<Notify>, Facts), String> {
        let broken = Arc::new(Notify::new());
        let name = format!("pulsegate {}", self.shared.node);
        // Connecting, and a handful of questions.
        let most = self.settings.config().timeout * 4;
        let opened = tokio::time::timeout(most, Server::open(&self.settings, &name, Arc::clone(&broken))).await;
        let (server, facts) = opened.map_err(|_| "the servers do not answer in time".to_owned())??;
        self.have_lease(&server).await?;
        Ok((server, broken, facts))
    }

    fn note_connected(&self, facts: Facts) {
        let Facts { version, promise, doubts } = facts;
        for doubt in doubts {
            tracing::warn!("{doubt}");
        }
        let prefix = &*self.settings.config().prefix;
        tracing::info!(fleet = prefix, node = &*self.shared.node, promise, "this gateway is one of a fleet");
        self.shared.counters.connects.fetch_add(1, Ordering::Relaxed);
        self.shared.status().connected(Instant::now(), version, promise);
    }

    // --- The lease ----------------------------------------------------------------------------------------------------

    /// Comes to hold the lease. From then on the presence asks under it.
    async fn have_lease(&mut self, server: &Server) -> Result<(), String> {
        let now = Instant::now();
        let mut is_new = !self.lease.is_held(now);
        if self.lease.is_over(now) {
            self.lease.lose(fresh_id(&mut self.random));
        }
        loop {
            let found = server.lease(&self.shared.node).await?;
            let random = &mut self.random;
            let (step, is_lost) =
                self.lease.handle_read(found.as_ref().map(|(revision, row)| (*revision, row)), || fresh_id(random));
            is_new |= is_lost;
            let Step::Write(expected) = step else {
                return Err(format!(
                    "another gateway of this fleet is called {:?}: give each its own name (the key node)",
                    self.shared.node
                ));
            };
            if self.write_lease(server, expected).await? {
                break;
            }
        }
        self.shared.presence().begin(&self.lease.row().id, is_new);
        Ok(())
    }

    /// `false`: the key is not at this revision.
    async fn write_lease(&mut self, server: &Server, expected: u64) -> Result<bool, String> {
        let payload = serde_json::to_vec(self.lease.row()).expect("it has no keys but texts");
        let sent = Instant::now();
        self.lease.handle_sent();
        match server.write(server.names.lease(&self.shared.node), expected, payload.into()).await {
            Written::At(revision) => {
                self.lease.handle_written(revision, sent);
                Ok(true)
            }
            Written::Conflict => Ok(false),
            Written::Lost(why) => Err(why),
        }
    }

    /// Writes it again. Whoever has lost it begins anew: what is under way was asked under the old one.
    async fn renew(&mut self, server: &Server, session: &mut Session) -> Result<(), String> {
        if !self.lease.is_over(Instant::now())
            && let Some(Step::Write(revision)) = self.lease.renewal()
            && self.write_lease(server, revision).await?
        {
            return Ok(());
        }
        tracing::warn!("the lease was lost: what this gateway had is looked at again");
        session.asked = JoinSet::new();
        self.shared.presence().end();
        self.have_lease(server).await
    }

    // --- Serving ------------------------------------------------------------------------------------------------------

    async fn serve(&mut self, server: &Server, broken: &Notify, facts: Facts) -> Result<Infallible, Over> {
        let broke = |why: String| Over::Broken(why);
        let mut session = Session::default();
        let (mut ours, mut sends) = self.subscribe(server).await.map_err(broke)?;
        self.shared.set_server(Some(server.clone()));
        self.note_connected(facts);
        self.notices.begin(&self.shared, server);
        let mut turned = Instant::now();
        loop {
            let now = Instant::now();
            if self.lease.due(now) <= now {
                self.renew(server, &mut session).await.map_err(broke)?;
            }
            if turned.elapsed() > STILL_MAX {
                self.refuse_old(server, (&mut ours, &mut sends), &mut session).await.map_err(broke)?;
            }
            turned = Instant::now();
            let paced = self.ask(server, &mut session);
            self.handle_effects(server);
            tokio::select! {
                biased;
                () = broken.notified() => return Err(Over::Broken("the connection is gone".to_owned())),
                () = tokio::time::sleep_until(self.lease.due(now).into()) => {}
                Some(answered) = session.asked.join_next() => self.handle_answers(answered, &mut session).map_err(broke)?,
                () = tokio::time::sleep(LOOK_EVERY) => {}
                Some(message) = ours.next() => {
                    let is_old = turned.elapsed() > STILL_MAX;
                    self.hear(server, message, &mut session, Heard::ByGateway, is_old);
                }
                Some(message) = sends.next() => {
                    let is_old = turned.elapsed() > STILL_MAX;
                    self.hear(server, message, &mut session, Heard::ByAnybody, is_old);
                }
                Some(_) = session.answering.join_next() => {}
                () = self.notices.advance() => {}
                () = self.shared.bell.notified(), if paced.is_none_or(|due| due <= now) => {}
                () = tokio::time::sleep_until(paced.unwrap_or(now).into()), if paced.is_some() => {}
            }
        }
    }

    /// The loop has not turned for long: what came meanwhile is answered as not done. It is all here when the server has answered
    /// a question that was asked after it, since one connection brings both in order.
    async fn refuse_old(
        &self,
        server: &Server,
        (ours, sends): (&mut Subscriber, &mut Subscriber),
        session: &mut Session,
    ) -> Result<(), String> {
        server.lease(&self.shared.node).await?;
        for (heard, subscriber) in [(Heard::ByGateway, ours), (Heard::ByAnybody, sends)] {
            while let Some(Some(message)) = subscriber.next().now_or_never() {
                self.hear(server, message, session, heard, true);
            }
        }
        Ok(())
    }

    async fn subscribe(&self, server: &Server) -> Result<(Subscriber, Subscriber), String> {
        let ours = server.client.subscribe(server.names.gateway(&self.shared.node)).await;
        let ours = ours.map_err(|error| error.to_string())?;
        let sends = server.client.queue_subscribe(server.names.sends(), server.names.group()).await;
        let sends = sends.map_err(|error| error.to_string())?;
        // What is asked of this gateway from now on is heard.
        server.client.flush().await.map_err(|error| error.to_string())?;
        Ok((ours, sends))
    }

    /// Asks as much as may be under way. When it is to be gone on, if that is by the clock.
    fn ask(&mut self, server: &Server, session: &mut Session) -> Option<Instant> {
        while session.asked.len() < UNDER_WAY_MAX {
            let now = Instant::now();
            let due = self.pace.due(now);
            if due > now {
                return Some(due);
            }
            let (number, device, ask) = self.shared.presence().next(now, unix_ms())?;
            if !matches!(ask, Ask::Read) {
                self.pace.take();
            }
            let (shared, server) = (Arc::clone(&self.shared), server.clone());
            session.asked.spawn(async move { (number, question(&shared, &server, &device, ask).await) });
        }
        None
    }

    /// One answer, and all others that are there already.
    fn handle_answers(
        &mut self,
        first: Result<Answered, tokio::task::JoinError>,
        session: &mut Session,
    ) -> Result<(), String> {
        let mut next = Some(first);
        while let Some(answered) = next {
            if let Ok((number, answer)) = answered {
                let lost = answer.as_ref().err().cloned();
                self.shared.presence().handle(number, answer.unwrap_or(Answer::Lost));
                if let Some(why) = lost {
                    return Err(why);
                }
                self.backoff.succeed();
            }
            next = session.asked.try_join_next();
        }
        Ok(())
    }

    fn handle_effects(&mut self, server: &Server) {
        let effects = self.shared.presence().take_effects();
        for effect in effects {
            match effect {
                Effect::End { device, generation, is_loop } => {
                    // The receiver is gone when the gateway ends.
                    let _ = self.orders.send(Order::End { device, generation, is_loop });
                }
                Effect::Tell { device, before, revision } => {
                    if !self.notices.add(device, before, revision, &self.shared, server) {
                        self.shared.counters.untold.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        }
    }

    // --- What others say ----------------------------------------------------------------------------------------------

    /// `is_old`: it waited for too long to be carried out.
    fn hear(&self, server: &Server, message: Message, session: &mut Session, heard: Heard, is_old: bool) {
        self.shared.counters.received.fetch_add(1, Ordering::Relaxed);
        // Whoever does not want to know what became of it is not served: an answer is what the promise is about.
        let Some(reply) = message.reply.clone() else { return };
        let client = server.client.clone();
        if session.answering.len() >= ANSWERING_MAX {
            let busy = match heard {
                Heard::ByGateway => Reply::Busy.to_bytes(),
                Heard::ByAnybody => error_body("api_busy", "too many requests at a time; try again"),
            };
            session.answering.spawn(async move { drop(client.publish(reply, busy).await) });
            return;
        }
        let (shared, orders) = (Arc::clone(&self.shared), self.orders.clone());
        let device = server.names.sent_to(&message.subject);
        session.answering.spawn(async move {
            let answer = match heard {
                Heard::ByGateway => serve_gateway(&shared, &orders, &message.payload, is_old).await.to_bytes(),
                Heard::ByAnybody if is_old => {
                    error_body("api_busy", "the gateway stood still; nothing was done; try again")
                }
                Heard::ByAnybody => serve_anybody(&orders, device, message.payload).await,
            };
            // Whoever asked finds out by its own deadline.
            drop(client.publish(reply, answer).await);
        });
    }
}

/// Who says something.
#[derive(Clone, Copy)]
enum Heard {
    ByGateway,
    ByAnybody,
}

/// Asks NATS. An error: there is no answer; why.
async fn question(shared: &Shared, server: &Server, device: &str, ask: Ask) -> Result<Answer, String> {
    match ask {
        Ask::Read => match server.device_for_sure::<Row>(device).await? {
            None => Ok(Answer::Absent),
            Some((revision, row)) => {
                let is_live = *row.node != *shared.node && shared.is_live(server, &row.node, &row.lease).await?;
                Ok(Answer::Found(revision, row, is_live))
            }
        },
        Ask::Write(expected, row) => {
            let payload = serde_json::to_vec(&row).expect("it has no keys but texts");
            match server.write(server.names.device(device), expected, payload.into()).await {
                Written::Lost(why) => Err(why),
                written => Ok(Answer::Written(written)),
            }
        }
        Ask::Remove(revision) => server.remove_device(revision).await.map(|_| Answer::Removed),
    }
}

async fn serve_gateway(shared: &Shared, orders: &mpsc::UnboundedSender<Order>, payload: &[u8], is_old: bool) -> Reply {
    let (order, answered, most) = match Request::parse(payload) {
        Err(why) => return Reply::NotUnderstood { why },
        Ok(Request::Taken { device, lease, generation, revision }) => {
            let told = shared.presence().handle_taken(&device, &lease, generation, revision);
            if told == Told::Ends {
                shared.bell.notify_one();
            }
            return Reply::Heard;
        }
        // That a device was taken is true however late it is said; what is wanted of one is not.
        Ok(_) if is_old => return Reply::Busy,
        Ok(Request::Send { device, topic, payload, acknowledge, patience_ms }) => {
            let patience = acknowledge.then(|| Duration::from_millis(patience_ms).min(PATIENCE_MAX));
            let (answer, answered) = oneshot::channel();
            let downlink = Downlink { topic, payload };
            (Order::Send { device, downlink, patience, answer }, answered, patience.unwrap_or(ANSWER_MAX))
        }
        Ok(Request::Disconnect { device }) => {
            let (answer, answered) = oneshot::channel();
            (Order::Disconnect { device, answer }, answered, ANSWER_MAX)
        }
    };
    if orders.send(order).is_err() {
        return Reply::Busy;
    }
    match tokio::time::timeout(most + SLACK, answered).await {
        Ok(Ok(reply)) => reply,
        _ => Reply::Late,
    }
}

async fn serve_anybody(orders: &mpsc::UnboundedSender<Order>, device: Option<String>, body: Bytes) -> Bytes {
    let Some(device) = device else {
        return error_body(
            "invalid_path",
            "the last token of the subject is no device: percent-encode what it may not hold",
        );
    };
    let (answer, answered) = oneshot::channel();
    let order = Order::Ask { device: device.into(), body, answer };
    if orders.send(order).is_ok()
        && let Ok(Ok(body)) = tokio::time::timeout(ASKED_MAX, answered).await
    {
        return body;
    }
    error_body("shutting_down", "the gateway is shutting down")
}

fn error_body(code: &str, message: &str) -> Bytes {
    serde_json::json!({"error": {"code": code, "message": message}}).to_string().into()
}

fn fresh_id(random: &mut fastrand::Rng) -> String {
    format!("{:016x}", random.u64(..))
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
