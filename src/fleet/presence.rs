//! Who has which device: the state of each device that is here, and of its row. Pure: no clock, no connection.
//!
//! ```text
//!                        ┌────────────────── nothing is known ◀───── removed, or never there ──────┐
//!   a device comes ──▶ write if absent ── conflict ──▶ unsure ──▶ read ──▶ another's ── it lives ──▶ it is asked for how long it has it
//!                        │ written             ▲  ▲                │  │ ours   │ it is dead           │ it has none, or an older one
//!                        ▼                     │  └── no answer    │  │        ├──────────────────────┘        └── a later one: it ends here
//!                      ours ◀──────────────────│───────────────────│──┘        │
//!                        │ the device goes     └────── conflict ───│─── write over it ──▶ ours, and its owner is told
//!                        └──▶ remove this revision ────────────────┘
//! ```
//!
//! Decision D9: whoever has written the row owns the device. Each write names the revision that it replaces, so of two that want
//! a device one wins; each removal names the revision that it removes, so a late end takes away nobody else's row. One question
//! of a device is under way at a time, and its answer is known by its number: a late or doubled one finds nothing. After a
//! question without an answer the row is read before anything else is done.
//!
//! A row may be older than what it speaks of, and a newcomer may have waited for long. So a living gateway is asked before its
//! row is written over or believed: of two connections the one that began later stays. Spans are compared, never clocks.

mod queue;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::server::Written;
use queue::Queue;

/// So often a living gateway is asked that does not answer; then its row is written over all the same.
pub const SILENT_MAX: u8 = 5;
/// So often one is asked again whose answer leaves open which connection began later, because it took longer than lies between
/// them; then the middle counts.
const DOUBTS_MAX: u8 = 5;
/// So many takeovers between gateways from another address are free at once (as within one gateway),
const FREE: u64 = 8;
/// and one more for each such span.
const SPAN_MS: u64 = 10_000;
/// Of a row that is about to be replaced or removed: no connection has it.
const NO_GENERATION: u64 = u64::MAX;
/// Owners before that a row names, at the most.
const OVER_MAX: usize = 4;
/// Rows looked at at a time because somebody asked for a device that is not here.
const STRAYS_MAX: usize = 256;

/// An owner of a device, by one of its connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// The gateway,
    pub node: Box<str>,
    /// its lease,
    pub lease: Box<str>,
    /// and the connection.
    pub generation: u64,
}

/// What stands in the row of a device. The default is nobody's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// The gateway that has it,
    pub node: Box<str>,
    /// under which lease.
    pub lease: Box<str>,
    /// Which life of the gateway.
    pub epoch: u64,
    /// Which of the device's connections there.
    pub generation: u64,
    /// From where it came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<IpAddr>,
    /// Up to when changes of place between gateways are paid for, as Unix time in milliseconds.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub paid_until_ms: u64,
    /// From whom it was taken, the latest first: they are told, and if the answer to the write is lost, or this gateway with it,
    /// whoever reads the row next tells them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub over: Vec<Owner>,
}

impl Row {
    /// Whose it is.
    fn owner(&self) -> Owner {
        Owner { node: self.node.clone(), lease: self.lease.clone(), generation: self.generation }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A question to NATS about a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// What its row says, and whether the gateway that it names lives.
    Read,
    /// Write this over the revision; 0: if there is none.
    Write(u64, Row),
    /// Take away this revision.
    Remove(u64),
    /// Whether the gateway that its row names still has it, and for how long.
    Owner(Box<str>),
}

/// What a living gateway says of a device that its row says it has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claim {
    /// It has it not.
    Gone,
    /// It has a connection that began in this span, as this gateway's clock would have it.
    Began(Instant, Instant),
    /// It does not answer.
    Silent,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// To [`Ask::Read`]: there is none.
    Absent,
    /// To [`Ask::Read`]: its revision, what it says, and whether its gateway lives.
    Found(u64, Row, bool),
    /// To [`Ask::Write`].
    Written(Written),
    /// To [`Ask::Remove`]: it is not there (any more).
    Removed,
    /// To [`Ask::Owner`].
    Owner(Claim),
    /// Nobody knows what became of it.
    Lost,
}

/// What is to be done besides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The device's connection of this generation ends: another gateway has it.
    End {
        /// The device.
        device: Box<str>,
        /// Which of its connections; a newer one stays.
        generation: u64,
        /// Whether it ends because two places fight over the id.
        is_loop: bool,
    },
    /// A gateway that had it is to be told.
    Tell {
        /// The device.
        device: Box<str>,
        /// Whose it was,
        before: Owner,
        /// and at which revision something else stands there now.
        revision: u64,
    },
}

/// What a gateway does when it is told that a device was taken from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It ends that connection.
    Ends,
    /// It has none, or not that one any more.
    Gone,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Devices whose rows are this gateway's and as they are to be.
    pub held: u64,
    /// Rows written.
    pub written: u64,
    /// Rows removed.
    pub removed: u64,
    /// Writes that found another row than was expected.
    pub conflicts: u64,
    /// Devices taken over from other gateways.
    pub taken: u64,
    /// Devices that other gateways took over.
    pub lost: u64,
    /// Devices that came while two places fought over their ids, and had to wait.
    pub damped: u64,
}

/// A connection that is here.
#[derive(Clone, Debug)]
struct Wanted {
    generation: u64,
    place: Option<IpAddr>,
    since: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Known {
    /// There is no row, or none that is known of.
    Nothing,
    /// It is to be read before anything else.
    Unsure,
    /// This gateway's, for the connection of this generation.
    Ours(u64, u64),
    /// Just read: another gateway's, or of this one's earlier life; and what is known of that.
    Theirs(u64, Box<Row>, Standing),
}

/// What is known of the gateway that a row names.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    /// The lease that the row names has ended.
    Dead,
    /// It lives, and is to be asked.
    Unasked,
    /// It lives, and says this.
    Says(Claim),
}

/// A question under way.
#[derive(Debug)]
struct UnderWay {
    number: u64,
    does: Does,
}

#[derive(Debug)]
enum Does {
    Read,
    Write {
        generation: u64,
        is_takeover: bool,
        over: Vec<Owner>,
    },
    /// `over`: who may still believe that the device is theirs.
    Remove {
        revision: u64,
        over: Vec<Owner>,
    },
    AskOwner(u64, Box<Row>),
}

#[derive(Debug)]
struct Entry {
    wanted: Option<Wanted>,
    known: Known,
    under_way: Option<UnderWay>,
    is_queued: bool,
    /// Nobody of this id is or was here: only its row is looked at.
    is_stray: bool,
    /// The latest revision by which another gateway says that it took the device from this connection.
    taken: u64,
    /// How often the gateway that has it was asked without it being known by now who is to have it.
    asks: u8,
}

impl Entry {
    fn new(known: Known) -> Self {
        Self { wanted: None, known, under_way: None, is_queued: false, is_stray: false, taken: 0, asks: 0 }
    }

    fn is_settled(&self) -> bool {
        matches!((&self.wanted, &self.known), (Some(wanted), Known::Ours(_, generation)) if wanted.generation == *generation)
    }

    fn is_nothing(&self) -> bool {
        self.wanted.is_none() && self.known == Known::Nothing && self.under_way.is_none()
    }
}

/// The devices of this gateway, and their rows.
#[derive(Debug)]
pub struct Presence {
    node: Box<str>,
    epoch: u64,
    /// Under which lease rows are written; none: nothing is asked.
    lease: Option<Box<str>>,
    /// Under which that was last.
    begun: Box<str>,
    devices: HashMap<Arc<str>, Entry>,
    queue: Queue,
    asked: HashMap<u64, Arc<str>>,
    next: u64,
    strays: usize,
    /// No row of this gateway's has a lower revision.
    lowest: u64,
    effects: Vec<Effect>,
    /// Devices whose rows have come to be as they are to be.
    claimed: Vec<Arc<str>>,
    counts: Counts,
}

impl Presence {
    /// Nobody yet.
    pub fn new(node: &str, epoch: u64) -> Self {
        Self {
            node: node.into(),
            epoch,
            lease: None,
            begun: Box::default(),
            devices: HashMap::new(),
            queue: Queue::default(),
            asked: HashMap::new(),
            next: 0,
            strays: 0,
            lowest: 0,
            effects: Vec::new(),
            claimed: Vec::new(),
            counts: Counts::default(),
        }
    }

    // --- What happens here --------------------------------------------------------------------------------------------

    /// A device is here, `since` when. What is told late says so: it may have come before one that was told of elsewhere.
    pub fn connected(&mut self, device: &str, generation: u64, place: Option<IpAddr>, since: Instant) {
        let wanted = Wanted { generation, place: place.map(|place| place.to_canonical()), since };
        if let Some(entry) = self.devices.get_mut(device) {
            let was_settled = entry.is_settled();
            entry.wanted = Some(wanted);
            (entry.taken, entry.asks) = (0, 0);
            self.strays -= usize::from(std::mem::take(&mut entry.is_stray));
            self.counts.held -= u64::from(was_settled && !entry.is_settled());
        } else {
            let entry = Entry { wanted: Some(wanted), ..Entry::new(Known::Nothing) };
            self.devices.insert(device.into(), entry);
        }
        self.enqueue(device);
    }

    /// A device's connection has ended.
    pub fn disconnected(&mut self, device: &str, generation: u64) {
        let Some(entry) = self.devices.get_mut(device) else { return };
        if entry.wanted.as_ref().is_none_or(|wanted| wanted.generation != generation) {
            return;
        }
        self.counts.held -= u64::from(entry.is_settled());
        entry.wanted = None;
        if entry.is_nothing() {
            self.forget(device);
        } else {
            self.enqueue(device);
        }
    }

    /// Somebody asked for a device that is not here: if a row says that it is, that goes.
    pub fn missed(&mut self, device: &str) {
        self.look_at(device, Known::Unsure);
    }

    /// A row was found whose gateway's lease has ended: it goes, unless the device is here.
    pub fn found_dead(&mut self, device: &str, revision: u64, row: Row) {
        self.look_at(device, Known::Theirs(revision, Box::new(row), Standing::Dead));
    }

    /// Whether more rows may be looked at for which there is no device here.
    pub fn has_room_for_strays(&self) -> bool {
        self.strays < STRAYS_MAX
    }

    fn look_at(&mut self, device: &str, known: Known) {
        if self.lease.is_some() && self.has_room_for_strays() && !self.devices.contains_key(device) {
            self.strays += 1;
            self.devices.insert(device.into(), Entry { is_stray: true, ..Entry::new(known) });
            self.enqueue(device);
        }
    }

    /// Another gateway asks whether the device is here: for how long it has been.
    pub fn age(&self, device: &str, now: Instant) -> Option<std::time::Duration> {
        let wanted = self.devices.get(device)?.wanted.as_ref()?;
        Some(now.saturating_duration_since(wanted.since))
    }

    /// Whether the device is here, and its row is this gateway's for that connection.
    pub fn holds(&self, device: &str) -> bool {
        self.lease.is_some() && self.devices.get(device).is_some_and(Entry::is_settled)
    }

    // --- What NATS is to this gateway ---------------------------------------------------------------------------------

    /// Rows are written under this lease from now on. What was owned under another one is not any more, whatever has come between the two.
    /// `is_new`: nor what was owned under this one.
    pub fn begin(&mut self, lease: &str, is_new: bool) {
        let is_new = is_new || *self.begun != *lease;
        self.begun = lease.into();
        self.lease = Some(lease.into());
        self.lowest = 0;
        let devices: Vec<_> = self.devices.keys().cloned().collect();
        for device in devices {
            let entry = self.devices.get_mut(&device).expect("it is one of the keys");
            if is_new && matches!(entry.known, Known::Ours(..)) {
                self.counts.held -= u64::from(entry.is_settled());
                entry.known = Known::Unsure;
            }
            if !entry.is_settled() {
                self.enqueue(&device);
            }
        }
    }

    /// No row of an earlier revision is there any more: those of this gateway's that should be are looked at again. How many.
    pub fn handle_first(&mut self, first: u64) -> usize {
        if first <= self.lowest || self.lease.is_none() {
            return 0;
        }
        let (mut gone, mut lowest) = (Vec::new(), first);
        for (device, entry) in &self.devices {
            match entry.known {
                // Its answer may name a revision that has gone too.
                _ if entry.under_way.is_some() => lowest = 0,
                Known::Ours(revision, _) if revision < first => gone.push(Arc::clone(device)),
                _ => {}
            }
        }
        self.lowest = lowest;
        for device in &gone {
            let entry = self.devices.get_mut(device).expect("it is one of them");
            self.counts.held -= u64::from(entry.is_settled());
            entry.known = Known::Unsure;
            self.enqueue(device);
        }
        gone.len()
    }

    /// Nothing can be asked any more, and what is under way has no answer.
    pub fn end(&mut self) {
        self.lease = None;
        self.asked.clear();
        self.queue = Queue::default();
        self.strays = 0;
        self.devices.retain(|_, entry| {
            entry.is_queued = false;
            if let Some(under_way) = entry.under_way.take()
                && !matches!(under_way.does, Does::Read)
            {
                entry.known = Known::Unsure;
            }
            if matches!(entry.known, Known::Theirs(..)) {
                entry.known = Known::Unsure;
            }
            entry.asks = 0;
            !entry.is_nothing() && !entry.is_stray
        });
    }

    // --- Questions and answers ----------------------------------------------------------------------------------------

    /// The next question, with its number and whom it is about. `now_ms`: the time of day.
    pub fn next(&mut self, now_ms: u64) -> Option<(u64, Arc<str>, Ask)> {
        let lease = self.lease.clone()?;
        while let Some(device) = self.queue.pop() {
            let Some(entry) = self.devices.get_mut(&device) else { continue };
            if !std::mem::take(&mut entry.is_queued) || entry.under_way.is_some() {
                continue;
            }
            let Some((ask, does)) = self.decide(&device, &lease, now_ms) else { continue };
            self.next += 1;
            let number = self.next;
            let entry = self.devices.get_mut(&device).expect("it was there when it was decided");
            entry.under_way = Some(UnderWay { number, does });
            self.asked.insert(number, Arc::clone(&device));
            return Some((number, device, ask));
        }
        None
    }

    /// What is to be asked about a device now, if anything is.
    fn decide(&mut self, device: &str, lease: &str, now_ms: u64) -> Option<(Ask, Does)> {
        let entry = self.devices.get_mut(device).expect("it was looked up");
        let known = std::mem::replace(&mut entry.known, Known::Nothing);
        let Some(wanted) = entry.wanted.clone() else { return self.decide_unwanted(device, known) };
        match known {
            Known::Unsure => Some(self.read(device)),
            Known::Ours(revision, generation) if generation == wanted.generation => {
                entry.known = Known::Ours(revision, generation);
                None
            }
            Known::Nothing => Some(self.write(&wanted, lease, (0, 0), Vec::new(), false)),
            Known::Ours(revision, _) => {
                entry.known = Known::Ours(revision, NO_GENERATION);
                Some(self.write(&wanted, lease, (revision, 0), Vec::new(), false))
            }
            Known::Theirs(revision, row, standing) => {
                self.decide_over(device, lease, &wanted, (revision, row, standing), now_ms)
            }
        }
    }

    /// The device is not here.
    fn decide_unwanted(&mut self, device: &str, known: Known) -> Option<(Ask, Does)> {
        match known {
            Known::Unsure => Some(self.read(device)),
            Known::Ours(revision, _) => Some(self.remove(device, revision, Vec::new())),
            // Of an earlier life of this gateway, or of one that has died. Who lost the device to that one may not know it.
            Known::Theirs(revision, row, Standing::Dead) => {
                let over = self.owners_before(*row, false);
                Some(self.remove(device, revision, over))
            }
            Known::Nothing | Known::Theirs(..) => {
                self.forget(device);
                None
            }
        }
    }

    /// The device is here, and the row another's.
    fn decide_over(
        &mut self,
        device: &str,
        lease: &str,
        wanted: &Wanted,
        (revision, row, standing): (u64, Box<Row>, Standing),
        now_ms: u64,
    ) -> Option<(Ask, Does)> {
        let is_takeover = match standing {
            Standing::Dead | Standing::Says(Claim::Gone) => false,
            Standing::Unasked => return Some((Ask::Owner(row.node.clone()), Does::AskOwner(revision, row))),
            Standing::Says(Claim::Silent) => true,
            Standing::Says(Claim::Began(from, to)) => {
                let entry = self.devices.get_mut(device).expect("it was looked up");
                if (from..to).contains(&wanted.since) && entry.asks < DOUBTS_MAX {
                    entry.asks += 1;
                    return Some((Ask::Owner(row.node.clone()), Does::AskOwner(revision, row)));
                }
                let began = from + to.saturating_duration_since(from) / 2;
                if wanted.since < began {
                    self.give_up(device, wanted.generation, false);
                    return None;
                }
                true
            }
        };
        let paid_until_ms = if is_takeover { paid_until(&row, wanted, now_ms) } else { 0 };
        if paid_until_ms.saturating_sub(now_ms) > SPAN_MS * (FREE - 1) {
            self.counts.damped += 1;
            self.give_up(device, wanted.generation, true);
            return None;
        }
        let over = self.owners_before(*row, is_takeover);
        Some(self.write(wanted, lease, (revision, paid_until_ms), over, is_takeover))
    }

    /// Writes the row over this revision.
    fn write(
        &self,
        wanted: &Wanted,
        lease: &str,
        (expected, paid_until_ms): (u64, u64),
        over: Vec<Owner>,
        is_takeover: bool,
    ) -> (Ask, Does) {
        let generation = wanted.generation;
        let row = Row {
            node: self.node.clone(),
            lease: lease.into(),
            epoch: self.epoch,
            generation,
            place: wanted.place,
            paid_until_ms,
            over: over.clone(),
        };
        (Ask::Write(expected, row), Does::Write { generation, is_takeover, over })
    }

    /// Whoever may still believe that a device is theirs once this row was written over: whose it is, if that gateway lives, and
    /// those from whom that one had it.
    fn owners_before(&self, row: Row, is_live: bool) -> Vec<Owner> {
        let last = is_live.then(|| row.owner());
        let all = last.into_iter().chain(row.over).filter(|owner| owner.node != self.node);
        all.take(OVER_MAX).collect()
    }

    fn read(&mut self, device: &str) -> (Ask, Does) {
        self.devices.get_mut(device).expect("it was looked up").known = Known::Unsure;
        (Ask::Read, Does::Read)
    }

    fn remove(&mut self, device: &str, revision: u64, over: Vec<Owner>) -> (Ask, Does) {
        self.devices.get_mut(device).expect("it was looked up").known = Known::Ours(revision, NO_GENERATION);
        (Ask::Remove(revision), Does::Remove { revision, over })
    }

    /// The connection ends here, and nothing is written for it any more.
    fn give_up(&mut self, device: &str, generation: u64, is_loop: bool) {
        self.counts.lost += 1;
        self.effects.push(Effect::End { device: device.into(), generation, is_loop });
        let Some(entry) = self.devices.get_mut(device) else { return };
        self.counts.held -= u64::from(entry.is_settled());
        entry.wanted = None;
        (entry.taken, entry.asks) = (0, 0);
        match (&entry.under_way, &entry.known) {
            (Some(_), _) => {}
            // Should it still be there, it goes; if not, it is not found.
            (None, Known::Ours(..) | Known::Unsure) => self.enqueue(device),
            (None, Known::Nothing | Known::Theirs(..)) => self.forget(device),
        }
    }

    /// An answer. One that is late or doubled finds nothing.
    pub fn handle(&mut self, number: u64, answer: Answer) {
        let Some(device) = self.asked.remove(&number) else { return };
        let Some(entry) = self.devices.get_mut(&device) else { return };
        let Some(UnderWay { number: awaited, does }) = entry.under_way.take() else { return };
        debug_assert_eq!(awaited, number);
        entry.known = match (does, answer) {
            (Does::Read, Answer::Absent) => Known::Nothing,
            (Does::Read, Answer::Found(revision, row, is_live)) => {
                let (known, effects) = known_of(&self.node, self.lease.as_deref(), &device, revision, row, is_live);
                self.effects.extend(effects);
                known
            }
            (Does::Write { generation, is_takeover, over }, Answer::Written(Written::At(revision))) => {
                self.counts.written += 1;
                self.counts.taken += u64::from(is_takeover);
                self.effects.extend(tell_all(&device, over, revision));
                entry.asks = 0;
                Known::Ours(revision, generation)
            }
            (Does::Write { .. }, Answer::Written(Written::Conflict)) => {
                self.counts.conflicts += 1;
                Known::Unsure
            }
            (Does::Remove { revision, over }, Answer::Removed) => {
                self.counts.removed += 1;
                self.effects.extend(tell_all(&device, over, revision));
                Known::Nothing
            }
            (Does::AskOwner(revision, row), Answer::Owner(claim)) => {
                entry.asks += u8::from(claim == Claim::Silent);
                if claim == Claim::Silent && entry.asks < SILENT_MAX {
                    // Its lease may have ended meanwhile.
                    Known::Unsure
                } else {
                    Known::Theirs(revision, row, Standing::Says(claim))
                }
            }
            _ => Known::Unsure,
        };
        if entry.is_settled() {
            self.counts.held += 1;
            self.claimed.push(Arc::clone(&device));
        }
        let is_later = matches!(entry.known, Known::Ours(revision, _) if revision > entry.taken);
        let taken = entry.wanted.as_ref().filter(|_| entry.taken > 0 && !is_later).map(|wanted| wanted.generation);
        if let Some(generation) = taken {
            // It had been written, and written over, before the answer was here.
            return self.give_up(&device, generation, false);
        }
        if entry.is_nothing() {
            self.forget(&device);
        } else if !entry.is_settled() {
            self.enqueue(&device);
        }
    }

    /// Another gateway has written over a row of this one's: what stands there now has this revision.
    pub fn handle_taken(&mut self, device: &str, lease: &str, generation: u64, revision: u64) -> Told {
        if self.lease.as_deref() != Some(lease) {
            return Told::Gone;
        }
        let Some(entry) = self.devices.get_mut(device) else { return Told::Gone };
        if entry.wanted.as_ref().is_none_or(|wanted| wanted.generation != generation) {
            return Told::Gone;
        }
        if matches!(entry.known, Known::Ours(ours, _) if ours > revision) {
            // A word from before it was taken back.
            return Told::Gone;
        }
        if matches!(&entry.under_way, Some(UnderWay { does: Does::Write { .. }, .. })) {
            // What is under way may be what was written over, or what takes it back: its answer tells.
            entry.taken = entry.taken.max(revision);
            return Told::Ends;
        }
        self.give_up(device, generation, false);
        Told::Ends
    }

    // --- For others ---------------------------------------------------------------------------------------------------

    /// What is to be done besides; each once.
    pub fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    /// Devices that others find here from now on; each once.
    pub fn take_claimed(&mut self) -> Vec<Arc<str>> {
        std::mem::take(&mut self.claimed)
    }

    /// What was counted so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Devices whose rows are not yet as they are to be.
    pub fn waiting(&self) -> u64 {
        self.devices.len() as u64 - self.counts.held
    }

    fn enqueue(&mut self, device: &str) {
        if self.lease.is_none() {
            return;
        }
        let Some((device, _)) = self.devices.get_key_value(device) else { return };
        let device = Arc::clone(device);
        let entry = self.devices.get_mut(&device).expect("it was just found");
        if !entry.is_queued && entry.under_way.is_none() {
            entry.is_queued = true;
            // What has gone makes room for what comes.
            self.queue.push(device, entry.wanted.is_none());
        }
        let devices = &self.devices;
        self.queue.keep_small(devices.len(), |device| devices.get(device).is_some_and(|entry| entry.is_queued));
    }

    fn forget(&mut self, device: &str) {
        if let Some(entry) = self.devices.remove(device) {
            debug_assert!(entry.under_way.is_none());
            self.strays -= usize::from(entry.is_stray);
        }
    }

    /// A fault: what was owned under the lease before is believed to be owned under this one.
    #[cfg(test)]
    pub fn believe_in(&mut self, lease: &str) {
        self.begun = lease.into();
    }

    /// Panics unless what must hold between two calls does.
    #[cfg(test)]
    pub fn check_invariants(&self) {
        let held = self.devices.values().filter(|entry| entry.is_settled()).count();
        assert_eq!(self.counts.held, held as u64);
        for (number, device) in &self.asked {
            assert_eq!(self.devices[device].under_way.as_ref().map(|asked| asked.number), Some(*number));
        }
        let under_way = self.devices.values().filter(|entry| entry.under_way.is_some()).count();
        assert_eq!(under_way, self.asked.len());
        for entry in self.devices.values() {
            let has_work = !entry.is_settled();
            let is_seen_to = entry.is_queued || entry.under_way.is_some() || self.lease.is_none();
            assert!(!has_work || is_seen_to, "{entry:?}");
        }
    }
}

/// What a row that was just read says, and who is to be told of it.
fn known_of(
    node: &str,
    lease: Option<&str>,
    device: &str,
    revision: u64,
    mut row: Row,
    is_live: bool,
) -> (Known, Vec<Effect>) {
    if *row.node != *node {
        let standing = if is_live { Standing::Unasked } else { Standing::Dead };
        return (Known::Theirs(revision, Box::new(row), standing), Vec::new());
    }
    // The answer to the write may have been lost.
    let effects = tell_all(device, std::mem::take(&mut row.over), revision).collect();
    let known = if lease == Some(&*row.lease) {
        Known::Ours(revision, row.generation)
    } else {
        Known::Theirs(revision, Box::new(row), Standing::Dead)
    };
    (known, effects)
}

fn tell_all(device: &str, over: Vec<Owner>, revision: u64) -> impl Iterator<Item = Effect> {
    over.into_iter().map(move |before| Effect::Tell { device: device.into(), before, revision })
}

/// Up to when changes of place are paid for, were this device taken over.
fn paid_until(row: &Row, wanted: &Wanted, now_ms: u64) -> u64 {
    match (row.place, wanted.place) {
        // One that comes again from where it was is no fight.
        (Some(before), Some(now)) if before != now => row.paid_until_ms.max(now_ms) + SPAN_MS,
        _ => row.paid_until_ms,
    }
}

#[cfg(test)]
mod tests;
