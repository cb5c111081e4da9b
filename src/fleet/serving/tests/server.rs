//! NATS as far as groups need it: a stream, a durable consumer with explicit acknowledgements, the row of the group, and connections on which
//! each way keeps its order.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::*;
use super::GROUP;
use super::gateway::Gateway;
use crate::fleet::membership::model::Rows;
use crate::fleet::membership::{Ask, Told};
use crate::fleet::pulls::EXPIRES;

/// As `server/groups` has it.
const ACK_WAIT: Duration = Duration::from_secs(20);

/// What a gateway says.
#[derive(Debug)]
pub enum Up {
    Say(Subject, Said),
    Pull { consumer: String, slot: u64, pull: Pull },
    Publish(u32),
}

/// What it hears.
#[derive(Debug)]
pub enum Down {
    Came { consumer: String, seq: u64, tries: u64, number: u32 },
    Ended(Ended),
}

/// A connection.
#[derive(Debug, Default)]
pub struct Link {
    pub id: u64,
    pub up: VecDeque<Up>,
    pub down: VecDeque<Down>,
}

/// A message that was given, and until when it is waited for.
struct Pending {
    tries: u64,
    due: Instant,
}

/// A question that waits.
struct Waiting {
    at: usize,
    link: u64,
    slot: u64,
    number: u64,
    left: u32,
    expires: Instant,
}

/// A consumer.
#[derive(Default)]
pub struct Consumer {
    next: u64,
    pending: BTreeMap<u64, Pending>,
    pulls: VecDeque<Waiting>,
}

#[derive(Default)]
pub struct Nats {
    links: u64,
    /// By place, from 1 on: the message.
    pub stream: Vec<u32>,
    pub rows: Rows<Consumer>,
    /// What the group had a row for when it came.
    owed: BTreeSet<u32>,
    /// What nobody waits for any more, and arrives all the same.
    late: Vec<Ask>,
}

impl Nats {
    pub fn connect(&mut self) -> Link {
        self.links += 1;
        Link { id: self.links, ..Link::default() }
    }

    // --- Rows ---------------------------------------------------------------------------------------------------------

    pub fn answer(&mut self, ask: &Ask) -> Told {
        // It begins at the stream's end.
        let next = self.stream.len() as u64 + 1;
        self.rows.answer(ask, || Consumer { next, ..Consumer::default() })
    }

    pub fn keep_for_later(&mut self, ask: Ask) {
        self.late.push(ask);
    }

    pub fn has_late(&self) -> bool {
        !self.late.is_empty()
    }

    pub fn do_late(&mut self, random: &mut fastrand::Rng) {
        if !self.late.is_empty() {
            let ask = self.late.swap_remove(random.usize(..self.late.len()));
            self.answer(&ask);
        }
    }

    // --- Messages -----------------------------------------------------------------------------------------------------

    /// A connection is gone: so much of what was said on it arrives.
    pub fn hear_some(&mut self, at: usize, mut link: Link, count: usize, now: Instant) {
        for _ in 0..count {
            let Some(said) = link.up.pop_front() else { break };
            self.hear(at, &mut link, said, (false, false), now);
        }
        // The log of the gateway sends again what went up and was not acknowledged; here at once.
        for said in &link.up {
            if let Up::Publish(number) = said {
                self.publish(*number);
            }
        }
        self.rows.consumers.values_mut().for_each(|consumer| consumer.pulls.retain(|pull| pull.link != link.id));
    }

    pub fn publish(&mut self, number: u32) {
        self.stream.push(number);
        if let Some((_, row)) = &self.rows.row
            && row.group == GROUP
            // Before its members have come the last of others may take the group with it.
            && row.nodes.contains("gate-0")
            && self.rows.consumers.contains_key(&row.consumer)
        {
            self.owed.insert(number);
        }
    }

    /// The message of which this is said.
    pub fn message_of(&self, reply: &Subject) -> u32 {
        let seq: usize = reply.split(' ').nth(1).and_then(|seq| seq.parse().ok()).expect("a place in the stream");
        self.stream[seq - 1]
    }

    /// Whether it was for the group when it came into the stream.
    pub fn is_owed(&self, number: u32) -> bool {
        self.owed.contains(&number)
    }

    pub fn hear(&mut self, at: usize, link: &mut Link, said: Up, (is_lost, is_doubled): (bool, bool), now: Instant) {
        match said {
            Up::Publish(number) => self.publish(number),
            Up::Say(..) if is_lost => {}
            Up::Say(reply, said) => {
                for _ in 0..=usize::from(is_doubled) {
                    self.settle(&reply, said, now);
                }
            }
            Up::Pull { consumer, slot, pull } => {
                let Pull { number, messages: left, .. } = pull;
                let Some(known) = self.rows.consumers.get_mut(&consumer) else {
                    let ended = Ended { slot, number, left, is_too_large: false, is_gone: true };
                    return link.down.push_back(Down::Ended(ended));
                };
                let expires = now + EXPIRES;
                known.pulls.push_back(Waiting { at, link: link.id, slot, number, left, expires });
            }
        }
    }

    fn settle(&mut self, reply: &Subject, said: Said, now: Instant) {
        let mut tokens = reply.split(' ');
        let consumer = tokens.next().and_then(|name| self.rows.consumers.get_mut(name));
        let (Some(consumer), Some(seq)) = (consumer, tokens.next().and_then(|seq| seq.parse::<u64>().ok())) else {
            return;
        };
        let Some(pending) = consumer.pending.get_mut(&seq) else { return };
        match said {
            Said::Taken => drop(consumer.pending.remove(&seq)),
            Said::Back(after) => pending.due = now + after.unwrap_or_default(),
            Said::Underway => pending.due = now + ACK_WAIT,
        }
    }

    /// Questions whose time is over are ended, and what there is goes to those that wait, in turn.
    pub fn serve(&mut self, gateways: &mut [Gateway], now: Instant) {
        for (name, consumer) in &mut self.rows.consumers {
            let (late, waiting): (Vec<_>, Vec<_>) = consumer.pulls.drain(..).partition(|pull| pull.expires <= now);
            consumer.pulls = waiting.into();
            for pull in late {
                let link = gateways[pull.at].link.as_mut().filter(|link| link.id == pull.link);
                if let Some(link) = link {
                    let Waiting { slot, number, left, .. } = pull;
                    let ended = Ended { slot, number, left, is_too_large: false, is_gone: false };
                    link.down.push_back(Down::Ended(ended));
                }
            }
            while let Some(seq) = consumer.next_for(&self.stream, now)
                && let Some(mut pull) = consumer.pulls.pop_front()
            {
                let link = gateways[pull.at].link.as_mut().filter(|link| link.id == pull.link);
                let Some(link) = link else { continue };
                let pending = consumer.pending.entry(seq).or_insert(Pending { tries: 0, due: now });
                (pending.tries, pending.due) = (pending.tries + 1, now + ACK_WAIT);
                consumer.next = consumer.next.max(seq + 1);
                let (tries, number) = (pending.tries, self.stream[seq as usize - 1]);
                link.down.push_back(Down::Came { consumer: name.clone(), seq, tries, number });
                pull.left -= 1;
                if pull.left > 0 {
                    consumer.pulls.push_back(pull);
                }
            }
        }
    }

    /// Nothing waits for anybody.
    pub fn is_drained(&self) -> bool {
        let next = self.stream.len() as u64 + 1;
        let row = self.rows.row.as_ref().and_then(|(_, row)| self.rows.consumers.get(&row.consumer));
        row.is_some_and(|consumer| consumer.next == next && consumer.pending.is_empty())
    }

    pub fn describe(&self) -> String {
        let one = |(name, one): (&String, &Consumer)| {
            format!("{name}: next {}, pending {}, pulls {}", one.next, one.pending.len(), one.pulls.len())
        };
        let all: Vec<_> = self.rows.consumers.iter().map(one).collect();
        format!("{} in the stream, {:?}, {all:?}", self.stream.len(), self.rows.row)
    }
}

impl Consumer {
    fn next_for(&self, stream: &[u32], now: Instant) -> Option<u64> {
        let again = self.pending.iter().find(|(_, pending)| pending.due <= now).map(|(seq, _)| *seq);
        again.or_else(|| (self.next <= stream.len() as u64).then_some(self.next))
    }
}
