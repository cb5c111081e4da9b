//! Messages of devices that are away lie in the store, not in memory, and are read when their devices come back (decision D27).
//!
//! ```text
//!   the device goes, or a message comes ──▶ recorded ── safe ──▶ spill: gone from memory, counted
//!
//!   the device is greeted ──▶ listed ── its turn, and there is room ──▶ Load ──▶ the store's reader
//!       ▲                                                                             │
//!       └──── what was read was sent, and there is more ◀──── take_read ◀── Loaded ───┘
//! ```
//!
//! Nothing is read before CONNACK: that waits until all that was said of the session is safe, so what is read is true. Only the
//! session's own messages wait for the store; whatever comes meanwhile lies behind them.
//!
//! | who waits | ends with |
//! | --- | --- |
//! | what is to go from memory, for `Safe` | `Safe`; the session's end; the device, which comes back: then it stays |
//! | a session that is listed, for its turn | an answer to another one; the connection's end |
//! | deliveries for devices that are away, while memory is short, for those before them | `Safe`; the device, which comes back |
//! | a piece that was asked for | `Loaded`, which always comes; one that comes too late finds nobody |

use std::collections::VecDeque;
use std::sync::Arc;

use super::Broker;
use super::delivery::{Deliveries, RoutedDelivery};
use super::inflight::Inflight;
use super::lifecycle::NO_KEY;
use crate::link::{Load, Loaded};
use crate::pool::{Charge, Class, Pool};
use crate::slot::{ConnectionSlot, SessionSlot};
use crate::time::Moment;

/// Bytes that are read of one session at a time, and then one message more.
pub(super) const PIECE_BYTES: usize = 32 << 10;
/// So many pieces are asked for at a time,
const PIECES_MAX: usize = 16;
/// if they are no more than such a part of what may wait in memory.
const PIECES_PART: u64 = 16;

/// What goes from memory when it is safe.
#[derive(Clone, Copy, Debug)]
struct Spilling {
    mark: u64,
    /// Everything recorded by then has a number up to this one.
    number: u64,
    session: SessionSlot,
    generation: u32,
}

/// See the head of this file.
pub(super) struct Spills {
    waiting: VecDeque<Spilling>,
    /// Sessions whose next piece is wanted: slot, generation, and the number under which they are listed.
    listed: VecDeque<(SessionSlot, u32, u32)>,
    serials: u32,
    /// Pieces that were asked for, and the room that they are given.
    asked: usize,
    charge: Charge,
    /// Something waits that the pool has no room for.
    is_short: bool,
}

impl Spills {
    pub(super) fn new(pool: &Arc<Pool>) -> Self {
        Self {
            waiting: VecDeque::new(),
            listed: VecDeque::new(),
            serials: 0,
            asked: 0,
            charge: Charge::none(pool, Class::Queues),
            is_short: false,
        }
    }

    fn set_asked(&mut self, asked: usize) {
        self.asked = asked;
        self.charge.set(asked * PIECE_BYTES);
    }

    /// What pieces that are on their way take of the pool.
    pub(super) fn reserved(&self) -> usize {
        self.charge.bytes()
    }
}

impl Broker {
    // --- From memory ------------------------------------------------------------------------------------------------

    /// What is in memory of the messages of a device that is away goes as soon as the store has it.
    pub(super) fn spill_when_safe(&mut self, session: SessionSlot) {
        let known = &mut self.sessions[session];
        let generation = known.generation;
        if known.is_online() || known.key == NO_KEY || self.staged.holds(session, generation) {
            // What is staged has its number already, and comes later: then all goes together.
            return;
        }
        let Some(inflight) = known.inflight.as_deref_mut() else { return };
        if inflight.is_spilling || !inflight.has_unspilled() {
            return;
        }
        let (mark, number) = (self.journal.mark(), self.journal.latest_number());
        if self.journal.is_safe(mark) {
            return self.spill(session, number);
        }
        inflight.is_spilling = true;
        self.spills.waiting.push_back(Spilling { mark, number, session, generation });
    }

    /// Everything up to this number is in the store, and whatever was read from there: it goes from memory.
    pub(super) fn spill(&mut self, session: SessionSlot, number: u64) {
        let Some(inflight) = self.sessions[session].inflight.as_deref_mut() else { return };
        if number == 0 && !inflight.has_stored() {
            return;
        }
        let before = inflight.stored().bytes;
        inflight.spill(number);
        self.sessions.stored_bytes = self.sessions.stored_bytes - before + self.sessions.stored(session).bytes;
    }

    /// More is safe than before.
    pub(super) fn spill_safe(&mut self) {
        while let Some(&Spilling { mark, number, session, generation }) = self.spills.waiting.front()
            && self.journal.is_safe(mark)
        {
            self.spills.waiting.pop_front();
            if !self.sessions.is_current(session, generation) {
                continue;
            }
            let Some(inflight) = self.sessions[session].inflight.as_deref_mut() else { continue };
            inflight.is_spilling = false;
            if self.sessions[session].is_online() {
                continue;
            }
            if !self.staged.holds(session, generation) {
                self.spill(session, number);
            }
            // What came meanwhile.
            self.spill_when_safe(session);
            self.sessions.shed_empty_inflight(session);
        }
        if self.spills.waiting.is_empty() {
            self.spills.is_short = false;
            if self.spills.waiting.capacity() > 1_024 {
                // After a storm the memory goes back.
                self.spills.waiting = VecDeque::new();
            }
        }
    }

    /// What came in this turn for a device that is away is in memory until it is safe, even if the pool has no room for it: then what comes
    /// behind it waits.
    pub(super) fn note_shortage(&mut self, session: SessionSlot) {
        let known = &self.sessions[session];
        let Some(inflight) = known.inflight.as_deref().filter(|inflight| inflight.is_spilling) else { return };
        self.spills.is_short |= inflight.charged() as u64 > self.pool.largest(Class::Queues);
    }

    /// Whether messages for devices that are away wait until those before them are safe in the store and gone from memory: else the
    /// pool would be full of them, and some would be dropped for which the store has room. `Safe` ends it.
    pub(super) fn holds_for_store(&self) -> bool {
        let is_short = self.spills.is_short || self.pool.used(Class::Queues) > self.pool.share(Class::Queues) / 2;
        is_short && !self.spills.waiting.is_empty()
    }

    /// Whether no more can be delivered before the store says that something is safe.
    #[must_use]
    pub fn waits_for_store(&self) -> bool {
        self.holds_for_store() && self.has_many_deliveries()
    }

    /// At most `limit` of what was routed. What is for devices that are away is held while that waits for the store.
    pub(super) fn take_routed(&mut self, limit: usize) -> Vec<RoutedDelivery> {
        let is_held = self.holds_for_store();
        if !is_held {
            self.deliveries.release_held();
        }
        let Deliveries { routed, held, .. } = &mut self.deliveries;
        let mut now: Vec<RoutedDelivery> = routed.drain(..routed.len().min(limit)).collect();
        if routed.is_empty() && routed.capacity() > limit {
            routed.shrink_to(limit);
        }
        if is_held {
            let sessions = &self.sessions;
            let is_away = |routed: &mut RoutedDelivery| {
                let RoutedDelivery { session, generation, .. } = *routed;
                sessions.is_current(session, generation) && sessions[session].is_spilled()
            };
            held.extend(now.extract_if(.., is_away));
        }
        now
    }

    // --- Back into memory -------------------------------------------------------------------------------------------

    /// The device can be sent something that lies in the store: it is read when it is its turn.
    pub(super) fn read_stored(&mut self, session: SessionSlot) {
        let serial = self.spills.serials.wrapping_add(1).max(1);
        let known = &mut self.sessions[session];
        if known.inflight.as_deref_mut().is_some_and(|inflight| inflight.list_reading(serial)) {
            self.spills.serials = serial;
            self.spills.listed.push_back((session, known.generation, serial));
        }
        if self.spills.listed.len() > 2 * self.sessions.len() + 64 {
            // Of devices that come and go there are not more of them than sessions.
            let sessions = &self.sessions;
            let is_listed = |&(session, generation, serial): &(SessionSlot, u32, u32)| {
                let inflight = sessions.is_current(session, generation).then(|| sessions[session].inflight.as_deref());
                inflight.flatten().is_some_and(|inflight| inflight.is_listed(serial))
            };
            self.spills.listed.retain(is_listed);
        }
    }

    /// What is to be asked of the store now. Each is answered by [`Broker::handle_loaded`].
    pub fn take_loads(&mut self) -> Vec<Load> {
        let mut loads = Vec::new();
        while self.spills.asked < self.pieces_max()
            && let Some((session, generation, serial)) = self.spills.listed.pop_front()
        {
            if !self.sessions.is_current(session, generation) {
                continue;
            }
            let (id, key) = (self.id(session), self.sessions[session].key);
            let room = self.pool.largest(Class::Queues) as usize;
            let Some(inflight) = self.sessions[session].inflight.as_deref_mut() else { continue };
            if !inflight.is_listed(serial) {
                continue;
            }
            let (after, through) = inflight.begin_reading(serial);
            // One message always comes, so that it goes on when the pool is full.
            let bytes_max = PIECE_BYTES.min(room.saturating_sub(inflight.charged()));
            loads.push(Load { session: id, serial, key, after, through, bytes_max });
            self.spills.set_asked(self.spills.asked + 1);
        }
        while self.has_left_loads() {
            let serial = self.spills.serials.wrapping_add(1).max(1);
            self.spills.serials = serial;
            let Some(load) = self.next_left_load(serial) else { continue };
            loads.push(load);
            self.spills.set_asked(self.spills.asked + 1);
        }
        loads
    }

    /// Pieces that may be asked for at a time.
    fn pieces_max(&self) -> usize {
        let share = self.pool.share(Class::Queues) / PIECES_PART / PIECE_BYTES as u64;
        PIECES_MAX.min(share as usize).max(1)
    }

    /// Whether a piece of what an ended session has left is to be asked for now.
    pub(super) fn has_left_loads(&self) -> bool {
        self.spills.asked < self.pieces_max() && self.may_read_left()
    }

    /// The store answers. `Some`: the slot of a connection to whose session it cannot give what waits there.
    pub fn handle_loaded(&mut self, loaded: Loaded, now: Moment) -> Option<ConnectionSlot> {
        self.spills.set_asked(self.spills.asked - 1);
        if self.handle_left_loaded(&loaded, now) {
            return None;
        }
        let session = self.sessions.resolve(loaded.session)?;
        let inflight = self.sessions[session].inflight.as_deref_mut();
        let inflight = inflight.filter(|inflight| inflight.is_asked(loaded.serial))?;
        let Some(messages) = loaded.messages else {
            inflight.end_reading();
            return self.sessions.connection_of(session, loaded.session.generation);
        };
        let before = inflight.stored().bytes;
        let pieces = messages.iter().map(|message| (self.delivery_of(message, now), message.packet)).collect();
        let inflight = self.sessions[session].inflight.as_deref_mut().map(|inflight| {
            inflight.take_read(pieces, loaded.is_last);
            Inflight::stored(inflight).bytes
        });
        self.sessions.stored_bytes = self.sessions.stored_bytes - before + inflight.unwrap_or_default();
        self.note_backlog(session);
        self.sessions.shed_empty_inflight(session);
        None
    }
}
