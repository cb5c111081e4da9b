//! The thread of a fleet: connects, keeps the lease, asks what the presence wants asked, and hears what others say.
//!
//! ```text
//!   Away ──connected──▶ version, JetStream, buckets verified ──▶ the lease is had ──▶ Serving ── lease renewed, rows written, requests heard
//!    ▲                              │                              │                    │ the connection is gone (PING has no PONG), or
//!    └────────── back-off ◀─────────┴──────────────────────────────┴────────────────────┘ no lease is to be had
//! ```
//!
//! A question that has no answer in time is asked again, behind a smaller window: a server that is slow is not one that is away.
//! That it is away the connection tells, or the lease, which ends when nothing can be written. Then the client is dropped and
//! all of it is verified again, so that the library's own reconnection, around which plain messages vanish, never comes to act.

mod kept;

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use async_nats::{Message, Subscriber};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinError, JoinSet};

use super::blocks::Stamp;
use super::deaths;
use super::groups::Groups;
use super::intake::Intake;
use super::lease::{Lease, LeaseRow, Step};
use super::notices::Notices;
use super::pace::Pace;
use super::presence::{Answer, Ask, Claim, Effect, Row};
use super::requests::{self, Heard, Hearing};
use super::retained::Watch;
use super::server::{Facts, NoSurvey, Server, Survey, Written};
use super::settings::Settings;
use super::sweep::{self, Plan};
use super::wills::Wills;
use super::window::Window;
use super::wire::{Reply, Request};
use super::{Order, Shared};
use crate::commands::{Commands, Expected};
use crate::link::DelayedWill;
use crate::sink::Backoff;
use crate::sink::nats::Signals;
use kept::Job;

/// Questions to other gateways about devices that they have, under way at a time. They cost NATS next to nothing.
const OWNERS_ASKED_MAX: usize = 1_024;
/// How long a gateway may take to say whether it has a device.
const OWNER_ASK_MAX: Duration = Duration::from_secs(2);
/// How long it waits before the lease is tried to be written again.
const RENEW_AGAIN_AFTER: Duration = Duration::from_millis(100);

/// How often the loop turns at least,
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// and for how long it may not have turned. After that the process stood still, or a question took as long, and what others
/// wanted meanwhile is too old: it might come behind what they wanted later of somebody else.
const STILL_MAX: Duration = Duration::from_secs(1);

/// Why serving has ended.
enum Over {
    /// The gateway ends.
    Stopped,
    /// NATS is away.
    Broken(String),
}

/// What came of the lease's being written again.
enum Renewal {
    Written {
        revision: u64,
        sent: Instant,
    },
    /// It is not there any more.
    Gone,
    /// There is no answer for as long as it holds.
    Silent,
}

/// Something that was under way.
enum Done {
    /// An answer about a device, or why there is none; `of_gateway`: another gateway was asked.
    Asked {
        number: u64,
        asked: Instant,
        of_gateway: bool,
        answer: Result<Answer, String>,
    },
    /// This gateway has heard itself answer, or not in time.
    Heard,
    /// Of the lease of this id.
    Renewed(String, Renewal),
    Surveyed(Result<Survey, NoSurvey>),
    Swept(Result<u64, String>),
    /// For whom commands wait was read up to a number, and whether there is more.
    Read(Result<(u64, Vec<Box<str>>, bool), String>),
    /// Commands whose time was over were let go.
    Expired(Result<u64, String>),
    /// Who is kept out of the fleet was read in this state, and is so here; or not.
    Blocks(Stamp, Result<(), String>),
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
    wills: Wills,
    pace: Pace,
    plan: Plan,
    /// When the bucket was made in which rows were written.
    rows_since: Option<String>,
    readers: Readers,
    /// In which state the bucket of blocks was that holds here.
    blocks: Option<Stamp>,
    commands: Commands,
    expected: Expected,
}

/// What others publish, and retain; none: there is no stream.
pub(super) struct Readers {
    pub(super) intake: Option<Intake>,
    pub(super) watch: Option<Watch>,
    pub(super) groups: Option<Groups>,
}

/// What one connection has under way.
struct Session {
    tasks: JoinSet<Done>,
    /// Questions to NATS about devices,
    asked: usize,
    /// and to other gateways.
    owners_asked: usize,
    window: Window,
    hearing: Hearing,
    is_renewing: bool,
    is_surveying: bool,
    is_sweeping: bool,
    /// What else is under way, each once.
    jobs: BTreeSet<Job>,
    expire_due: Instant,
    survey_due: Instant,
}

impl Session {
    fn new(now: Instant) -> Self {
        Self {
            tasks: JoinSet::new(),
            asked: 0,
            owners_asked: 0,
            window: Window::new(now),
            hearing: Hearing::default(),
            is_renewing: false,
            is_surveying: false,
            is_sweeping: false,
            jobs: BTreeSet::new(),
            expire_due: now + kept::EXPIRE_EVERY,
            survey_due: now,
        }
    }
}

impl Session {
    /// Whether the server refuses to let an answer through. An account that may not answer is found by this gateway's own question
    /// to itself: later refusals may be about where some stranger wants to be answered.
    fn may_not_answer(&self, refusal: &str) -> bool {
        self.jobs.contains(&Job::HearItself) && refusal.contains("Publish to \"_INBOX.")
    }
}

impl Run {
    pub(super) fn new(
        shared: Arc<Shared>,
        settings: Settings,
        lease: Lease,
        backoff: Backoff,
        random: fastrand::Rng,
        readers: Readers,
        (orders, wills): (mpsc::UnboundedSender<Order>, mpsc::UnboundedReceiver<Box<DelayedWill>>),
    ) -> Self {
        let now = Instant::now();
        Self {
            pace: Pace::new(settings.config().writes_per_second, now),
            plan: Plan::new(settings.config().lease, now),
            notices: Notices::default(),
            wills: Wills::new(wills),
            rows_since: None,
            readers,
            blocks: None,
            commands: Commands::default(),
            expected: Expected::default(),
            shared,
            settings,
            lease,
            backoff,
            random,
            orders,
        }
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
            self.commands.end();
            let server = self.shared.server.lock().expect("no holder panics").take();
            self.shared.presence().end();
            self.wills.publish_all(&self.orders);
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
            let waited = tokio::time::sleep(self.backoff.fail(None));
            tokio::pin!(waited);
            loop {
                tokio::select! {
                    _ = stopped.wait_for(|stop| *stop) => return,
                    () = &mut waited => break,
                    () = self.wills.publish_next(&self.orders) => {}
                }
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
        let signals = Arc::new(Signals::default());
        match self.connect(&signals).await {
            Ok((server, facts)) => {
                let (mut intake, mut watch) = (self.readers.intake.take(), self.readers.watch.take());
                let mut groups = self.readers.groups.take();
                let over = tokio::select! {
                    over = self.serve(&server, &signals, facts) => over,
                    never = take_in(&mut intake, &server) => match never {},
                    never = keep_watch(&mut watch, &server) => match never {},
                    never = give(&mut groups, &server) => match never {},
                };
                if let Some(intake) = &intake {
                    intake.end();
                }
                if let Some(groups) = &mut groups {
                    groups.end();
                }
                self.readers = Readers { intake, watch, groups };
                match over {
                    Err(over) => over,
                    Ok(never) => match never {},
                }
            }
            Err(why) => Over::Broken(signals.explain(&why)),
        }
    }

    async fn connect(&mut self, signals: &Arc<Signals>) -> Result<(Server, Facts), String> {
        let name = format!("pulsegate {}", self.shared.node);
        // Connecting, and a handful of questions.
        let most = self.settings.config().timeout * 4;
        let superseded = Arc::clone(&self.shared.retained.superseded);
        let opening = Server::open(&self.settings, &name, Arc::clone(signals), superseded);
        let opened = tokio::time::timeout(most, opening).await;
        let (server, facts) = opened.map_err(|_| "the servers do not answer in time".to_owned())??;
        // Of what was written into another bucket nothing is left.
        let is_other = self.rows_since.as_ref().is_some_and(|since| *since != facts.rows_since);
        self.have_lease(&server, is_other).await?;
        self.rows_since = Some(facts.rows_since.clone());
        Ok((server, facts))
    }

    fn note_connected(&self, facts: Facts) {
        let Facts { version, promise, doubts, .. } = facts;
        for doubt in doubts {
            tracing::warn!("{doubt}");
        }
        let prefix = &*self.settings.config().prefix;
        tracing::info!(fleet = prefix, node = &*self.shared.node, promise, "this gateway is one of a fleet");
        self.shared.counters.connects.fetch_add(1, Ordering::Relaxed);
        self.shared.status().connected(Instant::now(), version, promise);
    }

    // --- The lease ----------------------------------------------------------------------------------------------------

    /// Comes to hold the lease. From then on the presence asks under it. `is_new`: what was written under the one that is held
    /// is to be looked at again too.
    async fn have_lease(&mut self, server: &Server, is_new: bool) -> Result<(), String> {
        let now = Instant::now();
        let mut is_new = is_new || !self.lease.is_held(now);
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
            self.lease.handle_sent();
            let sent = Instant::now();
            match write_lease(server, &self.shared.node, self.lease.row(), expected).await {
                Written::At(revision) => {
                    self.lease.handle_written(revision, sent);
                    break;
                }
                Written::Conflict => {}
                Written::Lost(why) => return Err(why),
            }
        }
        deaths::come_alive(server, &self.shared.node).await?;
        self.shared.presence().begin(&self.lease.row().id, is_new);
        self.shared.joined.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// The lease is written again in time, and nobody waits for that. Whoever has lost it begins anew: what is under way was asked
    /// under the old one.
    async fn keep_lease(&mut self, server: &Server, session: &mut Session) -> Result<(), String> {
        let now = Instant::now();
        if self.lease.is_over(now) {
            return self.begin_anew(server).await;
        }
        if let (Some(Step::Write(revision)), Some(ends)) = (self.lease.renewal(), self.lease.ends())
            && !session.is_renewing
            && self.lease.due(now) <= now
        {
            session.is_renewing = true;
            let (server, node, row) = (server.clone(), self.shared.node.clone(), self.lease.row().clone());
            session.tasks.spawn(async move {
                let renewal = renew(&server, &node, &row, revision, ends).await;
                Done::Renewed(row.id, renewal)
            });
        }
        Ok(())
    }

    async fn begin_anew(&mut self, server: &Server) -> Result<(), String> {
        tracing::warn!("the lease was lost: what this gateway had is looked at again");
        self.shared.presence().end();
        self.have_lease(server, true).await
    }

    async fn handle_renewal(&mut self, server: &Server, id: &str, renewal: Renewal) -> Result<(), String> {
        if self.lease.row().id != *id {
            return Ok(());
        }
        match renewal {
            Renewal::Written { revision, sent } => {
                self.lease.handle_written(revision, sent);
                self.backoff.succeed();
                Ok(())
            }
            Renewal::Gone => self.begin_anew(server).await,
            // It is over by now.
            Renewal::Silent => Ok(()),
        }
    }

    // --- Serving ------------------------------------------------------------------------------------------------------

    async fn serve(&mut self, server: &Server, signals: &Signals, facts: Facts) -> Result<Infallible, Over> {
        let broke = |why: String| Over::Broken(signals.explain(&why));
        let mut session = Session::new(Instant::now());
        let (mut ours, mut sends) = self.subscribe(server).await.map_err(broke)?;
        self.shared.set_server(Some(server.clone()));
        self.note_connected(facts);
        self.notices.begin(&self.shared, server);
        Self::ask_itself(server, &self.shared.node, &mut session);
        let teller = self.teller();
        let mut turned = Instant::now();
        loop {
            self.keep_lease(server, &mut session).await.map_err(broke)?;
            if turned.elapsed() > STILL_MAX {
                self.refuse_old(server, (&mut ours, &mut sends), &mut session).await.map_err(broke)?;
            }
            turned = Instant::now();
            self.survey(server, &mut session);
            let paced = self.ask(server, &mut session);
            self.handle_effects(server);
            self.look_for_commands();
            tokio::select! {
                biased;
                () = signals.broken() => return Err(Over::Broken("the connection is gone".to_owned())),
                refusal = signals.refused() => if server.names.is_about(&refusal) || session.may_not_answer(&refusal) {
                    return Err(broke("the server refuses what a gateway does".to_owned()));
                },
                Some(done) = session.tasks.join_next() => {
                    self.handle_done(server, done, &mut session).await.map_err(broke)?;
                }
                () = tokio::time::sleep(LOOK_EVERY) => {}
                // These before what others say: whoever asks on and on must not hold up the rest, and they are no more than
                // what was heard, what was taken from others, and wills that are due.
                () = session.hearing.advance() => {}
                () = self.notices.advance() => {}
                () = self.commands.advance(&teller, server) => {}
                () = self.wills.advance(&self.shared, server, &self.orders) => {}
                Some(message) = ours.next() => self.hear(server, &mut session, message, Heard::ByGateway, turned),
                Some(message) = sends.next() => self.hear(server, &mut session, message, Heard::ByAnybody, turned),
                () = self.shared.bell.notified(), if paced.is_none() => {}
                () = tokio::time::sleep_until(paced.unwrap_or(turned).into()), if paced.is_some() => {}
            }
        }
    }

    /// Asks itself something, as others will: an account that may not answer is told so now, and not by others who wait in vain.
    fn ask_itself(server: &Server, node: &str, session: &mut Session) {
        let (server, node) = (server.clone(), node.to_owned());
        session.jobs.insert(Job::HearItself);
        session.tasks.spawn(async move {
            let payload = Request::Has { device: Box::default() }.to_bytes();
            // Where there is no answer the server has said why, or is slow.
            let _ = requests::ask(&server, &node, payload, OWNER_ASK_MAX).await;
            Done::Heard
        });
    }

    fn hear(&self, server: &Server, session: &mut Session, message: Message, heard: Heard, turned: Instant) {
        let is_old = turned.elapsed() > STILL_MAX;
        session.hearing.hear((&self.shared, &server.names, &self.orders), server.say(), message, heard, is_old);
    }

    /// The loop has not turned for long: what came meanwhile is answered as not done. It is all here when the server has answered
    /// a question that was asked after it, since one connection brings both in order.
    async fn refuse_old(
        &self,
        server: &Server,
        (ours, sends): (&mut Subscriber, &mut Subscriber),
        session: &mut Session,
    ) -> Result<(), String> {
        while let Err(why) = server.lease(&self.shared.node).await {
            if self.lease.is_over(Instant::now()) {
                return Err(why);
            }
            tokio::time::sleep(RENEW_AGAIN_AFTER).await;
        }
        for (heard, subscriber) in [(Heard::ByGateway, ours), (Heard::ByAnybody, sends)] {
            // All of it in one go: the runtime would else have it pause after some, as if there were no more.
            while let Some(Some(message)) = tokio::task::coop::unconstrained(subscriber.next()).now_or_never() {
                let means = (&self.shared, &server.names, &self.orders);
                session.hearing.hear(means, server.say(), message, heard, true);
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
        while session.window.has_room(session.asked) && session.owners_asked < OWNERS_ASKED_MAX {
            let now = Instant::now();
            let due = self.pace.due(now).max(session.window.due());
            if due > now {
                return Some(due);
            }
            let (number, device, ask) = self.shared.presence().next(unix_ms())?;
            let of_gateway = matches!(ask, Ask::Owner(_));
            if of_gateway {
                session.owners_asked += 1;
            } else {
                session.asked += 1;
            }
            if matches!(ask, Ask::Write(..) | Ask::Remove(_)) {
                self.pace.take();
            }
            let (shared, server) = (Arc::clone(&self.shared), server.clone());
            session.tasks.spawn(async move {
                let answer = question(&shared, &server, &device, ask).await;
                Done::Asked { number, asked: now, of_gateway, answer }
            });
        }
        None
    }

    /// One thing that is done, and all others that are done already.
    async fn handle_done(
        &mut self,
        server: &Server,
        first: Result<Done, tokio::task::JoinError>,
        session: &mut Session,
    ) -> Result<(), String> {
        let mut next = Some(first);
        while let Some(done) = next {
            match ended(done)? {
                Done::Asked { number, asked, of_gateway, answer } => {
                    self.handle_answer(session, (number, asked, of_gateway), answer);
                }
                Done::Heard => drop(session.jobs.remove(&Job::HearItself)),
                Done::Renewed(id, renewal) => {
                    session.is_renewing = false;
                    self.handle_renewal(server, &id, renewal).await?;
                }
                Done::Surveyed(survey) => {
                    session.is_surveying = false;
                    self.handle_survey(server, session, survey)?;
                }
                Done::Read(read) => self.handle_read(server, session, read),
                Done::Expired(expired) => Self::handle_expired(session, expired),
                Done::Blocks(stamp, result) => self.handle_blocks(session, stamp, result),
                Done::Swept(swept) => {
                    session.is_sweeping = false;
                    match swept {
                        Ok(rows) => tracing::debug!(rows, "rows of gateways that have died were let go"),
                        Err(why) => tracing::debug!(why, "not all rows were looked at"),
                    }
                }
            }
            next = session.tasks.try_join_next();
        }
        Ok(())
    }

    fn handle_answer(
        &mut self,
        session: &mut Session,
        (number, asked, of_gateway): (u64, Instant, bool),
        answer: Result<Answer, String>,
    ) {
        let now = Instant::now();
        if of_gateway {
            session.owners_asked -= 1;
        } else {
            session.asked -= 1;
            if answer.is_ok() {
                session.window.answered(asked, now);
                self.backoff.succeed();
            } else {
                session.window.lost(asked, now);
            }
        }
        if let Err(why) = &answer {
            self.shared.counters.unanswered.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(why, "a question has no answer, and is asked again");
        }
        self.shared.presence().handle(number, answer.unwrap_or(Answer::Lost));
    }

    // --- The buckets --------------------------------------------------------------------------------------------------

    /// Looks now and then whether the buckets are as they are to be.
    fn survey(&self, server: &Server, session: &mut Session) {
        let now = Instant::now();
        if session.is_surveying || now < session.survey_due {
            return;
        }
        session.is_surveying = true;
        session.survey_due = now + self.settings.config().lease / 2;
        let server = server.clone();
        session.tasks.spawn(async move { Done::Surveyed(server.survey().await) });
    }

    fn handle_survey(
        &mut self,
        server: &Server,
        session: &mut Session,
        survey: Result<Survey, NoSurvey>,
    ) -> Result<(), String> {
        let survey = match survey {
            Ok(survey) => survey,
            Err(gone @ NoSurvey::Gone(_)) => return Err(gone.to_string()),
            Err(NoSurvey::NoAnswer(why)) => {
                tracing::debug!(why, "the buckets were not looked at");
                return Ok(());
            }
        };
        if self.rows_since.as_ref() != Some(&survey.rows_since) {
            return Err(NoSurvey::Gone(server.names.devices()).to_string());
        }
        let gone = self.shared.presence().handle_first(survey.first);
        if gone > 0 {
            tracing::warn!(gone, "rows of devices that are here were removed by somebody: they are looked at again");
        }
        self.shared.session_rows.store(survey.sessions, Ordering::Relaxed);
        self.read_blocks(server, session, survey.blocks);
        self.look_at_commands(server, session, &survey);
        self.shared.living.lock().expect("no holder panics").clone_from(&survey.gateways);
        let begins = self.plan.handle_survey(survey.gateways, &self.shared.node, Instant::now());
        if begins && !session.is_sweeping {
            session.is_sweeping = true;
            let (shared, server) = (Arc::clone(&self.shared), server.clone());
            session.tasks.spawn(async move { Done::Swept(sweep::sweep(&shared, &server).await) });
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
}

/// Reads what others publish, if there is a stream for it.
async fn take_in(intake: &mut Option<Intake>, server: &Server) -> Infallible {
    match intake {
        Some(intake) => intake.run(server).await,
        None => std::future::pending().await,
    }
}

/// Reads what others retain, if there is a stream for what they publish.
async fn keep_watch(watch: &mut Option<Watch>, server: &Server) -> Infallible {
    match watch {
        Some(watch) => watch.run(server).await,
        None => std::future::pending().await,
    }
}

/// Gives to groups of shared subscribers, if there is a stream for what they want.
async fn give(groups: &mut Option<Groups>, server: &Server) -> Infallible {
    match groups {
        Some(groups) => groups.run(server).await,
        None => std::future::pending().await,
    }
}

/// What came of something that was under way. One that ended without a word ends the session: what it had begun would be under way
/// for ever.
fn ended(done: Result<Done, JoinError>) -> Result<Done, String> {
    done.map_err(|fault| format!("something that was under way has ended by a fault of this program: {fault}"))
}

async fn write_lease(server: &Server, node: &str, row: &LeaseRow, expected: u64) -> Written {
    let payload = serde_json::to_vec(row).expect("it has no keys but texts");
    server.write(server.names.lease(node), expected, payload.into()).await
}

/// Writes the lease again, as often as it takes until it `ends`.
async fn renew(server: &Server, node: &str, row: &LeaseRow, mut revision: u64, ends: Instant) -> Renewal {
    while Instant::now() < ends {
        let sent = Instant::now();
        if let Written::At(revision) = write_lease(server, node, row, revision).await {
            return Renewal::Written { revision, sent };
        }
        // It may have been written for all that.
        match server.lease(node).await {
            Ok(Some((at, there))) if there.id == row.id => revision = at,
            Ok(_) => return Renewal::Gone,
            Err(why) => tracing::debug!(why, "the lease was not written again, and is tried again"),
        }
        tokio::time::sleep(RENEW_AGAIN_AFTER).await;
    }
    Renewal::Silent
}

/// Asks NATS, or the gateway that has the device. An error: there is no answer; why.
async fn question(shared: &Shared, server: &Server, device: &str, ask: Ask) -> Result<Answer, String> {
    match ask {
        Ask::Read => match server.device_for_sure::<Row>(device).await? {
            None => Ok(Answer::Absent),
            Some((revision, row)) => {
                let is_live = *row.node != *shared.node && shared.leases.is_live(server, &row.node, &row.lease).await?;
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
        Ask::Owner(node) => Ok(Answer::Owner(claim(server, &node, device).await)),
    }
}

/// Whether another gateway has the device, and since when. It takes its whole time to be silent: it may be asked again at once.
async fn claim(server: &Server, node: &str, device: &str) -> Claim {
    let sent = Instant::now();
    let payload = Request::Has { device: device.into() }.to_bytes();
    if let Ok(reply) = requests::ask(server, node, payload, OWNER_ASK_MAX).await {
        let heard = Instant::now();
        match Reply::parse(&reply) {
            Ok(Reply::Offline) => return Claim::Gone,
            Ok(Reply::Here { age_us }) => {
                let before = |end: Instant, us: u64| end.checked_sub(Duration::from_micros(us));
                if let (Some(from), Some(to)) = (before(sent, age_us.saturating_add(1)), before(heard, age_us)) {
                    return Claim::Began(from, to);
                }
            }
            // Of another version, or not of a gateway.
            _ => {}
        }
    }
    tokio::time::sleep_until((sent + OWNER_ASK_MAX).into()).await;
    Claim::Silent
}

fn fresh_id(random: &mut fastrand::Rng) -> String {
    format!("{:016x}", random.u64(..))
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_ends_without_a_word_ends_the_session() {
        let mut tasks = JoinSet::new();
        tasks.spawn(async { Done::Swept(Ok(1)) });
        assert!(matches!(ended(tasks.join_next().await.unwrap()), Ok(Done::Swept(Ok(1)))));
        tasks.spawn(async { panic!("as planted") });
        let why = ended(tasks.join_next().await.unwrap()).err().unwrap();
        assert!(why.contains("a fault of this program") && why.contains("as planted"), "{why}");
    }
}
