//! Sessions coming, going and ending; wills.

use super::inflight::Inflight;
use super::{Broker, NOBODY, Profile, Session};
use crate::link::{ListenerId, Peer, Publication, SessionFacts};
use crate::metrics::{Counters, Figure};
use crate::time::{Moment, Tick};

/// Ticks in a second.
const TICKS_PER_SECOND: u32 = 10;
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

/// A will that is to be published now, and whose.
#[derive(Debug)]
pub struct DueWill {
    /// Whose.
    pub device: Box<str>,
    /// Through which listener the device had come.
    pub listener: ListenerId,
    /// What.
    pub publication: Publication,
}

/// A device that has connected.
#[derive(Debug)]
pub struct Arrival<'a> {
    /// The slot of its connection.
    pub connection: u32,
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
    pub session: u32,
    /// Whether there was one.
    pub was_present: bool,
    /// The will of the session that was discarded, if that was still to be published [v5 MQTT-3.1.3-9].
    pub due_will: Option<DueWill>,
}

impl Broker {
    /// A device has connected: it goes on with its session, or begins one.
    pub fn attach(&mut self, arrival: Arrival, now: Moment) -> Attached {
        let Arrival { connection, device, clean_start, profile, will } = arrival;
        debug_assert!(self.of(connection).is_none());
        let mut due_will = None;
        let known = self.find_away(device);
        let session = match known {
            Some(session) if !clean_start => {
                self.leave_away(session);
                Some(session)
            }
            Some(session) => {
                due_will = self.take_will(session, now);
                self.leave_away(session);
                self.end(session);
                None
            }
            None => None,
        };
        let was_present = session.is_some();
        let session = session.unwrap_or_else(|| self.begin(profile));
        let slot = connection as usize;
        if self.attached.len() <= slot {
            self.attached.resize(slot + 1, NOBODY);
        }
        self.attached[slot] = session;
        let known = &mut self.all[session as usize];
        known.connection = connection;
        known.profile = profile;
        // A will of the last connection that was still to come is not: the device is back [v5 MQTT-3.1.3-9].
        known.will = will;
        known.device = Box::default();
        self.tell_groups(session, true);
        self.note_backlog(session);
        Attached { session, was_present, due_will }
    }

    /// The device's connection has ended; returns the will that is to be published now. `with_will`: it has not ended in
    /// the way that lets the will be forgotten.
    pub fn detach(
        &mut self,
        connection: u32,
        device: &str,
        with_will: bool,
        now: Moment,
        counters: &mut Counters,
    ) -> Option<DueWill> {
        let session = self.of(connection)?;
        self.attached[connection as usize] = NOBODY;
        let unanswered = &mut self.unanswered;
        let known = &mut self.all[session as usize];
        known.connection = NOBODY;
        known.device = device.into();
        known.away_since = now.tick();
        if !with_will {
            known.will = None;
        }
        if let Some(inflight) = &mut known.inflight {
            inflight.disconnect(|request| unanswered.push(request));
        }
        self.shed_empty_inflight(session);
        let known = &self.all[session as usize];
        let ends = known.profile.expiry_s == 0 || self.away.len() >= self.bounds.away;
        let delay_s = known.will.as_ref().map_or(0, |will| will.delay_s);
        let due_will = if ends || delay_s == 0 { self.take_will(session, now) } else { None };
        if ends {
            if self.all[session as usize].profile.expiry_s != 0 {
                counters.add(Figure::SessionsDropped, 1);
            }
            self.end(session);
        } else {
            self.enter_away(session);
            self.tell_groups(session, false);
        }
        due_will
    }

    /// The device asks for another session expiry interval in its DISCONNECT, in seconds.
    pub fn set_expiry(&mut self, session: u32, expiry_s: u32) {
        self.all[session as usize].profile.expiry_s = expiry_s;
    }

    /// The device has said goodbye: its will is forgotten [MQTT-3.14.4-3].
    pub fn forget_will(&mut self, session: u32) {
        self.all[session as usize].will = None;
    }

    /// Whether one more session may be kept while its device is away.
    #[must_use]
    pub fn may_keep_more(&self) -> bool {
        self.away.len() < self.bounds.away
    }

    /// Handles at most `limit` deadlines, up to `drained`, of sessions whose devices are away: wills that are due are appended to
    /// `due_wills`, sessions that have expired end. `true`: more are due.
    pub fn handle_deadlines(
        &mut self,
        drained: Tick,
        now: Moment,
        limit: usize,
        due_wills: &mut Vec<DueWill>,
        counters: &mut Counters,
    ) -> bool {
        let mut due = std::mem::take(&mut self.due);
        let more = self.wheel.expire(drained, limit, &mut due);
        for session in due.drain(..) {
            let known = &self.all[session as usize];
            debug_assert!(known.connection == NOBODY);
            let have_passed = |seconds| !known.away_for(seconds).is_after(drained);
            let expired = known.profile.expiry_s != u32::MAX && have_passed(known.profile.expiry_s);
            let will_due = known.will.as_ref().is_some_and(|will| have_passed(will.delay_s));
            if expired || will_due {
                due_wills.extend(self.take_will(session, now));
            }
            if expired {
                counters.add(Figure::SessionsExpired, 1);
                self.leave_away(session);
                self.end(session);
            } else {
                self.arm(session);
            }
        }
        self.due = due;
        more
    }

    /// What is known of a session, with its filters up to so many bytes of them.
    #[must_use]
    pub fn describe(&self, session: u32, filter_bytes: usize) -> SessionFacts {
        let known = &self.all[session as usize];
        let (queued, queued_bytes) = known.inflight.as_ref().map_or((0, 0), |inflight| inflight.queued());
        let own = self.subscriptions.filters(session).map(|(filter, subscriber)| {
            let filter: Box<str> = filter.into();
            (filter, subscriber.qos())
        });
        let mut left = filter_bytes;
        let fits = |(filter, _): &(Box<str>, u8)| {
            let fits = filter.len() <= left;
            left = left.saturating_sub(filter.len());
            fits
        };
        let shared = known.groups.iter().map(|membership| (Box::from(&*membership.group), membership.options & 3));
        SessionFacts {
            version: match known.profile.version {
                crate::codec::mqtt::Version::V31 => "3.1",
                crate::codec::mqtt::Version::V311 => "3.1.1",
                crate::codec::mqtt::Version::V5 => "5.0",
            },
            keep_alive_s: known.profile.keep_alive_s,
            expiry_s: known.profile.expiry_s,
            subscriptions: own.chain(shared).take_while(fits).collect(),
            subscription_count: self.subscriptions.count(session) + known.groups.len(),
            inflight: known.inflight.as_ref().map_or(0, |inflight| inflight.unacknowledged()),
            queued,
            queued_bytes,
        }
    }

    // --- Helpers ----------------------------------------------------------------------------------------------------

    fn begin(&mut self, profile: Profile) -> u32 {
        self.generations = self.generations.wrapping_add(1);
        let session = Session {
            profile,
            generation: self.generations,
            connection: NOBODY,
            next_packet: 0,
            is_backlogged: false,
            walk: super::Walk::None,
            turn_bytes: 0,
            turn: 0,
            device: Box::default(),
            away_since: Tick::default(),
            will: None,
            inflight: None,
            groups: Vec::new(),
        };
        self.all.insert(session) as u32
    }

    /// The session is no more: its subscriptions and messages go with it.
    fn end(&mut self, session: u32) {
        self.subscriptions.remove_all(session);
        let member = self.id(session);
        for membership in std::mem::take(&mut self.all[session as usize].groups) {
            self.tell_group(Peer::Leave { group: membership.group, member });
        }
        self.wheel.cancel(session);
        self.all.remove(session as usize);
        self.note_wants();
        if self.all.is_empty() {
            // After a mass disconnect the memory goes back.
            self.all = slab::Slab::new();
            self.attached = Vec::new();
        }
    }

    fn find_away(&self, device: &str) -> Option<u32> {
        self.away.find(self.home.hash(device), |session| *self.all[session as usize].device == *device)
    }

    fn enter_away(&mut self, session: u32) {
        self.away.insert(self.home.hash(&self.all[session as usize].device), session);
        self.arm(session);
    }

    fn leave_away(&mut self, session: u32) {
        self.away.remove(self.home.hash(&self.all[session as usize].device), session);
        self.wheel.cancel(session);
    }

    /// Arms the next thing that is due while the device is away.
    fn arm(&mut self, session: u32) {
        let known = &self.all[session as usize];
        let will = known.will.as_ref().map(|will| will.delay_s);
        let expiry = Some(known.profile.expiry_s).filter(|&expiry_s| expiry_s != u32::MAX);
        if let Some(first_s) = will.into_iter().chain(expiry).min() {
            self.wheel.arm(session, known.away_for(first_s));
        }
    }

    fn take_will(&mut self, session: u32, now: Moment) -> Option<DueWill> {
        let publisher = self.id(session);
        let known = &mut self.all[session as usize];
        let will = *known.will.take()?;
        let mut publication = will.publication;
        publication.publisher = Some(publisher);
        publication.expires = will.expiry_s.map(|seconds| now.plus(std::time::Duration::from_secs(seconds.into())));
        Some(DueWill { device: known.device.clone(), listener: known.profile.listener, publication })
    }

    /// Tells the homes of the session's groups whether its device is there.
    fn tell_groups(&mut self, session: u32, is_online: bool) {
        let member = self.id(session);
        let groups = std::mem::take(&mut self.all[session as usize].groups);
        for membership in &groups {
            let (options, identifier) = (membership.options, membership.identifier);
            let group = std::sync::Arc::clone(&membership.group);
            self.tell_group(Peer::Join { group, member, options, identifier, is_online });
        }
        self.all[session as usize].groups = groups;
    }

    pub(super) fn inflight(&mut self, session: u32) -> &mut Inflight {
        self.all[session as usize].inflight.get_or_insert_default()
    }

    pub(super) fn shed_empty_inflight(&mut self, session: u32) {
        let inflight = &mut self.all[session as usize].inflight;
        if inflight.as_ref().is_some_and(|inflight| inflight.is_empty()) {
            *inflight = None;
        }
    }
}

impl Session {
    /// When the device has been away for that long: with the first tick that begins after it, so never too early.
    fn away_for(&self, seconds: u32) -> Tick {
        self.away_since.deadline_after(seconds.saturating_mul(TICKS_PER_SECOND).min(DEADLINE_TICKS_MAX))
    }
}
