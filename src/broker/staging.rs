//! Nothing twice at QoS 2, through a crash: a message is sent on when it is known that it will not come again.
//!
//! ```text
//!   the publisher's shard                             each shard with subscribers
//!   PUBLISH ── recorded as received, pending ─▶ publish ──▶ stage: recorded with the origin, and not sent
//!                                                              │ safe
//!   every part is done ◀───────────────────────────── Taken ───┘
//!     └ recorded as received: prepare ── safe ──▶ Commit ──▶ commit: delivered like any other message
//!   PUBREC ◀──────────────────────────────────────── Taken ────┘
//! ```
//!
//! Should the process end before the second record is safe, the publisher was told nothing, and nobody was sent the message: when
//! the store is opened again it drops what was staged under a pending origin, and that, at once; the publisher sends it again. After it, the
//! message is answered with PUBREC when it comes again, and goes nowhere.
//!
//! Nobody waits for a device in the first half, only for disks. What is staged is bounded by what publishers may have in flight.

use hashbrown::HashMap;
use hashbrown::hash_map::Entry;

use super::Broker;
use super::inflight::Delivery;
use super::journal::Waiting;
use super::lifecycle::NO_KEY;
use super::settlement::{NOTHING, Owner, Part, Token};
use crate::image::{Change, Received};
use crate::link::{SessionId, ShardMessage, WorkerId};
use crate::pool::Charge;
use crate::slot::SessionSlot;

/// A publication that every shard has staged, or that was refused.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) session: SessionId,
    pub(super) packet: u16,
    pub(super) token: Token,
    pub(super) origin: u64,
    pub(super) is_refused: bool,
    /// What the publication takes until it is settled.
    pub(super) charge: Option<Charge>,
}

/// A delivery that is not sent yet, and whose it is.
#[derive(Debug)]
struct StagedDelivery {
    session: SessionSlot,
    generation: u32,
    delivery: Delivery,
}

/// Deliveries of one shard that are not sent yet, by the origin of what was published.
#[derive(Default)]
pub(super) struct Staged {
    by_origin: HashMap<u64, Vec<StagedDelivery>>,
    /// By slot and generation of a session: how many that are recorded are not with it yet.
    on_their_way: HashMap<(SessionSlot, u32), u32>,
    len: usize,
    in_turn: usize,
}

impl Staged {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// How many came in this turn.
    pub(super) fn in_turn(&self) -> usize {
        self.in_turn
    }

    pub(super) fn begin_turn(&mut self) {
        self.in_turn = 0;
    }

    /// Whether messages of a session have their numbers and are not with it yet.
    pub(super) fn holds(&self, session: SessionSlot, generation: u32) -> bool {
        self.on_their_way.contains_key(&(session, generation))
    }

    /// One that was staged, and recorded if it has a `number`, is with its session now, or goes nowhere.
    pub(super) fn note_arrived(&mut self, session: SessionSlot, generation: u32, number: u64) {
        if number != 0
            && let Entry::Occupied(mut count) = self.on_their_way.entry((session, generation))
        {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    fn push(&mut self, origin: u64, staged: StagedDelivery) {
        if staged.delivery.number != 0 {
            *self.on_their_way.entry((staged.session, staged.generation)).or_default() += 1;
        }
        self.len += 1;
        self.in_turn += 1;
        self.by_origin.entry(origin).or_default().push(staged);
    }

    fn take(&mut self, origin: u64) -> Vec<StagedDelivery> {
        let staged = self.by_origin.remove(&origin).unwrap_or_default();
        self.len -= staged.len();
        if self.by_origin.is_empty() && self.by_origin.capacity() > 1_024 {
            // After a storm the memory goes back.
            self.by_origin = HashMap::new();
        }
        staged
    }

    pub(super) fn check_invariants(&self) {
        assert_eq!(self.len, self.by_origin.values().map(Vec::len).sum::<usize>());
    }
}

impl Broker {
    /// A delivery is recorded, and its part of the settlement is done when that is safe.
    pub(super) fn stage(&mut self, session: SessionSlot, mut delivery: Delivery) {
        let (key, generation) = (self.sessions[session].key, self.sessions[session].generation);
        let token = std::mem::replace(&mut delivery.token, NOTHING);
        let origin = delivery.publication.origin;
        if key != NO_KEY {
            self.journal.record_message(key, &mut delivery, None);
            self.note_outstanding(session);
        }
        self.staged.push(origin, StagedDelivery { session, generation, delivery });
        if key == NO_KEY {
            self.settle(token, Part::Taken);
        } else {
            self.when_safe(Waiting::Part(token));
        }
    }

    /// Every shard has staged the publication: it is recorded as received.
    pub(super) fn prepare(&mut self, prepared: Prepared) {
        let session = self.sessions.resolve(prepared.session);
        let key = session.map_or(NO_KEY, |session| self.sessions[session].key);
        if key != NO_KEY {
            let packet = prepared.packet;
            self.journal.record(if prepared.is_refused {
                Change::Completed { session: key, packet }
            } else {
                Change::Received { session: key, received: Received { packet, origin: 0 } }
            });
        }
        self.when_safe(Waiting::Prepared(Box::new(prepared)));
    }

    /// It is known as received, whatever happens: it is sent, and its publisher is told when it is with everybody.
    pub(super) fn handle_prepared(&mut self, prepared: Prepared) {
        let Prepared { session, packet, token, origin, is_refused, charge } = prepared;
        let second = self.settlements.open(Owner::Publisher { session, packet, origin: 0 });
        if let Some(charge) = charge {
            self.settlements.charge(second, charge);
        }
        if let Some(session) = self.sessions.resolve(session)
            && let Some(inflight) = self.sessions[session].inflight.as_deref_mut()
        {
            inflight.wait_for(packet, token, second);
        }
        for worker in (0..self.exchange.workers()).map(WorkerId) {
            if worker != self.worker {
                self.settlements.add(second);
                self.ways.answer(worker, ShardMessage::Commit { origin, token: second });
            }
        }
        self.commit(origin, second);
        self.settle(second, if is_refused { Part::Refused } else { Part::Taken });
    }

    /// What was staged under this origin is delivered. The settlement has a part for each of them.
    pub(super) fn commit(&mut self, origin: u64, token: Token) {
        for StagedDelivery { session, generation, mut delivery } in self.staged.take(origin) {
            if self.sessions.is_current(session, generation) {
                self.settlements.add(token);
                delivery.token = token;
                self.deliveries.push(session, generation, delivery);
            } else {
                self.staged.note_arrived(session, generation, delivery.number);
                self.settlements.add(token);
                delivery.token = token;
                if let Err(delivery) = self.return_to_group(delivery) {
                    self.settle(delivery.token, Part::Taken);
                }
            }
        }
    }
}
