//! The one place where everything that workers say arrives, and where every answer to them leaves.
//!
//! One thread, batch after batch, event after event: what one worker said in one order is seen in that order. It never
//! waits for a worker, for a hash or for a reader of events.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, after, never, select};

use tokio::sync::oneshot;

use super::State;
use super::auth::chain::{Answer, AuthChains, HookResult, JwtResult, Replacement};
use super::auth::verifier::{AuthRequest, HashResult};
use super::blocks::{BlockOrder, BlockRequest, BlockSource};
use super::broadcasts::Share;
use super::forwarded::Forwarded;
use crate::backbone::{DETAIL_BYTES_MAX, Event};
use crate::link::{
    Batch, CloseReason, EventReceiver, Message, NotAdmitted, Outcome, Presence, Rest, Subject, WorkerCommand,
    WorkerEvent, WorkerId, group_keys,
};
use crate::pool::Charge;
use crate::store::{self, Entry, Settled, What};

/// What is waited for wakes the hub no more often than so, where much of it comes one after the other.
const COMPANY: Duration = Duration::from_millis(1);
/// What nobody waits for wakes it no more often than so.
const PATIENCE: Duration = Duration::from_millis(5);
/// So many batches must come while it rests.
const WORTH_A_REST: usize = 2;
/// How long the last batches may take at shutdown.
const DRAIN_MAX: Duration = Duration::from_secs(1);

/// The hub thread's own state.
pub(super) struct Hub {
    state: Arc<State>,
    auth: AuthChains,
    /// What the store has settled.
    settled: Receiver<Vec<Settled>>,
    /// What it has settled, and the fleet's stream has not.
    forwarded: Forwarded,
    /// Events for which the store has no room yet. While there are any, no more are taken from the workers.
    entries: Vec<Entry>,
    /// Whoever waits until all that was said before is with the store.
    fences: Vec<u64>,
    /// What they still take of their shards' pools.
    charges: Vec<Charge>,
    /// Workers that were told something and not rung for it yet, a bit each.
    told: u64,
    /// Something was left when it had done the latest thing.
    is_awake: bool,
    rest: Rest,
}

impl Hub {
    /// A hub for the workers behind `state`; `settled` is what its store says, `forwarded` what waits for the fleet's stream.
    pub(super) fn new(
        state: Arc<State>,
        auth: AuthChains,
        settled: Receiver<Vec<Settled>>,
        forwarded: Forwarded,
    ) -> Self {
        Self {
            state,
            auth,
            settled,
            forwarded,
            entries: Vec::new(),
            fences: Vec::new(),
            charges: Vec::new(),
            told: 0,
            is_awake: false,
            rest: Rest::new(COMPANY, WORTH_A_REST),
        }
    }

    /// Works until something arrives on `stop` (or its sender is gone); then takes what is still there.
    pub(super) fn run(mut self, stop: &Receiver<()>, replacements: &Receiver<Replacement>) {
        let EventReceiver { events: mut uplink, mut answers, mut hurry, .. } = self.state.uplink.clone();
        let hashes = self.auth.hashes();
        let jwt_results = self.auth.jwt_results();
        let hook_answers = self.auth.hook_answers();
        let mut settled = self.settled.clone();
        let mut rung = self.forwarded.rung.clone();
        let nothing = never();
        // While this runs, what the workers say waits for more, because nobody waits for it.
        let mut patience = None;
        loop {
            let over = patience.clone().unwrap_or_else(never);
            let taken = if self.has_room() && patience.is_none() { &uplink } else { &nothing };
            let mut is_awaited = true;
            select! {
                recv(answers) -> batch => match batch {
                    Ok(batch) => self.apply(batch),
                    Err(_) => answers = never(),
                },
                recv(taken) -> batch => match batch {
                    Ok(batch) => is_awaited = self.take(batch),
                    // Every worker is gone; only `stop` is left to wait for.
                    Err(_) => uplink = never(),
                },
                recv(hurry) -> bell => {
                    patience = None;
                    if bell.is_err() {
                        hurry = never();
                    }
                }
                recv(over) -> _ => patience = None,
                recv(hashes) -> result => self.tell_hash(result.expect("the token thread ended before its owner")),
                recv(jwt_results) -> results => self.tell_jwt(results.expect("the jwt thread ended before its owner")),
                recv(hook_answers) -> result => self.tell_hook(result.expect("its sender is kept beside it")),
                // Its sender goes with the one of `stop`, which is then about to be seen.
                recv(replacements) -> by => if let Ok(by) = by { self.replace(by) },
                recv(settled) -> all => match all {
                    Ok(all) => self.handle_settled(&all),
                    Err(_) => settled = never(),
                },
                recv(rung) -> bell => match bell {
                    Ok(()) => self.release(),
                    // Whoever rings is kept beside the sinks, whose threads come and go: with it goes all that could be waited for.
                    Err(_) => rung = never(),
                },
                recv(stop) -> _ => break,
            }
            self.ring_told();
            let left = uplink.len() + answers.len() + settled.len();
            if patience.is_none() && !self.lie_down(left, is_awaited) {
                patience = Some(after(PATIENCE));
            }
        }
        self.drain(&uplink);
        // The threads end early because nobody takes their results any more: all who could must let go.
        drop((hashes, jwt_results, hook_answers));
        self.auth.stop();
    }

    /// One thing was done, and so many are left. When nothing is, it rests if somebody waits where many come one after the other.
    /// `false`: nobody waits, and what comes next need not be looked at soon.
    fn lie_down(&mut self, left: usize, is_awaited: bool) -> bool {
        if !self.is_awake {
            self.rest.note_woken(self.state.clock.now(), 1 + left);
        }
        self.is_awake = left > 0;
        if self.is_awake {
            return true;
        }
        self.rest.note_turn(is_awaited);
        if is_awaited {
            let rest = self.rest.before_poll(self.state.clock.now());
            if !rest.is_zero() {
                std::thread::sleep(rest);
            }
        }
        is_awaited
    }

    /// Once for all that a worker was told.
    fn ring_told(&mut self) {
        let told = std::mem::take(&mut self.told);
        for (worker, mailbox) in self.state.mailboxes.iter().enumerate() {
            if told & (1 << worker) != 0 {
                mailbox.ring();
            }
        }
    }

    /// Whether more is taken. If not, the store has no room, and says when it has; or the fleet's stream is away: the workers keep
    /// what comes, and their publishers wait.
    fn has_room(&self) -> bool {
        self.entries.is_empty() && !self.forwarded.is_full()
    }

    fn drain(&mut self, uplink: &Receiver<Batch>) {
        let deadline = Instant::now() + DRAIN_MAX;
        while Instant::now() < deadline {
            if !self.entries.is_empty() {
                let Ok(all) = self.settled.recv_deadline(deadline) else { break };
                self.handle_settled(&all);
            } else if let Ok(batch) = uplink.try_recv() {
                self.apply(batch);
            } else {
                break;
            }
            self.ring_told();
        }
    }

    /// Whether somebody waits for it.
    fn take(&mut self, batch: Batch) -> bool {
        let is_awaited = batch.is_awaited;
        self.apply(batch);
        is_awaited
    }

    fn apply(&mut self, batch: Batch) {
        for event in batch.events {
            self.apply_event(batch.worker, event);
        }
        self.state.backbone.announce();
        self.offer_entries();
    }

    fn apply_event(&mut self, worker: WorkerId, event: WorkerEvent) {
        match event {
            WorkerEvent::Connected(presence) => {
                self.log_presence(&presence, "connected");
                self.offer(&Event::connected(worker, &presence));
                if let Some(queue) = &self.state.queue {
                    queue.came(&presence.device);
                }
                if let Some(fleet) = &self.state.fleet {
                    let place = presence.facts.peer.map(|peer| peer.ip());
                    // It may have waited on its way here for as long as the store or the fleet's stream takes nothing.
                    let since = self.state.clock.instant(presence.at);
                    fleet.connected(&presence.device, presence.generation, place, since);
                }
                self.store_presence(worker, presence, None);
            }
            WorkerEvent::Disconnected(presence, reason) => self.apply_disconnected(worker, presence, reason),
            WorkerEvent::NotAdmitted(end) => {
                self.log_not_admitted(&end);
                self.state.history.add_not_admitted(&end);
            }
            WorkerEvent::TakeoverLoop(told) => {
                self.offer(&Event::takeover_loop(worker, &told));
            }
            WorkerEvent::KeepOut { device, span } => self.keep_out(device, span),
            WorkerEvent::WillDue(will) => {
                if let Some(fleet) = &self.state.fleet {
                    fleet.will_due(will);
                }
            }
            WorkerEvent::Interest { version, cover } => {
                if let Some(fleet) = &self.state.fleet {
                    fleet.interest(worker, version, *cover);
                }
            }
            WorkerEvent::Group { group, life, members, room } => {
                if let Some(fleet) = &self.state.fleet {
                    fleet.group(worker, (group, life), (members, room));
                }
            }
            WorkerEvent::Message(message) => self.apply_message(worker, message),
            WorkerEvent::Authenticate { connection, listener, credentials, peer } => {
                let asked =
                    AuthRequest { worker, connection, listener, peer, is_renewable: false, must_be_named: false };
                let answers = self.auth.check(asked, credentials, &self.state.clock, Instant::now());
                self.tell(answers);
            }
            WorkerEvent::SessionWanted(wanted) => self.state.sessions.wanted(worker, wanted),
            WorkerEvent::SessionChanged(changed) => self.state.sessions.changed(worker, changed),
            WorkerEvent::SessionGone(device) => self.state.sessions.gone(device),
            WorkerEvent::Fence { request } => self.fences.push(request),
            WorkerEvent::Described { request, description } => self.state.described.resolve(request, description),
            WorkerEvent::Listed { request, devices } => self.state.listed.resolve(request, devices),
            WorkerEvent::Sent { request, outcome } => self.state.sent.resolve(request, outcome),
            WorkerEvent::Broadcast { broadcast, sent, refused, is_over } => {
                self.state.broadcasts.report(broadcast, worker, Share { sent, refused, is_over });
            }
        }
    }

    fn apply_disconnected(&mut self, worker: WorkerId, presence: Presence, reason: CloseReason) {
        self.log_presence(&presence, reason.label());
        self.state.history.add_disconnected(&presence, reason);
        if let Some(fleet) = &self.state.fleet {
            fleet.disconnected(&presence.device, presence.generation);
        }
        self.offer(&Event::disconnected(worker, &presence, reason));
        self.store_presence(worker, presence, Some(reason));
    }

    /// Puts a device on the deny list for a while. Whoever changes the list is asked, and nobody waits for it.
    fn keep_out(&self, device: Box<str>, span: Duration) {
        let (answer, _nobody) = oneshot::channel();
        tracing::warn!(%device, ?span, "a device sent more than it may for too long, and is kept out for a while");
        let order =
            BlockOrder::Add { subject: Subject::Device(device), span: Some(span), source: BlockSource::Gateway };
        if self.state.blocks.try_send(BlockRequest { order, answer }).is_err() {
            tracing::warn!("it is not kept out: too many changes of the deny list wait");
        }
    }

    /// Acknowledged only when it is safe (decision D6): in the store, or without one in the backbone.
    fn apply_message(&mut self, worker: WorkerId, message: Message) {
        let now = self.state.clock.now();
        let accepted = self.offer(&Event::message(worker, &message, now));
        if self.state.store.is_some() {
            let Message { device, topic, payload, published, receipt, charge, .. } = message;
            self.charges.extend(charge);
            let at_ms = self.state.clock.unix_ms(now);
            // Nobody but another gateway asks for it.
            let published = published.filter(|_| self.state.fleet.is_some()).map(|published| store::Published {
                qos: published.qos,
                retain: published.retain,
                properties: published.properties,
                expires_ms: published.expires.map(|expires| self.state.clock.unix_ms(expires)),
                stamp: published.stamp,
                groups: published.groups.map(|groups| group_keys(&groups).into()),
            });
            let what = What::Message { topic, payload, published };
            self.entries.push(Entry { at_ms, worker, device, what, receipt });
        } else if let Some(receipt) = message.receipt {
            self.send(worker, WorkerCommand::MessageSettled { receipt, accepted });
        }
    }

    fn store_presence(&mut self, worker: WorkerId, presence: Presence, cause: Option<CloseReason>) {
        if self.state.store.is_none() {
            return;
        }
        let (clock, facts) = (&self.state.clock, &presence.facts);
        let facts = store::Facts {
            listener: self.state.config.listeners[presence.listener.index()].name.as_str().into(),
            epoch: self.state.epoch,
            generation: presence.generation,
            sequence: presence.sequence,
            last_heard_ms: clock.unix_ms(presence.last_heard),
            details: Some(store::Details {
                peer: facts.peer.map_or_else(Box::default, |peer| peer.to_string().into()),
                identity: facts.identity.into(),
                tls_version: facts.tls_version.into(),
                connected_ms: clock.unix_ms(facts.connected_at),
                detail: facts.detail[..facts.detail.floor_char_boundary(DETAIL_BYTES_MAX)].into(),
            }),
        };
        let what = match cause {
            None => What::Connected(facts),
            Some(cause) => What::Disconnected(facts, cause.label().into()),
        };
        let at_ms = clock.unix_ms(presence.at);
        self.entries.push(Entry { at_ms, worker, device: presence.device, what, receipt: None });
    }

    /// What the store does not take now is offered again when it says that there is room.
    fn offer_entries(&mut self) {
        if let Some(store) = &self.state.store
            && !self.entries.is_empty()
        {
            // Given back, they wait here; a store that fails ends the gateway.
            let _ = store.offer(&mut self.entries, &mut self.charges);
        }
        if self.entries.is_empty() {
            self.charges.clear();
            for request in self.fences.drain(..) {
                self.state.sent.resolve(request, Outcome::Delivered);
            }
            // As long as more is taken from the workers; those for whom there is room now.
            for worker in self.state.uplink.take_waiting() {
                self.state.mailboxes[worker.index()].ring();
            }
        }
    }

    fn handle_settled(&mut self, all: &[Settled]) {
        for settled in all {
            if let Some(settled) = self.forwarded.hold(*settled) {
                self.tell_settled(settled);
            }
        }
        // The stream may have had it before the store said so.
        self.release();
        // There is room, before the store or on the way to it.
        self.offer_entries();
    }

    /// The fleet's stream has more.
    fn release(&mut self) {
        while let Some(settled) = self.forwarded.release() {
            self.tell_settled(settled);
        }
    }

    fn tell_settled(&mut self, settled: Settled) {
        let Settled { worker, receipt, accepted, .. } = settled;
        self.send(worker, WorkerCommand::MessageSettled { receipt, accepted });
    }

    /// Whether the backbone holds the event now; it counts what it refuses.
    fn offer(&self, event: &Event<'_>) -> bool {
        match self.state.backbone.accept(event) {
            Ok(_) => true,
            Err(refused) => {
                tracing::debug!(%refused, "the backbone refused an event");
                false
            }
        }
    }

    /// Other files or settings for whoever proves who he is.
    fn replace(&mut self, by: Replacement) {
        let answers = self.auth.replace(by, &self.state.clock, Instant::now());
        self.tell(answers);
    }

    fn tell_hash(&mut self, result: HashResult) {
        let answers = self.auth.handle_hash_result(result, Instant::now());
        self.tell(answers);
    }

    fn tell_jwt(&mut self, results: Vec<JwtResult>) {
        let answers = self.auth.handle_jwt_results(results, &self.state.clock, Instant::now());
        self.tell(answers);
    }

    fn tell_hook(&mut self, result: HookResult) {
        let answers = self.auth.handle_hook_result(result, &self.state.clock, Instant::now());
        self.tell(answers);
    }

    fn tell(&mut self, answers: Vec<Answer>) {
        for (asked, answer) in answers {
            self.send(asked.worker, WorkerCommand::Authenticated { connection: asked.connection, answer });
        }
    }

    /// Answers find no bound in a worker's inbox: there is one for each thing that the worker has asked, and it has asked no
    /// more than it waits for.
    fn send(&mut self, worker: WorkerId, answer: WorkerCommand) {
        self.told |= 1 << worker.index();
        if self.state.mailboxes[worker.index()].put(answer).is_err() {
            self.state.counters.answers_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn log_presence(&self, presence: &Presence, cause: &str) {
        let Presence { device, generation, sequence, facts, listener, .. } = presence;
        let listener = &*self.state.config.listeners[listener.index()].name;
        let (peer, identity, detail) = (Shown(facts.peer), facts.identity, &*facts.detail);
        tracing::debug!(target: "pulsegate::connection", %device, generation, sequence, cause, %peer, listener, identity, detail, "presence");
    }

    fn log_not_admitted(&self, end: &NotAdmitted) {
        let NotAdmitted { device, listener, reason, facts, .. } = end;
        let listener = &*self.state.config.listeners[listener.index()].name;
        let (peer, identity, detail) = (Shown(facts.peer), facts.identity, &*facts.detail);
        tracing::debug!(target: "pulsegate::connection", %device, %reason, %peer, listener, identity, detail, "not admitted");
    }
}

/// An address in the log.
struct Shown(Option<SocketAddr>);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(peer) => peer.fmt(f),
            None => f.write_str("unknown"),
        }
    }
}
