//! Sessions coming, going and ending: the table of them, and wills.

mod describe;
mod handed;
mod head;

use std::ops::{Index, IndexMut};
use std::sync::Arc;

use hashbrown::HashMap;

use super::handover::Row;
use super::inflight::{Inflight, Released, Stored};
use super::{Broker, Profile};
use crate::config::budget::WILL_BYTES;
use crate::devices::Devices;
use crate::image::{self, Change, SessionKey};
use crate::link::{Home, ListenerId, Publication, SessionId, ShardMessage, WorkerId};
use crate::metrics::{Counters, Metric};
use crate::pool::{ALLOCATION_BYTES, Charge, Class, Pool};
use crate::slot::{ConnectionSlot, SessionSlot, Table};
use crate::time::{Moment, Tick};
use crate::wheel::Wheel;

/// Ticks in a second.
const TICKS_PER_SECOND: u32 = 10;
/// Subscriptions of a session that are removed when it ends; the others go in the next turns.
const SESSION_SUBSCRIPTIONS_ENDED: usize = 256;
/// Subscriptions removed in one turn of sessions that have ended.
const SUBSCRIPTIONS_ENDED: usize = 4_096;
/// The longest wait, in ticks (3.4 years), since ticks that are compared must lie near each other. The configuration
/// lets no session be kept for longer.
const DEADLINE_TICKS_MAX: u32 = 1 << 30;

/// What a device leaves behind to be published when its connection ends without a goodbye.
#[derive(Clone, Debug)]
pub struct Will {
    /// The message; when it expires is reckoned from when it is published.
    pub publication: Publication,
    /// Its Message Expiry Interval in seconds.
    pub expiry_s: Option<u32>,
    /// How long after the end it is published, in seconds, if the device has not come back.
    pub delay_s: u32,
}

/// A will as its session keeps it.
pub(super) struct KeptWill {
    will: Will,
    /// What it takes of the shard's pool.
    charge: Charge,
}

impl Will {
    /// What keeping it takes of the pool, in bytes: a short one is part of its session in the memory budget.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let whole = size_of::<KeptWill>() + self.publication.bytes() + 4 * ALLOCATION_BYTES;
        whole.saturating_sub(WILL_BYTES as usize)
    }
}

/// A will that is to be published now, and whose.
#[derive(Debug)]
pub struct DueWill {
    /// The id of the device that left it.
    pub device: Box<str>,
    /// Through which listener the device had come.
    pub listener: ListenerId,
    /// The message, ready to be published.
    pub publication: Publication,
    /// Whether it has waited for its delay: the device may have come back elsewhere meanwhile.
    pub was_delayed: bool,
}

/// A device that has connected.
#[derive(Debug)]
pub struct Arrival<'a> {
    /// The slot of its connection.
    pub connection: ConnectionSlot,
    /// Its id.
    pub device: &'a str,
    /// Whether it wants a new session.
    pub clean_start: bool,
    /// What it says of itself.
    pub profile: Profile,
    /// What it leaves behind.
    pub will: Option<Box<Will>>,
}

/// What CONNECT found.
#[derive(Debug)]
pub struct Attached {
    /// The session's slot.
    pub session: SessionSlot,
    /// Whether there was one.
    pub was_present: bool,
    /// The will of the session that was discarded, if that was still to be published [v5 MQTT-3.1.3-9].
    pub due_will: Option<DueWill>,
    /// Whether all of it is safe. If not, CONNACK waits ([`Broker::hold_greeting`]).
    pub is_safe: bool,
}

/// Of a session that is not recorded.
pub(super) const NO_KEY: SessionKey = SessionKey(0);

/// No connection.
const NOBODY: ConnectionSlot = ConnectionSlot(u32::MAX);
/// No connection any more: the session has ended.
const RETIRED: ConnectionSlot = ConnectionSlot(u32::MAX - 1);
/// The session of no connection.
const NO_SESSION: SessionSlot = SessionSlot(u32::MAX);

/// One session.
pub(super) struct Session {
    pub(super) profile: Profile,
    /// Under which it is recorded, or [`NO_KEY`]: it ends with its connection, or there is no store.
    pub(super) key: SessionKey,
    pub(super) generation: u32,
    /// The slot of its connection, or [`NOBODY`], or [`RETIRED`].
    connection: ConnectionSlot,
    pub(super) next_packet: u16,
    /// Whether it is listed as one that could send more.
    pub(super) is_backlogged: bool,
    pub(super) walk: Walk,
    /// Whether it is listed as one whose device can be told something.
    pub(super) is_answerable: bool,
    /// Whether its connection is not read until it is told something.
    pub(super) is_held: bool,
    pub(super) group_messages: GroupMessages,
    /// What is known of its row, in a fleet.
    pub(super) row: Row,
    /// Bytes that it has been sent in this turn: a device is sent no more at a time than its outbox could hold.
    pub(super) turn_bytes: u32,
    pub(super) turn: u32,
    /// The device's id, while it is away: until then the connection has it.
    device: Box<str>,
    /// When the device went away.
    away_since: Tick,
    will: Option<Box<KeptWill>>,
    pub(super) inflight: Option<Box<Inflight>>,
    pub(super) groups: Vec<Membership>,
}

const _: () = assert!(size_of::<Session>() <= 112);

/// Whether messages for groups are among those that a session has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GroupMessages {
    /// It never had any.
    None,
    /// Perhaps.
    Some,
}

/// How a session stands among those whose retained messages are looked up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Walk {
    /// Nothing is to be looked up, or the device takes nothing now.
    #[default]
    None,
    /// It is listed among those that take turns.
    Waits,
    /// It is its turn.
    Due,
}

/// A shared subscription as its member knows it.
pub(super) struct Membership {
    pub(super) group: Arc<str>,
    pub(super) options: u8,
    pub(super) identifier: u32,
}

/// The sessions of one shard, by slot.
pub(super) struct Sessions {
    worker: WorkerId,
    home: Home,
    all: Table<SessionSlot, Session>,
    generations: u32,
    /// By connection: the slot of its session, or [`NO_SESSION`].
    attached: Vec<SessionSlot>,
    /// Sessions of devices that are away.
    away: Devices<SessionSlot>,
    /// Those of whose messages nothing is in memory, but some are in the store.
    stored: HashMap<SessionSlot, Stored>,
    /// Bytes of what lies in the store alone, of all sessions.
    pub(super) stored_bytes: u64,
    /// When something is due in a session whose device is away.
    wheel: Wheel<SessionSlot>,
    due: Vec<SessionSlot>,
    retired: usize,
    pool: Arc<Pool>,
}

impl Sessions {
    pub(super) fn new(worker: WorkerId, home: Home, pool: Arc<Pool>, now: Tick) -> Self {
        Self {
            worker,
            home,
            all: Table::new(),
            generations: 0,
            attached: Vec::new(),
            away: Devices::default(),
            stored: HashMap::new(),
            stored_bytes: 0,
            wheel: Wheel::new(now),
            due: Vec::new(),
            retired: 0,
            pool,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len() - self.retired
    }

    /// All that have not ended.
    pub(super) fn slots(&self) -> Vec<SessionSlot> {
        self.all.iter().filter(|(_, session)| !session.is_retired()).map(|(slot, _)| slot).collect()
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &Session> {
        self.all.iter().map(|(_, session)| session)
    }

    pub(super) fn count_away(&self) -> usize {
        self.away.len()
    }

    pub(super) fn next_deadline(&self) -> Option<Tick> {
        self.wheel.next()
    }

    pub(super) fn of(&self, connection: ConnectionSlot) -> Option<SessionSlot> {
        self.attached.get(connection.index()).copied().filter(|&session| session != NO_SESSION)
    }

    pub(super) fn id(&self, session: SessionSlot) -> SessionId {
        SessionId { worker: self.worker, slot: session, generation: self[session].generation }
    }

    /// A session that is not the one that was meant finds nothing.
    pub(super) fn is_current(&self, session: SessionSlot, generation: u32) -> bool {
        self.all.get(session).is_some_and(|known| known.generation == generation)
    }

    pub(super) fn resolve(&self, id: SessionId) -> Option<SessionSlot> {
        (id.worker == self.worker && self.is_current(id.slot, id.generation)).then_some(id.slot)
    }

    /// The slot of a session's connection, if it is the session that was meant and its device is there.
    pub(super) fn connection_of(&self, session: SessionSlot, generation: u32) -> Option<ConnectionSlot> {
        let known = self.all.get(session).filter(|known| known.generation == generation)?;
        Some(known.connection).filter(|_| known.is_online())
    }

    pub(super) fn inflight(&mut self, session: SessionSlot) -> &mut Inflight {
        let stored = &mut self.stored;
        let inflight = &mut self.all[session].inflight;
        inflight.get_or_insert_with(|| Box::new(Inflight::of_stored(stored.remove(&session).unwrap_or_default())))
    }

    /// What of a session lies in the store alone.
    pub(super) fn stored(&self, session: SessionSlot) -> Stored {
        match self[session].inflight.as_deref() {
            Some(inflight) => inflight.stored(),
            None => self.stored.get(&session).copied().unwrap_or_default(),
        }
    }

    /// Something in flight has changed: what is empty goes, and the pool is told of what is not.
    pub(super) fn shed_empty_inflight(&mut self, session: SessionSlot) {
        let Session { inflight, connection, .. } = &mut self.all[session];
        let is_away = *connection >= RETIRED;
        match inflight {
            Some(known) if known.is_empty() && (is_away || !known.has_stored()) => {
                if known.has_stored() {
                    self.stored.insert(session, known.stored());
                }
                *inflight = None;
            }
            Some(known) => known.account(&self.pool),
            None => {}
        }
    }

    fn begin(&mut self, profile: Profile) -> SessionSlot {
        self.generations = self.generations.wrapping_add(1);
        let session = Session {
            profile,
            key: NO_KEY,
            generation: self.generations,
            connection: NOBODY,
            next_packet: 0,
            is_backlogged: false,
            walk: Walk::None,
            is_answerable: false,
            is_held: false,
            group_messages: GroupMessages::None,
            row: Row::Unknown,
            turn_bytes: 0,
            turn: 0,
            device: Box::default(),
            away_since: Tick::default(),
            will: None,
            inflight: None,
            groups: Vec::new(),
        };
        self.all.insert(session)
    }

    /// A session that an earlier process has left; [`Sessions::enter_away`] makes it one that can be found.
    pub(super) fn restore(&mut self, head: &image::Head, profile: Profile, away_since: Tick) -> SessionSlot {
        let session = self.begin(profile);
        let known = &mut self[session];
        known.key = head.key;
        known.next_packet = head.last_packet;
        known.device = head.name.clone();
        known.away_since = away_since;
        session
    }

    /// What an earlier process has left of a session in the store.
    pub(super) fn restore_stored(&mut self, session: SessionSlot, stored: Stored) {
        self.stored_bytes += stored.bytes;
        self.stored.insert(session, stored);
    }

    pub(super) fn set_will(&mut self, session: SessionSlot, will: Will) {
        let mut charge = Charge::none(&self.pool, Class::Wills);
        charge.set(will.bytes());
        self[session].will = Some(Box::new(KeptWill { will, charge }));
    }

    fn attach(&mut self, session: SessionSlot, connection: ConnectionSlot) {
        let slot = connection.index();
        if self.attached.len() <= slot {
            self.attached.resize(slot + 1, NO_SESSION);
        }
        self.attached[slot] = session;
        self[session].connection = connection;
    }

    fn detach(&mut self, connection: ConnectionSlot, device: &str, now: Tick) -> Option<SessionSlot> {
        let session = self.of(connection)?;
        self.attached[connection.index()] = NO_SESSION;
        let known = &mut self[session];
        known.connection = NOBODY;
        known.is_held = false;
        known.device = device.into();
        known.away_since = now;
        Some(session)
    }

    /// The session has ended, and its slot is not free yet: no handle finds it any more.
    fn retire(&mut self, session: SessionSlot) {
        self.wheel.cancel(session);
        self.forget_stored(session);
        self.generations = self.generations.wrapping_add(1);
        self.retired += 1;
        let generation = self.generations;
        let known = &mut self[session];
        known.generation = generation;
        known.connection = RETIRED;
        (known.will, known.inflight, known.device) = (None, None, Box::default());
    }

    fn remove(&mut self, session: SessionSlot) {
        self.wheel.cancel(session);
        self.forget_stored(session);
        let removed = self.all.remove(session);
        self.retired -= usize::from(removed.is_retired());
        if self.all.is_empty() {
            // After a mass disconnect the memory goes back.
            self.all = Table::new();
            self.attached = Vec::new();
            self.stored = HashMap::new();
        }
    }

    /// The session is about to be no more.
    fn forget_stored(&mut self, session: SessionSlot) {
        self.stored_bytes -= self.stored(session).bytes;
        self.stored.remove(&session);
    }

    pub(super) fn find_away(&self, device: &str) -> Option<SessionSlot> {
        self.away.find(self.home.hash(device), |session| *self[session].device == *device)
    }

    pub(super) fn enter_away(&mut self, session: SessionSlot) {
        self.away.insert(self.home.hash(&self[session].device), session);
        self.arm(session);
    }

    pub(super) fn leave_away(&mut self, session: SessionSlot) {
        self.away.remove(self.home.hash(&self[session].device), session);
        self.wheel.cancel(session);
    }

    /// Arms the next thing that is due while the device is away.
    fn arm(&mut self, session: SessionSlot) {
        let known = &self[session];
        let will = known.will.as_ref().map(|kept| kept.will.delay_s);
        let expiry = Some(known.profile.expiry_s).filter(|&expiry_s| expiry_s != u32::MAX);
        if let Some(first_s) = will.into_iter().chain(expiry).min() {
            self.wheel.arm(session, known.away_for(first_s));
        }
    }

    pub(super) fn take_will(&mut self, session: SessionSlot, now: Moment) -> Option<DueWill> {
        let (publisher, home) = (self.id(session), self.home);
        let known = &mut self[session];
        let KeptWill { will, charge } = *known.will.take()?;
        drop(charge);
        let mut publication = will.publication;
        publication.publisher = Some(publisher);
        publication.owner = owner(home, &known.device);
        publication.expires = will.expiry_s.map(|seconds| now.plus(std::time::Duration::from_secs(seconds.into())));
        let (device, listener) = (known.device.clone(), known.profile.listener);
        Some(DueWill { device, listener, publication, was_delayed: false })
    }

    /// What takes of the pool and lies in the store beside sessions: `reserved`, pieces that are read and what ended sessions have
    /// left, and `left_stored`, that of these, in bytes.
    pub(super) fn check_invariants(
        &self,
        is_device: impl Fn(ConnectionSlot) -> bool,
        reserved: usize,
        left_stored: u64,
    ) {
        let mut away = 0;
        for (slot, session) in self.all.iter() {
            if session.is_retired() {
                assert!(!session.is_online() && session.groups.is_empty() && session.inflight.is_none());
                continue;
            }
            if session.is_online() {
                assert_eq!(self.of(session.connection), Some(slot), "session {slot} and its connection disagree");
                assert!(is_device(session.connection), "session {slot} has a connection that is no device");
                assert!(self.wheel.deadline(slot).is_none(), "session {slot} is online and has a deadline");
            } else {
                away += 1;
                assert!(!session.device.is_empty(), "session {slot} is away and has no name");
                assert_eq!(self.find_away(&session.device), Some(slot), "session {slot} is away and cannot be found");
            }
            if let Some(inflight) = &session.inflight {
                let has_stored = session.is_online() && inflight.has_stored();
                assert!(!inflight.is_empty() || has_stored, "session {slot} keeps an empty table of what is in flight");
                assert!(!self.stored.contains_key(&slot), "what is stored of session {slot} is in two places");
                inflight.check_invariants(session.is_online());
            }
        }
        assert_eq!(away, self.away.len(), "somebody is listed as away who is not");
        let attached = self.attached.iter().filter(|&&session| session != NO_SESSION).count();
        assert_eq!(attached + away, self.len());
        assert!(self.stored.keys().all(|&session| !self[session].is_online() && !self[session].is_retired()));
        let stored = self.all.iter().map(|(slot, _)| self.stored(slot).bytes);
        assert_eq!(self.stored_bytes, stored.sum::<u64>() + left_stored);
        let charged = self.all.iter().filter_map(|(_, session)| session.inflight.as_deref()).map(Inflight::charged);
        assert_eq!(self.pool.used(Class::Queues), (charged.sum::<usize>() + reserved) as u64);
        let wills = self.all.iter().filter_map(|(_, session)| session.will.as_deref()).map(|kept| kept.charge.bytes());
        assert_eq!(self.pool.used(Class::Wills), wills.sum::<usize>() as u64);
    }
}

impl Index<SessionSlot> for Sessions {
    type Output = Session;

    fn index(&self, session: SessionSlot) -> &Session {
        &self.all[session]
    }
}

impl IndexMut<SessionSlot> for Sessions {
    fn index_mut(&mut self, session: SessionSlot) -> &mut Session {
        &mut self.all[session]
    }
}

impl Session {
    /// Its device, while that is away.
    pub(super) fn device(&self) -> &str {
        &self.device
    }

    /// Whether its device is connected.
    pub(super) fn is_online(&self) -> bool {
        self.connection < RETIRED
    }

    /// Whether what waits for its device goes to the store, and from memory.
    pub(super) fn is_spilled(&self) -> bool {
        self.connection == NOBODY && self.key != NO_KEY
    }

    /// Whether it has ended, and its slot is kept until its subscriptions are removed.
    pub(super) fn is_retired(&self) -> bool {
        self.connection == RETIRED
    }

    /// When the device has been away for that long: with the first tick that begins after it, so never too early.
    fn away_for(&self, seconds: u32) -> Tick {
        self.away_since.deadline_after(seconds.saturating_mul(TICKS_PER_SECOND).min(DEADLINE_TICKS_MAX))
    }
}

/// The number under which a device has its share of what is retained. Two of some billions share one.
fn owner(home: Home, device: &str) -> u32 {
    (home.hash(device) as u32).max(1)
}

impl Broker {
    /// Of which device a message is that is to be retained.
    #[must_use]
    pub fn owner(&self, device: &str) -> u32 {
        owner(self.home, device)
    }

    /// A device has connected: it goes on with its session, or begins one.
    pub fn attach(&mut self, arrival: Arrival, now: Moment) -> Attached {
        let Arrival { connection, device, clean_start, profile, will } = arrival;
        debug_assert!(self.of(connection).is_none());
        let row = self.forget_claim(connection);
        let (mut due_will, before) = (None, self.journal.mark());
        let known = self.sessions.find_away(device);
        let session = match known {
            Some(session) if !clean_start => {
                self.sessions.leave_away(session);
                Some(session)
            }
            Some(session) => {
                due_will = self.sessions.take_will(session, now);
                self.sessions.leave_away(session);
                self.end(session);
                if profile.expiry_s == 0 {
                    self.note_gone(device);
                }
                None
            }
            None => None,
        };
        let was_present = session.is_some();
        let session = session.unwrap_or_else(|| self.sessions.begin(profile));
        self.sessions.attach(session, connection);
        let known = &mut self.sessions[session];
        (known.profile, known.row) = (profile, row);
        // A will of the last connection that was still to come is not: the device is back [v5 MQTT-3.1.3-9].
        known.will = None;
        known.device = Box::default();
        if let Some(will) = will {
            self.sessions.set_will(session, *will);
        }
        let known = &mut self.sessions[session];
        if profile.expiry_s > 0 && known.key == NO_KEY && self.journal.is_on() {
            known.key = SessionKey(self.exchange.next_key());
        }
        self.record_head(session, device, None);
        self.tell_groups(session, true);
        if self.sessions.stored(session).through != 0 {
            // It is read as soon as the device is greeted.
            self.sessions.inflight(session);
        }
        // Some may be held for it, and come before what comes now.
        self.deliveries.release_held();
        self.note_backlog(session);
        let mark = self.journal.mark();
        Attached { session, was_present, due_will, is_safe: mark == before || self.journal.is_safe(mark) }
    }

    /// The device's connection has ended; returns the will that is to be published now. `with_will`: it has not ended in
    /// the way that lets the will be forgotten.
    pub fn detach(
        &mut self,
        connection: ConnectionSlot,
        device: &str,
        with_will: bool,
        now: Moment,
        counters: &mut Counters,
    ) -> Option<DueWill> {
        self.forget_claim(connection);
        let session = self.sessions.detach(connection, device, now.tick())?;
        let known = &mut self.sessions[session];
        if !with_will {
            known.will = None;
        }
        let mut released = Released::default();
        if let Some(inflight) = &mut known.inflight {
            inflight.disconnect(&mut released);
            self.spill(session, 0);
        }
        self.sessions.shed_empty_inflight(session);
        let left = std::mem::take(&mut released.left);
        self.release(session, released, counters);
        let known = &self.sessions[session];
        let ends = known.profile.expiry_s == 0 || self.sessions.count_away() >= self.bounds.away;
        let delay_s = known.will.as_ref().map_or(0, |kept| kept.will.delay_s);
        let due_will = if ends || delay_s == 0 { self.sessions.take_will(session, now) } else { None };
        if due_will.is_some() && !ends {
            self.note_changed(session);
        }
        if ends {
            if self.sessions[session].profile.expiry_s != 0 {
                counters.add(Metric::SessionsDropped, 1);
            }
            if self.sessions[session].key != NO_KEY {
                self.note_gone(device);
            }
            self.end(session);
        } else {
            self.record_head(session, device, Some(now));
            self.sessions.enter_away(session);
            self.tell_groups(session, false);
            self.spill_when_safe(session);
        }
        // The homes of its groups know by now that it is away, or no more.
        for delivery in left {
            if let Err(delivery) = self.return_to_group(delivery) {
                debug_assert!(false, "it is for no group: {delivery:?}");
            }
        }
        due_will
    }

    /// Whether the pool has room for a will.
    #[must_use]
    pub fn has_room_for(&self, will: &Will) -> bool {
        let bytes = will.bytes();
        bytes == 0 || self.pool.may_take(Class::Wills, bytes, 0)
    }

    /// The device asks for another session expiry interval in its DISCONNECT, in seconds.
    pub fn set_expiry(&mut self, session: SessionSlot, expiry_s: u32) {
        if std::mem::replace(&mut self.sessions[session].profile.expiry_s, expiry_s) != expiry_s {
            self.note_changed(session);
        }
    }

    /// The device has said goodbye: its will is forgotten [MQTT-3.14.4-3].
    pub fn forget_will(&mut self, session: SessionSlot) {
        if self.sessions.drop_will(session) {
            self.note_changed(session);
        }
    }

    /// Another gateway has the device of this connection: a will that was to come later does not, because the device is there
    /// [v5 MQTT-3.1.3-9]. One without delay is published as after any takeover.
    pub fn forget_delayed_will(&mut self, connection: ConnectionSlot) {
        let Some(session) = self.sessions.of(connection) else { return };
        let known = &mut self.sessions[session];
        if known.profile.expiry_s > 0 && known.will.as_ref().is_some_and(|kept| kept.will.delay_s > 0) {
            known.will = None;
        }
    }

    /// Whether one more session may be kept while its device is away.
    #[must_use]
    pub fn may_keep_more(&self) -> bool {
        self.sessions.count_away() < self.bounds.away
    }

    /// Handles at most `limit` deadlines, up to `drained`, of sessions whose devices are away: wills that are due are appended to
    /// `due_wills`, sessions that have expired end. Devices that have taken too little for too long are waited for no longer.
    /// `true`: more are due.
    pub fn handle_deadlines(
        &mut self,
        drained: Tick,
        now: Moment,
        limit: usize,
        due_wills: &mut Vec<DueWill>,
        counters: &mut Counters,
    ) -> bool {
        let mut due = std::mem::take(&mut self.sessions.due);
        let more = self.sessions.wheel.expire(drained, limit, &mut due);
        for session in due.drain(..) {
            let known = &self.sessions[session];
            debug_assert!(!known.is_online());
            let have_passed = |seconds| !known.away_for(seconds).is_after(drained);
            let expired = known.profile.expiry_s != u32::MAX && have_passed(known.profile.expiry_s);
            let will_due = known.will.as_ref().is_some_and(|kept| have_passed(kept.will.delay_s));
            let away_since = known.away_since;
            if expired || will_due {
                let will = self.sessions.take_will(session, now);
                due_wills.extend(will.map(|will| DueWill { was_delayed: true, ..will }));
            }
            if expired {
                counters.add(Metric::SessionsExpired, 1);
                let device = self.sessions[session].device.clone();
                self.note_gone(&device);
                self.sessions.leave_away(session);
                self.end(session);
            } else {
                if will_due {
                    self.note_changed(session);
                    let device = self.sessions[session].device.clone();
                    self.record_head(session, &device, Some(away_since.start_near(now)));
                }
                self.sessions.arm(session);
            }
        }
        self.sessions.due = due;
        self.check_paces(drained, counters);
        more
    }

    // --- Helpers ----------------------------------------------------------------------------------------------------

    /// The session is no more: its subscriptions and messages go with it.
    pub(super) fn end(&mut self, session: SessionSlot) {
        let is_left = self.leave_to_groups(session);
        let key = std::mem::replace(&mut self.sessions[session].key, NO_KEY);
        if key != NO_KEY && !is_left {
            self.journal.record(Change::Ended { session: key });
        }
        let member = self.id(session);
        for membership in std::mem::take(&mut self.sessions[session].groups) {
            self.routing.note_left(&membership.group);
            self.tell_group(ShardMessage::Leave { group: membership.group, member });
        }
        if self.routing.subscriptions.remove_some(session, SESSION_SUBSCRIPTIONS_ENDED) {
            self.sessions.remove(session);
        } else {
            self.sessions.retire(session);
            self.ends.push_back(session);
        }
        self.note_wants();
    }

    /// Records a session without what is in it, if it is one that is recorded.
    pub(super) fn record_head(&mut self, session: SessionSlot, name: &str, away_since: Option<Moment>) {
        if let Some(head) = self.head_of(session, name, away_since) {
            self.journal.record(Change::Kept(Box::new(head)));
        }
    }

    /// Goes on with the ends of sessions that had many subscriptions.
    pub(super) fn advance_ends(&mut self) {
        let mut left = SUBSCRIPTIONS_ENDED;
        while left > 0
            && let Some(&session) = self.ends.front()
        {
            let before = self.routing.subscriptions.len();
            if self.routing.subscriptions.remove_some(session, left) {
                self.ends.pop_front();
                self.sessions.remove(session);
            }
            left = left.saturating_sub((before - self.routing.subscriptions.len()).max(1));
        }
        if left < SUBSCRIPTIONS_ENDED {
            self.note_wants();
        }
    }

    /// Tells the homes of the session's groups whether its device is there.
    fn tell_groups(&mut self, session: SessionSlot, is_online: bool) {
        let member = self.id(session);
        let room = if is_online { self.group_room(session) } else { 0 };
        let groups = std::mem::take(&mut self.sessions[session].groups);
        for membership in &groups {
            let (options, identifier) = (membership.options, membership.identifier);
            let group = Arc::clone(&membership.group);
            self.tell_group(ShardMessage::Join { group, member, options, identifier, room, waits: 0 });
        }
        self.sessions[session].groups = groups;
    }
}
