//! What presence tells of a crowd, beside what its devices know themselves: every connection has its two events, in order, and no row of
//! the bucket ever went back to a connection before.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde_json::Value;

use super::following::{Rows, Stored};
use super::journal::{Journal, message_of, name};

/// Of each kind of fault so many are told.
const TOLD_MAX: usize = 5;

/// One connection, as a gateway numbers it: node, epoch, device, generation.
type Key = (String, u64, String, u64);

/// A presence event.
struct Seen {
    /// Its place in the stream.
    sequence: u64,
    kind: String,
    key: Key,
    worker: u64,
    /// Its place among the events of its worker.
    place: u64,
    port: u16,
    cause: String,
}

impl Seen {
    fn read(stored: &Stored) -> Self {
        let event: Value = serde_json::from_slice(&stored.payload).expect("events are JSON");
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let number = |key: &str| event[key].as_u64().unwrap_or_else(|| panic!("{key} of {event}"));
        Self {
            sequence: stored.sequence,
            kind: text("kind"),
            key: (text("node"), number("epoch"), text("device"), number("generation")),
            worker: number("worker"),
            place: number("sequence"),
            port: text("peer").rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or(0),
            cause: text("cause"),
        }
    }
}

/// What was found, in words, by kind.
#[derive(Default)]
pub struct Verdict {
    faults: BTreeMap<&'static str, Vec<String>>,
}

impl Verdict {
    pub fn add(&mut self, kind: &'static str, what: String) {
        self.faults.entry(kind).or_default().push(what);
    }

    /// Nothing was found.
    #[track_caller]
    pub fn expect_none(&self) {
        let told = self.faults.iter().map(|(kind, all)| {
            let first = &all[..all.len().min(TOLD_MAX)];
            format!("{kind} ({} times):\n    {}", all.len(), first.join("\n    "))
        });
        let told: Vec<_> = told.collect();
        assert!(told.is_empty(), "{}", told.join("\n"));
    }
}

/// All that was acknowledged is in the stream. How many lie there twice.
pub fn judge_uplink(verdict: &mut Verdict, journal: &Journal, uplink: &[Stored]) -> usize {
    let mut found = vec![BTreeSet::new(); journal.acknowledged.len()];
    let mut doubles = 0;
    for stored in uplink {
        match message_of(&stored.payload).filter(|(device, _)| *device < found.len()) {
            Some((device, number)) => doubles += usize::from(!found[device].insert(number)),
            None => verdict.add("a message that nobody said", format!("{} in {}", stored.sequence, stored.subject)),
        }
    }
    for (device, count) in journal.acknowledged.iter().enumerate() {
        for number in (0..*count).filter(|number| !found[device].contains(number)) {
            let what = format!("message {number}; {}", journal.life_of(device));
            verdict.add("acknowledged, and not in the stream", what);
        }
    }
    doubles
}

/// All that was acknowledged came to the device that it was for.
pub fn judge_messages(verdict: &mut Verdict, journal: &Journal) {
    for (device, number, addressee) in journal.unheard() {
        let what = format!("message {number} from {}; to {}", name(device), journal.life_of(addressee));
        verdict.add("acknowledged, and not received", what);
    }
    for wrong in &journal.wrongs {
        verdict.add("seen by a device", wrong.clone());
    }
}

/// What presence tells. `killed`: the gateway that was killed, in its first life.
pub struct Presence<'a> {
    journal: &'a Journal,
    events: Vec<Seen>,
    rows: &'a Rows,
    killed: usize,
    /// The connection of each that has an event, by its place in the journal.
    serials: HashMap<Key, usize>,
    /// The lives of each gateway, the earliest first.
    epochs: BTreeMap<String, BTreeSet<u64>>,
}

impl<'a> Presence<'a> {
    pub fn new(journal: &'a Journal, events: &[Stored], rows: &'a Rows, killed: usize) -> Self {
        let events: Vec<Seen> = events.iter().map(Seen::read).collect();
        let mut epochs: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
        for seen in &events {
            epochs.entry(seen.key.0.clone()).or_default().insert(seen.key.1);
        }
        let mut presence = Self { journal, events, rows, killed, serials: HashMap::new(), epochs };
        presence.serials = presence.find();
        presence
    }

    /// Which life of its gateway this is, from 0.
    fn life(&self, node: &str, epoch: u64) -> usize {
        self.epochs.get(node).map_or(0, |epochs| epochs.range(..epoch).count())
    }

    fn is_killed(&self, key: &Key) -> bool {
        key.0 == gate(self.killed) && self.life(&key.0, key.1) == 0
    }

    /// Connections are known by where they came from.
    fn find(&self) -> HashMap<Key, usize> {
        let all = self.journal.connections.iter().enumerate();
        let by_port: HashMap<_, _> =
            all.map(|(serial, one)| ((gate(one.gate), one.life, name(one.device), one.port), serial)).collect();
        let found = self.events.iter().filter_map(|seen| {
            let (node, epoch, device, _) = &seen.key;
            let place = (node.clone(), self.life(node, *epoch), device.clone(), seen.port);
            Some((seen.key.clone(), *by_port.get(&place)?))
        });
        found.collect()
    }

    /// Each connection has one `connected` and one `disconnected`, in this order; those of a device at one gateway follow each other.
    pub fn judge_events(&self, verdict: &mut Verdict) {
        let mut courses: BTreeMap<(&str, u64, &str), Vec<&Seen>> = BTreeMap::new();
        for seen in &self.events {
            courses.entry((&seen.key.0, seen.key.1, &seen.key.2)).or_default().push(seen);
        }
        for ((node, epoch, device), course) in courses {
            let mut open: Option<&Seen> = None;
            let mut before = 0;
            for &seen in &course {
                let is_next = match (&*seen.kind, open) {
                    ("connected", None) => seen.key.3 > before,
                    ("disconnected", Some(open)) => seen.key.3 == open.key.3 && seen.place > open.place,
                    _ => false,
                };
                if !is_next {
                    let told = course.iter().map(|seen| (&*seen.kind, seen.key.3, seen.place, seen.sequence));
                    let told: Vec<_> = told.collect();
                    verdict.add("events out of order", format!("{device} at {node}, epoch {epoch}: {told:?}"));
                    break;
                }
                before = seen.key.3;
                open = (seen.kind == "connected").then_some(seen);
            }
            if let Some(open) = open.filter(|open| !self.is_killed(&open.key)) {
                verdict.add("connected for ever", format!("{:?}, event {} of the stream", open.key, open.sequence));
            }
        }
        self.judge_places(verdict);
        self.judge_connections(verdict);
    }

    /// The events of each worker are all there: 1, 2, 3 and so on.
    fn judge_places(&self, verdict: &mut Verdict) {
        let mut places: BTreeMap<(&str, u64, u64), BTreeMap<u64, usize>> = BTreeMap::new();
        for seen in &self.events {
            let of_worker = places.entry((&seen.key.0, seen.key.1, seen.worker)).or_default();
            *of_worker.entry(seen.place).or_default() += 1;
        }
        for (worker, places) in places {
            let twice: Vec<_> = places.iter().filter(|(_, times)| **times > 1).map(|(place, _)| *place).collect();
            let last = places.last_key_value().map_or(0, |(place, _)| *place);
            let gone: Vec<_> = (1..=last).filter(|place| !places.contains_key(place)).take(TOLD_MAX).collect();
            if !twice.is_empty() || !gone.is_empty() {
                verdict.add("events twice or missing", format!("{worker:?}: twice {twice:?}, missing {gone:?}"));
            }
        }
    }

    fn judge_connections(&self, verdict: &mut Verdict) {
        let known: BTreeSet<usize> = self.serials.values().copied().collect();
        for (serial, connection) in self.journal.connections.iter().enumerate() {
            let was_killed = connection.gate == self.killed && connection.life == 0;
            if connection.welcome.is_some() && !known.contains(&serial) && !was_killed {
                let what = format!("#{serial} of {}", self.journal.life_of(connection.device));
                verdict.add("a connection without events", what);
            }
        }
        for seen in self.events.iter().filter(|seen| !self.serials.contains_key(&seen.key)) {
            verdict.add("events of no connection", format!("{} {:?} from {}", seen.kind, seen.key, seen.port));
        }
        for seen in self.events.iter().filter(|seen| seen.kind == "disconnected") {
            let Some(serial) = self.serials.get(&seen.key) else { continue };
            let connection = &self.journal.connections[*serial];
            if connection.abandoned.is_some() && seen.cause != "taken_over" {
                verdict.add("lost, and not disowned", format!("{:?} ended for {}", seen.key, seen.cause));
            }
        }
    }

    /// The row of a device goes from one of its connections to a later one, and never back.
    pub fn judge_rows(&self, verdict: &mut Verdict) {
        let mut owners: HashMap<&str, (usize, u64)> = HashMap::new();
        for (revision, (device, row)) in self.rows {
            let text = row["node"].as_str().unwrap_or_default().to_owned();
            let number = |key: &str| row[key].as_u64().unwrap_or(u64::MAX);
            let key = (text, number("epoch"), device.clone(), number("generation"));
            let Some(&serial) = self.serials.get(&key) else {
                if !self.is_killed(&key) {
                    verdict.add("a row of no connection", format!("revision {revision} of {device}: {row}"));
                }
                continue;
            };
            if let Some((before, at)) = owners.insert(device, (serial, *revision))
                && before > serial
            {
                let what = format!("{device}: #{before} in revision {at}, #{serial} in {revision}; ");
                let device = self.journal.connections[serial].device;
                verdict.add("a row went back to a connection before", what + &self.journal.life_of(device));
            }
        }
    }
}

fn gate(number: usize) -> String {
    format!("gate-{number}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::journal::Connection;
    use super::*;

    /// Two devices at three gateways: the first was at one and then at another, the second has stayed.
    fn journal() -> Journal {
        let mut journal = Journal::new(2);
        for (device, gate, port) in [(0, 0, 1_000), (1, 1, 1_001), (0, 1, 1_002)] {
            let (welcome, abandoned, told, end) = (Some(true), None, None, None);
            journal.connections.push(Connection { device, gate, life: 0, port, welcome, abandoned, told, end });
        }
        journal
    }

    fn event(
        sequence: u64,
        kind: &str,
        (gate, generation, place): (usize, u64, u64),
        (device, port): (usize, u16),
    ) -> Stored {
        let event = json!({
            "kind": kind, "device": name(device), "node": super::gate(gate), "epoch": 7, "generation": generation, "worker": 0,
            "sequence": place, "peer": format!("127.0.0.1:{port}"), "cause": "closed",
        });
        Stored { sequence, subject: String::new(), payload: event.to_string().into_bytes(), pending: 0 }
    }

    fn events() -> Vec<Stored> {
        let (first, second, third) = ((0, 1_000), (1, 1_001), (0, 1_002));
        vec![
            event(1, "connected", (0, 1, 1), first),
            event(2, "connected", (1, 1, 1), second),
            event(3, "connected", (1, 2, 2), third),
            event(4, "disconnected", (0, 1, 2), first),
            event(5, "disconnected", (1, 1, 3), second),
            event(6, "disconnected", (1, 2, 4), third),
        ]
    }

    fn rows(owners: &[(usize, u64)]) -> Rows {
        let row = |(gate, generation): &(usize, u64)| {
            (name(0), json!({"node": super::gate(*gate), "epoch": 7, "generation": generation}))
        };
        (1..).zip(owners.iter().map(row)).collect()
    }

    /// The kinds of fault that are found.
    fn found(journal: &Journal, events: &[Stored], rows: &Rows) -> Vec<&'static str> {
        let mut verdict = Verdict::default();
        let presence = Presence::new(journal, events, rows, 2);
        presence.judge_events(&mut verdict);
        presence.judge_rows(&mut verdict);
        verdict.faults.into_keys().collect()
    }

    #[test]
    fn what_presence_must_not_tell_is_found() {
        let (journal, right) = (journal(), rows(&[(0, 1), (0, 1), (1, 2)]));
        assert_eq!(found(&journal, &events(), &right), [""; 0]);
        assert_eq!(found(&journal, &events(), &rows(&[(1, 2), (0, 1)])), ["a row went back to a connection before"]);
        assert_eq!(found(&journal, &events(), &rows(&[(2, 9)])), [""; 0], "of who was killed nobody knows");
        assert_eq!(found(&journal, &events(), &rows(&[(1, 9)])), ["a row of no connection"]);
        let without = |at: usize| {
            let mut events = events();
            events.remove(at);
            events
        };
        assert_eq!(found(&journal, &without(5), &right), ["connected for ever"]);
        assert_eq!(found(&journal, &without(4), &right), ["connected for ever", "events twice or missing"]);
        assert_eq!(found(&journal, &without(1), &right), ["events out of order", "events twice or missing"]);
        let silent: Vec<_> = events().into_iter().filter(|stored| ![2, 5].contains(&stored.sequence)).collect();
        let unknown = ["a connection without events", "events twice or missing"];
        assert_eq!(found(&journal, &silent, &right), unknown);
        let mut twice = events();
        twice.push(event(7, "disconnected", (1, 2, 4), (0, 1_002)));
        assert_eq!(found(&journal, &twice, &right), ["events out of order", "events twice or missing"]);
        let mut turned = events();
        turned.swap(0, 3);
        assert_eq!(found(&journal, &turned, &right), ["events out of order"]);
        let mut strange = events();
        strange.push(event(7, "connected", (1, 3, 5), (1, 2_000)));
        assert_eq!(found(&journal, &strange, &right), ["connected for ever", "events of no connection"]);
    }

    #[test]
    fn what_was_acknowledged_and_is_nowhere_is_found() {
        let mut journal = journal();
        journal.acknowledged = vec![2, 0];
        let said = |text: &str| Stored { sequence: 1, subject: String::new(), payload: text.into(), pending: 0 };
        let mut verdict = Verdict::default();
        assert_eq!(judge_uplink(&mut verdict, &journal, &[said("0.0"), said("0.1"), said("0.0")]), 1);
        assert!(verdict.faults.is_empty());
        judge_uplink(&mut verdict, &journal, &[said("0.0"), said("9.0")]);
        assert_eq!(verdict.faults.len(), 2, "{:?}", verdict.faults);
        // The second message of the first device is for one of the two.
        let mut verdict = Verdict::default();
        judge_messages(&mut verdict, &journal);
        assert_eq!(verdict.faults.into_keys().collect::<Vec<_>>(), ["acknowledged, and not received"]);
        let at = super::super::journal::addressee(0, 1, 2).unwrap();
        journal.hear(at, "to", b"0.1");
        assert_eq!(journal.unheard().count(), 0);
        journal.hear(1 - at, "to", b"0.1");
        assert_eq!(journal.wrongs.len(), 1, "it came to somebody else");
    }
}
