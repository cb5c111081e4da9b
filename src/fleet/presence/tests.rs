//! Units, and three gateways over a model of NATS that delays, loses and doubles.

mod model;

use super::*;

const NOW_MS: u64 = 1_700_000_000_000;

struct Gateway {
    presence: Presence,
    now: Instant,
}

impl Gateway {
    fn new(node: &str) -> Self {
        let mut presence = Presence::new(node, 7);
        presence.begin("lease-1", true);
        Self { presence, now: Instant::now() }
    }

    fn come(&mut self, generation: u64) {
        self.presence.connected("d", generation, "192.0.2.1".parse().ok(), self.now);
    }

    #[track_caller]
    fn asks(&mut self) -> (u64, Ask) {
        let (number, device, ask) = self.presence.next(self.now, NOW_MS).expect("a question");
        assert_eq!(&*device, "d");
        self.presence.check_invariants();
        (number, ask)
    }

    #[track_caller]
    fn asks_nothing(&mut self) {
        assert_eq!(self.presence.next(self.now, NOW_MS), None);
        self.presence.check_invariants();
    }

    fn hears(&mut self, number: u64, answer: Answer) {
        self.presence.handle(number, answer);
        self.presence.check_invariants();
    }

    /// Comes to have the device at this revision.
    #[track_caller]
    fn claims(&mut self, generation: u64, revision: u64) {
        self.come(generation);
        let (number, ask) = self.asks();
        assert!(matches!(ask, Ask::Write(_, row) if row.generation == generation));
        self.hears(number, Answer::Written(Written::At(revision)));
        self.asks_nothing();
        assert_eq!(self.presence.counts().held, 1);
    }
}

fn row(node: &str, generation: u64) -> Row {
    let place = "198.51.100.9".parse().ok();
    Row { node: node.into(), lease: "lease-9".into(), epoch: 3, generation, place, paid_until_ms: 0, over: Vec::new() }
}

#[test]
fn a_device_that_comes_is_written_and_one_that_goes_is_removed() {
    let mut gateway = Gateway::new("a");
    gateway.claims(5, 11);
    // An end of an older connection is none.
    gateway.presence.disconnected("d", 4);
    gateway.asks_nothing();
    gateway.presence.disconnected("d", 5);
    let (number, ask) = gateway.asks();
    assert_eq!(ask, Ask::Remove(11));
    gateway.hears(number, Answer::Removed);
    gateway.asks_nothing();
    assert_eq!(gateway.presence.waiting(), 0);
}

#[test]
fn what_comes_and_goes_before_it_was_asked_about_costs_nothing() {
    let mut gateway = Gateway::new("a");
    for generation in 1..5_000 {
        gateway.come(generation);
        gateway.presence.disconnected("d", generation);
    }
    gateway.asks_nothing();
    // A connection that follows another is one write over its row.
    gateway.claims(6_000, 3);
    gateway.presence.disconnected("d", 6_000);
    gateway.come(6_001);
    let (number, ask) = gateway.asks();
    assert!(matches!(ask, Ask::Write(3, _)), "{ask:?}");
    gateway.hears(number, Answer::Written(Written::At(4)));
    gateway.asks_nothing();
}

#[test]
fn a_device_elsewhere_is_taken_over_and_its_gateway_told() {
    let mut gateway = Gateway::new("a");
    gateway.come(1);
    let (number, _) = gateway.asks();
    gateway.hears(number, Answer::Written(Written::Conflict));
    let (number, ask) = gateway.asks();
    assert_eq!(ask, Ask::Read);
    gateway.hears(number, Answer::Found(40, row("b", 9), true));
    let (number, ask) = gateway.asks();
    assert!(matches!(ask, Ask::Write(40, _)), "{ask:?}");
    gateway.hears(number, Answer::Written(Written::At(41)));
    let told = Effect::Tell { device: "d".into(), before: row("b", 9).owner(), revision: 41 };
    assert_eq!(gateway.presence.take_effects(), [told]);
    // A doubled answer finds nothing.
    gateway.hears(number, Answer::Written(Written::Conflict));
    gateway.asks_nothing();
}

#[test]
fn a_dead_gateway_is_taken_from_and_not_told() {
    for (node, is_live) in [("b", false), ("a", false)] {
        let mut gateway = Gateway::new("a");
        gateway.come(1);
        let (number, _) = gateway.asks();
        gateway.hears(number, Answer::Written(Written::Conflict));
        let (number, _) = gateway.asks();
        gateway.hears(number, Answer::Found(40, row(node, 9), is_live));
        let (number, ask) = gateway.asks();
        assert!(matches!(ask, Ask::Write(40, _)), "{ask:?}");
        gateway.hears(number, Answer::Written(Written::At(41)));
        assert_eq!(gateway.presence.take_effects(), []);
    }
}

/// The answer to a takeover is lost: whoever lost the device is told all the same, by whoever reads the row next.
#[test]
fn who_lost_a_device_is_told_whatever_becomes_of_the_answer() {
    let taken = |lease: &str| {
        let mut taken = row("a", 1);
        (taken.lease, taken.over) = (lease.into(), vec![row("b", 9).owner()]);
        taken
    };
    let told = |revision| Effect::Tell { device: "d".into(), before: row("b", 9).owner(), revision };
    let mut gateway = Gateway::new("a");
    gateway.come(1);
    gateway.presence.end();
    gateway.presence.begin("lease-1", false);
    let (number, _) = gateway.asks();
    gateway.hears(number, Answer::Written(Written::Conflict));
    let (number, _) = gateway.asks();
    gateway.hears(number, Answer::Found(41, taken("lease-1"), true));
    assert_eq!(gateway.presence.take_effects(), [told(41)]);
    // The gateway that took it has died with its answer.
    let mut other = Gateway::new("c");
    other.come(3);
    let (number, _) = other.asks();
    other.hears(number, Answer::Written(Written::Conflict));
    let (number, _) = other.asks();
    other.hears(number, Answer::Found(41, taken("lease-8"), false));
    let (number, ask) = other.asks();
    assert!(matches!(&ask, Ask::Write(41, row) if row.over.len() == 1), "{ask:?}");
    other.hears(number, Answer::Written(Written::At(50)));
    assert_eq!(other.presence.take_effects(), [told(50)]);
    assert_eq!(other.presence.counts().taken, 0, "nobody lived to be taken over");
}

#[test]
fn whoever_came_while_nats_was_away_takes_nobody_over() {
    let mut gateway = Gateway::new("a");
    gateway.presence.end();
    gateway.come(1);
    gateway.asks_nothing();
    gateway.presence.begin("lease-1", false);
    let (number, ask) = gateway.asks();
    assert!(matches!(ask, Ask::Write(0, _)));
    gateway.hears(number, Answer::Written(Written::Conflict));
    let (number, _) = gateway.asks();
    gateway.hears(number, Answer::Found(40, row("b", 9), true));
    gateway.asks_nothing();
    let end = Effect::End { device: "d".into(), generation: 1, is_loop: false };
    assert_eq!(gateway.presence.take_effects(), [end]);
    assert_eq!(gateway.presence.waiting(), 0);
}

#[test]
fn a_gateway_that_was_away_for_too_long_disowns_what_it_lost_and_keeps_the_rest() {
    let mut gateway = Gateway::new("a");
    gateway.claims(5, 11);
    gateway.presence.end();
    gateway.presence.begin("lease-2", true);
    let (number, ask) = gateway.asks();
    assert_eq!(ask, Ask::Read);
    let mut own = row("a", 5);
    own.lease = "lease-1".into();
    gateway.hears(number, Answer::Found(11, own, false));
    let (number, ask) = gateway.asks();
    assert!(matches!(ask, Ask::Write(11, row) if &*row.lease == "lease-2"));
    gateway.hears(number, Answer::Written(Written::At(12)));
    gateway.presence.end();
    gateway.presence.begin("lease-3", true);
    let (number, _) = gateway.asks();
    gateway.hears(number, Answer::Found(40, row("b", 9), true));
    gateway.asks_nothing();
    assert!(matches!(&gateway.presence.take_effects()[..], [Effect::End { generation: 5, .. }]));
}

#[test]
fn one_that_keeps_its_lease_through_a_short_absence_asks_nothing_again() {
    let mut gateway = Gateway::new("a");
    gateway.claims(5, 11);
    gateway.presence.end();
    gateway.presence.begin("lease-1", false);
    gateway.asks_nothing();
    assert_eq!(gateway.presence.counts().held, 1);
}

#[test]
fn a_gateway_that_is_told_ends_that_connection_and_no_newer_one() {
    let mut gateway = Gateway::new("a");
    gateway.claims(5, 11);
    assert_eq!(gateway.presence.handle_taken("d", "lease-0", 5, 40), Told::Gone, "of a lease that it has lost");
    assert_eq!(gateway.presence.handle_taken("d", "lease-1", 4, 40), Told::Gone, "of an older connection");
    assert_eq!(gateway.presence.handle_taken("d", "lease-1", 5, 10), Told::Gone, "a word from before");
    assert_eq!(gateway.presence.handle_taken("x", "lease-1", 5, 40), Told::Gone);
    assert_eq!(gateway.presence.take_effects(), []);
    assert_eq!(gateway.presence.handle_taken("d", "lease-1", 5, 40), Told::Ends);
    assert!(matches!(&gateway.presence.take_effects()[..], [Effect::End { generation: 5, is_loop: false, .. }]));
    // The late end of that connection, and the row of the other one.
    gateway.presence.disconnected("d", 5);
    let (number, ask) = gateway.asks();
    assert_eq!(ask, Ask::Remove(11), "this revision and no newer one");
    gateway.hears(number, Answer::Removed);
    assert_eq!(gateway.presence.waiting(), 0);
}

#[test]
fn what_is_taken_before_the_answer_was_here_is_lost() {
    let mut gateway = Gateway::new("a");
    gateway.come(5);
    let (number, _) = gateway.asks();
    assert_eq!(gateway.presence.handle_taken("d", "lease-1", 5, 40), Told::Ends);
    gateway.hears(number, Answer::Written(Written::At(39)));
    assert!(matches!(&gateway.presence.take_effects()[..], [Effect::End { generation: 5, .. }]));
    let (_, ask) = gateway.asks();
    assert_eq!(ask, Ask::Remove(39));
}

#[test]
fn a_row_that_nobody_here_has_goes_when_somebody_asks() {
    let mut gateway = Gateway::new("a");
    for _ in 0..3 {
        gateway.presence.missed("d");
    }
    let (number, ask) = gateway.asks();
    assert_eq!(ask, Ask::Read);
    let mut own = row("a", 5);
    own.lease = "lease-1".into();
    gateway.hears(number, Answer::Found(11, own, true));
    let (number, ask) = gateway.asks();
    assert_eq!(ask, Ask::Remove(11));
    gateway.hears(number, Answer::Removed);
    gateway.presence.missed("d");
    let (number, _) = gateway.asks();
    gateway.hears(number, Answer::Found(12, row("b", 1), true));
    gateway.asks_nothing();
    assert_eq!(gateway.presence.waiting(), 0);
}

#[test]
fn two_places_that_fight_over_an_id_are_damped_and_one_place_is_not() {
    for (other, may_be_damped) in [("198.51.100.9", true), ("192.0.2.1", false)] {
        let mut there = row("b", 9);
        there.place = other.parse().ok();
        let mut damped = 0;
        for round in 0..40 {
            let mut gateway = Gateway::new("a");
            gateway.come(round + 1);
            let (number, _) = gateway.asks();
            gateway.hears(number, Answer::Written(Written::Conflict));
            let (number, _) = gateway.asks();
            gateway.hears(number, Answer::Found(40 + round, there.clone(), true));
            match gateway.presence.next(gateway.now, NOW_MS) {
                // The other one takes it back from its place.
                Some((_, _, Ask::Write(_, row))) => {
                    there.paid_until_ms = row.paid_until_ms;
                }
                None => {
                    damped += 1;
                    let effects = gateway.presence.take_effects();
                    assert!(matches!(&effects[..], [Effect::End { is_loop: true, .. }]), "{effects:?}");
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(damped > 0, may_be_damped, "{damped}");
        assert!(!may_be_damped || damped >= 30, "{damped}");
    }
}

#[test]
fn names_that_wait_are_bounded_by_devices() {
    let mut gateway = Gateway::new("a");
    for round in 0..50_000_u64 {
        let device = format!("d{}", round % 10);
        gateway.presence.connected(&device, round, None, gateway.now);
        gateway.presence.disconnected(&device, round);
    }
    assert!(gateway.presence.queue.len() <= 2 * 10 + 2_000, "{}", gateway.presence.queue.len());
    gateway.asks_nothing();
}
